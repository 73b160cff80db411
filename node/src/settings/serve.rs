//! The settings of `serve`: Kafka, ZooKeeper, ports and the folder of the store.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use bitacora_program::secret_file;
use bitacora_protocol::units::positive_duration_or_ms as positive_duration;
use bitacora_protocol::zookeeper::ConnectString;
use clap::{Args, ValueEnum};

use crate::cluster::zookeeper::Login;

use super::values::{hosts, node_address, replication_factor, session_timeout, topic};
use super::{LogSettings, NodeSettings, kafka_properties};

#[derive(Debug, Clone, Args)]
pub struct ServeSettings {
    /// Kafka brokers to make contact with, host:port,…
    #[arg(long, env, value_name = "HOSTS", default_value = "127.0.0.1:9092", value_parser = hosts, help_heading = "Kafka")]
    pub broker_list: String,
    /// The compacted topic that is the log; created if it is missing
    #[arg(long, env, value_name = "NAME", default_value = "bitacora", value_parser = topic, help_heading = "Kafka")]
    pub kafka_topic: String,
    /// Partitions of a topic that the node creates
    #[arg(long, env, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(i32).range(1..=10_000), help_heading = "Kafka")]
    pub topic_partitions: i32,
    /// Replication factor of a topic that the node creates; -1 for the brokers' default
    #[arg(long, env, value_name = "N", default_value_t = -1, allow_negative_numbers = true, value_parser = replication_factor, help_heading = "Kafka")]
    pub topic_replication_factor: i32,
    /// min.compaction.lag.ms of a topic that the node creates; a topic that has less, and less than 10m, is not trimmed
    #[arg(long, env, value_name = "TIME", default_value = "1h", value_parser = positive_duration, help_heading = "Kafka")]
    pub min_compaction_lag: Duration,
    /// Start on a topic that is not compacted, although Kafka will delete keys from it
    #[arg(long, env, value_name = "BOOL", default_value_t = false, default_missing_value = "true", num_args = 0..=1, require_equals = true, action = clap::ArgAction::Set, help_heading = "Kafka")]
    pub allow_uncompacted_topic: bool,
    /// Nodes of the original system read the topic, too: it is not trimmed, and conditional writes and values of more than 97,000 bytes are refused
    #[arg(long, env, value_name = "BOOL", default_value_t = false, default_missing_value = "true", num_args = 0..=1, require_equals = true, action = clap::ArgAction::Set, help_heading = "Kafka")]
    pub original_nodes: bool,
    /// Consumer group that the node commits its offsets to, for Kafka's tools to see [default: bitacora-ADDRESS]
    #[arg(long, env, value_name = "NAME", help_heading = "Kafka")]
    pub kafka_group: Option<String>,
    /// Properties for librdkafka, name=value, separated by ';' (SASL, SSL, …); name=@FILE and name=$VARIABLE read the value
    #[arg(
        long,
        env,
        value_name = "PROPERTIES",
        value_delimiter = ';',
        hide_env_values = true,
        help_heading = "Kafka"
    )]
    pub kafka_properties: Vec<String>,
    /// A file of such properties, one a line
    #[arg(long, env, value_name = "FILE", help_heading = "Kafka")]
    pub kafka_properties_file: Option<PathBuf>,
    /// How long a write may wait for the brokers' acknowledgement; that it failed may be told a second later
    #[arg(long, env, value_name = "TIME", default_value = "5s", value_parser = positive_duration, help_heading = "Kafka")]
    pub write_timeout: Duration,

    /// ZooKeeper servers, host:port,… with an optional chroot: zk1:2181,zk2:2181/prod
    #[arg(long, env, value_name = "HOSTS", default_value = "127.0.0.1:2181", help_heading = "Cluster")]
    pub zookeeper_hosts: ConnectString,
    /// How long ZooKeeper keeps a silent node a member (its servers allow no less than two of their ticks)
    #[arg(long, env, value_name = "TIME", default_value = "2500ms", value_parser = session_timeout, help_heading = "Cluster")]
    pub zookeeper_session_timeout: Duration,
    /// A file with `USER:PASSWORD`: only who shows that to ZooKeeper may change what nodes register there (digest)
    #[arg(long, env, value_name = "FILE", help_heading = "Cluster")]
    pub zookeeper_auth_file: Option<PathBuf>,
    /// Name or address that the others reach this node by [default: as `ADDRESS_SOURCE` says]
    #[arg(long, env, value_name = "HOST", value_parser = node_address, help_heading = "Cluster")]
    pub node_address: Option<String>,
    /// Where the node learns its address, unless `NODE_ADDRESS` says it
    #[arg(long, env, value_name = "SOURCE", default_value = "route", help_heading = "Cluster")]
    pub address_source: AddressSource,

    /// Port of the HTTP API
    #[arg(long, env, value_name = "PORT", default_value_t = 8080, value_parser = clap::value_parser!(u16).range(1..), help_heading = "Network")]
    pub api_port: u16,
    /// Port of the Avro RPC [default: `API_PORT` + 1]
    #[arg(long, env, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..), help_heading = "Network")]
    pub avro_port: Option<u16>,
    /// Address to listen on
    #[arg(long, env, value_name = "IP", default_value = "0.0.0.0", help_heading = "Network")]
    pub bind_address: IpAddr,

    /// Folder of the store; what is in it is rebuilt from the log if it is lost
    #[arg(long, env, value_name = "DIR", default_value = "bitacora-data", help_heading = "Store")]
    pub data_dir: PathBuf,

    #[command(flatten)]
    pub node: NodeSettings,
    #[command(flatten)]
    pub logging: LogSettings,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AddressSource {
    /// the address that this machine has towards ZooKeeper
    Route,
    /// the metadata of the ECS task or of the EC2 instance, with the ports that a bridge maps
    Aws,
}

impl ServeSettings {
    /// The properties for librdkafka: those of the file, then those of the flag.
    ///
    /// # Errors
    /// What is wrong in which file and line.
    pub fn properties(&self) -> Result<Vec<(String, String)>, String> {
        kafka_properties::read(self.kafka_properties_file.as_deref(), &self.kafka_properties)
    }

    /// What the node shows to ZooKeeper.
    ///
    /// # Errors
    /// When there is something else than a user and a password in the file. It is not told what, which may be a secret of another kind.
    pub fn zookeeper_login(&self) -> Result<Option<Login>, String> {
        let file = self.zookeeper_auth_file.as_deref();
        file.map(|path| secret_file::read("ZOOKEEPER_AUTH_FILE", path)).transpose()
    }
}
