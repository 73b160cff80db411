//! A client that closes its sending half after its request is answered in full.

use bitacora_protocol::rpc::{
    FrameLimits, FrameReader, HandshakeRequest, PROTOCOL_HASH, Request, ScanRequest, put_frame,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::support::PATIENCE;
use super::{Answer, Running, read_to_end, request};

/// Sends bytes, closes the sending half, and reads what comes back.
async fn half_closed(address: &str, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    stream.write_all(bytes).await.expect("sent");
    stream.shutdown().await.expect("half closed");
    let mut answer = Vec::new();
    let read = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the node closes in time");
    read.expect("no reset");
    answer
}

/// A request that says nothing about how long the connection is to last.
fn lasting(line: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("{line} HTTP/1.1\r\nHost: node\r\nContent-Length: {length}\r\n\r\n{body}").into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_over_http() {
    let running = Running::start(&[]).await;
    let http = running.address.api();
    for i in 0..20 {
        let answer = half_closed(&http, &lasting(&format!("POST /rpc?key=k{i}&value=v"), "")).await;
        assert_eq!(Answer::parse(&String::from_utf8_lossy(&answer)).status, 200, "set {i}");
        let answer = half_closed(&http, &lasting("DELETE /rpc?key=none", "")).await;
        assert_eq!(Answer::parse(&String::from_utf8_lossy(&answer)).status, 200, "delete {i}");
    }
    assert_eq!(running.value("k19").await.as_deref(), Some("v"));
    for (line, length) in
        [("GET /rpc?key=k1", 100), ("GET /rpc/scan?limit=10000", 1_000), ("GET /status", 100)]
    {
        let answer = half_closed(&http, &lasting(line, "")).await;
        let answer = Answer::parse(&String::from_utf8_lossy(&answer));
        assert_eq!(answer.status, 200, "{line}");
        assert_eq!(answer.header("content-length"), Some(&*answer.body.len().to_string()), "{line}");
        assert!(answer.body.len() > length, "{line}: {answer:?}");
    }
    let whole = half_closed(&http, &lasting("GET /snapshot", "")).await;
    assert!(whole.ends_with(b"\r\n0\r\n\r\n") && whole.len() > 10_000, "{} bytes", whole.len());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_over_http() {
    let running = Running::start(&[]).await;
    let sets: Vec<u8> = (0..50).flat_map(|i| lasting(&format!("POST /rpc?key=k{i}&value=v"), "")).collect();
    let answers = String::from_utf8(half_closed(&running.address.api(), &sets).await).expect("text");
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 50, "{answers}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_500_lines() {
    let running = Running::start(&[]).await;
    let lines: String =
        (0..500).map(|i| format!("{{\"op\":\"set\",\"key\":\"k{i}\",\"value\":\"v\"}}\n")).collect();
    let answer = half_closed(&running.address.api(), &lasting("POST /rpc/batch", &lines)).await;
    let answer = String::from_utf8(answer).expect("text");
    assert_eq!(answer.matches("\"status\":200").count(), 500, "{answer}");
    assert!(answer.ends_with("\r\n0\r\n\r\n"), "{answer}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_gone_holds_no_connection() {
    let running = Running::start(&["--max-connections", "1"]).await;
    for i in 0..5 {
        let mut stream = TcpStream::connect(running.address.api()).await.expect("a connection");
        stream.write_all(&lasting(&format!("POST /rpc?key=k{i}&value=v"), "")).await.expect("sent");
        drop(stream);
        // With the one connection taken, this would wait.
        let mut next = TcpStream::connect(running.address.api()).await.expect("a connection");
        next.write_all(&request("GET /health/live", &[], b"")).await.expect("sent");
        assert_eq!(Answer::parse(&read_to_end(&mut next).await).status, 200);
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_over_rpc() {
    const SETS: i32 = 500;
    let running = Running::start(&[]).await;
    let mut sent = Vec::new();
    for serial in 0..SETS {
        let key = format!("k{serial}");
        put_frame(&mut sent, serial, |out| {
            if serial == 0 {
                HandshakeRequest {
                    client_hash: *PROTOCOL_HASH,
                    client_protocol: None,
                    server_hash: *PROTOCOL_HASH,
                }
                .encode(out);
            }
            Request::SetRecord { key: &key, value: "v", ttl: 0 }.encode(out);
        });
    }
    let scan = ScanRequest { prefix: "", start: "", end: "", limit: 10, cursor: "" };
    put_frame(&mut sent, SETS, |out| Request::Scan(scan).encode(out));
    let answers = half_closed(&running.address.avro(), &sent).await;
    let mut frames = FrameReader::new(FrameLimits { bytes: 1 << 20, buffers: 10 });
    let (mut rest, mut scratch, mut serials) = (&answers[..], Vec::new(), Vec::new());
    while let Some(frame) = frames.next(rest, &mut scratch).expect("frames") {
        serials.push(frame.serial);
        rest = &rest[frame.length..];
    }
    serials.sort_unstable();
    assert_eq!(serials, (0..=SETS).collect::<Vec<_>>());
    assert!(rest.is_empty());
    running.stop().await;
}
