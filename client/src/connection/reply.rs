//! What a node answers, with texts that are owned.

use bitacora_protocol::Position;
use bitacora_protocol::record::KeyValue;
use bitacora_protocol::rpc::{
    Answer, BatchResult, Message, ReadAnswer, RequestError, ServedFrom, WriteAnswer,
};

use super::Failure;
use crate::types::{Record, ScanPage, Written};

/// What a node answered.
pub(crate) enum Reply {
    Read(Found),
    Written(Written),
    Batch(Vec<BatchReply>),
    Page(ScanPage),
}

pub(crate) type Found = Result<Record, Missing>;

#[derive(Clone)]
pub(crate) struct Missing {
    pub position: Position,
    pub timestamp: Option<i64>,
    pub served_from: ServedFrom,
}

#[derive(Clone)]
pub(crate) enum BatchReply {
    Read(Found),
    Written(Written),
    Failed(RequestError),
}

/// Reads the answer to a call of `message`.
pub(super) fn decode(message: Message, bytes: &[u8]) -> Result<Reply, Failure> {
    let nonsense = |reason: String| Failure::Nonsense { sent: true, reason };
    let answer = Answer::decode(message, bytes).map_err(|error| nonsense(format!("its answer: {error}")))?;
    Ok(match answer.map_err(Failure::Answered)? {
        Answer::Read(answer) => Reply::Read(found(&answer)),
        Answer::Written(answer) => Reply::Written(written(&answer)),
        Answer::Batch(results) => {
            let results = results.into_iter().map(|result| match result {
                BatchResult::Read(answer) => BatchReply::Read(found(&answer)),
                BatchResult::Written(answer) => BatchReply::Written(written(&answer)),
                BatchResult::Failed(error) => BatchReply::Failed(error),
            });
            Reply::Batch(results.collect())
        }
        Answer::Page(page) => Reply::Page(ScanPage {
            records: page
                .records
                .iter()
                .map(|(entry, position)| record(entry, *position, ServedFrom::Store))
                .collect(),
            cursor: Some(page.cursor.to_owned()).filter(|cursor| !cursor.is_empty()),
        }),
        Answer::Value(_) | Answer::Null => return Err(nonsense("not asked for".to_owned())),
    })
}

fn found(answer: &ReadAnswer<'_>) -> Found {
    let ReadAnswer { record: entry, position, timestamp, served_from } = *answer;
    match entry {
        Some(entry) => Ok(record(&entry, position, served_from)),
        None => Err(Missing { position, timestamp, served_from }),
    }
}

fn record(entry: &KeyValue<'_>, position: Position, served_from: ServedFrom) -> Record {
    Record {
        key: entry.key.to_owned(),
        value: entry.value.to_owned(),
        timestamp: entry.timestamp,
        source: entry.source,
        ttl: entry.ttl,
        uuid: entry.uuid.to_owned(),
        position,
        served_from,
    }
}

fn written(answer: &WriteAnswer<'_>) -> Written {
    let WriteAnswer { position, timestamp, ttl, uuid } = *answer;
    Written { position, timestamp, ttl, uuid: uuid.to_owned() }
}
