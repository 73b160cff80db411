//! The answers of an operation, and the headers of answers.

use serde_json::{Map, Value, json};

use super::operations::{Body, Operation};
use super::{errors, examples};
use crate::service::error::ErrorKind;

/// The headers of answers: what each means, its schema, and whether all answers have it.
const HEADERS: [(&str, &str, &str); 16] = [
    ("Allow", "The methods that the path has", "text"),
    (
        "Bitacora-Log",
        "To other members: of which log the answer is, in hexadecimal; 0 if that is not known",
        "text",
    ),
    (
        "Bitacora-Not-Visible",
        "Of a write that was to be shown: the members that did not show it in time, `host:port` with commas between. The write is done all the same",
        "text",
    ),
    (
        "Bitacora-Out-Of-Memory",
        "To other members: the node knows the key, and has no memory for the answer",
        "text",
    ),
    (
        "Bitacora-Position",
        "The place in the log that the answer reflects. Of a record its own; of a key that is not there the delete marker's, or how far its partition is \
         applied. Of a page of a scan, and of a 503, how far the node is, perhaps of several partitions",
        "Positions",
    ),
    ("Bitacora-Source", "Where the answer to a read came from", "source"),
    (
        "Bitacora-Timestamp",
        "The write timestamp of the record that decided the answer, ms since the epoch",
        "integer",
    ),
    ("Cache-Control", "How long the answer may be kept; `no-store` unless the caller asked for more", "text"),
    ("Content-Security-Policy", "Of the console: what the page may do", "text"),
    ("Cross-Origin-Opener-Policy", "Of the console", "text"),
    ("ETag", "Of a record its version, which is its position; of this description a hash", "text"),
    ("Referrer-Policy", "Of the console", "text"),
    ("Retry-After", "Seconds after which it is of use to try again", "integer"),
    ("WWW-Authenticate", "That the call needs a token: `Bearer`", "text"),
    ("X-Accel-Buffering", "Of a watch: `no`, so that a proxy passes events on as they come", "text"),
    ("X-Content-Type-Options", "Of the console", "text"),
];

/// The components of the headers.
pub fn headers() -> Value {
    let described = HEADERS.map(|(name, description, kind)| {
        let schema = match kind {
            "integer" => json!({ "type": "integer" }),
            "source" => json!({ "type": "string", "enum": ["cache", "store", "peer"] }),
            "text" => json!({ "type": "string" }),
            schema => json!({ "$ref": format!("#/components/schemas/{schema}") }),
        };
        (name.to_owned(), json!({ "description": description, "schema": schema }))
    });
    Value::Object(described.into_iter().collect())
}

/// Headers of an answer; every answer has `Cache-Control`.
pub fn header_refs(names: &[&str]) -> Value {
    let all = names.iter().chain(&["Cache-Control"]);
    let references =
        all.map(|name| ((*name).to_owned(), json!({ "$ref": format!("#/components/headers/{name}") })));
    Value::Object(references.collect())
}

/// The answers of an operation, with its examples. `may_be_known`: 304 is one of them where a body has an `ETag`.
pub fn of(operation: &Operation, is_read: bool) -> Value {
    let mut answers = statuses(operation, is_read, true);
    for (status, answer) in &mut answers {
        let examples = examples::of_answer(operation.id, status);
        if examples.is_empty() {
            continue;
        }
        // A component is of all operations, an example of one.
        if answer.get("$ref").is_some() {
            let component = errors::responses();
            *answer = component[errors::name(status.parse().unwrap_or_default())].clone();
        }
        for example in examples {
            example.put_into(answer);
        }
    }
    if let Some(links) = &operation.links {
        answers["200"]["links"] = links.clone();
    }
    Value::Object(answers)
}

/// The answers of the same operation by HEAD.
pub fn without_bodies(operation: &Operation) -> Value {
    let components = errors::responses();
    let mut answers = statuses(operation, true, false);
    for (status, answer) in &mut answers {
        if answer.get("$ref").is_some() {
            *answer = components[errors::name(status.parse().unwrap_or_default())].clone();
        }
        if let Some(answer) = answer.as_object_mut() {
            answer.remove("content");
        }
    }
    Value::Object(answers)
}

fn statuses(operation: &Operation, is_read: bool, with_body: bool) -> Map<String, Value> {
    let mut answers = Map::new();
    let mut success =
        json!({ "description": operation.answer.meaning, "headers": header_refs(operation.answer.headers) });
    if with_body {
        success["content"] = content(&operation.answer.body);
    }
    answers.insert("200".to_owned(), success);
    if is_read && operation.headers.contains(&"If-None-Match") {
        let same = json!({ "description": "The caller has it already", "headers": header_refs(operation.answer.headers) });
        answers.insert("304".to_owned(), same);
    }
    if let Some(meaning) = operation.unready {
        let mut unready = json!({ "description": meaning, "headers": header_refs(&[]) });
        if with_body {
            unready["content"] = content(&Body::Text);
        }
        answers.insert("503".to_owned(), unready);
    }
    let of_every_request = errors::OF_EVERY_REQUEST.map(|(status, _)| status);
    let statuses = operation.errors.iter().map(|kind| kind.http_status()).chain(of_every_request);
    for status in statuses {
        let component = format!("#/components/responses/{}", errors::name(status));
        answers.entry(status.to_string()).or_insert_with(|| json!({ "$ref": component }));
    }
    if let Some(meaning) = operation.unavailable {
        let mut unavailable = errors::responses()[errors::name(503)].take();
        unavailable["description"] = meaning.into();
        if !with_body && let Some(unavailable) = unavailable.as_object_mut() {
            unavailable.remove("content");
        }
        answers.insert("503".to_owned(), unavailable);
    }
    answers
}

/// Adds the answers to callers without a good token to those of an operation.
pub fn add_refusals(answers: &mut Value, with_body: bool) {
    let components = errors::responses();
    for kind in [ErrorKind::Unauthorized, ErrorKind::Forbidden, ErrorKind::TooManyFailures] {
        let (status, name) = (kind.http_status().to_string(), errors::name(kind.http_status()));
        if answers.get(&status).is_some() {
            continue;
        }
        answers[status] = if with_body {
            json!({ "$ref": format!("#/components/responses/{name}") })
        } else {
            let mut answer = components[name].clone();
            if let Some(answer) = answer.as_object_mut() {
                answer.remove("content");
            }
            answer
        };
    }
}

fn content(body: &Body) -> Value {
    match body {
        Body::Json(schema) => {
            json!({ "application/json": { "schema": { "$ref": format!("#/components/schemas/{schema}") } } })
        }
        Body::AnyJson => json!({ "application/json": { "schema": { "type": "object" } } }),
        Body::Lines(schema) => lines(schema),
        Body::Text => json!({ "text/plain": { "schema": { "type": "string" } } }),
        Body::Html => json!({ "text/html": { "schema": { "type": "string" } } }),
        Body::Events => events(),
        Body::Bytes => {
            json!({ "application/octet-stream": { "schema": { "type": "string", "format": "binary" } } })
        }
    }
}

/// Server-Sent Events. Nor has it a word for the schemas of their data, by the names of the events.
fn events() -> Value {
    let schemas = [
        ("set", "SetData"),
        ("delete", "DeleteData"),
        ("current", "HowFarData"),
        ("progress", "HowFarData"),
        ("gap", "ReasonData"),
        ("bye", "ReasonData"),
    ];
    let schemas = schemas.map(|(event, schema)| {
        (event.to_owned(), json!({ "$ref": format!("#/components/schemas/{schema}") }))
    });
    let schemas = Value::Object(schemas.into_iter().collect());
    json!({ "text/event-stream": { "schema": { "type": "string" }, "x-event-schemas": schemas } })
}

/// Lines of JSON, each of a schema. OpenAPI 3.1 has no word for that, so the name of the schema is in an extension.
pub fn lines(schema: &str) -> Value {
    let description = format!("One {schema} a line, in JSON");
    json!({ "application/x-ndjson": {
        "schema": { "type": "string", "format": "binary", "description": description },
        "x-line-schema": format!("#/components/schemas/{schema}"),
    } })
}
