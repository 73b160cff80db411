//! What the HTTP API answers: bodies, headers, and the one place where an error becomes a status.

use bitacora_protocol::Position;
use bitacora_protocol::http::{LOG_HEADER, POSITION_HEADER, SOURCE_HEADER, TIMESTAMP_HEADER};
use bitacora_protocol::record::{KeyValue, source};
use serde::Serialize;
use warp::http::header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use warp::http::{Response, StatusCode};

use crate::log::{AppendError, LogTag};
use crate::service::OperationError;
use crate::service::reads::{Answer, From as Source, GetError};
use crate::service::scans::{Page, ScanError};
use crate::service::writes::{KeyError, WriteError, Written};
use crate::store::Tier;

pub type Reply = Response<Vec<u8>>;

/// Everything that can go wrong with a request.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("{0}")]
    BadRequest(String),
    #[error("{0} is not a path of this API; see GET /status, GET /health, GET /metrics and /rpc?key=")]
    NoSuchPath(String),
    #[error("{method} is not possible here; possible: {allow}")]
    Method { method: String, allow: &'static str },
    #[error("the body did not arrive within {0} ms (REQUEST_TIMEOUT)")]
    BodyTimeout(u128),
    #[error("the body is larger than a value may be, {0} bytes (MAX_VALUE_BYTES)")]
    BodyTooLarge(usize),
    #[error("line {number} has more than {max} bytes")]
    LineTooLarge { number: u64, max: usize },
    #[error("{0}")]
    NotImplemented(String),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("{0}")]
    Ttl(String),
    #[error(transparent)]
    Get(#[from] GetError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    Scan(#[from] ScanError),
}

impl ApiError {
    pub fn status(&self) -> StatusCode {
        match self {
            Self::BadRequest(_)
            | Self::Key(_)
            | Self::Ttl(_)
            | Self::Scan(
                ScanError::Limit(_) | ScanError::TooLong(..) | ScanError::NoCursor | ScanError::ForeignCursor,
            ) => StatusCode::BAD_REQUEST,
            Self::NoSuchPath(_) => StatusCode::NOT_FOUND,
            Self::Method { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::BodyTimeout(_) => StatusCode::REQUEST_TIMEOUT,
            Self::BodyTooLarge(_)
            | Self::LineTooLarge { .. }
            | Self::Write(WriteError::ValueTooLarge { .. } | WriteError::Log(AppendError::TooLarge(_))) => {
                StatusCode::PAYLOAD_TOO_LARGE
            }
            Self::NotImplemented(_) => StatusCode::NOT_IMPLEMENTED,
            Self::Get(GetError::NotRestored)
            | Self::Scan(ScanError::NotRestored)
            | Self::Write(WriteError::Log(AppendError::NotTaken(_) | AppendError::Unknown(_))) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Get(GetError::Store(_)) | Self::Scan(ScanError::Store(_)) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        }
    }

    /// The `outcome` label of the metrics.
    #[must_use]
    pub fn outcome(&self) -> &'static str {
        match self.status() {
            StatusCode::SERVICE_UNAVAILABLE => "unavailable",
            status if status.is_client_error() => "refused",
            _ => "failed",
        }
    }

    #[must_use]
    pub fn reply(&self) -> Reply {
        let status = self.status();
        if status.is_server_error() {
            tracing::debug!(error = %self, "answered {status}");
        }
        let mut reply = message(status, &self.to_string());
        if status == StatusCode::SERVICE_UNAVAILABLE {
            reply.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if let Self::Method { allow, .. } = self {
            reply.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
        }
        reply
    }
}

impl From<OperationError> for ApiError {
    fn from(error: OperationError) -> Self {
        match error {
            OperationError::Key(error) => error.into(),
            OperationError::Get(error) => error.into(),
            OperationError::Write(error) => error.into(),
            OperationError::Ttl(_) | OperationError::BatchTooLarge => Self::Ttl(error.to_string()),
        }
    }
}

#[must_use]
pub fn json(status: StatusCode, body: &impl Serialize) -> Reply {
    // Nothing that is serialized here has a map with keys that are no strings.
    let mut reply = Response::new(serde_json::to_vec(body).unwrap_or_default());
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply
}

#[must_use]
pub fn message(status: StatusCode, message: &str) -> Reply {
    #[derive(Serialize)]
    struct Message<'a> {
        message: &'a str,
    }
    json(status, &Message { message })
}

#[must_use]
pub fn text(status: StatusCode, content_type: &'static str, body: String) -> Reply {
    let mut reply = Response::new(body.into_bytes());
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply
}

/// The answer to a read of a key.
#[must_use]
pub fn read(key: &str, answer: &Answer) -> Reply {
    let mut reply = match answer.record() {
        Some(record) => json(StatusCode::OK, &record),
        None => message(StatusCode::NOT_FOUND, &not_found(key)),
    };
    reply.headers_mut().insert(SOURCE_HEADER, HeaderValue::from_static(from(answer.from)));
    describe(&mut reply, answer.position, answer.timestamp());
    reply
}

/// The same to another node, which believes it only if it is of the same log.
#[must_use]
pub fn read_here(key: &str, answer: &Answer, log: LogTag) -> Reply {
    let mut reply = read(key, answer);
    if let Ok(value) = HeaderValue::try_from(format!("{:x}", log.0)) {
        reply.headers_mut().insert(LOG_HEADER, value);
    }
    reply
}

#[must_use]
pub fn from(source: Source) -> &'static str {
    match source {
        Source::Local(Tier::Cache) => "cache",
        Source::Local(Tier::Store) => "store",
        Source::Peer => "peer",
    }
}

#[must_use]
pub fn not_found(key: &str) -> String {
    format!("Key {key} not found")
}

/// The answer to an acknowledged write.
#[must_use]
pub fn written(key: &str, value: &str, written: &Written) -> Reply {
    let Written { appended, ttl, uuid } = written;
    let record = KeyValue {
        key,
        value,
        timestamp: appended.timestamp.ms(),
        source: source::PRODUCER,
        ttl: *ttl,
        uuid,
    };
    let mut reply = json(StatusCode::OK, &record);
    describe(&mut reply, appended.position, Some(appended.timestamp.ms()));
    reply
}

/// A page of a scan.
#[must_use]
pub fn page(page: &Page) -> Reply {
    #[derive(Serialize)]
    struct Positioned<'a> {
        #[serde(flatten)]
        record: KeyValue<'a>,
        position: String,
    }
    #[derive(Serialize)]
    struct Body<'a> {
        records: Vec<Positioned<'a>>,
        cursor: Option<&'a str>,
    }
    let mut records = Vec::with_capacity(page.entries.len());
    for entry in &page.entries {
        records.extend(
            entry.answer().map(|record| Positioned { record, position: entry.position().to_string() }),
        );
    }
    json(StatusCode::OK, &Body { records, cursor: page.cursor.as_deref() })
}

fn describe(reply: &mut Reply, position: Position, timestamp: Option<i64>) {
    if let Ok(value) = HeaderValue::try_from(position.to_string()) {
        reply.headers_mut().insert(POSITION_HEADER, value);
    }
    if let Some(timestamp) = timestamp {
        reply.headers_mut().insert(TIMESTAMP_HEADER, HeaderValue::from(timestamp));
    }
}
