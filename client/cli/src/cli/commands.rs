//! The commands and their flags.

use std::path::PathBuf;
use std::time::Duration;

use bitacora_protocol::token::Scope;
use bitacora_protocol::units::{duration, positive_duration};
use clap::{Args, Subcommand, ValueEnum};
use clap_complete::Shell;

use bitacora_protocol::{Visible, WriteCondition};

use super::nodes::{DIFF, Diff, MEMBERS, STATUS, Status};
use super::options::{ReadFlags, WriteFlags, parse, present};
use super::values::size;

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
    /// Print what changes, as it does
    #[command(after_help = WATCH, after_long_help = WATCH)]
    Watch(Watch),
    /// List the nodes of the cluster: ready, caught up, lag
    #[command(after_help = MEMBERS, after_long_help = MEMBERS)]
    Members,
    /// Show all that nodes say of themselves: log, partitions, store, cache
    #[command(after_help = STATUS, after_long_help = STATUS)]
    Status(Status),
    /// Find the keys in which two nodes differ
    #[command(after_help = DIFF, after_long_help = DIFF)]
    Diff(Diff),
    /// Set many keys from NDJSON, CSV or Avro
    #[command(after_help = IMPORT, after_long_help = IMPORT)]
    Import(Import),
    /// Write all keys, or a range of them, as NDJSON, CSV or Avro
    #[command(after_help = EXPORT, after_long_help = EXPORT)]
    Export(Export),
    /// Measure throughput and latency
    #[command(after_help = BENCH, after_long_help = BENCH)]
    Bench(Bench),
    /// Make a token, for nodes that ask for one
    #[command(after_help = TOKEN, after_long_help = TOKEN)]
    Token(Token),
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
  bitacora get balance --consistency strong         what was acknowledged last, whoever wrote it
  bitacora get cart --position 2:1047               at least what a set that told OK 2:1047 wrote
  bitacora get news --max-staleness 2s

Exit code 3: one of the keys does not exist. 5: no node was as consistent as asked within --timeout; never an older value.";

#[derive(Debug, Args)]
pub struct Get {
    #[arg(required = true, value_name = "KEY", allow_negative_numbers = true)]
    pub keys: Vec<String>,
    /// Print no newline after a raw value
    #[arg(long, short)]
    pub no_newline: bool,
    #[command(flatten)]
    pub read: ReadFlags,
}

const SET: &str = "\
Raw output is OK and the position, partition:offset, of the write in the log.

Examples:
  bitacora set greeting hello
  bitacora set session:17 '{\"user\":1}' --ttl 30m
  bitacora set notes < notes.txt                    the value is stdin, byte for byte
  bitacora get -n one | bitacora set two -
  bitacora set empty ''
  bitacora set config:7 '{}' --if-absent
  bitacora set config:7 '{\"a\":1}' --if-match 2:1047   if that is still its version, as a set and 'get -o json' tell it
  bitacora set greeting hello --visible all         returns when every member shows it
  bitacora set option -- --verbose                  -- before a value that begins with a hyphen; numbers such as -5 need none

An empty stdin is refused, since it is mostly a command before the pipe that failed; --empty takes it.

Exit code 4: not acknowledged in time; the write may still take effect. 7: the condition does not hold; nothing was written.";

#[derive(Debug, Args)]
pub struct Set {
    #[arg(allow_negative_numbers = true)]
    pub key: String,
    /// The value; stdin if it is absent or '-'
    #[arg(allow_negative_numbers = true)]
    pub value: Option<String>,
    /// Set an empty value if stdin is empty
    #[arg(long)]
    pub empty: bool,
    /// How long the key lives: 500ms, 30s, 5m, 2h or 7d [default: for ever]
    #[arg(long, value_name = "TIME", value_parser = positive_duration)]
    pub ttl: Option<Duration>,
    /// Write only if there is no such key
    #[arg(long, conflicts_with = "if_match", help_heading = "Consistency")]
    pub if_absent: bool,
    #[command(flatten)]
    pub write: WriteFlags,
}

impl Set {
    pub fn condition(&self) -> WriteCondition {
        if self.if_absent { WriteCondition::Absent } else { self.write.if_match.unwrap_or_default() }
    }
}

const DEL: &str = "\
Raw output is OK and the position of the delete in the log, a line for each key.

Examples:
  bitacora del greeting
  bitacora scan --prefix session: --output json | bitacora del --from-file -
  bitacora export old.ndjson --prefix old: && bitacora del --from-file old.ndjson
  printf 'one\\0two\\0' | bitacora del --from-file - --format nul
  bitacora scan --prefix old: --output json | jq -c '.ifMatch = .position' | bitacora del --from-file -    unless changed since

A key may hold newlines, spaces and quotes. Handed on as lines or words it would be taken for other keys, so hand keys on as JSON, \
or with a zero byte after each. A line that is no such key ends the command; what was before it is deleted.

With --if-match a key is deleted only if that is still its version ('*': if it is there). A line of --from-file may have a version of \
its own, as a field \"ifMatch\"; the keys whose condition does not hold stay, and the others are deleted.

Exit code 4: not acknowledged in time; the delete may still take effect. 7: the condition does not hold; that key is not deleted.";

#[derive(Debug, Args)]
pub struct Del {
    #[arg(required_unless_present = "from_file", value_name = "KEY", allow_negative_numbers = true)]
    pub keys: Vec<String>,
    /// Delete the keys that this file lists; '-' for stdin
    #[arg(long, value_name = "FILE", conflicts_with_all = ["keys", "idempotency_key"])]
    pub from_file: Option<PathBuf>,
    /// How the file lists them [default: ndjson]
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<KeyFormat>,
    #[command(flatten)]
    pub write: WriteFlags,
}

impl Del {
    /// A version and a UUID belong to one key.
    pub fn check(&self) -> Result<(), &'static str> {
        let of_one = matches!(self.write.if_match, Some(WriteCondition::Version(_)))
            || self.write.idempotency_key.is_some();
        if of_one && (self.keys.len() > 1 || self.from_file.is_some()) {
            return Err(
                "--if-match with a version and --idempotency-key are for one key; name one, or give --if-match '*', or ifMatch in the lines of --from-file",
            );
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KeyFormat {
    /// a line is a JSON object with a field "key", as 'scan --output json' and 'export' write them, or a key as a JSON string
    Ndjson,
    /// a zero byte after each key
    Nul,
}

const SCAN: &str = "\
Raw output is key, tab, value; in both \\t \\n \\r \\\\ stand for tab, newline, carriage return and backslash.
Pages are printed as they come; keys that are written meanwhile may or may not be among them. To hand keys on to another \
program use JSON: only there they are what they are, whatever they hold.

Examples:
  bitacora scan --prefix user:
  bitacora scan --start 2024-01 --end 2024-02 --output raw | cut -f 1
  bitacora scan --limit 10 --output json
  bitacora scan --prefix user: --consistency strong
  bitacora scan --prefix session: --output json | bitacora del --from-file -";

#[derive(Debug, Args)]
pub struct ScanArguments {
    #[command(flatten)]
    pub range: Range,
    /// How many records at most
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
    #[command(flatten)]
    pub read: ReadFlags,
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

const WATCH: &str = "\
From now on, until Ctrl-C; then the token to go on from is told on stderr. When its node dies, it goes on at another one; while none answers, \
there is no line, not even progress. It tells states, not history: of a key that changes quickly, states in between may be left out; its last one \
always comes. Apply events as they come, and don't compare positions: an expired key's delete has the position of its set.

A token does not hold the prefix or key: go on with the same ones, or keys are missed and nothing says so. In a pipe, go on from the token of the \
last line that your program has processed, saved together with what it did; several lines may have one token. Of those behind it, none is lost.

JSON output is an object a line: \"event\" is set (with the record), delete (with the reason, deleted or expired), current (all that was there when \
it began has been told), progress (nothing matched for 5 s), or gap (forget all keys: those that are live follow); and each has its \"token\".
Raw output is tab-separated: set, position, key, value; delete, position, key, reason; current, positions; gap, reason. For the eye, on a \
terminal, lines have colours (unless NO_COLOR is set), and the last one tells how many events come a second.

Examples:
  bitacora watch --prefix cart/
  bitacora watch --key config --initial             what it holds now, and then what changes
  bitacora watch --output json | jq -c 'select(.event == \"delete\")'
  bitacora watch --since AQAAAAA…                   what has changed since, deletes and what expired too
  bitacora watch --prefix user: --initial --no-values --limit 100

Exit code 1: the token is invalid; begin anew without it. 5: no node answers when it begins.";

#[derive(Debug, Clone, Args)]
pub struct Watch {
    /// Only keys that begin with it
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub prefix: String,
    /// Only this key
    #[arg(long, value_name = "KEY", conflicts_with = "prefix", allow_hyphen_values = true)]
    pub key: Option<String>,
    /// Go on from a token: of a line of JSON output, of what was told at Ctrl-C, or of the HTTP API
    #[arg(long, value_name = "TOKEN", allow_hyphen_values = true)]
    pub since: Option<String>,
    /// Without a token: begin with the keys that are there
    #[arg(long)]
    pub initial: bool,
    /// Leave the values out
    #[arg(long)]
    pub no_values: bool,
    /// End after so many sets and deletes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
}

const IMPORT: &str = "\
NDJSON: {\"key\":\"k\",\"value\":\"v\",\"ttl\":\"30s\"} a line; 'ttl' is optional, a time with its unit. 'expires' instead of it is \
a time in ms since 1970, which 'export' writes: a record that has expired is skipped and counted. A line with a 'uuid' is a \
whole record, as 'scan --output json' and the HTTP API print them: its 'ttl' is such a time too. Other fields are ignored.
CSV: a header line with key and value, and perhaps ttl, expires or uuid, in any order; fields as RFC 4180 quotes them. Lines \
end with LF, CR or both. Text is UTF-8, with or without a byte order mark at its start.
Avro: an object container file (codec null or deflate) of records with the strings key and value, and perhaps ttl, expires or \
uuid, as above (a ttl that is a number has no unit there: ms); other fields are ignored. Its records are counted as lines.

On a condition: a line, of any format, may have \"ifMatch\", the version that its key must have (partition:offset, or * for any), or \
\"ifAbsent\": true, if there must be no such key. --if-absent and --if-match '*' are for the lines that have neither. What is not written because \
its condition does not hold is counted, and goes to --rejects with the key's version as the reason. After an interruption that may be so \
of a few lines that this import itself had written: the key holds their value.

The last line of a key wins. What a node could not take is sent again; what it refuses is a rejected line: counted and \
written to --rejects as {\"line\",\"reason\",\"text\"}, or the first ten told on stderr. With --checkpoint an import that was \
interrupted goes on where all before was acknowledged, and one that is done is not done again.
A pipe, a FIFO or a socket is read once, from its start to its end. Neither --rejects nor --checkpoint may be the input; both are \
tried before the first record is sent.

Examples:
  bitacora import users.csv --rejects rejected.ndjson
  bitacora import big.ndjson --checkpoint big.checkpoint     run again after a failure
  bitacora --rpc old:8081 export - | bitacora --rpc new:8081 import -
  bitacora import --format csv <(zstd -dc users.csv.zst)
  jq -c '.[]' array.json | bitacora import -         an array's elements, one a line
  bitacora import defaults.ndjson --if-absent        only keys that are not there yet
  bitacora scan --prefix user: -o json | jq -c '.ifMatch = .position | .value |= ascii_upcase' | bitacora import -

Exit code 6: done, but lines were rejected; 7: done, but conditions did not hold; 5 or 4: gave up after --retry-for; 1: the input can't be read, or is \
no text of its format.";

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
    /// Write a key only if it is not there; a line's own condition counts in the place of this
    #[arg(long, conflicts_with = "if_match", help_heading = "Consistency")]
    pub if_absent: bool,
    /// '*': write a key only if it is there. A version belongs to one key, so it stands in the line, as ifMatch
    #[arg(long, value_name = "*", value_parser = present, help_heading = "Consistency")]
    pub if_match: Option<WriteCondition>,
    /// Who must show each write: acknowledged (nobody), here (the node that is asked) or all (every member) [default: acknowledged]
    #[arg(long, value_name = "WHO", value_parser = parse::<Visible>, help_heading = "Consistency")]
    pub visible: Option<Visible>,
}

impl Import {
    /// Of lines that have none of their own.
    pub fn condition(&self) -> WriteCondition {
        if self.if_absent { WriteCondition::Absent } else { self.if_match.unwrap_or_default() }
    }
}

const EXPORT: &str = "\
NDJSON: {\"key\",\"value\"} a line, and \"expires\" in ms since 1970 of a key with a TTL; CSV: key,value,expires.
Avro: an object container file of records {key, value, expires (null or a long), timestamp, uuid, position}, which Avro's tools \
read. 'import' reads all three.
A file gets its name when it is whole, so until then it is what it was; its mode stays. A device or a FIFO is written to, and a link's \
target. It is no snapshot: keys that are written meanwhile may or may not be in it. With --checkpoint an export that was \
interrupted goes on where it was, in FILE.part; the checkpoint is removed at the end.

Examples:
  bitacora export all.ndjson
  bitacora export users.csv --prefix user:
  bitacora export big.ndjson --checkpoint big.checkpoint     run again after a failure
  bitacora export all.avro --avro-codec null
  bitacora export - | gzip > all.ndjson.gz";

#[derive(Debug, Args)]
pub struct Export {
    /// The file; '-' for stdout
    #[arg(value_name = "FILE", default_value = "-")]
    pub file: PathBuf,
    /// How the output looks [default: by the file's extension, ndjson for stdout]
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<Format>,
    /// How the blocks of an Avro file are packed
    #[arg(long, value_name = "CODEC", default_value = "deflate")]
    pub avro_codec: AvroCodec,
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
    /// an Avro object container file
    Avro,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AvroCodec {
    /// not at all
    Null,
    /// as zlib does, without its header
    Deflate,
}

const BENCH: &str = "\
A closed loop: --connections times --pipeline requests are under way all the time, so latencies are those at full load. The \
keys are <prefix>0, <prefix>1 and so on, chosen at random; get and mixed write all of them first. They stay in the store: \
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

const TOKEN: &str = "\
The token is a secret, and goes into a file that only you may read. On stdout comes the line by which nodes know it, which is no secret: \
append it to the file TOKENS_FILE of every node, and the nodes take it over within seconds. Without its line a token is good for nothing.

Examples:
  bitacora token web --scopes read,write --prefix web/ --out web.token >> tokens
  bitacora token members --scopes member --out member.token >> tokens
  bitacora --token-file web.token get web/greeting";

#[derive(Debug, Args)]
pub struct Token {
    /// Whose it is: nodes tell the name in their logs
    pub name: String,
    /// What it is good for: read, write, admin (a copy of the whole store) and member (what nodes ask one another)
    #[arg(long, value_name = "SCOPES", value_delimiter = ',', required = true, value_parser = parse::<Scope>)]
    pub scopes: Vec<Scope>,
    /// What the keys begin with that it is good for [default: it is good for all keys]
    #[arg(long, value_name = "TEXT")]
    pub prefix: Option<String>,
    /// The file to write the token to, which must not be there yet
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
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
