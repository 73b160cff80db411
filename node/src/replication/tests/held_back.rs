//! Barriers, which change nothing in the store: they are told at once, and committed later.

use super::*;

impl Bench {
    fn barrier(&self, offset: i64) {
        *self.log.high_watermark.lock() = offset + 1;
        self.feed(Step::Record { offset, key: Some(b"\0barrier"), value: Some(b"a marker".to_vec()) });
    }

    fn committed(&self) -> i64 {
        self.store.checkpoint().expect("readable").next[0].0
    }

    fn applied(&self) -> i64 {
        self.progress.partitions()[0].applied
    }

    /// One step, and no time passes.
    fn step(&mut self) {
        self.applier.step();
    }
}

fn caught_up(dir: &Path) -> Bench {
    let mut bench = Bench::start(dir, 0..1);
    bench.set(0, "k", "v");
    bench.until_ready();
    bench.round();
    assert_eq!(bench.committed(), 1);
    bench
}

#[test]
fn a_barrier_is_told_before_it_is_committed() {
    let dir = folder();
    let mut bench = caught_up(dir.path());
    for offset in 1..4 {
        bench.barrier(offset);
        bench.step();
        assert_eq!((bench.applied(), bench.committed()), (offset, 1));
    }
    bench.round();
    assert_eq!((bench.applied(), bench.committed()), (3, 4), "a moment later");
}

#[test]
fn a_record_commits_the_barriers_before_it() {
    let dir = folder();
    let mut bench = caught_up(dir.path());
    bench.barrier(1);
    bench.step();
    bench.set(2, "k", "w");
    bench.step();
    assert_eq!((bench.applied(), bench.committed()), (2, 3));
    assert_eq!(bench.value("k").as_deref(), Some("w"));
    assert!(!bench.store.checkpoint().expect("readable").after_gap[0], "nothing is missing");
}

#[test]
fn what_is_held_back_is_read_once_more_after_an_interruption() {
    let dir = folder();
    let mut bench = caught_up(dir.path());
    bench.barrier(1);
    bench.step();
    bench.feed(Step::Fails(ReadError::Unavailable("gone".to_owned())));
    bench.script = {
        bench.step();
        bench.log.script()
    };
    *bench.log.range.lock() = 0..2;
    bench.until_reading_from(1);
    bench.barrier(1);
    bench.until_applied(1);
    assert_eq!(bench.progress.unready(), None);
    assert_eq!(bench.metrics.resyncs.get(), 0);
}

#[test]
fn an_outage_remembers_what_is_held_back() {
    let dir = folder();
    let mut bench = caught_up(dir.path());
    bench.barrier(1);
    bench.step();
    bench.log.silent.store(true, Ordering::Relaxed);
    bench.watermarks.step();
    let before = bench.applier.shared.checkpoint_before_outage.lock().clone().expect("it is remembered");
    assert_eq!((before.next, bench.committed()), (vec![NextOffset(2)], 1));
    assert_eq!(
        before.latest,
        [Some(log_ms(1_001))],
        "who lost the barrier, too, has lost what it was read with"
    );
}

#[test]
fn nothing_is_held_back_for_long_under_load() {
    let dir = folder();
    let mut bench = caught_up(dir.path());
    for offset in 1..1_500 {
        bench.barrier(offset);
        bench.step();
    }
    assert!(bench.committed() > 1_000, "{}", bench.committed());
    assert_eq!(bench.applied(), 1_499);
}
