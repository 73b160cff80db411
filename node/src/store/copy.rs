//! Copies of a whole store: given to other members and backups, and taken from them.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use heed::CompactionOption;

use super::environment::{DATA_FILE, Environment};
use super::folder::StoreFolder;
use super::pages::{CopyCheck, WholePages};
use super::{Checkpoint, Store, StoreError};

impl Store {
    /// A place for the copy of another node's store.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn incoming(&self) -> Result<Incoming, StoreError> {
        let number = self.folder.unused()?;
        let dir = self.folder.path().join(number.to_string());
        std::fs::create_dir_all(&dir)?;
        Ok(Incoming {
            folder: StoreFolder::new(self.folder.path()),
            number,
            file: dir.join(DATA_FILE),
            environment: None,
            installed: false,
        })
    }

    /// Puts the copy of another node's store in the place of this one.
    ///
    /// # Errors
    /// When LMDB or the disk fails; this store then stays.
    pub fn install(&self, mut incoming: Incoming) -> Result<(), StoreError> {
        let environment = incoming.environment.take().ok_or(StoreError::Corrupt("copy"))?;
        self.replace(environment)?;
        incoming.installed = true;
        Ok(())
    }

    /// A consistent copy of the store that is read, to be written out.
    ///
    /// # Errors
    /// When LMDB fails.
    pub fn copy(&self) -> Result<StoreCopy, StoreError> {
        let environment = self.current.load().environment.clone();
        Ok(StoreCopy {
            checkpoint: environment.checkpoint()?,
            bytes: environment.compact_bytes()?,
            environment,
            _in_use: Arc::clone(&self.in_use),
        })
    }
}

/// A store to be copied out. Cheap until it is written.
pub struct StoreCopy {
    environment: Environment,
    /// As of a moment before the copy is made: its positions are the copy's or earlier ones.
    pub checkpoint: Checkpoint,
    /// About as many as will be written.
    pub bytes: u64,
    /// Last, so that the files are closed when it is dropped.
    _in_use: Arc<()>,
}

impl StoreCopy {
    /// Writes the store as it is now, without free pages, as a file of LMDB. Blocks for as long as `to` takes; until then
    /// pages that writers free are not used again, so the store's file grows by what is written meanwhile.
    ///
    /// # Errors
    /// When LMDB fails or `to` takes no more.
    pub fn write_to(&self, to: impl Into<OwnedFd>) -> Result<(), StoreError> {
        let mut file = File::from(to.into());
        Ok(self.environment.env.copy_to_file(&mut file, CompactionOption::Enabled)?)
    }
}

/// A copy of another node's store on its way in; removed again unless it is installed.
pub struct Incoming {
    folder: StoreFolder,
    /// Of its environment.
    number: u64,
    /// Where its bytes go.
    file: PathBuf,
    pub(super) environment: Option<Environment>,
    installed: bool,
}

impl Incoming {
    /// The file to write, which is not there yet.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Looks at the pages of a file that was written in another way than through a [`CopyCheck`], as tests do.
    ///
    /// # Errors
    /// When they are not whole, or can't be read.
    pub fn look_at_pages(&self) -> Result<WholePages, StoreError> {
        let mut check = CopyCheck::default();
        check.push(&std::fs::read(&self.file)?).map_err(StoreError::Copy)?;
        check.finish().map_err(StoreError::Copy)
    }

    /// Opens what was written, whose pages were looked at on the way, and looks at all records. It need not be on disk yet. Takes as long as
    /// to read it, unless it is told to stop.
    ///
    /// # Errors
    /// When it is no store of this format, complete and such as a node writes.
    pub fn open(&mut self, _pages: &WholePages, stop: &AtomicBool) -> Result<Checkpoint, StoreError> {
        let checked = || {
            let environment = Environment::open(self.folder.path(), self.number)?;
            let checkpoint = environment.checkpoint()?;
            environment.check(&checkpoint, stop)?;
            Ok((environment, checkpoint))
        };
        let (environment, checkpoint) = checked().map_err(|error| match error {
            // It is not this node's data folder that is to be removed.
            StoreError::Corrupt(database) => {
                StoreError::Copy(format!("it holds something under '{database}' that no node writes"))
            }
            error => error,
        })?;
        self.environment = Some(environment);
        Ok(checkpoint)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if !self.installed {
            self.environment = None;
            self.folder.remove(self.number);
        }
    }
}
