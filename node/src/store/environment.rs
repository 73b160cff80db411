//! An LMDB environment: the databases of a store, and what of it a crash costs.
//!
//! # What a crash costs
//!
//! The log is the truth, and a store's positions change in the transactions of its records: a commit that is lost is read
//! again. So a commit need not be on the disk when it is done, but the file must stay whole. Measured in release on a
//! virtual disk that other work kept busy (records of 230 bytes, random keys; two runs):
//!
//! | LMDB's mode | a process is killed | the power is cut | median of a commit of 1, of 20 records | 20,000 records a commit |
//! | --- | --- | --- | --- | --- |
//! | default: pages synced, then the meta page | nothing | nothing | 6 to 8 ms, 1.4 to 8 ms | 41,000 to 56,000 /s |
//! | `MDB_NOMETASYNC`: the meta page is synced with the next commit | nothing | the last commit | 0.8 to 1.1 ms, 1.4 to 2.4 ms | 37,000 to 70,000 /s |
//! | `MDB_NOSYNC` | nothing | perhaps the file: pages reach the disk in any order | 33 to 38 µs, 0.3 ms | 77,000 to 112,000 /s |
//! | `MDB_WRITEMAP`, `MDB_MAPASYNC` | nothing | perhaps the file; and a stray pointer breaks it at any time | 7 to 9 µs, 0.1 ms | 125,000 to 198,000 /s |
//!
//! Chosen: `MDB_NOMETASYNC` for a store that answers reads: it is worth keeping when the power fails in a whole data
//! centre, and costs one sync a commit. `MDB_NOSYNC` for one that is being filled, which nobody reads yet: it is synced
//! before it is called complete, and until then the file `UNSYNCED` in its folder names the boot of the machine. Found
//! after another boot, the environment is thrown away unopened; after a kill, filling it goes on.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use heed::byteorder::BigEndian;
use heed::types::{Bytes as RawBytes, DecodeIgnore, I64, Str, U32, Unit};
use heed::{Database, Env, EnvFlags, FlagSetMode, RoTxn, RwTxn};

use super::digest::{Digest, DigestPoint, PointOnDisk};
use super::error::{explain, undecoded};
use super::{Checkpoint, StoreError, pages};
use crate::clock::{LogTime, WallTime};
use crate::lmdb;
use crate::log::{Level, LogIdentity, LogTag, PartitionRead};
use bitacora_protocol::NextOffset;

/// Changed whenever the bytes in the store mean something else; a store of another format is built anew.
pub const FORMAT: &str = "6";
/// In the folder of an environment whose commits are not synced: the boot of the machine in which that began.
const UNSYNCED: &str = "UNSYNCED";
/// LMDB's own name for its file.
pub const DATA_FILE: &str = "data.mdb";
/// In an environment, those of [`Environment`].
const DATABASES: u32 = 11;

/// What is known of a partition at the next offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionState {
    /// Of the next record to read.
    pub next: NextOffset,
    /// Whether compaction may have removed something that was not read, since everything up to the log's end was last applied. What a
    /// conditional write expects can't be judged then: what would tell may be among it.
    pub after_gap: bool,
    pub level: Level,
}

/// An environment and its databases. Cheap to clone; closed when the last clone is gone.
#[derive(Clone)]
pub(super) struct Environment {
    pub env: Env,
    /// Key → [`super::Entry::as_stored`].
    pub records: Database<RawBytes, RawBytes>,
    /// Key → its records in further partitions, older than that in `records`. On disk its name is `others`: with another one
    /// it would be another format, and every node would build its store anew for a word.
    pub older_entries: Database<RawBytes, RawBytes>,
    /// Key → [`super::PendingRepair`]s.
    pub pending_repairs: Database<RawBytes, RawBytes>,
    /// Key → those of them that are doubts.
    pub doubts: Database<RawBytes, RawBytes>,
    /// When a sweep has to look at a key (ms, i64), and the key.
    pub sweep_times: Database<RawBytes, Unit>,
    /// Partition → next offset, and the digest of what the partition holds there.
    pub positions: Database<U32<BigEndian>, PointOnDisk>,
    /// Partition → the latest write timestamp of all records below the next offset (ms, i64; its least if there was
    /// none). Missing where a store from before this was kept has read some already.
    pub latest: Database<U32<BigEndian>, I64<BigEndian>>,
    /// Partition → the leader's epoch of the record before the next offset, if known.
    pub epochs: Database<U32<BigEndian>, I64<BigEndian>>,
    /// The partitions of which [`PartitionState::after_gap`] is true.
    pub gaps: Database<U32<BigEndian>, Unit>,
    /// Partition → its level, if the log has told it.
    pub levels: Database<U32<BigEndian>, U32<BigEndian>>,
    /// `format`, `identity`, `restored`, `caught_up_at`, `unfit`.
    pub meta: Database<Str, Str>,
    /// The number in the name of its folder.
    pub number: u64,
    dir: PathBuf,
}

/// What is done where there is no whole environment of this format.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Otherwise {
    /// An empty one takes its place.
    BeginAnew,
    /// Nothing is changed, and the error says what there is.
    Refuse,
}

impl Environment {
    /// Opens an environment of this format, or makes an empty one.
    pub fn open(store: &Path, number: u64) -> Result<Self, StoreError> {
        Self::open_or(store, number, Otherwise::BeginAnew)
    }

    /// Opens an environment of this format, and does what is said where there is none that is whole.
    pub fn open_or(store: &Path, number: u64, otherwise: Otherwise) -> Result<Self, StoreError> {
        let dir = store.join(number.to_string());
        let is_new = !dir.exists();
        if otherwise == Otherwise::Refuse && !dir.join(DATA_FILE).is_file() {
            return Err(refused(&dir, "holds no store"));
        }
        let opened = Self::open_in(&dir, number, otherwise);
        if is_new && opened.is_err() {
            // A full disk is tried again and again.
            let _ = fs::remove_dir_all(&dir);
        }
        opened
    }

    fn open_in(dir: &Path, number: u64, otherwise: Otherwise) -> Result<Self, StoreError> {
        let wrap = |source| StoreError::Open { why: explain(dir, &source), source };
        let undecodable = |error| match error {
            heed::Error::Decoding(_) => StoreError::Corrupt("meta"),
            error => wrap(error),
        };
        let unsynced = match fs::read(dir.join(UNSYNCED)) {
            Ok(boot) => Some(boot),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(wrap(error.into())),
        };
        if unsynced.is_some() && unsynced != boot().map(String::into_bytes) {
            if otherwise == Otherwise::Refuse {
                return Err(refused(dir, "was being filled when the machine went down: it is not whole"));
            }
            tracing::warn!("{} was being filled when the machine went down; beginning anew", dir.display());
            fs::remove_dir_all(dir).map_err(|error| wrap(error.into()))?;
        }
        fs::create_dir_all(dir).map_err(|error| wrap(error.into()))?;
        match File::open(dir.join(DATA_FILE)) {
            Ok(file) => pages::check_metadata(file)
                .map_err(|why| StoreError::Damaged { path: dir.display().to_string(), why })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(wrap(error.into())),
        }
        let mut env = lmdb::open(dir, DATABASES, EnvFlags::NO_META_SYNC).map_err(wrap)?;
        if has_other_format(&env).map_err(undecodable)? {
            if otherwise == Otherwise::Refuse {
                let why = format!(
                    "has another format than {FORMAT}: use the bitacora-node of the version that wrote it"
                );
                return Err(refused(dir, &why));
            }
            tracing::info!("{} has another format than {FORMAT}; beginning anew", dir.display());
            // Emptied, the file would keep the databases that only the other format has, and so would every copy of it.
            env.prepare_for_closing().wait();
            fs::remove_dir_all(dir)
                .and_then(|()| fs::create_dir_all(dir))
                .map_err(|error| wrap(error.into()))?;
            env = lmdb::open(dir, DATABASES, EnvFlags::NO_META_SYNC).map_err(wrap)?;
        }
        let environment = Self::databases(&env, dir.to_owned(), number).map_err(undecodable)?;
        if unsynced.is_some() {
            environment.leave_unsynced()?;
        }
        Ok(environment)
    }

    fn databases(env: &Env, dir: PathBuf, number: u64) -> heed::Result<Self> {
        let mut txn = env.write_txn()?;
        let environment = Self {
            records: env.create_database(&mut txn, Some("records"))?,
            older_entries: env.create_database(&mut txn, Some("others"))?,
            pending_repairs: env.create_database(&mut txn, Some("pending_repairs"))?,
            doubts: env.create_database(&mut txn, Some("doubts"))?,
            sweep_times: env.create_database(&mut txn, Some("sweep_times"))?,
            positions: env.create_database(&mut txn, Some("positions"))?,
            latest: env.create_database(&mut txn, Some("latest"))?,
            epochs: env.create_database(&mut txn, Some("epochs"))?,
            gaps: env.create_database(&mut txn, Some("gaps"))?,
            levels: env.create_database(&mut txn, Some("levels"))?,
            meta: env.create_database(&mut txn, Some("meta"))?,
            env: env.clone(),
            number,
            dir,
        };
        if environment.meta.get(&txn, "format")?.is_none() {
            environment.meta.put(&mut txn, "format", FORMAT)?;
        }
        txn.commit()?;
        Ok(environment)
    }

    /// All of them.
    pub fn databases_as_bytes(&self) -> [Database<RawBytes, RawBytes>; DATABASES as usize] {
        [
            self.records,
            self.older_entries,
            self.pending_repairs,
            self.doubts,
            self.sweep_times.remap_types(),
            self.positions.remap_types(),
            self.latest.remap_types(),
            self.epochs.remap_types(),
            self.gaps.remap_types(),
            self.levels.remap_types(),
            self.meta.remap_types(),
        ]
    }

    /// From now on a commit is not on the disk when it is done; until [`Environment::note_caught_up`].
    pub fn leave_unsynced(&self) -> Result<(), StoreError> {
        // Without a name for the boot nobody could tell what a power cut left.
        let Some(boot) = boot() else { return Ok(()) };
        let mut file = File::create(self.dir.join(UNSYNCED))?;
        file.write_all(boot.as_bytes())?;
        file.sync_all()?;
        File::open(&self.dir)?.sync_all()?;
        Ok(set_unsynced(&self.env, FlagSetMode::Enable)?)
    }

    /// Brings everything to the disk, and every commit from now on.
    fn sync(&self) -> Result<(), StoreError> {
        let mark = self.dir.join(UNSYNCED);
        if mark.exists() {
            set_unsynced(&self.env, FlagSetMode::Disable)?;
            self.env.force_sync()?;
            fs::remove_file(mark)?;
            File::open(&self.dir)?.sync_all()?;
        }
        Ok(())
    }

    pub fn clear(&self, txn: &mut RwTxn<'_>) -> heed::Result<()> {
        for database in self.databases_as_bytes() {
            database.clear(txn)?;
        }
        self.meta.put(txn, "format", FORMAT)
    }

    /// Empties it and ties it to a log, to be read from `next` on; `now` is when that begins. All or nothing.
    pub fn reset(
        &self,
        identity: &LogIdentity,
        next: &[NextOffset],
        now: WallTime,
    ) -> Result<(), StoreError> {
        self.leave_unsynced()?;
        let mut txn = self.env.write_txn()?;
        self.clear(&mut txn)?;
        self.put_identity(&mut txn, identity)?;
        self.meta.put(&mut txn, "caught_up_at", &now.to_string())?;
        for (partition, next) in (0..).zip(next) {
            self.put_read(&mut txn, PartitionRead::begin(partition, *next), Digest::default())?;
        }
        Ok(txn.commit()?)
    }

    /// Notes how far a partition has been read, and what that adds to its digest.
    pub fn put_read(
        &self,
        txn: &mut RwTxn<'_>,
        read: PartitionRead,
        change: Digest,
    ) -> Result<(), StoreError> {
        let PartitionRead { partition, next, latest, epoch, gap, level } = read;
        let partition = partition.cast_unsigned();
        let before = self.positions.get(txn, &partition).map_err(undecoded("positions"))?;
        let known = match self.latest.get(txn, &partition)?.map(LogTime::from_ms) {
            None if before.is_none() => Some(LogTime::MIN),
            known => known,
        };
        if let Some(known) = known {
            let latest = latest.map_or(known, |latest| latest.max(known));
            self.latest.put(txn, &partition, &latest.ms())?;
        }
        if gap {
            self.gaps.put(txn, &partition, &())?;
        }
        if let Some(level) = level {
            self.levels.put(txn, &partition, &level.0)?;
        }
        match epoch {
            Some(epoch) => self.epochs.put(txn, &partition, &epoch.into())?,
            // The end that was reached with a record is told once more.
            None if before.is_some_and(|before| before.next == next) => {}
            None => drop(self.epochs.delete(txn, &partition)?),
        }
        let mut digest = before.unwrap_or_default().digest;
        digest += change;
        Ok(self.positions.put(txn, &partition, &DigestPoint { next, digest })?)
    }

    /// Adds to the digest of a partition of which nothing was read; to none of one that is not known.
    pub fn add_to_digest(
        &self,
        txn: &mut RwTxn<'_>,
        partition: i32,
        change: Digest,
    ) -> Result<(), StoreError> {
        if let Some(mut point) = self.position(txn, partition)? {
            point.digest += change;
            self.positions.put(txn, &partition.cast_unsigned(), &point)?;
        }
        Ok(())
    }

    /// How far a partition has been read, and its digest there; `None` of one that is not known.
    pub fn position(&self, txn: &RoTxn<'_>, partition: i32) -> Result<Option<DigestPoint>, StoreError> {
        self.positions.get(txn, &partition.cast_unsigned()).map_err(undecoded("positions"))
    }

    /// Whether compaction may have removed something of a partition that was not read: see [`PartitionState::after_gap`].
    pub fn is_after_gap(&self, txn: &RoTxn<'_>, partition: i32) -> Result<bool, StoreError> {
        Ok(self.gaps.get(txn, &partition.cast_unsigned()).map_err(undecoded("gaps"))?.is_some())
    }

    /// How far a partition has been read, and what is known of it there.
    pub fn partition_state(&self, txn: &RoTxn<'_>, partition: i32) -> Result<PartitionState, StoreError> {
        let position = self.position(txn, partition)?.unwrap_or_default();
        Ok(PartitionState {
            next: position.next,
            after_gap: self.is_after_gap(txn, partition)?,
            level: self.level(txn, partition.cast_unsigned())?,
        })
    }

    fn level(&self, txn: &RoTxn<'_>, partition: u32) -> Result<Level, StoreError> {
        let level = self.levels.get(txn, &partition).map_err(undecoded("levels"))?;
        Ok(level.map_or(Level::FIRST, Level))
    }

    pub fn put_identity(&self, txn: &mut RwTxn<'_>, identity: &LogIdentity) -> Result<(), StoreError> {
        let json = serde_json::to_string(identity).map_err(|_| StoreError::Corrupt("identity"))?;
        Ok(self.meta.put(txn, "identity", &json)?)
    }

    /// Remembers that everything up to the log's end was applied at `now`, and, once, that it may answer reads.
    pub fn note_caught_up(&self, now: WallTime) -> Result<(), StoreError> {
        self.sync()?;
        let mut txn = self.env.write_txn()?;
        self.meta.put(&mut txn, "restored", "yes")?;
        self.meta.put(&mut txn, "caught_up_at", &now.to_string())?;
        Ok(txn.commit()?)
    }

    /// Whether it has been caught up since it was begun.
    pub fn is_restored(&self, txn: &RoTxn<'_>) -> Result<bool, StoreError> {
        Ok(self.meta.get(txn, "restored").map_err(undecoded("meta"))?.is_some())
    }

    fn identity(&self, txn: &RoTxn<'_>) -> Result<Option<LogIdentity>, StoreError> {
        let json = self.meta.get(txn, "identity").map_err(undecoded("meta"))?;
        json.map(|json| serde_json::from_str(json).map_err(|_| StoreError::Corrupt("identity"))).transpose()
    }

    /// The log that it is tied to, as far as its identity says.
    pub fn log_in(&self, txn: &RoTxn<'_>) -> Result<LogTag, StoreError> {
        Ok(self.identity(txn)?.map_or(LogTag::default(), |identity| identity.tag()))
    }

    /// As [`Environment::log_in`], by now.
    pub fn log(&self) -> Result<LogTag, StoreError> {
        self.log_in(&*self.env.read_txn()?)
    }

    pub fn checkpoint(&self) -> Result<Checkpoint, StoreError> {
        let txn = self.env.read_txn()?;
        let identity = self.identity(&txn)?;
        let (mut next, mut latest, mut epochs) = (Vec::new(), Vec::new(), Vec::new());
        let (mut after_gap, mut levels) = (Vec::new(), Vec::new());
        for item in self.positions.iter(&txn)? {
            let (partition, point) = item.map_err(undecoded("positions"))?;
            if partition as usize != next.len() || point.next.0 < 0 {
                return Err(StoreError::Corrupt("positions"));
            }
            next.push(point.next);
            let time = self.latest.get(&txn, &partition).map_err(undecoded("latest"))?;
            latest.push(time.map(LogTime::from_ms));
            let epoch = self.epochs.get(&txn, &partition).map_err(undecoded("epochs"))?;
            epochs.push(epoch.and_then(|epoch| epoch.try_into().ok()));
            after_gap.push(self.gaps.get(&txn, &partition).map_err(undecoded("gaps"))?.is_some());
            levels.push(self.level(&txn, partition)?);
        }
        let caught_up_at = self.meta.get(&txn, "caught_up_at").map_err(undecoded("meta"))?;
        let caught_up_at = caught_up_at.and_then(|text| text.parse().ok()).map(WallTime::from_ms);
        let restored = self.is_restored(&txn)?;
        let unfit = self.meta.get(&txn, "unfit").map_err(undecoded("meta"))?.map(str::to_owned);
        Ok(Checkpoint { identity, restored, next, latest, epochs, after_gap, levels, caught_up_at, unfit })
    }

    /// The size of a copy without free pages, in bytes; what is written meanwhile comes on top.
    pub fn compact_bytes(&self) -> Result<u64, StoreError> {
        let txn = self.env.read_txn()?;
        // Two meta pages, and one of the names of the databases.
        Ok((self.used_pages(&txn)? + 3) * u64::from(self.records.stat(&txn)?.page_size))
    }

    /// Pages that hold something.
    pub fn used_pages(&self, txn: &RoTxn<'_>) -> Result<u64, StoreError> {
        let mut pages = 0;
        for database in self.databases_as_bytes() {
            let stat = database.stat(txn)?;
            pages += stat.branch_pages + stat.leaf_pages + stat.overflow_pages;
        }
        Ok(pages as u64)
    }
}

fn refused(dir: &Path, why: &str) -> StoreError {
    StoreError::Missing(format!("{} {why}", dir.display()))
}

/// Whether something was written to it by a node that gives the bytes another meaning.
fn has_other_format(env: &Env) -> heed::Result<bool> {
    let txn = env.read_txn()?;
    let names: Option<Database<RawBytes, DecodeIgnore>> = env.open_database(&txn, None)?;
    if names.map_or(Ok(true), |names| names.is_empty(&txn))? {
        return Ok(false);
    }
    let meta: Option<Database<Str, Str>> = env.open_database(&txn, Some("meta"))?;
    let format = meta.map_or(Ok(None), |meta| meta.get(&txn, "format"))?;
    Ok(format != Some(FORMAT))
}

/// Names the machine's running since it was switched on, where the system does.
fn boot() -> Option<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()
}

#[allow(unsafe_code)]
fn set_unsynced(env: &Env, mode: FlagSetMode) -> heed::Result<()> {
    // SAFETY: MDB_NOSYNC changes when pages reach the disk, and nothing about memory. No transaction is open: only this
    // thread writes.
    unsafe { env.set_flags(EnvFlags::NO_SYNC, mode) }
}
