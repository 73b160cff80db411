//! The last changes of the store that is read: one buffer of bounded bytes, which all who follow changes read from. The applier puts in
//! what its commits changed, the thread of expiries the keys whose time to live has ended; both in turn ([`Feed::turn`]), so that a
//! key's events are in the order in which it changed. Who falls behind what the buffer holds catches up from the store.

mod event;
mod ring;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bitacora_protocol::NextOffset;
use parking_lot::{Mutex, MutexGuard, RwLock};
use tokio::sync::watch;

pub use self::event::{Event, Kind, Point, is_within, joined};
use self::ring::Ring;
pub use self::ring::{AtStore, Events, Lost};
use crate::clock::{LogTime, WallTime};
use crate::log::LogTag;
use crate::store::{KeyChange, Store, StoreError};

/// What the buffer may take.
const RING_BYTES: usize = 16 << 20;
/// The buffer is filled for so long after somebody last read it: for longer than a call for changes may wait. Then a commit costs
/// nothing but noting how far it is.
const KEPT_FOR: Duration = Duration::from_secs(120);

/// A key whose newest entry is another one now.
#[derive(Debug)]
pub struct Change {
    pub key: Box<str>,
    pub change: KeyChange,
}

/// See the module.
pub struct Feed {
    ring: RwLock<Option<Ring>>,
    /// Counts the stores that were followed.
    generation: AtomicU64,
    turn: Mutex<()>,
    /// Counts changes, and stores.
    changed: watch::Sender<u64>,
    closed: AtomicBool,
    /// Whether a thread tells of expiries: what it has not told yet must stay where it finds it.
    tells_expiries: AtomicBool,
    started: Instant,
    /// Ms from then until somebody last read; 0 for never.
    last_read: AtomicU64,
    capacity: usize,
}

/// Where the feed is.
#[derive(Clone, Debug)]
pub struct View {
    pub generation: u64,
    pub log: LogTag,
    /// Of the next event.
    pub end: u64,
    pub point: Arc<Point>,
}

impl Default for Feed {
    fn default() -> Self {
        Self::with_capacity(RING_BYTES)
    }
}

impl Feed {
    /// One that may take so many bytes.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        Self {
            ring: RwLock::new(None),
            generation: AtomicU64::new(0),
            turn: Mutex::default(),
            changed: watch::Sender::new(0),
            closed: AtomicBool::new(false),
            tells_expiries: AtomicBool::new(false),
            started: Instant::now(),
            last_read: AtomicU64::new(0),
            capacity,
        }
    }

    // Told by the replica.

    /// Held from before a commit until its changes are told, and while expiries are looked for and told.
    pub(crate) fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock()
    }

    /// Another store is read from now on, or one whose offsets mean something else: whoever follows begins anew.
    pub(crate) fn restart(&self, log: LogTag, next: &[NextOffset], now: WallTime) {
        let generation = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
        let point = Point { next: next.to_vec(), expired_until: now };
        *self.ring.write() = Some(Ring::new(generation, log, point));
        self.wake();
    }

    /// The store is not followed until the next [`Feed::restart`]: it is about to be replaced, or is not complete.
    pub(crate) fn suspend(&self) {
        if self.ring.write().take().is_some() {
            self.wake();
        }
    }

    /// Reading goes on in the store that was followed, or begins in it: at these next offsets.
    pub(crate) fn resume(&self, log: LogTag, next: &[NextOffset], now: WallTime) {
        let known = match &mut *self.ring.write() {
            Some(ring) => {
                ring.resume(log, next);
                true
            }
            None => false,
        };
        if known {
            self.wake();
        } else {
            self.restart(log, next, now);
        }
    }

    /// Whether changes are to be told; otherwise it is enough to tell how far the store is.
    pub(crate) fn wants_changes(&self) -> bool {
        let last = self.last_read.load(Ordering::Relaxed);
        let now = self.started.elapsed().as_millis() as u64;
        last > 0 && now.saturating_sub(last) < KEPT_FOR.as_millis() as u64 && self.ring.read().is_some()
    }

    /// The store has applied everything below these next offsets; `changes`: what that changed, `None` if nobody kept that.
    pub(crate) fn push(&self, changes: Option<Vec<Change>>, next: &[NextOffset]) {
        match &mut *self.ring.write() {
            Some(ring) => match changes {
                Some(changes) => ring.push(changes, next, self.capacity),
                None => ring.skip(next),
            },
            None => return,
        }
        self.wake();
    }

    /// Tells of the keys whose time to live has ended by now.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) fn tell_expiries(&self, store: &Store, now: WallTime) -> Result<(), StoreError> {
        self.tells_expiries.store(true, Ordering::Relaxed);
        loop {
            let turn = self.turn();
            let Some(View { generation, point, .. }) = self.look() else { return Ok(()) };
            if now <= point.expired_until {
                return Ok(());
            }
            let (expired, until) = store.expired(point.expired_until, now)?;
            let is_news = !expired.is_empty();
            if let Some(ring) = self.ring.write().as_mut().filter(|ring| ring.generation == generation) {
                ring.push_expired(expired, until, self.capacity);
            }
            drop(turn);
            // Nobody waits for a later time alone.
            if is_news {
                self.wake();
            }
        }
    }

    /// What a sweep may take for past: what has expired is told before it leaves the place where it is found by its time.
    pub(crate) fn sweep_until(&self, past: LogTime) -> LogTime {
        if !self.tells_expiries.load(Ordering::Relaxed) {
            return past;
        }
        // An error between the two clocks does no harm: they are the same numbers, that readers judge an expiry by.
        self.look().map_or(past, |view| past.min(view.point.expired_until.assuming_clocks_agree()))
    }

    /// The node stops: whoever follows is told so.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.wake();
    }

    fn wake(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    // Asked by those who follow.

    /// Told after every change.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Where it is; `None` while no store is followed.
    #[must_use]
    pub fn look(&self) -> Option<View> {
        self.ring.read().as_ref().map(Ring::view)
    }

    /// As [`Feed::look`], for somebody who will read what follows.
    #[must_use]
    pub fn begin(&self) -> Option<View> {
        self.note_read();
        self.look()
    }

    fn note_read(&self) {
        self.last_read.store((self.started.elapsed().as_millis() as u64).max(1), Ordering::Relaxed);
    }

    /// From which event on somebody lacks something who has been told everything up to a point.
    ///
    /// # Errors
    /// When the buffer does not hold that any more.
    pub fn locate(&self, generation: u64, told: &Point) -> Result<u64, Lost> {
        self.note_read();
        self.of(generation, |ring| ring.locate(told))
    }

    /// At most `max` events from a number on.
    ///
    /// # Errors
    /// When the buffer does not hold them any more.
    pub fn events(&self, generation: u64, from: u64, max: usize) -> Result<Events, Lost> {
        self.note_read();
        self.of(generation, |ring| ring.events(from, max))
    }

    /// Whether one of the events from a number on is so.
    ///
    /// # Errors
    /// When the buffer does not hold them any more.
    pub fn any(&self, generation: u64, from: u64, is_so: impl Fn(&Event) -> bool) -> Result<bool, Lost> {
        self.of(generation, |ring| ring.any(from, is_so))
    }

    /// Where the feed was when everything below these next offsets, and nothing else, was in the store.
    ///
    /// # Errors
    /// When the buffer does not hold what came after it.
    pub fn at_store(&self, generation: u64, next: &[NextOffset]) -> Result<AtStore, Lost> {
        self.of(generation, |ring| ring.at_store(next))
    }

    fn of<T>(&self, generation: u64, read: impl FnOnce(&Ring) -> Result<T, Lost>) -> Result<T, Lost> {
        let ring = self.ring.read();
        ring.as_ref().filter(|ring| ring.generation == generation).map_or(Err(Lost), read)
    }

    /// Bytes that the buffer takes, about.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.ring.read().as_ref().map_or(0, Ring::bytes)
    }
}
