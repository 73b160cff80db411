use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::*;
use bitacora_protocol::Position;

const P0: i32 = 0;
const SWEEP_AGAIN_MS: i64 = upkeep::SWEEP_AGAIN.as_millis() as i64;

pub(super) fn log_ms(ms: i64) -> LogTime {
    LogTime::from_ms(ms)
}

pub(super) fn wall_ms(ms: i64) -> WallTime {
    WallTime::from_ms(ms)
}

fn open(dir: &Path) -> Store {
    Store::open(dir, 1 << 20).expect("the store opens")
}

fn entry(partition: i32, offset: i64, timestamp: i64, body: &str) -> Entry {
    Entry::new(Position { partition, offset }, log_ms(timestamp), 0, body.as_bytes())
}

fn identity() -> LogIdentity {
    LogIdentity { cluster: "c".into(), topic: "t".into(), topic_id: None }
}

fn body(store: &Store, key: &str) -> Option<(String, Tier)> {
    let found = store.get(key.as_bytes()).expect("the store answers");
    found.map(|(entry, tier)| (String::from_utf8_lossy(&entry.as_bytes()[28..]).into_owned(), tier))
}

#[test]
fn records_and_positions_survive_together() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(dir.path());
    assert_eq!(store.checkpoint().expect("readable"), Checkpoint::default());
    store.reset(&identity(), &[NextOffset(0), NextOffset(7)], wall_ms(5)).expect("written");
    let mut changes =
        vec![(b"a".as_slice(), entry(P0, 3, 10, "first").into()), (b"a", entry(P0, 4, 10, "second").into())];
    assert_eq!(store.apply(&mut changes, &[(P0, NextOffset(5))]).expect("applied").changed, 1);
    store.note_caught_up(wall_ms(9)).expect("written");
    drop(store);
    let store = open(dir.path());
    let expected = Checkpoint {
        identity: Some(identity()),
        restored: true,
        next: vec![NextOffset(5), NextOffset(7)],
        latest: vec![Some(LogTime::MIN), Some(LogTime::MIN)],
        epochs: vec![None, None],
        caught_up_at: Some(wall_ms(9)),
    };
    assert_eq!(store.checkpoint().expect("readable"), expected);
    assert_eq!(body(&store, "a"), Some(("second".into(), Tier::Store)));
    assert_eq!(body(&store, "a"), Some(("second".into(), Tier::Cache)));
}

#[test]
fn the_latest_timestamp_of_a_partition_is_that_of_all_its_records() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(dir.path());
    store.reset(&identity(), &[NextOffset(0)], wall_ms(5)).expect("written");
    let read = |next, latest| Read { latest: Some(log_ms(latest)), ..Read::up_to(P0, NextOffset(next)) };
    for (next, latest) in [(1, -1), (2, 70), (3, 7)] {
        store.apply_read(&mut Vec::new(), &[read(next, latest)]).expect("applied");
    }
    // The topic has grown.
    store.apply(&mut Vec::new(), &[(1, NextOffset(0))]).expect("applied");
    assert_eq!(store.checkpoint().expect("readable").latest, [Some(log_ms(70)), Some(LogTime::MIN)]);
    // One that has read some of a partition before this was kept knows nothing of it.
    let files = store.written().0;
    let mut txn = files.env.write_txn().expect("a transaction");
    files.latest.clear(&mut txn).expect("cleared");
    txn.commit().expect("committed");
    store.apply_read(&mut Vec::new(), &[read(4, 80)]).expect("applied");
    assert_eq!(store.checkpoint().expect("readable").latest, [None, None]);
}

#[test]
fn the_leaders_epoch_is_that_of_the_record_before_the_next_offset_or_none() {
    let (_dir, store) = filled(&[]);
    let (known, max) = (Some(3), Some(i32::MAX));
    for (next, epoch, kept) in
        [(9, known, known), (9, None, known), (11, None, None), (12, max, max), (13, known, known)]
    {
        let read = Read { epoch, ..Read::up_to(P0, NextOffset(next)) };
        store.apply_read(&mut Vec::new(), &[read]).expect("applied");
        assert_eq!(store.checkpoint().expect("readable").epochs[0], kept, "{read:?}");
    }
}

#[test]
fn nothing_is_applied_twice_and_the_newer_of_two_partitions_wins() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(dir.path());
    let apply =
        |entry: Entry| store.apply(&mut vec![(b"k".as_slice(), entry.into())], &[]).expect("applied").changed;
    assert_eq!(apply(entry(P0, 5, 100, "five")), 1);
    assert_eq!(body(&store, "k").expect("there").0, "five");
    assert_eq!(apply(entry(P0, 5, 100, "again")), 0);
    assert_eq!(apply(entry(P0, 4, 900, "older offset, later clock")), 0);
    assert_eq!(apply(entry(1, 0, 99, "older in another partition")), 0);
    assert_eq!(body(&store, "k").expect("there").0, "five", "the cache holds what the store holds");
    assert_eq!(apply(entry(1, 1, 101, "newer in another partition")), 1);
    assert_eq!(body(&store, "k").expect("there").0, "newer in another partition");
}

#[test]
fn a_reset_leaves_nothing_behind() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(dir.path());
    store
        .apply(&mut vec![(b"k".as_slice(), entry(P0, 0, 1, "v").into())], &[(P0, NextOffset(1))])
        .expect("applied");
    store.note_caught_up(wall_ms(9)).expect("written");
    assert!(body(&store, "k").is_some());
    store.reset(&identity(), &[NextOffset(0)], wall_ms(5)).expect("written");
    assert_eq!(body(&store, "k"), None);
    let expected = Checkpoint {
        identity: Some(identity()),
        restored: false,
        next: vec![NextOffset(0)],
        latest: vec![Some(LogTime::MIN)],
        epochs: vec![None],
        caught_up_at: Some(wall_ms(5)),
    };
    assert_eq!(store.checkpoint().expect("readable"), expected);
}

/// The interleaving that would leave a stale record in the cache: a reader that read before a commit inserts after it.
#[test]
fn a_commit_invalidates_reads_under_way() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(dir.path());
    store.apply(&mut vec![(b"k".as_slice(), entry(P0, 0, 1, "old").into())], &[]).expect("applied");
    let GuardResult::Guard(guard) = store.cache.get_value_or_guard(&CacheKey::from(b"k".as_slice()), None)
    else {
        panic!("nothing is cached yet")
    };
    let old = store.read(b"k").expect("readable").expect("there");
    store.apply(&mut vec![(b"k".as_slice(), entry(P0, 1, 2, "new").into())], &[]).expect("applied");
    assert!(guard.insert(old).is_err(), "the stale record was cached");
    assert_eq!(body(&store, "k").expect("there").0, "new");
}

#[test]
fn readers_never_see_time_run_backwards_while_a_writer_commits() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(dir.path());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut last = -1;
                while !done.load(Ordering::Relaxed) {
                    if let Some((found, _)) = store.get(b"k").expect("readable") {
                        assert!(found.position().offset >= last, "{} after {last}", found.position().offset);
                        last = found.position().offset;
                    }
                }
            });
        }
        for offset in 0..500 {
            store.apply(&mut vec![(b"k".as_slice(), entry(P0, offset, 0, "").into())], &[]).expect("applied");
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(store.get(b"k").expect("readable").expect("there").0.position().offset, 499);
}

#[test]
fn expiry_is_decided_by_the_clock() {
    let at =
        |ttl, now| Entry::new(Position { partition: 0, offset: 0 }, log_ms(0), ttl, b"r").state(wall_ms(now));
    assert_eq!(at(0, i64::MAX), State::Live);
    assert_eq!(at(-1, 0), State::Deleted);
    assert_eq!(at(1_000, 999), State::Live);
    assert_eq!(at(1_000, 1_000), State::Expired);
}

#[test]
fn keys_that_lmdb_cant_hold_are_missing_not_errors() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(dir.path());
    assert!(store.max_key_bytes() >= 1024, "{}", store.max_key_bytes());
    assert!(store.get(&vec![b'x'; store.max_key_bytes() + 1]).expect("no error").is_none());
    assert!(store.get(b"").expect("no error").is_none());
}

fn filled(keys: &[&str]) -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(dir.path());
    store.reset(&identity(), &[NextOffset(0)], wall_ms(5)).expect("written");
    let entries =
        keys.iter().zip(0..).map(|(key, offset)| (key.as_bytes(), entry(P0, offset, 1, key).into()));
    store.apply(&mut entries.collect(), &[]).expect("applied");
    store.note_caught_up(wall_ms(5)).expect("written");
    (dir, store)
}

fn scan(
    store: &Store,
    from: Bound<&str>,
    prefix: &str,
    end: &str,
    limit: usize,
) -> (Vec<String>, Option<String>) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let from = from.map(|key| key.as_bytes().to_vec());
    let keep = |entry: &Entry| !entry.as_bytes().ends_with(b"gone");
    let (found, last) =
        store.scan(&from, prefix.as_bytes(), end.as_bytes(), limit, keep).expect("the store answers");
    (found.iter().map(|entry| text(&entry.as_bytes()[28..])).collect(), last.map(|key| text(&key)))
}

#[test]
fn a_scan_is_in_key_order_and_says_whether_there_is_more() {
    let (_dir, store) = filled(&["b", "a/2", "a/1", "a/3gone", "a", "c", "a/4"]);
    let all = |from, prefix, end, limit| scan(&store, from, prefix, end, limit);
    let texts = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>();
    let from_start = Bound::Included("");
    assert_eq!(all(from_start, "", "", 9), (texts(&["a", "a/1", "a/2", "a/4", "b", "c"]), None));
    assert_eq!(all(from_start, "", "", 6), (texts(&["a", "a/1", "a/2", "a/4", "b", "c"]), None));
    assert_eq!(all(from_start, "", "", 3), (texts(&["a", "a/1", "a/2"]), Some("a/2".into())));
    // The next page begins with the one that is left out, which counts as looked at.
    assert_eq!(all(Bound::Excluded("a/2"), "", "", 1), (texts(&["a/4"]), Some("a/4".into())));
    assert_eq!(all(Bound::Included("a/"), "a/", "", 9), (texts(&["a/1", "a/2", "a/4"]), None));
    assert_eq!(all(Bound::Included("a/"), "a/", "", 3), (texts(&["a/1", "a/2", "a/4"]), None));
    assert_eq!(all(Bound::Included("a/1"), "", "a/2", 9), (texts(&["a/1"]), None));
    assert_eq!(all(Bound::Included("c"), "", "a", 9), (vec![], None));
    assert_eq!(all(Bound::Excluded("c"), "", "", 9), (vec![], None));
}

#[test]
fn a_page_of_a_scan_is_bounded_in_bytes_and_in_keys_looked_at() {
    let large = "v".repeat(SCAN_BYTES / 2);
    let (_dir, store) = filled(&[]);
    let mut changes: Vec<_> = ["1", "2", "3", "4"]
        .iter()
        .zip(0..)
        .map(|(key, at)| (key.as_bytes(), entry(P0, at, 1, &large).into()))
        .collect();
    store.apply(&mut changes, &[]).expect("applied");
    let (found, last) = scan(&store, Bound::Included(""), "", "", 9);
    assert_eq!((found.len(), last.as_deref()), (2, Some("2")));

    let keys: Vec<_> = (0..=SCAN_KEYS).map(|number| format!("{number:06}")).collect();
    let (_dir, store) = filled(&[]);
    let mut changes: Vec<_> =
        keys.iter().zip(0..).map(|(key, at)| (key.as_bytes(), entry(P0, at, 1, "gone").into())).collect();
    store.apply(&mut changes, &[]).expect("applied");
    let (found, last) = scan(&store, Bound::Included(""), "", "", 9);
    assert_eq!((found.len(), last.as_ref()), (0, Some(&keys[SCAN_KEYS - 1])));
    let last = last.expect("there is more");
    assert_eq!(scan(&store, Bound::Excluded(&last), "", "", 9), (vec![], None));
}

#[test]
fn evictions_are_of_records_for_which_there_is_no_room_not_of_those_that_are_replaced() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = Store::open(dir.path(), 50_000).expect("opened");
    for offset in 0..1000 {
        store
            .apply(&mut vec![(b"k".as_slice(), entry(P0, offset, 0, "value").into())], &[])
            .expect("applied");
        store.get(b"k").expect("read");
    }
    assert_eq!(store.stats().expect("told").cache_evictions, 0);
    for offset in 1000..3000 {
        let key = offset.to_string();
        store.apply(&mut vec![(key.as_bytes(), entry(P0, offset, 0, "value").into())], &[]).expect("applied");
        store.get(key.as_bytes()).expect("read");
    }
    let stats = store.stats().expect("told");
    assert!(stats.cache_evictions > 1000, "{stats:?}");
    assert!(stats.used_pages > 0 && stats.map_bytes > stats.bytes && stats.disk.is_some(), "{stats:?}");
}

// Records with a condition, and upkeep.

fn apply(store: &Store, change: impl Into<Change>) -> Applied {
    store.apply(&mut vec![(b"k".as_slice(), change.into())], &[]).expect("applied")
}

fn at(offset: i64) -> Position {
    Position { partition: P0, offset }
}

fn trim(offset: i64, of: i64) -> Change {
    Change::Trim { at: at(offset), timestamp: log_ms(offset), offset: of }
}

fn repair(offset: i64, of: i64, body: &str) -> Change {
    Change::Repair { at: at(offset), timestamp: log_ms(offset), entry: entry(P0, of, 1_000 + of, body) }
}

fn write(offset: i64, body: &str) -> Entry {
    entry(P0, offset, 1_000 + offset, body)
}

/// As [`write`], of a key that is deleted.
fn dead(offset: i64, body: &str) -> Entry {
    Entry::new(at(offset), log_ms(1_000 + offset), -1, body.as_bytes())
}

fn shown(store: &Store) -> Option<(i64, i64, String)> {
    let (cached, _) = store.get(b"k").expect("the store answers")?;
    assert_eq!(
        store.read(b"k").expect("readable").as_ref(),
        Some(&cached),
        "the cache holds what the store holds"
    );
    let body = String::from_utf8_lossy(cached.record_bytes()).into_owned();
    Some((cached.position().offset, cached.timestamp().ms(), body))
}

/// The offsets of the records without effect.
fn pending_repairs(store: &Store) -> Vec<i64> {
    store.needed_repairs(9).expect("readable").1.iter().map(|needed| needed.pending.position.offset).collect()
}

#[test]
fn a_trim_removes_what_it_has_seen_and_nothing_newer() {
    let (_dir, store) = filled(&[]);
    apply(&store, dead(5, "five"));
    assert!(shown(&store).is_some());
    assert_eq!(apply(&store, trim(6, 5)), Applied { changed: 1, trimmed: 1, void: 0 });
    assert_eq!((shown(&store), pending_repairs(&store)), (None, vec![]));
    assert_eq!(store.get(b"k").expect("readable"), None, "the cache forgot it too");
    assert_eq!(apply(&store, trim(7, 5)), Applied::default(), "the second of two trimmers changes nothing");
    apply(&store, write(8, "eight"));
    assert_eq!(apply(&store, trim(9, 7)), Applied { changed: 0, trimmed: 0, void: 1 });
    assert_eq!(shown(&store), Some((8, 1_008, "eight".into())));
    assert_eq!(pending_repairs(&store), [9]);
}

#[test]
fn a_record_without_any_effect_is_a_debt_to_what_its_partition_holds_of_the_key_or_to_nothing() {
    let (_dir, store) = filled(&[]);
    let nothing = |offset, by| Change::Nothing { at: at(offset), timestamp: log_ms(offset), by };
    let poison = |offset| nothing(offset, Author::Unknown);
    let void = Applied { changed: 0, trimmed: 0, void: 1 };
    assert_eq!(apply(&store, poison(3)), Applied::default());
    assert_eq!((shown(&store), pending_repairs(&store)), (None, vec![]), "it is none of ours");
    assert_eq!(apply(&store, nothing(4, Author::Trimmer)), void);
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
        assert_eq!(apply(&store, poison(offset)), void);
        assert_eq!(pending_repairs(&store), [offset], "one for the newest is enough");
    }
    assert_eq!(apply(&store, poison(3)), Applied::default(), "it was applied before");
    apply(
        &store,
        Change::Nothing {
            at: Position { partition: 1, offset: 5 },
            timestamp: log_ms(0),
            by: Author::Trimmer,
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
fn a_debt_is_settled_by_a_repair_or_by_any_later_record_that_takes_effect() {
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
fn a_repair_says_the_same_to_those_who_know_the_record_and_to_those_who_do_not() {
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
fn conditions_hold_within_one_batch_and_debts_survive_a_restart_but_not_a_reset() {
    let (dir, store) = filled(&[]);
    let k = b"k".as_slice();
    let mut batch: Vec<(&[u8], Change)> = vec![
        (k, dead(1, "one").into()),
        (b"a", write(2, "other key").into()),
        (k, trim(3, 1)),
        (k, write(4, "four").into()),
        (k, trim(5, 1)),
    ];
    let applied = store.apply(&mut batch, &[(P0, NextOffset(6))]).expect("applied");
    assert_eq!(applied, Applied { changed: 2, trimmed: 1, void: 1 });
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
fn a_record_left_in_another_partition_is_remembered_until_it_is_trimmed() {
    let (_dir, store) = filled(&[]);
    let marker = Entry::new(Position { partition: 1, offset: 0 }, log_ms(2_000), -1, b"marker");
    apply(&store, write(8, "left"));
    apply(&store, marker.clone());
    assert_eq!(shown(&store).map(|shown| shown.2).as_deref(), Some("marker"));
    let found = |dead_since, replaced_since| {
        store.trimmable(b"", log_ms(dead_since), log_ms(replaced_since), 9, 9).expect("readable").records
    };
    assert_eq!(found(9_000, 1_999), [], "what is dead is not trimmed before the other is gone");
    assert_eq!(found(9_000, 2_000), [(b"k".to_vec(), at(8))]);
    assert_eq!(apply(&store, trim(10, 8)), Applied { changed: 0, trimmed: 1, void: 0 });
    assert_eq!(found(1_999, 9_000), []);
    assert_eq!(found(2_000, 9_000), [(b"k".to_vec(), marker.position())]);
}

/// Partitions are read independently: a node that is behind may meet the tombstone of a record before that of an older one,
/// or before the record that replaced it.
#[test]
fn a_store_that_is_read_shows_nothing_older_and_nothing_too_early_when_a_partition_is_ahead() {
    let of_1 = |offset| Position { partition: 1, offset };
    let trim_1 = |offset, of| Change::Trim { at: of_1(offset), timestamp: log_ms(9_000), offset: of };
    let marker = |offset| Entry::new(of_1(offset), log_ms(2_000), -1, b"marker");
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
        assert_eq!(store.trimmable(b"", log_ms(9_000), log_ms(9_000), 9, 9).expect("readable").records, []);
        assert_eq!(store.sweep(log_ms(9_000), Duration::ZERO, None).expect("swept"), 0);
        assert!(is_dead(&store));
        if read {
            assert_eq!(apply(&store, trim(10, 8)).trimmed, 1);
            assert_eq!((shown(&store), store.stats().expect("told").records), (None, 0));
        } else {
            let again = 9_000 + SWEEP_AGAIN_MS;
            assert_eq!(
                store.sweep(log_ms(again), Duration::ZERO, Some(log_ms(again - 1))).expect("swept"),
                0,
                "it was not all read by then"
            );
            assert!(is_dead(&store));
            let again = again + SWEEP_AGAIN_MS;
            assert_eq!(store.sweep(log_ms(again), Duration::ZERO, Some(log_ms(again))).expect("swept"), 1);
            assert_eq!(text(&store).as_deref(), Some("left"));
        }
    }
    // It decides nothing: what was taken away can be brought back, and what is without effect is owed to nothing.
    let (_dir, store) = filled(&[]);
    for change in [write(8, "left").into(), marker(5).into(), trim_1(6, 5)] {
        apply(&store, change);
    }
    apply(&store, Change::Nothing { at: of_1(7), timestamp: log_ms(9_000), by: Author::Trimmer });
    assert_eq!(store.needed_repairs(9).expect("readable").1[0].entry, None);
    apply(&store, Change::Repair { at: of_1(8), timestamp: log_ms(9_000), entry: marker(5) });
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
fn a_sweep_drops_the_values_of_expired_keys_and_keeps_their_positions() {
    let (_dir, store) = filled(&[]);
    let expires = |offset, ttl: i64| Entry::new(at(offset), log_ms(100), ttl, b"a long value");
    apply(&store, expires(1, 500));
    assert!(shown(&store).is_some(), "it is cached");
    assert_eq!(store.sweep(log_ms(499), Duration::ZERO, Some(log_ms(499))).expect("swept"), 0);
    assert_eq!(store.sweep(log_ms(500), Duration::ZERO, Some(log_ms(500))).expect("swept"), 1);
    let (entry, tier) = store.get(b"k").expect("readable").expect("it is still an answer");
    assert_eq!((entry.position(), entry.ttl(), entry.has_record()), (at(1), 500, false));
    assert_eq!(tier, Tier::Store, "it left the cache");
    assert_eq!(entry.state(wall_ms(0)), State::Expired, "also if the clock goes back");
    assert_eq!(
        store.sweep(log_ms(i64::MAX), Duration::ZERO, Some(log_ms(i64::MAX))).expect("swept"),
        0,
        "nothing is left to do"
    );
    // What was replaced before it expired is not swept for it.
    apply(&store, expires(2, 700));
    apply(&store, expires(3, 900));
    assert_eq!(store.sweep(log_ms(899), Duration::ZERO, Some(log_ms(899))).expect("swept"), 0);
    assert_eq!(store.sweep(log_ms(900), Duration::ZERO, Some(log_ms(900))).expect("swept"), 1);
}

#[test]
fn anothers_tombstone_is_forgotten_after_its_time_once_caught_up() {
    let (_dir, store) = filled(&[]);
    let tombstone = Entry::new(at(1), log_ms(1_000), -1, b"");
    apply(&store, write(0, "value"));
    apply(&store, tombstone);
    let sweep = |now, caught_up: bool| {
        store.sweep(log_ms(now), Duration::from_millis(500), caught_up.then_some(log_ms(now))).expect("swept")
    };
    assert_eq!(sweep(1_499, true), 0);
    assert!(shown(&store).is_some(), "it is an answer");
    assert_eq!(sweep(1_500, false), 0, "the log may have more to say");
    assert_eq!(sweep(1_501, true), 0, "it is not looked at for ever");
    assert!(shown(&store).is_some());
    assert_eq!(sweep(1_500 + SWEEP_AGAIN_MS, true), 1);
    assert_eq!(store.get(b"k").expect("readable"), None);
    apply(&store, Entry::new(at(2), log_ms(20_000), -1, b""));
    for (now, swept) in [(20_000, 0), (20_499, 0), (20_500, 1)] {
        assert_eq!(sweep(now, true), swept, "{now}");
    }
    // Not while it hides what another partition holds.
    apply(&store, entry(1, 0, 30_000, "left"));
    apply(&store, Entry::new(at(3), log_ms(30_001), -1, b""));
    assert_eq!(sweep(31_000, true), 0);
    apply(&store, Change::Trim { at: Position { partition: 1, offset: 1 }, timestamp: log_ms(0), offset: 0 });
    assert_eq!(sweep(31_000 + SWEEP_AGAIN_MS, true), 1);
    assert_eq!(store.get(b"k").expect("readable"), None);
}

#[test]
fn what_is_long_dead_is_found_in_bounded_steps() {
    let (_dir, store) = filled(&["live1", "live2"]);
    let put = |key: &'static str, offset, timestamp, ttl, body: &'static [u8]| {
        let entry = Entry::new(at(offset), log_ms(timestamp), ttl, body);
        store.apply(&mut vec![(key.as_bytes(), entry.into())], &[]).expect("applied");
    };
    put("a marker", 10, 1_000, -1, b"m");
    put("a young marker", 11, 1_001, -1, b"m");
    put("anothers tombstone", 12, 0, -1, b"");
    put("expired", 13, 0, 1_000, b"v");
    put("expired young", 14, 0, 1_001, b"v");
    put("expired when written", 15, 1_001, 1, b"v");
    put("swept", 16, 0, 1_000, b"");
    let find = |after: &str, limit, looks| {
        let found =
            store.trimmable(after.as_bytes(), log_ms(1_000), log_ms(0), limit, looks).expect("readable");
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

fn put(store: &Store, key: &str, offset: i64, text: &str) {
    let mut changes = vec![(key.as_bytes(), entry(P0, offset, 1, text).into())];
    store.apply(&mut changes, &[(P0, NextOffset::after(offset))]).expect("applied");
}

/// The environments' folders, and what `CURRENT` says.
fn folders(dir: &Path) -> (Vec<String>, Option<String>) {
    let entries = std::fs::read_dir(dir).expect("a folder").flatten();
    let mut names: Vec<_> = entries.filter(|entry| entry.path().is_dir()).collect::<Vec<_>>();
    names.sort_by_key(std::fs::DirEntry::file_name);
    let names = names.iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    (names, std::fs::read_to_string(dir.join("CURRENT")).ok().map(|text| text.trim().to_owned()))
}

#[test]
fn a_new_store_is_built_beside_the_old_one_which_is_read_until_the_switch() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(dir.path());
    store.reset(&identity(), &[NextOffset(0)], wall_ms(1)).expect("written");
    put(&store, "k", 7, "old");
    put(&store, "gone", 8, "old");
    store.note_caught_up(wall_ms(1)).expect("written");
    assert_eq!(body(&store, "k"), Some(("old".into(), Tier::Store)));

    let other = LogIdentity { topic_id: Some("2".into()), ..identity() };
    store.build(&other, &[NextOffset(0)], wall_ms(2)).expect("begun");
    assert!(store.is_building());
    // Its offsets are lower: it is compared with nothing of the old one.
    put(&store, "k", 0, "new");
    assert_eq!(body(&store, "k"), Some(("old".into(), Tier::Cache)));
    assert_eq!(body(&store, "gone"), Some(("old".into(), Tier::Store)));
    let checkpoint = store.checkpoint().expect("readable");
    assert_eq!((checkpoint.identity, checkpoint.next), (Some(other.clone()), vec![NextOffset(1)]));
    assert_eq!(folders(dir.path()), (vec!["1".into(), "2".into()], None));

    store.note_caught_up(wall_ms(3)).expect("switched");
    assert!(!store.is_building());
    assert_eq!(body(&store, "k"), Some(("new".into(), Tier::Store)));
    assert_eq!(body(&store, "gone"), None, "nothing of the old one is left in the cache");
    assert_eq!(folders(dir.path()), (vec!["2".into()], Some("2".into())));
    drop(store);
    let store = open(dir.path());
    assert_eq!(body(&store, "k"), Some(("new".into(), Tier::Store)));
    let expected = Checkpoint {
        identity: Some(other),
        restored: true,
        next: vec![NextOffset(1)],
        latest: vec![Some(LogTime::MIN)],
        epochs: vec![None],
        caught_up_at: Some(wall_ms(3)),
    };
    assert_eq!(store.checkpoint().expect("readable"), expected);
}

#[test]
fn a_build_that_was_cut_short_leaves_the_old_store_and_no_trace() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(dir.path());
    store.reset(&identity(), &[NextOffset(0)], wall_ms(1)).expect("written");
    put(&store, "k", 7, "old");
    for _ in 0..2 {
        // The second gives up the first.
        store.build(&identity(), &[NextOffset(0)], wall_ms(2)).expect("begun");
        put(&store, "k", 0, "half");
    }
    assert_eq!(folders(dir.path()).0.len(), 2);
    drop(store);
    // A crash between the pointer's writing and its renaming.
    std::fs::write(dir.path().join("CURRENT.new"), "2").expect("written");
    let store = open(dir.path());
    assert_eq!(body(&store, "k"), Some(("old".into(), Tier::Store)));
    assert_eq!(folders(dir.path()), (vec!["1".into()], None));
    // And one between the renaming and the removal of the old one.
    store.build(&identity(), &[NextOffset(0)], wall_ms(2)).expect("begun");
    put(&store, "k", 0, "new");
    drop(store);
    std::fs::write(dir.path().join("CURRENT"), "2").expect("written");
    let store = open(dir.path());
    assert_eq!(body(&store, "k"), Some(("new".into(), Tier::Store)));
    assert_eq!(folders(dir.path()), (vec!["2".into()], Some("2".into())));
}

#[test]
fn a_discarded_store_is_empty_and_tied_to_nothing() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(dir.path());
    store.reset(&identity(), &[NextOffset(0)], wall_ms(1)).expect("written");
    put(&store, "k", 7, "old");
    assert!(body(&store, "k").is_some());
    store.discard().expect("discarded");
    assert_eq!(body(&store, "k"), None);
    assert_eq!(store.checkpoint().expect("readable"), Checkpoint::default());
    drop(store);
    assert_eq!(open(dir.path()).checkpoint().expect("readable"), Checkpoint::default());
}

/// Ends the other threads, also where this one fails.
struct AtEnd<'a>(&'a AtomicBool);

impl Drop for AtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_copy_is_whole_and_as_of_one_moment_while_a_writer_goes_on() {
    let (from, to) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let (source, target) = (open(from.path()), open(to.path()));
    source.reset(&identity(), &[NextOffset(0)], wall_ms(1)).expect("written");
    source.note_caught_up(wall_ms(1)).expect("written");
    let done = AtomicBool::new(false);
    let value = |key: &str| {
        let found = target.get(key.as_bytes()).expect("the store answers");
        found.map(|(entry, _)| entry.record().expect("a record").value.to_owned())
    };
    std::thread::scope(|scope| {
        let _end = AtEnd(&done);
        scope.spawn(|| {
            let mut offset = 0;
            while !done.load(Ordering::Relaxed) {
                // Two keys that are one in every transaction.
                let text = offset.to_string();
                let mut changes = vec![
                    (b"a".as_slice(), copy_tests::entry("a", P0, offset, &text).into()),
                    (b"b".as_slice(), copy_tests::entry("b", P0, offset, &text).into()),
                ];
                source.apply(&mut changes, &[(P0, NextOffset::after(offset))]).expect("applied");
                offset += 1;
            }
        });
        for _ in 0..5 {
            let mut incoming = target.incoming().expect("a place");
            let copy = source.copy().expect("a copy");
            copy.write_to(File::create_new(incoming.file()).expect("a file")).expect("copied");
            let checkpoint = incoming.open(&AtomicBool::new(false)).expect("a store");
            assert!(checkpoint.next >= copy.checkpoint.next, "{checkpoint:?}");
            target.install(incoming).expect("installed");
            let seen = value("a");
            assert_eq!(value("b"), seen);
            let next = seen.map_or(0, |text| text.parse::<i64>().expect("a number") + 1);
            assert_eq!(checkpoint.next, [NextOffset(next)]);
        }
    });
    // One that is not installed leaves nothing.
    let incoming = target.incoming().expect("a place");
    std::fs::write(incoming.file(), "no store").expect("written");
    let before = folders(to.path()).0.len();
    drop(incoming);
    assert_eq!(folders(to.path()).0.len(), before - 1);
    let mut incoming = target.incoming().expect("a place");
    std::fs::write(incoming.file(), vec![7; 100_000]).expect("written");
    assert!(incoming.open(&AtomicBool::new(false)).is_err(), "garbage is no store");
}

#[test]
fn a_store_that_is_being_filled_survives_a_kill_but_not_another_boot() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(dir.path());
    store.reset(&identity(), &[NextOffset(0)], wall_ms(1)).expect("written");
    put(&store, "k", 7, "filled");
    let mark = dir.path().join("1/UNSYNCED");
    if !mark.exists() {
        assert!(
            !Path::new("/proc/sys/kernel/random/boot_id").exists(),
            "the boot has a name, and is not noted"
        );
        return;
    }
    drop(store);
    let store = open(dir.path());
    assert_eq!(store.checkpoint().expect("readable").next, [NextOffset(8)], "filling goes on");
    drop(store);
    std::fs::write(&mark, "another boot").expect("written");
    let store = open(dir.path());
    assert_eq!(
        store.checkpoint().expect("readable"),
        Checkpoint::default(),
        "nobody knows what was on the disk"
    );
    // Once it is complete it is on the disk.
    store.reset(&identity(), &[NextOffset(0)], wall_ms(1)).expect("written");
    put(&store, "k", 7, "filled");
    assert!(mark.exists());
    store.note_caught_up(wall_ms(2)).expect("written");
    assert!(!mark.exists());
}

#[test]
#[allow(unsafe_code)]
fn a_full_map_changes_nothing_and_says_how_to_mend_it() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(dir.path());
    // SAFETY: no transaction is open.
    unsafe { store.current().env.resize(1 << 20) }.expect("resized");
    let put = |offset: i64| {
        let key = format!("key {offset}");
        let entry = entry(P0, offset, 10, &"x".repeat(100_000));
        store.apply(&mut vec![(key.as_bytes(), entry.into())], &[(P0, NextOffset(offset + 1))])
    };
    let (full, error) = (0..).find_map(|offset| Some((offset, put(offset).err()?))).expect("it fills up");
    assert!(full > 0 && error.may_pass(), "{full}: {error}");
    let said = store.explain(error);
    assert!(said.contains("address space") && said.contains("ulimit -v"), "{said}");
    assert!(said.contains(&dir.path().display().to_string()), "{said}");
    assert_eq!(store.checkpoint().expect("readable").next, [NextOffset(full)]);
    assert!(body(&store, "key 0").is_some());
    assert_eq!(body(&store, &format!("key {full}")), None);
    // SAFETY: as before.
    unsafe { store.current().env.resize(1 << 30) }.expect("resized");
    put(full).expect("the same process goes on");
}

#[test]
fn an_attempt_at_a_new_store_that_fails_leaves_nothing() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(dir.path());
    store.reset(&identity(), &[NextOffset(3)], wall_ms(5)).expect("written");
    // A folder in its place: the file can't be made.
    let blocker = dir.path().join("CURRENT.new");
    std::fs::create_dir(&blocker).expect("made");
    for _ in 0..3 {
        let error = store.discard().expect_err("the switch fails");
        assert!(error.may_pass(), "{error}");
        let mut left: Vec<_> = std::fs::read_dir(dir.path())
            .expect("readable")
            .map(|file| file.expect("readable").file_name().to_string_lossy().into_owned())
            .collect();
        left.sort();
        assert_eq!(left, ["1", "CURRENT.new"]);
    }
    assert_eq!(store.checkpoint().expect("readable").next, [NextOffset(3)]);
    std::fs::remove_dir(&blocker).expect("removed");
    store.discard().expect("emptied");
    assert_eq!(store.checkpoint().expect("readable"), Checkpoint::default());
}
