//! Tests of the store, by what they are about; and what they have in common.

mod attempts;
pub(crate) mod copies;
mod records;
mod scan;
mod sweep;
mod switch;
mod trimming;

use parking_lot::Mutex;

use super::*;
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

pub(super) fn entry(partition: i32, offset: i64, timestamp: i64, body: &str) -> Entry {
    Entry::new(Position { partition, offset }, log_ms(timestamp), 0, body.as_bytes())
}

pub(crate) fn identity() -> LogIdentity {
    LogIdentity { cluster: "c".into(), topic: "t".into(), topic_id: None }
}

pub(super) fn body(store: &Store, key: &str) -> Option<(String, Tier)> {
    let found = store.get(key.as_bytes()).expect("the store answers");
    found.map(|(entry, tier)| (String::from_utf8_lossy(&entry.as_bytes()[28..]).into_owned(), tier))
}

pub(super) fn filled(keys: &[&str]) -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(dir.path());
    store.reset(&identity(), &[NextOffset(0)], wall_ms(5)).expect("written");
    let entries =
        keys.iter().zip(0..).map(|(key, offset)| (key.as_bytes(), entry(P0, offset, 1, key).into()));
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
    Entry::new(at(offset), log_ms(1_000 + offset), -1, body.as_bytes())
}

/// What lies on disk, past the cache.
fn stored(store: &Store, key: &[u8]) -> Option<Entry> {
    let generation = store.current.load_full();
    let txn = generation.environment.env.read_txn().expect("a transaction");
    let bytes = generation.environment.records.get(&txn, key).expect("readable")?;
    Entry::from_bytes(bytes)
}

pub(super) fn shown(store: &Store) -> Option<(i64, i64, String)> {
    let (cached, _) = store.get(b"k").expect("the store answers")?;
    assert_eq!(stored(store, b"k").as_ref(), Some(&cached), "the cache holds what the store holds");
    let body = String::from_utf8_lossy(cached.record_bytes()).into_owned();
    Some((cached.position().offset, cached.timestamp().ms(), body))
}

/// The offsets of the records without effect.
pub(super) fn pending_repairs(store: &Store) -> Vec<i64> {
    store.needed_repairs(9).expect("readable").1.iter().map(|needed| needed.pending.position.offset).collect()
}

pub(super) fn put(store: &Store, key: &str, offset: i64, text: &str) {
    let mut changes = vec![(key.as_bytes(), entry(P0, offset, 1, text).into())];
    store.apply(&mut changes, &[(P0, NextOffset::after(offset))]).expect("applied");
}
