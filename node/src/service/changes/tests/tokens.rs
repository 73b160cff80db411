//! Tokens that are of use, and that are not.

use super::*;

fn refused(node: &Node, since: &str) -> String {
    let Err(error) = node.changes.begin(&Wanted { since, ..Wanted::default() }) else {
        panic!("{since} was taken")
    };
    assert_eq!(error.kind(), ErrorKind::BadRequest, "{error}");
    error.to_string()
}

/// The first thing that is told to who comes with a token.
fn gap(node: &Node, token: &Token, last: Option<Position>) -> Option<String> {
    let mut reader = node.begin(&Wanted { since: &token.encode(), ..Wanted::default() });
    block_on(async {
        reader.read(9, 9).await.expect("it tells");
        if let Some(last) = last {
            reader.learn_ends(&[last, Position { partition: 1, ..last }]);
        }
        let read = reader.read(9, 9).await.expect("it tells");
        read.events.into_iter().find_map(|told| match told.what {
            What::Gap(reason) => Some(reason),
            What::Event(_) => None,
        })
    })
}

#[test]
fn a_malformed_one_is_refused() {
    let node = Node::new(&ManualClock::new(), 8, None);
    for since in ["x", "AAAA", "not a token", &"A".repeat(100_000)] {
        assert!(refused(&node, since).contains("no token of a watch"));
    }
}

#[test]
fn one_of_another_log_is_a_gap() {
    let node = Node::new(&ManualClock::new(), 8, None);
    let mut token = node.begin(&Wanted::default()).token();
    token.log = LogTag(8);
    let mut reader = node.begin(&Wanted { since: &token.encode(), ..Wanted::default() });
    let read = block_on(reader.read(9, 9)).expect("it tells");
    let [Told { what: What::Gap(reason), .. }] = &read.events[..] else { panic!("no gap") };
    assert!(reason.contains("another log"), "{reason}");
}

#[test]
fn one_of_other_keys_is_a_gap_before_all_were_told() {
    let node = Node::new(&ManualClock::new(), 8, None);
    let first = |token: &Token, prefix: &str| {
        let mut reader = node.begin(&Wanted { since: &token.encode(), prefix, ..Wanted::default() });
        block_on(reader.read(9, 9)).expect("it tells").events
    };
    let begun = node.begin(&Wanted { prefix: "b", initial: true, ..Wanted::default() }).token();
    let events = first(&begun, "");
    let [Told { what: What::Gap(reason), .. }] = &events[..] else { panic!("no gap") };
    assert!(reason.contains("other keys"), "{reason}");
    assert!(first(&begun, "b").is_empty(), "there is nothing");
    // What changes from here on can be told of any keys.
    let told = node.begin(&Wanted { prefix: "b", ..Wanted::default() }).token();
    assert!(first(&told, "").is_empty(), "there is nothing");
}

#[test]
fn one_that_is_too_old_is_a_gap_by_either_clock() {
    let clock = ManualClock::new();
    let retention = Duration::from_secs(60);
    let node = Node::new(&clock, 8, Some(retention));
    let token = node.begin(&Wanted::default()).token();
    clock.pass(retention);
    let refusal = |node: &Node| node.changes.refusal(&token, LogTag(7), &KeyRange::Prefix("".into()));
    assert_eq!(refusal(&node), None);
    clock.pass(Duration::from_millis(1));
    assert!(refusal(&node).expect("it is older").contains("DELETE_RETENTION"));
}

#[test]
fn one_of_the_future_is_a_gap_once_the_end_is_known() {
    let node = Node::new(&ManualClock::new(), 8, None);
    let mut token = node.begin(&Wanted::default()).token();
    token.told.next[0] = NextOffset(5);
    let last = |offset| Some(Position { partition: 0, offset });
    assert_eq!(gap(&node, &token, None), None, "this node may be behind");
    assert_eq!(gap(&node, &token, last(4)), None, "this node is behind");
    assert!(gap(&node, &token, last(3)).expect("a gap").contains("does not have"));
}

#[test]
fn one_of_fewer_partitions_begins_the_others_at_their_start() {
    let (clock, mut log) = (ManualClock::new(), ModelLog::default());
    let mut node = Node::new(&clock, 8, None);
    let mut token = node.begin(&Wanted::default()).token();
    token.told.next.truncate(1);
    (0..4).for_each(|key| log.append(key, ttl::FOR_EVER));
    node.apply(&log, 4);
    let mut client = Client::default();
    let mut reader = node.begin(&Wanted { since: &token.encode(), ..Wanted::default() });
    block_on(async { while read(&mut reader, &mut client, 9).await.expect("in order") {} });
    assert_eq!(client.live, log.live(4, clock.wall().ms()));
}
