//! What takes long lets others go on meanwhile, and keeps its own order.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bitacora_client::{Client, Operation, Outcome};
use bitacora_node::data_dir::DataDir;
use bitacora_node::log::embedded::EmbeddedLog;
use bitacora_node::node::Node;
use futures_util::future::join;

/// Fits into one call of a batch.
const OPERATIONS: usize = 1_000;

/// A node whose log has one partition, so that offsets tell the order of all writes.
struct Running {
    _node: Node,
    rpc: String,
    _folder: tempfile::TempDir,
}

async fn start() -> Running {
    let folder = tempfile::tempdir().expect("a folder");
    let log = DataDir::open(&folder.path().join("log")).expect("a folder");
    let log = Arc::new(EmbeddedLog::open(log, "topic", 1).expect("a log"));
    let (node, address) = support::start(&folder.path().join("node"), log, &[], None).await;
    support::ready(&node).await;
    Running { _node: node, rpc: format!("127.0.0.1:{}", address.avro_port), _folder: folder }
}

impl Running {
    /// With a single connection: the calls of two have no order.
    async fn client(&self) -> Client {
        let builder = Client::builder().nodes([self.rpc.clone()]).connections_per_node(1);
        builder.build().await.expect("a client")
    }
}

fn sets(value: &str) -> Vec<Operation> {
    (0..OPERATIONS)
        .map(|number| Operation::Set { key: format!("key {number}"), value: value.to_owned(), ttl: None })
        .collect()
}

/// The offset of each set.
async fn offsets(client: &Client, sets: &[Operation]) -> Vec<i64> {
    let written = client.batch(sets).await.expect("sent").into_iter().map(|result| match result {
        Ok(Outcome::Written(written)) => written.position.offset,
        other => panic!("{other:?}"),
    });
    written.collect()
}

/// The node has one worker, which is the test's, so that nothing but the node decides who goes first.
#[tokio::test]
async fn a_write_goes_between_those_of_a_long_batch() {
    let running = start().await;
    let (batching, other) = (running.client().await, running.client().await);
    for client in [&batching, &other] {
        client.set("connected", "v").await.expect("written");
    }
    let ended = AtomicBool::new(false);
    let batch = async {
        let offsets = offsets(&batching, &sets("v")).await;
        ended.store(true, Ordering::Relaxed);
        offsets
    };
    // Each is sent without waiting for the one before, whose acknowledgement may come after the whole batch has begun.
    let others = async {
        let mut sets = Vec::new();
        while !ended.load(Ordering::Relaxed) && sets.len() < OPERATIONS {
            let client = other.clone();
            sets.push(tokio::spawn(async move { client.set("other", "v").await }));
            tokio::task::yield_now().await;
        }
        let mut offsets = Vec::new();
        for set in sets {
            offsets.push(set.await.expect("no panic").expect("written").position.offset);
        }
        offsets
    };
    let (batch, others) = join(batch, others).await;
    assert!(batch.is_sorted(), "the batch keeps its own order");
    let (first, last) = (batch[0], batch[OPERATIONS - 1]);
    assert!(others.iter().any(|other| (first..last).contains(other)), "{first} to {last}, {others:?}");
}

#[tokio::test]
async fn batches_of_a_connection_are_begun_one_by_one() {
    let running = start().await;
    let client = running.client().await;
    client.set("connected", "v").await.expect("written");
    let (first, second) = (sets("first"), sets("second"));
    let (first, second) = join(offsets(&client, &first), offsets(&client, &second)).await;
    // The client may send either first.
    let ends = [first.first(), first.last(), second.first(), second.last()];
    assert!(first.last() < second.first() || second.last() < first.first(), "{ends:?}");
}
