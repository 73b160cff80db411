//! Records that are to be appended before the topic is known, as the first callers of a node bring them that has just started: they wait
//! for the answer to its first question.

use crate::log::{AppendError, NewRecord, Unsettled};

/// So many wait at most; the requests that they are of count against the memory for requests.
const MOST: usize = 1024;

/// Those that wait, in their order.
#[derive(Default)]
pub(super) struct Early {
    waiting: Vec<(NewRecord, Unsettled)>,
    /// Why the last question had no good answer; then nobody waits for the next one.
    refused: Option<String>,
}

impl Early {
    /// Takes a record in, or refuses it.
    pub fn wait(&mut self, record: &NewRecord, append: Unsettled) {
        match &self.refused {
            None if self.waiting.len() < MOST => self.waiting.push((record.clone(), append)),
            None => append.settle(Err(not_known("too many wait for it"))),
            Some(reason) => append.settle(Err(not_known(reason))),
        }
    }

    /// The question had no good answer.
    pub fn refuse(&mut self, reason: &str) {
        for (_, append) in self.waiting.drain(..) {
            append.settle(Err(not_known(reason)));
        }
        reason.clone_into(self.refused.get_or_insert_default());
    }

    /// It had; those that waited are for the producer.
    pub fn take(&mut self) -> Vec<(NewRecord, Unsettled)> {
        self.refused = None;
        std::mem::take(&mut self.waiting)
    }
}

fn not_known(reason: &str) -> AppendError {
    AppendError::NotTaken(format!("the topic is not known yet: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{AppendOutcome, Appending};

    fn record(key: &str) -> NewRecord {
        NewRecord { key: key.as_bytes().to_vec(), ..NewRecord::default() }
    }

    /// What became of it by now.
    fn outcome(appending: Appending) -> Option<AppendOutcome> {
        futures_util::FutureExt::now_or_never(appending)
    }

    #[test]
    fn they_wait_in_their_order_for_one_answer() {
        let mut early = Early::default();
        let (first, mut first_appended) = Appending::new(None);
        let (second, _second_appended) = Appending::new(None);
        early.wait(&record("first"), first);
        early.wait(&record("second"), second);
        assert!(futures_util::FutureExt::now_or_never(&mut first_appended).is_none());
        let taken: Vec<_> = early.take().into_iter().map(|(record, _)| record).collect();
        assert_eq!(taken, [record("first"), record("second")]);
    }

    #[test]
    fn a_bad_answer_refuses_them_and_all_that_come_before_the_next_one() {
        let mut early = Early::default();
        let (waits, appended) = Appending::new(None);
        early.wait(&record("waits"), waits);
        early.refuse("nobody answers");
        let (later, later_appended) = Appending::new(None);
        early.wait(&record("later"), later);
        for appended in [appended, later_appended] {
            let error = outcome(appended).expect("it is settled").expect_err("it was not taken");
            assert!(
                matches!(&error, AppendError::NotTaken(why) if why.contains("nobody answers")),
                "{error}"
            );
        }
        assert!(early.take().is_empty());
        let (again, appended) = Appending::new(None);
        early.wait(&record("again"), again);
        assert!(outcome(appended).is_none());
    }

    #[test]
    fn not_more_wait_than_there_is_room_for() {
        let mut early = Early::default();
        let appended: Vec<_> = (0..=MOST)
            .map(|_| {
                let (append, appended) = Appending::new(None);
                early.wait(&record("k"), append);
                appended
            })
            .collect();
        let refused = appended.into_iter().filter_map(outcome).count();
        assert_eq!((refused, early.take().len()), (1, MOST));
    }
}
