use std::sync::atomic::AtomicBool;

use super::*;
use crate::position::Position;

const P0: i32 = 0;

fn open(dir: &Path) -> Store {
    Store::open(dir, 1 << 20).expect("the store opens")
}

fn entry(partition: i32, offset: i64, timestamp: i64, body: &str) -> Entry {
    Entry::new(Position { partition, offset }, timestamp, 0, body.as_bytes())
}

fn identity() -> LogIdentity {
    LogIdentity { cluster: "c".into(), topic: "t".into() }
}

fn body(store: &Store, key: &str) -> Option<(String, Tier)> {
    let found = store.get(key.as_bytes()).expect("the store answers");
    found.map(|(entry, tier)| (String::from_utf8_lossy(&entry.as_bytes()[28..]).into_owned(), tier))
}

#[test]
fn records_and_positions_survive_together() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(dir.path());
    assert_eq!(store.checkpoint().expect("readable"), Checkpoint::default());
    store.reset(&identity(), &[NextOffset(0), NextOffset(7)]).expect("written");
    let mut changes =
        vec![(b"a".as_slice(), entry(P0, 3, 10, "first").into()), (b"a", entry(P0, 4, 10, "second").into())];
    assert_eq!(store.apply(&mut changes, &[(P0, NextOffset(5))]).expect("applied").changed, 1);
    store.set_restored().expect("written");
    drop(store);
    let store = open(dir.path());
    let expected =
        Checkpoint { identity: Some(identity()), restored: true, next: vec![NextOffset(5), NextOffset(7)] };
    assert_eq!(store.checkpoint().expect("readable"), expected);
    assert_eq!(body(&store, "a"), Some(("second".into(), Tier::Store)));
    assert_eq!(body(&store, "a"), Some(("second".into(), Tier::Cache)));
}

#[test]
fn nothing_is_applied_twice_and_the_newer_of_two_partitions_wins() {
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
    assert_eq!(apply(entry(1, 0, 101, "newer in another partition")), 1);
    assert_eq!(body(&store, "k").expect("there").0, "newer in another partition");
}

#[test]
fn a_reset_leaves_nothing_behind() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(dir.path());
    store.apply(&mut vec![(b"k".as_slice(), entry(P0, 0, 1, "v").into())], &[(P0, NextOffset(1))]).expect("applied");
    store.set_restored().expect("written");
    assert!(body(&store, "k").is_some());
    store.reset(&identity(), &[NextOffset(0)]).expect("written");
    assert_eq!(body(&store, "k"), None);
    let expected = Checkpoint { identity: Some(identity()), restored: false, next: vec![NextOffset(0)] };
    assert_eq!(store.checkpoint().expect("readable"), expected);
}

/// The interleaving that would leave a stale record in the cache: a reader that read before a commit inserts after it.
#[test]
fn a_commit_invalidates_reads_under_way() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(dir.path());
    store.apply(&mut vec![(b"k".as_slice(), entry(P0, 0, 1, "old").into())], &[]).expect("applied");
    let GuardResult::Guard(guard) = store.cache.get_value_or_guard(&CacheKey::from(b"k".as_slice()), None)
    else {
        panic!("nothing is cached yet")
    };
    let old = store.read(b"k").expect("readable").expect("there");
    store.apply(&mut vec![(b"k".as_slice(), entry(P0, 1, 2, "new").into())], &[]).expect("applied");
    assert!(guard.insert(old).is_err(), "the stale record was cached");
    assert_eq!(body(&store, "k").expect("there").0, "new");
}

#[test]
fn readers_never_see_time_run_backwards_while_a_writer_commits() {
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
    let at = |ttl, now| Entry::new(Position { partition: 0, offset: 0 }, 0, ttl, b"r").state(now);
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

fn filled(keys: &[&str]) -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(dir.path());
    store.reset(&identity(), &[NextOffset(0)]).expect("written");
    let entries = keys.iter().zip(0..).map(|(key, offset)| (key.as_bytes(), entry(P0, offset, 1, key).into()));
    store.apply(&mut entries.collect(), &[]).expect("applied");
    (dir, store)
}

fn scan(
    store: &Store,
    from: Bound<&str>,
    prefix: &str,
    end: &str,
    limit: usize,
) -> (Vec<String>, Option<String>) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let from = from.map(|key| key.as_bytes().to_vec());
    let keep = |entry: &Entry| !entry.as_bytes().ends_with(b"gone");
    let (found, last) =
        store.scan(&from, prefix.as_bytes(), end.as_bytes(), limit, keep).expect("the store answers");
    (found.iter().map(|entry| text(&entry.as_bytes()[28..])).collect(), last.map(|key| text(&key)))
}

#[test]
fn a_scan_is_in_key_order_and_says_whether_there_is_more() {
    let (_dir, store) = filled(&["b", "a/2", "a/1", "a/3gone", "a", "c", "a/4"]);
    let all = |from, prefix, end, limit| scan(&store, from, prefix, end, limit);
    let texts = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>();
    let from_start = Bound::Included("");
    assert_eq!(all(from_start, "", "", 9), (texts(&["a", "a/1", "a/2", "a/4", "b", "c"]), None));
    assert_eq!(all(from_start, "", "", 6), (texts(&["a", "a/1", "a/2", "a/4", "b", "c"]), None));
    assert_eq!(all(from_start, "", "", 3), (texts(&["a", "a/1", "a/2"]), Some("a/2".into())));
    // The next page begins with the one that is left out, which counts as looked at.
    assert_eq!(all(Bound::Excluded("a/2"), "", "", 1), (texts(&["a/4"]), Some("a/4".into())));
    assert_eq!(all(Bound::Included("a/"), "a/", "", 9), (texts(&["a/1", "a/2", "a/4"]), None));
    assert_eq!(all(Bound::Included("a/"), "a/", "", 3), (texts(&["a/1", "a/2", "a/4"]), None));
    assert_eq!(all(Bound::Included("a/1"), "", "a/2", 9), (texts(&["a/1"]), None));
    assert_eq!(all(Bound::Included("c"), "", "a", 9), (vec![], None));
    assert_eq!(all(Bound::Excluded("c"), "", "", 9), (vec![], None));
}

#[test]
fn a_page_of_a_scan_is_bounded_in_bytes_and_in_keys_looked_at() {
    let large = "v".repeat(SCAN_BYTES / 2);
    let (_dir, store) = filled(&[]);
    let mut changes: Vec<_> = ["1", "2", "3", "4"]
        .iter()
        .zip(0..)
        .map(|(key, at)| (key.as_bytes(), entry(P0, at, 1, &large).into()))
        .collect();
    store.apply(&mut changes, &[]).expect("applied");
    let (found, last) = scan(&store, Bound::Included(""), "", "", 9);
    assert_eq!((found.len(), last.as_deref()), (2, Some("2")));

    let keys: Vec<_> = (0..=SCAN_KEYS).map(|number| format!("{number:06}")).collect();
    let (_dir, store) = filled(&[]);
    let mut changes: Vec<_> =
        keys.iter().zip(0..).map(|(key, at)| (key.as_bytes(), entry(P0, at, 1, "gone").into())).collect();
    store.apply(&mut changes, &[]).expect("applied");
    let (found, last) = scan(&store, Bound::Included(""), "", "", 9);
    assert_eq!((found.len(), last.as_ref()), (0, Some(&keys[SCAN_KEYS - 1])));
    let last = last.expect("there is more");
    assert_eq!(scan(&store, Bound::Excluded(&last), "", "", 9), (vec![], None));
}
