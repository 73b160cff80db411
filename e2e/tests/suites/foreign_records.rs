//! Records that other programs write are served; what is no record is skipped.

use std::time::Duration;

use anyhow::Result;
use e2e::cluster::Options;
use e2e::runner::{Ctx, Test};
use e2e::topic::{KeyValue, now_ms};
use e2e::{tests, wait};

pub fn tests() -> Vec<Test> {
    tests![
        Servers: records_of_other_programs_are_served, markers_and_nulls_of_other_programs_delete,
            a_poison_record_is_counted_and_skipped, records_without_a_key_are_counted
    ]
}

async fn records_of_other_programs_are_served(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster().await?;
    let writer = cluster.topic.writer()?;
    let mut plain = KeyValue::new("from elsewhere ☃", "välue");
    // What the original system's own nodes put there.
    plain.source = 1;
    plain.timestamp = 1_400_000_000_000;
    let position = writer.write_record(&plain).await?;
    let mut lasting = KeyValue::new("lasting", "value");
    lasting.ttl = now_ms() + 3_600_000;
    writer.write_record(&lasting).await?;
    let mut expired = KeyValue::new("expired", "value");
    expired.ttl = now_ms() - 1000;
    writer.write_record(&expired).await?;
    writer.write_record(&KeyValue::new("last", "value")).await?;
    for key in ["last", "lasting"] {
        cluster.all_have(key, Some("value")).await;
    }
    cluster.all_have(&plain.key, Some("välue")).await;
    cluster.all_have("expired", None).await;
    for node in &cluster.nodes {
        let answer = node.api().get(&plain.key).await?.expect(200);
        assert_eq!(answer.position(), position);
        assert_eq!(answer.json()["uuid"], plain.uuid.as_str(), "{answer}");
        let timestamp = answer.json()["timestamp"].as_i64().unwrap_or_default();
        assert!(
            timestamp > 1_700_000_000_000,
            "the write timestamp is the log's, not the writer's: {answer}"
        );
    }
    // A node overwrites it like any other.
    cluster.nodes[1].api().set(&plain.key, "ours").await?.expect(200);
    cluster.all_have(&plain.key, Some("ours")).await;
    Ok(())
}

async fn markers_and_nulls_of_other_programs_delete(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster().await?;
    let writer = cluster.topic.writer()?;
    let api = cluster.nodes[0].api();
    for key in ["null", "marker"] {
        api.set(key, "value").await?.expect(200);
        cluster.all_have(key, Some("value")).await;
    }
    let null = writer.write(None, Some(b"null"), None).await?;
    let mut marker = KeyValue::new("marker", "");
    marker.ttl = -1;
    let marker = writer.write_record(&marker).await?;
    for (key, position) in [("null", null), ("marker", marker)] {
        cluster.all_have(key, None).await;
        for node in &cluster.nodes {
            let answer = node.api().get(key).await?.expect(404);
            assert_eq!(answer.position(), position, "a 404 carries the delete's position: {answer}");
        }
    }
    // A null for a key that never was is nothing.
    writer.write(None, Some(b"never was"), None).await?;
    cluster.all_have("never was", None).await;
    api.set("null", "again").await?.expect(200);
    cluster.all_have("null", Some("again")).await;
    Ok(())
}

async fn a_poison_record_is_counted_and_skipped(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster().await?;
    let writer = cluster.topic.writer()?;
    for partition in 0..4 {
        writer.write(Some(partition), Some(b"seen"), None).await?;
    }
    cluster.nodes[0].api().set("poisoned", "value before").await?.expect(200);
    cluster.all_have("poisoned", Some("value before")).await;

    let good = KeyValue::new("poisoned", "a value that must not be seen").to_avro();
    let mut trailing = good.clone();
    trailing.extend_from_slice(b"more");
    let mut not_text = good.clone();
    // Inside the value.
    let inside = not_text.len() / 2 - 10;
    not_text[inside] = 0xff;
    let huge_length = [&[0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f][..], b"abc"].concat();
    let key = b"poisoned";
    let poison: [(&str, Option<&[u8]>, Option<&[u8]>); 7] = [
        ("garbage", Some(key), Some(b"\x99\x98\x97 no avro at all \x00\x01")),
        ("an empty value", Some(key), Some(b"")),
        ("half of a record", Some(key), Some(&good[..good.len() / 2])),
        ("a record and more", Some(key), Some(&trailing)),
        ("a value that is not UTF-8", Some(key), Some(&not_text)),
        ("a length beyond all bounds", Some(key), Some(&huge_length)),
        ("a key that is not UTF-8", Some(b"\xff\xfe"), Some(&good)),
    ];
    // One at a time into the partition of the key, so that a node that stops at one shows which.
    let partition = e2e::topic::java_partition(key, 4);
    for (n, (what, key, value)) in poison.iter().enumerate() {
        writer.write(Some(partition), *key, *value).await?;
        let after = KeyValue::new("poisoned", &format!("value after {what}"));
        writer.write_record(&after).await?;
        cluster.all_have("poisoned", Some(&after.value)).await;
        for node in &cluster.nodes {
            wait::until(&format!("{} counts {what}", node.name), Duration::from_secs(10), || async {
                let count = node.api().metric("bitacora_poison_records_total").await;
                match count.map_err(|error| format!("{error:#}"))? {
                    count if (count - (n + 1) as f64).abs() < 0.5 => Ok(()),
                    count => Err(format!("bitacora_poison_records_total is {count}, not {}", n + 1)),
                }
            })
            .await;
            node.api().health().await?.expect(200);
        }
    }
    // A restart without data meets them all again.
    let node = &cluster.nodes[2];
    node.kill();
    node.wipe()?;
    node.spawn()?;
    node.ready().await;
    node.has("poisoned", Some("value after a key that is not UTF-8")).await;
    Ok(())
}

async fn records_without_a_key_are_counted(ctx: Ctx) -> Result<()> {
    // A broker takes one only into a topic that is not compacted.
    let mut cluster = ctx.no_nodes(Options::new().env("ALLOW_UNCOMPACTED_TOPIC", "true")).await?;
    cluster.topic.create(1, &[("cleanup.policy", "delete")]).await?;
    let node = cluster.add().await?;
    node.spawn()?;
    node.ready().await;
    let name = node.name.clone();
    let writer = cluster.topic.writer()?;
    writer.write(Some(0), None, Some(&KeyValue::new("inside", "value").to_avro())).await?;
    writer.write(Some(0), None, None).await?;
    writer.write_record(&KeyValue::new("after", "value")).await?;
    let node = &cluster.nodes[0];
    node.has("after", Some("value")).await;
    node.has("inside", None).await;
    wait::until(&format!("{name} counts both"), Duration::from_secs(10), || async {
        let count = node.api().metric("bitacora_poison_records_total").await;
        match count.map_err(|error| format!("{error:#}"))? {
            count if (count - 2.0).abs() < 0.5 => Ok(()),
            count => Err(format!("bitacora_poison_records_total is {count}")),
        }
    })
    .await;
    node.api().health().await?.expect(200);
    Ok(())
}
