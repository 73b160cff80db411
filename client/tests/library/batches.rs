//! Batches: order, pieces, results.

use super::*;

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
        store.lock().writes.iter().filter(|(key, _)| key == "k").map(|(_, value)| &value[..1]).collect();
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
async fn operations_of_a_batch_are_retried_by_themselves() {
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
