//! What Prometheus sees. One registry a node, since `dev` runs several nodes in one process.

use std::time::Duration;

use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use crate::progress::Progress;
use crate::store::StoreStats;

pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    request_seconds: HistogramVec,
    pub records_applied: IntCounter,
    pub poison_records: IntCounter,
    pub resyncs: IntCounter,
    pub batch_records: Histogram,
    pub apply_seconds: Histogram,
    pub peer_reads: IntCounterVec,
    pub connections: IntGauge,
    pub rpc_connections: IntGauge,
    pub rpc_connections_refused: IntCounter,
    applied_offset: IntGaugeVec,
    high_watermark: IntGaugeVec,
    lag_records: IntGaugeVec,
    ready: IntGauge,
    caught_up: IntGauge,
    restored_fraction: Gauge,
    members: IntGauge,
    membership_connected: IntGauge,
    store_records: IntGauge,
    store_bytes: IntGauge,
    cache_bytes: IntGauge,
    cache_hits: IntCounter,
    cache_misses: IntCounter,
    pub snapshots_installed: IntCounter,
    pub snapshots_served: IntCounter,
}

/// 10 µs to 5 s.
const SECONDS: [f64; 14] =
    [0.000_01, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 5.0];

/// What is read at the moment of a scrape.
pub struct Snapshot<'a> {
    pub progress: &'a Progress,
    pub store: Option<StoreStats>,
    pub members: usize,
    pub membership_connected: bool,
    pub ready: bool,
}

impl Metrics {
    /// # Errors
    /// When two metrics have the same name.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let r = &registry;
        let partition = &["partition"];
        let metrics = Self {
            requests: counters(
                r,
                "requests_total",
                "Requests answered.",
                &["interface", "operation", "outcome"],
            )?,
            request_seconds: histograms(
                r,
                "request_duration_seconds",
                "Time to answer a request.",
                &["interface", "operation"],
            )?,
            records_applied: counter(
                r,
                "records_applied_total",
                "Records of the log that changed the store.",
            )?,
            poison_records: counter(
                r,
                "poison_records_total",
                "Records of the log that could not be decoded and were skipped.",
            )?,
            resyncs: counter(r, "resyncs_total", "Times the store did not fit the log and was built anew.")?,
            batch_records: histogram(
                r,
                "apply_batch_records",
                "Records in one transaction of the store.",
                &[1.0, 10.0, 100.0, 1_000.0, 10_000.0],
            )?,
            apply_seconds: histogram(
                r,
                "apply_duration_seconds",
                "Time of one transaction of the store.",
                &SECONDS,
            )?,
            peer_reads: counters(
                r,
                "peer_reads_total",
                "Misses asked of the other members, by what came of it.",
                &["outcome"],
            )?,
            connections: gauge(r, "http_connections", "Open HTTP connections.")?,
            rpc_connections: gauge(r, "rpc_connections", "Open RPC connections.")?,
            rpc_connections_refused: counter(
                r,
                "rpc_connections_refused_total",
                "RPC connections closed at once because there were too many.",
            )?,
            applied_offset: gauges(r, "applied_offset", "Offset of the last record applied.", partition)?,
            high_watermark: gauges(
                r,
                "high_watermark_offset",
                "High watermark (exclusive) as last learnt.",
                partition,
            )?,
            lag_records: gauges(
                r,
                "lag_records",
                "Offsets between the next offset and the high watermark.",
                partition,
            )?,
            ready: gauge(r, "ready", "1 when the node is ready for requests.")?,
            caught_up: gauge(r, "caught_up", "1 when everything up to fresh high watermarks is applied.")?,
            restored_fraction: float_gauge(
                r,
                "restored_ratio",
                "Part of the offsets to read at the start that has been read.",
            )?,
            members: gauge(r, "members", "Members of the cluster that this node knows, itself included.")?,
            membership_connected: gauge(
                r,
                "membership_connected",
                "1 while the membership (ZooKeeper) answers.",
            )?,
            store_records: gauge(r, "store_records", "Keys in the store, delete markers included.")?,
            store_bytes: gauge(r, "store_bytes", "Size of the store's file.")?,
            cache_bytes: gauge(r, "cache_bytes", "Memory of the records in the cache.")?,
            cache_hits: counter(r, "cache_hits_total", "Reads answered by the cache.")?,
            cache_misses: counter(r, "cache_misses_total", "Reads that went to the store.")?,
            snapshots_installed: counter(
                r,
                "snapshots_installed_total",
                "Times the store was filled with another member's.",
            )?,
            snapshots_served: counter(
                r,
                "snapshots_served_total",
                "Copies of the store that others began to fetch.",
            )?,
            registry,
        };
        let build = gauges(&metrics.registry, "build_info", "1, with the version.", &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        metrics.registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        Ok(metrics)
    }

    /// Counts an answered request.
    pub fn request(&self, interface: &str, operation: &str, outcome: &str, took: Duration) {
        self.requests(interface, operation, outcome, 1, took);
    }

    /// Counts requests that were answered together.
    pub fn requests(&self, interface: &str, operation: &str, outcome: &str, count: u64, took: Duration) {
        self.requests.with_label_values(&[interface, operation, outcome]).inc_by(count);
        let seconds = self.request_seconds.with_label_values(&[interface, operation]);
        for _ in 0..count {
            seconds.observe(took.as_secs_f64());
        }
    }

    /// The exposition text, format 0.0.4.
    #[must_use]
    pub fn text(&self, now: &Snapshot<'_>) -> String {
        for partition in now.progress.partitions() {
            let label = partition.partition.to_string();
            self.applied_offset.with_label_values(&[&label]).set(partition.applied);
            if let Some((high_watermark, lag)) = partition.high_watermark.zip(partition.lag) {
                self.high_watermark.with_label_values(&[&label]).set(high_watermark);
                self.lag_records.with_label_values(&[&label]).set(lag.cast_signed());
            }
        }
        self.ready.set(now.ready.into());
        self.caught_up.set(now.progress.caught_up().into());
        self.restored_fraction.set(now.progress.restore().fraction.unwrap_or(0.0));
        self.members.set(now.members.cast_signed() as i64);
        self.membership_connected.set(now.membership_connected.into());
        if let Some(store) = now.store {
            self.store_records.set(store.records.cast_signed());
            self.store_bytes.set(store.bytes.cast_signed());
            self.cache_bytes.set(store.cache_bytes.cast_signed());
            // The store counts by itself; a counter of this crate can only be moved on.
            self.cache_hits.inc_by(store.cache_hits.saturating_sub(self.cache_hits.get()));
            self.cache_misses.inc_by(store.cache_misses.saturating_sub(self.cache_misses.get()));
        }
        TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .unwrap_or_else(|error| format!("# {error}\n"))
    }
}

fn register<M: prometheus::core::Collector + Clone + 'static>(
    registry: &Registry,
    metric: M,
) -> prometheus::Result<M> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(format!("bitacora_{name}"), help)
}

fn counter(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntCounter> {
    register(registry, IntCounter::with_opts(opts(name, help))?)
}

fn counters(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<IntCounterVec> {
    register(registry, IntCounterVec::new(opts(name, help), labels)?)
}

fn gauge(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntGauge> {
    register(registry, IntGauge::with_opts(opts(name, help))?)
}

fn float_gauge(registry: &Registry, name: &str, help: &str) -> prometheus::Result<Gauge> {
    register(registry, Gauge::with_opts(opts(name, help))?)
}

fn gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntGaugeVec> {
    register(registry, IntGaugeVec::new(opts(name, help), labels)?)
}

fn histogram(registry: &Registry, name: &str, help: &str, buckets: &[f64]) -> prometheus::Result<Histogram> {
    let opts = HistogramOpts { common_opts: opts(name, help), buckets: buckets.to_vec() };
    register(registry, Histogram::with_opts(opts)?)
}

fn histograms(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<HistogramVec> {
    let opts = HistogramOpts { common_opts: opts(name, help), buckets: SECONDS.to_vec() };
    register(registry, HistogramVec::new(opts, labels)?)
}
