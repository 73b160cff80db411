//! The commands that ask nodes about themselves, and their flags.

use std::time::Duration;

use bitacora_protocol::units::duration;
use clap::Args;
use reqwest::Url;

use super::values::http_node;

pub(super) const MEMBERS: &str = "\
Members come from ZooKeeper, or from the /status of the first node that answers; each is then asked for its own /status.
With --rpc a node's HTTP port is taken to be one below its RPC port, as it is by default; give --http if it is not.
Of a member that does not answer READY is 'unknown', in JSON null: it may be that only this machine can't reach it.

Examples:
  bitacora members
  bitacora --zookeeper zk:2181 members --output json

Exit code 5: no node answered.";

pub(super) const STATUS: &str = "\
JSON output is a node's own answer to GET /status, one a line; raw output is node, partition, applied, high watermark \
and lag, tab-separated.

Examples:
  bitacora status
  bitacora status node-2:8080 http://node-3:8080 --output json";

#[derive(Debug, Args)]
pub struct Status {
    /// Nodes by their HTTP address, host:port or http://host:port [default: all members]
    #[arg(value_name = "NODE", value_parser = http_node)]
    pub nodes: Vec<Url>,
}

pub(super) const DIFF: &str = "\
Compares what two nodes hold on their disks, without sending the records: digests of ranges of keys, and smaller ranges where they differ. Each node \
looks at all its entries once or twice, a range at a time. A key that is being written is no difference: it must differ where both have applied the \
same. Of records with a TTL the values are not compared, as each node drops them in its own time. What the digests say, and when: docs/digests.md.

Each key that differs is a line. JSON: {\"partition\",\"key\",\"a\",\"b\"}, where a and b, the first node and the second, are null, or the \"position\" of the \
record and the \"digest\" of all that is stored of it; of a key that is no text \"key_base64\" has the bytes. Raw: partition, key, position at a, position \
at b, tab-separated, '-' where there is none. Bytes that are no record are 'damaged', and have no partition.

Examples:
  bitacora diff node-1:8080 node-2:8080
  bitacora diff node-1:8080 node-2:8080 --partition 3 --output json
  bitacora --token-file admin.token diff node-1:8080 node-2:8080    nodes with tokens want the scope admin

Exit code 8: keys differ. 4: it is not clear whether keys differ that are being written, or whose node is behind. 5: a node is not reached, or not ready.";

#[derive(Debug, Args)]
pub struct Diff {
    /// The first node by its HTTP address, host:port or http://host:port
    #[arg(value_name = "NODE", value_parser = http_node)]
    pub a: Url,
    /// The second node
    #[arg(value_name = "NODE", value_parser = http_node)]
    pub b: Url,
    /// Compare this partition only [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
    pub partition: Option<i32>,
    /// Stop after so many keys that differ
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub limit: u32,
    /// How long a key that is being written, or whose node is behind, is looked at again
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub patience: Duration,
}
