//! A write is followed from the request into the apply, by its trace.

#[path = "support/otlp.rs"]
mod otlp;
#[path = "support/rpc.rs"]
mod rpc;
mod support;

use std::sync::Arc;

use bitacora_node::cluster::Address;
use bitacora_node::data_dir::DataDir;
use bitacora_node::log::embedded::EmbeddedLog;
use bitacora_node::node::Node;
use bitacora_protocol::Operation;
use bitacora_protocol::rpc::{Request, put_frame};

use self::otlp::Collector;
use self::rpc::{put_first_call, rpc_answers};
use self::support::{PATIENCE, ready, start};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

fn log(dir: &std::path::Path) -> Arc<EmbeddedLog> {
    let dir = DataDir::open(&dir.join("log")).expect("a folder");
    Arc::new(EmbeddedLog::open(dir, "bitacora", 1).expect("a log"))
}

async fn set(address: &str, key: &str, traceparent: Option<&str>) {
    let client = bitacora_node::http_client::builder().timeout(PATIENCE).build().expect("a client");
    let mut request = client.post(format!("http://{address}/rpc?key={key}&value=v"));
    if let Some(traceparent) = traceparent {
        request = request.header("traceparent", traceparent);
    }
    let answer = request.send().await.expect("an answer");
    assert_eq!(answer.status(), 200, "{key}");
}

/// Two nodes on one log, which send their spans to a collector.
struct Pair {
    collector: Collector,
    one: Node,
    address: Address,
    two: Node,
    other: Address,
    _folder: tempfile::TempDir,
}

async fn pair() -> Pair {
    let folder = tempfile::tempdir().expect("a folder");
    let collector = Collector::start().await;
    let (log, endpoint) = (log(folder.path()), collector.endpoint());
    let flags = ["--otlp-endpoint", &endpoint];
    let (one, address) =
        start(&folder.path().join("one"), Arc::<EmbeddedLog>::clone(&log), &flags, None).await;
    let (two, other) = start(&folder.path().join("two"), log, &flags, None).await;
    ready(&one).await;
    ready(&two).await;
    Pair { collector, one, address, two, other, _folder: folder }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_is_followed_into_the_apply_of_every_node() {
    let Pair { collector, one, address, two, other, _folder } = pair().await;
    let traceparent = format!("00-{TRACE}-{CALLER}-01");
    set(&address.api(), "traced", Some(&traceparent)).await;

    let request = collector.span(PATIENCE, |span| span.name == "set" && span.trace == TRACE).await;
    assert_eq!(request.parent, CALLER);
    assert!(request.node.contains(&address.api()), "{request:?}");
    for node in [address.api(), other.api()] {
        let applied = collector
            .span(PATIENCE, |span| span.name == "apply" && span.trace == TRACE && span.node.contains(&node))
            .await;
        assert_eq!(applied.parent, request.span);
    }
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_over_rpc_is_followed_into_the_apply_of_every_node() {
    let Pair { collector, one, address, two, other, _folder } = pair().await;
    let mut calls = Vec::new();
    put_first_call(&mut calls, 1, &Request::SetValue { key: "k", value: "v" });
    put_frame(&mut calls, 2, |out| Request::Batch(vec![Operation::delete("l")]).encode(out));
    put_frame(&mut calls, 3, |out| Request::GetRecord { key: "k" }.encode(out));
    rpc_answers(&address.avro(), &calls, 3).await;

    for call in ["set", "batch"] {
        let request = collector.span(PATIENCE, |span| span.interface == "rpc" && span.name == call).await;
        assert_eq!((&request.parent[..], &request.node), ("", &address.api()), "{request:?}");
        for node in [address.api(), other.api()] {
            let applied = collector
                .span(PATIENCE, |span| {
                    span.name == "apply" && span.parent == request.span && span.node == node
                })
                .await;
            assert_eq!(applied.trace, request.trace);
        }
    }
    collector.span(PATIENCE, |span| span.interface == "rpc" && span.name == "get").await;
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_log_held_before_the_start_is_not_traced() {
    let dir = tempfile::tempdir().expect("a folder");
    let collector = Collector::start().await;
    let (log, endpoint) = (log(dir.path()), collector.endpoint());
    let flags = ["--otlp-endpoint", &endpoint];
    let (one, address) = start(&dir.path().join("one"), Arc::<EmbeddedLog>::clone(&log), &flags, None).await;
    ready(&one).await;
    set(&address.api(), "early", Some(&format!("00-{TRACE}-{CALLER}-01"))).await;
    let (two, other) = start(&dir.path().join("two"), log, &flags, None).await;
    ready(&two).await;
    set(&other.api(), "late", None).await;
    collector.span(PATIENCE, |span| span.name == "apply" && span.node.contains(&other.api())).await;
    // Sends what waits.
    two.stop().await;
    one.stop().await;
    let spans = collector.spans();
    assert!(spans.iter().all(|span| span.trace != TRACE || !span.node.contains(&other.api())), "{spans:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_traceparent_is_ignored() {
    let dir = tempfile::tempdir().expect("a folder");
    let collector = Collector::start().await;
    let flags = ["--otlp-endpoint", &collector.endpoint()];
    let (node, address) = start(&dir.path().join("node"), log(dir.path()), &flags, None).await;
    ready(&node).await;
    set(&address.api(), "k", Some("00-nonsense")).await;
    let request = collector.span(PATIENCE, |span| span.name == "set").await;
    assert_eq!(request.parent, "");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stop_sends_what_waits_and_no_trace_is_made_if_unwanted() {
    let dir = tempfile::tempdir().expect("a folder");
    let collector = Collector::start().await;
    let flags = ["--otlp-endpoint", &collector.endpoint()];
    let (node, address) = start(&dir.path().join("node"), log(dir.path()), &flags, None).await;
    ready(&node).await;
    set(&address.api(), "unwanted", Some(&format!("00-{TRACE}-{CALLER}-00"))).await;
    set(&address.api(), "wanted", None).await;
    tokio::time::timeout(PATIENCE, node.stop()).await.expect("it stops");
    let spans = collector.spans();
    assert!(spans.iter().any(|span| span.name == "set"), "{spans:?}");
    assert!(spans.iter().all(|span| span.trace != TRACE), "{spans:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_costs_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    // A port that nobody listens on.
    let endpoint = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        format!("http://{}", listener.local_addr().expect("bound"))
    };
    let flags = ["--otlp-endpoint", &endpoint];
    let (node, address) = start(&dir.path().join("node"), log(dir.path()), &flags, None).await;
    ready(&node).await;
    for _ in 0..100 {
        set(&address.api(), "k", None).await;
    }
    tokio::time::timeout(PATIENCE, node.stop()).await.expect("it stops");
}
