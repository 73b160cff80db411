//! One connection: what it has sent is answered in one go and in one write; what must wait (a set, a miss that other
//! members are asked about) waits beside it, and is answered when it is done.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bitacora_protocol::rpc::{
    ErrorCode, Failure, ForeignProtocol, Frame, FrameError, FrameReader, HandshakeMatch, HandshakeRequest,
    HandshakeResponse, Message, Operation, PROTOCOL, PROTOCOL_HASH, Request, RequestError, protocol_hash,
    put_frame,
};
use futures_util::future::{BoxFuture, join_all};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::{MAX_PROTOCOL_BYTES, Shared, answers};
use crate::server::socket::Socket;
use crate::service::reads::{Answer, Found};
use crate::service::{Begun, Done, OperationError, Outcome, Service};

/// What is read at a time, unless a frame asks for more.
const READ_BYTES: usize = 16 * 1024;
/// Answers are written, and nothing more is answered meanwhile, once they have so many bytes.
const WRITE_BYTES: usize = 256 * 1024;
/// A frame above this is large; and a buffer above it is given back once it is empty.
const LARGE_BYTES: usize = 64 * 1024;
/// Calls that wait, of one connection; nothing more is read while there are so many.
const MAX_UNDER_WAY: usize = 4096;
/// As above, of batches and scans.
const MAX_HEAVY: usize = 8;
/// What the answers of one batch may have, in bytes.
const MAX_BATCH_ANSWER_BYTES: usize = 16 << 20;
/// A connection of a node that stops is closed once it has been silent for so long,
const CLOSE_AFTER_SILENCE: Duration = Duration::from_millis(100);
/// or has been refused for so long, if nothing is under way. A client that goes on asking has no better way to learn that
/// it should go elsewhere.
const CLOSE_AFTER_REFUSING: Duration = Duration::from_millis(500);

pub(super) struct Connection {
    socket: Socket,
    shared: Arc<Shared>,
    closing: watch::Receiver<bool>,
    frames: FrameReader,
    input: Vec<u8>,
    /// Frames of several buffers are put together here.
    scratch: Vec<u8>,
    out: Vec<u8>,
    client: Client,
    under_way: FuturesUnordered<BoxFuture<'static, Finished>>,
    /// Batches and scans among them.
    heavy: usize,
    /// Of batches and scans whose answers are not written yet.
    permits: Vec<OwnedSemaphorePermit>,
    answered: Answered,
    /// When the frame that is not whole yet began.
    partial_since: Option<Instant>,
    large: Option<OwnedSemaphorePermit>,
}

/// What is known of the client's protocol.
enum Client {
    /// The handshake is to come.
    Unknown,
    Ours,
    Foreign(Arc<ForeignProtocol>),
}

/// A call that had to wait.
struct Finished {
    serial: i32,
    message: Message,
    /// The whole content of the answer's frame.
    content: Vec<u8>,
    outcome: &'static str,
    began: Instant,
    permit: Option<OwnedSemaphorePermit>,
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
    pub(super) fn new(socket: Socket, shared: Arc<Shared>, closing: watch::Receiver<bool>) -> Self {
        let frames = FrameReader::new(shared.limits.frames());
        Self {
            socket,
            shared,
            closing,
            frames,
            input: Vec::with_capacity(READ_BYTES),
            scratch: Vec::new(),
            out: Vec::new(),
            client: Client::Unknown,
            under_way: FuturesUnordered::new(),
            heavy: 0,
            permits: Vec::new(),
            answered: Answered::default(),
            partial_since: None,
            large: None,
        }
    }

    /// Serves the client until it goes, breaks the rules, or the node stops.
    pub(super) async fn serve(mut self) -> io::Result<()> {
        let service = Arc::clone(&self.shared.service);
        let mut tick =
            interval((service.request_timeout / 2).min(Duration::from_secs(5)).max(CLOSE_AFTER_SILENCE));
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
            if pause == Pause::Input {
                self.make_room().await?;
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
        let began = Instant::now();
        let Self { shared, frames, input, scratch, out, client, under_way, heavy, answered, .. } = self;
        let mut used = 0;
        let pause = loop {
            if out.len() >= WRITE_BYTES {
                break Pause::Output;
            }
            if under_way.len() >= MAX_UNDER_WAY || *heavy >= MAX_HEAVY {
                break Pause::UnderWay;
            }
            let frame = match frames.next(&input[used..], scratch) {
                Ok(Some(frame)) => frame,
                Ok(None) => break Pause::Input,
                Err(error) => {
                    // Without a handshake the client would take this for one.
                    if let (FrameError::TooLarge { serial, .. }, Client::Ours | Client::Foreign(_)) =
                        (error, &*client)
                    {
                        let text = format!("{error} (MAX_FRAME_BYTES); the connection is closed");
                        put_frame(out, serial, |out| Failure::Text(text).encode(None, out));
                    }
                    break Pause::Broken;
                }
            };
            used += frame.length;
            let start = out.len();
            let content = put_frame(out, frame.serial, |out| {
                answer_frame(shared, client, frame, refuses, out, answered)
            });
            match content {
                Content::There => {}
                Content::Waits { message, begun } => {
                    let prefix = out.split_off(start + FRAME_HEAD);
                    out.truncate(start);
                    *heavy += usize::from(begun.is_heavy());
                    under_way.push(finish(frame.serial, message, prefix, begun, began));
                }
                Content::Unreadable => {
                    out.truncate(start);
                    break Pause::Broken;
                }
            }
        };
        input.drain(..used);
        if used > 0 || input.is_empty() {
            self.partial_since = (!input.is_empty()).then_some(began);
            self.large = None;
            give_back(input);
            give_back(scratch);
        } else {
            self.partial_since.get_or_insert(began);
        }
        answered.took(began.elapsed());
        pause
    }

    /// Those that are done by now leave in the same write.
    fn take_finished(&mut self) {
        while !self.under_way.is_empty()
            && self.out.len() < WRITE_BYTES
            && let Some(Some(finished)) = self.under_way.next().now_or_never()
        {
            self.put(finished);
        }
    }

    fn put(&mut self, finished: Finished) {
        let Finished { serial, message, content, outcome, began, permit } = finished;
        put_frame(&mut self.out, serial, |out| out.extend_from_slice(&content));
        self.answered.waited.push((message, outcome, began.elapsed()));
        if let Some(permit) = permit {
            self.heavy -= 1;
            self.permits.push(permit);
        }
    }

    fn written(&mut self) {
        self.out.clear();
        self.permits.clear();
        give_back(&mut self.out);
        self.answered.report(&self.shared.service);
    }

    /// Makes room for what the frame at the front still needs.
    async fn make_room(&mut self) -> io::Result<()> {
        let missing = self.frames.wants(&self.input).saturating_sub(self.input.len());
        if self.input.len() + missing > LARGE_BYTES && self.large.is_none() {
            let permit = Arc::clone(&self.shared.large_frames).acquire_owned();
            let permit = timeout(self.shared.service.request_timeout, permit).await;
            self.large = permit.map_err(|_| io::Error::other("too many large frames at a time"))?.ok();
        }
        self.input.reserve(missing.max(READ_BYTES));
        Ok(())
    }

    fn overdue(&self, active: Instant) -> bool {
        let request_timeout = self.shared.service.request_timeout;
        match self.partial_since {
            Some(since) => since.elapsed() > request_timeout,
            None if matches!(self.client, Client::Unknown) => active.elapsed() > request_timeout,
            None => active.elapsed() > self.shared.limits.idle,
        }
    }
}

/// Serial, buffer count, length.
const FRAME_HEAD: usize = 12;

/// One large frame must not leave a large buffer behind on a connection that then lies idle.
fn give_back(buffer: &mut Vec<u8>) {
    if buffer.is_empty() && buffer.capacity() > 2 * LARGE_BYTES {
        *buffer = Vec::new();
    }
}

/// What became of a frame.
enum Content {
    /// Its answer is written.
    There,
    /// What is written so far, perhaps a handshake, belongs before the answer.
    Waits { message: Message, begun: Waiting },
    /// It begins with no handshake, though it should.
    Unreadable,
}

enum Waiting {
    Operation(BoxFuture<'static, Outcome>),
    /// The bytes of a batch or a scan, which begins when the node has room for its answer.
    Heavy {
        shared: Arc<Shared>,
        call: Vec<u8>,
        foreign: Option<Arc<ForeignProtocol>>,
    },
}

impl Waiting {
    fn is_heavy(&self) -> bool {
        matches!(self, Self::Heavy { .. })
    }
}

fn answer_frame(
    shared: &Arc<Shared>,
    client: &mut Client,
    frame: Frame<'_>,
    refuses: bool,
    out: &mut Vec<u8>,
    answered: &mut Answered,
) -> Content {
    let mut call = frame.message;
    if matches!(client, Client::Unknown) {
        let Ok((handshake, rest)) = HandshakeRequest::decode(call) else { return Content::Unreadable };
        let Some(known) = shake_hands(shared, &handshake, out) else { return Content::Unreadable };
        *client = known;
        if matches!(client, Client::Unknown) {
            return Content::There;
        }
        call = rest;
    }
    let foreign = match &*client {
        Client::Foreign(protocol) => Some(protocol),
        _ => None,
    };
    let request = match Request::decode(call, foreign.map(|protocol| &**protocol)) {
        // A ping: its answer is as empty.
        Ok(None) => return Content::There,
        Ok(Some(request)) => request,
        Err(error) => {
            Failure::Text(error.to_string()).encode(None, out);
            answered.count(None, "refused");
            return Content::There;
        }
    };
    let message = request.message();
    if refuses {
        let error = RequestError { code: ErrorCode::NotReady, message: STOPPING_MESSAGE.to_owned() };
        answered.count(Some(message), answers::put_error(message, error, out));
        return Content::There;
    }
    let operation = match request {
        Request::GetValue { key } | Request::GetRecord { key } => Operation::Get { key },
        Request::SetValue { key, value } => Operation::Set { key, value, ttl: 0 },
        Request::SetRecord { key, value, ttl } => Operation::Set { key, value, ttl },
        Request::Delete { key } | Request::DeleteRecord { key } => Operation::Delete { key },
        Request::Batch(_) | Request::Scan(_) => {
            let (shared, call, foreign) = (Arc::clone(shared), call.to_vec(), foreign.cloned());
            return Content::Waits { message, begun: Waiting::Heavy { shared, call, foreign } };
        }
    };
    match shared.service.begin(operation) {
        Begun::Done(outcome) => {
            let label = answers::put_outcome(message, &outcome, out);
            answered.count(Some(message), label);
            Content::There
        }
        Begun::Later(outcome) => Content::Waits { message, begun: Waiting::Operation(outcome) },
    }
}

const STOPPING_MESSAGE: &str = "this node is stopping and did nothing; ask another node";

/// Answers a handshake. `None` if the client's protocol makes no sense; [`Client::Unknown`] if it must be sent first.
fn shake_hands(shared: &Shared, request: &HandshakeRequest<'_>, out: &mut Vec<u8>) -> Option<Client> {
    let client = if request.client_hash == *PROTOCOL_HASH {
        Client::Ours
    } else if let Some(known) = shared.protocols.get(&request.client_hash) {
        Client::Foreign(known)
    } else if let Some(text) = request.client_protocol {
        if text.len() > MAX_PROTOCOL_BYTES {
            return None;
        }
        let parsed =
            ForeignProtocol::parse(text).inspect_err(|error| tracing::debug!(%error, "a client's handshake"));
        let protocol = Arc::new(parsed.ok()?);
        // Another client's calls must not be read by a protocol that only claims this hash.
        if protocol_hash(text) == request.client_hash {
            shared.protocols.insert(request.client_hash, Arc::clone(&protocol));
        }
        Client::Foreign(protocol)
    } else {
        Client::Unknown
    };
    let matched = match client {
        Client::Unknown => HandshakeMatch::None,
        _ if request.server_hash == *PROTOCOL_HASH => HandshakeMatch::Both,
        _ => HandshakeMatch::Client,
    };
    let tells = matched != HandshakeMatch::Both;
    let (server_protocol, server_hash) =
        (tells.then_some(PROTOCOL.as_str()), tells.then_some(*PROTOCOL_HASH));
    HandshakeResponse { matched, server_protocol, server_hash }.encode(out);
    Some(client)
}

/// Begins all operations of a batch in their order.
fn begin_all(
    service: &Service,
    operations: &[Operation<'_>],
) -> impl Future<Output = Vec<Outcome>> + Send + use<> {
    let mut bytes = 0;
    let begun: Vec<_> = operations
        .iter()
        .map(|operation| {
            if bytes > MAX_BATCH_ANSWER_BYTES {
                return std::future::ready(Err(OperationError::BatchTooLarge)).boxed();
            }
            match service.begin(*operation) {
                Begun::Done(outcome) => {
                    if let Ok(Done::Read(Answer { found: Found::Local(entry), .. })) = &outcome {
                        bytes += entry.as_bytes().len();
                    }
                    std::future::ready(outcome).boxed()
                }
                Begun::Later(outcome) => outcome,
            }
        })
        .collect();
    join_all(begun)
}

/// Makes the answer of a call that waits. `content` is what comes before it: a handshake, or nothing.
fn finish(
    serial: i32,
    message: Message,
    mut content: Vec<u8>,
    begun: Waiting,
    began: Instant,
) -> BoxFuture<'static, Finished> {
    async move {
        let (outcome, permit) = match begun {
            Waiting::Operation(outcome) => {
                (answers::put_outcome(message, &outcome.await, &mut content), None)
            }
            Waiting::Heavy { shared, call, foreign } => {
                // Never closed.
                let permit = Arc::clone(&shared.heavy).acquire_owned().await.ok();
                // It has been decoded before, so it can be again.
                let outcome = match Request::decode(&call, foreign.as_deref()) {
                    Ok(Some(Request::Batch(operations))) => {
                        let results = begin_all(&shared.service, &operations);
                        drop(operations);
                        answers::put_batch(&results.await, &mut content);
                        "ok"
                    }
                    Ok(Some(Request::Scan(scan))) => match shared.service.scans.page(&scan).await {
                        Ok(page) => {
                            answers::put_page(&page, &mut content);
                            "ok"
                        }
                        Err(error) => answers::put_error(message, (&error).into(), &mut content),
                    },
                    _ => "failed",
                };
                (outcome, permit)
            }
        };
        Finished { serial, message, content, outcome, began, permit }
    }
    .boxed()
}

/// What was answered since the last report: metrics are too dear to be moved for each call by itself.
#[derive(Default)]
struct Answered {
    /// At once: message, outcome, how many.
    at_once: Vec<(Option<Message>, &'static str, u64)>,
    took: Duration,
    waited: Vec<(Message, &'static str, Duration)>,
}

impl Answered {
    fn count(&mut self, message: Option<Message>, outcome: &'static str) {
        match self.at_once.iter_mut().find(|(m, o, _)| *m == message && *o == outcome) {
            Some((_, _, count)) => *count += 1,
            None => self.at_once.push((message, outcome, 1)),
        }
    }

    /// Calls that are answered together took as long as all of them.
    fn took(&mut self, time: Duration) {
        self.took = self.took.max(time);
    }

    fn report(&mut self, service: &Service) {
        let label = |message: Option<Message>| match message {
            Some(Message::GetValue | Message::GetRecord) => "get",
            Some(Message::SetValue | Message::SetRecord) => "set",
            Some(Message::Delete | Message::DeleteRecord) => "delete",
            Some(Message::Batch) => "batch",
            Some(Message::Scan) => "scan",
            None => "unknown",
        };
        for (message, outcome, count) in self.at_once.drain(..) {
            service.metrics.requests("rpc", label(message), outcome, count, self.took);
        }
        for (message, outcome, took) in self.waited.drain(..) {
            service.metrics.requests("rpc", label(Some(message)), outcome, 1, took);
        }
        self.took = Duration::ZERO;
    }
}
