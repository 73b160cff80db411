//! The producer, and what becomes of each append: acknowledged, refused, or nobody knows.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};
use serde::Deserialize;
use slab::Slab;

use super::client::{LastProblem, client_config, set_default, set_default_of};
use super::login::Supplied;
use super::sent::{Failed, Sent, Verdict};
use super::statistics::Collected;
use super::{KafkaSettings, QUERY_TIMEOUT, events};
use crate::clock::LogTime;
use crate::log::{AppendError, Appended, Condition, Level, NewRecord, Unsettled};
use crate::telemetry::TraceParent;
use crate::worker::Worker;
use bitacora_protocol::Position;

/// Requests that a broker has been sent and has not answered. It works at one request of a connection at a time, so a second one that lies
/// there keeps it busy. Records that may not leave yet, since five of their partition are under way, make librdkafka's thread ask
/// without a pause, which takes a whole processor, unless a request that is made up waits for its turn: with two under way, and records
/// of more than two partitions, there is always one.
const REQUESTS_UNDER_WAY: &str = "2";
/// How often librdkafka tells the producer's statistics: a write that failed may wait so long for its answer, see [`super::sent`].
const STATISTICS_INTERVAL_MS: &str = "1000";
/// How long the thread of a producer waits for news before it looks whether to end. What comes meanwhile is handed out at once. rdkafka
/// waits for whole milliseconds, and asks without a pause in what is left of the last one: a little more than a whole number leaves little,
/// where exactly one would leave nearly another millisecond. The end of a producer may take as long as a wait.
const POLL_TIMEOUT: Duration = Duration::from_micros(500_100);

pub(super) fn producer(
    settings: &KafkaSettings,
    problem: LastProblem,
    statistics: &Arc<Collected>,
) -> Result<PolledProducer, KafkaError> {
    let config = producer_config(settings);
    let told = config.get("statistics.interval.ms") != Some("0");
    let longest = micros(settings.write_timeout + QUERY_TIMEOUT);
    let context = Acknowledgements {
        problem,
        statistics: Arc::clone(statistics),
        topic: settings.topic.clone(),
        under_way: Mutex::default(),
        sent: told.then(|| Mutex::new(Sent::new(events::clock(), longest))),
    };
    PolledProducer::start(BaseProducer::from_config_and_context(&config, context)?)
}

fn producer_config(settings: &KafkaSettings) -> ClientConfig {
    let mut config = client_config(settings);
    config
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("partitioner", "murmur2_random")
        .set("message.timeout.ms", settings.write_timeout.as_millis().to_string())
        .set("message.max.bytes", settings.max_record_bytes.max(1_000_000).to_string());
    // A record waits for others to share its request only while earlier requests are under way.
    set_default_of(&mut config, &["linger.ms", "queue.buffering.max.ms"], "0");
    set_default_of(
        &mut config,
        &["max.in.flight.requests.per.connection", "max.in.flight"],
        REQUESTS_UNDER_WAY,
    );
    set_default(&mut config, "queue.buffering.max.kbytes", "131072");
    if let Some(bytes) = settings.batch_bytes {
        set_default(&mut config, "batch.size", &bytes.to_string());
    }
    set_default(&mut config, "statistics.interval.ms", STATISTICS_INTERVAL_MS);
    config
}

/// A producer and the thread that hands out its acknowledgements. Not rdkafka's own, of which nobody can tell whether its
/// thread lives: without it no write would ever be answered.
pub(super) struct PolledProducer {
    producer: Arc<BaseProducer<Acknowledgements>>,
    stop: Arc<AtomicBool>,
    thread: Mutex<Option<Worker>>,
    /// If clients log in by tokens.
    _tokens: Option<Supplied>,
}

impl PolledProducer {
    fn start(producer: BaseProducer<Acknowledgements>) -> Result<Self, KafkaError> {
        let (producer, stop) = (Arc::new(producer), Arc::new(AtomicBool::new(false)));
        let tokens = producer.context().problem.tokens();
        let tokens = tokens.map(|tokens| tokens.supply(Arc::clone(&producer) as _));
        let (polled, stopped) = (Arc::clone(&producer), Arc::clone(&stop));
        let thread = Worker::spawn("kafka-producer", move || {
            while !stopped.load(Ordering::Relaxed) {
                polled.poll(POLL_TIMEOUT);
            }
        });
        let thread = thread.map_err(|error| KafkaError::ClientCreation(error.to_string()))?;
        Ok(Self { producer, stop, thread: Mutex::new(Some(thread)), _tokens: tokens })
    }

    /// The name of the thread if it has ended.
    pub fn ended_thread(&self) -> Option<&'static str> {
        self.thread.lock().as_ref().and_then(Worker::ended)
    }

    /// Ends the thread. Whoever waits for an acknowledgement waits for ever.
    #[cfg(test)]
    pub fn stop_polling(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl PolledProducer {
    /// Gives a record to librdkafka, which copies it, or the append back to its caller.
    pub fn send(
        &self,
        topic: &str,
        record: &NewRecord,
        append: Unsettled,
    ) -> Result<(), (KafkaError, Unsettled)> {
        let under_way = &self.producer.context().under_way;
        let place = under_way.lock().insert(append);
        let mut sent = BaseRecord::<[u8], [u8], _>::with_opaque_to(topic, place).key(&record.key);
        sent.payload = record.value.as_deref();
        sent.partition = record.partition;
        sent.headers = headers(record);
        self.producer.send(sent).map_err(|(error, _)| (error, under_way.lock().remove(place)))
    }
}

/// `None` if there are none, which is the rule.
fn headers(record: &NewRecord) -> Option<OwnedHeaders> {
    let condition = record.condition.map(Condition::header);
    let level = record.level.map(|level| (Level::HEADER, level.to_string()));
    let trace = record.trace.map(|trace| (TraceParent::HEADER, trace.to_string()));
    let mut headers = None;
    for (key, value) in [condition, level, trace].into_iter().flatten() {
        let header = Header { key, value: Some(&value) };
        headers = Some(headers.unwrap_or_else(OwnedHeaders::new).insert(header));
    }
    headers
}

impl Deref for PolledProducer {
    type Target = BaseProducer<Acknowledgements>;

    fn deref(&self) -> &Self::Target {
        &self.producer
    }
}

impl Drop for PolledProducer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(Err(name)) =
            self.thread.get_mut().take().map(|thread| thread.join_until(Instant::now() + QUERY_TIMEOUT))
        {
            tracing::warn!("the thread '{name}' did not end in time and is left to itself");
        }
    }
}

pub(super) fn is_too_large(code: RDKafkaErrorCode) -> bool {
    matches!(code, RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidMessageSize)
}

/// The producer's context: settles each append when its acknowledgement comes.
pub(super) struct Acknowledgements {
    problem: LastProblem,
    statistics: Arc<Collected>,
    topic: String,
    /// What librdkafka has been given and has not reported on. It reports on every record that it took, at the latest after
    /// `message.timeout.ms`; what is left when the producer is closed is settled by being dropped.
    under_way: Mutex<Slab<Unsettled>>,
    /// `None` if the statistics were turned off.
    sent: Option<Mutex<Sent<UnsentAppend>>>,
}

/// An append that librdkafka says it did not send, and why it failed.
struct UnsentAppend {
    append: Unsettled,
    reason: String,
}

impl UnsentAppend {
    fn settle(self, verdict: Verdict) {
        let error = match verdict {
            Verdict::NeverSent => AppendError::NotTaken(self.reason),
            Verdict::MaybeSent => AppendError::Unknown(self.reason),
        };
        self.append.settle(Err(error));
    }
}

impl Acknowledgements {
    /// Answers now, or with the next statistics.
    fn settle_unsent(&self, message: &BorrowedMessage<'_>, append: UnsentAppend) {
        let (Some(sent), Some(latency)) = (&self.sent, events::latency(message)) else {
            return append.settle(Verdict::MaybeSent);
        };
        let gave_up = events::clock();
        let handed_over = gave_up.saturating_sub(latency);
        let record = Failed { partition: message.partition(), handed_over, gave_up, append };
        let known = sent.lock().failed(record);
        if let Some((append, verdict)) = known {
            append.settle(verdict);
        }
    }
}

/// What is looked at whenever librdkafka tells its statistics: the rest is parsed only when somebody asks for it.
#[derive(Deserialize)]
struct SentStatistics {
    ts: i64,
    topics: HashMap<String, SentTopic>,
}

#[derive(Deserialize)]
struct SentTopic {
    partitions: HashMap<i32, SentPartition>,
}

#[derive(Deserialize)]
struct SentPartition {
    /// Records that were sent so far, more than once where they were sent again.
    txmsgs: u64,
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

impl ClientContext for Acknowledgements {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.problem.log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.problem.error(error, reason);
    }

    fn stats_raw(&self, json: &[u8]) {
        self.statistics.producer(json);
        let Some(sent) = &self.sent else { return };
        match serde_json::from_slice::<SentStatistics>(json) {
            Ok(told) => {
                let partitions = told.topics.get(&self.topic).map(|topic| &topic.partitions);
                let records = partitions.into_iter().flatten().map(|(number, it)| (*number, it.txmsgs));
                let known = sent.lock().sample(told.ts, records.collect());
                for (append, verdict) in known {
                    append.settle(verdict);
                }
            }
            Err(error) => tracing::warn!(
                %error,
                "librdkafka's statistics can't be read; writes that fail are not answered for now"
            ),
        }
    }
}

impl ProducerContext for Acknowledgements {
    /// The place of the append among those that are under way.
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, place: usize) {
        let Some(append) = self.under_way.lock().try_remove(place) else { return };
        let outcome = match result {
            Ok(message) => Ok(Appended {
                position: Position { partition: message.partition(), offset: message.offset() },
                timestamp: LogTime::from_ms(message.timestamp().to_millis().unwrap_or_default()),
            }),
            Err((error, message)) => match append_error(error, message) {
                // What a broker itself refused is not taken; what librdkafka gave up may be.
                AppendError::NotTaken(reason) if !is_refusal(error) => {
                    return self.settle_unsent(message, UnsentAppend { append, reason });
                }
                error => Err(error),
            },
        };
        append.settle(outcome);
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::DefaultProducerContext;
    use rdkafka::statistics::Statistics;

    use super::super::tests::settings;
    use super::*;

    /// Counts acknowledgements, and keeps what librdkafka's statistics say.
    #[derive(Default)]
    struct Counted {
        acknowledged: AtomicU64,
        /// The most records of a partition that were under way in the last statistics.
        under_way: AtomicU64,
        /// How often the thread of a broker was woken so far.
        wakeups: AtomicU64,
        told: AtomicU64,
    }

    impl ClientContext for Counted {
        fn stats(&self, statistics: Statistics) {
            let partitions = statistics.topics.values().flat_map(|topic| topic.partitions.values());
            let under_way = partitions.map(|partition| partition.msgs_inflight.unsigned_abs()).max();
            self.under_way.store(under_way.unwrap_or_default(), Ordering::SeqCst);
            let wakeups = statistics.brokers.values().filter_map(|broker| broker.wakeups).max();
            self.wakeups.fetch_max(wakeups.unwrap_or_default(), Ordering::SeqCst);
            self.told.fetch_add(1, Ordering::SeqCst);
        }
    }

    impl ProducerContext for Counted {
        type DeliveryOpaque = ();

        fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
            self.acknowledged.fetch_add(u64::from(result.is_ok()), Ordering::SeqCst);
        }
    }

    #[test]
    fn the_producer_rests_while_its_requests_are_under_way() {
        const PARTITIONS: i32 = 4;
        const RECORDS: u64 = 200;
        let brokers: MockCluster<'_, DefaultProducerContext> = MockCluster::new(1).expect("brokers");
        brokers.create_topic("t", PARTITIONS, 1).expect("a topic");
        brokers.broker_round_trip_time(1, Duration::from_millis(500)).expect("a slow broker");
        let mut config = producer_config(&KafkaSettings {
            write_timeout: Duration::from_secs(60),
            ..settings(&brokers.bootstrap_servers())
        });
        config.set("statistics.interval.ms", "20");
        let producer =
            BaseProducer::from_config_and_context(&config, Counted::default()).expect("a producer");
        let send = || {
            for number in 0..RECORDS {
                let record = BaseRecord::to("t").key("k").payload("v");
                producer.send(record.partition(number as i32 % PARTITIONS)).expect("it has room");
            }
        };
        let counted = producer.context();
        let wait_for = |number: &AtomicU64, at_least| {
            while number.load(Ordering::SeqCst) < at_least {
                producer.poll(Duration::from_millis(10));
            }
        };
        // The first leave once it is connected. With five of a partition under way, the next ones of it have to wait.
        send();
        wait_for(&counted.under_way, 5);
        send();
        wait_for(&counted.acknowledged, 2 * RECORDS);
        wait_for(&counted.told, counted.told.load(Ordering::SeqCst) + 2);
        let wakeups = counted.wakeups.load(Ordering::SeqCst);
        assert!((1..10 * RECORDS).contains(&wakeups), "{wakeups} for {RECORDS} records");
    }

    #[test]
    fn what_an_operator_sets_stands_by_each_of_its_names() {
        let with = |name: &str| {
            let properties = vec![(name.to_owned(), "3".to_owned())];
            producer_config(&KafkaSettings { properties, ..settings("localhost:1") })
        };
        for (name, other) in [
            ("linger.ms", "queue.buffering.max.ms"),
            ("max.in.flight.requests.per.connection", "max.in.flight"),
        ] {
            for (set, unset) in [(name, other), (other, name)] {
                let config = with(set);
                assert_eq!((config.get(set), config.get(unset)), (Some("3"), None));
            }
        }
        let bounded = KafkaSettings { batch_bytes: Some(7), ..settings("localhost:1") };
        assert_eq!(producer_config(&bounded).get("batch.size"), Some("7"));
        let properties = vec![("batch.size".to_owned(), "3".to_owned())];
        let config = producer_config(&KafkaSettings { properties, ..bounded });
        assert_eq!(config.get("batch.size"), Some("3"));
    }
}
