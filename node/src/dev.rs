//! `dev`: a cluster of several nodes in one process, over an embedded log, with nothing to install.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use bitacora_program::console;
use futures_util::future::{join_all, select_all};

use crate::cluster::Address;
use crate::cluster::fixed::FixedMembership;
use crate::data_dir::DataDir;
use crate::log::Log;
use crate::log::embedded::EmbeddedLog;
use crate::node::{Node, Parts};
use crate::serve::listen;
use crate::settings::{DevSettings, LiveUpdates};

const HOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const TOPIC: &str = "bitacora";
const PARTITIONS: usize = 4;

/// Runs the cluster until `stop` completes.
///
/// # Errors
/// When the cluster can't start, or a node's replica has failed for good; the text is for the terminal.
pub async fn run(settings: DevSettings, live: LiveUpdates, stop: impl Future<Output = ()>) -> Result<()> {
    let addresses: Vec<_> = (0..settings.nodes).map(|i| address(settings.port, i)).collect::<Result<_>>()?;
    // Every port and folder before the first node, so that what is wrong is told before anything runs.
    let mut listeners = Vec::new();
    for address in &addresses {
        let http = listen(HOST, address.api_port, "--port")?;
        listeners.push((http, listen(HOST, address.avro_port, "--port")?));
    }
    let root = DataDir::open(&settings.data_dir)?;
    take_over_folders(root.path())?;
    let log = EmbeddedLog::open(DataDir::open(&root.path().join("log"))?, TOPIC, PARTITIONS)?;
    let log: Arc<dyn Log> = Arc::new(log.with_delete_retention(settings.node.delete_retention));
    let members: Vec<_> = addresses.iter().map(Address::api).collect();
    let mut nodes = Vec::new();
    for (number, ((listener, rpc_listener), address)) in
        (1..).zip(listeners.into_iter().zip(addresses.clone()))
    {
        let data_dir = DataDir::open(&folder(root.path(), number))?;
        nodes.push(Node::start(Parts {
            log: Arc::clone(&log),
            membership: Arc::new(FixedMembership::new(members.clone(), &address.api())),
            data_dir,
            listener,
            rpc_listener,
            address,
            original_nodes: false,
            settings: settings.node.clone(),
            hangups: live.hangups.clone(),
        })?);
    }
    let progress: Vec<_> = nodes.iter().map(Node::progress).collect();
    let failed = select_all(nodes.iter().map(|node| Box::pin(node.failed())));
    let outcome = tokio::select! {
        () = stop => Ok(()),
        // The screen comes when what it promises is true.
        () = async {
            ready(&progress).await;
            show(screen(&addresses, &settings));
            std::future::pending::<()>().await;
        } => Ok(()),
        (reason, _, _) = failed => Err(anyhow!(reason)),
        () = live.follow(&nodes) => Ok(()),
    };
    join_all(nodes.into_iter().map(Node::stop)).await;
    outcome
}

/// The folder of a node, by its place among the nodes: they may have other ports each time.
fn folder(root: &Path, number: usize) -> PathBuf {
    root.join(format!("node{number}"))
}

/// Versions before this named a node's folder by its port, `node-8080`, and left it behind when `--port` changed.
fn take_over_folders(root: &Path) -> Result<()> {
    let entries = std::fs::read_dir(root).with_context(|| format!("{} can't be read", root.display()))?;
    let mut old: Vec<(u16, PathBuf)> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            Some((path.file_name()?.to_str()?.strip_prefix("node-")?.parse().ok()?, path))
        })
        .collect();
    old.sort();
    let mut free = (1..).map(|number| folder(root, number)).filter(|path| !path.exists());
    for (_, path) in old {
        let Some(new) = free.next() else { break };
        std::fs::rename(&path, &new)
            .with_context(|| format!("{} can't be renamed to {}", path.display(), new.display()))?;
    }
    Ok(())
}

fn address(first: u16, index: u16) -> Result<Address> {
    let port = |offset: u32| {
        u16::try_from(u32::from(first) + offset)
            .ok()
            .context("--port and --nodes lead to ports above 65535; choose a lower --port")
    };
    let (api_port, avro_port) = (port(2 * u32::from(index))?, port(2 * u32::from(index) + 1)?);
    Ok(Address { host: HOST.to_string(), api_port, avro_port })
}

async fn ready(progress: &[Arc<crate::replication::progress::Progress>]) {
    for progress in progress {
        let mut changed = progress.watch();
        while progress.unready().is_some() && changed.changed().await.is_ok() {}
    }
}

/// Best effort, and on a thread of its own: whoever should read it may be gone, or read nothing.
fn show(screen: String) {
    tokio::task::spawn_blocking(move || drop(console::print(screen)));
}

fn screen(addresses: &[Address], settings: &DevSettings) -> String {
    use std::fmt::Write as _;
    let api = |index: usize| addresses.get(index).map(Address::api).unwrap_or_default();
    let last = addresses.len().saturating_sub(1);
    // A read goes to another node than the write, to show that it gets there.
    let (first, second, last) = (api(0), api(last.min(1)), api(last));
    let mut screen = format!(
        "\nBitacora {} is running: {} node(s), one log of {PARTITIONS} partitions\n\n",
        env!("CARGO_PKG_VERSION"),
        addresses.len()
    );
    let token = match &settings.node.tokens_file {
        None => "",
        Some(_) => " -H \"Authorization: Bearer $(cat TOKEN_FILE)\"",
    };
    let (scheme, curl) = match &settings.node.tls_ca_file {
        None => ("http", "curl".to_owned()),
        Some(ca) => ("https", format!("curl --cacert {}", ca.display())),
    };
    for address in addresses {
        let _ = writeln!(screen, "  {scheme}://{}   Avro RPC at {}", address.api(), address.avro());
    }
    let _ = write!(
        screen,
        "\nData is kept in {} and survives a restart. Paste these into another terminal:\n\n  \
         {curl}{token} -X POST '{scheme}://{first}/rpc?key=one&value=abc'\n  \
         {curl}{token} '{scheme}://{second}/rpc?key=one'\n  \
         {curl}{token} '{scheme}://{last}/status'\n\nCtrl-C stops it.\n\n",
        std::path::absolute(&settings.data_dir).unwrap_or_else(|_| settings.data_dir.clone()).display()
    );
    screen
}
