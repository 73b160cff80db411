use std::ops::Bound;

use super::*;
use crate::store::read::{MAX_SCAN_BYTES, MAX_SCAN_KEYS};

fn scan(
    store: &Store,
    from: Bound<&str>,
    prefix: &str,
    end: &str,
    limit: usize,
) -> (Vec<String>, Option<String>) {
    let from = from.map(|key| key.as_bytes().to_vec());
    let keep = |entry: &Entry| !text(entry).ends_with("gone");
    let ScannedPage { entries, last, .. } =
        store.scan(&from, prefix.as_bytes(), end.as_bytes(), limit, keep).expect("the store answers");
    let last = last.map(|key: Vec<u8>| String::from_utf8_lossy(&key).into_owned());
    (entries.iter().map(text).collect(), last)
}

#[test]
fn pages_are_in_key_order_and_say_whether_there_is_more() {
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
fn pages_are_bounded_in_bytes_and_keys_looked_at() {
    let large = "v".repeat(MAX_SCAN_BYTES / 2);
    let (_dir, store) = filled(&[]);
    let mut changes: Vec<_> = ["1", "2", "3", "4"]
        .iter()
        .zip(0..)
        .map(|(key, at)| (key.as_bytes(), entry_of(key, P0, at, 1, &large).into()))
        .collect();
    store.apply(&mut changes, &[]).expect("applied");
    let (found, last) = scan(&store, Bound::Included(""), "", "", 9);
    assert_eq!((found.len(), last.as_deref()), (2, Some("2")));

    let keys: Vec<_> = (0..=MAX_SCAN_KEYS).map(|number| format!("{number:06}")).collect();
    let (_dir, store) = filled(&[]);
    let mut changes: Vec<_> = keys
        .iter()
        .zip(0..)
        .map(|(key, at)| (key.as_bytes(), entry_of(key, P0, at, 1, "gone").into()))
        .collect();
    store.apply(&mut changes, &[]).expect("applied");
    let (found, last) = scan(&store, Bound::Included(""), "", "", 9);
    assert_eq!((found.len(), last.as_ref()), (0, Some(&keys[MAX_SCAN_KEYS - 1])));
    let last = last.expect("there is more");
    assert_eq!(scan(&store, Bound::Excluded(&last), "", "", 9), (vec![], None));
}
