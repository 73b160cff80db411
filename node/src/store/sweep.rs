//! Sweeping: expired values and old tombstones leave the disk.

use std::ops::Bound;
use std::time::Duration;

use bitacora_protocol::record::ttl;
use heed::RwTxn;

use super::apply::{KeyLookup, save};
use super::environment::Environment;
use super::format::Buffer;
use super::trimming::{KeyState, PendingRepair, parse_pending_repairs};
use super::{Entry, EntryHead, Store, StoreError};
use crate::clock::LogTime;

/// Keys in one transaction of a sweep: a few ms, in which no records are applied.
pub(super) const MAX_KEYS_PER_SWEEP: usize = 1_000;
/// When an old tombstone that may not be forgotten yet is looked at again.
pub(super) const SWEEP_AGAIN_AFTER: Duration = Duration::from_secs(10);

/// What is past, of a sweep.
#[derive(Clone, Copy)]
struct SweepTimes {
    /// Past by both clocks.
    now: LogTime,
    /// How long other writers' tombstones are remembered.
    retention: Duration,
    /// Until when everything has been read.
    read_until: Option<LogTime>,
    /// How long a doubt lasts.
    compaction_lag: Duration,
}

/// What came of a sweep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// How many keys it changed.
    pub changed: usize,
    /// It looked at as many keys as it may, so there may be more.
    pub is_full: bool,
}

impl Store {
    /// Drops from disk and memory the values of keys that have expired at `now`, of a bounded number of keys; their positions stay.
    /// Forgets the tombstones of other writers that were `retention` old at `read_until`, until when everything has been read: before
    /// that, the log may have something to come that they decide. Both times are past by both clocks
    /// ([`crate::clock::past_by_both_clocks`]), since what is dropped does not come back. Ends the doubts that were `compaction_lag` old
    /// at `read_until`: whatever had no effect until then has been repaired.
    ///
    /// # Errors
    /// When LMDB fails; nothing is changed then.
    pub fn sweep(
        &self,
        now: LogTime,
        retention: Duration,
        read_until: Option<LogTime>,
        compaction_lag: Duration,
    ) -> Result<Swept, StoreError> {
        let written = self.written();
        let environment = written.environment();
        let due = due_until(environment, now)?;
        if due.is_empty() {
            return Ok(Swept::default());
        }
        let times = SweepTimes { now, retention, read_until, compaction_lag };
        let mut are_doubts = None;
        let mut txn = environment.env.write_txn()?;
        let mut swept = Vec::new();
        for sweep_key in &due {
            environment.sweep_times.delete(&mut txn, sweep_key)?;
            let (at, key) = parse_sweep_key(sweep_key)?;
            let are_doubts = match are_doubts {
                Some(are) => are,
                None => *are_doubts.insert(!environment.doubts.is_empty(&txn)?),
            };
            if are_doubts {
                sweep_doubts(environment, &mut txn, key, times)?;
            }
            if sweep_one(environment, &mut txn, key, at, times)? {
                swept.push(key);
            }
        }
        txn.commit()?;
        if let Some(cache) = written.cache() {
            for key in &swept {
                cache.remove(key);
            }
        }
        Ok(Swept { changed: swept.len(), is_full: due.len() == MAX_KEYS_PER_SWEEP })
    }
}

/// What a sweep has to look at by now, as it lies in `sweep_times`.
fn due_until(environment: &Environment, now: LogTime) -> Result<Vec<Vec<u8>>, StoreError> {
    let txn = environment.env.read_txn()?;
    let end = now.ms().saturating_add(1).max(0).to_be_bytes();
    let range = (Bound::Unbounded, Bound::Excluded(&end[..]));
    let due = environment.sweep_times.range(&txn, &range)?.take(MAX_KEYS_PER_SWEEP);
    Ok(due.map(|item| item.map(|(sweep_key, ())| sweep_key.to_vec())).collect::<Result<_, _>>()?)
}

/// Ends the doubts of a key that are past.
fn sweep_doubts(
    environment: &Environment,
    txn: &mut RwTxn<'_>,
    key: &[u8],
    times: SweepTimes,
) -> Result<(), StoreError> {
    let Some(stored) = environment.doubts.get(txn, key)? else { return Ok(()) };
    let stored = stored.to_vec();
    let ends_at = |doubt: &PendingRepair| doubt.timestamp + times.compaction_lag;
    let mut state = KeyState { doubts: parse_pending_repairs(&stored)?, ..KeyState::default() };
    state.doubts.retain(|doubt| times.read_until.is_none_or(|read_until| ends_at(doubt) > read_until));
    if let Some(next) = state.doubts.iter().map(ends_at).min() {
        let again = if next > times.now { next } else { times.now + SWEEP_AGAIN_AFTER };
        environment.sweep_times.put(txn, &sweep_key(again, key), &())?;
    }
    save(environment.doubts, txn, key, &stored, &state.encode_doubts())
}

/// Looks at one key, which was due `at` some time. Returns whether it was changed.
fn sweep_one(
    environment: &Environment,
    txn: &mut RwTxn<'_>,
    key: &[u8],
    at: LogTime,
    times: SweepTimes,
) -> Result<bool, StoreError> {
    let Some(stored) = environment.records.get(txn, key)? else { return Ok(false) };
    let head = EntryHead::of(stored).ok_or(StoreError::Corrupt("records"))?;
    let is_read_until = |time| times.read_until.is_some_and(|read_until| time <= read_until);
    let look_again = |txn: &mut RwTxn<'_>, at| environment.sweep_times.put(txn, &sweep_key(at, key), &());
    if head.is_provisional {
        // Until all that it waits for was read.
        if is_read_until(at) {
            drop_provisional_entries(environment, txn, key)?;
            return Ok(true);
        }
        look_again(txn, times.now + SWEEP_AGAIN_AFTER)?;
    } else if head.has_record {
        // Its time may be that of another record, which this one replaced.
        if (1..=times.now.ms()).contains(&head.ttl) {
            let mut swept = Buffer::new();
            EntryHead { has_record: false, ..head }.put(&mut swept);
            environment.records.put(txn, key, &swept)?;
            return Ok(true);
        }
    } else if head.ttl == ttl::DELETED {
        let forget_at = head.timestamp + times.retention;
        let decides_nothing = environment.older_entries.get(txn, key)?.is_none()
            && environment.pending_repairs.get(txn, key)?.is_none()
            && environment.doubts.get(txn, key)?.is_none();
        if decides_nothing && is_read_until(forget_at) {
            environment.records.delete(txn, key)?;
            return Ok(true);
        }
        let again = if forget_at > times.now { forget_at } else { times.now + SWEEP_AGAIN_AFTER };
        look_again(txn, again)?;
    }
    Ok(false)
}

/// Shows of a key what is left without its provisional entries.
fn drop_provisional_entries(
    environment: &Environment,
    txn: &mut RwTxn<'_>,
    key: &[u8],
) -> Result<(), StoreError> {
    let mut state = KeyLookup::ENTRIES_ONLY.key_state(environment, txn, key)?;
    let older_entries = state.encode_older_entries();
    state.entries.retain(|entry| !entry.is_provisional());
    state.sort();
    save(environment.older_entries, txn, key, &older_entries, &state.encode_older_entries())?;
    match state.entries.first() {
        Some(entry) => environment.records.put(txn, key, entry.as_stored())?,
        None => drop(environment.records.delete(txn, key)?),
    }
    if let Some(at) = state.entries.first().map(Entry::head).and_then(sweep_time) {
        environment.sweep_times.put(txn, &sweep_key(at, key), &())?;
    }
    Ok(())
}

/// When a sweep has something to do with an entry that is not provisional: its value goes when it expires; for another writer's
/// tombstone, the sweep decides. An expiry is a time of the accepting node's clock; a sweep's `now` is past by both clocks.
pub(super) fn sweep_time(entry: EntryHead) -> Option<LogTime> {
    match (entry.ttl, entry.has_record) {
        (ttl::FOR_EVER, _) | (1.., false) => None,
        (ttl @ 1.., true) => Some(LogTime::from_ms(ttl)),
        (_, true) => None,
        (_, false) => Some(entry.timestamp.max(LogTime::default())),
    }
}

/// The time (ms, i64, big-endian), then the key.
pub(super) fn sweep_key(at: LogTime, key: &[u8]) -> Vec<u8> {
    [&at.ms().to_be_bytes()[..], key].concat()
}

pub(super) fn parse_sweep_key(bytes: &[u8]) -> Result<(LogTime, &[u8]), StoreError> {
    let (at, key) = bytes.split_first_chunk().ok_or(StoreError::Corrupt("sweep_times"))?;
    Ok((LogTime::from_ms(i64::from_be_bytes(*at)), key))
}
