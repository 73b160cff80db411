//! Mirrors: what they show, when they are current, and what becomes of them after a gap.

use bitacora_client::{Mirror, MirrorChange};

use super::*;

/// What it holds, as `key=value`.
pub fn held(mirror: &Mirror) -> Vec<String> {
    let view = mirror.view();
    view.iter().map(|record| format!("{}={}", record.key(), record.value())).collect()
}

pub async fn current(mirror: &Mirror) {
    mirror.wait_current(PATIENCE).await.expect("it becomes current");
}

/// What it is called with, as `key: before -> after`.
fn noted() -> (Arc<Mutex<Vec<String>>>, impl FnMut(&MirrorChange) + Send + 'static) {
    let noted = Arc::new(Mutex::new(Vec::new()));
    let notes = Arc::clone(&noted);
    let note = move |change: &MirrorChange| {
        let value = |record: &Option<bitacora_client::MirroredRecord>| {
            record.as_ref().map_or("-".to_owned(), |record| record.value().to_owned())
        };
        notes.lock().push(format!("{}: {} -> {}", change.key(), value(&change.before), value(&change.after)));
    };
    (noted, note)
}

#[tokio::test]
async fn it_shows_what_is_there_and_what_changes() {
    let node = FakeNode::start().await;
    let client = client(&[&node]).await;
    for (key, value) in [("a/1", "x"), ("a/2", "y"), ("a/3", "z"), ("b", "no")] {
        client.set(key, value).await.expect("it is written");
    }
    let (noted, note) = noted();
    let mirror = client.mirror("a/").on_change(note).await.expect("it begins");
    current(&mirror).await;
    assert!(mirror.is_current() && mirror.lag().is_some_and(|lag| lag < PATIENCE));
    assert_eq!(held(&mirror), ["a/1=x", "a/2=y", "a/3=z"]);
    let keys = |records: Vec<bitacora_client::MirroredRecord>| {
        records.iter().map(|record| record.key().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(keys(mirror.range("a/2".."a/3")), ["a/2"]);
    assert_eq!(keys(mirror.range("a/2"..)), ["a/2", "a/3"]);
    assert_eq!(keys(mirror.prefix("a/1")), ["a/1"]);
    assert!(mirror.get("b").is_none() && mirror.len() == 3 && !mirror.is_empty());
    let record = mirror.get("a/1").expect("it is there").to_record();
    assert_eq!(record.uuid, client.get("a/1").await.expect("it is there").uuid);
    client.delete("a/2").await.expect("it is written");
    let written = client.set("a/1", "w").await.expect("it is written");
    mirror.wait_until(written.position, PATIENCE).await.expect("it gets there");
    assert_eq!(held(&mirror), ["a/1=w", "a/3=z"]);
    assert!(mirror.positions().contains(&written.position));
    until("all was noted", || noted.lock().len() == 5).await;
    assert_eq!(noted.lock()[3..], ["a/2: y -> -", "a/1: x -> w"]);
    // A key of others is waited for as well.
    let written = client.set("b", "v").await.expect("it is written");
    mirror.wait_until(written.position, PATIENCE).await.expect("it gets there");
}

#[tokio::test]
async fn reads_do_not_show_what_has_expired() {
    let node = FakeNode::start().await;
    let client = client(&[&node]).await;
    // That node's clock is far behind.
    client.set_with_ttl("k", "v", Duration::from_secs(1)).await.expect("it is written");
    client.set_with_ttl("later", "v", Duration::from_secs(1 << 36)).await.expect("it is written");
    let mirror = client.mirror("").await.expect("it begins");
    current(&mirror).await;
    assert_eq!((mirror.len(), held(&mirror)), (2, vec!["later=v".to_owned()]));
    assert!(mirror.get("k").is_none() && mirror.prefix("k").is_empty() && mirror.range("k"..="k").is_empty());
}

#[tokio::test]
async fn after_a_gap_all_is_replaced_at_once() {
    let node = FakeNode::start().await;
    let client = client(&[&node]).await;
    for key in ["gone", "changed"] {
        client.set(key, "old").await.expect("it is written");
    }
    let (noted, note) = noted();
    let mirror = client.mirror("").on_change(note).await.expect("it begins");
    current(&mirror).await;
    noted.lock().clear();
    // After the gap, which is told, nothing more for a while.
    let permits = Arc::new(Semaphore::new(0));
    node.script({
        let permits = Arc::clone(&permits);
        move |_, request| match request {
            Request::ReadChanges(changes) if changes.since.starts_with("1@") => {
                Reaction::When(Arc::clone(&permits))
            }
            _ => Reaction::Answer,
        }
    });
    node.store().lock().replace_log();
    client.set("changed", "new").await.expect("it is written");
    client.set("added", "new").await.expect("it is written");
    until("it learns of the gap", || mirror.positions().is_empty()).await;
    assert!(!mirror.is_current());
    let error = mirror.wait_current(SHORT).await.expect_err("it can't be");
    assert!(matches!(&error, Error::TimedOut { .. }) && error.to_string().contains("not current"), "{error}");
    assert_eq!(held(&mirror), ["changed=old", "gone=old"]);
    assert!(mirror.positions().is_empty());
    permits.add_permits(1 << 20);
    current(&mirror).await;
    assert_eq!(held(&mirror), ["added=new", "changed=new"]);
    until("all was noted", || noted.lock().len() == 3).await;
    assert_eq!(*noted.lock(), ["gone: old -> -", "added: - -> new", "changed: old -> new"]);
}

#[tokio::test]
async fn it_is_not_current_while_no_node_answers() {
    let (store, one, other) = two().await;
    let client = client(&[&one, &other]).await;
    client.set("k", "v").await.expect("it is written");
    let mirror = client.mirror("").await.expect("it begins");
    current(&mirror).await;
    let (one, other) = (one.kill().await, other.kill().await);
    until("it notices", || !mirror.is_current()).await;
    assert_eq!(held(&mirror), ["k=v"]);
    let (_one, _other) = (FakeNode::at(&one, &store).await, FakeNode::at(&other, &store).await);
    store.lock().overwrite("k", "w");
    let last = Position { partition: 0, offset: 1 };
    mirror.wait_until(last, PATIENCE).await.expect("it gets there");
    current(&mirror).await;
    assert_eq!(held(&mirror), ["k=w"]);
}

#[tokio::test]
async fn it_ends_with_its_client_and_keeps_what_it_holds() {
    let node = FakeNode::start().await;
    let client = client(&[&node]).await;
    client.set("k", "v").await.expect("it is written");
    let mirror = client.mirror("").await.expect("it begins");
    current(&mirror).await;
    client.close().await;
    let nowhere = Position { partition: 0, offset: 99 };
    assert_eq!(mirror.wait_until(nowhere, PATIENCE).await, Err(Error::Closed));
    assert_eq!((mirror.error(), mirror.is_current()), (Some(Error::Closed), false));
    assert_eq!(held(&mirror), ["k=v"]);
}

#[tokio::test]
async fn dropping_it_ends_its_calls() {
    let node = FakeNode::start().await;
    let client = client(&[&node]).await;
    let mirror = client.mirror("").await.expect("it begins");
    current(&mirror).await;
    drop(mirror);
    let calls = node.calls();
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert!(node.calls() <= calls + 1, "it goes on");
}

#[tokio::test]
async fn a_callback_that_panics_ends_nothing() {
    let node = FakeNode::start().await;
    let client = client(&[&node]).await;
    let mirror = client.mirror("").on_change(|change| assert_ne!(change.key(), "bad")).await;
    let mirror = mirror.expect("it begins");
    client.set("bad", "v").await.expect("it is written");
    let written = client.set("good", "v").await.expect("it is written");
    mirror.wait_until(written.position, PATIENCE).await.expect("it goes on");
    assert_eq!(held(&mirror), ["bad=v", "good=v"]);
}
