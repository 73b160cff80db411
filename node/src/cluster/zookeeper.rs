//! Members as ephemeral znodes: `/bitacora/servers/<host>:<API_PORT>` and `/bitacora/sockets/<host>:<AVRO_PORT>`; and one,
//! `/bitacora/trimmer`, of the member that trims the log: whoever finds none makes it.
//!
//! One task keeps what ZooKeeper holds as it should be: whenever something happened, and once a second in any case, it
//! looks at this node's znodes and at the list of members. So it does not matter which event was lost: a new session,
//! an expired one, a znode that a dying session left or took away all mend themselves by the same few steps.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bitacora_protocol::zookeeper::{ConnectString, SERVERS, SOCKETS, TRIMMER, host_port, open_session};
use futures_util::future::BoxFuture;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use zookeeper_async::{Acl, CreateMode, ZkError, ZkResult, ZooKeeper};

use super::{Address, Membership, MembershipState};

/// ZooKeeper's members are looked at this often, if no watch or state change asks for it earlier.
const MEMBERSHIP_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Between two tries to reach a server.
const RECONNECT_PAUSE: Duration = Duration::from_millis(300);

pub struct ZooKeeperMembership {
    shared: Arc<Shared>,
    address: Address,
    task: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    chroot: String,
    wanted: watch::Sender<Wanted>,
    /// Something happened at ZooKeeper's side.
    look: Arc<Notify>,
    known: Mutex<Known>,
}

struct Known {
    members: Arc<[String]>,
    state: MembershipState,
    registered: bool,
    sessions: u64,
    /// Whether this node was elected to trim the log, and is connected.
    trims: bool,
    /// Whether the log says already that ZooKeeper does not answer.
    told: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Watching,
    Member,
    Gone,
}

impl ZooKeeperMembership {
    /// Starts to follow the cluster; `session_timeout` is what ZooKeeper is asked for, which it may raise.
    #[must_use]
    pub fn start(connect: &ConnectString, session_timeout: Duration, address: Address) -> Self {
        let state = MembershipState::Disconnected { reason: "not reached yet".into() };
        let shared = Arc::new(Shared {
            chroot: connect.chroot().to_owned(),
            wanted: watch::Sender::new(Wanted::Watching),
            look: Arc::default(),
            known: Mutex::new(Known {
                members: Arc::new([]),
                state,
                registered: false,
                sessions: 0,
                trims: false,
                told: false,
            }),
        });
        let task = tokio::spawn(run(Arc::clone(&shared), connect.clone(), session_timeout, address.clone()));
        Self { shared, address, task: Mutex::new(Some(task)) }
    }
}

impl Membership for ZooKeeperMembership {
    fn members(&self) -> Arc<[String]> {
        Arc::clone(&lock(&self.shared.known).members)
    }

    fn state(&self) -> MembershipState {
        if lock(&self.task).as_ref().is_none_or(JoinHandle::is_finished) {
            return MembershipState::Disconnected { reason: "left the cluster".into() };
        }
        lock(&self.shared.known).state.clone()
    }

    fn registered(&self) -> bool {
        lock(&self.shared.known).registered
    }

    fn sessions(&self) -> u64 {
        lock(&self.shared.known).sessions
    }

    fn announce(&self) {
        self.shared.wanted.send_if_modified(|wanted| {
            let first = *wanted == Wanted::Watching;
            if first {
                *wanted = Wanted::Member;
            }
            first
        });
    }

    fn trims(&self) -> bool {
        lock(&self.shared.known).trims
    }

    fn leave(&self) -> BoxFuture<'_, ()> {
        self.shared.wanted.send_replace(Wanted::Gone);
        let task = lock(&self.task).take();
        Box::pin(async move {
            let Some(task) = task else { return };
            let abort = task.abort_handle();
            if timeout(2 * MEMBERSHIP_CHECK_INTERVAL, task).await.is_err() {
                abort.abort();
                tracing::warn!(
                    "ZooKeeper did not answer; {} stays a member until its session expires",
                    self.address.api()
                );
            }
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn connected(&self, members: Vec<String>, trims: bool, registration: &Registration) {
        let mut known = lock(&self.known);
        known.registered = registration.owner.is_some();
        known.sessions = registration.sessions;
        if trims && !known.trims {
            tracing::info!("this node trims the log");
        }
        known.trims = trims;
        if known.state != MembershipState::Connected {
            tracing::info!(members = members.len(), "ZooKeeper answers");
        }
        known.state = MembershipState::Connected;
        if *known.members != *members {
            tracing::info!(?members, "the members of the cluster");
            known.members = members.into();
        }
    }

    fn disconnected(&self, reason: String) {
        let mut known = lock(&self.known);
        if known.state == MembershipState::Connected || !known.told {
            tracing::warn!(
                reason,
                "ZooKeeper (ZOOKEEPER_HOSTS) does not answer; going on with the members last known"
            );
        }
        known.told = true;
        known.registered = false;
        // Its session may expire, and another be elected, before it hears of it.
        known.trims = false;
        known.state = MembershipState::Disconnected { reason };
    }
}

async fn run(shared: Arc<Shared>, connect: ConnectString, session_timeout: Duration, address: Address) {
    let mut wanted = shared.wanted.subscribe();
    let zookeeper = loop {
        if *wanted.borrow() == Wanted::Gone {
            return;
        }
        match open_session(&connect, session_timeout, &shared.look).await {
            Ok(zookeeper) => break zookeeper,
            Err(reason) => shared.disconnected(reason),
        }
        let _ = timeout(RECONNECT_PAUSE, wanted.wait_for(|wanted| *wanted == Wanted::Gone)).await;
    };
    let mut registration = Registration { address, owner: None, sessions: 0 };
    loop {
        let want = *wanted.borrow_and_update();
        if want == Wanted::Gone {
            lock(&shared.known).trims = false;
            // Closing the session removes its ephemeral znodes at once; a client that is merely dropped keeps it alive.
            let closed = timeout(MEMBERSHIP_CHECK_INTERVAL, zookeeper.close()).await;
            lock(&shared.known).registered = false;
            tracing::debug!(?closed, "left ZooKeeper");
            return;
        }
        let look = async {
            let mut trims = false;
            if want == Wanted::Member {
                registration.keep(&zookeeper, &shared.chroot).await?;
                trims = registration.elected(&zookeeper, &shared.chroot).await?;
            }
            Ok::<_, ZkError>((members(&zookeeper, &shared.chroot).await?, trims))
        };
        match timeout(session_timeout.max(MEMBERSHIP_CHECK_INTERVAL), look).await {
            Ok(Ok((members, trims))) => shared.connected(members, trims, &registration),
            Ok(Err(error)) => shared.disconnected(error.to_string()),
            Err(_) => shared.disconnected("no answer in time".into()),
        }
        // What happened meanwhile makes this return at once.
        let _ = timeout(MEMBERSHIP_CHECK_INTERVAL, async {
            tokio::select! {
                () = shared.look.notified() => {}
                _ = wanted.changed() => {}
            }
        })
        .await;
    }
}

/// This node's two znodes.
struct Registration {
    address: Address,
    /// The session that created them.
    owner: Option<i64>,
    /// How many have.
    sessions: u64,
}

impl Registration {
    /// Makes sure that both znodes are there and are this session's.
    async fn keep(&mut self, zookeeper: &ZooKeeper, chroot: &str) -> ZkResult<()> {
        for (folder, name) in [(SERVERS, self.address.api()), (SOCKETS, self.address.avro())] {
            let folder = format!("{chroot}{folder}");
            let path = format!("{folder}/{name}");
            match zookeeper.exists(&path, true).await? {
                Some(stat) if Some(stat.ephemeral_owner) == self.owner => continue,
                // Left by a session of this address that died without closing, and will take its znode along when it
                // expires; so the place is taken with a znode of this session.
                Some(_) => match zookeeper.delete(&path, None).await {
                    Ok(()) | Err(ZkError::NoNode) => {
                        tracing::info!(path, "took the place of a dead session's znode");
                    }
                    Err(error) => return Err(error),
                },
                None => {}
            }
            create_parents(zookeeper, &folder).await?;
            let data = name.clone().into_bytes();
            let (_, stat) =
                zookeeper.create2(&path, data, Acl::open_unsafe().clone(), CreateMode::Ephemeral).await?;
            if self.owner.replace(stat.ephemeral_owner) != Some(stat.ephemeral_owner) {
                self.sessions += 1;
            }
            tracing::info!(path, "registered");
        }
        Ok(())
    }
}

impl Registration {
    /// Whether this session has the trimmer's znode, which it makes if there is none. The watch tells when it goes.
    async fn elected(&self, zookeeper: &ZooKeeper, chroot: &str) -> ZkResult<bool> {
        let path = format!("{chroot}{TRIMMER}");
        if let Some(stat) = zookeeper.exists(&path, true).await? {
            return Ok(Some(stat.ephemeral_owner) == self.owner);
        }
        let data = self.address.api().into_bytes();
        match zookeeper.create(&path, data, Acl::open_unsafe().clone(), CreateMode::Ephemeral).await {
            Ok(_) => Ok(true),
            // Another was faster.
            Err(ZkError::NodeExists) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

async fn create_parents(zookeeper: &ZooKeeper, folder: &str) -> ZkResult<()> {
    let ends =
        folder.char_indices().filter(|(at, c)| *c == '/' && *at > 0).map(|(at, _)| at).chain([folder.len()]);
    for end in ends {
        let path = &folder[..end];
        match zookeeper.create(path, Vec::new(), Acl::open_unsafe().clone(), CreateMode::Persistent).await {
            Ok(_) | Err(ZkError::NodeExists) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn members(zookeeper: &ZooKeeper, chroot: &str) -> ZkResult<Vec<String>> {
    match zookeeper.get_children(&format!("{chroot}{SERVERS}"), true).await {
        Ok(mut members) => {
            // Anybody may have put something else there.
            members.retain(|member| match host_port(member) {
                Ok(()) => true,
                Err(error) => {
                    tracing::debug!(error, "a znode of {SERVERS} is no node");
                    false
                }
            });
            members.sort();
            Ok(members)
        }
        Err(ZkError::NoNode) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}
