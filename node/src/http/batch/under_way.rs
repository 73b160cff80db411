//! The operations of a batch that are under way, and what comes of them, in the order of their lines.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesOrdered;

use crate::service::Outcome;
use crate::service::batch::{EndedInBatch, InBatch};
use crate::service::writes::{PlainWritten, WriteError, WriteGroup};

/// Operations under way.
#[derive(Default)]
pub struct UnderWay {
    order: VecDeque<InBatch>,
    /// Of the plain writes among them; the last one may be open for more.
    groups: VecDeque<WriteGroup>,
    last_is_open: bool,
    later: FuturesOrdered<BoxFuture<'static, Outcome>>,
    /// Of those in `later` that ended before their turn came.
    ended: VecDeque<Outcome>,
}

impl UnderWay {
    pub fn len(&self) -> usize {
        self.order.len()
    }

    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// The group that plain writes begin in until it is closed; `begin` makes one.
    pub fn group(&mut self, begin: impl FnOnce() -> WriteGroup) -> &mut WriteGroup {
        if !self.last_is_open {
            self.groups.push_back(begin());
            self.last_is_open = true;
        }
        self.groups.back_mut().expect("there is one now")
    }

    /// No more plain writes begin for the moment.
    pub fn close_group(&mut self) {
        if !std::mem::take(&mut self.last_is_open) {
            return;
        }
        match self.groups.back_mut() {
            Some(group) if group.left() > 0 => group.close(),
            // No plain write came.
            _ => drop(self.groups.pop_back()),
        }
    }

    /// A plain write began in the group.
    pub fn push_plain(&mut self) {
        self.order.push_back(InBatch::Plain);
    }

    pub fn push_later(&mut self, outcome: BoxFuture<'static, Outcome>) {
        self.later.push_back(outcome);
        self.order.push_back(InBatch::Later);
    }

    pub fn push_done(&mut self, outcome: Outcome) {
        self.order.push_back(InBatch::Done(outcome));
    }

    /// What the oldest operation came to; waits for ever if there is none.
    pub async fn next(&mut self) -> EndedInBatch {
        poll_fn(|context| self.poll_next(context)).await
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<EndedInBatch> {
        // They go on, whatever the oldest operation waits for.
        while let Poll::Ready(Some(outcome)) = self.later.poll_next_unpin(context) {
            self.ended.push_back(outcome);
        }
        let ended = match self.order.front() {
            None => return Poll::Pending,
            Some(InBatch::Plain) => EndedInBatch::Plain(ready!(self.poll_plain(context))),
            Some(InBatch::Later) => match self.ended.pop_front() {
                Some(outcome) => EndedInBatch::Other(outcome),
                None => return Poll::Pending,
            },
            Some(InBatch::Done(_)) => match self.order.pop_front() {
                Some(InBatch::Done(outcome)) => return Poll::Ready(EndedInBatch::Other(outcome)),
                _ => unreachable!("it was there a moment ago"),
            },
        };
        self.order.pop_front();
        Poll::Ready(ended)
    }

    fn poll_plain(&mut self, context: &mut Context<'_>) -> Poll<Result<PlainWritten, WriteError>> {
        self.close_group();
        let group = self.groups.front_mut().expect("it has the write");
        let written = match group.take_next() {
            Some(written) => written,
            None => {
                ready!(group.poll_settled(context));
                group.take_next().expect("all are settled")
            }
        };
        if group.left() == 0 {
            self.groups.pop_front();
        }
        Poll::Ready(written)
    }
}
