//! The store: the newest record of every key and the next offset of every partition, in LMDB, with a bounded cache of
//! records in memory over it. Nobody else knows heed; only the replica writes.

mod entry;
mod key_state;
mod upkeep;

use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use heed::byteorder::BigEndian;
use heed::types::{Bytes as RawBytes, Str, U32, Unit};
use heed::{Database, Env, EnvOpenOptions, RoTxn, RwTxn};
use quick_cache::sync::{Cache, GuardResult};
use quick_cache::{DefaultHashBuilder, Equivalent, Lifecycle, Weighter};
use smallvec::SmallVec;

pub use self::entry::{Entry, State};
pub use self::key_state::{Change, Debt};
use self::key_state::{KeyState, Outcome, parse_debts, parse_others};
pub use self::upkeep::Owed;
use crate::log::LogIdentity;
use crate::position::NextOffset;

/// Changed whenever the bytes in the store mean something else; a store of another format is built anew.
const FORMAT: &str = "2";
/// Address space reserved for LMDB's map, not memory and not disk. Halved until the system grants it.
const MAP_BYTES: usize = 1 << 40;
/// A page of a scan ends with the record that reaches this.
const SCAN_BYTES: usize = 1 << 20;
/// A page of a scan looks at no more keys, so that a range of deleted ones holds no transaction for long.
const SCAN_KEYS: usize = 50_000;
/// One reader slot for each thread that ever reads.
const MAX_READERS: u32 = 1024;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the store in {path} can't be opened: {source}")]
    Open { path: String, source: heed::Error },
    #[error("the store failed: {0}")]
    Lmdb(#[from] heed::Error),
    #[error(
        "the store holds something that it never wrote under '{0}'; stop the node and remove its data folder, it is rebuilt from the log"
    )]
    Corrupt(&'static str),
}

/// Where a record was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    Cache,
    Store,
}

pub struct Store {
    env: Env,
    /// Key → [`Entry`]'s bytes.
    records: Database<RawBytes, RawBytes>,
    /// Key → its records in further partitions, older than that in `records`.
    others: Database<RawBytes, RawBytes>,
    /// Key → [`Debt`]s.
    debts: Database<RawBytes, RawBytes>,
    /// When a sweep has to do with a key (ms, i64), and the key.
    due: Database<RawBytes, Unit>,
    /// Partition → next offset.
    positions: Database<U32<BigEndian>, heed::types::I64<BigEndian>>,
    /// `format`, `identity`, `restored`.
    meta: Database<Str, Str>,
    cache: Cache<CacheKey, Entry, EntryWeight, DefaultHashBuilder, Evictions>,
    evictions: Evictions,
    cache_hits: AtomicU64,
    cache_misses: AtomicU64,
}

/// What the store knows about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checkpoint {
    /// The log that the records came from; `None` in a new store.
    pub identity: Option<LogIdentity>,
    /// Whether the node has been caught up with that log before: the store may answer reads.
    pub restored: bool,
    /// Per partition.
    pub next: Vec<NextOffset>,
}

/// What came of applying records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Keys whose record is another now, or gone.
    pub changed: usize,
    /// Records of the store that a tombstone with a condition removed.
    pub trimmed: usize,
    /// Records of the log whose condition was not met.
    pub void: usize,
}

impl Applied {
    fn count(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Trimmed => self.trimmed += 1,
            Outcome::Void => self.void += 1,
            Outcome::Nothing | Outcome::Written => {}
        }
    }
}

/// Figures for `/status` and `/metrics`.
#[derive(Clone, Copy, Debug)]
pub struct StoreStats {
    /// Keys, delete markers included.
    pub records: u64,
    /// Size of LMDB's file.
    pub bytes: u64,
    /// It can't grow beyond this.
    pub map_bytes: u64,
    /// Pages of the file that hold something, and those that will be used again.
    pub used_pages: u64,
    pub free_pages: u64,
    pub page_bytes: u64,
    /// Of the file system: what is free for this process, and all; `None` if the system doesn't tell.
    pub disk: Option<Disk>,
    pub cache_records: u64,
    pub cache_bytes: u64,
    pub cache_capacity_bytes: u64,
    pub cache_hits: u64,
    pub cache_misses: u64,
    pub cache_evictions: u64,
}

/// A file system, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Disk {
    pub free: u64,
    pub size: u64,
}

impl Store {
    /// Opens the store in `dir`, or makes an empty one.
    ///
    /// # Errors
    /// When LMDB can't open it, with the folder's name.
    pub fn open(dir: &Path, cache_bytes: u64) -> Result<Self, StoreError> {
        let wrap = |source| StoreError::Open { path: dir.display().to_string(), source };
        std::fs::create_dir_all(dir).map_err(|error| wrap(error.into()))?;
        let env = open_env(dir, 6).map_err(wrap)?;
        let mut txn = env.write_txn()?;
        let records = env.create_database(&mut txn, Some("records"))?;
        let positions = env.create_database(&mut txn, Some("positions"))?;
        let meta: Database<Str, Str> = env.create_database(&mut txn, Some("meta"))?;
        let others = env.create_database(&mut txn, Some("others"))?;
        let debts = env.create_database(&mut txn, Some("debts"))?;
        let due = env.create_database(&mut txn, Some("due"))?;
        txn.commit()?;
        // Without an estimate of their number the cache can't size its shards; a kilobyte each is a guess, not a limit.
        let estimate = usize::try_from(cache_bytes / 1024).unwrap_or(usize::MAX).clamp(64, 1 << 20);
        let evictions = Evictions::default();
        let hashes = DefaultHashBuilder::default();
        let cache = Cache::with(estimate, cache_bytes, EntryWeight, hashes, evictions.clone());
        let (cache_hits, cache_misses) = Default::default();
        let store = Self {
            env,
            records,
            others,
            debts,
            due,
            positions,
            meta,
            cache,
            evictions,
            cache_hits,
            cache_misses,
        };
        store.check_format()?;
        Ok(store)
    }

    fn check_format(&self) -> Result<(), StoreError> {
        let mut txn = self.env.write_txn()?;
        if self.meta.get(&txn, "format")? != Some(FORMAT) {
            self.clear(&mut txn)?;
        }
        Ok(txn.commit()?)
    }

    /// The newest record of a key, delete markers included. Takes microseconds; a page that the system has dropped
    /// from its page cache is read from disk.
    ///
    /// # Errors
    /// When LMDB fails.
    pub fn get(&self, key: &[u8]) -> Result<Option<(Entry, Tier)>, StoreError> {
        if key.is_empty() || key.len() > self.max_key_bytes() {
            return Ok(None);
        }
        if let Some(entry) = self.cache.get(&KeyRef(key)) {
            self.cache_hits.fetch_add(1, Ordering::Relaxed);
            return Ok(Some((entry, Tier::Cache)));
        }
        // The guard makes the cache coherent: a commit that changes this key while it is being read removes the
        // guard's placeholder, and the old entry is then not inserted.
        match self.cache.get_value_or_guard(&CacheKey::from(key), Some(std::time::Duration::ZERO)) {
            GuardResult::Value(entry) => {
                self.cache_hits.fetch_add(1, Ordering::Relaxed);
                Ok(Some((entry, Tier::Cache)))
            }
            GuardResult::Guard(guard) => {
                let found = self.read(key)?;
                if let Some(entry) = &found {
                    let _ = guard.insert(entry.clone());
                }
                Ok(found.map(|entry| (entry, Tier::Store)))
            }
            GuardResult::Timeout => Ok(self.read(key)?.map(|entry| (entry, Tier::Store))),
        }
    }

    fn read(&self, key: &[u8]) -> Result<Option<Entry>, StoreError> {
        self.cache_misses.fetch_add(1, Ordering::Relaxed);
        let txn = self.env.read_txn()?;
        match self.records.get(&txn, key)? {
            None => Ok(None),
            Some(bytes) => Entry::from_bytes(bytes).map(Some).ok_or(StoreError::Corrupt("records")),
        }
    }

    /// Records in key order that `keep` wants: at most `limit`, and no more once they have [`SCAN_BYTES`] or
    /// [`SCAN_KEYS`] were looked at. With the last key looked at if there are more. `end` is exclusive; empty for none.
    ///
    /// # Errors
    /// When LMDB fails.
    pub fn scan(
        &self,
        from: &Bound<Vec<u8>>,
        prefix: &[u8],
        end: &[u8],
        limit: usize,
        keep: impl Fn(&Entry) -> bool,
    ) -> Result<(Vec<Entry>, Option<Vec<u8>>), StoreError> {
        let from = match from {
            // LMDB has no empty keys.
            Bound::Included(key) if key.is_empty() => Bound::Unbounded,
            bound => bound.as_ref().map(Vec::as_slice),
        };
        let end = if end.is_empty() { Bound::Unbounded } else { Bound::Excluded(end) };
        // One short transaction a page: a long one would keep LMDB from using freed pages again.
        let txn = self.env.read_txn()?;
        let (mut found, mut bytes, mut last) = (Vec::new(), 0, None);
        for (looked_at, item) in self.records.range(&txn, &(from, end))?.enumerate() {
            let (key, stored) = item?;
            if !key.starts_with(prefix) {
                return Ok((found, None));
            }
            if found.len() == limit || bytes >= SCAN_BYTES || looked_at == SCAN_KEYS {
                return Ok((found, last.map(<[u8]>::to_vec)));
            }
            last = Some(key);
            let entry = Entry::from_bytes(stored).ok_or(StoreError::Corrupt("records"))?;
            if keep(&entry) {
                bytes += stored.len();
                found.push(entry);
            }
        }
        Ok((found, None))
    }

    /// What the store stands for.
    ///
    /// # Errors
    /// When LMDB fails.
    pub fn checkpoint(&self) -> Result<Checkpoint, StoreError> {
        let txn = self.env.read_txn()?;
        let identity = match self.meta.get(&txn, "identity")? {
            None => None,
            Some(json) => Some(serde_json::from_str(json).map_err(|_| StoreError::Corrupt("identity"))?),
        };
        let mut next = Vec::new();
        for item in self.positions.iter(&txn)? {
            let (partition, offset) = item?;
            if partition as usize != next.len() {
                return Err(StoreError::Corrupt("positions"));
            }
            next.push(NextOffset(offset));
        }
        Ok(Checkpoint { identity, restored: self.meta.get(&txn, "restored")?.is_some(), next })
    }

    /// Empties the store and ties it to a log, to be read from `next` on. All or nothing.
    ///
    /// # Errors
    /// When LMDB fails; the store is then as before.
    pub fn reset(&self, identity: &LogIdentity, next: &[NextOffset]) -> Result<(), StoreError> {
        let mut txn = self.env.write_txn()?;
        self.clear(&mut txn)?;
        let json = serde_json::to_string(identity).map_err(|_| StoreError::Corrupt("identity"))?;
        self.meta.put(&mut txn, "identity", &json)?;
        for (partition, offset) in (0..).zip(next) {
            self.positions.put(&mut txn, &partition, &offset.0)?;
        }
        txn.commit()?;
        self.cache.clear();
        Ok(())
    }

    /// Remembers that the node has been caught up: from now on the store answers reads.
    ///
    /// # Errors
    /// When LMDB fails.
    pub fn set_restored(&self) -> Result<(), StoreError> {
        let mut txn = self.env.write_txn()?;
        self.meta.put(&mut txn, "restored", "yes")?;
        Ok(txn.commit()?)
    }

    /// Applies records, in the order of the log within each partition, and the next offsets that follow them, in one
    /// transaction.
    ///
    /// A write that is not newer than the one in the store changes nothing, so applying twice is harmless.
    ///
    /// # Errors
    /// When LMDB fails (for example on a full disk); nothing is changed then.
    pub fn apply(
        &self,
        changes: &mut Vec<(&[u8], Change)>,
        next: &[(i32, NextOffset)],
    ) -> Result<Applied, StoreError> {
        // In key order, a page is written once however many of its keys change; the sort is stable, so each key's changes
        // keep the order of their partition.
        changes.sort_by_key(|(key, _)| *key);
        let mut txn = self.env.write_txn()?;
        // Both are so nearly always.
        let no_others = self.others.is_empty(&txn)?;
        let no_debts = self.debts.is_empty(&txn)?;
        let (mut applied, mut changed) = (Applied::default(), Vec::with_capacity(changes.len()));
        let mut changes = changes.drain(..).peekable();
        while let Some((key, first)) = changes.next() {
            let mut state = self.key_state(&txn, key, no_others, no_debts)?;
            let before = state.entries.first().cloned();
            let (others, debts) = (state.others(), state.debts());
            applied.count(state.apply(first));
            while let Some((_, change)) = changes.next_if(|(next, _)| *next == key) {
                applied.count(state.apply(change));
            }
            state.sort();
            save(self.others, &mut txn, key, &others, &state.others())?;
            save(self.debts, &mut txn, key, &debts, &state.debts())?;
            let newest = state.entries.into_iter().next();
            if newest.as_ref().map(Entry::position) == before.as_ref().map(Entry::position) {
                continue;
            }
            if let Some(at) = before.as_ref().and_then(upkeep::due) {
                self.due.delete(&mut txn, &upkeep::due_key(at, key))?;
            }
            if let Some(at) = newest.as_ref().and_then(upkeep::due) {
                self.due.put(&mut txn, &upkeep::due_key(at, key), &())?;
            }
            match &newest {
                Some(entry) => self.records.put(&mut txn, key, entry.as_bytes())?,
                None => drop(self.records.delete(&mut txn, key)?),
            }
            changed.push((key, newest));
        }
        for (partition, offset) in next {
            self.positions.put(&mut txn, &partition.cast_unsigned(), &offset.0)?;
        }
        txn.commit()?;
        applied.changed = changed.len();
        for (key, newest) in changed {
            let replaced = newest.is_some_and(|entry| self.cache.replace(key.into(), entry, true).is_ok());
            if !replaced {
                self.cache.remove(&KeyRef(key));
            }
        }
        Ok(applied)
    }

    fn key_state(
        &self,
        txn: &RoTxn<'_>,
        key: &[u8],
        no_others: bool,
        no_debts: bool,
    ) -> Result<KeyState, StoreError> {
        let mut state = KeyState::default();
        if let Some(bytes) = self.records.get(txn, key)? {
            state.entries.push(Entry::from_bytes(bytes).ok_or(StoreError::Corrupt("records"))?);
        }
        if !no_others && let Some(bytes) = self.others.get(txn, key)? {
            state.entries.extend(parse_others(bytes)?);
        }
        if !no_debts && let Some(bytes) = self.debts.get(txn, key)? {
            state.debts = parse_debts(bytes)?;
        }
        Ok(state)
    }

    fn clear(&self, txn: &mut RwTxn<'_>) -> Result<(), StoreError> {
        for database in [self.records, self.others, self.debts] {
            database.clear(txn)?;
        }
        self.due.clear(txn)?;
        self.positions.clear(txn)?;
        self.meta.clear(txn)?;
        Ok(self.meta.put(txn, "format", FORMAT)?)
    }

    /// The longest key that LMDB can hold, in bytes.
    #[must_use]
    pub fn max_key_bytes(&self) -> usize {
        // Also behind a time, in `due`.
        self.env.max_key_size() - size_of::<i64>()
    }

    /// # Errors
    /// When LMDB fails.
    pub fn stats(&self) -> Result<StoreStats, StoreError> {
        let txn = self.env.read_txn()?;
        let (info, records) = (self.env.info(), self.records.stat(&txn)?);
        let (due, positions, meta) =
            (self.due.stat(&txn)?, self.positions.stat(&txn)?, self.meta.stat(&txn)?);
        let (others, debts) = (self.others.stat(&txn)?, self.debts.stat(&txn)?);
        let used =
            |stat: &heed::DatabaseStat| (stat.branch_pages + stat.leaf_pages + stat.overflow_pages) as u64;
        let used_pages = [&records, &others, &debts, &due, &positions, &meta].into_iter().map(used).sum();
        // Pages are counted from 0, and the first two are LMDB's own.
        let pages = (info.last_page_number as u64).saturating_sub(1);
        Ok(StoreStats {
            records: records.entries as u64,
            bytes: self.env.real_disk_size()?,
            map_bytes: info.map_size as u64,
            used_pages,
            free_pages: pages.saturating_sub(used_pages),
            page_bytes: u64::from(records.page_size),
            disk: rustix::fs::statvfs(self.env.path()).ok().map(|disk| Disk {
                free: disk.f_bavail * disk.f_frsize,
                size: disk.f_blocks * disk.f_frsize,
            }),
            cache_records: self.cache.len() as u64,
            cache_bytes: self.cache.weight(),
            cache_capacity_bytes: self.cache.capacity(),
            cache_hits: self.cache_hits.load(Ordering::Relaxed),
            cache_misses: self.cache_misses.load(Ordering::Relaxed),
            cache_evictions: self.evictions.0.load(Ordering::Relaxed),
        })
    }
}

/// Opens an LMDB environment of this process's own.
#[allow(unsafe_code)]
pub(crate) fn open_env(dir: &Path, databases: u32) -> heed::Result<Env> {
    let mut map_bytes = MAP_BYTES;
    loop {
        let mut options = EnvOpenOptions::new();
        options.max_dbs(databases).max_readers(MAX_READERS).map_size(map_bytes);
        // SAFETY: the map must not be changed behind LMDB's back. The folder is locked by `DataDir` for this process,
        // and nothing else in this process opens the file.
        match unsafe { options.open(dir) } {
            Err(heed::Error::Io(error))
                if error.kind() == std::io::ErrorKind::OutOfMemory && map_bytes > 1 << 30 =>
            {
                map_bytes /= 2;
            }
            opened => return opened,
        }
    }
}

fn save(
    database: Database<RawBytes, RawBytes>,
    txn: &mut RwTxn<'_>,
    key: &[u8],
    before: &[u8],
    after: &[u8],
) -> Result<(), StoreError> {
    if after == before {
        return Ok(());
    }
    if after.is_empty() {
        database.delete(txn, key)?;
    } else {
        database.put(txn, key, after)?;
    }
    Ok(())
}

/// A key in the cache's table. A short one lies in its slot: a lookup is as fast as it misses few lines of memory.
type CacheKey = SmallVec<[u8; 24]>;

/// A key to look for, which is not copied.
#[derive(PartialEq, Eq, Hash)]
struct KeyRef<'a>(&'a [u8]);

impl Equivalent<CacheKey> for KeyRef<'_> {
    fn equivalent(&self, key: &CacheKey) -> bool {
        self.0 == key.as_slice()
    }
}

/// Counts what leaves the cache for want of room.
#[derive(Clone, Default)]
struct Evictions(Arc<AtomicU64>);

impl Lifecycle<CacheKey, Entry> for Evictions {
    type RequestState = ();

    // Not `on_evict`, which is told of values that are replaced too.
    fn before_evict(&self, (): &mut (), _: &CacheKey, _: &mut Entry) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[derive(Clone)]
struct EntryWeight;

impl Weighter<CacheKey, Entry> for EntryWeight {
    fn weight(&self, key: &CacheKey, entry: &Entry) -> u64 {
        // What a record costs beyond its bytes: the cache's slot, the allocations and their headers.
        const OVERHEAD: usize = 120;
        (key.len() + entry.as_bytes().len() + OVERHEAD) as u64
    }
}

#[cfg(test)]
mod tests;
