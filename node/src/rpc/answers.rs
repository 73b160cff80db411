//! What the RPC answers. Which code an error has is decided by its kind: [`crate::service::error::ErrorKind`].

use bitacora_protocol::record::KeyValue;
use bitacora_protocol::rpc::{
    Answer, BatchResult, Change, ChangePage, DeleteReason, DeletedKey, Failure, Message, NotMetAnswer,
    ReadAnswer, RecordPage, RecordResult, RecordWritten, RequestError, ScanPage, WriteAnswer, WrittenAnswer,
    put_value_answer,
};
use uuid::fmt::Hyphenated;

use crate::replication::feed::Kind;
use crate::service::batch::EndedInBatch;
use crate::service::changes::{ChangesAnswer, Told, What};
use crate::service::conditional::NotMet;
use crate::service::error::OperationError;
use crate::service::reads::{self, LookupResult};
use crate::service::scans::Page;
use crate::service::writes::{PlainWritten, Written};
use crate::service::{Done, Outcome};
use crate::store::UuidText;

/// Appends what an operation came to as the answer to `message`; returns the `outcome` label of the metrics.
pub fn put_outcome(message: Message, outcome: &Outcome, out: &mut Vec<u8>) -> &'static str {
    match outcome {
        Ok(done) => {
            put_done(message, done, out);
            done.outcome()
        }
        Err(error) => put_error(message, error, out),
    }
}

fn put_done(message: Message, done: &Done, out: &mut Vec<u8>) {
    match (message, done) {
        (Message::GetValue, Done::Read(answer)) => match &answer.found {
            // As it lies in the store: not looked at.
            LookupResult::Local(entry) => match entry.value_bytes() {
                Some(value) => put_value_answer(out, value),
                None => Answer::Value(None).encode(out),
            },
            LookupResult::Peer(record) => Answer::Value(Some(&record.value)).encode(out),
            LookupResult::Gone { .. } | LookupResult::Missing => Answer::Value(None).encode(out),
        },
        (_, Done::Read(answer)) => Answer::Read(read(answer, &mut UuidText::default())).encode(out),
        (Message::SetValue | Message::Delete, Done::Written(_)) => Answer::Null.encode(out),
        (Message::WriteRecord | Message::RemoveRecord, Done::Written(written)) => {
            Answer::RecordWritten(RecordWritten::Written(record_written(written))).encode(out);
        }
        (_, Done::Written(written)) => Answer::Written(write(written)).encode(out),
    }
}

/// Appends an error as the answer to `message`; returns the `outcome` label of the metrics.
pub fn put_error(message: Message, error: &OperationError, out: &mut Vec<u8>) -> &'static str {
    if matches!(message, Message::WriteRecord | Message::RemoveRecord)
        && let Some(found) = error.not_met()
    {
        let mut uuid = UuidText::default();
        Answer::RecordWritten(RecordWritten::NotMet(not_met(found, &mut uuid))).encode(out);
        return error.kind().outcome();
    }
    Failure::Declared(error.into()).encode(Some(message), out);
    error.kind().outcome()
}

/// Appends one of the results of a batch.
pub fn put_batch_result(message: Message, result: &EndedInBatch, out: &mut Vec<u8>) {
    let (mut uuid, mut stored) = ([0; Hyphenated::LENGTH], UuidText::default());
    let (written, not_visible) = match result {
        EndedInBatch::Plain(Ok(written)) => (plain(written, &mut uuid), Vec::new()),
        EndedInBatch::Other(Ok(Done::Written(written))) => {
            (write(written), written.not_visible.iter().map(String::as_str).collect())
        }
        EndedInBatch::Other(Ok(Done::Read(answer))) => {
            return match message {
                Message::BatchRecords => RecordResult::Read(read(answer, &mut stored)).encode(out),
                _ => BatchResult::Read(read(answer, &mut stored)).encode(out),
            };
        }
        EndedInBatch::Plain(Err(error)) => return put_failed(message, RequestError::from(error), out),
        EndedInBatch::Other(Err(error)) => {
            return match error.not_met() {
                Some(found) if message == Message::BatchRecords => {
                    RecordResult::NotMet(not_met(found, &mut stored)).encode(out);
                }
                _ => put_failed(message, error.into(), out),
            };
        }
    };
    match message {
        Message::BatchRecords => {
            RecordResult::Written(WrittenAnswer { write: written, not_visible }).encode(out);
        }
        _ => BatchResult::Written(written).encode(out),
    }
}

fn put_failed(message: Message, error: RequestError, out: &mut Vec<u8>) {
    match message {
        Message::BatchRecords => RecordResult::Failed(error).encode(out),
        _ => BatchResult::Failed(error).encode(out),
    }
}

/// Appends a page of a scan.
pub fn put_page(message: Message, page: &Page, out: &mut Vec<u8>) {
    let mut uuids = vec![UuidText::default(); page.entries.len()];
    let records = page.entries.iter().zip(&mut uuids);
    let records = records.filter_map(|(entry, uuid)| Some((entry.answer(uuid)?, entry.position())));
    let scanned = ScanPage { records: records.collect(), cursor: page.cursor.as_deref().unwrap_or_default() };
    if message == Message::ScanRecords {
        let positions = page.applied.clone();
        return Answer::RecordPage(RecordPage { page: scanned, positions }).encode(out);
    }
    Answer::Page(scanned).encode(out);
}

/// Appends what has changed; returns the `outcome` label of the metrics. `values`: whether records have theirs.
pub fn put_changes(
    message: Message,
    answer: &Result<ChangesAnswer, OperationError>,
    values: bool,
    out: &mut Vec<u8>,
) -> &'static str {
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => return put_error(message, error, out),
    };
    let mut uuids = vec![UuidText::default(); answer.events.len()];
    let events = answer.events.iter().zip(&mut uuids);
    let events = events.filter_map(|(told, uuid)| change(told, values, uuid)).collect();
    let ChangesAnswer { next, current, positions, .. } = answer;
    Answer::Changes(ChangePage { events, next, current: *current, positions: positions.clone() }).encode(out);
    "ok"
}

fn change<'a>(told: &'a Told, values: bool, uuid: &'a mut UuidText) -> Option<Change<'a>> {
    let event = match &told.what {
        What::Event(event) => event,
        What::Gap(reason) => return Some(Change::Gap(reason)),
    };
    let position = event.position();
    let reason = match event.kind {
        Kind::Set => {
            let record = event.entry.answer(uuid)?;
            let value = if values { record.value } else { "" };
            return Some(Change::Set(KeyValue { value, ..record }, position));
        }
        Kind::Deleted => DeleteReason::Deleted,
        Kind::Expired => DeleteReason::Expired,
    };
    let timestamp = event.timestamp().ms();
    Some(Change::Deleted(DeletedKey { key: &event.key, position, timestamp, reason }))
}

fn read<'a>(answer: &'a reads::Answer, uuid: &'a mut UuidText) -> ReadAnswer<'a> {
    let record = answer.record(uuid);
    ReadAnswer { record, position: answer.position, timestamp: answer.timestamp(), served_from: answer.from }
}

fn write(written: &Written) -> WriteAnswer<'_> {
    let appended = written.appended;
    WriteAnswer {
        position: appended.position,
        timestamp: appended.timestamp.ms(),
        ttl: written.ttl,
        uuid: &written.uuid,
    }
}

fn plain<'a>(written: &PlainWritten, uuid: &'a mut [u8; Hyphenated::LENGTH]) -> WriteAnswer<'a> {
    let PlainWritten { appended, ttl, uuid: of } = *written;
    let uuid = of.hyphenated().encode_lower(uuid);
    WriteAnswer { position: appended.position, timestamp: appended.timestamp.ms(), ttl, uuid }
}

fn not_met<'a>(found: &'a NotMet, uuid: &'a mut UuidText) -> NotMetAnswer<'a> {
    NotMetAnswer { current: found.current.record(uuid), position: found.current.position }
}

fn record_written(written: &Written) -> WrittenAnswer<'_> {
    let not_visible = written.not_visible.iter().map(String::as_str).collect();
    WrittenAnswer { write: write(written), not_visible }
}
