//! The store's figures, for `/status` and `/metrics`.

use std::path::Path;
use std::sync::atomic::Ordering;

use super::{Store, StoreError};

/// Figures for `/status` and `/metrics`.
#[derive(Clone, Copy, Debug)]
pub struct StoreStats {
    /// Keys, delete markers included.
    pub records: u64,
    /// Keys with pending repairs: see [`Store::needed_repairs`].
    pub pending_repairs: u64,
    /// Keys of which it is not known what the log says: see [`Store::versioned`].
    pub keys_in_doubt: u64,
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
    pub(super) fn of(dir: &Path) -> Option<Self> {
        let disk = rustix::fs::statvfs(dir).ok()?;
        Some(Self { free: disk.f_bavail * disk.f_frsize, size: disk.f_blocks * disk.f_frsize })
    }
}

impl Store {
    /// # Errors
    /// When LMDB fails.
    pub fn stats(&self) -> Result<StoreStats, StoreError> {
        let generation = self.current.load_full();
        let (environment, cache) = (&generation.environment, &generation.cache);
        let txn = environment.env.read_txn()?;
        let (info, records) = (environment.env.info(), environment.records.stat(&txn)?);
        let used_pages = environment.used_pages(&txn)?;
        // Pages are counted from 0, and the first two are LMDB's own.
        let pages = (info.last_page_number as u64).saturating_sub(1);
        Ok(StoreStats {
            records: records.entries as u64,
            pending_repairs: environment.pending_repairs.stat(&txn)?.entries as u64,
            keys_in_doubt: environment.doubts.stat(&txn)?.entries as u64,
            bytes: environment.env.real_disk_size()?,
            map_bytes: info.map_size as u64,
            used_pages,
            free_pages: pages.saturating_sub(used_pages),
            page_bytes: u64::from(records.page_size),
            disk: Disk::of(environment.env.path()),
            cache_records: cache.len(),
            cache_bytes: cache.bytes(),
            cache_capacity_bytes: cache.capacity_bytes(),
            cache_hits: self.counters.hits(),
            cache_misses: self.counters.misses.load(Ordering::Relaxed),
            cache_evictions: self.counters.evictions.load(Ordering::Relaxed),
        })
    }
}
