//! Digests of ranges of keys, of one moment, by looking at every entry on disk: by these the keys are found in which two stores differ,
//! however that came (`docs/digests.md`).

use std::ops::Bound;

use bitacora_protocol::{NextOffset, Position};
use heed::RoTxn;
use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_128;

use super::digest::{digest_of, digest_of_stored};
use super::environment::Environment;
use super::error::undecoded;
use super::trimming::parse_older_entries;
use super::{Digest, Store, StoreError};
use crate::log::LogTag;

/// What is to be found out about a range of keys.
#[derive(Clone, Debug)]
pub struct RangeQuery {
    /// The first key; empty for the first of all.
    pub from: Vec<u8>,
    /// The key before which the range ends; empty for none.
    pub to: Vec<u8>,
    /// The partitions whose entries count; empty for all.
    pub partitions: Vec<i32>,
    pub division: Division,
}

/// How a range is divided.
#[derive(Clone, Debug)]
pub enum Division {
    /// Into at most so many parts, which have about as many entries each.
    Parts(usize),
    /// At these keys, which ascend and are within the range.
    At(Vec<Vec<u8>>),
    /// Not at all, and its entries are named: at most so many, and those of one key more.
    Entries(usize),
}

/// Where a scan of a range ends early, so that no call holds an LMDB transaction for long, which would keep pages from being used again.
#[derive(Clone, Copy, Debug)]
pub struct RangeBounds {
    pub keys: usize,
    /// Of keys and values.
    pub bytes: usize,
}

impl RangeBounds {
    /// Some tenths of a second where the pages are in memory.
    pub const USUAL: Self = Self { keys: 1_000_000, bytes: 256 << 20 };
}

/// What the store holds of a range of keys.
#[derive(Clone, Debug)]
pub struct StoreRanges {
    pub log: LogTag,
    /// All partitions of the store.
    pub partitions: Vec<PartitionThen>,
    /// Without gaps, in the order of the keys. The last one ends before the range does if the scan ended early.
    pub parts: Vec<StorePart>,
    /// Of [`Division::Entries`].
    pub entries: Vec<StoreRangeEntry>,
}

/// A partition at the moment of a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionThen {
    pub partition: i32,
    pub next: NextOffset,
    /// Whether the store lacks nothing of it, and holds what the log says.
    pub is_whole: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorePart {
    /// The key before which it ends; `None` at the end of all keys.
    pub to: Option<Vec<u8>>,
    /// Entries that count.
    pub count: u64,
    /// The sum of their digests.
    pub digest: Digest,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreRangeEntry {
    pub key: Vec<u8>,
    /// `None` of bytes that are no entry.
    pub position: Option<Position>,
    pub digest: Digest,
}

/// A part that has begun.
#[derive(Default)]
struct Part {
    from: Vec<u8>,
    count: u64,
    digest: Digest,
}

/// Where the next part begins.
enum Cut {
    /// Behind so many entries, as a rule; there are no more parts than `most`.
    Behind {
        most: usize,
        entries: u64,
    },
    /// At the last of these keys; the others come later.
    At(Vec<Vec<u8>>),
    Nowhere,
}

struct Parts {
    /// The last one is that of the key that is looked at.
    parts: Vec<Part>,
    cut: Cut,
}

impl Parts {
    fn begin(from: &[u8], division: &Division) -> Self {
        let cut = match division {
            Division::Parts(most) => Cut::Behind { most: *most, entries: 1 },
            Division::At(keys) => Cut::At(keys.iter().rev().cloned().collect()),
            Division::Entries(_) => Cut::Nowhere,
        };
        Self { parts: vec![Part { from: from.to_vec(), ..Part::default() }], cut }
    }

    /// Before the entries of a key.
    fn come_to(&mut self, key: &[u8]) {
        match &mut self.cut {
            Cut::Behind { most, entries } => {
                while self.parts.last().is_some_and(|last| last.count >= *entries) {
                    if self.parts.len() < *most {
                        self.parts.push(Part { from: key.to_vec(), ..Part::default() });
                    } else {
                        *entries *= 2;
                        self.parts = in_pairs(std::mem::take(&mut self.parts));
                    }
                }
            }
            Cut::At(keys) => {
                while let Some(from) = keys.pop_if(|from| from.as_slice() <= key) {
                    self.parts.push(Part { from, ..Part::default() });
                }
            }
            Cut::Nowhere => {}
        }
    }

    fn add(&mut self, digest: Digest) {
        if let Some(last) = self.parts.last_mut() {
            last.count += 1;
            last.digest += digest;
        }
    }

    /// Those of a range that ends before this key, or at the end of all keys.
    fn end(mut self, end: Option<Vec<u8>>) -> Vec<StorePart> {
        if let Cut::At(keys) = &mut self.cut {
            let before_end = |from: &mut Vec<u8>| end.as_ref().is_none_or(|end| &*from < end);
            while let Some(from) = keys.pop_if(before_end) {
                self.parts.push(Part { from, ..Part::default() });
            }
        }
        let ends = self.parts.iter().skip(1).map(|part| Some(part.from.clone())).chain([end]);
        let ends: Vec<_> = ends.collect();
        self.parts
            .into_iter()
            .zip(ends)
            .map(|(Part { count, digest, .. }, to)| StorePart { to, count, digest })
            .collect()
    }
}

/// Half as many parts, of two each.
fn in_pairs(parts: Vec<Part>) -> Vec<Part> {
    let mut pairs: Vec<Part> = Vec::with_capacity(parts.len());
    for (n, part) in parts.into_iter().enumerate() {
        match pairs.last_mut().filter(|_| n % 2 == 1) {
            None => pairs.push(part),
            Some(first) => {
                first.count += part.count;
                first.digest += part.digest;
            }
        }
    }
    pairs
}

/// An entry on disk: where it is in the log, and its digest. Bytes that are no entry have one of their own.
fn look_at(key: &[u8], stored: &[u8]) -> (Option<Position>, Digest) {
    match digest_of_stored(key, stored) {
        Some((position, digest)) if position.partition >= 0 && position.offset >= 0 => {
            (Some(position), digest)
        }
        _ => (None, Digest(xxh3_128(&[key, stored].concat()))),
    }
}

/// The same of a key's entries in further partitions.
fn look_at_older(key: &[u8], stored: &[u8]) -> Vec<(Option<Position>, Digest)> {
    match parse_older_entries(key, stored) {
        Ok(entries) => entries.iter().map(|entry| (Some(entry.position()), digest_of(entry))).collect(),
        Err(_) => vec![(None, Digest(xxh3_128(&[key, stored].concat())))],
    }
}

/// Looks at the entries of a range, which is not empty. Returns the key at which that ended early.
fn scan(
    environment: &Environment,
    txn: &RoTxn<'_>,
    query: &RangeQuery,
    bounds: RangeBounds,
    parts: &mut Parts,
    entries: &mut Vec<StoreRangeEntry>,
) -> Result<Option<Vec<u8>>, StoreError> {
    let RangeQuery { from, to, partitions, division } = query;
    let range = (
        // LMDB has no empty keys.
        if from.is_empty() { Bound::Unbounded } else { Bound::Included(from.as_slice()) },
        if to.is_empty() { Bound::Unbounded } else { Bound::Excluded(to.as_slice()) },
    );
    let mut records = environment.records.range(txn, &range)?;
    let mut others = environment.older_entries.range(txn, &range)?;
    let (mut record, mut older) = (records.next().transpose()?, others.next().transpose()?);
    let (mut keys, mut bytes) = (0, 0);
    while let Some(key) = record.iter().chain(&older).map(|(key, _)| *key).min() {
        let are_enough = matches!(division, Division::Entries(most) if entries.len() >= *most);
        if keys == bounds.keys || bytes >= bounds.bytes || are_enough {
            return Ok(Some(key.to_vec()));
        }
        parts.come_to(key);
        let mut found = SmallVec::<[_; 2]>::new();
        keys += 1;
        if let Some((_, stored)) = record.filter(|(of, _)| *of == key) {
            bytes += key.len() + stored.len();
            found.push(look_at(key, stored));
            record = records.next().transpose()?;
        }
        if let Some((_, stored)) = older.filter(|(of, _)| *of == key) {
            bytes += key.len() + stored.len();
            found.extend(look_at_older(key, stored));
            older = others.next().transpose()?;
        }
        for (position, digest) in found {
            let is_asked_for =
                position.is_none_or(|at| partitions.is_empty() || partitions.contains(&at.partition));
            // What each node forgets in its own time is nothing.
            if !is_asked_for || digest == Digest::default() {
                continue;
            }
            parts.add(digest);
            if matches!(division, Division::Entries(_)) {
                entries.push(StoreRangeEntry { key: key.to_vec(), position, digest });
            }
        }
    }
    Ok(None)
}

/// How far each partition is.
fn partitions_then(environment: &Environment, txn: &RoTxn<'_>) -> Result<Vec<PartitionThen>, StoreError> {
    let is_certain = environment.is_restored(txn)? && environment.doubts.is_empty(txn)?;
    let mut partitions = Vec::new();
    for item in environment.positions.iter(txn)? {
        let (partition, point) = item.map_err(undecoded("positions"))?;
        let partition = partition.cast_signed();
        let is_whole = is_certain && !environment.is_after_gap(txn, partition)?;
        partitions.push(PartitionThen { partition, next: point.next, is_whole });
    }
    Ok(partitions)
}

impl Store {
    /// What the store that is read holds of a range of keys, of one moment. Looks at each entry on disk, at no more than `bounds`, and keeps
    /// nothing but the parts, and the entries if they are asked for.
    ///
    /// # Errors
    /// When LMDB fails. Bytes that are no entry are no error: they count, so that another store differs there.
    pub fn digest_ranges(&self, query: &RangeQuery, bounds: RangeBounds) -> Result<StoreRanges, StoreError> {
        let generation = self.current.load_full();
        let environment = &generation.environment;
        let txn = environment.env.read_txn()?;
        let partitions = partitions_then(environment, &txn)?;
        let (mut parts, mut entries) = (Parts::begin(&query.from, &query.division), Vec::new());
        let end = if query.to.is_empty() { None } else { Some(query.to.clone()) };
        let is_empty = end.as_ref().is_some_and(|end| *end <= query.from);
        let stopped_at =
            if is_empty { None } else { scan(environment, &txn, query, bounds, &mut parts, &mut entries)? };
        Ok(StoreRanges { log: generation.log, partitions, parts: parts.end(stopped_at.or(end)), entries })
    }
}
