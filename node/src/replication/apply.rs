//! What a record of the log does to the store.

use bitacora_protocol::record::{KeyValue, ttl};

use super::continuity::{Continuity, Place};
use crate::log::{Batch, Condition, Level, LogRecord, LogTag, is_reserved};
use crate::store::{Applied, Change, Entry, Judgement, KeyChange, Store, StoreError, Writer};
use bitacora_protocol::{HighWatermark, Position};

/// A poison record is logged with its position, but not more than so many in one batch.
const POISON_LOGGED: usize = 10;

/// Applies a batch that was read from `log` to the store, in one transaction. `young_from`: see
/// [`crate::replication::progress::Progress::young_from`]. Returns what came of it, and how many records were poison.
///
/// # Errors
/// When the store fails; nothing is changed then.
pub fn apply(
    store: &Store,
    batch: &Batch,
    log: LogTag,
    young_from: &[HighWatermark],
) -> Result<(Applied, usize), StoreError> {
    apply_telling(store, batch, log, young_from, &mut |_, _| {})
}

/// As [`apply`]; what is told is as [`Store::apply_telling`] has it.
pub(super) fn apply_telling(
    store: &Store,
    batch: &Batch,
    log: LogTag,
    young_from: &[HighWatermark],
    tell: &mut dyn FnMut(&[u8], KeyChange),
) -> Result<(Applied, usize), StoreError> {
    let mut continuity = Continuity::new(store, batch.read(), young_from)?;
    let mut decoder = Decoder::new(store.max_key_bytes(), log);
    let applied = if store.was_ever_complete()? {
        let mut changes = Vec::with_capacity(batch.records().len());
        for record in batch.records() {
            let place = continuity.note(&record);
            let key = record.key.unwrap_or_default();
            // Those of nodes are no keys of clients, and in no store.
            if !is_reserved(key) {
                changes.extend(decoder.change(&record, place).map(|change| (key, change)));
            }
        }
        store.apply_telling(&mut changes, &continuity.finish(batch.read()), tell)?
    } else {
        fill(store, batch, continuity, &mut decoder)?
    };
    decoder.report();
    Ok((applied, decoder.poison))
}

/// Applies a batch to a store that nobody reads. Each record is decoded when its turn comes in the order of the keys, so that no more than
/// one of them is in memory besides the batch.
fn fill(
    store: &Store,
    batch: &Batch,
    mut continuity: Continuity<'_>,
    decoder: &mut Decoder,
) -> Result<Applied, StoreError> {
    let count = batch.records().len();
    let (mut keys, mut indexes, mut places) =
        (Vec::with_capacity(count), Vec::with_capacity(count), Vec::new());
    for (index, record) in batch.records().enumerate() {
        let place = continuity.note(&record);
        // Without a condition, nothing is judged by it.
        if record.condition.is_some() {
            places.push((index, place));
        }
        let key = record.key.unwrap_or_default();
        if !is_reserved(key) {
            keys.push(key);
            indexes.push(index);
        }
    }
    let change = |at: usize| {
        let index = indexes[at];
        let known = places.binary_search_by_key(&index, |(of, _)| *of);
        let place = known.map_or(Place { complete: false, level: Level::FIRST }, |known| places[known].1);
        decoder.change(&batch.record(index)?, place)
    };
    store.fill(&keys, change, &continuity.finish(batch.read()))
}

/// Makes changes of records, and says so of those that can't be decoded.
struct Decoder {
    max_key_bytes: usize,
    log: LogTag,
    /// Records that could not be decoded.
    poison: usize,
    /// Records with a condition that speaks of another log.
    foreign: usize,
}

impl Decoder {
    fn new(max_key_bytes: usize, log: LogTag) -> Self {
        Self { max_key_bytes, log, poison: 0, foreign: 0 }
    }

    /// What a record changes, if it may change anything. Its key is none that nodes keep for themselves.
    fn change(&mut self, record: &LogRecord<'_>, place: Place) -> Option<Change> {
        let reach = record.condition.and_then(Condition::validity);
        self.foreign += usize::from(reach.is_some_and(|(_, of)| !of.fits(self.log)));
        match decode(record, self.max_key_bytes, self.log, place) {
            Ok((_, change)) => Some(change),
            Err(reason) => {
                self.poison += 1;
                if self.poison <= POISON_LOGGED {
                    tracing::warn!(position = %record.position, "skipped a record that can't be decoded: {reason}");
                }
                let (at, timestamp) = (record.position, record.timestamp);
                let key_bytes = record.key.map_or(0, <[u8]>::len);
                let may_be_stored = (1..=self.max_key_bytes).contains(&key_bytes);
                may_be_stored.then_some(Change::NoEffect { at, timestamp, by: Writer::Unknown })
            }
        }
    }

    /// Says what was not said of each record.
    fn report(&self) {
        if self.poison > POISON_LOGGED {
            let records = self.poison - POISON_LOGGED;
            tracing::warn!(records, "skipped further records that can't be decoded");
        }
        if self.foreign > 0 {
            tracing::warn!(
                records = self.foreign,
                "nodes of another topic sent what has no effect here; who copies a topic leaves their headers out, see OPERATIONS.md"
            );
        }
    }
}

/// What a record of the log changes; the reason if it is poison.
pub(super) fn decode<'a>(
    record: &LogRecord<'a>,
    max_key_bytes: usize,
    log: LogTag,
    place: Place,
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
    let is_void =
        condition.and_then(Condition::validity).is_some_and(|(until, of)| timestamp > until || !of.fits(log));
    let complete = place.complete;
    // Nodes that write no further than the first level mean everything before.
    let settles = |reach: i64| if place.level >= Level::CONDITIONAL_WRITES { reach } else { at.offset };
    let change = match condition {
        None => Change::Write(entry(record, text, at)?),
        Some(Condition::Attempt { expected, .. }) => {
            if record.value.is_none() {
                return Err("its header makes no sense".to_owned());
            }
            expected.offset().map_or(Ok(0), earlier)?;
            Change::Attempt {
                entry: entry(record, text, at)?,
                expected,
                judgement: judgement(is_void, complete),
            }
        }
        Some(_) if is_void => Change::NoEffect { at, timestamp, by: Writer::Trimmer },
        Some(Condition::Trim { offset, .. }) if record.value.is_none() => {
            let offset = earlier(offset)?;
            Change::Trim { at, timestamp, offset, settles: settles(offset), complete }
        }
        Some(Condition::Repair { offset, timestamp: repaired, reach, .. }) => {
            let repaired_at = Position { offset: earlier(offset)?, ..at };
            let reach = reach.map_or(Ok(offset), earlier)?;
            let repaired = LogRecord { timestamp: repaired, ..*record };
            let mut entry = entry(&repaired, text, repaired_at)?;
            // What had expired by then may have been swept by who sent this: no node shows a value that may not be the record's.
            if (1..=timestamp.ms()).contains(&entry.ttl()) {
                entry = Entry::without_record(key, repaired_at, entry.timestamp(), entry.ttl());
            }
            Change::Repair { at, timestamp, entry, reach, settles: settles(reach), complete }
        }
        Some(Condition::Trim { .. } | Condition::Unreadable) => {
            return Err("its header makes no sense".to_owned());
        }
    };
    Ok((key, change))
}

/// How an attempt is judged; `complete`: everything before it was seen.
fn judgement(is_void: bool, complete: bool) -> Judgement {
    match (is_void, complete) {
        (true, _) => Judgement::VoidByItself,
        (false, true) => Judgement::ByTheStore,
        (false, false) => Judgement::Impossible,
    }
}

/// The entry that a record's value makes, as of that position; the reason if it is poison.
fn entry(record: &LogRecord<'_>, key: &str, position: Position) -> Result<Entry, String> {
    let Some(value) = record.value else {
        return Ok(Entry::without_record(key.as_bytes(), position, record.timestamp, ttl::DELETED));
    };
    let decoded = KeyValue::decode(value).map_err(|error| error.to_string())?;
    if decoded.key != key {
        return Err("the key inside it is another than the record's".to_owned());
    }
    Ok(Entry::new(position, record.timestamp, &decoded))
}
