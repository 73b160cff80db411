//! The slots of one part of the cache.
//!
//! A hash table with open addressing whose entries stand in the order of their hashes: each at the place that its hash has in the
//! table, or as far behind it as those before it take. So a search ends at the first greater hash, a table that is nine tenths full is searched in
//! a few steps, and one of another size is filled from front to back. Tables that double their size would leave nearly half of
//! their slots empty; this one grows by a tenth.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::store::Entry;

/// In `uses`: how often an entry was asked for, as far as it is counted.
const USES: u8 = 7;
/// In `uses`: the entry came when there was no room, and is in the queue of those.
const YOUNG: u8 = 0x80;
/// While more than one in so many entries is young, the oldest of those leave first.
const YOUNG_SHARE: usize = 20;
/// Entries in a hundred slots, at most.
const FULL: usize = 90;
const LEAST_HOMES: usize = 16;
/// Slots that are added at a time behind the last home.
const MORE: usize = 16;

/// 16 bits of a key's hash. Zero marks a slot that is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Tag(u16);

impl Tag {
    const NONE: Self = Self(0);

    pub fn of(hash: u64) -> Self {
        Self((hash as u16).max(1))
    }
}

#[derive(Default)]
pub(super) struct Table {
    /// At how many places a search may begin. There are more slots: what does not fit at the end stands behind it.
    homes: usize,
    len: usize,
    tags: Vec<Tag>,
    slots: Vec<Option<Entry>>,
    uses: Vec<AtomicU8>,
    /// The slot that is looked at next for one to evict.
    hand: usize,
    /// The tags of young entries, the oldest first; some may have left.
    young: VecDeque<Tag>,
    /// For keys whose entries were evicted: a byte of the hash, at a place that the rest of it says. Empty while nothing was evicted.
    evicted: Vec<u8>,
}

impl Table {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.slots.iter().flatten()
    }

    /// An entry, which counts as asked for.
    pub fn get(&self, tag: Tag, key: &[u8]) -> Option<&Entry> {
        let at = self.find(tag, key).ok()?;
        let uses = self.uses.get(at)?;
        let before = uses.load(Ordering::Relaxed);
        // That two readers may count as one does not matter. What is asked for all the time is not written to all the time.
        if before & USES < USES {
            uses.store(before + 1, Ordering::Relaxed);
        }
        self.slots.get(at)?.as_ref()
    }

    /// The tag where a search for this one begins.
    pub fn first_tag(&self, tag: Tag) -> u16 {
        self.tags.get(home(tag, self.homes)).map_or(0, |found| found.0)
    }

    /// The first entry with this tag, whatever its key; it does not count as asked for.
    pub fn first_entry(&self, tag: Tag) -> Option<&Entry> {
        let from = home(tag, self.homes);
        let mut run =
            self.tags.get(from..)?.iter().take_while(|found| **found != Tag::NONE && **found <= tag);
        let at = from + run.position(|found| *found == tag)?;
        self.slots.get(at)?.as_ref()
    }

    /// Puts an entry in the place of that with the same key; returns what cannot be put, or what was there.
    pub fn replace(&mut self, tag: Tag, entry: Entry) -> Result<Entry, Entry> {
        match self.find(tag, entry.key()).map(|at| self.slots[at].as_mut()) {
            Ok(Some(held)) => Ok(std::mem::replace(held, entry)),
            _ => Err(entry),
        }
    }

    /// Adds an entry whose key, of this hash, is not there.
    pub fn insert(&mut self, hash: u64, entry: Entry) {
        let tag = Tag::of(hash);
        if (self.len + 1) * 100 > self.homes * FULL {
            self.resize(self.homes + self.homes / 10 + LEAST_HOMES);
        }
        let (Ok(at) | Err(at)) = self.find(tag, entry.key());
        let empty = self.tags[at..].iter().position(|tag| *tag == Tag::NONE);
        let empty = empty.map_or(self.tags.len(), |empty| at + empty);
        if empty == self.tags.len() {
            self.add_slots(MORE);
        }
        self.tags[at..=empty].rotate_right(1);
        self.slots[at..=empty].rotate_right(1);
        self.uses[at..=empty].rotate_right(1);
        (self.tags[at], self.slots[at], self.uses[at]) = (tag, Some(entry), AtomicU8::new(0));
        self.len += 1;
        if self.evicted.is_empty() || self.was_evicted(hash) {
            return;
        }
        self.uses[at] = AtomicU8::new(YOUNG);
        self.young.push_back(tag);
    }

    pub fn remove(&mut self, tag: Tag, key: &[u8]) -> Option<Entry> {
        let at = self.find(tag, key).ok()?;
        self.take(at)
    }

    /// Removes an entry that is asked for less than others: the oldest young one if nobody has asked for it again, while there are
    /// many; else the next one that nobody has asked for since the hand passed it last.
    pub fn evict(&mut self) -> Option<Entry> {
        if self.len == 0 {
            return None;
        }
        while self.young.len() * YOUNG_SHARE > self.len {
            let tag = self.young.pop_front()?;
            let Some(at) = self.find_young(tag) else { continue };
            let uses = std::mem::replace(self.uses[at].get_mut(), 0);
            if uses & USES == 0 {
                return self.take(at);
            }
        }
        loop {
            if self.hand >= self.tags.len() {
                self.hand = 0;
            }
            let at = self.hand;
            if self.tags[at] != Tag::NONE {
                let uses = self.uses[at].get_mut();
                if *uses & YOUNG != 0 {
                    self.hand += 1;
                    continue;
                }
                if *uses == 0 {
                    // The hand stays: the next one may have moved here.
                    return self.take(at);
                }
                *uses -= 1;
            }
            self.hand += 1;
        }
    }

    /// Remembers that an entry was evicted, until about as many others were.
    pub fn remember(&mut self, hash: u64) {
        if self.evicted.len() * 2 < self.homes || self.evicted.len() > self.homes * 2 {
            self.evicted = vec![0; self.homes];
        }
        let (at, mark) = self.memory_of(hash);
        if let Some(evicted) = self.evicted.get_mut(at) {
            *evicted = mark;
        }
    }

    /// Whether the key of this hash was evicted a while ago; seldom also said of others.
    fn was_evicted(&mut self, hash: u64) -> bool {
        let (at, mark) = self.memory_of(hash);
        self.evicted.get_mut(at).is_some_and(|evicted| *evicted == mark && std::mem::take(evicted) == mark)
    }

    fn memory_of(&self, hash: u64) -> (usize, u8) {
        let at = (u64::from(hash.rotate_left(16) as u32) * self.evicted.len() as u64) >> u32::BITS;
        (at as usize, ((hash >> 24) as u8).max(1))
    }

    /// A young entry of this tag.
    fn find_young(&mut self, tag: Tag) -> Option<usize> {
        let mut at = home(tag, self.homes);
        while self.tags.get(at).is_some_and(|found| *found != Tag::NONE && *found <= tag) {
            if self.tags[at] == tag && *self.uses[at].get_mut() & YOUNG != 0 {
                return Some(at);
            }
            at += 1;
        }
        None
    }

    /// Where a key's entry is; or where it would be, which may be behind the last slot.
    fn find(&self, tag: Tag, key: &[u8]) -> Result<usize, usize> {
        let mut at = home(tag, self.homes);
        loop {
            match self.tags.get(at) {
                Some(found) if *found == tag => {
                    if self.slots[at].as_ref().is_some_and(|entry| entry.key() == key) {
                        return Ok(at);
                    }
                }
                Some(found) if *found != Tag::NONE && *found < tag => {}
                _ => return Err(at),
            }
            at += 1;
        }
    }

    /// Removes what is in a slot, and brings those behind it nearer to where a search for them begins.
    fn take(&mut self, at: usize) -> Option<Entry> {
        let entry = self.slots[at].take();
        let behind = self.tags.iter().enumerate().skip(at + 1);
        let mut stays = behind.skip_while(|(at, tag)| **tag != Tag::NONE && home(**tag, self.homes) < *at);
        let end = stays.next().map_or(self.tags.len(), |(at, _)| at);
        self.tags[at] = Tag::NONE;
        self.tags[at..end].rotate_left(1);
        self.slots[at..end].rotate_left(1);
        self.uses[at..end].rotate_left(1);
        self.len -= 1;
        if self.len * 2 < self.homes && self.homes > 8 * LEAST_HOMES {
            self.resize(self.homes * 6 / 10);
        }
        entry
    }

    fn resize(&mut self, homes: usize) {
        let hand = self.hand as f64 / self.tags.len().max(1) as f64;
        let kept = Self {
            homes,
            len: self.len,
            young: std::mem::take(&mut self.young),
            evicted: std::mem::take(&mut self.evicted),
            ..Self::default()
        };
        let old = std::mem::replace(self, kept);
        self.add_slots(homes + MORE);
        let mut next = 0;
        for ((tag, slot), uses) in old.tags.into_iter().zip(old.slots).zip(old.uses) {
            if tag == Tag::NONE {
                continue;
            }
            let at = next.max(home(tag, homes));
            if at == self.tags.len() {
                self.add_slots(MORE);
            }
            (self.tags[at], self.slots[at], self.uses[at]) = (tag, slot, uses);
            next = at + 1;
        }
        self.hand = (hand * self.tags.len() as f64) as usize;
    }

    fn add_slots(&mut self, more: usize) {
        let slots = self.tags.len() + more;
        // Not twice as many as there are.
        self.tags.reserve_exact(more);
        self.slots.reserve_exact(more);
        self.uses.reserve_exact(more);
        self.tags.resize(slots, Tag::NONE);
        self.slots.resize(slots, None);
        self.uses.resize_with(slots, AtomicU8::default);
    }
}

/// Where a search begins.
fn home(tag: Tag, homes: usize) -> usize {
    (usize::from(tag.0) * homes) >> u16::BITS
}
