use bitacora_protocol::record::ttl;
use smallvec::SmallVec;

use crate::clock::LogTime;
use crate::store::{Entry, State, StoreError};
use bitacora_protocol::Position;

/// What a record of the log does to its key.
#[derive(Clone, Debug)]
pub enum Change {
    /// A write, or another's tombstone.
    Write(Entry),
    /// [`crate::log::Condition::Repair`], which lies `at` that position since `timestamp`; `entry` has the position and the
    /// write timestamp of what is repaired.
    Repair { at: Position, timestamp: LogTime, entry: Entry },
    /// [`crate::log::Condition::Trim`] of the record at `offset`.
    Trim { at: Position, timestamp: LogTime, offset: i64 },
    /// No effect, whatever the store holds, though compaction would keep the record and drop what was before: what can't be decoded,
    /// and what a trimmer sent that came too late.
    NoEffect { at: Position, timestamp: LogTime, by: Writer },
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
    /// The partition, and the greatest offset there that this change may replace.
    fn replaces_up_to(&self) -> Position {
        match self {
            Self::Write(entry) | Self::Repair { entry, .. } => entry.position(),
            Self::Trim { at, offset, .. } => Position { partition: at.partition, offset: *offset },
            Self::NoEffect { at, .. } => *at,
        }
    }
}

/// A record of no effect that compaction would prefer to what decided before it: the one that the store holds, or the
/// tombstone that left it nothing. It is pending until a later record of the key takes effect; the trimmer appends one.
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
    pub pending_repairs: SmallVec<[PendingRepair; 1]>,
    /// When the last tombstone that made a provisional entry was appended. Everything up to then must be read before that entry goes.
    pub last_trimmed_at: LogTime,
}

/// What came of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Unchanged,
    Written,
    Trimmed,
    Void,
}

impl KeyState {
    pub fn apply(&mut self, change: Change) -> Outcome {
        let replaced = change.replaces_up_to();
        let held =
            |entry: &Entry| !entry.is_provisional() && entry.position().partition == replaced.partition;
        let held = self.entries.iter().position(held);
        let offset = held.map(|held| self.entries[held].position().offset);
        if offset.is_some_and(|offset| offset > replaced.offset) {
            let (at, timestamp) = match change {
                // Applied before.
                Change::Write(_) | Change::NoEffect { .. } => return Outcome::Unchanged,
                Change::Repair { at, timestamp, .. } | Change::Trim { at, timestamp, .. } => (at, timestamp),
            };
            self.clear_pending_repairs(replaced.partition);
            self.pending_repairs.push(PendingRepair { position: at, timestamp });
            return Outcome::Void;
        }
        if let Change::NoEffect { at, timestamp, by } = change {
            if held.is_none() && by == Writer::Unknown {
                return Outcome::Unchanged;
            }
            self.clear_pending_repairs(at.partition);
            self.pending_repairs.push(PendingRepair { position: at, timestamp });
            return Outcome::Void;
        }
        self.clear_pending_repairs(replaced.partition);
        match (change, held) {
            (Change::Trim { timestamp, offset, .. }, Some(held)) => self.trim(held, offset, timestamp),
            (Change::Trim { .. }, None) | (Change::NoEffect { .. }, _) => Outcome::Unchanged,
            // The same record again.
            (_, Some(_)) if offset == Some(replaced.offset) => Outcome::Unchanged,
            (Change::Write(entry) | Change::Repair { entry, .. }, _) => {
                // Provisional entries, too.
                self.entries.retain(|held| held.position().partition != replaced.partition);
                self.entries.push(entry);
                Outcome::Written
            }
        }
    }

    /// Removes an entry by a tombstone that was appended at `timestamp` and speaks of the record at `offset`, this one or one that
    /// replaced it.
    fn trim(&mut self, held: usize, offset: i64, timestamp: LogTime) -> Outcome {
        let entry = self.entries.swap_remove(held);
        if self.shown_to_readers {
            // It was trimmed alive, for a newer one has replaced it; or dead, and the older ones before it. What it was
            // that replaced this one in its own partition is not known any more: it may have been a delete.
            let alive =
                entry.position().offset == offset && entry.state_by_log_time(timestamp) == State::Live;
            self.entries.push(if alive { entry.as_provisional() } else { entry.as_provisional_delete() });
            self.last_trimmed_at = self.last_trimmed_at.max(timestamp);
        }
        Outcome::Trimmed
    }

    fn clear_pending_repairs(&mut self, partition: i32) {
        self.pending_repairs.retain(|pending| pending.position.partition != partition);
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
            bytes.extend((entry.as_bytes().len() as u32).to_be_bytes());
            bytes.extend(entry.as_bytes());
        }
        bytes
    }

    /// For each: partition (i32), offset (i64), timestamp (i64), big-endian.
    pub fn encode_pending_repairs(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for PendingRepair { position, timestamp } in &self.pending_repairs {
            bytes.extend(position.partition.to_be_bytes());
            bytes.extend(position.offset.to_be_bytes());
            bytes.extend(timestamp.ms().to_be_bytes());
        }
        bytes
    }
}

pub fn parse_older_entries(mut bytes: &[u8]) -> Result<Vec<Entry>, StoreError> {
    let mut entries = Vec::new();
    while !bytes.is_empty() {
        let entry = bytes.split_first_chunk().and_then(|(length, rest)| {
            let (entry, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
            bytes = rest;
            Entry::from_bytes(entry)
        });
        entries.push(entry.ok_or(StoreError::Corrupt("others"))?);
    }
    Ok(entries)
}

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
