//! Courses of events that were told wrongly once: each was found by the property beside them.

use super::*;

/// A reader that comes from a node that is ahead reads half of what a transaction changed, and then the rest.
#[test]
fn the_rest_of_a_transaction_is_news_to_who_was_ahead() {
    let write = |key| Step::Write { key, lives: None };
    let resume = Step::Resume { node: 1, from_event: false };
    let steps = vec![write(5), Step::Delete(1), write(0), write(2), resume];
    block_on(run(steps, false, "")).expect("the delete is told");
}

/// A scan that began at a node where a key had expired goes on at one that shows the key, and later that it expires.
#[test]
fn an_expiry_is_news_of_keys_that_a_scan_had_not_passed() {
    let steps = vec![
        Step::Write { key: 7, lives: Some(500) },
        Step::Pass(1_000),
        Step::Expire(0),
        Step::Apply { node: 0, records: 9 },
        Step::Read { limit: 1 },
        Step::Resume { node: 1, from_event: false },
        Step::Apply { node: 1, records: 9 },
        Step::Read { limit: 3 },
        Step::Read { limit: 3 },
    ];
    block_on(run(steps, true, "")).expect("the expiry is told");
}

/// A node that was behind meets a key when its time is over, and then a delete of it that is of no news there.
#[test]
fn an_expiry_is_news_although_a_delete_follows() {
    let steps = vec![
        Step::Write { key: 2, lives: Some(1) },
        Step::Apply { node: 0, records: 9 },
        Step::Read { limit: 9 },
        Step::Delete(2),
        Step::Pass(1),
        Step::Resume { node: 1, from_event: false },
        Step::Expire(1),
        Step::Apply { node: 1, records: 6 },
    ];
    block_on(run(steps, false, "b/")).expect("one of them is told");
}

/// The other node had told a later record of the key, which one transaction wrote and deleted here.
#[test]
fn an_expiry_is_no_news_where_a_later_record_was_told() {
    let write = |key| Step::Write { key, lives: None };
    let steps = vec![
        Step::Write { key: 6, lives: Some(1) },
        Step::Apply { node: 1, records: 4 },
        Step::Resume { node: 1, from_event: false },
        Step::Apply { node: 0, records: 1 },
        write(0),
        write(6),
        write(0),
        write(0),
        Step::Delete(6),
        Step::Apply { node: 1, records: 4 },
        Step::Pass(1),
        Step::Expire(0),
        Step::Read { limit: 2 },
        Step::Resume { node: 0, from_event: false },
    ];
    block_on(run(steps, false, "")).expect("each key is told in order");
}

/// A scan that lost the buffer told it, and begins once more at a node that has the key still.
#[test]
fn what_was_told_as_expired_does_not_come_back() {
    let write = |key| Step::Write { key, lives: None };
    let apply = |node, records| Step::Apply { node, records };
    let resume = |node| Step::Resume { node, from_event: false };
    let mut steps: Vec<_> = [4, 1, 6, 2, 5].map(write).into();
    steps.extend([Step::Delete(3), write(1), write(1), Step::Write { key: 3, lives: Some(1) }, write(1)]);
    steps.extend([apply(1, 6), write(0), write(2), apply(0, 7), apply(1, 2), apply(0, 5), apply(1, 3)]);
    steps.extend([
        resume(0),
        Step::Pass(1),
        Step::Expire(1),
        apply(1, 3),
        resume(1),
        Step::Read { limit: 2 },
    ]);
    steps.extend([resume(0), Step::Read { limit: 2 }]);
    block_on(run(steps, false, "a/")).expect("it stays away");
}

/// A transaction replaces a record, and the client goes on from the middle of it at a node of which the same was in several.
#[test]
fn a_token_within_a_transaction_tells_no_more_than_was_told() {
    let write = |key| Step::Write { key, lives: None };
    let resume = |node, from_event| Step::Resume { node, from_event };
    let apply = |node, records| Step::Apply { node, records };
    let steps = vec![
        apply(1, 5),
        resume(1, false),
        resume(0, false),
        Step::Delete(1),
        write(3),
        write(1),
        apply(0, 3),
        Step::Read { limit: 1 },
        Step::Delete(1),
        apply(1, 1),
        apply(1, 1),
        apply(1, 2),
        resume(1, true),
    ];
    block_on(run(steps, false, "")).expect("the delete is told");
}

/// A node at which less had expired tells a record, in a scan without the buffer, that was over where the client came from.
#[test]
fn what_a_scan_tells_may_have_expired_where_the_client_came_from() {
    let write = |key| Step::Write { key, lives: None };
    let apply = |node, records| Step::Apply { node, records };
    let mut steps = vec![write(0); 7];
    steps.extend([Step::Write { key: 1, lives: Some(1) }, Step::Delete(2), Step::Pass(1)]);
    steps.extend([apply(0, 5), apply(1, 1), write(0), write(2), Step::Expire(0), apply(1, 8), apply(0, 5)]);
    steps.extend([Step::Read { limit: 1 }, write(0), apply(1, 7)]);
    steps.extend([Step::Resume { node: 1, from_event: false }, Step::Read { limit: 2 }]);
    block_on(run(steps, false, "")).expect("the expiry is told");
}
