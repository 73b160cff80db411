//! Watches and calls that read changes: what is told, and how a client goes on.

mod clients;
mod states;
mod tokens;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::support::PATIENCE;
use super::{Answer, Running};

/// A client that watches.
pub struct Watch {
    stream: TcpStream,
    /// What has come of the chunk that has not come as a whole.
    chunk: Vec<u8>,
    text: String,
}

impl Watch {
    pub async fn begin(node: &Running, query: &str, headers: &str) -> Self {
        let mut stream = TcpStream::connect(node.address.api()).await.expect("a connection");
        let head = format!("GET /watch{query} HTTP/1.1\r\nHost: node\r\n{headers}\r\n");
        stream.write_all(head.as_bytes()).await.expect("sent");
        Self::answered(stream).await
    }

    /// Reads the head of the answer.
    async fn answered(mut stream: TcpStream) -> Self {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let byte = timeout(PATIENCE, stream.read_u8()).await.expect("an answer comes");
            head.push(byte.expect("the node does not close"));
        }
        Self { stream, chunk: Vec::new(), text: String::new() }
    }

    /// The chunks of HTTP that have come as a whole.
    fn decode(&mut self) {
        while let Some(end) = self.chunk.windows(2).position(|end| end == b"\r\n") {
            let length = std::str::from_utf8(&self.chunk[..end]).expect("text");
            let length = usize::from_str_radix(length, 16).expect("a length");
            let (begin, end) = (end + 2, end + 2 + length);
            if self.chunk.len() < end + 2 {
                break;
            }
            self.text.push_str(std::str::from_utf8(&self.chunk[begin..end]).expect("text"));
            self.chunk.drain(..end + 2);
        }
    }

    /// Reads until a text has come, and returns what has come before it since the last time.
    pub async fn until(&mut self, what: &str) -> String {
        let read = async {
            let mut bytes = vec![0; 16 * 1024];
            loop {
                if let Some(at) = self.text.find(what) {
                    let rest = self.text.split_off(at + what.len());
                    return std::mem::replace(&mut self.text, rest);
                }
                let length = self.stream.read(&mut bytes).await.expect("it reads");
                assert!(length > 0, "the node closed before {what:?} came; there was {:?}", self.text);
                self.chunk.extend_from_slice(&bytes[..length]);
                self.decode();
            }
        };
        timeout(PATIENCE, read).await.unwrap_or_else(|_| panic!("no {what:?} came"))
    }

    /// The token and the data of the next event of this name.
    pub async fn event(&mut self, name: &str) -> (String, serde_json::Value) {
        self.until(&format!("event: {name}\nid: ")).await;
        let token = self.until("\ndata: ").await.trim_end_matches("\ndata: ").to_owned();
        let data = self.until("\n\n").await;
        (token, serde_json::from_str(data.trim_end()).expect("data are JSON"))
    }

    async fn ends(mut self) {
        let mut rest = Vec::new();
        timeout(PATIENCE, self.stream.read_to_end(&mut rest)).await.expect("it ends").expect("it reads");
    }
}

async fn set(node: &Running, key: &str, value: &str) {
    let answer = node.ask(&format!("POST /rpc?key={key}"), &["Content-Type: text/plain"], value).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

async fn delete(node: &Running, key: &str) {
    assert_eq!(node.ask(&format!("DELETE /rpc?key={key}"), &[], "").await.status, 200);
}

async fn metric(node: &Running, name: &str) -> f64 {
    let answer = node.ask("GET /metrics", &[], "").await;
    let line = answer.body.lines().find(|line| line.split(' ').next() == Some(name)).unwrap_or_default();
    line.rsplit(' ').next().and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no metric {name}"))
}

/// Asks until something is so.
async fn until(is_so: impl AsyncFn() -> bool) {
    let asked = async { while !is_so().await {} };
    timeout(PATIENCE, asked).await.expect("it becomes so");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_tells_sets_deletes_and_expiries() {
    let node = Running::start(&[]).await;
    set(&node, "other", "v").await;
    let mut watch = Watch::begin(&node, "?prefix=a/", "").await;
    set(&node, "b", "not asked for").await;
    let answer = node.ask("POST /rpc?key=a/1&value=one&ttl=1500ms", &[], "").await;
    let (token, data) = watch.event("set").await;
    assert_eq!((&data["key"], &data["value"]), (&"a/1".into(), &"one".into()), "{data}");
    assert_eq!(data["position"], answer.header("bitacora-position").expect("a position"));
    let (_, data) = watch.event("delete").await;
    assert_eq!((&data["key"], &data["reason"]), (&"a/1".into(), &"expired".into()), "{data}");
    set(&node, "a/2", "two").await;
    delete(&node, "a/2").await;
    delete(&node, "a/3").await;
    set(&node, "a/4", "four").await;
    let (_, data) = watch.event("set").await;
    assert_eq!(data["key"], "a/2");
    let (_, data) = watch.event("delete").await;
    assert_eq!((&data["key"], &data["reason"]), (&"a/2".into(), &"deleted".into()), "{data}");
    let (_, data) = watch.event("set").await;
    assert_eq!(data["key"], "a/4", "a delete of a key that is not there is no event");
    drop(watch);

    // On with the token, as a browser sends it; it wins over the URL that the browser began with.
    let again = format!("Last-Event-ID: {token}\r\n");
    let mut watch = Watch::begin(&node, "?prefix=a/&initial=true&since=x", &again).await;
    for expected in ["delete", "set"] {
        watch.event(expected).await;
    }
    watch.event("current").await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn initial_begins_with_what_is_there_without_values_if_so_asked() {
    let node = Running::start(&[]).await;
    for key in ["a", "b", "c"] {
        set(&node, key, "value").await;
    }
    delete(&node, "b").await;
    node.value("a").await;
    let mut watch = Watch::begin(&node, "?initial=true&values=false", "").await;
    let before = watch.until("event: current\n").await;
    assert_eq!(before.matches("event: set\n").count(), 3, "the third is the fence: {before}");
    assert!(!before.contains("event: delete") && !before.contains("value"), "{before}");
    drop(watch);
    let head = node.ask("HEAD /watch", &[], "").await;
    assert_eq!((head.status, head.header("content-type")), (200, Some("text/event-stream")));
    assert_eq!(head.header("x-accel-buffering"), Some("no"), "{head:?}");
    assert_eq!(head.header("cache-control"), Some("no-store"), "{head:?}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_again_and_again_is_told_the_same() {
    let node = Running::start(&[]).await;
    let ask = async |query: &str| {
        let answer = node.ask(&format!("GET /rpc/changes?{query}"), &[], "").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    };
    set(&node, "a", "one").await;
    set(&node, "b", "two").await;
    node.value("a").await;
    let first = ask("initial=true&limit=1").await;
    assert_eq!((first["events"][0]["key"].as_str(), first["current"].as_bool()), (Some("a"), Some(false)));
    let next = |list: &serde_json::Value| list["next"].as_str().expect("a token").to_owned();
    let rest = ask(&format!("since={}", next(&first))).await;
    let keys: Vec<_> = rest["events"].as_array().expect("a list").iter().map(|event| &event["key"]).collect();
    assert_eq!(keys, ["b", "fence"]);
    assert_eq!(rest["current"], true, "{rest}");
    // One that waits is answered when something happens.
    let since = next(&rest);
    let query = format!("since={since}&key=a&wait=30s");
    let (waited, ()) = tokio::join!(ask(&query), async {
        while metric(&node, "bitacora_watchers").await < 1.0 {}
        delete(&node, "a").await;
    });
    assert_eq!(waited["events"][0]["event"], "delete", "{waited}");
    let nothing = ask(&format!("since={}", next(&waited))).await;
    assert_eq!((nothing["events"].as_array().map(Vec::len), &nothing["current"]), (Some(0), &true.into()));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_is_refused() {
    let node = Running::start(&[]).await;
    let (long, longest) = ("p".repeat(1025), "p".repeat(1024));
    for query in [
        "since=x",
        "prefix=a&key=b",
        "key=",
        &format!("prefix={long}"),
        "initial=yes",
        "values=1",
        "limit=5&x=1",
    ] {
        for path in ["/watch", "/rpc/changes"] {
            node.ask(&format!("GET {path}?{query}"), &[], "").await.refusal(400);
        }
    }
    for query in ["limit=0", "limit=1001", "limit=x", "wait=61s", "wait=x"] {
        node.ask(&format!("GET /rpc/changes?{query}"), &[], "").await.refusal(400);
    }
    let refusal = node.ask("GET /rpc/changes?wait=30", &[], "").await.refusal(400);
    assert!(refusal.contains("write 30s or 30ms"), "{refusal}");
    assert_eq!(node.ask("GET /rpc/changes?wait=0", &[], "").await.status, 200);
    node.ask("GET /watch", &["Last-Event-ID: x"], "").await.refusal(400);
    let refused: Answer = node.ask("POST /watch", &[], "").await;
    refused.refusal(405);
    Watch::begin(&node, &format!("?prefix={longest}"), "").await.event("current").await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_are_refused_and_hold_nobody_up() {
    let node = Running::start(&["--max-watchers", "2"]).await;
    let first = Watch::begin(&node, "", "").await;
    let mut second = Watch::begin(&node, "", "").await;
    for path in ["/watch", "/rpc/changes"] {
        let answer = node.ask(&format!("GET {path}"), &[], "").await;
        assert!(answer.refusal(503).contains("MAX_WATCHERS"), "{answer:?}");
        assert_eq!(answer.header("retry-after"), Some("1"), "{answer:?}");
    }
    drop(first);
    while metric(&node, "bitacora_watchers").await > 1.0 {}
    set(&node, "a", "v").await;
    second.event("set").await;
    Watch::begin(&node, "", "").await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_holds_little_and_slows_nobody_down() {
    let node = Running::start(&[]).await;
    let mut stalled = Vec::new();
    for _ in 0..20 {
        stalled.push(Watch::begin(&node, "", "").await);
    }
    let mut reading = Watch::begin(&node, "?values=false", "").await;
    let value = "v".repeat(100 * 1024);
    for number in 0..300 {
        set(&node, &format!("k{}", number % 30), &value).await;
    }
    set(&node, "last", "v").await;
    while reading.event("set").await.1["key"] != "last" {}
    let held = metric(&node, "bitacora_request_memory_bytes").await;
    assert!(held < 20.0 * 1024.0 * 1024.0, "20 stalled clients hold {held} bytes");
    assert!(metric(&node, "bitacora_watch_buffer_bytes").await < 17.0 * 1024.0 * 1024.0);
    // One that reads at last has lost states in between, and is told the last ones.
    let mut late = stalled.pop().expect("one of them");
    while late.event("set").await.1["key"] != "last" {}
    assert!(metric(&node, "bitacora_watch_conflations_total").await >= 1.0);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_says_so_and_ends() {
    let node = Running::start(&[]).await;
    let mut watch = Watch::begin(&node, "", "").await;
    let (stopped, ()) = tokio::join!(timeout(PATIENCE, node.stop()), async {
        let (token, data) = watch.event("bye").await;
        assert!(!token.is_empty() && data["reason"].as_str().is_some_and(|why| why.contains("stopping")));
        watch.ends().await;
    });
    stopped.expect("a watch does not hold up a stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_moves_the_token_on_though_nothing_matches() {
    let node = Running::start(&[]).await;
    let mut watch = Watch::begin(&node, "?prefix=none/", "").await;
    let (first, _) = watch.event("current").await;
    set(&node, "a", "v").await;
    let (second, data) = watch.event("progress").await;
    assert_ne!(first, second, "{data}");
    assert!(data["position"].as_str().is_some_and(|told| told.contains(":0")), "{data}");
    node.stop().await;
}
