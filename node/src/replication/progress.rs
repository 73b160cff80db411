//! How far the replica is: the one place that knows. Readiness, lag, waits for a position, "caught up" and metrics all
//! read it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bitacora_protocol::http::{PartitionStatus, RestoreStatus};
use tokio::sync::watch;

use crate::clock::{Clock, LogTime, Moment, SystemClock, WallTime, past_by_both_clocks};
use crate::log::Read;
use crate::replication::age::LogClock;
use bitacora_protocol::{HighWatermark, NextOffset, Position, partition_of};

/// A node that learnt the high watermarks longer ago than this does not know whether it is caught up.
const HIGH_WATERMARK_MAX_AGE: Duration = Duration::from_secs(1);
/// The replica's thread shows a sign of life several times a second. One that has shown none for this long is stuck:
/// longer than any transaction should take, also on a slow disk.
const MAX_SILENCE: Duration = Duration::from_secs(30);
/// How long the reads of a store from an earlier run wait for the log to say whether it is its own. A log that is away
/// must not hold them up for ever.
const EARLIER_STORE_WAIT: Duration = Duration::from_secs(1);
/// No grace: delete markers stay in the log for ever.
const FOR_EVER: u64 = u64::MAX;

pub struct Progress {
    clock: Arc<dyn Clock>,
    inner: Mutex<Inner>,
    /// Asked for by every read, so it stands beside the lock; changed only while that is held.
    restored: AtomicBool,
    /// Counted from here, in ms, was the last [`Progress::tick`].
    base: Moment,
    ticked: AtomicU64,
    /// How long there may be none before the store is distrusted, in ms.
    grace: AtomicU64,
    /// Counts changes; for those who wait.
    changed: watch::Sender<u64>,
}

struct Inner {
    phase: Phase,
    partitions: Vec<Partition>,
    /// For the high watermarks that are known; `None` while they are not.
    asked: Option<Asked>,
    stores: u64,
    caught_up_once: bool,
    started: Moment,
    restored_after: Option<Duration>,
    heartbeat: Moment,
    /// Next offsets when the reading began, for the restore's progress.
    from: Vec<NextOffset>,
    /// When that was.
    began: Moment,
    /// Whether the store may answer reads as soon as the log has had time to object.
    held: bool,
    /// Why the store is being built anew beside the one that is read.
    rebuilding: Option<String>,
    /// The clock at the last tick.
    ticked_at: Option<WallTime>,
    /// Whether the process stood still for longer than the grace, and nobody has drawn the consequence yet.
    frozen: bool,
    log_clock: LogClock,
}

/// A question to the log for its high watermarks. Each time is of before it was put, so that the answer is never thought
/// newer than it is.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    at: Moment,
    /// By the time of day: while the machine is suspended, a [`Moment`] may not grow older.
    wall: WallTime,
    /// What was past by the log's clock; `None` if nothing was read yet.
    past: Option<LogTime>,
    /// Of which store, counted by [`Progress::begin`].
    store: u64,
}

impl Asked {
    fn is_fresh(&self, clock: &dyn Clock) -> bool {
        clock.now().since(self.at) <= HIGH_WATERMARK_MAX_AGE
            && clock.wall().ms_since(self.wall) <= HIGH_WATERMARK_MAX_AGE.as_millis() as i64
    }
}

/// A moment until when everything that was appended has been applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Past by both clocks.
    pub until: LogTime,
    /// By the log's.
    pub log_time: LogTime,
}

struct Partition {
    next: NextOffset,
    high_watermark: Option<HighWatermark>,
    /// High watermarks that are not reached yet, and when each was asked for; in order.
    ahead: VecDeque<(HighWatermark, Moment)>,
}

/// So many high watermarks are remembered; of more, every second one is forgotten.
const MAX_REMEMBERED_HIGH_WATERMARKS: usize = 256;

impl Partition {
    fn new(next: NextOffset) -> Self {
        Self { next, high_watermark: None, ahead: VecDeque::new() }
    }

    fn learnt(&mut self, end: HighWatermark, asked: Moment) {
        self.high_watermark = Some(end);
        let newest = self.ahead.back().map_or(HighWatermark(self.next.0), |(newest, _)| *newest);
        if end > newest {
            self.ahead.push_back((end, asked));
        }
        if self.ahead.len() > MAX_REMEMBERED_HIGH_WATERMARKS {
            let mut kept = 0..;
            self.ahead.retain(|_| kept.next().is_some_and(|index| index % 2 == 0));
        }
    }

    fn applied(&mut self, next: NextOffset) {
        self.next = next;
        while self.ahead.front().is_some_and(|(end, _)| next.lag(*end) == 0) {
            self.ahead.pop_front();
        }
    }

    fn lag_seconds(&self, now: Moment) -> Option<f64> {
        self.high_watermark?;
        Some(self.ahead.front().map_or(0.0, |(_, asked)| now.since(*asked).as_secs_f64()))
    }
}

/// What the replica is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Waiting for the log, for the reason given.
    Connecting(String),
    Reading,
    /// The store can't be changed, for the reason given: what it holds is read, and grows old.
    Blocked(String),
    /// Will not come back by itself.
    Failed(String),
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
        let now = clock.now();
        let inner = Inner {
            phase: Phase::Connecting("starting".into()),
            partitions: Vec::new(),
            asked: None,
            stores: 0,
            caught_up_once: false,
            started: now,
            restored_after: None,
            heartbeat: now,
            from: Vec::new(),
            began: now,
            held: false,
            rebuilding: None,
            ticked_at: None,
            frozen: false,
            log_clock: LogClock::default(),
        };
        Self {
            clock,
            inner: Mutex::new(inner),
            restored: AtomicBool::new(false),
            base: now,
            ticked: AtomicU64::new(0),
            grace: AtomicU64::new(FOR_EVER),
            changed: watch::Sender::new(0),
        }
    }

    /// What time it is, for all who decide together with this.
    #[must_use]
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// Time since then.
    fn age(&self, moment: Moment) -> Duration {
        self.clock.now().since(moment)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change is a single assignment, so a panic leaves nothing half done.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Inner)) {
        change(&mut self.lock());
        self.changed.send_modify(|count| *count += 1);
    }

    // Told by the replica.

    pub(crate) fn set_phase(&self, phase: Phase) {
        self.change(|inner| {
            inner.heartbeat = self.clock.now();
            // What has failed for good stays so, whatever other parts of the node still do.
            if !matches!(inner.phase, Phase::Failed(_)) {
                inner.phase = phase;
            }
        });
    }

    /// A process that stands still for longer than this has a store that may not be trusted; `None` for any time.
    pub(crate) fn set_grace(&self, grace: Option<Duration>) {
        let grace = grace.map_or(FOR_EVER, |grace| grace.as_millis() as u64);
        self.grace.store(grace, Ordering::Relaxed);
    }

    /// Notes that the process runs. Returns whether it stood still for longer than the grace, by either clock; from then on
    /// the store is not restored, and this says so until [`Progress::begin`].
    pub(crate) fn tick(&self) -> bool {
        let (now, mut inner) = (self.clock.wall(), self.lock());
        let grace = self.grace.load(Ordering::Relaxed);
        let jumped =
            inner.ticked_at.is_some_and(|at| u64::try_from(now.ms_since(at)).is_ok_and(|gap| gap > grace));
        if jumped || self.stands_still() {
            inner.frozen = true;
            self.restored.store(false, Ordering::Release);
        }
        inner.ticked_at = Some(now);
        self.ticked.store(self.age(self.base).as_millis() as u64, Ordering::Release);
        inner.frozen
    }

    /// As [`Progress::begin`], for a store from an earlier run, which may answer reads unless the log objects: after
    /// [`Progress::release`].
    pub(crate) fn hold(&self, next: &[NextOffset]) {
        self.begin(next, false);
        self.lock().held = true;
    }

    /// The log does not answer, or not within `EARLIER_STORE_WAIT`: the store of an earlier run does.
    pub(crate) fn release(&self, at_once: bool) {
        let due = |inner: &Inner| inner.held && (at_once || self.age(inner.started) > EARLIER_STORE_WAIT);
        if due(&self.lock()) {
            self.change(|inner| {
                if inner.held && !inner.frozen {
                    inner.held = false;
                    self.restored.store(true, Ordering::Release);
                }
            });
        }
    }

    fn stands_still(&self) -> bool {
        let grace = self.grace.load(Ordering::Relaxed);
        // Read first: a tick in between makes the time since then shorter, never longer.
        grace != FOR_EVER && {
            let now = self.age(self.base).as_millis() as u64;
            now.saturating_sub(self.ticked.load(Ordering::Acquire)) > grace
        }
    }

    /// As [`Progress::begin`], for a store that is built beside the one that is read, which still may answer.
    pub(crate) fn rebuild(&self, next: &[NextOffset], why: String) {
        self.begin(next, true);
        self.change(|inner| inner.rebuilding = Some(why));
    }

    /// The store stands at these next offsets; `restored` says whether it may answer reads.
    pub(crate) fn begin(&self, next: &[NextOffset], restored: bool) {
        self.change(|inner| {
            self.restored.store(restored, Ordering::Release);
            inner.frozen = false;
            inner.held = false;
            inner.rebuilding = None;
            inner.from = next.to_vec();
            inner.began = self.clock.now();
            inner.asked = None;
            inner.stores += 1;
            inner.partitions = next.iter().map(|next| Partition::new(*next)).collect();
        });
    }

    pub(crate) fn applied(&self, read: &[Read]) {
        self.change(|inner| {
            inner.heartbeat = self.clock.now();
            for Read { partition, next, .. } in read {
                if let Some(known) = inner.partitions.get_mut(*partition as usize) {
                    known.applied(*next);
                }
            }
        });
    }

    /// A record was appended at `time` of the log's clock. `live`: just now, as it was read while the
    /// node was caught up.
    pub(crate) fn log_told(&self, time: LogTime, live: bool) {
        let now = self.clock.now();
        self.lock().log_clock.told(time, live, now);
    }

    pub(crate) fn heartbeat(&self) {
        self.lock().heartbeat = self.clock.now();
    }

    /// Notes the end of the restore.
    pub(crate) fn set_restored(&self) {
        self.change(|inner| {
            self.restored.store(true, Ordering::Release);
            inner.rebuilding = None;
            inner.caught_up_once = true;
            inner.restored_after.get_or_insert(self.age(inner.started));
        });
    }

    /// The log is to be asked for its high watermarks.
    pub(crate) fn asks(&self) -> Asked {
        let inner = self.lock();
        Asked {
            at: self.clock.now(),
            wall: self.clock.wall(),
            past: inner.log_clock.at_least(self.clock.now()),
            store: inner.stores,
        }
    }

    /// What it answered, a high watermark for each partition.
    pub(crate) fn learnt(&self, high_watermarks: &[HighWatermark], asked: Asked) {
        self.change(|inner| {
            // Those of another log, or of fewer partitions, say nothing of this one.
            if asked.store != inner.stores || high_watermarks.len() != inner.partitions.len() {
                return;
            }
            inner.asked = Some(asked);
            for (known, learnt) in inner.partitions.iter_mut().zip(high_watermarks) {
                known.learnt(*learnt, asked.at);
            }
        });
    }

    /// What it answered says nothing of this log any more.
    pub(crate) fn unlearn(&self) {
        self.change(|inner| inner.asked = None);
    }

    // Asked by everybody.

    /// What is certainly past: both this machine's clock and the log's have come as far. `None` until
    /// something was read from the log.
    #[must_use]
    pub fn past(&self) -> Option<LogTime> {
        let log = self.lock().log_clock.at_least(self.clock.now())?;
        Some(past_by_both_clocks(self.clock.wall(), log))
    }

    /// Until when this node has applied everything that was appended; `None` while it is behind. What is read from the store
    /// after this may be newer, but not older, however long that takes.
    #[must_use]
    pub fn seen(&self) -> Option<Seen> {
        let inner = self.lock();
        let log_time = inner.asked.filter(|_| inner.has_reached())?.past?;
        Some(Seen { until: past_by_both_clocks(self.clock.wall(), log_time), log_time })
    }

    /// The time by the log's clock; `None` until a record was read as it was written.
    #[must_use]
    pub fn log_now(&self) -> Option<LogTime> {
        self.lock().log_clock.now(self.clock.now())
    }

    /// Told after every change.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    #[must_use]
    pub fn phase(&self) -> Phase {
        self.lock().phase.clone()
    }

    /// Whether everything up to the high watermarks has been applied, and they were learnt within the last second.
    #[must_use]
    pub fn caught_up(&self) -> bool {
        self.lock().caught_up(&*self.clock)
    }

    /// Whether the node has been caught up since it started.
    #[must_use]
    pub fn caught_up_once(&self) -> bool {
        self.lock().caught_up_once
    }

    /// Whether the store holds what the log held at some moment within the grace: this run or an earlier one was caught
    /// up. A process that was frozen for longer must not answer before anybody could notice.
    #[must_use]
    pub fn restored(&self) -> bool {
        self.restored.load(Ordering::Acquire) && !self.stands_still()
    }

    /// Why the node should get no requests; `None` when it is ready.
    #[must_use]
    pub fn unready(&self) -> Option<String> {
        let inner = self.lock();
        if let Phase::Failed(reason) = &inner.phase {
            return Some(reason.clone());
        }
        if self.age(inner.heartbeat) > MAX_SILENCE {
            return Some(format!(
                "the replica has shown no sign of life for {} s",
                self.age(inner.heartbeat).as_secs()
            ));
        }
        if self.restored() {
            return None;
        }
        Some(match (&inner.phase, inner.fraction()) {
            (Phase::Connecting(reason) | Phase::Blocked(reason), _) => reason.clone(),
            (_, Some(fraction)) => format!("restoring, {:.1} % read", fraction * 100.0),
            _ => "restoring".to_owned(),
        })
    }

    /// Per partition, as far as it is applied.
    #[must_use]
    pub fn next(&self) -> Vec<NextOffset> {
        self.lock().partitions.iter().map(|partition| partition.next).collect()
    }

    /// How far the partition of a key is applied.
    #[must_use]
    pub fn applied_for(&self, key: &[u8]) -> Position {
        let inner = self.lock();
        let partition = partition_of(key, inner.partitions.len());
        inner.partitions.get(partition as usize).map_or(NextOffset(0), |p| p.next).applied(partition)
    }

    /// Time since the replica last showed a sign of life.
    #[must_use]
    pub fn heartbeat_age(&self) -> Duration {
        self.age(self.lock().heartbeat)
    }

    #[must_use]
    pub fn partitions(&self) -> Vec<PartitionStatus> {
        let inner = self.lock();
        let status = |(partition, known): (i32, &Partition)| PartitionStatus {
            partition,
            applied: known.next.applied(partition).offset,
            high_watermark: known.high_watermark.map(|value| value.0),
            lag: known.high_watermark.map(|value| known.next.lag(value)),
            lag_seconds: known.lag_seconds(self.clock.now()),
            high_watermark_age_ms: inner.asked.map(|asked| self.age(asked.at).as_millis() as u64),
        };
        (0..).zip(&inner.partitions).map(status).collect()
    }

    #[must_use]
    pub fn restore(&self) -> RestoreStatus {
        let inner = self.lock();
        // Its end moves on with every write, so that it would fall below again.
        let fraction = if inner.caught_up_once { Some(1.0) } else { inner.fraction() };
        let remaining = fraction
            .filter(|read| *read > 0.0 && !self.restored())
            .map(|read| self.age(inner.began).as_secs_f64() * (1.0 - read) / read);
        RestoreStatus {
            done: self.restored(),
            seconds: inner.restored_after.map(|d| d.as_secs_f64()),
            fraction,
            remaining_seconds: remaining,
            rebuilding: inner.rebuilding.clone(),
        }
    }
}

impl Inner {
    fn caught_up(&self, clock: &dyn Clock) -> bool {
        self.has_reached() && self.asked.is_some_and(|asked| asked.is_fresh(clock))
    }

    fn has_reached(&self) -> bool {
        !self.partitions.is_empty()
            && self.partitions.iter().all(|p| p.high_watermark.is_some_and(|end| p.next.lag(end) == 0))
    }

    fn fraction(&self) -> Option<f64> {
        if self.partitions.is_empty() {
            return None;
        }
        let (mut read, mut all) = (0u64, 0u64);
        for (partition, from) in self.partitions.iter().zip(&self.from) {
            let end = partition.high_watermark?;
            all += from.lag(end);
            read += from.lag(end) - partition.next.lag(end);
        }
        Some(if all == 0 { 1.0 } else { read as f64 / all as f64 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::manual::ManualClock;

    const SECOND: Duration = Duration::from_secs(1);

    fn progress() -> (Progress, ManualClock) {
        let clock = ManualClock::new();
        (Progress::new(Arc::new(clock.clone())), clock)
    }

    #[test]
    fn caught_up_needs_every_partition_and_fresh_high_watermarks() {
        let (progress, clock) = progress();
        assert!(!progress.caught_up(), "nothing is known yet");
        progress.begin(&[NextOffset(0), NextOffset(5)], false);
        assert!(!progress.caught_up());
        progress.learnt(&[HighWatermark(2), HighWatermark(5)], progress.asks());
        assert!(!progress.caught_up());
        assert_eq!(progress.restore().fraction, Some(0.0));
        progress.applied(&[Read::up_to(0, NextOffset(2))]);
        assert!(progress.caught_up());
        assert_eq!(progress.restore().fraction, Some(1.0));
        assert_eq!(progress.partitions()[0].lag_seconds, Some(0.0));
        let learn = |asked| progress.learnt(&[HighWatermark(2), HighWatermark(5)], asked);
        clock.pass(2 * SECOND);
        assert!(!progress.caught_up(), "learnt too long ago");
        learn(progress.asks());
        assert!(progress.caught_up());
        clock.set_wall(clock.wall() + 2 * SECOND);
        assert!(!progress.caught_up(), "the machine was suspended since");
        let of_this = progress.asks();
        learn(of_this);
        assert!(progress.caught_up());
        progress.learnt(&[HighWatermark(2)], of_this);
        assert!(progress.caught_up(), "an answer for fewer partitions says nothing");
        progress.begin(&[NextOffset(2), NextOffset(5)], false);
        learn(of_this);
        assert!(!progress.caught_up(), "an answer to a question before the store was begun");
    }

    #[test]
    fn what_a_node_has_seen_is_what_was_past_when_it_asked_for_the_end_that_it_has_reached() {
        let (progress, clock) = progress();
        let log = clock.wall().assuming_clocks_agree();
        progress.begin(&[NextOffset(0)], false);
        progress.learnt(&[HighWatermark(0)], progress.asks());
        assert_eq!((progress.seen(), progress.past()), (None, None), "the log has told no time yet");
        progress.log_told(log - 9 * SECOND, true);
        let asked = progress.asks();
        // What is read while the answer is on its way is later.
        progress.log_told(log - 5 * SECOND, true);
        progress.learnt(&[HighWatermark(2)], asked);
        assert_eq!(progress.seen(), None, "it is behind");
        assert_eq!(progress.past(), Some(log - 5 * SECOND));
        progress.applied(&[Read::up_to(0, NextOffset(2))]);
        clock.pass(SECOND);
        let log_time = log - 9 * SECOND;
        assert_eq!(progress.seen(), Some(Seen { until: log_time, log_time }), "it has reached that end");
        assert_eq!(progress.past(), Some(log - 4 * SECOND));
        let five = LogTime::from_ms(5);
        clock.set_wall(five.assuming_clocks_agree());
        assert_eq!(progress.seen(), Some(Seen { until: five, log_time }), "by this machine's clock, too");
        assert_eq!(progress.past(), Some(five));
        progress.begin(&[NextOffset(2)], true);
        assert_eq!(progress.seen(), None, "another store");
    }

    #[test]
    fn lag_in_seconds_is_the_age_of_the_first_end_that_is_not_reached() {
        let (progress, clock) = progress();
        progress.begin(&[NextOffset(0)], false);
        let lag = || progress.partitions()[0].lag_seconds;
        assert_eq!(lag(), None, "nothing is known yet");
        for end in [4, 4, 6] {
            progress.learnt(&[HighWatermark(end)], progress.asks());
            clock.pass(1_000 * SECOND);
        }
        progress.applied(&[Read::up_to(0, NextOffset(3))]);
        assert_eq!(lag(), Some(3_000.0));
        progress.applied(&[Read::up_to(0, NextOffset(5))]);
        assert_eq!(lag(), Some(1_000.0));
        let restore = progress.restore();
        assert_eq!(restore.fraction, Some(5.0 / 6.0));
        assert!(restore.remaining_seconds.is_some_and(|left| (left - 600.0).abs() < 0.1), "{restore:?}");
        progress.applied(&[Read::up_to(0, NextOffset(6))]);
        assert_eq!(lag(), Some(0.0));
        progress.set_restored();
        progress.learnt(&[HighWatermark(100)], progress.asks());
        assert_eq!(progress.restore().remaining_seconds, None);
        assert_eq!(progress.restore().fraction, Some(1.0), "what is written later is no part of the restore");
    }

    #[test]
    fn a_node_that_falls_behind_for_long_remembers_a_bounded_number_of_ends() {
        let (progress, clock) = progress();
        progress.begin(&[NextOffset(0)], false);
        for n in 0..10_000 {
            progress.learnt(&[HighWatermark(n + 1)], progress.asks());
            clock.pass(SECOND / 10);
        }
        assert!(progress.lock().partitions[0].ahead.len() <= MAX_REMEMBERED_HIGH_WATERMARKS);
        let lag = || progress.partitions()[0].lag_seconds.expect("known");
        assert!((lag() - 1_000.0).abs() < 0.1, "the first is remembered: {}", lag());
        progress.applied(&[Read::up_to(0, NextOffset(10_000))]);
        assert!(lag() < f64::EPSILON);
    }

    #[test]
    fn a_process_that_stood_still_for_longer_than_the_grace_answers_nothing_until_it_begins_anew() {
        let (progress, clock) = progress();
        progress.set_grace(Some(10 * SECOND));
        progress.begin(&[NextOffset(0)], true);
        assert!(!progress.tick());
        clock.pass(10 * SECOND);
        assert!(!progress.tick() && progress.restored(), "to the last moment");
        clock.pass(11 * SECOND);
        assert!(!progress.restored(), "a read comes before any tick");
        assert!(progress.tick());
        assert!(!progress.restored(), "also after the tick");
        assert!(progress.tick(), "until somebody draws the consequence");
        progress.begin(&[], true);
        // By the time of day alone: the machine was suspended.
        assert!(!progress.tick());
        clock.set_wall(clock.wall() + 11 * SECOND);
        assert!(progress.tick());
        assert!(!progress.restored());
        progress.begin(&[], true);
        clock.set_wall(WallTime::from_ms(7));
        assert!(!progress.tick(), "a clock that is set back says nothing");
        progress.set_grace(None);
        clock.pass(Duration::from_hours(10_000));
        clock.set_wall(WallTime::MAX);
        assert!(!progress.tick());
    }

    #[test]
    fn a_dead_or_stuck_replica_is_unready_also_with_a_warm_store() {
        let (progress, clock) = progress();
        assert_eq!(progress.unready().as_deref(), Some("starting"));
        progress.begin(&[NextOffset(0)], true);
        assert_eq!(progress.unready(), None);
        clock.pass(MAX_SILENCE + SECOND);
        assert!(progress.unready().expect("stuck").contains("no sign of life for 31 s"));
        progress.heartbeat();
        assert_eq!(progress.unready(), None);
        progress.set_phase(Phase::Failed("gone".into()));
        progress.set_phase(Phase::Reading);
        assert_eq!(progress.unready().as_deref(), Some("gone"));
    }
}
