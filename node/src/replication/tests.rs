//! The replica over a log whose every answer is scripted: faults that a real broker can't be made to show at will.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

use bitacora_protocol::record::{KeyValue, source};
use futures_util::future::BoxFuture;
use proptest::prelude::*;

use super::apply::decode;
use super::compatibility::truncated_and_regrown;
use super::*;
use crate::clock::manual::ManualClock;
use crate::clock::{LogTime, WallTime};
use crate::log::{
    AppendError, Appended, Batch, Condition, ConditionalRecord, LogInfo, LogReader, LogRecord, LogTag,
    OpenError, ReadError,
};
use crate::now_ms;
use crate::store::{Author, Change};
use crate::telemetry::Telemetry;
use crate::testing::damage::{damaged, damages};
use bitacora_protocol::{HighWatermark, NextOffset, Position};

/// The log does not say which it is.
const LOG: LogTag = LogTag(0);
/// The scripted records are of 1970.
const RETENTION: Duration = Duration::from_hours(100 * 365 * 24);

/// What the reader finds next.
#[derive(Clone)]
enum Step {
    Record {
        offset: i64,
        key: Option<&'static [u8]>,
        value: Option<Vec<u8>>,
    },
    ConditionalRecord {
        offset: i64,
        key: &'static str,
        value: Option<Vec<u8>>,
        condition: Condition,
    },
    /// A record of the key `k`.
    At {
        offset: i64,
        timestamp: i64,
    },
    End(i64),
    /// So late is it by the log's clock, in ms since the epoch.
    LogTime(i64),
    Fails(ReadError),
}

struct Scripted {
    topic: &'static str,
    cluster: Mutex<&'static str>,
    range: Mutex<std::ops::Range<i64>>,
    grace: Option<Duration>,
    high_watermark: Mutex<i64>,
    /// A script for each reader.
    steps: Mutex<VecDeque<Receiver<Step>>>,
    /// Where each reader was told to start.
    started: Mutex<Vec<i64>>,
    refuses: Option<&'static str>,
    /// Whether it does not tell the high watermark.
    silent: AtomicBool,
    /// Where the first is that is later than what was read.
    later: Mutex<Option<i64>>,
}

impl Scripted {
    fn new(topic: &'static str, cluster: &'static str, range: std::ops::Range<i64>) -> Self {
        Self {
            topic,
            cluster: Mutex::new(cluster),
            high_watermark: Mutex::new(range.end),
            range: Mutex::new(range),
            grace: None,
            steps: Mutex::default(),
            started: Mutex::default(),
            refuses: None,
            silent: AtomicBool::new(false),
            later: Mutex::default(),
        }
    }

    /// One more reader, and what it finds.
    fn script(&self) -> Sender<Step> {
        let (steps, script) = channel();
        self.steps.lock().expect("no panic").push_back(script);
        steps
    }

    fn identity(&self) -> LogIdentity {
        let cluster = (*self.cluster.lock().expect("no panic")).to_owned();
        LogIdentity { cluster, topic: self.topic.to_owned(), topic_id: None }
    }
}

impl Log for Scripted {
    fn is_still(&self, identity: &LogIdentity, _: usize) -> bool {
        self.identity() == *identity
    }

    fn delete_grace(&self) -> Option<Duration> {
        self.grace
    }

    fn topic(&self) -> &str {
        self.topic
    }

    fn open(&self) -> Result<LogInfo, OpenError> {
        if let Some(reason) = self.refuses {
            return Err(OpenError::Refused(reason.to_owned()));
        }
        Ok(LogInfo {
            identity: self.identity(),
            partitions: vec![self.range.lock().expect("no panic").clone()],
        })
    }

    fn append(&self, _: &str, _: Vec<u8>) -> BoxFuture<'static, Result<Appended, AppendError>> {
        unreachable!("these tests only read")
    }

    fn append_conditional(&self, _: ConditionalRecord) -> BoxFuture<'static, Result<Appended, AppendError>> {
        unreachable!("these tests only read")
    }

    fn check_trimming(&self) -> Result<(), String> {
        unreachable!("these tests only read")
    }

    fn reader(&self, from: &[NextOffset], _: &[Option<i32>]) -> Result<Box<dyn LogReader>, ReadError> {
        self.started.lock().expect("no panic").push(from[0].0);
        match self.steps.lock().expect("no panic").pop_front() {
            Some(steps) => Ok(Box::new(ScriptedReader(steps))),
            None => Err(ReadError::Unavailable("the script is over".to_owned())),
        }
    }

    fn first_after(&self, _: &[Option<LogTime>]) -> Result<Vec<Option<i64>>, ReadError> {
        Ok(vec![*self.later.lock().expect("no panic")])
    }

    fn high_watermarks(&self) -> Result<Vec<HighWatermark>, ReadError> {
        if self.silent.load(Ordering::Relaxed) {
            return Err(ReadError::Unavailable("not a word".to_owned()));
        }
        Ok(vec![HighWatermark(*self.high_watermark.lock().expect("no panic"))])
    }

    fn flush(&self, _: Duration) {}
}

struct ScriptedReader(Receiver<Step>);

impl LogReader for ScriptedReader {
    fn poll(&mut self, wait: Duration, batch: &mut Batch) -> Result<(), ReadError> {
        match self.0.recv_timeout(wait) {
            Ok(Step::Record { offset, key, value }) => {
                let position = Position { partition: 0, offset };
                let (timestamp, value) = (log_ms(1_000 + offset), value.as_deref());
                batch.push(LogRecord { position, timestamp, key, value, condition: None, epoch: None });
                Ok(())
            }
            Ok(Step::ConditionalRecord { offset, key, value, condition }) => {
                batch.push(LogRecord {
                    position: Position { partition: 0, offset },
                    timestamp: log_ms(1_000 + offset),
                    key: Some(key.as_bytes()),
                    value: value.as_deref(),
                    condition: Some(condition),
                    epoch: None,
                });
                Ok(())
            }
            Ok(Step::At { offset, timestamp }) => {
                let position = Position { partition: 0, offset };
                let value = encoded("k", "another");
                let (timestamp, key, value) = (log_ms(timestamp), Some(&b"k"[..]), Some(&value[..]));
                batch.push(LogRecord { position, timestamp, key, value, condition: None, epoch: None });
                Ok(())
            }
            Ok(Step::End(next)) => {
                batch.reached(0, NextOffset(next));
                Ok(())
            }
            Ok(Step::LogTime(time)) => {
                batch.appended_at(log_ms(time));
                Ok(())
            }
            Ok(Step::Fails(error)) => Err(error),
            Err(_) => Ok(()),
        }
    }

    fn applied(&mut self, _: &[NextOffset]) {}
}

fn log_ms(ms: i64) -> LogTime {
    LogTime::from_ms(ms)
}

fn wall_ms(ms: i64) -> WallTime {
    WallTime::from_ms(ms)
}

fn encoded(key: &str, value: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    KeyValue { key, value, timestamp: 1, source: source::PRODUCER, ttl: 0, uuid: "" }.encode(&mut bytes);
    bytes
}

/// A replica on a store in a folder, and the means to feed it.
struct Bench {
    store: Arc<Store>,
    progress: Arc<Progress>,
    metrics: Arc<Metrics>,
    log: Arc<Scripted>,
    steps: Sender<Step>,
    replica: Option<Replica>,
}

impl Bench {
    fn start(dir: &std::path::Path, identity: &'static str, range: std::ops::Range<i64>) -> Self {
        Self::start_with(dir, "t", identity, range, None)
    }

    fn start_with(
        dir: &std::path::Path,
        topic: &'static str,
        identity: &'static str,
        range: std::ops::Range<i64>,
        refuses: Option<&'static str>,
    ) -> Self {
        let store = Arc::new(Store::open(dir, 1 << 20).expect("the store opens"));
        Self::start_on(store, topic, identity, range, refuses, None)
    }

    fn start_on(
        store: Arc<Store>,
        topic: &'static str,
        identity: &'static str,
        range: std::ops::Range<i64>,
        refuses: Option<&'static str>,
        grace: Option<Duration>,
    ) -> Self {
        Self::start_with_clock(store, Progress::default(), topic, identity, range, refuses, grace)
    }

    fn start_with_clock(
        store: Arc<Store>,
        progress: Progress,
        topic: &'static str,
        identity: &'static str,
        range: std::ops::Range<i64>,
        refuses: Option<&'static str>,
        grace: Option<Duration>,
    ) -> Self {
        let log = Arc::new(Scripted { grace, refuses, ..Scripted::new(topic, identity, range) });
        let steps = log.script();
        let (progress, metrics) = (Arc::new(progress), Arc::new(Metrics::new().expect("names differ")));
        let replica = Replica::start(Parts {
            log: log.clone(),
            store: store.clone(),
            progress: progress.clone(),
            metrics: metrics.clone(),
            telemetry: Telemetry::off(),
            delete_retention: RETENTION,
            snapshots: None,
        })
        .expect("starts");
        Self { store, progress, metrics, log, steps, replica: Some(replica) }
    }

    /// The log is another one from now on, with a script of its own.
    fn becomes(&mut self, cluster: &'static str, range: std::ops::Range<i64>) {
        self.steps = self.log.script();
        *self.log.high_watermark.lock().expect("no panic") = range.end;
        *self.log.range.lock().expect("no panic") = range;
        *self.log.cluster.lock().expect("no panic") = cluster;
    }

    fn set(&self, offset: i64, key: &'static str, value: &str) {
        self.feed(Step::Record { offset, key: Some(key.as_bytes()), value: Some(encoded(key, value)) });
    }

    fn append_conditional(&self, offset: i64, key: &'static str, value: Option<&str>, condition: Condition) {
        self.feed(Step::ConditionalRecord {
            offset,
            key,
            value: value.map(|value| encoded(key, value)),
            condition,
        });
    }

    fn feed(&self, step: Step) {
        self.steps.send(step).expect("the replica reads");
    }

    fn wait(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !condition(self) {
            let seen = (self.progress.phase(), self.progress.partitions(), self.progress.restore());
            assert!(Instant::now() < deadline, "never: {what}; last seen: {seen:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn applied(&self, offset: i64) {
        self.wait("applied", |bench| {
            bench.progress.partitions().first().is_some_and(|p| p.applied == offset)
        });
    }

    fn value(&self, key: &str) -> Option<String> {
        let (entry, _) = self.store.get(key.as_bytes()).expect("readable")?;
        Some(entry.record().map_or("a tombstone".to_owned(), |record| record.value.to_owned()))
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Some(replica) = self.replica.take() {
            assert!(replica.stop(Instant::now() + Duration::from_secs(60)).is_empty());
        }
    }
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

#[test]
fn poison_is_skipped_counted_and_stops_nothing() {
    let dir = folder();
    let bench = Bench::start(dir.path(), "c", 0..7);
    bench.set(0, "before", "1");
    let poison: [(Option<&'static [u8]>, Option<Vec<u8>>); 5] = [
        (Some(b"k"), Some(vec![0xff; 20])),
        (Some(b"k"), Some(Vec::new())),
        (None, Some(vec![0])),
        (Some(b"\xff\xfe"), None),
        (Some(b""), None),
    ];
    for (offset, (key, value)) in (1..).zip(poison) {
        bench.feed(Step::Record { offset, key, value });
    }
    bench.set(6, "after", "2");
    bench.applied(6);
    assert_eq!(bench.value("before").as_deref(), Some("1"));
    assert_eq!(bench.value("after").as_deref(), Some("2"));
    assert_eq!(bench.metrics.poison_records.get(), 5);
    bench.wait("ready", |bench| bench.progress.unready().is_none());
}

#[test]
fn a_tombstone_deletes() {
    let dir = folder();
    let bench = Bench::start(dir.path(), "c", 0..2);
    bench.set(0, "k", "v");
    bench.feed(Step::Record { offset: 1, key: Some(b"k"), value: None });
    bench.applied(1);
    let (entry, _) = bench.store.get(b"k").expect("readable").expect("the marker is an answer");
    assert_eq!(entry.state(WallTime::default()), crate::store::State::Deleted);
}

#[test]
fn records_with_a_condition_are_counted_by_what_they_did_and_nonsense_is_poison() {
    let dir = folder();
    let bench = Bench::start(dir.path(), "c", 0..11);
    bench.set(0, "k", "v");
    bench.set(1, "l", "v");
    bench.append_conditional(2, "k", None, Condition::Trim { offset: 0, until: log_ms(i64::MAX), log: LOG });
    bench.append_conditional(3, "l", None, Condition::Trim { offset: 0, until: log_ms(i64::MAX), log: LOG });
    bench.append_conditional(
        4,
        "m",
        Some("again"),
        Condition::Repair { offset: 3, timestamp: log_ms(77), until: log_ms(i64::MAX), log: LOG },
    );
    // Each would be a tombstone or a write if its condition were overlooked.
    bench.append_conditional(5, "l", None, Condition::Unreadable);
    bench.append_conditional(6, "l", None, Condition::Trim { offset: 6, until: log_ms(i64::MAX), log: LOG });
    bench.append_conditional(
        7,
        "l",
        Some("w"),
        Condition::Repair { offset: 7, timestamp: log_ms(0), until: log_ms(i64::MAX), log: LOG },
    );
    bench.append_conditional(
        8,
        "l",
        Some("w"),
        Condition::Trim { offset: 1, until: log_ms(i64::MAX), log: LOG },
    );
    // Too late, by their own timestamps.
    bench.append_conditional(9, "l", None, Condition::Trim { offset: 1, until: log_ms(0), log: LOG });
    bench.append_conditional(
        10,
        "k",
        Some("w"),
        Condition::Repair { offset: 0, timestamp: log_ms(0), until: log_ms(0), log: LOG },
    );
    bench.applied(10);
    assert_eq!((bench.value("k"), bench.value("l").as_deref()), (None, Some("v")));
    let (entry, _) = bench.store.get(b"m").expect("readable").expect("restored");
    assert_eq!((entry.position().offset, entry.timestamp()), (3, log_ms(77)));
    let metrics = &bench.metrics;
    assert_eq!((metrics.records_trimmed.get(), metrics.records_void.get()), (1, 7));
    assert_eq!(metrics.poison_records.get(), 4);
}

#[test]
fn what_a_trimmer_sent_to_another_topic_does_nothing_here_and_is_a_debt() {
    let (here, there) = (LogTag(1), LogTag(2));
    let value = encoded("k", "v");
    let decoded = |condition, value: Option<&[u8]>, log| {
        let position = Position { partition: 0, offset: 9 };
        let record = LogRecord {
            position,
            timestamp: log_ms(5),
            key: Some(b"k"),
            value,
            condition: Some(condition),
            epoch: None,
        };
        decode(&record, 100, log).expect("it is whole").1
    };
    for offset in [3, 99] {
        let trim = Condition::Trim { offset, until: log_ms(5), log: there };
        let repair = Condition::Repair { offset, timestamp: log_ms(5), until: log_ms(5), log: there };
        for change in [decoded(trim, None, here), decoded(repair, Some(&value), here)] {
            assert!(matches!(change, Change::Nothing { by: Author::Trimmer, .. }), "{change:?}");
        }
    }
    // Where it is not known which topic it is, or was.
    for (log, of) in [(here, here), (LOG, here), (here, LOG)] {
        let trim = Condition::Trim { offset: 3, until: log_ms(5), log: of };
        assert!(matches!(decoded(trim, None, log), Change::Trim { .. }));
        let repair = Condition::Repair { offset: 3, timestamp: log_ms(5), until: log_ms(5), log: of };
        assert!(matches!(decoded(repair, Some(&value), log), Change::Repair { .. }));
    }
}

#[test]
fn a_build_that_may_have_missed_a_tombstone_is_read_once_more() {
    let dir = folder();
    let bench = Bench::start(dir.path(), "c", 0..4);
    let again = bench.log.script();
    let nonsense = |offset, key: &'static [u8]| {
        let value = Some(b"no record".to_vec());
        Step::Record { offset, key: Some(key), value }
    };
    // Of `k` there was a tombstone, but nonsense behind it let it go before it was read.
    bench.set(0, "k", "v");
    for steps in [&bench.steps, &again] {
        let record = Step::Record { offset: 1, key: Some(b"l"), value: Some(encoded("l", "v")) };
        for step in [record, nonsense(2, b"k"), nonsense(3, b"l")] {
            steps.send(step).expect("the replica reads");
        }
    }
    bench.wait("ready", |bench| bench.progress.unready().is_none());
    assert_eq!(*bench.log.started.lock().expect("no panic"), [0, 0]);
    assert_eq!((bench.value("k"), bench.value("l").as_deref()), (None, Some("v")));
    assert_eq!(bench.store.stats().expect("readable").pending_repairs, 1);
}

#[test]
fn a_build_that_was_left_for_longer_than_the_grace_begins_anew() {
    let grace = Some(Duration::from_secs(3_600));
    for (left, from) in [(3_500, 1), (3_700, 0)] {
        let dir = folder();
        let store = Arc::new(Store::open(dir.path(), 1 << 20).expect("the store opens"));
        let identity = LogIdentity { cluster: "c".into(), topic: "t".into(), topic_id: None };
        store.reset(&identity, &[NextOffset(1)], wall_ms(now_ms() - left * 1_000)).expect("written");
        let bench = Bench::start_on(store, "t", "c", 0..2, None, grace);
        bench.wait("reading", |bench| *bench.log.started.lock().expect("no panic") == [from]);
    }
}

/// The connection to the log may be lost for long, and the reader does not say so.
#[test]
fn a_build_that_hears_nothing_for_longer_than_the_grace_begins_anew() {
    let grace = Duration::from_secs(3_600);
    for (silence, readings) in [(grace * 8 / 10, 1), (grace * 12 / 10, 2)] {
        let dir = folder();
        let store = Arc::new(Store::open(dir.path(), 1 << 20).expect("the store opens"));
        let clock = ManualClock::new();
        let progress = Progress::new(Arc::new(clock.clone()));
        let mut bench = Bench::start_with_clock(store, progress, "t", "c", 0..9, None, Some(grace));
        bench.set(0, "gone", "old");
        bench.applied(0);
        let first = std::mem::replace(&mut bench.steps, bench.log.script());
        for _ in 0..4 {
            // The process runs all the while.
            clock.pass(silence / 4);
            assert!(!bench.progress.tick());
        }
        let later = Step::Record { offset: 5, key: Some(b"k"), value: Some(encoded("k", "v")) };
        first.send(later).expect("the replica reads");
        let begun = || bench.log.started.lock().expect("no panic").len();
        bench.wait("read", |bench| bench.value("k").is_some() || begun() == 2);
        assert_eq!(begun(), readings, "after {silence:?}");
        assert_eq!(bench.value("gone").is_some(), readings == 1);
    }
}

/// KAFKA-12951: the log's last offsets hold no record, so waiting for the last record would be for ever.
#[test]
fn the_restore_ends_at_the_end_of_the_partition_not_at_the_last_record() {
    let dir = folder();
    let bench = Bench::start(dir.path(), "c", 0..5);
    bench.set(0, "k", "v");
    bench.applied(0);
    assert!(bench.progress.unready().is_some(), "four offsets are left");
    bench.feed(Step::End(5));
    bench.wait("ready", |bench| bench.progress.unready().is_none());
    assert!(bench.store.checkpoint().expect("readable").restored);
}

#[test]
fn a_restart_goes_on_where_the_store_stands_and_serves_at_once() {
    let dir = folder();
    let bench = Bench::start(dir.path(), "c", 0..1);
    bench.set(0, "k", "v");
    bench.wait("ready", |bench| bench.progress.unready().is_none());
    drop(bench);
    let bench = Bench::start(dir.path(), "c", 0..9);
    bench.wait("it serves before it has caught up", |bench| bench.progress.unready().is_none());
    assert!(!bench.progress.caught_up());
    assert_eq!(bench.value("k").as_deref(), Some("v"));
    bench.wait("reading", |bench| *bench.log.started.lock().expect("no panic") == [1]);
}

/// Each is a log that the store's records did not come from.
#[test]
fn a_store_that_does_not_fit_the_log_is_emptied_and_unready_until_it_is_rebuilt() {
    for (identity, range, what) in [
        ("other", 0..10, "another cluster"),
        ("c", 3..10, "the log starts above the store's next offset"),
        ("c", 0..1, "the log ends below the store's next offset"),
    ] {
        let dir = folder();
        let bench = Bench::start(dir.path(), "c", 0..2);
        bench.set(0, "a", "stale");
        bench.set(1, "b", "stale");
        bench.wait("ready", |bench| bench.progress.unready().is_none());
        drop(bench);

        let (start, end) = (range.start, range.end);
        let bench = Bench::start(dir.path(), identity, range);
        bench.wait("reading", |bench| *bench.log.started.lock().expect("no panic") == [start]);
        assert_eq!((bench.value("a"), bench.value("b")), (None, None), "{what}");
        assert!(bench.progress.unready().is_some(), "{what}");
        assert_eq!(bench.metrics.resyncs.get(), 1, "{what}");
        bench.feed(Step::End(end));
        bench.wait("ready again", |bench| bench.progress.unready().is_none());
    }
}

#[test]
fn a_reader_that_fails_is_replaced_by_one_that_goes_on_and_nothing_is_lost() {
    let dir = folder();
    let bench = Bench::start(dir.path(), "c", 0..2);
    bench.set(0, "a", "1");
    bench.feed(Step::Fails(ReadError::Unavailable("cut".to_owned())));
    bench.wait("another reader", |bench| bench.log.started.lock().expect("no panic").get(1) == Some(&1));
    assert_eq!(bench.value("a").as_deref(), Some("1"));
}

#[test]
fn a_log_that_refuses_turns_readiness_red_with_its_sentence() {
    let dir = folder();
    let bench = Bench::start_with(dir.path(), "t", "c", 0..0, Some("not compacted"));
    bench.wait("failed", |bench| bench.progress.unready().as_deref() == Some("not compacted"));
    assert!(matches!(bench.progress.phase(), Phase::Failed(_)));
}

#[test]
fn another_topics_keys_are_not_served_even_before_the_log_answers() {
    let dir = folder();
    let bench = Bench::start(dir.path(), "c", 0..1);
    bench.set(0, "a", "stale");
    bench.wait("ready", |bench| bench.progress.unready().is_none());
    drop(bench);
    let away = Some("it does not answer");
    let bench = Bench::start_with(dir.path(), "t", "c", 0..1, away);
    bench.wait("its own topic's are", |bench| bench.progress.restored());
    drop(bench);
    let bench = Bench::start_with(dir.path(), "another", "c", 0..1, away);
    bench.wait("refused", |bench| matches!(bench.progress.phase(), Phase::Failed(_)));
    assert!(!bench.progress.restored());
}

/// What befalls every node must not silence them all: the old store is read until the new one is complete.
#[test]
fn a_log_that_is_replaced_while_running_is_read_into_a_new_store_and_the_old_one_answers_until_then() {
    for (cluster, end, what) in [("other", 5, "another cluster"), ("c", 1, "a log that lost records")] {
        let dir = folder();
        let mut bench = Bench::start(dir.path(), "c", 0..3);
        bench.set(0, "kept", "old");
        bench.set(1, "gone", "old");
        bench.set(2, "other", "old");
        bench.wait("ready", |bench| bench.progress.unready().is_none());

        bench.becomes(cluster, 0..end);
        bench.wait("rebuilding", |bench| bench.progress.restore().rebuilding.is_some());
        bench.wait("reading", |bench| bench.log.started.lock().expect("no panic").last() == Some(&0));
        if end > 1 {
            bench.set(0, "gone", "in between");
            bench.applied(0);
        }
        assert_eq!(bench.progress.unready(), None, "{what}: reads go on");
        assert!(!bench.progress.caught_up(), "{what}");
        assert_eq!(bench.value("gone").as_deref(), Some("old"), "{what}: not the half of a new store");
        bench.set(end - 1, "kept", "new");
        if end > 1 {
            bench.feed(Step::Record { offset: end, key: Some(b"gone"), value: None });
            *bench.log.high_watermark.lock().expect("no panic") = end + 1;
        }
        bench.wait("switched", |bench| bench.progress.restore().rebuilding.is_none());
        assert_eq!(bench.value("kept").as_deref(), Some("new"), "{what}");
        assert_ne!(bench.value("gone").as_deref(), Some("old"), "{what}");
        assert_eq!(bench.value("other"), None, "{what}");
        assert_eq!(bench.metrics.resyncs.get(), 1, "{what}");
    }
}

/// This node missed records that the others have.
#[test]
fn a_node_that_the_log_left_behind_while_running_does_not_answer_until_it_is_rebuilt() {
    let dir = folder();
    let mut bench = Bench::start(dir.path(), "c", 0..1);
    bench.set(0, "gone", "old");
    bench.wait("ready", |bench| bench.progress.unready().is_none());
    let cut = std::mem::replace(&mut bench.steps, channel().0);
    bench.becomes("c", 5..9);
    cut.send(Step::Fails(ReadError::OutOfRange { partition: 0 })).expect("the replica reads");
    bench.wait("reading", |bench| bench.log.started.lock().expect("no panic").last() == Some(&5));
    assert!(!bench.progress.restored());
    assert_eq!(bench.value("gone"), None);
    bench.feed(Step::End(9));
    bench.wait("ready again", |bench| bench.progress.unready().is_none());
    assert_eq!(bench.metrics.resyncs.get(), 1);
}

#[test]
fn a_store_that_was_left_for_longer_than_the_grace_is_empty_before_the_log_answers() {
    let grace = Some(Duration::from_secs(3_600 * 24));
    for (left, trusted) in [(3_600 * 23, true), (3_600 * 25, false), (-3_600 * 24 * 365, false)] {
        let dir = folder();
        let bench = Bench::start(dir.path(), "c", 0..1);
        bench.set(0, "k", "v");
        bench.wait("ready", |bench| bench.progress.unready().is_none());
        let store = Arc::clone(&bench.store);
        drop(bench);
        store.note_caught_up(wall_ms(now_ms() - left * 1000)).expect("written");
        let away = Some("it does not answer");
        let bench = Bench::start_on(Arc::clone(&store), "t", "c", 0..1, away, grace);
        bench.wait("refused", |bench| matches!(bench.progress.phase(), Phase::Failed(_)));
        assert_eq!(bench.progress.restored(), trusted, "left for {left} s");
        assert_eq!(bench.value("k").is_some(), trusted, "left for {left} s");
        assert_eq!(bench.metrics.resyncs.get(), u64::from(!trusted), "left for {left} s");
        drop(bench);
        // And with the log: from its start, or on from where it stood.
        let bench = Bench::start_on(store, "t", "c", 0..1, None, grace);
        let from = i64::from(trusted);
        bench.wait("reading", |bench| *bench.log.started.lock().expect("no panic") == [from]);
    }
}

/// This machine's clock was set back, so the store looks fresh; the log's clock knows better.
#[test]
fn the_logs_clock_tells_the_age_of_a_store_too() {
    let grace = Some(Duration::from_secs(3_600));
    let dir = folder();
    let bench = Bench::start(dir.path(), "c", 0..1);
    bench.set(0, "gone", "old");
    bench.wait("ready", |bench| bench.progress.unready().is_none());
    let store = Arc::clone(&bench.store);
    drop(bench);
    store.note_caught_up(wall_ms(now_ms())).expect("written");
    let mut bench = Bench::start_on(store, "t", "c", 0..9, None, grace);
    bench.wait("reading", |bench| *bench.log.started.lock().expect("no panic") == [1]);
    bench.wait("it serves", |bench| bench.progress.restored());
    let late = std::mem::replace(&mut bench.steps, channel().0);
    bench.becomes("c", 0..9);
    late.send(Step::LogTime(now_ms() + 3_700_000)).expect("the replica reads");
    bench.wait("from the start", |bench| *bench.log.started.lock().expect("no panic") == [1, 0]);
    bench.feed(Step::End(9));
    bench.wait("ready again", |bench| bench.progress.unready().is_none());
    assert_eq!(bench.value("gone"), None);
}

#[test]
fn a_topics_id_is_learnt_by_a_store_that_had_none_and_tells_topics_apart() {
    let id = |id: Option<&str>| LogIdentity {
        cluster: "c".into(),
        topic: "t".into(),
        topic_id: id.map(str::to_owned),
    };
    assert!(
        id(None).fits(&id(Some("1"))) && id(Some("1")).fits(&id(None)) && id(Some("1")).fits(&id(Some("1")))
    );
    assert!(!id(Some("1")).fits(&id(Some("2"))));
    assert!(!id(None).fits(&LogIdentity { topic: "u".into(), ..id(None) }));
    let old: LogIdentity =
        serde_json::from_str(r#"{"cluster":"c","topic":"t"}"#).expect("of an older version");
    assert_eq!(old, id(None));
}

#[test]
fn only_a_later_record_among_those_that_were_read_tells_that_the_log_went_back() {
    let known = Checkpoint {
        identity: None,
        restored: true,
        next: vec![NextOffset(5)],
        latest: vec![Some(log_ms(1_004))],
        epochs: vec![None],
        caught_up_at: None,
    };
    let look = |later: Option<i64>, steps: &[Step]| {
        let log = Scripted::new("t", "c", 0..9);
        *log.later.lock().expect("no panic") = later;
        let script = log.script();
        for step in steps {
            script.send(step.clone()).expect("there is a reader");
        }
        let patience = Duration::from_millis(300);
        let found = truncated_and_regrown(&log, &known, patience, &AtomicBool::new(false));
        (found.ok().map(|found| found.is_some()), log.started.lock().expect("no panic").first().copied())
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
fn a_log_that_went_back_and_grew_again_while_it_was_silent_is_read_into_a_new_store() {
    let dir = folder();
    let mut bench = Bench::start(dir.path(), "c", 0..3);
    bench.set(0, "k", "v");
    bench.set(1, "lost", "v");
    bench.set(2, "lost too", "v");
    bench.wait("ready", |bench| bench.progress.unready().is_none());
    bench.log.silent.store(true, Ordering::Relaxed);
    bench.wait("the silence is noticed", |bench| !bench.progress.caught_up());
    // Before anybody has looked, some of the new records are applied upon the old ones.
    *bench.log.later.lock().expect("no panic") = Some(1);
    *bench.log.high_watermark.lock().expect("no panic") = 5;
    *bench.log.range.lock().expect("no panic") = 0..5;
    bench.feed(Step::At { offset: 3, timestamp: 9_003 });
    bench.feed(Step::At { offset: 4, timestamp: 9_004 });
    bench.applied(4);
    // Who notices, who opens it anew, and the reader.
    for _ in 0..2 {
        bench.log.script().send(Step::At { offset: 1, timestamp: 9_001 }).expect("there is a reader");
    }
    bench.steps = bench.log.script();
    bench.log.silent.store(false, Ordering::Relaxed);
    bench.wait("it is built anew", |bench| bench.metrics.resyncs.get() == 1);
    assert!(bench.value("lost").is_some() && bench.progress.restored(), "the old store answers");
    *bench.log.later.lock().expect("no panic") = None;
    bench.set(0, "k", "v");
    bench.feed(Step::At { offset: 4, timestamp: 9_004 });
    bench.wait("switched", |bench| bench.value("lost").is_none());
    bench.wait("caught up", |bench| bench.progress.caught_up());
    assert_eq!(bench.value("k").as_deref(), Some("another"));
    assert_eq!(bench.metrics.resyncs.get(), 1);
}

proptest! {
    #[test]
    fn any_record_is_a_change_that_its_position_allows_or_poison_with_a_reason(
        offset in 0..i64::MAX, named in prop_oneof![0..100_i64, any::<i64>()], timestamp: i64, until: i64, kind in 0..5_u8,
        key in prop::option::of(prop_oneof![
            Just(b"key".to_vec()),
            any::<Vec<u8>>(),
            (1..5_000_usize).prop_map(|length| vec![b'k'; length]),
        ]),
        value in prop::option::of(any::<Vec<u8>>()),
        text in ".{0,20}",
        ttl: i64,
        damages in damages(),
    ) {
        const MAX_KEY: usize = 1_024;
        let (timestamp, until) = (log_ms(timestamp), log_ms(until));
        let at = Position { partition: 3, offset };
        let condition = match kind {
            0 => Some(Condition::Trim { offset: named, until, log: LOG }),
            1 => Some(Condition::Repair { offset: named, timestamp, until, log: LOG }),
            2 => Some(Condition::Unreadable),
            _ => None,
        };
        let mut encoded = Vec::new();
        KeyValue { key: "key", value: &text, timestamp: timestamp.ms(), source: 3, ttl, uuid: "u" }.encode(&mut encoded);
        let damaged = damaged(&encoded, &damages);
        for value in [value.as_deref(), Some(encoded.as_slice()), Some(&damaged)] {
            let record = LogRecord { position: at, timestamp, key: key.as_deref(), value, condition, epoch: None };
            match decode(&record, MAX_KEY, LOG) {
                Ok((found, change)) => {
                    prop_assert!(!found.is_empty() && found.len() <= MAX_KEY && std::str::from_utf8(found).is_ok());
                    prop_assert_eq!(Some(found), key.as_deref());
                    match change {
                        Change::Write(entry) => {
                            prop_assert!(condition.is_none() && entry.position() == at && entry.is_of(found));
                        }
                        Change::Repair { at: lies, entry, .. } => {
                            prop_assert!(lies == at && entry.is_of(found) && timestamp <= until);
                            prop_assert!((0..offset).contains(&entry.position().offset));
                        }
                        Change::Trim { at: lies, offset: of, .. } => {
                            prop_assert!(lies == at && (0..offset).contains(&of) && value.is_none() && timestamp <= until);
                        }
                        Change::Nothing { at: lies, .. } => {
                            let late = condition.is_some() && until < timestamp;
                            prop_assert!(lies == at && late, "poison is told as an error");
                        }
                    }
                }
                Err(reason) => {
                    prop_assert!(!reason.is_empty());
                    let of_the_key = key.as_deref() == Some(b"key") && value == Some(encoded.as_slice());
                    let sound = of_the_key && condition.is_none();
                    prop_assert!(!sound, "{}", reason);
                }
            }
        }
        let record = LogRecord { position: at, timestamp, key: Some(b"key"), value: Some(&encoded), condition: None, epoch: None };
        let (_, change) = decode(&record, MAX_KEY, LOG).expect("it is whole");
        let Change::Write(entry) = change else { panic!("it is a write") };
        let found = (entry.record_bytes(), entry.ttl(), entry.timestamp());
        prop_assert_eq!(found, (encoded.as_slice(), ttl, timestamp));
    }
}
