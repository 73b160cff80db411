//! The call that reads changes, and its answer: held to apache-avro as the other messages are.

use std::time::Duration;

use apache_avro::types::Value;
use proptest::collection::vec;
use proptest::prelude::*;

use super::apache_avro_tests::{
    answer_agrees, key_value, position_value, record, request_agrees, string, union,
};
use super::*;
use crate::Position;
use crate::avro::{put_long, put_string};
use crate::record::OwnedKeyValue;

/// By the protocol's text.
pub(super) fn request_value(request: &ChangesRequest<'_>) -> Value {
    record(&[
        ("since", string(request.since)),
        ("prefix", string(request.prefix)),
        ("key", string(request.key)),
        ("limit", Value::Int(request.limit)),
        ("wait", Value::Long(request.wait.as_millis() as i64)),
        ("values", Value::Boolean(request.values)),
        ("initial", Value::Boolean(request.initial)),
    ])
}

/// By the protocol's text.
pub(super) fn answer_value(page: &ChangePage<'_>) -> Value {
    let positions = page.positions.iter().map(|position| position_value(*position));
    record(&[
        ("events", Value::Array(page.events.iter().map(change_value).collect())),
        ("next", string(page.next)),
        ("current", Value::Boolean(page.current)),
        ("positions", Value::Array(positions.collect())),
    ])
}

fn change_value(change: &Change<'_>) -> Value {
    match change {
        Change::Set(stored, position) => {
            let stored = key_value(&stored.to_owned());
            union(0, record(&[("record", stored), ("position", position_value(*position))]))
        }
        Change::Deleted(deleted) => {
            let symbol = if deleted.reason == DeleteReason::Deleted { "DELETED" } else { "EXPIRED" };
            union(
                1,
                record(&[
                    ("key", string(deleted.key)),
                    ("position", position_value(deleted.position)),
                    ("timestamp", Value::Long(deleted.timestamp)),
                    ("reason", Value::Enum(deleted.reason as u32, symbol.to_owned())),
                ]),
            )
        }
        Change::Gap(reason) => union(2, record(&[("reason", string(reason))])),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_call(texts in vec(".{0,8}", 3), limit: i32, wait in 0..=i64::MAX as u64, values: bool, initial: bool) {
        let wait = Duration::from_millis(wait);
        let [since, prefix, key] = [0, 1, 2].map(|index: usize| texts[index].as_str());
        request_agrees(&Request::ReadChanges(ChangesRequest { since, prefix, key, limit, wait, values, initial }));
    }

    #[test]
    fn any_answer(
        texts in vec(".{0,8}", 3), numbers in vec(any::<i64>(), 3), partition: i32, expired: bool, current: bool, count in 0usize..7,
    ) {
        let position = Position { partition, offset: numbers[0] };
        let stored = OwnedKeyValue {
            key: texts[0].clone(), value: texts[1].clone(), timestamp: numbers[1], source: partition, ttl: numbers[2], uuid: texts[2].clone(),
        };
        let reason = if expired { DeleteReason::Expired } else { DeleteReason::Deleted };
        let events = [
            Change::Set(stored.as_borrowed(), position),
            Change::Deleted(DeletedKey { key: &texts[0], position, timestamp: numbers[1], reason }),
            Change::Gap(&texts[1]),
        ];
        let page = ChangePage {
            events: events.into_iter().cycle().take(count).collect(), next: &texts[2], current, positions: vec![position; count],
        };
        answer_agrees(Message::ReadChanges, &Answer::Changes(page));
    }
}

#[test]
fn a_client_that_orders_parameters_otherwise_is_understood() {
    let protocol = ForeignProtocol::parse(
        r#"{"messages":{"readChanges":{"request":[{"name":"initial","type":"boolean"},{"name":"wait","type":"int"},
           {"name":"values","type":["null","boolean"]},{"name":"limit","type":"int"},{"name":"key","type":"string"},
           {"name":"since","type":["null","string"]},{"name":"prefix","type":"string"}]}}}"#,
    )
    .expect("it is a protocol");
    let call = |values: u8| {
        let mut call = vec![0];
        put_string(&mut call, "readChanges");
        call.push(1);
        put_long(&mut call, 250);
        put_long(&mut call, values.into());
        if values == 1 {
            call.push(0);
        }
        put_long(&mut call, 7);
        put_string(&mut call, "k");
        put_long(&mut call, 1);
        put_string(&mut call, "token");
        put_string(&mut call, "p");
        call
    };
    let expected = ChangesRequest {
        since: "token",
        prefix: "p",
        key: "k",
        limit: 7,
        wait: Duration::from_millis(250),
        values: false,
        initial: true,
    };
    assert_eq!(Request::decode(&call(1), Some(&protocol)), Ok(Some(Request::ReadChanges(expected))));
    Request::decode(&call(0), Some(&protocol)).expect_err("null is no boolean");
}

#[test]
fn a_wait_below_zero_is_told_with_its_message() {
    let mut call = vec![0];
    put_string(&mut call, "readChanges");
    for text in ["", "", ""] {
        put_string(&mut call, text);
    }
    for number in [1, -1] {
        put_long(&mut call, number);
    }
    call.extend([1, 0]);
    let reason = "wait is -1 ms; it is 0 for none, or above".to_owned();
    let expected = CallError::Options { message: Message::ReadChanges, reason };
    assert_eq!(Request::decode(&call, None), Err(expected));
}
