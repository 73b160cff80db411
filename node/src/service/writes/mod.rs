//! What a set and a delete mean: a record, appended to the log and acknowledged. The store is not touched here; the
//! record comes back through the replica.

mod group;

use std::sync::Arc;
use std::time::Duration;

use bitacora_protocol::record::{KeyValue, source, ttl};
use parking_lot::RwLock;
use uuid::Uuid;

pub use self::group::{PlainWritten, WriteGroup};
use crate::log::{AppendError, Appended, Appending, Log, NewRecord, Unsettled};
use crate::metrics::Metrics;
use crate::now_ms;
use crate::service::memory::Permit;
use crate::store::Entry;
use crate::telemetry::TraceParent;

/// The longest key, in bytes of UTF-8. LMDB bounds it; see [`crate::store::Store::max_key_bytes`].
pub const MAX_KEY_BYTES: usize = 1024;
/// What a write has beside its keys and its value, at most. In the record: four numbers, three lengths and a UUID, some 80
/// bytes. Beside it, with `OTLP_ENDPOINT`: the header `traceparent`, some 70. The producer's `message.max.bytes` bounds
/// both together with Kafka's own framing of a record.
pub const RECORD_OVERHEAD_BYTES: usize = 256;
/// The longest time to live that is taken: a hundred years.
pub const MAX_TTL: Duration = Duration::from_hours(100 * 365 * 24);

pub struct Writes {
    log: Arc<dyn Log>,
    /// Once true, nothing is appended. Held while a record is handed over, so that none slips past.
    closed: RwLock<bool>,
    max_value_bytes: usize,
    metrics: Arc<Metrics>,
}

#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("the value has {size} bytes; a value has at most {max} (MAX_VALUE_BYTES)")]
    ValueTooLarge { size: usize, max: usize },
    #[error(transparent)]
    Log(#[from] AppendError),
}

/// An acknowledged write.
#[derive(Debug)]
pub struct Written {
    pub appended: Appended,
    /// As [`KeyValue::ttl`].
    pub ttl: i64,
    pub uuid: String,
    /// Of a write that was to be shown: the members that did not show it in time, `host:API_PORT` of each.
    pub not_visible: Vec<String>,
    /// The record, if an earlier call of the same uuid has written it; its value may be another than the one that was sent now.
    pub earlier: Option<Earlier>,
}

/// The record of an earlier call.
#[derive(Debug)]
pub struct Earlier {
    pub entry: Entry,
    /// For the entry.
    pub memory: Option<Permit>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("the key is missing or blank")]
    Blank,
    #[error("the key has {0} bytes; a key has at most {MAX_KEY_BYTES}")]
    TooLong(usize),
    #[error("the key begins with U+0000; such keys are the nodes' own")]
    Reserved,
}

/// Whether a text can be a key.
///
/// # Errors
/// When it is blank, too long, or one that nodes keep for themselves.
pub fn check_key(key: &str) -> Result<(), KeyError> {
    match key.len() {
        _ if key.trim().is_empty() => Err(KeyError::Blank),
        length if length > MAX_KEY_BYTES => Err(KeyError::TooLong(length)),
        _ if key.starts_with('\0') => Err(KeyError::Reserved),
        _ => Ok(()),
    }
}

impl Writes {
    #[must_use]
    pub fn new(log: Arc<dyn Log>, max_value_bytes: usize, metrics: Arc<Metrics>) -> Self {
        Self { log, closed: false.into(), max_value_bytes, metrics }
    }

    /// That a value is not too large.
    ///
    /// # Errors
    /// When it is.
    pub fn check_value(&self, value: &str) -> Result<(), WriteError> {
        if value.len() > self.max_value_bytes {
            return Err(WriteError::ValueTooLarge { size: value.len(), max: self.max_value_bytes });
        }
        Ok(())
    }

    /// Sets a key that [`check_key`] accepts, for ever or for a time to live of at most [`MAX_TTL`]. The write takes its
    /// place in the log's order at once; the future completes when the log has acknowledged it. Reads on this node see
    /// it a moment later. `uuid` is the record's; `None` for one of its own.
    ///
    /// # Errors
    /// [`WriteError`] says whether the write may still take effect.
    pub fn set(
        &self,
        key: &str,
        value: &str,
        live: Option<Duration>,
        uuid: Option<&str>,
        trace: Option<TraceParent>,
    ) -> impl Future<Output = Result<Written, WriteError>> + Send + use<> {
        let begun = self.check_value(value).map(|()| self.write(key, value, expires(live), uuid, trace));
        async move { begun?.await }
    }

    /// Deletes a key, whether it is there or not, by a delete marker.
    ///
    /// # Errors
    /// As [`Writes::set`].
    pub fn delete(
        &self,
        key: &str,
        uuid: Option<&str>,
        trace: Option<TraceParent>,
    ) -> impl Future<Output = Result<Written, WriteError>> + Send + use<> {
        self.write(key, "", ttl::DELETED, uuid, trace)
    }

    /// Refuses every write from here on. A record that is being handed to the log right now is in its hands when this
    /// returns, so that a flush waits for it.
    pub fn close(&self) {
        *self.closed.write() = true;
    }

    /// Appends a record that need not be a plain write. It takes its place in the log's order at once.
    pub fn append_record(&self, record: &NewRecord) -> Appending {
        let (append, appending) = Appending::new(Some(Arc::clone(&self.metrics)));
        self.hand_over(record, append);
        appending
    }

    fn hand_over(&self, record: &NewRecord, append: Unsettled) {
        let closed = self.closed.read();
        if *closed {
            return append.settle(Err(AppendError::NotTaken("this node is stopping".to_owned())));
        }
        self.log.hand_over(record, append);
    }

    fn write(
        &self,
        key: &str,
        value: &str,
        ttl: i64,
        uuid: Option<&str>,
        trace: Option<TraceParent>,
    ) -> impl Future<Output = Result<Written, WriteError>> + Send + use<> {
        let uuid = uuid.map_or_else(|| Uuid::new_v4().to_string(), str::to_owned);
        let mut record = NewRecord { trace, ..NewRecord::default() };
        encode(key, value, ttl, &uuid, &mut record);
        let appended = self.append_record(&record);
        async move { Ok(Written { appended: appended.await?, ttl, uuid, not_visible: Vec::new(), earlier: None }) }
    }
}

/// When a record expires that lives from now on, in ms since the epoch; `None` for ever.
fn expires(live: Option<Duration>) -> i64 {
    live.map_or(ttl::FOR_EVER, |live| now_ms() + live.min(MAX_TTL).as_millis() as i64)
}

/// Puts key and value of a plain write into a record that is to be appended, in the place of what was there.
fn encode(key: &str, value: &str, ttl: i64, uuid: &str, record: &mut NewRecord) {
    record.key.clear();
    record.key.extend_from_slice(key.as_bytes());
    let bytes = record.value.get_or_insert_default();
    bytes.clear();
    KeyValue { key, value, timestamp: now_ms(), source: source::PRODUCER, ttl, uuid }.encode(bytes);
}

#[cfg(test)]
mod tests;
