//! The bytes that Java's Avro makes, read and made again by our wire code.
//!
//! `avro.txt` has a line of a name and hex each. Avro 1.7.7 and 1.12.1 print the same file, which the e2e suite
//! `rpc_java` checks. The server in it is Avro's own, with our protocol and fixed answers.

mod conversation;
mod extended;
mod options;
mod original;

use std::collections::BTreeSet;

use bitacora_protocol::record::KeyValue;
use bitacora_protocol::rpc::{ForeignProtocol, FrameReader, PROTOCOL, PROTOCOL_HASH, protocol_hash};

use crate::conversation::{LIMITS, Lines, long, unframed};

#[test]
fn protocols() {
    let lines = Lines::of(&["protocol/"]);
    assert_eq!(
        lines.text("protocol/extended/text"),
        PROTOCOL.as_str(),
        "it goes over the wire as Java prints it"
    );
    assert_eq!(lines.bytes("protocol/extended/md5"), *PROTOCOL_HASH);
    let original = lines.text("protocol/original/text");
    assert_eq!(lines.bytes("protocol/original/md5"), protocol_hash(original));
    ForeignProtocol::parse(original).expect("the original's protocol is one");
    lines.done();
}

#[test]
fn records() {
    let lines = Lines::of(&["record/"]);
    let uuid = "123e4567-e89b-12d3-a456-426614174000";
    let long = long();
    let long = long.as_str();
    let plain =
        KeyValue { key: "key", value: "value", timestamp: 1_400_000_000_000, source: 3, ttl: 0, uuid };
    let expected = [
        ("plain", plain),
        ("marker", KeyValue { key: "deleted", value: "", ttl: -1, ..plain }),
        (
            "unicode",
            KeyValue {
                key: "clé ☃",
                value: "🦀 cle\u{301}",
                timestamp: 1,
                source: 1,
                ttl: 1_900_000_000_000,
                uuid: "u",
            },
        ),
        (
            "extremes",
            KeyValue { key: "", value: "", timestamp: i64::MIN, source: i32::MAX, ttl: i64::MAX, uuid: "" },
        ),
        ("long", KeyValue { key: "key", value: long, timestamp: 0, source: i32::MIN, ttl: 0, uuid: "" }),
    ];
    for (name, record) in expected {
        let bytes = lines.bytes(&format!("record/{name}"));
        assert_eq!(KeyValue::decode(&bytes), Ok(record), "{name}");
        let mut made = Vec::new();
        record.encode(&mut made);
        assert_eq!(made, bytes, "{name}");
    }
    lines.done();
}

const GROUPS: [&str; 11] = [
    "protocol",
    "record",
    "unknown",
    "client-known",
    "same",
    "ping",
    "original",
    "metadata",
    "more-messages",
    "extended",
    "options",
];

#[test]
fn frames_are_found_however_the_stream_is_cut() {
    let lines = Lines::of(&[""]);
    let names = lines.names();
    let groups: BTreeSet<&str> = names.iter().filter_map(|name| name.split('/').next()).collect();
    assert_eq!(groups, BTreeSet::from(GROUPS), "a group that no test looks at");
    let frames = names.iter().filter(|name| name.contains("/request") || name.contains("/response"));
    let mut count = 0;
    for name in frames {
        let bytes = lines.bytes(name);
        let serial = i32::from_be_bytes(*bytes.first_chunk().expect("a serial"));
        let whole = unframed(name, serial, &bytes);
        let mut reader = FrameReader::new(LIMITS);
        for end in 0..bytes.len() {
            assert_eq!(reader.next(&bytes[..end], &mut Vec::new()), Ok(None), "{name} cut at {end}");
        }
        let mut scratch = Vec::new();
        let found = reader.next(&bytes, &mut scratch).map(|frame| frame.map(|frame| frame.message.to_vec()));
        assert_eq!(found, Ok(Some(whole)), "{name}");
        count += 1;
    }
    assert!(count > 60, "only {count} frames");
}
