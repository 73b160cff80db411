//! The same on three brokers, three ZooKeepers and three nodes, while brokers are restarted, the leader of some partitions is
//! cut off together with a node, and one is frozen and goes on after another took its place.
//!
//! `CONSISTENCY_BROKERS_SECONDS` (60) says for how long, `CONSISTENCY_SEED` repeats the choices of clients and faults.
//! `CONSISTENCY_LEVEL=latest` reads `latest` where else it reads `strong`: a deposed leader then leads to stale reads, and the test
//! fails unless the check sees some.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use e2e::consistency::check::Report;
use e2e::consistency::client::Nodes;
use e2e::consistency::workload::Workload;
use e2e::consistency::{Level, run};
use e2e::deployment::Deployment;
use e2e::http::Api;
use e2e::nemesis::{Fault, Nemesis};
use e2e::runner::{Ctx, Test};
use e2e::{digests, tests, wait};
use fastrand::Rng;

pub fn tests() -> Vec<Test> {
    let deadline = duration().unwrap_or_default() + Duration::from_secs(600);
    let tests = tests![Deployment: all_calls_are_consistent_while_brokers_fail];
    tests.into_iter().map(|test| test.within(deadline)).collect()
}

const DURATION: Duration = Duration::from_secs(60);
/// Longer than it takes until another broker leads (KAFKA_BROKER_SESSION_TIMEOUT_MS, 4 s).
const DEPOSED: std::ops::Range<u64> = 9_000..15_000;
const RECOVERY: Duration = Duration::from_secs(120);

fn duration() -> Result<Duration> {
    Ok(run::setting("CONSISTENCY_BROKERS_SECONDS")?.map_or(DURATION, Duration::from_secs))
}

fn level() -> Result<Level> {
    match std::env::var("CONSISTENCY_LEVEL").as_deref() {
        Err(_) | Ok("strong") => Ok(Level::Strong),
        Ok("latest") => Ok(Level::Latest),
        Ok(other) => bail!("CONSISTENCY_LEVEL={other} is neither strong nor latest"),
    }
}

async fn all_calls_are_consistent_while_brokers_fail(_: Ctx) -> Result<()> {
    let (seed, level) = (run::seed()?, level()?);
    let deployment = Deployment::ha();
    let outcome = scenario(&deployment, seed, level).await;
    match outcome {
        Ok(report) => conclude(seed, level, &report),
        Err(error) => {
            let state = deployment.report().await;
            Err(error.context(format!("CONSISTENCY_SEED={seed} repeats the choices\n{state}")))
        }
    }
}

fn conclude(seed: u64, level: Level, report: &Report) -> Result<()> {
    println!("consistency, brokers failing, {} reads, CONSISTENCY_SEED={seed}: {report}", level.name());
    let stale = report.violations_of("not linearizable");
    if level == Level::Latest {
        ensure!(stale > 0, "no stale read of level latest was seen: {report}");
        ensure!(stale == report.violations.len(), "more is wrong than latest reads: {report}");
    } else {
        ensure!(report.violations.is_empty(), "CONSISTENCY_SEED={seed} repeats the choices\n{report}");
    }
    Ok(())
}

async fn scenario(deployment: &Deployment, seed: u64, level: Level) -> Result<Report> {
    deployment.up(&["node-1", "node-2", "node-3"]).await?;
    let apis = ["NODE_1_PORT", "NODE_2_PORT", "NODE_3_PORT"].map(|name| Api::new(deployment.port(name)));
    let mut nemesis = Nemesis::new(deployment).await?;
    let api = |node: usize| apis[node].clone();
    let nodes = Nodes { count: apis.len(), api: &api };
    // Hot keys in all partitions, and a pace that lets the history of a long run fit into memory.
    let workload = Workload { hot: 8, cold: 200, strong: level, pace: 5..50, ..Workload::new(seed) };
    let report = run::run(&workload, &nodes, &deployment.topic(), fail(&mut nemesis, &apis, seed)).await?;
    let injected: Vec<_> = nemesis.injected.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
    println!("consistency: faults: {}", injected.join(", "));
    digests::agree(&apis).await?;
    Ok(report)
}

/// Another fault of brokers again and again, each once before any comes again.
async fn fail(nemesis: &mut Nemesis<'_>, apis: &[Api; 3], seed: u64) -> Result<()> {
    let (mut rng, began, duration) = (Rng::with_seed(seed), Instant::now(), duration()?);
    for round in 0.. {
        if began.elapsed() > duration {
            break;
        }
        tokio::time::sleep(Duration::from_millis(rng.u64(1_000..4_000))).await;
        let (broker, node) = (rng.usize(0..3), rng.usize(0..3));
        let name = format!("kafka-{}", broker + 1);
        let (faults, away) = match round % 3 {
            0 => (cut_off(broker, node), rng.u64(DEPOSED)),
            1 => (vec![Fault::Pause(name)], rng.u64(DEPOSED)),
            _ => (vec![Fault::Restart(name)], rng.u64(1_000..4_000)),
        };
        for fault in &faults {
            nemesis.inject(fault).await.with_context(|| fault.to_string())?;
        }
        tokio::time::sleep(Duration::from_millis(away)).await;
        for fault in &faults {
            nemesis.heal(fault).await.with_context(|| format!("the end of: {fault}"))?;
        }
        for (node, api) in apis.iter().enumerate() {
            is_well(api).await.with_context(|| format!("node {node} has not recovered from {faults:?}"))?;
        }
    }
    Ok(())
}

/// Cuts a broker and a node off from the other brokers and nodes; they still hear each other.
fn cut_off(broker: usize, node: usize) -> Vec<Fault> {
    let others = |kind: &'static str, one: usize| {
        (0..3).filter(move |other| *other != one).map(move |other| format!("{kind}-{}", other + 1))
    };
    let rest: Vec<String> = others("kafka", broker).chain(others("node", node)).collect();
    let away = [format!("kafka-{}", broker + 1), format!("node-{}", node + 1)];
    away.iter().flat_map(|away| rest.iter().map(|other| Fault::Cut(away.clone(), other.clone()))).collect()
}

/// Waits until a node has all that the log has, and knows the others.
pub(super) async fn is_well(api: &Api) -> Result<()> {
    let well = wait::try_until(RECOVERY, || async {
        let status = api.status().await.map_err(|error| format!("{error:#}"))?;
        let members = status["members"].as_array().map_or(0, Vec::len);
        if status["caught_up"] == true && members == 3 { Ok(()) } else { Err(status.to_string()) }
    });
    well.await.map_err(anyhow::Error::msg)
}
