//! A store that does not fit the log is built anew, and what was deleted meanwhile never comes back.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Cluster, Node, Options, START};
use e2e::http::Api;
use e2e::runner::{Ctx, Test};
use e2e::topic::{KeyValue, Topic};
use e2e::{tests, wait};
use futures_util::future::try_join_all;

pub fn tests() -> Vec<Test> {
    tests![
        Servers: recreated_while_down_leaves_no_old_key,
            recreated_while_running_replaces_stores,
            another_kafka_cluster_replaces_the_stores,
            a_node_left_behind_is_rebuilt,
            a_long_deleted_key_never_comes_back,
            an_older_backup_goes_on_from_its_own_offsets,
            added_partitions_are_read_without_downtime
    ]
}

const COMPACTED: [(&str, &str); 2] =
    [("cleanup.policy", "compact"), ("message.timestamp.type", "LogAppendTime")];
const KEYS: usize = 40;

/// More records than the old log had, so that the old offsets lie within the new one: only its id tells.
async fn write_another_log(topic: &Topic) -> Result<()> {
    let writer = topic.writer()?;
    for round in 0..4 {
        let records: Vec<_> = (0..KEYS)
            .map(|i| KeyValue::new(&format!("key-{}", 2 * i), &format!("new {i} of {round}")))
            .collect();
        try_join_all(records.iter().map(|record| writer.write_record(record))).await?;
    }
    Ok(())
}

async fn write_old_keys(api: &Api) -> Result<()> {
    let keys: Vec<_> = (0..KEYS).map(|i| format!("key-{i}")).collect();
    for answer in try_join_all(keys.iter().map(|key| api.set(key, "old"))).await? {
        answer.expect(200);
    }
    Ok(())
}

/// Every key is as [`write_another_log`] left it.
async fn has_the_other_log(node: &Node) {
    for i in 0..KEYS {
        node.has(&format!("key-{}", 2 * i), Some(&format!("new {i} of 3"))).await;
        if i % 2 == 1 && i < KEYS {
            node.has(&format!("key-{i}"), None).await;
        }
    }
}

pub async fn recreate(topic: &Topic) -> Result<()> {
    topic.delete().await?;
    // The nodes may be faster; and Kafka may still be at it.
    wait::until("the topic is there again", START, || async {
        match topic.create(4, &COMPACTED).await {
            Ok(()) => Ok(()),
            Err(error) if format!("{error:#}").contains("already exists") => Ok(()),
            Err(error) => Err(format!("{error:#}")),
        }
    })
    .await;
    Ok(())
}

async fn resyncs(node: &Node) -> Result<f64> {
    node.api().metric("bitacora_resyncs_total").await
}

/// Starts a node and reads keys until it is ready and caught up: no answer may say any of the `lost` is there. (Unless
/// Kafka were silent for a second: then the store of an earlier run answers.)
async fn start_and_never_see(node: &Node, lost: &[&str]) -> Result<()> {
    node.spawn()?;
    never_see_until_caught_up(node, lost).await
}

async fn never_see_until_caught_up(node: &Node, lost: &[&str]) -> Result<()> {
    let (api, mut asked) = (node.api(), 0);
    wait::until("it is caught up", START, || async {
        for key in lost {
            for answer in [api.get(key).await, api.get_own(key).await] {
                let Ok(answer) = answer else { continue };
                assert_ne!(answer.status, 200, "{key} came back: {answer}");
            }
        }
        let status = api.status().await.map_err(|error| format!("{error:#}"))?;
        if status["caught_up"] == true && status["ready"] == true { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
    for key in lost {
        asked += 1;
        node.has(key, None).await;
    }
    ensure!(asked == lost.len());
    Ok(())
}

async fn recreated_while_down_leaves_no_old_key(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster_with(1, Options::new()).await?;
    let node = &cluster.nodes[0];
    write_old_keys(&node.api()).await?;
    node.has("key-39", Some("old")).await;
    node.kill();
    recreate(&cluster.topic).await?;
    write_another_log(&cluster.topic).await?;
    start_and_never_see(node, &["key-1", "key-3", "key-39"]).await?;
    has_the_other_log(node).await;
    assert!((resyncs(node).await? - 1.0).abs() < 0.1);
    // And stays with it.
    node.kill();
    node.spawn()?;
    node.ready().await;
    has_the_other_log(node).await;
    assert!(resyncs(node).await?.abs() < 0.1);
    Ok(())
}

/// Reads two keys over and over: there is always an answer, and the old state never follows the new one.
async fn watch(api: &Api, done: &AtomicBool) -> Result<usize> {
    let (mut seen, mut reads) = (BTreeSet::new(), 0);
    while !done.load(Ordering::Relaxed) {
        let answer = api.get("key-0").await?;
        let state = match (answer.status, answer.value()) {
            (200, Some(value)) if value == "old" => 0,
            (404, _) => 1,
            (200, Some(value)) if value.starts_with("new") => 2,
            _ => panic!("no answer, or one of nobody: {answer}"),
        };
        assert!(seen.iter().all(|earlier| *earlier <= state), "after {seen:?}: {answer}");
        seen.insert(state);
        reads += 1;
    }
    Ok(reads)
}

async fn replaced_while_running(cluster: &Cluster, replace: impl AsyncFnOnce() -> Result<()>) -> Result<()> {
    write_old_keys(&cluster.nodes[0].api()).await?;
    // One that is watched too: it lies in another partition.
    for key in ["key-0", "key-39"] {
        cluster.all_have(key, Some("old")).await;
    }
    let done = AtomicBool::new(false);
    let change = async {
        replace().await?;
        for node in &cluster.nodes {
            has_the_other_log(node).await;
        }
        done.store(true, Ordering::Relaxed);
        anyhow::Ok(())
    };
    let (first, second) = (cluster.nodes[0].api(), cluster.nodes[1].api());
    let (changed, a, b) = tokio::join!(change, watch(&first, &done), watch(&second, &done));
    changed?;
    ensure!(a? > 10 && b? > 10, "the nodes were hardly read");
    for node in &cluster.nodes {
        assert!(resyncs(node).await? >= 1.0);
        let (api, key) = (node.api(), format!("written at {}", node.name));
        wait::until("it takes writes", START, || async {
            let answer = api.set(&key, "value").await.map_err(|error| format!("{error:#}"))?;
            if answer.status == 200 { Ok(()) } else { Err(answer.to_string()) }
        })
        .await;
        cluster.all_have(&key, Some("value")).await;
    }
    Ok(())
}

async fn recreated_while_running_replaces_stores(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster_with(2, Options::new()).await?;
    replaced_while_running(&cluster, async || {
        recreate(&cluster.topic).await?;
        write_another_log(&cluster.topic).await
    })
    .await
}

async fn another_kafka_cluster_replaces_the_stores(ctx: Ctx) -> Result<()> {
    let kafka = ctx.own_broker().await?;
    let (port, brokers) = (kafka.port, kafka.address());
    let cluster = ctx.cluster_with(2, Options::new().brokers(&brokers)).await?;
    let mut another = None;
    replaced_while_running(&cluster, async || {
        kafka.remove().await?;
        another = Some(ctx.another_broker(port).await?);
        wait::until("the topic is there", START, || async {
            match cluster.topic.create(4, &COMPACTED).await {
                Err(error) if !format!("{error:#}").contains("already exists") => Err(format!("{error:#}")),
                _ => Ok(()),
            }
        })
        .await;
        write_another_log(&cluster.topic).await
    })
    .await
}

async fn a_node_left_behind_is_rebuilt(ctx: Ctx) -> Result<()> {
    // A session that outlives the freeze. Kafka deletes records only where a policy allows it to.
    let options =
        Options::new().env("ZOOKEEPER_SESSION_TIMEOUT", "15000").env("ALLOW_UNCOMPACTED_TOPIC", "true");
    let mut cluster = ctx.no_nodes(options).await?;
    let policy = [("cleanup.policy", "compact,delete"), ("retention.ms", "-1"), COMPACTED[1]];
    cluster.topic.create(4, &policy).await?;
    for _ in 0..2 {
        cluster.add().await?.spawn()?;
    }
    cluster.formed().await;
    let [left, other] = &cluster.nodes[..] else { unreachable!("two nodes") };
    let api = other.api();
    for frozen in [false, true] {
        for key in ["gone", "still there"] {
            api.set(key, "value").await?.expect(200);
            left.has(key, Some("value")).await;
        }
        if frozen {
            left.pause()
        } else {
            left.kill()
        }
        api.delete("gone").await?.expect(200);
        // Every partition goes on, so that each start passes the node's offset.
        let keys: Vec<_> = (0..40).map(|i| format!("filler-{i}")).collect();
        for answer in try_join_all(keys.iter().map(|key| api.set(key, "value"))).await? {
            answer.expect(200);
        }
        cluster.topic.delete_records(4).await?;
        api.set("new", &format!("frozen: {frozen}")).await?.expect(200);
        if frozen {
            left.resume();
            // What it reads before it hears of it, it read before, too.
            left.has("gone", None).await;
        } else {
            start_and_never_see(left, &["gone"]).await?;
        }
        left.has("new", Some(&format!("frozen: {frozen}"))).await;
        // The log is the truth: what it lost is lost.
        left.has("still there", None).await;
        left.ready().await;
        assert!((resyncs(left).await? - if frozen { 2.0 } else { 1.0 }).abs() < 0.1);
    }
    Ok(())
}

/// The marker leaves the log while one node is down and one is frozen.
async fn a_long_deleted_key_never_comes_back(ctx: Ctx) -> Result<()> {
    let grace = Duration::from_secs(12);
    let options = Options::new()
        .env("DELETE_RETENTION", grace.as_millis())
        .env("ZOOKEEPER_SESSION_TIMEOUT", "40000")
        .env("EXTERNAL_REQUEST_TIMEOUT", "3000");
    let mut cluster = ctx.no_nodes(options).await?;
    let eager = [
        COMPACTED[0],
        COMPACTED[1],
        ("delete.retention.ms", "500"),
        ("segment.ms", "500"),
        ("min.cleanable.dirty.ratio", "0.001"),
    ];
    cluster.topic.create(1, &eager).await?;
    for _ in 0..3 {
        cluster.add().await?.spawn()?;
    }
    cluster.formed().await;
    let [down, frozen, other] = &cluster.nodes[..] else { unreachable!("three nodes") };
    let api = other.api();
    api.set("gone", "value").await?.expect(200);
    api.set("kept", "value").await?.expect(200);
    cluster.all_have("kept", Some("value")).await;
    cluster.all_have("gone", Some("value")).await;
    down.kill();
    frozen.pause();
    let since = std::time::Instant::now();
    // A tombstone, which Kafka itself removes in time.
    cluster.topic.writer()?.write(None, Some(b"gone"), None).await?;
    other.has("gone", None).await;
    let (mut filler, topic) = (0, cluster.topic.clone());
    while since.elapsed() < grace || topic.read_all().await?.iter().any(|record| record.key_text() == "gone")
    {
        ensure!(since.elapsed() < 10 * grace, "Kafka does not compact the topic");
        // Segments are closed by further writes.
        filler += 1;
        api.set("filler", &filler.to_string()).await?.expect(200);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    frozen.resume();
    never_see_until_caught_up(frozen, &["gone"]).await?;
    start_and_never_see(down, &["gone"]).await?;
    for node in [down, frozen] {
        node.has("kept", Some("value")).await;
        node.has("filler", Some(&filler.to_string())).await;
        assert!(resyncs(node).await? >= 1.0, "{} trusted its store", node.name);
    }
    assert!(resyncs(other).await?.abs() < 0.1, "a node that was there all the time keeps its store");
    Ok(())
}

fn copy_dir(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_dir(&entry.path(), &to)?;
        } else {
            std::fs::copy(entry.path(), to).context("copying a file")?;
        }
    }
    Ok(())
}

async fn an_older_backup_goes_on_from_its_own_offsets(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster_with(2, Options::new()).await?;
    let [node, other] = &cluster.nodes[..] else { unreachable!("two nodes") };
    let api = other.api();
    write_old_keys(&api).await?;
    cluster.all_have("key-39", Some("old")).await;
    node.terminate(Duration::from_secs(10)).await;
    let backup = ctx.dir.join("backup");
    copy_dir(&node.data_dir, &backup)?;
    node.spawn()?;
    node.ready().await;
    api.set("key-1", "newer").await?.expect(200);
    api.delete("key-2").await?.expect(200);
    node.has("key-1", Some("newer")).await;
    node.has("key-2", None).await;
    node.kill();
    api.set("key-3", "newest").await?.expect(200);
    node.wipe()?;
    copy_dir(&backup, &node.data_dir)?;
    node.spawn()?;
    node.ready().await;
    for (key, value) in
        [("key-1", Some("newer")), ("key-2", None), ("key-3", Some("newest")), ("key-4", Some("old"))]
    {
        node.has(key, value).await;
    }
    assert!(resyncs(node).await?.abs() < 0.1, "its own offsets lie in the log");
    Ok(())
}

async fn added_partitions_are_read_without_downtime(ctx: Ctx) -> Result<()> {
    let mut cluster = ctx.cluster_with(2, Options::new()).await?;
    let old = cluster.nodes[0].api();
    write_old_keys(&old).await?;
    cluster.all_have("key-39", Some("old")).await;
    let done = AtomicBool::new(false);
    let reads = async {
        let (api, mut reads) = (cluster.nodes[1].api(), 0);
        while !done.load(Ordering::Relaxed) {
            api.get("key-0").await?.expect(200);
            reads += 1;
        }
        anyhow::Ok(reads)
    };
    let change = async {
        cluster.topic.grow(12).await?;
        // By somebody who knows all partitions already, some keys for the first time.
        let writer = cluster.topic.writer()?;
        for i in 20..60 {
            writer.write_record(&KeyValue::new(&format!("key-{i}"), "foreign")).await?;
        }
        for i in 20..60 {
            cluster.all_have(&format!("key-{i}"), Some("foreign")).await;
        }
        for node in &cluster.nodes {
            let status = node.api().status().await?;
            ensure!(status["partitions"].as_array().is_some_and(|p| p.len() == 12), "{status}");
            // A delete, and a set over a record in another partition, count for the key.
            for i in (0..60).filter(|i| i % 3 != 0) {
                let key = format!("key-{i}");
                if i % 3 == 1 {
                    node.api().delete(&key).await?.expect(200);
                } else {
                    node.api().set(&key, &node.name).await?.expect(200);
                }
            }
        }
        done.store(true, Ordering::Relaxed);
        anyhow::Ok(())
    };
    let (reads, changed) = tokio::join!(reads, change);
    changed?;
    ensure!(reads? > 10, "the node was hardly read");
    for node in &cluster.nodes {
        assert!(resyncs(node).await?.abs() < 0.1, "nothing has to be built anew");
    }
    let mut partitions = BTreeMap::<_, BTreeSet<_>>::new();
    for record in cluster.topic.read_all().await? {
        partitions.entry(record.key_text()).or_default().insert(record.position.partition);
    }
    let moved = partitions.values().filter(|partitions| partitions.len() > 1).count();
    ensure!(moved > 10, "of 40 keys, {moved} lie in two partitions");
    // The same for a node that reads it all from the start, and for one that starts again.
    cluster.nodes[0].kill();
    cluster.nodes[0].spawn()?;
    cluster.add().await?.spawn()?;
    cluster.formed().await;
    let last = &cluster.nodes[1].name;
    for i in 0..60 {
        let value = match i % 3 {
            0 if i < 20 => Some("old"),
            0 => Some("foreign"),
            1 => None,
            _ => Some(last.as_str()),
        };
        cluster.all_have(&format!("key-{i}"), value).await;
    }
    Ok(())
}
