//! What clients of our own protocol say.

use bitacora_protocol::record::KeyValue;
use bitacora_protocol::rpc::{
    Answer, BatchResult, ErrorCode, Failure, PROTOCOL_HASH, ReadAnswer, Request, RequestError, ScanPage,
    ScanRequest, ServedFrom, WriteAnswer,
};
use bitacora_protocol::{Operation, Position};

use crate::conversation::{BOTH, Lines, hello, request, response};

#[test]
fn every_message_of_the_extended_protocol() {
    const WRITTEN: i64 = 1_400_000_000_000;
    let lines = Lines::of(&["extended/"]);
    let position = |partition, offset| Position { partition, offset };
    let record = |key, value, uuid| KeyValue { key, value, timestamp: WRITTEN, source: 1, ttl: 0, uuid };
    let found = ReadAnswer {
        record: Some(record("key", "value of key", "uuid of key")),
        position: position(3, 42),
        timestamp: Some(WRITTEN),
        served_from: ServedFrom::Peer,
    };
    let missing = ReadAnswer {
        record: None,
        position: position(2, -1),
        timestamp: None,
        served_from: ServedFrom::Store,
    };
    let deleted = ReadAnswer {
        record: None,
        position: position(1, 1 << 40),
        timestamp: Some(WRITTEN),
        served_from: ServedFrom::Cache,
    };
    let set = WriteAnswer {
        position: position(0, 1000),
        timestamp: WRITTEN,
        ttl: 1_900_000_000_000,
        uuid: "a uuid",
    };
    let delete = WriteAnswer { ttl: -1, ..set };
    let blank =
        RequestError { code: ErrorCode::BadRequest, message: "the key is missing or blank".to_owned() };
    let too_many = RequestError { code: ErrorCode::TooLarge, message: "too many".to_owned() };
    let operations = vec![
        Operation::get("key"),
        Operation::get("missing"),
        Operation::set("key", "value", 60_000),
        Operation::delete("deleted"),
        Operation::set("", "value", 0),
    ];
    let results = vec![
        BatchResult::Read(found),
        BatchResult::Read(missing),
        BatchResult::Written(set),
        BatchResult::Written(delete),
        BatchResult::Failed(blank.clone()),
    ];
    let page = ScanPage {
        records: vec![
            (record("ka", "value of ka", "uuid of ka"), position(0, 7)),
            (record("kb", "value of kb", "uuid of kb"), position(3, 1 << 33)),
        ],
        cursor: "a cursor",
    };
    let empty = ScanPage { records: vec![], cursor: "" };
    let scan = ScanRequest { prefix: "k", start: "ka", end: "kz", limit: 2, cursor: "" };
    let calls = [
        ("getRecord", Request::GetRecord { key: "key" }, Ok(Answer::Read(found))),
        ("getRecord-missing", Request::GetRecord { key: "missing" }, Ok(Answer::Read(missing))),
        ("getRecord-deleted", Request::GetRecord { key: "deleted" }, Ok(Answer::Read(deleted))),
        ("getRecord-refused", Request::GetRecord { key: "" }, Err(Failure::Declared(blank))),
        (
            "setRecord",
            Request::SetRecord { key: "key", value: "value", ttl: 60_000 },
            Ok(Answer::Written(set)),
        ),
        ("deleteRecord", Request::DeleteRecord { key: "deleted" }, Ok(Answer::Written(delete))),
        ("batch", Request::Batch(operations), Ok(Answer::Batch(results))),
        ("batch-empty", Request::Batch(vec![]), Ok(Answer::Batch(vec![]))),
        ("batch-refused", Request::Batch(vec![Operation::get("too many")]), Err(Failure::Declared(too_many))),
        ("scan", Request::Scan(scan), Ok(Answer::Page(page))),
        (
            "scan-empty",
            Request::Scan(ScanRequest { prefix: "none", limit: 1000, ..ScanRequest::default() }),
            Ok(Answer::Page(empty)),
        ),
    ];
    for (serial, (call, asked, answer)) in (1..).zip(calls) {
        // The first call carries the handshake of a client and a server of one protocol.
        let first = serial == 1;
        let hello = first.then(|| hello(*PROTOCOL_HASH, *PROTOCOL_HASH));
        request(&lines, &format!("extended/{call}/request"), serial, hello, None, Some(&asked));
        let message = asked.message();
        response(
            &lines,
            &format!("extended/{call}/response"),
            serial,
            first.then_some(BOTH),
            Some(&(message, answer)),
        );
    }
    lines.done();
}
