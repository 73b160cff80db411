//! A record that is to be appended.

use super::{Condition, Level};
use crate::clock::WallTime;
use crate::telemetry::TraceParent;
use bitacora_protocol::record::{KeyValue, source, ttl};

/// A record that is to be appended to the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewRecord {
    /// `None`: the one that is the key's.
    pub partition: Option<i32>,
    /// Not empty.
    pub key: Vec<u8>,
    /// An encoded record; `None` for a tombstone.
    pub value: Option<Vec<u8>>,
    /// `None` for a plain write.
    pub condition: Option<Condition>,
    /// Of a record of [`Level::KEY`].
    pub level: Option<Level>,
    /// Of which trace the record is a part.
    pub trace: Option<TraceParent>,
}

impl NewRecord {
    /// A record with a condition. `value` is `None` for a [`Condition::Trim`], and for the [`Condition::Repair`] of a tombstone.
    #[must_use]
    pub fn conditional(partition: i32, key: Vec<u8>, value: Option<Vec<u8>>, condition: Condition) -> Self {
        Self { partition: Some(partition), key, value, condition: Some(condition), ..Self::default() }
    }

    /// Of barriers.
    pub const BARRIER_KEY: &str = "\0barrier";

    /// A record that says nothing; whoever appended it knows it by its uuid when it is read.
    #[must_use]
    pub fn barrier(partition: i32, uuid: &str, now: WallTime) -> Self {
        Self::reserved(partition, Self::BARRIER_KEY, uuid, now)
    }

    /// A record of a reserved key, which is in the log only. Its value is that of a delete marker, which nodes that do not know the
    /// key take it for.
    fn reserved(partition: i32, key: &str, uuid: &str, now: WallTime) -> Self {
        let mut value = Vec::new();
        KeyValue { key, value: "", timestamp: now.ms(), source: source::PRODUCER, ttl: ttl::DELETED, uuid }
            .encode(&mut value);
        Self { partition: Some(partition), key: key.into(), value: Some(value), ..Self::default() }
    }

    /// A record that tells the level of a partition.
    #[must_use]
    pub fn level(partition: i32, level: Level, now: WallTime) -> Self {
        Self { level: Some(level), ..Self::reserved(partition, Level::KEY, "", now) }
    }
}
