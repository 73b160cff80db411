//! A node over an embedded log, on real sockets.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bitacora_node::cluster::Address;
use bitacora_node::cluster::fixed::FixedMembership;
use bitacora_node::data_dir::DataDir;
use bitacora_node::log::Log;
use bitacora_node::node::{Node, Parts};
use bitacora_node::settings::{Cli, Command, NodeSettings};
use clap::Parser as _;
use tokio::net::TcpListener;

/// No test waits longer for what should come at once.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Starts a node with the flags of `dev`, alone or in a cluster with another member at `host:port`; its store is in `dir`.
pub async fn start(dir: &Path, log: Arc<dyn Log>, flags: &[&str], other: Option<String>) -> (Node, Address) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let rpc_listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = |listener: &TcpListener| listener.local_addr().expect("bound").port();
    let address =
        Address { host: "127.0.0.1".to_owned(), api_port: port(&listener), avro_port: port(&rpc_listener) };
    let members = std::iter::once(address.api()).chain(other).collect();
    let node = Node::start(Parts {
        log,
        membership: Arc::new(FixedMembership::new(members, &address.api())),
        data_dir: DataDir::open(dir).expect("a folder"),
        listener,
        rpc_listener,
        address: address.clone(),
        original_nodes: false,
        settings: settings(flags),
        hangups: tokio::sync::watch::channel(()).1,
    });
    (node.expect("it starts"), address)
}

/// Waits until a node is ready for requests.
pub async fn ready(node: &Node) {
    let progress = node.progress();
    let mut changed = progress.watch();
    let ready = async {
        while progress.unready().is_some() {
            changed.changed().await.expect("the node lives");
        }
    };
    tokio::time::timeout(PATIENCE, ready).await.expect("an embedded log is read at once");
}

/// Those of `dev` with these flags.
pub fn settings(flags: &[&str]) -> NodeSettings {
    let cli = Cli::try_parse_from([&["bitacora-node", "dev"], flags].concat()).expect("settings");
    let Command::Dev(settings) = cli.command else { panic!("dev was asked for") };
    settings.node
}
