//! Reading: one key, or a page of keys in order.

use std::ops::Bound;
use std::sync::Arc;

use super::apply::KeyLookup;
use super::cache::{FoundTogether, MOST_TOGETHER};
use super::generation::Generation;
use super::{Entry, Store, StoreError};
use crate::clock::LogTime;
use crate::log::{Expected, Level, LogTag};

/// A page of a scan ends with the record that reaches this.
pub(super) const MAX_SCAN_BYTES: usize = 1 << 20;
/// A page of a scan looks at no more keys, so that a range of deleted ones holds no transaction for long.
pub(super) const MAX_SCAN_KEYS: usize = 50_000;

/// What a partition holds of a key, for whoever decides on it: [`Store::versioned`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionedRead {
    /// Its position is the key's version. `None` also where the partition holds a tombstone or a provisional entry: those are nothing to
    /// what is to be decided.
    pub entry: Option<Entry>,
    /// What the partition holds may not be what the log says: nothing may be decided by it, nor told as what is there now.
    pub in_doubt: bool,
    /// Whether another partition holds a record of the key, a delete marker perhaps.
    pub elsewhere: bool,
    /// Of the partition.
    pub level: Level,
    /// That this is of.
    pub log: LogTag,
}

impl VersionedRead {
    /// What a write says that it expects, which is meant for exactly this and was judged when the log's clock showed `now`.
    #[must_use]
    pub fn expected(&self, now: LogTime) -> Expected {
        match &self.entry {
            None => Expected::Nothing,
            Some(entry) if entry.is_live_at(now) => Expected::Live(entry.position().offset),
            Some(entry) => Expected::Dead(entry.position().offset),
        }
    }
}

/// What the store holds of a key, of one moment: [`Store::snapshot_read`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotRead {
    /// The newest record, delete markers included.
    pub entry: Option<Entry>,
    /// Whether that may not be what the log says, whichever partition it is in: a conditional write before it could not be judged.
    pub in_doubt: bool,
    /// That this is of.
    pub log: LogTag,
}

/// A page of a scan, of one moment: [`Store::scan`].
#[derive(Debug)]
pub struct ScannedPage {
    /// In key order.
    pub entries: Vec<Entry>,
    /// The last key that was looked at if there are more.
    pub last: Option<Vec<u8>>,
    /// The first key in doubt among those that were looked at: what is said of it, or that it is missing, may not be what the log says.
    pub in_doubt: Option<Vec<u8>>,
}

/// Where a record was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    Cache,
    Store,
}

impl Store {
    /// See [`Store::get_cached`].
    pub const MOST_TOGETHER: usize = MOST_TOGETHER;

    /// The newest record of a key, delete markers included. Takes microseconds; a page that the system has dropped
    /// from its page cache is read from disk.
    ///
    /// # Errors
    /// When LMDB fails.
    pub fn get(&self, key: &[u8]) -> Result<Option<(Entry, Tier)>, StoreError> {
        self.get_from(&self.current.load(), key)
    }

    /// As [`Store::get`] of several keys, as far as they are cached; that costs less than one after the other. At most
    /// [`Store::MOST_TOGETHER`] keys make sense.
    pub fn get_cached(&self, keys: &[&[u8]]) -> FoundTogether {
        self.current.load().cache.get_together(keys)
    }

    /// As [`Store::get`], and the log that the answer is of.
    ///
    /// # Errors
    /// When LMDB fails.
    pub fn get_with_log(&self, key: &[u8]) -> Result<(Option<(Entry, Tier)>, LogTag), StoreError> {
        loop {
            let generation = self.current.load_full();
            let found = self.get_from(&generation, key)?;
            // If it was emptied in place meanwhile, what was found may be the next generation's.
            if Arc::ptr_eq(&generation, &self.current.load()) {
                return Ok((found, generation.log));
            }
        }
    }

    /// What a partition holds of a key that nodes take, in one moment and past the cache.
    ///
    /// # Errors
    /// When LMDB fails.
    pub fn versioned(&self, key: &[u8], partition: i32) -> Result<VersionedRead, StoreError> {
        let generation = self.current.load_full();
        let environment = &generation.environment;
        let txn = environment.env.read_txn()?;
        let state = KeyLookup::of(environment, &txn)?.key_state(environment, &txn, key)?;
        let is_of_partition = |entry: &Entry| entry.position().partition == partition;
        let mut real = state.entries.iter().filter(|entry| !entry.is_provisional());
        Ok(VersionedRead {
            elsewhere: real.clone().any(|entry| !is_of_partition(entry)),
            entry: real.find(|entry| is_of_partition(entry) && !entry.is_tombstone()).cloned(),
            in_doubt: state.is_in_doubt(partition),
            level: environment.partition_state(&txn, partition)?.level,
            log: environment.log_in(&txn)?,
        })
    }

    /// The newest record of a key, and whether it is in doubt, from one LMDB transaction and past the cache: a record and the doubt about it
    /// are committed together, so both are here or neither is. With the cache, which learns of a commit after it is done, a doubt
    /// could come or go between the two.
    ///
    /// # Errors
    /// When LMDB fails.
    pub fn snapshot_read(&self, key: &[u8]) -> Result<SnapshotRead, StoreError> {
        let generation = self.current.load_full();
        let log = generation.log;
        if key.is_empty() || key.len() > self.max_key_bytes() {
            return Ok(SnapshotRead { entry: None, in_doubt: false, log });
        }
        let environment = &generation.environment;
        let txn = environment.env.read_txn()?;
        let entry = match environment.records.get(&txn, key)? {
            None => None,
            Some(bytes) => Some(Entry::from_stored(key, bytes).ok_or(StoreError::Corrupt("records"))?),
        };
        // Mostly there is none at all, which is told without a search.
        let in_doubt = !environment.doubts.is_empty(&txn)? && environment.doubts.get(&txn, key)?.is_some();
        Ok(SnapshotRead { entry, in_doubt, log })
    }

    /// [`SnapshotRead::in_doubt`] alone.
    ///
    /// # Errors
    /// When LMDB fails.
    pub fn in_doubt(&self, key: &[u8]) -> Result<bool, StoreError> {
        Ok(self.snapshot_read(key)?.in_doubt)
    }

    /// Reads from one generation, be it the current one or, by now, the one before.
    pub(super) fn get_from(
        &self,
        generation: &Generation,
        key: &[u8],
    ) -> Result<Option<(Entry, Tier)>, StoreError> {
        if key.is_empty() || key.len() > self.max_key_bytes() {
            return Ok(None);
        }
        let environment = &generation.environment;
        generation.cache.get_or_read(key, || {
            generation.look_into();
            let txn = environment.env.read_txn()?;
            match environment.records.get(&txn, key)? {
                None => Ok(None),
                Some(bytes) => Entry::from_stored(key, bytes).map(Some).ok_or(StoreError::Corrupt("records")),
            }
        })
    }

    /// Records in key order that are `wanted`: at most `limit`, and no more once they have 1 MiB or 50,000 keys were looked at.
    /// `end` is exclusive; empty for none.
    ///
    /// # Errors
    /// When LMDB fails.
    pub fn scan(
        &self,
        from: &Bound<Vec<u8>>,
        prefix: &[u8],
        end: &[u8],
        limit: usize,
        wanted: impl Fn(&Entry) -> bool,
    ) -> Result<ScannedPage, StoreError> {
        let from = match from {
            // LMDB has no empty keys.
            Bound::Included(key) if key.is_empty() => Bound::Unbounded,
            bound => bound.as_ref().map(Vec::as_slice),
        };
        let range = (from, if end.is_empty() { Bound::Unbounded } else { Bound::Excluded(end) });
        // One short transaction a page: a long one would keep LMDB from using freed pages again.
        let generation = self.current.load_full();
        let environment = &generation.environment;
        let txn = environment.env.read_txn()?;
        let (mut entries, mut bytes, mut last) = (Vec::new(), 0, None);
        let mut are_more = false;
        for (looked_at, item) in environment.records.range(&txn, &range)?.enumerate() {
            let (key, stored) = item?;
            if !key.starts_with(prefix) {
                break;
            }
            if entries.len() == limit || bytes >= MAX_SCAN_BYTES || looked_at == MAX_SCAN_KEYS {
                are_more = true;
                break;
            }
            last = Some(key);
            let entry = Entry::from_stored(key, stored).ok_or(StoreError::Corrupt("records"))?;
            if wanted(&entry) {
                bytes += entry.bytes();
                entries.push(entry);
            }
        }
        let last = last.filter(|_| are_more);
        // A key may be in doubt of which there is no record. Mostly there is none, and this is one look at an empty database.
        let in_doubt = match environment.doubts.range(&txn, &range)?.next().transpose()? {
            Some((key, _)) if key.starts_with(prefix) && last.is_none_or(|last| key <= last) => {
                Some(key.to_vec())
            }
            _ => None,
        };
        Ok(ScannedPage { entries, last: last.map(<[u8]>::to_vec), in_doubt })
    }

    /// The log that what is read came from.
    #[must_use]
    pub fn log(&self) -> LogTag {
        self.current.load().log
    }
}
