//! What the node says of itself: `/health`, `/status` and the scrape of Prometheus.

use std::borrow::Cow;
use std::sync::Arc;

use bitacora_protocol::http::{CacheStatus, ComponentState, PartitionStatus, Status, StoreStatus};

use crate::cluster::{Membership, MembershipState};
use crate::log::{Level, Log};
use crate::replication::progress::{Phase, Progress};
use crate::service::digests::Digests;
use crate::service::memory::Memory;
use crate::service::readiness::Readiness;
use crate::service::scrape::{Figures, Scrape};
use crate::store::Store;

/// The parts of a node that are asked for their state. None of them is changed here.
pub struct NodeStatus {
    /// `host:API_PORT`, as the membership lists this node.
    pub address: String,
    pub readiness: Arc<Readiness>,
    pub progress: Arc<Progress>,
    pub store: Arc<Store>,
    pub log: Arc<dyn Log>,
    pub membership: Arc<dyn Membership>,
    pub memory: Memory,
    pub digests: Arc<Digests>,
    pub scrape: Scrape,
}

/// What `/health` answers.
pub struct Health {
    pub ready: bool,
    /// `OK` or `DOWN`, and what there is to say, each on a line of its own.
    pub text: String,
}

impl NodeStatus {
    /// Whether the node wants requests.
    #[must_use]
    pub fn health(&self) -> Health {
        let text = match self.readiness.unready() {
            Some(reason) => return Health { ready: false, text: format!("DOWN\n{reason}\n") },
            None if self.progress.caught_up() => "OK\n".to_owned(),
            None => self.behind(),
        };
        Health { ready: true, text }
    }

    /// Why the node has given up, if it has; its process is about to end.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        match self.progress.phase() {
            Phase::Failed(reason) => Some(reason),
            _ => None,
        }
    }

    fn behind(&self) -> String {
        let lag = self.progress.partitions().iter().try_fold(0, |sum, p| p.lag.map(|lag| sum + lag));
        let lag = lag.map_or_else(|| "unknown".to_owned(), |lag| lag.to_string());
        let why = self.progress.restore().rebuilding;
        let why = why.map_or_else(String::new, |why| {
            format!("; rebuilding the store, and reading the old one: {why}")
        });
        let blocked = match self.progress.phase() {
            Phase::Blocked(reason) => format!("; {reason}"),
            _ => String::new(),
        };
        format!("OK\nserving reads, not caught up: lag {lag}{why}{blocked}\n")
    }

    /// The document of `/status`.
    #[must_use]
    pub fn status(&self) -> Status {
        let unready = self.readiness.unready();
        let store = self.store.stats().ok();
        Status {
            node: self.address.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ready: unready.is_none(),
            unready,
            caught_up: self.progress.caught_up(),
            members: self.membership.members().to_vec(),
            membership: membership_state(self.membership.state()),
            log: log_state(self.progress.phase()),
            partitions: self.partitions(),
            restore: self.progress.restore(),
            log_level: Level::HIGHEST_KNOWN.0,
            differences: self.digests.differences(),
            store: store.map(|s| StoreStatus { records: s.records, bytes: s.bytes }),
            cache: store.map(|s| CacheStatus {
                records: s.cache_records,
                bytes: s.cache_bytes,
                capacity_bytes: s.cache_capacity_bytes,
                hits: s.cache_hits,
                misses: s.cache_misses,
            }),
        }
    }

    fn partitions(&self) -> Vec<PartitionStatus> {
        let mut partitions = self.progress.partitions();
        for (partition, digest) in partitions.iter_mut().zip(self.digests.now()) {
            partition.digest = digest;
        }
        partitions
    }

    /// The text of a scrape.
    #[must_use]
    pub fn metrics_text(&self) -> String {
        self.scrape.text(&Figures {
            progress: &self.progress,
            store: self.store.stats().ok(),
            log: self.log.statistics(),
            membership: &*self.membership,
            ready: self.readiness.unready().is_none(),
            request_memory: (self.memory.used(), self.memory.limit()),
        })
    }
}

fn log_state(phase: Phase) -> ComponentState {
    let (state, reason) = match phase {
        Phase::Connecting(reason) => ("connecting", Some(reason)),
        Phase::Reading => ("reading", None),
        Phase::Blocked(reason) => ("blocked", Some(reason)),
        Phase::Failed(reason) => ("failed", Some(reason)),
    };
    ComponentState { state: Cow::Borrowed(state), reason }
}

fn membership_state(state: MembershipState) -> ComponentState {
    let (state, reason) = match state {
        MembershipState::Fixed => ("fixed", None),
        MembershipState::Connected => ("connected", None),
        MembershipState::Disconnected { reason } => ("disconnected", Some(reason)),
    };
    ComponentState { state: Cow::Borrowed(state), reason }
}
