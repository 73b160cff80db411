//! The HTTP interface: its routes, and a file for each group of calls.

mod answers;
mod batch;
mod body;
mod changes;
mod conditions;
mod console;
mod digest_ranges;
mod error;
mod etag;
mod gate;
mod health;
mod keys;
mod media;
mod openapi;
mod options;
mod origins;
mod params;
mod plain_calls;
mod refusals;
mod routes;
mod scan;
mod server;
mod snapshot;
mod status;
mod watch;

use std::sync::Arc;
use std::time::{Duration, Instant};

use self::answers::Reply;
use self::error::HttpError;
pub use self::origins::{AllowedOrigin, Origins};
pub use self::server::Server;
use crate::metrics::Metrics;
use crate::replication::snapshot::Snapshots;
use crate::server::access::Access;
use crate::server::tls::Tls;
use crate::service::Service;
use crate::service::members::Members;
use crate::service::slow::{self, KeyHash, SlowRequests, Waits};
use crate::service::status::NodeStatus;
use crate::telemetry::{RequestSpan, Telemetry};

/// What the calls lead to. Each handler is given the part that it needs.
pub struct Api {
    pub service: Arc<Service>,
    pub status: NodeStatus,
    pub members: Members,
    pub snapshots: Snapshots,
    pub metrics: Arc<Metrics>,
    pub slow: SlowRequests,
    pub telemetry: Telemetry,
    pub limits: Limits,
    pub origins: Origins,
    pub access: Arc<Access>,
    /// If the interface speaks it.
    pub tls: Option<Arc<Tls>>,
}

/// What a request may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// `MAX_VALUE_BYTES`
    pub max_value_bytes: usize,
    /// `REQUEST_TIMEOUT`: for a body to arrive, and for a client to go without reading.
    pub request_timeout: Duration,
}

/// An answer and the `outcome` label of the metrics.
type Outcome = Result<(Reply, &'static str), HttpError>;

/// What is noted of a request while it is answered.
struct Notes {
    id: u64,
    operation: &'static str,
    started: Instant,
    /// For the line about a slow request.
    key: Option<KeyHash>,
    waits: Waits,
    span: RequestSpan,
}

impl Notes {
    fn new(id: u64, operation: &'static str, started: Instant, span: RequestSpan) -> Self {
        Self { id, operation, started, key: None, waits: Waits::default(), span }
    }

    fn key(&mut self, key: &str) {
        self.key = Some(KeyHash::of(key));
    }

    /// Waits for a body, and notes how long.
    async fn body<T>(&mut self, body: impl Future<Output = T>) -> T {
        let began = Instant::now();
        let body = body.await;
        self.waits.body = began.elapsed();
        body
    }

    /// Waits for the log, and notes how long.
    async fn acknowledged<T>(&mut self, write: impl Future<Output = T>) -> T {
        let began = Instant::now();
        let written = write.await;
        self.waits.log = began.elapsed();
        written
    }

    /// Counts the request, ends its span, and logs it if it was slow.
    fn finish(self, metrics: &Metrics, slow: &SlowRequests, outcome: &'static str) {
        let Self { id, operation, started, key, waits, span } = self;
        let took = started.elapsed();
        metrics.request("http", operation, outcome, took);
        let took = match operation {
            "batch" => waits.operations,
            // It waits for something to happen, as it was told to.
            "changes" => waits.store,
            _ => took,
        };
        let interface = "http";
        slow.log(&slow::FinishedRequest { id, interface, operation, outcome, key, took, waits: &waits });
        span.end(outcome);
    }
}

/// Counts a request, and makes its answer.
fn counted(metrics: &Metrics, slow: &SlowRequests, notes: Notes, outcome: Outcome) -> Reply {
    counted_as(metrics, slow, notes, outcome)
}

/// As [`counted`], with an answer of another kind.
fn counted_as<T: From<Reply>>(
    metrics: &Metrics,
    slow: &SlowRequests,
    notes: Notes,
    outcome: Result<(T, &'static str), HttpError>,
) -> T {
    let (reply, outcome) = outcome.unwrap_or_else(|error| {
        let write = matches!(notes.operation, "set" | "delete" | "batch");
        (error.reply(write).into(), error.kind().outcome())
    });
    notes.finish(metrics, slow, outcome);
    reply
}
