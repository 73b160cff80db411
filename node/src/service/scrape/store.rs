//! Metrics of the store and its cache.

use prometheus::{IntCounter, IntGauge, IntGaugeVec, Registry};

use super::{NO_LABELS, advance, set};
use crate::metrics::registry::{Description, counter, gauge, gauges};
use crate::store::StoreStats;

pub(super) struct StoreMetrics {
    records: IntGauge,
    pending_repairs: IntGauge,
    bytes: IntGauge,
    map_bytes: IntGauge,
    used_pages: IntGauge,
    free_pages: IntGauge,
    page_bytes: IntGauge,
    disk_free: IntGaugeVec,
    disk_size: IntGaugeVec,
    cache_records: IntGauge,
    cache_bytes: IntGauge,
    cache_capacity: IntGauge,
    cache_hits: IntCounter,
    cache_misses: IntCounter,
    cache_evictions: IntCounter,
}

impl StoreMetrics {
    pub(super) fn new(r: &Registry) -> prometheus::Result<Self> {
        Ok(Self {
            records: gauge(
                r,
                Description { name: "store_records", help: "Keys in the store, delete markers included." },
            )?,
            pending_repairs: gauge(
                r,
                Description {
                    name: "pending_repairs",
                    help: "Keys with records of trimmers that are not repaired yet.",
                },
            )?,
            bytes: gauge(r, Description { name: "store_bytes", help: "Size of the store's file." })?,
            map_bytes: gauge(r, Description { name: "store_map_bytes", help: "Size of LMDB's map." })?,
            used_pages: gauge(
                r,
                Description { name: "store_used_pages", help: "LMDB pages that hold something." },
            )?,
            free_pages: gauge(
                r,
                Description {
                    name: "store_free_pages",
                    help: "LMDB pages of the file that will be used again.",
                },
            )?,
            page_bytes: gauge(r, Description { name: "store_page_bytes", help: "Size of a page." })?,
            disk_free: gauges(
                r,
                Description { name: "data_dir_free_bytes", help: "Free on the file system of DATA_DIR." },
                &[],
            )?,
            disk_size: gauges(
                r,
                Description { name: "data_dir_size_bytes", help: "Size of that file system." },
                &[],
            )?,
            cache_records: gauge(r, Description { name: "cache_records", help: "Records in the cache." })?,
            cache_bytes: gauge(
                r,
                Description { name: "cache_bytes", help: "Memory of the records in the cache." },
            )?,
            cache_capacity: gauge(r, Description { name: "cache_capacity_bytes", help: "CACHE_BYTES." })?,
            cache_hits: counter(
                r,
                Description { name: "cache_hits_total", help: "Reads answered by the cache." },
            )?,
            cache_misses: counter(
                r,
                Description { name: "cache_misses_total", help: "Reads that went to the store." },
            )?,
            cache_evictions: counter(
                r,
                Description {
                    name: "cache_evictions_total",
                    help: "Records that left the cache for want of room.",
                },
            )?,
        })
    }

    pub(super) fn fill(&self, store: &StoreStats) {
        for (metric, value) in [
            (&self.records, store.records),
            (&self.pending_repairs, store.pending_repairs),
            (&self.bytes, store.bytes),
            (&self.map_bytes, store.map_bytes),
            (&self.used_pages, store.used_pages),
            (&self.free_pages, store.free_pages),
            (&self.page_bytes, store.page_bytes),
            (&self.cache_records, store.cache_records),
            (&self.cache_bytes, store.cache_bytes),
            (&self.cache_capacity, store.cache_capacity_bytes),
        ] {
            metric.set(value.cast_signed());
        }
        set(&self.disk_free, NO_LABELS, store.disk.map(|disk| disk.free.cast_signed()));
        set(&self.disk_size, NO_LABELS, store.disk.map(|disk| disk.size.cast_signed()));
        advance(&self.cache_hits, store.cache_hits);
        advance(&self.cache_misses, store.cache_misses);
        advance(&self.cache_evictions, store.cache_evictions);
    }
}
