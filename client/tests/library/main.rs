//! The client library against nodes that do as they are told.

mod batch_options;
mod batches;
mod calls;
mod closing;
mod conditions;
mod connections;
mod consistency;
mod discovery;
mod ejection;
mod locks;
mod mirror_files;
mod mirrors;
mod retries;
#[path = "../support/mod.rs"]
mod support;
mod watches;
#[path = "../support/zookeeper.rs"]
mod zookeeper;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bitacora_client::{
    Client, ClientBuilder, Error, NodeState, Operation, Outcome, Position, Refusal, Scan, ServedFrom,
};
use bitacora_protocol::rpc::{ErrorCode, MAX_BATCH_OPERATIONS, Request};
use futures_util::future::{join_all, poll_immediate};
use futures_util::{StreamExt, TryStreamExt};
use parking_lot::Mutex;
use support::{FakeNode, Greeting, Reaction, Store};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use zookeeper::FakeZooKeeper;

/// Nothing takes that long unless it is broken.
const PATIENCE: Duration = Duration::from_secs(20);
/// Of calls that are meant to run into it.
const SHORT: Duration = Duration::from_millis(200);

fn builder(nodes: &[&FakeNode]) -> ClientBuilder {
    Client::builder()
        .nodes(nodes.iter().map(|node| node.address()))
        .deadline(PATIENCE)
        .connections_per_node(1)
}

async fn client(nodes: &[&FakeNode]) -> Client {
    builder(nodes).build().await.expect("the settings are right")
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn ejected(client: &Client, node: &str) -> Option<String> {
    let status = client.nodes().into_iter().find(|status| status.address == node).expect("it is a member");
    match status.state {
        NodeState::Healthy => None,
        NodeState::Ejected { reason } => Some(reason),
    }
}

fn under_way(client: &Client) -> usize {
    client.nodes().iter().map(|node| node.under_way).sum()
}

/// Reads until the node is ejected; none of the reads may fail.
async fn read_until_ejected(client: &Client, node: &FakeNode) -> String {
    let start = Instant::now();
    loop {
        client.get("k").await.expect("the other node has it");
        if let Some(reason) = ejected(client, &node.address()) {
            return reason;
        }
        assert!(start.elapsed() < PATIENCE, "it is never ejected");
    }
}

/// Two nodes of one cluster.
async fn two() -> (Arc<Mutex<Store>>, FakeNode, FakeNode) {
    let store = Arc::default();
    (Arc::clone(&store), FakeNode::of(&store).await, FakeNode::of(&store).await)
}

fn set(key: &str, value: &str) -> Operation {
    Operation::Set { key: key.to_owned(), value: value.to_owned(), ttl: None }
}

fn get(key: &str) -> Operation {
    Operation::Get { key: key.to_owned() }
}
