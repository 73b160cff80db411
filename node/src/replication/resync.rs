//! Whether the store is brought up to date, emptied, or built anew beside the one that is read: the table of
//! `docs/resync.md`, decided by [`decide`] and carried out by the applier.

use super::age::reason_too_old;
use super::applier::{Applier, Interrupted, PossibleIncompatibility};
use super::compatibility::{
    Cause, Incompatibility, LastCaughtUp, TRUNCATION_CHECK_TIMEOUT, at_starts, incompatibility,
    reason_too_old_now, truncated_and_regrown, truncated_by_leader_epochs,
};
use super::reading::BuildCheck;
use super::state::{Event, StoreState};
use crate::log::{LogInfo, PartitionRead, ReadError};
use crate::store::{Checkpoint, StoreError};
use bitacora_protocol::NextOffset;

/// A log of fewer offsets is read faster than a member is asked.
const MIN_OFFSETS_FOR_SNAPSHOT: i64 = 20_000;

/// What is done with the store when the log has been opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Resync {
    /// It fits: reading goes on where it stands.
    Continue,
    /// It is emptied and filled anew, for the reason given. Until then the node answers no reads by itself.
    EmptyAndRestore(String),
    /// A new one is built beside it, for the reason given, and reads go on until that is complete.
    RebuildBeside(String),
}

/// When it was found that the store does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WhenFound {
    /// Before the node was caught up for the first time in this run, or while its store answers no reads anyway: nobody
    /// depends on what it holds.
    AtStart,
    WhileServing,
}

/// The table of `docs/resync.md`.
pub(super) fn decide(incompatibility: Option<Incompatibility>, when: WhenFound) -> Resync {
    let Some(Incompatibility { why, cause }) = incompatibility else { return Resync::Continue };
    match (cause, when) {
        (_, WhenFound::AtStart) => Resync::EmptyAndRestore(why),
        // This node alone: the others answer.
        (Cause::RecordsMissed, WhenFound::WhileServing) => Resync::EmptyAndRestore(why),
        // All nodes at once: somebody must answer.
        (Cause::AnotherLog | Cause::LogTruncated | Cause::TooOld, WhenFound::WhileServing) => {
            Resync::RebuildBeside(why)
        }
    }
}

impl Applier {
    /// Brings the store into line with the log that was opened. Returns where to read on.
    pub(super) fn reconcile(&mut self, info: &LogInfo) -> Result<Vec<NextOffset>, Interrupted> {
        let checkpoint = self.parts.store.checkpoint()?;
        let next = match &checkpoint.identity {
            None => self.fill_empty_store(info)?,
            Some(identity) => {
                self.last_caught_up.wall_time = checkpoint.caught_up_at;
                let incompatibility = self.find_incompatibility(&checkpoint, info)?;
                if let Some(Incompatibility { why, cause: Cause::LogTruncated }) = &incompatibility {
                    self.parts.log.on_log_truncated();
                    // The log grows on, and compaction removes what tells.
                    self.parts.store.note_unfit(why)?;
                }
                let serving = self.parts.progress.restored() && self.parts.progress.caught_up_in_this_run();
                let when = if serving { WhenFound::WhileServing } else { WhenFound::AtStart };
                match decide(incompatibility, when) {
                    Resync::Continue => {
                        if *identity != info.identity && info.identity.topic_id.is_some() {
                            self.parts.store.set_identity(&info.identity)?;
                        }
                        self.go_on(&checkpoint, info)?
                    }
                    Resync::EmptyAndRestore(why) => {
                        self.forget_earlier_readings();
                        self.discard(&why)?;
                        self.fill_empty_store(info)?
                    }
                    Resync::RebuildBeside(why) => {
                        self.forget_earlier_readings();
                        self.rebuild_beside(info, why)?
                    }
                }
            }
        };
        // Not before: if the store could not be changed, what was found still stands.
        self.possible_incompatibility = None;
        Ok(next)
    }

    pub(super) fn forget_earlier_readings(&mut self) {
        self.last_caught_up = LastCaughtUp::default();
        self.build_check = BuildCheck::default();
    }

    /// Why the store can't be brought up to date; `None` if it can.
    fn find_incompatibility(
        &self,
        checkpoint: &Checkpoint,
        info: &LogInfo,
    ) -> Result<Option<Incompatibility>, Interrupted> {
        if let Some(found) = incompatibility(checkpoint, info) {
            return Ok(Some(found));
        }
        if let Some(PossibleIncompatibility::OutOfRange { partition }) = &self.possible_incompatibility
            && let Some(found) = truncated_by_leader_epochs(checkpoint, *partition)
        {
            return Ok(Some(found));
        }
        let before = self.shared.checkpoint_before_outage.lock().clone();
        let before = before.filter(|before| before.identity == checkpoint.identity);
        for known in before.into_iter().chain([checkpoint.clone()]) {
            if let Some(why) = self.other_records(known, info).map_err(Interrupted::Log)? {
                return Ok(Some(Incompatibility { why, cause: Cause::LogTruncated }));
            }
        }
        let age = match &self.possible_incompatibility {
            Some(PossibleIncompatibility::TooOld(why)) => Some(why.clone()),
            _ => reason_too_old_now(&self.last_caught_up, self.clock(), self.parts.log.delete_retention()),
        };
        Ok(age.map(|why| Incompatibility { why, cause: Cause::TooOld }))
    }

    fn other_records(&self, known: Checkpoint, info: &LogInfo) -> Result<Option<String>, ReadError> {
        let known = at_starts(known, info);
        let answered = || self.parts.progress.note_sign_of_life();
        truncated_and_regrown(
            &*self.parts.log,
            &known,
            TRUNCATION_CHECK_TIMEOUT,
            &self.shared.stop,
            &answered,
        )
    }

    /// Reads on in a store that fits.
    fn go_on(&self, checkpoint: &Checkpoint, info: &LogInfo) -> Result<Vec<NextOffset>, Interrupted> {
        let next = self.add_partitions(checkpoint, info)?;
        let event = if checkpoint.restored { Event::ReadingResumed } else { Event::RestoreResumed };
        self.resume(&next, event)?;
        Ok(next)
    }

    /// Reading goes on at these offsets. A build beside the store that is read stays one, also after an interruption;
    /// otherwise `event` says what the store is.
    pub(super) fn resume(&self, next: &[NextOffset], event: Event) -> Result<(), Interrupted> {
        let event = match self.parts.progress.store_state() {
            StoreState::Rebuilding(why) if self.parts.store.is_building() => Event::RebuildBegan(why),
            _ => event,
        };
        Ok(self.parts.progress.begin_reading(next, event)?)
    }

    fn rebuild_beside(&mut self, info: &LogInfo, why: String) -> Result<Vec<NextOffset>, Interrupted> {
        tracing::warn!(
            "the store does not fit the log: {why}; building it anew, and reading the old one until then"
        );
        self.parts.metrics.resyncs.inc();
        if let Some(next) = self.install_snapshot(info)? {
            return Ok(next);
        }
        let starts = info.starts();
        self.parts.store.build(&info.identity, &starts, self.clock().wall())?;
        self.last_caught_up.moment = Some(self.clock().now());
        self.parts.progress.begin_reading(&starts, Event::RebuildBegan(why))?;
        Ok(starts)
    }

    /// Fills an empty store: with a copy of another member's, else from the log's start.
    fn fill_empty_store(&mut self, info: &LogInfo) -> Result<Vec<NextOffset>, Interrupted> {
        if let Some(next) = self.install_snapshot(info)? {
            return Ok(next);
        }
        let starts = info.starts();
        self.parts.store.reset(&info.identity, &starts, self.clock().wall())?;
        self.last_caught_up.moment = Some(self.clock().now());
        self.parts.progress.begin_reading(&starts, Event::StoreEmptied)?;
        Ok(starts)
    }

    /// The next offsets of all partitions, also of those that the topic has gained since.
    fn add_partitions(&self, checkpoint: &Checkpoint, info: &LogInfo) -> Result<Vec<NextOffset>, StoreError> {
        let mut next = at_starts(checkpoint.clone(), info).next;
        next.extend(info.starts().into_iter().skip(next.len()));
        // The store knows all partitions or none, whichever has records first.
        let changed = (0..).zip(next.iter().copied());
        let changed: Vec<_> = changed
            .filter(|(partition, next)| checkpoint.next.get(*partition as usize) != Some(next))
            .collect();
        if !changed.is_empty() {
            let read: Vec<_> =
                changed.iter().map(|(partition, next)| PartitionRead::begin(*partition, *next)).collect();
            self.parts.store.apply_read(&mut Vec::new(), &read)?;
        }
        Ok(next)
    }

    /// Takes a copy of another member's store, if there is one that fits the log as it is now.
    fn install_snapshot(&self, info: &LogInfo) -> Result<Option<Vec<NextOffset>>, Interrupted> {
        let Some(snapshots) = &self.parts.snapshots else { return Ok(None) };
        if info.partitions.iter().map(|range| range.end - range.start).sum::<i64>() < MIN_OFFSETS_FOR_SNAPSHOT
        {
            return Ok(None);
        }
        let check = |checkpoint: &Checkpoint| self.check_snapshot(checkpoint);
        let report = |doing: String| {
            if self.parts.progress.restored() {
                self.parts.progress.note_sign_of_life();
            } else {
                // Never refused.
                let _ = self.parts.progress.note_event(Event::LogUnavailable(doing));
            }
            !self.shared.stopped()
        };
        let Some((copy, checkpoint)) = snapshots.fetch(&info.identity, &self.parts.store, &check, &report)
        else {
            return Ok(None);
        };
        self.parts.feed.suspend();
        self.parts.store.install(copy)?;
        self.parts.metrics.snapshots_installed.inc();
        let next = self.add_partitions(&checkpoint, info)?;
        self.parts.progress.begin_reading(&next, Event::SnapshotInstalled)?;
        Ok(Some(next))
    }

    /// Whether a copy of another member's store fits the log; the reason if not.
    fn check_snapshot(&self, checkpoint: &Checkpoint) -> Result<(), String> {
        // The log has moved on while the copy was made.
        let answered = || self.parts.progress.note_sign_of_life();
        let info = self.parts.log.open(&answered).map_err(|error| error.to_string())?;
        if let Some(Incompatibility { why, .. }) = incompatibility(checkpoint, &info) {
            return Err(why);
        }
        let other = self.other_records(checkpoint.clone(), &info).map_err(|error| error.to_string())?;
        let retention = self.parts.log.delete_retention();
        let why = other.or_else(|| reason_too_old(checkpoint.caught_up_at, self.clock().wall(), retention));
        why.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_is_decided_as_in_the_table() {
        use Cause::{AnotherLog, LogTruncated, RecordsMissed, TooOld};
        let why = || "why".to_owned();
        for (cause, while_serving) in [
            (AnotherLog, Resync::RebuildBeside(why())),
            (LogTruncated, Resync::RebuildBeside(why())),
            (RecordsMissed, Resync::EmptyAndRestore(why())),
            (TooOld, Resync::RebuildBeside(why())),
        ] {
            let found = Some(Incompatibility { why: why(), cause });
            assert_eq!(
                decide(found.clone(), WhenFound::AtStart),
                Resync::EmptyAndRestore(why()),
                "{cause:?}"
            );
            assert_eq!(decide(found, WhenFound::WhileServing), while_serving, "{cause:?}");
        }
        for when in [WhenFound::AtStart, WhenFound::WhileServing] {
            assert_eq!(decide(None, when), Resync::Continue);
        }
    }
}
