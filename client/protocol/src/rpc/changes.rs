//! The call that reads what has changed, and its answer.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::answer::{put_array, put_position, take_array, take_position};
use super::request::CallError;
use super::resolved_call::Resolved;
use crate::Position;
use crate::avro::{DecodeError, Input, put_bool, put_long, put_string};
use crate::record::KeyValue;

/// What is asked of a call that reads changes. Empty texts stand for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangesRequest<'a> {
    /// The token to go on from; empty: from now on, or with what is there.
    pub since: &'a str,
    /// What keys begin with.
    pub prefix: &'a str,
    /// The only key, in the place of a prefix.
    pub key: &'a str,
    /// Events in an answer, at most.
    pub limit: i32,
    /// How long the call waits for an event.
    pub wait: Duration,
    /// Whether records come with their values.
    pub values: bool,
    /// Without a token, begins with what is there.
    pub initial: bool,
}

/// What is asked for if nothing else is said: every key from now on, with values, without a wait.
impl Default for ChangesRequest<'_> {
    fn default() -> Self {
        Self {
            since: "",
            prefix: "",
            key: "",
            limit: 100,
            wait: Duration::ZERO,
            values: true,
            initial: false,
        }
    }
}

/// Changes, in an order that is the log's for each key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangePage<'a> {
    /// What happened.
    pub events: Vec<Change<'a>>,
    /// The token that goes on from here, at any node.
    pub next: &'a str,
    /// Whether all that was in the log when the call came has been told.
    pub current: bool,
    /// Up to where each partition has been told; empty before the first `current` of a watch that began with what is there.
    pub positions: Vec<Position>,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// A key was set; without values in the answer the value is empty.
    Set(KeyValue<'a>, Position),
    /// A key is no more.
    Deleted(DeletedKey<'a>),
    /// What came before can't be told any more, for this reason. All keys are to be forgotten: those that are live follow.
    Gap(&'a str),
}

/// A key that is no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeletedKey<'a> {
    /// The key.
    pub key: &'a str,
    /// Of the delete; of a key that expired, of the record that did.
    pub position: Position,
    /// The write timestamp of what is at that position, ms since the epoch.
    pub timestamp: i64,
    /// Why.
    pub reason: DeleteReason,
}

/// Why a key is no more. In JSON in lower case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeleteReason {
    /// It was deleted.
    Deleted,
    /// Its time to live has ended.
    Expired,
}

impl<'a> ChangesRequest<'a> {
    pub(super) fn take(input: &mut Input<'a>) -> Result<Self, CallError> {
        Ok(Self {
            since: input.string("since")?,
            prefix: input.string("prefix")?,
            key: input.string("key")?,
            limit: input.int("limit")?,
            wait: wait(input.long("wait")?)?,
            values: input.boolean("values")?,
            initial: input.boolean("initial")?,
        })
    }

    /// Reads it from a call whose client declares the message otherwise.
    pub(super) fn resolved(resolved: &Resolved<'a>) -> Result<Self, CallError> {
        let Resolved { texts: [since, prefix, key, ..], numbers, booleans } = *resolved;
        let limit = i32::try_from(numbers[3]).map_err(|_| DecodeError::OutOfRange("limit"))?;
        let (values, initial) = (booleans[5], booleans[6]);
        Ok(Self { since, prefix, key, limit, wait: wait(numbers[4])?, values, initial })
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        put_string(out, self.since);
        put_string(out, self.prefix);
        put_string(out, self.key);
        put_long(out, self.limit.into());
        put_long(out, i64::try_from(self.wait.as_millis()).unwrap_or(i64::MAX));
        put_bool(out, self.values);
        put_bool(out, self.initial);
    }
}

fn wait(ms: i64) -> Result<Duration, CallError> {
    let ms = u64::try_from(ms).map_err(|_| CallError::Options {
        message: super::Message::ReadChanges,
        reason: format!("wait is {ms} ms; it is 0 for none, or above"),
    })?;
    Ok(Duration::from_millis(ms))
}

impl<'a> ChangePage<'a> {
    pub(super) fn take(input: &mut Input<'a>) -> Result<Self, DecodeError> {
        Ok(Self {
            events: take_array(input, Change::take)?,
            next: input.string("next")?,
            current: input.boolean("current")?,
            positions: take_array(input, take_position)?,
        })
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        put_array(out, &self.events, |out, change| change.encode(out));
        put_string(out, self.next);
        put_bool(out, self.current);
        put_array(out, &self.positions, |out, position| put_position(out, *position));
    }
}

impl<'a> Change<'a> {
    fn take(input: &mut Input<'a>) -> Result<Self, DecodeError> {
        Ok(match input.index(3, "event")? {
            0 => Self::Set(KeyValue::take(input)?, take_position(input)?),
            1 => Self::Deleted(DeletedKey {
                key: input.string("key")?,
                position: take_position(input)?,
                timestamp: input.long("timestamp")?,
                reason: match input.index(2, "reason")? {
                    0 => DeleteReason::Deleted,
                    _ => DeleteReason::Expired,
                },
            }),
            _ => Self::Gap(input.string("reason")?),
        })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Set(record, position) => {
                put_long(out, 0);
                record.encode(out);
                put_position(out, *position);
            }
            Self::Deleted(deleted) => {
                put_long(out, 1);
                put_string(out, deleted.key);
                put_position(out, deleted.position);
                put_long(out, deleted.timestamp);
                put_long(out, deleted.reason as i64);
            }
            Self::Gap(reason) => {
                put_long(out, 2);
                put_string(out, reason);
            }
        }
    }
}
