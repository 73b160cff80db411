//! Whether a record that failed had ever been sent, from librdkafka's own counters.
//!
//! Its status `RD_KAFKA_MSG_STATUS_NOT_PERSISTED` promises too much: a leader that loses its leadership while it waits for the
//! followers answers `NOT_LEADER_OR_FOLLOWER` although it has appended the record (`DelayedProduce`, in Kafka's
//! `Partition.checkEnoughReplicasReachOffset`), librdkafka counts that as a refusal (`rd_kafka_err_action`), and if no retry
//! succeeds before `message.timeout.ms`, the record is "not persisted", though the next leader may have it. So a record was only
//! not taken for certain if nothing at all was sent to its partition between before it was handed over and after it failed.

use std::collections::{HashMap, VecDeque};

/// What was sent to each partition until a moment of librdkafka's clock, in µs.
struct Sample {
    at: i64,
    records: HashMap<i32, u64>,
}

impl Sample {
    fn of(&self, partition: i32) -> u64 {
        self.records.get(&partition).copied().unwrap_or(0)
    }
}

/// A record that failed; times are of librdkafka's clock, in µs.
pub(super) struct Failed<T> {
    pub partition: i32,
    pub handed_over: i64,
    pub gave_up: i64,
    /// The append that waits to be told.
    pub append: T,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    NeverSent,
    MaybeSent,
}

/// The counters of one producer, and the records whose fate waits for the next of them.
pub(super) struct Sent<T> {
    /// Oldest first, at least one.
    samples: VecDeque<Sample>,
    /// How long a record may have been under way, in µs.
    longest: i64,
    waiting: Vec<Failed<T>>,
}

impl<T> Sent<T> {
    /// For a producer that is made now and has sent nothing. `longest`: µs from a record's start to its failure.
    pub fn new(now: i64, longest: i64) -> Self {
        let nothing = Sample { at: now, records: HashMap::new() };
        Self { samples: VecDeque::from([nothing]), longest, waiting: Vec::new() }
    }

    /// The verdict, if it is known already; else a later [`Sent::sample`] has it.
    pub fn failed(&mut self, record: Failed<T>) -> Option<(T, Verdict)> {
        // librdkafka had not yet chosen a partition for it.
        if record.partition < 0 {
            return Some((record.append, Verdict::NeverSent));
        }
        match self.verdict(&record) {
            Some(verdict) => Some((record.append, verdict)),
            None => {
                self.waiting.push(record);
                None
            }
        }
    }

    /// Takes note of what was sent until `at`, and tells what is known since.
    pub fn sample(&mut self, at: i64, records: HashMap<i32, u64>) -> Vec<(T, Verdict)> {
        self.samples.push_back(Sample { at, records });
        let (mut known, mut waiting) = (Vec::new(), Vec::new());
        for record in std::mem::take(&mut self.waiting) {
            match self.verdict(&record) {
                Some(verdict) => known.push((record.append, verdict)),
                None => waiting.push(record),
            }
        }
        self.waiting = waiting;
        // One stays that is older than every record under way.
        while self.samples.get(1).is_some_and(|second| second.at < at.saturating_sub(self.longest)) {
            self.samples.pop_front();
        }
        known
    }

    fn verdict(&self, record: &Failed<T>) -> Option<Verdict> {
        let before = self.samples.iter().rev().find(|sample| sample.at <= record.handed_over);
        let (Some(before), Some(last)) = (before, self.samples.back()) else {
            return Some(Verdict::MaybeSent);
        };
        if before.of(record.partition) == last.of(record.partition) {
            (last.at >= record.gave_up).then_some(Verdict::NeverSent)
        } else {
            Some(Verdict::MaybeSent)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: i64 = 5_000;

    fn failed(partition: i32, handed_over: i64, gave_up: i64) -> Failed<&'static str> {
        Failed { partition, handed_over, gave_up, append: "who" }
    }

    fn sent(records: &[(i32, u64)]) -> HashMap<i32, u64> {
        records.iter().copied().collect()
    }

    #[test]
    fn a_record_was_never_sent_if_nothing_was_meanwhile() {
        let mut counters = Sent::new(0, LONGEST);
        assert!(counters.sample(1_000, sent(&[(0, 7), (1, 3)])).is_empty());
        assert_eq!(counters.failed(failed(0, 1_500, 6_500)), None);
        // Told before it failed: it may have been sent since.
        assert!(counters.sample(6_400, sent(&[(0, 7), (1, 4)])).is_empty());
        assert_eq!(counters.sample(7_400, sent(&[(0, 7), (1, 5)])), [("who", Verdict::NeverSent)]);
        assert!(counters.sample(8_400, sent(&[(0, 7), (1, 5)])).is_empty(), "told once");
    }

    #[test]
    fn a_record_may_have_been_sent_if_anything_was_meanwhile() {
        let mut counters = Sent::new(0, LONGEST);
        counters.sample(1_000, sent(&[(0, 7)]));
        // Sent between this sample and the record, as far as anybody knows afterwards: or it was the record itself.
        assert_eq!(counters.failed(failed(0, 1_500, 6_500)), None);
        assert_eq!(counters.sample(7_000, sent(&[(0, 8)])), [("who", Verdict::MaybeSent)]);
        // What is known already needs no other sample.
        assert_eq!(counters.failed(failed(0, 1_600, 6_600)), Some(("who", Verdict::MaybeSent)));
        // The count of a sample that is later than the record is not the one before it.
        counters.sample(8_000, sent(&[(0, 9)]));
        assert_eq!(counters.failed(failed(0, 7_999, 12_999)), Some(("who", Verdict::MaybeSent)));
    }

    #[test]
    fn no_partition_and_a_new_producer_mean_nothing_was_sent() {
        let mut counters = Sent::new(0, LONGEST);
        assert_eq!(counters.failed(failed(-1, 10, 20)), Some(("who", Verdict::NeverSent)));
        assert_eq!(counters.failed(failed(3, 10, 5_010)), None);
        assert_eq!(counters.sample(5_010, sent(&[])), [("who", Verdict::NeverSent)]);
        assert_eq!(
            counters.failed(failed(3, -10, 20)),
            Some(("who", Verdict::MaybeSent)),
            "before anything known"
        );
    }

    #[test]
    fn samples_older_than_any_record_are_forgotten_but_for_one() {
        let mut counters = Sent::new(0, LONGEST);
        for second in 1..=100 {
            counters.sample(second * 1_000, sent(&[(0, second as u64)]));
        }
        assert_eq!(counters.samples.len(), 7);
        counters.sample(101_000, sent(&[(0, 100)]));
        assert_eq!(counters.failed(failed(0, 96_500, 101_500)), Some(("who", Verdict::MaybeSent)));
        assert_eq!(counters.failed(failed(0, 100_500, 101_500)), None);
        assert_eq!(counters.sample(102_000, sent(&[(0, 100)])), [("who", Verdict::NeverSent)]);
    }
}
