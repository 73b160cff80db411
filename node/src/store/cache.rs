//! A byte-bounded cache of records in memory, above one environment.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quick_cache::sync::{Cache, GuardResult};
use quick_cache::{DefaultHashBuilder, Equivalent, Lifecycle, Weighter};
use smallvec::SmallVec;

use super::{Entry, StoreError, Tier};

/// The newest records of the keys that were asked for last.
pub(super) struct RecordCache(
    pub(super) Cache<CacheKey, Entry, EntryWeight, DefaultHashBuilder, CountEvictions>,
);

/// Of all the caches that a store has had, one after the other.
#[derive(Default)]
pub(super) struct CacheCounters {
    pub hits: AtomicU64,
    pub misses: AtomicU64,
    /// Records that left for want of room.
    pub evictions: AtomicU64,
}

impl RecordCache {
    pub fn new(capacity_bytes: u64, counters: &Arc<CacheCounters>) -> Self {
        // Without an estimate of their number the cache can't size its shards; a kilobyte each is a guess, not a limit.
        let estimate = usize::try_from(capacity_bytes / 1024).unwrap_or(usize::MAX).clamp(64, 1 << 20);
        let (hashes, evictions) = (DefaultHashBuilder::default(), CountEvictions(Arc::clone(counters)));
        Self(Cache::with(estimate, capacity_bytes, EntryWeight, hashes, evictions))
    }

    /// A key's record, and where it was found: here, or by `read`, whose answer is then kept.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn get_or_read(
        &self,
        key: &[u8],
        counters: &CacheCounters,
        read: impl FnOnce() -> Result<Option<Entry>, StoreError>,
    ) -> Result<Option<(Entry, Tier)>, StoreError> {
        let hit = |entry| {
            counters.hits.fetch_add(1, Ordering::Relaxed);
            Ok(Some((entry, Tier::Cache)))
        };
        if let Some(entry) = self.0.get(&KeyRef(key)) {
            return hit(entry);
        }
        // The guard keeps the cache equal to the store: a commit that changes this key while it is being read removes the guard's
        // placeholder, and the old entry is then not inserted.
        let guard = match self.0.get_value_or_guard(&CacheKey::from(key), Some(Duration::ZERO)) {
            GuardResult::Value(entry) => return hit(entry),
            GuardResult::Guard(guard) => Some(guard),
            GuardResult::Timeout => None,
        };
        counters.misses.fetch_add(1, Ordering::Relaxed);
        let found = read()?;
        if let (Some(guard), Some(entry)) = (guard, &found) {
            let _ = guard.insert(entry.clone());
        }
        Ok(found.map(|entry| (entry, Tier::Store)))
    }

    /// A key's record was changed by a commit; `None`: it is gone.
    pub fn update(&self, key: &[u8], newest: Option<Entry>) {
        // Only what is asked for is kept.
        let replaced = newest.is_some_and(|entry| self.0.replace(key.into(), entry, true).is_ok());
        if !replaced {
            self.remove(key);
        }
    }

    pub fn remove(&self, key: &[u8]) {
        self.0.remove(&KeyRef(key));
    }

    pub fn len(&self) -> u64 {
        self.0.len() as u64
    }

    pub fn bytes(&self) -> u64 {
        self.0.weight()
    }

    pub fn capacity_bytes(&self) -> u64 {
        self.0.capacity()
    }
}

/// A key in the cache's table. A short one lies in its slot: a lookup is as fast as it misses few lines of memory.
pub(super) type CacheKey = SmallVec<[u8; 24]>;

/// A key to look for, which is not copied.
#[derive(PartialEq, Eq, Hash)]
struct KeyRef<'a>(&'a [u8]);

impl Equivalent<CacheKey> for KeyRef<'_> {
    fn equivalent(&self, key: &CacheKey) -> bool {
        self.0 == key.as_slice()
    }
}

#[derive(Clone)]
pub(super) struct CountEvictions(Arc<CacheCounters>);

impl Lifecycle<CacheKey, Entry> for CountEvictions {
    type RequestState = ();

    // Not `on_evict`, which is told of values that are replaced too.
    fn before_evict(&self, (): &mut (), _: &CacheKey, _: &mut Entry) {
        self.0.evictions.fetch_add(1, Ordering::Relaxed);
    }
}

#[derive(Clone)]
pub(super) struct EntryWeight;

impl Weighter<CacheKey, Entry> for EntryWeight {
    fn weight(&self, key: &CacheKey, entry: &Entry) -> u64 {
        // What a record costs beyond its bytes: the cache's slot, the allocations and their headers.
        const OVERHEAD: usize = 120;
        (key.len() + entry.as_stored().len() + OVERHEAD) as u64
    }
}
