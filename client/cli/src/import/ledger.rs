//! Lines are settled in any order and counted in the input's: the checkpoint and the file of rejected lines never tell of a line
//! before all those in front of it.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;
use bitacora_program::console::tell;
use bitacora_program::files::open_growing;
use indicatif::HumanCount;
use serde::Serialize;

use super::paths::cannot_write;
use super::{Checkpoint, Counts, Input};
use crate::api::{Failure, Kind};
use crate::checkpoint;
use crate::cli::Import;
use crate::output::{per_second, shown};
use crate::records::{Line, Place};

const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);
/// Rejected lines that are shown on stderr if they are not written to a file.
const SHOWN_REJECTS: u64 = 10;

/// What became of a line.
pub(super) enum Fate {
    Accepted,
    Skipped,
    Rejected {
        reason: String,
        text: String,
    },
    /// The condition does not hold; the key is as it was.
    NotMet {
        reason: String,
        text: String,
    },
}

/// A line that is read: its end, the number of the next, and what became of it.
struct Open {
    number: u64,
    end: Place,
    fate: Option<Fate>,
}

/// What became of each line, in the input's order.
pub(super) struct Ledger {
    open: VecDeque<Open>,
    /// Lines before the first open one.
    closed: u64,
    place: Place,
    counts: Counts,
    rejects: Option<Rejects>,
    checkpoint: Option<(PathBuf, Input)>,
    saved: Instant,
    started: Instant,
    /// Lines that were settled before this run.
    settled_before: u64,
}

/// The file of rejected lines.
struct Rejects {
    path: PathBuf,
    file: File,
    /// Not so a device or a FIFO, which can't be brought to disk.
    is_regular: bool,
    /// Lines that are not written yet.
    unwritten: Vec<u8>,
    /// Of the file.
    bytes: u64,
}

#[derive(Serialize)]
struct Reject<'a> {
    line: u64,
    reason: &'a str,
    text: &'a str,
}

impl Ledger {
    pub(super) fn new(
        arguments: &Import,
        input: Option<Input>,
        resumed: Option<&Checkpoint>,
        place: Place,
    ) -> Result<Self> {
        let counts = resumed.map(|resumed| resumed.counts).unwrap_or_default();
        let told = resumed.map_or(0, |resumed| resumed.rejects_bytes);
        let rejects = arguments.rejects.as_deref().map(|path| Rejects::open(path, told)).transpose()?;
        if resumed.is_some() {
            tell(format_args!(
                "bitacora: going on at line {}, {} before it are done",
                place.line,
                HumanCount(counts.all())
            ));
        }
        let checkpoint = arguments.checkpoint.clone().zip(input);
        let now = Instant::now();
        Ok(Self {
            open: VecDeque::new(),
            closed: 0,
            place,
            counts,
            rejects,
            checkpoint,
            saved: now,
            started: now,
            settled_before: counts.all(),
        })
    }

    /// How far the import is.
    pub(super) fn place(&self) -> Place {
        self.place
    }

    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    /// Lines that are read, up to the last that is settled with all before it.
    pub(super) fn unsettled(&self) -> usize {
        self.open.len()
    }

    /// A line was read; the answer is what to settle it by.
    pub(super) fn expect(&mut self, line: &Line) -> u64 {
        self.open.push_back(Open { number: line.number, end: line.next, fate: None });
        self.closed + self.open.len() as u64 - 1
    }

    pub(super) fn settle(&mut self, number: u64, fate: Fate) {
        if let Some(open) = self.open.get_mut((number - self.closed) as usize) {
            open.fate = Some(fate);
        }
    }

    /// Counts the settled lines that no open one is in front of.
    pub(super) fn advance(&mut self, arguments: &Import) -> Result<()> {
        while let Some(Open { fate: Some(_), .. }) = self.open.front()
            && let Some(Open { number, end, fate }) = self.open.pop_front()
        {
            self.closed += 1;
            self.place = end;
            match fate {
                Some(Fate::Rejected { reason, text }) => {
                    self.counts.rejected += 1;
                    self.reject(&Reject { line: number, reason: &reason, text: &text })?;
                    if arguments.max_rejects.is_some_and(|most| self.counts.rejected > most) {
                        let sentence = format!(
                            "stopped at line {number}: {} lines were rejected, the last because {reason}{}",
                            self.counts.rejected,
                            arguments.hint()
                        );
                        return Err(Failure::new(Kind::Rejected, sentence).into());
                    }
                }
                Some(Fate::NotMet { reason, text }) => {
                    self.counts.not_met += 1;
                    self.keep(&Reject { line: number, reason: &reason, text: &text })?;
                }
                Some(Fate::Skipped) => self.counts.skipped += 1,
                _ => self.counts.accepted += 1,
            }
        }
        if self.saved.elapsed() > CHECKPOINT_INTERVAL { self.save() } else { Ok(()) }
    }

    /// Writes a line to the file of rejected lines, if there is one.
    fn keep(&mut self, reject: &Reject<'_>) -> Result<()> {
        if let Some(Rejects { unwritten, .. }) = &mut self.rejects {
            serde_json::to_writer(&mut *unwritten, reject)?;
            unwritten.push(b'\n');
        }
        Ok(())
    }

    fn reject(&mut self, reject: &Reject<'_>) -> Result<()> {
        self.keep(reject)?;
        match &self.rejects {
            Some(_) => {}
            None if self.counts.rejected <= SHOWN_REJECTS => {
                let text = shown(reject.text);
                tell(format_args!("bitacora: line {} is rejected: {}: {text}", reject.line, reject.reason));
            }
            None if self.counts.rejected == SHOWN_REJECTS + 1 => {
                tell(format_args!(
                    "bitacora: further rejected lines are not told; --rejects FILE keeps them all"
                ));
            }
            None => {}
        }
        Ok(())
    }

    /// The rejected lines first: the checkpoint tells how many of them there are.
    pub(super) fn save(&mut self) -> Result<()> {
        self.saved = Instant::now();
        if let Some(Rejects { path, file, is_regular, unwritten, bytes }) = &mut self.rejects
            && !unwritten.is_empty()
        {
            let written = file.write_all(unwritten);
            let written = written.and_then(|()| if *is_regular { file.sync_data() } else { Ok(()) });
            written.map_err(|error| cannot_write(path, "--rejects", &error))?;
            *bytes += unwritten.len() as u64;
            unwritten.clear();
        }
        if let Some((path, input)) = self.checkpoint.take() {
            let rejects_bytes = self.rejects.as_ref().map_or(0, |rejects| rejects.bytes);
            let Place { offset, line, records_into_block } = self.place;
            let counts = self.counts;
            let checkpoint = Checkpoint { input, offset, line, records_into_block, counts, rejects_bytes };
            checkpoint::write(&path, &checkpoint)?;
            self.checkpoint = Some((path, checkpoint.input));
        }
        Ok(())
    }

    pub(super) fn message(&self) -> String {
        let Counts { rejected, skipped, .. } = self.counts;
        let rate = per_second(self.counts.all() - self.settled_before, self.started.elapsed());
        let (all, rate) = (HumanCount(self.counts.all()), HumanCount(rate as u64));
        format!("{all} records, {rate}/s, {rejected} rejected, {skipped} expired")
    }

    pub(super) fn tell(&self, before: Counts, time: Duration) {
        let Counts { accepted, rejected, skipped, not_met } = self.counts;
        let kept = match not_met {
            0 => String::new(),
            count => format!(", {count} not written because the condition does not hold"),
        };
        let rate = per_second(self.counts.all() - before.all(), time);
        tell(format_args!(
            "bitacora: {accepted} accepted, {rejected} rejected, {skipped} skipped because they have expired{kept}; {:.1} s, {rate:.0} records/s",
            time.as_secs_f64()
        ));
    }
}

impl Rejects {
    /// `told`: the bytes that a checkpoint tells of; what follows them is cut off.
    fn open(path: &Path, told: u64) -> Result<Self> {
        let there = fs::metadata(path).map_or(0, |there| if there.is_file() { there.len() } else { told });
        // Whoever took the rejected lines away has them.
        let bytes = told.min(there);
        let opened = open_growing(path, bytes).and_then(|file| Ok((file.metadata()?.is_file(), file)));
        let (is_regular, file) = opened.map_err(|error| cannot_write(path, "--rejects", &error))?;
        Ok(Self { path: path.to_owned(), file, is_regular, unwritten: Vec::new(), bytes })
    }
}
