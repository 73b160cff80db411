//! Traces by OTLP: a write is followed from the client's request into every node that applies it.

use std::time::Duration;

use anyhow::{Context, Result};
use e2e::cluster::{Cluster, Options};
use e2e::runner::{Ctx, Test};
use e2e::tests;
use reqwest::Method;

use self::otlp::Collector;

#[path = "../../../node/tests/support/otlp.rs"]
mod otlp;

pub fn tests() -> Vec<Test> {
    tests![Servers: a_write_is_followed_into_every_node]
}

const SAMPLED: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const NOT_SAMPLED: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "00f067aa0ba902b7";
/// Spans are sent in batches, every few seconds.
const PATIENCE: Duration = Duration::from_secs(30);

async fn set(cluster: &Cluster, value: &str, traceparent: &str) -> Result<()> {
    let path = format!("/rpc?key=traced&value={value}");
    let headers = [("traceparent", traceparent)];
    cluster.nodes[0].api().send(Method::POST, &path, &headers, Vec::new()).await?.expect(200);
    Ok(())
}

async fn a_write_is_followed_into_every_node(ctx: Ctx) -> Result<()> {
    let collector = Collector::start().await;
    let cluster = ctx.cluster_with(3, Options::new().env("OTLP_ENDPOINT", collector.endpoint())).await?;
    // Of the same key, so that every node applies the first before the second, and tells of it no later.
    set(&cluster, "unsampled", &format!("00-{NOT_SAMPLED}-{CALLER}-00")).await?;
    set(&cluster, "sampled", &format!("00-{SAMPLED}-{CALLER}-01")).await?;

    let first = format!("127.0.0.1:{}", cluster.nodes[0].api_port);
    let request = collector.span(PATIENCE, |span| span.name == "set" && span.trace == SAMPLED).await;
    assert_eq!(request.parent, CALLER);
    assert!(request.node.contains(&first), "the request went to {first}: {request:?}");
    for node in &cluster.nodes {
        let address = format!("127.0.0.1:{}", node.api_port);
        let of_node = |span: &otlp::ReceivedSpan| {
            span.name == "apply" && span.trace == SAMPLED && span.node.contains(&address)
        };
        let applied = collector.span(PATIENCE, of_node).await;
        assert_eq!(applied.parent, request.span, "{applied:?}");
    }
    let spans = collector.spans();
    assert!(spans.iter().all(|span| span.trace != NOT_SAMPLED), "{spans:?}");
    assert_eq!(spans.iter().filter(|span| span.trace == SAMPLED && span.name == "apply").count(), 3);

    let mut records = cluster.topic.read_all().await?;
    records.retain(|record| record.key_text() == "traced");
    records.sort_by_key(|record| record.position.offset);
    let headers: Vec<Option<String>> = records
        .iter()
        .map(|record| {
            let header = record.headers.iter().find(|(name, _)| name == "traceparent");
            header.map(|(_, content)| String::from_utf8_lossy(content).into_owned())
        })
        .collect();
    let [unsampled, sampled] = &headers[..] else { anyhow::bail!("not two records: {records:?}") };
    assert_eq!(*unsampled, None);
    let sampled = sampled.as_ref().context("the record of the sampled write has no traceparent")?;
    assert_eq!(*sampled, format!("00-{SAMPLED}-{}-01", request.span));
    Ok(())
}
