//! Calls that are answered ahead of the HTTP library: as the library would have it, byte by byte but for the order of the headers.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::support::PATIENCE;
use super::{Answer, Running, access, read_to_end};

/// Leaves a request to the library, and says nothing to a node.
const FOR_THE_LIBRARY: &str = "X-Nobody-Knows-This: 1";

fn get(query: &str, headers: &[&str]) -> String {
    let headers: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    format!("GET /rpc?{query} HTTP/1.1\r\nHost: node\r\n{headers}\r\n")
}

fn post(query: &str, headers: &[&str], body: &str) -> String {
    let headers: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    let length = body.len();
    format!("POST /rpc?{query} HTTP/1.1\r\nHost: node\r\nContent-Length: {length}\r\n{headers}\r\n{body}")
}

/// Sends requests in one write, closes the sending half, and reads all answers.
async fn answers(running: &Running, requests: &[String]) -> Vec<Answer> {
    let mut stream = TcpStream::connect(running.address.api()).await.expect("a connection");
    stream.write_all(requests.concat().as_bytes()).await.expect("sent");
    stream.shutdown().await.expect("half closed");
    let text = read_to_end(&mut stream).await;
    let mut rest = text.as_str();
    let mut answers = Vec::new();
    while !rest.is_empty() {
        let head = Answer::parse(rest);
        let length: usize = head.header("content-length").expect("a length").parse().expect("a number");
        let whole = head.head.len() + 4 + length;
        answers.push(Answer::parse(&rest[..whole]));
        rest = &rest[whole..];
    }
    answers
}

/// The status line, all headers but the time in the order of the alphabet, and the body.
fn compared(answer: &Answer) -> (String, Vec<String>, String) {
    let mut lines = answer.head.lines().map(str::to_owned);
    let status = lines.next().expect("a status");
    let mut headers: Vec<String> = lines.filter(|line| !line.starts_with("date: ")).collect();
    headers.sort();
    let dated = answer.header("date").is_some_and(|date| date.ends_with(" GMT"));
    assert!(dated, "{answer:?}");
    (status, headers, answer.body.clone())
}

/// That a request is answered the same by both; returns the answer.
async fn same(running: &Running, query: &str, headers: &[&str]) -> Answer {
    let mut plain = answers(running, &[get(query, headers)]).await;
    let others = answers(running, &[get(query, &[headers, &[FOR_THE_LIBRARY]].concat())]).await;
    assert_eq!((plain.len(), others.len()), (1, 1), "{query}: {plain:?}, {others:?}");
    assert_eq!(compared(&plain[0]), compared(&others[0]), "{query}");
    plain.remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_those_of_the_library() {
    are_those_of_the_library(&[]).await;
    are_those_of_the_library(&["--allowed-origins", "https://a.example"]).await;
}

async fn are_those_of_the_library(settings: &[&str]) {
    let running = Running::start(settings).await;
    let large = "v".repeat(200_000);
    for (query, body) in [
        ("key=k&value=v", ""),
        ("key=a%20%C3%A9%26b&value=%22quoted%22%0A", ""),
        ("key=gone&value=v", ""),
        ("key=short&value=v&ttl=1ms", ""),
        ("key=large", large.as_str()),
    ] {
        let set = running.ask(&format!("POST /rpc?{query}"), &["Content-Type: text/plain"], body).await;
        assert_eq!(set.status, 200, "{set:?}");
    }
    running.ask("DELETE /rpc?key=gone", &[], "").await;
    assert_eq!(running.value("k").await.as_deref(), Some("v"));
    // From the store, and then from the cache.
    for (key, status) in [("k", 200), ("a%20%C3%A9%26b", 200), ("large", 200), ("gone", 404), ("short", 404)]
    {
        answers(&running, &[get(&format!("key={key}"), &[])]).await;
        assert_eq!(same(&running, &format!("key={key}"), &[]).await.status, status, "{key}");
    }
    for (query, status) in [
        ("key=nobody+wrote%2Fit", 404),
        ("key=", 400),
        ("", 400),
        ("other=1", 400),
        ("key=k&key=k", 400),
        ("key=%zz", 400),
        ("key=%ff", 400),
        ("key=k&consistency=strong", 200),
        ("key=k&consistency=latest&timeout=5s", 200),
        ("key=k&consistency=session&position=0:0", 200),
        ("key=k&consistency=session", 400),
        ("key=k&consistency=sometimes", 400),
        ("key=k&max_staleness=10s", 200),
        ("key=k&timeout=soon", 400),
    ] {
        assert_eq!(same(&running, query, &[]).await.status, status, "{query}");
    }
    let long = format!("key={}", "k".repeat(2_000));
    assert_eq!(same(&running, &long, &[]).await.status, 400);
    running.stop().await;
}

/// What an answer to a write has, but for what each write has of its own.
fn of_any_write(answer: &Answer) -> (String, Vec<String>, serde_json::Value) {
    let (status, mut headers, body) = compared(answer);
    for header in &mut headers {
        let (name, value) = header.split_once(": ").expect("a header");
        if ["bitacora-position", "bitacora-timestamp", "etag"].contains(&name) {
            assert!(!value.is_empty());
            *header = name.to_owned();
        }
    }
    let mut body: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    for field in ["timestamp", "uuid"] {
        if let Some(value) = body.get_mut(field) {
            *value = serde_json::Value::Null;
        }
    }
    // Until when it lives.
    if let Some(ttl) = body.get_mut("ttl").filter(|ttl| ttl.as_i64() > Some(0)) {
        *ttl = serde_json::Value::Null;
    }
    (status, headers, body)
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_to_writes_are_those_of_the_library() {
    let running =
        Running::start(&["--allowed-origins", "https://a.example", "--max-value-bytes", "2000"]).await;
    let (form, text) = ("Content-Type: application/x-www-form-urlencoded", "Content-Type: text/plain");
    let (long, very_long) = ("v".repeat(2_000), "v".repeat(2_001));
    for (query, headers, body, status) in [
        ("key=k&value=v", vec![], "", 200),
        ("key=k&value=v", vec![text], "", 200),
        ("key=k", vec![], "raw", 200),
        ("key=k", vec![text], "", 200),
        ("key=a%20b&ttl=5s", vec![text], "\u{e9}\n", 200),
        ("key=k", vec![form], "value=a%26b&ttl=1h", 200),
        ("key=k", vec![form], "{\"a\":1}", 200),
        ("key=k&visible=here", vec![text], "v", 200),
        ("key=k&visible=nowhere", vec![text], "v", 400),
        ("key=k&value=v", vec![form], "value=w", 400),
        ("key=k", vec![], "", 400),
        ("key=", vec![text], "v", 400),
        ("other=1", vec![text], "v", 400),
        ("key=k&ttl=soon", vec![text], "v", 400),
        ("key=k", vec!["Content-Type: multipart/form-data"], "v", 415),
        ("key=k", vec![text], &long, 200),
        ("key=k", vec![text], &very_long, 413),
    ] {
        let all = [headers.clone(), vec![FOR_THE_LIBRARY]].concat();
        let plain = answers(&running, &[post(query, &headers, body)]).await;
        let others = answers(&running, &[post(query, &all, body)]).await;
        assert_eq!((plain.len(), others.len()), (1, 1), "{query}: {plain:?}, {others:?}");
        assert_eq!(plain[0].status, status, "{query} {headers:?}: {plain:?}");
        assert_eq!(of_any_write(&plain[0]), of_any_write(&others[0]), "{query} {headers:?}");
    }
    running.stop().await;
}

/// In one write, each call finds what those before it wrote, whoever answers it.
#[tokio::test(flavor = "multi_thread")]
async fn writes_and_reads_of_one_connection_take_effect_in_turn() {
    let running = Running::start(&[]).await;
    let mut requests = Vec::new();
    for number in 0..40 {
        let library: &[&str] = if number < 20 { &[] } else { &[FOR_THE_LIBRARY] };
        requests.push(post("key=k&visible=here", library, &format!("v{number}")));
        requests.push(get("key=k", library));
    }
    let all = answers(&running, &requests).await;
    assert_eq!(all.len(), requests.len());
    for (number, pair) in all.chunks(2).enumerate() {
        let value = format!("\"value\":\"v{number}\"");
        assert!(pair.iter().all(|answer| answer.body.contains(&value)), "{number}: {pair:?}");
    }
    running.stop().await;
}

/// A call that is under way when the node is told to stop is answered, and its connection ends with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_waits_for_a_call_under_way() {
    let running = Running::start(&[]).await;
    let mut stream = TcpStream::connect(running.address.api()).await.expect("a connection");
    // No node shows so late a position, so this one waits until its time is over.
    let waiting = get("key=k&consistency=session&position=0:1000000&timeout=1s", &[]);
    stream.write_all((get("key=k", &[]) + &waiting).as_bytes()).await.expect("sent");
    let mut text = String::new();
    while !text.ends_with("not found\"}") {
        let mut part = [0; 1024];
        let read = timeout(PATIENCE, stream.read(&mut part)).await.expect("in time").expect("an answer");
        assert!(read > 0, "closed after {text}");
        text.push_str(&String::from_utf8_lossy(&part[..read]));
    }
    let (end, ()) = tokio::join!(read_to_end(&mut stream), running.stop());
    let answer = Answer::parse(&end);
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.body.contains("stopping"), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_asked_for_all_the_same() {
    let running = access::start(&[]).await;
    let (reader, writer) = (access::bearer(access::READER), access::bearer(access::WRITER));
    for (headers, status) in [
        (vec![reader.as_str()], 404),
        (vec![writer.as_str()], 403),
        (vec![], 401),
        (vec!["Authorization: Bearer x"], 401),
        (vec![reader.as_str(), reader.as_str()], 401),
    ] {
        assert_eq!(same(&running, "key=k", &headers).await.status, status, "{headers:?}");
    }
    // Each further one costs a connection.
    let mut refused = None;
    for _ in 0..50 {
        let all = answers(&running, &[get("key=k", &[]), get("key=k", &[reader.as_str()])]).await;
        if all[0].status == 429 {
            refused = Some(all);
            break;
        }
        assert_eq!(all.iter().map(|answer| answer.status).collect::<Vec<_>>(), [401, 404]);
    }
    let refused = refused.expect("failures are limited");
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert_eq!(refused[0].header("connection"), Some("close"));
    running.stop().await;
}

/// Reads and other calls in turn on one connection, which the library takes over in the middle.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_handed_over_where_something_else_comes() {
    let running = Running::start(&[]).await;
    let set = running.ask("POST /rpc?key=k&value=v&visible=here", &[], "").await;
    assert_eq!(set.status, 200, "{set:?}");
    let mut requests: Vec<String> = (0..150).map(|_| get("key=k", &[])).collect();
    requests.insert(100, "GET /health/live HTTP/1.1\r\nHost: node\r\n\r\n".to_owned());
    requests.insert(120, get("key=k", &[FOR_THE_LIBRARY]));
    let all = answers(&running, &requests).await;
    assert_eq!(all.len(), requests.len());
    for (number, answer) in all.iter().enumerate() {
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.body.contains("\"value\":\"v\""), number != 100, "{number}: {answer:?}");
    }
    // However the bytes arrive.
    let mut stream = TcpStream::connect(running.address.api()).await.expect("a connection");
    stream.set_nodelay(true).expect("a socket");
    for request in [get("key=k", &[]), get("key=k", &[])] {
        for part in request.as_bytes().chunks(7) {
            stream.write_all(part).await.expect("sent");
            tokio::task::yield_now().await;
        }
        let mut text = String::new();
        while !text.contains("\"value\":\"v\"") {
            let mut part = [0; 1024];
            let read = timeout(PATIENCE, stream.read(&mut part)).await.expect("in time").expect("an answer");
            assert!(read > 0, "closed after {text}");
            text.push_str(&String::from_utf8_lossy(&part[..read]));
        }
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_connection_is_closed() {
    let running = Running::start(&["--idle-timeout", "1s"]).await;
    let mut stream = TcpStream::connect(running.address.api()).await.expect("a connection");
    // Each answer gives it another second.
    for _ in 0..3 {
        stream.write_all(get("key=k", &[]).as_bytes()).await.expect("sent");
        let mut part = [0; 1024];
        let read = timeout(PATIENCE, stream.read(&mut part)).await.expect("in time").expect("an answer");
        assert!(String::from_utf8_lossy(&part[..read]).starts_with("HTTP/1.1 404"));
    }
    let began = Instant::now();
    assert_eq!(read_to_end(&mut stream).await, "");
    assert!(began.elapsed() >= Duration::from_millis(900), "{:?}", began.elapsed());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_closes_connections_that_lie_idle() {
    let running = Running::start(&[]).await;
    let mut stream = TcpStream::connect(running.address.api()).await.expect("a connection");
    stream.write_all(get("key=k", &[]).as_bytes()).await.expect("sent");
    let mut part = [0; 1024];
    timeout(PATIENCE, stream.read(&mut part)).await.expect("in time").expect("an answer");
    let (end, ()) = tokio::join!(read_to_end(&mut stream), running.stop());
    assert_eq!(end, "");
}
