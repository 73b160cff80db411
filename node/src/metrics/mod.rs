//! Counters that the node's parts move as they work, in one registry for each node, since `dev` runs several nodes in one
//! process. Knows no other part of the node.

pub mod registry;

use std::sync::OnceLock;
use std::time::Duration;

use prometheus::process_collector::ProcessCollector;
use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry};

use self::registry::{counter, counters, declare_metrics, gauge, gauges, histogram, histograms};

/// Series that are there before their first event, so that a rate sees it.
const REQUEST_OUTCOMES: [(&str, &[&str]); 3] = [
    ("get", &["found", "missing", "refused", "unavailable", "failed"]),
    ("set", &["ok", "not_met", "refused", "unavailable", "failed"]),
    ("delete", &["ok", "not_met", "refused", "unavailable", "failed"]),
];
/// What can become of an append.
pub const APPEND_OUTCOMES: [&str; 4] = ["acknowledged", "not_taken", "unknown", "too_large"];
const DIGEST_OUTCOMES: [&str; 2] = ["equal", "differs"];
const BARRIER_OUTCOMES: [&str; 2] = ["acknowledged", "failed"];
const READ_LEVELS: [&str; 4] = ["eventual", "session", "latest", "strong"];
const READ_WAIT_OUTCOMES: [&str; 5] = ["reached", "timed_out", "unavailable", "refused", "cancelled"];
const CONDITIONAL_OUTCOMES: [&str; 5] = ["in_effect", "not_met", "lost", "unclear", "refused"];
const WATCH_EVENTS: [&str; 3] = ["set", "delete", "gap"];
const ACCESS_REFUSALS: [&str; 5] = ["no_token", "unknown_token", "too_many", "scope", "prefix"];
const FILES: [&str; 4] = ["tokens", "member_token", "tls", "live_settings"];
const TLS_FAILURES: [&str; 6] =
    ["not_tls", "protocol", "certificate", "refused_by_client", "closed", "timeout"];
const PEER_OUTCOMES: [&str; 6] = ["found", "gone", "no_memory", "missing", "timeout", "no_answer"];

/// 10 µs to 5 s.
const SECONDS: [f64; 14] =
    [0.000_01, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 5.0];

declare_metrics! {
    /// A node's counters.
    pub struct Metrics {
        registry: Registry = itself(),
        http_gets_found: OnceLock<RequestSeries> = not_looked_up(),
        requests: IntCounterVec =
            counters("requests_total", "Requests answered.", &["interface", "operation", "outcome"]),
        request_seconds: HistogramVec =
            histograms("request_duration_seconds", "Time to answer a request.", &["interface", "operation"]),
        pub records_applied: IntCounter =
            counter("records_applied_total", "Records of the log that changed the store."),
        pub poison_records: IntCounter =
            counter("poison_records_total", "Records of the log that could not be decoded and were skipped."),
        pub resyncs: IntCounter = counter("resyncs_total", "Times the store did not fit the log and was built anew."),
        pub batch_records: Histogram = histogram(
            "apply_batch_records",
            "Records in one transaction of the store.",
            &[1.0, 10.0, 100.0, 1_000.0, 10_000.0],
        ),
        pub apply_seconds: Histogram =
            histogram("apply_duration_seconds", "Time of one transaction of the store.", &SECONDS),
        appends: IntCounterVec =
            counters("appends_total", "Records handed to the log's client, by what came of it.", &["outcome"]),
        append_seconds: Histogram = histogram(
            "append_duration_seconds",
            "Time from a record's hand-over to the log's client until it was acknowledged.",
            &SECONDS,
        ),
        conditional_writes: IntCounterVec =
            counters("conditional_writes_total", "Conditional writes, by what came of them.", &["outcome"]),
        conditional_write_seconds: Histogram = histogram(
            "conditional_write_duration_seconds",
            "Time of a conditional write until it was decided, refused or given up.",
            &SECONDS,
        ),
        pub conditional_attempts: IntCounter = counter(
            "conditional_write_attempts_total",
            "Records that this node appended for conditional writes.",
        ),
        pub conditional_repairs: IntCounter = counter(
            "conditional_write_repairs_total",
            "Records that this node sent once more because an attempt of its own, behind them, had taken no effect.",
        ),
        pub peer_reads: IntCounterVec =
            counters("peer_reads_total", "Misses asked of the other members, by what came of it.", &["outcome"]),
        pub peer_read_seconds: Histogram = histogram(
            "peer_read_duration_seconds",
            "Time until the other members had settled a miss, or had been given up.",
            &SECONDS,
        ),
        pub barriers: IntCounterVec = counters(
            "barriers_total",
            "Barriers of strong reads that were appended to a partition, by what came of it.",
            &["outcome"],
        ),
        pub read_waits: IntCounterVec = counters(
            "read_waits_total",
            "Reads that had to see more than what the node holds, by what came of the wait.",
            &["level", "outcome"],
        ),
        pub read_waits_under_way: IntGauge =
            gauge("read_waits_under_way", "Reads that wait for what they must see."),
        pub read_wait_seconds: HistogramVec = histograms(
            "read_wait_duration_seconds",
            "Time that a read waited for what it must see, whatever came of it.",
            &["level"],
        ),
        pub watchers: IntGauge =
            gauge("watchers", "Watches, and calls that wait for changes, under way."),
        pub watchers_limit: IntGauge = gauge("watchers_limit", "MAX_WATCHERS."),
        pub watchers_catching_up: IntGauge =
            gauge("watchers_catching_up", "Watchers that are told from the store what the buffer of changes does not hold."),
        pub watch_pages_waiting: IntGauge =
            gauge("watch_pages_waiting", "Watchers that wait for a page of the store."),
        pub watch_events: IntCounterVec =
            counters("watch_events_total", "Events that were sent to watchers.", &["event"]),
        pub watch_conflations: IntCounter = counter(
            "watch_conflations_total",
            "Times that a watcher fell behind the buffer of changes, so that states in between may have been left out.",
        ),
        pub watch_stalled: IntCounter = counter(
            "watch_stalled_total",
            "Watches that ended because their client took nothing, for most of REQUEST_TIMEOUT or while a large record that it had a part of was overwritten.",
        ),
        pub watch_buffer_bytes: IntGauge =
            gauge("watch_buffer_bytes", "Memory of the buffer of changes that all watchers read."),
        pub watch_delay_seconds: Histogram = histogram(
            "watch_delay_seconds",
            "Time from a record's write timestamp until a watcher was sent its event, of watchers that were not catching up.",
            &SECONDS,
        ),
        pub connections: IntGaugeVec = gauges("connections", "Open connections.", &["interface"]),
        pub connections_limit: IntGauge = gauge("connections_limit", "MAX_CONNECTIONS, of each interface."),
        pub rpc_connections_refused: IntCounter =
            counter("rpc_connections_refused_total", "RPC connections closed at once because there were too many."),
        pub access_refusals: IntCounterVec = counters(
            "access_refusals_total",
            "Calls that were refused for want of a good token, by what was wrong.",
            &["reason"],
        ),
        pub tokens: IntGauge = gauge("tokens", "Tokens that this node knows, of TOKENS_FILE."),
        pub tokens_file_failures: IntCounter = counter(
            "tokens_file_failures_total",
            "Times that TOKENS_FILE or MEMBER_TOKEN_FILE had changed and could not be taken: the tokens of before stay.",
        ),
        pub files_not_taken: IntGaugeVec = gauges(
            "files_not_taken",
            "1 while a file that had changed could not be taken, so that what it had before is in use.",
            &["file"],
        ),
        pub live_settings_failures: IntCounter = counter(
            "live_settings_failures_total",
            "Times that LIVE_SETTINGS_FILE had changed and could not be taken: the settings of before stay.",
        ),
        pub tls_handshake_failures: IntCounterVec = counters(
            "tls_handshake_failures_total",
            "Connections that ended before TLS was agreed on, by what was wrong.",
            &["interface", "reason"],
        ),
        pub tls_files_failures: IntCounter = counter(
            "tls_files_failures_total",
            "Times that a file of TLS had changed and could not be taken: the certificates of before stay.",
        ),
        pub tls_certificate_expiry: IntGauge = gauge(
            "tls_certificate_expiry_timestamp_seconds",
            "When the first of the certificates in TLS_CERTIFICATE_FILE runs out, Unix time; 0 without TLS.",
        ),
        pub request_memory_refusals: IntCounter =
            counter("request_memory_refusals_total", "Times that a request or an answer found REQUEST_MEMORY spent."),
        pub keys_swept: IntCounter = counter(
            "keys_swept_total",
            "Keys whose value was dropped since they expired, and other writers' tombstones forgotten.",
        ),
        pub records_trimmed: IntCounter =
            counter("records_trimmed_total", "Records that a tombstone of a trimmer removed."),
        pub repairs_contradicting: IntCounter = counter(
            "repairs_contradicting_total",
            "Repairs that said something else than this node held, which had read all there was: nodes have decided otherwise.",
        ),
        pub digest_comparisons: IntCounterVec = counters(
            "digest_comparisons_total",
            "Digests of a partition that were compared with a member's at the same position.",
            &["outcome"],
        ),
        pub digest_differs: IntGaugeVec = gauges(
            "digest_differs",
            "Members that hold other records of the partition than this node at the same position.",
            &["partition"],
        ),
        pub records_void: IntCounter = counter(
            "records_void_total",
            "Records that took no effect and would outlive in compaction what decided before them: trimmers' that came too late, and such as can't be decoded.",
        ),
        pub tombstones_sent: IntCounter =
            counter("trim_tombstones_sent_total", "Tombstones that this node sent as a trimmer."),
        pub snapshots_installed: IntCounter =
            counter("snapshots_installed_total", "Times the store was filled with another member's."),
        pub snapshots_served: IntCounter =
            counter("snapshots_served_total", "Copies of the store that others began to fetch."),
        pub repairs_sent: IntCounter =
            counter("trim_repairs_sent_total", "Records that this node sent once more, to repair."),
        pub trimmer: IntGauge = gauge("trimmer", "1 while this node trims the log: it is elected, and the topic fit."),
    }
}

/// The registry that the metrics are in, for those that come later.
#[expect(clippy::unnecessary_wraps, reason = "a row's function may fail")]
fn itself(registry: &Registry) -> prometheus::Result<Registry> {
    Ok(registry.clone())
}

/// Series that are looked up when they are needed first.
#[expect(clippy::unnecessary_wraps, reason = "a row's function may fail")]
fn not_looked_up(_: &Registry) -> prometheus::Result<OnceLock<RequestSeries>> {
    Ok(OnceLock::new())
}

impl Metrics {
    /// # Errors
    /// When two metrics have the same name.
    pub fn new() -> prometheus::Result<Self> {
        let metrics = Self::register(&Registry::new())?;
        metrics.begin_series();
        metrics.describe_process()?;
        Ok(metrics)
    }

    /// Makes the series that must be there before their first event.
    fn begin_series(&self) {
        for interface in ["http", "rpc"] {
            self.connections.with_label_values(&[interface]);
            for reason in TLS_FAILURES {
                self.tls_handshake_failures.with_label_values(&[interface, reason]);
            }
            for (operation, outcomes) in REQUEST_OUTCOMES {
                self.request_seconds.with_label_values(&[interface, operation]);
                for outcome in outcomes {
                    self.requests.with_label_values(&[interface, operation, outcome]);
                }
            }
        }
        for outcome in APPEND_OUTCOMES {
            self.appends.with_label_values(&[outcome]);
        }
        for outcome in DIGEST_OUTCOMES {
            self.digest_comparisons.with_label_values(&[outcome]);
        }
        for outcome in BARRIER_OUTCOMES {
            self.barriers.with_label_values(&[outcome]);
        }
        for level in READ_LEVELS {
            self.read_wait_seconds.with_label_values(&[level]);
            for outcome in READ_WAIT_OUTCOMES {
                self.read_waits.with_label_values(&[level, outcome]);
            }
        }
        for outcome in CONDITIONAL_OUTCOMES {
            self.conditional_writes.with_label_values(&[outcome]);
        }
        for event in WATCH_EVENTS {
            self.watch_events.with_label_values(&[event]);
        }
        for file in FILES {
            self.files_not_taken.with_label_values(&[file]);
        }
        for reason in ACCESS_REFUSALS {
            self.access_refusals.with_label_values(&[reason]);
        }
        for outcome in PEER_OUTCOMES {
            self.peer_reads.with_label_values(&[outcome]);
        }
    }

    fn describe_process(&self) -> prometheus::Result<()> {
        let build = gauges(&self.registry, "build_info", "1, with the version.", &["version", "revision"])?;
        let revision = option_env!("BITACORA_REVISION").unwrap_or("unknown");
        build.with_label_values(&[env!("CARGO_PKG_VERSION"), revision]).set(1);
        self.registry.register(Box::new(ProcessCollector::for_self()))
    }

    /// Where further metrics of this node are registered.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Notes whether a file that is read again when it changes could be taken; `file` is one of `tokens`, `member_token`, `tls` and
    /// `live_settings`.
    pub fn file_taken(&self, file: &str, is_taken: bool) {
        self.files_not_taken.with_label_values(&[file]).set(i64::from(!is_taken));
    }

    /// Counts appends that the log has settled together; `outcome` is one of `acknowledged`, `not_taken`, `unknown` and
    /// `too_large`.
    pub fn appended(&self, outcome: &str, count: u64, took: Duration) {
        if outcome == "acknowledged" {
            observe(&self.append_seconds, count, took);
        }
        self.appends.with_label_values(&[outcome]).inc_by(count);
    }

    /// Counts a conditional write; `outcome` is one of `in_effect`, `not_met`, `lost`, `unclear` and `refused`.
    pub fn conditional_write(&self, outcome: &str, took: Duration) {
        self.conditional_write_seconds.observe(took.as_secs_f64());
        self.conditional_writes.with_label_values(&[outcome]).inc();
    }

    #[cfg(test)]
    pub(crate) fn conditional_writes(&self, outcome: &str) -> u64 {
        self.conditional_writes.with_label_values(&[outcome]).get()
    }

    #[cfg(test)]
    pub(crate) fn appends(&self, outcome: &str) -> u64 {
        self.appends.with_label_values(&[outcome]).get()
    }

    /// Counts an answered request.
    pub fn request(&self, interface: &str, operation: &str, outcome: &str, took: Duration) {
        // Most of those that are counted one by one.
        if (interface, operation, outcome) == ("http", "get", "found") {
            let series = || self.request_series(interface, operation, outcome);
            return self.http_gets_found.get_or_init(series).add(1, took);
        }
        self.requests(interface, operation, outcome, 1, took);
    }

    /// Counts requests that were answered together.
    pub fn requests(&self, interface: &str, operation: &str, outcome: &str, count: u64, took: Duration) {
        self.request_series(interface, operation, outcome).add(count, took);
    }

    /// The series of such requests, for who counts them again and again: they are looked up by their labels once.
    #[must_use]
    pub fn request_series(&self, interface: &str, operation: &str, outcome: &str) -> RequestSeries {
        RequestSeries {
            answered: self.requests.with_label_values(&[interface, operation, outcome]),
            seconds: self.request_seconds.with_label_values(&[interface, operation]),
        }
    }
}

/// The series of requests with the same labels.
pub struct RequestSeries {
    answered: IntCounter,
    seconds: Histogram,
}

impl RequestSeries {
    /// Counts requests that were answered together.
    pub fn add(&self, count: u64, took: Duration) {
        self.answered.inc_by(count);
        observe(&self.seconds, count, took);
    }
}

/// Counts one in a gauge for as long as it lives, also if the task that it belongs to is aborted.
pub struct Counted(IntGauge);

impl Counted {
    #[must_use]
    pub fn one(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Observes the same time for so many at once.
fn observe(histogram: &Histogram, count: u64, took: Duration) {
    let took = took.as_secs_f64();
    if count == 1 {
        return histogram.observe(took);
    }
    let local = histogram.local();
    (0..count).for_each(|_| local.observe(took));
}
