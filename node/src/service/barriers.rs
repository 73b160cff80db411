//! What `strong` and `latest` reads wait for. A barrier is a record of a reserved key that is appended to a partition: whoever is the
//! partition's leader can acknowledge it only if nobody else is, so what was acknowledged before lies in front of it. The high
//! watermark is only asked for, so that a deposed leader that has not noticed may name an old one. Either is of the partition that the
//! read is of: what became of the leaders of others is nothing to it.

use std::collections::HashMap;
use std::sync::Arc;

use bitacora_protocol::{HighWatermark, NextOffset, Position};
use futures_util::FutureExt as _;
use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;
use uuid::Uuid;

use super::consistency::MAX_WAIT;
use super::rounds::{Reply, Rounds};
use crate::clock::Moment;
use crate::log::{Log, NewRecord};
use crate::metrics::Metrics;
use crate::replication::progress::{Progress, WaitError};

/// Why a question to the log came to nothing.
pub type Failed = Arc<str>;

/// Barriers of all partitions, and questions for the high watermarks.
pub struct Barriers {
    parts: Arc<Parts>,
    /// For each partition.
    appends: Mutex<Vec<Arc<Rounds<Result<Moment, Failed>>>>>,
    /// For each partition, and for all together (`None`).
    questions: Mutex<HashMap<Option<i32>, Arc<Rounds<Result<HighWatermarks, Failed>>>>>,
}

/// High watermarks, and when they were asked for.
#[derive(Clone)]
pub struct HighWatermarks {
    pub asked_at: Moment,
    /// The last position below that of each partition that was asked for.
    pub last: Arc<[Position]>,
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
        Self { parts, appends: Mutex::default(), questions: Mutex::default() }
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

    /// The high watermark of a partition or, of `None`, of all, asked for after this call.
    ///
    /// # Errors
    /// When the log did not name them, or ends before what was applied.
    pub fn high_watermarks(
        &self,
        partition: Option<i32>,
    ) -> impl Future<Output = Result<HighWatermarks, Failed>> + Send + use<> {
        let answer = self.question(partition).ask();
        async move { answer.await.unwrap_or_else(|| Err(panicked())) }
    }

    fn question(&self, partition: Option<i32>) -> Arc<Rounds<Result<HighWatermarks, Failed>>> {
        let mut questions = self.questions.lock();
        let rounds = questions.entry(partition).or_insert_with(|| {
            let parts = Arc::clone(&self.parts);
            Rounds::new(move |reply| Arc::clone(&parts).ask(partition, reply).boxed())
        });
        Arc::clone(rounds)
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
    /// Appends a barrier to a partition. Done when it is acknowledged; those who wait are told when it has been read, and so everything
    /// before it applied, which may be earlier.
    async fn append(self: Arc<Self>, partition: i32, reply: Reply<Result<Moment, Failed>>) {
        let asked_at = self.progress.clock().now();
        let next = self.progress.next_offset(partition);
        let uuid = Uuid::new_v4().to_string();
        let mut wait = self.progress.barriers_read().wait_for(&uuid);
        let mut appended = {
            let closed = self.closed.read();
            if *closed {
                return reply.tell(Err("this node is stopping".into()));
            }
            let now = self.progress.clock().wall();
            self.log.append_record(&NewRecord::barrier(partition, &uuid, now))
        };
        let acknowledged = tokio::select! {
            biased;
            position = wait.read() => {
                self.metrics.barriers.with_label_values(&["acknowledged"]).inc();
                self.tell(reply, next, asked_at, position);
                let _ = appended.await;
                return;
            }
            appended = &mut appended => appended,
        };
        let position = match acknowledged {
            Ok(appended) => appended.position,
            Err(error) => {
                self.metrics.barriers.with_label_values(&["failed"]).inc();
                return reply.tell(Err(error.to_string().into()));
            }
        };
        self.metrics.barriers.with_label_values(&["acknowledged"]).inc();
        self.tell(reply, next, asked_at, position);
    }

    /// Tells those who wait for a barrier of a partition whose next offset was `next` when it was appended, once it is applied.
    fn tell(
        &self,
        reply: Reply<Result<Moment, Failed>>,
        next: Option<NextOffset>,
        asked_at: Moment,
        position: Position,
    ) {
        if next.is_none_or(|next| position.offset < next.0) {
            return reply.tell(Err("the log is not the one that this node reads".into()));
        }
        let progress = Arc::clone(&self.progress);
        let mut applied =
            Box::pin(async move { progress.applied(position, Instant::now() + MAX_WAIT).await });
        let outcome = move |applied: Result<(), WaitError>| {
            applied.map(|()| asked_at).map_err(|why| why.to_string().into())
        };
        if let Some(applied) = (&mut applied).now_or_never() {
            return reply.tell(outcome(applied));
        }
        tokio::spawn(async move {
            let applied = tokio::select! {
                applied = applied => applied,
                () = reply.nobody_waits() => return,
            };
            reply.tell(outcome(applied));
        });
    }

    async fn ask(self: Arc<Self>, partition: Option<i32>, reply: Reply<Result<HighWatermarks, Failed>>) {
        let asked_at = self.progress.clock().now();
        // What is applied later may lie beyond the answer.
        let applied = match partition {
            Some(partition) => self.progress.next_offset(partition).into_iter().collect(),
            None => self.progress.next_offsets(),
        };
        let log = Arc::clone(&self.log);
        // It blocks.
        let answer = tokio::task::spawn_blocking(move || match partition {
            Some(partition) => log.high_watermark(partition).map(|end| vec![end]),
            None => log.high_watermarks(),
        });
        reply.tell(match answer.await {
            Ok(Ok(ends)) => last_positions(partition.unwrap_or(0), &applied, &ends)
                .map(|last| HighWatermarks { asked_at, last }),
            Ok(Err(error)) => Err(format!("the high watermark is not known: {error}").into()),
            Err(_) => Err(panicked()),
        });
    }
}

/// For each of the partitions from `first` on, the position at which everything below its high watermark is applied. A log that ends
/// before what was applied when it was asked, or has other partitions, is another one, or has lost records.
fn last_positions(
    first: i32,
    applied: &[NextOffset],
    ends: &[HighWatermark],
) -> Result<Arc<[Position]>, Failed> {
    if applied.len() != ends.len() || applied.iter().zip(ends).any(|(next, end)| next.0 > end.0) {
        return Err("the log is not as it was opened, and is looked at again".into());
    }
    Ok((first..).zip(ends).map(|(partition, end)| NextOffset(end.0).applied(partition)).collect())
}
