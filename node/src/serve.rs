//! `serve`: a node on Kafka and ZooKeeper.

use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use tokio::net::{TcpListener, TcpSocket};

use crate::cluster::Address;
use crate::cluster::aws;
use crate::cluster::own_address::own_address;
use crate::cluster::zookeeper::ZooKeeperMembership;
use crate::data_dir::DataDir;
use crate::log::kafka::{KafkaLog, KafkaSettings, TokenEndpoint, without_values};
use crate::node::{Node, Parts};
use crate::service::writes::{MAX_KEY_BYTES, RECORD_OVERHEAD_BYTES};
use crate::settings::{AddressSource, LiveUpdates, ServeSettings};

/// Nodes of the original system fetch 100,000 bytes at a time, and stop for ever at a record, or a batch of them, that has more.
const ORIGINAL_VALUE_BYTES: u64 = 97_000;
/// The same, for the batches that a node sends to Kafka.
const ORIGINAL_BATCH_BYTES: usize = 90_000;

/// Runs a node until `stop` completes.
///
/// # Errors
/// When the node can't start, or its replica has failed for good; the text is for the terminal.
pub async fn run(
    mut settings: ServeSettings,
    live: LiveUpdates,
    stop: impl Future<Output = ()>,
) -> Result<()> {
    let avro_port = match settings.avro_port {
        Some(port) => port,
        None => settings.api_port.checked_add(1).context("API_PORT + 1 is no port; set AVRO_PORT")?,
    };
    if avro_port == settings.api_port {
        bail!("API_PORT and AVRO_PORT are both {avro_port}; choose another for one of them");
    }
    // Told before Kafka is waited for.
    settings.node.request_memory_bytes().map_err(|error| anyhow!(error))?;
    if let Some(tls) = settings.node.tls_settings().map_err(|error| anyhow!(error))? {
        tls.check().map_err(|error| anyhow!(error))?;
    }
    if settings.original_nodes && settings.node.max_value_bytes > ORIGINAL_VALUE_BYTES {
        settings.node.max_value_bytes = ORIGINAL_VALUE_BYTES;
        tracing::info!(
            "ORIGINAL_NODES: larger values than {ORIGINAL_VALUE_BYTES} bytes are refused, at which the original's nodes would stop"
        );
    }
    let mut properties = settings.properties().map_err(|error| anyhow!(error))?;
    let token_endpoint = TokenEndpoint::take_from(&mut properties);
    let token_endpoint = token_endpoint.map_err(|error| anyhow!("KAFKA_PROPERTIES: {error}"))?;
    let login = settings.zookeeper_login().map_err(|error| anyhow!(error))?;
    let data_dir = DataDir::open(&settings.data_dir)?;
    let listener = listen(settings.bind_address, settings.api_port, "API_PORT")?;
    let rpc_listener = listen(settings.bind_address, avro_port, "AVRO_PORT")?;
    let mut stop = pin!(stop);
    let address = tokio::select! {
        address = address(&settings, avro_port) => address?,
        () = &mut stop => return Ok(()),
    };
    let log =
        KafkaLog::new(kafka_settings(&settings, &address, properties, token_endpoint)?).map_err(|error| {
            let error = without_values(&error);
            anyhow!("KAFKA_PROPERTIES: librdkafka refuses its configuration: {error}")
        })?;
    let membership = ZooKeeperMembership::start(
        &settings.zookeeper_hosts,
        settings.zookeeper_session_timeout,
        login,
        address.clone(),
    );
    tracing::info!(
        node = address.api(),
        listening = %listener.local_addr()?,
        brokers = settings.broker_list,
        topic = settings.kafka_topic,
        data_dir = %data_dir.path().display(),
        "bitacora-node {}",
        env!("CARGO_PKG_VERSION"),
    );
    let node = Node::start(Parts {
        log: Arc::new(log),
        membership: Arc::new(membership),
        data_dir,
        listener,
        rpc_listener,
        address,
        original_nodes: settings.original_nodes,
        settings: settings.node,
        hangups: live.hangups.clone(),
    })?;
    let outcome = tokio::select! {
        () = &mut stop => Ok(()),
        reason = node.failed() => Err(anyhow!(reason)),
        () = live.follow(std::slice::from_ref(&node)) => Ok(()),
    };
    node.stop().await;
    outcome
}

/// What others reach this node by.
async fn address(settings: &ServeSettings, avro_port: u16) -> Result<Address> {
    let host = match (&settings.node_address, settings.address_source) {
        (Some(host), _) => host.clone(),
        (None, AddressSource::Route) => {
            own_address(&settings.zookeeper_hosts, settings.bind_address).await.to_string()
        }
        (None, AddressSource::Aws) => return aws::address(settings.api_port, avro_port).await,
    };
    Ok(Address { host, api_port: settings.api_port, avro_port })
}

fn kafka_settings(
    settings: &ServeSettings,
    address: &Address,
    properties: Vec<(String, String)>,
    token_endpoint: Option<TokenEndpoint>,
) -> Result<KafkaSettings> {
    Ok(KafkaSettings {
        brokers: settings.broker_list.clone(),
        topic: settings.kafka_topic.clone(),
        partitions: settings.topic_partitions,
        replication_factor: settings.topic_replication_factor,
        allow_uncompacted: settings.allow_uncompacted_topic,
        group: settings.kafka_group.clone().unwrap_or_else(|| format!("bitacora-{}", address.api())),
        write_timeout: settings.write_timeout,
        delete_retention: settings.node.delete_retention,
        min_compaction_lag: settings.min_compaction_lag,
        // The key is in the record twice: as Kafka's key and in the value.
        max_record_bytes: usize::try_from(settings.node.max_value_bytes)?
            + 2 * MAX_KEY_BYTES
            + RECORD_OVERHEAD_BYTES,
        batch_bytes: settings.original_nodes.then_some(ORIGINAL_BATCH_BYTES),
        properties,
        token_endpoint,
    })
}

/// Connections that may wait to be accepted: as many as are served at a time by default. tokio's own 128 are fewer than a burst of callers
/// has, of whom the others would wait for seconds, until they are sent again. Linux bounds it by `net.core.somaxconn`.
const BACKLOG: u32 = 4096;

fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A process that starts anew finds the port free although connections of the one before are not quite gone.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Opens a port, or says who is in the way. `setting` is the name to change.
///
/// # Errors
/// When the port is taken or can't be opened; the text names the setting to change.
pub fn listen(address: IpAddr, port: u16, setting: &str) -> Result<TcpListener> {
    match bind(SocketAddr::new(address, port)) {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            bail!(
                "port {port} on {address} is in use by another process; stop it or choose another port with {setting}"
            )
        }
        Err(error) => {
            Err(error).with_context(|| format!("port {port} on {address} ({setting}) can't be opened"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpStream};
    use std::time::Duration;

    use super::*;

    /// Above what tokio has wait, and below the files that a process may open in any case.
    const BURST: usize = 400;

    #[tokio::test]
    async fn a_burst_of_callers_waits_to_be_accepted() {
        let listener = listen(Ipv4Addr::LOCALHOST.into(), 0, "PORT").expect("a port");
        let address = listener.local_addr().expect("it is bound");
        // Nobody accepts them meanwhile.
        let connections = (1..=BURST).map(|number| {
            let connected = TcpStream::connect_timeout(&address, Duration::from_secs(10));
            connected.unwrap_or_else(|error| panic!("connection {number}: {error}"))
        });
        assert_eq!(connections.collect::<Vec<_>>().len(), BURST);
    }
}
