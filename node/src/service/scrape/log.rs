//! Metrics of the log's client.

use prometheus::{GaugeVec, IntCounterVec, IntGaugeVec, Registry};

use super::{NO_LABELS, set};
use crate::log::LogStatistics;
use crate::metrics::registry::{Description, counters, float_gauges, gauges};

pub(super) struct LogMetrics {
    producer_queue: [IntGaugeVec; 3],
    reader_queue: [IntGaugeVec; 2],
    client_sent: IntCounterVec,
    client_received: IntCounterVec,
    broker_up: IntGaugeVec,
    broker_rtt: GaugeVec,
    broker_throttle: GaugeVec,
    broker_errors: IntCounterVec,
    broker_timeouts: IntCounterVec,
}

impl LogMetrics {
    pub(super) fn new(r: &Registry) -> prometheus::Result<Self> {
        let broker = &["client", "broker"];
        Ok(Self {
            producer_queue: [
                gauges(
                    r,
                    Description {
                        name: "producer_queue_records",
                        help: "Records that wait for their acknowledgement.",
                    },
                    &[],
                )?,
                gauges(r, Description { name: "producer_queue_bytes", help: "Bytes of them." }, &[])?,
                gauges(
                    r,
                    Description { name: "producer_queue_limit_bytes", help: "Writes are refused beyond." },
                    &[],
                )?,
            ],
            reader_queue: [
                gauges(
                    r,
                    Description {
                        name: "kafka_reader_queue_records",
                        help: "Records fetched and not yet taken.",
                    },
                    &[],
                )?,
                gauges(r, Description { name: "kafka_reader_queue_bytes", help: "Bytes of them." }, &[])?,
            ],
            client_sent: counters(
                r,
                Description { name: "kafka_sent_bytes_total", help: "Bytes sent to brokers." },
                &["client"],
            )?,
            client_received: counters(
                r,
                Description { name: "kafka_received_bytes_total", help: "Bytes received from brokers." },
                &["client"],
            )?,
            broker_up: gauges(
                r,
                Description { name: "kafka_broker_up", help: "1 while connected." },
                broker,
            )?,
            broker_rtt: float_gauges(
                r,
                Description {
                    name: "kafka_broker_rtt_seconds",
                    help: "Round trip, mean of the last interval.",
                },
                broker,
            )?,
            broker_throttle: float_gauges(
                r,
                Description {
                    name: "kafka_broker_throttle_seconds",
                    help: "Throttling by the broker, mean of the last interval.",
                },
                broker,
            )?,
            broker_errors: counters(
                r,
                Description {
                    name: "kafka_broker_errors_total",
                    help: "Failed transmissions and receptions.",
                },
                broker,
            )?,
            broker_timeouts: counters(
                r,
                Description { name: "kafka_broker_request_timeouts_total", help: "Requests that timed out." },
                broker,
            )?,
        })
    }

    pub(super) fn fill(&self, log: &LogStatistics) {
        let queue = log.producer_queue.as_ref();
        let figures = queue.map(|queue| [queue.records, queue.bytes, queue.limit_bytes]);
        for (index, metric) in self.producer_queue.iter().enumerate() {
            set(metric, NO_LABELS, figures.map(|figures| figures[index].cast_signed()));
        }
        let figures = log.reader_queue.as_ref().map(|queue| [queue.records, queue.bytes]);
        for (index, metric) in self.reader_queue.iter().enumerate() {
            set(metric, NO_LABELS, figures.map(|figures| figures[index].cast_signed()));
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
