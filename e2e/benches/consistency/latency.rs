//! One call at a time, of each kind.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bitacora_client::{Client, Position, Session};
use e2e::bare_kafka::BareKafka;
use e2e::cluster::Options;
use e2e::figures::Spread;
use e2e::runner::Ctx;

use crate::{PARTITIONS, client_of, value};

const ROUNDS: usize = 7;
const SAMPLES: usize = 150;
/// Before the first round, of each kind; not counted.
const WARM_UP: usize = 20;
/// Spread over all partitions.
const KEYS: usize = 64;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Eventual,
    Session,
    Latest,
    Strong,
    Set,
    ConditionalSet,
    Kafka,
}

impl Kind {
    const ALL: [Kind; 7] = [
        Kind::Eventual,
        Kind::Session,
        Kind::Latest,
        Kind::Strong,
        Kind::Set,
        Kind::ConditionalSet,
        Kind::Kafka,
    ];

    fn name(self) -> &'static str {
        match self {
            Kind::Eventual => "eventual read",
            Kind::Session => "session read after a set on another node",
            Kind::Latest => "latest read",
            Kind::Strong => "strong read",
            Kind::Set => "set",
            Kind::ConditionalSet => "compare_and_set",
            Kind::Kafka => "bare Kafka, produce to consume",
        }
    }
}

/// Of one round and kind, in µs.
struct Latencies {
    p50: f64,
    p99: f64,
}

impl Latencies {
    fn of(mut samples: Vec<Duration>) -> Latencies {
        samples.sort_unstable();
        let at = |part: f64| {
            let index = (samples.len().saturating_sub(1) as f64 * part).round() as usize;
            samples.get(index).map_or(f64::NAN, |sample| sample.as_secs_f64() * 1e6)
        };
        Latencies { p50: at(0.5), p99: at(0.99) }
    }
}

/// What a second node costs that reads the same log on the same machine, shows in comparison with one alone.
pub async fn run(ctx: Ctx, nodes: usize) -> Result<()> {
    let cluster = ctx.cluster_with(nodes, Options::new()).await?;
    let kafka = BareKafka::start(&cluster.topic, PARTITIONS, &value()).await?;
    let (here, there) = (client_of(&cluster.nodes[0]).await?, client_of(&cluster.nodes[nodes - 1]).await?);
    let calls = Calls::start(here, there, kafka);
    // In a task of the runtime's own threads, which also wait for the sockets.
    let rounds = tokio::spawn(async move { measure(calls.await?).await }).await??;
    print(nodes, &rounds);
    Ok(())
}

/// For each round, the latencies of each kind.
async fn measure(mut calls: Calls) -> Result<Vec<Vec<Latencies>>> {
    for kind in Kind::ALL {
        for number in 0..WARM_UP {
            calls.sample(kind, number).await?;
        }
    }
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let mut round = Vec::new();
        for kind in Kind::ALL {
            let mut samples = Vec::new();
            for number in 0..SAMPLES {
                samples.push(calls.sample(kind, number).await.with_context(|| kind.name())?);
            }
            round.push(Latencies::of(samples));
        }
        rounds.push(round);
    }
    Ok(rounds)
}

fn print(nodes: usize, rounds: &[Vec<Latencies>]) {
    println!(
        "\nOne call at a time through the client library, values of 100 bytes, nodes: {nodes}, one broker, acks=all; \
         {ROUNDS} rounds of {SAMPLES} calls of each kind, alternating; µs"
    );
    println!("  {:<42} {:<24} {:<26} p50 / bare Kafka's", "", "p50", "p99");
    for (index, kind) in Kind::ALL.iter().enumerate() {
        let of = |figure: fn(&Latencies) -> f64| Spread::of(rounds.iter().map(|round| figure(&round[index])));
        let kafka = |round: &[Latencies]| round.last().map_or(f64::NAN, |latencies| latencies.p50);
        let ratio = Spread::of(rounds.iter().map(|round| round[index].p50 / kafka(round)));
        let (p50, p99) = (of(|latencies| latencies.p50), of(|latencies| latencies.p99));
        println!("  {:<42} {p50:<24} {p99:<26} {ratio:.2}", kind.name());
    }
}

/// What is measured.
struct Calls {
    /// Of one node.
    here: Client,
    /// Of the other.
    there: Client,
    kafka: BareKafka,
    /// Of each key that is written conditionally.
    versions: Vec<Position>,
    value: String,
}

impl Calls {
    async fn start(here: Client, there: Client, kafka: BareKafka) -> Result<Calls> {
        let (mut versions, value) = (Vec::new(), value());
        for number in 0..KEYS {
            here.set(&read_key(number), &value).await?;
            versions.push(here.create(&conditional_key(number), &value).await?.position);
        }
        Ok(Calls { here, there, kafka, versions, value })
    }

    async fn sample(&mut self, kind: Kind, number: usize) -> Result<Duration> {
        let Calls { here, there, kafka, versions, value } = self;
        let (number, key) = (number % KEYS, read_key(number));
        let began;
        match kind {
            Kind::Eventual => {
                began = Instant::now();
                here.get(&key).await?;
            }
            Kind::Session => {
                let session = Session::new();
                let written = there.write(&key, value).session(&session).await?;
                began = Instant::now();
                let record = here.read(&key).session(&session).await?;
                ensure!(record.position == written.position, "the session read has {}", record.position);
            }
            Kind::Latest => {
                began = Instant::now();
                here.read(&key).latest().await?;
            }
            Kind::Strong => {
                began = Instant::now();
                here.read(&key).strong().await?;
            }
            Kind::Set => {
                began = Instant::now();
                here.set(&key, value).await?;
            }
            Kind::ConditionalSet => {
                let (key, version) = (conditional_key(number), &mut versions[number]);
                began = Instant::now();
                *version = here.compare_and_set(&key, *version, value).await?.position;
            }
            Kind::Kafka => return Ok(kafka.sample(number).await?.consumed),
        }
        Ok(began.elapsed())
    }
}

fn read_key(number: usize) -> String {
    format!("read-{}", number % KEYS)
}

fn conditional_key(number: usize) -> String {
    format!("conditional-{}", number % KEYS)
}
