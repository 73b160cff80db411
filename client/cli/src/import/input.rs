//! What is imported. It is opened once: what a pipe, a device or a socket has given can't be read again.

use std::fs::{self, File};
use std::io::{self, Read, Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use md5::{Digest as _, Md5};
use serde::{Deserialize, Serialize};

use super::Checkpoint;
use crate::api::{Failure, Kind};
use crate::checkpoint;
use crate::cli::{Format, Import};
use crate::records::{EXTENSIONS, Reader};

/// A regular file is recognized by so many bytes of its start.
const FINGERPRINT_BYTES: u64 = 64 << 10;

/// What a regular file is recognized by.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Input {
    pub bytes: u64,
    /// MD5 of its start.
    start: String,
    format: Format,
}

pub(super) type Source = Reader<Box<dyn Read + Send>>;

/// The lines that are still to be read, what the input is recognized by if it is a regular file, and the checkpoint that it goes
/// on from.
pub(super) fn open(arguments: &Import) -> Result<(Source, Option<Input>, Option<Checkpoint>)> {
    let path = &arguments.input;
    let usage = |sentence: String| Err(Failure::new(Kind::Usage, sentence).into());
    let Some(format) = arguments.format.or_else(|| Format::of(path)) else {
        return usage(format!("the input's name ends in none of {EXTENSIONS}; give --format"));
    };
    if path == Path::new("-") && arguments.checkpoint.is_some() {
        let sentence = "--checkpoint needs a file as the input: stdin can't be read from the middle";
        return usage(sentence.to_owned());
    }
    let Some(file) = regular_file(path)? else {
        if arguments.checkpoint.is_some() {
            return usage(format!(
                "--checkpoint needs a regular file as the input: {} is none, and can't be read from the middle",
                path.display()
            ));
        }
        return Ok((begin(stream(path)?, arguments, format)?, None, None));
    };
    let input = Input::of(&file, format).with_context(|| format!("{} can't be read", path.display()))?;
    // The same open file, whose offset both share: the header is read first.
    let mut again = file.try_clone()?;
    let lines = begin(Box::new(file), arguments, format)?;
    let resumed = arguments.checkpoint.as_deref().map(checkpoint::read::<Checkpoint>).transpose()?.flatten();
    let Some(resumed) = resumed else { return Ok((lines, Some(input), None)) };
    if resumed.input != input {
        bail!(
            "the checkpoint {} is of another input than {} (or it has changed, or another --format); remove it to begin anew",
            arguments.checkpoint.as_deref().unwrap_or(Path::new("")).display(),
            path.display()
        );
    }
    again.seek(SeekFrom::Start(resumed.offset))?;
    let lines = lines.go_on(Box::new(again), resumed.place());
    Ok((lines, Some(input), Some(resumed)))
}

/// Opens a regular file; `None` for what is none.
fn regular_file(path: &Path) -> Result<Option<File>> {
    if path == Path::new("-") {
        return Ok(None);
    }
    let shown = path.display();
    let metadata = fs::metadata(path).with_context(|| format!("{shown} can't be opened"))?;
    if metadata.is_dir() {
        bail!("{shown} is a directory; import reads a file");
    }
    if !metadata.is_file() {
        return Ok(None);
    }
    Ok(Some(File::open(path).with_context(|| format!("{shown} can't be opened"))?))
}

/// Opens what can only be read once, from its start to its end.
fn stream(path: &Path) -> Result<Box<dyn Read + Send>> {
    if path == Path::new("-") {
        return Ok(Box::new(io::stdin()));
    }
    let opened = fs::metadata(path).and_then(|metadata| -> io::Result<Box<dyn Read + Send>> {
        if !metadata.file_type().is_socket() {
            return Ok(Box::new(File::open(path)?));
        }
        // A socket has no name to be opened by: it is the one that stdin is, or one that somebody listens on.
        let stdin = fs::metadata("/dev/stdin")?;
        if (metadata.dev(), metadata.ino()) == (stdin.dev(), stdin.ino()) {
            return Ok(Box::new(io::stdin()));
        }
        Ok(Box::new(UnixStream::connect(path)?))
    });
    opened.with_context(|| format!("{} can't be opened", path.display()))
}

fn begin(input: Box<dyn Read + Send>, arguments: &Import, format: Format) -> Result<Source> {
    let shown = arguments.input.display();
    let lines = Reader::new(input, format, arguments.max_line);
    lines
        .with_context(|| format!("{shown} can't be read"))?
        .map_err(|wrong| anyhow::anyhow!("{shown}: {wrong}"))
}

impl Input {
    /// Leaves the file's offset where it is.
    fn of(file: &File, format: Format) -> io::Result<Self> {
        let bytes = file.metadata()?.len();
        let mut start = vec![0; bytes.min(FINGERPRINT_BYTES) as usize];
        file.read_exact_at(&mut start, 0)?;
        let start = Md5::digest(&start).iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { bytes, start, format })
    }
}
