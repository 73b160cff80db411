//! What has changed, and what was told once that was.

use std::sync::{Arc, OnceLock};

use bitacora_protocol::{NextOffset, Position};
use bytes::Bytes;

use crate::clock::{LogTime, WallTime};
use crate::store::Entry;

/// Everything up to here: what lies below the next offset of each partition, and what has expired up to that time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Point {
    /// A partition that is missing was not known yet: it counts as 0.
    pub next: Vec<NextOffset>,
    pub expired_until: WallTime,
}

impl Point {
    /// The next offset of a partition.
    #[must_use]
    pub fn of(&self, partition: i32) -> NextOffset {
        let index = usize::try_from(partition).unwrap_or(usize::MAX);
        self.next.get(index).copied().unwrap_or_default()
    }

    /// Whether nothing in it is beyond another.
    #[must_use]
    pub fn is_within(&self, other: &Self) -> bool {
        self.expired_until <= other.expired_until && is_within(&self.next, &other.next)
    }

    /// Both together.
    #[must_use]
    pub fn joined(&self, other: &Self) -> Self {
        let expired_until = self.expired_until.max(other.expired_until);
        Self { next: joined(&self.next, &other.next), expired_until }
    }

    /// What is in both.
    #[must_use]
    pub fn common(&self, other: &Self) -> Self {
        let next = self.next.iter().zip(&other.next).map(|(next, other)| *next.min(other)).collect();
        Self { next, expired_until: self.expired_until.min(other.expired_until) }
    }

    /// Whether this holds what lies at a position.
    #[must_use]
    pub fn holds(&self, position: Position) -> bool {
        position.offset < self.of(position.partition).0
    }
}

/// Whether no partition of the first is beyond that of the second.
#[must_use]
pub fn is_within(next: &[NextOffset], other: &[NextOffset]) -> bool {
    (0..).zip(next).all(|(index, next)| next.0 <= other.get::<usize>(index).map_or(0, |other| other.0))
}

/// The later of each partition.
#[must_use]
pub fn joined(next: &[NextOffset], other: &[NextOffset]) -> Vec<NextOffset> {
    let (longer, shorter) = if next.len() >= other.len() { (next, other) } else { (other, next) };
    let mut joined = longer.to_vec();
    for (joined, other) in joined.iter_mut().zip(shorter) {
        joined.0 = joined.0.max(other.0);
    }
    joined
}

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Set,
    Deleted,
    Expired,
}

/// A key that was changed.
#[derive(Debug)]
pub struct Event {
    pub key: Box<str>,
    pub kind: Kind,
    /// The record that was set; of a key that is no more, the marker, or what expired. It may lack its record then.
    pub entry: Entry,
    /// What had been told before it.
    pub before: Arc<Point>,
    /// What has been told once those that were changed in the same transaction have been.
    pub after: Arc<Point>,
    /// Of a time to live that ended: once this has been told, what ended up to then has been.
    pub told_until: Option<WallTime>,
    /// Whether the key was there before, as far as this node has shown.
    pub was_there: bool,
    /// What it looks like to those who are sent it, with and without its value: made once for all of them, by whoever sends it first.
    looks: [OnceLock<Bytes>; 2],
}

impl Event {
    #[must_use]
    pub fn new(key: Box<str>, kind: Kind, entry: Entry, before: Arc<Point>, after: Arc<Point>) -> Self {
        Self { key, kind, entry, before, after, told_until: None, was_there: true, looks: Default::default() }
    }

    #[must_use]
    pub fn position(&self) -> Position {
        self.entry.position()
    }

    /// The write timestamp of what is at its position.
    #[must_use]
    pub fn timestamp(&self) -> LogTime {
        self.entry.timestamp()
    }

    /// What has been told once this has been. The events of a transaction are in the order of the partitions, and of the offsets in each.
    #[must_use]
    pub fn point(&self) -> Point {
        if let Some(expired_until) = self.told_until {
            return Point { next: self.before.next.clone(), expired_until };
        }
        let position = self.position();
        let next = (0..).zip(&self.after.next).map(|(partition, after)| {
            let before = self.before.of(partition);
            match partition.cmp(&position.partition) {
                std::cmp::Ordering::Less => *after,
                // A repair puts an older record in its place.
                std::cmp::Ordering::Equal => before.max(NextOffset::after(position.offset)).min(*after),
                std::cmp::Ordering::Greater => before,
            }
        });
        Point { next: next.collect(), expired_until: self.before.expired_until }
    }

    /// Whether who had been told everything up to a point had been told this.
    #[must_use]
    pub fn is_within(&self, told: &Point) -> bool {
        let position = self.position();
        match self.kind {
            Kind::Expired => told.holds(position) && self.entry.ttl() <= told.expired_until.ms(),
            _ if position.offset >= self.before.of(position.partition).0 => told.holds(position),
            // A repair, for example, puts an older record in its place.
            _ => told.of(position.partition) >= self.after.of(position.partition),
        }
    }

    /// Whether it may be news to who has been told by others up to a point.
    #[must_use]
    pub fn is_news(&self, floor: Option<&Point>) -> bool {
        let partition = self.position().partition;
        self.was_there || floor.is_some_and(|floor| floor.of(partition) > self.before.of(partition))
    }

    /// What it looks like, with or without its value.
    pub fn look(&self, values: bool, make: impl FnOnce() -> Bytes) -> &Bytes {
        self.looks[usize::from(values)].get_or_init(make)
    }

    /// What it takes in memory, about, once it was made to look both ways.
    pub(super) fn cost(&self) -> usize {
        3 * (self.entry.bytes() + self.key.len()) + 512
    }
}
