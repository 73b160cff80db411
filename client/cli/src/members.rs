//! `members` and `status`: who the nodes are, and what each says of itself. Always over HTTP.

use std::time::Duration;

use anyhow::Result;
use bitacora_program::console::{print, tell};
use bitacora_protocol::http::{ComponentState, PartitionStatus, Status};
use bitacora_protocol::zookeeper::{ConnectString, SERVERS, list_members};
use futures_util::{StreamExt as _, stream};
use reqwest::Url;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::api::{Failure, Kind};
use crate::cli::{self, Connection, Output};
use crate::http::Http;
use crate::output::{self, json_line, raw_line};

/// Nodes asked at a time.
const UNDER_WAY: usize = 32;

/// ZooKeeper's servers refuse sessions that are much shorter.
const SHORTEST_SESSION_TIMEOUT: Duration = Duration::from_secs(2);

/// A node, and what it answered.
struct Answer {
    /// `host:API_PORT`, as the cluster knows it.
    name: String,
    status: Result<Value, Failure>,
}

/// A line of `members`.
#[derive(Serialize)]
struct Member {
    node: String,
    /// `None`: it does not answer, and others may well reach it.
    ready: Option<bool>,
    caught_up: Option<bool>,
    lag: Option<u64>,
    version: String,
    /// Why it is not ready, or does not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

pub async fn members(connection: &Connection, output: Option<Output>) -> Result<()> {
    let answers = ask_all(connection).await?;
    let lines: Vec<Member> = answers.iter().map(Member::of).collect();
    let fields = |member: &Member| {
        let Member { node, ready, caught_up, lag, version, reason } = member;
        let lag = lag.map_or_else(|| "-".to_owned(), |lag| lag.to_string());
        let reason = reason.clone().unwrap_or_default();
        [node.clone(), known(*ready), known(*caught_up), lag, version.clone(), reason]
    };
    match Output::of_list(output) {
        Output::Json => {
            for member in &lines {
                print(json_line(member)?)?;
            }
        }
        Output::Table if lines.is_empty() => {}
        Output::Table => {
            let header = ["MEMBER", "READY", "CAUGHT UP", "LAG", "VERSION", ""];
            print(output::table(Some(header), lines.iter().map(fields)))?;
        }
        Output::Raw => {
            for member in &lines {
                print(raw_line(fields(member).each_ref().map(String::as_str)))?;
            }
        }
    }
    one_answered(&answers, connection)
}

pub async fn status(connection: &Connection, arguments: &cli::Status, output: Option<Output>) -> Result<()> {
    let answers = if arguments.nodes.is_empty() {
        ask_all(connection).await?
    } else {
        let http = Http::new(&arguments.nodes, connection)?;
        ask(&http, arguments.nodes.iter().map(|url| (name_of(url), url.clone()))).await
    };
    let mut first = true;
    for answer in &answers {
        let status = match &answer.status {
            Ok(status) => status,
            Err(failure) => {
                tell(format_args!("bitacora: {}: {failure}", answer.name));
                continue;
            }
        };
        match Output::of_list(output) {
            Output::Json => print(json_line(status)?)?,
            Output::Table => {
                let gap = if first { "" } else { "\n" };
                print(gap.to_owned() + &page(&read_status(status)))?;
            }
            Output::Raw => {
                let shown = read_status(status);
                for partition in &shown.partitions {
                    let [number, applied, end, lag] = partition_fields(partition);
                    print(raw_line([&shown.node, &number, &applied, &end, &lag]))?;
                }
            }
        }
        first = false;
    }
    if arguments.nodes.is_empty() {
        return one_answered(&answers, connection);
    }
    // Who names nodes wants to know of each.
    match answers.into_iter().find_map(|answer| answer.status.err()) {
        Some(failure) => Err(failure.into()),
        None => Ok(()),
    }
}

/// Fails if nobody answered, and then blames who was asked.
fn one_answered(answers: &[Answer], connection: &Connection) -> Result<()> {
    if answers.iter().any(|answer| answer.status.is_ok()) {
        return Ok(());
    }
    let failures = || answers.iter().filter_map(|answer| Some((&answer.name, answer.status.as_ref().err()?)));
    let first = failures().next();
    let sentence = match (asked_zookeeper(connection), first) {
        (Some(zookeeper), None) => format!(
            "{} names no node below {}{SERVERS}: none is ready, or the chroot is another one",
            at(zookeeper),
            zookeeper.chroot()
        ),
        (Some(zookeeper), Some((name, failure))) => format!(
            "no member that {} names answers over HTTP (of {}); {name}: {failure}",
            at(zookeeper),
            answers.len()
        ),
        (None, None) => format!(
            "no node can be asked over HTTP: a node's HTTP port is taken to be one below its RPC port ({}): if it is \
             not, give --http",
            connection.rpc_or_default().join(",")
        ),
        (None, Some((_, failure))) if answers.len() == 1 => failure.to_string(),
        (None, Some((name, failure))) => {
            format!(
                "none of the {} nodes that were asked answers over HTTP; {name}: {failure}",
                answers.len()
            )
        }
    };
    // Nodes that ask for another token were reached.
    let is_denied = first.is_some() && failures().all(|(_, failure)| failure.kind == Kind::Denied);
    let kind = if is_denied { Kind::Denied } else { Kind::Unavailable };
    Err(Failure::new(kind, sentence).into())
}

/// ZooKeeper, if it is what says who the members are.
fn asked_zookeeper(connection: &Connection) -> Option<&ConnectString> {
    connection.zookeeper.as_ref().filter(|_| connection.http.is_empty())
}

fn at(zookeeper: &ConnectString) -> String {
    format!("ZooKeeper at {} (--zookeeper)", zookeeper.hosts().join(","))
}

/// Finds the members and asks each.
async fn ask_all(connection: &Connection) -> Result<Vec<Answer>, Failure> {
    if let Some(zookeeper) = asked_zookeeper(connection) {
        let http = Http::new(&[], connection)?;
        let session_timeout = connection.timeout.max(SHORTEST_SESSION_TIMEOUT);
        let names = list_members(zookeeper, session_timeout, connection.timeout, SERVERS).await;
        let names = names.map_err(|reason| {
            let sentence = format!("{} can't say who the members are: {reason}", at(zookeeper));
            Failure::new(Kind::Unavailable, sentence)
        })?;
        return Ok(ask(
            &http,
            names.into_iter().filter_map(|name| Some((name.clone(), connection.node_url(&name)?))),
        )
        .await);
    }
    let (given, derived) = if connection.http.is_empty() {
        let nodes = connection.rpc_or_default();
        (nodes.iter().filter_map(|node| connection.node_url(&one_port_below(node)?)).collect(), true)
    } else {
        (connection.http.clone(), false)
    };
    let http = Http::new(&given, connection)?;
    let mut answers = ask(&http, given.iter().map(|url| (name_of(url), url.clone()))).await;
    for answer in &mut answers {
        match &mut answer.status {
            // The name that the others know it by.
            Ok(status) => answer.name = read_status(status).node,
            // What refuses a request is the node's HTTP port.
            Err(failure) if derived && !failure.is_refusal() => {
                failure.sentence +=
                    "; a node's HTTP port is taken to be one below its RPC port: if it is not, give --http";
            }
            Err(_) => {}
        }
    }
    let known = answers
        .iter()
        .filter_map(|answer| answer.status.as_ref().ok())
        .flat_map(|status| read_status(status).members);
    let mut others: Vec<_> = known.filter(|name| answers.iter().all(|answer| answer.name != *name)).collect();
    others.sort();
    others.dedup();
    answers.extend(
        ask(&http, others.into_iter().filter_map(|name| Some((name.clone(), connection.node_url(&name)?))))
            .await,
    );
    answers.sort_by(|a, b| a.name.cmp(&b.name));
    // Two ways to one node.
    answers.dedup_by(|a, b| a.name == b.name);
    Ok(answers)
}

async fn ask(http: &Http, nodes: impl Iterator<Item = (String, Url)>) -> Vec<Answer> {
    let calls = nodes.map(|(name, url)| async move { Answer { name, status: http.status(&url).await } });
    stream::iter(calls).buffered(UNDER_WAY).collect().await
}

/// `host:port` of a URL.
pub fn name_of(url: &Url) -> String {
    format!("{}:{}", url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or_default())
}

/// The HTTP address of a node with default ports, by that of its RPC.
fn one_port_below(rpc: &str) -> Option<String> {
    let (host, port) = rpc.rsplit_once(':')?;
    Some(format!("{host}:{}", port.parse::<u16>().ok()?.checked_sub(1)?))
}

/// What these commands show of a node's account; nothing of what they can't read.
fn read_status(status: &Value) -> Status {
    Status::deserialize(status).unwrap_or_default()
}

/// Of all partitions, if it is known of each.
fn lag(status: &Status) -> Option<u64> {
    status.partitions.iter().try_fold(0, |sum, partition| partition.lag.map(|lag| sum + lag))
}

/// Number, applied offset, high watermark and lag.
fn partition_fields(partition: &PartitionStatus) -> [String; 4] {
    let shown = |number: Option<String>| number.unwrap_or_else(|| "-".to_owned());
    let end = shown(partition.high_watermark.map(|end| end.to_string()));
    let lag = shown(partition.lag.map(|lag| lag.to_string()));
    [partition.partition.to_string(), partition.applied.to_string(), end, lag]
}

impl Member {
    fn of(answer: &Answer) -> Self {
        let node = answer.name.clone();
        match &answer.status {
            Ok(status) => {
                let shown = read_status(status);
                let (ready, caught_up, lag) = (Some(shown.ready), Some(shown.caught_up), lag(&shown));
                Self { node, ready, caught_up, lag, version: shown.version, reason: shown.unready }
            }
            Err(failure) => {
                let reason = Some(failure.sentence.clone());
                Self { node, ready: None, caught_up: None, lag: None, version: String::new(), reason }
            }
        }
    }
}

fn yes(yes: bool) -> String {
    if yes { "yes" } else { "no" }.to_owned()
}

fn known(answer: Option<bool>) -> String {
    answer.map_or_else(|| "unknown".to_owned(), yes)
}

/// A node's status for the eye.
fn page(shown: &Status) -> String {
    let because = |state: &ComponentState| match &state.reason {
        Some(reason) => format!("{}: {reason}", state.state),
        None => state.state.to_string(),
    };
    let ready = match &shown.unready {
        Some(reason) => format!("no: {reason}"),
        None => yes(shown.ready),
    };
    let restored = match shown.restore.fraction {
        _ if shown.restore.done => "yes".to_owned(),
        Some(fraction) => format!("{:.1} %", fraction * 100.0),
        None => "no".to_owned(),
    };
    let size = |records: u64, bytes: u64| format!("{records} records, {}", indicatif::HumanBytes(bytes));
    let (store, cache) = (shown.store.unwrap_or_default(), shown.cache.unwrap_or_default());
    let rows = [
        ("node", shown.node.clone()),
        ("version", shown.version.clone()),
        ("ready", ready),
        ("caught up", yes(shown.caught_up)),
        ("restored", restored),
        ("log", because(&shown.log)),
        ("membership", because(&shown.membership)),
        ("members", shown.members.join(" ")),
        ("store", size(store.records, store.bytes)),
        ("cache", size(cache.records, cache.bytes)),
    ];
    let partitions = output::table(
        Some(["PARTITION", "APPLIED", "HIGH WATERMARK", "LAG"]),
        shown.partitions.iter().map(partition_fields),
    );
    output::table(None, rows.map(|(name, value)| [name.to_owned(), value])) + &partitions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_http_port_is_one_below() {
        assert_eq!(one_port_below("a:8081").as_deref(), Some("a:8080"));
        assert_eq!(one_port_below("[::1]:8081").as_deref(), Some("[::1]:8080"));
        assert_eq!(one_port_below("a:0"), None);
    }

    #[test]
    fn a_node_of_another_version_is_shown_as_far_as_it_goes() {
        let status = serde_json::json!({"node": "a:1", "ready": true, "later": [], "store": {"records": 1}});
        let text = page(&read_status(&status));
        assert!(text.contains("a:1") && text.contains("1 records"), "{text}");
        let lag = serde_json::json!({"partitions": [{"lag": 2}, {"lag": 3}]});
        assert_eq!(super::lag(&read_status(&lag)), Some(5));
        assert_eq!(super::lag(&read_status(&serde_json::json!({"partitions": [{"lag": 2}, {}]}))), None);
    }
}
