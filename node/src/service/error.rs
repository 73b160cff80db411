//! What can go wrong with an operation, and the one table that says what each kind of error is over HTTP, over RPC and in the
//! metrics.

use bitacora_protocol::rpc::{ErrorCode, RequestError};

use crate::log::AppendError;
use crate::service::access::Denied;
use crate::service::changes::ChangesError;
use crate::service::conditional::{ConditionalError, NotMet};
use crate::service::consistency::ConsistencyError;
use crate::service::memory::OutOfMemory;
use crate::service::reads::GetError;
use crate::service::scans::ScanError;
use crate::service::writes::{KeyError, WriteError};

/// What kind of error an error is: it decides how the error is answered, whichever interface it goes out through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request is wrong; sent again it stays so.
    BadRequest,
    /// It is not known who calls, and not everybody may do this.
    Unauthorized,
    /// The caller may not do this.
    Forbidden,
    /// There is nothing at this path.
    NotFound,
    /// The path has no such method.
    MethodNotAllowed,
    /// The request did not arrive in time.
    RequestTimeout,
    /// The key is not where a conditional write can be decided; it can be once it was written on no condition.
    Conflict,
    /// The condition of the write did not hold; nothing was written.
    ConditionFailed,
    /// Key, value or record is too large.
    TooLarge,
    /// The body is of a kind that is not taken.
    UnsupportedMediaType,
    /// Too many calls from the caller's address had no good token.
    TooManyFailures,
    /// The cluster as it is does not have it.
    NotImplemented,
    /// The node does not know yet, or has no room; another node, or this one a moment later, can.
    NotReady,
    /// The node can't, and it is of no use to ask it again soon; another node can.
    AskAnotherNode,
    /// The log did not take the write; it has not taken effect.
    NotTaken,
    /// The log did not acknowledge the write in time; it may still take effect.
    MayTakeEffect,
    /// The node's memory for requests is spent; nothing was done.
    OutOfMemory,
    /// The node failed.
    Internal,
}

/// How errors of a kind are answered.
struct ErrorAnswer {
    http_status: u16,
    /// The value of `Retry-After`, in seconds.
    retry_after: Option<&'static str>,
    rpc_code: ErrorCode,
    /// The `outcome` label of the metrics.
    outcome: &'static str,
}

const SOON: Option<&str> = Some("1");
const A_WHILE: Option<&str> = Some("60");

impl ErrorKind {
    /// All of them.
    pub const ALL: [Self; 18] = [
        Self::BadRequest,
        Self::Unauthorized,
        Self::Forbidden,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::RequestTimeout,
        Self::Conflict,
        Self::ConditionFailed,
        Self::TooLarge,
        Self::UnsupportedMediaType,
        Self::TooManyFailures,
        Self::NotImplemented,
        Self::NotReady,
        Self::AskAnotherNode,
        Self::NotTaken,
        Self::MayTakeEffect,
        Self::OutOfMemory,
        Self::Internal,
    ];

    /// The one table.
    const fn answered(self) -> ErrorAnswer {
        let (http_status, retry_after, rpc_code, outcome) = match self {
            Self::BadRequest => (400, None, ErrorCode::BadRequest, "refused"),
            Self::Unauthorized => (401, None, ErrorCode::BadRequest, "refused"),
            Self::Forbidden => (403, None, ErrorCode::BadRequest, "refused"),
            Self::NotFound => (404, None, ErrorCode::BadRequest, "refused"),
            Self::MethodNotAllowed => (405, None, ErrorCode::BadRequest, "refused"),
            Self::RequestTimeout => (408, None, ErrorCode::BadRequest, "refused"),
            Self::Conflict => (409, None, ErrorCode::Conflict, "refused"),
            Self::ConditionFailed => (412, None, ErrorCode::BadRequest, "not_met"),
            Self::TooLarge => (413, None, ErrorCode::TooLarge, "refused"),
            Self::UnsupportedMediaType => (415, None, ErrorCode::BadRequest, "refused"),
            Self::TooManyFailures => (429, A_WHILE, ErrorCode::BadRequest, "refused"),
            Self::NotImplemented => (501, None, ErrorCode::Unsupported, "failed"),
            Self::NotReady => (503, SOON, ErrorCode::NotReady, "unavailable"),
            Self::AskAnotherNode => (503, None, ErrorCode::NotReady, "unavailable"),
            Self::NotTaken => (503, SOON, ErrorCode::NotTaken, "unavailable"),
            Self::MayTakeEffect => (503, SOON, ErrorCode::MayTakeEffect, "unavailable"),
            Self::OutOfMemory => (503, SOON, ErrorCode::NotReady, "unavailable"),
            Self::Internal => (500, None, ErrorCode::Internal, "failed"),
        };
        ErrorAnswer { http_status, retry_after, rpc_code, outcome }
    }

    /// The status of an HTTP answer.
    #[must_use]
    pub const fn http_status(self) -> u16 {
        self.answered().http_status
    }

    /// The value of the header `Retry-After`, in seconds; `None` where trying again is of no use.
    #[must_use]
    pub const fn retry_after(self) -> Option<&'static str> {
        self.answered().retry_after
    }

    /// The code of an RPC error.
    #[must_use]
    pub const fn rpc_code(self) -> ErrorCode {
        self.answered().rpc_code
    }

    /// The `outcome` label of the metrics.
    #[must_use]
    pub const fn outcome(self) -> &'static str {
        self.answered().outcome
    }

    /// Of a write that failed with this: whether it may still take effect. `None` where the status alone says that it will
    /// not.
    #[must_use]
    pub const fn may_take_effect(self) -> Option<bool> {
        match self {
            Self::MayTakeEffect => Some(true),
            kind if kind.http_status() == 503 => Some(false),
            _ => None,
        }
    }
}

/// Why an operation failed. Its text is the sentence that the client gets.
#[derive(Debug, thiserror::Error)]
pub enum OperationError {
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("the ttl is {0} ms; it is 0 for ever, or 1 ms to a hundred years")]
    Ttl(i64),
    #[error("the answers of this batch have more bytes than fit into one; ask for this key again")]
    BatchTooLarge,
    #[error("'{0}' is no UUID; the uuid of a write is one, such as 9b2c8f1e-5a57-4a0c-8f29-3f4b7d5f8a61")]
    Uuid(String),
    #[error(transparent)]
    Conditional(#[from] ConditionalError),
    #[error(transparent)]
    Get(#[from] GetError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    Scan(#[from] ScanError),
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
    #[error(transparent)]
    Consistency(#[from] ConsistencyError),
    #[error(transparent)]
    Changes(#[from] ChangesError),
    #[error(transparent)]
    Denied(#[from] Denied),
}

impl OperationError {
    /// Of a read that this node could not answer as consistently as was wanted: how far the node is, a set of positions as
    /// text.
    #[must_use]
    pub fn applied(&self) -> Option<&str> {
        match self {
            Self::Consistency(ConsistencyError::NotReached { applied, .. }) => Some(applied),
            _ => None,
        }
    }

    /// Of a conditional write whose condition was not met: what the key is instead.
    #[must_use]
    pub fn not_met(&self) -> Option<&NotMet> {
        match self {
            Self::Conditional(ConditionalError::NotMet(not_met)) => Some(not_met),
            _ => None,
        }
    }

    /// What kind it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Conditional(error) => error.kind(),
            Self::Changes(error) => error.kind(),
            Self::Denied(denied) => denied.kind(),
            Self::Key(_)
            | Self::Uuid(_)
            | Self::Ttl(_)
            | Self::Consistency(ConsistencyError::Wrong(_))
            | Self::Scan(
                ScanError::Limit(_)
                | ScanError::TooLong(..)
                | ScanError::TooLongForStore(..)
                | ScanError::NoCursor
                | ScanError::ForeignCursor,
            ) => ErrorKind::BadRequest,
            Self::BatchTooLarge => ErrorKind::TooLarge,
            Self::Write(error) => error.kind(),
            Self::Get(GetError::NotRestored)
            | Self::Scan(ScanError::NotRestored)
            | Self::Consistency(ConsistencyError::NotReached { .. }) => ErrorKind::NotReady,
            Self::Get(GetError::Store(_)) | Self::Scan(ScanError::Store(_)) => ErrorKind::Internal,
            Self::Memory(_)
            | Self::Get(GetError::OutOfMemory)
            | Self::Scan(ScanError::Memory(_))
            | Self::Consistency(ConsistencyError::Memory(_)) => ErrorKind::OutOfMemory,
        }
    }
}

impl WriteError {
    /// What kind it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::ValueTooLarge { .. } | Self::Log(AppendError::TooLarge(_)) => ErrorKind::TooLarge,
            Self::Log(AppendError::NotTaken(_)) => ErrorKind::NotTaken,
            Self::Log(AppendError::Unknown(_)) => ErrorKind::MayTakeEffect,
        }
    }
}

impl From<&WriteError> for RequestError {
    fn from(error: &WriteError) -> Self {
        Self { code: error.kind().rpc_code(), message: error.to_string() }
    }
}

impl From<&OperationError> for RequestError {
    fn from(error: &OperationError) -> Self {
        Self { code: error.kind().rpc_code(), message: error.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_for_good_is_not_to_be_tried_again() {
        for kind in [ErrorKind::BadRequest, ErrorKind::TooLarge, ErrorKind::Internal] {
            assert_eq!((kind.retry_after(), kind.may_take_effect()), (None, None), "{kind:?}");
        }
    }

    #[test]
    fn a_failed_write_says_whether_it_may_take_effect() {
        let of = |error| OperationError::Write(WriteError::Log(error)).kind().may_take_effect();
        assert_eq!(of(AppendError::Unknown(String::new())), Some(true));
        assert_eq!(of(AppendError::NotTaken(String::new())), Some(false));
        assert_eq!(of(AppendError::TooLarge(String::new())), None);
        assert_eq!(ErrorKind::OutOfMemory.may_take_effect(), Some(false));
    }
}
