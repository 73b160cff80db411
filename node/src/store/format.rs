//! The bytes of an entry on disk. The key is not among them: it is LMDB's.
//!
//! ```text
//! flags      1 byte
//! partition  1 to 5 bytes, seven bits in each, the lowest first
//! offset     5 bytes, or 8 with LONG
//! timestamp  6 bytes, or 8 with LONG: the write timestamp, ms
//! ttl        none (for ever, deleted), 6 or 8 bytes: TTL_MASK
//! and of a record, which another writer's tombstone and a swept value are not:
//! own time   2 bytes: by how many ms the record's own timestamp is before the write timestamp; or 8 with OWN_TIME: itself
//! source     none if it is PRODUCER, or 4 bytes with OTHER_SOURCE
//! uuid       16 bytes; or, with TEXT_UUID, its length as the partition's, and that many bytes
//! value      the rest
//! ```
//!
//! Numbers of fixed width are big-endian. They are of fixed width so that a value that is replaced by one of the same length leaves
//! an entry of the same length: a full page of LMDB is then not split. There is one spelling of everything, and no other is read:
//! what a copy of another node holds can be told from what a node writes.

use bitacora_protocol::Position;
use bitacora_protocol::record::{KeyValue, source, ttl};
use smallvec::SmallVec;
use uuid::Uuid;

use crate::clock::{LogTime, WallTime};

/// The entry is only shown, and decides nothing.
const PROVISIONAL: u8 = 0x80;
const RECORD: u8 = 0x40;
/// The offset or the write timestamp needs more bytes than such numbers have in the next thousands of years.
const LONG: u8 = 0x20;
/// The record's own timestamp is not within 32 s of the write timestamp.
const OWN_TIME: u8 = 0x10;
const TEXT_UUID: u8 = 0x08;
const OTHER_SOURCE: u8 = 0x04;
const TTL_MASK: u8 = 0x03;
const TTL_FOR_EVER: u8 = 0;
const TTL_DELETED: u8 = 1;
const TTL_SHORT: u8 = 2;
const TTL_LONG: u8 = 3;

const OFFSET_BYTES: usize = 5;
const TIME_BYTES: usize = 6;
/// The most that an entry has beside its uuid as text and its value.
pub(super) const MAX_FIXED_BYTES: usize = 1 + 5 + 8 + 8 + 8 + 8 + 4 + 16;

/// Where an entry is put together: on the stack, unless it is a large one.
pub(super) type Buffer = SmallVec<[u8; 512]>;

/// What decides whether an entry is newer than another, dead, or wanted: all but its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryHead {
    pub position: Position,
    /// The write timestamp.
    pub timestamp: LogTime,
    /// As in [`KeyValue::ttl`].
    pub ttl: i64,
    /// Expired values that were swept and other writers' tombstones have no record.
    pub has_record: bool,
    /// Whether it is only shown, and decides nothing.
    pub is_provisional: bool,
}

impl EntryHead {
    /// That of an entry on disk; `None` if no entry begins so.
    #[must_use]
    pub fn of(stored: &[u8]) -> Option<Self> {
        take_head(&mut Input(stored)).map(|(head, _)| head)
    }

    /// Whether a key with this is there when everything that expired up to then is gone.
    #[must_use]
    pub fn is_live(&self, expired_until: WallTime) -> bool {
        match self.ttl {
            ttl::FOR_EVER => true,
            ttl => self.has_record && ttl > expired_until.ms(),
        }
    }

    /// Appends an entry that has no record.
    pub(super) fn put(&self, out: &mut Buffer) {
        debug_assert!(!self.has_record);
        put_head(self, 0, out);
    }
}

/// The record in an entry, without its key and the ttl.
#[derive(Clone, Copy, Debug)]
pub(super) struct StoredRecord<'a> {
    /// The record's own.
    pub timestamp: i64,
    pub source: i32,
    pub uuid: StoredUuid<'a>,
    /// UTF-8, unless the store is damaged.
    pub value: &'a [u8],
}

#[derive(Clone, Copy, Debug)]
pub(super) enum StoredUuid<'a> {
    /// What is written as a UUID in lower case, with its hyphens.
    Binary([u8; 16]),
    /// Any other text.
    Text(&'a str),
}

/// Reads an entry that fills `stored` wholly; `None` if it is none.
pub(super) fn parse(stored: &[u8]) -> Option<(EntryHead, Option<StoredRecord<'_>>)> {
    let mut input = Input(stored);
    let (head, flags) = take_head(&mut input)?;
    if !head.has_record {
        return (input.0.is_empty() && flags & (OWN_TIME | TEXT_UUID | OTHER_SOURCE) == 0)
            .then_some((head, None));
    }
    let written = head.timestamp.ms();
    let timestamp = if flags & OWN_TIME == 0 {
        written.checked_sub(i64::from(i16::from_be_bytes(input.take()?)))?
    } else {
        Some(i64::from_be_bytes(input.take()?)).filter(|own| short_difference(written, *own).is_none())?
    };
    let source = if flags & OTHER_SOURCE == 0 {
        source::PRODUCER
    } else {
        Some(i32::from_be_bytes(input.take()?)).filter(|source| *source != source::PRODUCER)?
    };
    let uuid = if flags & TEXT_UUID == 0 {
        StoredUuid::Binary(input.take()?)
    } else {
        let length = input.varint()?;
        let text = std::str::from_utf8(input.bytes(length as usize)?).ok()?;
        StoredUuid::Text(Some(text).filter(|text| binary_uuid(text).is_none())?)
    };
    Some((head, Some(StoredRecord { timestamp, source, uuid, value: input.0 })))
}

/// Appends the entry of a record but for its value, which follows.
pub(super) fn put_before_value(
    position: Position,
    timestamp: LogTime,
    record: &KeyValue<'_>,
    out: &mut Buffer,
) {
    let difference = short_difference(timestamp.ms(), record.timestamp);
    let uuid = binary_uuid(record.uuid);
    let mut flags = 0;
    if difference.is_none() {
        flags |= OWN_TIME;
    }
    if uuid.is_none() {
        flags |= TEXT_UUID;
    }
    if record.source != source::PRODUCER {
        flags |= OTHER_SOURCE;
    }
    let head = EntryHead { position, timestamp, ttl: record.ttl, has_record: true, is_provisional: false };
    put_head(&head, flags, out);
    match difference {
        Some(difference) => out.extend_from_slice(&difference.to_be_bytes()),
        None => out.extend_from_slice(&record.timestamp.to_be_bytes()),
    }
    if record.source != source::PRODUCER {
        out.extend_from_slice(&record.source.to_be_bytes());
    }
    match uuid {
        Some(uuid) => out.extend_from_slice(&uuid),
        None => {
            put_varint(record.uuid.len() as u32, out);
            out.extend_from_slice(record.uuid.as_bytes());
        }
    }
}

/// This entry on disk as a provisional one.
pub(super) fn make_provisional(stored: &mut [u8]) {
    if let Some(flags) = stored.first_mut() {
        *flags |= PROVISIONAL;
    }
}

fn put_head(head: &EntryHead, mut flags: u8, out: &mut Buffer) {
    let EntryHead { position, timestamp, ttl, has_record, is_provisional } = *head;
    let (offset, time) = (position.offset, timestamp.ms());
    let is_long = !(fits(offset, OFFSET_BYTES) && fits(time, TIME_BYTES));
    flags |= match ttl {
        ttl::FOR_EVER => TTL_FOR_EVER,
        ttl::DELETED => TTL_DELETED,
        ttl if fits(ttl, TIME_BYTES) => TTL_SHORT,
        _ => TTL_LONG,
    };
    for (flag, is_set) in [(PROVISIONAL, is_provisional), (RECORD, has_record), (LONG, is_long)] {
        flags |= if is_set { flag } else { 0 };
    }
    out.push(flags);
    put_varint(position.partition.cast_unsigned(), out);
    if is_long {
        out.extend_from_slice(&offset.to_be_bytes());
        out.extend_from_slice(&time.to_be_bytes());
    } else {
        out.extend_from_slice(&low_bytes::<OFFSET_BYTES>(offset));
        out.extend_from_slice(&low_bytes::<TIME_BYTES>(time));
    }
    match flags & TTL_MASK {
        TTL_SHORT => out.extend_from_slice(&low_bytes::<TIME_BYTES>(ttl)),
        TTL_LONG => out.extend_from_slice(&ttl.to_be_bytes()),
        _ => {}
    }
}

/// The head, and the flags.
#[inline]
fn take_head(input: &mut Input<'_>) -> Option<(EntryHead, u8)> {
    let [flags] = input.take()?;
    let partition = input.varint()?.cast_signed();
    let (offset, time) = if flags & LONG == 0 {
        (input.short::<OFFSET_BYTES>()?, input.short::<TIME_BYTES>()?)
    } else {
        let (offset, time) = (i64::from_be_bytes(input.take()?), i64::from_be_bytes(input.take()?));
        if fits(offset, OFFSET_BYTES) && fits(time, TIME_BYTES) {
            return None;
        }
        (offset, time)
    };
    let ttl = match flags & TTL_MASK {
        TTL_FOR_EVER => ttl::FOR_EVER,
        TTL_DELETED => ttl::DELETED,
        TTL_SHORT => Some(input.short::<TIME_BYTES>()?).filter(|ttl| *ttl != ttl::FOR_EVER)?,
        _ => Some(i64::from_be_bytes(input.take()?))
            .filter(|ttl| *ttl != ttl::DELETED && !fits(*ttl, TIME_BYTES))?,
    };
    let head = EntryHead {
        position: Position { partition, offset },
        timestamp: LogTime::from_ms(time),
        ttl,
        has_record: flags & RECORD != 0,
        is_provisional: flags & PROVISIONAL != 0,
    };
    Some((head, flags))
}

/// Whether a number is none below zero and has no more than so many bytes.
fn fits(number: i64, bytes: usize) -> bool {
    number >> (8 * bytes) == 0
}

/// By how much a record's own timestamp is before the write timestamp, if that has two bytes.
fn short_difference(written: i64, own: i64) -> Option<i16> {
    written.checked_sub(own).and_then(|difference| difference.try_into().ok())
}

/// A UUID, if this is exactly how its text would be written again.
fn binary_uuid(text: &str) -> Option<[u8; 16]> {
    if text.len() != UUID_TEXT_BYTES {
        return None;
    }
    let uuid = Uuid::try_parse(text).ok()?;
    // Of this length it has its hyphens, and nothing around it.
    (!text.bytes().any(|byte| byte.is_ascii_uppercase())).then(|| uuid.into_bytes())
}

pub(super) const UUID_TEXT_BYTES: usize = uuid::fmt::Hyphenated::LENGTH;

fn low_bytes<const N: usize>(number: i64) -> [u8; N] {
    let all = number.to_be_bytes();
    let mut low = [0; N];
    low.copy_from_slice(&all[all.len() - N..]);
    low
}

/// Seven bits in each byte, the lowest first; the highest bit of a byte says that another follows.
pub(super) fn put_varint(mut number: u32, out: &mut Buffer) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Bytes that are left to read.
pub(super) struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    #[inline]
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    #[inline]
    pub fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    /// A number of `N` bytes that is not below zero.
    #[inline]
    fn short<const N: usize>(&mut self) -> Option<i64> {
        let mut all = [0; size_of::<i64>()];
        all[size_of::<i64>() - N..].copy_from_slice(&self.take::<N>()?);
        Some(i64::from_be_bytes(all))
    }

    /// What [`put_varint`] wrote.
    #[inline]
    pub fn varint(&mut self) -> Option<u32> {
        let [first] = self.take()?;
        let mut number = u32::from(first & 0x7f);
        let (mut byte, mut shift) = (first, 0);
        while byte & 0x80 != 0 {
            [byte] = self.take()?;
            shift += 7;
            let part = u32::from(byte & 0x7f);
            // No bits are lost, and no byte is there for nothing.
            if shift > 28 || (part << shift) >> shift != part || byte == 0 {
                return None;
            }
            number |= part << shift;
        }
        Some(number)
    }
}
