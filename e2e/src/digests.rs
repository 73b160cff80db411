//! Whether nodes hold the same, by their own word: `docs/digests.md`.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::http::Api;
use crate::wait;

/// Each node asks the others every five seconds.
const PATIENCE: Duration = Duration::from_secs(60);
const COMPARISONS: &str = "bitacora_digest_comparisons_total";
/// What a node logs when replicas differ.
const ALARM: &str = "hold other records of this partition";

/// Waits until each node has compared itself with others since this was called, and fails unless they hold the same and did so all the
/// time, since the nodes' start.
pub async fn agree(nodes: &[Api]) -> Result<()> {
    for node in nodes {
        let before = node.metric(COMPARISONS).await?;
        wait::until("the digests are compared", PATIENCE, || async {
            let now = node.metric(COMPARISONS).await.map_err(|error| format!("{error:#}"))?;
            if now > before { Ok(()) } else { Err(format!("{now} comparisons")) }
        })
        .await;
    }
    for node in nodes {
        let status = node.status().await?;
        ensure!(status["differences"].is_null(), "replicas differ: {status}");
        let differed = node.metric(&format!("{COMPARISONS}{{outcome=\"differs\"}}")).await?;
        let all = node.metric(COMPARISONS).await?;
        println!("  {all} comparisons of digests with other nodes, {differed} found a difference");
        ensure!(differed.abs() < 0.1, "a comparison of digests found a difference, though it did not last");
    }
    Ok(())
}

/// Fails if a line of nodes' logs, those of earlier starts too, says that replicas differ.
pub fn no_alarm(log: &str) -> Result<()> {
    let alarms: Vec<_> = log.lines().filter(|line| line.contains(ALARM)).collect();
    ensure!(alarms.is_empty(), "replicas differed: {alarms:#?}");
    Ok(())
}
