//! `bench`: a closed loop of requests for a bounded time, and how long each took.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use bitacora_program::console::{print, tell};
use bitacora_protocol::WriteCondition;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::task::JoinSet;

use crate::api::{Api, Failure, Kind};
use crate::cli::{Bench, Operation, Output, ReadFlags, WriteFlags};
use crate::output::{self, json_line, per_second};

/// Of `mixed`, one in so many is a set.
const SETS_IN_MIXED: u64 = 10;
/// Keys in a request that fills.
const FILL_BATCH: u64 = 500;
const FILL_UNDER_WAY: usize = 8;
/// Between two looks whether a node has seen what was filled.
const LOOK: Duration = Duration::from_millis(20);
const PERCENTILES: [(&str, f64); 5] =
    [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p99.9", 99.9), ("max", 100.0)];

#[derive(Serialize)]
struct Report {
    nodes: Vec<String>,
    operation: Operation,
    connections: u32,
    pipeline: u32,
    value_size: usize,
    keys: u64,
    requests: u64,
    /// Of the gets; an answer all the same.
    not_found: u64,
    failed: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_failure: Option<String>,
    seconds: f64,
    requests_per_second: f64,
    latency_us: Latency,
}

#[derive(Serialize)]
struct Latency {
    mean: f64,
    p50: u64,
    p90: u64,
    p99: u64,
    #[serde(rename = "p99.9")]
    p99_9: u64,
    max: u64,
    buckets: Vec<Bucket>,
}

/// Requests that took up to so many µs, and longer than the bucket before.
#[derive(Serialize)]
struct Bucket {
    up_to: u64,
    count: u64,
}

/// What one connection's share has seen.
struct Tally {
    latencies: Histogram<u64>,
    not_found: u64,
    failed: u64,
    failure: Option<Failure>,
}

impl Tally {
    fn new() -> Result<Self> {
        Ok(Self { latencies: Histogram::new(3)?, not_found: 0, failed: 0, failure: None })
    }

    fn count(&mut self, outcome: Result<(), Failure>, time: Duration) {
        match outcome {
            Ok(()) => {}
            Err(failure) if failure.kind == Kind::NotFound => self.not_found += 1,
            Err(failure) => {
                self.failed += 1;
                self.failure.get_or_insert(failure);
                return;
            }
        }
        // It grows as it has to.
        let _ = self.latencies.record(time.as_micros() as u64);
    }

    fn add(&mut self, other: Self) -> Result<()> {
        self.latencies.add(other.latencies)?;
        self.not_found += other.not_found;
        self.failed += other.failed;
        self.failure = self.failure.take().or(other.failure);
        Ok(())
    }
}

/// When to send no more.
struct Limit {
    until: Option<Instant>,
    left: AtomicU64,
}

impl Limit {
    fn one_more(&self) -> bool {
        match self.until {
            Some(until) => Instant::now() < until,
            None => self
                .left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
                .is_ok(),
        }
    }
}

pub async fn run(api: &Arc<Api>, arguments: &Bench, output: Option<Output>) -> Result<()> {
    let pipeline = pipeline(api, arguments)?;
    let value: Arc<str> = "x".repeat(arguments.value_size).into();
    let nodes = api.nodes();
    tell(format_args!("bitacora: this loads {}", nodes.join(", ")));
    if arguments.operation != Operation::Set {
        fill(api, arguments, &value).await?;
    }
    let (tally, time) = measure(api, arguments, pipeline, &value).await?;
    let report = Report::new(nodes, arguments, pipeline, &tally, time);
    match Output::of_list(output) {
        Output::Json => print(json_line(&report)?)?,
        Output::Table => print(page(&report))?,
        Output::Raw => print(output::raw_line(raw(&report).each_ref().map(String::as_str)))?,
    }
    match tally.failure {
        Some(failure) if report.requests == 0 => Err(failure.into()),
        _ => Ok(()),
    }
}

/// How many requests a connection has under way.
fn pipeline(api: &Api, arguments: &Bench) -> Result<u32, Failure> {
    match (api, arguments.pipeline) {
        (Api::Http(_), Some(2..)) => {
            let sentence =
                "over HTTP a connection has one request under way; give --connections instead of --pipeline";
            Err(Failure::new(Kind::Usage, sentence))
        }
        (Api::Http(_), _) => Ok(1),
        (Api::Rpc(_), pipeline) => Ok(pipeline.unwrap_or(16)),
    }
}

/// Sends what was asked for over all connections; what came of it, and how long it took in all.
async fn measure(
    api: &Arc<Api>,
    arguments: &Bench,
    pipeline: u32,
    value: &Arc<str>,
) -> Result<(Tally, Duration)> {
    let started = Instant::now();
    let until = arguments.requests.is_none().then(|| started + arguments.duration);
    let limit = Arc::new(Limit { until, left: AtomicU64::new(arguments.requests.unwrap_or(0)) });
    let mut shares = JoinSet::new();
    for _ in 0..arguments.connections {
        let share = Share {
            api: Arc::clone(api),
            limit: Arc::clone(&limit),
            value: Arc::clone(value),
            operation: arguments.operation,
            keys: arguments.keys,
            key_prefix: arguments.key_prefix.clone(),
        };
        shares.spawn(async move { share.run(pipeline).await });
    }
    let mut tally = Tally::new()?;
    while let Some(share) = shares.join_next().await {
        tally.add(share??)?;
    }
    Ok((tally, started.elapsed()))
}

impl Report {
    fn new(nodes: Vec<String>, arguments: &Bench, pipeline: u32, tally: &Tally, time: Duration) -> Self {
        let requests = tally.latencies.len();
        Self {
            nodes,
            operation: arguments.operation,
            connections: arguments.connections,
            pipeline,
            value_size: arguments.value_size,
            keys: arguments.keys,
            requests,
            not_found: tally.not_found,
            failed: tally.failed,
            first_failure: tally.failure.as_ref().map(ToString::to_string),
            seconds: time.as_secs_f64(),
            requests_per_second: per_second(requests, time),
            latency_us: Latency::of(&tally.latencies),
        }
    }
}

struct Share {
    api: Arc<Api>,
    limit: Arc<Limit>,
    value: Arc<str>,
    operation: Operation,
    keys: u64,
    key_prefix: String,
}

impl Share {
    async fn run(&self, pipeline: u32) -> Result<Tally> {
        let mut tally = Tally::new()?;
        let mut under_way: FuturesUnordered<_> =
            (0..pipeline).filter(|_| self.limit.one_more()).map(|_| self.call()).collect();
        while let Some((outcome, time)) = under_way.next().await {
            let failed = outcome.as_ref().is_err_and(|failure| failure.kind != Kind::NotFound);
            tally.count(outcome, time);
            if self.limit.one_more() {
                under_way.push(self.call());
            }
            if failed {
                // A node that refuses at once would otherwise be asked in a hot loop.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        Ok(tally)
    }

    async fn call(&self) -> (Result<(), Failure>, Duration) {
        let key = format!("{}{}", self.key_prefix, fastrand::u64(..self.keys));
        let set = match self.operation {
            Operation::Get => false,
            Operation::Set => true,
            Operation::Mixed => fastrand::u64(..SETS_IN_MIXED) == 0,
        };
        let started = Instant::now();
        let outcome = if set {
            self.api
                .set(&key, &self.value, None, WriteCondition::None, &WriteFlags::default())
                .await
                .map(|_| ())
        } else {
            self.api.get(&key, &ReadFlags::default()).await.map(|_| ())
        };
        (outcome, started.elapsed())
    }
}

/// Writes every key, and waits until the last one can be read.
async fn fill(api: &Arc<Api>, arguments: &Bench, value: &str) -> Result<()> {
    tell(format_args!("bitacora: writing {} keys first", arguments.keys));
    let key = |number: u64| format!("{}{number}", arguments.key_prefix);
    let starts = (0..arguments.keys).step_by(FILL_BATCH as usize);
    let fills = starts.map(|start| async move {
        let numbers = start..arguments.keys.min(start + FILL_BATCH);
        let set =
            |number| bitacora_client::Operation::Set { key: key(number), value: value.to_owned(), ttl: None };
        let operations: Vec<_> = numbers.map(set).collect();
        api.batch(&operations.iter().collect::<Vec<_>>())
            .await?
            .into_iter()
            .try_for_each(|result| result.map(|_| ()))
    });
    let mut fills = futures_util::stream::iter(fills).buffer_unordered(FILL_UNDER_WAY);
    while let Some(filled) = fills.next().await {
        filled?;
    }
    let last = key(arguments.keys - 1);
    let seen = async {
        loop {
            match api.get(&last, &ReadFlags::default()).await {
                Err(failure) if failure.kind == Kind::NotFound => tokio::time::sleep(LOOK).await,
                seen => return seen.map(|_| ()),
            }
        }
    };
    // Not found is an answer too, and counted: a node that lags behind is no reason to wait longer.
    Ok(tokio::time::timeout(Duration::from_secs(10), seen).await.unwrap_or(Ok(()))?)
}

impl Latency {
    fn of(latencies: &Histogram<u64>) -> Self {
        let [p50, p90, p99, p99_9, max] =
            PERCENTILES.map(|(_, percentile)| latencies.value_at_percentile(percentile));
        let buckets = latencies
            .iter_log(64, 2.0)
            .map(|step| Bucket { up_to: step.value_iterated_to(), count: step.count_since_last_iteration() });
        let buckets = buckets.skip_while(|bucket| bucket.count == 0).collect();
        Self { mean: latencies.mean(), p50, p90, p99, p99_9, max, buckets }
    }

    fn percentiles(&self) -> [u64; 5] {
        [self.p50, self.p90, self.p99, self.p99_9, self.max]
    }
}

fn raw(report: &Report) -> [String; 8] {
    let [p50, p90, p99, p99_9, max] = report.latency_us.percentiles().map(|us| us.to_string());
    let (requests, failed) = (report.requests.to_string(), report.failed.to_string());
    [requests, failed, format!("{:.0}", report.requests_per_second), p50, p90, p99, p99_9, max]
}

/// The report for the eye.
fn page(report: &Report) -> String {
    let Report { requests, not_found, failed, seconds, requests_per_second, latency_us, .. } = report;
    let failure = report.first_failure.as_ref().map(|failure| format!("the first failure: {failure}\n"));
    let mut text = format!(
        "{requests} requests in {seconds:.1} s, {requests_per_second:.0} a second, {} under way; {not_found} not found, {failed} failed\n{}",
        report.connections * report.pipeline,
        failure.unwrap_or_default()
    );
    let percentiles = PERCENTILES.iter().zip(latency_us.percentiles());
    text += &output::table(
        Some(["LATENCY", "MS"]),
        percentiles.map(|((name, _), us)| [(*name).to_owned(), milliseconds(us)]),
    );
    let bar = |count: u64| "#".repeat((count * 40).div_ceil((*requests).max(1)) as usize);
    text += &output::table(
        Some(["UP TO MS", "REQUESTS", ""]),
        latency_us.buckets.iter().map(|b| [milliseconds(b.up_to), b.count.to_string(), bar(b.count)]),
    );
    text
}

fn milliseconds(us: u64) -> String {
    format!("{:.3}", us as f64 / 1_000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_every_request_once() {
        let mut latencies = Histogram::new(3).expect("a histogram");
        for us in [0, 1, 64, 65, 1_000, 2_000_000] {
            latencies.record(us).expect("it grows");
        }
        let latency = Latency::of(&latencies);
        assert_eq!(latency.buckets.iter().map(|bucket| bucket.count).sum::<u64>(), 6);
        assert!(latency.buckets.is_sorted_by_key(|bucket| bucket.up_to));
        assert!((2_000_000..2_002_000).contains(&latency.max));
    }

    #[test]
    fn a_limit_of_requests_is_exact() {
        let limit = Limit { until: None, left: AtomicU64::new(2) };
        assert_eq!([limit.one_more(), limit.one_more(), limit.one_more()], [true, true, false]);
    }
}
