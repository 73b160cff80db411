use std::time::Duration;

use super::*;
use crate::store::{TrimQuery, Writer};

fn trimmable(store: &Store, dead_until: i64, replaced_until: i64) -> Vec<(Vec<u8>, Position)> {
    let (dead_until, replaced_until) = (log_ms(dead_until), log_ms(replaced_until));
    let query = TrimQuery { after: b"", dead_until, replaced_until, max_records: 9, max_keys: 9 };
    store.trimmable(&query).expect("readable").records
}

#[test]
fn trim_removes_what_it_has_seen_and_nothing_newer() {
    let (_dir, store) = filled(&[]);
    apply(&store, dead(5, "five"));
    assert!(shown(&store).is_some());
    assert_eq!(apply(&store, trim(6, 5)), Applied { changed: 1, trimmed: 1, ..Applied::default() });
    assert_eq!((shown(&store), pending_repairs(&store)), (None, vec![]));
    assert_eq!(store.get(b"k").expect("readable"), None, "the cache forgot it too");
    assert_eq!(apply(&store, trim(7, 5)), Applied::default(), "the second of two trimmers changes nothing");
    apply(&store, write(8, "eight"));
    assert_eq!(apply(&store, trim(9, 7)), Applied { void: 1, ..Applied::default() });
    assert_eq!(shown(&store), Some((8, 1_008, "eight".into())));
    assert_eq!(pending_repairs(&store), [9]);
}

#[test]
fn record_without_effect_leaves_a_pending_repair() {
    let (_dir, store) = filled(&[]);
    let nothing = |offset, by| Change::NoEffect { at: at(offset), timestamp: log_ms(offset), by };
    let poison = |offset| nothing(offset, Writer::Unknown);
    let void = Applied { void: 1, ..Applied::default() };
    assert_eq!(apply(&store, poison(3)), Applied::default());
    assert_eq!((shown(&store), pending_repairs(&store)), (None, vec![]), "it is none of ours");
    assert_eq!(apply(&store, nothing(4, Writer::Trimmer)), void.clone());
    assert_eq!(
        (shown(&store), pending_repairs(&store)),
        (None, vec![4]),
        "a tombstone may have been before it"
    );
    assert_eq!(store.needed_repairs(9).expect("readable").1[0].entry, None);
    assert_eq!(apply(&store, trim(5, 3)), Applied::default());
    assert_eq!(pending_repairs(&store), [0; 0], "said again");
    apply(&store, poison(6));
    apply(&store, write(7, "seven"));
    assert_eq!((shown(&store), pending_repairs(&store)), (Some((7, 1_007, "seven".into())), vec![]));
    for offset in [8, 9] {
        assert_eq!(apply(&store, poison(offset)), void.clone());
        assert_eq!(pending_repairs(&store), [offset], "one for the newest is enough");
    }
    assert_eq!(apply(&store, poison(3)), Applied::default(), "it was applied before");
    apply(
        &store,
        Change::NoEffect {
            at: Position { partition: 1, offset: 5 },
            timestamp: log_ms(0),
            by: Writer::Trimmer,
        },
    );
    assert_eq!(pending_repairs(&store), [9, 5], "another partition is compacted by itself");
    assert_eq!(shown(&store), Some((7, 1_007, "seven".into())));
    apply(&store, repair(10, 7, "seven"));
    assert_eq!((shown(&store), pending_repairs(&store)), (Some((7, 1_007, "seven".into())), vec![5]));
    store.reset(&identity(), &[NextOffset(0)], wall_ms(5)).expect("written");
    apply(&store, write(1, "one"));
    apply(&store, poison(2));
    assert_eq!(pending_repairs(&store), [0; 0], "a store that is being built may lack what settles it");
    store.note_caught_up(wall_ms(6)).expect("written");
    assert_eq!(pending_repairs(&store), [2]);
}

#[test]
fn pending_repair_ends_with_the_next_effective_record() {
    let settlers = [repair(20, 8, "eight"), write(20, "later").into(), trim(20, 8)];
    for settler in settlers {
        let (_dir, store) = filled(&[]);
        for change in [write(8, "eight").into(), trim(9, 7)] {
            apply(&store, change);
        }
        assert_eq!(pending_repairs(&store), [9]);
        apply(&store, settler.clone());
        assert_eq!(pending_repairs(&store), [0; 0], "{settler:?}");
    }
}

/// The one store reads everything, the other what compaction leaves; in the end they agree to the byte.
#[test]
fn repair_restores_what_a_trim_removed_and_no_more() {
    let log = [write(8, "eight").into(), trim(9, 7), write(12, "twelve").into(), repair(13, 8, "eight")];
    let ((_all, all), (_some, some)) = (filled(&[]), filled(&[]));
    for change in log {
        apply(&all, change);
    }
    assert_eq!(shown(&all), Some((12, 1_012, "twelve".into())));
    assert_eq!(pending_repairs(&all), [13], "a repair that came too late is itself needed");
    apply(&some, repair(13, 8, "eight"));
    assert_eq!(shown(&some), Some((8, 1_008, "eight".into())), "its own place in the log tells nothing");
    for store in [&all, &some] {
        apply(store, repair(14, 12, "twelve"));
        assert_eq!(shown(store), Some((12, 1_012, "twelve".into())));
        assert_eq!(pending_repairs(store), [0; 0]);
    }
}

#[test]
fn pending_repairs_survive_a_restart_but_not_a_reset() {
    let (dir, store) = filled(&[]);
    let k = b"k".as_slice();
    let mut batch: Vec<(&[u8], Change)> = vec![
        (k, dead(1, "one").into()),
        (b"a", entry_of("a", P0, 2, 1_002, "other key").into()),
        (k, trim(3, 1)),
        (k, write(4, "four").into()),
        (k, trim(5, 1)),
    ];
    let applied = store.apply(&mut batch, &[(P0, NextOffset(6))]).expect("applied");
    assert_eq!(applied, Applied { changed: 2, trimmed: 1, void: 1, ..Applied::default() });
    drop(store);
    let store = open(dir.path());
    let (_, needed) = store.needed_repairs(9).expect("readable");
    assert_eq!(needed[0].pending, PendingRepair { position: at(5), timestamp: log_ms(5) });
    assert_eq!(needed[0].entry.as_ref().map(Entry::position), Some(at(4)));
    assert_eq!(needed[0].replaced_at, None);
    store.reset(&identity(), &[NextOffset(0)], wall_ms(5)).expect("written");
    assert_eq!(pending_repairs(&store), [0; 0]);
}

/// After the number of partitions was changed, compaction can't remove the record that was left in the old one, so it
/// must not be forgotten while a delete in the new one is all that hides it.
#[test]
fn replaced_record_is_remembered_until_it_is_trimmed() {
    let (_dir, store) = filled(&[]);
    let marker = entry_of_text("k", Position { partition: 1, offset: 0 }, log_ms(2_000), -1, "marker");
    apply(&store, write(8, "left"));
    apply(&store, marker.clone());
    assert_eq!(shown(&store).map(|shown| shown.2).as_deref(), Some("marker"));
    let found = |dead_since, replaced_since| trimmable(&store, dead_since, replaced_since);
    assert_eq!(found(9_000, 1_999), [], "what is dead is not trimmed before the other is gone");
    assert_eq!(found(9_000, 2_000), [(b"k".to_vec(), at(8))]);
    assert_eq!(apply(&store, trim(10, 8)), Applied { trimmed: 1, ..Applied::default() });
    assert_eq!(found(1_999, 9_000), []);
    assert_eq!(found(2_000, 9_000), [(b"k".to_vec(), marker.position())]);
}

/// Partitions are read independently: a node that is behind may meet the tombstone of a record before that of an older one,
/// or before the record that replaced it.
#[test]
fn provisional_entries_show_nothing_older_or_too_early() {
    let of_1 = |offset| Position { partition: 1, offset };
    let trim_1 = |offset, of| Change::Trim {
        at: of_1(offset),
        timestamp: log_ms(9_000),
        offset: of,
        settles: offset,
        complete: false,
    };
    let marker = |offset| entry_of_text("k", of_1(offset), log_ms(2_000), -1, "marker");
    let text = |store: &Store| shown(store).map(|shown| shown.2);
    let is_dead = |store: &Store| {
        let found = store.get(b"k").expect("readable");
        found.map(|(entry, _)| (entry.state(wall_ms(9_000)), entry.is_provisional()))
            == Some((State::Deleted, true))
    };
    // The older one was trimmed before, and does not come back until that is read, or everything is.
    for read in [true, false] {
        let (_dir, store) = filled(&[]);
        for change in [write(8, "left"), marker(0)] {
            apply(&store, change);
        }
        assert_eq!(apply(&store, trim_1(1, 0)).trimmed, 1);
        assert!(is_dead(&store));
        assert_eq!(trimmable(&store, 9_000, 9_000), []);
        assert_eq!(
            store.sweep(log_ms(9_000), Duration::ZERO, None, Duration::ZERO).expect("swept").changed,
            0
        );
        assert!(is_dead(&store));
        if read {
            assert_eq!(apply(&store, trim(10, 8)).trimmed, 1);
            assert_eq!((shown(&store), store.stats().expect("told").records), (None, 0));
        } else {
            let again = 9_000 + SWEEP_AGAIN_MS;
            assert_eq!(
                store
                    .sweep(log_ms(again), Duration::ZERO, Some(log_ms(again - 1)), Duration::ZERO)
                    .expect("swept")
                    .changed,
                0,
                "it was not all read by then"
            );
            assert!(is_dead(&store));
            let again = again + SWEEP_AGAIN_MS;
            assert_eq!(
                store
                    .sweep(log_ms(again), Duration::ZERO, Some(log_ms(again)), Duration::ZERO)
                    .expect("swept")
                    .changed,
                1
            );
            assert_eq!(text(&store).as_deref(), Some("left"));
        }
    }
    // It decides nothing: what was taken away can be brought back, and a void record needs no repair.
    let (_dir, store) = filled(&[]);
    for change in [write(8, "left").into(), marker(5).into(), trim_1(6, 5)] {
        apply(&store, change);
    }
    apply(&store, Change::NoEffect { at: of_1(7), timestamp: log_ms(9_000), by: Writer::Trimmer });
    assert_eq!(store.needed_repairs(9).expect("readable").1[0].entry, None);
    apply(
        &store,
        Change::Repair {
            at: of_1(8),
            timestamp: log_ms(9_000),
            entry: marker(5),
            reach: 5,
            settles: 8,
            complete: true,
        },
    );
    assert_eq!((text(&store).as_deref(), pending_repairs(&store)), (Some("marker"), vec![]));

    let (_dir, store) = filled(&[]);
    apply(&store, write(8, "replaced"));
    assert_eq!(apply(&store, trim(10, 8)).trimmed, 1);
    assert_eq!(text(&store).as_deref(), Some("replaced"), "until that is read which replaced it");
    assert_eq!(apply(&store, trim(11, 9)), Applied::default(), "it decides nothing");
    assert_eq!(text(&store).as_deref(), Some("replaced"));
    apply(&store, entry(1, 0, 2_000, "newer"));
    assert_eq!(text(&store).as_deref(), Some("newer"));
    assert_eq!(apply(&store, trim_1(3, 0)).trimmed, 1);
    assert_eq!(text(&store).as_deref(), Some("newer"), "which is one in turn; the other is forgotten");
    apply(&store, entry(1, 4, 3_000, "newest"));
    assert_eq!(text(&store).as_deref(), Some("newest"));
    // What replaced it was compacted away, and may have been a delete.
    assert_eq!(apply(&store, trim_1(6, 5)).trimmed, 1);
    assert_eq!(shown(&store), None);

    // Nobody reads a store that is being built, and what was compacted away never comes.
    for first in [marker(0), entry(1, 0, 2_000, "newest")] {
        let (_dir, store) = filled(&[]);
        store.reset(&identity(), &[NextOffset(0)], wall_ms(5)).expect("written");
        for change in [first.into(), write(8, "left").into(), trim_1(1, 0)] {
            apply(&store, change);
        }
        assert_eq!(text(&store).as_deref(), Some("left"));
    }
}

#[test]
fn what_is_long_dead_is_found_in_bounded_steps() {
    let (_dir, store) = filled(&["live1", "live2"]);
    let put = |key: &'static str, offset, timestamp, ttl, body: &'static str| {
        let entry = entry_of_text(key, at(offset), log_ms(timestamp), ttl, body);
        store.apply(&mut vec![(key.as_bytes(), entry.into())], &[]).expect("applied");
    };
    put("a marker", 10, 1_000, -1, "m");
    put("a young marker", 11, 1_001, -1, "m");
    put("anothers tombstone", 12, 0, -1, "");
    put("expired", 13, 0, 1_000, "v");
    put("expired young", 14, 0, 1_001, "v");
    put("expired when written", 15, 1_001, 1, "v");
    put("swept", 16, 0, 1_000, "");
    let find = |after: &str, limit, looks| {
        let found = {
            let (dead_until, replaced_until) = (log_ms(1_000), log_ms(0));
            let query = TrimQuery {
                after: after.as_bytes(),
                dead_until,
                replaced_until,
                max_records: limit,
                max_keys: looks,
            };
            store.trimmable(&query).expect("readable")
        };
        let (found, last) = (found.records, found.after);
        let text = |key: Vec<u8>| String::from_utf8(key).expect("text");
        (found.into_iter().map(|(key, _)| text(key)).collect::<Vec<_>>(), last.map(text))
    };
    let texts = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>();
    assert_eq!(find("", 9, 99), (texts(&["a marker", "expired", "swept"]), None));
    assert_eq!(find("", 1, 99), (texts(&["a marker"]), Some("a marker".into())));
    assert_eq!(find("a marker", 1, 99), (texts(&["expired"]), Some("expired".into())));
    assert_eq!(find("", 9, 2), (texts(&["a marker"]), Some("a young marker".into())));
}
