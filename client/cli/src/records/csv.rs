//! CSV: records under a header that names the fields; quoted as RFC 4180 has it. Lines end with LF, CR or both.

use std::io::{self, BufWriter, Read};

use anyhow::Result;
use bitacora_client::Record;
use bytes::Bytes;
use csv::{ByteRecord, Reader, ReaderBuilder};

use super::ends::{check_quotes, line_ends};
use super::lines::check_length;
use super::{Entry, Line, Place, condition, expires, life};
use crate::output::shown;

/// The header of what is written.
pub(super) const HEADER: &[u8] = b"key,value,expires\n";

pub(super) fn encode(records: &[Record]) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    let mut writer = csv::Writer::from_writer(BufWriter::new(&mut text));
    for record in records {
        let expires = expires(record).map_or_else(String::new, |at| at.to_string());
        writer.write_record([&record.key, &record.value, &expires])?;
    }
    writer.flush()?;
    drop(writer);
    Ok(text)
}

/// Where the fields are in a CSV record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Columns {
    count: usize,
    key: usize,
    value: usize,
    ttl: Option<usize>,
    expires: Option<usize>,
    uuid: Option<usize>,
    if_match: Option<usize>,
    if_absent: Option<usize>,
}

/// Goes in front of the bytes that are parsed: the crate passes a byte order mark at their start, which in the middle of a file is
/// part of a key, and it passes an empty line anywhere.
const GUARD: &[u8] = b"\n";

fn reader(bytes: &[u8]) -> Reader<impl Read> {
    ReaderBuilder::new().has_headers(false).flexible(true).from_reader(GUARD.chain(bytes))
}

/// The entries of whole records that begin at `start`.
pub(super) fn lines(
    start: Place,
    block: &Bytes,
    columns: &Columns,
    max_line: usize,
) -> io::Result<Vec<Line>> {
    let mut reader = reader(block);
    let mut lines = Vec::new();
    let mut record = ByteRecord::new();
    // The crate counts only the lines that end with LF.
    let (mut line, mut counted) = (start.line, 0);
    let without_guard = |byte: u64| (byte as usize).saturating_sub(GUARD.len());
    while reader.read_byte_record(&mut record).map_err(io::Error::other)? {
        let mut to = without_guard(reader.position().byte());
        let mut from = record.position().map_or(to, |position| without_guard(position.byte()));
        // Empty lines in front of it, and the LF behind its CR, are no part of it to the crate.
        from += block[from..to].iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        to += usize::from(block[..to].ends_with(b"\r") && block[to..].starts_with(b"\n"));
        let number = line + line_ends(&block[counted..from], true);
        line = number + line_ends(&block[from..to], true);
        counted = to;
        let text = block.slice(from..to);
        let trimmed = text.trim_ascii();
        let entry = check_quotes(&text, number)
            .and_then(|()| check_length(trimmed.len(), max_line))
            .and_then(|()| columns.entry(&record));
        lines.push(Line {
            number,
            next: Place { offset: start.offset + to as u64, line, ..start },
            text: text.slice_ref(trimmed),
            entry,
        });
    }
    Ok(lines)
}

/// A hint for a header whose names seem to be separated by something else.
fn other_separator(header: &[u8]) -> &'static str {
    match header {
        header if header.contains(&b',') => "",
        header if header.contains(&b';') => ", with semicolons where commas are expected",
        header if header.contains(&b'\t') => ", with tabs where commas are expected",
        _ => "",
    }
}

impl Columns {
    /// By the header line.
    pub(super) fn of(header: &[u8]) -> Result<Self, String> {
        check_quotes(header, 1).map_err(|wrong| format!("the CSV header: {wrong}"))?;
        let mut record = ByteRecord::new();
        let _ = reader(header).read_byte_record(&mut record).map_err(|error| error.to_string())?;
        let mut columns = Self { count: record.len(), ..Self::default() };
        let (mut key, mut value) = (None, None);
        for (at, name) in record.iter().enumerate() {
            let slot = match name.trim_ascii().to_ascii_lowercase().as_slice() {
                b"key" => &mut key,
                b"value" => &mut value,
                b"ttl" => &mut columns.ttl,
                b"expires" => &mut columns.expires,
                b"uuid" => &mut columns.uuid,
                b"ifmatch" => &mut columns.if_match,
                b"ifabsent" => &mut columns.if_absent,
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
                 this one begins with '{}'{}",
                shown(&String::from_utf8_lossy(header.trim_ascii())),
                other_separator(header)
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
        let if_absent = match filled(self.if_absent, "field ifAbsent")? {
            None | Some("false") => false,
            Some("true") => true,
            Some(other) => return Err(format!("ifAbsent: '{}' is neither true nor false", shown(other))),
        };
        Ok(Entry {
            condition: condition(filled(self.if_match, "field ifMatch")?, if_absent)?,
            key: text(self.key, "key")?.to_owned(),
            value: text(self.value, "value")?.to_owned(),
            life,
        })
    }
}
