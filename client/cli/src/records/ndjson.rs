//! NDJSON: a JSON object a line.

use anyhow::Result;
use bitacora_client::Record;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::lines::check_length;
use super::{Entry, Line, Place, expires, life};

/// What is written.
#[derive(Serialize)]
pub(super) struct Written<'a> {
    pub key: &'a str,
    pub value: &'a str,
    /// Ms since the epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<i64>,
}

pub(super) fn encode(records: &[Record]) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    for record in records {
        let Record { key, value, .. } = record;
        serde_json::to_writer(&mut text, &Written { key, value, expires: expires(record) })?;
        text.push(b'\n');
    }
    Ok(text)
}

/// The entries of whole lines that begin at `start`.
pub(super) fn lines(start: Place, block: &Bytes, max_line: usize) -> Vec<Line> {
    let mut offset = 0;
    let mut lines = Vec::new();
    for (number, line) in (start.line..).zip(block.split_inclusive(|byte| *byte == b'\n')) {
        let text = block.slice(offset..offset + line.len());
        offset += line.len();
        let trimmed = line.trim_ascii();
        if trimmed.is_empty() {
            continue;
        }
        let entry = check_length(trimmed.len(), max_line).and_then(|()| entry(trimmed));
        let next = Place { offset: start.offset + offset as u64, line: number + 1, ..start };
        lines.push(Line { number, next, text: text.slice_ref(trimmed), entry });
    }
    lines
}

#[derive(Deserialize)]
struct Json {
    key: String,
    value: String,
    ttl: Option<JsonTtl>,
    expires: Option<i64>,
    uuid: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "ttl is not a time such as \"30s\"")]
enum JsonTtl {
    Number(i64),
    Text(String),
}

pub(super) fn entry(line: &[u8]) -> Result<Entry, String> {
    if !line.starts_with(b"{") {
        return Err("it is not a JSON object".to_owned());
    }
    let Json { key, value, ttl, expires, uuid } = serde_json::from_slice(line).map_err(|error| {
        let told = error.to_string();
        // It counts lines of its own.
        told.rsplit_once(" at line ").map_or(told.clone(), |(what, _)| match error.column() {
            0 => what.to_owned(),
            column => format!("{what}, at character {column}"),
        })
    })?;
    let ttl = ttl.map(|ttl| match ttl {
        JsonTtl::Number(number) => number.to_string(),
        JsonTtl::Text(text) => text,
    });
    let life = life(ttl.as_deref(), expires, uuid.is_some())?;
    Ok(Entry { key, value, life })
}
