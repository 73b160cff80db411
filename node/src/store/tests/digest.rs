//! Digests: what is kept is what a scan finds, and all stores that have applied the same say the same, however they cut it into transactions.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::log::{Expected, PartitionRead};
use crate::store::digest::{DigestSums, digest_of, digest_of_stored};
use crate::store::trimming::parse_older_entries;

const KEYS: [&str; 3] = ["a", "b", "c"];
const PARTITIONS: i32 = 2;
/// Sweeps forget no tombstone: what is tested here has no windows of time.
const RETENTION: std::time::Duration = std::time::Duration::from_hours(1_000_000);

/// A record of the log; `back`: how many offsets before it the record lies that it speaks of.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Write { ttl: i64, value: u8 },
    Tombstone,
    Trim { back: i64 },
    Repair { back: i64, value: u8 },
    Attempt { back: i64, value: u8 },
    Undecodable,
}

#[derive(Clone, Copy, Debug)]
struct Step {
    partition: i32,
    key: usize,
    kind: Kind,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let ttl = prop_oneof![4 => Just(0), 2 => Just(-1), 1 => 1..40_i64, 1 => Just(1_000_000)];
    let kind = prop_oneof![
        6 => (ttl, 0..3_u8).prop_map(|(ttl, value)| Kind::Write { ttl, value }),
        1 => Just(Kind::Tombstone),
        2 => (1..6_i64).prop_map(|back| Kind::Trim { back }),
        1 => (1..6_i64, 0..3_u8).prop_map(|(back, value)| Kind::Repair { back, value }),
        1 => (0..4_i64, 0..3_u8).prop_map(|(back, value)| Kind::Attempt { back, value }),
        1 => Just(Kind::Undecodable),
    ];
    let step = (0..PARTITIONS, 0..KEYS.len(), kind);
    let step = step.prop_map(|(partition, key, kind)| Step { partition, key, kind });
    prop::collection::vec(step, 1..60)
}

fn change_of(Step { partition, key, kind }: Step, offset: i64) -> Change {
    let (at, timestamp) = (Position { partition, offset }, log_ms(offset));
    let record = |offset: i64, ttl, value: u8| {
        entry_of_text(KEYS[key], Position { partition, offset }, log_ms(offset), ttl, &value.to_string())
    };
    let before = |back: i64| (offset - back).max(0);
    match kind {
        Kind::Write { ttl, value } => record(offset, ttl, value).into(),
        Kind::Tombstone => Entry::without_record(KEYS[key].as_bytes(), at, timestamp, -1).into(),
        Kind::Trim { back } => {
            Change::Trim { at, timestamp, offset: before(back), settles: offset, complete: true }
        }
        Kind::Repair { back, value } => {
            let entry = record(before(back), 0, value);
            Change::Repair { at, timestamp, entry, reach: before(back), settles: offset, complete: true }
        }
        Kind::Attempt { back, value } => {
            let expected = if back == 0 { Expected::Nothing } else { Expected::Live(before(back)) };
            Change::Attempt { entry: record(offset, 0, value), expected, judgement: Judgement::ByTheStore }
        }
        Kind::Undecodable => Change::NoEffect { at, timestamp, by: Writer::Unknown },
    }
}

/// What a scan of all entries finds.
fn scanned(store: &Store) -> DigestSums {
    let generation = store.current.load_full();
    let environment = &generation.environment;
    let txn = environment.env.read_txn().expect("a transaction");
    let mut sums = DigestSums::default();
    for item in environment.records.iter(&txn).expect("readable") {
        let (key, stored) = item.expect("readable");
        sums.add(key, stored).expect("an entry");
    }
    for item in environment.older_entries.iter(&txn).expect("readable") {
        let (key, stored) = item.expect("readable");
        for entry in parse_older_entries(key, stored).expect("entries") {
            sums.add(key, entry.as_stored()).expect("an entry");
        }
    }
    sums
}

fn empty() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(dir.path());
    store.reset(&identity(), &[NextOffset(0); PARTITIONS as usize], wall_ms(5)).expect("written");
    store.note_caught_up(wall_ms(5)).expect("written");
    // What a power cut would cost is not tested here.
    store.written().environment().leave_unsynced().expect("written");
    (dir, store)
}

type Said = BTreeMap<(i32, NextOffset), Digest>;

/// Applies the steps in transactions of these sizes, in turn. Returns all that the store says of its digests meanwhile.
fn run(steps: &[Step], sizes: &[usize], sweeps: bool) -> Said {
    let (_dir, store) = empty();
    let (mut said, mut next, mut left) = (Said::new(), [0; PARTITIONS as usize], steps);
    for size in sizes.iter().cycle() {
        let (batch, rest) = left.split_at((*size).min(left.len()));
        let mut changes = Vec::new();
        for step in batch {
            let offset = &mut next[step.partition as usize];
            changes.push((KEYS[step.key].as_bytes(), change_of(*step, *offset)));
            *offset += 1;
        }
        let read: Vec<_> = (0..)
            .zip(next)
            .map(|(partition, next)| PartitionRead::up_to(partition, NextOffset(next)))
            .collect();
        store.apply_read(&mut changes, &read).expect("applied");
        if sweeps {
            let now = log_ms(30);
            store.sweep(now, RETENTION, Some(now), RETENTION).expect("swept");
        }
        let found = scanned(&store);
        for digests in store.digests().expect("told").1 {
            let partition = digests.partition;
            assert_eq!(digests.now.map(|now| now.digest), Some(found.of(partition)), "a scan finds another");
            digest_ranges::add_up_to(&store, partition, found.of(partition));
            for point in digests.points() {
                let before = said.insert((partition, point.next), point.digest);
                assert!(before.is_none_or(|before| before == point.digest), "{point:?} was {before:?}");
            }
        }
        left = rest;
        if left.is_empty() {
            break;
        }
    }
    said
}

proptest! {
    #[test]
    fn digests_are_what_a_scan_finds_and_do_not_depend_on_transactions(
        steps in steps(),
        sizes in prop::collection::vec(1..20_usize, 1..6),
        sweeps: bool,
    ) {
        let all = run(&steps, &[1], false);
        let some = run(&steps, &sizes, sweeps);
        for (at, digest) in &some {
            prop_assert_eq!(all.get(at), Some(digest), "at {:?}", at);
        }
    }

    #[test]
    fn an_entry_on_disk_has_the_digest_of_that_in_memory(ttl in prop_oneof![Just(0), any::<i64>()], value in ".*") {
        let entry = entry_of_text("key", at(7), log_ms(9), ttl, &value);
        prop_assert_eq!(digest_of_stored(b"key", entry.as_stored()), Some((at(7), digest_of(&entry))));
    }
}

#[test]
fn what_nodes_forget_in_their_own_time_is_not_in_it() {
    let nothing = Digest::default();
    let tombstone = Entry::without_record(b"k", at(7), log_ms(9), -1);
    assert_eq!((digest_of(&tombstone), digest_of(&write(7, "v").as_provisional())), (nothing, nothing));
    let expiring = |value| entry_of_text("k", at(7), log_ms(9), 50, value);
    let swept = Entry::without_record(b"k", at(7), log_ms(9), 50);
    assert_eq!(digest_of(&expiring("one")), digest_of(&swept));
    assert_ne!(digest_of(&swept), nothing);
    let all = [
        write(7, "v"),
        write(8, "v"),
        write(7, "w"),
        dead(7, ""),
        expiring("one"),
        entry_of("l", P0, 7, 1_007, "v"),
    ];
    for (one, a) in all.iter().enumerate() {
        for b in &all[..one] {
            assert_ne!(digest_of(a), digest_of(b), "{a:?}, {b:?}");
        }
    }
}

/// Two nodes whose transactions end at different offsets still remember the same.
#[test]
fn positions_that_both_pass_are_remembered_by_both() {
    let steps = [Step { partition: P0, key: 0, kind: Kind::Write { ttl: 0, value: 1 } }; 200];
    let (a, b) = (run(&steps, &[7, 3, 5], false), run(&steps, &[11, 2], false));
    for next in (16..200).step_by(16) {
        let at = (P0, NextOffset(next));
        assert!(a.contains_key(&at) && a.get(&at) == b.get(&at), "{next}");
    }
}

#[test]
fn nothing_is_said_of_what_may_be_incomplete() {
    let (_dir, store) = empty();
    let said = |store: &Store| store.digests().expect("told").1[0].points().count();
    assert_eq!(said(&store), 1);
    let gap = PartitionRead { gap: true, ..PartitionRead::up_to(P0, NextOffset(4)) };
    store.apply_read(&mut vec![(b"k".as_slice(), write(3, "v").into())], &[gap]).expect("applied");
    assert_eq!(said(&store), 0, "behind a gap");
    store.forget_gaps().expect("written");
    assert_eq!(said(&store), 1);
    let doubtful = Change::Attempt {
        entry: write(5, "w"),
        expected: Expected::Nothing,
        judgement: Judgement::Impossible,
    };
    let read = [PartitionRead::up_to(P0, NextOffset(6))];
    store.apply_read(&mut vec![(b"k".as_slice(), doubtful)], &read).expect("applied");
    assert_eq!(said(&store), 0, "in doubt");
    store.reset(&identity(), &[NextOffset(0)], wall_ms(5)).expect("written");
    assert_eq!(said(&store), 0, "never complete");
}
