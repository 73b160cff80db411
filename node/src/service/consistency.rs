//! What a read that is more than eventual waits for, before it is answered from this node's own store.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bitacora_protocol::{Consistency, Position, ReadOptions, SessionPosition};
use futures_util::future::try_join_all;
use tokio::time::{Instant, timeout_at};

use crate::clock::Moment;
use crate::log::Log;
use crate::metrics::Metrics;
use crate::replication::progress::{Progress, WaitError};
use crate::service::barriers::{Barriers, Failed, HighWatermarks};
use crate::service::memory::{Memory, OutOfMemory};

/// How long a read or a write waits that does not say.
pub const DEFAULT_WAIT: Duration = Duration::from_secs(5);
/// The longest wait that may be asked for.
pub const MAX_WAIT: Duration = Duration::from_secs(60);
/// What a wait takes of the node's memory: its place in the queue, and what its caller keeps meanwhile.
const WAIT_BYTES: usize = 1024;

/// Why a read is not answered as consistently as its caller wants it.
#[derive(Debug, thiserror::Error)]
pub enum ConsistencyError {
    /// What is asked for makes no sense.
    #[error("{0}")]
    Wrong(String),
    /// This node does not have, or does not know that it has, what the read must see.
    #[error("{why}; this node has applied {}", if applied.is_empty() { "nothing" } else { applied })]
    NotReached {
        why: String,
        /// As far as the read is concerned: a [`SessionPosition`] as text, or nothing.
        applied: String,
        /// Whether it was waited for until the deadline.
        timed_out: bool,
    },
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
}

/// How long a caller waits.
///
/// # Errors
/// When that is too long.
pub fn wait_time(asked: Option<Duration>) -> Result<Duration, ConsistencyError> {
    match asked {
        Some(timeout) if timeout > MAX_WAIT => Err(ConsistencyError::Wrong(format!(
            "timeout: {} ms is too long; a wait is {} s at most",
            timeout.as_millis(),
            MAX_WAIT.as_secs()
        ))),
        asked => Ok(asked.unwrap_or(DEFAULT_WAIT)),
    }
}

/// What a read asks for, once it was found to make sense.
#[derive(Debug, PartialEq, Eq)]
pub struct Demand {
    consistency: Consistency,
    /// Empty, but for [`Consistency::Session`].
    session: SessionPosition,
    timeout: Duration,
    max_staleness: Option<Duration>,
}

impl Demand {
    /// What the options ask for.
    ///
    /// # Errors
    /// When they contradict one another, or a position is none.
    pub fn of(read: &ReadOptions<'_>) -> Result<Self, ConsistencyError> {
        let ReadOptions { consistency, position, timeout, max_staleness } = *read;
        let wrong = ConsistencyError::Wrong;
        let session = match (consistency, position) {
            (Consistency::Session, "") => {
                return Err(wrong(
                    "consistency=session needs the session's position, such as position=0:12,3:40".to_owned(),
                ));
            }
            (Consistency::Session, text) => {
                text.parse().map_err(|error| wrong(format!("position: {error}")))?
            }
            (_, "") => SessionPosition::default(),
            (level, _) => {
                return Err(wrong(format!(
                    "a position is of use with consistency=session only, and this is consistency={level}"
                )));
            }
        };
        Ok(Self { consistency, session, timeout: wait_time(timeout)?, max_staleness })
    }

    /// Whether whatever the node holds will do.
    #[must_use]
    pub fn is_eventual(&self) -> bool {
        self.consistency == Consistency::Eventual && self.max_staleness.is_none()
    }
}

/// Says when a read may be answered from this node's store.
pub struct ConsistentReads {
    progress: Arc<Progress>,
    barriers: Barriers,
    complete: CompleteStores,
    memory: Memory,
    metrics: Arc<Metrics>,
}

/// Which store is known to have had everything that was acknowledged, in every partition, at some moment after this node learnt how many
/// partitions there are. A key that lay in another partition before the topic was given more is then in the store, and what is
/// acknowledged later is in the key's present partition, so that later reads ask that one alone.
struct CompleteStores {
    /// As barriers told: the store's number.
    by_barriers: AtomicU64,
    /// As high watermarks told.
    by_high_watermarks: AtomicU64,
}

impl CompleteStores {
    const NONE: u64 = u64::MAX;
}

/// The store had what the read must see.
#[derive(Clone, Copy, Debug)]
pub struct Reached {
    store_number: u64,
}

/// What a read is of: a key, or everything.
type Scope<'a> = Option<&'a str>;

impl ConsistentReads {
    #[must_use]
    pub fn new(log: Arc<dyn Log>, progress: Arc<Progress>, memory: Memory, metrics: Arc<Metrics>) -> Self {
        let barriers = Barriers::new(log, Arc::clone(&progress), Arc::clone(&metrics));
        let complete = CompleteStores {
            by_barriers: CompleteStores::NONE.into(),
            by_high_watermarks: CompleteStores::NONE.into(),
        };
        Self { progress, barriers, complete, memory, metrics }
    }

    /// The node's budget.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The high watermarks, asked for after this call.
    ///
    /// # Errors
    /// When the log did not name them.
    pub fn high_watermarks(&self) -> impl Future<Output = Result<HighWatermarks, Failed>> + Send + use<> {
        self.barriers.high_watermarks(None)
    }

    /// Refuses every barrier from here on: the node stops.
    pub fn close(&self) {
        self.barriers.close();
    }

    /// Waits until this node's store has what a read must see, of a key or, without one, of all of them. The read that follows
    /// counts only if [`ConsistentReads::confirm`] says so.
    ///
    /// # Errors
    /// When the store has not, within the time that the caller waits.
    pub async fn reach(&self, key: Scope<'_>, demand: &Demand) -> Result<Reached, ConsistencyError> {
        let counted = Counted::new(&self.metrics, demand.consistency);
        let outcome = self.wait(key, demand).await;
        counted.end(match &outcome {
            Ok(_) => "reached",
            Err(ConsistencyError::Wrong(_)) => "refused",
            Err(ConsistencyError::NotReached { timed_out: true, .. }) => "timed_out",
            Err(ConsistencyError::NotReached { .. } | ConsistencyError::Memory(_)) => "unavailable",
        });
        outcome
    }

    /// The error of a read of a key whose record the store can't be sure of.
    #[must_use]
    pub fn in_doubt(&self, key: &str) -> ConsistencyError {
        let why = "what this node holds of the key is in doubt, for as long as compaction waits; another node may know";
        self.not_reached(Some(key), why.to_owned())
    }

    /// The error of a scan whose page has such a key.
    #[must_use]
    pub fn scan_in_doubt(&self, key: &str) -> ConsistencyError {
        let why = format!(
            "what this node holds of the key '{key}', which belongs in this page, is in doubt, for as long as compaction waits; another node may know"
        );
        self.not_reached(None, why)
    }

    /// Whether the store that was read is the one that had been reached.
    ///
    /// # Errors
    /// When it was replaced meanwhile.
    pub fn confirm(&self, key: Scope<'_>, reached: Reached) -> Result<(), ConsistencyError> {
        if self.progress.store_number() == Some(reached.store_number) {
            return Ok(());
        }
        Err(self.not_reached(key, WaitError::StoreReplaced.to_string()))
    }

    async fn wait(&self, key: Scope<'_>, demand: &Demand) -> Result<Reached, ConsistencyError> {
        let deadline = Instant::now() + demand.timeout;
        let _memory = self.memory.take(WAIT_BYTES + size_of_val(demand.session.positions()))?;
        let number = self.progress.store_number();
        let store_number = number.ok_or_else(|| self.not_reached(key, WaitError::NotServing.to_string()))?;
        let complete_since = match demand.consistency {
            Consistency::Eventual => None,
            Consistency::Session => {
                self.session(key, demand, deadline).await?;
                None
            }
            level @ (Consistency::Latest | Consistency::Strong) => {
                if !self.progress.log_answers() {
                    let why = format!("the log does not answer, and consistency={level} has to ask it");
                    return Err(self.not_reached(key, why));
                }
                let asked = async {
                    match level {
                        Consistency::Strong => self.strong(key, store_number).await,
                        _ => self.latest(key, store_number, demand, deadline).await,
                    }
                };
                let asked = timeout_at(deadline, asked).await;
                Some(asked.map_err(|_| self.too_late(key, demand, &format!("consistency={level}")))??)
            }
        };
        if let Some(most) = demand.max_staleness {
            self.check_staleness(key, store_number, most, complete_since)?;
        }
        Ok(Reached { store_number })
    }

    /// Waits for the positions of a session that the read is of.
    async fn session(
        &self,
        key: Scope<'_>,
        demand: &Demand,
        deadline: Instant,
    ) -> Result<(), ConsistencyError> {
        let partitions = self.progress.partition_count();
        let foreign = |position: &&Position| position.partition as usize >= partitions;
        if let Some(foreign) = demand.session.positions().iter().find(foreign) {
            return Err(ConsistencyError::Wrong(format!(
                "position: there is no partition {}; the topic has {partitions}",
                foreign.partition
            )));
        }
        match key {
            Some(key) => {
                let of_key = demand.session.of(self.progress.applied_for(key.as_bytes()).partition);
                if let Some(position) = of_key {
                    self.applied(Some(key), position, demand, deadline).await?;
                }
            }
            None => {
                for position in demand.session.positions() {
                    self.applied(None, *position, demand, deadline).await?;
                }
            }
        }
        Ok(())
    }

    /// Appends barriers, and waits until they are applied. Returns since when the store has what it has.
    async fn strong(&self, key: Scope<'_>, store_number: u64) -> Result<Moment, ConsistencyError> {
        let failed = |why| self.not_reached(key, format!("the barrier of a strong read failed: {why}"));
        let is_complete = self.complete.by_barriers.load(Ordering::Relaxed) == store_number;
        if let Some(partition) = self.partition_of(key.filter(|_| is_complete)) {
            return self.barriers.pass(partition).await.map_err(failed);
        }
        let partitions = self.progress.partition_count();
        let all = (0..partitions).map(|partition| self.barriers.pass(partition as i32));
        let appended = try_join_all(all).await.map_err(failed)?;
        self.complete.by_barriers.store(store_number, Ordering::Relaxed);
        let now = self.progress.clock().now();
        Ok(appended.into_iter().min().unwrap_or(now))
    }

    /// Where a key's writes go.
    fn partition_of(&self, key: Scope<'_>) -> Option<i32> {
        key.map(|key| self.progress.applied_for(key.as_bytes()).partition)
    }

    /// The one partition whose high watermark tells how new what the store has of a key is; `None` if all do.
    fn partition_to_ask(&self, key: Scope<'_>, store_number: u64) -> Option<i32> {
        let complete = &self.complete.by_high_watermarks;
        if complete.load(Ordering::Relaxed) != store_number {
            // Since the number of partitions is known, no high watermark of any has been reached.
            self.progress.staleness(None)?;
            complete.store(store_number, Ordering::Relaxed);
        }
        self.partition_of(key)
    }

    /// Asks for high watermarks, and waits until they are reached.
    async fn latest(
        &self,
        key: Scope<'_>,
        store_number: u64,
        demand: &Demand,
        deadline: Instant,
    ) -> Result<Moment, ConsistencyError> {
        let answer = self.barriers.high_watermarks(self.partition_to_ask(key, store_number)).await;
        let answer = answer.map_err(|why| self.not_reached(key, why.to_string()))?;
        for last in &*answer.last {
            self.applied(key, *last, demand, deadline).await?;
        }
        Ok(answer.asked_at)
    }

    /// Whether the store has everything that was appended until so long ago.
    fn check_staleness(
        &self,
        key: Scope<'_>,
        store_number: u64,
        most: Duration,
        complete_since: Option<Moment>,
    ) -> Result<(), ConsistencyError> {
        let known = self.progress.staleness(self.partition_to_ask(key, store_number));
        let asked = complete_since.map(|moment| self.progress.clock().now().since(moment));
        let age = known.into_iter().chain(asked).min();
        if age.is_some_and(|age| age <= most) {
            return Ok(());
        }
        let known = age.map_or_else(
            || "does not know since when it has everything".to_owned(),
            |age| format!("has everything only until {} ms ago", age.as_millis()),
        );
        let most = most.as_millis();
        Err(self
            .not_reached(key, format!("this node {known}, and {most} ms were asked for with max_staleness")))
    }

    async fn applied(
        &self,
        key: Scope<'_>,
        position: Position,
        demand: &Demand,
        deadline: Instant,
    ) -> Result<(), ConsistencyError> {
        match self.progress.applied(position, deadline).await {
            Ok(()) => Ok(()),
            Err(WaitError::NotInTime) => Err(self.too_late(key, demand, &position.to_string())),
            Err(why) => Err(self.not_reached(key, why.to_string())),
        }
    }

    fn too_late(&self, key: Scope<'_>, demand: &Demand, what: &str) -> ConsistencyError {
        let why = format!("{what} was not reached within {} ms", demand.timeout.as_millis());
        ConsistencyError::NotReached { why, applied: self.applied_text(key), timed_out: true }
    }

    fn not_reached(&self, key: Scope<'_>, why: String) -> ConsistencyError {
        ConsistencyError::NotReached { why, applied: self.applied_text(key), timed_out: false }
    }

    /// How far this node is, as far as a read is concerned.
    fn applied_text(&self, key: Scope<'_>) -> String {
        let applied: SessionPosition = match key {
            Some(key) => std::iter::once(self.progress.applied_for(key.as_bytes())).collect(),
            None => {
                let next = (0..).zip(self.progress.next_offsets());
                next.map(|(partition, next)| next.applied(partition)).collect()
            }
        };
        applied.to_string()
    }
}

/// A wait that is counted by what came of it, also when its caller goes away.
struct Counted<'a> {
    metrics: &'a Metrics,
    level: &'static str,
    began: Instant,
    outcome: &'static str,
}

impl<'a> Counted<'a> {
    fn new(metrics: &'a Metrics, level: Consistency) -> Self {
        metrics.read_waits_under_way.inc();
        Self { metrics, level: level.name(), began: Instant::now(), outcome: "cancelled" }
    }

    fn end(mut self, outcome: &'static str) {
        self.outcome = outcome;
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        let Self { metrics, level, began, outcome } = *self;
        metrics.read_waits_under_way.dec();
        metrics.read_waits.with_label_values(&[level, outcome]).inc();
        metrics.read_wait_seconds.with_label_values(&[level]).observe(began.elapsed().as_secs_f64());
    }
}

#[cfg(test)]
mod tests;
