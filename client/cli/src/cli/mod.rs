//! The command line once: every command and flag, its environment variable, its default and what it means.

mod commands;
mod nodes;
mod options;
mod tls;
mod values;

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use bitacora_client::ClientTls;
use bitacora_program::console::{StdoutError, tell};
use bitacora_program::environment::without_empty_variables;
use bitacora_program::log_filter::log_filter;
use bitacora_program::token;
use bitacora_protocol::units::positive_duration;
use bitacora_protocol::zookeeper::ConnectString;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, ValueEnum};
use reqwest::Url;

pub use commands::{
    AvroCodec, Bench, Command, Del, Export, Format, Get, Import, KeyFormat, Operation, Range, ScanArguments,
    Set, Token, Watch,
};
pub use nodes::{Diff, Status};
pub use options::{ReadFlags, WriteFlags, version};
use values::{http_url, node, spoken};

/// The command line of Bitacora, a replicated in-memory key-value store whose log is a compacted Kafka topic.
#[derive(Debug, Parser)]
#[command(name = "bitacora", version, max_term_width = 110, after_help = EXAMPLES, after_long_help = EXAMPLES)]
pub struct Cli {
    #[command(flatten)]
    pub connection: Connection,
    /// How results look on stdout [default: raw for get, set and del; for lists, reports and watch a table on a terminal, else json]
    #[arg(long, short, global = true, env = "BITACORA_OUTPUT", value_name = "FORMAT", help_heading = GLOBAL)]
    pub output: Option<Output>,
    /// What the program itself tells on stderr of connections and retries: off, error, warn, info, debug, or a filter
    #[arg(long, global = true, env = "BITACORA_LOG_LEVEL", value_name = "FILTER", value_parser = log_filter, default_value = "off", help_heading = GLOBAL)]
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

Where it connects: --rpc, --zookeeper or --http; without any of them the Avro RPC of this machine, 127.0.0.1:8081. \
A flag wins over every BITACORA_… variable of the three. --http may stand beside --rpc or --zookeeper: then 'members' \
and 'status', which always speak HTTP, use it, and all else the RPC. 'diff' speaks HTTP with the two nodes that it names.

Exit codes: 0 done · 1 failed · 2 wrong usage · 3 no such key (get) · 4 timed out, or a write that may still take effect · \
5 no node reachable, or none ready or as consistent as asked · 6 lines were rejected (import) · 7 the condition of a write \
does not hold (set, del, import) · 8 nodes differ (diff) · 9 the call has no token, or one that is not good for it.";

#[derive(Debug, Args)]
pub struct Connection {
    /// Nodes to speak Avro RPC with, host:port,… [default: 127.0.0.1:8081]
    #[arg(long, global = true, env = "BITACORA_RPC", value_name = "NODES", value_delimiter = ',', value_parser = node, help_heading = CONNECTION)]
    pub rpc: Vec<String>,
    /// ZooKeeper servers that know the nodes, host:port,… with an optional chroot: zk1:2181,zk2:2181/prod
    #[arg(long, global = true, env = "BITACORA_ZOOKEEPER", value_name = "HOSTS", help_heading = CONNECTION)]
    pub zookeeper: Option<ConnectString>,
    /// Nodes or load balancers to speak HTTP with, http://host:port,… or https://host:port,…
    #[arg(long, global = true, env = "BITACORA_HTTP", value_name = "URLS", value_delimiter = ',', value_parser = http_url, help_heading = CONNECTION)]
    pub http: Vec<Url>,
    /// A file with the token to show to nodes that ask for one; the variable `BITACORA_TOKEN` may have the token itself instead
    #[arg(long, global = true, env = "BITACORA_TOKEN_FILE", value_name = "FILE", help_heading = CONNECTION)]
    pub token_file: Option<PathBuf>,
    /// What that file or variable has.
    #[arg(skip)]
    pub token: Option<bitacora_client::Token>,
    /// A file with the authorities, in PEM, of which nodes must have their certificates: with it, TLS is spoken, over Avro RPC and over HTTP
    #[arg(long, global = true, env = "BITACORA_CA_FILE", value_name = "FILE", help_heading = CONNECTION)]
    pub ca_file: Option<PathBuf>,
    /// A file with a certificate, in PEM, to show to nodes that ask for one, and behind it what leads to an authority
    #[arg(long, global = true, env = "BITACORA_CERT_FILE", value_name = "FILE", help_heading = CONNECTION)]
    pub cert_file: Option<PathBuf>,
    /// A file with the private key of that certificate, in PEM and without a password
    #[arg(long, global = true, env = "BITACORA_KEY_FILE", value_name = "FILE", help_heading = CONNECTION)]
    pub key_file: Option<PathBuf>,
    /// What these files have.
    #[arg(skip)]
    pub tls: Option<ClientTls>,
    /// How long a call may take, retries included
    #[arg(long, global = true, env = "BITACORA_TIMEOUT", value_name = "TIME", default_value = "10s", value_parser = positive_duration, help_heading = CONNECTION)]
    pub timeout: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// one JSON object a line (NDJSON)
    Json,
    /// columns for the eye; long texts are cut
    #[value(alias = "text")]
    Table,
    /// values as they are; of lists tab-separated fields, in which \t \n \r \\ stand for tab, newline, return, backslash
    Raw,
}

impl Connection {
    /// Where a node that another one or ZooKeeper names answers over HTTP, if it is a name.
    pub fn node_url(&self, name: &str) -> Option<Url> {
        let mut url = values::http_node(name).ok()?;
        spoken(&mut url, self.tls.is_some());
        Some(url)
    }
}

/// Commands that reach no node.
const WITHOUT_NODES: [&str; 2] = ["token", "completions"];

impl Cli {
    /// The command line for clap. A command that reaches no node takes the connection's flags as every other one does, and its help
    /// leaves them out.
    pub fn program() -> clap::Command {
        let program = Self::command();
        let hidden: Vec<_> = program
            .get_arguments()
            .filter(|argument| argument.get_help_heading() == Some(CONNECTION))
            .map(|argument| argument.clone().hide(true))
            .collect();
        WITHOUT_NODES
            .into_iter()
            .fold(program, |program, name| program.mut_subcommand(name, |command| command.args(&hidden)))
    }

    /// Reads the command line and the environment; ends the process on a wrong one, with exit code 2, and on `--help`.
    #[must_use]
    pub fn read() -> Self {
        Self::from(std::env::args_os()).unwrap_or_else(|error| {
            let printed = error.print().and_then(|()| std::io::stdout().flush()).map_err(StdoutError::from);
            let code = match printed {
                Err(failed @ StdoutError::Failed(_)) if !error.use_stderr() => {
                    tell(format_args!("bitacora: {failed}"));
                    1
                }
                _ => error.exit_code(),
            };
            std::process::exit(code)
        })
    }

    fn from(
        arguments: impl IntoIterator<Item = impl Into<std::ffi::OsString> + Clone>,
    ) -> Result<Self, clap::Error> {
        let mut command = without_empty_variables(Self::program());
        let matches = command.try_get_matches_from_mut(arguments)?;
        let mut cli = Self::from_arg_matches(&matches)?;
        let source = |name| Given::of(&matches, name);
        cli.connection
            .settle(source("rpc"), source("zookeeper"), source("http"))
            .map_err(|reason| command.error(clap::error::ErrorKind::ArgumentConflict, reason))?;
        cli.connection.token = token::read(cli.connection.token_file.as_deref())
            .map_err(|reason| command.error(clap::error::ErrorKind::ValueValidation, reason))?;
        let mut named: Vec<&mut Url> = match &mut cli.command {
            Command::Status(status) => status.nodes.iter_mut().collect(),
            Command::Diff(diff) => vec![&mut diff.a, &mut diff.b],
            _ => Vec::new(),
        };
        cli.connection.tls = tls::read(&cli.connection, named.iter().map(|url| &**url))
            .map_err(|reason| command.error(clap::error::ErrorKind::ValueValidation, reason))?;
        let tls = cli.connection.tls.is_some();
        named.extend(&mut cli.connection.http);
        for url in named {
            spoken(url, tls);
        }
        let checked = match &cli.command {
            Command::Get(get) => get.read.check(),
            Command::Scan(scan) => scan.read.check(),
            Command::Del(del) => del.check(),
            _ => Ok(()),
        };
        checked.map_err(|reason| command.error(clap::error::ErrorKind::ArgumentConflict, reason))?;
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

#[cfg(test)]
mod tests {
    use super::Given::{Flag, Not, Variable};
    use super::values::size;
    use super::*;

    fn read(arguments: &str) -> Result<Cli, String> {
        Cli::from(format!("bitacora {arguments}").split(' ')).map_err(|error| error.to_string())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::program().debug_assert();
    }

    #[test]
    fn every_command_has_examples_and_every_flag_a_word() {
        for command in Cli::program().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let name = command.get_name();
            assert!(help.contains("Examples:\n  bitacora "), "{name}");
            for argument in command.get_arguments().filter(|argument| argument.get_long().is_some()) {
                assert!(argument.get_help().is_some(), "{name} {argument}");
            }
        }
    }

    /// The terminal's width is not known here: a line that ends within a sentence would be cut once more.
    #[test]
    fn paragraphs_are_wrapped_by_clap_alone() {
        let program = Cli::program();
        for command in std::iter::once(&program).chain(program.get_subcommands()) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            for line in help.lines().filter(|line| !line.is_empty() && !line.starts_with(' ')) {
                assert!(line == "Examples:" || line.ends_with('.'), "{}: {line}", command.get_name());
            }
        }
    }

    #[test]
    fn help_has_the_connection_where_nodes_are_reached_only() {
        let help = |arguments: &str| read(arguments).expect_err("it is asked for help");
        for command in ["token", "completions"] {
            let help = help(&format!("{command} --help"));
            assert!(!help.contains("--rpc") && !help.contains("Connection:"), "{help}");
        }
        assert!(help("get --help").contains("--rpc"));
        for arguments in ["token t --scopes read --out f", "--timeout 3s token t --scopes read --out f"] {
            assert!(matches!(read(arguments).expect("valid").command, Command::Token(_)));
        }
        let cli = read("token t --scopes read --out f --http http://a:1 --timeout 3s").expect("valid");
        assert_eq!((cli.connection.http.len(), cli.connection.timeout), (1, Duration::from_secs(3)));
    }

    #[test]
    fn a_flag_makes_the_variables_void() {
        let connection = || Connection {
            rpc: vec!["a:1".into()],
            zookeeper: Some("z:1".parse().expect("hosts")),
            http: vec![values::http_node("h:1").expect("a node")],
            token_file: None,
            token: None,
            ca_file: None,
            cert_file: None,
            key_file: None,
            tls: None,
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
            ("--http https://a members", "--ca-file"),
            ("status https://a", "--ca-file"),
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
    fn values_may_begin_with_a_hyphen_and_flags_may_come_last() {
        let cli = read("set k -5 --ttl 2h --timeout 3s -o json").expect("valid");
        let Command::Set(set) = cli.command else { panic!("set was asked for") };
        assert_eq!((set.value.as_deref(), set.ttl), (Some("-5"), Some(Duration::from_secs(7_200))));
        assert_eq!((cli.connection.timeout, cli.output), (Duration::from_secs(3), Some(Output::Json)));
    }

    #[test]
    fn a_token_is_no_argument() {
        assert!(read("--token x members").is_err());
        let error = read("--token-file /nowhere/token members").expect_err("no file");
        assert!(error.contains("/nowhere/token: it can't be read"), "{error}");
    }

    #[test]
    fn sizes() {
        assert_eq!(size("64KiB"), Ok(65_536));
        assert!(size("0").is_err() && size("2G").is_err() && size("-1").is_err());
    }
}
