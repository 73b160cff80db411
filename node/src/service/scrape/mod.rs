//! What `/metrics` shows: the counters of [`crate::metrics`], and figures that are read off the node's parts when they are
//! asked for.

mod log;
mod replica;
mod store;

use std::fmt::Debug;

use parking_lot::Mutex;
use prometheus::core::{Atomic, GenericGaugeVec};
use prometheus::{IntCounter, IntGauge, Registry, TextEncoder};

use self::log::LogMetrics;
use self::replica::ReplicaMetrics;
use self::store::StoreMetrics;
use crate::cluster::{Membership, MembershipState};
use crate::log::LogStatistics;
use crate::log_lines;
use crate::metrics::registry::{counter, declare_metrics, gauge};
use crate::replication::progress::Progress;
use crate::store::StoreStats;

/// Fills in and writes out a node's metrics.
pub struct Scrape {
    registry: Registry,
    /// One scrape at a time.
    gauges: Mutex<Gauges>,
}

/// What is read at the moment of a scrape.
pub struct Figures<'a> {
    pub ready: bool,
    pub progress: &'a Progress,
    /// `None` when the store can't be read.
    pub store: Option<StoreStats>,
    pub log: LogStatistics,
    pub membership: &'a dyn Membership,
    /// Bytes in use, and the limit.
    pub request_memory: (u64, u64),
}

declare_metrics! {
    /// Metrics that are read off other parts. Those that may be unknown have a registry's entry without a series until they
    /// are known, which takes a vector, with or without labels.
    struct Gauges {
        ready: IntGauge = gauge("ready", "1 when the node is ready for requests."),
        replica: ReplicaMetrics = ReplicaMetrics::register(),
        members: IntGauge = gauge("members", "Members of the cluster that this node knows, itself included."),
        membership_connected: IntGauge = gauge("membership_connected", "1 while the membership (ZooKeeper) answers."),
        registered: IntGauge = gauge("registered", "1 while ZooKeeper answers and holds this node's own entries."),
        sessions: IntCounter =
            counter("zookeeper_sessions_total", "ZooKeeper sessions under which this node has registered."),
        request_memory: IntGauge = gauge("request_memory_bytes", "Memory that requests and answers under way take."),
        request_memory_limit: IntGauge = gauge("request_memory_limit_bytes", "REQUEST_MEMORY."),
        log_lines_dropped: IntCounter =
            counter("log_lines_dropped_total", "Log lines that could not be written, or that waited for a reader in vain."),
        log: LogMetrics = LogMetrics::register(),
        store: StoreMetrics = StoreMetrics::register(),
    }
}

impl Scrape {
    /// # Errors
    /// When two metrics have the same name.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let gauges = Gauges::register(registry)?;
        Ok(Self { registry: registry.clone(), gauges: Mutex::new(gauges) })
    }

    /// The exposition text, format 0.0.4.
    #[must_use]
    pub fn text(&self, now: &Figures<'_>) -> String {
        let gauges = self.gauges.lock();
        gauges.fill(now);
        TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .unwrap_or_else(|error| format!("# {error}\n"))
    }
}

impl Gauges {
    fn fill(&self, now: &Figures<'_>) {
        self.ready.set(now.ready.into());
        self.replica.fill(now.progress);
        self.members.set(now.membership.members().len().cast_signed() as i64);
        let connected = !matches!(now.membership.state(), MembershipState::Disconnected { .. });
        self.membership_connected.set(connected.into());
        self.registered.set(now.membership.registered().into());
        advance(&self.sessions, now.membership.sessions());
        let (used, limit) = now.request_memory;
        self.request_memory.set(used.cast_signed());
        self.request_memory_limit.set(limit.cast_signed());
        advance(&self.log_lines_dropped, log_lines::dropped());
        self.log.fill(&now.log);
        if let Some(store) = &now.store {
            self.store.fill(store);
        }
    }
}

const NO_LABELS: &[&str] = &[];

/// What is not known has no series.
fn set<P: Atomic>(metric: &GenericGaugeVec<P>, labels: &[impl AsRef<str> + Debug], value: Option<P::T>) {
    match value {
        Some(value) => metric.with_label_values(labels).set(value),
        None => drop(metric.remove_label_values(labels)),
    }
}

/// For what counts by itself: a counter of this crate can only be moved on.
fn advance(metric: &IntCounter, to: u64) {
    metric.inc_by(to.saturating_sub(metric.get()));
}
