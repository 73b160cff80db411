//! What befalls the log: compaction, new partitions, a topic replaced, a log truncated.

use std::collections::BTreeMap;

use crate::note;
use crate::world::{LAG, Partition, TOMBSTONES, World};

impl World {
    /// Kafka's cleaner goes over some partition, up to some segment, and may be interrupted.
    pub fn compact(&mut self) {
        if self.lazy && !self.random.one_in(30) {
            return;
        }
        let partition = self.random.index(self.log.len());
        let bound = self.compactable(partition);
        let random = &mut self.random;
        let log = &self.log[partition];
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
        self.clean(partition, end, done);
    }

    /// Up to where a partition is old enough for the cleaner.
    pub fn compactable(&self, partition: usize) -> i64 {
        let log = &self.log[partition];
        // `timestamp` may lie ahead of `now` by the broker's clock.
        let young = log.records.iter().find(|record| record.timestamp > self.now - LAG);
        young.map_or(log.end, |record| record.offset)
    }

    /// What Kafka's cleaner removes below `done` when it has looked at all below `end`: what a newer record of its key follows
    /// there; and tombstones, a while after they were first cleaned.
    pub fn clean(&mut self, partition: usize, end: i64, done: i64) {
        let now = self.now;
        let log = &mut self.log[partition];
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
        let other_cluster = self.random.one_in(3);
        let partitions = 1 + self.random.index(2);
        self.replace_with(partitions, other_cluster);
    }

    pub fn replace_with(&mut self, partitions: usize, other_cluster: bool) {
        self.topic += 1;
        self.cluster += u64::from(other_cluster);
        self.log = vec![Partition::default(); partitions];
        self.digests.clear();
        self.different.clear();
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

    /// A broker that lags becomes the leader of some partition. Returns whether there was such a broker.
    pub fn truncate_randomly(&mut self) -> bool {
        let partition = self.random.index(self.log.len());
        self.truncate(partition)
    }

    /// A broker that lags becomes the leader of a partition: acknowledged records are lost, and the log says so to nobody. What
    /// trimmers had under way is lost, too: it spoke of records that are no more. Returns whether there was such a broker.
    pub fn truncate(&mut self, partition: usize) -> bool {
        let (since, lagging) = self.lagging[partition].clone();
        let lost = self.log[partition].end - lagging.end;
        if lost == 0 || self.now - since > LAG / 4 {
            return false;
        }
        let (from, to) = (self.log[partition].end, lagging.end);
        note!(self, "partition {partition} is truncated from {from} to {to}");
        let epoch = self.log[partition].epoch() + 1;
        self.log[partition] = lagging;
        // Others take the places of the records that are lost.
        self.digests.retain(|(of, next), _| *of as usize != partition || next.0 <= to);
        self.different.push((partition as i32, to + 1..=from));
        self.log[partition].epochs.push((epoch, to));
        self.sent.retain(|sent| sent.condition.is_none() || sent.partition as usize != partition);
        for node in &mut self.nodes {
            node.fails_once = (true, true);
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
}
