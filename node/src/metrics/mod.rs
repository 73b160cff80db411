//! Counters that the node's parts move as they work, in one registry for each node, since `dev` runs several nodes in one
//! process. Knows no other part of the node.

pub mod registry;

use std::time::Duration;

use prometheus::process_collector::ProcessCollector;
use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry};

use self::registry::{Description, counter, counters, gauge, gauges, histogram, histograms};

/// Series that are there before their first event, so that a rate sees it.
const REQUEST_OUTCOMES: [(&str, &[&str]); 3] = [
    ("get", &["found", "missing", "refused", "unavailable", "failed"]),
    ("set", &["ok", "refused", "unavailable", "failed"]),
    ("delete", &["ok", "refused", "unavailable", "failed"]),
];
const APPEND_OUTCOMES: [&str; 4] = ["acknowledged", "not_taken", "unknown", "too_large"];
const PEER_OUTCOMES: [&str; 6] = ["found", "gone", "no_memory", "missing", "timeout", "no_answer"];

/// 10 µs to 5 s.
const SECONDS: [f64; 14] =
    [0.000_01, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 5.0];

/// A node's counters.
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
}

const REQUESTS: Description = Description { name: "requests_total", help: "Requests answered." };
const REQUEST_SECONDS: Description =
    Description { name: "request_duration_seconds", help: "Time to answer a request." };
const RECORDS_APPLIED: Description =
    Description { name: "records_applied_total", help: "Records of the log that changed the store." };
const POISON_RECORDS: Description = Description {
    name: "poison_records_total",
    help: "Records of the log that could not be decoded and were skipped.",
};
const RESYNCS: Description =
    Description { name: "resyncs_total", help: "Times the store did not fit the log and was built anew." };
const BATCH_RECORDS: Description =
    Description { name: "apply_batch_records", help: "Records in one transaction of the store." };
const APPLY_SECONDS: Description =
    Description { name: "apply_duration_seconds", help: "Time of one transaction of the store." };
const APPENDS: Description =
    Description { name: "appends_total", help: "Records handed to the log's client, by what came of it." };
const APPEND_SECONDS: Description = Description {
    name: "append_duration_seconds",
    help: "Time from a record's hand-over to the log's client until it was acknowledged.",
};
const PEER_READS: Description =
    Description { name: "peer_reads_total", help: "Misses asked of the other members, by what came of it." };
const PEER_READ_SECONDS: Description = Description {
    name: "peer_read_duration_seconds",
    help: "Time until the other members had settled a miss, or had been given up.",
};
const CONNECTIONS: Description = Description { name: "connections", help: "Open connections." };
const CONNECTIONS_LIMIT: Description =
    Description { name: "connections_limit", help: "MAX_CONNECTIONS, of each interface." };
const RPC_CONNECTIONS_REFUSED: Description = Description {
    name: "rpc_connections_refused_total",
    help: "RPC connections closed at once because there were too many.",
};
const REQUEST_MEMORY_REFUSALS: Description = Description {
    name: "request_memory_refusals_total",
    help: "Times that a request or an answer found REQUEST_MEMORY spent.",
};
const KEYS_SWEPT: Description = Description {
    name: "keys_swept_total",
    help: "Keys whose value was dropped since they expired, and other writers' tombstones forgotten.",
};
const RECORDS_TRIMMED: Description =
    Description { name: "records_trimmed_total", help: "Records that a tombstone of a trimmer removed." };
const RECORDS_VOID: Description = Description {
    name: "records_void_total",
    help: "Records that took no effect and would outlive in compaction what decided before them: trimmers' that came too late, and such as can't be decoded.",
};
const TOMBSTONES_SENT: Description =
    Description { name: "trim_tombstones_sent_total", help: "Tombstones that this node sent as a trimmer." };
const SNAPSHOTS_INSTALLED: Description = Description {
    name: "snapshots_installed_total",
    help: "Times the store was filled with another member's.",
};
const SNAPSHOTS_SERVED: Description =
    Description { name: "snapshots_served_total", help: "Copies of the store that others began to fetch." };
const REPAIRS_SENT: Description = Description {
    name: "trim_repairs_sent_total",
    help: "Records that this node sent once more, to repair.",
};
const TRIMMER: Description = Description {
    name: "trimmer",
    help: "1 while this node trims the log: it is elected, and the topic fit.",
};

const BUILD_INFO: Description = Description { name: "build_info", help: "1, with the version." };

impl Metrics {
    /// # Errors
    /// When two metrics have the same name.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let r = &registry;
        let metrics = Self {
            requests: counters(r, REQUESTS, &["interface", "operation", "outcome"])?,
            request_seconds: histograms(r, REQUEST_SECONDS, &["interface", "operation"])?,
            records_applied: counter(r, RECORDS_APPLIED)?,
            poison_records: counter(r, POISON_RECORDS)?,
            resyncs: counter(r, RESYNCS)?,
            batch_records: histogram(r, BATCH_RECORDS, &[1.0, 10.0, 100.0, 1_000.0, 10_000.0])?,
            apply_seconds: histogram(r, APPLY_SECONDS, &SECONDS)?,
            appends: counters(r, APPENDS, &["outcome"])?,
            append_seconds: histogram(r, APPEND_SECONDS, &SECONDS)?,
            peer_reads: counters(r, PEER_READS, &["outcome"])?,
            peer_read_seconds: histogram(r, PEER_READ_SECONDS, &SECONDS)?,
            connections: gauges(r, CONNECTIONS, &["interface"])?,
            connections_limit: gauge(r, CONNECTIONS_LIMIT)?,
            rpc_connections_refused: counter(r, RPC_CONNECTIONS_REFUSED)?,
            request_memory_refusals: counter(r, REQUEST_MEMORY_REFUSALS)?,
            keys_swept: counter(r, KEYS_SWEPT)?,
            records_trimmed: counter(r, RECORDS_TRIMMED)?,
            records_void: counter(r, RECORDS_VOID)?,
            tombstones_sent: counter(r, TOMBSTONES_SENT)?,
            snapshots_installed: counter(r, SNAPSHOTS_INSTALLED)?,
            snapshots_served: counter(r, SNAPSHOTS_SERVED)?,
            repairs_sent: counter(r, REPAIRS_SENT)?,
            trimmer: gauge(r, TRIMMER)?,
            registry,
        };
        metrics.begin_series();
        metrics.describe_process()?;
        Ok(metrics)
    }

    /// Makes the series that must be there before their first event.
    fn begin_series(&self) {
        for interface in ["http", "rpc"] {
            self.connections.with_label_values(&[interface]);
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
        for outcome in PEER_OUTCOMES {
            self.peer_reads.with_label_values(&[outcome]);
        }
    }

    fn describe_process(&self) -> prometheus::Result<()> {
        let build = gauges(&self.registry, BUILD_INFO, &["version", "revision"])?;
        let revision = option_env!("BITACORA_REVISION").unwrap_or("unknown");
        build.with_label_values(&[env!("CARGO_PKG_VERSION"), revision]).set(1);
        self.registry.register(Box::new(ProcessCollector::for_self()))
    }

    /// Where further metrics of this node are registered.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Counts an append that the log has settled; `outcome` is one of `acknowledged`, `not_taken`, `unknown` and
    /// `too_large`.
    pub fn appended(&self, outcome: &str, took: Duration) {
        if outcome == "acknowledged" {
            self.append_seconds.observe(took.as_secs_f64());
        }
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
}
