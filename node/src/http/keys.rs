//! One key: `/rpc` and `/rpc/cluster`.

use std::fmt::Display;
use std::time::Duration;

use bitacora_protocol::WriteOptions;
use bytes::Buf;
use futures_util::Stream;
use warp::http::HeaderMap;

use super::conditions::{idempotency_key, no_write_condition, write_condition};
use super::error::HttpError;
use super::etag::Tags;
use super::media::{BodyType, body_type};
use super::options::read_options;
use super::params::{Params, has_field, parse_ttl, query_params};
use super::{Limits, Notes, Outcome, answers, body, etag, options};
use crate::service::Service;
use crate::service::access::Grant;
use crate::service::error::OperationError;
use crate::service::memory::OutOfMemory;
use crate::service::reads::{Answer, LookupResult};
use crate::service::writes::check_key;

/// `GET /rpc?key=`. `make` makes the answer about a key, for a reader who has the records of these tags.
pub(super) async fn get<T>(
    service: &Service,
    grant: &Grant,
    query: &str,
    headers: &HeaderMap,
    notes: &mut Notes,
    make: impl FnOnce(&str, &Answer, Option<&Tags>) -> Result<T, OutOfMemory>,
) -> Result<(T, &'static str), HttpError> {
    let params = query_params(query, READ_FIELDS)?;
    let key = params.get("key").unwrap_or_default();
    check_key(key).map_err(OperationError::from)?;
    let read = read_options(&params, headers)?;
    no_write_condition(headers)?;
    let known = etag::if_none_match(headers)?;
    notes.key(key);
    grant.read(key).map_err(OperationError::from)?;
    let answer = service.get(key, &read).await;
    // What this node knows itself it answers from its store; anything else took the other members. Nothing before it waits.
    match &answer {
        Ok(Answer { found: LookupResult::Local(_), .. }) => notes.waits.store = notes.started.elapsed(),
        _ => notes.waits.peers = notes.started.elapsed(),
    }
    let answer = answer?;
    grant.still("get").map_err(OperationError::from)?;
    Ok((make(key, &answer, known.as_ref())?, answer.outcome()))
}

/// `GET /rpc/cluster?key=`: what another member asks.
pub(super) async fn get_for_member(service: &Service, query: &str, headers: &HeaderMap) -> Outcome {
    let params = query_params(query, READ_FIELDS)?;
    let key = params.get("key").unwrap_or_default();
    let read = read_options(&params, headers)?;
    no_write_condition(headers)?;
    let (answer, log) = service.get_local(key, &read).await?;
    Ok(answers::read_for_member(key, &answer, log, service.memory()))
}

/// A request that sets a key, but for its body.
pub(super) struct Set<'a> {
    pub limits: Limits,
    pub query: &'a str,
    pub headers: &'a HeaderMap,
}

/// `POST /rpc`, with the value in the query, in a form, or as the body.
pub(super) async fn set<B: Buf, E: Display>(
    service: &Service,
    grant: &Grant,
    request: Set<'_>,
    notes: &mut Notes,
    body: impl Stream<Item = Result<B, E>>,
) -> Outcome {
    let Set { limits, query, headers } = request;
    let query = query_params(query, FIELDS)?;
    let body_type = body_type(headers)?;
    let form = body_type == BodyType::Form;
    let Limits { max_value_bytes, request_timeout } = limits;
    // A form spells a byte with up to three.
    let limit = if form { 3 * max_value_bytes + 8192 } else { max_value_bytes };
    let body::Body { bytes, mut memory } =
        notes.body(body::read(body, limit, max_value_bytes, request_timeout, service.memory())).await?;
    if form {
        // Its fields are decoded beside it.
        memory.grow(bytes.len())?;
    }
    let set = set_request(query, bytes, body_type)?;
    // The record that goes into the log, and the answer: taken before the write begins, so that it is refused as a whole.
    memory.grow(2 * set.value.len())?;
    notes.key(&set.key);
    let write = write_options(headers, set.visible.as_deref(), set.timeout.as_deref())?;
    grant.write("set", &set.key, &write).map_err(OperationError::from)?;
    let trace = notes.span.trace_parent();
    match notes.acknowledged(service.set(&set.key, &set.value, set.ttl, &write, trace)).await {
        Ok(written) => Ok((answers::written(&set.key, &set.value, &written, Some(memory)), "ok")),
        Err(error) => failed_write(error, service),
    }
}

/// `DELETE /rpc?key=`
pub(super) async fn delete(
    service: &Service,
    grant: &Grant,
    query: &str,
    headers: &HeaderMap,
    notes: &mut Notes,
) -> Outcome {
    let params = query_params(query, DELETE_FIELDS)?;
    let write = write_options(headers, params.get("visible"), params.get("timeout"))?;
    let key = params.get("key").unwrap_or_default();
    notes.key(key);
    grant.write("delete", key, &write).map_err(OperationError::from)?;
    let trace = notes.span.trace_parent();
    match notes.acknowledged(service.delete(key, &write, trace)).await {
        Ok(written) => Ok((answers::written(key, "", &written, None), "ok")),
        Err(error) => failed_write(error, service),
    }
}

/// The answer to a write that was not made: an error, or what the key is that its condition does not fit.
fn failed_write(error: OperationError, service: &Service) -> Outcome {
    match error.not_met() {
        Some(not_met) => Ok((answers::condition_failed(not_met, service.memory())?, error.kind().outcome())),
        None => Err(error.into()),
    }
}

/// What the headers of a write ask of it, and its parameters.
fn write_options<'a>(
    headers: &'a HeaderMap,
    visible: Option<&str>,
    timeout: Option<&str>,
) -> Result<WriteOptions<'a>, HttpError> {
    let (condition, uuid) = (write_condition(headers)?, idempotency_key(headers)?);
    let visible = options::visible(visible).map_err(HttpError::BadRequest)?;
    let timeout = options::timeout(timeout).map_err(HttpError::BadRequest)?;
    Ok(WriteOptions { condition, uuid, visible, timeout })
}

/// What a read may have in its query.
pub(super) const READ_FIELDS: &[&str] = &["key", "consistency", "position", "timeout", "max_staleness"];
/// What a delete may have in its query.
pub(super) const DELETE_FIELDS: &[&str] = &["key", "visible", "timeout"];
/// What a set may have in its query or form. A body that has one of them is told to be a form.
pub(super) const FIELDS: &[&str] = &["key", "value", "ttl", "visible", "timeout"];

#[derive(Debug, PartialEq, Eq)]
struct SetRequest {
    key: String,
    value: String,
    ttl: Option<Duration>,
    visible: Option<String>,
    timeout: Option<String>,
}

/// Puts a set together from query and body.
///
/// The value is the query's, or a form's field `value`, or the body as it is. `curl -d` and its like call every body a
/// form; so one without any field of a set is taken as it is. One that has such a field is a form, and refused if it is no good one:
/// it would be stored as a value that nobody meant.
fn set_request(mut query: Params<'_>, body: Vec<u8>, body_type: BodyType) -> Result<SetRequest, HttpError> {
    let bad = HttpError::BadRequest;
    let body = String::from_utf8(body).map_err(|_| {
        bad("the body is not UTF-8, and a value is text; encode bytes, for example as base64".to_owned())
    })?;
    let form = body_type == BodyType::Form && has_field(&body, FIELDS);
    let mut fields = if form { Some(form_fields(&body).map_err(bad)?.into_owned()) } else { None };
    let raw = match fields {
        Some(_) => None,
        // An empty one of no type was forgotten rather than meant, and so was one that programs call a form when they send none.
        None if body.is_empty() && (body_type != BodyType::Other || query.get("value").is_some()) => None,
        None => Some(body),
    };
    let mut one = |name: &str, raw: Option<String>| {
        let in_body = fields.as_mut().and_then(|fields| fields.take(name)).or(raw);
        match (query.take(name), in_body) {
            (Some(_), Some(_)) => {
                Err(bad(format!("the {name} is given twice, in the query and in the body")))
            }
            (in_query, in_body) => Ok(in_query.or(in_body)),
        }
    };
    let key = one("key", None)?.unwrap_or_default();
    let ttl = one("ttl", None)?.map(|text| parse_ttl(&text)).transpose().map_err(bad)?;
    let value = one("value", raw)?
        .ok_or_else(|| bad("there is no value; give it as &value=, as a form, or as the body".to_owned()))?;
    let (visible, timeout) = (one("visible", None)?, one("timeout", None)?);
    Ok(SetRequest { key, value, ttl, visible, timeout })
}

/// The fields of a body that is a form.
fn form_fields(body: &str) -> Result<Params<'_>, String> {
    let fields = Params::parse(body, "the form").and_then(|fields| fields.only(FIELDS, "the form"));
    fields.map_err(|error| format!("{error}; a raw value needs another Content-Type, such as text/plain"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::service::writes::MAX_TTL;

    proptest! {
        #[test]
        fn any_query_and_body_are_a_set_or_a_sentence(
            query in "(key=[a-c]{0,2}|value=[a-c]{0,2}|ttl=[0-9smhdx-]{0,5}|[a-z%&=+]{0,6})(&(value=x|ttl=[0-9]{1,22}[smhd]?))?",
            body in prop_oneof![any::<Vec<u8>>(), "(key=k&)?value=[a-z%+]{0,4}(&ttl=[0-9]{1,3})?".prop_map(String::into_bytes)],
            has_content_type: bool, form: bool,
        ) {
            let set = query_params(&query, &["key", "value", "ttl"])
                .and_then(|query| set_request(query, body.clone(), body_type(has_content_type, form)));
            match set {
                Ok(set) => {
                    prop_assert!(set.value.len() <= query.len().max(body.len()));
                    prop_assert!(set.ttl.is_none_or(|ttl| !ttl.is_zero() && ttl <= MAX_TTL));
                }
                Err(error) => {
                    let most = 200 + 2 * query.len() + 2 * body.len();
                    let client_error = (400..500).contains(&error.kind().http_status());
                    prop_assert!(client_error && error.to_string().len() < most, "{}", error);
                }
            }
        }
    }

    fn body_type(has_content_type: bool, form: bool) -> BodyType {
        match (has_content_type, form) {
            (_, true) => BodyType::Form,
            (true, false) => BodyType::Other,
            (false, false) => BodyType::Unsaid,
        }
    }

    const FORM: &str = "application/x-www-form-urlencoded";

    fn set(query: &str, body: &str, content_type: Option<&str>) -> Result<SetRequest, String> {
        let query = query_params(query, &["key", "value", "ttl"]).map_err(|error| error.to_string())?;
        let kind = body_type(content_type.is_some(), content_type == Some(FORM));
        set_request(query, body.into(), kind).map_err(|error| error.to_string())
    }

    fn value(query: &str, body: &str, content_type: Option<&str>) -> Result<String, String> {
        set(query, body, content_type).map(|set| set.value)
    }

    #[test]
    fn a_value_comes_from_the_query_a_form_or_the_body() {
        let ok = |text: &str| Ok(text.to_owned());
        assert_eq!(value("key=k&value=a%26b", "", None), ok("a&b"));
        assert_eq!(value("key=k&value=", "", None), ok(""));
        assert_eq!(value("key=k&value=v", "", Some(FORM)), ok("v"));
        assert_eq!(value("key=k", "a%26b", None), ok("a%26b"));
        assert_eq!(value("key=k", "", Some("text/plain")), ok(""));
        assert_eq!(value("key=k", "{\"a\":1}", Some(FORM)), ok("{\"a\":1}"), "what curl -d sends");
        assert_eq!(value("key=k", "other=1&more=2", Some(FORM)), ok("other=1&more=2"));
        assert_eq!(value("key=k", "value", Some(FORM)), ok("value"), "no field without '='");
        assert_eq!(value("key=k", "value=a%26b", Some(FORM)), ok("a&b"));
        let expected = SetRequest {
            key: "k".into(),
            value: "v".into(),
            ttl: Some(Duration::from_secs(2)),
            visible: None,
            timeout: None,
        };
        assert_eq!(set("", "key=k&value=v&ttl=2s", Some(FORM)), Ok(expected));
    }

    #[test]
    fn an_ambiguous_or_forgotten_value_is_refused() {
        for (query, body, content_type) in [
            ("key=k", "", None),
            ("key=k", "", Some(FORM)),
            ("key=k&value=v", "w", None),
            ("key=k&value=v", "value=w", Some(FORM)),
            ("key=k&ttl=1s", "value=v&ttl=2s", Some(FORM)),
            ("key=k", "other=1&value=2", Some(FORM)),
            ("key=k", "value=50% off", Some(FORM)),
            ("key=k", "ttl=5s", Some(FORM)),
            ("key=k&value=v&ttl=0", "", None),
            ("key=k&value=v&ttl=101000d", "", None),
        ] {
            assert!(set(query, body, content_type).is_err(), "{query:?} with {body:?} was accepted");
        }
    }
}
