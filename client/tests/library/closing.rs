//! How a client is closed.

use super::*;

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
