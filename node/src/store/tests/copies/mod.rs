//! A copy of a store that holds anything: an error and never the end of the process.

mod damage;
mod refusals;

use std::fs::File;
use std::ops::Bound;
use std::sync::LazyLock;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bitacora_protocol::record::{KeyValue, ttl};

use super::*;
use crate::store::check::GIVEN_UP;

const END: i64 = 10_000;

fn record(key: &str, value: &str, ttl: i64) -> Vec<u8> {
    let mut bytes = Vec::new();
    KeyValue { key, value, timestamp: 1, source: 3, ttl, uuid: "u" }.encode(&mut bytes);
    bytes
}

pub(super) fn entry_of(key: &str, partition: i32, offset: i64, value: &str) -> Entry {
    let record = KeyValue { key, value, timestamp: 1, source: 3, ttl: ttl::FOR_EVER, uuid: "u" };
    Entry::new(Position { partition, offset }, log_ms(offset), &record)
}

/// A store that has some of everything.
fn fill(store: &Store) {
    store.reset(&identity(), &[NextOffset(0); 2], wall_ms(1)).expect("written");
    let keys: Vec<String> = (0..400).map(|n| format!("key {n:03}")).collect();
    let mut changes: Vec<(&[u8], Change)> = Vec::new();
    for (offset, key) in (0..).zip(&keys) {
        // Some on pages of their own, one on several.
        let value = "v".repeat(match offset % 50 {
            0 => 3_000,
            1 => 20_000,
            n => n as usize,
        });
        changes.push((key.as_bytes(), entry_of(key, 0, offset, &value).into()));
        let at = Position { partition: 0, offset: 1_000 + offset };
        match offset % 20 {
            2 => changes.push((key.as_bytes(), entry_of(key, 1, offset, "elsewhere").into())),
            3 => {
                changes.push((
                    key.as_bytes(),
                    Change::Trim {
                        at,
                        timestamp: log_ms(5),
                        offset: offset - 1,
                        settles: offset,
                        complete: true,
                    },
                ));
            }
            4 => {
                let expires = entry_of_text(key, at, log_ms(1), 50 + offset, "soon");
                changes.push((key.as_bytes(), expires.into()));
            }
            5 => changes.push((key.as_bytes(), entry_of_text(key, at, log_ms(1), ttl::DELETED, "").into())),
            _ => {}
        }
    }
    let next = [(0, NextOffset(END)), (1, NextOffset(END))];
    store.apply(&mut changes, &next).expect("applied");
    store.sweep(log_ms(60), Duration::from_secs(1), None, Duration::ZERO).expect("swept");
    store.note_caught_up(wall_ms(1)).expect("written");
}

/// The bytes of a copy.
fn copy_of(store: &Store) -> Vec<u8> {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("copy");
    store.copy().expect("a copy").write_to(File::create_new(&path).expect("a file")).expect("copied");
    std::fs::read(path).expect("readable")
}

/// A copy that has some of everything.
pub(crate) static COPY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(dir.path());
    fill(&store);
    copy_of(&store)
});

/// Takes a copy in as a node does, and then uses all of it.
fn take(copy: &[u8]) -> Result<Checkpoint, StoreError> {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(dir.path());
    let mut incoming = store.incoming()?;
    std::fs::write(incoming.file(), copy)?;
    let checkpoint = open_incoming(&mut incoming, false)?;
    store.install(incoming)?;
    use_all(&store);
    Ok(checkpoint)
}

/// Whatever these say, they come back.
fn use_all(store: &Store) {
    let (_, all) = (store.stats(), store.checkpoint());
    assert!(all.is_ok(), "it was checked");
    let _ = store.needed_repairs(1_000);
    let _ = store.trimmable(&TrimQuery {
        after: b"",
        dead_until: LogTime::MAX,
        replaced_until: LogTime::MAX,
        max_records: 1_000,
        max_keys: 1_000,
    });
    let scanned = store.scan(&Bound::Unbounded, b"", b"", 10_000, |_| true).map(|page| page.entries);
    for entry in scanned.iter().flatten() {
        let mut uuid = UuidText::default();
        let _ = (entry.state(wall_ms(0)), entry.value(), entry.answer(&mut uuid));
    }
    let _ = store.sweep(log_ms(100), Duration::from_millis(50), Some(log_ms(100)), Duration::ZERO);
    let keys: Vec<String> = (0..400).map(|n| format!("key {n:03}")).collect();
    let mut changes: Vec<(&[u8], Change)> = Vec::new();
    for (offset, key) in (END..).zip(&keys) {
        let _ = store.get(key.as_bytes());
        let at = Position { partition: 0, offset };
        changes.push(match offset % 3 {
            0 => (key.as_bytes(), entry_of(key, 0, offset, &"w".repeat(offset as usize % 5_000)).into()),
            1 => (
                key.as_bytes(),
                Change::Trim { at, timestamp: log_ms(9), offset, settles: offset, complete: true },
            ),
            _ => (key.as_bytes(), entry_of(key, 0, offset, "").into()),
        });
    }
    let _ = store.apply(&mut changes, &[(0, NextOffset(END + 400))]);
    let _ = store.reset(&identity(), &[NextOffset(0)], wall_ms(1));
}

fn check_copy(copy: &[u8]) -> Result<(), String> {
    let mut check = CopyCheck::default();
    check.push(copy)?;
    check.finish().map(drop)
}

/// Opens what was written as a node does.
fn open_incoming(incoming: &mut Incoming, stop: bool) -> Result<Checkpoint, StoreError> {
    let pages = incoming.look_at_pages()?;
    incoming.open(&pages, &AtomicBool::new(stop))
}

#[test]
fn a_check_that_nobody_waits_for_ends() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(dir.path());
    let mut incoming = store.incoming().expect("a place");
    std::fs::write(incoming.file(), &*COPY).expect("written");
    let error = open_incoming(&mut incoming, true).expect_err("it has records").to_string();
    assert!(error.contains(GIVEN_UP), "{error}");
}

#[test]
fn a_copy_is_looked_at_however_it_is_cut() {
    for length in [1, 7, 4_095, 4_096, 4_097, 10_000] {
        let mut check = CopyCheck::default();
        COPY.chunks(length).try_for_each(|piece| check.push(piece)).expect("each piece is");
        assert!(check.finish().is_ok(), "in pieces of {length}");
    }
}

#[test]
fn a_database_of_more_pages_than_there_are_is_refused() {
    // The tree follows its name; there may be others of it in what a page does not use.
    let names = COPY.windows(7).enumerate().filter(|(_, bytes)| bytes == b"records");
    let names: Vec<_> = names.map(|(at, _)| at).collect();
    for field in [8, 16, 24] {
        let mut copy = COPY.clone();
        for name in &names {
            copy[name + 7 + field..][..8].fill(0xff);
        }
        let error = check_copy(&copy).expect_err("it was taken");
        assert!(error.contains("more pages"), "{error}");
    }
}

#[test]
fn a_copy_of_everything_is_taken() {
    assert_eq!(check_copy(&COPY), Ok(()));
    let checkpoint = take(&COPY).expect("it is whole");
    assert_eq!(checkpoint.next, [NextOffset(END); 2]);
}

/// Enough for both of the threads that look at them to meet in their midst.
#[test]
fn a_copy_of_many_records_is_taken() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(dir.path());
    store.reset(&identity(), &[NextOffset(0)], wall_ms(1)).expect("written");
    let keys: Vec<String> = (0..20_000).map(|n| format!("key {n:05}")).collect();
    let mut changes: Vec<(&[u8], Change)> = (0..)
        .zip(&keys)
        .map(|(offset, key)| (key.as_bytes(), entry_of(key, 0, offset, "v").into()))
        .collect();
    store.apply(&mut changes, &[(0, NextOffset(20_000))]).expect("applied");
    store.note_caught_up(wall_ms(1)).expect("written");
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut incoming = open(dir.path()).incoming().expect("a place");
    std::fs::write(incoming.file(), copy_of(&store)).expect("written");
    let checkpoint = open_incoming(&mut incoming, false).expect("it is whole");
    assert_eq!(checkpoint.next, [NextOffset(20_000)]);
}
