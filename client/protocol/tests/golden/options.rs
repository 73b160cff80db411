//! What clients of our own protocol say when they ask for more than the plain calls do.

use std::time::Duration;

use bitacora_protocol::record::KeyValue;
use bitacora_protocol::rpc::{
    Answer, Change, ChangePage, ChangesRequest, DeleteReason, DeletedKey, ErrorCode, Failure, NotMetAnswer,
    PROTOCOL_HASH, ReadAnswer, RecordPage, RecordResult, RecordWritten, Request, RequestError, ScanPage,
    ScanRequest, ServedFrom, WriteAnswer, WrittenAnswer,
};
use bitacora_protocol::{
    Consistency, Operation, Position, ReadOptions, Visible, WriteCondition, WriteOptions,
};

use crate::conversation::{BOTH, Lines, hello, request, response};

const WRITTEN: i64 = 1_400_000_000_000;
const SOON: Option<Duration> = Some(Duration::from_millis(250));

const fn position(partition: i32, offset: i64) -> Position {
    Position { partition, offset }
}

const fn record(key: &'static str, value: &'static str, uuid: &'static str) -> KeyValue<'static> {
    KeyValue { key, value, timestamp: WRITTEN, source: 1, ttl: 0, uuid }
}

const fn error(code: ErrorCode, message: String) -> RequestError {
    RequestError { code, message }
}

fn with(condition: WriteCondition) -> WriteOptions<'static> {
    WriteOptions { condition, ..WriteOptions::default() }
}

fn read(consistency: Consistency, position: &'static str, max_staleness: u64) -> ReadOptions<'static> {
    let max_staleness = (max_staleness > 0).then(|| Duration::from_millis(max_staleness));
    ReadOptions { consistency, position, timeout: SOON, max_staleness }
}

const fn version(partition: i32, offset: i64) -> WriteCondition {
    WriteCondition::Version(position(partition, offset))
}

fn changes_request() -> ChangesRequest<'static> {
    let wait = Duration::from_secs(30);
    ChangesRequest { since: "a token", prefix: "k", wait, ..ChangesRequest::default() }
}

fn changes() -> ChangePage<'static> {
    let reason = DeleteReason::Expired;
    let deleted = DeletedKey { key: "kb", position: position(3, 42), timestamp: WRITTEN, reason };
    ChangePage {
        events: vec![
            Change::Set(record("ka", "value of ka", "uuid of ka"), position(0, 7)),
            Change::Deleted(deleted),
            Change::Gap("a reason"),
        ],
        next: "the next token",
        current: true,
        positions: vec![position(0, 7), position(3, 42)],
    }
}

/// The operations of a batch, and their results.
fn batch(
    found: ReadAnswer<'static>,
    written: WrittenAnswer<'static>,
    taken: NotMetAnswer<'static>,
    unsupported: RequestError,
) -> (Vec<Operation<'static>>, Vec<RecordResult<'static>>) {
    let operations = vec![
        Operation::Get { key: "key", read: read(Consistency::Strong, "", 1_000) },
        Operation::Set {
            key: "key",
            value: "value",
            ttl: 60_000,
            write: WriteOptions { uuid: "a uuid", ..with(WriteCondition::Present) },
        },
        Operation::Delete {
            key: "taken",
            write: WriteOptions { visible: Visible::All, ..with(version(0, 7)) },
        },
        Operation::Set { key: "unsupported", value: "", ttl: 0, write: with(WriteCondition::Absent) },
    ];
    let results = vec![
        RecordResult::Read(found),
        RecordResult::Written(written),
        RecordResult::NotMet(taken),
        RecordResult::Failed(unsupported),
    ];
    (operations, results)
}

#[test]
fn every_message_with_options() {
    let lines = Lines::of(&["options/"]);
    let found = ReadAnswer {
        record: Some(record("key", "value of key", "uuid of key")),
        position: position(3, 42),
        timestamp: Some(WRITTEN),
        served_from: ServedFrom::Peer,
    };
    let written = WrittenAnswer {
        write: WriteAnswer {
            position: position(0, 1000),
            timestamp: WRITTEN,
            ttl: 1_900_000_000_000,
            uuid: "a uuid",
        },
        not_visible: vec!["node-2:8080", "node-3:8080"],
    };
    let taken = NotMetAnswer {
        current: Some(record("taken", "value of taken", "uuid of taken")),
        position: position(0, 7),
    };
    let missing = NotMetAnswer { current: None, position: position(2, -1) };
    let blank = error(ErrorCode::BadRequest, "the key is missing or blank".to_owned());
    let unsupported = error(ErrorCode::Unsupported, "not on this topic".to_owned());
    let all =
        WriteOptions { condition: version(3, 42), uuid: "a uuid", visible: Visible::All, timeout: SOON };
    let write = |key, ttl, write| Request::WriteRecord { key, value: "value", ttl, write };
    let (operations, results) = batch(found, written.clone(), taken, unsupported.clone());
    let page = RecordPage {
        page: ScanPage {
            records: vec![
                (record("ka", "value of ka", "uuid of ka"), position(0, 7)),
                (record("kb", "value of kb", "uuid of kb"), position(3, 1 << 33)),
            ],
            cursor: "a cursor",
        },
        positions: vec![position(0, 7), position(3, 1 << 33)],
    };
    let not_met = |answer| Ok(Answer::RecordWritten(RecordWritten::NotMet(answer)));
    let calls = [
        (
            "readRecord",
            Request::ReadRecord { key: "key", read: read(Consistency::Session, "0:12,3:40", 2_000) },
            Ok(Answer::Read(found)),
        ),
        (
            "readRecord-refused",
            Request::ReadRecord { key: "", read: ReadOptions::default() },
            Err(Failure::Declared(blank)),
        ),
        (
            "writeRecord",
            write("key", 60_000, all),
            Ok(Answer::RecordWritten(RecordWritten::Written(written))),
        ),
        ("writeRecord-not-met", write("taken", 0, with(WriteCondition::Absent)), not_met(taken)),
        (
            "writeRecord-unsupported",
            write("unsupported", 0, with(WriteCondition::Present)),
            Err(Failure::Declared(unsupported)),
        ),
        (
            "removeRecord",
            Request::RemoveRecord {
                key: "missing",
                write: WriteOptions { visible: Visible::Here, ..with(WriteCondition::Present) },
            },
            not_met(missing),
        ),
        ("batchRecords", Request::BatchRecords(operations), Ok(Answer::RecordBatch(results))),
        (
            "scanRecords",
            Request::ScanRecords {
                scan: ScanRequest { prefix: "k", start: "ka", end: "kz", limit: 2, cursor: "" },
                read: read(Consistency::Latest, "", 0),
            },
            Ok(Answer::RecordPage(page)),
        ),
        ("readChanges", Request::ReadChanges(changes_request()), Ok(Answer::Changes(changes()))),
    ];
    for (serial, (call, asked, answer)) in (1..).zip(calls) {
        let first = serial == 1;
        let hello = first.then(|| hello(*PROTOCOL_HASH, *PROTOCOL_HASH));
        request(&lines, &format!("options/{call}/request"), serial, hello, None, Some(&asked));
        let answered = (asked.message(), answer);
        response(&lines, &format!("options/{call}/response"), serial, first.then_some(BOTH), Some(&answered));
    }
    lines.done();
}
