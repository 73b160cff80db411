//! Calls and answers: what follows the handshake in a message. Avro specification 1.11, "Call Format".
//!
//! Written by hand, as the record is: a node reads and writes hundreds of thousands a second and borrows from the bytes.

use serde::Serialize;

use super::protocol::{ForeignProtocol, Kind, Message, Parameters};
use crate::Position;
use crate::avro::{DecodeError, Input, put_long, put_string};
use crate::record::KeyValue;

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
}

/// Where the answer to a read came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ServedFrom {
    /// The node's memory.
    Cache,
    /// The node's LMDB store.
    Store,
    /// Another member of the cluster.
    Peer,
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
}

const CODES: [ErrorCode; 6] = [
    ErrorCode::BadRequest,
    ErrorCode::TooLarge,
    ErrorCode::NotReady,
    ErrorCode::NotTaken,
    ErrorCode::MayTakeEffect,
    ErrorCode::Internal,
];
const SERVED_FROM: [ServedFrom; 3] = [ServedFrom::Cache, ServedFrom::Store, ServedFrom::Peer];

/// The protocol's declared error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RequestError {
    /// What kind it is.
    pub code: ErrorCode,
    /// A sentence.
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
            Message::Batch => Self::Batch(operations(input)?),
            Message::Scan => Self::Scan(ScanRequest {
                prefix: input.string("prefix")?,
                start: input.string("start")?,
                end: input.string("end")?,
                limit: input.int("limit")?,
                cursor: input.string("cursor")?,
            }),
        })
    }

    fn resolve(
        message: Message,
        parameters: &[(Kind, Option<usize>)],
        input: &mut Input<'a>,
    ) -> Result<Self, CallError> {
        let (mut texts, mut numbers) = ([""; 5], [0; 5]);
        for (kind, index) in parameters {
            let (text, number) = parameter(kind, input)?;
            let Some(index) = *index else { continue };
            let is_number = matches!((message, index), (Message::SetRecord, 2) | (Message::Scan, 3));
            match (text, number) {
                (Some(text), None) if !is_number => texts[index] = text,
                (None, Some(number)) if is_number => numbers[index] = number,
                _ => return Err(DecodeError::OutOfRange("parameter").into()),
            }
        }
        let [key, value, end, ..] = texts;
        Ok(match message {
            Message::GetValue => Self::GetValue { key },
            Message::SetValue => Self::SetValue { key, value },
            Message::Delete => Self::Delete { key },
            Message::GetRecord => Self::GetRecord { key },
            Message::SetRecord => Self::SetRecord { key, value, ttl: numbers[2] },
            Message::DeleteRecord => Self::DeleteRecord { key },
            Message::Scan => Self::Scan(ScanRequest {
                prefix: key,
                start: value,
                end,
                limit: i32::try_from(numbers[3]).map_err(|_| DecodeError::OutOfRange("limit"))?,
                cursor: texts[4],
            }),
            // Its one parameter is no primitive, so it was not resolved.
            Message::Batch => return Err(DecodeError::OutOfRange("operations").into()),
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
            Self::Scan(scan) => {
                put_string(out, scan.prefix);
                put_string(out, scan.start);
                put_string(out, scan.end);
                put_long(out, scan.limit.into());
                put_string(out, scan.cursor);
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
        }
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

fn operations<'a>(input: &mut Input<'a>) -> Result<Vec<Operation<'a>>, CallError> {
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
            operations.push(Operation::take(input)?);
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
            Message::GetRecord => Self::Read(ReadAnswer::take(&mut input)?),
            Message::SetRecord | Message::DeleteRecord => Self::Written(WriteAnswer::take(&mut input)?),
            Message::Batch => Self::Batch(take_array(&mut input, |input| {
                Ok(match input.index(3, "result")? {
                    0 => BatchResult::Read(ReadAnswer::take(input)?),
                    1 => BatchResult::Written(WriteAnswer::take(input)?),
                    _ => BatchResult::Failed(RequestError::take(input)?),
                })
            })?),
            Message::Scan => {
                let records =
                    take_array(&mut input, |input| Ok((KeyValue::take(input)?, take_position(input)?)))?;
                Self::Page(ScanPage { records, cursor: input.string("cursor")? })
            }
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
            Self::Batch(results) => put_array(out, results, |out, result| match result {
                BatchResult::Read(answer) => {
                    put_long(out, 0);
                    answer.encode(out);
                }
                BatchResult::Written(answer) => {
                    put_long(out, 1);
                    answer.encode(out);
                }
                BatchResult::Failed(error) => {
                    put_long(out, 2);
                    error.encode(out);
                }
            }),
            Self::Page(page) => {
                put_array(out, &page.records, |out, (record, position)| {
                    record.encode(out);
                    put_position(out, *position);
                });
                put_string(out, page.cursor);
            }
        }
    }
}

/// Empty metadata, no error.
const GOOD: [u8; 2] = [0, 0];
/// Empty metadata, an error.
const BAD: [u8; 2] = [0, 1];

/// Appends [`Answer::Value`] of a value that is encoded already, as [`KeyValue::value_field`] finds it.
pub fn put_value_answer(out: &mut Vec<u8>, value_field: &[u8]) {
    out.extend_from_slice(&GOOD);
    put_long(out, 1);
    out.extend_from_slice(value_field);
}

impl Failure {
    /// Appends it as the answer to a call of `message`; `None` for a call whose message could not be read.
    pub fn encode(&self, message: Option<Message>, out: &mut Vec<u8>) {
        out.extend_from_slice(&BAD);
        // A union: the string that is always declared, then what the message declares.
        match self {
            Self::Declared(error) if message.is_some_and(Message::declares_errors) => {
                put_long(out, 1);
                error.encode(out);
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
        _ => RequestError::take(input)?.into(),
    })
}

impl RequestError {
    fn take(input: &mut Input<'_>) -> Result<Self, DecodeError> {
        let code = CODES[input.index(CODES.len(), "code")?];
        Ok(Self { code, message: input.string("message")?.to_owned() })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put_long(out, self.code as i64);
        put_string(out, &self.message);
    }
}

impl<'a> ReadAnswer<'a> {
    fn take(input: &mut Input<'a>) -> Result<Self, DecodeError> {
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
            served_from: SERVED_FROM[input.index(SERVED_FROM.len(), "servedFrom")?],
        })
    }

    fn encode(&self, out: &mut Vec<u8>) {
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
    fn take(input: &mut Input<'a>) -> Result<Self, DecodeError> {
        Ok(Self {
            position: take_position(input)?,
            timestamp: input.long("timestamp")?,
            ttl: input.long("ttl")?,
            uuid: input.string("uuid")?,
        })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put_position(out, self.position);
        put_long(out, self.timestamp);
        put_long(out, self.ttl);
        put_string(out, self.uuid);
    }
}

fn take_position(input: &mut Input<'_>) -> Result<Position, DecodeError> {
    Ok(Position { partition: input.int("partition")?, offset: input.long("offset")? })
}

fn put_position(out: &mut Vec<u8>, position: Position) {
    put_long(out, position.partition.into());
    put_long(out, position.offset);
}

fn put_array<T>(out: &mut Vec<u8>, items: &[T], mut put: impl FnMut(&mut Vec<u8>, &T)) {
    if !items.is_empty() {
        put_long(out, items.len().cast_signed() as i64);
        for item in items {
            put(out, item);
        }
    }
    put_long(out, 0);
}

fn take_array<'a, T>(
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::OwnedKeyValue;
    use crate::rpc::PROTOCOL;
    use proptest::prelude::*;

    fn texts() -> impl Strategy<Value = String> {
        ".{0,20}"
    }

    prop_compose! {
        fn records()(key in texts(), value in texts(), timestamp: i64, source: i32, ttl: i64, uuid in texts()) -> OwnedKeyValue {
            OwnedKeyValue { key, value, timestamp, source, ttl, uuid }
        }
    }

    /// Encodes and decodes; both ways must agree, and no cut of the bytes may pass.
    fn there_and_back(request: &Request<'_>) {
        let mut bytes = Vec::new();
        request.encode(&mut bytes);
        assert_eq!(Request::decode(&bytes, None), Ok(Some(request.clone())));
        let whole = ForeignProtocol::parse(&PROTOCOL).expect("it is a protocol");
        assert_eq!(Request::decode(&bytes, Some(&whole)), Ok(Some(request.clone())));
        assert!(Request::decode(&bytes[..bytes.len() - 1], None).is_err());
        bytes.push(0);
        assert!(Request::decode(&bytes, None).is_err());
    }

    fn answered(message: Message, answer: &Answer<'_>) {
        let mut bytes = Vec::new();
        answer.encode(&mut bytes);
        assert_eq!(Answer::decode(message, &bytes), Ok(Ok(answer.clone())));
        bytes.push(0);
        assert!(Answer::decode(message, &bytes).is_err());
    }

    proptest! {
        #[test]
        fn requests(key in texts(), value in texts(), other in texts(), ttl: i64, limit: i32, count in 0usize..5) {
            let (key, value, end) = (key.as_str(), value.as_str(), other.as_str());
            there_and_back(&Request::GetValue { key });
            there_and_back(&Request::SetValue { key, value });
            there_and_back(&Request::Delete { key });
            there_and_back(&Request::GetRecord { key });
            there_and_back(&Request::SetRecord { key, value, ttl });
            there_and_back(&Request::DeleteRecord { key });
            there_and_back(&Request::Scan(ScanRequest { prefix: key, start: value, end, limit, cursor: key }));
            let operations = [Operation::Get { key }, Operation::Set { key, value, ttl }, Operation::Delete { key: end }];
            there_and_back(&Request::Batch(operations.into_iter().cycle().take(count).collect()));
        }

        #[test]
        fn answers(
            record in records(), partition: i32, offset: i64, timestamp: Option<i64>, code in 0usize..6, from in 0usize..3,
            value: Option<String>, found: bool, count in 0usize..4,
        ) {
            let position = Position { partition, offset };
            let record = record.as_borrowed();
            let read = ReadAnswer { record: found.then_some(record), position, timestamp, served_from: SERVED_FROM[from] };
            let written = WriteAnswer { position, timestamp: record.timestamp, ttl: record.ttl, uuid: record.uuid };
            let error = RequestError { code: CODES[code], message: record.value.to_owned() };
            answered(Message::GetValue, &Answer::Value(value.as_deref()));
            answered(Message::SetValue, &Answer::Null);
            answered(Message::GetRecord, &Answer::Read(read));
            answered(Message::DeleteRecord, &Answer::Written(written));
            let results = [BatchResult::Read(read), BatchResult::Written(written), BatchResult::Failed(error.clone())];
            answered(Message::Batch, &Answer::Batch(results.into_iter().cycle().take(count).collect()));
            answered(Message::Scan, &Answer::Page(ScanPage { records: vec![(record, position); count], cursor: record.key }));
            for message in Message::ALL {
                let text = Failure::Text(record.key.to_owned());
                let declared = Failure::Declared(error.clone());
                let expected = if message.declares_errors() { declared.clone() } else { Failure::Text(error.message.clone()) };
                for (failure, expected) in [(&text, &text), (&declared, &expected)] {
                    let mut bytes = Vec::new();
                    failure.encode(Some(message), &mut bytes);
                    prop_assert_eq!(Answer::decode(message, &bytes), Ok(Err(expected.clone())));
                }
            }
        }

        #[test]
        fn any_bytes_are_refused_or_read(bytes: Vec<u8>, index in 0usize..8) {
            let message = Message::ALL[index];
            let mut call = vec![0];
            put_string(&mut call, message.name());
            call.extend(&bytes);
            let _ = Request::decode(&bytes, None);
            if let Ok(Some(request)) = Request::decode(&call, None) {
                prop_assert_eq!(request.message(), message);
            }
            let _ = Answer::decode(message, &bytes);
        }
    }

    #[test]
    fn a_value_that_is_encoded_already_gives_the_same_answer() {
        let (mut field, mut bytes, mut expected) = (Vec::new(), Vec::new(), Vec::new());
        put_string(&mut field, "välue");
        put_value_answer(&mut bytes, &field);
        Answer::Value(Some("välue")).encode(&mut expected);
        assert_eq!(bytes, expected);
    }

    #[test]
    fn a_ping_has_no_name_and_metadata_is_skipped() {
        assert_eq!(Request::decode(&[0, 0], None), Ok(None));
        // One entry, then a block with its size: {"a": "b"}, {"c": ""}.
        let mut call = vec![2, 2, b'a', 2, b'b', 1, 6, 2, b'c', 0, 0];
        put_string(&mut call, "delete");
        put_string(&mut call, "k");
        assert_eq!(Request::decode(&call, None), Ok(Some(Request::Delete { key: "k" })));
    }

    #[test]
    fn a_client_that_declares_it_otherwise_is_understood() {
        let protocol = ForeignProtocol::parse(
            r#"{"messages":{"setRecord":{"request":[{"name":"ttl","type":"int"},{"name":"more","type":"double"},
               {"name":"value","type":["null","bytes"]},{"name":"key","type":"string"}]},"new":{"request":[]}}}"#,
        )
        .expect("it is a protocol");
        let mut call = vec![0];
        put_string(&mut call, "setRecord");
        put_long(&mut call, 5);
        call.extend([0; 8]);
        put_long(&mut call, 1);
        put_string(&mut call, "v");
        put_string(&mut call, "k");
        let expected = Request::SetRecord { key: "k", value: "v", ttl: 5 };
        assert_eq!(Request::decode(&call, Some(&protocol)), Ok(Some(expected)));
        let mut call = vec![0];
        put_string(&mut call, "new");
        assert!(matches!(Request::decode(&call, Some(&protocol)), Err(CallError::Message(_))));
    }

    #[test]
    fn a_count_costs_no_memory_before_the_items_are_there() {
        let mut call = vec![0];
        put_string(&mut call, "batch");
        put_long(&mut call, i64::MAX);
        assert_eq!(Request::decode(&call, None), Err(DecodeError::Truncated("operations").into()));
        let operations = vec![Operation::Get { key: "" }; MAX_BATCH_OPERATIONS + 1];
        let mut call = Vec::new();
        Request::Batch(operations).encode(&mut call);
        assert_eq!(Request::decode(&call, None), Err(CallError::BatchTooLong));
    }
}
