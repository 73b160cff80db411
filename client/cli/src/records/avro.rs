//! Avro object container files (specification 1.11, "Object Container Files"): a header with the schema, then blocks of
//! records, each with its count, its size and the file's sync marker after it.
//!
//! Blocks are told apart here, so that memory stays bounded, an import can go on at a block, and an error says where the file is
//! damaged. The records in them are written and read by apache-avro.

use std::io::{self, BufReader, Read};
use std::sync::LazyLock;

use anyhow::Result;
use apache_avro::types::Value;
use apache_avro::{Codec, DeflateSettings, Schema, Writer, from_avro_datum};
use bitacora_client::{Record, WriteCondition};
use bitacora_protocol::parse_schema;
use miniz_oxide::inflate::decompress_to_vec_with_limit;
use serde::Serialize;

use super::{Entry, Line, Place, condition, expires, life, ndjson};
use crate::cli::AvroCodec;

/// What `export` writes.
pub const SCHEMA: &str = include_str!("record.avsc");
static PARSED_SCHEMA: LazyLock<Schema> =
    LazyLock::new(|| Schema::parse_str(SCHEMA).expect("the schema is valid"));

/// Bytes of a block that is written, before compression.
const WRITTEN_BLOCK_BYTES: usize = 64 << 10;
/// A longer block, packed or unpacked, is not read. Avro's tools write some ten KiB.
const MAX_BLOCK_BYTES: usize = 64 << 20;
/// Records that are given out at a time, and about how many bytes of them.
const RECORDS_AT_A_TIME: usize = 1_000;
const BYTES_AT_A_TIME: usize = 256 << 10;

/// How to get a whole file again, for messages.
const MEND: &str = "copy or export the file again; what is before that place has been imported";

/// Encodes pages of records as blocks.
pub struct BlockEncoder {
    codec: Codec,
    sync_marker: [u8; 16],
}

#[derive(Serialize)]
struct Written<'a> {
    key: &'a str,
    value: &'a str,
    expires: Option<i64>,
    timestamp: i64,
    uuid: &'a str,
    position: String,
}

impl BlockEncoder {
    pub fn new(codec: AvroCodec, sync_marker: [u8; 16]) -> Self {
        let codec = match codec {
            AvroCodec::Null => Codec::Null,
            AvroCodec::Deflate => Codec::Deflate(DeflateSettings::default()),
        };
        Self { codec, sync_marker }
    }

    fn writer(&self, has_header: bool) -> Writer<'static, Vec<u8>> {
        // Into memory, as the crate takes a short write for a whole one.
        Writer::builder()
            .schema(&PARSED_SCHEMA)
            .writer(Vec::new())
            .codec(self.codec)
            .block_size(WRITTEN_BLOCK_BYTES)
            .marker(self.sync_marker)
            .has_header(has_header)
            .build()
    }

    /// What a file begins with.
    pub fn header(&self) -> Result<Vec<u8>> {
        Ok(self.writer(false).into_inner()?)
    }

    /// Whole blocks.
    pub fn encode(&self, records: &[Record]) -> Result<Vec<u8>> {
        let mut writer = self.writer(true);
        for record in records {
            let Record { key, value, timestamp, uuid, position, .. } = record;
            writer.append_ser(Written {
                key,
                value,
                expires: expires(record),
                timestamp: *timestamp,
                uuid,
                position: position.to_string(),
            })?;
        }
        Ok(writer.into_inner()?)
    }
}

/// Reads the blocks of a file.
pub struct Blocks<R> {
    input: Input<R>,
    header: Header,
    max_record: usize,
    place: Place,
    block: Option<Block>,
}

struct Header {
    schema: Schema,
    is_deflated: bool,
    sync_marker: [u8; 16],
    length: u64,
}

/// A block that is read, and unpacked.
struct Block {
    bytes: Vec<u8>,
    /// Bytes of it that are given out, and records that are not.
    given: usize,
    left: u64,
    /// Where the next block begins.
    end: u64,
}

/// Counts what is read.
struct Input<R> {
    input: BufReader<R>,
    offset: u64,
}

fn damaged(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

impl<R: Read> Read for Input<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(out)?;
        self.offset += read as u64;
        Ok(read)
    }
}

impl<R: Read> Input<R> {
    fn new(input: R, offset: u64) -> Self {
        Self { input: BufReader::new(input), offset }
    }

    /// A number as Avro writes it; `None` if the input ends before it.
    fn long(&mut self) -> io::Result<Option<i64>> {
        let (mut value, mut shift) = (0u64, 0);
        loop {
            let mut byte = [0];
            match self.read_exact(&mut byte) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && shift == 0 => return Ok(None),
                read => read?,
            }
            value |= u64::from(byte[0] & 0x7f) << shift;
            if byte[0] & 0x80 == 0 {
                return Ok(Some((value >> 1).cast_signed() ^ -(value & 1).cast_signed()));
            }
            shift += 7;
            if shift > 63 {
                return Err(damaged("a number has too many bytes"));
            }
        }
    }
}

impl Header {
    /// The outer error is about reading, the inner one says why the file is not one that can be imported.
    fn read(input: &mut Input<impl Read>) -> io::Result<Result<Self, String>> {
        let mut magic = [0; 4];
        match input.read_exact(&mut magic) {
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(error),
            read if read.is_err() || magic != *b"Obj\x01" => {
                return Ok(Err(
                    "it is no Avro object container file: it does not begin with Obj and a byte 1; \
                     for another format give --format"
                        .to_owned(),
                ));
            }
            _ => {}
        }
        // The crate makes room for what a length says before it reads.
        apache_avro::util::max_allocation_bytes(MAX_BLOCK_BYTES);
        let metadata = from_avro_datum(&Schema::map(Schema::Bytes), input, None);
        let mut sync_marker = [0; 16];
        let metadata = match (metadata, input.read_exact(&mut sync_marker)) {
            (Ok(Value::Map(metadata)), Ok(())) => metadata,
            (Err(error), _) => return Ok(Err(format!("its header can't be read: {error}; {MEND}"))),
            _ => return Ok(Err(format!("the file ends inside its header; {MEND}"))),
        };
        let text = |name: &str| match metadata.get(name) {
            Some(Value::Bytes(bytes)) => String::from_utf8_lossy(bytes).into_owned(),
            _ => String::new(),
        };
        let is_deflated = match text("avro.codec").as_str() {
            "" | "null" => false,
            "deflate" => true,
            other => {
                return Ok(Err(format!(
                    "its codec is {other}; null and deflate can be read: write it again, for example with \
                     avro-tools recodec --codec deflate"
                )));
            }
        };
        Ok(schema(&text("avro.schema")).map(|schema| Self {
            schema,
            is_deflated,
            sync_marker,
            length: input.offset,
        }))
    }
}

/// The schema of a file that can be imported.
fn schema(text: &str) -> Result<Schema, String> {
    let schema = parse_schema(text).map_err(|error| format!("its schema can't be read: {error}"))?;
    let Schema::Record(record) = &schema else { return Err("its schema is no record".to_owned()) };
    for name in ["key", "value"] {
        if !record.fields.iter().any(|field| field.name == name) {
            return Err(format!("its records have no field {name}; a record to import has key and value"));
        }
    }
    // Values of such a type can be nested without end, and reading them takes stack.
    if holds_itself(&schema, &mut Vec::new()) {
        return Err("its schema refers to itself".to_owned());
    }
    Ok(schema)
}

/// `path`: the records that a part of a schema lies in.
fn holds_itself(schema: &Schema, path: &mut Vec<String>) -> bool {
    match schema {
        Schema::Record(record) => {
            path.push(record.name.fullname(None));
            let holds = record.fields.iter().any(|field| holds_itself(&field.schema, path));
            path.pop();
            holds
        }
        Schema::Array(array) => holds_itself(&array.items, path),
        Schema::Map(map) => holds_itself(&map.types, path),
        Schema::Union(union) => union.variants().iter().any(|variant| holds_itself(variant, path)),
        Schema::Ref { name } => path.contains(&name.fullname(None)),
        _ => false,
    }
}

impl<R: Read> Blocks<R> {
    /// Reads the header. A record of more than `max_record` bytes is rejected.
    ///
    /// The outer error is about reading, the inner one says why the file is not one that can be imported.
    pub fn new(input: R, max_record: usize) -> io::Result<Result<Self, String>> {
        let mut input = Input::new(input, 0);
        Ok(Header::read(&mut input)?.map(|header| {
            let place = Place { offset: header.length, ..Place::START };
            Self { input, header, max_record, place, block: None }
        }))
    }

    /// Goes on elsewhere in the same file; `input` stands there already.
    pub fn go_on(self, input: R, place: Place) -> Self {
        Self { input: Input::new(input, place.offset), place, block: None, ..self }
    }

    pub fn place(&self) -> Place {
        self.place
    }

    /// The next records of a block; `None` at the end of the file.
    pub fn next(&mut self) -> io::Result<Option<Vec<Line>>> {
        let mut block = match self.block.take() {
            Some(block) => block,
            None => match self.next_block()? {
                Some(block) => block,
                None => return Ok(None),
            },
        };
        let (mut lines, start) = (Vec::new(), block.given);
        while block.left > 0 && lines.len() < RECORDS_AT_A_TIME && block.given - start < BYTES_AT_A_TIME {
            let number = self.place.line;
            let (length, value) = self.read_record(&mut block)?;
            self.place.line += 1;
            self.place.records_into_block += 1;
            if block.left == 0 {
                self.place = Place { offset: block.end, line: self.place.line, records_into_block: 0 };
            }
            let entry = if length > self.max_record {
                Err(format!("it has {length} bytes; a record has at most {} (--max-line)", self.max_record))
            } else {
                entry(value)
            };
            let text = match &entry {
                Ok(entry) => text_of(entry),
                Err(_) => format!("record {number}").into_bytes(),
            };
            lines.push(Line { number, next: self.place, text: text.into(), entry });
        }
        if block.left > 0 {
            self.block = Some(block);
        } else if block.given < block.bytes.len() {
            return Err(self.damage("has more bytes than its records"));
        }
        Ok(Some(lines))
    }

    /// Reads a block, and passes the records of it that the place is behind.
    fn next_block(&mut self) -> io::Result<Option<Block>> {
        let is_end = |error: &io::Error| error.kind() == io::ErrorKind::UnexpectedEof;
        let read = self.read_block();
        let block = match read {
            Err(error) if is_end(&error) => return Err(self.damage("is cut off: the file ends inside it")),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(self.damage(&error.to_string()));
            }
            block => block?,
        };
        let Some(mut block) = block else { return Ok(None) };
        for _ in 0..self.place.records_into_block {
            self.read_record(&mut block)?;
        }
        Ok(Some(block))
    }

    /// The errors for which `InvalidData` stands go on after "the block at byte N …".
    fn read_block(&mut self) -> io::Result<Option<Block>> {
        loop {
            let Some(count) = self.input.long()? else { return Ok(None) };
            let cut_off = || io::Error::from(io::ErrorKind::UnexpectedEof);
            let size = self.input.long()?.ok_or_else(cut_off)?;
            let left = u64::try_from(count).map_err(|_| damaged("has a negative number of records"))?;
            let size = usize::try_from(size)
                .ok()
                .filter(|size| *size <= MAX_BLOCK_BYTES)
                .ok_or_else(|| damaged(format!("says that it has {size} bytes; at most 64 MiB are read")))?;
            let mut bytes = vec![0; size];
            self.input.read_exact(&mut bytes)?;
            let mut marker = [0; 16];
            self.input.read_exact(&mut marker)?;
            if marker != self.header.sync_marker {
                return Err(damaged("does not end with the file's sync marker"));
            }
            if self.header.is_deflated {
                bytes = decompress_to_vec_with_limit(&bytes, MAX_BLOCK_BYTES)
                    .map_err(|error| damaged(format!("can't be unpacked to 64 MiB or less: {error}")))?;
            }
            if left > 0 {
                return Ok(Some(Block { bytes, given: 0, left, end: self.input.offset }));
            }
            self.place.offset = self.input.offset;
        }
    }

    /// The next record of a block, and its length in bytes.
    fn read_record(&self, block: &mut Block) -> io::Result<(usize, Value)> {
        let mut rest = &block.bytes[block.given..];
        let before = rest.len();
        if block.left == 0 {
            return Err(self.damage("has fewer records than the checkpoint says"));
        }
        let value = from_avro_datum(&self.header.schema, &mut rest, None)
            .map_err(|error| self.damage(&format!("has a record that can't be read: {error}")))?;
        let length = before - rest.len();
        if length == 0 {
            // There could be any number of them.
            return Err(self.damage("has a record of no bytes"));
        }
        block.given += length;
        block.left -= 1;
        Ok((length, value))
    }

    fn damage(&self, what: &str) -> io::Error {
        let Place { offset, line, .. } = self.place;
        damaged(format!("the block at byte {offset} (near record {line}) {what}; {MEND}"))
    }
}

/// The key that a record sets.
fn entry(value: Value) -> Result<Entry, String> {
    let Value::Record(fields) = value else { return Err("it is no record".to_owned()) };
    let (mut key, mut value, mut ttl, mut at, mut uuid) = (None, None, None, None, None);
    let (mut if_match, mut if_absent) = (None, None);
    for (name, field) in fields {
        let slot = match name.as_str() {
            "key" => &mut key,
            "value" => &mut value,
            "ttl" => &mut ttl,
            "expires" => &mut at,
            "uuid" => &mut uuid,
            "ifMatch" => &mut if_match,
            "ifAbsent" => &mut if_absent,
            _ => continue,
        };
        *slot = match field {
            Value::Union(_, inner) => Some(*inner),
            field => Some(field),
        }
        .filter(|field| *field != Value::Null);
    }
    let text = |name: &str, field: Option<Value>| match field {
        Some(Value::String(text)) => Ok(text),
        Some(Value::Bytes(bytes)) => String::from_utf8(bytes).map_err(|_| format!("the {name} is not UTF-8")),
        None => Err(format!("the {name} is null")),
        Some(_) => Err(format!("the {name} is no string")),
    };
    // A number has no unit, and here it can have none: ms, as everywhere in a record. Of a whole record it is a time.
    let number = |ms: i64| if uuid.is_some() { ms.to_string() } else { format!("{ms}ms") };
    let ttl = match ttl {
        None => None,
        Some(Value::Long(ms)) => Some(number(ms)),
        Some(Value::Int(ms)) => Some(number(ms.into())),
        Some(Value::String(text)) => Some(text),
        Some(_) => return Err("ttl is neither a number of ms nor a text such as 30s".to_owned()),
    };
    let at = match at {
        None => None,
        Some(Value::Long(ms)) => Some(ms),
        Some(_) => return Err("expires is no long, of ms since 1970".to_owned()),
    };
    let life = life(ttl.as_deref(), at, uuid.is_some() && ttl.is_some())?;
    let if_match = if_match.map(|version| text("ifMatch", Some(version))).transpose()?;
    let if_absent = match if_absent {
        None => false,
        Some(Value::Boolean(absent)) => absent,
        Some(_) => return Err("ifAbsent is no boolean".to_owned()),
    };
    let condition = condition(if_match.as_deref(), if_absent)?;
    Ok(Entry { key: text("key", key)?, value: text("value", value)?, life, condition })
}

/// A record as the file of rejected lines shows it: a line that can be imported as NDJSON.
fn text_of(entry: &Entry) -> Vec<u8> {
    let expires = match entry.life {
        super::Life::Until(at) => Some(at),
        _ => None,
    };
    let line = ndjson::Written {
        key: &entry.key,
        value: &entry.value,
        expires,
        if_match: match entry.condition {
            WriteCondition::None | WriteCondition::Absent => None,
            condition => Some(condition.to_string()),
        },
        if_absent: entry.condition == WriteCondition::Absent,
    };
    serde_json::to_vec(&line).unwrap_or_default()
}
