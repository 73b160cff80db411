//! Metrics of the store and its cache.

use prometheus::{IntCounter, IntGauge, IntGaugeVec};

use super::{NO_LABELS, advance, set};
use crate::metrics::registry::{counter, declare_metrics, gauge, gauges};
use crate::store::StoreStats;

declare_metrics! {
    pub(super) struct StoreMetrics {
        records: IntGauge = gauge("store_records", "Keys in the store, delete markers included."),
        pending_repairs: IntGauge =
            gauge("pending_repairs", "Keys with records of trimmers that are not repaired yet."),
        keys_in_doubt: IntGauge =
            gauge("keys_in_doubt", "Keys of which this node does not know yet what the log says."),
        bytes: IntGauge = gauge("store_bytes", "Size of the store's file."),
        map_bytes: IntGauge = gauge("store_map_bytes", "Size of LMDB's map."),
        used_pages: IntGauge = gauge("store_used_pages", "LMDB pages that hold something."),
        free_pages: IntGauge = gauge("store_free_pages", "LMDB pages of the file that will be used again."),
        page_bytes: IntGauge = gauge("store_page_bytes", "Size of a page."),
        disk_free: IntGaugeVec = gauges("data_dir_free_bytes", "Free on the file system of DATA_DIR.", NO_LABELS),
        disk_size: IntGaugeVec = gauges("data_dir_size_bytes", "Size of that file system.", NO_LABELS),
        cache_records: IntGauge = gauge("cache_records", "Records in the cache."),
        cache_bytes: IntGauge = gauge("cache_bytes", "Memory of the records in the cache."),
        cache_capacity: IntGauge = gauge("cache_capacity_bytes", "CACHE_BYTES."),
        cache_hits: IntCounter = counter("cache_hits_total", "Reads answered by the cache."),
        cache_misses: IntCounter = counter("cache_misses_total", "Reads that went to the store."),
        cache_evictions: IntCounter = counter("cache_evictions_total", "Records that left the cache for want of room."),
    }
}

impl StoreMetrics {
    pub(super) fn fill(&self, store: &StoreStats) {
        for (metric, value) in [
            (&self.records, store.records),
            (&self.pending_repairs, store.pending_repairs),
            (&self.keys_in_doubt, store.keys_in_doubt),
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
