//! One connection to a node: many calls under way, answered in any order.
//!
//! A call writes its frame straight into the buffer that goes out next; the writer's task sends what has gathered there in
//! one write. The reader's task decodes answers in place and hands them over. A serial is an index into the slots of the
//! calls under way; a slot is free again only when the node has answered, so a late answer never meets another call.

mod frames;
mod reply;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bitacora_protocol::connect;
use bitacora_protocol::rpc::{self, ForeignProtocol, Message, Request, put_frame};
use bitacora_protocol::tls::ClientTls;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;

use frames::{Frames, KEPT_BUFFER_BYTES, handshake, with_advice};
pub(crate) use reply::{BatchReply, Changed, ChangesReply, Found, Missing, NotMet, Reply, decode_changes};

/// Calls under way on a connection; more wait.
const MAX_CALLS: usize = 4096;
/// Bytes that wait to be written; when there are more, calls wait.
const MAX_UNWRITTEN_BYTES: usize = 4 << 20;
/// Calls that nobody waits for any more and that the node has not answered; with more it is useless.
const MAX_ABANDONED: usize = MAX_CALLS / 4;
/// Why there is no reply.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    /// No connection was there, and none could be made.
    Unreachable(String),
    /// The connection was lost already. The call was not sent.
    Gone(String),
    /// The connection broke. `sent`: the call was handed to the socket before.
    Lost { sent: bool, reason: String },
    /// The node's own words.
    Answered(rpc::Failure),
    /// The node declares no such message. The call was not sent.
    Unknown(Message),
    /// The answer can't be read.
    Nonsense { sent: bool, reason: String },
}

/// Closes when dropped.
pub(crate) struct Connection(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    lost: AtomicBool,
    /// There is something to write.
    write: Notify,
    /// There may be room for another call.
    room: Notify,
    /// What the node declares, where it is not our protocol.
    foreign: Option<ForeignProtocol>,
    /// `Bearer TOKEN`, which every call shows.
    authorization: Option<Arc<str>>,
}

#[derive(Default)]
struct State {
    unwritten: Vec<u8>,
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Calls so far, and how many of them were handed to the socket.
    calls: u64,
    written: u64,
    abandoned: usize,
    /// Calls that wait for room.
    waiting: usize,
    lost: Option<String>,
    tasks: Vec<AbortHandle>,
}

enum Slot {
    Free,
    /// `call`: its number, as [`State::calls`] counts them.
    Waiting {
        call: u64,
        message: Message,
        answer: oneshot::Sender<Result<Reply, Failure>>,
    },
    Abandoned,
}

impl Connection {
    /// Connects and shakes hands. The caller bounds the time.
    pub(crate) async fn open(
        address: &str,
        tls: Option<&ClientTls>,
        authorization: Option<Arc<str>>,
    ) -> Result<Self, String> {
        let mut socket = connect(address).await.map_err(|error| error.to_string())?;
        socket.set_nodelay(true).map_err(|error| error.to_string())?;
        let Some(tls) = tls else {
            let foreign = handshake(&mut socket, false).await?;
            let (read_half, write_half) = socket.into_split();
            return Ok(Self::start(Shared::new(foreign, authorization), read_half, write_half));
        };
        let socket = tls.connect(address, socket).await;
        let mut socket =
            socket.map_err(|error| format!("TLS with the node fails: {}", with_advice(&error)))?;
        let foreign = handshake(&mut socket, true).await?;
        let (read_half, write_half) = tokio::io::split(socket);
        Ok(Self::start(Shared::new(foreign, authorization), read_half, write_half))
    }

    fn start(
        shared: Shared,
        read_half: impl AsyncRead + Send + Unpin + 'static,
        write_half: impl AsyncWrite + Send + Unpin + 'static,
    ) -> Self {
        let shared = Arc::new(shared);
        // Neither task can end the connection before both are known to it.
        let mut state = shared.state.lock();
        let tasks = [
            tokio::spawn(read(Arc::clone(&shared), read_half)).abort_handle(),
            tokio::spawn(write(Arc::clone(&shared), write_half)).abort_handle(),
        ];
        state.tasks.extend(tasks);
        drop(state);
        Self(shared)
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.0.lost.load(Ordering::Acquire)
    }

    /// `sent` becomes true when the request is on its way to the socket; the future may be dropped at any time.
    pub(crate) async fn call(&self, request: &Request<'_>, sent: &mut bool) -> Result<Reply, Failure> {
        let shared = &*self.0;
        let message = request.message();
        if shared.foreign.as_ref().is_some_and(|foreign| !foreign.declares(message)) {
            return Err(Failure::Unknown(message));
        }
        let mut ticket = match shared.submit(request)? {
            Some(ticket) => ticket,
            None => shared.submit_when_there_is_room(request).await?,
        };
        *sent = true;
        ticket.answer().await
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.lose("closed by this client");
    }
}

impl Shared {
    fn new(foreign: Option<ForeignProtocol>, authorization: Option<Arc<str>>) -> Self {
        Self {
            state: Mutex::default(),
            lost: AtomicBool::new(false),
            write: Notify::new(),
            room: Notify::new(),
            foreign,
            authorization,
        }
    }

    /// `None`: there is no room.
    fn submit(&self, request: &Request<'_>) -> Result<Option<Ticket<'_>>, Failure> {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        if let Some(reason) = &state.lost {
            return Err(Failure::Gone(reason.clone()));
        }
        if state.slots.len() - state.free.len() >= MAX_CALLS || state.unwritten.len() >= MAX_UNWRITTEN_BYTES {
            return Ok(None);
        }
        let index = state.free.pop().unwrap_or_else(|| {
            state.slots.push(Slot::Free);
            state.slots.len() - 1
        });
        state.calls += 1;
        let call = state.calls;
        let (answer, receiver) = oneshot::channel();
        state.slots[index] = Slot::Waiting { call, message: request.message(), answer };
        let first = state.unwritten.is_empty();
        // The number of slots is far below 2^31.
        put_frame(&mut state.unwritten, index as i32, |out| {
            request.encode_as(self.authorization.as_deref(), out);
        });
        drop(guard);
        if first {
            self.write.notify_one();
        }
        Ok(Some(Ticket { shared: self, index, call, receiver, done: false }))
    }

    async fn submit_when_there_is_room(&self, request: &Request<'_>) -> Result<Ticket<'_>, Failure> {
        let _waiter = Waiter::new(self);
        loop {
            let room = self.room.notified();
            if let Some(ticket) = self.submit(request)? {
                // There may be room for one more.
                self.room.notify_one();
                return Ok(ticket);
            }
            room.await;
        }
    }

    /// Exchanges what has gathered for an empty buffer.
    fn take_unwritten(&self, bytes: &mut Vec<u8>) {
        let mut state = self.state.lock();
        std::mem::swap(&mut state.unwritten, bytes);
        state.written = state.calls;
        let room = state.waiting > 0;
        drop(state);
        if room {
            self.room.notify_one();
        }
    }

    /// Hands an answer over; the error says that the node answers what nobody asked.
    fn answer(&self, serial: i32, bytes: &[u8]) -> Result<(), String> {
        let mut state = self.state.lock();
        let index = usize::try_from(serial).unwrap_or(usize::MAX);
        let slot = state.slots.get_mut(index).map(|slot| std::mem::replace(slot, Slot::Free));
        let waiting = match slot {
            None | Some(Slot::Free) => return Err(format!("it answered a call {serial} that was not made")),
            Some(Slot::Abandoned) => {
                state.abandoned -= 1;
                None
            }
            Some(Slot::Waiting { message, answer, .. }) => Some((message, answer)),
        };
        state.free.push(index);
        let room = state.waiting > 0;
        drop(state);
        if room {
            self.room.notify_one();
        }
        if let Some((message, answer)) = waiting {
            // Nobody may wait for it any more.
            let _ = answer.send(reply::decode(message, bytes));
        }
        Ok(())
    }

    /// Ends the connection, and with it every call on it.
    fn lose(&self, reason: &str) {
        let mut state = self.state.lock();
        if state.lost.is_some() {
            return;
        }
        state.lost = Some(reason.to_owned());
        self.lost.store(true, Ordering::Release);
        state.unwritten = Vec::new();
        let (slots, written) = (std::mem::take(&mut state.slots), state.written);
        state.free = Vec::new();
        for task in &state.tasks {
            task.abort();
        }
        drop(state);
        self.room.notify_waiters();
        for slot in slots {
            if let Slot::Waiting { call, answer, .. } = slot {
                let _ = answer.send(Err(Failure::Lost { sent: call <= written, reason: reason.to_owned() }));
            }
        }
    }
}

/// A call under way.
struct Ticket<'a> {
    shared: &'a Shared,
    index: usize,
    call: u64,
    receiver: oneshot::Receiver<Result<Reply, Failure>>,
    done: bool,
}

impl Ticket<'_> {
    async fn answer(&mut self) -> Result<Reply, Failure> {
        let answer = (&mut self.receiver).await;
        self.done = true;
        let ended = |_| Err(Failure::Lost { sent: true, reason: "its task ended".to_owned() });
        answer.unwrap_or_else(ended)
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let mut state = self.shared.state.lock();
        // The answer may have come meanwhile, and the slot be another call's.
        match state.slots.get_mut(self.index) {
            Some(slot) if matches!(slot, &mut Slot::Waiting { call, .. } if call == self.call) => {
                *slot = Slot::Abandoned;
            }
            _ => return,
        }
        state.abandoned += 1;
        if state.abandoned > MAX_ABANDONED {
            drop(state);
            self.shared.lose("too many calls without an answer");
        }
    }
}

struct Waiter<'a>(&'a Shared);

impl<'a> Waiter<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.state.lock().waiting += 1;
        Self(shared)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.state.lock().waiting -= 1;
    }
}

async fn write(shared: Arc<Shared>, mut socket: impl AsyncWrite + Unpin) {
    let mut bytes = Vec::new();
    loop {
        shared.write.notified().await;
        loop {
            // Callers that are ready to run put their calls into this write too.
            tokio::task::yield_now().await;
            shared.take_unwritten(&mut bytes);
            if bytes.is_empty() {
                break;
            }
            // Over TLS, some of what was written may still wait.
            if let Err(error) = async {
                socket.write_all(&bytes).await?;
                socket.flush().await
            }
            .await
            {
                return shared.lose(&error.to_string());
            }
            bytes.clear();
            bytes.shrink_to(KEPT_BUFFER_BYTES);
        }
    }
}

async fn read(shared: Arc<Shared>, mut socket: impl AsyncRead + Unpin) {
    let mut frames = Frames::new();
    let ended = loop {
        match frames.next(&mut socket, |serial, message| shared.answer(serial, message)).await {
            Ok(()) => {}
            Err(reason) => break reason,
        }
    };
    shared.lose(&ended);
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::sync::atomic::AtomicUsize;
    use std::task::{Context, Poll};

    use super::*;

    /// Takes everything, and counts how often.
    struct Counting(Arc<AtomicUsize>);

    impl AsyncWrite for Counting {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<std::io::Result<usize>> {
            self.0.fetch_add(1, Ordering::SeqCst);
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// With tokio's usual scheduler, which runs the writer's task as soon as the first call has woken it.
    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn calls_made_at_the_same_time_leave_in_one_write() {
        let shared = Arc::new(Shared::new(None, None));
        let writes = Arc::new(AtomicUsize::new(0));
        tokio::spawn(write(Arc::clone(&shared), Counting(Arc::clone(&writes))));
        let connection = Arc::new(Connection(shared));
        let callers = Arc::clone(&connection);
        let spawned = tokio::spawn(async move {
            let calls = (0..100).map(|_| {
                let connection = Arc::clone(&callers);
                tokio::spawn(async move {
                    let _ = connection.call(&Request::GetRecord { key: "k" }, &mut false).await;
                })
            });
            calls.collect::<Vec<_>>()
        });
        let calls = spawned.await.expect("no panic");
        while connection.0.state.lock().written < 100 {
            tokio::task::yield_now().await;
        }
        assert!(writes.load(Ordering::SeqCst) <= 3, "{writes:?}");
        connection.0.lose("the test is over");
        for call in calls {
            call.await.expect("no panic");
        }
    }
}
