//! The log: the only truth. A topic of partitions, each a sequence of records that is appended to and, by compaction,
//! loses records that a newer one of the same key replaced.
//!
//! There are two of it behind one trait: [`kafka`] for a cluster, [`embedded`] for one process. Nobody else knows how either
//! works.

mod appends;
mod batch;
mod condition;
pub mod embedded;
mod identity;
pub mod kafka;
mod level;
mod record;
mod statistics;

use std::ops::Range;
use std::time::Duration;

pub use self::appends::{AppendOutcome, Appending, Appends, Unsettled};
pub use self::batch::{Batch, BatchBounds, LogRecord, PartitionRead};
pub use self::condition::{Condition, Expected};
pub use self::identity::{LogIdentity, LogTag};
pub use self::level::{Level, is_reserved};
pub use self::record::NewRecord;
pub use self::statistics::{BrokerStatistics, ClientStatistics, LogStatistics, Queue};
use crate::clock::LogTime;
use crate::metrics::APPEND_OUTCOMES;
use crate::telemetry::TraceParent;
use bitacora_protocol::{HighWatermark, NextOffset, Position};

/// Appends records and reads them back in the order of each partition.
///
/// Invariants that every implementation keeps and its users rely on:
/// 1. An acknowledged append survives the crash of any process, and every reader sees it at the position that was
///    acknowledged, unless a newer record of the same key has replaced it by then.
/// 2. All records of a key lie in the partition that [`bitacora_protocol::partition_of`] names.
/// 3. Offsets of a partition only grow; there may be holes. A position once read never holds another record, while
///    [`LogIdentity`] stays the same.
pub trait Log: Send + Sync + 'static {
    /// The topic's name, as it is known before the log answers.
    fn topic(&self) -> &str;

    /// Connects to the log, creates it where it is missing and checks that it is fit for use. Blocks: each question to the log
    /// for seconds at most, and `answered` is called after each. Called again after a failure that may pass, and after a
    /// reader has failed.
    ///
    /// # Errors
    /// [`OpenError`] tells a failure that may pass from one that an operator must mend.
    fn open(&self, answered: &dyn Fn()) -> Result<LogInfo, OpenError>;

    /// Hands a record over. It takes its place among this caller's appends at once, and `append` is settled when it is acknowledged or
    /// given up: [`AppendError`] says whether it may still appear in the log.
    fn hand_over(&self, record: &NewRecord, append: Unsettled);

    /// Appends a record. It takes its place among this caller's appends at once; the future completes when it is acknowledged, and
    /// need not be polled for it to happen.
    fn append_record(&self, record: &NewRecord) -> Appending {
        let (append, appending) = Appending::new(None);
        self.hand_over(record, append);
        appending
    }

    /// Appends a plain write. `key` is not empty, `value` is an encoded record; `trace` is of which trace the write is a part,
    /// and the record's readers find it again in [`Batch::traced`].
    fn append(&self, key: &str, value: Vec<u8>, trace: Option<TraceParent>) -> Appending {
        self.append_record(&NewRecord { key: key.into(), value: Some(value), trace, ..NewRecord::default() })
    }

    /// Whether the log keeps what trimming rests on. Blocks, for seconds at most.
    ///
    /// # Errors
    /// Why the topic is not fit for it, or that it did not answer.
    fn check_trimming(&self) -> Result<(), String>;

    /// Whether the log keeps what conditional writes rest on. Blocks, for seconds at most.
    ///
    /// # Errors
    /// Why the topic is not fit for it and how to mend that; or that it did not answer, or is not read as a whole yet, which may pass.
    fn check_conditional_writes(&self) -> Result<(), OpenError> {
        self.check_trimming().map_err(OpenError::Refused)
    }

    /// Starts to read every partition at its next offset; `from[p]` is partition p's, and `epochs[p]` that of the leader
    /// under which the record before it was appended, where that is known: see [`ReadError::OutOfRange`].
    ///
    /// # Errors
    /// [`ReadError`], as [`LogReader::poll`] has it.
    fn reader(&self, from: &[NextOffset], epochs: &[Option<i32>]) -> Result<Box<dyn LogReader>, ReadError>;

    /// Asks the log for the high watermark of every partition. Blocks, for a second or so at most.
    ///
    /// # Errors
    /// [`ReadError::Unavailable`] when the log did not answer.
    fn high_watermarks(&self) -> Result<Vec<HighWatermark>, ReadError>;

    /// Asks the log for the high watermark of one partition: its leader answers, whatever became of the others'. Blocks, for a second
    /// or so at most.
    ///
    /// # Errors
    /// [`ReadError::Unavailable`] when the log did not answer, or has no such partition.
    fn high_watermark(&self, partition: i32) -> Result<HighWatermark, ReadError> {
        let ends = self.high_watermarks()?;
        let end = usize::try_from(partition).ok().and_then(|index| ends.get(index).copied());
        end.ok_or_else(|| ReadError::Unavailable(format!("there is no partition {partition}")))
    }

    /// The name of a thread of the log's client that has ended although the log is in use: it can't be used any more.
    fn ended_thread(&self) -> Option<&'static str> {
        None
    }

    /// What the client of the log tells about itself, for metrics only.
    fn statistics(&self) -> LogStatistics {
        LogStatistics::default()
    }

    /// Whether the log is, as far as can be told, still what [`Log::open`] found: a topic can be made anew under its name,
    /// a cluster under its address, and a topic can be given more `partitions`. Blocks, for a second or so at most.
    fn is_unchanged(&self, _identity: &LogIdentity, _partitions: usize) -> bool {
        true
    }

    /// The offset of each partition's first record whose write timestamp is later than `times[p]`; `None` where there is none, or no time was given. It may also be that of something that no reader is given, such as
    /// a transaction marker. Blocks, for seconds at most.
    ///
    /// # Errors
    /// [`ReadError::Unavailable`] when the log did not answer.
    fn first_offsets_after(&self, times: &[Option<LogTime>]) -> Result<Vec<Option<i64>>, ReadError> {
        Ok(vec![None; times.len()])
    }

    /// Hears that the log has lost records: it may have forgotten what it agreed upon with its writers, too.
    fn on_log_truncated(&self) {}

    /// How long the log tries to append a record.
    fn write_timeout(&self) -> Duration {
        Duration::from_secs(5)
    }

    /// After how long a delete marker may leave the log: who has not read it for longer may have missed deletes. `None`
    /// for never.
    fn delete_retention(&self) -> Option<Duration> {
        None
    }

    /// Waits until what was appended is acknowledged or given up, no longer than `deadline`. Blocks.
    fn flush(&self, deadline: Duration);
}

/// Reads all partitions of a [`Log`]; used by one thread, which it may block.
pub trait LogReader: Send {
    /// Waits up to `wait` for news and adds what is there to `batch`, which has bounds of its own.
    ///
    /// # Errors
    /// After an error the reader is of no more use; the log must be opened anew.
    fn poll(&mut self, wait: Duration, batch: &mut Batch) -> Result<(), ReadError>;

    /// Whether reading may take a thread of its own while what was read is applied.
    fn may_read_ahead(&self) -> bool {
        false
    }

    /// Tells the log how far this node has applied it, for the eyes of operators only. Never blocks, never fails.
    fn applied(&mut self, next: &[NextOffset]);
}

/// What [`Log::open`] found.
#[derive(Clone, Debug)]
pub struct LogInfo {
    pub identity: LogIdentity,
    /// Per partition: where the log starts (inclusive) and its high watermark (exclusive).
    pub partitions: Vec<Range<i64>>,
    /// How long a record is safe from compaction, be it removed or a reason to remove those before it; zero if that is not known.
    pub compaction_lag: Duration,
}

impl LogInfo {
    /// Where each partition is read from the start.
    #[must_use]
    pub fn starts(&self) -> Vec<NextOffset> {
        self.partitions.iter().map(|range| NextOffset(range.start)).collect()
    }
}

/// An acknowledged append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    pub position: Position,
    /// The write timestamp.
    pub timestamp: LogTime,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// May pass; worth another try.
    #[error("{0}")]
    Unavailable(String),
    /// An operator must change something first.
    #[error("{0}")]
    Refused(String),
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum AppendError {
    /// The record is not in the log and will not appear there.
    #[error("the log did not take the write ({0}); it has not taken effect and can be sent again")]
    NotTaken(String),
    /// Nobody knows: the acknowledgement did not come.
    #[error("the log did not acknowledge the write ({0}); it may still take effect")]
    Unknown(String),
    /// The log refuses records of this size.
    #[error("the log refuses a record of this size ({0}); it has not taken effect")]
    TooLarge(String),
}

impl AppendError {
    /// The `outcome` label of the metrics.
    #[must_use]
    pub fn label(outcome: &AppendOutcome) -> &'static str {
        let [acknowledged, not_taken, unknown, too_large] = APPEND_OUTCOMES;
        match outcome {
            Ok(_) => acknowledged,
            Err(Self::NotTaken(_)) => not_taken,
            Err(Self::Unknown(_)) => unknown,
            Err(Self::TooLarge(_)) => too_large,
        }
    }
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    #[error("the log can't be read: {0}")]
    Unavailable(String),
    /// There is something in the log that this node can't read, and that it must not pass over.
    #[error("{0}")]
    Unreadable(String),
    /// The log no longer holds, or never held, an offset that was asked for; or it ends below it, as far as the leader
    /// appended under whom the offset was read: what is there now is another's.
    #[error("partition {partition} does not hold the offset that the store stands at")]
    OutOfRange { partition: i32 },
    #[error(
        "the log is not as it was opened: its topic or its cluster was replaced, or has lost or gained partitions or records"
    )]
    Changed,
}
