//! A generation of the store: what readers see, switched as one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use super::cache::{CacheCounters, RecordCache};
use super::digest::{DigestMarks, DigestPoint};
use super::environment::Environment;
use super::{Checkpoint, Store, StoreError};
use crate::clock::WallTime;
use crate::log::{LogIdentity, LogTag};
use bitacora_protocol::NextOffset;

/// An environment on disk, the cache of its records, and the log that both are of.
///
/// A reader takes one generation and answers from it alone. Were the environment and the cache switched one after the other, a read
/// in between would answer with the old log's record as the new one's; and a reader that was held up could put such a record into the new
/// cache. As it is, whoever still holds the old generation may fill the old cache only, which nobody finds any more.
///
/// An environment that is emptied in place ([`Store::reset`]) becomes part of a new generation, too, before anything is applied to it.
pub(super) struct Generation {
    pub environment: Environment,
    pub cache: RecordCache,
    pub log: LogTag,
    pub digest_marks: DigestMarks,
    /// Whether the cache may hold anything.
    looked_into: AtomicBool,
}

impl Generation {
    pub fn new(
        environment: Environment,
        log: LogTag,
        cache_bytes: u64,
        counters: &Arc<CacheCounters>,
    ) -> Self {
        let cache = RecordCache::new(cache_bytes, counters);
        let (digest_marks, looked_into) = Default::default();
        Self { environment, cache, log, digest_marks, looked_into }
    }

    /// To be called before a transaction whose records go into the cache.
    pub fn look_into(&self) {
        if !self.looked_into.load(Ordering::Relaxed) {
            self.looked_into.store(true, Ordering::Relaxed);
        }
        // Whoever commits either is told, or has committed before the transaction begins.
        fence(Ordering::SeqCst);
    }

    /// Asked after a commit: whether the cache may hold something from before it.
    pub fn was_looked_into(&self) -> bool {
        fence(Ordering::SeqCst);
        self.looked_into.load(Ordering::Relaxed)
    }
}

/// What the one writer writes.
pub(super) enum Written {
    /// What is read.
    Current(Arc<Generation>),
    /// A store that is built beside it, without a cache, since nobody reads it.
    Building(Box<Environment>),
}

impl Written {
    pub fn environment(&self) -> &Environment {
        match self {
            Self::Current(generation) => &generation.environment,
            Self::Building(environment) => environment,
        }
    }

    pub fn cache(&self) -> Option<&RecordCache> {
        match self {
            Self::Current(generation) => Some(&generation.cache),
            Self::Building(_) => None,
        }
    }

    /// Digests at positions that were passed, of partitions of a store that is read.
    pub fn remember_digests(&self, marks: &[(i32, DigestPoint)]) {
        if let Self::Current(generation) = self {
            generation.digest_marks.remember(marks);
        }
    }
}

impl Store {
    pub(super) fn written(&self) -> Written {
        match &*self.building.lock() {
            Some(building) => Written::Building(Box::new(building.clone())),
            None => Written::Current(self.current.load_full()),
        }
    }

    /// What the store that is written stands for.
    ///
    /// # Errors
    /// When LMDB fails.
    pub fn checkpoint(&self) -> Result<Checkpoint, StoreError> {
        self.written().environment().checkpoint()
    }

    /// Empties the store that is written and ties it to a log, to be read from `next` on; `now` is when that begins. All or nothing.
    ///
    /// # Errors
    /// When LMDB or the disk fails; the store is then as before.
    pub fn reset(
        &self,
        identity: &LogIdentity,
        next: &[NextOffset],
        now: WallTime,
    ) -> Result<(), StoreError> {
        match self.written() {
            Written::Building(environment) => environment.reset(identity, next, now),
            Written::Current(generation) => {
                generation.environment.reset(identity, next, now)?;
                self.publish(generation.environment.clone(), identity.tag());
                Ok(())
            }
        }
    }

    /// Begins a new store beside this one, which is read until [`Store::note_caught_up`] says that the new one is complete. One that
    /// was begun before is given up.
    ///
    /// # Errors
    /// When LMDB or the disk fails; this store stays as it is.
    pub fn build(
        &self,
        identity: &LogIdentity,
        next: &[NextOffset],
        now: WallTime,
    ) -> Result<(), StoreError> {
        let environment = Environment::open(self.folder.path(), self.folder.unused()?)?;
        let number = environment.number;
        if let Err(error) = environment.reset(identity, next, now) {
            drop(environment);
            self.folder.remove(number);
            return Err(error);
        }
        if let Some(given_up) = self.building.lock().replace(environment) {
            self.folder.remove(given_up.number);
        }
        Ok(())
    }

    /// Whether what is written is not what is read.
    #[must_use]
    pub fn is_building(&self) -> bool {
        self.building.lock().is_some()
    }

    /// Puts an empty store in the place of this one, whose records must not be read any more.
    ///
    /// # Errors
    /// When LMDB or the disk fails; this store then stays.
    pub fn discard(&self) -> Result<(), StoreError> {
        let new = Environment::open(self.folder.path(), self.folder.unused()?)?;
        let number = new.number;
        self.replace(new).inspect_err(|_| self.folder.remove(number))
    }

    /// Ties the store to the same log by a name that says more.
    ///
    /// # Errors
    /// When LMDB fails.
    pub fn set_identity(&self, identity: &LogIdentity) -> Result<(), StoreError> {
        let written = self.written();
        let mut txn = written.environment().env.write_txn()?;
        written.environment().put_identity(&mut txn, identity)?;
        txn.commit()?;
        if let Written::Current(generation) = written {
            self.publish(generation.environment.clone(), identity.tag());
        }
        Ok(())
    }

    /// Remembers why the store does not fit its log, until another one takes its place or it is emptied. What tells may be gone from the log
    /// when the process ends before that and starts again.
    ///
    /// # Errors
    /// When LMDB or the disk fails.
    pub fn note_unfit(&self, why: &str) -> Result<(), StoreError> {
        let written = self.written();
        let environment = written.environment();
        let mut txn = environment.env.write_txn()?;
        environment.meta.put(&mut txn, "unfit", why)?;
        Ok(txn.commit()?)
    }

    /// Remembers that everything up to the log's end was applied at `now`: the store answers reads from now on, and one that was built
    /// beside another takes its place.
    ///
    /// # Errors
    /// When LMDB or the disk fails.
    pub fn note_caught_up(&self, now: WallTime) -> Result<(), StoreError> {
        let written = self.written();
        written.environment().note_caught_up(now)?;
        match written {
            Written::Current(_) => Ok(()),
            Written::Building(environment) => self.replace(*environment),
        }
    }

    /// Makes another environment the store, on disk and for readers.
    pub(super) fn replace(&self, new: Environment) -> Result<(), StoreError> {
        let (number, log) = (new.number, new.log()?);
        new.env.force_sync()?;
        self.folder.point_to(number)?;
        let given_up = self.building.lock().take().filter(|building| building.number != number);
        let old = self.publish(new, log);
        self.folder.remove(old.environment.number);
        if let Some(environment) = given_up {
            self.folder.remove(environment.number);
        }
        Ok(())
    }

    /// Shows readers an environment, with an empty cache. Returns what they saw before.
    fn publish(&self, environment: Environment, log: LogTag) -> Arc<Generation> {
        let new = Generation::new(environment, log, self.cache_bytes, &self.counters);
        let old = self.current.swap(Arc::new(new));
        #[cfg(test)]
        self.after_publishing.run(self);
        old
    }
}
