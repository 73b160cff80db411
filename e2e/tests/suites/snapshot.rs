//! A node without a store of use takes a copy of another member's, if there is a whole and fitting one, else the log.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Cluster, Node, Options, START, node_binary};
use e2e::runner::{Ctx, Test};
use e2e::topic::KeyValue;
use e2e::{ports, tests, wait};
use reqwest::Method;
use warp::Filter;

pub fn tests() -> Vec<Test> {
    tests![
        Servers: a_new_node_takes_the_store_of_a_member,
            dying_members_are_replaced_by_others_or_the_log,
            no_lie_of_a_member_gets_into_the_store,
            one_at_a_time_is_served_no_faster_than_the_rate, a_backup_is_a_start
    ]
}

/// Above what a node reads from the log rather than ask for.
const RECORDS: usize = 30_000;

async fn fill(cluster: &Cluster) -> Result<()> {
    let record = |i| KeyValue::new(&format!("key-{i}"), &format!("value {i}"));
    cluster.topic.fill(RECORDS, 10_000, record).await
}

async fn holds_all(node: &Node) -> Result<()> {
    wait::until("all records are applied", START, || async {
        let status = node.api().status().await.map_err(|error| format!("{error:#}"))?;
        if status["store"]["records"] == RECORDS && status["caught_up"] == true {
            Ok(())
        } else {
            Err(status.to_string())
        }
    })
    .await;
    for i in (0..RECORDS).step_by(RECORDS / 100) {
        let answer = node.api().get_own(&format!("key-{i}")).await?.expect(200);
        assert_eq!(answer.value(), Some(format!("value {i}")));
    }
    Ok(())
}

async fn metric(node: &Node, name: &str) -> Result<i64> {
    Ok(node.api().metric(name).await?.round() as i64)
}

async fn installed(node: &Node) -> Result<i64> {
    metric(node, "bitacora_snapshots_installed_total").await
}

async fn a_new_node_takes_the_store_of_a_member(ctx: Ctx) -> Result<()> {
    let mut cluster = ctx.cluster_with(1, Options::new()).await?;
    fill(&cluster).await?;
    holds_all(&cluster.nodes[0]).await?;
    cluster.add().await?.spawn()?;
    cluster.formed().await;
    let [old, new] = &cluster.nodes[..] else { unreachable!("two nodes") };
    holds_all(new).await?;
    assert_eq!(installed(new).await?, 1);
    assert_eq!(metric(old, "bitacora_snapshots_served_total").await?, 1);
    let read = metric(new, "bitacora_records_applied_total").await?;
    assert!(read < RECORDS as i64 / 2, "{read} records were read from the log all the same");
    for (writer, key) in [(old, "key-1"), (new, "key-2")] {
        writer.api().delete(key).await?.expect(200);
        cluster.all_have(key, None).await;
    }
    // Its copy is a store like any other.
    new.kill();
    new.spawn()?;
    new.ready().await;
    new.has("key-1", None).await;
    new.has("key-3", Some("value 3")).await;
    assert_eq!(installed(new).await?, 0);
    // A store that is lost is fetched again.
    new.kill();
    new.wipe()?;
    new.spawn()?;
    new.ready().await;
    new.has("key-2", None).await;
    assert_eq!(installed(new).await?, 1);
    Ok(())
}

async fn dying_members_are_replaced_by_others_or_the_log(ctx: Ctx) -> Result<()> {
    // Slow enough to be caught in the act; and dead members stay in the list.
    let options = Options::new().env("SNAPSHOT_RATE", "500KiB").env("ZOOKEEPER_SESSION_TIMEOUT", "30000");
    let mut cluster = ctx.cluster_with(2, options).await?;
    fill(&cluster).await?;
    for node in &cluster.nodes {
        holds_all(node).await?;
    }
    for round in 0..2 {
        cluster.add().await?.spawn()?;
        let (new, others) = cluster.nodes.split_last().context("three nodes")?;
        if round == 0 {
            let dying = wait::until("one of them gives its store", START, || async {
                for node in others {
                    if metric(node, "bitacora_snapshots_served_total").await.map_err(|e| format!("{e:#}"))?
                        > 0
                    {
                        return Ok(node);
                    }
                }
                Err("none does".to_string())
            })
            .await;
            wait::until("some of it has arrived", START, || async {
                let status = new.api().status().await.map_err(|error| format!("{error:#}"))?;
                let reason = status["log"]["reason"].as_str().unwrap_or_default().to_string();
                let some = reason.contains("fetching the store") && !reason.ends_with(" 0 %");
                if some { Ok(()) } else { Err(status.to_string()) }
            })
            .await;
            dying.kill();
            new.ready().await;
            holds_all(new).await?;
            assert_eq!(installed(new).await?, 1, "the other one gave it");
            assert!(new.log_tail(1000).contains("no snapshot from"), "the first one is missed");
        } else {
            // Everybody who could is dead.
            for node in others {
                node.kill();
            }
            new.ready().await;
            holds_all(new).await?;
            assert_eq!(installed(new).await?, 0);
        }
    }
    Ok(())
}

/// Answers `/snapshot` with these bytes, and says how many there are although fewer may come.
fn liar(status: u16, body: Vec<u8>) -> String {
    let port = ports::free();
    let route = warp::path!("snapshot")
        .map(move || warp::http::Response::builder().status(status).body(body.clone()).expect("a response"));
    tokio::spawn(warp::serve(route).run(([127, 0, 0, 1], port)));
    format!("127.0.0.1:{port}")
}

fn with_header(genuine: &[u8], change: impl FnOnce(&mut serde_json::Value)) -> Vec<u8> {
    let length = u32::from_be_bytes(genuine[8..12].try_into().expect("four bytes")) as usize;
    let mut header = serde_json::from_slice(&genuine[12..12 + length]).expect("a header is JSON");
    change(&mut header);
    let header = header.to_string().into_bytes();
    [&genuine[..8], &(header.len() as u32).to_be_bytes(), &header, &genuine[12 + length..]].concat()
}

async fn no_lie_of_a_member_gets_into_the_store(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster_with(1, Options::new()).await?;
    fill(&cluster).await?;
    let honest = &cluster.nodes[0];
    holds_all(honest).await?;
    let genuine = honest.api().call(Method::GET, "/snapshot").await?.expect(200).body;
    // Of the same name, and another topic.
    let other = ctx.cluster_with(1, Options::new()).await?;
    fill(&other).await?;
    holds_all(&other.nodes[0]).await?;
    let foreign = other.nodes[0].api().call(Method::GET, "/snapshot").await?.expect(200).body;
    let named = with_header(&foreign, |header| {
        let length = u32::from_be_bytes(genuine[8..12].try_into().expect("four bytes")) as usize;
        *header = serde_json::from_slice(&genuine[12..12 + length]).expect("a header is JSON");
    });
    drop(other);
    honest.kill();
    let mut flipped = genuine.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    let huge = with_header(&genuine, |header| header["bytes"] = (1_u64 << 50).into());
    let old_format = with_header(&genuine, |header| header["format"] = "0".into());
    let liars = [
        (liar(200, b"<html>a page of somebody else's</html>".to_vec()), "no snapshot of a store"),
        (liar(200, genuine[..genuine.len() * 2 / 3].to_vec()), "ends early"),
        (liar(200, flipped), "damaged"),
        (liar(200, foreign), "it is of topic"),
        (liar(200, named), "it was built from topic"),
        (liar(200, huge), "free"),
        (liar(200, old_format), "its format is 0"),
        (liar(500, Vec::new()), "it answers 500"),
        (format!("127.0.0.1:{}", ports::free()), "error"),
    ];
    let zk = cluster.zk().await;
    for (address, _) in &liars {
        zk.pose_as_member(address).await.map_err(anyhow::Error::msg)?;
    }
    honest.wipe()?;
    honest.spawn()?;
    honest.ready().await;
    holds_all(honest).await?;
    assert_eq!(installed(honest).await?, 0);
    let log = honest.log_tail(10_000);
    for (address, reason) in &liars {
        let line = log.lines().find(|line| line.contains("no snapshot from") && line.contains(address));
        let line = line.with_context(|| format!("{address} was not asked:\n{log}"))?;
        ensure!(line.contains(reason), "expected {reason:?}: {line}");
    }
    let left: Vec<_> =
        std::fs::read_dir(honest.data_dir.join("store"))?.flatten().map(|e| e.file_name()).collect();
    ensure!(left.len() <= 2, "their leavings are on disk: {left:?}");
    zk.close().await;
    Ok(())
}

async fn one_at_a_time_is_served_no_faster_than_the_rate(ctx: Ctx) -> Result<()> {
    let rate = 2 << 20;
    let cluster = ctx.cluster_with(1, Options::new().env("SNAPSHOT_RATE", rate)).await?;
    fill(&cluster).await?;
    let node = &cluster.nodes[0];
    holds_all(node).await?;
    let start = std::time::Instant::now();
    let first = tokio::spawn({
        let api = node.api();
        async move { api.call(Method::GET, "/snapshot").await }
    });
    wait::until("it is being served", START, || async {
        match metric(node, "bitacora_snapshots_served_total").await {
            Ok(1) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let second = node.api().call(Method::GET, "/snapshot").await?.expect(503);
    assert!(second.header("retry-after").is_some(), "{second}");
    assert!(second.message().contains("somebody else"), "{second}");
    // Others are served meanwhile.
    for i in 0..50 {
        assert_eq!(node.api().get(&format!("key-{i}")).await?.value(), Some(format!("value {i}")));
    }
    node.api().set("written meanwhile", "value").await?.expect(200);
    let body = first.await??.expect(200).body;
    let least = body.len() as f64 / f64::from(rate) * 0.9;
    assert!(start.elapsed().as_secs_f64() > least, "{} bytes in {:?}", body.len(), start.elapsed());
    // Who goes away sets the place free.
    let api = node.api();
    let gone = api.call(Method::GET, "/snapshot");
    assert!(
        tokio::time::timeout(Duration::from_millis(300), gone).await.is_err(),
        "it takes longer than that"
    );
    wait::until("the next one is served", START, || async {
        let url = format!("{}/snapshot", node.http_url());
        let answer = e2e::http::get(url).await.map_err(|error| error.to_string())?;
        if answer.status() == 200 { Ok(()) } else { Err(answer.status().to_string()) }
    })
    .await;
    Ok(())
}

async fn run(arguments: &[&str], dir: &Path) -> Result<(bool, String)> {
    let mut command = tokio::process::Command::new(node_binary().await?);
    command.args(arguments).current_dir(dir).env_clear().stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_secs(60), command.output()).await??;
    let text = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8_lossy(&text).into_owned()))
}

async fn a_backup_is_a_start(ctx: Ctx) -> Result<()> {
    let mut cluster = ctx.cluster_with(1, Options::new().env("SNAPSHOT", "never")).await?;
    fill(&cluster).await?;
    let source = &cluster.nodes[0];
    holds_all(source).await?;
    let dir = ctx.dir.clone();
    let backup = ["backup", "--from", &source.http_url(), "today.backup"];
    let (done, text) = run(&backup, &dir).await?;
    ensure!(done && text.contains(&cluster.topic.name), "{text}");
    let (done, text) = run(&backup, &dir).await?;
    ensure!(!done && text.contains("today.backup exists"), "{text}");
    let nobody = format!("http://127.0.0.1:{}", ports::free());
    let (done, text) = run(&["backup", "--from", &nobody, "other.backup"], &dir).await?;
    ensure!(!done && text.contains("no answer from") && !dir.join("other.backup").exists(), "{text}");
    // What happens after it is in the log.
    source.api().delete("key-1").await?.expect(200);
    source.api().set("key-2", "newer").await?.expect(200);

    let mut damaged = std::fs::read(dir.join("today.backup"))?;
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    std::fs::write(dir.join("damaged.backup"), damaged)?;
    let new = cluster.add().await?;
    let data = new.data_dir.display().to_string();
    let (done, text) = run(&["restore", "--data-dir", &data, "damaged.backup"], &dir).await?;
    ensure!(!done && text.contains("damaged"), "{text}");
    let (done, text) = run(&["restore", "--data-dir", &data, "today.backup"], &dir).await?;
    ensure!(done && text.contains(&cluster.topic.name), "{text}");
    let (done, text) = run(&["restore", "--data-dir", &data, "today.backup"], &dir).await?;
    ensure!(!done && text.contains("holds a store already"), "{text}");
    let new = &cluster.nodes[1];
    new.spawn()?;
    cluster.formed().await;
    new.has("key-1", None).await;
    new.has("key-2", Some("newer")).await;
    holds_most(new).await?;
    let read = metric(new, "bitacora_records_applied_total").await?;
    ensure!(read < 100, "{read} records were read from the log all the same");
    // Into the folder of a node that runs: no.
    let (done, text) = run(&["restore", "--data-dir", &data, "today.backup"], &dir).await?;
    ensure!(!done && text.contains("in use by another process"), "{text}");
    Ok(())
}

async fn holds_most(node: &Node) -> Result<()> {
    for i in (3..RECORDS).step_by(RECORDS / 100) {
        let answer = node.api().get_own(&format!("key-{i}")).await?.expect(200);
        assert_eq!(answer.value(), Some(format!("value {i}")));
    }
    Ok(())
}
