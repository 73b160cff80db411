//! What `strong` and `latest` reads wait for. A barrier is a record of a reserved key that is appended to a partition: whoever is the
//! partition's leader can acknowledge it only if nobody else is, so what was acknowledged before lies in front of it. The high
//! watermark is only asked for, so that a deposed leader that has not noticed may name an old one.

use std::sync::Arc;

use bitacora_protocol::{HighWatermark, NextOffset, Position};
use futures_util::FutureExt as _;
use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;

use super::consistency::MAX_WAIT;
use super::rounds::{Reply, Rounds};
use crate::clock::Moment;
use crate::log::{Log, NewRecord};
use crate::metrics::Metrics;
use crate::replication::progress::Progress;

/// Of barriers. As of all reserved keys, their records are in the log only; nodes that know no barriers take them for deletes.
const BARRIER_KEY: &str = "\0barrier";

/// Why a question to the log came to nothing.
pub type Failed = Arc<str>;

/// Barriers of all partitions, and questions for the high watermarks.
pub struct Barriers {
    parts: Arc<Parts>,
    /// For each partition.
    appends: Mutex<Vec<Arc<Rounds<Result<Moment, Failed>>>>>,
    high_watermarks: Arc<Rounds<Result<HighWatermarks, Failed>>>,
}

/// The high watermark of each partition, and when it was asked for.
#[derive(Clone)]
pub struct HighWatermarks {
    pub asked_at: Moment,
    /// What had been applied by then: a log that ends before that is another one, or has lost records. What is applied later may lie
    /// beyond the answer.
    pub applied: Arc<[NextOffset]>,
    pub ends: Arc<[HighWatermark]>,
}

struct Parts {
    log: Arc<dyn Log>,
    progress: Arc<Progress>,
    metrics: Arc<Metrics>,
    /// Once true, nothing is appended. Held while a record is handed over, so that none slips past.
    closed: RwLock<bool>,
}

impl Barriers {
    #[must_use]
    pub fn new(log: Arc<dyn Log>, progress: Arc<Progress>, metrics: Arc<Metrics>) -> Self {
        let parts = Arc::new(Parts { log, progress, metrics, closed: false.into() });
        let asking = Arc::clone(&parts);
        let high_watermarks = Rounds::new(move |reply| Arc::clone(&asking).ask(reply).boxed());
        Self { parts, appends: Mutex::default(), high_watermarks }
    }

    /// Refuses every barrier from here on: the node stops.
    pub fn close(&self) {
        *self.parts.closed.write() = true;
    }

    /// Completes when a record that was appended to a partition after this call has been applied, and says when it was appended.
    ///
    /// # Errors
    /// When it was not.
    pub fn pass(&self, partition: i32) -> impl Future<Output = Result<Moment, Failed>> + Send + use<> {
        let passed = self.append_to(partition).ask();
        async move { passed.await.unwrap_or_else(|| Err(panicked())) }
    }

    /// The high watermarks, asked for after this call.
    ///
    /// # Errors
    /// When the log did not name them.
    pub fn high_watermarks(&self) -> impl Future<Output = Result<HighWatermarks, Failed>> + Send + use<> {
        let answer = self.high_watermarks.ask();
        async move { answer.await.unwrap_or_else(|| Err(panicked())) }
    }

    fn append_to(&self, partition: i32) -> Arc<Rounds<Result<Moment, Failed>>> {
        let mut appends = self.appends.lock();
        let index = usize::try_from(partition).unwrap_or(0);
        while appends.len() <= index {
            let (parts, partition) = (Arc::clone(&self.parts), appends.len() as i32);
            appends.push(Rounds::new(move |reply| Arc::clone(&parts).append(partition, reply).boxed()));
        }
        Arc::clone(&appends[index])
    }
}

fn panicked() -> Failed {
    "what asked the log for it has ended".into()
}

impl Parts {
    /// Appends a barrier to a partition. Done when it is acknowledged; those who wait are told when it is applied.
    async fn append(self: Arc<Self>, partition: i32, reply: Reply<Result<Moment, Failed>>) {
        let asked_at = self.progress.clock().now();
        let next = self.progress.next_offset(partition);
        let appended = {
            let closed = self.closed.read();
            if *closed {
                return reply.tell(Err("this node is stopping".into()));
            }
            let now = self.progress.clock().wall();
            self.log.append_record(NewRecord::reserved(partition, BARRIER_KEY, now))
        };
        let position = match appended.await {
            Ok(appended) => appended.position,
            Err(error) => {
                self.metrics.barriers.with_label_values(&["failed"]).inc();
                return reply.tell(Err(error.to_string().into()));
            }
        };
        self.metrics.barriers.with_label_values(&["acknowledged"]).inc();
        if next.is_none_or(|next| position.offset < next.0) {
            return reply.tell(Err("the log is not the one that this node reads".into()));
        }
        tokio::spawn(async move {
            let applied = tokio::select! {
                applied = self.progress.applied(position, Instant::now() + MAX_WAIT) => applied,
                () = reply.nobody_waits() => return,
            };
            reply.tell(applied.map(|()| asked_at).map_err(|why| why.to_string().into()));
        });
    }

    async fn ask(self: Arc<Self>, reply: Reply<Result<HighWatermarks, Failed>>) {
        let (asked_at, applied) = (self.progress.clock().now(), self.progress.next_offsets().into());
        let log = Arc::clone(&self.log);
        // It blocks.
        let answer = tokio::task::spawn_blocking(move || log.high_watermarks()).await;
        reply.tell(match answer {
            Ok(Ok(ends)) => Ok(HighWatermarks { asked_at, applied, ends: ends.into() }),
            Ok(Err(error)) => Err(error.to_string().into()),
            Err(_) => Err(panicked()),
        });
    }
}

/// The position at which everything below a high watermark is applied.
#[must_use]
pub fn last_below(end: HighWatermark, partition: i32) -> Position {
    NextOffset(end.0).applied(partition)
}
