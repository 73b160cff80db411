//! Pages of the store for those who catch up. Who asks for a page that nobody has begun to read is given the same one: when all who follow
//! fall behind at once, the store is read for all of them together rather than once for each.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use prometheus::IntGauge;
use tokio::sync::{OnceCell, Semaphore};

use crate::clock::WallTime;
use crate::metrics::Counted;
use crate::replication::feed::Point;
use crate::service::memory::{Memory, Permit};
use crate::store::{ChangedPage, EntryHead, KeyRange, Store, StoreError};

/// Pages that are read at a time; further ones wait. Bounds the disk's queue.
pub(super) const MAX_CONCURRENT_PAGES: usize = 4;
/// With so many pages waiting, those that nobody waits for any more are looked for.
const MANY_WAITING: usize = 32;

/// Which page.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct PageOf {
    pub range: KeyRange,
    /// Begins behind this key.
    pub after: Option<Box<str>>,
    /// Entries, and about so many bytes of them.
    pub limit: usize,
    pub max_bytes: usize,
}

/// Which entries of a page are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WantedEntries {
    /// What is not in it, or has expired since; `None`: all that is live.
    pub base: Option<Point>,
    /// What has expired by then is not live.
    pub expired_until: WallTime,
    /// Of what expires, what does so by then.
    pub latest: WallTime,
}

impl WantedEntries {
    fn wants(&self, head: &EntryHead) -> bool {
        match &self.base {
            None => head.is_live(self.expired_until),
            Some(base) => {
                let expires = base.expired_until.ms() < head.ttl && head.ttl <= self.latest.ms();
                expires || !base.holds(head.position)
            }
        }
    }

    /// What either of two wants.
    fn widen(&mut self, other: &Self) {
        if let (Some(base), Some(other)) = (&mut self.base, &other.base) {
            *base = base.common(other);
        }
        self.expired_until = self.expired_until.min(other.expired_until);
        self.latest = self.latest.max(other.latest);
    }
}

/// A page, and perhaps entries that only others want.
#[derive(Debug)]
pub(super) struct SharedPage {
    pub page: ChangedPage,
    /// It has all that expires by then.
    pub latest: WallTime,
    _memory: Permit,
}

/// A page that somebody waits for.
struct Waiting {
    wanted: Mutex<WantedEntries>,
    page: OnceCell<Arc<SharedPage>>,
}

/// Whether all that is live is wanted, or what is new to somebody.
type IsOfAll = bool;

pub(super) struct Pages {
    store: Arc<Store>,
    memory: Memory,
    pub(super) permits: Semaphore,
    /// Those that nobody has begun to read.
    waiting: Mutex<HashMap<(PageOf, IsOfAll), Weak<Waiting>>>,
    waiting_for_a_page: IntGauge,
}

impl Pages {
    pub fn new(store: Arc<Store>, memory: Memory, waiting_for_a_page: IntGauge) -> Self {
        let permits = Semaphore::new(MAX_CONCURRENT_PAGES);
        Self { store, memory, permits, waiting: Mutex::default(), waiting_for_a_page }
    }

    /// A page that is read after this call has begun: what is wanted is in it, in key order, among what others want.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn read(&self, of: PageOf, wanted: WantedEntries) -> Result<Arc<SharedPage>, StoreError> {
        let _counted = Counted::one(&self.waiting_for_a_page);
        let of = (of, wanted.base.is_none());
        let waiting = self.join(&of, wanted);
        // If whoever reads it goes away, another of those who wait reads it.
        let read = waiting.page.get_or_try_init(|| async {
            // Never closed.
            let _permit = self.permits.acquire().await;
            let wanted = self.begin(&of, &waiting);
            let (store, PageOf { range, after, limit, max_bytes }) = (Arc::clone(&self.store), of.0.clone());
            let memory = self.memory.take_anyway(2 * max_bytes);
            // It may read much from disk; and LMDB's reader must not outlive the call.
            let read = tokio::task::spawn_blocking(move || {
                let wants = |head: &EntryHead| wanted.wants(head);
                let page = store.changed_page(&range, after.as_deref(), (limit, max_bytes), wants)?;
                Ok(Arc::new(SharedPage { page, latest: wanted.latest, _memory: memory }))
            });
            read.await.map_err(|_| StoreError::Corrupt("records"))?
        });
        read.await.cloned()
    }

    /// Pages of which it is known that somebody waited for them.
    #[cfg(test)]
    pub fn known(&self) -> usize {
        self.waiting.lock().len()
    }

    /// Those who wait for a page that nobody has begun to read.
    fn join(&self, of: &(PageOf, IsOfAll), wanted: WantedEntries) -> Arc<Waiting> {
        let mut all = self.waiting.lock();
        if let Some(waiting) = all.get(of).and_then(Weak::upgrade) {
            waiting.wanted.lock().widen(&wanted);
            return waiting;
        }
        if all.len() >= MANY_WAITING {
            all.retain(|_, waiting| waiting.strong_count() > 0);
        }
        let waiting = Arc::new(Waiting { wanted: Mutex::new(wanted), page: OnceCell::new() });
        all.insert(of.clone(), Arc::downgrade(&waiting));
        waiting
    }

    /// From here on nobody joins those who wait for a page: what it holds may be older than what they have been told.
    fn begin(&self, of: &(PageOf, IsOfAll), waiting: &Arc<Waiting>) -> WantedEntries {
        let mut all = self.waiting.lock();
        if all.get(of).is_some_and(|known| std::ptr::eq(known.as_ptr(), Arc::as_ptr(waiting))) {
            all.remove(of);
        }
        waiting.wanted.lock().clone()
    }
}
