//! What a set and a delete mean: a record, appended to the log and acknowledged. The store is not touched here; the
//! record comes back through the replica.

use std::sync::Arc;
use std::time::Duration;

use bitacora_client::wire::{KeyValue, source, ttl};
use uuid::Uuid;

use crate::log::{AppendError, Appended, Log};
use crate::now_ms;

/// The longest key, in bytes of UTF-8. LMDB bounds it; see [`crate::store::Store::max_key_bytes`].
pub const MAX_KEY_BYTES: usize = 1024;
/// What an encoded record has beside its key and value, at most: four numbers, three lengths, a UUID.
pub const RECORD_OVERHEAD_BYTES: usize = 128;
/// The longest time to live that is taken: a hundred years.
pub const MAX_TTL: Duration = Duration::from_hours(100 * 365 * 24);

pub struct Writes {
    log: Arc<dyn Log>,
    max_value_bytes: usize,
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
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("the key is missing or blank")]
    Blank,
    #[error("the key has {0} bytes; a key has at most {MAX_KEY_BYTES}")]
    TooLong(usize),
}

/// Whether a text can be a key.
///
/// # Errors
/// When it is blank or too long.
pub fn check_key(key: &str) -> Result<(), KeyError> {
    match key.len() {
        _ if key.trim().is_empty() => Err(KeyError::Blank),
        length if length > MAX_KEY_BYTES => Err(KeyError::TooLong(length)),
        _ => Ok(()),
    }
}

impl Writes {
    #[must_use]
    pub fn new(log: Arc<dyn Log>, max_value_bytes: usize) -> Self {
        Self { log, max_value_bytes }
    }

    /// Sets a key that [`check_key`] accepts, for ever or for a time to live of at most [`MAX_TTL`]. The write takes its
    /// place in the log's order at once; the future completes when the log has acknowledged it. Reads on this node see
    /// it a moment later.
    ///
    /// # Errors
    /// [`WriteError`] says whether the write may still take effect.
    pub fn set(
        &self,
        key: &str,
        value: &str,
        live: Option<Duration>,
    ) -> impl Future<Output = Result<Written, WriteError>> + Send + use<> {
        let begun = if value.len() > self.max_value_bytes {
            Err(WriteError::ValueTooLarge { size: value.len(), max: self.max_value_bytes })
        } else {
            let expires = live.map_or(ttl::FOR_EVER, |live| now_ms() + live.min(MAX_TTL).as_millis() as i64);
            Ok(self.write(key, value, expires))
        };
        async move { begun?.await }
    }

    /// Deletes a key, whether it is there or not, by a delete marker.
    ///
    /// # Errors
    /// As [`Writes::set`].
    pub fn delete(&self, key: &str) -> impl Future<Output = Result<Written, WriteError>> + Send + use<> {
        self.write(key, "", ttl::DELETED)
    }

    fn write(
        &self,
        key: &str,
        value: &str,
        ttl: i64,
    ) -> impl Future<Output = Result<Written, WriteError>> + Send + use<> {
        let uuid = Uuid::new_v4().to_string();
        let record = KeyValue { key, value, timestamp: now_ms(), source: source::PRODUCER, ttl, uuid: &uuid };
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        let appended = self.log.append(key, bytes);
        async move { Ok(Written { appended: appended.await?, ttl, uuid }) }
    }
}
