//! The one path from the log into the store: a thread that reads batches, applies each in one transaction together with
//! the next offsets, and only then tells who waits ([`applier`]). Nothing else writes the store. A second thread learns how
//! far the log is, and whether it is still the same ([`watermarks`]). Each goes on in steps, which the simulation takes
//! without threads.
//!
//! Whether the store still fits the log, and what happens to it if not, is decided in `compatibility.rs` and `resync.rs`;
//! `docs/resync.md` has every case in a table, and what reads see meanwhile.

pub mod age;
mod applier;
mod apply;
mod barriers_read;
mod compatibility;
mod continuity;
pub mod decisions;
pub mod feed;
mod freeze;
pub mod log_ends;
pub mod progress;
mod reading;
mod resync;
pub mod snapshot;
pub mod state;
mod waiters;
mod watermarks;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

pub use self::applier::{Applier, Next};
pub use self::apply::apply;
pub use self::watermarks::Watermarks;
use crate::log::{Log, LogIdentity, PartitionRead};
use crate::metrics::Metrics;
use crate::replication::decisions::Decisions;
use crate::replication::feed::Feed;
use crate::replication::progress::Progress;
use crate::replication::snapshot::SnapshotSource;
use crate::store::{Checkpoint, Store, StoreError};
use crate::telemetry::Telemetry;
use crate::worker::Worker;

/// How long a thread of the replica waits for something at most before it looks whether it is to stop.
const POLL_TIMEOUT: Duration = Duration::from_millis(100);
/// Between two looks whether keys have expired. It blocks nobody for longer than a page of the store takes.
const EXPIRY_INTERVAL: Duration = Duration::from_millis(500);
/// Between two tries to reach a log that does not answer.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// What a replica works with.
#[derive(Clone)]
pub struct Parts {
    pub log: Arc<dyn Log>,
    pub store: Arc<Store>,
    pub progress: Arc<Progress>,
    pub metrics: Arc<Metrics>,
    /// Is told what became of conditional writes.
    pub decisions: Arc<Decisions>,
    /// Is told what has changed.
    pub feed: Arc<Feed>,
    /// Is told which records were applied.
    pub telemetry: Telemetry,
    /// How long other writers' tombstones are remembered.
    pub delete_retention: Duration,
    /// Where another member's store comes from; `None` to read the log always.
    pub snapshots: Option<Arc<dyn SnapshotSource>>,
}

impl Parts {
    /// Of a replica that tells nobody what it does, and reads the log always: what tests need, and begin with.
    ///
    /// # Errors
    /// When two metrics have the same name.
    pub fn alone(
        log: Arc<dyn Log>,
        store: Arc<Store>,
        delete_retention: Duration,
    ) -> prometheus::Result<Self> {
        let (progress, metrics) = (Arc::default(), Arc::new(Metrics::new()?));
        let (decisions, feed) = (Arc::default(), Arc::default());
        let (telemetry, snapshots) = (Telemetry::off(), None);
        Ok(Self { log, store, progress, metrics, decisions, feed, telemetry, delete_retention, snapshots })
    }
}

/// What the two halves tell each other.
#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// The log that is read.
    identity: Mutex<Option<LogIdentity>>,
    /// It is another one now, has lost records or gained partitions.
    must_reopen: AtomicBool,
    /// How far the store was when the log stopped answering. When it answers again it may have lost records, and have
    /// others in their place by the time that somebody looks, or that they are applied.
    checkpoint_before_outage: Mutex<Option<Checkpoint>>,
    /// What was read and told, and is not committed yet, since it changes nothing in the store but the next offsets.
    held_back: Mutex<Vec<PartitionRead>>,
}

impl Shared {
    /// How far the store is, with what is held back.
    fn checkpoint(&self, store: &Store) -> Result<Checkpoint, StoreError> {
        // First: what is committed meanwhile is in either.
        let held_back = self.held_back.lock().clone();
        let mut checkpoint = store.checkpoint()?;
        checkpoint.read_on(&held_back);
        Ok(checkpoint)
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// The two halves of a replica, not yet at work. A store that is too old is empty from now on; one that may be read waits
/// until the log has had time to object.
///
/// # Errors
/// When the store can't be read.
pub fn halves(parts: Parts) -> Result<(Applier, Watermarks), StoreError> {
    let shared = Arc::new(Shared::default());
    let watermarks = Watermarks::new(parts.clone(), Arc::clone(&shared));
    Ok((Applier::new(parts, shared)?, watermarks))
}

/// The two halves at work, each on a thread.
pub struct Replica {
    shared: Arc<Shared>,
    threads: Vec<Worker>,
}

impl Replica {
    /// # Errors
    /// When the store can't be read or the system gives no thread.
    pub fn start(parts: Parts) -> anyhow::Result<Self> {
        let progress = Arc::clone(&parts.progress);
        let (mut applier, mut watermarks) = halves(parts)?;
        let shared = Arc::clone(&applier.shared);
        let expiries = Worker::spawn("expiries", {
            let (shared, parts) = (Arc::clone(&shared), applier.parts.clone());
            move || {
                let _panic_report = PanicReport { progress: &parts.progress, thread: "expiries" };
                while !shared.stopped() {
                    tell_expiries(&parts);
                    std::thread::sleep(EXPIRY_INTERVAL);
                }
            }
        })?;
        let learner = Worker::spawn("watermarks", {
            let (shared, progress) = (Arc::clone(&shared), Arc::clone(&progress));
            move || {
                let _panic_report = PanicReport { progress: &progress, thread: "watermarks" };
                while !shared.stopped() {
                    std::thread::sleep(watermarks.step());
                }
            }
        })?;
        let applier = Worker::spawn("replica", move || {
            let _panic_report = PanicReport { progress: &progress, thread: "replica" };
            loop {
                match applier.step() {
                    Next::Step => {}
                    Next::Pause => applier.pause(),
                    Next::Done => return,
                }
            }
        })?;
        Ok(Self { shared, threads: vec![learner, expiries, applier] })
    }

    /// The name of a thread that has ended, if one has.
    #[must_use]
    pub fn ended_thread(&self) -> Option<&'static str> {
        self.threads.iter().find_map(Worker::ended)
    }

    /// Stops after the batch under way. Blocks for as long as that takes, until the deadline. Returns the names of the
    /// threads that have not ended by then.
    pub fn stop(self, deadline: Instant) -> Vec<&'static str> {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().filter_map(|thread| thread.join_until(deadline).err()).collect()
    }
}

/// Tells those who follow which keys have expired, whether or not the log answers.
fn tell_expiries(parts: &Parts) {
    if let Err(error) = parts.feed.tell_expiries(&parts.store, parts.progress.clock().wall()) {
        // It is tried again in a moment, and whoever applies meets the same error.
        tracing::debug!(%error, "the keys that have expired could not be read");
    }
}

/// Tells that a thread died, if it did.
pub(crate) struct PanicReport<'a> {
    pub progress: &'a Progress,
    pub thread: &'static str,
}

impl Drop for PanicReport<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let reason = format!("the thread '{}' panicked; restart the node", self.thread);
            self.progress.fail(reason);
        }
    }
}

#[cfg(test)]
mod tests;
