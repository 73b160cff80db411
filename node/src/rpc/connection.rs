//! One connection: what it has sent is answered in one go and in one write; what must wait (a set, a miss that other
//! members are asked about) waits beside it, and is answered when it is done.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bitacora_protocol::rpc::{
    Failure, FrameError, FrameReader, HandshakeRequest, Message, Request, peek_frame, put_frame,
};
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use smallvec::SmallVec;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{MissedTickBehavior, interval};

use super::calls::{BatchTurns, Content, Finished, Origin, answer_frame, begin_span};
use super::handshake::{Client, shake_hands};
use super::report::{AnsweredCalls, is_bulk};
use super::{Shared, answers};
use crate::server::access::Caller;
use crate::server::socket::Socket;
use crate::service::Service;
use crate::service::error::OperationError;
use crate::service::memory::Permit;
use crate::store::{Entry, FoundTogether};
use crate::telemetry::RequestSpan;

/// What is read at a time, unless a frame asks for more.
const READ_BYTES: usize = 16 * 1024;
/// Answers are written, and nothing more is answered meanwhile, once they have so many bytes.
const WRITE_BYTES: usize = 256 * 1024;
/// A connection may write so much without memory of the node's budget.
const FREE_WRITE_BYTES: usize = 32 * 1024;
/// A frame above this needs memory of the node's budget; and a buffer above twice of it is given back once there is less in it.
const LARGE_BYTES: usize = 32 * 1024;
/// Calls that wait, of one connection; nothing more is read while there are so many.
const MAX_UNDER_WAY: usize = 4096;
/// As above, of batches and scans.
const MAX_BULK_CALLS: usize = 8;
/// A connection of a node that stops is closed once it has been silent for so long,
const CLOSE_AFTER_SILENCE: Duration = Duration::from_millis(100);
/// or has been refused for so long, if nothing is under way. A client that goes on asking has no better way to learn that
/// it should go elsewhere.
const CLOSE_AFTER_REFUSING: Duration = Duration::from_millis(500);

pub(super) struct Connection {
    socket: Socket,
    shared: Arc<Shared>,
    caller: Caller,
    closing: watch::Receiver<bool>,
    frames: FrameReader,
    input: Vec<u8>,
    /// Frames of several buffers are put together here.
    scratch: Vec<u8>,
    out: Vec<u8>,
    client: Client,
    under_way: FuturesUnordered<BoxFuture<'static, Finished>>,
    /// Batches and scans among them.
    bulk_calls: usize,
    batch_turns: BatchTurns,
    /// Of batches and scans whose answers are not written yet.
    bulk_permits: Vec<OwnedSemaphorePermit>,
    /// For the answers of calls that waited, which are not written yet.
    answer_memory: Vec<Permit>,
    /// For what else is to be written.
    out_memory: Permit,
    answered: AnsweredCalls,
    /// When the frame that is not whole yet began.
    partial_since: Option<Instant>,
    /// For that frame, if it is large.
    frame_memory: Permit,
    /// That frame is dropped, since there is no memory for it.
    skipping: Option<Skipped>,
}

/// A frame that is dropped.
struct Skipped {
    /// What it is a call of, if that is known.
    message: Option<Message>,
    /// The answer to the handshake at its front; empty if there was none.
    handshake: Vec<u8>,
    /// Of that call.
    span: RequestSpan,
}

/// Why there is nothing left to answer for the moment.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pause {
    /// The input holds no whole frame.
    Input,
    /// There is enough to write.
    Output,
    /// Too many calls wait.
    UnderWay,
    /// No frame will ever come: the stream is broken.
    Broken,
}

impl Connection {
    pub(super) fn new(
        socket: Socket,
        shared: Arc<Shared>,
        caller: Caller,
        closing: watch::Receiver<bool>,
    ) -> Self {
        let frames = FrameReader::new(shared.limits.frames());
        let (out_memory, frame_memory) =
            (shared.service.memory().nothing(), shared.service.memory().nothing());
        Self {
            socket,
            shared,
            caller,
            closing,
            frames,
            input: Vec::with_capacity(READ_BYTES),
            scratch: Vec::new(),
            out: Vec::new(),
            client: Client::Unknown,
            under_way: FuturesUnordered::new(),
            bulk_calls: 0,
            batch_turns: BatchTurns::default(),
            bulk_permits: Vec::new(),
            answer_memory: Vec::new(),
            out_memory,
            answered: AnsweredCalls::default(),
            partial_since: None,
            frame_memory,
            skipping: None,
        }
    }

    /// Serves the client until it goes, breaks the rules, or the node stops.
    pub(super) async fn serve(mut self) -> io::Result<()> {
        let mut tick = interval(
            (self.shared.limits.request_timeout / 2).min(Duration::from_secs(5)).max(CLOSE_AFTER_SILENCE),
        );
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut closing = self.closing.clone();
        let (mut active, mut ended) = (Instant::now(), false);
        let mut refusing_since: Option<Instant> = None;
        loop {
            let stopping = *closing.borrow_and_update();
            let pause = self.answer(stopping);
            self.take_finished();
            if !self.out.is_empty() {
                self.socket.write_all(&self.out).await?;
                // Over TLS, some of it may still wait.
                self.socket.flush().await?;
                self.written();
                if pause == Pause::Output {
                    continue;
                }
            }
            let refused =
                stopping && refusing_since.get_or_insert_with(Instant::now).elapsed() > CLOSE_AFTER_REFUSING;
            if pause == Pause::Broken || ((ended || refused) && self.under_way.is_empty()) {
                // Reads on for a moment, so that the client gets to see the last answer.
                return self.socket.shutdown().await;
            }
            if pause == Pause::Input && !self.make_room() {
                continue;
            }
            let reads = pause == Pause::Input && !ended;
            let Self { socket, input, under_way, .. } = &mut self;
            tokio::select! {
                read = socket.read_buf(input), if reads => {
                    active = Instant::now();
                    ended = read? == 0;
                }
                Some(finished) = under_way.next(), if !under_way.is_empty() => self.put(finished),
                () = async { tokio::time::sleep(CLOSE_AFTER_SILENCE).await }, if stopping && under_way.is_empty() => {
                    return self.socket.shutdown().await;
                }
                _ = closing.changed(), if !stopping => {}
                _ = tick.tick() => {
                    if !under_way.is_empty() {
                        active = Instant::now();
                    }
                    if self.overdue(active) {
                        return self.socket.shutdown().await;
                    }
                }
            }
        }
    }

    /// Answers whole frames of the input, or begins to.
    ///
    /// `refuses`: the node is stopping.
    fn answer(&mut self, refuses: bool) -> Pause {
        if let Some(pause) = self.skip_frame() {
            return pause;
        }
        let began = Instant::now();
        let (mut used, mut looked_ahead) = (0, 0);
        // Of the calls in between, one by one.
        let mut cached = FoundTogether::new().into_iter();
        let pause = loop {
            if used >= looked_ahead && matches!(self.client, Client::Ours) {
                let (found, length) = look_ahead(&self.shared, &self.input[used..]);
                (cached, looked_ahead) = (found.into_iter(), used + length);
            }
            if let Some(pause) = self.answer_next(refuses, began, cached.next().flatten(), &mut used) {
                break pause;
            }
        };
        if used > 0 || self.input.is_empty() {
            drop_answered(&mut self.input, &mut self.scratch, used);
            self.partial_since = (!self.input.is_empty()).then_some(began);
            self.frame_memory.set(0);
        } else {
            self.partial_since.get_or_insert(began);
        }
        self.answered.took(began.elapsed());
        pause
    }

    /// Answers the frame behind the first `used` bytes of the input, or begins to, and counts its bytes as used. Returns why there
    /// is nothing left to answer for the moment, if there is not.
    ///
    /// `cached`: what was found of the key that the frame's call reads.
    fn answer_next(
        &mut self,
        refuses: bool,
        began: Instant,
        cached: Option<Entry>,
        used: &mut usize,
    ) -> Option<Pause> {
        let Self { shared, caller, frames, scratch, out, out_memory, client, under_way, answered, .. } = self;
        if !may_write_more(out, out_memory) {
            return Some(Pause::Output);
        }
        if under_way.len() >= MAX_UNDER_WAY || self.bulk_calls >= MAX_BULK_CALLS {
            return Some(Pause::UnderWay);
        }
        let frame = match frames.next(&self.input[*used..], scratch) {
            Ok(Some(frame)) => frame,
            Ok(None) => return Some(Pause::Input),
            Err(error) => {
                put_broken(error, client, out);
                return Some(Pause::Broken);
            }
        };
        *used += frame.length;
        let start = out.len();
        let content = put_frame(out, frame.serial, |out| {
            answer_frame(Origin { shared, caller, cached }, client, frame, refuses, out, out_memory, answered)
        });
        match content {
            Content::There => None,
            Content::Last => Some(Pause::Broken),
            Content::Waits(call) => {
                let prefix = out.split_off(start + FRAME_HEAD);
                out.truncate(start);
                self.bulk_calls += usize::from(call.is_bulk());
                let memory = shared.service.memory().clone();
                // What waits has the frame's bytes as well, in its record. They are there already.
                let held = (frame.length > LARGE_BYTES).then(|| memory.take_anyway(frame.length));
                under_way.push(call.finish(frame.serial, prefix, memory, held, began, &self.batch_turns));
                None
            }
            Content::Unreadable => {
                out.truncate(start);
                Some(Pause::Broken)
            }
        }
    }

    /// Those that are done by now leave in the same write.
    fn take_finished(&mut self) {
        while !self.under_way.is_empty()
            && may_write_more(&self.out, &mut self.out_memory)
            && let Some(Some(finished)) = self.under_way.next().now_or_never()
        {
            self.put(finished);
        }
    }

    fn put(&mut self, finished: Finished) {
        let Finished { call, content, bulk_permit, memory } = finished;
        put_frame(&mut self.out, call.serial, |out| out.extend_from_slice(&content));
        self.answer_memory.extend(memory);
        // Also one that was refused before it had a permit.
        if is_bulk(call.message) {
            self.bulk_calls -= 1;
        }
        self.bulk_permits.extend(bulk_permit);
        self.answered.waited(call);
    }

    fn written(&mut self) {
        self.out.clear();
        give_back(&mut self.out);
        self.bulk_permits.clear();
        self.answer_memory.clear();
        self.out_memory.set(0);
        self.answered.report(&self.shared.metrics, &self.shared.slow);
    }

    /// Makes room for what the frame at the front still needs. Returns whether there is any; if there is no memory for it,
    /// the frame is dropped from now on.
    fn make_room(&mut self) -> bool {
        if self.skipping.is_some() {
            self.input.reserve(READ_BYTES);
            return true;
        }
        let missing = self.frames.wants(&self.input).saturating_sub(self.input.len());
        let needed = self.input.len() + missing;
        if needed > LARGE_BYTES {
            // As it arrives, and put together.
            let more = (2 * needed).saturating_sub(self.frame_memory.bytes());
            if more > 0 && !self.frame_memory.try_grow(more) {
                if self.awaits_handshake() {
                    self.input.reserve(READ_BYTES);
                    return true;
                }
                self.begin_to_skip();
                return false;
            }
        }
        self.input.reserve(missing.max(READ_BYTES));
        true
    }

    /// Whether the frame at the front begins with a handshake that is not whole yet but may become so in the bytes that need
    /// no memory.
    fn awaits_handshake(&self) -> bool {
        matches!(self.client, Client::Unknown)
            && self.input.len() < LARGE_BYTES
            && HandshakeRequest::decode(first_buffer(&self.input)).is_err()
    }

    /// The frame at the front is dropped from now on. What its refusal needs is read first.
    fn begin_to_skip(&mut self) {
        self.shared.service.memory().refuse();
        self.frame_memory.set(0);
        let (mut call, mut handshake) = (first_buffer(&self.input), Vec::new());
        if matches!(self.client, Client::Unknown)
            && let Ok((request, rest)) = HandshakeRequest::decode(call)
            && let Some(client) = shake_hands(&self.shared.protocols, &request, &mut handshake)
        {
            (self.client, call) = (client, rest);
        }
        let message = Request::message_of(call, self.client.foreign().map(|protocol| &**protocol));
        let span = message.map_or_else(RequestSpan::none, |message| begin_span(&self.shared, message));
        self.skipping = Some(Skipped { message, handshake, span });
    }

    /// Drops what is there of a frame for which there was no memory, and refuses it once it has ended. Returns why nothing
    /// can be answered yet.
    fn skip_frame(&mut self) -> Option<Pause> {
        let Skipped { message, handshake, .. } = self.skipping.as_ref()?;
        let unknown = matches!(self.client, Client::Unknown);
        if unknown && handshake.is_empty() {
            // Without a handshake the client would take a refusal for one.
            return Some(Pause::Broken);
        }
        let Ok((dropped, serial)) = self.frames.skip(&self.input) else { return Some(Pause::Broken) };
        self.input.drain(..dropped);
        give_back(&mut self.input);
        let Some(serial) = serial else { return Some(Pause::Input) };
        let error = OperationError::from(self.shared.service.memory().spent());
        let message = *message;
        let outcome = put_frame(&mut self.out, serial, |out| {
            out.extend_from_slice(handshake);
            match message {
                // The client sends its protocol next, and the call again.
                _ if unknown => {}
                Some(message) => {
                    answers::put_error(message, &error, out);
                }
                None => Failure::Text(error.to_string()).encode(None, out),
            }
            error.kind().outcome()
        });
        self.answered.count(message, outcome);
        if let Some(skipped) = self.skipping.take() {
            skipped.span.end(outcome);
        }
        self.partial_since = None;
        None
    }

    fn overdue(&self, active: Instant) -> bool {
        let request_timeout = self.shared.limits.request_timeout;
        match self.partial_since {
            Some(since) => since.elapsed() > request_timeout,
            None if matches!(self.client, Client::Unknown) => active.elapsed() > request_timeout,
            None => active.elapsed() > self.shared.limits.idle,
        }
    }
}

/// What is cached of the keys that the calls at the front of the input read, one for each of them, if there are several. With the length of their
/// frames, at least 1: until then this is not to be asked again.
fn look_ahead(shared: &Shared, input: &[u8]) -> (FoundTogether, usize) {
    let (mut keys, mut length) = (SmallVec::<[&[u8]; Service::MOST_TOGETHER]>::new(), 0);
    while keys.len() < Service::MOST_TOGETHER
        && let Some((call, frame)) = peek_frame(&input[length..])
        && let Some(key) = Request::peek_read_key(call)
    {
        keys.push(key);
        length += frame;
    }
    let found = if keys.len() > 1 { shared.service.cached(&keys) } else { FoundTogether::new() };
    (found, length.max(1))
}

/// Tells the client why its stream can't be read on, if there is a call to answer.
fn put_broken(error: FrameError, client: &Client, out: &mut Vec<u8>) {
    // Without a handshake the client would take this for one.
    if let (FrameError::TooLarge { serial, .. }, Client::Ours | Client::Foreign(_)) = (error, client) {
        let text = format!("{error} (MAX_FRAME_BYTES); the connection is closed");
        put_frame(out, serial, |out| Failure::Text(text).encode(None, out));
    }
}

/// Serial, buffer count, length.
const FRAME_HEAD: usize = 12;

/// Whether more may be answered before what is there is written.
fn may_write_more(out: &[u8], memory: &mut Permit) -> bool {
    match out.len() {
        ..FREE_WRITE_BYTES => true,
        FREE_WRITE_BYTES..WRITE_BYTES => memory.bytes() >= WRITE_BYTES || memory.try_grow(WRITE_BYTES),
        _ => false,
    }
}

/// What is there of the first buffer of the frame at the front.
fn first_buffer(input: &[u8]) -> &[u8] {
    let Some((head, rest)) = input.split_first_chunk::<FRAME_HEAD>() else { return &[] };
    let length = u32::from_be_bytes([head[8], head[9], head[10], head[11]]);
    &rest[..rest.len().min(length as usize)]
}

/// Drops frames of so many bytes from the front of the input, and what was put together of them.
fn drop_answered(input: &mut Vec<u8>, scratch: &mut Vec<u8>, used: usize) {
    input.drain(..used);
    scratch.clear();
    give_back(input);
    give_back(scratch);
}

/// One large frame must not leave a large buffer behind on a connection that then lies idle.
fn give_back(buffer: &mut Vec<u8>) {
    if buffer.len() <= LARGE_BYTES && buffer.capacity() > 2 * LARGE_BYTES {
        buffer.shrink_to(READ_BYTES.max(buffer.len()));
    }
}

#[cfg(test)]
mod tests {
    use bitacora_protocol::rpc::FrameLimits;

    use super::*;

    #[test]
    fn a_large_frame_leaves_no_large_buffers() {
        let buffers = [vec![b'a'; 100_000], vec![b'b'; 100_000]];
        let mut input = [1i32, 2].map(i32::to_be_bytes).concat();
        for buffer in &buffers {
            input.extend_from_slice(&i32::try_from(buffer.len()).expect("small").to_be_bytes());
            input.extend_from_slice(buffer);
        }
        // Of the next frame.
        input.push(0);
        let mut scratch = Vec::new();
        let mut frames = FrameReader::new(FrameLimits { bytes: 1 << 20, buffers: 2 });
        let frame = frames.next(&input, &mut scratch).expect("a frame").expect("whole");
        assert_eq!(frame.message, buffers.concat());
        let used = frame.length;
        drop_answered(&mut input, &mut scratch, used);
        assert_eq!(input, [0]);
        assert!(input.capacity() <= 2 * LARGE_BYTES, "{}", input.capacity());
        assert!(scratch.capacity() <= 2 * LARGE_BYTES, "{}", scratch.capacity());
    }

    #[test]
    fn the_first_buffer_ends_where_it_says() {
        let frame = [&[1i32, 2, 3].map(i32::to_be_bytes).concat()[..], b"abcdef"].concat();
        assert_eq!(first_buffer(&frame), b"abc");
        assert_eq!(first_buffer(&frame[..13]), b"a");
        assert_eq!(first_buffer(&frame[..11]), b"");
    }
}
