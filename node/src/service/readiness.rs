//! Whether the node wants requests.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::FutureExt as _;
use tokio::task::JoinHandle;

use crate::replication::progress::Progress;

pub struct Readiness {
    progress: Arc<Progress>,
    stopping: AtomicBool,
}

impl Readiness {
    /// Of a node whose replica tells `progress`.
    #[must_use]
    pub fn new(progress: Arc<Progress>) -> Self {
        Self { progress, stopping: AtomicBool::new(false) }
    }

    /// From now on the node is unready, since it stops.
    pub fn set_stopping(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Why the node should get no requests; `None` when it is ready.
    #[must_use]
    pub fn unready(&self) -> Option<String> {
        if self.stopping.load(Ordering::Relaxed) {
            return Some("stopping".to_owned());
        }
        self.progress.unready()
    }

    /// Runs a task that the node can't do without, such as what accepts an interface's connections. Should it panic, the node
    /// has failed for good.
    pub fn run_task(
        &self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> JoinHandle<()> {
        let progress = Arc::clone(&self.progress);
        tokio::spawn(async move {
            if AssertUnwindSafe(task).catch_unwind().await.is_err() {
                progress.fail(format!("the task '{name}' panicked; restart the node"));
            }
        })
    }
}
