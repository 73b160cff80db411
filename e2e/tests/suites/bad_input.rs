//! Whatever is sent, the answer is a sentence, the node serves on, and nothing is stored.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use e2e::cluster::{Cluster, Options};
use e2e::http::{Answer, RawConnection, encode, raw, read_answer};
use e2e::runner::{Ctx, Test};
use e2e::tests;
use tokio::io::AsyncWriteExt;

pub fn tests() -> Vec<Test> {
    tests![
        Servers: wrong_requests_are_refused_and_change_nothing, limits_are_exact,
            a_slow_body_is_given_up, a_slow_header_is_given_up, an_endless_body_is_cut_off, half_a_body_sets_nothing
    ]
}

const PATIENCE: Duration = Duration::from_secs(15);

/// One node and one key that must stay as it is.
async fn node_with_canary(ctx: &Ctx, options: Options) -> Result<Cluster> {
    let cluster = ctx.cluster_with(1, options).await?;
    cluster.nodes[0].api().set("canary", "alive").await?.expect(200);
    cluster.nodes[0].has("canary", Some("alive")).await;
    Ok(cluster)
}

async fn nothing_changed(cluster: &Cluster) -> Result<()> {
    let answer = cluster.nodes[0].api().get("canary").await?.expect(200);
    assert_eq!(answer.value().as_deref(), Some("alive"), "{answer}");
    cluster.nodes[0].api().health().await?.expect(200);
    let records = cluster.topic.read_all().await?;
    assert_eq!(records.len(), 1, "only the canary is in the log: {records:?}");
    Ok(())
}

fn request(line: &str, headers: &[&str], body: &[u8]) -> Vec<u8> {
    let mut head = format!("{line} HTTP/1.1\r\nHost: node\r\n");
    for header in headers {
        head.push_str(&format!("{header}\r\n"));
    }
    if !body.is_empty() || line.starts_with("POST") {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    [head.as_bytes(), body].concat()
}

/// A message for people: it starts with a word, has several, and does not leak internals.
#[track_caller]
fn is_a_sentence(what: &str, answer: &Answer) {
    let kind = answer.header("content-type").unwrap_or_default();
    assert!(kind.starts_with("application/json"), "{what}: an error is JSON: {answer}");
    let message = answer.message();
    assert!(message.split_whitespace().count() >= 3, "{what}: not a sentence: {message:?}");
    for internal in ["panick", "unwrap", "Err(", "Some(", ".rs:"] {
        assert!(!message.contains(internal), "{what}: {internal:?} in {message:?}");
    }
}

async fn wrong_requests_are_refused_and_change_nothing(ctx: Ctx) -> Result<()> {
    let cluster = node_with_canary(&ctx, Options::new().env("MAX_VALUE_BYTES", "10000")).await?;
    let port = cluster.nodes[0].api_port;
    let form = "Content-Type: application/x-www-form-urlencoded";
    let (long_key, long_value) = ("k".repeat(1025), "v".repeat(10_001));
    let long_unicode_key = encode(&"é".repeat(513));
    let mut cases: Vec<(String, Vec<u8>, u16)> = Vec::new();
    let mut case = |line: &str, headers: &[&str], body: &[u8], status: u16| {
        let shown: String = line.chars().take(80).collect();
        let what = format!("{shown} {headers:?} with {} bytes", body.len());
        cases.push((what, request(line, headers, body), status));
    };
    // Keys, on every call that takes one.
    let calls = ["GET /rpc", "HEAD-GET /rpc", "GET /rpc/cluster", "POST /rpc", "DELETE /rpc"];
    for call in calls.iter().filter(|call| !call.starts_with("HEAD")) {
        let (extra, body): (&str, &[u8]) =
            if call.starts_with("POST") { ("&value=v", b"") } else { ("", b"") };
        for query in [
            String::new(),
            "?".to_string(),
            format!("?key={extra}"),
            format!("?key{extra}"),
            format!("?key=%20{extra}"),
            format!("?key=%09%20%0A{extra}"),
            format!("?key={long_key}{extra}"),
            format!("?key={long_unicode_key}{extra}"),
            format!("?key=a&key=b{extra}"),
            format!("?key=canary&key=canary{extra}"),
            format!("?key=canary&unknown=1{extra}"),
            format!("?key=canary&Key=b{extra}"),
            format!("?key=%zz{extra}"),
            format!("?key=%{extra}"),
            format!("?key=a%4{extra}"),
            format!("?key=%ff{extra}"),
            format!("?key=%c3%28{extra}"),
            format!("?key=%ed%a0%80{extra}"),
            format!("?key=canary&%zz=1{extra}"),
        ] {
            case(&format!("{call}{query}"), &[], body, 400);
        }
    }
    // Reads.
    for query in
        ["consistency=maybe", "consistency=", "position=abc", "position=1", "position=-1:5", "position=0:x"]
    {
        case(&format!("GET /rpc?key=canary&{query}"), &[], b"", 400);
    }
    for query in ["timeout=abc", "timeout=-1", "timeout=99999999999999999999"] {
        case(&format!("GET /rpc?key=canary&consistency=session&position=0:0&{query}"), &[], b"", 400);
    }
    case("GET /rpc?key=canary", &["Bitacora-Position: what"], b"", 400);
    // Writes.
    case("POST /rpc?key=canary", &[], b"", 400);
    case("POST /rpc?key=canary&value=a&value=b", &[], b"", 400);
    case("POST /rpc?key=canary&value=a", &["Content-Type: text/plain"], b"b", 400);
    case("POST /rpc?key=canary&value=a", &[form], b"value=b", 400);
    case("POST /rpc?key=canary", &[form], b"key=other&value=b", 400);
    case("POST /rpc", &[form], b"key=&value=b", 400);
    case("POST /rpc?key=canary&value=%ff", &[], b"", 400);
    case("POST /rpc?key=canary", &["Content-Type: text/plain"], b"not \xff\xfe text", 400);
    case("POST /rpc?key=canary", &["Content-Type: application/octet-stream"], b"\x00\x80", 400);
    case("POST /rpc?key=canary", &["Content-Type: text/plain"], long_value.as_bytes(), 413);
    case("POST /rpc?key=canary", &[form], format!("value={long_value}").as_bytes(), 413);
    case("POST /rpc?key=canary", &["Content-Type: text/plain"], &vec![b'v'; 3_000_000], 413);
    case(&format!("POST /rpc?key=canary&value={long_value}"), &[], b"", 413);
    for ttl in [
        "-5",
        "abc",
        "0",
        "0s",
        "60",
        "10x",
        "99999999999999999999",
        "",
        "1.5s",
        "%20",
        "+5",
        "5%20s",
        "1e3",
        "s",
        "9223372036854775807",
        "9223372036854775h",
        "NaN",
        "%D9%A3s",
    ] {
        case(&format!("POST /rpc?key=canary&value=v&ttl={ttl}"), &[], b"", 400);
    }
    case("POST /rpc?key=canary&value=v&ttl=1s&ttl=2s", &[], b"", 400);
    // A delete or a read takes no value and no ttl.
    case("DELETE /rpc?key=canary&ttl=5s", &[], b"", 400);
    case("GET /rpc?key=canary&value=v", &[], b"", 400);
    // Paths and methods.
    for path in [
        "/nothing",
        "/rpc/nothing",
        "/RPC?key=canary",
        "//rpc?key=canary",
        "/health/nothing",
        "/rpc/cluster/x",
    ] {
        case(&format!("GET {path}"), &[], b"", 404);
    }
    for line in [
        "PUT /rpc?key=canary&value=v",
        "PATCH /rpc?key=canary",
        "OPTIONS /rpc",
        "POST /rpc/cluster?key=canary&value=v",
        "DELETE /rpc/cluster?key=canary",
        "POST /health",
        "DELETE /status",
        "POST /metrics",
        "BREW /rpc?key=canary",
    ] {
        case(line, &[], b"", 405);
    }
    for (what, bytes, status) in &cases {
        let answer = raw(port, bytes, PATIENCE).await.with_context(|| what.clone())?;
        let answer =
            answer.with_context(|| format!("{what}: the connection was closed without an answer"))?;
        assert_eq!(answer.status, *status, "{what}: {answer}");
        is_a_sentence(what, &answer);
        assert_eq!(answer.header("allow").is_some(), *status == 405, "{what}: Allow: {answer}");
        let canary = raw(port, &request("GET /rpc?key=canary", &[], b""), PATIENCE).await?;
        let canary = canary.with_context(|| format!("after {what} the node does not answer"))?;
        assert_eq!(canary.value().as_deref(), Some("alive"), "after {what}: {canary}");
    }
    // What is no HTTP at all gets a 400 or a 431, or is hung up on.
    let huge_header =
        format!("GET /rpc?key=canary HTTP/1.1\r\nHost: node\r\nX: {}\r\n\r\n", "x".repeat(2_000_000));
    let many_headers =
        format!("GET /rpc?key=canary HTTP/1.1\r\nHost: node\r\n{}\r\n", "A: b\r\n".repeat(50_000));
    let long_line = request(&format!("GET /rpc?key={}", "k".repeat(2_000_000)), &[], b"");
    let not_http: [(&str, &[u8]); 6] = [
        ("a huge header", huge_header.as_bytes()),
        ("fifty thousand headers", many_headers.as_bytes()),
        ("a request line of two megabytes", &long_line),
        ("no HTTP", b"\x16\x03\x01\x02\x00 this is TLS\r\n\r\n"),
        (
            "two lengths",
            b"POST /rpc?key=canary HTTP/1.1\r\nHost: n\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        ),
        ("a negative length", b"POST /rpc?key=canary HTTP/1.1\r\nHost: n\r\nContent-Length: -1\r\n\r\nab"),
    ];
    for (what, bytes) in not_http {
        if let Some(answer) = raw(port, bytes, PATIENCE).await.with_context(|| what.to_string())? {
            assert!(matches!(answer.status, 400 | 414 | 431), "{what}: {answer}");
        }
    }
    nothing_changed(&cluster).await
}

async fn limits_are_exact(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster_with(1, Options::new().env("MAX_VALUE_BYTES", "1000")).await?;
    let node = &cluster.nodes[0];
    let api = node.api();
    for key in ["k".repeat(1024), "é".repeat(512), "🦀".repeat(256)] {
        api.set(&key, "value").await?.expect(200);
        node.has(&key, Some("value")).await;
        let longer = api.set(&format!("{key}k"), "value").await?.expect(400);
        assert!(longer.message().contains("1024"), "the limit is named: {longer}");
    }
    for value in ["v".repeat(1000), "é".repeat(500)] {
        api.set("key", &value).await?.expect(200);
        node.has("key", Some(&value)).await;
        let larger = api.set("key", &format!("{value}v")).await?.expect(413);
        assert!(larger.message().contains("1000"), "the limit is named: {larger}");
        node.has("key", Some(&value)).await;
    }
    // A form may spell each byte with three.
    let form = format!("value={}", encode(&"&".repeat(1000)));
    let headers = [("content-type", "application/x-www-form-urlencoded")];
    api.send(reqwest::Method::POST, "/rpc?key=form", &headers, form.into_bytes()).await?.expect(200);
    node.has("form", Some(&"&".repeat(1000))).await;
    Ok(())
}

/// Sends `head` and then a byte now and then, and expects a 408 or a close within `limit`.
async fn dribble(port: u16, what: &str, head: &[u8], limit: Duration) -> Result<Option<Answer>> {
    let mut connection = RawConnection::open(port).await?;
    connection.write(head).await?;
    let (mut reader, mut writer) = connection.split();
    let dribble = async {
        // Until the node closes.
        while writer.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        std::future::pending::<()>().await;
    };
    let start = Instant::now();
    let answer = tokio::select! {
        answer = read_answer(&mut reader, limit + PATIENCE) => answer.with_context(|| format!("dribbling {what}"))?,
        () = dribble => unreachable!("it is pending"),
    };
    let took = start.elapsed();
    assert!(took < limit, "dribbling {what} was endured for {took:?}");
    if let Some(answer) = &answer {
        assert_eq!(answer.status, 408, "{what}: {answer}");
    }
    Ok(answer)
}

async fn a_slow_body_is_given_up(ctx: Ctx) -> Result<()> {
    let cluster = node_with_canary(&ctx, Options::new().env("REQUEST_TIMEOUT", "1500")).await?;
    let port = cluster.nodes[0].api_port;
    let post = "POST /rpc?key=canary HTTP/1.1\r\nHost: node\r\n";
    for (what, head) in [
        ("a body", format!("{post}Content-Length: 100000\r\n\r\nslow")),
        ("a chunked body", format!("{post}Transfer-Encoding: chunked\r\n\r\nffff\r\nslow")),
    ] {
        if let Some(answer) = dribble(port, what, head.as_bytes(), Duration::from_millis(1500 + 3000)).await?
        {
            is_a_sentence(what, &answer);
        }
    }
    nothing_changed(&cluster).await
}

async fn a_slow_header_is_given_up(ctx: Ctx) -> Result<()> {
    let cluster = node_with_canary(&ctx, Options::new().env("IDLE_TIMEOUT", "1500")).await?;
    let port = cluster.nodes[0].api_port;
    let head = b"GET /rpc?key=canary HTTP/1.1\r\nHost: node\r\nX-Slow: a";
    dribble(port, "a header", head, Duration::from_millis(1500 + 3000)).await?;
    nothing_changed(&cluster).await
}

async fn an_endless_body_is_cut_off(ctx: Ctx) -> Result<()> {
    let cluster = node_with_canary(&ctx, Options::new()).await?;
    let node = &cluster.nodes[0];
    let before = node.peak_resident_bytes();
    let mut connection = RawConnection::open(node.api_port).await?;
    connection
        .write(b"POST /rpc?key=canary HTTP/1.1\r\nHost: node\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await?;
    let (mut reader, mut writer) = connection.split();
    let chunk = [b"10000\r\n".as_slice(), &vec![b'x'; 0x10000], b"\r\n"].concat();
    let mut most = 0;
    let flood = async {
        let mut sent = 0_u64;
        while writer.write_all(&chunk).await.is_ok() {
            sent += 1;
            most = most.max(node.peak_resident_bytes().unwrap_or(0));
        }
        sent
    };
    let both = async { tokio::join!(flood, read_answer(&mut reader, PATIENCE)) };
    let (sent, answer) = tokio::time::timeout(PATIENCE, both).await.context("the node reads without end")?;
    let answer = answer?.with_context(|| format!("closed without an answer after {sent} chunks"))?;
    assert_eq!(answer.status, 413, "{answer}");
    is_a_sentence("an endless body", &answer);
    if let Some(before) = before {
        let grown = most.saturating_sub(before);
        assert!(grown < 64 << 20, "the node grew by {grown} bytes while {sent} chunks of 64 KiB came in");
    }
    nothing_changed(&cluster).await
}

async fn half_a_body_sets_nothing(ctx: Ctx) -> Result<()> {
    let cluster = node_with_canary(&ctx, Options::new()).await?;
    let halves: [&[u8]; 3] = [
        b"POST /rpc?key=canary HTTP/1.1\r\nHost: node\r\nContent-Length: 10\r\n\r\nhalf",
        b"POST /rpc?key=canary HTTP/1.1\r\nHost: node\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        b"POST /rpc?key=canary HTTP/1.1\r\nHost: node\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhalf\r\n",
    ];
    for half in halves {
        let mut connection = RawConnection::open(cluster.nodes[0].api_port).await?;
        connection.write(half).await?;
        // The client goes away in the middle, and the node notices.
        let (mut reader, mut writer) = connection.split();
        writer.shutdown().await?;
        if let Some(answer) = read_answer(&mut reader, PATIENCE).await? {
            assert_eq!(answer.status, 400, "{answer}");
        }
    }
    nothing_changed(&cluster).await
}
