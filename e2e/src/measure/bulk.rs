//! Jobs that move many records: bare producers and a bare consumer, and a client's batches.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bitacora_client::{Client, Operation};
use futures_util::future::try_join_all;
use futures_util::{TryStreamExt as _, stream};
use hdrhistogram::Histogram;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{
    BaseRecord, DeliveryResult, FutureProducer, FutureRecord, Producer, ProducerContext, ThreadedProducer,
};
use rdkafka::{ClientConfig, ClientContext};
use serde::{Deserialize, Serialize};

use super::child::Figures;
use super::{key, value};
use crate::topic::{KeyValue, Topic};

const PATIENCE: Duration = Duration::from_secs(900);

/// As a node's producer is set up.
pub(super) fn producer(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", brokers)
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("partitioner", "murmur2_random")
        .set("linger.ms", "0")
        .set("max.in.flight.requests.per.connection", "2")
        .set("socket.nagle.disable", "true");
    config
}

/// Writers that each await the acknowledgement of a record before the next one, as callers of a node do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Produce {
    pub brokers: String,
    pub topic: String,
    pub writers: usize,
    /// Keys are chosen by chance from so many.
    pub keys: u64,
    pub value_bytes: usize,
    pub seconds: f64,
}

impl Produce {
    pub(super) async fn run(&self) -> Result<Figures> {
        let producer: FutureProducer = producer(&self.brokers).create()?;
        let began = Instant::now();
        let writers = (0..self.writers).map(|writer| self.writer(&producer, writer as u64, began));
        let all = try_join_all(writers).await?;
        let seconds = began.elapsed().as_secs_f64();
        let mut latencies = Histogram::<u64>::new(3)?;
        for one in all {
            latencies.add(one)?;
        }
        let quantile = |part| latencies.value_at_quantile(part) as f64 / 1000.0;
        let calls = latencies.len() as f64;
        Ok(Figures { calls, seconds, p50: quantile(0.5), p99: quantile(0.99), cpu: 0.0 })
    }

    async fn writer(&self, producer: &FutureProducer, writer: u64, began: Instant) -> Result<Histogram<u64>> {
        let (mut record, at) = record_of(&key(0), self.value_bytes)?;
        let mut random = fastrand::Rng::with_seed(writer);
        let mut latencies = Histogram::new(3)?;
        while began.elapsed().as_secs_f64() < self.seconds {
            let key = key(random.u64(..self.keys));
            record[at..at + key.len()].copy_from_slice(key.as_bytes());
            let sent = Instant::now();
            let record = FutureRecord::to(&self.topic).key(&key).payload(&record);
            producer.send(record, Duration::from_secs(5)).await.map_err(|(error, _)| error)?;
            latencies.record(sent.elapsed().as_nanos() as u64)?;
        }
        Ok(latencies)
    }
}

/// One record, and where in it its key is: a bare producer puts the key in anew for each, since it has its records already.
fn record_of(key: &str, value_bytes: usize) -> Result<(Vec<u8>, usize)> {
    let record = KeyValue::new(key, &value(value_bytes)).to_avro();
    let at = record.windows(key.len()).position(|part| part == key.as_bytes()).context("its key")?;
    Ok((record, at))
}

/// Counts what is acknowledged.
struct Counted(Arc<AtomicU64>);

impl ClientContext for Counted {}

impl ProducerContext for Counted {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if result.is_ok() {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// As many records as there are, as fast as a bare producer can; done when the last is acknowledged. What it takes to reach the broker
/// and to find the topic's leaders does not count, as whoever asks a node finds it connected: one record more goes before.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Flood {
    pub brokers: String,
    pub topic: String,
    /// The first record's key.
    pub first: u64,
    pub records: u64,
    pub value_bytes: usize,
}

impl Flood {
    pub(super) fn run(&self) -> Result<Figures> {
        let name = key(self.first);
        let (mut record, at) = record_of(&name, self.value_bytes)?;
        let acknowledged = Arc::new(AtomicU64::new(0));
        let producer: ThreadedProducer<Counted> = producer(&self.brokers)
            .set("queue.buffering.max.messages", "500000")
            .create_with_context(Counted(Arc::clone(&acknowledged)))?;
        let before = BaseRecord::to(&self.topic).key(&name).payload(&record);
        producer.send(before).map_err(|(error, _)| error).context("producing")?;
        producer.flush(PATIENCE).context("flushing")?;
        let began = Instant::now();
        for number in self.first..self.first + self.records {
            let key = key(number);
            record[at..at + key.len()].copy_from_slice(key.as_bytes());
            loop {
                match producer.send(BaseRecord::to(&self.topic).key(&key).payload(&record)) {
                    Ok(()) => break,
                    Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    Err((error, _)) => return Err(error).context("producing"),
                }
            }
        }
        producer.flush(PATIENCE).context("flushing")?;
        let seconds = began.elapsed().as_secs_f64();
        let acknowledged = acknowledged.load(Ordering::Relaxed);
        ensure!(acknowledged == self.records + 1, "{acknowledged} records were acknowledged");
        Ok(Figures { calls: self.records as f64, seconds, ..Figures::default() })
    }
}

/// A bare consumer that reads a topic from its beginning and keeps nothing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Consume {
    pub brokers: String,
    pub topic: String,
    pub partitions: i32,
    pub records: u64,
    /// Its clock starts with the first record: what it takes to reach the broker and to begin does not count.
    pub from_first: bool,
}

impl Consume {
    pub(super) fn run(&self) -> Result<Figures> {
        let topic = Topic { brokers: self.brokers.clone(), name: self.topic.clone() };
        let mut began = Instant::now();
        let first = || {
            if self.from_first {
                began = Instant::now();
            }
        };
        topic.read_and_discard_from(self.partitions, self.records as usize, first)?;
        let seconds = began.elapsed().as_secs_f64();
        Ok(Figures { calls: self.records as f64, seconds, ..Figures::default() })
    }
}

/// The interface of a node, with its port on 127.0.0.1.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Over {
    /// By lines of JSON.
    Http(u16),
    /// With the client library.
    Rpc(u16),
}

/// A client that sets many keys in batches, several of them under way.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Batches {
    pub over: Over,
    pub records: u64,
    pub value_bytes: usize,
    pub batch: u64,
    pub under_way: usize,
}

impl Batches {
    pub(super) async fn run(&self) -> Result<Figures> {
        let starts = (0..self.records).step_by(self.batch as usize);
        let ranges = stream::iter(starts.map(|start| Ok(start..self.records.min(start + self.batch))));
        let began = Instant::now();
        match self.over {
            Over::Rpc(port) => {
                let node = format!("127.0.0.1:{port}");
                let client =
                    Client::builder().nodes([node]).deadline(Duration::from_secs(30)).build().await?;
                let sent =
                    ranges.try_for_each_concurrent(self.under_way, |range| self.over_rpc(&client, range));
                sent.await?;
            }
            Over::Http(port) => {
                let client = crate::http::client_builder().build()?;
                let sent = ranges
                    .try_for_each_concurrent(self.under_way, |range| self.over_http(&client, port, range));
                sent.await?;
            }
        }
        let seconds = began.elapsed().as_secs_f64();
        Ok(Figures { calls: self.records as f64, seconds, ..Figures::default() })
    }

    async fn over_rpc(&self, client: &Client, range: std::ops::Range<u64>) -> Result<()> {
        let value = value(self.value_bytes);
        let sets: Vec<_> = range
            .map(|number| Operation::Set { key: key(number), value: value.clone(), ttl: None })
            .collect();
        for result in client.batch(&sets).await? {
            result?;
        }
        Ok(())
    }

    async fn over_http(
        &self,
        client: &reqwest::Client,
        port: u16,
        range: std::ops::Range<u64>,
    ) -> Result<()> {
        let (value, count) = (value(self.value_bytes), (range.end - range.start) as usize);
        let mut body = String::new();
        for number in range {
            writeln!(body, "{{\"op\":\"set\",\"key\":\"{}\",\"value\":\"{value}\"}}", key(number))?;
        }
        let url = format!("http://127.0.0.1:{port}/rpc/batch");
        let answer = client.post(url).body(body).send().await?.error_for_status()?.text().await?;
        let done = answer.lines().filter(|line| line.starts_with("{\"status\":200")).count();
        ensure!(
            done == count,
            "{done} of {count} sets were done: {}",
            answer.lines().next_back().unwrap_or_default()
        );
        Ok(())
    }
}
