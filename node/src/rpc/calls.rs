//! What becomes of a call: most are answered at once; a write, a miss, a batch and a scan wait.

use std::sync::Arc;
use std::time::Instant;

use bitacora_protocol::rpc::{
    CallError, ChangesRequest, ErrorCode, Failure, ForeignProtocol, Frame, HandshakeRequest, Message,
    Request, RequestError, put_batch_answer,
};
use bitacora_protocol::{Operation, ReadOptions};
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, join, join_all, poll_fn};
use tokio::sync::{Mutex, OwnedSemaphorePermit};
use tokio::time::timeout;
use tracing::Instrument as _;

use super::Shared;
use super::answers;
use super::handshake::{Client, shake_hands};
use super::report::{AnsweredCalls, WaitedCall, operation_name};
use crate::server::access::needs::message_needs;
use crate::server::access::{Caller, Refused};
use crate::service::access::{Denied, Grant};
use crate::service::batch::{BegunInBatch, EndedInBatch, InBatch};
use crate::service::changes::{ChangesAnswer, Wanted};
use crate::service::error::{ErrorKind, OperationError};
use crate::service::memory::{Memory, Permit, SMALL_ANSWER_BYTES};
use crate::service::slow::KeyHash;
use crate::service::writes::WriteGroup;
use crate::service::{Begun, Done, Outcome, Service};
use crate::store::Entry;
use crate::telemetry::{RequestSpan, TraceParent};

/// What the answers of one batch may have, in bytes.
const MAX_BATCH_ANSWER_BYTES: usize = 16 << 20;
/// Operations of a batch that are begun without a pause for what else the worker of the runtime has to do: some 100 µs.
const BEGUN_AT_A_TIME: usize = 64;
const STOPPING_MESSAGE: &str = "this node is stopping and did nothing; ask another node";
const BUSY_MESSAGE: &str = "this node has too many batches and scans to do and did nothing; ask another node";

/// The batches of a connection are begun one after the other.
pub type BatchTurns = Arc<Mutex<()>>;

/// What became of a frame.
pub enum Content {
    /// Its answer is written.
    There,
    /// Its answer is written, and is the last: each further try is to cost the caller a connection.
    Last,
    /// What is written so far, perhaps a handshake, belongs before the answer.
    Waits(WaitingCall),
    /// It begins with no handshake, though it should.
    Unreadable,
}

/// A call that has to wait.
pub struct WaitingCall {
    message: Message,
    work: Work,
    span: RequestSpan,
}

/// What it waits for.
enum Work {
    Operation {
        key: KeyHash,
        outcome: BoxFuture<'static, Outcome>,
    },
    Bulk(BulkCall),
    /// With whether records have their values.
    Changes(BoxFuture<'static, (Result<ChangesAnswer, OperationError>, bool)>),
}

/// What became of a call.
enum Begin {
    /// Its answer is written; the `outcome` label of the metrics.
    Answered(&'static str),
    Waits(Work),
}

/// The bytes of a batch or a scan, which begins when the node has room for its answer.
pub struct BulkCall {
    shared: Arc<Shared>,
    grant: Grant,
    call: Vec<u8>,
    foreign: Option<Arc<ForeignProtocol>>,
    /// For the call, and then for its answer.
    memory: Permit,
}

/// What came of a batch or a scan.
struct BulkAnswer {
    /// The `outcome` label of the metrics.
    outcome: &'static str,
    /// Its place among those that run at a time.
    permit: Option<OwnedSemaphorePermit>,
    /// For the answer.
    memory: Permit,
}

/// A call that had to wait, and its answer.
pub struct Finished {
    pub call: WaitedCall,
    /// The whole content of the answer's frame.
    pub content: Vec<u8>,
    /// The place of a batch or a scan among those that run at a time.
    pub bulk_permit: Option<OwnedSemaphorePermit>,
    /// For the content, if it is large.
    pub memory: Option<Permit>,
}

/// Where calls come from.
pub struct Origin<'a> {
    pub shared: &'a Arc<Shared>,
    pub caller: &'a Caller,
    /// What was found of the key that the next call reads.
    pub cached: Option<Entry>,
}

/// What a call that was admitted goes to, and what its caller may do.
struct Granted<'a> {
    shared: &'a Arc<Shared>,
    grant: Grant,
    cached: Option<Entry>,
}

/// Answers a frame, or begins to. `out_memory` stands for the large answers in `out`.
///
/// `refuses`: the node is stopping.
pub fn answer_frame(
    origin: Origin<'_>,
    client: &mut Client,
    frame: Frame<'_>,
    refuses: bool,
    out: &mut Vec<u8>,
    out_memory: &mut Permit,
    answered: &mut AnsweredCalls,
) -> Content {
    let Origin { shared, caller, cached } = origin;
    let mut call = frame.message;
    if matches!(client, Client::Unknown) {
        let Ok((handshake, rest)) = HandshakeRequest::decode(call) else { return Content::Unreadable };
        let Some(known) = shake_hands(&shared.protocols, &handshake, out) else { return Content::Unreadable };
        *client = known;
        if matches!(client, Client::Unknown) {
            return Content::There;
        }
        call = rest;
    }
    let foreign = client.foreign();
    let request = match Request::decode(call, foreign.map(|protocol| &**protocol)) {
        // A ping: its answer is as empty.
        Ok(None) => return Content::There,
        Ok(Some(request)) => request,
        Err(error) => {
            answered.count(put_unreadable(error, out), "refused");
            return Content::There;
        }
    };
    let message = request.message();
    let shown = || Request::authorization(call);
    let grant = caller.admit(operation_name(message), message_needs(message), shown);
    let grant = match grant {
        Ok(grant) => grant,
        Err(refused) => return put_refused(message, &refused, out, answered),
    };
    let span = begin_span(shared, message);
    let begun = if refuses {
        let error = RequestError { code: ErrorCode::NotReady, message: STOPPING_MESSAGE.to_owned() };
        Failure::Declared(error).encode(Some(message), out);
        Begin::Answered(ErrorKind::NotReady.outcome())
    } else {
        begin(
            Granted { shared, grant, cached },
            &request,
            call,
            foreign,
            span.trace_parent(),
            out,
            out_memory,
        )
    };
    match begun {
        Begin::Answered(outcome) => {
            answered.count(Some(message), outcome);
            span.end(outcome);
            Content::There
        }
        Begin::Waits(work) => Content::Waits(WaitingCall { message, work, span }),
    }
}

/// Appends the answer to a call that can't be read; returns which message it is of, if that is known.
fn put_unreadable(error: CallError, out: &mut Vec<u8>) -> Option<Message> {
    match error {
        CallError::Options { message, reason } => {
            let error = RequestError { code: ErrorCode::BadRequest, message: reason };
            Failure::Declared(error).encode(Some(message), out);
            Some(message)
        }
        error => {
            Failure::Text(error.to_string()).encode(None, out);
            None
        }
    }
}

/// Begins the span of a call. It begins a trace, too: an Avro call has no place for that of its caller.
pub fn begin_span(shared: &Shared, message: Message) -> RequestSpan {
    shared.telemetry.request("rpc", operation_name(message), || None)
}

/// Answers a call, or begins to. `trace` is what the call's records carry.
fn begin(
    granted: Granted<'_>,
    request: &Request<'_>,
    call: &[u8],
    foreign: Option<&Arc<ForeignProtocol>>,
    trace: Option<TraceParent>,
    out: &mut Vec<u8>,
    out_memory: &mut Permit,
) -> Begin {
    let Granted { shared, grant, cached } = granted;
    let message = request.message();
    let operation = operation(request);
    if let Err(denied) = check(&grant, request, operation.as_ref()) {
        return Begin::Answered(answers::put_error(message, &denied.into(), out));
    }
    if let Request::ReadChanges(changes) = request {
        return Begin::Waits(Work::Changes(read_changes(shared, grant, changes)));
    }
    let Some(operation) = operation else {
        return match BulkCall::new(shared, grant, call, foreign) {
            Ok(call) => Begin::Waits(Work::Bulk(call)),
            Err(error) => Begin::Answered(answers::put_error(message, &error, out)),
        };
    };
    match grant.over(operation_name(message), shared.service.begin(operation, cached, trace)) {
        Begun::Done(outcome) => {
            let outcome = with_memory(outcome, out_memory);
            Begin::Answered(answers::put_outcome(message, &outcome, out))
        }
        // The bytes of the call are gone when it is answered.
        Begun::Later(outcome) => Begin::Waits(Work::Operation { key: KeyHash::of(operation.key()), outcome }),
    }
}

/// That the caller may do what a call is for; `operation` is that of a call which has one. The operations of a batch are looked at one by one, when they begin.
fn check(grant: &Grant, request: &Request<'_>, operation: Option<&Operation<'_>>) -> Result<(), Denied> {
    match request {
        Request::Scan(scan) | Request::ScanRecords { scan, .. } => grant.read_all("scan", scan.prefix, None),
        Request::ReadChanges(changes) => {
            let one = Some(changes.key).filter(|key| !key.is_empty());
            grant.read_all("changes", changes.prefix, one)
        }
        _ => operation.map_or(Ok(()), |operation| grant.operation(operation)),
    }
}

/// Appends the answer to a call whose caller may not make it.
fn put_refused(
    message: Message,
    refused: &Refused,
    out: &mut Vec<u8>,
    answered: &mut AnsweredCalls,
) -> Content {
    let kind = refused.kind();
    let error = RequestError { code: kind.rpc_code(), message: refused.to_string() };
    Failure::Declared(error).encode(Some(message), out);
    answered.count(Some(message), kind.outcome());
    if kind == ErrorKind::TooManyFailures { Content::Last } else { Content::There }
}

/// Reads changes, and waits for them if it is told to.
fn read_changes(
    shared: &Arc<Shared>,
    grant: Grant,
    changes: &ChangesRequest<'_>,
) -> BoxFuture<'static, (Result<ChangesAnswer, OperationError>, bool)> {
    let ChangesRequest { since, prefix, key, limit, wait, values, initial } = *changes;
    let (shared, since, prefix) = (Arc::clone(shared), since.to_owned(), prefix.to_owned());
    let key = Some(key.to_owned()).filter(|key| !key.is_empty());
    async move {
        let wanted = Wanted { since: &since, prefix: &prefix, key: key.as_deref(), initial };
        let answer = shared.service.changes().call(&wanted, limit, wait).await;
        let answer = answer.map_err(OperationError::from);
        let answer = answer.and_then(|answer| grant.still("changes").map(|()| answer).map_err(Into::into));
        if let Ok(answer) = &answer {
            shared.service.changes().count(&answer.events);
        }
        (answer, values)
    }
    .boxed()
}

/// The operation of a call; `None` for a batch or a scan.
fn operation<'a>(request: &Request<'a>) -> Option<Operation<'a>> {
    match *request {
        Request::GetValue { key } | Request::GetRecord { key } => Some(Operation::get(key)),
        Request::SetValue { key, value } => Some(Operation::set(key, value, 0)),
        Request::SetRecord { key, value, ttl } => Some(Operation::set(key, value, ttl)),
        Request::Delete { key } | Request::DeleteRecord { key } => Some(Operation::delete(key)),
        Request::ReadRecord { key, read } => Some(Operation::Get { key, read }),
        Request::WriteRecord { key, value, ttl, write } => Some(Operation::Set { key, value, ttl, write }),
        Request::RemoveRecord { key, write } => Some(Operation::Delete { key, write }),
        Request::Batch(_)
        | Request::Scan(_)
        | Request::BatchRecords(_)
        | Request::ScanRecords { .. }
        | Request::ReadChanges(_) => None,
    }
}

/// The outcome, unless it is a large answer and there is no memory for it.
fn with_memory(outcome: Outcome, memory: &mut Permit) -> Outcome {
    match outcome {
        Ok(Done::Read(answer)) if answer.bytes() > SMALL_ANSWER_BYTES => {
            memory.grow(answer.bytes())?;
            Ok(Done::Read(answer))
        }
        Err(error) => {
            let current = error.not_met().map_or(0, |not_met| not_met.current.bytes());
            if current > SMALL_ANSWER_BYTES {
                memory.grow(current)?;
            }
            Err(error)
        }
        outcome => outcome,
    }
}

impl WaitingCall {
    /// Whether it is a batch or a scan.
    pub fn is_bulk(&self) -> bool {
        matches!(self.work, Work::Bulk(_))
    }

    /// Makes the answer. `content` is what comes before it: a handshake, or nothing. `held` stands for the bytes of a large
    /// frame while a single operation waits; a batch or a scan counts its own. `turns` are the connection's.
    pub fn finish(
        self,
        serial: i32,
        mut content: Vec<u8>,
        memory: Memory,
        held: Option<Permit>,
        began: Instant,
        turns: &BatchTurns,
    ) -> BoxFuture<'static, Finished> {
        let Self { message, work, span } = self;
        let log_span = tracing::debug_span!("request", id = serial, interface = "rpc", ?message);
        let waited = move |key, outcome| WaitedCall { serial, message, key, outcome, took: began.elapsed() };
        match work {
            Work::Operation { key, outcome } => async move {
                let outcome = outcome.await;
                drop(held);
                let outcome = answers::put_outcome(message, &outcome, &mut content);
                span.end(outcome);
                let large = content.len() > SMALL_ANSWER_BYTES;
                let memory = large.then(|| memory.take_anyway(content.len()));
                Finished { call: waited(Some(key), outcome), content, bulk_permit: None, memory }
            }
            .instrument(log_span)
            .boxed(),
            Work::Changes(changes) => async move {
                let (answer, values) = changes.await;
                let outcome = answers::put_changes(message, &answer, values, &mut content);
                span.end(outcome);
                // Its own is given back: it stood for the bytes that are in the content now.
                let memory = memory.take_anyway(content.len());
                Finished { call: waited(None, outcome), content, bulk_permit: None, memory: Some(memory) }
            }
            .instrument(log_span)
            .boxed(),
            Work::Bulk(bulk) => {
                let turns = Arc::clone(turns);
                async move {
                    let BulkAnswer { outcome, permit, memory } =
                        bulk.finish(message, &mut content, span.trace_parent(), &turns).await;
                    span.end(outcome);
                    Finished {
                        call: waited(None, outcome),
                        content,
                        bulk_permit: permit,
                        memory: Some(memory),
                    }
                }
                .instrument(log_span)
                .boxed()
            }
        }
    }
}

impl BulkCall {
    fn new(
        shared: &Arc<Shared>,
        grant: Grant,
        call: &[u8],
        foreign: Option<&Arc<ForeignProtocol>>,
    ) -> Result<Self, OperationError> {
        let memory = shared.service.memory().take(call.len())?;
        let (shared, call, foreign) = (Arc::clone(shared), call.to_vec(), foreign.cloned());
        Ok(Self { shared, grant, call, foreign, memory })
    }

    /// Appends the answer to `content`.
    async fn finish(
        mut self,
        message: Message,
        content: &mut Vec<u8>,
        trace: Option<TraceParent>,
        turns: &BatchTurns,
    ) -> BulkAnswer {
        let shared = Arc::clone(&self.shared);
        let permit =
            timeout(shared.limits.request_timeout, Arc::clone(&shared.bulk_calls).acquire_owned()).await;
        let (outcome, permit) = match permit {
            Ok(permit) => (self.run(message, content, trace, turns).await, permit.ok()),
            Err(_) => {
                let error = RequestError { code: ErrorCode::NotReady, message: BUSY_MESSAGE.to_owned() };
                Failure::Declared(error).encode(Some(message), content);
                (ErrorKind::NotReady.outcome(), None)
            }
        };
        self.memory.set(content.len());
        BulkAnswer { outcome, permit, memory: self.memory }
    }

    async fn run(
        &mut self,
        message: Message,
        content: &mut Vec<u8>,
        trace: Option<TraceParent>,
        turns: &BatchTurns,
    ) -> &'static str {
        // It has been decoded before, so it can be again.
        let (scan, read) = match Request::decode(&self.call, self.foreign.as_deref()) {
            Ok(Some(Request::Batch(operations) | Request::BatchRecords(operations))) => {
                let turn = turns.lock().await;
                let Self { shared, grant, memory, .. } = self;
                let begun = BegunBatch::begin(&shared.service, grant, &operations, trace, memory);
                let begun = begun.await;
                drop((operations, turn));
                begun.finish(message, &mut self.memory, content).await;
                return "ok";
            }
            Ok(Some(Request::Scan(scan))) => (scan, ReadOptions::default()),
            Ok(Some(Request::ScanRecords { scan, read })) => (scan, read),
            _ => return "failed",
        };
        let page = match self.shared.service.scan(&scan, &read).await {
            Ok(page) => page,
            Err(error) => return answers::put_error(message, &error, content),
        };
        if let Err(denied) = self.grant.still("scan") {
            return answers::put_error(message, &denied.into(), content);
        }
        let before = content.clone();
        let answered = page.answer(move |page| {
            let mut content = before;
            answers::put_page(message, &page, &mut content);
            content
        });
        match answered.await {
            Ok(answered) => {
                *content = answered;
                "ok"
            }
            Err(error) => answers::put_error(message, &error.into(), content),
        }
    }
}

/// The operations of a batch, begun.
struct BegunBatch {
    /// One for each operation.
    begun: Vec<InBatch>,
    plain: WriteGroup,
    later: Vec<BoxFuture<'static, Outcome>>,
    /// Of the records that were found at once.
    bytes: usize,
}

impl BegunBatch {
    /// Begins all operations in their order. A read whose answer finds no memory fails alone.
    async fn begin(
        service: &Service,
        grant: &Grant,
        operations: &[Operation<'_>],
        trace: Option<TraceParent>,
        memory: &mut Permit,
    ) -> Self {
        let (mut plain, mut later, mut bytes) = (service.write_group(trace), Vec::new(), 0);
        let mut begun = Vec::with_capacity(operations.len());
        for (number, operation) in operations.iter().enumerate() {
            if number > 0 && number % BEGUN_AT_A_TIME == 0 {
                tokio::task::yield_now().await;
            }
            if bytes > MAX_BATCH_ANSWER_BYTES {
                begun.push(InBatch::Done(Err(OperationError::BatchTooLarge)));
                continue;
            }
            if let Err(denied) = grant.operation(operation) {
                begun.push(InBatch::Done(Err(denied.into())));
                continue;
            }
            let operation =
                grant.over_in_batch("batch", service.begin_in_batch(*operation, &mut plain, trace));
            begun.push(match operation {
                BegunInBatch::Plain => InBatch::Plain,
                BegunInBatch::Other(Begun::Done(outcome)) => {
                    InBatch::Done(counted(outcome, 2, &mut bytes, memory))
                }
                BegunInBatch::Other(Begun::Later(outcome)) => {
                    later.push(outcome);
                    InBatch::Later
                }
            });
        }
        plain.close();
        Self { begun, plain, later, bytes }
    }

    /// Waits for all, counts the records of those that waited, and appends the answer.
    async fn finish(self, message: Message, memory: &mut Permit, out: &mut Vec<u8>) {
        let Self { begun, mut plain, later, mut bytes } = self;
        let settled = poll_fn(|context| plain.poll_settled(context));
        let ((), later) = join(settled, join_all(later)).await;
        let (mut begun, mut later) = (begun.into_iter(), later.into_iter());
        put_batch_answer(out, begun.len(), |out| {
            let ended = match begun.next().expect("one for each operation") {
                InBatch::Plain => EndedInBatch::Plain(plain.take_next().expect("all are settled")),
                InBatch::Later => {
                    let outcome = later.next().expect("one for each that waited");
                    EndedInBatch::Other(counted_later(outcome, &mut bytes, memory))
                }
                InBatch::Done(outcome) => EndedInBatch::Other(outcome),
            };
            answers::put_batch_result(message, &ended, out);
        });
    }
}

/// The outcome of an operation that waited, with its record counted. A write that took effect is told whatever was before it.
fn counted_later(outcome: Outcome, bytes: &mut usize, memory: &mut Permit) -> Outcome {
    if record_bytes(&outcome) == 0 {
        return outcome;
    }
    if *bytes > MAX_BATCH_ANSWER_BYTES {
        return Err(OperationError::BatchTooLarge);
    }
    // What it holds itself is counted already.
    counted(outcome, 1, bytes, memory)
}

/// Counts the record of an outcome so many times: as it lies there, and its bytes in the answer.
fn counted(outcome: Outcome, times: usize, bytes: &mut usize, memory: &mut Permit) -> Outcome {
    let found = record_bytes(&outcome);
    memory.grow(times * found)?;
    *bytes += found;
    outcome
}

/// The bytes of the record that an outcome is answered with; 0 if with none.
fn record_bytes(outcome: &Outcome) -> usize {
    match outcome {
        Ok(Done::Read(answer)) => answer.bytes(),
        Ok(Done::Written(_)) => 0,
        Err(error) => error.not_met().map_or(0, |not_met| not_met.current.bytes()),
    }
}
