//! What the store does and tells for its own and the log's upkeep.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::time::Duration;

use bitacora_protocol::record::ttl;
use heed::{RoTxn, RwTxn};

use super::files::Files;
use super::key_state::{PendingRepair, parse_others, parse_pending_repairs};
use super::{Entry, KeyRef, Store, StoreError, save};
use crate::clock::LogTime;
use crate::log::LogTag;
use bitacora_protocol::Position;

/// Keys in one transaction of a sweep: a few ms, in which no records are applied.
const SWEEP_KEYS: usize = 1_000;
/// When an old tombstone that may not be forgotten yet is looked at again.
pub(super) const SWEEP_AGAIN: Duration = Duration::from_secs(10);

/// What the log need not keep: [`Store::trimmable`].
#[derive(Debug, Default)]
pub struct Trimmable {
    pub log: LogTag,
    pub records: Vec<(Vec<u8>, Position)>,
    /// The last key looked at, if there are more.
    pub after: Option<Vec<u8>>,
}

/// A pending repair, and what it is owed to.
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
    /// Drops from disk and memory the values of keys that have expired at `now`, of a bounded number of keys; their
    /// positions stay. Forgets the tombstones of other writers that were `retention` old at `seen`, until when everything
    /// has been read: before that, the log may have something to come that they decide. Both
    /// times are past by both clocks ([`crate::clock::past_by_both_clocks`]), since what is dropped does not come back. Returns how
    /// many keys it changed.
    ///
    /// # Errors
    /// When LMDB fails; nothing is changed then.
    pub fn sweep(
        &self,
        now: LogTime,
        retention: Duration,
        seen: Option<LogTime>,
    ) -> Result<usize, StoreError> {
        let (files, read) = self.written();
        let txn = files.env.read_txn()?;
        let due: Vec<Vec<u8>> = {
            let end = now.ms().saturating_add(1).max(0).to_be_bytes();
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
            if entry.is_provisional() {
                let since =
                    at.first_chunk().map_or(now, |since| LogTime::from_ms(i64::from_be_bytes(*since)));
                if seen.is_some_and(|seen| since <= seen) {
                    // All that it waited for was read.
                    drop_provisional_entries(&files, &mut txn, key)?;
                    swept.push(key);
                } else {
                    files.due.put(&mut txn, &due_key(now + SWEEP_AGAIN, key), &())?;
                }
            } else if stored.len() > entry.as_bytes().len() {
                // Its time may be that of another record, which this one replaced.
                if (1..=now.ms()).contains(&entry.ttl()) {
                    files.records.put(&mut txn, key, entry.as_bytes())?;
                    swept.push(key);
                }
            } else if entry.ttl() == ttl::DELETED {
                let forget = entry.timestamp() + retention;
                let settled =
                    files.others.get(&txn, key)?.is_none() && files.pending_repairs.get(&txn, key)?.is_none();
                if settled && seen.is_some_and(|seen| forget <= seen) {
                    files.records.delete(&mut txn, key)?;
                    swept.push(key);
                } else {
                    let again = if forget > now { forget } else { now + SWEEP_AGAIN };
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

    /// The first pending repairs, at most so many, and in which log. None of a store that has never been caught up: what it still lacks
    /// may settle them.
    ///
    /// # Errors
    /// When LMDB fails.
    pub fn needed_repairs(&self, limit: usize) -> Result<(LogTag, Vec<NeededRepair>), StoreError> {
        let files = self.written().0;
        let txn = files.env.read_txn()?;
        let mut all = Vec::new();
        if files.is_restored(&txn)? {
            each_needed_repair(&files, &txn, limit, |needed| all.push(needed))?;
        }
        Ok((files.log(&txn)?, all))
    }

    /// The keys that a pending repair is owed to, and the positions of what their partitions hold.
    ///
    /// # Errors
    /// When LMDB fails.
    pub fn doubtful(&self) -> Result<BTreeSet<(Vec<u8>, Position)>, StoreError> {
        let files = self.written().0;
        let txn = files.env.read_txn()?;
        let mut all = BTreeSet::new();
        each_needed_repair(&files, &txn, usize::MAX, |needed| {
            all.extend(needed.entry.map(|entry| (needed.key, entry.position())));
        })?;
        Ok(all)
    }

    /// The records of the keys beyond `after` in key order that the log need not keep: those that are dead since
    /// `dead_since`, and those that a newer record of their key in another partition has replaced since `replaced_since`, which
    /// compaction can't remove. At most `limit`, looking at no more than `looks` keys.
    ///
    /// Left out are other writers' tombstones, which the log forgets by itself, what is dead and hides a replaced record,
    /// keys with pending repairs, and all of a store that has never been caught up, which may lack just those.
    ///
    /// # Errors
    /// When LMDB fails.
    pub fn trimmable(
        &self,
        after: &[u8],
        dead_since: LogTime,
        replaced_since: LogTime,
        limit: usize,
        looks: usize,
    ) -> Result<Trimmable, StoreError> {
        let files = self.written().0;
        let txn = files.env.read_txn()?;
        let log = files.log(&txn)?;
        if !files.is_restored(&txn)? {
            return Ok(Trimmable::default());
        }
        let none_replaced = files.others.is_empty(&txn)?;
        // LMDB has no empty keys.
        let from = if after.is_empty() { Bound::Unbounded } else { Bound::Excluded(after) };
        let (mut found, mut last) = (Vec::new(), None);
        for (looked_at, item) in files.records.range(&txn, &(from, Bound::Unbounded))?.enumerate() {
            if looked_at == looks || found.len() >= limit {
                return Ok(Trimmable { log, records: found, after: last.map(<[u8]>::to_vec) });
            }
            let (key, stored) = item?;
            last = Some(key);
            let entry = Entry::header_of(stored).ok_or(StoreError::Corrupt("records"))?;
            let others = if none_replaced { None } else { files.others.get(&txn, key)? };
            // It waits for what this node has not read.
            if entry.is_provisional() {
                continue;
            }
            let is_replaced = others.is_some() && entry.timestamp() <= replaced_since;
            let is_dead = others.is_none() && died(&entry, stored).is_some_and(|died| died <= dead_since);
            if !(is_replaced || is_dead) || files.pending_repairs.get(&txn, key)?.is_some() {
                continue;
            }
            match others {
                None => found.push((key.to_vec(), entry.position())),
                Some(others) => {
                    found.extend(parse_others(others)?.iter().map(|entry| (key.to_vec(), entry.position())));
                }
            }
        }
        Ok(Trimmable { log, records: found, after: None })
    }
}

/// Since when a stored record is dead and needs a trimmer to leave the log.
fn died(entry: &Entry, stored: &[u8]) -> Option<LogTime> {
    match entry.ttl() {
        ttl::FOR_EVER => None,
        ttl if ttl < 0 && stored.len() == entry.as_bytes().len() => None,
        // A ttl may lie before the write.
        ttl => Some(LogTime::from_ms(ttl).max(entry.timestamp())),
    }
}

fn each_needed_repair(
    files: &Files,
    txn: &RoTxn<'_>,
    limit: usize,
    mut tell: impl FnMut(NeededRepair),
) -> Result<(), StoreError> {
    let mut left = limit;
    for item in files.pending_repairs.iter(txn)? {
        let (key, pending_repairs) = item?;
        let stored = files.records.get(txn, key)?;
        let record = stored.map(|bytes| Entry::from_bytes(bytes).ok_or(StoreError::Corrupt("records")));
        let record = record.transpose()?.filter(|record| !record.is_provisional());
        let others = parse_others(files.others.get(txn, key)?.unwrap_or_default())?;
        for pending in parse_pending_repairs(pending_repairs)? {
            let Some(one_less) = left.checked_sub(1) else { return Ok(()) };
            left = one_less;
            let of = |entry: &&Entry| entry.position().partition == pending.position.partition;
            let other = others.iter().find(of);
            let replaced_at = other.and(record.as_ref()).map(Entry::timestamp);
            let entry = other.or_else(|| record.as_ref().filter(of)).cloned();
            tell(NeededRepair { key: key.to_vec(), pending, entry, replaced_at });
        }
    }
    Ok(())
}

/// Shows of a key what is left without its provisional entries.
fn drop_provisional_entries(files: &Files, txn: &mut RwTxn<'_>, key: &[u8]) -> Result<(), StoreError> {
    let mut state = files.key_state(txn, key, false, false, true)?;
    let others = state.others();
    state.entries.retain(|entry| !entry.is_provisional());
    state.sort();
    save(files.others, txn, key, &others, &state.others())?;
    match state.entries.first() {
        Some(entry) => files.records.put(txn, key, entry.as_bytes())?,
        None => drop(files.records.delete(txn, key)?),
    }
    if let Some(at) = state.entries.first().and_then(due) {
        files.due.put(txn, &due_key(at, key), &())?;
    }
    Ok(())
}

/// When a sweep has something to do with an entry that is no provisional entry: its value goes when it expires; for another
/// writer's tombstone, the sweep decides.
pub(super) fn due(entry: &Entry) -> Option<LogTime> {
    match (entry.ttl(), entry.has_record()) {
        (ttl::FOR_EVER, _) | (1.., false) => None,
        (ttl @ 1.., true) => Some(LogTime::from_ms(ttl)),
        (_, true) => None,
        (_, false) => Some(entry.timestamp().max(LogTime::from_ms(0))),
    }
}

/// The time (i64, big-endian), then the key.
pub(super) fn due_key(at: LogTime, key: &[u8]) -> Vec<u8> {
    [&at.ms().to_be_bytes()[..], key].concat()
}
