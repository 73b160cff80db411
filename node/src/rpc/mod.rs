//! The Avro RPC interface: frames in, frames out, many calls under way on a connection.

mod answers;
mod calls;
mod connection;
mod handshake;
mod report;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bitacora_protocol::rpc::FrameLimits;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout_at;
use tracing::Instrument as _;

use self::connection::Connection;
use self::handshake::Protocols;
use crate::metrics::{Counted, Metrics};
use crate::permits::Permits;
use crate::server::access::Access;
use crate::server::socket::{Socket, accept};
use crate::server::tls::{Opening, Tls};
use crate::service::Service;
use crate::service::readiness::Readiness;
use crate::service::slow::{self, SlowRequests};
use crate::telemetry::Telemetry;

/// Java's encoder fills buffers of 8 KiB, so this is more than any frame needs.
const MAX_BUFFERS: usize = 16_384;
/// Batches and scans at a time, in all connections; bounds the memory of their answers.
const MAX_BULK_CALLS: usize = 32;

/// What a connection may cost.
#[derive(Clone)]
pub struct Limits {
    pub connections: Permits,
    /// The largest frame.
    pub frame_bytes: usize,
    /// How long a connection may lie idle.
    pub idle: Duration,
    /// How long a client may take over a frame, and go without reading its answers.
    pub request_timeout: Duration,
}

/// What calls lead to.
pub struct Api {
    pub service: Arc<Service>,
    pub metrics: Arc<Metrics>,
    pub slow: SlowRequests,
    pub telemetry: Telemetry,
    pub access: Arc<Access>,
    /// If the interface speaks it.
    pub tls: Option<Arc<Tls>>,
}

/// The RPC interface of a node, open.
pub struct Server {
    closing: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// What all connections share.
struct Shared {
    service: Arc<Service>,
    metrics: Arc<Metrics>,
    slow: SlowRequests,
    telemetry: Telemetry,
    access: Arc<Access>,
    opening: Opening,
    limits: Limits,
    protocols: Protocols,
    bulk_calls: Arc<Semaphore>,
}

impl Server {
    #[must_use]
    pub fn start(listener: TcpListener, api: Api, readiness: &Readiness, limits: Limits) -> Self {
        let Api { service, metrics, slow, telemetry, access, tls } = api;
        let (closing, closed) = watch::channel(false);
        let shared = Arc::new(Shared {
            service,
            metrics,
            slow,
            telemetry,
            access,
            opening: Opening::new(tls, "rpc"),
            limits,
            protocols: Protocols::default(),
            bulk_calls: Arc::new(Semaphore::new(MAX_BULK_CALLS)),
        });
        Self { closing, task: readiness.run_task("RPC", run(listener, shared, closed)) }
    }

    /// Whether it accepts no connections any more.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.task.is_finished()
    }

    /// Accepts no more connections and refuses further calls; waits for those under way until the deadline. Connections
    /// that are still open then are aborted.
    pub async fn stop(mut self, deadline: Instant) {
        let _ = self.closing.send(true);
        if timeout_at(deadline.into(), &mut self.task).await.is_err() {
            tracing::warn!("RPC calls did not end in time and are aborted");
            self.task.abort();
        }
    }
}

async fn run(listener: TcpListener, shared: Arc<Shared>, mut closed: watch::Receiver<bool>) {
    let metrics = Arc::clone(&shared.metrics);
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            stream = accept(&listener) => stream,
            // Those that ended are forgotten.
            Some(_) = connections.join_next() => continue,
            _ = closed.changed() => break,
        };
        let Some(permit) = shared.limits.connections.try_acquire() else {
            // A client that waits for an answer would wait for long; one whose connection is closed goes elsewhere.
            metrics.rpc_connections_refused.inc();
            continue;
        };
        // One that has gone already has none.
        let Ok(address) = stream.peer_addr() else { continue };
        let caller = Access::caller(&shared.access, "rpc", address.ip());
        let (shared, mut closed) = (Arc::clone(&shared), closed.clone());
        let open = Counted::one(&metrics.connections.with_label_values(&["rpc"]));
        let span = tracing::debug_span!("connection", id = slow::next_id(), interface = "rpc");
        let serve = async move {
            let _until_the_end = (open, permit);
            let stream = tokio::select! {
                biased;
                stream = shared.opening.open(stream, address.ip()) => stream,
                // Whoever still shakes hands is not waited for.
                _ = closed.changed() => None,
            };
            let Some(stream) = stream else { return };
            let socket = Socket::new(stream, shared.limits.request_timeout);
            let ended = Connection::new(socket, shared, caller, closed).serve().await;
            // A client that goes away or speaks no Avro is its own affair.
            if let Err(error) = ended {
                tracing::debug!(%error, "an RPC connection ended badly");
            }
        };
        connections.spawn(serve.instrument(span));
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

impl Limits {
    fn frames(&self) -> FrameLimits {
        FrameLimits { bytes: self.frame_bytes, buffers: MAX_BUFFERS }
    }
}
