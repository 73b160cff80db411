//! The Avro RPC: frames, the handshake, the protocol, calls and answers.

mod answer;
mod changes;
mod frame;
mod handshake;
mod protocol;
mod record_answer;
mod record_call;
mod request;
mod resolved_call;

#[cfg(test)]
mod apache_avro_tests;
#[cfg(test)]
mod call_tests;
#[cfg(test)]
mod changes_tests;
#[cfg(test)]
mod options_tests;

pub use answer::{
    Answer, BatchResult, ErrorCode, Failure, ReadAnswer, RequestError, ScanPage, ServedFrom, WriteAnswer,
    put_batch_answer, put_value_answer,
};
pub use changes::{Change, ChangePage, ChangesRequest, DeleteReason, DeletedKey};
pub use frame::{Frame, FrameError, FrameLimits, FrameReader, peek_frame, put_frame};
pub use handshake::{HandshakeMatch, HandshakeRequest, HandshakeResponse, ProtocolHash};
pub use protocol::{
    ForeignProtocol, Message, PROTOCOL, PROTOCOL_HASH, PROTOCOL_SOURCE, ProtocolError, protocol_hash,
};
pub use record_answer::{NotMetAnswer, RecordPage, RecordResult, RecordWritten, WrittenAnswer};
pub use request::{CallError, MAX_BATCH_OPERATIONS, Request, ScanRequest};
