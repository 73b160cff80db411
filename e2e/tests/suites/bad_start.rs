//! A node that cannot do its work says so in one sentence, at once; one that can wait for others waits.

use std::net::TcpListener;
use std::time::Duration;

use anyhow::Result;
use e2e::cluster::{Node, Options, START};
use e2e::http::Answer;
use e2e::runner::{Ctx, Test};
use e2e::{ports, tests, wait};
use reqwest::Method;

pub fn tests() -> Vec<Test> {
    tests![
        Nothing: a_wrong_setting_stops_the_node_and_is_named, two_doors_on_one_port_stop_the_node;
        Servers: a_topic_that_is_not_compacted_stops_the_node,
            a_topic_that_is_not_compacted_can_be_insisted_on, unreachable_brokers_are_waited_for,
            an_unreachable_zookeeper_does_not_stop_the_node, a_data_folder_that_cannot_be_used_stops_the_node,
            a_port_in_use_stops_the_node
    ]
}

const AT_ONCE: Duration = Duration::from_secs(10);

/// The node ends by itself, not with success, and its last words name `what`.
async fn gives_up(node: &Node, what: &[&str]) -> Result<()> {
    gives_up_within(AT_ONCE, node, what).await
}

pub(super) async fn gives_up_within(deadline: Duration, node: &Node, what: &[&str]) -> Result<()> {
    node.spawn()?;
    let (status, took) = node.ended(deadline).await;
    let words = node.log_tail(30);
    assert!(!status.success(), "{}: ended with success: {words}", node.name);
    assert!(status.code().is_some(), "{}: ended by a signal, {status}, after {took:?}: {words}", node.name);
    // A flag and its variable are one name in two spellings.
    let spelled = words.to_uppercase().replace('-', "_");
    for part in what {
        let part = part.to_uppercase().replace('-', "_");
        assert!(spelled.contains(&part), "{}: {part:?} is not in its last words:\n{words}", node.name);
    }
    for internal in ["panicked", "RUST_BACKTRACE", "stack backtrace", "Os {", "Err("] {
        assert!(!words.contains(internal), "{}: {internal:?} in its last words:\n{words}", node.name);
    }
    Ok(())
}

async fn a_wrong_setting_stops_the_node_and_is_named(ctx: Ctx) -> Result<()> {
    let wrong = [
        ("BROKER_LIST", "kafka"),
        ("BROKER_LIST", "kafka:port"),
        ("ZOOKEEPER_HOSTS", "zk"),
        ("ZOOKEEPER_HOSTS", "zk:70000"),
        ("KAFKA_TOPIC", "a b"),
        ("KAFKA_PROPERTIES", "sasl.mechanism=OAUTHBEARER"),
        ("API_PORT", "0"),
        ("API_PORT", "http"),
        ("AVRO_PORT", "65536"),
        ("TOPIC_PARTITIONS", "0"),
        ("EXTERNAL_REQUEST_TIMEOUT", "soon"),
        ("WRITE_TIMEOUT", "-1"),
        ("PEER_READS", "sometimes"),
        ("MAX_VALUE_BYTES", "0"),
        ("CACHE_BYTES", "much"),
        ("DELETE_RETENTION", "1 week"),
        ("ZOOKEEPER_SESSION_TIMEOUT", "10"),
        ("ZOOKEEPER_AUTH_FILE", "/nowhere/login"),
        ("LOG_FORMAT", "xml"),
        ("NODE_ADDRESS", "http://me"),
        ("ADDRESS_SOURCE", "azure"),
        ("BIND_ADDRESS", "everywhere"),
        ("ALLOWED_ORIGINS", "https://app.example/path"),
        ("TLS_KEY_FILE", "/nowhere/node.key"),
        ("TLS_CLIENT_CERTIFICATES", "sometimes"),
        ("TLS_CLIENT_CERTIFICATES", "required"),
    ];
    for (name, value) in wrong {
        let node = Node::new(&ctx, vec![(name.to_string(), value.to_string())]).await?;
        gives_up(&node, &[name]).await?;
        assert!(!node.data_dir.exists(), "{name}={value}: a node with wrong settings left a data folder");
    }
    Ok(())
}

async fn two_doors_on_one_port_stop_the_node(ctx: Ctx) -> Result<()> {
    let node = Node::new(&ctx, Vec::new()).await?;
    node.set_env("AVRO_PORT", node.api_port);
    gives_up(&node, &[&node.api_port.to_string()]).await
}

async fn a_topic_that_is_not_compacted_stops_the_node(ctx: Ctx) -> Result<()> {
    for policy in ["delete", "compact,delete"] {
        let mut cluster = ctx.no_nodes(Options::new()).await?;
        cluster.topic.create(2, &[("cleanup.policy", policy)]).await?;
        let name = cluster.topic.name.clone();
        let node = cluster.add().await?;
        gives_up(node, &[&name, "cleanup.policy", "kafka-configs", "--alter"]).await?;
    }
    Ok(())
}

async fn a_topic_that_is_not_compacted_can_be_insisted_on(ctx: Ctx) -> Result<()> {
    let mut cluster = ctx.no_nodes(Options::new().env("ALLOW_UNCOMPACTED_TOPIC", "true")).await?;
    cluster.topic.create(2, &[("cleanup.policy", "delete")]).await?;
    let node = cluster.add().await?;
    node.spawn()?;
    node.ready().await;
    node.api().set("key", "value").await?.expect(200);
    node.has("key", Some("value")).await;
    Ok(())
}

async fn unreachable_brokers_are_waited_for(ctx: Ctx) -> Result<()> {
    let port = ports::free();
    let mut cluster = ctx.no_nodes(Options::new().brokers(format!("127.0.0.1:{port}"))).await?;
    let node = cluster.add().await?;
    node.set_env("WRITE_TIMEOUT", "1000");
    node.spawn()?;
    let get = async |path: &str| -> Result<Answer, String> {
        node.api().call(Method::GET, path).await.map_err(|error| format!("{error:#}"))
    };
    wait::until("the node lives", START, || get("/health/live")).await.expect(200);
    wait::holds("it lives, and is not ready", Duration::from_secs(3), || async {
        if let Some(status) = node.exit_status() {
            return Err(format!("it ended with {status}"));
        }
        for (path, wanted) in [("/health/live", 200), ("/health", 503), ("/health/ready", 503)] {
            let answer = get(path).await?;
            if answer.status != wanted {
                return Err(format!("{path} is {answer}"));
            }
        }
        Ok(())
    })
    .await;
    // It does not know, so it neither affirms nor denies.
    let answer = node.api().get("key").await?.expect(503);
    assert!(answer.header("retry-after").is_some(), "{answer}");
    answer.message();
    let answer = node.api().set("key", "value").await?.expect(503);
    assert!(answer.header("retry-after").is_some(), "{answer}");
    let words = node.log_tail(30);
    assert!(words.contains(&port.to_string()), "the log names the broker that is not reached:\n{words}");
    let (status, _) = node.terminate(AT_ONCE).await;
    assert!(status.success(), "{status}");
    Ok(())
}

async fn an_unreachable_zookeeper_does_not_stop_the_node(ctx: Ctx) -> Result<()> {
    let port = ports::free();
    let mut cluster = ctx.no_nodes(Options::new().zookeeper(format!("127.0.0.1:{port}"))).await?;
    let node = cluster.add().await?;
    node.spawn()?;
    node.ready().await;
    node.api().set("key", "value").await?.expect(200);
    node.has("key", Some("value")).await;
    wait::until("it says that ZooKeeper is away", START, || async {
        let status = node.api().status().await.map_err(|error| format!("{error:#}"))?;
        if status["membership"]["state"] == "disconnected" { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
    wait::until("its log says so too", START, || async {
        let words = node.log_tail(50);
        if words.contains("ZooKeeper") { Ok(()) } else { Err(words) }
    })
    .await;
    Ok(())
}

async fn a_data_folder_that_cannot_be_used_stops_the_node(ctx: Ctx) -> Result<()> {
    let mut cluster = ctx.no_nodes(Options::new()).await?;
    let file = ctx.dir.join("a-file");
    std::fs::write(&file, "not a folder")?;
    let shown = file.display().to_string();
    let node = cluster.add().await?;
    node.set_env("DATA_DIR", &shown);
    gives_up(node, &[&shown]).await?;
    // Not writable for anybody, root included.
    let node = cluster.add().await?;
    node.set_env("DATA_DIR", "/proc/bitacora-e2e");
    gives_up(node, &["/proc/bitacora-e2e"]).await?;

    let first = cluster.add().await?;
    first.spawn()?;
    first.ready().await;
    let used = first.data_dir.display().to_string();
    let second = cluster.add().await?;
    second.set_env("DATA_DIR", &used);
    gives_up(second, &[&used]).await?;
    let first = &cluster.nodes[2];
    first.api().set("key", "value").await?.expect(200);
    first.has("key", Some("value")).await;
    Ok(())
}

async fn a_port_in_use_stops_the_node(ctx: Ctx) -> Result<()> {
    let mut cluster = ctx.no_nodes(Options::new()).await?;
    let node = cluster.add().await?;
    let taken = TcpListener::bind(("127.0.0.1", node.api_port))?;
    gives_up(node, &[&node.api_port.to_string()]).await?;
    drop(taken);
    // It kept nothing that would be in its own way.
    node.spawn()?;
    node.ready().await;
    Ok(())
}
