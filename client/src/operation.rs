//! What a batch does: its operations, and what comes of them.

use std::time::Duration;

use bitacora_protocol::{Position, Visible, WriteCondition};

use crate::read::ReadLevel;
use crate::session::Session;
use crate::types::{Record, Written};

/// One of a [batch](crate::Client::batch).
///
/// ```
/// use bitacora_client::{Operation, ReadLevel};
///
/// let read = Operation::read("limit", ReadLevel::strong());
/// let create: Operation = Operation::create("limit", "10").into();
/// assert_eq!((read.key(), create.key()), ("limit", "limit"));
/// assert!(create.is_write() && !read.is_write());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Read a key, *eventual*.
    Get {
        /// The key.
        key: String,
    },
    /// Write a key.
    Set {
        /// The key.
        key: String,
        /// The value; may be empty.
        value: String,
        /// How long it lives, as in [`Client::set_with_ttl`](crate::Client::set_with_ttl); `None`: for ever.
        ttl: Option<Duration>,
    },
    /// Delete a key, whether or not it exists.
    Delete {
        /// The key.
        key: String,
    },
    /// Read a key and say how consistent that is.
    Read {
        /// The key.
        key: String,
        /// Its timeout is of no meaning here: the deadline is that of the batch.
        level: ReadLevel,
    },
    /// Write or delete a key and say more: a condition, a uuid, who must show it.
    Write(WriteOperation),
}

/// A write of a [batch](crate::Client::batch) that may say more; made by [`Operation::write`] and its like. `.into()` makes an
/// [`Operation`] of it.
///
/// ```
/// use std::time::Duration;
/// use bitacora_client::{Operation, Position};
///
/// let version: Position = "2:1047".parse().expect("a position");
/// let batch: [Operation; 3] = [
///     Operation::create("locks/report", "worker-7").ttl(Duration::from_secs(30)).into(),
///     Operation::compare_and_set("limit", version, "20").into(),
///     Operation::remove("old").if_present().into(),
/// ];
/// assert!(batch.iter().all(Operation::is_write));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteOperation {
    /// The key.
    pub key: String,
    /// The value; `None`: a delete.
    pub value: Option<String>,
    /// How long the key lives; `None`: for ever. Of no meaning to a delete.
    pub ttl: Option<Duration>,
    /// On which condition the write takes effect.
    pub condition: WriteCondition,
    /// The record's uuid; `None`: one of its own.
    pub uuid: Option<String>,
    /// Who must show the write before the batch returns.
    pub visible: Visible,
    /// Whose reads see the write.
    pub session: Option<Session>,
}

/// What came of an [`Operation`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Of [`Operation::Get`] and [`Operation::Read`].
    Read(Record),
    /// Of all others.
    Written(Written),
}

impl Operation {
    /// A read that says how consistent it is, as [`Client::read`](crate::Client::read).
    #[must_use]
    pub fn read(key: impl Into<String>, level: ReadLevel) -> Self {
        Self::Read { key: key.into(), level }
    }

    /// A write that may say more, as [`Client::write`](crate::Client::write).
    #[must_use]
    pub fn write(key: impl Into<String>, value: impl Into<String>) -> WriteOperation {
        WriteOperation::new(key.into(), Some(value.into()))
    }

    /// A delete that may say more, as [`Client::remove`](crate::Client::remove).
    #[must_use]
    pub fn remove(key: impl Into<String>) -> WriteOperation {
        WriteOperation::new(key.into(), None)
    }

    /// Writes a key that is not there yet, as [`Client::create`](crate::Client::create).
    #[must_use]
    pub fn create(key: impl Into<String>, value: impl Into<String>) -> WriteOperation {
        Self::write(key, value).if_absent()
    }

    /// Writes a key whose version is still this one, as [`Client::compare_and_set`](crate::Client::compare_and_set).
    #[must_use]
    pub fn compare_and_set(
        key: impl Into<String>,
        version: Position,
        value: impl Into<String>,
    ) -> WriteOperation {
        Self::write(key, value).if_version(version)
    }

    /// Deletes a key whose version is still this one, as [`Client::delete_if`](crate::Client::delete_if).
    #[must_use]
    pub fn delete_if(key: impl Into<String>, version: Position) -> WriteOperation {
        Self::remove(key).if_version(version)
    }

    /// The key that it is about.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Get { key }
            | Self::Set { key, .. }
            | Self::Delete { key }
            | Self::Read { key, .. }
            | Self::Write(WriteOperation { key, .. }) => key,
        }
    }

    /// Whether it changes the key.
    #[must_use]
    pub fn is_write(&self) -> bool {
        !matches!(self, Self::Get { .. } | Self::Read { .. })
    }

    /// Whether it may say more than nodes of before understand.
    pub(crate) fn has_options(&self) -> bool {
        matches!(self, Self::Read { .. } | Self::Write(_))
    }

    /// Whether an attempt whose fate is unclear may be sent again: its uuid tells that it is the same.
    pub(crate) fn is_conditional(&self) -> bool {
        matches!(self, Self::Write(write) if write.condition != WriteCondition::None)
    }
}

impl WriteOperation {
    fn new(key: String, value: Option<String>) -> Self {
        Self {
            key,
            value,
            ttl: None,
            condition: WriteCondition::None,
            uuid: None,
            visible: Visible::Acknowledged,
            session: None,
        }
    }

    /// How long the key lives, as in [`Client::set_with_ttl`](crate::Client::set_with_ttl).
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Writes only if the key's record is that of this version: the `position` of what was read or written.
    #[must_use]
    pub fn if_version(mut self, version: Position) -> Self {
        self.condition = WriteCondition::Version(version);
        self
    }

    /// Writes only if the key is there.
    #[must_use]
    pub fn if_present(mut self) -> Self {
        self.condition = WriteCondition::Present;
        self
    }

    /// Writes only if the key is not there.
    #[must_use]
    pub fn if_absent(mut self) -> Self {
        self.condition = WriteCondition::Absent;
        self
    }

    /// The record's uuid, for a write that another process may repeat: a key that has it is not written again.
    #[must_use]
    pub fn uuid(mut self, uuid: impl Into<String>) -> Self {
        self.uuid = Some(uuid.into());
        self
    }

    /// Who must show the write before the batch returns.
    #[must_use]
    pub fn visible(mut self, visible: Visible) -> Self {
        self.visible = visible;
        self
    }

    /// Reads of this session see the write, once the batch has returned.
    #[must_use]
    pub fn session(mut self, session: &Session) -> Self {
        self.session = Some(session.clone());
        self
    }
}

impl From<WriteOperation> for Operation {
    fn from(write: WriteOperation) -> Self {
        Self::Write(write)
    }
}
