//! The HTTP API, as the README of the project describes it.

use std::borrow::Cow;
use std::error::Error;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bitacora_client::{
    ClientTls, Operation, Outcome, Position, ReadLevel, Record, Scan, ScanPage, ServedFrom, WriteOperation,
    Written,
};
use bitacora_protocol::http::{
    self as api, BatchLine, FailedLine, IDEMPOTENCY_KEY_HEADER, LineReadOptions, LineWriteOptions, Message,
    NOT_VISIBLE_HEADER, POSITION_HEADER, PositionedRecord, ReadLine, SOURCE_HEADER, WrittenLine,
};
use bitacora_protocol::record::OwnedKeyValue;
use bitacora_protocol::tls::{TlsAdvice, trusting_nobody};
use bitacora_protocol::{Consistency, Visible, WriteCondition, connect};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::{Method, RequestBuilder, StatusCode, Url};
use tokio::io::AsyncReadExt as _;

use crate::advice;
use crate::api::{Failure, Kind};
use crate::cli::{Connection, ReadFlags, Watch, WriteFlags};

/// What the RPC can't read it does not answer: it closes the connection.
const PERHAPS_RPC: &str = "is this a node's RPC port? HTTP is by default at the port below it";
/// A node waits no longer than this.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// How long a node is given to say why it ended a connection.
const REFUSAL_WAIT: Duration = Duration::from_secs(1);

pub struct Http {
    urls: Vec<Url>,
    client: reqwest::Client,
    tls: Option<ClientTls>,
    /// Of a call.
    timeout: Duration,
    next: AtomicUsize,
    /// Whether it is known by now that some node answers HTTP.
    has_answered: AtomicBool,
}

struct Answer {
    url: Url,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Http {
    pub fn new(urls: &[Url], connection: &Connection) -> Result<Self, Failure> {
        let timeout = connection.timeout;
        let authorization = connection.token.as_ref().and_then(|token| {
            let mut value = HeaderValue::try_from(token.authorization()).ok()?;
            value.set_sensitive(true);
            Some((AUTHORIZATION, value))
        });
        // Nodes are in one's own network; a proxy for the rest of the world is not the way to them.
        let client = reqwest::Client::builder().timeout(timeout).tcp_nodelay(true).no_proxy();
        let tls = connection.tls.as_ref().map_or_else(trusting_nobody, ClientTls::http_config);
        let client = client
            .tls_backend_preconfigured(tls)
            .default_headers(authorization.into_iter().collect())
            .build();
        let client = client
            .map_err(|error| Failure::new(Kind::Failed, format!("no HTTP client: {}", innermost(&error))))?;
        let (next, has_answered) = (AtomicUsize::new(0), AtomicBool::new(false));
        let tls = connection.tls.clone();
        Ok(Self { urls: urls.to_vec(), client, tls, timeout, next, has_answered })
    }

    pub fn urls(&self) -> impl Iterator<Item = &Url> {
        self.urls.iter()
    }

    pub async fn get(&self, key: &str, read: &ReadFlags) -> Result<Record, Failure> {
        let asked = self.read_parameters(read);
        let mut query = vec![("key", key)];
        query.extend(asked.iter().map(|(name, value)| (*name, value.as_str())));
        let answer = self.ask(false, |url| self.request(Method::GET, url, "rpc", &query)).await?;
        let served_from = ServedFrom::named(answer.header(SOURCE_HEADER)?);
        Ok(record(answer.json()?, answer.position()?, served_from))
    }

    /// What a read asks for, if it does; with the time that a node may take for it.
    fn read_parameters(&self, read: &ReadFlags) -> Vec<(&'static str, String)> {
        let ReadFlags { consistency, position, max_staleness } = read;
        let mut asked = Vec::new();
        let level = consistency.or(position.as_ref().map(|_| Consistency::Session));
        asked.extend(level.map(|level| ("consistency", level.to_string())));
        asked.extend(position.as_ref().map(|position| ("position", position.to_string())));
        asked.extend(max_staleness.map(|age| ("max_staleness", in_ms(age))));
        if !asked.is_empty() {
            asked.push(("timeout", self.wait()));
        }
        asked
    }

    /// How long a node may wait: a little less than this does, so that its answer, which says why, still arrives.
    fn wait(&self) -> String {
        in_ms(self.timeout.saturating_sub(self.timeout / 10).min(LONGEST_WAIT))
    }

    /// What a write asks for in its parameters, if it does.
    fn write_parameters(&self, condition: WriteCondition, asked: &WriteFlags) -> Vec<(&'static str, String)> {
        let mut parameters: Vec<_> =
            asked.visible.map(|visible| ("visible", visible.to_string())).into_iter().collect();
        if asked.visible.is_some() || condition != WriteCondition::None {
            parameters.push(("timeout", self.wait()));
        }
        parameters
    }

    pub async fn set(
        &self,
        key: &str,
        value: &str,
        ttl: Option<Duration>,
        condition: WriteCondition,
        asked: &WriteFlags,
    ) -> Result<Written, Failure> {
        let (ttl, parameters) = (ttl.map(in_ms), self.write_parameters(condition, asked));
        let mut query = vec![("key", key)];
        query.extend(parameters.iter().map(|(name, value)| (*name, value.as_str())));
        query.extend(ttl.as_deref().map(|ttl| ("ttl", ttl)));
        let answer = self
            .ask(true, |url| {
                let request = with(self.request(Method::POST, url, "rpc", &query), condition, asked);
                request.header("content-type", "text/plain; charset=utf-8").body(value.to_owned())
            })
            .await?;
        answer.written()
    }

    pub async fn delete(
        &self,
        key: &str,
        condition: WriteCondition,
        asked: &WriteFlags,
    ) -> Result<Written, Failure> {
        let parameters = self.write_parameters(condition, asked);
        let mut query = vec![("key", key)];
        query.extend(parameters.iter().map(|(name, value)| (*name, value.as_str())));
        let answer = self
            .ask(true, |url| with(self.request(Method::DELETE, url, "rpc", &query), condition, asked))
            .await?;
        answer.written()
    }

    pub async fn batch(&self, operations: &[&Operation]) -> Result<Vec<Result<Outcome, Failure>>, Failure> {
        let mut lines = Vec::new();
        for operation in operations {
            serde_json::to_writer(&mut lines, &self.batch_line(operation))
                .map_err(|error| Failure::new(Kind::Failed, error.to_string()))?;
            lines.push(b'\n');
        }
        let lines = bytes::Bytes::from(lines);
        let write = operations.iter().any(|operation| operation.is_write());
        let answer = self
            .ask(write, |url| {
                let request = self.request(Method::POST, url, "rpc/batch", &[]);
                request.header("content-type", "application/x-ndjson").body(lines.clone())
            })
            .await?;
        let results = answer.body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let results: Result<Vec<_>, _> = operations
            .iter()
            .zip(results)
            .map(|(operation, line)| outcome(operation, line).map_err(|why| answer.makes_no_sense(&why)))
            .collect();
        let results = results?;
        if results.len() < operations.len() {
            let (got, asked) = (results.len(), operations.len());
            let sentence = format!("{} answered {got} of a batch of {asked} operations", answer.url);
            return Err(Failure::new(Kind::Unclear, sentence));
        }
        Ok(results)
    }

    fn batch_line<'a>(&self, operation: &'a Operation) -> BatchLine<'a> {
        let (read, write) = (LineReadOptions::default(), LineWriteOptions::default());
        match operation {
            Operation::Get { key } => BatchLine::Get { key: key.into(), read },
            Operation::Set { key, value, ttl } => {
                let ttl = ttl.map(|ttl| in_ms(ttl).into());
                BatchLine::Set { key: key.into(), value: value.into(), ttl, write }
            }
            Operation::Delete { key } => BatchLine::Delete { key: key.into(), write },
            Operation::Read { key, level } => {
                let ReadLevel { consistency, session, max_staleness, .. } = level;
                let session =
                    session.as_ref().filter(|it| *consistency == Consistency::Eventual && !it.is_empty());
                let level = if session.is_some() { Consistency::Session } else { *consistency };
                let read = LineReadOptions {
                    consistency: Some(level.name().into()),
                    position: session.map(|session| session.to_string().into()),
                    timeout: Some(self.wait().into()),
                    max_staleness: max_staleness.map(|age| in_ms(age).into()),
                };
                BatchLine::Get { key: key.into(), read }
            }
            Operation::Write(WriteOperation { key, value, ttl, condition, uuid, visible, .. }) => {
                let write = LineWriteOptions {
                    if_match: match condition {
                        WriteCondition::Version(version) => Some(version.to_string().into()),
                        WriteCondition::Present => Some("*".into()),
                        WriteCondition::None | WriteCondition::Absent => None,
                    },
                    if_absent: *condition == WriteCondition::Absent,
                    uuid: uuid.as_deref().map(Into::into),
                    visible: (*visible != Visible::Acknowledged).then(|| visible.name().into()),
                    timeout: Some(self.wait().into()),
                };
                match value {
                    Some(value) => {
                        let ttl = ttl.map(|ttl| in_ms(ttl).into());
                        BatchLine::Set { key: key.into(), value: value.into(), ttl, write }
                    }
                    None => BatchLine::Delete { key: key.into(), write },
                }
            }
        }
    }

    pub async fn scan_page(
        &self,
        scan: &Scan,
        read: &ReadFlags,
        cursor: Option<&str>,
    ) -> Result<ScanPage, Failure> {
        let asked = self.read_parameters(read);
        let limit = if scan.page == 0 { Scan::DEFAULT_PAGE } else { scan.page }.to_string();
        let mut query = vec![("limit", limit.as_str())];
        query.extend(
            [("prefix", scan.prefix.as_str()), ("start", &scan.start), ("end", &scan.end)]
                .into_iter()
                .chain(cursor.map(|cursor| ("cursor", cursor)))
                .chain(asked.iter().map(|(name, value)| (*name, value.as_str())))
                .filter(|(_, value)| !value.is_empty()),
        );
        let answer = self.ask(false, |url| self.request(Method::GET, url, "rpc/scan", &query)).await?;
        let page: api::ScanPage<'_, OwnedKeyValue> = answer.json()?;
        let scanned =
            |PositionedRecord { record: found, position }| record(found, position, ServedFrom::Store);
        let records = page.records.into_iter().map(scanned).collect();
        Ok(ScanPage { records, cursor: page.cursor.map(Cow::into_owned) })
    }

    /// What has changed since a token (empty: none), of the node that answered last, or another one.
    pub async fn changes(
        &self,
        asked: &Watch,
        since: &str,
        limit: u32,
        wait: Duration,
    ) -> Result<api::ChangeList<'static>, Failure> {
        // Before this gives up.
        let (limit, wait) = (limit.to_string(), in_ms(wait.min(self.timeout / 2)));
        let mut query = vec![("limit", limit.as_str()), ("wait", &wait)];
        query.extend(asked.key.as_deref().map(|key| ("key", key)));
        query.extend(
            [("prefix", asked.prefix.as_str()), ("since", since)].into_iter().filter(|it| !it.1.is_empty()),
        );
        query.extend(asked.initial.then_some(("initial", "true")));
        query.extend(asked.no_values.then_some(("values", "false")));
        let answer = self.ask(false, |url| self.request(Method::GET, url, "rpc/changes", &query)).await?;
        let answered = self.urls.iter().position(|url| *url == answer.url);
        self.next.store(answered.unwrap_or_default(), Ordering::Relaxed);
        answer.json()
    }

    /// A node's own account, as it wrote it.
    pub async fn status(&self, url: &Url) -> Result<serde_json::Value, Failure> {
        let answer = self.once(url, false, self.request(Method::GET, url, "status", &[])).await?;
        answer.json()
    }

    /// What a node holds of a range of keys.
    pub async fn digest_ranges(
        &self,
        url: &Url,
        query: &[(&str, &str)],
    ) -> Result<api::DigestRanges, Failure> {
        let request = self.request(Method::GET, url, "status/digests/ranges", query);
        self.once(url, false, request).await?.json()
    }

    fn request(&self, method: Method, base: &Url, path: &str, query: &[(&str, &str)]) -> RequestBuilder {
        let mut url = base.clone();
        url.set_path(&format!("{}/{path}", base.path().trim_end_matches('/')));
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        self.client.request(method, url)
    }

    /// Asks one node after the other, until one was reached and could do it.
    async fn ask(&self, write: bool, request: impl Fn(&Url) -> RequestBuilder) -> Result<Answer, Failure> {
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let mut last = None;
        for turn in 0..self.urls.len() {
            let url = &self.urls[first.wrapping_add(turn) % self.urls.len()];
            match self.once(url, write, request(url)).await {
                Err(failure) if failure.kind == Kind::Unavailable => last = Some(failure),
                settled => return settled,
            }
        }
        Err(last.unwrap_or_else(|| Failure::new(Kind::Usage, "there is no node to ask")))
    }

    async fn once(&self, url: &Url, write: bool, request: RequestBuilder) -> Result<Answer, Failure> {
        let failed = async |error: reqwest::Error| {
            let refusal = self.refusal(url, &error).await;
            let cause: &(dyn Error + 'static) = refusal.as_ref().map_or(&error, |refusal| refusal);
            // Without the certificate that it wants, a node does nothing.
            let is_unreached = error.is_connect() || TlsAdvice::on(cause) == Some(TlsAdvice::Certificate);
            let (kind, what) = if is_unreached {
                (Kind::Unavailable, "can't be reached")
            } else if error.is_timeout() && write {
                (Kind::Unclear, "did not answer within --timeout, and the write may have taken effect")
            } else if error.is_timeout() {
                (Kind::Unclear, "did not answer within --timeout")
            } else if write {
                (Kind::Unclear, "broke off, and the write may have taken effect")
            } else {
                (Kind::Unavailable, "broke off")
            };
            let helps = advice::on_tls(cause).or_else(|| {
                let perhaps_rpc =
                    !error.is_connect() && !error.is_timeout() && !self.has_answered.load(Ordering::Relaxed);
                perhaps_rpc.then(|| PERHAPS_RPC.to_owned())
            });
            let helps = helps.map(|helps| format!("; {helps}")).unwrap_or_default();
            Failure::new(kind, format!("{url} {what}: {}{helps}", innermost(cause)))
        };
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) => return Err(failed(error).await),
        };
        self.has_answered.store(true, Ordering::Relaxed);
        let (status, headers) = (answer.status(), answer.headers().clone());
        let body = match answer.bytes().await {
            Ok(body) => body.to_vec(),
            Err(error) => return Err(failed(error).await),
        };
        let answer = Answer { url: url.clone(), headers, body };
        if status.is_success() {
            return Ok(answer);
        }
        Err(match serde_json::from_slice::<Message<'_>>(&answer.body) {
            Ok(Message { message, may_take_effect }) => {
                failure(status, write, message.into_owned(), may_take_effect)
            }
            Err(_) if status == StatusCode::SERVICE_UNAVAILABLE => {
                failure(status, write, format!("{url} answered {status}"), None)
            }
            // A load balancer's page, or no node at all, is not worth showing.
            Err(_) => answer.makes_no_sense(&format!("status {status}")),
        })
    }

    /// What a node says by TLS of a connection that it ends before it answers. In TLS 1.3 that comes after a client believes that the
    /// handshake is done, and what the HTTP client has read of it by itself, between two requests, it does not tell. So this shakes
    /// hands once more, sends nothing, and waits for what the node says. `None` if the first error tells all, or nothing is said,
    /// and once a node has answered: then the call may have been one that it took.
    async fn refusal(&self, url: &Url, error: &reqwest::Error) -> Option<io::Error> {
        let tls = self.tls.as_ref().filter(|_| url.scheme() == "https")?;
        let tells_all = error.is_connect() || error.is_timeout() || TlsAdvice::on(error).is_some();
        if tells_all || self.has_answered.load(Ordering::Relaxed) {
            return None;
        }
        let address = format!("{}:{}", url.host_str()?, url.port_or_known_default()?);
        let listen = async {
            let mut stream = tls.connect(&address, connect(&address).await?).await?;
            stream.read_u8().await
        };
        let said = tokio::time::timeout(REFUSAL_WAIT.min(self.timeout), listen).await.ok()?.err();
        said.filter(|said| TlsAdvice::on(said).is_some())
    }
}

/// A write with its condition and its uuid.
fn with(request: RequestBuilder, condition: WriteCondition, asked: &WriteFlags) -> RequestBuilder {
    let request = match condition {
        WriteCondition::None => request,
        WriteCondition::Version(version) => request.header("if-match", format!("\"{version}\"")),
        WriteCondition::Present => request.header("if-match", "*"),
        WriteCondition::Absent => request.header("if-none-match", "*"),
    };
    match &asked.idempotency_key {
        Some(uuid) => request.header(IDEMPOTENCY_KEY_HEADER, uuid),
        None => request,
    }
}

impl Answer {
    fn json<T: serde::de::DeserializeOwned>(&self) -> Result<T, Failure> {
        serde_json::from_slice(&self.body).map_err(|error| self.makes_no_sense(&error.to_string()))
    }

    fn header(&self, name: &str) -> Result<&str, Failure> {
        let value = self.headers.get(name).and_then(|value| value.to_str().ok());
        value.ok_or_else(|| self.makes_no_sense(&format!("no header {name}")))
    }

    fn position(&self) -> Result<Position, Failure> {
        let position = self.header(POSITION_HEADER)?.parse();
        position.map_err(|error: bitacora_protocol::PositionError| self.makes_no_sense(&error.to_string()))
    }

    fn written(&self) -> Result<Written, Failure> {
        let OwnedKeyValue { timestamp, ttl, uuid, .. } = self.json()?;
        let not_visible = self.headers.get(NOT_VISIBLE_HEADER).and_then(|members| members.to_str().ok());
        let not_visible = not_visible.into_iter().flat_map(|members| members.split(','));
        let not_visible = not_visible.map(|member| member.trim().to_owned()).collect();
        Ok(Written { position: self.position()?, timestamp, ttl, uuid, not_visible })
    }

    fn makes_no_sense(&self, why: &str) -> Failure {
        Failure::new(
            Kind::Failed,
            format!(
                "{} does not answer as a node's HTTP API does ({why}); is it one, of this version?",
                self.url
            ),
        )
    }
}

/// What a node that does not say `mayTakeEffect` says of a write that the log did not take.
const NOT_TAKEN: &str = "it has not taken effect";

/// The one place where a status becomes a failure. A write that was answered 503 may take effect unless the node says that it
/// will not.
fn failure(status: StatusCode, write: bool, message: String, may_take_effect: Option<bool>) -> Failure {
    let may_take_effect = write && may_take_effect.unwrap_or_else(|| !message.contains(NOT_TAKEN));
    let kind = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Kind::Denied,
        StatusCode::NOT_FOUND => Kind::NotFound,
        StatusCode::PRECONDITION_FAILED => Kind::NotMet,
        StatusCode::SERVICE_UNAVAILABLE if may_take_effect => Kind::Unclear,
        StatusCode::SERVICE_UNAVAILABLE => Kind::Unavailable,
        status if status.is_client_error() => Kind::Refused,
        _ => Kind::Failed,
    };
    Failure::new(kind, advice::with_flag(message))
}

fn record(record: OwnedKeyValue, position: Position, served_from: ServedFrom) -> Record {
    let OwnedKeyValue { key, value, timestamp, source, ttl, uuid } = record;
    Record { key, value, timestamp, source, ttl, uuid, position, served_from }
}

/// A line of a batch's answer; the error is for a line that is none.
fn outcome(operation: &Operation, line: &[u8]) -> Result<Result<Outcome, Failure>, String> {
    let parse = |error: serde_json::Error| error.to_string();
    let FailedLine { status, message, may_take_effect, .. } = serde_json::from_slice(line).map_err(parse)?;
    let status = StatusCode::from_u16(status).map_err(|error| error.to_string())?;
    if !status.is_success() {
        let message = message.map_or_else(|| format!("status {status}"), Cow::into_owned);
        return Ok(Err(failure(status, operation.is_write(), message, may_take_effect)));
    }
    Ok(Ok(if operation.is_write() {
        let WrittenLine { position, timestamp, ttl, uuid, not_visible, .. } =
            serde_json::from_slice(line).map_err(parse)?;
        let uuid = uuid.into_owned();
        Outcome::Written(Written { position, timestamp, ttl, uuid, not_visible })
    } else {
        let ReadLine { position, from, record: found, .. } = serde_json::from_slice(line).map_err(parse)?;
        Outcome::Read(record(found, position, from))
    }))
}

/// As the API takes a time: never without its unit.
fn in_ms(time: Duration) -> String {
    format!("{}ms", time.as_millis())
}

/// What reqwest's sentences hide: the reason.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_batch() {
        let (get, delete) = (Operation::Get { key: "k".into() }, Operation::Delete { key: "k".into() });
        let line = br#"{"key":"k","value":"v","timestamp":7,"source":1,"ttl":0,"uuid":"u","status":200,"position":"2:5","from":"cache"}"#;
        let position = Position { partition: 2, offset: 5 };
        let read = outcome(&get, line);
        let Ok(Ok(Outcome::Read(record))) = read else { panic!("a read, not {read:?}") };
        assert_eq!((record.position, record.served_from, record.timestamp), (position, ServedFrom::Cache, 7));
        let line =
            br#"{"status":200,"position":"2:5","key":"k","timestamp":7,"source":3,"ttl":-1,"uuid":"u"}"#;
        let write = outcome(&delete, line);
        let Ok(Ok(Outcome::Written(written))) = write else { panic!("a write, not {write:?}") };
        assert_eq!((written.position, written.uuid.as_str()), (position, "u"));

        for (operation, line, kind) in [
            (&get, r#"{"status":404,"message":"Key k not found","position":"0:1"}"#, Kind::NotFound),
            (&get, r#"{"status":503,"message":"restoring"}"#, Kind::Unavailable),
            (&delete, r#"{"status":503,"message":"may still"}"#, Kind::Unclear),
            (
                &delete,
                r#"{"status":503,"message":"the log did not take the write (timed out); it has not taken effect and can be sent again"}"#,
                Kind::Unavailable,
            ),
            (&delete, r#"{"status":503,"message":"no memory","mayTakeEffect":false}"#, Kind::Unavailable),
            (&delete, r#"{"status":413}"#, Kind::Refused),
            (&get, r#"{"status":401,"message":"no token"}"#, Kind::Denied),
            (&delete, r#"{"status":403,"message":"another token"}"#, Kind::Denied),
            (&delete, r#"{"status":500}"#, Kind::Failed),
        ] {
            let failure = outcome(operation, line.as_bytes()).expect("a line").expect_err("a failure");
            assert_eq!(failure.kind, kind, "{line}");
        }
        for wrong in ["", "{}", "[]", r#"{"status":200}"#, r#"{"status":9}"#] {
            assert!(outcome(&get, wrong.as_bytes()).is_err(), "{wrong:?} was accepted");
        }
    }
}
