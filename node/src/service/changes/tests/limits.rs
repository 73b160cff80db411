//! What is refused, and what ends a reader.

use super::*;

#[test]
fn so_many_may_follow_and_no_more() {
    let node = Node::new(&ManualClock::new(), 2, None);
    let followers = [node.begin(&Wanted::default()), node.begin(&Wanted::default())];
    let Err(error) = node.changes.begin(&Wanted::default()) else { panic!("a third was taken") };
    assert_eq!(error.kind(), ErrorKind::NotReady, "{error}");
    assert_eq!(node.changes.metrics.watchers.get(), 2);
    drop(followers);
    assert_eq!(node.changes.metrics.watchers.get(), 0);
    node.begin(&Wanted::default());
}

#[test]
fn what_makes_no_sense_is_refused() {
    let node = Node::new(&ManualClock::new(), 8, None);
    let long = "p".repeat(MAX_KEY_BYTES + 1);
    for wanted in [
        Wanted { prefix: "p", key: Some("k"), ..Wanted::default() },
        Wanted { prefix: &long, ..Wanted::default() },
        Wanted { key: Some(" "), ..Wanted::default() },
        Wanted { key: Some(""), ..Wanted::default() },
        Wanted { key: Some("\0barrier"), ..Wanted::default() },
    ] {
        let Err(error) = node.changes.begin(&wanted) else { panic!("{wanted:?} was taken") };
        assert_eq!(error.kind(), ErrorKind::BadRequest, "{error}");
    }
    node.begin(&Wanted { prefix: &long[1..], ..Wanted::default() });
}

#[test]
fn a_node_that_stops_or_restores_says_so() {
    let node = Node::new(&ManualClock::new(), 8, None);
    let mut reader = node.begin(&Wanted::default());
    node.changes.feed.suspend();
    assert!(matches!(block_on(reader.read(1, 1)), Err(Ended::NotRestored)));
    assert!(matches!(node.changes.begin(&Wanted::default()), Err(ChangesError::NotRestored)));
    node.changes.feed.close();
    assert!(matches!(block_on(reader.read(1, 1)), Err(Ended::Stopping)));
    assert!(matches!(node.changes.begin(&Wanted::default()), Err(ChangesError::Stopping)));
}

#[test]
fn another_store_is_a_gap_and_then_what_is_there() {
    let (clock, mut log) = (ManualClock::new(), ModelLog::default());
    let mut node = Node::new(&clock, 8, None);
    let mut reader = node.begin(&Wanted::default());
    log.append(1, ttl::FOR_EVER);
    node.apply(&log, 1);
    node.changes.feed.restart(LogTag(7), &[NextOffset(0), NextOffset(1)], clock.wall());
    let told = block_on(async {
        let mut told = reader.read(9, 9).await.expect("it tells").events;
        told.extend(reader.read(9, 9).await.expect("it tells").events);
        told
    });
    let [Told { what: What::Gap(_), .. }, Told { what: What::Event(event), .. }] = &told[..] else {
        panic!("{} events", told.len())
    };
    assert_eq!((&*event.key, event.kind), ("b/1", Kind::Set));
}

/// What a sweep drops is not found by its time any more.
#[test]
fn a_sweep_waits_for_what_is_not_told() {
    let clock = ManualClock::new();
    let node = Node::new(&clock, 8, None);
    let feed = &node.changes.feed;
    node.tell_expiries();
    let told_until = clock.wall().assuming_clocks_agree();
    clock.pass(Duration::from_secs(60));
    let now = clock.wall().assuming_clocks_agree();
    assert_eq!(feed.sweep_until(now), told_until);
    node.tell_expiries();
    assert_eq!(feed.sweep_until(now), now);
}
