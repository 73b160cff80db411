//! The store: the newest record of every key and the next offset of every partition, in LMDB, with a bounded cache of records in memory
//! over it. Nobody else knows LMDB, but for the embedded log; only the replica writes.
//!
//! A store that must be built anew can be built beside the one that is read ([`Store::build`]), which it replaces when it is complete;
//! or it arrives as a copy of another node's ([`Store::incoming`]). Readers see one [`generation`] at a time.

mod apply;
mod cache;
mod changes;
mod check;
mod copy;
mod digest;
mod digest_ranges;
mod entry;
mod environment;
mod error;
mod folder;
mod format;
mod generation;
mod pages;
mod read;
mod repack;
mod shared_bytes;
mod stats;
mod sweep;
mod trimming;

use std::path::Path;
use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

pub use self::apply::{Applied, Decided, Decision, KeyChange};
pub use self::cache::FoundTogether;
pub use self::changes::{ChangedPage, Expired, KeyRange};
pub use self::copy::{Incoming, StoreCopy};
pub use self::digest::{Digest, DigestPoint, PartitionDigests};
pub use self::digest_ranges::{
    Division, PartitionThen, RangeBounds, RangeQuery, StorePart, StoreRangeEntry, StoreRanges,
};
pub use self::entry::{Entry, State, UuidText};
pub use self::environment::{DATA_FILE, FORMAT, PartitionState};
pub use self::error::StoreError;
pub use self::format::EntryHead;
pub use self::pages::{CopyCheck, WholePages};
pub use self::read::{ScannedPage, SnapshotRead, Tier, VersionedRead};
pub use self::stats::{Disk, StoreStats};
pub use self::sweep::Swept;
pub use self::trimming::{Change, Judgement, NeededRepair, PendingRepair, TrimQuery, Trimmable, Writer};

use self::cache::CacheCounters;
use self::environment::{Environment, Otherwise};
use self::error::explain;
use self::folder::StoreFolder;
use self::generation::Generation;
use crate::clock::{LogTime, WallTime};
use crate::log::{Level, LogIdentity, PartitionRead};
use bitacora_protocol::NextOffset;

pub struct Store {
    folder: StoreFolder,
    /// What is read.
    current: ArcSwap<Generation>,
    /// What is written, while it is built beside the former.
    building: Mutex<Option<Environment>>,
    max_key_bytes: usize,
    cache_bytes: u64,
    counters: Arc<CacheCounters>,
    #[cfg(test)]
    after_publishing: tests::Hook,
    /// Held by every [`StoreCopy`], too, which may outlive the store. Last, so that the files are closed when it is dropped.
    in_use: Arc<()>,
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
    /// Per partition, [`crate::log::PartitionRead::epoch`] of the next offset.
    pub epochs: Vec<Option<i32>>,
    /// Per partition, [`PartitionState::after_gap`].
    pub after_gap: Vec<bool>,
    /// Per partition, what the log says of what is behind the next offset.
    pub levels: Vec<Level>,
    /// When everything up to the log's end was last known to be applied; until the first time, when the reading began. By
    /// this machine's clock, and no later than the log's showed: the age of a store is told by the former.
    pub caught_up_at: Option<WallTime>,
    /// Why it may not be read on in, found before: [`Store::note_unfit`].
    pub unfit: Option<String>,
}

impl Checkpoint {
    /// Of after these reads, as far as they go on from it.
    pub fn read_on(&mut self, read: &[PartitionRead]) {
        for read in read {
            let index = read.partition as usize;
            let (Some(next), Some(latest), Some(epoch)) =
                (self.next.get_mut(index), self.latest.get_mut(index), self.epochs.get_mut(index))
            else {
                continue;
            };
            if *next < read.next {
                (*next, *epoch) = (read.next, read.epoch);
                *latest = latest.map(|known| read.latest.map_or(known, |latest| latest.max(known)));
            }
        }
    }
}

/// See [`Store::watch_use`].
pub struct UseOfStore(Weak<()>);

impl UseOfStore {
    /// Whether the store, or a copy of it that is being made, still has LMDB's files open.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        self.0.strong_count() > 0
    }
}

impl Store {
    /// Opens the store in a folder of its own, or makes an empty one. `cache_bytes` bounds the cache.
    ///
    /// # Errors
    /// When LMDB can't open it, with the folder's name.
    pub fn open(dir: &Path, cache_bytes: u64) -> Result<Self, StoreError> {
        Self::open_or(dir, cache_bytes, Otherwise::BeginAnew)
    }

    /// Opens the store that is in a folder, for its content. Where there is none of this format, or no whole one, nothing is changed.
    ///
    /// # Errors
    /// As [`Store::open`], and when there is no such store; the text says why.
    pub fn open_existing(dir: &Path, cache_bytes: u64) -> Result<Self, StoreError> {
        Self::open_or(dir, cache_bytes, Otherwise::Refuse)
    }

    fn open_or(dir: &Path, cache_bytes: u64, otherwise: Otherwise) -> Result<Self, StoreError> {
        let folder = StoreFolder::new(dir);
        let number = match otherwise {
            Otherwise::BeginAnew => folder.current(),
            Otherwise::Refuse => folder.named(),
        };
        let number = number
            .map_err(heed::Error::from)
            .map_err(|source| StoreError::Open { why: explain(dir, &source), source })?;
        let environment = Environment::open_or(folder.path(), number, otherwise)?;
        // Whoever reads the store is told the error then.
        let log = environment.log().unwrap_or_default();
        // Also behind a time, in `sweep_times`.
        let max_key_bytes = environment.env.max_key_size() - size_of::<i64>();
        let counters = Arc::<CacheCounters>::default();
        let current = Generation::new(environment, log, cache_bytes, &counters);
        Ok(Self {
            folder,
            current: ArcSwap::from_pointee(current),
            building: Mutex::default(),
            max_key_bytes,
            cache_bytes,
            counters,
            #[cfg(test)]
            after_publishing: tests::Hook::default(),
            in_use: Arc::default(),
        })
    }

    /// Tells, also once the store is dropped, whether somebody still has it open.
    #[must_use]
    pub fn watch_use(&self) -> UseOfStore {
        UseOfStore(Arc::downgrade(&self.in_use))
    }

    /// The longest key that LMDB can hold, in bytes.
    #[must_use]
    pub fn max_key_bytes(&self) -> usize {
        self.max_key_bytes
    }

    /// Why a change failed, where, and how to mend it.
    #[must_use]
    pub fn explain(&self, error: StoreError) -> String {
        match error {
            StoreError::Lmdb(error) => explain(self.folder.path(), &error),
            StoreError::Io(error) => explain(self.folder.path(), &error.into()),
            error => error.to_string(),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
