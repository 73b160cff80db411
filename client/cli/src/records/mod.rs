//! The records that are exported and imported, and the formats of their files.

pub mod avro;
#[cfg(test)]
mod avro_tests;
mod csv;
mod ends;
pub mod lines;
mod ndjson;
mod start;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod unusual_text_tests;

use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use bitacora_client::Record;
use bitacora_protocol::WriteCondition;
use bitacora_protocol::units::positive_duration;
use bytes::Bytes;

use crate::cli::{AvroCodec, Format, version};
use lines::Lines;

/// Characters of a rejected record that are shown.
const SHOWN_CHARACTERS: usize = 1_000;

/// What the names of files have to end in, for messages.
pub const EXTENSIONS: &str = ".csv, .avro, .ndjson, .jsonl and .json";

/// What stands for stdin and stdout.
const STREAMS: [&str; 3] = ["-", "/dev/stdin", "/dev/stdout"];

/// A key to set.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub value: String,
    pub life: Life,
    /// Its own; [`WriteCondition::None`] for none.
    pub condition: WriteCondition,
}

/// How long a key lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    ForEver,
    For(Duration),
    /// Ms since the epoch.
    Until(i64),
}

/// A record of the input: a line, or what CSV and Avro have for one.
#[derive(Debug)]
pub struct Line {
    /// From 1.
    pub number: u64,
    /// What follows it.
    pub next: Place,
    /// For people, if it is rejected; its length stands for the memory that it takes.
    pub text: Bytes,
    /// The error says why it can't be a key to set.
    pub entry: Result<Entry, String>,
}

/// Where in a file a reader is, and can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Bytes before it; in an Avro file, before the block that it is in.
    pub offset: u64,
    /// The number of the next line, from 1.
    pub line: u64,
    /// Records of the Avro file's block that are before it.
    pub records_into_block: u64,
}

impl Place {
    const START: Self = Self { offset: 0, line: 1, records_into_block: 0 };
}

/// The beginning of a text, as it is shown of a rejected record.
pub fn cut(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let mut cut: String = text.chars().take(SHOWN_CHARACTERS).collect();
    if text.chars().nth(SHOWN_CHARACTERS).is_some() {
        cut.push('…');
    }
    cut
}

/// A whole record, which a uuid tells, has a time in its `ttl`; an entry that somebody wrote has a time to live.
fn life(ttl: Option<&str>, expires: Option<i64>, whole_record: bool) -> Result<Life, String> {
    let absolute = match ttl {
        Some(ttl) if whole_record => ttl.parse::<i64>().ok(),
        _ => None,
    };
    match (absolute, ttl, expires) {
        (Some(_), _, Some(_)) | (None, Some(_), Some(_)) => Err("it has both a ttl and expires".to_owned()),
        (Some(0), ..) | (None, None, None | Some(0)) => Ok(Life::ForEver),
        (Some(at), ..) | (None, None, Some(at)) => Ok(Life::Until(at)),
        (None, Some(ttl), None) => {
            let ttl = positive_duration(ttl)
                .map_err(|error| format!("ttl: {error}; leave it out to keep the key for ever"))?;
            Ok(Life::For(ttl))
        }
    }
}

/// On which condition a record is written, by its fields `ifMatch` and `ifAbsent`.
pub fn condition(if_match: Option<&str>, if_absent: bool) -> Result<WriteCondition, String> {
    match (if_match, if_absent) {
        (None, false) => Ok(WriteCondition::None),
        (None, true) => Ok(WriteCondition::Absent),
        (Some(text), false) => version(text).map_err(|error| format!("ifMatch: {error}")),
        (Some(_), true) => Err("ifMatch and ifAbsent contradict each other; give one".to_owned()),
    }
}

/// Reads any of the formats.
pub enum Reader<R> {
    Lines(Lines<R>),
    Avro(Box<avro::Blocks<R>>),
}

impl<R: Read> Reader<R> {
    /// Begins at the start of `input`; of CSV and Avro it reads the header. A longer record than `max_line` bytes is rejected.
    ///
    /// The outer error is about reading; the inner one says why the input is none of this format, or what is wrong with the header.
    pub fn new(input: R, format: Format, max_line: usize) -> io::Result<Result<Self, String>> {
        Ok(match format {
            Format::Avro => avro::Blocks::new(input, max_line)?.map(|blocks| Self::Avro(Box::new(blocks))),
            Format::Ndjson => Lines::new(input, false, max_line)?.map(Self::Lines),
            Format::Csv => Lines::new(input, true, max_line)?.map(Self::Lines),
        })
    }

    /// Goes on elsewhere in the same file; `input` stands there already.
    pub fn go_on(self, input: R, place: Place) -> Self {
        match self {
            Self::Lines(lines) => Self::Lines(lines.go_on(input, place)),
            Self::Avro(blocks) => Self::Avro(Box::new(blocks.go_on(input, place))),
        }
    }

    pub fn place(&self) -> Place {
        match self {
            Self::Lines(lines) => lines.place(),
            Self::Avro(blocks) => blocks.place(),
        }
    }

    /// The next records, a few hundred KiB of them; `None` at the end.
    pub fn next(&mut self) -> io::Result<Option<Vec<Line>>> {
        match self {
            Self::Lines(lines) => lines.next(),
            Self::Avro(blocks) => blocks.next(),
        }
    }
}

/// Writes any of the formats.
pub enum Encoder {
    Ndjson,
    Csv,
    Avro(avro::BlockEncoder),
}

impl Encoder {
    /// `sync_marker`: of the Avro file that is written on, or of a new one.
    pub fn new(format: Format, codec: AvroCodec, sync_marker: [u8; 16]) -> Self {
        match format {
            Format::Ndjson => Self::Ndjson,
            Format::Csv => Self::Csv,
            Format::Avro => Self::Avro(avro::BlockEncoder::new(codec, sync_marker)),
        }
    }

    /// What a file begins with.
    pub fn header(&self) -> Result<Vec<u8>> {
        match self {
            Self::Ndjson => Ok(Vec::new()),
            Self::Csv => Ok(csv::HEADER.to_vec()),
            Self::Avro(encoder) => encoder.header(),
        }
    }

    pub fn encode(&self, records: &[Record]) -> Result<Vec<u8>> {
        match self {
            Self::Ndjson => ndjson::encode(records),
            Self::Csv => csv::encode(records),
            Self::Avro(encoder) => encoder.encode(records),
        }
    }
}

/// When a record expires, as files have it: ms since the epoch, `None` for never.
fn expires(record: &Record) -> Option<i64> {
    (record.ttl != 0).then_some(record.ttl)
}

impl Format {
    /// By the name; stdin and stdout are streams of NDJSON.
    pub fn of(path: &Path) -> Option<Self> {
        let extension = path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase());
        match extension.as_deref() {
            Some("csv") => Some(Self::Csv),
            Some("avro") => Some(Self::Avro),
            Some("ndjson" | "jsonl" | "json") => Some(Self::Ndjson),
            _ if STREAMS.iter().any(|stream| path == Path::new(stream)) => Some(Self::Ndjson),
            _ => None,
        }
    }
}
