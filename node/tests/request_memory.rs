//! A node whose memory for requests is spent refuses what needs some, does nothing by halves, and goes on with small reads.

#[path = "support/rpc.rs"]
mod rpc;

use std::sync::Arc;
use std::time::Duration;

use bitacora_node::cluster::Address;
use bitacora_node::cluster::fixed::FixedMembership;
use bitacora_node::data_dir::DataDir;
use bitacora_node::log::embedded::EmbeddedLog;
use bitacora_node::node::{Node, Parts};
use bitacora_node::settings::{Cli, Command};
use bitacora_protocol::http::OUT_OF_MEMORY_HEADER;
use bitacora_protocol::rpc::{HandshakeMatch, HandshakeResponse, Request, put_frame};
use bitacora_protocol::{Consistency, Operation, ReadOptions, WriteCondition, WriteOptions};
use clap::Parser as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use self::rpc::{put_first_call, rpc_answers};

/// What these nodes are told: the least memory that the largest value and frame allow, about.
const LIMITS: [&str; 6] =
    ["--request-memory", "8MiB", "--max-value-bytes", "1000000", "--max-frame-bytes", "2MiB"];
/// A value that many of fit into no budget of that size.
const LARGE: usize = 900_000;
/// Of such values.
const GREEDY: usize = 40;

struct Running {
    node: Node,
    http: String,
    rpc: String,
    _folder: tempfile::TempDir,
}

async fn start() -> Running {
    start_with(&[], None).await
}

/// A node with further flags and perhaps another member.
async fn start_with(flags: &[&str], other: Option<String>) -> Running {
    let folder = tempfile::tempdir().expect("a folder");
    let cli =
        Cli::try_parse_from([&["bitacora-node", "dev"], &LIMITS[..], flags].concat()).expect("settings");
    let Command::Dev(settings) = cli.command else { panic!("dev was asked for") };
    let data_dir = |name: &str| DataDir::open(&folder.path().join(name)).expect("a folder");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let rpc_listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let http = listener.local_addr().expect("bound");
    let rpc = rpc_listener.local_addr().expect("bound");
    let address = Address { host: http.ip().to_string(), api_port: http.port(), avro_port: rpc.port() };
    let members = std::iter::once(address.api()).chain(other).collect();
    let node = Node::start(Parts {
        log: Arc::new(EmbeddedLog::open(data_dir("log"), "topic", 1).expect("a log")),
        membership: Arc::new(FixedMembership::new(members, &address.api())),
        data_dir: data_dir("node"),
        listener,
        rpc_listener,
        address,
        original_nodes: false,
        settings: settings.node,
        hangups: tokio::sync::watch::channel(()).1,
    })
    .expect("it starts");
    let progress = node.progress();
    let mut changed = progress.watch();
    while progress.unready().is_some() || !progress.restored() {
        let change = tokio::time::timeout(Duration::from_secs(30), changed.changed()).await;
        change.expect("caught up in time").expect("the node lives");
    }
    Running { node, http: http.to_string(), rpc: rpc.to_string(), _folder: folder }
}

/// Sends what it is given on a connection of its own, and reads until the node closes it.
async fn answer(address: &str, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    stream.write_all(request).await.expect("sent");
    let mut text = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut text)).await;
    read.expect("answered in time").expect("an answer");
    String::from_utf8_lossy(&text).into_owned()
}

fn request(method: &str, query: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("{method} /rpc?{query} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}")
        .into_bytes()
}

/// A metric's value.
async fn metric(address: &str, name: &str) -> f64 {
    let text = answer(address, b"GET /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    let value = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
    value.expect(name).parse().expect("a number")
}

/// Waits until a metric is as it is wanted.
async fn wait_for_metric(address: &str, name: &str, wanted: impl Fn(f64) -> bool) {
    let waiting = async { while !wanted(metric(address, name).await) {} };
    tokio::time::timeout(Duration::from_secs(30), waiting).await.expect(name);
}

/// Connections that have sent most of a large body and no more. Returns them once the node has refused one of them.
async fn spend_memory(address: &str) -> Vec<TcpStream> {
    let whole = request("POST", "key=greedy", &"v".repeat(LARGE));
    let mut greedy = Vec::new();
    for _ in 0..GREEDY {
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        // Those that are refused may be closed.
        let _ = stream.write_all(&whole[..whole.len() - 1]).await;
        greedy.push(stream);
    }
    wait_for_metric(address, "bitacora_request_memory_refusals_total", |refusals| refusals > 0.0).await;
    greedy
}

#[tokio::test(flavor = "multi_thread")]
async fn greedy_bodies_are_refused_and_small_reads_go_on() {
    let Running { node, http, .. } = start().await;
    let written = answer(&http, &request("POST", "key=small", "value")).await;
    assert!(written.starts_with("HTTP/1.1 200"), "{written}");
    // A write is acknowledged before it is applied.
    wait_for_metric(&http, "bitacora_store_records", |records| records > 0.0).await;

    let mut greedy = spend_memory(&http).await;
    let limit = metric(&http, "bitacora_request_memory_limit_bytes").await;
    assert!(metric(&http, "bitacora_request_memory_bytes").await <= limit);
    let read = answer(&http, &request("GET", "key=small", "")).await;
    assert!(read.starts_with("HTTP/1.1 200") && read.contains("\"value\":\"value\""), "{read}");

    let mut refused = 0;
    for stream in &mut greedy {
        let mut text = vec![0; 4096];
        let Ok(Ok(length)) = tokio::time::timeout(Duration::from_millis(20), stream.read(&mut text)).await
        else {
            continue;
        };
        let text = String::from_utf8_lossy(&text[..length]).into_owned();
        if length > 0 {
            assert!(text.starts_with("HTTP/1.1 503") && text.contains("retry-after: 1"), "{text}");
            assert!(text.contains("REQUEST_MEMORY") && text.contains("\"mayTakeEffect\":false"), "{text}");
            refused += 1;
        }
    }
    assert!(refused > 0, "no refusal was read");

    // Who has gone away gives back what was taken, and nothing of what was refused was written.
    drop(greedy);
    wait_for_metric(&http, "bitacora_request_memory_bytes", |bytes| bytes == 0.0).await;
    let read = answer(&http, &request("GET", "key=greedy", "")).await;
    assert!(read.starts_with("HTTP/1.1 404"), "{read}");
    let written = answer(&http, &request("POST", "key=large", &"v".repeat(LARGE))).await;
    assert!(written.starts_with("HTTP/1.1 200"), "{}", &written[..200]);
    node.stop().await;
}

fn batch(lines: &str) -> Vec<u8> {
    let length = lines.len();
    format!(
        "POST /rpc/batch HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{lines}"
    )
    .into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_larger_than_the_memory_waits_for_itself() {
    let Running { node, http, .. } = start().await;
    let value = "v".repeat(LARGE);
    let lines: String = (0..GREEDY)
        .map(|key| format!("{{\"op\":\"set\",\"key\":\"{key}\",\"value\":\"{value}\"}}\n"))
        .collect();
    let results = answer(&http, &batch(&lines)).await;
    assert_eq!(results.matches("\"status\":200").count(), GREEDY, "{results}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_finds_no_memory_fails_alone() {
    let Running { node, http, .. } = start().await;
    // The line has six bytes for each of the value's.
    let value = "\\u0001".repeat(1_000_000);
    let lines =
        format!("{{\"op\":\"set\",\"key\":\"k\",\"value\":\"{value}\"}}\n{{\"op\":\"get\",\"key\":\"k\"}}\n");
    let results = answer(&http, &batch(&lines)).await;
    let (first, second) = (results.find("\"status\":503"), results.find("\"status\":404"));
    assert!(first.is_some() && first < second && results.contains("REQUEST_MEMORY"), "{results}");
    assert!(results.contains("\"mayTakeEffect\":false"), "{results}");
    node.stop().await;
}

/// Writes a large value, and waits until it is the key's.
async fn hold_large(http: &str) {
    let written = answer(http, &request("POST", "key=large&visible=here", &"v".repeat(LARGE))).await;
    assert!(written.starts_with("HTTP/1.1 200"), "{}", &written[..200]);
}

/// What waits behind a read that is not answered for a while, of a position that the log does not have yet.
const SLOW_READ: (&str, Duration) = ("0:1000000", Duration::from_secs(2));

#[tokio::test(flavor = "multi_thread")]
async fn results_that_wait_for_their_place_are_counted() {
    let Running { node, http, .. } = start().await;
    hold_large(&http).await;
    let (position, wait) = SLOW_READ;
    let uuid = "9b2c8f1e-5a57-4a0c-8f29-3f4b7d5f8a61";
    let repeated = request("POST", "key=again&visible=here", &"w".repeat(LARGE));
    let repeated = String::from_utf8(repeated)
        .expect("text")
        .replace("host: a", &format!("host: a\r\nidempotency-key: {uuid}"));
    assert!(answer(&http, repeated.as_bytes()).await.starts_with("HTTP/1.1 200"));
    for line in [
        r#"{"op":"set","key":"large","value":"v","ifAbsent":true}"#.to_owned(),
        r#"{"op":"get","key":"large","consistency":"strong"}"#.to_owned(),
        format!(r#"{{"op":"set","key":"again","value":"w","uuid":"{uuid}"}}"#),
    ] {
        let slow = format!(
            r#"{{"op":"get","key":"k","consistency":"session","position":"{position}","timeout":"{}ms"}}"#,
            wait.as_millis()
        );
        let lines = format!("{slow}\n{}", format!("{line}\n").repeat(GREEDY));
        let results = answer(&http, &batch(&lines)).await;
        let refused = results.matches("REQUEST_MEMORY").count();
        assert!(refused > 0 && refused < GREEDY, "{refused} refused: {line}");
        assert_eq!(results.matches("\"status\":").count(), GREEDY + 1, "{line}");
        wait_for_metric(&http, "bitacora_request_memory_bytes", |bytes| bytes == 0.0).await;
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_of_a_batch_over_rpc_that_wait_are_counted() {
    let Running { node, http, rpc, .. } = start().await;
    hold_large(&http).await;
    let read = ReadOptions { consistency: Consistency::Strong, ..ReadOptions::default() };
    let write = WriteOptions { condition: WriteCondition::Absent, ..WriteOptions::default() };
    for operation in
        [Operation::Get { key: "large", read }, Operation::Set { key: "large", value: "v", ttl: 0, write }]
    {
        let mut sent = Vec::new();
        put_first_call(&mut sent, 1, &Request::BatchRecords(vec![operation; GREEDY]));
        let answers = rpc_answers(&rpc, &sent, 1).await;
        let text = String::from_utf8_lossy(&answers[0].1).into_owned();
        let refused = text.matches("REQUEST_MEMORY").count();
        assert!(refused > 0 && refused < GREEDY, "{refused} refused: {operation:?}");
        wait_for_metric(&http, "bitacora_request_memory_bytes", |bytes| bytes == 0.0).await;
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_frame_is_refused_and_its_connection_goes_on() {
    let Running { node, http, rpc, .. } = start().await;
    let greedy = spend_memory(&http).await;
    let large = "v".repeat(LARGE);
    let mut sent = Vec::new();
    let set = Request::SetRecord { key: "refused", value: &large, ttl: 0 };
    put_first_call(&mut sent, 1, &Request::GetRecord { key: "small" });
    put_frame(&mut sent, 2, |out| set.encode(out));
    put_frame(&mut sent, 3, |out| Request::GetRecord { key: "refused" }.encode(out));
    let answers = rpc_answers(&rpc, &sent, 3).await;
    let text = |serial| {
        let (_, answer) = answers.iter().find(|(found, _)| *found == serial).expect("answered");
        String::from_utf8_lossy(answer)
    };
    assert!(text(2).contains("REQUEST_MEMORY"), "{answers:?}");
    assert!(!text(1).contains("REQUEST_MEMORY") && !text(3).contains("REQUEST_MEMORY"), "{answers:?}");
    assert!(!text(3).contains("vvv"), "the set was refused");
    drop(greedy);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_first_frame_has_its_handshake_answered() {
    let Running { node, http, rpc, .. } = start().await;
    let greedy = spend_memory(&http).await;
    let large = "v".repeat(LARGE);
    let mut sent = Vec::new();
    put_first_call(&mut sent, 1, &Request::SetRecord { key: "refused", value: &large, ttl: 0 });
    put_frame(&mut sent, 2, |out| Request::GetRecord { key: "refused" }.encode(out));
    let answers = rpc_answers(&rpc, &sent, 2).await;
    let [(1, first), (2, second)] = &answers[..] else { panic!("{answers:?}") };
    let (handshake, refusal) = HandshakeResponse::decode(first).expect("a handshake comes first");
    assert_eq!(handshake.matched, HandshakeMatch::Both);
    let text = |answer: &[u8]| String::from_utf8_lossy(answer).into_owned();
    assert!(text(refusal).contains("REQUEST_MEMORY"), "{}", text(refusal));
    assert!(!text(second).contains("REQUEST_MEMORY") && !text(second).contains("vvv"), "{}", text(second));
    drop(greedy);
    node.stop().await;
}

/// A member that gives the same answer to everybody.
async fn member(answer: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            // The node may have given up.
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    address.to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_answer_without_memory_is_no_miss() {
    let flags = ["--peer-reads", "always", "--external-request-timeout", "30s"];
    let head = "bitacora-position: 0:5\r\nconnection: close\r\n";
    // Twice of it is more than all memory.
    let length = 5_000_000;
    let record = "x".repeat(length);
    let large = format!("HTTP/1.1 200 OK\r\n{head}content-length: {length}\r\n\r\n{record}");
    let refused =
        |headers: &str| format!("HTTP/1.1 503 Service Unavailable\r\n{headers}content-length: 0\r\n\r\n");
    let by_header = refused(&format!("{OUT_OF_MEMORY_HEADER}: yes\r\nconnection: close\r\n"));
    // As members from before that header do.
    let by_two_headers = refused(&format!("retry-after: 1\r\n{head}"));
    for from_member in [large, by_header, by_two_headers] {
        let Running { node, http, .. } = start_with(&flags, Some(member(from_member).await)).await;
        let read = answer(&http, &request("GET", "key=k", "")).await;
        assert!(read.starts_with("HTTP/1.1 503") && read.contains("REQUEST_MEMORY"), "{read}");
        assert!(read.contains("retry-after: 1"), "{read}");
        node.stop().await;
    }
    let unready = "HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    let Running { node, http, .. } = start_with(&flags, Some(member(unready.to_owned()).await)).await;
    let read = answer(&http, &request("GET", "key=k", "")).await;
    assert!(read.starts_with("HTTP/1.1 404"), "a member that does not know changes nothing: {read}");
    node.stop().await;
}
