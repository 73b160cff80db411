//! A node's own machine with a slow disk, or a clock that is wrong.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Cluster, Node, Options, START};
use e2e::http::Api;
use e2e::machine::Machine;
use e2e::runner::{Ctx, Test};
use e2e::topic::{KeyValue, now_ms};
use e2e::{tests, wait};
use reqwest::Method;
use serde_json::Value;

use super::full_disk::{DAY, HOUR, equal, reads, write};

pub fn tests() -> Vec<Test> {
    tests![ServersAndMachine: a_slow_disk_holds_up_only_what_it_stores, a_clock_that_jumps_loses_no_key,
            a_clock_wrong_at_start_costs_one_rebuild, a_trimmers_clock_ahead_deletes_nothing_live]
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

async fn a_slow_disk_holds_up_only_what_it_stores(ctx: Ctx) -> Result<()> {
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

async fn a_clock_that_jumps_loses_no_key(ctx: Ctx) -> Result<()> {
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

async fn a_clock_wrong_at_start_costs_one_rebuild(ctx: Ctx) -> Result<()> {
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

async fn a_trimmers_clock_ahead_deletes_nothing_live(ctx: Ctx) -> Result<()> {
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
