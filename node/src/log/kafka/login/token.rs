//! A token, as the endpoint gives it out.

use std::ffi::CString;
use std::fmt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

/// What is longer counts as this, so that no time overflows.
const LONGEST_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);
/// How much is shown of a text that others wrote, in characters.
const SHOWN: usize = 200;

/// What lets a client in for a while.
pub(in super::super) struct Token {
    /// Never printed.
    pub value: CString,
    pub life: Duration,
    /// When it was given out, by both clocks.
    got: (Instant, SystemTime),
    /// Whose it is and for whom, if it says that. Not secret.
    pub says: Option<String>,
}

impl fmt::Debug for Token {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Token").field("life", &self.life).field("says", &self.says).finish_non_exhaustive()
    }
}

impl Token {
    fn new(value: CString, life: Duration, says: Option<String>) -> Self {
        Self { value, life: life.min(LONGEST_LIFE), got: (Instant::now(), SystemTime::now()), says }
    }

    pub fn is_alive(&self) -> bool {
        self.age() < self.life
    }

    /// How long it is still good before it should be replaced: 80 % of its life.
    pub fn renewal_in(&self) -> Duration {
        (self.life * 4 / 5).saturating_sub(self.age())
    }

    /// By the clock that went further. One stands still while the machine sleeps, the other may be set.
    pub fn age(&self) -> Duration {
        let (moment, wall) = self.got;
        moment.elapsed().max(wall.elapsed().unwrap_or_default())
    }
}

/// Reads the answer of an endpoint (RFC 6749, section 5.1). No part of it is in the errors.
pub(super) fn read(answer: &[u8]) -> Result<Token, String> {
    let answer: Value = serde_json::from_slice(answer)
        .map_err(|_| "answers with something that is no JSON: is it another address?".to_owned())?;
    let value =
        answer.get("access_token").and_then(Value::as_str).ok_or("answers without an 'access_token'")?;
    // RFC 6750 allows less, but nothing else is understood.
    let printable = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_graphic());
    let c_value = CString::new(value).ok().filter(|_| printable);
    let c_value = c_value
        .ok_or("answers with a token that is empty, or has spaces or other characters that no token has")?;
    match answer.get("token_type").and_then(Value::as_str) {
        Some(kind) if !kind.eq_ignore_ascii_case("bearer") => {
            return Err(
                "answers with a token of another type than 'Bearer', which Kafka does not take".to_owned()
            );
        }
        _ => {}
    }
    let claims = claims(value);
    let claims = claims.as_ref();
    let life = match (
        answer.get("expires_in").and_then(seconds),
        claims.and_then(|claims| claims.get("exp")).and_then(seconds),
    ) {
        (Some(life), _) => life,
        (None, Some(end)) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            end.saturating_sub(now)
        }
        (None, None) => {
            return Err(
                "answers without 'expires_in', with a token that doesn't say how long it is good ('exp')"
                    .to_owned(),
            );
        }
    };
    if life.is_zero() {
        return Err(
            "answers with a token that has run out already: compare its clock with this machine's".to_owned()
        );
    }
    Ok(Token::new(c_value, life, claims.map(description)))
}

/// Some endpoints write numbers as texts.
fn seconds(value: &Value) -> Option<Duration> {
    let seconds = value.as_f64().or_else(|| value.as_str()?.parse().ok())?;
    Some(Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(LONGEST_LIFE))
        .filter(|_| seconds.is_finite())
}

/// What is in a JWT, whose signature is the broker's to check; `None` if it is none.
fn claims(token: &str) -> Option<Value> {
    let mut parts = token.split('.');
    let (_, payload) = (parts.next()?, parts.next()?);
    let payload = URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).ok()?;
    serde_json::from_slice(&payload).ok()
}

/// What brokers decide by, for whoever compares it with their settings.
fn description(claims: &Value) -> String {
    let text = |name: &str| match claims.get(name) {
        None | Some(Value::Null) => "none".to_owned(),
        Some(Value::String(text)) => format!("'{}'", shown(text)),
        Some(other) => shown(&other.to_string()),
    };
    format!("audience (aud) {}, issuer (iss) {}, subject (sub) {}", text("aud"), text("iss"), text("sub"))
}

/// A text that others wrote, for a log line.
pub(super) fn shown(text: &str) -> String {
    let plain = |character: char| if character.is_control() { '?' } else { character };
    text.chars().take(SHOWN).map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jwt(claims: &str) -> String {
        format!("{}.{}.c2ln", URL_SAFE_NO_PAD.encode(r#"{"alg":"ES256"}"#), URL_SAFE_NO_PAD.encode(claims))
    }

    fn in_seconds(seconds: u64) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later").as_secs() + seconds
    }

    #[test]
    fn its_life_is_what_the_answer_says_or_else_the_token_itself() {
        let long = jwt(&format!(r#"{{"exp":{},"aud":["a","b"],"iss":"i","sub":"s"}}"#, in_seconds(3_600)));
        let token =
            read(format!(r#"{{"access_token":"{long}","token_type":"bearer","expires_in":100}}"#).as_bytes());
        let token = token.expect("a token");
        assert_eq!(token.life, Duration::from_secs(100));
        assert!(token.is_alive());
        let renewal = token.renewal_in();
        assert!(renewal <= Duration::from_secs(80) && renewal > Duration::from_secs(70), "{renewal:?}");
        assert_eq!(
            token.says.as_deref(),
            Some(r#"audience (aud) ["a","b"], issuer (iss) 'i', subject (sub) 's'"#)
        );
        assert!(!format!("{token:?}").contains(&long), "{token:?}");
        let token = read(format!(r#"{{"access_token":"{long}"}}"#).as_bytes()).expect("a token");
        assert!(
            token.life > Duration::from_secs(3_500) && token.life <= Duration::from_secs(3_600),
            "{:?}",
            token.life
        );
        // As some write it; one that is no JWT may say nothing of itself.
        let token = read(br#"{"access_token":"opaque","expires_in":"60"}"#).expect("a token");
        assert_eq!((token.life, token.says), (Duration::from_secs(60), None));
        let token = read(br#"{"access_token":"opaque","expires_in":1e300}"#).expect("a token");
        assert_eq!(token.life, LONGEST_LIFE);
    }

    #[test]
    fn what_is_no_token_is_told_without_being_shown() {
        let over = jwt(r#"{"exp":1000}"#);
        let unlimited = jwt("{}");
        for (answer, says) in [
            ("s3cret".to_owned(), "no JSON"),
            (r#"["s3cret"]"#.to_owned(), "without an 'access_token'"),
            (r#"{"access_token":7,"expires_in":60}"#.to_owned(), "without an 'access_token'"),
            (r#"{"access_token":"","expires_in":60}"#.to_owned(), "empty"),
            (r#"{"access_token":"s3cret\u0001auth=x","expires_in":60}"#.to_owned(), "other characters"),
            (r#"{"access_token":"s3cret","token_type":"mac","expires_in":60}"#.to_owned(), "'Bearer'"),
            (r#"{"access_token":"s3cret"}"#.to_owned(), "'expires_in'"),
            (format!(r#"{{"access_token":"{unlimited}"}}"#), "'exp'"),
            (r#"{"access_token":"s3cret","expires_in":0}"#.to_owned(), "run out already"),
            (r#"{"access_token":"s3cret","expires_in":-5}"#.to_owned(), "run out already"),
            (format!(r#"{{"access_token":"{over}"}}"#), "run out already"),
        ] {
            let error = read(answer.as_bytes()).expect_err(says);
            assert!(error.contains(says) && !error.contains("s3cret"), "{answer}: {error}");
        }
    }
}
