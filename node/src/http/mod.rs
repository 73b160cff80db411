//! The HTTP interface: its routes, and a file for each group of calls.

mod answers;
mod batch;
mod body;
mod error;
mod health;
mod keys;
mod params;
mod routes;
mod scan;
mod server;
mod snapshot;
mod status;

use std::sync::Arc;
use std::time::{Duration, Instant};

use self::answers::Reply;
use self::error::HttpError;
pub use self::server::Server;
use crate::metrics::Metrics;
use crate::replication::snapshot::Snapshots;
use crate::service::Service;
use crate::service::status::NodeStatus;

/// What the calls lead to. Each handler is given the part that it needs.
pub struct Api {
    pub service: Arc<Service>,
    pub status: NodeStatus,
    pub snapshots: Snapshots,
    pub metrics: Arc<Metrics>,
    pub limits: Limits,
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

/// Counts a request that took since `started`, and makes its answer.
fn counted(metrics: &Metrics, operation: &'static str, started: Instant, outcome: Outcome) -> Reply {
    let (reply, outcome) = outcome.unwrap_or_else(|error| {
        let write = matches!(operation, "set" | "delete" | "batch");
        (error.reply(write), error.kind().outcome())
    });
    metrics.request("http", operation, outcome, started.elapsed());
    reply
}
