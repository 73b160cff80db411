use super::*;

/// Each is a log that the store's records did not come from.
#[test]
fn found_at_the_start_empties_the_store() {
    for (cluster, range, what) in [
        ("other", 0..10, "another cluster"),
        ("c", 3..10, "the log starts above the store's next offset"),
        ("c", 0..1, "the log ends below the store's next offset"),
    ] {
        let dir = folder();
        let mut bench = Bench::start(dir.path(), 0..2);
        bench.set(0, "a", "stale");
        bench.set(1, "b", "stale");
        bench.until_ready();
        drop(bench);

        let (start, end) = (range.start, range.end);
        let mut bench = Setup { cluster, ..Setup::new(range) }.open(dir.path());
        bench.until("reading", |bench| bench.started() == [start]);
        assert_eq!((bench.value("a"), bench.value("b")), (None, None), "{what}");
        assert!(bench.progress.unready().is_some(), "{what}");
        assert_eq!(bench.metrics.resyncs.get(), 1, "{what}");
        bench.feed(Step::End(end));
        bench.until_ready();
    }
}

/// What befalls every node must not silence them all: the old store is read until the new one is complete.
#[test]
fn found_while_running_rebuilds_beside_the_old_store() {
    for (cluster, end, what) in [("other", 5, "another cluster"), ("c", 1, "a log that lost records")] {
        let dir = folder();
        let mut bench = Bench::start(dir.path(), 0..3);
        bench.set(0, "kept", "old");
        bench.set(1, "gone", "old");
        bench.set(2, "other", "old");
        bench.until_ready();

        bench.becomes(cluster, 0..end);
        bench.until("rebuilding", |bench| bench.progress.restore().rebuilding.is_some());
        bench.until_reading_from(0);
        if end > 1 {
            bench.set(0, "gone", "in between");
            bench.until_applied(0);
        }
        assert_eq!(bench.progress.unready(), None, "{what}: reads go on");
        assert!(!bench.progress.caught_up(), "{what}");
        assert_eq!(bench.value("gone").as_deref(), Some("old"), "{what}: not the half of a new store");
        bench.set(end - 1, "kept", "new");
        if end > 1 {
            bench.feed(Step::Record { offset: end, key: Some(b"gone"), value: None });
            *bench.log.high_watermark.lock() = end + 1;
        }
        bench.until("switched", |bench| bench.progress.restore().rebuilding.is_none());
        assert_eq!(bench.value("kept").as_deref(), Some("new"), "{what}");
        assert_ne!(bench.value("gone").as_deref(), Some("old"), "{what}");
        assert_eq!(bench.value("other"), None, "{what}");
        assert_eq!(bench.metrics.resyncs.get(), 1, "{what}");
    }
}

/// This node missed records that the others have.
#[test]
fn missed_records_empty_the_store_also_while_running() {
    let dir = folder();
    let mut bench = Bench::start(dir.path(), 0..1);
    bench.set(0, "gone", "old");
    bench.until_ready();
    let before = bench.becomes("c", 5..9);
    before.push(Step::Fails(ReadError::OutOfRange { partition: 0 }));
    bench.until_reading_from(5);
    assert!(!bench.progress.restored());
    assert_eq!(bench.value("gone"), None);
    bench.feed(Step::End(9));
    bench.until_ready();
    assert_eq!(bench.metrics.resyncs.get(), 1);
}

#[test]
fn a_topic_id_tells_topics_apart_where_both_are_known() {
    let id = |id: Option<&str>| LogIdentity {
        cluster: "c".into(),
        topic: "t".into(),
        topic_id: id.map(str::to_owned),
    };
    assert!(
        id(None).fits(&id(Some("1"))) && id(Some("1")).fits(&id(None)) && id(Some("1")).fits(&id(Some("1")))
    );
    assert!(!id(Some("1")).fits(&id(Some("2"))));
    assert!(!id(None).fits(&LogIdentity { topic: "u".into(), ..id(None) }));
    let old: LogIdentity =
        serde_json::from_str(r#"{"cluster":"c","topic":"t"}"#).expect("of an older version");
    assert_eq!(old, id(None));
}
