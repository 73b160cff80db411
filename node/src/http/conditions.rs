//! What the headers of a write say of its condition, `If-Match` and `If-None-Match`, and of its identity, `Idempotency-Key`.
//!
//! Read strictly: a condition that is not understood must not become a write without one.

use bitacora_protocol::{Position, WriteCondition};
use warp::http::HeaderMap;
use warp::http::header::{HeaderName, IF_MATCH, IF_NONE_MATCH};

use super::error::HttpError;
use super::media::text_header;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static(bitacora_protocol::http::IDEMPOTENCY_KEY_HEADER);

/// The condition of a write.
///
/// # Errors
/// When the headers state none that a write can have; the text is for the client.
pub fn write_condition(headers: &HeaderMap) -> Result<WriteCondition, HttpError> {
    let (matching, none) = (text_header(headers, &IF_MATCH)?, text_header(headers, &IF_NONE_MATCH)?);
    let condition = match (matching, none) {
        (None, None) => Ok(WriteCondition::None),
        (Some(_), Some(_)) => Err("If-Match and If-None-Match contradict each other on a write; give one".to_owned()),
        (Some(text), None) => if_match(text.trim()).map_err(|error| format!("If-Match: {error}")),
        (None, Some(text)) if text.trim() == "*" => Ok(WriteCondition::Absent),
        (None, Some(_)) => Err(
            "If-None-Match of a write is '*', which means that there is no such key; a version belongs into If-Match".to_owned(),
        ),
    };
    condition.map_err(HttpError::BadRequest)
}

/// The text of the header `Idempotency-Key`, without the quotes that it may have; empty without the header.
///
/// # Errors
/// When it is given twice, is no text, or is empty.
pub fn idempotency_key(headers: &HeaderMap) -> Result<&str, HttpError> {
    let Some(text) = text_header(headers, &IDEMPOTENCY_KEY)? else { return Ok("") };
    let text = text.trim();
    let text = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    if text.is_empty() {
        return Err(HttpError::BadRequest("the header Idempotency-Key is empty; it is a UUID".to_owned()));
    }
    Ok(text)
}

/// That there is neither of them.
///
/// # Errors
/// When there is one: `what` says where it belongs instead.
pub fn no_condition(headers: &HeaderMap, what: &str) -> Result<(), HttpError> {
    match [IF_MATCH, IF_NONE_MATCH, IDEMPOTENCY_KEY].iter().find(|name| headers.contains_key(*name)) {
        Some(name) => Err(HttpError::BadRequest(format!("the header {name} has no meaning here; {what}"))),
        None => Ok(()),
    }
}

/// That a read has no `If-Match`: it would be answered as if it held.
///
/// # Errors
/// When there is one.
pub fn no_write_condition(headers: &HeaderMap) -> Result<(), HttpError> {
    if headers.contains_key(IF_MATCH) {
        let why = "the header if-match has no meaning on a read; a read that must see more has consistency, and a write the condition";
        return Err(HttpError::BadRequest(why.to_owned()));
    }
    Ok(())
}

/// A condition as `If-Match` and the field `ifMatch` of a batch's line have it; the latter without quotes.
pub fn if_match(text: &str) -> Result<WriteCondition, String> {
    if text == "*" {
        return Ok(WriteCondition::Present);
    }
    if text.starts_with("W/") {
        return Err(
            "a weak ETag never matches on a write; send it as it was answered, \"P:O\" without W/".to_owned()
        );
    }
    if text.contains(',') {
        return Err("a list of ETags is not taken; give the one that the key must have".to_owned());
    }
    let Some(version) = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')) else {
        return Err(format!(
            "{} is no ETag; it is written with its quotes, such as \"2:1047\", or is *",
            shown(text)
        ));
    };
    version_condition(version)
}

/// The condition that a key has a version.
///
/// # Errors
/// When the text is none as it is answered; says how it is written.
pub fn version_condition(text: &str) -> Result<WriteCondition, String> {
    let version =
        text.parse().ok().filter(|version: &Position| version.offset >= 0 && version.to_string() == text);
    let wrong = || {
        format!(
            "{} is no version of a key; it is the position of its record, partition:offset, such as 2:1047",
            shown(text)
        )
    };
    Ok(WriteCondition::Version(version.ok_or_else(wrong)?))
}

fn shown(text: &str) -> String {
    format!("'{}'", text.chars().take(64).collect::<String>())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use warp::http::HeaderValue;

    use super::*;

    fn headers(given: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in given {
            headers.append(*name, HeaderValue::from_str(value).expect("a header"));
        }
        headers
    }

    fn condition(given: &[(&'static str, &str)]) -> Result<WriteCondition, String> {
        write_condition(&headers(given)).map_err(|error| error.to_string())
    }

    proptest! {
        #[test]
        fn any_headers_are_a_condition_or_a_sentence(
            matching in prop::option::of("[ -~]{0,12}|\"[0-9]{1,22}:[0-9]{1,22}\""), none in prop::option::of("[ -~]{0,6}"),
        ) {
            let given: Vec<_> = [("if-match", &matching), ("if-none-match", &none)]
                .into_iter()
                .filter_map(|(name, value)| Some((name, value.as_deref()?)))
                .collect();
            match condition(&given) {
                Ok(WriteCondition::None) => prop_assert!(given.is_empty()),
                Ok(WriteCondition::Version(version)) => {
                    prop_assert_eq!(matching.as_deref().map(str::trim), Some(&*format!("\"{version}\"")));
                }
                Ok(WriteCondition::Present) => prop_assert_eq!(matching.as_deref().map(str::trim), Some("*")),
                Ok(WriteCondition::Absent) => prop_assert_eq!(none.as_deref().map(str::trim), Some("*")),
                Err(error) => prop_assert!(error.starts_with("If-") && error.len() < 300, "{}", error),
            }
        }
    }

    #[test]
    fn conditions_are_read() {
        let version = Position { partition: 2, offset: 1047 };
        for (given, expected) in [
            (&[][..], WriteCondition::None),
            (&[("if-match", "\"2:1047\"")], WriteCondition::Version(version)),
            (&[("if-match", " * ")], WriteCondition::Present),
            (&[("if-none-match", "*")], WriteCondition::Absent),
            (&[("if-modified-since", "x"), ("if-range", "x")], WriteCondition::None),
        ] {
            assert_eq!(condition(given), Ok(expected), "{given:?}");
        }
    }

    #[test]
    fn what_no_write_can_have_is_refused_with_a_sentence() {
        for (given, says) in [
            (&[("if-match", "W/\"0:1\"")][..], "a weak ETag never matches"),
            (&[("if-match", "\"0:1\", \"0:2\"")], "a list of ETags"),
            (&[("if-match", "*, \"0:2\"")], "a list of ETags"),
            (&[("if-match", "0:1")], "with its quotes"),
            (&[("if-match", "\"0:1")], "with its quotes"),
            (&[("if-match", "")], "with its quotes"),
            (&[("if-match", "\"\"")], "is no version"),
            (&[("if-match", "\"abc\"")], "'abc' is no version"),
            (&[("if-match", "\"0:-1\"")], "is no version"),
            (&[("if-match", "\"-1:1\"")], "is no version"),
            (&[("if-match", "\"0:+1\"")], "is no version"),
            (&[("if-match", "\"0:01\"")], "is no version"),
            (&[("if-match", "\"0:99999999999999999999\"")], "is no version"),
            (&[("if-match", "\"0:1\""), ("if-match", "\"0:1\"")], "given twice"),
            (&[("if-match", "*"), ("if-none-match", "*")], "contradict each other"),
            (&[("if-none-match", "\"0:1\"")], "a version belongs into If-Match"),
            (&[("if-none-match", "*"), ("if-none-match", "*")], "given twice"),
        ] {
            let error = condition(given).expect_err("refused");
            assert!(error.contains(says), "{given:?}: {error}");
        }
    }

    #[test]
    fn an_idempotency_key_may_be_quoted() {
        let key = |value| idempotency_key(&headers(&[("idempotency-key", value)])).ok().map(str::to_owned);
        assert_eq!(key(" \"a-b\" ").as_deref(), Some("a-b"));
        assert_eq!(key("a-b").as_deref(), Some("a-b"));
        assert_eq!((key(""), key("\"\"")), (None, None));
        assert_eq!(idempotency_key(&HeaderMap::new()).ok(), Some(""));
        assert!(no_condition(&headers(&[("idempotency-key", "x")]), "it is one of a line").is_err());
        assert!(no_condition(&headers(&[("if-range", "x")]), "").is_ok());
    }
}
