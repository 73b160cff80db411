//! Conditions of records, and the Kafka headers that state them.

use super::LogTag;
use crate::clock::LogTime;

/// What a record says of an earlier one of its key and partition. It takes effect only if the partition holds none of the
/// key by then, or none with a greater offset than this one's, if its own write timestamp is not later than `until`, and if
/// the log is the one that it speaks of. A write has no condition and always takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// A tombstone: the record at `offset` is no longer needed.
    Trim { offset: i64, until: LogTime, log: LogTag },
    /// The record of `offset` and of that write timestamp once more, since another that took no effect lies behind it and
    /// would outlive it in compaction.
    Repair { offset: i64, timestamp: LogTime, until: LogTime, log: LogTag },
    /// A condition that this node does not understand.
    Unreadable,
}

impl Condition {
    /// Kafka header of a [`Condition::Trim`]: `offset:until:log`, the last in hexadecimal, and left out by older nodes.
    pub const TRIM: &str = "bitacora-trim";
    /// Kafka header of a [`Condition::Repair`]: `offset:timestamp:until:log`.
    pub const REPAIR: &str = "bitacora-repair";

    /// The condition that a header states.
    #[must_use]
    pub fn from_header(name: &str, value: &[u8]) -> Self {
        let parsed = std::str::from_utf8(value).ok().and_then(|text| {
            let mut fields = text.split(':');
            let offset = fields.next()?.parse().ok().filter(|offset| *offset >= 0)?;
            let mut time = || fields.next()?.parse().ok().map(LogTime::from_ms);
            let timestamp = if name == Self::TRIM { None } else { Some(time()?) };
            let until = time()?;
            let log = match fields.next() {
                Some(tag) => LogTag(u64::from_str_radix(tag, 16).ok()?),
                None => LogTag::default(),
            };
            let condition = match timestamp {
                None => Self::Trim { offset, until, log },
                Some(timestamp) => Self::Repair { offset, timestamp, until, log },
            };
            fields.next().is_none().then_some(condition)
        });
        parsed.unwrap_or(Self::Unreadable)
    }

    /// Name and value of its header.
    #[must_use]
    pub fn header(self) -> (&'static str, String) {
        match self {
            Self::Trim { offset, until, log } => (Self::TRIM, format!("{offset}:{until}:{:x}", log.0)),
            Self::Repair { offset, timestamp, until, log } => {
                (Self::REPAIR, format!("{offset}:{timestamp}:{until}:{:x}", log.0))
            }
            Self::Unreadable => (Self::TRIM, String::new()),
        }
    }

    /// Until when it may take effect, and in which log; `None` if that can't be read.
    #[must_use]
    pub fn validity(self) -> Option<(LogTime, LogTag)> {
        match self {
            Self::Trim { until, log, .. } | Self::Repair { until, log, .. } => Some((until, log)),
            Self::Unreadable => None,
        }
    }
}

/// A record with a [`Condition`], to be appended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConditionalRecord {
    pub partition: i32,
    pub key: Vec<u8>,
    /// `None` for a [`Condition::Trim`], and for the [`Condition::Repair`] of a tombstone.
    pub value: Option<Vec<u8>>,
    pub condition: Condition,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_header_is_a_condition_or_unreadable(
            name in "bitacora-(trim|repair)",
            value: Vec<u8>,
            text in "[+-]?[0-9]{0,20}(:[+-]?[0-9a-f]{0,20}){0,4}",
            number: bool,
        ) {
            let condition = Condition::from_header(&name, if number { text.as_bytes() } else { &value });
            let (again, text) = condition.header();
            match condition {
                Condition::Trim { offset, .. } | Condition::Repair { offset, .. } => {
                    prop_assert!(offset >= 0);
                    prop_assert_eq!(again, name);
                    prop_assert_eq!(Condition::from_header(again, text.as_bytes()), condition);
                }
                Condition::Unreadable => prop_assert_eq!(Condition::from_header(again, text.as_bytes()), condition),
            }
        }

        #[test]
        fn any_condition_survives_its_header(
            offset in 0..i64::MAX, timestamp: i64, until: i64, log: u64, repair: bool,
        ) {
            let (timestamp, until) = (LogTime::from_ms(timestamp), LogTime::from_ms(until));
            let log = LogTag(log);
            let repair = repair.then_some(Condition::Repair { offset, timestamp, until, log });
            let condition = repair.unwrap_or(Condition::Trim { offset, until, log });
            let (name, value) = condition.header();
            prop_assert_eq!(Condition::from_header(name, value.as_bytes()), condition);
        }
    }

    #[test]
    fn what_is_no_condition_is_unreadable() {
        let log = LogTag(u64::MAX);
        let at = LogTime::from_ms;
        let repair = Condition::Repair { offset: i64::MAX, timestamp: at(-1), until: at(3), log };
        for condition in [Condition::Trim { offset: 0, until: at(-7), log }, repair] {
            let (name, value) = condition.header();
            assert_eq!(Condition::from_header(name, value.as_bytes()), condition);
        }
        let (older, log) = (Condition::from_header(Condition::TRIM, b"1:2"), LogTag::default());
        assert_eq!(older, Condition::Trim { offset: 1, until: at(2), log });
        for (name, value) in [
            (Condition::TRIM, ""),
            (Condition::TRIM, "1"),
            (Condition::TRIM, "-1:2"),
            (Condition::TRIM, "1:2:x"),
            (Condition::TRIM, "1:2:3:4"),
            (Condition::TRIM, "1:2:12345678901234567"),
            (Condition::TRIM, "99999999999999999999:2"),
            (Condition::REPAIR, "1"),
            (Condition::REPAIR, "1:5"),
            (Condition::REPAIR, "-1:5:5"),
            (Condition::REPAIR, "1:x:5"),
            (Condition::REPAIR, "1:5:"),
            (Condition::REPAIR, "1:5:5:g"),
            (Condition::REPAIR, "1:5:5:5:5"),
        ] {
            assert_eq!(
                Condition::from_header(name, value.as_bytes()),
                Condition::Unreadable,
                "{name} {value}"
            );
        }
        assert_eq!(Condition::from_header(Condition::TRIM, b"\xff"), Condition::Unreadable);
    }
}
