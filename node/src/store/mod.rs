//! The store: the newest record of every key and the next offset of every partition, in LMDB, with a bounded cache of
//! records in memory over it. Nobody else knows heed; only the replica writes.
//!
//! A store that must be built anew can be built beside the one that is read ([`Store::build`]), which it replaces when it
//! is complete; or it arrives as a copy of another node's ([`Store::incoming`]).

mod entry;
mod files;
mod key_state;
mod pages;
mod upkeep;

use std::fs::File;
use std::ops::Bound;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use heed::types::Bytes as RawBytes;
use heed::{CompactionOption, Database, RwTxn};
use quick_cache::sync::{Cache, GuardResult};
use quick_cache::{DefaultHashBuilder, Equivalent, Lifecycle, Weighter};
use smallvec::SmallVec;

pub use self::entry::{Entry, State};
pub(crate) use self::files::open_env;
pub use self::files::{DATA_FILE, FORMAT};
use self::files::{Files, Root, explain};
use self::key_state::Outcome;
pub use self::key_state::{Author, Change, PendingRepair};
pub use self::upkeep::{NeededRepair, Trimmable};
use crate::clock::{LogTime, WallTime};
use crate::log::{LogIdentity, LogTag, Read};
use bitacora_protocol::NextOffset;

/// A page of a scan ends with the record that reaches this.
const SCAN_BYTES: usize = 1 << 20;
/// A page of a scan looks at no more keys, so that a range of deleted ones holds no transaction for long.
const SCAN_KEYS: usize = 50_000;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{why}")]
    Open { why: String, source: heed::Error },
    #[error("the store failed: {0}")]
    Lmdb(#[from] heed::Error),
    #[error("the store's folder failed: {0}")]
    Io(#[from] std::io::Error),
    #[error(
        "the store holds something that it never wrote under '{0}'; stop the node and remove its data folder, it is rebuilt from the log"
    )]
    Corrupt(&'static str),
    #[error(
        "the store in {path} is damaged: {why}; stop the node and remove its data folder, it is rebuilt from the log"
    )]
    Damaged { path: String, why: String },
    #[error("the copy is not that of a store: {0}")]
    Copy(String),
}

impl StoreError {
    /// Whether the same may be tried again, now that it failed: with more room on the disk it may succeed.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        use heed::{Error, MdbError};
        match self {
            Self::Open { .. } | Self::Io(_) => true,
            // After a failure of the meta page LMDB refuses everything until the environment is opened anew.
            Self::Lmdb(error) => !matches!(error, Error::Mdb(MdbError::Panic)),
            Self::Corrupt(_) | Self::Damaged { .. } | Self::Copy(_) => false,
        }
    }
}

/// Where a record was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    Cache,
    Store,
}

pub struct Store {
    root: Root,
    /// What is read.
    current: RwLock<Files>,
    /// What is written, while it is built beside the former.
    building: Mutex<Option<Files>>,
    max_key_bytes: usize,
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
    /// Per partition, the latest write timestamp of all its records below the next offset, and [`LogTime::MIN`] if
    /// there was none; `None` if that is not known.
    pub latest: Vec<Option<LogTime>>,
    /// Per partition, [`Read::epoch`] of the next offset.
    pub epochs: Vec<Option<i32>>,
    /// When everything up to the log's end was last known to be applied; until the first time, when the reading began. By
    /// this machine's clock, and no later than the log's showed: the age of a store is told by the former.
    pub caught_up_at: Option<WallTime>,
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
    /// Keys with pending repairs: see [`Store::needed_repairs`].
    pub pending_repairs: u64,
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

impl Disk {
    /// That of a folder; `None` if the system doesn't tell.
    fn of(dir: &Path) -> Option<Self> {
        let disk = rustix::fs::statvfs(dir).ok()?;
        Some(Self { free: disk.f_bavail * disk.f_frsize, size: disk.f_blocks * disk.f_frsize })
    }
}

impl Store {
    /// Opens the store in a folder of its own, or makes an empty one.
    ///
    /// # Errors
    /// When LMDB can't open it, with the folder's name.
    pub fn open(dir: &Path, cache_bytes: u64) -> Result<Self, StoreError> {
        let root = Root::new(dir);
        let current = root
            .current()
            .map_err(heed::Error::from)
            .map_err(|source| StoreError::Open { why: explain(dir, &source), source })?;
        let current = Files::open(root.path(), current)?;
        // Without an estimate of their number the cache can't size its shards; a kilobyte each is a guess, not a limit.
        let estimate = usize::try_from(cache_bytes / 1024).unwrap_or(usize::MAX).clamp(64, 1 << 20);
        let evictions = Evictions::default();
        let hashes = DefaultHashBuilder::default();
        let cache = Cache::with(estimate, cache_bytes, EntryWeight, hashes, evictions.clone());
        let (cache_hits, cache_misses) = Default::default();
        Ok(Self {
            root,
            // Also behind a time, in `due`.
            max_key_bytes: current.env.max_key_size() - size_of::<i64>(),
            current: RwLock::new(current),
            building: Mutex::default(),
            cache,
            evictions,
            cache_hits,
            cache_misses,
        })
    }

    /// What is read. Held for one key at most: a switch to another store waits for it.
    fn current(&self) -> RwLockReadGuard<'_, Files> {
        // Replaced in one assignment.
        self.current.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn building(&self) -> MutexGuard<'_, Option<Files>> {
        self.building.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is written, and whether that is also what is read.
    fn written(&self) -> (Files, bool) {
        match &*self.building() {
            Some(building) => (building.clone(), false),
            None => (self.current().clone(), true),
        }
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
        let files = self.current();
        let txn = files.env.read_txn()?;
        match files.records.get(&txn, key)? {
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
        let files = self.current().clone();
        let txn = files.env.read_txn()?;
        let (mut found, mut bytes, mut last) = (Vec::new(), 0, None);
        for (looked_at, item) in files.records.range(&txn, &(from, end))?.enumerate() {
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

    /// What the store that is written stands for.
    ///
    /// # Errors
    /// When LMDB fails.
    pub fn checkpoint(&self) -> Result<Checkpoint, StoreError> {
        self.written().0.checkpoint()
    }

    /// Empties the store that is written and ties it to a log, to be read from `next` on; `now` is when that
    /// begins. All or nothing.
    ///
    /// # Errors
    /// When LMDB fails; the store is then as before.
    pub fn reset(
        &self,
        identity: &LogIdentity,
        next: &[NextOffset],
        now: WallTime,
    ) -> Result<(), StoreError> {
        let (files, read) = self.written();
        files.reset(identity, next, now)?;
        if read {
            self.cache.clear();
        }
        Ok(())
    }

    /// Begins a new store beside this one, which is read until [`Store::note_caught_up`] says that the new one is
    /// complete. One that was begun before is given up.
    ///
    /// # Errors
    /// When LMDB or the disk fails; this store stays as it is.
    pub fn build(
        &self,
        identity: &LogIdentity,
        next: &[NextOffset],
        now: WallTime,
    ) -> Result<(), StoreError> {
        let files = Files::open(self.root.path(), self.root.unused()?)?;
        let generation = files.generation;
        if let Err(error) = files.reset(identity, next, now) {
            drop(files);
            self.root.remove(generation);
            return Err(error);
        }
        if let Some(given_up) = self.building().replace(files) {
            self.root.remove(given_up.generation);
        }
        Ok(())
    }

    /// The log that what is read came from.
    ///
    /// # Errors
    /// When LMDB fails.
    pub fn log(&self) -> Result<LogTag, StoreError> {
        let files = self.current().clone();
        let txn = files.env.read_txn()?;
        files.log(&txn)
    }

    /// Whether what is written is not what is read.
    #[must_use]
    pub fn is_building(&self) -> bool {
        self.building().is_some()
    }

    /// Puts an empty store in the place of this one, whose records must not be read any more.
    ///
    /// # Errors
    /// When LMDB or the disk fails; this store then stays.
    pub fn discard(&self) -> Result<(), StoreError> {
        let new = Files::open(self.root.path(), self.root.unused()?)?;
        let generation = new.generation;
        self.replace(new).inspect_err(|_| self.root.remove(generation))
    }

    /// Why a change failed, where, and how to mend it.
    #[must_use]
    pub fn explain(&self, error: StoreError) -> String {
        match error {
            StoreError::Lmdb(error) => explain(self.root.path(), &error),
            StoreError::Io(error) => explain(self.root.path(), &error.into()),
            error => error.to_string(),
        }
    }

    /// Ties the store to the same log by a name that says more.
    ///
    /// # Errors
    /// When LMDB fails.
    pub fn set_identity(&self, identity: &LogIdentity) -> Result<(), StoreError> {
        let files = self.written().0;
        let mut txn = files.env.write_txn()?;
        files.put_identity(&mut txn, identity)?;
        Ok(txn.commit()?)
    }

    /// Remembers that everything up to the log's end was applied at `now`: the store answers reads
    /// from now on, and one that was built beside another takes its place.
    ///
    /// # Errors
    /// When LMDB or the disk fails.
    pub fn note_caught_up(&self, now: WallTime) -> Result<(), StoreError> {
        let (files, read) = self.written();
        files.note_caught_up(now)?;
        if read { Ok(()) } else { self.replace(files) }
    }

    /// Makes other files the store, on disk and for readers.
    fn replace(&self, new: Files) -> Result<(), StoreError> {
        new.env.force_sync()?;
        self.root.point_to(new.generation)?;
        let generation = new.generation;
        let given_up = self.building().take().filter(|files| files.generation != generation);
        let old = std::mem::replace(&mut *self.current.write().unwrap_or_else(PoisonError::into_inner), new);
        // After the switch: who took a placeholder before this can't fill it any more.
        self.cache.clear();
        for removed in [Some(old), given_up].into_iter().flatten() {
            self.root.remove(removed.generation);
        }
        Ok(())
    }

    /// A place for the copy of another node's store.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn incoming(&self) -> Result<Incoming, StoreError> {
        let generation = self.root.unused()?;
        let dir = self.root.path().join(generation.to_string());
        std::fs::create_dir_all(&dir)?;
        Ok(Incoming {
            root: Root::new(self.root.path()),
            generation,
            file: dir.join(DATA_FILE),
            files: None,
            installed: false,
        })
    }

    /// Puts the copy of another node's store in the place of this one.
    ///
    /// # Errors
    /// When LMDB or the disk fails; this store then stays.
    pub fn install(&self, mut incoming: Incoming) -> Result<(), StoreError> {
        let files = incoming.files.take().ok_or(StoreError::Corrupt("copy"))?;
        self.replace(files)?;
        incoming.installed = true;
        Ok(())
    }

    /// A consistent copy of the store that is read, to be written out.
    ///
    /// # Errors
    /// When LMDB fails.
    pub fn copy(&self) -> Result<Copy, StoreError> {
        let files = self.current().clone();
        Ok(Copy { checkpoint: files.checkpoint()?, bytes: files.compact_bytes()?, files })
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
        let read: Vec<_> = next.iter().map(|(partition, next)| Read::up_to(*partition, *next)).collect();
        self.apply_read(changes, &read)
    }

    /// As [`Store::apply`], with all that is known of what was read, be it changes or not.
    ///
    /// # Errors
    /// As [`Store::apply`].
    pub fn apply_read(
        &self,
        changes: &mut Vec<(&[u8], Change)>,
        read: &[Read],
    ) -> Result<Applied, StoreError> {
        // In key order, a page is written once however many of its keys change; the sort is stable, so each key's changes
        // keep the order of their partition.
        changes.sort_by_key(|(key, _)| *key);
        let (files, is_current) = self.written();
        let mut txn = files.env.write_txn()?;
        let is_read = files.is_restored(&txn)?;
        // Both are so nearly always.
        let no_others = files.others.is_empty(&txn)?;
        let no_pending_repairs = files.pending_repairs.is_empty(&txn)?;
        let (mut applied, mut changed) = (Applied::default(), Vec::with_capacity(changes.len()));
        let mut changes = changes.drain(..).peekable();
        while let Some((key, first)) = changes.next() {
            let mut state = files.key_state(&txn, key, is_read, no_others, no_pending_repairs)?;
            let before = state.entries.first().cloned();
            let (others, pending_repairs) = (state.others(), state.pending_repairs());
            applied.count(state.apply(first));
            while let Some((_, change)) = changes.next_if(|(next, _)| *next == key) {
                applied.count(state.apply(change));
            }
            state.sort();
            save(files.others, &mut txn, key, &others, &state.others())?;
            save(files.pending_repairs, &mut txn, key, &pending_repairs, &state.pending_repairs())?;
            let provisional_since = state.provisional_since;
            let newest = state.entries.into_iter().next();
            if newest.as_ref().map(Entry::as_bytes) == before.as_ref().map(Entry::as_bytes) {
                continue;
            }
            if let Some(at) = before.as_ref().and_then(upkeep::due) {
                files.due.delete(&mut txn, &upkeep::due_key(at, key))?;
            }
            let at = newest.as_ref().and_then(|entry| {
                if entry.is_provisional() {
                    Some(provisional_since.max(LogTime::from_ms(0)))
                } else {
                    upkeep::due(entry)
                }
            });
            if let Some(at) = at {
                files.due.put(&mut txn, &upkeep::due_key(at, key), &())?;
            }
            match &newest {
                Some(entry) => files.records.put(&mut txn, key, entry.as_bytes())?,
                None => drop(files.records.delete(&mut txn, key)?),
            }
            changed.push((key, newest));
        }
        for read in read {
            files.put_read(&mut txn, *read)?;
        }
        txn.commit()?;
        applied.changed = changed.len();
        if !is_current {
            return Ok(applied);
        }
        for (key, newest) in changed {
            let replaced = newest.is_some_and(|entry| self.cache.replace(key.into(), entry, true).is_ok());
            if !replaced {
                self.cache.remove(&KeyRef(key));
            }
        }
        Ok(applied)
    }

    /// The longest key that LMDB can hold, in bytes.
    #[must_use]
    pub fn max_key_bytes(&self) -> usize {
        self.max_key_bytes
    }

    /// # Errors
    /// When LMDB fails.
    pub fn stats(&self) -> Result<StoreStats, StoreError> {
        let files = self.current().clone();
        let txn = files.env.read_txn()?;
        let (info, records) = (files.env.info(), files.records.stat(&txn)?);
        let used_pages = files.used_pages(&txn)?;
        // Pages are counted from 0, and the first two are LMDB's own.
        let pages = (info.last_page_number as u64).saturating_sub(1);
        Ok(StoreStats {
            records: records.entries as u64,
            pending_repairs: files.pending_repairs.stat(&txn)?.entries as u64,
            bytes: files.env.real_disk_size()?,
            map_bytes: info.map_size as u64,
            used_pages,
            free_pages: pages.saturating_sub(used_pages),
            page_bytes: u64::from(records.page_size),
            disk: Disk::of(files.env.path()),
            cache_records: self.cache.len() as u64,
            cache_bytes: self.cache.weight(),
            cache_capacity_bytes: self.cache.capacity(),
            cache_hits: self.cache_hits.load(Ordering::Relaxed),
            cache_misses: self.cache_misses.load(Ordering::Relaxed),
            cache_evictions: self.evictions.0.load(Ordering::Relaxed),
        })
    }
}

/// A copy of another node's store on its way in; removed again unless it is installed.
pub struct Incoming {
    root: Root,
    generation: u64,
    /// Where its bytes go.
    file: PathBuf,
    files: Option<Files>,
    installed: bool,
}

impl Incoming {
    /// The file to write, which is not there yet.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Looks at all that was written, and opens it. Takes as long as to read it, unless it is told to stop.
    ///
    /// # Errors
    /// When it is no store of this format, complete and such as a node writes.
    pub fn open(&mut self, stop: &AtomicBool) -> Result<Checkpoint, StoreError> {
        pages::check_copy(File::open(&self.file)?, stop).map_err(StoreError::Copy)?;
        let checked = || {
            let files = Files::open(self.root.path(), self.generation)?;
            let checkpoint = files.checkpoint()?;
            files.check(&checkpoint, stop)?;
            Ok((files, checkpoint))
        };
        let (files, checkpoint) = checked().map_err(|error| match error {
            // It is not this node's data folder that is to be removed.
            StoreError::Corrupt(database) => {
                StoreError::Copy(format!("it holds something under '{database}' that no node writes"))
            }
            error => error,
        })?;
        self.files = Some(files);
        Ok(checkpoint)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if !self.installed {
            self.files = None;
            self.root.remove(self.generation);
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

/// A store to be copied out. Cheap until it is written.
pub struct Copy {
    files: Files,
    /// As of a moment before the copy is made: its positions are the copy's or earlier ones.
    pub checkpoint: Checkpoint,
    /// About as many as will be written.
    pub bytes: u64,
}

impl Copy {
    /// Writes the store as it is now, without free pages, as a file of LMDB. Blocks for as long as `to` takes; until then
    /// pages that writers free are not used again, so the store's file grows by what is written meanwhile.
    ///
    /// # Errors
    /// When LMDB fails or `to` takes no more.
    pub fn write_to(&self, to: impl Into<OwnedFd>) -> Result<(), StoreError> {
        let mut file = File::from(to.into());
        Ok(self.files.env.copy_to_file(&mut file, CompactionOption::Enabled)?)
    }
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
pub(crate) mod copy_tests;
#[cfg(test)]
mod tests;
