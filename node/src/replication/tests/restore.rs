use super::*;
use crate::log::Expected;
use crate::store::UuidText;
use crate::store::tests::identity;

#[test]
fn a_build_that_may_have_missed_a_tombstone_reads_again() {
    let dir = folder();
    let mut bench = Bench::start(dir.path(), 0..4);
    let again = bench.log.script();
    let nonsense = |offset, key: &'static [u8]| {
        let value = Some(b"no record".to_vec());
        Step::Record { offset, key: Some(key), value }
    };
    // Of `k` there was a tombstone, but nonsense behind it let it go before it was read.
    bench.set(0, "k", "v");
    for script in [&bench.script, &again] {
        let record = Step::Record { offset: 1, key: Some(b"l"), value: Some(encoded("l", "v")) };
        for step in [record, nonsense(2, b"k"), nonsense(3, b"l")] {
            script.push(step);
        }
    }
    bench.until_ready();
    assert_eq!(bench.started(), [0, 0]);
    assert_eq!((bench.value("k"), bench.value("l").as_deref()), (None, Some("v")));
    assert_eq!(bench.store.stats().expect("readable").pending_repairs, 1);
}

/// KAFKA-12951: the log's last offsets hold no record, so waiting for the last record would be for ever.
#[test]
fn a_restore_ends_where_the_partition_ends() {
    let dir = folder();
    let mut bench = Bench::start(dir.path(), 0..5);
    bench.set(0, "k", "v");
    bench.until_applied(0);
    assert!(bench.progress.unready().is_some(), "four offsets are left");
    bench.feed(Step::End(5));
    bench.until_ready();
    assert!(bench.store.checkpoint().expect("readable").restored);
}

#[test]
fn a_restart_goes_on_and_serves_at_once() {
    let dir = folder();
    let mut bench = Bench::start(dir.path(), 0..1);
    bench.set(0, "k", "v");
    bench.until_ready();
    drop(bench);
    let mut bench = Bench::start(dir.path(), 0..9);
    bench.until("it serves before it has caught up", |bench| bench.progress.unready().is_none());
    assert!(!bench.progress.caught_up());
    assert_eq!(bench.value("k").as_deref(), Some("v"));
    bench.until("reading", |bench| bench.started() == [1]);
}

#[test]
fn a_reader_that_fails_is_replaced_and_nothing_is_lost() {
    let dir = folder();
    let mut bench = Bench::start(dir.path(), 0..2);
    bench.set(0, "a", "1");
    bench.feed(Step::Fails(ReadError::Unavailable("cut".to_owned())));
    bench.until("another reader", |bench| bench.started().get(1) == Some(&1));
    assert_eq!(bench.value("a").as_deref(), Some("1"));
}

#[test]
fn a_record_that_must_not_be_passed_over_ends_the_node() {
    let dir = folder();
    let mut bench = Bench::start(dir.path(), 0..3);
    bench.set(0, "a", "1");
    bench.feed(Step::Fails(ReadError::Unreadable("the format of the record at offset 1".to_owned())));
    bench.until("failed", |bench| bench.progress.unready().is_some_and(|why| why.contains("offset 1")));
    assert!(matches!(bench.progress.phase(), Phase::Failed(_)));
    // What was read before it stays, and nobody reads on behind it.
    assert_eq!(bench.value("a").as_deref(), Some("1"));
    bench.round();
    assert_eq!(bench.started().len(), 1);
}

#[test]
fn a_log_that_refuses_makes_the_node_unready() {
    let dir = folder();
    let mut bench = Setup { refuses: Some("not compacted"), ..Setup::new(0..0) }.open(dir.path());
    bench.until("failed", |bench| bench.progress.unready().as_deref() == Some("not compacted"));
    assert!(matches!(bench.progress.phase(), Phase::Failed(_)));
}

#[test]
fn another_topics_keys_are_never_served() {
    let dir = folder();
    let mut bench = Bench::start(dir.path(), 0..1);
    bench.set(0, "a", "stale");
    bench.until_ready();
    drop(bench);
    let away = Some("it does not answer");
    let mut bench = Setup { refuses: away, ..Setup::new(0..1) }.open(dir.path());
    bench.until("its own topic's are", |bench| bench.progress.restored());
    drop(bench);
    let mut bench = Setup { topic: "another", refuses: away, ..Setup::new(0..1) }.open(dir.path());
    bench.until("refused", |bench| matches!(bench.progress.phase(), Phase::Failed(_)));
    assert!(!bench.progress.restored());
}

/// What decides on a conditional record is noted in the order of the log, while records are applied in the order of their keys.
#[test]
fn a_restore_judges_conditions_as_a_complete_store_does() {
    let attempt = |expected| Some(Condition::Attempt { expected, until: LogTime::MAX, log: LOG });
    let records = [
        ("z", "0", None),
        ("z", "tried", attempt(Expected::Live(0))),
        ("y", "tried", attempt(Expected::Nothing)),
        ("x", "tried", attempt(Expected::Live(0))),
        ("y", "tried again", attempt(Expected::Nothing)),
        ("x", "written", None),
        ("a", "tried", attempt(Expected::Live(4))),
        ("b", "no record", None),
        ("z", "tried again", attempt(Expected::Live(1))),
    ];
    let values: Vec<_> = records.iter().map(|(key, value, _)| encoded(key, value)).collect();
    let mut batch = Batch::default();
    for ((offset, (key, text, condition)), value) in (0..).zip(records).zip(&values) {
        batch.push(LogRecord {
            position: Position { partition: 0, offset },
            timestamp: log_ms(1_000 + offset),
            key: Some(key.as_bytes()),
            value: Some(if text == "no record" { text.as_bytes() } else { value }),
            condition,
            level: None,
            epoch: None,
        });
    }
    let mut found = Vec::new();
    for is_complete in [true, false] {
        let dir = folder();
        let store = Store::open(dir.path(), 1 << 20).expect("it opens");
        store.reset(&identity(), &[NextOffset(0)], WallTime::from_ms(0)).expect("written");
        if is_complete {
            store.note_caught_up(WallTime::from_ms(1)).expect("written");
        }
        let (applied, poison) = apply(&store, &batch, LOG, &[HighWatermark(0)]).expect("applied");
        let values = ["a", "b", "x", "y", "z"].map(|key| {
            let (entry, _) = store.get(key.as_bytes()).expect("readable")?;
            Some(entry.record(&mut UuidText::default())?.value.to_owned())
        });
        let mut decided: Vec<_> =
            applied.decided.iter().map(|it| (it.entry.position(), it.decision)).collect();
        decided.sort_by_key(|(position, _)| position.offset);
        found.push((values, decided, poison, applied.void, store.stats().expect("readable").pending_repairs));
    }
    assert_eq!(found[0], found[1]);
    let values = found[1].0.each_ref().map(Option::as_deref);
    assert_eq!(values, [None, None, Some("written"), Some("tried"), Some("tried again")]);
    assert_eq!(found[1].2, 1, "one can't be decoded");
}
