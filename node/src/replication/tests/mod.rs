//! The replica over a log whose every answer is scripted: faults that a real broker can't be made to show at will. Both
//! halves are taken step by step, without threads, and the clock shows what the test says.

use std::collections::VecDeque;
use std::path::Path;

use bitacora_protocol::record::{KeyValue, source};
use proptest::prelude::*;

use super::apply::decode;
use super::progress::Phase;
use super::*;
use crate::clock::manual::ManualClock;
use crate::clock::{Clock as _, LogTime, WallTime};
use crate::log::{
    Batch, Condition, Level, LogInfo, LogReader, LogRecord, LogTag, NewRecord, OpenError, ReadError,
    Unsettled,
};
use crate::store::{Change, Judgement, Writer};
use crate::testing::damage::{damaged, damages};
use bitacora_protocol::{HighWatermark, NextOffset, Position};

mod attempts;
mod held_back;
mod log_replaced;
mod records;
mod restore;
mod signs_of_life;
mod told;
mod too_old;
mod truncated;

/// The log does not say which it is.
const LOG: LogTag = LogTag(0);
/// The scripted records are of 1970.
const RETENTION: Duration = Duration::from_hours(100 * 365 * 24);
/// More rounds than any of these tests needs: the clock passes half a minute in them.
const MAX_ROUNDS: u32 = 120;

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
    /// A record that tells the partition's level.
    Level {
        offset: i64,
        level: u32,
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

/// What a reader finds, one step a poll.
#[derive(Clone, Default)]
struct Script(Arc<Mutex<VecDeque<Step>>>);

impl Script {
    fn push(&self, step: Step) {
        self.0.lock().push_back(step);
    }
}

/// What happens while the log is being opened; it is given what the log calls after each question.
type WhileOpening = Box<dyn FnMut(&dyn Fn()) + Send>;

struct Scripted {
    topic: &'static str,
    cluster: Mutex<&'static str>,
    range: Mutex<std::ops::Range<i64>>,
    retention: Option<Duration>,
    high_watermark: Mutex<i64>,
    /// A script for each reader.
    scripts: Mutex<VecDeque<Script>>,
    /// Where each reader was told to start.
    started: Mutex<Vec<i64>>,
    refuses: Option<&'static str>,
    /// Whether it does not tell the high watermark.
    silent: AtomicBool,
    /// Whether a partition is told of alone, whatever `silent` says.
    partition_answers: AtomicBool,
    /// Where the first is that is later than what was read.
    later: Mutex<Option<i64>>,
    while_opening: Mutex<Option<WhileOpening>>,
}

impl Scripted {
    fn new(topic: &'static str, cluster: &'static str, range: std::ops::Range<i64>) -> Self {
        Self {
            topic,
            cluster: Mutex::new(cluster),
            high_watermark: Mutex::new(range.end),
            range: Mutex::new(range),
            retention: None,
            scripts: Mutex::default(),
            started: Mutex::default(),
            refuses: None,
            silent: AtomicBool::new(false),
            partition_answers: AtomicBool::new(false),
            later: Mutex::default(),
            while_opening: Mutex::default(),
        }
    }

    /// One more reader, and what it finds.
    fn script(&self) -> Script {
        let script = Script::default();
        self.scripts.lock().push_back(script.clone());
        script
    }

    fn identity(&self) -> LogIdentity {
        let cluster = (*self.cluster.lock()).to_owned();
        LogIdentity { cluster, topic: self.topic.to_owned(), topic_id: None }
    }
}

impl Log for Scripted {
    fn is_unchanged(&self, identity: &LogIdentity, _: usize) -> bool {
        self.identity() == *identity
    }

    fn delete_retention(&self) -> Option<Duration> {
        self.retention
    }

    fn topic(&self) -> &str {
        self.topic
    }

    fn open(&self, answered: &dyn Fn()) -> Result<LogInfo, OpenError> {
        if let Some(while_opening) = &mut *self.while_opening.lock() {
            while_opening(answered);
        }
        if let Some(reason) = self.refuses {
            return Err(OpenError::Refused(reason.to_owned()));
        }
        let partitions = vec![self.range.lock().clone()];
        Ok(LogInfo { identity: self.identity(), partitions, compaction_lag: Duration::from_hours(1) })
    }

    fn hand_over(&self, _: &NewRecord, _: Unsettled) {
        unreachable!("these tests only read")
    }

    fn check_trimming(&self) -> Result<(), String> {
        unreachable!("these tests only read")
    }

    fn reader(&self, from: &[NextOffset], _: &[Option<i32>]) -> Result<Box<dyn LogReader>, ReadError> {
        self.started.lock().push(from[0].0);
        match self.scripts.lock().pop_front() {
            Some(script) => Ok(Box::new(ScriptedReader(script))),
            None => Err(ReadError::Unavailable("the script is over".to_owned())),
        }
    }

    fn first_offsets_after(&self, _: &[Option<LogTime>]) -> Result<Vec<Option<i64>>, ReadError> {
        Ok(vec![*self.later.lock()])
    }

    fn high_watermarks(&self) -> Result<Vec<HighWatermark>, ReadError> {
        if self.silent.load(Ordering::Relaxed) {
            return Err(ReadError::Unavailable("not a word".to_owned()));
        }
        Ok(vec![HighWatermark(*self.high_watermark.lock())])
    }

    fn high_watermark(&self, _: i32) -> Result<HighWatermark, ReadError> {
        if self.partition_answers.load(Ordering::Relaxed) {
            return Ok(HighWatermark(*self.high_watermark.lock()));
        }
        Err(ReadError::Unavailable("not a word".to_owned()))
    }

    fn flush(&self, _: Duration) {}
}

struct ScriptedReader(Script);

impl LogReader for ScriptedReader {
    fn poll(&mut self, _: Duration, batch: &mut Batch) -> Result<(), ReadError> {
        let mut push = |offset, timestamp, key: Option<&[u8]>, value: Option<&[u8]>, condition, level| {
            let (position, timestamp) = (Position { partition: 0, offset }, log_ms(timestamp));
            batch.push(LogRecord { position, timestamp, key, value, condition, level, epoch: None });
        };
        match self.0.0.lock().pop_front() {
            Some(Step::Record { offset, key, value }) => {
                push(offset, 1_000 + offset, key, value.as_deref(), None, None);
            }
            Some(Step::ConditionalRecord { offset, key, value, condition }) => {
                let (key, condition) = (Some(key.as_bytes()), Some(condition));
                push(offset, 1_000 + offset, key, value.as_deref(), condition, None);
            }
            Some(Step::At { offset, timestamp }) => {
                push(offset, timestamp, Some(b"k"), Some(&encoded("k", "another")), None, None);
            }
            Some(Step::Level { offset, level }) => {
                let key = Level::KEY.as_bytes();
                push(offset, 1_000 + offset, Some(key), Some(b"a marker"), None, Some(Level(level)));
            }
            Some(Step::End(next)) => batch.reached(0, NextOffset(next)),
            Some(Step::LogTime(time)) => batch.appended_at(log_ms(time)),
            Some(Step::Fails(error)) => return Err(error),
            None => {}
        }
        Ok(())
    }

    fn applied(&mut self, _: &[NextOffset]) {}
}

fn log_ms(ms: i64) -> LogTime {
    LogTime::from_ms(ms)
}

fn encoded(key: &str, value: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    KeyValue { key, value, timestamp: 1, source: source::PRODUCER, ttl: 0, uuid: "" }.encode(&mut bytes);
    bytes
}

/// What a replica starts with.
struct Setup {
    topic: &'static str,
    cluster: &'static str,
    range: std::ops::Range<i64>,
    refuses: Option<&'static str>,
    retention: Option<Duration>,
    clock: ManualClock,
}

impl Setup {
    /// The topic `t` of the cluster `c`.
    fn new(range: std::ops::Range<i64>) -> Self {
        let (topic, cluster, clock) = ("t", "c", ManualClock::new());
        Self { topic, cluster, range, refuses: None, retention: None, clock }
    }

    fn open(self, dir: &Path) -> Bench {
        self.on(Arc::new(Store::open(dir, 1 << 20).expect("the store opens")))
    }

    fn on(self, store: Arc<Store>) -> Bench {
        let Self { topic, cluster, range, refuses, retention, clock } = self;
        let log = Arc::new(Scripted { retention, refuses, ..Scripted::new(topic, cluster, range) });
        let script = log.script();
        let progress = Arc::new(Progress::new(Arc::new(clock.clone())));
        let alone = Parts::alone(log.clone(), store.clone(), RETENTION).expect("names differ");
        let (metrics, decisions) = (alone.metrics.clone(), alone.decisions.clone());
        let parts = Parts { progress: progress.clone(), ..alone };
        let (applier, watermarks) = halves(parts).expect("the store is readable");
        Bench { store, progress, metrics, decisions, log, script, clock, applier, watermarks }
    }
}

/// A replica, and the means to feed it.
struct Bench {
    store: Arc<Store>,
    progress: Arc<Progress>,
    metrics: Arc<Metrics>,
    decisions: Arc<Decisions>,
    log: Arc<Scripted>,
    script: Script,
    clock: ManualClock,
    applier: Applier,
    watermarks: Watermarks,
}

impl Bench {
    fn start(dir: &Path, range: std::ops::Range<i64>) -> Self {
        Setup::new(range).open(dir)
    }

    /// The log is another one from now on, with a script of its own. Returns the one of before.
    fn becomes(&mut self, cluster: &'static str, range: std::ops::Range<i64>) -> Script {
        *self.log.high_watermark.lock() = range.end;
        *self.log.range.lock() = range;
        *self.log.cluster.lock() = cluster;
        std::mem::replace(&mut self.script, self.log.script())
    }

    fn set(&self, offset: i64, key: &'static str, value: &str) {
        self.feed(Step::Record { offset, key: Some(key.as_bytes()), value: Some(encoded(key, value)) });
    }

    fn append_conditional(&self, offset: i64, key: &'static str, value: Option<&str>, condition: Condition) {
        let value = value.map(|value| encoded(key, value));
        self.feed(Step::ConditionalRecord { offset, key, value, condition });
    }

    fn feed(&self, step: Step) {
        self.script.push(step);
    }

    /// Both halves take a step, and a little time passes.
    fn round(&mut self) -> Next {
        self.clock.pass(Duration::from_millis(250));
        self.watermarks.step();
        self.applier.step()
    }

    /// Goes on until that is so.
    fn until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) {
        for _ in 0..MAX_ROUNDS {
            if condition(self) {
                return;
            }
            self.round();
        }
        let seen = (self.progress.phase(), self.progress.partitions(), self.progress.restore());
        panic!("never: {what}; last seen: {seen:?}");
    }

    fn until_ready(&mut self) {
        self.until("ready", |bench| bench.progress.unready().is_none());
    }

    /// The last reader was told to start there.
    fn until_reading_from(&mut self, offset: i64) {
        self.until("reading", |bench| bench.log.started.lock().last() == Some(&offset));
    }

    fn until_applied(&mut self, offset: i64) {
        self.until("applied", |bench| {
            bench.progress.partitions().first().is_some_and(|p| p.applied == offset)
        });
    }

    fn started(&self) -> Vec<i64> {
        self.log.started.lock().clone()
    }

    fn value(&self, key: &str) -> Option<String> {
        let (entry, _) = self.store.get(key.as_bytes()).expect("readable")?;
        Some(entry.value().unwrap_or("a tombstone").to_owned())
    }
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}
