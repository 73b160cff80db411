//! How a node stops: one deadline for all of it, and steps in an order that loses no acknowledged write.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::{sleep, sleep_until, timeout_at};

use super::Node;
use crate::cluster::Membership;
use crate::data_dir::DataDir;
use crate::store::UseOfStore;

/// The shortest `SHUTDOWN_GRACE` that the deadline is made of: a node without any could not even close its store.
const MIN_GRACE: Duration = Duration::from_secs(1);
/// Between two looks whether the store is still in use.
const STORE_POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Until when each part of a stop may take. All of it ends `DRAIN_DELAY` + `SHUTDOWN_GRACE` after it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopTimes {
    /// Load balancers have noticed.
    pub drained: Instant,
    /// Requests that are still under way are aborted. The last quarter of `SHUTDOWN_GRACE` belongs to what follows them.
    pub requests: Instant,
    /// Whatever is not done by then is left undone.
    pub deadline: Instant,
}

impl StopTimes {
    #[must_use]
    pub fn new(now: Instant, drain_delay: Duration, shutdown_grace: Duration) -> Self {
        let drained = now + drain_delay;
        Self {
            drained,
            requests: drained + shutdown_grace * 3 / 4,
            deadline: drained + shutdown_grace.max(MIN_GRACE),
        }
    }

    /// What is left until the deadline.
    #[must_use]
    pub fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// The flush of the log may take half of what is left, so that something remains for the threads.
    fn flush(&self) -> Instant {
        Instant::now() + self.left() / 2
    }

    fn log_step(&self, step: &str) {
        tracing::info!(left_ms = self.left().as_millis() as u64, "stopping: {step}");
    }
}

impl Node {
    /// Stops within `DRAIN_DELAY` + `SHUTDOWN_GRACE`, in an order that loses nothing: unready and no member any more, so
    /// that no new requests come; those under way end, or are aborted; no write is appended from here on; the log
    /// acknowledges those that were; the threads end; the store is closed. What does not end in time is named in a warning
    /// and left to the end of the process. Returns what is left of the time.
    pub async fn stop(self) -> StopTimes {
        let times = StopTimes::new(Instant::now(), self.drain_delay, self.shutdown_grace);
        times.log_step("unready");
        let Self {
            log,
            membership,
            replica,
            trimming,
            http,
            rpc,
            announcer,
            comparer,
            tokens,
            certificates,
            service,
            store,
            readiness,
            progress,
            feed,
            telemetry,
            data_dir,
            ..
        } = self;
        readiness.set_stopping();
        announcer.abort();
        comparer.abort();
        tokens.abort();
        certificates.abort();
        leave_cluster(&*membership, times).await;
        times.log_step("finishing requests");
        // What they wait for may come later than the stop may last.
        progress.end_waits();
        feed.close();
        tokio::join!(http.stop(times.requests), rpc.stop(times.requests));
        times.log_step("refusing writes");
        // It waits for a write that is being handed to the log, which may block.
        let closing = Arc::clone(&service);
        run_until("refusal of writes", times.deadline, move || closing.close_writes()).await;
        trimming.begin_stop();

        times.log_step("flushing writes");
        let (flush_until, flushed) = (times.flush(), Arc::clone(&log));
        run_until("flush of the log", times.deadline, move || {
            flushed.flush(flush_until.saturating_duration_since(Instant::now()));
        })
        .await;
        times.log_step("ending threads");
        run_until("end of the threads", times.deadline, move || {
            for thread in replica.stop(times.deadline).into_iter().chain(trimming.stop(times.deadline)) {
                tracing::warn!("the thread '{thread}' did not end in time; the node stops without it");
            }
        })
        .await;
        times.log_step("sending spans");
        run_until("export of spans", times.deadline, move || telemetry.shutdown(times.left() / 2)).await;
        times.log_step("closing the store");
        let use_of_store = store.watch_use();
        // The end of the log's client may block.
        run_until("end of the log's client", times.deadline, move || drop((service, store, log))).await;
        release(data_dir, &use_of_store, times).await;
        times.log_step("done");
        times
    }
}

/// Gives load balancers `DRAIN_DELAY` to notice, too.
async fn leave_cluster(membership: &dyn Membership, times: StopTimes) {
    times.log_step("leaving the cluster");
    if timeout_at(times.requests.into(), membership.leave()).await.is_err() {
        tracing::warn!(
            "the cluster's registry did not answer; this node stays a member until its session ends"
        );
    }
    if Instant::now() < times.drained {
        times.log_step("waiting for load balancers");
        sleep_until(times.drained.into()).await;
    }
}

/// Unlocks the folder when its store is closed.
async fn release(data_dir: DataDir, use_of_store: &UseOfStore, times: StopTimes) {
    while use_of_store.is_in_use() && Instant::now() < times.deadline {
        sleep(STORE_POLL_INTERVAL).await;
    }
    if use_of_store.is_in_use() {
        tracing::warn!("the store is still in use; the end of the process closes it");
        // A thread that was left to itself may still write the store, and nobody can end it. Another process that opened
        // the store meanwhile would damage it, so the lock is kept until the kernel releases it with the process.
        std::mem::forget(data_dir);
    }
}

/// Runs what blocks, and waits for it until the deadline.
async fn run_until(what: &str, deadline: Instant, run: impl FnOnce() + Send + 'static) {
    match timeout_at(deadline.into(), tokio::task::spawn_blocking(run)).await {
        Ok(Ok(())) => {}
        Ok(Err(_)) => tracing::error!("the {what} panicked while the node stopped"),
        Err(_) => tracing::warn!("the {what} did not come in time; the node stops without it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_takes_the_sum_of_both_settings() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let times = StopTimes::new(now, 2 * second, 8 * second);
        assert_eq!(times.drained, now + 2 * second);
        assert_eq!(times.requests, now + 8 * second);
        assert_eq!(times.deadline, now + 10 * second);
    }

    #[test]
    fn without_a_grace_requests_are_aborted_and_the_store_is_closed() {
        let now = Instant::now();
        let times = StopTimes::new(now, Duration::ZERO, Duration::ZERO);
        assert_eq!((times.drained, times.requests, times.deadline), (now, now, now + MIN_GRACE));
    }
}
