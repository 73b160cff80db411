//! A copy of a store that holds anything: an error and never the end of the process.

use std::fs::File;
use std::io::{Cursor, Read, Seek};
use std::ops::Bound;
use std::sync::LazyLock;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bitacora_protocol::record::{KeyValue, ttl};
use heed::types::Bytes as RawBytes;
use heed::{CompactionOption, RwTxn};
use proptest::prelude::*;
use proptest::sample::Index;

use super::tests::{log_ms, wall_ms};
use super::trimming::{KeyState, parse_older_entries, parse_pending_repairs};
use super::*;
use crate::log::LogTag;
use crate::testing::damage::{damaged, damages};
use bitacora_protocol::Position;

const END: i64 = 10_000;

pub(crate) fn identity() -> LogIdentity {
    LogIdentity { cluster: "c".into(), topic: "t".into(), topic_id: None }
}

fn open(dir: &Path) -> Store {
    Store::open(dir, 1 << 20).expect("the store opens")
}

fn record(key: &str, value: &str, ttl: i64) -> Vec<u8> {
    let mut bytes = Vec::new();
    KeyValue { key, value, timestamp: 1, source: 3, ttl, uuid: "u" }.encode(&mut bytes);
    bytes
}

pub(super) fn entry(key: &str, partition: i32, offset: i64, value: &str) -> Entry {
    Entry::new(
        Position { partition, offset },
        log_ms(offset),
        ttl::FOR_EVER,
        &record(key, value, ttl::FOR_EVER),
    )
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
        changes.push((key.as_bytes(), entry(key, 0, offset, &value).into()));
        let at = Position { partition: 0, offset: 1_000 + offset };
        match offset % 20 {
            2 => changes.push((key.as_bytes(), entry(key, 1, offset, "elsewhere").into())),
            3 => {
                changes.push((key.as_bytes(), Change::Trim { at, timestamp: log_ms(5), offset: offset - 1 }));
            }
            4 => {
                let expires = Entry::new(at, log_ms(1), 50 + offset, &record(key, "soon", 50 + offset));
                changes.push((key.as_bytes(), expires.into()));
            }
            5 => changes.push((key.as_bytes(), Entry::new(at, log_ms(1), ttl::DELETED, &[]).into())),
            _ => {}
        }
    }
    let next = [(0, NextOffset(END)), (1, NextOffset(END))];
    store.apply(&mut changes, &next).expect("applied");
    store.sweep(log_ms(60), Duration::from_secs(1), None).expect("swept");
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
    let checkpoint = incoming.open(&AtomicBool::new(false))?;
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
    let scanned = store.scan(&Bound::Unbounded, b"", b"", 10_000, |_| true).map(|(found, _)| found);
    for entry in scanned.iter().flatten() {
        let _ = (entry.state(wall_ms(0)), entry.answer(), entry.value_field());
    }
    let _ = store.sweep(log_ms(100), Duration::from_millis(50), Some(log_ms(100)));
    let keys: Vec<String> = (0..400).map(|n| format!("key {n:03}")).collect();
    let mut changes: Vec<(&[u8], Change)> = Vec::new();
    for (offset, key) in (END..).zip(&keys) {
        let _ = store.get(key.as_bytes());
        let at = Position { partition: 0, offset };
        changes.push(match offset % 3 {
            0 => (key.as_bytes(), entry(key, 0, offset, &"w".repeat(offset as usize % 5_000)).into()),
            1 => (key.as_bytes(), Change::Trim { at, timestamp: log_ms(9), offset }),
            _ => (key.as_bytes(), entry(key, 0, offset, "").into()),
        });
    }
    let _ = store.apply(&mut changes, &[(0, NextOffset(END + 400))]);
    let _ = store.reset(&identity(), &[NextOffset(0)], wall_ms(1));
}

#[derive(Clone, Debug)]
struct Overwrite {
    page: Index,
    /// In the page; most are in its header and the first nodes' places.
    at: usize,
    bytes: Vec<u8>,
}

fn changes() -> impl Strategy<Value = Vec<Overwrite>> {
    let place =
        prop_oneof![3 => 0..20_usize, 2 => 0..160_usize, 2 => 0..4_096_usize, 1 => 4_000..4_096_usize];
    let number = prop_oneof![
        Just(0_u64),
        Just(u64::MAX),
        0..200_u64,
        any::<u64>(),
        (0..64_u32).prop_map(|bit| 1 << bit)
    ];
    let bytes = (number, prop_oneof![Just(1_usize), Just(2), Just(4), Just(8)])
        .prop_map(|(n, size)| n.to_ne_bytes()[..size].to_vec());
    let one =
        (any::<Index>(), place, bytes).prop_map(|(page, at, bytes)| Overwrite { page, at: at & !1, bytes });
    prop::collection::vec(one, 1..4)
}

fn changed(copy: &[u8], changes: &[Overwrite]) -> Vec<u8> {
    let mut copy = copy.to_vec();
    let pages = copy.len() / 4_096;
    for Overwrite { page, at, bytes } in changes {
        let at = page.index(pages) * 4_096 + at;
        let end = (at + bytes.len()).min(copy.len());
        copy[at..end].copy_from_slice(&bytes[..end - at]);
    }
    copy
}

fn check_copy(copy: impl Read + Seek) -> Result<(), String> {
    pages::check_copy(copy, &AtomicBool::new(false))
}

#[test]
fn a_check_that_nobody_waits_for_ends() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(dir.path());
    let mut incoming = store.incoming().expect("a place");
    std::fs::write(incoming.file(), &*COPY).expect("written");
    let stop = AtomicBool::new(true);
    let error = pages::check_copy(Cursor::new(&*COPY), &stop).expect_err("it has pages");
    assert_eq!(error, pages::GIVEN_UP);
    let checkpoint = incoming.open(&AtomicBool::new(false)).expect("it is whole");
    let environment = incoming.environment.as_ref().expect("opened");
    let error = environment.check(&checkpoint, &stop).expect_err("it has records").to_string();
    assert!(error.contains(pages::GIVEN_UP), "{error}");
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
        let error = check_copy(Cursor::new(&copy)).expect_err("it was taken");
        assert!(error.contains("more pages"), "{error}");
    }
}

#[test]
fn a_copy_of_everything_is_taken() {
    assert_eq!(check_copy(Cursor::new(&*COPY)), Ok(()));
    let checkpoint = take(&COPY).expect("it is whole");
    assert_eq!(checkpoint.next, [NextOffset(END); 2]);
}

/// Cases beyond what others have: each is a store on disk.
fn slow() -> ProptestConfig {
    let config = ProptestConfig::default();
    ProptestConfig { cases: config.cases.div_ceil(8), ..config }
}

proptest! {
    #[test]
    fn any_bytes_are_no_copy(bytes: Vec<u8>, from in any::<Index>()) {
        prop_assert!(check_copy(Cursor::new(&bytes)).is_err());
        let half = [&COPY[..from.index(COPY.len())], &bytes].concat();
        prop_assert!(half == *COPY || check_copy(Cursor::new(&half)).is_err());
        let _ = pages::check_metadata(Cursor::new(&bytes));
        let _ = pages::check_metadata(Cursor::new(&half));
    }

    #[test]
    fn any_pages_are_looked_at_without_a_panic(changes in changes(), damages in damages()) {
        let _ = check_copy(Cursor::new(changed(&COPY, &changes)));
        let _ = check_copy(Cursor::new(damaged(&COPY, &damages)));
    }
}

proptest! {
    #![proptest_config(slow())]

    /// Where the look at the pages misses something, LMDB ends this process.
    #[test]
    fn a_copy_with_pages_of_anything_is_refused_or_of_use(changes in changes()) {
        let copy = changed(&COPY, &changes);
        let looked = check_copy(Cursor::new(&copy));
        match take(&copy) {
            Ok(_) => prop_assert_eq!(looked, Ok(())),
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }
}

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
    incoming.open(&AtomicBool::new(false)).expect_err("it was taken").to_string()
}

#[test]
fn what_no_node_writes_is_refused_with_its_place() {
    let put = |key: &'static str, entry: Entry| {
        refused(move |environment, txn| environment.records.put(txn, key.as_bytes(), entry.as_bytes()))
    };
    let beyond = put("key 007", entry("key 007", 0, END, ""));
    assert!(
        beyond.contains("under 'records', 'key 007' lies at 0:10000, which was never applied"),
        "{beyond}"
    );
    for (partition, offset) in [(0, -1), (0, i64::MAX), (0, i64::MIN), (2, 0), (i32::MAX, 0)] {
        let error = put("key 007", entry("key 007", partition, offset, "").as_provisional());
        assert!(error.contains(&format!("lies at {partition}:{offset}, which")), "{error}");
        let error = put("key 007", entry("key 007", partition, offset, ""));
        assert!(error.contains(&format!("lies at {partition}:{offset}, which")), "{error}");
    }
    let others = "has another's record, or none";
    assert!(put("key 007", entry("key 008", 0, 1, "")).contains(others));
    assert!(
        put("key 007", Entry::new(Position { partition: 0, offset: 1 }, log_ms(1), 0, b"nonsense"))
            .contains(others)
    );
    assert!(
        put("key 007", Entry::new(Position { partition: 0, offset: 1 }, log_ms(1), 0, b"")).contains(others)
    );
    let live = record("key 007", "deleted", ttl::FOR_EVER);
    assert!(
        put("key 007", Entry::new(Position { partition: 0, offset: 1 }, log_ms(1), -1, &live))
            .contains(others)
    );
    let raw = |bytes: &'static [u8]| {
        refused(move |environment, txn| environment.records.put(txn, b"key 007", bytes))
    };
    assert!(raw(&[0; 27]).contains("'records'"));

    let long = entry("key 007", 1, END, "");
    let bytes = [&(long.as_bytes().len() as u32).to_be_bytes()[..], long.as_bytes()].concat();
    assert!(
        refused(move |environment, txn| environment.older_entries.put(txn, b"key 007", &bytes))
            .contains("under 'others', 'key 007' lies at 1:10000")
    );
    assert!(
        refused(|environment, txn| environment.older_entries.put(txn, b"key 007", &[0xff; 40]))
            .contains("'others'")
    );
    assert!(
        refused(|environment, txn| environment.pending_repairs.put(txn, b"key 007", &[0xff; 20]))
            .contains("under 'pending_repairs', 'key 007' speaks of")
    );
    assert!(
        refused(|environment, txn| environment.pending_repairs.put(txn, b"key 007", &[0; 19]))
            .contains("'pending_repairs'")
    );
    assert!(
        refused(|environment, txn| environment.sweep_times.put(txn, &[0; 8], &()))
            .contains("under 'sweep_times'")
    );

    let raw_positions = |environment: &Environment| environment.positions.remap_types::<RawBytes, RawBytes>();
    for (key, value) in [(2, -1), (2, i64::MIN), (3, 5), (u32::MAX, 5), (0, -1)] {
        let error = refused(|environment, txn| environment.positions.put(txn, &key, &value));
        assert!(error.contains("'positions'"), "{key} {value}: {error}");
    }
    assert!(
        refused(|environment, txn| raw_positions(environment).put(txn, b"12345", b"x"))
            .contains("'positions'")
    );
    assert!(
        refused(|environment, txn| raw_positions(environment).put(txn, &[0, 0, 0, 2], b"x"))
            .contains("'positions'")
    );

    let raw_meta = |environment: &Environment| environment.meta.remap_types::<RawBytes, RawBytes>();
    assert!(
        refused(|environment, txn| raw_meta(environment).put(txn, b"identity", b"{}")).contains("'identity'")
    );
    assert!(
        refused(|environment, txn| raw_meta(environment).put(txn, b"identity", b"\xff")).contains("'meta'")
    );
    assert!(
        refused(|environment, txn| raw_meta(environment).put(txn, b"format", b"\xff")).contains("'meta'")
    );
    for gone in ["identity", "restored"] {
        assert!(
            refused(|environment, txn| environment.meta.delete(txn, gone).map(drop))
                .contains("it is not complete"),
            "{gone}"
        );
    }
    assert!(refused(|environment, txn| environment.positions.clear(txn)).contains("it is not complete"));
    assert!(
        refused(|environment, txn| environment.meta.put(txn, "format", "1")).contains("it is not complete")
    );
}

/// What the log has is damaged, too: a store that a replica filled from it is always one that others take.
fn logs() -> impl Strategy<Value = Vec<(u8, i32, i64, i64, Vec<u8>)>> {
    let number = || prop_oneof![0..60_i64, any::<i64>()];
    prop::collection::vec(
        (0..8_u8, 0..2_i32, number(), number(), prop::collection::vec(any::<u8>(), 0..20)),
        1..60,
    )
}

proptest! {
    #![proptest_config(slow())]

    #[test]
    fn what_a_replica_makes_of_any_log_is_taken_by_others(log in logs(), damages in damages()) {
        use crate::log::{Batch, Condition, LogRecord};
        let dir = tempfile::tempdir().expect("a temporary folder");
        let store = open(dir.path());
        store.reset(&identity(), &[NextOffset(0); 2], wall_ms(1)).expect("written");
        let mut ends = [0; 2];
        for part in log.chunks(20) {
            let mut batch = Batch::default();
            for (kind, partition, number, timestamp, bytes) in part {
                let key = format!("key {}", number.rem_euclid(5));
                let value = record(&key, "value", if kind % 2 == 0 { 0 } else { *timestamp });
                let value = match kind {
                    0..3 => Some(value),
                    3 => Some(damaged(&value, &damages)),
                    4 => Some(bytes.clone()),
                    _ => None,
                };
                let offset = ends[*partition as usize];
                ends[*partition as usize] += 1 + number.rem_euclid(3);
                let condition = match timestamp.rem_euclid(8) {
                    0 => Some(Condition::Trim { offset: *number, until: log_ms(number.saturating_mul(100)), log: LogTag::default() }),
                    1 => Some(Condition::Repair { offset: *number, timestamp: log_ms(*timestamp), until: log_ms(number.saturating_mul(100)), log: LogTag::default() }),
                    2 => Some(Condition::Unreadable),
                    _ => None,
                };
                let key = match kind {
                    5 => Some(bytes.as_slice()),
                    6 => None,
                    _ => Some(key.as_bytes()),
                };
                let position = Position { partition: *partition, offset };
                batch.push(LogRecord { position, timestamp: log_ms(*timestamp), key, value: value.as_deref(), condition, epoch: None });
            }
            crate::replication::apply(&store, &batch, LogTag::default()).expect("applied");
            store.sweep(log_ms(part[0].2), Duration::from_millis(50), (part[0].0 % 2 == 0).then_some(log_ms(part[0].2))).expect("swept");
        }
        store.note_caught_up(wall_ms(1)).expect("written");
        let taken = take(&copy_of(&store));
        prop_assert_eq!(taken.expect("it is taken"), store.checkpoint().expect("readable"));
    }
}

#[test]
fn own_damaged_store_is_an_error_that_says_what_to_do() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let error = |dir: &Path| Store::open(dir, 0).err().expect("it was opened").to_string();
    std::fs::create_dir(dir.path().join("1")).expect("made");
    let file = dir.path().join("1").join(DATA_FILE);
    let mut no_size = COPY.clone();
    no_size[40..44].copy_from_slice(&0_u32.to_ne_bytes());
    let mut version = COPY.clone();
    version[20] ^= 2;
    for (what, bytes) in [
        ("it is no file of LMDB", b"<html></html>".repeat(1_000).as_slice()),
        ("it is no file of LMDB", &vec![0; 20_000]),
        ("it ends early", &COPY[..100]),
        ("it ends early", &COPY[..4_096 + 151]),
        ("it ends early", &COPY[..8_192]),
        ("its pages are of 0 bytes", &no_size),
        ("LMDB's 3", &version),
    ] {
        std::fs::write(&file, bytes).expect("written");
        let error = error(dir.path());
        assert!(error.contains(what) && error.contains("remove its data folder"), "{error}");
    }
    std::fs::write(&file, &*COPY).expect("written");
    assert!(Store::open(dir.path(), 0).expect("whole").checkpoint().expect("readable").restored);
    // Whoever wrote this did not say which boot it was.
    std::fs::write(dir.path().join("1/UNSYNCED"), b"\xff\xfe").expect("written");
    assert_eq!(open(dir.path()).checkpoint().expect("readable"), Checkpoint::default());
}

proptest! {
    #[test]
    fn any_content_of_current_is_a_number_or_an_error(
        bytes in prop_oneof![
            any::<Vec<u8>>(),
            any::<u64>().prop_map(|n| n.to_string().into()),
            Just(u64::MAX.to_string().into()),
            any::<u32>().prop_map(|n| format!(" {n}\n").into()),
        ],
    ) {
        let dir = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir(dir.path().join("7")).expect("made");
        std::fs::write(dir.path().join("CURRENT"), &bytes).expect("written");
        let folder = StoreFolder::new(dir.path());
        match folder.current() {
            Ok(current) => {
                let text = String::from_utf8_lossy(&bytes);
                prop_assert_eq!(text.trim().parse(), Ok(current));
                std::fs::create_dir_all(dir.path().join(current.to_string())).expect("made");
                prop_assert!(folder.unused().expect("one more") > current);
            }
            Err(error) => {
                let error = error.to_string();
                prop_assert!(error.contains("CURRENT holds") && error.len() < 400, "{}", error);
                prop_assert!(dir.path().join("7").exists(), "nothing is removed");
            }
        }
    }

    #[test]
    fn any_bytes_of_a_key_are_entries_or_an_error(
        bytes: Vec<u8>,
        entries in prop::collection::vec((any::<i32>(), any::<i64>(), any::<Vec<u8>>()), 0..4),
        damages in damages(),
    ) {
        let mut state = KeyState::default();
        state.entries.push(Entry::new(Position { partition: 0, offset: 0 }, log_ms(0), 0, b""));
        for (partition, offset, bytes) in entries {
            let position = Position { partition, offset };
            state.entries.push(Entry::new(position, log_ms(offset), offset, &bytes));
            state.pending_repairs.push(PendingRepair { position, timestamp: log_ms(offset) });
        }
        let (others, pending_repairs) = (parse_older_entries(&state.encode_older_entries()).expect("whole"), parse_pending_repairs(&state.encode_pending_repairs()).expect("whole"));
        prop_assert_eq!(&others[..], &state.entries[1..]);
        prop_assert_eq!(pending_repairs, state.pending_repairs.clone());
        for bytes in [bytes, damaged(&state.encode_older_entries(), &damages), damaged(&state.encode_pending_repairs(), &damages)] {
            match parse_older_entries(&bytes) {
                Ok(entries) => {
                    let length: usize = entries.iter().map(|entry| entry.as_bytes().len() + 4).sum();
                    prop_assert_eq!(length, bytes.len());
                }
                Err(error) => prop_assert!(error.to_string().contains("'others'")),
            }
            match parse_pending_repairs(&bytes) {
                Ok(pending_repairs) => prop_assert_eq!(pending_repairs.len() * 20, bytes.len()),
                Err(error) => prop_assert!(error.to_string().contains("'pending_repairs'")),
            }
            if let Some(entry) = Entry::from_bytes(&bytes) {
                let _ = (entry.state(wall_ms(0)), entry.state(WallTime::MIN), entry.is_newer_than(&entry));
                let _ = (entry.answer(), entry.value_field(), entry.is_of(b"k"), super::sweep::sweep_time(&entry));
                let again = Entry::new(entry.position(), entry.timestamp(), entry.ttl(), entry.record_bytes());
                prop_assert_eq!(if entry.is_provisional() { again.as_provisional() } else { again }, entry);
            } else {
                prop_assert!(bytes.len() < 28);
            }
        }
    }
}
