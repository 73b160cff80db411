//! What time it is: everything that a node decides by time asks here, so that the simulation can say.

use std::ops::Add;
use std::time::Duration;

use crate::now_ms;

/// A machine's two clocks.
pub trait Clock: Send + Sync + 'static {
    /// Counts on, whatever the other is set to.
    fn now(&self) -> Moment;

    /// The time of day, ms since the epoch; somebody may set it.
    fn wall(&self) -> i64;
}

/// The time since a moment that never changes while the process runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub Duration);

impl Moment {
    /// The time from an earlier moment until this one.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, time: Duration) -> Self {
        Self(self.0.saturating_add(time))
    }
}

/// This machine's.
pub struct SystemClock(Duration);

impl Default for SystemClock {
    fn default() -> Self {
        Self(since_boot())
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Moment {
        Moment(since_boot().saturating_sub(self.0))
    }

    fn wall(&self) -> i64 {
        now_ms()
    }
}

/// Counts on while the machine is suspended, which [`std::time::Instant`] does not.
#[cfg(target_os = "linux")]
fn since_boot() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::try_from(time).unwrap_or_default()
}

#[cfg(not(target_os = "linux"))]
fn since_boot() -> Duration {
    static START: std::sync::LazyLock<std::time::Instant> = std::sync::LazyLock::new(std::time::Instant::now);
    START.elapsed()
}

/// Shows what it is told.
#[cfg(test)]
pub(crate) mod manual {
    use std::sync::{Arc, Mutex};

    use super::{Clock, Duration, Moment};

    #[derive(Clone)]
    pub struct ManualClock(Arc<Mutex<(Duration, i64)>>);

    impl ManualClock {
        /// Long after the start of everything.
        pub fn new() -> Self {
            Self(Arc::new(Mutex::new((Duration::from_hours(1_000), 1_700_000_000_000))))
        }

        pub fn pass(&self, time: Duration) {
            let mut now = self.0.lock().expect("no panic");
            now.0 += time;
            now.1 += time.as_millis() as i64;
        }

        pub fn set_wall(&self, wall: i64) {
            self.0.lock().expect("no panic").1 = wall;
        }
    }

    impl Clock for ManualClock {
        fn now(&self) -> Moment {
            Moment(self.0.lock().expect("no panic").0)
        }

        fn wall(&self) -> i64 {
            self.0.lock().expect("no panic").1
        }
    }
}
