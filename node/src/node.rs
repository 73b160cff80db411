//! A node: its parts, how they are put together, and how they are taken apart again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::cluster::{Address, Membership};
use crate::data_dir::DataDir;
use crate::http;
use crate::log::Log;
use crate::metrics::Metrics;
use crate::replication::progress::{Phase, Progress};
use crate::replication::snapshot::{Fetcher, SnapshotSource, SnapshotUse, Snapshots};
use crate::replication::{self, Replica};
use crate::rpc::{self, Limits};
use crate::service::Service;
use crate::service::memory::{self, Memory};
use crate::service::peers::Peers;
use crate::service::readiness::Readiness;
use crate::service::reads::Reads;
use crate::service::scans::Scans;
use crate::service::status::NodeStatus;
use crate::service::writes::Writes;
use crate::settings::NodeSettings;
use crate::store::Store;
use crate::trimming::{self, Trimming};

/// What a node is made of; `serve` and `dev` differ in the first two.
pub struct Parts {
    pub log: Arc<dyn Log>,
    pub membership: Arc<dyn Membership>,
    pub data_dir: DataDir,
    /// For the HTTP API.
    pub listener: TcpListener,
    /// For the Avro RPC.
    pub rpc_listener: TcpListener,
    pub address: Address,
    pub settings: NodeSettings,
}

/// What a call has beside its value, handshake and key included, at most.
const FRAME_OVERHEAD_BYTES: usize = 64 * 1024;

pub struct Node {
    log: Arc<dyn Log>,
    membership: Arc<dyn Membership>,
    replica: Replica,
    trimming: Trimming,
    http: http::Server,
    rpc: rpc::Server,
    announcer: JoinHandle<()>,
    readiness: Arc<Readiness>,
    progress: Arc<Progress>,
    drain_delay: Duration,
    grace: Duration,
    // Last, so that the folder stays locked until the store is closed.
    _data_dir: DataDir,
}

impl Node {
    /// Starts a node. It answers at once; whether it is ready is told by [`Progress::unready`].
    ///
    /// # Errors
    /// A sentence when the store can't be opened.
    pub fn start(parts: Parts) -> Result<Self> {
        let Parts { log, membership, data_dir, listener, rpc_listener, address, settings } = parts;
        let metrics = Arc::new(Metrics::new()?);
        metrics.connections_limit.set(settings.max_connections.into());
        let store = Store::open(&data_dir.path().join("store"), settings.cache_bytes);
        // It names its cause already.
        let store = Arc::new(store.map_err(|error| anyhow!(error.to_string()))?);
        let progress = Arc::new(Progress::default());
        let max_value_bytes = usize::try_from(settings.max_value_bytes).context("MAX_VALUE_BYTES")?;
        let memory = Memory::new(
            settings.request_memory.unwrap_or_else(memory::default_limit),
            metrics.request_memory_refusals.clone(),
        );
        let peers = Peers::new(
            Arc::clone(&membership),
            Arc::clone(&progress),
            address.api(),
            settings.external_request_timeout,
            max_value_bytes,
            memory.clone(),
            Arc::clone(&metrics),
        )?;
        let reads = Reads::new(Arc::clone(&store), Arc::clone(&progress), peers, settings.peer_reads);
        let service = Arc::new(Service::new(
            Arc::new(reads),
            Writes::new(Arc::clone(&log), max_value_bytes, Arc::clone(&metrics)),
            Scans::new(Arc::clone(&store), Arc::clone(&progress)),
            memory.clone(),
        ));
        let readiness = Arc::new(Readiness::new(Arc::clone(&progress)));
        let api = http::Api {
            service: Arc::clone(&service),
            status: NodeStatus {
                address: address.api(),
                readiness: Arc::clone(&readiness),
                progress: Arc::clone(&progress),
                store: Arc::clone(&store),
                log: Arc::clone(&log),
                membership: Arc::clone(&membership),
                memory,
                metrics: Arc::clone(&metrics),
            },
            snapshots: Snapshots::new(
                Arc::clone(&store),
                Arc::clone(&progress),
                Arc::clone(&metrics),
                settings.snapshot_rate,
            ),
            metrics: Arc::clone(&metrics),
            limits: http::Limits { max_value_bytes, request_timeout: settings.request_timeout },
        };
        let snapshots: Option<Arc<dyn SnapshotSource>> = match settings.snapshot {
            SnapshotUse::Auto => Some(Arc::new(Fetcher::new(Arc::clone(&membership), address.api())?)),
            SnapshotUse::Never => None,
        };
        let retention = settings.delete_retention;
        let replica = Replica::start(replication::Parts {
            log: Arc::clone(&log),
            store: Arc::clone(&store),
            progress: Arc::clone(&progress),
            metrics: Arc::clone(&metrics),
            delete_retention: retention,
            snapshots,
        })?;
        let trimming = Trimming::start(trimming::Parts {
            log: Arc::clone(&log),
            membership: Arc::clone(&membership),
            store,
            progress: Arc::clone(&progress),
            metrics: Arc::clone(&metrics),
            retention,
        })?;
        let http =
            http::Server::start(listener, api, &readiness, settings.max_connections, settings.idle_timeout);
        let limits = Limits {
            connections: settings.max_connections as usize,
            frame_bytes: usize::try_from(settings.max_frame_bytes)
                .context("MAX_FRAME_BYTES")?
                .max(max_value_bytes + FRAME_OVERHEAD_BYTES),
            idle: settings.idle_timeout,
            request_timeout: settings.request_timeout,
        };
        let rpc = rpc::Server::start(rpc_listener, service, metrics, &readiness, limits);
        let announcer = tokio::spawn(announce(Arc::clone(&progress), Arc::clone(&membership)));
        let (drain_delay, grace) = (settings.drain_delay, settings.shutdown_grace);
        Ok(Self {
            log,
            membership,
            replica,
            trimming,
            http,
            rpc,
            announcer,
            readiness,
            progress,
            drain_delay,
            grace,
            _data_dir: data_dir,
        })
    }

    #[must_use]
    pub fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }

    /// Stops in an order that loses nothing: unready and no member any more, so that no new requests come; those under
    /// way end; the log acknowledges what they wrote; the replica commits its batch; the store is closed.
    pub async fn stop(self) {
        let started = Instant::now();
        let step =
            |name: &str| tracing::info!(after_ms = started.elapsed().as_millis() as u64, "stopping: {name}");
        self.readiness.set_stopping();
        self.announcer.abort();
        step("leaving the cluster");
        self.membership.leave().await;
        if !self.drain_delay.is_zero() {
            step("waiting for load balancers");
            tokio::time::sleep(self.drain_delay).await;
        }
        step("finishing requests");
        tokio::join!(self.http.stop(self.grace), self.rpc.stop(self.grace));
        step("flushing writes");
        let (log, grace) = (self.log, self.grace);
        let (replica, trimming) = (self.replica, self.trimming);
        let closed = tokio::task::spawn_blocking(move || {
            trimming.stop();
            log.flush(grace);
            replica.stop();
        });
        if closed.await.is_err() {
            tracing::error!("a part of the node panicked while it stopped");
        }
        step("done");
    }
}

/// Makes the node a member once it is ready for requests.
async fn announce(progress: Arc<Progress>, membership: Arc<dyn Membership>) {
    let mut changed = progress.watch();
    while progress.unready().is_some() {
        if changed.changed().await.is_err() {
            return;
        }
    }
    membership.announce();
}

/// Waits until the replica has given up, and tells why.
pub async fn failed(progress: &Progress) -> String {
    let mut changed = progress.watch();
    loop {
        if let Phase::Failed(reason) = progress.phase() {
            return reason;
        }
        if changed.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
