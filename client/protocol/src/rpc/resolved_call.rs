//! The parameters of a call whose client declares its message otherwise than we do. Avro specification 1.11, "Schema
//! Resolution".

use super::protocol::{Kind, Message};
use super::record_call::Texts;
use super::request::ScanRequest;
use crate::avro::{DecodeError, Input};

/// The parameters of a call, each at the place that it has in our own declaration.
pub(super) struct Resolved<'a> {
    pub texts: [&'a str; MAX_OWN_PARAMETERS],
    pub numbers: [i64; MAX_OWN_PARAMETERS],
}

impl<'a> Resolved<'a> {
    /// `parameters`: as the client declares them, with the index of ours that each is.
    pub(super) fn take(
        message: Message,
        parameters: &[(Kind, Option<usize>)],
        input: &mut Input<'a>,
    ) -> Result<Self, DecodeError> {
        let (mut texts, mut numbers) = ([""; MAX_OWN_PARAMETERS], [0; MAX_OWN_PARAMETERS]);
        for (kind, index) in parameters {
            let (text, number) = parameter(kind, input)?;
            let Some(index) = *index else { continue };
            match (text, number) {
                (Some(text), None) if !is_number(message, index) => texts[index] = text,
                (None, Some(number)) if is_number(message, index) => numbers[index] = number,
                _ => return Err(DecodeError::OutOfRange("parameter")),
            }
        }
        Ok(Self { texts, numbers })
    }

    /// The options of a read, of which `first` is the first parameter.
    pub(super) fn read(&self, first: usize) -> Texts<'a> {
        Texts {
            consistency: self.texts[first],
            position: self.texts[first + 1],
            max_staleness: self.numbers[first + 2],
            timeout: self.numbers[first + 3],
            ..Texts::default()
        }
    }

    /// The options of a write, of which `first` is the first parameter.
    pub(super) fn write(&self, first: usize) -> Texts<'a> {
        Texts {
            condition: self.texts[first],
            uuid: self.texts[first + 1],
            visible: self.texts[first + 2],
            timeout: self.numbers[first + 3],
            ..Texts::default()
        }
    }

    /// The parameters of a scan, which are the first ones.
    pub(super) fn scan(&self) -> Result<ScanRequest<'a>, DecodeError> {
        let [prefix, start, end, _, cursor, ..] = self.texts;
        let limit = i32::try_from(self.numbers[3]).map_err(|_| DecodeError::OutOfRange("limit"))?;
        Ok(ScanRequest { prefix, start, end, limit, cursor })
    }
}

/// Parameters that a message of ours has, at most.
const MAX_OWN_PARAMETERS: usize = 9;

/// Whether a parameter of ours is a number; all others of messages that can be resolved are texts.
fn is_number(message: Message, index: usize) -> bool {
    match message {
        Message::SetRecord => index == 2,
        Message::Scan => index == 3,
        Message::ReadRecord => index == 3 || index == 4,
        Message::WriteRecord => index == 2 || index == 6,
        Message::RemoveRecord => index == 4,
        Message::ScanRecords => index == 3 || index == 7 || index == 8,
        _ => false,
    }
}

/// A parameter of a foreign declaration: a text, or a whole number, or neither.
fn parameter<'a>(kind: &Kind, input: &mut Input<'a>) -> Result<(Option<&'a str>, Option<i64>), DecodeError> {
    const FIELD: &str = "parameter";
    Ok(match kind {
        Kind::Null => (None, None),
        Kind::Boolean => {
            input.boolean(FIELD)?;
            (None, None)
        }
        Kind::Int => (None, Some(input.int(FIELD)?.into())),
        Kind::Long => (None, Some(input.long(FIELD)?)),
        Kind::Float => {
            input.take(4, FIELD)?;
            (None, None)
        }
        Kind::Double => {
            input.take(8, FIELD)?;
            (None, None)
        }
        Kind::Bytes | Kind::String => (Some(input.string(FIELD)?), None),
        Kind::Union(branches) => {
            let branch = &branches[input.index(branches.len(), FIELD)?];
            parameter(branch, input)?
        }
    })
}
