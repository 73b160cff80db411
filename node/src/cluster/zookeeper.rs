//! Members as ephemeral znodes: `/bitacora/servers/<host>:<API_PORT>` and `/bitacora/sockets/<host>:<AVRO_PORT>`; and one,
//! `/bitacora/trimmer`, of the member that trims the log: whoever finds none makes it.
//!
//! One task keeps what ZooKeeper holds as it should be: whenever something happened, and once a second in any case, it
//! looks at this node's znodes and at the list of members ([`zookeeper::follow`]). So it does not matter which event was lost: a new session,
//! an expired one, a znode that a dying session left or took away all mend themselves by the same few steps.

use std::sync::Arc;
use std::time::Duration;

use bitacora_protocol::zookeeper::{self, ConnectString, Follower, SERVERS, SOCKETS, TRIMMER};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use zookeeper_async::{Acl, CreateMode, ZkError, ZkResult, ZooKeeper};

use super::{Address, Membership, MembershipState};

/// How long [`Membership::leave`] waits for ZooKeeper.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Membership by ZooKeeper.
pub struct ZooKeeperMembership {
    shared: Arc<Shared>,
    address: Address,
    task: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    intent: watch::Sender<Intent>,
    /// Makes the task look at ZooKeeper now.
    wake: Arc<Notify>,
    known: Mutex<Known>,
}

struct Known {
    members: Arc<[String]>,
    state: MembershipState,
    registered: bool,
    /// Sessions under which this node has registered.
    sessions: u64,
    /// Whether this node was elected to trim the log, and is connected.
    trims: bool,
    /// Whether a log line has said already that ZooKeeper does not answer.
    outage_logged: bool,
}

/// What this node wants to be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Intent {
    Watch,
    BeMember,
    Leave,
}

impl ZooKeeperMembership {
    /// Starts to follow the cluster; `session_timeout` is what ZooKeeper is asked for, which it may raise.
    #[must_use]
    pub fn start(connect: &ConnectString, session_timeout: Duration, address: Address) -> Self {
        let known = Known {
            members: Arc::new([]),
            state: MembershipState::Disconnected { reason: "not reached yet".into() },
            registered: false,
            sessions: 0,
            trims: false,
            outage_logged: false,
        };
        let intent = watch::Sender::new(Intent::Watch);
        let shared = Arc::new(Shared { intent, wake: Arc::default(), known: Mutex::new(known) });
        let registration = Registration {
            shared: Arc::clone(&shared),
            chroot: connect.chroot().to_owned(),
            address: address.clone(),
            owner: None,
            sessions: 0,
        };
        let task = tokio::spawn(run(registration, connect.clone(), session_timeout));
        Self { shared, address, task: Mutex::new(Some(task)) }
    }
}

impl Membership for ZooKeeperMembership {
    fn members(&self) -> Arc<[String]> {
        Arc::clone(&self.shared.known.lock().members)
    }

    fn state(&self) -> MembershipState {
        if self.task.lock().as_ref().is_none_or(JoinHandle::is_finished) {
            return MembershipState::Disconnected { reason: "left the cluster".into() };
        }
        self.shared.known.lock().state.clone()
    }

    fn registered(&self) -> bool {
        self.shared.known.lock().registered
    }

    fn sessions(&self) -> u64 {
        self.shared.known.lock().sessions
    }

    fn announce(&self) {
        self.shared.intent.send_if_modified(|intent| {
            let is_first = *intent == Intent::Watch;
            if is_first {
                *intent = Intent::BeMember;
            }
            is_first
        });
        self.shared.wake.notify_one();
    }

    fn is_elected_trimmer(&self) -> bool {
        self.shared.known.lock().trims
    }

    fn ended_task(&self) -> Option<&'static str> {
        // `leave` takes it away.
        self.task.lock().as_ref().is_some_and(JoinHandle::is_finished).then_some("zookeeper")
    }

    fn leave(&self) -> BoxFuture<'_, ()> {
        self.shared.intent.send_replace(Intent::Leave);
        let task = self.task.lock().take();
        Box::pin(async move {
            let Some(task) = task else { return };
            let abort = task.abort_handle();
            if timeout(LEAVE_TIMEOUT, task).await.is_err() {
                abort.abort();
                tracing::warn!(
                    "ZooKeeper did not answer; {} stays a member until its session expires",
                    self.address.api()
                );
            }
        })
    }
}

async fn run(mut registration: Registration, connect: ConnectString, session_timeout: Duration) {
    let shared = Arc::clone(&registration.shared);
    let mut intent = shared.intent.subscribe();
    let stop = async {
        let _ = intent.wait_for(|intent| *intent == Intent::Leave).await;
        // Another may be elected as soon as the session is closed.
        shared.known.lock().trims = false;
    };
    zookeeper::follow(&connect, session_timeout, Arc::clone(&shared.wake), stop, &mut registration).await;
    shared.known.lock().registered = false;
}

/// What this node has in ZooKeeper: its two znodes, and perhaps the trimmer's.
struct Registration {
    shared: Arc<Shared>,
    chroot: String,
    address: Address,
    /// The session that created the two znodes.
    owner: Option<i64>,
    /// How many sessions have.
    sessions: u64,
}

impl Follower for Registration {
    async fn look(&mut self, zookeeper: &ZooKeeper) -> ZkResult<()> {
        let mut trims = false;
        let intent = *self.shared.intent.borrow();
        if intent == Intent::BeMember {
            self.register(zookeeper).await?;
            trims = self.elect(zookeeper).await?;
        }
        let members = zookeeper::members(zookeeper, &format!("{}{SERVERS}", self.chroot), true).await?;
        self.connected(members, trims);
        Ok(())
    }

    fn disconnected(&mut self, reason: String) {
        let mut known = self.shared.known.lock();
        if known.state == MembershipState::Connected || !known.outage_logged {
            tracing::warn!(
                reason,
                "ZooKeeper (ZOOKEEPER_HOSTS) does not answer; going on with the members last known"
            );
        }
        known.outage_logged = true;
        known.registered = false;
        // Its session may expire, and another be elected, before it hears of it.
        known.trims = false;
        known.state = MembershipState::Disconnected { reason };
    }
}

impl Registration {
    fn connected(&self, members: Vec<String>, trims: bool) {
        let mut known = self.shared.known.lock();
        known.registered = self.owner.is_some();
        known.sessions = self.sessions;
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

    /// Makes sure that both znodes are there and are this session's.
    async fn register(&mut self, zookeeper: &ZooKeeper) -> ZkResult<()> {
        for (folder, name) in [(SERVERS, self.address.api()), (SOCKETS, self.address.avro())] {
            let folder = format!("{}{folder}", self.chroot);
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

    /// Whether this session has the trimmer's znode, which it makes if there is none. The watch tells when it goes.
    async fn elect(&self, zookeeper: &ZooKeeper) -> ZkResult<bool> {
        let path = format!("{}{TRIMMER}", self.chroot);
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
