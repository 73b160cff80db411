//! Conditional writes of many clients: all of one key, and of a thousand.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bitacora_client::{Client, Error, Record};
use e2e::figures::Spread;
use e2e::runner::Ctx;
use e2e::topic::Topic;
use futures_util::future::try_join_all;
use hdrhistogram::Histogram;

use crate::{PARTITIONS, client_of, two_nodes};

const ROUNDS: usize = 3;
const ROUND: Duration = Duration::from_secs(4);
const CLIENTS: usize = 16;
const WORKLOADS: [(&str, usize); 2] = [("one key", 1), ("a thousand keys", 1000)];

/// What the clients of a round did.
struct Done {
    successes: u64,
    /// Updates that were given up, since others were faster each time.
    given_up: u64,
    /// Updates of which nobody knows whether they took effect.
    unclear: u64,
    /// Conditions that were not met.
    not_met: u64,
    /// In µs, of updates that succeeded, with all their attempts.
    latencies: Histogram<u64>,
}

impl Done {
    fn nothing() -> Result<Done> {
        let latencies = Histogram::new(3)?;
        Ok(Done { successes: 0, given_up: 0, unclear: 0, not_met: 0, latencies })
    }

    fn add(&mut self, other: &Done) -> Result<()> {
        self.successes += other.successes;
        self.given_up += other.given_up;
        self.unclear += other.unclear;
        self.not_met += other.not_met;
        Ok(self.latencies.add(&other.latencies)?)
    }
}

struct Round {
    done: Done,
    seconds: f64,
    records: f64,
}

pub async fn run(ctx: Ctx) -> Result<()> {
    let cluster = two_nodes(&ctx).await?;
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        clients.push(client_of(&cluster.nodes[number % cluster.nodes.len()]).await?);
    }
    // The first conditional write of a topic has more to do.
    clients[0].update("warm-up", increment).await?;
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let mut round = Vec::new();
        for (_, keys) in WORKLOADS {
            round.push(update_all(&clients, &cluster.topic, keys).await?);
        }
        rounds.push(round);
    }
    println!(
        "\nCounters that {CLIENTS} clients on {} nodes increment with `update`; {ROUNDS} rounds of {} s each, alternating",
        cluster.nodes.len(),
        ROUND.as_secs()
    );
    for (index, (name, keys)) in WORKLOADS.iter().enumerate() {
        print(name, rounds.iter().map(|round| &round[index]));
        check(&clients[0], *keys, rounds.iter().map(|round| &round[index])).await?;
    }
    Ok(())
}

fn print<'a>(name: &str, rounds: impl Iterator<Item = &'a Round> + Clone) {
    let of = |figure: fn(&Round) -> f64| Spread::of(rounds.clone().map(figure));
    println!(
        "  {name:<16} {} /s   p50 {} µs   p99 {} µs   slowest {} µs",
        of(|round| round.done.successes as f64 / round.seconds),
        of(|round| round.done.latencies.value_at_quantile(0.5) as f64),
        of(|round| round.done.latencies.value_at_quantile(0.99) as f64),
        // A client that others always outrun has few successes: it shows here only.
        of(|round| round.done.latencies.max() as f64)
    );
    println!(
        "  {:<16} per success: records appended {:.2}, conditions not met {:.2}; given up {}, unclear {}",
        "",
        of(|round| round.records / round.done.successes as f64),
        of(|round| round.done.not_met as f64 / round.done.successes as f64),
        rounds.clone().map(|round| round.done.given_up).sum::<u64>(),
        rounds.map(|round| round.done.unclear).sum::<u64>()
    );
}

/// The counters must add up: each success once, and nothing else but what is unclear.
async fn check(client: &Client, keys: usize, rounds: impl Iterator<Item = &Round>) -> Result<()> {
    let (mut successes, mut unclear) = (0, 0);
    for round in rounds {
        successes += round.done.successes;
        unclear += round.done.unclear;
    }
    let mut counted = 0;
    for number in 0..keys {
        match client.read(&key(keys, number)).strong().await {
            Ok(record) => counted += count(Some(&record)),
            Err(Error::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    ensure!(
        (successes..=successes + unclear).contains(&counted),
        "{successes} increments succeeded and {unclear} are unclear, but the counters say {counted}"
    );
    Ok(())
}

async fn update_all(clients: &[Client], topic: &Topic, keys: usize) -> Result<Round> {
    let records = topic.high_watermarks(PARTITIONS).await?.iter().sum::<i64>();
    let began = Instant::now();
    // Each in a task of its own, so that all of the runtime's threads take part.
    let all = clients.iter().map(|client| {
        let client = client.clone();
        async move { tokio::spawn(async move { update_until(&client, keys, began + ROUND).await }).await? }
    });
    let all = try_join_all(all).await?;
    let seconds = began.elapsed().as_secs_f64();
    let records = topic.high_watermarks(PARTITIONS).await?.iter().sum::<i64>() - records;
    let mut done = Done::nothing()?;
    for one in &all {
        done.add(one)?;
    }
    ensure!(done.successes > 0, "no update succeeded");
    Ok(Round { done, seconds, records: records as f64 })
}

async fn update_until(client: &Client, keys: usize, end: Instant) -> Result<Done> {
    let mut done = Done::nothing()?;
    while Instant::now() < end {
        let (key, began) = (key(keys, fastrand::usize(0..keys)), Instant::now());
        let mut attempts = 0;
        let updated = client.update(&key, |old| {
            attempts += 1;
            increment(old)
        });
        match updated.await {
            Ok(_) => {
                done.successes += 1;
                done.not_met += attempts - 1;
                done.latencies.record(began.elapsed().as_micros() as u64)?;
            }
            Err(error) if error.may_have_taken_effect() => {
                done.unclear += 1;
                done.not_met += attempts;
            }
            Err(Error::TimedOut { .. }) => {
                done.given_up += 1;
                done.not_met += attempts;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(done)
}

fn key(keys: usize, number: usize) -> String {
    format!("counter-{keys}-{number}")
}

fn count(record: Option<&Record>) -> u64 {
    record.and_then(|record| record.value.parse().ok()).unwrap_or(0)
}

fn increment(old: Option<&Record>) -> String {
    (count(old) + 1).to_string()
}
