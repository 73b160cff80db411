//! A batch, in pieces that a node takes.
//!
//! What must hold: writes of a key take effect in their order. So pieces are under way together only if no two of them write
//! the same key, and a write is sent again only if no other write of its key can come between.

use std::collections::HashSet;
use std::ops::Range;

use futures_util::future::join_all;

use crate::call::{Call, read};
use crate::client::{Client, ttl_ms};
use crate::connection::{BatchReply, NotMet, Reply};
use crate::error::{Error, NodeFailure};
use crate::types::{Operation, Outcome};
use bitacora_protocol::rpc::{MAX_BATCH_OPERATIONS, Request};

/// Bytes of a piece, unless a single operation has more. A node's limit is 4 MiB by default.
const PIECE_BYTES: usize = 1 << 20;
/// Bytes that an operation has besides its texts, at most.
const OPERATION_OVERHEAD: usize = 32;
/// Pieces under way at the same time.
const MAX_PIECES_UNDER_WAY: usize = 8;

type Result<T = Outcome> = std::result::Result<T, Error>;

pub(crate) async fn run(client: &Client, operations: &[Operation]) -> Result<Vec<Result>> {
    let call = client.call(false)?;
    // Each gets another result below.
    let mut results = vec![Err(Error::NoNode { last: None }); operations.len()];
    // Keys with a write that may still take effect, over what comes later.
    let mut uncertain = HashSet::new();
    let mut rest = 0;
    while rest < operations.len() {
        let (mut wave, mut written) = (Vec::new(), HashSet::new());
        while wave.len() < MAX_PIECES_UNDER_WAY && rest < operations.len() {
            let piece = cut(operations, rest);
            let writes = || operations[piece.clone()].iter().filter(|it| it.is_write()).map(Operation::key);
            if !wave.is_empty() && writes().any(|key| written.contains(key)) {
                break;
            }
            written.extend(writes());
            rest = piece.end;
            let mut indexes = Vec::with_capacity(piece.len());
            for index in piece {
                match check(client, &operations[index], &uncertain) {
                    Ok(()) => indexes.push(index),
                    Err(error) => results[index] = Err(error),
                }
            }
            wave.push(send(&call, operations, indexes));
        }
        for (index, result) in join_all(wave).await.into_iter().flatten() {
            if result.as_ref().is_err_and(Error::may_have_taken_effect) {
                uncertain.insert(operations[index].key());
            }
            results[index] = result;
        }
    }
    Ok(results)
}

/// What is the matter with an operation before it is sent.
fn check(client: &Client, operation: &Operation, uncertain: &HashSet<&str>) -> Result<()> {
    let (mut bytes, mut time_to_live) = (operation.key().len(), None);
    if let Operation::Set { value, ttl, .. } = operation {
        bytes += value.len();
        time_to_live = *ttl;
    }
    client.check_size(bytes)?;
    time_to_live.map(ttl_ms).transpose()?;
    if operation.is_write() && uncertain.contains(operation.key()) {
        let reason = "an earlier write of its key in this batch may still take effect".to_owned();
        return Err(Error::NotTaken { node: None, reason });
    }
    Ok(())
}

/// The longest piece from `start` on; at least one operation.
fn cut(operations: &[Operation], start: usize) -> Range<usize> {
    let mut bytes = 0;
    let fitting = operations[start..]
        .iter()
        .take(MAX_BATCH_OPERATIONS)
        .take_while(|operation| {
            let value = if let Operation::Set { value, .. } = operation { value.len() } else { 0 };
            bytes += operation.key().len() + value + OPERATION_OVERHEAD;
            bytes <= PIECE_BYTES
        })
        .count();
    start..start + fitting.max(1)
}

/// Sends a piece, and again what is left of it, until each operation has a result.
async fn send(call: &Call<'_>, operations: &[Operation], indexes: Vec<usize>) -> Vec<(usize, Result)> {
    let mut results = Vec::with_capacity(indexes.len());
    let written_once = keys_written_once(operations, &indexes);
    let mut call = call.part();
    // With the error of an attempt that may have taken effect: what comes later does not change that.
    let mut left: Vec<(usize, Option<Error>)> = indexes.into_iter().map(|index| (index, None)).collect();
    while !left.is_empty() {
        call.is_write = left.iter().any(|(index, _)| operations[*index].is_write());
        let request = Request::Batch(left.iter().map(|(index, _)| borrowed(&operations[*index])).collect());
        let replies: Vec<_> = match call.send(&request).await {
            Ok(Reply::Batch(replies)) if replies.len() == left.len() => replies.into_iter().map(Ok).collect(),
            Ok(_) => {
                let failure =
                    call.failed("its answer has not one result for each operation".to_owned(), true);
                vec![Err(Error::Protocol(failure)); left.len()]
            }
            Err(error) => vec![Err(error); left.len()],
        };
        let mut again = Vec::new();
        for ((index, before), reply) in left.into_iter().zip(replies) {
            let operation = &operations[index];
            match settle(&mut call, operation, reply) {
                Ok(result) => results.push((index, result)),
                Err((error, retry)) => {
                    let error = before.filter(|_| !error.may_have_taken_effect()).unwrap_or(error);
                    if retry && (!operation.is_write() || written_once.contains(operation.key())) {
                        again.push((index, error));
                    } else {
                        results.push((index, Err(error)));
                    }
                }
            }
        }
        if !again.is_empty() && !call.pause().await {
            results.extend(again.drain(..).map(|(index, error)| (index, Err(error))));
        }
        let ambiguous = |error| Some(error).filter(Error::may_have_taken_effect);
        left = again.into_iter().map(|(index, error)| (index, ambiguous(error))).collect();
    }
    results
}

/// The keys that a piece writes only once.
fn keys_written_once<'a>(operations: &'a [Operation], indexes: &[usize]) -> HashSet<&'a str> {
    let (mut seen, mut twice) = (HashSet::new(), HashSet::new());
    for operation in indexes.iter().map(|index| &operations[*index]).filter(|operation| operation.is_write())
    {
        if !seen.insert(operation.key()) {
            twice.insert(operation.key());
        }
    }
    seen.retain(|key| !twice.contains(key));
    seen
}

/// The result of an operation; or its error, and whether to try again.
fn settle(
    call: &mut Call<'_>,
    operation: &Operation,
    reply: Result<BatchReply>,
) -> std::result::Result<Result, (Error, bool)> {
    call.is_write = operation.is_write();
    match reply {
        Ok(BatchReply::Read(found)) if !call.is_write => Ok(read(found, operation.key()).map(Outcome::Read)),
        Ok(BatchReply::Written(written)) if call.is_write => Ok(Ok(Outcome::Written(written))),
        Ok(BatchReply::NotMet(NotMet { current, position })) if call.is_write => {
            let (key, may_have_taken_effect) = (operation.key().to_owned(), false);
            Ok(Err(Error::NotMet { key, current, position, may_have_taken_effect }))
        }
        Ok(BatchReply::Failed(error)) => Err(call.judge_answer(error)),
        Ok(_) => {
            let failure = call.failed("its answer is to another operation".to_owned(), true);
            Err((Error::Protocol(failure), false))
        }
        Err(error) if call.is_write => Err((error, false)),
        // It failed for the sake of the writes beside it.
        Err(error) => {
            let retry = error.is_retryable();
            Err((of_read(error), retry))
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

fn borrowed(operation: &Operation) -> bitacora_protocol::Operation<'_> {
    match operation {
        Operation::Get { key } => bitacora_protocol::Operation::get(key),
        // One that is no time to live was refused before.
        Operation::Set { key, value, ttl } => {
            bitacora_protocol::Operation::set(key, value, ttl.map_or(0, |ttl| ttl_ms(ttl).unwrap_or(0)))
        }
        Operation::Delete { key } => bitacora_protocol::Operation::delete(key),
    }
}
