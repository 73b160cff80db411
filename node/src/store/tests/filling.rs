//! A store that is filled before anybody reads it: what it holds, and how full its pages are.

use proptest::prelude::*;

use super::*;

/// Of a store that is begun, and of no log's start.
fn begun() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(dir.path());
    store.reset(&identity(), &[NextOffset(0); 4], wall_ms(5)).expect("written");
    (dir, store)
}

/// Fills it with records as they come, of keys and partitions, each batch in one transaction. Returns how many were appended.
fn fill(store: &Store, batches: &[Vec<(Vec<u8>, Entry)>]) -> u64 {
    let mut appended = 0;
    for batch in batches {
        let keys: Vec<_> = batch.iter().map(|(key, _)| &key[..]).collect();
        let change = |index: usize| Some(Change::Write(batch[index].1.clone()));
        let read: Vec<_> = batch
            .iter()
            .map(|(_, entry)| entry.position())
            .map(|at| PartitionRead::up_to(at.partition, NextOffset::after(at.offset)))
            .collect();
        appended += store.fill(&keys, change, &read).expect("filled").appended as u64;
    }
    appended
}

fn key(number: usize) -> Vec<u8> {
    format!("key-{number:08}").into_bytes()
}

fn record(number: usize, partition: i32, offset: i64) -> Entry {
    entry_of(&String::from_utf8_lossy(&key(number)), partition, offset, 1, BODY)
}

const BODY: &str =
    "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789";
/// What a record of [`BODY`] takes in a full page, and what a page has beside its records.
const MOST_BYTES_A_RECORD: u64 = 180;
const KEYS: usize = 20_000;

/// Keys in some order, in batches, over four partitions of which each is read in pieces: a batch begins with what the one before lacked.
fn batches(order: impl Iterator<Item = usize>, batch: usize) -> Vec<Vec<(Vec<u8>, Entry)>> {
    let record = |(number, offset): (usize, i64)| (key(number), record(number, offset as i32 % 4, offset));
    let records: Vec<_> = order.zip(0..).map(record).collect();
    records.chunks(batch).map(<[_]>::to_vec).collect()
}

fn bytes_a_record(store: &Store) -> u64 {
    let stats = store.stats().expect("readable");
    assert_eq!(stats.records, KEYS as u64);
    stats.used_pages * stats.page_bytes / stats.records
}

fn all(store: &Store) -> Vec<(Vec<u8>, Entry)> {
    let environment = store.written().environment().clone();
    let txn = environment.env.read_txn().expect("a transaction");
    let records = environment.records.iter(&txn).expect("readable").map(|item| {
        let (key, bytes) = item.expect("readable");
        (key.to_vec(), Entry::from_stored(key, bytes).expect("an entry"))
    });
    records.collect()
}

mod pages {
    use super::*;

    #[test]
    fn keys_in_order_leave_full_pages() {
        let (_dir, store) = begun();
        let appended = fill(&store, &batches(0..KEYS, 1_000));
        assert_eq!(appended, KEYS as u64);
        let bytes = bytes_a_record(&store);
        assert!(bytes <= MOST_BYTES_A_RECORD, "{bytes} bytes a record");
    }

    #[test]
    fn a_store_that_is_read_gets_full_pages_too() {
        let (_dir, store) = begun();
        store.note_caught_up(wall_ms(5)).expect("written");
        for batch in batches(0..KEYS, 1_000) {
            let mut changes = batch.iter().map(|(key, entry)| (&key[..], entry.clone().into())).collect();
            store.apply(&mut changes, &[]).expect("applied");
        }
        let bytes = bytes_a_record(&store);
        assert!(bytes <= MOST_BYTES_A_RECORD, "{bytes} bytes a record");
    }

    fn are_full_after(order: impl Iterator<Item = usize>) {
        let (_dir, store) = begun();
        let appended = fill(&store, &batches(order, 1_000));
        let (before, held) = (bytes_a_record(&store), all(&store));
        assert!(before > MOST_BYTES_A_RECORD, "{before} bytes a record, before anything was mended");
        assert!(store.repack(appended, &|| true).expect("written"));
        let bytes = bytes_a_record(&store);
        assert!(bytes <= MOST_BYTES_A_RECORD, "{bytes} bytes a record");
        assert_eq!(all(&store), held);
        store.note_caught_up(wall_ms(5)).expect("written");
        assert_eq!(all(&store), held);
    }

    #[test]
    fn keys_in_descending_order_get_full_pages_at_the_end() {
        are_full_after((0..KEYS).rev());
    }

    #[test]
    fn keys_in_random_order_get_full_pages_at_the_end() {
        // 7919 has no factor in common with their number, so each key comes once.
        are_full_after((0..KEYS).map(|i| i * 7_919 % KEYS));
    }

    #[test]
    fn keys_that_a_restart_forgot_were_appended_are_looked_at() {
        let (_dir, store) = begun();
        fill(&store, &batches(0..KEYS, 1_000));
        assert!(!store.repack(0, &|| true).expect("readable"), "its pages are full");
    }
}

mod again {
    use super::*;

    #[test]
    fn a_store_that_is_written_once_more_keeps_all_it_knows() {
        let (dir, store) = begun();
        fill(&store, &batches((0..KEYS).rev(), 1_000));
        let before = store.checkpoint().expect("readable");
        assert!(store.repack(0, &|| true).expect("written"));
        assert_eq!(store.checkpoint().expect("readable"), before);
        let held = all(&store);
        drop(store);
        // Killed before it was complete.
        let store = open(dir.path());
        assert_eq!(store.checkpoint().expect("readable"), before);
        assert_eq!(all(&store), held);
    }

    #[test]
    fn a_store_that_is_built_beside_another_is_written_once_more() {
        let (_dir, store) = begun();
        put(&store, "k", 1, "old");
        store.note_caught_up(wall_ms(5)).expect("written");
        store.build(&identity(), &[NextOffset(0); 4], wall_ms(6)).expect("begun");
        fill(&store, &batches((0..KEYS).rev(), 1_000));
        assert!(store.repack(0, &|| true).expect("written"));
        assert!(store.is_building(), "the old one is read until the new one is complete");
        assert_eq!(body(&store, "k").map(|(body, _)| body).as_deref(), Some("old"));
        store.note_caught_up(wall_ms(7)).expect("written");
        assert_eq!(body(&store, "k"), None);
        assert!(bytes_a_record(&store) <= MOST_BYTES_A_RECORD);
    }

    #[test]
    fn one_that_is_given_up_leaves_the_store_and_no_files() {
        let (dir, store) = begun();
        fill(&store, &batches((0..KEYS).rev(), 1_000));
        let held = all(&store);
        let asked = std::cell::Cell::new(0);
        let goes_on = || {
            asked.set(asked.get() + 1);
            false
        };
        assert!(!store.repack(0, &goes_on).expect("readable"));
        assert_eq!(asked.get(), 1);
        assert_eq!(all(&store), held);
        let folders = std::fs::read_dir(dir.path()).expect("readable").flatten();
        assert_eq!(folders.filter(|entry| entry.path().is_dir()).count(), 1);
    }
}

#[test]
fn a_kill_between_two_batches_costs_neither() {
    let (dir, store) = begun();
    let batches = batches((0..KEYS).map(|i| i * 7_919 % KEYS), 5_000);
    fill(&store, &batches[..2]);
    drop(store);
    let store = open(dir.path());
    let next = store.checkpoint().expect("readable").next;
    assert_eq!(next.iter().map(|next| next.0).max(), Some(10_000));
    // What was not committed is read again, and what was is read again by mistake.
    fill(&store, &batches[1..]);
    let mut expected: Vec<_> = batches.into_iter().flatten().collect();
    expected.sort_by(|(a, _), (b, _)| a.cmp(b));
    assert_eq!(all(&store), expected);
}

#[test]
fn a_record_that_was_cached_meanwhile_is_forgotten() {
    let (_dir, store) = begun();
    fill(&store, &[vec![(b"k".to_vec(), entry(P0, 1, 1, "old"))]]);
    assert_eq!(body(&store, "k"), Some(("old".to_owned(), Tier::Store)));
    assert_eq!(body(&store, "k"), Some(("old".to_owned(), Tier::Cache)));
    fill(&store, &[vec![(b"k".to_vec(), entry(P0, 2, 1, "new"))]]);
    assert_eq!(body(&store, "k"), Some(("new".to_owned(), Tier::Store)));
}

proptest! {
    #[test]
    fn keys_are_put_in_order(keys in prop::collection::vec(prop::collection::vec(0..3_u8, 0..12), 0..60)) {
        let keys: Vec<&[u8]> = keys.iter().map(|key| &key[..]).collect();
        let mut expected: Vec<usize> = (0..keys.len()).collect();
        expected.sort_by_key(|index| keys[*index]);
        prop_assert_eq!(super::super::apply::in_key_order(&keys), expected);
    }

    /// Writes of few keys and partitions, in any order of the keys.
    #[test]
    fn filling_comes_to_the_same_as_applying(
        records in prop::collection::vec((0..20_usize, 0..3_i32, 0..5_i64, -1..2_i64), 1..200),
        batch in 1..60_usize,
    ) {
        let records: Vec<_> = (0..).zip(&records).map(|(offset, (number, partition, timestamp, ttl))| {
            let position = Position { partition: *partition, offset };
            let text = String::from_utf8_lossy(&key(*number)).into_owned();
            (key(*number), entry_of_text(&text, position, log_ms(*timestamp), *ttl, "body"))
        }).collect();
        let batches: Vec<_> = records.chunks(batch).map(<[_]>::to_vec).collect();
        let ((_one, filled), (_two, applied)) = (begun(), begun());
        fill(&filled, &batches);
        for batch in &batches {
            let mut changes = batch.iter().map(|(key, entry)| (&key[..], entry.clone().into())).collect();
            applied.apply(&mut changes, &[]).expect("applied");
        }
        for number in 0..20 {
            let key = key(number);
            prop_assert_eq!(filled.versioned(&key, 0).expect("readable"), applied.versioned(&key, 0).expect("readable"));
        }
        prop_assert_eq!(all(&filled), all(&applied));
    }
}
