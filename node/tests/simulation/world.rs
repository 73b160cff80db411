//! What the nodes run in: time, the log with its compaction and its accidents, and what is on its way to it.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use bitacora_node::log::{Condition, Level, LogIdentity, LogTag, NewRecord, is_reserved};
use bitacora_node::store::{Checkpoint, Digest};
use bitacora_protocol::record::{KeyValue, ttl};
use bitacora_protocol::{NextOffset, Position};

use crate::counts::Counts;
use crate::mistake::Mistake;
use crate::promise::Violation;
use crate::random::Random;
use crate::truth::{Effect, Truth};
use crate::writers::{encode, known, show};

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
/// In a log of fewer, no snapshot is asked for.
pub const MANY_OFFSETS: i64 = 30_000;
pub const KEYS: [&str; 5] = ["a", "b", "c", "d", "e"];

#[derive(Clone)]
pub struct Record {
    pub offset: i64,
    pub timestamp: i64,
    pub key: &'static str,
    pub value: Option<Vec<u8>>,
    pub condition: Option<Condition>,
    pub level: Option<Level>,
    /// Of the leader under which it was appended.
    pub epoch: i32,
    /// When the cleaner may remove this tombstone.
    pub horizon: Option<i64>,
}

#[derive(Clone, Default)]
pub struct Partition {
    pub records: Vec<Record>,
    /// The first offset that may be asked for.
    pub start: i64,
    pub end: i64,
    /// What the cleaner has been over.
    pub cleaned: i64,
    /// Its leaders' epochs, and where each began to append.
    pub epochs: Vec<(i32, i64)>,
    /// The last write of each key that took effect.
    pub writes: BTreeMap<&'static str, Write>,
    /// What each record did.
    pub truth: Truth,
    /// The offset from which on attempts may be appended.
    pub level_at: Option<i64>,
}

impl Partition {
    pub fn epoch(&self) -> i32 {
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
    pub due: i64,
    pub partition: i32,
    pub key: &'static str,
    pub value: Option<Vec<u8>>,
    pub condition: Option<Condition>,
    pub level: Option<Level>,
}

/// When a node crashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// When it has called the log so often again.
    AfterCalls(u64),
    /// When it has read something, before it has applied that.
    BeforeApply,
}

/// What a node sees of all this.
#[derive(Default)]
pub struct NodeState {
    /// How far its clock is off.
    pub skew: i64,
    /// The log does not answer it.
    pub cut_off: bool,
    /// The log fails it once when it asks for the high watermarks, and once when it reads.
    pub fails_once: (bool, bool),
    pub trims: bool,
    /// In a history: how long what it appends is held up.
    pub held_up: Option<i64>,
    /// In a history: how many records of a partition it reads at a time.
    pub records_per_read: Option<usize>,
    /// It is about to crash.
    pub crash: Option<Crash>,
    /// It reads all there is at once, and nothing is in its way.
    pub undisturbed: bool,
    /// What it has held when it had read everything: it never shows anything older.
    pub held: HeldWrites,
    /// The same of the store that it is taking from another.
    pub copied: Option<HeldWrites>,
}

/// A write of each key.
pub type HeldWrites = BTreeMap<&'static str, Write>;

pub struct World {
    /// Made by all nodes.
    pub mistake: Option<Mistake>,
    pub random: Random,
    pub now: i64,
    pub cluster: u64,
    pub topic: u64,
    pub log: Vec<Partition>,
    /// What a broker that lags has of each partition, and since when.
    pub lagging: Vec<(i64, Partition)>,
    /// All that was ever written and took effect, by partition, offset and timestamp.
    pub ever: BTreeMap<(i32, i64, i64), (&'static str, Write)>,
    /// The same of attempts that took no effect.
    pub void: BTreeMap<(i32, i64, i64), (&'static str, Write)>,
    /// Those of them that were meant for another log, and for which. Who has not noticed yet that the topic was made anew takes them for his.
    pub meant_for: BTreeMap<(i32, i64, i64), LogTag>,
    /// What the replicas said of their digests in this log, by partition and next offset; and who did first.
    pub digests: BTreeMap<(i32, NextOffset), (Digest, usize)>,
    /// Positions of this log where they may differ, by partition, first and last position; and why in [`World::may_differ`].
    pub different: Vec<(i32, RangeInclusive<i64>)>,
    /// A promise that was broken by what was appended.
    pub violation: Option<Violation>,
    pub sent: Vec<Sent>,
    pub nodes: Vec<NodeState>,
    /// When the topic last got a partition.
    pub grown: i64,
    /// Whether Kafka compacts seldom.
    pub lazy: bool,
    /// How many of the keys are used; few make for many races.
    pub keys: usize,
    pub values: u64,
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
    /// Of a run in which everything is up to the seed.
    pub fn seeded(seed: u64, nodes: usize, traced: bool) -> Self {
        let mut random = Random::Seeded(seed);
        let partitions = 1 + random.index(2);
        // A log of many offsets is one that is worth a snapshot.
        let end = if random.one_in(2) { MANY_OFFSETS } else { 0 };
        let state =
            |random: &mut Random| NodeState { skew: random.between(-SKEW, SKEW), ..NodeState::default() };
        let nodes = (0..nodes).map(|_| state(&mut random)).collect();
        let (keys, lazy) = (1 + random.index(KEYS.len()), random.one_in(3));
        let log = vec![Partition { end, ..Partition::default() }; partitions];
        Self { lazy, keys, ..Self::new(random, None, nodes, log, traced) }
    }

    /// Of a history, in which nothing happens but what it says. Its partitions are empty and begin at offset 0.
    pub fn scripted(mistake: Option<Mistake>, partitions: usize, nodes: usize) -> Self {
        let nodes = (0..nodes).map(|_| NodeState { held_up: Some(0), ..NodeState::default() }).collect();
        Self::new(Random::Off, mistake, nodes, vec![Partition::default(); partitions], true)
    }

    fn new(
        random: Random,
        mistake: Option<Mistake>,
        nodes: Vec<NodeState>,
        log: Vec<Partition>,
        traced: bool,
    ) -> Self {
        let now = 1_000_000 * HOUR;
        let lagging = log.iter().map(|log| (now, log.clone())).collect();
        Self {
            mistake,
            random,
            now,
            cluster: 1,
            topic: 1,
            log,
            lagging,
            ever: BTreeMap::new(),
            void: BTreeMap::new(),
            meant_for: BTreeMap::new(),
            digests: BTreeMap::new(),
            different: Vec::new(),
            violation: None,
            sent: Vec::new(),
            nodes,
            grown: now,
            lazy: false,
            keys: KEYS.len(),
            values: 0,
            counts: Counts::default(),
            trace: traced.then(String::new),
        }
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
        let of_this = checkpoint.identity == Some(self.identity())
            || self.mistake == Some(Mistake::ReplacedTopicUnnoticed);
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
    pub fn next_conditional(&self) -> Option<i64> {
        self.sent.iter().filter(|sent| sent.condition.is_some()).map(|sent| sent.due).min()
    }

    fn append(&mut self, sent: Sent) {
        let Sent { partition, key, value, condition, level, .. } = sent;
        // The topic has fewer partitions now.
        let Some(log) = self.log.get_mut(partition as usize) else { return };
        // The assumption: a key of conditional writes that holds nothing gets no nonsense, neither before an attempt nor after one.
        let is_attempt = matches!(condition, Some(Condition::Attempt { .. }));
        let is_nonsense = value.as_deref().is_some_and(|value| KeyValue::decode(value).is_err());
        let hides_nothing = is_nonsense && log.truth.held(key).is_none();
        if (is_attempt && log.truth.is_spoiled(key)) || (hides_nothing && log.truth.is_attempted(key)) {
            return;
        }
        // Each partition is led by another broker, with a clock of its own.
        let timestamp = self.now + i64::from(partition) * 10;
        let offset = log.end;
        // Now and then an offset is a transaction's marker.
        log.end += if self.random.one_in(20) { 2 } else { 1 };
        let epoch = log.epoch();
        if level.is_some() {
            log.level_at.get_or_insert(offset);
        }
        let record = Record { offset, timestamp, key, value, condition, level, epoch, horizon: None };
        note!(self, "{partition}:{offset} {key} {} {condition:?}", show(record.value.as_deref()));
        self.decide(partition, &record);
        self.log[partition as usize].records.push(record);
        if hides_nothing {
            self.different.push((partition, offset..=i64::MAX));
        }
    }

    /// Whether the digests of replicas that are in order may differ at a position, by what the page on digests names: something that can't be
    /// decoded, where nothing is held, lets compaction remove a trim that a replica has not read; and a replica remembers positions of
    /// records that the log has lost since.
    pub fn may_differ(&self, partition: i32, next: NextOffset) -> bool {
        self.different.iter().any(|(of, positions)| *of == partition && positions.contains(&next.0))
    }

    /// Notes what a record does for who reads everything.
    fn decide(&mut self, partition: i32, record: &Record) {
        if is_reserved(record.key.as_bytes()) {
            return;
        }
        let tag = self.identity().tag();
        let Record { offset, timestamp, key, .. } = *record;
        let log = &mut self.log[partition as usize];
        let effect = match log.truth.decide(record, tag, log.level_at.is_none()) {
            Ok(effect) => effect,
            Err(violation) => {
                self.violation.get_or_insert(violation);
                Effect::Kept
            }
        };
        let is_attempt = match record.condition {
            None => false,
            Some(Condition::Attempt { .. }) => true,
            Some(_) => return,
        };
        let (ttl, text) = match record.value.as_deref().map(KeyValue::decode) {
            None => (ttl::DELETED, ""),
            Some(Ok(record)) => (record.ttl, record.value),
            // It says nothing of its key, although compaction prefers it to what does.
            Some(Err(_)) => {
                self.counts.undecodable += 1;
                return;
            }
        };
        let position = Position { partition, offset };
        let write = Write { position, timestamp, ttl, value: text.to_owned() };
        if effect == Effect::Written {
            log.writes.insert(key, write.clone());
            self.ever.insert((partition, offset, timestamp), (key, write));
        } else {
            let at = (partition, offset, timestamp);
            self.void.insert(at, (key, write));
            if let Some(Condition::Attempt { log: of, .. }) = record.condition
                && !of.fits(tag)
            {
                self.meant_for.insert(at, of);
            }
        }
        if is_attempt {
            self.counts.attempts += 1;
            self.counts.attempts_void += u64::from(effect == Effect::Void);
        }
    }

    pub fn send(&mut self, key: &'static str, value: Option<Vec<u8>>, partition: i32) {
        let due = match self.random.below(20) {
            // Never acknowledged, never there.
            0 => return,
            1..6 => self.now + self.random.between(0, DELAY),
            _ => self.now,
        };
        self.sent.push(Sent { due, partition, key, value, condition: None, level: None });
        self.pass(0);
    }

    /// What a trimmer sends is on its way for so long. Now and then somebody writes the key meanwhile.
    pub fn send_conditional(&mut self, record: NewRecord, delay: i64) {
        let partition = record.partition.expect("a condition is of a partition");
        if delay > 0 && !is_reserved(&record.key) && self.random.one_in(2) {
            self.counts.writes += 1;
            let text = self.value();
            let value = Some(encode(known(&record.key), &text, ttl::FOR_EVER));
            let due = self.now + self.random.between(0, delay.min(DELAY));
            let key = known(&record.key);
            self.sent.push(Sent { due, partition, key, value, condition: None, level: None });
        }
        let NewRecord { key, value, condition, .. } = record;
        let (due, key) = (self.now + delay, known(&key));
        self.sent.push(Sent { due, partition, key, value, condition, level: None });
        self.pass(0);
    }
}
