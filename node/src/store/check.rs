//! Whether a copy of another node's store, whose pages are whole, holds what a node writes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::Builder;

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
        let left = AtomicU64::new(self.records.len(&txn)?);
        // A thread has one at a time, and this one looks at records too.
        drop(txn);
        let records = |from_end| {
            let checked = self.check_records(from_end, &left, stop, &check);
            if checked.is_err() {
                // The other one need not look at the rest.
                left.store(0, Ordering::Relaxed);
            }
            checked
        };
        // From both ends until they meet, on a thread each: nothing else of a copy takes as long.
        let (first, second) = std::thread::scope(|scope| {
            let builder = Builder::new().name("snapshot-records".into());
            let second = builder.spawn_scoped(scope, || records(true)).map_err(StoreError::Io)?;
            let first = records(false);
            let second = second.join().unwrap_or_else(|_| Err(StoreError::Copy("a panic".to_owned())));
            Ok::<_, StoreError>((first?, second?))
        })?;
        // LMDB's number of entries says when they have met. Were it wrong, records would be seen twice, or the digests lack some.
        if let (Some(last), Some(next)) = (&first.reached, &second.reached)
            && last >= next
        {
            return Err(wrong("records", next, "is out of order"));
        }
        let mut digests = first.digests;
        digests.add_all(&second.digests);
        let txn = self.env.read_txn()?;
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

    /// Looks at records, from the first key on, or from the last one back, until as many as there are have been looked at here and elsewhere.
    /// In a transaction of its own, of which a thread has one at a time.
    ///
    /// `left`: how many nobody has begun to look at.
    fn check_records(
        &self,
        from_end: bool,
        left: &AtomicU64,
        stop: &AtomicBool,
        check: &CheckEntry<'_>,
    ) -> Result<CheckedPart, StoreError> {
        let txn = self.env.read_txn()?;
        let mut part = CheckedPart::default();
        let mut before: Option<&[u8]> = None;
        let mut look_at = |item: Result<(_, _), heed::Error>| {
            let (key, stored): (&[u8], &[u8]) = item?;
            if before.is_some_and(|before| if from_end { key >= before } else { key <= before }) {
                return Err(wrong("records", key, "is out of order"));
            }
            before = Some(key);
            if stop.load(Ordering::Relaxed) {
                return Err(StoreError::Copy(GIVEN_UP.to_owned()));
            }
            check("records", key, stored)?;
            part.digests.add(key, stored).ok_or(StoreError::Corrupt("records"))
        };
        if from_end {
            look_at_some(self.records.rev_iter(&txn)?, left, &mut look_at)?;
        } else {
            look_at_some(self.records.iter(&txn)?, left, &mut look_at)?;
        }
        part.reached = before.map(<[u8]>::to_vec);
        Ok(part)
    }
}

/// Looks at records for as long as some are left that nobody has begun to look at.
fn look_at_some<R>(
    mut records: impl Iterator<Item = R>,
    left: &AtomicU64,
    look_at: &mut impl FnMut(R) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    while let Some(number) = begin_some(left) {
        records.by_ref().take(number).try_for_each(&mut *look_at)?;
    }
    Ok(())
}

/// Takes some of what is left to look at; `None` if nothing is.
fn begin_some(left: &AtomicU64) -> Option<usize> {
    const SOME: u64 = 64;
    let before =
        left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| Some(left.saturating_sub(SOME)));
    let number = before.unwrap_or_else(|left| left).min(SOME) as usize;
    (number > 0).then_some(number)
}

/// Says what is wrong with an entry of a database under a key.
type CheckEntry<'a> = dyn Fn(&'static str, &[u8], &[u8]) -> Result<(), StoreError> + Sync + 'a;

#[derive(Default)]
struct CheckedPart {
    digests: DigestSums,
    /// The last key that was looked at, next to where the other thread's part ends.
    reached: Option<Vec<u8>>,
}

fn wrong(database: &str, key: &[u8], what: &str) -> StoreError {
    StoreError::Copy(format!("under '{database}', '{}' {what}", String::from_utf8_lossy(key)))
}
