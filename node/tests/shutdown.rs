//! A node that is told to stop: real sockets, over an embedded log that tells what is asked of it.

mod support;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::{Duration, Instant};

use bitacora_node::cluster::Address;
use bitacora_node::data_dir::DataDir;
use bitacora_node::log::embedded::EmbeddedLog;
use bitacora_node::log::{Log, LogInfo, LogReader, NewRecord, OpenError, ReadError, Unsettled};
use bitacora_protocol::{HighWatermark, NextOffset};

use self::support::{PATIENCE, ready, start};

/// A log is held no longer than that, so that a test that fails before it releases the log comes to its end.
const HOLD_TIMEOUT: Duration = Duration::from_secs(120);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Call {
    Append(String),
    Flush,
}

/// Where a log is held until it is released.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Open,
    Append,
}

/// An embedded log that notes calls, and that can be held at a step.
struct WatchedLog {
    log: EmbeddedLog,
    calls: Mutex<Vec<Call>>,
    noted: Condvar,
    held: Mutex<Option<Step>>,
    released: Condvar,
}

impl WatchedLog {
    fn new(dir: &std::path::Path, held: Option<Step>) -> Arc<Self> {
        let log = EmbeddedLog::open(DataDir::open(&dir.join("log")).expect("a folder"), "bitacora", 1);
        Arc::new(Self {
            log: log.expect("a log"),
            calls: Mutex::default(),
            noted: Condvar::new(),
            held: held.into(),
            released: Condvar::new(),
        })
    }

    fn calls(&self) -> Vec<Call> {
        self.calls.lock().expect("no test panicked").clone()
    }

    fn note(&self, call: Call) {
        self.calls.lock().expect("no test panicked").push(call);
        self.noted.notify_all();
    }

    /// Waits until somebody has called. Blocks.
    fn called(&self) {
        let calls = self.calls.lock().expect("no test panicked");
        let waited = self.noted.wait_timeout_while(calls, PATIENCE, |calls| calls.is_empty());
        assert!(!waited.expect("no test panicked").1.timed_out(), "nobody called");
    }

    /// Waits here if it is held at this step. Blocks.
    fn pass(&self, step: Step) {
        let held = self.held.lock().expect("no test panicked");
        let waited = self.released.wait_timeout_while(held, HOLD_TIMEOUT, |held| *held == Some(step));
        drop(waited.expect("no test panicked"));
    }

    fn release(&self) {
        *self.held.lock().expect("no test panicked") = None;
        self.released.notify_all();
    }
}

impl Log for WatchedLog {
    fn topic(&self) -> &str {
        self.log.topic()
    }

    fn open(&self, answered: &dyn Fn()) -> Result<LogInfo, OpenError> {
        self.pass(Step::Open);
        self.log.open(answered)
    }

    fn hand_over(&self, record: &NewRecord, append: Unsettled) {
        self.note(Call::Append(String::from_utf8_lossy(&record.key).into_owned()));
        self.pass(Step::Append);
        self.log.hand_over(record, append);
    }

    fn check_trimming(&self) -> Result<(), String> {
        self.log.check_trimming()
    }

    fn reader(&self, from: &[NextOffset], epochs: &[Option<i32>]) -> Result<Box<dyn LogReader>, ReadError> {
        self.log.reader(from, epochs)
    }

    fn high_watermarks(&self) -> Result<Vec<HighWatermark>, ReadError> {
        self.log.high_watermarks()
    }

    fn flush(&self, deadline: Duration) {
        self.note(Call::Flush);
        self.log.flush(deadline);
    }
}

/// A set whose head, and the start of its body, have arrived at the node.
fn begin_set(address: &Address) -> TcpStream {
    let mut stream = TcpStream::connect(address.api()).expect("the node listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let head = "POST /rpc?key=slow HTTP/1.1\r\nHost: node\r\nContent-Type: text/plain\r\n";
    // The node answers `100 Continue` when somebody reads the body, so the request is under way then.
    write!(stream, "{head}Expect: 100-continue\r\nContent-Length: 4\r\n\r\n").expect("sent");
    let mut answer = [0; 64];
    let length = stream.read(&mut answer).expect("the node reads the body");
    assert!(answer[..length].starts_with(b"HTTP/1.1 100"), "{:?}", String::from_utf8_lossy(&answer));
    stream.write_all(b"va").expect("sent");
    stream
}

fn set(address: &Address, key: &str) -> String {
    let mut stream = TcpStream::connect(address.api()).expect("the node listens");
    write!(
        stream,
        "POST /rpc?key={key}&value=v HTTP/1.1\r\nHost: node\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )
    .expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_slower_than_the_grace_is_never_appended() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = WatchedLog::new(dir.path(), None);
    let (node, address) =
        start(&dir.path().join("node"), Arc::<WatchedLog>::clone(&log), &["--shutdown-grace", "1s"], None)
            .await;
    ready(&node).await;
    let blocking = tokio::task::spawn_blocking(move || {
        assert!(set(&address, "early").starts_with("HTTP/1.1 200"));
        begin_set(&address)
    });
    let mut slow = blocking.await.expect("a client");

    tokio::time::timeout(PATIENCE, node.stop()).await.expect("a client does not hold up the stop");
    let outcome = tokio::task::spawn_blocking(move || {
        // Its connection is closed: at the latest the read after the write tells.
        let mut rest = Vec::new();
        slow.write_all(b"lu").and_then(|()| slow.read_to_end(&mut rest)).map(|_| rest)
    });
    let answer = outcome.await.expect("a client").unwrap_or_default();
    assert!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(log.calls(), [Call::Append("early".to_owned()), Call::Flush]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_within_the_grace_is_answered() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = WatchedLog::new(dir.path(), None);
    let (node, address) =
        start(&dir.path().join("node"), Arc::<WatchedLog>::clone(&log), &["--shutdown-grace", "60s"], None)
            .await;
    ready(&node).await;
    let mut slow = tokio::task::spawn_blocking(move || begin_set(&address)).await.expect("a client");

    let stopping = tokio::spawn(node.stop());
    let answer = tokio::task::spawn_blocking(move || {
        slow.write_all(b"lu").expect("the node still reads");
        let mut answer = String::new();
        slow.read_to_string(&mut answer).expect("an answer, and the end of the connection");
        answer
    });
    let answer = answer.await.expect("a client");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    tokio::time::timeout(PATIENCE, stopping).await.expect("it stops").expect("no panic");
    assert_eq!(log.calls(), [Call::Append("slow".to_owned()), Call::Flush]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thread_that_is_stuck_does_not_hold_up_the_stop() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = WatchedLog::new(dir.path(), Some(Step::Open));
    let (node, _) =
        start(&dir.path().join("node"), Arc::<WatchedLog>::clone(&log), &["--shutdown-grace", "1s"], None)
            .await;
    // The replica's thread is in `open` until the test releases it, which is after the stop.
    let stopped = tokio::time::timeout(PATIENCE, node.stop()).await;
    let times = stopped.expect("a stuck thread does not hold up the stop");
    assert!(Instant::now() >= times.deadline, "it was waited for until the deadline");
    assert_eq!(log.calls(), [Call::Flush]);
    let locked = DataDir::open(&dir.path().join("node")).expect_err("the thread may write the store yet");
    assert!(locked.to_string().contains("in use"), "{locked}");
    log.release();
}

// One of the runtime's threads is held by the append.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_append_that_is_stuck_does_not_hold_up_the_stop() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = WatchedLog::new(dir.path(), Some(Step::Append));
    let (node, address) =
        start(&dir.path().join("node"), Arc::<WatchedLog>::clone(&log), &["--shutdown-grace", "1s"], None)
            .await;
    ready(&node).await;
    let client = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(address.api()).expect("the node listens");
        let head = "POST /rpc?key=stuck&value=v HTTP/1.1\r\nHost: node\r\nContent-Length: 0\r\n\r\n";
        stream.write_all(head.as_bytes()).expect("sent");
        stream
    });
    let called = Arc::clone(&log);
    tokio::task::spawn_blocking(move || called.called()).await.expect("the node appends");
    // The deadline is kept by this thread, which is none of the runtime's: a stop that blocks one of those may block the
    // runtime's clock with it.
    let (done, stopped) = mpsc::channel();
    tokio::spawn(async move { done.send(node.stop().await) });
    let stopped = stopped.recv_timeout(PATIENCE);
    log.release();
    stopped.expect("a stuck append does not hold up the stop");
    drop(client.await.expect("a client"));
}
