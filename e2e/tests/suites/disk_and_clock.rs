//! Faults of a node's own machine: a disk that is full or slow, and a clock that is wrong.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Cluster, Node, Options, START};
use e2e::http::Api;
use e2e::machine::{Machine, SmallDisk};
use e2e::runner::{Ctx, Test};
use e2e::topic::{KeyValue, now_ms};
use e2e::{tests, wait};
use futures_util::{StreamExt, TryStreamExt, stream};
use reqwest::Method;
use serde_json::Value;

use super::resync::recreate;

pub fn tests() -> Vec<Test> {
    tests![
        Deployment: a_full_disk_stops_only_what_must_be_written, a_start_on_a_full_disk_ends_with_a_sentence_or_serves,
            a_disk_that_fills_up_during_a_snapshot_leaves_no_trash,
            a_new_store_that_finds_no_room_leaves_the_old_one_readable;
        ServersAndMachine: a_slow_disk_holds_up_nothing_but_what_it_stores,
            a_clock_that_jumps_under_a_running_node_costs_no_key, a_clock_that_was_wrong_at_a_start_costs_a_rebuild_at_most,
            a_trimmer_whose_clock_is_ahead_buries_nothing_alive
    ]
}

const MIB: u64 = 1 << 20;
const HOUR: i64 = 3_600_000;
const DAY: i64 = 24 * HOUR;

/// Sets keys `{prefix}-0`, `{prefix}-1`… to values of so many bytes; every one is acknowledged.
async fn write(api: &Api, prefix: &str, keys: usize, bytes: usize) -> Result<()> {
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
fn value(i: usize, bytes: usize) -> String {
    let mut random = fastrand::Rng::with_seed(i as u64);
    std::iter::repeat_with(|| random.alphanumeric()).take(bytes).collect()
}

async fn reads(api: &Api, prefix: &str, keys: usize, bytes: usize) -> Result<()> {
    for i in 0..keys {
        let answer = api.get(&format!("{prefix}-{i}")).await?.expect(200);
        ensure!(answer.value() == Some(value(i, bytes)), "{prefix}-{i} has another value");
    }
    Ok(())
}

/// All records that a node's own store holds, by its scans.
async fn contents(api: &Api) -> Result<Vec<Value>, String> {
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
async fn equal(one: &Api, other: &Api, count: usize) {
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

fn is_caught_up(status: &Value) -> bool {
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

fn count(log: &str, words: &str) -> usize {
    log.lines().filter(|line| line.contains(words)).count()
}

async fn a_full_disk_stops_only_what_must_be_written(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster_with(2, Options::new()).await?;
    let good = cluster.nodes[0].api();
    let small = SmallDisk::new(&cluster, 32 * MIB, &[]).await?;
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

async fn a_start_on_a_full_disk_ends_with_a_sentence_or_serves(ctx: Ctx) -> Result<()> {
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
    let writer = cluster.topic.writer()?;
    stream::iter(0..MANY)
        .map(|i| {
            let writer = &writer;
            async move { writer.write_record(&KeyValue::new(&format!("key-{i}"), &value(i, 500))).await }
        })
        .buffer_unordered(5_000)
        .try_for_each(|_| async { Ok(()) })
        .await
}

async fn a_disk_that_fills_up_during_a_snapshot_leaves_no_trash(ctx: Ctx) -> Result<()> {
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

async fn a_new_store_that_finds_no_room_leaves_the_old_one_readable(ctx: Ctx) -> Result<()> {
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

/// The ZooKeeper session that a node's znode belongs to.
async fn session(cluster: &Cluster, node: &Node) -> Result<i64> {
    let zk = cluster.zk().await;
    let path = format!("/bitacora/servers/127.0.0.1:{}", node.api_port);
    let znode = zk.znode(&path).await.map_err(anyhow::Error::msg)?;
    zk.close().await;
    Ok(znode.with_context(|| format!("there is no {path}"))?.owner)
}

/// A cluster of nodes on machines of their own, started.
async fn on_machines(ctx: &Ctx, nodes: usize, options: Options) -> Result<(Cluster, Vec<Machine>)> {
    let mut cluster = ctx.no_nodes(options).await?;
    let mut machines = Vec::new();
    for _ in 0..nodes {
        let node = cluster.add().await?;
        machines.push(Machine::of(node).await?);
        node.spawn()?;
    }
    cluster.formed().await;
    Ok((cluster, machines))
}

async fn applied(api: &Api) -> Result<Vec<i64>> {
    let status = api.status().await?;
    let partitions = status["partitions"].as_array().cloned().unwrap_or_default();
    Ok(partitions.iter().filter_map(|partition| partition["applied"].as_i64()).collect())
}

async fn a_slow_disk_holds_up_nothing_but_what_it_stores(ctx: Ctx) -> Result<()> {
    let (cluster, machines) = on_machines(&ctx, 2, Options::new()).await?;
    let [good, slow] = &cluster.nodes[..] else { unreachable!("two nodes") };
    write(&good.api(), "old", 100, 100).await?;
    equal(&good.api(), &slow.api(), 100).await;
    let (owner, api) = (session(&cluster, slow).await?, slow.api());

    machines[1].syncs_take(Duration::from_mins(10))?;
    write(&api, "new", 100, 100).await?;
    wait::until("it is behind and says so", START, || async {
        let status = api.status().await.map_err(|error| format!("{error:#}"))?;
        let lag: u64 =
            status["partitions"].as_array().into_iter().flatten().filter_map(|p| p["lag"].as_u64()).sum();
        if status["caught_up"] == false && lag > 0 { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
    // All of it within one commit.
    let before = applied(&api).await?;
    for _ in 0..5 {
        reads(&api, "old", 100, 100).await?;
        reads(&api, "new", 100, 100).await?;
        write(&api, "new", 100, 100).await?;
    }
    assert_eq!(applied(&api).await?, before, "the commit has ended, so the reads have not met it");
    let status = api.status().await?;
    let stall = |status: &Value| {
        let unready = status["unready"].as_str().unwrap_or_default();
        status["ready"] == true || unready.contains("the replica has shown no sign of life for 3")
    };
    ensure!(stall(&status), "dead before 30 s have gone: {status}");
    // A thread that is held up for longer than any transaction should take is told.
    wait::until("it is unready", 2 * START, || async {
        let status = api.status().await.map_err(|error| format!("{error:#}"))?;
        assert!(stall(&status), "{status}");
        if status["ready"] == false { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
    api.call(Method::GET, "/health/live").await?.expect(200);
    reads(&api, "old", 100, 100).await?;
    assert_eq!(session(&cluster, slow).await?, owner, "its ZooKeeper session has expired");

    machines[1].syncs_take(Duration::ZERO)?;
    slow.ready().await;
    equal(&good.api(), &api, 200).await;
    assert_eq!(session(&cluster, slow).await?, owner);
    ensure!(slow.is_running(), "{}", slow.log_tail(30));
    Ok(())
}

async fn resyncs(node: &Node) -> Result<u64> {
    Ok(node.api().metric("bitacora_resyncs_total").await?.round() as u64)
}

/// Writes by another node, and waits until this one has applied it and looked after its store since.
async fn a_turn(by: &Node, of: &Node) -> Result<()> {
    for turn in ["first", "second"] {
        let value = format!("{turn} at {}", now_ms());
        by.api().set("turn", &value).await?.expect(200);
        of.has("turn", Some(&value)).await;
    }
    Ok(())
}

async fn a_clock_that_jumps_under_a_running_node_costs_no_key(ctx: Ctx) -> Result<()> {
    let (cluster, machines) = on_machines(&ctx, 2, Options::new()).await?;
    let [good, wrong] = &cluster.nodes[..] else { unreachable!("two nodes") };
    let (machine, api) = (&machines[1], wrong.api());
    for (key, ttl) in [("for ever", ""), ("for an hour", "&ttl=1h"), ("for 3 days", "&ttl=72h")] {
        good.api().set_with(key, "value", ttl).await?.expect(200);
    }
    good.api().set("deleted", "value").await?.expect(200);
    good.api().delete("deleted").await?.expect(200);
    a_turn(good, wrong).await?;
    let owner = session(&cluster, wrong).await?;

    machine.clock_is_ahead(2 * DAY)?;
    a_turn(good, wrong).await?;
    a_turn(wrong, good).await?;
    // By its clock.
    api.get_own("for an hour").await?.expect(404);
    api.get_own("for 3 days").await?.expect(200);
    assert_eq!(session(&cluster, wrong).await?, owner, "its ZooKeeper session has expired");

    machine.clock_is_ahead(-2 * DAY)?;
    // Nothing comes that could wake who waits for a time of day, which is four days from now.
    let since = Instant::now();
    wait::until("the replica goes round", START, || async {
        let age = api.metric("bitacora_replica_heartbeat_age_seconds").await;
        let age = age.map_err(|error| format!("{error:#}"))?;
        let past = since.elapsed().as_secs_f64();
        if past > 2.0 && age < past {
            Ok(())
        } else {
            Err(format!("no sign of life for {age} s, set {past} s ago"))
        }
    })
    .await;
    a_turn(good, wrong).await?;
    a_turn(wrong, good).await?;
    api.get_own("for an hour").await?.expect(200);
    assert_eq!(session(&cluster, wrong).await?, owner, "its ZooKeeper session has expired");

    machine.clock_is_ahead(0)?;
    a_turn(good, wrong).await?;
    for key in ["for ever", "for an hour", "for 3 days"] {
        wrong.has(key, Some("value")).await;
    }
    wrong.has("deleted", None).await;
    equal(&good.api(), &api, 4).await;
    assert_eq!(
        resyncs(wrong).await?,
        0,
        "a running process has thrown its store away:\n{}",
        wrong.log_tail(30)
    );

    // Nobody knows whether a clock was set by more than the grace, or the machine was stopped for as long.
    machine.clock_is_ahead(9 * DAY)?;
    wait::until("it has built its store anew", START, || async {
        match resyncs(wrong).await.map_err(|error| format!("{error:#}"))? {
            0 => Err("it reads the old one".to_string()),
            _ => Ok(()),
        }
    })
    .await;
    wrong.ready().await;
    a_turn(good, wrong).await?;
    machine.clock_is_ahead(0)?;
    a_turn(good, wrong).await?;
    wrong.has("for an hour", Some("value")).await;
    wrong.has("deleted", None).await;
    equal(&good.api(), &api, 4).await;
    assert_eq!(resyncs(wrong).await?, 1, "{}", wrong.log_tail(30));
    Ok(())
}

async fn a_clock_that_was_wrong_at_a_start_costs_a_rebuild_at_most(ctx: Ctx) -> Result<()> {
    let (cluster, machines) = on_machines(&ctx, 2, Options::new()).await?;
    let [good, wrong] = &cluster.nodes[..] else { unreachable!("two nodes") };
    let machine = &machines[1];
    good.api().set("kept", "value").await?.expect(200);
    good.api().set_with("for an hour", "value", "&ttl=1h").await?.expect(200);
    a_turn(good, wrong).await?;
    // How far ahead it is at a start, and whether the store is then built anew. The grace is 7 days.
    for (ahead, anew) in [(2 * DAY, false), (-2 * DAY, true), (8 * DAY, true), (0, false)] {
        wrong.kill();
        machine.clock_is_ahead(ahead)?;
        wrong.spawn()?;
        wrong.ready().await;
        a_turn(good, wrong).await?;
        wrong.has("kept", Some("value")).await;
        assert_eq!(resyncs(wrong).await? > 0, anew, "{ahead} ms ahead:\n{}", wrong.log_tail(30));
    }
    wrong.has("for an hour", Some("value")).await;
    equal(&good.api(), &wrong.api(), 3).await;

    // It ran while its clock was ten days ahead, and was away for twelve: by its own clock, which has been set right
    // meanwhile, for two.
    wrong.kill();
    machine.clock_is_ahead(10 * DAY)?;
    wrong.wipe()?;
    wrong.spawn()?;
    wrong.ready().await;
    for _ in 0..3 {
        a_turn(good, wrong).await?;
    }
    wrong.kill();
    machine.clock_is_ahead(12 * DAY)?;
    wrong.spawn()?;
    wrong.ready().await;
    assert_eq!(resyncs(wrong).await?, 1, "deletes may be missed:\n{}", wrong.log_tail(30));
    Ok(())
}

async fn a_trimmer_whose_clock_is_ahead_buries_nothing_alive(ctx: Ctx) -> Result<()> {
    let retention = Duration::from_secs(5);
    let mut cluster =
        ctx.no_nodes(Options::new().env("DELETE_RETENTION", "5s").env("MIN_COMPACTION_LAG", "60s")).await?;
    let config = [
        ("cleanup.policy", "compact"),
        ("message.timestamp.type", "LogAppendTime"),
        ("min.compaction.lag.ms", "60000"),
        ("delete.retention.ms", "60000"),
    ];
    cluster.topic.create(1, &config).await?;
    // The expiry is the writer's, whose clock is right.
    let writer = cluster.topic.writer()?;
    let alive = KeyValue { ttl: now_ms() + HOUR, ..KeyValue::new("alive", "value") };
    writer.write_record(&alive).await?;
    let mut machines = Vec::new();
    for _ in 0..2 {
        let node = cluster.add().await?;
        let machine = Machine::of(node).await?;
        machine.clock_is_ahead(DAY)?;
        machines.push(machine);
        node.spawn()?;
    }
    cluster.formed().await;
    let (node, deleted) = (&cluster.nodes[0], "deleted");
    node.api().get_own("alive").await?.expect(404);
    node.api().set(deleted, "value").await?.expect(200);
    let marker = node.api().delete(deleted).await?.expect(200);
    let written: i64 =
        marker.header("bitacora-timestamp").and_then(|time| time.parse().ok()).context("a time")?;
    let tombstone = wait::until("the trimmer has buried what is dead", 4 * START, || async {
        let all = cluster.topic.read_all().await.map_err(|error| format!("{error:#}"))?;
        let found = all.into_iter().find(|record| record.key_text() == deleted && record.value.is_none());
        found.ok_or_else(|| "no tombstone".to_string())
    })
    .await;
    let age = tombstone.timestamp - written;
    ensure!(age >= retention.as_millis() as i64, "the marker was buried after {age} ms of the log's time");
    let all = cluster.topic.read_all().await?;
    let of_alive: Vec<_> = all.iter().filter(|record| record.key_text() == "alive").collect();
    ensure!(
        of_alive.len() == 1 && of_alive[0].value.is_some(),
        "a key that is alive was buried: {of_alive:?}"
    );
    for machine in &machines {
        machine.clock_is_ahead(0)?;
    }
    cluster.all_have("alive", Some("value")).await;
    Ok(())
}
