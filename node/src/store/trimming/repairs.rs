//! What must be appended again, since a record without effect lies behind it in the log and would outlive it in compaction.

use std::collections::BTreeSet;

use heed::RoTxn;

use super::{PendingRepair, parse_older_entries, parse_pending_repairs};
use crate::clock::LogTime;
use crate::log::LogTag;
use crate::store::environment::Environment;
use crate::store::{Entry, Store, StoreError};
use bitacora_protocol::Position;

/// A pending repair, and all that decides what repairs it.
#[derive(Debug)]
pub struct NeededRepair {
    pub key: Vec<u8>,
    pub pending: PendingRepair,
    /// What the pending repair's partition holds of the key, if anything.
    pub entry: Option<Entry>,
    /// When a newer record of another partition replaced that; `None` if it is the key's record.
    pub replaced_at: Option<LogTime>,
}

impl Store {
    /// The first pending repairs, at most so many, and in which log. None of a store that has never been caught up: what it still lacks
    /// may repair them.
    ///
    /// # Errors
    /// When LMDB fails.
    pub fn needed_repairs(&self, limit: usize) -> Result<(LogTag, Vec<NeededRepair>), StoreError> {
        let written = self.written();
        let environment = written.environment();
        let txn = environment.env.read_txn()?;
        let mut all = Vec::new();
        if environment.is_restored(&txn)? {
            each_needed_repair(environment, &txn, limit, |needed| all.push(needed))?;
        }
        Ok((environment.log_in(&txn)?, all))
    }

    /// The keys that have pending repairs, and the positions of what those partitions hold of them.
    ///
    /// # Errors
    /// When LMDB fails.
    pub fn keys_with_pending_repairs(&self) -> Result<BTreeSet<(Vec<u8>, Position)>, StoreError> {
        let written = self.written();
        let txn = written.environment().env.read_txn()?;
        let mut all = BTreeSet::new();
        each_needed_repair(written.environment(), &txn, usize::MAX, |needed| {
            all.extend(needed.entry.map(|entry| (needed.key, entry.position())));
        })?;
        Ok(all)
    }
}

fn each_needed_repair(
    environment: &Environment,
    txn: &RoTxn<'_>,
    limit: usize,
    mut tell: impl FnMut(NeededRepair),
) -> Result<(), StoreError> {
    let mut left = limit;
    for item in environment.pending_repairs.iter(txn)? {
        let (key, pending_repairs) = item?;
        let stored = environment.records.get(txn, key)?;
        let record = stored.map(|bytes| Entry::from_bytes(bytes).ok_or(StoreError::Corrupt("records")));
        let record = record.transpose()?.filter(|record| !record.is_provisional());
        let older = parse_older_entries(environment.older_entries.get(txn, key)?.unwrap_or_default())?;
        for pending in parse_pending_repairs(pending_repairs)? {
            let Some(one_less) = left.checked_sub(1) else { return Ok(()) };
            left = one_less;
            let of_its_partition = |entry: &&Entry| entry.position().partition == pending.position.partition;
            let other = older.iter().find(of_its_partition);
            let replaced_at = other.and(record.as_ref()).map(Entry::timestamp);
            let entry = other.or_else(|| record.as_ref().filter(of_its_partition)).cloned();
            tell(NeededRepair { key: key.to_vec(), pending, entry, replaced_at });
        }
    }
    Ok(())
}
