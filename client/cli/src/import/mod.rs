//! `import`: a thread reads and parses, one task hands the lines to lanes ([`lanes`]), each lane has one request under way, and
//! [`ledger`] remembers what became of each line.

mod input;
mod lanes;
mod ledger;
mod paths;

use std::io;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::api::{Api, Failure, Kind};
use crate::cli::Import;
use crate::records::{Line, Place};
use input::{Input, Source};
use ledger::Ledger;

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

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Counts {
    accepted: u64,
    rejected: u64,
    /// Already expired.
    skipped: u64,
    /// Whose condition did not hold.
    #[serde(default)]
    not_met: u64,
}

impl Counts {
    fn all(self) -> u64 {
        self.accepted + self.rejected + self.skipped + self.not_met
    }
}

pub async fn run(api: &Arc<Api>, arguments: &Import) -> Result<()> {
    paths::refuse_shared(arguments)?;
    let (lines, input, resumed) = input::open(arguments)?;
    paths::try_outputs(arguments)?;
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
    let Counts { rejected, not_met, .. } = ledger.counts();
    let (kind, sentence) = match (rejected, not_met) {
        (0, 0) => return Ok(()),
        (0, _) => (
            Kind::NotMet,
            format!("the condition of {not_met} lines does not hold; their keys are as they were"),
        ),
        _ => (Kind::Rejected, format!("{rejected} lines were rejected")),
    };
    let see = arguments.rejects.as_ref().map(|path| format!("; see {}", path.display()));
    Err(Failure::new(kind, sentence + &see.unwrap_or_default()).into())
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
