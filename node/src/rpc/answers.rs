//! What the RPC answers, and the one place where an error becomes one of the protocol's.

use bitacora_protocol::rpc::{
    Answer, BatchResult, ErrorCode, Failure, Message, ReadAnswer, RequestError, ScanPage, ServedFrom,
    WriteAnswer, put_value_answer,
};

use crate::log::AppendError;
use crate::service::reads::{self, Found, From as Source, GetError};
use crate::service::scans::{Page, ScanError};
use crate::service::writes::{WriteError, Written};
use crate::service::{Done, OperationError, Outcome, label};
use crate::store::Tier;

/// Appends what an operation came to as the answer to `message`; returns the `outcome` label of the metrics.
pub fn put_outcome(message: Message, outcome: &Outcome, out: &mut Vec<u8>) -> &'static str {
    match outcome {
        Ok(done) => {
            put_done(message, done, out);
            label(done)
        }
        Err(error) => put_error(message, error.into(), out),
    }
}

fn put_done(message: Message, done: &Done, out: &mut Vec<u8>) {
    match (message, done) {
        (Message::GetValue, Done::Read(answer)) => match &answer.found {
            // As it lies in the store: neither looked at nor put together anew.
            Found::Local(entry) => match entry.value_field() {
                Some(value) => put_value_answer(out, value),
                None => Answer::Value(None).encode(out),
            },
            Found::Peer(record) => Answer::Value(Some(&record.value)).encode(out),
            Found::Gone { .. } | Found::Missing => Answer::Value(None).encode(out),
        },
        (_, Done::Read(answer)) => Answer::Read(read(answer)).encode(out),
        (Message::SetValue | Message::Delete, Done::Written(_)) => Answer::Null.encode(out),
        (_, Done::Written(written)) => Answer::Written(write(written)).encode(out),
    }
}

/// Appends an error as the answer to `message`; returns the `outcome` label of the metrics.
pub fn put_error(message: Message, error: RequestError, out: &mut Vec<u8>) -> &'static str {
    let outcome = match error.code {
        ErrorCode::BadRequest | ErrorCode::TooLarge => "refused",
        ErrorCode::NotReady | ErrorCode::NotTaken | ErrorCode::MayTakeEffect => "unavailable",
        ErrorCode::Internal => "failed",
    };
    Failure::Declared(error).encode(Some(message), out);
    outcome
}

/// Appends the results of a batch.
pub fn put_batch(results: &[Outcome], out: &mut Vec<u8>) {
    let results = results.iter().map(|outcome| match outcome {
        Ok(Done::Read(answer)) => BatchResult::Read(read(answer)),
        Ok(Done::Written(written)) => BatchResult::Written(write(written)),
        Err(error) => BatchResult::Failed(error.into()),
    });
    Answer::Batch(results.collect()).encode(out);
}

/// Appends a page of a scan.
pub fn put_page(page: &Page, out: &mut Vec<u8>) {
    let records = page.entries.iter().filter_map(|entry| Some((entry.answer()?, entry.position())));
    let cursor = page.cursor.as_deref().unwrap_or_default();
    Answer::Page(ScanPage { records: records.collect(), cursor }).encode(out);
}

fn read(answer: &reads::Answer) -> ReadAnswer<'_> {
    let record = answer.record();
    let served_from = match answer.from {
        Source::Local(Tier::Cache) => ServedFrom::Cache,
        Source::Local(Tier::Store) => ServedFrom::Store,
        Source::Peer => ServedFrom::Peer,
    };
    ReadAnswer { record, position: answer.position, timestamp: answer.timestamp(), served_from }
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

impl From<&OperationError> for RequestError {
    fn from(error: &OperationError) -> Self {
        let code = match error {
            OperationError::Key(_) | OperationError::Ttl(_) => ErrorCode::BadRequest,
            OperationError::Get(GetError::NotRestored) => ErrorCode::NotReady,
            OperationError::Get(GetError::Store(_)) => ErrorCode::Internal,
            OperationError::Write(
                WriteError::ValueTooLarge { .. } | WriteError::Log(AppendError::TooLarge(_)),
            )
            | OperationError::BatchTooLarge => ErrorCode::TooLarge,
            OperationError::Write(WriteError::Log(AppendError::NotTaken(_))) => ErrorCode::NotTaken,
            OperationError::Write(WriteError::Log(AppendError::Unknown(_))) => ErrorCode::MayTakeEffect,
        };
        Self { code, message: error.to_string() }
    }
}

impl From<&ScanError> for RequestError {
    fn from(error: &ScanError) -> Self {
        let code = match error {
            ScanError::Limit(_) | ScanError::TooLong(..) | ScanError::NoCursor | ScanError::ForeignCursor => {
                ErrorCode::BadRequest
            }
            ScanError::NotRestored => ErrorCode::NotReady,
            ScanError::Store(_) => ErrorCode::Internal,
        };
        Self { code, message: error.to_string() }
    }
}
