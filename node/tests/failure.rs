//! A node of which a thread has ended is neither ready nor live, and says so to whoever runs it.

mod support;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bitacora_node::data_dir::DataDir;
use bitacora_node::log::embedded::EmbeddedLog;
use bitacora_node::log::{Log, LogInfo, LogReader, NewRecord, OpenError, ReadError, Unsettled};
use bitacora_protocol::{HighWatermark, NextOffset};

use self::support::{PATIENCE, ready, start};

/// An embedded log, as whose client's thread ends when a test wants it.
struct EndingLog {
    log: EmbeddedLog,
    ended: AtomicBool,
    /// Panics in a thread of the replica.
    panics: AtomicBool,
}

impl EndingLog {
    fn new(dir: &std::path::Path) -> Arc<Self> {
        let log = EmbeddedLog::open(DataDir::open(&dir.join("log")).expect("a folder"), "bitacora", 1);
        Arc::new(Self {
            log: log.expect("a log"),
            ended: AtomicBool::new(false),
            panics: AtomicBool::new(false),
        })
    }
}

impl Log for EndingLog {
    fn topic(&self) -> &str {
        self.log.topic()
    }

    fn open(&self, answered: &dyn Fn()) -> Result<LogInfo, OpenError> {
        self.log.open(answered)
    }

    fn hand_over(&self, record: &NewRecord, append: Unsettled) {
        self.log.hand_over(record, append);
    }

    fn check_trimming(&self) -> Result<(), String> {
        self.log.check_trimming()
    }

    fn reader(&self, from: &[NextOffset], epochs: &[Option<i32>]) -> Result<Box<dyn LogReader>, ReadError> {
        self.log.reader(from, epochs)
    }

    fn high_watermarks(&self) -> Result<Vec<HighWatermark>, ReadError> {
        assert!(!self.panics.load(Ordering::Relaxed), "as the test wants it");
        self.log.high_watermarks()
    }

    fn ended_thread(&self) -> Option<&'static str> {
        self.ended.load(Ordering::Relaxed).then_some("of the test")
    }

    fn flush(&self, deadline: Duration) {
        self.log.flush(deadline);
    }
}

fn health(api: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(api).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {api}\r\nConnection: close\r\n\r\n").expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    answer
}

/// What a node says when something of it has ended.
async fn fails(end: impl FnOnce(&EndingLog), words: &str) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let log = EndingLog::new(dir.path());
    let (node, address) = start(&dir.path().join("node"), Arc::clone(&log) as Arc<dyn Log>, &[], None).await;
    ready(&node).await;
    let asked = address.api();
    let live = tokio::task::spawn_blocking(move || health(&asked, "/health/live")).await.expect("no panic");
    assert!(live.starts_with("HTTP/1.1 200 "), "{live}");
    end(&log);
    let reason = tokio::time::timeout(PATIENCE, node.failed()).await.expect("it is noticed");
    assert!(reason.contains(words) && reason.contains("restart the node"), "{reason}");
    for path in ["/health", "/health/ready", "/health/live"] {
        let asked = address.api();
        let answer = tokio::task::spawn_blocking(move || health(&asked, path)).await.expect("no panic");
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains(&reason), "{path}: {answer}");
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ended_thread_of_the_log_is_noticed() {
    fails(|log| log.ended.store(true, Ordering::Relaxed), "the thread 'of the test' has ended").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thread_of_the_replica_that_panicked_is_noticed() {
    fails(|log| log.panics.store(true, Ordering::Relaxed), "the thread 'watermarks' panicked").await;
}
