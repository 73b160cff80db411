//! Topics and nodes with records in them.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Cluster, Node, Options};
use e2e::measure::bulk::Flood;
use e2e::measure::child::{self, Figures, Job};
use e2e::measure::load::{Call, Load};
use e2e::measure::{key, value};
use e2e::runner::Ctx;
use e2e::wait;
use serde_json::Value;

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

/// Waits until a node's status is so.
pub async fn until(node: &Node, is_so: impl Fn(&Value) -> bool) -> Result<()> {
    let told = wait::try_until(PATIENCE, || async {
        let status = node.api().status().await.map_err(|error| format!("{error:#}"))?;
        if is_so(&status) { Ok(()) } else { Err(status.to_string()) }
    });
    told.await.map_err(anyhow::Error::msg)
}

/// Waits until a node is ready, holds so many records and has read all that is in the log.
pub async fn caught_up(node: &Node, records: u64) -> Result<()> {
    let holds = |status: &Value| status["store"]["records"] == records;
    until(node, |status| holds(status) && status["caught_up"] == true && status["ready"] == true).await
}

/// Waits until a node answers the right value for a key in the middle of so many; returns the seconds since it began.
pub async fn correct_read(node: &Node, keys: u64, began: Instant) -> f64 {
    let (api, expected) = (node.api(), value(VALUE_BYTES));
    wait::until("a correct read", PATIENCE, || async {
        let answer = api.get_own(&key(keys / 2)).await.map_err(|error| format!("{error:#}"))?;
        let is_correct = answer.value().as_ref() == Some(&expected);
        if is_correct { Ok(began.elapsed().as_secs_f64()) } else { Err(answer.to_string()) }
    })
    .await
}

/// Writes a file of lines for `import`.
pub fn write_file(file: &Path, numbers: impl Iterator<Item = u64>) -> Result<()> {
    let (mut text, value) = (String::new(), value(VALUE_BYTES));
    for number in numbers {
        writeln!(text, "{{\"key\":\"{}\",\"value\":\"{value}\"}}", key(number))?;
    }
    std::fs::write(file, text).context("writing the file")
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
