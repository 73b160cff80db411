//! The cost curve: what a get, an applied record and a restart cost as the number of keys grows.

use std::time::Instant;

use anyhow::Result;
use e2e::cluster::{Node, Options};
use e2e::figures::{Spread, median};
use e2e::measure::bulk::Flood;
use e2e::measure::child::{self, Job, Measured, against};
use e2e::measure::load::{Call, Load};
use e2e::measure::row::{Better, Row, Series, Target};
use e2e::measure::{cpu, results};
use e2e::runner::Ctx;

use super::filled;
use crate::size::{VALUE_BYTES, WHOLE_CACHE, size};

/// Restarts at each size.
const RESTARTS: usize = 3;
/// Records that are applied at each size, with keys that are there.
const APPLIED: u64 = 10_000;

/// What is measured at each size: processor seconds for a million gets, for a million applied records, and seconds of a restart.
#[derive(Default)]
struct Costs {
    get: Vec<f64>,
    apply: Vec<f64>,
    restart: Vec<f64>,
}

pub async fn run(ctx: Ctx) -> Result<()> {
    let mut cluster = filled::topic(&ctx, Options::new().env("CACHE_BYTES", WHOLE_CACHE)).await?;
    cluster.add().await?;
    let node = &cluster.nodes[0];
    node.spawn()?;
    node.ready().await;
    let (mut written, mut sizes) = (0, Vec::new());
    for keys in steps() {
        filled::flood(&cluster, written, keys - written).await?;
        filled::caught_up(node, keys).await?;
        written = keys;
        let mut costs = Costs::default();
        for _ in 0..RESTARTS {
            node.kill();
            costs.restart.push(restart(node, keys).await?);
        }
        filled::warm(Call::AvroGet, node.avro_port, keys).await?;
        for round in 0..size().rounds as u64 {
            costs.get.push(gets(node, keys).await?.cpu);
            costs.apply.push(apply(&cluster, keys, round).await?);
        }
        sizes.push((keys as f64, costs));
    }
    report(&sizes);
    filled::end(cluster).await
}

/// Ten thousand, and ten times as many each time, up to the size of the run; twice that if it is a whole one, 10,000,000.
fn steps() -> Vec<u64> {
    let most = if size().quick { size().keys } else { 2 * size().keys };
    let mut steps: Vec<_> = (4..).map(|power| 10_u64.pow(power)).take_while(|step| *step < most).collect();
    steps.push(most);
    steps
}

async fn gets(node: &Node, keys: u64) -> Result<Measured> {
    let load = Load { depth: 16, ..Load::new(Call::AvroGet, node.avro_port, 50, keys, size().round) };
    against(&[filled::pid(node)?], &Job::Load(load)).await
}

/// Processor seconds of the node for a million records that it applies, of keys that it has.
async fn apply(cluster: &e2e::cluster::Cluster, keys: u64, round: u64) -> Result<f64> {
    let (brokers, topic) = (cluster.topic.brokers.clone(), cluster.topic.name.clone());
    let records = APPLIED.min(keys);
    // Another part of the keys in each round.
    let first = (keys - records) / 7 * (round % 8).min(7);
    let flood = Flood { brokers, topic, first, records, value_bytes: VALUE_BYTES };
    let node = &cluster.nodes[0];
    let pid = filled::pid(node)?;
    let before = cpu::seconds(pid)?;
    // Several times, as the kernel tells times in hundredths of a second.
    const TIMES: u64 = 5;
    for _ in 0..TIMES {
        child::run(&Job::Flood(flood.clone())).await?;
    }
    filled::caught_up(node, keys).await?;
    Ok((cpu::seconds(pid)? - before) / (TIMES * records) as f64 * 1e6)
}

/// Seconds from the start of a process that was killed until its first correct read.
async fn restart(node: &Node, keys: u64) -> Result<f64> {
    let began = Instant::now();
    node.spawn()?;
    let seconds = filled::correct_read(node, keys, began).await;
    node.ready().await;
    Ok(seconds)
}

fn report(sizes: &[(f64, Costs)]) {
    let (Some((_, first)), Some((_, last))) = (sizes.first(), sizes.last()) else { return };
    let mut rows = Vec::new();
    type Part = fn(&Costs) -> &Vec<f64>;
    let kinds: [(&str, &str, &str, Part); 3] = [
        ("RPC GET, cached, of the most keys", "CPU s per million", "RPC GET, CPU", |costs| &costs.get),
        ("a record applied, with the most keys", "CPU s per million", "applied record, CPU", |costs| {
            &costs.apply
        }),
        ("restart with the most keys, until the first correct read", "s", "restart, time", |costs| {
            &costs.restart
        }),
    ];
    for (work, figure, name, part) in kinds {
        let peer = ("curve", work, "the same with 10,000 keys");
        let row = Row::beside(peer, figure, Better::Lower, part(last), Some(part(first)));
        rows.push(row.target(Target::Ratio(1.5)));
        let points = sizes.iter().map(|(keys, costs)| (*keys, median(part(costs).iter().copied()))).collect();
        for (keys, costs) in sizes {
            println!("  {keys:>12} keys: {name} {:.4}", Spread::of(part(costs).iter().copied()));
        }
        results::add_series(Series { part: "curve".to_owned(), name: name.to_owned(), points });
    }
    results::add(rows);
}
