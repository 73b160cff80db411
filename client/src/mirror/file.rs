//! The file of a mirror: a log of what was told.
//!
//! A first line, which says of which prefix it is; then entries: the length of their content (4 bytes), its checksum (8 bytes), both with the highest byte first, and the
//! content: a page of changes as nodes answer it to `readChanges`. What a page tells and its token are in one entry, so every beginning of the file is right in itself: the
//! mirror goes on from its last token. Only the entries of a file that was just written anew are no such beginnings, but the last of them; they have no token.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufRead as _, BufReader, BufWriter, ErrorKind, Read as _, Seek as _, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bitacora_protocol::Position;
use bitacora_protocol::record::KeyValue;
use bitacora_protocol::rpc::{Answer, Change, ChangePage, DeletedKey};
use tempfile::NamedTempFile;
use tokio::sync::mpsc;
use xxhash_rust::xxh3::xxh3_64;

use super::Shared;
use super::record::MirroredRecord;
use super::replica::Replica;
use crate::connection::{Changed, decode_changes};
use crate::error::Error;
use crate::watch::Page;

/// The first line begins with this; the prefix follows as a JSON string has it.
const FIRST_LINE: &str = "bitacora mirror 1 of ";
/// A longer first line is none.
const FIRST_LINE_BYTES: u64 = 16 * 1024;
/// A lock that is held for longer is another mirror's.
const LOCKED_FOR: Duration = Duration::from_secs(1);
const LOCK_POLL: Duration = Duration::from_millis(10);
/// The head of an entry.
const HEAD_BYTES: usize = 12;
/// Records in an entry of a file that is written anew.
const RECORDS_IN_ENTRY: usize = 1_000;
/// A file is not written anew before so much has been added to it, nor before that is as much as there was.
const SHORTEST_LOG_BYTES: u64 = 16 << 20;
/// Pages on their way to the file; with more the mirror waits for it.
const PAGES_UNDER_WAY: usize = 32;
/// After an error, how long until it is tried again.
const AGAIN_AFTER: Duration = Duration::from_secs(30);
/// A token that comes alone is kept that seldom.
const TOKENS_EVERY: Duration = Duration::from_secs(10);

/// What was in a file, and who keeps it from now on.
pub(super) struct Kept {
    pub keeper: Keeper,
    /// Goes on behind it; empty: there was nothing.
    pub token: String,
    pub replica: Replica,
}

/// Reads a file, or begins one, and lets the replica take what is in it.
pub(super) async fn open(
    path: PathBuf,
    prefix: &str,
    mut replica: Replica,
    shared: Arc<Shared>,
) -> Result<Kept, Error> {
    let first_line = first_line(prefix);
    let loaded = tokio::task::spawn_blocking(move || {
        let lock = lock(&path)?;
        let mut file = MirrorFile { path, first_line, file: None, _lock: lock };
        let token = file.load(&mut replica)?;
        Ok::<_, Error>((file, token, replica))
    });
    let loaded = loaded.await.map_err(|_| Error::Settings("the file of a mirror can't be read".to_owned()));
    let (file, token, replica) = loaded??;
    Ok(Kept { keeper: Keeper::start(file, shared), token, replica })
}

fn first_line(prefix: &str) -> String {
    // Its quotes and escapes: no end of a line is in it.
    format!("{FIRST_LINE}{prefix:?}\n")
}

fn failed(path: &Path, what: &str, error: &std::io::Error) -> Error {
    Error::Settings(format!("the file of a mirror {} {what}: {error}", path.display()))
}

/// Locks the file for this mirror. It may be that of a mirror that ended a moment ago: a program that this process starts at that time has the
/// lock, too, until it runs.
fn lock(path: &Path) -> Result<File, Error> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let opened = OpenOptions::new().create(true).truncate(false).write(true).open(&name);
    let lock = opened.map_err(|error| failed(Path::new(&name), "can't be opened", &error))?;
    let until = Instant::now() + LOCKED_FOR;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(TryLockError::WouldBlock) if Instant::now() < until => std::thread::sleep(LOCK_POLL),
            Err(TryLockError::WouldBlock) => {
                let path = path.display();
                return Err(Error::Settings(format!(
                    "the file of a mirror {path} is used by another mirror; give each its own"
                )));
            }
            Err(TryLockError::Error(error)) => return Err(failed(path, "can't be locked", &error)),
        }
    }
}

struct MirrorFile {
    path: PathBuf,
    first_line: String,
    /// At its end; `None`: it has to be written anew first.
    file: Option<File>,
    _lock: File,
}

impl MirrorFile {
    /// Lets the replica take what is there; the token that goes on behind it.
    fn load(&mut self, replica: &mut Replica) -> Result<String, Error> {
        let file = match OpenOptions::new().read(true).write(true).open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return self.begin(),
            Err(error) => return Err(failed(&self.path, "can't be opened", &error)),
        };
        let unread = |error| failed(&self.path, "can't be read", &error);
        let length = file.metadata().map_err(unread)?.len();
        let mut reader = BufReader::with_capacity(1 << 20, &file);
        let mut first = Vec::new();
        reader.by_ref().take(FIRST_LINE_BYTES).read_until(b'\n', &mut first).map_err(unread)?;
        self.check_first_line(&first)?;
        let (mut good, mut token) = (first.len() as u64, String::new());
        while let Some((content, bytes)) = entry(&mut reader, length - good).map_err(unread)? {
            let Some(reply) = decode_changes(&content) else { break };
            token.clone_from(&reply.next);
            replica.take(&Page::kept(reply));
            good += bytes;
        }
        drop(reader);
        replica.was_loaded();
        let path = self.path.display();
        if good < length {
            tracing::warn!(%path, good, length, "the end of a mirror's file is damaged or not whole; it is told again");
        }
        if token.is_empty() {
            // Only a part of what was there, which can't be gone on from.
            replica.forget();
            return self.begin();
        }
        let cut = file.set_len(good).and_then(|()| (&file).seek(SeekFrom::End(0)));
        cut.map_err(|error| failed(&self.path, "can't be written", &error))?;
        self.file = Some(file);
        Ok(token)
    }

    fn check_first_line(&self, first: &[u8]) -> Result<(), Error> {
        if first == self.first_line.as_bytes() {
            return Ok(());
        }
        let path = self.path.display();
        let text = String::from_utf8_lossy(first);
        Err(Error::Settings(match text.strip_prefix(FIRST_LINE) {
            Some(other) if text.ends_with('\n') => format!(
                "the file {path} is of a mirror of the prefix {}, not of this one; give each mirror its own, or remove it",
                other.trim_end()
            ),
            _ => format!(
                "the file {path} is no file of a mirror; it is left as it is: give another, or remove it"
            ),
        }))
    }

    /// Begins it without an entry.
    fn begin(&mut self) -> Result<String, Error> {
        let begun = self.write_anew(|_| Ok(()));
        begun.map_err(|error| failed(&self.path, "can't be written", &error))?;
        Ok(String::new())
    }

    /// Puts a new file in the place of what is there; its bytes.
    fn write_anew(
        &mut self,
        entries: impl FnOnce(&mut BufWriter<NamedTempFile>) -> std::io::Result<()>,
    ) -> std::io::Result<u64> {
        // The old one is not added to any more.
        self.file = None;
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        let mut writer = BufWriter::with_capacity(1 << 20, NamedTempFile::new_in(folder)?);
        writer.write_all(self.first_line.as_bytes())?;
        entries(&mut writer)?;
        let temporary = writer.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        temporary.as_file().sync_all()?;
        let mut file = temporary.persist(&self.path)?;
        File::open(folder)?.sync_all()?;
        let bytes = file.seek(SeekFrom::End(0))?;
        self.file = Some(file);
        Ok(bytes)
    }

    fn write_snapshot(&mut self, snapshot: &Snapshot) -> std::io::Result<u64> {
        self.write_anew(|writer| {
            let count = snapshot.records.chunks(RECORDS_IN_ENTRY).len().max(1);
            for index in 0..count {
                let from = index * RECORDS_IN_ENTRY;
                let records = &snapshot.records[from..snapshot.records.len().min(from + RECORDS_IN_ENTRY)];
                let is_last = index + 1 == count;
                writer.write_all(&snapshot.entry(records, is_last))?;
            }
            Ok(())
        })
    }
}

/// The content of the next entry, and the bytes of all of it; `None` at the end, or at what is no entry.
fn entry(reader: &mut impl std::io::Read, left: u64) -> std::io::Result<Option<(Vec<u8>, u64)>> {
    let mut head = [0; HEAD_BYTES];
    if left < HEAD_BYTES as u64 {
        return Ok(None);
    }
    reader.read_exact(&mut head)?;
    let (length, checksum) = head.split_at(4);
    let length = length.iter().fold(0, |length, byte| length << 8 | u64::from(*byte));
    if length > left - HEAD_BYTES as u64 {
        return Ok(None);
    }
    let mut content = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
    reader.read_exact(&mut content)?;
    let is_whole = xxh3_64(&content).to_be_bytes() == *checksum;
    Ok(is_whole.then_some((content, HEAD_BYTES as u64 + length)))
}

fn put_entry(page: &ChangePage<'_>) -> Vec<u8> {
    let mut bytes = vec![0; HEAD_BYTES];
    Answer::Changes(page.clone()).encode(&mut bytes);
    let content = &bytes[HEAD_BYTES..];
    // A page is far shorter than 4 GiB.
    let length = u32::try_from(content.len()).unwrap_or(u32::MAX).to_be_bytes();
    let checksum = xxh3_64(content).to_be_bytes();
    bytes[..4].copy_from_slice(&length);
    bytes[4..HEAD_BYTES].copy_from_slice(&checksum);
    bytes
}

fn entry_of(page: &Page) -> Vec<u8> {
    let events = page.changes.iter().map(|change| match change {
        Changed::Set(record) => {
            let (timestamp, source, ttl) = (record.timestamp, record.source, record.ttl);
            let (key, value, uuid) = (&*record.key, &*record.value, &*record.uuid);
            Change::Set(KeyValue { key, value, timestamp, source, ttl, uuid }, record.position)
        }
        Changed::Deleted(deleted) => Change::Deleted(DeletedKey {
            key: &deleted.key,
            position: deleted.position,
            timestamp: deleted.timestamp,
            reason: deleted.reason,
        }),
        Changed::Gap(reason) => Change::Gap(reason),
    });
    let positions = page.positions.clone();
    put_entry(&ChangePage { events: events.collect(), next: &page.next, current: page.current, positions })
}

/// All that a mirror holds at a token.
struct Snapshot {
    records: Vec<MirroredRecord>,
    next: Arc<str>,
    positions: Vec<Position>,
}

impl Snapshot {
    fn entry(&self, records: &[MirroredRecord], is_last: bool) -> Vec<u8> {
        let uuids: Vec<_> = records.iter().map(MirroredRecord::uuid).collect();
        let sets = records.iter().zip(&uuids);
        let events = sets.map(|(record, uuid)| Change::Set(record.as_key_value(uuid), record.position()));
        let (next, positions) =
            if is_last { (&*self.next, self.positions.clone()) } else { ("", Vec::new()) };
        put_entry(&ChangePage { events: events.collect(), next, current: is_last, positions })
    }
}

enum Job {
    Add(Vec<u8>),
    WriteAnew(Snapshot),
}

/// Hands pages to the thread that writes the file.
pub(super) struct Keeper {
    jobs: mpsc::Sender<Job>,
    thread: std::thread::JoinHandle<()>,
    /// Bytes of the file when it was written anew last.
    bytes: Arc<AtomicU64>,
    /// Since then.
    added: u64,
    /// When it was tried last to write it anew, and when something was added.
    tried: Instant,
    last_added: Instant,
}

impl Keeper {
    fn start(mut file: MirrorFile, shared: Arc<Shared>) -> Self {
        let (jobs, mut queue) = mpsc::channel(PAGES_UNDER_WAY);
        let bytes = Arc::new(AtomicU64::new(0));
        let written = Arc::clone(&bytes);
        let thread = std::thread::spawn(move || {
            while let Some(job) = queue.blocking_recv() {
                let done = match job {
                    Job::Add(entry) => file.file.as_mut().map_or(Ok(()), |file| file.write_all(&entry)),
                    Job::WriteAnew(snapshot) => file.write_snapshot(&snapshot).map(|bytes| {
                        written.store(bytes, Ordering::Relaxed);
                        *shared.file_error.write() = None;
                    }),
                };
                if let Err(error) = done {
                    tracing::warn!(path = %file.path.display(), %error, "the file of a mirror can't be written");
                    *shared.file_error.write() = Some(error.to_string());
                    // What would be added behind half an entry could not be read.
                    file.file = None;
                }
            }
            if let Some(Err(error)) = file.file.as_ref().map(File::sync_data) {
                tracing::warn!(path = %file.path.display(), %error, "the file of a mirror can't be written");
            }
        });
        let now = Instant::now();
        Self { jobs, thread, bytes, added: 0, tried: now, last_added: now }
    }

    /// Keeps a page that the replica has taken. Waits while the file is far behind.
    pub(super) async fn keep(
        &mut self,
        page: &Page,
        is_replaced: bool,
        is_rebuilding: bool,
        shared: &Arc<Shared>,
    ) {
        let is_failing = shared.file_error.read().is_some();
        if is_failing && self.tried.elapsed() < AGAIN_AFTER {
            return;
        }
        let is_long = self.added > SHORTEST_LOG_BYTES.max(self.bytes.load(Ordering::Relaxed));
        let job = if !is_rebuilding && (is_failing || is_replaced || is_long) {
            (self.added, self.tried) = (0, Instant::now());
            let state = shared.state.read();
            let records = state.records.iter().cloned().collect();
            let positions = state.positions.clone();
            Job::WriteAnew(Snapshot { records, next: Arc::clone(&page.next), positions })
        } else if page.changes.is_empty() && self.last_added.elapsed() < TOKENS_EVERY {
            return;
        } else {
            let entry = entry_of(page);
            self.added += entry.len() as u64;
            Job::Add(entry)
        };
        self.last_added = Instant::now();
        // Its thread lives as long as this.
        let _ = self.jobs.send(job).await;
    }

    /// Waits until all is written.
    pub(super) async fn finish(self) {
        let Self { jobs, thread, .. } = self;
        drop(jobs);
        let _ = tokio::task::spawn_blocking(move || thread.join()).await;
    }
}
