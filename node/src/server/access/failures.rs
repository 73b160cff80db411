//! How often callers of an address had no good token, so that guessing is slow and does not fill the log.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Failures of an address that are answered and noted one by one.
const ALLOWED: u32 = 20;
/// In so much time.
const WINDOW: Duration = Duration::from_mins(1);
/// Addresses that are counted by themselves. Further ones share a count.
const MAX_ADDRESSES: usize = 4096;

/// Counts failures.
#[derive(Default)]
pub struct Failures {
    of_addresses: HashMap<IpAddr, Count>,
    of_others: Option<Count>,
}

#[derive(Clone, Copy)]
struct Count {
    since: Instant,
    failures: u32,
}

impl Count {
    fn is_over(self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= WINDOW
    }
}

impl Failures {
    /// Counts one; returns whether there were too many before.
    pub fn count(&mut self, address: IpAddr, now: Instant) -> bool {
        let address = network(address);
        if self.of_addresses.len() >= MAX_ADDRESSES && !self.of_addresses.contains_key(&address) {
            self.of_addresses.retain(|_, count| !count.is_over(now));
        }
        let begun = Count { since: now, failures: 0 };
        let count = if self.of_addresses.len() >= MAX_ADDRESSES && !self.of_addresses.contains_key(&address) {
            self.of_others.get_or_insert(begun)
        } else {
            self.of_addresses.entry(address).or_insert(begun)
        };
        if count.is_over(now) {
            *count = begun;
        }
        count.failures = count.failures.saturating_add(1);
        count.failures > ALLOWED
    }
}

/// Whoever has an address of IPv6 has the 2^64 of its network.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_so_many_failures_in_a_window() {
        let (mut failures, start) = (Failures::default(), Instant::now());
        let (one, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        for _ in 0..ALLOWED {
            assert!(!failures.count(one, start));
        }
        assert!(failures.count(one, start));
        assert!(failures.count("::ffff:10.0.0.1".parse().expect("the same"), start));
        assert!(!failures.count(other, start));
        assert!(failures.count(one, start + WINDOW / 2));
        assert!(!failures.count(one, start + WINDOW));
    }

    #[test]
    fn a_network_of_ipv6_counts_as_one_address() {
        let (mut failures, start) = (Failures::default(), Instant::now());
        let address = |last: u16| IpAddr::from([0x2001, 0xdb8, 0, 0, 1, 2, 3, last]);
        let counted: Vec<_> = (0..=ALLOWED as u16).map(|last| failures.count(address(last), start)).collect();
        assert_eq!(counted.iter().filter(|too_many| **too_many).count(), 1);
    }

    #[test]
    fn many_addresses_take_bounded_memory() {
        let (mut failures, start) = (Failures::default(), Instant::now());
        let address = |number: u32| IpAddr::from(number.to_be_bytes());
        let refused = (0..100_000).filter(|number| failures.count(address(*number), start)).count();
        assert_eq!(failures.of_addresses.len(), MAX_ADDRESSES);
        // The others share a count.
        assert_eq!(refused, 100_000 - MAX_ADDRESSES - ALLOWED as usize);
        assert!(!failures.count(address(200_000), start + WINDOW));
    }
}
