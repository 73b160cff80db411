//! What an import writes is tried before its first record is sent, and must be none of what it reads: it would destroy its input,
//! or read what it writes.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind};
use std::path::Path;

use anyhow::{Result, anyhow};
use bitacora_program::files::{check_writable, same_file};

use crate::api::{Failure, Kind};
use crate::cli::Import;

/// A path that is read or written.
#[derive(Clone, Copy)]
struct Used<'a> {
    /// How the command line names it, with a space behind; or nothing.
    flag: &'static str,
    path: &'a Path,
}

impl Used<'_> {
    fn shown(self) -> String {
        format!("{}{}", self.flag, self.path.display())
    }
}

/// Refuses an import that would write what it reads, or one file in two ways. Opens nothing.
pub(super) fn refuse_shared(arguments: &Import) -> Result<(), Failure> {
    let is_stdin = arguments.input == Path::new("-");
    let input = if is_stdin { Path::new("/dev/stdin") } else { &arguments.input };
    let input = Used { flag: "the input ", path: input };
    let rejects = arguments.rejects.as_deref().map(|path| Used { flag: "--rejects ", path });
    let checkpoint = arguments.checkpoint.as_deref().map(|path| Used { flag: "--checkpoint ", path });
    let stderr = Used { flag: "", path: Path::new("/dev/stderr") };
    let pairs = [
        (Some(input), rejects),
        (Some(input), checkpoint),
        (Some(input), Some(stderr)),
        (rejects, checkpoint),
    ];
    for (read, written) in pairs.into_iter().filter_map(|(read, written)| read.zip(written)) {
        if same_file(read.path, written.path) {
            let sentence = format!(
                "{} and {} are the same file, and writing the one would change the other; give another file",
                written.shown(),
                read.shown()
            );
            return Err(Failure::new(Kind::Usage, sentence));
        }
    }
    Ok(())
}

/// Refuses what can't be written. Changes nothing.
pub(super) fn try_outputs(arguments: &Import) -> Result<()> {
    if let Some(path) = &arguments.checkpoint {
        check_writable(path).map_err(|error| cannot_write(path, "--checkpoint", &error))?;
    }
    if let Some(path) = &arguments.rejects {
        // It grows in its place, so it may be in a folder in which nothing new can be.
        let tried = match fs::metadata(path) {
            Ok(there) if there.is_file() => OpenOptions::new().write(true).open(path).map(drop),
            _ => check_writable(path),
        };
        tried.map_err(|error| cannot_write(path, "--rejects", &error))?;
    }
    Ok(())
}

/// Without the error as a cause: a pipe whose reader has gone is a failure here.
pub(super) fn cannot_write(path: &Path, flag: &str, error: &io::Error) -> anyhow::Error {
    let shown = path.display();
    match error.kind() {
        ErrorKind::ResourceBusy => {
            anyhow!("{shown} ({flag}) is being written by another process; give another file")
        }
        _ => anyhow!("{shown} ({flag}) can't be written: {error}"),
    }
}
