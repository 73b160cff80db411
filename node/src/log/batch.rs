//! Records as a reader hands them over.

use super::{Condition, Level};
use crate::clock::LogTime;
use crate::telemetry::TraceParent;
use bitacora_protocol::{NextOffset, Position};

/// Records as they came from the log, and how far each partition has been read with them.
///
/// The bytes lie in one buffer, so that applying a record costs no allocation.
#[derive(Default)]
pub struct Batch {
    bounds: BatchBounds,
    bytes: Vec<u8>,
    records: Vec<RawRecord>,
    /// What few records have, each with the index of its record, in their order.
    headers: Vec<(usize, RecordHeaders)>,
    read: Vec<PartitionRead>,
    log_time: Option<LogTime>,
    traced: Vec<(Position, TraceParent)>,
    level: Option<(Position, Level)>,
}

/// How much a batch takes before it is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchBounds {
    records: usize,
    /// Of keys and values.
    bytes: usize,
}

impl Default for BatchBounds {
    /// Enough records for one LMDB transaction to pay off, few enough to bound memory and the wait of the first.
    fn default() -> Self {
        Self { records: 20_000, bytes: 16 << 20 }
    }
}

impl BatchBounds {
    /// For a store that nobody reads yet, whose keys come in about their own order: the larger a transaction, the less of it lies
    /// before what is written already, and the fuller are the pages. They bound the memory that a restore takes.
    pub const LARGEST: Self = Self { records: 160_000, bytes: 32 << 20 };

    /// Twice as much, at most [`BatchBounds::LARGEST`].
    #[must_use]
    pub fn doubled(self) -> Self {
        let Self { records, bytes } = Self::LARGEST;
        Self { records: records.min(2 * self.records), bytes: bytes.min(2 * self.bytes) }
    }
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

/// A record whose key and value lie one behind the other.
struct RawRecord {
    position: Position,
    timestamp: LogTime,
    start: usize,
    key: Length,
    value: Length,
    epoch: Option<i32>,
    has_headers: bool,
}

#[derive(Clone, Copy, Default)]
struct RecordHeaders {
    condition: Option<Condition>,
    level: Option<Level>,
}

/// Of something that may be missing. A batch has many, and a length of Kafka's has 31 bits.
#[derive(Clone, Copy)]
struct Length(u32);

impl Length {
    const MISSING: u32 = u32::MAX;

    fn of(bytes: Option<&[u8]>) -> Self {
        Self(bytes.map_or(Self::MISSING, |bytes| u32::try_from(bytes.len()).unwrap_or(Self::MISSING)))
    }

    /// As many of the first bytes as this says, which are taken off.
    fn take<'a>(self, bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
        let (taken, rest) =
            bytes.split_at(if self.0 == Self::MISSING { return None } else { self.0 as usize });
        *bytes = rest;
        Some(taken)
    }
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
    /// Traces that are kept; those of further records are dropped.
    const MAX_TRACED: usize = 256;

    /// Empties it. It takes as much as these bounds say from now on.
    pub fn begin(&mut self, bounds: BatchBounds) {
        if bounds.bytes < self.bounds.bytes {
            // What a large one took is given back.
            *self = Self::default();
        }
        self.bounds = bounds;
        self.clear();
    }

    pub fn clear(&mut self) {
        self.bytes.clear();
        self.records.clear();
        self.headers.clear();
        self.read.clear();
        self.log_time = None;
        self.traced.clear();
        self.level = None;
        if self.bytes.capacity() > 2 * self.bounds.bytes {
            self.bytes.shrink_to(self.bounds.bytes);
        }
    }

    pub fn push(&mut self, record: LogRecord<'_>) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(record.key.unwrap_or_default());
        self.bytes.extend_from_slice(record.value.unwrap_or_default());
        let (key, value) = (Length::of(record.key), Length::of(record.value));
        let LogRecord { position, timestamp, condition, level, epoch, .. } = record;
        if let Some(told) = level.filter(|_| record.key == Some(Level::KEY.as_bytes()))
            && self.level.is_none_or(|(_, highest)| told > highest)
        {
            self.level = Some((position, told));
        }
        let has_headers = condition.is_some() || level.is_some();
        if has_headers {
            self.headers.push((self.records.len(), RecordHeaders { condition, level }));
        }
        self.records.push(RawRecord { position, timestamp, start, key, value, epoch, has_headers });
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

    #[must_use]
    pub fn is_full(&self) -> bool {
        self.records.len() >= self.bounds.records || self.bytes.len() >= self.bounds.bytes
    }

    /// Whether so many more of its records as a reader takes at once are no more than a small part of what a batch may have.
    #[must_use]
    pub fn has_small_records(&self) -> bool {
        const SMALL_BYTES: usize = 4096;
        self.bytes.len() <= SMALL_BYTES * self.records.len()
    }

    /// Whether a moment's wait for more of it pays off, since it is to be large.
    #[must_use]
    pub fn is_worth_a_wait(&self) -> bool {
        self.bounds != BatchBounds::default()
    }

    #[must_use]
    pub fn says_nothing(&self) -> bool {
        self.read.is_empty()
    }

    pub fn records(&self) -> impl ExactSizeIterator<Item = LogRecord<'_>> {
        self.records.iter().enumerate().map(|(index, raw)| self.record_of(index, raw))
    }

    /// The record of an index.
    #[must_use]
    pub fn record(&self, index: usize) -> Option<LogRecord<'_>> {
        self.records.get(index).map(|raw| self.record_of(index, raw))
    }

    fn record_of(&self, index: usize, raw: &RawRecord) -> LogRecord<'_> {
        let RawRecord { position, timestamp, start, key, value, epoch, has_headers } = *raw;
        let found = has_headers.then(|| self.headers.binary_search_by_key(&index, |(of, _)| *of));
        let headers = found.and_then(|at| self.headers.get(at.ok()?));
        let RecordHeaders { condition, level } =
            headers.map_or_else(Default::default, |(_, headers)| *headers);
        let mut bytes = &self.bytes[start..];
        let (key, value) = (key.take(&mut bytes), value.take(&mut bytes));
        LogRecord { position, timestamp, key, value, condition, level, epoch }
    }

    /// Of each partition that moved.
    #[must_use]
    pub fn read(&self) -> &[PartitionRead] {
        &self.read
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(offset: i64, level: Option<Level>) -> LogRecord<'static> {
        let position = Position { partition: 0, offset };
        let (key, value) = ((offset != 2).then_some(&b"key"[..]), (offset != 1).then_some(&b""[..]));
        let condition = (offset == 3).then_some(Condition::Unreadable);
        LogRecord { position, timestamp: LogTime::from_ms(offset), key, value, condition, level, epoch: None }
    }

    #[test]
    fn every_record_is_found_as_it_was_pushed() {
        let mut batch = Batch::default();
        let records = [record(0, None), record(1, Some(Level(2))), record(2, None), record(3, None)];
        for record in records {
            batch.push(record);
        }
        assert_eq!(batch.records().collect::<Vec<_>>(), records);
        assert_eq!((0..5).filter_map(|index| batch.record(index)).collect::<Vec<_>>(), records);
        batch.clear();
        assert!(batch.record(0).is_none());
    }

    #[test]
    fn a_batch_is_full_by_its_bounds() {
        let (mut batch, mut bounds) = (Batch::default(), BatchBounds::default());
        for _ in 0..10 {
            batch.begin(bounds);
            let most = BatchBounds::LARGEST.records as i64;
            let pushed = (0..most).find(|offset| {
                batch.push(record(*offset, None));
                batch.is_full()
            });
            assert_eq!(pushed.map(|offset| offset as usize + 1), Some(bounds.records));
            assert_eq!(batch.is_worth_a_wait(), bounds != BatchBounds::default());
            bounds = bounds.doubled();
        }
        assert_eq!(bounds, BatchBounds::LARGEST);
    }
}
