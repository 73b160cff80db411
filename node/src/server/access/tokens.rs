//! The tokens that a node knows, by their hashes, from a file that is read again when it changes.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bitacora_protocol::token::{TOKEN_START, TokenHash, TokenLine};
use subtle::ConstantTimeEq as _;

use crate::server::files;
use crate::service::access::{KnownToken, LineLimit};

/// Lines of a file. All are compared with a token that comes.
const MAX_TOKENS: usize = 1000;

/// Tokens by their hashes.
#[derive(Debug, Default)]
pub struct Tokens(Vec<(TokenHash, Arc<KnownToken>)>);

impl Tokens {
    /// Reads the text of a file. A token whose line is in `before` is the same one.
    ///
    /// # Errors
    /// What is wrong in which line.
    pub fn parse(text: &str, before: &Self) -> Result<Self, String> {
        let (mut tokens, mut lines) = (Vec::<(TokenHash, Arc<KnownToken>)>::new(), Vec::<usize>::new());
        for (number, line) in (1..).zip(text.lines().map(str::trim)) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (hash, token) = read_line(line).map_err(|error| format!("line {number}: {error}"))?;
            if let Some(at) = tokens.iter().position(|(known, _)| *known == hash) {
                return Err(format!("line {number}: it has the same token as line {}", lines[at]));
            }
            if let Some(at) = tokens.iter().position(|(_, known)| known.name == token.name) {
                let (name, line) = (without_tokens(&token.name), lines[at]);
                return Err(format!(
                    "line {number}: the name '{name}' is that of line {line}, too; each token has a name of its own, also a new \
                     one that takes the place of another"
                ));
            }
            lines.push(number);
            let same = before.0.iter().find(|(known, other)| *known == hash && is_same(other, &token));
            tokens.push((hash, same.map_or_else(|| Arc::new(token), |(_, same)| Arc::clone(same))));
            if tokens.len() > MAX_TOKENS {
                return Err(format!("line {number}: there are more than {MAX_TOKENS} tokens"));
            }
        }
        Ok(Self(tokens))
    }

    /// The token of this hash. Every hash is compared, and in the same time wherever it differs, so that how long it takes says
    /// nothing of those that are there.
    #[must_use]
    pub fn find(&self, hash: &TokenHash) -> Option<&Arc<KnownToken>> {
        let mut found = None;
        for (known, token) in &self.0 {
            if bool::from(known.ct_eq(hash)) {
                found = Some(token);
            }
        }
        found
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Marks those that are not in `later` as withdrawn; returns whether there are any.
    pub fn withdraw_all_but(&self, later: &Self) -> bool {
        let mut withdrawn = false;
        for (_, token) in &self.0 {
            if !later.0.iter().any(|(_, other)| Arc::ptr_eq(token, other)) {
                token.withdrawn.store(true, Ordering::Release);
                withdrawn = true;
            }
        }
        withdrawn
    }
}

fn read_line(line: &str) -> Result<(TokenHash, KnownToken), String> {
    let line: TokenLine = serde_json::from_str(line).map_err(|error| {
        let text = error.to_string();
        let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what);
        let (what, column) = (without_tokens(what), error.column());
        format!("it is no line of a token, as 'bitacora token' prints it: {what} (column {column})")
    })?;
    let hash = line.check().map_err(|error| without_tokens(&error))?;
    let TokenLine { name, scopes, prefix, .. } = line;
    let (scopes, prefix) = (scopes.into_iter().collect(), prefix.unwrap_or_default());
    Ok((hash, KnownToken { name, scopes, prefix, withdrawn: false.into(), lines: LineLimit::default() }))
}

/// A text without the tokens in it: one may have been put where its name or its hash belongs.
fn without_tokens(text: &str) -> String {
    let mut parts = text.split(TOKEN_START);
    let mut without = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        without.push_str(TOKEN_START);
        without.push('…');
        without.push_str(part.trim_start_matches(|c: char| c.is_ascii_alphanumeric()));
    }
    without
}

fn is_same(known: &KnownToken, other: &KnownToken) -> bool {
    (&known.name, known.scopes, &known.prefix) == (&other.name, other.scopes, &other.prefix)
}

/// The text of the file.
///
/// # Errors
/// When it can't be read, or is too long.
pub fn read_file(path: &Path) -> Result<String, String> {
    String::from_utf8(files::read_file(path)?).map_err(|error| format!("it can't be read: {error}"))
}

#[cfg(test)]
mod tests {
    use bitacora_protocol::token::{Scope, Token};

    use super::*;

    fn line(number: u8, scopes: &[Scope]) -> String {
        let line = TokenLine::of(&Token::of([number; 32]), format!("t{number}"), scopes.to_vec(), None);
        serde_json::to_string(&line).expect("JSON") + "\n"
    }

    fn find(tokens: &Tokens, number: u8) -> Option<&Arc<KnownToken>> {
        tokens.find(&Token::of([number; 32]).hash())
    }

    #[test]
    fn tokens_are_found_by_their_hashes() {
        let text = format!("# of the web\n{}\n{}", line(1, &[Scope::Read]), line(2, &[Scope::Write]));
        let tokens = Tokens::parse(&text, &Tokens::default()).expect("lines");
        assert_eq!(tokens.len(), 2);
        assert_eq!(find(&tokens, 1).expect("known").name, "t1");
        assert!(find(&tokens, 2).expect("known").scopes.has(Scope::Write));
        assert!(find(&tokens, 3).is_none());
    }

    #[test]
    fn a_token_stays_the_same_one_until_its_line_changes() {
        let of = |text: &str, before: &Tokens| Tokens::parse(text, before).expect("lines");
        let first = of(&(line(1, &[Scope::Read]) + &line(2, &[Scope::Read])), &Tokens::default());
        let (one, two) = (find(&first, 1).expect("one").clone(), find(&first, 2).expect("two").clone());
        let second = of(&(line(2, &[Scope::Read, Scope::Write]) + &line(1, &[Scope::Read])), &first);
        first.withdraw_all_but(&second);
        assert!(Arc::ptr_eq(&one, find(&second, 1).expect("one")) && !one.is_withdrawn());
        assert!(two.is_withdrawn() && !find(&second, 2).expect("two").is_withdrawn());
        second.withdraw_all_but(&Tokens::default());
        assert!(one.is_withdrawn());
    }

    #[test]
    fn a_token_that_stands_in_the_wrong_place_is_not_told() {
        let token = Token::of([7; 32]).authorization().replace("Bearer ", "");
        let named = format!(r#"{{"name":"{token}","scopes":["read"],"sha256":"0"}}"#);
        let scoped = format!(r#"{{"name":"shop","scopes":["{token}"],"sha256":"0"}}"#);
        for text in [&named, &scoped, &token] {
            let error = Tokens::parse(text, &Tokens::default()).expect_err(text);
            assert!(!error.contains(&token[TOKEN_START.len()..]), "{error}");
        }
    }

    #[test]
    fn a_wrong_file_says_where() {
        let twice = line(1, &[Scope::Read]) + &line(1, &[Scope::Write]);
        let renamed = line(1, &[Scope::Read]) + "#\n" + &line(2, &[Scope::Read]).replace("t2", "t1");
        for (text, words) in [
            ("\nx", "line 2: it is no line of a token"),
            (twice.as_str(), "line 2: it has the same token as line 1"),
            (renamed.as_str(), "line 3: the name 't1' is that of line 1, too"),
        ] {
            let error = Tokens::parse(text, &Tokens::default()).expect_err(text);
            assert!(error.starts_with(words), "{error}");
        }
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), vec![b'#'; files::MAX_FILE_BYTES as usize + 1]).expect("written");
        assert!(read_file(file.path()).expect_err("long").contains("512 KiB"));
    }
}
