//! The log on Kafka: one compacted topic, through librdkafka.

mod events;
mod sent;
mod statistics;
mod topic;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use rdkafka::statistics::Statistics;
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::oneshot;

use self::events::Event;
use self::sent::{Failed, Sent, Verdict};
use self::statistics::Collected;
use super::{
    AppendError, Appended, Batch, Condition, ConditionalRecord, Log, LogIdentity, LogInfo, LogReader,
    LogStatistics, OpenError, ReadError,
};
use crate::clock::LogTime;
use crate::telemetry::TraceParent;
use bitacora_protocol::{HighWatermark, NextOffset, Position};

/// How long a question to a broker may take.
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a high watermark may take; it is asked for several times a second.
const WATERMARK_TIMEOUT: Duration = Duration::from_secs(1);
/// How often the group's offsets are committed: for operators' eyes, so a second is soon enough.
const COMMIT_INTERVAL: Duration = Duration::from_secs(1);
/// How often librdkafka tells a reader's statistics.
const READER_STATISTICS_INTERVAL_MS: &str = "5000";
/// How often it tells the producer's: a write that failed may wait so long for its answer, see `sent`.
const PRODUCER_STATISTICS_INTERVAL_MS: &str = "1000";

/// Properties that the node's correctness rests on; they can't be passed through.
pub const RESERVED_PROPERTIES: [&str; 11] = [
    "acks",
    "auto.offset.reset",
    "bootstrap.servers",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.idempotence",
    "enable.partition.eof",
    "group.id",
    "message.timeout.ms",
    "partitioner",
    "request.required.acks",
];

/// What the log needs to know about Kafka and its topic.
#[derive(Clone, Debug)]
pub struct KafkaSettings {
    /// `host:port,…`
    pub brokers: String,
    pub topic: String,
    /// For a topic that the node creates.
    pub partitions: i32,
    /// For a topic that the node creates; -1 for the broker's default.
    pub replication_factor: i32,
    pub allow_uncompacted: bool,
    /// The consumer group that this node commits its offsets to.
    pub group: String,
    /// How long an append may wait for its acknowledgement.
    pub write_timeout: Duration,
    /// How long a node may be away and still see every delete: tombstones of others must stay as long.
    pub delete_retention: Duration,
    /// For a topic that the node creates: how long records stay before a newer one may replace them in compaction.
    pub min_compaction_lag: Duration,
    /// The largest record that the node sends, in bytes.
    pub max_record_bytes: usize,
    /// Passed to librdkafka as they are.
    pub properties: Vec<(String, String)>,
}

pub struct KafkaLog {
    settings: KafkaSettings,
    /// Made anew when it has failed for good, and when the log was replaced: another cluster gives its id and sequence
    /// numbers to others, and would acknowledge its records as duplicates of theirs.
    producer: RwLock<ThreadedProducer<Acknowledgements>>,
    /// Asks for metadata and high watermarks; reads nothing.
    queries: BaseConsumer<Quiet>,
    statistics: Arc<Collected>,
    /// 0 until known; another topic of the same name may have another number.
    partitions: AtomicUsize,
    opened: Mutex<Option<LogIdentity>>,
}

impl KafkaLog {
    /// Prepares to talk to Kafka; does not connect yet.
    ///
    /// # Errors
    /// When librdkafka refuses a property, in its words.
    pub fn new(settings: KafkaSettings) -> Result<Self, KafkaError> {
        let (quiet, statistics) = (Quiet::default(), Arc::<Collected>::default());
        let producer = RwLock::new(producer(&settings, quiet.clone(), &statistics)?);
        let mut queries = client_config(&settings);
        // Nobody polls this client, so that they would pile up.
        queries.set("statistics.interval.ms", "0");
        let queries = BaseConsumer::from_config_and_context(&queries, quiet)?;
        let (partitions, opened) = Default::default();
        Ok(Self { settings, producer, queries, statistics, partitions, opened })
    }

    fn producer(&self) -> RwLockReadGuard<'_, ThreadedProducer<Acknowledgements>> {
        self.producer.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(
        &self,
        key: &[u8],
        value: Option<&[u8]>,
        conditional: Option<(i32, Condition)>,
        trace: Option<TraceParent>,
    ) -> Result<oneshot::Receiver<Acknowledged>, AppendError> {
        if self.partitions.load(Ordering::Relaxed) == 0 {
            // A broker may create a topic that is written to, and not compacted at that.
            return Err(AppendError::NotTaken("the topic is not known yet".to_owned()));
        }
        let sent = match self.try_send(key, value, conditional, trace) {
            Err(KafkaError::MessageProduction(RDKafkaErrorCode::Fatal)) => {
                self.renew_failed_producer();
                self.try_send(key, value, conditional, trace)
            }
            sent => sent,
        };
        sent.map_err(|error| match error {
            KafkaError::MessageProduction(code) if is_too_large(code) => {
                AppendError::TooLarge(code.to_string())
            }
            error => AppendError::NotTaken(error.to_string()),
        })
    }

    fn renew_failed_producer(&self) {
        let mut current = self.producer.write().unwrap_or_else(PoisonError::into_inner);
        // Another writer may have been faster.
        if let Some((_, reason)) = current.client().fatal_error() {
            self.renew(&mut current, &format!("it failed for good: {reason}"));
        }
    }

    fn renew(&self, current: &mut ThreadedProducer<Acknowledgements>, why: &str) {
        tracing::warn!("Kafka's producer is replaced by a new one: {why}");
        match producer(&self.settings, Quiet::clone(self.queries.context()), &self.statistics) {
            Ok(new) => {
                let old = std::mem::replace(current, new);
                // Its end waits for what it still has to report.
                std::thread::spawn(move || drop(old));
            }
            Err(error) => tracing::error!(%error, "there is no new producer"),
        }
    }

    fn try_send(
        &self,
        key: &[u8],
        value: Option<&[u8]>,
        conditional: Option<(i32, Condition)>,
        trace: Option<TraceParent>,
    ) -> Result<oneshot::Receiver<Acknowledged>, KafkaError> {
        let (done, acknowledged) = oneshot::channel();
        let mut record = BaseRecord::<[u8], [u8], _>::with_opaque_to(&self.settings.topic, Box::new(done));
        record = record.key(key);
        record.payload = value;
        if let Some((partition, condition)) = conditional {
            let (name, value) = condition.header();
            let header = Header { key: name, value: Some(&value) };
            record = record.partition(partition).headers(OwnedHeaders::new().insert(header));
        } else if let Some(trace) = trace {
            let header = Header { key: TraceParent::HEADER, value: Some(&trace.to_string()) };
            record = record.headers(OwnedHeaders::new().insert(header));
        }
        self.producer().send(record).map(|()| acknowledged).map_err(|(error, _)| error)
    }
}

fn producer(
    settings: &KafkaSettings,
    quiet: Quiet,
    statistics: &Arc<Collected>,
) -> Result<ThreadedProducer<Acknowledgements>, KafkaError> {
    let mut config = client_config(settings);
    config
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("partitioner", "murmur2_random")
        .set("message.timeout.ms", settings.write_timeout.as_millis().to_string())
        .set("message.max.bytes", settings.max_record_bytes.max(1_000_000).to_string());
    // A record waits for others to share its request only while earlier requests are under way.
    set_default(&mut config, "linger.ms", "0");
    set_default(&mut config, "queue.buffering.max.kbytes", "131072");
    set_default(&mut config, "statistics.interval.ms", PRODUCER_STATISTICS_INTERVAL_MS);
    let told = config.get("statistics.interval.ms") != Some("0");
    let longest = micros(settings.write_timeout + QUERY_TIMEOUT);
    let context = Acknowledgements {
        quiet,
        statistics: Arc::clone(statistics),
        topic: settings.topic.clone(),
        sent: told.then(|| Mutex::new(Sent::new(events::clock(), longest))),
    };
    ThreadedProducer::from_config_and_context(&config, context)
}

fn is_too_large(code: RDKafkaErrorCode) -> bool {
    matches!(code, RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidMessageSize)
}

fn client_config(settings: &KafkaSettings) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set_log_level(RDKafkaLogLevel::Warning);
    for (name, value) in &settings.properties {
        config.set(name, value);
    }
    config.set("bootstrap.servers", &settings.brokers);
    set_default(&mut config, "client.id", "bitacora");
    // Nagle's algorithm and long back-offs would each cost more than a whole round trip.
    set_default(&mut config, "socket.nagle.disable", "true");
    set_default(&mut config, "reconnect.backoff.max.ms", "1000");
    config
}

fn set_default(config: &mut ClientConfig, name: &str, value: &str) {
    if config.get(name).is_none() {
        config.set(name, value);
    }
}

impl Log for KafkaLog {
    fn topic(&self) -> &str {
        &self.settings.topic
    }

    fn open(&self, answered: &dyn Fn()) -> Result<LogInfo, OpenError> {
        let info = topic::open(&self.queries, &self.settings, answered)?;
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        let (before, found) = (self.partitions.load(Ordering::Relaxed), info.partitions.len());
        match &*opened {
            Some(identity) if !identity.fits(&info.identity) => {
                let mut current = self.producer.write().unwrap_or_else(PoisonError::into_inner);
                self.renew(&mut current, "the log was replaced");
            }
            // A topic never shrinks.
            Some(identity) if identity.topic_id.is_some() && found < before => {
                return Err(OpenError::Unavailable(format!(
                    "the broker that answered knows {found} of the topic's {before} partitions"
                )));
            }
            Some(_) if found > before => {
                tracing::info!(before, partitions = found, "the topic has more partitions");
                // The producer would go on with the old ones for minutes.
                if let Err(error) =
                    self.producer().client().fetch_metadata(Some(&self.settings.topic), QUERY_TIMEOUT)
                {
                    return Err(OpenError::Unavailable(format!("Kafka did not describe the topic: {error}")));
                }
            }
            _ => {}
        }
        *opened = Some(info.identity.clone());
        self.partitions.store(found, Ordering::Relaxed);
        Ok(info)
    }

    fn append(&self, key: &str, value: Vec<u8>) -> BoxFuture<'static, Result<Appended, AppendError>> {
        acknowledgement(self.send(key.as_bytes(), Some(&value), None, None))
    }

    fn append_traced(
        &self,
        key: &str,
        value: Vec<u8>,
        trace: TraceParent,
    ) -> BoxFuture<'static, Result<Appended, AppendError>> {
        acknowledgement(self.send(key.as_bytes(), Some(&value), None, Some(trace)))
    }

    fn append_conditional(
        &self,
        tidy: ConditionalRecord,
    ) -> BoxFuture<'static, Result<Appended, AppendError>> {
        let ConditionalRecord { partition, key, value, condition } = tidy;
        acknowledgement(self.send(&key, value.as_deref(), Some((partition, condition)), None))
    }

    fn check_trimming(&self) -> Result<(), String> {
        topic::check_trimming(&self.queries, &self.settings, self.partitions.load(Ordering::Relaxed))
    }

    fn reader(&self, from: &[NextOffset], epochs: &[Option<i32>]) -> Result<Box<dyn LogReader>, ReadError> {
        let unavailable = |error: KafkaError| ReadError::Unavailable(error.to_string());
        let mut config = client_config(&self.settings);
        config
            .set("group.id", &self.settings.group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            // The store decides where to read; an offset that is not there is an error, never a silent jump.
            .set("auto.offset.reset", "error")
            // The end of a partition is told by the broker, not guessed from the last record: see `Event::End`.
            .set("enable.partition.eof", "true");
        set_default(&mut config, "statistics.interval.ms", READER_STATISTICS_INTERVAL_MS);
        set_default(&mut config, "fetch.queue.backoff.ms", "10");
        set_default(&mut config, "fetch.error.backoff.ms", "100");
        let consumer: BaseConsumer<Quiet> =
            BaseConsumer::from_config_and_context(&config, Quiet::default()).map_err(unavailable)?;
        let mut assignment = TopicPartitionList::new();
        for (partition, next) in (0..).zip(from) {
            assignment
                .add_partition_offset(&self.settings.topic, partition, Offset::Offset(next.0))
                .map_err(unavailable)?;
        }
        for (partition, epoch) in
            (0..).zip(epochs).filter_map(|(partition, epoch)| Some((partition, (*epoch)?)))
        {
            events::set_leader_epoch(&mut assignment, &self.settings.topic, partition, epoch);
        }
        consumer.assign(&assignment).map_err(unavailable)?;
        let queue = events::ConsumerQueue::new(consumer)
            .ok_or_else(|| ReadError::Unavailable("librdkafka gave the consumer no queue".to_owned()))?;
        let topic = self.settings.topic.clone();
        let statistics = Arc::clone(&self.statistics);
        Ok(Box::new(Reader { queue, topic, statistics, committed: None, last_commit: Instant::now() }))
    }

    fn high_watermarks(&self) -> Result<Vec<HighWatermark>, ReadError> {
        let partitions = self.partitions.load(Ordering::Relaxed);
        if partitions == 0 {
            return Err(ReadError::Unavailable("the topic is not known yet".into()));
        }
        topic::offsets(&self.queries, &self.settings.topic, partitions, Offset::End, WATERMARK_TIMEOUT)
            .map(|ends| ends.into_iter().map(HighWatermark).collect())
            .map_err(|error| ReadError::Unavailable(error.to_string()))
    }

    fn statistics(&self) -> LogStatistics {
        self.statistics.summary(u64::try_from(self.producer().in_flight_count()).unwrap_or(0))
    }

    fn is_still(&self, identity: &LogIdentity, partitions: usize) -> bool {
        topic::is_still(&self.queries, identity, partitions, WATERMARK_TIMEOUT)
    }

    fn first_after(&self, times: &[Option<LogTime>]) -> Result<Vec<Option<i64>>, ReadError> {
        topic::first_after(&self.queries, &self.settings.topic, times, QUERY_TIMEOUT)
            .map_err(|error| ReadError::Unavailable(error.to_string()))
    }

    fn on_log_truncated(&self) {
        let mut current = self.producer.write().unwrap_or_else(PoisonError::into_inner);
        self.renew(&mut current, "the log has gone back");
    }

    fn delete_grace(&self) -> Option<Duration> {
        Some(self.settings.delete_retention)
    }

    fn flush(&self, deadline: Duration) {
        if let Err(error) = self.producer().flush(deadline) {
            tracing::warn!(%error, "not every write was acknowledged before the producer was closed");
        }
    }
}

type Acknowledged = Result<Appended, AppendError>;

fn acknowledgement(
    sent: Result<oneshot::Receiver<Acknowledged>, AppendError>,
) -> BoxFuture<'static, Acknowledged> {
    Box::pin(async move {
        // librdkafka reports on every record it took, at the latest after `message.timeout.ms`; then see `sent`.
        sent?.await.unwrap_or_else(|_| Err(AppendError::Unknown("the producer was closed".into())))
    })
}

/// The producer's context: hands each acknowledgement to the append that waits for it.
struct Acknowledgements {
    quiet: Quiet,
    statistics: Arc<Collected>,
    topic: String,
    /// `None` if the statistics were turned off.
    sent: Option<Mutex<Sent<Unsettled>>>,
}

/// An append that librdkafka says it did not send, and why it failed.
struct Unsettled {
    done: Box<oneshot::Sender<Acknowledged>>,
    reason: String,
}

impl Unsettled {
    fn settle(self, verdict: Verdict) {
        let error = match verdict {
            Verdict::NeverSent => AppendError::NotTaken(self.reason),
            Verdict::MaybeSent => AppendError::Unknown(self.reason),
        };
        // The caller may have gone away.
        let _ = self.done.send(Err(error));
    }
}

impl Acknowledgements {
    /// Answers now, or with the next statistics.
    fn settle_unsent(&self, message: &BorrowedMessage<'_>, asks: Unsettled) {
        let (Some(sent), Some(latency)) = (&self.sent, events::latency(message)) else {
            return asks.settle(Verdict::MaybeSent);
        };
        let gave_up = events::clock();
        let handed_over = gave_up.saturating_sub(latency);
        let record = Failed { partition: message.partition(), handed_over, gave_up, asks };
        let known = sent.lock().unwrap_or_else(PoisonError::into_inner).failed(record);
        if let Some((asks, verdict)) = known {
            asks.settle(verdict);
        }
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

impl ClientContext for Acknowledgements {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.quiet.log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.quiet.error(error, reason);
    }

    fn stats(&self, statistics: Statistics) {
        if let Some(sent) = &self.sent {
            let partitions = statistics.topics.get(&self.topic).map(|topic| &topic.partitions);
            let records = partitions.into_iter().flatten().map(|(number, it)| (*number, it.txmsgs)).collect();
            let known = sent.lock().unwrap_or_else(PoisonError::into_inner).sample(statistics.ts, records);
            for (asks, verdict) in known {
                asks.settle(verdict);
            }
        }
        self.statistics.producer(statistics);
    }
}

impl ProducerContext for Acknowledgements {
    type DeliveryOpaque = Box<oneshot::Sender<Acknowledged>>;

    fn delivery(&self, result: &DeliveryResult<'_>, done: Self::DeliveryOpaque) {
        let acknowledged = match result {
            Ok(message) => Ok(Appended {
                position: Position { partition: message.partition(), offset: message.offset() },
                timestamp: LogTime::from_ms(message.timestamp().to_millis().unwrap_or_default()),
            }),
            Err((error, message)) => match append_error(error, message) {
                // What a broker itself refused is not taken; what librdkafka gave up may be.
                AppendError::NotTaken(reason) if !is_refusal(error) => {
                    return self.settle_unsent(message, Unsettled { done, reason });
                }
                error => Err(error),
            },
        };
        // The caller may have gone away.
        let _ = done.send(acknowledged);
    }
}

/// Whether a broker refused the record itself, and so any earlier try of it too, rather than its sequence number. The codes for what
/// happens in librdkafka are negative.
fn is_refusal(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{InvalidProducerEpoch, UnknownProducerId};
    error
        .rdkafka_error_code()
        .is_some_and(|code| code as i32 > 0 && !matches!(code, InvalidProducerEpoch | UnknownProducerId))
}

fn append_error(error: &KafkaError, message: &BorrowedMessage<'_>) -> AppendError {
    let code = error.rdkafka_error_code();
    let reason = match code {
        Some(RDKafkaErrorCode::MessageTimedOut) => "no broker acknowledged it in time".to_owned(),
        _ => error.to_string(),
    };
    match code {
        Some(code) if is_too_large(code) => AppendError::TooLarge(reason),
        _ if events::may_be_persisted(message) => AppendError::Unknown(reason),
        _ => AppendError::NotTaken(reason),
    }
}

/// A client's context that keeps librdkafka's complaints for whoever has to tell why nothing answers, instead of
/// logging every try to connect. Shared, since only the producer's are told while nothing else is polled.
#[derive(Clone, Default)]
pub(super) struct Quiet {
    last_problem: Arc<Mutex<String>>,
}

impl Quiet {
    fn last_problem(&self) -> String {
        self.last_problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ClientContext for Quiet {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        tracing::debug!(?level, facility, "librdkafka: {line}");
        // `[thrd:…]: the problem`
        let problem = line.split_once("]: ").map_or(line, |(_, problem)| problem);
        problem.clone_into(&mut self.last_problem.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka reports a problem");
    }
}

impl ConsumerContext for Quiet {}

struct Reader {
    queue: events::ConsumerQueue,
    topic: String,
    statistics: Arc<Collected>,
    /// The last offsets committed to the group.
    committed: Option<Vec<NextOffset>>,
    last_commit: Instant,
}

impl LogReader for Reader {
    fn poll(&mut self, wait: Duration, batch: &mut Batch) -> Result<(), ReadError> {
        let mut wait = wait;
        while !batch.is_full() {
            match self.queue.poll(wait, batch) {
                Event::Nothing => break,
                Event::Records => wait = Duration::ZERO,
                Event::End { partition, next } if partition >= 0 => {
                    batch.reached(partition, next);
                    wait = Duration::ZERO;
                }
                Event::OutOfRange { partition } => return Err(ReadError::OutOfRange { partition }),
                Event::Statistics(json) => self.statistics.reader(&json),
                Event::End { .. } | Event::Other => wait = Duration::ZERO,
                Event::Fatal(reason) => return Err(ReadError::Unavailable(reason)),
            }
        }
        Ok(())
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

#[cfg(test)]
pub(super) mod tests {
    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::DefaultProducerContext;
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

    use super::*;

    pub(super) fn settings(brokers: &str) -> KafkaSettings {
        KafkaSettings {
            brokers: brokers.into(),
            topic: "t".into(),
            partitions: 1,
            replication_factor: 1,
            allow_uncompacted: false,
            group: String::new(),
            write_timeout: Duration::from_secs(5),
            delete_retention: Duration::from_secs(3600),
            min_compaction_lag: Duration::from_secs(3600),
            max_record_bytes: 1_000,
            properties: Vec::new(),
        }
    }

    /// A log whose topic is there; librdkafka's own brokers, for what a real one does too seldom.
    fn on(brokers: &MockCluster<'_, DefaultProducerContext>) -> KafkaLog {
        brokers.create_topic("t", 1, 1).expect("a topic");
        let settings =
            KafkaSettings { write_timeout: Duration::from_secs(2), ..settings(&brokers.bootstrap_servers()) };
        let log = KafkaLog::new(settings).expect("a log");
        log.partitions.store(1, Ordering::Relaxed);
        log
    }

    #[tokio::test]
    async fn a_write_that_a_deposed_leader_answered_may_take_effect() {
        let brokers = MockCluster::new(1).expect("brokers");
        let log = on(&brokers);
        log.append("k", Vec::new()).await.expect("the broker takes it");
        // What it answers also when it has appended a record, and was deposed before the followers had it.
        let deposed = RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION;
        brokers.request_errors(RDKafkaApiKey::Produce, &[deposed; 1_000]);
        let answer = log.append("k", Vec::new()).await;
        assert!(matches!(answer, Err(AppendError::Unknown(_))), "{answer:?}");
        brokers.clear_request_errors(RDKafkaApiKey::Produce);
        log.append("k", Vec::new()).await.expect("the broker takes it again");
    }

    #[tokio::test]
    async fn a_write_that_was_never_sent_is_not_taken() {
        let brokers = MockCluster::new(1).expect("brokers");
        let log = on(&brokers);
        log.append("k", Vec::new()).await.expect("the broker takes it");
        brokers.broker_down(1).expect("it goes down");
        let mut answer = log.append("k", Vec::new()).await;
        // What the producer sent before it knew.
        if matches!(answer, Err(AppendError::Unknown(_))) {
            answer = log.append("k", Vec::new()).await;
        }
        assert!(matches!(answer, Err(AppendError::NotTaken(_))), "{answer:?}");
        brokers.broker_up(1).expect("it comes back");
        log.append("k", Vec::new()).await.expect("the broker takes it again");
    }

    #[tokio::test]
    async fn without_statistics_nobody_knows_whether_a_write_was_sent() {
        let brokers = MockCluster::new(1).expect("brokers");
        let mut log = on(&brokers);
        log.settings.properties.push(("statistics.interval.ms".into(), "0".into()));
        log = KafkaLog::new(log.settings.clone()).expect("a log");
        log.partitions.store(1, Ordering::Relaxed);
        brokers.broker_down(1).expect("it goes down");
        let answer = log.append("k", Vec::new()).await;
        assert!(matches!(answer, Err(AppendError::Unknown(_))), "{answer:?}");
    }
}
