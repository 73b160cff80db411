//! Calls and answers: what is encoded is decoded, and what is damaged is refused.

use proptest::prelude::*;

use super::answer::CODES;
use super::*;
use crate::avro::{DecodeError, put_long, put_string};
use crate::record::OwnedKeyValue;
use crate::{Operation, Position, rpc::PROTOCOL};

fn texts() -> impl Strategy<Value = String> {
    ".{0,20}"
}

prop_compose! {
    fn records()(key in texts(), value in texts(), timestamp: i64, source: i32, ttl: i64, uuid in texts()) -> OwnedKeyValue {
        OwnedKeyValue { key, value, timestamp, source, ttl, uuid }
    }
}

/// Encodes and decodes; both ways must agree, and no cut of the bytes may pass.
fn there_and_back(request: &Request<'_>) {
    let mut bytes = Vec::new();
    request.encode(&mut bytes);
    assert_eq!(Request::decode(&bytes, None), Ok(Some(request.clone())));
    let read_key = match *request {
        Request::GetValue { key } | Request::GetRecord { key } | Request::ReadRecord { key, .. } => Some(key),
        _ => None,
    };
    assert_eq!(Request::peek_read_key(&bytes), read_key.map(str::as_bytes));
    let whole = ForeignProtocol::parse(&PROTOCOL).expect("it is a protocol");
    assert_eq!(Request::decode(&bytes, Some(&whole)), Ok(Some(request.clone())));
    assert!(Request::decode(&bytes[..bytes.len() - 1], None).is_err());
    bytes.push(0);
    assert!(Request::decode(&bytes, None).is_err());
}

fn answered(message: Message, answer: &Answer<'_>) {
    let mut bytes = Vec::new();
    answer.encode(&mut bytes);
    assert_eq!(Answer::decode(message, &bytes), Ok(Ok(answer.clone())));
    bytes.push(0);
    assert!(Answer::decode(message, &bytes).is_err());
}

proptest! {
    #[test]
    fn requests(key in texts(), value in texts(), other in texts(), ttl: i64, limit: i32, count in 0usize..5) {
        let (key, value, end) = (key.as_str(), value.as_str(), other.as_str());
        there_and_back(&Request::GetValue { key });
        there_and_back(&Request::SetValue { key, value });
        there_and_back(&Request::Delete { key });
        there_and_back(&Request::GetRecord { key });
        there_and_back(&Request::SetRecord { key, value, ttl });
        there_and_back(&Request::DeleteRecord { key });
        there_and_back(&Request::Scan(ScanRequest { prefix: key, start: value, end, limit, cursor: key }));
        let operations = [Operation::get(key), Operation::set(key, value, ttl), Operation::delete(end)];
        there_and_back(&Request::Batch(operations.into_iter().cycle().take(count).collect()));
    }

    #[test]
    fn answers(
        record in records(), partition: i32, offset: i64, timestamp: Option<i64>, code in 0usize..6, from in 0usize..3,
        value: Option<String>, found: bool, count in 0usize..4,
    ) {
        let position = Position { partition, offset };
        let record = record.as_borrowed();
        let read = ReadAnswer { record: found.then_some(record), position, timestamp, served_from: ServedFrom::ALL[from] };
        let written = WriteAnswer { position, timestamp: record.timestamp, ttl: record.ttl, uuid: record.uuid };
        let error = RequestError { code: CODES[code], message: record.value.to_owned() };
        answered(Message::GetValue, &Answer::Value(value.as_deref()));
        answered(Message::SetValue, &Answer::Null);
        answered(Message::GetRecord, &Answer::Read(read));
        answered(Message::DeleteRecord, &Answer::Written(written));
        let results = [BatchResult::Read(read), BatchResult::Written(written), BatchResult::Failed(error.clone())];
        answered(Message::Batch, &Answer::Batch(results.into_iter().cycle().take(count).collect()));
        answered(Message::Scan, &Answer::Page(ScanPage { records: vec![(record, position); count], cursor: record.key }));
        for message in Message::ALL {
            let text = Failure::Text(record.key.to_owned());
            let declared = Failure::Declared(error.clone());
            let expected = if message.declares_errors() { declared.clone() } else { Failure::Text(error.message.clone()) };
            for (failure, expected) in [(&text, &text), (&declared, &expected)] {
                let mut bytes = Vec::new();
                failure.encode(Some(message), &mut bytes);
                prop_assert_eq!(Answer::decode(message, &bytes), Ok(Err(expected.clone())));
            }
        }
    }

    #[test]
    fn any_bytes_are_refused_or_read(bytes: Vec<u8>, index in 0usize..Message::ALL.len()) {
        let message = Message::ALL[index];
        let mut call = vec![0];
        put_string(&mut call, message.name());
        call.extend(&bytes);
        let _ = Request::decode(&bytes, None);
        if let Ok(Some(request)) = Request::decode(&call, None) {
            prop_assert_eq!(request.message(), message);
        }
        let _ = Answer::decode(message, &bytes);
    }
}

#[test]
fn a_value_of_bytes_gives_the_same_answer() {
    let (mut bytes, mut expected) = (Vec::new(), Vec::new());
    put_value_answer(&mut bytes, "välue".as_bytes());
    Answer::Value(Some("välue")).encode(&mut expected);
    assert_eq!(bytes, expected);
}

#[test]
fn a_ping_has_no_name_and_metadata_is_skipped() {
    assert_eq!(Request::decode(&[0, 0], None), Ok(None));
    // One entry, then a block with its size: {"a": "b"}, {"c": ""}.
    let mut call = vec![2, 2, b'a', 2, b'b', 1, 6, 2, b'c', 0, 0];
    put_string(&mut call, "delete");
    put_string(&mut call, "k");
    assert_eq!(Request::decode(&call, None), Ok(Some(Request::Delete { key: "k" })));
}

#[test]
fn a_client_that_declares_it_otherwise_is_understood() {
    let protocol = ForeignProtocol::parse(
        r#"{"messages":{"setRecord":{"request":[{"name":"ttl","type":"int"},{"name":"more","type":"double"},
           {"name":"value","type":["null","bytes"]},{"name":"key","type":"string"}]},"new":{"request":[]}}}"#,
    )
    .expect("it is a protocol");
    let mut call = vec![0];
    put_string(&mut call, "setRecord");
    put_long(&mut call, 5);
    call.extend([0; 8]);
    put_long(&mut call, 1);
    put_string(&mut call, "v");
    put_string(&mut call, "k");
    let expected = Request::SetRecord { key: "k", value: "v", ttl: 5 };
    assert_eq!(Request::decode(&call, Some(&protocol)), Ok(Some(expected)));
    let mut call = vec![0];
    put_string(&mut call, "new");
    assert!(matches!(Request::decode(&call, Some(&protocol)), Err(CallError::Message(_))));
}

#[test]
fn a_count_costs_no_memory_before_the_items_are_there() {
    let mut call = vec![0];
    put_string(&mut call, "batch");
    put_long(&mut call, i64::MAX);
    assert_eq!(Request::decode(&call, None), Err(DecodeError::Truncated("operations").into()));
    let operations = vec![Operation::get(""); MAX_BATCH_OPERATIONS + 1];
    let mut call = Vec::new();
    Request::Batch(operations).encode(&mut call);
    assert_eq!(Request::decode(&call, None), Err(CallError::BatchTooLong));
}

#[test]
fn a_call_carries_what_authorizes_it() {
    let (request, mut call) = (Request::GetValue { key: "k" }, Vec::new());
    request.encode_as(Some("Bearer t"), &mut call);
    assert_eq!(Request::authorization(&call), Some(&b"Bearer t"[..]));
    assert_eq!(Request::decode(&call, None), Ok(Some(request.clone())));
    assert_eq!(Request::peek_read_key(&call), Some(&b"k"[..]));
    call.clear();
    request.encode(&mut call);
    assert_eq!(Request::authorization(&call), None);
    for call in [&[2, 2, b'a'][..], &[2, 2, b'a', 2, b'b', 0], &[]] {
        assert_eq!(Request::authorization(call), None, "{call:?}");
    }
}
