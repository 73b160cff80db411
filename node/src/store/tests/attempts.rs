//! Conditional writes: what takes effect, what is pending or in doubt, and the histories in which compaction removes what decides.

use std::time::Duration;

use super::*;
use crate::log::{Expected, Level, PartitionRead};
use crate::store::{Decision, Judgement};

/// How long a doubt lasts.
const LAG: Duration = Duration::from_secs(3_600);

fn attempt(offset: i64, expected: Expected, judgement: Judgement) -> Change {
    Change::Attempt { entry: write(offset, &format!("attempt {offset}")), expected, judgement }
}

/// A conditional write that expects a live record.
fn judged(offset: i64, expected: i64) -> Change {
    attempt(offset, Expected::Live(expected), Judgement::ByTheStore)
}

/// As [`judged`], read behind a hole that compaction may have left.
fn unjudged(offset: i64, expected: i64) -> Change {
    attempt(offset, Expected::Live(expected), Judgement::Impossible)
}

/// At a level at which repairs say how far they reach.
fn reaching(offset: i64, of: i64, reach: i64) -> Change {
    let entry = write(of, &format!("write {of}"));
    Change::Repair { at: at(offset), timestamp: log_ms(offset), entry, reach, settles: reach, complete: true }
}

fn trim_up_to(offset: i64, of: i64) -> Change {
    Change::Trim { at: at(offset), timestamp: log_ms(offset), offset: of, settles: of, complete: true }
}

fn decision(store: &Store, change: Change) -> Option<Decision> {
    apply(store, change).decided.first().map(|decided| decided.decision)
}

fn version(store: &Store) -> Option<i64> {
    store.versioned(b"k", P0).expect("readable").entry.map(|entry| entry.position().offset)
}

fn in_doubt(store: &Store) -> bool {
    let in_doubt = store.in_doubt(b"k").expect("readable");
    assert_eq!(store.versioned(b"k", P0).expect("readable").in_doubt, in_doubt);
    in_doubt
}

/// A store that holds what was written at these offsets, the last of them.
fn holding(offsets: &[i64]) -> (tempfile::TempDir, Store) {
    let (dir, store) = filled(&[]);
    for offset in offsets {
        apply(&store, write(*offset, &format!("write {offset}")));
    }
    (dir, store)
}

mod conditions {
    use super::*;

    #[test]
    fn the_version_that_is_expected_decides() {
        let (_dir, store) = holding(&[50]);
        assert_eq!(decision(&store, judged(60, 50)), Some(Decision::InEffect));
        assert_eq!(version(&store), Some(60));
        assert_eq!(decision(&store, judged(61, 50)), Some(Decision::Void), "the same, entered twice");
        assert_eq!((version(&store), pending_repairs(&store)), (Some(60), vec![61]));
    }

    #[test]
    fn an_expired_record_is_dead_by_the_logs_time() {
        let by_store = Judgement::ByTheStore;
        let expires = |ttl| entry_of_text("k", at(50), log_ms(50), ttl, "expires");
        // The attempt is appended when the log's clock shows 1060.
        for (ttl, dead) in [(0, false), (1_061, false), (1_060, true), (-1, true)] {
            for (expected, takes_effect) in [(Expected::Dead(50), dead), (Expected::Live(50), !dead)] {
                let (_dir, store) = filled(&[]);
                apply(&store, expires(ttl));
                let found = decision(&store, attempt(60, expected, by_store));
                let wanted = if takes_effect { Decision::InEffect } else { Decision::Void };
                assert_eq!(found, Some(wanted), "{expected:?} with ttl {ttl}");
            }
        }
    }

    #[test]
    fn nodes_that_have_swept_decide_as_those_that_have_not() {
        let absent = |offset| attempt(offset, Expected::Nothing, Judgement::ByTheStore);
        for swept in [false, true] {
            let (_dir, store) = filled(&[]);
            // Another writer's tombstone, and an expired value.
            apply(&store, entry_of_text("k", at(50), log_ms(50), -1, ""));
            if swept {
                store.sweep(log_ms(99), Duration::ZERO, Some(log_ms(99)), LAG).expect("swept");
                assert_eq!(store.get(b"k").expect("readable"), None);
            }
            assert_eq!(decision(&store, absent(60)), Some(Decision::InEffect), "swept: {swept}");
            let (_dir, store) = filled(&[]);
            apply(&store, entry_of_text("k", at(50), log_ms(50), 55, "expires"));
            if swept {
                store.sweep(log_ms(99), Duration::ZERO, Some(log_ms(99)), LAG).expect("swept");
            }
            assert_eq!(decision(&store, absent(60)), Some(Decision::Void), "swept: {swept}");
            let dead = attempt(61, Expected::Dead(50), Judgement::ByTheStore);
            assert_eq!(decision(&store, dead), Some(Decision::InEffect), "swept: {swept}");
        }
    }

    #[test]
    fn what_was_trimmed_and_is_still_shown_is_nothing() {
        let (_dir, store) = holding(&[50]);
        apply(&store, trim_up_to(55, 50));
        assert!(store.get(b"k").expect("readable").is_none_or(|(entry, _)| entry.is_provisional()));
        let read = store.versioned(b"k", P0).expect("readable");
        assert_eq!((read.entry.clone(), read.expected(log_ms(9))), (None, Expected::Nothing));
        let absent = attempt(60, Expected::Nothing, Judgement::ByTheStore);
        assert_eq!(decision(&store, absent), Some(Decision::InEffect));
    }

    #[test]
    fn a_record_in_another_partition_is_told() {
        let (_dir, store) = holding(&[50]);
        let read = || store.versioned(b"k", P0).expect("readable");
        assert!(!read().elsewhere);
        assert_eq!(read().expected(log_ms(9)), Expected::Live(50));
        apply(&store, entry_of_text("k", Position { partition: 1, offset: 7 }, log_ms(9_000), -1, "marker"));
        assert!(read().elsewhere);
        assert_eq!(version(&store), Some(50), "the partition's own, though another's is newer");
        assert!(store.versioned(b"k", 1).expect("readable").elsewhere);
    }

    #[test]
    fn what_is_void_by_itself_is_void_whatever_is_held() {
        let (_dir, store) = holding(&[50]);
        let late = |offset| attempt(offset, Expected::Live(50), Judgement::VoidByItself);
        assert_eq!(decision(&store, late(60)), Some(Decision::Void));
        assert_eq!((version(&store), pending_repairs(&store)), (Some(50), vec![60]));
        let (_dir, store) = filled(&[]);
        assert_eq!(decision(&store, late(60)), Some(Decision::Void));
        assert_eq!(pending_repairs(&store), [60], "a tombstone may have been before it");
    }
}

mod repairs {
    use super::*;

    #[test]
    fn what_takes_effect_settles_the_pending_repair() {
        for in_effect in [judged(70, 50), write(70, "plain").into()] {
            let (_dir, store) = holding(&[50]);
            apply(&store, judged(60, 40));
            assert_eq!((version(&store), pending_repairs(&store)), (Some(50), vec![60]));
            apply(&store, in_effect);
            assert_eq!((version(&store), pending_repairs(&store)), (Some(70), vec![]));
        }
    }

    #[test]
    fn a_repair_settles_what_it_reaches() {
        let (_dir, store) = holding(&[50]);
        apply(&store, judged(60, 40));
        apply(&store, reaching(61, 50, 59));
        assert_eq!(pending_repairs(&store), [60]);
        let applied = apply(&store, reaching(62, 50, 60));
        assert_eq!(applied, Applied::default(), "it changes nothing");
        assert_eq!(pending_repairs(&store), [0; 0]);
    }

    #[test]
    fn a_trim_settles_what_it_reaches() {
        let (_dir, store) = filled(&[]);
        apply(&store, dead(50, "dead"));
        apply(&store, judged(60, 40));
        apply(&store, trim_up_to(61, 50));
        assert_eq!((version(&store), pending_repairs(&store)), (None, vec![60]));
        apply(&store, trim_up_to(62, 60));
        assert_eq!(pending_repairs(&store), [0; 0]);
    }

    #[test]
    fn a_repair_puts_right_what_was_taken_for_a_write() {
        let (_dir, store) = holding(&[50]);
        apply(&store, unjudged(60, 40));
        assert_eq!(version(&store), Some(60));
        let applied = apply(&store, reaching(61, 50, 60));
        assert_eq!((applied.changed, applied.contradicted), (1, 0));
        assert_eq!((version(&store), in_doubt(&store)), (Some(50), false));
    }

    #[test]
    fn a_repair_that_contradicts_a_store_without_doubt_is_counted() {
        let (_dir, store) = holding(&[50, 60]);
        assert_eq!(apply(&store, reaching(61, 50, 60)).contradicted, 1);
        let (_dir, store) = filled(&[]);
        assert_eq!(apply(&store, reaching(61, 50, 60)).contradicted, 0, "a dead record was trimmed");
    }
}

mod doubts {
    use super::*;

    #[test]
    fn what_can_not_be_judged_is_taken_for_a_write_in_doubt() {
        for expected in [50, 40] {
            let (_dir, store) = holding(&[50]);
            assert_eq!(decision(&store, unjudged(60, expected)), Some(Decision::Unknown));
            assert_eq!((version(&store), in_doubt(&store)), (Some(60), true));
            assert_eq!(pending_repairs(&store), [0; 0], "nobody pays for it");
        }
    }

    #[test]
    fn a_record_and_its_doubt_are_read_of_one_moment() {
        let (_dir, store) = holding(&[50]);
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for offset in (60..2_060).step_by(2) {
                    apply(&store, unjudged(offset, 50));
                    apply(&store, write(offset + 1, "certain"));
                }
                done.store(true, std::sync::atomic::Ordering::Relaxed);
            });
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let read = store.snapshot_read(b"k").expect("readable");
                let offset = read.entry.expect("always something").position().offset;
                assert_eq!(read.in_doubt, offset >= 60 && offset % 2 == 0, "at {offset}");
            }
        });
    }

    #[test]
    fn a_page_names_a_key_in_doubt_that_belongs_to_it() {
        let (_dir, store) = filled(&["a", "k/1", "k/3", "z"]);
        let doubted: &[u8] = b"k/2";
        let entry = entry_of("k/2", P0, 60, 1_060, "attempt 60");
        let (expected, judgement) = (Expected::Nothing, Judgement::Impossible);
        let attempt = Change::Attempt { entry, expected, judgement };
        store.apply(&mut vec![(doubted, attempt)], &[]).expect("applied");
        let in_doubt = |from: &str, prefix: &str, end: &str, limit| {
            let from = std::ops::Bound::Included(from.as_bytes().to_vec());
            let page = store.scan(&from, prefix.as_bytes(), end.as_bytes(), limit, |_| true);
            page.expect("readable").in_doubt
        };
        let found = Some(doubted.to_vec());
        assert_eq!(in_doubt("", "", "", 9), found);
        assert_eq!(in_doubt("k", "k", "", 9), found);
        assert_eq!(in_doubt("", "", "", 3), found, "the last of the page");
        assert_eq!(in_doubt("", "", "", 2), None, "of the next page");
        assert_eq!(in_doubt("k/3", "k", "", 9), None);
        assert_eq!(in_doubt("", "", "k/2", 9), None);
        assert_eq!(in_doubt("z", "z", "", 9), None);
        store
            .apply(&mut vec![(doubted, entry_of("k/2", P0, 61, 1_061, "certain").into())], &[])
            .expect("applied");
        assert_eq!(in_doubt("", "", "", 9), None);
    }

    #[test]
    fn an_attempt_that_fits_ends_the_doubt_and_another_moves_it() {
        let (_dir, store) = holding(&[50]);
        apply(&store, unjudged(60, 50));
        assert_eq!(decision(&store, judged(70, 50)), Some(Decision::Unknown), "60 may be void");
        assert_eq!((version(&store), in_doubt(&store)), (Some(70), true));
        assert_eq!(decision(&store, judged(80, 70)), Some(Decision::Unknown));
        assert_eq!((version(&store), in_doubt(&store)), (Some(80), false));
        assert_eq!(decision(&store, judged(90, 80)), Some(Decision::InEffect));
    }

    #[test]
    fn a_void_record_moves_the_doubt() {
        let (_dir, store) = holding(&[50]);
        apply(&store, unjudged(60, 50));
        apply(&store, trim_up_to(70, 55));
        assert!(in_doubt(&store) && pending_repairs(&store).is_empty());
        apply(&store, reaching(71, 60, 69));
        assert!(in_doubt(&store), "70 is behind that");
        apply(&store, reaching(72, 60, 70));
        assert!(!in_doubt(&store));
    }

    #[test]
    fn doubt_wins_over_a_pending_repair() {
        let (_dir, store) = holding(&[50]);
        apply(&store, judged(60, 40));
        assert_eq!(pending_repairs(&store), [60]);
        apply(&store, unjudged(70, 50));
        assert!(in_doubt(&store) && pending_repairs(&store).is_empty());
        assert_eq!(store.stats().expect("readable").pending_repairs, 0);
        assert_eq!(store.stats().expect("readable").keys_in_doubt, 1);
        apply(&store, write(80, "later"));
        assert!(!in_doubt(&store));
    }

    #[test]
    fn keys_in_doubt_are_neither_trimmed_nor_repaired() {
        let (_dir, store) = filled(&[]);
        let marker = entry_of_text("k", at(60), log_ms(60), -1, "dead");
        let change =
            Change::Attempt { entry: marker, expected: Expected::Nothing, judgement: Judgement::Impossible };
        apply(&store, change);
        apply(&store, trim(70, 55));
        let (dead_until, replaced_until) = (log_ms(9_000), log_ms(9_000));
        let query =
            crate::store::TrimQuery { after: b"", dead_until, replaced_until, max_records: 9, max_keys: 9 };
        assert!(store.trimmable(&query).expect("readable").records.is_empty());
        // Another partition's void record.
        let elsewhere = Position { partition: 1, offset: 5 };
        let by = crate::store::Writer::Trimmer;
        apply(&store, Change::NoEffect { at: elsewhere, timestamp: log_ms(0), by });
        assert!(store.needed_repairs(9).expect("readable").1.is_empty());
        assert!(store.needed_repairs_of(b"k").expect("readable").1.is_empty());
        apply(&store, write(80, "later"));
        assert_eq!(store.needed_repairs_of(b"k").expect("readable").1.len(), 1);
    }

    #[test]
    fn nonsense_behind_a_doubt_makes_a_new_store_read_twice() {
        let (_dir, store) = holding(&[50]);
        apply(&store, unjudged(60, 50));
        let found = |young_from: i64| {
            let found = store.keys_with_pending_repairs(&[bitacora_protocol::HighWatermark(young_from)]);
            found.expect("readable").len()
        };
        assert_eq!(found(1_000), 0, "an attempt that was taken for a write hides nothing that is known");
        let at = Position { partition: P0, offset: 70 };
        apply(&store, Change::NoEffect { at, timestamp: log_ms(1_070), by: Writer::Unknown });
        assert!(in_doubt(&store));
        assert_eq!((found(1_000), found(70)), (1, 0), "unless compaction can't have acted on it yet");
    }

    #[test]
    fn a_doubt_ends_when_what_follows_it_has_been_read() {
        let (dir, store) = holding(&[50]);
        apply(&store, unjudged(60, 50));
        drop(store);
        let store = open(dir.path());
        assert!(in_doubt(&store), "a restart does not end it");
        let appended = log_ms(1_060);
        let sweep = |now, read_until| store.sweep(now, Duration::ZERO, read_until, LAG).expect("swept");
        let late = appended + LAG * 2;
        sweep(late, None);
        sweep(late + LAG, Some(appended + LAG - Duration::from_millis(1)));
        assert!(in_doubt(&store), "a repair may be to come");
        sweep(late + LAG * 2, Some(appended + LAG));
        assert_eq!((version(&store), in_doubt(&store)), (Some(60), false));
    }

    #[test]
    fn a_repair_that_does_not_reach_what_is_doubted_counts() {
        // For who knows, 60 may have been void, and 70 is the last word.
        for (overtaken, left) in [(trim_up_to(70, 55), None), (reaching(70, 40, 55), Some(40))] {
            let (_dir, store) = holding(&[50]);
            apply(&store, unjudged(60, 50));
            apply(&store, overtaken);
            assert_eq!((version(&store), in_doubt(&store)), (left, true));
            let late = log_ms(1_070) + LAG * 9;
            store.sweep(late, Duration::ZERO, Some(late), LAG).expect("swept");
            assert_eq!((version(&store), in_doubt(&store)), (left, false));
        }
        // Or 60 took effect, and then a repair of what is behind 70 follows.
        let (_dir, store) = holding(&[50]);
        apply(&store, unjudged(60, 50));
        apply(&store, trim_up_to(70, 55));
        apply(&store, reaching(80, 60, 70));
        assert_eq!((version(&store), in_doubt(&store)), (Some(60), false));
    }

    #[test]
    fn what_was_doubted_is_not_shown_when_it_is_trimmed() {
        let (_dir, store) = holding(&[50]);
        store.note_caught_up(wall_ms(5)).expect("written");
        apply(&store, unjudged(60, 40));
        assert!(in_doubt(&store));
        apply(&store, trim_up_to(70, 60));
        let shown = store.get(b"k").expect("readable");
        assert!(shown.is_none_or(|(entry, _)| entry.ttl() == bitacora_protocol::record::ttl::DELETED));
    }

    #[test]
    fn only_an_attempt_that_expects_what_is_doubted_ends_the_doubt() {
        let (_dir, store) = holding(&[50]);
        apply(&store, unjudged(60, 50));
        apply(&store, reaching(70, 40, 55));
        // Who sent it knew of 40, but not what came behind it.
        apply(&store, judged(80, 40));
        assert_eq!((version(&store), in_doubt(&store)), (Some(80), true));
        apply(&store, judged(90, 80));
        assert_eq!((version(&store), in_doubt(&store)), (Some(90), false));
    }

    #[test]
    fn copies_carry_doubts_gaps_and_levels() {
        let (_dir, store) = filled(&[]);
        let (level, judgement) = (Level::CONDITIONAL_WRITES, Judgement::Impossible);
        let read =
            PartitionRead { gap: true, level: Some(level), ..PartitionRead::up_to(P0, NextOffset(61)) };
        let entry = crate::store::tests::copies::entry_of("k", P0, 60, "v");
        let change = Change::Attempt { entry, expected: Expected::Live(50), judgement };
        let applied = store.apply_read(&mut vec![(b"k", change)], &[read]).expect("applied");
        assert!(applied.gap);
        let (_dir, other) = filled(&[]);
        let mut incoming = other.incoming().expect("a place");
        let file = std::fs::File::create(incoming.file()).expect("a file");
        store.copy().expect("a copy").write_to(file).expect("written");
        let pages = incoming.look_at_pages().expect("they are whole");
        incoming.open(&pages, &false.into()).expect("it is whole");
        other.install(incoming).expect("installed");
        let state = other.partition_state(P0).expect("readable");
        assert_eq!((state.next, state.after_gap, state.level), (NextOffset(61), true, level));
        assert!(in_doubt(&other));
        other.forget_gaps().expect("written");
        assert!(!other.partition_state(P0).expect("readable").after_gap);
        other.reset(&identity(), &[NextOffset(0)], wall_ms(5)).expect("written");
        assert!(!in_doubt(&other));
        assert_eq!(other.partition_state(P0).expect("readable").level, Level::FIRST);
    }
}

/// One who reads everything, and one who reads what compaction has left, must end with the same.
mod histories {
    use super::*;

    #[track_caller]
    fn ends_at(store: &Store, offset: i64) {
        assert_eq!((version(store), in_doubt(store)), (Some(offset), false));
    }

    /// `W@50 W@70 C(50)@100`: compaction drops 70 when 100 is old.
    #[test]
    fn a_void_attempt_hides_a_write_until_it_is_repaired() {
        let (_dir, all) = holding(&[50, 70]);
        assert_eq!(decision(&all, judged(100, 50)), Some(Decision::Void));
        let repair = reaching(110, 70, 100);
        let (_dir, resumed) = holding(&[50]);
        let (_dir, fresh) = filled(&[]);
        for store in [&resumed, &fresh] {
            assert_eq!(decision(store, unjudged(100, 50)), Some(Decision::Unknown));
            assert!(in_doubt(store));
        }
        for store in [&all, &resumed, &fresh] {
            assert_eq!(apply(store, repair.clone()).contradicted, 0);
            ends_at(store, 70);
        }
    }

    /// `W@50 C(50)@100`, in effect: compaction drops 50, and a node that holds 30 sees an attempt that does not fit.
    #[test]
    fn an_attempt_in_effect_outlives_what_it_expected() {
        let (_dir, all) = holding(&[30, 50]);
        assert_eq!(decision(&all, judged(100, 50)), Some(Decision::InEffect));
        let (_dir, resumed) = holding(&[30]);
        apply(&resumed, unjudged(100, 50));
        assert_eq!(version(&resumed), Some(100));
        ends_at(&all, 100);
    }

    /// `W@70 C(50)@100` void, `C(70)@105` in effect; a node that holds 50 takes 100 and finds 105 void. It must not pay for that.
    #[test]
    fn who_is_in_doubt_does_not_undo_what_took_effect() {
        let (_dir, all) = holding(&[50, 70]);
        for (change, expected) in [(judged(100, 50), Decision::Void), (judged(105, 70), Decision::InEffect)] {
            assert_eq!(decision(&all, change), Some(expected));
        }
        assert_eq!(pending_repairs(&all), [0; 0], "it is the last word");
        let (_dir, resumed) = holding(&[50]);
        apply(&resumed, unjudged(100, 50));
        // Young, so it can be judged; but it does not fit what is in doubt.
        assert_eq!(decision(&resumed, judged(105, 70)), Some(Decision::Unknown));
        assert_eq!(version(&resumed), Some(105));
        assert!(pending_repairs(&resumed).is_empty());
        for store in [&all, &resumed] {
            apply(store, reaching(110, 105, 105));
            ends_at(store, 105);
        }
    }
}
