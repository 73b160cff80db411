//! What the formats read and write.

use std::io::{self, Read};
use std::time::Duration;

use proptest::prelude::*;

use super::ends::line_ends;
use super::lines::READ_BYTES;
use super::*;

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
    let mut lines = Reader::new(Slow(text, step), format, max_line).expect("readable").expect("a header");
    let mut all = Vec::new();
    while let Some(lines) = lines.next().expect("readable") {
        all.extend(lines);
    }
    assert_eq!(
        lines.place(),
        Place {
            offset: text.len() as u64,
            line: 1 + line_ends(text, format == Format::Csv),
            records_into_block: 0
        }
    );
    all
}

fn entry(line: &str) -> Result<Entry, String> {
    ndjson::entry(line.as_bytes())
}

#[test]
fn lines_of_json() {
    let life = |line: &str| entry(line).map(|entry| entry.life);
    let plain =
        Entry { key: "k".into(), value: "ü\n".into(), life: Life::ForEver, condition: WriteCondition::None };
    assert_eq!(entry(r#"{"value":"ü\n","key":"k","more":[1]}"#), Ok(plain));
    assert_eq!(life(r#"{"key":"k","value":"","ttl":"30s"}"#), Ok(Life::For(Duration::from_secs(30))));
    assert_eq!(life(r#"{"key":"k","value":"","ttl":"1500ms"}"#), Ok(Life::For(Duration::from_millis(1_500))));
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
        (r#"{"key":"k","value":"v","ttl":1500}"#, "its unit is missing; write 1500s or 1500ms"),
        (r#"{"key":"k","value":"v","ttl":"60"}"#, "its unit is missing; write 60s or 60ms"),
        (r#"{"key":"k","value":"v","ttl":[]}"#, "ttl is not a time such as"),
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
    let told: Vec<_> = lines.iter().map(|line| (line.number, line.next.offset, line.next.line)).collect();
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
    assert_eq!(
        ok[0],
        &Entry {
            key: "k 1".into(),
            value: "a \"b\"\r\nc".into(),
            life: Life::ForEver,
            condition: WriteCondition::None
        }
    );
    assert_eq!(ok[1].life, Life::For(Duration::from_secs(30)));
    assert_eq!((ok[1].value.as_str(), ok[2].value.as_str(), ok.len()), ("q\"q", "last", 3));
    let errors: Vec<_> =
        lines.iter().filter_map(|line| Some((line.number, line.entry.as_ref().err()?.as_str()))).collect();
    assert_eq!(errors[..2], [(6, "it has 2 fields, the header has 4"), (7, "the value is not UTF-8")]);
    assert!(errors[2].0 == 8 && errors[2].1.contains("not a time"), "{errors:?}");
}

#[test]
fn a_csv_file_needs_a_header() {
    for (text, names) in [("", "header"), ("a,b\n", "'a,b'"), ("key,value,key\n", "twice")] {
        let error = Reader::new(text.as_bytes(), Format::Csv, 100).expect("readable").err().expect(text);
        assert!(error.contains(names), "{error}");
    }
}

#[test]
fn a_line_above_the_limit_is_passed_without_being_held() {
    let long = "x".repeat(3 * READ_BYTES);
    for (format, head, quote) in [(Format::Ndjson, "", ""), (Format::Csv, "key,value\n", "\"")] {
        let line = |n: u8| match format {
            Format::Ndjson => format!("{{\"key\":\"{n}\",\"value\":\"v\"}}\n"),
            _ => format!("{n},v\n"),
        };
        // In quotes a newline ends nothing, so the long record has one more line there.
        let inner = if quote.is_empty() { "" } else { "\n9,9\n" };
        let text = format!("{head}{}{quote}{long}{inner}{quote}\n{}", line(1), line(2));
        let lines = all(text.as_bytes(), READ_BYTES, format, 1_000);
        let keys: Vec<_> =
            lines.iter().filter_map(|line| Some(line.entry.as_ref().ok()?.key.as_str())).collect();
        assert_eq!(keys, ["1", "2"]);
        let rejected = lines.iter().find(|line| line.entry.is_err()).expect("the long one");
        assert!(
            rejected.text.len() <= 4 * SHOWN_CHARACTERS
                && cut(&rejected.text).chars().count() == SHOWN_CHARACTERS + 1
        );
        let first = 2 + line_ends(head.as_bytes(), false);
        assert_eq!(
            (rejected.number, rejected.next.line),
            (first, first + 1 + line_ends(inner.as_bytes(), false))
        );
    }
}

proptest! {
    #[test]
    fn csv_that_is_written_is_read_back_whatever_the_steps(
        rows in proptest::collection::vec(("[a-z\"\n\r, ü]{1,8}", "[a-z\"\n\r, ü]{0,8}"), 0..20),
        step in 1usize..40,
    ) {
        let mut writer = ::csv::Writer::from_writer(Vec::new());
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
        // A first line that is text, since the first bytes tell other encodings and formats.
        all(&[b"x\n", bytes.as_slice()].concat(), step, Format::Ndjson, 10);
        all(&[b"key,value\n", bytes.as_slice()].concat(), step, Format::Csv, 10);
    }
}
