//! LMDB environments on disk, and which of them is the store.
//!
//! A store's folder holds environments in folders of their own, `1`, `2`, `3`…; the file `CURRENT` names the one that is
//! the store (`1` without it). A new one is built beside it and synced, then `CURRENT` is replaced by a rename, then the
//! old one is removed. So a crash at any point leaves one whole store; what `CURRENT` does not name goes at the next start.
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
use std::sync::atomic::{AtomicBool, Ordering};

use heed::byteorder::BigEndian;
use heed::types::{Bytes as RawBytes, I64, Str, U32, Unit};
use heed::{Database, Env, EnvFlags, EnvOpenOptions, FlagSetMode, RoTxn, RwTxn};

use super::key_state::{KeyState, parse_others, parse_pending_repairs};
use super::{Checkpoint, Disk, Entry, StoreError, pages};
use crate::clock::{LogTime, WallTime};
use crate::log::{LogIdentity, LogTag, Read};
use bitacora_protocol::{NextOffset, Position};

/// Changed whenever the bytes in the store mean something else; a store of another format is built anew.
pub const FORMAT: &str = "3";
/// Address space reserved for LMDB's map, not memory and not disk. Halved until the system grants it.
const MAP_BYTES: usize = 1 << 40;
/// One reader slot for each thread that ever reads.
const MAX_READERS: u32 = 1024;
/// LMDB's own name for its table of readers; and a size that has room for them.
const LOCK_FILE: &str = "lock.mdb";
const LOCK_BYTES: usize = MAX_READERS as usize * 64 + 4096;
const CURRENT: &str = "CURRENT";
/// In the folder of an environment whose commits are not synced: the boot of the machine in which that began.
const UNSYNCED: &str = "UNSYNCED";
/// A disk with less is as good as full.
const FULL_BYTES: u64 = 1 << 20;
/// LMDB's own name for its file.
pub const DATA_FILE: &str = "data.mdb";

/// An environment and its databases. Cheap to clone; closed when the last clone is gone.
#[derive(Clone)]
pub(super) struct Files {
    pub env: Env,
    /// Key → [`super::Entry`]'s bytes.
    pub records: Database<RawBytes, RawBytes>,
    /// Key → its records in further partitions, older than that in `records`.
    pub others: Database<RawBytes, RawBytes>,
    /// Key → [`super::PendingRepair`]s.
    pub pending_repairs: Database<RawBytes, RawBytes>,
    /// When a sweep has to do with a key (ms, i64), and the key.
    pub due: Database<RawBytes, Unit>,
    /// Partition → next offset.
    pub positions: Database<U32<BigEndian>, I64<BigEndian>>,
    /// Partition → the latest write timestamp of all records below the next offset (ms, i64; its least if there was
    /// none). Missing where a store from before this was kept has read some already.
    pub latest: Database<U32<BigEndian>, I64<BigEndian>>,
    /// Partition → the leader's epoch of the record before the next offset, if known.
    pub epochs: Database<U32<BigEndian>, I64<BigEndian>>,
    /// `format`, `identity`, `restored`, `caught_up_at`.
    pub meta: Database<Str, Str>,
    pub generation: u64,
    dir: PathBuf,
}

impl Files {
    /// Opens an environment of this format, or makes an empty one.
    pub fn open(root: &Path, generation: u64) -> Result<Self, StoreError> {
        let dir = root.join(generation.to_string());
        let is_new = !dir.exists();
        let opened = Self::open_in(&dir, generation);
        if is_new && opened.is_err() {
            // A full disk is tried again and again.
            let _ = fs::remove_dir_all(&dir);
        }
        opened
    }

    fn open_in(dir: &Path, generation: u64) -> Result<Self, StoreError> {
        let wrap = |source| StoreError::Open { why: explain(dir, &source), source };
        let unsynced = match fs::read(dir.join(UNSYNCED)) {
            Ok(boot) => Some(boot),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(wrap(error.into())),
        };
        if unsynced.is_some() && unsynced != boot().map(String::into_bytes) {
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
        let env = open_env(dir, 8, EnvFlags::NO_META_SYNC).map_err(wrap)?;
        let files = Self::databases(&env, dir.to_owned(), generation).map_err(|error| match error {
            heed::Error::Decoding(_) => StoreError::Corrupt("meta"),
            error => wrap(error),
        })?;
        if unsynced.is_some() {
            files.leave_unsynced()?;
        }
        Ok(files)
    }

    fn databases(env: &Env, dir: PathBuf, generation: u64) -> heed::Result<Self> {
        let mut txn = env.write_txn()?;
        let files = Self {
            records: env.create_database(&mut txn, Some("records"))?,
            others: env.create_database(&mut txn, Some("others"))?,
            pending_repairs: env.create_database(&mut txn, Some("pending_repairs"))?,
            due: env.create_database(&mut txn, Some("due"))?,
            positions: env.create_database(&mut txn, Some("positions"))?,
            latest: env.create_database(&mut txn, Some("latest"))?,
            epochs: env.create_database(&mut txn, Some("epochs"))?,
            meta: env.create_database(&mut txn, Some("meta"))?,
            env: env.clone(),
            generation,
            dir,
        };
        if files.meta.get(&txn, "format")? != Some(FORMAT) {
            files.clear(&mut txn)?;
        }
        txn.commit()?;
        Ok(files)
    }

    /// From now on a commit is not on the disk when it is done; until [`Files::note_caught_up`].
    fn leave_unsynced(&self) -> Result<(), StoreError> {
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
        for database in [self.records, self.others, self.pending_repairs] {
            database.clear(txn)?;
        }
        self.due.clear(txn)?;
        self.positions.clear(txn)?;
        self.latest.clear(txn)?;
        self.epochs.clear(txn)?;
        self.meta.clear(txn)?;
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
            self.put_read(&mut txn, Read::up_to(partition, *next))?;
        }
        Ok(txn.commit()?)
    }

    /// Notes how far a partition has been read.
    pub fn put_read(&self, txn: &mut RwTxn<'_>, read: Read) -> Result<(), StoreError> {
        let Read { partition, next, latest, epoch } = read;
        let partition = partition.cast_unsigned();
        let before = self.positions.get(txn, &partition)?;
        let known = match self.latest.get(txn, &partition)?.map(LogTime::from_ms) {
            None if before.is_none() => Some(LogTime::MIN),
            known => known,
        };
        if let Some(known) = known {
            let latest = latest.map_or(known, |latest| latest.max(known));
            self.latest.put(txn, &partition, &latest.ms())?;
        }
        match epoch {
            Some(epoch) => self.epochs.put(txn, &partition, &epoch.into())?,
            // The end that was reached with a record is told once more.
            None if before == Some(next.0) => {}
            None => drop(self.epochs.delete(txn, &partition)?),
        }
        Ok(self.positions.put(txn, &partition, &next.0)?)
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

    /// The log that it is tied to.
    pub fn log(&self, txn: &RoTxn<'_>) -> Result<LogTag, StoreError> {
        Ok(self.identity(txn)?.map_or(LogTag::default(), |identity| identity.tag()))
    }

    pub fn checkpoint(&self) -> Result<Checkpoint, StoreError> {
        let txn = self.env.read_txn()?;
        let identity = self.identity(&txn)?;
        let (mut next, mut latest, mut epochs) = (Vec::new(), Vec::new(), Vec::new());
        for item in self.positions.iter(&txn)? {
            let (partition, offset) = item.map_err(undecoded("positions"))?;
            if partition as usize != next.len() || offset < 0 {
                return Err(StoreError::Corrupt("positions"));
            }
            next.push(NextOffset(offset));
            let time = self.latest.get(&txn, &partition).map_err(undecoded("latest"))?;
            latest.push(time.map(LogTime::from_ms));
            let epoch = self.epochs.get(&txn, &partition).map_err(undecoded("epochs"))?;
            epochs.push(epoch.and_then(|epoch| epoch.try_into().ok()));
        }
        let caught_up_at = self.meta.get(&txn, "caught_up_at").map_err(undecoded("meta"))?;
        let caught_up_at = caught_up_at.and_then(|text| text.parse().ok()).map(WallTime::from_ms);
        Ok(Checkpoint { identity, restored: self.is_restored(&txn)?, next, latest, epochs, caught_up_at })
    }

    /// Whether a copy of another node's store holds what a node writes, and no more than its positions say. Looks at all
    /// of it, until it is to stop.
    ///
    /// # Errors
    /// What is wrong, and with which key.
    pub fn check(&self, checkpoint: &Checkpoint, stop: &AtomicBool) -> Result<(), StoreError> {
        if checkpoint.identity.is_none() || !checkpoint.restored || checkpoint.next.is_empty() {
            return Err(StoreError::Copy("it is not complete".to_owned()));
        }
        let wrong = |database: &str, key: &[u8], what: &str| {
            StoreError::Copy(format!("under '{database}', '{}' {what}", String::from_utf8_lossy(key)))
        };
        // A record from beyond would make those void that are still to come.
        let applied = |at: Position| {
            let next =
                usize::try_from(at.partition).ok().and_then(|partition| checkpoint.next.get(partition));
            next.is_some_and(|next| (0..next.0).contains(&at.offset))
        };
        let check = |database: &str, key: &[u8], entry: &Entry| {
            if !entry.is_of(key) {
                return Err(wrong(database, key, "has another's record, or none"));
            }
            let at = entry.position();
            if applied(at) {
                Ok(())
            } else {
                Err(wrong(database, key, &format!("lies at {at}, which was never applied")))
            }
        };
        let txn = self.env.read_txn()?;
        let mut last: &[u8] = &[];
        for item in self.records.iter(&txn)? {
            let (key, stored) = item?;
            if key <= last {
                return Err(wrong("records", key, "is out of order"));
            }
            last = key;
            if stop.load(Ordering::Relaxed) {
                return Err(StoreError::Copy(pages::GIVEN_UP.to_owned()));
            }
            check("records", key, &Entry::from_bytes(stored).ok_or(StoreError::Corrupt("records"))?)?;
        }
        for item in self.others.iter(&txn)? {
            let (key, stored) = item?;
            parse_others(stored)?.iter().try_for_each(|entry| check("others", key, entry))?;
        }
        for item in self.pending_repairs.iter(&txn)? {
            let (key, stored) = item?;
            if !parse_pending_repairs(stored)?.iter().all(|pending| applied(pending.position)) {
                return Err(wrong("pending_repairs", key, "owes to a record that was never applied"));
            }
        }
        for item in self.due.iter(&txn)? {
            let (at, ()) = item?;
            if at.len() <= size_of::<i64>() {
                return Err(wrong("due", at, "has no key"));
            }
        }
        Ok(())
    }

    /// The size of a copy without free pages, in bytes; what is written meanwhile comes on top.
    pub fn compact_bytes(&self) -> Result<u64, StoreError> {
        let txn = self.env.read_txn()?;
        // Two meta pages, and one of the names of the databases.
        Ok((self.used_pages(&txn)? + 3) * u64::from(self.records.stat(&txn)?.page_size))
    }

    /// Pages that hold something.
    pub fn used_pages(&self, txn: &RoTxn<'_>) -> Result<u64, StoreError> {
        let stats = [
            self.records.stat(txn)?,
            self.others.stat(txn)?,
            self.pending_repairs.stat(txn)?,
            self.due.stat(txn)?,
            self.positions.stat(txn)?,
            self.latest.stat(txn)?,
            self.epochs.stat(txn)?,
            self.meta.stat(txn)?,
        ];
        Ok(stats.iter().map(|stat| (stat.branch_pages + stat.leaf_pages + stat.overflow_pages) as u64).sum())
    }

    /// What the store holds of a key; without a look into databases that are empty.
    pub fn key_state(
        &self,
        txn: &RoTxn<'_>,
        key: &[u8],
        is_read: bool,
        no_others: bool,
        no_pending_repairs: bool,
    ) -> Result<KeyState, StoreError> {
        let mut state = KeyState { is_read, ..KeyState::default() };
        if let Some(bytes) = self.records.get(txn, key)? {
            state.entries.push(Entry::from_bytes(bytes).ok_or(StoreError::Corrupt("records"))?);
        }
        if !no_others && let Some(bytes) = self.others.get(txn, key)? {
            state.entries.extend(parse_others(bytes)?);
        }
        if !no_pending_repairs && let Some(bytes) = self.pending_repairs.get(txn, key)? {
            state.pending_repairs = parse_pending_repairs(bytes)?;
        }
        Ok(state)
    }
}

/// What LMDB reads without a complaint may still be nothing that was written there.
fn undecoded(database: &'static str) -> impl Fn(heed::Error) -> StoreError {
    move |error| match error {
        heed::Error::Decoding(_) => StoreError::Corrupt(database),
        error => error.into(),
    }
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

/// Opens an LMDB environment of this process's own.
#[allow(unsafe_code)]
pub(crate) fn open_env(dir: &Path, databases: u32, flags: EnvFlags) -> heed::Result<Env> {
    // LMDB maps it and leaves holes in it: one that is touched on a full disk would end the process (SIGBUS), at any read.
    fs::write(dir.join(LOCK_FILE), vec![0; LOCK_BYTES])?;
    let mut map_bytes = MAP_BYTES;
    loop {
        let mut options = EnvOpenOptions::new();
        options.max_dbs(databases).max_readers(MAX_READERS).map_size(map_bytes);
        // SAFETY: the map must not be changed behind LMDB's back. The folder is locked by `DataDir` for this process,
        // and nothing else in this process opens the file. The callers' flags are about syncing only.
        match unsafe { options.flags(flags).open(dir) } {
            Err(heed::Error::Io(error))
                if error.kind() == io::ErrorKind::OutOfMemory && map_bytes > 1 << 30 =>
            {
                map_bytes /= 2;
            }
            opened => return opened,
        }
    }
}

/// Why a store in a folder can't be written, and how to mend it.
pub(super) fn explain(dir: &Path, error: &heed::Error) -> String {
    let shown = dir.display();
    let disk = Disk::of(dir);
    let is_full = match error {
        heed::Error::Io(error) => {
            // LMDB makes an input/output error of a write that found room for only a part.
            matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
                || disk.is_some_and(|disk| disk.free < FULL_BYTES)
        }
        heed::Error::Mdb(heed::MdbError::MapFull) => {
            return format!(
                "the store in {shown} has used up its address space ({error}); raise the process's limit (ulimit -v) and restart it"
            );
        }
        _ => false,
    };
    if !is_full {
        return format!("the store in {shown} can't be written: {error}");
    }
    let free =
        disk.map_or_else(String::new, |disk| format!(", {} of its {} bytes are free", disk.free, disk.size));
    format!("the disk of {shown} is full{free} ({error}); make room on it or enlarge it")
}

/// The number of a generation; far from the largest, so that there is always a next one.
fn generation(text: &str) -> Option<u64> {
    text.parse::<u32>().ok().map(u64::from)
}

/// The folder of a store.
pub(super) struct Root(PathBuf);

impl Root {
    pub fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The generation that is the store. Removes every other one, the traces of a build that was cut short.
    pub fn current(&self) -> io::Result<u64> {
        fs::create_dir_all(&self.0)?;
        let current = match fs::read(self.0.join(CURRENT)) {
            Ok(text) => generation(String::from_utf8_lossy(&text).trim()).ok_or_else(|| {
                io::Error::other(format!(
                    "{} holds '{}', which is no number of a store; remove the folder, it is rebuilt from the log",
                    self.0.join(CURRENT).display(),
                    String::from_utf8_lossy(&text).trim().chars().take(40).collect::<String>()
                ))
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 1,
            Err(error) => return Err(error),
        };
        for generation in self.generations()? {
            if generation != current {
                self.remove(generation);
            }
        }
        Ok(current)
    }

    fn generations(&self) -> io::Result<Vec<u64>> {
        let entries = fs::read_dir(&self.0)?;
        Ok(entries.flatten().filter_map(|entry| generation(entry.file_name().to_str()?)).collect())
    }

    /// A generation that is not there yet.
    pub fn unused(&self) -> io::Result<u64> {
        Ok(self.generations()?.into_iter().max().unwrap_or_default().max(1) + 1)
    }

    /// Makes a generation the store. It must be on the disk already.
    pub fn point_to(&self, generation: u64) -> io::Result<()> {
        let new = self.0.join("CURRENT.new");
        let mut file = File::create(&new)?;
        writeln!(file, "{generation}")?;
        file.sync_all()?;
        fs::rename(&new, self.0.join(CURRENT))?;
        // The rename, and the generation's folder.
        File::open(&self.0)?.sync_all()
    }

    /// What is left of it goes at the next start.
    pub fn remove(&self, generation: u64) {
        let dir = self.0.join(generation.to_string());
        if let Err(error) = fs::remove_dir_all(&dir) {
            tracing::warn!(%error, "{} could not be removed", dir.display());
        }
    }
}
