//! What a request says of how consistent a read is to be, and of who must show a write.

use std::time::Duration;

use bitacora_protocol::http::{LineReadOptions, POSITION_HEADER};
use bitacora_protocol::{Consistency, ReadOptions, Visible, units};
use warp::http::HeaderMap;
use warp::http::header::HeaderName;

use super::error::HttpError;
use super::media::text_header;
use super::params::Params;

/// What a read asks for, from its query and its headers.
///
/// # Errors
/// What can't be read, or is given twice.
pub fn read_options<'a>(
    params: &'a Params<'_>,
    headers: &'a HeaderMap,
) -> Result<ReadOptions<'a>, HttpError> {
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
        timeout: timeout(params.get("timeout")).map_err(bad)?,
        max_staleness: max_staleness(params.get("max_staleness")).map_err(bad)?,
    })
}

/// What a line of a batch asks of a read.
///
/// # Errors
/// What can't be read; a sentence for the client.
pub fn line_read_options<'a>(line: &'a LineReadOptions<'_>) -> Result<ReadOptions<'a>, String> {
    let consistency = match line.consistency.as_deref() {
        None => Consistency::default(),
        Some(text) => text.parse().map_err(|error| format!("consistency: {error}"))?,
    };
    let position = line.position.as_deref();
    if position.is_some_and(|text| text.trim().is_empty()) {
        return Err("the field 'position' is empty; leave it out".to_owned());
    }
    let max_staleness = max_staleness(line.max_staleness.as_deref());
    Ok(ReadOptions {
        consistency,
        position: position.unwrap_or_default(),
        timeout: timeout(line.timeout.as_deref())?,
        max_staleness: max_staleness.map_err(|error| error.replace("max_staleness", "maxStaleness"))?,
    })
}

/// Who must show a write.
///
/// # Errors
/// When it is none of the words there are; a sentence for the client.
pub fn visible(text: Option<&str>) -> Result<Visible, String> {
    text.map_or(Ok(Visible::default()), |text| text.parse().map_err(|error| format!("visible: {error}")))
}

/// How long a request may wait. The one time of the API whose unit is known without being written: ms, as clients have always
/// given it.
///
/// # Errors
/// When it is no time; a sentence for the client.
pub fn timeout(text: Option<&str>) -> Result<Option<Duration>, String> {
    text.map(units::duration_or_ms).transpose().map_err(|error| format!("timeout: {error}"))
}

/// How old the data of a read may be.
///
/// # Errors
/// When it is no time; a sentence for the client.
pub fn max_staleness(text: Option<&str>) -> Result<Option<Duration>, String> {
    text.map(units::positive_duration).transpose().map_err(|error| format!("max_staleness: {error}"))
}
