//! Calls with options, and their answers: held to apache-avro as the other messages are, and what is wrong with options.

use std::time::Duration;

use apache_avro::types::Value;
use proptest::collection::vec;
use proptest::prelude::*;

use super::answer::CODES;
use super::apache_avro_tests::{
    answer_agrees, error_value, key_value, nullable, position_value, read_value, record, request_agrees,
    string, union,
};
use super::protocol::REQUEST_ERROR_CODES;
use super::*;
use crate::avro::{put_long, put_string};
use crate::record::OwnedKeyValue;
use crate::{Consistency, Operation, Position, ReadOptions, Visible, WriteCondition, WriteOptions};

fn ms(time: Option<Duration>) -> Value {
    Value::Long(time.map_or(0, |time| time.as_millis() as i64))
}

fn read_fields(read: &ReadOptions<'_>) -> Vec<(&'static str, Value)> {
    let consistency = if read.consistency == Consistency::Eventual { "" } else { read.consistency.name() };
    vec![
        ("consistency", string(consistency)),
        ("position", string(read.position)),
        ("maxStaleness", ms(read.max_staleness)),
    ]
}

fn write_fields(write: &WriteOptions<'_>) -> Vec<(&'static str, Value)> {
    let visible = if write.visible == Visible::Acknowledged { "" } else { write.visible.name() };
    vec![
        ("condition", string(&write.condition.to_string())),
        ("uuid", string(write.uuid)),
        ("visible", string(visible)),
    ]
}

/// By the protocol's text.
pub(super) fn request_value(request: &Request<'_>) -> Value {
    let fields = match request {
        Request::ReadRecord { key, read } => {
            [vec![("key", string(key))], read_fields(read), vec![("timeout", ms(read.timeout))]].concat()
        }
        Request::WriteRecord { key, value, ttl, write } => {
            let first = vec![("key", string(key)), ("value", string(value)), ("ttl", Value::Long(*ttl))];
            [first, write_fields(write), vec![("timeout", ms(write.timeout))]].concat()
        }
        Request::RemoveRecord { key, write } => {
            [vec![("key", string(key))], write_fields(write), vec![("timeout", ms(write.timeout))]].concat()
        }
        Request::BatchRecords(operations) => {
            vec![("operations", Value::Array(operations.iter().map(operation_value).collect()))]
        }
        Request::ScanRecords { scan, read } => {
            let first = vec![
                ("prefix", string(scan.prefix)),
                ("start", string(scan.start)),
                ("end", string(scan.end)),
                ("limit", Value::Int(scan.limit)),
                ("cursor", string(scan.cursor)),
            ];
            [first, read_fields(read), vec![("timeout", ms(read.timeout))]].concat()
        }
        _ => panic!("it has no options"),
    };
    record(&fields)
}

fn operation_value(operation: &Operation<'_>) -> Value {
    let (read, write) = (ReadOptions::default(), WriteOptions::default());
    let (kind, symbol, value, ttl, read, write) = match operation {
        Operation::Get { read, .. } => (0, "GET", "", 0, read, &write),
        Operation::Set { value, ttl, write, .. } => (1, "SET", *value, *ttl, &read, write),
        Operation::Delete { write, .. } => (2, "DELETE", "", 0, &read, write),
    };
    let first = vec![
        ("kind", Value::Enum(kind, symbol.to_owned())),
        ("key", string(operation.key())),
        ("value", string(value)),
        ("ttl", Value::Long(ttl)),
    ];
    let last = vec![("timeout", ms(read.timeout.or(write.timeout)))];
    record(&[first, read_fields(read), write_fields(write), last].concat())
}

/// By the protocol's text.
pub(super) fn answer_value(answer: &Answer<'_>) -> Value {
    match answer {
        Answer::RecordWritten(RecordWritten::Written(written)) => union(0, written_value(written)),
        Answer::RecordWritten(RecordWritten::NotMet(not_met)) => union(1, not_met_value(not_met)),
        Answer::RecordBatch(results) => {
            let results = results.iter().map(|result| match result {
                RecordResult::Read(read) => union(0, read_value(read)),
                RecordResult::Written(written) => union(1, written_value(written)),
                RecordResult::NotMet(not_met) => union(2, not_met_value(not_met)),
                RecordResult::Failed(error) => union(3, error_value(error)),
            });
            Value::Array(results.collect())
        }
        Answer::RecordPage(page) => {
            let records = page.page.records.iter().map(|(stored, position)| {
                let stored = key_value(&stored.to_owned());
                record(&[("record", stored), ("position", position_value(*position))])
            });
            let positions = page.positions.iter().map(|position| position_value(*position));
            record(&[
                ("records", Value::Array(records.collect())),
                ("cursor", string(page.page.cursor)),
                ("positions", Value::Array(positions.collect())),
            ])
        }
        _ => panic!("it is to a call without options"),
    }
}

fn written_value(written: &WrittenAnswer<'_>) -> Value {
    record(&[
        ("position", position_value(written.write.position)),
        ("timestamp", Value::Long(written.write.timestamp)),
        ("ttl", Value::Long(written.write.ttl)),
        ("uuid", string(written.write.uuid)),
        ("notVisible", Value::Array(written.not_visible.iter().map(|member| string(member)).collect())),
    ])
}

fn not_met_value(not_met: &NotMetAnswer<'_>) -> Value {
    record(&[
        ("current", nullable(not_met.current.map(|current| key_value(&current.to_owned())))),
        ("position", position_value(not_met.position)),
    ])
}

fn times() -> impl Strategy<Value = Option<Duration>> {
    proptest::option::of((1..=i64::MAX as u64).prop_map(Duration::from_millis))
}

prop_compose! {
    fn some_reads()(level in 0usize..4, timeout in times(), max_staleness in times()) -> ReadOptions<'static> {
        ReadOptions { consistency: Consistency::ALL[level], position: "0:12,3:40", timeout, max_staleness }
    }
}

prop_compose! {
    fn some_writes()(
        condition in 0usize..4, partition in 0..i32::MAX, offset in -1..i64::MAX, visible in 0usize..3, timeout in times(),
    ) -> WriteOptions<'static> {
        let version = WriteCondition::Version(Position { partition, offset });
        let condition = [WriteCondition::None, version, WriteCondition::Present, WriteCondition::Absent][condition];
        WriteOptions { condition, uuid: "a uuid", visible: Visible::ALL[visible], timeout }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_request_with_options(
        key in ".{0,8}", value in ".{0,8}", ttl: i64, limit: i32, read in some_reads(), write in some_writes(), count in 0usize..5,
    ) {
        let (key, value) = (key.as_str(), value.as_str());
        let operations = [
            Operation::Get { key, read },
            Operation::Set { key, value, ttl, write },
            Operation::Delete { key, write },
        ];
        let scan = ScanRequest { prefix: key, start: value, end: key, limit, cursor: value };
        for request in [
            Request::ReadRecord { key, read },
            Request::WriteRecord { key, value, ttl, write },
            Request::RemoveRecord { key, write },
            Request::ScanRecords { scan, read },
            Request::BatchRecords(operations.into_iter().cycle().take(count).collect()),
        ] {
            request_agrees(&request);
        }
    }

    #[test]
    fn every_answer_to_a_call_with_options(
        texts in vec(".{0,8}", 3), numbers in vec(any::<i64>(), 3), partition: i32, code in 0usize..8, found: bool, count in 0usize..4,
    ) {
        let position = Position { partition, offset: numbers[0] };
        let stored = OwnedKeyValue {
            key: texts[0].clone(), value: texts[1].clone(), timestamp: numbers[1], source: partition, ttl: numbers[2], uuid: texts[2].clone(),
        };
        let stored = stored.as_borrowed();
        let written = WrittenAnswer {
            write: WriteAnswer { position, timestamp: numbers[1], ttl: numbers[2], uuid: &texts[2] },
            not_visible: vec![texts[0].as_str(); count],
        };
        let not_met = NotMetAnswer { current: found.then_some(stored), position };
        let read = ReadAnswer { record: found.then_some(stored), position, timestamp: None, served_from: ServedFrom::Store };
        let failed = RequestError { code: CODES[code], message: texts[0].clone() };
        let results = [
            RecordResult::Read(read), RecordResult::Written(written.clone()), RecordResult::NotMet(not_met), RecordResult::Failed(failed.clone()),
        ];
        let page = RecordPage { page: ScanPage { records: vec![(stored, position); count], cursor: &texts[1] }, positions: vec![position; count] };
        for (message, answer) in [
            (Message::ReadRecord, Answer::Read(read)),
            (Message::WriteRecord, Answer::RecordWritten(RecordWritten::Written(written.clone()))),
            (Message::RemoveRecord, Answer::RecordWritten(RecordWritten::NotMet(not_met))),
            (Message::BatchRecords, Answer::RecordBatch(results.into_iter().cycle().take(count).collect())),
            (Message::ScanRecords, Answer::RecordPage(page)),
        ] {
            answer_agrees(message, &answer);
        }
    }
}

/// A symbol that an old message's enum lacks would not be read by an old client.
#[test]
fn messages_without_options_say_no_code_that_they_lack() {
    for message in Message::ALL {
        for (index, code) in CODES.into_iter().enumerate() {
            let mut bytes = Vec::new();
            Failure::Declared(RequestError { code, message: "no".to_owned() })
                .encode(Some(message), &mut bytes);
            let told =
                Answer::decode(message, &bytes).expect("it is an answer").expect_err("it is a failure");
            let expected = match message.error_codes() {
                0 => Failure::Text("no".to_owned()),
                REQUEST_ERROR_CODES if index >= REQUEST_ERROR_CODES => {
                    RequestError { code: ErrorCode::BadRequest, message: "no".to_owned() }.into()
                }
                _ => RequestError { code, message: "no".to_owned() }.into(),
            };
            assert_eq!(told, expected, "{message:?} {code:?}");
        }
    }
}

fn put_texts(call: &mut Vec<u8>, texts: &[&str]) {
    for text in texts {
        put_string(call, text);
    }
}

#[test]
fn options_that_can_not_be_read_are_told_with_their_message() {
    let call = |message: Message, texts: &[&str], rest: &dyn Fn(&mut Vec<u8>)| {
        let mut call = vec![0];
        put_string(&mut call, message.name());
        put_texts(&mut call, texts);
        rest(&mut call);
        match Request::decode(&call, None) {
            Err(CallError::Options { message: told, reason }) if told == message => reason,
            other => panic!("{message:?} {texts:?}: {other:?}"),
        }
    };
    let numbers = |numbers: &'static [i64]| {
        move |call: &mut Vec<u8>| {
            for number in numbers {
                put_long(call, *number);
            }
        }
    };
    let level = call(Message::ReadRecord, &["k", "Strong", ""], &numbers(&[0, 0]));
    assert_eq!(level, "consistency: 'Strong' is none of eventual, session, latest, strong");
    let time = call(Message::ReadRecord, &["k", "strong", ""], &numbers(&[0, -1]));
    assert_eq!(time, "timeout is -1 ms; it is 0 for none, or above");
    let age = call(Message::ReadRecord, &["k", "", ""], &numbers(&[i64::MIN, 1]));
    assert!(age.contains("maxStaleness is -9223372036854775808 ms"), "{age}");
    let condition = call(Message::RemoveRecord, &["k", "\"0:1\"", "", ""], &numbers(&[0]));
    assert!(condition.contains("condition: '\"0:1\"' is no condition"), "{condition}");
    let visible = call(Message::RemoveRecord, &["k", "", "", "everywhere"], &numbers(&[0]));
    assert!(visible.contains("acknowledged, here, all"), "{visible}");
    // Two operations of a batch; the second is a get with a condition.
    let operation = |call: &mut Vec<u8>, condition: &str| {
        put_long(call, 0);
        put_texts(call, &["k", ""]);
        put_long(call, 0);
        put_texts(call, &["", ""]);
        put_long(call, 0);
        put_texts(call, &[condition, "", ""]);
        put_long(call, 0);
    };
    let batch = call(Message::BatchRecords, &[], &|call| {
        put_long(call, 2);
        operation(call, "");
        operation(call, "*");
        put_long(call, 0);
    });
    assert_eq!(batch, "operation 2: condition, uuid and visible are for writes, and this is a read");
}

#[test]
fn a_client_that_orders_options_otherwise_is_understood() {
    let protocol = ForeignProtocol::parse(
        r#"{"messages":{"writeRecord":{"request":[{"name":"timeout","type":"int"},{"name":"condition","type":["null","string"]},
           {"name":"visible","type":"string"},{"name":"uuid","type":"string"},{"name":"ttl","type":"long"},
           {"name":"value","type":"bytes"},{"name":"key","type":"string"}]},
           "scanRecords":{"request":[{"name":"prefix","type":"string"}]}}}"#,
    )
    .expect("it is a protocol");
    let mut call = vec![0];
    put_string(&mut call, "writeRecord");
    put_long(&mut call, 250);
    put_long(&mut call, 1);
    put_texts(&mut call, &["absent", "all", "u"]);
    put_long(&mut call, 5);
    put_texts(&mut call, &["v", "k"]);
    let write = WriteOptions {
        condition: WriteCondition::Absent,
        uuid: "u",
        visible: Visible::All,
        timeout: Some(Duration::from_millis(250)),
    };
    let expected = Request::WriteRecord { key: "k", value: "v", ttl: 5, write };
    assert_eq!(Request::decode(&call, Some(&protocol)), Ok(Some(expected)));
    assert!(!protocol.declares(Message::ScanRecords) && !protocol.declares(Message::ReadRecord));
}
