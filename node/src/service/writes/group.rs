//! Plain writes of one request: handed to the log one after the other, and waited for together.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bitacora_protocol::record::ttl;
use uuid::Uuid;
use uuid::fmt::Hyphenated;

use super::{WriteError, Writes, encode, expires};
use crate::log::{Appended, Appends, NewRecord};
use crate::telemetry::TraceParent;

/// A buffer above this is not kept for the next write.
const KEPT_BUFFER_BYTES: usize = 64 * 1024;

/// Plain writes that are waited for together. They happen also if this is dropped.
pub struct WriteGroup {
    writes: Arc<Writes>,
    appends: Appends,
    /// The time to live and the uuid of each.
    written: Vec<(i64, Uuid)>,
    /// So many outcomes were taken.
    taken: usize,
    /// The buffers of the last one, for the next.
    record: NewRecord,
}

/// An acknowledged write of a [`WriteGroup`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlainWritten {
    pub appended: Appended,
    /// As in a record of the log.
    pub ttl: i64,
    pub uuid: Uuid,
}

impl WriteGroup {
    /// `trace` is of which trace all of them are a part.
    #[must_use]
    pub fn new(writes: Arc<Writes>, trace: Option<TraceParent>) -> Self {
        let appends = Appends::new(Some(Arc::clone(&writes.metrics)));
        let record = NewRecord { trace, ..NewRecord::default() };
        Self { writes, appends, written: Vec::new(), taken: 0, record }
    }

    /// Sets a key that [`super::check_key`] accepts, for ever or for a time to live of at most [`super::MAX_TTL`]. The write takes its place in
    /// the log's order at once.
    ///
    /// # Errors
    /// When the value is too large; nothing was done.
    pub fn set(&mut self, key: &str, value: &str, live: Option<Duration>) -> Result<(), WriteError> {
        self.writes.check_value(value)?;
        self.write(key, value, expires(live));
        Ok(())
    }

    /// Deletes a key, whether it is there or not, by a delete marker; otherwise as [`WriteGroup::set`].
    pub fn delete(&mut self, key: &str) {
        self.write(key, "", ttl::DELETED);
    }

    fn write(&mut self, key: &str, value: &str, ttl: i64) {
        let (uuid, mut text) = (Uuid::new_v4(), [0; Hyphenated::LENGTH]);
        encode(key, value, ttl, uuid.hyphenated().encode_lower(&mut text), &mut self.record);
        self.writes.hand_over(&self.record, self.appends.begin());
        if self.record.value.as_ref().is_some_and(|bytes| bytes.capacity() > KEPT_BUFFER_BYTES) {
            self.record.value = None;
        }
        self.written.push((ttl, uuid));
    }

    /// There will be no more writes. To be told before they are waited for.
    pub fn close(&mut self) {
        self.appends.close();
        self.record = NewRecord::default();
    }

    /// Waits until the log has settled all of them.
    pub fn poll_settled(&self, context: &mut Context<'_>) -> Poll<()> {
        self.appends.poll_settled(context)
    }

    /// How many there are whose outcome was not taken yet.
    #[must_use]
    pub fn left(&self) -> usize {
        self.written.len() - self.taken
    }

    /// Takes what became of the next of them, in the order in which they began; `None` while it is not settled.
    ///
    /// # Errors
    /// [`WriteError`] says whether the write may still take effect.
    pub fn take_next(&mut self) -> Option<Result<PlainWritten, WriteError>> {
        let (ttl, uuid) = *self.written.get(self.taken)?;
        let outcome = self.appends.take(self.taken)?;
        self.taken += 1;
        Some(outcome.map(|appended| PlainWritten { appended, ttl, uuid }).map_err(WriteError::from))
    }
}
