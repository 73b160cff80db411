//! Which node gets a call: the less loaded of two that are chosen at random among the healthy ones.
//!
//! A node that fails is ejected and tried again later, by one connection. If all are ejected, the least bad is used anyway.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use bitacora_protocol::rpc::Request;
use bitacora_protocol::tls::ClientTls;
use parking_lot::{Mutex, RwLock};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::connection::{Connection, Failure, Reply};
use crate::types::{NodeState, NodeStatus};

/// Failures in a row, other than of the connection, after which a node is ejected.
const MAX_FAILURES_IN_A_ROW: u32 = 3;
/// How long a node is out the first time, and at most; chance makes each up to twice as long, so that clients don't come back
/// all at once.
const SHORTEST_EJECTION: Duration = Duration::from_millis(100);
const LONGEST_EJECTION: Duration = Duration::from_secs(5);
/// The pause before the next connection after one that was of no use, and the longest one; chance makes each up to twice as
/// long. It is there for the last node, which gets calls even while it is ejected.
const SHORTEST_OPENING_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_OPENING_PAUSE: Duration = Duration::from_millis(250);
/// A node that has been healthy for longer than this is out for a short time again.
const FORGIVEN_AFTER: Duration = Duration::from_secs(10);

pub(crate) struct Pool {
    nodes: RwLock<Vec<Arc<Node>>>,
    connect_timeout: Duration,
    connections_per_node: usize,
    /// `Bearer TOKEN`, which every call shows.
    authorization: Option<Arc<str>>,
    tls: Option<ClientTls>,
}

pub(crate) struct Node {
    address: String,
    connect_timeout: Duration,
    authorization: Option<Arc<str>>,
    tls: Option<ClientTls>,
    links: Box<[Mutex<Link>]>,
    under_way: AtomicUsize,
    /// Failures in a row.
    failures_in_a_row: AtomicU32,
    ejected: AtomicBool,
    health: Mutex<Health>,
    opening: Mutex<Opening>,
    /// Whether that pauses.
    opening_failed: AtomicBool,
}

/// When the next connection may be opened.
struct Opening {
    not_before: Instant,
    /// Connections since the last answer that could not be made or broke.
    pauses: ExponentialBackoff,
}

struct Health {
    /// Why it is ejected, or was.
    reason: String,
    /// Ejections on top of each other.
    ejections: u32,
    /// How long each of them takes.
    pauses: ExponentialBackoff,
    /// When it came back.
    healthy_since: Instant,
    /// A task tries it again and again.
    is_probed: bool,
}

/// A connection, or the way to it.
enum Link {
    Idle,
    /// Who waits for it.
    Opening(Vec<oneshot::Sender<Result<Arc<Connection>, String>>>),
    Open(Arc<Connection>),
}

impl Pool {
    pub(crate) fn new(
        connect_timeout: Duration,
        connections_per_node: usize,
        authorization: Option<Arc<str>>,
        tls: Option<ClientTls>,
    ) -> Self {
        Self { nodes: RwLock::default(), connect_timeout, connections_per_node, authorization, tls }
    }

    fn nodes(&self) -> impl std::ops::Deref<Target = Vec<Arc<Node>>> + '_ {
        self.nodes.read()
    }

    /// Takes in who is new. Who is gone gets no more calls; its connections close when those under way have ended.
    pub(crate) fn set(&self, mut addresses: Vec<String>) {
        addresses.sort();
        addresses.dedup();
        if self.nodes().iter().map(|node| &node.address).eq(&addresses) {
            return;
        }
        tracing::info!(?addresses, "the nodes of the cluster");
        let mut nodes = self.nodes.write();
        let known = std::mem::take(&mut *nodes);
        *nodes = addresses
            .into_iter()
            .map(|address| match known.iter().find(|node| node.address == address) {
                Some(node) => Arc::clone(node),
                None => Arc::new(Node::new(address, self)),
            })
            .collect();
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes().len()
    }

    /// A node for the next call, rather not the one to avoid, and only as the last resort one that lacks the call; `None` if there is
    /// no node at all.
    pub(crate) fn pick(&self, avoid: Option<&Arc<Node>>, lacking: &[Arc<Node>]) -> Option<Arc<Node>> {
        let nodes = self.nodes();
        let healthy = || {
            nodes.iter().filter(|node| {
                !node.ejected.load(Ordering::Relaxed)
                    && avoid.is_none_or(|avoid| !Arc::ptr_eq(node, avoid))
                    && !is_among(node, lacking)
            })
        };
        let load = |node: &&Arc<Node>| node.under_way.load(Ordering::Relaxed);
        // It may change between two looks, so nothing here counts on what was seen before.
        let node = match healthy().count() {
            0 => None,
            1 => healthy().next(),
            count => {
                let one = fastrand::usize(..count);
                let other = (one + fastrand::usize(1..count)) % count;
                healthy().nth(one).into_iter().chain(healthy().nth(other)).min_by_key(load)
            }
        };
        let least_bad = || {
            nodes
                .iter()
                .min_by_key(|node| (is_among(node, lacking), node.badness(), load(node), fastrand::u32(..)))
        };
        node.or_else(least_bad).map(Arc::clone)
    }

    /// Whether a node is a member and healthy.
    pub(crate) fn is_healthy(&self, node: &Arc<Node>) -> bool {
        !node.ejected.load(Ordering::Relaxed) && is_among(node, &self.nodes())
    }

    pub(crate) fn status(&self) -> Vec<NodeStatus> {
        self.nodes().iter().map(|node| node.status()).collect()
    }
}

pub(crate) fn is_among(node: &Arc<Node>, nodes: &[Arc<Node>]) -> bool {
    nodes.iter().any(|other| Arc::ptr_eq(node, other))
}

impl Node {
    fn new(address: String, pool: &Pool) -> Self {
        Self {
            address,
            connect_timeout: pool.connect_timeout,
            authorization: pool.authorization.clone(),
            tls: pool.tls.clone(),
            links: (0..pool.connections_per_node).map(|_| Mutex::new(Link::Idle)).collect(),
            under_way: AtomicUsize::new(0),
            failures_in_a_row: AtomicU32::new(0),
            ejected: AtomicBool::new(false),
            health: Mutex::new(Health {
                reason: String::new(),
                ejections: 0,
                pauses: pauses(SHORTEST_EJECTION, LONGEST_EJECTION),
                healthy_since: Instant::now(),
                is_probed: false,
            }),
            opening: Mutex::new(Opening::new()),
            opening_failed: AtomicBool::new(false),
        }
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    fn status(&self) -> NodeStatus {
        let health = self.health.lock();
        let state = if self.ejected.load(Ordering::Relaxed) {
            NodeState::Ejected { reason: health.reason.clone() }
        } else {
            NodeState::Healthy
        };
        let is_open = |link: &&Mutex<Link>| matches!(&*link.lock(), Link::Open(open) if !open.is_lost());
        NodeStatus {
            address: self.address.clone(),
            state,
            under_way: self.under_way.load(Ordering::Relaxed),
            connections: self.links.iter().filter(is_open).count(),
        }
    }

    /// 0: healthy.
    fn badness(&self) -> u32 {
        if self.ejected.load(Ordering::Relaxed) { self.health.lock().ejections } else { 0 }
    }

    /// `sent` becomes true when the node may have got the request; the future may be dropped at any time.
    pub(crate) async fn call(
        self: &Arc<Self>,
        request: &Request<'_>,
        sent: &mut bool,
    ) -> Result<Reply, Failure> {
        // A call that waits for changes is no load: others would avoid its node.
        let _under_way = (!matches!(request, Request::ReadChanges(_))).then(|| UnderWay::new(self));
        let link = fastrand::usize(..self.links.len());
        let connection = self.connection(link).await.map_err(Failure::Unreachable)?;
        let result = connection.call(request, sent).await;
        match &result {
            Ok(_) => self.succeeded(),
            Err(Failure::Lost { reason, .. }) => self.lost(&connection, reason),
            // It was idle, and a node may close that; but not again and again.
            Err(Failure::Gone(reason)) => {
                if self.forget(&connection) {
                    self.pause_opening();
                }
                self.refused(reason);
            }
            // What an answer says is for the caller to judge.
            Err(_) => {}
        }
        result
    }

    /// The connection of a link; everyone who needs one waits for the same try.
    async fn connection(self: &Arc<Self>, link: usize) -> Result<Arc<Connection>, String> {
        let (sender, opened) = oneshot::channel();
        {
            let mut state = self.links[link].lock();
            match &mut *state {
                Link::Open(connection) if !connection.is_lost() => return Ok(Arc::clone(connection)),
                Link::Opening(waiting) => waiting.push(sender),
                _ => {
                    *state = Link::Opening(vec![sender]);
                    tokio::spawn(Arc::clone(self).open(link));
                }
            }
        }
        opened.await.unwrap_or_else(|_| Err("the client is being dropped".to_owned()))
    }

    async fn open(self: Arc<Self>, link: usize) {
        let not_before = self.opening.lock().not_before;
        sleep_until(not_before).await;
        let opening = Connection::open(&self.address, self.tls.as_ref(), self.authorization.clone());
        let opened = match timeout(self.connect_timeout, opening).await {
            Ok(opened) => opened.map(Arc::new),
            Err(_) => Err(format!("no connection within {:?}", self.connect_timeout)),
        };
        match &opened {
            Ok(_) => self.restore(),
            Err(reason) => {
                self.pause_opening();
                self.eject(reason);
            }
        }
        let now = opened.as_ref().map_or(Link::Idle, |connection| Link::Open(Arc::clone(connection)));
        let before = std::mem::replace(&mut *self.links[link].lock(), now);
        if let Link::Opening(waiting) = before {
            for sender in waiting {
                // Who does not wait any more does not mind.
                let _ = sender.send(opened.clone());
            }
        }
    }

    fn succeeded(&self) {
        if self.failures_in_a_row.load(Ordering::Relaxed) > 0 {
            self.failures_in_a_row.store(0, Ordering::Relaxed);
        }
        if self.opening_failed.load(Ordering::Relaxed) {
            self.opening_failed.store(false, Ordering::Relaxed);
            *self.opening.lock() = Opening::new();
        }
        self.restore();
    }

    /// A connection broke while it was used. Only the first of its calls that says so counts.
    fn lost(self: &Arc<Self>, connection: &Arc<Connection>, reason: &str) {
        if self.forget(connection) {
            self.pause_opening();
            self.retire();
            self.eject(reason);
        }
    }

    /// Whether the connection was in use still.
    fn forget(&self, connection: &Arc<Connection>) -> bool {
        self.links.iter().any(|link| {
            let mut link = link.lock();
            let is_it = matches!(&*link, Link::Open(open) if Arc::ptr_eq(open, connection));
            if is_it {
                *link = Link::Idle;
            }
            is_it
        })
    }

    /// A connection was of no use; the next one has to wait.
    fn pause_opening(&self) {
        let mut opening = self.opening.lock();
        opening.not_before = Instant::now() + opening.pauses.next().unwrap_or(LONGEST_OPENING_PAUSE);
        self.opening_failed.store(true, Ordering::Relaxed);
    }

    /// It answered that it can't.
    pub(crate) fn refused(self: &Arc<Self>, reason: &str) {
        if self.has_failed_too_often() {
            self.eject(reason);
        }
    }

    /// It did not answer in time.
    pub(crate) fn timed_out(self: &Arc<Self>) {
        if self.has_failed_too_often() {
            self.retire();
            self.eject("no answer in time");
        }
    }

    fn has_failed_too_often(&self) -> bool {
        self.failures_in_a_row.fetch_add(1, Ordering::Relaxed) + 1 >= MAX_FAILURES_IN_A_ROW
    }

    /// The calls on its connections go on; the next ones get new connections.
    fn retire(&self) {
        for link in &self.links {
            let mut link = link.lock();
            if matches!(&*link, Link::Open(_)) {
                *link = Link::Idle;
            }
        }
    }

    fn eject(self: &Arc<Self>, reason: &str) {
        let mut health = self.health.lock();
        health.reason = reason.to_owned();
        if self.ejected.swap(true, Ordering::Relaxed) {
            return;
        }
        if health.healthy_since.elapsed() > FORGIVEN_AFTER {
            health.ejections = 0;
            health.pauses = pauses(SHORTEST_EJECTION, LONGEST_EJECTION);
        }
        tracing::warn!(node = self.address, reason, "ejected");
        if std::mem::replace(&mut health.is_probed, true) {
            health.ejections += 1;
        } else {
            tokio::spawn(probe(Arc::downgrade(self), health.next_ejection()));
        }
    }

    fn restore(&self) {
        if self.ejected.load(Ordering::Relaxed) {
            let mut health = self.health.lock();
            health.healthy_since = Instant::now();
            self.failures_in_a_row.store(0, Ordering::Relaxed);
            self.ejected.store(false, Ordering::Relaxed);
            tracing::info!(node = self.address, "back");
        }
    }
}

impl Health {
    /// Counts an ejection, and says how long it takes.
    fn next_ejection(&mut self) -> Duration {
        self.ejections += 1;
        self.pauses.next().unwrap_or(LONGEST_EJECTION)
    }
}

impl Opening {
    fn new() -> Self {
        Self { not_before: Instant::now(), pauses: pauses(SHORTEST_OPENING_PAUSE, LONGEST_OPENING_PAUSE) }
    }
}

/// Pauses that grow from the shortest to the longest, each made up to twice as long by chance, without end.
pub(crate) fn pauses(shortest: Duration, longest: Duration) -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(shortest)
        .with_max_delay(longest)
        .with_jitter()
        .without_max_times()
        .build()
}

/// Tries an ejected node again and again, until it is back or nobody wants it any more.
async fn probe(node: Weak<Node>, mut delay: Duration) {
    loop {
        sleep(delay).await;
        let Some(node) = node.upgrade() else { return };
        if node.ejected.load(Ordering::Relaxed) && node.connection(0).await.is_ok() {
            node.restore();
        }
        let mut health = node.health.lock();
        if !node.ejected.load(Ordering::Relaxed) {
            health.is_probed = false;
            return;
        }
        delay = health.next_ejection();
    }
}

struct UnderWay<'a>(&'a Node);

impl<'a> UnderWay<'a> {
    fn new(node: &'a Node) -> Self {
        node.under_way.fetch_add(1, Ordering::Relaxed);
        Self(node)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}
