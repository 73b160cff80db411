//! Trimming by the parts that do it in a node, over the embedded log.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bitacora_node::clock::{Clock as _, LogTime, SystemClock};
use bitacora_node::cluster::fixed::FixedMembership;
use bitacora_node::data_dir::DataDir;
use bitacora_node::log::embedded::EmbeddedLog;
use bitacora_node::log::{
    Appended, Batch, Condition, Log, LogInfo, LogReader, LogTag, NewRecord, OpenError, ReadError, Unsettled,
};
use bitacora_node::metrics::Metrics;
use bitacora_node::replication::{self, Replica};
use bitacora_node::store::Store;
use bitacora_node::trimming::{self, Trimming};
use bitacora_protocol::record::{KeyValue, source, ttl};
use bitacora_protocol::{HighWatermark, NextOffset};

const RETENTION: Duration = Duration::from_millis(1);
const PARTITIONS: usize = 2;

struct Node {
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    replica: Option<Replica>,
    trimming: Option<Trimming>,
    _dir: tempfile::TempDir,
}

impl Node {
    /// A node of two, the first of which trims.
    fn start(log: &Arc<EmbeddedLog>, name: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let store = Arc::new(Store::open(dir.path(), 1 << 20).expect("the store opens"));
        let parts = replication::Parts::alone(log.clone(), store.clone(), RETENTION).expect("names differ");
        let (progress, metrics) = (parts.progress.clone(), parts.metrics.clone());
        let membership = Arc::new(FixedMembership::new(vec!["first".into(), "second".into()], name));
        let replica = Replica::start(parts);
        let trimming = Trimming::start(trimming::Parts {
            log: log.clone(),
            membership,
            store: store.clone(),
            progress,
            metrics: metrics.clone(),
            retention: RETENTION,
            original_nodes: false,
        });
        let (replica, trimming) = (replica.expect("starts"), trimming.expect("starts"));
        Self { store, metrics, replica: Some(replica), trimming: Some(trimming), _dir: dir }
    }

    fn wait(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !condition(self) {
            assert!(Instant::now() < deadline, "never: {what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn has_something_of(&self, key: &str) -> bool {
        self.store.get(key.as_bytes()).expect("readable").is_some()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        assert_eq!(self.trimming.take().expect("once").stop(deadline), None);
        assert!(self.replica.take().expect("once").stop(deadline).is_empty());
    }
}

fn open(dir: &tempfile::TempDir) -> Arc<EmbeddedLog> {
    let dir = DataDir::open(dir.path()).expect("the folder is free");
    Arc::new(EmbeddedLog::open(dir, "t", PARTITIONS).expect("the log opens"))
}

fn append(log: &EmbeddedLog, key: &str, value: &str, ttl: i64) -> Appended {
    let mut bytes = Vec::new();
    KeyValue { key, value, timestamp: 0, source: source::PRODUCER, ttl, uuid: "" }.encode(&mut bytes);
    futures_executor::block_on(log.append(key, bytes, None)).expect("acknowledged")
}

/// The conditions of the log's records of a key, in order.
fn conditions(log: &EmbeddedLog, key: &str) -> Vec<Option<Condition>> {
    let mut batch = Batch::default();
    let mut reader = log.reader(&[NextOffset(0); PARTITIONS], &[]).expect("readable");
    reader.poll(Duration::from_secs(5), &mut batch).expect("readable");
    let of_key = batch.records().filter(|record| record.key == Some(key.as_bytes()));
    of_key.map(|record| record.condition).collect()
}

/// The offset in the trims that follow so many writes of a key; on a slow machine there may be more than one.
fn trimmed(log: &EmbeddedLog, key: &str, writes: usize) -> i64 {
    let mut all = conditions(log, key);
    let conditional = all.split_off(writes);
    assert_eq!(all, vec![None; writes]);
    let mut offsets: Vec<_> = conditional
        .iter()
        .map(|record| match record {
            Some(Condition::Trim { offset, .. }) => *offset,
            _ => panic!("{conditional:?}"),
        })
        .collect();
    offsets.dedup();
    let [offset] = offsets[..] else { panic!("{conditional:?}") };
    offset
}

#[test]
fn the_elected_node_trims_what_is_dead_and_all_forget_it() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let log = open(&dir);
    append(&log, "lives", "v", ttl::FOR_EVER);
    append(&log, "deleted", "v", ttl::FOR_EVER);
    let marker = append(&log, "deleted", "", ttl::DELETED);
    let expired = append(&log, "expired", "v", 1);
    let second = Node::start(&log, "second");
    second.wait("it has read all", |node| node.has_something_of("expired"));
    let first = Node::start(&log, "first");
    for node in [&first, &second] {
        node.wait("forgotten", |n| !n.has_something_of("deleted") && !n.has_something_of("expired"));
        node.wait("it is there", |node| node.has_something_of("lives"));
    }
    for (key, writes, dead) in [("deleted", 2, marker), ("expired", 1, expired)] {
        assert_eq!(trimmed(&log, key, writes), dead.position.offset);
    }
    assert_eq!(conditions(&log, "lives"), [None]);
    assert_eq!(second.metrics.tombstones_sent.get(), 0, "only the first trims");
    assert_eq!((first.metrics.trimmer.get(), second.metrics.trimmer.get()), (1, 0));
}

#[test]
fn a_log_that_was_quiet_for_long_is_asked_for_its_time() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let log = open(&dir);
    append(&log, "k", "v", ttl::FOR_EVER);
    let marker = append(&log, "k", "", ttl::DELETED);
    let barriers = || {
        let mut batch = Batch::default();
        let mut reader = log.reader(&[NextOffset(0); PARTITIONS], &[]).expect("readable");
        reader.poll(Duration::from_secs(5), &mut batch).expect("readable");
        batch.records().filter(|record| record.key == Some(NewRecord::BARRIER_KEY.as_bytes())).count()
    };
    // As long as a node takes the last record's time for the present.
    let clock = SystemClock::default();
    while clock.wall().ms_since(marker.timestamp.assuming_clocks_agree()) <= 1_000 {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(barriers(), 0);
    let node = Node::start(&log, "first");
    node.wait("it has asked", |_| barriers() > 0);
    node.wait("forgotten", |node| !node.has_something_of("k"));
    assert_eq!(trimmed(&log, "k", 2), marker.position.offset);
}

#[test]
fn a_late_tombstone_is_repaired_by_the_elected_node() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let log = open(&dir);
    let old = append(&log, "k", "old", ttl::FOR_EVER);
    let new = append(&log, "k", "new", ttl::FOR_EVER);
    let condition =
        Condition::Trim { offset: old.position.offset, until: LogTime::MAX, log: LogTag::default() };
    let late = NewRecord::conditional(old.position.partition, b"k".to_vec(), None, condition);
    let late = futures_executor::block_on(log.append_record(&late)).expect("acknowledged");
    let second = Node::start(&log, "second");
    // A store that was just built is built twice where a tombstone may have been missed.
    second.wait("it has read the tombstone", |node| node.metrics.records_void.get() == 2);
    let first = Node::start(&log, "first");
    for node in [&first, &second] {
        node.wait("the tombstone is read", |node| node.metrics.records_void.get() == 2);
        node.wait("nothing is needed", |node| node.store.stats().expect("readable").pending_repairs == 0);
        let (entry, _) = node.store.get(b"k").expect("readable").expect("not lost");
        assert_eq!((entry.position(), entry.timestamp()), (new.position, new.timestamp));
    }
    let (offset, timestamp) = (new.position.offset, new.timestamp);
    let until = late.timestamp + Duration::from_mins(1);
    let repair = Condition::Repair { offset, timestamp, until, log: LogTag::default(), reach: None };
    assert_eq!(conditions(&log, "k")[2], Some(condition));
    let mut repairs = conditions(&log, "k").split_off(3);
    repairs.dedup();
    assert_eq!(repairs, [Some(repair)]);
    first.wait("it is counted", |node| node.metrics.repairs_sent.get() > 0);
    assert_eq!(second.metrics.repairs_sent.get(), 0, "it leaves the pending to the other for a while");
}

/// The embedded log, which counts how often it was asked whether it can be trimmed.
struct CountingLog {
    log: Arc<EmbeddedLog>,
    checks: AtomicUsize,
}

impl Log for CountingLog {
    fn topic(&self) -> &str {
        self.log.topic()
    }

    fn open(&self, answered: &dyn Fn()) -> Result<LogInfo, OpenError> {
        self.log.open(answered)
    }

    fn hand_over(&self, record: &NewRecord, append: Unsettled) {
        self.log.hand_over(record, append);
    }

    fn check_trimming(&self) -> Result<(), String> {
        self.checks.fetch_add(1, Ordering::Relaxed);
        self.log.check_trimming()
    }

    fn reader(&self, from: &[NextOffset], epochs: &[Option<i32>]) -> Result<Box<dyn LogReader>, ReadError> {
        self.log.reader(from, epochs)
    }

    fn high_watermarks(&self) -> Result<Vec<HighWatermark>, ReadError> {
        self.log.high_watermarks()
    }

    fn flush(&self, deadline: Duration) {
        self.log.flush(deadline);
    }
}

#[test]
fn an_empty_log_is_not_looked_at_in_every_step() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (embedded, data) = (open(&dir), tempfile::tempdir().expect("a temporary folder"));
    let log = Arc::new(CountingLog { log: embedded, checks: AtomicUsize::new(0) });
    let store = Arc::new(Store::open(data.path(), 1 << 20).expect("the store opens"));
    let retention = Duration::from_hours(24);
    let parts = replication::Parts::alone(log.clone(), store.clone(), retention).expect("names differ");
    let (progress, metrics) = (parts.progress.clone(), parts.metrics.clone());
    let replica = Replica::start(parts).expect("starts");
    let membership = Arc::new(FixedMembership::new(vec!["first".into()], "first"));
    let original_nodes = false;
    let of_log = log.clone();
    let mut upkeep = trimming::Upkeep::new(trimming::Parts {
        log: of_log,
        membership,
        store,
        progress,
        metrics,
        retention,
        original_nodes,
    });
    let deadline = Instant::now() + Duration::from_secs(30);
    while log.checks.load(Ordering::Relaxed) == 0 {
        assert!(Instant::now() < deadline, "it is never looked at");
        upkeep.step();
        std::thread::yield_now();
    }
    let before = Instant::now();
    (0..100).for_each(|_| upkeep.step());
    // One more after ten seconds each.
    let most = 1 + before.elapsed().as_secs().div_ceil(10) as usize;
    assert!(log.checks.load(Ordering::Relaxed) <= most, "looked at {:?} times", log.checks);
    assert!(replica.stop(Instant::now() + Duration::from_secs(60)).is_empty());
}
