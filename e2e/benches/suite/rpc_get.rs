//! GET over the Avro RPC beside GET of Redis, by the same load generator, which sends several calls in one write.

use anyhow::{Context, Result, ensure};
use e2e::measure::child::{Job, Measured, against};
use e2e::measure::load::{Call, Load};
use e2e::measure::peers::{DevNode, Peer, fill_redis, program};
use e2e::measure::row::{Figure, Row, Target};
use e2e::measure::{cpu, results};
use e2e::runner::Ctx;

use crate::size::{VALUE_BYTES, size};

const CONNECTIONS: usize = 50;
/// Calls in a write, and the target of the processor time for each, beside Redis'.
const DEPTHS: [(usize, f64); 3] = [(1, 0.85), (16, 0.6), (128, 0.45)];

pub async fn run(ctx: Ctx) -> Result<()> {
    let node = DevNode::start(&ctx.dir, &[]).await?;
    node.fill(size().read, VALUE_BYTES).await?;
    super::filled::warm(Call::AvroGet, node.rpc, size().read).await?;
    let redis = Peer::redis(false, &ctx.dir).await?;
    if let Some(redis) = &redis {
        fill_redis(redis.port, size().read, VALUE_BYTES).await?;
    }
    for (depth, target) in DEPTHS {
        let load = |call, port| {
            Job::Load(Load { depth, ..Load::new(call, port, CONNECTIONS, size().read, size().round) })
        };
        let (mut ours, mut theirs, mut own) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..size().rounds {
            ours.push(against(&[node.pid()], &load(Call::AvroGet, node.rpc)).await?);
            if let Some(redis) = &redis {
                theirs.push(against(&redis.pids()?, &load(Call::RedisGet, redis.port)).await?);
                if depth == 16 {
                    own.push(redis_benchmark(redis).await?);
                }
            }
        }
        let theirs = redis.as_ref().map(|_| &theirs[..]);
        let work = format!("RPC GET, {CONNECTIONS} connections, pipelined by {depth}");
        let of = |figure| Row::of_rounds(("rpc_get", &work, "Redis GET"), figure, &ours, theirs);
        let mut rows =
            vec![of(Figure::Cpu).target(Target::Ratio(target)), of(Figure::Rate("calls/s")), of(Figure::P99)];
        if own.iter().any(Option::is_some) {
            let own: Vec<_> = own.into_iter().flatten().collect();
            let name = ("rpc_get", &work[..], "redis-benchmark GET");
            rows.push(Row::of_rounds(name, Figure::Cpu, &ours, Some(&own)));
        }
        results::add(rows);
    }
    Ok(())
}

/// The same with Redis' own load generator, to see that ours is fair to it.
async fn redis_benchmark(redis: &Peer) -> Result<Option<Measured>> {
    let Some(program) = program("redis-benchmark") else { return Ok(None) };
    // About as long as a round.
    let calls = 400_000.0 * size().round;
    let before = cpu::seconds_of(&redis.pids()?)?;
    let mut command = tokio::process::Command::new(program);
    command.args(["-p", &redis.port.to_string(), "-c", &CONNECTIONS.to_string(), "-P", "16"]);
    command.args(["-n", &format!("{calls}"), "-r", &size().read.to_string(), "--csv"]);
    command.args(["GET", "key:__rand_int__"]);
    let output = command.stdin(std::process::Stdio::null()).kill_on_drop(true).output().await?;
    ensure!(output.status.success(), "redis-benchmark: {}", String::from_utf8_lossy(&output.stderr));
    let cpu = (cpu::seconds_of(&redis.pids()?)? - before) / calls * 1e6;
    let text = String::from_utf8(output.stdout)?;
    // "test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms","p99_latency_ms","max_latency_ms"
    let line = text.lines().next_back().context("redis-benchmark printed nothing")?;
    let rate = line.split(',').nth(1).and_then(|field| field.trim_matches('"').parse().ok());
    Ok(Some(Measured { rate: rate.with_context(|| line.to_owned())?, cpu, ..Measured::default() }))
}
