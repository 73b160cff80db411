//! An operation on a key, with all that its caller may ask of it.

use crate::{ReadOptions, WriteOptions};

/// An operation on a key, borrowed from the request that it came with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation<'a> {
    /// Reads the key.
    Get {
        /// The key.
        key: &'a str,
        /// How consistent the read is.
        read: ReadOptions<'a>,
    },
    /// Writes the key.
    Set {
        /// The key.
        key: &'a str,
        /// The value; may be empty.
        value: &'a str,
        /// Ms to live, 0 for ever.
        ttl: i64,
        /// On which condition, and who must show it.
        write: WriteOptions<'a>,
    },
    /// Deletes the key.
    Delete {
        /// The key.
        key: &'a str,
        /// On which condition, and who must show it.
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
