//! Sessions with ZooKeeper, and the one loop in which nodes and clients follow what it holds.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::sync::Notify;
use tokio::time::timeout;
use zookeeper_async::{WatchedEvent, Watcher, ZkError, ZkResult, ZooKeeper};

use super::{ConnectString, host_port};

/// ZooKeeper is looked at this often, if no event asks for it earlier.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How long closing a session may take; it expires by itself if that is not enough.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// The pause after the first try to open a session that failed, and the longest one; chance makes each up to twice as long.
const SHORTEST_OPENING_PAUSE: Duration = Duration::from_millis(150);
const LONGEST_OPENING_PAUSE: Duration = Duration::from_secs(1);
/// How long ZooKeeper's own client waits between two tries to reach a server.
const CLIENT_RECONNECT_PAUSE: Duration = Duration::from_millis(300);

/// What [`follow`] calls.
pub trait Follower: Send {
    /// Compares what ZooKeeper holds with what should be there or was known before. It should leave watches, so that changes
    /// are seen early; but as it is called once a second in any case, no event needs to arrive.
    ///
    /// The future may be dropped at any time, and is if ZooKeeper does not answer in time.
    ///
    /// # Errors
    /// Those of ZooKeeper's client, which end in [`Follower::disconnected`].
    fn look(&mut self, zookeeper: &ZooKeeper) -> impl Future<Output = ZkResult<()>> + Send;

    /// There is no session, or ZooKeeper did not answer. Called after each try, so also many times in a row.
    fn disconnected(&mut self, reason: String);
}

/// Keeps a session with ZooKeeper and looks at it once a second, and whenever an event arrives or `wake` is notified, until
/// `stop` completes. Then the session is closed, which removes its ephemeral znodes; a session that is merely dropped would
/// keep them until it expires.
///
/// Lost connections and expired sessions mend themselves by the same steps: ZooKeeper's client opens a new session, and the
/// next look finds what is missing.
pub async fn follow(
    connect: &ConnectString,
    session_timeout: Duration,
    wake: Arc<Notify>,
    stop: impl Future<Output = ()>,
    follower: &mut impl Follower,
) {
    let mut stop = std::pin::pin!(stop);
    let zookeeper = tokio::select! {
        biased;
        () = &mut stop => return,
        zookeeper = open_session_patiently(connect, session_timeout, &wake, follower) => zookeeper,
    };
    let patience = session_timeout.max(LOOK_INTERVAL);
    loop {
        let looked = tokio::select! {
            biased;
            () = &mut stop => break,
            looked = timeout(patience, follower.look(&zookeeper)) => looked,
        };
        match looked {
            Ok(Ok(())) => {}
            Ok(Err(error)) => follower.disconnected(error.to_string()),
            Err(_) => follower.disconnected("no answer in time".to_owned()),
        }
        // What happened meanwhile makes this return at once.
        tokio::select! {
            biased;
            () = &mut stop => break,
            _ = timeout(LOOK_INTERVAL, wake.notified()) => {}
        }
    }
    let closed = timeout(CLOSE_TIMEOUT, zookeeper.close()).await;
    tracing::debug!(?closed, "left ZooKeeper");
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

/// [`members`] of `folder` below the chroot, in a session of its own.
///
/// # Errors
/// Says why ZooKeeper did not answer, after `session_timeout` at the latest if no server can be reached.
pub async fn list_members(
    connect: &ConnectString,
    session_timeout: Duration,
    folder: &str,
) -> Result<Vec<String>, String> {
    let zookeeper = open_session(connect, session_timeout, &Arc::default()).await?;
    let folder = format!("{}{folder}", connect.chroot());
    let names = timeout(session_timeout, members(&zookeeper, &folder, false)).await;
    let _ = timeout(CLOSE_TIMEOUT, zookeeper.close()).await;
    names.map_err(|_| "no answer in time".to_owned())?.map_err(|error| error.to_string())
}

/// Tries until a session is open, with pauses that grow and differ between processes, so that those that lost ZooKeeper
/// together don't all come back in the same moment.
async fn open_session_patiently(
    connect: &ConnectString,
    session_timeout: Duration,
    wake: &Arc<Notify>,
    follower: &mut impl Follower,
) -> ZooKeeper {
    let pauses = ExponentialBuilder::default()
        .with_min_delay(SHORTEST_OPENING_PAUSE)
        .with_max_delay(LONGEST_OPENING_PAUSE)
        .with_jitter()
        .without_max_times();
    let mut pauses = pauses.build();
    loop {
        match open_session(connect, session_timeout, wake).await {
            Ok(zookeeper) => return zookeeper,
            Err(reason) => follower.disconnected(reason),
        }
        tokio::time::sleep(pauses.next().unwrap_or(LONGEST_OPENING_PAUSE)).await;
    }
}

/// Opens a session with the servers of a connect string. `wake` is notified of every event of the session and of its
/// watches. The session lives until it is closed, even if what is returned is dropped. The error says which server could not be
/// resolved, or that none answered within the session timeout.
async fn open_session(
    connect: &ConnectString,
    session_timeout: Duration,
    wake: &Arc<Notify>,
) -> Result<ZooKeeper, String> {
    // ZooKeeper's client resolves names once and fails if a single one is unknown; so it gets addresses, of those that
    // are known.
    let mut addresses: Vec<SocketAddr> = Vec::new();
    let mut unresolved = String::new();
    for host in connect.hosts() {
        match tokio::net::lookup_host(host).await {
            Ok(found) => addresses.extend(found.take(1)),
            Err(error) => unresolved = format!("{host}: {error}"),
        }
    }
    if addresses.is_empty() {
        return Err(unresolved);
    }
    let addresses = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let connecting = ZooKeeper::connect_with_retry_time(
        &addresses,
        session_timeout,
        Wake(Arc::clone(wake)),
        CLIENT_RECONNECT_PAUSE,
    );
    // It tries for ever by itself, without telling; a try of ours ends, so that it can be told.
    match timeout(session_timeout, connecting).await {
        Ok(Ok(zookeeper)) => {
            let wake = Arc::clone(wake);
            zookeeper.add_listener(move |_| wake.notify_one());
            Ok(zookeeper)
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer from {}", connect.hosts().join(","))),
    }
}

/// Wakes on every event of a session and of its watches.
struct Wake(Arc<Notify>);

impl Watcher for Wake {
    fn handle(&self, _: WatchedEvent) {
        self.0.notify_one();
    }
}
