//! librdkafka's statistics, as far as they help an operator.

use parking_lot::Mutex;
use rdkafka::statistics::{Broker, Statistics, Window};

use crate::log::{BrokerStatistics, ClientStatistics, LogStatistics, Queue};

/// The last that each client told.
#[derive(Default)]
pub(super) struct Collected {
    producer: Mutex<Told>,
    reader: Mutex<Told>,
}

/// What a client told. It is parsed when somebody asks: it comes every second, and few ask as often.
#[derive(Default)]
struct Told {
    /// librdkafka's JSON that nobody has asked for yet.
    unread: Option<Box<[u8]>>,
    read: Option<Statistics>,
}

impl Told {
    /// The last that could be parsed.
    fn last(&mut self) -> Option<&Statistics> {
        if let Some(json) = self.unread.take() {
            match serde_json::from_slice(&json) {
                Ok(statistics) => self.read = Some(statistics),
                Err(error) => tracing::debug!(%error, "librdkafka's statistics can't be read"),
            }
        }
        self.read.as_ref()
    }
}

impl Collected {
    /// `json` is librdkafka's.
    pub(super) fn producer(&self, json: &[u8]) {
        self.producer.lock().unread = Some(json.into());
    }

    /// `json` is librdkafka's.
    pub(super) fn reader(&self, json: &[u8]) {
        self.reader.lock().unread = Some(json.into());
    }

    /// `waiting` is how many appends wait for their acknowledgement now.
    pub(super) fn summary(&self, waiting: u64) -> LogStatistics {
        let (mut producer, mut reader) = (self.producer.lock(), self.reader.lock());
        let (producer, reader) = (producer.last(), reader.last());
        let named = [("producer", producer), ("reader", reader)];
        LogStatistics {
            producer_queue: producer.map(|producer| Queue {
                records: waiting,
                bytes: producer.msg_size,
                limit_bytes: producer.msg_size_max,
            }),
            reader_queue: reader.map(fetched),
            clients: named.into_iter().filter_map(|(name, it)| it.map(|it| client(name, it))).collect(),
        }
    }
}

fn fetched(reader: &Statistics) -> Queue {
    let partitions = reader.topics.values().flat_map(|topic| topic.partitions.values());
    partitions.fold(Queue { records: 0, bytes: 0, limit_bytes: 0 }, |sum, partition| Queue {
        records: sum.records.saturating_add(count(partition.fetchq_cnt)),
        bytes: sum.bytes.saturating_add(partition.fetchq_size),
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
        errors: broker.txerrs.saturating_add(broker.rxerrs),
        request_timeouts: broker.req_timeouts,
    }
}

fn count(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::testing::damage::{damaged, damages};

    /// What librdkafka tells, as far as it is read, with these numbers in it.
    fn statistics(signed: i64, unsigned: u64, state: &str) -> serde_json::Value {
        let window = json!({ "min": 1, "max": 1, "avg": signed, "sum": 1, "stddev": 1, "p50": 1,
            "p75": 1, "p90": 1, "p95": 1,
            "p99": 1, "p99_99": 1, "outofrange": 1, "hdrsize": 1, "cnt": signed });
        let broker = json!({ "name": "b:1/1", "nodeid": 1, "nodename": "b:1", "source": "learned",
            "state": state, "stateage": 1,
            "outbuf_cnt": 1, "outbuf_msg_cnt": 1, "waitresp_cnt": 1, "waitresp_msg_cnt": 1, "tx": 1,
            "txbytes": 1, "txerrs": unsigned,
            "txretries": 1, "txidle": 1, "req_timeouts": unsigned, "rx": 1, "rxbytes": 1,
            "rxerrs": unsigned, "rxcorriderrs": 1,
            "rxpartial": 1, "rxidle": 1, "req": {}, "zbuf_grow": 1, "buf_grow": 1, "wakeups": 1,
            "connects": 1, "disconnects": 1,
            "int_latency": window, "outbuf_latency": window, "rtt": window, "throttle": window,
            "toppars": {} });
        let partition = |number: i32| {
            json!({ "partition": number, "broker": 1, "leader": 1, "desired": true, "unknown": false,
            "msgq_cnt": 1,
            "msgq_bytes": 1, "xmit_msgq_cnt": 1, "xmit_msgq_bytes": 1, "fetchq_cnt": signed,
            "fetchq_size": unsigned,
            "fetch_state": "active", "query_offset": 1, "next_offset": 1, "app_offset": 1,
            "stored_offset": 1, "committed_offset": 1,
            "eof_offset": 1, "lo_offset": 1, "hi_offset": 1, "ls_offset": 1, "consumer_lag": 1,
            "consumer_lag_stored": 1, "txmsgs": 1,
            "txbytes": 1, "rxmsgs": 1, "rxbytes": 1, "msgs": 1, "rx_ver_drops": 1, "msgs_inflight": 1,
            "next_ack_seq": 1,
            "next_err_seq": 1, "acked_msgid": 1 })
        };
        json!({ "name": "n", "client_id": "c", "type": "consumer", "ts": 1, "time": 1, "age": 1,
            "replyq": 1, "msg_cnt": 1, "msg_size": unsigned,
            "msg_max": 1, "msg_size_max": unsigned, "tx": 1, "tx_bytes": signed, "rx": 1,
            "rx_bytes": signed, "txmsgs": 1,
            "txmsg_bytes": 1, "rxmsgs": 1, "rxmsg_bytes": 1, "simple_cnt": 1, "metadata_cache_cnt": 1,
            "brokers": { "b:1/1": broker }, "topics": { "t": { "topic": "t", "age": 1, "metadata_age": 1,
            "batchsize": window, "batchcnt": window,
            "partitions": { "0": partition(0), "1": partition(1), "2": partition(2) } } } })
    }

    proptest! {
        #[test]
        fn any_statistics_are_summed_up_or_left_out(
            signed: i64,
            unsigned: u64,
            state in "UP|UPDATE|DOWN|.{0,5}",
            damages in damages(),
        ) {
            let collected = Collected::default();
            collected.reader(statistics(signed, unsigned, &state).to_string().as_bytes());
            let summary = collected.summary(1);
            let queue = summary.reader_queue.expect("they were read");
            prop_assert_eq!(queue.records, u64::try_from(signed).unwrap_or(0).saturating_mul(3));
            prop_assert_eq!(queue.bytes, unsigned.saturating_mul(3));
            prop_assert_eq!(&summary.clients[0].brokers[0].broker, "b:1");
            collected.reader(&damaged(statistics(signed, unsigned, &state).to_string().as_bytes(), &damages));
            prop_assert!(collected.summary(1).reader_queue.is_some(), "the last that could be read stay");
        }
    }
}
