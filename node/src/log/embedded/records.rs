//! The records of the embedded log, as they lie in LMDB.

use std::ops::Bound;

use heed::types::Bytes;
use heed::{Database, RoTxn};

use crate::clock::LogTime;
use crate::log::{Condition, Expected, Level, LogTag, NewRecord};
use crate::telemetry::TraceParent;

pub(super) fn end_of(
    txn: &RoTxn<'_>,
    records: Database<Bytes, Bytes>,
    partition: usize,
) -> heed::Result<i64> {
    let last = records.rev_range(txn, &range(&partition_bounds(partition as u32)))?.next().transpose()?;
    Ok(last.and_then(|(at, _)| offset_of(at)).map_or(0, |offset| offset + 1))
}

pub(super) fn record_key(partition: u32, offset: i64) -> [u8; 12] {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&partition.to_be_bytes());
    key[4..].copy_from_slice(&offset.to_be_bytes());
    key
}

pub(super) fn partition_bounds(partition: u32) -> ([u8; 12], [u8; 12]) {
    (record_key(partition, 0), record_key(partition, i64::MAX))
}

pub(super) fn range((start, end): &([u8; 12], [u8; 12])) -> (Bound<&[u8]>, Bound<&[u8]>) {
    (Bound::Included(start), Bound::Excluded(end))
}

pub(super) fn offset_of(key: &[u8]) -> Option<i64> {
    key.get(4..12).and_then(|bytes| bytes.try_into().ok()).map(i64::from_be_bytes)
}

/// The bytes of a record that is appended at `timestamp`; `value` holds nothing else afterwards: timestamp (i64), kind (u8), key length
/// (u24), what the kind adds (i64s), the trace's 25 bytes if the kind says that there is one, key, value. All numbers are big-endian.
pub(super) fn encode(record: &NewRecord, timestamp: LogTime, value: &mut Vec<u8>) {
    value.clear();
    value.extend(timestamp.ms().to_be_bytes());
    let (kind, added, count) = kind_of(record);
    let traced = if record.trace.is_some() { TRACED } else { 0 };
    value.extend(((kind | traced) << 24 | record.key.len() as u32).to_be_bytes());
    value.extend(added[..count].iter().flat_map(|number| number.to_be_bytes()));
    value.extend(record.trace.iter().flat_map(|trace| trace.to_bytes()));
    value.extend(&record.key);
    value.extend(record.value.iter().flatten());
}

/// The kind of a record, and the numbers that it adds: the first so many of these.
fn kind_of(record: &NewRecord) -> (u32, [i64; 4], usize) {
    let is_tombstone = record.value.is_none();
    // Its one topic never changes, and has no id.
    match (record.condition, record.level) {
        (None, None) if is_tombstone => (TOMBSTONE, [0; 4], 0),
        (None, None) => (PLAIN, [0; 4], 0),
        (None, Some(level)) => (LEVEL, [level.0.into(), 0, 0, 0], 1),
        (Some(Condition::Trim { offset, until, .. }), _) => (TRIM, [offset, until.ms(), 0, 0], 2),
        (Some(Condition::Repair { offset, timestamp, until, reach, .. }), _) => {
            let kind = match (reach, is_tombstone) {
                (None, false) => REPAIR,
                (None, true) => REPAIRED_TOMBSTONE,
                (Some(_), false) => REACHING_REPAIR,
                (Some(_), true) => REACHING_REPAIRED_TOMBSTONE,
            };
            let numbers = [offset, timestamp.ms(), until.ms(), reach.unwrap_or_default()];
            (kind, numbers, 3 + usize::from(reach.is_some()))
        }
        (Some(Condition::Attempt { expected, until, .. }), _) => {
            let kind = match expected {
                Expected::Live(_) => EXPECTS_LIVE,
                Expected::Dead(_) => EXPECTS_DEAD,
                Expected::Nothing => EXPECTS_NOTHING,
            };
            (kind, [expected.offset().unwrap_or_default(), until.ms(), 0, 0], 2)
        }
        (Some(Condition::Unreadable), _) => (TRIM, [-1, i64::MAX, 0, 0], 2),
    }
}

pub(super) struct Stored<'a> {
    pub timestamp: LogTime,
    pub key: &'a [u8],
    /// `None` for a tombstone.
    pub value: Option<&'a [u8]>,
    pub condition: Option<Condition>,
    pub level: Option<Level>,
    pub trace: Option<TraceParent>,
}

/// Added to the kind of a record that is part of a trace.
const TRACED: u32 = 0x80;
/// Kinds of record.
const PLAIN: u32 = 0;
const TRIM: u32 = 1;
const REPAIR: u32 = 2;
const REPAIRED_TOMBSTONE: u32 = 3;
const REACHING_REPAIR: u32 = 4;
const REACHING_REPAIRED_TOMBSTONE: u32 = 5;
const EXPECTS_LIVE: u32 = 6;
const EXPECTS_DEAD: u32 = 7;
const EXPECTS_NOTHING: u32 = 8;
const LEVEL: u32 = 9;
const TOMBSTONE: u32 = 10;

pub(super) fn parse(bytes: &[u8]) -> Option<Stored<'_>> {
    let (timestamp, rest) =
        bytes.split_first_chunk().map(|(ms, rest)| (LogTime::from_ms(i64::from_be_bytes(*ms)), rest))?;
    let (length, mut rest) = rest.split_first_chunk()?;
    let kind_and_length = u32::from_be_bytes(*length);
    let kind = kind_and_length >> 24 & !TRACED;
    let (condition, level) = parse_added(kind, &mut rest)?;
    let mut trace = None;
    if kind_and_length >> 24 & TRACED != 0 {
        let (bytes, left) = rest.split_first_chunk()?;
        (trace, rest) = (TraceParent::from_bytes(bytes), left);
    }
    let (key, value) = rest.split_at_checked((kind_and_length & 0x00ff_ffff) as usize)?;
    let is_tombstone = matches!(kind, TRIM | REPAIRED_TOMBSTONE | REACHING_REPAIRED_TOMBSTONE | TOMBSTONE);
    let value = Some(value).filter(|_| !is_tombstone);
    Some(Stored { timestamp, key, value, condition, level, trace })
}

/// What a kind adds, taken off the front of `rest`; `None` if there is no such kind, or too little.
fn parse_added(kind: u32, rest: &mut &[u8]) -> Option<(Option<Condition>, Option<Level>)> {
    let mut number = || {
        let (number, left) = rest.split_first_chunk()?;
        *rest = left;
        Some(i64::from_be_bytes(*number))
    };
    let log = LogTag::default();
    let condition = match kind {
        PLAIN | TOMBSTONE => return Some((None, None)),
        LEVEL => return Some((None, Some(Level(number()?.try_into().ok()?)))),
        TRIM => Condition::Trim { offset: number()?, until: LogTime::from_ms(number()?), log },
        REPAIR | REPAIRED_TOMBSTONE | REACHING_REPAIR | REACHING_REPAIRED_TOMBSTONE => {
            let (offset, timestamp, until) = (number()?, number()?, number()?);
            let (timestamp, until) = (LogTime::from_ms(timestamp), LogTime::from_ms(until));
            let reaching = matches!(kind, REACHING_REPAIR | REACHING_REPAIRED_TOMBSTONE);
            let reach = if reaching { Some(number()?) } else { None };
            Condition::Repair { offset, timestamp, until, log, reach }
        }
        EXPECTS_LIVE | EXPECTS_DEAD | EXPECTS_NOTHING => {
            let (offset, until) = (number()?, LogTime::from_ms(number()?));
            let expected = match kind {
                EXPECTS_LIVE => Expected::Live(offset),
                EXPECTS_DEAD => Expected::Dead(offset),
                _ => Expected::Nothing,
            };
            Condition::Attempt { expected, until, log }
        }
        _ => return None,
    };
    Some((Some(condition), None))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_stored_bytes_are_a_record_or_none(
            bytes: Vec<u8>,
            at: Vec<u8>,
            kind in prop_oneof![0..12_u8, 0x80..0x8c_u8],
            length in 0..20_u8,
        ) {
            let header = [&[0; 8][..], &[kind, 0, 0, length], &bytes].concat();
            for bytes in [&bytes, &header] {
                if let Some(Stored { key, value, .. }) = parse(bytes) {
                    prop_assert!(key.len() + value.unwrap_or_default().len() + 12 <= bytes.len());
                }
            }
            prop_assert_eq!(offset_of(&at).is_some(), at.len() >= 12);
        }
    }
}
