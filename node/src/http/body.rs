//! A request's body, taken in as it arrives: no longer than it may be, no larger than it may be, and counted against the
//! node's memory as it grows.

use std::fmt::Display;
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::{Stream, StreamExt as _};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use super::error::HttpError;
use crate::service::memory::{Memory, Permit};

/// A whole body, and the memory that it takes.
pub struct Body {
    pub bytes: Vec<u8>,
    pub memory: Permit,
}

/// A body of the HTTP library's, chunk by chunk.
pub fn chunks(body: Incoming) -> impl Stream<Item = hyper::Result<Bytes>> {
    body.into_data_stream()
}

/// Reads a body of at most `limit` bytes within `timeout`. `max_value_bytes` is what the sentence names.
///
/// # Errors
/// When it is too large, too slow or broken off, or when the node's memory for requests is spent.
pub async fn read<B: Buf, E: Display>(
    body: impl Stream<Item = Result<B, E>>,
    limit: usize,
    max_value_bytes: usize,
    timeout: Duration,
    memory: &Memory,
) -> Result<Body, HttpError> {
    let mut body = std::pin::pin!(body);
    let read = async {
        let (mut bytes, mut memory) = (Vec::new(), memory.nothing());
        while let Some(chunk) = body.next().await {
            let chunk = chunk
                .map_err(|error| HttpError::BadRequest(format!("the body did not arrive whole: {error}")))?;
            if bytes.len() + chunk.remaining() > limit {
                return Err(HttpError::BodyTooLarge(max_value_bytes));
            }
            append(&mut bytes, chunk, limit, &mut memory)?;
        }
        Ok(Body { bytes, memory })
    };
    tokio::time::timeout(timeout, read).await.unwrap_or(Err(HttpError::BodyTimeout(timeout.as_millis())))
}

fn append(
    bytes: &mut Vec<u8>,
    mut chunk: impl Buf,
    limit: usize,
    memory: &mut Permit,
) -> Result<(), HttpError> {
    let needed = bytes.len() + chunk.remaining();
    if needed > bytes.capacity() {
        // Twice as much each time, so that growing costs no more than the bytes themselves.
        let capacity = needed.max(2 * bytes.capacity()).min(limit);
        memory.grow(capacity - memory.bytes().min(capacity))?;
        bytes.reserve_exact(capacity - bytes.len());
    }
    while chunk.has_remaining() {
        let part = chunk.chunk();
        bytes.extend_from_slice(part);
        let length = part.len();
        chunk.advance(length);
    }
    Ok(())
}
