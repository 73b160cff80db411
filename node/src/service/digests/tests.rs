use std::path::Path;

use bitacora_protocol::http::PartitionDigests as Said;

use super::*;
use crate::clock::WallTime;
use crate::cluster::fixed::FixedMembership;
use crate::http_client::MemberClients;
use crate::log::{LogIdentity, PartitionRead};
use crate::replication::state::Event;
use crate::store::{Change, Entry};
use crate::testing::entry_of_text;
use bitacora_protocol::Position;

const OTHER: &str = "other:1";

/// A node whose store is complete, and holds these keys and values of partition 0, at the offsets from 0 on.
fn node(dir: &Path, records: &[(&str, &str)]) -> Digests {
    let store = Arc::new(Store::open(dir, 1 << 20).expect("the store opens"));
    let identity = LogIdentity { cluster: "c".into(), topic: "t".into(), topic_id: Some("id".into()) };
    store.reset(&identity, &[NextOffset(0)], WallTime::from_ms(5)).expect("written");
    store.note_caught_up(WallTime::from_ms(5)).expect("written");
    let progress = Arc::new(Progress::default());
    progress.begin_reading(&[NextOffset(0)], Event::EarlierStoreFound).expect("at the start");
    progress.accept_earlier_store();
    let metrics = Arc::new(Metrics::new().expect("names differ"));
    let membership = Arc::new(FixedMembership::new(vec!["own:1".to_owned(), OTHER.to_owned()], "own:1"));
    let digests =
        Digests::new(&MemberClients::default(), membership, "own:1".to_owned(), store, progress, metrics)
            .expect("a client");
    for ((key, value), offset) in records.iter().zip(0..) {
        apply(&digests, key, value, offset);
    }
    digests
}

fn entry(key: &str, value: &str, offset: i64) -> Entry {
    entry_of_text(key, Position { partition: 0, offset }, crate::clock::LogTime::from_ms(offset), 0, value)
}

/// Of an empty key, a record that leaves nothing.
fn apply(node: &Digests, key: &str, value: &str, offset: i64) {
    let mut changes: Vec<(&[u8], Change)> = Vec::new();
    if !key.is_empty() {
        changes.push((key.as_bytes(), entry(key, value, offset).into()));
    }
    let read = [PartitionRead::up_to(0, NextOffset(offset + 1))];
    node.store.apply_read(&mut changes, &read).expect("applied");
}

/// What node `a` says of `b` after so many comparisons.
fn compared(a: &Digests, b: &Digests, times: usize) -> Vec<DigestDifference> {
    for _ in 0..times {
        a.compare(OTHER, &b.answer());
    }
    a.differences()
}

const RECORDS: [(&str, &str); 4] = [("a", "1"), ("b", "2"), ("c", "3"), ("d", "4")];

#[test]
fn one_that_lost_a_key_has_one_more_or_another_value_is_found() {
    let dirs: Vec<_> = (0..5).map(|_| tempfile::tempdir().expect("a folder")).collect();
    let a = node(dirs[0].path(), &RECORDS);
    assert_eq!(compared(&a, &node(dirs[1].path(), &RECORDS), 3), []);
    let others = [
        [("a", "1"), ("b", "2"), ("c", "another"), ("d", "4")],
        [("a", "1"), ("b", "2"), ("", ""), ("d", "4")],
        [("a", "1"), ("b", "2"), ("c", "3"), ("e", "5")],
    ];
    for (records, dir) in others.iter().zip(&dirs[2..]) {
        let b = node(dir.path(), records);
        assert_eq!(compared(&a, &b, 1), [], "not before it is confirmed");
        let found = compared(&a, &b, 1);
        assert_eq!((found.len(), found[0].partition, found[0].next), (1, 0, 4), "{records:?}");
        assert_ne!(found[0].own, found[0].theirs);
        assert_eq!(compared(&a, &a, 1), [], "they agree again");
    }
    let outcomes = ["equal", "differs"].map(|o| a.metrics.digest_comparisons.with_label_values(&[o]).get());
    assert_eq!(outcomes, [6, 6]);
}

#[test]
fn one_that_is_behind_is_compared_where_it_stands() {
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().expect("a folder")).collect();
    let a = node(dirs[0].path(), &RECORDS);
    let behind = node(dirs[1].path(), &RECORDS[..2]);
    assert_eq!(compared(&a, &behind, 2), []);
    assert_eq!(a.metrics.digest_comparisons.with_label_values(&["equal"]).get(), 2);
    let wrong = node(dirs[2].path(), &[("a", "1"), ("b", "another")]);
    let found = compared(&a, &wrong, 2);
    assert_eq!((found[0].next, found[0].member.as_str()), (2, OTHER));
    assert_eq!(compared(&wrong, &a, 2)[0].next, 2);
}

#[test]
fn what_is_of_another_log_or_makes_no_sense_says_nothing() {
    let dirs: Vec<_> = (0..2).map(|_| tempfile::tempdir().expect("a folder")).collect();
    let (a, b) = (node(dirs[0].path(), &RECORDS), node(dirs[1].path(), &[("a", "1"), ("b", "another")]));
    let right = b.answer();
    let wrong = [
        DigestsAnswer { log: "7".to_owned(), ..right.clone() },
        DigestsAnswer { log: "no number".to_owned(), ..right.clone() },
        DigestsAnswer { format: Cow::Borrowed("0"), ..right.clone() },
        DigestsAnswer {
            partitions: vec![Said { partition: -1, ..right.partitions[0].clone() }],
            ..right.clone()
        },
        DigestsAnswer {
            partitions: vec![Said {
                partition: 0,
                points: vec![http::DigestPoint { next: 4, digest: "no digest".to_owned() }],
            }],
            ..right.clone()
        },
    ];
    for answer in wrong {
        a.compare(OTHER, &answer);
        a.compare(OTHER, &answer);
        assert_eq!(a.differences(), [], "{answer:?}");
    }
    a.compare(OTHER, &right);
    a.compare(OTHER, &right);
    assert_eq!(a.differences().len(), 1);
}

/// The longest answer is one that is read.
#[test]
fn an_answer_of_many_partitions_is_bounded() {
    let point = http::DigestPoint { next: i64::MAX, digest: Digest(u128::MAX).to_string() };
    let said = Said { partition: i32::MAX, points: vec![point] };
    let bytes = serde_json::to_vec(&said).expect("written").len();
    assert!(MAX_POINTS * bytes < DIGESTS.max_bytes, "{bytes} for one of each");
}

#[tokio::test]
async fn a_member_that_does_not_answer_is_no_difference_and_one_that_left_is_forgotten() {
    let dirs: Vec<_> = (0..2).map(|_| tempfile::tempdir().expect("a folder")).collect();
    let (a, b) = (node(dirs[0].path(), &RECORDS), node(dirs[1].path(), &[("a", "1"), ("b", "another")]));
    a.compare("gone:1", &b.answer());
    a.compare("gone:1", &b.answer());
    assert_eq!(a.differences().len(), 1);
    a.round().await;
    assert_eq!(a.differences(), []);
    assert_eq!(a.metrics.digest_differs.with_label_values(&["0"]).get(), 0);
}
