//! What watchers of a cluster were told, and whether a cluster that keeps its promises can have told it so.
//!
//! Watchers follow by Server-Sent Events or by long polling, lose their connections in the middle of an event, and go on at another
//! node ([`watcher`]), while others write ([`load`]). In the end [`check::check`] holds what each was told to the log: nothing that
//! is not in it, nothing older than what was told before, and nothing left out but what something newer of the same key stands for.

pub mod check;
pub mod load;
pub mod run;
pub mod sse;
pub mod watcher;

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use crate::http::{Position, encode};

/// Which keys somebody watches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filter {
    All,
    Prefix(String),
    Key(String),
}

impl Filter {
    pub fn matches(&self, key: &str) -> bool {
        match self {
            Filter::All => true,
            Filter::Prefix(prefix) => key.starts_with(prefix),
            Filter::Key(one) => key == one,
        }
    }

    /// As a query has it, with an `&` in front unless it is empty.
    fn query(&self) -> String {
        match self {
            Filter::All => String::new(),
            Filter::Prefix(prefix) => format!("&prefix={}", encode(prefix)),
            Filter::Key(key) => format!("&key={}", encode(key)),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// `GET /watch`
    Events,
    /// `GET /rpc/changes`
    Polling,
}

/// What somebody wants to be told, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    pub filter: Filter,
    pub way: Way,
    /// Whether it begins with what is there, not from now on.
    pub initial: bool,
    pub values: bool,
}

impl Wish {
    pub fn new(way: Way, filter: Filter, initial: bool) -> Wish {
        Wish { filter, way, initial, values: true }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    Set {
        key: String,
        position: Position,
        /// Its [`digest`], where values are sent.
        value: Option<u64>,
    },
    Deleted {
        key: String,
        position: Position,
    },
    /// The position is that of what expired.
    Expired {
        key: String,
        position: Position,
    },
    /// Everything up to these offsets has been told.
    Reached {
        upto: BTreeMap<i32, i64>,
        /// Whether that is all that was in the log when the watcher connected.
        current: bool,
    },
    Gap(String),
}

/// Something that a watcher was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// When it had arrived, in ms since the epoch.
    pub at: i64,
    /// On which of the watcher's connections.
    pub connection: usize,
    pub what: What,
}

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// By the watcher.
    Cut { inside_an_event: bool },
    /// The node said that it stops.
    Bye,
    /// Without a word.
    Lost,
    /// An answer of long polling was whole.
    Whole,
    /// All has been told.
    Finished,
}

/// Somebody's connection to a node; of long polling, a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    pub node: usize,
    /// Whether it went on from a token.
    pub resumed: bool,
    /// Before the request was sent, in ms since the epoch.
    pub asked: i64,
    /// When the answer's headers had arrived.
    pub began: i64,
    pub end: End,
}

/// All that a watcher was told.
#[derive(Debug, Clone)]
pub struct Watched {
    pub name: String,
    pub wish: Wish,
    /// What was appended later, in ms since the epoch, has to be told to who watches from now on.
    pub from: i64,
    pub connections: Vec<Connection>,
    pub seen: Vec<Seen>,
}

/// An acknowledged write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acknowledged {
    pub key: String,
    pub position: Position,
    /// Its [`digest`]; `None` for a delete.
    pub value: Option<u64>,
    /// When the answer had arrived, in ms since the epoch.
    pub at: i64,
}

/// What stands for a value, so that a long run fits in memory.
pub fn digest(value: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// Reads positions as nodes write them: `0:12,3:40`.
pub fn positions(text: &str) -> Option<BTreeMap<i32, i64>> {
    let all = text.split(',').filter(|position| !position.is_empty());
    all.map(|position| {
        let (partition, offset) = position.split_once(':')?;
        Some((partition.parse().ok()?, offset.parse().ok()?))
    })
    .collect()
}

fn position(text: &str) -> Option<Position> {
    let (partition, offset) = text.split_once(':')?;
    Some(Position { partition: partition.parse().ok()?, offset: offset.parse().ok()? })
}
