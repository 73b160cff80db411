//! Tokens that callers show, and the lines that nodes know them by.
//!
//! A token is 256 random bits, so its SHA-256 is enough to keep: a slow hash, as passwords need, makes guessing dear, and nobody
//! guesses 256 bits.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// What every token begins with, so that scanners for secrets find one that lies where it should not.
pub const TOKEN_START: &str = "bitacora_";
/// Of a token's random part.
const RANDOM_BYTES: usize = 32;
/// The longest name of a token, in bytes.
const MAX_NAME_BYTES: usize = 100;
/// The longest prefix of keys, in bytes: as long as a key.
const MAX_PREFIX_BYTES: usize = 1024;
/// The name of the metadata of an RPC call that has its token, and of the header of an HTTP request, in lower case. The value is
/// `Bearer TOKEN` in both.
pub const AUTHORIZATION: &str = "authorization";

/// The SHA-256 of a token.
pub type TokenHash = [u8; 32];

/// What a token is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Reads, scans and watches.
    Read,
    /// Sets and deletes.
    Write,
    /// Copies of the whole store.
    Admin,
    /// What the members of a cluster ask one another.
    Member,
}

impl Scope {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Read, Self::Write, Self::Admin, Self::Member];

    /// As settings and lines have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
            Self::Member => "member",
        }
    }
}

impl FromStr for Scope {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|scope| scope.name() == text.trim());
        found.ok_or_else(|| "a scope is read, write, admin or member".to_owned())
    }
}

/// A token as it is shown: a secret. Its `Debug` does not tell it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// The token of these random bytes.
    #[must_use]
    pub fn of(random: [u8; RANDOM_BYTES]) -> Self {
        use std::fmt::Write as _;
        let mut text = TOKEN_START.to_owned();
        for byte in random {
            let _ = write!(text, "{byte:02x}");
        }
        Self(text)
    }

    /// The text itself.
    #[must_use]
    pub fn secret(&self) -> &str {
        &self.0
    }

    /// What a request carries: `Bearer TOKEN`.
    #[must_use]
    pub fn authorization(&self) -> String {
        format!("Bearer {}", self.0)
    }

    /// What is kept of it.
    #[must_use]
    pub fn hash(&self) -> TokenHash {
        Sha256::digest(&self.0).into()
    }

    /// The token that a request carries in its `Authorization`; `None` if that is something else.
    #[must_use]
    pub fn of_authorization(value: &[u8]) -> Option<Self> {
        let value = std::str::from_utf8(value).ok()?;
        let (scheme, token) = value.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        token.parse().ok()
    }
}

impl FromStr for Token {
    type Err = String;

    /// The error does not repeat the text, which may be a secret of another kind.
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let random = text.strip_prefix(TOKEN_START);
        let is_one = random.is_some_and(|random| is_lower_hex(random, 2 * RANDOM_BYTES));
        if is_one { Ok(Self(text.to_owned())) } else { Err(NO_TOKEN.to_owned()) }
    }
}

const NO_TOKEN: &str =
    "it is no token; one is bitacora_ and 64 hexadecimal digits, as 'bitacora token' makes it";

impl std::fmt::Debug for Token {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Token(…)")
    }
}

/// A line of the file by which nodes know the tokens (`TOKENS_FILE`), as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenLine {
    /// Tells whose it is, in logs too.
    pub name: String,
    /// The token's SHA-256, in hexadecimal digits.
    pub sha256: String,
    /// What it is good for.
    pub scopes: Vec<Scope>,
    /// What the keys begin with that it is good for; all of them without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
}

impl TokenLine {
    /// The line of a token.
    #[must_use]
    pub fn of(token: &Token, name: String, scopes: Vec<Scope>, prefix: Option<String>) -> Self {
        let sha256 = token.hash().iter().map(|byte| format!("{byte:02x}")).collect();
        Self { name, sha256, scopes, prefix }
    }

    /// The hash that it has.
    ///
    /// # Errors
    /// When it makes no sense: what is wrong, as a sentence.
    pub fn check(&self) -> Result<TokenHash, String> {
        let is_legal = |c: char| c.is_ascii_alphanumeric() || "._-@/".contains(c);
        if self.name.is_empty() || self.name.len() > MAX_NAME_BYTES || !self.name.chars().all(is_legal) {
            return Err(format!(
                "a token's name has 1 to {MAX_NAME_BYTES} of the characters a-z A-Z 0-9 . _ - @ /"
            ));
        }
        if self.scopes.is_empty() {
            return Err(format!("the token '{}' has no scope, so it is good for nothing", self.name));
        }
        if let Some(prefix) = &self.prefix {
            if prefix.is_empty() || prefix.len() > MAX_PREFIX_BYTES {
                return Err(format!(
                    "the prefix of the token '{}' has 1 to {MAX_PREFIX_BYTES} bytes; leave it out for all keys",
                    self.name
                ));
            }
            if self.scopes.iter().any(|scope| matches!(scope, Scope::Admin | Scope::Member)) {
                return Err(format!(
                    "the token '{}' has a prefix and the scope admin or member, which is of all keys",
                    self.name
                ));
            }
        }
        if !is_lower_hex(&self.sha256, 2 * size_of::<TokenHash>()) {
            return Err(format!(
                "the sha256 of the token '{}' is not 64 hexadecimal digits in lower case",
                self.name
            ));
        }
        let mut hash = TokenHash::default();
        for (byte, digits) in hash.iter_mut().zip(self.sha256.as_bytes().chunks_exact(2)) {
            let digits = std::str::from_utf8(digits).unwrap_or_default();
            *byte = u8::from_str_radix(digits, 16).map_err(|error| error.to_string())?;
        }
        Ok(hash)
    }
}

fn is_lower_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Result<TokenHash, String> {
        let line: TokenLine = serde_json::from_str(text).map_err(|error| error.to_string())?;
        line.check()
    }

    #[test]
    fn a_line_is_of_its_token() {
        let token = Token::of([0xab; 32]);
        let made = TokenLine::of(&token, "web".to_owned(), vec![Scope::Read], Some("web/".to_owned()));
        let text = serde_json::to_string(&made).expect("JSON");
        assert_eq!(line(&text), Ok(token.hash()));
        assert!(!text.contains("abab"), "{text}");
        assert_eq!(token.secret().parse(), Ok(token.clone()));
        assert_eq!(Token::of_authorization(token.authorization().as_bytes()), Some(token.clone()));
        assert_eq!(format!("{token:?}"), "Token(…)");
    }

    #[test]
    fn what_is_no_token_is_none() {
        let token = Token::of([1; 32]).secret().to_owned();
        for value in [
            String::new(),
            token.clone(),
            format!("Basic {token}"),
            format!("Bearer {token}0"),
            format!("Bearer {}", token.to_uppercase()),
            "Bearer secret".to_owned(),
        ] {
            assert_eq!(Token::of_authorization(value.as_bytes()), None, "{value}");
        }
        let error = "s3cret".parse::<Token>().expect_err("no token");
        assert!(!error.contains("s3cret"), "{error}");
    }

    #[test]
    fn a_wrong_line_says_what_is_wrong() {
        let hash = "0".repeat(64);
        for (text, words) in [
            (format!(r#"{{"name":"","sha256":"{hash}","scopes":["read"]}}"#), "name"),
            (format!(r#"{{"name":"a b","sha256":"{hash}","scopes":["read"]}}"#), "name"),
            (format!(r#"{{"name":"a","sha256":"{hash}","scopes":[]}}"#), "no scope"),
            (format!(r#"{{"name":"a","sha256":"{hash}","scopes":["root"]}}"#), "root"),
            (format!(r#"{{"name":"a","sha256":"{hash}","scopes":["read"],"prefix":""}}"#), "prefix"),
            (format!(r#"{{"name":"a","sha256":"{hash}","scopes":["admin"],"prefix":"p"}}"#), "all keys"),
            (r#"{"name":"a","sha256":"00","scopes":["read"]}"#.to_owned(), "64 hexadecimal digits"),
            (format!(r#"{{"name":"a","token":"x","sha256":"{hash}","scopes":["read"]}}"#), "token"),
        ] {
            let error = line(&text).expect_err(&text);
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
