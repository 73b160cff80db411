//! The folder of a store: which of its environments is the store.
//!
//! Environments have folders of their own, `1`, `2`, `3`…; the file `CURRENT` names the one that is the store (`1` without it). A new
//! one is built beside it and synced, then `CURRENT` is replaced by a rename, then the old one is removed. So a crash at any point
//! leaves one whole store; what `CURRENT` does not name goes at the next start.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

const CURRENT: &str = "CURRENT";

/// The number of an environment; far from the largest, so that there is always a next one.
fn number(text: &str) -> Option<u64> {
    text.parse::<u32>().ok().map(u64::from)
}

/// The folder of a store.
pub(super) struct StoreFolder(PathBuf);

impl StoreFolder {
    pub fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The number of the environment that is the store. Changes nothing.
    pub fn named(&self) -> io::Result<u64> {
        match fs::read(self.0.join(CURRENT)) {
            Ok(text) => number(String::from_utf8_lossy(&text).trim()).ok_or_else(|| {
                io::Error::other(format!(
                    "{} holds '{}', which is no number of a store; remove the folder, it is rebuilt from the log",
                    self.0.join(CURRENT).display(),
                    String::from_utf8_lossy(&text).trim().chars().take(40).collect::<String>()
                ))
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(1),
            Err(error) => Err(error),
        }
    }

    /// As [`StoreFolder::named`]. Removes every other one, the traces of a build that was cut short.
    pub fn current(&self) -> io::Result<u64> {
        fs::create_dir_all(&self.0)?;
        let current = self.named()?;
        for number in self.numbers()? {
            if number != current {
                self.remove(number);
            }
        }
        Ok(current)
    }

    fn numbers(&self) -> io::Result<Vec<u64>> {
        let entries = fs::read_dir(&self.0)?;
        Ok(entries.flatten().filter_map(|entry| number(entry.file_name().to_str()?)).collect())
    }

    /// The number of an environment that is not there yet.
    pub fn unused(&self) -> io::Result<u64> {
        Ok(self.numbers()?.into_iter().max().unwrap_or_default().max(1) + 1)
    }

    /// Makes an environment the store. It must be on the disk already.
    pub fn point_to(&self, number: u64) -> io::Result<()> {
        let new = self.0.join("CURRENT.new");
        let mut file = File::create(&new)?;
        writeln!(file, "{number}")?;
        file.sync_all()?;
        fs::rename(&new, self.0.join(CURRENT))?;
        // The rename, and the environment's folder.
        File::open(&self.0)?.sync_all()
    }

    /// What is left of it goes at the next start.
    pub fn remove(&self, number: u64) {
        let dir = self.0.join(number.to_string());
        if let Err(error) = fs::remove_dir_all(&dir) {
            tracing::warn!(%error, "{} could not be removed", dir.display());
        }
    }
}
