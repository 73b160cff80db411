use super::*;

#[test]
fn a_build_left_for_too_long_begins_anew() {
    let retention = Some(Duration::from_secs(3_600));
    for (left, from) in [(3_500, 1), (3_700, 0)] {
        let dir = folder();
        let store = Arc::new(Store::open(dir.path(), 1 << 20).expect("the store opens"));
        let setup = Setup { retention, ..Setup::new(0..2) };
        let identity = LogIdentity { cluster: "c".into(), topic: "t".into(), topic_id: None };
        store
            .reset(&identity, &[NextOffset(1)], WallTime::from_ms(setup.clock.wall().ms() - left * 1_000))
            .expect("written");
        let mut bench = setup.on(store);
        bench.until("reading", |bench| bench.started() == [from]);
    }
}

/// The connection to the log may be lost for long, and the reader does not say so.
#[test]
fn a_build_that_hears_nothing_for_too_long_begins_anew() {
    let retention = Duration::from_secs(3_600);
    for (silence, readings) in [(retention * 8 / 10, 1), (retention * 12 / 10, 2)] {
        let dir = folder();
        let mut bench = Setup { retention: Some(retention), ..Setup::new(0..9) }.open(dir.path());
        bench.set(0, "gone", "old");
        bench.until_applied(0);
        bench.log.script();
        for _ in 0..4 {
            // The process runs all the while.
            bench.clock.pass(silence / 4);
            assert!(!bench.progress.detect_freeze());
        }
        bench.set(5, "k", "v");
        bench.until("read", |bench| bench.value("k").is_some() || bench.started().len() == 2);
        assert_eq!(bench.started().len(), readings, "after {silence:?}");
        assert_eq!(bench.value("gone").is_some(), readings == 1);
    }
}

#[test]
fn a_store_left_for_too_long_is_empty_before_the_log_answers() {
    let retention = Some(Duration::from_secs(3_600 * 24));
    for (left, trusted) in [(3_600 * 23, true), (3_600 * 25, false), (-3_600 * 24 * 365, false)] {
        let dir = folder();
        let mut bench = Bench::start(dir.path(), 0..1);
        bench.set(0, "k", "v");
        bench.until_ready();
        let (store, clock) = (Arc::clone(&bench.store), bench.clock.clone());
        drop(bench);
        store.note_caught_up(WallTime::from_ms(clock.wall().ms() - left * 1000)).expect("written");
        let refuses = Some("it does not answer");
        let setup = Setup { refuses, retention, clock: clock.clone(), ..Setup::new(0..1) };
        let mut bench = setup.on(Arc::clone(&store));
        bench.until("refused", |bench| matches!(bench.progress.phase(), Phase::Failed(_)));
        assert_eq!(bench.progress.restored(), trusted, "left for {left} s");
        assert_eq!(bench.value("k").is_some(), trusted, "left for {left} s");
        assert_eq!(bench.metrics.resyncs.get(), u64::from(!trusted), "left for {left} s");
        drop(bench);
        // And with the log: from its start, or on from where it stood.
        let mut bench = Setup { retention, clock, ..Setup::new(0..1) }.on(store);
        let from = i64::from(trusted);
        bench.until("reading", |bench| bench.started() == [from]);
    }
}

/// This machine's clock was set back, so the store looks fresh; the log's clock knows better.
#[test]
fn the_logs_clock_tells_the_age_of_a_store_too() {
    let retention = Some(Duration::from_secs(3_600));
    let dir = folder();
    let mut bench = Bench::start(dir.path(), 0..1);
    bench.set(0, "gone", "old");
    bench.until_ready();
    let (store, clock) = (Arc::clone(&bench.store), bench.clock.clone());
    drop(bench);
    store.note_caught_up(clock.wall()).expect("written");
    let mut bench = Setup { retention, clock: clock.clone(), ..Setup::new(0..9) }.on(store);
    bench.until("reading", |bench| bench.started() == [1]);
    bench.until("it serves", |bench| bench.progress.restored());
    let before = bench.becomes("c", 0..9);
    before.push(Step::LogTime(clock.wall().ms() + 3_700_000));
    bench.until("from the start", |bench| bench.started() == [1, 0]);
    bench.feed(Step::End(9));
    bench.until_ready();
    assert_eq!(bench.value("gone"), None);
}

/// What it has missed does not come back, so it must not go on where it stood.
#[test]
fn a_frozen_process_empties_its_store_before_it_reads_on() {
    let retention = Duration::from_secs(3_600);
    let dir = folder();
    let mut bench = Setup { retention: Some(retention), ..Setup::new(0..1) }.open(dir.path());
    bench.set(0, "gone", "old");
    bench.until_ready();
    bench.becomes("c", 0..9);
    bench.clock.pass(retention + Duration::from_secs(1));
    assert!(!bench.progress.restored(), "no read is answered");
    bench.until("from the start", |bench| bench.started() == [0, 0]);
    assert_eq!((bench.value("gone"), bench.metrics.resyncs.get()), (None, 1));
    bench.feed(Step::End(9));
    bench.until_ready();
}
