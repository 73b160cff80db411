//! How soon a watcher is told of a write: on the node that took it, and on another; beside a bare producer and consumer.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bitacora_client::Client;
use e2e::bare_kafka::BareKafka;
use e2e::cluster::{Node, Options};
use e2e::figures::Spread;
use e2e::runner::Ctx;
use e2e::watches::sse::Stream;
use tokio::sync::mpsc;

use crate::{PARTITIONS, PATIENCE, records, value};

const ROUNDS: usize = 7;
/// Before the first round; not counted.
const WARM_UP: usize = 20;
/// Spread over all partitions.
const KEYS: usize = 64;

const NAMES: [&str; 5] = [
    "acknowledgement to event, the same node",
    "acknowledgement to event, another node",
    "call to event, the same node",
    "call to event, another node",
    "bare Kafka, produce to consume",
];

pub async fn run(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster_with(2, Options::new()).await?;
    let kafka = BareKafka::start(&cluster.topic, PARTITIONS, &value()).await?;
    let [here, there] = &cluster.nodes[..] else { unreachable!("two nodes") };
    let client = Client::builder().nodes([here.rpc_address()]).deadline(PATIENCE).build().await?;
    let watchers = [arrivals(here).await?, arrivals(there).await?];
    let samples = (records() / 1_000).clamp(10, 200);
    let calls = Calls { client, kafka, watchers, value: value() };
    // In a task of the runtime's own threads, which also wait for the sockets.
    let rounds = tokio::spawn(calls.measure(samples)).await??;
    print(samples, &rounds);
    Ok(())
}

/// When a watcher of this node had each event, and its position.
async fn arrivals(node: &Node) -> Result<mpsc::UnboundedReceiver<(Instant, String)>> {
    let stream = Stream::open(node.api_port, "", None).await?;
    let mut stream = stream.context("the node takes no watcher")?;
    let (arrived, arrivals) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(chunk) = stream.chunk().await {
            let at = Instant::now();
            stream.parser.push(&chunk);
            while let Ok(Some(frame)) = stream.parser.frame() {
                let data: serde_json::Value = serde_json::from_str(&frame.data).unwrap_or_default();
                if frame.event == "set"
                    && let Some(position) = data["position"].as_str()
                {
                    let _ = arrived.send((at, position.to_owned()));
                }
            }
        }
    });
    Ok(arrivals)
}

struct Calls {
    client: Client,
    kafka: BareKafka,
    watchers: [mpsc::UnboundedReceiver<(Instant, String)>; 2],
    value: String,
}

/// In µs, in the order of [`NAMES`]. An event may arrive before the acknowledgement does.
type Sample = [f64; NAMES.len()];

impl Calls {
    async fn measure(mut self, samples: usize) -> Result<Vec<Vec<Sample>>> {
        for number in 0..WARM_UP {
            self.sample(number).await?;
        }
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            let mut round = Vec::new();
            for number in 0..samples {
                round.push(self.sample(number).await?);
            }
            rounds.push(round);
        }
        Ok(rounds)
    }

    /// One write, and one record of bare Kafka.
    async fn sample(&mut self, number: usize) -> Result<Sample> {
        let began = Instant::now();
        let written = self.client.set(&format!("delay-{}", number % KEYS), &self.value).await?;
        let acknowledged = began.elapsed().as_secs_f64() * 1e6;
        let position = written.position.to_string();
        let mut events = [0.0; 2];
        for (event, watcher) in events.iter_mut().zip(&mut self.watchers) {
            *event = (arrival(watcher, &position).await? - began).as_secs_f64() * 1e6;
        }
        let kafka = self.kafka.sample(number).await?.consumed.as_secs_f64() * 1e6;
        Ok([events[0] - acknowledged, events[1] - acknowledged, events[0], events[1], kafka])
    }
}

async fn arrival(watcher: &mut mpsc::UnboundedReceiver<(Instant, String)>, wanted: &str) -> Result<Instant> {
    loop {
        let arrived = tokio::time::timeout(Duration::from_secs(20), watcher.recv()).await;
        let (at, position) = arrived.context("the event did not arrive")?.context("the watch has ended")?;
        if position == wanted {
            return Ok(at);
        }
    }
}

fn quantile(round: &[Sample], column: usize, part: f64) -> f64 {
    let mut values: Vec<f64> = round.iter().map(|sample| sample[column]).collect();
    values.sort_by(f64::total_cmp);
    let index = (values.len().saturating_sub(1) as f64 * part).round() as usize;
    values.get(index).copied().unwrap_or(f64::NAN)
}

fn print(samples: usize, rounds: &[Vec<Sample>]) {
    println!(
        "\nFrom a write until a watcher has its event; one write at a time, two nodes, one broker, acks=all; {ROUNDS} rounds of {samples} of each \
         kind, alternating; µs"
    );
    println!("  {:<42} {:<26} {:<28} p99 / bare Kafka's", "", "p50", "p99");
    let kafka = NAMES.len() - 1;
    for (column, name) in NAMES.iter().enumerate() {
        let of = |part| Spread::of(rounds.iter().map(|round| quantile(round, column, part)));
        let ratio = rounds.iter().map(|round| quantile(round, column, 0.99) / quantile(round, kafka, 0.99));
        println!("  {name:<42} {:<26} {:<28} {:.2}", of(0.5), of(0.99), Spread::of(ratio));
    }
}
