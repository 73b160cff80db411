//! `cargo bench -p e2e --bench bulk`: import and export with the command line beside a bare producer and a bare
//! consumer of the same records, on the same broker, in rounds that alternate.
//!
//! Processor times are what the kernel accounts to the processes. `BULK_RECORDS` is for a quick look.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use e2e::cluster::{Cluster, Options};
use e2e::command_line::CommandLine;
use e2e::figures::median;
use e2e::process::tail;
use e2e::runner::{self, Ctx, Needs, Test};
use e2e::topic::{KeyValue, Topic};
use e2e::wait;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use rdkafka::{ClientConfig, ClientContext};

const ROUNDS: usize = 3;
const VALUE_BYTES: usize = 100;
const PARTITIONS: i32 = 4;
/// A round, on a slow machine and in a debug build.
const PATIENCE: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    let test = |name, run: fn(Ctx) -> _| Test::new("bulk", name, Needs::Servers, run);
    runner::bench(vec![
        test("import_into_one_node", |ctx| Box::pin(import(ctx, 1)) as runner::Outcome),
        test("import_into_three_nodes", |ctx| Box::pin(import(ctx, 3)) as runner::Outcome),
        test("export", |ctx| Box::pin(export(ctx)) as runner::Outcome),
    ])
}

fn count() -> usize {
    static COUNT: OnceLock<usize> = OnceLock::new();
    *COUNT.get_or_init(|| match std::env::var("BULK_RECORDS") {
        Ok(text) => text.parse().expect("BULK_RECORDS is a number"),
        Err(_) => 1_000_000,
    })
}

fn key(i: usize) -> String {
    format!("key-{i:08}")
}

fn value() -> String {
    "v".repeat(VALUE_BYTES)
}

fn write_file(ctx: &Ctx) -> Result<()> {
    let (mut text, value) = (String::new(), value());
    for i in 0..count() {
        writeln!(text, "{{\"key\":\"{}\",\"value\":\"{value}\"}}", key(i))?;
    }
    std::fs::write(ctx.dir.join("records.ndjson"), text).context("writing the file")
}

/// The records as nodes write them, one after the other and all of one length; made once, as a bare producer has them.
fn encoded() -> (&'static [u8], usize) {
    static ENCODED: OnceLock<(Vec<u8>, usize)> = OnceLock::new();
    let (bytes, length) = ENCODED.get_or_init(|| {
        let record = KeyValue::new(&key(0), &value());
        let (template, name) = (record.to_avro(), record.key);
        let at = template.windows(name.len()).position(|part| part == name.as_bytes()).expect("its key");
        let mut bytes = Vec::with_capacity(template.len() * count());
        for i in 0..count() {
            let start = bytes.len();
            bytes.extend_from_slice(&template);
            bytes[start + at..start + at + name.len()].copy_from_slice(key(i).as_bytes());
        }
        (bytes, template.len())
    });
    (bytes, *length)
}

/// A side of a round.
struct Took {
    seconds: f64,
    /// Of whoever drives it: the command, or this process.
    own_cpu: f64,
    /// Of all nodes.
    node_cpu: f64,
}

fn report(what: &str, [ours, theirs]: [&str; 2], rounds: &[[Took; 2]]) {
    println!(
        "\n{what}: {} records of {VALUE_BYTES} bytes, {PARTITIONS} partitions, one broker; {} rounds, alternating; medians",
        count(),
        rounds.len()
    );
    for (name, side) in [(ours, 0), (theirs, 1)] {
        let of = |figure: fn(&Took) -> f64| median(rounds.iter().map(|round| figure(&round[side])));
        let node = if side == 0 { format!(", nodes {:>6.2} s", of(|t| t.node_cpu)) } else { String::new() };
        println!(
            "  {name:<24} {:>9.0} records/s   processor time {:>6.2} s{node}",
            count() as f64 / of(|t| t.seconds),
            of(|t| t.own_cpu)
        );
    }
    let ratios: Vec<f64> = rounds.iter().map(|[ours, theirs]| theirs.seconds / ours.seconds).collect();
    let (min, max) = ratios.iter().fold((f64::MAX, 0.0f64), |(min, max), r| (min.min(*r), max.max(*r)));
    println!(
        "  rate, {ours} / {theirs}: median {:.2} (min {min:.2}, max {max:.2})",
        median(ratios.iter().copied())
    );
}

async fn import(ctx: Ctx, nodes: usize) -> Result<()> {
    write_file(&ctx)?;
    let mut rounds = Vec::new();
    for round in 0..ROUNDS {
        let cluster = ctx.cluster_with(nodes, Options::new()).await?;
        let ours = run(&ctx, &cluster, "import", &format!("import-{round}")).await?;
        drop(cluster);
        let cluster = ctx.no_nodes(Options::new()).await?;
        let compacted = [("cleanup.policy", "compact"), ("message.timestamp.type", "LogAppendTime")];
        cluster.topic.create(PARTITIONS, &compacted).await?;
        encoded();
        let topic = cluster.topic.clone();
        let theirs = tokio::task::spawn_blocking(move || measured(|| produce(&topic))).await??;
        rounds.push([ours, theirs]);
    }
    let what = if nodes == 1 { "Import into one node" } else { "Import into three nodes" };
    report(what, ["bitacora import", "bare producer"], &rounds);
    Ok(())
}

async fn export(ctx: Ctx) -> Result<()> {
    write_file(&ctx)?;
    let cluster = ctx.cluster_with(1, Options::new()).await?;
    run(&ctx, &cluster, "import", "import").await?;
    let mut rounds = Vec::new();
    for round in 0..ROUNDS {
        let ours = run(&ctx, &cluster, "export", &format!("export-{round}")).await?;
        let topic = cluster.topic.clone();
        let theirs = tokio::task::spawn_blocking(move || {
            measured(|| topic.read_and_discard(PARTITIONS, count()).map(drop))
        })
        .await??;
        rounds.push([ours, theirs]);
    }
    let lines = std::fs::read(ctx.dir.join("exported.ndjson"))?;
    let lines = lines.iter().filter(|byte| **byte == b'\n').count();
    ensure!(lines == count(), "{lines} records were exported");
    report("Export from one node", ["bitacora export", "bare consumer"], &rounds);
    Ok(())
}

/// Runs the command on the cluster; the nodes' processor time counts until all of them have everything.
async fn run(ctx: &Ctx, cluster: &Cluster, command: &str, name: &str) -> Result<Took> {
    let nodes = || -> Result<f64> {
        cluster.nodes.iter().map(|node| cpu_seconds(node.pid().context("a node that runs")?)).sum()
    };
    let file = if command == "import" { "records.ndjson" } else { "exported.ndjson" };
    let way = CommandLine::rpc(ctx, &cluster.nodes);
    let before = nodes()?;
    let started = Instant::now();
    let process = way.spawn(name, &[command, file]).await?;
    let mut own_cpu = 0.0;
    let status = loop {
        // The last look before its end; what it takes after that is not seen.
        if let Ok(so_far) = cpu_seconds(process.pid()) {
            own_cpu = so_far;
        }
        if let Some(status) = process.wait(Duration::from_millis(5)).await {
            break status;
        }
        ensure!(started.elapsed() < PATIENCE, "{command} takes longer than {PATIENCE:?}");
    };
    let seconds = started.elapsed().as_secs_f64();
    ensure!(status.success(), "{command} ended with {status}: {}", tail(&process.log, 5));
    for node in &cluster.nodes {
        wait::until("the node has all records", PATIENCE, || async {
            let status = node.api().status().await.map_err(|error| format!("{error:#}"))?;
            if status["store"]["records"] == count() { Ok(()) } else { Err(status["store"].to_string()) }
        })
        .await;
    }
    Ok(Took { seconds, own_cpu, node_cpu: nodes()? - before })
}

/// Of this process.
fn measured(work: impl FnOnce() -> Result<()>) -> Result<Took> {
    let (started, before) = (Instant::now(), cpu_seconds(std::process::id())?);
    work()?;
    let own_cpu = cpu_seconds(std::process::id())? - before;
    Ok(Took { seconds: started.elapsed().as_secs_f64(), own_cpu, node_cpu: 0.0 })
}

/// User and system time of a process so far, of threads that have ended too.
fn cpu_seconds(pid: u32) -> Result<f64> {
    /// The kernel's, as it tells them to programs.
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(") ").context("stat has a name")?;
    let mut times = fields.split(' ').skip(11).map(str::parse::<u64>);
    let (Some(user), Some(system)) = (times.next(), times.next()) else { bail!("{stat}") };
    Ok((user? + system?) as f64 / TICKS_PER_SECOND)
}

/// Counts what is acknowledged.
struct Counted(Arc<AtomicUsize>);

impl ClientContext for Counted {}

impl ProducerContext for Counted {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if result.is_ok() {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn produce(topic: &Topic) -> Result<()> {
    let acknowledged = Arc::new(AtomicUsize::new(0));
    let producer: ThreadedProducer<Counted> = ClientConfig::new()
        .set("bootstrap.servers", &topic.brokers)
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("partitioner", "murmur2_random")
        .set("queue.buffering.max.messages", "500000")
        .create_with_context(Counted(Arc::clone(&acknowledged)))?;
    let (records, length) = encoded();
    for (i, record) in records.chunks_exact(length).enumerate() {
        let key = key(i);
        loop {
            match producer.send(BaseRecord::to(&topic.name).key(&key).payload(record)) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err((error, _)) => return Err(error).context("producing"),
            }
        }
    }
    producer.flush(PATIENCE).context("flushing")?;
    let acknowledged = acknowledged.load(Ordering::Relaxed);
    ensure!(acknowledged == count(), "{acknowledged} records were acknowledged");
    Ok(())
}
