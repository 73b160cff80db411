//! The Avro RPC: frames, the handshake, the protocol, calls and answers.

mod call;
mod frame;
mod handshake;
mod protocol;

pub use call::{
    Answer, BatchResult, CallError, ErrorCode, Failure, MAX_BATCH_OPERATIONS, Operation, ReadAnswer, Request,
    RequestError, ScanPage, ScanRequest, ServedFrom, WriteAnswer, put_value_answer,
};
pub use frame::{Frame, FrameError, FrameLimits, FrameReader, put_frame};
pub use handshake::{HandshakeMatch, HandshakeRequest, HandshakeResponse, ProtocolHash};
pub use protocol::{
    ForeignProtocol, Message, PROTOCOL, PROTOCOL_HASH, PROTOCOL_SOURCE, ProtocolError, protocol_hash,
};
