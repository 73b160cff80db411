//! What a record of the log does to its key: whether it takes effect, and what is pending because of it.

use bitacora_protocol::record::ttl;
use smallvec::SmallVec;

use crate::clock::LogTime;
use crate::log::Expected;
use crate::store::{Entry, State, StoreError};
use bitacora_protocol::Position;

/// What a record of the log does to its key.
#[derive(Clone, Debug)]
pub enum Change {
    /// A write, or another's tombstone.
    Write(Entry),
    /// [`crate::log::Condition::Repair`], which lies `at` that position since `timestamp`; `entry` has the position and the
    /// write timestamp of what is repaired, which the partition held when everything up to `reach` had been applied.
    Repair { at: Position, timestamp: LogTime, entry: Entry, reach: i64, settles: i64, complete: bool },
    /// [`crate::log::Condition::Trim`] of the record at `offset`.
    Trim { at: Position, timestamp: LogTime, offset: i64, settles: i64, complete: bool },
    /// [`crate::log::Condition::Attempt`]: the record that it writes if the partition holds what it expects.
    Attempt { entry: Entry, expected: Expected, judgement: Judgement },
    /// No effect, whatever the store holds, though compaction would keep the record and drop what was before: what can't be decoded,
    /// and what a trimmer sent that came too late.
    NoEffect { at: Position, timestamp: LogTime, by: Writer },
}

/// Whether what a conditional write expects can be held against what the store holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// It came too late, or is of another log: it has no effect, whatever the store holds.
    VoidByItself,
    /// Nothing that was appended before it is missing.
    ByTheStore,
    /// Compaction may have removed what decides: a record before it that it replaced, or a repair would have.
    Impossible,
}

/// Who wrote a record that has no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    Trimmer,
    /// Perhaps no node: where the record hides nothing, it is left alone.
    Unknown,
}

impl From<Entry> for Change {
    fn from(entry: Entry) -> Self {
        Self::Write(entry)
    }
}

impl Change {
    /// Where the record lies.
    pub fn at(&self) -> Position {
        match self {
            // A repair's entry is of another offset.
            Self::Write(entry) | Self::Attempt { entry, .. } => entry.position(),
            Self::Repair { at, .. } | Self::Trim { at, .. } | Self::NoEffect { at, .. } => *at,
        }
    }
}

/// A record of no effect that compaction would prefer to what decided before it: the one that the store holds, or the
/// tombstone that left it nothing. It is pending until a later record of the key takes effect that settles it; the trimmer appends one.
///
/// Also a *doubt*: a conditional write that could not be judged, or what came behind one, and was taken for a record that has an effect.
/// What the store holds may not be what the log says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PendingRepair {
    /// Of the record without effect.
    pub position: Position,
    /// When that was written.
    pub timestamp: LogTime,
}

/// What the partitions say of one key. Each is a log of its own, compacted by itself, so each decides for itself what
/// takes effect; the key's record is the newest of theirs. There is more than one only where the number of partitions was
/// changed, or writers disagree about the partitioner.
///
/// Since partitions are read independently, a node that is behind may meet the tombstone of a record before those of the older
/// ones, or before the record that replaced it. A store that is read must not show that: what was trimmed stays as a *provisional entry*
/// while it is the newest, and something is yet to come. A provisional entry decides nothing. What it waits for does come, since it is
/// younger than any store that may be trusted.
#[derive(Debug, Default)]
pub struct KeyState {
    /// Whether the store was complete at some time, so that readers are shown its entries.
    pub shown_to_readers: bool,
    /// Provisional entries among them.
    pub entries: SmallVec<[Entry; 1]>,
    /// At most one for each partition.
    pub pending_repairs: SmallVec<[PendingRepair; 1]>,
    /// At most one for each partition, which then has no pending repair.
    pub doubts: SmallVec<[PendingRepair; 1]>,
    /// When the last tombstone that made a provisional entry was appended. Everything up to then must be read before that entry goes.
    pub last_trimmed_at: LogTime,
}

/// What came of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Unchanged,
    Written,
    /// Written, by a repair that says something else than a store held that lacks nothing.
    Contradicted,
    Trimmed,
    Void,
    /// Written, by a conditional write of which it is not known whether it took effect.
    Undecided,
}

impl KeyState {
    /// What a partition holds of the key. Provisional entries are nothing.
    pub fn held(&self, partition: i32) -> Option<&Entry> {
        self.entries.iter().find(|entry| !entry.is_provisional() && entry.position().partition == partition)
    }

    pub fn apply(&mut self, change: Change) -> Outcome {
        let at = change.at();
        let of_partition =
            |entry: &Entry| !entry.is_provisional() && entry.position().partition == at.partition;
        let held = self.entries.iter().position(of_partition);
        let held_offset = held.map(|held| self.entries[held].position().offset);
        if held_offset.is_some_and(|held| held >= at.offset) {
            // Applied before.
            return Outcome::Unchanged;
        }
        match change {
            Change::Write(entry) => {
                self.settle(at.partition, at.offset);
                self.put(entry);
                Outcome::Written
            }
            Change::Attempt { entry, expected, judgement } => self.attempt(held, entry, expected, judgement),
            Change::NoEffect { by: Writer::Unknown, .. } if held.is_none() => Outcome::Unchanged,
            Change::NoEffect { timestamp, .. } => self.leave_pending(at, timestamp),
            Change::Repair { timestamp, entry, reach, settles, complete, .. } => {
                let offset = entry.position().offset;
                let is_certain = complete && !self.is_in_doubt(at.partition);
                if !self.counts(at, timestamp, held_offset <= Some(offset.max(reach)), settles) {
                    return Outcome::Void;
                }
                // The same record again.
                if held_offset == Some(offset) {
                    return Outcome::Unchanged;
                }
                self.put(entry);
                if held.is_some() && is_certain { Outcome::Contradicted } else { Outcome::Written }
            }
            Change::Trim { timestamp, offset, settles, complete, .. } => {
                let in_doubt = self.is_in_doubt(at.partition);
                if !self.counts(at, timestamp, held_offset <= Some(offset), settles) {
                    return Outcome::Void;
                }
                let Some(held) = held else { return Outcome::Unchanged };
                // What is doubted may have had no effect, and what it hides may have been a delete.
                let is_exact = !in_doubt && (complete || held_offset == Some(offset));
                let outcome = self.trim(held, is_exact, timestamp);
                if in_doubt && self.shown_to_readers {
                    // The partition holds nothing now. But what is shown until the provisional entry goes may be what took no effect,
                    // in the place of what another partition holds.
                    self.doubt(at, timestamp);
                }
                outcome
            }
        }
    }

    /// Whether a trim or a repair changes the key: one that `reaches` what is held, and then settles what is pending or in doubt up to
    /// `settles`; and one that does not, where what is held is in doubt. Any other is pending from here on.
    fn counts(&mut self, at: Position, timestamp: LogTime, reaches: bool, settles: i64) -> bool {
        if reaches {
            self.settle(at.partition, settles);
            return true;
        }
        let in_doubt = self.is_in_doubt(at.partition);
        if in_doubt {
            self.doubt(at, timestamp);
        } else {
            self.leave_pending(at, timestamp);
        }
        in_doubt
    }

    /// A conditional write of a record, where the entry `held` is what its partition holds.
    fn attempt(
        &mut self,
        held: Option<usize>,
        entry: Entry,
        expected: Expected,
        judgement: Judgement,
    ) -> Outcome {
        let (at, timestamp) = (entry.position(), entry.timestamp());
        let doubt = self.doubts.iter().find(|doubt| doubt.position.partition == at.partition);
        let doubt = doubt.map(|doubt| doubt.position.offset);
        let is_met = is_met(expected, held.map(|held| &self.entries[held]), timestamp);
        match (judgement, doubt, is_met) {
            (Judgement::VoidByItself, _, _) | (Judgement::ByTheStore, None, false) => {
                self.leave_pending(at, timestamp)
            }
            (Judgement::ByTheStore, None, true) => {
                self.settle(at.partition, at.offset);
                self.put(entry);
                Outcome::Written
            }
            // Who sent it knew that the attempt which is doubted had taken effect.
            (Judgement::ByTheStore, Some(doubt), true) if expected.offset() == Some(doubt) => {
                self.settle(at.partition, at.offset);
                self.put(entry);
                Outcome::Undecided
            }
            (Judgement::ByTheStore, Some(_), _) | (Judgement::Impossible, _, _) => {
                self.doubt(at, timestamp);
                self.put(entry);
                Outcome::Undecided
            }
        }
    }

    /// Makes this what its partition holds; provisional entries go, too.
    fn put(&mut self, entry: Entry) {
        self.entries.retain(|held| held.position().partition != entry.position().partition);
        self.entries.push(entry);
    }

    /// Removes an entry by a tombstone that was appended at `timestamp`. `is_exact`: it was this entry that was trimmed, and no other
    /// that replaced it.
    fn trim(&mut self, held: usize, is_exact: bool, timestamp: LogTime) -> Outcome {
        let entry = self.entries.swap_remove(held);
        if self.shown_to_readers {
            // It was trimmed alive, for a newer one has replaced it; or dead, and the older ones before it. What it was
            // that replaced this one in its own partition is not known any more: it may have been a delete.
            let alive = is_exact && entry.state_by_log_time(timestamp) == State::Live;
            self.entries.push(if alive { entry.as_provisional() } else { entry.as_provisional_delete() });
            self.last_trimmed_at = self.last_trimmed_at.max(timestamp);
        }
        Outcome::Trimmed
    }

    /// Whether it is not known what a partition holds: a record that could not be judged was taken for one that has an effect.
    pub fn is_in_doubt(&self, partition: i32) -> bool {
        self.doubts.iter().any(|doubt| doubt.position.partition == partition)
    }

    /// A record that may have no effect is taken for one that has: it is the last word on its key, unless a repair follows that reaches it.
    fn doubt(&mut self, at: Position, timestamp: LogTime) {
        self.settle(at.partition, at.offset);
        self.doubts.push(PendingRepair { position: at, timestamp });
    }

    /// The pending repair, or the doubt, of a partition lies there now.
    fn leave_pending(&mut self, at: Position, timestamp: LogTime) -> Outcome {
        let pending = PendingRepair { position: at, timestamp };
        let in_doubt = self.is_in_doubt(at.partition);
        self.settle(at.partition, at.offset);
        let pending_repairs = if in_doubt { &mut self.doubts } else { &mut self.pending_repairs };
        pending_repairs.push(pending);
        Outcome::Void
    }

    /// A record took effect that settles what was pending in a partition up to an offset.
    fn settle(&mut self, partition: i32, up_to: i64) {
        let is_left = |pending: &mut PendingRepair| {
            pending.position.partition != partition || pending.position.offset > up_to
        };
        self.pending_repairs.retain(is_left);
        self.doubts.retain(is_left);
    }

    /// Puts the newest entry first, and forgets provisional entries that nothing waits for.
    pub fn sort(&mut self) {
        for at in 1..self.entries.len() {
            if self.entries[at].is_newer_than(&self.entries[0]) {
                self.entries.swap(0, at);
            }
        }
        let alone = self.entries.iter().all(Entry::is_provisional);
        let mut first = true;
        self.entries.retain(|entry| {
            let waits = first && (!alone || entry.ttl() != ttl::DELETED);
            first = false;
            !entry.is_provisional() || waits
        });
    }

    /// All entries but the first: for each its length (u32, big-endian) and bytes.
    pub fn encode_older_entries(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for entry in self.entries.iter().skip(1) {
            bytes.extend((entry.as_stored().len() as u32).to_be_bytes());
            bytes.extend(entry.as_stored());
        }
        bytes
    }

    pub fn encode_pending_repairs(&self) -> Vec<u8> {
        encode(&self.pending_repairs)
    }

    pub fn encode_doubts(&self) -> Vec<u8> {
        encode(&self.doubts)
    }
}

/// Whether a partition that holds this of a key holds what is expected, when it was `now` by the log's clock.
fn is_met(expected: Expected, held: Option<&Entry>, now: LogTime) -> bool {
    // Another writer's tombstone is forgotten by each node in its own time, so it must be the same as nothing.
    let held = held.filter(|entry| !entry.is_tombstone());
    match (expected, held) {
        (Expected::Nothing, held) => held.is_none(),
        (Expected::Live(_) | Expected::Dead(_), None) => false,
        (Expected::Live(offset), Some(held)) => held.position().offset == offset && held.is_live_at(now),
        (Expected::Dead(offset), Some(held)) => held.position().offset == offset && !held.is_live_at(now),
    }
}

/// For each: partition (i32), offset (i64), timestamp (i64), big-endian.
fn encode(all: &[PendingRepair]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for PendingRepair { position, timestamp } in all {
        bytes.extend(position.partition.to_be_bytes());
        bytes.extend(position.offset.to_be_bytes());
        bytes.extend(timestamp.ms().to_be_bytes());
    }
    bytes
}

/// What [`KeyState::encode_older_entries`] wrote of a key.
pub fn parse_older_entries(key: &[u8], mut bytes: &[u8]) -> Result<Vec<Entry>, StoreError> {
    let mut entries = Vec::new();
    while !bytes.is_empty() {
        let entry = bytes.split_first_chunk().and_then(|(length, rest)| {
            let (entry, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
            bytes = rest;
            Entry::from_stored(key, entry)
        });
        entries.push(entry.ok_or(StoreError::Corrupt("others"))?);
    }
    Ok(entries)
}

/// What [`KeyState::encode_pending_repairs`] and [`KeyState::encode_doubts`] wrote.
pub fn parse_pending_repairs(mut bytes: &[u8]) -> Result<SmallVec<[PendingRepair; 1]>, StoreError> {
    let mut pending_repairs = SmallVec::new();
    while !bytes.is_empty() {
        let pending = bytes.split_first_chunk().and_then(|(partition, rest)| {
            let (offset, rest) = rest.split_first_chunk()?;
            let (timestamp, rest) = rest.split_first_chunk()?;
            bytes = rest;
            let partition = i32::from_be_bytes(*partition);
            let position = Position { partition, offset: i64::from_be_bytes(*offset) };
            Some(PendingRepair { position, timestamp: LogTime::from_ms(i64::from_be_bytes(*timestamp)) })
        });
        pending_repairs.push(pending.ok_or(StoreError::Corrupt("pending_repairs"))?);
    }
    Ok(pending_repairs)
}
