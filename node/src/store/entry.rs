use std::sync::Arc;

use bitacora_protocol::record::{KeyValue, source, ttl};

use crate::clock::{Clock, LogTime, WallTime};
use bitacora_protocol::Position;

/// A record as the store holds it: a header of fixed size, then the record's Avro bytes as they came from the log.
/// The bytes are empty for a tombstone that another writer made, and for a key that expired and was swept. Cheap to clone: one count, next to the bytes.
///
/// Header, big-endian: partition i32, offset i64, write timestamp i64 (ms), ttl i64 (as in [`KeyValue::ttl`]). The first bit
/// of the partition is set in a provisional entry: see `KeyState`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry(Arc<[u8]>);

pub(super) const HEADER: usize = 28;
const PROVISIONAL_BIT: u8 = 0x80;

/// Whether an entry is an answer, at some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Live,
    Deleted,
    Expired,
}

impl Entry {
    #[must_use]
    pub fn new(position: Position, timestamp: LogTime, ttl: i64, record: &[u8]) -> Self {
        let mut header = [0; HEADER];
        header[..4].copy_from_slice(&position.partition.to_be_bytes());
        header[4..12].copy_from_slice(&position.offset.to_be_bytes());
        header[12..20].copy_from_slice(&timestamp.ms().to_be_bytes());
        header[20..].copy_from_slice(&ttl.to_be_bytes());
        Self(header.iter().chain(record).copied().collect())
    }

    /// Copies an entry out of the store; `None` if the bytes are too few.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        (bytes.len() >= HEADER).then(|| Self(bytes.into()))
    }

    /// An entry's header alone: all that decides whether it is newer than another, or dead.
    #[must_use]
    pub fn header_of(bytes: &[u8]) -> Option<Self> {
        bytes.get(..HEADER).map(|header| Self(header.into()))
    }

    /// Whether it has a record. A tombstone that another writer made has none, nor has a key that was swept.
    #[must_use]
    pub fn has_record(&self) -> bool {
        self.0.len() > HEADER
    }

    /// The record's Avro bytes.
    #[must_use]
    pub fn record_bytes(&self) -> &[u8] {
        &self.0[HEADER..]
    }

    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    fn field(&self, at: usize) -> i64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.0[at..at + 8]);
        i64::from_be_bytes(bytes)
    }

    /// Whether it is another writer's tombstone. Nodes forget those, each in its own time, so it is the same as nothing to whatever they must
    /// decide alike.
    #[must_use]
    pub fn is_tombstone(&self) -> bool {
        self.ttl() == ttl::DELETED && !self.has_record()
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
        self.0[0] & PROVISIONAL_BIT != 0
    }

    /// This record as a provisional entry.
    #[must_use]
    pub(super) fn as_provisional(&self) -> Self {
        let mut bytes = self.0.to_vec();
        bytes[0] |= PROVISIONAL_BIT;
        Self(bytes.into())
    }

    /// A provisional entry in this record's place, of a key that is deleted.
    #[must_use]
    pub(super) fn as_provisional_delete(&self) -> Self {
        Self::new(self.position(), self.timestamp(), ttl::DELETED, &[]).as_provisional()
    }

    #[must_use]
    pub fn position(&self) -> Position {
        let mut partition = [0; 4];
        partition.copy_from_slice(&self.0[..4]);
        partition[0] &= !PROVISIONAL_BIT;
        Position { partition: i32::from_be_bytes(partition), offset: self.field(4) }
    }

    /// The write timestamp.
    #[must_use]
    pub fn timestamp(&self) -> LogTime {
        LogTime::from_ms(self.field(12))
    }

    #[must_use]
    pub fn ttl(&self) -> i64 {
        self.field(20)
    }

    /// What a reader is shown at `now`. An expiry is a time of the accepting node's wall clock, so this machine's decides, as a reader expects.
    #[must_use]
    pub fn state(&self, now: WallTime) -> State {
        self.state_at_ms(now.ms())
    }

    /// What the entry was when the log's clock showed `now`: for what every node must decide alike, whatever its own clock shows.
    #[must_use]
    pub fn state_by_log_time(&self, now: LogTime) -> State {
        self.state_at_ms(now.ms())
    }

    fn state_at_ms(&self, now: i64) -> State {
        match self.ttl() {
            ttl::FOR_EVER => State::Live,
            ttl if ttl < 0 => State::Deleted,
            // What was swept does not come back, should the clock.
            ttl if ttl <= now || !self.has_record() => State::Expired,
            _ => State::Live,
        }
    }

    /// As [`Entry::state`], now; most entries never expire and need no clock.
    #[must_use]
    pub fn state_by(&self, clock: &dyn Clock) -> State {
        match self.ttl() {
            ttl::FOR_EVER => State::Live,
            ttl if ttl < 0 => State::Deleted,
            _ => self.state(clock.wall()),
        }
    }

    /// The record; `None` if it has none.
    #[must_use]
    pub fn record(&self) -> Option<KeyValue<'_>> {
        KeyValue::decode(&self.0[HEADER..]).ok()
    }

    /// The record as it is answered: with the write timestamp; `None` for a tombstone.
    #[must_use]
    pub fn answer(&self) -> Option<KeyValue<'_>> {
        Some(KeyValue { timestamp: self.timestamp().ms(), source: source::LOG, ..self.record()? })
    }

    /// Whether it is such as the replica writes for this key: its record is the key's, or it is one that has none.
    #[must_use]
    pub fn is_of(&self, key: &[u8]) -> bool {
        if !self.has_record() {
            return self.ttl() != ttl::FOR_EVER;
        }
        self.record().is_some_and(|record| record.key.as_bytes() == key && record.ttl == self.ttl())
    }

    /// The record's value as it is encoded: [`KeyValue::value_field`].
    #[must_use]
    pub fn value_field(&self) -> Option<&[u8]> {
        KeyValue::value_field(&self.0[HEADER..])
    }

    /// Whether this record replaces the other of the same key. Within a partition the log's order decides. A key is in
    /// two partitions only if the topic's number of partitions was changed; then the write timestamp decides.
    #[must_use]
    pub fn is_newer_than(&self, other: &Self) -> bool {
        let (mine, theirs) = (self.position(), other.position());
        if mine.partition == theirs.partition {
            mine.offset > theirs.offset
        } else {
            (self.timestamp(), mine.offset, mine.partition)
                > (other.timestamp(), theirs.offset, theirs.partition)
        }
    }
}
