//! The file of another store's copy while it is written: it goes to disk, and its pages are looked at, on two threads beside the one that
//! writes, so that little is left to be waited for when the last bytes have come.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread::{Builder, JoinHandle};

use crate::store::{Checkpoint, CopyCheck, Incoming, StoreError, WholePages};
use crate::worker::give_way;

/// Written at once.
const BLOCK_BYTES: usize = 1 << 20;
/// Blocks that were written and wait to be looked at.
const UNCHECKED_BLOCKS: usize = 4;
/// As much is written before the disk is asked to take it. The system would keep a store in memory until it is asked, and only then begin.
const UNSYNCED_BYTES: usize = 64 << 20;

pub struct CopyFile {
    file: Arc<File>,
    /// What is not yet written.
    block: Vec<u8>,
    unsynced: usize,
    /// `true` when nothing more comes.
    sync: SyncSender<bool>,
    /// Ends with what came of all that was asked.
    synced: JoinHandle<io::Result<()>>,
    check: SyncSender<Vec<u8>>,
    /// Blocks that were looked at.
    spare: Receiver<Vec<u8>>,
    checked: JoinHandle<Result<WholePages, String>>,
}

impl CopyFile {
    /// # Errors
    /// When the file is there already, or can't be made.
    pub fn create(path: &Path) -> io::Result<Self> {
        // As LMDB makes its own files: what is in it is the owner's alone.
        let file = Arc::new(OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?);
        let (sync, asked) = mpsc::sync_channel(1);
        let syncing = Arc::clone(&file);
        let synced =
            Builder::new().name("snapshot-sync".into()).spawn(move || sync_as_asked(&syncing, &asked))?;
        let (check, blocks) = mpsc::sync_channel(UNCHECKED_BLOCKS);
        let (give_back, spare) = mpsc::sync_channel(UNCHECKED_BLOCKS);
        let checked =
            Builder::new().name("snapshot-check".into()).spawn(move || look_at(&blocks, &give_back))?;
        let block = Vec::with_capacity(BLOCK_BYTES);
        Ok(Self { file, block, unsynced: 0, sync, synced, check, spare, checked })
    }

    /// Nothing more comes.
    ///
    /// # Errors
    /// When the last bytes can't be written.
    pub fn finish(mut self) -> io::Result<WrittenCopy> {
        self.write_block()?;
        // If it is gone, it says why.
        let _ = self.sync.send(true);
        Ok(WrittenCopy { synced: self.synced, checked: self.checked })
    }

    fn write_block(&mut self) -> io::Result<()> {
        (&*self.file).write_all(&self.block)?;
        self.unsynced += self.block.len();
        if self.unsynced >= UNSYNCED_BYTES && self.sync.try_send(false).is_ok() {
            self.unsynced = 0;
        }
        let mut next = self.spare.try_recv().unwrap_or_else(|_| Vec::with_capacity(BLOCK_BYTES));
        next.clear();
        // If it has ended, it says why.
        let _ = self.check.send(std::mem::replace(&mut self.block, next));
        Ok(())
    }
}

impl Write for CopyFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(BLOCK_BYTES - self.block.len());
        self.block.extend_from_slice(&bytes[..taken]);
        if self.block.len() == BLOCK_BYTES {
            self.write_block()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a sync fails of is said once, so all of them are in one place.
fn sync_as_asked(file: &File, asked: &Receiver<bool>) -> io::Result<()> {
    loop {
        match asked.recv() {
            Ok(false) => file.sync_data()?,
            Ok(true) => return file.sync_all(),
            // Nobody wants it any more.
            Err(mpsc::RecvError) => return Ok(()),
        }
    }
}

/// Looks at all blocks. If one is wrong, none that follows is taken.
fn look_at(blocks: &Receiver<Vec<u8>>, give_back: &SyncSender<Vec<u8>>) -> Result<WholePages, String> {
    // Requests go first: the rest of the copy is still to come while this looks at what is there.
    give_way();
    let mut check = CopyCheck::default();
    while let Ok(block) = blocks.recv() {
        check.push(&block)?;
        let _ = give_back.try_send(block);
    }
    check.finish()
}

/// A copy of which nothing is missing; it may still be on its way to disk.
pub struct WrittenCopy {
    synced: JoinHandle<io::Result<()>>,
    checked: JoinHandle<Result<WholePages, String>>,
}

impl WrittenCopy {
    /// Looks at the rest, opens it, and waits until it is on disk, unless it is told to stop.
    ///
    /// # Errors
    /// As [`Incoming::open`], and when the disk does not take it.
    pub fn open(self, incoming: &mut Incoming, stop: &AtomicBool) -> Result<Checkpoint, StoreError> {
        let pages = self.checked.join().unwrap_or_else(|_| Err("looking at it ended in a panic".to_owned()));
        let opened = pages.map_err(StoreError::Copy).and_then(|pages| incoming.open(&pages, stop));
        // Waited for in any case: until then its folder can't be removed.
        let synced = self.synced.join().unwrap_or_else(|_| Err(io::Error::other("a panic")));
        opened.and_then(|checkpoint| synced.map(|()| checkpoint).map_err(StoreError::Io))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// As the files are that LMDB makes, whatever the umask leaves.
    #[test]
    fn the_file_of_a_copy_is_its_owners_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("data.mdb");
        drop(CopyFile::create(&path).expect("a file"));
        assert_eq!(path.metadata().expect("a file").permissions().mode() & 0o777, 0o600);
    }
}
