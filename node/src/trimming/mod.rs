//! Trimming, the log's upkeep: what is long dead becomes a tombstone, which Kafka forgets in time. A tombstone may race with a write,
//! so it takes effect only if it comes first; where it did not, the newer record is appended once more behind it, before compaction can
//! act on it. One node trims at a time, but any number would do no harm: whatever they append is conditional.
//!
//! The argument why this loses nothing, point by point, is `docs/trimming.md`. This room has what decides ([`decision`]) and the thread
//! that appends it; what every node's store makes of the records is `store/trimming/`.

mod decision;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;

use self::decision::Trimmer;
pub use self::decision::repairs_of;
use crate::clock::{Clock, LogTime, Moment};
use crate::cluster::Membership;
use crate::log::{Log, NewRecord};
use crate::metrics::Metrics;
use crate::replication::PanicReport;
use crate::replication::progress::Progress;
use crate::store::{Store, StoreError};
use crate::worker::Worker;

/// Between two steps.
const TRIM_INTERVAL: Duration = Duration::from_millis(500);
/// Between two looks at a log that can't be trimmed.
const TOPIC_RECHECK_INTERVAL: Duration = Duration::from_mins(1);
/// Between two rounds, at most, of a node that has read no record yet.
const LONGEST_PAUSE_BEFORE_FIRST_RECORD: Duration = Duration::from_secs(10);
/// A node that is not elected leaves a pending repair to the one that is for this long.
const GRACE_FOR_ELECTED_TRIMMER: Duration = Duration::from_secs(30);

/// What trimming works with.
pub struct Parts {
    pub log: Arc<dyn Log>,
    pub membership: Arc<dyn Membership>,
    pub store: Arc<Store>,
    pub progress: Arc<Progress>,
    pub metrics: Arc<Metrics>,
    /// How long a record stays after it died.
    pub retention: Duration,
    /// Whether nodes of the original system read the topic, too: nothing is appended then.
    pub original_nodes: bool,
}

/// The thread that trims when this node is elected to.
pub struct Trimming {
    stop: Arc<AtomicBool>,
    thread: Worker,
}

impl Trimming {
    /// # Errors
    /// When the system gives no thread.
    pub fn start(parts: Parts) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = Worker::spawn("trimmer", move || {
            let progress = Arc::clone(&parts.progress);
            let _panic_report = PanicReport { progress: &progress, thread: "trimmer" };
            let mut upkeep = Upkeep::new(parts);
            while !stopped.load(Ordering::Relaxed) {
                upkeep.step();
                // `stop` ends it early.
                std::thread::park_timeout(TRIM_INTERVAL);
            }
        })?;
        Ok(Self { stop, thread })
    }

    /// The name of the thread if it has ended.
    #[must_use]
    pub fn ended_thread(&self) -> Option<&'static str> {
        self.thread.ended()
    }

    /// Appends nothing more after the round under way.
    pub fn begin_stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.unpark();
    }

    /// Stops once what was appended is acknowledged or given up. Blocks for as long, until the deadline. Returns the name of
    /// the thread if it has not ended by then.
    pub fn stop(self, deadline: Instant) -> Option<&'static str> {
        self.begin_stop();
        self.thread.join_until(deadline).err()
    }
}

/// What the thread does twice a second.
pub struct Upkeep {
    parts: Parts,
    trimmer: Trimmer,
    /// Why the log can't be trimmed, as last told.
    refused: Option<String>,
    /// When to look at the keys again.
    next_round: Moment,
    /// When the log may be asked for its time again.
    next_question: Moment,
}

impl Upkeep {
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let trimmer = Trimmer::new(Arc::clone(&parts.store), parts.retention);
        let (refused, now) = (None, parts.progress.clock().now());
        Self { parts, trimmer, refused, next_round: now, next_question: now }
    }

    fn clock(&self) -> &dyn Clock {
        &**self.parts.progress.clock()
    }

    /// Appends what there is to append by now. Blocks until it is acknowledged or given up.
    pub fn step(&mut self) {
        let elected = self.parts.membership.is_elected_trimmer();
        // What others have done already need not be done again.
        if !self.parts.original_nodes
            && self.parts.progress.caught_up()
            && let Err(error) = self.append_what_is_due(elected)
        {
            tracing::error!(%error, "the log could not be trimmed");
        }
        let trims = elected && self.refused.is_none() && !self.parts.original_nodes;
        self.parts.metrics.trimmer.set(trims.into());
    }

    fn append_what_is_due(&mut self, elected: bool) -> Result<(), StoreError> {
        // A clock that is behind must not put them off, for compaction does not wait; nor those of the future by others' clocks.
        let void_since = if elected {
            LogTime::MAX
        } else {
            // An error of the clocks costs a repair that another node has made as well, or makes this one wait for it.
            self.clock().wall().assuming_clocks_agree() - GRACE_FOR_ELECTED_TRIMMER
        };
        let repairs = self.trimmer.repairs(void_since)?;
        self.parts.metrics.repairs_sent.inc_by(self.append(&repairs));
        if !elected || self.clock().now() < self.next_round || !self.log_can_be_trimmed() {
            return Ok(());
        }
        if self.ask_the_log_for_its_time()? {
            return Ok(());
        }
        // The clock first, then the store: it may be newer than that, never older.
        let Some(applied) = self.parts.progress.applied_until() else {
            // Nothing was read, so nothing is due, and the brokers need not be asked what the topic is all the time.
            self.put_off(LONGEST_PAUSE_BEFORE_FIRST_RECORD);
            return Ok(());
        };
        let (trims, all) = self.trimmer.trims(applied)?;
        self.parts.metrics.tombstones_sent.inc_by(self.append(&trims));
        if all {
            self.put_off(Duration::from_mins(10));
        }
        Ok(())
    }

    /// The next round begins after a hundredth of the retention, but after no more than `longest`, and a second at least.
    fn put_off(&mut self, longest: Duration) {
        let pause = self.trimmer.retention / 100;
        self.next_round = self.clock().now() + pause.clamp(Duration::from_secs(1), longest);
    }

    /// Appends a record that tells the log's time once it is read, if this machine's clock says that much time has passed since the last
    /// one: a node that has started anew on a log to which nothing is written would not know, and what is dead or replaced would stay.
    /// Returns whether one was appended.
    fn ask_the_log_for_its_time(&mut self) -> Result<bool, StoreError> {
        let (now, wall) = (self.clock().now(), self.clock().wall());
        if now < self.next_question {
            return Ok(false);
        }
        let known = match self.parts.progress.log_time_at_least() {
            None => self.parts.store.checkpoint()?.latest.into_iter().flatten().max(),
            known => known,
        };
        let much = (self.trimmer.retention / 16).max(Duration::from_secs(1));
        let is_old = |time: LogTime| wall.ms_since(time.assuming_clocks_agree()) > much.as_millis() as i64;
        // If nothing was ever read, there is nothing to trim either.
        if !known.filter(|known| *known > LogTime::MIN).is_some_and(is_old) {
            return Ok(false);
        }
        // If it is this machine's clock that is wrong, the answer changes nothing.
        self.next_question = now + much;
        Ok(self.append(&[NewRecord::barrier(0, "", wall)]) > 0)
    }

    /// Whether the log keeps what trimming rests on; says once why it does not.
    fn log_can_be_trimmed(&mut self) -> bool {
        // At the start of each round is often enough: it is an operator who changes it.
        if !self.trimmer.is_at_start() {
            return true;
        }
        let refused = self.parts.log.check_trimming().err();
        if let Some(reason) = &refused {
            if self.refused != refused {
                tracing::warn!("the log is not trimmed and will grow: {reason}");
            }
            self.next_round = self.clock().now() + TOPIC_RECHECK_INTERVAL;
        }
        self.refused = refused;
        self.refused.is_none()
    }

    /// Appends records together and waits for their acknowledgements. Returns how many there were.
    fn append(&self, records: &[NewRecord]) -> u64 {
        let appends: Vec<_> = records.iter().map(|record| self.parts.log.append_record(record)).collect();
        let mut acknowledged = 0;
        for outcome in futures_executor::block_on(join_all(appends)) {
            match outcome {
                Ok(_) => acknowledged += 1,
                // It will be decided upon anew.
                Err(error) => tracing::debug!(%error, "a record of the trimmer was not acknowledged"),
            }
        }
        acknowledged
    }
}
