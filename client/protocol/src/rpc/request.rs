//! Calls: what follows the handshake in a client's message. Avro specification 1.11, "Call Format".
//!
//! Written by hand, as the record is: a node reads hundreds of thousands a second and borrows from the bytes.

use super::answer::put_array;
use super::changes::ChangesRequest;
use super::protocol::{ForeignProtocol, Message, Parameters};
use super::record_call::{
    Texts, put_operation, put_plain_operation, put_read, put_write, take_operation, take_plain_operation,
};
use super::resolved_call::Resolved;
use crate::avro::{DecodeError, Input, put_long, put_string};
use crate::consistency::{ReadOptions, WriteOptions};
use crate::operation::Operation;
use crate::token::AUTHORIZATION;

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
    /// Of plain operations: their options are not sent.
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
    BatchRecords(Vec<Operation<'a>>),
    ScanRecords {
        scan: ScanRequest<'a>,
        read: ReadOptions<'a>,
    },
    ReadChanges(ChangesRequest<'a>),
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
                        let resolved = Resolved::take(declared.message, parameters, &mut input)?;
                        Self::resolve(declared.message, &resolved)?
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

    /// What a call's metadata has under [`AUTHORIZATION`]; `None` if nothing, or if it can't be read.
    #[must_use]
    pub fn authorization(call: &'a [u8]) -> Option<&'a [u8]> {
        // Most have no metadata at all.
        if call.first() == Some(&0) {
            return None;
        }
        Input(call).take_metadata(AUTHORIZATION).ok()?
    }

    /// The key of a call that reads one, by a client whose protocol is ours, for who only looks ahead; `None` for other calls. The
    /// rest of the call is not looked at.
    #[must_use]
    pub fn peek_read_key(call: &'a [u8]) -> Option<&'a [u8]> {
        let mut input = Input(call);
        input.skip_metadata().ok()?;
        match input.bytes("message name").ok()? {
            b"getValue" | b"getRecord" | b"readRecord" => input.bytes("key").ok(),
            _ => None,
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
            Message::Batch => Self::Batch(operations(input, |input, _| Ok(take_plain_operation(input)?))?),
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
            Message::BatchRecords => Self::BatchRecords(operations(input, take_operation)?),
            Message::ScanRecords => {
                let scan = ScanRequest::take(input)?;
                Self::ScanRecords { scan, read: read_options(message, &Texts::take_read(input)?)? }
            }
            Message::ReadChanges => Self::ReadChanges(ChangesRequest::take(input)?),
        })
    }

    fn resolve(message: Message, resolved: &Resolved<'a>) -> Result<Self, CallError> {
        let Resolved { texts: [key, value, ..], numbers, .. } = *resolved;
        let read = |first| read_options(message, &resolved.read(first));
        let write = |first| write_options(message, &resolved.write(first));
        Ok(match message {
            Message::GetValue => Self::GetValue { key },
            Message::SetValue => Self::SetValue { key, value },
            Message::Delete => Self::Delete { key },
            Message::GetRecord => Self::GetRecord { key },
            Message::SetRecord => Self::SetRecord { key, value, ttl: numbers[2] },
            Message::DeleteRecord => Self::DeleteRecord { key },
            Message::Scan => Self::Scan(resolved.scan()?),
            Message::ReadRecord => Self::ReadRecord { key, read: read(1)? },
            Message::WriteRecord => Self::WriteRecord { key, value, ttl: numbers[2], write: write(3)? },
            Message::RemoveRecord => Self::RemoveRecord { key, write: write(1)? },
            Message::ScanRecords => Self::ScanRecords { scan: resolved.scan()?, read: read(5)? },
            Message::ReadChanges => Self::ReadChanges(ChangesRequest::resolved(resolved)?),
            // Their one parameter is no primitive, so it was not resolved.
            Message::Batch | Message::BatchRecords => {
                return Err(DecodeError::OutOfRange("operations").into());
            }
        })
    }

    /// Appends the call's bytes to `out`, with empty metadata.
    pub fn encode(&self, out: &mut Vec<u8>) {
        self.encode_as(None, out);
    }

    /// Appends the call's bytes to `out`, with what authorizes it, `Bearer TOKEN`, in its metadata.
    pub fn encode_as(&self, authorization: Option<&str>, out: &mut Vec<u8>) {
        if let Some(authorization) = authorization {
            put_long(out, 1);
            put_string(out, AUTHORIZATION);
            put_string(out, authorization);
        }
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
            Self::Batch(operations) => put_array(out, operations, put_plain_operation),
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
            Self::BatchRecords(operations) => put_array(out, operations, put_operation),
            Self::ScanRecords { scan, read } => {
                scan.encode(out);
                put_read(out, read);
            }
            Self::ReadChanges(changes) => changes.encode(out),
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
            Self::ReadChanges(_) => Message::ReadChanges,
        }
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
