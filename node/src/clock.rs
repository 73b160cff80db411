//! What time it is. Everything that a node decides by time asks here, so that the simulation can say.
//!
//! There are three times, and none is compared with another by accident:
//!
//! - [`WallTime`] is read off this machine's clock, which somebody may set. Readers expect a key's expiry by it.
//! - [`LogTime`] is the write timestamp of records: the brokers' clock on a topic with `LogAppendTime`. Every node sees the same one, so
//!   what all nodes must decide alike is decided by it.
//! - [`Moment`] counts on whatever the clocks are set to, and means nothing outside this process. Intervals and deadlines are taken from it.
//!
//! Only [`past_by_both_clocks`] and the two functions named `assuming_clocks_agree` lead from one to another.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

/// A machine's two clocks.
pub trait Clock: Send + Sync + 'static {
    /// Counts on, whatever the other is set to.
    fn now(&self) -> Moment;

    /// The time of day; somebody may set it.
    fn wall(&self) -> WallTime;
}

/// Ms since the epoch by this machine's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WallTime(i64);

/// Ms since the epoch by the log's clock: the write timestamp of a record, or what was derived from some.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogTime(i64);

macro_rules! time_since_the_epoch {
    ($time:ident) => {
        impl $time {
            pub const MIN: Self = Self(i64::MIN);
            pub const MAX: Self = Self(i64::MAX);

            #[must_use]
            pub const fn from_ms(since_the_epoch: i64) -> Self {
                Self(since_the_epoch)
            }

            /// Since the epoch.
            #[must_use]
            pub const fn ms(self) -> i64 {
                self.0
            }

            /// The time from another until this one in ms, negative if the other is later.
            #[must_use]
            pub const fn ms_since(self, other: Self) -> i64 {
                self.0.saturating_sub(other.0)
            }
        }

        impl Add<Duration> for $time {
            type Output = Self;

            fn add(self, time: Duration) -> Self {
                Self(self.0.saturating_add(whole_ms(time)))
            }
        }

        impl Sub<Duration> for $time {
            type Output = Self;

            fn sub(self, time: Duration) -> Self {
                Self(self.0.saturating_sub(whole_ms(time)))
            }
        }

        /// Ms since the epoch.
        impl fmt::Display for $time {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(out)
            }
        }
    };
}

time_since_the_epoch!(WallTime);
time_since_the_epoch!(LogTime);

fn whole_ms(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

/// The earlier of the two: both clocks have come as far.
///
/// What a node removes for ever (expired values, tombstones, records that are trimmed) must be past by both, for either clock may be set
/// wrong. One that is behind only delays the removal; one that is ahead must not remove what is still alive. The result is compared with
/// write timestamps, so it is a [`LogTime`].
#[must_use]
pub fn past_by_both_clocks(wall: WallTime, log: LogTime) -> LogTime {
    log.min(wall.assuming_clocks_agree())
}

impl WallTime {
    /// The same time of day on the log's clock: as right as this machine's clock and the brokers' agree. The caller says why an
    /// error does no harm.
    #[must_use]
    pub const fn assuming_clocks_agree(self) -> LogTime {
        LogTime(self.0)
    }
}

impl LogTime {
    /// The same time of day on this machine's clock: as right as that and the brokers' agree. The caller says why an error does
    /// no harm.
    #[must_use]
    pub const fn assuming_clocks_agree(self) -> WallTime {
        WallTime(self.0)
    }
}

/// The time since a moment that stays the same while the process runs.
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

    fn wall(&self) -> WallTime {
        WallTime(now_ms())
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

/// This machine's clock, in ms since the epoch.
#[must_use]
pub fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
pub(crate) mod manual {
    use std::sync::{Arc, Mutex};

    use super::{Clock, Duration, Moment, WallTime};

    #[derive(Clone)]
    pub struct ManualClock(Arc<Mutex<(Duration, WallTime)>>);

    impl ManualClock {
        /// Long after the start of everything.
        pub fn new() -> Self {
            Self(Arc::new(Mutex::new((Duration::from_hours(1_000), WallTime(1_700_000_000_000)))))
        }

        pub fn pass(&self, time: Duration) {
            let mut now = self.0.lock().expect("no panic");
            now.0 += time;
            now.1 = now.1 + time;
        }

        pub fn set_wall(&self, wall: WallTime) {
            self.0.lock().expect("no panic").1 = wall;
        }
    }

    impl Clock for ManualClock {
        fn now(&self) -> Moment {
            Moment(self.0.lock().expect("no panic").0)
        }

        fn wall(&self) -> WallTime {
            self.0.lock().expect("no panic").1
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn past_by_both_clocks_is_the_earlier() {
        let (wall, log) = (WallTime(5), LogTime(7));
        assert_eq!(past_by_both_clocks(wall, log), LogTime(5));
        assert_eq!(past_by_both_clocks(wall + Duration::from_millis(9), log), log);
    }

    #[test]
    fn times_saturate_instead_of_overflowing() {
        assert_eq!(LogTime::MAX + Duration::MAX, LogTime::MAX);
        assert_eq!(WallTime::MIN - Duration::from_millis(1), WallTime::MIN);
        assert_eq!((LogTime::MAX.ms_since(LogTime::MIN), LogTime(3).ms_since(LogTime(5))), (i64::MAX, -2));
    }
}
