//! What a record in the cache costs, and that the cache says so: memory is bounded by what it says. A program of its own, since the
//! memory of a process is measured.
#![cfg(target_os = "linux")]

use std::path::Path;
use std::process::Command;

use bitacora_node::clock::{LogTime, WallTime};
use bitacora_node::log::LogIdentity;
use bitacora_node::store::{Entry, Store};
use bitacora_protocol::record::{KeyValue, source, ttl};
use bitacora_protocol::{NextOffset, Position};
use tikv_jemallocator::Jemalloc;

/// As the node's program: the cache says what this takes.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Bytes of this process that are no pages of files, such as LMDB's.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux tells");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("since Linux 4.5");
    line.trim_end_matches("kB").trim().parse::<u64>().expect("a number") * 1024
}

fn key(number: u64, bytes: usize) -> String {
    format!("{number:0bytes$}")
}

/// In the environment of a process that measures: the store's folder, and how many records it has, with keys of so many bytes.
const MEASURE: &str = "CACHE_MEMORY_OF";

/// Fills a store with so many records.
fn fill(dir: &Path, records: u64, key_bytes: usize, value_bytes: usize) {
    let store = Store::open(dir, 0).expect("opened");
    let identity = LogIdentity { cluster: "c".into(), topic: "t".into(), topic_id: None };
    store.reset(&identity, &[NextOffset(0)], WallTime::from_ms(1)).expect("written");
    let (value, uuid) = ("v".repeat(value_bytes), "4b8dd6b5-08c5-4fd3-8e3c-a6f3d4f3c0de");
    let numbers: Vec<_> = (0..records).collect();
    for numbers in numbers.chunks(5_000) {
        let keys: Vec<_> = numbers.iter().map(|number| key(*number, key_bytes)).collect();
        let changes = keys.iter().zip(numbers).map(|(key, number)| {
            let (position, written) = (Position { partition: 0, offset: *number as i64 }, 1_790_000_000_000);
            let (source, ttl) = (source::PRODUCER, ttl::FOR_EVER);
            let record = KeyValue { key, value: &value, timestamp: written - 5, source, ttl, uuid };
            (key.as_bytes(), Entry::new(position, LogTime::from_ms(written), &record).into())
        });
        store.apply(&mut changes.collect(), &[]).expect("applied");
    }
}

/// Reads all records once. Returns the bytes of a record, as the cache says and as the process has grown.
fn measure(dir: &Path, records: u64, key_bytes: usize) -> (u64, u64) {
    let store = Store::open(dir, 256 << 20).expect("opened");
    let before = memory();
    for number in 0..records {
        assert!(store.get(key(number, key_bytes).as_bytes()).expect("readable").is_some());
    }
    let grown = memory() - before;
    let stats = store.stats().expect("told");
    assert_eq!((stats.cache_records, stats.cache_evictions), (records, 0));
    (stats.cache_bytes / records, grown / records)
}

#[test]
fn the_cache_takes_what_it_says() {
    if let Ok(what) = std::env::var(MEASURE) {
        let what: Vec<_> = what.split(' ').collect();
        let number = |at: usize| what[at].parse::<u64>().expect("a number");
        let (told, takes) = measure(Path::new(what[2]), number(0), number(1) as usize);
        println!("{told} told, {takes} taken");
        return;
    }
    for (records, key_bytes, value_bytes, most) in [
        (200_000, 16, 100, 178),
        (400_000, 16, 10, 95),
        (5_000, 16, 10_000, 10_260),
        (20_000, 1_000, 100, 1_300),
    ] {
        let dir = tempfile::tempdir().expect("a temporary folder");
        fill(dir.path(), records, key_bytes, value_bytes);
        // A process that has done nothing else has nothing left over that would be taken instead.
        let child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "the_cache_takes_what_it_says", "--nocapture"])
            .env(MEASURE, format!("{records} {key_bytes} {}", dir.path().display()))
            // What is freed is given back at once, so that what is held is measured.
            .env("_RJEM_MALLOC_CONF", "narenas:1,dirty_decay_ms:0")
            .output()
            .expect("it runs");
        let said = String::from_utf8_lossy(&child.stdout).into_owned();
        let shown = format!("keys of {key_bytes} and values of {value_bytes} bytes: {said}");
        let line = said.lines().find_map(|line| line.strip_suffix(" taken")?.split_once(" told, "));
        let (told, takes) = line.unwrap_or_else(|| panic!("{shown}"));
        let number = |text: &str| text.rsplit(' ').next().unwrap_or(text).parse::<u64>().expect("a number");
        let (told, takes) = (number(told), number(takes));
        assert!(told <= most, "{shown}");
        assert!(told.abs_diff(takes) * 100 <= told * 5, "{shown}");
    }
}
