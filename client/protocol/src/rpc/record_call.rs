//! The options of calls: how they stand in a message, and the operations of a batch that carry them.

use std::time::Duration;

use super::protocol::Message;
use super::request::CallError;
use crate::avro::{DecodeError, Input, put_long, put_string};
use crate::consistency::{Consistency, ReadOptions, Visible, WriteCondition, WriteOptions};
use crate::operation::Operation;

/// The fields that an operation of a batch begins with.
struct Begin<'a> {
    kind: usize,
    key: &'a str,
    value: &'a str,
    ttl: i64,
}

impl<'a> Begin<'a> {
    fn take(input: &mut Input<'a>) -> Result<Self, DecodeError> {
        let kind = input.index(3, "kind")?;
        Ok(Self { kind, key: input.string("key")?, value: input.string("value")?, ttl: input.long("ttl")? })
    }

    fn put(operation: &Operation<'_>, out: &mut Vec<u8>) {
        let (kind, value, ttl) = match *operation {
            Operation::Get { .. } => (0, "", 0),
            Operation::Set { value, ttl, .. } => (1, value, ttl),
            Operation::Delete { .. } => (2, "", 0),
        };
        put_long(out, kind);
        put_string(out, operation.key());
        put_string(out, value);
        put_long(out, ttl);
    }
}

/// An operation of a batch without options.
pub(super) fn take_plain_operation<'a>(input: &mut Input<'a>) -> Result<Operation<'a>, DecodeError> {
    let Begin { kind, key, value, ttl } = Begin::take(input)?;
    Ok(match kind {
        0 => Operation::get(key),
        1 => Operation::set(key, value, ttl),
        _ => Operation::delete(key),
    })
}

/// Its options have no place there.
pub(super) fn put_plain_operation(out: &mut Vec<u8>, operation: &Operation<'_>) {
    Begin::put(operation, out);
}

/// An operation of a batch with options; `index`: its place in the batch, for errors.
pub(super) fn take_operation<'a>(input: &mut Input<'a>, index: usize) -> Result<Operation<'a>, CallError> {
    let Begin { kind, key, value, ttl } = Begin::take(input)?;
    let texts = Texts {
        consistency: input.string("consistency")?,
        position: input.string("position")?,
        max_staleness: input.long("maxStaleness")?,
        condition: input.string("condition")?,
        uuid: input.string("uuid")?,
        visible: input.string("visible")?,
        timeout: input.long("timeout")?,
    };
    let wrong = |reason| CallError::Options {
        message: Message::BatchRecords,
        reason: format!("operation {}: {reason}", index + 1),
    };
    Ok(match kind {
        0 => Operation::Get { key, read: texts.read().map_err(wrong)? },
        1 => Operation::Set { key, value, ttl, write: texts.write().map_err(wrong)? },
        _ => Operation::Delete { key, write: texts.write().map_err(wrong)? },
    })
}

pub(super) fn put_operation(out: &mut Vec<u8>, operation: &Operation<'_>) {
    let (read, write) = match *operation {
        Operation::Get { read, .. } => (read, WriteOptions::default()),
        Operation::Set { write, .. } | Operation::Delete { write, .. } => (ReadOptions::default(), write),
    };
    Begin::put(operation, out);
    put_read_level(out, &read);
    put_write_condition(out, &write);
    put_time(out, read.timeout.or(write.timeout));
}

/// The options as they stand in a message; those that a message does not have are empty or 0.
#[derive(Clone, Copy, Default)]
pub(super) struct Texts<'a> {
    pub consistency: &'a str,
    pub position: &'a str,
    pub max_staleness: i64,
    pub condition: &'a str,
    pub uuid: &'a str,
    pub visible: &'a str,
    pub timeout: i64,
}

impl<'a> Texts<'a> {
    pub(super) fn take_read(input: &mut Input<'a>) -> Result<Self, DecodeError> {
        Ok(Self {
            consistency: input.string("consistency")?,
            position: input.string("position")?,
            max_staleness: input.long("maxStaleness")?,
            timeout: input.long("timeout")?,
            ..Self::default()
        })
    }

    pub(super) fn take_write(input: &mut Input<'a>) -> Result<Self, DecodeError> {
        Ok(Self {
            condition: input.string("condition")?,
            uuid: input.string("uuid")?,
            visible: input.string("visible")?,
            timeout: input.long("timeout")?,
            ..Self::default()
        })
    }

    pub(super) fn read(&self) -> Result<ReadOptions<'a>, String> {
        if !(self.condition.is_empty() && self.uuid.is_empty() && self.visible.is_empty()) {
            return Err("condition, uuid and visible are for writes, and this is a read".to_owned());
        }
        Ok(ReadOptions {
            consistency: named("consistency", self.consistency)?.unwrap_or(Consistency::Eventual),
            position: self.position,
            timeout: time("timeout", self.timeout)?,
            max_staleness: time("maxStaleness", self.max_staleness)?,
        })
    }

    pub(super) fn write(&self) -> Result<WriteOptions<'a>, String> {
        if !(self.consistency.is_empty() && self.position.is_empty() && self.max_staleness == 0) {
            return Err(
                "consistency, position and maxStaleness are for reads, and this is a write".to_owned()
            );
        }
        Ok(WriteOptions {
            condition: named("condition", self.condition)?.unwrap_or(WriteCondition::None),
            uuid: self.uuid,
            visible: named("visible", self.visible)?.unwrap_or(Visible::Acknowledged),
            timeout: time("timeout", self.timeout)?,
        })
    }
}

fn named<T: std::str::FromStr<Err = String>>(field: &str, text: &str) -> Result<Option<T>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|error| format!("{field}: {error}"))
}

fn time(field: &str, ms: i64) -> Result<Option<Duration>, String> {
    let ms = u64::try_from(ms).map_err(|_| format!("{field} is {ms} ms; it is 0 for none, or above"))?;
    Ok((ms > 0).then(|| Duration::from_millis(ms)))
}

pub(super) fn put_read(out: &mut Vec<u8>, read: &ReadOptions<'_>) {
    put_read_level(out, read);
    put_time(out, read.timeout);
}

fn put_read_level(out: &mut Vec<u8>, read: &ReadOptions<'_>) {
    let eventual = read.consistency == Consistency::Eventual;
    put_string(out, if eventual { "" } else { read.consistency.name() });
    put_string(out, read.position);
    put_time(out, read.max_staleness);
}

pub(super) fn put_write(out: &mut Vec<u8>, write: &WriteOptions<'_>) {
    put_write_condition(out, write);
    put_time(out, write.timeout);
}

fn put_write_condition(out: &mut Vec<u8>, write: &WriteOptions<'_>) {
    match write.condition {
        WriteCondition::None => put_string(out, ""),
        condition => put_string(out, &condition.to_string()),
    }
    put_string(out, write.uuid);
    let acknowledged = write.visible == Visible::Acknowledged;
    put_string(out, if acknowledged { "" } else { write.visible.name() });
}

/// In ms. One that is shorter than that is still asked for.
fn put_time(out: &mut Vec<u8>, time: Option<Duration>) {
    put_long(out, time.map_or(0, |time| i64::try_from(time.as_millis()).unwrap_or(i64::MAX).max(1)));
}
