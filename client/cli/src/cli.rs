//! The command line once: every command and flag, its environment variable, its default and what it means.

use std::path::PathBuf;
use std::time::Duration;

use bitacora_protocol::units::{bytes, duration, positive_duration};
use bitacora_protocol::zookeeper::{ConnectString, host_port};
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use reqwest::Url;

/// The command line of Bitacora, a replicated in-memory key-value store whose log is a compacted Kafka topic.
#[derive(Debug, Parser)]
#[command(name = "bitacora", version, max_term_width = 110, after_help = EXAMPLES, after_long_help = EXAMPLES)]
pub struct Cli {
    #[command(flatten)]
    pub connection: Connection,
    /// How results look on stdout [default: raw for get, set and del; for lists and reports a table on a terminal, else json]
    #[arg(long, short, global = true, env = "BITACORA_OUTPUT", value_name = "FORMAT", help_heading = GLOBAL)]
    pub output: Option<Output>,
    /// What the program itself tells on stderr of connections and retries: off, error, warn, info, debug, or a filter
    #[arg(long, global = true, env = "BITACORA_LOG_LEVEL", value_name = "FILTER", default_value = "off", help_heading = GLOBAL)]
    pub log_level: String,
    #[command(subcommand)]
    pub command: Command,
}

/// What dev serves, and a node with default settings.
const DEFAULT_RPC: &str = "127.0.0.1:8081";

const GLOBAL: &str = "Global options";
const CONNECTION: &str = "Connection";

const EXAMPLES: &str = "\
Examples:
  bitacora set greeting hello                       to the node that 'cargo run --release -- dev' starts here
  bitacora get greeting
  bitacora --zookeeper zk1:2181,zk2:2181/prod scan --prefix user:
  bitacora --http http://node-1:8080 export - | bitacora --rpc node-9:8081 import -
  BITACORA_RPC=node-1:8081,node-2:8081 bitacora members

Where it connects: --rpc, --zookeeper or --http; without any of them the Avro RPC of this machine, 127.0.0.1:8081. A flag wins over
every BITACORA_… variable of the three. --http may stand beside --rpc or --zookeeper: then 'members' and 'status',
which always speak HTTP, use it, and all else the RPC.

Exit codes: 0 done · 1 failed · 2 wrong usage · 3 no such key (get) · 4 timed out, or a write that may still take
effect · 5 no node reachable, or none ready · 6 lines were rejected (import)";

#[derive(Debug, Args)]
pub struct Connection {
    /// Nodes to speak Avro RPC with, host:port,… [default: 127.0.0.1:8081]
    #[arg(long, global = true, env = "BITACORA_RPC", value_name = "NODES", value_delimiter = ',', value_parser = node, help_heading = CONNECTION)]
    pub rpc: Vec<String>,
    /// ZooKeeper servers that know the nodes, host:port,… with an optional chroot: zk1:2181,zk2:2181/prod
    #[arg(long, global = true, env = "BITACORA_ZOOKEEPER", value_name = "HOSTS", help_heading = CONNECTION)]
    pub zookeeper: Option<ConnectString>,
    /// Nodes or load balancers to speak HTTP with, http://host:port,…
    #[arg(long, global = true, env = "BITACORA_HTTP", value_name = "URLS", value_delimiter = ',', value_parser = http_url, help_heading = CONNECTION)]
    pub http: Vec<Url>,
    /// How long a call may take, retries included
    #[arg(long, global = true, env = "BITACORA_TIMEOUT", value_name = "TIME", default_value = "10s", value_parser = positive_duration, help_heading = CONNECTION)]
    pub timeout: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// one JSON object a line (NDJSON)
    Json,
    /// columns for the eye; long texts are cut
    Table,
    /// values as they are; of lists tab-separated fields, in which \t \n \r \\ stand for tab, newline, return, backslash
    Raw,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print the values of keys
    #[command(after_help = GET, after_long_help = GET)]
    Get(Get),
    /// Set a key
    #[command(after_help = SET, after_long_help = SET)]
    Set(Set),
    /// Delete keys, whether or not they exist
    #[command(after_help = DEL, after_long_help = DEL)]
    Del(Del),
    /// Print keys and values in key order
    #[command(after_help = SCAN, after_long_help = SCAN)]
    Scan(ScanArguments),
    /// List the nodes of the cluster: ready, caught up, lag
    #[command(after_help = MEMBERS, after_long_help = MEMBERS)]
    Members,
    /// Show all that nodes say of themselves: log, partitions, store, cache
    #[command(after_help = STATUS, after_long_help = STATUS)]
    Status(Status),
    /// Set many keys from NDJSON or CSV
    #[command(after_help = IMPORT, after_long_help = IMPORT)]
    Import(Import),
    /// Write all keys, or a range of them, as NDJSON or CSV
    #[command(after_help = EXPORT, after_long_help = EXPORT)]
    Export(Export),
    /// Measure throughput and latency
    #[command(after_help = BENCH, after_long_help = BENCH)]
    Bench(Bench),
    /// Print a script that completes this program's commands and flags in a shell
    #[command(after_help = COMPLETIONS, after_long_help = COMPLETIONS)]
    Completions(Completions),
}

const GET: &str = "\
Raw output is each value and a newline, in the order of the keys. A missing key is told on stderr; the others are printed.

Examples:
  bitacora get greeting
  bitacora get user:1 user:2 --output json
  bitacora get -n picture.b64 > picture.b64         without the newline, byte for byte

Exit code 3: one of the keys does not exist.";

#[derive(Debug, Args)]
pub struct Get {
    #[arg(required = true, value_name = "KEY")]
    pub keys: Vec<String>,
    /// Print no newline after a raw value
    #[arg(long, short)]
    pub no_newline: bool,
}

const SET: &str = "\
Raw output is OK and the position, partition:offset, of the write in the log.

Examples:
  bitacora set greeting hello
  bitacora set session:17 '{\"user\":1}' --ttl 30m
  bitacora set notes < notes.txt                    the value is stdin, byte for byte
  bitacora get -n one | bitacora set two -
  bitacora set empty ''

Exit code 4: not acknowledged in time; the write may still take effect.";

#[derive(Debug, Args)]
pub struct Set {
    pub key: String,
    /// The value; stdin if it is absent or '-'
    #[arg(allow_hyphen_values = true)]
    pub value: Option<String>,
    /// How long the key lives: 500ms, 30s, 5m, 2h, 7d or a number of ms [default: for ever]
    #[arg(long, value_name = "TIME", value_parser = positive_duration)]
    pub ttl: Option<Duration>,
}

const DEL: &str = "\
Raw output is OK and the position of the delete in the log, a line for each key.

Examples:
  bitacora del greeting
  bitacora scan --prefix session: --output json | jq -r .key | xargs -d '\\n' bitacora del

Exit code 4: not acknowledged in time; the delete may still take effect.";

#[derive(Debug, Args)]
pub struct Del {
    #[arg(required = true, value_name = "KEY")]
    pub keys: Vec<String>,
}

const SCAN: &str = "\
Raw output is key, tab, value; in both \\t \\n \\r \\\\ stand for tab, newline, carriage return and backslash.
Pages are printed as they come; keys that are written meanwhile may or may not be among them.

Examples:
  bitacora scan --prefix user:
  bitacora scan --start 2024-01 --end 2024-02 --output raw | cut -f 1
  bitacora scan --limit 10 --output json";

#[derive(Debug, Args)]
pub struct ScanArguments {
    #[command(flatten)]
    pub range: Range,
    /// How many records at most
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
}

#[derive(Debug, Args)]
pub struct Range {
    /// Only keys that begin with it
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub prefix: String,
    /// The first key, inclusive, in the order of UTF-8 bytes
    #[arg(long, value_name = "KEY", default_value = "", hide_default_value = true)]
    pub start: String,
    /// The last key, exclusive
    #[arg(long, value_name = "KEY", default_value = "", hide_default_value = true)]
    pub end: String,
}

const MEMBERS: &str = "\
Members come from ZooKeeper, or from the /status of the first node that answers; each is then asked for its own /status.
With --rpc a node's HTTP port is taken to be one below its RPC port, as it is by default; give --http if it is not.

Examples:
  bitacora members
  bitacora --zookeeper zk:2181 members --output json

Exit code 5: no node answered.";

const STATUS: &str = "\
JSON output is a node's own answer to GET /status, one a line; raw output is node, partition, applied, high watermark
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

const IMPORT: &str = "\
NDJSON: {\"key\":\"k\",\"value\":\"v\",\"ttl\":\"30s\"} a line; 'ttl' is optional, a time or a number of ms from now. 'expires' instead of it is
a time in ms since 1970, which 'export' writes: a record that has expired is skipped and counted. A line with a 'uuid' is a
whole record, as 'scan --output json' and the HTTP API print them: its 'ttl' is such a time too. Other fields are ignored.
CSV: a header line with key and value, and perhaps ttl, expires or uuid, in any order; fields as RFC 4180 quotes them.

The last line of a key wins. What a node could not take is sent again; what it refuses is a rejected line: counted and
written to --rejects as {\"line\",\"reason\",\"text\"}, or the first ten told on stderr. With --checkpoint an import that was
interrupted goes on where all before was acknowledged, and one that is done is not done again.

Examples:
  bitacora import users.csv --rejects rejected.ndjson
  bitacora import big.ndjson --checkpoint big.checkpoint     run again after a failure
  bitacora --rpc old:8081 export - | bitacora --rpc new:8081 import -

Exit code 6: done, but lines were rejected; 5 or 4: gave up after --retry-for; 1: the input can't be read.";

#[derive(Debug, Args)]
pub struct Import {
    /// The file; '-' for stdin
    #[arg(value_name = "FILE")]
    pub input: PathBuf,
    /// How the input looks [default: by the file's extension, ndjson for stdin]
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<Format>,
    /// Write rejected lines to this file
    #[arg(long, value_name = "FILE")]
    pub rejects: Option<PathBuf>,
    /// Stop when more lines than this are rejected [default: never]
    #[arg(long, value_name = "N")]
    pub max_rejects: Option<u64>,
    /// Remember in this file how far the import is, and go on from there
    #[arg(long, value_name = "FILE")]
    pub checkpoint: Option<PathBuf>,
    /// Records in a request, at most
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub batch: u32,
    /// Requests under way at a time
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub parallel: u32,
    /// How long a request that fails is sent again before the import gives up
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    pub retry_for: Duration,
    /// A longer line is rejected
    #[arg(long, value_name = "BYTES", default_value = "8MiB", value_parser = size)]
    pub max_line: usize,
}

const EXPORT: &str = "\
NDJSON: {\"key\",\"value\"} a line, and \"expires\" in ms since 1970 of a key with a TTL; CSV: key,value,expires. 'import' reads both.
A file is written as FILE.part and renamed at the end. It is no snapshot: keys that are written meanwhile may or may
not be in it. With --checkpoint an export that was interrupted goes on where it was; the checkpoint is removed at the end.

Examples:
  bitacora export all.ndjson
  bitacora export users.csv --prefix user:
  bitacora export big.ndjson --checkpoint big.checkpoint     run again after a failure
  bitacora export - | gzip > all.ndjson.gz";

#[derive(Debug, Args)]
pub struct Export {
    /// The file; '-' for stdout
    #[arg(value_name = "FILE", default_value = "-")]
    pub file: PathBuf,
    /// How the output looks [default: by the file's extension, ndjson for stdout]
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<Format>,
    #[command(flatten)]
    pub range: Range,
    /// Remember in this file how far the export is, and go on from there
    #[arg(long, value_name = "FILE")]
    pub checkpoint: Option<PathBuf>,
    /// Records in a page, at most
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub page: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// one JSON object a line
    Ndjson,
    /// comma-separated, with a header
    Csv,
}

const BENCH: &str = "\
A closed loop: --connections times --pipeline requests are under way all the time, so latencies are those at full load. The
keys are <prefix>0, <prefix>1 and so on, chosen at random; get and mixed write all of them first. They stay in the store:
'bitacora scan --prefix bench:' shows them. Over HTTP a request under way has a connection to itself.

Examples:
  bitacora bench                                    gets for ten seconds
  bitacora bench --operation set --requests 100000 --value-size 1000
  bitacora --rpc node-1:8081,node-2:8081 bench --connections 50 --pipeline 16 --output json
  bitacora --http http://node-1:8080 bench --operation mixed --duration 30s";

#[derive(Debug, Args)]
pub struct Bench {
    /// What is measured
    #[arg(long, value_name = "OPERATION", default_value = "get")]
    pub operation: Operation,
    /// Connections; over RPC to each node
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub connections: u32,
    /// Requests under way on a connection [default: 16 over RPC, 1 over HTTP]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub pipeline: Option<u32>,
    /// How long
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = positive_duration, conflicts_with = "requests")]
    pub duration: Duration,
    /// How many requests, instead of how long
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub requests: Option<u64>,
    /// Bytes of a value
    #[arg(long, value_name = "BYTES", default_value = "100", value_parser = size)]
    pub value_size: usize,
    /// How many different keys
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub keys: u64,
    /// What the keys begin with
    #[arg(long, value_name = "TEXT", default_value = "bench:")]
    pub key_prefix: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    Get,
    Set,
    /// nine gets, one set
    Mixed,
}

const COMPLETIONS: &str = "\
Examples:
  bitacora completions bash > /etc/bash_completion.d/bitacora
  bitacora completions zsh > ~/.zfunc/_bitacora
  bitacora completions fish > ~/.config/fish/completions/bitacora.fish";

#[derive(Debug, Args)]
pub struct Completions {
    pub shell: Shell,
}

impl Cli {
    /// Reads the command line and the environment; ends the process on a wrong one, with exit code 2, and on `--help`.
    #[must_use]
    pub fn read() -> Self {
        Self::from(std::env::args_os()).unwrap_or_else(|error| error.exit())
    }

    fn from(
        arguments: impl IntoIterator<Item = impl Into<std::ffi::OsString> + Clone>,
    ) -> Result<Self, clap::Error> {
        let mut command = Self::command();
        let matches = command.try_get_matches_from_mut(arguments)?;
        let mut cli = Self::from_arg_matches(&matches)?;
        let source = |name| Given::of(&matches, name);
        cli.connection
            .settle(source("rpc"), source("zookeeper"), source("http"))
            .map_err(|sentence| command.error(clap::error::ErrorKind::ArgumentConflict, sentence))?;
        Ok(cli)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Given {
    Not,
    Variable,
    Flag,
}

impl Given {
    fn of(matches: &ArgMatches, name: &str) -> Self {
        match matches.value_source(name) {
            Some(ValueSource::CommandLine) => Self::Flag,
            Some(ValueSource::EnvVariable) => Self::Variable,
            _ => Self::Not,
        }
    }
}

impl Connection {
    pub fn rpc_or_default(&self) -> Vec<String> {
        if self.rpc.is_empty() { vec![DEFAULT_RPC.to_owned()] } else { self.rpc.clone() }
    }

    /// Leaves what counts: a flag makes the variables of the other two void.
    fn settle(&mut self, rpc: Given, zookeeper: Given, http: Given) -> Result<(), &'static str> {
        let flag = [rpc, zookeeper, http].contains(&Given::Flag);
        let counts = |given: Given| given == Given::Flag || given == Given::Variable && !flag;
        if !counts(rpc) {
            self.rpc.clear();
        }
        if !counts(zookeeper) {
            self.zookeeper = None;
        }
        if !counts(http) {
            self.http.clear();
        }
        if counts(rpc) && counts(zookeeper) {
            return Err(
                "--rpc (BITACORA_RPC) and --zookeeper (BITACORA_ZOOKEEPER) both say where the nodes are; give one",
            );
        }
        Ok(())
    }
}

fn node(text: &str) -> Result<String, String> {
    host_port(text.trim()).map(|()| text.trim().to_owned())
}

fn http_url(text: &str) -> Result<Url, String> {
    let text = text.trim();
    if text.starts_with("https://") {
        return Err(
            "nodes speak plain HTTP, not https; end TLS before this program, for example with stunnel"
                .to_owned(),
        );
    }
    let wrong = || format!("'{text}' is not a URL such as http://127.0.0.1:8080");
    let mut url = Url::parse(text).map_err(|_| wrong())?;
    if url.scheme() != "http" || url.host().is_none() || url.query().is_some() || url.fragment().is_some() {
        return Err(wrong());
    }
    // Joined with the API's paths.
    let path = url.path().trim_end_matches('/').to_owned();
    url.set_path(&path);
    Ok(url)
}

/// A node's HTTP address, with or without `http://`.
pub fn http_node(text: &str) -> Result<Url, String> {
    if text.contains("://") { http_url(text) } else { http_url(&format!("http://{}", node(text)?)) }
}

fn size(text: &str) -> Result<usize, String> {
    let size = usize::try_from(bytes(text)?).ok().filter(|size| (1..=1 << 30).contains(size));
    size.ok_or_else(|| "it must be between 1 and 1GiB".to_owned())
}

#[cfg(test)]
mod tests {
    use super::Given::{Flag, Not, Variable};
    use super::*;

    fn read(arguments: &str) -> Result<Cli, String> {
        Cli::from(format!("bitacora {arguments}").split(' ')).map_err(|error| error.to_string())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_examples_and_every_flag_a_word() {
        for command in Cli::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let name = command.get_name();
            assert!(help.contains("Examples:\n  bitacora "), "{name}");
            for argument in command.get_arguments().filter(|argument| argument.get_long().is_some()) {
                assert!(argument.get_help().is_some(), "{name} {argument}");
            }
        }
    }

    #[test]
    fn a_flag_makes_the_variables_void() {
        let connection = || Connection {
            rpc: vec!["a:1".into()],
            zookeeper: Some("z:1".parse().expect("hosts")),
            http: vec![http_node("h:1").expect("a node")],
            timeout: Duration::from_secs(1),
        };
        let settled = |rpc, zookeeper, http| {
            let mut connection = connection();
            connection.settle(rpc, zookeeper, http).map(|()| {
                (!connection.rpc.is_empty(), connection.zookeeper.is_some(), !connection.http.is_empty())
            })
        };
        assert_eq!(settled(Variable, Not, Flag), Ok((false, false, true)));
        assert_eq!(settled(Variable, Flag, Variable), Ok((false, true, false)));
        assert_eq!(settled(Flag, Variable, Flag), Ok((true, false, true)));
        assert_eq!(settled(Not, Variable, Variable), Ok((false, true, true)));
        assert!(settled(Flag, Flag, Not).is_err() && settled(Variable, Variable, Not).is_err());
    }

    #[test]
    fn addresses() {
        let cli = read("--rpc a:1,[::1]:2 --http http://h:80/base/,http://g:1 members").expect("valid");
        assert_eq!(cli.connection.rpc, ["a:1", "[::1]:2"]);
        let urls: Vec<_> = cli.connection.http.iter().map(Url::as_str).collect();
        assert_eq!(urls, ["http://h/base", "http://g:1/"]);
        for (wrong, names) in [
            ("--rpc a members", "'a' is not host:port"),
            ("--http https://a members", "https"),
            ("--http a:1 members", "not a URL"),
            ("--http http://a?b members", "not a URL"),
            ("--zookeeper a members", "--zookeeper"),
            ("status a", "not host:port"),
        ] {
            let error = read(wrong).expect_err(wrong);
            assert!(error.contains(names), "{error}");
        }
    }

    #[test]
    fn a_value_may_begin_with_a_hyphen_and_flags_may_follow_the_command() {
        let cli = read("set k -5 --ttl 2h --timeout 3s -o json").expect("valid");
        let Command::Set(set) = cli.command else { panic!("set was asked for") };
        assert_eq!((set.value.as_deref(), set.ttl), (Some("-5"), Some(Duration::from_secs(7_200))));
        assert_eq!((cli.connection.timeout, cli.output), (Duration::from_secs(3), Some(Output::Json)));
    }

    #[test]
    fn sizes() {
        assert_eq!(size("64KiB"), Ok(65_536));
        assert!(size("0").is_err() && size("2G").is_err() && size("-1").is_err());
    }
}
