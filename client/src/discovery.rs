//! Follows the znodes that nodes register, `/bitacora/sockets/<host>:<AVRO_PORT>`.
//!
//! Watches only make it look earlier: it looks once a second in any case, so that no event that gets lost between two
//! connections or sessions matters.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use zookeeper_async::{ZkError, ZkResult, ZooKeeper};

use crate::balance::Pool;
use bitacora_protocol::zookeeper::{ConnectString, SOCKETS, host_port, open_session};

/// ZooKeeper's members are looked at this often, if no watch or state change asks for it earlier.
const MEMBERSHIP_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Between two tries to reach a server.
const RECONNECT_PAUSE: Duration = Duration::from_millis(300);

/// What the last look at ZooKeeper was like; the error is a sentence.
pub(crate) type Look = Result<(), String>;

/// Dropping it ends the session, in the background.
pub(crate) struct Discovery {
    pub(crate) looks: watch::Receiver<Look>,
    task: JoinHandle<()>,
}

impl Discovery {
    /// Ends the session, and waits for that, but not for long.
    pub(crate) async fn close(self) {
        drop(self.looks);
        if timeout(MEMBERSHIP_CHECK_INTERVAL, self.task).await.is_err() {
            tracing::debug!("left ZooKeeper without its answer");
        }
    }
}

/// Keeps the pool's nodes as they are registered.
pub(crate) fn follow(connect: ConnectString, session_timeout: Duration, pool: &Arc<Pool>) -> Discovery {
    let (look, looks) = watch::channel(Err("not reached yet".to_owned()));
    let task = tokio::spawn(run(connect, session_timeout, Arc::downgrade(pool), look));
    Discovery { looks, task }
}

async fn run(
    connect: ConnectString,
    session_timeout: Duration,
    pool: Weak<Pool>,
    looks: watch::Sender<Look>,
) {
    let wake = Arc::new(Notify::new());
    let zookeeper = loop {
        let opened = tokio::select! {
            opened = open_session(&connect, session_timeout, &wake) => opened,
            () = looks.closed() => return,
        };
        match opened {
            Ok(zookeeper) => break zookeeper,
            Err(reason) => tell(&looks, Err(format!("ZooKeeper: {reason}"))),
        }
        if timeout(RECONNECT_PAUSE, looks.closed()).await.is_ok() {
            return;
        }
    };
    let folder = format!("{}{SOCKETS}", connect.chroot());
    while !looks.is_closed() {
        let members = tokio::select! {
            members = timeout(session_timeout.max(MEMBERSHIP_CHECK_INTERVAL), members(&zookeeper, &folder)) => members,
            () = looks.closed() => break,
        };
        let look = match members {
            // Nodes that all lost their sessions at once are more likely to be there than not.
            Ok(Ok(members)) if members.is_empty() => Err(format!("no node is registered below {folder}")),
            Ok(Ok(members)) => {
                let Some(pool) = pool.upgrade() else { break };
                pool.set(members);
                Ok(())
            }
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("no answer in time".to_owned()),
        };
        tell(&looks, look);
        // What happened meanwhile makes this return at once.
        let _ = timeout(MEMBERSHIP_CHECK_INTERVAL, async {
            tokio::select! {
                () = wake.notified() => {}
                () = looks.closed() => {}
            }
        })
        .await;
    }
    // A client of ZooKeeper that is merely dropped keeps its session alive.
    let closed = timeout(MEMBERSHIP_CHECK_INTERVAL, zookeeper.close()).await;
    tracing::debug!(?closed, "left ZooKeeper");
}

fn tell(looks: &watch::Sender<Look>, look: Look) {
    looks.send_if_modified(|last| {
        let changed = *last != look;
        if changed {
            match &look {
                Ok(()) => tracing::debug!("ZooKeeper answers"),
                Err(reason) => tracing::warn!(reason, "going on with the nodes last known"),
            }
            *last = look;
        }
        changed
    });
}

async fn members(zookeeper: &ZooKeeper, folder: &str) -> ZkResult<Vec<String>> {
    let mut members = match zookeeper.get_children(folder, true).await {
        // Made by the first node that registers; no watch was left.
        Err(ZkError::NoNode) => Vec::new(),
        members => members?,
    };
    members.retain(|member| match host_port(member) {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(error, "a znode of {folder} is no node");
            false
        }
    });
    Ok(members)
}
