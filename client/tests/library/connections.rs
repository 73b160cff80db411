//! One connection: many calls under way, handshakes, what is given up.

use tokio::io::AsyncReadExt as _;

use super::*;

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
async fn handshakes_with_other_protocols() {
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
        (Greeting::Bytes(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "speaks HTTP"),
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
async fn a_node_that_closes_in_silence_may_speak_tls() {
    // As a node does that speaks TLS: it reads what is no TLS, answers nothing and closes.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("it is bound").to_string();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let _ = socket.read(&mut [0; 4096]).await;
        }
    });
    let silent = Client::builder().nodes([address]).deadline(SHORT).build().await;
    let error = silent.expect("the settings are right").get("k").await.expect_err("it closes");
    assert!(error.to_string().contains("if it speaks TLS, give ClientBuilder::tls"), "{error}");

    // One that has shaken hands speaks what the client does.
    let node = FakeNode::start().await;
    node.script(|_, _| Reaction::Close);
    let error = client(&[&node]).await.with_deadline(SHORT).get("k").await.expect_err("it closes");
    assert!(
        error.to_string().contains("closed the connection") && !error.to_string().contains("TLS"),
        "{error}"
    );
}
