//! Whether the process stood still: it was stopped, or its machine suspended.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::{Moment, WallTime};

/// No pause is too long: delete markers stay in the log for ever.
const FOR_EVER: u64 = u64::MAX;

/// Notices that the process stood still for longer than it may. Asked by every read, so it takes no lock for them.
pub struct FreezeDetector {
    started: Moment,
    /// When the process was last known to run, in ms since `started`.
    last_running: AtomicU64,
    /// The same by the time of day.
    last_running_wall: Mutex<Option<WallTime>>,
    longest_pause_ms: AtomicU64,
}

impl FreezeDetector {
    pub fn new(started: Moment) -> Self {
        Self {
            started,
            last_running: AtomicU64::new(0),
            last_running_wall: Mutex::new(None),
            longest_pause_ms: AtomicU64::new(FOR_EVER),
        }
    }

    /// `None`: the process may stand still for any time.
    pub fn set_longest_pause(&self, pause: Option<Duration>) {
        let pause = pause.map_or(FOR_EVER, |pause| pause.as_millis() as u64);
        self.longest_pause_ms.store(pause, Ordering::Relaxed);
    }

    /// The process runs.
    pub fn note_running(&self, now: Moment, wall: WallTime) {
        *self.last_running_wall.lock() = Some(wall);
        self.last_running.store(self.ms_since_start(now), Ordering::Release);
    }

    /// Whether it was last known to run longer ago than it may have paused.
    pub fn stands_still(&self, now: Moment) -> bool {
        let longest = self.longest_pause_ms.load(Ordering::Relaxed);
        // Read first: who notes in between that it runs makes the pause shorter, never longer.
        longest != FOR_EVER && {
            let now = self.ms_since_start(now);
            now.saturating_sub(self.last_running.load(Ordering::Acquire)) > longest
        }
    }

    /// As [`FreezeDetector::stands_still`], also by the time of day, which goes on while a suspended machine's other clock
    /// may not.
    pub fn has_stood_still(&self, now: Moment, wall: WallTime) -> bool {
        let longest = self.longest_pause_ms.load(Ordering::Relaxed);
        let jumped = self
            .last_running_wall
            .lock()
            .is_some_and(|last| u64::try_from(wall.ms_since(last)).is_ok_and(|pause| pause > longest));
        jumped || self.stands_still(now)
    }

    fn ms_since_start(&self, now: Moment) -> u64 {
        now.since(self.started).as_millis() as u64
    }
}
