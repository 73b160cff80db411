//! The result lines of a batch.

use bitacora_protocol::Position;
use bitacora_protocol::http::{ConditionFailed, ConditionFailedLine, FailedLine, ReadLine, WrittenLine};
use bitacora_protocol::record::source;
use serde::Serialize;
use uuid::fmt::Hyphenated;

use super::super::answers;
use super::super::error::HttpError;
use crate::log::Appended;
use crate::service::conditional::NotMet;
use crate::service::error::{ErrorKind, OperationError};
use crate::service::reads::Answer;
use crate::service::writes::{PlainWritten, WriteError, Written};
use crate::service::{Done, Outcome};
use crate::store::UuidText;

/// Appends what an operation came to; returns the `outcome` label of the metrics.
pub fn put(operation: &str, key: &str, outcome: Outcome, out: &mut Vec<u8>) -> &'static str {
    match outcome {
        Ok(done) => {
            match &done {
                Done::Read(answer) => put_read(key, answer, out),
                Done::Written(Written { appended, ttl, uuid, not_visible, .. }) => {
                    put_written(key, *appended, *ttl, uuid, not_visible, out);
                }
            }
            done.outcome()
        }
        Err(error) => match error.not_met() {
            Some(not_met) => {
                put_not_met(error.kind(), not_met, out);
                error.kind().outcome()
            }
            None => put_failure(&error.into(), matches!(operation, "set" | "delete"), out),
        },
    }
}

/// As [`put`], of a plain write.
pub fn put_plain(key: &str, written: Result<PlainWritten, WriteError>, out: &mut Vec<u8>) -> &'static str {
    match written {
        Ok(PlainWritten { appended, ttl, uuid }) => {
            let mut text = [0; Hyphenated::LENGTH];
            let uuid = uuid.hyphenated().encode_lower(&mut text);
            put_written(key, appended, ttl, uuid, &[], out);
            Done::WRITTEN
        }
        Err(error) => put_failure(&OperationError::from(error).into(), true, out),
    }
}

/// Appends an error; returns the `outcome` label of the metrics. `write`: it is told whether it may still take effect.
pub fn put_failure(error: &HttpError, write: bool, out: &mut Vec<u8>) -> &'static str {
    let kind = error.kind();
    let may_take_effect = if write { kind.may_take_effect() } else { None };
    let applied = match error {
        HttpError::Operation(error) => error.applied().and_then(|applied| applied.parse().ok()),
        _ => None,
    };
    put_failed(kind, &error.to_string(), applied, may_take_effect, out);
    kind.outcome()
}

fn put_failed(
    kind: ErrorKind,
    message: &str,
    position: Option<Position>,
    may_take_effect: Option<bool>,
    out: &mut Vec<u8>,
) {
    let status = kind.http_status();
    put_line(&FailedLine { status, message: Some(message.into()), position, may_take_effect }, out);
}

fn put_read(key: &str, answer: &Answer, out: &mut Vec<u8>) {
    let Answer { position, from, .. } = *answer;
    match answer.record(&mut UuidText::default()) {
        Some(record) => put_line(&ReadLine { status: 200, position, from, record }, out),
        None => put_failed(ErrorKind::NotFound, &answers::not_found(key), Some(position), None, out),
    }
}

fn put_not_met(kind: ErrorKind, not_met: &NotMet, out: &mut Vec<u8>) {
    let mut uuid = UuidText::default();
    let current = not_met.current.record(&mut uuid);
    let failed = ConditionFailed { message: not_met.to_string().into(), current };
    let position = not_met.current.position;
    put_line(&ConditionFailedLine { status: kind.http_status(), position, failed }, out);
}

/// Without the value, which the client has sent a moment ago.
fn put_written(
    key: &str,
    appended: Appended,
    ttl: i64,
    uuid: &str,
    not_visible: &[String],
    out: &mut Vec<u8>,
) {
    let line = WrittenLine {
        status: 200,
        position: appended.position,
        key: key.into(),
        timestamp: appended.timestamp.ms(),
        source: source::PRODUCER,
        ttl,
        uuid: uuid.into(),
        not_visible: not_visible.to_vec(),
    };
    put_line(&line, out);
}

fn put_line(line: &impl Serialize, out: &mut Vec<u8>) {
    // Nothing that is serialized here has a map with keys that are no strings.
    let _ = serde_json::to_writer(&mut *out, line);
    out.push(b'\n');
}
