//! Topics and nodes with records in them.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::cluster::{Cluster, Node, Options};
use e2e::measure::bulk::Flood;
use e2e::measure::child::{self, Figures, Job};
use e2e::measure::load::{Call, Load};
use e2e::runner::Ctx;
use e2e::wait;

use crate::size::{PARTITIONS, VALUE_BYTES};

/// For a node that has much to read.
pub const PATIENCE: Duration = Duration::from_secs(900);

/// A cluster that has its topic, and no node yet.
pub async fn topic(ctx: &Ctx, options: Options) -> Result<Cluster> {
    let cluster = ctx.no_nodes(options).await?;
    let compacted = [("cleanup.policy", "compact"), ("message.timestamp.type", "LogAppendTime")];
    cluster.topic.create(PARTITIONS, &compacted).await?;
    Ok(cluster)
}

/// Writes so many records into the topic with a bare producer, from a key on.
pub async fn flood(cluster: &Cluster, first: u64, records: u64) -> Result<Figures> {
    let (brokers, topic) = (cluster.topic.brokers.clone(), cluster.topic.name.clone());
    child::run(&Job::Flood(Flood { brokers, topic, first, records, value_bytes: VALUE_BYTES })).await
}

/// Ends the nodes and deletes the topic, so that the broker's disk has room for the next part.
pub async fn end(cluster: Cluster) -> Result<()> {
    let topic = cluster.topic.clone();
    drop(cluster);
    topic.delete().await
}

/// Waits until a node is ready, holds so many records and has read all that is in the log.
pub async fn caught_up(node: &Node, records: u64) -> Result<()> {
    let caught_up = wait::try_until(PATIENCE, || async {
        let status = node.api().status().await.map_err(|error| format!("{error:#}"))?;
        let holds = status["store"]["records"] == records;
        if holds && status["caught_up"] == true && status["ready"] == true {
            Ok(())
        } else {
            Err(status.to_string())
        }
    });
    caught_up.await.map_err(anyhow::Error::msg)
}

/// Reads each of so many keys once, so that they are in the cache if they fit.
pub async fn warm(call: Call, port: u16, keys: u64) -> Result<()> {
    let depth = if call == Call::AvroGet { 64 } else { 1 };
    let load = Load { once: true, depth, ..Load::new(call, port, 16, keys, 0.0) };
    let figures = child::run(&Job::Load(load)).await?;
    ensure!(figures.calls as u64 == keys, "{} of {keys} keys were read", figures.calls);
    Ok(())
}

/// Its process.
pub fn pid(node: &Node) -> Result<u32> {
    node.pid().ok_or_else(|| anyhow::anyhow!("{} does not run", node.name))
}
