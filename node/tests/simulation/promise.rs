//! What the system promises, as far as the simulation can see it.

use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// A node that has read the whole log holds the last write of each key: no acknowledged write is lost, no deleted key
    /// comes back, all nodes agree, and compaction changes nothing.
    LastWriteHolds,
    /// What a node answers was written, and has not expired.
    AnswersWereWritten,
    /// No answer is older than what the node has held when it had read the whole log, but of a key that it doubts.
    AnswersNeverGoBack,
    /// What a node has applied stays applied, unless its store is built anew.
    PositionsNeverGoBack,
    /// A replica decides of each attempt what the whole log says of it, if it decides.
    OutcomesAgree,
    /// An attempt that was answered with its success is in the log once, and took effect.
    SuccessesTookEffect,
    /// Where an attempt was answered with "the condition does not hold", it did not hold at some moment since it was asked.
    RefusalsWereTrue,
    /// For who has read everything, a repair says what it holds, or what was dead when it was trimmed.
    RepairsChangeNothing,
    /// All nodes say the same of what a partition of a log holds at a position, whenever they are asked: [digests](bitacora_node::store::Digest).
    DigestsAgree,
    /// A node does not doubt what it holds for longer than compaction leaves records alone.
    DoubtsEnd,
    /// A node that nothing disturbs catches up, and the repairs come to an end.
    NodesCatchUp,
}

/// A promise that was not kept.
#[derive(Clone, PartialEq, Eq)]
pub struct Violation {
    pub promise: Promise,
    /// Where and how.
    pub details: String,
}

pub type Outcome = Result<(), Violation>;

impl Promise {
    pub fn broken(self, details: impl Into<String>) -> Violation {
        Violation { promise: self, details: details.into() }
    }
}

impl fmt::Debug for Violation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:?}: {}", self.promise, self.details)
    }
}

/// A node that can't use its store goes on no more.
pub fn failed(error: impl fmt::Display) -> Violation {
    Promise::NodesCatchUp.broken(error.to_string())
}
