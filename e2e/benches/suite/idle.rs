//! What a node takes that has nothing to do and an empty store.

use std::time::{Duration, Instant};

use anyhow::Result;
use e2e::cluster::Options;
use e2e::measure::row::{Better, Row, Target};
use e2e::measure::{cpu, results};
use e2e::runner::Ctx;

use super::filled;
use crate::size::size;

/// After its start, until nothing of that is left to do.
const SETTLED: Duration = Duration::from_secs(3);

pub async fn run(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster_with(1, Options::new()).await?;
    let pid = filled::pid(&cluster.nodes[0])?;
    tokio::time::sleep(SETTLED).await;
    let period = Duration::from_secs(if size().quick { 10 } else { 20 });
    let (mut percent, mut memory) = (Vec::new(), Vec::new());
    for _ in 0..size().long_rounds {
        let (before, began) = (cpu::seconds(pid)?, Instant::now());
        tokio::time::sleep(period).await;
        percent.push((cpu::seconds(pid)? - before) / began.elapsed().as_secs_f64() * 100.0);
        memory.push(cpu::resident_bytes(pid)? / 1e6);
    }
    let alone = |figure, values: &[f64]| {
        Row::alone("idle", "a node with an empty store and nothing to do", figure, Better::Lower, values)
    };
    results::add([
        alone("% of a core", &percent).target(Target::Figure(0.5)),
        alone("resident MB", &memory).target(Target::Figure(20.0)),
    ]);
    Ok(())
}
