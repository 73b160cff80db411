//! Free ports on 127.0.0.1.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};

/// Below Linux' ephemeral range, so that no outgoing connection takes a port between our look and its use.
const FIRST: u32 = 15_000;
const COUNT: u32 = 15_000;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A port that was free a moment ago and that this process gives out only once.
pub fn free() -> u16 {
    // Runs at the same time start at different places.
    let start = std::process::id().wrapping_mul(7919);
    for _ in 0..COUNT {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = (FIRST + start.wrapping_add(n) % COUNT) as u16;
        if TcpListener::bind(("0.0.0.0", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port between {FIRST} and {}", FIRST + COUNT);
}

/// The first of so many neighbours.
pub fn run_of(count: u16) -> u16 {
    loop {
        let first = free();
        // Another thread may take one in between.
        if (1..count).all(|n| free() == first + n) {
            return first;
        }
    }
}

/// Two neighbours, as a node's ports are by default.
pub fn pair() -> (u16, u16) {
    let first = run_of(2);
    (first, first + 1)
}
