//! The half of a replica that writes the store: it opens the log, decides where to read ([`super::resync`]), and applies what
//! it reads ([`super::reading`]).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::age::reason_too_old;
use super::compatibility::LastCaughtUp;
use super::reading::{BuildCheck, Reading};
use super::state::{Event, Phase, RefusedEvent, StoreState};
use super::{POLL_TIMEOUT, Parts, RETRY_PAUSE, Shared};
use crate::clock::Clock;
use crate::log::{Batch, BatchBounds, Level, LogInfo, OpenError, ReadError};
use crate::store::{Checkpoint, StoreError};
use bitacora_protocol::NextOffset;

pub struct Applier {
    pub(super) parts: Parts,
    pub(super) shared: Arc<Shared>,
    pub(super) last_caught_up: LastCaughtUp,
    pub(super) build_check: BuildCheck,
    /// What was found while reading, until the store has been emptied or built anew because of it.
    pub(super) possible_incompatibility: Option<PossibleIncompatibility>,
    reading: Option<Reading>,
}

/// Why the store may not fit the log, as was found while reading it. Judged when the log is opened anew.
#[derive(Clone, Debug)]
pub(super) enum PossibleIncompatibility {
    /// The store may have missed deletes: the reason.
    TooOld(String),
    /// A partition does not hold the offset from which it should be read.
    OutOfRange { partition: i32 },
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
pub(super) enum Interrupted {
    Stopped,
    Log(ReadError),
    Store(StoreError),
    /// The store was last caught up too long ago: the reason.
    TooOld(String),
    /// The store may not be read until it has been emptied: the reason.
    StoreUntrusted(String),
    /// The store was built, and emptied to be built once more.
    BuildAgain,
    /// A partition has records that this node may not understand.
    LevelUnknown {
        partition: i32,
        level: Level,
    },
}

impl Interrupted {
    /// The process stood still for longer than `DELETE_RETENTION`.
    pub(super) fn frozen() -> Self {
        Self::StoreUntrusted("this process stood still for longer than DELETE_RETENTION".to_owned())
    }
}

impl From<StoreError> for Interrupted {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<RefusedEvent> for Interrupted {
    fn from(refused: RefusedEvent) -> Self {
        match refused.store {
            // The other thread noticed it.
            StoreState::Frozen => Self::frozen(),
            // A mistake of ours. An empty store is right in every state.
            _ => Self::StoreUntrusted(refused.to_string()),
        }
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
        progress.set_delete_retention(log.delete_retention());
        // Known before the log answers: a warm store serves reads while Kafka is away.
        let mut checkpoint = store.checkpoint()?;
        let age = reason_too_old(checkpoint.caught_up_at, progress.clock().wall(), log.delete_retention());
        if let Some(why) = age.filter(|_| checkpoint.identity.is_some()) {
            discard(&parts, &why)?;
            checkpoint = Checkpoint::default();
        }
        // But not another topic's keys.
        let same_topic = checkpoint.identity.as_ref().is_some_and(|identity| identity.topic == log.topic());
        let found =
            if checkpoint.restored && same_topic { Event::EarlierStoreFound } else { Event::RestoreResumed };
        if checkpoint.restored && same_topic {
            parts.feed.restart(store.log(), &checkpoint.next, progress.clock().wall());
        }
        // Never refused: nothing was known of the store until now.
        let _ = progress.begin_reading(&checkpoint.next, found);
        Ok(Self {
            parts,
            shared,
            last_caught_up: LastCaughtUp::default(),
            build_check: BuildCheck::default(),
            possible_incompatibility: None,
            reading: None,
        })
    }

    pub(super) fn clock(&self) -> &dyn Clock {
        &**self.parts.progress.clock()
    }

    /// Opens the log, or reads and applies what there is. Blocks for as long as the log, the store and members take.
    pub fn step(&mut self) -> Next {
        if self.shared.stopped() {
            return Next::Done;
        }
        // Not read any more after any interruption.
        match self.reading.take() {
            Some(mut reading) => match self.read(&mut reading) {
                Ok(()) => {
                    self.reading = Some(reading);
                    Next::Step
                }
                Err(interrupted) => self.interrupted(interrupted),
            },
            None => self.open(),
        }
    }

    fn open(&mut self) -> Next {
        // Its questions may take longer, one after the other, than a thread may be silent.
        let answered = || self.parts.progress.note_sign_of_life();
        match self.parts.log.open(&answered) {
            Ok(info) => match self.begin_reading(info) {
                Ok(reading) => {
                    self.reading = Some(reading);
                    Next::Step
                }
                Err(interrupted) => self.interrupted(interrupted),
            },
            Err(OpenError::Unavailable(reason)) => {
                self.parts.progress.accept_earlier_store();
                self.wait_for_log(reason)
            }
            Err(OpenError::Refused(reason)) => {
                self.parts.progress.accept_earlier_store();
                tracing::error!("{reason}");
                self.parts.progress.fail(reason);
                Next::Done
            }
        }
    }

    fn interrupted(&mut self, interrupted: Interrupted) -> Next {
        match interrupted {
            Interrupted::Stopped => Next::Done,
            Interrupted::Log(ReadError::Unreadable(reason)) => self.give_up(reason),
            Interrupted::Log(error) => {
                if let ReadError::OutOfRange { partition } = error {
                    self.possible_incompatibility = Some(PossibleIncompatibility::OutOfRange { partition });
                }
                self.wait_for_log(error.to_string())
            }
            Interrupted::Store(error) => self.wait_for_store(error),
            Interrupted::TooOld(why) => {
                self.possible_incompatibility = Some(PossibleIncompatibility::TooOld(why));
                Next::Step
            }
            Interrupted::BuildAgain => Next::Step,
            Interrupted::LevelUnknown { partition, level } => {
                let reason = format!(
                    "partition {partition} of the topic '{}' is written at level {level} and this node understands {}; start a newer version of it",
                    self.parts.log.topic(),
                    Level::HIGHEST_KNOWN
                );
                self.give_up(reason)
            }
            // Until it is done, nothing is read from it.
            Interrupted::StoreUntrusted(why) => {
                self.forget_earlier_readings();
                match self.discard(&why) {
                    Ok(()) => Next::Step,
                    Err(error) => {
                        self.possible_incompatibility = Some(PossibleIncompatibility::TooOld(why));
                        self.wait_for_store(error)
                    }
                }
            }
        }
    }

    /// Nothing more is read: what comes next can't be.
    fn give_up(&self, reason: String) -> Next {
        tracing::error!("{reason}");
        self.parts.progress.fail(reason);
        self.shared.stop.store(true, Ordering::Relaxed);
        Next::Done
    }

    pub(super) fn discard(&self, why: &str) -> Result<(), StoreError> {
        self.parts.feed.suspend();
        // First, so that nobody takes the empty store for an answer. Never refused.
        let _ = self.parts.progress.begin_reading(&[], Event::StoreEmptied);
        discard(&self.parts, why)
    }

    fn wait_for_log(&self, reason: String) -> Next {
        if self.parts.progress.phase() != Phase::Connecting(reason.clone()) {
            tracing::warn!("{reason}; trying again every {} ms", RETRY_PAUSE.as_millis());
        }
        // Never refused.
        let _ = self.parts.progress.note_event(Event::LogUnavailable(reason));
        Next::Pause
    }

    /// The store could not be changed. Reads go on; a full disk may get room again.
    fn wait_for_store(&self, error: StoreError) -> Next {
        let may_pass = error.may_pass();
        let reason = self.parts.store.explain(error);
        if !may_pass {
            tracing::error!("{reason}");
            self.parts.progress.fail(reason);
            self.shared.stop.store(true, Ordering::Relaxed);
            return Next::Done;
        }
        // The number of free bytes may change all the time.
        if !matches!(self.parts.progress.phase(), Phase::Blocked(_)) {
            tracing::error!("{reason}; trying again every {} ms", RETRY_PAUSE.as_millis());
        }
        // Never refused.
        let _ = self.parts.progress.note_event(Event::StoreBlocked(reason));
        Next::Pause
    }

    /// Until it is worth another try, or time to stop.
    pub(super) fn pause(&self) {
        let until = Instant::now() + RETRY_PAUSE;
        while !self.shared.stopped() && Instant::now() < until {
            std::thread::sleep(POLL_TIMEOUT.min(RETRY_PAUSE));
        }
    }

    /// Whether something happened to the process or the log that matters more than what this thread is at.
    pub(super) fn check_interruption(&self) -> Result<(), Interrupted> {
        if self.parts.progress.detect_freeze() {
            return Err(Interrupted::frozen());
        }
        if self.shared.must_reopen.load(Ordering::Acquire) {
            return Err(Interrupted::Log(ReadError::Changed));
        }
        Ok(())
    }

    /// Changes the store, and tries again for as long as that fails. The log's end is learnt meanwhile, so that the lag is
    /// told.
    pub(super) fn persist<T>(&self, change: impl Fn() -> Result<T, StoreError>) -> Result<T, Interrupted> {
        loop {
            let error = match change() {
                Ok(done) => {
                    if matches!(self.parts.progress.phase(), Phase::Blocked(_)) {
                        tracing::info!("the store can be written again");
                        self.parts.progress.note_event(Event::StoreUnblocked)?;
                    }
                    return Ok(done);
                }
                Err(error) => error,
            };
            self.wait_for_store(error);
            self.pause();
            if self.shared.stopped() {
                return Err(Interrupted::Stopped);
            }
            self.check_interruption()?;
        }
    }

    /// Has the store followed that is read from these next offsets on, if it is complete.
    fn follow(&self, checkpoint: &Checkpoint, next: &[NextOffset]) {
        let Parts { store, feed, .. } = &self.parts;
        if store.is_building() {
            // The one of before is read, and changes no more.
            return;
        }
        if checkpoint.restored {
            feed.resume(store.log(), next, self.clock().wall());
        } else {
            feed.suspend();
        }
    }

    /// Begins to read the log that was opened, where the store ends, or anew.
    fn begin_reading(&mut self, info: LogInfo) -> Result<Reading, Interrupted> {
        // What is known of the log from here on is of this one.
        self.shared.must_reopen.store(false, Ordering::Release);
        if self.parts.progress.detect_freeze() {
            return Err(Interrupted::frozen());
        }
        let next = self.reconcile(&info)?;
        *self.shared.checkpoint_before_outage.lock() = None;
        // It is read once more.
        self.shared.held_back.lock().clear();
        let checkpoint = self.parts.store.checkpoint()?;
        self.last_caught_up.wall_time = checkpoint.caught_up_at;
        // It was filled by a newer version of this node, or is a copy from one.
        let unknown = (0..).zip(&checkpoint.levels).find(|(_, level)| **level > Level::HIGHEST_KNOWN);
        if let Some((partition, level)) = unknown {
            return Err(Interrupted::LevelUnknown { partition, level: *level });
        }
        self.parts.progress.set_compaction_lag(info.compaction_lag);
        self.follow(&checkpoint, &next);
        let after_gap = checkpoint.after_gap.contains(&true);
        let reader = self.parts.log.reader(&next, &checkpoint.epochs).map_err(Interrupted::Log)?;
        *self.shared.identity.lock() = Some(info.identity.clone());
        self.parts.progress.note_event(Event::LogOpened)?;
        tracing::info!(topic = info.identity.topic, partitions = next.len(), "reading the log");
        Ok(Reading {
            info,
            reader,
            next,
            batch: Batch::default(),
            bounds: BatchBounds::default(),
            ahead: None,
            spare: Batch::default(),
            held_back_since: None,
            more_to_sweep: false,
            caught_up_since_opened: false,
            after_gap,
        })
    }
}
