// A node that does as it is told, made of the wire code. The doc tests include this file.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bitacora_protocol::record::{KeyValue, OwnedKeyValue, source, ttl};
use bitacora_protocol::rpc::{
    Answer, BatchResult, ErrorCode, Failure, ForeignProtocol, FrameLimits, FrameReader, HandshakeMatch,
    HandshakeRequest, HandshakeResponse, NotMetAnswer, PROTOCOL, PROTOCOL_HASH, ReadAnswer, RecordPage,
    RecordResult, RecordWritten, Request, RequestError, ScanPage, ScanRequest, ServedFrom, WriteAnswer,
    WrittenAnswer, protocol_hash, put_frame,
};
use bitacora_protocol::{Operation, Position, WriteCondition, WriteOptions};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinHandle, JoinSet};

/// What a cluster holds, and every write that reached it.
#[derive(Default)]
pub struct Store {
    records: BTreeMap<String, (OwnedKeyValue, Position)>,
    pub writes: Vec<(String, String)>,
    /// Rises when the log becomes another one.
    pub log: u32,
}

mod changes {
    include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/changes.rs"));
}

/// What a node does with a call.
pub enum Reaction {
    Answer,
    /// Answers when a permit is there.
    When(Arc<Semaphore>),
    Never,
    Fail(ErrorCode),
    /// The implicit error.
    Text(&'static str),
    /// Of a batch, the operations with these indexes.
    FailOperations(Vec<usize>, ErrorCode),
    /// Does it and closes the connection without an answer.
    Close,
    /// An answer with this message.
    Message(Vec<u8>),
    /// These bytes instead of an answer.
    Bytes(Vec<u8>),
    /// Reads no more.
    Stall,
}

/// How a node shakes hands.
#[derive(Clone, Copy)]
pub enum Greeting {
    /// It knows the client's protocol by its hash.
    Both,
    /// It wants the text first.
    AskText,
    /// It has another protocol.
    Client(&'static str),
    /// It never knows the client's.
    Refuse,
    Silent,
    Bytes(&'static [u8]),
}

type Script = dyn Fn(usize, &Request<'_>) -> Reaction + Send + Sync;

pub struct FakeNode {
    address: String,
    pub inner: Arc<Inner>,
    task: JoinHandle<()>,
}

pub struct Inner {
    store: Arc<Mutex<Store>>,
    greeting: Mutex<Greeting>,
    script: Mutex<Arc<Script>>,
    /// Connections that were made, and those that are open.
    pub accepted: AtomicUsize,
    pub open: AtomicUsize,
    /// The most that were open at the same time.
    pub most_open: AtomicUsize,
    /// Reads of a socket that brought something.
    pub reads: AtomicUsize,
    pub calls: AtomicUsize,
    /// The greatest message.
    pub longest: AtomicUsize,
    close: tokio::sync::Notify,
}

impl FakeNode {
    pub async fn start() -> Self {
        Self::of(&Arc::default()).await
    }

    /// A node of the cluster that has this store.
    pub async fn of(store: &Arc<Mutex<Store>>) -> Self {
        Self::at("127.0.0.1:0", store).await
    }

    pub async fn at(address: &str, store: &Arc<Mutex<Store>>) -> Self {
        let listener = TcpListener::bind(address).await.expect("the port is free");
        let address = listener.local_addr().expect("it is bound").to_string();
        let inner = Arc::new(Inner {
            store: Arc::clone(store),
            greeting: Mutex::new(Greeting::Both),
            script: Mutex::new(Arc::new(|_, _: &_| Reaction::Answer)),
            accepted: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            most_open: AtomicUsize::new(0),
            reads: AtomicUsize::new(0),
            calls: AtomicUsize::new(0),
            longest: AtomicUsize::new(0),
            close: tokio::sync::Notify::new(),
        });
        let task = tokio::spawn(accept(listener, Arc::clone(&inner)));
        Self { address, inner, task }
    }

    pub fn address(&self) -> String {
        self.address.clone()
    }

    /// What to do with each call from now on; the number is how many calls the node had before.
    pub fn script(&self, script: impl Fn(usize, &Request<'_>) -> Reaction + Send + Sync + 'static) {
        *self.inner.script.lock() = Arc::new(script);
    }

    pub fn greeting(&self, greeting: Greeting) {
        *self.inner.greeting.lock() = greeting;
    }

    #[allow(dead_code)]
    pub fn store(&self) -> &Arc<Mutex<Store>> {
        &self.inner.store
    }

    pub fn calls(&self) -> usize {
        self.inner.calls.load(Ordering::SeqCst)
    }

    /// Ends all connections, not the node.
    pub fn close_connections(&self) {
        self.inner.close.notify_waiters();
    }

    /// As a killed process: the port refuses, the connections break. Returns the address.
    pub async fn kill(self) -> String {
        let Self { address, task, .. } = self;
        task.abort();
        let _ = task.await;
        address
    }
}

async fn accept(listener: TcpListener, inner: Arc<Inner>) {
    // Dropped with this task, and with it the connections.
    let mut connections = JoinSet::new();
    while let Ok((socket, _)) = listener.accept().await {
        inner.accepted.fetch_add(1, Ordering::SeqCst);
        let open = inner.open.fetch_add(1, Ordering::SeqCst) + 1;
        inner.most_open.fetch_max(open, Ordering::SeqCst);
        let inner = Arc::clone(&inner);
        connections.spawn(async move {
            let _open = Open(Arc::clone(&inner));
            tokio::select! {
                () = inner.close.notified() => {}
                () = serve(socket, &inner) => {}
            }
        });
    }
}

struct Open(Arc<Inner>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn serve(socket: TcpStream, inner: &Arc<Inner>) {
    let (mut input, mut output) = socket.into_split();
    let (answers, mut queue) = mpsc::unbounded_channel::<Vec<u8>>();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        while let Some(bytes) = queue.recv().await {
            if output.write_all(&bytes).await.is_err() {
                return;
            }
        }
    });
    let mut reader = FrameReader::new(FrameLimits { bytes: 64 << 20, buffers: 1000 });
    let (mut bytes, mut scratch, mut greeted) = (Vec::new(), Vec::new(), false);
    loop {
        bytes.reserve(64 << 10);
        match input.read_buf(&mut bytes).await {
            Ok(1..) => inner.reads.fetch_add(1, Ordering::SeqCst),
            _ => return,
        };
        let mut at = 0;
        while let Some(frame) = reader.next(&bytes[at..], &mut scratch).expect("the client sends frames") {
            inner.longest.fetch_max(frame.message.len(), Ordering::SeqCst);
            let message = if greeted {
                frame.message
            } else {
                let Some((answer, known)) = greet(*inner.greeting.lock(), frame.serial, frame.message) else {
                    // Until the client goes.
                    while input.read_buf(&mut bytes).await.is_ok_and(|read| read > 0) {}
                    return;
                };
                greeted = known;
                let _ = answers.send(answer);
                at += frame.length;
                continue;
            };
            let request =
                Request::decode(message, None).expect("the client's call is right").expect("it has a name");
            let number = inner.calls.fetch_add(1, Ordering::SeqCst);
            let script = Arc::clone(&inner.script.lock());
            let answer = |answer: &dyn Fn(&mut Vec<u8>)| {
                let mut out = Vec::new();
                put_frame(&mut out, frame.serial, answer);
                out
            };
            let failed = |code| RequestError { code, message: format!("{code:?}") };
            let reaction = script(number, &request);
            let frame_of = |store: &mut Store, failing: &[usize], code| {
                let mut out = Vec::new();
                put_frame(&mut out, frame.serial, |out| store.answer(&request, out, failing, &failed(code)));
                out
            };
            let now = match reaction {
                Reaction::Answer if matches!(request, Request::ReadChanges(_)) => {
                    let Request::ReadChanges(changes) = &request else { unreachable!("it was looked at") };
                    let asked = changes::Asked::of(changes);
                    let (store, answers, serial) = (Arc::clone(&inner.store), answers.clone(), frame.serial);
                    tasks.spawn(async move {
                        let mut out = Vec::new();
                        let message = asked.answer(&store).await;
                        put_frame(&mut out, serial, |out| out.extend_from_slice(&message));
                        let _ = answers.send(out);
                    });
                    None
                }
                Reaction::Answer => Some(frame_of(&mut inner.store.lock(), &[], ErrorCode::Internal)),
                Reaction::FailOperations(indexes, code) => {
                    Some(frame_of(&mut inner.store.lock(), &indexes, code))
                }
                Reaction::When(permits) => {
                    let out = frame_of(&mut inner.store.lock(), &[], ErrorCode::Internal);
                    let answers = answers.clone();
                    tasks.spawn(async move {
                        permits.acquire().await.expect("it is never closed").forget();
                        let _ = answers.send(out);
                    });
                    None
                }
                Reaction::Never => None,
                Reaction::Fail(code) => {
                    Some(answer(&|out| Failure::Declared(failed(code)).encode(Some(request.message()), out)))
                }
                Reaction::Text(text) => {
                    Some(answer(&|out| Failure::Text(text.to_owned()).encode(Some(request.message()), out)))
                }
                Reaction::Close => {
                    frame_of(&mut inner.store.lock(), &[], ErrorCode::Internal);
                    return;
                }
                Reaction::Message(message) => Some(answer(&|out| out.extend_from_slice(&message))),
                Reaction::Bytes(bytes) => Some(bytes),
                Reaction::Stall => return std::future::pending().await,
            };
            at += frame.length;
            if let Some(out) = now {
                let _ = answers.send(out);
            }
        }
        bytes.drain(..at);
    }
}

/// The answer, and whether the client is known now; `None`: silence.
fn greet(greeting: Greeting, serial: i32, message: &[u8]) -> Option<(Vec<u8>, bool)> {
    let (request, call) = HandshakeRequest::decode(message).expect("the client shakes hands first");
    assert_eq!(Request::decode(call, None), Ok(None), "it comes with a ping");
    assert_eq!(request.client_hash, *PROTOCOL_HASH);
    assert!(request.client_protocol.is_none_or(|text| text == *PROTOCOL));
    let (matched, protocol) = match greeting {
        Greeting::Both => (HandshakeMatch::Both, None),
        Greeting::AskText if request.client_protocol.is_some() => (HandshakeMatch::Both, None),
        Greeting::AskText | Greeting::Refuse => (HandshakeMatch::None, None),
        Greeting::Client(text) => {
            ForeignProtocol::parse(text).expect("it is a protocol");
            (HandshakeMatch::Client, Some(text))
        }
        Greeting::Silent => return None,
        Greeting::Bytes(bytes) => return Some((bytes.to_vec(), false)),
    };
    let response =
        HandshakeResponse { matched, server_protocol: protocol, server_hash: protocol.map(protocol_hash) };
    let mut out = Vec::new();
    put_frame(&mut out, serial, |out| response.encode(out));
    Some((out, matched != HandshakeMatch::None))
}

const WHEN: i64 = 1_700_000_000_000;

impl Store {
    fn answer(&mut self, request: &Request<'_>, out: &mut Vec<u8>, failing: &[usize], error: &RequestError) {
        match request {
            Request::GetRecord { key } => Answer::Read(self.read(key)).encode(out),
            Request::SetRecord { key, value, ttl } => {
                let uuid = self.write(key, value, *ttl);
                Answer::Written(self.written(key, &uuid)).encode(out);
            }
            Request::DeleteRecord { key } => {
                let uuid = self.write(key, "", ttl::DELETED);
                Answer::Written(self.written(key, &uuid)).encode(out);
            }
            Request::Batch(operations) => {
                let uuids: Vec<_> = operations
                    .iter()
                    .enumerate()
                    .map(|(index, operation)| match operation {
                        _ if failing.contains(&index) => String::new(),
                        Operation::Get { .. } => String::new(),
                        Operation::Set { key, value, ttl, .. } => self.write(key, value, *ttl),
                        Operation::Delete { key, .. } => self.write(key, "", ttl::DELETED),
                    })
                    .collect();
                let results =
                    operations.iter().zip(&uuids).enumerate().map(
                        |(index, (operation, uuid))| match operation {
                            _ if failing.contains(&index) => BatchResult::Failed(error.clone()),
                            Operation::Get { key, .. } => BatchResult::Read(self.read(key)),
                            operation => BatchResult::Written(self.written(operation.key(), uuid)),
                        },
                    );
                Answer::Batch(results.collect()).encode(out);
            }
            Request::Scan(scan) => Answer::Page(self.page(scan)).encode(out),
            Request::GetValue { .. } | Request::SetValue { .. } | Request::Delete { .. } => {
                panic!("the library does not use the original's calls")
            }
            Request::ReadRecord { key, .. } => Answer::Read(self.read(key)).encode(out),
            Request::WriteRecord { key, value, ttl, write } => {
                let outcome = self.write_if(key, value, *ttl, write);
                Answer::RecordWritten(self.outcome(key, outcome.as_deref())).encode(out);
            }
            Request::RemoveRecord { key, write } => {
                let outcome = self.write_if(key, "", ttl::DELETED, write);
                Answer::RecordWritten(self.outcome(key, outcome.as_deref())).encode(out);
            }
            Request::ScanRecords { scan, .. } => {
                let page = self.page(scan);
                let offset = self.writes.len() as i64 - 1;
                let positions = vec![Position { partition: 0, offset }];
                Answer::RecordPage(RecordPage { page, positions }).encode(out);
            }
            Request::BatchRecords(operations) => self.batch_records(operations, failing, error).encode(out),
            Request::ReadChanges(changes) => out.extend(changes::Asked::of(changes).page(self).0),
        }
    }

    fn batch_records(
        &mut self,
        operations: &[Operation<'_>],
        failing: &[usize],
        error: &RequestError,
    ) -> Answer<'_> {
        let uuids = operations.iter().enumerate().map(|(index, operation)| match operation {
            _ if failing.contains(&index) => None,
            Operation::Get { .. } => None,
            Operation::Set { key, value, ttl, write } => self.write_if(key, value, *ttl, write),
            Operation::Delete { key, write } => self.write_if(key, "", ttl::DELETED, write),
        });
        let uuids: Vec<_> = uuids.collect();
        let results = operations.iter().zip(&uuids).enumerate().map(|(index, (operation, uuid))| {
            if failing.contains(&index) {
                return RecordResult::Failed(error.clone());
            }
            match operation {
                Operation::Get { key, .. } => RecordResult::Read(self.read(key)),
                operation => match self.outcome(operation.key(), uuid.as_deref()) {
                    RecordWritten::Written(written) => RecordResult::Written(written),
                    RecordWritten::NotMet(not_met) => RecordResult::NotMet(not_met),
                },
            }
        });
        Answer::RecordBatch(results.collect())
    }

    /// As another client's plain set.
    #[allow(dead_code)]
    pub fn overwrite(&mut self, key: &str, value: &str) {
        self.write(key, value, 0);
    }

    #[allow(dead_code)]
    pub fn value(&self, key: &str) -> Option<String> {
        self.records.get(key).map(|(record, _)| record.value.clone())
    }

    /// As `key=value`, in order.
    #[allow(dead_code)]
    pub fn live(&self) -> impl Iterator<Item = String> {
        let live = self.records.values().filter(|(record, _)| record.ttl != ttl::DELETED);
        live.map(|(record, _)| format!("{}={}", record.key, record.value))
    }

    /// As a topic that was made anew.
    #[allow(dead_code)]
    pub fn replace_log(&mut self) {
        *self = Self { log: self.log + 1, ..Self::default() };
    }

    /// The write's uuid, if its condition holds or it was made before.
    fn write_if(&mut self, key: &str, value: &str, ttl: i64, write: &WriteOptions<'_>) -> Option<String> {
        let held = self.records.get(key);
        let live = held.filter(|(record, _)| record.ttl != ttl::DELETED).map(|(_, position)| *position);
        if held.is_some_and(|(record, _)| !write.uuid.is_empty() && record.uuid == write.uuid) {
            return Some(write.uuid.to_owned());
        }
        let holds = match write.condition {
            WriteCondition::None => true,
            WriteCondition::Version(version) => live == Some(version),
            WriteCondition::Present => live.is_some(),
            WriteCondition::Absent => live.is_none(),
        };
        if !holds {
            return None;
        }
        let mut uuid = self.write(key, value, ttl);
        if let Some((record, _)) = self.records.get_mut(key).filter(|_| !write.uuid.is_empty()) {
            write.uuid.clone_into(&mut record.uuid);
            write.uuid.clone_into(&mut uuid);
        }
        Some(uuid)
    }

    fn outcome(&self, key: &str, uuid: Option<&str>) -> RecordWritten<'_> {
        if uuid.is_some() {
            let (record, _) = &self.records[key];
            RecordWritten::Written(WrittenAnswer {
                write: self.written(key, &record.uuid),
                not_visible: Vec::new(),
            })
        } else {
            let ReadAnswer { record: current, position, .. } = self.read(key);
            RecordWritten::NotMet(NotMetAnswer { current, position })
        }
    }

    fn read(&self, key: &str) -> ReadAnswer<'_> {
        let known = self.records.get(key);
        ReadAnswer {
            record: known.map(|(record, _)| record.as_borrowed()).filter(|record| record.ttl != ttl::DELETED),
            position: known.map_or(Position { partition: 0, offset: -1 }, |(_, position)| *position),
            timestamp: known.map(|(record, _)| record.timestamp),
            served_from: ServedFrom::Cache,
        }
    }

    fn write(&mut self, key: &str, value: &str, ttl: i64) -> String {
        let offset = self.writes.len() as i64;
        self.writes.push((key.to_owned(), value.to_owned()));
        let ttl = if ttl > 0 { WHEN + offset + ttl } else { ttl };
        let uuid = format!("uuid-{offset}");
        let record = KeyValue { key, value, timestamp: WHEN + offset, source: source::LOG, ttl, uuid: &uuid };
        self.records.insert(key.to_owned(), (record.to_owned(), Position { partition: 0, offset }));
        uuid
    }

    fn written<'a>(&'a self, key: &str, uuid: &'a str) -> WriteAnswer<'a> {
        let (record, position) = &self.records[key];
        WriteAnswer { position: *position, timestamp: record.timestamp, ttl: record.ttl, uuid }
    }

    fn page(&self, scan: &ScanRequest<'_>) -> ScanPage<'_> {
        let mut records = self
            .records
            .values()
            .map(|(record, position)| (record.as_borrowed(), *position))
            .filter(|(record, _)| record.ttl != ttl::DELETED && record.key.starts_with(scan.prefix))
            .filter(|(record, _)| record.key >= scan.start && record.key > scan.cursor)
            .filter(|(record, _)| scan.end.is_empty() || record.key < scan.end);
        let page: Vec<_> = records.by_ref().take(scan.limit.try_into().expect("a limit")).collect();
        let cursor = match (records.next(), page.last()) {
            (Some(_), Some((last, _))) => last.key,
            _ => "",
        };
        ScanPage { records: page, cursor }
    }
}
