//! A batch, in pieces that a node takes.
//!
//! What must hold: writes of a key take effect in their order. So pieces are under way together only if no two of them write
//! the same key, and a write is sent again only if no other write of its key can come between. A node decides writes with
//! options side by side, so such a one shares no piece with another write of its key.

mod sending;

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use futures_util::future::join_all;

use crate::client::{Client, ttl_ms};
use crate::error::Error;
use crate::operation::{Operation, Outcome, WriteOperation};
use bitacora_protocol::rpc::MAX_BATCH_OPERATIONS;

/// Bytes of a piece, unless a single operation has more. A node's limit is 4 MiB by default.
const PIECE_BYTES: usize = 1 << 20;
/// Bytes that an operation has besides its texts, at most; and one with options, uuid and condition included.
const OPERATION_OVERHEAD: usize = 32;
const OPTIONS_OVERHEAD: usize = 192;
/// Pieces under way at the same time.
const MAX_PIECES_UNDER_WAY: usize = 8;

type Result<T = Outcome> = std::result::Result<T, Error>;

pub(crate) async fn run(client: &Client, operations: &[&Operation]) -> Result<Vec<Result>> {
    let call = client.call(false)?;
    let have_options = operations.iter().any(|operation| operation.has_options());
    // Each gets another result below.
    let mut results = vec![Err(Error::NoNode { last: None }); operations.len()];
    // Keys with a write that may still take effect, over what comes later.
    let mut uncertain = HashSet::new();
    let mut rest = 0;
    while rest < operations.len() {
        let (mut wave, mut written) = (Vec::new(), HashSet::new());
        while wave.len() < MAX_PIECES_UNDER_WAY && rest < operations.len() {
            let piece = cut(operations, rest, have_options);
            // The last piece of a batch, which is often the only one, needs no list of its keys.
            if !wave.is_empty() && writes(&operations[piece.clone()]).any(|key| written.contains(key)) {
                break;
            }
            if piece.end < operations.len() {
                written.extend(writes(&operations[piece.clone()]));
            }
            rest = piece.end;
            // Nodes of before know the plain ones.
            let (mut plain, mut others) = (Vec::with_capacity(piece.len()), Vec::new());
            for index in piece {
                let operation = operations[index];
                match check(client, operation, &uncertain) {
                    Ok(()) if operation.has_options() => others.push(index),
                    Ok(()) => plain.push(index),
                    Err(error) => results[index] = Err(error),
                }
            }
            let parts = [plain, others].into_iter().filter(|indexes| !indexes.is_empty());
            wave.extend(parts.map(|indexes| sending::send(&call, operations, indexes)));
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

/// The keys that are written.
fn writes<'a>(operations: &[&'a Operation]) -> impl Iterator<Item = &'a str> {
    operations.iter().filter(|operation| operation.is_write()).map(|operation| operation.key())
}

/// What is the matter with an operation before it is sent.
fn check(client: &Client, operation: &Operation, uncertain: &HashSet<&str>) -> Result<()> {
    let (value, ttl) = match operation {
        Operation::Set { value, ttl, .. } => (value.len(), *ttl),
        Operation::Write(WriteOperation { value, ttl, .. }) => (value.as_ref().map_or(0, String::len), *ttl),
        Operation::Read { level, .. } => {
            level.options(&mut String::new())?;
            (0, None)
        }
        Operation::Get { .. } | Operation::Delete { .. } => (0, None),
    };
    client.check_size(operation.key().len() + value)?;
    ttl.map(ttl_ms).transpose()?;
    if operation.is_write() && uncertain.contains(operation.key()) {
        let reason = "an earlier write of its key in this batch may still take effect".to_owned();
        return Err(Error::NotTaken { node: None, reason });
    }
    Ok(())
}

/// The longest piece from `start` on; at least one operation. `have_options`: some of the batch do.
fn cut(operations: &[&Operation], start: usize, have_options: bool) -> Range<usize> {
    let mut bytes = 0;
    // The keys that are written, and whether that has options.
    let mut written = HashMap::new();
    let fitting = operations[start..]
        .iter()
        .take(MAX_BATCH_OPERATIONS)
        .take_while(|operation| {
            bytes += size(operation);
            bytes <= PIECE_BYTES
        })
        .take_while(|operation| {
            let before = (have_options && operation.is_write())
                .then(|| written.insert(operation.key(), operation.has_options()))
                .flatten();
            before.is_none_or(|had_options| !had_options && !operation.has_options())
        })
        .count();
    start..start + fitting.max(1)
}

/// Bytes of an operation in a request, at most.
fn size(operation: &Operation) -> usize {
    let rest = match operation {
        Operation::Get { .. } | Operation::Delete { .. } => OPERATION_OVERHEAD,
        Operation::Set { value, .. } => value.len() + OPERATION_OVERHEAD,
        Operation::Read { level, .. } => level.position_bytes() + OPTIONS_OVERHEAD,
        Operation::Write(WriteOperation { value, uuid, .. }) => {
            [value, uuid].into_iter().flatten().map(String::len).sum::<usize>() + OPTIONS_OVERHEAD
        }
    };
    operation.key().len() + rest
}
