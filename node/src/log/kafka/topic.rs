//! The topic: created where it is missing, checked where it is there.

use std::collections::HashMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use futures_executor::block_on;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};

use super::client::{LastProblem, client_config};
use super::events::{self, Described};
use super::{KafkaSettings, QUERY_TIMEOUT};
use crate::clock::LogTime;
use crate::log::{LogIdentity, LogInfo, OpenError};

/// Room in the topic's records beside the node's own limit, for writers who add headers.
const HEADROOM_BYTES: usize = 1 << 20;
/// Between two questions about a topic that not all brokers know yet.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// Trimming wants this much time between a tombstone that came too late and the compaction that it would mislead, or
/// `MIN_COMPACTION_LAG` if that is less.
const MIN_LAG: Duration = Duration::from_secs(600);

/// Asks for all that is to be known of the topic; `answered` is called after each question, of which none takes longer than
/// twice [`QUERY_TIMEOUT`].
pub(super) fn open(
    queries: &BaseConsumer<LastProblem>,
    settings: &KafkaSettings,
    answered: &dyn Fn(),
) -> Result<LogInfo, OpenError> {
    let brokers = &settings.brokers;
    let unavailable = |what: &str, error: &dyn std::fmt::Display| {
        OpenError::Unavailable(format!("Kafka at {brokers} (BROKER_LIST) {what}: {error}"))
    };
    let partitions = match partitions(queries, &settings.topic) {
        Ok(Some(partitions)) => partitions,
        Ok(None) => create(queries, settings, answered)?,
        Err(error) => {
            // librdkafka's error says that no broker was reached; its log says why.
            let problem = queries.context().text();
            let why: &dyn std::fmt::Display = if problem.is_empty() { &error } else { &problem };
            return Err(unavailable("does not answer", why));
        }
    };
    answered();
    let deadline = Instant::now() + QUERY_TIMEOUT;
    let compaction_lag = ask_until(deadline, answered, || check(queries, settings))?;
    let Described { topic_id, .. } = ask_until(deadline, answered, || {
        events::describe(queries, &settings.topic, QUERY_TIMEOUT)
            .map_err(|error| unavailable("did not describe the topic", &error))
    })?;
    let cluster = ask_until(deadline, answered, || {
        let cluster = queries.client().fetch_cluster_id(QUERY_TIMEOUT);
        cluster.ok_or_else(|| unavailable("does not answer", &"it did not tell its cluster id"))
    })?;
    let ask = |at, failed| {
        ask_until(deadline, answered, || {
            offsets(queries, &settings.topic, 0..partitions, at, QUERY_TIMEOUT)
                .map_err(|error| unavailable(failed, &error))
        })
    };
    let starts = ask(Offset::Beginning, "did not tell where the topic starts")?;
    let ends = ask(Offset::End, "did not tell where the topic ends")?;
    let identity = LogIdentity { cluster, topic: settings.topic.clone(), topic_id };
    Ok(LogInfo {
        identity,
        partitions: starts.into_iter().zip(ends).map(|(start, end)| start..end).collect(),
        compaction_lag,
    })
}

/// Asks again until the answer is good, or will not become so, or comes after the deadline: brokers learn of a new topic, and which of them
/// leads its partitions, one after the other, and refuse questions about it until they do. `answered` is called after each question.
fn ask_until<T>(
    deadline: Instant,
    answered: &dyn Fn(),
    question: impl Fn() -> Result<T, OpenError>,
) -> Result<T, OpenError> {
    loop {
        let answer = question();
        answered();
        match answer {
            Err(OpenError::Unavailable(_)) if Instant::now() < deadline => std::thread::sleep(ASK_AGAIN),
            answer => return answer,
        }
    }
}

/// Whether it is still that topic of that cluster, and has no more partitions, unless Kafka does not say.
pub(super) fn is_unchanged(
    queries: &BaseConsumer<LastProblem>,
    identity: &LogIdentity,
    partitions: usize,
    timeout: Duration,
) -> bool {
    // Its answer brings the cluster's id up to date, too.
    let Ok(found) = events::describe(queries, &identity.topic, timeout) else { return true };
    let Some(cluster) = queries.client().fetch_cluster_id(timeout) else { return true };
    let now = LogIdentity { cluster, topic: identity.topic.clone(), topic_id: found.topic_id };
    identity.fits(&now) && found.partitions <= partitions
}

/// The number of partitions; `None` if there is no such topic.
fn partitions(queries: &BaseConsumer<LastProblem>, topic: &str) -> KafkaResult<Option<usize>> {
    let metadata = queries.fetch_metadata(Some(topic), QUERY_TIMEOUT)?;
    let Some(found) = metadata.topics().iter().find(|t| t.name() == topic) else { return Ok(None) };
    match found.error().map(RDKafkaErrorCode::from) {
        None if found.partitions().is_empty() => Ok(None),
        None => Ok(Some(found.partitions().len())),
        Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => Ok(None),
        Some(code) => Err(KafkaError::MetadataFetch(code)),
    }
}

/// Creates the topic, and waits until it is known: the controller knows it first, the other brokers a moment later. Returns the number of
/// its partitions, which are another node's if that was faster.
fn create(
    queries: &BaseConsumer<LastProblem>,
    settings: &KafkaSettings,
    answered: &dyn Fn(),
) -> Result<usize, OpenError> {
    request_creation(queries, settings)?;
    answered();
    let topic = &settings.topic;
    ask_until(Instant::now() + QUERY_TIMEOUT, answered, || match partitions(queries, topic) {
        Ok(Some(partitions)) => Ok(partitions),
        Ok(None) => {
            Err(OpenError::Unavailable(format!("the new topic '{topic}' is not known everywhere yet")))
        }
        Err(error) => {
            Err(OpenError::Unavailable(format!("the new topic '{topic}' is not known yet: {error}")))
        }
    })
}

/// Asks Kafka to create the topic.
fn request_creation(queries: &BaseConsumer<LastProblem>, settings: &KafkaSettings) -> Result<(), OpenError> {
    let topic = &settings.topic;
    let max_message_bytes = (settings.max_record_bytes + HEADROOM_BYTES).to_string();
    let delete_retention = settings.delete_retention.as_millis().to_string();
    let min_compaction_lag = settings.min_compaction_lag.as_millis().to_string();
    let replication = TopicReplication::Fixed(settings.replication_factor);
    let new = NewTopic::new(topic, settings.partitions, replication)
        .set("cleanup.policy", "compact")
        .set("message.timestamp.type", "LogAppendTime")
        .set("delete.retention.ms", &delete_retention)
        .set("min.compaction.lag.ms", &min_compaction_lag)
        .set("max.message.bytes", &max_message_bytes);
    let admin = admin(queries, settings)?;
    let answer =
        block_on(admin.create_topics([&new], &AdminOptions::new().operation_timeout(Some(QUERY_TIMEOUT))));
    match answer.map(|mut results| results.pop()) {
        Ok(Some(Ok(_))) => {
            tracing::info!(topic, partitions = settings.partitions, "created the compacted topic");
            Ok(())
        }
        // Another node was faster.
        Ok(Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists)))) => Ok(()),
        Ok(Some(Err((_, code)))) => Err(creation_error(settings, code)),
        Ok(None) => Err(OpenError::Unavailable(format!("Kafka did not say whether it created '{topic}'"))),
        Err(error) => {
            Err(OpenError::Unavailable(format!("the topic '{topic}' could not be created yet: {error}")))
        }
    }
}

/// Why Kafka did not create the topic, by its code: whether that may pass, or must be mended.
fn creation_error(settings: &KafkaSettings, code: RDKafkaErrorCode) -> OpenError {
    let topic = &settings.topic;
    match code {
        RDKafkaErrorCode::InvalidReplicationFactor
        | RDKafkaErrorCode::InvalidPartitions
        | RDKafkaErrorCode::InvalidTopic
        | RDKafkaErrorCode::TopicAuthorizationFailed
        | RDKafkaErrorCode::ClusterAuthorizationFailed
        | RDKafkaErrorCode::PolicyViolation => OpenError::Refused(format!(
            "the topic '{topic}' (KAFKA_TOPIC) is missing and Kafka refuses to create it: {code}; mend TOPIC_PARTITIONS, TOPIC_REPLICATION_FACTOR or the permissions, or create it by hand:\n  {}",
            create_command(settings)
        )),
        code => OpenError::Unavailable(format!("the topic '{topic}' could not be created yet: {code}")),
    }
}

fn create_command(settings: &KafkaSettings) -> String {
    let KafkaSettings { brokers, topic, partitions, .. } = settings;
    let (retention, lag) = (settings.delete_retention.as_millis(), settings.min_compaction_lag.as_millis());
    format!(
        "kafka-topics.sh --bootstrap-server {brokers} --create --topic {topic} --partitions {partitions} --config cleanup.policy=compact --config message.timestamp.type=LogAppendTime --config delete.retention.ms={retention} --config min.compaction.lag.ms={lag}"
    )
}

type Config = HashMap<String, String>;

/// What the topic is could not be asked, and may be in a moment.
fn not_checked(topic: &str, why: &dyn std::fmt::Display) -> OpenError {
    OpenError::Unavailable(format!("the topic '{topic}' can't be checked yet: {why}"))
}

/// The topic's settings, defaults included.
fn config(queries: &BaseConsumer<LastProblem>, settings: &KafkaSettings) -> Result<Config, OpenError> {
    let topic = &settings.topic;
    match events::describe_config(queries, topic, QUERY_TIMEOUT) {
        Ok(Ok(config)) => Ok(config),
        Ok(Err(
            code
            @ (RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::ClusterAuthorizationFailed),
        )) => Err(OpenError::Refused(format!(
            "the configuration of the topic '{topic}' can't be read ({code}); allow DescribeConfigs on it"
        ))),
        Ok(Err(code)) => Err(not_checked(topic, &code)),
        Err(error) => Err(not_checked(topic, &error)),
    }
}

/// Whether the topic keeps what trimming rests on: time to repair before compaction acts, tombstones for as long as a node
/// may be away, and timestamps that tell how old a record is. `read` is the number of partitions that this node reads: a
/// delete in one may be all that hides a record in another.
pub(super) fn check_trimming(
    queries: &BaseConsumer<LastProblem>,
    settings: &KafkaSettings,
    read: usize,
) -> Result<(), String> {
    let config = config_if_all_is_read(queries, settings, read).map_err(|error| error.to_string())?;
    meets(&config, settings, &trimming_needs(settings))
}

/// Whether the topic keeps what conditional writes rest on: as [`check_trimming`], but for tombstones. `read` is the number of partitions
/// that this node reads: the key's record may be in another.
pub(super) fn check_conditional_writes(
    queries: &BaseConsumer<LastProblem>,
    settings: &KafkaSettings,
    read: usize,
) -> Result<(), OpenError> {
    let config = config_if_all_is_read(queries, settings, read)?;
    meets(&config, settings, &conditional_write_needs(settings)).map_err(OpenError::Refused)
}

/// The topic's settings, if this node reads all of it.
fn config_if_all_is_read(
    queries: &BaseConsumer<LastProblem>,
    settings: &KafkaSettings,
    read: usize,
) -> Result<Config, OpenError> {
    let topic = &settings.topic;
    match partitions(queries, topic) {
        Ok(Some(found)) if read == found => config(queries, settings),
        Ok(Some(found)) => Err(OpenError::Unavailable(format!(
            "the topic '{topic}' has {found} partitions and this node reads {read} so far"
        ))),
        Ok(None) => Err(OpenError::Unavailable(format!("the topic '{topic}' is missing"))),
        Err(error) => Err(not_checked(topic, &error)),
    }
}

/// What something needs of a setting of the topic.
struct Need {
    name: &'static str,
    value: Needed,
    why: &'static str,
}

enum Needed {
    Exactly(&'static str),
    /// So many ms.
    AtLeast(u128),
}

fn conditional_write_needs(settings: &KafkaSettings) -> [Need; 3] {
    [
        Need {
            name: "cleanup.policy",
            value: Needed::Exactly("compact"),
            why: "Kafka must only remove what a newer record replaces",
        },
        Need {
            name: "message.timestamp.type",
            value: Needed::Exactly("LogAppendTime"),
            why: "writers' clocks don't tell how old a record is",
        },
        Need {
            name: "min.compaction.lag.ms",
            value: Needed::AtLeast(settings.min_compaction_lag.min(MIN_LAG).as_millis()),
            why: "a write must not be compacted away before it is repaired",
        },
    ]
}

fn trimming_needs(settings: &KafkaSettings) -> [Need; 4] {
    let [policy, timestamps, lag] = conditional_write_needs(settings);
    let retention = Need {
        name: "delete.retention.ms",
        value: Needed::AtLeast(settings.delete_retention.as_millis()),
        why: "every node must see a tombstone before it goes",
    };
    [policy, timestamps, lag, retention]
}

/// Whether the topic's settings are what is needed; what is not, and how to mend it.
fn meets(config: &Config, settings: &KafkaSettings, needs: &[Need]) -> Result<(), String> {
    let KafkaSettings { topic, brokers, .. } = settings;
    for Need { name, value, why } in needs {
        let found = config.get(*name).map(String::as_str).unwrap_or_default();
        let (met, wanted) = match value {
            Needed::Exactly(wanted) => (found == *wanted, (*wanted).to_owned()),
            // One that does not say so is taken to have none.
            Needed::AtLeast(ms) => (found.parse().is_ok_and(|found: u128| found >= *ms), ms.to_string()),
        };
        if !met {
            return Err(format!(
                "the topic '{topic}' has {name}={found}, and {why}; mend it:\n  kafka-configs.sh --bootstrap-server {brokers} --alter --entity-type topics --entity-name {topic} --add-config {name}={wanted}"
            ));
        }
    }
    Ok(())
}

/// Refuses a topic that would lose keys. Returns how long its records are safe from compaction.
fn check(queries: &BaseConsumer<LastProblem>, settings: &KafkaSettings) -> Result<Duration, OpenError> {
    let KafkaSettings { topic, brokers, .. } = settings;
    let config = match config(queries, settings) {
        Err(OpenError::Refused(problem)) if settings.allow_uncompacted => {
            tracing::warn!("{problem}; accepted by ALLOW_UNCOMPACTED_TOPIC");
            return Ok(Duration::ZERO);
        }
        config => config?,
    };
    let value = |name: &str| config.get(name).cloned().unwrap_or_default();
    let policy = value("cleanup.policy");
    if policy != "compact" {
        let problem = format!(
            "the topic '{topic}' (KAFKA_TOPIC) has cleanup.policy={policy}, so Kafka will delete keys that are still needed"
        );
        if !settings.allow_uncompacted {
            return Err(OpenError::Refused(format!(
                "{problem}; compact it:\n  kafka-configs.sh --bootstrap-server {brokers} --alter --entity-type topics --entity-name {topic} --add-config cleanup.policy=compact\nor start with --allow-uncompacted-topic (ALLOW_UNCOMPACTED_TOPIC=true) to accept the loss"
            )));
        }
        tracing::warn!("{problem}; accepted by ALLOW_UNCOMPACTED_TOPIC");
    }
    if value("message.timestamp.type") != "LogAppendTime" {
        tracing::warn!(
            "the topic '{topic}' has message.timestamp.type=CreateTime: write timestamps come from the writers' clocks and may run against the order of the log; set it to LogAppendTime"
        );
    }
    if value("delete.retention.ms").parse().is_ok_and(|ms: u128| ms < settings.delete_retention.as_millis()) {
        tracing::warn!(
            "the topic '{topic}' keeps tombstones for delete.retention.ms={} only, DELETE_RETENTION is {} ms: a key that another writer deleted with a tombstone can come back on a node that was away for longer",
            value("delete.retention.ms"),
            settings.delete_retention.as_millis()
        );
    }
    if value("max.message.bytes").parse().is_ok_and(|bytes: usize| bytes < settings.max_record_bytes) {
        tracing::warn!(
            "the topic '{topic}' takes records of at most max.message.bytes={} while MAX_VALUE_BYTES asks for {}; larger values will be refused",
            value("max.message.bytes"),
            settings.max_record_bytes
        );
    }
    // One that does not say so is taken to have none.
    Ok(Duration::from_millis(value("min.compaction.lag.ms").parse().unwrap_or_default()))
}

/// A client for one question, with the token that `queries` has now.
fn admin(
    queries: &BaseConsumer<LastProblem>,
    settings: &KafkaSettings,
) -> Result<AdminClient<LastProblem>, OpenError> {
    let tokens = queries.context().tokens();
    let problem = LastProblem::new(tokens.cloned());
    let admin = AdminClient::from_config_and_context(&client_config(settings), problem)
        .map_err(|error| OpenError::Refused(error.to_string()))?;
    if let Some(tokens) = tokens {
        tokens.supply_once(admin.inner());
    }
    Ok(admin)
}

/// The first (`Offset::Beginning`) or next (`Offset::End`) offset of each of these partitions, in one request a broker; those of others may be away.
pub(super) fn offsets(
    queries: &BaseConsumer<LastProblem>,
    topic: &str,
    partitions: Range<usize>,
    at: Offset,
    timeout: Duration,
) -> KafkaResult<Vec<i64>> {
    let mut ask = TopicPartitionList::new();
    for partition in partitions.clone() {
        // ListOffsets takes -1 and -2 for the end and the beginning in the place of a time.
        ask.add_partition_offset(topic, i32::try_from(partition).unwrap_or(i32::MAX), at)?;
    }
    let answer = queries.offsets_for_times(ask, timeout)?;
    let mut offsets = vec![None; partitions.len()];
    for element in answer.elements() {
        element.error()?;
        let index = usize::try_from(element.partition()).ok();
        let index = index.and_then(|partition| partition.checked_sub(partitions.start));
        let place = index.and_then(|index| offsets.get_mut(index));
        if let (Some(place), Some(offset)) = (place, element.offset().to_raw().filter(|offset| *offset >= 0))
        {
            *place = Some(offset);
        }
    }
    offsets
        .into_iter()
        .map(|offset| offset.ok_or(KafkaError::OffsetFetch(RDKafkaErrorCode::UnknownPartition)))
        .collect()
}

/// The offset of each partition's first batch that has something later than `times[p]`, in one request a broker.
pub(super) fn first_offsets_after(
    queries: &BaseConsumer<LastProblem>,
    topic: &str,
    times: &[Option<LogTime>],
    timeout: Duration,
) -> KafkaResult<Vec<Option<i64>>> {
    let mut ask = TopicPartitionList::new();
    for (partition, time) in (0..).zip(times) {
        // Nothing is later than the last moment; and times below 0 mean something else to a broker.
        if let Some(after) = time.and_then(|time| time.ms().checked_add(1)) {
            ask.add_partition_offset(topic, partition, Offset::Offset(after.max(0)))?;
        }
    }
    let mut found = vec![None; times.len()];
    if ask.count() == 0 {
        return Ok(found);
    }
    for element in queries.offsets_for_times(ask, timeout)?.elements() {
        element.error()?;
        let place = usize::try_from(element.partition()).ok().and_then(|partition| found.get_mut(partition));
        if let Some(place) = place {
            *place = element.offset().to_raw().filter(|offset| *offset >= 0);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::DefaultProducerContext;
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

    use super::*;

    #[test]
    fn a_leader_that_does_not_know_yet_that_it_leads_is_asked_again() {
        let brokers: MockCluster<'_, DefaultProducerContext> = MockCluster::new(1).expect("brokers");
        brokers.create_topic("t", 1, 1).expect("a topic");
        let settings = crate::log::kafka::tests::settings(&brokers.bootstrap_servers());
        let queries: BaseConsumer<LastProblem> =
            BaseConsumer::from_config_and_context(&client_config(&settings), LastProblem::new(None))
                .expect("a client");
        let refused = RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION;
        let asked = Cell::new(0);
        let ask = |deadline| {
            ask_until(deadline, &|| asked.set(asked.get() + 1), || {
                offsets(&queries, "t", 0..1, Offset::End, QUERY_TIMEOUT)
                    .map_err(|error| OpenError::Unavailable(error.to_string()))
            })
        };
        let now = Instant::now();
        brokers.request_errors(RDKafkaApiKey::ListOffsets, &[refused; 100]);
        let error = ask(now).expect_err("it is too late to ask again").to_string();
        assert!(error.contains("NotLeaderForPartition"), "{error}");
        assert_eq!(asked.replace(0), 1);
        brokers.clear_request_errors(RDKafkaApiKey::ListOffsets);
        brokers.request_errors(RDKafkaApiKey::ListOffsets, &[refused; 4]);
        assert_eq!(ask(now + Duration::from_secs(60)).expect("it knows at last"), [0]);
        assert!(asked.get() > 1, "{asked:?}");
    }

    #[test]
    fn what_must_be_mended_is_not_asked_again() {
        let answer = ask_until(Instant::now() + Duration::from_secs(60), &|| (), || {
            Err::<(), _>(OpenError::Refused("no".into()))
        });
        assert!(matches!(answer, Err(OpenError::Refused(_))));
    }

    #[test]
    fn a_topic_without_time_to_repair_or_tombstones_is_not_trimmed() {
        let settings = crate::log::kafka::tests::settings("kafka:9092");
        let good = [
            ("cleanup.policy", "compact"),
            ("message.timestamp.type", "LogAppendTime"),
            ("min.compaction.lag.ms", "600000"),
            ("delete.retention.ms", "3600000"),
        ];
        let config = |changed: &[(&str, &str)]| -> Config {
            good.iter().chain(changed).map(|(name, value)| ((*name).into(), (*value).into())).collect()
        };
        let trimmable =
            |config: &Config, settings: &KafkaSettings| meets(config, settings, &trimming_needs(settings));
        assert_eq!(trimmable(&config(&[]), &settings), Ok(()));
        for (name, value, wanted) in [
            ("cleanup.policy", "compact,delete", "compact"),
            ("message.timestamp.type", "CreateTime", "LogAppendTime"),
            ("min.compaction.lag.ms", "599999", "600000"),
            ("min.compaction.lag.ms", "", "600000"),
            ("delete.retention.ms", "3599999", "3600000"),
        ] {
            let error = trimmable(&config(&[(name, value)]), &settings).expect_err(name);
            assert!(error.contains(&format!("{name}={value}")), "{error}");
            assert!(error.ends_with(&format!("--add-config {name}={wanted}")), "{error}");
        }
        let short = KafkaSettings { min_compaction_lag: Duration::from_secs(1), ..settings };
        assert_eq!(trimmable(&config(&[("min.compaction.lag.ms", "1000")]), &short), Ok(()));
    }

    #[test]
    fn a_topic_without_time_to_repair_takes_no_conditional_writes() {
        let settings = crate::log::kafka::tests::settings("kafka:9092");
        let good = [
            ("cleanup.policy", "compact"),
            ("message.timestamp.type", "LogAppendTime"),
            ("min.compaction.lag.ms", "600000"),
            // Tombstones don't matter.
            ("delete.retention.ms", "1"),
        ];
        let check = |changed: &[(&str, &str)]| {
            let config: Config =
                good.iter().chain(changed).map(|(name, value)| ((*name).into(), (*value).into())).collect();
            meets(&config, &settings, &conditional_write_needs(&settings))
        };
        assert_eq!(check(&[]), Ok(()));
        for (name, value) in [
            ("cleanup.policy", "compact,delete"),
            ("message.timestamp.type", "CreateTime"),
            ("min.compaction.lag.ms", "599999"),
            ("min.compaction.lag.ms", ""),
        ] {
            let error = check(&[(name, value)]).expect_err(name);
            assert!(error.contains(&format!("{name}={value}, and ")), "{error}");
            assert!(error.contains("mend it:") && error.contains("--add-config"), "{error}");
        }
    }
}
