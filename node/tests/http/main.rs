//! What a node says to HTTP requests of every kind, on real sockets, over an embedded log.

mod access;
mod batches;
mod conditional;
mod consistency;
mod console;
mod description;
mod forms;
mod half_close;
mod heads;
mod origins;
mod paths;
mod plain_calls;
#[path = "../support/mod.rs"]
mod support;
mod tls;
mod visibility;
mod watch;

use std::path::Path;
use std::sync::Arc;

use bitacora_node::cluster::Address;
use bitacora_node::data_dir::DataDir;
use bitacora_node::log::Log;
use bitacora_node::log::embedded::EmbeddedLog;
use bitacora_node::node::Node;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use self::support::{PATIENCE, ready, start};

/// A node.
struct Running {
    node: Node,
    address: Address,
    folder: TempDir,
}

impl Running {
    async fn start(flags: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let log = Arc::new(embedded_log(folder.path()));
        Self::start_over(folder, log, flags).await
    }

    /// One over a log that may be of a test's own, ready.
    async fn start_over(folder: TempDir, log: Arc<dyn Log>, flags: &[&str]) -> Self {
        let running = Self::begin(folder, log, flags).await;
        ready(&running.node).await;
        running
    }

    /// One that may still be restoring.
    async fn begin(folder: TempDir, log: Arc<dyn Log>, flags: &[&str]) -> Self {
        let (node, address) = start(&folder.path().join("node"), log, flags, None).await;
        Self { node, address, folder }
    }

    async fn stop(self) {
        self.node.stop().await;
    }

    /// Sends bytes on a connection of their own, and reads all that comes back until the node closes it.
    async fn exchange(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address.api()).await.expect("a connection");
        // A node that refuses may close before it has taken everything.
        let _ = stream.write_all(bytes).await;
        read_to_end(&mut stream).await
    }

    /// The answer to a request of one line and further header lines, with a body if it is not empty.
    async fn ask(&self, line: &str, headers: &[&str], body: &str) -> Answer {
        Answer::parse(&self.exchange(&request(line, headers, body.as_bytes())).await)
    }

    /// The value that the node shows of a key once it has applied everything that was written before.
    async fn value(&self, key: &str) -> Option<String> {
        let fence = self.ask("POST /rpc?key=fence&value=", &[], "").await;
        let position = fence.header("bitacora-position").expect("a write has a position").to_owned();
        let shown = async {
            while self.ask("GET /rpc?key=fence", &[], "").await.header("bitacora-position") != Some(&position)
            {
            }
        };
        timeout(PATIENCE, shown).await.expect("the node applies what it wrote");
        let answer = self.ask(&format!("GET /rpc?key={key}"), &[], "").await;
        match answer.status {
            200 => Some(answer.json()["value"].as_str().expect("text").to_owned()),
            404 => None,
            _ => panic!("{answer:?}"),
        }
    }
}

/// A log in a folder within this one.
fn embedded_log(folder: &Path) -> EmbeddedLog {
    let folder = DataDir::open(&folder.join("log")).expect("a folder");
    EmbeddedLog::open(folder, "topic", 4).expect("a log")
}

async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    // A reset after the answer loses nothing that was read before it.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut text)).await.expect("the node closes in time");
    String::from_utf8_lossy(&text).into_owned()
}

/// The bytes of a request after which the node closes.
fn request(line: &str, headers: &[&str], body: &[u8]) -> Vec<u8> {
    let length = format!("Content-Length: {}", body.len());
    let length = (!body.is_empty()).then_some(&*length);
    let first = format!("{line} HTTP/1.1");
    let lines =
        [&*first, "Host: node", "Connection: close"].into_iter().chain(headers.iter().copied()).chain(length);
    let head = lines.chain(["", ""]).collect::<Vec<_>>().join("\r\n");
    [head.as_bytes(), body].concat()
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
        Self { status, head: head.to_owned(), body: body.to_owned() }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// That this is an error of some status as all of them are: JSON with a sentence. Returns the sentence.
    fn refusal(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        let sentence = self.json()["message"].as_str().expect("a sentence").to_owned();
        assert!(sentence.len() > 10, "{self:?}");
        sentence
    }
}
