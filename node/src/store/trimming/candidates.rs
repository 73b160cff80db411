//! What may leave the log: records that are long dead, or that another partition's record has replaced.

use std::ops::Bound;

use bitacora_protocol::record::ttl;
use heed::RoTxn;

use super::parse_older_entries;
use crate::clock::LogTime;
use crate::log::LogTag;
use crate::store::environment::Environment;
use crate::store::{EntryHead, Store, StoreError};
use bitacora_protocol::Position;

/// Which records the trimmer asks for.
#[derive(Clone, Copy, Debug)]
pub struct TrimQuery<'a> {
    /// Of the keys beyond this one, in key order.
    pub after: &'a [u8],
    /// Those that have been deleted or expired since then, or longer.
    pub dead_until: LogTime,
    /// Those that a newer record of their key in another partition has replaced since then, or longer.
    pub replaced_until: LogTime,
    pub max_records: usize,
    /// No more keys are looked at.
    pub max_keys: usize,
}

/// What the log need not keep: [`Store::trimmable`].
#[derive(Debug, Default)]
pub struct Trimmable {
    pub log: LogTag,
    pub records: Vec<(Vec<u8>, Position)>,
    /// The last key looked at, if there are more.
    pub after: Option<Vec<u8>>,
}

impl Store {
    /// The records that the log need not keep: those that are dead, and those that a newer record of their key in another partition has
    /// replaced, which compaction can't remove.
    ///
    /// Left out are other writers' tombstones, which the log forgets by itself, what is dead and hides a replaced record,
    /// keys with pending repairs or in doubt, and all of a store that has never been caught up, which may lack just those.
    ///
    /// # Errors
    /// When LMDB fails.
    pub fn trimmable(&self, query: &TrimQuery<'_>) -> Result<Trimmable, StoreError> {
        let written = self.written();
        let environment = written.environment();
        let txn = environment.env.read_txn()?;
        let log = environment.log_in(&txn)?;
        if !environment.is_restored(&txn)? {
            return Ok(Trimmable::default());
        }
        let none_replaced = environment.older_entries.is_empty(&txn)?;
        // LMDB has no empty keys.
        let from = if query.after.is_empty() { Bound::Unbounded } else { Bound::Excluded(query.after) };
        let (mut found, mut last) = (Vec::new(), None);
        for (looked_at, item) in environment.records.range(&txn, &(from, Bound::Unbounded))?.enumerate() {
            if looked_at == query.max_keys || found.len() >= query.max_records {
                return Ok(Trimmable { log, records: found, after: last.map(<[u8]>::to_vec) });
            }
            let (key, stored) = item?;
            last = Some(key);
            let head = EntryHead::of(stored).ok_or(StoreError::Corrupt("records"))?;
            let older = if none_replaced { None } else { environment.older_entries.get(&txn, key)? };
            // A provisional entry stays until all partitions have been read up to the time of its trim.
            if head.is_provisional {
                continue;
            }
            let is_replaced = older.is_some() && head.timestamp <= query.replaced_until;
            let is_dead = older.is_none() && dead_since(&head).is_some_and(|since| since <= query.dead_until);
            if !(is_replaced || is_dead) || is_pending(environment, &txn, key)? {
                continue;
            }
            match older {
                None => found.push((key.to_vec(), head.position)),
                Some(older) => {
                    found.extend(
                        parse_older_entries(key, older)?.iter().map(|entry| (key.to_vec(), entry.position())),
                    );
                }
            }
        }
        Ok(Trimmable { log, records: found, after: None })
    }
}

/// Whether a key has a pending repair, or is in doubt.
fn is_pending(environment: &Environment, txn: &RoTxn<'_>, key: &[u8]) -> Result<bool, StoreError> {
    Ok(environment.pending_repairs.get(txn, key)?.is_some() || environment.doubts.get(txn, key)?.is_some())
}

/// Since when a stored record is dead and needs a trimmer to leave the log. An expiry is a time of the accepting node's clock; the
/// times that it is compared with are past by both clocks.
fn dead_since(head: &EntryHead) -> Option<LogTime> {
    match head.ttl {
        ttl::FOR_EVER => None,
        ttl if ttl < 0 && !head.has_record => None,
        // A ttl may lie before the write.
        ttl => Some(LogTime::from_ms(ttl).max(head.timestamp)),
    }
}
