//! What callers of the client library notice when nodes are restarted, killed or hang.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bitacora_client::{Client, Mirror, NodeState, Operation, ReadLevel, Scan, Watch, Watched};
use e2e::cluster::{Cluster, Node, START};
use e2e::runner::{Ctx, Test};
use e2e::{tests, wait};
use futures_util::TryStreamExt;
use futures_util::future::join_all;

use super::client::{EXPIRY, by_zookeeper, knows};

pub fn tests() -> Vec<Test> {
    tests![Servers: a_rolling_restart_is_not_noticed, no_read_fails_when_a_node_is_killed,
            no_read_fails_when_a_node_hangs, a_mirror_and_a_watch_outlive_their_nodes]
}

const CALLERS: usize = 20;
/// After each set, so that there are always gets under way, which take much less time.
const GETS: usize = 10;
/// Keys of a caller: it takes the next one when it can't know what the last one holds.
const KEYS: usize = 10;

fn key(caller: usize, number: usize) -> String {
    format!("caller {caller}, key {number}")
}

/// What callers saw.
#[derive(Default)]
struct Load {
    /// Of each caller.
    calls: Vec<AtomicUsize>,
    stop: AtomicBool,
    failed_reads: Mutex<Vec<String>>,
    /// With whether it may have taken effect.
    failed_writes: Mutex<Vec<(bool, String)>>,
    /// The values that a key may have at the end.
    expected: Mutex<HashMap<String, Vec<String>>>,
    longest: Mutex<[Duration; 2]>,
}

fn push<T>(list: &Mutex<Vec<T>>, item: T) {
    list.lock().expect("no caller panics with it").push(item);
}

impl Load {
    /// Each caller sets and gets keys of its own, one call at a time, while `fault` runs.
    async fn during(
        cluster: &Cluster,
        client: &Client,
        fault: impl AsyncFnOnce(&Load) -> Result<()>,
    ) -> Result<Load> {
        let keys = (0..CALLERS).flat_map(|caller| (0..KEYS).map(move |number| key(caller, number)));
        let sets: Vec<Operation> =
            keys.map(|key| Operation::Set { key, value: "0".to_string(), ttl: None }).collect();
        for result in client.batch(&sets).await? {
            result?;
        }
        for set in &sets {
            cluster.all_have(set.key(), Some("0")).await;
        }
        let load = Load { calls: (0..CALLERS).map(|_| AtomicUsize::new(0)).collect(), ..Load::default() };
        let callers = join_all((0..CALLERS).map(|caller| load.call(client, caller)));
        let fault = async {
            load.goes_on(200).await;
            let outcome = fault(&load).await;
            load.stop.store(true, Ordering::Relaxed);
            outcome
        };
        let (_, outcome) = tokio::join!(callers, fault);
        outcome?;
        Ok(load)
    }

    async fn call(&self, client: &Client, caller: usize) {
        let (mut number, mut acknowledged) = (0, 0);
        for i in 1.. {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            let name = key(caller, number);
            let started = Instant::now();
            let set = client.set(&name, &i.to_string()).await;
            self.took(1, started.elapsed());
            let mut may_be = vec![i.to_string()];
            match &set {
                Ok(_) => acknowledged = i,
                Err(error) => {
                    push(&self.failed_writes, (error.may_have_taken_effect(), format!("{error:?}")));
                    may_be = vec![acknowledged.to_string()];
                    if error.may_have_taken_effect() {
                        may_be.push(i.to_string());
                        // It may do so whenever it likes, also after what is written next.
                        number += 1;
                        acknowledged = 0;
                    }
                }
            }
            self.expected.lock().expect("no caller panics with it").insert(name.clone(), may_be);
            for _ in 0..GETS {
                let started = Instant::now();
                let get = client.get(&name).await;
                self.took(0, started.elapsed());
                match get {
                    // It may be older, but never newer than what was written.
                    Ok(record) if record.value.parse::<usize>().is_ok_and(|read| read <= i) => {}
                    other => push(&self.failed_reads, format!("{name}, write {i}: {other:?}")),
                }
            }
            self.calls[caller].fetch_add(1 + GETS, Ordering::Relaxed);
        }
    }

    fn took(&self, which: usize, time: Duration) {
        let mut longest = self.longest.lock().expect("no caller panics with it");
        longest[which] = longest[which].max(time);
    }

    /// Waits until every caller has made so many more calls.
    async fn goes_on(&self, more: usize) {
        let counts = || self.calls.iter().map(|calls| calls.load(Ordering::Relaxed)).collect::<Vec<_>>();
        let before = counts();
        wait::until(&format!("every caller has made {more} more calls"), START, || async {
            let slow = counts().iter().zip(&before).filter(|(now, before)| **now < **before + more).count();
            if slow == 0 { Ok(()) } else { Err(format!("{slow} callers have not")) }
        })
        .await;
    }

    /// Says what happened; a read must not have failed, and every acknowledged write must be there.
    async fn judge(self, what: &str, cluster: &Cluster) -> Result<Vec<(bool, String)>> {
        let Load { calls, failed_reads, failed_writes, expected, longest, .. } = self;
        let calls: usize = calls.into_iter().map(AtomicUsize::into_inner).sum();
        let (failed_reads, failed_writes) = (failed_reads.into_inner()?, failed_writes.into_inner()?);
        let expected = expected.into_inner()?;
        let [read, write] = longest.into_inner()?;
        let uncertain = failed_writes.iter().filter(|(uncertain, _)| *uncertain).count();
        println!(
            "client, {what}: {calls} calls of {CALLERS} callers, {} reads failed, {} writes failed ({uncertain} of \
             them may have taken effect); longest pause of a read {} ms, of a write {} ms",
            failed_reads.len(),
            failed_writes.len(),
            read.as_millis(),
            write.as_millis()
        );
        ensure!(failed_reads.is_empty(), "{} reads failed: {failed_reads:#?}", failed_reads.len());
        for node in cluster.nodes.iter().filter(|node| node.is_running()) {
            for (key, may_be) in &expected {
                wait::until(&format!("{} has {key:?}", node.name), START, || async {
                    let answer = node.api().get_own(key).await.map_err(|error| format!("{error:#}"))?;
                    match answer.value() {
                        Some(value) if may_be.contains(&value) => Ok(()),
                        _ => Err(format!("{answer}, not one of {may_be:?}")),
                    }
                })
                .await;
            }
        }
        Ok(failed_writes)
    }
}

async fn no_read_fails_when_a_node_is_killed(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster().await?;
    let client = by_zookeeper(&cluster).await?;
    knows(&client, &cluster.nodes.iter().collect::<Vec<_>>(), START).await;
    let load = Load::during(&cluster, &client, async |load| {
        // It dies with calls under way for certain: those that it gets while it is frozen.
        cluster.nodes[1].pause();
        let address = cluster.nodes[1].rpc_address();
        // The less loaded node gets a call, so of three nodes a frozen one gets no more than about a third of the callers.
        wait::until("a quarter of the callers wait for it", START, || async {
            let nodes = client.nodes();
            let waiting = nodes.iter().find(|node| node.address == address).map(|node| node.under_way);
            if waiting >= Some(CALLERS / 4) { Ok(()) } else { Err(format!("{waiting:?}")) }
        })
        .await;
        cluster.nodes[1].kill();
        load.goes_on(200).await;
        knows(&client, &[&cluster.nodes[0], &cluster.nodes[2]], EXPIRY).await;
        load.goes_on(200).await;
        Ok(())
    });
    let failed = load.await?.judge("a node killed", &cluster).await?;
    // A write fails only if nobody can know, and only those that the node had.
    ensure!(failed.iter().all(|(uncertain, _)| *uncertain), "{failed:#?}");
    ensure!(failed.len() <= CALLERS, "{} writes failed: {failed:#?}", failed.len());
    Ok(())
}

async fn no_read_fails_when_a_node_hangs(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster().await?;
    let client = by_zookeeper(&cluster).await?;
    let all: Vec<&Node> = cluster.nodes.iter().collect();
    knows(&client, &all, START).await;
    let load = Load::during(&cluster, &client, async |load| {
        cluster.nodes[1].pause();
        // Writes that it has wait for their deadline.
        load.goes_on(200).await;
        knows(&client, &[&cluster.nodes[0], &cluster.nodes[2]], EXPIRY).await;
        cluster.nodes[1].resume();
        cluster.know_each_other(3).await;
        knows(&client, &all, START).await;
        wait::until("all nodes get calls again", START, || async {
            let nodes = client.nodes();
            if nodes.iter().all(|node| node.state == NodeState::Healthy) {
                Ok(())
            } else {
                Err(format!("{nodes:?}"))
            }
        })
        .await;
        load.goes_on(200).await;
        Ok(())
    });
    let failed = load.await?.judge("a node hangs", &cluster).await?;
    ensure!(failed.iter().all(|(uncertain, _)| *uncertain), "{failed:#?}");
    ensure!(failed.len() <= CALLERS, "{} writes failed: {failed:#?}", failed.len());
    Ok(())
}

async fn a_rolling_restart_is_not_noticed(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster().await?;
    let client = by_zookeeper(&cluster).await?;
    let all: Vec<&Node> = cluster.nodes.iter().collect();
    knows(&client, &all, START).await;
    let load = Load::during(&cluster, &client, async |load| {
        for node in &cluster.nodes {
            let (status, _) = node.terminate(Duration::from_secs(10)).await;
            ensure!(status.success(), "{} ended with {status}", node.name);
            load.goes_on(100).await;
            node.spawn()?;
            node.ready().await;
            knows(&client, &all, START).await;
            cluster.know_each_other(3).await;
            load.goes_on(100).await;
        }
        Ok(())
    });
    let failed = load.await?.judge("a rolling restart", &cluster).await?;
    ensure!(failed.is_empty(), "{failed:#?}");
    Ok(())
}

type Values = HashMap<String, String>;

async fn scanned(client: &Client) -> Result<Values> {
    let scan = client.scan(Scan::prefix("caller ").level(ReadLevel::strong()));
    Ok(scan.map_ok(|record| (record.key, record.value)).try_collect().await?)
}

fn mirrored(mirror: &Mirror) -> Values {
    mirror.view().iter().map(|record| (record.key().to_owned(), record.value().to_owned())).collect()
}

/// Notes what a watch tells, for ever; fails if a key goes back.
async fn note(mut watch: Watch, told: Arc<Mutex<Values>>) -> Result<()> {
    let mut last = HashMap::new();
    while let Some(event) = watch.try_next().await? {
        match event.what {
            Watched::Set(record) => {
                let (key, position) = (record.key, record.position);
                let before = last.insert(key.clone(), position);
                let goes_back = before.is_some_and(|before| before.offset > position.offset);
                ensure!(!goes_back, "{key} goes back, from {before:?} to {position}");
                told.lock().expect("nobody panics with it").insert(key, record.value);
            }
            Watched::Gap { reason } => anyhow::bail!("a gap: {reason}"),
            _ => {}
        }
    }
    Ok(())
}

/// Waits until it holds what a scan shows.
async fn equals(what: &str, scanned: &Values, holds: impl Fn() -> Values) {
    wait::until(&format!("{what} holds what a scan shows"), START, || async {
        let held = holds();
        let differs = scanned.iter().filter(|(key, value)| held.get(*key) != Some(value)).count();
        if held == *scanned { Ok(()) } else { Err(format!("{differs} of {} differ", scanned.len())) }
    })
    .await;
}

async fn a_mirror_and_a_watch_outlive_their_nodes(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster().await?;
    let client = by_zookeeper(&cluster).await?;
    let all: Vec<&Node> = cluster.nodes.iter().collect();
    knows(&client, &all, START).await;
    let file = ctx.dir.join("mirror");
    let mirror = client.mirror("caller ").file(&file).await?;
    let told = Arc::new(Mutex::new(Values::new()));
    let watch = client.watch().prefix("caller ").initial().await?;
    let watching = tokio::spawn(note(watch, Arc::clone(&told)));
    let load = Load::during(&cluster, &client, async |load| {
        for node in &cluster.nodes {
            // Whichever they follow, it is among these.
            node.kill();
            load.goes_on(30).await;
            node.spawn()?;
            node.ready().await;
            cluster.know_each_other(3).await;
            knows(&client, &all, START).await;
        }
        cluster.nodes[1].pause();
        load.goes_on(30).await;
        cluster.nodes[1].resume();
        Ok(())
    });
    load.await?.judge("a mirror and a watch, every node killed", &cluster).await?;
    let shown = scanned(&client).await?;
    equals("the mirror", &shown, || mirrored(&mirror)).await;
    equals("who watched", &shown, || told.lock().expect("nobody panics with it").clone()).await;
    mirror.wait_current(START).await?;
    ensure!(!watching.is_finished(), "{:?}", watching.await?);
    watching.abort();
    mirror.close().await;
    client.set(&key(0, 0), "while it was away").await?;
    let mirror = client.mirror("caller ").file(&file).await?;
    ensure!(mirror.len() >= shown.len(), "{} keys were in its file", mirror.len());
    equals("the mirror, restarted,", &scanned(&client).await?, || mirrored(&mirror)).await;
    Ok(())
}
