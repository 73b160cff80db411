use std::sync::atomic::{AtomicBool, Ordering};

use bitacora_protocol::record::ttl;

use super::*;
use crate::log::PartitionRead;

#[test]
fn records_and_positions_survive_together() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(dir.path());
    assert_eq!(store.checkpoint().expect("readable"), Checkpoint::default());
    store.reset(&identity(), &[NextOffset(0), NextOffset(7)], wall_ms(5)).expect("written");
    let mut changes = vec![
        (b"a".as_slice(), entry_of("a", P0, 3, 10, "first").into()),
        (b"a", entry_of("a", P0, 4, 10, "second").into()),
    ];
    assert_eq!(store.apply(&mut changes, &[(P0, NextOffset(5))]).expect("applied").changed, 1);
    store.note_caught_up(wall_ms(9)).expect("written");
    drop(store);
    let store = open(dir.path());
    let expected = Checkpoint {
        identity: Some(identity()),
        restored: true,
        next: vec![NextOffset(5), NextOffset(7)],
        latest: vec![Some(LogTime::MIN), Some(LogTime::MIN)],
        epochs: vec![None, None],
        after_gap: vec![false, true],
        levels: vec![Level::FIRST, Level::FIRST],
        caught_up_at: Some(wall_ms(9)),
        unfit: None,
    };
    assert_eq!(store.checkpoint().expect("readable"), expected);
    assert_eq!(body(&store, "a"), Some(("second".into(), Tier::Store)));
    assert_eq!(body(&store, "a"), Some(("second".into(), Tier::Cache)));
}

#[test]
fn latest_timestamp_is_that_of_all_records() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(dir.path());
    store.reset(&identity(), &[NextOffset(0)], wall_ms(5)).expect("written");
    let read = |next, latest| PartitionRead {
        latest: Some(log_ms(latest)),
        ..PartitionRead::up_to(P0, NextOffset(next))
    };
    for (next, latest) in [(1, -1), (2, 70), (3, 7)] {
        store.apply_read(&mut Vec::new(), &[read(next, latest)]).expect("applied");
    }
    // The topic has grown.
    store.apply(&mut Vec::new(), &[(1, NextOffset(0))]).expect("applied");
    assert_eq!(store.checkpoint().expect("readable").latest, [Some(log_ms(70)), Some(LogTime::MIN)]);
    // One that has read some of a partition before this was kept knows nothing of it.
    let written = store.written();
    let environment = written.environment();
    let mut txn = environment.env.write_txn().expect("a transaction");
    environment.latest.clear(&mut txn).expect("cleared");
    txn.commit().expect("committed");
    store.apply_read(&mut Vec::new(), &[read(4, 80)]).expect("applied");
    assert_eq!(store.checkpoint().expect("readable").latest, [None, None]);
}

#[test]
fn epoch_is_that_of_the_record_before_the_next_offset() {
    let (_dir, store) = filled(&[]);
    let (known, max) = (Some(3), Some(i32::MAX));
    for (next, epoch, kept) in
        [(9, known, known), (9, None, known), (11, None, None), (12, max, max), (13, known, known)]
    {
        let read = PartitionRead { epoch, ..PartitionRead::up_to(P0, NextOffset(next)) };
        store.apply_read(&mut Vec::new(), &[read]).expect("applied");
        assert_eq!(store.checkpoint().expect("readable").epochs[0], kept, "{read:?}");
    }
}

#[test]
fn applied_once_and_the_newer_partition_wins() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(dir.path());
    let apply =
        |entry: Entry| store.apply(&mut vec![(b"k".as_slice(), entry.into())], &[]).expect("applied").changed;
    assert_eq!(apply(entry(P0, 5, 100, "five")), 1);
    assert_eq!(body(&store, "k").expect("there").0, "five");
    assert_eq!(apply(entry(P0, 5, 100, "again")), 0);
    assert_eq!(apply(entry(P0, 4, 900, "older offset, later clock")), 0);
    assert_eq!(apply(entry(1, 0, 99, "older in another partition")), 0);
    assert_eq!(body(&store, "k").expect("there").0, "five", "the cache holds what the store holds");
    assert_eq!(apply(entry(1, 1, 101, "newer in another partition")), 1);
    assert_eq!(body(&store, "k").expect("there").0, "newer in another partition");
}

#[test]
fn reset_leaves_nothing_behind() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(dir.path());
    store
        .apply(&mut vec![(b"k".as_slice(), entry(P0, 0, 1, "v").into())], &[(P0, NextOffset(1))])
        .expect("applied");
    store.note_caught_up(wall_ms(9)).expect("written");
    assert!(body(&store, "k").is_some());
    store.note_unfit("a reason").expect("written");
    store.reset(&identity(), &[NextOffset(0)], wall_ms(5)).expect("written");
    assert_eq!(body(&store, "k"), None);
    let expected = Checkpoint {
        identity: Some(identity()),
        restored: false,
        next: vec![NextOffset(0)],
        latest: vec![Some(LogTime::MIN)],
        epochs: vec![None],
        after_gap: vec![false],
        levels: vec![Level::FIRST],
        caught_up_at: Some(wall_ms(5)),
        unfit: None,
    };
    assert_eq!(store.checkpoint().expect("readable"), expected);
}

/// The interleaving that would leave a stale record in the cache: a reader that read before a commit inserts after it.
#[test]
fn commit_invalidates_reads_under_way() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(dir.path());
    store.apply(&mut vec![(b"k".as_slice(), entry(P0, 0, 1, "old").into())], &[]).expect("applied");
    let generation = store.current.load_full();
    let under_way = generation.cache.get(b"k").expect_err("nothing is cached yet");
    let old = entry(P0, 0, 1, "old");
    store.apply(&mut vec![(b"k".as_slice(), entry(P0, 1, 2, "new").into())], &[]).expect("applied");
    assert!(!generation.cache.keep(under_way, &old), "the stale record was cached");
    assert_eq!(body(&store, "k").expect("there").0, "new");
}

#[test]
fn readers_never_see_time_run_backwards() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(dir.path());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut last = -1;
                while !done.load(Ordering::Relaxed) {
                    if let Some((found, _)) = store.get(b"k").expect("readable") {
                        assert!(found.position().offset >= last, "{} after {last}", found.position().offset);
                        last = found.position().offset;
                    }
                }
            });
        }
        for offset in 0..500 {
            store.apply(&mut vec![(b"k".as_slice(), entry(P0, offset, 0, "").into())], &[]).expect("applied");
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(store.get(b"k").expect("readable").expect("there").0.position().offset, 499);
}

#[test]
fn expiry_is_decided_by_the_clock() {
    let at = |ttl, now| {
        entry_of_text("k", Position { partition: 0, offset: 0 }, log_ms(0), ttl, "r").state(wall_ms(now))
    };
    assert_eq!(at(0, i64::MAX), State::Live);
    assert_eq!(at(-1, 0), State::Deleted);
    assert_eq!(at(1_000, 999), State::Live);
    assert_eq!(at(1_000, 1_000), State::Expired);
}

#[test]
fn keys_that_lmdb_cant_hold_are_missing_not_errors() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(dir.path());
    assert!(store.max_key_bytes() >= 1024, "{}", store.max_key_bytes());
    assert!(store.get(&vec![b'x'; store.max_key_bytes() + 1]).expect("no error").is_none());
    assert!(store.get(b"").expect("no error").is_none());
}

#[test]
fn evictions_do_not_count_replaced_records() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = Store::open(dir.path(), 50_000).expect("opened");
    for offset in 0..1000 {
        store
            .apply(&mut vec![(b"k".as_slice(), entry(P0, offset, 0, "value").into())], &[])
            .expect("applied");
        store.get(b"k").expect("read");
    }
    assert_eq!(store.stats().expect("told").cache_evictions, 0);
    for offset in 1000..3000 {
        let key = offset.to_string();
        store
            .apply(&mut vec![(key.as_bytes(), entry_of(&key, P0, offset, 0, "value").into())], &[])
            .expect("applied");
        store.get(key.as_bytes()).expect("read");
    }
    let stats = store.stats().expect("told");
    assert!(stats.cache_evictions > 1000, "{stats:?}");
    assert!(stats.used_pages > 0 && stats.map_bytes > stats.bytes && stats.disk.is_some(), "{stats:?}");
}

#[test]
#[allow(unsafe_code)]
fn full_map_changes_nothing_and_says_how_to_mend_it() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(dir.path());
    // SAFETY: no transaction is open.
    unsafe { store.current.load().environment.env.resize(1 << 20) }.expect("resized");
    let put = |offset: i64| {
        let key = format!("key {offset}");
        let entry = entry_of(&key, P0, offset, 10, &"x".repeat(100_000));
        store.apply(&mut vec![(key.as_bytes(), entry.into())], &[(P0, NextOffset(offset + 1))])
    };
    let (full, error) = (0..).find_map(|offset| Some((offset, put(offset).err()?))).expect("it fills up");
    assert!(full > 0 && error.may_pass(), "{full}: {error}");
    let said = store.explain(error);
    assert!(said.contains("address space") && said.contains("ulimit -v"), "{said}");
    assert!(said.contains(&dir.path().display().to_string()), "{said}");
    assert_eq!(store.checkpoint().expect("readable").next, [NextOffset(full)]);
    assert!(body(&store, "key 0").is_some());
    assert_eq!(body(&store, &format!("key {full}")), None);
    // SAFETY: as before.
    unsafe { store.current.load().environment.env.resize(1 << 30) }.expect("resized");
    put(full).expect("the same process goes on");
}

/// Who follows is told the same by every node, whatever the transactions of each hold.
#[test]
fn each_change_of_a_key_in_a_transaction_is_told() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(dir.path());
    let deleted = entry_of_text("k", at(4), log_ms(1), ttl::DELETED, "");
    let other_partition = entry(1, 0, 90, "elsewhere");
    let entries =
        [entry(P0, 3, 10, "a"), deleted, entry(P0, 5, 30, "b"), other_partition, entry(P0, 6, 95, "c")];
    let mut changes: Vec<_> = entries.iter().map(|entry| (b"k".as_slice(), entry.clone().into())).collect();
    let read = [(P0, 7), (1, 1)].map(|(partition, next)| PartitionRead::up_to(partition, NextOffset(next)));
    let mut told = Vec::new();
    let mut tell = |_: &[u8], change: KeyChange| {
        let offset = |entry: Option<Entry>| entry.map(|entry| entry.position().offset);
        told.push((offset(change.before), offset(change.after), change.was_there_between));
    };
    let applied = store.apply_telling(&mut changes, &read, &mut tell).expect("applied");
    assert_eq!(applied.changed, 1);
    // What comes from another partition has no place in the order of this one: the last two stand for the one before them.
    assert_eq!(told, [(None, Some(3), false), (Some(3), Some(4), false), (Some(4), Some(6), true)]);
}
