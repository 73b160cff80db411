//! What this node holds of ranges of keys, for who looks for the keys in which two nodes differ.

use std::borrow::Cow;
use std::sync::Arc;

use bitacora_protocol::http::{ComparedPartition, DigestRanges, KeyBytes, RangeEntry, RangePart};

use super::Digests;
use crate::service::memory::{Memory, Permit};
use crate::service::scans::ScanError;
use crate::store::{
    Division, FORMAT, PartitionThen, RangeBounds, RangeQuery, StoreError, StorePart, StoreRangeEntry,
    StoreRanges,
};

/// Ranges that are looked at at a time; others wait. Bounds what the disk and the processors have to do for it.
pub(super) const MAX_CONCURRENT_SCANS: usize = 2;
/// What an answer is taken to have until it is made: the keys of its parts or its entries, in text.
const ANSWER_MEMORY_BYTES: usize = 4 << 20;

impl Digests {
    /// What the store holds of a range of keys. The memory is of the answer, until it is sent.
    ///
    /// # Errors
    /// When a key is longer than the store's keys may be, the store may not be read yet, there is no memory for the answer, or LMDB fails.
    pub async fn ranges(
        &self,
        query: RangeQuery,
        memory: &Memory,
    ) -> Result<(DigestRanges, Permit), ScanError> {
        let most = self.store.max_key_bytes();
        let at: &[Vec<u8>] = if let Division::At(keys) = &query.division { keys } else { &[] };
        for (name, keys) in
            [("from", std::slice::from_ref(&query.from)), ("to", std::slice::from_ref(&query.to)), ("at", at)]
        {
            if let Some(key) = keys.iter().find(|key| key.len() > most) {
                return Err(ScanError::TooLongForStore(name, key.len(), most));
            }
        }
        if !self.progress.restored() {
            return Err(ScanError::NotRestored);
        }
        // Never closed.
        let permit = Arc::clone(&self.scans).acquire_owned().await;
        let memory = memory.take(ANSWER_MEMORY_BYTES)?;
        let lists_entries = matches!(query.division, Division::Entries(_));
        let store = Arc::clone(&self.store);
        // It may read much from disk; and LMDB's reader must not outlive the call.
        let read = tokio::task::spawn_blocking(move || {
            // Also of a caller who has gone.
            let _permit = permit;
            store.digest_ranges(&query, RangeBounds::USUAL)
        });
        let StoreRanges { log, partitions, parts, entries } =
            read.await.map_err(|_| StoreError::Corrupt("records"))??;
        // The store may have been emptied under the scan, to be rebuilt.
        if !self.progress.restored() {
            return Err(ScanError::NotRestored);
        }
        let answer = DigestRanges {
            format: Cow::Borrowed(FORMAT),
            log: format!("{:x}", log.0),
            partitions: partitions.into_iter().map(|then| self.compared(then)).collect(),
            parts: parts.into_iter().map(part).collect(),
            entries: lists_entries.then(|| entries.into_iter().map(entry).collect()),
        };
        Ok((answer, memory))
    }

    fn compared(&self, PartitionThen { partition, next, is_whole }: PartitionThen) -> ComparedPartition {
        // While another store is built, this one is one that does not fit the log.
        ComparedPartition { partition, next: next.0, comparable: is_whole && !self.store.is_building() }
    }
}

fn part(StorePart { to, count, digest }: StorePart) -> RangePart {
    RangePart { to: to.map(KeyBytes), count, digest: digest.to_string() }
}

fn entry(StoreRangeEntry { key, position, digest }: StoreRangeEntry) -> RangeEntry {
    RangeEntry { key: KeyBytes(key), position, digest: digest.to_string() }
}
