//! Conditional writes, and writes whose repetition is known.

use std::path::Path;
use std::sync::Arc;

use bitacora_node::cluster::Address;
use bitacora_node::cluster::fixed::FixedMembership;
use bitacora_node::data_dir::DataDir;
use bitacora_node::log::Log;
use bitacora_node::log::embedded::EmbeddedLog;
use bitacora_node::node::{Node, Parts};
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::support::{ready, settings, start};
use super::{Answer, Running, read_to_end, request};

const UUID: &str = "9b2c8f1e-5a57-4a0c-8f29-3f4b7d5f8a61";

async fn ask_at(address: &Address, line: &str, headers: &[&str]) -> Answer {
    let mut stream = TcpStream::connect(address.api()).await.expect("a connection");
    stream.write_all(&request(line, headers, b"")).await.expect("sent");
    Answer::parse(&read_to_end(&mut stream).await)
}

async fn metric_at(address: &Address, name: &str) -> u64 {
    let answer = ask_at(address, "GET /metrics", &[]).await;
    let value = answer.body.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value.unwrap_or_else(|| panic!("no metric {name}"))
}

async fn attempts(running: &Running) -> u64 {
    metric_at(&running.address, "bitacora_conditional_write_attempts_total").await
}

fn etag(answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.header("etag").unwrap_or_else(|| panic!("no ETag: {answer:?}")).to_owned()
}

fn if_match(etag: &str) -> String {
    format!("If-Match: {etag}")
}

/// That a condition was not met by a record with this value, or by none.
fn not_met(answer: &Answer, value: Option<&str>) {
    assert!(answer.refusal(412).starts_with("the condition does not hold"), "{answer:?}");
    assert_eq!(answer.json()["current"]["value"], value.map_or(Value::Null, Value::from), "{answer:?}");
    assert_eq!(answer.header("etag").is_some(), value.is_some(), "{answer:?}");
    let position = answer.header("bitacora-position").expect("a position");
    if let Some(etag) = answer.header("etag") {
        assert_eq!(etag, format!("\"{position}\""));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_is_compared_and_replaced() {
    let running = Running::start(&[]).await;
    let first = etag(&running.ask("POST /rpc?key=k&value=1", &[], "").await);
    let written = running.ask("POST /rpc?key=k&value=2", &[&if_match(&first)], "").await;
    let second = etag(&written);
    assert_eq!(
        (written.header("bitacora-position"), &written.json()["value"]),
        (Some(second.trim_matches('"')), &json!("2"))
    );
    // It is decided, so it is there.
    let read = running.ask("GET /rpc?key=k", &[], "").await;
    assert_eq!((etag(&read), &read.json()["value"]), (second.clone(), &json!("2")));
    let lost = running.ask("POST /rpc?key=k&value=3", &[&if_match(&first)], "").await;
    not_met(&lost, Some("2"));
    assert_eq!(lost.header("etag"), Some(&*second));
    not_met(&running.ask("DELETE /rpc?key=k", &[&if_match(&first)], "").await, Some("2"));
    let any = etag(&running.ask("POST /rpc?key=k&value=4&timeout=30s", &["If-Match: *"], "").await);
    let deleted = running.ask("DELETE /rpc?key=k", &[&if_match(&any)], "").await;
    assert_eq!((deleted.status, deleted.header("etag")), (200, None), "{deleted:?}");
    let marker = deleted.header("bitacora-position").expect("the marker's").to_owned();
    let gone = running.ask("GET /rpc?key=k", &[], "").await;
    assert_eq!((gone.status, gone.header("bitacora-position")), (404, Some(&*marker)));
    // A delete marker is no version of a key.
    for condition in [if_match(&any), if_match(&format!("\"{marker}\"")), "If-Match: *".to_owned()] {
        let refused = running.ask("POST /rpc?key=k&value=5", &[&condition], "").await;
        not_met(&refused, None);
        assert_eq!(refused.header("bitacora-position"), Some(&*marker), "{condition}");
    }
    assert_eq!(attempts(&running).await, 3);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_created_once() {
    let running = Running::start(&[]).await;
    let create = ["If-None-Match: *"];
    etag(&running.ask("POST /rpc?key=k&value=1", &create, "").await);
    not_met(&running.ask("POST /rpc?key=k&value=2", &create, "").await, Some("1"));
    assert_eq!(running.ask("DELETE /rpc?key=k", &[], "").await.status, 200);
    etag(&running.ask("POST /rpc?key=k&value=3&ttl=100d", &create, "").await);
    not_met(&running.ask("DELETE /rpc?key=k", &create, "").await, Some("3"));
    // A key that has expired is not there; one that was set less than a millisecond ago may be.
    etag(&running.ask("POST /rpc?key=l&value=1&ttl=1ms", &[], "").await);
    let created = async { while running.ask("POST /rpc?key=l&value=2", &create, "").await.status != 200 {} };
    tokio::time::timeout(super::support::PATIENCE, created).await.expect("it has expired");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_that_are_none_of_the_key_append_nothing() {
    let running = Running::start(&[]).await;
    let held = etag(&running.ask("POST /rpc?key=k&value=1", &[], "").await);
    let (partition, offset) = held.trim_matches('"').split_once(':').expect("a position");
    let (partition, offset): (i32, i64) =
        (partition.parse().expect("a number"), offset.parse().expect("a number"));
    let elsewhere = (partition + 1) % 4;
    for version in [
        format!("{partition}:{}", offset + 1_000),
        format!("{elsewhere}:{offset}"),
        format!("{partition}:{}", i64::MAX),
        format!("{}:{offset}", i32::MAX),
        "77:0".to_owned(),
    ] {
        let answer =
            running.ask("POST /rpc?key=k&value=2", &[&if_match(&format!("\"{version}\""))], "").await;
        not_met(&answer, Some("1"));
    }
    assert_eq!(attempts(&running).await, 0);
    assert_eq!(running.value("k").await.as_deref(), Some("1"));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_condition_is_refused_and_changes_nothing() {
    let running = Running::start(&[]).await;
    let version = etag(&running.ask("POST /rpc?key=k&value=1", &[], "").await);
    let weak = format!("If-Match: W/{version}");
    let list = format!("If-Match: {version}, \"0:99\"");
    let unquoted = format!("If-Match: {}", version.trim_matches('"'));
    let none_match = format!("If-None-Match: {version}");
    let good = if_match(&version);
    for headers in [
        &[&*weak][..],
        &[&list],
        &[&unquoted],
        &[&none_match],
        &["If-Match: \"0:99999999999999999999\""],
        &["If-Match: \"9999999999:1\""],
        &["If-Match: \"0:-1\""],
        &["If-Match: \"version\""],
        &["If-Match:"],
        &["If-Match: *", "If-None-Match: *"],
        &[&good, &good],
        &["If-None-Match: *", "If-None-Match: *"],
        &["Idempotency-Key: mine"],
        &["Idempotency-Key:"],
        &["Idempotency-Key: 9b2c8f1e-5a57-4a0c-8f29-3f4b7d5f8a61", "Idempotency-Key: x"],
    ] {
        running.ask("POST /rpc?key=k&value=2", headers, "").await.refusal(400);
        running.ask("DELETE /rpc?key=k", headers, "").await.refusal(400);
    }
    for path in [
        "POST /rpc?key=k&value=2&timeout=soon",
        "POST /rpc?key=k&value=2&timeout=2h",
        "DELETE /rpc?key=k&timeout=",
    ] {
        running.ask(path, &[&good], "").await.refusal(400);
    }
    running.ask("POST /rpc/batch", &["If-Match: *"], "{}").await.refusal(400);
    for path in ["GET /rpc?key=k", "GET /rpc?key=k&consistency=strong", "GET /rpc/scan"] {
        let why = running.ask(path, &[&good], "").await.refusal(400);
        assert!(why.contains("if-match has no meaning on a read"), "{path}: {why}");
    }
    assert_eq!(running.value("k").await.as_deref(), Some("1"));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_the_nodes_are_refused() {
    let running = Running::start(&[]).await;
    for line in [
        "GET /rpc?key=%00level",
        "GET /rpc/cluster?key=%00level",
        "POST /rpc?key=%00level&value=1",
        "DELETE /rpc?key=%00",
        "POST /rpc?key=%00barrier&value=1",
    ] {
        assert!(running.ask(line, &[], "").await.refusal(400).contains("U+0000"), "{line}");
    }
    let answer = running.ask("POST /rpc/batch", &[], "{\"op\":\"delete\",\"key\":\"\\u0000level\"}").await;
    assert!(answer.body.contains("\"status\":400") && answer.body.contains("U+0000"), "{answer:?}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_that_create_a_key_cost_one_record() {
    let running = Running::start(&[]).await;
    let calls = (0..100).map(|n| {
        let running = &running;
        async move { running.ask(&format!("POST /rpc?key=k&value={n}"), &["If-None-Match: *"], "").await }
    });
    let answers = join_all(calls).await;
    let winners: Vec<_> = answers.iter().filter(|answer| answer.status == 200).collect();
    assert_eq!(winners.len(), 1, "{winners:?}");
    let value = winners[0].json()["value"].as_str().expect("text").to_owned();
    for answer in answers.iter().filter(|answer| answer.status != 200) {
        not_met(answer, Some(&value));
    }
    assert_eq!(attempts(&running).await, 1);
    running.stop().await;
}

/// Adds 1 to a number so often, and tells how often that had to be tried.
async fn count(address: &Address, times: u64) -> u64 {
    let mut tried = 0;
    for _ in 0..times {
        loop {
            tried += 1;
            let read = ask_at(address, "GET /rpc?key=counter", &[]).await;
            let number: u64 = read.json()["value"].as_str().expect("text").parse().expect("a number");
            let line = format!("POST /rpc?key=counter&value={}", number + 1);
            match ask_at(address, &line, &[&if_match(&etag(&read))]).await {
                answer if answer.status == 200 => break,
                answer => assert_eq!(answer.status, 412, "{answer:?}"),
            }
        }
    }
    tried
}

async fn node(folder: &Path, log: &Arc<EmbeddedLog>) -> (Node, Address) {
    let log: Arc<dyn Log> = Arc::<EmbeddedLog>::clone(log);
    let (node, address) = start(folder, log, &[], None).await;
    ready(&node).await;
    (node, address)
}

#[tokio::test(flavor = "multi_thread")]
async fn sixteen_clients_at_two_nodes_count_and_repair() {
    const TIMES: u64 = 10;
    let folder = tempfile::tempdir().expect("a folder");
    let log = EmbeddedLog::open(DataDir::open(&folder.path().join("log")).expect("a folder"), "topic", 4);
    let log = Arc::new(log.expect("a log"));
    let (one, first) = node(&folder.path().join("one"), &log).await;
    let (two, second) = node(&folder.path().join("two"), &log).await;
    etag(&ask_at(&first, "POST /rpc?key=counter&value=0", &["If-None-Match: *"]).await);
    let strong = ask_at(&second, "GET /rpc?key=counter&consistency=strong", &[]).await;
    assert_eq!(strong.status, 200, "{strong:?}");
    join_all((0..16).map(|n| count(if n % 2 == 0 { &first } else { &second }, TIMES))).await;
    let sum = |name: &'static str| {
        let (first, second) = (&first, &second);
        async move { metric_at(first, name).await + metric_at(second, name).await }
    };
    let in_effect = sum("bitacora_conditional_writes_total{outcome=\"in_effect\"}").await;
    let lost = sum("bitacora_conditional_writes_total{outcome=\"lost\"}").await;
    assert_eq!(in_effect, 16 * TIMES + 1);
    assert_eq!(sum("bitacora_conditional_write_attempts_total").await, in_effect + lost);
    // Those that lost are repaired, unless a later write has made that needless.
    assert!(sum("bitacora_conditional_write_repairs_total").await <= lost);
    for address in [&first, &second] {
        let read = ask_at(address, "GET /rpc?key=counter&consistency=strong", &[]).await;
        assert_eq!(read.json()["value"], (16 * TIMES).to_string(), "{read:?}");
    }
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_call_is_answered_with_its_record() {
    let running = Running::start(&[]).await;
    let key = format!("Idempotency-Key: {UUID}");
    for headers in [&["If-None-Match: *", &*key][..], &[&*key]] {
        let first = running.ask("POST /rpc?key=k&value=1", headers, "").await;
        assert_eq!(first.json()["uuid"], UUID);
        let again = running.ask("POST /rpc?key=k&value=other", headers, "").await;
        assert_eq!((etag(&again), again.json()), (etag(&first), first.json()), "the record that was written");
        running.ask("DELETE /rpc?key=k", &[], "").await;
    }
    let deleted = running
        .ask("DELETE /rpc?key=k", &[&format!("Idempotency-Key: \"{}\"", UUID.to_uppercase())], "")
        .await;
    let again = running.ask("DELETE /rpc?key=k", &[&key], "").await;
    assert_eq!(again.header("bitacora-position"), deleted.header("bitacora-position"), "{again:?}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_of_a_batch_have_conditions() {
    let running = Running::start(&[]).await;
    let version = etag(&running.ask("POST /rpc?key=k&value=1", &[], "").await);
    let version = version.trim_matches('"');
    let lines = [
        json!({ "op": "set", "key": "new", "value": "1", "ifAbsent": true, "uuid": UUID }),
        json!({ "op": "set", "key": "k", "value": "2", "ifAbsent": true }),
        json!({ "op": "delete", "key": "other", "ifMatch": "*" }),
        json!({ "op": "set", "key": "k", "value": "2", "ifMatch": version, "ifAbsent": true }),
        json!({ "op": "set", "key": "k", "value": "2", "ifMatch": format!("\"{version}\"") }),
        json!({ "op": "set", "key": "k", "value": "2", "uuid": "mine" }),
        json!({ "op": "delete", "key": "k", "ifMatch": version }),
    ];
    let body: Vec<_> = lines.iter().map(ToString::to_string).collect();
    let answer = running.ask("POST /rpc/batch", &[], &body.join("\n")).await;
    let results: Vec<Value> = answer
        .body
        .lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let statuses: Vec<_> = results.iter().filter_map(|result| result["status"].as_u64()).collect();
    assert_eq!(statuses, [200, 412, 412, 400, 400, 400, 200], "{results:?}");
    assert_eq!(results[0]["uuid"], UUID);
    assert_eq!((&results[1]["current"]["value"], &results[1]["position"]), (&json!("1"), &json!(version)));
    assert_eq!((&results[2]["current"], results[2].get("position").is_some()), (&Value::Null, true));
    assert!(results[3]["message"].as_str().expect("text").contains("contradict"), "{:?}", results[3]);
    assert_eq!(running.value("k").await, None);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_the_originals_nodes_there_are_none() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = EmbeddedLog::open(DataDir::open(&folder.path().join("log")).expect("a folder"), "topic", 4);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let rpc_listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = |listener: &TcpListener| listener.local_addr().expect("bound").port();
    let (host, api_port, avro_port) = ("127.0.0.1".to_owned(), port(&listener), port(&rpc_listener));
    let address = Address { host, api_port, avro_port };
    let node = Node::start(Parts {
        log: Arc::new(log.expect("a log")),
        membership: Arc::new(FixedMembership::new(vec![address.api()], &address.api())),
        data_dir: DataDir::open(&folder.path().join("node")).expect("a folder"),
        listener,
        rpc_listener,
        address: address.clone(),
        original_nodes: true,
        settings: settings(&[]),
        hangups: tokio::sync::watch::channel(()).1,
    });
    let node = node.expect("it starts");
    ready(&node).await;
    let refused = ask_at(&address, "POST /rpc?key=k&value=1", &["If-None-Match: *"]).await;
    assert!(refused.refusal(501).contains("ORIGINAL_NODES"), "{refused:?}");
    assert_eq!(ask_at(&address, "POST /rpc?key=k&value=1", &[]).await.status, 200);
    node.stop().await;
}

/// A member that answers every request with this status.
async fn member(status: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 4096]).await;
            let length = status.len();
            let answer =
                format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{status}");
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn all_members_must_know_conditional_writes() {
    let older = member("{\"node\":\"older\",\"version\":\"0.0.1\"}").await;
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let away = silent.local_addr().expect("bound").to_string();
    drop(silent);
    let newer = member("{\"node\":\"newer\",\"log_level\":2}").await;
    for (other, status) in [(older, 501), (away, 503), (newer, 200)] {
        let folder = tempfile::tempdir().expect("a folder");
        let log = EmbeddedLog::open(DataDir::open(&folder.path().join("log")).expect("a folder"), "topic", 4);
        let log: Arc<dyn Log> = Arc::new(log.expect("a log"));
        let (node, address) = start(&folder.path().join("node"), log, &[], Some(other.clone())).await;
        ready(&node).await;
        let answer = ask_at(&address, "POST /rpc?key=k&value=1", &["If-None-Match: *"]).await;
        assert_eq!(answer.status, status, "{answer:?}");
        assert_eq!(answer.json().get("mayTakeEffect"), (status == 503).then_some(&json!(false)));
        if status != 200 {
            assert!(answer.refusal(status).contains(&other), "{answer:?}");
        }
        let own = ask_at(&address, "GET /status", &[]).await;
        assert_eq!(own.json()["log_level"], 2);
        node.stop().await;
    }
}
