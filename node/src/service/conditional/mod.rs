//! Conditional writes: what the node that accepts one does. It compares the condition with what it holds, appends an attempt that says
//! what it expects, and waits until the log has told what became of it. Whether an attempt takes effect is decided by every replica
//! alike, from the log alone; what is here sees to it that few attempts are appended in vain, and that nothing is refused
//! because this node was behind.

mod compare;
mod error;
mod key_access;
mod node_access;
mod options;
mod turns;

use std::sync::Arc;
use std::time::Duration;

use bitacora_protocol::record::{KeyValue, source, ttl};
use bitacora_protocol::{Position, WriteCondition};
use tokio::time::{Instant, timeout_at};

use self::compare::compare;
pub use self::error::{ConditionalError, NotMet};
pub use self::key_access::{Attempt, KeyAccess, NewAttempt, Prepared};
pub use self::node_access::{NodeAccess, Parts};
pub use self::options::WritesWithOptions;
use self::turns::{Turn, Turns};
use crate::clock::{LogTime, Moment};
use crate::log::{AppendError, Appended, Expected};
use crate::metrics::Metrics;
use crate::now_ms;
use crate::service::error::ErrorKind;
use crate::service::writes::{Earlier, Written};
use crate::store::{Decided, Decision, Entry, UuidText};
use crate::telemetry::TraceParent;

/// Who has just written a version elsewhere finds it here after a moment; before that, nothing is asked of the log.
const WAIT_FOR_VERSION: Duration = Duration::from_millis(50);
/// A write that loses to others so often leaves them the key.
const MAX_ATTEMPTS: u32 = 16;
/// The repair of an attempt that lost is left to the trimmers if it takes longer.
const MAX_REPAIR_WAIT: Duration = Duration::from_secs(1);
/// The brokers' clocks may differ by as much, and an acknowledgement be as late, without making an attempt void. Far less than
/// `DELETE_RETENTION`: a copy of an attempt that comes later must not find the key as forgotten as it was for the first.
const ATTEMPT_MARGIN: Duration = Duration::from_secs(30);

/// No record is there.
const NOWHERE: Position = Position { partition: 0, offset: -1 };

/// A write and its condition.
#[derive(Clone, Debug)]
pub struct ConditionalWrite {
    pub key: String,
    pub content: Content,
    pub condition: WriteCondition,
    /// The record's.
    pub uuid: String,
    pub trace: Option<TraceParent>,
    pub timeout: Duration,
}

/// What is written.
#[derive(Clone, Debug)]
pub enum Content {
    /// `live`: for how long; `None` for ever.
    Set {
        value: String,
        live: Option<Duration>,
    },
    Delete,
}

/// The conditional writes of a node.
pub struct ConditionalWrites<A> {
    access: A,
    turns: Turns,
    metrics: Arc<Metrics>,
}

/// A write while it is under way.
struct UnderWay<'a> {
    write: &'a ConditionalWrite,
    arrived: Moment,
    deadline: Instant,
    prepared: Prepared,
    turn: Turn,
    attempts: u32,
    /// When the last attempt was appended, by the clock of the partition's leader.
    appended_at: Option<LogTime>,
    waited_for_version: bool,
}

impl<A: KeyAccess> ConditionalWrites<A> {
    #[must_use]
    pub fn new(access: A, metrics: Arc<Metrics>) -> Self {
        Self { access, turns: Turns::default(), metrics }
    }

    /// Writes if the condition is met. An attempt that was appended takes its course also if the future is dropped.
    ///
    /// # Errors
    /// [`ConditionalError`] says by its kind whether the write may still take effect.
    pub async fn write(&self, write: &ConditionalWrite) -> Result<Written, ConditionalError> {
        let began = Instant::now();
        let mut attempts = 0;
        let outcome = self.write_in_turn(write, began + write.timeout, &mut attempts).await;
        self.metrics.conditional_write(label(&outcome, attempts), began.elapsed());
        outcome
    }

    async fn write_in_turn(
        &self,
        write: &ConditionalWrite,
        deadline: Instant,
        attempts: &mut u32,
    ) -> Result<Written, ConditionalError> {
        let arrived = self.access.now();
        let prepared = self.access.prepare(&write.key, deadline).await?;
        let turn = timeout_at(deadline, self.turns.wait(&write.key)).await;
        let turn = turn.map_err(|_| {
            ConditionalError::NotMade("other conditional writes of the key took all the time".to_owned())
        })?;
        let mut under_way = UnderWay {
            write,
            arrived,
            deadline,
            prepared,
            turn,
            attempts: 0,
            appended_at: None,
            waited_for_version: false,
        };
        let outcome = self.decide(&mut under_way).await;
        *attempts = under_way.attempts;
        outcome
    }

    /// Compares and attempts until the write has taken effect, or is refused while everything that matters is known.
    async fn decide(&self, under_way: &mut UnderWay<'_>) -> Result<Written, ConditionalError> {
        let write = under_way.write;
        loop {
            let fresh = under_way.turn.is_fresh_for(under_way.arrived);
            let held = self.access.held(&write.key, under_way.prepared)?;
            if fresh && let Some(written) = held.as_ref().and_then(|held| written_before(held, &write.uuid)) {
                return Ok(written);
            }
            // By the time that decided upon the last attempt, or else the present.
            let now = under_way.appended_at.unwrap_or_else(|| self.access.log_time());
            let expected = compare(write.condition, held.as_ref(), now);
            if expected.is_none() && fresh {
                let not_met = self.access.not_met(&write.key, held, now);
                return Err(ConditionalError::NotMet(Box::new(not_met)));
            }
            // It may be large, and what follows takes its time.
            drop(held);
            match expected {
                // What is held and live is also what the log has, or else the attempt is void. What this node does not hold may be there
                // all the same.
                Some(expected) if fresh || matches!(expected, Expected::Live(_)) => {
                    if let Some(written) = self.attempt(under_way, expected).await? {
                        return Ok(written);
                    }
                }
                _ => self.catch_up(under_way).await?,
            }
        }
    }

    /// Applies what had been appended when the write came; or, if it expects a version that was written a moment ago, at least that.
    async fn catch_up(&self, under_way: &mut UnderWay<'_>) -> Result<(), ConditionalError> {
        let UnderWay { write, deadline, prepared, .. } = *under_way;
        if let WriteCondition::Version(version) = write.condition
            && version.partition == prepared.partition
            && !std::mem::replace(&mut under_way.waited_for_version, true)
            && !self.access.has_applied(version)
        {
            let soon = deadline.min(Instant::now() + WAIT_FOR_VERSION);
            if self.access.applied(version, soon).await {
                return Ok(());
            }
        }
        let asked = self.access.now();
        self.access.barrier(&write.key, deadline).await?;
        under_way.turn.note_applied(asked);
        Ok(())
    }

    /// Appends an attempt and waits for what becomes of it; `None` if it took no effect.
    async fn attempt(
        &self,
        under_way: &mut UnderWay<'_>,
        expected: Expected,
    ) -> Result<Option<Written>, ConditionalError> {
        let UnderWay { write, deadline, prepared, .. } = *under_way;
        if under_way.attempts == MAX_ATTEMPTS {
            let why = format!("it lost to other writes of the key {MAX_ATTEMPTS} times");
            return Err(ConditionalError::NotMade(why));
        }
        if Instant::now() >= deadline {
            return Err(ConditionalError::NotMade("the time for it was over".to_owned()));
        }
        under_way.attempts += 1;
        let (sent, log_time) = (self.access.now(), under_way.appended_at.max(Some(self.access.log_time())));
        let until = log_time.unwrap_or_default() + self.access.write_timeout() + ATTEMPT_MARGIN;
        let (ttl, value) = encode(write);
        let attempt = self.access.attempt(NewAttempt {
            partition: prepared.partition,
            key: &write.key,
            value,
            uuid: &write.uuid,
            expected,
            until,
            trace: write.trace,
        });
        self.metrics.conditional_attempts.inc();
        let decided = outcome(attempt, deadline).await?;
        let (position, timestamp) = (decided.entry.position(), decided.entry.timestamp());
        match decided.decision {
            Decision::InEffect => {
                under_way.turn.note_applied(sent);
                let appended = Appended { position, timestamp };
                Ok(Some(Written {
                    appended,
                    ttl,
                    uuid: write.uuid.clone(),
                    not_visible: Vec::new(),
                    earlier: None,
                }))
            }
            Decision::Void => {
                under_way.turn.note_applied(sent);
                under_way.appended_at = Some(timestamp);
                // Before it is answered, so that compaction finds no attempt that took no effect as the last record of its key. The trimmers
                // do the same for who does not.
                if self.access.repair(&write.key, deadline.min(Instant::now() + MAX_REPAIR_WAIT)).await {
                    self.metrics.conditional_repairs.inc();
                }
                Ok(None)
            }
            Decision::Unknown => Err(ConditionalError::Unclear(
                "this node can't judge it, since the log's part before it was compacted when it was read",
            )),
        }
    }
}

/// What became of an attempt, be it told before the acknowledgement or after, or without one.
///
/// The log's client may enter a record twice, also an attempt before that has the same uuid. So what took no effect tells of this attempt
/// only if it lies where the acknowledgement says; what is in effect tells wherever it lies.
async fn outcome(attempt: Attempt, deadline: Instant) -> Result<Decided, ConditionalError> {
    let Attempt { mut acknowledged, mut waiting } = attempt;
    let late = tokio::time::sleep_until(deadline);
    tokio::pin!(late);
    let (mut position, mut lost) = (None, false);
    loop {
        // Where no acknowledgement will come, any copy ends the wait: a later one may take effect, but nothing more can be known.
        let settled_by = if lost { None } else { Some(position.unwrap_or(NOWHERE)) };
        tokio::select! {
            biased;
            decided = waiting.decided(settled_by) => {
                if lost && decided.decision != Decision::InEffect {
                    return Err(ConditionalError::Unclear(
                        "no broker acknowledged it; a copy of it is in the log, and took no effect",
                    ));
                }
                return Ok(decided);
            }
            appended = &mut acknowledged, if position.is_none() && !lost => match appended {
                Ok(appended) => position = Some(appended.position),
                // It may be in the log all the same, which then tells what became of it.
                Err(AppendError::Unknown(_)) => lost = true,
                Err(error) => return Err(ConditionalError::Log(error)),
            },
            () = &mut late => return Err(ConditionalError::Undecided),
        }
    }
}

/// The answer to a write whose record is already the key's: an earlier call of the same uuid has written it.
fn written_before(held: &Entry, uuid: &str) -> Option<Written> {
    let mut text = UuidText::default();
    let record = held.record(&mut text).filter(|record| record.uuid.eq_ignore_ascii_case(uuid))?;
    let (ttl, uuid) = (record.ttl, record.uuid.to_owned());
    let appended = Appended { position: held.position(), timestamp: held.timestamp() };
    Some(Written {
        appended,
        ttl,
        uuid,
        not_visible: Vec::new(),
        earlier: Some(Earlier { entry: held.clone(), memory: None }),
    })
}

/// The record's time to live, and its bytes.
fn encode(write: &ConditionalWrite) -> (i64, Vec<u8>) {
    let (value, ttl) = match &write.content {
        Content::Set { value, live: None } => (value.as_str(), ttl::FOR_EVER),
        Content::Set { value, live: Some(live) } => (value.as_str(), now_ms() + live.as_millis() as i64),
        Content::Delete => ("", ttl::DELETED),
    };
    let (key, uuid) = (write.key.as_str(), write.uuid.as_str());
    let mut bytes = Vec::new();
    KeyValue { key, value, timestamp: now_ms(), source: source::PRODUCER, ttl, uuid }.encode(&mut bytes);
    (ttl, bytes)
}

/// The `outcome` label of the metrics.
fn label(outcome: &Result<Written, ConditionalError>, attempts: u32) -> &'static str {
    match outcome {
        Ok(_) => "in_effect",
        Err(ConditionalError::NotMet(_)) if attempts > 0 => "lost",
        Err(ConditionalError::NotMet(_)) => "not_met",
        Err(error) if error.kind() == ErrorKind::MayTakeEffect => "unclear",
        Err(_) => "refused",
    }
}

#[cfg(test)]
mod tests;
