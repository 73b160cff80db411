//! The harness itself: what the other suites rely on.

use std::time::Duration;

use anyhow::Result;
use e2e::runner::{Ctx, Test};
use e2e::topic::{KeyValue, Topic, java_partition, murmur2};
use e2e::zookeeper::{self, ZkClient};
use e2e::{tests, wait};

pub fn tests() -> Vec<Test> {
    tests![
        Nothing: murmur2_is_javas, records_survive_avro;
        Servers: a_killed_broker_keeps_what_it_acknowledged, the_zookeeper_comes_back_on_its_port,
            a_paused_broker_goes_on_where_it_was
    ]
}

/// The vectors of Kafka's own `UtilsTest.testMurmur2`.
async fn murmur2_is_javas(_ctx: Ctx) -> Result<()> {
    let vectors = [
        ("21", -973_932_308),
        ("foobar", -790_332_482),
        ("a-little-bit-long-string", -985_981_536),
        ("a-little-bit-longer-string", -1_486_304_829),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
        ("abc", 479_470_107),
    ];
    for (text, hash) in vectors {
        assert_eq!(murmur2(text.as_bytes()) as i32, hash, "the hash of {text:?}");
    }
    Ok(())
}

async fn records_survive_avro(_ctx: Ctx) -> Result<()> {
    let record = KeyValue::new("clé ☃", "a value\nof two lines");
    assert_eq!(KeyValue::from_avro(&record.to_avro())?, record);
    let mut longer = record.to_avro();
    longer.push(0);
    assert!(KeyValue::from_avro(&longer).is_err(), "bytes after the datum must be noticed");
    Ok(())
}

async fn a_killed_broker_keeps_what_it_acknowledged(ctx: Ctx) -> Result<()> {
    let broker = ctx.own_broker().await?;
    let topic = Topic { brokers: broker.address(), name: "kept".to_string() };
    topic.create(4, &[("cleanup.policy", "compact")]).await?;
    let record = KeyValue::new("key", "value");
    let position = topic.writer()?.write_record(&record).await?;
    assert_eq!(position.partition, java_partition(b"key", 4), "librdkafka's murmur2 is Java's");
    broker.stop().await?;
    broker.start().await?;
    let records = topic.read_all().await?;
    assert_eq!(records.len(), 1, "{records:?}");
    assert_eq!(KeyValue::from_avro(records[0].value.as_deref().unwrap_or_default())?, record);
    broker.remove().await
}

async fn a_paused_broker_goes_on_where_it_was(ctx: Ctx) -> Result<()> {
    let broker = ctx.own_broker().await?;
    let topic = Topic { brokers: broker.address(), name: "paused".to_string() };
    topic.create(1, &[]).await?;
    let writer = topic.writer()?;
    broker.pause().await?;
    let write = tokio::spawn(async move { writer.write_record(&KeyValue::new("key", "value")).await });
    wait::holds("nothing is written while it is paused", Duration::from_millis(300), || async {
        if write.is_finished() { Err("the write ended".to_string()) } else { Ok(()) }
    })
    .await;
    broker.resume().await?;
    write.await??;
    broker.remove().await
}

async fn the_zookeeper_comes_back_on_its_port(ctx: Ctx) -> Result<()> {
    let server = ctx.own_zookeeper().await?;
    server.stop().await?;
    assert!(zookeeper::answers(&server.address()).await.is_err(), "a stopped ZooKeeper answers");
    server.start().await?;
    let client = ZkClient::connect(&server.address()).await.map_err(anyhow::Error::msg)?;
    let children = client.children("/").await.map_err(anyhow::Error::msg)?;
    assert!(children.contains(&"zookeeper".to_string()), "{children:?}");
    client.close().await;
    server.remove().await
}
