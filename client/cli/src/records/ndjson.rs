//! NDJSON: a JSON object a line.

use anyhow::Result;
use bitacora_client::Record;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::lines::check_length;
use super::{Entry, Line, Place, condition, expires, life, start};

/// What is written.
#[derive(Serialize)]
pub(super) struct Written<'a> {
    pub key: &'a str,
    pub value: &'a str,
    /// Ms since the epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<i64>,
    #[serde(rename = "ifMatch", skip_serializing_if = "Option::is_none")]
    pub if_match: Option<String>,
    #[serde(rename = "ifAbsent", skip_serializing_if = "std::ops::Not::not")]
    pub if_absent: bool,
}

pub(super) fn encode(records: &[Record]) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    for record in records {
        let Record { key, value, .. } = record;
        let written = Written { key, value, expires: expires(record), if_match: None, if_absent: false };
        serde_json::to_writer(&mut text, &written)?;
        text.push(b'\n');
    }
    Ok(text)
}

/// The entries of whole lines that begin at `start`.
pub(super) fn lines(start: Place, block: &Bytes, max_line: usize) -> Vec<Line> {
    let mut offset = 0;
    let mut lines = Vec::new();
    // The last line may lack its end.
    let ends = memchr::memchr_iter(b'\n', block).map(|at| at + 1);
    let ends = ends.chain(std::iter::once(block.len()));
    for (number, end) in (start.line..).zip(ends) {
        let line = &block[offset..end];
        offset = end;
        let trimmed = line.trim_ascii();
        if trimmed.is_empty() {
            continue;
        }
        let entry = check_length(trimmed.len(), max_line).and_then(|()| entry(trimmed));
        let next = Place { offset: start.offset + offset as u64, line: number + 1, ..start };
        lines.push(Line { number, next, text: block.slice_ref(trimmed), entry });
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
    #[serde(rename = "ifMatch")]
    if_match: Option<String>,
    #[serde(rename = "ifAbsent")]
    if_absent: Option<bool>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "ttl is not a time such as \"30s\"")]
enum JsonTtl {
    Number(i64),
    Text(String),
}

pub(super) fn entry(line: &[u8]) -> Result<Entry, String> {
    if !line.starts_with(b"{") {
        return Err(no_object(line));
    }
    let Json { key, value, ttl, expires, uuid, if_match, if_absent } =
        serde_json::from_slice(line).map_err(|error| explain(line, &error))?;
    let ttl = ttl.map(|ttl| match ttl {
        JsonTtl::Number(number) => number.to_string(),
        JsonTtl::Text(text) => text,
    });
    let life = life(ttl.as_deref(), expires, uuid.is_some())?;
    let condition = condition(if_match.as_deref(), if_absent == Some(true))?;
    Ok(Entry { key, value, life, condition })
}

/// What is added if lines seem to end with CR alone.
pub(super) const RETURNS: &str =
    "; its lines seem to end with CR alone: convert them, for example with tr '\\r' '\\n' < FILE";

/// Why a line that does not begin with `{` is refused.
fn no_object(line: &[u8]) -> String {
    let hint = if line.starts_with(start::BYTE_ORDER_MARK) {
        ": it begins with a byte order mark (U+FEFF), which may stand at the start of a file only; remove it"
    } else if line.starts_with(b"[") {
        ", but an array: jq -c '.[]' FILE takes it apart"
    } else if line.contains(&0) {
        ": it has NUL bytes, as a file has that is damaged or no text"
    } else {
        ""
    };
    format!("it is not a JSON object{hint}")
}

/// Why an object can't be a key to set, in words for who wrote it.
fn explain(line: &[u8], error: &serde_json::Error) -> String {
    if let Err(invalid) = std::str::from_utf8(line) {
        let at = invalid.valid_up_to() + 1;
        return format!(
            "it is not UTF-8, at byte {at}; convert the file, for example with iconv -f LATIN1 -t UTF-8 FILE"
        );
    }
    let told = error.to_string();
    // It counts lines of its own.
    let what = told.rsplit_once(" at line ").map_or(told.as_str(), |(what, _)| what);
    let place =
        if error.column() == 0 { String::new() } else { format!(", at character {}", error.column()) };
    if error.is_eof() {
        return format!(
            "{what}{place}; an object must not be broken up: jq -c . FILE writes each in one piece"
        );
    }
    if what == "trailing characters" {
        let hint =
            if line.contains(&b'\r') { RETURNS } else { "; there must be one object and nothing else" };
        return format!("{what} behind the object{place}{hint}");
    }
    if what == "key must be a string" {
        return format!("the name of a field must be in double quotes{place}");
    }
    let wrong = error.is_data().then(|| wrong_field(line)).flatten();
    wrong.map_or_else(|| format!("{what}{place}"), |(wrong, mend)| format!("{wrong}{place}{mend}"))
}

/// The field of a wrong type: what is wrong, and how to mend it.
fn wrong_field(line: &[u8]) -> Option<(String, String)> {
    let object: serde_json::Map<String, Value> = serde_json::from_slice(line).ok()?;
    for name in ["key", "value"] {
        let kind = match object.get(name) {
            None | Some(Value::String(_)) => continue,
            Some(Value::Null) => "null",
            Some(Value::Bool(_)) => "true or false",
            Some(Value::Number(_)) => "a number",
            Some(Value::Array(_)) => "an array",
            Some(Value::Object(_)) => "an object",
        };
        let mend = format!("; jq -c '.{name} |= tostring' FILE makes a text of it");
        return Some((format!("the {name} is {kind}, expected a string"), mend));
    }
    for (name, expected) in
        [("ifMatch", "a version such as \"2:1047\", or \"*\""), ("ifAbsent", "true or false")]
    {
        let fits = |value: &Value| {
            value.is_null() || if name == "ifMatch" { value.is_string() } else { value.is_boolean() }
        };
        if let Some(wrong) = object.get(name).filter(|value| !fits(value)) {
            return Some((format!("{name}: {wrong} is not {expected}"), String::new()));
        }
    }
    let expires = object.get("expires").filter(|expires| !expires.is_null() && !expires.is_i64());
    expires
        .map(|expires| (format!("expires: {expires} is not a whole number of ms since 1970"), String::new()))
}
