//! Operations of one request that begin together: those of a batch.

use std::time::Duration;

use bitacora_protocol::{Operation, Visible, WriteOptions};

use super::writes::{PlainWritten, WriteError, WriteGroup, check_key};
use super::{Begun, Outcome, Service, is_unconditional, time_to_live};
use crate::telemetry::TraceParent;

/// One of a batch's operations that has begun.
pub enum BegunInBatch {
    /// A plain write: the next of the group.
    Plain,
    /// Anything else.
    Other(Begun),
}

/// Where one of a batch's operations is, once it has begun.
pub enum InBatch {
    /// The next of the plain writes.
    Plain,
    /// The next of those that wait for something else.
    Later,
    Done(Outcome),
}

/// What one of a batch's operations came to.
pub enum EndedInBatch {
    Plain(Result<PlainWritten, WriteError>),
    Other(Outcome),
}

impl Service {
    /// A group for the plain writes of a request. `trace` is of which trace the request is.
    #[must_use]
    pub fn write_group(&self, trace: Option<TraceParent>) -> WriteGroup {
        WriteGroup::new(self.writes.clone(), trace)
    }

    /// Begins one of a batch's operations, as [`Service::begin`] does; but plain writes are waited for together.
    pub fn begin_in_batch(
        &self,
        operation: Operation<'_>,
        group: &mut WriteGroup,
        trace: Option<TraceParent>,
    ) -> BegunInBatch {
        match operation {
            Operation::Set { key, value, ttl, write } if is_plain(&write) => {
                let begun = check_key(key)
                    .map_err(Into::into)
                    .and_then(|()| time_to_live(ttl))
                    .and_then(|live: Option<Duration>| Ok(group.set(key, value, live)?));
                match begun {
                    Ok(()) => BegunInBatch::Plain,
                    Err(error) => BegunInBatch::Other(Begun::Done(Err(error))),
                }
            }
            Operation::Delete { key, write } if is_plain(&write) => match check_key(key) {
                Ok(()) => {
                    group.delete(key);
                    BegunInBatch::Plain
                }
                Err(error) => BegunInBatch::Other(Begun::Done(Err(error.into()))),
            },
            operation => BegunInBatch::Other(self.begin(operation, None, trace)),
        }
    }
}

/// Whether a write is to be acknowledged and nothing else.
fn is_plain(write: &WriteOptions<'_>) -> bool {
    is_unconditional(write) && write.visible == Visible::Acknowledged && write.timeout.is_none()
}
