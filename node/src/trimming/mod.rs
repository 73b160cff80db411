//! The log's upkeep: what is long dead becomes a tombstone that Kafka forgets in time. A tombstone may race with a write,
//! so it takes effect only if it comes first; where it did not, the newer record is appended once more behind it, before
//! compaction can act on it. One node trims at a time, but any number would do no harm: whatever they append is
//! conditional.
//!
//! # Why it loses nothing
//!
//! 1. Every record has a *version*: a write its own offset, a trimmer's record the offset in its header (`log/mod.rs`). A record
//!    takes effect iff its partition holds none of the key, or none with a greater version. So a write always does.
//! 2. A *trim* T(v) removes the key. A *repair* R(v) is the record of v as it was, position and timestamp too: where that still
//!    is, R changes nothing; where T took it away, R brings it back. Neither has any effect in the log later than a quarter of
//!    `DELETE_RETENTION` after what it was decided upon, nor in another topic of the same name: its header says until when, and where.
//! 3. T(v) is sent by a node that has read all that was there when v had been dead for `DELETE_RETENTION`, or replaced by another
//!    partition's record for half of it, by its machine's clock and by the log's: one clock that is wrong buries nothing alive. What
//!    was decided without v is too late by then, however long it, or who sent it, was held up (brokers' clocks agree that far).
//! 4. So T can only race with writes S after v. In the log S is before T or after it, and each replica decides alike: before,
//!    T is *void*; after, S takes effect on an empty place.
//! 5. A record without effect is a *pending repair*, since compaction would keep it and drop what decided before it. It is stored with the
//!    records; a node that is caught up appends behind it R(s) of what the partition holds or, if that is nothing and a trimmer's
//!    record hides it, a trim of all before. What is without effect in turn is a pending repair in turn; the last write ends this. Others'
//!    nonsense on a key that holds nothing is left alone; who builds a store while that is compacted reads twice (`replica/applier.rs`).
//! 6. Compaction can't drop S before T is `min.compaction.lag.ms` old. Some node that reads all partitions runs within that
//!    time: the one assumption.
//! 7. T stays for `delete.retention.ms`. A node that was away for less reads it; one that was away for longer rebuilds its store.
//! 8. Partitions decide each for itself; a key's record is the newest of theirs. Older ones, left where the topic has grown, are
//!    trimmed first: a delete in one partition may be all that hides them (if it is another writer's tombstone, some node must
//!    trim in the second half of `delete.retention.ms`; nobody may write nonsense to where they were). A node that does not read
//!    all partitions trims none. One that is behind may read T before what makes it harmless; the store hides that (`key_state.rs`).
//! 9. Whatever trimmers append is conditional: two at a time, or a late one, cost room in the log and nothing else.
//! 10. `node/tests/simulation/` holds the real store, replica and trimmer to this, and sixteen deliberate mistakes fail it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;

use crate::clock::{Clock, LogTime, Moment};
use crate::cluster::Membership;
use crate::log::{Condition, ConditionalRecord, Log, LogTag};
use crate::metrics::Metrics;
use crate::replication::PanicReport;
use crate::replication::progress::{AppliedUntil, Progress};
use crate::store::{NeededRepair, Store, StoreError, Trimmable};
use crate::worker::Worker;
use bitacora_protocol::Position;

/// Between two looks at what is owed.
const TRIM_INTERVAL: Duration = Duration::from_millis(500);
/// Tombstones, and repairs, appended in one tick.
const MAX_RECORDS_PER_ROUND: usize = 500;
/// Keys looked at in one tick.
const MAX_KEYS_PER_ROUND: usize = 50_000;
/// Between two tries on a log that is not fit for trimming.
const TOPIC_RECHECK_INTERVAL: Duration = Duration::from_mins(1);
/// A node that does not trim leaves a pending repair to the one that does for this long.
const GRACE_FOR_ELECTED_TRIMMER: Duration = Duration::from_secs(30);

/// Decides what to append. Knows neither the log nor a clock.
pub struct Trimmer {
    store: Arc<Store>,
    /// How long a record stays after it died.
    retention: Duration,
    /// How long what it decides takes effect.
    window: Duration,
    /// The last key looked at.
    after: Vec<u8>,
}

impl Trimmer {
    /// `retention`: how long a record stays after it died.
    #[must_use]
    pub fn new(store: Arc<Store>, retention: Duration) -> Self {
        // In less, a pending repair that was left to others for a while could not be paid.
        let window = (retention / 4).max(2 * GRACE_FOR_ELECTED_TRIMMER);
        Self { store, retention, window, after: Vec::new() }
    }

    /// What settles the pending repairs that were made until then.
    ///
    /// # Errors
    /// When the store fails.
    pub fn repairs(&self, made_until: LogTime) -> Result<Vec<ConditionalRecord>, StoreError> {
        let (log, needed) = self.store.needed_repairs(MAX_RECORDS_PER_ROUND)?;
        let due = needed.into_iter().filter(|needed| needed.pending.timestamp <= made_until);
        Ok(due.map(|needed| self.repair(log, needed)).collect())
    }

    fn repair(
        &self,
        log: LogTag,
        NeededRepair { key, pending, entry, replaced_at }: NeededRepair,
    ) -> ConditionalRecord {
        let until = pending.timestamp + self.window;
        let Some(entry) = entry else {
            // A trim of all that was before: what had said so is behind in compaction now.
            let before = Position { offset: (pending.position.offset - 1).max(0), ..pending.position };
            return trim(key, before, until, log);
        };
        let Position { partition, offset } = entry.position();
        if replaced_at.is_some_and(|at| at <= pending.timestamp - self.retention / 2) {
            // It need not be said again.
            return trim(key, entry.position(), until, log);
        }
        let condition = Condition::Repair { offset, timestamp: entry.timestamp(), until, log };
        // A tombstone's is one.
        let value = entry.has_record().then(|| entry.record_bytes().to_vec());
        ConditionalRecord { partition, key, value, condition }
    }

    /// The next tombstones, and whether all keys have been looked at.
    ///
    /// # Errors
    /// When the store fails.
    pub fn trims(&mut self, applied: AppliedUntil) -> Result<(Vec<ConditionalRecord>, bool), StoreError> {
        let dead = applied.time - self.retention;
        let replaced = applied.time - self.retention / 2;
        let Trimmable { log, records, after } =
            self.store.trimmable(&self.after, dead, replaced, MAX_RECORDS_PER_ROUND, MAX_KEYS_PER_ROUND)?;
        let all = after.is_none();
        self.after = after.unwrap_or_default();
        let until = applied.log_time + self.window;
        Ok((records.into_iter().map(|(key, position)| trim(key, position, until, log)).collect(), all))
    }
}

fn trim(
    key: Vec<u8>,
    Position { partition, offset }: Position,
    until: LogTime,
    log: LogTag,
) -> ConditionalRecord {
    ConditionalRecord { partition, key, value: None, condition: Condition::Trim { offset, until, log } }
}

/// What trimming works with.
pub struct Parts {
    pub log: Arc<dyn Log>,
    pub membership: Arc<dyn Membership>,
    pub store: Arc<Store>,
    pub progress: Arc<Progress>,
    pub metrics: Arc<Metrics>,
    /// How long a record stays after it died.
    pub retention: Duration,
}

/// The thread that trims when it is this node's turn.
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
    /// Why the log was not fit, as last told.
    refused: Option<String>,
    /// When to look at the keys again.
    next: Moment,
}

impl Upkeep {
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let trimmer = Trimmer::new(Arc::clone(&parts.store), parts.retention);
        let (refused, next) = (None, parts.progress.clock().now());
        Self { parts, trimmer, refused, next }
    }

    fn clock(&self) -> &dyn Clock {
        &**self.parts.progress.clock()
    }

    /// Appends what there is to append by now. Blocks until it is acknowledged or given up.
    pub fn step(&mut self) {
        let elected = self.parts.membership.trims();
        // What others have done already need not be done again.
        if self.parts.progress.caught_up()
            && let Err(error) = self.tick(elected)
        {
            tracing::error!(%error, "the log could not be trimmed");
        }
        self.parts.metrics.trimmer.set((elected && self.refused.is_none()).into());
    }

    fn tick(&mut self, elected: bool) -> Result<(), StoreError> {
        // A clock that is behind must not put them off, for compaction does not wait; nor those of the future by others' clocks.
        let made_until = if elected {
            LogTime::MAX
        } else {
            // An error of the clocks costs a repair that another node has made as well, or makes this one wait for it.
            self.clock().wall().assuming_clocks_agree() - GRACE_FOR_ELECTED_TRIMMER
        };
        let repairs = self.trimmer.repairs(made_until)?;
        self.parts.metrics.repairs_sent.inc_by(self.append(repairs));
        if !elected || self.clock().now() < self.next || !self.fit() {
            return Ok(());
        }
        // The clock first, then the store: it may be newer than that, never older.
        let Some(applied) = self.parts.progress.applied_until() else { return Ok(()) };
        let (trims, all) = self.trimmer.trims(applied)?;
        self.parts.metrics.tombstones_sent.inc_by(self.append(trims));
        if all {
            let pause = self.trimmer.retention / 100;
            self.next = self.clock().now() + pause.clamp(Duration::from_secs(1), Duration::from_mins(10));
        }
        Ok(())
    }

    /// Whether the log is fit for trimming; says once why it is not.
    fn fit(&mut self) -> bool {
        // At the start of each round is often enough: it is an operator who changes it.
        if !self.trimmer.after.is_empty() {
            return true;
        }
        let refused = self.parts.log.check_trimming().err();
        if let Some(reason) = &refused {
            if self.refused != refused {
                tracing::warn!("the log is not trimmed and will grow: {reason}");
            }
            self.next = self.clock().now() + TOPIC_RECHECK_INTERVAL;
        }
        self.refused = refused;
        self.refused.is_none()
    }

    /// Appends records together and waits for their acknowledgements. Returns how many there were.
    fn append(&self, records: Vec<ConditionalRecord>) -> u64 {
        let appends: Vec<_> =
            records.into_iter().map(|record| self.parts.log.append_conditional(record)).collect();
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
