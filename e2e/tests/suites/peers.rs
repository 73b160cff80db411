//! A node that does not have a key yet answers by its peers.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;
use e2e::cluster::{Options, START};
use e2e::http::encode;
use e2e::runner::{Ctx, Test};
use e2e::topic::KeyValue;
use e2e::{tests, wait};
use reqwest::Method;

pub fn tests() -> Vec<Test> {
    tests![
        Servers: a_frozen_node_never_denies_what_peers_have,
            a_node_that_restores_answers_by_its_peers, rpc_cluster_never_forwards
    ]
}

async fn a_frozen_node_never_denies_what_peers_have(ctx: Ctx) -> Result<()> {
    // Sessions outlive the freeze, so that the members stay known; busy machines get time to answer.
    let options =
        Options::new().env("ZOOKEEPER_SESSION_TIMEOUT", "15000").env("EXTERNAL_REQUEST_TIMEOUT", "3000");
    let cluster = ctx.cluster_with(3, options).await?;
    let [frozen, others @ ..] = &cluster.nodes[..] else { unreachable!("three nodes") };
    for round in 0..3 {
        let key = format!("key {round}");
        frozen.pause();
        others[0].api().set(&key, "value").await?.expect(200);
        others[1].has(&key, Some("value")).await;
        // What a node knows of the log counts for a second; after that it is not caught up and has to ask.
        let reader = others[1].api();
        wait::holds("the others have the key", Duration::from_millis(1200), || async {
            let answer = reader.get(&key).await.map_err(|error| format!("{error:#}"))?;
            if answer.status == 200 { Ok(()) } else { Err(answer.to_string()) }
        })
        .await;
        frozen.resume();
        let answer = frozen.api().get(&key).await?.expect(200);
        assert_eq!(answer.value().as_deref(), Some("value"), "{answer}");
        assert!(
            matches!(answer.header("bitacora-source"), Some("peer" | "store" | "cache")),
            "the answer says where it is from: {answer}"
        );
    }
    Ok(())
}

const RECORDS: usize = 200_000;

async fn a_node_that_restores_answers_by_its_peers(ctx: Ctx) -> Result<()> {
    // From the log, so that there is something to answer for.
    let options = Options::new().env("EXTERNAL_REQUEST_TIMEOUT", "3000").env("SNAPSHOT", "never");
    let mut cluster = ctx.cluster_with(2, options).await?;
    let record = |i| KeyValue::new(&format!("key-{i}"), &format!("value {i}"));
    cluster.topic.fill(RECORDS, 20_000, record).await?;
    for node in &cluster.nodes {
        wait::until("all records are applied", Duration::from_secs(60), || async {
            let status = node.api().status().await.map_err(|error| format!("{error:#}"))?;
            if status["store"]["records"] == RECORDS { Ok(()) } else { Err(status.to_string()) }
        })
        .await;
    }
    let cold = cluster.add().await?;
    cold.spawn()?;
    let api = cold.api();
    wait::until("the cold node listens", START, || async {
        api.call(Method::GET, "/health/live").await.map_err(|error| format!("{error:#}"))
    })
    .await;
    let mut sources = BTreeSet::new();
    let mut statuses = BTreeSet::new();
    let mut asked = 0;
    loop {
        let done = api.health().await?.status == 200;
        // Keys from all over the log.
        let i = (asked * 7919) % RECORDS;
        let answer = api.get(&format!("key-{i}")).await?;
        statuses.insert(answer.status);
        match answer.status {
            200 => {
                assert_eq!(answer.value(), Some(format!("value {i}")), "{answer}");
                sources.extend(answer.header("bitacora-source").map(str::to_string));
            }
            // Before it knows a peer it can only say that it does not know.
            503 => assert!(answer.header("retry-after").is_some(), "{answer}"),
            _ => panic!("a node that restores denies key-{i}: {answer}"),
        }
        // Never another node's word under this path.
        let own = api.get_own(&format!("key-{i}")).await?;
        assert_ne!(own.header("bitacora-source"), Some("peer"), "{own}");
        asked += 1;
        if done {
            break;
        }
    }
    assert!(
        sources.contains("peer"),
        "{asked} reads while it restored, none by a peer: {sources:?}, statuses {statuses:?}"
    );
    for i in (0..RECORDS).step_by(RECORDS / 200) {
        let answer = api.get_own(&format!("key-{i}")).await?.expect(200);
        assert_eq!(answer.value(), Some(format!("value {i}")));
    }
    Ok(())
}

async fn rpc_cluster_never_forwards(ctx: Ctx) -> Result<()> {
    // Both nodes would ask on every miss.
    let options = Options::new().env("PEER_READS", "always").env("EXTERNAL_REQUEST_TIMEOUT", "5000");
    let cluster = ctx.cluster_with(2, options).await?;
    let [asked, frozen] = &cluster.nodes[..] else { unreachable!("two nodes") };
    asked.api().set("key", "value").await?.expect(200);
    cluster.all_have("key", Some("value")).await;
    // With its only peer frozen, a node that forwards waits for the whole five seconds.
    frozen.pause();
    let target = |key: &str| format!("/rpc/cluster?key={}", encode(key));
    for (key, status) in [("missing", 404), ("key", 200)] {
        for method in [Method::GET, Method::HEAD] {
            let start = std::time::Instant::now();
            let answer = asked.api().call(method.clone(), &target(key)).await?.expect(status);
            assert!(start.elapsed() < Duration::from_secs(3), "{method} {key} took {:?}", start.elapsed());
            assert_ne!(answer.header("bitacora-source"), Some("peer"), "{answer}");
            answer.position();
            assert_eq!(answer.body.is_empty(), method == Method::HEAD, "{answer}");
        }
    }
    frozen.resume();
    Ok(())
}
