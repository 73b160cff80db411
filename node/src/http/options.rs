//! What a request says of how consistent a read is to be.

use std::time::Duration;

use bitacora_protocol::http::POSITION_HEADER;
use bitacora_protocol::{Consistency, ReadOptions, units};
use warp::http::HeaderMap;
use warp::http::header::HeaderName;

use super::error::HttpError;
use super::media::text_header;
use super::params::Params;

/// What a read asks for, from its query and its headers.
///
/// # Errors
/// What can't be read, or is given twice.
pub fn read_options<'a>(params: &'a Params, headers: &'a HeaderMap) -> Result<ReadOptions<'a>, HttpError> {
    let bad = HttpError::BadRequest;
    let consistency = match params.get("consistency") {
        None => Consistency::default(),
        Some(text) => text.parse().map_err(|error| bad(format!("consistency: {error}")))?,
    };
    let in_header = text_header(headers, &HeaderName::from_static(POSITION_HEADER))?;
    let position = match (params.get("position"), in_header) {
        (Some(one), Some(other)) if one != other.trim() => {
            return Err(bad(format!(
                "the query and the header {POSITION_HEADER} name different positions; give one of them"
            )));
        }
        (in_query, in_header) => in_query.or(in_header),
    };
    if position.is_some_and(|text| text.trim().is_empty()) {
        return Err(bad("the position is empty; leave it out, or write it as 0:12,3:40".to_owned()));
    }
    Ok(ReadOptions {
        consistency,
        position: position.unwrap_or_default(),
        timeout: timeout(params.get("timeout"))?,
        max_staleness: max_staleness(params.get("max_staleness")).map_err(bad)?,
    })
}

/// How long a request may wait. The one time of the API whose unit is known without being written: ms, as clients have always
/// given it.
///
/// # Errors
/// When it is no time.
pub fn timeout(text: Option<&str>) -> Result<Option<Duration>, HttpError> {
    let parsed = text.map(units::duration_or_ms).transpose();
    parsed.map_err(|error| HttpError::BadRequest(format!("timeout: {error}")))
}

/// How old the data of a read may be.
///
/// # Errors
/// When it is no time; a sentence for the client.
pub fn max_staleness(text: Option<&str>) -> Result<Option<Duration>, String> {
    text.map(units::positive_duration).transpose().map_err(|error| format!("max_staleness: {error}"))
}
