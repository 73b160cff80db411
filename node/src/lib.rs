//! A node of Bitacora. `ARCHITECTURE.md` in the repository's root is the map.

pub mod aws;
pub mod data_dir;
pub mod dev;
pub mod door;
pub mod freshness;
pub mod http;
pub mod log;
pub mod membership;
pub mod metrics;
pub mod node;
pub mod peers;
pub mod position;
pub mod progress;
pub mod reads;
pub mod replica;
pub mod rpc;
pub mod scans;
pub mod serve;
pub mod settings;
pub mod snapshot;
pub mod socket;
pub mod store;
pub mod trimmer;
pub mod writes;

/// The clock, in ms since the epoch.
#[must_use]
pub fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
