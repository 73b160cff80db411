//! `cargo bench -p e2e --bench redis`: GET over the Avro RPC beside GET of a Redis server, driven by the same load
//! generator, in rounds that alternate; and `redis-benchmark` against the same Redis. Needs `redis-server` and
//! `redis-benchmark` in the path.
//!
//! The server's processor time is what the kernel accounts to its process, so it does not matter who waits for whom.

use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bitacora_protocol::rpc::{Request, put_frame};
use e2e::cluster::node_binary;
use e2e::figures::median;
use e2e::process::Process;
use e2e::rpc::shake_hands;
use e2e::runner::{self, Ctx, Needs, Test};
use e2e::{ports, wait};
use hdrhistogram::Histogram;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(3);
const KEYS: u64 = 100_000;
const VALUE_BYTES: usize = 100;
/// Requests that are sent in one write; the next ones follow when all are answered, as `redis-benchmark -P` does.
const PIPELINE: usize = 16;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().collect();
    if let [_, mode, protocol, port, connections] = &arguments[..]
        && mode == "--load"
    {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (port, connections) = (port.parse().expect("a port"), connections.parse().expect("a number"));
        match runtime.block_on(load(protocol, port, connections)) {
            Ok(()) => return ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error:#}");
                return ExitCode::FAILURE;
            }
        }
    }
    runner::bench(vec![Test::new("redis", "get", Needs::Nothing, get)])
}

/// The load generator, a process of its own with one thread: prints calls per second and latencies in µs.
async fn load(protocol: &str, port: u16, connections: usize) -> Result<()> {
    let started = Instant::now();
    let callers = (0..connections).map(|seed| caller(protocol, port, seed as u64, started));
    let all = futures_util::future::try_join_all(callers).await?;
    let took = started.elapsed().as_secs_f64();
    let mut latencies = Histogram::<u64>::new(3)?;
    for one in all {
        latencies.add(one)?;
    }
    let calls = latencies.len() * PIPELINE as u64;
    println!("{calls} {took} {} {}", latencies.value_at_quantile(0.5), latencies.value_at_quantile(0.99));
    Ok(())
}

async fn caller(protocol: &str, port: u16, seed: u64, started: Instant) -> Result<Histogram<u64>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    let mut latencies = Histogram::new(3)?;
    let (mut out, mut input) = (Vec::new(), vec![0; 64 * 1024]);
    let mut random = seed * 2_654_435_761 + 1;
    let avro = protocol == "avro";
    if avro {
        shake_hands(&mut stream).await?;
    }
    while started.elapsed() < ROUND {
        out.clear();
        for serial in 0..PIPELINE {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let key = key(random % KEYS);
            if avro {
                put_frame(&mut out, serial as i32, |out| Request::GetValue { key: &key }.encode(out));
            } else {
                out.extend(format!("*2\r\n$3\r\nGET\r\n${}\r\n{key}\r\n", key.len()).as_bytes());
            }
        }
        let sent = Instant::now();
        stream.write_all(&out).await?;
        // All answers have the same size, so it is enough to count bytes, and to look at one.
        let size = if avro { 12 + 3 + 2 + VALUE_BYTES } else { 6 + VALUE_BYTES + 2 };
        let mut filled = 0;
        while filled < size * PIPELINE {
            let read = stream.read(&mut input[filled..]).await?;
            ensure!(read > 0, "the server closed the connection");
            filled += read;
        }
        ensure!(filled == size * PIPELINE && input[size - 3] == b'v', "another answer: {:?}", &input[..size]);
        latencies.record(sent.elapsed().as_micros() as u64)?;
    }
    Ok(latencies)
}

fn key(number: u64) -> String {
    format!("key:{number:012}")
}

async fn get(ctx: Ctx) -> Result<()> {
    if Command::new("redis-server").arg("--version").stdout(Stdio::null()).status().is_err() {
        println!(
            "NOT RUN: redis-server is not in the path; install it (Debian: apt-get install redis-server)"
        );
        return Ok(());
    }
    // `dev` takes the port after the first too.
    let (http, rpc) = loop {
        let (first, second) = (ports::free(), ports::free());
        if second == first + 1 {
            break (first, second);
        }
    };
    let redis_port = ports::free();
    let mut command = Command::new(node_binary().await?);
    command.args(["dev", "--nodes", "1", "--port", &http.to_string(), "--data-dir"]).arg(ctx.dir.join("dev"));
    let node = Process::spawn(command, &ctx.dir.join("node.log"))?;
    let mut command = Command::new("redis-server");
    command.args([
        "--port",
        &redis_port.to_string(),
        "--save",
        "",
        "--appendonly",
        "no",
        "--bind",
        "127.0.0.1",
    ]);
    let redis = Process::spawn(command, &ctx.dir.join("redis.log"))?;
    for port in [rpc, redis_port] {
        wait::until("the server listens", Duration::from_secs(20), || async {
            TcpStream::connect(("127.0.0.1", port)).await.map(drop).map_err(|error| error.to_string())
        })
        .await;
    }
    fill_node(http).await?;
    fill_redis(redis_port).await?;
    println!(
        "\nGET, {KEYS} keys, values of {VALUE_BYTES} bytes, {PIPELINE} requests in a write; {ROUNDS} rounds of {} s each, alternating; medians",
        ROUND.as_secs()
    );
    for connections in [1, 50] {
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            rounds.push([
                round("avro", rpc, connections, node.pid()).await?,
                round("redis", redis_port, connections, redis.pid()).await?,
                redis_benchmark(redis_port, connections, redis.pid()).await?,
            ]);
        }
        println!("  {connections} connection(s)");
        for (index, name) in
            ["bitacora, this generator", "redis, this generator", "redis, redis-benchmark"].iter().enumerate()
        {
            let of = |figure: fn(&Round) -> f64| median(rounds.iter().map(|round| figure(&round[index])));
            println!(
                "    {name:<26} {:>9.0} calls/s   p50 {:>6.0} µs   p99 {:>6.0} µs   {:>5.2} CPU s per million calls",
                of(|r| r.rate),
                of(|r| r.p50),
                of(|r| r.p99),
                of(|r| r.cpu_per_million)
            );
        }
        for (index, name) in [(1, "this generator"), (2, "redis-benchmark")] {
            let ratio = |figure: fn(&Round) -> f64| {
                median(rounds.iter().map(|round| figure(&round[index]) / figure(&round[0])))
            };
            println!(
                "    bitacora / redis ({name}): calls per CPU second {:.2}, calls per second {:.2}",
                ratio(|r| r.cpu_per_million),
                1.0 / ratio(|r| r.rate)
            );
        }
    }
    Ok(())
}

struct Round {
    rate: f64,
    p50: f64,
    p99: f64,
    cpu_per_million: f64,
}

async fn round(protocol: &str, port: u16, connections: usize, server: u32) -> Result<Round> {
    let before = cpu_seconds(server)?;
    let mut command = tokio::process::Command::new(std::env::current_exe()?);
    command.args(["--load", protocol, &port.to_string(), &connections.to_string()]);
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await?;
    ensure!(output.status.success(), "the load failed: {}", String::from_utf8_lossy(&output.stderr));
    let cpu = cpu_seconds(server)? - before;
    let text = String::from_utf8(output.stdout)?;
    let figures: Vec<f64> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let [calls, took, p50, p99] = figures[..] else { bail!("{text}") };
    Ok(Round { rate: calls / took, p50, p99, cpu_per_million: cpu / calls * 1e6 })
}

async fn redis_benchmark(port: u16, connections: usize, server: u32) -> Result<Round> {
    let before = cpu_seconds(server)?;
    // About as long as a round.
    let calls = if connections == 1 { 600_000.0 } else { 1_500_000.0 };
    let mut command = tokio::process::Command::new("redis-benchmark");
    command.args(["-p", &port.to_string(), "-c", &connections.to_string(), "-P", &PIPELINE.to_string()]);
    command.args(["-n", &format!("{calls}"), "-r", &KEYS.to_string(), "--csv", "GET", "key:__rand_int__"]);
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await?;
    ensure!(output.status.success(), "redis-benchmark failed: {}", String::from_utf8_lossy(&output.stderr));
    let cpu = cpu_seconds(server)? - before;
    let text = String::from_utf8(output.stdout)?;
    // "test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms","p99_latency_ms","max_latency_ms"
    let line = text.lines().last().context("redis-benchmark printed nothing")?;
    let fields: Vec<_> = line.split(',').map(|field| field.trim_matches('"')).collect();
    let number =
        |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok()).context(line.to_owned());
    Ok(Round {
        rate: number(1)?,
        p50: number(4)? * 1000.0,
        p99: number(6)? * 1000.0,
        cpu_per_million: cpu / calls * 1e6,
    })
}

/// Processor time of a process so far, user and system, all threads.
fn cpu_seconds(pid: u32) -> Result<f64> {
    let mut nanoseconds = 0u64;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
        nanoseconds += text.split_whitespace().next().context("schedstat is empty")?.parse::<u64>()?;
    }
    Ok(nanoseconds as f64 / 1e9)
}

async fn fill_node(port: u16) -> Result<()> {
    let url = |path: &str| format!("http://127.0.0.1:{port}{path}");
    let client = reqwest::Client::builder().no_proxy().build()?;
    for start in (0..KEYS).step_by(10_000) {
        let body: String = (start..start + 10_000)
            .map(|number| {
                format!(
                    "{{\"op\":\"set\",\"key\":\"{}\",\"value\":\"{}\"}}\n",
                    key(number),
                    "v".repeat(VALUE_BYTES)
                )
            })
            .collect();
        let answer =
            client.post(url("/rpc/batch")).body(body).send().await?.error_for_status()?.text().await?;
        ensure!(answer.lines().all(|line| line.starts_with("{\"status\":200")), "a set failed");
    }
    wait::until("the node has all keys", Duration::from_secs(60), || async {
        let answer = client.get(url("/status")).send().await.map_err(|error| error.to_string())?;
        let status: serde_json::Value = answer.json().await.map_err(|error| error.to_string())?;
        if status["store"]["records"] == KEYS { Ok(()) } else { Err(status["store"].to_string()) }
    })
    .await;
    Ok(())
}

async fn fill_redis(port: u16) -> Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let mut input = vec![0; 64 * 1024];
    for start in (0..KEYS).step_by(1000) {
        let mut out = String::new();
        for number in start..start + 1000 {
            let (key, value) = (key(number), "v".repeat(VALUE_BYTES));
            out += &format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${VALUE_BYTES}\r\n{value}\r\n", key.len());
        }
        stream.write_all(out.as_bytes()).await?;
        let mut filled = 0;
        while filled < 1000 * "+OK\r\n".len() {
            let read = stream.read(&mut input[filled..]).await?;
            ensure!(read > 0, "redis closed the connection");
            filled += read;
        }
    }
    Ok(())
}
