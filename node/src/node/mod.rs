//! A node: its parts, and how they are put together. How they are taken apart again is in [`stop`].

mod stop;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

pub use self::stop::StopTimes;
use crate::cluster::{Address, Membership};
use crate::data_dir::DataDir;
use crate::http;
use crate::log::Log;
use crate::metrics::Metrics;
use crate::replication::progress::{Phase, Progress};
use crate::replication::snapshot::{Fetcher, SnapshotSource, Snapshots};
use crate::replication::{self, Replica};
use crate::rpc::{self, Limits};
use crate::service::Service;
use crate::service::peers::Peers;
use crate::service::reads::Reads;
use crate::service::scans::Scans;
use crate::service::writes::Writes;
use crate::settings::{NodeSettings, SnapshotUse};
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

/// A running node.
pub struct Node {
    log: Arc<dyn Log>,
    membership: Arc<dyn Membership>,
    replica: Replica,
    trimming: Trimming,
    http: http::Server,
    rpc: rpc::Server,
    announcer: JoinHandle<()>,
    service: Arc<Service>,
    drain_delay: Duration,
    shutdown_grace: Duration,
    // Last, so that the folder stays locked until the store is closed.
    data_dir: DataDir,
}

/// What several parts of a node share.
struct Shared {
    log: Arc<dyn Log>,
    membership: Arc<dyn Membership>,
    store: Arc<Store>,
    progress: Arc<Progress>,
    metrics: Arc<Metrics>,
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
        let shared = Shared { log, membership, store, progress: Arc::new(Progress::default()), metrics };
        let service = Arc::new(service(&shared, address, &settings)?);
        let replica = replica(&shared, &service, &settings)?;
        let trimming = trimming(&shared, &settings)?;
        let http =
            http::Server::start(listener, &service, settings.max_connections, settings.idle_timeout);
        let limits = rpc_limits(&settings)?;
        let rpc = rpc::Server::start(rpc_listener, Arc::clone(&service), limits);
        let Shared { log, membership, progress, .. } = shared;
        let announcer = tokio::spawn(announce(progress, Arc::clone(&membership)));
        let NodeSettings { drain_delay, shutdown_grace, .. } = settings;
        Ok(Self {
            log,
            membership,
            replica,
            trimming,
            http,
            rpc,
            announcer,
            service,
            drain_delay,
            shutdown_grace,
            data_dir,
        })
    }

    #[must_use]
    pub fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.service.progress)
    }
}

fn service(shared: &Shared, address: Address, settings: &NodeSettings) -> Result<Service> {
    let Shared { log, membership, store, progress, metrics } = shared;
    let max_value_bytes = usize::try_from(settings.max_value_bytes).context("MAX_VALUE_BYTES")?;
    let peers = Peers::new(
        Arc::clone(membership),
        Arc::clone(progress),
        address.api(),
        settings.external_request_timeout,
        max_value_bytes,
        Arc::clone(metrics),
    )?;
    Ok(Service {
        reads: Arc::new(Reads::new(Arc::clone(store), Arc::clone(progress), peers, settings.peer_reads)),
        scans: Scans::new(Arc::clone(store), Arc::clone(progress)),
        writes: Writes::new(Arc::clone(log), max_value_bytes, Arc::clone(metrics)),
        log: Arc::clone(log),
        store: Arc::clone(store),
        progress: Arc::clone(progress),
        membership: Arc::clone(membership),
        metrics: Arc::clone(metrics),
        address,
        max_value_bytes,
        request_timeout: settings.request_timeout,
        stopping: false.into(),
        snapshots: Snapshots::new(
            Arc::clone(store),
            Arc::clone(progress),
            Arc::clone(metrics),
            settings.snapshot_rate,
        ),
    })
}

fn replica(shared: &Shared, service: &Service, settings: &NodeSettings) -> Result<Replica> {
    let snapshots: Option<Arc<dyn SnapshotSource>> = match settings.snapshot {
        SnapshotUse::Auto => {
            Some(Arc::new(Fetcher::new(Arc::clone(&shared.membership), service.address.api())?))
        }
        SnapshotUse::Never => None,
    };
    Replica::start(replication::Parts {
        log: Arc::clone(&shared.log),
        store: Arc::clone(&shared.store),
        progress: Arc::clone(&shared.progress),
        metrics: Arc::clone(&shared.metrics),
        delete_retention: settings.delete_retention,
        snapshots,
    })
}

fn trimming(shared: &Shared, settings: &NodeSettings) -> Result<Trimming> {
    Ok(Trimming::start(trimming::Parts {
        log: Arc::clone(&shared.log),
        membership: Arc::clone(&shared.membership),
        store: Arc::clone(&shared.store),
        progress: Arc::clone(&shared.progress),
        metrics: Arc::clone(&shared.metrics),
        retention: settings.delete_retention,
    })?)
}

fn rpc_limits(settings: &NodeSettings) -> Result<Limits> {
    let max_value_bytes = usize::try_from(settings.max_value_bytes).context("MAX_VALUE_BYTES")?;
    let frame_bytes = usize::try_from(settings.max_frame_bytes).context("MAX_FRAME_BYTES")?;
    Ok(Limits {
        connections: settings.max_connections as usize,
        frame_bytes: frame_bytes.max(max_value_bytes + FRAME_OVERHEAD_BYTES),
        idle: settings.idle_timeout,
    })
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
