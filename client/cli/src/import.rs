//! `import`: a thread reads and parses, one task deals the lines to lanes, each lane has one request under way.
//!
//! A key always takes the same lane, and a request never holds a key twice, so a key's writes keep their order whatever
//! is retried. Lines are settled in any order and counted in the input's: the checkpoint and the file of rejected lines
//! never tell of a line before all those in front of it.

use std::collections::{HashSet, VecDeque};
use std::fs::{File, OpenOptions};
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, BufReader, Read, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bitacora_client::Operation;
use bytes::Bytes;
use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};
use md5::{Digest as _, Md5};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::api::{Api, Failure, Kind};
use crate::cli::{Format, Import};
use crate::lines::{Entry, Life, Line, Lines, Place, cut};
use crate::output::{now_ms, per_second};
use crate::{checkpoint, stop_signal};

/// Keys and values of one request; a longer record travels alone.
const BATCH_BYTES: usize = 1 << 20;
/// Lines that are read and not settled: so many for each lane, and so many bytes in all.
const BATCHES_AHEAD: usize = 4;
const BYTES_AHEAD: usize = 64 << 20;
/// Of the input's start, to recognize it.
const FINGERPRINT: u64 = 64 << 10;
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Rejected lines that are told on stderr if they are not written to a file.
const TOLD: u64 = 10;

/// How far an import is: every line up to here is settled.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Checkpoint {
    input: Input,
    offset: u64,
    line: u64,
    counts: Counts,
    /// Length of the file of rejected lines.
    rejects_bytes: u64,
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
    let before = ledger.counts;
    let bar = progress_bar(size, ledger.place.offset);

    let (send, blocks) = mpsc::channel(2);
    let reader = tokio::task::spawn_blocking(move || read(lines, &send));
    let started = Instant::now();
    let outcome = deal(api, arguments, blocks, &mut ledger, &bar).await;
    bar.finish_and_clear();
    // Whatever happened, what is settled is not done again.
    let saved = ledger.save();
    if outcome.is_ok() {
        reader.await?;
    }
    ledger.tell(before, started.elapsed());
    outcome?;
    saved?;
    match ledger.counts.rejected {
        0 => Ok(()),
        rejected => {
            let see = arguments.rejects.as_ref().map(|path| format!("; see {}", path.display()));
            let sentence = format!("{rejected} lines were rejected{}", see.unwrap_or_default());
            Err(Failure::new(Kind::Rejected, sentence).into())
        }
    }
}

type Source = Lines<Box<dyn Read + Send>>;

/// The lines that are still to be read, what the input is recognized by, and the checkpoint that it goes on from.
fn open(arguments: &Import) -> Result<(Source, Option<Input>, Option<Checkpoint>)> {
    let path = &arguments.input;
    let usage = |sentence: &str| Err(Failure::new(Kind::Usage, sentence).into());
    let Some(format) = arguments.format.or_else(|| Format::of(path)) else {
        return usage("the input's name ends in none of .csv, .ndjson, .jsonl and .json; give --format");
    };
    let max_line = arguments.max_line;
    let begin = |input: Box<dyn Read + Send>| -> Result<Source> {
        let lines = Lines::new(input, format, max_line);
        let lines = lines.with_context(|| format!("{} can't be read", path.display()))?;
        lines.map_err(|sentence| anyhow::anyhow!("{}: {sentence}", path.display()))
    };
    if path == Path::new("-") {
        if arguments.checkpoint.is_some() {
            return usage("--checkpoint needs a file as the input: stdin can't be read from the middle");
        }
        return Ok((begin(Box::new(io::stdin()))?, None, None));
    }
    let open = || File::open(path).with_context(|| format!("{} can't be opened", path.display()));
    let lines = begin(Box::new(open()?))?;
    let input = Input::of(open()?, format).with_context(|| format!("{} can't be read", path.display()))?;
    let Some(resumed) =
        arguments.checkpoint.as_deref().map(checkpoint::read::<Checkpoint>).transpose()?.flatten()
    else {
        return Ok((lines, Some(input), None));
    };
    if resumed.input != input {
        let checkpoint = arguments.checkpoint.as_deref().unwrap_or(path).display();
        bail!(
            "the checkpoint {checkpoint} is of another input than {} (or it has changed, or another --format); remove it to begin anew",
            path.display()
        );
    }
    let mut file = open()?;
    file.seek(SeekFrom::Start(resumed.offset))?;
    let lines = lines.go_on(Box::new(file), Place { offset: resumed.offset, line: resumed.line });
    Ok((lines, Some(input), Some(resumed)))
}

impl Format {
    /// By the name; `-` is a stream of NDJSON.
    pub fn of(path: &Path) -> Option<Self> {
        let extension = path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase());
        match extension.as_deref() {
            Some("csv") => Some(Self::Csv),
            Some("ndjson" | "jsonl" | "json") => Some(Self::Ndjson),
            _ if path == Path::new("-") => Some(Self::Ndjson),
            _ => None,
        }
    }
}

impl Input {
    fn of(file: File, format: Format) -> io::Result<Self> {
        let bytes = file.metadata()?.len();
        let mut start = Vec::new();
        BufReader::new(file.take(FINGERPRINT)).read_to_end(&mut start)?;
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

/// A line on its way to the cluster.
struct Job {
    /// Its place in the ledger.
    number: u64,
    operation: Operation,
    /// Ms since the epoch, of which its time to live is made when it is sent.
    expires: Option<i64>,
    text: Bytes,
}

impl Job {
    fn new(number: u64, text: Bytes, entry: Entry) -> Self {
        let Entry { key, value, life } = entry;
        let (ttl, expires) = match life {
            Life::ForEver => (None, None),
            Life::For(ttl) => (Some(ttl), None),
            Life::Until(at) => (None, Some(at)),
        };
        Self { number, operation: Operation::Set { key, value, ttl }, expires, text }
    }

    fn bytes(&self) -> usize {
        self.text.len()
    }

    /// Sets what is left of its life; false if nothing is.
    fn still_lives(&mut self) -> bool {
        let (Some(expires), Operation::Set { ttl, .. }) = (self.expires, &mut self.operation) else {
            return true;
        };
        let left = u64::try_from(expires.saturating_sub(now_ms())).unwrap_or(0);
        *ttl = Some(Duration::from_millis(left));
        left > 0
    }
}

/// What became of a line.
enum Fate {
    Accepted,
    Skipped,
    Rejected { reason: String, text: String },
}

#[derive(Default)]
struct Lane {
    waiting: VecDeque<Job>,
    busy: bool,
}

impl Lane {
    /// The next request: in order, and up to the next line of a key that it holds already.
    fn batch(&mut self, most: usize) -> Vec<Job> {
        let (mut keys, mut bytes) = (HashSet::new(), 0);
        let mut length = 0;
        for job in self.waiting.iter().take(most) {
            bytes += job.bytes();
            if !keys.insert(job.operation.key()) || bytes > BATCH_BYTES && length > 0 {
                break;
            }
            length += 1;
        }
        self.waiting.drain(..length).collect()
    }
}

/// Deals lines to lanes until all are settled, or one can't be.
async fn deal(
    api: &Arc<Api>,
    arguments: &Import,
    mut blocks: mpsc::Receiver<io::Result<Vec<Line>>>,
    ledger: &mut Ledger,
    bar: &ProgressBar,
) -> Result<()> {
    let most = arguments.batch as usize;
    let mut lanes: Vec<Lane> = (0..arguments.parallel).map(|_| Lane::default()).collect();
    let hashes = RandomState::new();
    let lines_ahead = most * lanes.len() * BATCHES_AHEAD;
    let mut bytes_ahead = 0;
    let mut requests = JoinSet::new();
    let mut reading = true;
    let mut stop = std::pin::pin!(stop_signal()?);
    while reading || !requests.is_empty() {
        let room = ledger.open.len() < lines_ahead && bytes_ahead < BYTES_AHEAD;
        tokio::select! {
            biased;
            () = &mut stop => bail!("interrupted{}", arguments.hint()),
            Some(done) = requests.join_next() => {
                let (lane, bytes, fates): (usize, usize, Result<Vec<(u64, Fate)>, Failure>) = done?;
                lanes[lane].busy = false;
                bytes_ahead -= bytes;
                let fates = fates.map_err(|failure| Failure {
                    sentence: format!("gave up: {failure}{}", arguments.hint()),
                    ..failure
                })?;
                for (number, fate) in fates {
                    ledger.settle(number, fate);
                }
            }
            block = blocks.recv(), if reading && room => match block {
                None => reading = false,
                Some(block) => {
                    for line in block.with_context(|| format!("{} can't be read", arguments.input.display()))? {
                        let number = ledger.expect(&line);
                        match line.entry {
                            Ok(entry) => {
                                let job = Job::new(number, line.text, entry);
                                let lane = hashes.hash_one(job.operation.key()) as usize % lanes.len();
                                bytes_ahead += job.bytes();
                                lanes[lane].waiting.push_back(job);
                            }
                            Err(reason) => {
                                ledger.settle(number, Fate::Rejected { reason, text: cut(&line.text) });
                            }
                        }
                    }
                }
            },
        }
        for (index, lane) in lanes.iter_mut().enumerate() {
            if !lane.busy && !lane.waiting.is_empty() {
                let jobs = lane.batch(most);
                lane.busy = true;
                let (api, patience) = (Arc::clone(api), arguments.retry_for);
                requests.spawn(async move {
                    let bytes = jobs.iter().map(Job::bytes).sum();
                    (index, bytes, send(&api, jobs, patience).await)
                });
            }
        }
        ledger.advance(arguments)?;
        bar.set_position(ledger.place.offset);
        bar.set_message(ledger.message());
    }
    Ok(())
}

/// Sends a request until each of its lines is settled.
async fn send(api: &Api, mut jobs: Vec<Job>, patience: Duration) -> Result<Vec<(u64, Fate)>, Failure> {
    let started = Instant::now();
    let mut pause = FIRST_PAUSE;
    let mut fates = Vec::with_capacity(jobs.len());
    loop {
        jobs.retain_mut(|job| {
            let lives = job.still_lives();
            if !lives {
                fates.push((job.number, Fate::Skipped));
            }
            lives
        });
        if jobs.is_empty() {
            return Ok(fates);
        }
        let operations: Vec<_> = jobs.iter().map(|job| job.operation.clone()).collect();
        let last = match api.batch(&operations).await {
            // What is wrong with a single record that a request holds is wrong with that record.
            Err(failure) if failure.kind == Kind::Refused && jobs.len() > 1 => return Err(failure),
            Err(failure) if failure.kind == Kind::Refused => {
                fates.extend(jobs.drain(..).map(|job| (job.number, job.rejected(&failure))));
                continue;
            }
            Err(failure) => failure,
            Ok(results) => {
                let mut last = None;
                let mut left = Vec::new();
                for (job, result) in jobs.into_iter().zip(results) {
                    match result {
                        Ok(_) => fates.push((job.number, Fate::Accepted)),
                        Err(failure) if failure.kind == Kind::Refused => {
                            fates.push((job.number, job.rejected(&failure)));
                        }
                        Err(failure) => {
                            last = Some(failure);
                            left.push(job);
                        }
                    }
                }
                jobs = left;
                match last {
                    None => continue,
                    Some(failure) => failure,
                }
            }
        };
        let passes = matches!(last.kind, Kind::Unclear | Kind::Unavailable);
        if !passes || started.elapsed() + pause > patience {
            return Err(last);
        }
        tracing::info!(error = %last, "sending {} records again", jobs.len());
        tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

impl Job {
    fn rejected(&self, failure: &Failure) -> Fate {
        Fate::Rejected { reason: failure.sentence.clone(), text: cut(&self.text) }
    }
}

impl Import {
    fn hint(&self) -> &'static str {
        if self.checkpoint.is_some() { "; run it again to go on" } else { "" }
    }
}

/// A line that is read: its end, the number of the next, and what became of it.
struct Open {
    number: u64,
    end: Place,
    fate: Option<Fate>,
}

/// What became of each line, in the input's order.
struct Ledger {
    open: VecDeque<Open>,
    /// Lines before the first open one.
    closed: u64,
    place: Place,
    counts: Counts,
    rejects: Option<(File, Vec<u8>, u64)>,
    checkpoint: Option<(std::path::PathBuf, Input)>,
    saved: Instant,
    started: Instant,
    resumed: u64,
}

#[derive(Serialize)]
struct Reject<'a> {
    line: u64,
    reason: &'a str,
    text: &'a str,
}

impl Ledger {
    fn new(
        arguments: &Import,
        input: Option<Input>,
        resumed: Option<&Checkpoint>,
        place: Place,
    ) -> Result<Self> {
        let counts = resumed.map(|resumed| resumed.counts).unwrap_or_default();
        let kept = resumed.map_or(0, |resumed| resumed.rejects_bytes);
        let rejects = arguments.rejects.as_deref().map(|path| open_rejects(path, kept)).transpose()?;
        if resumed.is_some() {
            eprintln!(
                "bitacora: going on at line {}, {} before it are done",
                place.line,
                HumanCount(counts.all())
            );
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
            resumed: counts.all(),
        })
    }

    /// A line was read; the answer is what to settle it by.
    fn expect(&mut self, line: &Line) -> u64 {
        let end = Place { offset: line.end, line: line.next_number };
        self.open.push_back(Open { number: line.number, end, fate: None });
        self.closed + self.open.len() as u64 - 1
    }

    fn settle(&mut self, number: u64, fate: Fate) {
        if let Some(open) = self.open.get_mut((number - self.closed) as usize) {
            open.fate = Some(fate);
        }
    }

    /// Counts the settled lines that no open one is in front of.
    fn advance(&mut self, arguments: &Import) -> Result<()> {
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
                Some(Fate::Skipped) => self.counts.skipped += 1,
                _ => self.counts.accepted += 1,
            }
        }
        if self.saved.elapsed() > CHECKPOINT_EVERY { self.save() } else { Ok(()) }
    }

    fn reject(&mut self, reject: &Reject) -> Result<()> {
        match &mut self.rejects {
            Some((_, lines, _)) => {
                serde_json::to_writer(&mut *lines, reject)?;
                lines.push(b'\n');
            }
            None if self.counts.rejected <= TOLD => {
                let text: String = reject.text.chars().take(80).collect();
                eprintln!("bitacora: line {} is rejected: {}: {text}", reject.line, reject.reason);
            }
            None if self.counts.rejected == TOLD + 1 => {
                eprintln!("bitacora: further rejected lines are not told; --rejects FILE keeps them all");
            }
            None => {}
        }
        Ok(())
    }

    /// The rejected lines first: the checkpoint tells how many of them there are.
    fn save(&mut self) -> Result<()> {
        self.saved = Instant::now();
        if let Some((file, lines, length)) = &mut self.rejects {
            let write = file.write_all(lines).and_then(|()| file.sync_data());
            write.context("the file of rejected lines (--rejects) can't be written")?;
            *length += lines.len() as u64;
            lines.clear();
        }
        if let Some((path, input)) = self.checkpoint.take() {
            let rejects_bytes = self.rejects.as_ref().map_or(0, |(_, _, length)| *length);
            let Place { offset, line } = self.place;
            let checkpoint = Checkpoint { input, offset, line, counts: self.counts, rejects_bytes };
            checkpoint::write(&path, &checkpoint)?;
            self.checkpoint = Some((path, checkpoint.input));
        }
        Ok(())
    }

    fn message(&self) -> String {
        let Counts { rejected, skipped, .. } = self.counts;
        let rate = per_second(self.counts.all() - self.resumed, self.started.elapsed());
        let (all, rate) = (HumanCount(self.counts.all()), HumanCount(rate as u64));
        format!("{all} records, {rate}/s, {rejected} rejected, {skipped} expired")
    }

    fn tell(&self, before: Counts, time: Duration) {
        let Counts { accepted, rejected, skipped } = self.counts;
        let rate = per_second(self.counts.all() - before.all(), time);
        eprintln!(
            "bitacora: {accepted} accepted, {rejected} rejected, {skipped} skipped because they have expired; {:.1} s, {rate:.0} records/s",
            time.as_secs_f64()
        );
    }
}

/// The file, what is to be written to it, and its length.
fn open_rejects(path: &Path, kept: u64) -> Result<(File, Vec<u8>, u64)> {
    let open = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        file.set_len(kept)?;
        file.seek(SeekFrom::End(0))?;
        Ok::<_, io::Error>(file)
    };
    let file = open().with_context(|| format!("{} (--rejects) can't be written", path.display()))?;
    Ok((file, Vec::new(), kept))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn job(number: u64, key: &str, bytes: usize) -> Job {
        let entry = Entry { key: key.into(), value: String::new(), life: Life::ForEver };
        Job::new(number, vec![b'x'; bytes].into(), entry)
    }

    #[test]
    fn a_request_never_holds_a_key_twice() {
        let mut lane = Lane::default();
        lane.waiting.extend([job(0, "a", 1), job(1, "b", 1), job(2, "a", 1), job(3, "c", 1), job(4, "d", 1)]);
        let mut numbers = || lane.batch(2).iter().map(|job| job.number).collect::<Vec<_>>();
        assert_eq!([numbers(), numbers(), numbers(), numbers()], [vec![0, 1], vec![2, 3], vec![4], vec![]]);
    }

    #[test]
    fn a_large_record_travels_alone() {
        let mut lane = Lane::default();
        lane.waiting.extend([job(0, "a", 2 * BATCH_BYTES), job(1, "b", 1), job(2, "c", 1)]);
        assert_eq!([lane.batch(10).len(), lane.batch(10).len()], [1, 2]);
    }

    #[test]
    fn what_has_expired_is_not_sent() {
        let until = |at| {
            let entry = Entry { key: "k".into(), value: String::new(), life: Life::Until(at) };
            let mut job = Job::new(0, Bytes::new(), entry);
            (job.still_lives(), job.operation)
        };
        assert!(!until(-1).0 && !until(now_ms()).0);
        let (lives, operation) = until(now_ms() + 60_000);
        let Operation::Set { ttl: Some(ttl), .. } = operation else { panic!("a set with a ttl") };
        assert!(lives && ttl <= Duration::from_secs(60) && ttl > Duration::from_secs(50), "{ttl:?}");
    }
}
