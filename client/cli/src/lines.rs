//! What can be imported: lines of NDJSON and records of CSV, read in blocks of bounded size and parsed one by one.

use std::io::{self, Read};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use csv::{ByteRecord, ReaderBuilder};
use serde::Deserialize;

use crate::cli::Format;
use bitacora_protocol::units::positive_duration;

/// Read at a time. Long enough that a block fills several requests.
const CHUNK: usize = 256 << 10;
/// Of a rejected line, shown.
const CUT: usize = 1_000;

/// A key to set.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub value: String,
    pub life: Life,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    ForEver,
    For(Duration),
    /// Ms since the epoch.
    Until(i64),
}

/// A line of the input, or what CSV has for one.
#[derive(Debug)]
pub struct Line {
    /// From 1.
    pub number: u64,
    /// The offset of what follows it, and the number of the line there.
    pub end: u64,
    pub next_number: u64,
    pub text: Bytes,
    /// The error is a sentence.
    pub entry: Result<Entry, String>,
}

pub fn cut(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let mut cut: String = text.chars().take(CUT).collect();
    if text.chars().nth(CUT).is_some() {
        cut.push('…');
    }
    cut
}

/// Where in its file, and how, a reader goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub offset: u64,
    /// Of the next line, from 1.
    pub line: u64,
}

/// Whole lines that follow each other, or one that is too long to be kept.
enum Piece {
    Lines(Bytes),
    TooLong { head: Bytes, length: u64, newlines: u64 },
}

pub struct Lines<R> {
    input: R,
    format: Form,
    max_line: usize,
    place: Place,
    /// Read and not given out; of it `scanned` bytes, with `quoting` after them, are no end of a line.
    buffer: BytesMut,
    ended: bool,
}

enum Form {
    Ndjson,
    Csv(Columns),
}

/// Where the fields are in a CSV record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Columns {
    count: usize,
    key: usize,
    value: usize,
    ttl: Option<usize>,
    expires: Option<usize>,
    uuid: Option<usize>,
}

/// Where a CSV reader is with respect to quotes, in which an end of line is none.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Quoting {
    FieldStart,
    Plain,
    Quoted,
    /// After a quote in a quoted field: its end, or the first of two that stand for one.
    QuoteSeen,
}

impl Quoting {
    fn after(self, byte: u8) -> Self {
        match (self, byte) {
            (Self::Quoted, b'"') => Self::QuoteSeen,
            (Self::Quoted, _) => Self::Quoted,
            (Self::FieldStart | Self::QuoteSeen, b'"') => Self::Quoted,
            (_, b',' | b'\r' | b'\n') => Self::FieldStart,
            _ => Self::Plain,
        }
    }
}

impl<R: Read> Lines<R> {
    /// Begins at the start of `input`; of CSV it reads the header.
    ///
    /// The outer error is about reading, the inner one a sentence about the header.
    pub fn new(input: R, format: Format, max_line: usize) -> io::Result<Result<Self, String>> {
        let place = Place { offset: 0, line: 1 };
        let mut lines =
            Self { input, format: Form::Ndjson, max_line, place, buffer: BytesMut::new(), ended: false };
        if format == Format::Csv {
            lines.format = Form::Csv(Columns::default());
            let header = match lines.piece(true)? {
                Some(Piece::Lines(header)) => header,
                Some(Piece::TooLong { .. }) => return Ok(Err("the header line is too long".to_owned())),
                None => Bytes::new(),
            };
            match Columns::of(&header) {
                Ok(columns) => lines.format = Form::Csv(columns),
                Err(sentence) => return Ok(Err(sentence)),
            }
            lines.advance(&header);
        }
        Ok(Ok(lines))
    }

    /// Goes on elsewhere in the same file; `input` stands there already.
    pub fn go_on(self, input: R, place: Place) -> Self {
        Self { input, place, buffer: BytesMut::new(), ended: false, ..self }
    }

    pub fn place(&self) -> Place {
        self.place
    }

    /// The next lines, a few hundred KiB of them; `None` at the end.
    pub fn next(&mut self) -> io::Result<Option<Vec<Line>>> {
        match self.piece(false)? {
            None => Ok(None),
            Some(Piece::Lines(block)) => {
                let lines = match &self.format {
                    Form::Ndjson => ndjson(self.place, &block, self.max_line),
                    Form::Csv(columns) => csv(self.place, &block, columns, self.max_line)?,
                };
                self.advance(&block);
                Ok(Some(lines))
            }
            Some(Piece::TooLong { head, length, newlines }) => {
                let number = self.place.line;
                self.place = Place { offset: self.place.offset + length, line: number + newlines };
                let entry =
                    Err(format!("it has {length} bytes; a line has at most {} (--max-line)", self.max_line));
                let Place { offset: end, line: next_number } = self.place;
                Ok(Some(vec![Line { number, end, next_number, text: head, entry }]))
            }
        }
    }

    fn advance(&mut self, block: &[u8]) {
        self.place.offset += block.len() as u64;
        self.place.line += newlines(block);
    }

    /// Whole lines, as many as are at hand, or the first alone.
    fn piece(&mut self, one: bool) -> io::Result<Option<Piece>> {
        let is_csv = matches!(self.format, Form::Csv(_));
        let (mut quoting, mut scanned, mut whole) = (Quoting::FieldStart, 0, 0);
        loop {
            for (at, &byte) in self.buffer.iter().enumerate().skip(scanned) {
                if is_csv {
                    quoting = quoting.after(byte);
                }
                if byte == b'\n' && quoting != Quoting::Quoted {
                    whole = at + 1;
                    if one {
                        break;
                    }
                }
            }
            scanned = self.buffer.len();
            if whole > 0 {
                return Ok(Some(Piece::Lines(self.buffer.split_to(whole).freeze())));
            }
            if self.ended {
                let last = self.buffer.split().freeze();
                return Ok((!last.is_empty()).then_some(Piece::Lines(last)));
            }
            if scanned > self.max_line {
                return self.skip(quoting, is_csv).map(Some);
            }
            self.read()?;
        }
    }

    /// Passes a line that is too long, of which all that was read is in the buffer.
    fn skip(&mut self, mut quoting: Quoting, is_csv: bool) -> io::Result<Piece> {
        let head = Bytes::copy_from_slice(&self.buffer[..self.buffer.len().min(4 * CUT)]);
        let (mut length, mut lines) = (0, 0);
        loop {
            length += self.buffer.len() as u64;
            lines += newlines(&self.buffer);
            self.buffer.clear();
            self.read()?;
            let end = self.buffer.iter().position(|&byte| {
                if is_csv {
                    quoting = quoting.after(byte);
                }
                byte == b'\n' && quoting != Quoting::Quoted
            });
            if let Some(end) = end {
                let last = self.buffer.split_to(end + 1);
                let (length, newlines) = (length + last.len() as u64, lines + newlines(&last));
                return Ok(Piece::TooLong { head, length, newlines });
            }
            if self.ended {
                return Ok(Piece::TooLong { head, length, newlines: lines });
            }
        }
    }

    fn read(&mut self) -> io::Result<()> {
        let before = self.buffer.len();
        self.buffer.resize(before + CHUNK, 0);
        let read = loop {
            match self.input.read(&mut self.buffer[before..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        self.buffer.truncate(before + read.as_ref().copied().unwrap_or(0));
        self.ended = read? == 0;
        Ok(())
    }
}

fn newlines(bytes: &[u8]) -> u64 {
    bytes.iter().map(|byte| u64::from(*byte == b'\n')).sum()
}

fn ndjson(start: Place, block: &Bytes, max_line: usize) -> Vec<Line> {
    let mut offset = 0;
    let mut lines = Vec::new();
    for (number, line) in (start.line..).zip(block.split_inclusive(|byte| *byte == b'\n')) {
        let text = block.slice(offset..offset + line.len());
        offset += line.len();
        let trimmed = line.trim_ascii();
        if trimmed.is_empty() {
            continue;
        }
        let entry = fits(trimmed.len(), max_line).and_then(|()| entry_of_json(trimmed));
        let (end, next_number) = (start.offset + offset as u64, number + 1);
        lines.push(Line { number, end, next_number, text: text.slice_ref(trimmed), entry });
    }
    lines
}

fn csv(start: Place, block: &Bytes, columns: &Columns, max_line: usize) -> io::Result<Vec<Line>> {
    let mut reader = ReaderBuilder::new().has_headers(false).flexible(true).from_reader(&block[..]);
    let mut lines = Vec::new();
    let mut record = ByteRecord::new();
    while reader.read_byte_record(&mut record).map_err(io::Error::other)? {
        let to = reader.position();
        let from = record.position().unwrap_or(to);
        let text = block.slice(from.byte() as usize..to.byte() as usize);
        let trimmed = text.trim_ascii();
        let entry = fits(trimmed.len(), max_line).and_then(|()| columns.entry(&record));
        lines.push(Line {
            number: start.line + from.line() - 1,
            end: start.offset + to.byte(),
            next_number: start.line + to.line() - 1,
            text: text.slice_ref(trimmed),
            entry,
        });
    }
    Ok(lines)
}

fn fits(length: usize, max_line: usize) -> Result<(), String> {
    if length <= max_line {
        return Ok(());
    }
    Err(format!("it has {length} bytes; a line has at most {max_line} (--max-line)"))
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
#[serde(untagged, expecting = "ttl is neither a number of ms nor a text such as 30s")]
enum JsonTtl {
    Number(i64),
    Text(String),
}

fn entry_of_json(line: &[u8]) -> Result<Entry, String> {
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

impl Columns {
    fn of(header: &[u8]) -> Result<Self, String> {
        let mut record = ByteRecord::new();
        let mut reader = ReaderBuilder::new().has_headers(false).flexible(true).from_reader(header);
        let _ = reader.read_byte_record(&mut record).map_err(|error| error.to_string())?;
        let mut columns = Self { count: record.len(), ..Self::default() };
        let (mut key, mut value) = (None, None);
        for (at, name) in record.iter().enumerate() {
            let slot = match name.trim_ascii().to_ascii_lowercase().as_slice() {
                b"key" => &mut key,
                b"value" => &mut value,
                b"ttl" => &mut columns.ttl,
                b"expires" => &mut columns.expires,
                b"uuid" => &mut columns.uuid,
                _ => continue,
            };
            if slot.replace(at).is_some() {
                return Err(format!(
                    "the CSV header names the column {} twice",
                    String::from_utf8_lossy(name)
                ));
            }
        }
        match (key, value) {
            (Some(key), Some(value)) => Ok(Self { key, value, ..columns }),
            _ => Err(format!(
                "a CSV file begins with a header line that names the columns key and value, for example key,value,ttl; \
                 this one begins with '{}'",
                cut(header.trim_ascii()).chars().take(100).collect::<String>()
            )),
        }
    }

    fn entry(&self, record: &ByteRecord) -> Result<Entry, String> {
        if record.len() != self.count {
            return Err(format!("it has {} fields, the header has {}", record.len(), self.count));
        }
        let text = |at: usize, name: &str| {
            let field = record.get(at).unwrap_or_default();
            std::str::from_utf8(field).map_err(|_| format!("the {name} is not UTF-8"))
        };
        let filled = |at: Option<usize>, name: &str| {
            let field = at.map(|at| text(at, name).map(str::trim)).transpose()?;
            Ok::<_, String>(field.filter(|field| !field.is_empty()))
        };
        let expires = filled(self.expires, "field expires")?
            .map(|ms| ms.parse().map_err(|_| format!("expires: '{ms}' is not a number of ms since 1970")))
            .transpose()?;
        let life = life(filled(self.ttl, "ttl")?, expires, filled(self.uuid, "uuid")?.is_some())?;
        Ok(Entry {
            key: text(self.key, "key")?.to_owned(),
            value: text(self.value, "value")?.to_owned(),
            life,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A reader that gives out a few bytes at a time.
    struct Slow<'a>(&'a [u8], usize);

    impl Read for Slow<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let length = self.1.min(self.0.len()).min(out.len());
            out[..length].copy_from_slice(&self.0[..length]);
            self.0 = &self.0[length..];
            Ok(length)
        }
    }

    fn all(text: &[u8], step: usize, format: Format, max_line: usize) -> Vec<Line> {
        let mut lines = Lines::new(Slow(text, step), format, max_line).expect("readable").expect("a header");
        let mut all = Vec::new();
        while let Some(lines) = lines.next().expect("readable") {
            all.extend(lines);
        }
        assert_eq!(lines.place(), Place { offset: text.len() as u64, line: 1 + newlines(text) });
        all
    }

    fn entry(line: &str) -> Result<Entry, String> {
        entry_of_json(line.as_bytes())
    }

    #[test]
    fn lines_of_json() {
        let life = |line: &str| entry(line).map(|entry| entry.life);
        let plain = Entry { key: "k".into(), value: "ü\n".into(), life: Life::ForEver };
        assert_eq!(entry(r#"{"value":"ü\n","key":"k","more":[1]}"#), Ok(plain));
        assert_eq!(life(r#"{"key":"k","value":"","ttl":"30s"}"#), Ok(Life::For(Duration::from_secs(30))));
        assert_eq!(life(r#"{"key":"k","value":"","ttl":1500}"#), Ok(Life::For(Duration::from_millis(1_500))));
        assert_eq!(life(r#"{"key":"k","value":"","ttl":null,"expires":17}"#), Ok(Life::Until(17)));
        // What scan and the API print.
        let record =
            |ttl: i64| format!(r#"{{"key":"k","value":"","timestamp":1,"source":1,"ttl":{ttl},"uuid":"u"}}"#);
        assert_eq!(life(&record(0)), Ok(Life::ForEver));
        assert_eq!(life(&record(1_700_000_000_000)), Ok(Life::Until(1_700_000_000_000)));
        assert_eq!(life(&record(-1)), Ok(Life::Until(-1)), "a delete marker never lives");
        for (wrong, names) in [
            ("", "not a JSON object"),
            ("{", "EOF"),
            (r#"["k","v"]"#, "not a JSON object"),
            (r#"{"key":"k"}"#, "missing field `value`"),
            (r#"{"key":"k","value":1}"#, "expected a string, at character 20"),
            (r#"{"key":"k","value":"v"} x"#, "trailing"),
            (r#"{"key":"k","value":"v","ttl":0}"#, "above 0"),
            (r#"{"key":"k","value":"v","ttl":-5}"#, "not a time"),
            (r#"{"key":"k","value":"v","ttl":[]}"#, "ttl is neither"),
            (r#"{"key":"k","value":"v","ttl":1,"expires":1}"#, "both"),
        ] {
            let error = entry(wrong).expect_err(wrong);
            assert!(error.contains(names) && !error.contains("line"), "{error}");
        }
    }

    #[test]
    fn lines_are_numbered_and_empty_ones_passed() {
        let text = b"{\"key\":\"a\",\"value\":\"1\"}\r\n\n  \n{\"key\":\"b\",\"value\":\"2\"}";
        let lines = all(text, 5, Format::Ndjson, 100);
        let told: Vec<_> = lines.iter().map(|line| (line.number, line.end, line.next_number)).collect();
        assert_eq!(told, [(1, 25, 2), (4, text.len() as u64, 5)]);
        assert!(
            lines
                .iter()
                .all(|line| line.entry.is_ok() && line.text.starts_with(b"{") && line.text.ends_with(b"}"))
        );
    }

    #[test]
    fn records_of_csv() {
        let text = b"\xef\xbb\xbfvalue,Key,ttl,note\r\n\"a \"\"b\"\"\r\nc\",k 1,,x\r\n\r\nq\"q,k2,30s,\"\"\r\n1,2\n\xff,k,,\n,k3,x,\nlast,k4,,";
        let lines = all(text, 7, Format::Csv, 100);
        let ok: Vec<_> = lines.iter().filter_map(|line| line.entry.as_ref().ok()).collect();
        assert_eq!(ok[0], &Entry { key: "k 1".into(), value: "a \"b\"\r\nc".into(), life: Life::ForEver });
        assert_eq!(ok[1].life, Life::For(Duration::from_secs(30)));
        assert_eq!((ok[1].value.as_str(), ok[2].value.as_str(), ok.len()), ("q\"q", "last", 3));
        let errors: Vec<_> = lines
            .iter()
            .filter_map(|line| Some((line.number, line.entry.as_ref().err()?.as_str())))
            .collect();
        assert_eq!(errors[..2], [(6, "it has 2 fields, the header has 4"), (7, "the value is not UTF-8")]);
        assert!(errors[2].0 == 8 && errors[2].1.contains("not a time"), "{errors:?}");
    }

    #[test]
    fn a_csv_file_needs_a_header() {
        for (text, names) in [("", "header"), ("a,b\n", "'a,b'"), ("key,value,key\n", "twice")] {
            let error = Lines::new(text.as_bytes(), Format::Csv, 100).expect("readable").err().expect(text);
            assert!(error.contains(names), "{error}");
        }
    }

    #[test]
    fn a_line_above_the_limit_is_passed_without_being_held() {
        let long = "x".repeat(3 * CHUNK);
        for (format, head, quote) in [(Format::Ndjson, "", ""), (Format::Csv, "key,value\n", "\"")] {
            let line = |n: u8| match format {
                Format::Ndjson => format!("{{\"key\":\"{n}\",\"value\":\"v\"}}\n"),
                Format::Csv => format!("{n},v\n"),
            };
            // In quotes a newline ends nothing, so the long record has one more line there.
            let inner = if quote.is_empty() { "" } else { "\n9,9\n" };
            let text = format!("{head}{}{quote}{long}{inner}{quote}\n{}", line(1), line(2));
            let lines = all(text.as_bytes(), CHUNK, format, 1_000);
            let keys: Vec<_> =
                lines.iter().filter_map(|line| Some(line.entry.as_ref().ok()?.key.as_str())).collect();
            assert_eq!(keys, ["1", "2"]);
            let rejected = lines.iter().find(|line| line.entry.is_err()).expect("the long one");
            assert!(rejected.text.len() <= 4 * CUT && cut(&rejected.text).chars().count() == CUT + 1);
            let first = 2 + newlines(head.as_bytes());
            assert_eq!(
                (rejected.number, rejected.next_number),
                (first, first + 1 + newlines(inner.as_bytes()))
            );
        }
    }

    proptest! {
        #[test]
        fn csv_that_is_written_is_read_back_whatever_the_steps(
            rows in proptest::collection::vec(("[a-z\"\n\r, ü]{1,8}", "[a-z\"\n\r, ü]{0,8}"), 0..20),
            step in 1usize..40,
        ) {
            let mut writer = csv::Writer::from_writer(Vec::new());
            writer.write_record(["key", "value"]).expect("written");
            for (key, value) in &rows {
                writer.write_record([key, value]).expect("written");
            }
            let text = writer.into_inner().expect("flushed");
            let lines = all(&text, step, Format::Csv, 1_000);
            let read: Vec<_> = lines.into_iter().map(|line| {
                let entry = line.entry.expect("valid");
                (entry.key, entry.value)
            }).collect();
            prop_assert_eq!(read, rows);
        }

        #[test]
        fn any_bytes_are_read_to_the_end(bytes: Vec<u8>, step in 1usize..40) {
            all(&bytes, step, Format::Ndjson, 10);
            all(&[b"key,value\n", bytes.as_slice()].concat(), step, Format::Csv, 10);
        }
    }
}
