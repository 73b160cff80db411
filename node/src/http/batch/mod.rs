//! `POST /rpc/batch`: operations come in as NDJSON and their results go out as NDJSON, in the same order, while more come
//! in. What is held is bounded whatever the client sends, and nothing is read while the client does not read.

mod lines;
mod results;
mod under_way;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use bitacora_protocol::http::{BatchLine, LineWriteOptions};
use bitacora_protocol::{Operation, WriteCondition, WriteOptions};
use bytes::Buf;
use futures_util::{FutureExt as _, Stream, StreamExt as _};
use tokio::sync::mpsc;
use warp::http::HeaderMap;
use warp::reply::{Reply as _, Response};

use self::lines::{BYTE_ORDER_MARK, Lines, Skipped};
use self::under_way::UnderWay;
use super::answers;
use super::conditions::{no_condition, version_condition};
use super::error::HttpError;
use super::media::body_type;
use super::options::{line_read_options, timeout, visible};
use super::params::{parse_ttl, query_params};
use super::{Api, Limits, Notes, counted};
use crate::metrics::Metrics;
use crate::service::access::Grant;
use crate::service::batch::{BegunInBatch, EndedInBatch};
use crate::service::memory::Permit;
use crate::service::slow::SlowRequests;
use crate::service::writes::{KeyError, MAX_KEY_BYTES};
use crate::service::{Begun, Done, Service};

/// Operations under way, of one batch.
const MAX_UNDER_WAY: usize = 4096;
/// Bytes of operations under way and of results that wait for those before them.
const MAX_BYTES: usize = 8 << 20;
/// Results leave in pieces of about this size.
const CHUNK_BYTES: usize = 64 * 1024;
/// What a line has beside key and value.
const LINE_OVERHEAD_BYTES: usize = 1024;
/// The memory that a batch is given before it begins: for a piece of the body, operations under way and the pieces of results
/// that its client has yet to take. With it, lines of a usual size always find room.
const BASE_MEMORY_BYTES: usize = 4 * CHUNK_BYTES;
/// Memory beyond that is taken and given back in steps, so that the budget of the node is not asked for each line.
const MEMORY_STEP_BYTES: usize = 64 * 1024;
/// A piece of the body is taken to have this many bytes until it is there.
const BODY_PIECE_BYTES: usize = 128 * 1024;

/// Answers a batch, as its body comes in.
pub(super) fn run<B: Buf + Send + 'static>(
    api: &Api,
    grant: Grant,
    query: &str,
    headers: &HeaderMap,
    notes: Notes,
    body: impl Stream<Item = Result<B, warp::Error>> + Send + 'static,
) -> Response {
    let Api { service, metrics, slow, limits, .. } = api;
    let memory = query_params(query, &[])
        .and_then(|_| body_type(headers))
        .and_then(|_| {
            no_condition(
                headers,
                "a condition and a uuid of a batch's write are fields of its line: ifMatch, ifAbsent, uuid",
            )
        })
        .and_then(|()| Ok(service.memory().take(BASE_MEMORY_BYTES)?));
    let memory = match memory {
        Ok(memory) => memory,
        Err(error) => return counted(metrics, slow, notes, Err(error)).into_response(),
    };
    let mut batch = Batch {
        // JSON spells a byte with up to six.
        lines: Lines::new(6 * (limits.max_value_bytes + MAX_KEY_BYTES) + LINE_OVERHEAD_BYTES),
        waiting: None,
        service: Arc::clone(service),
        grant,
        metrics: Arc::clone(metrics),
        slow: slow.clone(),
        limits: *limits,
        body: Box::pin(body),
        under_way: UnderWay::default(),
        pending: VecDeque::new(),
        bytes: 0,
        memory,
        ended: false,
        now: Instant::now(),
        answered: Vec::new(),
        notes: Some(notes),
    };
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        while let Some(chunk) = batch.next_chunk().await {
            // The memory of a usual chunk is part of the batch's; that of a large result travels with it.
            let memory = (chunk.len() > 2 * CHUNK_BYTES).then(|| batch.service.memory().nothing());
            // The client has gone; what has begun takes its course.
            if sender.send(Ok::<_, Infallible>(answers::counted(chunk, memory))).await.is_err() {
                return;
            }
        }
    });
    answers::streamed(receiver, "application/x-ndjson")
}

struct Batch<S> {
    service: Arc<Service>,
    /// What the client may do.
    grant: Grant,
    metrics: Arc<Metrics>,
    slow: SlowRequests,
    limits: Limits,
    body: Pin<Box<S>>,
    lines: Lines,
    /// A line for which there is no memory until an operation before it has ended. Until then no more of the body is taken.
    waiting: Option<Range<usize>>,
    under_way: UnderWay,
    /// One for each operation under way.
    pending: VecDeque<Pending>,
    /// The sum of the bytes of those pending.
    bytes: usize,
    /// For the lines, and for those bytes.
    memory: Permit,
    ended: bool,
    /// When the last lines began. The clock is not asked for each line by itself.
    now: Instant,
    /// What the metrics have yet to be told.
    answered: Vec<Answered>,
    /// Of the whole batch, until its end is told.
    notes: Option<Notes>,
}

/// Lines that were answered.
struct Answered {
    operation: &'static str,
    /// The label of the metrics.
    outcome: &'static str,
    count: u64,
    /// When the first of them began.
    since: Instant,
}

struct Pending {
    /// The operation's name and key, or why the line is none.
    request: Result<(&'static str, String), HttpError>,
    bytes: usize,
    began: Instant,
}

impl<B: Buf, S: Stream<Item = Result<B, warp::Error>>> Batch<S> {
    /// The next results; `None` at the end.
    async fn next_chunk(&mut self) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        self.put_results(&mut out).await;
        self.report();
        if out.is_empty()
            && let Some(notes) = self.notes.take()
        {
            notes.finish(&self.metrics, &self.slow, "ok");
        }
        (!out.is_empty()).then_some(out)
    }

    /// Appends the next results; none at the end.
    async fn put_results(&mut self, out: &mut Vec<u8>) {
        loop {
            while out.len() < CHUNK_BYTES
                && let Some(ended) = self.under_way.next().now_or_never()
            {
                self.put(ended, out);
            }
            if out.len() >= CHUNK_BYTES {
                return;
            }
            if self.begin_lines() {
                continue;
            }
            // What is there goes out before anything is waited for.
            if !out.is_empty() {
                return;
            }
            let idle = self.under_way.is_empty();
            let wants_more = !self.ended
                && self.waiting.is_none()
                && self.has_room()
                && (idle || self.has_memory_for_body(BODY_PIECE_BYTES));
            if !wants_more && idle {
                return;
            }
            let timeout = self.limits.request_timeout;
            tokio::select! {
                ended = self.under_way.next(), if !idle => self.put(ended, out),
                piece = self.body.next(), if wants_more => self.take_body(piece),
                () = async { tokio::time::sleep(timeout).await }, if idle => {
                    self.end(Some(HttpError::BodyTimeout(timeout.as_millis())));
                }
            }
        }
    }

    /// Begins the operations of the lines that are there. Returns whether there was any.
    fn begin_lines(&mut self) -> bool {
        let mut began_some = false;
        self.now = Instant::now();
        while self.has_room()
            && let Some(line) = self.next_line()
        {
            self.begin(&line);
            began_some = true;
        }
        self.under_way.close_group();
        began_some
    }

    /// The next line, if there is memory for it. If there is none, it waits for the operations before it, or else fails.
    fn next_line(&mut self) -> Option<Result<Range<usize>, Skipped>> {
        let line = match self.waiting.take() {
            Some(line) => line,
            None => match self.lines.next()? {
                Ok(line) => line,
                Err(skipped) => return Some(Err(skipped)),
            },
        };
        if self.has_memory_for(line.len()) {
            Some(Ok(line))
        } else if self.under_way.is_empty() {
            Some(Err(Skipped::NoMemory))
        } else {
            self.waiting = Some(line);
            None
        }
    }

    fn take_body(&mut self, piece: Option<Result<B, warp::Error>>) {
        let mut piece = match piece {
            None => return self.end(None),
            Some(Ok(piece)) => piece,
            Some(Err(error)) => {
                let why = format!("the body did not arrive whole: {error}");
                return self.end(Some(HttpError::BadRequest(why)));
            }
        };
        if !self.has_memory_for_body(piece.remaining()) && self.lines.bytes() > 0 {
            self.lines.skip();
        }
        while piece.has_remaining() {
            let length = piece.chunk().len();
            self.lines.push(piece.chunk());
            piece.advance(length);
        }
    }

    fn has_room(&self) -> bool {
        self.under_way.len() < MAX_UNDER_WAY && self.bytes < MAX_BYTES
    }

    fn has_memory_for(&mut self, more: usize) -> bool {
        self.has_memory(self.lines.memory_with(0) + self.bytes + more)
    }

    fn has_memory_for_body(&mut self, more: usize) -> bool {
        self.has_memory(self.lines.memory_with(more) + self.bytes)
    }

    /// Whether this batch may hold so many bytes; if the node has them left, it may from now on.
    fn has_memory(&mut self, wanted: usize) -> bool {
        let missing = wanted.saturating_sub(self.memory.bytes());
        missing == 0 || self.memory.try_grow(missing.next_multiple_of(MEMORY_STEP_BYTES))
    }

    /// Gives back the memory that is no longer needed, unless that is little.
    fn give_memory_back(&mut self) {
        let held = self.lines.memory_with(0) + self.bytes;
        let kept = BASE_MEMORY_BYTES.max(held + MEMORY_STEP_BYTES);
        if self.memory.bytes() > kept + MEMORY_STEP_BYTES {
            self.memory.set(kept);
        }
    }

    fn end(&mut self, error: Option<HttpError>) {
        self.ended = true;
        self.now = Instant::now();
        match error {
            None => self.lines.end(),
            Some(error) => self.push(Err(error), 0, None),
        }
    }

    fn begin(&mut self, line: &Result<Range<usize>, Skipped>) {
        let number = self.lines.number();
        let line = match line {
            Ok(line) => self.lines.text(line),
            Err(Skipped::TooLong) => {
                let max = self.lines.limit();
                return self.push(Err(HttpError::LineTooLarge { number, max }), 0, None);
            }
            Err(Skipped::NoMemory) => {
                return self.push(Err(self.service.memory().refuse().into()), 0, None);
            }
        };
        if number == 1 && is_wide(line) {
            // Cut at the bytes of a line feed, none of what follows is a line.
            self.ended = true;
            self.lines = Lines::new(self.lines.limit());
            let error = HttpError::BadRequest(format!("line 1: {WIDE}"));
            return self.push(Err(error), 0, None);
        }
        let bytes = line.len();
        let parsed = serde_json::from_slice::<BatchLine<'_>>(line).map_err(|error| {
            if line.starts_with(BYTE_ORDER_MARK) { INNER_MARK.to_owned() } else { json_error(&error) }
        });
        let begun = parsed.and_then(|parsed| {
            let (name, operation) = operation(&parsed)?;
            let trace = self.notes.as_ref().and_then(|notes| notes.span.trace_parent());
            let service = &self.service;
            let begun = match self.grant.operation(&operation) {
                Ok(()) => {
                    let group = self.under_way.group(|| service.write_group(trace));
                    self.grant.over_in_batch(name, service.begin_in_batch(operation, group, trace))
                }
                Err(denied) => BegunInBatch::Other(Begun::Done(Err(denied.into()))),
            };
            let (BatchLine::Get { key, .. } | BatchLine::Set { key, .. } | BatchLine::Delete { key, .. }) =
                parsed;
            Ok((name, key.into_owned(), begun))
        });
        match begun {
            Ok((name, key, begun)) => self.push(Ok((name, key)), bytes, Some(begun)),
            Err(error) => {
                let error = HttpError::BadRequest(format!("line {number}: {error}"));
                self.push(Err(error), 0, None);
            }
        }
    }

    /// Takes an operation, or an error in its place, into the queue.
    fn push(
        &mut self,
        request: Result<(&'static str, String), HttpError>,
        mut bytes: usize,
        begun: Option<BegunInBatch>,
    ) {
        match begun {
            Some(BegunInBatch::Plain) => self.under_way.push_plain(),
            Some(BegunInBatch::Other(Begun::Later(outcome))) => self.under_way.push_later(outcome),
            Some(BegunInBatch::Other(Begun::Done(mut outcome))) => {
                if let Ok(Done::Read(answer)) = &outcome {
                    let found = answer.bytes();
                    if self.has_memory_for(bytes + found) {
                        bytes += found;
                    } else {
                        outcome = Err(self.service.memory().refuse().into());
                    }
                }
                self.under_way.push_done(outcome);
            }
            // Only its place in the order matters.
            None => self.under_way.push_done(Err(KeyError::Blank.into())),
        }
        self.bytes += bytes;
        self.pending.push_back(Pending { request, bytes, began: self.now });
    }

    /// Writes the result of the oldest operation.
    fn put(&mut self, ended: EndedInBatch, out: &mut Vec<u8>) {
        let Some(Pending { request, bytes, began }) = self.pending.pop_front() else { return };
        let (operation, outcome) = match (request, ended) {
            (Ok((operation, key)), EndedInBatch::Plain(written)) => {
                (operation, results::put_plain(&key, written, out))
            }
            (Ok((operation, key)), EndedInBatch::Other(outcome)) => {
                (operation, results::put(operation, &key, outcome, out))
            }
            // It may have been meant as a write.
            (Err(error), _) => ("batch", results::put_failure(&error, true, out)),
        };
        self.bytes -= bytes;
        self.give_memory_back();
        self.count(operation, outcome, began);
    }

    fn count(&mut self, operation: &'static str, outcome: &'static str, began: Instant) {
        match self.answered.iter_mut().find(|it| (it.operation, it.outcome) == (operation, outcome)) {
            Some(answered) => {
                answered.count += 1;
                answered.since = answered.since.min(began);
            }
            None => self.answered.push(Answered { operation, outcome, count: 1, since: began }),
        }
    }

    /// Moves the metrics on: they are too dear to be moved for each line by itself. Lines that are answered together took as long as all of
    /// them.
    fn report(&mut self) {
        for Answered { operation, outcome, count, since } in self.answered.drain(..) {
            let took = since.elapsed();
            if let Some(notes) = &mut self.notes {
                // A batch may last for as long as its client likes; it is slow if one of its operations is.
                notes.waits.operations = notes.waits.operations.max(took);
            }
            self.metrics.requests("http", operation, outcome, count, took);
        }
    }
}

const WIDE: &str = "the batch is in UTF-16 or UTF-32; send it in UTF-8";
const INNER_MARK: &str = "it begins with a byte order mark, which belongs to the start of a file; remove it";

/// Whether text is in UTF-16 or UTF-32: by its byte order mark, or by the zero that an ASCII character has in front or behind.
fn is_wide(text: &[u8]) -> bool {
    matches!(text, [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [0, ..] | [_, 0, ..])
}

/// The operation of a line, and its name in the metrics.
fn operation<'a>(line: &'a BatchLine<'_>) -> Result<(&'static str, Operation<'a>), String> {
    Ok(match line {
        BatchLine::Get { key, read } => ("get", Operation::Get { key, read: line_read_options(read)? }),
        BatchLine::Delete { key, write } => {
            ("delete", Operation::Delete { key, write: write_options(write)? })
        }
        BatchLine::Set { key, value, ttl, write } => {
            let live = match ttl {
                None => 0,
                Some(text) => parse_ttl(text)?.as_millis() as i64,
            };
            ("set", Operation::Set { key, value, ttl: live, write: write_options(write)? })
        }
    })
}

/// What a line asks of a write.
fn write_options<'a>(line: &'a LineWriteOptions<'_>) -> Result<WriteOptions<'a>, String> {
    let condition = match (line.if_match.as_deref(), line.if_absent) {
        (None, false) => WriteCondition::None,
        (None, true) => WriteCondition::Absent,
        (Some("*"), false) => WriteCondition::Present,
        (Some(version), false) => {
            version_condition(version).map_err(|error| format!("ifMatch: {error}, or * for any"))?
        }
        (Some(_), true) => return Err("ifMatch and ifAbsent contradict each other; give one".to_owned()),
    };
    let uuid = line.uuid.as_deref();
    if uuid == Some("") {
        return Err("the field 'uuid' is empty; leave it out".to_owned());
    }
    let (visible, timeout) = (visible(line.visible.as_deref())?, timeout(line.timeout.as_deref())?);
    Ok(WriteOptions { condition, uuid: uuid.unwrap_or_default(), visible, timeout })
}

/// The parser's words, without its own line number, which is always 1.
fn json_error(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what);
    let no_json = if error.is_data() { "" } else { "it is no JSON: " };
    format!("{no_json}{what} (column {})", error.column())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::damage::{damaged, damages};

    proptest! {
        #[test]
        fn any_line_is_an_operation_or_a_sentence(
            key in ".{0,5}", value in ".{0,5}", ms: u64, damages in damages(),
        ) {
            let line = serde_json::json!({ "op": "set", "key": key, "value": value, "ttl": format!("{ms}ms") }).to_string();
            let whole: BatchLine<'_> = serde_json::from_str(&line).expect("a line");
            let expected =
                BatchLine::Set { key: key.into(), value: value.into(), ttl: Some(format!("{ms}ms").into()), write: LineWriteOptions::default() };
            prop_assert_eq!(whole, expected);
            if let Err(error) = serde_json::from_slice::<BatchLine<'_>>(&damaged(line.as_bytes(), &damages)) {
                prop_assert!(json_error(&error).contains("(column "));
            }
        }
    }
}
