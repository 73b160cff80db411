//! The one path from the log into the store: a thread that reads batches, applies each in one transaction together with
//! the next offsets, and only then tells who waits. Nothing else writes the store.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bitacora_client::wire::{KeyValue, ttl};

use crate::log::{Batch, Condition, Log, LogInfo, LogRecord, OpenError, ReadError};
use crate::metrics::Metrics;
use crate::now_ms;
use crate::position::{NextOffset, Position};
use crate::progress::{Phase, Progress};
use crate::store::{Applied, Change, Entry, Store, StoreError};

/// How long the reader waits for news before the thread looks whether it should stop.
const POLL: Duration = Duration::from_millis(100);
/// Between two tries to reach a log that does not answer.
const RETRY: Duration = Duration::from_millis(500);
/// Between two questions for the high watermarks; well within the second after which they are stale.
const WATERMARKS: Duration = Duration::from_millis(250);
/// A poison record is logged with its position, but not more than so many in one batch.
const POISON_LOGGED: usize = 10;

/// Two threads: one applies, the other learns the high watermarks.
pub struct Replica {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

struct Parts {
    log: Arc<dyn Log>,
    store: Arc<Store>,
    progress: Arc<Progress>,
    metrics: Arc<Metrics>,
    stop: Arc<AtomicBool>,
    /// How long other writers' tombstones are remembered, in ms.
    delete_retention: i64,
}

impl Replica {
    /// # Errors
    /// When the store can't be read or the system gives no thread.
    pub fn start(
        log: Arc<dyn Log>,
        store: Arc<Store>,
        progress: Arc<Progress>,
        metrics: Arc<Metrics>,
        delete_retention: Duration,
    ) -> anyhow::Result<Self> {
        // Known before the log answers: a warm store serves reads while Kafka is away.
        let checkpoint = store.checkpoint()?;
        // But not another topic's keys.
        let same_topic = checkpoint.identity.as_ref().is_some_and(|identity| identity.topic == log.topic());
        progress.begin(&checkpoint.next, checkpoint.restored && same_topic);
        let stop = Arc::new(AtomicBool::new(false));
        let learner = std::thread::Builder::new().name("watermarks".into()).spawn({
            let (log, progress, stop) = (Arc::clone(&log), Arc::clone(&progress), Arc::clone(&stop));
            move || learn(&*log, &progress, &stop)
        })?;
        let delete_retention = delete_retention.as_millis() as i64;
        let parts = Parts { log, store, progress, metrics, stop: Arc::clone(&stop), delete_retention };
        let applier = std::thread::Builder::new().name("replica".into()).spawn(move || parts.run())?;
        Ok(Self { stop, threads: vec![learner, applier] })
    }

    /// Stops after the batch under way. Blocks, for as long as that takes.
    pub fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            // The unwinding thread has told `Progress` already.
            let _ = thread.join();
        }
    }
}

fn learn(log: &dyn Log, progress: &Progress, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        if progress.phase() != Phase::Reading {
            std::thread::sleep(WATERMARKS / 10);
            continue;
        }
        let asked = Instant::now();
        match log.high_watermarks() {
            Ok(learnt) => progress.learnt(&learnt, asked),
            Err(error) => tracing::debug!(%error, "the high watermarks are not known"),
        }
        std::thread::sleep(WATERMARKS);
    }
}

/// Why the replica left its reading loop.
enum Interrupted {
    Stopped,
    Log(ReadError),
    Store(StoreError),
}

impl Parts {
    fn run(self) {
        let _obituary = Obituary { progress: &self.progress, thread: "replica" };
        while !self.stopped() {
            let info = match self.log.open() {
                Ok(info) => info,
                Err(OpenError::Unavailable(reason)) => {
                    self.wait_for_log(reason);
                    continue;
                }
                Err(OpenError::Refused(reason)) => {
                    tracing::error!("{reason}");
                    self.progress.set_phase(Phase::Failed(reason));
                    return;
                }
            };
            match self.follow(&info) {
                Interrupted::Stopped => return,
                Interrupted::Log(error) => self.wait_for_log(error.to_string()),
                Interrupted::Store(error) => {
                    // Reads go on as far as LMDB lets them; a full disk may get space again.
                    tracing::error!(%error, "the store could not be written; trying again");
                    self.wait_for_log(error.to_string());
                }
            }
        }
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn wait_for_log(&self, reason: String) {
        if self.progress.phase() != Phase::Connecting(reason.clone()) {
            tracing::warn!("{reason}; trying again every {} ms", RETRY.as_millis());
        }
        self.progress.set_phase(Phase::Connecting(reason));
        let until = Instant::now() + RETRY;
        while !self.stopped() && Instant::now() < until {
            std::thread::sleep(POLL.min(RETRY));
        }
    }

    /// Reads and applies until something interrupts it.
    fn follow(&self, info: &LogInfo) -> Interrupted {
        let mut next = match self.reconcile(info) {
            Ok(next) => next,
            Err(error) => return Interrupted::Store(error),
        };
        let mut reader = match self.log.reader(&next) {
            Ok(reader) => reader,
            Err(error) => return Interrupted::Log(error),
        };
        self.progress.set_phase(Phase::Reading);
        tracing::info!(topic = info.identity.topic, partitions = next.len(), "reading the log");
        let mut batch = Batch::default();
        while !self.stopped() {
            batch.clear();
            let read = reader.poll(POLL, &mut batch);
            // What was read before an error is in order and counts.
            if !batch.says_nothing() {
                if let Err(error) = self.apply(&batch) {
                    return Interrupted::Store(error);
                }
                for (partition, offset) in batch.next() {
                    next[*partition as usize] = *offset;
                }
            }
            self.progress.heartbeat();
            if let Err(error) = read {
                return Interrupted::Log(error);
            }
            if let Err(error) = self.note_caught_up().and_then(|()| self.sweep()) {
                return Interrupted::Store(error);
            }
            reader.applied(&next);
        }
        Interrupted::Stopped
    }

    /// Where to read on: at the store's next offsets if they lie in this log, else from its start with an empty store.
    fn reconcile(&self, info: &LogInfo) -> Result<Vec<NextOffset>, StoreError> {
        let checkpoint = self.store.checkpoint()?;
        let why = match &checkpoint.identity {
            None => None,
            Some(identity) if *identity != info.identity => {
                Some(format!("it was built from topic '{}' of cluster {}", identity.topic, identity.cluster))
            }
            Some(_) if checkpoint.next.len() > info.partitions.len() => Some(format!(
                "it knows {} partitions, the topic has {}",
                checkpoint.next.len(),
                info.partitions.len()
            )),
            Some(_) => {
                (0..).zip(&checkpoint.next).zip(&info.partitions).find_map(|((partition, next), range)| {
                    // At the end is in order: there is no record yet.
                    let inside = range.start <= next.0 && next.0 <= range.end;
                    // A partition that was never read from has nothing to lose.
                    (!inside && next.0 != 0).then(|| {
                        format!(
                            "it stands at offset {} of partition {partition}, which holds {} to {}",
                            next.0, range.start, range.end
                        )
                    })
                })
            }
        };
        let starts: Vec<_> = info.partitions.iter().map(|range| NextOffset(range.start)).collect();
        if checkpoint.identity.is_none() || why.is_some() {
            if let Some(why) = why {
                tracing::warn!("the store does not belong to this log: {why}; rebuilding it from the log");
                self.metrics.resyncs.inc();
            }
            self.progress.begin(&starts, false);
            self.store.reset(&info.identity, &starts)?;
            return Ok(starts);
        }
        let next: Vec<_> = (0..starts.len())
            .map(|p| checkpoint.next.get(p).map_or(starts[p], |n| (*n).max(starts[p])))
            .collect();
        if next.len() > checkpoint.next.len() {
            // The topic has grown. The store knows all partitions or none, whichever has records first.
            let all: Vec<_> = (0..).zip(next.iter().copied()).collect();
            self.store.apply(&mut Vec::new(), &all)?;
        }
        self.progress.begin(&next, checkpoint.restored);
        Ok(next)
    }

    fn apply(&self, batch: &Batch) -> Result<(), StoreError> {
        let started = Instant::now();
        let (applied, poison) = apply(&self.store, batch)?;
        self.progress.applied(batch.next());
        self.metrics.poison_records.inc_by(poison as u64);
        self.metrics.records_applied.inc_by(applied.changed as u64);
        self.metrics.records_trimmed.inc_by(applied.trimmed as u64);
        self.metrics.records_void.inc_by(applied.void as u64);
        if batch.records().len() > 0 {
            self.metrics.batch_records.observe(batch.records().len() as f64);
            self.metrics.apply_seconds.observe(started.elapsed().as_secs_f64());
        }
        Ok(())
    }

    fn sweep(&self) -> Result<(), StoreError> {
        let swept = self.store.sweep(now_ms(), self.delete_retention, self.progress.caught_up())?;
        self.metrics.keys_swept.inc_by(swept as u64);
        Ok(())
    }

    fn note_caught_up(&self) -> Result<(), StoreError> {
        if self.progress.caught_up_once() || !self.progress.caught_up() {
            return Ok(());
        }
        if !self.progress.restored() {
            self.store.set_restored()?;
        }
        self.progress.set_restored();
        let seconds = self.progress.restore().seconds.unwrap_or_default();
        tracing::info!(seconds, "caught up with the log");
        Ok(())
    }
}

/// Applies a batch to the store, in one transaction. Returns what came of it, and how many records were poison.
///
/// # Errors
/// When the store fails; nothing is changed then.
pub fn apply(store: &Store, batch: &Batch) -> Result<(Applied, usize), StoreError> {
    let mut changes = Vec::with_capacity(batch.records().len());
    let mut poison = 0;
    for record in batch.records() {
        match decode(&record, store.max_key_bytes()) {
            Ok(change) => changes.push(change),
            Err(reason) => {
                poison += 1;
                if poison <= POISON_LOGGED {
                    tracing::warn!(position = %record.position, "skipped a record that can't be decoded: {reason}");
                }
            }
        }
    }
    if poison > POISON_LOGGED {
        tracing::warn!(records = poison - POISON_LOGGED, "skipped further records that can't be decoded");
    }
    Ok((store.apply(&mut changes, batch.next())?, poison))
}

/// What a record of the log changes; the reason if it is poison.
fn decode<'a>(record: &LogRecord<'a>, max_key_bytes: usize) -> Result<(&'a [u8], Change), String> {
    let LogRecord { position: at, timestamp, condition, .. } = *record;
    let key = record.key.filter(|key| !key.is_empty()).ok_or("it has no key")?;
    if key.len() > max_key_bytes {
        return Err(format!("its key has {} bytes, the store takes {max_key_bytes}", key.len()));
    }
    let text = std::str::from_utf8(key).map_err(|_| "its key is not UTF-8")?;
    let earlier = |offset: i64| {
        // One that claims to be newer than it is would make later writes void.
        if offset < at.offset { Ok(offset) } else { Err("its header names an offset that is not before it") }
    };
    let (position, write_timestamp) = match condition {
        None => (at, timestamp),
        Some(Condition::Trim { offset }) if record.value.is_none() => {
            return Ok((key, Change::Trim { at, timestamp, offset: earlier(offset)? }));
        }
        Some(Condition::Repair { offset, timestamp }) => {
            (Position { offset: earlier(offset)?, ..at }, timestamp)
        }
        Some(Condition::Trim { .. } | Condition::Unreadable) => {
            return Err("its header makes no sense".to_owned());
        }
    };
    let entry = match record.value {
        None => Entry::new(position, write_timestamp, ttl::DELETED, &[]),
        Some(value) => {
            let decoded = KeyValue::decode(value).map_err(|error| error.to_string())?;
            if decoded.key != text {
                return Err("the key inside it is another than the record's".to_owned());
            }
            Entry::new(position, write_timestamp, decoded.ttl, value)
        }
    };
    let change = if position == at { entry.into() } else { Change::Repair { at, timestamp, entry } };
    Ok((key, change))
}

/// Tells that a thread died, if it did.
pub(crate) struct Obituary<'a> {
    pub progress: &'a Progress,
    pub thread: &'static str,
}

impl Drop for Obituary<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let reason = format!("the {}'s thread panicked; restart the node", self.thread);
            self.progress.set_phase(Phase::Failed(reason));
        }
    }
}

#[cfg(test)]
mod tests;
