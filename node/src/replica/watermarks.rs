//! The half of a replica that learns how far the log is.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::fit::{VERIFY, rewritten};
use super::{Parts, Shared};
use crate::clock::Moment;
use crate::position::HighWatermark;
use crate::progress::Phase;

/// Between two questions for the high watermarks; well within the second after which they are stale.
const ASK: Duration = Duration::from_millis(250);
/// Between two looks whether the log is still the same.
const STILL: Duration = Duration::from_secs(2);

pub struct Watermarks {
    parts: Parts,
    shared: Arc<Shared>,
    /// When it last looked whether the log is the same.
    looked: Moment,
}

impl Watermarks {
    pub(super) fn new(parts: Parts, shared: Arc<Shared>) -> Self {
        let looked = parts.progress.clock().now();
        Self { parts, shared, looked }
    }

    /// Asks the log once, if it is being read. Blocks for as long as the log takes. Returns for how long to pause.
    pub fn step(&mut self) -> Duration {
        let Parts { log, store, progress, .. } = &self.parts;
        let shared = &self.shared;
        progress.tick();
        progress.release(false);
        if !matches!(progress.phase(), Phase::Reading | Phase::Blocked(_)) {
            return ASK / 10;
        }
        let (asked, next) = (progress.asks(), progress.next());
        match log.high_watermarks() {
            Ok(learnt) => {
                progress.learnt(&learnt, asked);
                if next.iter().zip(&learnt).any(|(next, HighWatermark(end))| next.0 > *end) {
                    shared.changed.store(true, Ordering::Release);
                }
                let before = shared.silent_since().clone();
                match before.map(|before| rewritten(&**log, &before, VERIFY, &shared.stop)) {
                    // Who opens the log anew looks again, and says so.
                    Some(Ok(Some(_))) => shared.changed.store(true, Ordering::Release),
                    Some(Ok(None)) => *shared.silent_since() = None,
                    Some(Err(error)) => tracing::debug!(%error, "not known whether the log is what it was"),
                    None => {}
                }
            }
            Err(error) => {
                tracing::debug!(%error, "the high watermarks are not known");
                let mut silent_since = shared.silent_since();
                if silent_since.is_none() {
                    *silent_since = store.checkpoint().ok();
                }
            }
        }
        let now = progress.clock().now();
        if now.since(self.looked) >= STILL {
            let identity = shared.identity().clone();
            if identity.is_some_and(|identity| !log.is_still(&identity, next.len())) {
                shared.changed.store(true, Ordering::Release);
            }
            self.looked = now;
        }
        ASK
    }
}
