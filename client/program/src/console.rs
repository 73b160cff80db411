//! Lines on stdout and stderr. `println!` and `eprintln!` panic when the stream can't be written, which a full disk and a reader
//! that has gone are enough for; so they are used nowhere in the programs.

use std::error::Error;
use std::fmt::Display;
use std::io::{self, ErrorKind, Write as _};

/// Why something is not on stdout.
#[derive(Debug, thiserror::Error)]
pub enum StdoutError {
    /// Stdout is a pipe whose reader has gone, as in `… | head`. It has enough, and nothing needs to be said.
    #[error("nobody reads stdout any more")]
    NobodyReads,
    /// For example a full disk.
    #[error("stdout can't be written")]
    Failed(#[source] io::Error),
}

impl From<io::Error> for StdoutError {
    fn from(error: io::Error) -> Self {
        if error.kind() == ErrorKind::BrokenPipe { Self::NobodyReads } else { Self::Failed(error) }
    }
}

/// Writes to stdout, for commands whose work is what they print.
///
/// # Errors
/// When it is not all there. A stdout that was closed from the start is none: the system's `/dev/null` takes its place.
pub fn print(text: impl AsRef<[u8]>) -> Result<(), StdoutError> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_ref())?;
    Ok(stdout.flush()?)
}

/// Writes to stdout what is only said beside the work, such as that it is done. Stderr says if that fails; the answer is whether it
/// makes sense to write more.
pub fn report(program: &str, text: impl AsRef<[u8]>) -> bool {
    let printed = print(text);
    if let Err(StdoutError::Failed(error)) = &printed {
        tell(format_args!("{program}: it is done, but stdout can't be written: {error}"));
    }
    printed.is_ok()
}

/// Writes a line to stderr. If that fails there is nobody to be told.
pub fn tell(line: impl Display) {
    // Formatted first, so that the line goes out as one.
    let line = format!("{line}\n");
    let _ = io::stderr().lock().write_all(line.as_bytes());
}

/// Whether something failed only because nobody reads stdout any more; of all that caused it one is [`StdoutError::NobodyReads`].
#[must_use]
pub fn nobody_reads(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if matches!(error.downcast_ref(), Some(StdoutError::NobodyReads)) {
            return true;
        }
        cause = error.source();
    }
    false
}
