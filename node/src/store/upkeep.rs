//! What the store does and tells for its own and the log's upkeep.

use std::ops::Bound;

use bitacora_client::wire::ttl;

use super::key_state::{Debt, parse_debts, parse_others};
use super::{Entry, KeyRef, Store, StoreError};
use crate::position::Position;

/// Keys in one transaction of a sweep: a few ms, in which no records are applied.
const SWEEP_KEYS: usize = 1_000;
/// When an old tombstone that may not be forgotten yet is looked at again, in ms.
pub(super) const SWEEP_AGAIN: i64 = 10_000;

/// A debt, and what it is owed to.
#[derive(Debug)]
pub struct Owed {
    pub key: Vec<u8>,
    pub debt: Debt,
    /// What the debt's partition holds of the key.
    pub entry: Option<Entry>,
    /// Whether that is the key's record, and not replaced by another partition's.
    pub newest: bool,
}

impl Store {
    /// Drops from disk and memory the values of keys that have expired at `now`, of a bounded number of keys; their
    /// positions stay. Once the node is caught up, forgets the tombstones of other writers that are `retention` old; until
    /// then the log may have something to come that they decide. Times in ms. Returns how many keys it changed.
    ///
    /// # Errors
    /// When LMDB fails; nothing is changed then.
    pub fn sweep(&self, now: i64, retention: i64, caught_up: bool) -> Result<usize, StoreError> {
        let (files, read) = self.written();
        let txn = files.env.read_txn()?;
        let due: Vec<Vec<u8>> = {
            let end = now.saturating_add(1).max(0).to_be_bytes();
            let range = (Bound::Unbounded, Bound::Excluded(&end[..]));
            let keys = files.due.range(&txn, &range)?.take(SWEEP_KEYS);
            keys.map(|item| item.map(|(at, ())| at.to_vec())).collect::<Result<_, _>>()?
        };
        drop(txn);
        if due.is_empty() {
            return Ok(0);
        }
        let mut txn = files.env.write_txn()?;
        let mut swept = Vec::new();
        for at in &due {
            files.due.delete(&mut txn, at)?;
            let key = at.get(8..).ok_or(StoreError::Corrupt("due"))?;
            let Some(stored) = files.records.get(&txn, key)? else { continue };
            let entry = Entry::header_of(stored).ok_or(StoreError::Corrupt("records"))?;
            if stored.len() > entry.as_bytes().len() {
                // Its time may be that of another record, which this one replaced.
                if (1..=now).contains(&entry.ttl()) {
                    files.records.put(&mut txn, key, entry.as_bytes())?;
                    swept.push(key);
                }
            } else if entry.ttl() == ttl::DELETED {
                let forget = entry.timestamp().saturating_add(retention);
                let settled = files.others.get(&txn, key)?.is_none() && files.debts.get(&txn, key)?.is_none();
                if caught_up && settled && forget <= now {
                    files.records.delete(&mut txn, key)?;
                    swept.push(key);
                } else {
                    let again = if forget > now { forget } else { now.saturating_add(SWEEP_AGAIN) };
                    files.due.put(&mut txn, &due_key(again, key), &())?;
                }
            }
        }
        txn.commit()?;
        for key in swept.iter().filter(|_| read) {
            self.cache.remove(&KeyRef(key));
        }
        Ok(swept.len())
    }

    /// The first debts, at most so many.
    ///
    /// # Errors
    /// When LMDB fails.
    pub fn owed(&self, limit: usize) -> Result<Vec<Owed>, StoreError> {
        let files = self.written().0;
        let txn = files.env.read_txn()?;
        let mut owed = Vec::new();
        for item in files.debts.iter(&txn)? {
            let (key, debts) = item?;
            let stored = files.records.get(&txn, key)?;
            let record = stored.map(|bytes| Entry::from_bytes(bytes).ok_or(StoreError::Corrupt("records")));
            let record = record.transpose()?;
            let others = parse_others(files.others.get(&txn, key)?.unwrap_or_default())?;
            for debt in parse_debts(debts)? {
                if owed.len() >= limit {
                    return Ok(owed);
                }
                let of = |entry: &&Entry| entry.position().partition == debt.position.partition;
                let newest = record.as_ref().filter(of);
                let entry = newest.or_else(|| others.iter().find(of)).cloned();
                owed.push(Owed { key: key.to_vec(), debt, entry, newest: newest.is_some() });
            }
        }
        Ok(owed)
    }

    /// The first records, at most so many, that a newer one of their key in another partition has replaced: compaction
    /// can't remove them.
    ///
    /// # Errors
    /// When LMDB fails.
    pub fn stranded(&self, limit: usize) -> Result<Vec<(Vec<u8>, Position)>, StoreError> {
        let files = self.written().0;
        let txn = files.env.read_txn()?;
        let mut found = Vec::new();
        for item in files.others.iter(&txn)? {
            let (key, others) = item?;
            for entry in parse_others(others)? {
                if found.len() >= limit {
                    return Ok(found);
                }
                found.push((key.to_vec(), entry.position()));
            }
        }
        Ok(found)
    }

    /// The dead records beyond `after` in key order that the log need not keep at `now`, being dead for `retention`: at
    /// most `limit`, looking at no more than `looks` keys. With the last key looked at if there are more. Times in ms.
    ///
    /// Left out are other writers' tombstones, which the log forgets by itself, and keys with stranded records or debts.
    ///
    /// # Errors
    /// When LMDB fails.
    pub fn long_dead(
        &self,
        after: &[u8],
        now: i64,
        retention: i64,
        limit: usize,
        looks: usize,
    ) -> Result<(Vec<(Vec<u8>, Position)>, Option<Vec<u8>>), StoreError> {
        let files = self.written().0;
        let txn = files.env.read_txn()?;
        // LMDB has no empty keys.
        let from = if after.is_empty() { Bound::Unbounded } else { Bound::Excluded(after) };
        let (mut found, mut last) = (Vec::new(), None);
        for (looked_at, item) in files.records.range(&txn, &(from, Bound::Unbounded))?.enumerate() {
            if looked_at == looks || found.len() == limit {
                return Ok((found, last.map(<[u8]>::to_vec)));
            }
            let (key, stored) = item?;
            last = Some(key);
            let entry = Entry::header_of(stored).ok_or(StoreError::Corrupt("records"))?;
            let dead_since = match entry.ttl() {
                ttl::FOR_EVER => continue,
                ttl if ttl < 0 && stored.len() == entry.as_bytes().len() => continue,
                // A ttl may lie before the write.
                ttl => ttl.max(entry.timestamp()),
            };
            if dead_since.saturating_add(retention) <= now
                && files.others.get(&txn, key)?.is_none()
                && files.debts.get(&txn, key)?.is_none()
            {
                found.push((key.to_vec(), entry.position()));
            }
        }
        Ok((found, None))
    }
}

/// When a sweep has something to do with an entry, ms since the epoch: its value goes when it expires; for another writer's
/// tombstone, the sweep decides.
pub(super) fn due(entry: &Entry) -> Option<i64> {
    match (entry.ttl(), entry.has_record()) {
        (ttl::FOR_EVER, _) | (1.., false) => None,
        (ttl @ 1.., true) => Some(ttl),
        (_, true) => None,
        (_, false) => Some(entry.timestamp().max(0)),
    }
}

/// The time (i64, big-endian), then the key.
pub(super) fn due_key(at: i64, key: &[u8]) -> Vec<u8> {
    [&at.to_be_bytes()[..], key].concat()
}
