//! Connections: accepted one by one within a limit, given to warp, drained at the end.

use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;

use super::Api;
use super::routes::routes;
use crate::server::socket::{Socket, accept};
use crate::service::readiness::Readiness;

/// A URI has at most 64 KiB; the rest is for headers.
const MAX_READ_BUFFER_BYTES: usize = 96 * 1024;

/// The HTTP interface of a node, open.
pub struct Server {
    stop: oneshot::Sender<Duration>,
    task: JoinHandle<()>,
}

impl Server {
    #[must_use]
    pub fn start(
        listener: TcpListener,
        api: Api,
        readiness: &Readiness,
        max_connections: u32,
        idle: Duration,
    ) -> Self {
        let (stop, stopped) = oneshot::channel();
        let task = readiness.run_interface("HTTP", run(listener, api, max_connections, idle, stopped));
        Self { stop, task }
    }

    /// Accepts no more connections and waits for the requests under way, no longer than `grace`.
    pub async fn stop(self, grace: Duration) {
        let _ = self.stop.send(grace);
        let _ = self.task.await;
    }
}

async fn run(
    listener: TcpListener,
    api: Api,
    max_connections: u32,
    idle: Duration,
    stopped: oneshot::Receiver<Duration>,
) {
    let open = api.metrics.connections.with_label_values(&["http"]);
    let connections = Arc::new(Semaphore::new(max_connections as usize));
    let graceful = GracefulShutdown::new();
    let mut http = http1::Builder::new();
    // Not `pipeline_flush`: it holds back an answer while unread bytes of the client's are in the buffer, also the answer
    // that closes the connection.
    // hyper's time for a head begins when the answer before it has left: it is the time that a connection may lie idle.
    http.timer(TokioTimer::new()).header_read_timeout(idle);
    // What a connection may take in before anybody reads it: a request's head, or a piece of its body.
    http.max_buf_size(MAX_READ_BUFFER_BYTES);
    let write_timeout = api.limits.request_timeout;
    let service = warp::service(routes(Arc::new(api)));
    let mut stopped = std::pin::pin!(stopped);
    let grace = loop {
        let accept = async {
            // Never closed.
            let permit = Arc::clone(&connections).acquire_owned().await.ok();
            (accept(&listener).await, permit)
        };
        let (stream, permit) = tokio::select! {
            accepted = accept => accepted,
            grace = &mut stopped => break grace.unwrap_or_default(),
        };
        let service = TowerToHyperService::new(service.clone());
        let connection =
            graceful.watch(http.serve_connection(TokioIo::new(Socket::new(stream, write_timeout)), service));
        let open = open.clone();
        tokio::spawn(async move {
            open.inc();
            // A client that goes away or speaks no HTTP is its own affair.
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended badly");
            }
            open.dec();
            drop(permit);
        });
    };
    drop(listener);
    if tokio::time::timeout(grace, graceful.shutdown()).await.is_err() {
        tracing::warn!("some requests did not end within the grace of {} ms", grace.as_millis());
    }
}
