//! What a record of the log does to the store.

use bitacora_protocol::record::{KeyValue, ttl};

use crate::log::{Batch, Condition, LogRecord, LogTag};
use crate::store::{Applied, Change, Entry, Store, StoreError, Writer};
use bitacora_protocol::Position;

/// A poison record is logged with its position, but not more than so many in one batch.
const POISON_LOGGED: usize = 10;

/// Applies a batch that was read from `log` to the store, in one transaction. Returns what came of it, and how many records
/// were poison.
///
/// # Errors
/// When the store fails; nothing is changed then.
pub fn apply(store: &Store, batch: &Batch, log: LogTag) -> Result<(Applied, usize), StoreError> {
    let mut changes = Vec::with_capacity(batch.records().len());
    let (mut poison, mut foreign) = (0, 0);
    for record in batch.records() {
        let reach = record.condition.and_then(Condition::validity);
        foreign += usize::from(reach.is_some_and(|(_, of)| !of.fits(log)));
        match decode(&record, store.max_key_bytes(), log) {
            Ok(change) => changes.push(change),
            Err(reason) => {
                poison += 1;
                if let Some(key) = record.key.filter(|key| (1..=store.max_key_bytes()).contains(&key.len())) {
                    let (at, timestamp) = (record.position, record.timestamp);
                    changes.push((key, Change::NoEffect { at, timestamp, by: Writer::Unknown }));
                }
                if poison <= POISON_LOGGED {
                    tracing::warn!(position = %record.position, "skipped a record that can't be decoded: {reason}");
                }
            }
        }
    }
    if poison > POISON_LOGGED {
        tracing::warn!(records = poison - POISON_LOGGED, "skipped further records that can't be decoded");
    }
    if foreign > 0 {
        tracing::warn!(
            records = foreign,
            "trimmers of another topic sent what has no effect here; who copies a topic leaves their headers out, see OPERATIONS.md"
        );
    }
    Ok((store.apply_read(&mut changes, batch.read())?, poison))
}

/// What a record of the log changes; the reason if it is poison.
pub(super) fn decode<'a>(
    record: &LogRecord<'a>,
    max_key_bytes: usize,
    log: LogTag,
) -> Result<(&'a [u8], Change), String> {
    let LogRecord { position: at, timestamp, condition, .. } = *record;
    let key = record.key.filter(|key| !key.is_empty()).ok_or("it has no key")?;
    if key.len() > max_key_bytes {
        return Err(format!("its key has {} bytes, the store takes {max_key_bytes}", key.len()));
    }
    let text = std::str::from_utf8(key).map_err(|_| "its key is not UTF-8")?;
    let earlier = |offset: i64| {
        // One that claims to be newer than it is would make later writes void.
        if (0..at.offset).contains(&offset) {
            Ok(offset)
        } else {
            Err("its header names an offset that is not before it")
        }
    };
    if condition.and_then(Condition::validity).is_some_and(|(until, of)| timestamp > until || !of.fits(log)) {
        return Ok((key, Change::NoEffect { at, timestamp, by: Writer::Trimmer }));
    }
    let (position, write_timestamp) = match condition {
        None => (at, timestamp),
        Some(Condition::Trim { offset, .. }) if record.value.is_none() => {
            return Ok((key, Change::Trim { at, timestamp, offset: earlier(offset)? }));
        }
        Some(Condition::Repair { offset, timestamp, .. }) => {
            (Position { offset: earlier(offset)?, ..at }, timestamp)
        }
        Some(Condition::Trim { .. } | Condition::Attempt { .. } | Condition::Unreadable) => {
            return Err("its header makes no sense".to_owned());
        }
    };
    let entry = match record.value {
        None => Entry::new(position, write_timestamp, ttl::DELETED, &[]),
        Some(value) => {
            let decoded = KeyValue::decode(value).map_err(|error| error.to_string())?;
            if decoded.key != text {
                return Err("the key inside it is another than the record's".to_owned());
            }
            Entry::new(position, write_timestamp, decoded.ttl, value)
        }
    };
    let change = match condition {
        None => entry.into(),
        Some(_) => Change::Repair { at, timestamp, entry },
    };
    Ok((key, change))
}
