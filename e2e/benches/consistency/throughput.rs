//! Many callers of one node: strong reads, which share barriers, beside eventual ones.

use std::process::Stdio;

use anyhow::{Result, bail, ensure};
use bitacora_client::Operation;
use e2e::cluster::{Node, Options};
use e2e::figures::Spread;
use e2e::runner::Ctx;
use e2e::wait;

use crate::load::{CALLERS, KEYS, ROUND, RPC_CONNECTIONS, key};
use crate::{DEADLINE, client_of, value};

const ROUNDS: usize = 3;
const LOADS: [(&str, &str); 4] =
    [("rpc", "eventual"), ("rpc", "strong"), ("http", "eventual"), ("http", "strong")];

struct Round {
    per_second: f64,
    p50: f64,
    p99: f64,
    barriers_per_thousand: f64,
}

/// What a second node costs that reads the same log on the same machine, shows in comparison with one alone.
pub async fn run(ctx: Ctx, nodes: usize) -> Result<()> {
    let cluster = ctx.cluster_with(nodes, Options::new()).await?;
    let node = &cluster.nodes[0];
    fill(node).await?;
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let mut round = Vec::new();
        for (protocol, level) in LOADS {
            round.push(load(node, protocol, level).await?);
        }
        rounds.push(round);
    }
    println!(
        "\n{CALLERS} callers of one node (of {nodes}) with one read under way each; RPC over {RPC_CONNECTIONS} connections, HTTP over \
         {CALLERS}; {ROUNDS} rounds of {} s each, alternating",
        ROUND.as_secs()
    );
    for (index, (protocol, level)) in LOADS.iter().enumerate() {
        let of = |figure: fn(&Round) -> f64| Spread::of(rounds.iter().map(|round| figure(&round[index])));
        println!(
            "  {:<14} {:<30} /s   p50 {:<22} µs   p99 {:<24} µs   barriers per 1000 reads {:.1}",
            format!("{protocol} {level}"),
            of(|round| round.per_second),
            of(|round| round.p50),
            of(|round| round.p99),
            of(|round| round.barriers_per_thousand)
        );
    }
    Ok(())
}

async fn fill(node: &Node) -> Result<()> {
    let sets: Vec<_> =
        (0..KEYS).map(|number| Operation::Set { key: key(number), value: value(), ttl: None }).collect();
    for result in client_of(node).await?.batch(&sets).await? {
        result?;
    }
    wait::until("the node has all keys", DEADLINE, || async {
        let status = node.api().status().await.map_err(|error| format!("{error:#}"))?;
        if status["store"]["records"] == KEYS { Ok(()) } else { Err(status["store"].to_string()) }
    })
    .await;
    Ok(())
}

async fn load(node: &Node, protocol: &str, level: &str) -> Result<Round> {
    let port = if protocol == "rpc" { node.avro_port } else { node.api_port };
    let barriers = node.api().metric("bitacora_barriers_total").await?;
    let mut command = tokio::process::Command::new(std::env::current_exe()?);
    command.args(["--load", protocol, level, &port.to_string()]);
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await?;
    ensure!(output.status.success(), "the load failed: {}", String::from_utf8_lossy(&output.stderr));
    let barriers = node.api().metric("bitacora_barriers_total").await? - barriers;
    let text = String::from_utf8(output.stdout)?;
    let figures: Vec<f64> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let [reads, took, p50, p99] = figures[..] else { bail!("{text}") };
    Ok(Round { per_second: reads / took, p50, p99, barriers_per_thousand: barriers / reads * 1000.0 })
}
