//! Whether what this node holds of a key meets a condition. It decides what is appended and, once the node has applied
//! everything, what is refused; whether a write takes effect is decided by the log alone.

use bitacora_protocol::WriteCondition;

use crate::clock::LogTime;
use crate::log::Expected;
use crate::store::Entry;

/// What a write has to expect of its partition so that it takes effect only if this condition is met; `None` if it is not met by what is
/// held of the key, when the log's clock shows `now`.
///
/// The log's, since the log decides: an own clock would promise what it does not keep.
#[must_use]
pub fn compare(condition: WriteCondition, held: Option<&Entry>, now: LogTime) -> Option<Expected> {
    let live = held.filter(|entry| entry.is_live_at(now)).map(Entry::position);
    match (condition, live) {
        (WriteCondition::Version(version), Some(held)) if version == held => {
            Some(Expected::Live(held.offset))
        }
        (WriteCondition::Present, Some(held)) => Some(Expected::Live(held.offset)),
        (WriteCondition::Absent, None) => {
            Some(held.map_or(Expected::Nothing, |entry| Expected::Dead(entry.position().offset)))
        }
        // A write on no condition is none of this room's.
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use bitacora_protocol::Position;
    use bitacora_protocol::record::{KeyValue, source, ttl};

    use super::*;

    const NOW: LogTime = LogTime::from_ms(1_000);

    fn entry(offset: i64, ttl: i64) -> Entry {
        let record =
            KeyValue { key: "k", value: "v", timestamp: 1, source: source::PRODUCER, ttl, uuid: "u" };
        Entry::new(Position { partition: 3, offset }, LogTime::from_ms(1), &record)
    }

    fn of(condition: WriteCondition, held: Option<&Entry>) -> Option<Expected> {
        compare(condition, held, NOW)
    }

    #[test]
    fn a_version_is_that_of_a_live_record_and_no_other() {
        let version = |partition, offset| WriteCondition::Version(Position { partition, offset });
        assert_eq!(of(version(3, 7), Some(&entry(7, ttl::FOR_EVER))), Some(Expected::Live(7)));
        assert_eq!(of(version(3, 7), Some(&entry(7, 1_001))), Some(Expected::Live(7)));
        for (condition, held) in [
            (version(3, 7), None),
            (version(3, 7), Some(entry(8, ttl::FOR_EVER))),
            (version(3, 7), Some(entry(6, ttl::FOR_EVER))),
            (version(2, 7), Some(entry(7, ttl::FOR_EVER))),
            (version(3, 7), Some(entry(7, ttl::DELETED))),
            (version(3, 7), Some(entry(7, 1_000))),
        ] {
            assert_eq!(of(condition, held.as_ref()), None, "{condition:?} {held:?}");
        }
    }

    #[test]
    fn presence_and_absence_are_told_by_the_logs_time() {
        let held = |condition, ttl| of(condition, Some(&entry(7, ttl)));
        assert_eq!(held(WriteCondition::Present, 1_001), Some(Expected::Live(7)));
        assert_eq!(held(WriteCondition::Present, 1_000), None);
        assert_eq!(of(WriteCondition::Present, None), None);
        assert_eq!(held(WriteCondition::Absent, 1_000), Some(Expected::Dead(7)));
        assert_eq!(held(WriteCondition::Absent, ttl::DELETED), Some(Expected::Dead(7)));
        assert_eq!(of(WriteCondition::Absent, None), Some(Expected::Nothing));
        assert_eq!(held(WriteCondition::Absent, 1_001), None);
        assert_eq!(held(WriteCondition::None, 0), None);
    }
}
