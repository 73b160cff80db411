use std::fmt;

use bitacora_protocol::Position;
use bitacora_protocol::record::{KeyValue, source, ttl};
use smallvec::SmallVec;
use uuid::Uuid;

use super::format::{
    self, Buffer, EntryHead, Input, MAX_FIXED_BYTES, StoredRecord, StoredUuid, UUID_TEXT_BYTES,
};
use super::shared_bytes::SharedBytes;
use crate::clock::{Clock, LogTime, WallTime};

/// A record as the store holds it, and its key. It has no record if it is a tombstone that another writer made, or of a key that
/// expired and was swept.
///
/// One piece of memory: the length of the key ([`format::put_varint`]), the key, and the bytes as they lie on disk ([`mod@format`]). Cheap to
/// clone: one count, next to the bytes; and as small as a pointer (`shared_bytes.rs`).
#[derive(Clone, PartialEq, Eq)]
pub struct Entry(SharedBytes);

/// Whether an entry is an answer, at some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Live,
    Deleted,
    Expired,
}

/// Where the text of a record's uuid is put, which the store keeps as a number: [`Entry::record`].
#[derive(Clone, Copy, Debug)]
pub struct UuidText([u8; UUID_TEXT_BYTES]);

impl Default for UuidText {
    fn default() -> Self {
        Self([0; UUID_TEXT_BYTES])
    }
}

/// Where the entry of a key on disk lies, and whether it is such as the replica writes for it; `None` if it is no entry. Copies nothing.
pub(super) fn look_at(key: &[u8], stored: &[u8]) -> Option<(Position, bool)> {
    let parsed = format::parse(stored)?;
    Some((parsed.0.position, is_written_for(key, &parsed)))
}

fn is_written_for(key: &[u8], (head, record): &(EntryHead, Option<StoredRecord<'_>>)) -> bool {
    let is_text = |bytes| std::str::from_utf8(bytes).is_ok();
    match record {
        Some(record) => is_text(key) && is_text(record.value),
        None => head.ttl != ttl::FOR_EVER,
    }
}

impl EntryHead {
    fn state_at_ms(&self, now: i64) -> State {
        match self.ttl {
            ttl::FOR_EVER => State::Live,
            ttl if ttl < 0 => State::Deleted,
            // What was swept does not come back, should the clock.
            ttl if ttl <= now || !self.has_record => State::Expired,
            _ => State::Live,
        }
    }

    /// As [`Entry::state`], now; most entries never expire and need no clock.
    #[must_use]
    pub fn state_by(&self, clock: &dyn Clock) -> State {
        match self.ttl {
            ttl::FOR_EVER => State::Live,
            ttl if ttl < 0 => State::Deleted,
            _ => self.state_at_ms(clock.wall().ms()),
        }
    }
}

impl Entry {
    /// Of a record, which lies at that position of the log since `timestamp`.
    #[must_use]
    pub fn new(position: Position, timestamp: LogTime, record: &KeyValue<'_>) -> Self {
        let mut bytes = begin(record.key.as_bytes(), record.uuid.len() + record.value.len());
        format::put_before_value(position, timestamp, record, &mut bytes);
        bytes.extend_from_slice(record.value.as_bytes());
        Self::of(&bytes)
    }

    /// Of a key of which there is no record: another writer's tombstone, or what was swept.
    #[must_use]
    pub fn without_record(key: &[u8], position: Position, timestamp: LogTime, ttl: i64) -> Self {
        let mut bytes = begin(key, 0);
        EntryHead { position, timestamp, ttl, has_record: false, is_provisional: false }.put(&mut bytes);
        Self::of(&bytes)
    }

    /// Copies the entry of a key out of the store; `None` if it is none.
    #[must_use]
    pub fn from_stored(key: &[u8], stored: &[u8]) -> Option<Self> {
        format::parse(stored)?;
        let mut bytes = begin(key, stored.len());
        bytes.extend_from_slice(stored);
        SharedBytes::copy_of(&bytes).map(Self)
    }

    fn of(bytes: &Buffer) -> Self {
        Self(
            SharedBytes::copy_of(bytes)
                .expect("what comes from the log has less than 2 GiB, as Kafka's records"),
        )
    }

    /// The key, and the bytes as they lie on disk.
    fn parts(&self) -> (&[u8], &[u8]) {
        let mut input = Input(&self.0);
        let length = input.varint().unwrap_or_default();
        (input.bytes(length as usize).unwrap_or_default(), input.0)
    }

    fn parsed(&self) -> (EntryHead, Option<StoredRecord<'_>>) {
        format::parse(self.as_stored()).expect("it was looked at when it was made")
    }

    #[must_use]
    pub fn key(&self) -> &[u8] {
        self.parts().0
    }

    /// The length of the key, the key, and the bytes that lie on disk.
    #[must_use]
    pub(super) fn key_and_stored(&self) -> &[u8] {
        &self.0
    }

    /// The bytes that lie on disk.
    #[must_use]
    pub fn as_stored(&self) -> &[u8] {
        self.parts().1
    }

    /// How many bytes it has in memory, but for what their allocation costs.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.len()
    }

    /// How many bytes of memory are taken for it, but for what the allocator adds to each.
    #[must_use]
    pub(super) fn allocated_bytes(&self) -> usize {
        SharedBytes::HEAD + self.0.len()
    }

    /// Looks at one byte of each of its first cache lines, so that the processor has them.
    #[must_use]
    pub(super) fn touch(&self) -> u8 {
        /// As processors have them.
        const CACHE_LINE: usize = 64;
        self.0.iter().step_by(CACHE_LINE).take(4).fold(0, |seen, byte| seen ^ byte)
    }

    /// All but the record.
    #[must_use]
    pub fn head(&self) -> EntryHead {
        EntryHead::of(self.as_stored()).expect("it was looked at when it was made")
    }

    /// Whether it has a record. A tombstone that another writer made has none, nor has a key that was swept.
    #[must_use]
    pub fn has_record(&self) -> bool {
        self.head().has_record
    }

    /// Whether it is another writer's tombstone. Nodes forget those, each in its own time, so it is the same as nothing to whatever they must
    /// decide alike.
    #[must_use]
    pub fn is_tombstone(&self) -> bool {
        let head = self.head();
        head.ttl == ttl::DELETED && !head.has_record
    }

    /// Whether it was neither deleted nor expired when the log's clock showed `now`. By its time to live alone, so that all nodes say the
    /// same, also those that have swept it.
    #[must_use]
    pub fn is_live_at(&self, now: LogTime) -> bool {
        match self.ttl() {
            ttl::FOR_EVER => true,
            ttl => ttl > now.ms(),
        }
    }

    /// Whether it is only shown, and decides nothing.
    #[must_use]
    pub fn is_provisional(&self) -> bool {
        self.head().is_provisional
    }

    /// This record as a provisional entry.
    #[must_use]
    pub(super) fn as_provisional(&self) -> Self {
        let (key, stored) = self.parts();
        let mut bytes = begin(key, stored.len());
        let begin = bytes.len();
        bytes.extend_from_slice(stored);
        format::make_provisional(&mut bytes[begin..]);
        Self::of(&bytes)
    }

    /// A provisional entry in this record's place, of a key that is deleted.
    #[must_use]
    pub(super) fn as_provisional_delete(&self) -> Self {
        Self::without_record(self.key(), self.position(), self.timestamp(), ttl::DELETED).as_provisional()
    }

    #[must_use]
    pub fn position(&self) -> Position {
        self.head().position
    }

    /// The write timestamp.
    #[must_use]
    pub fn timestamp(&self) -> LogTime {
        self.head().timestamp
    }

    #[must_use]
    pub fn ttl(&self) -> i64 {
        self.head().ttl
    }

    /// What a reader is shown at `now`. An expiry is a time of the accepting node's wall clock, so this machine's decides, as a reader expects.
    #[must_use]
    pub fn state(&self, now: WallTime) -> State {
        self.head().state_at_ms(now.ms())
    }

    /// What the entry was when the log's clock showed `now`: for what every node must decide alike, whatever its own clock shows.
    #[must_use]
    pub fn state_by_log_time(&self, now: LogTime) -> State {
        self.head().state_at_ms(now.ms())
    }

    /// The record's value; `None` if there is no record.
    #[must_use]
    pub fn value(&self) -> Option<&str> {
        std::str::from_utf8(self.value_bytes()?).ok()
    }

    /// The same, which nobody has looked at since it was stored.
    #[must_use]
    pub fn value_bytes(&self) -> Option<&[u8]> {
        let (_, record) = self.parsed();
        record.map(|record| record.value)
    }

    /// The record as it lies in the log; `None` if it has none. The text of its uuid is put together in `uuid`.
    #[must_use]
    pub fn record<'a>(&'a self, uuid: &'a mut UuidText) -> Option<KeyValue<'a>> {
        let (head, record) = self.parsed();
        let StoredRecord { timestamp, source, uuid: stored, value } = record?;
        let uuid: &str = match stored {
            StoredUuid::Binary(bytes) => Uuid::from_bytes(bytes).hyphenated().encode_lower(&mut uuid.0),
            StoredUuid::Text(text) => text,
        };
        let (key, value) = (std::str::from_utf8(self.key()).ok()?, std::str::from_utf8(value).ok()?);
        Some(KeyValue { key, value, timestamp, source, ttl: head.ttl, uuid })
    }

    /// As [`Entry::record`], as it is answered: with the write timestamp.
    #[must_use]
    pub fn answer<'a>(&'a self, uuid: &'a mut UuidText) -> Option<KeyValue<'a>> {
        Some(KeyValue { timestamp: self.timestamp().ms(), source: source::LOG, ..self.record(uuid)? })
    }

    /// The record's Avro bytes, to be written to the log again; `None` if it has none.
    #[must_use]
    pub fn to_avro(&self) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        self.record(&mut UuidText::default())?.encode(&mut bytes);
        Some(bytes)
    }

    /// Whether it is such as the replica writes for this key: key and record are text, or it is one that has no record.
    #[must_use]
    pub fn is_of(&self, key: &[u8]) -> bool {
        self.key() == key
            && format::parse(self.as_stored()).is_some_and(|parsed| is_written_for(key, &parsed))
    }

    /// Whether this record replaces the other of the same key. Within a partition the log's order decides. A key is in
    /// two partitions only if the topic's number of partitions was changed; then the write timestamp decides.
    #[must_use]
    pub fn is_newer_than(&self, other: &Self) -> bool {
        let (mine, theirs) = (self.head(), other.head());
        if mine.position.partition == theirs.position.partition {
            mine.position.offset > theirs.position.offset
        } else {
            (mine.timestamp, mine.position.offset, mine.position.partition)
                > (theirs.timestamp, theirs.position.offset, theirs.position.partition)
        }
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (head, record) = self.parsed();
        let (key, value) = (self.key(), record.map(|record| String::from_utf8_lossy(record.value)));
        let EntryHead { position, timestamp, ttl, is_provisional, .. } = head;
        f.debug_struct("Entry")
            .field("key", &String::from_utf8_lossy(key))
            .field("position", &position)
            .field("timestamp", &timestamp)
            .field("ttl", &ttl)
            .field("is_provisional", &is_provisional)
            .field("value", &value)
            .finish_non_exhaustive()
    }
}

/// The key and its length; so many bytes follow, beside those of fixed width.
pub(super) fn begin(key: &[u8], more: usize) -> Buffer {
    let mut bytes = SmallVec::with_capacity(key.len() + more + 2 * MAX_FIXED_BYTES);
    format::put_varint(key.len() as u32, &mut bytes);
    bytes.extend_from_slice(key);
    bytes
}
