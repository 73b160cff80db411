//! What Prometheus sees. One registry a node, since `dev` runs several nodes in one process.

use std::fmt::Debug;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus::core::{Atomic, GenericGaugeVec};
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::cluster::{Membership, MembershipState};
use crate::log::{AppendError, Appended, LogStatistics};
use crate::replication::progress::Progress;
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
    appends: IntCounterVec,
    append_seconds: Histogram,
    pub peer_reads: IntCounterVec,
    pub peer_read_seconds: Histogram,
    pub connections: IntGaugeVec,
    pub connections_limit: IntGauge,
    pub rpc_connections_refused: IntCounter,
    pub request_memory_refusals: IntCounter,
    pub keys_swept: IntCounter,
    pub records_trimmed: IntCounter,
    pub records_void: IntCounter,
    pub tombstones_sent: IntCounter,
    pub repairs_sent: IntCounter,
    pub trimmer: IntGauge,
    pub snapshots_installed: IntCounter,
    pub snapshots_served: IntCounter,
    /// What is filled in at a scrape; one scrape at a time.
    scraped: Mutex<Scraped>,
}

/// Metrics that are read off other parts at the moment of a scrape. Those that may be unknown have a registry's entry
/// without a series until they are known, which takes a vector, with or without labels.
struct Scraped {
    ready: IntGauge,
    heartbeat_age: Gauge,
    applied_offset: IntGaugeVec,
    high_watermark: IntGaugeVec,
    high_watermark_age: GaugeVec,
    lag_records: IntGaugeVec,
    lag_seconds: GaugeVec,
    caught_up: IntGauge,
    restored: IntGauge,
    restored_ratio: GaugeVec,
    restore_remaining: GaugeVec,
    restore_duration: GaugeVec,
    request_memory: IntGauge,
    request_memory_limit: IntGauge,
    members: IntGauge,
    membership_connected: IntGauge,
    registered: IntGauge,
    sessions: IntCounter,
    log: LogMetrics,
    store: StoreMetrics,
}

struct LogMetrics {
    producer_queue: [IntGaugeVec; 3],
    reader_queue: [IntGaugeVec; 2],
    client_sent: IntCounterVec,
    client_received: IntCounterVec,
    broker_up: IntGaugeVec,
    broker_rtt: GaugeVec,
    broker_throttle: GaugeVec,
    broker_errors: IntCounterVec,
    broker_timeouts: IntCounterVec,
}

struct StoreMetrics {
    records: IntGauge,
    pending_repairs: IntGauge,
    bytes: IntGauge,
    map_bytes: IntGauge,
    used_pages: IntGauge,
    free_pages: IntGauge,
    page_bytes: IntGauge,
    disk_free: IntGaugeVec,
    disk_size: IntGaugeVec,
    cache_records: IntGauge,
    cache_bytes: IntGauge,
    cache_capacity: IntGauge,
    cache_hits: IntCounter,
    cache_misses: IntCounter,
    cache_evictions: IntCounter,
}

/// Series that are there before their first event, so that a rate sees it.
const REQUEST_OUTCOMES: [(&str, &[&str]); 3] = [
    ("get", &["found", "missing", "refused", "unavailable", "failed"]),
    ("set", &["ok", "refused", "unavailable", "failed"]),
    ("delete", &["ok", "refused", "unavailable", "failed"]),
];
const APPEND_OUTCOMES: [&str; 4] = ["acknowledged", "not_taken", "unknown", "too_large"];
const PEER_OUTCOMES: [&str; 5] = ["found", "gone", "missing", "timeout", "no_answer"];

/// 10 µs to 5 s.
const SECONDS: [f64; 14] =
    [0.000_01, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 5.0];

/// What is read at the moment of a scrape.
pub struct Snapshot<'a> {
    pub progress: &'a Progress,
    pub store: Option<StoreStats>,
    pub log: LogStatistics,
    pub membership: &'a dyn Membership,
    pub ready: bool,
    /// Bytes in use, and the limit.
    pub request_memory: (u64, u64),
}

impl Metrics {
    /// # Errors
    /// When two metrics have the same name.
    #[allow(clippy::too_many_lines)] // It is a list.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let r = &registry;
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
            appends: counters(
                r,
                "appends_total",
                "Records handed to the log's client, by what came of it.",
                &["outcome"],
            )?,
            append_seconds: histogram(
                r,
                "append_duration_seconds",
                "Time from a record's hand-over to the log's client until it was acknowledged.",
                &SECONDS,
            )?,
            peer_reads: counters(
                r,
                "peer_reads_total",
                "Misses asked of the other members, by what came of it.",
                &["outcome"],
            )?,
            peer_read_seconds: histogram(
                r,
                "peer_read_duration_seconds",
                "Time until the other members had settled a miss, or had been given up.",
                &SECONDS,
            )?,
            connections: gauges(r, "connections", "Open connections.", &["interface"])?,
            connections_limit: gauge(r, "connections_limit", "MAX_CONNECTIONS, of each interface.")?,
            rpc_connections_refused: counter(
                r,
                "rpc_connections_refused_total",
                "RPC connections closed at once because there were too many.",
            )?,
            request_memory_refusals: counter(
                r,
                "request_memory_refusals_total",
                "Times that a request or an answer found REQUEST_MEMORY spent.",
            )?,
            keys_swept: counter(
                r,
                "keys_swept_total",
                "Keys whose value was dropped since they expired, and other writers' tombstones forgotten.",
            )?,
            records_trimmed: counter(
                r,
                "records_trimmed_total",
                "Records that a tombstone of a trimmer removed.",
            )?,
            records_void: counter(
                r,
                "records_void_total",
                "Records that took no effect and would outlive in compaction what decided before them: trimmers' that came too late, and such as can't be decoded.",
            )?,
            tombstones_sent: counter(
                r,
                "trim_tombstones_sent_total",
                "Tombstones that this node sent as a trimmer.",
            )?,
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
            repairs_sent: counter(
                r,
                "trim_repairs_sent_total",
                "Records that this node sent once more, to repair.",
            )?,
            trimmer: gauge(
                r,
                "trimmer",
                "1 while this node trims the log: it is elected, and the topic fit.",
            )?,
            scraped: Mutex::new(Scraped::new(r)?),
            registry,
        };
        for interface in ["http", "rpc"] {
            metrics.connections.with_label_values(&[interface]);
            for (operation, outcomes) in REQUEST_OUTCOMES {
                metrics.request_seconds.with_label_values(&[interface, operation]);
                for outcome in outcomes {
                    metrics.requests.with_label_values(&[interface, operation, outcome]);
                }
            }
        }
        for outcome in APPEND_OUTCOMES {
            metrics.appends.with_label_values(&[outcome]);
        }
        for outcome in PEER_OUTCOMES {
            metrics.peer_reads.with_label_values(&[outcome]);
        }
        let build =
            gauges(&metrics.registry, "build_info", "1, with the version.", &["version", "revision"])?;
        let revision = option_env!("BITACORA_REVISION").unwrap_or("unknown");
        build.with_label_values(&[env!("CARGO_PKG_VERSION"), revision]).set(1);
        metrics.registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        Ok(metrics)
    }

    /// Counts an append that the log has settled.
    pub fn appended(&self, outcome: &Result<Appended, AppendError>, took: Duration) {
        let outcome = match outcome {
            Ok(_) => {
                self.append_seconds.observe(took.as_secs_f64());
                "acknowledged"
            }
            Err(AppendError::NotTaken(_)) => "not_taken",
            Err(AppendError::Unknown(_)) => "unknown",
            Err(AppendError::TooLarge(_)) => "too_large",
        };
        self.appends.with_label_values(&[outcome]).inc();
    }

    #[cfg(test)]
    pub(crate) fn appends(&self, outcome: &str) -> u64 {
        self.appends.with_label_values(&[outcome]).get()
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
        let scraped = self.scraped.lock().unwrap_or_else(PoisonError::into_inner);
        scraped.replica(now);
        scraped.log.fill(&now.log);
        if let Some(store) = &now.store {
            scraped.store.fill(store);
        }
        TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .unwrap_or_else(|error| format!("# {error}\n"))
    }
}

impl Scraped {
    fn new(r: &Registry) -> prometheus::Result<Self> {
        let partition = &["partition"];
        Ok(Self {
            ready: gauge(r, "ready", "1 when the node is ready for requests.")?,
            heartbeat_age: float_gauge(
                r,
                "replica_heartbeat_age_seconds",
                "Time since the replica's thread last showed a sign of life.",
            )?,
            applied_offset: gauges(r, "applied_offset", "Offset of the last record applied.", partition)?,
            high_watermark: gauges(
                r,
                "high_watermark_offset",
                "High watermark (exclusive) as last learnt.",
                partition,
            )?,
            high_watermark_age: float_gauges(
                r,
                "high_watermark_age_seconds",
                "Time since the high watermark was asked for.",
                partition,
            )?,
            lag_records: gauges(
                r,
                "lag_records",
                "Offsets between the next offset and the high watermark.",
                partition,
            )?,
            lag_seconds: float_gauges(
                r,
                "lag_seconds",
                "Time since the log first reached what is still to be applied.",
                partition,
            )?,
            caught_up: gauge(r, "caught_up", "1 when everything up to fresh high watermarks is applied.")?,
            restored: gauge(r, "restored", "1 when the store has been caught up at some time.")?,
            restored_ratio: float_gauges(
                r,
                "restored_ratio",
                "Part of the offsets to read at the start that has been read.",
                &[],
            )?,
            restore_remaining: float_gauges(
                r,
                "restore_remaining_seconds",
                "Estimate of the restore's time left, from the speed so far.",
                &[],
            )?,
            restore_duration: float_gauges(
                r,
                "restore_duration_seconds",
                "Time from the process's start until it was caught up.",
                &[],
            )?,
            request_memory: gauge(
                r,
                "request_memory_bytes",
                "Memory that requests and answers under way take.",
            )?,
            request_memory_limit: gauge(r, "request_memory_limit_bytes", "REQUEST_MEMORY.")?,
            members: gauge(r, "members", "Members of the cluster that this node knows, itself included.")?,
            membership_connected: gauge(
                r,
                "membership_connected",
                "1 while the membership (ZooKeeper) answers.",
            )?,
            registered: gauge(
                r,
                "registered",
                "1 while ZooKeeper answers and holds this node's own entries.",
            )?,
            sessions: counter(
                r,
                "zookeeper_sessions_total",
                "ZooKeeper sessions under which this node has registered.",
            )?,
            log: LogMetrics::new(r)?,
            store: StoreMetrics::new(r)?,
        })
    }

    fn replica(&self, now: &Snapshot<'_>) {
        self.ready.set(now.ready.into());
        self.heartbeat_age.set(now.progress.heartbeat_age().as_secs_f64());
        for partition in now.progress.partitions() {
            let label = &[partition.partition.to_string()];
            self.applied_offset.with_label_values(label).set(partition.applied);
            set(&self.high_watermark, label, partition.high_watermark);
            let age = partition.high_watermark_age_ms.map(|age| age as f64 / 1e3);
            set(&self.high_watermark_age, label, age);
            set(&self.lag_records, label, partition.lag.map(u64::cast_signed));
            set(&self.lag_seconds, label, partition.lag_seconds);
        }
        self.caught_up.set(now.progress.caught_up().into());
        let restore = now.progress.restore();
        self.restored.set(restore.done.into());
        set(&self.restored_ratio, NONE, restore.fraction);
        set(&self.restore_remaining, NONE, restore.remaining_seconds);
        set(&self.restore_duration, NONE, restore.seconds);
        let (used, limit) = now.request_memory;
        self.request_memory.set(used.cast_signed());
        self.request_memory_limit.set(limit.cast_signed());
        self.members.set(now.membership.members().len().cast_signed() as i64);
        let connected = !matches!(now.membership.state(), MembershipState::Disconnected { .. });
        self.membership_connected.set(connected.into());
        self.registered.set(now.membership.registered().into());
        advance(&self.sessions, now.membership.sessions());
    }
}

impl LogMetrics {
    fn new(r: &Registry) -> prometheus::Result<Self> {
        let broker = &["client", "broker"];
        Ok(Self {
            producer_queue: [
                gauges(r, "producer_queue_records", "Records that wait for their acknowledgement.", &[])?,
                gauges(r, "producer_queue_bytes", "Bytes of them.", &[])?,
                gauges(r, "producer_queue_limit_bytes", "Writes are refused beyond.", &[])?,
            ],
            reader_queue: [
                gauges(r, "kafka_reader_queue_records", "Records fetched and not yet taken.", &[])?,
                gauges(r, "kafka_reader_queue_bytes", "Bytes of them.", &[])?,
            ],
            client_sent: counters(r, "kafka_sent_bytes_total", "Bytes sent to brokers.", &["client"])?,
            client_received: counters(
                r,
                "kafka_received_bytes_total",
                "Bytes received from brokers.",
                &["client"],
            )?,
            broker_up: gauges(r, "kafka_broker_up", "1 while connected.", broker)?,
            broker_rtt: float_gauges(
                r,
                "kafka_broker_rtt_seconds",
                "Round trip, mean of the last interval.",
                broker,
            )?,
            broker_throttle: float_gauges(
                r,
                "kafka_broker_throttle_seconds",
                "Throttling by the broker, mean of the last interval.",
                broker,
            )?,
            broker_errors: counters(
                r,
                "kafka_broker_errors_total",
                "Failed transmissions and receptions.",
                broker,
            )?,
            broker_timeouts: counters(
                r,
                "kafka_broker_request_timeouts_total",
                "Requests that timed out.",
                broker,
            )?,
        })
    }

    fn fill(&self, log: &LogStatistics) {
        let queue = log.producer_queue.as_ref();
        let figures = queue.map(|queue| [queue.records, queue.bytes, queue.limit_bytes]);
        for (index, metric) in self.producer_queue.iter().enumerate() {
            set(metric, NONE, figures.map(|figures| figures[index].cast_signed()));
        }
        let figures = log.reader_queue.as_ref().map(|queue| [queue.records, queue.bytes]);
        for (index, metric) in self.reader_queue.iter().enumerate() {
            set(metric, NONE, figures.map(|figures| figures[index].cast_signed()));
        }
        // Brokers come and go; a client that is made anew counts from 0, as a counter may.
        for metric in [&self.client_sent, &self.client_received, &self.broker_errors, &self.broker_timeouts] {
            metric.reset();
        }
        self.broker_up.reset();
        self.broker_rtt.reset();
        self.broker_throttle.reset();
        for client in &log.clients {
            self.client_sent.with_label_values(&[client.client]).inc_by(client.sent_bytes);
            self.client_received.with_label_values(&[client.client]).inc_by(client.received_bytes);
            for broker in &client.brokers {
                let labels = &[client.client, &broker.broker];
                self.broker_up.with_label_values(labels).set(broker.up.into());
                set(&self.broker_rtt, labels, broker.rtt);
                self.broker_throttle.with_label_values(labels).set(broker.throttle);
                self.broker_errors.with_label_values(labels).inc_by(broker.errors);
                self.broker_timeouts.with_label_values(labels).inc_by(broker.request_timeouts);
            }
        }
    }
}

impl StoreMetrics {
    fn new(r: &Registry) -> prometheus::Result<Self> {
        Ok(Self {
            records: gauge(r, "store_records", "Keys in the store, delete markers included.")?,
            pending_repairs: gauge(
                r,
                "pending_repairs",
                "Keys with records of trimmers that are not repaired yet.",
            )?,
            bytes: gauge(r, "store_bytes", "Size of the store's file.")?,
            map_bytes: gauge(r, "store_map_bytes", "Size of LMDB's map.")?,
            used_pages: gauge(r, "store_used_pages", "LMDB pages that hold something.")?,
            free_pages: gauge(r, "store_free_pages", "LMDB pages of the file that will be used again.")?,
            page_bytes: gauge(r, "store_page_bytes", "Size of a page.")?,
            disk_free: gauges(r, "data_dir_free_bytes", "Free on the file system of DATA_DIR.", &[])?,
            disk_size: gauges(r, "data_dir_size_bytes", "Size of that file system.", &[])?,
            cache_records: gauge(r, "cache_records", "Records in the cache.")?,
            cache_bytes: gauge(r, "cache_bytes", "Memory of the records in the cache.")?,
            cache_capacity: gauge(r, "cache_capacity_bytes", "CACHE_BYTES.")?,
            cache_hits: counter(r, "cache_hits_total", "Reads answered by the cache.")?,
            cache_misses: counter(r, "cache_misses_total", "Reads that went to the store.")?,
            cache_evictions: counter(
                r,
                "cache_evictions_total",
                "Records that left the cache for want of room.",
            )?,
        })
    }

    fn fill(&self, store: &StoreStats) {
        for (metric, value) in [
            (&self.records, store.records),
            (&self.pending_repairs, store.pending_repairs),
            (&self.bytes, store.bytes),
            (&self.map_bytes, store.map_bytes),
            (&self.used_pages, store.used_pages),
            (&self.free_pages, store.free_pages),
            (&self.page_bytes, store.page_bytes),
            (&self.cache_records, store.cache_records),
            (&self.cache_bytes, store.cache_bytes),
            (&self.cache_capacity, store.cache_capacity_bytes),
        ] {
            metric.set(value.cast_signed());
        }
        set(&self.disk_free, NONE, store.disk.map(|disk| disk.free.cast_signed()));
        set(&self.disk_size, NONE, store.disk.map(|disk| disk.size.cast_signed()));
        advance(&self.cache_hits, store.cache_hits);
        advance(&self.cache_misses, store.cache_misses);
        advance(&self.cache_evictions, store.cache_evictions);
    }
}

/// No labels.
const NONE: &[&str] = &[];

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

fn float_gauges(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<GaugeVec> {
    register(registry, GaugeVec::new(opts(name, help), labels)?)
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
