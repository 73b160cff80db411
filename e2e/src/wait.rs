//! Waiting on conditions. There is no sleep in the suites: a wait ends when its condition holds, or fails with the
//! value that it saw last.

use std::future::Future;
use std::panic::Location;
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(20);

/// Polls `condition` until it is `Ok`. At the deadline panics with the `Err` seen last; the runner adds the nodes' logs.
#[track_caller]
pub fn until<T, F, Fut>(what: &str, deadline: Duration, condition: F) -> impl Future<Output = T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, String>>,
{
    let caller = Location::caller();
    async move {
        match try_until(deadline, condition).await {
            Ok(value) => value,
            Err(last) => panic!("{caller}: after {deadline:?} still not: {what}\n  last seen: {last}"),
        }
    }
}

/// As [`until`], for callers that go on after a failure.
pub async fn try_until<T, F, Fut>(deadline: Duration, mut condition: F) -> Result<T, String>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, String>>,
{
    let end = Instant::now() + deadline;
    let mut last = "nothing: the condition never answered".to_string();
    loop {
        // A condition that hangs must not outlive the deadline; its last answer is still the best witness.
        let left = end.saturating_duration_since(Instant::now());
        match tokio::time::timeout(left.max(POLL), condition()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(seen)) => last = seen,
            Err(_) => return Err(format!("{last} (and the last attempt did not end)")),
        }
        if Instant::now() >= end {
            return Err(last);
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Checks that `condition` holds all through `period`; for what must not happen.
#[track_caller]
pub fn holds<F, Fut>(what: &str, period: Duration, mut condition: F) -> impl Future<Output = ()>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<(), String>>,
{
    let caller = Location::caller();
    async move {
        let end = Instant::now() + period;
        while Instant::now() < end {
            if let Err(seen) = condition().await {
                panic!("{caller}: no longer: {what}\n  seen: {seen}");
            }
            tokio::time::sleep(POLL).await;
        }
    }
}
