//! The records of the embedded log, as they lie in LMDB.

use std::ops::Bound;

use heed::types::Bytes;
use heed::{Database, RoTxn};

use super::Append;
use crate::clock::LogTime;
use crate::log::{Condition, LogTag};
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

/// The bytes of a record that is appended at `timestamp`; `value` holds nothing else afterwards.
pub(super) fn encode(append: &Append, timestamp: LogTime, value: &mut Vec<u8>) {
    value.clear();
    value.extend(timestamp.ms().to_be_bytes());
    let (kind, added): (u32, &[i64]) = match append.condition {
        None => (PLAIN, &[]),
        // Its one topic never changes, and has no id.
        Some(Condition::Trim { offset, until, .. }) => (TRIM, &[offset, until.ms()]),
        Some(Condition::Repair { offset, timestamp, until, .. }) => (
            if append.tombstone { REPAIRED_TOMBSTONE } else { REPAIR },
            &[offset, timestamp.ms(), until.ms()],
        ),
        Some(Condition::Unreadable) => (TRIM, &[-1, i64::MAX]),
    };
    let traced = if append.trace.is_some() { TRACED } else { 0 };
    value.extend(((kind | traced) << 24 | append.key.len() as u32).to_be_bytes());
    value.extend(added.iter().flat_map(|number| number.to_be_bytes()));
    value.extend(append.trace.iter().flat_map(|trace| trace.to_bytes()));
    value.extend(&append.key);
    value.extend(&append.value);
}

pub(super) struct Stored<'a> {
    pub timestamp: LogTime,
    pub key: &'a [u8],
    /// `None` for a tombstone.
    pub value: Option<&'a [u8]>,
    pub condition: Option<Condition>,
    pub trace: Option<TraceParent>,
}

/// Added to the kind of a record that is part of a trace.
const TRACED: u32 = 0x80;
/// Kinds of record.
const PLAIN: u32 = 0;
const TRIM: u32 = 1;
const REPAIR: u32 = 2;
const REPAIRED_TOMBSTONE: u32 = 3;

pub(super) fn parse(bytes: &[u8]) -> Option<Stored<'_>> {
    let (timestamp, rest) =
        bytes.split_first_chunk().map(|(ms, rest)| (LogTime::from_ms(i64::from_be_bytes(*ms)), rest))?;
    let (length, rest) = rest.split_first_chunk()?;
    let number = |rest: &mut &[u8]| {
        let (number, left) = rest.split_first_chunk()?;
        *rest = left;
        Some(i64::from_be_bytes(*number))
    };
    let (kind_and_length, mut rest) = (u32::from_be_bytes(*length), rest);
    let kind = kind_and_length >> 24 & !TRACED;
    let log = LogTag::default();
    let condition = match kind {
        PLAIN => None,
        TRIM => Some(Condition::Trim {
            offset: number(&mut rest)?,
            until: LogTime::from_ms(number(&mut rest)?),
            log,
        }),
        REPAIR | REPAIRED_TOMBSTONE => {
            let (offset, timestamp, until) = (number(&mut rest)?, number(&mut rest)?, number(&mut rest)?);
            let (timestamp, until) = (LogTime::from_ms(timestamp), LogTime::from_ms(until));
            Some(Condition::Repair { offset, timestamp, until, log })
        }
        _ => return None,
    };
    let mut trace = None;
    if kind_and_length >> 24 & TRACED != 0 {
        let (bytes, left) = rest.split_first_chunk()?;
        (trace, rest) = (TraceParent::from_bytes(bytes), left);
    }
    let (key, value) = rest.split_at_checked((kind_and_length & 0x00ff_ffff) as usize)?;
    let value = Some(value).filter(|_| !matches!(kind, TRIM | REPAIRED_TOMBSTONE));
    Some(Stored { timestamp, key, value, condition, trace })
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
            kind in prop_oneof![0..6_u8, 0x80..0x86_u8],
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
