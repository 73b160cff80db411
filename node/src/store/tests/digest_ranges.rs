//! Digests of ranges: what parts have adds up, nothing is left out between them, and what is damaged differs.

use super::*;

fn ask(store: &Store, from: &str, to: &str, division: Division, bounds: RangeBounds) -> StoreRanges {
    let (from, to) = (from.as_bytes().to_vec(), to.as_bytes().to_vec());
    let query = RangeQuery { from, to, partitions: Vec::new(), division };
    store.digest_ranges(&query, bounds).expect("the store answers")
}

fn sum(parts: &[StorePart]) -> (u64, Digest) {
    let mut digest = Digest::default();
    for part in parts {
        digest += part.digest;
    }
    (parts.iter().map(|part| part.count).sum(), digest)
}

/// That the parts of a partition add up to its digest, however the store is divided, and that its entries do.
pub(super) fn add_up_to(store: &Store, partition: i32, digest: Digest) {
    let ask = |from: &[u8], division| {
        let query = RangeQuery { from: from.to_vec(), to: Vec::new(), partitions: vec![partition], division };
        store.digest_ranges(&query, RangeBounds::USUAL).expect("the store answers")
    };
    let StoreRanges { entries, parts, .. } = ask(b"", Division::Entries(1_000));
    let count = entries.len() as u64;
    assert_eq!(sum(&parts), (count, digest), "the range of all keys");
    let mut of_entries = Digest::default();
    for entry in &entries {
        of_entries += entry.digest;
    }
    assert_eq!(of_entries, digest, "the entries");
    assert!(entries.iter().all(|entry| entry.position.is_some_and(|at| at.partition == partition)));
    for most in [1, 2, 3, 7] {
        let parts = ask(b"", Division::Parts(most)).parts;
        assert!(parts.len() <= most && sum(&parts) == (count, digest), "{most}: {parts:?}");
        let at: Vec<_> = parts.iter().filter_map(|part| part.to.clone()).collect();
        assert_eq!(at.len() + 1, parts.len(), "the last one goes to the end of all keys");
        assert_eq!(ask(b"", Division::At(at)).parts, parts, "divided at the same keys");
    }
}

fn many(count: usize) -> (Vec<String>, tempfile::TempDir, Store) {
    let keys: Vec<_> = (0..count).map(|n| format!("{n:04}")).collect();
    let (dir, store) = filled(&keys.iter().map(String::as_str).collect::<Vec<_>>());
    (keys, dir, store)
}

#[test]
fn a_range_is_divided_evenly() {
    let (_, _dir, store) = many(1_000);
    let all = ask(&store, "", "", Division::Parts(1), RangeBounds::USUAL).parts;
    assert_eq!((all.len(), all[0].count, &all[0].to), (1, 1_000, &None));
    for most in [2, 3, 16, 64] {
        let parts = ask(&store, "", "", Division::Parts(most), RangeBounds::USUAL).parts;
        assert!(parts.len() <= most && parts.len() > most / 2, "{most}: {}", parts.len());
        let largest = parts.iter().map(|part| part.count).max().expect("parts");
        assert!(largest <= 2_048 / most as u64 * 2, "{most}: {parts:?}");
        assert!(parts.is_sorted_by(|a, b| a.to < b.to || b.to.is_none()), "{parts:?}");
        assert_eq!(sum(&parts), sum(&all));
    }
    let few = ask(&store, "0500", "0503", Division::Parts(16), RangeBounds::USUAL).parts;
    let ends: Vec<_> = few.iter().map(|part| part.to.as_deref().expect("an end")).collect();
    assert_eq!(ends, [b"0501", b"0502", b"0503"]);
    assert!(few.iter().all(|part| part.count == 1));
}

#[test]
fn divided_at_keys_there_are_all_parts_empty_ones_too() {
    let (_, _dir, store) = many(10);
    let at = ["", "0003", "0003a", "0003b", "0007", "x"].map(|key| key.as_bytes().to_vec());
    let parts = ask(&store, "", "y", Division::At(at[1..].to_vec()), RangeBounds::USUAL).parts;
    let counts: Vec<_> = parts.iter().map(|part| part.count).collect();
    assert_eq!(counts, [3, 1, 0, 3, 3, 0]);
    assert_eq!(parts[5].to.as_deref(), Some(&b"y"[..]));
    let nothing = ask(&store, "0005", "0005", Division::Parts(4), RangeBounds::USUAL);
    assert_eq!((sum(&nothing.parts), nothing.parts.len()), ((0, Digest::default()), 1));
    assert_eq!(nothing.partitions.len(), 1, "how far it is, it says all the same");
}

#[test]
fn a_scan_that_ends_early_says_where_to_go_on() {
    let (keys, _dir, store) = many(100);
    let whole = sum(&ask(&store, "", "", Division::Parts(1), RangeBounds::USUAL).parts);
    let record = 4 + stored(&store, b"0000").expect("an entry").as_stored().len();
    for bounds in [
        RangeBounds { keys: 7, ..RangeBounds::USUAL },
        RangeBounds { bytes: 7 * record, ..RangeBounds::USUAL },
    ] {
        for division in [Division::Parts(3), Division::Entries(1_000), Division::Entries(4)] {
            let (mut from, mut parts, mut entries, mut calls) = (String::new(), Vec::new(), Vec::new(), 0);
            loop {
                let answer = ask(&store, &from, "", division.clone(), bounds);
                let end = answer.parts.last().and_then(|part| part.to.clone());
                parts.extend(answer.parts);
                entries.extend(answer.entries);
                calls += 1;
                let Some(end) = end else { break };
                from = String::from_utf8(end).expect("text");
            }
            assert_eq!(sum(&parts), whole);
            assert_eq!(calls, if matches!(division, Division::Entries(4)) { 25 } else { 15 });
            if let Division::Entries(_) = division {
                assert!(entries.iter().map(|entry| &entry.key).eq(keys.iter().map(String::as_bytes)));
            }
        }
        // What lies behind is not answered as if it were empty.
        let at = vec![b"0003".to_vec(), b"0050".to_vec()];
        let parts = ask(&store, "", "", Division::At(at), bounds).parts;
        assert_eq!((parts.len(), parts[1].count, parts[1].to.as_deref()), (2, 4, Some(&b"0007"[..])));
    }
}

#[test]
fn what_was_changed_behind_its_back_differs_and_what_is_no_entry_has_no_position() {
    let (_, _dir, store) = many(20);
    let before = ask(&store, "", "", Division::Entries(100), RangeBounds::USUAL).entries;
    let kept = store.digests().expect("told").1;
    let generation = store.current.load_full();
    let environment = &generation.environment;
    let mut txn = environment.env.write_txn().expect("a transaction");
    let mut flipped = stored(&store, b"0003").expect("an entry").as_stored().to_vec();
    *flipped.last_mut().expect("a value") ^= 1;
    environment.records.put(&mut txn, b"0003", &flipped).expect("written");
    environment.records.delete(&mut txn, b"0005").expect("written");
    environment.records.put(&mut txn, b"0005a", &flipped).expect("written");
    environment.records.put(&mut txn, b"0007", b"no entry").expect("written");
    environment.older_entries.put(&mut txn, b"0009", b"no entries").expect("written");
    txn.commit().expect("written");
    let after = ask(&store, "", "", Division::Entries(100), RangeBounds::USUAL).entries;
    let other: Vec<_> = after.iter().filter(|entry| !before.contains(entry)).collect();
    let other: Vec<_> = other.iter().map(|entry| (&*entry.key, entry.position.map(|at| at.offset))).collect();
    let expected: [(&[u8], _); 4] =
        [(b"0003", Some(3)), (b"0005a", Some(3)), (b"0007", None), (b"0009", None)];
    assert_eq!(other, expected);
    assert!(after.iter().all(|entry| entry.key != b"0005"));
    assert_eq!(store.digests().expect("told").1, kept, "what is kept knows nothing of it");
}
