//! Metrics of how far the replica is.

use prometheus::{Gauge, GaugeVec, IntGauge, IntGaugeVec};

use super::{NO_LABELS, set};
use crate::metrics::registry::{declare_metrics, float_gauge, float_gauges, gauge, gauges};
use crate::replication::progress::Progress;

const OF_PARTITION: &[&str] = &["partition"];

declare_metrics! {
    pub(super) struct ReplicaMetrics {
        heartbeat_age: Gauge =
            float_gauge("replica_heartbeat_age_seconds", "Time since the replica's thread last showed a sign of life."),
        partitions: PartitionMetrics = PartitionMetrics::register(),
        caught_up: IntGauge = gauge("caught_up", "1 when everything up to fresh high watermarks is applied."),
        position_waits: IntGauge =
            gauge("position_waits", "Reads and writes that wait until this node has applied a position."),
        restored: IntGauge = gauge("restored", "1 when the store has been caught up at some time."),
        restored_ratio: GaugeVec =
            float_gauges("restored_ratio", "Part of the offsets to read at the start that has been read.", NO_LABELS),
        restore_remaining: GaugeVec =
            float_gauges("restore_remaining_seconds", "Estimate of the restore's time left, from the speed so far.", NO_LABELS),
        restore_duration: GaugeVec =
            float_gauges("restore_duration_seconds", "Time from the process's start until it was caught up.", NO_LABELS),
    }
}

declare_metrics! {
    struct PartitionMetrics {
        applied_offset: IntGaugeVec = gauges("applied_offset", "Offset of the last record applied.", OF_PARTITION),
        high_watermark: IntGaugeVec =
            gauges("high_watermark_offset", "High watermark (exclusive) as last learnt.", OF_PARTITION),
        high_watermark_age: GaugeVec =
            float_gauges("high_watermark_age_seconds", "Time since the high watermark was asked for.", OF_PARTITION),
        lag_records: IntGaugeVec =
            gauges("lag_records", "Offsets between the next offset and the high watermark.", OF_PARTITION),
        lag_seconds: GaugeVec =
            float_gauges("lag_seconds", "Time since the log first reached what is still to be applied.", OF_PARTITION),
    }
}

impl ReplicaMetrics {
    pub(super) fn fill(&self, progress: &Progress) {
        self.heartbeat_age.set(progress.heartbeat_age().as_secs_f64());
        self.partitions.fill(progress);
        self.caught_up.set(progress.caught_up().into());
        self.position_waits.set(progress.waits() as i64);
        let restore = progress.restore();
        self.restored.set(restore.done.into());
        set(&self.restored_ratio, NO_LABELS, restore.fraction);
        set(&self.restore_remaining, NO_LABELS, restore.remaining_seconds);
        set(&self.restore_duration, NO_LABELS, restore.seconds);
    }
}

impl PartitionMetrics {
    fn fill(&self, progress: &Progress) {
        for partition in progress.partitions() {
            let label = &[partition.partition.to_string()];
            self.applied_offset.with_label_values(label).set(partition.applied);
            set(&self.high_watermark, label, partition.high_watermark);
            let age = partition.high_watermark_age_ms.map(|age| age as f64 / 1e3);
            set(&self.high_watermark_age, label, age);
            set(&self.lag_records, label, partition.lag.map(u64::cast_signed));
            set(&self.lag_seconds, label, partition.lag_seconds);
        }
    }
}
