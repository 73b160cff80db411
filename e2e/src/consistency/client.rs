//! One client, which writes down each call with its answer.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use reqwest::Method;
use serde_json::Value;

use super::{Call, Condition, Found, Level, Operation, Outcome, Recorder};
use crate::http::{Answer, Api, Position, encode};

/// Longer than a node waits for an acknowledgement.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long a node may wait for what a read must see.
const READ_TIMEOUT_MS: u64 = 3_000;
/// How often a conditional write of unclear outcome is sent, with one `Idempotency-Key`.
const TRIES: usize = 3;

/// The nodes of a cluster, as clients reach them.
pub struct Nodes<'a> {
    pub count: usize,
    /// Asked again for each call: a node that was started again has other connections.
    pub api: &'a dyn Fn(usize) -> Api,
}

/// A client with its session. Each call is an error if the answer is one that no node may give to such a call.
pub struct Client<'a> {
    pub number: usize,
    nodes: &'a Nodes<'a>,
    recorder: &'a Recorder,
    /// The highest position that any answer told, of each partition.
    session: BTreeMap<i32, i64>,
}

impl<'a> Client<'a> {
    pub fn new(number: usize, nodes: &'a Nodes<'a>, recorder: &'a Recorder) -> Client<'a> {
        Client { number, nodes, recorder, session: BTreeMap::new() }
    }

    pub async fn read(&mut self, node: usize, key: &str, level: Level) -> Result<Outcome> {
        let session: Vec<_> = self.session.iter().filter(|(_, offset)| **offset >= 0).collect();
        // Who has seen nothing yet has no session.
        let level = if level == Level::Session && session.is_empty() { Level::Eventual } else { level };
        let began = self.recorder.now();
        let mut path =
            format!("/rpc?key={}&consistency={}&timeout={READ_TIMEOUT_MS}", encode(key), level.name());
        if level == Level::Session {
            let session: Vec<_> =
                session.iter().map(|(partition, offset)| format!("{partition}:{offset}")).collect();
            path.push_str(&format!("&position={}", session.join(",")));
        }
        let outcome = match self.send(node, Method::GET, &path, &[], Vec::new()).await {
            Ok(answer) => read(answer)?,
            Err(failure) => Outcome::Refused(failure.text),
        };
        Ok(self.record(node, key, Call::Read(level), began, outcome))
    }

    /// `value`: `None` deletes. With `uuid` as `Idempotency-Key`, a conditional write of unclear outcome is sent again, to
    /// the next nodes.
    pub async fn write(
        &mut self,
        node: usize,
        key: &str,
        value: Option<String>,
        condition: Condition,
        uuid: Option<String>,
    ) -> Result<Outcome> {
        let began = self.recorder.now();
        let call = Call::Write { value, condition, uuid };
        let mut node = node;
        let mut outcome = self.try_write(node, key, &call).await?;
        let again = condition != Condition::None && matches!(call, Call::Write { uuid: Some(_), .. });
        for _ in 1..if again { TRIES } else { 1 } {
            if !matches!(outcome, Outcome::Unclear(_)) {
                break;
            }
            node = (node + 1) % self.nodes.count;
            match self.try_write(node, key, &call).await? {
                done @ Outcome::Done(_) => outcome = done,
                // Of the first try it still says nothing.
                Outcome::Failed { .. } => break,
                _ => {}
            }
        }
        Ok(self.record(node, key, call, began, outcome))
    }

    fn record(&mut self, node: usize, key: &str, call: Call, began: u64, outcome: Outcome) -> Outcome {
        let ended = self.recorder.now();
        let operation =
            Operation { client: self.number, node, key: key.to_owned(), call, began, ended, outcome };
        if let Some(position) = operation.position() {
            let known = self.session.entry(position.partition).or_insert(-1);
            *known = (*known).max(position.offset);
        }
        let outcome = operation.outcome.clone();
        self.recorder.add(operation);
        outcome
    }

    async fn try_write(&self, node: usize, key: &str, call: &Call) -> Result<Outcome> {
        let Call::Write { value, condition, uuid } = call else { bail!("{call:?} is no write") };
        let path = format!("/rpc?key={}", encode(key));
        let mut headers = vec![("content-type", "text/plain; charset=utf-8")];
        let version = match condition {
            Condition::Version(version) => etag(*version),
            _ => String::new(),
        };
        match condition {
            Condition::None => {}
            Condition::Absent => headers.push(("if-none-match", "*")),
            Condition::Version(_) => headers.push(("if-match", &version)),
        }
        if let Some(uuid) = uuid {
            headers.push(("idempotency-key", uuid));
        }
        let method = if value.is_some() { Method::POST } else { Method::DELETE };
        let body = value.clone().unwrap_or_default().into_bytes();
        match self.send(node, method, &path, &headers, body).await {
            Ok(answer) => written(answer),
            Err(Failure { sent: false, text }) => Ok(Outcome::Refused(text)),
            Err(Failure { sent: true, text }) => Ok(Outcome::Unclear(text)),
        }
    }

    async fn send(
        &self,
        node: usize,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Result<Answer, Failure> {
        let api = (self.nodes.api)(node);
        match tokio::time::timeout(PATIENCE, api.send(method, path, headers, body)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                let refused = |cause: &(dyn std::error::Error + 'static)| {
                    cause.downcast_ref::<reqwest::Error>().is_some_and(reqwest::Error::is_connect)
                };
                Err(Failure { sent: !error.chain().any(refused), text: format!("{error:#}") })
            }
            Err(_) => Err(Failure { sent: true, text: "no answer".to_owned() }),
        }
    }
}

/// There was no answer.
struct Failure {
    /// Whether anything may have reached the node.
    sent: bool,
    text: String,
}

fn etag(version: Position) -> String {
    format!("\"{}:{}\"", version.partition, version.offset)
}

/// The version that an answer's `ETag` tells.
fn version(answer: &Answer) -> Result<Option<Position>> {
    let Some(tag) = answer.header("etag") else { return Ok(None) };
    let parsed = tag.strip_prefix('"').and_then(|tag| {
        let (partition, offset) = tag.strip_suffix('"')?.split_once(':')?;
        Some(Position { partition: partition.parse().ok()?, offset: offset.parse().ok()? })
    });
    parsed.map(Some).with_context(|| format!("the ETag is not \"P:O\": {answer}"))
}

fn found(answer: &Answer, record: &Value, version: Position) -> Result<Found> {
    let value = record["value"].as_str().with_context(|| format!("no value: {answer}"))?;
    let local = answer.header("bitacora-source") != Some("peer");
    Ok(Found { version, value: value.to_owned(), local })
}

fn read(answer: Answer) -> Result<Outcome> {
    match answer.status {
        200 => {
            let position = answer.position();
            let same = version(&answer)? == Some(position);
            ensure!(same, "the ETag is not the position: {answer}");
            Ok(Outcome::Found(found(&answer, &answer.json(), position)?))
        }
        404 => Ok(Outcome::Missing {
            position: answer.position(),
            local: answer.header("bitacora-source") != Some("peer"),
        }),
        503 => Ok(Outcome::Refused(answer.to_string())),
        _ => bail!("no answer to a read: {answer}"),
    }
}

fn written(answer: Answer) -> Result<Outcome> {
    match answer.status {
        200 => Ok(Outcome::Done(answer.position())),
        412 => {
            let current = answer.json()["current"].clone();
            let current = if current.is_null() {
                None
            } else {
                let version =
                    version(&answer)?.with_context(|| format!("no ETag of the record: {answer}"))?;
                Some(found(&answer, &current, version)?)
            };
            Ok(Outcome::Failed { current, position: answer.position() })
        }
        503 => match answer.json()["mayTakeEffect"].as_bool() {
            Some(false) => Ok(Outcome::Refused(answer.to_string())),
            _ => Ok(Outcome::Unclear(answer.to_string())),
        },
        _ => bail!("no answer to a write: {answer}"),
    }
}
