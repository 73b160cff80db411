//! What can go wrong with a store, and how an operator mends it.

use std::io;
use std::path::Path;

use super::stats::Disk;

/// A disk with less is as good as full.
const FULL_DISK_BYTES: u64 = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{why}")]
    Open { why: String, source: heed::Error },
    #[error("the store failed: {0}")]
    Lmdb(#[from] heed::Error),
    #[error("the store's folder failed: {0}")]
    Io(#[from] io::Error),
    #[error(
        "the store holds something that it never wrote under '{0}'; stop the node and remove its data folder, it is rebuilt from the log"
    )]
    Corrupt(&'static str),
    #[error(
        "the store in {path} is damaged: {why}; stop the node and remove its data folder, it is rebuilt from the log"
    )]
    Damaged { path: String, why: String },
    #[error("the copy is not that of a store: {0}")]
    Copy(String),
    #[error("{0}")]
    Missing(String),
}

impl StoreError {
    /// Whether the same may be tried again, now that it failed: with more room on the disk it may succeed.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        use heed::{Error, MdbError};
        match self {
            Self::Open { .. } | Self::Io(_) => true,
            // After a failure of the meta page LMDB refuses everything until the environment is opened anew.
            Self::Lmdb(error) => !matches!(error, Error::Mdb(MdbError::Panic)),
            Self::Corrupt(_) | Self::Damaged { .. } | Self::Copy(_) | Self::Missing(_) => false,
        }
    }
}

/// What LMDB reads without an error may still be nothing that was written there.
pub(super) fn undecoded(database: &'static str) -> impl Fn(heed::Error) -> StoreError {
    move |error| match error {
        heed::Error::Decoding(_) => StoreError::Corrupt(database),
        error => error.into(),
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
                || disk.is_some_and(|disk| disk.free < FULL_DISK_BYTES)
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
