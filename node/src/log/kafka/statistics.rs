//! librdkafka's statistics, as far as they help an operator.

use std::sync::{Mutex, PoisonError};

use rdkafka::statistics::{Broker, Statistics, Window};

use crate::log::{BrokerStatistics, ClientStatistics, LogStatistics, Queue};

/// The last that each client told.
#[derive(Default)]
pub(super) struct Collected {
    producer: Mutex<Option<Statistics>>,
    reader: Mutex<Option<Statistics>>,
}

fn keep(slot: &Mutex<Option<Statistics>>, statistics: Statistics) {
    *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(statistics);
}

impl Collected {
    pub(super) fn producer(&self, statistics: Statistics) {
        keep(&self.producer, statistics);
    }

    /// `json` is librdkafka's.
    pub(super) fn reader(&self, json: &[u8]) {
        match serde_json::from_slice(json) {
            Ok(statistics) => keep(&self.reader, statistics),
            Err(error) => tracing::debug!(%error, "librdkafka's statistics can't be read"),
        }
    }

    /// `waiting` is how many appends wait for their acknowledgement now.
    pub(super) fn summary(&self, waiting: u64) -> LogStatistics {
        let producer = self.producer.lock().unwrap_or_else(PoisonError::into_inner);
        let reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        let named = [("producer", producer.as_ref()), ("reader", reader.as_ref())];
        LogStatistics {
            producer_queue: producer.as_ref().map(|producer| Queue {
                records: waiting,
                bytes: producer.msg_size,
                limit_bytes: producer.msg_size_max,
            }),
            reader_queue: reader.as_ref().map(fetched),
            clients: named.into_iter().filter_map(|(name, it)| it.map(|it| client(name, it))).collect(),
        }
    }
}

fn fetched(reader: &Statistics) -> Queue {
    let partitions = reader.topics.values().flat_map(|topic| topic.partitions.values());
    partitions.fold(Queue { records: 0, bytes: 0, limit_bytes: 0 }, |sum, partition| Queue {
        records: sum.records + count(partition.fetchq_cnt),
        bytes: sum.bytes + partition.fetchq_size,
        ..sum
    })
}

fn client(name: &'static str, statistics: &Statistics) -> ClientStatistics {
    // The addresses of BROKER_LIST are entries of their own until a broker's name is learnt.
    let brokers = statistics.brokers.values().filter(|broker| broker.nodeid >= 0);
    ClientStatistics {
        client: name,
        sent_bytes: count(statistics.tx_bytes),
        received_bytes: count(statistics.rx_bytes),
        brokers: brokers.map(summary).collect(),
    }
}

fn summary(broker: &Broker) -> BrokerStatistics {
    let mean = |window: &Option<Window>, unit: f64| {
        window.as_ref().filter(|window| window.cnt > 0).map(|window| window.avg as f64 * unit)
    };
    BrokerStatistics {
        broker: broker.nodename.clone(),
        up: broker.state == "UP" || broker.state == "UPDATE",
        // librdkafka gives µs for the one and ms for the other.
        rtt: mean(&broker.rtt, 1e-6),
        throttle: mean(&broker.throttle, 1e-3).unwrap_or(0.0),
        errors: broker.txerrs + broker.rxerrs,
        request_timeouts: broker.req_timeouts,
    }
}

fn count(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
