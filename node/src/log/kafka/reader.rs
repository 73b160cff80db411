//! Reading the topic: a consumer that is assigned all partitions and joins no group.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};

use super::client::{LastProblem, client_config, set_default};
use super::events::{self, Event};
use super::login::{Supplied, Tokens};
use super::statistics::Collected;
use super::{KafkaSettings, without_values};
use crate::log::{Batch, LogReader, ReadError};
use bitacora_protocol::NextOffset;

/// How often the group's offsets are committed: for operators' eyes, so a second is soon enough.
const COMMIT_INTERVAL: Duration = Duration::from_secs(1);
/// A batch that is worth a wait is handed over when nothing more has come for so long, or after the longest wait.
const WAIT_FOR_MORE: Duration = Duration::from_millis(20);
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// How often librdkafka tells a reader's statistics.
const STATISTICS_INTERVAL_MS: &str = "5000";
/// Records of a batch before more of them are taken many at a time. A single write is not kept up by it.
const MANY_RECORDS: usize = 16;

pub(super) struct Reader {
    queue: events::ConsumerQueue,
    /// If clients log in by tokens.
    _tokens: Option<Supplied>,
    topic: String,
    statistics: Arc<Collected>,
    /// The last offsets committed to the group.
    committed: Option<Vec<NextOffset>>,
    last_commit: Instant,
    statistics_turn: StatisticsTurn,
}

impl LogReader for Reader {
    fn poll(&mut self, wait: Duration, batch: &mut Batch) -> Result<(), ReadError> {
        let mut wait = wait;
        let until = batch.is_worth_a_wait().then(|| Instant::now() + LONGEST_WAIT);
        while !batch.is_full() {
            let event = self.queue.poll(wait, batch);
            if matches!(event, Event::Nothing) {
                // There was something a moment ago.
                if wait.is_zero() && until.is_some_and(|until| Instant::now() < until) {
                    wait = WAIT_FOR_MORE;
                    continue;
                }
                break;
            }
            wait = Duration::ZERO;
            let there_is_more = matches!(event, Event::Records) && batch.records().len() >= MANY_RECORDS;
            self.note(event, batch)?;
            if there_is_more && batch.has_small_records() && !self.statistics_turn.has_come(Instant::now()) {
                self.queue.take_records(batch).map_or(Ok(()), |error| self.note(error, batch))?;
            }
        }
        Ok(())
    }

    fn may_read_ahead(&self) -> bool {
        true
    }

    fn applied(&mut self, next: &[NextOffset]) {
        if self.last_commit.elapsed() < COMMIT_INTERVAL || self.committed.as_deref() == Some(next) {
            return;
        }
        self.last_commit = Instant::now();
        self.commit(next, CommitMode::Async);
    }
}

impl Reader {
    fn note(&mut self, event: Event, batch: &mut Batch) -> Result<(), ReadError> {
        match event {
            Event::End { partition, next } if partition >= 0 => batch.reached(partition, next),
            Event::OutOfRange { partition } => return Err(ReadError::OutOfRange { partition }),
            Event::Unreadable(reason) => return Err(ReadError::Unreadable(reason)),
            Event::Fatal(reason) => return Err(ReadError::Unavailable(reason)),
            Event::Statistics(json) => {
                self.statistics_turn.taken(Instant::now());
                self.statistics.reader(&json);
            }
            Event::Nothing | Event::Records | Event::End { .. } | Event::Other => {}
        }
        Ok(())
    }

    /// Begins to read every partition at its next offset; see [`crate::log::Log::reader`].
    pub fn start(
        settings: &KafkaSettings,
        tokens: Option<&Tokens>,
        statistics: Arc<Collected>,
        from: &[NextOffset],
        epochs: &[Option<i32>],
    ) -> Result<Self, ReadError> {
        let unavailable = |error: KafkaError| ReadError::Unavailable(without_values(&error));
        let mut config = client_config(settings);
        config
            .set("group.id", &settings.group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            // The store decides where to read; an offset that is not there is an error, never a silent jump.
            .set("auto.offset.reset", "error")
            // The end of a partition is told by the broker, not guessed from the last record: see `Event::End`.
            .set("enable.partition.eof", "true");
        set_default(&mut config, "statistics.interval.ms", STATISTICS_INTERVAL_MS);
        set_default(&mut config, "fetch.queue.backoff.ms", "10");
        set_default(&mut config, "fetch.error.backoff.ms", "100");
        let problem = LastProblem::new(tokens.cloned());
        let consumer: BaseConsumer<LastProblem> =
            BaseConsumer::from_config_and_context(&config, problem).map_err(unavailable)?;
        let consumer = Arc::new(consumer);
        let supplied = tokens.map(|tokens| tokens.supply(Arc::clone(&consumer) as _));
        let mut assignment = TopicPartitionList::new();
        for (partition, next) in (0..).zip(from) {
            assignment
                .add_partition_offset(&settings.topic, partition, Offset::Offset(next.0))
                .map_err(unavailable)?;
        }
        for (partition, epoch) in
            (0..).zip(epochs).filter_map(|(partition, epoch)| Some((partition, (*epoch)?)))
        {
            events::set_leader_epoch(&mut assignment, &settings.topic, partition, epoch);
        }
        consumer.assign(&assignment).map_err(unavailable)?;
        let queue = events::ConsumerQueue::new(consumer)
            .ok_or_else(|| ReadError::Unavailable("librdkafka gave the consumer no queue".to_owned()))?;
        let topic = settings.topic.clone();
        let (committed, last_commit) = (None, Instant::now());
        let statistics_turn = StatisticsTurn::of(config.get("statistics.interval.ms"), Instant::now());
        Ok(Self { queue, _tokens: supplied, topic, statistics, committed, last_commit, statistics_turn })
    }

    fn commit(&mut self, next: &[NextOffset], mode: CommitMode) {
        let mut offsets = TopicPartitionList::new();
        for (partition, next) in (0..).zip(next) {
            // Offset 0 says no more than no offset at all.
            let _ = offsets.add_partition_offset(&self.topic, partition, Offset::Offset(next.0));
        }
        match self.queue.consumer().commit(&offsets, mode) {
            Ok(()) => self.committed = Some(next.to_vec()),
            Err(error) => tracing::debug!(%error, "the group's offsets could not be committed"),
        }
    }
}

/// When the next statistics may be among what librdkafka tells: they would be lost if records were then taken many at a time.
struct StatisticsTurn {
    /// `None` if there are none.
    interval: Option<Duration>,
    next: Instant,
}

impl StatisticsTurn {
    /// Of an interval in librdkafka's words, in ms; 0 is none.
    fn of(interval: Option<&str>, now: Instant) -> Self {
        let interval = interval.and_then(|text| text.trim().parse().ok()).filter(|ms| *ms > 0);
        let mut turn = Self { interval: interval.map(Duration::from_millis), next: now };
        turn.taken(now);
        turn
    }

    fn has_come(&self, now: Instant) -> bool {
        self.interval.is_some() && now >= self.next
    }

    /// The next ones come an interval after these did, which may have lain in the queue for a while.
    fn taken(&mut self, now: Instant) {
        if let Some(interval) = self.interval {
            self.next = now + interval * 9 / 10;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_taken_one_by_one_from_before_the_next_statistics_until_they_are_there() {
        let began = Instant::now();
        let at = |ms| began + Duration::from_millis(ms);
        let mut turn = StatisticsTurn::of(Some("5000"), began);
        assert!(!turn.has_come(at(4_400)));
        assert!(turn.has_come(at(4_999)) && turn.has_come(at(60_000)));
        turn.taken(at(60_000));
        assert!(!turn.has_come(at(64_400)));
        assert!(turn.has_come(at(65_000)));
    }

    #[test]
    fn statistics_that_were_turned_off_are_not_waited_for() {
        let began = Instant::now();
        for off in [Some("0"), None] {
            let mut turn = StatisticsTurn::of(off, began);
            turn.taken(began);
            assert!(!turn.has_come(began + Duration::from_secs(3600)), "{off:?}");
        }
    }
}
