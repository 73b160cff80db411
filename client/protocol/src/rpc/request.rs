//! Calls: what follows the handshake in a client's message. Avro specification 1.11, "Call Format".
//!
//! Written by hand, as the record is: a node reads hundreds of thousands a second and borrows from the bytes.

use super::answer::put_array;
use super::protocol::{ForeignProtocol, Kind, Message, Parameters};
use super::record_call::{RecordOperation, Texts, put_read, put_write};
use crate::avro::{DecodeError, Input, put_long, put_string};
use crate::consistency::{ReadOptions, WriteOptions};

/// A batch of more operations is refused.
pub const MAX_BATCH_OPERATIONS: usize = 10_000;

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // each is as in the protocol's text
pub enum Request<'a> {
    GetValue {
        key: &'a str,
    },
    SetValue {
        key: &'a str,
        value: &'a str,
    },
    Delete {
        key: &'a str,
    },
    GetRecord {
        key: &'a str,
    },
    /// `ttl`: ms to live, 0 for ever.
    SetRecord {
        key: &'a str,
        value: &'a str,
        ttl: i64,
    },
    DeleteRecord {
        key: &'a str,
    },
    Batch(Vec<Operation<'a>>),
    Scan(ScanRequest<'a>),
    ReadRecord {
        key: &'a str,
        read: ReadOptions<'a>,
    },
    /// `ttl`: ms to live, 0 for ever.
    WriteRecord {
        key: &'a str,
        value: &'a str,
        ttl: i64,
        write: WriteOptions<'a>,
    },
    RemoveRecord {
        key: &'a str,
        write: WriteOptions<'a>,
    },
    BatchRecords(Vec<RecordOperation<'a>>),
    ScanRecords {
        scan: ScanRequest<'a>,
        read: ReadOptions<'a>,
    },
}

/// One of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Operation<'a> {
    Get {
        key: &'a str,
    },
    /// `ttl`: ms to live, 0 for ever.
    Set {
        key: &'a str,
        value: &'a str,
        ttl: i64,
    },
    Delete {
        key: &'a str,
    },
}

/// Which keys to scan, in the order of their UTF-8 bytes. Empty texts stand for nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScanRequest<'a> {
    /// What keys begin with.
    pub prefix: &'a str,
    /// The first key, inclusive.
    pub start: &'a str,
    /// The last key, exclusive.
    pub end: &'a str,
    /// Records in a page, at most.
    pub limit: i32,
    /// Of the page before.
    pub cursor: &'a str,
}

/// Why a call can't be answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// Its bytes.
    #[error("the call can't be read: {0}")]
    Decode(#[from] DecodeError),
    /// Its message, or the client's declaration of it.
    #[error("{0}")]
    Message(String),
    /// Its size.
    #[error("a batch has at most {MAX_BATCH_OPERATIONS} operations")]
    BatchTooLong,
    /// One of its options.
    #[error("{reason}")]
    Options {
        /// Whose options.
        message: Message,
        /// What is wrong, as a sentence for the client.
        reason: String,
    },
}

impl<'a> Request<'a> {
    /// Reads a call; `None` is a ping, which has an empty name and, like a handshake alone, an empty answer. `foreign` is
    /// the client's protocol where it is not ours.
    ///
    /// # Errors
    /// Says what is wrong; the connection stays usable, as the frame tells where the next call begins.
    pub fn decode(call: &'a [u8], foreign: Option<&ForeignProtocol>) -> Result<Option<Self>, CallError> {
        let mut input = Input(call);
        input.skip_metadata()?;
        let name = input.string("message name")?;
        if name.is_empty() {
            return Ok(None);
        }
        let request = match foreign {
            None => {
                let message = Message::named(name)
                    .ok_or_else(|| CallError::Message(format!("No message named {name} on this server")))?;
                Self::take(message, &mut input)?
            }
            Some(foreign) => {
                let declared = foreign.declared(name).map_err(CallError::Message)?;
                match &declared.parameters {
                    Parameters::AsOurs => Self::take(declared.message, &mut input)?,
                    Parameters::Resolved(parameters) => {
                        Self::resolve(declared.message, parameters, &mut input)?
                    }
                }
            }
        };
        input.end()?;
        Ok(Some(request))
    }

    /// Which message a call is of, from its first bytes; `None` if they do not tell.
    #[must_use]
    pub fn message_of(call: &[u8], foreign: Option<&ForeignProtocol>) -> Option<Message> {
        let mut input = Input(call);
        input.skip_metadata().ok()?;
        let name = input.string("message name").ok()?;
        match foreign {
            None => Message::named(name),
            Some(foreign) => Some(foreign.declared(name).ok()?.message),
        }
    }

    fn take(message: Message, input: &mut Input<'a>) -> Result<Self, CallError> {
        Ok(match message {
            Message::GetValue => Self::GetValue { key: input.string("key")? },
            Message::SetValue => Self::SetValue { key: input.string("key")?, value: input.string("value")? },
            Message::Delete => Self::Delete { key: input.string("key")? },
            Message::GetRecord => Self::GetRecord { key: input.string("key")? },
            Message::SetRecord => Self::SetRecord {
                key: input.string("key")?,
                value: input.string("value")?,
                ttl: input.long("ttl")?,
            },
            Message::DeleteRecord => Self::DeleteRecord { key: input.string("key")? },
            Message::Batch => Self::Batch(operations(input, |input, _| Ok(Operation::take(input)?))?),
            Message::Scan => Self::Scan(ScanRequest::take(input)?),
            Message::ReadRecord => {
                let key = input.string("key")?;
                Self::ReadRecord { key, read: read_options(message, &Texts::take_read(input)?)? }
            }
            Message::WriteRecord => {
                let (key, value, ttl) = (input.string("key")?, input.string("value")?, input.long("ttl")?);
                let write = write_options(message, &Texts::take_write(input)?)?;
                Self::WriteRecord { key, value, ttl, write }
            }
            Message::RemoveRecord => {
                let key = input.string("key")?;
                Self::RemoveRecord { key, write: write_options(message, &Texts::take_write(input)?)? }
            }
            Message::BatchRecords => Self::BatchRecords(operations(input, RecordOperation::take)?),
            Message::ScanRecords => {
                let scan = ScanRequest::take(input)?;
                Self::ScanRecords { scan, read: read_options(message, &Texts::take_read(input)?)? }
            }
        })
    }

    fn resolve(
        message: Message,
        parameters: &[(Kind, Option<usize>)],
        input: &mut Input<'a>,
    ) -> Result<Self, CallError> {
        let (mut texts, mut numbers) = ([""; MAX_OWN_PARAMETERS], [0; MAX_OWN_PARAMETERS]);
        for (kind, index) in parameters {
            let (text, number) = parameter(kind, input)?;
            let Some(index) = *index else { continue };
            match (text, number) {
                (Some(text), None) if !is_number(message, index) => texts[index] = text,
                (None, Some(number)) if is_number(message, index) => numbers[index] = number,
                _ => return Err(DecodeError::OutOfRange("parameter").into()),
            }
        }
        let [key, value, ..] = texts;
        let write_texts = |first: usize| Texts {
            condition: texts[first],
            uuid: texts[first + 1],
            visible: texts[first + 2],
            timeout: numbers[first + 3],
            ..Texts::default()
        };
        let read_texts = |first: usize| Texts {
            consistency: texts[first],
            position: texts[first + 1],
            max_staleness: numbers[first + 2],
            timeout: numbers[first + 3],
            ..Texts::default()
        };
        let scan = || {
            let limit = i32::try_from(numbers[3]).map_err(|_| DecodeError::OutOfRange("limit"))?;
            Ok::<_, DecodeError>(ScanRequest {
                prefix: key,
                start: value,
                end: texts[2],
                limit,
                cursor: texts[4],
            })
        };
        Ok(match message {
            Message::GetValue => Self::GetValue { key },
            Message::SetValue => Self::SetValue { key, value },
            Message::Delete => Self::Delete { key },
            Message::GetRecord => Self::GetRecord { key },
            Message::SetRecord => Self::SetRecord { key, value, ttl: numbers[2] },
            Message::DeleteRecord => Self::DeleteRecord { key },
            Message::Scan => Self::Scan(scan()?),
            Message::ReadRecord => Self::ReadRecord { key, read: read_options(message, &read_texts(1))? },
            Message::WriteRecord => {
                let write = write_options(message, &write_texts(3))?;
                Self::WriteRecord { key, value, ttl: numbers[2], write }
            }
            Message::RemoveRecord => {
                Self::RemoveRecord { key, write: write_options(message, &write_texts(1))? }
            }
            Message::ScanRecords => {
                Self::ScanRecords { scan: scan()?, read: read_options(message, &read_texts(5))? }
            }
            // Their one parameter is no primitive, so it was not resolved.
            Message::Batch | Message::BatchRecords => {
                return Err(DecodeError::OutOfRange("operations").into());
            }
        })
    }

    /// Appends the call's bytes to `out`, with empty metadata.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_long(out, 0);
        put_string(out, self.message().name());
        match self {
            Self::GetValue { key }
            | Self::Delete { key }
            | Self::GetRecord { key }
            | Self::DeleteRecord { key } => {
                put_string(out, key);
            }
            Self::SetValue { key, value } => {
                put_string(out, key);
                put_string(out, value);
            }
            Self::SetRecord { key, value, ttl } => {
                put_string(out, key);
                put_string(out, value);
                put_long(out, *ttl);
            }
            Self::Batch(operations) => put_array(out, operations, |out, operation| operation.encode(out)),
            Self::Scan(scan) => scan.encode(out),
            Self::ReadRecord { key, read } => {
                put_string(out, key);
                put_read(out, read);
            }
            Self::WriteRecord { key, value, ttl, write } => {
                put_string(out, key);
                put_string(out, value);
                put_long(out, *ttl);
                put_write(out, write);
            }
            Self::RemoveRecord { key, write } => {
                put_string(out, key);
                put_write(out, write);
            }
            Self::BatchRecords(operations) => {
                put_array(out, operations, |out, operation| operation.encode(out));
            }
            Self::ScanRecords { scan, read } => {
                scan.encode(out);
                put_read(out, read);
            }
        }
    }

    /// Which message of the protocol it is.
    #[must_use]
    pub fn message(&self) -> Message {
        match self {
            Self::GetValue { .. } => Message::GetValue,
            Self::SetValue { .. } => Message::SetValue,
            Self::Delete { .. } => Message::Delete,
            Self::GetRecord { .. } => Message::GetRecord,
            Self::SetRecord { .. } => Message::SetRecord,
            Self::DeleteRecord { .. } => Message::DeleteRecord,
            Self::Batch(_) => Message::Batch,
            Self::Scan(_) => Message::Scan,
            Self::ReadRecord { .. } => Message::ReadRecord,
            Self::WriteRecord { .. } => Message::WriteRecord,
            Self::RemoveRecord { .. } => Message::RemoveRecord,
            Self::BatchRecords(_) => Message::BatchRecords,
            Self::ScanRecords { .. } => Message::ScanRecords,
        }
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

fn read_options<'a>(message: Message, texts: &Texts<'a>) -> Result<ReadOptions<'a>, CallError> {
    texts.read().map_err(|reason| CallError::Options { message, reason })
}

fn write_options<'a>(message: Message, texts: &Texts<'a>) -> Result<WriteOptions<'a>, CallError> {
    texts.write().map_err(|reason| CallError::Options { message, reason })
}

impl<'a> ScanRequest<'a> {
    fn take(input: &mut Input<'a>) -> Result<Self, DecodeError> {
        Ok(Self {
            prefix: input.string("prefix")?,
            start: input.string("start")?,
            end: input.string("end")?,
            limit: input.int("limit")?,
            cursor: input.string("cursor")?,
        })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put_string(out, self.prefix);
        put_string(out, self.start);
        put_string(out, self.end);
        put_long(out, self.limit.into());
        put_string(out, self.cursor);
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

/// `take` also gets the number of those before.
fn operations<'a, T>(
    input: &mut Input<'a>,
    take: impl Fn(&mut Input<'a>, usize) -> Result<T, CallError>,
) -> Result<Vec<T>, CallError> {
    let mut operations = Vec::new();
    loop {
        let count = input.block("operations")?;
        if count == 0 {
            return Ok(operations);
        }
        if operations.len() + count > MAX_BATCH_OPERATIONS {
            return Err(CallError::BatchTooLong);
        }
        for _ in 0..count {
            operations.push(take(input, operations.len())?);
        }
    }
}

impl<'a> Operation<'a> {
    fn take(input: &mut Input<'a>) -> Result<Self, DecodeError> {
        let kind = input.index(3, "kind")?;
        let (key, value, ttl) = (input.string("key")?, input.string("value")?, input.long("ttl")?);
        Ok(match kind {
            0 => Self::Get { key },
            1 => Self::Set { key, value, ttl },
            _ => Self::Delete { key },
        })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let (kind, key, value, ttl) = match *self {
            Self::Get { key } => (0, key, "", 0),
            Self::Set { key, value, ttl } => (1, key, value, ttl),
            Self::Delete { key } => (2, key, "", 0),
        };
        put_long(out, kind);
        put_string(out, key);
        put_string(out, value);
        put_long(out, ttl);
    }

    /// The key that it is about.
    #[must_use]
    pub fn key(&self) -> &'a str {
        match self {
            Self::Get { key } | Self::Set { key, .. } | Self::Delete { key } => key,
        }
    }
}
