//! The topic holds exactly the records of the contract, as readers that share no code with the node see them.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Cluster, START};
use e2e::http::{Answer, Position};
use e2e::runner::{Ctx, Test};
use e2e::topic::{KeyValue, now_ms};
use e2e::{java, tests, wait};
use serde_json::{Value, json};

pub fn tests() -> Vec<Test> {
    tests![
        Servers: the_topic_holds_the_contracts_records, the_topic_is_created_compacted,
            kafkas_tools_see_how_far_each_node_is;
        ServersAndJava: javas_own_libraries_read_the_same_records,
            records_of_javas_own_libraries_are_served
    ]
}

async fn kafkas_tools_see_how_far_each_node_is(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster().await?;
    write_some(&cluster).await?;
    let records = cluster.topic.read_all().await?;
    for node in &cluster.nodes {
        // The group's name by default; see KAFKA_GROUP.
        let group = format!("bitacora-127.0.0.1:{}", node.api_port);
        wait::until(&format!("{group} has committed every offset"), START, || async {
            let committed = cluster.topic.committed(&group).await.map_err(|error| format!("{error:#}"))?;
            // A partition without records has nothing to tell.
            let behind = records.iter().find(|record| {
                let next = committed.get(&record.position.partition).copied().unwrap_or_default();
                next <= record.position.offset
            });
            behind.map_or(Ok(()), |record| Err(format!("{committed:?} is before {:?}", record.position)))
        })
        .await;
    }
    Ok(())
}

struct Write {
    key: &'static str,
    value: String,
    /// Relative, in ms; `None`: for ever.
    ttl: Option<i64>,
    delete: bool,
    /// When it was sent and when it was answered.
    between: (i64, i64),
    answer: Answer,
}

async fn write_some(cluster: &Cluster) -> Result<Vec<Write>> {
    let long = "x".repeat(100_000);
    let writes: [(&str, Option<&str>, Option<i64>); 10] = [
        ("plain", Some("value"), None),
        ("empty", Some(""), None),
        ("clé ☃ 🦀", Some("välue ☃ \"quoted\"\n"), None),
        ("a&b=c%d+e/f", Some("a&b=c%d+e/f"), None),
        ("long", Some(&long), None),
        ("for two hours", Some("value"), Some(7_200_000)),
        ("for ten minutes", Some("value"), Some(600_000)),
        ("plain", Some("overwritten"), None),
        ("plain", None, None),
        ("never was", None, None),
    ];
    let mut written = Vec::new();
    for (i, (key, value, ttl)) in writes.into_iter().enumerate() {
        let api = cluster.nodes[i % 3].api();
        let before = now_ms();
        let answer = match (value, ttl) {
            (Some(value), None) => api.set(key, value).await?,
            (Some(value), Some(7_200_000)) => api.set_with(key, value, "&ttl=2h").await?,
            (Some(value), Some(ttl)) => api.set_with(key, value, &format!("&ttl={ttl}ms")).await?,
            (None, _) => api.delete(key).await?,
        };
        let between = (before, now_ms());
        let value = value.unwrap_or_default().to_string();
        let delete = writes[i].1.is_none();
        written.push(Write { key, value, ttl, delete, between, answer: answer.expect(200) });
    }
    Ok(written)
}

/// Compares one decoded record with what was written.
fn check(write: &Write, record: &KeyValue) {
    let shown = |text: &str| text.chars().take(60).collect::<String>();
    let what = format!("{:?} as {:?}", write.key, shown(&write.value));
    assert_eq!(record.key, write.key, "key of {what}");
    assert!(record.value == write.value, "value of {what}: {:?}", shown(&record.value));
    assert_eq!(record.source, 3, "source of {what}: a producer's");
    let (sent, answered) = write.between;
    assert!((sent..=answered).contains(&record.timestamp), "timestamp of {what}: {record:?}");
    match (write.delete, write.ttl) {
        (true, _) => assert_eq!(record.ttl, -1, "ttl of a delete marker"),
        (false, None) => assert_eq!(record.ttl, 0, "ttl of {what}: for ever"),
        (false, Some(ttl)) => {
            assert!(
                (sent + ttl..=answered + ttl).contains(&record.ttl),
                "ttl of {what} is absolute: {record:?}"
            );
            assert_eq!(write.answer.json()["ttl"], record.ttl, "the answer's ttl is the log's");
        }
    }
    assert!(!record.uuid.is_empty(), "uuid of {what}");
    if !write.delete {
        assert_eq!(write.answer.json()["uuid"], record.uuid.as_str(), "the answer's uuid is the log's");
    }
}

async fn the_topic_holds_the_contracts_records(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster().await?;
    let writes = write_some(&cluster).await?;
    let records = cluster.topic.read_all().await?;
    assert_eq!(records.len(), writes.len(), "one record a write, and nothing else: {records:?}");
    let mut uuids = std::collections::BTreeSet::new();
    for write in &writes {
        let position = write.answer.position();
        let record = records.iter().find(|record| record.position == position);
        let record = record.with_context(|| format!("nothing at {position:?}"))?;
        assert_eq!(record.key.as_deref(), Some(write.key.as_bytes()), "the record's key is the key's bytes");
        let value = record.value.as_deref().context("a delete marker is a record, never a null value")?;
        let decoded = KeyValue::from_avro(value)?;
        check(write, &decoded);
        assert_eq!(decoded.to_avro(), value, "the bytes are those that Avro's own encoder writes");
        uuids.insert(decoded.uuid);
    }
    assert_eq!(uuids.len(), writes.len(), "every record has a uuid of its own");
    Ok(())
}

async fn the_topic_is_created_compacted(ctx: Ctx) -> Result<()> {
    // Three nodes start at once on a topic that is not there: one makes it, the others find it.
    let cluster = ctx.cluster().await?;
    let config = cluster.topic.describe().await?;
    assert_eq!(config.get("cleanup.policy").map(String::as_str), Some("compact"), "{config:?}");
    assert_eq!(config.get("message.timestamp.type").map(String::as_str), Some("LogAppendTime"), "{config:?}");
    for node in &cluster.nodes {
        let status = node.api().status().await?;
        assert_eq!(status["partitions"].as_array().map(Vec::len), Some(4), "{status}");
    }
    Ok(())
}

async fn javas_own_libraries_read_the_same_records(ctx: Ctx) -> Result<()> {
    let class_path = java::class_path("java").await?;
    let cluster = ctx.cluster().await?;
    let writes = write_some(&cluster).await?;
    let output = java::program(&class_path, "ReadTopic")
        .args([&cluster.topic.brokers, &cluster.topic.name])
        .output()
        .await
        .context("running ReadTopic")?;
    ensure!(output.status.success(), "ReadTopic failed:\n{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).context("ReadTopic prints UTF-8")?;
    let mut read: HashMap<(i64, i64), Value> = HashMap::new();
    for line in text.lines() {
        let record: Value =
            serde_json::from_str(line).with_context(|| format!("ReadTopic printed {line:?}"))?;
        let number = |name: &str| record[name].as_i64().with_context(|| format!("no {name} in {line:?}"));
        read.insert((number("partition")?, number("offset")?), record);
    }
    assert_eq!(read.len(), writes.len(), "one record a write, and nothing else");
    for write in &writes {
        let Position { partition, offset } = write.answer.position();
        let record = read
            .get(&(partition.into(), offset))
            .with_context(|| format!("nothing at {partition}:{offset}"))?;
        assert_eq!(record["kafkaKey"], write.key, "the record's key is the key's bytes");
        assert_eq!(record["javaPartition"], partition, "Kafka's own partitioner agrees on {:?}", write.key);
        let long = |name: &str| record[name].as_i64().with_context(|| format!("no {name} in {record}"));
        let text = |name: &str| record[name].as_str().with_context(|| format!("no {name} in {record}"));
        let decoded = KeyValue {
            key: text("key")?.to_string(),
            value: text("value")?.to_string(),
            timestamp: long("timestamp")?,
            source: i32::try_from(long("source")?)?,
            ttl: long("ttl")?,
            uuid: text("uuid")?.to_string(),
        };
        check(write, &decoded);
    }
    Ok(())
}

async fn records_of_javas_own_libraries_are_served(ctx: Ctx) -> Result<()> {
    let class_path = java::class_path("java").await?;
    let cluster = ctx.cluster().await?;
    cluster.nodes[0].api().set("deleted by Java", "value").await?.expect(200);
    let long = "clé ☃ 🦀 ".repeat(10_000);
    let later = now_ms() + 3_600_000;
    let records = [
        ("plain", "value", 0, Some("value")),
        ("empty", "", 0, Some("")),
        (
            "clé ☃ 🦀 e\u{301}",
            "välue ☃ \u{10ffff} \"quoted\"\n\0",
            0,
            Some("välue ☃ \u{10ffff} \"quoted\"\n\0"),
        ),
        ("long", &long, 0, Some(long.as_str())),
        ("for an hour", "value", later, Some("value")),
        ("expired", "value", now_ms() - 1000, None),
        ("deleted by Java", "", -1, None),
    ];
    let mut input = String::new();
    for (number, (key, value, ttl, _)) in records.iter().enumerate() {
        let record = json!({
            "key": key, "value": value, "timestamp": number, "source": 3, "ttl": ttl, "uuid": format!("uuid {number}"),
        });
        input.push_str(&format!("{record}\n"));
    }
    let file = ctx.dir.join("records.json");
    std::fs::write(&file, input).context("writing the records")?;
    let output = java::program(&class_path, "WriteTopic")
        .args([&cluster.topic.brokers, &cluster.topic.name])
        .stdin(std::fs::File::open(&file).context("opening the records")?)
        .output()
        .await
        .context("running WriteTopic")?;
    ensure!(output.status.success(), "WriteTopic failed:\n{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).context("WriteTopic prints UTF-8")?;
    let positions: Vec<&str> = text.lines().collect();
    assert_eq!(positions.len(), records.len(), "a position a record: {text}");
    for (number, (key, _, ttl, expected)) in records.iter().enumerate() {
        cluster.all_have(key, *expected).await;
        for node in &cluster.nodes {
            let answer = node.api().get_own(key).await?;
            let Position { partition, offset } = answer.position();
            assert_eq!(format!("{partition}:{offset}"), positions[number], "the position of {key:?}");
            if expected.is_some() {
                assert_eq!(answer.json()["uuid"], format!("uuid {number}"), "{answer}");
                assert_eq!(answer.json()["ttl"], *ttl, "{answer}");
            }
        }
    }
    Ok(())
}
