//! A regular file that has its name when it is whole.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions, Permissions, TryLockError};
use std::io::{self, ErrorKind, Seek as _, SeekFrom};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, OFlags, access};
use tempfile::{NamedTempFile, TempPath};

/// Bytes of the file's name in that of its temporary one: room is left for the rest of a name's 255.
const NAME_BYTES: usize = 200;
/// What a new file may be, before the umask.
const NEW_MODE: u32 = 0o666;
/// While it is not known yet who may read it, and of what nobody else is to read.
const PRIVATE_MODE: u32 = 0o600;

/// A regular file under a temporary name, beside the one that it gets when it is whole. Dropped before that, it is removed, unless
/// another run can go on with it.
#[derive(Debug)]
pub struct WholeFile {
    file: File,
    temporary: Temporary,
    target: PathBuf,
}

#[derive(Debug)]
enum Temporary {
    /// A name of its own; it replaces what is there.
    Replaces(TempPath),
    /// A name of its own; what is there meanwhile is not replaced.
    IsNew(TempPath),
    /// A name that another run finds again, locked while a process writes it.
    Resumable(PathBuf),
}

/// The name of a file that another run can go on with.
pub(super) fn part_of(target: &Path) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(".part");
    name.into()
}

impl WholeFile {
    /// `target`: no symbolic link.
    pub(super) fn create(target: PathBuf, existing: Option<&Metadata>) -> io::Result<Self> {
        let mode = if existing.is_some() { PRIVATE_MODE } else { NEW_MODE };
        let (file, temporary) = temporary(&target, mode)?;
        if let Some(existing) = existing {
            keep_owner_and_mode(&file, &target, existing)?;
        }
        Ok(Self { file, temporary: Temporary::Replaces(temporary), target })
    }

    pub(super) fn create_new(target: PathBuf) -> io::Result<Self> {
        let (file, temporary) = temporary(&target, PRIVATE_MODE)?;
        Ok(Self { file, temporary: Temporary::IsNew(temporary), target })
    }

    pub(super) fn resume(target: PathBuf, existing: Option<Metadata>, kept: u64) -> io::Result<Self> {
        let part = part_of(&target);
        let mode = if existing.is_some() { PRIVATE_MODE } else { NEW_MODE };
        let mut file = open_locked(&part, mode)?;
        if file.metadata()?.len() < kept {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        if let Some(existing) = existing {
            keep_owner_and_mode(&file, &target, &existing)?;
        }
        file.set_len(kept)?;
        file.seek(SeekFrom::End(0))?;
        Ok(Self { file, temporary: Temporary::Resumable(part), target })
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// The folder that it is written in.
    pub fn folder(&self) -> Option<&Path> {
        self.target.parent()
    }

    pub(super) fn finish(self) -> io::Result<()> {
        let Self { file, temporary, target } = self;
        file.sync_all()?;
        match temporary {
            Temporary::Replaces(temporary) => temporary.persist(&target)?,
            Temporary::IsNew(temporary) => temporary.persist_noclobber(&target)?,
            Temporary::Resumable(part) => fs::rename(part, &target)?,
        }
        sync_folder(&target)
    }
}

/// The rename is on disk when the folder is.
fn sync_folder(target: &Path) -> io::Result<()> {
    target.parent().map_or(Ok(()), |folder| match File::open(folder) {
        // A folder that may be written and not read can't be synced.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(()),
        folder => folder?.sync_all(),
    })
}

/// A new file beside `target`, of a name that nothing else has.
fn temporary(target: &Path, mode: u32) -> io::Result<(File, TempPath)> {
    let name = target.file_name().unwrap_or_default().as_bytes();
    let mut prefix = OsStr::from_bytes(&name[..name.len().min(NAME_BYTES)]).to_owned();
    prefix.push(".");
    let temporary: NamedTempFile = tempfile::Builder::new()
        .prefix(&prefix)
        .suffix(".part")
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(target.parent().unwrap_or(Path::new("/")))
        .map_err(without_path)?;
    Ok(temporary.into_parts())
}

/// The error names the temporary file, which nobody has heard of, behind what the system said.
fn without_path(error: io::Error) -> io::Error {
    match error.to_string().split_once(" at path ") {
        Some((told, _)) => io::Error::new(error.kind(), told),
        None => error,
    }
}

/// Makes a file what the one is that it replaces; one that this process may not write is not replaced.
fn keep_owner_and_mode(file: &File, target: &Path, existing: &Metadata) -> io::Result<()> {
    access(target, Access::WRITE_OK)?;
    let own = file.metadata()?;
    let (user, group) = (existing.uid(), existing.gid());
    let kept = (own.uid(), own.gid()) == (user, group)
        || fchown(file, Some(user), Some(group)).is_ok()
        || fchown(file, None, Some(group)).is_ok() && own.uid() == user;
    // With another owner the bits for set-user-id and set-group-id would mean something else.
    let mode = existing.mode() & if kept { 0o7777 } else { 0o777 };
    file.set_permissions(Permissions::from_mode(mode))
}

/// Opens a file that goes on from another run, for this process alone.
fn open_locked(part: &Path, mode: u32) -> io::Result<File> {
    loop {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(mode);
        // A link or a FIFO of this name is none of ours.
        let file =
            options.custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed()).open(part)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other(format!("{} is no regular file", part.display())));
        }
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(ErrorKind::ResourceBusy.into()),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // Who held the lock until now may have finished it, and given it its name.
        match fs::symlink_metadata(part) {
            Ok(named) if (named.dev(), named.ino()) == identity(&file)? => return Ok(file),
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
}

fn identity(file: &File) -> io::Result<(u64, u64)> {
    let metadata = file.metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}
