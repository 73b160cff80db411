//! A run: clients at work, faults beside them, and the checks when all is well again.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::check::{self, Final, Report};
use super::client::Nodes;
use super::effects::Effects;
use super::workload::Workload;
use super::{Level, Recorder};
use crate::http::Api;
use crate::topic::Topic;
use crate::wait;

/// All is well again that long after the last fault.
const RECOVERY: Duration = Duration::from_secs(120);

/// A number from the environment.
///
/// # Errors
/// It is none.
pub fn setting(name: &str) -> Result<Option<u64>> {
    match std::env::var(name) {
        Ok(text) => Ok(Some(text.parse().with_context(|| format!("{name}={text} is no number"))?)),
        Err(_) => Ok(None),
    }
}

/// Of `CONSISTENCY_SEED`, or a random one.
///
/// # Errors
/// It is no number.
pub fn seed() -> Result<u64> {
    Ok(setting("CONSISTENCY_SEED")?.unwrap_or_else(|| fastrand::u64(..)))
}

/// Runs the workload beside `faults`, until those end, and checks what clients saw.
///
/// # Errors
/// An answer that no node may give, a failure of the faults, or a cluster that does not recover; violations are in the report.
pub async fn run(
    workload: &Workload,
    nodes: &Nodes<'_>,
    topic: &Topic,
    faults: impl Future<Output = Result<()>>,
) -> Result<Report> {
    let (recorder, over) = (Recorder::default(), Cell::new(false));
    let faults = async {
        let ended = faults.await;
        over.set(true);
        ended
    };
    tokio::try_join!(workload.run(nodes, &recorder, &over), faults)?;
    let finals = settled(nodes, &workload.keys()).await?;
    let effects = Effects::of(topic.read_all().await?)?;
    let history = recorder.into_history();
    // A search may take long, and other tests use this thread's runtime too.
    let levels = [Level::Strong, workload.strong];
    let checked = move || check::check(&history, &effects, &finals, &levels);
    tokio::task::spawn_blocking(checked).await.context("the check panicked")
}

/// Waits until every node has applied the same log, and returns what each holds.
async fn settled(nodes: &Nodes<'_>, keys: &[String]) -> Result<Vec<BTreeMap<String, Final>>> {
    let state = async |api: &Api| {
        let status = api.status().await.map_err(|error| format!("{error:#}"))?;
        let partitions = status["partitions"].as_array().cloned().unwrap_or_default();
        let ends: Vec<_> = partitions.iter().map(|partition| partition["high_watermark"].clone()).collect();
        if status["caught_up"] == true { Ok(ends) } else { Err(status.to_string()) }
    };
    // The log's ends are learnt again and again: what is the same for two seconds has come to rest.
    let mut last: (Instant, Vec<Vec<serde_json::Value>>) = (Instant::now(), Vec::new());
    let end = Instant::now() + RECOVERY;
    loop {
        let mut ends = Vec::new();
        for node in 0..nodes.count {
            let api = (nodes.api)(node);
            let of_node = wait::try_until(RECOVERY, || state(&api)).await.map_err(anyhow::Error::msg);
            ends.push(of_node.with_context(|| format!("node {node} has not recovered"))?);
        }
        let same = ends.iter().all(|one| *one == ends[0]);
        if !same || ends != last.1 {
            last = (Instant::now(), ends);
        } else if last.0.elapsed() > Duration::from_secs(2) {
            break;
        }
        ensure!(Instant::now() < end, "the nodes have not come to rest: {:?}", last.1);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut finals = Vec::new();
    for node in 0..nodes.count {
        let (api, mut held) = ((nodes.api)(node), BTreeMap::new());
        for key in keys {
            let answer = api.get_own(key).await?;
            ensure!(matches!(answer.status, 200 | 404), "{answer}");
            held.insert(key.clone(), Final { value: answer.value(), position: answer.position() });
        }
        finals.push(held);
    }
    Ok(finals)
}
