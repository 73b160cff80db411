//! What can go wrong with a call.

use std::time::Duration;

use bitacora_protocol::Position;
use bitacora_protocol::rpc::ServedFrom;

use crate::types::Record;

/// Why a call has no result.
///
/// Three questions matter to a caller, and each has a method: is the key [not there](Error::is_not_found), may a write
/// [have taken effect](Error::may_have_taken_effect) all the same, and is it [worth another try](Error::is_retryable)?
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no such key: it was never set, or is deleted or expired.
    #[error("key {key} not found")]
    NotFound {
        /// The key.
        key: String,
        /// Of the delete marker or the expired record; else how far the node has applied the key's partition.
        position: Position,
        /// The write timestamp of the delete marker or the expired record, ms since the epoch; `None`: there is no trace of
        /// the key.
        timestamp: Option<i64>,
        /// Where the node had it from.
        served_from: ServedFrom,
    },
    /// No node knew before the deadline was over: nodes are restoring, or can't tell whether the key exists.
    #[error("not ready: {reason} ({node})")]
    NotReady {
        /// The last node that was asked.
        node: String,
        /// Why, in the words of the node; with the number of the attempts and the deadline, if there was more than one.
        reason: String,
    },
    /// The deadline is over.
    #[error("no answer within {after:?}{}{}", if *.may_have_taken_effect { "; the write may have taken effect" } else { "" }, because(.last.as_deref()))]
    TimedOut {
        /// A write was sent, and nobody knows what became of it.
        may_have_taken_effect: bool,
        /// The deadline.
        after: Duration,
        /// What went wrong before.
        last: Option<String>,
    },
    /// What became of a write is unknown: the log did not acknowledge it in time, or the connection broke before the answer
    /// came. It may still take effect.
    #[error("the write was not acknowledged and may have taken effect: {reason} ({node})")]
    Unacknowledged {
        /// The node that got the write.
        node: String,
        /// Why, in the words of the node, or what happened to the connection.
        reason: String,
    },
    /// The log did not take a write. It has not taken effect.
    #[error("the write was not taken: {reason}")]
    NotTaken {
        /// The last node that was asked; `None` for an operation of a batch that was not sent.
        node: Option<String>,
        /// Why, in the words of the node.
        reason: String,
    },
    /// The condition of a write did not hold, and it changed nothing; unless an earlier attempt of the same call, of which no answer
    /// came, had taken effect before.
    #[error("the condition does not hold: {}{}", now(key, *.position, current.is_some()), if *.may_have_taken_effect { "; an earlier attempt may have taken effect before" } else { "" })]
    NotMet {
        /// The key.
        key: String,
        /// The record that is there; `None` if there is none.
        current: Option<Box<Record>>,
        /// Its version; without one that of the delete marker, or how far the key's partition is applied.
        position: Position,
        /// An attempt of this call was sent whose answer did not come.
        may_have_taken_effect: bool,
    },
    /// No node could be reached before the deadline was over; the request was not sent.
    #[error("no node could be reached{}", because(.last.as_deref()))]
    NoNode {
        /// What went wrong last; `None` if there was no node to try.
        last: Option<String>,
    },
    /// The request is wrong, and stays so. It has not taken effect.
    #[error("{reason}")]
    Refused {
        /// What is wrong with it.
        refusal: Refusal,
        /// Why, in the words of the node.
        reason: String,
    },
    /// A node's answer makes no sense, or it does not know the call: it may be of another version, or no node.
    #[error("node {} does not speak this protocol: {}", .0.node, .0.reason)]
    Protocol(NodeFailure),
    /// A node failed.
    #[error("node {} failed: {}", .0.node, .0.reason)]
    Node(NodeFailure),
    /// The client was closed.
    #[error("the client is closed")]
    Closed,
    /// The builder's settings make no sense. The text names what is wrong.
    #[error("{0}")]
    Settings(String),
}

/// What a node did wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFailure {
    /// Its address.
    pub node: String,
    /// What happened.
    pub reason: String,
    /// The call was a write, which may have taken effect.
    pub may_have_taken_effect: bool,
}

/// What is wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// Key, value or record is too large.
    TooLarge,
    /// A blank key, a time to live that is none, a cursor that is none…
    BadRequest,
    /// The nodes, or the topic that is their log, can't do it.
    Unsupported,
    /// The key is in a state in which it can't be done.
    Conflict,
}

fn now(key: &str, position: Position, live: bool) -> String {
    if live { format!("the version of {key} is {position}") } else { format!("there is no key {key}") }
}

fn because(last: Option<&str>) -> String {
    last.map(|last| format!(": {last}")).unwrap_or_default()
}

impl Error {
    /// There is no such key.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// The condition of a write did not hold.
    #[must_use]
    pub fn is_not_met(&self) -> bool {
        matches!(self, Self::NotMet { .. })
    }

    /// The call was a write, and it may have taken effect, now or later, although it failed. Never so for a read.
    #[must_use]
    pub fn may_have_taken_effect(&self) -> bool {
        match self {
            Self::TimedOut { may_have_taken_effect, .. } | Self::NotMet { may_have_taken_effect, .. } => {
                *may_have_taken_effect
            }
            Self::Unacknowledged { .. } => true,
            Self::Protocol(failure) | Self::Node(failure) => failure.may_have_taken_effect,
            _ => false,
        }
    }

    /// The same call may succeed later. A write that [may have taken effect](Self::may_have_taken_effect) can be sent again
    /// too, and then has the same final value, but may overwrite what others wrote in between.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::NotReady { .. }
                | Self::TimedOut { .. }
                | Self::Unacknowledged { .. }
                | Self::NotTaken { .. }
                | Self::NoNode { .. }
                | Self::Node(_)
        )
    }
}
