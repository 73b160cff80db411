//! What a node answers, with texts that are owned.

use bitacora_protocol::Position;
use bitacora_protocol::record::KeyValue;
use bitacora_protocol::rpc::{
    self, Answer, BatchResult, Change, ChangePage, Message, NotMetAnswer, ReadAnswer, RecordResult,
    RecordWritten, RequestError, ServedFrom, WriteAnswer, WrittenAnswer,
};

use super::Failure;
use crate::types::{Record, ScanPage, Written};
use crate::watch::DeletedKey;

/// What a node answered.
pub(crate) enum Reply {
    Read(Found),
    Written(Written),
    Batch(Vec<BatchReply>),
    Page(ScanPage),
    Conditional(Conditional),
    /// With how far each partition was applied.
    RecordPage(ScanPage, Vec<Position>),
    Changes(ChangesReply),
}

/// What has changed.
pub(crate) struct ChangesReply {
    pub changes: Vec<Changed>,
    /// The token that goes on from here.
    pub next: String,
    /// Whether all that was in the log when the call came has been told.
    pub current: bool,
    /// Up to where each partition has been told; empty while that is nowhere.
    pub positions: Vec<Position>,
}

/// A change, or that what came before can't be told.
pub(crate) enum Changed {
    Set(Record),
    Deleted(DeletedKey),
    Gap(String),
}

/// What became of a write that may have had a condition.
pub(crate) type Conditional = Result<Written, NotMet>;

#[derive(Clone)]
pub(crate) struct NotMet {
    pub current: Option<Box<Record>>,
    pub position: Position,
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
    NotMet(NotMet),
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
        Answer::Page(page) => Reply::Page(scanned(&page)),
        Answer::RecordPage(answer) => Reply::RecordPage(scanned(&answer.page), answer.positions),
        Answer::RecordWritten(RecordWritten::Written(answer)) => {
            Reply::Conditional(Ok(record_written(&answer)))
        }
        Answer::RecordWritten(RecordWritten::NotMet(answer)) => Reply::Conditional(Err(not_met(&answer))),
        Answer::RecordBatch(results) => {
            let results = results.into_iter().map(|result| match result {
                RecordResult::Read(answer) => BatchReply::Read(found(&answer)),
                RecordResult::Written(answer) => BatchReply::Written(record_written(&answer)),
                RecordResult::NotMet(answer) => BatchReply::NotMet(not_met(&answer)),
                RecordResult::Failed(error) => BatchReply::Failed(error),
            });
            Reply::Batch(results.collect())
        }
        Answer::Changes(page) => Reply::Changes(changes(page)),
        Answer::Value(_) | Answer::Null => return Err(nonsense("not asked for".to_owned())),
    })
}

/// Reads an answer to `readChanges` that was kept; `None` if it is none.
pub(crate) fn decode_changes(bytes: &[u8]) -> Option<ChangesReply> {
    match decode(Message::ReadChanges, bytes) {
        Ok(Reply::Changes(reply)) => Some(reply),
        _ => None,
    }
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
    Written { position, timestamp, ttl, uuid: uuid.to_owned(), not_visible: Vec::new() }
}

fn record_written(answer: &WrittenAnswer<'_>) -> Written {
    let not_visible = answer.not_visible.iter().map(|member| (*member).to_owned()).collect();
    Written { not_visible, ..written(&answer.write) }
}

fn not_met(answer: &NotMetAnswer<'_>) -> NotMet {
    let NotMetAnswer { current, position } = *answer;
    let current = current.map(|entry| Box::new(record(&entry, position, ServedFrom::Store)));
    NotMet { current, position }
}

fn scanned(page: &rpc::ScanPage<'_>) -> ScanPage {
    let rpc::ScanPage { records, cursor } = page;
    let records = records.iter().map(|(entry, position)| record(entry, *position, ServedFrom::Store));
    ScanPage {
        records: records.collect(),
        cursor: Some((*cursor).to_owned()).filter(|cursor| !cursor.is_empty()),
    }
}

fn changes(page: ChangePage<'_>) -> ChangesReply {
    let ChangePage { events, next, current, positions } = page;
    let changes = events.into_iter().map(|change| match change {
        Change::Set(entry, position) => Changed::Set(record(&entry, position, ServedFrom::Store)),
        Change::Deleted(rpc::DeletedKey { key, position, timestamp, reason }) => {
            Changed::Deleted(DeletedKey { key: key.to_owned(), position, timestamp, reason })
        }
        Change::Gap(reason) => Changed::Gap(reason.to_owned()),
    });
    ChangesReply { changes: changes.collect(), next: next.to_owned(), current, positions }
}
