//! What the first bytes of an input tell of it: a byte order mark, another encoding, another format.

/// U+FEFF in UTF-8, which some programs write at the start of a file.
pub(super) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// So many bytes are looked at, at most.
const MOST_BYTES: usize = 64 << 10;

/// How files begin that were compressed, and what unpacks them.
const PACKED: [(&[u8], &str, &str); 4] = [
    (b"\x1f\x8b", "gzip", "gzip -dc"),
    (b"\x28\xb5\x2f\xfd", "zstd", "zstd -dc"),
    (b"\xfd7zXZ\0", "xz", "xz -dc"),
    (b"PK\x03\x04", "zip", "unzip -p"),
];

/// Whether these bytes are too few to tell.
pub(super) fn is_short(start: &[u8]) -> bool {
    start.len() < 6 || start.len() < MOST_BYTES && text(start).trim_ascii_start().is_empty()
}

fn text(start: &[u8]) -> &[u8] {
    start.strip_prefix(BYTE_ORDER_MARK).unwrap_or(start)
}

/// The length of the byte order mark; the error says what the input is, if not text of this format, and how to convert it.
pub(super) fn check(start: &[u8], is_csv: bool) -> Result<usize, String> {
    if let Some((name, charset)) = other_encoding(start) {
        return Err(format!(
            "it is {name}, and import reads UTF-8; convert it, for example with iconv -f {charset} -t UTF-8 FILE"
        ));
    }
    if start.starts_with(b"Obj\x01") {
        return Err("it is an Avro file; give --format avro".to_owned());
    }
    if let Some((_, name, unpack)) = PACKED.iter().find(|(magic, ..)| start.starts_with(magic)) {
        let format = if is_csv { "csv" } else { "ndjson" };
        return Err(format!(
            "it is compressed with {name}; unpack it on the way: {unpack} FILE | bitacora import --format {format} -"
        ));
    }
    let text = text(start);
    if !is_csv && text.trim_ascii_start().starts_with(b"[") {
        return Err(format!("it is {ARRAY}"));
    }
    Ok(start.len() - text.len())
}

/// What is said of a JSON array, after "it is".
pub(super) const ARRAY: &str = "a JSON array, and import reads one JSON object a line; make lines of it, for example with jq -c '.[]' FILE";

/// An encoding that is not UTF-8: for people, and as iconv calls it. Both formats begin with two characters of ASCII.
fn other_encoding(start: &[u8]) -> Option<(&'static str, &'static str)> {
    Some(match start.first_chunk()? {
        [0xff, 0xfe, 0, 0] | [0, 0, 0xfe, 0xff] => ("UTF-32", "UTF-32"),
        [0xff, 0xfe, ..] => ("UTF-16 (little-endian)", "UTF-16"),
        [0xfe, 0xff, ..] => ("UTF-16 (big-endian)", "UTF-16"),
        [first, 0, 0, 0] if *first != 0 => ("UTF-32 (little-endian)", "UTF-32LE"),
        [0, 0, 0, first] if *first != 0 => ("UTF-32 (big-endian)", "UTF-32BE"),
        [first, 0, second, 0] if *first != 0 && *second != 0 => ("UTF-16 (little-endian)", "UTF-16LE"),
        [0, first, 0, second] if *first != 0 && *second != 0 => ("UTF-16 (big-endian)", "UTF-16BE"),
        _ => return None,
    })
}
