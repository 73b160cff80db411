//! What is asked of every request before it is looked up in the table of calls, and what every answer says beside its content.

use warp::http::header::{CACHE_CONTROL, HOST, HeaderMap, HeaderValue};
use warp::http::{Method, StatusCode, Version};

use super::answers::Reply;
use super::error::HttpError;
use super::origins::Origins;
use super::routes;

/// What the answer will need of a request.
pub struct Passed {
    readable_by: Option<HeaderValue>,
    cache_control: HeaderValue,
}

/// Looks at the head of a request.
///
/// `Err` has the answer of one that goes no further, which is described all the same.
pub fn check(
    origins: &Origins,
    method: &Method,
    version: Version,
    path: &str,
    headers: &HeaderMap,
) -> (Passed, Result<(), Reply>) {
    let passed =
        Passed { readable_by: origins.readable_by(headers), cache_control: cache_control(method, headers) };
    let checked = check_path(path)
        .and_then(|()| check_host(version, headers))
        .and_then(|()| origins.check(method, headers));
    let answered = match checked {
        Err(error) => Err(error.reply(false)),
        Ok(()) => match origins.preflight(method, headers, || routes::methods(path)) {
            None => Ok(()),
            Some(preflight) => Err(preflight.unwrap_or_else(|error| error.reply(false))),
        },
    };
    (passed, answered)
}

impl Passed {
    /// Of a request that asks for nothing of this.
    #[must_use]
    pub fn plain() -> Self {
        Self { readable_by: None, cache_control: NO_STORE }
    }

    /// Adds to an answer what all of them have.
    pub fn describe(self, origins: &Origins, status: StatusCode, answer: &mut HeaderMap) {
        let Self { readable_by, cache_control } = self;
        let is_read = matches!(status, StatusCode::OK | StatusCode::NOT_FOUND);
        // An answer that is no one's data says itself how long it may be kept.
        if !answer.contains_key(CACHE_CONTROL) {
            answer.insert(CACHE_CONTROL, if is_read { cache_control } else { NO_STORE });
        }
        origins.describe(readable_by, answer);
    }
}

const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

/// A proxy is asked for a host and a port instead (`CONNECT host:443`, RFC 9112, section 3.2.3), and warp panics when it looks for a
/// path there.
fn check_path(path: &str) -> Result<(), HttpError> {
    if path.is_empty() {
        let text = "the request names no path, as those to a proxy do (CONNECT); a node is no proxy";
        return Err(HttpError::BadRequest(text.to_owned()));
    }
    Ok(())
}

/// A request names one host (RFC 9112, section 3.2): what is in between may send it elsewhere than it was meant to go otherwise.
fn check_host(version: Version, headers: &HeaderMap) -> Result<(), HttpError> {
    let bad = |text: &str| Err(HttpError::BadRequest(text.to_owned()));
    let mut hosts = headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) if is_host(host.as_bytes()) => Ok(()),
        (Some(_), None) => bad("the header Host is no host, nor host:port"),
        (None, _) if version < Version::HTTP_11 => Ok(()),
        (None, _) => bad("a request of HTTP/1.1 needs the header Host"),
        (Some(_), Some(_)) => bad("the header Host is given twice"),
    }
}

/// Whether a value of `Host` may be a host, or `host:port`.
#[must_use]
pub fn is_host(value: &[u8]) -> bool {
    let illegal = |byte: &u8| byte.is_ascii_whitespace() || b"/\\?#@,".contains(byte);
    !value.iter().any(illegal)
}

/// How long an answer may be kept. What a node has changes at any time, so nothing is kept unless the caller asked for it: a read with
/// `Cache-Control: max-age=N` may be answered from the caller's own cache for N seconds.
fn cache_control(method: &Method, headers: &HeaderMap) -> HeaderValue {
    let asked = headers.get(CACHE_CONTROL).filter(|_| matches!(*method, Method::GET | Method::HEAD));
    let Some(Ok(asked)) = asked.map(HeaderValue::to_str) else { return NO_STORE };
    let mut seconds = 0;
    for directive in asked.split(',') {
        let (name, value) = directive.split_once('=').unwrap_or((directive, ""));
        let name = name.trim();
        if name.eq_ignore_ascii_case("no-store") || name.eq_ignore_ascii_case("no-cache") {
            return NO_STORE;
        }
        if name.eq_ignore_ascii_case("max-age") {
            seconds = value.trim().parse::<u32>().unwrap_or_default();
        }
    }
    let kept = (seconds > 0).then(|| HeaderValue::try_from(format!("private, max-age={seconds}")).ok());
    kept.flatten().unwrap_or(NO_STORE)
}
