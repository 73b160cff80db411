use super::super::continuity::Place;
use super::*;
use crate::log::{Expected, Level};

const PLACE: Place = Place { complete: true, level: Level::CONDITIONAL_WRITES };

#[test]
fn poison_is_skipped_and_counted() {
    let dir = folder();
    let mut bench = Bench::start(dir.path(), 0..7);
    bench.set(0, "before", "1");
    let poison: [(Option<&'static [u8]>, Option<Vec<u8>>); 5] = [
        (Some(b"k"), Some(vec![0xff; 20])),
        (Some(b"k"), Some(Vec::new())),
        (None, Some(vec![0])),
        (Some(b"\xff\xfe"), None),
        (Some(b""), None),
    ];
    for (offset, (key, value)) in (1..).zip(poison) {
        bench.feed(Step::Record { offset, key, value });
    }
    bench.set(6, "after", "2");
    bench.until_applied(6);
    assert_eq!(bench.value("before").as_deref(), Some("1"));
    assert_eq!(bench.value("after").as_deref(), Some("2"));
    assert_eq!(bench.metrics.poison_records.get(), 5);
    bench.until_ready();
}

#[test]
fn a_tombstone_deletes() {
    let dir = folder();
    let mut bench = Bench::start(dir.path(), 0..2);
    bench.set(0, "k", "v");
    bench.feed(Step::Record { offset: 1, key: Some(b"k"), value: None });
    bench.until_applied(1);
    let (entry, _) = bench.store.get(b"k").expect("readable").expect("the marker is an answer");
    assert_eq!(entry.state(WallTime::default()), crate::store::State::Deleted);
}

#[test]
fn conditional_records_are_counted_by_their_effect() {
    let dir = folder();
    let mut bench = Bench::start(dir.path(), 0..12);
    bench.set(0, "k", "v");
    bench.set(1, "l", "v");
    bench.append_conditional(2, "k", None, Condition::Trim { offset: 0, until: log_ms(i64::MAX), log: LOG });
    bench.append_conditional(3, "l", None, Condition::Trim { offset: 0, until: log_ms(i64::MAX), log: LOG });
    bench.append_conditional(
        4,
        "m",
        Some("again"),
        Condition::Repair {
            offset: 3,
            timestamp: log_ms(77),
            until: log_ms(i64::MAX),
            log: LOG,
            reach: None,
        },
    );
    // Each would be a tombstone or a write if its condition were overlooked.
    bench.append_conditional(5, "l", None, Condition::Unreadable);
    bench.append_conditional(6, "l", None, Condition::Trim { offset: 6, until: log_ms(i64::MAX), log: LOG });
    bench.append_conditional(
        7,
        "l",
        Some("w"),
        Condition::Repair { offset: 7, timestamp: log_ms(0), until: log_ms(i64::MAX), log: LOG, reach: None },
    );
    bench.append_conditional(
        8,
        "l",
        Some("w"),
        Condition::Trim { offset: 1, until: log_ms(i64::MAX), log: LOG },
    );
    // Too late, by their own timestamps.
    bench.append_conditional(9, "l", None, Condition::Trim { offset: 1, until: log_ms(0), log: LOG });
    bench.append_conditional(
        10,
        "k",
        Some("w"),
        Condition::Repair { offset: 0, timestamp: log_ms(0), until: log_ms(0), log: LOG, reach: None },
    );
    bench.until_applied(10);
    assert_eq!((bench.value("k"), bench.value("l").as_deref()), (None, Some("v")));
    let (entry, _) = bench.store.get(b"m").expect("readable").expect("restored");
    assert_eq!((entry.position().offset, entry.timestamp()), (3, log_ms(77)));
    let metrics = &bench.metrics;
    assert_eq!((metrics.records_trimmed.get(), metrics.records_void.get()), (1, 7));
    assert_eq!(metrics.poison_records.get(), 4);
}

#[test]
fn a_trim_or_repair_of_another_topic_has_no_effect() {
    let (here, there) = (LogTag(1), LogTag(2));
    let value = encoded("k", "v");
    let decoded = |condition, value: Option<&[u8]>, log| {
        let position = Position { partition: 0, offset: 9 };
        let record = LogRecord {
            position,
            timestamp: log_ms(5),
            key: Some(b"k"),
            value,
            condition: Some(condition),
            level: None,
            epoch: None,
        };
        decode(&record, 100, log, PLACE).expect("it is whole").1
    };
    for offset in [3, 99] {
        let trim = Condition::Trim { offset, until: log_ms(5), log: there };
        let repair =
            Condition::Repair { offset, timestamp: log_ms(5), until: log_ms(5), log: there, reach: None };
        for change in [decoded(trim, None, here), decoded(repair, Some(&value), here)] {
            assert!(matches!(change, Change::NoEffect { by: Writer::Trimmer, .. }), "{change:?}");
        }
    }
    // Where it is not known which topic it is, or was.
    for (log, of) in [(here, here), (LOG, here), (here, LOG)] {
        let trim = Condition::Trim { offset: 3, until: log_ms(5), log: of };
        assert!(matches!(decoded(trim, None, log), Change::Trim { .. }));
        let repair =
            Condition::Repair { offset: 3, timestamp: log_ms(5), until: log_ms(5), log: of, reach: None };
        assert!(matches!(decoded(repair, Some(&value), log), Change::Repair { .. }));
    }
}

proptest! {
    #[test]
    fn any_record_is_an_allowed_change_or_poison_with_a_reason(
        offset in 0..i64::MAX, named in prop_oneof![0..100_i64, any::<i64>()], timestamp: i64, until: i64, kind in 0..8_u8,
        key in prop::option::of(prop_oneof![
            Just(b"key".to_vec()),
            any::<Vec<u8>>(),
            (1..5_000_usize).prop_map(|length| vec![b'k'; length]),
        ]),
        value in prop::option::of(any::<Vec<u8>>()),
        text in ".{0,20}",
        ttl: i64,
        damages in damages(),
    ) {
        const MAX_KEY: usize = 1_024;
        let (timestamp, until) = (log_ms(timestamp), log_ms(until));
        let at = Position { partition: 3, offset };
        let condition = match kind {
            0 => Some(Condition::Trim { offset: named, until, log: LOG }),
            1 => Some(Condition::Repair { offset: named, timestamp, until, log: LOG, reach: None }),
            2 => Some(Condition::Unreadable),
            3 => Some(Condition::Attempt { expected: Expected::Live(named), until, log: LOG }),
            4 => Some(Condition::Attempt { expected: Expected::Nothing, until, log: LOG }),
            _ => None,
        };
        let mut encoded = Vec::new();
        KeyValue { key: "key", value: &text, timestamp: timestamp.ms(), source: 3, ttl, uuid: "u" }.encode(&mut encoded);
        let damaged = damaged(&encoded, &damages);
        for value in [value.as_deref(), Some(encoded.as_slice()), Some(&damaged)] {
            let record = LogRecord { position: at, timestamp, key: key.as_deref(), value, condition, level: None, epoch: None };
            match decode(&record, MAX_KEY, LOG, PLACE) {
                Ok((found, change)) => {
                    prop_assert!(!found.is_empty() && found.len() <= MAX_KEY && std::str::from_utf8(found).is_ok());
                    prop_assert_eq!(Some(found), key.as_deref());
                    match change {
                        Change::Write(entry) => {
                            prop_assert!(condition.is_none() && entry.position() == at && entry.is_of(found));
                        }
                        Change::Repair { at: lies, entry, .. } => {
                            prop_assert!(lies == at && entry.is_of(found) && timestamp <= until);
                            prop_assert!((0..offset).contains(&entry.position().offset));
                        }
                        Change::Trim { at: lies, offset: of, .. } => {
                            prop_assert!(lies == at && (0..offset).contains(&of) && value.is_none() && timestamp <= until);
                        }
                        Change::Attempt { entry, expected, judgement } => {
                            prop_assert!(entry.position() == at && entry.is_of(found) && entry.has_record());
                            prop_assert!(expected.offset().is_none_or(|of| (0..offset).contains(&of)));
                            let late = until < timestamp;
                            prop_assert_eq!(judgement, if late { Judgement::VoidByItself } else { Judgement::ByTheStore });
                        }
                        Change::NoEffect { at: lies, .. } => {
                            let late = condition.is_some() && until < timestamp;
                            prop_assert!(lies == at && late, "poison is told as an error");
                        }
                    }
                }
                Err(reason) => {
                    prop_assert!(!reason.is_empty());
                    let of_the_key = key.as_deref() == Some(b"key") && value == Some(encoded.as_slice());
                    let sound = of_the_key && condition.is_none();
                    prop_assert!(!sound, "{}", reason);
                }
            }
        }
        let record = LogRecord { position: at, timestamp, key: Some(b"key"), value: Some(&encoded), condition: None, level: None, epoch: None };
        let (_, change) = decode(&record, MAX_KEY, LOG, PLACE).expect("it is whole");
        let Change::Write(entry) = change else { panic!("it is a write") };
        let found = (entry.to_avro(), entry.ttl(), entry.timestamp());
        prop_assert_eq!(found, (Some(encoded), ttl, timestamp));
    }
}
