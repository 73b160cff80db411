//! Whether a store may be trusted after it was not kept up: delete markers leave the log after a retention
//! (`DELETE_RETENTION`), so who did not read it for longer may hold keys that were deleted meanwhile.

use std::time::Duration;

use crate::clock::{LogTime, Moment, WallTime};

/// Clocks are set by a little now and then; by more, and it is not known how long the store was left.
const CLOCK_SLACK_MS: i64 = 60 * 60 * 1000;

/// Why a store may not be trusted that was last caught up at `then`, when it is `now`; `None` if it may.
#[must_use]
pub fn reason_too_old(then: Option<WallTime>, now: WallTime, retention: Option<Duration>) -> Option<String> {
    let retention = retention?;
    let Some(then) = then else { return Some("it does not say when it was last caught up".to_owned()) };
    let age = now.ms_since(then);
    if age < -CLOCK_SLACK_MS {
        return Some(format!(
            "it was last caught up {} from now by this machine's clock, so nobody knows how long ago",
            shown(age.unsigned_abs())
        ));
    }
    (age.max(0).unsigned_abs() > retention.as_millis() as u64).then(|| {
        format!(
            "it was last caught up {} ago, and deletes may be missed after {} (DELETE_RETENTION)",
            shown(age.unsigned_abs()),
            shown(retention.as_millis() as u64)
        )
    })
}

/// The log's clock, as far as its records tell: that of the brokers, where they stamp them.
#[derive(Default)]
pub struct LogClock {
    /// The newest time that was read, and when.
    newest: Option<(LogTime, Moment)>,
    /// The same of records that were read as they were written.
    live: Option<(LogTime, Moment)>,
}

impl LogClock {
    /// A record was appended at `time`; `live`: just now.
    pub fn told(&mut self, time: LogTime, live: bool, now: Moment) {
        let told = Some((time, now));
        if self.at_least(now).is_none_or(|known| known < time) {
            self.newest = told;
        }
        if live {
            self.live = told;
        }
    }

    /// It has come as far.
    #[must_use]
    pub fn at_least(&self, now: Moment) -> Option<LogTime> {
        self.newest.map(|told| later(told, now))
    }

    /// What it shows, but for the moment that a record is under way.
    #[must_use]
    pub fn now(&self, now: Moment) -> Option<LogTime> {
        self.live.map(|told| later(told, now))
    }
}

fn later((time, told): (LogTime, Moment), now: Moment) -> LogTime {
    time + now.since(told)
}

fn shown(ms: u64) -> String {
    match ms {
        0..10_000 => format!("{ms} ms"),
        10_000..600_000 => format!("{} s", ms / 1000),
        600_000..36_000_000 => format!("{} min", ms / 60_000),
        _ => format!("{} h", ms / 3_600_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_hours(24);

    fn wall(ms: i64) -> WallTime {
        WallTime::from_ms(ms)
    }

    #[test]
    fn a_store_is_trusted_while_it_is_young_and_clocks_make_sense() {
        let retention = Some(Duration::from_secs(7 * 86_400));
        let now = wall(1_700_000_000_000);
        let ms = Duration::from_millis;
        assert_eq!(reason_too_old(Some(now), now, retention), None);
        assert_eq!(reason_too_old(Some(now - 7 * DAY), now, retention), None, "to the last moment");
        assert!(
            reason_too_old(Some(now - 7 * DAY - ms(1)), now, retention).expect("too old").contains("168 h")
        );
        assert_eq!(
            reason_too_old(Some(now + ms(60_000)), now, retention),
            None,
            "a clock that was set by a minute"
        );
        let back = reason_too_old(Some(now), now - 30 * DAY, retention)
            .expect("a clock that was set back by a month");
        assert!(back.contains("720 h from now"), "{back}");
        assert!(reason_too_old(Some(now), wall(0), retention).is_some(), "a machine without a clock");
        assert!(reason_too_old(None, now, retention).is_some());
        assert_eq!(reason_too_old(Some(wall(0)), now, None), None, "a log that keeps its markers");
        assert_eq!(reason_too_old(Some(WallTime::MIN), WallTime::MAX, None), None);
        assert!(reason_too_old(Some(WallTime::MIN), WallTime::MAX, retention).is_some(), "no overflow");
        assert!(reason_too_old(Some(WallTime::MAX), WallTime::MIN, retention).is_some(), "no overflow");
    }

    #[test]
    fn the_logs_clock_is_never_ahead_of_what_was_read() {
        let at = |seconds| Moment(Duration::from_secs(seconds));
        let log = LogTime::from_ms;
        let mut clock = LogClock::default();
        assert_eq!((clock.at_least(at(1)), clock.now(at(1))), (None, None));
        // An old log, read from its start.
        clock.told(log(5_000_000), false, at(10));
        clock.told(log(1_000_000), false, at(11));
        assert_eq!(clock.at_least(at(11)), Some(log(5_001_000)));
        assert_eq!(clock.now(at(11)), None, "when that was is not known");
        clock.told(log(8_000_000), true, at(20));
        assert_eq!((clock.at_least(at(21)), clock.now(at(21))), (Some(log(8_001_000)), Some(log(8_001_000))));
        // Brokers' clocks differ by a little; the latest word counts.
        clock.told(log(7_999_000), true, at(21));
        assert_eq!((clock.at_least(at(21)), clock.now(at(21))), (Some(log(8_001_000)), Some(log(7_999_000))));
    }
}
