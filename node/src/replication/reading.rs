//! Reading the log and applying it: records and next offsets, what has expired, and the note that everything was applied.

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime};

use super::applier::{Applier, Interrupted};
use super::apply::apply_telling;
use super::compatibility::{reason_too_old_by_log_time, reason_too_old_now};
use super::feed;
use super::state::Event;
use crate::clock::{Moment, past_by_both_clocks};
use crate::log::{Batch, BatchBounds, Level, LogInfo, LogReader, LogTag, ReadError, is_reserved};
use crate::store::{Applied, KeyChange, StoreError, Swept};
use bitacora_protocol::{NextOffset, Position};

/// Between two notes in the store that the node is caught up, unless `DELETE_RETENTION` is short: its age is known as well.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(30);
/// A store is built from the log at most so often until what it holds is beyond doubt.
const MAX_BUILD_READINGS: usize = 3;

/// What changes nothing in the store, such as barriers, is committed after so long, or with the next record that does.
const HOLD_BACK: Duration = Duration::from_millis(100);
/// The same, once there are so many.
const MAX_RECORDS_HELD_BACK: usize = 1_000;

/// How long the reader waits for news while there is more to sweep, or it is not caught up yet: that it is, is learnt elsewhere, and reads
/// wait for it.
const SHORT_WAIT: Duration = Duration::from_millis(25);
/// The same once it is caught up and nothing is held back: what else is due may wait for so long, and a node that has nothing to do sleeps.
const IDLE_WAIT: Duration = Duration::from_millis(250);

/// A log that is being read.
pub(super) struct Reading {
    pub info: LogInfo,
    pub reader: Box<dyn LogReader>,
    pub next: Vec<NextOffset>,
    pub batch: Batch,
    /// Of the next batch.
    pub bounds: BatchBounds,
    /// The next batch, and what came of reading it, if that was done while the one before was applied.
    pub ahead: Option<(Batch, Result<(), ReadError>)>,
    /// An empty batch, for its memory.
    pub spare: Batch,
    /// Since when what the batch has is told but not committed; `None` if it is committed.
    pub held_back_since: Option<Moment>,
    /// The last sweep did not come to an end.
    pub more_to_sweep: bool,
    pub caught_up_since_opened: bool,
    /// Whether the store may say of a partition that it has been read across a gap.
    pub after_gap: bool,
}

/// How a store that is being built from the log has fared so far.
#[derive(Default)]
pub(super) struct BuildCheck {
    /// How often it has been read to the end.
    readings: usize,
    /// Records that it held then behind which lies one without effect.
    keys_with_pending_repairs: BTreeSet<(Vec<u8>, Position)>,
    /// How many records were put behind all others.
    appended: u64,
}

impl Reading {
    /// Reads what comes next into the batch. Returns how many records of it were told before.
    fn poll(&mut self) -> (usize, Result<(), ReadError>) {
        let mut wait = match self.held_back_since {
            _ if self.more_to_sweep || !self.caught_up_since_opened => SHORT_WAIT,
            Some(_) => HOLD_BACK,
            None => IDLE_WAIT,
        };
        if let Some((ahead, polled)) = self.ahead.take() {
            self.spare = std::mem::replace(&mut self.batch, ahead);
            if polled.is_err() || self.batch.is_full() {
                return (0, polled);
            }
            if !self.batch.says_nothing() {
                wait = Duration::ZERO;
            }
        } else if self.held_back_since.is_none() {
            self.batch.begin(self.bounds);
        }
        let told = if self.held_back_since.is_some() { self.batch.records().len() } else { 0 };
        (told, self.reader.poll(wait, &mut self.batch))
    }

    /// Does something with the batch, and reads the next one meanwhile if that is to be a large one. Two threads then share the work of
    /// a restore.
    fn read_ahead<T>(&mut self, with_batch: impl FnOnce(&Batch) -> T) -> T {
        let Self { batch, reader, spare, bounds, ahead, .. } = self;
        let mut next = std::mem::take(spare);
        next.begin(*bounds);
        if !reader.may_read_ahead() || !next.is_worth_a_wait() {
            return with_batch(batch);
        }
        std::thread::scope(|scope| {
            let read = || {
                let polled = reader.poll(Duration::ZERO, &mut next);
                (next, polled)
            };
            let thread = std::thread::Builder::new().name("replica-ahead".into());
            // Without a thread it is read afterwards.
            let reading = thread.spawn_scoped(scope, read).ok();
            let done = with_batch(batch);
            *ahead = reading
                .map(|reading| reading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            done
        })
    }
}

impl Applier {
    /// Reads what there is and applies it.
    pub(super) fn read(&mut self, reading: &mut Reading) -> Result<(), Interrupted> {
        let (told, polled) = reading.poll();
        self.check_interruption()?;
        // What was read before an error is in order and counts.
        if !reading.batch.says_nothing() {
            self.apply_batch(reading, told)?;
        }
        self.parts.progress.note_sign_of_life();
        polled.map_err(Interrupted::Log)?;
        // Until it is caught up, the log's own clock tells how long the store was left, too.
        if !reading.caught_up_since_opened && self.writes_complete_store() {
            let retention = self.parts.log.delete_retention();
            if let Some(why) = reason_too_old_by_log_time(&self.last_caught_up, &reading.batch, retention) {
                return Err(Interrupted::TooOld(why));
            }
        }
        reading.more_to_sweep = self.persist(|| self.sweep(reading.info.compaction_lag))?.is_full;
        if self.parts.progress.caught_up() {
            reading.caught_up_since_opened = true;
            if reading.after_gap {
                self.persist(|| self.parts.store.forget_gaps())?;
                reading.after_gap = false;
            }
            if !self.writes_complete_store() && self.must_build_again()? {
                return self.build_again(&reading.info);
            }
            self.note_caught_up()?;
        }
        reading.reader.applied(&reading.next);
        Ok(())
    }

    /// Applies what was read, but for the first `told` records, which are only held back.
    fn apply_batch(&mut self, reading: &mut Reading, told: usize) -> Result<(), Interrupted> {
        // Also of a store that is being built: what the log has lost meanwhile, it will not get any more.
        let retention = self.parts.log.delete_retention();
        if let Some(why) = reason_too_old_now(&self.last_caught_up, self.clock(), retention) {
            return Err(Interrupted::TooOld(why));
        }
        let batch = &reading.batch;
        let live = self.parts.progress.caught_up();
        if let Some(time) = batch.records().skip(told).map(|record| record.timestamp).max() {
            self.parts.progress.note_log_time(time, live && batch.log_time().is_some());
        }
        if let Some((position, level)) = batch.highest_level()
            && level > Level::HIGHEST_KNOWN
        {
            return Err(Interrupted::LevelUnknown { partition: position.partition, level });
        }
        if self.may_hold_back(reading) {
            reading.held_back_since.get_or_insert_with(|| self.clock().now());
            // First, so that who looks at the log after an outage knows of all that was told.
            batch.read().clone_into(&mut self.shared.held_back.lock());
            self.parts.progress.note_applied(batch.read());
            self.parts.progress.barriers_read().tell(batch.records().skip(told));
        } else {
            let began = SystemTime::now();
            let applied = self.apply_and_read_ahead(reading)?;
            let batch = &reading.batch;
            reading.after_gap |= applied.gap;
            self.build_check.appended += applied.appended as u64;
            reading.bounds = self.next_bounds(reading, &applied);
            self.parts.progress.barriers_read().tell(batch.records().skip(told));
            reading.held_back_since = None;
            self.shared.held_back.lock().clear();
            // A node that reads the log from its start would tell of writes of long ago, as many as the log has.
            if reading.caught_up_since_opened {
                self.parts.telemetry.applied(batch.traced(), began);
            }
        }
        for read in reading.batch.read() {
            reading.next[read.partition as usize] = read.next;
        }
        Ok(())
    }

    fn apply_and_read_ahead(&self, reading: &mut Reading) -> Result<Applied, Interrupted> {
        let log = reading.info.identity.tag();
        reading.read_ahead(|batch| self.persist(|| self.apply(batch, log)))
    }

    /// How much the next batch may have. Where keys come in about their own order, a large one leaves full pages; where they don't,
    /// each record takes a page of its own until it is committed, so a large one would take much memory.
    fn next_bounds(&self, reading: &Reading, applied: &Applied) -> BatchBounds {
        let come_in_order = applied.appended * 4 >= reading.batch.records().len();
        if come_in_order && !self.writes_complete_store() {
            reading.bounds.doubled()
        } else {
            BatchBounds::default()
        }
    }

    /// Whether a batch changes nothing in the store but its next offsets, so that these may be committed later: the store has all that
    /// lies before them. A commit waits for the disk, and that is most of what a strong read of an idle node would wait for. If the
    /// process ends meanwhile, what was held back is read once more.
    fn may_hold_back(&self, reading: &Reading) -> bool {
        let batch = &reading.batch;
        let is_due =
            reading.held_back_since.is_some_and(|since| self.clock().now().since(since) >= HOLD_BACK);
        !is_due
            && batch.records().len() <= MAX_RECORDS_HELD_BACK
            && batch.highest_level().is_none()
            && batch.records().all(|record| record.key.is_some_and(is_reserved))
            && reading.caught_up_since_opened
            && self.writes_complete_store()
    }

    /// Applies a batch, and tells who waits.
    fn apply(&self, batch: &Batch, log: LogTag) -> Result<Applied, StoreError> {
        let started = Instant::now();
        let young_from = self.parts.progress.young_from();
        // A store that is built beside the one that is read is not followed.
        let is_followed = !self.parts.store.is_building();
        let mut changes = (is_followed && self.parts.feed.wants_changes()).then(Vec::new);
        let mut tell = |key: &[u8], change: KeyChange| {
            if let Some(changes) = &mut changes
                && let Ok(key) = std::str::from_utf8(key)
            {
                changes.push(feed::Change { key: key.into(), change });
            }
        };
        let turn = self.parts.feed.turn();
        let (applied, poison) = apply_telling(&self.parts.store, batch, log, &young_from, &mut tell)?;
        self.parts.progress.note_applied(batch.read());
        if is_followed {
            self.parts.feed.push(changes, &self.parts.progress.next_offsets());
        }
        drop(turn);
        self.parts.metrics.watch_buffer_bytes.set(self.parts.feed.bytes().cast_signed() as i64);
        self.parts.decisions.tell(&applied.decided);
        let metrics = &self.parts.metrics;
        metrics.poison_records.inc_by(poison as u64);
        metrics.records_applied.inc_by(applied.changed as u64);
        metrics.records_trimmed.inc_by(applied.trimmed as u64);
        metrics.records_void.inc_by(applied.void as u64);
        metrics.repairs_contradicting.inc_by(applied.contradicted as u64);
        if batch.records().len() > 0 {
            metrics.batch_records.observe(batch.records().len() as f64);
            metrics.apply_seconds.observe(started.elapsed().as_secs_f64());
        }
        Ok(applied)
    }

    /// Removes what has expired, and markers that are no longer needed.
    fn sweep(&self, compaction_lag: Duration) -> Result<Swept, StoreError> {
        // What a wrong clock drops would not come back when it is set right.
        let Some(past) = self.parts.progress.certainly_past() else { return Ok(Swept::default()) };
        let past = self.parts.feed.sweep_until(past);
        let applied_until = self.parts.progress.applied_until().map(|until| until.time);
        let swept =
            self.parts.store.sweep(past, self.parts.delete_retention, applied_until, compaction_lag)?;
        self.parts.metrics.keys_swept.inc_by(swept.changed as u64);
        Ok(swept)
    }

    /// Whether the store that is written is one that was complete before, rather than one that is being built.
    fn writes_complete_store(&self) -> bool {
        !self.parts.store.is_building() && self.parts.progress.restored()
    }

    /// Whether a store that has just been built from the log is to be built once more: behind a record that it holds lies one
    /// without effect. Between them may have been a tombstone that was compacted away before it was reached; so was the
    /// record then, and a second reading does not find it.
    fn must_build_again(&mut self) -> Result<bool, StoreError> {
        if self.parts.store.checkpoint()?.restored {
            return Ok(false);
        }
        let found = self.parts.store.keys_with_pending_repairs(&self.parts.progress.young_from())?;
        let check = &mut self.build_check;
        check.readings += 1;
        if found.is_subset(&check.keys_with_pending_repairs) || check.readings == MAX_BUILD_READINGS {
            return Ok(false);
        }
        tracing::info!(keys = found.len(), "reading the log once more, as it was compacted meanwhile");
        check.keys_with_pending_repairs = found;
        Ok(true)
    }

    /// Empties the store that was built, to be built once more.
    fn build_again(&mut self, info: &LogInfo) -> Result<(), Interrupted> {
        let starts = info.starts();
        // First, so that nobody takes the empty store for a complete one.
        self.resume(&starts, Event::StoreEmptied)?;
        self.persist(|| self.parts.store.reset(&info.identity, &starts, self.clock().wall()))?;
        self.last_caught_up.moment = Some(self.clock().now());
        Err(Interrupted::BuildAgain)
    }

    /// Fills the pages of a store that was built from the log, if that is worth it: nobody reads it yet.
    fn repack(&self) {
        let began = Instant::now();
        let goes_on = || {
            self.parts.progress.note_sign_of_life();
            !self.shared.stopped()
        };
        match self.parts.store.repack(self.build_check.appended, &goes_on) {
            Ok(true) => {
                let seconds = began.elapsed().as_secs_f64();
                tracing::info!(seconds, "wrote the store once more, with full pages");
            }
            Ok(false) => {}
            // It is as it was, and of use.
            Err(error) => {
                let why = self.parts.store.explain(error);
                tracing::warn!("the store could not be written once more, with full pages: {why}");
            }
        }
    }

    /// Everything is applied. Remembers when; the first time in this run, or after a resync, the store answers from now on.
    fn note_caught_up(&mut self) -> Result<(), Interrupted> {
        let (now, wall, retention) =
            (self.clock().now(), self.clock().wall(), self.parts.log.delete_retention());
        let was_complete = self.writes_complete_store();
        // Markers may have left the log before they were reached.
        if was_complete && let Some(why) = reason_too_old_now(&self.last_caught_up, self.clock(), retention) {
            return Err(Interrupted::TooOld(why));
        }
        self.last_caught_up.moment = Some(now);
        // A clock that is ahead would make the store too young when it is set right.
        let at = self.parts.progress.log_time_now();
        let at = at.map_or(wall, |log_time| past_by_both_clocks(wall, log_time).assuming_clocks_agree());
        let interval =
            retention.map_or(CHECKPOINT_INTERVAL, |retention| CHECKPOINT_INTERVAL.min(retention / 100));
        let known = &self.last_caught_up;
        let is_fresh = known.written.is_some_and(|written| now.since(written) < interval);
        if was_complete && is_fresh && known.wall_time.is_some_and(|known| known <= at) {
            return Ok(());
        }
        if !was_complete && !self.parts.store.was_ever_complete()? {
            self.repack();
        }
        let is_replaced = self.parts.store.is_building();
        if is_replaced {
            self.parts.feed.suspend();
        }
        self.persist(|| self.parts.store.note_caught_up(at))?;
        if is_replaced || self.parts.feed.look().is_none() {
            let next = self.parts.progress.next_offsets();
            self.parts.feed.restart(self.parts.store.log(), &next, self.clock().wall());
        }
        (self.last_caught_up.wall_time, self.last_caught_up.written) = (Some(at), Some(now));
        if !was_complete || !self.parts.progress.caught_up_in_this_run() {
            self.parts.progress.note_caught_up()?;
            let seconds = self.parts.progress.restore().seconds.unwrap_or_default();
            tracing::info!(seconds, "caught up with the log");
        }
        Ok(())
    }
}
