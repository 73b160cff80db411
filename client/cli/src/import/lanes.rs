//! Lanes: a key always takes the same one, and a request never holds a key twice, so a key's writes keep their order whatever is
//! sent again.

use std::collections::{HashSet, VecDeque};
use std::hash::BuildHasher as _;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use backon::{BackoffBuilder, ExponentialBuilder};
use bitacora_client::{Operation, Outcome, Visible, WriteCondition, WriteOperation};
use bytes::Bytes;
use foldhash::fast::RandomState;
use indicatif::ProgressBar;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::ledger::{Fate, Ledger};
use crate::api::{Api, Failure, Kind};
use crate::cli::Import;
use crate::output::now_ms;
use crate::records::{Entry, Life, Line, cut};
use crate::stop_signal;

/// Keys and values of one request; a longer record travels alone.
const BATCH_BYTES: usize = 1 << 20;
/// Lines that are read and not settled: so many requests' for each lane, and so many bytes in all.
const BATCHES_AHEAD: usize = 4;
const BYTES_AHEAD: usize = 64 << 20;
/// The pause before a request is sent again the first time, and the longest one; chance makes each up to twice as long.
const SHORTEST_RETRY_PAUSE: Duration = Duration::from_millis(25);
const LONGEST_RETRY_PAUSE: Duration = Duration::from_secs(1);

/// What is asked of every line.
#[derive(Clone, Copy, Default)]
struct Asked {
    /// Of lines that have none of their own.
    condition: WriteCondition,
    visible: Visible,
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
    fn new(number: u64, text: Bytes, entry: Entry, asked: Asked) -> Self {
        let Entry { key, value, life, condition } = entry;
        let (ttl, expires) = match life {
            Life::ForEver => (None, None),
            Life::For(ttl) => (Some(ttl), None),
            Life::Until(at) => (None, Some(at)),
        };
        let condition = if condition == WriteCondition::None { asked.condition } else { condition };
        let visible = asked.visible;
        let operation = if condition == WriteCondition::None && visible == Visible::Acknowledged {
            Operation::Set { key, value, ttl }
        } else {
            // Sent again, it is known by its uuid.
            let uuid = (condition != WriteCondition::None).then(|| Uuid::new_v4().to_string());
            let write = Operation::write(key, value);
            Operation::Write(WriteOperation { ttl, condition, uuid, visible, ..write })
        };
        Self { number, operation, expires, text }
    }

    fn bytes(&self) -> usize {
        self.text.len()
    }

    /// Sets what is left of its life; false if nothing is.
    fn still_lives(&mut self) -> bool {
        let (Some(expires), Operation::Set { ttl, .. } | Operation::Write(WriteOperation { ttl, .. })) =
            (self.expires, &mut self.operation)
        else {
            return true;
        };
        let left = u64::try_from(expires.saturating_sub(now_ms())).unwrap_or(0);
        *ttl = Some(Duration::from_millis(left));
        left > 0
    }

    fn not_met(&self, failure: &Failure) -> Fate {
        Fate::NotMet { reason: failure.sentence.clone(), text: cut(&self.text) }
    }

    fn rejected(&self, failure: &Failure) -> Fate {
        Fate::Rejected { reason: failure.sentence.clone(), text: cut(&self.text) }
    }
}

#[derive(Default)]
struct Lane {
    waiting: VecDeque<Job>,
    busy: bool,
}

impl Lane {
    /// The next request: in order, and up to the next line of a key that it holds already.
    fn batch(&mut self, most: usize) -> Vec<Job> {
        let most = most.min(self.waiting.len());
        let mut keys = HashSet::with_capacity_and_hasher(most, RandomState::default());
        let (mut bytes, mut length) = (0, 0);
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

/// What a lane's request came to: the lane, the bytes of its lines, and what became of each.
type Sent = (usize, usize, Result<Vec<(u64, Fate)>, Failure>);

/// Lines on their way, and the requests that carry them.
struct Dispatcher<'a> {
    api: &'a Arc<Api>,
    arguments: &'a Import,
    asked: Asked,
    lanes: Vec<Lane>,
    hashes: RandomState,
    /// Of lines that are read and not settled.
    bytes: usize,
    requests: JoinSet<Sent>,
}

/// Hands lines to lanes until all are settled, or one can't be.
pub(super) async fn send_all(
    api: &Arc<Api>,
    arguments: &Import,
    mut blocks: mpsc::Receiver<io::Result<Vec<Line>>>,
    ledger: &mut Ledger,
    bar: &ProgressBar,
) -> Result<()> {
    let mut dispatcher = Dispatcher {
        api,
        arguments,
        asked: Asked { condition: arguments.condition(), visible: arguments.visible.unwrap_or_default() },
        lanes: (0..arguments.parallel).map(|_| Lane::default()).collect(),
        hashes: RandomState::default(),
        bytes: 0,
        requests: JoinSet::new(),
    };
    let lines_ahead = arguments.batch as usize * dispatcher.lanes.len() * BATCHES_AHEAD;
    let (mut reading, mut unreadable) = (true, None);
    let mut stop = std::pin::pin!(stop_signal()?);
    while reading || !dispatcher.requests.is_empty() {
        let room = ledger.unsettled() < lines_ahead && dispatcher.bytes < BYTES_AHEAD;
        tokio::select! {
            biased;
            () = &mut stop => bail!("interrupted{}", arguments.hint()),
            Some(sent) = dispatcher.requests.join_next() => dispatcher.settle(sent?, ledger)?,
            block = blocks.recv(), if reading && room => match block {
                None => reading = false,
                Some(Ok(block)) => dispatcher.take_all(block, ledger),
                // What was read before is imported all the same.
                Some(Err(error)) => (reading, unreadable) = (false, Some(error)),
            },
        }
        dispatcher.send();
        ledger.advance(arguments)?;
        bar.set_position(ledger.place().offset);
        bar.set_message(ledger.message());
    }
    let read = unreadable.map_or(Ok(()), Err);
    read.with_context(|| format!("{} can't be read", arguments.input.display()))
}

impl Dispatcher<'_> {
    fn take_all(&mut self, lines: Vec<Line>, ledger: &mut Ledger) {
        for line in lines {
            self.take(line, ledger);
        }
    }

    /// Puts a line into its key's lane.
    fn take(&mut self, line: Line, ledger: &mut Ledger) {
        let number = ledger.expect(&line);
        match line.entry {
            Ok(entry) => {
                let job = Job::new(number, line.text, entry, self.asked);
                let lane = self.hashes.hash_one(job.operation.key()) as usize % self.lanes.len();
                self.bytes += job.bytes();
                self.lanes[lane].waiting.push_back(job);
            }
            Err(reason) => ledger.settle(number, Fate::Rejected { reason, text: cut(&line.text) }),
        }
    }

    /// Sends a request on each lane that has lines and none under way.
    fn send(&mut self) {
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            if lane.busy || lane.waiting.is_empty() {
                continue;
            }
            lane.busy = true;
            let jobs = lane.batch(self.arguments.batch as usize);
            let (api, patience) = (Arc::clone(self.api), self.arguments.retry_for);
            self.requests.spawn(async move {
                let bytes = jobs.iter().map(Job::bytes).sum();
                (index, bytes, send(&api, jobs, patience).await)
            });
        }
    }

    fn settle(&mut self, (lane, bytes, fates): Sent, ledger: &mut Ledger) -> Result<()> {
        self.lanes[lane].busy = false;
        self.bytes -= bytes;
        let fates = fates.map_err(|failure| Failure {
            sentence: format!("gave up: {failure}{}", self.arguments.hint()),
            ..failure
        })?;
        for (number, fate) in fates {
            ledger.settle(number, fate);
        }
        Ok(())
    }
}

/// Sends a request until each of its lines is settled.
async fn send(api: &Api, mut jobs: Vec<Job>, patience: Duration) -> Result<Vec<(u64, Fate)>, Failure> {
    let started = Instant::now();
    let pauses = ExponentialBuilder::default()
        .with_min_delay(SHORTEST_RETRY_PAUSE)
        .with_max_delay(LONGEST_RETRY_PAUSE)
        .with_jitter()
        .without_max_times();
    let mut pauses = pauses.build();
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
        let operations: Vec<_> = jobs.iter().map(|job| &job.operation).collect();
        let last = match api.batch(&operations).await {
            // What is wrong with a single record that a request holds is wrong with that record.
            Err(failure) if failure.is_refusal() && jobs.len() > 1 => return Err(failure),
            Err(failure) if failure.is_refusal() => {
                fates.extend(jobs.drain(..).map(|job| (job.number, job.rejected(&failure))));
                continue;
            }
            Err(failure) => failure,
            Ok(results) => {
                let (left, last) = settle(jobs, results, &mut fates);
                jobs = left;
                match last {
                    None => continue,
                    Some(failure) => failure,
                }
            }
        };
        let passes = matches!(last.kind, Kind::Unclear | Kind::Unavailable);
        let pause = pauses.next().unwrap_or(LONGEST_RETRY_PAUSE);
        if !passes || started.elapsed() + pause > patience {
            return Err(last);
        }
        tracing::info!(error = %last, "sending {} records again", jobs.len());
        tokio::time::sleep(pause).await;
    }
}

/// The lines that are to be sent again, and why the last of them failed.
fn settle(
    jobs: Vec<Job>,
    results: Vec<Result<Outcome, Failure>>,
    fates: &mut Vec<(u64, Fate)>,
) -> (Vec<Job>, Option<Failure>) {
    let (mut left, mut last) = (Vec::new(), None);
    for (job, result) in jobs.into_iter().zip(results) {
        match result {
            Ok(_) => fates.push((job.number, Fate::Accepted)),
            Err(failure) if failure.is_refusal() => {
                fates.push((job.number, job.rejected(&failure)));
            }
            Err(failure) if failure.kind == Kind::NotMet => {
                fates.push((job.number, job.not_met(&failure)));
            }
            Err(failure) => {
                last = Some(failure);
                left.push(job);
            }
        }
    }
    (left, last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(number: u64, key: &str, bytes: usize) -> Job {
        let entry = Entry {
            key: key.into(),
            value: String::new(),
            life: Life::ForEver,
            condition: WriteCondition::None,
        };
        Job::new(number, vec![b'x'; bytes].into(), entry, Asked::default())
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
            let entry = Entry {
                key: "k".into(),
                value: String::new(),
                life: Life::Until(at),
                condition: WriteCondition::None,
            };
            let mut job = Job::new(0, Bytes::new(), entry, Asked::default());
            (job.still_lives(), job.operation)
        };
        assert!(!until(-1).0 && !until(now_ms()).0);
        let (lives, operation) = until(now_ms() + 60_000);
        let Operation::Set { ttl: Some(ttl), .. } = operation else { panic!("a set with a ttl") };
        assert!(lives && ttl <= Duration::from_secs(60) && ttl > Duration::from_secs(50), "{ttl:?}");
    }
}
