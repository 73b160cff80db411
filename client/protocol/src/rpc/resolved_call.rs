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
    pub booleans: [bool; MAX_OWN_PARAMETERS],
}

impl<'a> Resolved<'a> {
    /// `parameters`: as the client declares them, with the index of ours that each is.
    pub(super) fn take(
        message: Message,
        parameters: &[(Kind, Option<usize>)],
        input: &mut Input<'a>,
    ) -> Result<Self, DecodeError> {
        let (mut texts, mut numbers) = ([""; MAX_OWN_PARAMETERS], [0; MAX_OWN_PARAMETERS]);
        let mut booleans = [false; MAX_OWN_PARAMETERS];
        for (kind, index) in parameters {
            let parameter = parameter(kind, input)?;
            let Some(index) = *index else { continue };
            match parameter {
                Parameter::Text(text) if is_text(message, index) => texts[index] = text,
                Parameter::Number(number) if is_number(message, index) => numbers[index] = number,
                Parameter::Boolean(boolean) if is_boolean(message, index) => booleans[index] = boolean,
                _ => return Err(DecodeError::OutOfRange("parameter")),
            }
        }
        Ok(Self { texts, numbers, booleans })
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

/// All parameters of messages that can be resolved are numbers, booleans or texts.
fn is_text(message: Message, index: usize) -> bool {
    !is_number(message, index) && !is_boolean(message, index)
}

fn is_boolean(message: Message, index: usize) -> bool {
    message == Message::ReadChanges && (index == 5 || index == 6)
}

fn is_number(message: Message, index: usize) -> bool {
    match message {
        Message::SetRecord => index == 2,
        Message::Scan => index == 3,
        Message::ReadRecord => index == 3 || index == 4,
        Message::WriteRecord => index == 2 || index == 6,
        Message::RemoveRecord => index == 4,
        Message::ScanRecords => index == 3 || index == 7 || index == 8,
        Message::ReadChanges => index == 3 || index == 4,
        _ => false,
    }
}

/// A parameter of a foreign declaration.
enum Parameter<'a> {
    Text(&'a str),
    /// A whole one.
    Number(i64),
    Boolean(bool),
    /// What none of ours is.
    Other,
}

fn parameter<'a>(kind: &Kind, input: &mut Input<'a>) -> Result<Parameter<'a>, DecodeError> {
    const FIELD: &str = "parameter";
    Ok(match kind {
        Kind::Null => Parameter::Other,
        Kind::Boolean => Parameter::Boolean(input.boolean(FIELD)?),
        Kind::Int => Parameter::Number(input.int(FIELD)?.into()),
        Kind::Long => Parameter::Number(input.long(FIELD)?),
        Kind::Float => {
            input.take(4, FIELD)?;
            Parameter::Other
        }
        Kind::Double => {
            input.take(8, FIELD)?;
            Parameter::Other
        }
        Kind::Bytes | Kind::String => Parameter::Text(input.string(FIELD)?),
        Kind::Union(branches) => {
            let branch = &branches[input.index(branches.len(), FIELD)?];
            parameter(branch, input)?
        }
    })
}
