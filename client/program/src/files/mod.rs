//! Files as people expect a program to write them.
//!
//! - A regular file is written under another name and renamed when it is whole, so its own name always stands for a whole file,
//!   also when two programs write it at once. Its mode and, as far as the system allows, its owner stay.
//! - A symbolic link stays; what it leads to is written.
//! - What is no regular file, such as `/dev/null`, a FIFO or `/dev/stdout`, is never replaced; it is written to.

mod place;
#[cfg(test)]
mod tests;
mod whole;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Seek as _, SeekFrom, Write};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

pub use whole::WholeFile;

use place::Place;

/// Where a program writes what has to be whole.
#[derive(Debug)]
pub enum Output {
    /// A regular file.
    Whole(WholeFile),
    /// This process's stdout, under one of its names, such as `/dev/stdout`.
    Stdout(File),
    /// A device, a FIFO, or a file that was opened before, such as `/dev/fd/3`. It takes each byte as it comes.
    Stream(File),
}

impl Output {
    /// Opens a path for writing; what a regular file holds stays until [`finish`](Self::finish). Waits for the reader of a FIFO.
    ///
    /// # Errors
    /// The system's. Nothing is changed then.
    pub fn create(path: &Path) -> io::Result<Self> {
        Self::open(path, |target, existing| WholeFile::create(target, existing.as_ref()))
    }

    /// As [`create`](Self::create), but a regular file that is there already is an error, also if it comes to be there until
    /// [`finish`](Self::finish). A new one is its owner's alone, as the files of a store are.
    ///
    /// # Errors
    /// The system's; of a file that is there, of the kind `AlreadyExists`.
    pub fn create_new(path: &Path) -> io::Result<Self> {
        Self::open(path, |target, existing| match existing {
            Some(_) => Err(io::ErrorKind::AlreadyExists.into()),
            None => WholeFile::create_new(target),
        })
    }

    /// As [`create`](Self::create), for a file that another run can go on with: it grows under [`part_of`] its name, which stays
    /// when this value is dropped. `kept`: the bytes of it that are not written again; what follows them is cut off.
    ///
    /// # Errors
    /// The system's; `ResourceBusy` if another process writes it, `UnexpectedEof` if it has less than `kept` bytes, and
    /// `NotSeekable` if the path leads to no regular file.
    pub fn resume(path: &Path, kept: u64) -> io::Result<Self> {
        match Place::of(path)? {
            Place::File { path, existing } => WholeFile::resume(path, existing, kept).map(Self::Whole),
            _ => Err(io::ErrorKind::NotSeekable.into()),
        }
    }

    fn open(
        path: &Path,
        whole: impl FnOnce(std::path::PathBuf, Option<fs::Metadata>) -> io::Result<WholeFile>,
    ) -> io::Result<Self> {
        match Place::of(path)? {
            Place::File { path, existing } => whole(path, existing).map(Self::Whole),
            Place::Stdout => place::stdout().map(Self::Stdout),
            Place::Other(path) => OpenOptions::new().write(true).open(path).map(Self::Stream),
            Place::Opened(path) => OpenOptions::new().append(true).open(path).map(Self::Stream),
        }
    }

    /// The file that takes the bytes.
    pub fn file(&self) -> &File {
        match self {
            Self::Whole(whole) => whole.file(),
            Self::Stdout(file) | Self::Stream(file) => file,
        }
    }

    /// Gives a whole file its name, on disk. Without it a file is as if nothing had been written.
    ///
    /// # Errors
    /// The system's; `AlreadyExists` after [`create_new`](Self::create_new).
    pub fn finish(self) -> io::Result<()> {
        match self {
            Self::Whole(whole) => whole.finish(),
            Self::Stdout(mut file) | Self::Stream(mut file) => file.flush(),
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file().flush()
    }
}

/// Writes all of a file at once: a crash leaves the old content or the new one.
///
/// # Errors
/// The system's.
pub fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut output = Output::create(path)?;
    output.write_all(content)?;
    output.finish()
}

/// Opens a file that grows in its place: what follows its first `kept` bytes is cut off. What is no regular file is written to as
/// it is. A regular file is this process's alone, until the answer is dropped.
///
/// # Errors
/// The system's; `ResourceBusy` if another process writes it in this way.
pub fn open_growing(path: &Path, kept: u64) -> io::Result<File> {
    match Place::of(path)? {
        Place::File { path, .. } => {
            let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
            // Not every file system has locks.
            if let Err(TryLockError::WouldBlock) = file.try_lock() {
                return Err(io::ErrorKind::ResourceBusy.into());
            }
            file.set_len(kept)?;
            file.seek(SeekFrom::End(0))?;
            Ok(file)
        }
        Place::Stdout => place::stdout(),
        Place::Other(path) => OpenOptions::new().write(true).open(path),
        Place::Opened(path) => OpenOptions::new().append(true).open(path),
    }
}

/// Tries whether a path can be written, before work begins whose result it should take. Changes nothing.
///
/// # Errors
/// What writing to it would fail of.
pub fn check_writable(path: &Path) -> io::Result<()> {
    match Place::of(path)? {
        Place::File { path, existing } => WholeFile::create(path, existing.as_ref()).map(drop),
        Place::Other(path) => place::check_access(&path),
        Place::Stdout | Place::Opened(_) => Ok(()),
    }
}

/// The name under which a file grows that another run can go on with.
///
/// # Errors
/// The system's, when symbolic links can't be followed.
pub fn part_of(path: &Path) -> io::Result<std::path::PathBuf> {
    match Place::of(path)? {
        Place::File { path, .. } => Ok(whole::part_of(&path)),
        _ => Err(io::ErrorKind::NotSeekable.into()),
    }
}

/// Whether two paths lead to the same thing, so that writing to the one would change what is read from the other: the same device
/// and inode, or the same name if nothing is there yet. Terminals and other devices take and give bytes that are not the same, so
/// they don't count. What stdin and stdout are is told by `/dev/stdin` and `/dev/stdout`.
#[must_use]
pub fn same_file(one: &Path, other: &Path) -> bool {
    if let (Ok(one), Ok(other)) = (fs::metadata(one), fs::metadata(other)) {
        return !one.file_type().is_char_device() && (one.dev(), one.ino()) == (other.dev(), other.ino());
    }
    match (Place::of(one), Place::of(other)) {
        (Ok(Place::File { path: one, .. }), Ok(Place::File { path: other, .. })) => one == other,
        _ => false,
    }
}
