//! Text as other programs write it: byte order marks, other encodings, other ends of lines, files that are cut off, and what is
//! said of them.

use std::io::Cursor;

use super::lines::READ_BYTES;
use super::*;

const MAX_LINE: usize = 1_000;
const MARK: &str = "\u{feff}";

/// The lines of an input that comes `step` bytes at a time.
fn read(text: &[u8], step: usize, format: Format) -> Result<Vec<Line>, String> {
    let mut reader =
        Reader::new(Steps(Cursor::new(text), step), format, MAX_LINE).expect("memory can be read")?;
    let mut lines = Vec::new();
    while let Some(some) = reader.next().expect("memory can be read") {
        lines.extend(some);
    }
    assert_eq!(reader.place().offset, text.len() as u64);
    Ok(lines)
}

struct Steps<'a>(Cursor<&'a [u8]>, usize);

impl Read for Steps<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let length = self.1.min(out.len());
        self.0.read(&mut out[..length])
    }
}

fn refused(text: &[u8], format: Format) -> String {
    read(text, 7, format).expect_err("it is refused")
}

/// Key and value of each line, or its number and why it is rejected.
fn told(lines: &[Line]) -> Vec<(String, String)> {
    let told = lines.iter().map(|line| match &line.entry {
        Ok(entry) => (entry.key.clone(), entry.value.clone()),
        Err(reason) => (line.number.to_string(), reason.clone()),
    });
    told.collect()
}

mod a_byte_order_mark {
    use super::*;

    #[test]
    fn is_passed_at_the_start() {
        for step in [1, 2, 1_000] {
            let lines =
                read(b"\xef\xbb\xbf{\"key\":\"k\",\"value\":\"v\"}\n", step, Format::Ndjson).expect("text");
            assert_eq!(told(&lines), [("k".into(), "v".into())]);
            let lines = read(b"\xef\xbb\xbfkey,value\nk,v\n", step, Format::Csv).expect("text");
            assert_eq!(told(&lines), [("k".into(), "v".into())]);
        }
        assert!(read(MARK.as_bytes(), 1, Format::Ndjson).expect("empty").is_empty());
    }

    #[test]
    fn is_part_of_a_key_behind_the_start() {
        let keys: Vec<_> = (0..3 * READ_BYTES / 20).map(|n| format!("{MARK}key{n:06}")).collect();
        let rows: String = keys.iter().map(|key| format!("{key},value\n")).collect();
        for step in [4_096, READ_BYTES] {
            let lines = read(format!("key,value\n{rows}").as_bytes(), step, Format::Csv).expect("text");
            let read: Vec<_> =
                lines.iter().map(|line| line.entry.as_ref().expect("a key").key.as_str()).collect();
            let changed = keys.iter().zip(&read).find(|(key, read)| key != *read);
            assert_eq!((changed, read.len()), (None, keys.len()));
        }
    }

    #[test]
    fn is_told_in_the_middle_of_json() {
        let text = format!("{{\"key\":\"k\",\"value\":\"v\"}}\n{MARK}{{\"key\":\"l\",\"value\":\"v\"}}\n");
        let lines = read(text.as_bytes(), 7, Format::Ndjson).expect("text");
        assert!(lines[1].entry.as_ref().expect_err("rejected").contains("byte order mark"), "{lines:?}");
        // The second of two is part of the first column's name.
        let wrong = refused(format!("{MARK}{MARK}key,value\n").as_bytes(), Format::Csv);
        assert!(wrong.contains("key and value"), "{wrong}");
    }
}

mod another_encoding {
    use super::*;

    fn utf16(text: &str, to_bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
        text.encode_utf16().flat_map(to_bytes).collect()
    }

    #[test]
    fn is_named_with_and_without_a_mark() {
        for (format, text) in
            [(Format::Ndjson, "{\"key\":\"k\",\"value\":\"v\"}\n"), (Format::Csv, "key,value\nk,v\n")]
        {
            for mark in ["", MARK] {
                let text = format!("{mark}{text}");
                for (bytes, order) in
                    [(utf16(&text, u16::to_le_bytes), "little"), (utf16(&text, u16::to_be_bytes), "big")]
                {
                    let wrong = refused(&bytes, format);
                    assert!(
                        wrong.contains(&format!("UTF-16 ({order}-endian)")) && wrong.contains("iconv"),
                        "{wrong}"
                    );
                }
                let wide: Vec<_> = text.chars().flat_map(|c| u32::from(c).to_le_bytes()).collect();
                assert!(refused(&wide, format).contains("UTF-32"), "{mark}");
            }
        }
    }

    #[test]
    fn of_one_byte_each_is_told_line_by_line() {
        let lines = read(b"{\"key\":\"k\xfc\",\"value\":\"v\"}\n", 7, Format::Ndjson).expect("text");
        let wrong = lines[0].entry.as_ref().expect_err("rejected");
        assert!(wrong.contains("not UTF-8, at byte 10") && wrong.contains("iconv"), "{wrong}");
        let lines = read(b"key,value\nk\xfc,v\n", 7, Format::Csv).expect("text");
        assert_eq!(told(&lines), [("2".into(), "the key is not UTF-8".into())]);
    }

    #[test]
    fn or_a_compressed_file_is_named() {
        for (bytes, name) in [
            (&b"\x1f\x8b\x08\x00\x00\x00\x00"[..], "gzip -dc"),
            (b"\x28\xb5\x2f\xfd\x24\x00", "zstd"),
            (b"Obj\x01\x04\x14", "--format avro"),
        ] {
            for format in [Format::Ndjson, Format::Csv] {
                let wrong = refused(bytes, format);
                assert!(wrong.contains(name), "{wrong}");
            }
        }
    }
}

mod a_json_array {
    use super::*;

    #[test]
    fn is_refused_as_such() {
        for text in ["[{\"key\":\"k\",\"value\":\"v\"}]", " \n\n [\n{\"key\":", "\u{feff}[]"] {
            let wrong = refused(text.as_bytes(), Format::Ndjson);
            assert!(wrong.contains("a JSON array") && wrong.contains("jq -c '.[]'"), "{wrong}");
        }
        assert!(read(b"[key,key,value\n1,2,3\n", 7, Format::Csv).is_ok(), "a name in a header");
    }
}

mod ends_of_csv_lines {
    use super::*;

    /// A header, six records, an empty line and one of the wrong length.
    const LINES: [&str; 9] = ["key,value", "a,1", "b,\"2@2\"", "", "c,3", "d,\"\"", "e,5", "f", "g,\"7@@\""];

    fn check(text: &str, inner: &str) {
        let expected = [
            ("a", "1".to_owned()),
            ("b", format!("2{inner}2")),
            ("c", "3".to_owned()),
            ("d", String::new()),
            ("e", "5".to_owned()),
            ("9", "it has 1 fields, the header has 2".to_owned()),
            ("g", format!("7{inner}{inner}")),
        ];
        for step in [1, 2, 3, 1_000] {
            let lines = read(text.as_bytes(), step, Format::Csv).expect("text");
            let expected = expected.iter().map(|(key, value)| ((*key).to_owned(), value.clone()));
            assert_eq!(told(&lines), expected.collect::<Vec<_>>(), "{text:?}");
            let numbers: Vec<_> = lines.iter().map(|line| line.number).collect();
            assert_eq!(numbers, [2, 3, 6, 7, 8, 9, 10], "{text:?}");
            for (index, line) in lines.iter().enumerate() {
                let reader =
                    Reader::new(text.as_bytes(), Format::Csv, MAX_LINE).expect("readable").expect("text");
                let mut rest = reader.go_on(&text.as_bytes()[line.next.offset as usize..], line.next);
                let mut after = Vec::new();
                while let Some(some) = rest.next().expect("readable") {
                    after.extend(some.into_iter().map(|line| line.number));
                }
                assert_eq!(after, numbers[index + 1..], "from {:?} of {text:?}", line.next);
            }
        }
    }

    #[test]
    fn may_be_cr_lf_or_both() {
        for end in ["\r", "\n", "\r\n"] {
            let text = LINES.map(|line| line.replace('@', end)).join(end);
            check(&text, end);
            check(&(text + end), end);
        }
    }

    #[test]
    fn may_be_mixed() {
        // Not from 1 on: an empty line that ends with LF, behind one that ends with CR, can't be told from CR and LF.
        for first in [0, 2] {
            let ends = ["\r", "\n", "\r\n"].into_iter().cycle().skip(first);
            let text: String =
                LINES.into_iter().zip(ends).map(|(line, end)| line.replace('@', "\n") + end).collect();
            check(&text, "\n");
        }
    }

    #[test]
    fn end_a_record_that_is_too_long() {
        let long = "x".repeat(2 * READ_BYTES);
        for end in ["\r", "\n", "\r\n"] {
            for step in [READ_BYTES / 2 + 1, READ_BYTES] {
                let text = format!("key,value{end}a,1{end}b,{long}{end}c,\"{long}{end}\"{end}d,4{end}");
                let lines = read(text.as_bytes(), step, Format::Csv).expect("text");
                let numbers: Vec<_> = lines.iter().map(|line| (line.number, line.entry.is_ok())).collect();
                assert_eq!(numbers, [(2, true), (3, false), (4, false), (6, true)], "{end:?}");
            }
        }
    }

    #[test]
    fn that_are_cr_alone_are_told_of_json() {
        let text = "{\"key\":\"a\",\"value\":\"1\"}\r{\"key\":\"b\",\"value\":\"2\"}\r";
        let lines = read(text.as_bytes(), 7, Format::Ndjson).expect("text");
        assert!(lines[0].entry.as_ref().expect_err("rejected").contains("CR alone"), "{lines:?}");
        let lines = read(text.repeat(2 * READ_BYTES / text.len()).as_bytes(), READ_BYTES, Format::Ndjson);
        let lines = lines.expect("text");
        assert!(
            lines.len() == 1 && lines[0].entry.as_ref().expect_err("rejected").contains("CR alone"),
            "{lines:?}"
        );
    }
}

mod quotes_of_csv {
    use super::*;

    #[test]
    fn that_are_not_closed_are_told_by_their_line() {
        for (text, line) in [
            ("key,value\na,1\nb,\"2\nc,3\nd,4\n", 3),
            ("key,value\n\"a\n\n\",\"1\nb,2", 4),
            ("key,value\r\"a\r\",\"1\r", 3),
            ("key,value\na,\"", 2),
            // Two stand for one.
            ("key,value\na,\"\"\"", 2),
        ] {
            for step in [1, 1_000] {
                let lines = read(text.as_bytes(), step, Format::Csv).expect("text");
                let wrong = lines.last().expect("a line").entry.as_ref().expect_err(text);
                let expected = format!("the quotes that begin in line {line} are not closed");
                assert!(wrong.starts_with(&expected), "{wrong}");
                assert_eq!(lines.iter().filter(|line| line.entry.is_err()).count(), 1, "{text}");
            }
        }
        let wrong = refused(b"\"key,value\na,1\n", Format::Csv);
        assert!(wrong.contains("header") && wrong.contains("begin in line 1 are not closed"), "{wrong}");
    }

    #[test]
    fn that_are_not_closed_take_no_memory() {
        let rows = "k,v\n".repeat(READ_BYTES);
        let text = format!("key,value\na,1\n\"b\n\",\"2\n{rows}");
        let lines = read(text.as_bytes(), READ_BYTES, Format::Csv).expect("text");
        let wrong = lines[1].entry.as_ref().expect_err("it is not closed");
        assert!(wrong.contains("begin in line 4 are not closed"), "{wrong}");
        assert!(lines.len() == 2 && lines[1].number == 3 && lines[1].text.len() <= 4 * SHOWN_CHARACTERS);
        // Closed by the next that come, a long way off.
        let lines = read((text + "k,\"v\n").as_bytes(), READ_BYTES, Format::Csv).expect("text");
        let wrong = lines[1].entry.as_ref().expect_err("it is too long");
        assert!(wrong.contains("perhaps the quotes that begin in line 4"), "{wrong}");
    }

    #[test]
    fn that_text_follows_are_told() {
        let text = "key,value\na,\"1\nb,2\nc,\"3\"\nd,\"4\" \ne,5\n";
        let lines = read(text.as_bytes(), 7, Format::Csv).expect("text");
        let wrong = lines[0].entry.as_ref().expect_err("no quote is doubled");
        assert!(wrong.contains("text follows in line 4") && wrong.contains("begins in line 2"), "{wrong}");
        assert_eq!(lines.iter().map(|line| line.entry.is_ok()).collect::<Vec<_>>(), [false, false, true]);
        assert!(read(b"key,value\na,b\"c\"d\n", 7, Format::Csv).expect("text")[0].entry.is_ok());
    }
}

mod nothing_that_can_be_read {
    use super::*;

    #[test]
    fn is_in_an_empty_file() {
        for text in ["", "\n", " \n\t\n"] {
            assert!(read(text.as_bytes(), 7, Format::Ndjson).expect("text").is_empty());
        }
        assert!(refused(b"", Format::Csv).contains("header") && refused(b"", Format::Avro).contains("Obj"));
    }

    #[test]
    fn is_in_bytes_of_zero() {
        let lines = read(&[0; 100], 7, Format::Ndjson).expect("bytes");
        assert!(lines[0].entry.as_ref().expect_err("rejected").contains("NUL bytes"), "{lines:?}");
        assert!(refused(&[0; 100], Format::Csv).contains("header"));
        let lines = read(b"key,value\nk,v\n\0\0\0\0", 7, Format::Csv).expect("text");
        assert_eq!(told(&lines)[1], ("3".into(), "it has 1 fields, the header has 2".into()));
    }

    #[test]
    fn is_under_a_header_with_other_separators() {
        for (header, names) in [("key;value\n", "semicolons"), ("key\tvalue\n", "tabs"), ("k,v\n", "'k,v'")] {
            assert!(refused(header.as_bytes(), Format::Csv).contains(names), "{header}");
        }
    }
}

mod reasons {
    use super::*;

    #[test]
    fn speak_of_fields_not_of_types() {
        for (line, says) in [
            (
                r#"{"key":1,"value":"v"}"#,
                "the key is a number, expected a string, at character 8; jq -c '.key |= tostring'",
            ),
            (r#"{"key":"k","value":null}"#, "the value is null"),
            (r#"{"key":"k","value":true}"#, "the value is true or false"),
            (r#"{"key":"k","value":{"a":1}}"#, "the value is an object"),
            (r#"{"key":"k","value":["a"]}"#, "the value is an array"),
            (r#"{"key":"k","value":"v","expires":1.5}"#, "expires: 1.5 is not a whole number of ms"),
            (r#"{"key":"k","value":"v","expires":"1"}"#, "expires: \"1\" is not a whole number of ms"),
            (r#"{"key":"k","value":"v","ttl":1.5}"#, "ttl is "),
            (r#"{"key":"k","value":"v"#, "must not be broken up: jq -c . FILE"),
            (r#"{"key":"k","value":"v"}{"key":"l","value":"v"}"#, "one object and nothing else"),
            (r#"{key:"k","value":"v"}"#, "in double quotes"),
            (r#"{"key":"k","key":"l","value":"v"}"#, "duplicate field `key`"),
            (r#"["k","v"]"#, "but an array: jq -c '.[]' FILE"),
        ] {
            let wrong = ndjson::entry(line.as_bytes()).expect_err(line);
            assert!(wrong.contains(says), "{wrong}");
            for internal in ["untagged", "enum", "invalid type", "i64", "struct", "variant", "line 1"] {
                assert!(!wrong.contains(internal), "{wrong}");
            }
        }
    }
}
