//! Conditional writes, what becomes of those whose fate is unclear, and updates.

use bitacora_client::Change;

use super::*;

#[tokio::test]
async fn conditions_hold_or_tell_what_is_there() {
    let node = FakeNode::start().await;
    let client = client(&[&node]).await;
    let first = client.create("k", "1").ttl(Duration::from_secs(60)).await.expect("it is not there");
    assert_eq!(first.ttl, first.timestamp + 60_000);
    let second = client.compare_and_set("k", first.position, "2").await.expect("nobody came between");
    for late in [
        client.create("k", "3").await,
        client.compare_and_set("k", first.position, "3").await,
        client.delete_if("k", first.position).await,
    ] {
        let error = late.expect_err("the version is another");
        let Error::NotMet { current: Some(current), position, may_have_taken_effect: false, .. } = &error
        else {
            panic!("{error:?}")
        };
        assert_eq!((current.value.as_str(), *position), ("2", second.position));
        assert!(error.is_not_met() && !error.is_retryable() && !error.may_have_taken_effect());
        assert_eq!(error.to_string(), format!("the condition does not hold: the version of k is {position}"));
    }
    client.write("k", "4").if_present().await.expect("it is there");
    client.remove("k").if_present().await.expect("it is there");
    let gone = client.write("k", "5").if_present().await.expect_err("it is gone");
    assert!(matches!(gone, Error::NotMet { current: None, .. }), "{gone:?}");
    assert_eq!(gone.to_string(), "the condition does not hold: there is no key k");
    let refused = client.create("k", "v").ttl(Duration::ZERO).await.expect_err("no time to live");
    assert!(matches!(refused, Error::Refused { .. }), "{refused}");
}

#[tokio::test]
async fn what_a_topic_can_not_do_is_told() {
    let node = FakeNode::start().await;
    let client = client(&[&node]).await;
    for (code, expected) in
        [(ErrorCode::Unsupported, Refusal::Unsupported), (ErrorCode::Conflict, Refusal::Conflict)]
    {
        node.script(move |_, _| Reaction::Fail(code));
        let calls = node.calls();
        let error = client.create("k", "v").await.expect_err("it can't");
        assert!(matches!(error, Error::Refused { refusal, .. } if refusal == expected), "{error}");
        assert_eq!(node.calls(), calls + 1);
    }
}

/// The answer is lost, and the same write is sent again: its uuid is known.
#[tokio::test]
async fn an_unclear_conditional_write_takes_effect_once() {
    type Trouble = fn() -> Reaction;
    let troubles: [(&str, Trouble); 3] = [
        ("the answer is lost", || Reaction::Close),
        ("not acknowledged", || Reaction::Fail(ErrorCode::MayTakeEffect)),
        ("hangs", || Reaction::Never),
    ];
    for (name, trouble) in troubles {
        let (store, one, other) = two().await;
        let client = client(&[&one, &other]).await.with_deadline(4 * SHORT);
        let first = Arc::new(AtomicBool::new(true));
        for node in [&one, &other] {
            let first = Arc::clone(&first);
            node.script(
                move |_, _| if first.swap(false, Ordering::SeqCst) { trouble() } else { Reaction::Answer },
            );
        }
        client.create("k", "v").await.expect(name);
        assert_eq!((one.calls() + other.calls(), store.lock().writes.len()), (2, 1), "{name}");
    }
}

#[tokio::test]
async fn a_refusal_after_an_unclear_attempt_leaves_it_open() {
    let (store, one, other) = two().await;
    let client = client(&[&one, &other]).await;
    // The first attempt takes effect, its answer is lost, and somebody else writes before it is sent again.
    let attempts = Arc::new(AtomicUsize::new(0));
    for node in [&one, &other] {
        let (attempts, store) = (Arc::clone(&attempts), Arc::clone(&store));
        node.script(move |_, request| match request {
            Request::WriteRecord { .. } => match attempts.fetch_add(1, Ordering::SeqCst) {
                0 => Reaction::Close,
                1 => {
                    store.lock().overwrite("k", "another's");
                    Reaction::Answer
                }
                _ => Reaction::Answer,
            },
            _ => Reaction::Answer,
        });
    }
    let error = client.create("k", "mine").await.expect_err("another's is there");
    assert!(error.is_not_met() && error.may_have_taken_effect(), "{error:?}");
    // An update does not count twice then.
    attempts.store(0, Ordering::SeqCst);
    let error = client.update("k", |_| "mine").await.expect_err("it can't know");
    assert!(error.is_not_met() && error.may_have_taken_effect(), "{error:?}");
    assert_eq!(attempts.load(Ordering::SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_counter_is_exact_under_contention_and_lost_answers() {
    let (_, one, other) = two().await;
    let client = client(&[&one, &other]).await;
    for node in [&one, &other] {
        node.script(|number, request| match request {
            Request::WriteRecord { .. } if number % 5 == 0 => Reaction::Fail(ErrorCode::NotTaken),
            Request::WriteRecord { .. } if number % 7 == 0 => Reaction::Fail(ErrorCode::MayTakeEffect),
            _ => Reaction::Answer,
        });
    }
    let count = |old: Option<&bitacora_client::Record>| {
        let old: u64 = old.map_or(0, |record| record.value.parse().expect("a number"));
        (old + 1).to_string()
    };
    let counters = (0..8).map(|_| {
        let client = client.clone();
        tokio::spawn(async move {
            let (mut done, mut unclear) = (0, 0);
            for _ in 0..20 {
                match client.update("n", count).await {
                    Ok(updated) => done += u64::from(updated.written.is_some()),
                    Err(error) if error.may_have_taken_effect() => unclear += 1,
                    Err(error) => panic!("{error}"),
                }
            }
            (done, unclear)
        })
    });
    let counted = join_all(counters).await;
    let (done, unclear) = counted
        .into_iter()
        .map(|one| one.expect("no panic"))
        .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    let value: u64 = client.get("n").await.expect("it is there").value.parse().expect("a number");
    assert!((done..=done + unclear).contains(&value) && done > 0, "{done} {unclear} {value}");
}

/// With pauses that grow, those who lose would wait while the winner wins again.
#[tokio::test]
async fn an_update_that_lost_often_goes_on_trying() {
    const LOSSES: usize = 100;
    let node = FakeNode::start().await;
    let client = client(&[&node]).await;
    let attempts = Arc::new(AtomicUsize::new(0));
    node.script({
        let (store, attempts) = (Arc::clone(node.store()), Arc::clone(&attempts));
        move |_, request| {
            if matches!(request, Request::WriteRecord { .. })
                && attempts.fetch_add(1, Ordering::SeqCst) < LOSSES
            {
                store.lock().overwrite("k", "another's");
            }
            Reaction::Answer
        }
    });
    let updated = client.update("k", |_| "mine").await.expect("in the end it wins");
    assert_eq!(updated.before.map(|record| record.value).as_deref(), Some("another's"));
    assert_eq!(attempts.load(Ordering::SeqCst), LOSSES + 1);
    assert_eq!(node.calls(), LOSSES + 2, "each refusal tells what is there, so there is one read");
}

#[tokio::test]
async fn an_update_keeps_deletes_and_has_an_end() {
    let node = FakeNode::start().await;
    let client = client(&[&node]).await;
    let kept = client.update("k", |_| Change::Keep).await.expect("nothing is to be done");
    assert_eq!((kept.before, kept.written), (None, None));
    assert_eq!(node.calls(), 2, "what is kept was read strongly");
    let set = client.update("k", |_| Change::SetWithTtl("v".into(), Duration::from_secs(1))).await;
    let set = set.expect("it is written").written.expect("a write");
    assert_eq!(set.ttl, set.timestamp + 1_000);
    let deleted = client.update("k", |_| Change::Delete).await.expect("it is there");
    assert_eq!(deleted.before.map(|record| record.value).as_deref(), Some("v"));
    client.get("k").await.expect_err("it is deleted");
    // Somebody is always faster.
    node.script({
        let store = Arc::clone(node.store());
        move |_, request| {
            if matches!(request, Request::WriteRecord { .. }) {
                store.lock().overwrite("k", "another's");
            }
            Reaction::Answer
        }
    });
    let error = client.with_deadline(SHORT).update("k", |_| "mine").await.expect_err("it never wins");
    assert!(matches!(error, Error::TimedOut { may_have_taken_effect: false, .. }), "{error:?}");
}
