//! Conditional writes as a replica reads them: what it can judge, reserved keys, and the log's level.

use futures_util::FutureExt as _;

use super::*;
use crate::log::Expected;
use crate::store::Decision;

const NEVER: LogTime = LogTime::MAX;

impl Bench {
    fn attempt(&self, offset: i64, key: &'static str, expected: Expected) {
        let condition = Condition::Attempt { expected, until: NEVER, log: LOG };
        self.append_conditional(offset, key, Some("attempt"), condition);
    }

    fn in_doubt(&self, key: &str) -> bool {
        self.store.in_doubt(key.as_bytes()).expect("readable")
    }

    fn after_gap(&self) -> bool {
        self.store.checkpoint().expect("readable").after_gap[0]
    }

    fn log_reaches(&self, end: i64) {
        *self.log.high_watermark.lock() = end;
    }
}

#[test]
fn who_waits_is_told_what_became_of_an_attempt() {
    let dir = folder();
    let mut bench = Bench::start(dir.path(), 0..1);
    let mut waiting = bench.decisions.wait_for(b"k", "");
    bench.set(0, "k", "v");
    bench.until_ready();
    bench.log_reaches(9);
    bench.attempt(1, "k", Expected::Live(0));
    bench.attempt(2, "k", Expected::Live(0));
    let late = Condition::Attempt { expected: Expected::Live(1), until: log_ms(1_002), log: LOG };
    bench.append_conditional(3, "k", Some("attempt"), late);
    bench.until_applied(3);
    let told: Vec<_> =
        waiting.told().iter().map(|told| (told.entry.position().offset, told.decision)).collect();
    assert_eq!(told, [(1, Decision::InEffect), (2, Decision::Void), (3, Decision::Void)]);
    let at = Some(Position { partition: 0, offset: 2 });
    let decided = waiting.decided(at).now_or_never().expect("it was told");
    assert_eq!(decided.decision, Decision::InEffect, "the first of two that are the same");
    assert_eq!(bench.metrics.records_void.get(), 2);
}

#[test]
fn behind_a_gap_only_young_attempts_are_judged() {
    let dir = folder();
    let mut bench = Bench::start(dir.path(), 0..6);
    bench.set(0, "k", "v");
    bench.until_applied(0);
    assert!(!bench.after_gap(), "a store that begins with the log lacks nothing");
    // The log has named 6 by now. There is more, so that the node is not caught up.
    bench.log_reaches(20);
    bench.attempt(5, "k", Expected::Live(0));
    bench.until_applied(5);
    assert!(bench.after_gap() && bench.in_doubt("k"), "what was at 1 to 4 may decide");
    bench.attempt(7, "l", Expected::Nothing);
    bench.until_applied(7);
    assert!(!bench.in_doubt("l"), "it is young, and so is whatever was before it and is not there");
    bench.feed(Step::End(20));
    bench.until("caught up", |bench| !bench.after_gap());
    assert!(bench.in_doubt("k"), "until it is repaired, or for as long as compaction waits");
    let repair =
        Condition::Repair { offset: 0, timestamp: log_ms(1_000), until: NEVER, log: LOG, reach: Some(5) };
    bench.append_conditional(20, "k", Some("v"), repair);
    bench.until_applied(20);
    assert!(!bench.in_doubt("k"));
    assert_eq!(bench.value("k").as_deref(), Some("v"));
}

#[test]
fn a_hole_among_young_records_is_no_gap() {
    let dir = folder();
    let mut bench = Bench::start(dir.path(), 0..1);
    bench.set(0, "k", "v");
    bench.until_ready();
    bench.log_reaches(20);
    // A transaction marker at 1.
    bench.attempt(2, "k", Expected::Live(0));
    bench.until_applied(2);
    assert!(!bench.after_gap() && !bench.in_doubt("k"));
    assert_eq!(bench.value("k").as_deref(), Some("attempt"));
    // Half of the lag later the log has not said a word, and nobody knows what is young.
    bench.log.silent.store(true, Ordering::Relaxed);
    bench.clock.pass(Duration::from_mins(30));
    bench.attempt(4, "k", Expected::Live(2));
    bench.until_applied(4);
    assert!(bench.after_gap() && bench.in_doubt("k"));
}

#[test]
fn a_store_that_begins_behind_the_start_lacks_something() {
    let dir = folder();
    let mut bench = Bench::start(dir.path(), 5..6);
    bench.attempt(5, "k", Expected::Nothing);
    bench.until_applied(5);
    assert!(bench.in_doubt("k"));
}

#[test]
fn reserved_keys_are_in_no_store() {
    let dir = folder();
    let mut bench = Bench::start(dir.path(), 0..3);
    bench.feed(Step::Record { offset: 0, key: Some(b"\0barrier"), value: Some(encoded("\0barrier", "")) });
    bench.feed(Step::Record { offset: 1, key: Some(b"\0anything"), value: None });
    bench.set(2, "k", "v");
    bench.until_applied(2);
    assert_eq!(bench.store.stats().expect("readable").records, 1);
    assert_eq!(bench.metrics.poison_records.get(), 0);
}

#[test]
fn at_the_first_level_any_repair_settles_what_is_before_it() {
    let dir = folder();
    let mut bench = Bench::start(dir.path(), 0..1);
    let repair =
        Condition::Repair { offset: 0, timestamp: log_ms(1_000), until: NEVER, log: LOG, reach: None };
    bench.set(0, "k", "v");
    bench.until_ready();
    bench.log_reaches(9);
    bench.append_conditional(1, "k", None, Condition::Unreadable);
    bench.append_conditional(2, "k", Some("v"), repair);
    bench.until_applied(2);
    let needed = |bench: &Bench| bench.store.stats().expect("readable").pending_repairs;
    assert_eq!(needed(&bench), 0);
    bench.feed(Step::Level { offset: 3, level: 2 });
    bench.append_conditional(4, "k", None, Condition::Unreadable);
    bench.append_conditional(5, "k", Some("v"), repair);
    bench.until_applied(5);
    assert_eq!((bench.store.checkpoint().expect("readable").levels, needed(&bench)), (vec![Level(2)], 1));
    let repairs = crate::trimming::repairs_of(&bench.store, RETENTION, b"k").expect("readable");
    let conditions: Vec<_> = repairs.iter().map(|repair| repair.condition).collect();
    let [Some(Condition::Repair { offset: 0, reach: Some(4), .. })] = conditions[..] else {
        panic!("{conditions:?}")
    };
}

#[test]
fn a_level_that_is_not_known_stops_the_node() {
    let dir = folder();
    let mut bench = Bench::start(dir.path(), 0..2);
    bench.set(0, "k", "v");
    bench.until_applied(0);
    bench.feed(Step::Level { offset: 1, level: 3 });
    bench.until("it gives up", |bench| matches!(bench.progress.phase(), Phase::Failed(_)));
    let reason = bench.progress.unready().expect("it is not ready");
    assert!(reason.contains("level 3") && reason.contains("start a newer version"), "{reason}");
    assert_eq!(bench.store.checkpoint().expect("readable").next, [NextOffset(1)], "nothing of it is applied");
    // Also where a newer version has filled the store.
    let read = crate::log::PartitionRead {
        level: Some(Level(3)),
        ..crate::log::PartitionRead::up_to(0, NextOffset(2))
    };
    bench.store.apply_read(&mut Vec::new(), &[read]).expect("applied");
    let mut again = Setup::new(0..2).on(Arc::clone(&bench.store));
    again.until("it gives up", |bench| matches!(bench.progress.phase(), Phase::Failed(_)));
}
