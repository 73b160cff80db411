//! What a conditional write does with its key: reads what is held, waits for the log, appends. A seam, so that what races can be told in
//! tests.

use bitacora_protocol::Position;
use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::{ConditionalError, NotMet};
use crate::clock::{LogTime, Moment};
use crate::log::{AppendError, Appended, Expected};
use crate::replication::decisions::Waiting;
use crate::store::Entry;
use crate::telemetry::TraceParent;

/// Where a key is, once it was found that this node can decide upon it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// The key's.
    pub partition: i32,
    /// Of the store that is read: another number is another store.
    pub store_number: u64,
}

/// An attempt that is to be appended.
#[derive(Debug)]
pub struct NewAttempt<'a> {
    pub partition: i32,
    pub key: &'a str,
    /// An encoded record.
    pub value: Vec<u8>,
    /// The record's.
    pub uuid: &'a str,
    pub expected: Expected,
    /// It takes no effect if it is appended later.
    pub until: LogTime,
    pub trace: Option<TraceParent>,
}

/// An attempt that is on its way into the log.
pub struct Attempt {
    pub acknowledged: BoxFuture<'static, Result<Appended, AppendError>>,
    /// Begun before it was appended.
    pub waiting: Waiting,
}

/// The key, as a conditional write sees it.
pub trait KeyAccess: Send + Sync + 'static {
    /// That there can be conditional writes, and that this node can decide one now; raises the level of the log if need be.
    ///
    /// # Errors
    /// Why not, or that the time is over.
    fn prepare(
        &self,
        key: &str,
        deadline: Instant,
    ) -> impl Future<Output = Result<Prepared, ConditionalError>> + Send;

    /// What the key's partition holds of it; `None` for nothing, which a provisional entry is as well.
    ///
    /// # Errors
    /// When the node does not know, or the key's record lies elsewhere.
    fn held(&self, key: &str, prepared: Prepared) -> Result<Option<Entry>, ConditionalError>;

    /// Waits until everything is applied that had been acknowledged in the key's partition when this was called.
    ///
    /// # Errors
    /// When that is not known in time.
    fn barrier(
        &self,
        key: &str,
        deadline: Instant,
    ) -> impl Future<Output = Result<(), ConditionalError>> + Send;

    /// Whether a position is applied.
    fn has_applied(&self, position: Position) -> bool;

    /// Waits until a position is applied; returns whether it is.
    fn applied(&self, position: Position, deadline: Instant) -> impl Future<Output = bool> + Send;

    /// Appends an attempt at once.
    fn attempt(&self, attempt: NewAttempt<'_>) -> Attempt;

    /// Appends the record that a void attempt hides once more, if that is still needed; returns whether it was acknowledged.
    fn repair(&self, key: &str, deadline: Instant) -> impl Future<Output = bool> + Send;

    /// What a caller is told of a key whose condition was not met, as the log's time `now` shows it.
    fn not_met(&self, key: &str, held: Option<Entry>, now: LogTime) -> NotMet;

    /// How long the log tries to append a record.
    fn write_timeout(&self) -> std::time::Duration;

    fn now(&self) -> Moment;

    /// The time by the log's clock, as near as it is known: an error makes an attempt void, and the next one knows better.
    fn log_time(&self) -> LogTime;
}
