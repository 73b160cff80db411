//! What is known of the log's ends: how far each partition of the log reaches, and how far this node has applied it. Pure
//! bookkeeping: whoever asks says what time it is.

use std::collections::VecDeque;
use std::time::Duration;

use bitacora_protocol::http::PartitionStatus;

use crate::clock::{LogTime, Moment, WallTime};
use crate::log::PartitionRead;
use bitacora_protocol::{HighWatermark, NextOffset, Position, partition_of};

/// Who learnt the high watermarks longer ago than this does not know whether it is caught up.
const HIGH_WATERMARK_MAX_AGE: Duration = Duration::from_secs(1);
/// So many unreached high watermarks are remembered for each partition; of more, every second one is forgotten.
const MAX_REMEMBERED_HIGH_WATERMARKS: usize = 256;

/// How far each partition of the log reaches, and how far it has been applied.
#[derive(Default)]
pub struct LogEnds {
    partitions: Vec<Partition>,
    /// The last question that was answered; `None` while the high watermarks are not known.
    answered: Option<Question>,
    /// Counts the calls of [`LogEnds::restart`].
    restarts: u64,
    /// High watermarks as they were some time ago.
    earlier: EarlierHighWatermarks,
}

/// High watermarks of two earlier moments, by which young records are told.
#[derive(Default)]
struct EarlierHighWatermarks {
    /// How long a record is safe from compaction.
    compaction_lag: Duration,
    older: Option<(Moment, Vec<HighWatermark>)>,
    newer: Option<(Moment, Vec<HighWatermark>)>,
}

impl EarlierHighWatermarks {
    fn learn(&mut self, high_watermarks: &[HighWatermark], asked_at: Moment) {
        let is_due = |(newer, _): &(Moment, _)| asked_at.since(*newer) >= self.compaction_lag / 4;
        if !self.newer.as_ref().is_none_or(is_due) {
            return;
        }
        let mut learnt = high_watermarks.to_vec();
        if let Some((_, before)) = &self.newer {
            // A leader that was deposed, and has not heard of it, may name one of long ago.
            for (learnt, before) in learnt.iter_mut().zip(before) {
                *learnt = (*learnt).max(*before);
            }
        }
        self.older = self.newer.replace((asked_at, learnt));
    }

    fn young_from(&self, now: Moment) -> Vec<HighWatermark> {
        let is_young =
            |(asked_at, _): &&(Moment, Vec<HighWatermark>)| now.since(*asked_at) < self.compaction_lag / 2;
        let known = self.older.as_ref().filter(is_young).or_else(|| self.newer.as_ref().filter(is_young));
        known.map_or_else(Vec::new, |(_, high_watermarks)| high_watermarks.clone())
    }
}

/// A question to the log for its high watermarks. Each time is of before it was put, so that the answer is never thought
/// newer than it is.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    asked_at: Moment,
    /// By the time of day: while the machine is suspended, a [`Moment`] may not grow older.
    asked_at_wall: WallTime,
    /// What was past by the log's clock; `None` if nothing was read yet.
    log_time: Option<LogTime>,
    restarts: u64,
}

struct Partition {
    /// Where reading began, for the progress of a restore.
    read_from: NextOffset,
    next: NextOffset,
    high_watermark: Option<HighWatermark>,
    /// High watermarks that are not reached yet, in order.
    unreached: VecDeque<Unreached>,
    /// When the latest of those that are reached was asked for.
    complete: Option<Asked>,
}

struct Unreached {
    end: HighWatermark,
    /// When it was first the answer.
    first: Moment,
    last: Asked,
}

/// When a question was put.
#[derive(Clone, Copy, Debug)]
struct Asked {
    at: Moment,
    wall: WallTime,
}

impl Asked {
    /// How long ago that was, by the clock that says more.
    fn age(self, now: Moment, wall: WallTime) -> Duration {
        let by_wall = u64::try_from(wall.ms_since(self.wall)).unwrap_or(0);
        now.since(self.at).max(Duration::from_millis(by_wall))
    }
}

impl LogEnds {
    /// Another store is read into, or this one anew, from these next offsets on. Answers to earlier questions say nothing
    /// of it.
    pub fn restart(&mut self, next: &[NextOffset]) {
        self.partitions = next.iter().map(|next| Partition::new(*next)).collect();
        self.answered = None;
        self.restarts += 1;
        // Where the log was truncated, other records may have taken the offsets.
        (self.earlier.older, self.earlier.newer) = (None, None);
    }

    /// How long a record of the log is safe from compaction.
    pub fn set_compaction_lag(&mut self, lag: Duration) {
        self.earlier.compaction_lag = lag;
    }

    /// For each partition an offset from which on all records are younger than half of what they are safe from compaction for; empty if
    /// that is not known. They were not there when the log was asked, less than so long ago. No clock of a day is needed for it.
    pub fn young_from(&self, now: Moment) -> Vec<HighWatermark> {
        self.earlier.young_from(now)
    }

    /// The store has applied what was read.
    pub fn note_applied(&mut self, read: &[PartitionRead]) {
        for PartitionRead { partition, next, .. } in read {
            let known = usize::try_from(*partition).ok().and_then(|index| self.partitions.get_mut(index));
            if let Some(known) = known {
                known.note_applied(*next);
            }
        }
    }

    /// The question that is put to the log now; `log_time` is what is past by its clock.
    pub fn question(&self, now: Moment, wall: WallTime, log_time: Option<LogTime>) -> Question {
        Question { asked_at: now, asked_at_wall: wall, log_time, restarts: self.restarts }
    }

    /// The log's answer: a high watermark for each partition. Ignored if it is of before a restart, or of another number of
    /// partitions.
    pub fn learn_high_watermarks(&mut self, high_watermarks: &[HighWatermark], question: Question) {
        if question.restarts != self.restarts || high_watermarks.len() != self.partitions.len() {
            return;
        }
        self.answered = Some(question);
        self.earlier.learn(high_watermarks, question.asked_at);
        for (partition, learnt) in self.partitions.iter_mut().zip(high_watermarks) {
            partition.learn_high_watermark(*learnt, question.asked());
        }
    }

    /// What was learnt says nothing of the log any more.
    pub fn forget_high_watermarks(&mut self) {
        self.answered = None;
    }

    /// Whether everything up to the high watermarks has been applied, and they were asked for within the last second.
    pub fn is_caught_up(&self, now: Moment, wall: WallTime) -> bool {
        self.has_reached_high_watermarks()
            && self.answered.is_some_and(|question| question.is_fresh(now, wall))
    }

    /// What was past by the log's clock when it was asked for the high watermarks that have all been reached; `None`
    /// while they are not, or are not known.
    pub fn reached_log_time(&self) -> Option<LogTime> {
        self.answered.filter(|_| self.has_reached_high_watermarks())?.log_time
    }

    fn has_reached_high_watermarks(&self) -> bool {
        !self.partitions.is_empty() && self.partitions.iter().all(Partition::has_reached_high_watermark)
    }

    /// How many partitions there are.
    pub fn partition_count(&self) -> usize {
        self.partitions.len()
    }

    /// The next offset to apply of a partition; `None` if there is no such.
    pub fn next_offset(&self, partition: i32) -> Option<NextOffset> {
        usize::try_from(partition).ok().and_then(|index| self.partitions.get(index)).map(|known| known.next)
    }

    /// How long ago the high watermark of a partition was asked for that has been reached: everything that had been appended by
    /// then is applied. Of `None`, of the partition of which that is longest ago. `None` if no such is known.
    pub fn staleness(&self, partition: Option<i32>, now: Moment, wall: WallTime) -> Option<Duration> {
        let age = |known: &Partition| known.complete.map(|asked| asked.age(now, wall));
        match partition {
            Some(partition) => {
                usize::try_from(partition).ok().and_then(|index| self.partitions.get(index)).and_then(age)
            }
            None => self.partitions.iter().map(age).collect::<Option<Vec<_>>>()?.into_iter().max(),
        }
    }

    /// Per partition, the next offset to apply.
    pub fn next_offsets(&self) -> Vec<NextOffset> {
        self.partitions.iter().map(|partition| partition.next).collect()
    }

    /// How far the partition of a key is applied.
    pub fn applied_for(&self, key: &[u8]) -> Position {
        let partition = partition_of(key, self.partitions.len());
        let known = usize::try_from(partition).ok().and_then(|index| self.partitions.get(index));
        known.map_or(NextOffset(0), |known| known.next).applied(partition)
    }

    /// Of the offsets between where reading began and the high watermarks, the part that has been applied, 0 to 1; `None`
    /// until they are known.
    pub fn fraction_applied(&self) -> Option<f64> {
        if self.partitions.is_empty() {
            return None;
        }
        let (mut applied, mut all) = (0_u64, 0_u64);
        for partition in &self.partitions {
            let end = partition.high_watermark?;
            let of_partition = partition.read_from.lag(end);
            all += of_partition;
            applied += of_partition.saturating_sub(partition.next.lag(end));
        }
        Some(if all == 0 { 1.0 } else { applied as f64 / all as f64 })
    }

    pub fn partition_statuses(&self, now: Moment) -> Vec<PartitionStatus> {
        let age = self.answered.map(|question| now.since(question.asked_at).as_millis() as u64);
        let status = |(partition, known): (i32, &Partition)| PartitionStatus {
            partition,
            applied: known.next.applied(partition).offset,
            high_watermark: known.high_watermark.map(|end| end.0),
            lag: known.high_watermark.map(|end| known.next.lag(end)),
            lag_seconds: known.lag_seconds(now),
            high_watermark_age_ms: age,
            digest: None,
        };
        (0..).zip(&self.partitions).map(status).collect()
    }
}

impl Question {
    fn asked(&self) -> Asked {
        Asked { at: self.asked_at, wall: self.asked_at_wall }
    }

    fn is_fresh(&self, now: Moment, wall: WallTime) -> bool {
        now.since(self.asked_at) <= HIGH_WATERMARK_MAX_AGE
            && wall.ms_since(self.asked_at_wall) <= HIGH_WATERMARK_MAX_AGE.as_millis() as i64
    }
}

impl Partition {
    fn new(next: NextOffset) -> Self {
        Self { read_from: next, next, high_watermark: None, unreached: VecDeque::new(), complete: None }
    }

    fn learn_high_watermark(&mut self, end: HighWatermark, asked: Asked) {
        self.high_watermark = Some(end);
        if self.next.lag(end) == 0 {
            self.complete = Some(asked);
        }
        let newest = self.unreached.back().map_or(HighWatermark(self.next.0), |newest| newest.end);
        if end > newest {
            self.unreached.push_back(Unreached { end, first: asked.at, last: asked });
        } else if let Some(newest) = self.unreached.back_mut()
            && newest.end == end
        {
            newest.last = asked;
        }
        if self.unreached.len() > MAX_REMEMBERED_HIGH_WATERMARKS {
            let mut index = 0..;
            self.unreached.retain(|_| index.next().is_some_and(|index| index % 2 == 0));
        }
    }

    fn note_applied(&mut self, next: NextOffset) {
        self.next = next;
        while let Some(reached) = self.unreached.pop_front_if(|unreached| next.lag(unreached.end) == 0) {
            self.complete = Some(reached.last);
        }
    }

    fn has_reached_high_watermark(&self) -> bool {
        self.high_watermark.is_some_and(|end| self.next.lag(end) == 0)
    }

    fn lag_seconds(&self, now: Moment) -> Option<f64> {
        self.high_watermark?;
        Some(self.unreached.front().map_or(0.0, |unreached| now.since(unreached.first).as_secs_f64()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WALL: WallTime = WallTime::from_ms(1_700_000_000_000);

    fn at(seconds: u64) -> Moment {
        Moment(Duration::from_secs(seconds))
    }

    fn started_at(next: &[i64]) -> LogEnds {
        let mut ends = LogEnds::default();
        ends.restart(&next.iter().copied().map(NextOffset).collect::<Vec<_>>());
        ends
    }

    fn learn(ends: &mut LogEnds, high_watermarks: &[i64], asked_at: Moment) {
        let question = ends.question(asked_at, WALL, None);
        let high_watermarks: Vec<_> = high_watermarks.iter().copied().map(HighWatermark).collect();
        ends.learn_high_watermarks(&high_watermarks, question);
    }

    fn apply(ends: &mut LogEnds, partition: i32, next: i64) {
        ends.note_applied(&[PartitionRead::up_to(partition, NextOffset(next))]);
    }

    #[test]
    fn caught_up_needs_every_partition_and_fresh_answers() {
        let mut ends = LogEnds::default();
        assert!(!ends.is_caught_up(at(0), WALL), "nothing is known yet");
        ends.restart(&[NextOffset(0), NextOffset(5)]);
        assert!(!ends.is_caught_up(at(0), WALL), "no high watermark is known");
        learn(&mut ends, &[2, 5], at(10));
        assert!(!ends.is_caught_up(at(10), WALL), "one partition is behind");
        assert_eq!(ends.fraction_applied(), Some(0.0));
        apply(&mut ends, 0, 2);
        assert!(ends.is_caught_up(at(11), WALL), "to the last moment");
        assert_eq!(ends.fraction_applied(), Some(1.0));
        assert!(!ends.is_caught_up(at(12), WALL), "learnt too long ago");
        assert!(
            !ends.is_caught_up(at(11), WALL + Duration::from_millis(1_001)),
            "the machine was suspended since"
        );
        learn(&mut ends, &[2, 5], at(12));
        assert!(ends.is_caught_up(at(12), WALL));
        ends.forget_high_watermarks();
        assert!(!ends.is_caught_up(at(12), WALL), "forgotten");
    }

    #[test]
    fn an_answer_of_another_store_or_size_is_ignored() {
        let mut ends = started_at(&[2, 5]);
        let earlier = ends.question(at(1), WALL, None);
        learn(&mut ends, &[2], at(1));
        assert!(!ends.is_caught_up(at(1), WALL), "it is of fewer partitions");
        ends.restart(&[NextOffset(2), NextOffset(5)]);
        ends.learn_high_watermarks(&[HighWatermark(2), HighWatermark(5)], earlier);
        assert!(!ends.is_caught_up(at(1), WALL), "it was asked for before the restart");
        apply(&mut ends, 7, 9);
        apply(&mut ends, -1, 9);
        assert_eq!(ends.next_offsets(), [NextOffset(2), NextOffset(5)], "partitions that nobody knows");
    }

    #[test]
    fn the_log_time_that_was_reached_is_that_of_the_question() {
        let mut ends = started_at(&[0]);
        let log_time = Some(LogTime::from_ms(77));
        let question = ends.question(at(1), WALL, log_time);
        ends.learn_high_watermarks(&[HighWatermark(2)], question);
        assert_eq!(ends.reached_log_time(), None, "it is behind");
        apply(&mut ends, 0, 2);
        assert_eq!(ends.reached_log_time(), log_time);
        ends.restart(&[NextOffset(2)]);
        assert_eq!(ends.reached_log_time(), None, "another store");
    }

    #[test]
    fn lag_in_seconds_is_the_age_of_the_first_unreached_end() {
        let mut ends = started_at(&[0]);
        let lag = |ends: &LogEnds| ends.partition_statuses(at(3_000))[0].lag_seconds;
        assert_eq!(lag(&ends), None, "nothing is known yet");
        for (end, asked_at) in [(4, 0), (4, 1_000), (6, 2_000)] {
            learn(&mut ends, &[end], at(asked_at));
        }
        apply(&mut ends, 0, 3);
        assert_eq!(lag(&ends), Some(3_000.0));
        apply(&mut ends, 0, 5);
        assert_eq!(lag(&ends), Some(1_000.0));
        assert_eq!(ends.fraction_applied(), Some(5.0 / 6.0));
        apply(&mut ends, 0, 6);
        assert_eq!(lag(&ends), Some(0.0));
        let status = &ends.partition_statuses(at(3_000))[0];
        assert_eq!((status.applied, status.high_watermark, status.lag), (5, Some(6), Some(0)));
        assert_eq!(status.high_watermark_age_ms, Some(1_000_000));
    }

    #[test]
    fn what_was_not_there_half_a_lag_ago_is_young() {
        let lag = Duration::from_secs(400);
        let mut ends = started_at(&[0]);
        ends.set_compaction_lag(lag);
        let from = |ends: &LogEnds, now| ends.young_from(at(now)).first().map(|from| from.0);
        assert_eq!(from(&ends, 0), None, "nothing is known yet");
        learn(&mut ends, &[10], at(0));
        learn(&mut ends, &[20], at(99));
        assert_eq!(from(&ends, 99), Some(10));
        // Of a leader that was deposed.
        learn(&mut ends, &[5], at(100));
        assert_eq!(from(&ends, 199), Some(10), "the older of the two");
        assert_eq!(from(&ends, 200), Some(10), "the newer, which is no lower than the one before");
        assert_eq!(from(&ends, 299), Some(10));
        assert_eq!(from(&ends, 300), None, "the log has not answered for long");
        learn(&mut ends, &[40], at(300));
        assert_eq!(from(&ends, 300), Some(40));
        ends.restart(&[NextOffset(0)]);
        assert_eq!(from(&ends, 300), None, "other records may have taken the offsets");
        ends.set_compaction_lag(Duration::ZERO);
        learn(&mut ends, &[40], at(300));
        assert_eq!(from(&ends, 300), None, "compaction may do as it likes");
    }

    #[test]
    fn a_bounded_number_of_unreached_ends_is_remembered() {
        let mut ends = started_at(&[0]);
        for n in 0..10_000_u32 {
            let asked_at = Moment(Duration::from_millis(100) * n);
            learn(&mut ends, &[i64::from(n) + 1], asked_at);
        }
        assert!(ends.partitions[0].unreached.len() <= MAX_REMEMBERED_HIGH_WATERMARKS);
        let lag = |ends: &LogEnds| ends.partition_statuses(at(1_000))[0].lag_seconds.expect("known");
        assert!((lag(&ends) - 1_000.0).abs() < 0.1, "the first is remembered: {}", lag(&ends));
        apply(&mut ends, 0, 10_000);
        assert!(lag(&ends) < f64::EPSILON);
    }

    #[test]
    fn staleness_is_the_age_of_the_last_question_that_is_reached() {
        let mut ends = started_at(&[0, 0]);
        let staleness =
            |ends: &LogEnds, partition| ends.staleness(partition, at(10), WALL).map(|age| age.as_secs());
        assert_eq!(staleness(&ends, Some(0)), None, "nothing is known yet");
        learn(&mut ends, &[0, 2], at(1));
        assert_eq!((staleness(&ends, Some(0)), staleness(&ends, Some(1))), (Some(9), None));
        assert_eq!(staleness(&ends, None), None, "one partition is not known");
        learn(&mut ends, &[0, 2], at(3));
        learn(&mut ends, &[4, 4], at(5));
        apply(&mut ends, 1, 2);
        assert_eq!(staleness(&ends, Some(1)), Some(7), "the later of two questions with this answer");
        assert_eq!(staleness(&ends, None), Some(7), "the older partition");
        apply(&mut ends, 0, 4);
        apply(&mut ends, 1, 4);
        assert_eq!(staleness(&ends, None), Some(5));
        assert_eq!(staleness(&ends, Some(2)), None);
        let suspended = ends.staleness(None, at(10), WALL + Duration::from_secs(60));
        assert_eq!(suspended, Some(Duration::from_secs(60)), "by the clock that says more");
        ends.restart(&[NextOffset(4), NextOffset(4)]);
        assert_eq!(staleness(&ends, None), None, "another store");
    }
}
