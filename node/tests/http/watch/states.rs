//! A node that is restoring, stopping, or cut off from its log.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bitacora_node::log::embedded::EmbeddedLog;
use bitacora_node::log::{Batch, Log, LogInfo, LogReader, NewRecord, OpenError, ReadError, Unsettled};
use bitacora_protocol::{HighWatermark, NextOffset};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::super::support::{PATIENCE, ready};
use super::super::{Running, embedded_log, request};
use super::{Watch, metric, set, until};

/// An embedded log that can be cut off.
struct DistantLog {
    log: EmbeddedLog,
    is_cut: Arc<AtomicBool>,
}

const CUT: &str = "the test has cut it off";

impl DistantLog {
    fn new(folder: &Path, is_cut: bool) -> Arc<Self> {
        Arc::new(Self { log: embedded_log(folder), is_cut: Arc::new(AtomicBool::new(is_cut)) })
    }

    fn cut(&self, is_cut: bool) {
        self.is_cut.store(is_cut, Ordering::Relaxed);
    }

    fn answers(&self) -> Result<(), ReadError> {
        answers(&self.is_cut)
    }
}

fn answers(is_cut: &AtomicBool) -> Result<(), ReadError> {
    if is_cut.load(Ordering::Relaxed) { Err(ReadError::Unavailable(CUT.to_owned())) } else { Ok(()) }
}

struct DistantReader {
    reader: Box<dyn LogReader>,
    is_cut: Arc<AtomicBool>,
}

impl LogReader for DistantReader {
    fn poll(&mut self, wait: Duration, batch: &mut Batch) -> Result<(), ReadError> {
        answers(&self.is_cut)?;
        self.reader.poll(wait, batch)
    }

    fn applied(&mut self, next: &[NextOffset]) {
        self.reader.applied(next);
    }
}

impl Log for DistantLog {
    fn topic(&self) -> &str {
        self.log.topic()
    }

    fn open(&self, answered: &dyn Fn()) -> Result<LogInfo, OpenError> {
        self.answers().map_err(|error| OpenError::Unavailable(error.to_string()))?;
        self.log.open(answered)
    }

    fn hand_over(&self, record: &NewRecord, append: Unsettled) {
        self.log.hand_over(record, append);
    }

    fn check_trimming(&self) -> Result<(), String> {
        self.log.check_trimming()
    }

    fn reader(&self, from: &[NextOffset], epochs: &[Option<i32>]) -> Result<Box<dyn LogReader>, ReadError> {
        self.answers()?;
        let reader = self.log.reader(from, epochs)?;
        Ok(Box::new(DistantReader { reader, is_cut: Arc::clone(&self.is_cut) }))
    }

    fn high_watermarks(&self) -> Result<Vec<HighWatermark>, ReadError> {
        self.answers()?;
        self.log.high_watermarks()
    }

    fn flush(&self, deadline: Duration) {
        self.log.flush(deadline);
    }
}

/// A connection on which one request has been answered, so that it stays open.
async fn connection(node: &Running) -> TcpStream {
    let mut stream = TcpStream::connect(node.address.api()).await.expect("a connection");
    stream.write_all(b"GET /health/live HTTP/1.1\r\nHost: node\r\n\r\n").await.expect("sent");
    let mut answer = [0; 12];
    timeout(PATIENCE, stream.read_exact(&mut answer)).await.expect("an answer").expect("it reads");
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_restores_refuses_until_it_is_done() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = DistantLog::new(folder.path(), true);
    let node = Running::begin(folder, Arc::<DistantLog>::clone(&log), &[]).await;
    for path in ["/watch", "/watch?initial=true", "/rpc/changes", "/rpc/changes?wait=30s"] {
        let answer = node.ask(&format!("GET {path}"), &[], "").await;
        assert!(answer.refusal(503).contains("restoring"), "{path}: {answer:?}");
        assert_eq!(answer.header("retry-after"), Some("1"), "{path}: {answer:?}");
    }
    assert_eq!(node.ask("HEAD /watch", &[], "").await.status, 503);
    assert_eq!(metric(&node, "bitacora_watchers").await as u64, 0);
    log.cut(false);
    ready(&node.node).await;
    let mut watch = Watch::begin(&node, "", "").await;
    set(&node, "a", "v").await;
    assert_eq!(watch.event("set").await.1["key"], "a");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_cut_off_serves_without_current_and_tells_expiries() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = DistantLog::new(folder.path(), false);
    let node = Running::start_over(folder, Arc::<DistantLog>::clone(&log), &[]).await;
    set(&node, "a", "v").await;
    let mut before = Watch::begin(&node, "?key=b", "").await;
    before.event("current").await;
    let expires = node.ask("POST /rpc?key=b&value=v&ttl=2s", &[], "").await;
    assert_eq!(expires.status, 200, "{expires:?}");
    before.event("set").await;
    log.cut(true);
    let (_, expired) = before.event("delete").await;
    assert_eq!(expired["reason"], "expired", "{expired}");
    // What is there, and then a word why nobody knows whether that is all.
    let mut watch = Watch::begin(&node, "?initial=true", "").await;
    assert_eq!(watch.event("set").await.1["key"], "a");
    let mut how_far = watch.event("progress").await.1;
    // The first may come before the node has noticed.
    while how_far["behind"].is_null() {
        how_far = watch.event("progress").await.1;
    }
    assert!(how_far["behind"].as_str().is_some_and(|why| why.contains(CUT)), "{how_far}");
    let answer = node.ask("GET /rpc/changes?initial=true", &[], "").await.json();
    assert_eq!(answer["current"], false, "{answer}");
    assert_eq!(answer["events"][0]["key"], "a", "{answer}");
    log.cut(false);
    set(&node, "c", "v").await;
    watch.until("event: current\n").await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_stops_ends_watches_and_calls_that_wait() {
    let node = Running::start(&["--shutdown-grace", "20s"]).await;
    set(&node, "a", "v").await;
    assert_eq!(node.value("a").await.as_deref(), Some("v"));
    let mut watch = Watch::begin(&node, "?initial=true", "").await;
    let (token, _) = watch.event("current").await;
    let mut waiting = connection(&node).await;
    let line = format!("GET /rpc/changes?since={token}&wait=60s");
    waiting.write_all(&request(&line, &[], b"")).await.expect("sent");
    until(async || metric(&node, "bitacora_watchers").await >= 2.0).await;
    let stopped = async {
        timeout(PATIENCE / 2, node.stop()).await.expect("nobody who waits for changes holds it up");
    };
    let told = async {
        let (bye, data) = watch.event("bye").await;
        assert!(data["reason"].as_str().is_some_and(|why| why.contains("stopping")), "{data}");
        watch.ends().await;
        let mut answer = String::new();
        timeout(PATIENCE, waiting.read_to_string(&mut answer)).await.expect("it ends").expect("it reads");
        assert!(answer.contains("HTTP/1.1 503 ") && answer.contains("stopping"), "{answer}");
        assert!(!bye.is_empty());
    };
    tokio::join!(stopped, told);
}
