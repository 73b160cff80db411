//! What bare Kafka takes for a record: a baseline for benchmarks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tokio::sync::mpsc;

use crate::topic::{KeyValue, Topic};

/// Far above what any record takes, also on a busy machine.
const DEADLINE: Duration = Duration::from_secs(20);

/// Each from the hand-over of a record to the producer.
#[derive(Debug, Clone, Copy)]
pub struct Delays {
    /// Until the producer was told that it is in the log.
    pub acknowledged: Duration,
    /// Until the consumer had it.
    pub consumed: Duration,
}

/// A producer and a consumer with the settings of a node's, on a topic of their own.
pub struct BareKafka {
    producer: FutureProducer,
    topic: String,
    partitions: i32,
    value: Vec<u8>,
    /// When the consumer had each record.
    arrivals: mpsc::UnboundedReceiver<Instant>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl BareKafka {
    /// On a new topic of so many partitions, with records of this value.
    pub async fn start(beside: &Topic, partitions: i32, value: &str) -> Result<BareKafka> {
        let topic = Topic { brokers: beside.brokers.clone(), name: format!("{}-bare", beside.name) };
        topic
            .create(partitions, &[("cleanup.policy", "compact"), ("message.timestamp.type", "LogAppendTime")])
            .await?;
        let mut common = ClientConfig::new();
        common
            .set("bootstrap.servers", &topic.brokers)
            .set("socket.nagle.disable", "true")
            .set("reconnect.backoff.max.ms", "1000");
        let producer = common
            .clone()
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("linger.ms", "0")
            .create()?;
        let consumer: BaseConsumer = common
            .set("group.id", "bare-consumer")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("enable.partition.eof", "true")
            .set("fetch.queue.backoff.ms", "10")
            .set("fetch.error.backoff.ms", "100")
            .create()?;
        let mut assignment = TopicPartitionList::new();
        for partition in 0..partitions {
            assignment.add_partition_offset(&topic.name, partition, Offset::Beginning)?;
        }
        consumer.assign(&assignment)?;
        let (arrived, arrivals) = mpsc::unbounded_channel();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                // Ends of partitions are told as errors; a lasting error shows as a record that does not arrive.
                if let Some(Ok(_)) = consumer.poll(Duration::from_millis(100)) {
                    let _ = arrived.send(Instant::now());
                }
            }
        });
        let value = KeyValue::new("bare", value).to_avro();
        Ok(BareKafka { producer, topic: topic.name, partitions, value, arrivals, stop, thread: Some(thread) })
    }

    /// How long one record takes; nothing else may be under way.
    pub async fn sample(&mut self, number: usize) -> Result<Delays> {
        let partition = number as i32 % self.partitions;
        let record = FutureRecord::to(&self.topic).key("bare").payload(&self.value).partition(partition);
        let began = Instant::now();
        let acknowledged = self.producer.send_result(record).map_err(|(error, _)| error)?;
        let acknowledged = async {
            acknowledged.await?.map_err(|(error, _)| error)?;
            anyhow::Ok(began.elapsed())
        };
        let arrived = async {
            let arrived = tokio::time::timeout(DEADLINE, self.arrivals.recv()).await;
            arrived.context("the record did not arrive")?.context("the consumer has ended")
        };
        let (acknowledged, arrived) = tokio::try_join!(acknowledged, arrived)?;
        Ok(Delays { acknowledged, consumed: arrived - began })
    }
}

impl Drop for BareKafka {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
