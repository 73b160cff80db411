//! A byte-bounded cache of records in memory, above one environment.
//!
//! It is made for small records: what it holds of one is the [`Entry`] itself, which has the key in it, and a slot of a [`table`]. It is
//! cut into parts, each with a lock of its own, so that readers of different keys seldom meet. What leaves it for want of room is chosen by a
//! variant of S3-FIFO: what comes while there is no room is young at first, and leaves again soon unless it is asked for once more, or
//! was evicted not long ago; of the others, a clock's hand takes the first that nobody has asked for since it last came by. So a scan of
//! everything takes the places of young entries, and leaves the rest.

mod table;
#[cfg(test)]
mod tests;

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;
use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use self::table::{Table, Tag};
use super::{Entry, StoreError, Tier};

/// Bytes of a part, at most: so many that a record on its own takes little of it, and so few that the hashes in its table seldom meet.
const PART_BYTES: u64 = 4 << 20;
/// A record that would take a larger share of the cache is not kept.
const LARGEST_SHARE: u64 = 8;
/// In each part, how many groups of keys there are whose changes are told apart.
const GROUPS: usize = 64;

/// As many keys are looked up together: about as many as the processor can wait for at once.
pub(super) const MOST_TOGETHER: usize = 32;

/// What was found of keys that were looked up together, in their order.
pub type FoundTogether = SmallVec<[Option<Entry>; MOST_TOGETHER]>;

/// The newest records of the keys that were asked for last.
pub(super) struct RecordCache {
    parts: Box<[RwLock<Part>]>,
    /// Nobody outside knows which keys have hashes that meet.
    seed: u64,
    capacity_bytes: u64,
    /// Of all parts.
    bytes: AtomicU64,
    counters: Arc<CacheCounters>,
}

#[derive(Default)]
struct Part {
    table: Table,
    /// How often the keys of each group were changed by commits, or so.
    changes: Vec<u32>,
}

/// Of all the caches that a store has had, one after the other.
#[derive(Default)]
pub(super) struct CacheCounters {
    /// In several, since every read counts.
    hits: [Padded; 16],
    pub misses: AtomicU64,
    /// Records that left for want of room.
    pub evictions: AtomicU64,
}

/// A counter that shares no cache line with another.
#[derive(Default)]
#[repr(align(64))]
struct Padded(AtomicU64);

impl CacheCounters {
    pub fn hits(&self) -> u64 {
        self.hits.iter().map(|hits| hits.0.load(Ordering::Relaxed)).sum()
    }
}

/// Where a key belongs.
#[derive(Clone, Copy, Debug)]
struct Place {
    hash: u64,
    part: usize,
}

impl Place {
    fn tag(self) -> Tag {
        Tag::of(self.hash)
    }

    fn group(self) -> usize {
        (self.hash >> 16) as usize % GROUPS
    }
}

/// A read of a key past the cache, begun when its group had been changed so often.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReadUnderWay {
    place: Place,
    changes: u32,
}

impl RecordCache {
    pub fn new(capacity_bytes: u64, counters: &Arc<CacheCounters>) -> Self {
        let parts = capacity_bytes.div_ceil(PART_BYTES).clamp(1, 1 << 14).next_power_of_two();
        let part = || RwLock::new(Part { table: Table::default(), changes: vec![0; GROUPS] });
        Self {
            parts: (0..parts).map(|_| part()).collect(),
            seed: RandomState::new().hash_one(0),
            capacity_bytes,
            bytes: AtomicU64::new(0),
            counters: Arc::clone(counters),
        }
    }

    fn place(&self, key: &[u8]) -> Place {
        let hash = xxh3_64_with_seed(key, self.seed);
        Place { hash, part: (hash >> 32) as usize & (self.parts.len() - 1) }
    }

    /// A key's record, and where it was found: here, or by `read`, whose answer is then kept.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn get_or_read(
        &self,
        key: &[u8],
        read: impl FnOnce() -> Result<Option<Entry>, StoreError>,
    ) -> Result<Option<(Entry, Tier)>, StoreError> {
        let under_way = match self.get(key) {
            Ok(entry) => return Ok(Some((entry, Tier::Cache))),
            Err(under_way) => under_way,
        };
        let found = read()?;
        if let Some(entry) = &found {
            self.keep(under_way, entry);
        }
        Ok(found.map(|entry| (entry, Tier::Store)))
    }

    /// A key's record; or, if it is not here, what tells later whether the key was changed since.
    pub fn get(&self, key: &[u8]) -> Result<Entry, ReadUnderWay> {
        let place = self.place(key);
        let part = self.parts[place.part].read();
        if let Some(entry) = part.table.get(place.tag(), key) {
            let entry = entry.clone();
            drop(part);
            self.counters.hits[place.part % self.counters.hits.len()].0.fetch_add(1, Ordering::Relaxed);
            return Ok(entry);
        }
        let changes = part.changes[place.group()];
        drop(part);
        self.counters.misses.fetch_add(1, Ordering::Relaxed);
        Err(ReadUnderWay { place, changes })
    }

    /// The records of these keys, as far as they are here; at most [`MOST_TOGETHER`] keys make sense. The processor fetches from memory what is
    /// looked at for all of them at the same time: one read after the other would wait for its own each time. What a commit is
    /// changing is left out.
    pub fn get_together(&self, keys: &[&[u8]]) -> FoundTogether {
        let places = keys.iter().map(|key| self.place(key));
        let places: SmallVec<[Place; MOST_TOGETHER]> = places.collect();
        // Held together: to take one between two of the loops' reads would make the processor wait for those before it. Nobody waits
        // here, so nobody can wait for the other.
        let parts = places.iter().map(|place| self.parts[place.part].try_read());
        let parts: SmallVec<[_; MOST_TOGETHER]> = parts.collect();
        let there =
            || places.iter().zip(&parts).filter_map(|(place, part)| Some((place.tag(), part.as_ref()?)));
        // Each loop needs what the one before has brought.
        let tags = there().fold(0, |seen, (tag, part)| seen ^ part.table.first_tag(tag));
        std::hint::black_box(tags);
        let entries: SmallVec<[&Entry; MOST_TOGETHER]> =
            there().filter_map(|(tag, part)| part.table.first_entry(tag)).collect();
        std::hint::black_box(entries.iter().fold(0, |seen, entry| seen ^ entry.touch()));
        let found = places.iter().zip(&parts).zip(keys);
        let found = found.map(|((place, part), key)| part.as_ref()?.table.get(place.tag(), key).cloned());
        let found: FoundTogether = found.collect();
        let hits = found.iter().flatten().count() as u64;
        if let Some(place) = places.first() {
            self.counters.hits[place.part % self.counters.hits.len()].0.fetch_add(hits, Ordering::Relaxed);
        }
        found
    }

    /// Keeps what was read past the cache, unless a commit may have changed the key since the read began: what was read would then never
    /// be replaced. Returns whether it is kept.
    pub fn keep(&self, ReadUnderWay { place, changes }: ReadUnderWay, entry: &Entry) -> bool {
        let weight = weight(entry);
        if weight > self.capacity_bytes / LARGEST_SHARE {
            return false;
        }
        {
            let mut part = self.parts[place.part].write();
            if part.changes[place.group()] != changes {
                return false;
            }
            match part.table.replace(place.tag(), entry.clone()) {
                // Somebody else has read the same.
                Ok(held) => self.count(weight, self::weight(&held)),
                Err(entry) => {
                    self.count(weight, 0);
                    self.make_room(&mut part);
                    part.table.insert(place.hash, entry);
                }
            }
        }
        self.make_room_elsewhere(place.part);
        true
    }

    /// A key's record was changed by a commit; `None`: it is gone.
    pub fn update(&self, key: &[u8], newest: Option<Entry>) {
        let place = self.place(key);
        {
            let mut part = self.parts[place.part].write();
            let changes = &mut part.changes[place.group()];
            *changes = changes.wrapping_add(1);
            // Only what is asked for is kept.
            match newest {
                Some(newest) if weight(&newest) <= self.capacity_bytes / LARGEST_SHARE => {
                    let weight = weight(&newest);
                    if let Ok(held) = part.table.replace(place.tag(), newest) {
                        self.count(weight, self::weight(&held));
                        self.make_room(&mut part);
                    }
                }
                _ => {
                    if let Some(held) = part.table.remove(place.tag(), key) {
                        self.count(0, weight(&held));
                    }
                }
            }
        }
        self.make_room_elsewhere(place.part);
    }

    pub fn remove(&self, key: &[u8]) {
        self.update(key, None);
    }

    /// As [`RecordCache::remove`] of each of them. Where they are many, everything goes: that takes less time than to look for each.
    pub fn remove_all(&self, keys: &[&[u8]]) {
        if keys.len() <= self.parts.len() {
            for key in keys {
                self.remove(key);
            }
            return;
        }
        for part in &self.parts {
            let mut part = part.write();
            for changes in &mut part.changes {
                *changes = changes.wrapping_add(1);
            }
            let table = std::mem::take(&mut part.table);
            self.count(0, table.entries().map(weight).sum());
        }
    }

    /// Evicts entries of a part while there is too much in all parts together.
    fn make_room(&self, part: &mut Part) {
        while self.bytes() > self.capacity_bytes {
            let Some(evicted) = part.table.evict() else { break };
            part.table.remember(self.place(evicted.key()).hash);
            self.count(0, weight(&evicted));
            self.counters.evictions.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// As [`RecordCache::make_room`], from the other parts: this one has no more to give.
    fn make_room_elsewhere(&self, full: usize) {
        for other in 1..self.parts.len() {
            if self.bytes() <= self.capacity_bytes {
                return;
            }
            self.make_room(&mut self.parts[(full + other) % self.parts.len()].write());
        }
    }

    fn count(&self, added: u64, removed: u64) {
        if added >= removed {
            self.bytes.fetch_add(added - removed, Ordering::Relaxed);
        } else {
            self.bytes.fetch_sub(removed - added, Ordering::Relaxed);
        }
    }

    pub fn len(&self) -> u64 {
        self.parts.iter().map(|part| part.read().table.len() as u64).sum()
    }

    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes
    }
}

/// What an entry costs: its allocation, and its slot.
fn weight(entry: &Entry) -> u64 {
    /// Eleven bytes, of which nearly nine tenths are used.
    const SLOT: usize = 13;
    (size_class(entry.allocated_bytes()) + SLOT) as u64
}

/// What jemalloc, the node's allocator, takes for an allocation: steps of 16 bytes up to 128, and above that four steps in each doubling.
fn size_class(bytes: usize) -> usize {
    let step = match bytes {
        ..=128 => 16,
        _ => (1 << (bytes - 1).ilog2()) / 4,
    };
    bytes.next_multiple_of(step)
}
