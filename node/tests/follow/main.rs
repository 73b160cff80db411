//! The client library against real nodes over an embedded log, on real sockets. Between the client and each node there is a relay, which
//! the tests cut.

mod mirrors;
#[path = "../support/mod.rs"]
mod support;
mod watches;

use std::sync::Arc;
use std::time::Duration;

use bitacora_client::Client;
use bitacora_node::data_dir::DataDir;
use bitacora_node::log::embedded::EmbeddedLog;
use bitacora_node::node::Node;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use self::support::{PATIENCE, ready, start};

/// Two nodes of one log, and the ways to them.
struct Cluster {
    nodes: Vec<Node>,
    relays: Vec<Relay>,
    _folder: TempDir,
}

impl Cluster {
    async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let data_dir = DataDir::open(&folder.path().join("log")).expect("a folder");
        let log = Arc::new(EmbeddedLog::open(data_dir, "topic", 4).expect("a log"));
        let (mut nodes, mut relays) = (Vec::new(), Vec::new());
        for name in ["one", "other"] {
            let (node, address) = start(&folder.path().join(name), log.clone(), &[], None).await;
            ready(&node).await;
            nodes.push(node);
            relays.push(Relay::start("127.0.0.1:0", address.avro()).await);
        }
        Self { nodes, relays, _folder: folder }
    }

    async fn client(&self) -> Client {
        let builder = Client::builder().nodes(self.relays.iter().map(|relay| &relay.address));
        builder.deadline(Duration::from_secs(10)).build().await.expect("the settings are right")
    }

    /// The node is out of reach from now on, and its connections break.
    async fn cut(&mut self, index: usize) {
        let relay = &mut self.relays[index];
        relay.task.abort();
        assert!((&mut relay.task).await.is_err(), "it runs until then");
    }

    async fn mend(&mut self, index: usize) {
        let Relay { address, to, .. } = &self.relays[index];
        self.relays[index] = Relay::start(address, to.clone()).await;
    }

    async fn stop(self) {
        for node in self.nodes {
            node.stop().await;
        }
    }
}

/// Passes bytes on, until it is aborted.
struct Relay {
    address: String,
    to: String,
    task: JoinHandle<()>,
}

impl Relay {
    async fn start(address: &str, to: String) -> Self {
        let listener = TcpListener::bind(address).await.expect("the port is free");
        let address = listener.local_addr().expect("it is bound").to_string();
        let node = to.clone();
        let task = tokio::spawn(async move {
            // Dropped with this task.
            let mut connections = JoinSet::new();
            while let Ok((mut client, _)) = listener.accept().await {
                let node = node.clone();
                connections.spawn(async move {
                    let mut node = TcpStream::connect(node).await.expect("the node listens");
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut node).await;
                });
            }
        });
        Self { address, to, task }
    }
}
