//! Nodes that fail get no calls until they are back.

use super::*;

#[tokio::test]
async fn a_node_that_is_busy_gets_fewer_calls() {
    let (_, busy, idle) = two().await;
    let client = client(&[&busy, &idle]).await;
    busy.script(|_, _| Reaction::Never);
    let stuck = tokio::spawn({
        let client = client.clone();
        async move { join_all((0..2).map(|_| client.set("k", "v"))).await }
    });
    // Each went where nothing was under way.
    until("one is with each", || busy.calls() == 1 && idle.calls() == 1 && under_way(&client) == 1).await;
    for _ in 0..50 {
        client.set("k", "v").await.expect("the idle node takes it");
    }
    assert_eq!((busy.calls(), idle.calls()), (1, 51));
    stuck.abort();
}

#[tokio::test]
async fn a_node_that_dies_is_ejected_and_comes_back_by_itself() {
    let (store, node, other) = two().await;
    let client = client(&[&node, &other]).await;
    client.set("k", "v").await.expect("it is written");
    let address = node.kill().await;
    for _ in 0..20 {
        client.get("k").await.expect("the other node has it");
    }
    let reason = ejected(&client, &address).expect("it is dead");
    assert!(reason.contains("refused") || reason.contains("closed") || reason.contains("reset"), "{reason}");
    let node = FakeNode::at(&address, &store).await;
    until("it is back", || ejected(&client, &address).is_none()).await;
    assert_eq!((node.calls(), node.inner.accepted.load(Ordering::SeqCst)), (0, 1));
    for _ in 0..20 {
        client.get("k").await.expect("both have it");
    }
    assert!(node.calls() > 0);
}

#[tokio::test]
async fn a_node_whose_connection_breaks_under_a_call_is_ejected() {
    let (_, node, other) = two().await;
    let client = client(&[&node, &other]).await;
    for _ in 0..20 {
        client.set("k", "v").await.expect("it is written");
    }
    // It can't come back at once.
    node.greeting(Greeting::Silent);
    node.script(|_, _| Reaction::Close);
    let calls = node.calls();
    let reason = read_until_ejected(&client, &node).await;
    assert!(reason.contains("closed") || reason.contains("reset"), "{reason}");
    assert_eq!(node.calls(), calls + 1);
}

#[tokio::test]
async fn a_hanging_node_is_probed_by_one_connection_at_a_time() {
    let (_, node, other) = two().await;
    let client = builder(&[&node, &other]).deadline(5 * SHORT).connect_timeout(SHORT).connections_per_node(4);
    let client = client.build().await.expect("the settings are right");
    client.set("k", "v").await.expect("it is written");
    node.script(|_, _| Reaction::Never);
    assert_eq!(read_until_ejected(&client, &node).await, "no answer in time");
    until("its connections are closed", || node.inner.open.load(Ordering::SeqCst) == 0).await;
    node.greeting(Greeting::Silent);
    let (calls, accepted) = (node.calls(), node.inner.accepted.load(Ordering::SeqCst));
    node.inner.most_open.store(0, Ordering::SeqCst);
    until("it is tried", || node.inner.accepted.load(Ordering::SeqCst) >= accepted + 3).await;
    for _ in 0..100 {
        client.get("k").await.expect("the other node has it");
    }
    assert_eq!((node.calls(), node.inner.most_open.load(Ordering::SeqCst)), (calls, 1));
    node.greeting(Greeting::Both);
    node.script(|_, _| Reaction::Answer);
    until("it is back", || ejected(&client, &node.address()).is_none()).await;
}

#[tokio::test]
async fn a_single_timeout_ejects_nobody() {
    let (_, node, other) = two().await;
    let client = client(&[&node, &other]).await;
    for (index, node) in [&node, &other].into_iter().enumerate() {
        node.script(move |number, _| if number % 2 == index { Reaction::Never } else { Reaction::Answer });
    }
    for _ in 0..10 {
        // Each fails two times of four, but never three times in a row.
        let _ = client.with_deadline(SHORT).set("k", "v").await;
        assert!(client.nodes().iter().all(|node| node.state == NodeState::Healthy), "{client:?}");
    }
}

#[tokio::test]
async fn a_node_that_is_not_ready_is_left_alone_until_it_is() {
    let (_, node, other) = two().await;
    let client = client(&[&node, &other]).await;
    client.set("k", "v").await.expect("it is written");
    node.script(|_, _| Reaction::Fail(ErrorCode::NotReady));
    assert_eq!(read_until_ejected(&client, &node).await, "NotReady");
    node.script(|_, _| Reaction::Answer);
    until("it is back", || ejected(&client, &node.address()).is_none()).await;
    // Nothing was wrong with its connection.
    assert_eq!(node.inner.accepted.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_retry_goes_to_another_node() {
    let (_, bad, good) = two().await;
    bad.script(|_, _| Reaction::Fail(ErrorCode::NotReady));
    for _ in 0..20 {
        let before = bad.calls();
        client(&[&bad, &good]).await.set("k", "v").await.expect("the other node takes it");
        assert!(bad.calls() <= before + 1);
    }
    assert!(bad.calls() > 0);
}

#[tokio::test]
async fn when_all_nodes_are_ejected_they_are_tried_all_the_same() {
    let node = FakeNode::start().await;
    let client = client(&[&node]).await;
    client.set("k", "v").await.expect("it is written");
    let address = node.kill().await;
    let mut call = Box::pin(client.set("k", "w"));
    let start = Instant::now();
    while ejected(&client, &address).is_none() {
        assert!(poll_immediate(&mut call).await.is_none() && start.elapsed() < PATIENCE);
        tokio::task::yield_now().await;
    }
    let node = FakeNode::at(&address, &Arc::default()).await;
    call.await.expect("it is there again");
    assert_eq!(node.calls(), 1);
    assert!(ejected(&client, &address).is_none());
}

#[tokio::test]
async fn a_connection_closed_while_idle_ejects_nobody() {
    let node = FakeNode::start().await;
    let client = client(&[&node]).await;
    client.set("k", "v").await.expect("it is written");
    node.close_connections();
    until("it is closed", || client.nodes()[0].connections == 0).await;
    client.set("k", "v").await.expect("it connects again");
    assert!(ejected(&client, &node.address()).is_none());
    assert_eq!((node.calls(), node.inner.accepted.load(Ordering::SeqCst)), (2, 2));
}

/// Twenty callers; a node dies, then another one hangs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_failures_under_load_fail_no_read() {
    const DEADLINE: Duration = Duration::from_secs(4);
    let (store, killed, hanging) = two().await;
    let good = FakeNode::of(&store).await;
    let client = client(&[&killed, &hanging, &good]).await.with_deadline(DEADLINE);
    client.set("k", "v").await.expect("it is written");
    let (stop, reads) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let longest = Arc::new(Mutex::new(Duration::ZERO));
    let callers: Vec<_> = (0..20)
        .map(|_| {
            let (client, stop, reads) = (client.clone(), Arc::clone(&stop), Arc::clone(&reads));
            let longest = Arc::clone(&longest);
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let start = Instant::now();
                    assert_eq!(client.get("k").await.expect("no read fails").value, "v");
                    let mut longest = longest.lock();
                    *longest = start.elapsed().max(*longest);
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let more = async |count| {
        let now = reads.load(Ordering::Relaxed);
        until("reads go on", || reads.load(Ordering::Relaxed) > now + count).await;
    };
    more(1000).await;
    let address = killed.kill().await;
    until("it is noticed", || ejected(&client, &address).is_some()).await;
    more(1000).await;
    let pause = std::mem::take(&mut *longest.lock());
    println!("killed: a read took {pause:?} at most");
    assert!(pause < DEADLINE / 4, "{pause:?}");
    hanging.script(|_, _| Reaction::Never);
    until("it is noticed", || ejected(&client, &hanging.address()).is_some()).await;
    more(1000).await;
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.expect("no read failed");
    }
    let pause = *longest.lock();
    println!("hanging: a read took {pause:?} at most");
    assert!(pause >= DEADLINE / 4 && pause < DEADLINE / 2, "{pause:?}");
}

#[tokio::test]
async fn the_last_node_is_not_stormed_when_it_closes_connections() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("it is bound").to_string();
    let client = Client::builder().nodes([address]).deadline(PATIENCE).build().await.expect("settings");
    let calls: Vec<_> = (0..200)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.get("k").await })
        })
        .collect();
    let start = Instant::now();
    for _ in 0..12 {
        drop(listener.accept().await.expect("it listens"));
    }
    // 5, 10, 20, 40, 80, 160 and then 250 ms at least; the last may be made at once with the one before, on another link.
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(500), "12 connections in {took:?}");
    for call in calls {
        call.abort();
    }
}
