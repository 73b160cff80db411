//! Figures of the log's client, for metrics only.

/// Figures of the log's client; `None` and empty where there are none.
#[derive(Clone, Debug, Default)]
pub struct LogStatistics {
    /// Appends that wait for their acknowledgement.
    pub producer_queue: Option<Queue>,
    /// Records fetched that nobody has polled yet.
    pub reader_queue: Option<Queue>,
    pub clients: Vec<ClientStatistics>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    pub records: u64,
    pub bytes: u64,
    /// It holds no more bytes; 0 if that is not known.
    pub limit_bytes: u64,
}

/// Totals are since the client was made.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientStatistics {
    pub client: &'static str,
    pub sent_bytes: u64,
    pub received_bytes: u64,
    pub brokers: Vec<BrokerStatistics>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct BrokerStatistics {
    /// `host:port`
    pub broker: String,
    pub up: bool,
    /// Mean of the last interval, in seconds; `None` if there was no request.
    pub rtt: Option<f64>,
    /// Mean of the last interval, in seconds.
    pub throttle: f64,
    pub errors: u64,
    pub request_timeouts: u64,
}
