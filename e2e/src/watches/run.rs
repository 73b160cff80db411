//! A run: watchers and writers at work, faults beside them, and the checks when all has been told.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures_util::future::try_join_all;
use tokio::sync::watch;

use super::check::{self, Report, Scan};
use super::watcher::{Ends, Watcher};
use super::{Filter, Way, Wish, digest, load, positions};
use crate::cluster::Cluster;
use crate::consistency::client::Nodes;
use crate::consistency::effects::Effects;
use crate::http::{Api, Position, encode};

/// After the last write everything has been told within that time.
const RECOVERY: Duration = Duration::from_secs(90);
/// How much longer than the longest time to live the watchers go on; a key that expires is told of within 3 s.
const EXPIRIES: Duration = Duration::from_secs(4);
const PARTITIONS: i32 = 4;
/// Keys in a page of a scan.
const PAGE: usize = 50;

/// Watchers of all kinds.
fn wishes() -> Vec<Wish> {
    let [first, second] = load::PREFIXES;
    let prefix = |prefix: &str| Filter::Prefix(prefix.to_owned());
    vec![
        Wish::new(Way::Events, Filter::All, true),
        Wish::new(Way::Events, Filter::All, false),
        Wish::new(Way::Events, prefix(first), true),
        Wish::new(Way::Events, prefix(second), false),
        Wish::new(Way::Events, Filter::Key(load::hot_key(first)), true),
        Wish { values: false, ..Wish::new(Way::Events, Filter::Key(load::hot_key(second)), false) },
        Wish::new(Way::Polling, Filter::All, true),
        Wish { values: false, ..Wish::new(Way::Polling, Filter::All, false) },
        Wish::new(Way::Polling, prefix(second), true),
    ]
}

/// Runs watchers and writers beside `faults`, until those end, and checks what the watchers were told.
///
/// # Errors
/// An answer that no node may give, a failure of the faults, or watchers that are not told everything; violations are in the report.
pub async fn run(seed: u64, cluster: &Cluster, faults: impl Future<Output = Result<()>>) -> Result<Report> {
    let api = |node: usize| cluster.nodes[node].api();
    let nodes = Nodes { count: cluster.nodes.len(), api: &api };
    let ports: Vec<u16> = cluster.nodes.iter().map(|node| node.api_port).collect();
    let (ended, ends) = watch::channel::<Ends>(None);
    let tasks = wishes().into_iter().enumerate().map(|(number, wish)| {
        let name = format!("watcher {number} ({wish:?})");
        let watcher = Watcher::new(name, wish, ports.clone(), seed.wrapping_add(number as u64), ends.clone());
        tokio::spawn(watcher.run())
    });
    let mut tasks = Tasks(tasks.collect());
    let over = Cell::new(false);
    let faults = async {
        let result = faults.await;
        over.set(true);
        result
    };
    let work = async { tokio::try_join!(load::run(seed, &nodes, &over), faults) };
    let mut watching = std::pin::pin!(try_join_all(tasks.0.iter_mut()));
    let (acknowledged, ()) = tokio::select! {
        done = work => done?,
        ended = &mut watching => {
            ended?.into_iter().find_map(Result::err).map_or(Ok(()), Err)?;
            bail!("the watchers ended before the writers");
        }
    };
    for node in &cluster.nodes {
        node.ready().await;
    }
    // What expires has expired then, and whoever is connected has been told.
    tokio::time::sleep(load::LONGEST_TTL + EXPIRIES).await;
    let scan = scan(&cluster.nodes[0].api()).await?;
    let highs = cluster.topic.high_watermarks(PARTITIONS).await?;
    let log_ends: BTreeMap<i32, i64> = (0..)
        .zip(highs)
        .filter(|(_, high)| *high > 0)
        .map(|(partition, high)| (partition, high - 1))
        .collect();
    ended.send_replace(Some(log_ends.clone()));
    let told = tokio::time::timeout(RECOVERY, watching).await;
    let told =
        told.with_context(|| format!("not all watchers were told everything up to {log_ends:?}"))??;
    let watched = told.into_iter().collect::<Result<Vec<_>>>()?;
    let effects = Effects::of(cluster.topic.read_all().await?)?;
    let checked = move || check::check(&watched, &effects, &acknowledged, &scan);
    tokio::task::spawn_blocking(checked).await.context("the check panicked")
}

/// Watchers, which end with the run.
struct Tasks<T>(Vec<tokio::task::JoinHandle<T>>);

impl<T> Drop for Tasks<T> {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

/// All live keys, page by page, strongly consistent.
async fn scan(api: &Api) -> Result<Scan> {
    let (mut scan, mut cursor) = (Scan::new(), String::new());
    loop {
        let path = format!("/rpc/scan?limit={PAGE}&consistency=strong{cursor}");
        let answer = api.call(reqwest::Method::GET, &path).await?;
        ensure!(answer.status == 200, "{answer}");
        let page = answer.json();
        for record in page["records"].as_array().with_context(|| answer.to_string())? {
            let found = || {
                let position = positions(record["position"].as_str()?)?.pop_first()?;
                let position = Position { partition: position.0, offset: position.1 };
                Some((record["key"].as_str()?.to_owned(), (position, digest(record["value"].as_str()?))))
            };
            let (key, found) = found().with_context(|| format!("no record of a scan: {record}"))?;
            scan.insert(key, found);
        }
        match page["cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={}", encode(next)),
            None => return Ok(scan),
        }
    }
}
