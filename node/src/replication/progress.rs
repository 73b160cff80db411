//! How far the replica is: the one place that knows. Readiness, lag, waits for a position, "caught up" and metrics all
//! read it. It holds the replica's state ([`ReplicaState`]), what is known of the log's ends ([`LogEnds`]), and who waits for
//! a change of either.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bitacora_protocol::http::{PartitionStatus, RestoreStatus};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

use crate::clock::{Clock, LogTime, Moment, SystemClock, past_by_both_clocks};
use crate::log::PartitionRead;
use crate::replication::age::LogClock;
use crate::replication::freeze::FreezeDetector;
use crate::replication::log_ends::{LogEnds, Question};
pub use crate::replication::state::Phase;
use crate::replication::state::{Event, RefusedEvent, ReplicaState, StoreState};
use bitacora_protocol::{HighWatermark, NextOffset, Position};

/// The replica's thread shows a sign of life several times a second. One that has shown none for this long is stuck:
/// longer than any transaction should take, also on a slow disk, and than any one question to the log.
pub(crate) const MAX_SILENCE: Duration = Duration::from_secs(30);
/// How long the reads of a store from an earlier run wait for the log to say whether it is its own. A log that is away
/// must not hold them up for ever.
const EARLIER_STORE_WAIT: Duration = Duration::from_secs(1);

pub struct Progress {
    clock: Arc<dyn Clock>,
    started: Moment,
    inner: Mutex<Inner>,
    /// Whether the store answers reads, by the state in `inner`: asked for by every read, so it stands beside the lock.
    /// Changed only while that is held, by [`Progress::change_state`].
    readable: AtomicBool,
    freeze: FreezeDetector,
    /// Counts changes; for those who wait.
    changed: watch::Sender<u64>,
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
}

/// Until when everything that was appended has been applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppliedUntil {
    /// Past by both clocks.
    pub time: LogTime,
    /// By the log's.
    pub log_time: LogTime,
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
        };
        Self {
            clock,
            started,
            inner: Mutex::new(inner),
            readable: AtomicBool::new(false),
            freeze: FreezeDetector::new(started),
            changed: watch::Sender::new(0),
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
        self.change_state(&mut inner, event)?;
        inner.ends.restart(next);
        inner.reading_since = self.clock.now();
        drop(inner);
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
        if self.freeze.has_stood_still(now, wall) {
            // Possible in any state. Before reads may trust that the process runs.
            let _ = self.change_state(&mut inner, Event::ProcessFroze);
        }
        self.freeze.note_running(now, wall);
        *inner.state.store() == StoreState::Frozen
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
        drop(inner);
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
        self.lock().ends.learn_high_watermarks(high_watermarks, question);
        self.wake_waiting();
    }

    /// What it answered says nothing of this log any more.
    pub(crate) fn forget_high_watermarks(&self) {
        self.lock().ends.forget_high_watermarks();
        self.wake_waiting();
    }

    // Asked by everybody.

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

    /// Told after every change.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
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

    /// Per partition, the next offset to apply.
    #[must_use]
    pub fn next_offsets(&self) -> Vec<NextOffset> {
        self.lock().ends.next_offsets()
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
mod tests {
    use super::*;
    use crate::clock::WallTime;
    use crate::clock::manual::ManualClock;

    const SECOND: Duration = Duration::from_secs(1);

    fn progress() -> (Progress, ManualClock) {
        let clock = ManualClock::new();
        (Progress::new(Arc::new(clock.clone())), clock)
    }

    fn begin(progress: &Progress, next: &[NextOffset]) {
        progress.begin_reading(next, Event::StoreEmptied).expect("possible in any state");
    }

    #[test]
    fn caught_up_is_asked_by_both_clocks() {
        let (progress, clock) = progress();
        assert!(!progress.caught_up(), "nothing is known yet");
        begin(&progress, &[NextOffset(2)]);
        let learn = |question| progress.learn_high_watermarks(&[HighWatermark(2)], question);
        learn(progress.question_for_high_watermarks());
        assert!(progress.caught_up());
        clock.pass(2 * SECOND);
        assert!(!progress.caught_up(), "learnt too long ago");
        learn(progress.question_for_high_watermarks());
        assert!(progress.caught_up());
        clock.set_wall(clock.wall() + 2 * SECOND);
        assert!(!progress.caught_up(), "the machine was suspended since");
        let of_this = progress.question_for_high_watermarks();
        learn(of_this);
        assert!(progress.caught_up());
        begin(&progress, &[NextOffset(2)]);
        learn(of_this);
        assert!(!progress.caught_up(), "an answer to a question before the store was begun");
    }

    #[test]
    fn applied_until_is_what_was_past_when_the_node_asked() {
        let (progress, clock) = progress();
        let log = clock.wall().assuming_clocks_agree();
        begin(&progress, &[NextOffset(0)]);
        progress.learn_high_watermarks(&[HighWatermark(0)], progress.question_for_high_watermarks());
        let known = (progress.applied_until(), progress.certainly_past());
        assert_eq!(known, (None, None), "the log has told no time yet");
        progress.note_log_time(log - 9 * SECOND, true);
        let question = progress.question_for_high_watermarks();
        // What is read while the answer is on its way is later.
        progress.note_log_time(log - 5 * SECOND, true);
        progress.learn_high_watermarks(&[HighWatermark(2)], question);
        assert_eq!(progress.applied_until(), None, "it is behind");
        assert_eq!(progress.certainly_past(), Some(log - 5 * SECOND));
        progress.note_applied(&[PartitionRead::up_to(0, NextOffset(2))]);
        clock.pass(SECOND);
        let log_time = log - 9 * SECOND;
        let reached = Some(AppliedUntil { time: log_time, log_time });
        assert_eq!(progress.applied_until(), reached, "it has reached that end");
        assert_eq!(progress.certainly_past(), Some(log - 4 * SECOND));
        let five = LogTime::from_ms(5);
        clock.set_wall(five.assuming_clocks_agree());
        let reached = Some(AppliedUntil { time: five, log_time });
        assert_eq!(progress.applied_until(), reached, "by this machine's clock, too");
        assert_eq!(progress.certainly_past(), Some(five));
        begin(&progress, &[NextOffset(2)]);
        assert_eq!(progress.applied_until(), None, "another store");
    }

    #[test]
    fn a_restore_ends_once_and_estimates_its_rest() {
        let (progress, clock) = progress();
        begin(&progress, &[NextOffset(0)]);
        progress.learn_high_watermarks(&[HighWatermark(6)], progress.question_for_high_watermarks());
        clock.pass(3_000 * SECOND);
        progress.note_applied(&[PartitionRead::up_to(0, NextOffset(5))]);
        let restore = progress.restore();
        assert_eq!(restore.fraction, Some(5.0 / 6.0));
        assert!(restore.remaining_seconds.is_some_and(|left| (left - 600.0).abs() < 0.1), "{restore:?}");
        progress.note_applied(&[PartitionRead::up_to(0, NextOffset(6))]);
        progress.note_caught_up().expect("it was restoring");
        progress.learn_high_watermarks(&[HighWatermark(100)], progress.question_for_high_watermarks());
        assert_eq!(progress.restore().remaining_seconds, None);
        assert_eq!(progress.restore().fraction, Some(1.0), "what is written later is no part of the restore");
    }

    #[test]
    fn a_frozen_process_answers_nothing_until_its_store_is_emptied() {
        let (progress, clock) = progress();
        let serve_anew = || {
            begin(&progress, &[]);
            progress.note_caught_up().expect("it was restoring");
        };
        progress.set_delete_retention(Some(10 * SECOND));
        serve_anew();
        assert!(!progress.detect_freeze());
        clock.pass(10 * SECOND);
        assert!(!progress.detect_freeze() && progress.restored(), "to the last moment");
        clock.pass(11 * SECOND);
        assert!(!progress.restored(), "a read comes before anybody has noticed");
        assert!(progress.detect_freeze());
        assert!(!progress.restored(), "also afterwards");
        assert!(progress.detect_freeze(), "until somebody draws the consequence");
        progress.note_caught_up().expect_err("what it has missed does not come back");
        progress.begin_reading(&[], Event::ReadingResumed).expect_err("the store is not empty");
        assert!(!progress.restored());
        serve_anew();
        // By the time of day alone: the machine was suspended.
        assert!(!progress.detect_freeze());
        clock.set_wall(clock.wall() + 11 * SECOND);
        assert!(progress.detect_freeze());
        assert!(!progress.restored());
        serve_anew();
        clock.set_wall(WallTime::from_ms(7));
        assert!(!progress.detect_freeze(), "a clock that is set back says nothing");
        progress.set_delete_retention(None);
        clock.pass(Duration::from_hours(10_000));
        clock.set_wall(WallTime::MAX);
        assert!(!progress.detect_freeze());
    }

    #[test]
    fn an_earlier_store_waits_for_the_log_not_for_long() {
        let (progress, clock) = progress();
        progress.begin_reading(&[NextOffset(1)], Event::EarlierStoreFound).expect("at the start");
        progress.accept_earlier_store_in_time();
        assert!(!progress.restored(), "the log may object");
        clock.pass(2 * SECOND);
        progress.accept_earlier_store_in_time();
        assert!(progress.restored(), "it had its time");
        begin(&progress, &[]);
        progress.accept_earlier_store();
        assert!(!progress.restored(), "it is no earlier run's any more");
    }

    #[test]
    fn a_dead_or_stuck_replica_makes_a_warm_node_unready() {
        let (progress, clock) = progress();
        assert_eq!(progress.unready().as_deref(), Some("starting"));
        progress.begin_reading(&[NextOffset(0)], Event::EarlierStoreFound).expect("at the start");
        progress.accept_earlier_store();
        assert_eq!(progress.unready(), None);
        clock.pass(MAX_SILENCE + SECOND);
        assert!(progress.unready().expect("stuck").contains("no sign of life for 31 s"));
        progress.note_sign_of_life();
        assert_eq!(progress.unready(), None);
        progress.fail("gone".into());
        progress.note_event(Event::LogOpened).expect("no other part need know");
        assert_eq!(progress.unready().as_deref(), Some("gone"));
    }
}
