//! Who is a member, by ZooKeeper's own word.

use std::time::Duration;

use anyhow::Result;
use e2e::cluster::{Cluster, Node, Options, START};
use e2e::runner::{Ctx, Test};
use e2e::zookeeper::ZkClient;
use e2e::{tests, wait};

pub fn tests() -> Vec<Test> {
    tests![
        Servers: znodes_are_those_of_the_contract, a_stopped_node_is_gone_at_once,
            a_killed_node_is_gone_within_the_session_timeout, a_node_that_restarts_at_once_takes_its_place,
            a_node_that_was_frozen_registers_again, only_who_logs_in_changes_who_is_a_member, nodes_serve_without_zookeeper_and_register_again
    ]
}

/// The session timeout of 2.5 s, and ZooKeeper's rounding up to whole ticks of 1 s.
const EXPIRY: Duration = Duration::from_millis(2500 + 2000);

fn servers(node: &Node) -> String {
    format!("/bitacora/servers/127.0.0.1:{}", node.api_port)
}

fn sockets(node: &Node) -> String {
    format!("/bitacora/sockets/127.0.0.1:{}", node.avro_port)
}

/// The session that both znodes of `node` belong to; an error if one is missing or not as the contract has it.
async fn registered(zk: &ZkClient, node: &Node) -> Result<i64, String> {
    let mut owners = Vec::new();
    for path in [servers(node), sockets(node)] {
        let znode = zk.znode(&path).await?.ok_or_else(|| format!("there is no {path}"))?;
        let address = path.rsplit('/').next().unwrap_or_default();
        if znode.data != address {
            return Err(format!("{path} holds {:?}", znode.data));
        }
        if znode.owner == 0 {
            return Err(format!("{path} is not ephemeral"));
        }
        owners.push(znode.owner);
    }
    if owners[0] == owners[1] { Ok(owners[0]) } else { Err(format!("two sessions: {owners:x?}")) }
}

async fn gone(zk: &ZkClient, node: &Node) -> Result<(), String> {
    for path in [servers(node), sockets(node)] {
        if zk.znode(&path).await?.is_some() {
            return Err(format!("{path} is there"));
        }
    }
    Ok(())
}

async fn owner(zk: &ZkClient, node: &Node) -> i64 {
    wait::until(&format!("{} is registered", node.name), START, || registered(zk, node)).await
}

async fn znodes_are_those_of_the_contract(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster().await?;
    let zk = cluster.zk().await;
    for node in &cluster.nodes {
        owner(&zk, node).await;
    }
    let sorted = |mut names: Vec<String>| {
        names.sort();
        names
    };
    let api: Vec<String> = cluster.nodes.iter().map(|node| format!("127.0.0.1:{}", node.api_port)).collect();
    let avro: Vec<String> =
        cluster.nodes.iter().map(|node| format!("127.0.0.1:{}", node.avro_port)).collect();
    assert_eq!(zk.children("/bitacora/servers").await.map_err(anyhow::Error::msg)?, sorted(api));
    assert_eq!(zk.children("/bitacora/sockets").await.map_err(anyhow::Error::msg)?, sorted(avro));
    zk.close().await;
    Ok(())
}

async fn a_stopped_node_is_gone_at_once(ctx: Ctx) -> Result<()> {
    // A session that would last much longer than this test.
    let cluster = ctx.cluster_with(3, Options::new().env("ZOOKEEPER_SESSION_TIMEOUT", "20000")).await?;
    let zk = cluster.zk().await;
    let node = &cluster.nodes[1];
    owner(&zk, node).await;
    let (status, _) = node.terminate(Duration::from_secs(10)).await;
    assert!(status.success(), "{status}");
    gone(&zk, node).await.map_err(anyhow::Error::msg)?;
    cluster.know_each_other(2).await;
    zk.close().await;
    Ok(())
}

async fn a_killed_node_is_gone_within_the_session_timeout(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster().await?;
    let zk = cluster.zk().await;
    let node = &cluster.nodes[1];
    owner(&zk, node).await;
    node.kill();
    wait::until("the killed node's znodes are gone", EXPIRY, || gone(&zk, node)).await;
    cluster.know_each_other(2).await;
    zk.close().await;
    Ok(())
}

async fn a_node_that_restarts_at_once_takes_its_place(ctx: Ctx) -> Result<()> {
    // Long enough for the restart to meet the znodes of the dead session.
    let cluster = ctx.cluster_with(3, Options::new().env("ZOOKEEPER_SESSION_TIMEOUT", "6000")).await?;
    let zk = cluster.zk().await;
    let node = &cluster.nodes[0];
    let old = owner(&zk, node).await;
    node.kill();
    node.spawn()?;
    node.ready().await;
    wait::until("its znodes are the new session's", START, || async {
        let owner = registered(&zk, node).await?;
        if owner == old { Err(format!("session {owner:x} is the old one")) } else { Ok(()) }
    })
    .await;
    // The old session's end, six seconds and two ticks after the kill at most, takes nothing with it.
    wait::holds("it stays registered", Duration::from_secs(8), || async {
        registered(&zk, node).await.map(drop)
    })
    .await;
    cluster.know_each_other(3).await;
    zk.close().await;
    Ok(())
}

async fn only_who_logs_in_changes_who_is_a_member(ctx: Ctx) -> Result<()> {
    const LOGIN: &str = "nodes:a s3cret: of them";
    let file = |name: &str, login: &str| {
        let path = ctx.dir.join(name);
        std::fs::write(&path, format!("{login}\n"))?;
        anyhow::Ok(path.display().to_string())
    };
    let (own, foreign) = (file("login", LOGIN)?, file("foreign-login", "nodes:guessed")?);
    let refused = |result: Result<(), String>| match result {
        Err(error) if error.contains("NoAuth") => {}
        other => panic!("{other:?}"),
    };
    // The folders were made by nodes of before.
    let cluster = ctx.cluster().await?;
    let zk = cluster.zk().await;
    for node in &cluster.nodes {
        owner(&zk, node).await;
    }
    zk.pose_as_member("10.0.0.1:1").await.map_err(anyhow::Error::msg)?;
    cluster.know_each_other(4).await;
    zk.delete("/bitacora/servers/10.0.0.1:1").await.map_err(anyhow::Error::msg)?;
    for node in &cluster.nodes {
        node.set_env("ZOOKEEPER_AUTH_FILE", &own);
        node.terminate(Duration::from_secs(10)).await;
        node.spawn()?;
        node.ready().await;
        owner(&zk, node).await;
    }
    cluster.know_each_other(3).await;
    // Nobody else adds a member, takes one away, has one say something else, or is elected.
    let node = &cluster.nodes[0];
    let guessing = cluster.zk().await;
    guessing.log_in("nodes:guessed").await.map_err(anyhow::Error::msg)?;
    for stranger in [&zk, &guessing] {
        refused(stranger.pose_as_member("10.0.0.1:1").await);
        refused(stranger.delete(&servers(node)).await);
        refused(stranger.delete("/bitacora/trimmer").await);
        refused(stranger.overwrite(&sockets(node), "10.0.0.1:1").await);
    }
    guessing.close().await;
    // A lost session, and a dead one's znodes, are no hindrance.
    let old = owner(&zk, node).await;
    node.kill();
    node.spawn()?;
    node.ready().await;
    wait::until("it is registered again", START, || async {
        let owner = registered(&zk, node).await?;
        if owner == old { Err(format!("session {owner:x} is the old one")) } else { Ok(()) }
    })
    .await;
    // A node with another login, or none, says why it is no member.
    for other in [Some(&foreign), None] {
        node.terminate(Duration::from_secs(10)).await;
        match other {
            Some(file) => node.set_env("ZOOKEEPER_AUTH_FILE", file),
            None => node.unset_env("ZOOKEEPER_AUTH_FILE"),
        }
        node.spawn()?;
        wait::until("it says why it is no member", START, || async {
            let log = node.log_tail(50);
            if log.contains("does not let this node register") { Ok(()) } else { Err(log) }
        })
        .await;
        gone(&zk, node).await.map_err(anyhow::Error::msg)?;
        assert!(!node.log_tail(1000).contains("s3cret"), "the password is in the log");
    }
    zk.log_in(LOGIN).await.map_err(anyhow::Error::msg)?;
    zk.pose_as_member("10.0.0.1:1").await.map_err(anyhow::Error::msg)?;
    zk.close().await;
    Ok(())
}

async fn a_node_that_was_frozen_registers_again(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster().await?;
    let zk = cluster.zk().await;
    let node = &cluster.nodes[2];
    let old = owner(&zk, node).await;
    node.pause();
    wait::until("the frozen node's znodes are gone", EXPIRY, || gone(&zk, node)).await;
    cluster.nodes[0].api().set("while frozen", "value").await?.expect(200);
    node.resume();
    let new = owner(&zk, node).await;
    assert_ne!(old, new, "an expired session is not revived");
    cluster.know_each_other(3).await;
    wait::until("it says so", START, || says(node, "connected")).await;
    cluster.all_have("while frozen", Some("value")).await;
    zk.close().await;
    Ok(())
}

async fn says(node: &Node, state: &str) -> Result<(), String> {
    let status = node.api().status().await.map_err(|error| format!("{error:#}"))?;
    if status["membership"]["state"] == state { Ok(()) } else { Err(status["membership"].to_string()) }
}

async fn works(cluster: &Cluster, key: &str) -> Result<()> {
    for (i, node) in cluster.nodes.iter().enumerate() {
        let key = format!("{key} {i}");
        node.api().set(&key, "value").await?.expect(200);
        cluster.all_have(&key, Some("value")).await;
        node.api().health().await?.expect(200);
    }
    Ok(())
}

async fn nodes_serve_without_zookeeper_and_register_again(ctx: Ctx) -> Result<()> {
    let server = ctx.own_zookeeper().await?;
    let cluster = ctx.cluster_with(3, Options::new().zookeeper(server.address())).await?;
    let zk = cluster.zk().await;
    for node in &cluster.nodes {
        owner(&zk, node).await;
    }
    zk.close().await;
    server.stop().await?;
    for node in &cluster.nodes {
        wait::until("it says that ZooKeeper is away", START, || says(node, "disconnected")).await;
        let members = node.api().status().await?["members"].clone();
        assert_eq!(members.as_array().map(Vec::len), Some(3), "the members last known stay: {members}");
    }
    works(&cluster, "without ZooKeeper").await?;
    server.start().await?;
    let zk = cluster.zk().await;
    for node in &cluster.nodes {
        owner(&zk, node).await;
        wait::until("it says that ZooKeeper is back", START, || says(node, "connected")).await;
    }
    // The sessions from before the outage, if they still were, end by now.
    for node in &cluster.nodes {
        wait::holds("it stays registered", Duration::from_millis(1500), || async {
            registered(&zk, node).await.map(drop)
        })
        .await;
    }
    cluster.know_each_other(3).await;
    works(&cluster, "with ZooKeeper again").await?;
    zk.close().await;
    drop(cluster);
    server.remove().await
}
