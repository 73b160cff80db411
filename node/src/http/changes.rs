//! `GET /rpc/changes`: what changes, by long polling.

use std::time::{Duration, Instant};

use bitacora_protocol::http::{ChangeEvent, ChangeList, Reason};
use bitacora_protocol::{SessionPosition, units};
use warp::http::StatusCode;

use super::answers;
use super::error::HttpError;
use super::params::query_params;
use super::watch::{delete_event, flag, set_record, wanted};
use super::{Notes, Outcome};
use crate::service::Service;
use crate::service::access::Grant;
use crate::service::changes::{ChangesAnswer, Told, What};
use crate::service::error::OperationError;
use crate::store::UuidText;

/// Events of an answer to who asks for no number.
pub(super) const DEFAULT_LIMIT: i32 = 100;
pub(super) const FIELDS: &[&str] = &["prefix", "key", "since", "initial", "values", "limit", "wait"];

/// Answers with changes.
pub(super) async fn changes(service: &Service, grant: &Grant, query: &str, notes: &mut Notes) -> Outcome {
    let params = query_params(query, FIELDS)?;
    let wanted = wanted(&params, None)?;
    let values = flag(&params, "values", true)?;
    let limit = match params.get("limit") {
        None => DEFAULT_LIMIT,
        Some(limit) => limit
            .parse()
            .map_err(|_| HttpError::BadRequest(format!("limit={limit} is not a number of events")))?,
    };
    let wait = wait(params.get("wait"))?;
    grant.read_all("changes", wanted.prefix, wanted.key).map_err(OperationError::from)?;
    let answer = service.changes().call(&wanted, limit, wait).await;
    grant.still("changes").map_err(OperationError::from)?;
    let answered = Instant::now();
    let ChangesAnswer { events, next, current, positions, memory } = answer.map_err(OperationError::from)?;
    service.changes().count(&events);
    let position: SessionPosition = positions.into_iter().collect();
    let mut uuids = vec![UuidText::default(); events.len()];
    let list = ChangeList {
        events: events.iter().zip(&mut uuids).map(|(told, uuid)| event(told, values, uuid)).collect(),
        next: next.into(),
        current,
        position: position.to_string().into(),
    };
    let reply = answers::counted_json(StatusCode::OK, &list, Some(memory));
    notes.waits.store = answered.elapsed();
    Ok((reply, "ok"))
}

/// How long the call may wait, as the query says it.
pub(super) fn wait(text: Option<&str>) -> Result<Duration, HttpError> {
    let wait = text.map(units::duration).transpose();
    Ok(wait.map_err(|error| HttpError::BadRequest(format!("wait: {error}")))?.unwrap_or(Duration::ZERO))
}

fn event<'a>(told: &'a Told, values: bool, uuid: &'a mut UuidText) -> ChangeEvent<'a> {
    match &told.what {
        What::Event(event) => match set_record(event, values, uuid) {
            Some(record) => ChangeEvent::Set(record),
            None => ChangeEvent::Delete(delete_event(event)),
        },
        What::Gap(reason) => ChangeEvent::Gap(Reason { reason: reason.as_str().into() }),
    }
}
