//! What each call is: in words, with what it takes and what it answers.

use serde_json::{Value, json};

use super::super::routes::Call;
use super::super::{changes, digest_ranges as ranges, keys, scan, watch};
use super::{patterns, responses};
use crate::service::consistency::MAX_WAIT;
use crate::service::error::ErrorKind;

/// A call, as it is described.
#[derive(Clone)]
pub struct Operation {
    /// Of the operation by its first method; empty for one that has no examples.
    pub id: &'static str,
    pub tag: &'static str,
    pub summary: &'static str,
    pub description: &'static str,
    /// Parameters of the query, as the call itself reads them.
    pub query: &'static [&'static str],
    pub headers: &'static [&'static str],
    pub body: Option<Value>,
    pub answer: Answer,
    /// What a 503 means that is no error.
    pub unready: Option<&'static str>,
    pub errors: &'static [ErrorKind],
    /// What a 503 that is an error means here, if that is less than it means elsewhere.
    pub unavailable: Option<&'static str>,
    pub links: Option<Value>,
}

/// The answer 200.
#[derive(Clone)]
pub struct Answer {
    pub meaning: &'static str,
    pub headers: &'static [&'static str],
    pub body: Body,
}

#[derive(Clone, Copy)]
pub enum Body {
    /// JSON of a schema.
    Json(&'static str),
    AnyJson,
    /// Lines of JSON, each of a schema.
    Lines(&'static str),
    Text,
    Html,
    /// Server-Sent Events.
    Events,
    Bytes,
}

const READ_HEADERS: &[&str] = &["Bitacora-Position", "If-None-Match"];
const WRITE_HEADERS: &[&str] = &["If-Match", "If-None-Match", "Idempotency-Key"];
const OF_READ: &[&str] = &["Bitacora-Position", "Bitacora-Source", "Bitacora-Timestamp", "ETag"];
const OF_WRITE: &[&str] = &["Bitacora-Position", "Bitacora-Timestamp", "Bitacora-Not-Visible", "ETag"];

impl Operation {
    /// Of a call at a path: a call may be at several.
    pub fn of(call: Call, path: &str) -> Self {
        match call {
            Call::Get => get(),
            Call::Set => set(),
            Call::Delete => delete(),
            Call::GetForMember => get_for_member(),
            Call::Scan => scan(),
            Call::Batch => batch(),
            Call::Changes => read_changes(),
            Call::Watch => watch_changes(),
            Call::Ready if path == "/health" => health("getHealth", "Whether the node wants requests"),
            Call::Ready => health("getReadiness", "Whether the node wants requests, for orchestrators"),
            Call::Live => health("getLiveness", "Whether the process answers and has not given up"),
            Call::Status => plain("getStatus", "The node's own account", Body::Json("Status")),
            Call::Members => members(),
            Call::Digests => digests(),
            Call::DigestRanges => digest_ranges(),
            Call::Metrics => plain("getMetrics", "Figures for Prometheus", Body::Text),
            Call::OpenApi => description(),
            Call::Snapshot => snapshot(),
            Call::Console => console(),
        }
    }
}

/// A call that takes nothing.
fn plain(id: &'static str, summary: &'static str, body: Body) -> Operation {
    Operation {
        id,
        tag: "node",
        summary,
        description: "",
        query: &[],
        headers: &[],
        body: None,
        answer: Answer { meaning: summary, headers: &[], body },
        unready: None,
        errors: &[ErrorKind::BadRequest],
        unavailable: None,
        links: None,
    }
}

const ERRORS_OF_READS: &[ErrorKind] = &[
    ErrorKind::BadRequest,
    ErrorKind::NotFound,
    ErrorKind::NotReady,
    ErrorKind::OutOfMemory,
    ErrorKind::Internal,
];

fn get() -> Operation {
    Operation {
        tag: "keys",
        description: "From what this node holds, unless more is asked for. A key that it does not have and may not know yet it asks the other members for.",
        query: keys::READ_FIELDS,
        headers: READ_HEADERS,
        answer: Answer { meaning: "The record", headers: OF_READ, body: Body::Json("Record") },
        errors: ERRORS_OF_READS,
        links: Some(json!({
            "setIfUnchanged": conditional("setKey", "Writes only if this is still the version of the key"),
            "deleteIfUnchanged": conditional("deleteKey", "Deletes only if this is still the version of the key"),
        })),
        ..plain("getKey", "Reads a key", Body::Json("Record"))
    }
}

fn get_for_member() -> Operation {
    Operation {
        tag: "members",
        summary: "Reads a key from what this node holds",
        description: "As the call at `/rpc`, but never forwarded: what members ask one another.",
        headers: &["Bitacora-Position"],
        answer: Answer {
            meaning: "The record",
            headers: &["Bitacora-Position", "Bitacora-Source", "Bitacora-Timestamp", "Bitacora-Log", "ETag"],
            body: Body::Json("Record"),
        },
        links: None,
        id: "getKeyForMember",
        ..get()
    }
}

/// A link from an answer with a record to a write that expects it.
fn conditional(operation: &str, description: &str) -> Value {
    json!({
        "operationId": operation,
        "description": description,
        "parameters": { "key": "$response.body#/key", "header.If-Match": "$response.header.ETag" },
    })
}

/// A link from the answer to a write to a read that sees it.
fn own_write(description: &str) -> Value {
    json!({
        "operationId": "getKey",
        "description": description,
        "parameters": {
            "key": "$response.body#/key",
            "consistency": "session",
            "query.position": "$response.header.Bitacora-Position",
        },
    })
}

const ERRORS_OF_DELETES: &[ErrorKind] = &[
    ErrorKind::BadRequest,
    ErrorKind::Forbidden,
    ErrorKind::Conflict,
    ErrorKind::ConditionFailed,
    ErrorKind::NotImplemented,
    ErrorKind::NotReady,
    ErrorKind::NotTaken,
    ErrorKind::MayTakeEffect,
    ErrorKind::OutOfMemory,
    ErrorKind::Internal,
];

const ERRORS_OF_SETS: &[ErrorKind] = &[
    ErrorKind::BadRequest,
    ErrorKind::Forbidden,
    ErrorKind::RequestTimeout,
    ErrorKind::Conflict,
    ErrorKind::ConditionFailed,
    ErrorKind::TooLarge,
    ErrorKind::UnsupportedMediaType,
    ErrorKind::NotImplemented,
    ErrorKind::NotReady,
    ErrorKind::NotTaken,
    ErrorKind::MayTakeEffect,
    ErrorKind::OutOfMemory,
    ErrorKind::Internal,
];

fn set() -> Operation {
    let form = json!({
        "type": "object",
        "properties": {
            "value": { "type": "string" },
            "ttl": { "$ref": "#/components/schemas/TimeToLive" },
            "visible": { "$ref": "#/components/schemas/Visible" },
            "timeout": { "type": "string", "pattern": patterns::time_or_ms(MAX_WAIT) },
        },
        "required": ["value"],
        "additionalProperties": false,
    });
    let body = json!({
        "required": false,
        "description": "The value, unless the query has it: as it is, or in a form. A form may have the other parameters of the query as well, the key too, \
                        each in one of the two places. A body of any other type is the value as it is",
        "content": {
            "text/plain": { "schema": { "type": "string" } },
            "application/octet-stream": { "schema": { "type": "string", "format": "binary", "description": "Bytes of UTF-8" } },
            "application/x-www-form-urlencoded": { "schema": form },
        },
    });
    Operation {
        tag: "keys",
        description: "Answered when the log has acknowledged it. A read sees it once the node has read it back, or at once with `consistency=session` and this answer's position.",
        query: keys::FIELDS,
        headers: WRITE_HEADERS,
        body: Some(body),
        answer: Answer { meaning: "Done; the record", headers: OF_WRITE, body: Body::Json("Record") },
        errors: ERRORS_OF_SETS,
        links: Some(json!({
            "read": own_write("Reads what was written"),
            "setAgain": conditional("setKey", "Writes only if nobody else has written since"),
            "deleteIfUnchanged": conditional("deleteKey", "Deletes only if nobody else has written since"),
        })),
        ..plain("setKey", "Sets a key", Body::Json("Record"))
    }
}

fn delete() -> Operation {
    Operation {
        tag: "keys",
        description: "200 whether or not there was such a key, unless a condition asks for it.",
        query: keys::DELETE_FIELDS,
        headers: WRITE_HEADERS,
        answer: Answer {
            meaning: "Done; the delete marker, whose value is empty and whose `ttl` is -1",
            headers: OF_WRITE,
            body: Body::Json("Record"),
        },
        errors: ERRORS_OF_DELETES,
        links: Some(json!({ "read": own_write("404, unless somebody has written since") })),
        ..plain("deleteKey", "Deletes a key", Body::Json("Record"))
    }
}

fn scan() -> Operation {
    Operation {
        tag: "keys",
        description: "Live records in the order of their keys' bytes, from what this node holds; no snapshot. A page may be shorter than the limit although there are more.",
        query: scan::FIELDS,
        headers: &["Bitacora-Position"],
        errors: &[ErrorKind::BadRequest, ErrorKind::NotReady, ErrorKind::OutOfMemory, ErrorKind::Internal],
        links: Some(json!({
            "nextPage": {
                "operationId": "scan",
                "description": "Unless the cursor is null; with the same prefix, start and end",
                "parameters": { "cursor": "$response.body#/cursor" },
            },
        })),
        answer: Answer {
            meaning: "A page of records",
            headers: &["Bitacora-Position"],
            body: Body::Json("ScanPage"),
        },
        ..plain("scan", "A page of records", Body::Json("ScanPage"))
    }
}

fn batch() -> Operation {
    Operation {
        tag: "keys",
        description: "One operation a line, answered with one line each, in their order, while more come in. A line that is wrong fails alone; conditions and uuids are fields \
                      of the lines.",
        body: Some(json!({ "required": false, "content": responses::lines("BatchLine") })),
        answer: Answer {
            meaning: "What each operation came to",
            headers: &[],
            body: Body::Lines("BatchResult"),
        },
        errors: &[
            ErrorKind::BadRequest,
            ErrorKind::Forbidden,
            ErrorKind::UnsupportedMediaType,
            ErrorKind::OutOfMemory,
        ],
        ..plain("batch", "Many operations", Body::Lines("BatchResult"))
    }
}

const ERRORS_OF_CHANGES: &[ErrorKind] =
    &[ErrorKind::BadRequest, ErrorKind::NotReady, ErrorKind::OutOfMemory, ErrorKind::Internal];
const NO_CHANGES_NOW: &str = "The node is restoring its store or stopping, has `MAX_WATCHERS` watchers already, or its memory for requests is spent. Wait for `Retry-After`, or ask \
                              another node with the same token";

fn read_changes() -> Operation {
    Operation {
        tag: "keys",
        description: "What has changed since a token, in an order that is the log's for each key; states, not every state in between. Waits for an event if it is told to. After an \
                      event `gap`, forget all keys: those that are live follow.",
        query: changes::FIELDS,
        errors: ERRORS_OF_CHANGES,
        unavailable: Some(NO_CHANGES_NOW),
        links: Some(json!({
            "goOn": {
                "operationId": "readChanges",
                "description": "What has changed since; with the same prefix or key",
                "parameters": { "since": "$response.body#/next" },
            },
        })),
        ..plain("readChanges", "What has changed, by long polling", Body::Json("ChangeList"))
    }
}

fn watch_changes() -> Operation {
    Operation {
        tag: "keys",
        description: "Events, each with a token as its `id` and JSON as its data. `set` (data: `SetData`) and `delete` (`DeleteData`): a key changed. `current` (`HowFarData`): all that was \
                      in the log at the beginning, or at the gap, has been sent. `progress` (`HowFarData`), every 5 s: the token moves on. `gap` (`ReasonData`): forget all keys, those that are live \
                      follow. `bye` (`ReasonData`): go on at another node. `Last-Event-ID` wins over `since` and `initial`. HEAD answers whether a watch could begin.",
        query: watch::FIELDS,
        headers: &["Last-Event-ID"],
        answer: Answer { meaning: "Events", headers: &["X-Accel-Buffering"], body: Body::Events },
        errors: ERRORS_OF_CHANGES,
        unavailable: Some(NO_CHANGES_NOW),
        ..plain("watch", "What changes, as Server-Sent Events", Body::Events)
    }
}

fn health(id: &'static str, summary: &'static str) -> Operation {
    Operation {
        answer: Answer {
            meaning: "`OK`, and what there is to say, each on a line of its own",
            headers: &[],
            body: Body::Text,
        },
        unready: Some("`DOWN`, and why"),
        ..plain(id, summary, Body::Text)
    }
}

fn members() -> Operation {
    Operation {
        description: "The node asks each of the others for its `/status`, and waits for a second at most. Answers are kept for half a second.",
        ..plain("getMembersStatus", "What every member says of itself", Body::Json("MembersStatus"))
    }
}

fn digests() -> Operation {
    Operation {
        tag: "members",
        description: "For each partition, what the node holds as one number, at its position and at some before: at equal positions, members must say the same. Members ask each other every five seconds.",
        ..plain("getDigests", "Digests of what the node holds", Body::Json("Digests"))
    }
}

fn digest_ranges() -> Operation {
    Operation {
        tag: "members",
        description: "For who looks for the keys in which two nodes differ, as `bitacora diff` does: the node looks at every entry of the range on disk, and adds up their digests. Give one of \
                      `parts`, `at` and `entries`, or none for one part. The last part ends before the range does if there is more to look at than a call may: go on from there. \
                      Keys are base64url without padding.",
        query: ranges::FIELDS,
        errors: &[ErrorKind::BadRequest, ErrorKind::NotReady, ErrorKind::OutOfMemory, ErrorKind::Internal],
        ..plain("getDigestRanges", "Digests of ranges of keys", Body::Json("DigestRanges"))
    }
}

fn console() -> Operation {
    const HEADERS: &[&str] = &[
        "Content-Security-Policy",
        "Cross-Origin-Opener-Policy",
        "Referrer-Policy",
        "X-Content-Type-Options",
    ];
    Operation {
        answer: Answer {
            meaning: "The page, with its script and style inside",
            headers: HEADERS,
            body: Body::Html,
        },
        ..plain("getConsole", "The console, a page for people", Body::Html)
    }
}

fn description() -> Operation {
    Operation {
        headers: &["If-None-Match"],
        answer: Answer { meaning: "OpenAPI 3.1", headers: &["ETag"], body: Body::AnyJson },
        ..plain("getDescription", "This description", Body::AnyJson)
    }
}

fn snapshot() -> Operation {
    Operation {
        tag: "members",
        errors: &[ErrorKind::BadRequest, ErrorKind::NotReady, ErrorKind::AskAnotherNode],
        ..plain("getSnapshot", "The whole store, for other members and for backups", Body::Bytes)
    }
}
