//! What a set and a delete mean: a record, appended to the log and acknowledged. The store is not touched here; the
//! record comes back through the replica.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bitacora_protocol::record::{KeyValue, source, ttl};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use parking_lot::RwLock;
use uuid::Uuid;

use crate::log::{AppendError, Appended, Log, NewRecord};
use crate::metrics::Metrics;
use crate::now_ms;
use crate::service::memory::Permit;
use crate::store::Entry;
use crate::telemetry::TraceParent;

/// The longest key, in bytes of UTF-8. LMDB bounds it; see [`crate::store::Store::max_key_bytes`].
pub const MAX_KEY_BYTES: usize = 1024;
/// What a write has beside its keys and its value, at most. In the record: four numbers, three lengths and a UUID, some 80
/// bytes. Beside it, with `OTLP_ENDPOINT`: the header `traceparent`, some 70. The producer's `message.max.bytes` bounds
/// both together with Kafka's own framing of a record.
pub const RECORD_OVERHEAD_BYTES: usize = 256;
/// The longest time to live that is taken: a hundred years.
pub const MAX_TTL: Duration = Duration::from_hours(100 * 365 * 24);

pub struct Writes {
    log: Arc<dyn Log>,
    /// Once true, nothing is appended. Held while a record is handed over, so that none slips past.
    closed: RwLock<bool>,
    max_value_bytes: usize,
    metrics: Arc<Metrics>,
}

#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("the value has {size} bytes; a value has at most {max} (MAX_VALUE_BYTES)")]
    ValueTooLarge { size: usize, max: usize },
    #[error(transparent)]
    Log(#[from] AppendError),
}

/// An acknowledged write.
#[derive(Debug)]
pub struct Written {
    pub appended: Appended,
    /// As [`KeyValue::ttl`].
    pub ttl: i64,
    pub uuid: String,
    /// Of a write that was to be shown: the members that did not show it in time, `host:API_PORT` of each.
    pub not_visible: Vec<String>,
    /// The record, if an earlier call of the same uuid has written it; its value may be another than the one that was sent now.
    pub earlier: Option<Earlier>,
}

/// The record of an earlier call.
#[derive(Debug)]
pub struct Earlier {
    pub entry: Entry,
    /// For the entry.
    pub memory: Option<Permit>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("the key is missing or blank")]
    Blank,
    #[error("the key has {0} bytes; a key has at most {MAX_KEY_BYTES}")]
    TooLong(usize),
    #[error("the key begins with U+0000; such keys are the nodes' own")]
    Reserved,
}

/// Whether a text can be a key.
///
/// # Errors
/// When it is blank, too long, or one that nodes keep for themselves.
pub fn check_key(key: &str) -> Result<(), KeyError> {
    match key.len() {
        _ if key.trim().is_empty() => Err(KeyError::Blank),
        length if length > MAX_KEY_BYTES => Err(KeyError::TooLong(length)),
        _ if key.starts_with('\0') => Err(KeyError::Reserved),
        _ => Ok(()),
    }
}

impl Writes {
    #[must_use]
    pub fn new(log: Arc<dyn Log>, max_value_bytes: usize, metrics: Arc<Metrics>) -> Self {
        Self { log, closed: false.into(), max_value_bytes, metrics }
    }

    /// That a value is not too large.
    ///
    /// # Errors
    /// When it is.
    pub fn check_value(&self, value: &str) -> Result<(), WriteError> {
        if value.len() > self.max_value_bytes {
            return Err(WriteError::ValueTooLarge { size: value.len(), max: self.max_value_bytes });
        }
        Ok(())
    }

    /// Sets a key that [`check_key`] accepts, for ever or for a time to live of at most [`MAX_TTL`]. The write takes its
    /// place in the log's order at once; the future completes when the log has acknowledged it. Reads on this node see
    /// it a moment later. `uuid` is the record's; `None` for one of its own.
    ///
    /// # Errors
    /// [`WriteError`] says whether the write may still take effect.
    pub fn set(
        &self,
        key: &str,
        value: &str,
        live: Option<Duration>,
        uuid: Option<&str>,
        trace: Option<TraceParent>,
    ) -> impl Future<Output = Result<Written, WriteError>> + Send + use<> {
        let begun = self.check_value(value).map(|()| {
            let expires = live.map_or(ttl::FOR_EVER, |live| now_ms() + live.min(MAX_TTL).as_millis() as i64);
            self.write(key, value, expires, uuid, trace)
        });
        async move { begun?.await }
    }

    /// Deletes a key, whether it is there or not, by a delete marker.
    ///
    /// # Errors
    /// As [`Writes::set`].
    pub fn delete(
        &self,
        key: &str,
        uuid: Option<&str>,
        trace: Option<TraceParent>,
    ) -> impl Future<Output = Result<Written, WriteError>> + Send + use<> {
        self.write(key, "", ttl::DELETED, uuid, trace)
    }

    /// Refuses every write from here on. A record that is being handed to the log right now is in its hands when this
    /// returns, so that a flush waits for it.
    pub fn close(&self) {
        *self.closed.write() = true;
    }

    /// Appends a record that need not be a plain write. It takes its place in the log's order at once.
    ///
    /// # Errors
    /// As [`Log::append_record`].
    pub fn append_record(&self, record: NewRecord) -> BoxFuture<'static, Result<Appended, AppendError>> {
        let started = Instant::now();
        let waiting = Some(self.hand_over(record));
        Append { waiting, started, metrics: Arc::clone(&self.metrics) }.boxed()
    }

    fn hand_over(&self, record: NewRecord) -> BoxFuture<'static, Result<Appended, AppendError>> {
        let closed = self.closed.read();
        if *closed {
            let stopping = AppendError::NotTaken("this node is stopping".to_owned());
            return Box::pin(std::future::ready(Err(stopping)));
        }
        self.log.append_record(record)
    }

    fn write(
        &self,
        key: &str,
        value: &str,
        ttl: i64,
        uuid: Option<&str>,
        trace: Option<TraceParent>,
    ) -> impl Future<Output = Result<Written, WriteError>> + Send + use<> {
        let uuid = uuid.map_or_else(|| Uuid::new_v4().to_string(), str::to_owned);
        let record = KeyValue { key, value, timestamp: now_ms(), source: source::PRODUCER, ttl, uuid: &uuid };
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        let (started, metrics) = (Instant::now(), Arc::clone(&self.metrics));
        let record = NewRecord { key: key.into(), value: Some(bytes), trace, ..NewRecord::default() };
        let appended = Append { waiting: Some(self.hand_over(record)), started, metrics };
        async move { Ok(Written { appended: appended.await?, ttl, uuid, not_visible: Vec::new(), earlier: None }) }
    }
}

/// The `outcome` label of the metrics.
fn label(outcome: &Result<Appended, AppendError>) -> &'static str {
    match outcome {
        Ok(_) => "acknowledged",
        Err(AppendError::NotTaken(_)) => "not_taken",
        Err(AppendError::Unknown(_)) => "unknown",
        Err(AppendError::TooLarge(_)) => "too_large",
    }
}

/// An append under way. It is counted also when its caller has gone away: an operator must see that nothing is
/// acknowledged when nobody has the patience to wait for that.
struct Append {
    waiting: Option<BoxFuture<'static, Result<Appended, AppendError>>>,
    started: Instant,
    metrics: Arc<Metrics>,
}

impl Future for Append {
    type Output = Result<Appended, AppendError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let waiting = self.waiting.as_mut().expect("not polled after its end");
        let outcome = ready!(waiting.as_mut().poll(cx));
        self.waiting = None;
        self.metrics.appended(label(&outcome), self.started.elapsed());
        Poll::Ready(outcome)
    }
}

impl Drop for Append {
    fn drop(&mut self) {
        let (Some(waiting), Ok(runtime)) = (self.waiting.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        let (started, metrics) = (self.started, Arc::clone(&self.metrics));
        runtime.spawn(async move { metrics.appended(label(&waiting.await), started.elapsed()) });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::sync::oneshot;

    use super::*;
    use crate::log::{LogInfo, LogReader, NewRecord, OpenError, ReadError};
    use bitacora_protocol::{HighWatermark, NextOffset, Position};

    /// A log that acknowledges when it is told to.
    #[derive(Default)]
    struct Slow(Mutex<Vec<oneshot::Sender<Result<Appended, AppendError>>>>);

    impl Log for Slow {
        fn topic(&self) -> &'static str {
            "slow"
        }

        fn open(&self, _: &dyn Fn()) -> Result<LogInfo, OpenError> {
            Err(OpenError::Refused("not for reading".to_owned()))
        }

        fn append_record(&self, _: NewRecord) -> BoxFuture<'static, Result<Appended, AppendError>> {
            let (done, acknowledged) = oneshot::channel();
            self.0.lock().expect("no test panicked").push(done);
            Box::pin(async move { acknowledged.await.expect("every append is settled") })
        }

        fn check_trimming(&self) -> Result<(), String> {
            Err("no trimming".to_owned())
        }

        fn reader(&self, _: &[NextOffset], _: &[Option<i32>]) -> Result<Box<dyn LogReader>, ReadError> {
            Err(ReadError::Unavailable("not for reading".to_owned()))
        }

        fn high_watermarks(&self) -> Result<Vec<HighWatermark>, ReadError> {
            Ok(Vec::new())
        }

        fn flush(&self, _: Duration) {}
    }

    #[tokio::test]
    async fn a_write_that_nobody_waits_for_is_counted_too() {
        let (log, metrics) = (Arc::new(Slow::default()), Arc::new(Metrics::new().expect("names differ")));
        let writes = Writes::new(Arc::<Slow>::clone(&log), 100, Arc::clone(&metrics));
        let settle = |outcome| {
            let done = log.0.lock().expect("no test panicked").remove(0);
            assert!(done.send(outcome).is_ok(), "the log's answer is awaited by somebody");
        };
        let position = Position { partition: 0, offset: 0 };
        let waiting = writes.set("key", "value", None, None, None);
        settle(Ok(Appended { position, timestamp: crate::clock::LogTime::default() }));
        assert!(waiting.await.is_ok());
        assert_eq!(metrics.appends("acknowledged"), 1);

        drop(writes.delete("key", None, None));
        let mut begun = Box::pin(writes.delete("key", None, None));
        assert!(futures_util::poll!(&mut begun).is_pending());
        drop(begun);
        settle(Err(AppendError::Unknown("late".to_owned())));
        settle(Err(AppendError::NotTaken("late".to_owned())));
        while metrics.appends("unknown") + metrics.appends("not_taken") < 2 {
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn overhead_counts_the_trace_and_the_framing() {
        /// As librdkafka counts for its `message.max.bytes`.
        const FRAMING_BYTES: usize = 36;
        let (key, value) = ("k".repeat(MAX_KEY_BYTES), "v".repeat(1 << 20));
        let uuid = Uuid::new_v4().to_string();
        let record = KeyValue {
            key: &key,
            value: &value,
            timestamp: i64::MAX,
            source: source::PRODUCER,
            ttl: i64::MAX,
            uuid: &uuid,
        };
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let header = TraceParent::HEADER.len() + trace.len() + 10;
        let overhead = bytes.len() - key.len() - value.len() + header + FRAMING_BYTES;
        assert!(overhead <= RECORD_OVERHEAD_BYTES, "{overhead}");
    }

    #[tokio::test]
    async fn after_the_stop_nothing_is_appended() {
        let (log, metrics) = (Arc::new(Slow::default()), Arc::new(Metrics::new().expect("names differ")));
        let writes = Writes::new(Arc::<Slow>::clone(&log), 100, metrics);
        writes.close();
        let refused = writes.set("key", "value", None, None, None).await.expect_err("the node stops");
        assert!(matches!(refused, WriteError::Log(AppendError::NotTaken(_))), "{refused}");
        assert!(log.0.lock().expect("no test panicked").is_empty());
    }
}
