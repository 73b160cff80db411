//! What a call does until it has an answer or its deadline is over: which failures are final, and what is tried again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use bitacora_protocol::rpc::{self, ErrorCode, Request, RequestError};
use tokio::time::{Instant, sleep, timeout_at};

use crate::balance::Node;
use crate::client::Inner;
use crate::connection::{Failure, Found, Missing, Reply};
use crate::error::{Error, NodeFailure, Refusal};
use crate::types::Record;

/// The pause before the first retry, and the longest one; chance makes each up to twice as long.
const SHORTEST_RETRY_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_RETRY_PAUSE: Duration = Duration::from_millis(250);
/// An attempt that may be repeated elsewhere gets one part in so many of the deadline; the last one gets what is left.
const ATTEMPTS_IN_DEADLINE: u32 = 4;
/// So many attempts of a call are cut short like that.
const MAX_SHORT_ATTEMPTS: u32 = 2;

/// The record that a node answered, or [`Error::NotFound`].
pub(crate) fn read(found: Found, key: &str) -> Result<Record, Error> {
    found.map_err(|Missing { position, timestamp, served_from }| Error::NotFound {
        key: key.to_owned(),
        position,
        timestamp,
        served_from,
    })
}

/// A call: its deadline, and what its attempts have met so far.
pub(crate) struct Call<'a> {
    inner: &'a Inner,
    deadline: Duration,
    ends: Instant,
    /// Whether it, as it is now, changes keys.
    pub(crate) is_write: bool,
    pauses: ExponentialBackoff,
    /// Attempts that nobody answered in time.
    timeouts: u32,
    /// Who was asked last; another one is better for the next attempt.
    node: Option<Arc<Node>>,
    /// An attempt may have taken effect.
    ambiguous: Option<Error>,
}

impl<'a> Call<'a> {
    pub(crate) fn new(inner: &'a Inner, deadline: Duration, ends: Instant, is_write: bool) -> Self {
        inner.calls.fetch_add(1, Ordering::SeqCst);
        let pauses = ExponentialBuilder::default()
            .with_min_delay(SHORTEST_RETRY_PAUSE)
            .with_max_delay(LONGEST_RETRY_PAUSE)
            .with_jitter()
            .without_max_times()
            .build();
        Self { inner, deadline, ends, is_write, pauses, timeouts: 0, node: None, ambiguous: None }
    }

    /// A part that is sent by itself, within the same deadline.
    pub(crate) fn part(&self) -> Self {
        Self::new(self.inner, self.deadline, self.ends, self.is_write)
    }

    /// Whether an attempt that may have taken effect may be repeated.
    fn is_repeatable(&self) -> bool {
        !self.is_write || self.inner.retry_ambiguous_writes
    }

    /// Tries until there is a reply, or an error that is final, or the deadline is over.
    pub(crate) async fn send(&mut self, request: &Request<'_>) -> Result<Reply, Error> {
        let mut before = None;
        loop {
            let (error, retry) = match self.attempt(request).await {
                Ok(reply) => {
                    self.ambiguous = None;
                    return Ok(reply);
                }
                Err(failed) => failed,
            };
            if error.may_have_taken_effect() {
                self.ambiguous = Some(error.clone());
            }
            if !(retry && self.pause().await) {
                // An attempt that was cut short says less than the one before.
                let cut_short = matches!(error, Error::TimedOut { may_have_taken_effect: false, .. });
                let error = before.filter(|_| cut_short).unwrap_or(error);
                return Err(self.ambiguous.take().unwrap_or(error));
            }
            before = Some(error);
        }
    }

    /// The error comes with whether to try again.
    async fn attempt(&mut self, request: &Request<'_>) -> Result<Reply, (Error, bool)> {
        let pool = &self.inner.pool;
        let Some(node) = pool.pick(self.node.as_ref()) else {
            let discovery = self.inner.discovery.lock();
            let look = discovery.as_ref().and_then(|discovery| discovery.looks.borrow().clone().err());
            return Err((Error::NoNode { last: look }, true));
        };
        let now = Instant::now();
        if now >= self.ends {
            return Err((self.timed_out(false, None), false));
        }
        let mut until = self.ends;
        if self.is_repeatable() && self.timeouts < MAX_SHORT_ATTEMPTS && pool.len() > 1 {
            until =
                now.checked_add(self.deadline / ATTEMPTS_IN_DEADLINE).map_or(until, |short| short.min(until));
        }
        let mut sent = false;
        let answered = timeout_at(until, node.call(request, &mut sent)).await;
        let node = &*self.node.insert(node);
        match answered {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(failure)) => Err(self.judge(failure)),
            Err(_) => {
                node.timed_out();
                self.timeouts += 1;
                let last = Some(format!("no answer from {}", self.address()));
                Err((self.timed_out(sent, last), self.is_repeatable()))
            }
        }
    }

    fn timed_out(&self, sent: bool, last: Option<String>) -> Error {
        Error::TimedOut { may_have_taken_effect: self.is_write && sent, after: self.deadline, last }
    }

    /// What a failed attempt means, and whether to try again.
    fn judge(&self, failure: Failure) -> (Error, bool) {
        match failure {
            Failure::Unreachable(reason) | Failure::Gone(reason) | Failure::Lost { sent: false, reason } => {
                (Error::NoNode { last: Some(format!("{}: {reason}", self.address())) }, true)
            }
            Failure::Lost { reason, .. } if self.is_write => {
                (Error::Unacknowledged { node: self.address(), reason }, self.is_repeatable())
            }
            Failure::Lost { reason, .. } => (Error::Node(self.failed(reason, true)), true),
            Failure::Nonsense { sent, reason } => (Error::Protocol(self.failed(reason, sent)), false),
            Failure::Answered(rpc::Failure::Text(reason)) => {
                (Error::Protocol(self.failed(reason, true)), false)
            }
            Failure::Answered(rpc::Failure::Declared(error)) => self.judge_answer(error),
        }
    }

    /// What a node's error means, and whether to try again.
    pub(crate) fn judge_answer(&self, error: RequestError) -> (Error, bool) {
        let RequestError { code, message: reason } = error;
        if let (ErrorCode::NotReady | ErrorCode::Internal, Some(node)) = (code, &self.node) {
            node.refused(&reason);
        }
        match code {
            ErrorCode::BadRequest => (Error::Refused { refusal: Refusal::BadRequest, reason }, false),
            ErrorCode::TooLarge => (Error::Refused { refusal: Refusal::TooLarge, reason }, false),
            ErrorCode::NotReady => (Error::NotReady { node: self.address(), reason }, true),
            ErrorCode::NotTaken => (Error::NotTaken { node: Some(self.address()), reason }, true),
            ErrorCode::MayTakeEffect if self.is_write => {
                (Error::Unacknowledged { node: self.address(), reason }, self.is_repeatable())
            }
            ErrorCode::MayTakeEffect | ErrorCode::Internal => {
                (Error::Node(self.failed(reason, true)), self.is_repeatable())
            }
        }
    }

    /// Of the node that was asked last.
    fn address(&self) -> String {
        self.node.as_ref().map(|node| node.address().to_owned()).unwrap_or_default()
    }

    pub(crate) fn failed(&self, reason: String, sent: bool) -> NodeFailure {
        NodeFailure { node: self.address(), reason, may_have_taken_effect: self.is_write && sent }
    }

    /// Waits before the next attempt; false if there is no time for one.
    pub(crate) async fn pause(&mut self) -> bool {
        let pause = self.pauses.next().unwrap_or(LONGEST_RETRY_PAUSE);
        if Instant::now() + pause >= self.ends {
            return false;
        }
        sleep(pause).await;
        true
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if self.inner.calls.fetch_sub(1, Ordering::SeqCst) == 1 && self.inner.closed.load(Ordering::SeqCst) {
            self.inner.idle.notify_waiters();
        }
    }
}
