//! What the HTTP and the RPC server share.

pub mod socket;

use prometheus::IntGauge;

/// Counts an open connection for as long as it lives, also if its task is aborted.
pub struct OpenConnection(IntGauge);

impl OpenConnection {
    #[must_use]
    pub fn count(open: &IntGauge) -> Self {
        open.inc();
        Self(open.clone())
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}
