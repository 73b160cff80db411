//! A folder on disk that one process owns.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The file that says whose a folder is.
const LOCK: &str = "LOCK";

/// A data folder, locked against other processes until dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    /// The kernel releases the lock when the process ends, however it ends.
    _lock: File,
}

impl DataDir {
    /// Creates the folder if it is missing, and locks it.
    ///
    /// # Errors
    /// Names the folder when it can't be created, written or locked.
    pub fn open(path: &Path) -> Result<Self> {
        let shown = path.display();
        fs::create_dir_all(path).with_context(|| {
            format!("the data folder {shown} can't be created; choose another with --data-dir")
        })?;
        let lock_path = path.join(LOCK);
        let mut lock =
            OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path).with_context(|| {
                format!("the data folder {shown} can't be written; mend its owner or choose another with --data-dir")
            })?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let owner = fs::read_to_string(&lock_path).unwrap_or_default();
                bail!(
                    "the data folder {shown} is in use by another process ({}); stop it or choose another folder with --data-dir",
                    owner.trim()
                );
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("the data folder {shown} can't be locked"));
            }
        }
        // Only for the message above; the lock itself is the kernel's.
        if let Err(error) = lock.set_len(0).and_then(|()| writeln!(lock, "process {}", std::process::id())) {
            // On a full disk what is stored can still be read.
            tracing::warn!(%error, "the data folder {shown} can't be written; is its disk full?");
        }
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// Whether a folder is, or was, a process's data folder.
    #[must_use]
    pub fn is_one(path: &Path) -> bool {
        path.join(LOCK).is_file()
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_owner_at_a_time() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let first = DataDir::open(dir.path()).expect("the folder is free");
        let error = DataDir::open(dir.path()).expect_err("the folder is taken").to_string();
        assert!(error.contains("in use by another process"), "{error}");
        drop(first);
        DataDir::open(dir.path()).expect("the folder is free again");
    }

    #[test]
    fn a_file_in_its_place_is_a_sentence() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let error = DataDir::open(file.path()).expect_err("a file is no folder").to_string();
        assert!(error.contains("--data-dir"), "{error}");
    }
}
