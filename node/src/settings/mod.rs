//! Every setting once: its flag, its environment variable, its default and what it means. `--help` is made from these
//! tables, and a test holds the README's against them.

mod dev;
mod kafka_properties;
mod live;
mod logging;
mod node;
mod read;
mod serve;
mod tools;
mod values;

use clap::{Parser, Subcommand};

pub use self::dev::DevSettings;
pub use self::live::{LiveSettings, LiveSource, LiveUpdates};
pub use self::logging::{LogFormat, LogSettings};
pub use self::node::{ClientCertificates, NodeSettings};
pub use self::serve::{AddressSource, ServeSettings};
pub use self::tools::{BackupSettings, ExportSettings, HealthSettings, OwnNode, RestoreSettings};

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
    /// Print the records of a data folder that no node uses, as lines for 'bitacora import'
    Export(ExportSettings),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
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
