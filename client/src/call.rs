//! What a call does until it has an answer or its deadline is over: which failures are final, and what is tried again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use backon::ExponentialBackoff;
use bitacora_protocol::Operation;
use bitacora_protocol::rpc::{self, ErrorCode, Message, Request, RequestError};
use tokio::time::{Instant, sleep, timeout_at};

use crate::balance::{Node, is_among, pauses};
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
    /// As long as closing the client waits for it.
    _counted: Option<Counted<'a>>,
    deadline: Duration,
    ends: Instant,
    /// Whether it, as it is now, changes keys.
    pub(crate) is_write: bool,
    pauses: ExponentialBackoff,
    /// Attempts that nobody answered in time.
    timeouts: u32,
    /// Who is asked first, if it is healthy.
    preferred: Option<Arc<Node>>,
    /// Who was asked last; another one is better for the next attempt.
    node: Option<Arc<Node>>,
    /// Those that declare no such message.
    lacking: Vec<Arc<Node>>,
    /// An attempt may have taken effect.
    ambiguous: Option<Error>,
    /// As above, whatever came later.
    pub(crate) unclear: bool,
    /// An attempt that may have taken effect may be repeated.
    pub(crate) repeatable: bool,
    /// What was sent last.
    message: Option<Message>,
}

impl<'a> Call<'a> {
    pub(crate) fn new(inner: &'a Inner, deadline: Duration, ends: Instant, is_write: bool) -> Self {
        Self { _counted: Some(Counted::new(inner)), ..Self::unaccounted(inner, deadline, ends, is_write) }
    }

    /// A read that waits for changes: closing the client does not wait for it. It asks `preferred` first, if that is healthy.
    pub(crate) fn following(inner: &'a Inner, preferred: Option<Arc<Node>>) -> Self {
        let mut call = Self::unaccounted(inner, Duration::ZERO, Instant::now(), false);
        call.preferred = preferred;
        call.give_attempts_all_the_time();
        call
    }

    fn unaccounted(inner: &'a Inner, deadline: Duration, ends: Instant, is_write: bool) -> Self {
        let pauses = pauses(SHORTEST_RETRY_PAUSE, LONGEST_RETRY_PAUSE);
        Self {
            inner,
            _counted: None,
            deadline,
            ends,
            is_write,
            pauses,
            timeouts: 0,
            preferred: None,
            node: None,
            lacking: Vec::new(),
            ambiguous: None,
            unclear: false,
            repeatable: inner.retry_ambiguous_writes,
            message: None,
        }
    }

    /// Each attempt has all the time that there is.
    pub(crate) fn give_attempts_all_the_time(&mut self) {
        self.timeouts = MAX_SHORT_ATTEMPTS;
    }

    /// When its deadline is over.
    pub(crate) fn ends(&self) -> Instant {
        self.ends
    }

    /// Who was asked last.
    pub(crate) fn last_node(&self) -> Option<Arc<Node>> {
        self.node.clone()
    }

    /// A part that is sent by itself, within the same deadline.
    pub(crate) fn part(&self) -> Self {
        Self::new(self.inner, self.deadline, self.ends, self.is_write)
    }

    /// Whether an attempt that may have taken effect may be repeated.
    fn is_repeatable(&self) -> bool {
        !self.is_write || self.repeatable
    }

    /// Tries until there is a reply, or an error that is final, or the deadline is over.
    pub(crate) async fn send(&mut self, request: &Request<'_>) -> Result<Reply, Error> {
        let (mut before, mut attempts) = (None, 0);
        self.message = Some(request.message());
        loop {
            attempts += 1;
            let (error, retry) = match self.attempt(request).await {
                Ok(reply) => {
                    self.ambiguous = None;
                    return Ok(reply);
                }
                Err(failed) => failed,
            };
            if error.may_have_taken_effect() {
                self.ambiguous = Some(error.clone());
                self.unclear = true;
            }
            if !(retry && self.pause().await) {
                // An attempt that was cut short says less than the one before.
                let cut_short = matches!(error, Error::TimedOut { may_have_taken_effect: false, .. });
                let error = before.filter(|_| cut_short).unwrap_or(error);
                return Err(self.ambiguous.take().unwrap_or_else(|| self.of_all(attempts, error)));
            }
            before = Some(error);
        }
    }

    /// What a node says of the time that it waited is about its last attempt, which may have had little left.
    fn of_all(&self, attempts: u32, error: Error) -> Error {
        match error {
            Error::NotReady { node, reason } if attempts > 1 => {
                let reason = format!("{reason}; asked {attempts} times within {:?}", self.deadline);
                Error::NotReady { node, reason }
            }
            error => error,
        }
    }

    /// Tries once, for so long at most. The error comes with whether to try again.
    pub(crate) async fn once(
        &mut self,
        request: &Request<'_>,
        time: Duration,
    ) -> Result<Reply, (Error, bool)> {
        (self.deadline, self.ends) = (time, Instant::now() + time);
        self.message = Some(request.message());
        self.attempt(request).await
    }

    /// The error comes with whether to try again.
    async fn attempt(&mut self, request: &Request<'_>) -> Result<Reply, (Error, bool)> {
        let pool = &self.inner.pool;
        let preferred = self.preferred.take().filter(|node| pool.is_healthy(node));
        let Some(node) = preferred.or_else(|| pool.pick(self.node.as_ref(), &self.lacking)) else {
            let discovery = self.inner.discovery.lock();
            let look = discovery.as_ref().and_then(|discovery| discovery.looks.borrow().clone().err());
            return Err((Error::NoNode { last: look }, true));
        };
        let now = Instant::now();
        if now >= self.ends {
            return Err((self.timed_out(false, None), false));
        }
        if is_among(&node, &self.lacking) {
            return Err((self.unknown(request.message()), false));
        }
        let mut until = self.ends;
        if self.is_repeatable() && self.timeouts < MAX_SHORT_ATTEMPTS && pool.len() > 1 {
            until =
                now.checked_add(self.deadline / ATTEMPTS_IN_DEADLINE).map_or(until, |short| short.min(until));
        }
        let mut sent = false;
        let timed = with_timeout(request, until.saturating_duration_since(now));
        let answered = timeout_at(until, node.call(timed.as_ref().unwrap_or(request), &mut sent)).await;
        let node = &*self.node.insert(node);
        match answered {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(Failure::Unknown(message))) => {
                // An older one. Another may know it.
                self.lacking.extend(self.node.clone());
                let others = self.lacking.len() < pool.len();
                Err((self.unknown(message), others))
            }
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
            Failure::Unknown(message) => (self.unknown(message), false),
            Failure::Nonsense { sent, reason } => (Error::Protocol(self.failed(reason, sent)), false),
            Failure::Answered(rpc::Failure::Text(reason)) => {
                (Error::Protocol(self.failed(reason, true)), false)
            }
            Failure::Answered(rpc::Failure::Declared(error)) => self.judge_answer(error),
        }
    }

    /// Nobody knows the message.
    fn unknown(&self, message: Message) -> Error {
        if message.has_options() {
            let reason = format!(
                "{} does not know the message {}: it is older than this client",
                self.address(),
                message.name()
            );
            return Error::Refused { refusal: Refusal::Unsupported, reason };
        }
        let reason = format!("it does not know the message {}", message.name());
        Error::Protocol(self.failed(reason, false))
    }

    /// What a node's error means, and whether to try again.
    pub(crate) fn judge_answer(&self, error: RequestError) -> (Error, bool) {
        let RequestError { code, message: reason } = error;
        // A node that is merely behind, or has no brokers, is well enough for others' reads.
        let counts = code == ErrorCode::Internal
            || code == ErrorCode::NotReady && !self.message.is_some_and(Message::has_options);
        if let (true, Some(node)) = (counts, &self.node) {
            node.refused(&reason);
        }
        match code {
            ErrorCode::BadRequest => (Error::Refused { refusal: Refusal::BadRequest, reason }, false),
            ErrorCode::Unsupported => (Error::Refused { refusal: Refusal::Unsupported, reason }, false),
            ErrorCode::Conflict => (Error::Refused { refusal: Refusal::Conflict, reason }, false),
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

    fn next_pause(&mut self) -> Duration {
        self.pauses.next().unwrap_or(LONGEST_RETRY_PAUSE)
    }

    /// Waits before the next attempt, whatever the deadline.
    pub(crate) async fn pause_anyway(&mut self) {
        sleep(self.next_pause()).await;
    }

    /// Waits before the next attempt; false if there is no time for one.
    pub(crate) async fn pause(&mut self) -> bool {
        let pause = self.next_pause();
        if Instant::now() + pause >= self.ends {
            return false;
        }
        sleep(pause).await;
        true
    }
}

/// Counts a call that closing the client waits for.
struct Counted<'a>(&'a Inner);

impl<'a> Counted<'a> {
    fn new(inner: &'a Inner) -> Self {
        inner.calls.fetch_add(1, Ordering::SeqCst);
        Self(inner)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        let Self(inner) = self;
        if inner.calls.fetch_sub(1, Ordering::SeqCst) == 1 && inner.closed.load(Ordering::SeqCst) {
            inner.idle.notify_waiters();
        }
    }
}

/// A node gives up a little before its caller does, so that its answer, which says why, still arrives; and waits no longer than this.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The request with the time that its attempt has; `None` if it has no use for that.
fn with_timeout<'r>(request: &Request<'r>, left: Duration) -> Option<Request<'r>> {
    let wait = Some(left.saturating_sub(left / 10).min(LONGEST_WAIT));
    let mut request = Some(request).filter(|request| request.message().has_options())?.clone();
    match &mut request {
        Request::ReadRecord { read, .. } | Request::ScanRecords { read, .. } => read.timeout = wait,
        Request::WriteRecord { write, .. } | Request::RemoveRecord { write, .. } => write.timeout = wait,
        Request::BatchRecords(operations) => {
            for operation in operations {
                match operation {
                    Operation::Get { read, .. } => read.timeout = wait,
                    Operation::Set { write, .. } | Operation::Delete { write, .. } => {
                        write.timeout = wait;
                    }
                }
            }
        }
        _ => return None,
    }
    Some(request)
}
