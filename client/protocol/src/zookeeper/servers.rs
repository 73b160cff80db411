//! Which address of ZooKeeper's servers is tried next, and when.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tokio::task::JoinSet;
use tokio::time::sleep;

/// The pause after the first round in which no address gave a session, and the longest one; chance makes each up to twice
/// as long, so that those that lost ZooKeeper together don't all come back in the same moment.
pub(super) const SHORTEST_PAUSE: Duration = Duration::from_millis(150);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// The pause between two addresses of a round; chance makes it up to twice as long.
pub(super) const PAUSE_IN_ROUND: Duration = Duration::from_millis(50);
/// A session that lasted as long shows that the servers are well: the pauses begin with the shortest again.
const FORGIVEN_AFTER: Duration = Duration::from_secs(10);
/// How long a name may take to be resolved.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the other names may take when one is resolved.
const RESOLVE_REST_TIMEOUT: Duration = Duration::from_millis(200);

/// Finds the addresses of a `host:port`.
pub(super) type Resolver = Arc<dyn Fn(&str) -> Resolving + Send + Sync>;
type Resolving = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>;

/// The resolver of the operating system.
pub(super) fn system_resolver() -> Resolver {
    Arc::new(|host| {
        let host = host.to_owned();
        Box::pin(async move { Ok(tokio::net::lookup_host(host).await?.collect()) })
    })
}

/// An address to try, and the `host:port` that it was found by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Server {
    host: String,
    pub address: SocketAddr,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, address } = self;
        if *host == address.to_string() { write!(f, "{host}") } else { write!(f, "{host} ({address})") }
    }
}

/// How a connection to a server went.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It gave no session; the text says what happened instead.
    NoSession(String),
    /// The server answered that the session of before has expired. The next connection asks for a new one.
    Expired,
    /// It gave a session, and lasted so long.
    Session(Duration),
}

/// Goes round all addresses of all hosts, in an order of chance. Names are resolved again for every round.
pub(super) struct Servers {
    hosts: Vec<String>,
    resolver: Resolver,
    /// Addresses of this round.
    untried: Vec<Server>,
    pauses: ExponentialBackoff,
    next_pause: Duration,
    last_had_expired: bool,
    /// What happened last with each host, since the last session.
    problems: BTreeMap<String, String>,
}

impl Servers {
    pub fn new(hosts: &[String], resolver: Resolver) -> Self {
        Self {
            hosts: hosts.to_vec(),
            resolver,
            untried: Vec::new(),
            pauses: growing_pauses(),
            next_pause: Duration::ZERO,
            last_had_expired: false,
            problems: BTreeMap::new(),
        }
    }

    /// Waits for the pause that is due, and says which address is the next; `None` if no name has an address.
    pub async fn next(&mut self) -> Option<Server> {
        sleep(self.next_pause).await;
        if self.untried.is_empty() {
            self.untried = self.resolve().await;
        }
        let next = self.untried.pop();
        if next.is_none() {
            self.pause();
        }
        next
    }

    /// To be told of every address that [`Servers::next`] gave.
    pub fn ended(&mut self, server: &Server, outcome: Outcome) {
        tracing::debug!(%server, ?outcome, "a connection to ZooKeeper ended");
        let had_expired = std::mem::replace(&mut self.last_had_expired, outcome == Outcome::Expired);
        match outcome {
            Outcome::NoSession(problem) => {
                self.problems.insert(server.host.clone(), format!("{server}: {problem}"));
                self.pause();
            }
            // This server is well, so others need not be waited for; but it may go on like this.
            Outcome::Expired if !had_expired => self.next_pause = jittered(PAUSE_IN_ROUND),
            Outcome::Session(lasted) if lasted >= FORGIVEN_AFTER => {
                self.problems.clear();
                self.pauses = growing_pauses();
                // Addresses may have changed since.
                self.untried.clear();
                self.next_pause = SHORTEST_PAUSE.mul_f64(fastrand::f64());
            }
            Outcome::Expired | Outcome::Session(_) => {
                self.problems.clear();
                self.pause();
            }
        }
    }

    /// What is wrong with the hosts, each with its name; `None` while there is an address left to try, or nothing known.
    pub fn problems(&self) -> Option<String> {
        let is_known = self.untried.is_empty() && !self.problems.is_empty();
        is_known.then(|| self.problems.values().map(String::as_str).collect::<Vec<_>>().join("; "))
    }

    fn tell(&mut self, host: &str, problem: &str) {
        self.problems.insert(host.to_owned(), format!("{host}: {problem}"));
    }

    fn pause(&mut self) {
        self.next_pause = if self.untried.is_empty() {
            self.pauses.next().unwrap_or(LONGEST_PAUSE)
        } else {
            jittered(PAUSE_IN_ROUND)
        };
    }

    /// All names at once. When one has an address, those that take long are not waited for much longer: they are asked again for
    /// the next round.
    async fn resolve(&mut self) -> Vec<Server> {
        let mut names = JoinSet::new();
        for host in &self.hosts {
            let (host, resolving) = (host.clone(), (self.resolver)(host));
            names.spawn(async move { (host, resolving.await) });
        }
        let mut unresolved: BTreeSet<_> = self.hosts.iter().cloned().collect();
        let mut found = BTreeSet::new();
        let mut wait = Box::pin(sleep(RESOLVE_TIMEOUT));
        loop {
            let (host, resolved) = tokio::select! {
                biased;
                name = names.join_next() => match name {
                    Some(Ok(name)) => name,
                    // Of one whose resolver failed nothing is known.
                    Some(Err(_)) => continue,
                    None => break,
                },
                () = &mut wait => break,
            };
            unresolved.remove(&host);
            match resolved {
                Ok(addresses) if addresses.is_empty() => self.tell(&host, "it has no address"),
                Ok(addresses) => {
                    if found.is_empty() {
                        wait = Box::pin(sleep(RESOLVE_REST_TIMEOUT));
                    }
                    found.extend(addresses.into_iter().map(|address| Server { host: host.clone(), address }));
                }
                Err(error) => self.tell(&host, &error.to_string()),
            }
        }
        for host in unresolved {
            self.tell(&host, "its name was not resolved in time");
        }
        let mut found: Vec<_> = found.into_iter().collect();
        // Not every node on the first server.
        fastrand::shuffle(&mut found);
        found
    }
}

fn growing_pauses() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(SHORTEST_PAUSE)
        .with_max_delay(LONGEST_PAUSE)
        .with_jitter()
        .without_max_times()
        .build()
}

fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(1.0 + fastrand::f64())
}
