//! What a path leads to, when a program is to write there.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// As many symbolic links are followed as Linux does.
const MAX_LINKS: usize = 40;

/// What a path leads to, once symbolic links are followed.
#[derive(Debug)]
pub(super) enum Place {
    /// A regular file, or nothing yet; its own name, without links.
    File { path: PathBuf, existing: Option<Metadata> },
    /// This process's stdout.
    Stdout,
    /// What another file descriptor of a process is open for, such as `/dev/fd/3`. It may be a regular file that others write
    /// too, as of `3>> file`: then only its end is free.
    Opened(PathBuf),
    /// A device, a FIFO or a socket.
    Other(PathBuf),
}

impl Place {
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let mut path = path.to_owned();
        for _ in 0..MAX_LINKS {
            let name = match path.file_name() {
                Some(name) if !path.as_os_str().as_bytes().ends_with(b"/") => name,
                _ => return Err(ErrorKind::IsADirectory.into()),
            };
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            let folder = fs::canonicalize(folder.unwrap_or(Path::new(".")))?;
            let full = folder.join(name);
            let metadata = match fs::symlink_metadata(&full) {
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    return Ok(Self::File { path: full, existing: None });
                }
                metadata => metadata?,
            };
            let kind = metadata.file_type();
            if kind.is_symlink() && folder.starts_with("/proc") {
                // Such a link's text only describes what it leads to.
                return Ok(if is_stdout(&folder, name) { Self::Stdout } else { Self::Opened(full) });
            }
            if kind.is_symlink() {
                path = folder.join(fs::read_link(&full)?);
            } else if kind.is_file() {
                return Ok(Self::File { path: full, existing: Some(metadata) });
            } else if kind.is_dir() {
                return Err(ErrorKind::IsADirectory.into());
            } else {
                return Ok(Self::Other(full));
            }
        }
        Err(io::Error::other("too many symbolic links"))
    }
}

fn is_stdout(folder: &Path, name: &OsStr) -> bool {
    name == "1" && folder == Path::new(&format!("/proc/{}/fd", std::process::id()))
}

/// Stdout as a file, with the place in it and the flags that it was opened with.
pub(super) fn stdout() -> io::Result<File> {
    Ok(File::from(io::stdout().as_fd().try_clone_to_owned()?))
}

/// Whether this process may write there, asked without opening it: that would wait for a FIFO's reader.
pub(super) fn check_access(path: &Path) -> io::Result<()> {
    Ok(rustix::fs::access(path, rustix::fs::Access::WRITE_OK)?)
}
