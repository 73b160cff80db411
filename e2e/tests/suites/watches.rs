//! Watchers on three nodes that are killed and stopped, whose connections end in the middle of an event: for each key they are told
//! what the log has, in its order, and its last state always, wherever they go on.
//!
//! `WATCHES_SECONDS` says for how long, `WATCHES_SEED` repeats the choices of writers, watchers and faults.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::cluster::{Cluster, START};
use e2e::consistency::run::setting;
use e2e::runner::{Ctx, Test};
use e2e::watches::run;
use e2e::{digests, tests};
use fastrand::Rng;

pub fn tests() -> Vec<Test> {
    let longest = duration().unwrap_or(DURATION).max(DURATION) + Duration::from_secs(300);
    let tests = tests![Servers: each_key_is_told_in_order_and_to_its_end];
    tests.into_iter().map(|test| test.within(longest)).collect()
}

const DURATION: Duration = Duration::from_secs(25);

fn duration() -> Result<Duration> {
    Ok(setting("WATCHES_SECONDS")?.map_or(DURATION, Duration::from_secs))
}

async fn each_key_is_told_in_order_and_to_its_end(ctx: Ctx) -> Result<()> {
    let seed = setting("WATCHES_SEED")?.unwrap_or_else(|| fastrand::u64(..));
    let cluster = ctx.cluster().await?;
    let report = run::run(seed, &cluster, fail(&cluster, seed, duration()?)).await?;
    println!("watches, WATCHES_SEED={seed}: {report}");
    ensure!(report.violations.is_empty(), "WATCHES_SEED={seed} repeats the choices\n{report}");
    // All that there is to be tried was.
    let tried = [report.sets, report.deletes, report.expiries, report.elsewhere, report.cut_inside];
    ensure!(tried.iter().all(|count| *count > 10), "{report}");
    ensure!(report.lost > 0 && report.comparisons > 20 && report.scanned > 0, "{report}");
    digests::agree(&cluster.nodes.iter().map(|node| node.api()).collect::<Vec<_>>()).await
}

/// Kills or stops one node after the other, and starts it again.
async fn fail(cluster: &Cluster, seed: u64, duration: Duration) -> Result<()> {
    let mut rng = Rng::with_seed(seed);
    let (began, mut killed, mut stopped) = (Instant::now(), 0, 0);
    while began.elapsed() < duration {
        tokio::time::sleep(Duration::from_millis(rng.u64(500..2_500))).await;
        let node = &cluster.nodes[rng.usize(0..cluster.nodes.len())];
        if rng.usize(0..3) > 0 {
            killed += 1;
            node.kill();
        } else {
            stopped += 1;
            node.terminate(START).await;
        }
        tokio::time::sleep(Duration::from_millis(rng.u64(100..3_000))).await;
        node.spawn()?;
        node.ready().await;
    }
    println!("watches: {killed} nodes killed, {stopped} stopped");
    Ok(())
}
