//! How much is measured, and how often.

use std::sync::OnceLock;

use e2e::measure::table::number;

/// As `TOPIC_PARTITIONS` of the suites' nodes.
pub const PARTITIONS: i32 = 4;
pub const VALUE_BYTES: usize = 100;
/// What the node's settings are for a part that reads from the cache.
pub const WHOLE_CACHE: &str = "8GiB";

pub struct Size {
    pub quick: bool,
    /// Of short rounds that alternate.
    pub rounds: usize,
    /// The length of one, in seconds.
    pub round: f64,
    /// Of long rounds, such as restores.
    pub long_rounds: usize,
    /// Records of the long parts.
    pub keys: u64,
    /// Records that a bulk write takes.
    pub bulk: u64,
    /// Records that the memory of each is measured with.
    pub cached: u64,
    /// Keys that are read by chance.
    pub read: u64,
    /// For delays that are taken one at a time.
    pub samples: usize,
}

impl Size {
    pub fn describe(&self) -> String {
        let Size { quick, rounds, round, long_rounds, keys, bulk, .. } = self;
        let kind = if *quick { "quick" } else { "whole" };
        format!(
            "a {kind} run, {rounds} rounds of {round} s, long ones {long_rounds} times, up to {} records of 16 + {VALUE_BYTES} bytes, {} in a bulk write, {PARTITIONS} partitions",
            number(*keys as f64),
            number(*bulk as f64)
        )
    }
}

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// By `SUITE_QUICK`, `BITACORA_BENCH_KEYS` and `BITACORA_BENCH_ROUNDS`.
pub fn size() -> &'static Size {
    static SIZE: OnceLock<Size> = OnceLock::new();
    SIZE.get_or_init(|| {
        let quick = std::env::var("SUITE_QUICK").is_ok_and(|text| !text.is_empty() && text != "0");
        let either = |small: u64, large: u64| if quick { small } else { large };
        let keys = setting("BITACORA_BENCH_KEYS").unwrap_or(either(200_000, 5_000_000));
        Size {
            quick,
            rounds: either(3, 5) as usize,
            round: if quick { 1.5 } else { 3.0 },
            long_rounds: setting("BITACORA_BENCH_ROUNDS").unwrap_or(3) as usize,
            keys,
            bulk: keys.min(either(100_000, 1_000_000)),
            cached: keys.min(either(200_000, 1_000_000)),
            read: keys.min(100_000),
            samples: either(200, 1000) as usize,
        }
    })
}
