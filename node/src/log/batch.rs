//! Records as a reader hands them over.

use std::ops::Range;

use super::{Condition, Level};
use crate::clock::LogTime;
use crate::telemetry::TraceParent;
use bitacora_protocol::{NextOffset, Position};

/// Records as they came from the log, and how far each partition has been read with them.
///
/// The bytes lie in one buffer, so that applying a record costs no allocation.
#[derive(Default)]
pub struct Batch {
    bytes: Vec<u8>,
    records: Vec<RawRecord>,
    read: Vec<PartitionRead>,
    log_time: Option<LogTime>,
    traced: Vec<(Position, TraceParent)>,
    level: Option<(Position, Level)>,
}

/// How far a partition has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionRead {
    pub partition: i32,
    /// Everything below has been read. Beyond the last record where the log ends in holes.
    pub next: NextOffset,
    /// The latest write timestamp of the records that were read since; `None` if there was none.
    pub latest: Option<LogTime>,
    /// The epoch of the leader under which the record before `next` was appended; `None` if a hole is there, or if it is
    /// not known.
    pub epoch: Option<i32>,
    /// Whether something may be missing in what was read, since compaction removed it: told by who applies it.
    pub gap: bool,
    /// The level that the partition has at `next`, if what was read told one: told by who applies it.
    pub level: Option<Level>,
}

impl PartitionRead {
    /// Up to `next`, without a record.
    #[must_use]
    pub fn up_to(partition: i32, next: NextOffset) -> Self {
        Self { partition, next, latest: None, epoch: None, gap: false, level: None }
    }

    /// Nothing yet: reading begins at `next`. What was before it is missing.
    #[must_use]
    pub fn begin(partition: i32, next: NextOffset) -> Self {
        Self { gap: next.0 > 0, ..Self::up_to(partition, next) }
    }
}

struct RawRecord {
    position: Position,
    timestamp: LogTime,
    key: Option<Range<usize>>,
    value: Option<Range<usize>>,
    condition: Option<Condition>,
    level: Option<Level>,
    epoch: Option<i32>,
}

/// One record of a [`Batch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogRecord<'a> {
    pub position: Position,
    /// The write timestamp.
    pub timestamp: LogTime,
    /// Others may write records without a key.
    pub key: Option<&'a [u8]>,
    /// `None` is a tombstone.
    pub value: Option<&'a [u8]>,
    /// `None` for a write.
    pub condition: Option<Condition>,
    /// What its header says of the partition's level, whatever its key is.
    pub level: Option<Level>,
    /// Of the leader under which it was appended, if that is known.
    pub epoch: Option<i32>,
}

impl Batch {
    /// Enough records for one LMDB transaction to pay off, few enough to bound memory and the wait of the first.
    const MAX_RECORDS: usize = 20_000;
    const MAX_BYTES: usize = 16 << 20;
    /// Traces that are kept; those of further records are dropped.
    const MAX_TRACED: usize = 256;

    pub fn clear(&mut self) {
        self.bytes.clear();
        self.records.clear();
        self.read.clear();
        self.log_time = None;
        self.traced.clear();
        self.level = None;
        if self.bytes.capacity() > 2 * Self::MAX_BYTES {
            self.bytes.shrink_to(Self::MAX_BYTES);
        }
    }

    pub fn push(&mut self, record: LogRecord<'_>) {
        let key = record.key.map(|key| self.copy(key));
        let value = record.value.map(|value| self.copy(value));
        let LogRecord { position, timestamp, condition, level, epoch, .. } = record;
        if let Some(told) = level.filter(|_| record.key == Some(Level::KEY.as_bytes()))
            && self.level.is_none_or(|(_, highest)| told > highest)
        {
            self.level = Some((position, told));
        }
        self.records.push(RawRecord { position, timestamp, key, value, condition, level, epoch });
        self.note(PartitionRead {
            latest: Some(timestamp),
            epoch,
            ..PartitionRead::up_to(position.partition, NextOffset::after(position.offset))
        });
    }

    /// Notes that nothing is left to read below `next`.
    pub fn reached(&mut self, partition: i32, next: NextOffset) {
        self.note(PartitionRead::up_to(partition, next));
    }

    fn note(&mut self, read: PartitionRead) {
        match self.read.iter_mut().find(|known| known.partition == read.partition) {
            Some(known) => {
                known.latest = known.latest.max(read.latest);
                if known.next < read.next {
                    (known.next, known.epoch) = (read.next, read.epoch);
                }
            }
            None => self.read.push(read),
        }
    }

    /// Notes that a record was appended at this time of the log's own clock.
    pub fn appended_at(&mut self, time: LogTime) {
        self.log_time = self.log_time.max(Some(time));
    }

    /// The latest of those: the log's clock had come as far. `None` if only writers' clocks are known.
    #[must_use]
    pub fn log_time(&self) -> Option<LogTime> {
        self.log_time
    }

    /// The highest level that the records tell of their partitions, and where.
    #[must_use]
    pub fn highest_level(&self) -> Option<(Position, Level)> {
        self.level
    }

    /// Notes of which trace the record at a position is a part.
    pub fn add_trace(&mut self, position: Position, trace: TraceParent) {
        if self.traced.len() < Self::MAX_TRACED {
            self.traced.push((position, trace));
        }
    }

    /// The records that are part of a trace, or the first of them if they are many.
    #[must_use]
    pub fn traced(&self) -> &[(Position, TraceParent)] {
        &self.traced
    }

    fn copy(&mut self, bytes: &[u8]) -> Range<usize> {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        start..self.bytes.len()
    }

    #[must_use]
    pub fn is_full(&self) -> bool {
        self.records.len() >= Self::MAX_RECORDS || self.bytes.len() >= Self::MAX_BYTES
    }

    #[must_use]
    pub fn says_nothing(&self) -> bool {
        self.read.is_empty()
    }

    pub fn records(&self) -> impl ExactSizeIterator<Item = LogRecord<'_>> {
        self.records.iter().map(|raw| LogRecord {
            position: raw.position,
            timestamp: raw.timestamp,
            key: raw.key.clone().map(|range| &self.bytes[range]),
            value: raw.value.clone().map(|range| &self.bytes[range]),
            condition: raw.condition,
            level: raw.level,
            epoch: raw.epoch,
        })
    }

    /// Of each partition that moved.
    #[must_use]
    pub fn read(&self) -> &[PartitionRead] {
        &self.read
    }
}
