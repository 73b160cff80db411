//! Parameters, in the query and in headers: each is described once, for all calls that have it.

use bitacora_protocol::http::{MAX_RANGE_ENTRIES, MAX_RANGE_PARTS};
use serde_json::{Value, json};

use super::operations::Operation;
use super::{examples, patterns};
use crate::service::changes;
use crate::service::consistency::MAX_WAIT;
use crate::service::scans::MAX_LIMIT;
use crate::service::writes::{MAX_KEY_BYTES, MAX_TTL};

/// The parameters of an operation, with its examples.
pub fn of(operation: &Operation) -> Vec<Value> {
    let query = operation.query.iter().map(|name| (query(operation, name), "query", name));
    let headers = operation.headers.iter().map(|name| (header(operation, name), "header", name));
    let of = |((description, schema), place, name): ((String, Value), &str, &&'static str)| {
        let mut parameter = json!({ "name": name, "in": place, "required": *name == "key" && !tells_changes(operation), "description": description, "schema": schema });
        let examples = examples::of_parameter(operation.id, place, name);
        if !examples.is_empty() {
            parameter["examples"] = examples.into();
        }
        parameter
    };
    query.chain(headers).map(of).collect()
}

fn text(description: &str, schema: Value) -> (String, Value) {
    (description.to_owned(), schema)
}

fn reference(schema: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{schema}") })
}

/// What a parameter of a query means, and its schema.
fn query(operation: &Operation, name: &str) -> (String, Value) {
    match name {
        "key" => text("The key", reference("Key")),
        "value" => text("The value, unless the body has it", json!({ "type": "string" })),
        "ttl" => text("How long the key lives; for ever without it", reference("TimeToLive")),
        "visible" => text("Who must show the write before it is answered", reference("Visible")),
        "consistency" => {
            text("What the answer must have; `session` needs a position", reference("Consistency"))
        }
        "position" => text(
            "With `consistency=session`: positions that the answer must have, of partitions that the topic has, each once; \
             from `Bitacora-Position` of earlier answers",
            reference("Positions"),
        ),
        "timeout" => text(
            "How long the request may wait; a number without a unit is of ms. 5 s without it",
            json!({ "type": "string", "pattern": patterns::time_or_ms(MAX_WAIT) }),
        ),
        "max_staleness" => text(
            "503 unless the node has everything that was appended until so long ago",
            json!({ "type": "string", "pattern": patterns::any_time() }),
        ),
        "limit" if tells_changes(operation) => text(
            "Events in the answer, at most",
            json!({ "type": "integer", "minimum": 1, "maximum": changes::MAX_LIMIT, "default": super::super::changes::DEFAULT_LIMIT }),
        ),
        "wait" => text(
            "How long the call waits for an event, a time with its unit such as `30s`. Not at all without it",
            json!({ "type": "string", "pattern": patterns::time_or_zero(changes::MAX_WAIT) }),
        ),
        "since" => text(
            "The token to go on from: an `id` of a watch, or `next` of a call. From now on without it",
            json!({ "type": "string" }),
        ),
        "initial" => text(
            "Without a token: begins with the keys that are there",
            json!({ "type": "boolean", "default": false }),
        ),
        "values" => {
            text("Whether records come with their values", json!({ "type": "boolean", "default": true }))
        }
        "limit" => text(
            "Records in the page, at most",
            json!({ "type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": super::super::scan::DEFAULT_LIMIT }),
        ),
        "cursor" => text(
            "The `cursor` of the page before, of a scan with the same `prefix`, `start` and `end`",
            json!({ "type": "string" }),
        ),
        "from" => text("The first key, base64url; from the first of all without it", key_in_base64()),
        "to" => text(
            "The key before which the range ends, base64url; behind the last one without it",
            key_in_base64(),
        ),
        "partitions" => text(
            "The partitions whose entries count, numbers with commas between; all without it",
            json!({ "type": "string", "pattern": "^[0-9]{1,9}(,[0-9]{1,9})*$" }),
        ),
        "parts" => text(
            "The range is divided into at most so many parts with about as many entries each",
            json!({ "type": "integer", "minimum": 1, "maximum": MAX_RANGE_PARTS }),
        ),
        "at" => text(
            "The range is divided at these keys: base64url, with commas between, ascending, within the range",
            json!({ "type": "string", "pattern": patterns::keys_bytes() }),
        ),
        "entries" => text(
            "The entries of the range, at most so many, and those of one key more",
            json!({ "type": "integer", "minimum": 1, "maximum": MAX_RANGE_ENTRIES }),
        ),
        "prefix" => text("What the keys begin with", part_of_key()),
        "start" => text("The first key", part_of_key()),
        "end" => text("The key before which the scan ends", part_of_key()),
        _ => (String::new(), json!({ "type": "string" })),
    }
}

/// Whether it tells changes: of one key or of others. By whatever method.
fn tells_changes(operation: &Operation) -> bool {
    operation.query.contains(&"since")
}

fn key_in_base64() -> Value {
    json!({ "type": "string", "pattern": patterns::key_bytes() })
}

fn part_of_key() -> Value {
    json!({ "type": "string", "maxLength": MAX_KEY_BYTES })
}

/// What a header of a request means, and its schema.
fn header(operation: &Operation, name: &str) -> (String, Value) {
    match name {
        "Bitacora-Position" => text("As the parameter `position`; give one of them", reference("Positions")),
        "If-Match" => text(
            "Writes only if this is the version of the key, or with `*` if there is such a key; not together with `If-None-Match`",
            json!({ "type": "string", "minLength": 1, "pattern": patterns::condition("\"") }),
        ),
        "If-None-Match" if operation.body.is_some() || operation.id == "deleteKey" => {
            // Generators want a string in a header, and take no constant.
            text(
                "Writes only if there is no such key: `*`",
                json!({ "type": "string", "minLength": 1, "pattern": r"^\*$" }),
            )
        }
        "If-None-Match" => text(
            "304 if what would be answered has one of these ETags",
            json!({ "type": "string", "minLength": 1, "pattern": patterns::tags() }),
        ),
        "Last-Event-ID" => text(
            "The token to go on from, as browsers send it that connect again",
            json!({ "type": "string" }),
        ),
        "Idempotency-Key" => text(
            "Becomes the record's uuid. While the key's record has it, the answer is that record again: so a call that failed can be repeated. Use a new one for each new write: nothing else that is sent is looked at then",
            json!({ "type": "string", "pattern": patterns::uuid() }),
        ),
        _ => (String::new(), json!({ "type": "string" })),
    }
}

/// The schemas of what parameters, fields of a form and lines of a batch share.
pub fn schemas() -> Value {
    let names = |names: &[&str]| json!({ "type": "string", "enum": names });
    let levels = bitacora_protocol::Consistency::ALL.map(bitacora_protocol::Consistency::name);
    let visible = bitacora_protocol::Visible::ALL.map(bitacora_protocol::Visible::name);
    let described = |schema: Value, text: String| {
        let mut schema = schema;
        schema["description"] = text.into();
        schema
    };
    json!({
        "Key": described(
            json!({ "type": "string", "minLength": 1, "maxLength": MAX_KEY_BYTES, "pattern": patterns::key() }),
            format!("At most {MAX_KEY_BYTES} bytes of UTF-8, not blank; keys that begin with U+0000 are the nodes' own"),
        ),
        "TimeToLive": described(
            json!({ "type": "string", "pattern": patterns::time(MAX_TTL) }),
            "A time with its unit, `500ms`, `30s`, `5m`, `2h` or `7d`: above zero, at most a hundred years".to_owned(),
        ),
        "Consistency": described(
            names(&levels),
            "`eventual`: what the node holds, the default. `session`: everything up to a position. `latest`: everything below the high watermark that the log \
             names; a leader that was replaced and has not noticed names an old one. `strong`: everything that was acknowledged before the read came".to_owned(),
        ),
        "Visible": described(
            names(&visible),
            "`acknowledged`: nobody, the default. `here`: the node that answers. `all`: every member".to_owned(),
        ),
        "Position": described(
            json!({ "type": "string", "pattern": patterns::position() }),
            "A place in the log, partition:offset; offset -1 for nothing of the partition".to_owned(),
        ),
        "Positions": described(
            json!({ "type": "string", "minLength": 3, "pattern": patterns::positions() }),
            "Positions with commas between, at most one of a partition: `0:12,3:40`".to_owned(),
        ),
    })
}
