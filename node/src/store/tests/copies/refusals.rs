//! What no node writes, in a copy that LMDB has nothing against: refused, with its place.

use std::fs::File;

use heed::types::Bytes as RawBytes;
use heed::{CompactionOption, RwTxn};

use super::*;

/// What a copy with this change is refused for.
fn refused(change: impl FnOnce(&Environment, &mut RwTxn<'_>) -> heed::Result<()>) -> String {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(dir.path());
    fill(&store);
    let written = store.written();
    let environment = written.environment();
    let mut txn = environment.env.write_txn().expect("writable");
    change(environment, &mut txn).expect("changed");
    txn.commit().expect("committed");
    let copied = tempfile::tempdir().expect("a temporary folder");
    let target = open(copied.path());
    let mut incoming = target.incoming().expect("a place");
    // Not by way of `Store::copy`, which looks at some of it itself.
    let mut file = File::create_new(incoming.file()).expect("a file");
    environment.env.copy_to_file(&mut file, CompactionOption::Enabled).expect("copied");
    open_incoming(&mut incoming, false).expect_err("it was taken").to_string()
}

/// The same, of one more record.
fn refused_record(entry: &Entry) -> String {
    refused(|environment, txn| environment.records.put(txn, b"key 007", entry.as_stored()))
}

fn at(offset: i64) -> Position {
    Position { partition: P0, offset }
}

#[test]
fn a_record_that_was_never_applied() {
    let beyond = refused_record(&entry_of("key 007", 0, END, ""));
    assert!(
        beyond.contains("under 'records', 'key 007' lies at 0:10000, which was never applied"),
        "{beyond}"
    );
    for (partition, offset) in [(0, -1), (0, i64::MAX), (0, i64::MIN), (2, 0), (i32::MAX, 0)] {
        let error = refused_record(&entry_of("key 007", partition, offset, "").as_provisional());
        assert!(error.contains(&format!("lies at {partition}:{offset}, which")), "{error}");
        let error = refused_record(&entry_of("key 007", partition, offset, ""));
        assert!(error.contains(&format!("lies at {partition}:{offset}, which")), "{error}");
    }
}

#[test]
fn a_record_that_is_no_text_or_none() {
    let put =
        |key: &[u8], stored: &[u8]| refused(|environment, txn| environment.records.put(txn, key, stored));
    let (live, none) = (entry_of("key 007", 0, 1, "text"), entry_of_text("key 007", at(1), log_ms(1), 0, ""));
    let mut no_text = live.as_stored().to_vec();
    no_text.extend(b"\xff");
    for (key, stored) in
        [(b"key 007".as_slice(), none.as_stored()), (b"key 007", &no_text), (b"key \xff", live.as_stored())]
    {
        let error = put(key, stored);
        assert!(error.contains("has no record, or one that is no text"), "{error}");
    }
    for stored in [&[0; 27], b"nonsense".as_slice(), &live.as_stored()[..10], b""] {
        let error = put(b"key 007", stored);
        assert!(error.contains("under 'records' that no node writes"), "{error}");
    }
}

#[test]
fn what_stands_beside_the_records() {
    let long = entry_of("key 007", 1, END, "");
    let bytes = [&(long.as_stored().len() as u32).to_be_bytes()[..], long.as_stored()].concat();
    let older =
        |bytes: &[u8]| refused(|environment, txn| environment.older_entries.put(txn, b"key 007", bytes));
    let error = older(&bytes);
    assert!(error.contains("under 'others', 'key 007' lies at 1:10000"), "{error}");
    let error = older(&[0xff; 40]);
    assert!(error.contains("'others'"), "{error}");
    let repairs =
        |bytes: &[u8]| refused(|environment, txn| environment.pending_repairs.put(txn, b"key 007", bytes));
    let error = repairs(&[0xff; 20]);
    assert!(error.contains("under 'pending_repairs', 'key 007' speaks of"), "{error}");
    let error = repairs(&[0; 19]);
    assert!(error.contains("'pending_repairs'"), "{error}");
    let error = refused(|environment, txn| environment.sweep_times.put(txn, &[0; 8], &()));
    assert!(error.contains("under 'sweep_times'"), "{error}");
}

#[test]
fn positions_that_are_none() {
    for (key, value) in [(2, -1), (2, i64::MIN), (3, 5), (u32::MAX, 5), (0, -1)] {
        let point = DigestPoint { next: NextOffset(value), digest: Digest::default() };
        let error = refused(|environment, txn| environment.positions.put(txn, &key, &point));
        assert!(error.contains("'positions'"), "{key} {value}: {error}");
    }
    for key in [b"12345".as_slice(), &[0, 0, 0, 2]] {
        let error = refused(|environment, txn| {
            environment.positions.remap_types::<RawBytes, RawBytes>().put(txn, key, b"x")
        });
        assert!(error.contains("'positions'"), "{error}");
    }
}

/// A value that is another one of the same kind: only the digest tells.
#[test]
fn records_that_the_digest_is_not_of() {
    let another = entry_of("key 007", 0, 7, "another value");
    for change in [Some(&another), None] {
        let error = refused(|environment, txn| match change {
            Some(entry) => environment.records.put(txn, b"key 007", entry.as_stored()),
            None => environment.records.delete(txn, b"key 007").map(drop),
        });
        assert!(error.contains("the records of partition 0 are not those that its digest is of"), "{error}");
    }
}

#[test]
fn what_a_store_says_of_itself() {
    let raw = |key: &[u8], value: &[u8]| {
        refused(|environment, txn| environment.meta.remap_types::<RawBytes, RawBytes>().put(txn, key, value))
    };
    for (key, value, place) in [
        ("identity", b"{}".as_slice(), "'identity'"),
        ("identity", b"\xff", "'meta'"),
        ("format", b"\xff", "'meta'"),
    ] {
        let error = raw(key.as_bytes(), value);
        assert!(error.contains(place), "{key}: {error}");
    }
}

#[test]
fn what_is_not_complete() {
    for gone in ["identity", "restored"] {
        let error = refused(|environment, txn| environment.meta.delete(txn, gone).map(drop));
        assert!(error.contains("it is not complete"), "{gone}: {error}");
    }
    let error = refused(|environment, txn| environment.positions.clear(txn));
    assert!(error.contains("it is not complete"), "{error}");
    let error = refused(|environment, txn| environment.meta.put(txn, "format", "1"));
    assert!(error.contains("it is not complete"), "{error}");
}
