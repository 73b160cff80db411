//! Whatever clients ask of three nodes at once, each key behaves as if there were one, sessions never go back, and a write has
//! its effect once: on quiet nodes, and while nodes are killed and paused.
//!
//! `CONSISTENCY_SECONDS` says for how long each, `CONSISTENCY_SEED` repeats the choices of clients and faults.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Cluster, START};
use e2e::consistency::check::Report;
use e2e::consistency::client::Nodes;
use e2e::consistency::run;
use e2e::consistency::workload::Workload;
use e2e::runner::{Ctx, Test};
use e2e::{digests, tests, wait};
use fastrand::Rng;

pub fn tests() -> Vec<Test> {
    let tests = tests![
        Servers: all_calls_are_consistent_on_quiet_nodes,
            all_calls_are_consistent_while_nodes_fail
    ];
    let longest = duration(FAILING).unwrap_or_default().max(FAILING) + Duration::from_secs(300);
    tests.into_iter().map(|test| test.within(longest)).collect()
}

const QUIET: Duration = Duration::from_secs(20);
const FAILING: Duration = Duration::from_secs(45);

fn duration(default: Duration) -> Result<Duration> {
    Ok(run::setting("CONSISTENCY_SECONDS")?.map_or(default, Duration::from_secs))
}

/// Tells what was checked, and fails if anything is wrong.
fn conclude(what: &str, seed: u64, report: &Report) -> Result<()> {
    println!("consistency, {what}, CONSISTENCY_SEED={seed}: {report}");
    ensure!(report.violations.is_empty(), "CONSISTENCY_SEED={seed} repeats the choices\n{report}");
    Ok(())
}

async fn all_calls_are_consistent_on_quiet_nodes(ctx: Ctx) -> Result<()> {
    let (seed, duration) = (run::seed()?, duration(QUIET)?);
    let cluster = ctx.cluster().await?;
    let quiet = async {
        tokio::time::sleep(duration).await;
        Ok(())
    };
    let api = |node: usize| cluster.nodes[node].api();
    let nodes = Nodes { count: cluster.nodes.len(), api: &api };
    let workload = Workload::new(seed);
    let report = run::run(&workload, &nodes, &cluster.topic, quiet).await?;
    conclude("three quiet nodes", seed, &report)?;
    // Nothing failed, so nothing may have been left open.
    let unclear: usize = report.kinds.values().map(|[.., unclear]| unclear).sum();
    ensure!(unclear == 0, "{unclear} unclear writes on quiet nodes: {report}");
    let [acknowledged, _, held] = report.increments;
    ensure!(held == acknowledged && (held > 0) == workload.conditional, "{report}");
    Ok(())
}

async fn all_calls_are_consistent_while_nodes_fail(ctx: Ctx) -> Result<()> {
    let (seed, duration) = (run::seed()?, duration(FAILING)?);
    let cluster = ctx.cluster().await?;
    let api = |node: usize| cluster.nodes[node].api();
    let nodes = Nodes { count: cluster.nodes.len(), api: &api };
    let faults = fail(&cluster, seed, duration);
    let report = run::run(&Workload::new(seed), &nodes, &cluster.topic, faults).await?;
    conclude("nodes killed and paused", seed, &report)?;
    digests::agree(&cluster.nodes.iter().map(|node| node.api()).collect::<Vec<_>>()).await
}

/// Kills or freezes one node after the other, for a while each.
async fn fail(cluster: &Cluster, seed: u64, duration: Duration) -> Result<()> {
    let mut rng = Rng::with_seed(seed);
    let (began, mut killed, mut paused) = (Instant::now(), 0, 0);
    while began.elapsed() < duration {
        tokio::time::sleep(Duration::from_millis(rng.u64(500..2500))).await;
        let node = &cluster.nodes[rng.usize(0..cluster.nodes.len())];
        let away = Duration::from_millis(rng.u64(200..5000));
        if rng.bool() {
            killed += 1;
            node.kill();
            tokio::time::sleep(away).await;
            node.spawn()?;
        } else {
            paused += 1;
            node.pause();
            tokio::time::sleep(away).await;
            node.resume();
        }
        let ready = wait::try_until(START, || async {
            match node.api().health().await {
                Ok(answer) if answer.status == 200 => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        ready.await.map_err(anyhow::Error::msg).with_context(|| format!("{} is not ready", node.name))?;
    }
    println!("consistency: {killed} nodes killed, {paused} paused");
    Ok(())
}
