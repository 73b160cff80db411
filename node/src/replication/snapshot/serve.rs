//! `GET /snapshot`: this node's store, to another member or to a backup.

use std::io::PipeReader;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use xxhash_rust::xxh3::Xxh3;

use super::Header;
use crate::metrics::Metrics;
use crate::replication::progress::Progress;
use crate::store::{Store, StoreCopy, StoreError};
use crate::worker::give_way;

/// Copies at a time. Each reads the whole store, and keeps LMDB from using freed pages again.
const MAX_CONCURRENT_COPIES: usize = 1;
/// Who takes nothing for this long is given up.
const STALLED_TIMEOUT: Duration = Duration::from_secs(20);
/// Who takes less than this, in bytes a second over the whole, is given up after a minute: the copy can't be held for ever.
const MIN_BYTES_PER_SECOND: u64 = 1 << 20;

/// Bytes in a frame. A worker of the runtime that sends some of them answers nobody meanwhile, so they are few.
const SENT_FRAME_BYTES: usize = 64 * 1024;
/// What LMDB writes at once, which is also the most that Linux gives a pipe of a user without privileges by default; or less.
#[cfg(target_os = "linux")]
const PIPE_BYTES: [usize; 2] = [1 << 20, 4 * SENT_FRAME_BYTES];
const _: () = assert!(SENT_FRAME_BYTES <= super::FRAME_BYTES);

pub struct Snapshots {
    store: Arc<Store>,
    progress: Arc<Progress>,
    metrics: Arc<Metrics>,
    /// Bytes a second; what is under way goes on at its own.
    rate: Arc<AtomicU64>,
    permits: Arc<Semaphore>,
}

#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("this node's store is not complete; ask another node")]
    NotRestored,
    #[error("this node is giving its store to somebody else; try again, or ask another node")]
    Busy,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Snapshots {
    #[must_use]
    pub fn new(
        store: Arc<Store>,
        progress: Arc<Progress>,
        metrics: Arc<Metrics>,
        rate: Arc<AtomicU64>,
    ) -> Self {
        Self { store, progress, metrics, rate, permits: Arc::new(Semaphore::new(MAX_CONCURRENT_COPIES)) }
    }

    /// Begins to send the store, in pieces; an error among them says that it is not whole. To be called on the runtime.
    ///
    /// # Errors
    /// When there is nothing to send, or somebody else is being served.
    pub fn begin(&self) -> Result<mpsc::Receiver<std::io::Result<Bytes>>, Refused> {
        // One that is being built anew holds what another log held.
        let complete = || self.progress.restored() && !self.store.is_building();
        if !complete() {
            return Err(Refused::NotRestored);
        }
        let permit = Arc::clone(&self.permits).try_acquire_owned().map_err(|_| Refused::Busy)?;
        let copy = self.store.copy()?;
        let header = Header::of(&copy).filter(|_| complete() && copy.checkpoint.restored);
        let header = header.ok_or(Refused::NotRestored)?;
        let (sender, receiver) = mpsc::channel(4);
        let sending = Sending {
            sender,
            runtime: Handle::current(),
            rate: self.rate.load(Ordering::Relaxed).max(1),
            began: Instant::now(),
            sent: 0,
            _permit: permit,
        };
        self.metrics.snapshots_served.inc();
        let threads = std::thread::Builder::new().name("snapshot".into());
        let work = move || {
            // Also of the threads that it starts.
            give_way();
            sending.run(copy, &header);
        };
        threads.spawn(work).map_err(StoreError::Io)?;
        Ok(receiver)
    }
}

struct Sending {
    sender: mpsc::Sender<std::io::Result<Bytes>>,
    runtime: Handle,
    rate: u64,
    began: Instant,
    sent: u64,
    _permit: OwnedSemaphorePermit,
}

impl Sending {
    fn run(mut self, copy: StoreCopy, header: &Header) {
        match self.send_all(copy, header) {
            Ok(()) => tracing::info!(
                bytes = self.sent,
                seconds = self.began.elapsed().as_secs_f64(),
                "sent the store"
            ),
            Err(error) => {
                tracing::warn!(%error, bytes = self.sent, "the store was not sent whole");
                // Breaks the connection, so that it is not taken for the end.
                let _ = self.sender.try_send(Err(error));
            }
        }
    }

    fn send_all(&mut self, copy: StoreCopy, header: &Header) -> std::io::Result<()> {
        self.send(header.encode())?;
        let (reader, writer) = std::io::pipe()?;
        // So that the two threads wake each other seldom. Where the system allows neither, it stays as it is.
        #[cfg(target_os = "linux")]
        let _ = PIPE_BYTES.iter().any(|bytes| rustix::pipe::fcntl_setpipe_size(&writer, *bytes).is_ok());
        let copying = std::thread::Builder::new()
            .name("snapshot-copy".into())
            .spawn(move || copy.write_to(OwnedFd::from(writer)))?;
        let sent = self.send_file(reader);
        // The pipe is closed, so that it ends in any case.
        let copied = copying.join().map_err(|_| std::io::Error::other("the copying thread panicked"))?;
        let (bytes, checksum) = sent?;
        copied.map_err(std::io::Error::other)?;
        self.send([&0_u32.to_be_bytes()[..], &bytes.to_be_bytes(), &checksum].concat())
    }

    fn send_file(&mut self, mut file: PipeReader) -> std::io::Result<(u64, [u8; 16])> {
        let (mut bytes, mut hash) = (0, Xxh3::new());
        loop {
            let mut frame = vec![0; 4 + SENT_FRAME_BYTES];
            let length = read_full(&mut file, &mut frame[4..])?;
            frame.truncate(4 + length);
            if length == 0 {
                return Ok((bytes, hash.digest128().to_be_bytes()));
            }
            hash.update(&frame[4..]);
            frame[..4].copy_from_slice(&(length as u32).to_be_bytes());
            bytes += length as u64;
            self.send(frame)?;
        }
    }

    fn send(&mut self, bytes: Vec<u8>) -> std::io::Result<()> {
        let gone = |why: &str| std::io::Error::other(why.to_owned());
        self.sent += bytes.len() as u64;
        let sending = self.sender.send(Ok(bytes.into()));
        self.runtime
            .block_on(async { tokio::time::timeout(STALLED_TIMEOUT, sending).await })
            .map_err(|_| gone("the receiver takes nothing"))?
            .map_err(|_| gone("the receiver has gone away"))?;
        let due = Duration::from_secs_f64(self.sent as f64 / self.rate as f64);
        let early = due.saturating_sub(self.began.elapsed());
        if !early.is_zero() {
            std::thread::sleep(early);
        }
        let slowest = MIN_BYTES_PER_SECOND.min(self.rate / 2).max(1);
        if self.began.elapsed() > Duration::from_secs(60 + self.sent / slowest) {
            return Err(gone("the receiver is too slow"));
        }
        Ok(())
    }
}

/// Reads until a buffer is full, or there is no more. Returns how many bytes there were.
fn read_full(from: &mut impl std::io::Read, into: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = into.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match from.read(rest) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
