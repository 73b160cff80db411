//! CSV: records under a header that names the fields; quoted as RFC 4180 has it.

use std::io::{self, BufWriter};

use anyhow::Result;
use bitacora_client::Record;
use bytes::Bytes;
use csv::{ByteRecord, ReaderBuilder};

use super::lines::check_length;
use super::{Entry, Line, Place, cut, expires, life};

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
}

/// The entries of whole records that begin at `start`.
pub(super) fn lines(
    start: Place,
    block: &Bytes,
    columns: &Columns,
    max_line: usize,
) -> io::Result<Vec<Line>> {
    let mut reader = ReaderBuilder::new().has_headers(false).flexible(true).from_reader(&block[..]);
    let mut lines = Vec::new();
    let mut record = ByteRecord::new();
    while reader.read_byte_record(&mut record).map_err(io::Error::other)? {
        let to = reader.position();
        let from = record.position().unwrap_or(to);
        let text = block.slice(from.byte() as usize..to.byte() as usize);
        let trimmed = text.trim_ascii();
        let entry = check_length(trimmed.len(), max_line).and_then(|()| columns.entry(&record));
        lines.push(Line {
            number: start.line + from.line() - 1,
            next: Place { offset: start.offset + to.byte(), line: start.line + to.line() - 1, ..start },
            text: text.slice_ref(trimmed),
            entry,
        });
    }
    Ok(lines)
}

impl Columns {
    /// By the header line.
    pub(super) fn of(header: &[u8]) -> Result<Self, String> {
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
