//! Watches: what they tell, how they go on elsewhere, and when they end.

use bitacora_client::{DeleteReason, Watch, WatchEvent, Watched};
use bitacora_protocol::rpc::PROTOCOL;

use super::*;

/// How often there is progress where a test waits for it.
const SOON: Duration = Duration::from_millis(20);

async fn next(watch: &mut Watch) -> WatchEvent {
    let next = tokio::time::timeout(PATIENCE, watch.try_next()).await;
    next.expect("something comes").expect("no error").expect("it has no end")
}

/// What is told until everything is, as `key=value` and `-key`; and the token there.
async fn until_current(watch: &mut Watch) -> (Vec<String>, String) {
    let mut told = Vec::new();
    loop {
        let event = next(watch).await;
        if let Watched::Current { .. } = event.what {
            return (told, event.token().to_owned());
        }
        told.extend(text(&event));
    }
}

fn text(event: &WatchEvent) -> Option<String> {
    match &event.what {
        Watched::Set(record) => Some(format!("{}={}", record.key, record.value)),
        Watched::Deleted(deleted) => Some(format!("-{}", deleted.key)),
        Watched::Gap { .. } => Some("gap".to_owned()),
        _ => None,
    }
}

/// The next that is no progress.
async fn next_text(watch: &mut Watch) -> String {
    loop {
        if let Some(text) = text(&next(watch).await) {
            return text;
        }
    }
}

#[tokio::test]
async fn they_tell_what_is_asked_for() {
    // Nothing of this takes as long as a node waits for a change.
    let node = FakeNode::start().await;
    let client = client(&[&node]).await;
    for (key, value) in [("a/1", "x"), ("a/2", "y"), ("b", "z"), ("a/gone", "")] {
        client.set(key, value).await.expect("it is written");
    }
    client.delete("a/gone").await.expect("it is written");
    let mut all = client.watch().initial().progress_every(PATIENCE).await.expect("it begins");
    assert_eq!(until_current(&mut all).await.0, ["a/1=x", "a/2=y", "b=z"]);
    let mut prefix = client
        .watch()
        .prefix("a/")
        .initial()
        .values(false)
        .progress_every(PATIENCE)
        .await
        .expect("it begins");
    assert_eq!(until_current(&mut prefix).await.0, ["a/1=", "a/2="]);
    let mut key = client.watch().key("b").initial().progress_every(PATIENCE).await.expect("it begins");
    assert_eq!(until_current(&mut key).await.0, ["b=z"]);
    let mut now = client.watch().progress_every(PATIENCE).await.expect("it begins");
    assert!(now.token().is_some());
    client.delete("b").await.expect("it is written");
    let written = client.set("a/1", "w").await.expect("it is written");
    assert_eq!([next_text(&mut now).await, next_text(&mut now).await], ["-b", "a/1=w"]);
    assert_eq!([next_text(&mut key).await, next_text(&mut prefix).await], ["-b", "a/1="]);
    assert_eq!(next_text(&mut all).await, "-b");
    let event = next(&mut all).await;
    assert!(matches!(&event.what, Watched::Set(record) if record.position == written.position), "{event:?}");
}

#[tokio::test]
async fn a_delete_says_where_and_why() {
    let node = FakeNode::start().await;
    let client = client(&[&node]).await;
    client.set("k", "v").await.expect("it is written");
    let mut watch = client.watch().await.expect("it begins");
    let written = client.delete("k").await.expect("it is written");
    let deleted = loop {
        if let Watched::Deleted(deleted) = next(&mut watch).await.what {
            break deleted;
        }
    };
    assert_eq!((deleted.position, deleted.reason), (written.position, DeleteReason::Deleted));
    assert_eq!(deleted.timestamp, written.timestamp);
}

#[tokio::test]
async fn every_token_goes_on_without_loss() {
    let (store, one, other) = two().await;
    let client = client(&[&one, &other]).await;
    // More than a page.
    (0..2_500).for_each(|n| store.lock().overwrite(&format!("k{n}"), "v"));
    let mut watch = client.watch().initial().await.expect("it begins");
    assert!(watch.token().is_none());
    let (mut told, mut tokens) = (HashSet::new(), Vec::new());
    loop {
        let event = next(&mut watch).await;
        assert_eq!(watch.token(), Some(event.token()));
        match &event.what {
            Watched::Set(record) => assert!(told.insert(record.key.clone())),
            Watched::Current { .. } => break,
            other => panic!("{other:?}"),
        }
        tokens.push((told.len(), event.token().to_owned()));
    }
    assert_eq!(told.len(), 2_500);
    for (count, token) in tokens.iter().step_by(499) {
        let mut rest = client.watch().since(token).await.expect("it begins");
        let rest: HashSet<_> = until_current(&mut rest).await.0.into_iter().collect();
        assert!(rest.len() >= 2_500 - count, "{} after {count}", rest.len());
    }
}

#[tokio::test]
async fn progress_moves_the_token_on() {
    let node = FakeNode::start().await;
    let client = client(&[&node]).await;
    let mut watch = client.watch().prefix("a/").progress_every(SOON).await.expect("it begins");
    let (_, before) = until_current(&mut watch).await;
    client.set("b", "v").await.expect("it is written");
    let token = loop {
        let event = next(&mut watch).await;
        assert!(matches!(event.what, Watched::Progress { .. }), "{event:?}");
        if event.token() != before {
            break event.token().to_owned();
        }
    };
    assert_eq!(watch.token(), Some(&*token));
}

#[tokio::test]
async fn a_node_dies_in_the_middle() {
    let (store, one, other) = two().await;
    let client = builder(&[&one, &other]).deadline(Duration::from_secs(4)).build().await.expect("settings");
    let mut watch = client.watch().progress_every(SOON).await.expect("it begins");
    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn({
        let (store, stop) = (Arc::clone(&store), Arc::clone(&stop));
        async move {
            let mut number = 0;
            while !stop.load(Ordering::SeqCst) {
                store.lock().overwrite(&format!("k{}", number % 7), &number.to_string());
                number += 1;
                tokio::time::sleep(Duration::from_micros(500)).await;
            }
            store.lock().overwrite("last", "");
        }
    });
    let mut last = std::collections::HashMap::new();
    let mut nodes = std::collections::VecDeque::from([one, other]);
    for _ in 0..6 {
        for _ in 0..20 {
            note(&next(&mut watch).await, &mut last);
        }
        // The next one in turn, whichever it follows now; it is back before the other one dies.
        let address = nodes.pop_front().expect("both are there").kill().await;
        for _ in 0..20 {
            note(&next(&mut watch).await, &mut last);
        }
        nodes.push_back(FakeNode::at(&address, &store).await);
    }
    stop.store(true, Ordering::SeqCst);
    writer.await.expect("no panic");
    while note(&next(&mut watch).await, &mut last) != Some("last".to_owned()) {}
    for (key, (_, value)) in last {
        let held = store.lock().value(&key);
        assert_eq!(held.as_ref(), Some(&value), "of {key} the last state came");
    }
}

/// Holds an event against what was told of its key before; the key.
fn note(event: &WatchEvent, last: &mut std::collections::HashMap<String, (i64, String)>) -> Option<String> {
    let Watched::Set(record) = &event.what else { return None };
    let now = (record.position.offset, record.value.clone());
    let before = last.insert(record.key.clone(), now.clone());
    assert!(before.is_none_or(|before| before.0 <= now.0), "{} goes back", record.key);
    Some(record.key.clone())
}

#[tokio::test]
async fn a_node_that_hangs_is_left() {
    let (_, one, other) = two().await;
    let client = builder(&[&one, &other]).deadline(SHORT).build().await.expect("settings");
    let mut watch = client.watch().progress_every(SOON).await.expect("it begins");
    for (hangs, well) in [(&one, &other), (&other, &one)] {
        well.script(|_, _| Reaction::Answer);
        hangs.script(|_, request| match request {
            Request::ReadChanges(_) => Reaction::Never,
            _ => Reaction::Answer,
        });
        let value = hangs.address();
        client.with_deadline(PATIENCE).set("k", &value).await.expect("it is written");
        assert_eq!(next_text(&mut watch).await, format!("k={value}"));
    }
}

#[tokio::test]
async fn it_says_why_no_node_answers() {
    let node = FakeNode::start().await;
    let client = client(&[&node]).await;
    let mut watch = client.watch().progress_every(SOON).await.expect("it begins");
    until_current(&mut watch).await;
    assert_eq!(watch.trouble(), None);
    let store = Arc::clone(node.store());
    let address = node.kill().await;
    let start = Instant::now();
    while watch.trouble().is_none() {
        assert!(start.elapsed() < PATIENCE, "it is silent and says nothing");
        let _ = tokio::time::timeout(SOON, watch.try_next()).await;
    }
    let _node = FakeNode::at(&address, &store).await;
    next(&mut watch).await;
    assert_eq!(watch.trouble(), None);
}

#[tokio::test]
async fn it_stays_at_its_node_and_is_no_load() {
    let (_, one, other) = two().await;
    let client = client(&[&one, &other]).await;
    let mut watch = client.watch().progress_every(SOON).await.expect("it begins");
    let follows = |node: &FakeNode| node.calls() > 0;
    assert!(follows(&one) != follows(&other));
    let (_, first) = (next(&mut watch).await, follows(&one));
    for _ in 0..5 {
        next(&mut watch).await;
    }
    assert_eq!(follows(&one), first);
    assert!(follows(&one) != follows(&other), "it changed its node");
    assert_eq!(under_way(&client), 0);
}

#[tokio::test]
async fn a_gap_is_told_and_what_is_there_follows() {
    let node = FakeNode::start().await;
    let client = client(&[&node]).await;
    client.set("old", "v").await.expect("it is written");
    let mut watch = client.watch().initial().progress_every(SOON).await.expect("it begins");
    let (told, token) = until_current(&mut watch).await;
    assert_eq!(told, ["old=v"]);
    node.store().lock().replace_log();
    client.set("new", "v").await.expect("it is written");
    assert_eq!(until_current(&mut watch).await.0, ["gap", "new=v"]);
    let mut later = client.watch().since(token).await.expect("a token of another log is one");
    assert_eq!(until_current(&mut later).await.0, ["gap", "new=v"]);
}

#[tokio::test]
async fn what_trying_again_does_not_mend_ends_it() {
    let node = FakeNode::start().await;
    let client = client(&[&node]).await;
    let refused = |error: &Error, why: &str| match error {
        Error::Refused { refusal: Refusal::BadRequest, reason } => reason.contains(why),
        _ => false,
    };
    let error = client.watch().since("?").await.expect_err("it is none");
    assert!(refused(&error, "no token"), "{error}");
    let error = client.watch().key("").await.expect_err("it is none");
    assert!(refused(&error, "empty"), "{error}");
    let mut watch = client.watch().progress_every(SOON).await.expect("it begins");
    node.script(|_, _| Reaction::Fail(ErrorCode::BadRequest));
    let error = loop {
        match watch.try_next().await {
            Ok(event) => assert!(event.is_some(), "the error comes first"),
            Err(error) => break error,
        }
    };
    assert!(refused(&error, "BadRequest"), "{error}");
    assert!(watch.try_next().await.expect("it has told its error").is_none());
}

#[tokio::test]
async fn nodes_that_are_not_ready_are_not_stormed() {
    let (_, one, other) = two().await;
    let client = client(&[&one, &other]).await;
    let mut watch = client.watch().progress_every(SOON).await.expect("it begins");
    until_current(&mut watch).await;
    let calls = || one.calls() + other.calls();
    for node in [&one, &other] {
        node.script(|_, _| Reaction::Fail(ErrorCode::NotReady));
    }
    let before = calls();
    let start = Instant::now();
    let waits = async { while watch.try_next().await.expect("no error").is_some() {} };
    let stopped = async { until("it tries again and again", || calls() >= before + 10).await };
    tokio::select! { () = waits => panic!("it has no end"), () = stopped => {} }
    // 5, 10, 20, 40, 80, 160, 250 and 250 ms at least, after what was under way.
    assert!(start.elapsed() >= Duration::from_millis(700), "10 calls in {:?}", start.elapsed());
    for node in [&one, &other] {
        node.script(|_, _| Reaction::Answer);
    }
    client.set("k", "v").await.expect("they are ready");
    assert_eq!(next_text(&mut watch).await, "k=v");
}

#[tokio::test]
async fn a_wait_that_is_dropped_costs_no_call() {
    let node = FakeNode::start().await;
    let client = client(&[&node]).await;
    let mut watch = client.watch().progress_every(PATIENCE).await.expect("it begins");
    until_current(&mut watch).await;
    for _ in 0..50 {
        assert!(poll_immediate(watch.try_next()).await.is_none());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(node.calls() <= 2, "{} calls", node.calls());
    client.set("k", "v").await.expect("it is written");
    assert_eq!(next_text(&mut watch).await, "k=v");
}

#[tokio::test]
async fn closing_the_client_ends_it_at_once() {
    let node = FakeNode::start().await;
    let client = client(&[&node]).await;
    let mut idle = client.watch().progress_every(PATIENCE).await.expect("it begins");
    let mut waits = client.watch().progress_every(PATIENCE).await.expect("it begins");
    until_current(&mut idle).await;
    assert!(poll_immediate(idle.try_next()).await.is_none());
    let ended = tokio::spawn(async move {
        loop {
            if let Err(error) = waits.try_next().await {
                return error;
            }
        }
    });
    until("both wait for a change", || node.calls() == 4).await;
    let start = Instant::now();
    client.close().await;
    assert!(start.elapsed() < PATIENCE / 4, "it waited for a watch");
    assert_eq!(ended.await.expect("no panic"), Error::Closed);
    assert!(start.elapsed() < PATIENCE / 4, "it did not hear of it");
    assert_eq!(idle.try_next().await, Err(Error::Closed));
    assert!(matches!(client.watch().await, Err(Error::Closed)));
}

#[tokio::test]
async fn nodes_that_do_not_know_it_are_left() {
    let (_, older, good) = two().await;
    let protocol: &str = Box::leak(PROTOCOL.replace("\"readChanges\"", "\"unknown\"").into_boxed_str());
    older.greeting(Greeting::Client(protocol));
    let both = client(&[&older, &good]).await;
    both.set("k", "v").await.expect("both know that");
    for _ in 0..10 {
        let mut watch = both.watch().initial().await.expect("the other knows it");
        assert_eq!(until_current(&mut watch).await.0, ["k=v"]);
    }
    let error = client(&[&older]).await.watch().await.expect_err("it does not know that");
    assert!(matches!(error, Error::Refused { refusal: Refusal::Unsupported, .. }), "{error}");
    assert!(error.to_string().contains("readChanges: it is older"), "{error}");
}
