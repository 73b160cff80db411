//! Sessions with ZooKeeper, and the one loop in which nodes and clients follow what it holds.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use zookeeper_async::{WatchedEvent, Watcher, ZkError, ZkResult, ZooKeeper};

use super::relay::{Link, Relay};
use super::servers::{Resolver, Servers, system_resolver};
use super::{ConnectString, host_port};

/// ZooKeeper is looked at this often while it answers, if no event asks for it earlier. Watches tell nearly everything at once, and
/// each look costs a node that has nothing to do four questions.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// As long after a look that failed, and how long one waits for a session.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// How long closing a session may take; it expires by itself if that is not enough.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long ZooKeeper's client may take to reach the relay, which is on this machine.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long it waits between two tries to.
const CLIENT_RECONNECT_PAUSE: Duration = Duration::from_millis(300);

/// What [`follow`] calls.
pub trait Follower: Send {
    /// Compares what ZooKeeper holds with what should be there or was known before. It should leave watches, so that changes
    /// are seen early; but as it is called every two seconds in any case, no event needs to arrive.
    ///
    /// The future may be dropped at any time, and is if ZooKeeper does not answer in time.
    ///
    /// # Errors
    /// Those of ZooKeeper's client, which end in [`Follower::disconnected`].
    fn look(&mut self, zookeeper: &ZooKeeper) -> impl Future<Output = ZkResult<()>> + Send;

    /// There is no session, or ZooKeeper did not answer. Called after each try, so also many times in a row.
    fn disconnected(&mut self, reason: String);
}

/// Keeps a session with ZooKeeper and looks at it every two seconds, and whenever an event arrives or `wake` is notified, until
/// `stop` completes. Then the session is closed, which removes its ephemeral znodes; a session that is merely lost would
/// keep them until it expires.
///
/// Lost connections and expired sessions mend themselves by the same steps: ZooKeeper's client opens a new session, and the
/// next look finds what is missing. All addresses of all hosts are tried, in an order of chance and with growing pauses, and
/// names are resolved again whenever none of them gives a session.
pub async fn follow(
    connect: &ConnectString,
    session_timeout: Duration,
    wake: Arc<Notify>,
    stop: impl Future<Output = ()>,
    follower: &mut impl Follower,
) {
    follow_resolved_by(system_resolver(), connect, session_timeout, wake, stop, follower).await;
}

pub(super) async fn follow_resolved_by(
    resolver: Resolver,
    connect: &ConnectString,
    session_timeout: Duration,
    wake: Arc<Notify>,
    stop: impl Future<Output = ()>,
    follower: &mut impl Follower,
) {
    let mut stop = std::pin::pin!(stop);
    let mut session = tokio::select! {
        biased;
        () = &mut stop => return,
        session = open_session_patiently(&resolver, connect, session_timeout, &wake, follower) => session,
    };
    let patience = session_timeout.max(RETRY_INTERVAL);
    loop {
        let looked = tokio::select! {
            biased;
            () = &mut stop => break,
            looked = look(&mut session, patience, follower) => looked,
        };
        let pause = match looked {
            Ok(()) => LOOK_INTERVAL,
            Err(reason) => {
                follower.disconnected(reason);
                RETRY_INTERVAL
            }
        };
        // What happened meanwhile makes this return at once.
        tokio::select! {
            biased;
            () = &mut stop => break,
            _ = timeout(pause, wake.notified()) => {}
            () = session.relay().changed() => {}
        }
        if session.relay().has_ended() {
            session = tokio::select! {
                biased;
                () = &mut stop => return,
                session = open_session_patiently(&resolver, connect, session_timeout, &wake, follower) => session,
            };
        }
    }
    session.close().await;
}

/// Has the follower look, once there is a session, or returns why there is none or no answer.
async fn look(session: &mut Session, patience: Duration, follower: &mut impl Follower) -> Result<(), String> {
    let _ = timeout(RETRY_INTERVAL, session.relay().tried()).await;
    // One that moves to another server is back within that time, and nobody needs to hear of it.
    let grace = if session.was_open { RETRY_INTERVAL } else { Duration::ZERO };
    if timeout(grace, session.relay().opened()).await.is_err() {
        return Err(session.problem("no answer yet"));
    }
    session.was_open = true;
    match timeout(patience, follower.look(session.zookeeper())).await {
        Ok(looked) => looked.map_err(|error| session.problem(&format!("{error} in an answer"))),
        Err(_) => Err(session.problem("no answer in time")),
    }
}

/// The names of the znodes in `folder` that are `host:port`, sorted; none if there is no such folder. With `watch`, the session
/// gets an event when they change.
///
/// # Errors
/// Those of ZooKeeper's client.
pub async fn members(zookeeper: &ZooKeeper, folder: &str, watch: bool) -> ZkResult<Vec<String>> {
    let mut members = match zookeeper.get_children(folder, watch).await {
        // It is made by the first node that registers; no watch was left.
        Err(ZkError::NoNode) => Vec::new(),
        members => members?,
    };
    // Anybody may have put something else there.
    members.retain(|member| {
        let checked = host_port(member);
        if let Err(error) = &checked {
            tracing::debug!(folder, error, "a znode that is not named as a node's");
        }
        checked.is_ok()
    });
    members.sort();
    Ok(members)
}

/// [`members`] of `folder` below the chroot, in a session of its own. Tries until `patience` is over.
///
/// # Errors
/// Says why ZooKeeper did not answer, with the hosts that were tried.
pub async fn list_members(
    connect: &ConnectString,
    session_timeout: Duration,
    patience: Duration,
    folder: &str,
) -> Result<Vec<String>, String> {
    let mut session = Session::open(&system_resolver(), connect, session_timeout, &Arc::default()).await?;
    let folder = format!("{}{folder}", connect.chroot());
    let listed = timeout(patience, async {
        session.relay().opened().await;
        members(session.zookeeper(), &folder, false).await
    });
    let names = match listed.await {
        Ok(names) => names.map_err(|error| session.problem(&format!("{error} in an answer"))),
        Err(_) => Err(session.problem("no answer in time")),
    };
    session.close().await;
    names
}

/// Tries until there is a session's client. That fails only where this machine itself has no port or no time for it.
async fn open_session_patiently(
    resolver: &Resolver,
    connect: &ConnectString,
    session_timeout: Duration,
    wake: &Arc<Notify>,
    follower: &mut impl Follower,
) -> Session {
    loop {
        match Session::open(resolver, connect, session_timeout, wake).await {
            Ok(session) => return session,
            Err(reason) => follower.disconnected(reason),
        }
        sleep(RETRY_INTERVAL).await;
    }
}

/// ZooKeeper's client, and the relay through which it reaches the servers. One that is dropped is closed in the background.
struct Session {
    parts: Option<(ZooKeeper, Relay)>,
    hosts: String,
    was_open: bool,
}

impl Session {
    /// Begins to open a session with the servers of a connect string, without waiting for one. `wake` is notified of every
    /// event of the session and of its watches.
    async fn open(
        resolver: &Resolver,
        connect: &ConnectString,
        session_timeout: Duration,
        wake: &Arc<Notify>,
    ) -> Result<Self, String> {
        let relay = Relay::start(Servers::new(connect.hosts(), Arc::clone(resolver)))
            .await
            .map_err(|error| format!("no port of this machine's own for ZooKeeper's client: {error}"))?;
        let address = relay.address.to_string();
        let connecting = ZooKeeper::connect_with_retry_time(
            &address,
            session_timeout,
            Wake(Arc::clone(wake)),
            CLIENT_RECONNECT_PAUSE,
        );
        let zookeeper = match timeout(OPEN_TIMEOUT, connecting).await {
            Ok(opened) => opened.map_err(|error| error.to_string())?,
            Err(_) => return Err("ZooKeeper's client does not reach this machine's own port".to_owned()),
        };
        let wake = Arc::clone(wake);
        zookeeper.add_listener(move |_| wake.notify_one());
        let hosts = connect.hosts().join(",");
        Ok(Self { parts: Some((zookeeper, relay)), hosts, was_open: false })
    }

    fn zookeeper(&self) -> &ZooKeeper {
        &self.parts().0
    }

    fn relay(&mut self) -> &mut Relay {
        &mut self.parts.as_mut().expect("only closing takes them").1
    }

    fn parts(&self) -> &(ZooKeeper, Relay) {
        self.parts.as_ref().expect("only closing takes them")
    }

    /// Why there is no session; `otherwise` if there is one, or no reason yet.
    fn problem(&self, otherwise: &str) -> String {
        match self.parts().1.link() {
            Link::Down(problem) => problem,
            Link::Opening | Link::Open => format!("{otherwise} from {}", self.hosts),
        }
    }

    async fn close(mut self) {
        if let Some(parts) = self.parts.take() {
            close(parts).await;
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(parts) = self.parts.take()
            && let Ok(runtime) = Handle::try_current()
        {
            // Otherwise the client would go on trying to connect for as long as the process lives.
            runtime.spawn(close(parts));
        }
    }
}

async fn close((zookeeper, relay): (ZooKeeper, Relay)) {
    let closed = timeout(CLOSE_TIMEOUT, zookeeper.close()).await;
    relay.close().await;
    tracing::debug!(?closed, "left ZooKeeper");
}

/// Wakes on every event of a session and of its watches.
struct Wake(Arc<Notify>);

impl Watcher for Wake {
    fn handle(&self, _: WatchedEvent) {
        self.0.notify_one();
    }
}
