//! What must be appended again, since a record without effect lies behind it in the log and would outlive it in compaction.

use std::collections::BTreeSet;

use heed::RoTxn;

use super::{PendingRepair, parse_older_entries, parse_pending_repairs};
use crate::clock::LogTime;
use crate::log::{Level, LogTag};
use crate::store::environment::Environment;
use crate::store::{Entry, Store, StoreError};
use bitacora_protocol::{HighWatermark, Position};

/// A pending repair, and all that decides what repairs it.
#[derive(Debug)]
pub struct NeededRepair {
    pub key: Vec<u8>,
    pub pending: PendingRepair,
    /// What the pending repair's partition holds of the key, if anything.
    pub entry: Option<Entry>,
    /// When a newer record of another partition replaced that; `None` if it is the key's record.
    pub replaced_at: Option<LogTime>,
    /// Of the pending repair's partition.
    pub level: Level,
}

impl Store {
    /// The first pending repairs, at most so many, and in which log. None of a store that has never been caught up: what it still lacks
    /// may repair them. None of keys in doubt: who does not know what the log says must not say it again.
    ///
    /// # Errors
    /// When LMDB fails.
    pub fn needed_repairs(&self, limit: usize) -> Result<(LogTag, Vec<NeededRepair>), StoreError> {
        let written = self.written();
        let environment = written.environment();
        let txn = environment.env.read_txn()?;
        let mut all = Vec::new();
        if environment.is_restored(&txn)? {
            for item in environment.pending_repairs.iter(&txn)? {
                let (key, pending) = item?;
                all.extend(repairs_of(environment, &txn, key, pending)?);
                if all.len() >= limit {
                    all.truncate(limit);
                    break;
                }
            }
        }
        Ok((environment.log_in(&txn)?, all))
    }

    /// As [`Store::needed_repairs`], of one key.
    ///
    /// # Errors
    /// When LMDB fails.
    pub fn needed_repairs_of(&self, key: &[u8]) -> Result<(LogTag, Vec<NeededRepair>), StoreError> {
        let written = self.written();
        let environment = written.environment();
        let txn = environment.env.read_txn()?;
        let all = match environment.pending_repairs.get(&txn, key)? {
            Some(pending) if environment.is_restored(&txn)? => repairs_of(environment, &txn, key, pending)?,
            _ => Vec::new(),
        };
        Ok((environment.log_in(&txn)?, all))
    }

    /// The keys that have pending repairs, or doubts that a record without effect has moved, and the positions of what those
    /// partitions hold of them. Without those behind whose void record compaction can't have acted yet, since it is as young as [`crate::replication::progress::Progress::young_from`] says.
    ///
    /// # Errors
    /// When LMDB fails.
    pub fn keys_with_pending_repairs(
        &self,
        young_from: &[HighWatermark],
    ) -> Result<BTreeSet<(Vec<u8>, Position)>, StoreError> {
        let written = self.written();
        let environment = written.environment();
        let txn = environment.env.read_txn()?;
        let mut all = BTreeSet::new();
        let is_young = |at: Position| {
            let from = usize::try_from(at.partition).ok().and_then(|partition| young_from.get(partition));
            from.is_some_and(|from| at.offset >= from.0)
        };
        for item in environment.pending_repairs.iter(&txn)? {
            let (key, pending) = item?;
            for needed in repairs_of(environment, &txn, key, pending)? {
                if let Some(entry) = needed.entry.filter(|_| !is_young(needed.pending.position)) {
                    all.insert((needed.key, entry.position()));
                }
            }
        }
        for item in environment.doubts.iter(&txn)? {
            let (key, doubts) = item?;
            for behind in with_entries(environment, &txn, key, doubts)? {
                let at = behind.pending.position;
                // A doubt at the record itself is of an attempt that was taken for a write: nothing is known to be hidden.
                if let Some(entry) = behind.entry.filter(|entry| entry.position() != at && !is_young(at)) {
                    all.insert((behind.key, entry.position()));
                }
            }
        }
        Ok(all)
    }
}

/// The pending repairs of a key, as they are stored; none of one in doubt.
fn repairs_of(
    environment: &Environment,
    txn: &RoTxn<'_>,
    key: &[u8],
    pending_repairs: &[u8],
) -> Result<Vec<NeededRepair>, StoreError> {
    if environment.doubts.get(txn, key)?.is_some() {
        return Ok(Vec::new());
    }
    with_entries(environment, txn, key, pending_repairs)
}

/// The pending repairs or the doubts of a key, as they are stored, each with what its partition holds.
fn with_entries(
    environment: &Environment,
    txn: &RoTxn<'_>,
    key: &[u8],
    pending_repairs: &[u8],
) -> Result<Vec<NeededRepair>, StoreError> {
    let stored = environment.records.get(txn, key)?;
    let record = stored.map(|bytes| Entry::from_stored(key, bytes).ok_or(StoreError::Corrupt("records")));
    let record = record.transpose()?.filter(|record| !record.is_provisional());
    let older = parse_older_entries(key, environment.older_entries.get(txn, key)?.unwrap_or_default())?;
    let mut all = Vec::new();
    for pending in parse_pending_repairs(pending_repairs)? {
        let of_its_partition = |entry: &&Entry| entry.position().partition == pending.position.partition;
        let other = older.iter().find(of_its_partition);
        let replaced_at = other.and(record.as_ref()).map(Entry::timestamp);
        let entry = other.or_else(|| record.as_ref().filter(of_its_partition)).cloned();
        let level = environment.partition_state(txn, pending.position.partition)?.level;
        all.push(NeededRepair { key: key.to_vec(), pending, entry, replaced_at, level });
    }
    Ok(all)
}
