//! What is written on any node is there on every node, in the order of the log.

use std::collections::{BTreeSet, HashMap};

use anyhow::Result;
use e2e::runner::{Ctx, Test};
use e2e::tests;
use e2e::topic::{KeyValue, java_partition};
use futures_util::future::try_join_all;

pub fn tests() -> Vec<Test> {
    tests![
        Servers: a_value_set_on_any_node_is_read_on_every_node, keys_of_any_text_work, values_of_any_text_work,
            a_value_of_a_million_bytes_is_read_everywhere, a_delete_is_seen_everywhere,
            concurrent_writers_end_in_the_logs_order, keys_go_to_the_partition_that_java_chooses,
            a_key_expires_on_every_node
    ]
}

async fn a_value_set_on_any_node_is_read_on_every_node(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster().await?;
    for (n, writer) in cluster.nodes.iter().enumerate() {
        let api = writer.api();
        let writes = (0..50).map(|i| {
            let api = api.clone();
            async move { api.set(&format!("key-{n}-{i}"), &format!("value {i} of node {n}")).await }
        });
        for answer in try_join_all(writes).await? {
            let answer = answer.expect(200);
            assert_eq!(answer.json()["source"], 3, "the answer to a write is the written record: {answer}");
        }
    }
    for n in 0..cluster.nodes.len() {
        for i in 0..50 {
            cluster.all_have(&format!("key-{n}-{i}"), Some(&format!("value {i} of node {n}"))).await;
        }
    }
    // And over HTTP, with the headers that every answer about a key has.
    for node in &cluster.nodes {
        let answer = node.api().get("key-0-0").await?.expect(200);
        let record = answer.json();
        assert_eq!(record["key"], "key-0-0");
        assert_eq!(record["value"], "value 0 of node 0");
        assert_eq!(record["ttl"], 0, "{answer}");
        assert!(record["uuid"].as_str().is_some_and(|uuid| !uuid.is_empty()), "{answer}");
        assert!(matches!(answer.header("bitacora-source"), Some("store" | "cache")), "{answer}");
        assert_eq!(
            answer.header("bitacora-timestamp"),
            Some(record["timestamp"].to_string().as_str()),
            "the header and the body name one time: {answer}"
        );
        answer.position();
    }
    Ok(())
}

/// Everything that means something in a URL, in JSON or in a form, and text from everywhere.
const TEXTS: [&str; 16] = [
    "a&b=c%d+e/f",
    "100%",
    "%41",
    "a b",
    " leading and trailing ",
    "a?b#c;d",
    "../../etc/passwd",
    "\"quoted\" \\ {json}",
    "line\nbreak\ttab\r\n",
    "null\0inside",
    "é",
    "e\u{301}",
    "日本語のキー",
    "🦀👩‍👩‍👧‍👦",
    "\u{202e}right to left",
    "\u{feff}\u{10ffff}",
];

async fn keys_of_any_text_work(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster().await?;
    for (i, key) in TEXTS.iter().enumerate() {
        let writer = cluster.nodes[i % 3].api();
        let answer = writer.set(key, &format!("value {i}")).await?.expect(200);
        assert_eq!(answer.json()["key"], *key, "the answer names the key as it was given");
    }
    for (i, key) in TEXTS.iter().enumerate() {
        cluster.all_have(key, Some(&format!("value {i}"))).await;
    }
    // `é` and `e` with an accent are two keys; deleting one leaves the other.
    cluster.nodes[0].api().delete("é").await?.expect(200);
    cluster.all_have("é", None).await;
    cluster.all_have("e\u{301}", Some("value 11")).await;
    // What is in the log is the key's bytes, as they are.
    let records = cluster.topic.read_all().await?;
    let keys: BTreeSet<String> = records.iter().map(|record| record.key_text()).collect();
    assert_eq!(keys, TEXTS.iter().map(ToString::to_string).collect::<BTreeSet<_>>());
    Ok(())
}

async fn values_of_any_text_work(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster().await?;
    let api = cluster.nodes[0].api();
    for (i, value) in TEXTS.iter().enumerate() {
        api.set(&format!("key {i}"), value).await?.expect(200);
    }
    api.set("empty", "").await?.expect(200);
    for (i, value) in TEXTS.iter().enumerate() {
        cluster.all_have(&format!("key {i}"), Some(value)).await;
    }
    cluster.all_have("empty", Some("")).await;
    Ok(())
}

async fn a_value_of_a_million_bytes_is_read_everywhere(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster().await?;
    // Text that neither Kafka's compression nor a repeating pattern makes small.
    let mut state = 1_u64;
    let big: String = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        char::from(b'!' + ((state >> 33) % 90) as u8)
    })
    .take(1_000_000)
    .collect();
    cluster.nodes[0].api().set("big", &big).await?.expect(200);
    cluster.nodes[1].api().set("small", "after the big one").await?.expect(200);
    cluster.all_have("big", Some(&big)).await;
    cluster.all_have("small", Some("after the big one")).await;
    Ok(())
}

async fn a_delete_is_seen_everywhere(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster().await?;
    cluster.nodes[0].api().set("key", "value").await?.expect(200);
    cluster.all_have("key", Some("value")).await;
    let deleted = cluster.nodes[1].api().delete("key").await?.expect(200);
    cluster.all_have("key", None).await;
    for node in &cluster.nodes {
        let answer = node.api().get("key").await?.expect(404);
        assert_eq!(answer.message(), "Key key not found");
        assert_eq!(answer.position(), deleted.position(), "a 404 carries the delete marker's position");
        assert!(answer.header("bitacora-timestamp").is_some(), "a delete marker has a time: {answer}");
    }
    // A key that never was is deleted just as well.
    cluster.nodes[2].api().delete("never was").await?.expect(200);
    let answer = cluster.nodes[2].api().get("never was at all").await?.expect(404);
    assert_eq!(answer.message(), "Key never was at all not found");
    assert_eq!(answer.header("bitacora-timestamp"), None, "what never was has no time: {answer}");
    answer.position();
    // And it can be set again.
    cluster.nodes[2].api().set("key", "again").await?.expect(200);
    cluster.all_have("key", Some("again")).await;
    Ok(())
}

async fn concurrent_writers_end_in_the_logs_order(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster().await?;
    let keys = ["one", "two", "three", "four", "five"];
    let writers = cluster.nodes.iter().enumerate().flat_map(|(n, node)| {
        keys.iter().map(move |key| {
            let api = node.api();
            async move {
                for i in 0..30 {
                    let value = format!("{i} of node {n}");
                    // Every seventh is a delete, so that the end can be either.
                    let answer =
                        if i % 7 == 6 { api.delete(key).await? } else { api.set(key, &value).await? };
                    answer.expect(200);
                }
                anyhow::Ok(())
            }
        })
    });
    try_join_all(writers).await?;
    let mut last: HashMap<String, KeyValue> = HashMap::new();
    let records = cluster.topic.read_all().await?;
    assert_eq!(records.len(), 3 * 5 * 30, "each write is one record");
    for record in records {
        last.insert(record.key_text(), KeyValue::from_avro(record.value.as_deref().unwrap_or_default())?);
    }
    for key in keys {
        let record = &last[key];
        let value = (record.ttl != -1).then_some(record.value.as_str());
        cluster.all_have(key, value).await;
    }
    Ok(())
}

async fn keys_go_to_the_partition_that_java_chooses(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster().await?;
    let mut answers = HashMap::new();
    for i in 0..120 {
        // Lengths of every remainder by four, as the hash takes four bytes at a time.
        let key = format!("{}-{i}-é", "k".repeat(i % 9));
        let answer = cluster.nodes[i % 3].api().set(&key, "value").await?.expect(200);
        answers.insert(key, answer);
    }
    let mut used = BTreeSet::new();
    for record in cluster.topic.read_all().await? {
        let key = record.key_text();
        let answer = answers.remove(&key).unwrap_or_else(|| panic!("{key:?} was not written, or once only"));
        assert_eq!(record.position, answer.position(), "the write of {key:?} answered its place in the log");
        assert_eq!(record.position.partition, java_partition(key.as_bytes(), 4), "the partition of {key:?}");
        assert_eq!(
            answer.json()["timestamp"],
            record.timestamp,
            "the answer's timestamp is the log's: {answer}"
        );
        used.insert(record.position.partition);
    }
    assert!(answers.is_empty(), "not in the log: {:?}", answers.keys());
    assert_eq!(used, BTreeSet::from([0, 1, 2, 3]), "all partitions are used");
    Ok(())
}

async fn a_key_expires_on_every_node(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster().await?;
    let api = cluster.nodes[0].api();
    let answer = api.set_with("short", "value", "&ttl=3s").await?.expect(200);
    api.set_with("long", "value", "&ttl=2h").await?.expect(200);
    cluster.all_have("short", Some("value")).await;
    cluster.all_have("long", Some("value")).await;
    let expires = answer.json()["ttl"].as_i64().expect("ttl is a number");
    cluster.all_have("short", None).await;
    assert!(e2e::topic::now_ms() >= expires, "it was gone before its time");
    cluster.all_have("long", Some("value")).await;
    Ok(())
}
