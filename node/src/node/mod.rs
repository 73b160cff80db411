//! A node: its parts, and how they are put together. How they are taken apart again is in [`stop`].

mod adjustable;
mod stop;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use bitacora_protocol::tls::host_of;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use self::adjustable::Adjustable;
pub use self::stop::StopTimes;
use crate::cluster::{Address, Membership};
use crate::data_dir::DataDir;
use crate::http;
use crate::http_client::MemberClients;
use crate::log::Log;
use crate::metrics::Metrics;
use crate::replication::decisions::Decisions;
use crate::replication::feed::Feed;
use crate::replication::progress::Progress;
use crate::replication::snapshot::{Fetcher, SnapshotSource, SnapshotUse, Snapshots};
use crate::replication::{self, Replica};
use crate::rpc;
use crate::server::access::Access;
use crate::server::tls::Tls;
use crate::service::Service;
use crate::service::changes::{self, Changes};
use crate::service::conditional::{self, ConditionalWrites, NodeAccess, WritesWithOptions};
use crate::service::consistency::ConsistentReads;
use crate::service::digests::Digests;
use crate::service::level::LogLevel;
use crate::service::members::Members;
use crate::service::memory::Memory;
use crate::service::peers::{self, Peers};
use crate::service::readiness::Readiness;
use crate::service::reads::Reads;
use crate::service::scans::Scans;
use crate::service::scrape::Scrape;
use crate::service::status::NodeStatus;
use crate::service::visibility::Visibility;
use crate::service::writes::Writes;
use crate::settings::{LiveSettings, NodeSettings};
use crate::store::Store;
use crate::telemetry::Telemetry;
use crate::trimming::{self, Trimming};

/// Between two looks whether all threads and tasks go on.
const THREAD_CHECK_INTERVAL: Duration = Duration::from_millis(500);

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
    /// Whether nodes of the original system read the topic, too: they stop at tombstones, and don't know conditional records.
    pub original_nodes: bool,
    pub settings: NodeSettings,
    /// Tells of each SIGHUP, at which files are read again.
    pub hangups: watch::Receiver<()>,
}

/// A running node.
pub struct Node {
    log: Arc<dyn Log>,
    membership: Arc<dyn Membership>,
    store: Arc<Store>,
    feed: Arc<Feed>,
    replica: Replica,
    trimming: Trimming,
    http: http::Server,
    rpc: rpc::Server,
    announcer: JoinHandle<()>,
    comparer: JoinHandle<()>,
    /// Follows `TOKENS_FILE` and `MEMBER_TOKEN_FILE`.
    tokens: JoinHandle<()>,
    /// Follows the files of TLS.
    certificates: JoinHandle<()>,
    service: Arc<Service>,
    readiness: Arc<Readiness>,
    progress: Arc<Progress>,
    telemetry: Telemetry,
    metrics: Arc<Metrics>,
    adjustable: Adjustable,
    drain_delay: Duration,
    shutdown_grace: Duration,
    // Last, so that the folder stays locked until the store is closed.
    data_dir: DataDir,
}

/// What several parts of a node share, and what they are made by.
struct Shared {
    log: Arc<dyn Log>,
    membership: Arc<dyn Membership>,
    store: Arc<Store>,
    progress: Arc<Progress>,
    metrics: Arc<Metrics>,
    /// Told by the replica, waited for by who sends conditional writes.
    decisions: Arc<Decisions>,
    /// Told by the replica, followed by who watches.
    feed: Arc<Feed>,
    telemetry: Telemetry,
    memory: Memory,
    access: Arc<Access>,
    tls: Option<Arc<Tls>>,
    clients: MemberClients,
    /// `host:API_PORT`
    address: String,
    max_value_bytes: usize,
    original_nodes: bool,
    adjustable: Adjustable,
    settings: NodeSettings,
}

impl Node {
    /// Starts a node. It answers at once; whether it is ready is told by [`Progress::unready`].
    ///
    /// # Errors
    /// When the store can't be opened; the text names the folder.
    pub fn start(parts: Parts) -> Result<Self> {
        let Parts {
            log,
            membership,
            data_dir,
            listener,
            rpc_listener,
            address,
            original_nodes,
            settings,
            hangups,
        } = parts;
        let shared = Shared::new(log, membership, &data_dir, address.api(), original_nodes, settings)?;
        let service = Arc::new(shared.service()?);
        let readiness = Arc::new(Readiness::new(Arc::clone(&shared.progress)));
        let digests = Arc::new(shared.digests()?);
        let replica = shared.replica()?;
        let trimming = shared.trimming()?;
        let http = http::Server::start(
            listener,
            shared.api(&service, &readiness, &digests)?,
            &readiness,
            shared.adjustable.http_connections.clone(),
            shared.settings.idle_timeout,
        );
        let rpc = rpc::Server::start(
            rpc_listener,
            rpc::Api {
                service: Arc::clone(&service),
                metrics: Arc::clone(&shared.metrics),
                slow: shared.adjustable.slow.clone(),
                telemetry: shared.telemetry.clone(),
                access: Arc::clone(&shared.access),
                tls: shared.tls.clone(),
            },
            &readiness,
            shared.rpc_limits()?,
        );
        let Shared {
            log,
            membership,
            store,
            feed,
            progress,
            telemetry,
            access,
            tls,
            clients,
            metrics,
            adjustable,
            settings,
            ..
        } = shared;
        let announcing = announce(Arc::clone(&progress), Arc::clone(&membership));
        let announcer = readiness.run_task("announcer", announcing);
        let comparer = readiness.run_task("digests", digests.run());
        let member_token_file = settings.member_token_file.clone();
        let tokens =
            Access::follow_files(access, member_token_file, clients, Arc::clone(&metrics), hangups.clone());
        let tokens = readiness.run_task("tokens", tokens);
        let certificates = readiness.run_task("certificates", Tls::follow_files(tls, hangups));
        let NodeSettings { drain_delay, shutdown_grace, .. } = settings;
        Ok(Self {
            log,
            membership,
            store,
            feed,
            replica,
            trimming,
            http,
            rpc,
            announcer,
            comparer,
            tokens,
            certificates,
            service,
            readiness,
            progress,
            telemetry,
            metrics,
            adjustable,
            drain_delay,
            shutdown_grace,
            data_dir,
        })
    }

    /// Takes other values for what may change. To be called on the runtime.
    pub fn adjust(&self, live: &LiveSettings) {
        self.adjustable.adjust(live);
    }

    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    #[must_use]
    pub fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }

    /// Waits until the node has failed for good, and tells why: its replica has given up, or one of its threads and tasks has
    /// ended. From then on it is neither ready nor live, and only to be stopped.
    pub async fn failed(&self) -> String {
        let thread = tokio::select! {
            reason = self.progress.failure() => return reason,
            thread = self.thread_ended() => thread,
        };
        // A thread that panicked has given its own reason already.
        self.progress.fail(format!("the thread '{thread}' has ended; restart the node"));
        self.progress.failure().await
    }

    async fn thread_ended(&self) -> &'static str {
        loop {
            if let Some(thread) = self.ended_thread() {
                return thread;
            }
            sleep(THREAD_CHECK_INTERVAL).await;
        }
    }

    /// The first thread or task that has ended.
    fn ended_thread(&self) -> Option<&'static str> {
        let threads = self.replica.ended_thread().or_else(|| self.trimming.ended_thread());
        threads
            .or_else(|| self.log.ended_thread())
            .or_else(|| self.membership.ended_task())
            .or_else(|| self.http.has_ended().then_some("HTTP"))
            .or_else(|| self.rpc.has_ended().then_some("RPC"))
            .or_else(|| self.comparer.is_finished().then_some("digests"))
            .or_else(|| self.certificates.is_finished().then_some("certificates"))
    }
}

impl Shared {
    fn new(
        log: Arc<dyn Log>,
        membership: Arc<dyn Membership>,
        data_dir: &DataDir,
        address: String,
        original_nodes: bool,
        settings: NodeSettings,
    ) -> Result<Self> {
        let metrics = Arc::new(Metrics::new()?);
        let (access, token) = settings.access(Arc::clone(&metrics)).map_err(|error| anyhow!(error))?;
        let tls = settings
            .tls(host_of(&address), Arc::clone(&metrics))
            .map_err(|error| anyhow!(error))?
            .map(Arc::new);
        let of_members = tls.as_ref().map(|tls| tls.members().client_config()).transpose()?;
        let clients = MemberClients::new(token.as_ref(), of_members);
        let adjustable = Adjustable::new(&settings, Arc::clone(&metrics));
        let telemetry = match &settings.otlp_endpoint {
            Some(endpoint) => Telemetry::export_to(endpoint, &address)?,
            None => Telemetry::off(),
        };
        let store = Store::open(&data_dir.path().join("store"), settings.cache_bytes);
        // It names its cause already.
        let store = Arc::new(store.map_err(|error| anyhow!(error.to_string()))?);
        let request_memory = settings.request_memory_bytes().map_err(|error| anyhow!(error))?;
        let memory = Memory::new(request_memory, metrics.request_memory_refusals.clone());
        let max_value_bytes = usize::try_from(settings.max_value_bytes).context("MAX_VALUE_BYTES")?;
        let progress = Arc::new(Progress::default());
        Ok(Self {
            log,
            membership,
            store,
            progress,
            metrics,
            decisions: Arc::default(),
            feed: Arc::default(),
            telemetry,
            memory,
            access: Arc::new(access),
            tls,
            clients,
            address,
            max_value_bytes,
            original_nodes,
            adjustable,
            settings,
        })
    }

    fn service(&self) -> Result<Service> {
        let peers = Peers::new(
            &self.clients,
            Arc::clone(&self.membership),
            Arc::clone(&self.progress),
            self.address.clone(),
            peers::Limits {
                timeout: self.settings.external_request_timeout,
                max_value_bytes: self.max_value_bytes,
            },
            self.memory.clone(),
            Arc::clone(&self.metrics),
        )?;
        let (store, progress) = (Arc::clone(&self.store), Arc::clone(&self.progress));
        let reads = Arc::new(Reads::new(store, progress, peers, self.settings.peer_reads));
        let writes = Writes::new(Arc::clone(&self.log), self.max_value_bytes, Arc::clone(&self.metrics));
        let (writes, memory) = (Arc::new(writes), self.memory.clone());
        let consistent = Arc::new(ConsistentReads::new(
            Arc::clone(&self.log),
            Arc::clone(&self.progress),
            memory.clone(),
            Arc::clone(&self.metrics),
        ));
        let conditional = Arc::new(self.conditional_writes(&writes, &consistent)?);
        let scans = Scans::new(Arc::clone(&self.store), Arc::clone(&self.progress));
        let visibility = Visibility::new(
            &self.clients,
            Arc::clone(&self.membership),
            Arc::clone(&self.progress),
            Arc::clone(&self.store),
            self.address.clone(),
        )?;
        let changes = Changes::new(changes::Parts {
            store: Arc::clone(&self.store),
            progress: Arc::clone(&self.progress),
            feed: Arc::clone(&self.feed),
            consistent: Arc::clone(&consistent),
            memory: memory.clone(),
            metrics: Arc::clone(&self.metrics),
            watchers: self.adjustable.watchers.clone(),
            retention: self.log.delete_retention(),
        });
        let parts = WritesWithOptions { reads, writes, consistent, conditional };
        Ok(Service::new(parts, scans, visibility, changes, memory))
    }

    fn conditional_writes(
        &self,
        writes: &Arc<Writes>,
        consistent: &Arc<ConsistentReads>,
    ) -> Result<ConditionalWrites<NodeAccess>> {
        let (store, progress) = (Arc::clone(&self.store), Arc::clone(&self.progress));
        let level = LogLevel::new(
            &self.clients,
            Arc::clone(&self.membership),
            self.address.clone(),
            Arc::clone(&store),
            Arc::clone(&progress),
            Arc::clone(writes),
        )?;
        let access = NodeAccess::new(conditional::Parts {
            log: Arc::clone(&self.log),
            store,
            progress,
            decisions: Arc::clone(&self.decisions),
            writes: Arc::clone(writes),
            consistent: Arc::clone(consistent),
            level,
            original_nodes: self.original_nodes,
            retention: self.settings.delete_retention,
        });
        Ok(ConditionalWrites::new(access, Arc::clone(&self.metrics)))
    }

    /// What the calls of the HTTP API lead to.
    fn api(
        &self,
        service: &Arc<Service>,
        readiness: &Arc<Readiness>,
        digests: &Arc<Digests>,
    ) -> Result<http::Api> {
        Ok(http::Api {
            service: Arc::clone(service),
            status: NodeStatus {
                address: self.address.clone(),
                readiness: Arc::clone(readiness),
                progress: Arc::clone(&self.progress),
                store: Arc::clone(&self.store),
                log: Arc::clone(&self.log),
                membership: Arc::clone(&self.membership),
                memory: self.memory.clone(),
                digests: Arc::clone(digests),
                scrape: Scrape::new(self.metrics.registry())?,
            },
            members: Members::new(&self.clients, Arc::clone(&self.membership), self.address.clone())?,
            snapshots: Snapshots::new(
                Arc::clone(&self.store),
                Arc::clone(&self.progress),
                Arc::clone(&self.metrics),
                Arc::clone(&self.adjustable.snapshot_rate),
            ),
            metrics: Arc::clone(&self.metrics),
            slow: self.adjustable.slow.clone(),
            telemetry: self.telemetry.clone(),
            access: Arc::clone(&self.access),
            tls: self.tls.clone(),
            origins: http::Origins::new(self.settings.allowed_origins.clone()),
            limits: http::Limits {
                max_value_bytes: self.max_value_bytes,
                request_timeout: self.settings.request_timeout,
            },
        })
    }

    fn digests(&self) -> Result<Digests> {
        Digests::new(
            &self.clients,
            Arc::clone(&self.membership),
            self.address.clone(),
            Arc::clone(&self.store),
            Arc::clone(&self.progress),
            Arc::clone(&self.metrics),
        )
    }

    fn rpc_limits(&self) -> Result<rpc::Limits> {
        Ok(rpc::Limits {
            connections: self.adjustable.rpc_connections.clone(),
            frame_bytes: usize::try_from(self.settings.frame_bytes()).context("MAX_FRAME_BYTES")?,
            idle: self.settings.idle_timeout,
            request_timeout: self.settings.request_timeout,
        })
    }

    fn replica(&self) -> Result<Replica> {
        let snapshots: Option<Arc<dyn SnapshotSource>> = match self.settings.snapshot {
            SnapshotUse::Auto => {
                let membership = Arc::clone(&self.membership);
                Some(Arc::new(Fetcher::new(self.clients.clone(), membership, self.address.clone())))
            }
            SnapshotUse::Never => None,
        };
        Replica::start(replication::Parts {
            log: Arc::clone(&self.log),
            store: Arc::clone(&self.store),
            progress: Arc::clone(&self.progress),
            metrics: Arc::clone(&self.metrics),
            decisions: Arc::clone(&self.decisions),
            feed: Arc::clone(&self.feed),
            telemetry: self.telemetry.clone(),
            delete_retention: self.settings.delete_retention,
            snapshots,
        })
    }

    fn trimming(&self) -> Result<Trimming> {
        Ok(Trimming::start(trimming::Parts {
            log: Arc::clone(&self.log),
            membership: Arc::clone(&self.membership),
            store: Arc::clone(&self.store),
            progress: Arc::clone(&self.progress),
            metrics: Arc::clone(&self.metrics),
            retention: self.settings.delete_retention,
            original_nodes: self.original_nodes,
        })?)
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
