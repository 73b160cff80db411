//! Tokens: what a node that has them answers to whom, over HTTP and over RPC, and what attackers try.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bitacora_client::{Client, Error, Operation, Outcome, Refusal, Scan};
use bitacora_node::node::Node;
use bitacora_protocol::token::{Scope, Token, TokenLine};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::support::{self, PATIENCE, ready};
use super::{Answer, Running, embedded_log};

pub const READER: u8 = 1;
pub const WRITER: u8 = 2;
/// Of keys that begin with `web/`.
const WEB: u8 = 3;
const ADMIN: u8 = 4;
const MEMBER: u8 = 5;
const BOTH: u8 = 6;
const ALL: [u8; 6] = [READER, WRITER, WEB, ADMIN, MEMBER, BOTH];
/// A second token of members, which not every node knows.
const OTHER_MEMBER: u8 = 7;
/// No node knows it.
const STRANGER: u8 = 99;
/// Failures of an address in a minute that are answered one by one.
const ALLOWED_FAILURES: usize = 20;

fn token(number: u8) -> Token {
    Token::of([number; 32])
}

pub fn bearer(number: u8) -> String {
    format!("Authorization: {}", token(number).authorization())
}

fn line(number: u8) -> String {
    use Scope::{Admin, Member, Read, Write};
    let (scopes, prefix) = match number {
        READER => (vec![Read], None),
        WRITER => (vec![Write], None),
        WEB => (vec![Read, Write], Some("web/".to_owned())),
        ADMIN => (vec![Admin], None),
        MEMBER | OTHER_MEMBER => (vec![Member], None),
        _ => (vec![Read, Write], None),
    };
    let line = TokenLine::of(&token(number), format!("t{number}"), scopes, prefix);
    serde_json::to_string(&line).expect("JSON") + "\n"
}

/// Writes the files that a node's flags name.
fn files(folder: &Path, tokens: &[u8]) -> Vec<String> {
    let (lines, member) = (folder.join("tokens"), folder.join("member"));
    std::fs::write(&lines, tokens.iter().map(|number| line(*number)).collect::<String>()).expect("written");
    std::fs::write(&member, format!("{}\n", token(MEMBER).secret())).expect("written");
    let path = |path: &Path| path.to_str().expect("a plain path").to_owned();
    vec!["--tokens-file".to_owned(), path(&lines), "--member-token-file".to_owned(), path(&member)]
}

/// A node that has tokens.
pub async fn start(flags: &[&str]) -> Running {
    let folder = tempfile::tempdir().expect("a folder");
    let files = files(folder.path(), &ALL);
    let flags: Vec<&str> = files.iter().map(String::as_str).chain(flags.iter().copied()).collect();
    let log = Arc::new(embedded_log(folder.path()));
    Running::start_over(folder, log, &flags).await
}

impl Running {
    async fn status_as(&self, line: &str, number: u8) -> u16 {
        self.ask(line, &[&bearer(number)], "").await.status
    }

    async fn client(&self, token: Option<Token>) -> Client {
        let builder = Client::builder().nodes([self.address.avro()]).deadline(Duration::from_secs(20));
        let builder = token.into_iter().fold(builder, bitacora_client::ClientBuilder::token);
        builder.build().await.expect("the settings are right")
    }
}

/// A request of each row of the node's own description: its method, its path with what it needs, and whether it says that it is open.
async fn described(running: &Running) -> Vec<(String, String, bool)> {
    let description = running.ask("GET /openapi.json", &[], "").await.json();
    let mut found = Vec::new();
    for (path, methods) in description["paths"].as_object().expect("paths") {
        for (method, operation) in methods.as_object().expect("methods") {
            let query = match path.as_str() {
                "/rpc" | "/rpc/cluster" => "?key=web/k&value=v",
                _ => "",
            };
            let query = if method == "post" { query } else { query.trim_end_matches("&value=v") };
            let is_open = operation.get("security").is_none();
            found.push((method.to_uppercase(), format!("{path}{query}"), is_open));
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_but_those_that_tell_nothing_needs_a_token() {
    let running = start(&[]).await;
    let calls = described(&running).await;
    let mut open: Vec<&str> = calls.iter().filter(|(_, _, open)| *open).map(|(_, path, _)| &**path).collect();
    open.dedup();
    open.sort_unstable();
    open.dedup();
    assert_eq!(open, ["/", "/health", "/health/live", "/health/ready", "/openapi.json"]);
    assert!(calls.len() > 25, "{calls:?}");
    for (method, path, is_open) in &calls {
        for headers in [vec![], vec![bearer(STRANGER)]] {
            let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
            // Each is the first failure of a node of its own, as far as the count of failures goes.
            let answer = running.ask(&format!("{method} {path}"), &headers, "").await;
            if *is_open {
                assert_eq!(answer.status, 200, "{method} {path}: {answer:?}");
            } else {
                assert!(matches!(answer.status, 401 | 429), "{method} {path}: {answer:?}");
                assert_eq!(answer.header("www-authenticate").is_some(), answer.status == 401);
            }
        }
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_good_for_its_scopes_alone() {
    let running = start(&[]).await;
    let any = ALL;
    for (line, good) in [
        ("GET /rpc?key=web/k", &[READER, WEB, BOTH][..]),
        ("HEAD /rpc?key=web/k", &[READER, WEB, BOTH]),
        ("GET /rpc/?key=web/k", &[READER, WEB, BOTH]),
        ("POST /rpc?key=web/k&value=v", &[WRITER, WEB, BOTH]),
        ("DELETE /rpc?key=web/k", &[WRITER, WEB, BOTH]),
        ("GET /rpc/scan?prefix=web/", &[READER, WEB, BOTH]),
        ("GET /rpc/changes?prefix=web/", &[READER, WEB, BOTH]),
        ("HEAD /watch?prefix=web/", &[READER, WEB, BOTH]),
        ("POST /rpc/batch", &[READER, WRITER, WEB, BOTH]),
        ("GET /rpc/cluster?key=web/k", &[MEMBER]),
        ("HEAD /rpc/cluster/?key=web/k", &[MEMBER]),
        ("GET /snapshot", &[ADMIN, MEMBER]),
        ("GET /snapshot/", &[ADMIN, MEMBER]),
        ("GET /status/digests/ranges", &[ADMIN, MEMBER]),
        ("GET /status/digests/ranges?entries=1", &[ADMIN, MEMBER]),
        ("GET /status/digests", &[ADMIN, MEMBER]),
        ("GET /status", &any),
        ("GET /status/members", &any),
        ("GET /metrics", &any),
    ] {
        for number in ALL {
            let status = running.status_as(line, number).await;
            // 503: it gives its store to one at a time.
            let is_good = matches!(status, 200 | 404 | 503);
            assert_eq!(is_good, good.contains(&number), "{line} as {number}: {status}");
            assert!(is_good || status == 403, "{line} as {number}: {status}");
        }
    }
    // By two digests, who has guessed a key could find out whether it was written in between.
    for number in ALL {
        let status = running.ask("GET /status", &[&bearer(number)], "").await.json();
        let members = running.ask("GET /status/members", &[&bearer(number)], "").await.json();
        for status in [&status, &members["members"][0]["status"]] {
            let digest = &status["partitions"][0]["digest"];
            assert_eq!(digest.is_object(), [ADMIN, MEMBER].contains(&number), "{status} as {number}");
        }
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_with_a_prefix_is_good_for_its_keys_alone() {
    let running = start(&[]).await;
    for key in ["web/a", "other", "web"] {
        assert_eq!(running.status_as(&format!("POST /rpc?key={key}&value=secret"), BOTH).await, 200);
    }
    for line in [
        "GET /rpc?key=other",
        "GET /rpc?key=web",
        "GET /rpc?key=%2Fweb/a",
        "POST /rpc?key=other&value=v",
        "DELETE /rpc?key=other",
        "GET /rpc/scan",
        "GET /rpc/scan?prefix=we",
        "GET /rpc/scan?start=web/&end=web0",
        "GET /rpc/changes",
        "GET /rpc/changes?prefix=w",
        "GET /rpc/changes?key=other",
        "GET /rpc/changes?prefix=web/&key=other",
        "GET /watch",
        "GET /watch?key=other",
    ] {
        let answer = running.ask(line, &[&bearer(WEB)], "").await;
        assert!(matches!(answer.status, 400 | 403), "{line}: {answer:?}");
        assert!(!answer.body.contains("secret"), "{answer:?}");
    }
    // The key may come in a form.
    let form = [&*bearer(WEB), "Content-Type: application/x-www-form-urlencoded"];
    assert_eq!(running.ask("POST /rpc", &form, "key=other&value=v").await.status, 403);
    assert_eq!(running.ask("POST /rpc", &form, "key=web/b&value=v").await.status, 200);
    // A batch does what it may, and refuses the rest line by line.
    let lines = [
        r#"{"op":"get","key":"other"}"#,
        r#"{"op":"get","key":"web/a"}"#,
        r#"{"op":"set","key":"other","value":"v"}"#,
        r#"{"op":"delete","key":"other"}"#,
        r#"{"op":"set","key":"other","value":"v","ifAbsent":true}"#,
    ];
    let answer = running.ask("POST /rpc/batch", &[&bearer(WEB)], &(lines.join("\n") + "\n")).await;
    assert_eq!(answer.status, 200);
    let statuses: Vec<_> = answer.body.lines().filter(|line| line.starts_with('{')).map(status_of).collect();
    assert_eq!(statuses, [403, 200, 403, 403, 403], "{answer:?}");
    assert_eq!(running.ask("GET /rpc?key=other", &[&bearer(READER)], "").await.json()["value"], "secret");
    running.stop().await;
}

fn status_of(line: &str) -> u64 {
    let line: Value = serde_json::from_str(line).expect("JSON");
    line["status"].as_u64().unwrap_or(200)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_only_write_learns_nothing_of_what_is_there() {
    let running = start(&[]).await;
    assert_eq!(running.status_as("POST /rpc?key=k&value=secret", BOTH).await, 200);
    for header in
        ["If-None-Match: *", "If-Match: \"0:1\"", "Idempotency-Key: 9b2c8f1e-5a57-4a0c-8f29-3f4b7d5f8a61"]
    {
        let answer = running.ask("POST /rpc?key=k&value=v", &[&bearer(WRITER), header], "").await;
        assert_eq!(answer.status, 403, "{header}: {answer:?}");
        assert!(!answer.body.contains("secret"), "{answer:?}");
    }
    let answer = running.ask("POST /rpc?key=k&value=v", &[&bearer(BOTH), "If-None-Match: *"], "").await;
    assert_eq!(answer.status, 412, "{answer:?}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_does_not_lend_its_callers_token_to_others() {
    let running = start(&[]).await;
    let mut stream = TcpStream::connect(running.address.api()).await.expect("a connection");
    let good = bearer(READER);
    let almost = format!("{}0", &good[..good.len() - 1]);
    let twice = format!("{good}\r\n{good}");
    for (headers, status) in [
        (&*good, 404),
        ("", 401),
        (&*good, 404),
        (&*almost, 401),
        (&*twice, 401),
        (&*bearer(WRITER), 403),
        (&*good.replace("Bearer", "Basic"), 401),
        (&*good, 404),
    ] {
        let headers = if headers.is_empty() { String::new() } else { format!("{headers}\r\n") };
        let request = format!("GET /rpc?key=none HTTP/1.1\r\nHost: node\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        assert_eq!(read_answer(&mut stream).await.status, status, "{headers}");
    }
    running.stop().await;
}

/// An answer of a connection that stays open.
async fn read_answer(stream: &mut TcpStream) -> Answer {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let answer = Answer::parse(&text);
        let length = answer.header("content-length").and_then(|length| length.parse().ok());
        if text.contains("\r\n\r\n") && length == Some(answer.body.len()) {
            return answer;
        }
        let read = timeout(PATIENCE, stream.read_buf(&mut bytes)).await.expect("in time").expect("bytes");
        assert!(read > 0, "the node closed after {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_guesses_is_slowed_down_and_others_are_not() {
    let running = start(&[]).await;
    for number in 0..ALLOWED_FAILURES {
        let answer = running.ask("GET /rpc?key=k", &[&bearer(100 + number as u8)], "").await;
        assert_eq!(answer.status, 401, "{number}: {answer:?}");
    }
    let answer = running.ask("GET /rpc?key=k", &[&bearer(STRANGER)], "").await;
    assert_eq!((answer.status, answer.header("retry-after")), (429, Some("60")), "{answer:?}");
    assert_eq!(answer.header("connection"), Some("close"));
    assert!(!answer.body.contains(token(STRANGER).secret()), "{answer:?}");
    // Behind a balancer everybody has its address.
    assert_eq!(running.status_as("GET /rpc?key=k", READER).await, 404);
    let metrics = running.ask("GET /metrics", &[&bearer(ADMIN)], "").await.body;
    for series in [
        format!("bitacora_access_refusals_total{{reason=\"unknown_token\"}} {ALLOWED_FAILURES}"),
        "bitacora_access_refusals_total{reason=\"too_many\"} 1".to_owned(),
        format!("bitacora_tokens {}", ALL.len()),
    ] {
        assert!(metrics.contains(&series), "{series}: {metrics}");
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_is_read_again_and_a_bad_one_changes_nothing() {
    let running = start(&[]).await;
    let file = running.folder.path().join("tokens");
    let until = async |number: u8, status: u16| {
        let reached = async {
            while running.status_as("GET /rpc?key=k", number).await != status {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(PATIENCE, reached).await.expect("the file is followed");
    };
    let failures = async || {
        let metrics = running.ask("GET /metrics", &[&bearer(READER)], "").await;
        assert_eq!(metrics.status, 200, "{metrics:?}");
        let of =
            |name: &str| metrics.body.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        (of("bitacora_tokens_file_failures_total"), of(r#"bitacora_files_not_taken{file="tokens"}"#))
    };
    let mut watch = TcpStream::connect(running.address.api()).await.expect("a connection");
    let request = format!("GET /watch HTTP/1.1\r\nHost: node\r\n{}\r\n\r\n", bearer(BOTH));
    watch.write_all(request.as_bytes()).await.expect("sent");
    assert_eq!(failures().await, (Some(0), Some(0)));
    // No line; nothing, which would shut everybody out; and what the node would not start with, since no member would answer it.
    for (number, text) in (1u64..).zip([line(READER) + "no line\n", String::new(), line(READER)]) {
        std::fs::write(&file, text).expect("written");
        let noticed = async {
            while failures().await != (Some(number), Some(1)) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(PATIENCE, noticed).await.expect("the file is followed");
        assert_eq!(running.status_as("GET /rpc?key=k", BOTH).await, 404, "the tokens of before stay");
    }
    let waits = [
        "GET /rpc/changes?prefix=k&wait=60s",
        "GET /rpc?key=k&consistency=session&position=0:1000&timeout=60s",
    ];
    let mut waiting = Vec::new();
    for line in waits {
        let mut waits = TcpStream::connect(running.address.api()).await.expect("a connection");
        let request = format!("{line} HTTP/1.1\r\nHost: node\r\n{}\r\n\r\n", bearer(BOTH));
        waits.write_all(request.as_bytes()).await.expect("sent");
        waiting.push(waits);
    }
    std::fs::write(&file, [READER, MEMBER, STRANGER].map(line).concat()).expect("written");
    // Not by the new one, whose calls would be failures until then, and soon too many.
    until(BOTH, 401).await;
    assert_eq!(running.status_as("GET /rpc?key=k", STRANGER).await, 404);
    assert_eq!(failures().await, (Some(3), Some(0)));
    // Who waited with the token that is no more is shown nothing of what comes.
    let lines: String = (0..=1_000).map(|_| "{\"op\":\"set\",\"key\":\"k\",\"value\":\"v\"}\n").collect();
    assert_eq!(running.ask("POST /rpc/batch", &[&bearer(STRANGER)], &lines).await.status, 200);
    for waits in &mut waiting {
        let answer = timeout(PATIENCE, read_answer(waits)).await.expect("it is answered");
        assert_eq!(answer.status, 401, "{answer:?}");
    }
    // What was begun with a token that is no more ends.
    let (mut told, ended) = (Vec::new(), "the token of this watch is not known here any more");
    while !String::from_utf8_lossy(&told).contains(ended) {
        let read = timeout(PATIENCE, watch.read_buf(&mut told)).await.expect("it ends").expect("bytes");
        assert!(read > 0, "{}", String::from_utf8_lossy(&told));
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_and_more_can_be_opened() {
    let running = start(&["--open-metrics", "--anonymous", "read"]).await;
    for (line, status) in [
        ("GET /metrics", 200),
        ("GET /rpc?key=k", 404),
        ("GET /rpc/scan", 200),
        ("GET /status", 200),
        ("POST /rpc?key=k&value=v", 401),
        ("GET /rpc/cluster?key=k", 401),
        ("GET /snapshot", 401),
    ] {
        assert_eq!(running.ask(line, &[], "").await.status, status, "{line}");
    }
    // Who shows a token that is none is not taken for somebody without.
    assert_eq!(running.status_as("GET /rpc?key=k", STRANGER).await, 401);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_the_rpc_show_a_token_too() {
    let running = start(&[]).await;
    let refused = |error: Error| match error {
        Error::Refused { refusal: Refusal::BadRequest, reason } => reason,
        other => panic!("{other:?}"),
    };
    for wrong in [None, Some(token(STRANGER))] {
        let client = running.client(wrong).await;
        assert!(refused(client.set("k", "v").await.expect_err("no token")).contains("token"));
        assert!(refused(client.get("k").await.expect_err("no token")).contains("token"));
    }
    let reader = running.client(Some(token(READER))).await;
    let both = running.client(Some(token(BOTH))).await;
    let web = running.client(Some(token(WEB))).await;
    both.set("k", "secret").await.expect("it may");
    both.set("web/a", "v").await.expect("it may");
    assert!(refused(reader.set("k", "v").await.expect_err("it may not")).contains("scope write"));
    assert!(refused(web.set("k", "v").await.expect_err("it may not")).contains("'web/'"));
    assert!(refused(web.get("k").await.expect_err("it may not")).contains("'web/'"));
    assert!(refused(web.scan_page(&Scan::default(), None).await.expect_err("it may not")).contains("'web/'"));
    let scan = Scan { prefix: "web/".to_owned(), ..Scan::default() };
    let page = web.scan_page(&scan, None).await.expect("it may");
    assert!(page.records.iter().all(|record| record.key == "web/a"), "{page:?}");
    let operation = |key: &str| Operation::Set { key: key.to_owned(), value: "v".to_owned(), ttl: None };
    let operations = [
        Operation::Get { key: "k".to_owned() },
        operation("web/b"),
        Operation::Delete { key: "k".to_owned() },
    ];
    let outcomes = web.batch(&operations).await.expect("a batch");
    let refused = |outcome: &Result<Outcome, Error>| matches!(outcome, Err(Error::Refused { reason, .. }) if reason.contains("'web/'"));
    assert!(refused(&outcomes[0]) && outcomes[1].is_ok() && refused(&outcomes[2]), "{outcomes:?}");
    running.stop().await;
}

/// Two nodes, of which the first has these flags; the second's files are in the folder.
async fn two_nodes(flags_of_first: impl FnOnce(&Path) -> Vec<String>) -> (Node, Running, TempDir) {
    let folder = TempDir::new().expect("a folder");
    let log = Arc::new(embedded_log(folder.path()));
    let flags = flags_of_first(folder.path());
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let (first, address) = support::start(&folder.path().join("first"), log.clone(), &flags, None).await;
    ready(&first).await;
    let own = tempfile::tempdir().expect("a folder");
    let flags = files(own.path(), &ALL);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let other = Some(address.api());
    let (node, address) = support::start(&folder.path().join("second"), log.clone(), &flags, other).await;
    ready(&node).await;
    (first, Running { node, address, folder }, own)
}

/// What the second of two nodes is told by the first, which has these flags: of its status, and of whether it shows a write.
async fn told_by(flags_of_first: impl FnOnce(&Path) -> Vec<String>) -> (Value, Option<String>) {
    let (first, running, _own) = two_nodes(flags_of_first).await;
    let told = running.ask("GET /status/members", &[&bearer(READER)], "").await.json();
    let line = "POST /rpc?key=k&value=v&visible=all&timeout=5s";
    let written = running.ask(line, &[&bearer(BOTH)], "").await;
    assert_eq!(written.status, 200, "{written:?}");
    running.stop().await;
    first.stop().await;
    (told["members"][1].clone(), written.header("bitacora-not-visible").map(str::to_owned))
}

#[tokio::test(flavor = "multi_thread")]
async fn members_show_their_token_to_one_another() {
    let (told, not_visible) = told_by(|folder| files(folder, &ALL)).await;
    assert_eq!(told["status"]["ready"], true, "{told}");
    assert_eq!(not_visible, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_was_changed_is_shown_without_a_restart() {
    let (first, running, own) = two_nodes(|folder| files(folder, &ALL)).await;
    let member = own.path().join("member");
    let told = async |is_so: &dyn Fn(&Value) -> bool| {
        let asked = async {
            loop {
                let told = running.ask("GET /status/members", &[&bearer(READER)], "").await.json();
                if is_so(&told["members"][1]) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(PATIENCE, asked).await.expect("the file is followed");
    };
    let is_ready = |told: &Value| told["status"]["ready"] == true;
    let is_refused = |told: &Value| told["error"] == "it answers 401 to GET /status";
    let failures = async |number: u32| {
        let noticed = async {
            let failures = format!("bitacora_tokens_file_failures_total {number}\n");
            while !running.ask("GET /metrics", &[&bearer(READER)], "").await.body.contains(&failures) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(PATIENCE, noticed).await.expect("it is counted");
    };
    told(&is_ready).await;
    // A token that this node's own file does not know is not shown to those who have the same file.
    std::fs::write(&member, token(OTHER_MEMBER).secret()).expect("written");
    failures(1).await;
    told(&is_ready).await;
    let known = ALL.iter().chain([&OTHER_MEMBER]).map(|number| line(*number)).collect::<String>();
    std::fs::write(own.path().join("tokens"), known).expect("written");
    // The first node has another one, so that it tells which token it was shown.
    told(&is_refused).await;
    std::fs::write(&member, token(MEMBER).secret()).expect("written");
    told(&is_ready).await;
    // What makes no sense changes nothing.
    std::fs::write(&member, "no token").expect("written");
    failures(2).await;
    told(&is_ready).await;
    running.stop().await;
    first.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_token_is_not_known_is_told_nothing() {
    let one_that_does_not_know_it = |folder: &Path| {
        let tokens = files(folder, &[READER]).swap_remove(1);
        ["--tokens-file", &tokens, "--anonymous", "member"].map(str::to_owned).to_vec()
    };
    let (told, not_visible) = told_by(one_that_does_not_know_it).await;
    assert_eq!(told["error"], "it answers 401 to GET /status", "{told}");
    assert!(not_visible.is_some_and(|member| member == told["address"].as_str().unwrap_or_default()));
}

/// Settings that would leave a node without its members, or open to everybody, are told before anything runs.
#[test]
fn settings_that_contradict_each_other_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let all = files(folder.path(), &[READER, MEMBER]);
    let metrics = || Arc::new(bitacora_node::metrics::Metrics::new().expect("metrics"));
    let error = |flags: &[&str]| {
        let access = support::settings(flags).access(metrics());
        access.err().unwrap_or_else(|| panic!("{flags:?} was accepted"))
    };
    assert!(error(&["--anonymous", "read"]).contains("without TOKENS_FILE"));
    assert!(error(&["--tokens-file", &all[1]]).contains("without MEMBER_TOKEN_FILE"));
    assert!(error(&["--tokens-file", "/nowhere/tokens"]).starts_with("TOKENS_FILE /nowhere/tokens: "));
    std::fs::write(&all[1], line(READER)).expect("written");
    let flags: Vec<&str> = all.iter().map(String::as_str).collect();
    assert!(error(&flags).contains("with the scope member, so that other members would refuse this one"));
    std::fs::write(&all[3], "s3cret").expect("written");
    let told = error(&flags);
    assert!(told.starts_with("MEMBER_TOKEN_FILE ") && !told.contains("s3cret"), "{told}");
}
