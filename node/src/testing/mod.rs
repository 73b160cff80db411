//! What several tests share.

pub mod damage;

use bitacora_protocol::Position;
use bitacora_protocol::record::{KeyValue, source};

use crate::clock::LogTime;
use crate::store::Entry;

/// An entry whose record has this text for its value; without a record if it is empty.
pub fn entry_of_text(key: &str, position: Position, timestamp: LogTime, ttl: i64, text: &str) -> Entry {
    if text.is_empty() {
        return Entry::without_record(key.as_bytes(), position, timestamp, ttl);
    }
    let (source, uuid) = (source::PRODUCER, "4b8dd6b5-08c5-4fd3-8e3c-a6f3d4f3c0de");
    let record = KeyValue { key, value: text, timestamp: timestamp.ms(), source, ttl, uuid };
    Entry::new(position, timestamp, &record)
}
