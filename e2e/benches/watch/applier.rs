//! How fast a node applies the log while watchers are told the whole store again and again.

use std::time::Instant;

use anyhow::{Result, ensure};
use e2e::cluster::{Cluster, Options};
use e2e::figures::Spread;
use e2e::runner::Ctx;
use e2e::topic::KeyValue;
use e2e::wait;

use crate::clients::Clients;
use crate::{PARTITIONS, PATIENCE, UNDER_WAY, VALUE_BYTES, records, value};

const ROUNDS: usize = 5;
/// Watchers that catch up.
const WATCHERS: [usize; 3] = [0, 1, 8];

pub async fn run(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster_with(1, Options::new()).await?;
    let (keys, node) = (records() / 2, &cluster.nodes[0]);
    fill(&cluster, keys, keys).await?;
    applied(&cluster).await?;
    let (mut rates, mut passes) = (vec![Vec::new(); WATCHERS.len()], [0; WATCHERS.len()]);
    for _ in 0..ROUNDS {
        for (index, watchers) in WATCHERS.into_iter().enumerate() {
            // What is written meanwhile waits for it in the log.
            node.pause();
            let filled = fill(&cluster, records(), keys).await;
            node.resume();
            filled?;
            let began = Instant::now();
            let clients = match watchers {
                0 => None,
                _ => Some(Clients::start("catch-up", node.api_port, watchers, keys).await?),
            };
            applied(&cluster).await?;
            rates[index].push(records() as f64 / began.elapsed().as_secs_f64());
            if let Some(clients) = clients {
                passes[index] += clients.end().await?;
            }
        }
    }
    println!(
        "\nRecords that a node applies, {} of {VALUE_BYTES} bytes on {keys} keys, while watchers are told all keys again and again; {ROUNDS} rounds, \
         alternating; records/s",
        records()
    );
    println!("  {:>20}   {:<36} told all keys", "watchers that catch up", "applied");
    for ((watchers, rate), passes) in WATCHERS.into_iter().zip(rates).zip(passes) {
        println!("  {watchers:>20}   {:<36} {passes} times in all", Spread::of(rate));
    }
    Ok(())
}

async fn fill(cluster: &Cluster, count: usize, keys: usize) -> Result<()> {
    let value = value();
    cluster.topic.fill(count, UNDER_WAY, |i| KeyValue::new(&format!("applier-{}", i % keys), &value)).await
}

/// Waits until the node has applied all that is in the log.
async fn applied(cluster: &Cluster) -> Result<()> {
    let highs = cluster.topic.high_watermarks(PARTITIONS).await?;
    ensure!(highs.iter().sum::<i64>() > 0, "nothing was written");
    let all = wait::try_until(PATIENCE, || async {
        let status = cluster.nodes[0].api().status().await.map_err(|error| format!("{error:#}"))?;
        let partitions = status["partitions"].as_array().cloned().unwrap_or_default();
        let has_all = |partition: &serde_json::Value| {
            let number = partition["partition"].as_u64().unwrap_or(u64::MAX) as usize;
            let high = highs.get(number).copied().unwrap_or(i64::MAX);
            partition["applied"].as_i64().is_some_and(|applied| applied + 1 >= high)
        };
        let is_done = partitions.len() == highs.len() && partitions.iter().all(has_all);
        if is_done { Ok(()) } else { Err(status.to_string()) }
    });
    all.await.map_err(anyhow::Error::msg)
}
