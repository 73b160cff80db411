//! The topic as others see it: read and written with rdkafka and the `apache-avro` crate, none of the node's code.

use std::collections::HashMap;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use apache_avro::types::Value as Avro;
use apache_avro::{Schema, from_avro_datum, to_avro_datum};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use rdkafka::admin::{
    AdminClient, AdminOptions, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::http::Position;

const PATIENCE: Duration = Duration::from_secs(30);

/// The record of the contract, as the original system's schema has it.
pub const SCHEMA: &str = r#"{
    "type": "record", "name": "KeyValueRawAvro", "namespace": "com.grayscaleconsulting.bitacora.rpc.avro",
    "fields": [
        {"name": "key", "type": "string"},
        {"name": "value", "type": "string"},
        {"name": "timestamp", "type": "long"},
        {"name": "source", "type": "int"},
        {"name": "ttl", "type": "long"},
        {"name": "uuid", "type": "string"}
    ]
}"#;

static PARSED: LazyLock<Schema> = LazyLock::new(|| Schema::parse_str(SCHEMA).expect("the schema is valid"));

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    pub key: String,
    pub value: String,
    pub timestamp: i64,
    pub source: i32,
    pub ttl: i64,
    pub uuid: String,
}

impl KeyValue {
    pub fn new(key: &str, value: &str) -> KeyValue {
        KeyValue {
            key: key.to_string(),
            value: value.to_string(),
            timestamp: now_ms(),
            source: 3,
            ttl: 0,
            uuid: uuid::Uuid::new_v4().to_string(),
        }
    }

    pub fn to_avro(&self) -> Vec<u8> {
        let record = Avro::Record(vec![
            ("key".into(), Avro::String(self.key.clone())),
            ("value".into(), Avro::String(self.value.clone())),
            ("timestamp".into(), Avro::Long(self.timestamp)),
            ("source".into(), Avro::Int(self.source)),
            ("ttl".into(), Avro::Long(self.ttl)),
            ("uuid".into(), Avro::String(self.uuid.clone())),
        ]);
        to_avro_datum(&PARSED, record).expect("the record fits its schema")
    }

    /// Decodes a raw datum; bytes that are left over are an error.
    pub fn from_avro(bytes: &[u8]) -> Result<KeyValue> {
        let mut rest = bytes;
        let decoded = from_avro_datum(&PARSED, &mut rest, None).context("decoding the Avro datum")?;
        ensure!(rest.is_empty(), "{} bytes are left after the datum", rest.len());
        let Avro::Record(fields) = decoded else { bail!("not a record: {decoded:?}") };
        let fields: HashMap<String, Avro> = fields.into_iter().collect();
        let string = |name: &str| match fields.get(name) {
            Some(Avro::String(value)) => Ok(value.clone()),
            other => bail!("{name} is {other:?}, not a string"),
        };
        let long = |name: &str| match fields.get(name) {
            Some(Avro::Long(value)) => Ok(*value),
            other => bail!("{name} is {other:?}, not a long"),
        };
        let source = match fields.get("source") {
            Some(Avro::Int(value)) => *value,
            other => bail!("source is {other:?}, not an int"),
        };
        Ok(KeyValue {
            key: string("key")?,
            value: string("value")?,
            timestamp: long("timestamp")?,
            source,
            ttl: long("ttl")?,
            uuid: string("uuid")?,
        })
    }
}

pub fn now_ms() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    i64::try_from(now.expect("the clock is after 1970").as_millis()).expect("milliseconds fit in 63 bits")
}

/// Java's `Utils.murmur2` over the key's bytes, and its partitioner over that.
pub fn java_partition(key: &[u8], partitions: i32) -> i32 {
    ((murmur2(key) & 0x7fff_ffff) % partitions as u32) as i32
}

pub fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut h = 0x9747_b28c ^ data.len() as u32;
    let (words, tail) = data.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> 24;
        h = h.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    for (i, byte) in tail.iter().enumerate() {
        h ^= u32::from(*byte) << (8 * i);
    }
    if !tail.is_empty() {
        h = h.wrapping_mul(M);
    }
    h ^= h >> 13;
    h = h.wrapping_mul(M);
    h ^ (h >> 15)
}

/// A record as Kafka has it.
#[derive(Debug, Clone)]
pub struct Record {
    pub position: Position,
    /// Kafka's timestamp.
    pub timestamp: i64,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Vec<u8>)>,
}

impl Record {
    pub fn key_text(&self) -> String {
        String::from_utf8_lossy(self.key.as_deref().unwrap_or_default()).into_owned()
    }
}

/// A topic on a broker.
#[derive(Clone)]
pub struct Topic {
    pub brokers: String,
    pub name: String,
}

impl Topic {
    fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers);
        config
    }

    fn admin(&self) -> Result<AdminClient<DefaultClientContext>> {
        self.config().create().context("creating an admin client")
    }

    pub async fn create(&self, partitions: i32, config: &[(&str, &str)]) -> Result<()> {
        let mut topic = NewTopic::new(&self.name, partitions, TopicReplication::Fixed(1));
        for (name, value) in config {
            topic = topic.set(name, value);
        }
        let options = AdminOptions::new().operation_timeout(Some(PATIENCE));
        let results = self.admin()?.create_topics([&topic], &options).await.context("creating the topic")?;
        for result in results {
            result.map_err(|(topic, error)| anyhow::anyhow!("creating {topic}: {error}"))?;
        }
        Ok(())
    }

    /// Deletes it, and waits until the broker has forgotten it, or somebody has created it again.
    pub async fn delete(&self) -> Result<()> {
        let options = AdminOptions::new().operation_timeout(Some(PATIENCE));
        for result in
            self.admin()?.delete_topics(&[&self.name], &options).await.context("deleting the topic")?
        {
            result.map_err(|(topic, error)| anyhow::anyhow!("deleting {topic}: {error}"))?;
        }
        Ok(())
    }

    /// Gives it more partitions: so many in total.
    pub async fn grow(&self, partitions: usize) -> Result<()> {
        let options = AdminOptions::new().operation_timeout(Some(PATIENCE));
        let more = NewPartitions::new(&self.name, partitions);
        for result in self.admin()?.create_partitions([&more], &options).await.context("adding partitions")? {
            result.map_err(|(topic, error)| anyhow::anyhow!("adding partitions to {topic}: {error}"))?;
        }
        Ok(())
    }

    /// Moves the start of each of so many partitions to its end.
    pub async fn delete_records(&self, partitions: i32) -> Result<()> {
        let mut ends = TopicPartitionList::new();
        for partition in 0..partitions {
            ends.add_partition_offset(&self.name, partition, Offset::End)?;
        }
        let options = AdminOptions::new().operation_timeout(Some(PATIENCE));
        let done = self.admin()?.delete_records(&ends, &options).await.context("deleting records")?;
        done.elements().iter().try_for_each(|element| element.error()).context("deleting records")
    }

    /// The topic's settings, defaults included.
    pub async fn describe(&self) -> Result<HashMap<String, String>> {
        let options = AdminOptions::new().request_timeout(Some(PATIENCE));
        let specifier = ResourceSpecifier::Topic(&self.name);
        let results = self.admin()?.describe_configs([&specifier], &options).await?;
        let resource = results.into_iter().next().context("no answer about the topic")?;
        let resource = resource.map_err(|error| anyhow::anyhow!("describing {}: {error}", self.name))?;
        Ok(resource.entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?))).collect())
    }

    /// The high watermark of each of so many partitions.
    pub async fn high_watermarks(&self, partitions: i32) -> Result<Vec<i64>> {
        let topic = self.clone();
        let ask = move || {
            let consumer: BaseConsumer = topic.config().create().context("creating a consumer")?;
            let high = |partition| anyhow::Ok(consumer.fetch_watermarks(&topic.name, partition, PATIENCE)?.1);
            (0..partitions).map(high).collect::<Result<_>>().context("asking for the high watermarks")
        };
        tokio::task::spawn_blocking(ask).await.context("the consumer panicked")?
    }

    /// The broker that leads a partition, as a broker of [`Topic::brokers`] says.
    pub async fn leader(&self, partition: i32) -> Result<i32> {
        let topic = self.clone();
        let ask = move || {
            let consumer: BaseConsumer = topic.config().create().context("creating a consumer")?;
            let metadata =
                consumer.fetch_metadata(Some(&topic.name), PATIENCE).context("reading metadata")?;
            let partitions = metadata.topics().iter().flat_map(|topic| topic.partitions());
            let found = partitions.into_iter().find(|found| found.id() == partition);
            let leader = found.with_context(|| format!("there is no partition {partition}"))?.leader();
            ensure!(leader >= 0, "partition {partition} has no leader");
            Ok(leader)
        };
        tokio::task::spawn_blocking(ask).await.context("the consumer panicked")?
    }

    /// Reads every partition from its start to the high watermark of now, in order.
    pub async fn read_all(&self) -> Result<Vec<Record>> {
        let topic = self.clone();
        tokio::task::spawn_blocking(move || topic.read_all_blocking()).await.context("the reader panicked")?
    }

    fn read_all_blocking(&self) -> Result<Vec<Record>> {
        let consumer: BaseConsumer = self
            .config()
            .set("group.id", "e2e-reader")
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("check.crcs", "true")
            .create()
            .context("creating a consumer")?;
        let metadata = consumer.fetch_metadata(Some(&self.name), PATIENCE).context("reading metadata")?;
        let partitions: Vec<i32> = metadata
            .topics()
            .iter()
            .filter(|topic| topic.name() == self.name)
            .flat_map(|topic| topic.partitions().iter().map(|partition| partition.id()))
            .collect();
        ensure!(!partitions.is_empty(), "the topic {} does not exist", self.name);
        let mut assignment = TopicPartitionList::new();
        for partition in &partitions {
            assignment.add_partition_offset(&self.name, *partition, Offset::Beginning)?;
        }
        consumer.assign(&assignment).context("assigning")?;
        let mut records = Vec::new();
        let mut open: Vec<i32> = partitions;
        let end = Instant::now() + PATIENCE;
        while !open.is_empty() {
            ensure!(Instant::now() < end, "partitions {open:?} did not end within {PATIENCE:?}");
            match consumer.poll(Duration::from_millis(200)) {
                None => {}
                Some(Err(KafkaError::PartitionEOF(partition))) => open.retain(|p| *p != partition),
                Some(Err(error)) => return Err(error).context("reading the topic"),
                Some(Ok(message)) => records.push(Record {
                    position: Position { partition: message.partition(), offset: message.offset() },
                    timestamp: message.timestamp().to_millis().unwrap_or(-1),
                    key: message.key().map(<[u8]>::to_vec),
                    value: message.payload().map(<[u8]>::to_vec),
                    headers: message.headers().map_or_else(Vec::new, |headers| {
                        let owned = |h: rdkafka::message::Header<'_, &[u8]>| {
                            (h.key.to_string(), h.value.unwrap_or_default().to_vec())
                        };
                        headers.iter().map(owned).collect()
                    }),
                }),
            }
        }
        Ok(records)
    }

    /// What a consumer group has committed: the next offset of each partition, where it has one.
    pub async fn committed(&self, group: &str) -> Result<HashMap<i32, i64>> {
        let (topic, group) = (self.clone(), group.to_string());
        let ask = move || {
            let consumer: BaseConsumer =
                topic.config().set("group.id", &group).create().context("creating a consumer")?;
            let metadata =
                consumer.fetch_metadata(Some(&topic.name), PATIENCE).context("reading metadata")?;
            let mut partitions = TopicPartitionList::new();
            for partition in metadata.topics().iter().flat_map(|topic| topic.partitions()) {
                partitions.add_partition(&topic.name, partition.id());
            }
            let committed =
                consumer.committed_offsets(partitions, PATIENCE).context("asking for the offsets")?;
            let offsets = committed.elements().into_iter().filter_map(|element| match element.offset() {
                Offset::Offset(offset) => Some((element.partition(), offset)),
                _ => None,
            });
            anyhow::Ok(offsets.collect())
        };
        tokio::task::spawn_blocking(ask).await.context("the consumer panicked")?
    }

    /// Reads so many records from its beginning, as a bare consumer does, and keeps none. Returns the bytes of their values.
    /// Blocks.
    pub fn read_and_discard(&self, partitions: i32, records: usize) -> Result<usize> {
        self.read_and_discard_from(partitions, records, || {})
    }

    /// As [`Topic::read_and_discard`]; calls `first` when the first record has come.
    pub fn read_and_discard_from(
        &self,
        partitions: i32,
        records: usize,
        first: impl FnOnce(),
    ) -> Result<usize> {
        const RECORD_PATIENCE: Duration = Duration::from_secs(120);
        let consumer: BaseConsumer =
            self.config().set("group.id", "bare-consumer").set("enable.auto.commit", "false").create()?;
        let mut assignment = TopicPartitionList::new();
        for partition in 0..partitions {
            assignment.add_partition_offset(&self.name, partition, Offset::Beginning)?;
        }
        consumer.assign(&assignment)?;
        let (mut bytes, mut first) = (0, Some(first));
        for _ in 0..records {
            let message = consumer.poll(RECORD_PATIENCE).context("the topic ended early")??;
            bytes += message.payload_len();
            if let Some(first) = first.take() {
                first();
            }
        }
        Ok(bytes)
    }

    /// Writes so many records, with up to `under_way` of them not yet acknowledged.
    pub async fn fill(
        &self,
        count: usize,
        under_way: usize,
        record: impl Fn(usize) -> KeyValue,
    ) -> Result<()> {
        let writer = self.writer()?;
        let (writer, record) = (&writer, &record);
        let writes = stream::iter(0..count).map(|i| async move { writer.write_record(&record(i)).await });
        writes.buffer_unordered(under_way).try_for_each(|_| async { Ok(()) }).await
    }

    /// A producer as another program would have it, with Java's partitioner.
    pub fn writer(&self) -> Result<Writer> {
        let producer = self
            .config()
            .set("partitioner", "murmur2_random")
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("linger.ms", "5")
            .set("queue.buffering.max.messages", "500000")
            .set("message.max.bytes", "2000000")
            .create()
            .context("creating a producer")?;
        Ok(Writer { producer, topic: self.name.clone() })
    }
}

pub struct Writer {
    producer: FutureProducer,
    topic: String,
}

impl Writer {
    /// Writes any bytes and returns where they are; `partition: None` leaves it to the partitioner.
    pub async fn write(
        &self,
        partition: Option<i32>,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
    ) -> Result<Position> {
        let mut record = FutureRecord::<[u8], [u8]>::to(&self.topic);
        record.partition = partition;
        record.key = key;
        record.payload = value;
        self.send(record).await
    }

    /// As [`Writer::write`], with a header.
    pub async fn write_with(
        &self,
        partition: i32,
        key: &[u8],
        value: Option<&[u8]>,
        (name, content): (&str, &str),
    ) -> Result<Position> {
        let header = Header { key: name, value: Some(content) };
        let mut record = FutureRecord::<[u8], [u8]>::to(&self.topic).partition(partition).key(key);
        record.payload = value;
        self.send(record.headers(OwnedHeaders::new().insert(header))).await
    }

    /// As [`Writer::write`], with a timestamp of the writer's own (ms; 0 for now) and perhaps a header.
    pub async fn write_at(
        &self,
        timestamp: i64,
        partition: Option<i32>,
        key: &[u8],
        value: Option<&[u8]>,
        header: Option<(&str, &str)>,
    ) -> Result<Position> {
        let mut record = FutureRecord::<[u8], [u8]>::to(&self.topic).key(key).timestamp(timestamp);
        (record.partition, record.payload) = (partition, value);
        record.headers =
            header.map(|(key, value)| OwnedHeaders::new().insert(Header { key, value: Some(value) }));
        self.send(record).await
    }

    async fn send(&self, record: FutureRecord<'_, [u8], [u8]>) -> Result<Position> {
        let delivery = self.producer.send(record, PATIENCE).await;
        let delivery = delivery.map_err(|(error, _)| error).context("writing to the topic")?;
        Ok(Position { partition: delivery.partition, offset: delivery.offset })
    }

    pub async fn write_record(&self, record: &KeyValue) -> Result<Position> {
        self.write(None, Some(record.key.as_bytes()), Some(&record.to_avro())).await
    }
}
