//! The log on Kafka: one compacted topic, through librdkafka.

mod client;
mod early;
mod events;
mod login;
mod producer;
mod reader;
mod sent;
mod statistics;
mod topic;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use rdkafka::Offset;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::Producer;

pub use self::client::RESERVED_PROPERTIES;
use self::client::{LastProblem, client_config};
use self::early::Early;
pub use self::login::TokenEndpoint;
use self::login::{Login, Supplied};
use self::producer::{PolledProducer, is_too_large, producer};
use self::reader::Reader;
use self::statistics::Collected;
use super::{
    AppendError, Log, LogIdentity, LogInfo, LogReader, LogStatistics, NewRecord, OpenError, ReadError,
    Unsettled,
};
use crate::clock::LogTime;
use bitacora_protocol::{HighWatermark, NextOffset};

/// How long a question to a broker may take.
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a high watermark may take; it is asked for several times a second.
const WATERMARK_TIMEOUT: Duration = Duration::from_secs(1);
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
    /// The largest batch that the node sends, in bytes, where librdkafka's own default is too large.
    pub batch_bytes: Option<usize>,
    /// Passed to librdkafka as they are.
    pub properties: Vec<(String, String)>,
    /// If the node logs in by tokens.
    pub token_endpoint: Option<TokenEndpoint>,
}

pub struct KafkaLog {
    settings: KafkaSettings,
    /// Made anew when it has failed for good, and when the log was replaced: another cluster gives its id and sequence
    /// numbers to others, and would acknowledge its records as duplicates of theirs.
    producer: RwLock<PolledProducer>,
    /// Asks for metadata and high watermarks; reads nothing.
    queries: Arc<BaseConsumer<LastProblem>>,
    statistics: Arc<Collected>,
    /// 0 until known; another topic of the same name may have another number.
    partitions: AtomicUsize,
    opened: Mutex<Option<LogIdentity>>,
    /// Writes that came before the topic was known.
    early: Mutex<Early>,
    /// If clients log in by tokens; what gets them, and that `queries` has them.
    login: Option<(Login, Supplied)>,
}

/// What is wrong, without the value of the property that librdkafka refuses: it may be a secret, whatever the property's name.
#[must_use]
pub fn without_values(error: &KafkaError) -> String {
    match error {
        KafkaError::ClientConfig(_, why, name, _) => format!("{name}: {why}"),
        error => error.to_string(),
    }
}

impl KafkaLog {
    /// Prepares to talk to Kafka; does not connect yet.
    ///
    /// # Errors
    /// When librdkafka refuses a property, in its words.
    pub fn new(settings: KafkaSettings) -> Result<Self, KafkaError> {
        let login = settings.token_endpoint.clone().map(Login::start).transpose();
        let login = login.map_err(|error| KafkaError::ClientCreation(error.to_string()))?;
        let problem = LastProblem::new(login.as_ref().map(Login::tokens));
        let statistics = Arc::<Collected>::default();
        let producer = RwLock::new(producer(&settings, problem.clone(), &statistics)?);
        let mut queries = client_config(&settings);
        // Nobody polls this client, so that they would pile up.
        queries.set("statistics.interval.ms", "0");
        let queries: Arc<BaseConsumer<_>> =
            Arc::new(BaseConsumer::from_config_and_context(&queries, problem)?);
        let login = login.map(|login| {
            let supplied = login.tokens().supply(Arc::clone(&queries) as _);
            (login, supplied)
        });
        let (partitions, opened, early) = Default::default();
        Ok(Self { settings, producer, queries, statistics, partitions, opened, early, login })
    }

    fn producer(&self) -> RwLockReadGuard<'_, PolledProducer> {
        self.producer.read()
    }

    fn send(&self, record: &NewRecord, append: Unsettled) {
        // A broker may create a topic that is written to, and not compacted at that.
        if self.partitions.load(Ordering::Acquire) == 0 {
            let mut early = self.early.lock();
            // It may be known by now, and then all that came before are with the producer.
            if self.partitions.load(Ordering::Acquire) == 0 {
                return early.wait(record, append);
            }
        }
        self.send_to_known_topic(record, append);
    }

    /// Asks what the topic is, and takes it as it is found.
    fn open_topic(&self, answered: &dyn Fn()) -> Result<LogInfo, OpenError> {
        let info = topic::open(&self.queries, &self.settings, answered)?;
        let mut opened = self.opened.lock();
        let (before, found) = (self.partitions.load(Ordering::Relaxed), info.partitions.len());
        match &*opened {
            Some(identity) if !identity.fits(&info.identity) => {
                let mut current = self.producer.write();
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
        // Whoever finds it unknown waits for the lock, and so comes behind those that were there before.
        let mut early = self.early.lock();
        for (record, append) in early.take() {
            self.send_to_known_topic(&record, append);
        }
        self.partitions.store(found, Ordering::Release);
        drop(early);
        Ok(info)
    }

    fn send_to_known_topic(&self, record: &NewRecord, append: Unsettled) {
        let topic = &self.settings.topic;
        let sent = match self.producer().send(topic, record, append) {
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::Fatal), append)) => {
                self.renew_failed_producer();
                self.producer().send(topic, record, append)
            }
            sent => sent,
        };
        if let Err((error, append)) = sent {
            append.settle(Err(match error {
                KafkaError::MessageProduction(code) if is_too_large(code) => {
                    AppendError::TooLarge(code.to_string())
                }
                error => AppendError::NotTaken(error.to_string()),
            }));
        }
    }

    fn renew_failed_producer(&self) {
        let mut current = self.producer.write();
        // Another writer may have been faster.
        if let Some((_, reason)) = current.client().fatal_error() {
            self.renew(&mut current, &format!("it failed for good: {reason}"));
        }
    }

    fn renew(&self, current: &mut PolledProducer, why: &str) {
        tracing::warn!("Kafka's producer is replaced by a new one: {why}");
        match producer(&self.settings, LastProblem::clone(self.queries.context()), &self.statistics) {
            Ok(new) => {
                let old = std::mem::replace(current, new);
                // Its end waits for what it still has to report. Without a thread the closure is dropped here, and it with it.
                let thread = std::thread::Builder::new().name("old-producer".into());
                if let Err(error) = thread.spawn(move || drop(old)) {
                    tracing::warn!(%error, "there is no thread for the end of the old producer; writes wait for it");
                }
            }
            Err(error) => tracing::error!(%error, "there is no new producer"),
        }
    }
}

impl Log for KafkaLog {
    fn topic(&self) -> &str {
        &self.settings.topic
    }

    fn open(&self, answered: &dyn Fn()) -> Result<LogInfo, OpenError> {
        let opened = self.open_topic(answered);
        if let Err(error) = &opened {
            self.early.lock().refuse(&error.to_string());
        }
        opened
    }

    fn hand_over(&self, record: &NewRecord, append: Unsettled) {
        self.send(record, append);
    }

    fn check_trimming(&self) -> Result<(), String> {
        topic::check_trimming(&self.queries, &self.settings, self.partitions.load(Ordering::Relaxed))
    }

    fn check_conditional_writes(&self) -> Result<(), OpenError> {
        topic::check_conditional_writes(
            &self.queries,
            &self.settings,
            self.partitions.load(Ordering::Relaxed),
        )
    }

    fn reader(&self, from: &[NextOffset], epochs: &[Option<i32>]) -> Result<Box<dyn LogReader>, ReadError> {
        let tokens = self.queries.context().tokens();
        let statistics = Arc::clone(&self.statistics);
        Ok(Box::new(Reader::start(&self.settings, tokens, statistics, from, epochs)?))
    }

    fn high_watermarks(&self) -> Result<Vec<HighWatermark>, ReadError> {
        let partitions = self.partitions.load(Ordering::Relaxed);
        if partitions == 0 {
            return Err(ReadError::Unavailable("the topic is not known yet".into()));
        }
        topic::offsets(&self.queries, &self.settings.topic, 0..partitions, Offset::End, WATERMARK_TIMEOUT)
            .map(|ends| ends.into_iter().map(HighWatermark).collect())
            .map_err(|error| ReadError::Unavailable(error.to_string()))
    }

    fn high_watermark(&self, partition: i32) -> Result<HighWatermark, ReadError> {
        let partitions = self.partitions.load(Ordering::Relaxed);
        let index = usize::try_from(partition).ok().filter(|index| *index < partitions);
        let index =
            index.ok_or_else(|| ReadError::Unavailable(format!("no partition {partition} is known")))?;
        let ends = topic::offsets(
            &self.queries,
            &self.settings.topic,
            index..index + 1,
            Offset::End,
            WATERMARK_TIMEOUT,
        )
        .map_err(|error| ReadError::Unavailable(error.to_string()))?;
        let end = ends.first().copied().map(HighWatermark);
        end.ok_or_else(|| ReadError::Unavailable("the broker left it out".into()))
    }

    fn ended_thread(&self) -> Option<&'static str> {
        let login = self.login.as_ref().and_then(|(login, _)| login.ended_thread());
        self.producer().ended_thread().or(login)
    }

    fn statistics(&self) -> LogStatistics {
        self.statistics.summary(u64::try_from(self.producer().in_flight_count()).unwrap_or(0))
    }

    fn is_unchanged(&self, identity: &LogIdentity, partitions: usize) -> bool {
        topic::is_unchanged(&self.queries, identity, partitions, WATERMARK_TIMEOUT)
    }

    fn first_offsets_after(&self, times: &[Option<LogTime>]) -> Result<Vec<Option<i64>>, ReadError> {
        topic::first_offsets_after(&self.queries, &self.settings.topic, times, QUERY_TIMEOUT)
            .map_err(|error| ReadError::Unavailable(error.to_string()))
    }

    fn on_log_truncated(&self) {
        let mut current = self.producer.write();
        self.renew(&mut current, "the log was truncated");
    }

    fn write_timeout(&self) -> Duration {
        self.settings.write_timeout
    }

    fn delete_retention(&self) -> Option<Duration> {
        Some(self.settings.delete_retention)
    }

    fn flush(&self, deadline: Duration) {
        self.early.lock().refuse("this node is stopping");
        if let Err(error) = self.producer().flush(deadline) {
            tracing::warn!(%error, "not every write was acknowledged before the producer was closed");
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::DefaultProducerContext;
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

    use super::*;
    use crate::log::Appends;

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
            batch_bytes: None,
            properties: Vec::new(),
            token_endpoint: None,
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
        log.append("k", Vec::new(), None).await.expect("the broker takes it");
        // What it answers also when it has appended a record, and was deposed before the followers had it.
        let deposed = RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION;
        brokers.request_errors(RDKafkaApiKey::Produce, &[deposed; 1_000]);
        let answer = log.append("k", Vec::new(), None).await;
        assert!(matches!(answer, Err(AppendError::Unknown(_))), "{answer:?}");
        brokers.clear_request_errors(RDKafkaApiKey::Produce);
        log.append("k", Vec::new(), None).await.expect("the broker takes it again");
    }

    #[tokio::test]
    async fn a_write_that_was_never_sent_is_not_taken() {
        let brokers = MockCluster::new(1).expect("brokers");
        let log = on(&brokers);
        log.append("k", Vec::new(), None).await.expect("the broker takes it");
        brokers.broker_down(1).expect("it goes down");
        let mut answer = log.append("k", Vec::new(), None).await;
        // What the producer sent before it knew.
        if matches!(answer, Err(AppendError::Unknown(_))) {
            answer = log.append("k", Vec::new(), None).await;
        }
        assert!(matches!(answer, Err(AppendError::NotTaken(_))), "{answer:?}");
        brokers.broker_up(1).expect("it comes back");
        log.append("k", Vec::new(), None).await.expect("the broker takes it again");
    }

    #[tokio::test]
    async fn without_statistics_nobody_knows_whether_a_write_was_sent() {
        let brokers = MockCluster::new(1).expect("brokers");
        let mut log = on(&brokers);
        log.settings.properties.push(("statistics.interval.ms".into(), "0".into()));
        log = KafkaLog::new(log.settings.clone()).expect("a log");
        log.partitions.store(1, Ordering::Relaxed);
        brokers.broker_down(1).expect("it goes down");
        let answer = log.append("k", Vec::new(), None).await;
        assert!(matches!(answer, Err(AppendError::Unknown(_))), "{answer:?}");
    }

    #[test]
    fn a_partition_is_asked_though_another_s_leader_is_away() {
        let brokers = MockCluster::new(2).expect("brokers");
        let log = on(&brokers);
        brokers.create_topic("two", 2, 1).expect("a topic");
        let log = KafkaLog { settings: KafkaSettings { topic: "two".into(), ..log.settings.clone() }, ..log };
        log.partitions.store(2, Ordering::Relaxed);
        for (partition, leader) in [(0, 1), (1, 2)] {
            brokers.partition_leader("two", partition, Some(leader)).expect("it leads");
        }
        assert_eq!(log.high_watermarks().expect("both answer"), [HighWatermark(0); 2]);
        brokers.broker_down(2).expect("it goes down");
        assert!(log.high_watermarks().is_err());
        assert_eq!(log.high_watermark(0).expect("its leader answers"), HighWatermark(0));
        assert!(log.high_watermark(1).is_err() && log.high_watermark(2).is_err());
        assert!(log.high_watermark(-1).is_err());
    }

    #[test]
    fn a_producer_whose_thread_has_ended_is_named() {
        let brokers = MockCluster::new(1).expect("brokers");
        let log = on(&brokers);
        assert_eq!(log.ended_thread(), None);
        log.producer.read().stop_polling();
        while log.ended_thread().is_none() {
            std::thread::yield_now();
        }
        assert_eq!(log.ended_thread(), Some("kafka-producer"));
    }

    #[tokio::test]
    async fn each_record_of_a_request_has_its_own_outcome() {
        let brokers = MockCluster::new(1).expect("brokers");
        let log = on(&brokers);
        let record =
            |bytes| NewRecord { key: b"k".into(), value: Some(vec![0; bytes]), ..NewRecord::default() };
        let (small, large) = (record(1), record(2_000_000));
        let mut appends = Appends::new(None);
        for record in [&small, &large, &small] {
            log.hand_over(record, appends.begin());
        }
        appends.close();
        std::future::poll_fn(|context| appends.poll_settled(context)).await;
        let outcomes = [0, 1, 2].map(|index| appends.take(index).expect("settled"));
        let [Ok(first), Err(AppendError::TooLarge(_)), Ok(second)] = outcomes else { panic!("{outcomes:?}") };
        assert_eq!([first, second].map(|appended| appended.position.offset), [0, 1]);
    }

    #[tokio::test]
    async fn a_log_that_is_dropped_settles_what_is_under_way() {
        let brokers = MockCluster::new(1).expect("brokers");
        let log = on(&brokers);
        log.append("k", Vec::new(), None).await.expect("the broker takes it");
        brokers.broker_down(1).expect("it goes down");
        let appending = log.append("k", Vec::new(), None);
        drop(log);
        let lost = appending.await.expect_err("nobody took it");
        assert!(matches!(lost, AppendError::Unknown(_) | AppendError::NotTaken(_)), "{lost:?}");
    }
}
