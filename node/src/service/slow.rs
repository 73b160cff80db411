//! Requests that took long are logged once, with what they waited for.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64;

/// Numbers requests and connections of this process, so that log lines can be told apart and put together.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// A number that no other request or connection of this process has.
#[must_use]
pub fn next_id() -> u64 {
    NEXT_ID.fetch_add(1, Ordering::Relaxed)
}

/// Decides which requests are slow. Clones share the threshold, which may change.
#[derive(Clone, Debug)]
pub struct SlowRequests {
    /// The largest there is for none.
    threshold_ns: Arc<AtomicU64>,
}

/// How long a request waited for others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waits {
    /// For the client to send the body.
    pub body: Duration,
    /// For the log to acknowledge.
    pub log: Duration,
    /// For other members to answer.
    pub peers: Duration,
    /// For this node's own store, or for room to read a page of it.
    pub store: Duration,
    /// For the operations of a batch.
    pub operations: Duration,
}

/// A request that was answered.
#[derive(Clone, Copy, Debug)]
pub struct FinishedRequest<'a> {
    /// Of [`next_id`]; on a connection that numbers its calls, the number of the call.
    pub id: u64,
    /// `http` or `rpc`
    pub interface: &'static str,
    pub operation: &'static str,
    /// The `outcome` label of the metrics.
    pub outcome: &'static str,
    /// `None` if it has none, or it is not known any more.
    pub key: Option<KeyHash>,
    pub took: Duration,
    pub waits: &'a Waits,
}

/// What the log says instead of a key, which may be nobody else's business: XXH3 of its bytes, 64 bits. It is cheaper than a copy of
/// the key, and as small for every key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyHash(u64);

impl KeyHash {
    #[must_use]
    pub fn of(key: &str) -> Self {
        Self(xxh3_64(key.as_bytes()))
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:016x}", self.0)
    }
}

impl SlowRequests {
    /// Requests that take longer are slow; none is if the threshold is zero.
    #[must_use]
    pub fn new(threshold: Duration) -> Self {
        let slow = Self { threshold_ns: Arc::default() };
        slow.set(threshold);
        slow
    }

    /// Changes the threshold.
    pub fn set(&self, threshold: Duration) {
        let ns = u64::try_from(threshold.as_nanos()).unwrap_or(u64::MAX);
        self.threshold_ns.store(if ns == 0 { u64::MAX } else { ns }, Ordering::Relaxed);
    }

    /// Whether a request that took so long is slow.
    #[must_use]
    pub fn is_slow(&self, took: Duration) -> bool {
        took.as_nanos() > u128::from(self.threshold_ns.load(Ordering::Relaxed))
    }

    /// Logs a request if it was slow.
    pub fn log(&self, request: &FinishedRequest<'_>) {
        if !self.is_slow(request.took) {
            return;
        }
        let FinishedRequest { id, interface, operation, outcome, took, waits, .. } = request;
        let key_hash = request.key.map(|key| key.to_string());
        let took_ms = took.as_millis() as u64;
        tracing::warn!(
            id,
            interface,
            operation,
            outcome,
            key_hash,
            took_ms,
            "slow request; it waited for {waits}"
        );
    }
}

impl fmt::Display for Waits {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { body, log, peers, store, operations } = self;
        let parts = [
            ("the body", body),
            ("the log's acknowledgement", log),
            ("other members", peers),
            ("the store", store),
            ("its operations", operations),
        ];
        let mut separator = "";
        for (what, time) in parts.into_iter().filter(|(_, time)| time.as_millis() > 0) {
            write!(out, "{separator}{what} ({} ms)", time.as_millis())?;
            separator = ", ";
        }
        if separator.is_empty() { out.write_str("nobody else") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_never_slow() {
        assert!(!SlowRequests::new(Duration::ZERO).is_slow(Duration::from_hours(1)));
        let slow = SlowRequests::new(Duration::from_secs(1));
        assert!(slow.is_slow(Duration::from_millis(1_001)) && !slow.is_slow(Duration::from_secs(1)));
    }

    #[test]
    fn waits_name_what_took_time() {
        let waits = Waits { body: Duration::from_millis(7), log: Duration::from_secs(2), ..Waits::default() };
        assert_eq!(waits.to_string(), "the body (7 ms), the log's acknowledgement (2000 ms)");
        assert_eq!(Waits::default().to_string(), "nobody else");
    }
}
