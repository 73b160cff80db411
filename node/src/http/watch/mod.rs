//! `GET /watch`: what changes, as Server-Sent Events (HTML, section 9.2). What a client has not taken yet is bounded: nothing more is made
//! while some of it is on its way.

mod frames;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bitacora_protocol::SessionPosition;
use bitacora_protocol::http::{Reason, Told as HowFar};
use bytes::Bytes;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until, timeout};
use warp::http::header::{CONNECTION, HeaderName};
use warp::http::{HeaderMap, HeaderValue, Method, StatusCode};
use warp::reply::{Reply as _, Response};

use self::frames::{Large, Outgoing, frame_of, is_scarce};
pub(super) use self::frames::{delete_event, set_record};
use super::answers;
use super::error::HttpError;
use super::media::text_header;
use super::params::{Params, query_params};
use super::refusals::Verbatim;
use super::{Api, Notes, counted};
use crate::clock::now_ms;
use crate::metrics::Metrics;
use crate::service::Service;
use crate::service::access::Grant;
use crate::service::changes::{LogEnds, Reader, Told, Wanted, What};
use crate::service::error::OperationError;
use crate::service::memory::{Memory, Permit};

pub(super) const FIELDS: &[&str] = &["prefix", "key", "since", "initial", "values"];
const EVENT_STREAM: &str = "text/event-stream";
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// What is sent leaves in pieces of about this size, and the next is made once the one before has left.
const PIECE_BYTES: usize = 16 * 1024;
/// Events in a piece.
const PIECE_EVENTS: usize = 256;
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);
/// After that, a client that has not taken a part of a large event does not hold the rest of it if memory is scarce.
const TAKEN_WITHIN: Duration = Duration::from_secs(1);
/// Keeps open what is between, whatever it takes for a sign of life.
const COMMENT_INTERVAL: Duration = Duration::from_secs(15);
/// The same, of a scan of the store that finds nothing to tell: a client that has gone is noticed only when it is written to.
const SCAN_COMMENT_INTERVAL: Duration = Duration::from_secs(1);
const COMMENT: &[u8] = b":\n\n";
/// Between two questions where the log ends, while it does not answer.
const ENDS_RETRY: Duration = Duration::from_secs(1);
/// Before a client that lost its connection opens another, in ms: at once would be too often for a cluster that is restarted.
const BEGINNING: &[u8] = b"retry: 500\n\n";

/// Begins a watch.
pub fn begin(
    api: &Api,
    grant: Grant,
    method: &Method,
    query: &str,
    headers: &HeaderMap,
    notes: Notes,
) -> Response {
    let Api { service, metrics, slow, limits, .. } = api;
    let (reader, values) = match reader(service, &grant, query, headers) {
        Ok(begun) => begun,
        Err(error) => return refusal(counted(metrics, slow, notes, Err(error)).into_response()),
    };
    notes.finish(metrics, slow, "ok");
    let mut reply = if *method == Method::HEAD {
        answers::respond(StatusCode::OK, EVENT_STREAM, Bytes::new()).into_response()
    } else {
        let watch = Watch::new(service, grant, Arc::clone(metrics), reader, values, limits.request_timeout);
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(watch.run(sender));
        answers::streamed(receiver, EVENT_STREAM)
    };
    reply.extensions_mut().insert(Verbatim);
    // nginx would keep the events until it has a page of them.
    reply.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    reply
}

/// A node that can't now closes: a client that opens more watches than it may must not take others' connections with them.
fn refusal(mut refused: Response) -> Response {
    if refused.status() == StatusCode::SERVICE_UNAVAILABLE {
        refused.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    refused
}

/// Who is to be told what, and whether with values.
fn reader(
    service: &Service,
    grant: &Grant,
    query: &str,
    headers: &HeaderMap,
) -> Result<(Reader, bool), HttpError> {
    let params = query_params(query, FIELDS)?;
    let last = text_header(headers, &LAST_EVENT_ID)?.filter(|last| !last.is_empty());
    let wanted = wanted(&params, last)?;
    let values = flag(&params, "values", true)?;
    grant.read_all("watch", wanted.prefix, wanted.key).map_err(OperationError::from)?;
    Ok((service.changes().begin(&wanted).map_err(OperationError::from)?, values))
}

/// What is to be told; `last`: the token that a client sends which connects again, with the URL that it began with.
pub(super) fn wanted<'a>(params: &'a Params, last: Option<&'a str>) -> Result<Wanted<'a>, HttpError> {
    Ok(Wanted {
        since: last.or(params.get("since")).unwrap_or_default(),
        prefix: params.get("prefix").unwrap_or_default(),
        key: params.get("key"),
        initial: flag(params, "initial", false)?,
    })
}

pub(super) fn flag(params: &Params, name: &str, default: bool) -> Result<bool, HttpError> {
    match params.get(name) {
        None => Ok(default),
        Some("true") => Ok(true),
        Some("false") => Ok(false),
        Some(text) => Err(HttpError::BadRequest(format!("{name}={text} is neither true nor false"))),
    }
}

/// Takes pieces to a client.
type Client = mpsc::Sender<Result<Bytes, Infallible>>;

/// One client.
struct Watch {
    reader: Reader,
    values: bool,
    metrics: Arc<Metrics>,
    memory: Memory,
    /// Where the log ended when the watch began.
    ends: LogEnds,
    /// When it is asked again, if it did not answer.
    ask_again: Instant,
    current_told: bool,
    next_progress: Instant,
    next_comment: Instant,
    /// Made, and not handed on yet.
    pieces: VecDeque<Outgoing>,
    on_its_way: Arc<OnItsWay>,
    /// When the piece was handed on that the client has not taken yet.
    handed_on: Option<Instant>,
    handed_on_last: Instant,
    stalled_after: Duration,
    ended: bool,
    service: Arc<Service>,
    /// What the client may do. The watch ends once its token is withdrawn.
    grant: Grant,
}

/// Bytes that the client has not taken yet.
#[derive(Default)]
struct OnItsWay {
    bytes: AtomicUsize,
    taken: Notify,
}

impl OnItsWay {
    async fn all_taken(&self) {
        while self.bytes.load(Ordering::Acquire) > 0 {
            self.taken.notified().await;
        }
    }
}

/// A piece that is on its way.
struct Piece {
    bytes: Bytes,
    on_its_way: Arc<OnItsWay>,
    _memory: Permit,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.on_its_way.bytes.fetch_sub(self.bytes.len(), Ordering::AcqRel);
        self.on_its_way.taken.notify_one();
    }
}

impl Watch {
    fn new(
        service: &Arc<Service>,
        grant: Grant,
        metrics: Arc<Metrics>,
        reader: Reader,
        values: bool,
        write_timeout: Duration,
    ) -> Self {
        let (changes, now) = (service.changes(), Instant::now());
        Self {
            reader,
            values,
            metrics,
            memory: changes.memory().clone(),
            ends: LogEnds::ask(changes),
            ask_again: now,
            current_told: false,
            next_progress: now + PROGRESS_INTERVAL,
            next_comment: now + COMMENT_INTERVAL,
            pieces: VecDeque::from([Outgoing::Small(Bytes::from_static(BEGINNING))]),
            on_its_way: Arc::default(),
            handed_on: None,
            handed_on_last: now,
            stalled_after: write_timeout * 3 / 4,
            ended: false,
            service: Arc::clone(service),
            grant,
        }
    }

    /// Sends until the client has gone, or there is no more.
    async fn run(mut self, client: Client) {
        loop {
            self.taken_or_gone(&client).await;
            if client.is_closed() {
                let is_stalled = self.handed_on.is_some_and(|at| at.elapsed() >= self.stalled_after);
                self.metrics.watch_stalled.inc_by(is_stalled.into());
                return;
            }
            self.handed_on = None;
            let piece = tokio::select! {
                piece = self.next() => piece,
                () = client.closed() => continue,
            };
            let Some(piece) = piece else { return };
            self.handed_on_last = Instant::now();
            self.handed_on = Some(self.handed_on_last);
            // It has room: what was there before has been taken.
            let _ = client.send(Ok(piece)).await;
        }
    }

    /// Waits until the client has taken what was handed on, or has gone.
    async fn taken_or_gone(&mut self, client: &Client) {
        let on_its_way = Arc::clone(&self.on_its_way);
        let over = async {
            tokio::select! {
                () = on_its_way.all_taken() => {}
                () = client.closed() => {}
            }
        };
        let mut over = std::pin::pin!(over);
        while timeout(TAKEN_WITHIN, &mut over).await.is_err() {
            if !is_scarce(&self.memory, 8) {
                continue;
            }
            for piece in &mut self.pieces {
                if let Outgoing::Large(large) = piece {
                    large.forget_frame();
                }
            }
        }
    }

    /// The next piece for the client; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        while self.pieces.is_empty() {
            if self.ended {
                return None;
            }
            if !self.make().await {
                self.wait().await;
            }
        }
        let bytes = match self.pieces.pop_front()? {
            Outgoing::Small(bytes) => bytes,
            Outgoing::Large(large) => self.part(large)?,
        };
        self.on_its_way.bytes.fetch_add(bytes.len(), Ordering::AcqRel);
        let (memory, on_its_way) = (self.memory.take_anyway(bytes.len()), Arc::clone(&self.on_its_way));
        Some(Bytes::from_owner(Piece { bytes, on_its_way, _memory: memory }))
    }

    /// The next part of a large event; `None` if it is no more: the watch ends.
    fn part(&mut self, mut large: Large) -> Option<Bytes> {
        let Some((part, has_more)) = large.next(self.service.changes()) else {
            self.ended = true;
            self.pieces.clear();
            self.metrics.watch_stalled.inc();
            return None;
        };
        if has_more {
            self.pieces.push_front(Outgoing::Large(large));
        }
        Some(part)
    }

    /// Makes what there is to be sent. Returns whether there was anything to do.
    async fn make(&mut self) -> bool {
        let mut small = Vec::new();
        if self.grant.is_withdrawn() {
            self.end("the token of this watch is not known here any more");
            return true;
        }
        let read = match self.reader.read(PIECE_EVENTS, PIECE_BYTES).await {
            Ok(read) => read,
            Err(ended) => {
                self.end(&format!("{ended}; go on at another node"));
                return true;
            }
        };
        let live = !read.more;
        self.note_sent(&read.events, live);
        if read.events.iter().any(|told| matches!(told.what, What::Gap(_))) {
            // What is told from here on is as new as a watch that begins: when all of it has been told is to be said again.
            self.current_told = false;
            self.ends = LogEnds::ask(self.service.changes());
        }
        for told in &read.events {
            match Outgoing::of(told, self.values, &self.memory) {
                Outgoing::Small(frame) if frame.len() < PIECE_BYTES => small.extend_from_slice(&frame),
                // It is the same for all who are sent it, and not copied.
                outgoing => {
                    self.hand_on(&mut small);
                    self.pieces.push_back(outgoing);
                }
            }
        }
        if !read.more {
            self.put_progress(&mut small);
        } else if read.events.is_empty() && self.handed_on_last.elapsed() >= SCAN_COMMENT_INTERVAL {
            small.extend_from_slice(COMMENT);
        }
        self.hand_on(&mut small);
        read.more || !self.pieces.is_empty()
    }

    fn hand_on(&mut self, small: &mut Vec<u8>) {
        if !small.is_empty() {
            self.pieces.push_back(Outgoing::Small(std::mem::take(small).into()));
        }
    }

    /// What says how far the watch is.
    fn put_progress(&mut self, out: &mut Vec<u8>) {
        let now = Instant::now();
        let is_current = self.ends.known().is_some_and(|ends| self.reader.is_current(ends));
        if is_current && !self.current_told {
            self.current_told = true;
            out.extend(self.how_far("current"));
            self.next_progress = now + PROGRESS_INTERVAL;
        }
        if now >= self.next_progress {
            self.next_progress = now + PROGRESS_INTERVAL;
            out.extend(self.how_far("progress"));
        }
        if now >= self.next_comment {
            self.next_comment = now + COMMENT_INTERVAL;
            out.extend_from_slice(COMMENT);
        }
    }

    fn how_far(&self, event: &str) -> Vec<u8> {
        let position: SessionPosition = self.reader.positions().into_iter().collect();
        let behind = match &self.ends {
            LogEnds::Unknown(why) => Some(format!("the log does not say where it ends: {why}").into()),
            LogEnds::Asked(_) | LogEnds::Known(_) => None,
        };
        let how_far = HowFar { position: position.to_string().into(), behind };
        frame_of(event, &self.reader.token().encode(), &how_far)
    }

    fn end(&mut self, reason: &str) {
        self.ended = true;
        let bye = frame_of("bye", &self.reader.token().encode(), &Reason { reason: reason.into() });
        self.pieces.push_back(Outgoing::Small(bye.into()));
    }

    /// Waits until there may be something to be sent.
    async fn wait(&mut self) {
        let mut until = self.next_progress.min(self.next_comment);
        if matches!(self.ends, LogEnds::Unknown(_)) {
            until = until.min(self.ask_again);
        }
        tokio::select! {
            () = self.ends.answered() => match self.ends.known() {
                Some(ends) => self.reader.learn_ends(ends),
                None => self.ask_again = Instant::now() + ENDS_RETRY,
            },
            () = self.reader.changed() => {}
            () = sleep_until(until) => {}
        }
        if matches!(self.ends, LogEnds::Unknown(_)) && Instant::now() >= self.ask_again {
            self.ends = LogEnds::ask(self.service.changes());
        }
    }

    fn note_sent(&self, told: &[Told], live: bool) {
        self.service.changes().count(told);
        // One of them, so that a busy watch does not spend its time on this.
        if live
            && let Some(Told { what: What::Event(event), .. }) = told.last()
            && event.told_until.is_none()
        {
            let ms = now_ms().saturating_sub(event.timestamp().ms()).max(0);
            self.metrics.watch_delay_seconds.observe(ms as f64 / 1_000.0);
        }
    }
}
