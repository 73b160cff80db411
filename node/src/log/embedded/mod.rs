//! The log of `dev` and of tests: partitions in one LMDB environment, for one process and no server.
//!
//! As durable as a broker that flushes every batch: an append is acknowledged after LMDB's commit has reached the disk.
//! Appends that wait together are committed together. Like Kafka, it keeps the newest record of every key and loses
//! older ones by compaction, here once when it is opened.

mod compaction;
mod reader;
mod records;

use std::sync::mpsc::TrySendError;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use heed::types::{Bytes, Str};
use heed::{Database, Env, EnvFlags};
use parking_lot::{Condvar, Mutex};

use self::compaction::{COMPACTION_LAG, compact};
use self::reader::Reader;
use self::records::{encode, end_of, record_key};
use super::{
    AppendError, Appended, Log, LogIdentity, LogInfo, LogReader, NewRecord, OpenError, ReadError, Unsettled,
};
use crate::clock::LogTime;
use crate::data_dir::DataDir;
use crate::lmdb;
use crate::worker::Worker;
use bitacora_protocol::{HighWatermark, NextOffset, Position, partition_of};

/// Appends that may wait for the writer before further ones are turned away.
const MAX_QUEUED_APPENDS: usize = 10_000;
/// Appends committed together, at most.
const MAX_APPENDS_PER_COMMIT: usize = 1_000;
pub struct EmbeddedLog {
    shared: Arc<Shared>,
    appends: Mutex<Option<mpsc::SyncSender<Append>>>,
    writer: Mutex<Option<Worker>>,
    delete_retention: Option<Duration>,
}

struct Shared {
    env: Env,
    /// Partition (u32) and offset (u64), both big-endian → what [`records`] says.
    records: Database<Bytes, Bytes>,
    identity: LogIdentity,
    /// Exclusive ends of what is committed, per partition.
    ends: Mutex<Vec<i64>>,
    /// Signalled when `ends` has grown.
    grown: Condvar,
    _dir: DataDir,
}

struct Append {
    record: NewRecord,
    append: Unsettled,
}

impl EmbeddedLog {
    /// Opens the log in a folder, or creates it with so many partitions.
    ///
    /// # Errors
    /// When the folder can't be used or holds a log with another number of partitions.
    pub fn open(dir: DataDir, topic: &str, partitions: usize) -> Result<Self> {
        let shown = dir.path().display().to_string();
        let env = lmdb::open(dir.path(), 2, EnvFlags::empty())
            .with_context(|| format!("the log in {shown} can't be opened"))?;
        let mut txn = env.write_txn()?;
        let records: Database<Bytes, Bytes> = env.create_database(&mut txn, Some("log"))?;
        let meta: Database<Str, Str> = env.create_database(&mut txn, Some("meta"))?;
        let cluster = match meta.get(&txn, "cluster")? {
            Some(cluster) => cluster.to_owned(),
            None => {
                let cluster = uuid::Uuid::new_v4().to_string();
                meta.put(&mut txn, "cluster", &cluster)?;
                meta.put(&mut txn, "partitions", &partitions.to_string())?;
                cluster
            }
        };
        let stored = meta.get(&txn, "partitions")?.unwrap_or_default();
        if stored != partitions.to_string() {
            bail!(
                "the log in {shown} has {stored} partitions, not {partitions}; keep their number or choose another folder"
            );
        }
        // Compaction never removes a partition's last record, so the ends can be read off.
        let ends = (0..partitions).map(|p| end_of(&txn, records, p)).collect::<heed::Result<_>>()?;
        compact(&mut txn, records, partitions, now())?;
        txn.commit()?;
        // The one topic of a cluster of its own: so that what is said of this log is not taken for another's.
        let topic_id = Some(cluster.clone());
        let identity = LogIdentity { cluster, topic: topic.to_owned(), topic_id };
        let shared = Arc::new(Shared {
            env,
            records,
            identity,
            ends: Mutex::new(ends),
            grown: Condvar::new(),
            _dir: dir,
        });
        let (appends, queue) = mpsc::sync_channel(MAX_QUEUED_APPENDS);
        let writer = Worker::spawn("embedded-log", {
            let shared = Arc::clone(&shared);
            move || write(&shared, &queue)
        })?;
        let (appends, writer) = (Mutex::new(Some(appends)), Mutex::new(Some(writer)));
        Ok(Self { shared, appends, writer, delete_retention: None })
    }

    /// Tells the nodes after how long its delete markers may be trimmed: one that was not part of the cluster for longer
    /// has to begin anew.
    #[must_use]
    pub fn with_delete_retention(mut self, grace: Duration) -> Self {
        self.delete_retention = Some(grace);
        self
    }
}

impl Drop for EmbeddedLog {
    fn drop(&mut self) {
        self.flush(Duration::from_secs(5));
    }
}

/// The writer's thread: takes all appends that wait, commits them in one transaction, acknowledges them.
fn write(shared: &Shared, queue: &mpsc::Receiver<Append>) {
    while let Ok(first) = queue.recv() {
        let mut group = vec![first];
        group.extend(queue.try_iter().take(MAX_APPENDS_PER_COMMIT - 1));
        match commit(shared, &group) {
            Ok(appended) => {
                for (Append { append, .. }, appended) in group.into_iter().zip(appended) {
                    append.settle(Ok(appended));
                }
            }
            Err(error) => {
                tracing::error!(%error, "the embedded log could not write");
                for Append { append, .. } in group {
                    append.settle(Err(AppendError::NotTaken(error.to_string())));
                }
            }
        }
    }
}

fn commit(shared: &Shared, group: &[Append]) -> heed::Result<Vec<Appended>> {
    let mut ends = shared.ends.lock().clone();
    let timestamp = now();
    let mut appended = Vec::with_capacity(group.len());
    let mut txn = shared.env.write_txn()?;
    let mut value = Vec::new();
    for append in group {
        let Append { record, .. } = append;
        let partition = record.partition.unwrap_or_else(|| partition_of(&record.key, ends.len()));
        let end = &mut ends[partition as usize];
        encode(record, timestamp, &mut value);
        shared.records.put(&mut txn, &record_key(partition as u32, *end), &value)?;
        appended.push(Appended { position: Position { partition, offset: *end }, timestamp });
        *end += 1;
    }
    txn.commit()?;
    *shared.ends.lock() = ends;
    shared.grown.notify_all();
    Ok(appended)
}

/// This machine is the only broker, so its clock is the log's.
fn now() -> LogTime {
    LogTime::from_ms(crate::now_ms())
}

impl Log for EmbeddedLog {
    fn topic(&self) -> &str {
        &self.shared.identity.topic
    }

    fn open(&self, _: &dyn Fn()) -> Result<LogInfo, OpenError> {
        let partitions = self.shared.ends.lock().iter().map(|end| 0..*end).collect();
        let identity = self.shared.identity.clone();
        Ok(LogInfo { identity, partitions, compaction_lag: COMPACTION_LAG })
    }

    fn hand_over(&self, record: &NewRecord, append: Unsettled) {
        let partitions = self.shared.ends.lock().len();
        let unknown = record.partition.filter(|of| usize::try_from(*of).map_or(true, |of| of >= partitions));
        if let Some(partition) = unknown {
            let reason = format!("there is no partition {partition}");
            return append.settle(Err(AppendError::NotTaken(reason)));
        }
        let append = Append { record: record.clone(), append };
        let refused = match &*self.appends.lock() {
            None => Some((append, "the log is closing")),
            Some(queue) => match queue.try_send(append) {
                Ok(()) => None,
                Err(TrySendError::Full(append)) => Some((append, "too many writes are waiting")),
                Err(TrySendError::Disconnected(append)) => Some((append, "the log's writer ended")),
            },
        };
        if let Some((Append { append, .. }, reason)) = refused {
            append.settle(Err(AppendError::NotTaken(reason.to_owned())));
        }
    }

    fn delete_retention(&self) -> Option<Duration> {
        self.delete_retention
    }

    fn check_trimming(&self) -> Result<(), String> {
        Ok(())
    }

    fn reader(&self, from: &[NextOffset], _: &[Option<i32>]) -> Result<Box<dyn LogReader>, ReadError> {
        Ok(Box::new(Reader { shared: Arc::clone(&self.shared), next: from.to_vec() }))
    }

    fn high_watermarks(&self) -> Result<Vec<HighWatermark>, ReadError> {
        Ok(self.shared.ends.lock().iter().copied().map(HighWatermark).collect())
    }

    fn ended_thread(&self) -> Option<&'static str> {
        self.writer.lock().as_ref().and_then(Worker::ended)
    }

    fn flush(&self, deadline: Duration) {
        self.appends.lock().take();
        if let Some(writer) = self.writer.lock().take()
            && let Err(thread) = writer.join_until(Instant::now() + deadline)
        {
            tracing::warn!(
                "not every write was acknowledged in time; the thread '{thread}' is left to itself"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Batch, Condition, Expected, Level, LogTag};
    use super::compaction::{COMPACTION_LAG, TOMBSTONE_RETENTION};
    use super::*;
    use crate::clock::WallTime;
    use crate::telemetry::TraceParent;
    use std::path::Path;

    fn open(dir: &Path) -> EmbeddedLog {
        EmbeddedLog::open(DataDir::open(dir).expect("the folder is free"), "t", 2).expect("the log opens")
    }

    fn read_all(
        log: &EmbeddedLog,
        from: &[NextOffset],
    ) -> (Vec<(Position, String, String)>, Vec<(i32, NextOffset)>) {
        let mut reader = log.reader(from, &[]).expect("readable");
        let mut batch = Batch::default();
        reader.poll(Duration::from_secs(5), &mut batch).expect("readable");
        let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
        let records = batch.records().map(|r| (r.position, text(r.key), text(r.value))).collect();
        (records, batch.read().iter().map(|read| (read.partition, read.next)).collect())
    }

    #[tokio::test]
    async fn appends_survive_a_restart_and_compaction() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let log = open(dir.path());
        let identity = Log::open(&log, &|| ()).expect("open").identity;
        let mut last = None;
        for value in ["one", "two", "three"] {
            last = Some(log.append("k", value.into(), None).await.expect("acknowledged"));
        }
        let partition = partition_of(b"k", 2);
        let expected = Position { partition, offset: 2 };
        assert_eq!(last.expect("appended").position, expected);
        let from = [NextOffset(0); 2];
        let values =
            |records: Vec<(Position, String, String)>| records.into_iter().map(|r| r.2).collect::<Vec<_>>();
        assert_eq!(values(read_all(&log, &from).0), ["one", "two", "three"]);
        drop(log);

        let log = open(dir.path());
        assert_eq!(Log::open(&log, &|| ()).expect("open").identity, identity);
        let (records, next) = read_all(&log, &from);
        assert_eq!(records, [(expected, "k".to_owned(), "three".to_owned())]);
        assert!(next.contains(&(partition, NextOffset(3))), "{next:?}");
        assert_eq!(log.high_watermarks().expect("known")[partition as usize], HighWatermark(3));
        assert_eq!(log.append("k", b"four".to_vec(), None).await.expect("acknowledged").position.offset, 3);
    }

    #[tokio::test]
    async fn conditional_records_compact_only_after_the_lag() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let log = open(dir.path());
        log.append("k", b"one".to_vec(), None).await.expect("acknowledged");
        let of = LogTag::default();
        let at = LogTime::from_ms;
        let repair = Condition::Repair { offset: 0, timestamp: at(7), until: at(8), log: of, reach: None };
        let conditional = [
            (Condition::Trim { offset: 0, until: at(9), log: of }, None),
            (repair, None),
            (repair, Some(b"one".to_vec())),
        ];
        // Not the key's own partition.
        let partition = 1 - partition_of(b"k", 2);
        let mut positions = Vec::new();
        for (condition, value) in conditional.clone() {
            let record = NewRecord::conditional(partition, b"k".to_vec(), value, condition);
            positions.push(log.append_record(&record).await.expect("acknowledged").position);
        }
        assert_eq!(positions, [0, 1, 2].map(|offset| Position { partition, offset }));
        let nowhere = NewRecord::conditional(2, b"k".to_vec(), None, repair);
        assert!(matches!(log.append_record(&nowhere).await, Err(AppendError::NotTaken(_))));
        drop(log);

        let log = open(dir.path());
        let read = |log: &EmbeddedLog| {
            let mut batch = Batch::default();
            let mut reader = log.reader(&[NextOffset(0); 2], &[]).expect("readable");
            reader.poll(Duration::from_secs(5), &mut batch).expect("readable");
            let found = batch.records().filter_map(|r| Some((r.condition?, r.value.map(<[u8]>::to_vec))));
            found.collect::<Vec<_>>()
        };
        assert_eq!(read(&log), conditional, "they are young");
        let compact_at = |age| {
            let mut txn = log.shared.env.write_txn().expect("writable");
            compact(&mut txn, log.shared.records, 2, now() + age).expect("compacted");
            txn.commit().expect("committed");
        };
        compact_at(COMPACTION_LAG);
        assert_eq!(read(&log), conditional[2..]);
        // A tombstone goes in the end, unless it is a partition's last record.
        for key in [b"k", b"l"] {
            let condition = Condition::Trim { offset: 1, until: at(9), log: LogTag::default() };
            let record = NewRecord::conditional(partition, key.to_vec(), None, condition);
            log.append_record(&record).await.expect("acknowledged");
        }
        compact_at(COMPACTION_LAG);
        assert_eq!(read(&log).len(), 2);
        compact_at(TOMBSTONE_RETENTION);
        assert_eq!(read(&log).len(), 1);
        assert_eq!(log.high_watermarks().expect("known")[partition as usize], HighWatermark(5));
    }

    #[tokio::test]
    async fn a_closed_log_takes_no_write() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let log = open(dir.path());
        log.flush(Duration::from_secs(1));
        assert!(matches!(log.append("k", Vec::new(), None).await, Err(AppendError::NotTaken(_))));
    }

    #[test]
    fn another_number_of_partitions_is_refused() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        drop(open(dir.path()));
        let again = EmbeddedLog::open(DataDir::open(dir.path()).expect("free"), "t", 3);
        assert!(again.err().expect("refused").to_string().contains("has 2 partitions, not 3"));
    }

    #[tokio::test]
    async fn whatever_a_header_says_is_read_back() {
        let dir = tempfile::tempdir().expect("a folder");
        let (log, tag, until) = (open(dir.path()), LogTag::default(), LogTime::from_ms(9));
        let trace = TraceParent::parse(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        let value = || Some(b"v".to_vec());
        let repair = |reach| Condition::Repair { offset: 1, timestamp: until, until, log: tag, reach };
        let attempt = |expected| Condition::Attempt { expected, until, log: tag };
        let conditional = |value, condition| NewRecord::conditional(0, b"k".to_vec(), value, condition);
        let mut records: Vec<_> = [Expected::Live(7), Expected::Dead(8), Expected::Nothing]
            .into_iter()
            .map(|expected| conditional(value(), attempt(expected)))
            .collect();
        records.extend([
            conditional(value(), repair(None)),
            conditional(value(), repair(Some(2))),
            conditional(None, repair(Some(2))),
            conditional(None, Condition::Trim { offset: 1, until, log: tag }),
            NewRecord { trace, ..conditional(value(), attempt(Expected::Live(7))) },
            NewRecord::level(0, Level::CONDITIONAL_WRITES, WallTime::from_ms(5)),
            NewRecord::barrier(0, "u", WallTime::from_ms(5)),
            NewRecord { partition: Some(0), key: b"k".to_vec(), trace, ..NewRecord::default() },
        ]);
        for record in &records {
            log.append_record(record).await.expect("acknowledged");
        }
        let mut batch = Batch::default();
        let mut reader = log.reader(&[NextOffset(0), NextOffset(0)], &[]).expect("readable");
        reader.poll(Duration::ZERO, &mut batch).expect("readable");
        let read: Vec<_> = batch
            .records()
            .map(|record| NewRecord {
                partition: Some(record.position.partition),
                key: record.key.expect("it has one").to_vec(),
                value: record.value.map(<[u8]>::to_vec),
                condition: record.condition,
                level: record.level,
                trace: batch.traced().iter().find(|(at, _)| *at == record.position).map(|(_, trace)| *trace),
            })
            .collect();
        assert_eq!(read, records);
    }

    #[tokio::test]
    async fn a_trace_is_read_back_also_after_compaction() {
        let dir = tempfile::tempdir().expect("a folder");
        let trace = TraceParent::parse(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        let trace = trace.expect("well formed");
        let log = open(dir.path());
        log.append("k", b"before".to_vec(), None).await.expect("acknowledged");
        let traced = log.append("k", b"traced".to_vec(), Some(trace)).await.expect("acknowledged");
        drop(log);
        let log = open(dir.path());
        let mut batch = Batch::default();
        let mut reader = log.reader(&[NextOffset(0), NextOffset(0)], &[]).expect("readable");
        reader.poll(Duration::ZERO, &mut batch).expect("readable");
        assert_eq!(batch.traced(), [(traced.position, trace)]);
        let values: Vec<_> = batch.records().map(|record| record.value).collect();
        assert_eq!(values, [Some(&b"traced"[..])]);
    }
}
