use super::*;
use crate::replication::compatibility::{Cause, incompatibility, truncated_and_regrown};

/// What told may be gone by the time that the process starts again.
#[test]
fn a_store_that_was_found_unfit_stays_so() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let log = Scripted::new("t", "c", 0..9);
    let info = log.open(&|| ()).expect("it opens");
    let store = Store::open(dir.path(), 1 << 20).expect("the store opens");
    store.reset(&info.identity, &[NextOffset(5)], WallTime::default()).expect("written");
    store.note_caught_up(WallTime::default()).expect("written");
    let fits = |store: &Store| incompatibility(&store.checkpoint().expect("readable"), &info);
    assert_eq!(fits(&store), None);
    store.note_unfit("it was truncated").expect("written");
    drop(store);
    let store = Store::open(dir.path(), 1 << 20).expect("the store opens");
    let found = fits(&store).expect("it does not fit");
    assert_eq!((found.cause, &*found.why), (Cause::LogTruncated, "it was truncated"));
    store.discard().expect("written");
    assert_eq!(fits(&store), None);
}

#[test]
fn only_a_later_record_among_those_read_tells() {
    let known = Checkpoint {
        identity: None,
        restored: true,
        next: vec![NextOffset(5)],
        latest: vec![Some(log_ms(1_004))],
        epochs: vec![None],
        after_gap: vec![false],
        levels: vec![crate::log::Level::FIRST],
        caught_up_at: None,
        unfit: None,
    };
    let look = |later: Option<i64>, steps: &[Step]| {
        let log = Scripted::new("t", "c", 0..9);
        *log.later.lock() = later;
        let script = log.script();
        for step in steps {
            script.push(step.clone());
        }
        let timeout = Duration::from_millis(300);
        let found = truncated_and_regrown(&log, &known, timeout, &AtomicBool::new(false), &|| ());
        (found.ok().map(|found| found.is_some()), log.started.lock().first().copied())
    };
    let (same, other, unknown) = (Some(false), Some(true), None);
    assert_eq!(look(None, &[]), (same, None), "there is nothing later");
    assert_eq!(look(Some(5), &[]), (same, None), "what comes next is later");
    let at = |offset, timestamp| Step::At { offset, timestamp };
    assert_eq!(look(Some(3), &[at(4, 1_005)]), (other, Some(3)));
    // A transaction's marker at 3.
    assert_eq!(look(Some(3), &[at(4, 1_004)]), (same, Some(3)));
    assert_eq!(look(Some(4), &[Step::End(5)]), (same, Some(4)));
    assert_eq!(look(Some(4), &[at(5, 2_000)]), (same, Some(4)), "nothing is left of what was read");
    assert_eq!(look(Some(1), &[at(2, 1_002)]), (same, Some(1)), "there is too much to be read");
    assert_eq!(look(Some(1), &[]), (unknown, Some(1)), "the log does not answer");
}

#[test]
fn truncated_and_regrown_during_an_outage_rebuilds_beside() {
    let dir = folder();
    let mut bench = Bench::start(dir.path(), 0..3);
    bench.set(0, "k", "v");
    bench.set(1, "lost", "v");
    bench.set(2, "lost too", "v");
    bench.until_ready();
    bench.log.silent.store(true, Ordering::Relaxed);
    bench.until("the silence is noticed", |bench| !bench.progress.caught_up());
    // Before anybody has looked, some of the new records are applied upon the old ones.
    *bench.log.later.lock() = Some(1);
    *bench.log.high_watermark.lock() = 5;
    *bench.log.range.lock() = 0..5;
    bench.feed(Step::At { offset: 3, timestamp: 9_003 });
    bench.feed(Step::At { offset: 4, timestamp: 9_004 });
    bench.until_applied(4);
    // Who notices, who opens it anew, and the reader.
    for _ in 0..2 {
        bench.log.script().push(Step::At { offset: 1, timestamp: 9_001 });
    }
    bench.script = bench.log.script();
    bench.log.silent.store(false, Ordering::Relaxed);
    bench.until("it is built anew", |bench| bench.metrics.resyncs.get() == 1);
    assert!(bench.value("lost").is_some() && bench.progress.restored(), "the old store answers");
    *bench.log.later.lock() = None;
    bench.set(0, "k", "v");
    bench.feed(Step::At { offset: 4, timestamp: 9_004 });
    bench.until("switched", |bench| bench.value("lost").is_none());
    bench.until("caught up", |bench| bench.progress.caught_up());
    assert_eq!(bench.value("k").as_deref(), Some("another"));
    assert_eq!(bench.metrics.resyncs.get(), 1);
}
