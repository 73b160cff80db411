//! Copies, files and entries with any bytes in them.

use std::io::Cursor;
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::log::{Expected, LogTag};
use crate::store::trimming::{KeyState, parse_older_entries, parse_pending_repairs};
use crate::testing::damage::{damaged, damages};

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

/// Cases beyond what others have: each is a store on disk.
fn slow() -> ProptestConfig {
    let config = ProptestConfig::default();
    ProptestConfig { cases: config.cases.div_ceil(8), ..config }
}

proptest! {
    #[test]
    fn any_bytes_are_no_copy(bytes: Vec<u8>, from in any::<Index>()) {
        prop_assert!(check_copy(&bytes).is_err());
        let half = [&COPY[..from.index(COPY.len())], &bytes].concat();
        prop_assert!(half == *COPY || check_copy(&half).is_err());
        let _ = pages::check_metadata(Cursor::new(&bytes));
        let _ = pages::check_metadata(Cursor::new(&half));
    }

    #[test]
    fn any_pages_are_looked_at_without_a_panic(changes in changes(), damages in damages()) {
        let _ = check_copy(&changed(&COPY, &changes));
        let _ = check_copy(&damaged(&COPY, &damages));
    }
}

proptest! {
    #![proptest_config(slow())]

    /// Where the look at the pages misses something, LMDB ends this process.
    #[test]
    fn a_copy_with_pages_of_anything_is_refused_or_of_use(changes in changes()) {
        let copy = changed(&COPY, &changes);
        let looked = check_copy(&copy);
        match take(&copy) {
            Ok(_) => prop_assert_eq!(looked, Ok(())),
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }
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
                    1 => Some(Condition::Repair { offset: *number, timestamp: log_ms(*timestamp), until: log_ms(number.saturating_mul(100)), log: LogTag::default(), reach: Some(*number) }),
                    2 => Some(Condition::Unreadable),
                    3 => Some(Condition::Attempt { expected: Expected::Dead(*number), until: log_ms(number.saturating_mul(100)), log: LogTag::default() }),
                    4 => Some(Condition::Attempt { expected: Expected::Nothing, until: log_ms(i64::MAX), log: LogTag::default() }),
                    _ => None,
                };
                let key = match kind {
                    5 => Some(bytes.as_slice()),
                    6 => None,
                    _ => Some(key.as_bytes()),
                };
                let position = Position { partition: *partition, offset };
                batch.push(LogRecord { position, timestamp: log_ms(*timestamp), key, value: value.as_deref(), condition, level: None, epoch: None });
            }
            crate::replication::apply(&store, &batch, LogTag::default(), &[]).expect("applied");
            store.sweep(log_ms(part[0].2), Duration::from_millis(50), (part[0].0 % 2 == 0).then_some(log_ms(part[0].2)), Duration::from_millis(30)).expect("swept");
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
        state.entries.push(entry(0, 0, 0, ""));
        for (partition, offset, bytes) in entries {
            let position = Position { partition, offset };
            let text = String::from_utf8_lossy(&bytes);
            state.entries.push(entry_of_text("k", position, log_ms(offset), offset, &text));
            state.pending_repairs.push(PendingRepair { position, timestamp: log_ms(offset) });
        }
        let (others, pending_repairs) = (parse_older_entries(b"k", &state.encode_older_entries()).expect("whole"), parse_pending_repairs(&state.encode_pending_repairs()).expect("whole"));
        prop_assert_eq!(&others[..], &state.entries[1..]);
        prop_assert_eq!(pending_repairs, state.pending_repairs.clone());
        for bytes in [bytes, damaged(&state.encode_older_entries(), &damages), damaged(&state.encode_pending_repairs(), &damages)] {
            match parse_older_entries(b"k", &bytes) {
                Ok(entries) => {
                    let length: usize = entries.iter().map(|entry| entry.as_stored().len() + 4).sum();
                    prop_assert_eq!(length, bytes.len());
                }
                Err(error) => prop_assert!(error.to_string().contains("'others'")),
            }
            match parse_pending_repairs(&bytes) {
                Ok(pending_repairs) => prop_assert_eq!(pending_repairs.len() * 20, bytes.len()),
                Err(error) => prop_assert!(error.to_string().contains("'pending_repairs'")),
            }
            if let Some(entry) = Entry::from_stored(b"k", &bytes) {
                let _ = (entry.state(wall_ms(0)), entry.state(WallTime::MIN), entry.is_newer_than(&entry));
                let _ = (entry.to_avro(), entry.value(), entry.is_of(b"k"), crate::store::sweep::sweep_time(entry.head()));
            }
        }
    }
}
