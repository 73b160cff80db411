//! A log that lost records, and grew again, is found out and read again.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, ensure};
use e2e::cluster::{Options, START};
use e2e::runner::{Ctx, Test};
use e2e::topic::{KeyValue, Record, java_partition};
use e2e::{tests, wait};
use futures_util::future::try_join_all;

pub fn tests() -> Vec<Test> {
    tests![Servers: a_log_that_went_back_is_read_again, regrown_beyond_its_old_end_is_read_again,
            regrown_by_old_records_is_read_again]
}

async fn a_log_that_went_back_is_read_again(ctx: Ctx) -> Result<()> {
    the_log_goes_back(ctx, Grown::Less).await
}

/// The hard case: the offsets tell nothing.
async fn regrown_beyond_its_old_end_is_read_again(ctx: Ctx) -> Result<()> {
    the_log_goes_back(ctx, Grown::Beyond).await
}

/// The hardest: the timestamps tell nothing either.
async fn regrown_by_old_records_is_read_again(ctx: Ctx) -> Result<()> {
    the_log_goes_back(ctx, Grown::BeyondByOldRecords).await
}

/// By which records the truncated log grows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Grown {
    /// Not up to its old end.
    Less,
    /// Under a leader whose epoch is that of the one before, since the broker lost what it knew of its leaders, too.
    Beyond,
    /// Under a leader of a later epoch, as one has that was elected although it had lost records.
    BeyondByOldRecords,
}

async fn the_log_goes_back(ctx: Ctx, grown: Grown) -> Result<()> {
    let (grows, by_old_records) = (grown != Grown::Less, grown == Grown::BeyondByOldRecords);
    let (broker, proxy) = ctx.own_broker_and_proxy().await?;
    // The nodes see the broker when the proxy lets them, the test always.
    let options = Options::new().brokers(broker.address()).env("BROKER_LIST", proxy.address());
    let mut cluster = ctx.no_nodes(options).await?;
    if by_old_records {
        let ever = i64::MAX.to_string();
        let times = [("message.timestamp.type", "CreateTime"), ("message.timestamp.before.max.ms", &ever)];
        cluster.topic.create(4, &[&[("cleanup.policy", "compact")], &times[..]].concat()).await?;
    }
    for _ in 0..2 {
        cluster.add().await?.spawn()?;
    }
    cluster.formed().await;
    let [running, restarted] = &cluster.nodes[..] else { unreachable!("two nodes") };
    let api = running.api();
    let keys = |what: &str, count: usize| (0..count).map(|i| format!("{what} {i}")).collect::<Vec<_>>();
    let (kept, lost) = (keys("kept", 40), keys("lost", 40));
    for answer in try_join_all(kept.iter().map(|key| api.set(key, "value"))).await? {
        answer.expect(200);
    }
    for node in &cluster.nodes {
        for key in &kept {
            node.has(key, Some("value")).await;
        }
    }
    let ends = |log: &[Record]| -> Vec<i64> {
        let end = |partition| {
            let of = log.iter().filter(|record| record.position.partition == partition);
            of.map(|record| record.position.offset + 1).max().unwrap_or(0)
        };
        (0..4).map(end).collect()
    };
    let at_backup = ends(&cluster.topic.read_all().await?);
    broker.back_up().await?;
    // Its producer gets an id that the broker, as of the backup, will give to the next one again.
    running.kill();
    running.spawn()?;
    running.ready().await;
    let api = running.api();
    for key in &lost {
        wait::until("it is written", START, || async {
            let answer = api.set(key, "value").await.map_err(|error| format!("{error:#}"))?;
            if answer.status == 200 { Ok(()) } else { Err(answer.to_string()) }
        })
        .await;
    }
    // After the backup, so it comes back.
    api.delete("kept 1").await?.expect(200);
    cluster.all_have("kept 1", None).await;
    for key in &lost {
        cluster.all_have(key, Some("value")).await;
    }
    let before = ends(&cluster.topic.read_all().await?);
    // Each partition gets two more than it loses, so that the first of the node's writes after that has a number that the
    // broker has seen of this producer's id; or fewer.
    let mut left: Vec<_> =
        before.iter().zip(&at_backup).map(|(end, kept)| if grows { end - kept + 2 } else { 1 }).collect();
    let (wanted, mut new) = (left.iter().sum::<i64>() as usize, Vec::new());
    for n in 0.. {
        let key = format!("new {n}");
        let left = &mut left[java_partition(key.as_bytes(), 4) as usize];
        if *left > 0 {
            *left -= 1;
            new.push(key);
        }
        if wanted == new.len() {
            break;
        }
    }

    let done = AtomicBool::new(false);
    let change = async {
        restarted.kill();
        proxy.cut();
        broker.go_back().await?;
        if by_old_records {
            // With each start its epoch grows.
            broker.stop().await?;
            broker.start().await?;
        }
        let writer = cluster.topic.writer()?;
        for key in &new {
            let record = KeyValue::new(key, "new");
            if by_old_records {
                writer.write_at(1, None, key.as_bytes(), Some(&record.to_avro()), None).await?;
            } else {
                writer.write_record(&record).await?;
            }
        }
        let after = ends(&cluster.topic.read_all().await?);
        ensure!(
            after.iter().zip(&before).all(|(after, before)| (after > before) == grows),
            "{before:?}, {after:?}"
        );
        proxy.mend();
        restarted.spawn()?;
        for node in [running, restarted] {
            node.ready().await;
            wait::until("it was built anew", START, || async {
                let resyncs = node.resyncs().await.map_err(|error| format!("{error:#}"))?;
                if resyncs >= 1.0 { Ok(()) } else { Err(node.log_tail(5)) }
            })
            .await;
            for (keys, value) in [(&kept, Some("value")), (&lost, None), (&new, Some("new"))] {
                for key in keys {
                    node.has(key, value).await;
                }
            }
        }
        done.store(true, Ordering::Relaxed);
        anyhow::Ok(())
    };
    // There is always an answer, and what was given up does not come back.
    let reads = async {
        let (mut gone, mut count) = (false, 0);
        while !done.load(Ordering::Relaxed) {
            let answer = api.get("kept 0").await?.expect(200);
            assert_eq!(answer.value().as_deref(), Some("value"), "{answer}");
            let answer = api.get(&lost[7]).await?;
            assert!(answer.status == 404 || answer.status == 200 && !gone, "gone before: {gone}; {answer}");
            gone |= answer.status == 404;
            count += 1;
        }
        anyhow::Ok(count)
    };
    let (changed, reads) = tokio::join!(change, reads);
    changed?;
    ensure!(reads? > 10, "it was hardly read");
    for node in [running, restarted] {
        assert!((node.resyncs().await? - 1.0).abs() < 0.1, "once is enough for {}", node.name);
        // Its writes are not taken for others' that the broker has forgotten.
        let (api, key) = (node.api(), format!("written at {}", node.name));
        let written = wait::until("it takes writes", START, || async {
            let answer = api.set(&key, "value").await.map_err(|error| format!("{error:#}"))?;
            if answer.status == 200 { Ok(answer) } else { Err(answer.to_string()) }
        })
        .await;
        cluster.all_have(&key, Some("value")).await;
        let log = cluster.topic.read_all().await?;
        assert!(log.iter().any(|record| record.position == written.position() && record.key_text() == key));
    }
    cluster.same_everywhere().await;
    drop(cluster);
    broker.remove().await
}
