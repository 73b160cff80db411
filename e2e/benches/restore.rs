//! `cargo bench -p e2e --bench restore`: how soon a node serves that begins with nothing, by another's snapshot and by the
//! log, beside a bare consumer of the same topic and a plain copy of a file of the same size; and how soon one that begins
//! with its store. `BITACORA_BENCH_KEYS` (5,000,000) records of 100-byte values, `BITACORA_BENCH_ROUNDS` (1).
//!
//! The broker, the nodes and the clients share one machine and its page cache: what was just written is read from memory,
//! on both sides of each comparison.

use std::fs::File;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Node, Options};
use e2e::http::{Api, encode};
use e2e::runner::{self, Ctx, Needs, Test};
use e2e::topic::{KeyValue, Topic};
use e2e::wait;
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

const VALUE_BYTES: usize = 100;
const PATIENCE: Duration = Duration::from_secs(1800);
const RESTARTS: usize = 5;
/// For how long reads are measured.
const READS: Duration = Duration::from_secs(4);

fn main() -> ExitCode {
    let test = Test::new("restore", "restore", Needs::Servers, restore);
    runner::bench(vec![test.within(4 * PATIENCE)])
}

fn setting(name: &str, default: usize) -> Result<usize> {
    match std::env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name}={text} is no number")),
        Err(_) => Ok(default),
    }
}

fn key(i: usize) -> String {
    format!("key-{i:08}")
}

fn value() -> String {
    "v".repeat(VALUE_BYTES)
}

async fn restore(ctx: Ctx) -> Result<()> {
    let keys = setting("BITACORA_BENCH_KEYS", 5_000_000)?;
    let rounds = setting("BITACORA_BENCH_ROUNDS", 1)?;
    let mut cluster = ctx.no_nodes(Options::new()).await?;
    let compacted = [("cleanup.policy", "compact"), ("message.timestamp.type", "LogAppendTime")];
    cluster.topic.create(4, &compacted).await?;
    let topic = cluster.topic.clone();
    let took = blocking(move || fill(&topic, keys)).await?;
    println!(
        "\n{keys} records of {VALUE_BYTES}-byte values, 4 partitions, one broker (written in {took:.1} s)"
    );
    for _ in 0..2 {
        cluster.add().await?;
    }
    let [old, new] = &cluster.nodes[..] else { unreachable!("two nodes") };
    for round in 1..=rounds {
        println!("\nround {round}");
        old.kill_and_wipe()?;
        old.set_env("SNAPSHOT", "never");
        let by_log = start(old, keys).await?;
        by_log.print("empty store, by the log", keys);
        let topic = cluster.topic.clone();
        let bare = blocking(move || consume(&topic, keys)).await?;
        println!("  bare rdkafka consumer                                       {}", rate(bare, keys));

        let idle = reads(old, keys).await?;
        new.kill_and_wipe()?;
        let (by_snapshot, busy) = tokio::join!(start(new, keys), reads(old, keys));
        let by_snapshot = by_snapshot?;
        let installed = new.api().metric("bitacora_snapshots_installed_total").await?;
        by_snapshot.print("empty store, by snapshot", keys);
        ensure!((installed - 1.0).abs() < 0.1, "it was not by snapshot");
        let file = data_file(new)?;
        let bytes = std::fs::metadata(&file)?.len();
        let to = ctx.dir.join("copy");
        let (copied, beside_copy) = tokio::join!(blocking(move || copy(&file, &to)), reads(old, keys));
        let copied = copied?;
        println!(
            "  plain copy of its file, {:.0} MB, synced                    {copied:>7.2} s",
            bytes as f64 / 1e6
        );
        println!(
            "  reads at the node that gave it: p99 {idle} µs idle, {} µs while it did, {} µs beside the plain copy",
            busy?, beside_copy?
        );
        println!(
            "  log / bare consumer {:.2}; snapshot / log {:.2}; snapshot / plain copy {:.2}",
            by_log.caught_up / bare,
            by_snapshot.serves / by_log.serves,
            by_snapshot.serves / copied
        );

        let mut restarts = Vec::new();
        for _ in 0..RESTARTS {
            new.kill();
            restarts.push(start(new, keys).await?.reads);
        }
        restarts.sort_by(f64::total_cmp);
        println!(
            "  restart with the warm store, killed before: first correct read after {:.2} s (median; {:.2} to {:.2})",
            restarts[RESTARTS / 2],
            restarts[0],
            restarts[RESTARTS - 1]
        );
        new.kill();
    }
    Ok(())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await?
}

trait Emptied {
    fn kill_and_wipe(&self) -> Result<()>;
}

impl Emptied for Node {
    fn kill_and_wipe(&self) -> Result<()> {
        if self.is_running() {
            self.kill();
        }
        self.wipe()
    }
}

/// Seconds from the start of the process.
struct Started {
    /// Until a key from the middle of the log was read.
    reads: f64,
    /// Until it was ready.
    serves: f64,
    caught_up: f64,
}

impl Started {
    fn print(&self, what: &str, keys: usize) {
        let Started { reads, serves, caught_up } = self;
        println!(
            "  {what:<26} first read {reads:>7.2} s, ready {serves:>7.2} s, caught up {}",
            rate(*caught_up, keys)
        );
    }
}

fn rate(seconds: f64, keys: usize) -> String {
    format!("{seconds:>7.2} s ({:>9.0} /s)", keys as f64 / seconds)
}

async fn start(node: &Node, keys: usize) -> Result<Started> {
    node.spawn()?;
    let (api, began) = (node.api(), Instant::now());
    let (reads, serves, caught_up) = tokio::join!(
        wait::until("a correct read", PATIENCE, || async {
            let answer = api.get_own(&key(keys / 2)).await.map_err(|error| format!("{error:#}"))?;
            if answer.value() == Some(value()) { Ok(began.elapsed()) } else { Err(answer.to_string()) }
        }),
        wait::until("it is ready", PATIENCE, || async {
            let answer = api.health().await.map_err(|error| format!("{error:#}"))?;
            if answer.status == 200 { Ok(began.elapsed()) } else { Err(answer.to_string()) }
        }),
        wait::until("it is caught up", PATIENCE, || async {
            let status = api.status().await.map_err(|error| format!("{error:#}"))?;
            if status["caught_up"] == true { Ok(began.elapsed()) } else { Err(status.to_string()) }
        }),
    );
    let status = api.status().await?;
    ensure!(status["store"]["records"] == keys, "{status}");
    let [reads, serves, caught_up] = [reads, serves, caught_up].map(|took| took.as_secs_f64());
    Ok(Started { reads, serves, caught_up })
}

/// The 99th percentile of reads of one connection, one at a time, in µs.
async fn reads(node: &Node, keys: usize) -> Result<u128> {
    let (api, began): (Api, _) = (node.api(), Instant::now());
    let (mut latencies, mut i) = (Vec::new(), 1_usize);
    while began.elapsed() < READS {
        i = i.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let path = format!("/rpc/cluster?key={}", encode(&key((i >> 20) % keys)));
        let sent = Instant::now();
        api.call(reqwest::Method::GET, &path).await?.expect(200);
        latencies.push(sent.elapsed().as_micros());
    }
    latencies.sort_unstable();
    latencies.get(latencies.len() * 99 / 100).copied().context("nothing was read")
}

fn data_file(node: &Node) -> Result<std::path::PathBuf> {
    let folders = std::fs::read_dir(node.data_dir.join("store"))?.flatten();
    let mut files = folders.map(|entry| entry.path().join("data.mdb")).filter(|file| file.exists());
    files.next().context("the node has no store")
}

fn copy(from: &Path, to: &Path) -> Result<f64> {
    let began = Instant::now();
    // By hand, so that no file system clones it.
    let mut out = File::create(to)?;
    std::io::copy(
        &mut std::io::BufReader::with_capacity(1 << 20, File::open(from)?),
        &mut std::io::BufWriter::with_capacity(1 << 20, &mut out),
    )?;
    out.sync_all()?;
    let took = began.elapsed().as_secs_f64();
    std::fs::remove_file(to)?;
    Ok(took)
}

fn fill(topic: &Topic, keys: usize) -> Result<f64> {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", &topic.brokers)
        .set("partitioner", "murmur2_random")
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("linger.ms", "20")
        .set("queue.buffering.max.messages", "200000")
        .create()?;
    let (began, value) = (Instant::now(), value());
    for i in 0..keys {
        let key = key(i);
        let bytes = KeyValue::new(&key, &value).to_avro();
        let mut record = BaseRecord::to(&topic.name).key(&key).payload(&bytes);
        while let Err((error, again)) = producer.send(record) {
            ensure!(error == KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), "{error}");
            producer.poll(Duration::from_millis(10));
            record = again;
        }
    }
    producer.flush(PATIENCE)?;
    Ok(began.elapsed().as_secs_f64())
}

/// Reads the whole topic and throws it away.
fn consume(topic: &Topic, keys: usize) -> Result<f64> {
    let began = Instant::now();
    let bytes = topic.read_and_discard(4, keys)?;
    ensure!(bytes > keys * VALUE_BYTES, "the records are smaller than they should be");
    Ok(began.elapsed().as_secs_f64())
}
