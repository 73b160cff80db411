//! Answers to the calls with options.

use super::answer::{ReadAnswer, RequestError, ScanPage, WriteAnswer};
use super::answer::{put_array, put_position, take_array, take_position};
use super::protocol::CALL_ERROR_CODES;
use crate::Position;
use crate::avro::{DecodeError, Input, put_long, put_string};
use crate::record::KeyValue;

/// What became of a write that may have had a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum RecordWritten<'a> {
    Written(WrittenAnswer<'a>),
    NotMet(NotMetAnswer<'a>),
}

/// A write that took effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrittenAnswer<'a> {
    /// As a write without options is answered; its position is the version of the key from here on.
    pub write: WriteAnswer<'a>,
    /// Of [`Visible::All`](crate::Visible::All): the members that do not show it yet, `host:port` of their HTTP.
    pub not_visible: Vec<&'a str>,
}

/// The condition of a write did not hold, and nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotMetAnswer<'a> {
    /// The record that is there; `None` if there is no live one.
    pub current: Option<KeyValue<'a>>,
    /// Its version; without one that of the delete marker, or how far the key's partition is applied.
    pub position: Position,
}

/// What became of one operation of a batch with options.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum RecordResult<'a> {
    Read(ReadAnswer<'a>),
    Written(WrittenAnswer<'a>),
    NotMet(NotMetAnswer<'a>),
    Failed(RequestError),
}

/// A page of a scan with options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordPage<'a> {
    /// As a scan without options is answered.
    pub page: ScanPage<'a>,
    /// How far each partition was applied when the page was read.
    pub positions: Vec<Position>,
}

impl<'a> RecordWritten<'a> {
    pub(super) fn take(input: &mut Input<'a>) -> Result<Self, DecodeError> {
        Ok(match input.index(2, "answer")? {
            0 => Self::Written(WrittenAnswer::take(input)?),
            _ => Self::NotMet(NotMetAnswer::take(input)?),
        })
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Written(answer) => {
                put_long(out, 0);
                answer.encode(out);
            }
            Self::NotMet(answer) => {
                put_long(out, 1);
                answer.encode(out);
            }
        }
    }
}

impl<'a> WrittenAnswer<'a> {
    fn take(input: &mut Input<'a>) -> Result<Self, DecodeError> {
        Ok(Self {
            write: WriteAnswer::take(input)?,
            not_visible: take_array(input, |input| input.string("notVisible"))?,
        })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        self.write.encode(out);
        put_array(out, &self.not_visible, |out, member| put_string(out, member));
    }
}

impl<'a> NotMetAnswer<'a> {
    fn take(input: &mut Input<'a>) -> Result<Self, DecodeError> {
        let current = match input.index(2, "current")? {
            0 => None,
            _ => Some(KeyValue::take(input)?),
        };
        Ok(Self { current, position: take_position(input)? })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put_long(out, self.current.is_some().into());
        if let Some(current) = &self.current {
            current.encode(out);
        }
        put_position(out, self.position);
    }
}

impl<'a> RecordResult<'a> {
    pub(super) fn take(input: &mut Input<'a>) -> Result<Self, DecodeError> {
        Ok(match input.index(4, "result")? {
            0 => Self::Read(ReadAnswer::take(input)?),
            1 => Self::Written(WrittenAnswer::take(input)?),
            2 => Self::NotMet(NotMetAnswer::take(input)?),
            _ => Self::Failed(RequestError::take(CALL_ERROR_CODES, input)?),
        })
    }

    /// Appends it as one of the results of [`Answer::RecordBatch`](super::Answer::RecordBatch).
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Read(answer) => {
                put_long(out, 0);
                answer.encode(out);
            }
            Self::Written(answer) => {
                put_long(out, 1);
                answer.encode(out);
            }
            Self::NotMet(answer) => {
                put_long(out, 2);
                answer.encode(out);
            }
            Self::Failed(error) => {
                put_long(out, 3);
                error.encode(CALL_ERROR_CODES, out);
            }
        }
    }
}

impl<'a> RecordPage<'a> {
    pub(super) fn take(input: &mut Input<'a>) -> Result<Self, DecodeError> {
        Ok(Self { page: ScanPage::take(input)?, positions: take_array(input, take_position)? })
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        self.page.encode(out);
        put_array(out, &self.positions, |out, position| put_position(out, *position));
    }
}
