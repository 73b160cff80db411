//! Files that are read again when they change: tokens, certificates.

use std::fs::OpenOptions;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use rustix::fs::OFlags;
use tokio::sync::watch;

/// The longest file that is read: it is read again every second.
pub const MAX_FILE_BYTES: u64 = 512 << 10;
/// Between two looks at files.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The bytes of a file.
///
/// # Errors
/// When it can't be read, or is too long.
pub fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let unreadable = |error| format!("it can't be read: {error}");
    // A FIFO would make who opens it wait for a writer, and every later look at the file wait for this one.
    let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(nonblocking).open(path).map_err(unreadable)?;
    if !file.metadata().map_err(unreadable)?.is_file() {
        return Err("it is no regular file".to_owned());
    }
    match file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes) {
        Ok(read) if read as u64 > MAX_FILE_BYTES => {
            Err(format!("it has more than {} KiB", MAX_FILE_BYTES >> 10))
        }
        Ok(_) => Ok(bytes),
        Err(error) => Err(unreadable(error)),
    }
}

/// Gives `take` what `read` reads, once at the beginning and then whenever it has become something else, for ever.
///
/// What has changed is only taken once it is the same at two looks: a file may be half written, and of several that belong together
/// not all be there yet. At a SIGHUP, which `hangups` tells, it is taken at once.
pub async fn follow<T: PartialEq + Send + 'static>(
    read: impl Fn() -> Result<T, String> + Clone + Send + 'static,
    mut take: impl FnMut(&Result<T, String>),
    mut hangups: watch::Receiver<()>,
) {
    let (mut taken, mut last) = (None, None);
    loop {
        let is_told = async {
            if hangups.changed().await.is_err() {
                // Nobody will tell any more.
                std::future::pending::<()>().await;
            }
        };
        let told = tokio::time::timeout(CHECK_INTERVAL, is_told).await.is_ok();
        let now = tokio::task::spawn_blocking(read.clone()).await;
        let now = now.unwrap_or_else(|error| Err(error.to_string()));
        if taken.as_ref() != Some(&now) && (told || last.as_ref() == Some(&now)) {
            take(&now);
            taken = Some(now);
        } else {
            last = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_regular_file_holds_nobody_up() {
        let folder = tempfile::tempdir().expect("a folder");
        let fifo = folder.path().join("fifo");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).expect("a FIFO");
        for path in [&fifo, folder.path()] {
            assert_eq!(read_file(path), Err("it is no regular file".to_owned()), "{}", path.display());
        }
        let file = folder.path().join("file");
        std::fs::write(&file, "text").expect("written");
        // As mounted secrets are: links that lead to other ones when the secret changes.
        std::os::unix::fs::symlink("file", folder.path().join("link")).expect("a link");
        assert_eq!(read_file(&folder.path().join("link")), Ok(b"text".to_vec()));
    }
}
