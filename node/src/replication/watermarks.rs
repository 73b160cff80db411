//! The half of a replica that learns how far the log is.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::compatibility::{TRUNCATION_CHECK_TIMEOUT, truncated_and_regrown};
use super::state::Phase;
use super::{Parts, Shared};
use crate::clock::Moment;
use bitacora_protocol::{HighWatermark, NextOffset};

/// Between two questions for the high watermarks: twice as long is within the second after which they are stale, so that one may go
/// unanswered. A node that has nothing to do spends a quarter of its processor time on them.
const HIGH_WATERMARK_INTERVAL: Duration = Duration::from_millis(400);
/// Between two looks whether the log is read, so that it can be asked.
const LOOK_INTERVAL: Duration = Duration::from_millis(25);
/// So many partitions are asked one by one when not all answer together; each question takes a second or so at most.
const SINGLE_QUESTIONS: usize = 2;
/// Between two looks whether the log is still the same.
const IDENTITY_CHECK_INTERVAL: Duration = Duration::from_secs(2);

pub struct Watermarks {
    parts: Parts,
    shared: Arc<Shared>,
    /// When it last looked whether the log is the same.
    identity_checked: Moment,
    /// The partition that answered last when not all did.
    answering: usize,
}

impl Watermarks {
    pub(super) fn new(parts: Parts, shared: Arc<Shared>) -> Self {
        let identity_checked = parts.progress.clock().now();
        Self { parts, shared, identity_checked, answering: 0 }
    }

    /// Asks the log once, if it is being read. Blocks for as long as the log takes. Returns for how long to pause.
    pub fn step(&mut self) -> Duration {
        let progress = Arc::clone(&self.parts.progress);
        progress.detect_freeze();
        progress.accept_earlier_store_in_time();
        let reads = matches!(progress.phase(), Phase::Reading | Phase::Blocked(_));
        if !reads || self.shared.must_reopen.load(Ordering::Acquire) {
            return LOOK_INTERVAL;
        }
        let (question, next) = (progress.question_for_high_watermarks(), progress.next_offsets());
        match self.parts.log.high_watermarks() {
            Ok(ends) => {
                if self.must_reopen(&next, &ends) {
                    self.shared.must_reopen.store(true, Ordering::Release);
                    // Until it is opened anew, nobody knows how far this node is.
                    progress.forget_high_watermarks();
                } else if self.shared.checkpoint_before_outage.lock().is_none() {
                    progress.learn_high_watermarks(&ends, question);
                }
            }
            Err(error) => {
                tracing::debug!(%error, "the high watermarks are not known");
                self.ask_one_by_one(next.len());
                let mut checkpoint_before_outage = self.shared.checkpoint_before_outage.lock();
                if checkpoint_before_outage.is_none() {
                    *checkpoint_before_outage = self.shared.checkpoint(&self.parts.store).ok();
                }
            }
        }
        HIGH_WATERMARK_INTERVAL
    }

    /// Finds out whether any leader answers where not all do: reads that must ask the log are refused only where none does. One that
    /// has answered is asked first again, since those of other partitions may be away for long.
    fn ask_one_by_one(&mut self, partitions: usize) {
        for _ in 0..SINGLE_QUESTIONS.min(partitions) {
            self.answering %= partitions;
            if self.parts.log.high_watermark(self.answering as i32).is_ok() {
                self.parts.progress.note_log_answered();
                return;
            }
            self.answering += 1;
        }
    }

    /// Whether the log is another one than was opened, has lost records, or has partitions that nobody reads yet.
    fn must_reopen(&mut self, next: &[NextOffset], ends: &[HighWatermark]) -> bool {
        let log = &*self.parts.log;
        if next.iter().zip(ends).any(|(next, end)| next.0 > end.0) {
            return true;
        }
        let before = self.shared.checkpoint_before_outage.lock().clone();
        match before.map(|before| {
            truncated_and_regrown(log, &before, TRUNCATION_CHECK_TIMEOUT, &self.shared.stop, &|| ())
        }) {
            // Who opens the log anew looks again, and says so.
            Some(Ok(Some(_))) => return true,
            Some(Ok(None)) => *self.shared.checkpoint_before_outage.lock() = None,
            Some(Err(error)) => tracing::debug!(%error, "not known whether the log is what it was"),
            None => {}
        }
        let now = self.parts.progress.clock().now();
        if now.since(self.identity_checked) < IDENTITY_CHECK_INTERVAL {
            return false;
        }
        self.identity_checked = now;
        let identity = self.shared.identity.lock().clone();
        identity.is_some_and(|identity| !log.is_unchanged(&identity, next.len()))
    }
}
