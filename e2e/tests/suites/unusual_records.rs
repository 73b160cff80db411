//! Records that no node of ours would write, at unusual times and of no sense.

use std::collections::BTreeMap;
use std::time::Duration;

use super::bad_members::LATER;
use anyhow::{Result, ensure};
use e2e::cluster::{Cluster, Options};
use e2e::runner::{Ctx, Test};
use e2e::topic::{KeyValue, java_partition};
use e2e::{tests, wait};
use futures_util::future::try_join_all;
use reqwest::Method;

pub fn tests() -> Vec<Test> {
    tests![Servers: log_append_time_follows_the_log, create_time_follows_the_log,
            nonsense_does_not_displace_a_record]
}

async fn log_append_time_follows_the_log(ctx: Ctx) -> Result<()> {
    out_of_time(ctx, "LogAppendTime").await
}

async fn create_time_follows_the_log(ctx: Ctx) -> Result<()> {
    out_of_time(ctx, "CreateTime").await
}

async fn out_of_time(ctx: Ctx, kind: &str) -> Result<()> {
    let mut cluster = ctx.no_nodes(Options::new()).await?;
    let ever = i64::MAX.to_string();
    cluster
        .topic
        .create(
            4,
            &[
                ("cleanup.policy", "compact"),
                ("message.timestamp.type", kind),
                ("message.timestamp.after.max.ms", &ever),
                ("message.timestamp.before.max.ms", &ever),
                // As a node would create it.
                ("min.compaction.lag.ms", "3600000"),
            ],
        )
        .await?;
    for _ in 0..2 {
        cluster.add().await?.spawn()?;
    }
    cluster.formed().await;
    let (writer, api) = (cluster.topic.writer()?, cluster.nodes[0].api());
    let mut expected: BTreeMap<String, Option<&str>> = BTreeMap::new();
    let avro = |key: &str, value: &str, timestamp: i64, ttl: i64| {
        KeyValue { timestamp, ttl, ..KeyValue::new(key, value) }.to_avro()
    };
    // -1 is Kafka's own "no time".
    let times = [i64::MAX, LATER, 1, -1];
    for time in times {
        for (n, (marker, then)) in
            [(false, Some("set")), (true, Some("set")), (false, None)].iter().enumerate()
        {
            let key = format!("at {time}, {n}");
            let value = (!marker).then(|| avro(&key, "foreign", time, 0));
            api.set(&key, "before").await?.expect(200);
            let at = writer.write_at(time, None, key.as_bytes(), value.as_deref(), None).await?;
            for node in &cluster.nodes {
                node.has(&key, if *marker { None } else { Some("foreign") }).await;
                let answer = node.api().get(&key).await?;
                // A tombstone of times past may be forgotten at once.
                assert!(*marker || answer.position() == at, "{answer}");
                let own_time = kind == "CreateTime" && !marker;
                let said = answer.header("bitacora-timestamp");
                assert!(!own_time || said == Some(&time.to_string()), "{answer}");
            }
            // A later write wins, whatever its time.
            match then {
                Some(value) => api.set(&key, value).await?.expect(200),
                None => api.delete(&key).await?.expect(200),
            };
            expected.insert(key, *then);
        }
        // And what nobody wrote after.
        let key = format!("left at {time}");
        writer.write_at(time, None, key.as_bytes(), Some(&avro(&key, "left", time, 0)), None).await?;
        expected.insert(key, Some("left"));
    }
    for (n, number) in [i64::MIN, i64::MIN + 1, -2, -1, 0, 1, LATER, i64::MAX].into_iter().enumerate() {
        let key = format!("timestamp {number}");
        writer.write_record(&KeyValue { timestamp: number, ..KeyValue::new(&key, "value") }).await?;
        expected.insert(key, Some("value"));
        let key = format!("ttl {number}");
        writer.write_record(&KeyValue { ttl: number, ..KeyValue::new(&key, "value") }).await?;
        expected.insert(key, if number == 0 || number >= LATER { Some("value") } else { None });
        let key = format!("ttl {number}, and a write");
        let both = avro(&key, "value", number, number);
        writer.write_at(times[n % 4], None, key.as_bytes(), Some(&both), None).await?;
        api.set(&key, "later").await?.expect(200);
        expected.insert(key, Some("later"));
    }
    // Conditions of a foreign hand. Those that name what comes after them are no records.
    let (trim, repair) = ("bitacora-trim", "bitacora-repair");
    let headers = [
        ("a trim of the future", trim, "9000:9223372036854775807", true),
        ("a trim of the last offset", trim, "9223372036854775807:9223372036854775807", true),
        ("a trim of a negative offset", trim, "-1:9223372036854775807", true),
        ("a repair of the future", repair, "9000:5:9223372036854775807", false),
        (
            "a repair of the last offset",
            repair,
            "9223372036854775807:9223372036854775807:9223372036854775807",
            false,
        ),
        ("a repair of a negative offset", repair, "-9223372036854775808:0:9223372036854775807", false),
    ];
    for (key, header, text, tombstone) in headers {
        api.set(key, "value").await?.expect(200);
        let value = (!tombstone).then(|| avro(key, "not this", 0, 0));
        writer.write_at(LATER, None, key.as_bytes(), value.as_deref(), Some((header, text))).await?;
        expected.insert(key.to_owned(), Some("value"));
    }
    let poison = headers.len() as f64;
    for (n, time) in [i64::MIN, -1, i64::MAX].into_iter().enumerate() {
        // Something earlier than that at offset 0 is there: without effect.
        let key = format!("a late repair {n}");
        api.set(&key, "value").await?.expect(200);
        let text = format!("0:{time}:{}", i64::MAX);
        let value = avro(&key, "not this", time, 0);
        writer.write_at(times[n], None, key.as_bytes(), Some(&value), Some((repair, &text))).await?;
        expected.insert(key, Some("value"));
        // Nothing is there: it has effect, and the next write replaces it.
        for then in [None, Some("later")] {
            let key = format!("a repair {n}, {then:?}");
            let value = avro(&key, "repaired", time, 0);
            writer.write_at(times[n], None, key.as_bytes(), Some(&value), Some((repair, &text))).await?;
            if let Some(value) = then {
                api.set(&key, value).await?.expect(200);
            }
            expected.insert(key, Some(then.unwrap_or("repaired")));
        }
    }
    // A foreign partitioner: the later write timestamp decides between partitions.
    for (time, deletes) in [(LATER, false), (LATER, true), (1, false), (-1, false)] {
        let key = format!("astray at {time}, deleted: {deletes}");
        let wrong = (java_partition(key.as_bytes(), 4) + 1) % 4;
        api.set(&key, "first").await?.expect(200);
        let value = avro(&key, "astray", time, if deletes { -1 } else { 0 });
        writer.write_at(time, Some(wrong), key.as_bytes(), Some(&value), None).await?;
        api.set(&key, "last").await?.expect(200);
        let astray = if deletes { None } else { Some("astray") };
        expected.insert(key, if kind == "CreateTime" && time == LATER { astray } else { Some("last") });
    }
    api.set("the end", "value").await?.expect(200);
    cluster.all_have("the end", Some("value")).await;

    let agree = async |cluster: &Cluster| {
        for (key, value) in &expected {
            cluster.all_have(key, *value).await;
        }
        cluster.same_everywhere().await;
        for node in &cluster.nodes {
            node.api().health().await?.expect(200);
            let metrics = node.api().call(Method::GET, "/metrics").await?.expect(200).text();
            ensure!(!metrics.contains("NaN"), "a metric is no number:\n{metrics}");
            let log = node.log_tail(100_000);
            ensure!(!log.contains("panicked"), "{log}");
        }
        anyhow::Ok(())
    };
    agree(&cluster).await?;
    assert!((cluster.nodes[0].api().metric("bitacora_poison_records_total").await? - poison).abs() < 0.1);
    // Once more from the log, and once from a store.
    for wipe in [true, false] {
        let node = &cluster.nodes[usize::from(wipe)];
        node.terminate(Duration::from_secs(10)).await;
        if wipe {
            node.wipe()?;
        }
        node.spawn()?;
        node.ready().await;
        assert!(node.resyncs().await?.abs() < 0.1, "it distrusts its store");
        let node = cluster.add().await?;
        node.spawn()?;
        node.ready().await;
    }
    cluster.know_each_other(4).await;
    agree(&cluster).await
}

async fn nonsense_does_not_displace_a_record(ctx: Ctx) -> Result<()> {
    let mut cluster = ctx.no_nodes(Options::new()).await?;
    // Compacted as soon as Kafka can.
    let config = [
        ("cleanup.policy", "compact"),
        ("message.timestamp.type", "LogAppendTime"),
        ("min.compaction.lag.ms", "5000"),
        ("max.compaction.lag.ms", "6000"),
        ("segment.ms", "1000"),
        ("min.cleanable.dirty.ratio", "0"),
    ];
    cluster.topic.create(1, &config).await?;
    let node = cluster.add().await?;
    node.spawn()?;
    node.ready().await;
    let (api, writer) = (node.api(), cluster.topic.writer()?);
    let mut positions = Vec::new();
    for key in ["set", "deleted"] {
        positions.push(api.set(key, "value").await?.expect(200).position());
    }
    api.delete("deleted").await?.expect(200);
    for key in ["set", "deleted"] {
        writer.write(None, Some(key.as_bytes()), Some(b"nonsense")).await?;
    }
    // Segments are closed by further writes.
    wait::until("Kafka has compacted the topic", Duration::from_secs(120), || async {
        api.set("filler", "value").await.map_err(|error| format!("{error:#}"))?.expect(200);
        let log = cluster.topic.read_all().await.map_err(|error| format!("{error:#}"))?;
        let left = log.iter().filter(|record| positions.contains(&record.position)).count();
        if left == 0 { Ok(()) } else { Err(format!("{left} of {} records are left", log.len())) }
    })
    .await;
    let new = cluster.add().await?;
    new.spawn()?;
    new.ready().await;
    cluster.all_have("set", Some("value")).await;
    cluster.all_have("deleted", None).await;
    let answers = try_join_all(cluster.nodes.iter().map(|node| {
        let api = node.api();
        async move { api.get_own("set").await }
    }));
    for answer in answers.await? {
        assert_eq!(answer.position(), positions[0], "what it was, where it was: {answer}");
    }
    cluster.same_everywhere().await;
    Ok(())
}
