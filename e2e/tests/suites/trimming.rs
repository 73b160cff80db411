//! The log is trimmed of what is long dead, and no write is lost to it, also after Kafka's own compaction.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::cluster::{Cluster, Options, START};
use e2e::http::{Answer, Position};
use e2e::process::tail;
use e2e::runner::{Ctx, Test};
use e2e::topic::{KeyValue, Record, now_ms};
use e2e::{tests, wait};
use futures_util::future::try_join_all;

pub fn tests() -> Vec<Test> {
    tests![
        Servers: the_long_dead_leave_log_and_stores,
            a_late_tombstone_loses_nothing_in_compaction,
            writes_that_race_with_the_trimmer_are_never_lost, a_dead_trimmers_place_is_taken,
            what_was_held_up_for_too_long_brings_nothing_back,
            a_topic_without_time_to_repair_is_not_trimmed
    ]
}

const RETENTION: Duration = Duration::from_secs(2);
const PARTITIONS: i32 = 2;
/// The cleaner looks for work every 15 s.
const COMPACTION: Duration = Duration::from_secs(120);

/// Three nodes on a topic that is compacted as soon as Kafka can.
async fn cluster(ctx: &Ctx) -> Result<Cluster> {
    let options = Options::new()
        .env("DELETE_RETENTION", format!("{}ms", RETENTION.as_millis()))
        .env("MIN_COMPACTION_LAG", "2s");
    let mut cluster = ctx.no_nodes(options).await?;
    let config = [
        ("cleanup.policy", "compact"),
        ("message.timestamp.type", "LogAppendTime"),
        ("min.compaction.lag.ms", "2000"),
        ("max.compaction.lag.ms", "4000"),
        ("delete.retention.ms", "2000"),
        ("segment.ms", "1000"),
        ("min.cleanable.dirty.ratio", "0"),
    ];
    cluster.topic.create(PARTITIONS, &config).await?;
    for _ in 0..3 {
        cluster.add().await?.spawn()?;
    }
    cluster.formed().await;
    Ok(cluster)
}

fn header<'a>(record: &'a Record, name: &str) -> Option<&'a str> {
    let (_, value) = record.headers.iter().find(|(found, _)| found == name)?;
    std::str::from_utf8(value).ok()
}

async fn all_records(cluster: &Cluster) -> Result<Vec<Record>, String> {
    cluster.topic.read_all().await.map_err(|error| format!("{error:#}"))
}

async fn records(cluster: &Cluster, key: &str) -> Result<Vec<Record>, String> {
    let all = all_records(cluster).await?;
    Ok(all.into_iter().filter(|record| record.key_text() == key).collect())
}

/// Writes on in every partition, so that Kafka begins new segments and may compact the others, until `not_yet` has nothing
/// to say of the log's records.
async fn compacted(cluster: &Cluster, not_yet: impl Fn(&[Record]) -> Option<String>) -> Result<()> {
    let writer = cluster.topic.writer()?;
    let (writer, not_yet) = (&writer, &not_yet);
    wait::until("Kafka has compacted the topic", COMPACTION, || async move {
        for partition in 0..PARTITIONS {
            let filler = KeyValue::new(&format!("filler {partition}"), "value");
            let value = filler.to_avro();
            let written = writer.write(Some(partition), Some(filler.key.as_bytes()), Some(&value));
            written.await.map_err(|error| format!("{error:#}"))?;
        }
        not_yet(&all_records(cluster).await?).map_or(Ok(()), Err)
    })
    .await;
    Ok(())
}

/// The nodes that say that they trim.
async fn trimmers(cluster: &Cluster) -> Result<Vec<usize>, String> {
    let mut found = Vec::new();
    for (number, node) in cluster.nodes.iter().enumerate().filter(|(_, node)| node.is_running()) {
        let trims = node.api().metric("bitacora_trimmer").await.map_err(|error| format!("{error:#}"))?;
        if trims > 0.5 {
            found.push(number);
        }
    }
    Ok(found)
}

async fn one_trimmer(cluster: &Cluster) -> usize {
    wait::until("one node trims", START, || async {
        match trimmers(cluster).await?.as_slice() {
            [one] => Ok(*one),
            several => Err(format!("{several:?} do")),
        }
    })
    .await
}

/// Waits until no running node has anything of a key in its store: not even a delete marker, whose time would be told.
async fn forgotten(cluster: &Cluster, key: &str) {
    for node in cluster.nodes.iter().filter(|node| node.is_running()) {
        wait::until(&format!("{} has forgotten {key:?}", node.name), START, || async {
            let answer = node.api().get_own(key).await.map_err(|error| format!("{error:#}"))?;
            if answer.status == 404 && answer.header("bitacora-timestamp").is_none() {
                Ok(())
            } else {
                Err(answer.to_string())
            }
        })
        .await;
    }
}

async fn the_long_dead_leave_log_and_stores(ctx: Ctx) -> Result<()> {
    let cluster = cluster(&ctx).await?;
    one_trimmer(&cluster).await;
    let api = cluster.nodes[0].api();
    let mut dead = Vec::new();
    for key in ["deleted", "deleted/ü"] {
        api.set(key, "value").await?.expect(200);
        dead.push((key, api.delete(key).await?.expect(200).position()));
    }
    dead.push(("expired", api.set_with("expired", "value", "&ttl=1ms").await?.expect(200).position()));
    api.set_with("lives", "value", "&ttl=1h").await?.expect(200);
    for (key, of) in &dead {
        forgotten(&cluster, key).await;
        let records = records(&cluster, key).await.map_err(anyhow::Error::msg)?;
        let trim = records.iter().find(|record| header(record, "bitacora-trim").is_some());
        let trim = trim.with_context(|| format!("no tombstone of {key:?} in {records:?}"))?;
        let condition = header(trim, "bitacora-trim").context("no header")?;
        // And which log that is of.
        let [offset, until, _] = condition.split(':').collect::<Vec<_>>()[..] else {
            bail!("{condition} is no condition")
        };
        assert_eq!(offset, of.offset.to_string(), "{trim:?}");
        ensure!(until.parse::<i64>()? > now_ms(), "{trim:?}");
        assert_eq!((trim.position.partition, trim.value.as_ref()), (of.partition, None), "{trim:?}");
    }
    for node in &cluster.nodes {
        let swept = node.api().metric("bitacora_keys_swept_total").await?;
        ensure!(swept > 0.0, "{} did not sweep what has expired", node.name);
    }
    // Another writer's tombstone is forgotten by the stores and needs no other.
    api.set("null", "value").await?.expect(200);
    cluster.all_have("null", Some("value")).await;
    cluster.topic.writer()?.write(None, Some(b"null"), None).await?;
    cluster.all_have("null", None).await;
    forgotten(&cluster, "null").await;
    let nulls = records(&cluster, "null").await.map_err(anyhow::Error::msg)?;
    ensure!(nulls.iter().all(|record| record.headers.is_empty()), "{nulls:?}");
    // In the end the log holds nothing of them, and all that lives.
    let gone = ["deleted", "deleted/ü", "expired", "null"];
    compacted(&cluster, |records| {
        let left = records.iter().find(|record| gone.contains(&record.key_text().as_str()));
        left.map(|record| format!("{record:?}"))
    })
    .await?;
    cluster.all_have("lives", Some("value")).await;
    Ok(())
}

/// What a node's own store says of a key, all of it.
fn said(answer: &Answer) -> (u16, Option<String>, Position, Option<String>) {
    let timestamp = answer.header("bitacora-timestamp").map(str::to_string);
    (answer.status, answer.value(), answer.position(), timestamp)
}

async fn a_late_tombstone_loses_nothing_in_compaction(ctx: Ctx) -> Result<()> {
    let mut cluster = cluster(&ctx).await?;
    let api = cluster.nodes[0].api();
    let old = api.set("key", "old").await?.expect(200).position();
    let new = api.set("key", "new").await?.expect(200);
    cluster.all_have("key", Some("new")).await;
    let held = said(&cluster.nodes[0].api().get_own("key").await?);
    assert_eq!(held.2, new.position());
    // A trimmer that decided before the second write, and a node that repaired the first one as late.
    let writer = cluster.topic.writer()?;
    let old_value = KeyValue::new("key", "old").to_avro();
    let (offset, until) = (old.offset, now_ms() + 60_000);
    let trim = ("bitacora-trim", format!("{offset}:{until}"));
    let repair = ("bitacora-repair", format!("{offset}:{}:{until}", now_ms()));
    let late = [
        writer.write_with(old.partition, b"key", None, (trim.0, &trim.1)).await?,
        writer.write_with(old.partition, b"key", Some(&old_value), (repair.0, &repair.1)).await?,
    ];
    // Somebody writes the second one once more, behind them, as it was.
    let of = new.position().offset;
    let repaired = wait::until("it is repaired", START, || async {
        let records = records(&cluster, "key").await?;
        let says = |record: &&Record| {
            header(record, "bitacora-repair").is_some_and(|value| value.starts_with(&format!("{of}:")))
        };
        let repair = records.iter().rfind(says).cloned();
        repair.filter(|repair| repair.position.offset > late[1].offset).ok_or(format!("{records:?}"))
    })
    .await;
    let value = KeyValue::from_avro(repaired.value.as_deref().unwrap_or_default())?;
    assert_eq!((value.value.as_str(), Some(&value.uuid)), ("new", uuid(&new).as_ref()));
    // Then compaction takes all that was before.
    compacted(&cluster, |records| {
        let before = |record: &&Record| {
            record.key_text() == "key" && record.position.offset < repaired.position.offset
        };
        records.iter().find(before).map(|record| format!("{record:?}"))
    })
    .await?;
    cluster.add().await?.spawn()?;
    cluster.formed().await;
    for node in &cluster.nodes {
        node.has("key", Some("new")).await;
        assert_eq!(said(&node.api().get_own("key").await?), held, "{}", node.name);
    }
    Ok(())
}

/// A trimmer, or a node that repairs, may be suspended between what it saw and what it sends.
async fn what_was_held_up_for_too_long_brings_nothing_back(ctx: Ctx) -> Result<()> {
    let mut cluster = cluster(&ctx).await?;
    one_trimmer(&cluster).await;
    let api = cluster.nodes[0].api();
    let keys = ["a late repair", "nonsense", "a late trim"];
    let mut of = Vec::new();
    for key in keys {
        of.push(api.set(key, "value").await?.expect(200).position());
        api.delete(key).await?.expect(200);
    }
    for key in keys {
        forgotten(&cluster, key).await;
    }
    let of_live = api.set("lives", "value").await?.expect(200).position();
    let (writer, past) = (cluster.topic.writer()?, now_ms() - 1);
    let value = KeyValue::new(keys[0], "value").to_avro();
    let repair = format!("{}:{past}:{past}", of[0].offset);
    writer
        .write_with(of[0].partition, keys[0].as_bytes(), Some(&value), ("bitacora-repair", &repair))
        .await?;
    writer.write(Some(of[1].partition), Some(keys[1].as_bytes()), Some(b"no record")).await?;
    for (key, of) in [(keys[2], of[2]), ("lives", of_live)] {
        let trim = format!("{}:{past}", of.offset);
        writer.write_with(of.partition, key.as_bytes(), None, ("bitacora-trim", &trim)).await?;
    }
    // Nor does that stay in the log, where it would stand for what had decided before; others' nonsense is left alone.
    compacted(&cluster, |records| {
        let is_left = |record: &&Record| record.key_text() == keys[0] || record.key_text() == keys[2];
        records.iter().find(is_left).map(|record| format!("{record:?}"))
    })
    .await?;
    cluster.add().await?.spawn()?;
    cluster.formed().await;
    for key in keys {
        forgotten(&cluster, key).await;
    }
    cluster.all_have("lives", Some("value")).await;
    let nonsense = records(&cluster, keys[1]).await.map_err(anyhow::Error::msg)?;
    ensure!(
        nonsense.last().is_some_and(|record| record.value.as_deref() == Some(b"no record")),
        "{nonsense:?}"
    );
    Ok(())
}

fn uuid(answer: &Answer) -> Option<String> {
    answer.json()["uuid"].as_str().map(str::to_string)
}

async fn writes_that_race_with_the_trimmer_are_never_lost(ctx: Ctx) -> Result<()> {
    const KEYS: i64 = 100;
    const ROUNDS: i64 = 4;
    let mut cluster = cluster(&ctx).await?;
    one_trimmer(&cluster).await;
    let retention = RETENTION.as_millis() as i64;
    let last = |key: i64| format!("value {key} of round {}", ROUNDS - 1);
    let writers = (0..KEYS).map(|key| {
        let apis: Vec<_> = cluster.nodes.iter().map(e2e::cluster::Node::api).collect();
        async move {
            let name = format!("key {key}");
            for round in 0..ROUNDS {
                let api = &apis[((key + round) % 3) as usize];
                api.delete(&name).await?.expect(200);
                // About when its marker is old enough for the trimmer.
                let then = now_ms() + retention + (key * 37 + round * 501) % 1_500;
                wait::until("the marker is old", START, || async {
                    if now_ms() >= then { Ok(()) } else { Err("not yet".to_string()) }
                })
                .await;
                api.set(&name, &format!("value {key} of round {round}")).await?.expect(200);
            }
            anyhow::Ok(())
        }
    });
    try_join_all(writers).await?;
    let mut trimmed = 0.0;
    for node in &cluster.nodes {
        trimmed += node.api().metric("bitacora_records_trimmed_total").await?;
    }
    ensure!(trimmed > 0.0, "nothing was trimmed, so nothing raced");
    // Kafka compacts until each key has one record left; a node that knows nothing else agrees with those that saw it all.
    compacted(&cluster, |records| {
        let left = records.iter().filter(|record| record.key_text().starts_with("key ")).count();
        (left as i64 != KEYS).then(|| format!("{left} records of {KEYS} keys"))
    })
    .await?;
    cluster.add().await?.spawn()?;
    cluster.formed().await;
    for key in 0..KEYS {
        cluster.all_have(&format!("key {key}"), Some(&last(key))).await;
    }
    Ok(())
}

async fn a_dead_trimmers_place_is_taken(ctx: Ctx) -> Result<()> {
    let cluster = cluster(&ctx).await?;
    let first = one_trimmer(&cluster).await;
    let znode = cluster.zk().await.znode("/bitacora/trimmer").await.map_err(anyhow::Error::msg)?;
    let znode = znode.context("the trimmer has no znode")?;
    assert_eq!(znode.data, format!("127.0.0.1:{}", cluster.nodes[first].api_port));
    assert_ne!(znode.owner, 0, "it is ephemeral");
    cluster.nodes[first].kill();
    let second = one_trimmer(&cluster).await;
    assert_ne!(second, first);
    // One that leaves makes room at once, for one of two that run.
    cluster.nodes[first].spawn()?;
    cluster.nodes[first].ready().await;
    cluster.nodes[second].terminate(START).await;
    let third = one_trimmer(&cluster).await;
    let api = cluster.nodes[third].api();
    api.set("key", "value").await?.expect(200);
    api.delete("key").await?.expect(200);
    forgotten(&cluster, "key").await;
    Ok(())
}

async fn a_topic_without_time_to_repair_is_not_trimmed(ctx: Ctx) -> Result<()> {
    let mut cluster = ctx.no_nodes(Options::new().env("DELETE_RETENTION", "1s")).await?;
    cluster
        .topic
        .create(1, &[("cleanup.policy", "compact"), ("message.timestamp.type", "LogAppendTime")])
        .await?;
    cluster.add().await?.spawn()?;
    cluster.formed().await;
    let node = &cluster.nodes[0];
    node.api().set("key", "value").await?.expect(200);
    node.api().delete("key").await?.expect(200);
    wait::until("it says why", START, || async {
        let text = tail(&node.log, 100);
        let told = text.lines().find(|line| line.contains("is not trimmed"));
        match told {
            Some(line) if line.contains("min.compaction.lag.ms=0") => Ok(()),
            _ => Err(text),
        }
    })
    .await;
    assert!(trimmers(&cluster).await.map_err(anyhow::Error::msg)?.is_empty());
    wait::holds("the marker stays", Duration::from_secs(4), || async {
        match records(&cluster, "key").await?.last() {
            Some(record) if record.value.is_some() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    Ok(())
}
