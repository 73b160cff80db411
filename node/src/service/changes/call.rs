//! A call that reads changes: all that it knows of who calls is in the token.

use std::sync::Arc;
use std::time::Duration;

use bitacora_protocol::Position;
use tokio::time::{Instant, sleep_until};

use super::ends::LogEnds;
use super::reader::{Ended, Reader, Told};
use super::{Changes, ChangesError, MAX_LIMIT, MAX_WAIT, Wanted};
use crate::service::memory::Permit;

/// Events of an answer, at most, unless one alone has more.
const MAX_BYTES: usize = 1 << 20;
/// How long a call that has something to answer waits to hear where the log ends.
const ENDS_WITHIN: Duration = Duration::from_secs(1);

/// What a call is answered.
pub struct ChangesAnswer {
    pub events: Vec<Told>,
    /// The token that goes on behind them.
    pub next: String,
    /// Whether all that was in the log when the call came has been told.
    pub current: bool,
    /// Up to where each partition has been told; empty while that is nowhere.
    pub positions: Vec<Position>,
    /// Of the events, until they are sent.
    pub memory: Permit,
}

impl Changes {
    /// What has changed, at most `limit` events; waits until there is one, no longer than `wait`.
    ///
    /// # Errors
    /// When the call makes no sense, or the node can't tell now.
    pub async fn call(
        self: &Arc<Self>,
        wanted: &Wanted<'_>,
        limit: i32,
        wait: Duration,
    ) -> Result<ChangesAnswer, ChangesError> {
        let checked = usize::try_from(limit).ok().filter(|_| (1..=MAX_LIMIT).contains(&limit));
        let limit = checked.ok_or(ChangesError::Limit(limit))?;
        if wait > MAX_WAIT {
            return Err(ChangesError::Wait { ms: wait.as_millis() });
        }
        let reader = self.begin(wanted)?;
        let ends = LogEnds::ask(self);
        let now = Instant::now();
        let mut call = Call { reader, ends, events: Vec::new(), bytes: 0, limit };
        call.run(now + wait, now + ENDS_WITHIN).await?;
        let Call { reader, ends, events, bytes, .. } = call;
        Ok(ChangesAnswer {
            events,
            next: reader.token().encode(),
            current: ends.known().is_some_and(|ends| reader.is_current(ends)),
            positions: reader.positions(),
            memory: self.memory.take_anyway(bytes),
        })
    }
}

struct Call {
    reader: Reader,
    ends: LogEnds,
    events: Vec<Told>,
    bytes: usize,
    limit: usize,
}

impl Call {
    /// Reads until there is something to answer, or the time is over.
    async fn run(&mut self, until: Instant, ends_until: Instant) -> Result<(), ChangesError> {
        loop {
            let (limit, bytes) = (self.limit - self.events.len(), MAX_BYTES - self.bytes);
            let read = match self.reader.read(limit, bytes).await {
                Ok(read) => read,
                Err(_) if !self.events.is_empty() => return Ok(()),
                Err(Ended::Stopping) => return Err(ChangesError::Stopping),
                Err(Ended::NotRestored) => return Err(ChangesError::NotRestored),
                Err(Ended::Store(error)) => return Err(error.into()),
            };
            self.bytes += read.events.iter().map(Told::bytes).sum::<usize>();
            self.events.extend(read.events);
            if self.events.len() >= self.limit || self.bytes >= MAX_BYTES {
                return Ok(());
            }
            if read.more {
                continue;
            }
            let has_something = !self.events.is_empty();
            let ends_may_come = self.ends.is_asked() && Instant::now() < ends_until;
            let is_over = has_something || Instant::now() >= until;
            if is_over && !ends_may_come {
                return Ok(());
            }
            tokio::select! {
                () = self.ends.answered() => {
                    if let Some(ends) = self.ends.known() {
                        self.reader.learn_ends(ends);
                    }
                }
                () = self.reader.changed(), if !is_over => {}
                () = sleep_until(if is_over { ends_until } else { until }) => {}
            }
        }
    }
}
