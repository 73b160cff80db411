//! Files that remember how far something is, replaced as a whole so that a crash leaves the old or the new one.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// What the file says; `None` if there is none.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let shown = path.display();
    let text = match fs::read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        text => text.with_context(|| format!("the checkpoint {shown} can't be read"))?,
    };
    let state = serde_json::from_slice(&text);
    Ok(Some(
        state
            .with_context(|| format!("{shown} is no checkpoint of this command; remove it to begin anew"))?,
    ))
}

pub fn write(path: &Path, state: &impl Serialize) -> Result<()> {
    let new = with_suffix(path, ".new");
    let write = || {
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec(state)?)?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().with_context(|| format!("the checkpoint {} can't be written", path.display()))
}

pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
