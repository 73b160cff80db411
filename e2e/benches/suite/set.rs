//! Acknowledged sets beside a bare producer with as many awaited sends, alone and behind a bare HTTP server, and beside Redis with its
//! append-only file.

use anyhow::Result;
use e2e::cluster::Options;
use e2e::http::Api;
use e2e::measure::bulk::Produce;
use e2e::measure::child::{self, Job, Measured, against};
use e2e::measure::load::{Call, Load};
use e2e::measure::peers::Peer;
use e2e::measure::row::{Figure, Row, Target};
use e2e::measure::{key, results, value};
use e2e::runner::Ctx;

use crate::size::{VALUE_BYTES, size};

const WRITERS: usize = 64;
/// Keys that are written over and over.
const KEYS: u64 = 10_000;
const RATE: Figure = Figure::Rate("sets/s");

pub async fn run(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster_with(1, Options::new()).await?;
    let node = &cluster.nodes[0];
    let pid = [super::filled::pid(node)?];
    let redis = Peer::redis(true, &ctx.dir).await?;
    let load = |call, port| Job::Load(Load::new(call, port, WRITERS, KEYS, size().round));
    let produce = Job::Produce(Produce {
        brokers: cluster.topic.brokers.clone(),
        topic: cluster.topic.name.clone(),
        writers: WRITERS,
        keys: KEYS,
        value_bytes: VALUE_BYTES,
        seconds: size().round,
    });
    let answer = Api::new(node.api_port).set(&key(0), &value(VALUE_BYTES)).await?.expect(200).text();
    let behind_http = Peer::producing(&cluster.topic, &answer, &ctx.dir).await?;
    let (mut http, mut rpc, mut bare, mut theirs) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut behind = Vec::new();
    // The first writes find a cold broker, whoever makes them.
    child::run(&produce).await?;
    for _ in 0..size().rounds {
        http.push(against(&pid, &load(Call::HttpSet, node.api_port)).await?);
        bare.push(Measured::own(child::run(&produce).await?));
        behind.push(against(&behind_http.pids()?, &load(Call::HttpSet, behind_http.port)).await?);
        rpc.push(against(&pid, &load(Call::AvroSet, node.avro_port)).await?);
        if let Some(redis) = &redis {
            theirs.push(against(&redis.pids()?, &load(Call::RedisSet, redis.port)).await?);
        }
    }
    let (over_http, over_rpc) =
        ("HTTP SET, acknowledged, 64 connections", "RPC SET, acknowledged, 64 connections");
    let beside_bare = |work, figure, ours| {
        Row::of_rounds(("set", work, "bare producer, 64 awaited sends"), figure, ours, Some(&bare))
    };
    let beside_http = |figure, ours| {
        Row::of_rounds(
            ("set", over_http, "bare warp route before a bare producer"),
            figure,
            ours,
            Some(&behind),
        )
    };
    let theirs = redis.as_ref().map(|_| &theirs[..]);
    let beside_redis = |work, figure, ours| {
        Row::of_rounds(("set", work, "Redis SET, AOF every second"), figure, ours, theirs)
    };
    results::add([
        beside_bare(over_http, RATE, &http).target(Target::Ratio(0.9)),
        beside_bare(over_http, Figure::P50, &http).target(Target::Ratio(1.1)),
        beside_http(RATE, &http),
        beside_http(Figure::P50, &http),
        beside_bare(over_rpc, RATE, &rpc),
        beside_bare(over_rpc, Figure::P50, &rpc),
        beside_redis(over_http, RATE, &http),
        beside_redis(over_rpc, RATE, &rpc),
    ]);
    Ok(())
}
