//! Batches whose lines say how consistent a read is, and on which condition a write takes effect.

use bitacora_client::{ReadLevel, Session, Visible, WriteCondition};
use bitacora_protocol::rpc::PROTOCOL;
use bitacora_protocol::{Consistency, Operation as Line};

use super::*;

const UUID: &str = "123e4567-e89b-12d3-a456-426614174000";

/// What the operations of each request asked for, in a word each.
fn asked_of(nodes: &[&FakeNode]) -> Arc<Mutex<Vec<Vec<String>>>> {
    let asked = Arc::<Mutex<Vec<Vec<String>>>>::default();
    for node in nodes {
        let log = Arc::clone(&asked);
        node.script(move |_, request| {
            if let Request::Batch(lines) | Request::BatchRecords(lines) = request {
                let timed = matches!(request, Request::BatchRecords(_));
                log.lock().push(lines.iter().map(|line| word(line, timed)).collect());
            }
            Reaction::Answer
        });
    }
    asked
}

fn word(line: &Line<'_>, timed: bool) -> String {
    let timeout = match *line {
        Line::Get { read, .. } => read.timeout,
        Line::Set { write, .. } | Line::Delete { write, .. } => write.timeout,
    };
    assert_eq!(timeout.is_some(), timed, "each line with options has the time that is left");
    match *line {
        Line::Get { key, read } if read.is_eventual() => format!("get {key}"),
        Line::Get { key, read } => {
            let age = read.max_staleness.map_or(0, |age| age.as_secs());
            format!("get {key} {} {} {age}", read.consistency, read.position)
        }
        Line::Set { key, write, .. } if write.is_plain() => format!("set {key}"),
        Line::Delete { key, write } if write.is_plain() => format!("delete {key}"),
        Line::Set { key, write, .. } | Line::Delete { key, write } => {
            let uuid = match write.uuid {
                UUID => "mine",
                "" => "none",
                _ => "its own",
            };
            format!("write {key} {} {uuid} {}", write.condition, write.visible)
        }
    }
}

fn values(results: &[Result<Outcome, Error>]) -> Vec<String> {
    let value = |result: &Result<Outcome, Error>| match result {
        Ok(Outcome::Read(record)) => record.value.clone(),
        Ok(Outcome::Written(_)) => "written".to_owned(),
        Err(Error::NotMet { current, may_have_taken_effect: false, .. }) => {
            format!("not met: {:?}", current.as_ref().map(|record| record.value.as_str()))
        }
        Err(Error::NotFound { .. }) => "not found".to_owned(),
        Err(error) => format!("{error:?}"),
    };
    results.iter().map(value).collect()
}

#[tokio::test]
async fn each_line_asks_for_what_it_says_and_has_its_result() {
    let node = FakeNode::start().await;
    let client = client(&[&node]).await;
    let version = client.set("limit", "10").await.expect("it is written").position;
    let asked = asked_of(&[&node]);
    let session = Session::new();
    session.saw(version);
    let lines = [
        Operation::read("limit", ReadLevel::strong()),
        Operation::compare_and_set("limit", version, "20").uuid(UUID).into(),
        get("limit"),
        Operation::create("limit2", "1").ttl(Duration::from_secs(9)).visible(Visible::All).into(),
        set("plain", "1"),
        Operation::delete_if("gone", version).into(),
        Operation::read("limit", ReadLevel::session(&session).max_staleness(Duration::from_secs(2))),
        Operation::write("w", "1").into(),
        Operation::read("none", ReadLevel::latest()),
        Operation::Delete { key: "plain2".into() },
    ];
    let results = client.batch(&lines).await.expect("it is not closed");
    let asked = asked.lock();
    let [first, second] = &asked[..] else { panic!("two requests: {asked:?}") };
    let (plain, others) = if first.len() == 3 { (first, second) } else { (second, first) };
    assert_eq!(*plain, ["get limit", "set plain", "delete plain2"]);
    assert_eq!(
        *others,
        [
            "get limit strong  0",
            &format!("write limit {version} mine acknowledged"),
            "write limit2 absent its own all",
            &format!("write gone {version} its own acknowledged"),
            &format!("get limit session {version} 2"),
            "set w",
            "get none latest  0",
        ]
    );
    let values = values(&results);
    let written = "written";
    assert_eq!(values[1], written);
    assert_eq!(values[3..6], [written, written, "not met: None"]);
    assert_eq!(values[7..], [written, "not found", written]);
    assert!(matches!(&results[3], Ok(Outcome::Written(it)) if it.ttl == it.timestamp + 9_000));
}

#[tokio::test]
async fn writes_of_a_key_take_their_turns() {
    let (_, one, other) = two().await;
    let client = client(&[&one, &other]).await;
    let asked = asked_of(&[&one, &other]);
    let lines = [
        Operation::create("k", "1").into(),
        set("other", "1"),
        Operation::write("k", "2").if_present().into(),
        set("k", "3"),
        set("k", "4"),
        Operation::create("k", "5").into(),
        Operation::remove("k").if_present().into(),
        Operation::write("k", "6").if_absent().into(),
    ];
    let results = client.batch(&lines).await.expect("it is not closed");
    let values = values(&results);
    let expected = ["written"; 8].map(str::to_owned);
    assert_eq!(values[..5], expected[..5]);
    assert_eq!(values[5], "not met: Some(\"4\")");
    assert_eq!(values[6..], expected[..2]);
    // A node would decide them side by side.
    let asked = asked.lock();
    for request in asked.iter().filter(|request| request.iter().any(|line| line.starts_with("write"))) {
        assert!(request.iter().filter(|line| line.contains(" k")).count() <= 1, "{request:?}");
    }
}

/// The answer is lost, or says that nobody knows, and the same write is sent again: its uuid is known.
#[tokio::test]
async fn an_unclear_line_with_a_condition_takes_effect_once() {
    type Trouble = fn() -> Reaction;
    let troubles: [(&str, Trouble); 3] = [
        ("the answer is lost", || Reaction::Close),
        ("a line is not acknowledged", || Reaction::FailOperations(vec![1], ErrorCode::MayTakeEffect)),
        ("nothing was taken", || Reaction::Fail(ErrorCode::NotTaken)),
    ];
    for (name, trouble) in troubles {
        let (store, one, other) = two().await;
        let client = client(&[&one, &other]).await;
        let first = Arc::new(AtomicBool::new(true));
        for node in [&one, &other] {
            let first = Arc::clone(&first);
            node.script(
                move |_, _| if first.swap(false, Ordering::SeqCst) { trouble() } else { Reaction::Answer },
            );
        }
        let lines = [Operation::create("a", "1").into(), Operation::create("b", "1").into()];
        let results = client.batch(&lines).await.expect("it is not closed");
        assert_eq!(values(&results), ["written", "written"], "{name}");
        assert_eq!(store.lock().writes.len(), 2, "{name}");
    }
}

/// Beside a write that must not be sent twice.
#[tokio::test]
async fn only_lines_with_a_condition_are_sent_again() {
    let (store, one, other) = two().await;
    let client = client(&[&one, &other]).await;
    let first = Arc::new(AtomicBool::new(true));
    for node in [&one, &other] {
        let first = Arc::clone(&first);
        node.script(
            move |_, _| {
                if first.swap(false, Ordering::SeqCst) { Reaction::Close } else { Reaction::Answer }
            },
        );
    }
    let lines = [
        Operation::create("a", "1").into(),
        Operation::write("b", "1").visible(Visible::Here).into(),
        Operation::read("a", ReadLevel::strong()),
    ];
    let results = client.batch(&lines).await.expect("it is not closed");
    assert!(matches!(&results[0], Ok(Outcome::Written(_))), "{results:?}");
    assert!(matches!(&results[1], Err(Error::Unacknowledged { .. })), "{results:?}");
    assert!(matches!(&results[2], Ok(Outcome::Read(_))), "{results:?}");
    assert_eq!(store.lock().writes.len(), 2);
}

#[tokio::test]
async fn a_refusal_after_an_unclear_attempt_leaves_it_open() {
    let (store, one, other) = two().await;
    let client = client(&[&one, &other]).await;
    let attempts = Arc::new(AtomicUsize::new(0));
    for node in [&one, &other] {
        let (attempts, store) = (Arc::clone(&attempts), Arc::clone(&store));
        node.script(move |_, _| match attempts.fetch_add(1, Ordering::SeqCst) {
            0 => Reaction::Close,
            _ => {
                store.lock().overwrite("k", "another's");
                Reaction::Answer
            }
        });
    }
    // What comes after it in the batch could be undone by it.
    let lines = [Operation::create("k", "mine").into(), set("k", "later")];
    let results = client.batch(&lines).await.expect("it is not closed");
    let Err(error @ Error::NotMet { current: Some(current), .. }) = &results[0] else {
        panic!("{results:?}")
    };
    assert!(current.value == "another's" && error.may_have_taken_effect(), "{error:?}");
    assert!(matches!(&results[1], Err(Error::NotTaken { node: None, .. })), "{results:?}");
}

#[tokio::test]
async fn a_session_sees_what_a_batch_wrote_read_and_missed() {
    let node = FakeNode::start().await;
    let client = client(&[&node]).await;
    let session = Session::new();
    let write = |key: &str| Operation::write(key, "v").session(&session);
    let results = client.batch(&[write("a").into()]).await.expect("it is not closed");
    let Ok(Outcome::Written(first)) = &results[0] else { panic!("{results:?}") };
    assert_eq!(session.to_string(), first.position.to_string());
    let second = client.set("a", "w").await.expect("it is written").position;
    client.batch(&[write("a").if_absent().into()]).await.expect("it is not closed");
    assert_eq!(session.to_string(), second.to_string(), "a refusal tells what is there");
    let third = client.set("a", "x").await.expect("it is written").position;
    let asked = asked_of(&[&node]);
    client.batch(&[Operation::read("a", ReadLevel::session(&session))]).await.expect("it is not closed");
    assert_eq!(*asked.lock(), [[format!("get a {} {second} 0", Consistency::Session)]]);
    assert_eq!(session.to_string(), third.to_string());
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_alone() {
    let node = FakeNode::start().await;
    let client = client(&[&node]).await;
    let session = Session::new();
    session.saw("0:0".parse().expect("a position"));
    let lines = [
        Operation::read("k", ReadLevel::latest().within(&session)),
        Operation::create("k", "v").ttl(Duration::ZERO).into(),
        Operation::create("k", "x".repeat(5 << 20)).into(),
        Operation::create("k", "v").into(),
    ];
    let results = client.batch(&lines).await.expect("it is not closed");
    let refusals = [Refusal::BadRequest, Refusal::BadRequest, Refusal::TooLarge];
    for (result, expected) in results.iter().zip(refusals) {
        assert!(matches!(result, Err(Error::Refused { refusal, .. }) if *refusal == expected), "{result:?}");
    }
    assert!(results[3].is_ok());
    let write = Operation::create("k", "v");
    assert_eq!((write.condition, write.uuid), (WriteCondition::Absent, None));
}

/// Nodes of before know no lines with options, and the others beside them all the same.
#[tokio::test]
async fn plain_lines_do_without_the_new_message() {
    let node = FakeNode::start().await;
    let older: &str = Box::leak(PROTOCOL.replace("\"batchRecords\"", "\"unknown\"").into_boxed_str());
    node.greeting(Greeting::Client(older));
    let client = client(&[&node]).await;
    let lines = [set("a", "1"), Operation::create("b", "1").into(), get("none")];
    let results = client.batch(&lines).await.expect("it is not closed");
    assert!(matches!(&results[0], Ok(Outcome::Written(_))), "{results:?}");
    let Err(Error::Refused { refusal: Refusal::Unsupported, reason }) = &results[1] else {
        panic!("{results:?}")
    };
    assert!(reason.contains("batchRecords: it is older"), "{reason}");
    assert!(matches!(&results[2], Err(Error::NotFound { .. })), "{results:?}");
}
