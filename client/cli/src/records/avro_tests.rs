//! Avro files: whole, damaged, by other programs, and hostile ones.

use std::io::Cursor;

use apache_avro::types::Value;
use apache_avro::{Codec, DeflateSettings, Schema, Writer};
use bitacora_client::{Position, Record, ServedFrom};
use proptest::prelude::*;

use super::avro::{BlockEncoder, SCHEMA};
use super::*;

const MAX_RECORD: usize = 100_000;

fn record(number: usize, value: &str, ttl: i64) -> Record {
    Record {
        key: format!("k{number}"),
        value: value.to_owned(),
        timestamp: 1_700_000_000_000,
        source: 1,
        ttl,
        uuid: format!("u{number}"),
        position: Position { partition: 1, offset: number as i64 },
        served_from: ServedFrom::Store,
    }
}

/// A file of some blocks.
fn file(codec: AvroCodec) -> (Vec<u8>, Vec<Record>) {
    let encoder = BlockEncoder::new(codec, *b"0123456789abcdef");
    let records: Vec<_> = (0..3_000)
        .map(|n| record(n, &"värde ".repeat(n % 50), if n % 3 == 0 { 0 } else { n as i64 }))
        .collect();
    let mut bytes = encoder.header().expect("encoded");
    for page in records.chunks(200) {
        bytes.extend(encoder.encode(page).expect("encoded"));
    }
    (bytes, records)
}

fn open(bytes: &[u8]) -> Result<Reader<Cursor<Vec<u8>>>, String> {
    Reader::new(Cursor::new(bytes.to_vec()), Format::Avro, MAX_RECORD).expect("memory can be read")
}

/// All lines up to the end or an error.
fn read(mut reader: Reader<Cursor<Vec<u8>>>) -> (Vec<Line>, Option<String>) {
    let mut lines = Vec::new();
    loop {
        match reader.next() {
            Ok(Some(some)) => lines.extend(some),
            Ok(None) => return (lines, None),
            Err(error) => return (lines, Some(error.to_string())),
        }
    }
}

fn keys(lines: &[Line]) -> Vec<&str> {
    lines.iter().map(|line| line.entry.as_ref().expect("valid").key.as_str()).collect()
}

#[test]
fn the_crate_reads_what_is_exported() {
    for codec in [AvroCodec::Null, AvroCodec::Deflate] {
        let (bytes, records) = file(codec);
        let reader = apache_avro::Reader::new(&bytes[..]).expect("a header");
        assert_eq!(reader.writer_schema(), &Schema::parse_str(SCHEMA).expect("a schema"));
        let read: Vec<_> = reader.collect::<Result<_, _>>().expect("whole");
        assert_eq!(read.len(), records.len());
        for (value, record) in read.iter().zip(&records) {
            let Value::Record(fields) = value else { panic!("a record") };
            let names: Vec<_> = fields.iter().map(|(name, _)| name.as_str()).collect();
            assert_eq!(names, ["key", "value", "expires", "timestamp", "uuid", "position"]);
            assert_eq!(fields[0].1, Value::String(record.key.clone()));
            let expires = match record.ttl {
                0 => Value::Union(0, Box::new(Value::Null)),
                at => Value::Union(1, Box::new(Value::Long(at))),
            };
            assert_eq!((&fields[2].1, &fields[3].1), (&expires, &Value::Long(record.timestamp)));
            assert_eq!(fields[5].1, Value::String(record.position.to_string()));
        }
    }
}

#[test]
fn every_place_of_a_file_can_be_gone_on_from() {
    let (bytes, records) = file(AvroCodec::Deflate);
    let (lines, error) = read(open(&bytes).expect("a header"));
    assert_eq!((lines.len(), error), (records.len(), None));
    assert_eq!(lines.last().map(|line| line.next.offset), Some(bytes.len() as u64));
    for index in (0..lines.len()).step_by(97).chain([lines.len() - 1]) {
        let line = &lines[index];
        assert_eq!(line.number, index as u64 + 1);
        let mut input = Cursor::new(bytes.clone());
        input.set_position(line.next.offset);
        let (rest, error) = read(open(&bytes).expect("a header").go_on(input, line.next));
        assert_eq!(error, None);
        assert_eq!(keys(&rest), keys(&lines[index + 1..]));
        assert!(rest.first().is_none_or(|next| next.number == line.number + 1));
    }
}

#[test]
fn a_file_that_is_cut_off_says_where() {
    let (bytes, _) = file(AvroCodec::Null);
    let ends: Vec<_> = read(open(&bytes).expect("a header")).0.iter().map(|line| line.next).collect();
    let is_block_end =
        |length: usize| ends.iter().any(|end| end.offset == length as u64 && end.records_into_block == 0);
    let header = open(&bytes).expect("a header").place().offset as usize;
    for length in
        (0..bytes.len()).step_by(1_511).chain(header - 5..header + 5).chain(bytes.len() - 40..bytes.len())
    {
        match open(&bytes[..length]) {
            Err(error) => {
                assert!(length < header && error.contains("header") || length < 4, "{length}: {error}");
            }
            Ok(_) if length == header || is_block_end(length) => {}
            Ok(reader) => {
                let error = read(reader).1.expect("it is cut off");
                assert!(error.contains("the block at byte") && error.contains("ends inside it"), "{error}");
                assert!(error.contains("again"), "it says how to mend it: {error}");
            }
        }
    }
}

#[test]
fn a_damaged_file_is_refused_with_a_reason() {
    let (bytes, _) = file(AvroCodec::Deflate);
    let header = open(&bytes).expect("a header").place().offset as usize;
    let mut marker = bytes.clone();
    *marker.last_mut().expect("a byte") ^= 1;
    assert!(read(open(&marker).expect("a header")).1.expect("damaged").contains("sync marker"));
    let mut size = bytes.clone();
    size.splice(header.., [2, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]);
    assert!(read(open(&size).expect("a header")).1.expect("damaged").contains("at most 64 MiB"));
    let mut packed = bytes.clone();
    packed[header + 8] ^= 0xff;
    assert!(read(open(&packed).expect("a header")).1.is_some());
    for (text, names) in [("", "Obj"), ("{\"key\":1}", "Obj"), ("Obj\u{1}", "header")] {
        let error = open(text.as_bytes()).err().expect("no Avro file");
        assert!(error.contains(names), "{error}");
    }
}

/// A file that another program wrote with this schema.
fn foreign(schema: &str, codec: Codec, values: &[Value]) -> Vec<u8> {
    let schema = Schema::parse_str(schema).expect("a schema");
    let mut writer = Writer::with_codec(&schema, Vec::new(), codec);
    for value in values {
        writer.append_value_ref(value).expect("it fits");
    }
    writer.into_inner().expect("written")
}

fn fields(fields: &[(&str, Value)]) -> Value {
    Value::Record(fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect())
}

#[test]
fn files_of_other_programs_are_read() {
    let text = |text: &str| Value::String(text.to_owned());
    let small = r#"{"type":"record","name":"R","fields":[{"name":"more","type":{"type":"array","items":"int"}},
        {"name":"value","type":["null","string"]},{"name":"key","type":"bytes"},{"name":"ttl","type":"int"}]}"#;
    let some = |key: &[u8], value: Value, ttl| {
        let more = Value::Array(vec![Value::Int(1)]);
        fields(&[
            ("more", more),
            ("value", value),
            ("key", Value::Bytes(key.to_vec())),
            ("ttl", Value::Int(ttl)),
        ])
    };
    let bytes = foreign(
        small,
        Codec::Deflate(DeflateSettings::default()),
        &[
            some(b"k", Value::Union(1, Box::new(text("v"))), 1_500),
            some(b"k", Value::Union(0, Box::new(Value::Null)), 1),
            some(b"\xff", Value::Union(1, Box::new(text("v"))), 1),
            some(b"k", Value::Union(1, Box::new(text("v"))), 0),
        ],
    );
    let (lines, error) = read(open(&bytes).expect("a header"));
    assert_eq!(error, None);
    let entry = Entry {
        key: "k".into(),
        value: "v".into(),
        life: Life::For(Duration::from_millis(1_500)),
        condition: WriteCondition::None,
    };
    assert_eq!(lines[0].entry, Ok(entry));
    for (line, names) in lines[1..].iter().zip(["value is null", "key is not UTF-8", "above 0"]) {
        assert!(line.entry.as_ref().expect_err(names).contains(names), "{line:?}");
    }

    // As the log has it: a time in `ttl`, which the uuid tells.
    let (log, long) = (bitacora_protocol::record::RECORD_SCHEMA, Value::Long);
    let record = |ttl| {
        let head =
            [("key", text("k")), ("value", text("v")), ("timestamp", long(1)), ("source", Value::Int(1))];
        fields(&[&head[..], &[("ttl", long(ttl)), ("uuid", text("u"))]].concat())
    };
    let (lines, _) = read(open(&foreign(log, Codec::Null, &[record(0), record(17)])).expect("a header"));
    let lives: Vec<_> = lines.iter().map(|line| line.entry.as_ref().expect("valid").life).collect();
    assert_eq!(lives, [Life::ForEver, Life::Until(17)]);
}

#[test]
fn files_that_can_not_be_imported_are_refused() {
    for (schema, names) in [
        (r#"{"type":"record","name":"R","fields":[{"name":"key","type":"string"}]}"#, "no field value"),
        (r#"{"type":"array","items":"string"}"#, "no record"),
        (
            r#"{"type":"record","name":"R","fields":[{"name":"key","type":"string"},{"name":"value","type":"string"},
                {"name":"next","type":["null","R"]}]}"#,
            "refers to itself",
        ),
    ] {
        let error = open(&foreign(schema, Codec::Null, &[])).err().expect(schema);
        assert!(error.contains(names), "{error}");
    }
    // Any number of records that have no bytes.
    let nulls = r#"{"type":"record","name":"R","fields":[{"name":"key","type":"null"},{"name":"value","type":"null"}]}"#;
    let bytes = foreign(nulls, Codec::Null, &[fields(&[("key", Value::Null), ("value", Value::Null)])]);
    assert!(read(open(&bytes).expect("a header")).1.expect("refused").contains("no bytes"));
    // What is packed a thousand times smaller than it is.
    let schema = Schema::parse_str(SCHEMA).expect("a schema");
    let mut writer = Writer::with_codec(&schema, Vec::new(), Codec::Deflate(DeflateSettings::default()));
    let mut header = std::mem::take(writer.get_mut());
    writer.flush().expect("written");
    header.append(writer.get_mut());
    let marker = header[header.len() - 16..].to_vec();
    let packed = miniz_oxide::deflate::compress_to_vec(&vec![0; 65 << 20], 1);
    let mut size = packed.len();
    header.push(2);
    size <<= 1;
    while size >= 0x80 {
        header.push((size & 0x7f) as u8 | 0x80);
        size >>= 7;
    }
    header.push(size as u8);
    header.extend(packed.iter().chain(&marker));
    assert!(read(open(&header).expect("a header")).1.expect("refused").contains("unpacked"));
}

#[test]
fn a_record_above_the_limit_is_rejected() {
    let encoder = BlockEncoder::new(AvroCodec::Deflate, [1; 16]);
    let records = [record(0, &"x".repeat(2 * MAX_RECORD), 0), record(1, "v", 0)];
    let bytes = [encoder.header().expect("encoded"), encoder.encode(&records).expect("encoded")].concat();
    let (lines, error) = read(open(&bytes).expect("a header"));
    assert_eq!((lines.len(), error), (2, None));
    assert!(lines[0].entry.as_ref().expect_err("it is too long").contains("--max-line"));
    assert!(lines[0].text.len() < 100 && lines[1].entry.is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_damage_is_read_or_refused(changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4), cut: prop::sample::Index) {
        let encoder = BlockEncoder::new(AvroCodec::Null, [9; 16]);
        let records: Vec<_> = (0..20).map(|n| record(n, "value", 0)).collect();
        let mut bytes = [encoder.header().expect("encoded"), encoder.encode(&records).expect("encoded")].concat();
        for (index, byte) in changes {
            let at = index.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(cut.index(bytes.len()) + 1);
        if let Ok(reader) = open(&bytes) {
            let _ = read(reader);
        }
    }
}
