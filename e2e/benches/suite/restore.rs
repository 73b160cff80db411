//! How soon a node serves that begins with nothing, by the log beside a bare consumer and by another's snapshot beside a file copy; what the
//! giver's readers notice of it; how soon a node serves that begins with its store; and how large the store is.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Cluster, Node, Options};
use e2e::measure::bare::Kind;
use e2e::measure::bulk::Consume;
use e2e::measure::child::{self, Job, Measured};
use e2e::measure::load::{Call, Load};
use e2e::measure::peers::Peer;
use e2e::measure::row::{Better, Figure, Row, Target};
use e2e::measure::{cpu, results, value};
use e2e::runner::Ctx;
use e2e::wait;

use super::filled::{self, PATIENCE};
use crate::size::{PARTITIONS, VALUE_BYTES, size};

const PART: &str = "restore";
/// Restarts with the store, of which each round takes one.
const RESTARTS: usize = 5;
/// Read or written at once when a file is copied.
const BLOCK: usize = 1 << 20;
/// For how long reads at the giver are measured when nothing is beside them, in seconds.
const READS: f64 = 4.0;
/// More than any disk or network gives: no bound on what a node spends on others.
const NO_THROTTLE: &str = "64GiB";

#[derive(Default)]
struct Rounds {
    log: Vec<Measured>,
    consumer: Vec<Measured>,
    snapshot: Vec<f64>,
    copy: Vec<f64>,
    transfer: Vec<f64>,
    start: Vec<f64>,
    idle_reads: Vec<f64>,
    busy_reads: Vec<f64>,
    bare_reads: Vec<f64>,
    warm: Vec<f64>,
    bytes: Vec<f64>,
}

pub async fn run(ctx: Ctx) -> Result<()> {
    let keys = size().keys;
    let mut cluster = filled::topic(&ctx, Options::new().env("SNAPSHOT_RATE", NO_THROTTLE)).await?;
    filled::flood(&cluster, 0, keys).await?;
    for _ in 0..2 {
        cluster.add().await?;
    }
    // What the machine itself makes of it: a server that looks for nothing, beside the same.
    let bare = Peer::bare(Kind::Warp, &value(VALUE_BYTES), &ctx.dir).await?;
    let mut rounds = Rounds::default();
    for _ in 0..size().long_rounds {
        round(&ctx, &cluster, &bare, &mut rounds).await?;
    }
    let overwritten = overwrite(&cluster).await?;
    report(&rounds, overwritten);
    filled::end(cluster).await
}

async fn round(ctx: &Ctx, cluster: &Cluster, bare: &Peer, rounds: &mut Rounds) -> Result<()> {
    let keys = size().keys;
    let [old, new] = &cluster.nodes[..] else { unreachable!("two nodes") };
    kill_and_wipe(old)?;
    old.set_env("SNAPSHOT", "never");
    let seconds = start(old).await?.caught_up;
    let cpu = cpu::seconds(filled::pid(old)?)? / keys as f64 * 1e6;
    rounds.log.push(Measured { rate: keys as f64 / seconds, cpu, ..Measured::default() });
    rounds.bytes.push(std::fs::metadata(data_file(old)?)?.len() as f64 / keys as f64);
    let (brokers, topic) = (cluster.topic.brokers.clone(), cluster.topic.name.clone());
    let consume = Consume { brokers, topic, partitions: PARTITIONS, records: keys, from_first: false };
    rounds.consumer.push(Measured::own(child::run(&Job::Consume(consume)).await?));

    rounds.idle_reads.push(reads(old.api_port, READS).await?);
    kill_and_wipe(new)?;
    // As before a copy and a transfer: who syncs a file waits for what others have written too.
    tokio::task::spawn_blocking(rustix::fs::sync).await?;
    // For as long as it takes, and no longer: a second is enough for a percentile.
    let beside = async {
        let (mut of_giver, mut of_bare) = (Vec::new(), Vec::new());
        while new.api().health().await.map_or(true, |answer| answer.status != 200) {
            let (giver, bare) = tokio::try_join!(reads(old.api_port, 1.0), reads(bare.port, 1.0))?;
            of_giver.push(giver);
            of_bare.push(bare);
        }
        anyhow::Ok([of_giver, of_bare].map(e2e::figures::median))
    };
    let (started, busy) = tokio::join!(start(new), beside);
    rounds.snapshot.push(started?.ready);
    let [of_giver, of_bare] = busy?;
    rounds.busy_reads.push(of_giver);
    rounds.bare_reads.push(of_bare);
    let installed = new.api().metric("bitacora_snapshots_installed_total").await?;
    ensure!((installed - 1.0).abs() < 0.1, "it was not by snapshot");
    let (from, to) = (data_file(new)?, ctx.dir.join("copy"));
    let (copied, transferred) = tokio::task::spawn_blocking(move || {
        // The first copy does not count: memory and disk that a virtual machine uses for the first time are slower once.
        copy(&from, &to)?;
        let copied = copy(&from, &to)?;
        anyhow::Ok((copied, transfer(&from, &to)?))
    })
    .await??;
    rounds.copy.push(copied);
    rounds.transfer.push(transferred);
    let (mut restarts, mut starts) = (Vec::new(), Vec::new());
    for _ in 0..RESTARTS {
        new.kill();
        let Started { read, ready, .. } = start(new).await?;
        restarts.push(read);
        starts.push(ready);
    }
    rounds.warm.push(e2e::figures::median(restarts));
    rounds.start.push(e2e::figures::median(starts));
    new.kill();
    Ok(())
}

fn kill_and_wipe(node: &Node) -> Result<()> {
    if node.is_running() {
        node.kill();
    }
    node.wipe()
}

/// Seconds from the start of the process.
struct Started {
    /// Until a key from the middle of the log was read.
    read: f64,
    ready: f64,
    caught_up: f64,
}

async fn start(node: &Node) -> Result<Started> {
    let keys = size().keys;
    let began = Instant::now();
    node.spawn()?;
    let api = node.api();
    let seconds = || began.elapsed().as_secs_f64();
    let (read, ready, caught_up) = tokio::join!(
        filled::correct_read(node, keys, began),
        wait::until("it is ready", PATIENCE, || async {
            let answer = api.health().await.map_err(|error| format!("{error:#}"))?;
            if answer.status == 200 { Ok(seconds()) } else { Err(answer.to_string()) }
        }),
        wait::until("it is caught up", PATIENCE, || async {
            let status = api.status().await.map_err(|error| format!("{error:#}"))?;
            if status["caught_up"] == true { Ok(seconds()) } else { Err(status.to_string()) }
        }),
    );
    let status = api.status().await?;
    ensure!(status["store"]["records"] == keys, "{status}");
    Ok(Started { read, ready, caught_up })
}

/// The 99th percentile of reads of a few connections that rest between their calls, in µs.
async fn reads(port: u16, seconds: f64) -> Result<f64> {
    let load = Load { rest_ms: 2, ..Load::new(Call::HttpGet, port, 4, size().keys, seconds) };
    Ok(child::run(&Job::Load(load)).await?.p99)
}

fn data_file(node: &Node) -> Result<PathBuf> {
    let folders = std::fs::read_dir(node.data_dir.join("store"))?.flatten();
    let mut files = folders.map(|entry| entry.path().join("data.mdb")).filter(|file| file.exists());
    files.next().context("the node has no store")
}

/// Seconds that a plain copy takes until it is on the disk.
fn copy(from: &Path, to: &Path) -> Result<f64> {
    rustix::fs::sync();
    let began = Instant::now();
    let mut out = File::create(to)?;
    read_and_write(&mut File::open(from)?, &mut out)?;
    out.sync_all()?;
    let took = began.elapsed().as_secs_f64();
    std::fs::remove_file(to)?;
    Ok(took)
}

/// Seconds that the same takes over a connection, between two threads, when nobody looks at what is sent.
fn transfer(from: &Path, to: &Path) -> Result<f64> {
    rustix::fs::sync();
    let began = Instant::now();
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut giver = TcpStream::connect(listener.local_addr()?)?;
    let mut taker = listener.accept()?.0;
    std::thread::scope(|scope| {
        let giving = scope.spawn(move || {
            read_and_write(&mut File::open(from)?, &mut giver)?;
            giver.shutdown(Shutdown::Write)
        });
        let mut out = File::create(to)?;
        read_and_write(&mut taker, &mut out)?;
        giving.join().map_err(|_| anyhow::anyhow!("the giving thread panicked"))??;
        anyhow::Ok(out.sync_all()?)
    })?;
    let took = began.elapsed().as_secs_f64();
    ensure!(std::fs::metadata(from)?.len() == std::fs::metadata(to)?.len(), "it did not come whole");
    std::fs::remove_file(to)?;
    Ok(took)
}

/// By hand: `std::io::copy` leaves it to the kernel where it can, which a node can't, as it looks at the bytes.
fn read_and_write(from: &mut impl Read, to: &mut impl Write) -> std::io::Result<()> {
    let mut block = vec![0; BLOCK];
    loop {
        let read = from.read(&mut block)?;
        if read == 0 {
            return Ok(());
        }
        to.write_all(&block[..read])?;
    }
}

/// Overwrites everything five times while the node reads along; returns the bytes of its file for each record.
async fn overwrite(cluster: &Cluster) -> Result<f64> {
    let (keys, node) = (size().keys, &cluster.nodes[0]);
    for _ in 0..5 {
        filled::flood(cluster, 0, keys).await?;
        filled::caught_up(node, keys).await?;
    }
    Ok(std::fs::metadata(data_file(node)?)?.len() as f64 / keys as f64)
}

fn report(rounds: &Rounds, overwritten: f64) {
    let alone = |work, figure, ours: &[f64]| Row::alone(PART, work, figure, Better::Lower, ours);
    let beside = |name, figure, ours: &[f64], theirs: &[f64]| {
        Row::beside(name, figure, Better::Lower, ours, Some(theirs))
    };
    let giver = "reads at the node that gives the snapshot, unthrottled";
    let log = (PART, "restore by the log, from the process' start", "bare consumer");
    let snapshot = "restore by another's snapshot, unthrottled, until ready";
    results::add([
        Row::of_rounds(log, Figure::Rate("records/s"), &rounds.log, Some(&rounds.consumer))
            .target(Target::Ratio(0.7)),
        beside((PART, snapshot, "synced copy of the file"), "s", &rounds.snapshot, &rounds.copy)
            .target(Target::Ratio(1.2)),
        beside((PART, snapshot, "bare transfer, synced"), "s", &rounds.snapshot, &rounds.transfer),
        beside(
            (PART, "bare transfer of the file, synced", "synced copy of the file"),
            "s",
            &rounds.transfer,
            &rounds.copy,
        ),
        alone("restart with the store, until ready", "s", &rounds.start),
        beside((PART, giver, "the same, idle"), "p99, µs", &rounds.busy_reads, &rounds.idle_reads)
            .target(Target::Ratio(2.0)),
        beside(
            (PART, giver, "bare warp route beside the same"),
            "p99, µs",
            &rounds.busy_reads,
            &rounds.bare_reads,
        ),
        alone("restart with the store, until the first correct read", "s", &rounds.warm)
            .target(Target::Figure(0.2)),
        alone("disk, after a restore by the log", "bytes a record", &rounds.bytes)
            .target(Target::Figure(200.0)),
        alone("disk, after everything was overwritten five times", "bytes a record", &[overwritten])
            .target(Target::Figure(300.0)),
    ]);
}
