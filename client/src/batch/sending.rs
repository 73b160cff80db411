//! A piece of a batch on its way: it is sent, and again what is left of it, until each operation has a result.

use std::collections::HashSet;

use bitacora_protocol::rpc::Request;
use bitacora_protocol::{Operation as WireOperation, ReadOptions, Visible, WriteOptions};
use uuid::Uuid;

use super::Result;
use crate::call::{Call, read};
use crate::client::ttl_ms;
use crate::connection::{BatchReply, Found, NotMet, Reply};
use crate::error::{Error, NodeFailure};
use crate::operation::{Operation, Outcome, WriteOperation};

/// An operation on its way.
struct Sent<'a> {
    /// Its place in the batch.
    index: usize,
    operation: &'a Operation,
    /// By which an attempt at a conditional write is known again; empty for none.
    uuid: String,
    /// Of the session, as it was when this was last sent.
    position: String,
    /// The error of an attempt that may have taken effect: what comes later does not change that.
    unclear: Option<Error>,
}

/// The operations with these indexes; all of them have options, or none.
pub(super) async fn send(
    call: &Call<'_>,
    operations: &[&Operation],
    indexes: Vec<usize>,
) -> Vec<(usize, Result)> {
    let mut results = Vec::with_capacity(indexes.len());
    let mut left: Vec<_> = indexes.into_iter().map(|index| Sent::new(index, operations[index])).collect();
    // As it was sent first; few pieces come to need it.
    let (all, mut written_once) = (left.iter().map(|sent| sent.operation).collect::<Vec<_>>(), None);
    let mut call = call.part();
    let repeatable = call.repeatable;
    if left.iter().any(Sent::is_to_be_shown) {
        call.give_attempts_all_the_time();
    }
    while !left.is_empty() {
        let writes = || left.iter().filter(|sent| sent.operation.is_write());
        call.is_write = writes().next().is_some();
        call.repeatable = repeatable || writes().all(|sent| sent.operation.is_conditional());
        let replies = replies(&mut call, &mut left).await;
        // Each that is left was in every attempt so far.
        let attempt_unclear = call.unclear;
        let mut again = Vec::new();
        for (mut sent, reply) in left.into_iter().zip(replies) {
            let operation = sent.operation;
            call.is_write = operation.is_write();
            call.repeatable = repeatable || operation.is_conditional();
            match sent.settle(&call, reply, attempt_unclear) {
                Ok(result) => results.push((sent.index, result)),
                Err((error, retry)) => {
                    let error =
                        sent.unclear.take().filter(|_| !error.may_have_taken_effect()).unwrap_or(error);
                    let mut is_written_once = || {
                        let keys = written_once.get_or_insert_with(|| keys_written_once(&all));
                        keys.contains(operation.key())
                    };
                    if retry && (!operation.is_write() || is_written_once()) {
                        sent.unclear = Some(error.clone()).filter(Error::may_have_taken_effect);
                        again.push((sent, error));
                    } else {
                        results.push((sent.index, Err(error)));
                    }
                }
            }
        }
        if !again.is_empty() && !call.pause().await {
            results.extend(again.drain(..).map(|(sent, error)| (sent.index, Err(error))));
        }
        left = again.into_iter().map(|(sent, _)| sent).collect();
    }
    results
}

/// One for each.
async fn replies(call: &mut Call<'_>, left: &mut [Sent<'_>]) -> Vec<Result<BatchReply>> {
    let count = left.len();
    let have_options = left.iter().any(|sent| sent.operation.has_options());
    let operations = left.iter_mut().map(Sent::on_the_wire).collect();
    let request = if have_options { Request::BatchRecords(operations) } else { Request::Batch(operations) };
    match call.send(&request).await {
        Ok(Reply::Batch(replies)) if replies.len() == count => replies.into_iter().map(Ok).collect(),
        Ok(_) => {
            let failure = call.failed("its answer has not one result for each operation".to_owned(), true);
            vec![Err(Error::Protocol(failure)); count]
        }
        Err(error) => vec![Err(error); count],
    }
}

/// The keys that a piece writes only once.
fn keys_written_once<'a>(piece: &[&'a Operation]) -> HashSet<&'a str> {
    let (mut seen, mut twice) = (HashSet::new(), HashSet::new());
    for key in super::writes(piece) {
        if !seen.insert(key) {
            twice.insert(key);
        }
    }
    seen.retain(|key| !twice.contains(key));
    seen
}

impl<'a> Sent<'a> {
    fn new(index: usize, operation: &'a Operation) -> Self {
        let uuid = match operation {
            Operation::Write(WriteOperation { uuid: Some(uuid), .. }) => uuid.clone(),
            operation if operation.is_conditional() => Uuid::new_v4().to_string(),
            _ => String::new(),
        };
        Self { index, operation, uuid, position: String::new(), unclear: None }
    }

    fn is_to_be_shown(&self) -> bool {
        matches!(self.operation, Operation::Write(write) if write.visible != Visible::Acknowledged)
    }

    fn on_the_wire(&mut self) -> WireOperation<'_> {
        // One that is no time to live was refused before.
        let live = |ttl: Option<_>| ttl.map_or(0, |ttl| ttl_ms(ttl).unwrap_or(0));
        match self.operation {
            Operation::Get { key } => WireOperation::get(key),
            Operation::Set { key, value, ttl } => WireOperation::set(key, value, live(*ttl)),
            Operation::Delete { key } => WireOperation::delete(key),
            Operation::Read { key, level } => {
                self.position.clear();
                // What makes no sense was refused before.
                let read = level.options(&mut self.position).ok().flatten();
                WireOperation::Get { key, read: read.unwrap_or(ReadOptions::default()) }
            }
            Operation::Write(WriteOperation { key, value, ttl, condition, visible, .. }) => {
                let (condition, visible) = (*condition, *visible);
                let write = WriteOptions { condition, uuid: &self.uuid, visible, timeout: None };
                match value {
                    Some(value) => WireOperation::Set { key, value, ttl: live(*ttl), write },
                    None => WireOperation::Delete { key, write },
                }
            }
        }
    }

    /// The result; or its error, and whether to try again. `attempt_unclear`: a request that it was in may have taken effect.
    fn settle(
        &self,
        call: &Call<'_>,
        reply: Result<BatchReply>,
        attempt_unclear: bool,
    ) -> std::result::Result<Result, (Error, bool)> {
        let key = self.operation.key();
        match reply {
            Ok(BatchReply::Read(found)) if !call.is_write => {
                self.saw_read(&found);
                Ok(read(found, key).map(Outcome::Read))
            }
            Ok(BatchReply::Written(written)) if call.is_write => {
                self.saw_write(written.position);
                Ok(Ok(Outcome::Written(written)))
            }
            Ok(BatchReply::NotMet(NotMet { current, position })) if call.is_write => {
                self.saw_write(position);
                let may_have_taken_effect = attempt_unclear || self.unclear.is_some();
                Ok(Err(Error::NotMet { key: key.to_owned(), current, position, may_have_taken_effect }))
            }
            Ok(BatchReply::Failed(error)) => Err(call.judge_answer(error)),
            Ok(_) => {
                let failure = call.failed("its answer is to another operation".to_owned(), true);
                Err((Error::Protocol(failure), false))
            }
            Err(error) if call.is_write => {
                // It was not sent again for the sake of the writes beside it.
                let retry = self.operation.is_conditional() && error.is_retryable();
                Err((error, retry))
            }
            // It failed for the sake of the writes beside it.
            Err(error) => {
                let retry = error.is_retryable();
                Err((of_read(error), retry))
            }
        }
    }

    fn saw_read(&self, found: &Found) {
        if let Operation::Read { level, .. } = self.operation {
            level.saw([match found {
                Ok(record) => record.position,
                Err(missing) => missing.position,
            }]);
        }
    }

    fn saw_write(&self, position: bitacora_protocol::Position) {
        if let Operation::Write(WriteOperation { session: Some(session), .. }) = self.operation {
            session.saw(position);
        }
    }
}

/// The error of a call with writes, as it is for a read in it.
fn of_read(error: Error) -> Error {
    match error {
        Error::TimedOut { after, last, .. } => Error::TimedOut { may_have_taken_effect: false, after, last },
        Error::Unacknowledged { node, reason } => {
            Error::Node(NodeFailure { node, reason, may_have_taken_effect: false })
        }
        Error::Protocol(failure) => Error::Protocol(NodeFailure { may_have_taken_effect: false, ..failure }),
        Error::Node(failure) => Error::Node(NodeFailure { may_have_taken_effect: false, ..failure }),
        error => error,
    }
}
