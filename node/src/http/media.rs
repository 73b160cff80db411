//! What a request says its body is.

use warp::http::HeaderMap;
use warp::http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderName};

use super::error::HttpError;

/// The type of a body, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyType {
    /// Nothing is said.
    Unsaid,
    /// `application/x-www-form-urlencoded`
    Form,
    /// Any other; the body is taken as it is.
    Other,
}

/// What the body of a request is.
///
/// # Errors
/// When it would have to be unpacked first (`multipart/…`, a `Content-Encoding`, UTF-16), which nothing here does; or when the headers
/// can't be read.
pub fn body_type(headers: &HeaderMap) -> Result<BodyType, HttpError> {
    for encoding in headers.get_all(CONTENT_ENCODING) {
        let encoding = encoding.to_str().unwrap_or("in bytes that are no text");
        let packed = encoding
            .split(',')
            .map(str::trim)
            .find(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case("identity"));
        if let Some(coding) = packed {
            return Err(HttpError::MediaType(format!(
                "a body with Content-Encoding {coding} is not taken; send it as it is, without the header"
            )));
        }
    }
    let Some(content_type) = text_header(headers, &CONTENT_TYPE)? else { return Ok(BodyType::Unsaid) };
    let mut parts = content_type.split(';').map(str::trim);
    let kind = parts.next().unwrap_or_default();
    if starts_with(kind, "multipart/") {
        return Err(HttpError::MediaType(format!(
            "a body of {kind} is not taken; send key and value as application/x-www-form-urlencoded, or the value as the body"
        )));
    }
    let charset = parts.find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("charset").then(|| value.trim().trim_matches('"'))
    });
    // Their bytes may happen to be UTF-8 as well, of another text. Those of any other charset are, or are refused.
    if let Some(charset) = charset
        && ["utf-16", "utf-32", "ucs-2"].iter().any(|wide| starts_with(charset, wide))
    {
        return Err(HttpError::MediaType(format!("a body of charset {charset} is not taken; send UTF-8")));
    }
    let form = kind.eq_ignore_ascii_case("application/x-www-form-urlencoded");
    Ok(if form { BodyType::Form } else { BodyType::Other })
}

fn starts_with(text: &str, prefix: &str) -> bool {
    text.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

/// A header that may be given once, and is text.
///
/// # Errors
/// When it is not.
pub fn text_header<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, HttpError> {
    let mut values = headers.get_all(name).iter();
    let text = values.next().map(|value| value.to_str()).transpose();
    let text = text.map_err(|_| HttpError::BadRequest("a header of the request is not text".to_owned()))?;
    if values.next().is_some() {
        return Err(HttpError::BadRequest(format!("the header {name} is given twice")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use warp::http::HeaderValue;

    use super::*;

    fn of(name: &'static str, value: &str) -> Result<BodyType, String> {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_str(value).expect("a header"));
        body_type(&headers).map_err(|error| error.to_string())
    }

    #[test]
    fn types_are_compared_in_any_case_and_without_parameters() {
        for form in [
            "application/x-www-form-urlencoded",
            "Application/X-WWW-Form-Urlencoded",
            "application/x-www-form-urlencoded; charset=UTF-8",
            " application/x-www-form-urlencoded ;a=\"b\"",
        ] {
            assert_eq!(of("content-type", form), Ok(BodyType::Form), "{form}");
        }
        for other in ["text/plain", "application/x-www-form-urlencoded-not", "", ";", "é"] {
            assert_eq!(of("content-type", other).ok(), (other != "é").then_some(BodyType::Other), "{other}");
        }
        assert_eq!(of("accept", "multipart/x"), Ok(BodyType::Unsaid));
        assert_eq!(of("content-encoding", "Identity"), Ok(BodyType::Unsaid));
    }
}
