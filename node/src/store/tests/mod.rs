//! Tests of the store, by what they are about; and what they have in common.

mod attempts;
pub(crate) mod copies;
mod digest;
mod digest_ranges;
mod filling;
mod format;
mod records;
mod scan;
mod sweep;
mod switch;
mod trimming;

use parking_lot::Mutex;

use super::*;
use crate::testing::entry_of_text;
use bitacora_protocol::Position;

/// Runs once, at a step of the store that a test asks about.
#[derive(Default)]
pub(super) struct Hook(Mutex<Option<Box<dyn FnOnce(&Store) + Send>>>);

impl Hook {
    pub fn set(&self, step: impl FnOnce(&Store) + Send + 'static) {
        *self.0.lock() = Some(Box::new(step));
    }

    pub fn run(&self, store: &Store) {
        let step = self.0.lock().take();
        if let Some(step) = step {
            step(store);
        }
    }
}

pub(super) const P0: i32 = 0;
pub(super) const SWEEP_AGAIN_MS: i64 = super::sweep::SWEEP_AGAIN_AFTER.as_millis() as i64;

pub(super) fn log_ms(ms: i64) -> LogTime {
    LogTime::from_ms(ms)
}

pub(super) fn wall_ms(ms: i64) -> WallTime {
    WallTime::from_ms(ms)
}

pub(super) fn open(dir: &Path) -> Store {
    Store::open(dir, 1 << 20).expect("the store opens")
}

/// Of the key `k`.
pub(super) fn entry(partition: i32, offset: i64, timestamp: i64, body: &str) -> Entry {
    entry_of("k", partition, offset, timestamp, body)
}

pub(super) fn entry_of(key: &str, partition: i32, offset: i64, timestamp: i64, body: &str) -> Entry {
    entry_of_text(key, Position { partition, offset }, log_ms(timestamp), 0, body)
}

pub(crate) fn identity() -> LogIdentity {
    LogIdentity { cluster: "c".into(), topic: "t".into(), topic_id: None }
}

pub(super) fn body(store: &Store, key: &str) -> Option<(String, Tier)> {
    let found = store.get(key.as_bytes()).expect("the store answers");
    found.map(|(entry, tier)| (text(&entry), tier))
}

pub(super) fn text(entry: &Entry) -> String {
    entry.value().unwrap_or_default().to_owned()
}

pub(super) fn filled(keys: &[&str]) -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(dir.path());
    store.reset(&identity(), &[NextOffset(0)], wall_ms(5)).expect("written");
    let entries =
        keys.iter().zip(0..).map(|(key, offset)| (key.as_bytes(), entry_of(key, P0, offset, 1, key).into()));
    store.apply(&mut entries.collect(), &[]).expect("applied");
    store.note_caught_up(wall_ms(5)).expect("written");
    (dir, store)
}

pub(super) fn apply(store: &Store, change: impl Into<Change>) -> Applied {
    store.apply(&mut vec![(b"k".as_slice(), change.into())], &[]).expect("applied")
}

pub(super) fn at(offset: i64) -> Position {
    Position { partition: P0, offset }
}

pub(super) fn trim(offset: i64, of: i64) -> Change {
    Change::Trim { at: at(offset), timestamp: log_ms(offset), offset: of, settles: offset, complete: true }
}

pub(super) fn repair(offset: i64, of: i64, body: &str) -> Change {
    let entry = entry(P0, of, 1_000 + of, body);
    Change::Repair {
        at: at(offset),
        timestamp: log_ms(offset),
        entry,
        reach: of,
        settles: offset,
        complete: true,
    }
}

pub(super) fn write(offset: i64, body: &str) -> Entry {
    entry(P0, offset, 1_000 + offset, body)
}

/// As [`write`], of a key that is deleted.
pub(super) fn dead(offset: i64, body: &str) -> Entry {
    entry_of_text("k", at(offset), log_ms(1_000 + offset), -1, body)
}

/// What lies on disk, past the cache.
fn stored(store: &Store, key: &[u8]) -> Option<Entry> {
    let generation = store.current.load_full();
    let txn = generation.environment.env.read_txn().expect("a transaction");
    let bytes = generation.environment.records.get(&txn, key).expect("readable")?;
    Entry::from_stored(key, bytes)
}

pub(super) fn shown(store: &Store) -> Option<(i64, i64, String)> {
    let (cached, _) = store.get(b"k").expect("the store answers")?;
    assert_eq!(stored(store, b"k").as_ref(), Some(&cached), "the cache holds what the store holds");
    Some((cached.position().offset, cached.timestamp().ms(), text(&cached)))
}

/// The offsets of the records without effect.
pub(super) fn pending_repairs(store: &Store) -> Vec<i64> {
    store.needed_repairs(9).expect("readable").1.iter().map(|needed| needed.pending.position.offset).collect()
}

pub(super) fn put(store: &Store, key: &str, offset: i64, text: &str) {
    let mut changes = vec![(key.as_bytes(), entry_of(key, P0, offset, 1, text).into())];
    store.apply(&mut changes, &[(P0, NextOffset::after(offset))]).expect("applied");
}
