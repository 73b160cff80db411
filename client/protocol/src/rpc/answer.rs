//! Answers to calls. Avro specification 1.11, "Call Format".
//!
//! Written by hand, as the calls are: a node writes hundreds of thousands a second, and clients borrow from the bytes.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::changes::ChangePage;
use super::protocol::{CALL_ERROR_CODES, Message, REQUEST_ERROR_CODES};
use super::record_answer::{RecordPage, RecordResult, RecordWritten};
use crate::Position;
use crate::avro::{DecodeError, Input, put_bytes, put_long, put_string};
use crate::record::KeyValue;

/// What a server answers.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Answer<'a> {
    /// To `getValue`.
    Value(Option<&'a str>),
    /// To `setValue` and `delete`.
    Null,
    Read(ReadAnswer<'a>),
    Written(WriteAnswer<'a>),
    Batch(Vec<BatchResult<'a>>),
    Page(ScanPage<'a>),
    RecordWritten(RecordWritten<'a>),
    RecordBatch(Vec<RecordResult<'a>>),
    RecordPage(RecordPage<'a>),
    Changes(ChangePage<'a>),
}

/// Where the answer to a read came from. In JSON it is its [`ServedFrom::name`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "&str", from = "Cow<'_, str>")]
pub enum ServedFrom {
    /// The node's memory.
    Cache,
    /// The node's LMDB store.
    Store,
    /// Another member of the cluster.
    Peer,
}

impl ServedFrom {
    /// All of them, in the order of the RPC's enum.
    pub(super) const ALL: [Self; 3] = [Self::Cache, Self::Store, Self::Peer];

    /// As headers and JSON have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cache => "cache",
            Self::Store => "store",
            Self::Peer => "peer",
        }
    }

    /// The inverse of [`ServedFrom::name`]; a name that this version does not know counts as the store's.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self::ALL.into_iter().find(|known| known.name() == name).unwrap_or(Self::Store)
    }
}

impl From<ServedFrom> for &'static str {
    fn from(served_from: ServedFrom) -> Self {
        served_from.name()
    }
}

impl From<Cow<'_, str>> for ServedFrom {
    fn from(name: Cow<'_, str>) -> Self {
        Self::named(&name)
    }
}

/// What a node knows of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadAnswer<'a> {
    /// `None`: no such key. Its timestamp is the write timestamp.
    pub record: Option<KeyValue<'a>>,
    /// Of the record or the delete marker; else how far the key's partition is applied.
    pub position: Position,
    /// The write timestamp, in ms since the epoch, of the record or marker that decided.
    pub timestamp: Option<i64>,
    /// Where it came from.
    pub served_from: ServedFrom,
}

/// An acknowledged write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteAnswer<'a> {
    /// Its place in the log.
    pub position: Position,
    /// The write timestamp, ms since the epoch.
    pub timestamp: i64,
    /// As [`KeyValue::ttl`].
    pub ttl: i64,
    /// Identifies this write.
    pub uuid: &'a str,
}

/// What became of one operation of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum BatchResult<'a> {
    Read(ReadAnswer<'a>),
    Written(WriteAnswer<'a>),
    Failed(RequestError),
}

/// A page of a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanPage<'a> {
    /// In key order.
    pub records: Vec<(KeyValue<'a>, Position)>,
    /// For the next page; empty at the end.
    pub cursor: &'a str,
}

/// What kind of failure it is, for a program to decide what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// The request is wrong; sent again it stays so.
    BadRequest,
    /// Key, value or record is too large.
    TooLarge,
    /// The node does not know yet; another node, or this one later, will.
    NotReady,
    /// The log did not take the write; it has not taken effect.
    NotTaken,
    /// The log did not acknowledge the write in time; it may still take effect.
    MayTakeEffect,
    /// The node failed.
    Internal,
    /// The node, or the topic that is its log, can't do it. The messages without options say [`ErrorCode::BadRequest`].
    Unsupported,
    /// The key is in a state in which this can't be done. The messages without options say [`ErrorCode::BadRequest`].
    Conflict,
}

pub(super) const CODES: [ErrorCode; CALL_ERROR_CODES] = [
    ErrorCode::BadRequest,
    ErrorCode::TooLarge,
    ErrorCode::NotReady,
    ErrorCode::NotTaken,
    ErrorCode::MayTakeEffect,
    ErrorCode::Internal,
    ErrorCode::Unsupported,
    ErrorCode::Conflict,
];

/// The protocol's declared error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RequestError {
    /// What kind it is.
    pub code: ErrorCode,
    /// What went wrong, for people.
    pub message: String,
}

/// An answer that is an error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// One that the protocol declares.
    #[error(transparent)]
    Declared(#[from] RequestError),
    /// A text: all that the original messages have, and what went wrong with the call itself.
    #[error("{0}")]
    Text(String),
}

impl<'a> Answer<'a> {
    /// Reads the answer to a call of `message`.
    ///
    /// # Errors
    /// When the bytes are no such answer. The inner error is the server's.
    pub fn decode(message: Message, answer: &'a [u8]) -> Result<Result<Self, Failure>, DecodeError> {
        let mut input = Input(answer);
        input.skip_metadata()?;
        if input.boolean("error flag")? {
            let failure = failure(message, &mut input)?;
            input.end()?;
            return Ok(Err(failure));
        }
        let answer = match message {
            Message::GetValue => Self::Value(match input.index(2, "value")? {
                0 => None,
                _ => Some(input.string("value")?),
            }),
            Message::SetValue | Message::Delete => Self::Null,
            Message::GetRecord | Message::ReadRecord => Self::Read(ReadAnswer::take(&mut input)?),
            Message::SetRecord | Message::DeleteRecord => Self::Written(WriteAnswer::take(&mut input)?),
            Message::Batch => Self::Batch(take_array(&mut input, |input| {
                Ok(match input.index(3, "result")? {
                    0 => BatchResult::Read(ReadAnswer::take(input)?),
                    1 => BatchResult::Written(WriteAnswer::take(input)?),
                    _ => BatchResult::Failed(RequestError::take(REQUEST_ERROR_CODES, input)?),
                })
            })?),
            Message::Scan => Self::Page(ScanPage::take(&mut input)?),
            Message::WriteRecord | Message::RemoveRecord => {
                Self::RecordWritten(RecordWritten::take(&mut input)?)
            }
            Message::BatchRecords => Self::RecordBatch(take_array(&mut input, RecordResult::take)?),
            Message::ScanRecords => Self::RecordPage(RecordPage::take(&mut input)?),
            Message::ReadChanges => Self::Changes(ChangePage::take(&mut input)?),
        };
        input.end()?;
        Ok(Ok(answer))
    }

    /// Appends the answer's bytes to `out`, with empty metadata.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&GOOD);
        match self {
            Self::Value(None) => put_long(out, 0),
            Self::Value(Some(value)) => {
                put_long(out, 1);
                put_string(out, value);
            }
            Self::Null => {}
            Self::Read(answer) => answer.encode(out),
            Self::Written(answer) => answer.encode(out),
            Self::Batch(results) => put_array(out, results, |out, result| result.encode(out)),
            Self::Page(page) => page.encode(out),
            Self::RecordWritten(answer) => answer.encode(out),
            Self::RecordBatch(results) => put_array(out, results, |out, result| result.encode(out)),
            Self::RecordPage(page) => page.encode(out),
            Self::Changes(page) => page.encode(out),
        }
    }
}

/// Empty metadata, no error.
const GOOD: [u8; 2] = [0, 0];

/// Empty metadata, an error.
const BAD: [u8; 2] = [0, 1];

/// Appends [`Answer::Value`] of a value that is UTF-8, which is not looked at.
pub fn put_value_answer(out: &mut Vec<u8>, value: &[u8]) {
    out.extend_from_slice(&GOOD);
    put_long(out, 1);
    put_bytes(out, value);
}

/// Appends [`Answer::Batch`] or [`Answer::RecordBatch`] of so many results, without a list of them: `put` appends the next one by its
/// `encode`.
pub fn put_batch_answer(out: &mut Vec<u8>, count: usize, mut put: impl FnMut(&mut Vec<u8>)) {
    out.extend_from_slice(&GOOD);
    put_items(out, 0..count, |out, _| put(out));
}

impl BatchResult<'_> {
    /// Appends it as one of the results of [`Answer::Batch`].
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
            Self::Failed(error) => {
                put_long(out, 2);
                error.encode(REQUEST_ERROR_CODES, out);
            }
        }
    }
}

impl Failure {
    /// Appends it as the answer to a call of `message`; `None` for a call whose message could not be read.
    pub fn encode(&self, message: Option<Message>, out: &mut Vec<u8>) {
        out.extend_from_slice(&BAD);
        // A union: the string that is always declared, then what the message declares.
        let codes = message.map_or(0, Message::error_codes);
        match self {
            Self::Declared(error) if codes > 0 => {
                put_long(out, 1);
                error.encode(codes, out);
            }
            Self::Declared(RequestError { message: text, .. }) | Self::Text(text) => {
                put_long(out, 0);
                put_string(out, text);
            }
        }
    }
}

fn failure(message: Message, input: &mut Input<'_>) -> Result<Failure, DecodeError> {
    let branches = if message.declares_errors() { 2 } else { 1 };
    Ok(match input.index(branches, "error")? {
        0 => Failure::Text(input.string("error")?.to_owned()),
        _ => RequestError::take(message.error_codes(), input)?.into(),
    })
}

impl RequestError {
    /// `codes`: how many the message declares.
    pub(super) fn take(codes: usize, input: &mut Input<'_>) -> Result<Self, DecodeError> {
        let code = CODES[input.index(codes, "code")?];
        Ok(Self { code, message: input.string("message")?.to_owned() })
    }

    /// `codes`: how many the message declares.
    pub(super) fn encode(&self, codes: usize, out: &mut Vec<u8>) {
        let code = if (self.code as usize) < codes { self.code } else { ErrorCode::BadRequest };
        put_long(out, code as i64);
        put_string(out, &self.message);
    }
}

impl<'a> ReadAnswer<'a> {
    pub(super) fn take(input: &mut Input<'a>) -> Result<Self, DecodeError> {
        Ok(Self {
            record: match input.index(2, "record")? {
                0 => None,
                _ => Some(KeyValue::take(input)?),
            },
            position: take_position(input)?,
            timestamp: match input.index(2, "timestamp")? {
                0 => None,
                _ => Some(input.long("timestamp")?),
            },
            served_from: ServedFrom::ALL[input.index(ServedFrom::ALL.len(), "servedFrom")?],
        })
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        put_long(out, self.record.is_some().into());
        if let Some(record) = &self.record {
            record.encode(out);
        }
        put_position(out, self.position);
        put_long(out, self.timestamp.is_some().into());
        if let Some(timestamp) = self.timestamp {
            put_long(out, timestamp);
        }
        put_long(out, self.served_from as i64);
    }
}

impl<'a> WriteAnswer<'a> {
    pub(super) fn take(input: &mut Input<'a>) -> Result<Self, DecodeError> {
        Ok(Self {
            position: take_position(input)?,
            timestamp: input.long("timestamp")?,
            ttl: input.long("ttl")?,
            uuid: input.string("uuid")?,
        })
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        put_position(out, self.position);
        put_long(out, self.timestamp);
        put_long(out, self.ttl);
        put_string(out, self.uuid);
    }
}

impl<'a> ScanPage<'a> {
    pub(super) fn take(input: &mut Input<'a>) -> Result<Self, DecodeError> {
        let records = take_array(input, |input| Ok((KeyValue::take(input)?, take_position(input)?)))?;
        Ok(Self { records, cursor: input.string("cursor")? })
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        put_array(out, &self.records, |out, (record, position)| {
            record.encode(out);
            put_position(out, *position);
        });
        put_string(out, self.cursor);
    }
}

pub(super) fn take_position(input: &mut Input<'_>) -> Result<Position, DecodeError> {
    Ok(Position { partition: input.int("partition")?, offset: input.long("offset")? })
}

pub(super) fn put_position(out: &mut Vec<u8>, position: Position) {
    put_long(out, position.partition.into());
    put_long(out, position.offset);
}

pub(super) fn put_array<T>(out: &mut Vec<u8>, items: &[T], put: impl FnMut(&mut Vec<u8>, &T)) {
    put_items(out, items.iter(), put);
}

fn put_items<T>(
    out: &mut Vec<u8>,
    items: impl ExactSizeIterator<Item = T>,
    mut put: impl FnMut(&mut Vec<u8>, T),
) {
    if items.len() > 0 {
        put_long(out, items.len().cast_signed() as i64);
        items.for_each(|item| put(out, item));
    }
    put_long(out, 0);
}

pub(super) fn take_array<'a, T>(
    input: &mut Input<'a>,
    mut take: impl FnMut(&mut Input<'a>) -> Result<T, DecodeError>,
) -> Result<Vec<T>, DecodeError> {
    let mut items = Vec::new();
    loop {
        let count = input.block("array")?;
        if count == 0 {
            return Ok(items);
        }
        for _ in 0..count {
            items.push(take(input)?);
        }
    }
}
