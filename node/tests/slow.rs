//! A slow request is logged once, and says what it waited for.

#[path = "support/rpc.rs"]
mod rpc;
mod support;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bitacora_node::data_dir::DataDir;
use bitacora_node::log::embedded::EmbeddedLog;
use bitacora_protocol::rpc::Request;
use tracing_subscriber::fmt::MakeWriter;
use xxhash_rust::xxh3::xxh3_64;

use self::rpc::{put_first_call, rpc_answers};
use self::support::{PATIENCE, ready, start};

const THRESHOLD: Duration = Duration::from_millis(300);

/// What is said instead of a key.
fn key_hash(key: &str) -> String {
    format!("key_hash=\"{:016x}\"", xxh3_64(key.as_bytes()))
}

/// What was logged.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    fn slow(&self) -> Vec<String> {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&bytes);
        text.lines().filter(|line| line.contains("slow request")).map(str::to_owned).collect()
    }
}

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Lines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

/// A set whose body is complete after a while.
fn set(address: &str, key: &str, pause: Duration) {
    let mut stream = TcpStream::connect(address).expect("the node listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let head = format!("POST /rpc?key={key} HTTP/1.1\r\nHost: node\r\nContent-Type: text/plain\r\n");
    write!(stream, "{head}Expect: 100-continue\r\nConnection: close\r\nContent-Length: 4\r\n\r\n")
        .expect("sent");
    let mut answer = [0; 64];
    let length = stream.read(&mut answer).expect("the node reads the body");
    assert!(answer[..length].starts_with(b"HTTP/1.1 100"));
    let began = Instant::now();
    while began.elapsed() < pause {
        std::thread::park_timeout(pause);
    }
    stream.write_all(b"body").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_request_is_told_once_and_without_the_key() {
    let lines = Lines::default();
    let logging = tracing_subscriber::fmt().with_writer(lines.clone()).with_ansi(false).finish();
    tracing::subscriber::set_global_default(logging).expect("the only test of its process");
    let dir = tempfile::tempdir().expect("a folder");
    let log = EmbeddedLog::open(DataDir::open(&dir.path().join("log")).expect("a folder"), "bitacora", 1);
    let threshold = format!("{}ms", THRESHOLD.as_millis());
    let peer_timeout = format!("{}ms", 2 * THRESHOLD.as_millis());
    let flags =
        ["--slow-request", &threshold, "--peer-reads", "always", "--external-request-timeout", &peer_timeout];
    // A member that never answers.
    let member = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let (log, other) = (Arc::new(log.expect("a log")), member.local_addr().expect("bound").to_string());
    let (node, address) = start(&dir.path().join("node"), log, &flags, Some(other)).await;
    ready(&node).await;

    let api = address.api();
    let clients = tokio::task::spawn_blocking(move || set(&api, "secret", 2 * THRESHOLD));
    clients.await.expect("a client");
    let slow = lines.slow();
    assert_eq!(slow.len(), 1, "{slow:?}");
    assert!(
        slow[0].contains("operation=\"set\"") && slow[0].contains("it waited for the body ("),
        "{slow:?}"
    );
    assert!(slow[0].contains(&key_hash("secret")) && !slow[0].contains("secret"), "{slow:?}");

    let mut call = Vec::new();
    put_first_call(&mut call, 7, &Request::GetRecord { key: "secret, too" });
    rpc_answers(&address.avro(), &call, 1).await;
    node.stop().await;
    let slow = lines.slow();
    let [_, slow] = &slow[..] else { panic!("{slow:?}") };
    assert!(slow.contains("interface=\"rpc\" operation=\"get\"") && slow.contains(" id=7 "), "{slow}");
    assert!(slow.contains("it waited for other members ("), "{slow}");
    assert!(slow.contains(&key_hash("secret, too")) && !slow.contains("secret"), "{slow}");
}
