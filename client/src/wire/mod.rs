//! Formats that cross a wire or lie in the log.

mod avro;
mod call;
mod frame;
mod handshake;
mod position;
mod protocol;
mod record;

pub use avro::DecodeError;
pub use call::{
    Answer, BatchResult, CallError, ErrorCode, Failure, MAX_BATCH_OPERATIONS, Operation, ReadAnswer, Request,
    RequestError, ScanPage, ScanRequest, ServedFrom, WriteAnswer, put_value_answer,
};
pub use frame::{Frame, FrameError, FrameLimits, FrameReader, put_frame};
pub use handshake::{HandshakeMatch, HandshakeRequest, HandshakeResponse, ProtocolHash};
pub use position::{Position, PositionError};
pub use protocol::{
    ForeignProtocol, Message, PROTOCOL, PROTOCOL_HASH, PROTOCOL_SOURCE, ProtocolError, protocol_hash,
};
pub use record::{KeyValue, OwnedKeyValue, RECORD_SCHEMA, source, ttl};

/// Header of every answer about a key: the position `P:O` that the answer reflects.
pub const POSITION_HEADER: &str = "bitacora-position";
/// Header of every answer to a read of a key: where it came from, `cache`, `store` or `peer`.
pub const SOURCE_HEADER: &str = "bitacora-source";
/// Header of an answer that a record decided: its write timestamp in ms since the epoch. A 404 with it means
/// *deleted or expired by that record*; a 404 without it means *no record*.
pub const TIMESTAMP_HEADER: &str = "bitacora-timestamp";
/// Header of what a node answers another: the log that the answer is of, a number in hexadecimal; 0 if that is not known.
pub const LOG_HEADER: &str = "bitacora-log";
