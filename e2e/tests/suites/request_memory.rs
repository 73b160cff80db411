//! A node whose memory is limited outlives clients that would have more of it, and serves the others meanwhile.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use e2e::cluster::{Cluster, Node, Options};
use e2e::memory_limit::MemoryLimit;
use e2e::rpc::RpcConnection;
use e2e::runner::{Ctx, Test};
use e2e::{tests, wait};
use futures_util::future::try_join_all;
use hdrhistogram::Histogram;
use tokio::sync::watch;

use self::greedy::{BODY, Greedy, LARGE_KEY, Load, SLOW_FRAMES, Tries};

mod greedy;

pub fn tests() -> Vec<Test> {
    tests![Servers: two_thousand_greedy_connections]
}

/// What the container of a node may have.
const NODE_BYTES: u64 = 512 << 20;
/// What the node makes of it by default: a quarter.
const REQUEST_MEMORY: u64 = NODE_BYTES / 4;
/// The measuring takes ten to thirty seconds on two cores, each of its parts less than this on slow ones.
const PRESSED: Duration = Duration::from_secs(120);
/// The node waits longer for the end of a request than all of this takes.
const REQUEST_TIMEOUT: &str = "600s";
/// All clients have ended so long after the measuring.
const END: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(10);
const SMALL_KEY: &str = "known";
/// More reads of it than so many are answered while all others press, however long that takes.
const SMALL_READS: usize = 100;

/// What one reader of a small record and the greedy clients beside it tell one another.
#[derive(Default)]
struct SmallReads {
    done: AtomicUsize,
    end: AtomicBool,
}

/// Reads a small record by both interfaces until it is told to end; every read must succeed. Returns how long they took, in
/// microseconds.
async fn small_reads(node: &Node, reads: &SmallReads) -> Result<Histogram<u64>> {
    let mut took = Histogram::new(3)?;
    let mut rpc = RpcConnection::connect(node.avro_port).await?;
    let mut note = |began: Instant| {
        reads.done.fetch_add(1, Ordering::Relaxed);
        took.record(began.elapsed().as_micros() as u64)
    };
    while !reads.end.load(Ordering::Relaxed) {
        let began = Instant::now();
        let answer = node.api().get(SMALL_KEY).await.context("a small read by HTTP")?;
        ensure!(answer.value().as_deref() == Some("value"), "a small read by HTTP: {answer}");
        note(began)?;
        let began = Instant::now();
        let value = rpc.value(SMALL_KEY).await.context("a small read by RPC")?;
        ensure!(value == Ok(Some("value".to_string())), "a small read by RPC: {value:?}");
        note(began)?;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(took)
}

/// Two thousand connections are more than a process may have open by default.
fn allow_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).expect("a soft limit may be raised to the hard one");
}

/// A cluster of one node that may have so much memory.
async fn limited_node(ctx: &Ctx, limit: Option<&MemoryLimit>) -> Result<Cluster> {
    let options = Options::new().env("CACHE_BYTES", "32MiB").env("REQUEST_TIMEOUT", REQUEST_TIMEOUT);
    let mut cluster = ctx.no_nodes(options).await?;
    let node = cluster.add().await?;
    match limit {
        Some(limit) => {
            println!("request_memory: the node is in a control group of {} MiB", NODE_BYTES >> 20);
            node.launch_by(limit.launcher());
        }
        None => {
            println!(
                "request_memory: no control group can be made here, so the node's memory is only watched"
            );
            node.set_env("REQUEST_MEMORY", REQUEST_MEMORY);
        }
    }
    node.spawn()?;
    node.ready().await;
    Ok(cluster)
}

/// What was seen while all clients pressed.
struct Seen {
    /// Connections that were open at its end.
    open: f64,
    /// Bytes of the budget that were taken then.
    used: f64,
    took: Duration,
}

/// Has all clients press until each has done so often enough, and ends them.
async fn press(node: &Node, load: &Arc<Load>, reads: &SmallReads, end: watch::Sender<bool>) -> Result<Seen> {
    let began = Instant::now();
    let start = |i: usize| {
        let load = load.clone();
        let client = tokio::spawn(async move { load.run(i).await });
        async move { client.await? }
    };
    let slow = (0..SLOW_FRAMES).map(start).collect::<Vec<_>>();
    let inside = (2 * BODY * SLOW_FRAMES) as f64;
    wait::until("the slow frames have their memory", PATIENCE, || async move {
        reaches("bytes", node.api().metric("bitacora_request_memory_bytes").await, inside)
    })
    .await;
    let mut clients = pin!(try_join_all(slow.into_iter().chain((SLOW_FRAMES..load.tries.len()).map(start))));
    let (open, used) = tokio::select! {
        seen = all_have_pressed(node, load, reads) => seen?,
        failed = &mut clients => bail!("the greedy clients end too soon: {:?}", failed.err()),
    };
    let took = began.elapsed();
    end.send_replace(true);
    tokio::time::timeout(END, clients).await.context("the greedy clients do not end")??;
    Ok(Seen { open, used, took })
}

/// Returns how many connections are open when every client has pressed, and how many bytes of the budget are taken.
async fn all_have_pressed(node: &Node, load: &Load, reads: &SmallReads) -> Result<(f64, f64)> {
    wait::until("all clients have pressed", PRESSED, || async move {
        let pressed = load.tries.iter().filter(|tries| tries.has_pressed()).count();
        reaches("clients", Ok(pressed as f64), load.tries.len() as f64)
    })
    .await;
    wait::until("small reads are answered beside them", PRESSED, || async {
        reaches("reads", Ok(reads.done.load(Ordering::Relaxed) as f64), (SMALL_READS + 1) as f64)
    })
    .await;
    // Those that have just been refused are about to come back. All others wait ever longer before they ask again.
    let nearly_all = (load.tries.len() * 19 / 20) as f64;
    let open = wait::until("nearly all clients are there", PRESSED, || async move {
        reaches("connections", node.api().metric("bitacora_connections").await, nearly_all)
    })
    .await;
    Ok((open, node.api().metric("bitacora_request_memory_bytes").await?))
}

/// A number, if it is so large.
fn reaches(what: &str, seen: Result<f64>, wanted: f64) -> Result<f64, String> {
    match seen {
        Ok(seen) if seen >= wanted => Ok(seen),
        Ok(seen) => Err(format!("{seen} {what} of {wanted}")),
        Err(error) => Err(format!("{error:#}")),
    }
}

async fn two_thousand_greedy_connections(ctx: Ctx) -> Result<()> {
    allow_open_files();
    // Before the cluster, so that it is dropped after it.
    let limit = MemoryLimit::new(NODE_BYTES);
    let cluster = limited_node(&ctx, limit.as_ref()).await?;
    let node = &cluster.nodes[0];
    let metric = async |name: &str| node.api().metric(name).await;
    assert_eq!(metric("bitacora_request_memory_limit_bytes").await? as u64, REQUEST_MEMORY);
    node.api().set(SMALL_KEY, "value").await?.expect(200);
    node.api().set(LARGE_KEY, &"v".repeat(8_000)).await?.expect(200);
    node.has(SMALL_KEY, Some("value")).await;

    let (end, over) = watch::channel(false);
    let load = Arc::new(Load::new(node, over));
    let small = SmallReads::default();
    let pressing = async {
        let seen = press(node, &load, &small, end).await;
        small.end.store(true, Ordering::Relaxed);
        seen
    };
    let outcome = tokio::try_join!(pressing, small_reads(node, &small));
    ensure!(node.is_running(), "the node ended ({:?}): {}", node.exit_status(), node.log_tail(10));
    let (seen, reads) = outcome?;

    let peak = node.peak_resident_bytes();
    let refused = report(&load, &seen, &reads, peak);
    // Each of them wants some hundreds of kilobytes up to two megabytes, of a hundred and twenty-eight.
    let clients = load.tries.len();
    assert!(refused > clients / 2, "only {refused} clients were refused");
    let inside = load.count(Greedy::SlowFrame, |tries| tries.refusals() == 0 && tries.rounds() == 1);
    assert_eq!(inside, SLOW_FRAMES, "who has memory keeps it");
    assert!(seen.used as u64 <= REQUEST_MEMORY, "{} bytes of the budget were taken", seen.used);
    assert!(peak.is_none_or(|bytes| bytes < NODE_BYTES), "the node had {peak:?} bytes");
    assert!(reads.len() > SMALL_READS as u64, "only {} small reads", reads.len());
    wait::until("the memory is given back", PATIENCE, || async {
        let used = metric("bitacora_request_memory_bytes").await.map_err(|error| format!("{error:#}"))?;
        if used == 0.0 { Ok(()) } else { Err(format!("{used} bytes")) }
    })
    .await;
    node.api().set(SMALL_KEY, &"v".repeat(BODY)).await?.expect(200);
    Ok(())
}

/// Prints the figures. Returns how many clients were refused.
fn report(load: &Load, seen: &Seen, reads: &Histogram<u64>, peak: Option<u64>) -> usize {
    let kinds = [Greedy::Body, Greedy::Form, Greedy::Batch, Greedy::Frame, Greedy::SlowFrame];
    let refused = kinds.map(|greedy| load.count(greedy, |tries| tries.refusals() > 0));
    println!(
        "request_memory: {} connections in {:.1} s, {} open and {:.1} MiB taken at the end, {} refused {refused:?}, {} times in all, {} small reads, p50 {:.1} ms, p99 {:.1} ms, peak {} MiB resident",
        load.tries.len(),
        seen.took.as_secs_f64(),
        seen.open,
        seen.used / f64::from(1 << 20),
        refused.iter().sum::<usize>(),
        load.tries.iter().map(Tries::refusals).sum::<usize>(),
        reads.len(),
        reads.value_at_quantile(0.5) as f64 / 1e3,
        reads.value_at_quantile(0.99) as f64 / 1e3,
        peak.map_or_else(|| "?".to_string(), |bytes| (bytes >> 20).to_string()),
    );
    refused.iter().sum()
}
