//! How many of something there may be at a time, where that may change while the node runs.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// So many permits, each held until it is dropped. Clones share them.
#[derive(Clone)]
pub struct Permits {
    semaphore: Arc<Semaphore>,
    limit: Arc<Mutex<u32>>,
}

impl Permits {
    #[must_use]
    pub fn new(limit: u32) -> Self {
        Self { semaphore: Arc::new(Semaphore::new(limit as usize)), limit: Arc::new(Mutex::new(limit)) }
    }

    /// How many there may be.
    #[must_use]
    pub fn limit(&self) -> u32 {
        *self.limit.lock()
    }

    /// Waits for one. `None` never comes, since nobody closes it.
    pub async fn acquire(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.semaphore).acquire_owned().await.ok()
    }

    /// One, if there is one.
    #[must_use]
    pub fn try_acquire(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.semaphore).try_acquire_owned().ok()
    }

    /// Changes how many there may be. Those that are held stay held; where there are too many of them, the next ones that are given
    /// back go to nobody. To be called on the runtime.
    pub fn set_limit(&self, limit: u32) {
        let mut current = self.limit.lock();
        let before = std::mem::replace(&mut *current, limit);
        if limit >= before {
            self.semaphore.add_permits((limit - before) as usize);
            return;
        }
        let forgotten = self.semaphore.forget_permits((before - limit) as usize);
        let owed = (before - limit).saturating_sub(u32::try_from(forgotten).unwrap_or(u32::MAX));
        if owed > 0 {
            // It stands before all who ask from now on.
            let semaphore = Arc::clone(&self.semaphore);
            tokio::spawn(async move {
                if let Ok(permits) = semaphore.acquire_many_owned(owed).await {
                    permits.forget();
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_limit_changes_while_permits_are_held() {
        let permits = Permits::new(2);
        let (first, second) = (permits.try_acquire().expect("one"), permits.try_acquire().expect("another"));
        assert!(permits.try_acquire().is_none());
        permits.set_limit(3);
        let third = permits.try_acquire().expect("the limit is higher");
        permits.set_limit(1);
        assert_eq!(permits.limit(), 1);
        // What is owed is taken by a task.
        tokio::task::yield_now().await;
        drop((first, second));
        assert!(permits.try_acquire().is_none(), "the one that there may be is held");
        drop(third);
        tokio::task::yield_now().await;
        let only = permits.try_acquire().expect("the last one was given back");
        assert!(permits.try_acquire().is_none());
        permits.set_limit(2);
        let one_more = permits.acquire().await.expect("never closed");
        assert!(permits.try_acquire().is_none());
        drop((only, one_more));
    }
}
