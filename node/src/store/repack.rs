//! Full pages for a store that was filled in another order than that of its keys.
//!
//! LMDB splits a full page in the middle where a key comes between others, so a store that was filled in random order has pages that are
//! two thirds full, and one that was filled from several ends at once half full ones. Keys that come behind all others are appended, and
//! leave full pages ([`super::apply`]). What was not appended is written once more, in order, before anybody reads it.

use heed::PutFlags;

use super::environment::Environment;
use super::stats::Disk;
use super::{Store, StoreError};

/// A store is written anew if its leaves are filled less than this, in percent. In order, they are filled by more than nine tenths, unless
/// records are about as large as a page.
const MIN_FILLED_PERCENT: u64 = 80;
/// Records that were not appended, in percent of all, below which nobody looks how well the pages are filled.
const MAX_INSERTED_PERCENT: u64 = 10;
/// In one transaction.
const MAX_BYTES: usize = 32 << 20;
/// Keys that are looked at between two questions whether to go on.
const KEYS_BETWEEN_QUESTIONS: usize = 100_000;
/// The disk keeps as much free.
const SPARE_BYTES: u64 = 64 << 20;

/// Bytes that a page and a node of LMDB's begin with, and those of a pointer to a node.
const PAGE_HEADER: usize = 16;
const NODE_HEADER: usize = 8;
const POINTER: usize = 2;

impl Store {
    /// Writes the store that is written once more, in the order of its keys, if its pages are filled poorly and the disk has room for both.
    /// To be called before it is complete. `appended`: how many of its records are known to have been appended; `goes_on` is asked
    /// several times a second. Returns whether it was written anew.
    ///
    /// # Errors
    /// When LMDB or the disk fails; the store is then as before.
    pub fn repack(&self, appended: u64, goes_on: &dyn Fn() -> bool) -> Result<bool, StoreError> {
        let old = self.written().environment().clone();
        if !is_filled_poorly(&old, appended, goes_on)? || !has_room(&old)? {
            return Ok(false);
        }
        let new = Environment::open(self.folder.path(), self.folder.unused()?)?;
        let number = new.number;
        let copied = copy_in_order(&old, &new, goes_on).and_then(|is_whole| {
            if is_whole {
                self.put_in_place(new)?;
            }
            Ok(is_whole)
        });
        if !matches!(copied, Ok(true)) {
            self.folder.remove(number);
        }
        copied
    }

    /// The store that is written is another environment from now on, which holds the same.
    fn put_in_place(&self, new: Environment) -> Result<(), StoreError> {
        let mut building = self.building.lock();
        if building.is_none() {
            drop(building);
            return self.replace(new);
        }
        if let Some(old) = building.replace(new) {
            self.folder.remove(old.number);
        }
        Ok(())
    }
}

/// Whether the leaves of the records are filled less than they should be.
fn is_filled_poorly(
    environment: &Environment,
    appended: u64,
    goes_on: &dyn Fn() -> bool,
) -> Result<bool, StoreError> {
    let txn = environment.env.read_txn()?;
    let stat = environment.records.stat(&txn)?;
    let (entries, page_bytes) = (stat.entries as u64, stat.page_size as usize);
    if entries.saturating_sub(appended) * 100 <= entries * MAX_INSERTED_PERCENT {
        return Ok(false);
    }
    let mut filled = 0;
    for (index, item) in environment.records.iter(&txn)?.enumerate() {
        let (key, value) = item?;
        if index % KEYS_BETWEEN_QUESTIONS == 0 && !goes_on() {
            return Ok(false);
        }
        filled += node_bytes(key, value, page_bytes) as u64;
    }
    let room = stat.leaf_pages as u64 * (page_bytes - PAGE_HEADER) as u64;
    Ok(filled * 100 < room * MIN_FILLED_PERCENT)
}

/// What a key and its value take in a leaf.
fn node_bytes(key: &[u8], value: &[u8], page_bytes: usize) -> usize {
    // What is larger lies in pages of its own, whose number is in the leaf. As LMDB counts, so that two nodes always fit into a page.
    let most = (((page_bytes - PAGE_HEADER) / 2) & !1) - POINTER;
    let inside = NODE_HEADER + key.len() + value.len();
    let inside = if inside > most { NODE_HEADER + key.len() + size_of::<u64>() } else { inside };
    inside.next_multiple_of(2) + POINTER
}

fn has_room(environment: &Environment) -> Result<bool, StoreError> {
    let bytes = environment.compact_bytes()?;
    let free = Disk::of(environment.env.path()).map_or(u64::MAX, |disk| disk.free);
    let has_room = bytes.saturating_add(SPARE_BYTES) <= free;
    if !has_room {
        tracing::warn!(bytes, free, "the disk has no room to write the store once more, with full pages");
    }
    Ok(has_room)
}

/// Copies all databases. Returns whether it came to the end.
fn copy_in_order(
    from: &Environment,
    to: &Environment,
    goes_on: &dyn Fn() -> bool,
) -> Result<bool, StoreError> {
    to.leave_unsynced()?;
    let txn = from.env.read_txn()?;
    let mut writing = to.env.write_txn()?;
    let mut bytes = 0;
    for (source, target) in from.databases_as_bytes().into_iter().zip(to.databases_as_bytes()) {
        target.clear(&mut writing)?;
        for item in source.iter(&txn)? {
            let (key, value) = item?;
            target.put_with_flags(&mut writing, PutFlags::APPEND, key, value)?;
            bytes += key.len() + value.len();
            if bytes >= MAX_BYTES {
                bytes = 0;
                writing.commit()?;
                if !goes_on() {
                    return Ok(false);
                }
                writing = to.env.write_txn()?;
            }
        }
    }
    writing.commit()?;
    Ok(true)
}
