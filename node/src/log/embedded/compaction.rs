//! What compaction removes from the embedded log, as Kafka's cleaner does.

use std::collections::HashMap;
use std::time::Duration;

use heed::Database;
use heed::types::Bytes;

use super::records::{offset_of, parse, partition_bounds, range, record_key};
use crate::clock::LogTime;

/// A record with a condition removes those before it no sooner than so long after it, as `min.compaction.lag.ms` has it.
pub(super) const COMPACTION_LAG: Duration = Duration::from_hours(1);
/// Tombstones leave the log no sooner than so long after they were written, as `delete.retention.ms` has it; longer than
/// a node of the same process can be away without being rebuilt.
pub(super) const TOMBSTONE_RETENTION: Duration = Duration::from_hours(30 * 24);

/// Removes every record that a newer one of the same key follows, and old tombstones, at `now`.
pub(super) fn compact(
    txn: &mut heed::RwTxn<'_>,
    records: Database<Bytes, Bytes>,
    partitions: usize,
    now: LogTime,
) -> heed::Result<()> {
    for partition in 0..partitions as u32 {
        // Offsets of each key's records, and whether the newest may replace the others yet, and may go itself.
        let mut keys: HashMap<Vec<u8>, (Vec<i64>, bool, bool)> = HashMap::new();
        let mut last = None;
        for item in records.range(txn, &range(&partition_bounds(partition)))? {
            let (at, stored) = item?;
            let Some((offset, record)) = offset_of(at).zip(parse(stored)) else { continue };
            let (offsets, replaces, goes) = keys.entry(record.key.to_vec()).or_default();
            offsets.push(offset);
            *replaces = record.condition.is_none() || record.timestamp <= now - COMPACTION_LAG;
            *goes = record.value.is_none() && record.timestamp <= now - TOMBSTONE_RETENTION;
            last = Some(offset);
        }
        for (mut offsets, _, goes) in keys.into_values().filter(|(_, replaces, _)| *replaces) {
            // The partition's last record tells where it ends.
            let newest = offsets.pop().filter(|offset| goes && Some(*offset) != last);
            for offset in offsets.into_iter().chain(newest) {
                records.delete(txn, &record_key(partition, offset))?;
            }
        }
    }
    Ok(())
}
