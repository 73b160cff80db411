//! No cliffs: the 99th percentile of small reads while something else is under way, beside the quiet rounds right before.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use e2e::cluster::{Cluster, Node, Options, cli_binary};
use e2e::measure::bare::Kind;
use e2e::measure::bulk::{Batches, Over};
use e2e::measure::child::{self, Job, Measured, against};
use e2e::measure::load::{Call, Hold, Load};
use e2e::measure::peers::Peer;
use e2e::measure::row::{Better, Figure, Row, Target};
use e2e::measure::table::number;
use e2e::measure::{key, results, value};
use e2e::process::{Process, tail};
use e2e::runner::Ctx;
use e2e::wait;

use super::filled::{self, PATIENCE};
use crate::size::{VALUE_BYTES, WHOLE_CACHE, size};

const IDLE_CONNECTIONS: usize = 2_000;
const LARGE_VALUE: usize = 256 << 10;
/// The first of all keys: small reads, which are by chance, hardly meet them.
const LARGE_KEYS: u64 = 16;
const PART: &str = "cliffs";
const SMALL: &str = "small HTTP GETs";

pub async fn run(ctx: Ctx) -> Result<()> {
    let keys = size().bulk;
    let options = Options::new().env("CACHE_BYTES", WHOLE_CACHE).env("IDLE_TIMEOUT", "10m");
    let mut cluster = filled::topic(&ctx, options).await?;
    filled::flood(&cluster, 0, keys).await?;
    for _ in 0..2 {
        cluster.add().await?;
    }
    let node = &cluster.nodes[0];
    node.spawn()?;
    filled::caught_up(node, keys).await?;
    filled::warm(Call::AvroGet, node.avro_port, keys).await?;
    let dir = &ctx.dir;
    let port = node.api_port;
    // What the machine itself makes of it: a server that looks for nothing, beside the same disturbances.
    let bare = Peer::bare(Kind::Warp, &value(VALUE_BYTES), dir).await?;

    let idle = || Ok(vec![hold(port, dir)?]);
    disturbed(node, &bare, "2,000 idle keep-alive connections", idle).await?;
    let other = large_values(&ctx).await?;
    let read_large =
        |port| Load { value_bytes: LARGE_VALUE, ..Load::new(Call::HttpGet, port, 4, LARGE_KEYS, 600.0) };
    let large = || {
        Ok(vec![child::start_beside(
            &Job::Load(read_large(other.nodes[0].api_port)),
            &dir.join("large.log"),
        )?])
    };
    disturbed(&other.nodes[0], &bare, "256 KiB values being read", large).await?;
    filled::end(other).await?;
    let scan = || {
        Ok(vec![child::start_beside(
            &Job::Load(Load::new(Call::HttpScan, port, 1, keys, 600.0)),
            &dir.join("scan.log"),
        )?])
    };
    disturbed(node, &bare, "a scan of everything", scan).await?;
    write_file(dir, keys)?;
    let cli = cli_binary().await?;
    let import = || Ok(vec![import(cli, node, dir)?]);
    disturbed(node, &bare, "an import under way", import).await?;
    restore_of_another(&cluster).await?;
    hot_key(node).await?;
    filled::end(cluster).await?;
    small_cache(&ctx).await
}

/// Reads by few connections that rest between their calls, so that it is delays that are measured and not the machine's limits.
async fn small_reads(port: u16, seconds: f64) -> Result<f64> {
    let load = Load { rest_ms: 2, ..Load::new(Call::HttpGet, port, 8, size().read, seconds) };
    Ok(child::run(&Job::Load(load)).await?.p99)
}

/// Rounds that alternate: quiet, and beside what `start` starts; then the bare server beside the same.
async fn disturbed(
    node: &Node,
    bare: &Peer,
    what: &str,
    start: impl Fn() -> Result<Vec<Process>>,
) -> Result<()> {
    let (mut busy, mut quiet, mut of_bare) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..size().rounds {
        quiet.push(small_reads(node.api_port, size().round).await?);
        let under_way = start()?;
        for process in &under_way {
            running(process).await?;
        }
        busy.push(small_reads(node.api_port, size().round).await?);
        of_bare.push(small_reads(bare.port, size().round).await?);
        for process in &under_way {
            let ended = process.exited();
            anyhow::ensure!(
                ended.is_none() || ended.is_some_and(|status| status.success()),
                "{what}: {}",
                tail(&process.log, 5)
            );
        }
        drop(under_way);
        filled::until(node, |status| status["caught_up"] == true).await?;
    }
    let work = format!("{SMALL} beside {what}");
    let name = (PART, &work[..], "bare warp route beside the same");
    let against_bare = Row::beside(name, "p99, µs", Better::Lower, &busy, Some(&of_bare));
    results::add([beside_quiet(what, &busy, &quiet), against_bare]);
    Ok(())
}

fn beside_quiet(what: &str, busy: &[f64], quiet: &[f64]) -> Row {
    let work = format!("{SMALL} beside {what}");
    Row::beside((PART, &work, "quiet"), "p99, µs", Better::Lower, busy, Some(quiet))
        .target(Target::Ratio(3.0))
}

/// Waits until a job has had time to begin: it has taken some processor time, or says that it is connected.
async fn running(process: &Process) -> Result<()> {
    let began = wait::try_until(Duration::from_secs(20), || async {
        let said = tail(&process.log, 1);
        let seconds = e2e::measure::cpu::seconds(process.pid()).unwrap_or(1.0);
        if said == "connected" || (seconds >= 0.03 && !is_holding(process)) { Ok(()) } else { Err(said) }
    });
    began.await.map_err(anyhow::Error::msg)
}

fn is_holding(process: &Process) -> bool {
    process.log.file_name().is_some_and(|name| name == "hold.log")
}

fn hold(port: u16, dir: &Path) -> Result<Process> {
    // What an earlier round said is not this one's.
    let log = dir.join("hold.log");
    std::fs::write(&log, "")?;
    child::start(&Job::Hold(Hold { port, connections: IDLE_CONNECTIONS }), &log)
}

/// A node with small values, and large ones of its first keys.
async fn large_values(ctx: &Ctx) -> Result<Cluster> {
    let cluster = ctx.cluster_with(1, Options::new().env("CACHE_BYTES", WHOLE_CACHE)).await?;
    let node = &cluster.nodes[0];
    let batches = Batches {
        over: Over::Rpc(node.avro_port),
        records: size().read,
        value_bytes: VALUE_BYTES,
        batch: 1000,
        under_way: 8,
    };
    child::run(&Job::Batches(batches)).await?;
    let large = value(LARGE_VALUE);
    for number in 0..LARGE_KEYS {
        node.api().set(&key(number), &large).await?.expect(200);
    }
    filled::caught_up(node, size().read).await?;
    filled::warm(Call::HttpGet, node.api_port, size().read).await?;
    Ok(cluster)
}

/// More than is imported while small reads are measured, of the keys that are there.
fn write_file(dir: &Path, keys: u64) -> Result<()> {
    const PER_SECOND: f64 = 900_000.0;
    let records = (PER_SECOND * size().round) as u64;
    filled::write_file(&dir.join("import.ndjson"), (0..records).map(|number| number % keys))
}

fn import(cli: &Path, node: &Node, dir: &Path) -> Result<Process> {
    let mut command = std::process::Command::new(cli);
    command.args(["--rpc", &node.rpc_address(), "import", "import.ndjson"]).current_dir(dir);
    Process::spawn(child::at_lower_priority(&command), &dir.join("import.log"))
}

/// Another node, which takes this one's snapshot and then reads the log, over and over for as long as small reads are measured.
async fn restore_of_another(cluster: &Cluster) -> Result<()> {
    let [node, other] = &cluster.nodes[..] else { unreachable!("two nodes") };
    let (mut busy, mut quiet) = (Vec::new(), Vec::new());
    for _ in 0..size().rounds {
        quiet.push(small_reads(node.api_port, size().round).await?);
        if other.is_running() {
            other.kill();
        }
        other.wipe()?;
        other.spawn()?;
        busy.push(small_reads(node.api_port, size().round).await?);
        other.ready_within(PATIENCE).await;
    }
    other.kill();
    results::add([beside_quiet("another node's restore", &busy, &quiet)]);
    Ok(())
}

/// Everybody wants the same key, beside as much load on all keys.
async fn hot_key(node: &Node) -> Result<()> {
    let pid = [filled::pid(node)?];
    let load = |keys| Job::Load(Load::new(Call::HttpGet, node.api_port, 64, keys, size().round));
    let (mut hot, mut spread) = (Vec::new(), Vec::new());
    for _ in 0..size().rounds {
        spread.push(against(&pid, &load(size().read)).await?);
        hot.push(against(&pid, &load(1)).await?);
    }
    let peer = format!("as many of {} keys", number(size().read as f64));
    let name = (PART, "HTTP GETs of one hot key, 64 connections", &peer[..]);
    results::add([Row::of_rounds(name, Figure::P99, &hot, Some(&spread)).target(Target::Ratio(3.0))]);
    Ok(())
}

/// A node whose cache holds a tenth of the data, beside one whose cache holds all of it.
async fn small_cache(ctx: &Ctx) -> Result<()> {
    let keys = size().bulk;
    let mut cluster = filled::topic(ctx, Options::new()).await?;
    filled::flood(&cluster, 0, keys).await?;
    for _ in 0..2 {
        cluster.add().await?;
    }
    let [whole, tenth] = &cluster.nodes[..] else { unreachable!("two nodes") };
    whole.set_env("CACHE_BYTES", WHOLE_CACHE);
    whole.spawn()?;
    filled::caught_up(whole, keys).await?;
    filled::warm(Call::AvroGet, whole.avro_port, keys).await?;
    let bytes = whole.api().status().await?["cache"]["bytes"].as_u64().context("no size of the cache")?;
    tenth.set_env("CACHE_BYTES", bytes / 10);
    tenth.spawn()?;
    filled::caught_up(tenth, keys).await?;
    filled::warm(Call::AvroGet, tenth.avro_port, keys).await?;
    let (mut ours, mut theirs): (Vec<Measured>, Vec<Measured>) = (Vec::new(), Vec::new());
    let (mut busy, mut quiet) = (Vec::new(), Vec::new());
    for _ in 0..size().rounds {
        for (node, rounds, reads) in [(tenth, &mut ours, &mut busy), (whole, &mut theirs, &mut quiet)] {
            let load = Load { depth: 16, ..Load::new(Call::AvroGet, node.avro_port, 50, keys, size().round) };
            rounds.push(against(&[filled::pid(node)?], &Job::Load(load)).await?);
            reads.push(small_reads(node.api_port, size().round).await?);
        }
    }
    let name = (PART, "RPC GET, a cache of a tenth of the data", "all of it cached");
    results::add([
        Row::of_rounds(name, Figure::Rate("calls/s"), &ours, Some(&theirs)).target(Target::Ratio(0.3)),
        Row::of_rounds(name, Figure::Cpu, &ours, Some(&theirs)),
        beside_quiet("a cache of a tenth of the data", &busy, &quiet),
    ]);
    filled::end(cluster).await
}
