//! Every setting once: its flag, its environment variable, its default and what it means. `--help` is made from this
//! table, and a test holds the README's against it.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use bitacora_protocol::units::{bytes, duration, positive_duration};
use bitacora_protocol::zookeeper::{ConnectString, host_port};
use clap::error::{ContextKind, ContextValue};
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::log::kafka::RESERVED_PROPERTIES;
use crate::replication::snapshot::SnapshotUse;
use crate::service::memory;
use crate::service::reads::PeerReads;

/// A node of Bitacora: a replicated in-memory key-value store whose write-ahead log is a compacted Kafka topic.
#[derive(Debug, Parser)]
#[command(name = "bitacora-node", version, max_term_width = 110, after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  bitacora-node dev                                 three nodes in one process
  bitacora-node serve --broker-list kafka:9092 --zookeeper-hosts zk:2181
  KAFKA_TOPIC=orders API_PORT=9000 bitacora-node    'serve' is what runs without a command

Every setting is a flag and an environment variable; a flag wins. 'bitacora-node serve --help' explains them all.";

#[derive(Debug, Subcommand)]
// Made once.
#[allow(clippy::large_enum_variant)]
pub enum Command {
    /// Run one node on Kafka and ZooKeeper (the default)
    Serve(ServeSettings),
    /// Run a cluster of several nodes in this process, over an embedded durable log, on 127.0.0.1
    Dev(DevSettings),
    /// Ask the node on this machine whether it is ready; exit with 0 if it is, else with 1
    Health(HealthSettings),
    /// Write a running node's store to a file
    Backup(BackupSettings),
    /// Fill an empty data folder from such a file, for a node to start from
    Restore(RestoreSettings),
}

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

/// What a node of `serve` and one of `dev` have in common.
#[derive(Debug, Clone, Args)]
pub struct NodeSettings {
    /// After how long a delete marker or an expired key may leave the log; a node away for longer rebuilds its store
    #[arg(long, env, value_name = "TIME", default_value = "7d", value_parser = positive_duration, help_heading = "Store")]
    pub delete_retention: Duration,
    /// Memory for the cache of records over the store
    #[arg(long, env, value_name = "BYTES", default_value = "256MiB", value_parser = bytes, help_heading = "Store")]
    pub cache_bytes: u64,
    /// Whether a node without a store it can use takes a copy of another member's before it reads the log
    #[arg(long, env, value_name = "WHEN", default_value = "auto", help_heading = "Store")]
    pub snapshot: SnapshotUse,
    /// How many bytes a second a node spends on giving others a copy of its store
    #[arg(long, env, value_name = "BYTES", default_value = "256MiB", value_parser = rate, help_heading = "Store")]
    pub snapshot_rate: u64,
    /// When a key that is missing here is asked of the other members
    #[arg(long, env, value_name = "WHEN", default_value = "auto", help_heading = "Cluster")]
    pub peer_reads: PeerReads,
    /// How long the other members may take to answer
    #[arg(long, env, value_name = "TIME", default_value = "60ms", value_parser = positive_duration, help_heading = "Cluster")]
    pub external_request_timeout: Duration,
    /// The largest value that is taken
    #[arg(long, env, value_name = "BYTES", default_value = "1MiB", value_parser = value_bytes, help_heading = "Network")]
    pub max_value_bytes: u64,
    /// Memory for requests and answers under way; beyond it they are refused. At least 8 × `MAX_VALUE_BYTES` and 3 × `MAX_FRAME_BYTES`, and 256 KiB [default: a quarter of what the container or the machine has, at least 64MiB]
    #[arg(long, env, value_name = "BYTES", value_parser = request_memory, help_heading = "Network")]
    pub request_memory: Option<u64>,
    /// How long a client may take to send the body of a request or the rest of a frame, and go without reading its answers
    #[arg(long, env, value_name = "TIME", default_value = "30s", value_parser = positive_duration, help_heading = "Network")]
    pub request_timeout: Duration,
    /// Connections at a time, of each of the two ports; further ones wait (HTTP) or are closed (Avro RPC)
    #[arg(long, env, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Network")]
    pub max_connections: u32,
    /// The largest frame of the Avro RPC; no less than a value and 64 KiB
    #[arg(long, env, value_name = "BYTES", default_value = "4MiB", value_parser = value_bytes, help_heading = "Network")]
    pub max_frame_bytes: u64,
    /// How long a connection may lie idle, or take over the head of a request; longer than the balancer before it keeps one
    #[arg(long, env, value_name = "TIME", default_value = "2m", value_parser = positive_duration, help_heading = "Network")]
    pub idle_timeout: Duration,
    /// How long a node that is told to stop still serves, unready, so that load balancers see it first
    #[arg(long, env, value_name = "TIME", default_value = "0s", value_parser = duration, help_heading = "Network")]
    pub drain_delay: Duration,
    /// How long the stop itself may take after `DRAIN_DELAY`: requests under way are aborted after three quarters of it, the rest is for the log and the store
    #[arg(long, env, value_name = "TIME", default_value = "5s", value_parser = duration, help_heading = "Network")]
    pub shutdown_grace: Duration,
    /// Requests that take longer are logged, with what they waited for; 0 for none
    #[arg(long, env, value_name = "TIME", default_value = "1s", value_parser = duration, help_heading = "Logging")]
    pub slow_request: Duration,
    /// Base URL of an OpenTelemetry collector that takes traces by OTLP over HTTP, such as `http://collector:4318` [default: no traces]
    #[arg(long, env, value_name = "URL", value_parser = otlp_endpoint, help_heading = "Logging")]
    pub otlp_endpoint: Option<String>,
}

#[derive(Debug, Clone, Args)]
pub struct LogSettings {
    /// error, warn, info, debug, trace, or a filter such as `info,bitacora_node=debug` [default: info; warn in dev]
    #[arg(long, env, value_name = "FILTER", help_heading = "Logging")]
    pub log_level: Option<String>,
    /// How log lines look
    #[arg(long, env, value_name = "FORMAT", default_value = "human", help_heading = "Logging")]
    pub log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Human,
    Json,
}

#[derive(Debug, Clone, Args)]
pub struct DevSettings {
    /// How many nodes
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    pub nodes: u16,
    /// HTTP port of the first node; the next ones follow in steps of two
    #[arg(long, value_name = "PORT", default_value_t = 8080, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
    /// Folder of the log and the stores; it survives a restart
    #[arg(long, value_name = "DIR", default_value = "bitacora-data/dev")]
    pub data_dir: PathBuf,
    #[command(flatten)]
    pub node: NodeSettings,
    #[command(flatten)]
    pub logging: LogSettings,
}

#[derive(Debug, Clone, Args)]
#[command(after_help = BACKUP_EXAMPLES)]
pub struct BackupSettings {
    /// The node whose store is copied; it goes on serving
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
    pub from: reqwest::Url,
    /// The file to write, which must not be there yet
    pub file: PathBuf,
}

const BACKUP_EXAMPLES: &str = "\
Examples:
  bitacora-node backup bitacora.backup
  bitacora-node backup --from http://node-2:8080 /backups/bitacora-$(date +%F).backup
  bitacora-node backup /backups/today && scp /backups/today elsewhere:

The file holds one node's whole store and its positions in the log, with a checksum. 'restore' starts from it.";

#[derive(Debug, Clone, Args)]
#[command(after_help = RESTORE_EXAMPLES)]
pub struct RestoreSettings {
    /// Folder of the store, which must hold none
    #[arg(long, env, value_name = "DIR", default_value = "bitacora-data")]
    pub data_dir: PathBuf,
    /// What 'backup' wrote
    pub file: PathBuf,
}

const RESTORE_EXAMPLES: &str = "\
Examples:
  bitacora-node restore bitacora.backup && bitacora-node serve
  bitacora-node restore --data-dir /var/lib/bitacora /backups/bitacora-2026-01-31.backup

The node then reads on where the backup stands. A backup of another topic or cluster, or one that is older than
DELETE_RETENTION, is not used: the node empties the store and fills it from its peers or the log, as it always may.";

#[derive(Debug, Clone, Args)]
pub struct HealthSettings {
    /// Ask whether it is alive instead; a node that restores is alive, but not ready
    #[arg(long)]
    pub live: bool,
    /// Port of the HTTP API
    #[arg(long, env, value_name = "PORT", default_value_t = 8080)]
    pub api_port: u16,
}

impl Cli {
    /// Reads the command line and the environment; without a command it is `serve`'s.
    #[must_use]
    pub fn read() -> Self {
        let mut arguments: Vec<_> = std::env::args_os().collect();
        let of_the_program = ["-h", "--help", "-V", "--version"];
        let first = arguments.get(1).map(|argument| argument.to_string_lossy().into_owned());
        if first.is_none_or(|first| first.starts_with('-') && !of_the_program.contains(&first.as_str())) {
            arguments.insert(1.min(arguments.len()), "serve".into());
        }
        Self::try_parse_from(arguments).unwrap_or_else(|error| {
            // Clap names the flag; who sets the variable has never seen it.
            let _ = error.print();
            if let Some(variable) = variable_of(&error) {
                eprintln!("\nThe setting is also the environment variable {variable}.");
            }
            std::process::exit(error.exit_code())
        })
    }
}

fn variable_of(error: &clap::Error) -> Option<String> {
    let ContextValue::String(argument) = error.get(ContextKind::InvalidArg)? else { return None };
    let flag = argument.strip_prefix("--")?.split([' ', '=', '[']).next()?;
    let command = Cli::command();
    let mut arguments = command.get_subcommands().flat_map(clap::Command::get_arguments);
    let argument =
        arguments.find(|argument| argument.get_long() == Some(flag) && argument.get_env().is_some())?;
    Some(argument.get_env()?.to_string_lossy().into_owned())
}

/// What a call has beside its value, handshake and key included, at most.
const FRAME_OVERHEAD_BYTES: u64 = 64 * 1024;
/// What the largest request needs beside its value or its frame: keys, lengths, what is read ahead.
const REQUEST_OVERHEAD_BYTES: u64 = 256 * 1024;

impl NodeSettings {
    /// The largest frame of the RPC, in bytes.
    #[must_use]
    pub fn frame_bytes(&self) -> u64 {
        self.max_frame_bytes.max(self.max_value_bytes + FRAME_OVERHEAD_BYTES)
    }

    /// Bytes of the budget for requests: `REQUEST_MEMORY` or its default.
    ///
    /// # Errors
    /// When it is less than the largest request needs, which would then be refused for ever.
    pub fn request_memory_bytes(&self) -> Result<u64, String> {
        // A form has three bytes for one of the value's, twice, beside the record and the answer. A frame is held as it
        // arrives, put together, and as the batch that it is.
        let least = (8 * self.max_value_bytes).max(3 * self.frame_bytes()) + REQUEST_OVERHEAD_BYTES;
        match self.request_memory {
            None => Ok(memory::default_limit().max(least)),
            Some(bytes) if bytes >= least => Ok(bytes),
            Some(bytes) => Err(format!(
                "REQUEST_MEMORY is {bytes} bytes, and the largest request that MAX_VALUE_BYTES and MAX_FRAME_BYTES allow needs \
                 {least}; raise REQUEST_MEMORY to that, or lower the other two"
            )),
        }
    }
}

impl ServeSettings {
    /// The properties of the flag and of the file, the flag's last.
    ///
    /// # Errors
    /// What is wrong in which file and line.
    pub fn properties(&self) -> Result<Vec<(String, String)>, String> {
        let mut properties = Vec::new();
        if let Some(path) = &self.kafka_properties_file {
            let shown = path.display();
            let text = std::fs::read_to_string(path)
                .map_err(|error| format!("KAFKA_PROPERTIES_FILE {shown} can't be read: {error}"))?;
            for (number, line) in (1..).zip(text.lines().map(str::trim)) {
                if !line.is_empty() && !line.starts_with('#') {
                    properties
                        .push(property(line).map_err(|error| format!("{shown}, line {number}: {error}"))?);
                }
            }
        }
        // Not by clap, whose errors show the whole value, which may be a secret.
        for text in self.kafka_properties.iter().filter(|text| !text.trim().is_empty()) {
            properties.push(property(text).map_err(|error| format!("KAFKA_PROPERTIES: {error}"))?);
        }
        Ok(properties)
    }
}

fn property(text: &str) -> Result<(String, String), String> {
    let (name, value) =
        text.split_once('=').ok_or_else(|| format!("'{}' is not name=value", name_only(text)))?;
    let name = name.trim();
    if RESERVED_PROPERTIES.contains(&name) {
        return Err(format!("'{name}' is the node's own business and can't be set"));
    }
    let value = value.trim();
    let value = if let Some(path) = value.strip_prefix('@') {
        std::fs::read_to_string(path)
            .map_err(|error| format!("the file of '{name}', {path}, can't be read: {error}"))?
            .trim_end_matches(['\n', '\r'])
            .to_owned()
    } else if let Some(variable) = value.strip_prefix('$') {
        // Unnamed in the error: a secret that happens to begin with '$' looks the same.
        std::env::var(variable).map_err(|_| {
            format!("the variable of '{name}' is not set (a value that begins with '$' has to come from a file: @FILE)")
        })?
    } else {
        value.to_owned()
    };
    Ok((name.to_owned(), value))
}

/// The start of a text that may hold a secret.
fn name_only(text: &str) -> String {
    text.chars().take(12).collect::<String>() + "…"
}

fn hosts(text: &str) -> Result<String, String> {
    let hosts: Vec<_> = text.split(',').map(str::trim).collect();
    // librdkafka takes a protocol before the host.
    hosts.iter().try_for_each(|host| host_port(host.split_once("://").map_or(*host, |(_, rest)| rest)))?;
    Ok(hosts.join(","))
}

fn topic(text: &str) -> Result<String, String> {
    let legal = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if text.is_empty() || text.len() > 249 || text == "." || text == ".." || !text.chars().all(legal) {
        return Err("a topic's name has 1 to 249 of the characters a-z A-Z 0-9 . _ -".to_owned());
    }
    Ok(text.to_owned())
}

fn otlp_endpoint(text: &str) -> Result<String, String> {
    match reqwest::Url::parse(text) {
        Ok(url) if url.scheme() == "http" && url.has_host() => Ok(text.to_owned()),
        Ok(url) if url.scheme() == "https" => {
            Err("it must begin with http://; TLS is a job of a collector beside the node".to_owned())
        }
        _ => Err("it must be a URL such as http://collector:4318".to_owned()),
    }
}

fn node_address(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty() || text.contains(|c: char| c.is_whitespace() || "/@?#".contains(c)) {
        return Err("it must be a host's name or address, without a port".to_owned());
    }
    Ok(text.to_owned())
}

fn replication_factor(text: &str) -> Result<i32, String> {
    match text.parse() {
        Ok(factor @ (-1 | 1..=1_000)) => Ok(factor),
        _ => Err("it must be 1 or more, or -1 for the brokers' default".to_owned()),
    }
}

fn session_timeout(text: &str) -> Result<Duration, String> {
    // The client pings after two thirds of it, and counts whole seconds.
    let time = duration(text)?;
    if time < Duration::from_secs(2) { Err("it must be 2s or more".to_owned()) } else { Ok(time) }
}

fn rate(text: &str) -> Result<u64, String> {
    match bytes(text)? {
        0..1024 => {
            Err("it must be 1KiB or more; SNAPSHOT=never on the others keeps them from asking".to_owned())
        }
        rate => Ok(rate),
    }
}

fn request_memory(text: &str) -> Result<u64, String> {
    match bytes(text)? {
        size if size < 8 << 20 => Err("it must be 8MiB or more".to_owned()),
        size => Ok(size),
    }
}

fn value_bytes(text: &str) -> Result<u64, String> {
    // Kafka's own protocol bounds a record well below 2 GiB.
    match bytes(text)? {
        size @ 1..=0x1000_0000 => Ok(size),
        _ => Err("it must be between 1 and 256MiB".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn properties_come_from_text_and_files_and_never_touch_what_correctness_rests_on() {
        assert_eq!(property("ssl.ca.location = /a=b"), Ok(("ssl.ca.location".into(), "/a=b".into())));
        assert!(property("acks=0").expect_err("reserved").contains("'acks'"));
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), "s3cret\n").expect("written");
        let path = file.path().display();
        assert_eq!(
            property(&format!("sasl.password=@{path}")),
            Ok(("sasl.password".into(), "s3cret".into()))
        );
        let path = std::env::var("PATH").expect("tests run with a path");
        assert_eq!(property("sasl.password = $PATH"), Ok(("sasl.password".into(), path)));
        let error = property("sasl.password=$ecret").expect_err("no such variable");
        assert!(error.contains("'sasl.password'") && !error.contains("ecret"), "{error}");
        let error = property("averylongsecretwithoutname").expect_err("no name");
        assert!(!error.contains("without"), "{error}");
        let cli = Cli::try_parse_from(["bitacora-node", "serve", "--kafka-properties", "a=b;acks=0"])
            .expect("not by clap");
        let Command::Serve(settings) = cli.command else { panic!("serve was asked for") };
        assert!(settings.properties().expect_err("reserved").starts_with("KAFKA_PROPERTIES: 'acks'"));
    }

    fn node(flags: &[&str]) -> NodeSettings {
        let cli = Cli::try_parse_from([&["bitacora-node", "dev"], flags].concat()).expect("settings");
        let Command::Dev(settings) = cli.command else { panic!("dev was asked for") };
        settings.node
    }

    #[test]
    fn request_memory_holds_the_largest_request() {
        for (flags, least) in [
            (&["--max-value-bytes", "4MiB"][..], 32 << 20),
            (&["--max-frame-bytes", "32MiB"], 96 << 20),
            (&["--max-value-bytes", "256MiB"], 2 << 30),
        ] {
            let least = least + REQUEST_OVERHEAD_BYTES;
            let with = |bytes: u64| {
                node(&[flags, &["--request-memory", &bytes.to_string()]].concat()).request_memory_bytes()
            };
            assert_eq!(with(least), Ok(least));
            let error = with(least - 1).expect_err("it is too little");
            for name in ["REQUEST_MEMORY", "MAX_VALUE_BYTES", "MAX_FRAME_BYTES", &least.to_string()] {
                assert!(error.contains(name), "{error}");
            }
            assert!(node(flags).request_memory_bytes().expect("a default") >= least);
        }
    }

    #[test]
    fn a_wrong_setting_is_named() {
        for (arguments, names) in [
            (["serve", "--broker-list", "kafka"], "--broker-list"),
            (["serve", "--zookeeper-hosts", "zk:port"], "--zookeeper-hosts"),
            (["serve", "--api-port", "70000"], "--api-port"),
            (["serve", "--kafka-topic", "a b"], "--kafka-topic"),
            (["dev", "--nodes", "0"], "--nodes"),
        ] {
            let error = Cli::try_parse_from([&["bitacora-node"], &arguments[..]].concat())
                .expect_err(names)
                .to_string();
            assert!(error.contains(names), "{error}");
        }
    }
}
