//! `cargo bench -p e2e --bench mirror`: a mirror of `BITACORA_BENCH_KEYS` (1,000,000) keys in a process of its own, against one node of `dev`: how soon it is current,
//! beside a full scan; its memory; reads, beside a bare map behind a lock; how long a change takes from its acknowledgement until reads show it; and how soon it
//! is current from its file after a restart. Needs no Kafka: what takes a log is `dev`'s own.
//!
//! The node and the mirror share one machine.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bitacora_client::{Client, Mirror, Operation, Position, Scan};
use e2e::cluster::node_binary;
use e2e::process::Process;
use e2e::runner::{self, Ctx, Needs, Test};
use e2e::{ports, wait};
use futures_util::{StreamExt, TryStreamExt, stream};
use hdrhistogram::Histogram;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

const VALUE_BYTES: usize = 100;
/// Keys in a request that fills, and such requests under way.
const FILL_BATCH: usize = 500;
const FILL_UNDER_WAY: usize = 16;
/// For how long reads are measured.
const READS: Duration = Duration::from_secs(3);
/// Changes whose delay is measured, one after the other.
const CHANGES: usize = 2_000;
const PATIENCE: Duration = Duration::from_secs(900);

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().collect();
    if let [_, mode, address, keys, file] = &arguments[..]
        && mode.starts_with("--mirror-")
    {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        return match runtime.block_on(child(mode, address, keys, Path::new(file))) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error:#}");
                ExitCode::FAILURE
            }
        };
    }
    runner::bench(vec![Test::new("mirror", "mirror", Needs::Nothing, mirror).within(4 * PATIENCE)])
}

fn keys_wanted() -> Result<usize> {
    let name = "BITACORA_BENCH_KEYS";
    match std::env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name}={text} is no number")),
        Err(_) => Ok(1_000_000),
    }
}

fn key(number: usize) -> String {
    format!("key-{number:08}")
}

async fn mirror(ctx: Ctx) -> Result<()> {
    let keys = keys_wanted()?;
    let http = loop {
        let (first, second) = (ports::free(), ports::free());
        if second == first + 1 {
            break first;
        }
    };
    let address = format!("127.0.0.1:{}", http + 1);
    let mut command = Command::new(node_binary().await?);
    command.args(["dev", "--nodes", "1", "--port", &http.to_string(), "--data-dir"]).arg(ctx.dir.join("dev"));
    let _node = Process::spawn(command, &ctx.dir.join("node.log"))?;
    wait::until("the node listens", Duration::from_secs(20), || async {
        TcpStream::connect(&address).await.map(drop).map_err(|error| error.to_string())
    })
    .await;
    let client = client(&address).await?;
    let took = fill(&client, keys).await?;
    println!(
        "\n{keys} keys of {} bytes with values of {VALUE_BYTES} bytes, one node of dev (written in {took:.1} s)",
        key(0).len()
    );
    let started = Instant::now();
    let scanned = client.scan(Scan::all()).try_fold(0, |count, _| async move { Ok(count + 1) }).await?;
    ensure!(scanned == keys, "{scanned} of {keys} keys were scanned");
    print("a full scan, for comparison", &rate(keys, started.elapsed()));
    client.close().await;
    let file = ctx.dir.join("mirror");
    for mode in ["--mirror-plain", "--mirror-kept", "--mirror-again"] {
        let mut command = tokio::process::Command::new(std::env::current_exe()?);
        let child = command.args([mode, &address, &keys.to_string()]).arg(&file).output().await?;
        print!("{}", String::from_utf8_lossy(&child.stdout));
        ensure!(child.status.success(), "{mode}: {}", String::from_utf8_lossy(&child.stderr));
    }
    Ok(())
}

async fn client(address: &str) -> Result<Client> {
    Ok(Client::builder().nodes([address]).deadline(Duration::from_secs(30)).build().await?)
}

async fn fill(client: &Client, keys: usize) -> Result<f64> {
    let started = Instant::now();
    let value = "v".repeat(VALUE_BYTES);
    let starts = (0..keys).step_by(FILL_BATCH);
    let mut batches = stream::iter(starts)
        .map(|start| {
            let sets = (start..keys.min(start + FILL_BATCH)).map(|number| Operation::Set {
                key: key(number),
                value: value.clone(),
                ttl: None,
            });
            let sets: Vec<_> = sets.collect();
            async move { client.batch(&sets).await }
        })
        .buffer_unordered(FILL_UNDER_WAY);
    while let Some(results) = batches.next().await {
        for result in results? {
            result?;
        }
    }
    Ok(started.elapsed().as_secs_f64())
}

/// The process that has the mirror.
async fn child(mode: &str, address: &str, keys: &str, file: &Path) -> Result<()> {
    let keys: usize = keys.parse()?;
    let client = client(address).await?;
    match mode {
        "--mirror-plain" => plain(&client, keys).await,
        "--mirror-kept" => {
            kept(&client, keys, file.to_owned(), "until current, and its file is written").await
        }
        _ => kept(&client, keys, file.to_owned(), "until current from the file, after a restart").await,
    }
}

async fn plain(client: &Client, keys: usize) -> Result<()> {
    let before = resident_bytes()?;
    let started = Instant::now();
    let (tell, told) = mpsc::unbounded_channel();
    let mut changes = 0;
    let mirror = client.mirror("").on_change(move |change| {
        changes += 1;
        if changes > keys {
            let position = change.after.as_ref().map(bitacora_client::MirroredRecord::position);
            let _ = tell.send((position, Instant::now()));
        }
    });
    let mirror = mirror.await?;
    mirror.wait_current(PATIENCE).await?;
    let took = started.elapsed();
    ensure!(mirror.len() == keys, "it holds {} of {keys} keys", mirror.len());
    print("until current", &rate(keys, took));
    let bytes = (resident_bytes()? - before) as f64;
    let texts = key(0).len() + VALUE_BYTES;
    print(
        "memory of the process, more than before",
        &format!(
            "{:>9.0} MB  {:.0} bytes a key, of which {texts} are its texts",
            bytes / 1e6,
            bytes / keys as f64
        ),
    );
    let mirror = Arc::new(mirror);
    let threads = std::thread::available_parallelism()?.get();
    for count in [1, threads] {
        let mirrored = reads(count, keys, {
            let mirror = Arc::clone(&mirror);
            move |key| mirror.get(key).is_some_and(|record| record.value().len() == VALUE_BYTES)
        });
        print(&format!("reads, {count} thread(s)"), &format!("{mirrored:>9.0} /s"));
    }
    let map: HashMap<String, String> =
        (0..keys).map(|number| (key(number), "v".repeat(VALUE_BYTES))).collect();
    let map = Arc::new(parking_lot::RwLock::new(map));
    for count in [1, threads] {
        let bare = reads(count, keys, {
            let map = Arc::clone(&map);
            move |key| map.read().get(key).is_some_and(|value| value.len() == VALUE_BYTES)
        });
        print(&format!("  a bare HashMap behind a lock, {count} thread(s)"), &format!("{bare:>9.0} /s"));
    }
    delays(client, &mirror, keys, told).await
}

/// Reads a second of keys by chance, by so many threads.
fn reads(threads: usize, keys: usize, read: impl Fn(&str) -> bool + Clone + Send + 'static) -> f64 {
    let names: Arc<Vec<String>> = Arc::new((0..1 << 16).map(|_| key(fastrand::usize(..keys))).collect());
    let started = Instant::now();
    let readers = (0..threads).map(|thread| {
        let (read, names) = (read.clone(), Arc::clone(&names));
        std::thread::spawn(move || {
            let (mut count, mut at) = (0u64, thread * 7_919);
            while started.elapsed() < READS {
                for _ in 0..1_000 {
                    at += 1;
                    assert!(read(&names[at % names.len()]), "the key is there");
                }
                count += 1_000;
            }
            count
        })
    });
    let readers: Vec<_> = readers.collect();
    let count: u64 = readers.into_iter().map(|reader| reader.join().expect("no panic")).sum();
    count as f64 / started.elapsed().as_secs_f64()
}

/// From the acknowledgement of a set until reads show it.
async fn delays(
    client: &Client,
    mirror: &Mirror,
    keys: usize,
    mut told: mpsc::UnboundedReceiver<(Option<Position>, Instant)>,
) -> Result<()> {
    let mut delays = Histogram::<u64>::new(3)?;
    for number in 0..CHANGES {
        let written = client.set(&key(number % keys), &"w".repeat(VALUE_BYTES)).await?;
        let acknowledged = Instant::now();
        let seen = loop {
            let (position, seen) = told.recv().await.context("the mirror has ended")?;
            if position == Some(written.position) {
                break seen;
            }
        };
        delays.record(seen.saturating_duration_since(acknowledged).as_micros() as u64)?;
    }
    ensure!(mirror.is_current(), "it is not current");
    print(
        &format!("delay of {CHANGES} changes, from acknowledged to shown"),
        &format!(
            "p50 {} µs  p99 {} µs  longest {} µs",
            delays.value_at_quantile(0.5),
            delays.value_at_quantile(0.99),
            delays.max()
        ),
    );
    Ok(())
}

async fn kept(client: &Client, keys: usize, file: PathBuf, what: &str) -> Result<()> {
    let started = Instant::now();
    let mirror = client.mirror("").file(&file).await?;
    mirror.wait_current(PATIENCE).await?;
    let took = started.elapsed();
    ensure!(mirror.len() == keys, "it holds {} of {keys} keys", mirror.len());
    mirror.close().await;
    let bytes = std::fs::metadata(&file)?.len();
    print(what, &format!("{}  file {:.0} MB", rate(keys, took), bytes as f64 / 1e6));
    Ok(())
}

fn rate(keys: usize, took: Duration) -> String {
    format!("{:>9.2} s  {:.0} keys/s", took.as_secs_f64(), keys as f64 / took.as_secs_f64())
}

fn print(what: &str, figure: &str) {
    println!("  {what:<52} {figure}");
}

/// Of this process.
fn resident_bytes() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status").context("memory is read from Linux' /proc")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes * 1024)
}
