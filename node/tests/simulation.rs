//! Replication under everything that may happen to it, in simulated time and replayed from a seed: the real store, the
//! replica's applying and the trimmer's decisions, over a simulated log that is compacted whenever Kafka might.
//!
//! `SIMULATION_SEEDS=100000 cargo test -p bitacora-node --test simulation` runs more seeds, `SIMULATION_SEED=42` one, with
//! all that happened.
//!
//! The oracle is simple: what tidies up changes no answer. So whenever a replica has read everything, each key must be what
//! the last write in the log, trimmers' records left aside, says of it. That is: no acknowledged write is lost, no deleted
//! key comes back, all replicas agree, and compaction changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bitacora_client::wire::{KeyValue, source, ttl};
use bitacora_node::log::{Batch, Condition, LogIdentity, LogRecord, Tidy};
use bitacora_node::position::{NextOffset, Position, partition_of};
use bitacora_node::progress::Seen;
use bitacora_node::replica;
use bitacora_node::store::{Checkpoint, Entry, State, Store};
use bitacora_node::trimmer::Trimmer;

const SECOND: i64 = 1_000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;
/// `DELETE_RETENTION`.
const RETENTION: i64 = 10 * HOUR;
/// `delete.retention.ms`, its least.
const TOMBSTONES: i64 = RETENTION;
/// `min.compaction.lag.ms`.
const LAG: i64 = HOUR;
/// From a writer to the log, at most; and what a trimmer decided, if nothing holds it up.
const DELAY: i64 = MINUTE;
/// What holds a trimmer up, at most: the machine was suspended, or its connection hung.
const LONG: i64 = 3 * RETENTION;
/// How far a node's clock is off, at most.
const SKEW: i64 = MINUTE;
/// Steps of a run.
const STEPS: u64 = 400;
const REPLICAS: usize = 3;
const KEYS: [&str; 5] = ["a", "b", "c", "d", "e"];

/// A mistake that the simulation is to catch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    None,
    /// The next offsets are committed in a transaction of their own, before the records.
    PositionsBeforeRecords,
    /// A trimmer's tombstone is taken for one that always deletes.
    UnconditionalTrims,
    /// A repair is taken for a write.
    UnconditionalRepairs,
    /// Nobody pays debts.
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
    /// A debt to a key that the partition holds nothing of is not paid.
    HollowDebts,
    /// A store that was just built is taken for what it seems.
    DoubtsIgnored,
}

/// `SplitMix64`.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`.
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn between(&mut self, low: i64, high: i64) -> i64 {
        low + self.below((high - low + 1).unsigned_abs()) as i64
    }

    fn index(&mut self, length: usize) -> usize {
        self.below(length as u64) as usize
    }
}

#[derive(Clone)]
struct Record {
    offset: i64,
    timestamp: i64,
    key: &'static str,
    value: Option<Vec<u8>>,
    condition: Option<Condition>,
    /// When the cleaner may remove this tombstone.
    horizon: Option<i64>,
}

#[derive(Default)]
struct Partition {
    records: Vec<Record>,
    end: i64,
    /// What the cleaner has been over.
    cleaned: i64,
}

/// The last write of a key in a partition.
#[derive(Clone)]
struct Write {
    position: Position,
    timestamp: i64,
    ttl: i64,
    value: String,
}

/// A record on its way to the log.
struct Sent {
    due: i64,
    partition: i32,
    key: &'static str,
    value: Option<Vec<u8>>,
    condition: Option<Condition>,
}

struct Replica {
    store: Arc<Store>,
    trimmer: Trimmer,
    up: bool,
    /// Until when it can't be started.
    away: i64,
    /// How many partitions it knows of.
    partitions: usize,
    /// The last time that it had read everything, or began to read from the start.
    current: i64,
    skew: i64,
    /// It has read everything since it last did anything else.
    caught_up: bool,
    /// What was doubtful when it had built its store from the log.
    doubtful: BTreeSet<(Vec<u8>, Position)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    operations: u64,
    poison: u64,
    steps: u64,
    crashes: u64,
    resyncs: u64,
    doubts: u64,
    tombstones: u64,
    effective: u64,
    void: u64,
    repairs: u64,
    swept: u64,
    compacted: u64,
    checks: u64,
}

impl Counts {
    fn each(&self) -> [(&'static str, u64); 13] {
        [
            ("steps", self.steps),
            ("writes", self.operations),
            ("records that can't be decoded", self.poison),
            ("crashes", self.crashes),
            ("resyncs", self.resyncs),
            ("stores that were built twice", self.doubts),
            ("tombstones sent by trimmers", self.tombstones),
            ("records that they removed", self.effective),
            ("of them and of repairs void", self.void),
            ("repairs sent", self.repairs),
            ("keys swept", self.swept),
            ("records compacted away", self.compacted),
            ("comparisons of a whole replica", self.checks),
        ]
    }
}

struct Simulation<'a> {
    seed: u64,
    bug: Bug,
    random: Random,
    now: i64,
    log: Vec<Partition>,
    writes: BTreeMap<(&'static str, i32), Write>,
    sent: Vec<Sent>,
    replicas: Vec<Replica>,
    /// For a node that joins in the end.
    spare: &'a Arc<Store>,
    /// When the debts were last paid.
    repaired: i64,
    /// When somebody last trimmed for sure.
    trimmed: i64,
    /// When the topic last got a partition.
    grown: i64,
    /// Whether Kafka compacts seldom.
    lazy: bool,
    /// One step in so many is compaction or hours that pass, besides those in a hundred that are so anyway.
    pace: u64,
    /// How many of the keys are used; few make for many races.
    keys: usize,
    values: u64,
    counts: Counts,
    trace: Option<String>,
}

type Outcome = Result<(), String>;

macro_rules! note {
    ($self:ident, $($text:tt)*) => {
        if let Some(trace) = &mut $self.trace {
            let _ = writeln!(trace, "{:>12} {}", $self.now, format_args!($($text)*));
        }
    };
}

impl<'a> Simulation<'a> {
    fn new(seed: u64, bug: Bug, stores: &'a [Arc<Store>], traced: bool) -> Self {
        let mut random = Random(seed);
        let now = 1_000_000 * HOUR;
        let log: Vec<_> = (0..=random.below(2)).map(|_| Partition::default()).collect();
        let replica = |store: &Arc<Store>, skew| Replica {
            store: Arc::clone(store),
            trimmer: Trimmer::new(Arc::clone(store), RETENTION),
            up: true,
            away: now,
            partitions: log.len(),
            current: now,
            skew,
            caught_up: false,
            doubtful: BTreeSet::new(),
        };
        let replicas: Vec<_> =
            stores[..REPLICAS].iter().map(|store| replica(store, random.between(-SKEW, SKEW))).collect();
        for store in stores {
            store.reset(&identity(), &starts(log.len()), 0).expect("writable");
        }
        let keys = 1 + random.index(KEYS.len());
        let lazy = random.one_in(3);
        let pace = [3, 10, u64::MAX][random.index(3)];
        Self {
            seed,
            bug,
            random,
            lazy,
            pace,
            keys,
            now,
            log,
            writes: BTreeMap::new(),
            sent: Vec::new(),
            replicas,
            spare: &stores[REPLICAS],
            repaired: now,
            trimmed: now,
            grown: now,
            values: 0,
            counts: Counts::default(),
            trace: traced.then(String::new),
        }
    }

    fn run(&mut self) -> Outcome {
        for _ in 0..STEPS {
            self.counts.steps += 1;
            self.step()?;
        }
        self.end()
    }

    fn step(&mut self) -> Outcome {
        let passes = self.random.between(0, 3 * SECOND);
        self.advance(passes)?;
        let replica = self.random.index(REPLICAS);
        let kind = if self.random.one_in(self.pace) {
            self.random.between(86, 99)
        } else {
            self.random.between(0, 99)
        };
        match kind {
            0..28 => self.write(),
            28..33 => self.foreign(),
            33..53 => self.poll(replica, 10)?,
            53..63 => self.read_on(replica)?,
            63..66 => self.crash(replica),
            66..70 => self.start(replica)?,
            70 => self.overtake(replica)?,
            71..77 => self.trim(replica, LONG)?,
            // Two at once.
            77..79 => {
                self.read_on(replica)?;
                self.read_on((replica + 1) % REPLICAS)?;
                self.trim(replica, LONG)?;
                self.trim((replica + 1) % REPLICAS, LONG)?;
            }
            79..83 => self.repair(replica)?,
            83..86 => self.sweep(replica)?,
            86..91 => {
                self.compact();
                self.newcomer()?;
            }
            91 => {
                // The brokers' clocks agree no better than others.
                if self.log.len() < 4 && self.random.one_in(3) {
                    self.log.push(Partition::default());
                    self.grown = self.now;
                    note!(self, "the topic has {} partitions now", self.log.len());
                }
            }
            92..96 => {
                let minutes = self.random.between(1, 20);
                self.advance(minutes * MINUTE)?;
            }
            96..99 => {
                let hours = self.random.between(1, 6);
                self.advance(hours * HOUR)?;
                self.read_on(replica)?;
                self.trim(replica, LONG)?;
                for _ in 0..self.log.len() {
                    self.compact();
                }
            }
            _ => {
                if self.random.one_in(3) {
                    let hours = self.random.between(9, 40);
                    self.advance(hours * HOUR)?;
                }
            }
        }
        Ok(())
    }

    /// Lets time pass. The assumptions: somebody pays the debts within the time that compaction leaves, and trims what is
    /// left in other partitions while the tombstone that hides it is there.
    fn advance(&mut self, ms: i64) -> Outcome {
        let end = self.now + ms;
        // Mostly the same, so that the others may be behind for long.
        let somebody = if self.random.one_in(10) { self.random.index(REPLICAS) } else { 0 };
        while self.now < end {
            // What was held up may make debts at any time.
            let tidies = self.sent.iter().filter(|sent| sent.condition.is_some());
            let next = tidies.map(|sent| sent.due).min().map(|due| due + self.random.between(0, LAG / 2));
            let ms = next.map_or(end, |next| next.clamp(self.now + 1, end)) - self.now;
            if self.now + ms - self.trimmed > TOMBSTONES / 4 {
                let trimmer = self.started(somebody)?;
                self.catch_up(trimmer)?;
                self.trim(trimmer, DELAY)?;
                self.trimmed = self.now;
            }
            if self.now + ms - self.repaired > LAG / 2 {
                self.pass(DELAY);
                self.pay_debts(somebody)?;
            }
            self.pass(ms);
        }
        Ok(())
    }

    fn pass(&mut self, ms: i64) {
        self.now += ms;
        // In the order in which they arrive.
        self.sent.sort_by_key(|sent| sent.due);
        let late = self.sent.partition_point(|sent| sent.due <= self.now);
        let arrived: Vec<_> = self.sent.drain(..late).collect();
        for sent in arrived {
            self.append(sent);
        }
    }

    /// That replica or, if it is away, the next; it reads all partitions.
    fn started(&mut self, mut number: usize) -> Result<usize, String> {
        self.start(number)?;
        if !self.replicas[number].up {
            number = (number + 1) % REPLICAS;
            self.start(number)?;
        }
        learn_partitions(&mut self.replicas[number], self.log.len())?;
        Ok(number)
    }

    fn pay_debts(&mut self, somebody: usize) -> Outcome {
        let payer = self.started(somebody)?;
        for round in 0..100 {
            self.catch_up(payer)?;
            let repairs = self.repairs(payer, i64::MAX)?;
            if repairs.is_empty() {
                self.repaired = self.now;
                return Ok(());
            }
            for tidy in repairs {
                self.counts.repairs += 1;
                let delay = if round < 3 { self.random.between(0, DELAY) } else { 0 };
                self.race(&tidy, delay);
                // And somebody else, whom something holds up.
                if round == 0 && self.random.one_in(4) {
                    let delay = self.random.between(0, LONG);
                    self.send_tidy(tidy.clone(), delay);
                }
                self.send_tidy(tidy, delay);
            }
            self.pass(if round < 3 { DELAY } else { 0 });
        }
        Err("the debts don't end".to_owned())
    }

    fn repairs(&self, number: usize, made_until: i64) -> Result<Vec<Tidy>, String> {
        let Replica { trimmer, store, .. } = &self.replicas[number];
        let mut repairs = trimmer.repairs(made_until).map_err(|error| error.to_string())?;
        match self.bug {
            Bug::NoRepairs => repairs.clear(),
            Bug::HollowDebts => {
                let owed = store.owed(usize::MAX).map_err(|error| error.to_string())?;
                repairs.retain(|tidy| owed.iter().any(|owed| owed.key == tidy.key && owed.entry.is_some()));
            }
            _ => {}
        }
        Ok(repairs)
    }

    // The log.

    fn append(&mut self, sent: Sent) {
        let Sent { partition, key, value, condition, .. } = sent;
        let log = &mut self.log[partition as usize];
        // Each partition is led by another broker, with a clock of its own.
        let timestamp = self.now + i64::from(partition) * 10;
        let offset = log.end;
        // Now and then an offset is a transaction's marker.
        log.end += if self.random.one_in(20) { 2 } else { 1 };
        note!(self, "{partition}:{offset} {key} {} {condition:?}", show(value.as_deref()));
        if condition.is_none() {
            let position = Position { partition, offset };
            let write = match value.as_deref().map(KeyValue::decode) {
                None => Some((ttl::DELETED, "")),
                Some(Ok(record)) => Some((record.ttl, record.value)),
                // It says nothing of its key, although compaction prefers it to what does.
                Some(Err(_)) => None,
            };
            match write {
                Some((ttl, text)) => {
                    let write = Write { position, timestamp, ttl, value: text.to_owned() };
                    self.writes.insert((key, partition), write);
                }
                None => self.counts.poison += 1,
            }
        }
        self.log[partition as usize].records.push(Record {
            offset,
            timestamp,
            key,
            value,
            condition,
            horizon: None,
        });
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

    fn send_tidy(&mut self, tidy: Tidy, delay: i64) {
        let Tidy { partition, key, value, condition } = tidy;
        let (due, key) = (self.now + delay, known(&key));
        self.sent.push(Sent { due, partition, key, value, condition: Some(condition) });
    }

    /// What Kafka's cleaner may do now: remove, as far as everything is old enough, what a newer record of its key follows
    /// there, up to some segment if it is interrupted; and tombstones, a while after they were first cleaned.
    fn compact(&mut self) {
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
                let tidies = || log.records.iter().filter(|r| r.condition.is_some() && r.offset < bound);
                let nth = random.index(tidies().count());
                tidies().nth(nth).map_or(bound, |record| record.offset + 1)
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

    // Writers.

    fn value(&mut self) -> String {
        self.values += 1;
        format!("v{}", self.values)
    }

    fn write(&mut self) {
        self.counts.operations += 1;
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
    fn foreign(&mut self) {
        self.counts.operations += 1;
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

    // Replicas.

    fn crash(&mut self, number: usize) {
        let replica = &mut self.replicas[number];
        if replica.up {
            (replica.up, replica.caught_up) = (false, false);
            replica.doubtful.clear();
            replica.trimmer = Trimmer::new(Arc::clone(&replica.store), RETENTION);
            self.counts.crashes += 1;
            note!(self, "replica {number} crashes");
            if self.random.one_in(6) {
                let replica = &mut self.replicas[number];
                replica.store.reset(&identity(), &starts(replica.partitions), 0).expect("writable");
                replica.current = self.now;
                note!(self, "it loses its disk");
            }
            // Some node is always at hand.
            if self.random.one_in(4) && self.replicas.iter().all(|replica| replica.away <= self.now) {
                let hours = self.random.between(1, 40);
                self.replicas[number].away = self.now + hours * HOUR;
                note!(self, "it is away for {hours} hours");
            }
        }
    }

    fn start(&mut self, number: usize) -> Outcome {
        let known = self.log.len();
        let replica = &mut self.replicas[number];
        if !replica.up && replica.away <= self.now {
            replica.up = true;
            learn_partitions(replica, known)?;
            note!(self, "replica {number} starts");
        }
        Ok(())
    }

    /// Reads up to so many records of each of some partitions. It may crash before they are committed.
    fn poll(&mut self, number: usize, limit: u64) -> Outcome {
        if !self.replicas[number].up {
            return Ok(());
        }
        if self.now - self.replicas[number].current > RETENTION && self.bug != Bug::NoResync {
            self.resync(number)?;
        }
        let replica = &mut self.replicas[number];
        // A node asks for them every few seconds.
        if self.now - self.grown > HOUR || self.random.one_in(5) {
            learn_partitions(replica, self.log.len())?;
        }
        let before = checkpoint(&replica.store)?.next;
        let mut batch = Batch::default();
        for (partition, log) in (0..).zip(&self.log[..replica.partitions]) {
            if limit != u64::MAX && self.random.one_in(3) {
                continue;
            }
            let next = before[partition as usize].0;
            let from = log.records.partition_point(|record| record.offset < next);
            let count = usize::try_from(self.random.below(limit).saturating_add(1)).unwrap_or(usize::MAX);
            for record in log.records[from..].iter().take(count) {
                batch.push(read(self.bug, partition, record));
            }
            if log.records.len() - from <= count {
                batch.reached(partition, NextOffset(log.end));
            }
        }
        let crashes = limit != u64::MAX && self.random.one_in(15);
        let failed = |error: bitacora_node::store::StoreError| error.to_string();
        if self.bug == Bug::PositionsBeforeRecords {
            replica.store.apply(&mut Vec::new(), batch.next()).map_err(failed)?;
        }
        if crashes {
            self.crash(number);
            return Ok(());
        }
        let (applied, _) = replica::apply(&replica.store, &batch).map_err(failed)?;
        replica.caught_up = false;
        self.counts.void += applied.void as u64;
        self.counts.effective += applied.trimmed as u64;
        note!(self, "replica {number} applied {:?}: {applied:?}", batch.next());
        let after = checkpoint(&self.replicas[number].store)?.next;
        if after.iter().zip(&before).any(|(after, before)| after < before) {
            return Err(format!("replica {number} went back from {before:?} to {after:?}"));
        }
        Ok(())
    }

    /// Compaction overtakes a replica that builds its store, with nonsense behind what it has read.
    fn overtake(&mut self, number: usize) -> Outcome {
        if !self.replicas[number].up {
            return Ok(());
        }
        self.resync(number)?;
        self.poll(number, 20)?;
        // Of a key that has not been written for long.
        let written = |key: &&'static str| self.expected(key).map_or(0, |write| write.timestamp);
        if let Some(key) = KEYS[..self.keys].iter().copied().min_by_key(written) {
            let partition = partition_of(key.as_bytes(), self.log.len());
            self.send(key, Some(b"no record".to_vec()), partition);
        }
        self.advance(2 * LAG)?;
        let lazy = std::mem::take(&mut self.lazy);
        for _ in 0..2 * self.log.len() {
            self.compact();
        }
        self.lazy = lazy;
        self.catch_up(number)
    }

    fn resync(&mut self, number: usize) -> Outcome {
        let replica = &mut self.replicas[number];
        let starts = starts(replica.partitions);
        let reset = if self.bug == Bug::ResyncKeepsOldKeys {
            let next: Vec<_> = (0..).zip(starts).collect();
            replica.store.apply(&mut Vec::new(), &next).map(drop)
        } else {
            replica.store.reset(&identity(), &starts, 0)
        };
        replica.current = self.now;
        replica.doubtful.clear();
        self.counts.resyncs += 1;
        note!(self, "replica {number} resyncs");
        reset.map_err(|error| error.to_string())
    }

    /// As [`Simulation::catch_up`], but a store that is being built may take long.
    fn read_on(&mut self, number: usize) -> Outcome {
        if !checkpoint(&self.replicas[number].store)?.restored && !self.random.one_in(8) {
            return self.poll(number, 4);
        }
        self.catch_up(number)
    }

    /// Reads everything, and compares.
    fn catch_up(&mut self, number: usize) -> Outcome {
        if !self.replicas[number].up {
            return Ok(());
        }
        self.poll(number, u64::MAX)?;
        let failed = |error: bitacora_node::store::StoreError| error.to_string();
        while !checkpoint(&self.replicas[number].store)?.restored {
            let replica = &mut self.replicas[number];
            let doubtful = replica.store.doubtful().map_err(failed)?;
            if doubtful.is_subset(&replica.doubtful) || self.bug == Bug::DoubtsIgnored {
                replica.store.note_caught_up(self.now).map_err(failed)?;
                replica.doubtful.clear();
            } else {
                replica.store.reset(&identity(), &starts(replica.partitions), 0).map_err(failed)?;
                (replica.doubtful, replica.current) = (doubtful, self.now);
                self.counts.doubts += 1;
                note!(self, "replica {number} reads the log once more");
                self.poll(number, u64::MAX)?;
            }
        }
        let replica = &mut self.replicas[number];
        (replica.current, replica.caught_up) = (self.now, true);
        if replica.partitions == self.log.len() {
            self.counts.checks += 1;
            self.compare(number)?;
        }
        Ok(())
    }

    fn trim(&mut self, number: usize, held_up: i64) -> Outcome {
        // It may have been caught up long ago, and decide on what it saw then. Of new partitions, the log would tell.
        if !self.replicas[number].caught_up || self.replicas[number].partitions < self.log.len() {
            return Ok(());
        }
        let replica = &mut self.replicas[number];
        let seen = Seen { until: replica.current.min(self.now + replica.skew), log_time: replica.current };
        let (mut tidies, _) = replica.trimmer.trims(seen).map_err(|error| error.to_string())?;
        if self.bug == Bug::StrandedForgotten {
            tidies = forgetful_trims(&replica.store, self.now)?;
        }
        for tidy in tidies {
            self.counts.tombstones += 1;
            let delay = self.delay(held_up);
            note!(self, "replica {number} trims {tidy:?} in {delay} ms");
            self.race(&tidy, delay);
            self.send_tidy(tidy, delay);
        }
        Ok(())
    }

    fn repair(&mut self, number: usize) -> Outcome {
        if !self.replicas[number].caught_up {
            return Ok(());
        }
        let replica = &self.replicas[number];
        let until = self.now + replica.skew - self.random.between(0, 30) * SECOND;
        for tidy in self.repairs(number, until)? {
            self.counts.repairs += 1;
            let delay = self.delay(LONG);
            note!(self, "replica {number} repairs {} in {delay} ms", show(tidy.value.as_deref()));
            self.race(&tidy, delay);
            self.send_tidy(tidy, delay);
        }
        Ok(())
    }

    fn delay(&mut self, held_up: i64) -> i64 {
        match self.random.below(20) {
            0..10 => 0,
            10..19 => self.random.between(0, DELAY),
            _ => self.random.between(0, held_up),
        }
    }

    /// Now and then, somebody writes the key while a trimmer's record is on its way.
    fn race(&mut self, tidy: &Tidy, delay: i64) {
        if delay > 0 && self.random.one_in(2) {
            self.counts.operations += 1;
            let text = self.value();
            let value = Some(encode(known(&tidy.key), &text, ttl::FOR_EVER));
            let due = self.now + self.random.between(0, delay.min(DELAY));
            let (partition, key) = (tidy.partition, known(&tidy.key));
            self.sent.push(Sent { due, partition, key, value, condition: None });
        }
    }

    fn sweep(&mut self, number: usize) -> Outcome {
        let replica = &self.replicas[number];
        if replica.up {
            let caught_up = replica.caught_up;
            let past = self.now + replica.skew;
            let swept = replica.store.sweep(past, RETENTION, caught_up.then(|| replica.current.min(past)));
            self.counts.swept += swept.map_err(|error| error.to_string())? as u64;
        }
        Ok(())
    }

    // The oracle.

    /// The record of a key that everybody should agree on.
    fn expected(&self, key: &'static str) -> Option<&Write> {
        let of_key = self.writes.range((key, 0)..=(key, i32::MAX)).map(|(_, write)| write);
        of_key.max_by_key(|write| (write.timestamp, write.position.offset, write.position.partition))
    }

    fn compare(&self, number: usize) -> Outcome {
        self.compare_store(&self.replicas[number].store, &format!("replica {number}"))
    }

    fn compare_store(&self, store: &Store, who: &str) -> Outcome {
        for key in KEYS {
            let found = store.get(key.as_bytes()).map_err(|error| error.to_string())?;
            let live = found.as_ref().map(|(entry, _)| entry).filter(|e| e.state(self.now) == State::Live);
            let expected = self.expected(key);
            let due = expected.filter(|write| write.ttl == 0 || write.ttl > self.now);
            let agree = match (live, due) {
                (None, None) => true,
                (Some(entry), Some(write)) => {
                    entry.position() == write.position
                        && entry.timestamp() == write.timestamp
                        && entry.record().is_some_and(|record| record.value == write.value)
                }
                // Swept by a clock that is ahead.
                (None, Some(write)) => write.ttl != 0 && write.ttl <= self.now + SKEW,
                (Some(_), None) => false,
            };
            if !agree {
                let shown = |entry: &Entry| {
                    format!("{} ttl {} {}", entry.position(), entry.ttl(), show(Some(entry.record_bytes())))
                };
                return Err(format!(
                    "{who} holds {:?} for {key}, the log's last write is {:?}",
                    found.map(|(entry, _)| shown(&entry)),
                    expected.map(|write| (write.position.to_string(), &write.value, write.ttl)),
                ));
            }
        }
        Ok(())
    }

    /// What a node would hold that reads the log from its start now.
    fn newcomer(&mut self) -> Outcome {
        let failed = |error: bitacora_node::store::StoreError| error.to_string();
        let store = Arc::clone(self.spare);
        store.reset(&identity(), &starts(self.log.len()), 0).map_err(failed)?;
        let mut batch = Batch::default();
        for (partition, log) in (0..).zip(&self.log) {
            for record in &log.records {
                batch.push(read(self.bug, partition, record));
            }
        }
        replica::apply(&store, &batch).map_err(failed)?;
        self.counts.checks += 1;
        self.compare_store(&store, "a new node")
    }

    /// Everybody reads everything; then all that may be trimmed is, everything is compacted, and a new node joins.
    fn end(&mut self) -> Outcome {
        self.pass(DELAY);
        for number in 0..REPLICAS {
            self.replicas[number].away = self.now;
            self.start(number)?;
            learn_partitions(&mut self.replicas[number], self.log.len())?;
            self.catch_up(number)?;
        }
        self.pay_debts(0)?;
        for _ in 0..6 {
            for number in 0..REPLICAS {
                self.catch_up(number)?;
                self.trim(number, DELAY)?;
                self.sweep(number)?;
            }
            self.pass(DELAY);
            self.pay_debts(0)?;
            for _ in 0..2 * self.log.len() {
                self.compact();
            }
            for number in 0..REPLICAS {
                self.catch_up(number)?;
            }
            self.advance(RETENTION / 2)?;
        }
        note!(self, "a new node joins");
        let store = Arc::clone(self.spare);
        store.reset(&identity(), &starts(self.log.len()), 0).map_err(|error| error.to_string())?;
        let trimmer = Trimmer::new(Arc::clone(&store), RETENTION);
        self.replicas.push(Replica {
            store,
            trimmer,
            up: true,
            away: self.now,
            partitions: self.log.len(),
            current: self.now,
            skew: 0,
            caught_up: false,
            doubtful: BTreeSet::new(),
        });
        self.catch_up(REPLICAS)
    }
}

fn read(bug: Bug, partition: i32, record: &Record) -> LogRecord<'_> {
    let condition = match (bug, record.condition) {
        (Bug::UnconditionalTrims, Some(Condition::Trim { .. })) => None,
        (Bug::UnconditionalRepairs, Some(Condition::Repair { .. })) => None,
        (Bug::LateTidies, Some(Condition::Trim { offset, .. })) => {
            Some(Condition::Trim { offset, until: i64::MAX })
        }
        (Bug::LateTidies, Some(Condition::Repair { offset, timestamp, .. })) => {
            Some(Condition::Repair { offset, timestamp, until: i64::MAX })
        }
        (_, condition) => condition,
    };
    let forgotten = bug == Bug::PoisonForgotten
        && record.value.as_deref().is_some_and(|value| KeyValue::decode(value).is_err());
    LogRecord {
        position: Position { partition, offset: record.offset },
        timestamp: record.timestamp,
        key: Some(record.key.as_bytes()).filter(|_| !forgotten),
        value: record.value.as_deref(),
        condition,
    }
}

fn known(key: &[u8]) -> &'static str {
    KEYS.iter().find(|known| known.as_bytes() == key).expect("a key of the simulation")
}

/// What a trimmer sends that looks at no key's other partitions.
fn forgetful_trims(store: &Store, now: i64) -> Result<Vec<Tidy>, String> {
    let mut tidies = Vec::new();
    for key in KEYS {
        let Some((entry, _)) = store.get(key.as_bytes()).map_err(|error| error.to_string())? else {
            continue;
        };
        if entry.has_record() && entry.state(now - RETENTION) != State::Live {
            let Position { partition, offset } = entry.position();
            let (key, condition) = (key.as_bytes().to_vec(), Condition::Trim { offset, until: i64::MAX });
            tidies.push(Tidy { partition, key, value: None, condition });
        }
    }
    Ok(tidies)
}

fn checkpoint(store: &Store) -> Result<Checkpoint, String> {
    store.checkpoint().map_err(|error| error.to_string())
}

/// As a node does that finds the topic grown.
fn learn_partitions(replica: &mut Replica, known: usize) -> Outcome {
    let new: Vec<_> = (replica.partitions..known).map(|p| (p as i32, NextOffset(0))).collect();
    replica.partitions = known;
    replica.store.apply(&mut Vec::new(), &new).map(drop).map_err(|error| error.to_string())
}

fn identity() -> LogIdentity {
    LogIdentity { cluster: "simulated".into(), topic: "t".into(), topic_id: None }
}

fn starts(partitions: usize) -> Vec<NextOffset> {
    vec![NextOffset(0); partitions]
}

fn encode(key: &str, value: &str, ttl: i64) -> Vec<u8> {
    let mut bytes = Vec::new();
    KeyValue { key, value, timestamp: 0, source: source::PRODUCER, ttl, uuid: "" }.encode(&mut bytes);
    bytes
}

fn show(value: Option<&[u8]>) -> String {
    match value.map(KeyValue::decode) {
        None => "null".into(),
        Some(Ok(record)) => format!("{:?} ttl {}", record.value, record.ttl),
        Some(Err(_)) => "nothing".into(),
    }
}

/// Stores for one run at a time; a run empties them.
struct Stores {
    stores: Vec<Arc<Store>>,
    _dir: tempfile::TempDir,
}

impl Stores {
    fn open() -> Self {
        // No disk is waited for where memory can be a folder.
        let memory = PathBuf::from("/dev/shm");
        let dir = tempfile::tempdir_in(&memory).or_else(|_| tempfile::tempdir()).expect("a temporary folder");
        let open = |n| Arc::new(Store::open(&dir.path().join(format!("{n}")), 1 << 20).expect("opens"));
        Self { stores: (0..=REPLICAS).map(open).collect(), _dir: dir }
    }

    /// What happened, and why it is wrong.
    fn run(&self, seed: u64, bug: Bug) -> (Counts, Outcome) {
        let mut simulation = Simulation::new(seed, bug, &self.stores, false);
        let outcome = simulation.run();
        (simulation.counts, outcome)
    }

    fn trace(&self, seed: u64, bug: Bug) -> String {
        let mut simulation = Simulation::new(seed, bug, &self.stores, true);
        let outcome = simulation.run();
        let seed = simulation.seed;
        let trace = simulation.trace.unwrap_or_default();
        format!(
            "{trace}seed {seed}: {outcome:?}\nreplay it with: SIMULATION_SEED={seed} cargo test -p bitacora-node --test simulation no_seed -- --nocapture"
        )
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

#[test]
fn no_seed_breaks_a_promise() {
    if let Some(seed) = number("SIMULATION_SEED") {
        let stores = Stores::open();
        println!("{}", stores.trace(seed, Bug::None));
        assert_eq!(stores.run(seed, Bug::None).1, Ok(()));
        return;
    }
    let seeds = number("SIMULATION_SEEDS").unwrap_or(2_000);
    let (next, started) = (AtomicU64::new(0), Instant::now());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let all: Vec<Counts> = std::thread::scope(|scope| {
        let run = || {
            let (stores, mut sums) = (Stores::open(), Vec::new());
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= seeds {
                    return sums;
                }
                let (counts, outcome) = stores.run(seed, Bug::None);
                if let Err(violation) = outcome {
                    panic!("{violation}\n{}", stores.trace(seed, Bug::None));
                }
                sums.push(counts);
            }
        };
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Vec<Counts>>| match thread.join() {
            Ok(counts) => counts,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        threads.into_iter().flat_map(join).collect()
    });
    assert_eq!(all.len() as u64, seeds);
    println!("{seeds} seeds in {:.1} s, 0 violations", started.elapsed().as_secs_f64());
    let mut sums = BTreeMap::new();
    for (name, count) in all.iter().flat_map(Counts::each) {
        *sums.entry(name).or_insert(0) += count;
    }
    for (name, _) in Counts::default().each() {
        println!("{:>10} {name}", sums[name]);
        assert!(sums[name] > 0, "no {name} in all these seeds: the simulation does not do what it should");
    }
}

#[test]
fn a_seed_is_a_run() {
    let stores = Stores::open();
    for seed in 0..5 {
        assert_eq!(stores.trace(seed, Bug::None), stores.trace(seed, Bug::None));
    }
}

fn is_caught(bug: Bug) {
    is_caught_from(0, bug);
}

/// What few seeds catch is looked for where one is known to.
fn is_caught_from(first: u64, bug: Bug) {
    const PATIENCE: u64 = 1_000;
    let stores = Stores::open();
    let found = (first..first + PATIENCE).find_map(|seed| Some((seed, stores.run(seed, bug).1.err()?)));
    let Some((seed, violation)) = found else { panic!("{PATIENCE} seeds did not find {bug:?}") };
    println!("{bug:?}: seed {seed}: {violation}");
}

#[test]
fn positions_before_records_are_caught() {
    is_caught(Bug::PositionsBeforeRecords);
}

#[test]
fn unconditional_trims_are_caught() {
    is_caught(Bug::UnconditionalTrims);
}

#[test]
fn unconditional_repairs_are_caught() {
    is_caught(Bug::UnconditionalRepairs);
}

#[test]
fn debts_that_nobody_pays_are_caught() {
    is_caught(Bug::NoRepairs);
}

#[test]
fn a_resync_that_keeps_old_keys_is_caught() {
    is_caught(Bug::ResyncKeepsOldKeys);
}

#[test]
fn a_missing_resync_is_caught() {
    is_caught(Bug::NoResync);
}

#[test]
fn a_trimmer_that_forgets_other_partitions_is_caught() {
    is_caught(Bug::StrandedForgotten);
}

#[test]
fn what_comes_too_late_and_takes_effect_is_caught() {
    is_caught(Bug::LateTidies);
}

#[test]
fn doubts_that_are_ignored_are_caught() {
    is_caught_from(450, Bug::DoubtsIgnored);
}

#[test]
fn debts_to_nothing_that_nobody_pays_are_caught() {
    is_caught_from(100, Bug::HollowDebts);
}

#[test]
fn poison_that_is_forgotten_is_caught() {
    is_caught(Bug::PoisonForgotten);
}
