//! Whether a store fits a log: what is wrong with it, or too old in it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::POLL_TIMEOUT;
use crate::clock::{Clock, LogTime, Moment, WallTime};
use crate::log::{Batch, Log, LogInfo, LogRecord, ReadError};
use crate::replication::age::reason_too_old;
use crate::store::Checkpoint;
use bitacora_protocol::NextOffset;

/// How long to look whether the log holds other records than were read.
pub(super) const TRUNCATION_CHECK_TIMEOUT: Duration = Duration::from_secs(10);

/// When the store was last caught up; until the first time, when the reading began.
#[derive(Default)]
pub(super) struct LastCaughtUp {
    /// By this machine's clock.
    pub wall_time: Option<WallTime>,
    /// By the clock that counts on, if it was in this run.
    pub moment: Option<Moment>,
    /// When this was last written to the store.
    pub written: Option<Moment>,
}

/// Why a store that is caught up now may have missed deletes since it last was.
pub(super) fn reason_too_old_now(
    last: &LastCaughtUp,
    clock: &dyn Clock,
    retention: Option<Duration>,
) -> Option<String> {
    match last.moment.map(|moment| clock.now().since(moment)) {
        // A clock that is set does not make a running process older.
        Some(since) => reason_too_old(Some(WallTime::default()), WallTime::default() + since, retention),
        None => reason_too_old(last.wall_time, clock.wall(), retention),
    }
}

/// As [`reason_too_old`], by the log's clock: it counts also where this machine's was set back.
pub(super) fn reason_too_old_by_log_time(
    last: &LastCaughtUp,
    batch: &Batch,
    retention: Option<Duration>,
) -> Option<String> {
    // Clocks that differ make the store look older or younger by as much, which is far less than the retention.
    let (then, now) = last.wall_time.zip(batch.log_time().map(LogTime::assuming_clocks_agree))?;
    reason_too_old(Some(then), now.max(then), retention)
}

/// Why a store can't be brought up to date with a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Incompatibility {
    pub why: String,
    pub cause: Cause,
}

/// What happened. All but one happen to every node at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// The topic or the cluster is another one.
    AnotherLog,
    /// The log has lost records or partitions that were read from it.
    LogTruncated,
    /// The log no longer has what comes next: this node was behind for too long.
    RecordsMissed,
    /// The store was not kept up for longer than `DELETE_RETENTION`.
    TooOld,
}

/// What tells, before anything is read, that a store can't be brought up to date with a log.
pub(super) fn incompatibility(checkpoint: &Checkpoint, info: &LogInfo) -> Option<Incompatibility> {
    let identity = checkpoint.identity.as_ref()?;
    if !identity.fits(&info.identity) {
        let why = format!("it was built from {identity}, and this is {}", info.identity);
        return Some(Incompatibility { why, cause: Cause::AnotherLog });
    }
    if let Some(why) = checkpoint.unfit.clone() {
        return Some(Incompatibility { why, cause: Cause::LogTruncated });
    }
    let (known, partitions) = (checkpoint.next.len(), info.partitions.len());
    if known > partitions {
        let why = format!("it knows {known} partitions, the topic has {partitions}");
        return Some(Incompatibility { why, cause: Cause::LogTruncated });
    }
    (0..).zip(&checkpoint.next).zip(&info.partitions).find_map(|((partition, next), range)| {
        // At the end is in order: there is no record yet. A partition that was never read from has nothing to lose.
        let inside = range.start <= next.0 && next.0 <= range.end;
        (!inside && next.0 != 0).then(|| Incompatibility {
            why: format!(
                "it stands at offset {} of partition {partition}, which holds {} to {}",
                next.0, range.start, range.end
            ),
            cause: if next.0 > range.end { Cause::LogTruncated } else { Cause::RecordsMissed },
        })
    })
}

/// Why a log can't be the one that a store was built from, although it holds the offset, if its reader said that it does not:
/// it has ended below it meanwhile, or its leaders since tell that it did. `None` for a partition that was never read from.
pub(super) fn truncated_by_leader_epochs(checkpoint: &Checkpoint, partition: i32) -> Option<Incompatibility> {
    let next = checkpoint.next.get(usize::try_from(partition).ok()?).filter(|next| next.0 > 0)?;
    let why = format!(
        "it has been read up to offset {} of partition {partition}, which by its leaders' word has ended before that: the log was truncated",
        next.0
    );
    Some(Incompatibility { why, cause: Cause::LogTruncated })
}

/// Partitions that were never read from are read from where they start by now; none of the others starts later.
pub(super) fn at_starts(mut checkpoint: Checkpoint, info: &LogInfo) -> Checkpoint {
    for (next, range) in checkpoint.next.iter_mut().zip(&info.partitions) {
        next.0 = next.0.max(range.start);
    }
    checkpoint
}

/// Why a log, although the offsets fit, can't be the one that a store was built from: it has a record below the next
/// offset that is later than all that were read there. So a log that was truncated and grew beyond the
/// next offset again is found out, unless its new records are no later than its old ones: writers' clocks may say so
/// (CreateTime), or a broker's that was set back. Nor is it found out within `timeout` if transaction markers are later
/// than the records in between, and those are many; a node must be able to start all the same.
pub(super) fn truncated_and_regrown(
    log: &dyn Log,
    known: &Checkpoint,
    timeout: Duration,
    stop: &AtomicBool,
    answered: &dyn Fn(),
) -> Result<Option<String>, ReadError> {
    let found = log.first_offsets_after(&known.latest)?;
    answered();
    let mut at = known.next.clone();
    for (at, found) in at.iter_mut().zip(found) {
        *at = found.map_or(*at, |found| NextOffset(found).min(*at));
    }
    if at == known.next {
        return Ok(None);
    }
    // Transaction markers and aborted records have timestamps, too, so it takes a record.
    let mut reader = log.reader(&at, &[])?;
    let (mut batch, mut answers, until) = (Batch::default(), false, Instant::now() + timeout);
    while at.iter().zip(&known.next).any(|(at, next)| at < next) {
        if stop.load(Ordering::Relaxed) {
            return Err(ReadError::Unavailable("this node is stopping".to_owned()));
        }
        if Instant::now() > until {
            if !answers {
                return Err(ReadError::Unavailable("it was not read again in time".to_owned()));
            }
            tracing::warn!(
                "there was no time to see whether the log was truncated: it holds much that is later than its records, such as \
                 transaction markers; it is taken for what it was"
            );
            return Ok(None);
        }
        batch.clear();
        reader.poll(POLL_TIMEOUT, &mut batch)?;
        answered();
        let other = batch.records().find(|LogRecord { position, timestamp, .. }| {
            let partition = position.partition as usize;
            position.offset < known.next[partition].0
                && known.latest[partition].is_some_and(|latest| *timestamp > latest)
        });
        if let Some(LogRecord { position, .. }) = other {
            return Ok(Some(format!(
                "it has been read up to offset {} of partition {}, and now another record is at {position}: the log was truncated",
                known.next[position.partition as usize].0, position.partition
            )));
        }
        for read in batch.read() {
            at[read.partition as usize] = read.next;
            answers = true;
        }
    }
    Ok(None)
}
