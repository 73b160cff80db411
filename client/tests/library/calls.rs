//! Calls, their answers, settings and scans.

use super::*;

#[tokio::test]
async fn calls_and_their_answers() {
    let node = FakeNode::start().await;
    let client = client(&[&node]).await;
    let Err(Error::NotFound { key, position, timestamp: None, .. }) = client.get("k").await else {
        panic!("there is no key yet")
    };
    assert_eq!((key.as_str(), position), ("k", Position { partition: 0, offset: -1 }));
    let written = client.set("k", "välue").await.expect("it is written");
    assert_eq!((written.position, written.ttl), (Position { partition: 0, offset: 0 }, 0));
    let record = client.get("k").await.expect("it is there");
    assert_eq!(
        (record.key.as_str(), record.value.as_str(), record.position),
        ("k", "välue", written.position)
    );
    assert_eq!((&record.uuid, record.timestamp), (&written.uuid, written.timestamp));
    assert_eq!(record.served_from, ServedFrom::Cache);
    assert_eq!(
        serde_json::json!(record),
        serde_json::json!({"key": "k", "value": "välue", "timestamp": written.timestamp, "source": 1, "ttl": 0,
            "uuid": written.uuid, "position": "0:0", "served_from": "cache"})
    );

    // Nothing in a key is special, and an empty value is a value.
    client.set("&=%+/ \u{0}ü", "").await.expect("it is written");
    assert_eq!(client.get("&=%+/ \u{0}ü").await.expect("it is there").value, "");

    // Counted in ms, rounded to at least one.
    for (ttl, ms) in [(Duration::from_secs(2), 2000), (Duration::from_nanos(1), 1)] {
        let written = client.set_with_ttl("k", "v", ttl).await.expect("it is written");
        assert_eq!(written.ttl, written.timestamp + ms);
    }
    let refused = client.set_with_ttl("k", "v", Duration::ZERO).await.expect_err("that is no time");
    assert!(matches!(refused, Error::Refused { refusal: Refusal::BadRequest, .. }), "{refused:?}");

    let deleted = client.delete("k").await.expect("it is deleted");
    assert_eq!(deleted.ttl, -1);
    let missing = client.get("k").await.expect_err("it is deleted");
    assert!(missing.is_not_found() && !missing.is_retryable());
    let Error::NotFound { position, timestamp, .. } = missing else { panic!("{missing:?}") };
    assert_eq!((position, timestamp), (deleted.position, Some(deleted.timestamp)));
}

#[tokio::test]
async fn settings_that_make_no_sense_are_refused() {
    let zookeeper = || "localhost:2181".parse().expect("it is a connect string");
    let good = || Client::builder().nodes(["localhost:1"]);
    for (builder, names) in [
        (Client::builder(), "nodes"),
        (good().zookeeper(zookeeper()), "both"),
        (good().nodes(["localhost"]), "host:port"),
        (good().deadline(Duration::ZERO), "deadline"),
        (good().connect_timeout(Duration::ZERO), "connect_timeout"),
        (good().zookeeper_session_timeout(Duration::ZERO), "session"),
        (good().connections_per_node(0), "connections_per_node"),
    ] {
        let error = builder.build().await.expect_err(names);
        assert!(matches!(&error, Error::Settings(text) if text.contains(names)), "{error}");
    }
    // Without a limit is fine.
    let (_, one, other) = two().await;
    let client = client(&[&one, &other]).await.with_deadline(Duration::MAX);
    client.set("k", "v").await.expect("it may take for ever");
    client.get("k").await.expect("it may take for ever");
}

#[tokio::test]
async fn scans_go_through_all_pages_and_nodes() {
    let (_, one, other) = two().await;
    let client = client(&[&one, &other]).await;
    for n in 0..50 {
        client.set(&format!("k{n:02}"), "v").await.expect("it is written");
    }
    client.set("z", "v").await.expect("it is written");
    client.delete("k49").await.expect("it is deleted");
    let keys = async |scan: Scan| {
        let records: Vec<_> = client.scan(scan).try_collect().await.expect("it is read");
        records.into_iter().map(|record| record.key).collect::<Vec<_>>()
    };
    let expected = |range: std::ops::Range<usize>| range.map(|n| format!("k{n:02}")).collect::<Vec<_>>();
    assert_eq!(keys(Scan::all()).await.len(), 50);
    assert_eq!(keys(Scan::prefix("k").start("k10").end("k20").page(3)).await, expected(10..20));
    assert_eq!(keys(Scan::prefix("none")).await, expected(0..0));

    let page = client.scan_page(&Scan::prefix("k").page(10), None).await.expect("it is read");
    assert_eq!((page.records.len(), page.cursor.as_deref()), (10, Some("k09")));
    let page =
        client.scan_page(&Scan::prefix("k").page(100), page.cursor.as_deref()).await.expect("it is read");
    assert_eq!((page.records.len(), page.cursor), (39, None));

    // A node that dies in between costs nothing.
    let mut scan = Box::pin(client.scan(Scan::prefix("k").page(2)));
    let mut found = HashSet::new();
    for _ in 0..10 {
        found.insert(scan.next().await.expect("there is more").expect("it is read").key);
    }
    one.kill().await;
    while let Some(record) = scan.next().await {
        found.insert(record.expect("it is read").key);
    }
    assert_eq!(found.len(), 49);

    // It ends after an error.
    other.script(|_, _| Reaction::Fail(ErrorCode::BadRequest));
    let mut scan = Box::pin(client.scan(Scan::all()));
    assert!(scan.next().await.is_some_and(|record| record.is_err()));
    assert!(scan.next().await.is_none());
}
