//! The HTTP API, as the README of the project describes it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bitacora_client::{Operation, Outcome, Position, Record, Scan, ScanPage, ServedFrom, Written};
use bitacora_protocol::http::{POSITION_HEADER, SOURCE_HEADER};
use reqwest::header::HeaderMap;
use reqwest::{Method, RequestBuilder, StatusCode, Url};
use serde::{Deserialize, Serialize};

use crate::api::{Failure, Kind};

pub struct Http {
    urls: Vec<Url>,
    client: reqwest::Client,
    next: AtomicUsize,
}

/// A record's JSON, alone or in a batch or a page.
#[derive(Deserialize)]
struct Body {
    key: String,
    value: String,
    timestamp: i64,
    source: i32,
    ttl: i64,
    uuid: String,
    position: Option<String>,
    from: Option<String>,
}

/// An acknowledged write's.
#[derive(Deserialize)]
struct Wrote {
    timestamp: i64,
    ttl: i64,
    uuid: String,
    position: Option<String>,
}

#[derive(Deserialize)]
struct Message {
    message: String,
}

/// What a line of a batch's answer says of itself.
#[derive(Deserialize)]
struct Line {
    status: u16,
    message: Option<String>,
}

#[derive(Deserialize)]
struct Page {
    records: Vec<Body>,
    cursor: Option<String>,
}

#[derive(Serialize)]
#[serde(tag = "op", rename_all = "lowercase")]
enum Asked<'a> {
    Get {
        key: &'a str,
    },
    Set {
        key: &'a str,
        value: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        ttl: Option<u64>,
    },
    Delete {
        key: &'a str,
    },
}

struct Answer {
    url: Url,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Http {
    pub fn new(urls: &[Url], timeout: Duration) -> Result<Self, Failure> {
        // Nodes are in one's own network; a proxy for the rest of the world is not the way to them.
        let client = reqwest::Client::builder().timeout(timeout).tcp_nodelay(true).no_proxy().build();
        let client = client
            .map_err(|error| Failure::new(Kind::Failed, format!("no HTTP client: {}", innermost(&error))))?;
        Ok(Self { urls: urls.to_vec(), client, next: AtomicUsize::new(0) })
    }

    pub fn urls(&self) -> impl Iterator<Item = &Url> {
        self.urls.iter()
    }

    pub async fn get(&self, key: &str) -> Result<Record, Failure> {
        let answer = self.ask(false, |url| self.request(Method::GET, url, "rpc", &[("key", key)])).await?;
        let (position, from) = (answer.header(POSITION_HEADER)?, answer.header(SOURCE_HEADER)?);
        record(Body { position, from, ..answer.json()? }).map_err(|why| answer.makes_no_sense(&why))
    }

    pub async fn set(&self, key: &str, value: &str, ttl: Option<Duration>) -> Result<Written, Failure> {
        let ttl = ttl.map(|ttl| ttl.as_millis().to_string());
        let mut query = vec![("key", key)];
        query.extend(ttl.as_deref().map(|ttl| ("ttl", ttl)));
        let answer = self
            .ask(true, |url| {
                let request = self.request(Method::POST, url, "rpc", &query);
                request.header("content-type", "text/plain; charset=utf-8").body(value.to_owned())
            })
            .await?;
        answer.written()
    }

    pub async fn delete(&self, key: &str) -> Result<Written, Failure> {
        let answer = self.ask(true, |url| self.request(Method::DELETE, url, "rpc", &[("key", key)])).await?;
        answer.written()
    }

    pub async fn batch(&self, operations: &[Operation]) -> Result<Vec<Result<Outcome, Failure>>, Failure> {
        let mut lines = Vec::new();
        for operation in operations {
            let asked = match operation {
                Operation::Get { key } => Asked::Get { key },
                Operation::Set { key, value, ttl } => {
                    Asked::Set { key, value, ttl: ttl.map(|ttl| ttl.as_millis() as u64) }
                }
                Operation::Delete { key } => Asked::Delete { key },
            };
            serde_json::to_writer(&mut lines, &asked)
                .map_err(|error| Failure::new(Kind::Failed, error.to_string()))?;
            lines.push(b'\n');
        }
        let lines = bytes::Bytes::from(lines);
        let write = operations.iter().any(Operation::is_write);
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

    pub async fn scan_page(&self, scan: &Scan, cursor: Option<&str>) -> Result<ScanPage, Failure> {
        let limit = if scan.page == 0 { Scan::DEFAULT_PAGE } else { scan.page }.to_string();
        let mut query = vec![("limit", limit.as_str())];
        query.extend(
            [("prefix", scan.prefix.as_str()), ("start", &scan.start), ("end", &scan.end)]
                .into_iter()
                .chain(cursor.map(|cursor| ("cursor", cursor)))
                .filter(|(_, value)| !value.is_empty()),
        );
        let answer = self.ask(false, |url| self.request(Method::GET, url, "rpc/scan", &query)).await?;
        let page: Page = answer.json()?;
        let records = page.records.into_iter().map(record).collect::<Result<_, _>>();
        Ok(ScanPage { records: records.map_err(|why| answer.makes_no_sense(&why))?, cursor: page.cursor })
    }

    /// A node's own account, as it wrote it.
    pub async fn status(&self, url: &Url) -> Result<serde_json::Value, Failure> {
        let answer = self.once(url, false, self.request(Method::GET, url, "status", &[])).await?;
        answer.json()
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
        let failed = |error: reqwest::Error| {
            let (kind, what) = if error.is_connect() {
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
            Failure::new(kind, format!("{url} {what}: {}", innermost(&error)))
        };
        let answer = request.send().await.map_err(failed)?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let body = answer.bytes().await.map_err(failed)?.to_vec();
        let answer = Answer { url: url.clone(), headers, body };
        if status.is_success() {
            return Ok(answer);
        }
        let message = serde_json::from_slice(&answer.body).map(|message: Message| message.message);
        // A load balancer's page, or no node at all, is not worth showing.
        let message = message.map_err(|_| answer.makes_no_sense(&format!("status {status}")));
        match message {
            Ok(message) => Err(failure(status, write, message)),
            Err(_) if status == StatusCode::SERVICE_UNAVAILABLE => {
                Err(failure(status, write, format!("{url} answered {status}")))
            }
            Err(failure) => Err(failure),
        }
    }
}

impl Answer {
    fn json<T: serde::de::DeserializeOwned>(&self) -> Result<T, Failure> {
        serde_json::from_slice(&self.body).map_err(|error| self.makes_no_sense(&error.to_string()))
    }

    fn header(&self, name: &str) -> Result<Option<String>, Failure> {
        let value = self.headers.get(name).and_then(|value| value.to_str().ok());
        let value = value.ok_or_else(|| self.makes_no_sense(&format!("no header {name}")))?;
        Ok(Some(value.to_owned()))
    }

    fn written(&self) -> Result<Written, Failure> {
        let wrote = Wrote { position: self.header(POSITION_HEADER)?, ..self.json()? };
        written(wrote).map_err(|why| self.makes_no_sense(&why))
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

/// What a node says of a write that the log did not take. Without it a write that was answered 503 may take effect.
const NOT_TAKEN: &str = "it has not taken effect";

/// The one place where a status becomes a failure.
fn failure(status: StatusCode, write: bool, message: String) -> Failure {
    let kind = match status {
        StatusCode::NOT_FOUND => Kind::NotFound,
        StatusCode::SERVICE_UNAVAILABLE if write && !message.contains(NOT_TAKEN) => Kind::Unclear,
        StatusCode::SERVICE_UNAVAILABLE => Kind::Unavailable,
        status if status.is_client_error() => Kind::Refused,
        _ => Kind::Failed,
    };
    Failure::new(kind, message)
}

fn record(body: Body) -> Result<Record, String> {
    let position = position(body.position.as_deref())?;
    let served_from = match body.from.as_deref() {
        Some("cache") => ServedFrom::Cache,
        Some("peer") => ServedFrom::Peer,
        _ => ServedFrom::Store,
    };
    let Body { key, value, timestamp, source, ttl, uuid, .. } = body;
    Ok(Record { key, value, timestamp, source, ttl, uuid, position, served_from })
}

fn written(wrote: Wrote) -> Result<Written, String> {
    let Wrote { timestamp, ttl, uuid, position: place } = wrote;
    Ok(Written { position: position(place.as_deref())?, timestamp, ttl, uuid })
}

fn position(text: Option<&str>) -> Result<Position, String> {
    text.ok_or("no position")?.parse().map_err(|error: bitacora_protocol::PositionError| error.to_string())
}

/// A line of a batch's answer; the error is for a line that is none.
fn outcome(operation: &Operation, line: &[u8]) -> Result<Result<Outcome, Failure>, String> {
    let parse = |error: serde_json::Error| error.to_string();
    let Line { status, message } = serde_json::from_slice(line).map_err(parse)?;
    let status = StatusCode::from_u16(status).map_err(|error| error.to_string())?;
    if !status.is_success() {
        let message = message.unwrap_or_else(|| format!("status {status}"));
        return Ok(Err(failure(status, operation.is_write(), message)));
    }
    Ok(Ok(if operation.is_write() {
        Outcome::Written(written(serde_json::from_slice(line).map_err(parse)?)?)
    } else {
        Outcome::Read(record(serde_json::from_slice(line).map_err(parse)?)?)
    }))
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
            (&delete, r#"{"status":413}"#, Kind::Refused),
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
