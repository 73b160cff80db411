//! What may change in a node while it runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::metrics::Metrics;
use crate::permits::Permits;
use crate::service::slow::SlowRequests;
use crate::settings::{LiveSettings, NodeSettings};

/// Shared with those who go by it.
pub(super) struct Adjustable {
    pub http_connections: Permits,
    pub rpc_connections: Permits,
    pub watchers: Permits,
    pub slow: SlowRequests,
    /// Bytes a second.
    pub snapshot_rate: Arc<AtomicU64>,
    metrics: Arc<Metrics>,
}

impl Adjustable {
    pub fn new(settings: &NodeSettings, metrics: Arc<Metrics>) -> Self {
        let adjustable = Self {
            http_connections: Permits::new(settings.max_connections),
            rpc_connections: Permits::new(settings.max_connections),
            watchers: Permits::new(settings.max_watchers),
            slow: SlowRequests::new(settings.slow_request),
            snapshot_rate: Arc::new(AtomicU64::new(settings.snapshot_rate)),
            metrics,
        };
        adjustable.show_limits();
        adjustable
    }

    /// Takes other values. To be called on the runtime.
    pub fn adjust(&self, live: &LiveSettings) {
        self.http_connections.set_limit(live.max_connections);
        self.rpc_connections.set_limit(live.max_connections);
        self.watchers.set_limit(live.max_watchers);
        self.slow.set(live.slow_request);
        self.snapshot_rate.store(live.snapshot_rate, Ordering::Relaxed);
        self.show_limits();
    }

    fn show_limits(&self) {
        self.metrics.connections_limit.set(self.http_connections.limit().into());
        self.metrics.watchers_limit.set(self.watchers.limit().into());
    }
}
