//! What is tried again, and what is left to the caller.

use super::*;

#[tokio::test]
async fn a_deadline_tells_whether_a_write_was_sent() {
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
async fn reads_are_retried_on_another_node() {
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
    // The words of a node are about one attempt, and the last one may have had no time left.
    let node = FakeNode::start().await;
    node.script(|_, _| Reaction::Fail(ErrorCode::NotReady));
    let error = client(&[&node]).await.with_deadline(SHORT).get("k").await.expect_err("it is never ready");
    let all = format!("asked {} times within 200ms", node.calls());
    assert!(error.to_string().contains(&all), "{error}");
    // An attempt that the deadline cuts short does not hide it.
    let node = FakeNode::start().await;
    node.script(|number, _| if number == 0 { Reaction::Fail(ErrorCode::NotReady) } else { Reaction::Never });
    let error = client(&[&node]).await.with_deadline(SHORT).get("k").await.expect_err("it hangs");
    assert!(matches!(error, Error::NotReady { .. }), "{error}");
    assert_eq!(node.calls(), 2);
}

#[tokio::test]
async fn refused_requests_are_not_retried() {
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
        node.script(move |_, _| reaction.lock().take().unwrap_or(Reaction::Answer));
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
async fn writes_without_effect_are_retried() {
    for code in [ErrorCode::NotTaken, ErrorCode::NotReady] {
        let (store, bad, good) = two().await;
        let client = client(&[&bad, &good]).await;
        bad.script(move |_, _| Reaction::Fail(code));
        for _ in 0..20 {
            client.set("k", "v").await.expect("the other node takes it");
            client.delete("k").await.expect("the other node takes it");
        }
        assert!(bad.calls() > 0);
        assert_eq!(store.lock().writes.len(), 40);
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
async fn a_write_that_was_not_sent_is_retried() {
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
async fn ambiguous_writes_are_left_to_the_caller() {
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
async fn ambiguous_writes_are_retried_if_asked_for() {
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
