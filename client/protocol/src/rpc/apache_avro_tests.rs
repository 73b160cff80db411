//! Holds the codec of calls and answers, which is written by hand, to apache-avro: by the schemas of `protocol.avpr`, each of the
//! two reads what the other writes, and both write the same bytes. And whatever a foreign protocol is, reading it ends.

use std::time::{Duration, Instant};

use apache_avro::types::Value;
use apache_avro::{Schema, from_avro_datum, to_avro_datum};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use serde_json::json;

use super::answer::CODES;
use super::*;
use crate::avro::put_string;
use crate::record::OwnedKeyValue;
use crate::schema::Declarations;
use crate::{Operation, Position};

/// The schemas of a message by `protocol.avpr`.
struct MessageSchemas {
    request: Schema,
    response: Schema,
    errors: Schema,
}

fn schemas_of(message: Message) -> MessageSchemas {
    let protocol = serde_json::from_str(PROTOCOL_SOURCE).expect("it is JSON");
    let declarations = Declarations::of(&protocol);
    let declaration = &protocol["messages"][message.name()];
    let (response, errors) = declarations.answers(declaration).expect("it is declared");
    MessageSchemas { request: declarations.request(declaration).expect("it is declared"), response, errors }
}

pub(super) fn string(text: &str) -> Value {
    Value::String(text.to_owned())
}

pub(super) fn record(fields: &[(&str, Value)]) -> Value {
    Value::Record(fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect())
}

pub(super) fn union(branch: u32, value: Value) -> Value {
    Value::Union(branch, Box::new(value))
}

pub(super) fn nullable(value: Option<Value>) -> Value {
    value.map_or(union(0, Value::Null), |value| union(1, value))
}

fn request_value(request: &Request<'_>) -> Value {
    match request {
        Request::GetValue { key }
        | Request::Delete { key }
        | Request::GetRecord { key }
        | Request::DeleteRecord { key } => record(&[("key", string(key))]),
        Request::SetValue { key, value } => record(&[("key", string(key)), ("value", string(value))]),
        Request::SetRecord { key, value, ttl } => {
            record(&[("key", string(key)), ("value", string(value)), ("ttl", Value::Long(*ttl))])
        }
        Request::Batch(operations) => {
            record(&[("operations", Value::Array(operations.iter().map(operation_value).collect()))])
        }
        Request::Scan(scan) => record(&[
            ("prefix", string(scan.prefix)),
            ("start", string(scan.start)),
            ("end", string(scan.end)),
            ("limit", Value::Int(scan.limit)),
            ("cursor", string(scan.cursor)),
        ]),
        Request::ReadChanges(changes) => changes_tests::request_value(changes),
        request => options_tests::request_value(request),
    }
}

fn operation_value(operation: &Operation<'_>) -> Value {
    let (kind, value, ttl) = match operation {
        Operation::Get { .. } => (Value::Enum(0, "GET".to_owned()), "", 0),
        Operation::Set { value, ttl, .. } => (Value::Enum(1, "SET".to_owned()), *value, *ttl),
        Operation::Delete { .. } => (Value::Enum(2, "DELETE".to_owned()), "", 0),
    };
    record(&[
        ("kind", kind),
        ("key", string(operation.key())),
        ("value", string(value)),
        ("ttl", Value::Long(ttl)),
    ])
}

fn answer_value(answer: &Answer<'_>) -> Value {
    match answer {
        Answer::Value(value) => nullable(value.map(string)),
        Answer::Null => Value::Null,
        Answer::Read(read) => read_value(read),
        Answer::Written(written) => written_value(written),
        Answer::Batch(results) => {
            let results = results.iter().map(|result| match result {
                BatchResult::Read(read) => union(0, read_value(read)),
                BatchResult::Written(written) => union(1, written_value(written)),
                BatchResult::Failed(error) => union(2, error_value(error)),
            });
            Value::Array(results.collect())
        }
        Answer::Page(page) => {
            let records = page.records.iter().map(|(stored, position)| {
                let stored = key_value(&stored.to_owned());
                record(&[("record", stored), ("position", position_value(*position))])
            });
            record(&[("records", Value::Array(records.collect())), ("cursor", string(page.cursor))])
        }
        Answer::Changes(page) => changes_tests::answer_value(page),
        answer => options_tests::answer_value(answer),
    }
}

pub(super) fn read_value(read: &ReadAnswer<'_>) -> Value {
    let symbol = match read.served_from {
        ServedFrom::Cache => "CACHE",
        ServedFrom::Store => "STORE",
        ServedFrom::Peer => "PEER",
    };
    record(&[
        ("record", nullable(read.record.map(|found| key_value(&found.to_owned())))),
        ("position", position_value(read.position)),
        ("timestamp", nullable(read.timestamp.map(Value::Long))),
        ("servedFrom", Value::Enum(read.served_from as u32, symbol.to_owned())),
    ])
}

fn written_value(written: &WriteAnswer<'_>) -> Value {
    record(&[
        ("position", position_value(written.position)),
        ("timestamp", Value::Long(written.timestamp)),
        ("ttl", Value::Long(written.ttl)),
        ("uuid", string(written.uuid)),
    ])
}

pub(super) fn position_value(position: Position) -> Value {
    record(&[("partition", Value::Int(position.partition)), ("offset", Value::Long(position.offset))])
}

pub(super) fn key_value(stored: &OwnedKeyValue) -> Value {
    record(&[
        ("key", string(&stored.key)),
        ("value", string(&stored.value)),
        ("timestamp", Value::Long(stored.timestamp)),
        ("source", Value::Int(stored.source)),
        ("ttl", Value::Long(stored.ttl)),
        ("uuid", string(&stored.uuid)),
    ])
}

pub(super) fn error_value(error: &RequestError) -> Value {
    let symbols = [
        "BAD_REQUEST",
        "TOO_LARGE",
        "NOT_READY",
        "NOT_TAKEN",
        "MAY_TAKE_EFFECT",
        "INTERNAL",
        "UNSUPPORTED",
        "CONFLICT",
    ];
    let code = Value::Enum(error.code as u32, symbols[error.code as usize].to_owned());
    record(&[("code", code), ("message", string(&error.message))])
}

/// Both ways: the crate writes the bytes that we do, and reads from ours what we meant.
fn agree(schema: &Schema, ours: &[u8], value: &Value) {
    assert_eq!(to_avro_datum(schema, value.clone()).expect("the value fits its schema"), ours);
    let mut rest = ours;
    assert_eq!(&from_avro_datum(schema, &mut rest, None).expect("the crate reads it"), value);
    assert!(rest.is_empty());
}

pub(super) fn request_agrees(request: &Request<'_>) {
    let mut call = vec![0];
    put_string(&mut call, request.message().name());
    let head = call.len();
    let mut ours = Vec::new();
    request.encode(&mut ours);
    assert!(ours.starts_with(&call));
    let schema = schemas_of(request.message()).request;
    let value = request_value(request);
    agree(&schema, &ours[head..], &value);
    // And what the crate wrote is read by us.
    call.extend(to_avro_datum(&schema, value).expect("the value fits its schema"));
    assert_eq!(Request::decode(&call, None), Ok(Some(request.clone())));
}

pub(super) fn answer_agrees(message: Message, answer: &Answer<'_>) {
    let mut ours = Vec::new();
    answer.encode(&mut ours);
    let schema = schemas_of(message).response;
    agree(&schema, &ours[2..], &answer_value(answer));
    assert_eq!(Answer::decode(message, &ours), Ok(Ok(answer.clone())));
}

fn failure_agrees(message: Message, failure: &Failure, value: &Value) {
    let mut ours = Vec::new();
    failure.encode(Some(message), &mut ours);
    assert_eq!(ours[..2], [0, 1]);
    agree(&schemas_of(message).errors, &ours[2..], value);
}

prop_compose! {
    fn stored()(key in ".{0,8}", value in ".{0,8}", timestamp: i64, source: i32, ttl: i64, uuid in ".{0,8}") -> OwnedKeyValue {
        OwnedKeyValue { key, value, timestamp, source, ttl, uuid }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_request(key in ".{0,8}", value in ".{0,8}", other in ".{0,8}", ttl: i64, limit: i32, count in 0usize..5) {
        let (key, value, end) = (key.as_str(), value.as_str(), other.as_str());
        let operations = [Operation::get(key), Operation::set(key, value, ttl), Operation::delete(end)];
        for request in [
            Request::GetValue { key },
            Request::SetValue { key, value },
            Request::Delete { key },
            Request::GetRecord { key },
            Request::SetRecord { key, value, ttl },
            Request::DeleteRecord { key },
            Request::Scan(ScanRequest { prefix: key, start: value, end, limit, cursor: key }),
            Request::Batch(operations.into_iter().cycle().take(count).collect()),
        ] {
            request_agrees(&request);
        }
    }

    #[test]
    fn every_answer(
        stored in stored(), partition: i32, offset: i64, timestamp: Option<i64>, code in 0usize..6, from in 0usize..3,
        value in option::of(".{0,8}"), found: bool, count in 0usize..4,
    ) {
        let position = Position { partition, offset };
        let stored = stored.as_borrowed();
        let read = ReadAnswer { record: found.then_some(stored), position, timestamp, served_from: ServedFrom::ALL[from] };
        let written = WriteAnswer { position, timestamp: stored.timestamp, ttl: stored.ttl, uuid: stored.uuid };
        let error = RequestError { code: CODES[code], message: stored.value.to_owned() };
        let results = [BatchResult::Read(read), BatchResult::Written(written), BatchResult::Failed(error.clone())];
        let page = ScanPage { records: vec![(stored, position); count], cursor: stored.key };
        for (message, answer) in [
            (Message::GetValue, Answer::Value(value.as_deref())),
            (Message::SetValue, Answer::Null),
            (Message::Delete, Answer::Null),
            (Message::GetRecord, Answer::Read(read)),
            (Message::SetRecord, Answer::Written(written)),
            (Message::DeleteRecord, Answer::Written(written)),
            (Message::Batch, Answer::Batch(results.into_iter().cycle().take(count).collect())),
            (Message::Scan, Answer::Page(page)),
        ] {
            answer_agrees(message, &answer);
            failure_agrees(message, &Failure::Text(stored.key.to_owned()), &union(0, string(stored.key)));
            let declared = if message.declares_errors() { union(1, error_value(&error)) } else { union(0, string(&error.message)) };
            failure_agrees(message, &Failure::Declared(error.clone()), &declared);
        }
    }

    /// Bytes that the crate takes for a request are taken by us, and mean the same.
    #[test]
    fn what_the_crate_reads_is_read_alike(bytes in vec(any::<u8>(), 0..40), index in 0usize..Message::ALL.len()) {
        let message = Message::ALL[index];
        let mut rest = bytes.as_slice();
        let theirs = from_avro_datum(&schemas_of(message).request, &mut rest, None);
        let mut call = vec![0];
        put_string(&mut call, message.name());
        call.extend(&bytes);
        if let Ok(Some(request)) = Request::decode(&call, None) {
            // A GET's and a DELETE's value and ttl are read and forgotten.
            if !matches!(request, Request::Batch(_) | Request::BatchRecords(_)) {
                prop_assert_eq!(theirs.expect("the crate reads it too"), request_value(&request));
            }
        }
    }
}

/// A type as a hostile or merely odd protocol may declare it.
fn any_type() -> impl Strategy<Value = serde_json::Value> {
    let name = prop_oneof![
        Just("A".to_owned()),
        Just("n.B".to_owned()),
        Just("bitacora.Parameters".to_owned()),
        Just("record".to_owned()),
        "string|bytes|int|long|null|enum|array|error",
        ".{0,4}",
    ];
    let leaf = prop_oneof![
        name.clone().prop_map(|name| json!(name)),
        Just(json!(null)),
        any::<i64>().prop_map(|number| json!(number)),
        (name.clone(), any::<u64>())
            .prop_map(|(name, size)| json!({"type": "fixed", "name": name, "size": size})),
        (name.clone(), vec(name.clone(), 0..3)).prop_map(
            |(name, symbols)| json!({"type": "enum", "name": name, "symbols": symbols, "default": 5})
        ),
    ];
    leaf.prop_recursive(6, 60, 4, move |inner| {
        let fields = vec((name.clone(), inner.clone()), 0..4).prop_map(|fields| {
            let field =
                |(name, kind)| json!({"name": name, "type": kind, "default": {"x": []}, "aliases": 1});
            fields.into_iter().map(field).collect::<Vec<_>>()
        });
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(|branches| json!(branches)),
            inner.clone().prop_map(|items| json!({"type": "array", "items": items})),
            inner.clone().prop_map(|values| json!({"type": "map", "values": values})),
            inner.clone().prop_map(|kind| json!({"type": kind, "logicalType": "uuid"})),
            (prop_oneof![Just("record"), Just("error")], name.clone(), name.clone(), fields).prop_map(
                |(kind, name, namespace, fields)| {
                    json!({"type": kind, "name": name, "namespace": namespace, "fields": fields})
                }
            ),
        ]
    })
}

/// Reads a protocol with less stack than any thread of a node has, asks for every message, and must be done soon.
fn is_read_or_refused(text: String) {
    let read = move || {
        let started = Instant::now();
        if let Ok(protocol) = ForeignProtocol::parse(&text) {
            for message in Message::ALL {
                let _ = protocol.declares(message);
                let mut call = vec![0];
                put_string(&mut call, message.name());
                call.extend([2; 20]);
                let _ = Request::decode(&call, Some(&protocol));
            }
        }
        assert!(started.elapsed() < Duration::from_secs(10), "it took {:?}", started.elapsed());
    };
    let thread = std::thread::Builder::new().stack_size(1 << 20).spawn(read).expect("a thread");
    thread.join().expect("neither a panic nor an overflow of the stack");
}

proptest! {
    #[test]
    fn any_foreign_protocol_is_read_or_refused(
        types in vec(any_type(), 0..5), parameters in vec((prop_oneof![Just("key"), Just("value"), Just("operations")], any_type()), 0..4),
        index in 0usize..Message::ALL.len(),
    ) {
        let request: Vec<_> = parameters.into_iter().map(|(name, kind)| json!({"name": name, "type": kind})).collect();
        let message = Message::ALL[index].name();
        let protocol = json!({"protocol": "P", "namespace": "n", "types": types, "messages": {message: {"request": request}}});
        is_read_or_refused(protocol.to_string());
    }
}

/// Shapes that grow: each type needs the next one, once or many times over.
#[test]
fn deep_and_wide_foreign_protocols_end() {
    let with = |types: &[serde_json::Value], parameter: serde_json::Value| {
        json!({"types": types, "messages": {"batch": {"request": [{"name": "operations", "type": parameter}]}}})
            .to_string()
    };
    let chain = |count: usize, times: usize| {
        let types = (0..count).map(|n| {
            let fields =
                (0..times).map(|field| json!({"name": format!("f{field}"), "type": format!("T{}", n + 1)}));
            json!({"type": "record", "name": format!("T{n}"), "fields": fields.collect::<Vec<_>>()})
        });
        types.collect::<Vec<_>>()
    };
    let nested =
        |depth: usize| (0..depth).fold(json!("string"), |kind, _| json!({"type": "array", "items": kind}));
    for text in [
        with(&chain(900, 1), json!("T0")),
        with(&chain(60, 14), json!("T0")),
        with(&chain(12, 10), json!("T0")),
        with(&[], nested(60)),
        with(&[], json!(vec![json!("string"); 5_000])),
        with(&[json!({"type": "enum", "name": "E", "symbols": vec!["A"; 9_000]})], json!("E")),
        with(&[json!({"type": "fixed", "name": "F", "size": u64::MAX})], json!("F")),
        with(&[json!({"type": "record", "name": "A b", "fields": []})], json!("A b")),
        format!(r#"{{"types":[],"messages":{{"batch":{}}}}}"#, "[".repeat(60_000)),
        format!("{}{}", "[".repeat(60_000), "]".repeat(60_000)),
        PROTOCOL.replace("string", &"s".repeat(70_000)),
    ] {
        is_read_or_refused(text);
    }
    let deep = ForeignProtocol::parse(&with(&chain(900, 1), json!("T0"))).expect("it is a protocol");
    assert!(!deep.declares(Message::Batch));
}
