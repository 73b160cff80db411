//! Members as ephemeral znodes: `/bitacora/servers/<host>:<API_PORT>` and `/bitacora/sockets/<host>:<AVRO_PORT>`; and one,
//! `/bitacora/trimmer`, of the member that trims the log: whoever finds none makes it.
//!
//! One task keeps what ZooKeeper holds as it should be: whenever something happened, and every two seconds in any case, it
//! looks at this node's znodes and at the list of members ([`zookeeper::follow`]). So it does not matter which event was lost: a new session,
//! an expired one, a znode that a dying session left or took away all mend themselves by the same few steps.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bitacora_protocol::zookeeper::{self, ConnectString, Follower, ROOT, SERVERS, SOCKETS, TRIMMER};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use zookeeper_async::{Acl, CreateMode, Permission, ZkError, ZkResult, ZooKeeper};

use super::{Address, Membership, MembershipState};

/// How long [`Membership::leave`] waits for ZooKeeper.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// A user and a password, which ZooKeeper's scheme *digest* knows a client by.
#[derive(Clone, PartialEq, Eq)]
pub struct Login(String);

impl FromStr for Login {
    /// Does not tell the text, which may be a secret of another kind.
    type Err = String;

    /// Of `USER:PASSWORD`, with or without a line's end.
    fn from_str(text: &str) -> Result<Self, String> {
        let line = text.strip_suffix('\n').unwrap_or(text);
        let line = line.strip_suffix('\r').unwrap_or(line);
        let is_login =
            line.split_once(':').is_some_and(|(user, password)| !user.is_empty() && !password.is_empty());
        if is_login && !line.contains(char::is_control) {
            return Ok(Self(line.to_owned()));
        }
        Err("it is to have one line, USER:PASSWORD".to_owned())
    }
}

/// Without the password.
impl fmt::Debug for Login {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Login")
    }
}

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
    /// Starts to follow the cluster; `session_timeout` is what ZooKeeper is asked for, which it may raise. With a `login`, nobody without it
    /// may change what this registers.
    #[must_use]
    pub fn start(
        connect: &ConnectString,
        session_timeout: Duration,
        login: Option<Login>,
        address: Address,
    ) -> Self {
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
            login,
            owner: None,
            sessions: 0,
            refusal_logged: false,
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
    login: Option<Login>,
    /// The session that created the two znodes.
    owner: Option<i64>,
    /// How many sessions have.
    sessions: u64,
    /// Whether a log line has said that ZooKeeper refuses what this node registers.
    refusal_logged: bool,
}

impl Follower for Registration {
    async fn look(&mut self, zookeeper: &ZooKeeper) -> ZkResult<()> {
        let looked = self.look_at(zookeeper).await;
        if looked == Err(ZkError::NoAuth) && !self.refusal_logged {
            self.refusal_logged = true;
            let belongs = match self.login {
                None => "a user, and this node has no ZOOKEEPER_AUTH_FILE",
                Some(_) => "another user than that of ZOOKEEPER_AUTH_FILE",
            };
            tracing::error!(
                "ZooKeeper does not let this node register: what is below {}{ROOT} belongs to {belongs}; give all nodes the same \
                 file, or have an administrator of ZooKeeper set the ACLs",
                self.chroot
            );
        }
        looked
    }

    fn disconnected(&mut self, reason: String) {
        let mut known = self.shared.known.lock();
        if known.state == MembershipState::Connected || !known.outage_logged {
            let what = if self.refusal_logged { "refuses this node" } else { "does not answer" };
            tracing::warn!(
                reason,
                "ZooKeeper (ZOOKEEPER_HOSTS) {what}; going on with the members last known"
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
    async fn look_at(&mut self, zookeeper: &ZooKeeper) -> ZkResult<()> {
        if let Some(Login(login)) = &self.login {
            // Of each connection, and nothing tells which one this is. To say it again changes nothing.
            zookeeper.add_auth("digest", login.clone().into_bytes()).await?;
        }
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

    /// Of what this node makes: others may read it, and with a login nothing else.
    fn acl(&self) -> Vec<Acl> {
        match self.login {
            None => Acl::open_unsafe().clone(),
            Some(_) => [&Acl::creator_all()[..], Acl::read_unsafe()].concat(),
        }
    }

    /// Takes the folders from everybody else, if they were made by a node without a login.
    async fn close_folders(&self, zookeeper: &ZooKeeper) -> ZkResult<()> {
        if self.login.is_none() {
            return Ok(());
        }
        for folder in [ROOT, SERVERS, SOCKETS] {
            let path = format!("{}{folder}", self.chroot);
            let (acl, stat) = match zookeeper.get_acl(&path).await {
                Err(ZkError::NoNode) => continue,
                acl => acl?,
            };
            if acl.iter().any(|acl| acl.scheme == "world" && acl.perms != Permission::READ) {
                zookeeper.set_acl(&path, self.acl(), Some(stat.aversion)).await?;
                tracing::info!(path, "only nodes may change it from now on");
            }
        }
        Ok(())
    }

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
            self.create_folders(zookeeper, &folder).await?;
            let data = name.clone().into_bytes();
            let (_, stat) = zookeeper.create2(&path, data, self.acl(), CreateMode::Ephemeral).await?;
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
        match zookeeper.create(&path, data, self.acl(), CreateMode::Ephemeral).await {
            Ok(_) => Ok(true),
            // Another was faster.
            Err(ZkError::NodeExists) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Makes a folder and those that it is in, as far as they are missing.
    async fn create_folders(&self, zookeeper: &ZooKeeper, folder: &str) -> ZkResult<()> {
        let ends = folder.char_indices().filter(|(at, c)| *c == '/' && *at > 0).map(|(at, _)| at);
        for end in ends.chain([folder.len()]) {
            // The chroot may be others' as well.
            let is_ours = end > self.chroot.len();
            let acl = if is_ours { self.acl() } else { Acl::open_unsafe().clone() };
            match zookeeper.create(&folder[..end], Vec::new(), acl, CreateMode::Persistent).await {
                Ok(_) | Err(ZkError::NodeExists) => {}
                Err(error) => return Err(error),
            }
        }
        self.close_folders(zookeeper).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_a_user_and_a_password_and_is_never_told() {
        for text in ["nodes:s3cret", "nodes:s3cret\n", "nodes:s3cret\r\n"] {
            assert_eq!(text.parse(), Ok(Login("nodes:s3cret".to_owned())));
        }
        // A password may have what parts it from the user.
        assert_eq!("nodes:s3:cret".parse(), Ok(Login("nodes:s3:cret".to_owned())));
        for wrong in ["", "s3cret", ":s3cret", "nodes:", "nodes:s3cret\n\n", "a:s3cret\nb:s3cret\n"] {
            let error = wrong.parse::<Login>().expect_err("no login");
            assert!(!error.contains("s3cret") && error.contains("USER:PASSWORD"), "{error}");
        }
        assert!(!format!("{:?}", Login("nodes:s3cret".to_owned())).contains("s3cret"));
    }
}
