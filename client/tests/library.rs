//! The client library against nodes that do as they are told.

mod support;

#[path = "support/zookeeper.rs"]
mod zookeeper;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bitacora_client::{
    Client, ClientBuilder, Error, NodeState, Operation, Outcome, Position, Refusal, Scan, ServedFrom,
};
use bitacora_protocol::rpc::{ErrorCode, MAX_BATCH_OPERATIONS, Request};
use futures_util::future::{join_all, poll_immediate};
use futures_util::{StreamExt, TryStreamExt};
use support::{FakeNode, Greeting, Reaction, Store, lock};
use tokio::sync::Semaphore;
use zookeeper::FakeZooKeeper;

/// Nothing takes that long unless it is broken.
const PATIENCE: Duration = Duration::from_secs(20);
/// Of calls that are meant to run into it.
const SHORT: Duration = Duration::from_millis(200);

fn builder(nodes: &[&FakeNode]) -> ClientBuilder {
    Client::builder()
        .nodes(nodes.iter().map(|node| node.address()))
        .deadline(PATIENCE)
        .connections_per_node(1)
}

async fn client(nodes: &[&FakeNode]) -> Client {
    builder(nodes).build().await.expect("the settings are right")
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn ejected(client: &Client, node: &str) -> Option<String> {
    let status = client.nodes().into_iter().find(|status| status.address == node).expect("it is a member");
    match status.state {
        NodeState::Healthy => None,
        NodeState::Ejected { reason } => Some(reason),
    }
}

fn under_way(client: &Client) -> usize {
    client.nodes().iter().map(|node| node.under_way).sum()
}

/// Reads until the node is ejected; none of the reads may fail.
async fn read_until_ejected(client: &Client, node: &FakeNode) -> String {
    let start = Instant::now();
    loop {
        client.get("k").await.expect("the other node has it");
        if let Some(reason) = ejected(client, &node.address()) {
            return reason;
        }
        assert!(start.elapsed() < PATIENCE, "it is never ejected");
    }
}

/// Two nodes of one cluster.
async fn two() -> (Arc<Mutex<Store>>, FakeNode, FakeNode) {
    let store = Arc::default();
    (Arc::clone(&store), FakeNode::of(&store).await, FakeNode::of(&store).await)
}

fn set(key: &str, value: &str) -> Operation {
    Operation::Set { key: key.to_owned(), value: value.to_owned(), ttl: None }
}

fn get(key: &str) -> Operation {
    Operation::Get { key: key.to_owned() }
}

#[tokio::test]
async fn calls_and_their_answers() {
    let node = FakeNode::start().await;
    let client = client(&[&node]).await;
    let Err(Error::NotFound { key, position, timestamp: None, .. }) = client.get("k").await else {
        panic!("there is no key yet")
    };
    assert_eq!((key.as_str(), position), ("k", Position { partition: 0, offset: -1 }));
    let written = client.set("k", "välue").await.expect("it is written");
    assert_eq!((written.position, written.ttl), (Position { partition: 0, offset: 0 }, 0));
    let record = client.get("k").await.expect("it is there");
    assert_eq!(
        (record.key.as_str(), record.value.as_str(), record.position),
        ("k", "välue", written.position)
    );
    assert_eq!((&record.uuid, record.timestamp), (&written.uuid, written.timestamp));
    assert_eq!(record.served_from, ServedFrom::Cache);
    assert_eq!(
        serde_json::json!(record),
        serde_json::json!({"key": "k", "value": "välue", "timestamp": written.timestamp, "source": 1, "ttl": 0,
            "uuid": written.uuid, "position": "0:0", "served_from": "cache"})
    );

    // Nothing in a key is special, and an empty value is a value.
    client.set("&=%+/ \u{0}ü", "").await.expect("it is written");
    assert_eq!(client.get("&=%+/ \u{0}ü").await.expect("it is there").value, "");

    // Counted in ms, rounded to at least one.
    for (ttl, ms) in [(Duration::from_secs(2), 2000), (Duration::from_nanos(1), 1)] {
        let written = client.set_with_ttl("k", "v", ttl).await.expect("it is written");
        assert_eq!(written.ttl, written.timestamp + ms);
    }
    let refused = client.set_with_ttl("k", "v", Duration::ZERO).await.expect_err("that is no time");
    assert!(matches!(refused, Error::Refused { refusal: Refusal::BadRequest, .. }), "{refused:?}");

    let deleted = client.delete("k").await.expect("it is deleted");
    assert_eq!(deleted.ttl, -1);
    let missing = client.get("k").await.expect_err("it is deleted");
    assert!(missing.is_not_found() && !missing.is_retryable());
    let Error::NotFound { position, timestamp, .. } = missing else { panic!("{missing:?}") };
    assert_eq!((position, timestamp), (deleted.position, Some(deleted.timestamp)));
}

#[tokio::test]
async fn settings_that_make_no_sense_are_refused() {
    let zookeeper = || "localhost:2181".parse().expect("it is a connect string");
    let good = || Client::builder().nodes(["localhost:1"]);
    for (builder, names) in [
        (Client::builder(), "nodes"),
        (good().zookeeper(zookeeper()), "both"),
        (good().nodes(["localhost"]), "host:port"),
        (good().deadline(Duration::ZERO), "deadline"),
        (good().connect_timeout(Duration::ZERO), "connect_timeout"),
        (good().zookeeper_session_timeout(Duration::ZERO), "session"),
        (good().connections_per_node(0), "connections_per_node"),
    ] {
        let error = builder.build().await.expect_err(names);
        assert!(matches!(&error, Error::Settings(text) if text.contains(names)), "{error}");
    }
    // Without a limit is fine.
    let (_, one, other) = two().await;
    let client = client(&[&one, &other]).await.with_deadline(Duration::MAX);
    client.set("k", "v").await.expect("it may take for ever");
    client.get("k").await.expect("it may take for ever");
}

#[tokio::test]
async fn answers_come_in_any_order_and_go_to_their_calls() {
    let node = FakeNode::start().await;
    let client = client(&[&node]).await;
    for key in ["a", "b", "c"] {
        client.set(key, key).await.expect("it is written");
    }
    let (a, b) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let permits = (Arc::clone(&a), Arc::clone(&b));
    node.script(move |_, request| match request {
        Request::GetRecord { key: "a" } => Reaction::When(Arc::clone(&permits.0)),
        Request::GetRecord { key: "b" } => Reaction::When(Arc::clone(&permits.1)),
        _ => Reaction::Answer,
    });
    let (mut first, mut second) = (Box::pin(client.get("a")), Box::pin(client.get("b")));
    assert!(poll_immediate(&mut first).await.is_none() && poll_immediate(&mut second).await.is_none());
    assert_eq!(client.get("c").await.expect("it is not held up").value, "c");
    b.add_permits(1);
    assert_eq!(second.await.expect("it is answered").value, "b");
    assert!(poll_immediate(&mut first).await.is_none());
    a.add_permits(1);
    assert_eq!(first.await.expect("it is answered").value, "a");
    assert_eq!(node.inner.accepted.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn callers_share_the_making_of_a_connection() {
    let node = FakeNode::start().await;
    let client = client(&[&node]).await;
    for result in join_all((0..20).map(|_| client.set("k", "v"))).await {
        result.expect("it is written");
    }
    assert_eq!(node.inner.accepted.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn more_calls_than_a_connection_carries_wait_their_turn() {
    let node = FakeNode::start().await;
    let client = client(&[&node]).await;
    client.set("k", "v").await.expect("it is written");
    let permits = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&permits);
    node.script(move |_, _| Reaction::When(Arc::clone(&held)));
    let calls = tokio::spawn({
        let client = client.clone();
        async move { join_all((0..5000).map(|_| client.get("k"))).await }
    });
    until("all that fit are there", || node.calls() == 1 + 4096).await;
    assert_eq!(under_way(&client), 5000);
    permits.add_permits(5000);
    for result in calls.await.expect("no panic") {
        result.expect("it is there");
    }
    assert_eq!(under_way(&client), 0);
}

#[tokio::test]
async fn a_call_that_is_dropped_takes_no_other_calls_answer() {
    let node = FakeNode::start().await;
    let client = client(&[&node]).await;
    client.set("a", "1").await.expect("it is written");
    client.set("b", "2").await.expect("it is written");
    let permits = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&permits);
    node.script(move |_, request| match request {
        Request::GetRecord { key: "a" } => Reaction::When(Arc::clone(&held)),
        _ => Reaction::Answer,
    });
    let mut dropped = Box::pin(client.get("a"));
    assert!(poll_immediate(&mut dropped).await.is_none());
    until("the node has it", || node.calls() == 3).await;
    drop(dropped);
    assert_eq!(under_way(&client), 0);
    let other = client.get("b");
    permits.add_permits(1);
    assert_eq!(other.await.expect("it is there").value, "2");
    for _ in 0..10 {
        assert_eq!(client.get("b").await.expect("it is there").value, "2");
    }
    assert_eq!(node.inner.accepted.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_connection_with_too_many_unanswered_calls_is_given_up() {
    let node = FakeNode::start().await;
    let client = client(&[&node]).await;
    client.set("k", "v").await.expect("it is written");
    node.script(|number, _| if number <= 1100 { Reaction::Never } else { Reaction::Answer });
    let calls: Vec<_> = (0..1100).map(|_| Box::pin(client.get("k"))).collect();
    let mut all = Box::pin(join_all(calls));
    assert!(poll_immediate(&mut all).await.is_none());
    until("the node has them", || node.calls() == 1101).await;
    drop(all);
    assert_eq!(client.get("k").await.expect("it is there").value, "v");
    assert_eq!(node.inner.accepted.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn handshakes() {
    let node = FakeNode::start().await;
    node.greeting(Greeting::AskText);
    let first = client(&[&node]).await;
    first.set("k", "v").await.expect("it is told the protocol");
    assert_eq!(node.inner.accepted.load(Ordering::SeqCst), 1);

    // Another protocol that declares what is used, as the original's Java prints types.
    let text = r#"{"protocol":"Other","types":[],"messages":{
        "getRecord":{"request":[{"name":"key","type":{"type":"string","avro.java.string":"String"}}]},
        "setRecord":{"request":[{"name":"key","type":"string"},{"name":"value","type":"string"}]}}}"#;
    node.greeting(Greeting::Client(text));
    let second = client(&[&node]).await;
    assert_eq!(second.get("k").await.expect("the message is declared").value, "v");
    let calls = node.calls();
    for error in
        [second.delete("k").await, second.set("k", "w").await].map(|result| result.expect_err("not declared"))
    {
        assert!(matches!(&error, Error::Protocol(failure) if failure.reason.contains("Record")), "{error}");
        assert!(!error.may_have_taken_effect() && !error.is_retryable());
    }
    assert_eq!(node.calls(), calls);

    for (greeting, reason) in [
        (Greeting::Refuse, "refuses"),
        (Greeting::Bytes(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "a frame of"),
        (Greeting::Bytes(&[0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 9]), "handshake"),
    ] {
        node.greeting(greeting);
        let client = builder(&[&node]).deadline(SHORT).build().await.expect("the settings are right");
        let error = client.set("k", "v").await.expect_err("there is no connection");
        assert!(matches!(&error, Error::NoNode { last: Some(last) } if last.contains(reason)), "{error}");
    }
}

#[tokio::test]
async fn a_silent_handshake_is_given_up_after_the_connect_timeout() {
    let (_, silent, good) = two().await;
    silent.greeting(Greeting::Silent);
    let client =
        builder(&[&silent, &good]).connect_timeout(SHORT).build().await.expect("the settings are right");
    for _ in 0..10 {
        client.set("k", "v").await.expect("the other node takes it");
    }
    assert!(
        ejected(&client, &silent.address()).is_some_and(|reason| reason.contains("no connection within"))
    );
}

#[tokio::test]
async fn a_deadline_ends_every_call_and_tells_whether_a_write_was_sent() {
    let node = FakeNode::start().await;
    node.script(|_, _| Reaction::Never);
    let client = client(&[&node]).await.with_deadline(SHORT);
    let start = Instant::now();
    let read = client.get("k").await.expect_err("nobody answers");
    assert!(matches!(&read, Error::TimedOut { after: SHORT, .. }), "{read:?}");
    assert!(!read.may_have_taken_effect() && read.is_retryable());
    let written = client.set("k", "v").await.expect_err("nobody answers");
    assert!(matches!(&written, Error::TimedOut { .. }) && written.may_have_taken_effect(), "{written:?}");
    let elapsed = start.elapsed();
    assert!(elapsed >= 2 * SHORT && elapsed < PATIENCE / 2, "{elapsed:?}");

    // Not even begun.
    let calls = node.calls();
    let never = client.with_deadline(Duration::ZERO).set("k", "v").await.expect_err("there is no time");
    assert!(matches!(&never, Error::TimedOut { .. }) && !never.may_have_taken_effect(), "{never:?}");
    assert_eq!(node.calls(), calls);

    let address = node.kill().await;
    let unsent = client.set("k", "v").await.expect_err("nobody is there");
    assert!(matches!(&unsent, Error::NoNode { last: Some(last) } if last.contains(&address)), "{unsent:?}");
    assert!(!unsent.may_have_taken_effect() && unsent.is_retryable());
}

/// Every way in which one of two nodes can fail a read.
#[tokio::test]
async fn reads_go_on_elsewhere_whatever_a_node_does() {
    type Trouble = fn() -> Reaction;
    let troubles: [(&str, Trouble); 6] = [
        ("closes", || Reaction::Close),
        ("not ready", || Reaction::Fail(ErrorCode::NotReady)),
        ("internal", || Reaction::Fail(ErrorCode::Internal)),
        ("garbage", || Reaction::Bytes(vec![0xff; 20])),
        ("answers what nobody asked", || Reaction::Bytes(vec![0, 0, 9, 9, 0, 0, 0, 0])),
        ("hangs", || Reaction::Never),
    ];
    for (name, trouble) in troubles {
        let (_, bad, good) = two().await;
        let client = client(&[&bad, &good]).await.with_deadline(4 * SHORT);
        client.set("k", "v").await.expect("it is written");
        let before = bad.calls();
        bad.script(move |_, _| trouble());
        for call in join_all((0..20).map(|_| client.get("k"))).await {
            assert_eq!(call.expect(name).value, "v");
        }
        assert!(bad.calls() > before, "{name}: it was not even asked");
    }
}

#[tokio::test]
async fn a_read_that_no_node_can_answer_says_why() {
    type Trouble = fn() -> Reaction;
    let troubles: [(&str, Trouble); 5] = [
        ("not ready", || Reaction::Fail(ErrorCode::NotReady)),
        ("failed", || Reaction::Fail(ErrorCode::Internal)),
        ("closed the connection", || Reaction::Close),
        ("no frames", || Reaction::Bytes(vec![0xff; 20])),
        ("was not made", || Reaction::Bytes(vec![0, 0, 9, 9, 0, 0, 0, 0])),
    ];
    for (expected, trouble) in troubles {
        let node = FakeNode::start().await;
        node.script(move |_, _| trouble());
        let client = client(&[&node]).await.with_deadline(SHORT);
        let error = client.get("k").await.expect_err("no node knows");
        assert!(error.is_retryable() && error.to_string().contains(expected), "{error}");
        assert!(node.calls() > 1, "it was tried again");
    }
    // An attempt that the deadline cuts short does not hide it.
    let node = FakeNode::start().await;
    node.script(|number, _| if number == 0 { Reaction::Fail(ErrorCode::NotReady) } else { Reaction::Never });
    let error = client(&[&node]).await.with_deadline(SHORT).get("k").await.expect_err("it hangs");
    assert!(matches!(error, Error::NotReady { .. }), "{error}");
    assert_eq!(node.calls(), 2);
}

#[tokio::test]
async fn what_is_wrong_is_not_tried_again() {
    let node = FakeNode::start().await;
    let client = client(&[&node]).await;
    for (reaction, check) in [
        (Reaction::Fail(ErrorCode::BadRequest), "BadRequest"),
        (Reaction::Fail(ErrorCode::TooLarge), "TooLarge"),
        (Reaction::Text("No message named getRecord"), "No message named"),
        (Reaction::Message(vec![0, 0, 0]), "end inside"),
        (Reaction::Message(b"HTTP/1.1 200 OK".to_vec()), "its answer"),
    ] {
        let (calls, reaction) = (node.calls(), Mutex::new(Some(reaction)));
        node.script(move |_, _| lock(&reaction).take().unwrap_or(Reaction::Answer));
        let error = client.get("k").await.expect_err(check);
        assert!(!error.is_retryable() && error.to_string().contains(check), "{error}");
        assert_eq!(node.calls(), calls + 1);
    }
    // A write may have been done by a node whose answer can't be read.
    node.script(|_, _| Reaction::Message(vec![0, 0, 0]));
    assert!(client.set("k", "v").await.expect_err("it can't be read").may_have_taken_effect());
    // None of this is about the connection.
    assert_eq!(node.inner.accepted.load(Ordering::SeqCst), 1);

    let calls = node.calls();
    let large = client.set("k", &"x".repeat(4 << 20)).await.expect_err("a node would refuse it");
    assert!(matches!(large, Error::Refused { refusal: Refusal::TooLarge, .. }), "{large}");
    assert_eq!(node.calls(), calls);
}

#[tokio::test]
async fn writes_that_did_not_take_effect_are_tried_again() {
    for code in [ErrorCode::NotTaken, ErrorCode::NotReady] {
        let (store, bad, good) = two().await;
        let client = client(&[&bad, &good]).await;
        bad.script(move |_, _| Reaction::Fail(code));
        for _ in 0..20 {
            client.set("k", "v").await.expect("the other node takes it");
            client.delete("k").await.expect("the other node takes it");
        }
        assert!(bad.calls() > 0);
        assert_eq!(lock(&store).writes.len(), 40);
    }
    let (_, dead, good) = two().await;
    let client = client(&[&dead, &good]).await;
    let address = dead.kill().await;
    for _ in 0..20 {
        client.set("k", "v").await.expect("the other node takes it");
    }
    assert!(ejected(&client, &address).is_some());
}

#[tokio::test]
async fn a_write_that_was_not_handed_to_the_socket_is_sent_again() {
    let node = FakeNode::start().await;
    let client = builder(&[&node]).max_request_bytes(64 << 20).build().await.expect("the settings are right");
    client.get("k").await.expect_err("it connects");
    node.script(|_, _| Reaction::Stall);
    // The node reads no more, so what does not fit into the system's buffers stays here.
    client.with_deadline(Duration::from_millis(10)).get("k").await.expect_err("it stalls");
    let large = "x".repeat(48 << 20);
    let mut stuck = Box::pin(client.set("large", &large));
    assert!(poll_immediate(&mut stuck).await.is_none());
    let reads = tokio::spawn({
        let client = client.clone();
        async move { client.set("small", "v").await }
    });
    until("both are under way", || under_way(&client) == 2).await;
    let address = node.kill().await;
    let again = FakeNode::at(&address, &Arc::default()).await;
    let error = stuck.await.expect_err("a part of it was sent");
    assert!(matches!(error, Error::Unacknowledged { .. }) && error.may_have_taken_effect(), "{error}");
    reads.await.expect("no panic").expect("it was not sent before");
    assert_eq!(again.calls(), 1);
}

#[tokio::test]
async fn writes_whose_fate_is_unknown_are_left_to_the_caller() {
    type Trouble = fn() -> Reaction;
    let troubles: [(&str, Trouble); 3] = [
        ("closes", || Reaction::Close),
        ("not acknowledged", || Reaction::Fail(ErrorCode::MayTakeEffect)),
        ("internal", || Reaction::Fail(ErrorCode::Internal)),
    ];
    for (name, trouble) in troubles {
        let (_, one, other) = two().await;
        let client = client(&[&one, &other]).await;
        for node in [&one, &other] {
            node.script(move |_, _| trouble());
        }
        let error = client.set("k", "v").await.expect_err(name);
        assert!(error.may_have_taken_effect() && error.is_retryable(), "{name}: {error}");
        assert_eq!(one.calls() + other.calls(), 1, "{name}");
    }
}

#[tokio::test]
async fn writes_whose_fate_is_unknown_are_sent_again_if_that_is_asked_for() {
    type Trouble = fn() -> Reaction;
    let troubles: [(&str, Trouble); 4] = [
        ("closes", || Reaction::Close),
        ("not acknowledged", || Reaction::Fail(ErrorCode::MayTakeEffect)),
        ("internal", || Reaction::Fail(ErrorCode::Internal)),
        ("hangs", || Reaction::Never),
    ];
    for (name, trouble) in troubles {
        let (_, one, other) = two().await;
        let client = builder(&[&one, &other]).retry_ambiguous_writes(true).deadline(4 * SHORT);
        let client = client.build().await.expect("the settings are right");
        // Whichever gets it first.
        let first = Arc::new(AtomicBool::new(true));
        for node in [&one, &other] {
            let first = Arc::clone(&first);
            node.script(
                move |_, _| if first.swap(false, Ordering::SeqCst) { trouble() } else { Reaction::Answer },
            );
        }
        client.set("k", "v").await.expect(name);
        assert_eq!(one.calls() + other.calls(), 2, "{name}");
    }
    // What an earlier attempt may have done, a later one can't take back.
    let node = FakeNode::start().await;
    node.script(|number, _| {
        Reaction::Fail(if number == 0 { ErrorCode::MayTakeEffect } else { ErrorCode::NotTaken })
    });
    let client = builder(&[&node]).retry_ambiguous_writes(true).deadline(SHORT);
    let error =
        client.build().await.expect("the settings are right").set("k", "v").await.expect_err("never taken");
    assert!(node.calls() > 1 && error.may_have_taken_effect(), "{error}");
}

#[tokio::test]
async fn a_node_that_is_busy_gets_fewer_calls() {
    let (_, busy, idle) = two().await;
    let client = client(&[&busy, &idle]).await;
    busy.script(|_, _| Reaction::Never);
    let stuck = tokio::spawn({
        let client = client.clone();
        async move { join_all((0..2).map(|_| client.set("k", "v"))).await }
    });
    // Each went where nothing was under way.
    until("one is with each", || busy.calls() == 1 && idle.calls() == 1 && under_way(&client) == 1).await;
    for _ in 0..50 {
        client.set("k", "v").await.expect("the idle node takes it");
    }
    assert_eq!((busy.calls(), idle.calls()), (1, 51));
    stuck.abort();
}

#[tokio::test]
async fn a_node_that_dies_is_ejected_and_comes_back_by_itself() {
    let (store, node, other) = two().await;
    let client = client(&[&node, &other]).await;
    client.set("k", "v").await.expect("it is written");
    let address = node.kill().await;
    for _ in 0..20 {
        client.get("k").await.expect("the other node has it");
    }
    let reason = ejected(&client, &address).expect("it is dead");
    assert!(reason.contains("refused") || reason.contains("closed") || reason.contains("reset"), "{reason}");
    let node = FakeNode::at(&address, &store).await;
    until("it is back", || ejected(&client, &address).is_none()).await;
    assert_eq!((node.calls(), node.inner.accepted.load(Ordering::SeqCst)), (0, 1));
    for _ in 0..20 {
        client.get("k").await.expect("both have it");
    }
    assert!(node.calls() > 0);
}

#[tokio::test]
async fn a_node_whose_connection_breaks_under_a_call_is_ejected() {
    let (_, node, other) = two().await;
    let client = client(&[&node, &other]).await;
    for _ in 0..20 {
        client.set("k", "v").await.expect("it is written");
    }
    // It can't come back at once.
    node.greeting(Greeting::Silent);
    node.script(|_, _| Reaction::Close);
    let calls = node.calls();
    let reason = read_until_ejected(&client, &node).await;
    assert!(reason.contains("closed") || reason.contains("reset"), "{reason}");
    assert_eq!(node.calls(), calls + 1);
}

#[tokio::test]
async fn a_node_that_hangs_is_ejected_and_tried_by_one_connection_at_a_time() {
    let (_, node, other) = two().await;
    let client = builder(&[&node, &other]).deadline(5 * SHORT).connect_timeout(SHORT).connections_per_node(4);
    let client = client.build().await.expect("the settings are right");
    client.set("k", "v").await.expect("it is written");
    node.script(|_, _| Reaction::Never);
    assert_eq!(read_until_ejected(&client, &node).await, "no answer in time");
    until("its connections are closed", || node.inner.open.load(Ordering::SeqCst) == 0).await;
    node.greeting(Greeting::Silent);
    let (calls, accepted) = (node.calls(), node.inner.accepted.load(Ordering::SeqCst));
    node.inner.most_open.store(0, Ordering::SeqCst);
    until("it is tried", || node.inner.accepted.load(Ordering::SeqCst) >= accepted + 3).await;
    for _ in 0..100 {
        client.get("k").await.expect("the other node has it");
    }
    assert_eq!((node.calls(), node.inner.most_open.load(Ordering::SeqCst)), (calls, 1));
    node.greeting(Greeting::Both);
    node.script(|_, _| Reaction::Answer);
    until("it is back", || ejected(&client, &node.address()).is_none()).await;
}

#[tokio::test]
async fn a_single_timeout_ejects_nobody() {
    let (_, node, other) = two().await;
    let client = client(&[&node, &other]).await;
    for (index, node) in [&node, &other].into_iter().enumerate() {
        node.script(move |number, _| if number % 2 == index { Reaction::Never } else { Reaction::Answer });
    }
    for _ in 0..10 {
        // Each fails two times of four, but never three times in a row.
        let _ = client.with_deadline(SHORT).set("k", "v").await;
        assert!(client.nodes().iter().all(|node| node.state == NodeState::Healthy), "{client:?}");
    }
}

#[tokio::test]
async fn a_node_that_is_not_ready_is_left_alone_until_it_is() {
    let (_, node, other) = two().await;
    let client = client(&[&node, &other]).await;
    client.set("k", "v").await.expect("it is written");
    node.script(|_, _| Reaction::Fail(ErrorCode::NotReady));
    assert_eq!(read_until_ejected(&client, &node).await, "NotReady");
    node.script(|_, _| Reaction::Answer);
    until("it is back", || ejected(&client, &node.address()).is_none()).await;
    // Nothing was wrong with its connection.
    assert_eq!(node.inner.accepted.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_retry_goes_to_another_node() {
    let (_, bad, good) = two().await;
    bad.script(|_, _| Reaction::Fail(ErrorCode::NotReady));
    for _ in 0..20 {
        let before = bad.calls();
        client(&[&bad, &good]).await.set("k", "v").await.expect("the other node takes it");
        assert!(bad.calls() <= before + 1);
    }
    assert!(bad.calls() > 0);
}

#[tokio::test]
async fn when_all_nodes_are_ejected_they_are_tried_all_the_same() {
    let node = FakeNode::start().await;
    let client = client(&[&node]).await;
    client.set("k", "v").await.expect("it is written");
    let address = node.kill().await;
    let mut call = Box::pin(client.set("k", "w"));
    let start = Instant::now();
    while ejected(&client, &address).is_none() {
        assert!(poll_immediate(&mut call).await.is_none() && start.elapsed() < PATIENCE);
        tokio::task::yield_now().await;
    }
    let node = FakeNode::at(&address, &Arc::default()).await;
    call.await.expect("it is there again");
    assert_eq!(node.calls(), 1);
    assert!(ejected(&client, &address).is_none());
}

#[tokio::test]
async fn a_connection_that_a_node_closes_while_idle_costs_nothing() {
    let node = FakeNode::start().await;
    let client = client(&[&node]).await;
    client.set("k", "v").await.expect("it is written");
    node.close_connections();
    until("it is closed", || client.nodes()[0].connections == 0).await;
    client.set("k", "v").await.expect("it connects again");
    assert!(ejected(&client, &node.address()).is_none());
    assert_eq!((node.calls(), node.inner.accepted.load(Ordering::SeqCst)), (2, 2));
}

/// Twenty callers; a node dies, then another one hangs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_fail_under_load_cost_reads_nothing() {
    const DEADLINE: Duration = Duration::from_secs(4);
    let (store, killed, hanging) = two().await;
    let good = FakeNode::of(&store).await;
    let client = client(&[&killed, &hanging, &good]).await.with_deadline(DEADLINE);
    client.set("k", "v").await.expect("it is written");
    let (stop, reads) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let longest = Arc::new(Mutex::new(Duration::ZERO));
    let callers: Vec<_> = (0..20)
        .map(|_| {
            let (client, stop, reads) = (client.clone(), Arc::clone(&stop), Arc::clone(&reads));
            let longest = Arc::clone(&longest);
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let start = Instant::now();
                    assert_eq!(client.get("k").await.expect("no read fails").value, "v");
                    let mut longest = lock(&longest);
                    *longest = start.elapsed().max(*longest);
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let more = async |count| {
        let now = reads.load(Ordering::Relaxed);
        until("reads go on", || reads.load(Ordering::Relaxed) > now + count).await;
    };
    more(1000).await;
    let address = killed.kill().await;
    until("it is noticed", || ejected(&client, &address).is_some()).await;
    more(1000).await;
    let pause = std::mem::take(&mut *lock(&longest));
    println!("killed: a read took {pause:?} at most");
    assert!(pause < DEADLINE / 4, "{pause:?}");
    hanging.script(|_, _| Reaction::Never);
    until("it is noticed", || ejected(&client, &hanging.address()).is_some()).await;
    more(1000).await;
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.expect("no read failed");
    }
    let pause = *lock(&longest);
    println!("hanging: a read took {pause:?} at most");
    assert!(pause >= DEADLINE / 4 && pause < DEADLINE / 2, "{pause:?}");
}

#[tokio::test]
async fn close_waits_for_the_calls_under_way() {
    let node = FakeNode::start().await;
    let client = client(&[&node]).await;
    let permits = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&permits);
    node.script(move |_, _| Reaction::When(Arc::clone(&held)));
    let mut call = Box::pin(client.set("k", "v"));
    assert!(poll_immediate(&mut call).await.is_none());
    let other = client.clone();
    let mut close = Box::pin(other.close());
    assert!(poll_immediate(&mut close).await.is_none());
    assert_eq!(client.get("k").await, Err(Error::Closed));
    assert_eq!(client.batch(&[get("k")]).await, Err(Error::Closed));
    let start = Instant::now();
    permits.add_permits(1);
    call.await.expect("it ends in peace");
    close.await;
    assert!(start.elapsed() < PATIENCE / 2, "it waits no longer than it has to");
    until("its connection is closed", || node.inner.open.load(Ordering::SeqCst) == 0).await;
    assert!(client.nodes().is_empty());
}

#[tokio::test]
async fn close_waits_no_longer_than_the_deadline() {
    let node = FakeNode::start().await;
    let client = client(&[&node]).await;
    node.script(|_, _| Reaction::Never);
    let mut call = Box::pin(client.set("k", "v"));
    assert!(poll_immediate(&mut call).await.is_none());
    let start = Instant::now();
    client.with_deadline(SHORT).close().await;
    assert!(start.elapsed() >= SHORT && start.elapsed() < PATIENCE / 2);
}

#[tokio::test]
async fn dropping_the_last_clone_closes_the_connections() {
    let node = FakeNode::start().await;
    let client = client(&[&node]).await;
    client.set("k", "v").await.expect("it is written");
    drop(client.clone());
    client.set("k", "v").await.expect("one clone is left");
    assert_eq!(node.inner.accepted.load(Ordering::SeqCst), 1);
    drop(client);
    until("its connection is closed", || node.inner.open.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test]
async fn a_batch_has_a_result_for_each_operation_in_order() {
    let node = FakeNode::start().await;
    let client = client(&[&node]).await;
    assert_eq!(client.batch(&[]).await, Ok(Vec::new()));
    assert_eq!(node.calls(), 0);
    // More operations and more bytes than a call takes, and some that are wrong by themselves.
    let mut operations: Vec<_> =
        (0..2 * MAX_BATCH_OPERATIONS + 7).map(|n| set(&format!("k{n}"), &format!("v{n}"))).collect();
    operations.extend((0..30).map(|n| set(&format!("large{n}"), &"x".repeat(300 << 10))));
    operations.extend([set("huge", &"x".repeat(2 << 20)), set("too large", &"x".repeat(5 << 20))]);
    operations.push(Operation::Set { key: "k".into(), value: String::new(), ttl: Some(Duration::ZERO) });
    operations.push(Operation::Delete { key: "k1".into() });
    let results = client.batch(&operations).await.expect("it is not closed");
    assert_eq!(results.len(), operations.len());
    let written = results.len() - 3;
    for (result, operation) in results.iter().zip(&operations) {
        match operation.key() {
            "too large" => {
                assert!(matches!(result, Err(Error::Refused { refusal: Refusal::TooLarge, .. })));
            }
            "k" => assert!(matches!(result, Err(Error::Refused { refusal: Refusal::BadRequest, .. }))),
            _ => assert!(matches!(result, Ok(Outcome::Written(_))), "{result:?}"),
        }
    }
    let longest = node.inner.longest.load(Ordering::SeqCst);
    assert!(
        longest > 2 << 20 && longest < (2 << 20) + 1000,
        "only the huge one is longer than a piece: {longest}"
    );
    let calls = node.calls();
    assert!((12..=25).contains(&calls), "{calls}");

    let reads: Vec<_> = operations[..written].iter().map(|operation| get(operation.key())).collect();
    let results = client.batch(&reads).await.expect("it is not closed");
    for (result, operation) in results.iter().zip(&operations) {
        match (result, operation) {
            (Err(Error::NotFound { key, .. }), _) => assert_eq!(key, "k1"),
            (Ok(Outcome::Read(record)), Operation::Set { key, value, .. }) => {
                assert_eq!((&record.key, &record.value), (key, value));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn writes_of_a_key_take_effect_in_their_order() {
    let (store, one, other) = two().await;
    let client = client(&[&one, &other]).await;
    let large = "x".repeat(600 << 10);
    // Pieces of one operation each. The writes of k must come one after the other, however slow a node is.
    let mut operations: Vec<_> = (0..6).map(|n| set("k", &format!("{n}{large}"))).collect();
    operations.extend((0..6).map(|n| set(&format!("other{n}"), &large)));
    one.script(|_, _| {
        let slow = Arc::new(Semaphore::new(0));
        let permits = Arc::clone(&slow);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(5)).await;
            permits.add_permits(1);
        });
        Reaction::When(slow)
    });
    for result in client.batch(&operations).await.expect("it is not closed") {
        result.expect("it is written");
    }
    let writes: String =
        lock(&store).writes.iter().filter(|(key, _)| key == "k").map(|(_, value)| &value[..1]).collect();
    assert_eq!(writes, "012345");
}

#[tokio::test]
async fn pieces_that_write_other_keys_are_under_way_together() {
    let node = FakeNode::start().await;
    let client = client(&[&node]).await;
    let permits = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&permits);
    node.script(move |_, _| Reaction::When(Arc::clone(&held)));
    let large = "x".repeat(900 << 10);
    let operations: Vec<_> = (0..5).map(|n| set(&format!("k{n}"), &large)).collect();
    let mut batch = Box::pin(client.batch(&operations));
    assert!(poll_immediate(&mut batch).await.is_none());
    let calls = async {
        until("all are there", || node.calls() == 5).await;
        permits.add_permits(5);
    };
    let (results, ()) = tokio::join!(batch, calls);
    assert!(results.expect("it is not closed").iter().all(Result::is_ok));
}

#[tokio::test]
async fn operations_of_a_batch_are_tried_again_by_themselves() {
    let node = FakeNode::start().await;
    let client = client(&[&node]).await;
    node.script(|number, _| match number {
        0 => Reaction::FailOperations(vec![0, 1, 2, 4], ErrorCode::NotTaken),
        _ => Reaction::Answer,
    });
    // The write of `twice` can't be tried again: it would come after the second one.
    let operations =
        [set("a", "1"), get("b"), set("twice", "1"), set("c", "1"), set("d", "1"), set("twice", "2")];
    let results = client.batch(&operations).await.expect("it is not closed");
    assert_eq!(node.calls(), 2);
    for (index, result) in results.iter().enumerate() {
        match index {
            1 => assert!(result.as_ref().is_err_and(Error::is_not_found), "{result:?}"),
            2 => assert!(matches!(result, Err(Error::NotTaken { node: Some(_), .. })), "{result:?}"),
            _ => assert!(matches!(result, Ok(Outcome::Written(_))), "{result:?}"),
        }
    }
    assert_eq!(client.get("twice").await.expect("it is there").value, "2");

    // What is wrong stays wrong, what is unknown stays unknown.
    for (code, unknown) in [(ErrorCode::BadRequest, false), (ErrorCode::MayTakeEffect, true)] {
        let calls = node.calls();
        node.script(move |_, _| Reaction::FailOperations(vec![0], code));
        let results = client.batch(&[set("a", "2"), set("c", "2")]).await.expect("it is not closed");
        assert!(
            results[0].as_ref().is_err_and(|error| error.may_have_taken_effect() == unknown),
            "{results:?}"
        );
        assert!(results[1].is_ok());
        assert_eq!(node.calls(), calls + 1);
    }
}

#[tokio::test]
async fn a_batch_that_breaks_loses_its_writes_but_not_its_reads() {
    let (_, one, other) = two().await;
    let client = client(&[&one, &other]).await;
    client.set("a", "1").await.expect("it is written");
    for node in [&one, &other] {
        node.script(|_, request| match request {
            Request::Batch(operations) if operations.len() > 1 => Reaction::Close,
            _ => Reaction::Answer,
        });
    }
    let results = client.batch(&[get("a"), set("b", "1")]).await.expect("it is not closed");
    assert!(matches!(&results[0], Ok(Outcome::Read(record)) if record.value == "1"), "{results:?}");
    assert!(matches!(&results[1], Err(Error::Unacknowledged { .. })), "{results:?}");

    // In a later piece of the same batch, what follows on an unknown write is not sent.
    let large = "x".repeat(800 << 10);
    let operations = [set("k", &large), set("x", "1"), set("k", &large), set("y", "1")];
    let results = client.batch(&operations).await.expect("it is not closed");
    assert!(matches!(&results[0], Err(Error::Unacknowledged { .. })), "{:?}", results[0]);
    assert!(matches!(&results[2], Err(Error::NotTaken { node: None, .. })), "{:?}", results[2]);
    assert!(results[3].is_ok(), "{:?}", results[3]);
}

#[tokio::test]
async fn a_batch_ends_with_its_deadline() {
    let node = FakeNode::start().await;
    let client = client(&[&node]).await;
    node.script(|_, _| Reaction::Never);
    let large = "x".repeat(800 << 10);
    // The second piece waits for the first, and is never sent.
    let operations = [set("k", &large), get("a"), set("k", &large), get("b")];
    let results = client.with_deadline(SHORT).batch(&operations).await.expect("it is not closed");
    assert!(
        results.iter().all(|result| matches!(result, Err(Error::TimedOut { .. } | Error::NotTaken { .. })))
    );
    let unknown = results.iter().map(|result| result.as_ref().is_err_and(Error::may_have_taken_effect));
    assert_eq!(unknown.collect::<Vec<_>>(), [true, false, false, false]);
    assert_eq!(node.calls(), 1);
}

#[tokio::test]
async fn an_answer_with_the_wrong_results_is_nonsense() {
    let node = FakeNode::start().await;
    let client = client(&[&node]).await;
    // An empty array: no metadata, no error, no blocks.
    node.script(|_, _| Reaction::Message(vec![0, 0, 0]));
    let results = client.batch(&[set("a", "1"), get("b")]).await.expect("it is not closed");
    let Err(Error::Protocol(write)) = &results[0] else { panic!("{results:?}") };
    let Err(Error::Protocol(read)) = &results[1] else { panic!("{results:?}") };
    assert!(write.may_have_taken_effect && !read.may_have_taken_effect);
}

#[tokio::test]
async fn scans_go_through_all_pages_and_nodes() {
    let (_, one, other) = two().await;
    let client = client(&[&one, &other]).await;
    for n in 0..50 {
        client.set(&format!("k{n:02}"), "v").await.expect("it is written");
    }
    client.set("z", "v").await.expect("it is written");
    client.delete("k49").await.expect("it is deleted");
    let keys = async |scan: Scan| {
        let records: Vec<_> = client.scan(scan).try_collect().await.expect("it is read");
        records.into_iter().map(|record| record.key).collect::<Vec<_>>()
    };
    let expected = |range: std::ops::Range<usize>| range.map(|n| format!("k{n:02}")).collect::<Vec<_>>();
    assert_eq!(keys(Scan::all()).await.len(), 50);
    assert_eq!(keys(Scan::prefix("k").start("k10").end("k20").page(3)).await, expected(10..20));
    assert_eq!(keys(Scan::prefix("none")).await, expected(0..0));

    let page = client.scan_page(&Scan::prefix("k").page(10), None).await.expect("it is read");
    assert_eq!((page.records.len(), page.cursor.as_deref()), (10, Some("k09")));
    let page =
        client.scan_page(&Scan::prefix("k").page(100), page.cursor.as_deref()).await.expect("it is read");
    assert_eq!((page.records.len(), page.cursor), (39, None));

    // A node that dies in between costs nothing.
    let mut scan = Box::pin(client.scan(Scan::prefix("k").page(2)));
    let mut found = HashSet::new();
    for _ in 0..10 {
        found.insert(scan.next().await.expect("there is more").expect("it is read").key);
    }
    one.kill().await;
    while let Some(record) = scan.next().await {
        found.insert(record.expect("it is read").key);
    }
    assert_eq!(found.len(), 49);

    // It ends after an error.
    other.script(|_, _| Reaction::Fail(ErrorCode::BadRequest));
    let mut scan = Box::pin(client.scan(Scan::all()));
    assert!(scan.next().await.is_some_and(|record| record.is_err()));
    assert!(scan.next().await.is_none());
}

#[tokio::test]
async fn zookeepers_nodes_are_followed() {
    let (store, one, other) = two().await;
    let zookeeper = FakeZooKeeper::start(None).await;
    let builder = Client::builder().zookeeper(zookeeper.connect()).deadline(PATIENCE).connections_per_node(1);
    let build = tokio::spawn(builder.build());
    zookeeper.set(vec![one.address(), "not a node".into()]);
    let client = build.await.expect("no panic").expect("ZooKeeper names a node");
    let members = || client.nodes().into_iter().map(|node| node.address).collect::<Vec<_>>();
    assert_eq!(members(), [one.address()]);
    client.set("k", "v").await.expect("it is written");

    // One that leaves gets no more calls; those under way end.
    let permits = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&permits);
    one.script(move |_, _| Reaction::When(Arc::clone(&held)));
    let mut call = Box::pin(client.get("k"));
    assert!(poll_immediate(&mut call).await.is_none());
    until("it is there", || one.calls() == 2).await;
    zookeeper.set(vec![other.address()]);
    until("it has left", || members() == [other.address()]).await;
    for _ in 0..10 {
        client.get("k").await.expect("the other node has it");
    }
    assert_eq!((one.calls(), one.inner.open.load(Ordering::SeqCst)), (2, 1));
    permits.add_permits(1);
    assert_eq!(call.await.expect("it ends in peace").value, "v");
    until("it is drained", || one.inner.open.load(Ordering::SeqCst) == 0).await;

    // That there is none at all is not believed; nor does it matter when ZooKeeper is away.
    let looks = zookeeper.seen.looks.load(Ordering::SeqCst);
    zookeeper.set(Vec::new());
    until("it was seen, and looked at again", || zookeeper.seen.looks.load(Ordering::SeqCst) > looks + 1)
        .await;
    let third = FakeNode::of(&store).await;
    let address = zookeeper.kill().await;
    client.get("k").await.expect("the other node is known still");
    assert_eq!(members(), [other.address()]);
    let connections = other.inner.accepted.load(Ordering::SeqCst);
    let zookeeper = FakeZooKeeper::at(&address, Some(vec![other.address(), third.address()])).await;
    until("ZooKeeper is back", || members().len() == 2).await;
    // Who stays keeps its connections.
    for _ in 0..50 {
        client.get("k").await.expect("both have it");
    }
    assert!(third.calls() > 0 && other.calls() > 0);
    assert_eq!(other.inner.accepted.load(Ordering::SeqCst), connections);

    client.close().await;
    until("the session is closed", || zookeeper.seen.closed_sessions.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn without_a_node_in_zookeeper_there_is_no_client() {
    let zookeeper = FakeZooKeeper::start(Some(Vec::new())).await;
    let build = |connect| Client::builder().zookeeper(connect).deadline(SHORT).build();
    let error = build(zookeeper.connect()).await.expect_err("nobody is registered");
    assert!(
        matches!(&error, Error::NoNode { last: Some(last) } if last.contains("/test/bitacora/sockets")),
        "{error}"
    );
    until("the session is closed", || zookeeper.seen.closed_sessions.load(Ordering::SeqCst) == 1).await;
    let connect = zookeeper.connect();
    zookeeper.kill().await;
    let error = build(connect).await.expect_err("ZooKeeper is not there");
    assert!(matches!(&error, Error::NoNode { last: Some(_) }), "{error}");
}
