//! `cargo bench -p e2e --bench consistency`: what a read of each level and a conditional write cost, on two real nodes, or one alone, and one
//! Kafka, beside a bare producer and consumer of the same Kafka.
//!
//! All figures of a table are taken in rounds that alternate in one run. What is printed is the median of the rounds, and in
//! brackets the least and the most of them.

mod conditional;
mod latency;
mod load;
mod throughput;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use bitacora_client::Client;
use e2e::cluster::{Cluster, Node, Options};
use e2e::runner::{self, Ctx, Needs, Test};

/// As `TOPIC_PARTITIONS` of the suites' nodes.
const PARTITIONS: i32 = 4;
const VALUE_BYTES: usize = 100;
/// Far above what any call takes, also on a busy machine.
const DEADLINE: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().collect();
    if let [_, mode, protocol, level, port] = &arguments[..]
        && mode == "--load"
    {
        return load::main(protocol, level, port);
    }
    let test = |name, run: fn(Ctx) -> _| Test::new("consistency", name, Needs::Servers, run);
    runner::bench(vec![
        test("latency", |ctx| Box::pin(latency::run(ctx, 2)) as runner::Outcome),
        test("latency_of_one_node", |ctx| Box::pin(latency::run(ctx, 1)) as runner::Outcome),
        test("throughput", |ctx| Box::pin(throughput::run(ctx, 2)) as runner::Outcome),
        test("throughput_of_one_node", |ctx| Box::pin(throughput::run(ctx, 1)) as runner::Outcome),
        test("conditional", |ctx| Box::pin(conditional::run(ctx)) as runner::Outcome),
    ])
}

async fn two_nodes(ctx: &Ctx) -> Result<Cluster> {
    ctx.cluster_with(2, Options::new()).await
}

/// A client that knows only this node.
async fn client_of(node: &Node) -> Result<Client> {
    Ok(Client::builder().nodes([node.rpc_address()]).deadline(DEADLINE).build().await?)
}

fn value() -> String {
    "v".repeat(VALUE_BYTES)
}
