//! Requests whose head is wrong, also those that the HTTP library refuses before the API sees them: every answer is JSON.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::support::PATIENCE;
use super::{Answer, Running, read_to_end, request};

const HOST: &str = "Host: node\r\n";

fn wrong_heads() -> Vec<(&'static str, Vec<u8>, u16)> {
    let text = |text: &str| text.as_bytes().to_vec();
    let post = "POST /rpc?key=k HTTP/1.1\r\nHost: node\r\nConnection: close\r\n";
    vec![
        ("a long URI", text(&format!("GET /rpc?key={} HTTP/1.1\r\n{HOST}\r\n", "k".repeat(70_000))), 414),
        (
            "a long header",
            text(&format!("GET /rpc HTTP/1.1\r\n{HOST}X: {}\r\n\r\n", "x".repeat(120_000))),
            431,
        ),
        ("many headers", text(&format!("GET /rpc HTTP/1.1\r\n{HOST}{}\r\n", "A: b\r\n".repeat(200))), 431),
        ("no request line", text("hello\r\n\r\n"), 400),
        ("a method of odd characters", text(&format!("G@T / HTTP/1.1\r\n{HOST}\r\n")), 400),
        ("a space in the path", text(&format!("GET /a b HTTP/1.1\r\n{HOST}\r\n")), 400),
        ("a version that is not there", text(&format!("GET / HTTP/9.9\r\n{HOST}\r\n")), 400),
        ("a header without a colon", text(&format!("GET / HTTP/1.1\r\n{HOST}what\r\n\r\n")), 400),
        ("a control character in a header", text(&format!("GET / HTTP/1.1\r\n{HOST}X: a\x01b\r\n\r\n")), 400),
        ("two lengths", text(&format!("{post}Content-Length: 1\r\nContent-Length: 2\r\n\r\nab")), 400),
        ("a negative length", text(&format!("{post}Content-Length: -1\r\n\r\nab")), 400),
        ("a length that is no number", text(&format!("{post}Content-Length: x\r\n\r\nab")), 400),
        ("an unknown transfer coding", text(&format!("{post}Transfer-Encoding: gzip\r\n\r\nab")), 400),
        ("bad chunks", text(&format!("{post}Transfer-Encoding: chunked\r\n\r\nzz\r\nab\r\n")), 400),
        ("bytes that are no HTTP", [&[0x16, 3, 1, 0, 200][..], &[7; 200]].concat(), 400),
        // What proxies are asked.
        (
            "a host and a port to connect to",
            text("CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\nConnection: close\r\n\r\n"),
            400,
        ),
        (
            "a host and a port for a path",
            text("GET a:80 HTTP/1.1\r\nHost: a:80\r\nConnection: close\r\n\r\n"),
            400,
        ),
        ("no host", text("GET /health/live HTTP/1.1\r\nConnection: close\r\n\r\n"), 400),
        (
            "two hosts",
            text(&format!("GET /health/live HTTP/1.1\r\n{HOST}Host: b\r\nConnection: close\r\n\r\n")),
            400,
        ),
        (
            "a host with a path",
            text("GET /health/live HTTP/1.1\r\nHost: a/b\r\nConnection: close\r\n\r\n"),
            400,
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_is_json() {
    let running = Running::start(&[]).await;
    for (what, bytes, status) in wrong_heads() {
        let text = running.exchange(&bytes).await;
        let answer = Answer::parse(&text);
        assert_eq!(answer.status, status, "{what}: {text:?}");
        let sentence = answer.refusal(status);
        assert_eq!(answer.header("content-length"), Some(&*answer.body.len().to_string()), "{what}");
        assert_eq!(answer.header("connection"), Some("close"), "{what}");
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{what}");
        assert!(!sentence.contains("hyper"), "{what}: {sentence}");
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_follows_the_answers_before_it() {
    let running = Running::start(&[]).await;
    running.ask("POST /rpc?key=k&value=v", &[], "").await;
    let good = b"HEAD /health/live HTTP/1.1\r\nHost: node\r\n\r\n";
    let bad = b"HEAD /a b HTTP/1.1\r\nHost: node\r\n\r\n";
    let text = running.exchange(&[&good[..], good, bad].concat()).await;
    assert_eq!(text.matches("HTTP/1.1 200 OK\r\n").count(), 2, "{text}");
    let at = text.find("HTTP/1.1 400").expect("a refusal");
    Answer::parse(&text[at..]).refusal(400);

    // Also on a connection of HTTP/1.0, and after a whole body.
    let get = "POST /rpc/batch HTTP/1.1\r\nHost: node\r\nContent-Length: 24\r\n\r\n{\"op\":\"get\",\"key\":\"k\"}\n\n";
    let text = running.exchange(format!("{get}GET / HTTP/7\r\n\r\n").as_bytes()).await;
    assert!(text.contains("\"status\":"), "{text}");
    let at = text.find("HTTP/1.1 400").expect("a refusal");
    Answer::parse(&text[at..]).refusal(400);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn http_1_0_needs_no_host() {
    let running = Running::start(&[]).await;
    let text = running.exchange(b"GET /health/live HTTP/1.0\r\n\r\n").await;
    assert!(text.starts_with("HTTP/1.0 200"), "{text}");
    // The bytes of a store are told as they are, whatever is in them.
    let value = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\ndate: x\r\n\r\n";
    running.exchange(&request("POST /rpc?key=k", &["Content-Type: text/plain"], value.as_bytes())).await;
    assert_eq!(running.value("k").await.as_deref(), Some(value));
    let mut stream = TcpStream::connect(running.address.api()).await.expect("a connection");
    stream.write_all(b"GET /snapshot HTTP/1.0\r\n\r\n").await.expect("sent");
    let text = read_to_end(&mut stream).await;
    assert!(text.starts_with("HTTP/1.0 200") && text.contains(value), "{} bytes", text.len());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_not_to_be_stored_unless_asked() {
    let running = Running::start(&[]).await;
    running.ask("POST /rpc?key=k&value=v", &[], "").await;
    running.value("k").await;
    for line in [
        "GET /rpc?key=k",
        "HEAD /rpc?key=k",
        "GET /rpc?key=none",
        "GET /rpc?key=",
        "GET /rpc/cluster?key=k",
        "GET /rpc/scan",
        "GET /health",
        "GET /status",
        "GET /metrics",
        "GET /snapshot",
        "GET /nothing",
        "POST /rpc?key=k&value=v",
        "DELETE /rpc?key=other",
        "POST /rpc/batch",
    ] {
        let answer = running.ask(line, &[], "").await;
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{line}: {answer:?}");
    }
    for (header, expected) in [
        ("Cache-Control: max-age=60", "private, max-age=60"),
        ("Cache-Control: no-transform, Max-Age=5", "private, max-age=5"),
        ("Cache-Control: max-age=0", "no-store"),
        ("Cache-Control: no-store, max-age=60", "no-store"),
        ("Cache-Control: no-cache", "no-store"),
        ("Cache-Control: max-age=soon", "no-store"),
    ] {
        let answer = running.ask("GET /rpc?key=k", &[header], "").await;
        assert_eq!(answer.header("cache-control"), Some(expected), "{header}");
    }
    let refused = running.ask("GET /rpc?key=", &["Cache-Control: max-age=60"], "").await;
    assert_eq!(refused.header("cache-control"), Some("no-store"), "an error is never kept");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_client_that_still_sends_sees_the_refusal() {
    let running = Running::start(&[]).await;
    let mut stream = TcpStream::connect(running.address.api()).await.expect("a connection");
    stream.write_all(b"GET /rpc HTTP/1.1\r\nX: ").await.expect("sent");
    let (mut read, mut write) = stream.split();
    let send = async {
        // Until the node has had enough.
        while write.write_all(&[b'x'; 16 * 1024]).await.is_ok() {}
    };
    let mut text = Vec::new();
    let receive = async {
        let mut piece = [0; 1024];
        while !String::from_utf8_lossy(&text).contains("\"message\"") {
            let length = timeout(PATIENCE, read.read(&mut piece)).await.expect("in time").expect("no reset");
            assert!(length > 0, "closed without a sentence");
            text.extend_from_slice(&piece[..length]);
        }
    };
    // A send that fails does not end the wait for what was answered before.
    tokio::select! { () = async { send.await; std::future::pending().await } => {} () = receive => {} }
    assert!(String::from_utf8_lossy(&text).starts_with("HTTP/1.1 431"));
    running.stop().await;
}
