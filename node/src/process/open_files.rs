//! How many files the process may have open. Each connection is one, and so is each way to brokers and other members.

use rustix::process::{Resource, getrlimit, setrlimit};

/// What a node has open beside its callers' connections.
const OTHER_FILES: u64 = 512;

/// Raises the limit to what the process may have: systems set 1024 first, and callers of one port who use that up would shut out
/// those of the other, and the node from its brokers. Returns the limit; `None` if there is none.
pub fn raise_limit() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let mut raised = limit;
    raised.current = limit.maximum;
    // Where that is refused, the limit is what it was.
    if setrlimit(Resource::Nofile, raised).is_ok() { raised.current } else { limit.current }
}

/// Warns if callers can use up all files that the process may have open.
pub fn warn_if_few(limit: Option<u64>, max_connections: u32) {
    // Of each of two ports.
    let needed = 2 * u64::from(max_connections) + OTHER_FILES;
    if let Some(limit) = limit.filter(|limit| *limit < needed) {
        tracing::warn!(
            limit,
            needed,
            "callers can use up all files that this node may have open: raise the limit (ulimit -Hn), or lower MAX_CONNECTIONS"
        );
    }
}
