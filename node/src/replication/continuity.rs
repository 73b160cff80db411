//! What is known of each partition while a batch is applied: whether compaction may have removed something before a record, and the
//! partition's level there.
//!
//! Compaction leaves holes in the offsets, and so do transaction markers. It never touches what is younger than
//! `min.compaction.lag.ms`, so a hole among young records is no gap; and what is young has everything before it that compaction would have
//! removed on its account.

use crate::log::{Level, LogRecord, PartitionRead};
use crate::store::{Store, StoreError};
use bitacora_protocol::HighWatermark;

/// Of the partitions of one batch, in the order in which its records are noted.
pub(super) struct Continuity<'a> {
    partitions: Vec<Partition>,
    young_from: &'a [HighWatermark],
}

struct Partition {
    number: i32,
    /// The offset behind the last record.
    next: i64,
    after_gap: bool,
    level: Level,
    /// Whether there was a gap in this batch.
    gap: bool,
    level_told: bool,
}

/// What is known of a record's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Nothing is missing that decides what the record does, unless its key is in doubt.
    pub complete: bool,
    /// Of the partition, before the record.
    pub level: Level,
}

impl<'a> Continuity<'a> {
    /// Of the partitions that were read, where the store stands. `young_from`: see
    /// [`crate::replication::progress::Progress::young_from`].
    pub fn new(
        store: &Store,
        read: &[PartitionRead],
        young_from: &'a [HighWatermark],
    ) -> Result<Self, StoreError> {
        let mut partitions = Vec::with_capacity(read.len());
        for PartitionRead { partition, .. } in read {
            let state = store.partition_state(*partition)?;
            partitions.push(Partition {
                number: *partition,
                next: state.next.0,
                after_gap: state.after_gap,
                level: state.level,
                gap: false,
                level_told: false,
            });
        }
        Ok(Self { partitions, young_from })
    }

    /// The next record of its partition is this.
    pub fn note(&mut self, record: &LogRecord<'_>) -> Place {
        let (partition, offset) = (record.position.partition, record.position.offset);
        let is_young = self.is_young(partition, offset);
        self.reach(partition, offset);
        let Some(known) = self.of(partition) else { return Place { complete: false, level: Level::FIRST } };
        known.next = offset + 1;
        let place = Place { complete: is_young || !known.after_gap, level: known.level };
        if let Some(level) = record.level.filter(|_| record.key == Some(Level::KEY.as_bytes())) {
            (known.level, known.level_told) = (known.level.max(level), true);
        }
        place
    }

    /// All was noted that was read: what the store has to know of it.
    pub fn finish(mut self, read: &[PartitionRead]) -> Vec<PartitionRead> {
        let note = |read: &PartitionRead| {
            self.reach(read.partition, read.next.0);
            let Some(known) = self.of(read.partition) else { return *read };
            PartitionRead { gap: known.gap, level: known.level_told.then_some(known.level), ..*read }
        };
        read.iter().map(note).collect()
    }

    /// Nothing was there up to an offset.
    fn reach(&mut self, partition: i32, offset: i64) {
        let from = self.of(partition).map(|known| known.next);
        // What is young is there but for transaction markers.
        let is_gap = from.is_some_and(|from| from < offset && !self.is_young(partition, from));
        if let Some(known) = self.of(partition).filter(|_| is_gap) {
            (known.after_gap, known.gap) = (true, true);
        }
    }

    fn of(&mut self, partition: i32) -> Option<&mut Partition> {
        self.partitions.iter_mut().find(|known| known.number == partition)
    }

    fn is_young(&self, partition: i32, offset: i64) -> bool {
        let from = usize::try_from(partition).ok().and_then(|partition| self.young_from.get(partition));
        from.is_some_and(|from| offset >= from.0)
    }
}
