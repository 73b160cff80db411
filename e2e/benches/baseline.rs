//! `cargo bench -p e2e`: what a node costs over the bare parts that it is made of, on this machine, in one run.
//!
//! Every figure is taken in rounds that alternate between the node and its baseline, so that a machine whose speed
//! drifts slows both; what is printed are medians over the rounds, and the ratio of each pair of rounds.

use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::cluster::Cluster;
use e2e::figures::median;
use e2e::http::{encode, read_answer_bytes};
use e2e::process::Process;
use e2e::runner::{self, Ctx, Needs, Test};
use e2e::topic::{KeyValue, Topic};
use e2e::{ports, wait};
use futures_util::future::try_join_all;
use rdkafka::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use warp::Filter;

const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(3);
const CONNECTIONS: usize = 32;
/// Writes under way at a time, of both sides.
const WRITERS: usize = 64;
const VALUE_BYTES: usize = 100;
const VISIBLE_SAMPLES: usize = 500;
const RESTORE_RECORDS: usize = 1_000_000;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().collect();
    if let [_, mode, port, body] = &arguments[..]
        && mode == "--bare-warp"
    {
        bare_warp(port.parse().expect("a port"), body.clone());
        return ExitCode::SUCCESS;
    }
    let test = |name, run: fn(Ctx) -> _| Test::new("baseline", name, Needs::Servers, run);
    runner::bench(vec![
        test("get", |ctx| Box::pin(get(ctx)) as runner::Outcome),
        test("set", |ctx| Box::pin(set(ctx)) as runner::Outcome),
        test("visible", |ctx| Box::pin(visible(ctx)) as runner::Outcome),
        test("restore", |ctx| Box::pin(restore(ctx)) as runner::Outcome),
    ])
}

/// A warp server of one route that answers the same bytes as the node's.
fn bare_warp(port: u16, body: String) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let body: Arc<str> = body.into();
    let route = warp::path!("rpc").and(warp::query::raw()).map(move |_| {
        warp::http::Response::builder().header("content-type", "application/json").body(body.to_string())
    });
    runtime.block_on(warp::serve(route).run(([127, 0, 0, 1], port)));
}

/// What a load saw.
struct Load {
    per_second: f64,
    /// Sorted, in µs.
    latencies: Vec<u32>,
}

impl Load {
    fn new(mut latencies: Vec<u32>, took: Duration) -> Self {
        latencies.sort_unstable();
        Self { per_second: latencies.len() as f64 / took.as_secs_f64(), latencies }
    }

    fn percentile(&self, part: f64) -> f64 {
        let last = self.latencies.len().saturating_sub(1);
        f64::from(self.latencies.get((last as f64 * part) as usize).copied().unwrap_or_default())
    }
}

/// Prints both sides of alternating rounds.
fn report(what: &str, ours: &str, theirs: &str, rounds: &[(Load, Load)]) {
    println!("\n{what}: {} rounds of {} s each, alternating; medians", rounds.len(), ROUND.as_secs());
    for (name, side) in [(ours, 0), (theirs, 1)] {
        let of = |figure: &dyn Fn(&Load) -> f64| {
            median(rounds.iter().map(|round| figure(if side == 0 { &round.0 } else { &round.1 })))
        };
        println!(
            "  {name:<28} {:>9.0} /s   p50 {:>7.0} µs   p99 {:>7.0} µs",
            of(&|load| load.per_second),
            of(&|load| load.percentile(0.5)),
            of(&|load| load.percentile(0.99))
        );
    }
    let mut ratios: Vec<_> = rounds.iter().map(|(a, b)| a.per_second / b.per_second).collect();
    ratios.sort_by(f64::total_cmp);
    println!(
        "  rate, {ours} / {theirs}: median {:.2} (min {:.2}, max {:.2})",
        median(ratios.iter().copied()),
        ratios.first().copied().unwrap_or_default(),
        ratios.last().copied().unwrap_or_default()
    );
}

/// Sends one request over and over on each of several connections, one at a time each, for a round.
async fn http_load(port: u16, connections: usize, request: impl Fn(usize) -> Vec<u8>) -> Result<Load> {
    let start = Instant::now();
    let workers = (0..connections).map(|worker| {
        let request = request(worker);
        async move {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
            stream.set_nodelay(true)?;
            let (mut latencies, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
            while start.elapsed() < ROUND {
                let sent = Instant::now();
                stream.write_all(&request).await?;
                let answer = read_answer_bytes(&mut stream, &mut buffer).await?;
                ensure!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(answer));
                latencies.push(sent.elapsed().as_micros() as u32);
            }
            Ok::<_, anyhow::Error>(latencies)
        }
    });
    let latencies = try_join_all(workers).await?.concat();
    Ok(Load::new(latencies, start.elapsed()))
}

fn value() -> String {
    "v".repeat(VALUE_BYTES)
}

async fn get(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster_with(1, e2e::cluster::Options::new()).await?;
    let node = &cluster.nodes[0];
    node.api().set("one", &value()).await?.expect(200);
    node.has("one", Some(&value())).await;
    let body = node.api().get("one").await?.text();
    let port = ports::free();
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--bare-warp", &port.to_string(), &body]).stdin(Stdio::null());
    let _bare = Process::spawn(command, &ctx.dir.join("bare.log"))?;
    wait::until("the bare server listens", Duration::from_secs(10), || async {
        TcpStream::connect(("127.0.0.1", port)).await.map(drop).map_err(|error| error.to_string())
    })
    .await;
    let request = |_| b"GET /rpc?key=one HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".to_vec();
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        rounds.push((
            http_load(node.api_port, CONNECTIONS, request).await?,
            http_load(port, CONNECTIONS, request).await?,
        ));
    }
    let what = format!("HTTP GET of a value of {VALUE_BYTES} bytes, {CONNECTIONS} connections");
    report(&what, "node", "bare warp route", &rounds);
    Ok(())
}

async fn set(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster_with(1, e2e::cluster::Options::new()).await?;
    let node = &cluster.nodes[0];
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", &cluster.topic.brokers)
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("partitioner", "murmur2_random")
        .set("linger.ms", "0")
        .set("socket.nagle.disable", "true")
        .create()?;
    let request = |worker: usize| {
        format!(
            "POST /rpc?key=key-{worker} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: text/plain\r\ncontent-length: {VALUE_BYTES}\r\n\r\n{}",
            value()
        )
        .into_bytes()
    };
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        rounds.push((
            http_load(node.api_port, WRITERS, request).await?,
            produce(&producer, &cluster.topic.name).await?,
        ));
    }
    let what = format!("acknowledged SET of {VALUE_BYTES} bytes, {WRITERS} under way, one broker, acks=all");
    report(&what, "node over HTTP", "bare rdkafka producer", &rounds);
    Ok(())
}

async fn produce(producer: &FutureProducer, topic: &str) -> Result<Load> {
    let start = Instant::now();
    let writers = (0..WRITERS).map(|writer| async move {
        let key = format!("bare-{writer}");
        let bytes = KeyValue::new(&key, &value()).to_avro();
        let mut latencies = Vec::new();
        while start.elapsed() < ROUND {
            let sent = Instant::now();
            let record = FutureRecord::to(topic).key(&key).payload(&bytes);
            producer.send(record, Duration::from_secs(5)).await.map_err(|(error, _)| error)?;
            latencies.push(sent.elapsed().as_micros() as u32);
        }
        Ok::<_, anyhow::Error>(latencies)
    });
    let latencies = try_join_all(writers).await?.concat();
    Ok(Load::new(latencies, start.elapsed()))
}

/// From the acknowledgement of a set on one node to its being read on another.
async fn visible(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster_with(2, e2e::cluster::Options::new()).await?;
    let [writer, reader] = &cluster.nodes[..] else { unreachable!("two nodes") };
    let mut stream = TcpStream::connect(("127.0.0.1", reader.api_port)).await?;
    stream.set_nodelay(true)?;
    let api = writer.api();
    let (mut after_ack, mut after_request, mut buffer) = (Vec::new(), Vec::new(), vec![0; 64 * 1024]);
    for sample in 0..VISIBLE_SAMPLES {
        let key = format!("sample {sample}");
        let request = format!("GET /rpc/cluster?key={} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n", encode(&key));
        let sent = Instant::now();
        api.set(&key, "v").await?.expect(200);
        let acknowledged = Instant::now();
        loop {
            stream.write_all(request.as_bytes()).await?;
            if read_answer_bytes(&mut stream, &mut buffer).await?.starts_with(b"HTTP/1.1 200") {
                break;
            }
        }
        after_ack.push(acknowledged.elapsed().as_micros() as u32);
        after_request.push(sent.elapsed().as_micros() as u32);
    }
    println!("\nA set on one node, polled on another: {VISIBLE_SAMPLES} samples, one at a time");
    for (what, latencies) in [("since its acknowledgement", after_ack), ("since it was sent", after_request)]
    {
        let load = Load::new(latencies, Duration::from_secs(1));
        println!("  {what:<28} p50 {:>7.0} µs   p99 {:>7.0} µs", load.percentile(0.5), load.percentile(0.99));
    }
    Ok(())
}

async fn restore(ctx: Ctx) -> Result<()> {
    let mut cluster = ctx.no_nodes(e2e::cluster::Options::new()).await?;
    let compacted = [("cleanup.policy", "compact"), ("message.timestamp.type", "LogAppendTime")];
    cluster.topic.create(4, &compacted).await?;
    fill(&cluster).await?;
    let mut ratios = Vec::new();
    println!(
        "\nRestore of an empty store from {RESTORE_RECORDS} records of {VALUE_BYTES} bytes, 4 partitions, one broker"
    );
    cluster.add().await?;
    for _ in 0..3 {
        let node = &cluster.nodes[0];
        node.wipe()?;
        node.spawn()?;
        node.ready_within(Duration::from_secs(120)).await;
        let status = node.api().status().await?;
        ensure!(status["store"]["records"] == RESTORE_RECORDS, "{status}");
        let ours = status["restore"]["seconds"].as_f64().context("no restore time")?;
        node.kill();
        let topic = cluster.topic.clone();
        let theirs = tokio::task::spawn_blocking(move || consume(&topic)).await??.as_secs_f64();
        let rate = |seconds: f64| RESTORE_RECORDS as f64 / seconds;
        println!(
            "  node, process start to ready {ours:>6.2} s ({:>9.0} /s)   bare rdkafka consumer {theirs:>6.2} s ({:>9.0} /s)",
            rate(ours),
            rate(theirs)
        );
        ratios.push(theirs / ours);
    }
    println!("  rate, node / bare consumer: median {:.2}", median(ratios));
    Ok(())
}

async fn fill(cluster: &Cluster) -> Result<()> {
    let record = |i| KeyValue::new(&format!("key-{i:08}"), &value());
    cluster.topic.fill(RESTORE_RECORDS, 50_000, record).await
}

/// Reads the whole topic and throws it away.
fn consume(topic: &Topic) -> Result<Duration> {
    let start = Instant::now();
    let bytes = topic.read_and_discard(4, RESTORE_RECORDS)?;
    ensure!(bytes > RESTORE_RECORDS * VALUE_BYTES, "the records are smaller than they should be");
    Ok(start.elapsed())
}
