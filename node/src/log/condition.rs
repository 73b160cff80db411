//! Conditions of records, and the Kafka headers that state them.

use super::LogTag;
use crate::clock::LogTime;

/// What a record says of an earlier one of its key and partition. It takes effect only if what it says is so when its turn comes, if its
/// own write timestamp is not later than `until`, and if the log is the one that it speaks of. A plain write has no condition and always
/// takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// A tombstone: what the partition holds of the key is no longer needed, if that lies at `offset` or before.
    Trim { offset: i64, until: LogTime, log: LogTag },
    /// The record of `offset` and of that write timestamp once more, since another that took no effect lies behind it and
    /// would outlive it in compaction. The record was what the partition held of the key when everything up to `reach` had been applied;
    /// `None` in those of older nodes, which say that only of `offset`.
    Repair { offset: i64, timestamp: LogTime, until: LogTime, log: LogTag, reach: Option<i64> },
    /// A conditional write.
    Attempt { expected: Expected, until: LogTime, log: LogTag },
    /// A condition that this node does not understand.
    Unreadable,
}

/// What a conditional write expects its partition to hold of its key. Whether a record is live is told by its time to live and by
/// when the conditional write was appended, so that every node decides alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// The record at this offset, live.
    Live(i64),
    /// The record at this offset, deleted or expired.
    Dead(i64),
    Nothing,
}

impl Expected {
    /// The offset of the record that is expected; `None` for [`Expected::Nothing`].
    #[must_use]
    pub fn offset(self) -> Option<i64> {
        match self {
            Self::Live(offset) | Self::Dead(offset) => Some(offset),
            Self::Nothing => None,
        }
    }

    fn parse(offset: &str, state: &str) -> Option<Self> {
        match (offset, state) {
            ("-", "dead") => Some(Self::Nothing),
            (offset, "dead") => parse_offset(offset).map(Self::Dead),
            (offset, "live") => parse_offset(offset).map(Self::Live),
            _ => None,
        }
    }
}

impl std::fmt::Display for Expected {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Live(offset) => write!(out, "{offset}:live"),
            Self::Dead(offset) => write!(out, "{offset}:dead"),
            Self::Nothing => out.write_str("-:dead"),
        }
    }
}

fn parse_offset(text: &str) -> Option<i64> {
    text.parse().ok().filter(|offset| *offset >= 0)
}

fn parse_time(text: &str) -> Option<LogTime> {
    text.parse().ok().map(LogTime::from_ms)
}

fn parse_tag(text: &str) -> Option<LogTag> {
    u64::from_str_radix(text, 16).ok().map(LogTag)
}

impl Condition {
    /// Kafka header of a [`Condition::Trim`]: `offset:until:log`, the last in hexadecimal, and left out by older nodes.
    pub const TRIM: &str = "bitacora-trim";
    /// Kafka header of a [`Condition::Repair`]: `offset:timestamp:until:log:reach`, the last left out where it is not known.
    pub const REPAIR: &str = "bitacora-repair";
    /// Kafka header of a [`Condition::Attempt`]: `offset:live:until:log` or `offset:dead:until:log`; the offset is `-` for
    /// [`Expected::Nothing`].
    pub const ATTEMPT: &str = "bitacora-attempt";

    /// The condition that a header states.
    #[must_use]
    pub fn from_header(name: &str, value: &[u8]) -> Self {
        let fields: Option<Vec<&str>> = std::str::from_utf8(value).ok().map(|text| text.split(':').collect());
        let parsed = fields.and_then(|fields| match name {
            Self::TRIM => Self::parse_trim(&fields),
            Self::REPAIR => Self::parse_repair(&fields),
            Self::ATTEMPT => Self::parse_attempt(&fields),
            _ => None,
        });
        parsed.unwrap_or(Self::Unreadable)
    }

    fn parse_trim(fields: &[&str]) -> Option<Self> {
        let (offset, until, log) = match fields {
            [offset, until] => (offset, until, LogTag::default()),
            [offset, until, log] => (offset, until, parse_tag(log)?),
            _ => return None,
        };
        Some(Self::Trim { offset: parse_offset(offset)?, until: parse_time(until)?, log })
    }

    fn parse_repair(fields: &[&str]) -> Option<Self> {
        let [offset, timestamp, until, rest @ ..] = fields else { return None };
        let (log, reach) = match rest {
            [] => (LogTag::default(), None),
            [log] => (parse_tag(log)?, None),
            [log, reach] => (parse_tag(log)?, Some(parse_offset(reach)?)),
            _ => return None,
        };
        let (timestamp, until) = (parse_time(timestamp)?, parse_time(until)?);
        Some(Self::Repair { offset: parse_offset(offset)?, timestamp, until, log, reach })
    }

    fn parse_attempt(fields: &[&str]) -> Option<Self> {
        let [offset, state, until, log] = fields else { return None };
        let expected = Expected::parse(offset, state)?;
        Some(Self::Attempt { expected, until: parse_time(until)?, log: parse_tag(log)? })
    }

    /// Name and value of its header.
    #[must_use]
    pub fn header(self) -> (&'static str, String) {
        match self {
            Self::Trim { offset, until, log } => (Self::TRIM, format!("{offset}:{until}:{:x}", log.0)),
            Self::Repair { offset, timestamp, until, log, reach } => {
                let reach = reach.map_or_else(String::new, |reach| format!(":{reach}"));
                (Self::REPAIR, format!("{offset}:{timestamp}:{until}:{:x}{reach}", log.0))
            }
            Self::Attempt { expected, until, log } => {
                (Self::ATTEMPT, format!("{expected}:{until}:{:x}", log.0))
            }
            Self::Unreadable => (Self::TRIM, String::new()),
        }
    }

    /// Until when it may take effect, and in which log; `None` if that can't be read.
    #[must_use]
    pub fn validity(self) -> Option<(LogTime, LogTag)> {
        match self {
            Self::Trim { until, log, .. }
            | Self::Repair { until, log, .. }
            | Self::Attempt { until, log, .. } => Some((until, log)),
            Self::Unreadable => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn conditions() -> impl Strategy<Value = Condition> {
        let offset = || 0..=i64::MAX;
        let time = || any::<i64>().prop_map(LogTime::from_ms);
        let log = || any::<u64>().prop_map(LogTag);
        let expected = prop_oneof![
            offset().prop_map(Expected::Live),
            offset().prop_map(Expected::Dead),
            Just(Expected::Nothing)
        ];
        prop_oneof![
            (offset(), time(), log()).prop_map(|(offset, until, log)| Condition::Trim { offset, until, log }),
            (offset(), time(), time(), log(), prop::option::of(offset())).prop_map(
                |(offset, timestamp, until, log, reach)| Condition::Repair {
                    offset,
                    timestamp,
                    until,
                    log,
                    reach
                }
            ),
            (expected, time(), log()).prop_map(|(expected, until, log)| Condition::Attempt {
                expected,
                until,
                log
            }),
        ]
    }

    proptest! {
        #[test]
        fn any_header_is_a_condition_or_unreadable(
            name in "bitacora-(trim|repair|attempt)",
            value: Vec<u8>,
            text in "[+-]?[0-9]{0,20}(:(live|dead))?(:[+-]?[0-9a-f]{0,20}){0,5}",
            written: bool,
        ) {
            let condition = Condition::from_header(&name, if written { text.as_bytes() } else { &value });
            let (again, text) = condition.header();
            match condition {
                Condition::Unreadable => {}
                Condition::Trim { offset, .. } => prop_assert!(again == name && offset >= 0),
                Condition::Repair { offset, reach, .. } => {
                    prop_assert!(again == name && offset >= 0 && reach.is_none_or(|reach| reach >= 0));
                }
                Condition::Attempt { expected, .. } => {
                    prop_assert!(again == name && expected.offset().is_none_or(|offset| offset >= 0));
                }
            }
            prop_assert_eq!(Condition::from_header(again, text.as_bytes()), condition);
        }

        #[test]
        fn any_condition_survives_its_header(condition in conditions()) {
            let (name, value) = condition.header();
            prop_assert_eq!(Condition::from_header(name, value.as_bytes()), condition);
        }
    }

    #[test]
    fn headers_are_what_the_documentation_says() {
        let (log, at) = (LogTag(0xab), LogTime::from_ms);
        let repair = |reach| Condition::Repair { offset: 50, timestamp: at(7), until: at(9), log, reach };
        let attempt = |expected| Condition::Attempt { expected, until: at(9), log };
        for (condition, name, value) in [
            (Condition::Trim { offset: 50, until: at(9), log }, Condition::TRIM, "50:9:ab"),
            (repair(None), Condition::REPAIR, "50:7:9:ab"),
            (repair(Some(60)), Condition::REPAIR, "50:7:9:ab:60"),
            (attempt(Expected::Live(50)), Condition::ATTEMPT, "50:live:9:ab"),
            (attempt(Expected::Dead(50)), Condition::ATTEMPT, "50:dead:9:ab"),
            (attempt(Expected::Nothing), Condition::ATTEMPT, "-:dead:9:ab"),
        ] {
            assert_eq!(condition.header(), (name, value.to_owned()));
            assert_eq!(Condition::from_header(name, value.as_bytes()), condition);
        }
        let (older, log) = (Condition::from_header(Condition::TRIM, b"1:2"), LogTag::default());
        assert_eq!(older, Condition::Trim { offset: 1, until: at(2), log });
    }

    #[test]
    fn what_is_no_condition_is_unreadable() {
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
            (Condition::REPAIR, "1:5:5:5:"),
            (Condition::REPAIR, "1:5:5:5:-1"),
            (Condition::REPAIR, "1:5:5:5:5:5"),
            (Condition::ATTEMPT, ""),
            (Condition::ATTEMPT, "1:5:5"),
            (Condition::ATTEMPT, "-:live:5:5"),
            (Condition::ATTEMPT, "-1:dead:5:5"),
            (Condition::ATTEMPT, "1:gone:5:5"),
            (Condition::ATTEMPT, "1:live:5"),
            (Condition::ATTEMPT, "1:live:5:5:5"),
            ("bitacora-other", "1:5"),
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
