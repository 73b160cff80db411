//! A reader against a model: whatever happens to two nodes, to the buffer and to the connection, each key is told in the order in which
//! it changed, and its last state is told.

mod cases;
mod limits;
mod pages;
mod tokens;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bitacora_protocol::record::{KeyValue, source, ttl};
use bitacora_protocol::{NextOffset, Position};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::clock::manual::ManualClock;
use crate::clock::{Clock as _, LogTime};
use crate::data_dir::DataDir;
use crate::log::embedded::EmbeddedLog;
use crate::log::{Log, PartitionRead};
use crate::permits::Permits;
use crate::replication::feed::Change;
use crate::replication::state::Event;
use crate::store::Entry;

const PARTITIONS: i32 = 2;
/// Of the buffer: some events.
const CAPACITY: usize = 6_000;

/// A record of the log.
#[derive(Clone, Debug)]
struct Written {
    key: String,
    position: Position,
    ttl: i64,
}

/// All records, in the order in which they were appended.
#[derive(Default)]
struct ModelLog {
    records: Vec<Written>,
    next: [i64; PARTITIONS as usize],
}

impl ModelLog {
    fn append(&mut self, number: u8, ttl: i64) {
        let partition = i32::from(number) % PARTITIONS;
        let next = &mut self.next[partition as usize];
        let position = Position { partition, offset: *next };
        *next += 1;
        let key = format!("{}/{number}", if number.is_multiple_of(3) { "a" } else { "b" });
        self.records.push(Written { key, position, ttl });
    }

    /// What is live of the first records when everything that expired by then is gone.
    fn live(&self, records: usize, now: i64) -> BTreeMap<String, Position> {
        let mut live = BTreeMap::new();
        for record in &self.records[..records] {
            if record.ttl == ttl::FOR_EVER || record.ttl > now {
                live.insert(record.key.clone(), record.position);
            } else {
                live.remove(&record.key);
            }
        }
        live
    }
}

/// A node that applies the log when it is told to.
struct Node {
    changes: Arc<Changes>,
    clock: ManualClock,
    applied: usize,
    _dir: tempfile::TempDir,
}

impl Node {
    fn new(clock: &ManualClock, max_watchers: u32, retention: Option<Duration>) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let store = Arc::new(Store::open(&dir.path().join("store"), 1 << 20).expect("a store"));
        let folder = DataDir::open(&dir.path().join("log")).expect("a folder");
        let log: Arc<dyn Log> = Arc::new(EmbeddedLog::open(folder, "t", PARTITIONS as usize).expect("a log"));
        let progress = Arc::new(Progress::new(Arc::new(clock.clone())));
        let metrics = Arc::new(Metrics::new().expect("names differ"));
        let next = vec![NextOffset(0); PARTITIONS as usize];
        progress.begin_reading(&next, Event::StoreEmptied).expect("possible");
        progress.note_caught_up().expect("restored");
        let feed = Arc::new(Feed::with_capacity(CAPACITY));
        feed.restart(LogTag(7), &next, clock.wall());
        let memory = Memory::unlimited();
        let consistent =
            ConsistentReads::new(log, Arc::clone(&progress), memory.clone(), Arc::clone(&metrics));
        let consistent = Arc::new(consistent);
        let changes = Changes::new(Parts {
            store,
            progress,
            feed,
            consistent,
            memory,
            metrics,
            watchers: Permits::new(max_watchers),
            retention,
        });
        let mut node = Self { changes: Arc::new(changes), clock: clock.clone(), applied: 0, _dir: dir };
        node.apply(&ModelLog::default(), 0);
        node
    }

    /// Applies so many records in one transaction.
    fn apply(&mut self, log: &ModelLog, records: usize) {
        let until = log.records.len().min(self.applied + records);
        let batch = &log.records[self.applied..until];
        let mut changes: Vec<_> =
            batch.iter().map(|record| (record.key.as_bytes(), entry(record).into())).collect();
        let mut next = vec![NextOffset(0); PARTITIONS as usize];
        for record in &log.records[..until] {
            next[record.position.partition as usize] = NextOffset::after(record.position.offset);
        }
        let read: Vec<_> =
            (0..).zip(&next).map(|(partition, next)| PartitionRead::up_to(partition, *next)).collect();
        let feed = &self.changes.feed;
        let mut told = feed.wants_changes().then(Vec::new);
        self.changes
            .store
            .apply_telling(&mut changes, &read, &mut |key, change| {
                let key = std::str::from_utf8(key).expect("text").into();
                if let Some(told) = &mut told {
                    told.push(Change { key, change });
                }
            })
            .expect("applied");
        self.changes.progress.note_applied(&read);
        feed.push(told, &next);
        self.applied = until;
    }

    fn tell_expiries(&self) {
        self.changes.feed.tell_expiries(&self.changes.store, self.clock.wall()).expect("told");
    }

    fn begin(&self, wanted: &Wanted<'_>) -> Reader {
        self.changes.begin(wanted).expect("a reader")
    }
}

fn entry(record: &Written) -> Entry {
    let Written { key, position, ttl } = record;
    let record = KeyValue { key, value: "v", timestamp: 1, source: source::PRODUCER, ttl: *ttl, uuid: "u" };
    Entry::new(*position, LogTime::from_ms(1), &record)
}

/// What a client knows.
#[derive(Default)]
struct Client {
    live: BTreeMap<String, Position>,
    told: BTreeMap<String, (Position, bool)>,
    last_token: Option<String>,
    events: usize,
}

impl Client {
    fn hear(&mut self, told: &Told) -> Result<(), TestCaseError> {
        self.events += 1;
        self.last_token = Some(told.token());
        let What::Event(event) = &told.what else {
            return Err(TestCaseError::fail("a gap, though nothing was lost"));
        };
        let (key, position, is_set) = (event.key.to_string(), event.position(), event.kind == Kind::Set);
        if let Some((before, was_set)) = self.told.get(&key) {
            prop_assert!(position.offset >= before.offset, "{key} went back from {before} to {position}");
            let is_repeated = position != *before || *was_set || !is_set;
            prop_assert!(is_repeated, "{key} came back at {position}");
        }
        self.told.insert(key.clone(), (position, is_set));
        if is_set {
            self.live.insert(key, position);
        } else {
            self.live.remove(&key);
        }
        Ok(())
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write {
        key: u8,
        lives: Option<u16>,
    },
    Delete(u8),
    Apply {
        node: usize,
        records: usize,
    },
    Pass(u16),
    Expire(usize),
    Read {
        limit: usize,
    },
    /// The connection is cut; the client goes on at a node, from the last event it saw or from what was told after it.
    Resume {
        node: usize,
        from_event: bool,
    },
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u8..9, proptest::option::weighted(0.3, 1u16..3_000)).prop_map(|(key, lives)| Step::Write { key, lives }),
        1 => (0u8..9).prop_map(Step::Delete),
        4 => (0usize..2, 1usize..9).prop_map(|(node, records)| Step::Apply { node, records }),
        1 => (0u16..2_000).prop_map(Step::Pass),
        1 => (0usize..2).prop_map(Step::Expire),
        3 => (1usize..4).prop_map(|limit| Step::Read { limit }),
        1 => (0usize..2, any::<bool>()).prop_map(|(node, from_event)| Step::Resume { node, from_event }),
    ]
}

/// Reads once. Returns whether there may be more.
async fn read(reader: &mut Reader, client: &mut Client, limit: usize) -> Result<bool, TestCaseError> {
    let read = reader.read(limit, usize::MAX).await.expect("it tells");
    prop_assert!(read.events.len() <= limit, "{} events", read.events.len());
    for told in &read.events {
        client.hear(told)?;
    }
    Ok(read.more)
}

/// Whether a client that began with the first records knows all that was told up to there, or newer.
fn knows(log: &ModelLog, client: &Client, told: &[Position], prefix: &str) -> Result<(), TestCaseError> {
    let is_told = |at: Position| told.iter().any(|to| to.partition == at.partition && at.offset <= to.offset);
    let mut newest = BTreeMap::new();
    for record in log.records.iter().filter(|record| is_told(record.position)) {
        newest.insert(&record.key, record);
    }
    for (key, record) in newest.into_iter().filter(|(key, _)| key.starts_with(prefix)) {
        let known = client.live.get(key).map(|known| known.offset);
        let last = client.told.get(key).map(|(told, _)| told.offset).or(known);
        let follows = |later: &Written| later.key == *key && later.position.offset > record.position.offset;
        let ended_later = log.records.iter().any(|later| follows(later) && later.ttl != ttl::FOR_EVER);
        let is_known = match record.ttl {
            // A scan may have found that the key is no more.
            _ if known.is_none() && ended_later => true,
            // It may have expired before it could be told.
            until if until > 0 => known.is_none_or(|known| known >= record.position.offset),
            ttl::DELETED => known.is_none_or(|known| known > record.position.offset),
            _ => last.is_some_and(|last| last >= record.position.offset),
        };
        prop_assert!(is_known, "told up to {told:?}, and not of {record:?}: {known:?}");
    }
    Ok(())
}

async fn run(steps: Vec<Step>, initial: bool, prefix: &str) -> Result<(), TestCaseError> {
    let clock = ManualClock::new();
    let mut log = ModelLog::default();
    let mut nodes = [Node::new(&clock, 8, None), Node::new(&clock, 8, None)];
    for key in 0..5 {
        log.append(key, ttl::FOR_EVER);
    }
    nodes[0].apply(&log, 5);
    let mut client = Client::default();
    let mut reader = nodes[0].begin(&Wanted { prefix, initial, ..Wanted::default() });
    if !initial {
        client.live = log.live(5, clock.wall().ms());
        client.live.retain(|key, _| key.starts_with(prefix));
    }
    let mut at = 0;
    for step in steps {
        match step {
            Step::Write { key, lives } => {
                let until = lives.map_or(ttl::FOR_EVER, |ms| clock.wall().ms() + i64::from(ms));
                log.append(key, until);
            }
            Step::Delete(key) => log.append(key, ttl::DELETED),
            Step::Apply { node, records } => nodes[node].apply(&log, records),
            Step::Pass(ms) => clock.pass(Duration::from_millis(ms.into())),
            Step::Expire(node) => nodes[node].tell_expiries(),
            Step::Read { limit } => {
                read(&mut reader, &mut client, limit).await?;
                knows(&log, &client, &reader.positions(), prefix)?;
            }
            Step::Resume { node, from_event } => {
                let told = reader.token().encode();
                let since = client.last_token.clone().filter(|_| from_event).unwrap_or(told);
                at = node;
                reader = nodes[node].begin(&Wanted { since: &since, prefix, ..Wanted::default() });
            }
        }
    }
    clock.pass(Duration::from_secs(5));
    for node in &mut nodes {
        node.apply(&log, usize::MAX / 2);
        node.tell_expiries();
    }
    while read(&mut reader, &mut client, 3).await? {}
    let mut expected = log.live(log.records.len(), clock.wall().ms());
    expected.retain(|key, _| key.starts_with(prefix));
    prop_assert_eq!(&client.live, &expected, "at node {} after {} events", at, client.events);
    let last = log.next.map(|next| next - 1);
    let last = [0, 1].map(|partition| Position { partition, offset: last[partition as usize] });
    prop_assert!(reader.is_current(&last));
    Ok(())
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime").block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn each_key_is_told_in_order_and_to_its_last_state(
        steps in vec(steps(), 1..120), initial: bool, prefix in "|a/|b/",
    ) {
        block_on(run(steps, initial, &prefix))?;
    }
}
