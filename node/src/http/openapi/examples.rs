//! Examples. Each is a request and its answer: in the description, its parameters, body and answer are examples of one name.
//!
//! The tests send them to a node in this order, and compare the answers. Positions, times and uuids of the node's own take the place
//! of those here.

mod changes;

use serde_json::{Map, Value, json};

use super::responses;

/// A request and its answer.
pub struct Example {
    pub name: &'static str,
    operation: &'static str,
    query: &'static [(&'static str, &'static str)],
    headers: &'static [(&'static str, &'static str)],
    /// Its type and its text.
    body: Option<(&'static str, &'static str)>,
    status: u16,
    answer_headers: &'static [(&'static str, &'static str)],
    answer: Content,
}

enum Content {
    Nothing,
    Json(Value),
    Text(&'static str, &'static str),
}

const NONE: Example = Example {
    name: "",
    operation: "",
    query: &[],
    headers: &[],
    body: None,
    status: 200,
    answer_headers: &[],
    answer: Content::Nothing,
};

/// All of them.
pub fn in_order() -> Vec<Example> {
    let groups = [
        writes(),
        reads(),
        conditions(),
        conditional_deletes(),
        batches(),
        changes::in_order(),
        refusals(),
        of_the_node(),
    ];
    groups.into_iter().flatten().collect()
}

/// What a record looks like that was just written.
fn record(key: &str, value: &str, ttl: i64, timestamp: i64, uuid: &str) -> Value {
    json!({ "key": key, "value": value, "timestamp": timestamp, "source": 3, "ttl": ttl, "uuid": uuid })
}

const GREETING: &str = "0c7d6f5e-1b1f-4a56-9d0a-2f7f3c1f2b11";
const LOCK: &str = "9b2c8f1e-5a57-4a0c-8f29-3f4b7d5f8a61";
const EVENING: &str = "5e0f7a7c-93b5-4e0e-8a3f-6f0c0b1d7e42";

fn writes() -> Vec<Example> {
    vec![
        Example {
            name: "set",
            operation: "setKey",
            query: &[("key", "greeting")],
            body: Some(("text/plain", "Good morning")),
            answer_headers: &[
                ("Bitacora-Position", "1:0"),
                ("ETag", "\"1:0\""),
                ("Bitacora-Timestamp", "1790000000000"),
            ],
            answer: Content::Json(record("greeting", "Good morning", 0, 1_790_000_000_000, GREETING)),
            ..NONE
        },
        Example {
            name: "setByQuery",
            operation: "setKey",
            query: &[("key", "a key & more"), ("value", "ü"), ("ttl", "30s"), ("visible", "here")],
            answer: Content::Json(record(
                "a key & more",
                "ü",
                1_790_000_030_100,
                1_790_000_000_100,
                "2d5b1c9e-77aa-4f63-bb58-0b8b5d0d3c5f",
            )),
            ..NONE
        },
        Example {
            name: "setByForm",
            operation: "setKey",
            query: &[("key", "form")],
            body: Some(("application/x-www-form-urlencoded", "value=50%25+off&ttl=2h")),
            answer: Content::Json(record(
                "form",
                "50% off",
                1_790_007_200_200,
                1_790_000_000_200,
                "8e6f6d30-4c43-4d0b-9a37-1f0e9a5c7d24",
            )),
            ..NONE
        },
        Example {
            name: "create",
            operation: "setKey",
            query: &[("key", "lock"), ("value", "me"), ("ttl", "30s")],
            headers: &[("If-None-Match", "*"), ("Idempotency-Key", LOCK)],
            answer_headers: &[("Bitacora-Position", "0:4"), ("ETag", "\"0:4\"")],
            answer: Content::Json(record("lock", "me", 1_790_000_030_300, 1_790_000_000_300, LOCK)),
            ..NONE
        },
    ]
}

fn reads() -> Vec<Example> {
    let mut read = record("greeting", "Good morning", 0, 1_790_000_000_000, GREETING);
    read["source"] = 1.into();
    let mut positioned = read.clone();
    positioned["position"] = "1:0".into();
    vec![
        Example {
            name: "ownWrite",
            operation: "getKey",
            query: &[("key", "greeting"), ("consistency", "session"), ("position", "1:0")],
            answer_headers: &[("Bitacora-Position", "1:0"), ("ETag", "\"1:0\"")],
            answer: Content::Json(read.clone()),
            ..NONE
        },
        Example {
            name: "unchanged",
            operation: "getKey",
            query: &[("key", "greeting"), ("consistency", "strong"), ("timeout", "10s")],
            headers: &[("If-None-Match", "\"1:0\"")],
            status: 304,
            answer_headers: &[("Bitacora-Position", "1:0"), ("ETag", "\"1:0\"")],
            ..NONE
        },
        Example {
            name: "heldHere",
            operation: "getKeyForMember",
            query: &[("key", "greeting")],
            headers: &[],
            answer: Content::Json(read),
            ..NONE
        },
        Example {
            name: "page",
            operation: "scan",
            query: &[("prefix", "gree"), ("limit", "10"), ("consistency", "latest"), ("max_staleness", "1m")],
            answer: Content::Json(json!({ "records": [positioned], "cursor": null })),
            ..NONE
        },
    ]
}

fn conditions() -> Vec<Example> {
    let evening = record("greeting", "Good evening", 0, 1_790_000_000_400, EVENING);
    let mut current = evening.clone();
    current["source"] = 1.into();
    vec![
        Example {
            name: "setIfUnchanged",
            operation: "setKey",
            query: &[("key", "greeting"), ("value", "Good evening")],
            headers: &[("If-Match", "\"1:0\"")],
            answer_headers: &[("Bitacora-Position", "1:2"), ("ETag", "\"1:2\"")],
            answer: Content::Json(evening),
            ..NONE
        },
        Example {
            name: "changedMeanwhile",
            operation: "setKey",
            query: &[("key", "greeting"), ("value", "Good night")],
            headers: &[("If-Match", "\"1:0\"")],
            status: 412,
            answer_headers: &[("Bitacora-Position", "1:2"), ("ETag", "\"1:2\"")],
            answer: Content::Json(json!({
                "message": "the condition does not hold: the version of the key is 1:2; nothing was written",
                "current": current,
            })),
            ..NONE
        },
    ]
}

fn conditional_deletes() -> Vec<Example> {
    vec![
        Example {
            name: "deleteIfUnchanged",
            operation: "deleteKey",
            query: &[("key", "greeting")],
            headers: &[("If-Match", "\"1:2\"")],
            answer_headers: &[("Bitacora-Position", "1:3")],
            answer: Content::Json(record(
                "greeting",
                "",
                -1,
                1_790_000_000_500,
                "f3b9a1de-62c7-4b7f-8d55-7c0d9e2a4b18",
            )),
            ..NONE
        },
        Example {
            name: "gone",
            operation: "deleteKey",
            query: &[("key", "greeting")],
            headers: &[("If-Match", "*")],
            status: 412,
            answer: Content::Json(json!({
                "message": "the condition does not hold: there is no such key; nothing was written",
                "current": null,
            })),
            ..NONE
        },
        Example {
            name: "missing",
            operation: "getKey",
            query: &[("key", "greeting"), ("consistency", "strong")],
            status: 404,
            answer_headers: &[("Bitacora-Position", "1:3")],
            answer: Content::Json(json!({ "message": "Key greeting not found" })),
            ..NONE
        },
    ]
}

fn batches() -> Vec<Example> {
    const LINES: &str = r#"{"op":"set","key":"fruit","value":"pear","ttl":"2h","visible":"here"}
{"op":"get","key":"greeting","consistency":"strong"}
{"op":"delete","key":"fruit","ifMatch":"0:0"}
"#;
    const RESULTS: &str = r#"{"status":200,"position":"1:7","key":"fruit","timestamp":1790000000600,"source":3,"ttl":1790007200600,"uuid":"3a6c8b0d-94e1-47f2-8c36-5e7d1b9f0a27"}
{"status":404,"message":"Key greeting not found","position":"1:3"}
{"status":412,"position":"1:7","message":"the condition does not hold: the version of the key is 1:7; nothing was written","current":{"key":"fruit","value":"pear","timestamp":1790000000600,"source":1,"ttl":1790007200600,"uuid":"3a6c8b0d-94e1-47f2-8c36-5e7d1b9f0a27"}}
"#;
    vec![Example {
        name: "lines",
        operation: "batch",
        body: Some(("application/x-ndjson", LINES)),
        answer: Content::Text("application/x-ndjson", RESULTS),
        ..NONE
    }]
}

fn refusals() -> Vec<Example> {
    let refused = |name, operation, query, text: &str| Example {
        name,
        operation,
        query,
        status: 400,
        answer: Content::Json(json!({ "message": text })),
        ..NONE
    };
    vec![
        refused("blank", "getKey", &[("key", " ")], "the key is missing or blank"),
        refused("noLimit", "scan", &[("limit", "0")], "limit is 0; a page has 1 to 10000 records"),
        refused(
            "noUnit",
            "setKey",
            &[("key", "greeting"), ("value", "Good morning"), ("ttl", "60")],
            "ttl: '60' is not a time, since its unit is missing; write 60s or 60ms; leave it out to keep the key for ever",
        ),
        refused(
            "waitWithoutUnit",
            "readChanges",
            &[("wait", "30")],
            "wait: '30' is not a time, since its unit is missing; write 30s or 30ms",
        ),
    ]
}

fn of_the_node() -> Vec<Example> {
    let answers =
        |name, operation| Example { name, operation, answer: Content::Text("text/plain", "OK\n"), ..NONE };
    vec![answers("caughtUp", "getHealth"), answers("ready", "getReadiness"), answers("live", "getLiveness")]
}

fn of(operation: &str) -> impl Iterator<Item = Example> {
    in_order().into_iter().filter(move |example| example.operation == operation)
}

fn named(name: &str, value: &Value) -> (String, Value) {
    (name.to_owned(), json!({ "value": value }))
}

/// The examples of a parameter.
pub fn of_parameter(operation: &str, place: &str, name: &str) -> Map<String, Value> {
    of(operation)
        .filter_map(|example| {
            let given = if place == "query" { example.query } else { example.headers };
            let (_, text) = given.iter().find(|(known, _)| *known == name)?;
            // A number, or true or false.
            let value =
                matches!(name, "limit" | "initial" | "values").then(|| serde_json::from_str(text).ok());
            Some(named(example.name, &value.flatten().unwrap_or_else(|| (*text).into())))
        })
        .collect()
}

/// Puts the examples of an operation into its body.
pub fn of_body(operation: &str, body: &mut Value) {
    for example in of(operation) {
        if let Some((kind, text)) = example.body {
            put(&mut body["content"][kind], named(example.name, &text.into()));
        }
    }
}

/// The examples of an answer.
pub fn of_answer(operation: &str, status: &str) -> Vec<Example> {
    of(operation).filter(|example| example.status.to_string() == status).collect()
}

impl Example {
    /// Puts this into the answer of its status.
    pub fn put_into(self, answer: &mut Value) {
        let (kind, value) = match self.answer {
            Content::Nothing => ("", Value::Null),
            Content::Json(value) => ("application/json", value),
            Content::Text(kind, text) => (kind, text.into()),
        };
        if !kind.is_empty() {
            put(&mut answer["content"][kind], named(self.name, &value));
        }
        for (header, text) in self.answer_headers {
            let described = &mut answer["headers"][*header];
            // A reference has nothing beside it.
            if described.get("$ref").is_some() {
                *described = responses::headers()[*header].clone();
            }
            put(described, named(self.name, &(*text).into()));
        }
    }
}

fn put(described: &mut Value, (name, example): (String, Value)) {
    described["examples"][name] = example;
}
