//! Digests: what a partition holds, as one number that all replicas agree on at the same position. `docs/digests.md` says what is in it,
//! and why.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::{AddAssign, Sub, SubAssign};

use bitacora_protocol::{NextOffset, Position};
use heed::{BoxedError, BytesDecode, BytesEncode, RoTxn, RwTxn};
use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_128;

use super::environment::Environment;
use super::error::undecoded;
use super::format::Buffer;
use super::{Entry, EntryHead, Store, StoreError};
use crate::log::{LogTag, PartitionRead};

/// Positions that are remembered of each partition, by how round they are: [`level`].
const LEVELS: usize = 16;

/// The sum, modulo 2^128, of the hashes of entries: their order does not matter, and one that goes is subtracted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Digest(pub u128);

impl AddAssign for Digest {
    fn add_assign(&mut self, other: Self) {
        self.0 = self.0.wrapping_add(other.0);
    }
}

impl Sub for Digest {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self(self.0.wrapping_sub(other.0))
    }
}

impl SubAssign for Digest {
    fn sub_assign(&mut self, other: Self) {
        *self = *self - other;
    }
}

/// 32 hexadecimal digits.
impl fmt::Display for Digest {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:032x}", self.0)
    }
}

/// What a partition holds when everything before an offset has been applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DigestPoint {
    pub next: NextOffset,
    pub digest: Digest,
}

/// What a store says of a partition, to be held against what others say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionDigests {
    pub partition: i32,
    /// At positions that were passed, by position.
    pub passed: Vec<DigestPoint>,
    /// Of the store as it is; `None` while it may lack something.
    pub now: Option<DigestPoint>,
}

impl PartitionDigests {
    /// All of them, by position.
    pub fn points(&self) -> impl DoubleEndedIterator<Item = &DigestPoint> {
        self.passed.iter().chain(&self.now)
    }
}

/// Of an entry: nothing for what each node forgets in its own time.
pub(super) fn digest_of(entry: &Entry) -> Digest {
    digest_beside_head(entry, entry.head())
}

/// As [`digest_of`], where the entry's head is known.
fn digest_beside_head(entry: &Entry, head: EntryHead) -> Digest {
    if !counts(&head) {
        return Digest::default();
    }
    if head.ttl > 0 {
        return digest_without_record(entry.key(), head);
    }
    Digest(xxh3_128(entry.key_and_stored()))
}

/// As [`digest_of`], of an entry on disk, with its position; `None` if it is no entry.
pub(super) fn digest_of_stored(key: &[u8], stored: &[u8]) -> Option<(Position, Digest)> {
    let head = EntryHead::of(stored)?;
    let position = head.position;
    if !counts(&head) {
        return Some((position, Digest::default()));
    }
    if head.ttl > 0 {
        return Some((position, digest_without_record(key, head)));
    }
    let mut bytes = super::entry::begin(key, stored.len());
    bytes.extend_from_slice(stored);
    Some((position, Digest(xxh3_128(&bytes))))
}

/// Whether every replica holds the entry: other writers' tombstones and provisional entries go in each node's own time.
fn counts(head: &EntryHead) -> bool {
    !head.is_provisional && (head.has_record || head.ttl > 0)
}

/// Of an entry whose record a sweep drops when it expires: what is left then.
fn digest_without_record(key: &[u8], head: EntryHead) -> Digest {
    let mut bytes: Buffer = super::entry::begin(key, 0);
    EntryHead { has_record: false, ..head }.put(&mut bytes);
    Digest(xxh3_128(&bytes))
}

/// Digests by partition, summed up from entries on disk.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct DigestSums(BTreeMap<i32, Digest>);

impl DigestSums {
    /// Adds an entry on disk; `None` if it is no entry.
    pub fn add(&mut self, key: &[u8], stored: &[u8]) -> Option<()> {
        let (position, digest) = digest_of_stored(key, stored)?;
        *self.0.entry(position.partition).or_default() += digest;
        Some(())
    }

    /// Adds what was summed up elsewhere.
    pub fn add_all(&mut self, other: &Self) {
        for (partition, digest) in &other.0 {
            *self.0.entry(*partition).or_default() += *digest;
        }
    }

    pub fn of(&self, partition: i32) -> Digest {
        self.0.get(&partition).copied().unwrap_or_default()
    }
}

/// What a transaction changes in the digests, by partition.
pub(super) struct DigestChanges {
    /// In the order of the partitions.
    partitions: Vec<PartitionChange>,
    /// Whether the store holds what the log says of every key, but for what a gap may hide.
    is_certain: bool,
}

#[derive(Default)]
struct PartitionChange {
    partition: i32,
    /// Of before the transaction; `None` of a partition that is not among those read.
    before: Option<DigestPoint>,
    /// The position within the transaction whose digest is remembered.
    mark: i64,
    /// What lies before the mark adds so much.
    up_to_mark: Digest,
    /// And everything so much.
    whole: Digest,
}

impl DigestChanges {
    /// Of a transaction that begins, and of what was read for it.
    pub fn begin(
        environment: &Environment,
        txn: &RoTxn<'_>,
        read: &[PartitionRead],
    ) -> Result<Self, StoreError> {
        let mut partitions = Vec::with_capacity(read.len());
        for PartitionRead { partition, next, .. } in read {
            let before = environment.position(txn, *partition)?.unwrap_or_default();
            let mark = roundest(before.next.0, next.0);
            partitions.push(PartitionChange {
                partition: *partition,
                before: Some(before),
                mark,
                ..PartitionChange::default()
            });
        }
        partitions.sort_by_key(|change| change.partition);
        let is_certain = environment.is_restored(txn)? && environment.doubts.is_empty(txn)?;
        Ok(Self { partitions, is_certain })
    }

    /// The record at this position put one entry of a key in the place of another, in its partition.
    pub fn note(&mut self, at: Position, before: Option<&Entry>, after: Option<&Entry>) {
        let mut change = after.map_or_else(Digest::default, digest_of);
        if let Some(before) = before {
            change -= digest_of(before);
        }
        self.add(at, change);
    }

    /// A key of which nothing was known has this entry now, with this head.
    pub fn note_first(&mut self, entry: &Entry, head: EntryHead) {
        self.add(head.position, digest_beside_head(entry, head));
    }

    fn add(&mut self, at: Position, change: Digest) {
        let found = self.partitions.binary_search_by_key(&at.partition, |change| change.partition);
        let index = found.unwrap_or_else(|index| {
            let unread = PartitionChange { partition: at.partition, ..PartitionChange::default() };
            self.partitions.insert(index, unread);
            index
        });
        let partition = &mut self.partitions[index];
        partition.whole += change;
        if at.offset < partition.mark {
            partition.up_to_mark += change;
        }
    }

    /// Writes the digests, and what was read with them. Returns, for each partition that can be compared, the position that was passed
    /// and is to be remembered.
    pub fn finish(
        self,
        environment: &Environment,
        txn: &mut RwTxn<'_>,
        read: &[PartitionRead],
    ) -> Result<Vec<(i32, DigestPoint)>, StoreError> {
        for read in read {
            let change = self.partitions.binary_search_by_key(&read.partition, |change| change.partition);
            let change = change.map_or_else(|_| Digest::default(), |index| self.partitions[index].whole);
            environment.put_read(txn, *read, change)?;
        }
        let is_certain = self.is_certain && environment.doubts.is_empty(txn)?;
        let mut marks = Vec::new();
        for change in &self.partitions {
            let Some(before) = change.before else {
                environment.add_to_digest(txn, change.partition, change.whole)?;
                continue;
            };
            if is_certain
                && change.mark > before.next.0
                && !environment.is_after_gap(txn, change.partition)?
            {
                let mut digest = before.digest;
                digest += change.up_to_mark;
                marks.push((change.partition, DigestPoint { next: NextOffset(change.mark), digest }));
            }
        }
        Ok(marks)
    }
}

/// The roundest number above `start` and not above `end`: that with the most zeros at the end, in binary. Whatever the transactions of two
/// nodes hold, both remember every multiple of a power of two that is larger than any of them.
fn roundest(start: i64, end: i64) -> i64 {
    if start >= end {
        return start;
    }
    let highest_difference = i64::BITS - 1 - (start ^ end).leading_zeros();
    end & (-1 << highest_difference)
}

/// Where a position is remembered: it takes the place of the last that was as round.
fn level(next: NextOffset) -> usize {
    (next.0.trailing_zeros() as usize).min(LEVELS - 1)
}

/// Digests at positions that were passed, of a store that is read. In memory only.
#[derive(Default)]
pub(super) struct DigestMarks(Mutex<BTreeMap<i32, [Option<DigestPoint>; LEVELS]>>);

impl DigestMarks {
    pub fn remember(&self, marks: &[(i32, DigestPoint)]) {
        if marks.is_empty() {
            return;
        }
        let mut all = self.0.lock();
        for (partition, point) in marks {
            all.entry(*partition).or_default()[level(point.next)] = Some(*point);
        }
    }

    fn of(&self, partition: i32) -> Vec<DigestPoint> {
        let mut points: Vec<_> =
            self.0.lock().get(&partition).into_iter().flatten().flatten().copied().collect();
        points.sort_by_key(|point| point.next);
        points
    }
}

impl Store {
    /// The digests of every partition of the store that is read, at its next offset and at some before, and the log that it is of. Of a
    /// partition that may lack something, or of which it is not certain what the log says, only those of before that.
    ///
    /// # Errors
    /// When LMDB fails.
    pub fn digests(&self) -> Result<(LogTag, Vec<PartitionDigests>), StoreError> {
        let generation = self.current.load_full();
        let environment = &generation.environment;
        let txn = environment.env.read_txn()?;
        let is_certain = environment.is_restored(&txn)? && environment.doubts.is_empty(&txn)?;
        let mut all = Vec::new();
        for item in environment.positions.iter(&txn)? {
            let (partition, now) = item.map_err(undecoded("positions"))?;
            let partition = partition.cast_signed();
            let mut passed = generation.digest_marks.of(partition);
            // What was applied since this transaction began comes behind its own.
            passed.retain(|point| point.next < now.next);
            let is_whole = is_certain && !environment.is_after_gap(&txn, partition)?;
            all.push(PartitionDigests { partition, passed, now: is_whole.then_some(now) });
        }
        Ok((generation.log, all))
    }
}

/// A point on disk: the next offset (i64) and the digest (u128), big-endian.
pub(super) struct PointOnDisk;

impl<'a> BytesEncode<'a> for PointOnDisk {
    type EItem = DigestPoint;

    fn bytes_encode(point: &'a DigestPoint) -> Result<Cow<'a, [u8]>, BoxedError> {
        Ok(Cow::Owned([&point.next.0.to_be_bytes()[..], &point.digest.0.to_be_bytes()].concat()))
    }
}

impl BytesDecode<'_> for PointOnDisk {
    type DItem = DigestPoint;

    fn bytes_decode(bytes: &[u8]) -> Result<DigestPoint, BoxedError> {
        let (next, digest) = bytes.split_first_chunk().ok_or("it is too short")?;
        Ok(DigestPoint {
            next: NextOffset(i64::from_be_bytes(*next)),
            digest: Digest(u128::from_be_bytes(digest.try_into()?)),
        })
    }
}
