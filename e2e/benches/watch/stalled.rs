//! How much memory a node takes for watchers that take nothing while others write.

use std::time::Duration;

use anyhow::{Context, Result};
use e2e::cluster::{Cluster, Node, Options};
use e2e::runner::Ctx;
use e2e::topic::KeyValue;
use e2e::wait;

use crate::clients::Clients;
use crate::{PATIENCE, UNDER_WAY, records};

const WATCHERS: usize = 1_000;
const VALUE_BYTES: usize = 1_000;
/// Written over and over, so that the store is as large from the beginning on.
const KEYS: usize = 20_000;
const LOOK: Duration = Duration::from_millis(50);

pub async fn run(ctx: Ctx) -> Result<()> {
    // Longer than this takes: they are not closed for taking nothing.
    let cluster = ctx.cluster_with(1, Options::new().env("REQUEST_TIMEOUT", "1h")).await?;
    let node = &cluster.nodes[0];
    let count = records() / 2;
    // The store, its cache and the allocator have what they need for the writes alone.
    write(&cluster, count).await?;
    let alone = most(node, write(&cluster, count)).await?;
    let clients = Clients::start("stall", node.api_port, WATCHERS, 0).await?;
    let stalled = most(node, write(&cluster, count)).await?;
    let watchers = node.api().metric("bitacora_watchers").await?;
    let bytes = node.api().metric("bitacora_watch_buffer_bytes").await?;
    clients.end().await?;
    let after = node.resident_bytes().context("Linux tells")?;
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!(
        "\nThe most resident memory of a node while {count} records of {VALUE_BYTES} bytes are written; MiB, and without the pages of files"
    );
    for (what, (resident, anonymous)) in [
        ("without watchers".to_owned(), alone),
        (format!("{watchers} watchers that take nothing"), stalled),
        ("after they have gone".to_owned(), after),
    ] {
        println!("  {what:<36} {:>8.1} {:>8.1}", mib(resident), mib(anonymous));
    }
    let more = [(stalled.0, alone.0), (stalled.1, alone.1)].map(|(with, without)| mib(with) - mib(without));
    println!(
        "  {:<36} {:>8.1} {:>8.1}   buffer of changes: {:.1}",
        "more",
        more[0],
        more[1],
        mib(bytes as u64)
    );
    Ok(())
}

/// The most memory that a node has while something is done.
async fn most(node: &Node, work: impl Future<Output = Result<()>>) -> Result<(u64, u64)> {
    let mut most = (0, 0);
    let mut work = std::pin::pin!(work);
    loop {
        let (resident, anonymous) = node.resident_bytes().context("Linux tells")?;
        most = (most.0.max(resident), most.1.max(anonymous));
        tokio::select! {
            done = &mut work => return done.map(|()| most),
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// Writes so many records, and waits until the node has applied them.
async fn write(cluster: &Cluster, count: usize) -> Result<()> {
    let value = "v".repeat(VALUE_BYTES);
    cluster.topic.fill(count, UNDER_WAY, |i| KeyValue::new(&format!("key-{}", i % KEYS), &value)).await?;
    let caught_up = wait::try_until(PATIENCE, || async {
        let status = cluster.nodes[0].api().status().await.map_err(|error| format!("{error:#}"))?;
        if status["caught_up"] == true { Ok(()) } else { Err(status.to_string()) }
    });
    caught_up.await.map_err(anyhow::Error::msg)
}
