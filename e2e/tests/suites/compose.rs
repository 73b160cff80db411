//! The deployment as users start it: `docker compose up`, with images built from this checkout.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::cluster::is;
use e2e::deployment::Deployment;
use e2e::http::Api;
use e2e::runner::{Ctx, Test};
use e2e::{tests, wait};

pub fn tests() -> Vec<Test> {
    tests![Deployment: it_serves_and_goes_on_without_a_node]
}

const SOON: Duration = Duration::from_secs(30);
/// What `docker stop` and most orchestrators give a container before they kill it.
const STOP_GRACE: Duration = Duration::from_secs(10);

async fn it_serves_and_goes_on_without_a_node(_: Ctx) -> Result<()> {
    let deployment = Deployment::new();
    let outcome = scenario(&deployment).await;
    match outcome {
        Ok(()) => Ok(()),
        Err(error) => Err(error.context(deployment.report().await)),
    }
}

async fn scenario(deployment: &Deployment) -> Result<()> {
    deployment.up(&[]).await?;
    let balancer = Api::new(deployment.port("BITACORA_PORT"));
    let prometheus = Api::new(deployment.port("PROMETHEUS_PORT"));
    let nodes = ["NODE_1_PORT", "NODE_2_PORT", "NODE_3_PORT"].map(|name| Api::new(deployment.port(name)));

    balancer.set("one", "through the balancer").await?.expect(200);
    for node in &nodes {
        reads(node, "one", Some("through the balancer")).await?;
        sees_members(node, 3).await?;
    }
    // Each node is written to and read by way of the balancer.
    for (i, node) in nodes.iter().enumerate() {
        node.set(&format!("by node {i}"), "value").await?.expect(200);
        reads(&balancer, &format!("by node {i}"), Some("value")).await?;
    }
    // The command line is in the image, and finds the node next to it.
    let read = ["exec", "-T", "node-1", "bitacora", "get", "by node 0"];
    assert_eq!(deployment.compose(&read).await?, "value\n");
    balancer.delete("one").await?.expect(200);
    for node in &nodes {
        reads(node, "one", None).await?;
    }

    let topic = deployment.topic().describe().await?;
    assert_eq!(topic["cleanup.policy"], "compact");
    assert_eq!(topic["message.timestamp.type"], "LogAppendTime");
    scraped(&prometheus, "sum(up{job=\"bitacora\"})", "3").await?;
    scraped(&prometheus, "sum(bitacora_ready)", "3").await?;
    // What the alert about the balancer looks at.
    scraped(&prometheus, "haproxy_backend_active_servers{proxy=\"nodes\"}", "3").await?;

    is_confined(deployment).await?;

    let started = Instant::now();
    deployment.compose(&["stop", "node-2"]).await?;
    let took = started.elapsed();
    ensure!(took < STOP_GRACE, "stopping a node took {took:?}");
    for i in 0..50 {
        // None may fail: the node told the balancer before it went.
        balancer.set(&format!("without node-2 {i}"), "value").await?.expect(200);
        let answer = balancer.get(&format!("by node {}", i % 3)).await?.expect(200);
        ensure!(is(&answer, Some("value")), "{answer}");
    }
    for node in [&nodes[0], &nodes[2]] {
        reads(node, "without node-2 49", Some("value")).await?;
        sees_members(node, 2).await?;
    }

    deployment.up(&["--scale", "node=1"]).await?;
    reads(&nodes[1], "without node-2 49", Some("value")).await?;
    for node in &nodes {
        sees_members(node, 4).await?;
    }
    scraped(&prometheus, "sum(up{job=\"bitacora\"})", "4").await
}

/// A node that has served has no more rights than it needs: no root, no capabilities, no way to get any, the engine's filter of system
/// calls, nothing to write to but its volume.
async fn is_confined(deployment: &Deployment) -> Result<()> {
    let status = deployment.compose(&["exec", "-T", "node-1", "cat", "/proc/1/status"]).await?;
    for (field, expected) in
        [("Uid", "10001"), ("CapEff", "0000000000000000"), ("NoNewPrivs", "1"), ("Seccomp", "2")]
    {
        let found = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let found = found.and_then(|value| value.split_whitespace().next());
        ensure!(found == Some(expected), "{field} of the node is not {expected}:\n{status}");
    }
    let written = deployment.compose(&["exec", "-T", "node-1", "touch", "/usr/local/bin/more"]).await;
    ensure!(format!("{written:?}").contains("Read-only file system"), "{written:?}");
    Ok(())
}

/// Waits until `api` answers with `value`; `None`: with a 404.
pub(super) async fn reads(api: &Api, key: &str, value: Option<&str>) -> Result<()> {
    let read = wait::try_until(SOON, || async {
        let answer = api.get(key).await.map_err(|error| format!("{error:#}"))?;
        if is(&answer, value) { Ok(()) } else { Err(answer.to_string()) }
    });
    read.await
        .map_err(anyhow::Error::msg)
        .with_context(|| format!("{key:?} at port {} is {value:?}", api.port))
}

pub(super) async fn sees_members(api: &Api, count: usize) -> Result<()> {
    let seen = wait::try_until(SOON, || async {
        let status = api.status().await.map_err(|error| format!("{error:#}"))?;
        let members = status["members"].as_array().map_or(0, Vec::len);
        if members == count { Ok(()) } else { Err(status.to_string()) }
    });
    seen.await.map_err(anyhow::Error::msg).with_context(|| format!("port {} has {count} members", api.port))
}

/// Waits until Prometheus answers a query with `value`.
pub(super) async fn scraped(prometheus: &Api, query: &str, value: &str) -> Result<()> {
    let path = format!("/api/v1/query?query={}", e2e::http::encode(query));
    let seen = wait::try_until(SOON, || async {
        let answer =
            prometheus.call(reqwest::Method::GET, &path).await.map_err(|error| format!("{error:#}"))?;
        if answer.json()["data"]["result"][0]["value"][1] == value { Ok(()) } else { Err(answer.to_string()) }
    });
    seen.await.map_err(anyhow::Error::msg).with_context(|| format!("Prometheus says that {query} is {value}"))
}
