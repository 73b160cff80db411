//! Applying what was read from the log: records and next offsets in one transaction, then the cache.

use heed::types::Bytes as RawBytes;
use heed::{Database, PutFlags, RoTxn, RwTxn};

use super::digest::DigestChanges;
use super::environment::{Environment, PartitionState};
use super::generation::Written;
use super::sweep::{sweep_key, sweep_time};
use super::trimming::{KeyState, Outcome, parse_older_entries, parse_pending_repairs};
use super::{Change, Entry, Store, StoreError};
use crate::clock::LogTime;
use crate::log::PartitionRead;
use bitacora_protocol::NextOffset;

/// What came of applying records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Keys whose record is another now, or gone.
    pub changed: usize,
    /// Those of them that were put behind all keys that the store had, if it was filled: [`Store::fill`].
    pub appended: usize,
    /// Records of the store that a tombstone with a condition removed.
    pub trimmed: usize,
    /// Records of the log whose condition was not met.
    pub void: usize,
    /// Repairs that said something else than a store held that lacked nothing: some node has decided otherwise.
    pub contradicted: usize,
    /// What became of the conditional writes, in the order of each partition.
    pub decided: Vec<Decided>,
    /// Whether compaction may have removed something that was not read.
    pub gap: bool,
}

/// The newest entry of a key before a change of it, and after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyChange {
    pub before: Option<Entry>,
    pub after: Option<Entry>,
    /// Whether there was a record, perhaps, in between: this stands for several changes then.
    pub was_there_between: bool,
}

impl KeyChange {
    /// Whether an entry is behind this change in the log's order of one partition.
    fn is_followed_by(&self, next: Option<&Entry>) -> bool {
        let (Some(after), Some(next)) = (&self.after, next) else { return false };
        let (after, next) = (after.position(), next.position());
        after.partition == next.partition && after.offset < next.offset
    }
}

/// Changes of keys in a transaction, each as it would be alone, so that those who follow are told the same by every node, whatever
/// its transactions hold.
#[derive(Default)]
struct KeyChanges<'a>(Vec<(&'a [u8], KeyChange)>);

impl<'a> KeyChanges<'a> {
    /// Notes what a change of a key came to, if its newest entry is another one now; `first`: how many there were before the key's.
    fn note(&mut self, first: usize, key: &'a [u8], newest: &mut Option<Entry>, now: Option<&Entry>) {
        if newest.as_ref() == now {
            return;
        }
        let before = std::mem::replace(newest, now.cloned());
        match self.0[first..].last_mut() {
            // Only what follows in its partition has a place of its own in the order of all changes.
            Some((_, last)) if !last.is_followed_by(now) => {
                last.was_there_between |= before.is_some_and(|before| before.ttl() >= 0);
                last.after = now.cloned();
            }
            _ => self.0.push((key, KeyChange { before, after: now.cloned(), was_there_between: false })),
        }
    }
}

/// What became of a conditional write when its turn came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    InEffect,
    Void,
    /// This node could not judge it: what it holds of the key may not be what the log says, or may not have been.
    Unknown,
}

/// A conditional write of the log, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided {
    /// The record that it would write, or wrote.
    pub entry: Entry,
    pub decision: Decision,
}

impl Applied {
    /// Applies a change, and counts what came of it. Returns whether its partition may hold something else of the key now.
    fn apply(&mut self, state: &mut KeyState, change: Change) -> bool {
        let attempt = match &change {
            Change::Attempt { entry, .. } => Some(entry.clone()),
            _ => None,
        };
        let outcome = state.apply(change);
        match outcome {
            Outcome::Trimmed => self.trimmed += 1,
            Outcome::Void => self.void += 1,
            Outcome::Contradicted => self.contradicted += 1,
            Outcome::Unchanged | Outcome::Written | Outcome::Undecided => {}
        }
        let decision = match outcome {
            Outcome::Written => Decision::InEffect,
            Outcome::Void => Decision::Void,
            Outcome::Undecided => Decision::Unknown,
            Outcome::Unchanged => return false,
            Outcome::Contradicted | Outcome::Trimmed => return true,
        };
        self.decided.extend(attempt.map(|entry| Decided { entry, decision }));
        decision != Decision::Void
    }
}

impl Store {
    /// Applies records, in the order of the log within each partition, and the next offsets that follow them, in one
    /// transaction.
    ///
    /// A write that is not newer than the one in the store changes nothing, so applying twice is harmless.
    ///
    /// # Errors
    /// When LMDB fails (for example on a full disk); nothing is changed then.
    pub fn apply(
        &self,
        changes: &mut Vec<(&[u8], Change)>,
        next: &[(i32, NextOffset)],
    ) -> Result<Applied, StoreError> {
        let read: Vec<_> =
            next.iter().map(|(partition, next)| PartitionRead::up_to(*partition, *next)).collect();
        self.apply_read(changes, &read)
    }

    /// As [`Store::apply`], with all that is known of what was read, be it changes or not.
    ///
    /// # Errors
    /// As [`Store::apply`].
    pub fn apply_read(
        &self,
        changes: &mut Vec<(&[u8], Change)>,
        read: &[PartitionRead],
    ) -> Result<Applied, StoreError> {
        self.apply_telling(changes, read, &mut |_, _| {})
    }

    /// As [`Store::apply_read`]; tells, once it is done, of each key whose newest entry is another one now: all that it was meanwhile, in
    /// turn.
    ///
    /// # Errors
    /// As [`Store::apply`].
    pub fn apply_telling(
        &self,
        changes: &mut Vec<(&[u8], Change)>,
        read: &[PartitionRead],
        tell: &mut dyn FnMut(&[u8], KeyChange),
    ) -> Result<Applied, StoreError> {
        // In key order, a page is written once however many of its keys change; the sort is stable, so each key's changes
        // keep the order of their partition.
        changes.sort_by_key(|(key, _)| *key);
        let written = self.written();
        let mut changed = KeyChanges(Vec::with_capacity(changes.len()));
        let applied = commit(&written, changes.drain(..), read, Some(&mut changed))?;
        for (key, change) in changed.0 {
            if let Some(cache) = written.cache() {
                cache.update(key, change.after.clone());
            }
            tell(key, change);
        }
        Ok(applied)
    }

    /// As [`Store::apply_read`], of a store that was never complete, so that nobody is told what changes: `keys` are of what was read, in
    /// the order of each partition; `change` makes the change of one of them, by its index, in key order, and may leave some out.
    ///
    /// # Errors
    /// As [`Store::apply`].
    pub fn fill(
        &self,
        keys: &[&[u8]],
        mut change: impl FnMut(usize) -> Option<Change>,
        read: &[PartitionRead],
    ) -> Result<Applied, StoreError> {
        let written = self.written();
        let order = in_key_order(keys);
        let changes = order.iter().filter_map(|index| Some((keys[*index], change(*index)?)));
        let applied = commit(&written, changes, read, None)?;
        if let Written::Current(generation) = &written
            && generation.was_looked_into()
        {
            generation.cache.remove_all(keys);
        }
        Ok(applied)
    }
}

/// The indexes of keys, by the order of the keys; those of the same key keep theirs.
pub(super) fn in_key_order(keys: &[&[u8]]) -> Vec<usize> {
    let Some(first) = keys.first() else { return Vec::new() };
    let common = keys.iter().fold(first.len(), |common, key| {
        let same = first[..common].iter().zip(*key).take_while(|(a, b)| a == b);
        same.count()
    });
    // The first bytes in which keys differ: mostly they tell, and lie side by side, while a key is somewhere in a large batch.
    let head = |key: &[u8]| {
        let mut head = [0; 8];
        head.iter_mut().zip(&key[common..]).for_each(|(head, byte)| *head = *byte);
        u64::from_be_bytes(head)
    };
    let mut order: Vec<_> = keys.iter().map(|key| head(key)).zip(0..).collect();
    order.sort_by(|(a, of_a), (b, of_b)| a.cmp(b).then_with(|| keys[*of_a].cmp(keys[*of_b])));
    order.into_iter().map(|(_, index): (u64, usize)| index).collect()
}

/// Applies changes, which are in key order, and what was read with them, in one transaction. `changed`: is told what the changes came to.
fn commit<'a>(
    written: &Written,
    changes: impl Iterator<Item = (&'a [u8], Change)>,
    read: &[PartitionRead],
    mut changed: Option<&mut KeyChanges<'a>>,
) -> Result<Applied, StoreError> {
    let environment = written.environment();
    let mut txn = environment.env.write_txn()?;
    let lookup = KeyLookup::of(environment, &txn)?;
    let mut digests = DigestChanges::begin(environment, &txn, read)?;
    let mut end = KeysEnd::of(environment, &txn)?;
    let mut applied = Applied::default();
    let mut changes = changes.peekable();
    while let Some((key, first)) = changes.next() {
        let is_behind_all = end.is_before(key);
        let record = if is_behind_all { None } else { environment.records.get(&txn, key)? };
        // A key that the store knows nothing of, and that is written once: nearly all of a restore.
        if record.is_none()
            && lookup.looks_into_records_only()
            && let Change::Write(entry) = &first
            && changes.peek().is_none_or(|(next, _)| *next != key)
        {
            let head = entry.head();
            put_newest(environment, &mut txn, key, entry, sweep_time(head), is_behind_all)?;
            digests.note_first(entry, head);
            applied.changed += 1;
            applied.appended += usize::from(is_behind_all && changed.is_none());
            if let Some(changed) = &mut changed {
                changed.note(changed.0.len(), key, &mut None, Some(entry));
            }
            continue;
        }
        let mut state = lookup.key_state_beside(record, environment, &txn, key)?;
        let before = StoredKey::of(&state);
        let first_of_key = changed.as_ref().map_or(0, |changed| changed.0.len());
        let (mut newest, mut next) = (before.newest.clone(), Some(first));
        while let Some(change) = next {
            let at = change.at();
            let before = state.held(at.partition).cloned();
            if applied.apply(&mut state, change) {
                digests.note(at, before.as_ref(), state.held(at.partition));
            }
            state.sort();
            if let Some(changed) = &mut changed {
                changed.note(first_of_key, key, &mut newest, state.entries.first());
            }
            next = changes.next_if(|(next, _)| *next == key).map(|(_, change)| change);
        }
        debug_assert!(state.entries.iter().all(|entry| entry.key() == key));
        if write_key(environment, &mut txn, key, &before, &state, is_behind_all)? {
            applied.changed += 1;
            applied.appended += usize::from(is_behind_all && changed.is_none());
        } else if let Some(changed) = &mut changed {
            changed.0.truncate(first_of_key);
        }
    }
    let marks = digests.finish(environment, &mut txn, read)?;
    txn.commit()?;
    written.remember_digests(&marks);
    applied.gap = read.iter().any(|read| read.gap);
    Ok(applied)
}

/// The last of the keys that have records, before changes in key order.
struct KeysEnd {
    last: Option<Vec<u8>>,
    is_passed: bool,
}

impl KeysEnd {
    fn of(environment: &Environment, txn: &RoTxn<'_>) -> Result<Self, StoreError> {
        let last = environment.records.last(txn)?.map(|(key, _)| key.to_vec());
        Ok(Self { last, is_passed: false })
    }

    /// Whether it is before this key, which is none before the one that was asked about last.
    fn is_before(&mut self, key: &[u8]) -> bool {
        self.is_passed = self.is_passed || self.last.as_deref().is_none_or(|last| last < key);
        self.is_passed
    }
}

impl Store {
    /// Whether the store that is written was complete at some time, so that it is read, or was.
    ///
    /// # Errors
    /// When LMDB fails.
    pub fn was_ever_complete(&self) -> Result<bool, StoreError> {
        let written = self.written();
        let environment = written.environment();
        environment.is_restored(&*environment.env.read_txn()?)
    }

    /// What is known of a partition where the store that is written stands.
    ///
    /// # Errors
    /// When LMDB fails.
    pub fn partition_state(&self, partition: i32) -> Result<PartitionState, StoreError> {
        let written = self.written();
        let environment = written.environment();
        environment.partition_state(&*environment.env.read_txn()?, partition)
    }

    /// Everything up to the log's end has been applied: what compaction may have removed before that decides nothing any more.
    ///
    /// # Errors
    /// When LMDB fails.
    pub fn forget_gaps(&self) -> Result<(), StoreError> {
        let written = self.written();
        let environment = written.environment();
        let mut txn = environment.env.write_txn()?;
        environment.gaps.clear(&mut txn)?;
        Ok(txn.commit()?)
    }
}

/// What an environment held of a key before it was changed.
struct StoredKey {
    newest: Option<Entry>,
    older_entries: Vec<u8>,
    pending_repairs: Vec<u8>,
    doubts: Vec<u8>,
}

impl StoredKey {
    fn of(state: &KeyState) -> Self {
        let newest = state.entries.first().cloned();
        Self {
            newest,
            older_entries: state.encode_older_entries(),
            pending_repairs: state.encode_pending_repairs(),
            doubts: state.encode_doubts(),
        }
    }
}

/// Writes what has changed of a key, which is behind all those that have records or is not. Returns whether its newest entry has.
fn write_key(
    environment: &Environment,
    txn: &mut RwTxn<'_>,
    key: &[u8],
    before: &StoredKey,
    state: &KeyState,
    is_behind_all: bool,
) -> Result<bool, StoreError> {
    save(environment.older_entries, txn, key, &before.older_entries, &state.encode_older_entries())?;
    save(environment.pending_repairs, txn, key, &before.pending_repairs, &state.encode_pending_repairs())?;
    let doubts = state.encode_doubts();
    if !doubts.is_empty() && doubts != before.doubts {
        // A sweep finds out until when.
        for doubt in &state.doubts {
            let at = doubt.timestamp.max(LogTime::default());
            environment.sweep_times.put(txn, &sweep_key(at, key), &())?;
        }
    }
    save(environment.doubts, txn, key, &before.doubts, &doubts)?;
    let newest = state.entries.first();
    if newest == before.newest.as_ref() {
        return Ok(false);
    }
    if let Some(at) = before.newest.as_ref().map(Entry::head).and_then(sweep_time) {
        environment.sweep_times.delete(txn, &sweep_key(at, key))?;
    }
    let Some(newest) = newest else {
        environment.records.delete(txn, key)?;
        return Ok(true);
    };
    let sweep_at = if newest.is_provisional() {
        Some(state.last_trimmed_at.max(LogTime::default()))
    } else {
        sweep_time(newest.head())
    };
    put_newest(environment, txn, key, newest, sweep_at, is_behind_all)?;
    Ok(true)
}

/// Writes the newest entry of a key, which is behind all those that have records or is not, and when a sweep is to look at it.
fn put_newest(
    environment: &Environment,
    txn: &mut RwTxn<'_>,
    key: &[u8],
    entry: &Entry,
    sweep_at: Option<LogTime>,
    is_behind_all: bool,
) -> Result<(), StoreError> {
    if let Some(at) = sweep_at {
        environment.sweep_times.put(txn, &sweep_key(at, key), &())?;
    }
    if is_behind_all {
        // LMDB then looks for no place. It leaves the page before it full in either case, as it does at the end of a tree.
        environment.records.put_with_flags(txn, PutFlags::APPEND, key, entry.as_stored())?;
    } else {
        environment.records.put(txn, key, entry.as_stored())?;
    }
    Ok(())
}

/// What is the same for all keys of a transaction: which databases need not be looked into.
#[derive(Clone, Copy)]
pub(super) struct KeyLookup {
    /// Whether the store was complete at some time, so that readers are shown its entries.
    shown_to_readers: bool,
    look_into_older_entries: bool,
    /// And into the doubts.
    look_into_pending_repairs: bool,
}

impl KeyLookup {
    /// Finds a key's entries, to choose among them; nothing is applied to them.
    pub const ENTRIES_ONLY: Self =
        Self { shown_to_readers: false, look_into_older_entries: true, look_into_pending_repairs: false };

    pub fn of(environment: &Environment, txn: &RoTxn<'_>) -> Result<Self, StoreError> {
        Ok(Self {
            shown_to_readers: environment.is_restored(txn)?,
            // These databases are empty nearly always.
            look_into_older_entries: !environment.older_entries.is_empty(txn)?,
            look_into_pending_repairs: !environment.pending_repairs.is_empty(txn)?
                || !environment.doubts.is_empty(txn)?,
        })
    }

    fn looks_into_records_only(self) -> bool {
        !self.look_into_older_entries && !self.look_into_pending_repairs
    }

    /// What an environment holds of a key.
    pub fn key_state(
        self,
        environment: &Environment,
        txn: &RoTxn<'_>,
        key: &[u8],
    ) -> Result<KeyState, StoreError> {
        self.key_state_beside(environment.records.get(txn, key)?, environment, txn, key)
    }

    /// As [`KeyLookup::key_state`], where what is under `records` is known.
    fn key_state_beside(
        self,
        record: Option<&[u8]>,
        environment: &Environment,
        txn: &RoTxn<'_>,
        key: &[u8],
    ) -> Result<KeyState, StoreError> {
        let mut state = KeyState { shown_to_readers: self.shown_to_readers, ..KeyState::default() };
        if let Some(bytes) = record {
            state.entries.push(Entry::from_stored(key, bytes).ok_or(StoreError::Corrupt("records"))?);
        }
        if self.look_into_older_entries
            && let Some(bytes) = environment.older_entries.get(txn, key)?
        {
            state.entries.extend(parse_older_entries(key, bytes)?);
        }
        if self.look_into_pending_repairs {
            let parse = |bytes: Option<&[u8]>| parse_pending_repairs(bytes.unwrap_or_default());
            state.pending_repairs = parse(environment.pending_repairs.get(txn, key)?)?;
            state.doubts = parse(environment.doubts.get(txn, key)?)?;
        }
        Ok(state)
    }
}

/// Writes a value that differs from the one before; an empty one is removed.
pub(super) fn save(
    database: Database<RawBytes, RawBytes>,
    txn: &mut RwTxn<'_>,
    key: &[u8],
    before: &[u8],
    after: &[u8],
) -> Result<(), StoreError> {
    match (before.is_empty(), after.is_empty()) {
        // By far the most frequent. They are not compared: that of two empty vectors, whose pointers lead nowhere, takes the processor
        // longer than all else that is done here, where the C library compares under a mask.
        (true, true) => {}
        (false, true) => drop(database.delete(txn, key)?),
        _ if after != before => database.put(txn, key, after)?,
        _ => {}
    }
    Ok(())
}
