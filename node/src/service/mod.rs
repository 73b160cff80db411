//! What an operation means, whichever interface it comes through. HTTP, RPC and batches all go through [`Service`].

pub mod access;
pub mod barriers;
pub mod batch;
pub mod changes;
pub mod conditional;
pub mod consistency;
pub mod digests;
pub mod error;
pub mod level;
pub mod members;
pub mod memory;
pub mod peers;
pub mod readiness;
pub mod reads;
mod rounds;
pub mod scans;
pub mod scrape;
pub mod slow;
pub mod status;
pub mod visibility;
pub mod writes;

use std::sync::Arc;
use std::time::Duration;

use bitacora_protocol::rpc::ScanRequest;
use bitacora_protocol::{Operation, ReadOptions, WriteCondition, WriteOptions};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Either};

use crate::log::LogTag;
use crate::service::changes::Changes;
use crate::service::conditional::{Content, WritesWithOptions};
use crate::service::consistency::{ConsistentReads, Demand};
use crate::service::error::OperationError;
use crate::service::memory::Memory;
use crate::service::reads::{Answer, OwnAnswer, Reads};
use crate::service::scans::{Page, Scans};
use crate::service::visibility::{Showing, Visibility};
use crate::service::writes::{MAX_TTL, WriteError, Writes, Written, check_key};
use crate::store::{Entry, FoundTogether, Store};
use crate::telemetry::TraceParent;

/// The operations of a node.
pub struct Service {
    reads: Arc<Reads>,
    writes: Arc<Writes>,
    scans: Scans,
    consistent: Arc<ConsistentReads>,
    visibility: Arc<Visibility>,
    with_options: WritesWithOptions,
    changes: Arc<Changes>,
    memory: Memory,
}

/// What an operation came to.
#[derive(Debug)]
pub enum Done {
    Read(Answer),
    Written(Written),
}

impl Done {
    /// The `outcome` label of an acknowledged write.
    pub const WRITTEN: &str = "ok";

    /// The `outcome` label of the metrics.
    #[must_use]
    pub fn outcome(&self) -> &'static str {
        match self {
            Self::Read(answer) => answer.outcome(),
            Self::Written(_) => Self::WRITTEN,
        }
    }
}

pub type Outcome = Result<Done, OperationError>;

/// An operation that has begun.
pub enum Begun {
    Done(Outcome),
    /// Waits for the log or for other members. A write happens also if this is dropped.
    Later(BoxFuture<'static, Outcome>),
}

impl Service {
    #[must_use]
    pub fn new(
        parts: WritesWithOptions,
        scans: Scans,
        visibility: Visibility,
        changes: Changes,
        memory: Memory,
    ) -> Self {
        let changes = Arc::new(changes);
        let (reads, writes) = (Arc::clone(&parts.reads), Arc::clone(&parts.writes));
        let (consistent, visibility) = (Arc::clone(&parts.consistent), Arc::new(visibility));
        Self { reads, writes, scans, consistent, visibility, with_options: parts, changes, memory }
    }

    /// The budget that what comes in, waits and goes out is counted against.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// What those follow who want to be told what changes.
    #[must_use]
    pub fn changes(&self) -> &Arc<Changes> {
        &self.changes
    }

    /// Refuses every write from here on: the node stops, and flushes its log next.
    pub fn close_writes(&self) {
        self.writes.close();
        self.consistent.close();
    }

    /// The newest record of a key that this node, or else the cluster, knows, as consistent as asked for.
    ///
    /// # Errors
    /// When the key can be none, the options make no sense, the store fails, or the node can't know in time.
    pub async fn get(&self, key: &str, read: &ReadOptions<'_>) -> Result<Answer, OperationError> {
        check_key(key)?;
        let demand = Demand::of(read)?;
        if demand.is_eventual() {
            if let Some(answer) = self.reads.at_once(key)? {
                return Ok(answer);
            }
            // What waits is seldom and large, and would otherwise be moved about with each request that does not.
            return Ok(Box::pin(self.reads.get(key)).await?);
        }
        let waits = Box::pin(read_consistently(&self.reads, &self.consistent, key, &demand));
        Ok(waits.await?.0)
    }

    /// As [`Service::get`], of this node alone, and the log that the answer is of.
    ///
    /// # Errors
    /// As [`Service::get`].
    pub async fn get_local(
        &self,
        key: &str,
        read: &ReadOptions<'_>,
    ) -> Result<(Answer, LogTag), OperationError> {
        check_key(key)?;
        let demand = Demand::of(read)?;
        if demand.is_eventual() {
            return Ok(self.reads.get_local(key)?);
        }
        read_consistently(&self.reads, &self.consistent, key, &demand).await
    }

    /// Sets a key, for ever or for a time to live of at most [`MAX_TTL`]. The write takes its place in the log's order at
    /// once; the future completes when the log has acknowledged it. It happens also if the future is dropped. On a condition, or under
    /// the caller's uuid, it takes its place once it was compared, and completes when it is decided. `trace` is of which trace it is a part.
    ///
    /// # Errors
    /// The future's say by their kind whether the write may still take effect.
    pub fn set(
        &self,
        key: &str,
        value: &str,
        live: Option<Duration>,
        write: &WriteOptions<'_>,
        trace: Option<TraceParent>,
    ) -> impl Future<Output = Result<Written, OperationError>> + Send + use<> {
        let begun = self.showing(key, write).and_then(|showing| {
            let written = if is_unconditional(write) {
                Either::Left(self.writes.set(key, value, live, None, trace))
            } else {
                let content = Content::Set { value: value.to_owned(), live };
                Either::Right(self.with_options.begin(key, content, write, trace)?)
            };
            Ok((showing, written))
        });
        shown(begun)
    }

    /// Deletes a key, whether it is there or not; otherwise as [`Service::set`].
    ///
    /// # Errors
    /// As [`Service::set`].
    pub fn delete(
        &self,
        key: &str,
        write: &WriteOptions<'_>,
        trace: Option<TraceParent>,
    ) -> impl Future<Output = Result<Written, OperationError>> + Send + use<> {
        let begun = self.showing(key, write).and_then(|showing| {
            let written = if is_unconditional(write) {
                Either::Left(self.writes.delete(key, None, trace))
            } else {
                Either::Right(self.with_options.begin(key, Content::Delete, write, trace)?)
            };
            Ok((showing, written))
        });
        shown(begun)
    }

    /// A page of a scan, of this node alone.
    ///
    /// # Errors
    /// When the request is wrong, the node does not know all keys yet, or not in time, or has no memory for a page, or the store
    /// fails.
    pub async fn scan(&self, scan: &ScanRequest<'_>, read: &ReadOptions<'_>) -> Result<Page, OperationError> {
        let demand = Demand::of(read)?;
        if demand.is_eventual() {
            return Ok(self.scans.page(scan, &self.memory).await?);
        }
        scan_consistently(&self.scans, &self.consistent, scan, &demand, &self.memory).await
    }

    /// How many keys are worth looking up together.
    pub const MOST_TOGETHER: usize = Store::MOST_TOGETHER;

    /// What is cached of keys that are read next, one by one: for [`Service::begin`]. Whoever asks for several in one go has these reads for
    /// less.
    pub fn cached(&self, keys: &[&[u8]]) -> FoundTogether {
        self.reads.cached(keys)
    }

    /// Begins one of several operations, of a batch or of a pipelining client. Writes take their place in the log's order in
    /// the order of these calls.
    ///
    /// `cached`: what [`Service::cached`] has just found of the key.
    pub fn begin(
        &self,
        operation: Operation<'_>,
        cached: Option<Entry>,
        trace: Option<TraceParent>,
    ) -> Begun {
        if let Err(error) = check_key(operation.key()) {
            return Begun::Done(Err(error.into()));
        }
        match operation {
            Operation::Get { key, read } => self.begin_get(key, &read, cached),
            Operation::Set { key, value, ttl, write } => {
                let live = match time_to_live(ttl) {
                    Ok(live) => live,
                    Err(error) => return Begun::Done(Err(error)),
                };
                let written = self.set(key, value, live, &write, trace);
                Begun::Later(written.map(|written| written.map(Done::Written)).boxed())
            }
            Operation::Delete { key, write } => {
                let written = self.delete(key, &write, trace);
                Begun::Later(written.map(|written| written.map(Done::Written)).boxed())
            }
        }
    }

    /// What is to be waited for once a write is acknowledged.
    fn showing(&self, key: &str, write: &WriteOptions<'_>) -> Result<Option<Showing>, OperationError> {
        check_key(key)?;
        Ok(self.visibility.of_write(key, write, &self.memory)?)
    }

    fn begin_get(&self, key: &str, read: &ReadOptions<'_>, cached: Option<Entry>) -> Begun {
        let demand = match Demand::of(read) {
            Ok(demand) => demand,
            Err(error) => return Begun::Done(Err(error.into())),
        };
        if demand.is_eventual() {
            if let Some(entry) = cached {
                return Begun::Done(Ok(Done::Read(self.reads.answer_cached(entry))));
            }
            return match self.reads.at_once(key) {
                Ok(Some(answer)) => Begun::Done(Ok(Done::Read(answer))),
                Err(error) => Begun::Done(Err(error.into())),
                Ok(None) => {
                    let (reads, key) = (Arc::clone(&self.reads), key.to_owned());
                    Begun::Later(async move { Ok(Done::Read(reads.get(&key).await?)) }.boxed())
                }
            };
        }
        let (reads, consistent) = (Arc::clone(&self.reads), Arc::clone(&self.consistent));
        let key = key.to_owned();
        Begun::Later(
            async move {
                let (answer, _) = read_consistently(&reads, &consistent, &key, &demand).await?;
                Ok(Done::Read(answer))
            }
            .boxed(),
        )
    }
}

/// A read that is more than eventual: once this node's store has what it must see, it is answered from there. With the log that the
/// answer is of.
///
/// One LMDB transaction after the wait is enough. The store commits before it tells that a position is applied, so a transaction that
/// begins after the wait has all that the read must see. Records and doubts are committed together, so within one transaction
/// "no doubt" is about the very record that is read: what comes later changes neither. And if the store is replaced or
/// emptied, its number changes before that, so that `confirm`, after the read, refuses what may be of another store.
async fn read_consistently(
    reads: &Reads,
    consistent: &ConsistentReads,
    key: &str,
    demand: &Demand,
) -> Result<(Answer, LogTag), OperationError> {
    let reached = consistent.reach(Some(key), demand).await?;
    let OwnAnswer { mut answer, log, in_doubt } = reads.get_own(key)?;
    if in_doubt {
        return Err(consistent.in_doubt(key).into());
    }
    // All who waited for one barrier have their answers at once.
    answer.count(consistent.memory())?;
    consistent.confirm(Some(key), reached)?;
    Ok((answer, log))
}

/// As [`read_consistently`], a page of a scan: it is refused if it would say something of a key in doubt, as a read of that key is.
/// The page is read in one transaction, too, also what is in doubt.
async fn scan_consistently(
    scans: &Scans,
    consistent: &ConsistentReads,
    scan: &ScanRequest<'_>,
    demand: &Demand,
    memory: &Memory,
) -> Result<Page, OperationError> {
    let reached = consistent.reach(None, demand).await?;
    let page = scans.page(scan, memory).await?;
    if let Some(key) = &page.in_doubt {
        return Err(consistent.scan_in_doubt(key).into());
    }
    consistent.confirm(None, reached)?;
    Ok(page)
}

/// A write that has begun, plain or with options, until it is shown by whom it must be.
async fn shown<P, W>(
    begun: Result<(Option<Showing>, Either<P, W>), OperationError>,
) -> Result<Written, OperationError>
where
    P: Future<Output = Result<Written, WriteError>>,
    W: Future<Output = Result<Written, OperationError>>,
{
    let (showing, written) = begun?;
    let written = match written {
        Either::Left(plain) => plain.await?,
        Either::Right(with_options) => with_options.await?,
    };
    Ok(Showing::wait(showing, written).await)
}

/// The time to live that so many ms are; `None` for ever.
fn time_to_live(ms: i64) -> Result<Option<Duration>, OperationError> {
    let live = u64::try_from(ms).ok().map(Duration::from_millis).filter(|live| *live <= MAX_TTL);
    let live = live.ok_or(OperationError::Ttl(ms))?;
    Ok((ms > 0).then_some(live))
}

/// Whether a write takes effect whatever the key holds.
fn is_unconditional(write: &WriteOptions<'_>) -> bool {
    write.condition == WriteCondition::None && write.uuid.is_empty()
}

#[cfg(test)]
mod tests;
