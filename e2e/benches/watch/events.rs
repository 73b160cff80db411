//! How many events a second a node tells to many watchers: each is told of all records, which others write.

use std::time::Instant;

use anyhow::Result;
use e2e::cluster::Options;
use e2e::figures::Spread;
use e2e::runner::Ctx;
use e2e::topic::{KeyValue, Topic};

use crate::clients::Clients;
use crate::{UNDER_WAY, VALUE_BYTES, records, value};

const ROUNDS: usize = 3;
/// Watchers, and which part of all records is written for them.
const WATCHERS: [(usize, usize); 3] = [(1, 1), (100, 10), (1_000, 100)];

pub async fn run(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster_with(1, Options::new()).await?;
    let port = cluster.nodes[0].api_port;
    let mut rates = vec![[Vec::new(), Vec::new()]; WATCHERS.len()];
    let mut round = 0;
    for _ in 0..ROUNDS {
        for (index, (watchers, part)) in WATCHERS.into_iter().enumerate() {
            let count = (records() / part).max(100);
            for (kind, what) in ["read", "read-keys"].into_iter().enumerate() {
                let mut clients = Clients::start(what, port, watchers, count).await?;
                let began = Instant::now();
                round += 1;
                let (written, told) = tokio::join!(write(&cluster.topic, round, count), clients.line());
                written?;
                told?;
                rates[index][kind].push((count * watchers) as f64 / began.elapsed().as_secs_f64());
            }
        }
    }
    println!(
        "\nEvents that one node tells, from the first record's write until the last watcher has the last; new keys, values of {VALUE_BYTES} \
         bytes; {ROUNDS} rounds, alternating; events/s"
    );
    println!("  {:>8} {:>8}   {:<34} without values", "watchers", "records", "with values");
    for ((watchers, part), [with, without]) in WATCHERS.into_iter().zip(rates) {
        let count = (records() / part).max(100);
        println!("  {watchers:>8} {count:>8}   {:<34} {}", Spread::of(with), Spread::of(without));
    }
    Ok(())
}

/// Writes so many records with keys that no other round has.
async fn write(topic: &Topic, round: usize, count: usize) -> Result<()> {
    let value = value();
    topic.fill(count, UNDER_WAY, |i| KeyValue::new(&format!("events-{round}-{i}"), &value)).await
}
