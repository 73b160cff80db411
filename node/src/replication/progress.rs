//! How far the replica is: the one place that knows. Readiness, lag, waits for a position, "caught up" and metrics all
//! read it. It holds the replica's state ([`ReplicaState`]), what is known of the log's ends ([`LogEnds`]), and who waits for
//! a change of either.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bitacora_protocol::http::{PartitionStatus, RestoreStatus};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, watch};

use crate::clock::{Clock, LogTime, Moment, SystemClock, past_by_both_clocks};
use crate::log::PartitionRead;
use crate::replication::age::LogClock;
use crate::replication::barriers_read::BarriersRead;
use crate::replication::freeze::FreezeDetector;
use crate::replication::log_ends::{LogEnds, Question};
pub use crate::replication::state::Phase;
use crate::replication::state::{Event, RefusedEvent, ReplicaState, StoreState};
pub use crate::replication::waiters::WaitError;
use crate::replication::waiters::{Waiters, Woken};
use bitacora_protocol::{HighWatermark, NextOffset, Position};

mod waits;

/// The replica's thread shows a sign of life several times a second. One that has shown none for this long is stuck:
/// longer than any transaction should take, also on a slow disk, and than any one question to the log.
pub(crate) const MAX_SILENCE: Duration = Duration::from_secs(30);
/// How long the reads of a store from an earlier run wait for the log to say whether it is its own. A log that is away
/// must not hold them up for ever.
const EARLIER_STORE_WAIT: Duration = Duration::from_secs(1);
/// A log that has told no high watermark, of any partition, for so long does not answer; it is asked several times a second.
const LOG_SILENCE: Duration = Duration::from_secs(2);

pub struct Progress {
    clock: Arc<dyn Clock>,
    started: Moment,
    inner: Mutex<Inner>,
    /// Whether the store answers reads, by the state in `inner`: asked for by every read, so it stands beside the lock.
    /// Changed only while that is held, by [`Progress::change_state`].
    readable: AtomicBool,
    freeze: FreezeDetector,
    barriers_read: Arc<BarriersRead>,
    /// Counts changes; for those who wait.
    changed: watch::Sender<u64>,
    /// Told when a part of the node has failed for good. Beside `changed`, which is told of every batch: who waits for a failure alone is
    /// not woken for each.
    failed: Notify,
}

struct Inner {
    state: ReplicaState,
    ends: LogEnds,
    log_clock: LogClock,
    /// When the reading of this store began.
    reading_since: Moment,
    /// How long after the start the node was caught up for the first time; `None` until then.
    first_caught_up_after: Option<Duration>,
    /// When the replica's thread last showed that it goes on.
    sign_of_life: Moment,
    waiters: Waiters,
    /// Counts the stores that were read: another number is another store.
    store_number: u64,
    /// When the log last told a high watermark, of whichever partition.
    log_answered: Option<Moment>,
}

/// Until when everything that was appended has been applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppliedUntil {
    /// Past by both clocks.
    pub time: LogTime,
    /// By the log's.
    pub log_time: LogTime,
}

impl Inner {
    /// Whether the store that is read is the one that is written, and answers reads.
    fn serves(&self) -> bool {
        *self.state.store() == StoreState::Serving
    }

    /// What was known of positions is of another store.
    fn replace_store(&mut self) -> Woken {
        self.store_number += 1;
        self.waiters.all(WaitError::StoreReplaced)
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new(Arc::new(SystemClock::default()))
    }
}

impl Progress {
    /// Of a node that starts now.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let started = clock.now();
        let inner = Inner {
            state: ReplicaState::default(),
            ends: LogEnds::default(),
            log_clock: LogClock::default(),
            reading_since: started,
            first_caught_up_after: None,
            sign_of_life: started,
            waiters: Waiters::default(),
            store_number: 0,
            log_answered: None,
        };
        Self {
            clock,
            started,
            inner: Mutex::new(inner),
            readable: AtomicBool::new(false),
            freeze: FreezeDetector::new(started),
            barriers_read: Arc::default(),
            changed: watch::Sender::new(0),
            failed: Notify::new(),
        }
    }

    /// What time it is, for all who decide together with this.
    #[must_use]
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    fn time_since(&self, moment: Moment) -> Duration {
        self.clock.now().since(moment)
    }

    fn wake_waiting(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// The one place where the state changes.
    fn change_state(&self, inner: &mut Inner, event: Event) -> Result<(), RefusedEvent> {
        let changed = inner.state.apply(event);
        self.readable.store(inner.state.store().is_readable(), Ordering::Release);
        if matches!(inner.state.phase(), Phase::Failed(_)) {
            self.failed.notify_waiters();
        }
        if let Err(refused) = &changed {
            if refused.store == StoreState::Frozen {
                // The other thread noticed it a moment ago.
                tracing::debug!("{refused}");
            } else {
                tracing::error!("{refused}");
                debug_assert!(false, "{refused}");
            }
        }
        changed
    }

    // Told by the replica.

    /// Something happened to the log or the store, as the replica's thread found, which is a sign of life of it.
    pub(crate) fn note_event(&self, event: Event) -> Result<(), RefusedEvent> {
        let mut inner = self.lock();
        inner.sign_of_life = self.clock.now();
        let changed = self.change_state(&mut inner, event);
        drop(inner);
        self.wake_waiting();
        changed
    }

    /// As [`Progress::note_event`], of an event after which another store is written, or this one anew: from these next
    /// offsets on.
    pub(crate) fn begin_reading(&self, next: &[NextOffset], event: Event) -> Result<(), RefusedEvent> {
        let mut inner = self.lock();
        // The same store, in which the offsets mean what they did, and each key lies where it lay.
        let resumed = event == Event::ReadingResumed && next.len() == inner.ends.partition_count();
        self.change_state(&mut inner, event)?;
        inner.ends.restart(next);
        inner.reading_since = self.clock.now();
        inner.log_answered = None;
        let mut woken = if resumed { Waiters::nobody() } else { inner.replace_store() };
        for (partition, next) in (0..).zip(next) {
            inner.waiters.passed(partition, *next, &mut woken);
        }
        drop(inner);
        woken.tell();
        self.wake_waiting();
        Ok(())
    }

    /// A part of the node has failed for good, for the reason given: the node will not be ready any more.
    pub(crate) fn fail(&self, reason: String) {
        // A failure is never refused.
        let _ = self.change_state(&mut self.lock(), Event::Failed(reason));
        self.wake_waiting();
    }

    /// A process that stands still for longer than this may have missed deletes; `None` for any time.
    pub(crate) fn set_delete_retention(&self, retention: Option<Duration>) {
        self.freeze.set_longest_pause(retention);
    }

    /// To be called several times a second. Returns whether the process stood still for longer than `DELETE_RETENTION`, by
    /// either clock; from then on the store answers no reads, and this says so until it was emptied.
    pub(crate) fn detect_freeze(&self) -> bool {
        let (now, wall, mut inner) = (self.clock.now(), self.clock.wall(), self.lock());
        let mut woken = Waiters::nobody();
        if self.freeze.has_stood_still(now, wall) {
            // Possible in any state. Before reads may trust that the process runs.
            let _ = self.change_state(&mut inner, Event::ProcessFroze);
            woken = inner.replace_store();
        }
        self.freeze.note_running(now, wall);
        let frozen = *inner.state.store() == StoreState::Frozen;
        drop(inner);
        woken.tell();
        frozen
    }

    /// The log does not answer: the store of an earlier run does, if there is one.
    pub(crate) fn accept_earlier_store(&self) {
        let mut inner = self.lock();
        if *inner.state.store() == StoreState::EarlierStore {
            let _ = self.change_state(&mut inner, Event::EarlierStoreAccepted);
            drop(inner);
            self.wake_waiting();
        }
    }

    /// As [`Progress::accept_earlier_store`], once the log has had `EARLIER_STORE_WAIT` to object.
    pub(crate) fn accept_earlier_store_in_time(&self) {
        if self.time_since(self.started) > EARLIER_STORE_WAIT {
            self.accept_earlier_store();
        }
    }

    /// The store has applied what was read.
    pub(crate) fn note_applied(&self, read: &[PartitionRead]) {
        let mut inner = self.lock();
        inner.sign_of_life = self.clock.now();
        inner.ends.note_applied(read);
        let mut woken = Waiters::nobody();
        for PartitionRead { partition, next, .. } in read {
            inner.waiters.passed(*partition, *next, &mut woken);
        }
        drop(inner);
        woken.tell();
        self.wake_waiting();
    }

    /// A record was appended at `time` of the log's clock. `live`: just now, as it was read while the
    /// node was caught up.
    pub(crate) fn note_log_time(&self, time: LogTime, live: bool) {
        let now = self.clock.now();
        self.lock().log_clock.told(time, live, now);
    }

    /// The replica's thread goes on.
    pub(crate) fn note_sign_of_life(&self) {
        self.lock().sign_of_life = self.clock.now();
    }

    /// Everything is applied, and the store says so: it answers reads from now on.
    pub(crate) fn note_caught_up(&self) -> Result<(), RefusedEvent> {
        let mut inner = self.lock();
        self.change_state(&mut inner, Event::CaughtUp)?;
        inner.first_caught_up_after.get_or_insert(self.time_since(self.started));
        drop(inner);
        self.wake_waiting();
        Ok(())
    }

    /// The log is to be asked for its high watermarks.
    pub(crate) fn question_for_high_watermarks(&self) -> Question {
        let (inner, now) = (self.lock(), self.clock.now());
        inner.ends.question(now, self.clock.wall(), inner.log_clock.at_least(now))
    }

    /// What it answered, a high watermark for each partition.
    pub(crate) fn learn_high_watermarks(&self, high_watermarks: &[HighWatermark], question: Question) {
        let mut inner = self.lock();
        inner.log_answered = Some(self.clock.now());
        inner.ends.learn_high_watermarks(high_watermarks, question);
        drop(inner);
        self.wake_waiting();
    }

    /// The leader of some partition told its high watermark.
    pub(crate) fn note_log_answered(&self) {
        self.lock().log_answered = Some(self.clock.now());
    }

    /// How long a record of the log is safe from compaction.
    pub(crate) fn set_compaction_lag(&self, lag: Duration) {
        self.lock().ends.set_compaction_lag(lag);
    }

    /// What it answered says nothing of this log any more.
    pub(crate) fn forget_high_watermarks(&self) {
        let mut inner = self.lock();
        inner.log_answered = None;
        inner.ends.forget_high_watermarks();
        drop(inner);
        self.wake_waiting();
    }

    // Asked by everybody.

    /// Which store is read, if what it holds is what was applied: an answer that was read while this stayed the same is of one
    /// store. `None` while the store is restored, or built anew beside the one that is read.
    #[must_use]
    pub fn store_number(&self) -> Option<u64> {
        let inner = self.lock();
        (inner.serves() && self.restored()).then_some(inner.store_number)
    }

    /// Whether the log is read and has told a high watermark, of any partition, within the last two seconds.
    #[must_use]
    pub fn log_answers(&self) -> bool {
        let inner = self.lock();
        *inner.state.phase() == Phase::Reading
            && inner.log_answered.is_some_and(|at| self.time_since(at) <= LOG_SILENCE)
    }

    /// How long ago everything that had been appended to a partition by then is surely applied, as far as high watermarks tell;
    /// of `None`, to every partition. `None` if that is not known.
    #[must_use]
    pub fn staleness(&self, partition: Option<i32>) -> Option<Duration> {
        self.lock().ends.staleness(partition, self.clock.now(), self.clock.wall())
    }

    /// What is certainly past: both this machine's clock and the log's have come as far. `None` until
    /// something was read from the log.
    #[must_use]
    pub fn certainly_past(&self) -> Option<LogTime> {
        let log_time = self.lock().log_clock.at_least(self.clock.now())?;
        Some(past_by_both_clocks(self.clock.wall(), log_time))
    }

    /// Until when this node has applied everything that was appended; `None` while it is behind. What is read from the store
    /// after this may be newer, but not older, however long that takes.
    #[must_use]
    pub fn applied_until(&self) -> Option<AppliedUntil> {
        let log_time = self.lock().ends.reached_log_time()?;
        Some(AppliedUntil { time: past_by_both_clocks(self.clock.wall(), log_time), log_time })
    }

    /// The time by the log's clock; `None` until a record was read as it was written.
    #[must_use]
    pub fn log_time_now(&self) -> Option<LogTime> {
        self.lock().log_clock.now(self.clock.now())
    }

    /// The log's clock has come as far, as the newest record says; `None` until something was read.
    #[must_use]
    pub fn log_time_at_least(&self) -> Option<LogTime> {
        self.lock().log_clock.at_least(self.clock.now())
    }

    /// Told after every change.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Waits until a part of the node has failed for good, and tells why.
    pub async fn failure(&self) -> String {
        loop {
            // Before the look at the phase, so that a failure after it is not missed.
            let failed = self.failed.notified();
            if let Phase::Failed(reason) = self.phase() {
                return reason;
            }
            failed.await;
        }
    }

    #[must_use]
    pub fn phase(&self) -> Phase {
        self.lock().state.phase().clone()
    }

    /// What the store is worth to reads, but for a freeze that nobody has noticed yet: see [`Progress::restored`].
    #[must_use]
    pub fn store_state(&self) -> StoreState {
        self.lock().state.store().clone()
    }

    /// Whether everything up to the high watermarks has been applied, and they were learnt within the last second.
    #[must_use]
    pub fn caught_up(&self) -> bool {
        self.lock().ends.is_caught_up(self.clock.now(), self.clock.wall())
    }

    /// Whether the node has been caught up since it started.
    #[must_use]
    pub fn caught_up_in_this_run(&self) -> bool {
        self.lock().first_caught_up_after.is_some()
    }

    /// Whether the store answers reads: it holds what the log held at some moment within `DELETE_RETENTION`, for this run or
    /// an earlier one was caught up. A process that was frozen for longer must not answer before anybody could notice.
    #[must_use]
    pub fn restored(&self) -> bool {
        self.readable.load(Ordering::Acquire) && !self.freeze.stands_still(self.clock.now())
    }

    /// Why the node should get no requests; `None` when it is ready.
    #[must_use]
    pub fn unready(&self) -> Option<String> {
        let inner = self.lock();
        if let Phase::Failed(reason) = inner.state.phase() {
            return Some(reason.clone());
        }
        let silence = self.time_since(inner.sign_of_life);
        if silence > MAX_SILENCE {
            return Some(format!("the replica has shown no sign of life for {} s", silence.as_secs()));
        }
        if self.restored() {
            return None;
        }
        Some(match (inner.state.phase(), inner.ends.fraction_applied()) {
            (Phase::Connecting(reason) | Phase::Blocked(reason), _) => reason.clone(),
            (_, Some(fraction)) => format!("restoring, {:.1} % read", fraction * 100.0),
            _ => "restoring".to_owned(),
        })
    }

    /// For each partition an offset from which on compaction can't have acted yet: all records there are younger than half of what the topic
    /// keeps them safe from it for (`min.compaction.lag.ms`). Empty if that is not known.
    #[must_use]
    pub fn young_from(&self) -> Vec<HighWatermark> {
        self.lock().ends.young_from(self.clock.now())
    }

    /// Per partition, the next offset to apply.
    #[must_use]
    pub fn next_offsets(&self) -> Vec<NextOffset> {
        self.lock().ends.next_offsets()
    }

    /// How many partitions the topic has, as far as this node knows.
    #[must_use]
    pub fn partition_count(&self) -> usize {
        self.lock().ends.partition_count()
    }

    /// The next offset to apply of a partition; `None` if the topic has no such.
    #[must_use]
    pub fn next_offset(&self, partition: i32) -> Option<NextOffset> {
        self.lock().ends.next_offset(partition)
    }

    /// How far the partition of a key is applied.
    #[must_use]
    pub fn applied_for(&self, key: &[u8]) -> Position {
        self.lock().ends.applied_for(key)
    }

    /// Time since the replica's thread last showed a sign of life.
    #[must_use]
    pub fn heartbeat_age(&self) -> Duration {
        self.time_since(self.lock().sign_of_life)
    }

    #[must_use]
    pub fn partitions(&self) -> Vec<PartitionStatus> {
        self.lock().ends.partition_statuses(self.clock.now())
    }

    #[must_use]
    pub fn restore(&self) -> RestoreStatus {
        let (inner, done) = (self.lock(), self.restored());
        // Its end moves on with every write, so that it would fall below again.
        let finished = inner.first_caught_up_after.map(|_| 1.0);
        let fraction = finished.or_else(|| inner.ends.fraction_applied());
        let remaining_seconds = fraction
            .filter(|fraction| *fraction > 0.0 && !done)
            .map(|fraction| self.time_since(inner.reading_since).as_secs_f64() * (1.0 - fraction) / fraction);
        let rebuilding = match inner.state.store() {
            StoreState::Rebuilding(why) => Some(why.clone()),
            _ => None,
        };
        let seconds = inner.first_caught_up_after.map(|after| after.as_secs_f64());
        RestoreStatus { done, seconds, fraction, remaining_seconds, rebuilding }
    }
}

#[cfg(test)]
mod tests;
