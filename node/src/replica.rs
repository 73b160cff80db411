//! The one path from the log into the store: a thread that reads batches, applies each in one transaction together with
//! the next offsets, and only then tells who waits. Nothing else writes the store.
//!
//! # When the store does not fit the log
//!
//! It is built anew, from another member's store or from the log's start, never patched. Whether the old one is read in
//! the meantime depends on who else can answer: what befalls one node is answered by the others (its store is emptied, it
//! is not ready, its reads ask the members); what befalls all of them must not silence all of them at once (the new store
//! is built beside the old one, which is read until the new one is complete).
//!
//! A store from an earlier run answers reads when the log has said that it fits, or has not said anything for a second.
//! A node "runs" from the first time on that it is caught up; a store that it starts with has no such claim.
//!
//! | what happened | found at the start | found while running |
//! | --- | --- | --- |
//! | another `KAFKA_TOPIC` | emptied | – |
//! | the topic was deleted and created again, the Kafka cluster was replaced | emptied | read until the switch |
//! | the log ends below the store's next offset, or has fewer partitions: it lost records | emptied | read until the switch |
//! | it lost records and has others in their place, later ones by their write timestamps ([`rewritten`]) | emptied | read until the switch |
//! | the log starts above the store's next offset: this node missed records | emptied | emptied |
//! | last caught up longer ago than the delete grace, for the process was away or frozen | emptied, before the log answers | emptied, before another read |
//! | … while it was being built from the log | emptied | begun anew |
//! | … for the log did not answer, or the store could not be written, for that long | – | read until the switch |
//! | the topic was given more partitions | goes on, and reads them from their start | the same, within seconds |
//! | the volume was restored from a backup within the grace | goes on from its own offsets | – |
//! | the machine's clock was set forward by more than the grace: it may have been stopped for as long | emptied | emptied |
//! | the machine's clock was set back by more than an hour: nobody knows how long it was away | emptied | nothing: a running process counts for itself |

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bitacora_client::wire::{KeyValue, ttl};

use crate::freshness::distrust;
use crate::log::{Batch, Condition, Log, LogIdentity, LogInfo, LogRecord, OpenError, ReadError};
use crate::metrics::Metrics;
use crate::now_ms;
use crate::position::{HighWatermark, NextOffset, Position};
use crate::progress::{Phase, Progress};
use crate::snapshot::Fetcher;
use crate::store::{Applied, Author, Change, Checkpoint, Entry, Store, StoreError};

/// How long the reader waits for news before the thread looks whether it should stop.
const POLL: Duration = Duration::from_millis(100);
/// Between two tries to reach a log that does not answer.
const RETRY: Duration = Duration::from_millis(500);
/// Between two questions for the high watermarks; well within the second after which they are stale.
const WATERMARKS: Duration = Duration::from_millis(250);
/// Between two looks whether the log is still the same.
const STILL: Duration = Duration::from_secs(2);
/// Between two notes in the store that the node is caught up, unless the grace is short: its age is known as well.
const NOTE: Duration = Duration::from_secs(30);
/// A store is built from the log at most so often until what it holds is beyond doubt.
const READINGS: usize = 3;
/// How long to look whether the log holds other records than were read.
const VERIFY: Duration = Duration::from_secs(10);
/// A log of fewer offsets is read faster than a member is asked.
const WORTH_A_SNAPSHOT: i64 = 20_000;
/// A poison record is logged with its position, but not more than so many in one batch.
const POISON_LOGGED: usize = 10;

/// Two threads: one applies, the other learns the high watermarks.
pub struct Replica {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

struct Parts {
    log: Arc<dyn Log>,
    store: Arc<Store>,
    progress: Arc<Progress>,
    metrics: Arc<Metrics>,
    stop: Arc<AtomicBool>,
    /// How long other writers' tombstones are remembered, in ms.
    delete_retention: i64,
    shared: Arc<Shared>,
    /// Where a copy of another member's store comes from; `None` to read the log always.
    snapshots: Option<Fetcher>,
}

/// What the two threads tell each other.
#[derive(Default)]
struct Shared {
    /// The log that is read.
    identity: Mutex<Option<LogIdentity>>,
    /// It is another one now, has lost records or gained partitions: it must be opened anew.
    changed: AtomicBool,
    /// How far the store was when the log stopped answering. When it answers again it may have lost records, and have
    /// others in their place by the time that somebody looks, or that they are applied.
    silent_since: Mutex<Option<Checkpoint>>,
}

impl Shared {
    fn identity(&self) -> MutexGuard<'_, Option<LogIdentity>> {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn silent_since(&self) -> MutexGuard<'_, Option<Checkpoint>> {
        self.silent_since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Replica {
    /// # Errors
    /// When the store can't be read or the system gives no thread.
    pub fn start(
        log: Arc<dyn Log>,
        store: Arc<Store>,
        progress: Arc<Progress>,
        metrics: Arc<Metrics>,
        delete_retention: Duration,
        snapshots: Option<Fetcher>,
    ) -> anyhow::Result<Self> {
        progress.set_grace(log.delete_grace());
        // Known before the log answers: a warm store serves reads while Kafka is away.
        let mut checkpoint = store.checkpoint()?;
        let age = distrust(checkpoint.caught_up_at, now_ms(), log.delete_grace());
        if let Some(why) = age.filter(|_| checkpoint.identity.is_some()) {
            discard(&store, &metrics, &why)?;
            checkpoint = Checkpoint::default();
        }
        // But not another topic's keys.
        let same_topic = checkpoint.identity.as_ref().is_some_and(|identity| identity.topic == log.topic());
        if checkpoint.restored && same_topic {
            progress.hold(&checkpoint.next);
        } else {
            progress.begin(&checkpoint.next, false);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let shared = Arc::new(Shared::default());
        let learner = std::thread::Builder::new().name("watermarks".into()).spawn({
            let (log, progress, stop) = (Arc::clone(&log), Arc::clone(&progress), Arc::clone(&stop));
            let (shared, store) = (Arc::clone(&shared), Arc::clone(&store));
            move || learn(&*log, &store, &progress, &shared, &stop)
        })?;
        let delete_retention = delete_retention.as_millis() as i64;
        let stop_applier = Arc::clone(&stop);
        let parts =
            Parts { log, store, progress, metrics, stop: stop_applier, delete_retention, shared, snapshots };
        let applier = std::thread::Builder::new().name("replica".into()).spawn(move || parts.run())?;
        Ok(Self { stop, threads: vec![learner, applier] })
    }

    /// Stops after the batch under way. Blocks, for as long as that takes.
    pub fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            // The unwinding thread has told `Progress` already.
            let _ = thread.join();
        }
    }
}

fn learn(log: &dyn Log, store: &Store, progress: &Progress, shared: &Shared, stop: &AtomicBool) {
    let mut looked = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        progress.tick(now_ms());
        progress.release(false);
        if !matches!(progress.phase(), Phase::Reading | Phase::Blocked(_)) {
            std::thread::sleep(WATERMARKS / 10);
            continue;
        }
        let (asked, next) = (progress.asks(), progress.next());
        match log.high_watermarks() {
            Ok(learnt) => {
                progress.learnt(&learnt, asked);
                if next.iter().zip(&learnt).any(|(next, HighWatermark(end))| next.0 > *end) {
                    shared.changed.store(true, Ordering::Release);
                }
                let before = shared.silent_since().clone();
                match before.map(|before| rewritten(log, &before, VERIFY, stop)) {
                    // Who opens the log anew looks again, and says so.
                    Some(Ok(Some(_))) => shared.changed.store(true, Ordering::Release),
                    Some(Ok(None)) => *shared.silent_since() = None,
                    Some(Err(error)) => tracing::debug!(%error, "not known whether the log is what it was"),
                    None => {}
                }
            }
            Err(error) => {
                tracing::debug!(%error, "the high watermarks are not known");
                let mut silent_since = shared.silent_since();
                if silent_since.is_none() {
                    *silent_since = store.checkpoint().ok();
                }
            }
        }
        if looked.elapsed() >= STILL {
            let identity = shared.identity().clone();
            if identity.is_some_and(|identity| !log.is_still(&identity, next.len())) {
                shared.changed.store(true, Ordering::Release);
            }
            looked = Instant::now();
        }
        std::thread::sleep(WATERMARKS);
    }
}

/// Why the replica left its reading loop.
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

/// When the store was last caught up.
#[derive(Default)]
struct CaughtUp {
    /// By the clock, in ms since the epoch.
    at: Option<i64>,
    /// By the machine's, if it was in this run.
    seen: Option<Instant>,
    /// When the store was last told.
    noted: Option<Instant>,
    /// How often a store that is being built has been read to the end, and what was doubtful then.
    readings: usize,
    doubtful: BTreeSet<(Vec<u8>, Position)>,
}

/// Empties a store whose records must not be read any more.
fn discard(store: &Store, metrics: &Metrics, why: &str) -> Result<(), StoreError> {
    tracing::warn!("the store may not be trusted: {why}; it is built anew");
    metrics.resyncs.inc();
    store.discard()
}

impl Parts {
    fn run(self) {
        let _obituary = Obituary { progress: &self.progress, thread: "replica" };
        let mut caught_up = CaughtUp::default();
        let mut too_old = None;
        while !self.stopped() {
            let info = match self.log.open() {
                Ok(info) => info,
                Err(OpenError::Unavailable(reason)) => {
                    self.progress.release(true);
                    self.wait_for_log(reason);
                    continue;
                }
                Err(OpenError::Refused(reason)) => {
                    self.progress.release(true);
                    tracing::error!("{reason}");
                    self.progress.set_phase(Phase::Failed(reason));
                    return;
                }
            };
            match self.follow(&info, &mut caught_up, too_old.take()) {
                Interrupted::Stopped => return,
                Interrupted::Log(error) => self.wait_for_log(error.to_string()),
                Interrupted::Store(error) => self.blocked(error),
                Interrupted::TooOld(why) => too_old = Some(why),
                Interrupted::Again => {}
                // Until it is done, nothing is read from it.
                Interrupted::Frozen => {
                    caught_up = CaughtUp::default();
                    let why = "this process stood still for longer than DELETE_RETENTION";
                    if let Err(error) = self.discard(why) {
                        self.blocked(error);
                    }
                }
            }
        }
    }

    fn discard(&self, why: &str) -> Result<(), StoreError> {
        // First, so that nobody takes the empty store for an answer.
        self.progress.begin(&[], false);
        discard(&self.store, &self.metrics, why)
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn wait_for_log(&self, reason: String) {
        if self.progress.phase() != Phase::Connecting(reason.clone()) {
            tracing::warn!("{reason}; trying again every {} ms", RETRY.as_millis());
        }
        self.progress.set_phase(Phase::Connecting(reason));
        self.pause();
    }

    /// The store could not be changed. Reads go on; a full disk may get room again.
    fn blocked(&self, error: StoreError) {
        let may_pass = error.may_pass();
        let reason = self.store.explain(error);
        if !may_pass {
            tracing::error!("{reason}");
            self.progress.set_phase(Phase::Failed(reason));
            self.stop.store(true, Ordering::Relaxed);
            return;
        }
        // The number of free bytes may change all the time.
        if !matches!(self.progress.phase(), Phase::Blocked(_)) {
            tracing::error!("{reason}; trying again every {} ms", RETRY.as_millis());
        }
        self.progress.set_phase(Phase::Blocked(reason));
        self.pause();
    }

    fn pause(&self) {
        let until = Instant::now() + RETRY;
        while !self.stopped() && Instant::now() < until {
            std::thread::sleep(POLL.min(RETRY));
        }
    }

    /// Changes the store, and tries again for as long as that fails. The log's end is learnt meanwhile, so that the lag is
    /// told.
    fn persist<T>(&self, change: impl Fn() -> Result<T, StoreError>) -> Result<T, Interrupted> {
        loop {
            let error = match change() {
                Ok(done) => {
                    if matches!(self.progress.phase(), Phase::Blocked(_)) {
                        tracing::info!("the store can be written again");
                        self.progress.set_phase(Phase::Reading);
                    }
                    return Ok(done);
                }
                Err(error) => error,
            };
            self.blocked(error);
            if self.stopped() {
                return Err(Interrupted::Stopped);
            }
            if self.progress.tick(now_ms()) {
                return Err(Interrupted::Frozen);
            }
            if self.shared.changed.load(Ordering::Acquire) {
                return Err(Interrupted::Log(ReadError::Changed));
            }
        }
    }

    /// Reads and applies until something interrupts it.
    fn follow(&self, info: &LogInfo, caught_up: &mut CaughtUp, too_old: Option<String>) -> Interrupted {
        self.follow_on(info, caught_up, too_old).unwrap_or_else(|interrupted| interrupted)
    }

    fn follow_on(
        &self,
        info: &LogInfo,
        caught_up: &mut CaughtUp,
        too_old: Option<String>,
    ) -> Result<Interrupted, Interrupted> {
        // What is known of the log from here on is of this one.
        self.shared.changed.store(false, Ordering::Release);
        if self.progress.tick(now_ms()) {
            return Ok(Interrupted::Frozen);
        }
        let mut next = self.reconcile(info, caught_up, too_old)?;
        *self.shared.silent_since() = None;
        caught_up.at = self.store.checkpoint()?.caught_up_at;
        let mut reader = self.log.reader(&next).map_err(Interrupted::Log)?;
        *self.shared.identity() = Some(info.identity.clone());
        self.progress.set_phase(Phase::Reading);
        tracing::info!(topic = info.identity.topic, partitions = next.len(), "reading the log");
        let mut batch = Batch::default();
        let mut first = true;
        while !self.stopped() {
            batch.clear();
            let read = reader.poll(POLL, &mut batch);
            if self.progress.tick(now_ms()) {
                return Ok(Interrupted::Frozen);
            }
            if self.shared.changed.load(Ordering::Acquire) {
                return Ok(Interrupted::Log(ReadError::Changed));
            }
            // What was read before an error is in order and counts.
            if !batch.says_nothing() {
                let live = self.progress.caught_up();
                if let Some(time) = batch.records().map(|record| record.timestamp).max() {
                    self.progress.log_told(time, live && batch.log_time().is_some());
                }
                self.persist(|| self.apply(&batch))?;
                for (partition, offset) in batch.next() {
                    next[*partition as usize] = *offset;
                }
            }
            self.progress.heartbeat();
            read.map_err(Interrupted::Log)?;
            // Until it is caught up, the log's own clock tells how long the store was left, too.
            if first
                && self.trusts()
                && let Some(why) = distrust_by_log(caught_up, &batch, self.log.delete_grace())
            {
                return Ok(Interrupted::TooOld(why));
            }
            self.persist(|| self.sweep())?;
            if self.progress.caught_up() {
                first = false;
                if !self.trusts() && self.is_doubtful(caught_up)? {
                    let starts = info.starts();
                    // First, so that nobody takes the empty store for a complete one.
                    self.begin(&starts, false);
                    self.persist(|| self.store.reset(&info.identity, &starts, now_ms()))?;
                    return Ok(Interrupted::Again);
                }
                self.note_caught_up(caught_up)?;
            }
            reader.applied(&next);
        }
        Ok(Interrupted::Stopped)
    }

    /// Where to read on: at the store's next offsets if they lie in this log, else where a new store begins.
    fn reconcile(
        &self,
        info: &LogInfo,
        caught_up: &mut CaughtUp,
        too_old: Option<String>,
    ) -> Result<Vec<NextOffset>, Interrupted> {
        let checkpoint = self.store.checkpoint()?;
        let Some(identity) = &checkpoint.identity else { return Ok(self.begin_anew(info)?) };
        caught_up.at = checkpoint.caught_up_at;
        let mut misfit = misfit(&checkpoint, info);
        if misfit.is_none() {
            let before = self.shared.silent_since().clone();
            let before = before.filter(|before| before.identity.as_ref() == Some(identity));
            for known in before.iter().chain([&checkpoint]) {
                if let Some(why) =
                    rewritten(&*self.log, known, VERIFY, &self.stop).map_err(Interrupted::Log)?
                {
                    misfit = Some(Misfit { why, of_all: true });
                    break;
                }
            }
        }
        if misfit.as_ref().is_some_and(|misfit| misfit.of_all) && identity.fits(&info.identity) {
            self.log.has_gone_back();
        }
        let misfit = misfit.or_else(|| {
            let age = too_old.or_else(|| distrust_now(caught_up, now_ms(), self.log.delete_grace()));
            age.map(|why| Misfit { why, of_all: true })
        });
        let starts = info.starts();
        if let Some(Misfit { why, of_all }) = misfit {
            *caught_up = CaughtUp::default();
            // Of what was read before this run, nobody depends on.
            if !(of_all && self.progress.restored() && self.progress.caught_up_once()) {
                self.discard(&why)?;
                return Ok(self.begin_anew(info)?);
            }
            tracing::warn!(
                "the store does not fit the log: {why}; building it anew, and reading the old one until then"
            );
            self.metrics.resyncs.inc();
            if let Some(next) = self.install_snapshot(info)? {
                return Ok(next);
            }
            self.store.build(&info.identity, &starts, now_ms())?;
            self.progress.rebuild(&starts, why);
            return Ok(starts);
        }
        if *identity != info.identity && info.identity.topic_id.is_some() {
            self.store.set_identity(&info.identity)?;
        }
        let next = self.grown(&checkpoint, info)?;
        self.begin(&next, checkpoint.restored);
        Ok(next)
    }

    fn begin(&self, next: &[NextOffset], restored: bool) {
        // A build that goes on after an interruption stays one.
        match self.progress.restore().rebuilding.filter(|_| self.store.is_building()) {
            Some(why) => self.progress.rebuild(next, why),
            None => self.progress.begin(next, restored),
        }
    }

    /// Whether a store that has just been built from the log is to be built once more: behind a record that it holds lies one
    /// without effect. Between them may have been a tombstone that was compacted away before it was reached; so was the
    /// record then, and a second reading does not find it.
    fn is_doubtful(&self, last: &mut CaughtUp) -> Result<bool, StoreError> {
        if self.store.checkpoint()?.restored {
            return Ok(false);
        }
        let doubtful = self.store.doubtful()?;
        last.readings += 1;
        if doubtful.is_subset(&last.doubtful) || last.readings == READINGS {
            return Ok(false);
        }
        tracing::info!(keys = doubtful.len(), "reading the log once more, as it was compacted meanwhile");
        last.doubtful = doubtful;
        Ok(true)
    }

    /// The next offsets of all partitions, also of those that the topic has gained.
    fn grown(&self, checkpoint: &Checkpoint, info: &LogInfo) -> Result<Vec<NextOffset>, StoreError> {
        let mut next = checkpoint.next.clone();
        for (p, range) in info.partitions.iter().enumerate() {
            match next.get_mut(p) {
                Some(known) => known.0 = known.0.max(range.start),
                None => next.push(NextOffset(range.start)),
            }
        }
        if next.len() > checkpoint.next.len() {
            // The store knows all partitions or none, whichever has records first.
            let all: Vec<_> = (0..).zip(next.iter().copied()).collect();
            self.store.apply(&mut Vec::new(), &all)?;
        }
        Ok(next)
    }

    /// Fills an empty store: with a copy of another member's, else from the log's start.
    fn begin_anew(&self, info: &LogInfo) -> Result<Vec<NextOffset>, StoreError> {
        if let Some(next) = self.install_snapshot(info)? {
            return Ok(next);
        }
        let starts = info.starts();
        self.store.reset(&info.identity, &starts, now_ms())?;
        self.progress.begin(&starts, false);
        Ok(starts)
    }

    /// Takes a copy of another member's store, if there is one that fits the log as it is now.
    fn install_snapshot(&self, info: &LogInfo) -> Result<Option<Vec<NextOffset>>, StoreError> {
        let Some(snapshots) = &self.snapshots else { return Ok(None) };
        if info.partitions.iter().map(|range| range.end - range.start).sum::<i64>() < WORTH_A_SNAPSHOT {
            return Ok(None);
        }
        let fits = |checkpoint: &Checkpoint| {
            // The log has moved on while the copy was made.
            let info = self.log.open().map_err(|error| error.to_string())?;
            let mut misfit = misfit(checkpoint, &info).map(|misfit| misfit.why);
            if misfit.is_none() {
                misfit = rewritten(&*self.log, checkpoint, VERIFY, &self.stop)
                    .map_err(|error| error.to_string())?;
            }
            let why = misfit.or_else(|| distrust(checkpoint.caught_up_at, now_ms(), self.log.delete_grace()));
            why.map_or(Ok(()), Err)
        };
        let report = |doing: String| {
            if !self.progress.restored() {
                self.progress.set_phase(Phase::Connecting(doing));
            }
            self.progress.heartbeat();
            !self.stopped()
        };
        let Some((copy, checkpoint)) = snapshots.fetch(&info.identity, &self.store, &fits, &report) else {
            return Ok(None);
        };
        self.store.install(copy)?;
        self.metrics.snapshots_installed.inc();
        let next = self.grown(&checkpoint, info)?;
        self.progress.begin(&next, true);
        Ok(Some(next))
    }

    fn apply(&self, batch: &Batch) -> Result<(), StoreError> {
        let started = Instant::now();
        let (applied, poison) = apply(&self.store, batch)?;
        self.progress.applied(batch.next());
        self.metrics.poison_records.inc_by(poison as u64);
        self.metrics.records_applied.inc_by(applied.changed as u64);
        self.metrics.records_trimmed.inc_by(applied.trimmed as u64);
        self.metrics.records_void.inc_by(applied.void as u64);
        if batch.records().len() > 0 {
            self.metrics.batch_records.observe(batch.records().len() as f64);
            self.metrics.apply_seconds.observe(started.elapsed().as_secs_f64());
        }
        Ok(())
    }

    fn sweep(&self) -> Result<(), StoreError> {
        // What a wrong clock drops would not come back when it is set right.
        let Some(past) = self.progress.past(now_ms()) else { return Ok(()) };
        let swept =
            self.store.sweep(past, self.delete_retention, self.progress.seen(past).map(|seen| seen.until))?;
        self.metrics.keys_swept.inc_by(swept as u64);
        Ok(())
    }

    /// Whether the store that is written is one that was complete before.
    fn trusts(&self) -> bool {
        !self.store.is_building() && self.progress.restored()
    }

    /// Everything is applied. Remembers when; the first time in this run, or after a resync, the store answers from now on.
    fn note_caught_up(&self, last: &mut CaughtUp) -> Result<(), Interrupted> {
        let (now, grace) = (now_ms(), self.log.delete_grace());
        let restored = self.trusts();
        // Markers may have left the log before they were reached.
        if restored && let Some(why) = distrust_now(last, now, grace) {
            return Err(Interrupted::TooOld(why));
        }
        last.seen = Some(Instant::now());
        // A clock that is ahead would make the store too young when it is set right.
        let at = self.progress.log_now().map_or(now, |log_now| log_now.min(now));
        let note = grace.map_or(NOTE, |grace| NOTE.min(grace / 100));
        let is_fresh = last.noted.is_some_and(|noted| noted.elapsed() < note);
        if restored && is_fresh && last.at.is_some_and(|known| known <= at) {
            return Ok(());
        }
        self.persist(|| self.store.note_caught_up(at))?;
        (last.at, last.noted) = (Some(at), Some(Instant::now()));
        if !restored || !self.progress.caught_up_once() {
            self.progress.set_restored();
            let seconds = self.progress.restore().seconds.unwrap_or_default();
            tracing::info!(seconds, "caught up with the log");
        }
        Ok(())
    }
}

/// Why a store that is caught up at `now` may have missed deletes since it last was.
fn distrust_now(last: &CaughtUp, now: i64, grace: Option<Duration>) -> Option<String> {
    match last.seen.map(|seen| seen.elapsed()) {
        // A clock that is set does not make a running process older.
        Some(since) => distrust(Some(0), since.as_millis() as i64, grace),
        None => distrust(last.at, now, grace),
    }
}

/// As [`distrust`], by the log's clock: it counts also where this machine's was set back.
fn distrust_by_log(last: &CaughtUp, batch: &Batch, grace: Option<Duration>) -> Option<String> {
    let (then, now) = last.at.zip(batch.log_time())?;
    distrust(Some(then), now.max(then), grace)
}

/// Why a store can't be brought up to date with a log.
struct Misfit {
    why: String,
    /// Whether it befell the log, and with it every node, rather than this node.
    of_all: bool,
}

fn misfit(checkpoint: &Checkpoint, info: &LogInfo) -> Option<Misfit> {
    let of_all = |why| Some(Misfit { why, of_all: true });
    let identity = checkpoint.identity.as_ref()?;
    if !identity.fits(&info.identity) {
        return of_all(format!("it was built from {identity}, and this is {}", info.identity));
    }
    let (known, partitions) = (checkpoint.next.len(), info.partitions.len());
    if known > partitions {
        return of_all(format!("it knows {known} partitions, the topic has {partitions}"));
    }
    (0..).zip(&checkpoint.next).zip(&info.partitions).find_map(|((partition, next), range)| {
        // At the end is in order: there is no record yet. A partition that was never read from has nothing to lose.
        let inside = range.start <= next.0 && next.0 <= range.end;
        (!inside && next.0 != 0).then(|| Misfit {
            why: format!(
                "it stands at offset {} of partition {partition}, which holds {} to {}",
                next.0, range.start, range.end
            ),
            of_all: next.0 > range.end,
        })
    })
}

/// Why a log, although the offsets fit, can't be the one that a store was built from: it has a record below the next
/// offset that is later than all that were read there. So a log that went back to an older state and grew beyond the
/// next offset again is found out, unless its new records are no later than its old ones: writers' clocks may say so
/// (CreateTime), or a broker's that was set back. Nor is it found out within `patience` if transaction markers are later
/// than the records in between, and those are many; a node must be able to start all the same.
fn rewritten(
    log: &dyn Log,
    known: &Checkpoint,
    patience: Duration,
    stop: &AtomicBool,
) -> Result<Option<String>, ReadError> {
    let found = log.first_after(&known.latest)?;
    let mut at = known.next.clone();
    for (at, found) in at.iter_mut().zip(found) {
        *at = found.map_or(*at, |found| NextOffset(found).min(*at));
    }
    if at == known.next {
        return Ok(None);
    }
    // Transaction markers and aborted records have timestamps, too, so it takes a record.
    let mut reader = log.reader(&at)?;
    let (mut batch, mut answers, until) = (Batch::default(), false, Instant::now() + patience);
    while at.iter().zip(&known.next).any(|(at, next)| at < next) {
        if stop.load(Ordering::Relaxed) {
            return Err(ReadError::Unavailable("this node is stopping".to_owned()));
        }
        if Instant::now() > until {
            if !answers {
                return Err(ReadError::Unavailable("it was not read again in time".to_owned()));
            }
            tracing::warn!(
                "there was no time to see whether the log has gone back: it holds much that is later than its records, such as \
                 transaction markers; it is taken for what it was"
            );
            return Ok(None);
        }
        batch.clear();
        reader.poll(POLL, &mut batch)?;
        let other = batch.records().find(|LogRecord { position, timestamp, .. }| {
            let partition = position.partition as usize;
            position.offset < known.next[partition].0
                && known.latest[partition].is_some_and(|latest| *timestamp > latest)
        });
        if let Some(LogRecord { position, .. }) = other {
            return Ok(Some(format!(
                "it has been read up to offset {} of partition {}, and now another record is at {position}: the log has gone back",
                known.next[position.partition as usize].0, position.partition
            )));
        }
        for (partition, next) in batch.next() {
            at[*partition as usize] = *next;
            answers = true;
        }
    }
    Ok(None)
}

/// Applies a batch to the store, in one transaction. Returns what came of it, and how many records were poison.
///
/// # Errors
/// When the store fails; nothing is changed then.
pub fn apply(store: &Store, batch: &Batch) -> Result<(Applied, usize), StoreError> {
    let mut changes = Vec::with_capacity(batch.records().len());
    let mut poison = 0;
    for record in batch.records() {
        match decode(&record, store.max_key_bytes()) {
            Ok(change) => changes.push(change),
            Err(reason) => {
                poison += 1;
                if let Some(key) = record.key.filter(|key| (1..=store.max_key_bytes()).contains(&key.len())) {
                    let (at, timestamp) = (record.position, record.timestamp);
                    changes.push((key, Change::Nothing { at, timestamp, by: Author::Unknown }));
                }
                if poison <= POISON_LOGGED {
                    tracing::warn!(position = %record.position, "skipped a record that can't be decoded: {reason}");
                }
            }
        }
    }
    if poison > POISON_LOGGED {
        tracing::warn!(records = poison - POISON_LOGGED, "skipped further records that can't be decoded");
    }
    Ok((store.apply_with(&mut changes, batch.next(), &batch.latest())?, poison))
}

/// What a record of the log changes; the reason if it is poison.
fn decode<'a>(record: &LogRecord<'a>, max_key_bytes: usize) -> Result<(&'a [u8], Change), String> {
    let LogRecord { position: at, timestamp, condition, .. } = *record;
    let key = record.key.filter(|key| !key.is_empty()).ok_or("it has no key")?;
    if key.len() > max_key_bytes {
        return Err(format!("its key has {} bytes, the store takes {max_key_bytes}", key.len()));
    }
    let text = std::str::from_utf8(key).map_err(|_| "its key is not UTF-8")?;
    let earlier = |offset: i64| {
        // One that claims to be newer than it is would make later writes void.
        if (0..at.offset).contains(&offset) {
            Ok(offset)
        } else {
            Err("its header names an offset that is not before it")
        }
    };
    let late = Change::Nothing { at, timestamp, by: Author::Trimmer };
    let (position, write_timestamp) = match condition {
        None => (at, timestamp),
        Some(Condition::Trim { offset, until }) if record.value.is_none() => {
            let offset = earlier(offset)?;
            let change = if timestamp > until { late } else { Change::Trim { at, timestamp, offset } };
            return Ok((key, change));
        }
        Some(Condition::Repair { offset, timestamp, .. }) => {
            (Position { offset: earlier(offset)?, ..at }, timestamp)
        }
        Some(Condition::Trim { .. } | Condition::Unreadable) => {
            return Err("its header makes no sense".to_owned());
        }
    };
    let entry = match record.value {
        None => Entry::new(position, write_timestamp, ttl::DELETED, &[]),
        Some(value) => {
            let decoded = KeyValue::decode(value).map_err(|error| error.to_string())?;
            if decoded.key != text {
                return Err("the key inside it is another than the record's".to_owned());
            }
            Entry::new(position, write_timestamp, decoded.ttl, value)
        }
    };
    let change = match condition {
        None => entry.into(),
        Some(Condition::Repair { until, .. }) if timestamp > until => late,
        Some(_) => Change::Repair { at, timestamp, entry },
    };
    Ok((key, change))
}

/// Tells that a thread died, if it did.
pub(crate) struct Obituary<'a> {
    pub progress: &'a Progress,
    pub thread: &'static str,
}

impl Drop for Obituary<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let reason = format!("the {}'s thread panicked; restart the node", self.thread);
            self.progress.set_phase(Phase::Failed(reason));
        }
    }
}

#[cfg(test)]
mod tests;
