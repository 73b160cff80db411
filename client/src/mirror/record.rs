//! A record as a mirror holds it: small, since there are many, and cheap to hand out.

use std::borrow::{Borrow, Cow};
use std::cmp::Ordering;
use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Bound;
use std::sync::Arc;

use bitacora_protocol::Position;
use bitacora_protocol::record::KeyValue;
use bitacora_protocol::rpc::ServedFrom;
use uuid::Uuid;

use crate::types::Record;

/// A record that a mirror holds. Cloning it copies no text.
#[derive(Clone)]
pub struct MirroredRecord(Arc<Held>);

struct Held {
    /// The key, and the value behind it.
    text: Box<str>,
    key_bytes: u32,
    source: i32,
    timestamp: i64,
    ttl: i64,
    position: Position,
    uuid: HeldUuid,
}

enum HeldUuid {
    /// One that is written as UUIDs are.
    Short(Uuid),
    Text(Box<str>),
}

impl MirroredRecord {
    pub(super) fn new(record: &Record) -> Self {
        let Record { key, value, timestamp, source, ttl, uuid, position, .. } = record;
        let short = Uuid::try_parse(uuid).ok().filter(|short| short.to_string() == *uuid);
        Self(Arc::new(Held {
            text: [key.as_str(), value].concat().into(),
            // A key has far fewer bytes.
            key_bytes: u32::try_from(key.len()).unwrap_or(u32::MAX),
            source: *source,
            timestamp: *timestamp,
            ttl: *ttl,
            position: *position,
            uuid: short.map_or_else(|| HeldUuid::Text(uuid.as_str().into()), HeldUuid::Short),
        }))
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.0.text[..self.0.key_bytes as usize]
    }

    /// The value; may be empty.
    #[must_use]
    pub fn value(&self) -> &str {
        &self.0.text[self.0.key_bytes as usize..]
    }

    /// The record's place in the log: its version, for a conditional write.
    #[must_use]
    pub fn position(&self) -> Position {
        self.0.position
    }

    /// The write timestamp: ms since the epoch, by the log's clock.
    #[must_use]
    pub fn timestamp(&self) -> i64 {
        self.0.timestamp
    }

    /// 0: lives for ever; else the ms since the epoch at which it expires.
    #[must_use]
    pub fn ttl(&self) -> i64 {
        self.0.ttl
    }

    /// Where the record is from, as in [`Record::source`].
    #[must_use]
    pub fn source(&self) -> i32 {
        self.0.source
    }

    /// Identifies the write that made it.
    #[must_use]
    pub fn uuid(&self) -> Cow<'_, str> {
        match &self.0.uuid {
            HeldUuid::Short(uuid) => uuid.to_string().into(),
            HeldUuid::Text(text) => Cow::Borrowed(text),
        }
    }

    /// As a read would have answered it.
    #[must_use]
    pub fn to_record(&self) -> Record {
        Record {
            key: self.key().to_owned(),
            value: self.value().to_owned(),
            timestamp: self.timestamp(),
            source: self.source(),
            ttl: self.ttl(),
            uuid: self.uuid().into_owned(),
            position: self.position(),
            served_from: ServedFrom::Store,
        }
    }

    pub(super) fn as_key_value<'a>(&'a self, uuid: &'a str) -> KeyValue<'a> {
        let (timestamp, source, ttl) = (self.timestamp(), self.source(), self.ttl());
        KeyValue { key: self.key(), value: self.value(), timestamp, source, ttl, uuid }
    }

    /// Whether it has expired by this time, ms since the epoch.
    pub(super) fn has_expired(&self, now: impl FnOnce() -> i64) -> bool {
        self.0.ttl > 0 && self.0.ttl <= now()
    }
}

impl fmt::Debug for MirroredRecord {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_record().fmt(out)
    }
}

/// Two are equal if all that they say is.
impl PartialEq for MirroredRecord {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.to_record() == other.to_record()
    }
}

impl Eq for MirroredRecord {}

/// A record that is found by its key.
struct ByKey(MirroredRecord);

impl Borrow<str> for ByKey {
    fn borrow(&self) -> &str {
        self.0.key()
    }
}

impl Hash for ByKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.key().hash(state);
    }
}

impl PartialEq for ByKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.key() == other.0.key()
    }
}

impl Eq for ByKey {}

impl PartialOrd for ByKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ByKey {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.key().cmp(other.0.key())
    }
}

/// Records by their keys, twice: found in constant time, and in the order of the keys.
#[derive(Default)]
pub(super) struct Records {
    found: HashSet<ByKey>,
    ordered: BTreeSet<ByKey>,
}

impl Records {
    pub(super) fn len(&self) -> usize {
        self.found.len()
    }

    pub(super) fn get(&self, key: &str) -> Option<&MirroredRecord> {
        self.found.get(key).map(|ByKey(record)| record)
    }

    /// Returns the one of before.
    pub(super) fn insert(&mut self, record: MirroredRecord) -> Option<MirroredRecord> {
        self.ordered.replace(ByKey(record.clone()));
        self.found.replace(ByKey(record)).map(|ByKey(before)| before)
    }

    pub(super) fn remove(&mut self, key: &str) -> Option<MirroredRecord> {
        self.ordered.remove(key);
        self.found.take(key).map(|ByKey(before)| before)
    }

    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = &MirroredRecord> {
        self.ordered.iter().map(|ByKey(record)| record)
    }

    /// In the order of the keys.
    pub(super) fn range<'a>(
        &'a self,
        bounds: (Bound<&str>, Bound<&str>),
    ) -> impl DoubleEndedIterator<Item = &'a MirroredRecord> + use<'a> {
        // A set panics at what is the wrong way round.
        let is_empty = match bounds {
            (Bound::Included(start), Bound::Included(end)) => start > end,
            (
                Bound::Included(start) | Bound::Excluded(start),
                Bound::Included(end) | Bound::Excluded(end),
            ) => start >= end,
            _ => false,
        };
        let found = (!is_empty).then(|| self.ordered.range::<str, _>(bounds));
        found.into_iter().flatten().map(|ByKey(record)| record)
    }

    /// Those whose keys begin with this, in the order of the keys.
    pub(super) fn prefix(&self, prefix: &str) -> impl Iterator<Item = &MirroredRecord> {
        let from = (Bound::Included(prefix), Bound::Unbounded);
        let records = self.ordered.range::<str, _>(from).map(|ByKey(record)| record);
        records.take_while(move |record| record.key().starts_with(prefix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, value: &str, uuid: &str) -> MirroredRecord {
        MirroredRecord::new(&Record {
            key: key.to_owned(),
            value: value.to_owned(),
            timestamp: 7,
            source: 1,
            ttl: 0,
            uuid: uuid.to_owned(),
            position: Position { partition: 1, offset: 2 },
            served_from: ServedFrom::Store,
        })
    }

    #[test]
    fn it_is_what_it_was_made_of() {
        for uuid in ["", "x", "67e55044-10b1-426f-9247-bb680e5fe0c8", "67E55044-10b1-426f-9247-bb680e5fe0c8"]
        {
            let held = record("kéy", "välue", uuid);
            assert_eq!((held.key(), held.value(), &*held.uuid()), ("kéy", "välue", uuid));
            assert_eq!(held, MirroredRecord::new(&held.to_record()));
        }
        // What there is of it beside its texts, and the counts of who holds it: it is a million times there.
        assert!(size_of::<Held>() <= 80, "{} bytes", size_of::<Held>());
    }

    #[test]
    fn records_are_found_and_in_order() {
        use Bound::{Excluded, Included, Unbounded};

        let mut records = Records::default();
        for key in ["b", "a/2", "c", "a/1"] {
            assert!(records.insert(record(key, "v", "")).is_none());
        }
        assert_eq!(records.insert(record("b", "w", "")).expect("it was there").value(), "v");
        assert_eq!((records.len(), records.get("b").map(MirroredRecord::value)), (4, Some("w")));
        assert!(records.remove("c").is_some() && records.remove("c").is_none());
        let keys =
            |found: Vec<&MirroredRecord>| found.iter().map(|it| it.key().to_owned()).collect::<Vec<_>>();
        assert_eq!(keys(records.iter().collect()), ["a/1", "a/2", "b"]);
        assert_eq!(records.iter().next_back().expect("the last").value(), "w");
        assert_eq!(keys(records.prefix("a/").collect()), ["a/1", "a/2"]);
        let range = |start, end| keys(records.range((start, end)).collect());
        assert_eq!(range(Included("a/2"), Unbounded), ["a/2", "b"]);
        assert_eq!(range(Included("a"), Excluded("b")), ["a/1", "a/2"]);
        assert_eq!(range(Unbounded, Included("b")).len(), 3);
        for (start, end) in [
            (Included("b"), Included("a")),
            (Included("b"), Excluded("b")),
            (Excluded("b"), Excluded("b")),
            (Excluded("b"), Included("b")),
        ] {
            assert!(range(start, end).is_empty());
        }
    }
}
