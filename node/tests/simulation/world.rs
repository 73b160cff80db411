//! What the nodes run in: time, the log with its compaction and its accidents, and what is on its way to it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use bitacora_node::clock::LogTime;
use bitacora_node::log::{Condition, ConditionalRecord, LogIdentity, LogRecord, LogTag};
use bitacora_node::store::Checkpoint;
use bitacora_protocol::record::{KeyValue, source, ttl};
use bitacora_protocol::{NextOffset, Position, partition_of};

use crate::random::Random;

pub const SECOND: i64 = 1_000;
pub const MINUTE: i64 = 60 * SECOND;
pub const HOUR: i64 = 60 * MINUTE;
/// `DELETE_RETENTION`.
pub const RETENTION: i64 = 10 * HOUR;
/// `delete.retention.ms`, its least.
pub const TOMBSTONES: i64 = RETENTION;
/// `min.compaction.lag.ms`.
pub const LAG: i64 = HOUR;
/// From a writer to the log, at most; and what a trimmer decided, if nothing holds it up.
pub const DELAY: i64 = MINUTE;
/// What holds a trimmer's record up, at most: its sender was suspended, or its connection hung.
pub const LONG: i64 = 3 * RETENTION;
/// How far a node's clock is off, unless somebody set it wrong.
pub const SKEW: i64 = MINUTE;
pub const KEYS: [&str; 5] = ["a", "b", "c", "d", "e"];

/// A mistake that the simulation is to catch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    None,
    /// The next offsets are committed in a transaction of their own, before the records.
    PositionsBeforeRecords,
    /// A trimmer's tombstone is taken for one that always deletes.
    UnconditionalTrims,
    /// A repair is taken for a write.
    UnconditionalRepairs,
    /// Nobody pays pending repairs.
    NoRepairs,
    /// A resync reads the log again, but leaves in the store what it holds.
    ResyncKeepsOldKeys,
    /// A node that was away for long goes on where it stood.
    NoResync,
    /// What other partitions hold of a key is not looked at by the trimmer.
    StrandedForgotten,
    /// A record that can't be decoded is skipped as if compaction did so, too.
    PoisonForgotten,
    /// What a trimmer sent takes effect however late it comes.
    LateTidies,
    /// A pending repair to a key that the partition holds nothing of is not paid.
    HollowDebts,
    /// A store that was just built is taken for what it seems.
    DoubtsIgnored,
    /// Nobody looks whether a log that was silent has gone back.
    GoneBackUnnoticed,
    /// It is not remembered under which leader a record was appended.
    EpochsForgotten,
    /// Nobody looks whether the topic is another one.
    AnotherTopicUnnoticed,
    /// A copy of another member's store is taken whatever it is of.
    AnyCopyWillDo,
    /// What a trimmer sent to the topic that was there before takes effect in this one.
    TidiesOfAnotherTopic,
}

/// What happens to the cluster and its nodes, besides what is everyday.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accident {
    Replaced,
    WentBack,
    StartMoved,
    CutOff,
    ClockSet,
    DiskCopied,
    DiskRestored,
    Lag,
}

impl Bug {
    /// The accident that brings it to light, where few runs have it as it must be.
    pub fn accident(self) -> Option<Accident> {
        match self {
            Self::EpochsForgotten => Some(Accident::WentBack),
            Self::TidiesOfAnotherTopic => Some(Accident::Replaced),
            _ => None,
        }
    }
}

#[derive(Clone)]
pub struct Record {
    pub offset: i64,
    pub timestamp: i64,
    pub key: &'static str,
    pub value: Option<Vec<u8>>,
    pub condition: Option<Condition>,
    /// Of the leader under which it was appended.
    pub epoch: i32,
    /// When the cleaner may remove this tombstone.
    horizon: Option<i64>,
}

#[derive(Clone, Default)]
pub struct Partition {
    pub records: Vec<Record>,
    /// The first offset that may be asked for.
    pub start: i64,
    pub end: i64,
    /// What the cleaner has been over.
    cleaned: i64,
    /// Its leaders' epochs, and where each began to append.
    epochs: Vec<(i32, i64)>,
    /// The last write of each key.
    writes: BTreeMap<&'static str, Write>,
}

impl Partition {
    fn epoch(&self) -> i32 {
        self.epochs.last().map_or(0, |(epoch, _)| *epoch)
    }

    /// Whether what was read under a leader's epoch, up to an offset, is still there, by this leader's word.
    pub fn has(&self, next: i64, epoch: Option<i32>) -> bool {
        let Some(epoch) = epoch else { return true };
        let ended =
            self.epochs.iter().find(|(later, _)| *later > epoch).map_or(self.end, |(_, began)| *began);
        epoch <= self.epoch() && next <= ended
    }
}

/// A record as its writer meant it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    pub position: Position,
    pub timestamp: i64,
    pub ttl: i64,
    pub value: String,
}

impl Write {
    /// What decides between partitions.
    pub fn age(&self) -> (i64, i64, i32) {
        (self.timestamp, self.position.offset, self.position.partition)
    }

    pub fn is_live(&self, now: i64) -> bool {
        self.ttl == ttl::FOR_EVER || self.ttl > now
    }
}

/// A record on its way to the log.
pub struct Sent {
    due: i64,
    partition: i32,
    key: &'static str,
    value: Option<Vec<u8>>,
    condition: Option<Condition>,
}

/// What a node sees of all this.
#[derive(Default)]
pub struct View {
    /// How far its clock is off.
    pub skew: i64,
    /// The log does not answer it.
    pub cut_off: bool,
    /// The log fails it once when it asks for the high watermarks, and once when it reads.
    pub silent: (bool, bool),
    pub trims: bool,
    /// It crashes when it has called the log so often again.
    pub crash_in: Option<u64>,
    /// It reads all there is at once, and nothing is in its way.
    pub whole: bool,
    /// What it has held when it had read everything: it never shows anything older.
    pub floor: Floor,
    /// The same of the store that it is taking from another.
    pub copied: Option<Floor>,
}

/// A write of each key.
pub type Floor = BTreeMap<&'static str, Write>;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub steps: u64,
    pub writes: u64,
    pub poison: u64,
    pub crashes: u64,
    pub disks: u64,
    pub backups: u64,
    pub clocks: u64,
    pub cuts: u64,
    pub topics: u64,
    pub back: u64,
    pub starts: u64,
    pub grown: u64,
    pub resyncs: u64,
    pub beside: u64,
    pub again: u64,
    pub snapshots: u64,
    pub trims: u64,
    pub trimmed: u64,
    pub void: u64,
    pub repairs: u64,
    pub swept: u64,
    pub compacted: u64,
    pub reads: u64,
    pub peer_reads: u64,
    pub compared: u64,
}

impl Counts {
    pub fn each(&self) -> [(&'static str, u64); 25] {
        [
            ("steps", self.steps),
            ("writes", self.writes),
            ("records that can't be decoded", self.poison),
            ("crashes", self.crashes),
            ("disks lost", self.disks),
            ("volumes restored from an old copy", self.backups),
            ("clocks set wrong", self.clocks),
            ("nodes cut off from the log", self.cuts),
            ("topics or clusters replaced", self.topics),
            ("partitions that went back", self.back),
            ("log starts moved", self.starts),
            ("partitions added", self.grown),
            ("stores emptied or built anew", self.resyncs),
            ("of them built beside the old one", self.beside),
            ("logs read once more", self.again),
            ("snapshots taken", self.snapshots),
            ("tombstones sent by trimmers", self.trims),
            ("records that they removed", self.trimmed),
            ("of them and of repairs void", self.void),
            ("repairs sent", self.repairs),
            ("keys swept", self.swept),
            ("records compacted away", self.compacted),
            ("reads checked", self.reads),
            ("of them answered by peers", self.peer_reads),
            ("comparisons of a whole replica", self.compared),
        ]
    }
}

pub struct World {
    pub bug: Bug,
    pub random: Random,
    pub now: i64,
    pub cluster: u64,
    pub topic: u64,
    pub log: Vec<Partition>,
    /// What a broker that lags has of each partition, and since when.
    lagging: Vec<(i64, Partition)>,
    /// All that was ever written, by partition, offset and timestamp.
    ever: BTreeMap<(i32, i64, i64), (&'static str, Write)>,
    sent: Vec<Sent>,
    pub nodes: Vec<View>,
    /// When the topic last got a partition.
    pub grown: i64,
    /// Whether Kafka compacts seldom.
    lazy: bool,
    /// How many of the keys are used; few make for many races.
    pub keys: usize,
    values: u64,
    pub counts: Counts,
    pub trace: Option<String>,
}

/// Adds a line to the trace, if there is one.
#[macro_export]
macro_rules! note {
    ($world:expr, $($text:tt)*) => {
        match &mut *$world {
            world => if world.trace.is_some() {
                let line = format!("{:>12} {}\n", world.now, format_args!($($text)*));
                world.trace.get_or_insert_default().push_str(&line);
            }
        }
    };
}

impl World {
    pub fn new(seed: u64, bug: Bug, nodes: usize, traced: bool) -> Self {
        let mut random = Random(seed);
        let partitions = 1 + random.index(2);
        // A log of many offsets is one that is worth a snapshot.
        let end = if random.one_in(2) { 30_000 } else { 0 };
        let view = |random: &mut Random| View { skew: random.between(-SKEW, SKEW), ..View::default() };
        let nodes = (0..nodes).map(|_| view(&mut random)).collect();
        let (keys, lazy) = (1 + random.index(KEYS.len()), random.one_in(3));
        let now = 1_000_000 * HOUR;
        let log = vec![Partition { end, ..Partition::default() }; partitions];
        let lagging = log.iter().map(|log| (now, log.clone())).collect();
        let (ever, sent, values) = Default::default();
        let trace = traced.then(String::new);
        let counts = Counts::default();
        let (cluster, topic, grown) = (1, 1, now);
        #[rustfmt::skip]
        let world = Self {
            bug, random, now, cluster, topic, log, lagging, ever, sent, nodes, grown, lazy, keys, values, counts, trace,
        };
        world
    }

    pub fn identity(&self) -> LogIdentity {
        LogIdentity {
            cluster: format!("c{}", self.cluster),
            topic: "t".to_owned(),
            topic_id: Some(format!("id{}", self.topic)),
        }
    }

    /// Whether a store is of this log, and up to its end.
    pub fn is_read_by(&self, checkpoint: &Checkpoint) -> bool {
        let ends = self.log.iter().map(|log| NextOffset(log.end));
        let of_this = checkpoint.identity == Some(self.identity()) || self.bug == Bug::AnotherTopicUnnoticed;
        of_this && checkpoint.next.iter().copied().eq(ends)
    }

    /// Lets time pass. What is on its way arrives.
    pub fn pass(&mut self, ms: i64) {
        self.now += ms;
        // In the order in which they arrive.
        self.sent.sort_by_key(|sent| sent.due);
        let late = self.sent.partition_point(|sent| sent.due <= self.now);
        let arrived: Vec<_> = self.sent.drain(..late).collect();
        for sent in arrived {
            self.append(sent);
        }
    }

    /// When the next record of a trimmer arrives.
    pub fn next_tidy(&self) -> Option<i64> {
        self.sent.iter().filter(|sent| sent.condition.is_some()).map(|sent| sent.due).min()
    }

    fn append(&mut self, sent: Sent) {
        let Sent { partition, key, value, condition, .. } = sent;
        // The topic has fewer partitions now.
        let Some(log) = self.log.get_mut(partition as usize) else { return };
        // Each partition is led by another broker, with a clock of its own.
        let timestamp = self.now + i64::from(partition) * 10;
        let offset = log.end;
        // Now and then an offset is a transaction's marker.
        log.end += if self.random.one_in(20) { 2 } else { 1 };
        if condition.is_none() {
            let write = match value.as_deref().map(KeyValue::decode) {
                None => Some((ttl::DELETED, "")),
                Some(Ok(record)) => Some((record.ttl, record.value)),
                // It says nothing of its key, although compaction prefers it to what does.
                Some(Err(_)) => None,
            };
            match write {
                Some((ttl, text)) => {
                    let position = Position { partition, offset };
                    let write = Write { position, timestamp, ttl, value: text.to_owned() };
                    log.writes.insert(key, write.clone());
                    self.ever.insert((partition, offset, timestamp), (key, write));
                }
                None => self.counts.poison += 1,
            }
        }
        note!(self, "{partition}:{offset} {key} {} {condition:?}", show(value.as_deref()));
        let log = &mut self.log[partition as usize];
        let record = Record { offset, timestamp, key, value, condition, epoch: log.epoch(), horizon: None };
        log.records.push(record);
    }

    fn send(&mut self, key: &'static str, value: Option<Vec<u8>>, partition: i32) {
        let due = match self.random.below(20) {
            // Never acknowledged, never there.
            0 => return,
            1..6 => self.now + self.random.between(0, DELAY),
            _ => self.now,
        };
        self.sent.push(Sent { due, partition, key, value, condition: None });
        self.pass(0);
    }

    /// What a trimmer sends is on its way for so long. Now and then somebody writes the key meanwhile.
    pub fn send_tidy(&mut self, tidy: ConditionalRecord, delay: i64) {
        if delay > 0 && self.random.one_in(2) {
            self.counts.writes += 1;
            let text = self.value();
            let value = Some(encode(known(&tidy.key), &text, ttl::FOR_EVER));
            let due = self.now + self.random.between(0, delay.min(DELAY));
            let (partition, key) = (tidy.partition, known(&tidy.key));
            self.sent.push(Sent { due, partition, key, value, condition: None });
        }
        let ConditionalRecord { partition, key, value, condition } = tidy;
        let (due, key) = (self.now + delay, known(&key));
        self.sent.push(Sent { due, partition, key, value, condition: Some(condition) });
        self.pass(0);
    }

    /// What Kafka's cleaner may do now: remove, as far as everything is old enough, what a newer record of its key follows
    /// there, up to some segment if it is interrupted; and tombstones, a while after they were first cleaned.
    pub fn compact(&mut self) {
        if self.lazy && !self.random.one_in(30) {
            return;
        }
        let partition = self.random.index(self.log.len());
        let (now, random) = (self.now, &mut self.random);
        let log = &mut self.log[partition];
        // `timestamp` may lie ahead of `now` by the broker's clock.
        let young = log.records.iter().find(|record| record.timestamp > now - LAG);
        let bound = young.map_or(log.end, |record| record.offset);
        // A segment may end anywhere; right behind a trimmer's record it is of most interest.
        let end = match random.below(3) {
            0 => random.between(log.cleaned.min(bound), bound),
            1 => {
                let conditional = || log.records.iter().filter(|r| r.condition.is_some() && r.offset < bound);
                let nth = random.index(conditional().count());
                conditional().nth(nth).map_or(bound, |record| record.offset + 1)
            }
            _ => bound,
        };
        // It goes from the oldest segment to the newest.
        let done = if random.one_in(5) { random.between(0, end) } else { end };
        log.cleaned = log.cleaned.max(done);
        let mut newest = BTreeMap::new();
        for record in log.records.iter().filter(|record| record.offset < end) {
            newest.insert(record.key, record.offset);
        }
        let before = log.records.len();
        log.records.retain_mut(|record| {
            if record.offset >= done {
                return true;
            }
            let is_newest = newest[record.key] == record.offset;
            if is_newest && record.value.is_none() {
                return *record.horizon.get_or_insert(now + TOMBSTONES) > now;
            }
            is_newest
        });
        let gone = before - log.records.len();
        self.counts.compacted += gone as u64;
        note!(self, "compacted {partition} up to {end}: {gone} records less");
    }

    /// Everything that may be compacted is, however seldom that else happens.
    pub fn compact_all(&mut self) {
        let lazy = std::mem::take(&mut self.lazy);
        for _ in 0..2 * self.log.len() {
            self.compact();
        }
        self.lazy = lazy;
    }

    // Accidents.

    pub fn grow(&mut self) {
        if self.log.len() < 4 {
            self.log.push(Partition::default());
            self.lagging.push((self.now, Partition::default()));
            self.grown = self.now;
            self.counts.grown += 1;
            let partitions = self.log.len();
            note!(self, "the topic has {partitions} partitions now");
        }
    }

    /// Somebody deletes the topic and creates it again, or another cluster answers at the address.
    pub fn replace(&mut self) {
        self.topic += 1;
        if self.random.one_in(3) {
            self.cluster += 1;
        }
        let partitions = 1 + self.random.index(2);
        self.log = vec![Partition::default(); partitions];
        self.lagging = vec![(self.now, Partition::default()); partitions];
        self.grown = self.now;
        self.counts.topics += 1;
        let identity = self.identity();
        note!(self, "now it is {identity} with {partitions} partitions");
    }

    /// A broker that lags notes how far it is.
    pub fn lag(&mut self) {
        let partition = self.random.index(self.log.len());
        self.lagging[partition] = (self.now, self.log[partition].clone());
    }

    /// A broker that lags becomes the leader of a partition: acknowledged records are lost, and the log says so to nobody. What
    /// trimmers had under way is lost, too: it spoke of records that are no more.
    /// Whether there was such a broker.
    pub fn go_back(&mut self) -> bool {
        let partition = self.random.index(self.log.len());
        let (since, lagging) = self.lagging[partition].clone();
        let lost = self.log[partition].end - lagging.end;
        if lost == 0 || self.now - since > LAG / 4 {
            return false;
        }
        let (from, to) = (self.log[partition].end, lagging.end);
        note!(self, "partition {partition} goes back from {from} to {to}");
        let epoch = self.log[partition].epoch() + 1;
        self.log[partition] = lagging;
        self.log[partition].epochs.push((epoch, to));
        self.sent.retain(|sent| sent.condition.is_none() || sent.partition as usize != partition);
        for node in &mut self.nodes {
            node.silent = (true, true);
        }
        self.counts.back += 1;
        true
    }

    /// Somebody moves the log's start over what compaction has emptied.
    pub fn move_start(&mut self) {
        let partition = self.random.index(self.log.len());
        let log = &mut self.log[partition];
        let first = log.records.first().map_or(log.end, |record| record.offset);
        if first > log.start {
            log.start = first;
            self.counts.starts += 1;
            note!(self, "partition {partition} starts at {first}");
        }
    }

    // Writers.

    fn value(&mut self) -> String {
        self.values += 1;
        format!("v{}", self.values)
    }

    pub fn write(&mut self) {
        self.counts.writes += 1;
        let key = KEYS[self.random.index(self.keys)];
        let accepting = self.now + self.random.between(-SKEW, SKEW);
        let (value, ttl) = match self.random.below(10) {
            0..3 => (String::new(), ttl::DELETED),
            3..5 => (self.value(), accepting + self.random.between(1, 90) * MINUTE),
            5 => (self.value(), accepting + self.random.between(1, 10) * SECOND),
            _ => (self.value(), ttl::FOR_EVER),
        };
        let partition = partition_of(key.as_bytes(), self.log.len());
        self.send(key, Some(encode(key, &value, ttl)), partition);
    }

    /// Another program, which writes tombstones and nonsense, and may not know of new partitions.
    pub fn foreign(&mut self) {
        self.counts.writes += 1;
        let key = KEYS[self.random.index(self.keys)];
        let kind = self.random.below(6);
        let nonsense = (2..4).contains(&kind);
        // The assumption: nonsense does not follow what the topic's growth has left behind.
        let knows_new = nonsense || !self.random.one_in(4);
        let partition = partition_of(key.as_bytes(), if knows_new { self.log.len() } else { 1 });
        let value = match kind {
            0 => {
                let text = self.value();
                Some(encode(key, &text, ttl::FOR_EVER))
            }
            // Expired when written.
            1 => Some(encode(key, "old", 1)),
            _ if nonsense => Some(b"no record".to_vec()),
            _ => None,
        };
        self.send(key, value, partition);
    }

    /// Nonsense behind the key that has not been written for longest.
    pub fn poison_oldest(&mut self) {
        let written = |key: &&'static str| self.expected(key).map_or(0, |write| write.timestamp);
        if let Some(key) = KEYS[..self.keys].iter().copied().min_by_key(written) {
            let partition = partition_of(key.as_bytes(), self.log.len());
            self.send(key, Some(b"no record".to_vec()), partition);
        }
    }

    // The oracle: what tidies up changes no answer.

    /// The record of a key that everybody should agree on: the last write of the log, trimmers' records left aside.
    pub fn expected(&self, key: &str) -> Option<&Write> {
        self.log.iter().filter_map(|log| log.writes.get(key)).max_by_key(|write| write.age())
    }

    /// Whether that write of a key, or a later one, was one that ends.
    pub fn has_died_since(&self, key: &str, floor: &Write) -> bool {
        let mut later = self.ever.values().filter(|(of, write)| *of == key && write.age() >= floor.age());
        later.any(|(_, write)| write.ttl != ttl::FOR_EVER)
    }

    /// Whether somebody wrote that, at some time.
    pub fn is_real(&self, key: &str, position: Position, timestamp: i64, value: Option<&str>) -> bool {
        let found = self.ever.get(&(position.partition, position.offset, timestamp));
        found.is_some_and(|(of, write)| {
            *of == key && value.map_or(write.ttl != ttl::FOR_EVER, |value| write.value == value)
        })
    }
}

/// A record as a reader gets it.
pub fn read(bug: Bug, partition: i32, record: &Record) -> LogRecord<'_> {
    let condition = match (bug, record.condition) {
        (Bug::UnconditionalTrims, Some(Condition::Trim { .. })) => None,
        (Bug::UnconditionalRepairs, Some(Condition::Repair { .. })) => None,
        (_, Some(mut condition)) => {
            if let Condition::Trim { until, log, .. } | Condition::Repair { until, log, .. } = &mut condition
            {
                match bug {
                    Bug::LateTidies => *until = LogTime::MAX,
                    Bug::TidiesOfAnotherTopic => *log = LogTag::default(),
                    _ => {}
                }
            }
            Some(condition)
        }
        (_, None) => None,
    };
    let forgotten = bug == Bug::PoisonForgotten
        && record.value.as_deref().is_some_and(|value| KeyValue::decode(value).is_err());
    LogRecord {
        position: Position { partition, offset: record.offset },
        timestamp: LogTime::from_ms(record.timestamp),
        key: Some(record.key.as_bytes()).filter(|_| !forgotten),
        value: record.value.as_deref(),
        condition,
        epoch: Some(record.epoch).filter(|_| bug != Bug::EpochsForgotten),
    }
}

fn known(key: &[u8]) -> &'static str {
    KEYS.iter().find(|known| known.as_bytes() == key).expect("a key of the simulation")
}

pub fn encode(key: &str, value: &str, ttl: i64) -> Vec<u8> {
    let mut bytes = Vec::new();
    KeyValue { key, value, timestamp: 0, source: source::PRODUCER, ttl, uuid: "" }.encode(&mut bytes);
    bytes
}

pub fn show(value: Option<&[u8]>) -> String {
    let mut text = String::new();
    let _ = match value.map(KeyValue::decode) {
        None => write!(text, "null"),
        Some(Ok(record)) => write!(text, "{:?} ttl {}", record.value, record.ttl),
        Some(Err(_)) => write!(text, "nothing"),
    };
    text
}
