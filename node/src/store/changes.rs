//! What a follower of changes is shown of the store: keys that changed since it was last told, page by page, and keys whose time to
//! live has ended.

use std::ops::Bound;

use bitacora_protocol::NextOffset;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::environment::Environment;
use super::error::undecoded;
use super::sweep::{parse_sweep_key, sweep_key};
use super::{Entry, EntryHead, Store, StoreError};
use crate::clock::{LogTime, WallTime};

/// A page looks at no more keys, so that it holds no transaction for long.
const MAX_PAGE_KEYS: usize = 20_000;
/// Keys in one answer of [`Store::expired`], unless more of them expire in the same ms.
const MAX_EXPIRED: usize = 5_000;

/// Which keys are looked at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum KeyRange {
    /// Those that begin with this; all of them if it is empty.
    Prefix(Box<str>),
    One(Box<str>),
}

impl KeyRange {
    #[must_use]
    pub fn contains(&self, key: &str) -> bool {
        match self {
            Self::Prefix(prefix) => key.starts_with(&**prefix),
            Self::One(one) => key == &**one,
        }
    }

    /// Tells it from others, but for one in some four thousand million.
    #[must_use]
    pub fn digest(&self) -> u32 {
        let (kind, text) = match self {
            Self::Prefix(prefix) => (0, prefix),
            Self::One(one) => (1, one),
        };
        xxh3_64_with_seed(text.as_bytes(), kind) as u32
    }

    /// Where keys behind `after` begin.
    fn begin<'a>(&'a self, after: Option<&'a str>) -> Bound<&'a [u8]> {
        let (Self::Prefix(first) | Self::One(first)) = self;
        match after.filter(|after| *after >= &**first) {
            Some(after) => Bound::Excluded(after.as_bytes()),
            // LMDB has no empty keys.
            None if first.is_empty() => Bound::Unbounded,
            None => Bound::Included(first.as_bytes()),
        }
    }
}

/// Keys in order, each with its newest entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangedPage {
    pub entries: Vec<(Box<str>, Entry)>,
    /// The last key looked at; `None` if there are no more.
    pub last: Option<Box<str>>,
    /// The next offsets of which the page is: exactly what was below them had been applied.
    pub next: Vec<NextOffset>,
}

/// A key whose time to live has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expired {
    pub key: Box<str>,
    /// Without its record.
    pub entry: Entry,
}

impl Store {
    /// Keys of a range behind `after` whose entries are `wanted`, at most `limit`, in one short transaction; fewer if they have so
    /// many bytes, or 20,000 keys were looked at.
    ///
    /// # Errors
    /// When LMDB fails.
    pub fn changed_page(
        &self,
        range: &KeyRange,
        after: Option<&str>,
        (limit, max_bytes): (usize, usize),
        wanted: impl Fn(&EntryHead) -> bool,
    ) -> Result<ChangedPage, StoreError> {
        let generation = self.current.load_full();
        let environment = &generation.environment;
        let txn = environment.env.read_txn()?;
        let next = next_offsets(environment, &txn)?;
        let (mut entries, mut bytes, mut last) = (Vec::new(), 0, None);
        let keys = (range.begin(after), Bound::Unbounded);
        for (looked_at, item) in environment.records.range(&txn, &keys)?.enumerate() {
            let (key, stored) = item?;
            let key = std::str::from_utf8(key).map_err(|_| StoreError::Corrupt("records"))?;
            if !range.contains(key) {
                break;
            }
            if entries.len() == limit || bytes >= max_bytes || looked_at == MAX_PAGE_KEYS {
                return Ok(ChangedPage { entries, last: last.map(Box::from), next });
            }
            last = Some(key);
            let head = EntryHead::of(stored).ok_or(StoreError::Corrupt("records"))?;
            if wanted(&head) {
                bytes += key.len() + stored.len();
                let entry =
                    Entry::from_stored(key.as_bytes(), stored).ok_or(StoreError::Corrupt("records"))?;
                entries.push((key.into(), entry));
            }
        }
        Ok(ChangedPage { entries, last: None, next })
    }

    /// The keys of the store that is read whose time to live ended after `after` and no later than `until`, in the order of those times;
    /// and up to when these are all of them.
    ///
    /// # Errors
    /// When LMDB fails.
    pub fn expired(&self, after: WallTime, until: WallTime) -> Result<(Vec<Expired>, WallTime), StoreError> {
        let generation = self.current.load_full();
        let environment = &generation.environment;
        let txn = environment.env.read_txn()?;
        let mut found: Vec<Expired> = Vec::new();
        // Those of `until` itself are in it.
        let time = |time: WallTime| sweep_key(LogTime::from_ms(time.ms().saturating_add(1).max(0)), &[]);
        let (from, to) = (time(after), time(until));
        let times = (Bound::Included(from.as_slice()), Bound::Excluded(to.as_slice()));
        for item in environment.sweep_times.range(&txn, &times)? {
            let (sweep_key, ()) = item?;
            let (at, key) = parse_sweep_key(sweep_key)?;
            if let Some(last) = found.last().filter(|_| found.len() >= MAX_EXPIRED)
                && last.entry.ttl() < at.ms()
            {
                let reached = WallTime::from_ms(last.entry.ttl());
                return Ok((found, reached));
            }
            let Some(stored) = environment.records.get(&txn, key)? else { continue };
            let head = EntryHead::of(stored).ok_or(StoreError::Corrupt("records"))?;
            // It may be the time of something else, such as a record that was replaced.
            if head.ttl == at.ms()
                && let Ok(text) = std::str::from_utf8(key)
            {
                let entry = Entry::without_record(key, head.position, head.timestamp, head.ttl);
                found.push(Expired { key: text.into(), entry });
            }
        }
        Ok((found, until))
    }
}

fn next_offsets(environment: &Environment, txn: &heed::RoTxn<'_>) -> Result<Vec<NextOffset>, StoreError> {
    let mut next = Vec::new();
    for item in environment.positions.iter(txn)? {
        let (partition, point) = item.map_err(undecoded("positions"))?;
        if partition as usize != next.len() {
            return Err(StoreError::Corrupt("positions"));
        }
        next.push(point.next);
    }
    Ok(next)
}
