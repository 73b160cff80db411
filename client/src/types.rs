//! What calls take and give.

use serde::Serialize;

use crate::read::ReadLevel;

pub use bitacora_protocol::Position;
pub use bitacora_protocol::rpc::ServedFrom;

/// A key with its value, as a node answered it.
///
/// As JSON an object of these fields; `position` is the text `partition:offset`, `served_from` is `cache`, `store` or
/// `peer`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Record {
    /// The key.
    pub key: String,
    /// The value; may be empty.
    pub value: String,
    /// The write timestamp: ms since the epoch, by the log's clock. It never runs against the order of the log.
    pub timestamp: i64,
    /// Where the record is from, one of [`source`](bitacora_protocol::record::source).
    pub source: i32,
    /// 0: lives for ever; else the ms since the epoch at which it expires.
    pub ttl: i64,
    /// Identifies the write that made it.
    pub uuid: String,
    /// The record's place in the log.
    pub position: Position,
    /// Where the node had it from; a scan always reads the node's store.
    pub served_from: ServedFrom,
}

/// A write that the log has acknowledged: it is durable, and every node will apply it.
///
/// As JSON an object of these fields; `position` is the text `partition:offset`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Written {
    /// Its place in the log.
    pub position: Position,
    /// The write timestamp: ms since the epoch, by the log's clock.
    pub timestamp: i64,
    /// 0: for ever; -1: a delete; else the ms since the epoch at which the key expires.
    pub ttl: i64,
    /// Identifies this write.
    pub uuid: String,
    /// Of a write that [every member](bitacora_protocol::Visible::All) was to show: those that did not in time, `host:port` of their
    /// HTTP. They will.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_visible: Vec<String>,
}

/// Which keys to [scan](crate::Client::scan), in the order of their UTF-8 bytes.
///
/// ```
/// use bitacora_client::Scan;
///
/// let scan = Scan::prefix("user:").start("user:1000").page(100);
/// assert_eq!((scan.prefix.as_str(), scan.end.as_str()), ("user:", ""));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// What keys begin with; empty: anything.
    pub prefix: String,
    /// The first key, inclusive; empty: from the beginning.
    pub start: String,
    /// The last key, exclusive; empty: to the end.
    pub end: String,
    /// Records in a page, at most; 0: [`Scan::DEFAULT_PAGE`].
    pub page: u32,
    /// How consistent each page is.
    pub level: ReadLevel,
}

impl Scan {
    /// Records in a page, if [`Scan::page`] is 0.
    pub const DEFAULT_PAGE: u32 = 1000;

    /// Every key.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// The keys that begin with `prefix`.
    #[must_use]
    pub fn prefix(prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into(), ..Self::default() }
    }

    /// Only keys from `start` on, `start` included.
    #[must_use]
    pub fn start(mut self, start: impl Into<String>) -> Self {
        self.start = start.into();
        self
    }

    /// Only keys before `end`, without `end`.
    #[must_use]
    pub fn end(mut self, end: impl Into<String>) -> Self {
        self.end = end.into();
        self
    }

    /// At most so many records in a page.
    #[must_use]
    pub fn page(mut self, records: u32) -> Self {
        self.page = records;
        self
    }

    /// How consistent each page is; the scan as a whole is no snapshot.
    #[must_use]
    pub fn level(mut self, level: ReadLevel) -> Self {
        self.level = level;
        self
    }
}

/// A page of a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanPage {
    /// In key order.
    pub records: Vec<Record>,
    /// Gets the next page, from any node; `None` at the end.
    pub cursor: Option<String>,
}

/// What the client knows of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeStatus {
    /// `host:port` of its Avro RPC.
    pub address: String,
    /// Whether it gets requests.
    pub state: NodeState,
    /// Requests that wait for its answer, other than those of watches and mirrors.
    pub under_way: usize,
    /// Open connections.
    pub connections: usize,
}

/// Whether a node gets requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "state")]
pub enum NodeState {
    /// It does.
    Healthy,
    /// It failed and gets none until it answers again, unless every node is ejected.
    Ejected {
        /// What went wrong last.
        reason: String,
    },
}
