//! The answers of the errors, a component for each status, from the table of the errors.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::responses::header_refs;
use crate::service::error::ErrorKind;

/// What the HTTP library refuses before a call is looked up, whatever the path.
pub const OF_EVERY_REQUEST: [(u16, &str); 2] = [
    (414, "The URI has more than 64 KiB"),
    (431, "The head of the request has more than 96 KiB, or more than 100 headers"),
];

/// What a caller is told about errors of a kind.
const fn meaning(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::BadRequest => {
            "The request is wrong, and stays so: a key, parameter, header or body that can't be taken"
        }
        ErrorKind::Unauthorized => "The call has no token, or none that this node knows",
        ErrorKind::TooManyFailures => "Too many calls from this address had no good token",
        ErrorKind::Forbidden => {
            "The token of the call is not good for this, or a browser sends a write for a page of another origin"
        }
        ErrorKind::NotFound => "No such key, or no such path",
        ErrorKind::MethodNotAllowed => "The path does not have this method",
        ErrorKind::RequestTimeout => "The body did not arrive in time",
        ErrorKind::Conflict => {
            "The key has a record in another partition as well, so that a conditional write of it can't be decided yet"
        }
        ErrorKind::ConditionFailed => "The condition does not hold, and nothing was written",
        ErrorKind::TooLarge => "The value is larger than the node's `MAX_VALUE_BYTES`",
        ErrorKind::UnsupportedMediaType => {
            "The body is of a kind that is not taken: `multipart/…`, UTF-16, with a `Content-Encoding`"
        }
        ErrorKind::NotImplemented => "The cluster as it is has no conditional writes; the message says why",
        ErrorKind::NotReady => "The node does not know yet, or not within the time",
        ErrorKind::AskAnotherNode => "The node can't, and another one can",
        ErrorKind::NotTaken => "The log did not take the write",
        ErrorKind::MayTakeEffect => "The log did not acknowledge the write in time",
        ErrorKind::OutOfMemory => "The node's memory for requests is spent, and nothing was done",
        ErrorKind::Internal => "The node failed",
    }
}

/// Headers that some errors of a kind have.
fn headers(kind: ErrorKind) -> Vec<&'static str> {
    let own: &[&str] = match kind {
        ErrorKind::NotFound => {
            &["Bitacora-Position", "Bitacora-Source", "Bitacora-Timestamp", "Bitacora-Log"]
        }
        ErrorKind::ConditionFailed => &["Bitacora-Position", "Bitacora-Timestamp", "ETag"],
        ErrorKind::Unauthorized => &["WWW-Authenticate"],
        ErrorKind::MethodNotAllowed => &["Allow"],
        ErrorKind::NotReady => &["Bitacora-Position"],
        ErrorKind::OutOfMemory => {
            &["Bitacora-Position", "Bitacora-Timestamp", "Bitacora-Out-Of-Memory", "Bitacora-Log"]
        }
        _ => &[],
    };
    own.iter().copied().chain(kind.retry_after().map(|_| "Retry-After")).collect()
}

/// The name of the component of a status.
pub fn name(status: u16) -> String {
    format!("Error{status}")
}

/// A component for each status.
pub fn responses() -> Value {
    let mut found: BTreeMap<u16, (Vec<&str>, Vec<&str>)> = BTreeMap::new();
    for kind in ErrorKind::ALL {
        let (meanings, names) = found.entry(kind.http_status()).or_default();
        meanings.push(meaning(kind));
        names.extend(headers(kind));
    }
    for (status, meaning) in OF_EVERY_REQUEST {
        found.entry(status).or_default().0.push(meaning);
    }
    let named = found
        .into_iter()
        .map(|(status, (meanings, names))| (name(status), response(status, &meanings, &names)));
    Value::Object(named.collect::<Map<_, _>>())
}

fn response(status: u16, meanings: &[&str], headers: &[&str]) -> Value {
    let schema = if status == ErrorKind::ConditionFailed.http_status() { "ConditionFailed" } else { "Error" };
    json!({
        "description": meanings.join(". "),
        "headers": header_refs(headers),
        "content": { "application/json": { "schema": { "$ref": format!("#/components/schemas/{schema}") } } },
    })
}
