//! The HTTP API: the names of its headers and each of its JSON documents, declared once for those who write them (the nodes)
//! and those who read them (the command line, and other nodes).
//!
//! The order of the fields is the order in which a node writes them. A reader ignores fields that it does not know.

mod batch_line;
mod changes;
mod digest_ranges;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

pub use self::batch_line::{BatchLine, LineReadOptions, LineWriteOptions};
pub use self::changes::{ChangeEvent, ChangeList, ChangedRecord, DeleteEvent, Reason, Told};
pub use self::digest_ranges::{
    ComparedPartition, DigestRanges, KeyBytes, KeyBytesError, MAX_RANGE_ENTRIES, MAX_RANGE_PARTS, RangeEntry,
    RangePart,
};
use crate::Position;
use crate::rpc::ServedFrom;

/// Header of every answer about a key: the position `P:O` that the answer reflects.
pub const POSITION_HEADER: &str = "bitacora-position";
/// Header of a write: its record's uuid, by which a repeated call is known.
pub const IDEMPOTENCY_KEY_HEADER: &str = "idempotency-key";
/// Header of the answer to a write that was to be shown: the members that did not show it in time, `host:port` of each, with commas
/// between. The write has taken effect all the same.
pub const NOT_VISIBLE_HEADER: &str = "bitacora-not-visible";
/// Header of every answer to a read of a key: where it came from, a [`ServedFrom::name`].
pub const SOURCE_HEADER: &str = "bitacora-source";
/// Header of an answer that a record decided: its write timestamp in ms since the epoch. A 404 with it means
/// *deleted or expired by that record*; a 404 without it means *no record*.
pub const TIMESTAMP_HEADER: &str = "bitacora-timestamp";
/// Header of what a node answers another: the log that the answer is of, a number in hexadecimal; 0 if that is not known.
pub const LOG_HEADER: &str = "bitacora-log";
/// Header of a 503 that a node answers another: it knows the key, and has no memory for the answer. What it says is in words,
/// for people.
pub const OUT_OF_MEMORY_HEADER: &str = "bitacora-out-of-memory";

/// The body of every answer that is an error. A record, the other body, is [`KeyValue`](crate::record::KeyValue).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Message<'a> {
    /// What is wrong, as a sentence for the client.
    pub message: Cow<'a, str>,
    /// Of a write that was answered 503: whether it may still take effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub may_take_effect: Option<bool>,
}

/// The body of a 412: the condition of a write did not hold, and nothing was written. `R` is the writer's or the reader's type of a
/// record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConditionFailed<'a, R> {
    /// What the key is instead, as a sentence for the client.
    pub message: Cow<'a, str>,
    /// The key's record; `None` if it has none, or none that is live.
    pub current: Option<R>,
}

/// A result line of a batch: a write whose condition did not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConditionFailedLine<'a, R> {
    /// 412.
    pub status: u16,
    /// Of the current record or delete marker, or how far the key's partition is applied.
    pub position: Position,
    /// What the key is instead, and its record.
    #[serde(flatten)]
    pub failed: ConditionFailed<'a, R>,
}

/// A result line of a batch: a record that was read. `R` is the writer's or the reader's type of a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadLine<R> {
    /// 200.
    pub status: u16,
    /// The record's.
    pub position: Position,
    /// Where it came from.
    pub from: ServedFrom,
    /// The record.
    #[serde(flatten)]
    pub record: R,
}

/// A result line of a batch: an acknowledged write, without the value, which the client has sent a moment ago.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrittenLine<'a> {
    /// 200.
    pub status: u16,
    /// The record's.
    pub position: Position,
    /// The key.
    pub key: Cow<'a, str>,
    /// The write timestamp, ms since the epoch.
    pub timestamp: i64,
    /// One of [`source`](crate::record::source).
    pub source: i32,
    /// As [`KeyValue::ttl`](crate::record::KeyValue::ttl).
    pub ttl: i64,
    /// Identifies this write.
    pub uuid: Cow<'a, str>,
    /// Of a write that was to be shown: the members that did not show it in time, `host:port` of each.
    #[serde(default, rename = "notVisible", skip_serializing_if = "Vec::is_empty")]
    pub not_visible: Vec<String>,
}

/// A result line of a batch: an operation that failed, or a key that is not there. Every other result line can be read as
/// one, for its status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FailedLine<'a> {
    /// As that of an answer of its own.
    pub status: u16,
    /// What is wrong, as a sentence for the client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<Cow<'a, str>>,
    /// Of a key that is not there: the position that the answer reflects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<Position>,
    /// Of a write that was answered 503: whether it may still take effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub may_take_effect: Option<bool>,
}

/// A page of a scan. `R` is the writer's or the reader's type of a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScanPage<'a, R> {
    /// In key order.
    pub records: Vec<PositionedRecord<R>>,
    /// For the next page; `None` at the end.
    pub cursor: Option<Cow<'a, str>>,
}

/// A record of a page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PositionedRecord<R> {
    /// The record.
    #[serde(flatten)]
    pub record: R,
    /// Its position.
    pub position: Position,
}

/// `GET /status`: what a node says of itself. Read leniently, since a node of another version may leave things out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// `host:API_PORT`, as the cluster knows it.
    pub node: String,
    /// Of the program.
    pub version: String,
    /// Whether it wants requests.
    pub ready: bool,
    /// Why it wants none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unready: Option<String>,
    /// Whether it has applied everything up to high watermarks that it learnt within the last second.
    pub caught_up: bool,
    /// `host:API_PORT` of each member that it knows.
    pub members: Vec<String>,
    /// Whether it knows the members: `fixed`, `connected` or `disconnected`.
    pub membership: ComponentState,
    /// What it does with the log: `connecting`, `reading`, `blocked` or `failed`.
    pub log: ComponentState,
    /// By number.
    pub partitions: Vec<PartitionStatus>,
    /// Whether the store has been caught up with the log.
    pub restore: RestoreStatus,
    /// The highest level of the log that its program knows: 2 with conditional writes. 0 of a program that does not say.
    pub log_level: u32,
    /// Members that hold other records than this node where both have applied the same.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<DigestDifference>,
    /// `None` if the store can't be asked.
    pub store: Option<StoreStatus>,
    /// `None` if the store can't be asked.
    pub cache: Option<CacheStatus>,
}

/// `GET /status/members`: what the members say of themselves, as far as the node that is asked can reach them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MembersStatus {
    /// The node that was asked first, then the others in the order of their addresses.
    pub members: Vec<MemberStatus>,
}

/// A member and what it says of itself: one of `status` and `error` is there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemberStatus {
    /// `host:API_PORT`, as the cluster knows it.
    pub address: String,
    /// What it answers to `GET /status`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
    /// Why there is no status, as a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The state of a part of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ComponentState {
    /// A word.
    pub state: Cow<'static, str>,
    /// Why it is in that state, if that is no good one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// How far a node has applied a partition of the log.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PartitionStatus {
    /// Kafka's number of it.
    pub partition: i32,
    /// Offset of the last record applied; -1 for none.
    pub applied: i64,
    /// Exclusive; `None` until learnt.
    pub high_watermark: Option<i64>,
    /// Offsets between the two; an upper bound of the records to come.
    pub lag: Option<u64>,
    /// Time since the log first reached what is still to be applied, as far as this node knows: how old its reads are, in
    /// seconds; 0 when nothing is to be applied.
    pub lag_seconds: Option<f64>,
    /// Age of `high_watermark` in ms.
    pub high_watermark_age_ms: Option<u64>,
    /// Of what the store holds of the partition; `None` while it may lack something.
    pub digest: Option<DigestPoint>,
}

/// The digest of what a node holds of a partition when everything before an offset is applied.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DigestPoint {
    /// That offset.
    pub next: i64,
    /// 32 hexadecimal digits.
    pub digest: String,
}

/// `GET /status/digests`: what a node holds, to be compared with what others do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DigestsAnswer {
    /// Of the store: digests of another format are other ones.
    pub format: Cow<'static, str>,
    /// The log that the store is of, a number in hexadecimal; 0 if that is not known.
    pub log: String,
    /// By number; empty while the store may not be read.
    pub partitions: Vec<PartitionDigests>,
}

/// The digests of a partition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PartitionDigests {
    /// Kafka's number of it.
    pub partition: i32,
    /// By offset; the last is of what the store holds now, unless it may lack something.
    pub points: Vec<DigestPoint>,
}

/// A partition of which two nodes hold something else, where both have applied the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DigestDifference {
    /// `host:API_PORT` of the other.
    pub member: String,
    /// Kafka's number of it.
    pub partition: i32,
    /// Everything before this offset was applied.
    pub next: i64,
    /// The digest of the node that says so, 32 hexadecimal digits.
    pub own: String,
    /// And of the other.
    pub theirs: String,
}

/// How far a node has restored its store.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RestoreStatus {
    /// Whether the store has been caught up with the log, now or in an earlier run: it may answer reads.
    pub done: bool,
    /// Seconds from the start of the process until it was caught up; `None` until then.
    pub seconds: Option<f64>,
    /// Of the offsets to read at the start, the part that has been read, 0 to 1; `None` until they are known.
    pub fraction: Option<f64>,
    /// Estimate of the time left, from the speed so far; `None` unless restoring, and until there is a speed.
    pub remaining_seconds: Option<f64>,
    /// Why the store is being built anew while the one of before is read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rebuilding: Option<String>,
}

/// The size of a node's store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StoreStatus {
    /// Keys, delete markers included.
    pub records: u64,
    /// Of its file.
    pub bytes: u64,
}

/// The cache over a node's store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CacheStatus {
    /// Records in it.
    pub records: u64,
    /// Memory of them.
    pub bytes: u64,
    /// `CACHE_BYTES`.
    pub capacity_bytes: u64,
    /// Reads that it answered.
    pub hits: u64,
    /// Reads that went to the store.
    pub misses: u64,
}

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;

    use super::*;
    use crate::record::{KeyValue, OwnedKeyValue};

    const RECORD: KeyValue<'_> =
        KeyValue { key: "k", value: "v", timestamp: 7, source: 1, ttl: 0, uuid: "u" };
    const POSITION: Position = Position { partition: 2, offset: 5 };

    /// Field order and absent fields are part of the format.
    fn written(document: &impl Serialize, expected: &str) {
        assert_eq!(serde_json::to_string(document).expect("it is text"), expected);
    }

    fn read<T: DeserializeOwned>(text: &str) -> T {
        serde_json::from_str(text).expect("it was written so")
    }

    #[test]
    fn batch_lines() {
        let line = BatchLine::Set {
            key: "k".into(),
            value: "v".into(),
            ttl: Some("5ms".into()),
            write: LineWriteOptions::default(),
        };
        let text = r#"{"op":"set","key":"k","value":"v","ttl":"5ms"}"#;
        written(&line, text);
        assert_eq!(serde_json::from_str::<BatchLine<'_>>(text).expect("it was written so"), line);
        written(
            &BatchLine::Delete { key: "k".into(), write: LineWriteOptions::default() },
            r#"{"op":"delete","key":"k"}"#,
        );
        let text = r#"{"op":"get","key":"k","value":"v"}"#;
        assert!(serde_json::from_str::<BatchLine<'_>>(text).is_err(), "an unknown field is refused");
    }

    #[test]
    fn result_lines() {
        let line = ReadLine { status: 200, position: POSITION, from: ServedFrom::Cache, record: RECORD };
        let text = r#"{"status":200,"position":"2:5","from":"cache","key":"k","value":"v","timestamp":7,"source":1,"ttl":0,"uuid":"u"}"#;
        written(&line, text);
        let again: ReadLine<OwnedKeyValue> = read(text);
        assert_eq!((again.position, again.from, again.record), (POSITION, line.from, RECORD.to_owned()));
        assert_eq!(read::<FailedLine<'_>>(text).status, 200);

        let line = WrittenLine {
            status: 200,
            position: POSITION,
            key: "k".into(),
            timestamp: 7,
            source: 3,
            ttl: -1,
            uuid: "u".into(),
            not_visible: Vec::new(),
        };
        let text =
            r#"{"status":200,"position":"2:5","key":"k","timestamp":7,"source":3,"ttl":-1,"uuid":"u"}"#;
        written(&line, text);
        assert_eq!(read::<WrittenLine<'_>>(text), line);

        let missing = FailedLine {
            status: 404,
            message: Some("no".into()),
            position: Some(POSITION),
            may_take_effect: None,
        };
        written(&missing, r#"{"status":404,"message":"no","position":"2:5"}"#);
        let failed = FailedLine { status: 503, position: None, may_take_effect: Some(true), ..missing };
        written(&failed, r#"{"status":503,"message":"no","mayTakeEffect":true}"#);
    }

    #[test]
    fn where_a_record_came_from_has_one_name() {
        for (from, name) in
            [(ServedFrom::Cache, "cache"), (ServedFrom::Store, "store"), (ServedFrom::Peer, "peer")]
        {
            assert_eq!((from.name(), ServedFrom::named(name)), (name, from));
            written(&from, &format!("\"{name}\""));
            assert_eq!(read::<ServedFrom>(&format!("\"{name}\"")), from);
        }
        assert_eq!(read::<ServedFrom>("\"tape\""), ServedFrom::Store, "of a later version");
    }

    #[test]
    fn pages() {
        let record = PositionedRecord { record: RECORD, position: POSITION };
        let text = r#"{"records":[{"key":"k","value":"v","timestamp":7,"source":1,"ttl":0,"uuid":"u","position":"2:5"}],"cursor":null}"#;
        written(&ScanPage { records: vec![record], cursor: None }, text);
        let page: ScanPage<'_, OwnedKeyValue> = read(text);
        assert_eq!(page.records[0].record, RECORD.to_owned());
    }

    #[test]
    fn status_is_written_whole_and_read_leniently() {
        let status =
            Status { node: "a:1".to_owned(), store: Some(StoreStatus::default()), ..Status::default() };
        let text = r#"{"node":"a:1","version":"","ready":false,"caught_up":false,"members":[],"membership":{"state":""},"log":{"state":""},"partitions":[],"restore":{"done":false,"seconds":null,"fraction":null,"remaining_seconds":null},"log_level":0,"store":{"records":0,"bytes":0},"cache":null}"#;
        written(&status, text);
        assert_eq!(read::<Status>(text), status);
        assert_eq!(read::<Status>(r#"{"node":"a:1","later":[],"store":{"records":1}}"#).node, "a:1");
    }
}
