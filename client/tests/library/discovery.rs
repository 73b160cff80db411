//! Nodes are found in ZooKeeper.

use super::*;

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

#[tokio::test]
async fn a_zookeeper_without_a_quorum_is_not_stormed() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("it is bound").to_string();
    let connect = address.parse().expect("it is a connect string");
    let building = tokio::spawn(Client::builder().zookeeper(connect).deadline(5 * PATIENCE).build());
    let (mut accepted, start) = (0, Instant::now());
    while accepted < 5 {
        drop(listener.accept().await.expect("it listens"));
        accepted += 1;
    }
    // Between them 150, 300, 600 and 1200 ms at least.
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(2250), "{accepted} connections in {took:?}");
    building.abort();
}

#[tokio::test]
async fn the_error_names_zookeepers_host() {
    let zookeeper = FakeZooKeeper::start(None).await;
    let connect = zookeeper.connect();
    let address = zookeeper.kill().await;
    let error =
        Client::builder().zookeeper(connect).deadline(5 * SHORT).build().await.expect_err("nobody is there");
    assert!(
        matches!(&error, Error::NoNode { last: Some(last) } if last.contains("ZooKeeper") && last.contains(&address)),
        "{error}"
    );
}
