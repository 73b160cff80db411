//! Reads of all levels, and sessions.

use bitacora_client::{ReadLevel, Session};
use bitacora_protocol::{Consistency, ReadOptions};

use super::*;

/// What each read asked for: the level, the session's position, and whether it had a time.
type Asked = Arc<Mutex<Vec<(Consistency, String, Option<Duration>, bool)>>>;

fn asked_of(node: &FakeNode) -> Asked {
    let asked = Asked::default();
    let log = Arc::clone(&asked);
    node.script(move |_, request| {
        let note = |read: &ReadOptions<'_>| {
            let ReadOptions { consistency, position, timeout, max_staleness } = *read;
            log.lock().push((consistency, position.to_owned(), max_staleness, timeout.is_some()));
        };
        match request {
            Request::ReadRecord { read, .. } | Request::ScanRecords { read, .. } => note(read),
            Request::GetRecord { .. } => log.lock().push((Consistency::Eventual, String::new(), None, false)),
            _ => {}
        }
        Reaction::Answer
    });
    asked
}

#[tokio::test]
async fn each_level_is_asked_for_with_a_time() {
    let node = FakeNode::start().await;
    let client = client(&[&node]).await;
    client.set("k", "v").await.expect("it is written");
    let asked = asked_of(&node);
    let age = Duration::from_secs(2);
    assert_eq!(client.read("k").await.expect("it is there").value, "v");
    client.read("k").latest().await.expect("it is there");
    client.read("k").strong().timeout(SHORT).await.expect("it is there");
    client.read("k").max_staleness(age).await.expect("it is there");
    client.read("k").level(&ReadLevel::strong().max_staleness(age)).await.expect("it is there");
    let pages = client.scan_page(&Scan::all().level(ReadLevel::latest()), None).await;
    assert_eq!(pages.expect("a page").records.len(), 1);
    let none = String::new;
    let expected = vec![
        (Consistency::Eventual, none(), None, false),
        (Consistency::Latest, none(), None, true),
        (Consistency::Strong, none(), None, true),
        (Consistency::Eventual, none(), Some(age), true),
        (Consistency::Strong, none(), Some(age), true),
        (Consistency::Latest, none(), None, true),
    ];
    assert_eq!(*asked.lock(), expected);
}

#[tokio::test]
async fn a_session_moves_with_writes_reads_misses_and_pages() {
    let node = FakeNode::start().await;
    let client = client(&[&node]).await;
    let asked = asked_of(&node);
    let session = Session::new();
    let position_after = |session: &Session| session.to_string();
    client.read("none").session(&session).await.expect_err("it is not there");
    assert_eq!(position_after(&session), "0:-1", "a miss is seen too");
    client.write("k", "v").session(&session).await.expect("it is written");
    assert_eq!(position_after(&session), "0:0");
    client.set("k", "w").await.expect("it is written");
    client.set("other", "w").await.expect("it is written");
    client.read("k").session(&session).await.expect("it is there");
    assert_eq!(position_after(&session), "0:1");
    let scan = Scan::prefix("none").level(ReadLevel::session(&session));
    client.scan_page(&scan, None).await.expect("a page");
    assert_eq!(position_after(&session), "0:2", "an empty page is seen too");
    client.remove("k").session(&session).await.expect("it is written");
    client.create("other", "x").session(&session).await.expect_err("it is there");
    assert_eq!(position_after(&session), "0:3");

    // Handed on as text, it asks for what was seen.
    let handed_on: Session = session.to_string().parse().expect("a session");
    assert_eq!((&handed_on, handed_on.is_empty()), (&session, false));
    client.read("other").session(&handed_on).await.expect("it is there");
    client.read("other").session(&handed_on).strong().await.expect("it is there");
    let last: Vec<_> =
        asked.lock().iter().rev().take(2).map(|(level, at, ..)| (*level, at.clone())).collect();
    assert_eq!(last, [(Consistency::Strong, String::new()), (Consistency::Session, "0:3".to_owned())]);
    // What it can't promise is refused, and reaches nobody.
    let calls = node.calls();
    let refused = client.read("k").latest().session(&session).await.expect_err("it may miss what was seen");
    assert!(matches!(refused, Error::Refused { refusal: Refusal::BadRequest, .. }), "{refused}");
    assert_eq!(node.calls(), calls);
    assert!("0:1;1".parse::<Session>().is_err() && "".parse::<Session>().is_ok_and(|it| it.is_empty()));
}

#[tokio::test]
async fn a_node_that_is_behind_is_passed_over_and_not_ejected() {
    let (_, behind, good) = two().await;
    let client = client(&[&behind, &good]).await;
    client.set("k", "v").await.expect("it is written");
    behind.script(|_, request| match request {
        Request::ReadRecord { .. } => Reaction::Fail(ErrorCode::NotReady),
        _ => Reaction::Answer,
    });
    for _ in 0..30 {
        assert_eq!(client.read("k").strong().await.expect("the other has it").value, "v");
    }
    assert!(behind.calls() > 3 && ejected(&client, &behind.address()).is_none());
    good.script(|_, _| Reaction::Fail(ErrorCode::NotReady));
    let error = client.read("k").strong().timeout(SHORT).await.expect_err("nobody can");
    assert!(matches!(error, Error::NotReady { .. }) && error.is_retryable(), "{error}");
}

#[tokio::test]
async fn a_node_that_is_older_is_passed_over() {
    const OLDER: &str = r#"{"protocol":"Older","types":[],"messages":{
        "getRecord":{"request":[{"name":"key","type":"string"}]},
        "setRecord":{"request":[{"name":"key","type":"string"},{"name":"value","type":"string"},{"name":"ttl","type":"long"}]}}}"#;
    let (_, older, good) = two().await;
    older.greeting(Greeting::Client(OLDER));
    let both = client(&[&older, &good]).await;
    both.set("k", "v").await.expect("both know that");
    for number in 0..20 {
        both.read("k").strong().await.expect("the other knows it");
        both.create(&format!("k{number}"), "v").await.expect("the other knows it");
    }
    let alone = client(&[&older]).await;
    let calls = older.calls();
    let error = alone.read("k").strong().await.expect_err("it does not know that");
    assert!(matches!(error, Error::Refused { refusal: Refusal::Unsupported, .. }), "{error}");
    assert!(error.to_string().contains("readRecord: it is older"), "{error}");
    let error = alone.create("k", "v").await.expect_err("it does not know that");
    assert!(!error.may_have_taken_effect() && error.to_string().contains("writeRecord"), "{error}");
    assert_eq!(older.calls(), calls);
    assert_eq!(alone.read("k").await.expect("a plain read").value, "v");
}
