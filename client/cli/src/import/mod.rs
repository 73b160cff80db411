//! `import`: a thread reads and parses, one task hands the lines to lanes ([`lanes`]), each lane has one request under way, and
//! [`ledger`] remembers what became of each line.

mod lanes;
mod ledger;

use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _, SeekFrom};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use md5::{Digest as _, Md5};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::api::{Api, Failure, Kind};
use crate::checkpoint;
use crate::cli::{Format, Import};
use crate::records::{EXTENSIONS, Line, Place, Reader};
use ledger::Ledger;

/// An input is recognized by so many bytes of its start.
const FINGERPRINT_BYTES: u64 = 64 << 10;

/// How far an import is: every line up to here is settled.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Checkpoint {
    input: Input,
    offset: u64,
    line: u64,
    /// Of an Avro file: records that are settled of the block at `offset`.
    #[serde(default)]
    records_into_block: u64,
    counts: Counts,
    /// Length of the file of rejected lines.
    rejects_bytes: u64,
}

impl Checkpoint {
    fn place(&self) -> Place {
        let Self { offset, line, records_into_block, .. } = *self;
        Place { offset, line, records_into_block }
    }
}

/// What an input is recognized by.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Input {
    bytes: u64,
    /// MD5 of its start.
    start: String,
    format: Format,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Counts {
    accepted: u64,
    rejected: u64,
    /// Already expired.
    skipped: u64,
}

impl Counts {
    fn all(self) -> u64 {
        self.accepted + self.rejected + self.skipped
    }
}

pub async fn run(api: &Arc<Api>, arguments: &Import) -> Result<()> {
    let (lines, input, resumed) = open(arguments)?;
    let size = input.as_ref().map(|input| input.bytes);
    let mut ledger = Ledger::new(arguments, input, resumed.as_ref(), lines.place())?;
    let before = ledger.counts();
    let bar = progress_bar(size, ledger.place().offset);

    let (send, blocks) = mpsc::channel(2);
    let reader = tokio::task::spawn_blocking(move || read(lines, &send));
    let started = Instant::now();
    let outcome = lanes::send_all(api, arguments, blocks, &mut ledger, &bar).await;
    bar.finish_and_clear();
    // Whatever happened, what is settled is not done again.
    let saved = ledger.save();
    if outcome.is_ok() {
        reader.await?;
    }
    ledger.tell(before, started.elapsed());
    outcome?;
    saved?;
    match ledger.counts().rejected {
        0 => Ok(()),
        rejected => {
            let see = arguments.rejects.as_ref().map(|path| format!("; see {}", path.display()));
            let sentence = format!("{rejected} lines were rejected{}", see.unwrap_or_default());
            Err(Failure::new(Kind::Rejected, sentence).into())
        }
    }
}

type Source = Reader<Box<dyn Read + Send>>;

/// The lines that are still to be read, what the input is recognized by, and the checkpoint that it goes on from.
fn open(arguments: &Import) -> Result<(Source, Option<Input>, Option<Checkpoint>)> {
    let path = &arguments.input;
    let usage = |sentence: String| Err(Failure::new(Kind::Usage, sentence).into());
    let Some(format) = arguments.format.or_else(|| Format::of(path)) else {
        return usage(format!("the input's name ends in none of {EXTENSIONS}; give --format"));
    };
    if path == Path::new("-") {
        if arguments.checkpoint.is_some() {
            return usage(
                "--checkpoint needs a file as the input: stdin can't be read from the middle".to_owned(),
            );
        }
        return Ok((begin(Box::new(io::stdin()), arguments, format)?, None, None));
    }
    let open = || File::open(path).with_context(|| format!("{} can't be opened", path.display()));
    let lines = begin(Box::new(open()?), arguments, format)?;
    let input = Input::of(open()?, format).with_context(|| format!("{} can't be read", path.display()))?;
    let Some(checkpoint) = &arguments.checkpoint else { return Ok((lines, Some(input), None)) };
    let Some(resumed) = checkpoint::read::<Checkpoint>(checkpoint)? else {
        return Ok((lines, Some(input), None));
    };
    if resumed.input != input {
        bail!(
            "the checkpoint {} is of another input than {} (or it has changed, or another --format); remove it to begin anew",
            checkpoint.display(),
            path.display()
        );
    }
    let mut file = open()?;
    file.seek(SeekFrom::Start(resumed.offset))?;
    let lines = lines.go_on(Box::new(file), resumed.place());
    Ok((lines, Some(input), Some(resumed)))
}

fn begin(input: Box<dyn Read + Send>, arguments: &Import, format: Format) -> Result<Source> {
    let shown = arguments.input.display();
    let lines = Reader::new(input, format, arguments.max_line);
    lines
        .with_context(|| format!("{shown} can't be read"))?
        .map_err(|wrong| anyhow::anyhow!("{shown}: {wrong}"))
}

impl Input {
    fn of(file: File, format: Format) -> io::Result<Self> {
        let bytes = file.metadata()?.len();
        let mut start = Vec::new();
        BufReader::new(file.take(FINGERPRINT_BYTES)).read_to_end(&mut start)?;
        let start = Md5::digest(&start).iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { bytes, start, format })
    }
}

fn read(mut lines: Source, blocks: &mpsc::Sender<io::Result<Vec<Line>>>) {
    // The receiver is gone when the import ended for another reason.
    while let Some(block) = lines.next().transpose() {
        let failed = block.is_err();
        if blocks.blocking_send(block).is_err() || failed {
            return;
        }
    }
}

impl Import {
    fn hint(&self) -> &'static str {
        if self.checkpoint.is_some() { "; run it again to go on" } else { "" }
    }
}

/// On stderr, if that is a terminal.
fn progress_bar(size: Option<u64>, position: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(size, ProgressDrawTarget::stderr());
    let template = match size {
        Some(_) => "{bar:30} {bytes}/{total_bytes}, {msg}, {eta} left",
        None => "{spinner} {bytes}, {msg}",
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.with_position(position)
}
