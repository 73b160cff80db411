//! What a scan means: pages of live records in key order, from this node's store alone.

use std::ops::Bound;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use bitacora_protocol::Position;
use bitacora_protocol::rpc::ScanRequest;
use tokio::sync::Semaphore;
use xxhash_rust::xxh3::xxh3_64;

use crate::replication::progress::Progress;
use crate::service::memory::{Memory, OutOfMemory, Permit};
use crate::service::writes::MAX_KEY_BYTES;
use crate::store::{Entry, ScannedPage, State, Store, StoreError};

/// Records in a page, at most.
pub const MAX_LIMIT: i32 = 10_000;
/// Pages that are read at a time; further scans wait. Bounds the disk's queue.
const MAX_CONCURRENT_PAGES: usize = 8;
/// A page of more is made an answer of on a thread of its own.
const SMALL_PAGE_BYTES: usize = 32 * 1024;
/// What a page is taken to have until it was read: what the store puts into one, and a last record that exceeds it.
const PAGE_MEMORY_BYTES: usize = 2 << 20;

pub struct Scans {
    store: Arc<Store>,
    progress: Arc<Progress>,
    permits: Semaphore,
}

pub struct Page {
    /// In key order; live when they were read, so they can be decoded.
    pub entries: Vec<Entry>,
    /// A key of which what the page says, or that it is missing, may not be what the log says.
    pub in_doubt: Option<String>,
    /// For the next page; `None` at the end.
    pub cursor: Option<String>,
    /// How far each partition was applied when the page had been read: nothing in it is of later.
    pub applied: Vec<Position>,
    /// Of the entries, until they are sent.
    pub memory: Permit,
}

#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    #[error("limit is {0}; a page has 1 to {MAX_LIMIT} records")]
    Limit(i32),
    #[error("{0} has {1} bytes; a key has at most {MAX_KEY_BYTES}")]
    TooLong(&'static str, usize),
    #[error("{0} has {1} bytes; a key in the store has at most {2}")]
    TooLongForStore(&'static str, usize, usize),
    #[error("this is not a cursor of a scan; give the one of the page before, or none to start anew")]
    NoCursor,
    #[error("the cursor belongs to another scan; prefix, start and end must be those of its first page")]
    ForeignCursor,
    #[error("this node is still restoring its store; try again, or ask another node")]
    NotRestored,
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Page {
    /// Makes an answer of it. Of a large one on a thread of its own: some milliseconds in which a worker of the runtime would answer
    /// nobody else.
    ///
    /// # Errors
    /// When that thread panicked.
    pub async fn answer<T: Send + 'static>(
        self,
        answer: impl FnOnce(Page) -> T + Send + 'static,
    ) -> Result<T, ScanError> {
        if self.entries.iter().map(Entry::bytes).sum::<usize>() <= SMALL_PAGE_BYTES {
            return Ok(answer(self));
        }
        let answering = tokio::task::spawn_blocking(move || answer(self));
        Ok(answering.await.map_err(|_| StoreError::Corrupt("records"))?)
    }
}

impl Scans {
    #[must_use]
    pub fn new(store: Arc<Store>, progress: Arc<Progress>) -> Self {
        Self { store, progress, permits: Semaphore::new(MAX_CONCURRENT_PAGES) }
    }

    /// A page of records. It may be shorter than the limit, even empty, and still have a cursor: what a page costs is
    /// bounded in bytes and in the keys that are looked at, deleted ones included.
    ///
    /// # Errors
    /// When the request is wrong, the node does not know all keys yet or has no memory for a page, or the store fails.
    pub async fn page(&self, scan: &ScanRequest<'_>, memory: &Memory) -> Result<Page, ScanError> {
        for (name, text) in [("prefix", scan.prefix), ("start", scan.start), ("end", scan.end)] {
            if text.len() > MAX_KEY_BYTES {
                return Err(ScanError::TooLong(name, text.len()));
            }
        }
        let limit = usize::try_from(scan.limit).ok().filter(|_| (1..=MAX_LIMIT).contains(&scan.limit));
        let limit = limit.ok_or(ScanError::Limit(scan.limit))?;
        let from = match scan.cursor {
            "" => Bound::Included(scan.prefix.max(scan.start).as_bytes().to_vec()),
            cursor => Bound::Excluded(key_of(cursor, scan)?),
        };
        if !self.progress.restored() {
            return Err(ScanError::NotRestored);
        }
        let (prefix, end) = (scan.prefix.as_bytes().to_vec(), scan.end.as_bytes().to_vec());
        // Never closed.
        let _permit = self.permits.acquire().await;
        let mut memory = memory.take(PAGE_MEMORY_BYTES)?;
        let (store, now) = (Arc::clone(&self.store), self.progress.clock().wall());
        // It may read much from disk; and LMDB's reader must not outlive the call.
        let read = tokio::task::spawn_blocking(move || {
            store.scan(&from, &prefix, &end, limit, |entry| entry.state(now) == State::Live)
        });
        let ScannedPage { entries, last, in_doubt } =
            read.await.map_err(|_| StoreError::Corrupt("records"))??;
        // The store may have been emptied under the scan, to be rebuilt.
        if !self.progress.restored() {
            return Err(ScanError::NotRestored);
        }
        let applied =
            (0..).zip(self.progress.next_offsets()).map(|(partition, next)| next.applied(partition));
        memory.set(entries.iter().map(Entry::bytes).sum());
        Ok(Page {
            entries,
            in_doubt: in_doubt.map(|key| String::from_utf8_lossy(&key).into_owned()),
            cursor: last.map(|key| cursor_after(&key, scan)),
            applied: applied.collect(),
            memory,
        })
    }
}

/// A cursor is the last key that was looked at, so no write in between can disturb it, and a tag of the scan's bounds,
/// so that it can't be taken for another scan's. Any node understands it.
fn cursor_after(key: &[u8], scan: &ScanRequest<'_>) -> String {
    let mut bytes = tag(scan).to_vec();
    bytes.extend_from_slice(key);
    BASE64.encode(bytes)
}

fn key_of(cursor: &str, scan: &ScanRequest<'_>) -> Result<Vec<u8>, ScanError> {
    let bytes = BASE64.decode(cursor).map_err(|_| ScanError::NoCursor)?;
    match bytes.split_first_chunk() {
        Some((found, key)) if !key.is_empty() && key.len() <= MAX_KEY_BYTES => {
            if *found == tag(scan) {
                Ok(key.to_vec())
            } else {
                Err(ScanError::ForeignCursor)
            }
        }
        _ => Err(ScanError::NoCursor),
    }
}

/// A hash of the bounds: enough to notice a mistake, and the same on every node.
fn tag(scan: &ScanRequest<'_>) -> [u8; 8] {
    // 0xff is in no UTF-8, so it separates.
    let bounds = [scan.prefix, scan.start, scan.end].map(str::as_bytes).join(&0xff);
    xxh3_64(&bounds).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::damage::{damaged, damages};

    proptest! {
        #[test]
        fn any_cursor_is_a_key_of_this_scan_or_refused(
            key in prop::collection::vec(any::<u8>(), 1..MAX_KEY_BYTES),
            prefix in ".{0,5}",
            text in ".*|[A-Za-z0-9_-]{12,40}",
            damages in damages(),
        ) {
            let scan = ScanRequest { prefix: &prefix, ..ScanRequest::default() };
            let cursor = cursor_after(&key, &scan);
            prop_assert_eq!(key_of(&cursor, &scan).expect("its own"), key);
            prop_assert!(key_of(&text, &scan).is_err(), "eight bytes of a tag are not hit by chance");
            let bytes = damaged(cursor.as_bytes(), &damages);
            if let Ok(key) = key_of(&String::from_utf8_lossy(&bytes), &scan) {
                // Another key of the same scan is a place to go on from, as good as any.
                prop_assert!(!key.is_empty() && key.len() <= MAX_KEY_BYTES);
                prop_assert_eq!(cursor_after(&key, &scan).into_bytes(), bytes);
            }
        }
    }

    #[test]
    fn a_cursor_leads_on_in_its_own_scan_only() {
        let scan = ScanRequest { prefix: "a", ..ScanRequest::default() };
        let cursor = cursor_after("a/ü".as_bytes(), &scan);
        assert_eq!(key_of(&cursor, &scan).expect("its own"), "a/ü".as_bytes());
        for other in [ScanRequest { prefix: "b", ..scan }, ScanRequest { prefix: "", start: "a", ..scan }] {
            assert!(matches!(key_of(&cursor, &other), Err(ScanError::ForeignCursor)));
        }
        for text in ["x", "====", "AAAA", &BASE64.encode(tag(&scan)), &BASE64.encode([0; 2000]), "ü"] {
            assert!(matches!(key_of(text, &scan), Err(ScanError::NoCursor)), "{text}");
        }
    }
}
