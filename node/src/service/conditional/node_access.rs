//! A node's store and log, as its conditional writes see them.

use std::sync::Arc;
use std::time::Duration;

use bitacora_protocol::rpc::ServedFrom;
use bitacora_protocol::{Consistency, Position, ReadOptions};
use futures_util::FutureExt as _;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout_at};

use super::key_access::{Attempt, KeyAccess, NewAttempt, Prepared};
use super::{ConditionalError, NotMet};
use crate::clock::{LogTime, Moment};
use crate::log::{Condition, Log, NewRecord, OpenError};
use crate::replication::decisions::Decisions;
use crate::replication::progress::Progress;
use crate::service::consistency::{ConsistentReads, Demand};
use crate::service::level::LogLevel;
use crate::service::reads::{Answer, LookupResult};
use crate::service::writes::Writes;
use crate::store::{Entry, Store};
use crate::trimming;

/// Between two looks whether the topic is fit for conditional writes: it is an operator who changes it.
const TOPIC_RECHECK_INTERVAL: Duration = Duration::from_mins(1);
/// The same where it was not: who mends it does not want to wait.
const UNFIT_TOPIC_RECHECK_INTERVAL: Duration = Duration::from_secs(5);
/// The same where it did not say.
const UNKNOWN_TOPIC_RECHECK_INTERVAL: Duration = Duration::from_millis(200);

/// What conditional writes work with.
pub struct Parts {
    pub log: Arc<dyn Log>,
    pub store: Arc<Store>,
    pub progress: Arc<Progress>,
    pub decisions: Arc<Decisions>,
    pub writes: Arc<Writes>,
    pub consistent: Arc<ConsistentReads>,
    pub level: LogLevel,
    /// Whether nodes of the original system read the topic, too.
    pub original_nodes: bool,
    /// `DELETE_RETENTION`.
    pub retention: Duration,
}

/// Why there are no conditional writes of a topic.
#[derive(Clone)]
enum Unfit {
    /// May pass: it did not say, or is not read as a whole yet.
    Unknown(String),
    /// An operator must change it.
    Refused(String),
}

impl From<OpenError> for Unfit {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Unavailable(why) => Self::Unknown(why),
            OpenError::Refused(why) => Self::Refused(why),
        }
    }
}

/// A node's store and log.
pub struct NodeAccess {
    parts: Parts,
    /// Whether the topic is fit for conditional writes, and when it was looked at.
    topic: Mutex<Option<(Moment, Result<(), Unfit>)>>,
}

impl NodeAccess {
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self { parts, topic: Mutex::default() }
    }

    /// That the topic keeps what conditional writes rest on.
    async fn check_topic(&self) -> Result<(), ConditionalError> {
        let mut known = self.topic.lock().await;
        let now = self.now();
        let is_fresh = |(looked, fit): &(Moment, Result<(), Unfit>)| {
            let interval = match fit {
                Ok(()) => TOPIC_RECHECK_INTERVAL,
                Err(Unfit::Refused(_)) => UNFIT_TOPIC_RECHECK_INTERVAL,
                Err(Unfit::Unknown(_)) => UNKNOWN_TOPIC_RECHECK_INTERVAL,
            };
            now.since(*looked) < interval
        };
        let fit = match known.as_ref().filter(|known| is_fresh(known)) {
            Some((_, fit)) => fit.clone(),
            None => {
                let log = Arc::clone(&self.parts.log);
                // It blocks.
                let fit = tokio::task::spawn_blocking(move || log.check_conditional_writes()).await;
                let ended_early = || OpenError::Unavailable("the look at the topic ended early".to_owned());
                let fit = fit.unwrap_or_else(|_| Err(ended_early())).map_err(Unfit::from);
                *known = Some((now, fit.clone()));
                fit
            }
        };
        fit.map_err(|unfit| match unfit {
            Unfit::Unknown(why) => ConditionalError::NotReady(why),
            Unfit::Refused(why) => ConditionalError::NotPossible(why),
        })
    }

    /// The number of the store that is read.
    fn store_number(&self) -> Result<u64, ConditionalError> {
        let number = self.parts.progress.store_number().filter(|_| {
            let progress = &self.parts.progress;
            progress.restored() && progress.caught_up_in_this_run()
        });
        number.ok_or_else(|| {
            ConditionalError::NotReady("it has not caught up with the log since it was opened".to_owned())
        })
    }
}

impl KeyAccess for NodeAccess {
    async fn prepare(&self, key: &str, deadline: Instant) -> Result<Prepared, ConditionalError> {
        if self.parts.original_nodes {
            let why = "nodes of the original system, which do not know them, read the topic (ORIGINAL_NODES)";
            return Err(ConditionalError::NotPossible(why.to_owned()));
        }
        let too_late =
            |_| ConditionalError::NotMade("the topic's settings were not known in time".to_owned());
        // First: before the log was opened, nobody knows whether its topic is fit.
        let store_number = self.store_number()?;
        timeout_at(deadline, self.check_topic()).await.map_err(too_late)??;
        let partition = self.parts.progress.applied_for(key.as_bytes()).partition;
        self.held(key, Prepared { partition, store_number })?;
        self.parts.level.raise(partition, deadline).await?;
        Ok(Prepared { partition, store_number })
    }

    fn held(&self, key: &str, prepared: Prepared) -> Result<Option<Entry>, ConditionalError> {
        let found = self.parts.store.versioned(key.as_bytes(), prepared.partition)?;
        if self.store_number()? != prepared.store_number {
            return Err(ConditionalError::NotReady("its store was replaced meanwhile".to_owned()));
        }
        if found.elsewhere {
            return Err(ConditionalError::Elsewhere);
        }
        if found.in_doubt {
            return Err(ConditionalError::NotReady(
                "it can't tell whether the key's record took effect, since the log's part before it was compacted when it was read"
                    .to_owned(),
            ));
        }
        Ok(found.entry)
    }

    async fn barrier(&self, key: &str, deadline: Instant) -> Result<(), ConditionalError> {
        let timeout = Some(deadline.saturating_duration_since(Instant::now()));
        let read = ReadOptions { consistency: Consistency::Strong, timeout, ..ReadOptions::default() };
        let failed = |error: &dyn std::fmt::Display| ConditionalError::NotMade(error.to_string());
        let demand = Demand::of(&read).map_err(|error| failed(&error))?;
        let reached = self.parts.consistent.reach(Some(key), &demand).await;
        reached.map(|_| ()).map_err(|error| failed(&error))
    }

    fn has_applied(&self, position: Position) -> bool {
        let next = self.parts.progress.next_offset(position.partition);
        next.is_some_and(|next| position.offset < next.0)
    }

    async fn applied(&self, position: Position, deadline: Instant) -> bool {
        self.parts.progress.applied(position, deadline).await.is_ok()
    }

    fn attempt(&self, attempt: NewAttempt<'_>) -> Attempt {
        let NewAttempt { partition, key, value, uuid, expected, until, trace } = attempt;
        let waiting = self.parts.decisions.wait_for(key.as_bytes(), uuid);
        let log = self.parts.store.log();
        let condition = Condition::Attempt { expected, until, log };
        let record = NewRecord::conditional(partition, key.into(), Some(value), condition);
        let acknowledged = self.parts.writes.append_record(&NewRecord { trace, ..record }).boxed();
        Attempt { acknowledged, waiting }
    }

    async fn repair(&self, key: &str, deadline: Instant) -> bool {
        let Ok(repairs) = trimming::repairs_of(&self.parts.store, self.parts.retention, key.as_bytes())
        else {
            // The trimmers find it, too.
            return false;
        };
        let mut acknowledged = false;
        for repair in repairs {
            let appended = timeout_at(deadline, self.parts.writes.append_record(&repair)).await;
            acknowledged |= matches!(appended, Ok(Ok(_)));
        }
        acknowledged
    }

    fn not_met(&self, key: &str, held: Option<Entry>, now: LogTime) -> NotMet {
        let from = ServedFrom::Store;
        let Some(entry) = held else {
            let position = self.parts.progress.applied_for(key.as_bytes());
            return NotMet { current: Answer::new(LookupResult::Missing, position, from), version: None };
        };
        let (position, is_live) = (entry.position(), entry.is_live_at(now));
        let timestamp = entry.timestamp().ms();
        let found = if is_live { LookupResult::Local(entry) } else { LookupResult::Gone { timestamp } };
        NotMet { current: Answer::new(found, position, from), version: is_live.then_some(position) }
    }

    fn write_timeout(&self) -> Duration {
        self.parts.log.write_timeout()
    }

    fn now(&self) -> Moment {
        self.parts.progress.clock().now()
    }

    fn log_time(&self) -> LogTime {
        let progress = &self.parts.progress;
        // Of the log's clock, at least: what is called expired by it is so, and what a barrier of this call has found live was live when that
        // was appended. This machine's, which may show anything, is asked only where nothing was read; an attempt that it
        // makes void is followed by one that knows the log's.
        let log_time = progress.log_time_now().or_else(|| progress.log_time_at_least());
        log_time.unwrap_or_else(|| progress.clock().wall().assuming_clocks_agree())
    }
}
