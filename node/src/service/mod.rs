//! What both interfaces lead to, and what an operation means whichever interface it comes through.

pub mod peers;
pub mod reads;
pub mod scans;
pub mod writes;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bitacora_protocol::rpc::Operation;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::task::JoinHandle;

use crate::cluster::{Address, Membership};
use crate::log::Log;
use crate::metrics::Metrics;
use crate::replication::progress::{Phase, Progress};
use crate::replication::snapshot::Snapshots;
use crate::service::reads::{Answer, Found, GetError, Reads};
use crate::service::scans::Scans;
use crate::service::writes::{KeyError, MAX_TTL, WriteError, Writes, Written, check_key};
use crate::store::Store;

pub struct Service {
    pub reads: Arc<Reads>,
    pub writes: Writes,
    pub scans: Scans,
    pub log: Arc<dyn Log>,
    pub store: Arc<Store>,
    pub progress: Arc<Progress>,
    pub membership: Arc<dyn Membership>,
    pub metrics: Arc<Metrics>,
    pub address: Address,
    pub max_value_bytes: usize,
    pub request_timeout: Duration,
    pub stopping: AtomicBool,
    pub snapshots: Snapshots,
}

/// What an operation came to.
#[derive(Debug)]
pub enum Done {
    Read(Answer),
    Written(Written),
}

#[derive(Debug, thiserror::Error)]
pub enum OperationError {
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("the ttl is {0} ms; it is 0 for ever, or 1 ms to a hundred years")]
    Ttl(i64),
    #[error("the answers of this batch have more bytes than fit into one; ask for this key again")]
    BatchTooLarge,
    #[error(transparent)]
    Get(#[from] GetError),
    #[error(transparent)]
    Write(#[from] WriteError),
}

pub type Outcome = Result<Done, OperationError>;

/// An operation that has begun.
pub enum Begun {
    Done(Outcome),
    /// Waits for the log or for other members. A write happens also if this is dropped.
    Later(BoxFuture<'static, Outcome>),
}

impl Service {
    /// Begins an operation. Writes take their place in the log's order in the order of these calls.
    pub fn begin(&self, operation: Operation<'_>) -> Begun {
        if let Err(error) = check_key(operation.key()) {
            return Begun::Done(Err(error.into()));
        }
        match operation {
            Operation::Get { key } => match self.reads.at_once(key) {
                Ok(Some(answer)) => Begun::Done(Ok(Done::Read(answer))),
                Err(error) => Begun::Done(Err(error.into())),
                Ok(None) => {
                    let (reads, key) = (Arc::clone(&self.reads), key.to_owned());
                    Begun::Later(async move { Ok(Done::Read(reads.get(&key).await?)) }.boxed())
                }
            },
            Operation::Set { key, value, ttl } => {
                let live = u64::try_from(ttl).ok().map(Duration::from_millis).filter(|live| *live <= MAX_TTL);
                let Some(live) = live else { return Begun::Done(Err(OperationError::Ttl(ttl))) };
                let written = self.writes.set(key, value, (ttl > 0).then_some(live));
                Begun::Later(async move { Ok(Done::Written(written.await?)) }.boxed())
            }
            Operation::Delete { key } => {
                let written = self.writes.delete(key);
                Begun::Later(async move { Ok(Done::Written(written.await?)) }.boxed())
            }
        }
    }

    /// Runs what accepts a interface's connections. Should it panic, the node is told to be broken: nobody would get in.
    pub fn keep_open(
        &self,
        name: &'static str,
        accepting: impl Future<Output = ()> + Send + 'static,
    ) -> JoinHandle<()> {
        let progress = Arc::clone(&self.progress);
        tokio::spawn(async move {
            if AssertUnwindSafe(accepting).catch_unwind().await.is_err() {
                progress.set_phase(Phase::Failed(format!("the {name} service panicked")));
            }
        })
    }

    /// Why the node should get no requests; `None` when it is ready.
    pub fn unready(&self) -> Option<String> {
        if self.stopping.load(Ordering::Relaxed) {
            return Some("stopping".to_owned());
        }
        self.progress.unready()
    }
}

/// The `outcome` label of the metrics.
#[must_use]
pub fn label(done: &Done) -> &'static str {
    match done {
        Done::Read(Answer { found: Found::Local(_) | Found::Peer(_), .. }) => "found",
        Done::Read(Answer { found: Found::Gone { .. } | Found::Missing, .. }) => "missing",
        Done::Written(_) => "ok",
    }
}
