//! Whether a copy of another node's store, whose pages are whole, holds what a node writes.

use std::sync::atomic::{AtomicBool, Ordering};

use super::digest::DigestSums;
use super::environment::Environment;
use super::error::undecoded;
use super::trimming::{parse_older_entries, parse_pending_repairs};
use super::{Checkpoint, StoreError, entry};
use bitacora_protocol::Position;

/// What is wrong with a copy that was not looked at up to its end.
pub(super) const GIVEN_UP: &str = "nobody waits for it any more";

impl Environment {
    /// Whether a copy of another node's store holds what a node writes, and no more than its positions say. Looks at all
    /// of it, until it is to stop.
    ///
    /// # Errors
    /// What is wrong, and with which key.
    pub fn check(&self, checkpoint: &Checkpoint, stop: &AtomicBool) -> Result<(), StoreError> {
        if checkpoint.identity.is_none() || !checkpoint.restored || checkpoint.next.is_empty() {
            return Err(StoreError::Copy("it is not complete".to_owned()));
        }
        let wrong = |database: &str, key: &[u8], what: &str| {
            StoreError::Copy(format!("under '{database}', '{}' {what}", String::from_utf8_lossy(key)))
        };
        // A record from beyond would make those void that are still to come.
        let applied = |at: Position| {
            let next =
                usize::try_from(at.partition).ok().and_then(|partition| checkpoint.next.get(partition));
            next.is_some_and(|next| (0..next.0).contains(&at.offset))
        };
        let check = |database: &'static str, key: &[u8], stored: &[u8]| {
            let (at, is_written) = entry::look_at(key, stored).ok_or(StoreError::Corrupt(database))?;
            if !is_written {
                return Err(wrong(database, key, "has no record, or one that is no text"));
            }
            if applied(at) {
                Ok(())
            } else {
                Err(wrong(database, key, &format!("lies at {at}, which was never applied")))
            }
        };
        let txn = self.env.read_txn()?;
        let mut digests = DigestSums::default();
        let mut last: &[u8] = &[];
        for item in self.records.iter(&txn)? {
            let (key, stored) = item?;
            if key <= last {
                return Err(wrong("records", key, "is out of order"));
            }
            last = key;
            if stop.load(Ordering::Relaxed) {
                return Err(StoreError::Copy(GIVEN_UP.to_owned()));
            }
            check("records", key, stored)?;
            digests.add(key, stored).ok_or(StoreError::Corrupt("records"))?;
        }
        for item in self.older_entries.iter(&txn)? {
            let (key, stored) = item?;
            for entry in parse_older_entries(key, stored)? {
                check("others", key, entry.as_stored())?;
                digests.add(key, entry.as_stored()).ok_or(StoreError::Corrupt("others"))?;
            }
        }
        for item in self.positions.iter(&txn)? {
            let (partition, point) = item.map_err(undecoded("positions"))?;
            if digests.of(partition.cast_signed()) != point.digest {
                let what =
                    format!("the records of partition {partition} are not those that its digest is of");
                return Err(StoreError::Copy(what));
            }
        }
        for (database, name) in [(self.pending_repairs, "pending_repairs"), (self.doubts, "doubts")] {
            for item in database.iter(&txn)? {
                let (key, stored) = item?;
                if !parse_pending_repairs(stored)?.iter().all(|pending| applied(pending.position)) {
                    return Err(wrong(name, key, "speaks of a record that was never applied"));
                }
            }
        }
        for item in self.sweep_times.iter(&txn)? {
            let (at, ()) = item?;
            if at.len() <= size_of::<i64>() {
                return Err(wrong("sweep_times", at, "has no key"));
            }
        }
        Ok(())
    }
}
