//! Pages in browsers: which of them may write, and which may read what is answered.
//!
//! A browser lets any page send requests to any address that it reaches, a node's in one's own network too. It says from which
//! origin they come, so a write for a page of another origin is refused unless that origin is allowed. Programs say nothing of the
//! kind and are not concerned.

use std::str::FromStr;

use warp::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN, VARY,
};
use warp::http::{Method, Response, StatusCode};

use super::answers::Reply;
use super::error::HttpError;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// Headers of answers that a page of an allowed origin may read, beside those that every page may.
pub(super) const EXPOSED_HEADERS: HeaderValue = HeaderValue::from_static(
    "bitacora-position, bitacora-source, bitacora-timestamp, bitacora-not-visible, etag, retry-after, allow, www-authenticate",
);
/// How long a browser may remember what a preflight was answered, in seconds.
const PREFLIGHT_MAX_AGE: HeaderValue = HeaderValue::from_static("600");

/// An origin whose pages may write: `https://app.example`, or `*` for every one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedOrigin(String);

impl FromStr for AllowedOrigin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text == "*" {
            return Ok(Self(text.to_owned()));
        }
        let url = reqwest::Url::parse(text).ok();
        let origin = url.filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        // As browsers spell it: lower case, no port that is the scheme's own.
        let origin = origin.map(|url| url.origin().ascii_serialization());
        let slashes = text.trim_end_matches('/').matches('/').count();
        match origin {
            Some(origin) if slashes == 2 && !text.contains(['@', '?', '#']) => Ok(Self(origin)),
            _ => {
                Err("an origin is https://HOST or http://HOST:PORT without a path, or * for every one"
                    .to_owned())
            }
        }
    }
}

/// The origins whose pages may write.
#[derive(Debug, Default)]
pub struct Origins {
    allowed: Vec<AllowedOrigin>,
    every: bool,
}

impl Origins {
    #[must_use]
    pub fn new(allowed: Vec<AllowedOrigin>) -> Self {
        let every = allowed.iter().any(|origin| origin.0 == "*");
        Self { allowed, every }
    }

    fn allows(&self, origin: &[u8]) -> bool {
        self.every || self.allowed.iter().any(|allowed| allowed.0.as_bytes().eq_ignore_ascii_case(origin))
    }

    /// Refuses a write that a browser sends for a page of another origin.
    ///
    /// # Errors
    /// When its origin is not allowed.
    pub fn check(&self, method: &Method, headers: &HeaderMap) -> Result<(), HttpError> {
        if self.every || matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS) {
            return Ok(());
        }
        let origin = headers.get(ORIGIN);
        let own = match headers.get(SEC_FETCH_SITE) {
            // The browser's own word, which no page can change; a proxy may have changed the host.
            Some(site) => {
                ["same-origin", "none"].iter().any(|own| site.as_bytes().eq_ignore_ascii_case(own.as_bytes()))
            }
            None => origin.is_none_or(|origin| is_host(origin, headers.get(HOST))),
        };
        if own || origin.is_some_and(|origin| self.allows(origin.as_bytes())) {
            return Ok(());
        }
        let origin = origin.and_then(|origin| origin.to_str().ok()).unwrap_or("another origin");
        Err(HttpError::ForeignOrigin(origin.chars().take(200).collect()))
    }

    /// The answer to a browser that asks whether a page may send a request; `None` if this is no such question.
    ///
    /// `methods` are those that the path has.
    pub fn preflight(
        &self,
        method: &Method,
        headers: &HeaderMap,
        methods: impl FnOnce() -> Result<String, HttpError>,
    ) -> Option<Result<Reply, HttpError>> {
        let origin = headers.get(ORIGIN)?;
        if method != Method::OPTIONS || !headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD) {
            return None;
        }
        if !self.allows(origin.as_bytes()) {
            let origin = String::from_utf8_lossy(origin.as_bytes()).chars().take(200).collect();
            return Some(Err(HttpError::ForeignOrigin(origin)));
        }
        Some(methods().map(|methods| {
            let mut reply = Response::new(bytes::Bytes::new());
            *reply.status_mut() = StatusCode::NO_CONTENT;
            if let Ok(methods) = HeaderValue::try_from(methods) {
                reply.headers_mut().insert(ACCESS_CONTROL_ALLOW_METHODS, methods);
            }
            if let Some(asked) = headers.get(ACCESS_CONTROL_REQUEST_HEADERS) {
                reply.headers_mut().insert(ACCESS_CONTROL_ALLOW_HEADERS, asked.clone());
            }
            reply.headers_mut().insert(ACCESS_CONTROL_MAX_AGE, PREFLIGHT_MAX_AGE);
            reply
        }))
    }

    /// What a browser must be told so that a page of this origin may read the answer; `None` if it may not.
    #[must_use]
    pub fn readable_by(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        // Most nodes allow none, and then nothing is looked up.
        if self.allowed.is_empty() {
            return None;
        }
        headers.get(ORIGIN).filter(|origin| self.allows(origin.as_bytes())).cloned()
    }

    /// Whether answers say nothing of origins to who names none.
    #[must_use]
    pub fn are_none(&self) -> bool {
        self.allowed.is_empty()
    }

    /// Says in an answer who may read it.
    pub fn describe(&self, readable_by: Option<HeaderValue>, answer: &mut HeaderMap) {
        if !self.allowed.is_empty() {
            answer.insert(VARY, HeaderValue::from_name(ORIGIN));
        }
        if let Some(origin) = readable_by {
            answer.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            answer.insert(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED_HEADERS);
        }
    }
}

/// Whether an origin is of the host that a request names. The scheme is not compared: in front of a node a balancer may end TLS.
fn is_host(origin: &HeaderValue, host: Option<&HeaderValue>) -> bool {
    let (Ok(origin), Some(Ok(host))) = (origin.to_str(), host.map(HeaderValue::to_str)) else { return false };
    let Some((scheme, named)) = origin.split_once("://") else { return false };
    let default = if scheme.eq_ignore_ascii_case("https") { ":443" } else { ":80" };
    let bare = |name: &str| name.strip_suffix(default).unwrap_or(name).to_ascii_lowercase();
    bare(named) == bare(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_read_as_browsers_spell_them() {
        for (text, expected) in [
            ("https://App.example", "https://app.example"),
            (" http://localhost:3000/", "http://localhost:3000"),
            ("https://app.example:443", "https://app.example"),
            ("http://[::1]:8080", "http://[::1]:8080"),
            ("*", "*"),
        ] {
            assert_eq!(text.parse(), Ok(AllowedOrigin(expected.to_owned())), "{text}");
        }
        for wrong in [
            "",
            "app.example",
            "https://",
            "ftp://a",
            "https://a/b",
            "https://a?b",
            "null",
            "https://u@a",
            "file:///a",
        ] {
            assert!(wrong.parse::<AllowedOrigin>().is_err(), "{wrong:?} was accepted");
        }
    }

    #[test]
    fn an_origin_is_the_requests_own_by_host_and_port() {
        let own = |origin: &str, host: &str| {
            let value = |text: &str| HeaderValue::from_str(text).expect("a header");
            is_host(&value(origin), Some(&value(host)))
        };
        for (origin, host) in [
            ("http://node", "node"),
            ("http://node:80", "NODE"),
            ("https://node", "node:443"),
            ("http://[::1]:8080", "[::1]:8080"),
            ("https://node:8443", "node:8443"),
        ] {
            assert!(own(origin, host), "{origin} {host}");
        }
        for (origin, host) in [
            ("http://node:81", "node"),
            ("http://node", "node:8080"),
            ("null", "node"),
            ("http://node.a", "node"),
            ("node", "node"),
        ] {
            assert!(!own(origin, host), "{origin} {host}");
        }
    }
}
