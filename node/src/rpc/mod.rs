//! The Avro RPC interface: frames in, frames out, many calls under way on a connection. `contract.md`, section 7.

mod answers;
mod connection;

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bitacora_protocol::rpc::{ForeignProtocol, FrameLimits, ProtocolHash};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};

use self::connection::Connection;
use crate::server::socket::{Socket, accept};
use crate::service::Service;

/// Java's encoder fills buffers of 8 KiB, so this is more than any frame needs.
const MAX_BUFFERS: usize = 16_384;
/// A client's protocol has a few KiB.
const MAX_PROTOCOL_BYTES: usize = 64 * 1024;
/// Protocols that are remembered. Clients of one kind share theirs.
const MAX_PROTOCOLS: usize = 256;
/// Connections that receive a large frame at a time; others wait before they read on. Bounds memory.
const MAX_LARGE_FRAMES: usize = 64;
/// Batches and scans at a time, in all connections; bounds the memory of their answers.
const MAX_HEAVY_CALLS: usize = 32;

/// What a connection may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub connections: usize,
    /// The largest frame.
    pub frame_bytes: usize,
    /// How long a connection may lie idle.
    pub idle: Duration,
}

/// The RPC interface of a node, open.
pub struct Server {
    closing: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// What all connections share.
struct Shared {
    service: Arc<Service>,
    limits: Limits,
    protocols: Protocols,
    large_frames: Arc<Semaphore>,
    heavy: Arc<Semaphore>,
}

/// The protocols of clients, by hash, so that a client sends its own only once to each node.
#[derive(Default)]
struct Protocols(RwLock<HashMap<ProtocolHash, Arc<ForeignProtocol>>>);

impl Server {
    #[must_use]
    pub fn start(listener: TcpListener, service: Arc<Service>, limits: Limits) -> Self {
        let (closing, closed) = watch::channel(false);
        let opener = Arc::clone(&service);
        let shared = Arc::new(Shared {
            service,
            limits,
            protocols: Protocols::default(),
            large_frames: Arc::new(Semaphore::new(MAX_LARGE_FRAMES)),
            heavy: Arc::new(Semaphore::new(MAX_HEAVY_CALLS)),
        });
        Self { closing, task: opener.keep_open("RPC", run(listener, shared, closed)) }
    }

    /// Accepts no more connections and refuses further calls; waits for those under way, no longer than `grace`.
    pub async fn stop(mut self, grace: Duration) {
        let _ = self.closing.send(true);
        if tokio::time::timeout(grace, &mut self.task).await.is_err() {
            tracing::warn!("some calls did not end within the grace of {} ms", grace.as_millis());
            self.task.abort();
        }
    }
}

async fn run(listener: TcpListener, shared: Arc<Shared>, mut closed: watch::Receiver<bool>) {
    let metrics = Arc::clone(&shared.service.metrics);
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            stream = accept(&listener) => stream,
            // Those that ended are forgotten.
            Some(_) = connections.join_next() => continue,
            _ = closed.changed() => break,
        };
        if connections.len() >= shared.limits.connections {
            // A client that waits for an answer would wait for long; one whose connection is closed goes elsewhere.
            metrics.rpc_connections_refused.inc();
            continue;
        }
        let socket = Socket::new(stream, shared.service.request_timeout);
        let connection = Connection::new(socket, Arc::clone(&shared), closed.clone());
        let open = metrics.connections.with_label_values(&["rpc"]);
        connections.spawn(async move {
            open.inc();
            let ended = connection.serve().await;
            open.dec();
            // A client that goes away or speaks no Avro is its own affair.
            if let Err(error) = ended {
                tracing::debug!(%error, "an RPC connection ended badly");
            }
        });
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

impl Protocols {
    fn get(&self, hash: &ProtocolHash) -> Option<Arc<ForeignProtocol>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(hash).cloned()
    }

    fn insert(&self, hash: ProtocolHash, protocol: Arc<ForeignProtocol>) {
        let mut protocols = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if protocols.len() >= MAX_PROTOCOLS {
            // Whoever is still there sends its own again.
            protocols.clear();
        }
        protocols.insert(hash, protocol);
    }
}

impl Limits {
    fn frames(&self) -> FrameLimits {
        FrameLimits { bytes: self.frame_bytes, buffers: MAX_BUFFERS }
    }
}
