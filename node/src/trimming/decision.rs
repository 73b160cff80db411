//! What to append, decided from what the store holds. `docs/trimming.md` says why it loses nothing.

use std::sync::Arc;
use std::time::Duration;

use super::GRACE_FOR_ELECTED_TRIMMER;
use crate::clock::LogTime;
use crate::log::{Condition, Level, LogTag, NewRecord};
use crate::replication::progress::AppliedUntil;
use crate::store::{Entry, NeededRepair, Store, StoreError, TrimQuery, Trimmable};
use bitacora_protocol::Position;
use bitacora_protocol::record::{KeyValue, source};

/// Tombstones, and repairs, appended in one step.
const MAX_RECORDS_PER_ROUND: usize = 500;
/// Keys looked at in one step.
const MAX_KEYS_PER_ROUND: usize = 50_000;

/// Decides what to append. Knows the store only: neither the log nor a clock.
pub(super) struct Trimmer {
    store: Arc<Store>,
    /// How long a record stays after it died.
    pub(super) retention: Duration,
    /// How long what it decides takes effect.
    window: Duration,
    /// The last key looked at; empty between two rounds.
    after: Vec<u8>,
}

impl Trimmer {
    /// `retention`: how long a record stays after it died.
    pub fn new(store: Arc<Store>, retention: Duration) -> Self {
        Self { store, retention, window: window(retention), after: Vec::new() }
    }

    /// The records that repair what is pending since `void_since`, or longer.
    ///
    /// # Errors
    /// When the store fails.
    pub fn repairs(&self, void_since: LogTime) -> Result<Vec<NewRecord>, StoreError> {
        let (log, needed) = self.store.needed_repairs(MAX_RECORDS_PER_ROUND)?;
        let needed = needed.into_iter().filter(|needed| needed.pending.timestamp <= void_since);
        Ok(needed.map(|needed| repair(self.retention, log, needed)).collect())
    }

    /// Whether the next look begins with the first key.
    pub fn is_at_start(&self) -> bool {
        self.after.is_empty()
    }

    /// The next tombstones, and whether all keys have been looked at.
    ///
    /// # Errors
    /// When the store fails.
    pub fn trims(&mut self, applied: AppliedUntil) -> Result<(Vec<NewRecord>, bool), StoreError> {
        let query = TrimQuery {
            after: &self.after,
            dead_until: applied.time - self.retention,
            replaced_until: applied.time - self.retention / 2,
            max_records: MAX_RECORDS_PER_ROUND,
            max_keys: MAX_KEYS_PER_ROUND,
        };
        let Trimmable { log, records, after } = self.store.trimmable(&query)?;
        let all = after.is_none();
        self.after = after.unwrap_or_default();
        let until = applied.log_time + self.window;
        Ok((records.into_iter().map(|(key, position)| trim(key, position, until, log)).collect(), all))
    }
}

/// The records that repair what is pending of one key, where dead records stay for `retention`; to be appended at once by who finds its own
/// conditional write void. None of a key in doubt.
///
/// # Errors
/// When the store fails.
pub fn repairs_of(store: &Store, retention: Duration, key: &[u8]) -> Result<Vec<NewRecord>, StoreError> {
    let (log, needed) = store.needed_repairs_of(key)?;
    Ok(needed.into_iter().map(|needed| repair(retention, log, needed)).collect())
}

/// How long what is decided takes effect.
fn window(retention: Duration) -> Duration {
    // In less, a repair that was left to the elected trimmer for a while would come too late.
    (retention / 4).max(2 * GRACE_FOR_ELECTED_TRIMMER)
}

/// The record that repairs what is pending, where dead records stay for `retention`.
fn repair(
    retention: Duration,
    log: LogTag,
    NeededRepair { key, pending, entry, replaced_at, level }: NeededRepair,
) -> NewRecord {
    let until = pending.timestamp + window(retention);
    // It need not be said again.
    let is_replaced = replaced_at.is_some_and(|at| at <= pending.timestamp - retention / 2);
    let Some(entry) = entry.filter(|_| !is_replaced) else {
        // A trim of all that was before: what had said so is behind in compaction now.
        return trim(key, pending.position, until, log);
    };
    let Position { partition, offset } = entry.position();
    // Who only understands the first level would not understand how far it reaches.
    let reach = (level >= Level::CONDITIONAL_WRITES).then_some(pending.position.offset);
    let condition = Condition::Repair { offset, timestamp: entry.timestamp(), until, log, reach };
    let value = value_of(&key, &entry);
    NewRecord::conditional(partition, key, value, condition)
}

/// The value that says of a key what an entry says. That of a tombstone is a tombstone again. An expired record whose value was swept
/// still has its version and its expiry: a conditional write may expect just those.
fn value_of(key: &[u8], entry: &Entry) -> Option<Vec<u8>> {
    if entry.has_record() {
        return entry.to_avro();
    }
    let key = std::str::from_utf8(key).ok().filter(|_| !entry.is_tombstone())?;
    let (ttl, timestamp) = (entry.ttl(), entry.timestamp().ms());
    let mut value = Vec::new();
    KeyValue { key, value: "", timestamp, source: source::PRODUCER, ttl, uuid: "" }.encode(&mut value);
    Some(value)
}

fn trim(key: Vec<u8>, Position { partition, offset }: Position, until: LogTime, log: LogTag) -> NewRecord {
    NewRecord::conditional(partition, key, None, Condition::Trim { offset, until, log })
}
