//! The schemas of the bodies: JSON as the types of `bitacora_protocol::http` have it. The tests compare them with what a node answers.

use serde_json::{Value, json};

use super::{parameters, patterns};
use crate::service::consistency::MAX_WAIT;

/// The components of the schemas.
pub fn all() -> Value {
    let mut all = parameters::schemas();
    for schemas in [records(), changes(), lines(), results(), status(), digests()] {
        if let (Some(all), Value::Object(schemas)) = (all.as_object_mut(), schemas) {
            all.extend(schemas);
        }
    }
    all
}

fn reference(schema: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{schema}") })
}

/// Either, as OpenAPI 3.1 writes it.
fn or_null(schema: &Value) -> Value {
    json!({ "anyOf": [schema, { "type": "null" }] })
}

/// An object whose other fields than `optional` are always there.
fn object(fields: &Value, optional: &[&str]) -> Value {
    let names = fields.as_object().into_iter().flat_map(|fields| fields.keys());
    let required: Vec<_> = names.filter(|name| !optional.contains(&name.as_str())).cloned().collect();
    json!({ "type": "object", "properties": fields, "required": required })
}

/// The fields of a record, and others beside them.
fn record_fields(others: &Value) -> Value {
    let mut fields = json!({
        "key": { "type": "string" },
        "value": { "type": "string" },
        "timestamp": { "type": "integer", "format": "int64", "description": "The write timestamp, ms since the epoch" },
        "source": { "type": "integer", "format": "int32", "description": "1 read from the log, 2 from another member, 3 just written" },
        "ttl": { "type": "integer", "format": "int64", "description": "0 for ever, -1 deleted, else the ms since the epoch at which it expires" },
        "uuid": { "type": "string", "description": "The write's own" },
    });
    if let (Some(fields), Some(others)) = (fields.as_object_mut(), others.as_object()) {
        fields.extend(others.clone());
    }
    fields
}

fn message() -> Value {
    json!({ "type": "string", "description": "What is wrong, a sentence" })
}

fn may_take_effect() -> Value {
    json!({ "type": "boolean", "description": "Of a write that is answered 503: whether it may still take effect" })
}

fn records() -> Value {
    let position = json!({ "position": reference("Position") });
    let page = json!({
        "records": { "type": "array", "items": reference("PositionedRecord") },
        "cursor": { "type": ["string", "null"], "description": "For the next page; null at the end" },
    });
    json!({
        "Record": object(&record_fields(&json!({})), &[]),
        "PositionedRecord": object(&record_fields(&position), &[]),
        "ScanPage": object(&page, &[]),
        "Error": object(&json!({ "message": message(), "mayTakeEffect": may_take_effect() }), &["mayTakeEffect"]),
        "ConditionFailed": object(&json!({ "message": message(), "current": or_null(&reference("Record")) }), &[]),
    })
}

/// What has changed: in a list, where each says in its field `event` what it is, and as the data of Server-Sent Events, which have their names beside
/// the data.
fn changes() -> Value {
    let set = record_fields(&json!({ "position": reference("Position") }));
    let deleted = json!({
        "key": { "type": "string" },
        "timestamp": { "type": "integer", "format": "int64", "description": "The write timestamp of what is at the position" },
        "position": reference("Position"),
        "reason": { "type": "string", "enum": ["deleted", "expired"] },
    });
    let reason = json!({ "reason": { "type": "string", "description": "A sentence" } });
    let named = |name: &str, data: &Value| {
        let mut fields = data.clone();
        fields["event"] = json!({ "type": "string", "const": name });
        fields
    };
    let told = json!({ "type": "string", "description": "Up to where each partition has been told, as `Positions`; empty while that is nowhere" });
    let how_far = json!({
        "position": told,
        "behind": { "type": "string", "description": "Of `progress`: why there is no `current` yet, if the log does not say where it ends" },
    });
    let list = json!({
        "events": { "type": "array", "items": reference("ChangeEvent") },
        "next": { "type": "string", "description": "The token that goes on from here, at any node" },
        "current": { "type": "boolean", "description": "Whether all that was in the log when the call came has been told" },
        "position": told,
    });
    let names = ["SetEvent", "DeleteEvent", "GapEvent"].map(reference);
    json!({
        "SetData": object(&set, &["value"]),
        "DeleteData": object(&deleted, &[]),
        "HowFarData": object(&how_far, &["behind"]),
        "ReasonData": object(&reason, &[]),
        "SetEvent": object(&named("set", &set), &["value"]),
        "DeleteEvent": object(&named("delete", &deleted), &[]),
        "GapEvent": object(&named("gap", &reason), &[]),
        "ChangeEvent": { "oneOf": names },
        "ChangeList": object(&list, &[]),
    })
}

/// The lines of a batch.
fn lines() -> Value {
    let timeout = json!({ "type": "string", "pattern": patterns::time_or_ms(MAX_WAIT) });
    let line = |op: &str, others: Value, required: &[&str]| {
        let mut fields = json!({ "op": { "type": "string", "const": op }, "key": reference("Key"), "timeout": timeout.clone() });
        if let (Some(fields), Value::Object(others)) = (fields.as_object_mut(), others) {
            fields.extend(others);
        }
        json!({ "type": "object", "properties": fields, "required": required, "additionalProperties": false })
    };
    let with = |others: Value| {
        let mut fields = json!({
            "ifMatch": { "type": "string", "pattern": patterns::condition(""), "description": "The version that the key must have, or * for any" },
            "ifAbsent": { "type": "boolean", "description": "True: there must be no such key" },
            "uuid": { "type": "string", "format": "uuid", "description": "As the header Idempotency-Key" },
            "visible": reference("Visible"),
        });
        if let (Some(fields), Value::Object(others)) = (fields.as_object_mut(), others) {
            fields.extend(others);
        }
        fields
    };
    let read = json!({
        "consistency": reference("Consistency"),
        "position": reference("Positions"),
        "maxStaleness": { "type": "string", "pattern": patterns::any_time() },
    });
    let names = ["BatchGet", "BatchSet", "BatchDelete"].map(reference);
    json!({
        "BatchGet": line("get", read, &["op", "key"]),
        "BatchSet": line(
            "set",
            with(json!({ "value": { "type": "string" }, "ttl": reference("TimeToLive") })),
            &["op", "key", "value"],
        ),
        "BatchDelete": line("delete", with(json!({})), &["op", "key"]),
        "BatchLine": { "oneOf": names, "description": "An operation; null for a field that is not needed is as good as to leave it out" },
    })
}

/// The result lines of a batch.
fn results() -> Value {
    let status = json!({ "type": "integer", "description": "As the status of an answer of its own" });
    let read = json!({
        "status": status.clone(),
        "position": reference("Position"),
        "from": { "type": "string", "enum": ["cache", "store", "peer"] },
    });
    let mut written = record_fields(&json!({
        "status": status.clone(),
        "position": reference("Position"),
        "notVisible": { "type": "array", "items": { "type": "string" }, "description": "As the header Bitacora-Not-Visible" },
    }));
    if let Some(written) = written.as_object_mut() {
        // The caller has sent it a moment ago.
        written.remove("value");
    }
    let not_met = json!({
        "status": status.clone(),
        "position": reference("Position"),
        "message": message(),
        "current": or_null(&reference("Record")),
    });
    let failed = json!({
        "status": status,
        "message": message(),
        "position": reference("Positions"),
        "mayTakeEffect": may_take_effect(),
    });
    let names = ["BatchRead", "BatchWritten", "BatchConditionFailed", "BatchFailed"].map(reference);
    json!({
        "BatchRead": object(&record_fields(&read), &[]),
        "BatchWritten": object(&written, &["notVisible"]),
        "BatchConditionFailed": object(&not_met, &[]),
        "BatchFailed": object(&failed, &["position", "mayTakeEffect"]),
        "BatchResult": { "anyOf": names, "description": "What an operation came to; the status tells which" },
    })
}

fn digests() -> Value {
    let partition = || json!({ "type": "integer", "format": "int32" });
    let offset =
        || json!({ "type": "integer", "format": "int64", "description": "Everything before it is applied" });
    let digest = || json!({ "type": "string", "pattern": "^[0-9a-f]{32}$" });
    let shown = || json!({ "type": "string", "pattern": "^([0-9a-f]{32})?$", "description": "Empty for who has neither the scope member nor admin" });
    let points = json!({ "type": "array", "items": reference("DigestPoint"), "description": "By offset" });
    let difference = json!({
        "member": { "type": "string", "description": "host:port, as the cluster knows it" },
        "partition": partition(),
        "next": offset(),
        "own": shown(),
        "theirs": shown(),
    });
    let answer = json!({
        "format": { "type": "string", "description": "Of the store; digests of another are other ones" },
        "log": { "type": "string", "description": "Which log the store is of; hexadecimal, 0 if that is not known" },
        "partitions": { "type": "array", "items": reference("PartitionDigests"), "description": "Empty while the store may not be read" },
    });
    let key = || json!({ "type": "string", "pattern": patterns::key_bytes(), "description": "A key in base64url without padding" });
    let ranges = json!({
        "format": { "type": "string", "description": "Of the store; digests of another are other ones" },
        "log": { "type": "string", "description": "Which log the store is of; hexadecimal, 0 if that is not known" },
        "partitions": { "type": "array", "items": reference("ComparedPartition"), "description": "How far the node was at the moment of the answer" },
        "parts": { "type": "array", "items": reference("RangePart"), "description": "In the order of the keys, without gaps" },
        "entries": { "type": "array", "items": reference("RangeEntry"), "description": "In the order of the keys, if they were asked for" },
    });
    let compared = json!({
        "partition": partition(),
        "next": offset(),
        "comparable": { "type": "boolean", "description": "Whether another node that has applied as much must hold the same" },
    });
    let part = json!({
        "to": or_null(&key()),
        "count": { "type": "integer", "format": "int64", "minimum": 0, "description": "Entries" },
        "digest": digest(),
    });
    let entry = json!({ "key": key(), "position": or_null(&reference("Position")), "digest": digest() });
    json!({
        "DigestRanges": object(&ranges, &["entries"]),
        "ComparedPartition": object(&compared, &[]),
        "RangePart": object(&part, &[]),
        "RangeEntry": object(&entry, &[]),
        "Digests": object(&answer, &[]),
        "PartitionDigests": object(&json!({ "partition": partition(), "points": points }), &[]),
        "DigestPoint": object(&json!({ "next": offset(), "digest": digest() }), &[]),
        "DigestDifference": object(&difference, &[]),
    })
}

fn status() -> Value {
    let count = || json!({ "type": "integer", "format": "int64", "minimum": 0 });
    let number = || json!({ "type": "number" });
    let component =
        object(&json!({ "state": { "type": "string" }, "reason": { "type": "string" } }), &["reason"]);
    let partition = json!({
        "partition": { "type": "integer", "format": "int32" },
        "applied": { "type": "integer", "format": "int64", "description": "Offset of the last record applied; -1 for none" },
        "high_watermark": { "type": ["integer", "null"], "format": "int64", "description": "Exclusive" },
        "lag": { "type": ["integer", "null"], "format": "int64" },
        "lag_seconds": { "type": ["number", "null"], "description": "How old this node's reads are" },
        "high_watermark_age_ms": { "type": ["integer", "null"], "format": "int64" },
        "digest": or_null(&reference("DigestPoint")),
    });
    let restore = json!({
        "done": { "type": "boolean" },
        "seconds": or_null(&number()),
        "fraction": or_null(&number()),
        "remaining_seconds": or_null(&number()),
        "rebuilding": { "type": "string" },
    });
    let cache = json!({ "records": count(), "bytes": count(), "capacity_bytes": count(), "hits": count(), "misses": count() });
    let status = json!({
        "node": { "type": "string", "description": "host:port, as the cluster knows it" },
        "version": { "type": "string" },
        "ready": { "type": "boolean" },
        "unready": { "type": "string", "description": "Why it wants no requests" },
        "caught_up": { "type": "boolean" },
        "members": { "type": "array", "items": { "type": "string" } },
        "membership": reference("ComponentState"),
        "log": reference("ComponentState"),
        "partitions": { "type": "array", "items": reference("PartitionStatus") },
        "restore": reference("RestoreStatus"),
        "log_level": count(),
        "differences": { "type": "array", "items": reference("DigestDifference"), "description": "Members that hold other records where both have applied the same" },
        "store": or_null(&reference("StoreStatus")),
        "cache": or_null(&reference("CacheStatus")),
    });
    let member = json!({
        "address": { "type": "string", "description": "host:port, as the cluster knows it" },
        "status": reference("Status"),
        "error": { "type": "string", "description": "Why there is no status, a sentence" },
    });
    let members = json!({ "members": { "type": "array", "items": reference("MemberStatus"), "description": "The node that was asked first" } });
    json!({
        "MembersStatus": object(&members, &[]),
        "MemberStatus": object(&member, &["status", "error"]),
        "Status": object(&status, &["unready", "differences"]),
        "ComponentState": component,
        "PartitionStatus": object(&partition, &[]),
        "RestoreStatus": object(&restore, &["rebuilding"]),
        "StoreStatus": object(&json!({ "records": count(), "bytes": count() }), &[]),
        "CacheStatus": object(&cache, &[]),
    })
}
