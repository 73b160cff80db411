//! Metrics of the log's client.

use prometheus::{GaugeVec, IntCounterVec, IntGaugeVec};

use super::{NO_LABELS, set};
use crate::log::LogStatistics;
use crate::metrics::registry::{counters, declare_metrics, float_gauges, gauges};

/// A client of librdkafka: the producer, the reader or the one for questions.
const OF_CLIENT: &[&str] = &["client"];
const OF_BROKER: &[&str] = &["client", "broker"];

declare_metrics! {
    pub(super) struct LogMetrics {
        producer_queue_records: IntGaugeVec = gauges("producer_queue_records", "Records that wait for their acknowledgement.", NO_LABELS),
        producer_queue_bytes: IntGaugeVec = gauges("producer_queue_bytes", "Bytes of them.", NO_LABELS),
        producer_queue_limit: IntGaugeVec = gauges("producer_queue_limit_bytes", "Writes are refused beyond.", NO_LABELS),
        reader_queue_records: IntGaugeVec = gauges("kafka_reader_queue_records", "Records fetched and not yet taken.", NO_LABELS),
        reader_queue_bytes: IntGaugeVec = gauges("kafka_reader_queue_bytes", "Bytes of them.", NO_LABELS),
        client_sent: IntCounterVec = counters("kafka_sent_bytes_total", "Bytes sent to brokers.", OF_CLIENT),
        client_received: IntCounterVec =
            counters("kafka_received_bytes_total", "Bytes received from brokers.", OF_CLIENT),
        broker_up: IntGaugeVec = gauges("kafka_broker_up", "1 while connected.", OF_BROKER),
        broker_rtt: GaugeVec =
            float_gauges("kafka_broker_rtt_seconds", "Round trip, mean of the last interval.", OF_BROKER),
        broker_throttle: GaugeVec =
            float_gauges("kafka_broker_throttle_seconds", "Throttling by the broker, mean of the last interval.", OF_BROKER),
        broker_errors: IntCounterVec =
            counters("kafka_broker_errors_total", "Failed transmissions and receptions.", OF_BROKER),
        broker_timeouts: IntCounterVec =
            counters("kafka_broker_request_timeouts_total", "Requests that timed out.", OF_BROKER),
    }
}

impl LogMetrics {
    pub(super) fn fill(&self, log: &LogStatistics) {
        let (producer, reader) = (log.producer_queue.as_ref(), log.reader_queue.as_ref());
        for (metric, value) in [
            (&self.producer_queue_records, producer.map(|queue| queue.records)),
            (&self.producer_queue_bytes, producer.map(|queue| queue.bytes)),
            (&self.producer_queue_limit, producer.map(|queue| queue.limit_bytes)),
            (&self.reader_queue_records, reader.map(|queue| queue.records)),
            (&self.reader_queue_bytes, reader.map(|queue| queue.bytes)),
        ] {
            set(metric, NO_LABELS, value.map(u64::cast_signed));
        }
        // Brokers come and go; a client that is made anew counts from 0, as a counter may.
        for metric in [&self.client_sent, &self.client_received, &self.broker_errors, &self.broker_timeouts] {
            metric.reset();
        }
        self.broker_up.reset();
        self.broker_rtt.reset();
        self.broker_throttle.reset();
        for client in &log.clients {
            self.client_sent.with_label_values(&[client.client]).inc_by(client.sent_bytes);
            self.client_received.with_label_values(&[client.client]).inc_by(client.received_bytes);
            for broker in &client.brokers {
                let labels = &[client.client, &broker.broker];
                self.broker_up.with_label_values(labels).set(broker.up.into());
                set(&self.broker_rtt, labels, broker.rtt);
                self.broker_throttle.with_label_values(labels).set(broker.throttle);
                self.broker_errors.with_label_values(labels).inc_by(broker.errors);
                self.broker_timeouts.with_label_values(labels).inc_by(broker.request_timeouts);
            }
        }
    }
}
