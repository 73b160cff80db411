//! What a cached record takes of memory beside an entry of Redis: the anonymous memory of each process with so many keys, less that without.

use anyhow::Result;
use e2e::measure::load::Call;
use e2e::measure::peers::{DevNode, Peer, fill_redis};
use e2e::measure::row::{Better, Row, Target};
use e2e::measure::{cpu, results};
use e2e::runner::Ctx;

use crate::size::{VALUE_BYTES, WHOLE_CACHE, size};

const ROUNDS: usize = 3;

pub async fn run(ctx: Ctx) -> Result<()> {
    let keys = size().cached;
    let flags = ["--cache-bytes", WHOLE_CACHE];
    let node = DevNode::start(&ctx.dir, &flags).await?;
    node.fill(keys, VALUE_BYTES).await?;
    drop(node);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        // A new process: nothing was read, and nothing is left from writing.
        let node = DevNode::start(&ctx.dir, &flags).await?;
        node.has(keys).await;
        let before = cpu::anonymous_bytes(node.pid())?;
        super::filled::warm(Call::AvroGet, node.rpc, keys).await?;
        ours.push((cpu::anonymous_bytes(node.pid())? - before) / keys as f64);
        let cached = e2e::http::Api::new(node.http).status().await?["cache"]["records"].as_u64();
        anyhow::ensure!(
            cached.is_none_or(|cached| cached == keys),
            "{cached:?} of {keys} records are cached"
        );
        if let Some(redis) = Peer::redis(false, &ctx.dir).await? {
            let pid = redis.pids()?[0];
            let before = cpu::anonymous_bytes(pid)?;
            fill_redis(redis.port, keys, VALUE_BYTES).await?;
            theirs.push((cpu::anonymous_bytes(pid)? - before) / keys as f64);
        }
    }
    let work = "memory of a cached record of 16 + 100 bytes";
    let theirs = (!theirs.is_empty()).then_some(&theirs[..]);
    let redis = ("memory", work, "Redis, for each entry");
    results::add([
        Row::beside(redis, "bytes", Better::Lower, &ours, theirs).target(Target::Ratio(1.0)),
        Row::alone("memory", work, "bytes", Better::Lower, &ours).target(Target::Figure(190.0)),
    ]);
    Ok(())
}
