//! The half of a replica that reads the log and applies it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use super::apply::apply;
use super::compatibility::{
    CaughtUp, Incompatibility, TRUNCATION_CHECK_TIMEOUT, at_starts, incompatibility,
    reason_too_old_by_log_time, reason_too_old_now, truncated_and_regrown, truncated_by_leader_epochs,
};
use super::{POLL_TIMEOUT, Parts, RETRY_PAUSE, Shared};
use crate::clock::{Clock, past_by_both_clocks};
use crate::log::{Batch, LogInfo, LogReader, LogTag, OpenError, ReadError};
use crate::replication::age::reason_too_old;
use crate::replication::progress::Phase;
use crate::store::{Checkpoint, StoreError};
use bitacora_protocol::NextOffset;

/// Between two notes in the store that the node is caught up, unless the grace is short: its age is known as well.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(30);
/// A store is built from the log at most so often until what it holds is beyond doubt.
const MAX_READINGS: usize = 3;
/// A log of fewer offsets is read faster than a member is asked.
const MIN_OFFSETS_FOR_SNAPSHOT: i64 = 20_000;

pub struct Applier {
    parts: Parts,
    pub(super) shared: Arc<Shared>,
    caught_up: CaughtUp,
    /// Why the store may not be trusted, as was found while reading.
    too_old: Option<String>,
    /// A partition that does not hold the offset from which it should be read.
    out_of_range: Option<i32>,
    reading: Option<Reading>,
}

/// A log that is being read.
struct Reading {
    info: LogInfo,
    reader: Box<dyn LogReader>,
    next: Vec<NextOffset>,
    batch: Batch,
    /// Until it is caught up.
    first: bool,
}

/// What is to be done after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    Step,
    /// A step, after a pause.
    Pause,
    /// No more: it was told to stop, or has failed for good.
    Done,
}

/// Why a step did not do what it should.
enum Interrupted {
    Stopped,
    Log(ReadError),
    Store(StoreError),
    /// The store was last caught up too long ago: the reason.
    TooOld(String),
    /// The process stood still for longer than the grace.
    Frozen,
    /// The store was built, and emptied to be built once more.
    Again,
}

impl From<StoreError> for Interrupted {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Empties a store whose records must not be read any more.
fn discard(parts: &Parts, why: &str) -> Result<(), StoreError> {
    tracing::warn!("the store may not be trusted: {why}; it is built anew");
    parts.metrics.resyncs.inc();
    parts.store.discard()
}

impl Applier {
    pub(super) fn new(parts: Parts, shared: Arc<Shared>) -> Result<Self, StoreError> {
        let Parts { log, store, progress, .. } = &parts;
        progress.set_grace(log.delete_grace());
        // Known before the log answers: a warm store serves reads while Kafka is away.
        let mut checkpoint = store.checkpoint()?;
        let age = reason_too_old(checkpoint.caught_up_at, progress.clock().wall(), log.delete_grace());
        if let Some(why) = age.filter(|_| checkpoint.identity.is_some()) {
            discard(&parts, &why)?;
            checkpoint = Checkpoint::default();
        }
        // But not another topic's keys.
        let same_topic = checkpoint.identity.as_ref().is_some_and(|identity| identity.topic == log.topic());
        if checkpoint.restored && same_topic {
            progress.hold(&checkpoint.next);
        } else {
            progress.begin(&checkpoint.next, false);
        }
        Ok(Self {
            parts,
            shared,
            caught_up: CaughtUp::default(),
            too_old: None,
            out_of_range: None,
            reading: None,
        })
    }

    fn clock(&self) -> &dyn Clock {
        &**self.parts.progress.clock()
    }

    /// Opens the log, or reads and applies what there is. Blocks for as long as the log, the store and members take.
    pub fn step(&mut self) -> Next {
        if self.shared.stopped() {
            return Next::Done;
        }
        // Not read any more after any interruption.
        let interrupted = match self.reading.take() {
            Some(mut reading) => match self.read(&mut reading) {
                Ok(()) => {
                    self.reading = Some(reading);
                    return Next::Step;
                }
                Err(interrupted) => interrupted,
            },
            None => match self.parts.log.open() {
                Ok(info) => match self.begin_reading(info) {
                    Ok(reading) => {
                        self.reading = Some(reading);
                        return Next::Step;
                    }
                    Err(interrupted) => interrupted,
                },
                Err(OpenError::Unavailable(reason)) => {
                    self.parts.progress.release(true);
                    return self.wait_for_log(reason);
                }
                Err(OpenError::Refused(reason)) => {
                    self.parts.progress.release(true);
                    tracing::error!("{reason}");
                    self.parts.progress.set_phase(Phase::Failed(reason));
                    return Next::Done;
                }
            },
        };
        match interrupted {
            Interrupted::Stopped => Next::Done,
            Interrupted::Log(error) => {
                if let ReadError::OutOfRange { partition } = error {
                    self.out_of_range = Some(partition);
                }
                self.wait_for_log(error.to_string())
            }
            Interrupted::Store(error) => self.blocked(error),
            Interrupted::TooOld(why) => {
                self.too_old = Some(why);
                Next::Step
            }
            Interrupted::Again => Next::Step,
            // Until it is done, nothing is read from it.
            Interrupted::Frozen => {
                self.caught_up = CaughtUp::default();
                let why = "this process stood still for longer than DELETE_RETENTION";
                self.discard(why).map_or_else(|error| self.blocked(error), |()| Next::Step)
            }
        }
    }

    fn discard(&self, why: &str) -> Result<(), StoreError> {
        // First, so that nobody takes the empty store for an answer.
        self.parts.progress.begin(&[], false);
        discard(&self.parts, why)
    }

    fn wait_for_log(&self, reason: String) -> Next {
        if self.parts.progress.phase() != Phase::Connecting(reason.clone()) {
            tracing::warn!("{reason}; trying again every {} ms", RETRY_PAUSE.as_millis());
        }
        self.parts.progress.set_phase(Phase::Connecting(reason));
        Next::Pause
    }

    /// The store could not be changed. Reads go on; a full disk may get room again.
    fn blocked(&self, error: StoreError) -> Next {
        let may_pass = error.may_pass();
        let reason = self.parts.store.explain(error);
        if !may_pass {
            tracing::error!("{reason}");
            self.parts.progress.set_phase(Phase::Failed(reason));
            self.shared.stop.store(true, Ordering::Relaxed);
            return Next::Done;
        }
        // The number of free bytes may change all the time.
        if !matches!(self.parts.progress.phase(), Phase::Blocked(_)) {
            tracing::error!("{reason}; trying again every {} ms", RETRY_PAUSE.as_millis());
        }
        self.parts.progress.set_phase(Phase::Blocked(reason));
        Next::Pause
    }

    /// Until it is worth another try, or time to stop.
    pub(super) fn pause(&self) {
        let until = Instant::now() + RETRY_PAUSE;
        while !self.shared.stopped() && Instant::now() < until {
            std::thread::sleep(POLL_TIMEOUT.min(RETRY_PAUSE));
        }
    }

    /// Changes the store, and tries again for as long as that fails. The log's end is learnt meanwhile, so that the lag is
    /// told.
    fn persist<T>(&self, change: impl Fn() -> Result<T, StoreError>) -> Result<T, Interrupted> {
        loop {
            let error = match change() {
                Ok(done) => {
                    if matches!(self.parts.progress.phase(), Phase::Blocked(_)) {
                        tracing::info!("the store can be written again");
                        self.parts.progress.set_phase(Phase::Reading);
                    }
                    return Ok(done);
                }
                Err(error) => error,
            };
            self.blocked(error);
            self.pause();
            if self.shared.stopped() {
                return Err(Interrupted::Stopped);
            }
            if self.parts.progress.tick() {
                return Err(Interrupted::Frozen);
            }
            if self.shared.changed.load(Ordering::Acquire) {
                return Err(Interrupted::Log(ReadError::Changed));
            }
        }
    }

    /// Opens the log and begins to read it where the store ends, or anew.
    fn begin_reading(&mut self, info: LogInfo) -> Result<Reading, Interrupted> {
        // What is known of the log from here on is of this one.
        self.shared.changed.store(false, Ordering::Release);
        if self.parts.progress.tick() {
            return Err(Interrupted::Frozen);
        }
        let next = self.reconcile(&info)?;
        *self.shared.checkpoint_before_outage() = None;
        let checkpoint = self.parts.store.checkpoint()?;
        self.caught_up.at = checkpoint.caught_up_at;
        let reader = self.parts.log.reader(&next, &checkpoint.epochs).map_err(Interrupted::Log)?;
        *self.shared.identity() = Some(info.identity.clone());
        self.parts.progress.set_phase(Phase::Reading);
        tracing::info!(topic = info.identity.topic, partitions = next.len(), "reading the log");
        Ok(Reading { info, reader, next, batch: Batch::default(), first: true })
    }

    /// Reads what there is and applies it.
    fn read(&mut self, reading: &mut Reading) -> Result<(), Interrupted> {
        let Reading { info, reader, next, batch, first } = reading;
        batch.clear();
        let read = reader.poll(POLL_TIMEOUT, batch);
        if self.parts.progress.tick() {
            return Err(Interrupted::Frozen);
        }
        if self.shared.changed.load(Ordering::Acquire) {
            return Err(Interrupted::Log(ReadError::Changed));
        }
        // What was read before an error is in order and counts.
        if !batch.says_nothing() {
            // Also of a store that is being built: what the log has lost meanwhile, it will not get any more.
            if let Some(why) =
                reason_too_old_now(&self.caught_up, self.clock(), self.parts.log.delete_grace())
            {
                return Err(Interrupted::TooOld(why));
            }
            let live = self.parts.progress.caught_up();
            if let Some(time) = batch.records().map(|record| record.timestamp).max() {
                self.parts.progress.log_told(time, live && batch.log_time().is_some());
            }
            self.persist(|| self.apply(batch, info.identity.tag()))?;
            for read in batch.read() {
                next[read.partition as usize] = read.next;
            }
        }
        self.parts.progress.heartbeat();
        read.map_err(Interrupted::Log)?;
        // Until it is caught up, the log's own clock tells how long the store was left, too.
        if *first
            && self.trusts()
            && let Some(why) =
                reason_too_old_by_log_time(&self.caught_up, batch, self.parts.log.delete_grace())
        {
            return Err(Interrupted::TooOld(why));
        }
        self.persist(|| self.sweep())?;
        if self.parts.progress.caught_up() {
            *first = false;
            if !self.trusts() && self.is_doubtful()? {
                let starts = info.starts();
                // First, so that nobody takes the empty store for a complete one.
                self.begin(&starts, false);
                self.persist(|| self.parts.store.reset(&info.identity, &starts, self.clock().wall()))?;
                self.caught_up.seen = Some(self.clock().now());
                return Err(Interrupted::Again);
            }
            self.note_caught_up()?;
        }
        reader.applied(next);
        Ok(())
    }

    /// Where to read on: at the store's next offsets if they lie in this log, else where a new store begins.
    fn reconcile(&mut self, info: &LogInfo) -> Result<Vec<NextOffset>, Interrupted> {
        let (too_old, out_of_range) = (self.too_old.take(), self.out_of_range.take());
        let checkpoint = self.parts.store.checkpoint()?;
        let Some(identity) = &checkpoint.identity else { return Ok(self.begin_anew(info)?) };
        self.caught_up.at = checkpoint.caught_up_at;
        let mut incompatibility = incompatibility(&checkpoint, info)
            .or_else(|| truncated_by_leader_epochs(&checkpoint, out_of_range?));
        if incompatibility.is_none() {
            let before = self.shared.checkpoint_before_outage().clone();
            let before = before.filter(|before| before.identity.as_ref() == Some(identity));
            for known in before.into_iter().chain([checkpoint.clone()]) {
                let known = at_starts(known, info);
                if let Some(why) = truncated_and_regrown(
                    &*self.parts.log,
                    &known,
                    TRUNCATION_CHECK_TIMEOUT,
                    &self.shared.stop,
                )
                .map_err(Interrupted::Log)?
                {
                    incompatibility = Some(Incompatibility { why, affects_every_node: true });
                    break;
                }
            }
        }
        if incompatibility.as_ref().is_some_and(|incompatibility| incompatibility.affects_every_node)
            && identity.fits(&info.identity)
        {
            self.parts.log.on_log_truncated();
        }
        let incompatibility = incompatibility.or_else(|| {
            let age = too_old
                .or_else(|| reason_too_old_now(&self.caught_up, self.clock(), self.parts.log.delete_grace()));
            age.map(|why| Incompatibility { why, affects_every_node: true })
        });
        let starts = info.starts();
        if let Some(Incompatibility { why, affects_every_node }) = incompatibility {
            self.caught_up = CaughtUp::default();
            // Of what was read before this run, nobody depends on.
            if !(affects_every_node && self.parts.progress.restored() && self.parts.progress.caught_up_once())
            {
                self.discard(&why)?;
                return Ok(self.begin_anew(info)?);
            }
            tracing::warn!(
                "the store does not fit the log: {why}; building it anew, and reading the old one until then"
            );
            self.parts.metrics.resyncs.inc();
            if let Some(next) = self.install_snapshot(info)? {
                return Ok(next);
            }
            self.parts.store.build(&info.identity, &starts, self.clock().wall())?;
            self.caught_up.seen = Some(self.clock().now());
            self.parts.progress.rebuild(&starts, why);
            return Ok(starts);
        }
        if *identity != info.identity && info.identity.topic_id.is_some() {
            self.parts.store.set_identity(&info.identity)?;
        }
        let next = self.grown(&checkpoint, info)?;
        self.begin(&next, checkpoint.restored);
        Ok(next)
    }

    fn begin(&self, next: &[NextOffset], restored: bool) {
        // A build that goes on after an interruption stays one.
        match self.parts.progress.restore().rebuilding.filter(|_| self.parts.store.is_building()) {
            Some(why) => self.parts.progress.rebuild(next, why),
            None => self.parts.progress.begin(next, restored),
        }
    }

    /// Whether a store that has just been built from the log is to be built once more: behind a record that it holds lies one
    /// without effect. Between them may have been a tombstone that was compacted away before it was reached; so was the
    /// record then, and a second reading does not find it.
    fn is_doubtful(&mut self) -> Result<bool, StoreError> {
        if self.parts.store.checkpoint()?.restored {
            return Ok(false);
        }
        let doubtful = self.parts.store.doubtful()?;
        let last = &mut self.caught_up;
        last.readings += 1;
        if doubtful.is_subset(&last.doubtful) || last.readings == MAX_READINGS {
            return Ok(false);
        }
        tracing::info!(keys = doubtful.len(), "reading the log once more, as it was compacted meanwhile");
        last.doubtful = doubtful;
        Ok(true)
    }

    /// The next offsets of all partitions, also of those that the topic has gained.
    fn grown(&self, checkpoint: &Checkpoint, info: &LogInfo) -> Result<Vec<NextOffset>, StoreError> {
        let mut next = at_starts(checkpoint.clone(), info).next;
        next.extend(info.starts().into_iter().skip(next.len()));
        // The store knows all partitions or none, whichever has records first.
        let changed = (0..).zip(next.iter().copied());
        let changed: Vec<_> = changed
            .filter(|(partition, next)| checkpoint.next.get(*partition as usize) != Some(next))
            .collect();
        if !changed.is_empty() {
            self.parts.store.apply(&mut Vec::new(), &changed)?;
        }
        Ok(next)
    }

    /// Fills an empty store: with a copy of another member's, else from the log's start.
    fn begin_anew(&mut self, info: &LogInfo) -> Result<Vec<NextOffset>, StoreError> {
        if let Some(next) = self.install_snapshot(info)? {
            return Ok(next);
        }
        let starts = info.starts();
        self.parts.store.reset(&info.identity, &starts, self.clock().wall())?;
        self.caught_up.seen = Some(self.clock().now());
        self.parts.progress.begin(&starts, false);
        Ok(starts)
    }

    /// Takes a copy of another member's store, if there is one that fits the log as it is now.
    fn install_snapshot(&self, info: &LogInfo) -> Result<Option<Vec<NextOffset>>, StoreError> {
        let Some(snapshots) = &self.parts.snapshots else { return Ok(None) };
        if info.partitions.iter().map(|range| range.end - range.start).sum::<i64>() < MIN_OFFSETS_FOR_SNAPSHOT
        {
            return Ok(None);
        }
        let fits = |checkpoint: &Checkpoint| {
            // The log has moved on while the copy was made.
            let info = self.parts.log.open().map_err(|error| error.to_string())?;
            let mut incompatibility =
                incompatibility(checkpoint, &info).map(|incompatibility| incompatibility.why);
            if incompatibility.is_none() {
                let known = at_starts(checkpoint.clone(), &info);
                incompatibility = truncated_and_regrown(
                    &*self.parts.log,
                    &known,
                    TRUNCATION_CHECK_TIMEOUT,
                    &self.shared.stop,
                )
                .map_err(|error| error.to_string())?;
            }
            let why = incompatibility.or_else(|| {
                reason_too_old(checkpoint.caught_up_at, self.clock().wall(), self.parts.log.delete_grace())
            });
            why.map_or(Ok(()), Err)
        };
        let report = |doing: String| {
            if !self.parts.progress.restored() {
                self.parts.progress.set_phase(Phase::Connecting(doing));
            }
            self.parts.progress.heartbeat();
            !self.shared.stopped()
        };
        let Some((copy, checkpoint)) = snapshots.fetch(&info.identity, &self.parts.store, &fits, &report)
        else {
            return Ok(None);
        };
        self.parts.store.install(copy)?;
        self.parts.metrics.snapshots_installed.inc();
        let next = self.grown(&checkpoint, info)?;
        self.parts.progress.begin(&next, true);
        Ok(Some(next))
    }

    fn apply(&self, batch: &Batch, log: LogTag) -> Result<(), StoreError> {
        let (started, began) = (Instant::now(), SystemTime::now());
        let (applied, poison) = apply(&self.parts.store, batch, log)?;
        self.parts.progress.applied(batch.read());
        self.parts.metrics.poison_records.inc_by(poison as u64);
        self.parts.metrics.records_applied.inc_by(applied.changed as u64);
        self.parts.metrics.records_trimmed.inc_by(applied.trimmed as u64);
        self.parts.metrics.records_void.inc_by(applied.void as u64);
        if batch.records().len() > 0 {
            self.parts.metrics.batch_records.observe(batch.records().len() as f64);
            self.parts.metrics.apply_seconds.observe(started.elapsed().as_secs_f64());
        }
        self.parts.telemetry.applied(batch.traced(), began);
        Ok(())
    }

    fn sweep(&self) -> Result<(), StoreError> {
        // What a wrong clock drops would not come back when it is set right.
        let Some(past) = self.parts.progress.past() else { return Ok(()) };
        let seen = self.parts.progress.seen().map(|seen| seen.until);
        let swept = self.parts.store.sweep(past, self.parts.delete_retention, seen)?;
        self.parts.metrics.keys_swept.inc_by(swept as u64);
        Ok(())
    }

    /// Whether the store that is written is one that was complete before.
    fn trusts(&self) -> bool {
        !self.parts.store.is_building() && self.parts.progress.restored()
    }

    /// Everything is applied. Remembers when; the first time in this run, or after a resync, the store answers from now on.
    fn note_caught_up(&mut self) -> Result<(), Interrupted> {
        let ((now, wall), grace) = ((self.clock().now(), self.clock().wall()), self.parts.log.delete_grace());
        let restored = self.trusts();
        // Markers may have left the log before they were reached.
        if restored && let Some(why) = reason_too_old_now(&self.caught_up, self.clock(), grace) {
            return Err(Interrupted::TooOld(why));
        }
        self.caught_up.seen = Some(now);
        // A clock that is ahead would make the store too young when it is set right.
        let at = self.parts.progress.log_now();
        let at = at.map_or(wall, |log_now| past_by_both_clocks(wall, log_now).assuming_clocks_agree());
        let note = grace.map_or(CHECKPOINT_INTERVAL, |grace| CHECKPOINT_INTERVAL.min(grace / 100));
        let is_fresh = self.caught_up.noted.is_some_and(|noted| now.since(noted) < note);
        if restored && is_fresh && self.caught_up.at.is_some_and(|known| known <= at) {
            return Ok(());
        }
        self.persist(|| self.parts.store.note_caught_up(at))?;
        (self.caught_up.at, self.caught_up.noted) = (Some(at), Some(now));
        if !restored || !self.parts.progress.caught_up_once() {
            self.parts.progress.set_restored();
            let seconds = self.parts.progress.restore().seconds.unwrap_or_default();
            tracing::info!(seconds, "caught up with the log");
        }
        Ok(())
    }
}
