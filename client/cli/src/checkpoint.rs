//! Files that remember how far something is, replaced as a whole so that a crash leaves the old or the new one.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use bitacora_program::files::write_whole;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// What the file says; `None` if there is none. What is no regular file can't be read again.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let shown = path.display();
    if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir()) {
        return Ok(None);
    }
    let text = match fs::read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        text => text.with_context(|| format!("the checkpoint {shown} can't be read"))?,
    };
    let state = serde_json::from_slice(&text);
    // What the parser missed is of no use to who gave another file.
    state.map(Some).map_err(|_| anyhow!("{shown} is no checkpoint of this command; remove it to begin anew"))
}

/// Follows symbolic links, keeps the file's mode, and writes to what is no regular file as it is.
pub fn write(path: &Path, state: &impl Serialize) -> Result<()> {
    let written = write_whole(path, &serde_json::to_vec(state)?);
    // Without the error as a cause: a pipe whose reader has gone is a failure here.
    written.map_err(|error| anyhow!("the checkpoint {} can't be written: {error}", path.display()))
}
