//! The search on stores of nodes, in this process: it names the keys that differ, whatever is written meanwhile.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

use bitacora_node::clock::{LogTime, WallTime};
use bitacora_node::log::{LogIdentity, PartitionRead};
use bitacora_node::store::{self, Entry, RangeBounds, RangeQuery, Store};
use bitacora_protocol::NextOffset;
use bitacora_protocol::http::ComparedPartition;
use bitacora_protocol::record::KeyValue;

use super::*;

const PATIENCE: Duration = Duration::from_secs(30);

struct Node {
    _dir: tempfile::TempDir,
    store: Store,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let store = Store::open(dir.path(), 1 << 20).expect("the store opens");
        let identity = LogIdentity { cluster: "c".into(), topic: "t".into(), topic_id: None };
        store.reset(&identity, &[NextOffset(0)], WallTime::from_ms(1)).expect("written");
        store.note_caught_up(WallTime::from_ms(1)).expect("written");
        Self { _dir: dir, store }
    }

    /// Applies records: offset, key and value; and says that everything before `next` is applied.
    fn apply<'a>(&self, records: impl IntoIterator<Item = (i64, &'a str, &'a str)>, next: i64) {
        let entry = |(offset, key, value): (i64, &'a str, &'a str)| {
            let (uuid, timestamp) = ("4b8dd6b5-08c5-4fd3-8e3c-a6f3d4f3c0de", LogTime::from_ms(1));
            let record = KeyValue { key, value, timestamp: 1, source: 1, ttl: 0, uuid };
            (key.as_bytes(), Entry::new(Position { partition: 0, offset }, timestamp, &record).into())
        };
        let mut changes: Vec<_> = records.into_iter().map(entry).collect();
        let read = [PartitionRead::up_to(0, NextOffset(next))];
        self.store.apply_read(&mut changes, &read).expect("applied");
    }
}

/// Two nodes; `meanwhile` happens before each call, which it is told the number of.
struct Pair<'a, F> {
    nodes: &'a [Node; 2],
    bounds: RangeBounds,
    calls: Cell<u64>,
    meanwhile: RefCell<F>,
}

impl<F: FnMut(u64)> Nodes for Pair<'_, F> {
    async fn ask(&self, node: usize, range: &Range, division: Division<'_>) -> Result<DigestRanges, Failure> {
        self.calls.set(self.calls.get() + 1);
        (self.meanwhile.borrow_mut())(self.calls.get());
        let query = RangeQuery {
            from: range.from.0.clone(),
            to: range.to.clone().unwrap_or_default().0,
            partitions: Vec::new(),
            division: match division {
                Division::Parts(most) => store::Division::Parts(most),
                Division::At(keys) => store::Division::At(keys.iter().map(|key| key.0.clone()).collect()),
                Division::Entries => store::Division::Entries(1_000),
            },
        };
        let ranges = self.nodes[node].store.digest_ranges(&query, self.bounds).expect("the store answers");
        let partitions = ranges.partitions.iter().map(|then| ComparedPartition {
            partition: then.partition,
            next: then.next.0,
            comparable: then.is_whole,
        });
        let parts = ranges.parts.into_iter().map(|part| RangePart {
            to: part.to.map(KeyBytes),
            count: part.count,
            digest: part.digest.to_string(),
        });
        let entries = ranges.entries.into_iter().map(|entry| RangeEntry {
            key: KeyBytes(entry.key),
            position: entry.position,
            digest: entry.digest.to_string(),
        });
        Ok(DigestRanges {
            format: "f".into(),
            log: "l".to_owned(),
            partitions: partitions.collect(),
            parts: parts.collect(),
            entries: Some(entries.collect()),
        })
    }
}

async fn found(nodes: &[Node; 2], bounds: RangeBounds, limit: usize, meanwhile: impl FnMut(u64)) -> Found {
    let pair = Pair { nodes, bounds, calls: Cell::new(0), meanwhile: RefCell::new(meanwhile) };
    let mut search = Search::new(pair, limit, PATIENCE);
    search.run().await.expect("both answer");
    search.found
}

fn keys(found: &Found) -> Vec<&str> {
    found.differences.iter().map(|difference| std::str::from_utf8(&difference.key.0).expect("text")).collect()
}

fn nothing(_: u64) {}

/// Records by key, and the offset and value of each.
type Records = BTreeMap<String, (i64, String)>;

fn apply(node: &Node, records: &Records) {
    let next = records.values().map(|(offset, _)| offset + 1).max().unwrap_or_default();
    node.apply(
        records.iter().map(|(key, (offset, value))| (*offset, key.as_str(), value.as_str())),
        next.max(1_000_000),
    );
}

#[tokio::test]
async fn it_names_the_keys_that_differ_and_no_others() {
    for seed in 0..24 {
        let mut random = fastrand::Rng::with_seed(seed);
        let count = [0, 1, 60, 500, 3_000][random.usize(..5)];
        let a: Records = (0..count)
            .map(|offset| (format!("{}", random.u32(..100_000)), (offset, "v".to_owned())))
            .collect();
        let mut b = a.clone();
        let mut changed = BTreeSet::new();
        for n in 0..random.usize(..5) {
            let key = b.keys().nth(random.usize(..b.len().max(1))).cloned().unwrap_or_default();
            match random.u32(..3) {
                0 if !key.is_empty() => drop(b.insert(key.clone(), (b[&key].0, "w".to_owned()))),
                1 if !key.is_empty() => drop(b.remove(&key)),
                _ => {
                    let key = format!("new {n}");
                    b.insert(key.clone(), (900_000 + n as i64, "v".to_owned()));
                    changed.insert(key);
                    continue;
                }
            }
            changed.insert(key);
        }
        // Or one that has lost a whole range.
        if random.bool() {
            let gone: Vec<_> = b.keys().skip(random.usize(..b.len().max(1))).take(200).cloned().collect();
            for key in &gone {
                b.remove(key);
            }
            changed.extend(gone.into_iter().filter(|key| a.contains_key(key)));
        }
        changed.retain(|key| a.get(key) != b.get(key));
        let nodes = [Node::new(), Node::new()];
        let (first, second) = if random.bool() { (0, 1) } else { (1, 0) };
        apply(&nodes[first], &a);
        apply(&nodes[second], &b);
        for bounds in [RangeBounds::USUAL, RangeBounds { keys: 70, ..RangeBounds::USUAL }] {
            let found = found(&nodes, bounds, 10_000, nothing).await;
            assert_eq!(keys(&found), changed.iter().collect::<Vec<_>>(), "seed {seed}, {bounds:?}");
            assert_eq!((found.undecided, found.is_cut), (0, false), "seed {seed}");
        }
    }
}

#[tokio::test]
async fn one_key_of_many_takes_few_calls() {
    let a: Records = (0..20_000).map(|n| (format!("key-{n:06}"), (n, "v".to_owned()))).collect();
    let mut b = a.clone();
    b.insert("key-012345".to_owned(), (12_345, "w".to_owned()));
    let nodes = [Node::new(), Node::new()];
    apply(&nodes[0], &a);
    apply(&nodes[1], &b);
    let found = found(&nodes, RangeBounds::USUAL, 10, nothing).await;
    assert_eq!(keys(&found), ["key-012345"]);
    assert_eq!((found.differences[0].partition, found.entries), (Some(0), 20_000));
    let [Some(one), Some(other)] = &found.differences[0].held else { panic!("both hold it") };
    assert!(one.position == other.position && one.digest != other.digest, "{one:?} {other:?}");
    assert!(found.calls <= 12, "{} calls", found.calls);
}

#[tokio::test]
async fn a_limit_is_enough() {
    let a: Records = (0..3_000).map(|n| (format!("key-{n:06}"), (n, "v".to_owned()))).collect();
    let nodes = [Node::new(), Node::new()];
    apply(&nodes[0], &a);
    apply(&nodes[1], &Records::new());
    let found = found(&nodes, RangeBounds::USUAL, 10, nothing).await;
    assert_eq!((found.differences.len(), found.is_cut), (10, true));
    assert!(found.differences.iter().all(|difference| difference.held[1].is_none()));
}

#[tokio::test]
async fn what_is_being_written_is_no_difference() {
    let all: Vec<_> = (0..2_000).map(|n| format!("key-{n:06}")).collect();
    let nodes = [Node::new(), Node::new()];
    for node in &nodes {
        node.apply((0..).zip(&all).map(|(offset, key)| (offset, key.as_str(), "v")), 2_000);
    }
    // One key is lost at the second node, and never written again.
    let lost = "key-000777";
    nodes[0].apply([(2_000, lost, "lost")], 2_001);
    nodes[1].apply([], 2_001);
    // Before each call one node applies some writes more, and the other what it lacked.
    let (mut random, mut log) = (fastrand::Rng::with_seed(7), Vec::new());
    let mut applied = [0; 2];
    let found = found(&nodes, RangeBounds::USUAL, 100, |call| {
        while log.len() < call as usize * 20 {
            let key = &all[random.usize(..all.len())];
            if key != lost {
                log.push(key.as_str());
            }
        }
        let node = call as usize % 2;
        let new = (applied[node]..log.len()).map(|n| (2_001 + n as i64, log[n], "again"));
        nodes[node].apply(new, 2_001 + log.len() as i64);
        applied[node] = log.len();
    })
    .await;
    assert_eq!((keys(&found), found.undecided), (vec![lost], 0));
}

#[tokio::test]
async fn of_a_node_that_stays_behind_nothing_is_told() {
    let nodes = [Node::new(), Node::new()];
    for node in &nodes {
        node.apply([(0, "a", "v"), (1, "b", "v")], 2);
    }
    nodes[0].apply([(2, "b", "w")], 3);
    let pair = Pair {
        nodes: &nodes,
        bounds: RangeBounds::USUAL,
        calls: Cell::new(0),
        meanwhile: RefCell::new(nothing),
    };
    let mut search = Search::new(pair, 10, Duration::from_millis(1));
    search.run().await.expect("both answer");
    assert_eq!((keys(&search.found), search.found.undecided), (Vec::new(), 1));
}
