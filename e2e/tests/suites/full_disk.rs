//! A node whose disk is full.

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Cluster, Options, START};
use e2e::http::Api;
use e2e::machine::SmallDisk;
use e2e::runner::{Ctx, Test};
use e2e::topic::KeyValue;
use e2e::{tests, wait};
use futures_util::{StreamExt, TryStreamExt, stream};
use reqwest::Method;
use serde_json::Value;

use super::resync::recreate;

pub fn tests() -> Vec<Test> {
    tests![
        Deployment: a_full_disk_stops_only_what_must_be_written, a_start_on_a_full_disk_says_so_or_serves,
            a_full_disk_leaves_no_part_of_a_snapshot, a_full_log_volume_costs_log_lines_only,
            no_room_for_a_new_store_keeps_the_old_one
    ]
}

pub const MIB: u64 = 1 << 20;
pub const HOUR: i64 = 3_600_000;
pub const DAY: i64 = 24 * HOUR;

/// Sets keys `{prefix}-0`, `{prefix}-1`… to values of so many bytes; every one is acknowledged.
pub async fn write(api: &Api, prefix: &str, keys: usize, bytes: usize) -> Result<()> {
    stream::iter(0..keys)
        .map(|i| async move {
            let answer = api.set(&format!("{prefix}-{i}"), &value(i, bytes)).await?;
            ensure!(answer.status == 200, "a write was not acknowledged: {answer}");
            Ok(())
        })
        .buffer_unordered(16)
        .try_for_each(|()| async { Ok(()) })
        .await
}

/// That does not compress.
pub fn value(i: usize, bytes: usize) -> String {
    let mut random = fastrand::Rng::with_seed(i as u64);
    std::iter::repeat_with(|| random.alphanumeric()).take(bytes).collect()
}

pub async fn reads(api: &Api, prefix: &str, keys: usize, bytes: usize) -> Result<()> {
    for i in 0..keys {
        let answer = api.get(&format!("{prefix}-{i}")).await?.expect(200);
        ensure!(answer.value() == Some(value(i, bytes)), "{prefix}-{i} has another value");
    }
    Ok(())
}

/// All records that a node's own store holds, by its scans.
pub async fn contents(api: &Api) -> Result<Vec<Value>, String> {
    let (mut all, mut cursor) = (Vec::new(), String::new());
    loop {
        let path = format!("/rpc/scan?limit=1000{cursor}");
        let answer = api.call(Method::GET, &path).await.map_err(|error| format!("{error:#}"))?;
        if answer.status != 200 {
            return Err(answer.to_string());
        }
        let page = answer.json();
        all.extend(page["records"].as_array().cloned().unwrap_or_default());
        match page["cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={}", e2e::http::encode(next)),
            None => return Ok(all),
        }
    }
}

/// Waits until two nodes hold the same, `count` records, and are caught up.
pub async fn equal(one: &Api, other: &Api, count: usize) {
    wait::until(&format!("two stores have the same {count} records"), 2 * START, || async {
        for api in [one, other] {
            let status = api.status().await.map_err(|error| format!("{error:#}"))?;
            if status["caught_up"] != true {
                return Err(status.to_string());
            }
        }
        let (here, there) = (contents(one).await?, contents(other).await?);
        if here.len() != count || there.len() != count {
            return Err(format!("{} and {} records", here.len(), there.len()));
        }
        match here.iter().zip(&there).find(|(here, there)| here != there) {
            None => Ok(()),
            Some((here, there)) => Err(format!("{here} and {there}")),
        }
    })
    .await;
}

fn is_blocked(status: &Value) -> bool {
    let reason = status["log"]["reason"].as_str().unwrap_or_default();
    status["log"]["state"] == "blocked"
        && ["the disk of /data/store", "is full", "make room"].iter().all(|words| reason.contains(words))
}

pub fn is_caught_up(status: &Value) -> bool {
    // Ready: it has also been noted in the store.
    status["caught_up"] == true && status["ready"] == true && status["log"]["state"] == "reading"
}

/// Its folder holds one store, and nothing that an attempt at another has left.
async fn has_one_store(small: &SmallDisk) -> Result<()> {
    let files = small.files().await?;
    let of_store = files.iter().filter_map(|path| path.strip_prefix("/data/store/"));
    let folders = of_store.clone().filter(|path| path.parse::<u64>().is_ok()).count();
    ensure!(folders == 1 && of_store.clone().all(|path| !path.ends_with(".new")), "{files:?}");
    Ok(())
}

pub fn count(log: &str, words: &str) -> usize {
    log.lines().filter(|line| line.contains(words)).count()
}

async fn a_full_disk_stops_only_what_must_be_written(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster_with(2, Options::new()).await?;
    let good = cluster.nodes[0].api();
    // The others are asked for what it lacks, and a busy machine may let them take longer than the 60 ms of the default.
    let patient = [("EXTERNAL_REQUEST_TIMEOUT", "5s")];
    let small = SmallDisk::new(&cluster, 32 * MIB, &patient).await?;
    small.turn_on().await?;
    write(&good, "old", 100, 10_000).await?;
    small.status_is("caught up", is_caught_up).await?;
    cluster.know_each_other(3).await;
    small.fill_but(0).await?;

    write(&small.api, "new", 400, 10_000).await?;
    let status = small
        .status_is("blocked, behind, and said to be", |status| {
            let partitions = status["partitions"].as_array().cloned().unwrap_or_default();
            is_blocked(status)
                && status["caught_up"] == false
                && partitions
                    .iter()
                    .any(|p| p["lag"].as_u64() > Some(0) && p["lag_seconds"].as_f64() > Some(0.0))
        })
        .await?;
    println!("disk_and_clock: {}", status["log"]["reason"]);
    ensure!(status["ready"] == true, "what is stored is served: {status}");
    let health = small.api.health().await?.expect(200).text();
    ensure!(health.contains("not caught up") && health.contains("is full"), "{health}");
    assert!(small.api.metric("bitacora_caught_up").await?.abs() < 0.1);
    assert!(small.api.metric("bitacora_lag_records").await? > 0.5);
    // What it has, and what only the others have.
    reads(&small.api, "old", 100, 10_000).await?;
    reads(&small.api, "new", 400, 10_000).await?;
    // Each from a thread of its own as far as the node has some: nobody needs room on the disk to read.
    let many = (0..400).map(|i| small.api.get_own(if i % 2 == 0 { "old-1" } else { "old-2" }));
    for answer in futures_util::future::try_join_all(many).await? {
        answer.expect(200);
    }
    let log = small.log().await?;
    ensure!(count(&log, "is full") == 1, "it is said once:\n{log}");

    small.make_room().await?;
    small.status_is("caught up again", is_caught_up).await?;
    equal(&good, &small.api, 500).await;
    let log = small.log().await?;
    ensure!(count(&log, "the store can be written again") == 1, "{log}");
    ensure!(small.ends().await?.is_empty(), "it went on in the same process:\n{log}");
    assert!(small.api.metric("bitacora_resyncs_total").await?.abs() < 0.1);
    has_one_store(&small).await
}

async fn a_start_on_a_full_disk_says_so_or_serves(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster_with(1, Options::new()).await?;
    let good = cluster.nodes[0].api();
    write(&good, "key", 50, 1_000).await?;
    // From no room at all to just too little for LMDB's files.
    for left in [0, 4096, 8192, 20_480, 65_536, 77_824, 81_920, 86_016] {
        let small = SmallDisk::new(&cluster, 8 * MIB, &[]).await?;
        small.fill_but(left).await?;
        small.turn_on().await?;
        let ends = wait::until("it has ended or lives", START, || async {
            match small.ends().await.map_err(|error| format!("{error:#}"))? {
                ends if ends.is_empty() => match small.api.status().await {
                    Ok(_) => Ok(ends),
                    Err(error) => Err(format!("{error:#}")),
                },
                ends => Ok(ends),
            }
        })
        .await;
        let log = small.log().await?;
        ensure!(ends.iter().all(|code| *code == 1), "{left} bytes left: {ends:?}\n{log}");
        if !ends.is_empty() {
            let said = log.lines().find(|line| line.starts_with("bitacora-node: ")).context("no sentence")?;
            println!("disk_and_clock, {left} bytes left: {said}");
            let words = ["/data", "is full", "make room"];
            ensure!(words.iter().all(|word| said.contains(word)), "{left} bytes left: {log}");
            ensure!(said.matches("os error 28").count() <= 1, "said twice: {said}");
        }
        small.make_room().await?;
        small.status_is("caught up", is_caught_up).await?;
        has_one_store(&small).await?;
    }

    // One that has a store serves it.
    let small = SmallDisk::new(&cluster, 16 * MIB, &[]).await?;
    small.turn_on().await?;
    small.status_is("caught up", is_caught_up).await?;
    small.turn_off().await?;
    small.fill_but(0).await?;
    write(&good, "later", 100, 10_000).await?;
    small.turn_on().await?;
    small.status_is("blocked and ready", |status| is_blocked(status) && status["ready"] == true).await?;
    for i in 0..50 {
        small.api.get_own(&format!("key-{i}")).await?.expect(200);
    }
    ensure!(small.ends().await? == [137], "only the test has ended it");
    small.make_room().await?;
    small.status_is("caught up", is_caught_up).await?;
    equal(&good, &small.api, 150).await;
    Ok(())
}

/// Above what a node reads from the log rather than ask a member for.
const MANY: usize = 24_000;

async fn fill_the_log(cluster: &Cluster) -> Result<()> {
    let record = |i| KeyValue::new(&format!("key-{i}"), &value(i, 500));
    cluster.topic.fill(MANY, 5_000, record).await
}

async fn a_full_disk_leaves_no_part_of_a_snapshot(ctx: Ctx) -> Result<()> {
    // A store of some 20 MB takes a while.
    let cluster = ctx.cluster_with(1, Options::new().env("SNAPSHOT_RATE", "2MiB")).await?;
    let good = cluster.nodes[0].api();
    fill_the_log(&cluster).await?;
    wait::until("all is applied", 2 * START, || async {
        let status = good.status().await.map_err(|error| format!("{error:#}"))?;
        if status["store"]["records"] == MANY { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
    let small = SmallDisk::new(&cluster, 160 * MIB, &[]).await?;
    small.turn_on().await?;
    let fetching = |status: &Value| {
        let reason = status["log"]["reason"].as_str().unwrap_or_default();
        // Its first bytes are there.
        reason.contains("fetching the store of") && !reason.ends_with(" 0 %")
    };
    small.status_is("fetching", fetching).await?;
    small.fill_but(0).await?;
    let status = small.status_is("blocked", is_blocked).await?;
    ensure!(status["ready"] == false, "it has nothing to serve: {status}");
    let said = status["unready"].as_str().unwrap_or_default();
    ensure!(said.contains("is full"), "{status}");
    // The room that the copy took is free again: the ballast takes it.
    small.fill_but(0).await?;
    let log = small.log().await?;
    ensure!(log.contains("no snapshot from"), "{log}");
    has_one_store(&small).await?;
    small.make_room().await?;
    small.status_is("caught up", is_caught_up).await?;
    equal(&good, &small.api, MANY).await;
    let log = small.log().await?;
    ensure!(small.ends().await?.is_empty(), "{log}");
    // It was not tried over and over.
    ensure!(log.lines().count() < 60, "{log}");
    has_one_store(&small).await
}

async fn no_room_for_a_new_store_keeps_the_old_one(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster_with(1, Options::new()).await?;
    let good = cluster.nodes[0].api();
    let small = SmallDisk::new(&cluster, 32 * MIB, &[]).await?;
    small.turn_on().await?;
    write(&good, "old", 100, 10_000).await?;
    small.status_is("caught up", is_caught_up).await?;
    equal(&good, &small.api, 100).await;
    small.fill_but(0).await?;
    recreate(&cluster.topic).await?;
    wait::until("the other node reads the new topic", START, || async {
        match good.metric("bitacora_resyncs_total").await {
            Ok(resyncs) if resyncs > 0.0 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    small.status_is("blocked", is_blocked).await?;
    write(&good, "new", 50, 10_000).await?;
    reads(&small.api, "old", 100, 10_000).await?;
    small.status_is("blocked and ready", |status| is_blocked(status) && status["ready"] == true).await?;
    let log = small.log().await?;
    ensure!(log.lines().count() < 60, "{log}");
    has_one_store(&small).await?;
    small.make_room().await?;
    small.status_is("caught up", is_caught_up).await?;
    equal(&good, &small.api, 50).await;
    ensure!(small.ends().await?.is_empty(), "{}", small.log().await?);
    has_one_store(&small).await
}

async fn a_full_log_volume_costs_log_lines_only(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster_with(1, Options::new()).await?;
    let good = cluster.nodes[0].api();
    let env = [("LOG_FILE", "/log/node.log"), ("LOG_LEVEL", "debug")];
    let small = SmallDisk::new(&cluster, 32 * MIB, &env).await?;
    small.fill_log().await?;
    // The second run begins on the full volume; the first was killed.
    for (prefix, keys, ends) in [("first", 20, &[][..]), ("second", 40, &[137])] {
        small.turn_on().await?;
        small.status_is("caught up", is_caught_up).await?;
        write(&small.api, prefix, 20, 1_000).await?;
        equal(&good, &small.api, keys).await;
        reads(&small.api, prefix, 20, 1_000).await?;
        small.api.call(Method::GET, "/health/live").await?.expect(200);
        let dropped = small.api.metric("bitacora_log_lines_dropped_total").await?;
        ensure!(dropped > 0.0, "no line was dropped");
        println!("full_log: {dropped} lines dropped, the node serves and takes writes");
        ensure!(small.ends().await? == ends, "it ended: {}", small.log().await?);
        if ends.is_empty() {
            small.turn_off().await?;
        }
    }
    small.make_room_for_log().await?;
    wait::until("there are lines again", START, || async {
        small.have_it_log().await.map_err(|error| format!("{error:#}"))?;
        let text = small.text_of("/log/node.log").await.map_err(|error| format!("{error:#}"))?;
        if text.contains("SIGUSR1") { Ok(()) } else { Err("none".to_owned()) }
    })
    .await;
    Ok(())
}
