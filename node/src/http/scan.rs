//! `GET /rpc/scan`: a page of records in key order.

use std::time::Instant;

use bitacora_protocol::http::{POSITION_HEADER, PositionedRecord, ScanPage};
use bitacora_protocol::rpc::ScanRequest;
use warp::http::{HeaderMap, HeaderValue, StatusCode};

use super::answers::{self, Reply};
use super::conditions::no_write_condition;
use super::error::HttpError;
use super::options::read_options;
use super::params::query_params;
use super::{Notes, Outcome};
use crate::service::Service;
use crate::service::access::Grant;
use crate::service::error::OperationError;
use crate::service::scans::Page;
use crate::store::UuidText;

/// Records in a page of a scan that asks for no number.
pub(super) const DEFAULT_LIMIT: i32 = 100;
/// What a scan may have in its query.
pub(super) const FIELDS: &[&str] =
    &["prefix", "start", "end", "limit", "cursor", "consistency", "position", "timeout", "max_staleness"];

/// Answers with a page.
pub(super) async fn scan(
    service: &Service,
    grant: &Grant,
    query: &str,
    headers: &HeaderMap,
    notes: &mut Notes,
) -> Outcome {
    let params = query_params(query, FIELDS)?;
    let read = read_options(&params, headers)?;
    no_write_condition(headers)?;
    let text = |name| params.get(name).unwrap_or_default();
    let limit = match params.get("limit") {
        None => DEFAULT_LIMIT,
        Some(limit) => limit
            .parse()
            .map_err(|_| HttpError::BadRequest(format!("limit={limit} is not a number of records")))?,
    };
    let (prefix, start, end, cursor) = (text("prefix"), text("start"), text("end"), text("cursor"));
    grant.read_all("scan", prefix, None).map_err(OperationError::from)?;
    let asked = Instant::now();
    let page = service.scan(&ScanRequest { prefix, start, end, limit, cursor }, &read).await;
    notes.waits.store = asked.elapsed();
    grant.still("scan").map_err(OperationError::from)?;
    let answered = page?.answer(reply).await;
    Ok((answered.map_err(OperationError::from)?, "ok"))
}

fn reply(page: Page) -> Reply {
    let Page { entries, cursor, memory, applied, .. } = page;
    let mut records = Vec::with_capacity(entries.len());
    let mut uuids = vec![UuidText::default(); entries.len()];
    for (entry, uuid) in entries.iter().zip(&mut uuids) {
        let position = entry.position();
        records.extend(entry.answer(uuid).map(|record| PositionedRecord { record, position }));
    }
    let body = ScanPage { records, cursor: cursor.map(Into::into) };
    let mut reply = answers::counted_json(StatusCode::OK, &body, Some(memory));
    // For a session that goes on from what the page showed, and did not show.
    let applied = applied.iter().filter(|position| position.offset >= 0).map(ToString::to_string);
    let positions = applied.collect::<Vec<_>>().join(",");
    if !positions.is_empty()
        && let Ok(positions) = HeaderValue::try_from(positions)
    {
        reply.headers_mut().insert(POSITION_HEADER, positions);
    }
    reply
}
