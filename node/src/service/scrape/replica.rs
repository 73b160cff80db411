//! Metrics of how far the replica is.

use prometheus::{Gauge, GaugeVec, IntGauge, IntGaugeVec, Registry};

use super::{NO_LABELS, set};
use crate::metrics::registry::{Description, float_gauge, float_gauges, gauge, gauges};
use crate::replication::progress::Progress;

pub(super) struct ReplicaMetrics {
    heartbeat_age: Gauge,
    partitions: PartitionMetrics,
    caught_up: IntGauge,
    restored: IntGauge,
    restored_ratio: GaugeVec,
    restore_remaining: GaugeVec,
    restore_duration: GaugeVec,
}

struct PartitionMetrics {
    applied_offset: IntGaugeVec,
    high_watermark: IntGaugeVec,
    high_watermark_age: GaugeVec,
    lag_records: IntGaugeVec,
    lag_seconds: GaugeVec,
}

impl ReplicaMetrics {
    pub(super) fn new(r: &Registry) -> prometheus::Result<Self> {
        Ok(Self {
            heartbeat_age: float_gauge(
                r,
                Description {
                    name: "replica_heartbeat_age_seconds",
                    help: "Time since the replica's thread last showed a sign of life.",
                },
            )?,
            partitions: PartitionMetrics::new(r)?,
            caught_up: gauge(
                r,
                Description {
                    name: "caught_up",
                    help: "1 when everything up to fresh high watermarks is applied.",
                },
            )?,
            restored: gauge(
                r,
                Description { name: "restored", help: "1 when the store has been caught up at some time." },
            )?,
            restored_ratio: float_gauges(
                r,
                Description {
                    name: "restored_ratio",
                    help: "Part of the offsets to read at the start that has been read.",
                },
                &[],
            )?,
            restore_remaining: float_gauges(
                r,
                Description {
                    name: "restore_remaining_seconds",
                    help: "Estimate of the restore's time left, from the speed so far.",
                },
                &[],
            )?,
            restore_duration: float_gauges(
                r,
                Description {
                    name: "restore_duration_seconds",
                    help: "Time from the process's start until it was caught up.",
                },
                &[],
            )?,
        })
    }

    pub(super) fn fill(&self, progress: &Progress) {
        self.heartbeat_age.set(progress.heartbeat_age().as_secs_f64());
        self.partitions.fill(progress);
        self.caught_up.set(progress.caught_up().into());
        let restore = progress.restore();
        self.restored.set(restore.done.into());
        set(&self.restored_ratio, NO_LABELS, restore.fraction);
        set(&self.restore_remaining, NO_LABELS, restore.remaining_seconds);
        set(&self.restore_duration, NO_LABELS, restore.seconds);
    }
}

impl PartitionMetrics {
    fn new(r: &Registry) -> prometheus::Result<Self> {
        let labels = &["partition"];
        Ok(Self {
            applied_offset: gauges(
                r,
                Description { name: "applied_offset", help: "Offset of the last record applied." },
                labels,
            )?,
            high_watermark: gauges(
                r,
                Description {
                    name: "high_watermark_offset",
                    help: "High watermark (exclusive) as last learnt.",
                },
                labels,
            )?,
            high_watermark_age: float_gauges(
                r,
                Description {
                    name: "high_watermark_age_seconds",
                    help: "Time since the high watermark was asked for.",
                },
                labels,
            )?,
            lag_records: gauges(
                r,
                Description {
                    name: "lag_records",
                    help: "Offsets between the next offset and the high watermark.",
                },
                labels,
            )?,
            lag_seconds: float_gauges(
                r,
                Description {
                    name: "lag_seconds",
                    help: "Time since the log first reached what is still to be applied.",
                },
                labels,
            )?,
        })
    }

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
