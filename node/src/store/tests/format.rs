//! The bytes of entries: every record survives, in as many bytes as it should, and any other bytes are refused.

use bitacora_protocol::record::{KeyValue, OwnedKeyValue, source, ttl};
use proptest::prelude::*;

use super::*;
use crate::testing::damage::{damaged, damages};

fn numbers() -> impl Strategy<Value = i64> {
    let now = 1_790_000_000_000_i64;
    prop_oneof![
        Just(0),
        Just(-1),
        any::<i64>(),
        0..100_i64,
        now - 70_000..now + 70_000,
        (0..64_u32, -2..2_i64).prop_map(|(bit, more)| (1_i64 << bit).wrapping_add(more)),
    ]
}

fn uuids() -> impl Strategy<Value = String> {
    let canonical = any::<u128>().prop_map(|bits| uuid::Uuid::from_u128(bits).to_string());
    prop_oneof![
        3 => canonical.clone(),
        1 => canonical.clone().prop_map(|uuid| uuid.to_uppercase()),
        1 => canonical.clone().prop_map(|uuid| uuid.replace('-', "")),
        1 => canonical.clone().prop_map(|uuid| format!("{{{uuid}}}")),
        1 => canonical.prop_map(|uuid| uuid.replacen('a', "ä", 1)),
        1 => ".*",
        1 => "[0-9a-f-]{36}",
        1 => ".{300}",
    ]
}

prop_compose! {
    fn records()(
        key in ".+",
        value in ".*",
        timestamp in numbers(),
        source in prop_oneof![Just(source::PRODUCER), any::<i32>()],
        ttl in numbers(),
        uuid in uuids(),
    ) -> OwnedKeyValue {
        OwnedKeyValue { key, value, timestamp, source, ttl, uuid }
    }
}

prop_compose! {
    fn places()(partition in prop_oneof![0..300_i32, any::<i32>()], offset in numbers()) -> Position {
        Position { partition, offset }
    }
}

proptest! {
    #[test]
    fn every_record_survives(
        record in records(),
        position in places(),
        written in numbers(),
        near in prop::option::of(-40_000..40_000_i64),
    ) {
        let record = record.as_borrowed();
        let record = KeyValue { timestamp: near.map_or(record.timestamp, |near| written.wrapping_add(near)), ..record };
        let entry = Entry::new(position, log_ms(written), &record);
        let again = Entry::from_stored(record.key.as_bytes(), entry.as_stored());
        prop_assert_eq!(again.as_ref(), Some(&entry));
        let mut uuid = UuidText::default();
        prop_assert_eq!(entry.record(&mut uuid), Some(record));
        prop_assert_eq!(entry.value_bytes(), Some(record.value.as_bytes()));
        prop_assert_eq!((entry.key(), entry.position(), entry.timestamp(), entry.ttl()), (record.key.as_bytes(), position, log_ms(written), record.ttl));
        prop_assert!(entry.has_record() && !entry.is_provisional() && entry.is_of(record.key.as_bytes()) && !entry.is_of(b""));
        let mut encoded = Vec::new();
        record.encode(&mut encoded);
        prop_assert_eq!(entry.to_avro(), Some(encoded));
        let answer = KeyValue { timestamp: written, source: source::LOG, ..record };
        prop_assert_eq!(entry.answer(&mut uuid), Some(answer));
        prop_assert_eq!(EntryHead::of(entry.as_stored()), Some(entry.head()));
        let shown = entry.as_provisional();
        prop_assert_eq!(shown.head(), EntryHead { is_provisional: true, ..entry.head() });
        prop_assert_eq!(shown.record(&mut uuid), Some(record));
        prop_assert_eq!(Entry::from_stored(record.key.as_bytes(), shown.as_stored()), Some(shown));
    }

    #[test]
    fn what_has_no_record_survives(key in ".+", position in places(), written in numbers(), ttl in numbers()) {
        let entry = Entry::without_record(key.as_bytes(), position, log_ms(written), ttl);
        for entry in [entry.clone(), entry.as_provisional()] {
            prop_assert_eq!((entry.key(), entry.position(), entry.timestamp(), entry.ttl()), (key.as_bytes(), position, log_ms(written), ttl));
            prop_assert!(!entry.has_record() && entry.value().is_none() && entry.to_avro().is_none());
            prop_assert_eq!(Entry::from_stored(key.as_bytes(), entry.as_stored()), Some(entry));
        }
    }

    /// There is one spelling of everything: what is read is what would be written.
    #[test]
    fn any_bytes_are_an_entry_or_refused(bytes: Vec<u8>, record in records(), position in places(), written in numbers(), damages in damages()) {
        let whole = Entry::new(position, log_ms(written), &record.as_borrowed());
        for bytes in [bytes, damaged(whole.as_stored(), &damages)] {
            let head = EntryHead::of(&bytes);
            let Some(entry) = Entry::from_stored(b"k", &bytes) else { continue };
            prop_assert_eq!(head, Some(entry.head()));
            prop_assert_eq!(entry.as_stored(), bytes.as_slice());
            let again = match entry.record(&mut UuidText::default()) {
                Some(record) => Entry::new(entry.position(), entry.timestamp(), &record),
                None if entry.has_record() => {
                    prop_assert!(entry.value().is_none(), "its value is no text");
                    continue;
                }
                None => Entry::without_record(b"k", entry.position(), entry.timestamp(), entry.ttl()),
            };
            prop_assert_eq!(if entry.is_provisional() { again.as_provisional() } else { again }, entry);
        }
    }

    #[test]
    fn an_entry_that_is_cut_short_is_another_or_refused(record in records(), position in places(), written in numbers()) {
        let record = KeyValue { value: "", ..record.as_borrowed() };
        let whole = Entry::new(position, log_ms(written), &record);
        for end in 0..whole.as_stored().len() {
            prop_assert_eq!(Entry::from_stored(b"k", &whole.as_stored()[..end]), None, "the first {}", end);
        }
        let without = Entry::without_record(b"k", position, log_ms(written), record.ttl);
        let longer = [without.as_stored(), b"v"].concat();
        prop_assert_eq!(Entry::from_stored(b"k", &longer), None);
    }
}

/// An entry put together by hand: flags, the head from `1:5` at 9 ms on, and what follows.
fn spelled(flags: u8, head: &[&[u8]], rest: &[&[u8]]) -> Option<Entry> {
    Entry::from_stored(b"k", &[&[flags][..], &head.concat(), &rest.concat()].concat())
}

/// Chance finds none of these.
#[test]
fn a_number_in_more_bytes_than_it_needs_is_refused() {
    const RECORD: u8 = 0x40;
    const LONG: u8 = 0x20;
    let (partition, offset, time): (&[u8], _, _) = (&[1], [0, 0, 0, 0, 5], [0, 0, 0, 0, 0, 9]);
    let (long_offset, long_time) = (5_i64.to_be_bytes(), 9_i64.to_be_bytes());
    let body: &[&[u8]] = &[&[0, 0], &[7; 16], b"v"];
    let head = [partition, &offset, &time];
    let short = spelled(RECORD, &head, body).expect("it is as a node writes it");
    assert_eq!((short.position(), short.value()), (Position { partition: 1, offset: 5 }, Some("v")));
    for overlong in [
        &[0x81, 0][..],
        &[0x80, 0],
        &[0x81, 0x80, 0],
        &[0x81, 0x80, 0x80, 0x80, 0x80, 1],
        &[0xff, 0xff, 0xff, 0xff, 0x1f],
    ] {
        assert_eq!(spelled(RECORD, &[overlong, &offset, &time], body), None, "a partition as {overlong:x?}");
    }
    let most = spelled(RECORD, &[&[0xff, 0xff, 0xff, 0xff, 0x0f], &offset, &time], body)
        .expect("five bytes are the most");
    assert_eq!(most.position().partition, -1);
    assert_eq!(spelled(RECORD | LONG, &[partition, &long_offset, &long_time], body), None, "both would fit");
    for (offset, time) in [(1 << 40, 9), (5, 1 << 48), (-1, 9), (5, -1)] {
        let (offset, time): (i64, i64) = (offset, time);
        assert!(
            spelled(RECORD | LONG, &[partition, &offset.to_be_bytes(), &time.to_be_bytes()], body).is_some()
        );
    }
    // The length of a uuid that is text.
    let as_text = |length: &[u8]| spelled(RECORD | 0x08, &head, &[&[0, 0], length, b"abc", b"v"]);
    assert!(as_text(&[3]).is_some());
    assert_eq!(as_text(&[0x83, 0]), None);
}

#[test]
fn what_has_a_shorter_spelling_is_refused() {
    const RECORD: u8 = 0x40;
    let head: [&[u8]; 3] = [&[1], &[0, 0, 0, 0, 5], &[0, 0, 0, 0, 0, 9]];
    let uuid = [7; 16];
    let entry = |flags: u8, rest: &[&[u8]]| spelled(RECORD | flags, &head, rest);

    // A time to live, in 6 bytes and in 8: those that have a flag of their own, and one that would fit.
    let short = |ttl: i64| entry(2, &[&ttl.to_be_bytes()[2..], &[0, 0], &uuid]);
    let long = |ttl: i64| entry(3, &[&ttl.to_be_bytes(), &[0, 0], &uuid]);
    for (ttl, is_short, is_long) in [
        (ttl::FOR_EVER, false, false),
        (ttl::DELETED, false, false),
        (9, true, false),
        ((1 << 48) - 1, true, false),
        (1 << 48, false, true),
        (-7, false, true),
    ] {
        // Six bytes can't spell the last two.
        let short = short(ttl).filter(|entry| entry.ttl() == ttl);
        assert_eq!((short.is_some(), long(ttl).is_some()), (is_short, is_long), "a time to live of {ttl}");
    }

    // The record's own time, which is 9 ms or within 32 s of it.
    let own = |time: i64| entry(0x10, &[&time.to_be_bytes(), &uuid]).is_some();
    let near = [9, 10, 9 + (1 << 15), 9 - ((1 << 15) - 1)];
    assert!(near.iter().all(|time| !own(*time)));
    assert!([9 + (1 << 15) + 1, 9 - (1 << 15), i64::MIN, i64::MAX].iter().all(|time| own(*time)));

    let source = |source: i32| entry(0x04, &[&[0, 0], &source.to_be_bytes(), &uuid]).is_some();
    assert!(source(source::LOG) && !source(source::PRODUCER));

    let text = |text: &str| entry(0x08, &[&[0, 0], &[text.len() as u8], text.as_bytes()]).is_some();
    let canonical = "4b8dd6b5-08c5-4fd3-8e3c-a6f3d4f3c0de";
    assert!(!text(canonical));
    assert!(text(&canonical.to_uppercase()) && text(&canonical.replace('-', "")) && text(""));

    // What only a record has.
    let nothing = |flags: u8, rest: &[&[u8]]| spelled(1 | flags, &head, rest);
    assert!(nothing(0, &[]).is_some());
    assert_eq!(nothing(0, &[b"v"]), None);
    for (flags, rest) in [(0x10, &[0; 8][..]), (0x08, &[0]), (0x04, &[0; 4])] {
        assert_eq!(nothing(flags, &[rest]), None, "{flags:x}");
        assert_eq!(nothing(flags, &[]), None, "{flags:x}");
    }
}

/// A record of 100 bytes as a node writes it, which lies at some million of a partition.
fn typical(value: &str) -> Entry {
    let record = KeyValue {
        key: "0123456789abcdef",
        value,
        timestamp: 1_790_000_000_000,
        source: source::PRODUCER,
        ttl: ttl::FOR_EVER,
        uuid: "4b8dd6b5-08c5-4fd3-8e3c-a6f3d4f3c0de",
    };
    Entry::new(Position { partition: 11, offset: 5_000_000 }, log_ms(1_790_000_000_007), &record)
}

#[test]
fn a_typical_record_has_31_bytes_beside_its_value() {
    let entry = typical(&"v".repeat(100));
    assert_eq!(entry.as_stored().len(), 131);
    assert_eq!(entry.bytes(), 1 + 16 + 131);
    assert_eq!(size_of::<Option<Entry>>(), size_of::<usize>());
}

/// Else a full page of LMDB would be split.
#[test]
fn a_value_of_the_same_length_leaves_an_entry_of_the_same_length() {
    let record = |timestamp, uuid| KeyValue { key: "k", value: "v", timestamp, source: 3, ttl: 0, uuid };
    let lengths: Vec<_> = [(0, 5), (200, 90_000), (1 << 39, 5), ((1 << 40) - 1, 1_790_000_000_000)]
        .iter()
        .map(|(offset, written)| {
            let record = record(written - 30_000, "4b8dd6b5-08c5-4fd3-8e3c-a6f3d4f3c0de");
            let position = Position { partition: 3, offset: *offset };
            Entry::new(
                position,
                log_ms(*written + 100_000),
                &KeyValue { timestamp: written + 70_000, ..record },
            )
            .as_stored()
            .len()
        })
        .collect();
    assert_eq!(lengths, [32; 4]);
}

/// Bytes of pages that hold something for each record of 16 and 100 bytes, whose keys come in this order, so many in a transaction; after
/// writing them all so many times.
fn bytes_on_disk(keys: &[u64], in_one: usize, times: i64) -> u64 {
    let (_dir, store) = filled(&[]);
    let value = "v".repeat(100);
    let mut offset = 0;
    for _ in 0..times {
        for keys in keys.chunks(in_one) {
            let keys: Vec<_> = keys.iter().map(|key| format!("{key:016x}")).collect();
            let changes = keys.iter().zip(offset..).map(|(key, offset)| {
                let written = 1_790_000_000_000 + offset;
                (key.as_bytes(), entry_of(key, P0, offset, written, &value).into())
            });
            store.apply(&mut changes.collect(), &[]).expect("applied");
            offset += keys.len() as i64;
        }
    }
    let (stats, records) = (store.stats().expect("told"), keys.len() as u64);
    assert_eq!(stats.records, records);
    stats.used_pages * stats.page_bytes / records
}

#[test]
fn a_record_takes_few_bytes_on_disk_also_once_it_is_overwritten() {
    let random: Vec<u64> = (1..20_001).map(|n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
    let mut sorted = random.clone();
    sorted.sort_unstable();
    for (order, keys, most) in [("in key order", &sorted, 200), ("in no order", &random, 280)] {
        let used = bytes_on_disk(keys, 1_000, 1);
        let used_then = bytes_on_disk(keys, 1_000, 6);
        assert!(used <= most, "{order}: {used}");
        assert_eq!(used_then, used, "{order}: pages were split");
    }
}
