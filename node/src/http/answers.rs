//! What the HTTP API answers with: bodies, and the headers of answers about a key.

use bitacora_protocol::Position;
use bitacora_protocol::http::{
    ConditionFailed, LOG_HEADER, Message, NOT_VISIBLE_HEADER, OUT_OF_MEMORY_HEADER, POSITION_HEADER,
    SOURCE_HEADER, TIMESTAMP_HEADER,
};
use bitacora_protocol::record::ttl::DELETED;
use bitacora_protocol::record::{KeyValue, source};
use bytes::Bytes;
use futures_util::stream;
use serde::Serialize;
use tokio::sync::mpsc;
use warp::http::header::{CONTENT_TYPE, ETAG, HeaderValue};
use warp::http::{Response, StatusCode};
use warp::reply::Reply as _;

use super::error::HttpError;
use super::etag::{self, Tags};
use crate::log::LogTag;
use crate::service::conditional::NotMet;
use crate::service::memory::{Memory, OutOfMemory, Permit};
use crate::service::reads::Answer;
use crate::service::writes::Written;
use crate::store::UuidText;

pub type Reply = Response<Bytes>;

/// Values from so many bytes on are looked at before they are made JSON of.
const LONG_VALUE_BYTES: usize = 1024;

/// Bytes that count against the node's budget until the last of them is written to the client.
struct Counted {
    bytes: Vec<u8>,
    _memory: Permit,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Bytes to be sent, which hold `memory` until they are.
#[must_use]
pub fn counted(bytes: Vec<u8>, memory: Option<Permit>) -> Bytes {
    match memory {
        None => Bytes::from(bytes),
        Some(mut memory) => {
            memory.set(bytes.capacity());
            Bytes::from_owner(Counted { bytes, _memory: memory })
        }
    }
}

#[must_use]
pub fn json(status: StatusCode, body: &impl Serialize) -> Reply {
    counted_json(status, body, None)
}

/// A JSON answer that holds `memory` until it is sent.
#[must_use]
pub fn counted_json(status: StatusCode, body: &impl Serialize, memory: Option<Permit>) -> Reply {
    // Nothing that is serialized here has a map with keys that are no strings.
    let body = serde_json::to_vec(body).unwrap_or_default();
    respond(status, "application/json", counted(body, memory))
}

#[must_use]
pub fn message(status: StatusCode, message: &str, may_take_effect: Option<bool>) -> Reply {
    json(status, &Message { message: message.into(), may_take_effect })
}

#[must_use]
pub fn plain(status: StatusCode, body: String) -> Reply {
    respond(status, "text/plain; charset=utf-8", body.into())
}

#[must_use]
pub fn respond(status: StatusCode, content_type: &'static str, body: Bytes) -> Reply {
    let mut reply = Response::new(body);
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply
}

/// An answer that is sent piece by piece, as they come; an error ends it, and the connection with it.
#[must_use]
pub fn streamed<E>(
    pieces: mpsc::Receiver<Result<Bytes, E>>,
    content_type: &'static str,
) -> warp::reply::Response
where
    E: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
{
    let pieces = stream::unfold(pieces, |mut pieces| async { Some((pieces.recv().await?, pieces)) });
    let mut reply = warp::reply::stream(pieces).into_response();
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply
}

/// Appends a record as JSON, as its [`Serialize`] has it. That looks at a string byte by byte, so a long value is looked at here first, many
/// bytes at a time: mostly there is nothing in it that JSON spells otherwise.
pub fn put_record(record: &KeyValue<'_>, out: &mut Vec<u8>) {
    let start = out.len();
    let is_copied = record.value.len() >= LONG_VALUE_BYTES && is_spelled_as_it_is(record.value);
    let value = if is_copied { "" } else { record.value };
    // Nothing in it is a map with keys that are no strings.
    let _ = serde_json::to_writer(&mut *out, &KeyValue { value, ..*record });
    if is_copied {
        // A key that has the same in it has backslashes there.
        const BEFORE_VALUE: &[u8] = br#"","value":""#;
        let found = memchr::memmem::find(&out[start..], BEFORE_VALUE);
        let behind = out.split_off(found.map_or(out.len(), |found| start + found + BEFORE_VALUE.len()));
        out.extend_from_slice(record.value.as_bytes());
        out.extend_from_slice(&behind);
    }
}

/// Whether JSON has a text as it is, between quotation marks.
#[expect(
    clippy::needless_bitwise_bool,
    reason = "without branches, the compiler has many bytes looked at together"
)]
fn is_spelled_as_it_is(text: &str) -> bool {
    let is_plain = |byte: &u8| (*byte >= b' ') & (*byte != b'"') & (*byte != b'\\');
    text.as_bytes().chunks(256).all(|piece| piece.iter().fold(true, |plain, byte| plain & is_plain(byte)))
}

/// The answer to a read of a key, whose reader has the records of these tags already.
///
/// # Errors
/// When it is a large record and there is no memory for it.
pub fn read(key: &str, answer: &Answer, known: Option<&Tags>, memory: &Memory) -> Result<Reply, OutOfMemory> {
    let mut uuid = UuidText::default();
    let mut reply = match answer.record(&mut uuid) {
        Some(_) if known.is_some_and(|tags| tags.name(answer.position)) => {
            let mut reply = Response::new(Bytes::new());
            *reply.status_mut() = StatusCode::NOT_MODIFIED;
            reply
        }
        Some(record) => {
            let permit = memory.take_for_answer(record.value.len())?;
            // Mostly as long as what is in it, and the names of the fields.
            let mut body = Vec::with_capacity(key.len() + record.value.len() + record.uuid.len() + 128);
            put_record(&record, &mut body);
            let permit = match permit {
                // JSON spells a byte with up to six.
                None => memory.take_for_answer(body.len())?,
                permit => permit,
            };
            respond(StatusCode::OK, "application/json", counted(body, permit))
        }
        None => message(StatusCode::NOT_FOUND, &not_found(key), None),
    };
    let from = HeaderValue::from_static(answer.from.name());
    reply.headers_mut().insert(SOURCE_HEADER, from);
    let is_version = matches!(reply.status(), StatusCode::OK | StatusCode::NOT_MODIFIED);
    describe(&mut reply, answer.position, answer.timestamp(), is_version);
    Ok(reply)
}

/// The same to another node, which believes it only if it is of the same log; and the `outcome` label of the metrics.
///
/// A refusal for want of memory has a header of its own, and those of the record that it is of: by these older nodes tell it from
/// a refusal of a node that does not know.
pub fn read_for_member(key: &str, answer: &Answer, log: LogTag, memory: &Memory) -> (Reply, &'static str) {
    let (mut reply, outcome) = match read(key, answer, None, memory) {
        Ok(reply) => (reply, answer.outcome()),
        Err(error) => {
            let error = HttpError::from(error);
            let mut reply = error.reply(false);
            describe(&mut reply, answer.position, answer.timestamp(), false);
            reply
                .headers_mut()
                .insert(OUT_OF_MEMORY_HEADER, HeaderValue::from_static("REQUEST_MEMORY is spent"));
            (reply, error.kind().outcome())
        }
    };
    if let Ok(value) = HeaderValue::try_from(format!("{:x}", log.0)) {
        reply.headers_mut().insert(LOG_HEADER, value);
    }
    (reply, outcome)
}

#[must_use]
pub fn not_found(key: &str) -> String {
    format!("Key {key} not found")
}

/// The answer to an acknowledged write; it holds `memory` until it is sent.
#[must_use]
pub fn written(key: &str, value: &str, written: &Written, memory: Option<Permit>) -> Reply {
    let Written { appended, ttl, uuid, earlier, not_visible } = written;
    let timestamp = appended.timestamp.ms();
    let earlier = earlier.as_ref().and_then(|earlier| earlier.entry.value());
    let value = earlier.unwrap_or(value);
    let record = KeyValue { key, value, timestamp, source: source::PRODUCER, ttl: *ttl, uuid };
    let mut reply = counted_json(StatusCode::OK, &record, memory);
    // A delete leaves no record.
    describe(&mut reply, appended.position, Some(timestamp), *ttl != DELETED);
    if !not_visible.is_empty()
        && let Ok(value) = HeaderValue::try_from(not_visible.join(","))
    {
        reply.headers_mut().insert(NOT_VISIBLE_HEADER, value);
    }
    reply
}

/// The answer to a write whose condition was not met.
///
/// # Errors
/// When the current record is a large one and there is no memory for it.
pub fn condition_failed(not_met: &NotMet, memory: &Memory) -> Result<Reply, OutOfMemory> {
    let NotMet { current, version } = not_met;
    let mut uuid = UuidText::default();
    let record = current.record(&mut uuid);
    let permit = memory.take_for_answer(record.as_ref().map_or(0, |record| record.value.len()))?;
    let body = ConditionFailed { message: not_met.to_string().into(), current: record };
    let mut reply = counted_json(StatusCode::PRECONDITION_FAILED, &body, permit);
    describe(&mut reply, current.position, current.timestamp(), false);
    if let Some(version) = version
        && let Ok(tag) = HeaderValue::try_from(etag::of(*version))
    {
        reply.headers_mut().insert(ETAG, tag);
    }
    Ok(reply)
}

/// Names the position that an answer reflects, also as the version of a record, and the write timestamp of what is there.
fn describe(reply: &mut Reply, position: Position, timestamp: Option<i64>, is_version: bool) {
    let headers = reply.headers_mut();
    // Both headers have the same piece of memory.
    let quoted = Bytes::from(etag::of(position));
    if let Ok(value) = HeaderValue::from_maybe_shared(quoted.slice(1..quoted.len() - 1)) {
        headers.insert(POSITION_HEADER, value);
    }
    if is_version && let Ok(value) = HeaderValue::from_maybe_shared(quoted) {
        headers.insert(ETAG, value);
    }
    if let Some(timestamp) = timestamp {
        headers.insert(TIMESTAMP_HEADER, HeaderValue::from(timestamp));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bitacora_protocol::record::OwnedKeyValue;
    use bitacora_protocol::rpc::ServedFrom;

    use super::*;
    use crate::service::memory::SMALL_ANSWER_BYTES;
    use crate::service::peers::PeerRecord;
    use crate::service::reads::LookupResult;

    fn answer(value: String) -> Answer {
        let (key, uuid) = ("k".to_owned(), String::new());
        let record = OwnedKeyValue { key, value, timestamp: 7, source: source::PRODUCER, ttl: 0, uuid };
        let record = PeerRecord::new(record, Memory::unlimited().nothing());
        let position = Position { partition: 1, offset: 5 };
        Answer::new(LookupResult::Peer(Arc::new(record)), position, ServedFrom::Peer)
    }

    fn spent() -> Memory {
        let memory = Memory::new(0, prometheus::IntCounter::new("refusals", "In a test.").expect("a name"));
        assert_eq!(memory.limit(), 0);
        memory
    }

    #[test]
    fn an_answer_is_small_by_its_encoded_length() {
        let bytes = SMALL_ANSWER_BYTES / 2;
        assert!(read("k", &answer("v".repeat(bytes)), None, &spent()).is_ok());
        assert!(read("k", &answer("\u{1}".repeat(bytes)), None, &spent()).is_err());
        assert!(read("k", &answer("v".repeat(2 * SMALL_ANSWER_BYTES)), None, &spent()).is_err());
    }

    #[test]
    fn a_long_value_is_spelled_as_any_other() {
        for (key, value) in [
            ("k", "v"),
            ("a\",\"value\":\"b", "v"),
            ("a\\", "\u{e9}\u{1f600}\u{7f}"),
            ("\",\"value\":\"", "\""),
            ("k", "\\"),
            ("k", "\n"),
            ("k", "\u{1f}"),
        ] {
            for repeated in [1, LONG_VALUE_BYTES - 1, LONG_VALUE_BYTES, 3 * LONG_VALUE_BYTES + 1] {
                for value in [value.repeat(repeated), "v".repeat(repeated) + value] {
                    let record = KeyValue {
                        key,
                        value: &value,
                        timestamp: -7,
                        source: source::LOG,
                        ttl: 9,
                        uuid: "u",
                    };
                    let mut out = b"{".to_vec();
                    put_record(&record, &mut out);
                    let usual = serde_json::to_string(&record).expect("it is text");
                    assert_eq!(String::from_utf8_lossy(&out[1..]), usual);
                }
            }
        }
    }

    #[test]
    fn a_refusal_to_a_member_names_the_position() {
        let large = answer("v".repeat(2 * SMALL_ANSWER_BYTES));
        let (reply, outcome) = read_for_member("k", &large, LogTag(0xab), &spent());
        assert_eq!((reply.status(), outcome), (StatusCode::SERVICE_UNAVAILABLE, "unavailable"));
        assert_eq!(reply.headers()[POSITION_HEADER], "1:5");
        assert_eq!(reply.headers()[LOG_HEADER], "ab");
        assert!(reply.headers().contains_key(OUT_OF_MEMORY_HEADER));
    }
}
