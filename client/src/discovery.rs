//! Follows the znodes that nodes register, `/bitacora/sockets/<host>:<AVRO_PORT>`.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bitacora_protocol::zookeeper::{self, ConnectString, Follower, SOCKETS};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use zookeeper_async::{ZkResult, ZooKeeper};

use crate::balance::Pool;

/// How long [`Discovery::close`] waits for ZooKeeper.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Whether ZooKeeper answered when it was last looked at, and named a node; the error says what went wrong.
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
        if timeout(CLOSE_TIMEOUT, self.task).await.is_err() {
            tracing::debug!("left ZooKeeper without its answer");
        }
    }
}

/// Keeps the pool's nodes as they are registered.
pub(crate) fn follow(connect: ConnectString, session_timeout: Duration, pool: &Arc<Pool>) -> Discovery {
    let (look, looks) = watch::channel(Err("not reached yet".to_owned()));
    let mut nodes = RegisteredNodes {
        folder: format!("{}{SOCKETS}", connect.chroot()),
        pool: Arc::downgrade(pool),
        looks: look.clone(),
    };
    let task = tokio::spawn(async move {
        zookeeper::follow(&connect, session_timeout, Arc::default(), look.closed(), &mut nodes).await;
    });
    Discovery { looks, task }
}

struct RegisteredNodes {
    folder: String,
    pool: Weak<Pool>,
    looks: watch::Sender<Look>,
}

impl Follower for RegisteredNodes {
    async fn look(&mut self, zookeeper: &ZooKeeper) -> ZkResult<()> {
        let members = zookeeper::members(zookeeper, &self.folder, true).await?;
        // Nodes that all lost their sessions at once are more likely to be there than not.
        if members.is_empty() {
            self.report(Err(format!("no node is registered below {}", self.folder)));
        } else {
            if let Some(pool) = self.pool.upgrade() {
                pool.set(members);
            }
            self.report(Ok(()));
        }
        Ok(())
    }

    fn disconnected(&mut self, reason: String) {
        self.report(Err(format!("ZooKeeper: {reason}")));
    }
}

impl RegisteredNodes {
    fn report(&self, look: Look) {
        self.looks.send_if_modified(|last| {
            let changed = *last != look;
            if changed {
                match (&*last, &look) {
                    (_, Ok(())) => tracing::debug!("ZooKeeper answers"),
                    (Ok(()), Err(reason)) => tracing::warn!(reason, "going on with the nodes last known"),
                    // Once is enough, however often the reason changes.
                    (Err(_), Err(reason)) => tracing::debug!(reason, "ZooKeeper is still away"),
                }
                *last = look;
            }
            changed
        });
    }
}
