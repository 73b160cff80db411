//! The log: the only truth. A topic of partitions, each a sequence of records that is appended to and, by compaction,
//! loses records that a newer one of the same key replaced.
//!
//! One of the two seams of the system: [`kafka`] for a cluster, [`embedded`] for one process. Nobody else knows how
//! either works.

pub mod embedded;
pub mod kafka;

use std::ops::Range;
use std::time::Duration;

use futures_util::future::BoxFuture;
use md5::{Digest as _, Md5};
use serde::{Deserialize, Serialize};

use crate::clock::LogTime;
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

    /// Appends a record. `key` is not empty, `value` is an encoded record. It takes its place among this caller's appends
    /// at once; the future completes when it is acknowledged, and need not be polled for it to happen.
    ///
    /// # Errors
    /// [`AppendError`] says whether the record may still appear in the log.
    fn append(&self, key: &str, value: Vec<u8>) -> BoxFuture<'static, Result<Appended, AppendError>>;

    /// As [`Log::append`], for a write that is part of a trace: its readers find that again in [`Batch::traced`]. A log that
    /// can't keep it leaves it out.
    ///
    /// # Errors
    /// As [`Log::append`].
    fn append_traced(
        &self,
        key: &str,
        value: Vec<u8>,
        _trace: TraceParent,
    ) -> BoxFuture<'static, Result<Appended, AppendError>> {
        self.append(key, value)
    }

    /// Appends a record that tidies up after another, to that one's partition, whichever the key's is now.
    ///
    /// # Errors
    /// As [`Log::append`].
    fn append_conditional(
        &self,
        tidy: ConditionalRecord,
    ) -> BoxFuture<'static, Result<Appended, AppendError>>;

    /// Whether the log keeps what trimming rests on. Blocks, for seconds at most.
    ///
    /// # Errors
    /// A sentence when it does not, or did not answer.
    fn check_trimming(&self) -> Result<(), String>;

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

    /// What the client of the log tells about itself, for metrics only.
    fn statistics(&self) -> LogStatistics {
        LogStatistics::default()
    }

    /// Whether the log is, as far as can be told, still what [`Log::open`] found: a topic can be made anew under its name,
    /// a cluster under its address, and a topic can be given more `partitions`. Blocks, for a second or so at most.
    fn is_still(&self, _identity: &LogIdentity, _partitions: usize) -> bool {
        true
    }

    /// The offset of each partition's first record whose write timestamp is later than `times[p]`; `None` where there is none, or no time was given. It may also be that of something that no reader is given, such as
    /// a transaction marker. Blocks, for seconds at most.
    ///
    /// # Errors
    /// [`ReadError::Unavailable`] when the log did not answer.
    fn first_after(&self, times: &[Option<LogTime>]) -> Result<Vec<Option<i64>>, ReadError> {
        Ok(vec![None; times.len()])
    }

    /// Hears that the log has lost records: it may have forgotten what it agreed upon with its writers, too.
    fn on_log_truncated(&self) {}

    /// After how long a delete marker may leave the log: who has not read it for longer may have missed deletes. `None`
    /// for never.
    fn delete_grace(&self) -> Option<Duration> {
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

    /// Tells the log how far this node has applied it, for the eyes of operators only. Never blocks, never fails.
    fn applied(&mut self, next: &[NextOffset]);
}

/// Figures of the log's client; `None` and empty where there are none.
#[derive(Clone, Debug, Default)]
pub struct LogStatistics {
    /// Appends that wait for their acknowledgement.
    pub producer_queue: Option<Queue>,
    /// Records fetched that nobody has polled yet.
    pub reader_queue: Option<Queue>,
    pub clients: Vec<ClientStatistics>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    pub records: u64,
    pub bytes: u64,
    /// It holds no more bytes; 0 if that is not known.
    pub limit_bytes: u64,
}

/// Totals are since the client was made.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientStatistics {
    pub client: &'static str,
    pub sent_bytes: u64,
    pub received_bytes: u64,
    pub brokers: Vec<BrokerStatistics>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct BrokerStatistics {
    /// `host:port`
    pub broker: String,
    pub up: bool,
    /// Mean of the last interval, in seconds; `None` if there was no request.
    pub rtt: Option<f64>,
    /// Mean of the last interval, in seconds.
    pub throttle: f64,
    pub errors: u64,
    pub request_timeouts: u64,
}

/// Tells one log from another: a store built from the one says nothing about the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogIdentity {
    /// Kafka's cluster id, or the embedded log's own.
    pub cluster: String,
    pub topic: String,
    /// Kafka's id of the topic, which changes when it is deleted and created again; `None` where it is not known.
    #[serde(default)]
    pub topic_id: Option<String>,
}

/// A short name for a [`LogIdentity`] that tells topics apart; 0 where the topic's id is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LogTag(pub u64);

impl LogTag {
    /// Whether both may be of one log.
    #[must_use]
    pub fn fits(self, other: Self) -> bool {
        self == other || self.0 == 0 || other.0 == 0
    }
}

impl LogIdentity {
    /// The first 8 bytes of the MD5 of the topic's id.
    #[must_use]
    pub fn tag(&self) -> LogTag {
        let id = self.topic_id.as_deref();
        let first = id.and_then(|id| Md5::digest(id).first_chunk().copied());
        LogTag(first.map_or(0, u64::from_be_bytes))
    }

    /// Whether both may name one log.
    #[must_use]
    pub fn fits(&self, other: &Self) -> bool {
        let ids = self.topic_id.as_ref().zip(other.topic_id.as_ref());
        self.cluster == other.cluster && self.topic == other.topic && ids.is_none_or(|(a, b)| a == b)
    }
}

impl std::fmt::Display for LogIdentity {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "topic '{}'", self.topic)?;
        if let Some(id) = &self.topic_id {
            write!(out, " (id {id})")?;
        }
        write!(out, " of cluster {}", self.cluster)
    }
}

/// What [`Log::open`] found.
#[derive(Clone, Debug)]
pub struct LogInfo {
    pub identity: LogIdentity,
    /// Per partition: where the log starts (inclusive) and its high watermark (exclusive).
    pub partitions: Vec<Range<i64>>,
}

impl LogInfo {
    /// Where each partition is read from the start.
    #[must_use]
    pub fn starts(&self) -> Vec<NextOffset> {
        self.partitions.iter().map(|range| NextOffset(range.start)).collect()
    }
}

/// What a record says of an earlier one of its key and partition. It takes effect only if the partition holds none of the
/// key by then, or none with a greater offset than this one's, if its own write timestamp is not later than `until`, and if
/// the log is the one that it speaks of. A write has no condition and always takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// A tombstone: the record at `offset` is no longer needed.
    Trim { offset: i64, until: LogTime, log: LogTag },
    /// The record of `offset` and of that write timestamp once more, since another that took no effect lies behind it and
    /// would outlive it in compaction.
    Repair { offset: i64, timestamp: LogTime, until: LogTime, log: LogTag },
    /// A condition that this node does not understand.
    Unreadable,
}

impl Condition {
    /// Kafka header of a [`Condition::Trim`]: `offset:until:log`, the last in hexadecimal, and left out by older nodes.
    pub const TRIM: &str = "bitacora-trim";
    /// Kafka header of a [`Condition::Repair`]: `offset:timestamp:until:log`.
    pub const REPAIR: &str = "bitacora-repair";

    /// The condition that a header states.
    #[must_use]
    pub fn from_header(name: &str, value: &[u8]) -> Self {
        let parsed = std::str::from_utf8(value).ok().and_then(|text| {
            let mut fields = text.split(':');
            let offset = fields.next()?.parse().ok().filter(|offset| *offset >= 0)?;
            let mut time = || fields.next()?.parse().ok().map(LogTime::from_ms);
            let timestamp = if name == Self::TRIM { None } else { Some(time()?) };
            let until = time()?;
            let log = match fields.next() {
                Some(tag) => LogTag(u64::from_str_radix(tag, 16).ok()?),
                None => LogTag::default(),
            };
            let condition = match timestamp {
                None => Self::Trim { offset, until, log },
                Some(timestamp) => Self::Repair { offset, timestamp, until, log },
            };
            fields.next().is_none().then_some(condition)
        });
        parsed.unwrap_or(Self::Unreadable)
    }

    /// Name and value of its header.
    #[must_use]
    pub fn header(self) -> (&'static str, String) {
        match self {
            Self::Trim { offset, until, log } => (Self::TRIM, format!("{offset}:{until}:{:x}", log.0)),
            Self::Repair { offset, timestamp, until, log } => {
                (Self::REPAIR, format!("{offset}:{timestamp}:{until}:{:x}", log.0))
            }
            Self::Unreadable => (Self::TRIM, String::new()),
        }
    }

    /// Until when it has effect, and in which log; `None` if that can't be read.
    #[must_use]
    pub fn reach(self) -> Option<(LogTime, LogTag)> {
        match self {
            Self::Trim { until, log, .. } | Self::Repair { until, log, .. } => Some((until, log)),
            Self::Unreadable => None,
        }
    }
}

/// A record with a [`Condition`], to be appended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConditionalRecord {
    pub partition: i32,
    pub key: Vec<u8>,
    /// `None` for a [`Condition::Trim`], and for the [`Condition::Repair`] of a tombstone.
    pub value: Option<Vec<u8>>,
    pub condition: Condition,
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

#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    #[error("the log can't be read: {0}")]
    Unavailable(String),
    /// The log no longer holds, or never held, an offset that was asked for; or it ends below it, as far as the leader
    /// appended under whom the offset was read: what is there now is another's.
    #[error("partition {partition} does not hold the offset that the store stands at")]
    OutOfRange { partition: i32 },
    #[error(
        "the log is not as it was opened: its topic or its cluster was replaced, or has lost or gained partitions or records"
    )]
    Changed,
}

/// Records as they came from the log, and how far each partition has been read with them.
///
/// The bytes lie in one buffer, so that applying a record costs no allocation.
#[derive(Default)]
pub struct Batch {
    bytes: Vec<u8>,
    records: Vec<RawRecord>,
    read: Vec<Read>,
    log_time: Option<LogTime>,
    traced: Vec<(Position, TraceParent)>,
}

/// How far a partition has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    pub partition: i32,
    /// Everything below has been read. Beyond the last record where the log ends in holes.
    pub next: NextOffset,
    /// The latest write timestamp of the records that were read since; `None` if there was none.
    pub latest: Option<LogTime>,
    /// The epoch of the leader under which the record before `next` was appended; `None` if a hole is there, or if it is
    /// not known.
    pub epoch: Option<i32>,
}

impl Read {
    /// Up to `next`, without a record.
    #[must_use]
    pub fn up_to(partition: i32, next: NextOffset) -> Self {
        Self { partition, next, latest: None, epoch: None }
    }
}

struct RawRecord {
    position: Position,
    timestamp: LogTime,
    key: Option<Range<usize>>,
    value: Option<Range<usize>>,
    condition: Option<Condition>,
    epoch: Option<i32>,
}

/// One record of a [`Batch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogRecord<'a> {
    pub position: Position,
    /// The write timestamp.
    pub timestamp: LogTime,
    /// Others may write records without a key.
    pub key: Option<&'a [u8]>,
    /// `None` is a tombstone.
    pub value: Option<&'a [u8]>,
    /// `None` for a write.
    pub condition: Option<Condition>,
    /// Of the leader under which it was appended, if that is known.
    pub epoch: Option<i32>,
}

impl Batch {
    /// Enough records for one LMDB transaction to pay off, few enough to bound memory and the wait of the first.
    const MAX_RECORDS: usize = 20_000;
    const MAX_BYTES: usize = 16 << 20;
    /// Traces that are kept; those of further records are dropped.
    const MAX_TRACED: usize = 256;

    pub fn clear(&mut self) {
        self.bytes.clear();
        self.records.clear();
        self.read.clear();
        self.log_time = None;
        self.traced.clear();
        if self.bytes.capacity() > 2 * Self::MAX_BYTES {
            self.bytes.shrink_to(Self::MAX_BYTES);
        }
    }

    pub fn push(&mut self, record: LogRecord<'_>) {
        let key = record.key.map(|key| self.copy(key));
        let value = record.value.map(|value| self.copy(value));
        let LogRecord { position, timestamp, condition, epoch, .. } = record;
        self.records.push(RawRecord { position, timestamp, key, value, condition, epoch });
        self.note(Read {
            partition: position.partition,
            next: NextOffset::after(position.offset),
            latest: Some(timestamp),
            epoch,
        });
    }

    /// Notes that nothing is left to read below `next`.
    pub fn reached(&mut self, partition: i32, next: NextOffset) {
        self.note(Read::up_to(partition, next));
    }

    fn note(&mut self, read: Read) {
        match self.read.iter_mut().find(|known| known.partition == read.partition) {
            Some(known) => {
                known.latest = known.latest.max(read.latest);
                if known.next < read.next {
                    (known.next, known.epoch) = (read.next, read.epoch);
                }
            }
            None => self.read.push(read),
        }
    }

    /// Notes that a record was appended at this time of the log's own clock.
    pub fn appended_at(&mut self, time: LogTime) {
        self.log_time = self.log_time.max(Some(time));
    }

    /// The latest of those: the log's clock had come as far. `None` if only writers' clocks are known.
    #[must_use]
    pub fn log_time(&self) -> Option<LogTime> {
        self.log_time
    }

    /// Notes of which trace the record at a position is a part.
    pub fn add_trace(&mut self, position: Position, trace: TraceParent) {
        if self.traced.len() < Self::MAX_TRACED {
            self.traced.push((position, trace));
        }
    }

    /// The records that are part of a trace, or the first of them if they are many.
    #[must_use]
    pub fn traced(&self) -> &[(Position, TraceParent)] {
        &self.traced
    }

    fn copy(&mut self, bytes: &[u8]) -> Range<usize> {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        start..self.bytes.len()
    }

    #[must_use]
    pub fn is_full(&self) -> bool {
        self.records.len() >= Self::MAX_RECORDS || self.bytes.len() >= Self::MAX_BYTES
    }

    #[must_use]
    pub fn says_nothing(&self) -> bool {
        self.read.is_empty()
    }

    pub fn records(&self) -> impl ExactSizeIterator<Item = LogRecord<'_>> {
        self.records.iter().map(|raw| LogRecord {
            position: raw.position,
            timestamp: raw.timestamp,
            key: raw.key.clone().map(|range| &self.bytes[range]),
            value: raw.value.clone().map(|range| &self.bytes[range]),
            condition: raw.condition,
            epoch: raw.epoch,
        })
    }

    /// Of each partition that moved.
    #[must_use]
    pub fn read(&self) -> &[Read] {
        &self.read
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_header_is_a_condition_of_an_offset_or_unreadable(
            name in "bitacora-(trim|repair)",
            value: Vec<u8>,
            text in "[+-]?[0-9]{0,20}(:[+-]?[0-9a-f]{0,20}){0,4}",
            number: bool,
        ) {
            let condition = Condition::from_header(&name, if number { text.as_bytes() } else { &value });
            let (again, text) = condition.header();
            match condition {
                Condition::Trim { offset, .. } | Condition::Repair { offset, .. } => {
                    prop_assert!(offset >= 0);
                    prop_assert_eq!(again, name);
                    prop_assert_eq!(Condition::from_header(again, text.as_bytes()), condition);
                }
                Condition::Unreadable => prop_assert_eq!(Condition::from_header(again, text.as_bytes()), condition),
            }
        }

        #[test]
        fn any_condition_survives_its_header(
            offset in 0..i64::MAX, timestamp: i64, until: i64, log: u64, repair: bool,
        ) {
            let (timestamp, until) = (LogTime::from_ms(timestamp), LogTime::from_ms(until));
            let log = LogTag(log);
            let repair = repair.then_some(Condition::Repair { offset, timestamp, until, log });
            let condition = repair.unwrap_or(Condition::Trim { offset, until, log });
            let (name, value) = condition.header();
            prop_assert_eq!(Condition::from_header(name, value.as_bytes()), condition);
        }
    }

    #[test]
    fn a_tag_tells_topics_apart_where_they_have_ids() {
        let of = |id: Option<&str>| {
            LogIdentity { cluster: "c".into(), topic: "t".into(), topic_id: id.map(str::to_owned) }.tag()
        };
        assert_eq!(of(Some("one")), of(Some("one")));
        assert!(!of(Some("one")).fits(of(Some("two"))));
        assert!(of(None).fits(of(Some("two"))) && of(Some("one")).fits(of(None)) && of(None).fits(of(None)));
    }

    #[test]
    fn a_condition_survives_its_header_and_anything_else_is_unreadable() {
        let log = LogTag(u64::MAX);
        let at = LogTime::from_ms;
        let repair = Condition::Repair { offset: i64::MAX, timestamp: at(-1), until: at(3), log };
        for condition in [Condition::Trim { offset: 0, until: at(-7), log }, repair] {
            let (name, value) = condition.header();
            assert_eq!(Condition::from_header(name, value.as_bytes()), condition);
        }
        let (older, log) = (Condition::from_header(Condition::TRIM, b"1:2"), LogTag::default());
        assert_eq!(older, Condition::Trim { offset: 1, until: at(2), log });
        for (name, value) in [
            (Condition::TRIM, ""),
            (Condition::TRIM, "1"),
            (Condition::TRIM, "-1:2"),
            (Condition::TRIM, "1:2:x"),
            (Condition::TRIM, "1:2:3:4"),
            (Condition::TRIM, "1:2:12345678901234567"),
            (Condition::TRIM, "99999999999999999999:2"),
            (Condition::REPAIR, "1"),
            (Condition::REPAIR, "1:5"),
            (Condition::REPAIR, "-1:5:5"),
            (Condition::REPAIR, "1:x:5"),
            (Condition::REPAIR, "1:5:"),
            (Condition::REPAIR, "1:5:5:g"),
            (Condition::REPAIR, "1:5:5:5:5"),
        ] {
            assert_eq!(
                Condition::from_header(name, value.as_bytes()),
                Condition::Unreadable,
                "{name} {value}"
            );
        }
        assert_eq!(Condition::from_header(Condition::TRIM, b"\xff"), Condition::Unreadable);
    }
}
