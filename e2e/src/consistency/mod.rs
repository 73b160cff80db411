//! What concurrent clients of a cluster did and saw, and whether a cluster that keeps its promises can have answered so.
//!
//! [`check::check`] holds a history to four promises: each key is linearizable ([`linearizable`]), sessions and nodes never go
//! back ([`order`]), what was read or acknowledged is in effect in the log, each write at most once ([`effects`]), and counters
//! are exact. The first believes nothing but what clients saw; the others also read the log, none of which may have been
//! compacted away.

pub mod check;
pub mod client;
pub mod effects;
pub mod linearizable;
pub mod order;
pub mod run;
pub mod search;
pub mod workload;

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::http::Position;

/// In µs since the run began, by the monotonic clock. Two equal moments are taken as concurrent.
pub type Moment = u64;

/// One call of one client, with all its retries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// A client has one session, and one operation at a time.
    pub client: usize,
    /// The last one that was asked.
    pub node: usize,
    pub key: String,
    pub call: Call,
    /// Before the first byte was sent.
    pub began: Moment,
    /// After the answer was there, or was given up.
    pub ended: Moment,
    pub outcome: Outcome,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Eventual,
    Session,
    Latest,
    Strong,
}

impl Level {
    /// As the query has it.
    pub fn name(self) -> &'static str {
        match self {
            Level::Eventual => "eventual",
            Level::Session => "session",
            Level::Latest => "latest",
            Level::Strong => "strong",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    Read(Level),
    Write {
        /// `None` for a delete. No two writes of a history have the same value.
        value: Option<String>,
        condition: Condition,
        /// The `Idempotency-Key`: the record's uuid. All tries have the same.
        uuid: Option<String>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// A plain write.
    None,
    /// `If-None-Match: *`.
    Absent,
    /// `If-Match` with this version.
    Version(Position),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A write that took effect: its version.
    Done(Position),
    Found(Found),
    /// No live record; the delete marker's position, or how far the partition is applied.
    Missing {
        position: Position,
        local: bool,
    },
    /// 412, with the current record.
    Failed {
        current: Option<Found>,
        position: Position,
    },
    /// An error that says that nothing took effect, and every error of a read.
    Refused(String),
    /// A write that may take effect now, at any later time, or never.
    Unclear(String),
}

/// A record that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its position.
    pub version: Position,
    pub value: String,
    /// Whether the asked node's own store had it.
    pub local: bool,
}

impl Operation {
    /// The record that the answer shows.
    pub fn shown(&self) -> Option<&Found> {
        match &self.outcome {
            Outcome::Found(found) | Outcome::Failed { current: Some(found), .. } => Some(found),
            _ => None,
        }
    }

    /// The position that the answer tells.
    pub fn position(&self) -> Option<Position> {
        match &self.outcome {
            Outcome::Done(position)
            | Outcome::Missing { position, .. }
            | Outcome::Failed { position, .. } => Some(*position),
            Outcome::Found(found) => Some(found.version),
            Outcome::Refused(_) | Outcome::Unclear(_) => None,
        }
    }

    /// Its value and condition, if it is a write.
    pub fn write(&self) -> Option<(Option<&str>, Condition)> {
        match &self.call {
            Call::Read(_) => None,
            Call::Write { value, condition, .. } => Some((value.as_deref(), *condition)),
        }
    }

    /// What kind of call it is, for figures.
    pub fn kind(&self) -> &'static str {
        match &self.call {
            Call::Read(level) => level.name(),
            Call::Write { value, condition, .. } => match (condition, value) {
                (Condition::None, Some(_)) => "set",
                (Condition::None, None) => "delete",
                (Condition::Absent, _) => "create",
                (Condition::Version(_), Some(_)) => "cas",
                (Condition::Version(_), None) => "casdel",
            },
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Operation { client, node, key, call, began, ended, outcome } = self;
        write!(out, "[{began}..{ended} µs, client {client}, node {node}] {key}: {call:?} -> {outcome:?}")
    }
}

/// Operations of all clients, in the order in which they ended.
pub struct Recorder {
    began: Instant,
    operations: Mutex<Vec<Operation>>,
}

impl Default for Recorder {
    fn default() -> Self {
        Recorder { began: Instant::now(), operations: Mutex::default() }
    }
}

impl Recorder {
    pub fn now(&self) -> Moment {
        u64::try_from(self.began.elapsed().as_micros()).expect("a run is shorter than 500,000 years")
    }

    pub fn add(&self, operation: Operation) {
        self.operations.lock().unwrap_or_else(PoisonError::into_inner).push(operation);
    }

    pub fn into_history(self) -> Vec<Operation> {
        self.operations.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}
