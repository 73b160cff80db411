//! `POST /rpc/batch`: operations come in as NDJSON and their results go out as NDJSON, in the same order, while more come
//! in. What is held is bounded whatever the client sends, and nothing is read while the client does not read.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use bitacora_protocol::record::{KeyValue, source};
use bitacora_protocol::rpc::Operation;
use bytes::{Buf, Bytes};
use futures_util::future::BoxFuture;
use futures_util::stream::{self, FuturesOrdered};
use futures_util::{FutureExt as _, Stream, StreamExt as _};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use warp::http::StatusCode;

use super::answers::{self, ApiError};
use super::parse_ttl;
use crate::service::reads::{Answer, Found};
use crate::service::writes::{MAX_KEY_BYTES, Written};
use crate::service::{Begun, Done, Outcome, Service, label};

/// Operations under way, of one batch.
const MAX_UNDER_WAY: usize = 4096;
/// Bytes of operations under way and of results that wait for those before them.
const MAX_BYTES: usize = 8 << 20;
/// Results leave in pieces of about this size.
const CHUNK_BYTES: usize = 64 * 1024;
/// What a line has beside key and value.
const LINE_OVERHEAD_BYTES: usize = 1024;

/// Answers a batch, as its body comes in.
pub fn run<B: Buf + Send + 'static>(
    service: Arc<Service>,
    body: impl Stream<Item = Result<B, warp::Error>> + Send + 'static,
) -> warp::reply::Response {
    let batch = Batch {
        // JSON spells a byte with up to six.
        lines: Lines::new(6 * (service.max_value_bytes + MAX_KEY_BYTES) + LINE_OVERHEAD_BYTES),
        service,
        body: Box::pin(body),
        under_way: FuturesOrdered::new(),
        pending: VecDeque::new(),
        bytes: 0,
        ended: false,
        began: Instant::now(),
    };
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut batch = batch;
        while let Some(chunk) = batch.next_chunk().await {
            // The client has gone; what has begun takes its course.
            if sender.send(chunk).await.is_err() {
                return;
            }
        }
    });
    let results = stream::unfold(receiver, |mut receiver| async move {
        let chunk = receiver.recv().await?;
        Some((Ok::<_, Infallible>(Bytes::from(chunk)), receiver))
    });
    let mut reply = warp::Reply::into_response(warp::reply::stream(results));
    let content_type = warp::http::HeaderValue::from_static("application/x-ndjson");
    reply.headers_mut().insert(warp::http::header::CONTENT_TYPE, content_type);
    reply
}

struct Batch<S> {
    service: Arc<Service>,
    body: Pin<Box<S>>,
    lines: Lines,
    under_way: FuturesOrdered<BoxFuture<'static, Outcome>>,
    /// One for each of those.
    pending: VecDeque<Pending>,
    /// Sum of theirs.
    bytes: usize,
    ended: bool,
    began: Instant,
}

struct Pending {
    request: Result<(&'static str, String), ApiError>,
    bytes: usize,
    began: Instant,
}

/// A line of a batch.
#[derive(Deserialize)]
#[serde(tag = "op", rename_all = "lowercase", deny_unknown_fields)]
enum Line {
    Get { key: String },
    Set { key: String, value: String, ttl: Option<Ttl> },
    Delete { key: String },
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Ttl {
    Ms(u64),
    Text(String),
}

impl<B: Buf, S: Stream<Item = Result<B, warp::Error>>> Batch<S> {
    /// The next results; `None` at the end.
    async fn next_chunk(&mut self) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        loop {
            while out.len() < CHUNK_BYTES
                && let Some(Some(outcome)) = self.under_way.next().now_or_never()
            {
                self.put(outcome, &mut out);
            }
            if out.len() >= CHUNK_BYTES {
                return Some(out);
            }
            let mut began_some = false;
            while self.has_room()
                && let Some(line) = self.lines.next()
            {
                self.begin(line);
                began_some = true;
            }
            if began_some {
                continue;
            }
            // What is there goes out before anything is waited for.
            if !out.is_empty() {
                return Some(out);
            }
            let wants_more = !self.ended && self.has_room();
            if !wants_more && self.under_way.is_empty() {
                self.service.metrics.request("http", "batch", "ok", self.began.elapsed());
                return None;
            }
            let patience = self.service.request_timeout;
            let idle = self.under_way.is_empty();
            tokio::select! {
                Some(outcome) = self.under_way.next() => self.put(outcome, &mut out),
                chunk = self.body.next(), if wants_more => match chunk {
                    Some(Ok(mut chunk)) => {
                        while chunk.has_remaining() {
                            let length = chunk.chunk().len();
                            self.lines.push(chunk.chunk());
                            chunk.advance(length);
                        }
                    }
                    Some(Err(error)) => self.end(Some(ApiError::BadRequest(format!("the body did not arrive whole: {error}")))),
                    None => self.end(None),
                },
                () = async { tokio::time::sleep(patience).await }, if idle => {
                    self.end(Some(ApiError::BodyTimeout(patience.as_millis())));
                }
            }
        }
    }

    fn has_room(&self) -> bool {
        self.under_way.len() < MAX_UNDER_WAY && self.bytes < MAX_BYTES
    }

    fn end(&mut self, error: Option<ApiError>) {
        self.ended = true;
        match error {
            None => self.lines.end(),
            Some(error) => self.push(Err(error), 0, None),
        }
    }

    fn begin(&mut self, line: Result<Vec<u8>, ()>) {
        let number = self.lines.number;
        let in_line = |error: String| ApiError::BadRequest(format!("line {number}: {error}"));
        let Ok(line) = line else {
            return self.push(Err(ApiError::LineTooLarge { number, max: self.lines.limit }), 0, None);
        };
        let parsed = serde_json::from_slice(&line).map_err(|error| in_line(json_error(&error)));
        let (operation, key, value, ttl) = match parsed {
            Ok(Line::Get { key }) => ("get", key, None, None),
            Ok(Line::Set { key, value, ttl }) => ("set", key, Some(value), ttl),
            Ok(Line::Delete { key }) => ("delete", key, None, None),
            Err(error) => return self.push(Err(error), 0, None),
        };
        let live = match ttl {
            None => Ok(0),
            Some(Ttl::Ms(ms)) => parse_ttl(&ms.to_string()).map(|live| live.as_millis() as i64),
            Some(Ttl::Text(text)) => parse_ttl(&text).map(|live| live.as_millis() as i64),
        };
        let live = match live {
            Ok(live) => live,
            Err(error) => return self.push(Err(in_line(error)), 0, None),
        };
        let begun = self.service.begin(match (operation, &value) {
            ("set", Some(value)) => Operation::Set { key: &key, value, ttl: live },
            ("delete", _) => Operation::Delete { key: &key },
            _ => Operation::Get { key: &key },
        });
        self.push(Ok((operation, key)), line.len(), Some(begun));
    }

    /// Takes an operation, or an error in its place, into the queue.
    fn push(
        &mut self,
        request: Result<(&'static str, String), ApiError>,
        mut bytes: usize,
        begun: Option<Begun>,
    ) {
        let outcome = match begun {
            Some(Begun::Later(outcome)) => outcome,
            Some(Begun::Done(outcome)) => {
                if let Ok(Done::Read(Answer { found: Found::Local(entry), .. })) = &outcome {
                    bytes += entry.as_bytes().len();
                }
                std::future::ready(outcome).boxed()
            }
            // Only its place in the order matters.
            None => std::future::ready(Err(crate::service::writes::KeyError::Blank.into())).boxed(),
        };
        self.bytes += bytes;
        self.pending.push_back(Pending { request, bytes, began: Instant::now() });
        self.under_way.push_back(outcome);
    }

    /// Writes the result of the oldest operation.
    fn put(&mut self, outcome: Outcome, out: &mut Vec<u8>) {
        let Some(pending) = self.pending.pop_front() else { return };
        self.bytes -= pending.bytes;
        let (operation, counted) = match &pending.request {
            Ok((operation, key)) => match outcome {
                Ok(done) => {
                    match &done {
                        Done::Read(answer) => put_read(key, answer, out),
                        Done::Written(written) => put_written(key, written, out),
                    }
                    (*operation, label(&done))
                }
                Err(error) => {
                    let error = ApiError::from(error);
                    put_failure(error.status(), &error.to_string(), None, out);
                    (*operation, error.outcome())
                }
            },
            Err(error) => {
                put_failure(error.status(), &error.to_string(), None, out);
                ("batch", error.outcome())
            }
        };
        self.service.metrics.request("http", operation, counted, pending.began.elapsed());
    }
}

/// The parser's words, without its own line number, which is always 1.
fn json_error(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let what = text.split(" at line ").next().unwrap_or(&text);
    format!("{what} (column {})", error.column())
}

fn put_line(line: &impl Serialize, out: &mut Vec<u8>) {
    // Nothing that is serialized here has a map with keys that are no strings.
    let _ = serde_json::to_writer(&mut *out, line);
    out.push(b'\n');
}

fn put_failure(status: StatusCode, message: &str, position: Option<String>, out: &mut Vec<u8>) {
    #[derive(Serialize)]
    struct Failed<'a> {
        status: u16,
        message: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        position: Option<String>,
    }
    put_line(&Failed { status: status.as_u16(), message, position }, out);
}

fn put_read(key: &str, answer: &Answer, out: &mut Vec<u8>) {
    #[derive(Serialize)]
    struct Read<'a> {
        status: u16,
        position: String,
        from: &'static str,
        #[serde(flatten)]
        record: KeyValue<'a>,
    }
    let position = answer.position.to_string();
    match answer.record() {
        Some(record) => {
            put_line(&Read { status: 200, position, from: answers::from(answer.from), record }, out);
        }
        None => put_failure(StatusCode::NOT_FOUND, &answers::not_found(key), Some(position), out),
    }
}

/// Without the value, which the client has sent a moment ago.
fn put_written(key: &str, written: &Written, out: &mut Vec<u8>) {
    #[derive(Serialize)]
    struct Wrote<'a> {
        status: u16,
        position: String,
        key: &'a str,
        timestamp: i64,
        source: i32,
        ttl: i64,
        uuid: &'a str,
    }
    let Written { appended, ttl, uuid } = written;
    let position = appended.position.to_string();
    let (timestamp, source) = (appended.timestamp.ms(), source::PRODUCER);
    put_line(&Wrote { status: 200, position, key, timestamp, source, ttl: *ttl, uuid }, out);
}

/// Cuts a stream of bytes into lines of a bounded length; of a longer one only its end is looked for.
struct Lines {
    buffer: Vec<u8>,
    /// Where the first line begins, and up to where no line feed is.
    start: usize,
    searched: usize,
    limit: usize,
    /// Inside a line that is too long.
    skipping: bool,
    ended: bool,
    /// Of the last line taken, from 1; blank ones count.
    number: u64,
}

impl Lines {
    fn new(limit: usize) -> Self {
        Self { buffer: Vec::new(), start: 0, searched: 0, limit, skipping: false, ended: false, number: 0 }
    }

    fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.searched -= self.start;
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The last line may lack its line feed.
    fn end(&mut self) {
        self.ended = true;
    }

    /// The next line that is not blank; an error for one above the limit.
    fn next(&mut self) -> Option<Result<Vec<u8>, ()>> {
        loop {
            let found = memchr::memchr(b'\n', &self.buffer[self.searched..]).map(|at| self.searched + at);
            let end = match found {
                Some(end) => end,
                None if self.ended && (self.start < self.buffer.len() || self.skipping) => self.buffer.len(),
                None => {
                    self.searched = self.buffer.len();
                    if self.skipping || self.searched - self.start > self.limit {
                        self.skipping = true;
                        self.buffer.clear();
                        (self.start, self.searched) = (0, 0);
                    }
                    return None;
                }
            };
            let (line, skipped) = (self.start..end, std::mem::take(&mut self.skipping));
            self.start = (end + 1).min(self.buffer.len());
            self.searched = self.start;
            self.number += 1;
            // As it came, like the one that is skipped: the result must not hang on where the pieces end.
            if skipped || line.len() > self.limit {
                return Some(Err(()));
            }
            let line = self.buffer[line].trim_ascii();
            if !line.is_empty() {
                return Some(Ok(line.to_vec()));
            }
            if self.ended && self.start == self.buffer.len() {
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::damage::{damaged, damages};

    proptest! {
        #[test]
        fn any_bytes_are_lines_within_the_limit_and_each_an_operation_or_a_sentence(
            bytes in prop_oneof![any::<Vec<u8>>(), "[a\n \r]{0,80}".prop_map(String::into_bytes)],
            step in 1..20_usize,
            key in ".{0,5}", value in ".{0,5}", ms: u64, damages in damages(),
        ) {
            let longest = cut(&bytes, step);
            prop_assert_eq!(&longest, &cut(&bytes, bytes.len() + 1));
            prop_assert!(longest.len() <= memchr::memchr_iter(b'\n', &bytes).count() + 1);
            let line = serde_json::json!({ "op": "set", "key": key, "value": value, "ttl": ms }).to_string();
            let whole: Line = serde_json::from_str(&line).expect("a line");
            let Line::Set { key: found, value: with, ttl: Some(Ttl::Ms(live)) } = whole else { panic!("another line") };
            prop_assert_eq!((found, with, live), (key, value, ms));
            if let Err(error) = serde_json::from_slice::<Line>(&damaged(line.as_bytes(), &damages)) {
                prop_assert!(json_error(&error).contains("(column "));
            }
        }
    }

    fn cut(text: &[u8], step: usize) -> Vec<Result<String, u64>> {
        let mut lines = Lines::new(10);
        let mut found = Vec::new();
        let mut take = |lines: &mut Lines| {
            while let Some(line) = lines.next() {
                found.push(
                    line.map(|line| String::from_utf8_lossy(&line).into_owned()).map_err(|()| lines.number),
                );
            }
        };
        for piece in text.chunks(step) {
            lines.push(piece);
            take(&mut lines);
            assert!(lines.buffer.len() <= 10 + 1 + step, "it holds {} bytes", lines.buffer.len());
        }
        lines.end();
        take(&mut lines);
        found
    }

    #[test]
    fn lines_are_cut_wherever_the_pieces_end_and_a_long_one_is_skipped() {
        let text = b"one\r\n\n  two\n0123456789012345678901234567890\nthree\n1234567890\nend";
        let expected: Vec<Result<String, u64>> = ["one", "two", "", "three", "1234567890", "end"]
            .map(|line| if line.is_empty() { Err(4) } else { Ok(line.to_owned()) })
            .into();
        for step in 1..text.len() {
            assert_eq!(cut(text, step), expected, "in pieces of {step}");
        }
        assert_eq!(cut(b"a\n01234567890123", 3), [Ok("a".to_owned()), Err(2)]);
        assert_eq!(cut(b"", 3), []);
        assert_eq!(cut(b"\n \n", 3), []);
    }
}
