//! `export`: the next page is asked for while the last is written; a file has its name when it is whole.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use bitacora_client::ScanPage;
use bitacora_program::console::{print, tell};
use bitacora_program::files;
use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::block_in_place;

use crate::api::{Api, Failure, Kind};
use crate::checkpoint;
use crate::cli::{AvroCodec, Export, Format, ReadFlags};
use crate::output::per_second;
use crate::records::{EXTENSIONS, Encoder};
use crate::stop_signal;

const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);

/// How far an export is: what the cursor follows is in the file's first `bytes`.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Checkpoint {
    asked: Asked,
    cursor: String,
    bytes: u64,
    records: u64,
    /// Of an Avro file: stands after its header and after each of its blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sync_marker: Option<[u8; 16]>,
}

/// What has to be the same for an export to go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Asked {
    file: PathBuf,
    format: Format,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    avro_codec: Option<AvroCodec>,
    prefix: String,
    start: String,
    end: String,
}

/// What is wrong with the arguments, or with where they lead, before a node is asked. Changes nothing.
pub fn check(arguments: &Export) -> Result<()> {
    let path = &arguments.file;
    Asked::of(arguments)?;
    let to_file = path != Path::new("-");
    if to_file {
        let writable = files::check_writable(path);
        writable.with_context(|| format!("{} can't be written", path.display()))?;
    }
    let Some(checkpoint) = &arguments.checkpoint else { return Ok(()) };
    let Ok(part) = files::part_of(path) else {
        return usage(format!(
            "--checkpoint needs a regular file: what {} took can't be taken back",
            path.display()
        ));
    };
    if files::same_file(path, checkpoint) || files::same_file(&part, checkpoint) {
        return usage(format!("{} and --checkpoint are the same file; name another", path.display()));
    }
    let writable = files::check_writable(checkpoint);
    writable.with_context(|| format!("the checkpoint {} can't be written", checkpoint.display()))
}

fn usage(sentence: String) -> Result<()> {
    Err(Failure::new(Kind::Usage, sentence).into())
}

pub async fn run(api: &Arc<Api>, arguments: &Export) -> Result<()> {
    let asked = Asked::of(arguments)?;
    let resumed = match &arguments.checkpoint {
        Some(checkpoint) => resume(checkpoint, &asked)?,
        None => None,
    };
    let new_marker = || fastrand::u128(..).to_be_bytes();
    let sync_marker = resumed.as_ref().and_then(|resumed| resumed.sync_marker).unwrap_or_else(new_marker);
    let encoder = Encoder::new(asked.format, arguments.avro_codec, sync_marker);
    let mut output = Output {
        // Waits if it is a FIFO that nobody reads yet.
        out: block_in_place(|| Destination::open(arguments, resumed.as_ref()))?,
        bytes: resumed.as_ref().map_or(0, |resumed| resumed.bytes),
        records: resumed.as_ref().map_or(0, |resumed| resumed.records),
    };
    if output.bytes == 0 {
        output.write(&encoder.header()?, 0)?;
    }

    let (started, before) = (Instant::now(), output.records);
    let mut progress = Progress { asked, sync_marker, cursor: None, saved: started };
    let pages = api.pages(
        arguments.range.scan(arguments.page),
        ReadFlags::default(),
        resumed.map(|resumed| resumed.cursor),
    );
    let outcome = copy(pages, arguments, &encoder, &mut output, &mut progress).await;
    if outcome.is_err() {
        // What is written is not done again.
        progress.save(arguments, &output)?;
    }
    outcome?;
    let (records, bytes) = (output.records, output.bytes);
    block_in_place(|| finish(output.out, arguments))?;
    let (time, rate) = (started.elapsed(), per_second(records - before, started.elapsed()));
    tell(format_args!(
        "bitacora: {records} records, {}; {:.1} s, {rate:.0} records/s",
        HumanBytes(bytes),
        time.as_secs_f64()
    ));
    Ok(())
}

impl Asked {
    fn of(arguments: &Export) -> Result<Self, Failure> {
        let path = &arguments.file;
        let Some(format) = arguments.format.or_else(|| Format::of(path)) else {
            let sentence = format!("the file's name ends in none of {EXTENSIONS}; give --format");
            return Err(Failure::new(Kind::Usage, sentence));
        };
        if path == Path::new("-") && arguments.checkpoint.is_some() {
            let sentence = "--checkpoint needs a file: what went to stdout can't be taken back";
            return Err(Failure::new(Kind::Usage, sentence));
        }
        let range = &arguments.range;
        Ok(Self {
            file: path.clone(),
            format,
            avro_codec: (format == Format::Avro).then_some(arguments.avro_codec),
            prefix: range.prefix.clone(),
            start: range.start.clone(),
            end: range.end.clone(),
        })
    }
}

/// Gives a whole file its name, and removes the checkpoint.
fn finish(out: Destination, arguments: &Export) -> Result<()> {
    if let Destination::File(out, path) = out {
        out.finish()
            .with_context(|| format!("all is written, but {} can't be given its name", path.display()))?;
    }
    if let Some(checkpoint) = &arguments.checkpoint
        && checkpoint.exists()
    {
        fs::remove_file(checkpoint)
            .with_context(|| format!("{} can't be removed; the export is whole", checkpoint.display()))?;
    }
    Ok(())
}

/// What a checkpoint needs to know.
struct Progress {
    asked: Asked,
    sync_marker: [u8; 16],
    /// Of the last page that is written.
    cursor: Option<String>,
    saved: Instant,
}

impl Progress {
    fn save(&mut self, arguments: &Export, output: &Output) -> Result<()> {
        self.saved = Instant::now();
        if let (Some(path), Some(cursor), Destination::File(out, _)) =
            (&arguments.checkpoint, &self.cursor, &output.out)
        {
            out.file().sync_data()?;
            let checkpoint = Checkpoint {
                asked: self.asked.clone(),
                cursor: cursor.clone(),
                bytes: output.bytes,
                records: output.records,
                sync_marker: (self.asked.format == Format::Avro).then_some(self.sync_marker),
            };
            checkpoint::write(path, &checkpoint)?;
        }
        Ok(())
    }
}

/// Writes page after page.
async fn copy(
    mut pages: mpsc::Receiver<Result<ScanPage, Failure>>,
    arguments: &Export,
    encoder: &Encoder,
    output: &mut Output,
    progress: &mut Progress,
) -> Result<()> {
    let hint = if arguments.checkpoint.is_some() { "; run it again to go on" } else { "" };
    let mut stop = std::pin::pin!(stop_signal()?);
    let bar = progress_bar();
    let (started, before) = (Instant::now(), output.records);
    loop {
        let page = tokio::select! {
            biased;
            () = &mut stop => bail!("interrupted{hint}"),
            page = pages.recv() => page,
        };
        let page = page.context("the scan broke off")?;
        let page = page.map_err(|failure| Failure { sentence: format!("{failure}{hint}"), ..failure })?;
        let text = encoder.encode(&page.records)?;
        block_in_place(|| output.write(&text, page.records.len() as u64))?;
        progress.cursor = page.cursor;
        if progress.saved.elapsed() > CHECKPOINT_INTERVAL {
            progress.save(arguments, output)?;
        }
        let rate = per_second(output.records - before, started.elapsed());
        let (records, rate) = (HumanCount(output.records), HumanCount(rate as u64));
        bar.set_message(format!("{records} records, {}, {rate}/s", HumanBytes(output.bytes)));
        bar.tick();
        if progress.cursor.is_none() {
            bar.finish_and_clear();
            return Ok(());
        }
    }
}

fn resume(path: &Path, asked: &Asked) -> Result<Option<Checkpoint>> {
    let Some(resumed) = checkpoint::read::<Checkpoint>(path)? else { return Ok(None) };
    if resumed.asked != *asked {
        bail!(
            "the checkpoint {} is of another export (file, format or range); remove it to begin anew",
            path.display()
        );
    }
    tell(format_args!("bitacora: going on after {} records", HumanCount(resumed.records)));
    Ok(Some(resumed))
}

/// What takes the records.
enum Destination {
    Stdout,
    File(files::Output, PathBuf),
}

impl Destination {
    fn open(arguments: &Export, resumed: Option<&Checkpoint>) -> Result<Self> {
        let path = &arguments.file;
        if path == Path::new("-") {
            return Ok(Self::Stdout);
        }
        let kept = resumed.map_or(0, |resumed| resumed.bytes);
        let output = match &arguments.checkpoint {
            Some(_) => files::Output::resume(path, kept),
            None => files::Output::create(path),
        };
        let output = output.map_err(|error| Self::not_opened(error, path, kept))?;
        Ok(match output {
            files::Output::Stdout(_) => Self::Stdout,
            output => Self::File(output, path.clone()),
        })
    }

    fn not_opened(error: io::Error, path: &Path, kept: u64) -> anyhow::Error {
        let shown = path.display();
        match error.kind() {
            io::ErrorKind::ResourceBusy => {
                anyhow!("another export writes {shown} just now; wait for its end, or choose another file")
            }
            io::ErrorKind::UnexpectedEof => anyhow!(
                "{shown}.part has less than the {kept} bytes that the checkpoint tells of; remove the checkpoint to begin anew"
            ),
            _ => anyhow::Error::new(error).context(format!("{shown} can't be written")),
        }
    }

    fn write(&mut self, text: &[u8]) -> Result<()> {
        match self {
            Self::Stdout => Ok(print(text)?),
            Self::File(output, path) => {
                let written = output.write_all(text).and_then(|()| output.flush());
                written.with_context(|| format!("{} can't be written", path.display()))
            }
        }
    }
}

struct Output {
    out: Destination,
    bytes: u64,
    records: u64,
}

impl Output {
    fn write(&mut self, text: &[u8], records: u64) -> Result<()> {
        self.out.write(text)?;
        self.bytes += text.len() as u64;
        self.records += records;
        Ok(())
    }
}

/// On stderr, if that is a terminal.
fn progress_bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
        bar.set_style(style);
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::{Entry, Life, Reader};
    use bitacora_client::{Position, Record, ServedFrom};

    #[test]
    fn what_is_exported_is_imported() {
        let record = |key: &str, value: &str, ttl| Record {
            key: key.into(),
            value: value.into(),
            timestamp: 1,
            source: 1,
            ttl,
            uuid: "u".into(),
            position: Position { partition: 0, offset: 0 },
            served_from: ServedFrom::Store,
        };
        let records =
            [record("a", "", 0), record("ü \"b\",\n", "\r\n\t\\", 1_900_000_000_000), record("\r", "c,", 0)];
        for (format, codec) in [
            (Format::Ndjson, AvroCodec::Null),
            (Format::Csv, AvroCodec::Null),
            (Format::Avro, AvroCodec::Null),
            (Format::Avro, AvroCodec::Deflate),
        ] {
            let encoder = Encoder::new(format, codec, [7; 16]);
            let header = encoder.header().expect("encoded");
            let text = [header, encoder.encode(&records).expect("encoded")].concat();
            let mut lines = Reader::new(&text[..], format, 1_000).expect("readable").expect("a header");
            let mut entries = Vec::new();
            while let Some(block) = lines.next().expect("readable") {
                entries.extend(block.into_iter().map(|line| line.entry.expect("valid")));
            }
            let expected = records.iter().map(|record| Entry {
                key: record.key.clone(),
                value: record.value.clone(),
                life: if record.ttl == 0 { Life::ForEver } else { Life::Until(record.ttl) },
                condition: bitacora_client::WriteCondition::None,
            });
            assert_eq!(entries, expected.collect::<Vec<_>>(), "{format:?}");
        }
    }
}
