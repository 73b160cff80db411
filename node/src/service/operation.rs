//! An operation on a key, with all that its caller may ask of it.

use bitacora_protocol::{ReadOptions, WriteOptions, rpc};

/// An operation on a key, borrowed from the request that it came with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation<'a> {
    Get {
        key: &'a str,
        read: ReadOptions<'a>,
    },
    /// `ttl`: ms to live, 0 for ever.
    Set {
        key: &'a str,
        value: &'a str,
        ttl: i64,
        write: WriteOptions<'a>,
    },
    Delete {
        key: &'a str,
        write: WriteOptions<'a>,
    },
}

impl<'a> Operation<'a> {
    /// A get of what the node holds.
    #[must_use]
    pub fn get(key: &'a str) -> Self {
        Self::Get { key, read: ReadOptions::default() }
    }

    /// A set on no condition; `ttl`: ms to live, 0 for ever.
    #[must_use]
    pub fn set(key: &'a str, value: &'a str, ttl: i64) -> Self {
        Self::Set { key, value, ttl, write: WriteOptions::default() }
    }

    /// A delete on no condition.
    #[must_use]
    pub fn delete(key: &'a str) -> Self {
        Self::Delete { key, write: WriteOptions::default() }
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> &'a str {
        match self {
            Self::Get { key, .. } | Self::Set { key, .. } | Self::Delete { key, .. } => key,
        }
    }
}

impl<'a> From<rpc::Operation<'a>> for Operation<'a> {
    fn from(operation: rpc::Operation<'a>) -> Self {
        match operation {
            rpc::Operation::Get { key } => Self::get(key),
            rpc::Operation::Set { key, value, ttl } => Self::set(key, value, ttl),
            rpc::Operation::Delete { key } => Self::delete(key),
        }
    }
}

impl<'a> From<rpc::RecordOperation<'a>> for Operation<'a> {
    fn from(operation: rpc::RecordOperation<'a>) -> Self {
        match operation {
            rpc::RecordOperation::Read { key, read } => Self::Get { key, read },
            rpc::RecordOperation::Write { key, value, ttl, write } => Self::Set { key, value, ttl, write },
            rpc::RecordOperation::Remove { key, write } => Self::Delete { key, write },
        }
    }
}
