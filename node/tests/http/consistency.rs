//! Reads that must see more than what the node happens to hold.

use futures_util::future::join_all;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::support::PATIENCE;
use super::{Answer, Running, request};

/// The position that an answer names.
fn position(answer: &Answer) -> String {
    answer.header("bitacora-position").unwrap_or_else(|| panic!("no position: {answer:?}")).to_owned()
}

/// A position in the partition of another, so many offsets behind it.
fn behind(position: &str, offsets: i64) -> String {
    let (partition, offset) = position.split_once(':').expect("a position");
    format!("{partition}:{}", offset.parse::<i64>().expect("a number") + offsets)
}

impl Running {
    /// A metric's value; its labels belong to its name.
    async fn metric(&self, name: &str) -> f64 {
        let answer = self.ask("GET /metrics", &[], "").await;
        let value = answer.body.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        value.unwrap_or_else(|| panic!("no metric {name}"))
    }

    /// Waits until nobody waits for a position.
    async fn nobody_waits(&self) {
        let nobody = async { while self.metric("bitacora_position_waits ").await > 0.0 {} };
        timeout(PATIENCE, nobody).await.expect("all waits end");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_reads_its_own_writes() {
    let running = Running::start(&[]).await;
    for n in 0..50 {
        let written = running.ask(&format!("POST /rpc?key=k&value={n}"), &[], "").await;
        let at = position(&written);
        let in_query = format!("GET /rpc?key=k&consistency=session&position={at}");
        let in_header = format!("Bitacora-Position: {at}");
        let read = match n % 2 {
            0 => running.ask(&in_query, &[], "").await,
            _ => running.ask("GET /rpc?key=k&consistency=session", &[&in_header], "").await,
        };
        assert_eq!((read.status, &read.json()["value"]), (200, &n.to_string().into()), "{read:?}");
        assert_eq!(position(&read), at);
    }
    let deleted = running.ask("DELETE /rpc?key=k", &[], "").await;
    let at = position(&deleted);
    let head = format!("HEAD /rpc?key=k&consistency=session&position={at}");
    assert_eq!(running.ask(&head, &[], "").await.status, 404);
    let scan = format!("GET /rpc/scan?consistency=session&position={at}");
    let page = running.ask(&scan, &[], "").await;
    assert_eq!(page.json()["records"], serde_json::json!([]));
    // What shows no key is as far as what deleted it: who goes on from there does not see it elsewhere.
    let positions = page.header("bitacora-position").expect("a session goes on from it").to_owned();
    assert!(positions.split(',').any(|position| position == at), "{positions}");
    let next = format!("GET /rpc/scan?consistency=session&position={positions}");
    assert_eq!(running.ask(&next, &[], "").await.status, 200);
    running.nobody_waits().await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_that_is_not_there_in_time_is_503() {
    let running = Running::start(&[]).await;
    let at = position(&running.ask("POST /rpc?key=k&value=v", &[], "").await);
    let later = behind(&at, 1_000_000);
    for call in ["GET /rpc?key=k", "GET /rpc/scan?prefix=k", "GET /rpc/cluster?key=k"] {
        let (path, query) = call.split_once('?').expect("a query");
        let line = format!("{path}?{query}&consistency=session&position={later}&timeout=20");
        let answer = running.ask(&line, &[], "").await;
        let sentence = answer.refusal(503);
        assert!(sentence.contains(&later) && sentence.contains("within 20 ms"), "{sentence}");
        assert_eq!(answer.header("retry-after"), Some("1"), "{answer:?}");
        let own = position(&answer);
        assert!(own.split(',').any(|own| own == at), "{own} has not {at}");
    }
    assert!(
        running.metric("bitacora_read_waits_total{level=\"session\",outcome=\"timed_out\"} ").await > 2.0
    );
    running.nobody_waits().await;
    running.stop().await;
}

/// Over HTTP, a caller that has gone can't be told from one that has closed its sending half and waits for the answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_wait_whose_caller_has_gone_ends_with_its_deadline() {
    let running = Running::start(&[]).await;
    let line = "GET /rpc?key=k&consistency=session&position=0:999,1:999,2:999,3:999&timeout=2s";
    let mut callers = Vec::new();
    for _ in 0..20 {
        let mut caller = TcpStream::connect(running.address.api()).await.expect("a connection");
        caller.write_all(&request(line, &[], b"")).await.expect("it is taken");
        callers.push(caller);
    }
    let all_wait = async { while running.metric("bitacora_position_waits ").await < 20.0 {} };
    timeout(PATIENCE, all_wait).await.expect("all of them wait");
    drop(callers);
    running.nobody_waits().await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_whose_caller_resets_the_connection_ends_at_once() {
    let running = Running::start(&[]).await;
    let line = "GET /rpc?key=k&consistency=session&position=0:999,1:999,2:999,3:999&timeout=60s";
    let mut caller = TcpStream::connect(running.address.api()).await.expect("a connection");
    caller.write_all(&request(line, &[], b"")).await.expect("it is taken");
    let waits = async { while running.metric("bitacora_position_waits ").await < 1.0 {} };
    timeout(PATIENCE, waits).await.expect("it waits");
    caller.set_zero_linger().expect("it is open");
    drop(caller);
    let nobody = async { while running.metric("bitacora_position_waits ").await > 0.0 {} };
    timeout(PATIENCE / 2, nobody).await.expect("long before its deadline");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_is_400() {
    let running = Running::start(&[]).await;
    for (query, headers, says) in [
        ("consistency=maybe", &[][..], "'maybe' is none of eventual, session, latest, strong"),
        ("consistency=", &[], "is none of"),
        ("consistency=session", &[], "needs the session's position"),
        ("consistency=session&position=", &[], "the position is empty"),
        ("consistency=session&position=0:1,0:2", &[], "named twice"),
        ("consistency=session&position=0", &[], "position"),
        ("consistency=session&position=4:1", &[], "there is no partition 4; the topic has 4"),
        ("consistency=session&position=0:1,2147483647:9223372036854775807", &[], "no partition 2147483647"),
        ("consistency=session&position=0:1", &["Bitacora-Position: 0:2"], "different positions"),
        ("consistency=session", &["Bitacora-Position: 0:1", "Bitacora-Position: 0:1"], "given twice"),
        ("consistency=session&position=0:1&position=0:1", &[], "'position' twice"),
        ("position=0:1", &[], "consistency=session only, and this is consistency=eventual"),
        ("consistency=strong", &["Bitacora-Position: 0:1"], "this is consistency=strong"),
        ("consistency=latest&position=0:1", &[], "this is consistency=latest"),
        ("timeout=61s", &[], "60 s at most"),
        ("timeout=60001", &[], "60 s at most"),
        ("consistency=strong&timeout=abc", &[], "timeout: 'abc' is not a time"),
        ("max_staleness=2", &[], "max_staleness: "),
        ("max_staleness=0s", &[], "it must be above 0"),
        ("consistency=strong&max_staleness=x", &[], "max_staleness: "),
    ] {
        for call in ["GET /rpc?key=k", "GET /rpc/scan?prefix=k", "GET /rpc/cluster?key=k"] {
            let answer = running.ask(&format!("{call}&{query}"), headers, "").await;
            let sentence = answer.refusal(400);
            assert!(sentence.contains(says), "{call}&{query}: {sentence}");
        }
    }
    for call in ["GET /rpc?key=%00k", "POST /rpc?key=%00k&value=v", "DELETE /rpc?key=%00barrier"] {
        let sentence = running.ask(call, &[], "").await.refusal(400);
        assert!(sentence.contains("U+0000"), "{sentence}");
    }
    running.nobody_waits().await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_knows_how_old_its_data_may_be() {
    let running = Running::start(&[]).await;
    let at = position(&running.ask("POST /rpc?key=k&value=v", &[], "").await);
    for query in
        ["max_staleness=50s".to_owned(), format!("consistency=session&position={at}&max_staleness=50s")]
    {
        let answer = running.ask(&format!("GET /rpc?key=k&{query}"), &[], "").await;
        assert!(matches!(answer.status, 200 | 404), "{answer:?}");
        assert_eq!(running.ask(&format!("GET /rpc/scan?{query}"), &[], "").await.status, 200);
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_the_reader_has_is_304() {
    let running = Running::start(&[]).await;
    let written = running.ask("POST /rpc?key=k&value=v", &[], "").await;
    let at = position(&written);
    let tag = format!("\"{at}\"");
    assert_eq!(written.header("etag"), Some(&*tag));
    let session = format!("consistency=session&position={at}");
    for method in ["GET", "HEAD"] {
        for tags in [tag.clone(), format!("W/{tag}"), format!("\"9:9\", {tag}"), "*".to_owned()] {
            let header = format!("If-None-Match: {tags}");
            let answer = running.ask(&format!("{method} /rpc?key=k&{session}"), &[&header], "").await;
            assert_eq!((answer.status, &*answer.body), (304, ""), "{tags}: {answer:?}");
            assert_eq!((answer.header("etag"), position(&answer)), (Some(&*tag), at.clone()), "{answer:?}");
        }
        let header = format!("If-None-Match: \"{}\"", behind(&at, 1));
        let answer = running.ask(&format!("{method} /rpc?key=k&{session}"), &[&header], "").await;
        assert_eq!((answer.status, answer.header("etag")), (200, Some(&*tag)), "{answer:?}");
    }
    let sentence = running.ask("GET /rpc?key=k", &["If-None-Match: 0:1"], "").await.refusal(400);
    assert!(sentence.contains("double quotes"), "{sentence}");

    let deleted = running.ask("DELETE /rpc?key=k", &[], "").await;
    assert_eq!(deleted.header("etag"), None, "{deleted:?}");
    let session = format!("consistency=session&position={}", position(&deleted));
    let answer = running.ask(&format!("GET /rpc?key=k&{session}"), &["If-None-Match: *"], "").await;
    assert_eq!((answer.status, answer.header("etag")), (404, None), "{answer:?}");
    running.stop().await;
}

/// How far the log is, all partitions together.
async fn appended(running: &Running) -> i64 {
    let status = running.ask("GET /status", &[], "").await.json();
    let partitions = status["partitions"].as_array().expect("a list").iter();
    partitions.map(|partition| partition["applied"].as_i64().expect("a number") + 1).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn latest_and_strong_reads_see_what_was_acknowledged() {
    let running = Running::start(&[]).await;
    for n in 0..40 {
        let written = running.ask(&format!("POST /rpc?key=k&value={n}"), &[], "").await;
        assert_eq!(written.status, 200, "{written:?}");
        let level = if n % 2 == 0 { "latest" } else { "strong" };
        let read = running.ask(&format!("GET /rpc?key=k&consistency={level}"), &[], "").await;
        assert_eq!(read.status, 200, "{level}: {read:?}");
        assert_eq!(read.json()["value"], n.to_string(), "{level}");
        let scan = running.ask(&format!("GET /rpc/scan?consistency={level}"), &[], "").await.json();
        let records = scan["records"].as_array().expect("a list");
        assert_eq!((records.len(), &records[0]["value"]), (1, &n.to_string().into()), "{level}: {scan}");
    }
    let fresh = running.ask("GET /rpc?key=k&consistency=strong&max_staleness=30s", &[], "").await;
    assert_eq!(fresh.status, 200, "{fresh:?}");
    assert!(running.metric("bitacora_barriers_total{outcome=\"failed\"} ").await < 1.0);
    running.nobody_waits().await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_strong_reads_cost_a_few_barriers() {
    let running = Running::start(&[]).await;
    running.ask("POST /rpc?key=k&value=v", &[], "").await;
    let sure = running.ask("GET /rpc/scan?consistency=strong", &[], "").await;
    assert_eq!(sure.status, 200, "{sure:?}");
    let before = appended(&running).await;
    // As many connections as a process may usually have, one after the other.
    for _ in 0..5 {
        let reads = (0..200).map(|_| running.ask("GET /rpc?key=k&consistency=strong", &[], ""));
        for read in join_all(reads).await {
            assert_eq!(read.status, 200, "{read:?}");
        }
    }
    // The last of them may still be on its way to the status.
    let sure = running.ask("GET /rpc/scan?consistency=strong", &[], "").await;
    assert_eq!(sure.status, 200, "{sure:?}");
    let barriers = appended(&running).await - before - 4;
    assert!((1..=250).contains(&barriers), "{barriers} barriers");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batchs_lines_say_how_consistent_they_are() {
    let running = Running::start(&[]).await;
    let at = position(&running.ask("POST /rpc?key=k&value=v", &[], "").await);
    let later = behind(&at, 1_000_000);
    let options = [
        format!("\"consistency\":\"session\",\"position\":\"{at}\""),
        "\"consistency\":\"latest\",\"timeout\":\"5s\"".to_owned(),
        format!("\"consistency\":\"session\",\"position\":\"{later}\",\"timeout\":\"20\""),
        "\"consistency\":\"session\"".to_owned(),
        "\"consistency\":\"maybe\"".to_owned(),
        "\"maxStaleness\":\"2\"".to_owned(),
        "\"consistency\":\"strong\",\"maxStaleness\":\"30s\"".to_owned(),
    ];
    let line = "{\"op\":\"get\",\"key\":\"k\",\"consistency\":\"strong\"}\n".repeat(1_000);
    let lines: String = options.iter().map(|of| format!("{{\"op\":\"get\",\"key\":\"k\",{of}}}\n")).collect();
    let before = running.metric("bitacora_barriers_total{outcome=\"acknowledged\"} ").await;
    let answer = running.ask("POST /rpc/batch", &[], &(line + &lines)).await;
    let lines = answer.body.lines().filter(|line| line.starts_with('{'));
    let results: Vec<serde_json::Value> = lines.filter_map(|line| serde_json::from_str(line).ok()).collect();
    let statuses: Vec<_> = results.iter().filter_map(|result| result["status"].as_u64()).collect();
    assert!(statuses[..1_000].iter().all(|status| *status == 200), "{answer:?}");
    assert_eq!(statuses[1_000..], [200, 200, 503, 400, 400, 400, 200], "{answer:?}");
    // The barriers before it may be applied by then.
    let (partition, _) = at.split_once(':').expect("a position");
    let applied = results[1_002]["position"].as_str().expect("text");
    assert!(applied.starts_with(&format!("{partition}:")), "{answer:?}");
    let barriers = running.metric("bitacora_barriers_total{outcome=\"acknowledged\"} ").await - before;
    assert!(barriers <= 100.0, "{barriers} barriers");
    running.nobody_waits().await;
    running.stop().await;
}
