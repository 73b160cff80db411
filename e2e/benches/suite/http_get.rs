//! GET over HTTP beside servers that answer the same body without looking for anything: a warp route, hyper, nginx.

use anyhow::Result;
use e2e::http::Api;
use e2e::measure::bare::Kind;
use e2e::measure::child::{Job, Measured, against};
use e2e::measure::load::{Call, Load};
use e2e::measure::peers::{DevNode, Peer};
use e2e::measure::row::{Figure, Row, Target};
use e2e::measure::table::number;
use e2e::measure::{key, results};
use e2e::runner::Ctx;

use crate::size::{VALUE_BYTES, size};

const CONNECTIONS: usize = 64;
const WORK: &str = "HTTP GET of one key, 64 connections";

pub async fn run(ctx: Ctx) -> Result<()> {
    let node = DevNode::start(&ctx.dir, &[]).await?;
    node.fill(size().read, VALUE_BYTES).await?;
    let body = Api::new(node.http).get(&key(0)).await?.expect(200).text();
    let peers = [
        ("bare warp route", Some(Peer::bare(Kind::Warp, &body, &ctx.dir).await?)),
        ("bare hyper", Some(Peer::bare(Kind::Hyper, &body, &ctx.dir).await?)),
        ("nginx return 200", Peer::nginx(&body, &ctx.dir).await?),
    ];
    let load = |port, keys| Job::Load(Load::new(Call::HttpGet, port, CONNECTIONS, keys, size().round));
    // All keys are in the cache from here on.
    super::filled::warm(Call::HttpGet, node.http, size().read).await?;
    let node_pid = [node.pid()];
    let (mut ours, mut of_many) = (Vec::new(), Vec::new());
    let mut theirs: [Vec<Measured>; 3] = Default::default();
    for _ in 0..size().rounds {
        ours.push(against(&node_pid, &load(node.http, 1)).await?);
        for ((_, peer), rounds) in peers.iter().zip(&mut theirs) {
            if let Some(peer) = peer {
                rounds.push(against(&peer.pids()?, &load(peer.port, 1)).await?);
            }
        }
        of_many.push(against(&node_pid, &load(node.http, size().read)).await?);
    }
    let mut rows = Vec::new();
    for ((name, peer), rounds) in peers.iter().zip(&theirs) {
        let theirs = peer.as_ref().map(|_| &rounds[..]);
        for figure in [Figure::Rate("requests/s"), Figure::Cpu, Figure::P99] {
            rows.push(with_target(
                Row::of_rounds(("http_get", WORK, name), figure, &ours, theirs),
                name,
                figure,
            ));
        }
    }
    let work = format!("HTTP GET of any of {} keys, 64 connections", number(size().read as f64));
    let many = ("http_get", &work[..], "HTTP GET of one key");
    for figure in [Figure::Rate("requests/s"), Figure::P99] {
        rows.push(Row::of_rounds(many, figure, &of_many, Some(&ours)));
    }
    results::add(rows);
    Ok(())
}

fn with_target(row: Row, peer: &str, figure: Figure) -> Row {
    match (peer, figure) {
        ("bare warp route", Figure::Rate(_) | Figure::Cpu) => row.target(Target::Ratio(1.0)),
        ("bare warp route", Figure::P99) => row.target(Target::Ratio(1.1)),
        _ => row,
    }
}
