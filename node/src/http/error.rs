//! Everything that can go wrong with an HTTP request. What it is answered with is decided by its kind:
//! [`ErrorKind`].

use bitacora_protocol::http::POSITION_HEADER;
use warp::http::StatusCode;
use warp::http::header::{ALLOW, CONNECTION, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};

use super::answers::{self, Reply};
use crate::server::access::Refused;
use crate::service::error::{ErrorKind, OperationError};
use crate::service::memory::OutOfMemory;

/// Why a request failed. Its text is the sentence that the client gets.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error("{0}")]
    BadRequest(String),
    #[error(
        "{0} is not a path of this API; see GET / for a page in a browser, GET /status, GET /health, GET /metrics and /rpc?key=, and GET /openapi.json for all"
    )]
    NoSuchPath(String),
    #[error("{method} is not possible here; possible: {allow}")]
    Method { method: String, allow: String },
    #[error("the body did not arrive within {0} ms (REQUEST_TIMEOUT)")]
    BodyTimeout(u128),
    #[error("the body is larger than a value may be, {0} bytes (MAX_VALUE_BYTES)")]
    BodyTooLarge(usize),
    #[error("line {number} has more than {max} bytes")]
    LineTooLarge { number: u64, max: usize },
    #[error("{0}")]
    MediaType(String),
    #[error(
        "a page of {0} may not write here; a node takes writes of pages of its own origin, and of those in ALLOWED_ORIGINS"
    )]
    ForeignOrigin(String),
    #[error("{0}")]
    NotImplemented(String),
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(transparent)]
    Operation(#[from] OperationError),
}

impl HttpError {
    /// What kind it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::BadRequest(_) => ErrorKind::BadRequest,
            Self::NoSuchPath(_) => ErrorKind::NotFound,
            Self::Method { .. } => ErrorKind::MethodNotAllowed,
            Self::BodyTimeout(_) => ErrorKind::RequestTimeout,
            Self::BodyTooLarge(_) | Self::LineTooLarge { .. } => ErrorKind::TooLarge,
            Self::MediaType(_) => ErrorKind::UnsupportedMediaType,
            Self::ForeignOrigin(_) => ErrorKind::Forbidden,
            Self::NotImplemented(_) => ErrorKind::NotImplemented,
            Self::Refused(refused) => refused.kind(),
            Self::Operation(error) => error.kind(),
        }
    }

    /// The answer; `write` says whether the request was a write, which is told whether it may still take effect.
    #[must_use]
    pub fn reply(&self, write: bool) -> Reply {
        let kind = self.kind();
        let may_take_effect = if write { kind.may_take_effect() } else { None };
        let mut reply = failure(kind, &self.to_string(), may_take_effect);
        if let Self::Operation(error) = self
            && let Some(applied) = error.applied().filter(|applied| !applied.is_empty())
            && let Ok(position) = HeaderValue::try_from(applied)
        {
            reply.headers_mut().insert(POSITION_HEADER, position);
        }
        if let Self::Method { allow, .. } = self
            && let Ok(allow) = HeaderValue::try_from(allow)
        {
            reply.headers_mut().insert(ALLOW, allow);
        }
        reply
    }
}

impl From<OutOfMemory> for HttpError {
    fn from(error: OutOfMemory) -> Self {
        Self::Operation(error.into())
    }
}

/// The status of an error, as a number that HTTP has.
#[must_use]
pub fn status(kind: ErrorKind) -> StatusCode {
    StatusCode::from_u16(kind.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// The answer for an error of some kind.
#[must_use]
pub fn failure(kind: ErrorKind, sentence: &str, may_take_effect: Option<bool>) -> Reply {
    let status = status(kind);
    if status.is_server_error() {
        tracing::debug!(error = sentence, "answered {status}");
    }
    let mut reply = answers::message(status, sentence, may_take_effect);
    if let Some(seconds) = kind.retry_after() {
        reply.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static(seconds));
    }
    match kind {
        ErrorKind::Unauthorized => {
            let challenge = HeaderValue::from_static("Bearer realm=\"bitacora\"");
            reply.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        }
        // Each further try costs a connection.
        ErrorKind::TooManyFailures => {
            reply.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        _ => {}
    }
    reply
}
