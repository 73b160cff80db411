//! The client library on real clusters: what it finds, follows and retries, and what it says of what it can't know.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bitacora_client::{Client, Error, Operation, Outcome, Record, Scan, ServedFrom};
use e2e::cluster::{Cluster, Node, Options, START};
use e2e::runner::{Ctx, Test};
use e2e::{tests, wait};
use futures_util::TryStreamExt;
use futures_util::future::join_all;
use serde_json::Value;

pub fn tests() -> Vec<Test> {
    tests![
        Servers: every_call_agrees_with_http, nodes_that_come_and_go_are_followed,
            it_goes_on_without_zookeeper, a_write_that_the_log_does_not_confirm_is_sent_once,
            a_node_that_restores_is_passed_over
    ]
}

/// The session timeout of 2.5 s, ZooKeeper's rounding up to whole ticks of 1 s, and a look of the client.
pub const EXPIRY: Duration = Duration::from_millis(2500 + 2000 + 1000);

pub async fn by_zookeeper(cluster: &Cluster) -> Result<Client> {
    let connect = cluster.zookeeper_hosts.parse().map_err(anyhow::Error::msg)?;
    Ok(Client::builder().zookeeper(connect).build().await?)
}

pub async fn by_list(nodes: &[Node]) -> Result<Client> {
    Ok(Client::builder().nodes(nodes.iter().map(Node::rpc_address)).build().await?)
}

pub fn addresses(client: &Client) -> Vec<String> {
    client.nodes().into_iter().map(|node| node.address).collect()
}

pub fn sorted(mut names: Vec<String>) -> Vec<String> {
    names.sort();
    names
}

/// Waits until the client's nodes are those.
pub async fn knows(client: &Client, nodes: &[&Node], deadline: Duration) {
    let wanted = sorted(nodes.iter().map(|node| node.rpc_address()).collect());
    wait::until("the client knows the nodes", deadline, || async {
        let known = addresses(client);
        if known == wanted { Ok(()) } else { Err(format!("{known:?}, not {wanted:?}")) }
    })
    .await;
}

/// A record as `GET /rpc` gives it, with its position.
async fn over_http(node: &Node, key: &str) -> Result<(Value, String)> {
    let answer = node.api().get(key).await?.expect(200);
    let position = answer.header("bitacora-position").context("a position")?.to_string();
    Ok((answer.json(), position))
}

fn agrees(record: &Record, (json, position): &(Value, String)) -> Result<()> {
    let same = json["key"] == record.key
        && json["value"] == record.value
        && json["timestamp"] == record.timestamp
        && json["ttl"] == record.ttl
        && json["uuid"] == record.uuid
        && *position == record.position.to_string();
    ensure!(same, "{record:?}, and over HTTP {json} at {position}");
    Ok(())
}

async fn every_call_agrees_with_http(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster().await?;
    for (how, client) in
        [("found", by_zookeeper(&cluster).await?), ("listed", by_list(&cluster.nodes).await?)]
    {
        assert_eq!(addresses(&client), sorted(cluster.rpc_addresses()));
        let key = |name: &str| format!("{how}/{name} ü \"\n\t");

        let written = client.set(&key("set"), "välue").await?;
        cluster.all_have(&key("set"), Some("välue")).await;
        let read = client.get(&key("set")).await?;
        assert_eq!(
            (read.position, read.timestamp, read.ttl, &read.uuid),
            (written.position, written.timestamp, 0, &written.uuid)
        );
        for node in &cluster.nodes {
            agrees(&read, &over_http(node, &key("set")).await?)?;
        }

        client.set(&key("empty"), "").await?;
        cluster.all_have(&key("empty"), Some("")).await;
        assert_eq!(client.get(&key("empty")).await?.value, "");

        let lasting = client.set_with_ttl(&key("lasting"), "v", Duration::from_secs(3600)).await?;
        // One is by the node's clock and the other by the broker's.
        ensure!((lasting.ttl - lasting.timestamp - 3_600_000).abs() < 60_000, "{lasting:?}");
        cluster.all_have(&key("lasting"), Some("v")).await;
        agrees(&client.get(&key("lasting")).await?, &over_http(&cluster.nodes[0], &key("lasting")).await?)?;
        let brief = client.set_with_ttl(&key("brief"), "v", Duration::from_millis(300)).await?;
        cluster.all_lost(&key("brief"), brief.timestamp).await;

        client.set(&key("deleted"), "v").await?;
        let deleted = client.delete(&key("deleted")).await?;
        assert_eq!(deleted.ttl, -1);
        cluster.all_lost(&key("deleted"), deleted.timestamp).await;
        for (name, trace) in [("deleted", Some(deleted.position)), ("brief", None), ("never", None)] {
            match client.get(&key(name)).await {
                Err(Error::NotFound { key: told, position, timestamp, .. }) => {
                    assert_eq!(told, key(name));
                    assert_eq!(timestamp.is_some(), name != "never", "{name}");
                    assert!(trace.is_none_or(|trace| trace == position), "{name}: {position}, not {trace:?}");
                }
                other => panic!("{name}: {other:?}"),
            }
        }
        batches_agree(&cluster, &client, how).await?;
        scans_agree(&cluster, &client, how).await?;
        client.close().await;
        assert_eq!(client.get(&key("set")).await, Err(Error::Closed));
    }
    Ok(())
}

async fn batches_agree(cluster: &Cluster, client: &Client, how: &str) -> Result<()> {
    let key = |i: usize| format!("{how}/batch {i}");
    let mut operations: Vec<Operation> =
        (0..3000).map(|i| Operation::Set { key: key(i % 2000), value: format!("v{i}"), ttl: None }).collect();
    operations.push(Operation::Delete { key: key(7) });
    operations.push(Operation::Set { key: " ".to_string(), value: "v".to_string(), ttl: None });
    let results = client.batch(&operations).await?;
    assert_eq!(results.len(), operations.len());
    assert!(matches!(&results[3001], Err(Error::Refused { .. })), "{:?}", results[3001]);
    let mut last = HashMap::new();
    for (operation, result) in operations.iter().zip(&results).take(3001) {
        let Ok(Outcome::Written(written)) = result else { panic!("{}: {result:?}", operation.key()) };
        last.insert(operation.key().to_string(), written.position);
    }
    cluster.all_have(&key(7), None).await;
    for i in [0, 999, 1000, 1999] {
        let value = format!("v{}", if i < 1000 { i + 2000 } else { i });
        cluster.all_have(&key(i), Some(&value)).await;
        let (_, position) = over_http(&cluster.nodes[1], &key(i)).await?;
        assert_eq!(position, last[&key(i)].to_string());
    }
    let reads: Vec<Operation> = (0..2000).map(|i| Operation::Get { key: key(i) }).collect();
    // All nodes are behind the last write of each partition, or the reads would be of another time.
    cluster.all_have(&key(1999), Some("v1999")).await;
    wait::until("a batch reads what was written", START, || async {
        let results = client.batch(&reads).await.map_err(|error| error.to_string())?;
        for (i, result) in results.into_iter().enumerate() {
            match result {
                Ok(Outcome::Read(record)) if record.position == last[&key(i)] && i != 7 => {}
                Err(Error::NotFound { position, .. }) if i == 7 && position == last[&key(7)] => {}
                other => return Err(format!("{i}: {other:?}")),
            }
        }
        Ok(())
    })
    .await;
    Ok(())
}

async fn scans_agree(cluster: &Cluster, client: &Client, how: &str) -> Result<()> {
    let prefix = format!("{how}/batch 1");
    let path = format!("/rpc/scan?prefix={}&limit=10000", e2e::http::encode(&prefix));
    let page = cluster.nodes[2].api().call(reqwest::Method::GET, &path).await?.expect(200).json();
    let wanted = page["records"].as_array().context("records")?;
    assert_eq!(wanted.len(), 1111);
    let records: Vec<Record> = client.scan(Scan::prefix(prefix).page(100)).try_collect().await?;
    assert_eq!(records.len(), wanted.len());
    for (record, wanted) in records.iter().zip(wanted) {
        let position = wanted["position"].as_str().context("a position")?.to_string();
        agrees(record, &(wanted.clone(), position))?;
        assert_eq!(record.served_from, ServedFrom::Store);
    }
    Ok(())
}

async fn nodes_that_come_and_go_are_followed(ctx: Ctx) -> Result<()> {
    let mut cluster = ctx.cluster_with(2, Options::new()).await?;
    let client = by_zookeeper(&cluster).await?;
    knows(&client, &[&cluster.nodes[0], &cluster.nodes[1]], START).await;
    let works = async |key: &str| {
        for i in 0..20 {
            client.set(&format!("{key} {i}"), key).await.with_context(|| format!("{key} {i}"))?;
        }
        anyhow::Ok(())
    };
    works("two").await?;

    cluster.add().await?.spawn()?;
    cluster.formed().await;
    knows(&client, &cluster.nodes.iter().collect::<Vec<_>>(), START).await;
    works("three").await?;
    // The new one gets its share.
    wait::until("the new node is connected to", START, || async {
        works("new").await.map_err(|error| format!("{error:#}"))?;
        let address = cluster.nodes[2].rpc_address();
        let new = client.nodes().into_iter().find(|node| node.address == address);
        match new {
            Some(node) if node.connections > 0 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;

    let (status, _) = cluster.nodes[0].terminate(Duration::from_secs(10)).await;
    ensure!(status.success(), "{status}");
    knows(&client, &[&cluster.nodes[1], &cluster.nodes[2]], START).await;
    works("without the first").await?;

    cluster.nodes[1].kill();
    knows(&client, &[&cluster.nodes[2]], EXPIRY).await;
    works("one").await?;
    cluster.all_have("two 19", Some("two")).await;
    cluster.all_have("one 19", Some("one")).await;
    // What is left when the last one goes is the last that is known.
    cluster.nodes[2].kill();
    let error = client.with_deadline(Duration::from_millis(300)).get("one 19").await;
    ensure!(
        matches!(error, Err(Error::NoNode { .. } | Error::TimedOut { .. } | Error::Node(_))),
        "{error:?}"
    );
    let zk = cluster.zk().await;
    wait::until("the last node's znode is gone", EXPIRY, || async {
        match zk.children("/bitacora/sockets").await? {
            left if left.is_empty() => Ok(()),
            left => Err(format!("{left:?}")),
        }
    })
    .await;
    zk.close().await;
    knows(&client, &[&cluster.nodes[2]], START).await;
    Ok(())
}

async fn it_goes_on_without_zookeeper(ctx: Ctx) -> Result<()> {
    let server = ctx.own_zookeeper().await?;
    let mut cluster = ctx.cluster_with(2, Options::new().zookeeper(server.address())).await?;
    let client = by_zookeeper(&cluster).await?;
    knows(&client, &[&cluster.nodes[0], &cluster.nodes[1]], START).await;
    server.stop().await?;
    for node in &cluster.nodes {
        wait::until("it says that ZooKeeper is away", START, || async {
            let status = node.api().status().await.map_err(|error| format!("{error:#}"))?;
            let state = &status["membership"]["state"];
            if state == "disconnected" { Ok(()) } else { Err(state.to_string()) }
        })
        .await;
    }
    for i in 0..50 {
        let key = format!("key {i}");
        client.set(&key, "without").await?;
        cluster.all_have(&key, Some("without")).await;
        assert_eq!(client.get(&key).await?.value, "without");
    }
    assert_eq!(addresses(&client), sorted(cluster.rpc_addresses()));
    // A new client can't know anybody, and says why.
    let connect = cluster.zookeeper_hosts.parse().map_err(anyhow::Error::msg)?;
    let builder = Client::builder().zookeeper(connect).deadline(Duration::from_secs(1));
    match builder.build().await {
        Err(Error::NoNode { last: Some(reason) }) if !reason.is_empty() => {}
        other => panic!("{other:?}"),
    }

    server.start().await?;
    cluster.add().await?.spawn()?;
    cluster.formed().await;
    knows(&client, &cluster.nodes.iter().collect::<Vec<_>>(), START).await;
    let (status, _) = cluster.nodes[0].terminate(Duration::from_secs(10)).await;
    ensure!(status.success(), "{status}");
    knows(&client, &[&cluster.nodes[1], &cluster.nodes[2]], START).await;
    client.set("after", "value").await?;
    cluster.all_have("after", Some("value")).await;
    // Who has closed a client has left ZooKeeper: only the two nodes and the question are connected to it.
    client.close().await;
    wait::until("it has left ZooKeeper", START, || async {
        let connections = e2e::zookeeper::connections(&server.address()).await?;
        if connections == 3 { Ok(()) } else { Err(format!("{connections} connections")) }
    })
    .await;
    drop(cluster);
    server.remove().await
}

const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// Ten sets at once, none of which may succeed: those that may have taken effect, and those that certainly have not.
async fn fail(client: &Client, what: &str, deadline: Duration) -> Result<[Vec<String>; 2]> {
    let client = &client.with_deadline(deadline);
    let sets = (0..10).map(|i| async move {
        let key = format!("{what} {i}");
        let started = Instant::now();
        (client.set(&key, "maybe").await, started.elapsed(), key)
    });
    let [mut uncertain, mut certain] = [Vec::new(), Vec::new()];
    for (result, took, key) in join_all(sets).await {
        let error = result.err().with_context(|| format!("{key} was acknowledged"))?;
        ensure!(took < deadline + Duration::from_secs(1), "{key} took {took:?}");
        match error {
            Error::TimedOut { may_have_taken_effect: true, .. } | Error::Unacknowledged { .. } => {
                uncertain.push(key);
            }
            // It waited in the node behind others, and the node knows that it was never sent.
            error if !error.may_have_taken_effect() => certain.push(key),
            error => panic!("{key}: {error:?}"),
        }
    }
    ensure!(client.get("before 0").await?.value == "value", "reads go on");
    Ok([uncertain, certain])
}

async fn a_write_that_the_log_does_not_confirm_is_sent_once(ctx: Ctx) -> Result<()> {
    let broker = ctx.own_broker().await?;
    let options = Options::new().brokers(broker.address()).env("WRITE_TIMEOUT", WRITE_TIMEOUT.as_millis());
    let cluster = ctx.cluster_with(3, options).await?;
    let client = by_list(&cluster.nodes).await?;
    // Every node's producer has met the broker.
    for (i, node) in cluster.nodes.iter().enumerate() {
        node.api().set(&format!("before {i}"), "value").await?.expect(200);
        cluster.all_have(&format!("before {i}"), Some("value")).await;
    }
    // The client's patience ends while the nodes still try: all of it takes effect, once.
    broker.pause().await?;
    let [late, none] = fail(&client, "late", Duration::from_secs(1)).await?;
    broker.resume().await?;
    ensure!(none.is_empty(), "nobody knows yet: {none:?}");
    for key in &late {
        cluster.all_have(key, Some("maybe")).await;
    }
    // The nodes' patience ends first.
    broker.pause().await?;
    let [uncertain, certain] = fail(&client, "lost", WRITE_TIMEOUT * 2).await?;
    println!(
        "client, a silent broker: {} writes may have taken effect, {} certainly have not",
        uncertain.len(),
        certain.len()
    );
    ensure!(!uncertain.is_empty(), "{certain:?}");
    broker.resume().await?;
    // In every partition and through every node's producer something comes after them.
    for (i, node) in cluster.nodes.iter().enumerate() {
        for j in 0..20 {
            let (api, key) = (node.api(), format!("after {i} {j}"));
            wait::until("the node takes writes again", START, || async {
                let answer = api.set(&key, "value").await.map_err(|error| format!("{error:#}"))?;
                if answer.status == 200 { Ok(()) } else { Err(answer.to_string()) }
            })
            .await;
        }
    }
    let mut records: HashMap<String, usize> = HashMap::new();
    for record in cluster.topic.read_all().await? {
        *records.entry(record.key_text()).or_default() += 1;
    }
    let times = |key: &String| records.get(key).copied().unwrap_or_default();
    for (keys, allowed) in [(&late, 1..=1), (&uncertain, 0..=1), (&certain, 0..=0)] {
        for key in keys {
            ensure!(allowed.contains(&times(key)), "{key} is in the log {} times", times(key));
        }
    }
    drop((client, cluster));
    broker.remove().await
}

async fn a_node_that_restores_is_passed_over(ctx: Ctx) -> Result<()> {
    let broker = ctx.own_broker().await?;
    let options = Options::new().brokers(broker.address()).env("PEER_READS", "never");
    let mut cluster = ctx.cluster_with(1, options).await?;
    cluster.nodes[0].api().set("key", "value").await?.expect(200);
    cluster.nodes[0].has("key", Some("value")).await;
    broker.pause().await?;
    cluster.add().await?.spawn()?;
    let both = by_list(&cluster.nodes).await?;
    let new = by_list(&cluster.nodes[1..]).await?.with_deadline(Duration::from_millis(500));
    wait::until("the new node says that it is not ready", START, || async {
        match new.get("key").await {
            Err(Error::NotReady { node, reason })
                if node == cluster.nodes[1].rpc_address() && !reason.is_empty() =>
            {
                Ok(())
            }
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    for i in 0..100 {
        let read = both.get("key").await.with_context(|| format!("read {i}"))?;
        assert_eq!(read.value, "value");
    }
    broker.resume().await?;
    wait::until("the new node answers", START, || async {
        match new.get("key").await {
            Ok(record) if record.value == "value" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    drop((both, new, cluster));
    broker.remove().await
}
