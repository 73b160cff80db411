//! Query strings and form bodies, `application/x-www-form-urlencoded`, read strictly: what is broken is refused, where a
//! lenient decoder would store another key than the one that was meant.

use std::borrow::Cow;
use std::time::Duration;

use bitacora_protocol::units;
use smallvec::SmallVec;

use super::error::HttpError;
use crate::service::writes::MAX_TTL;

/// No call has as many; each is compared with those before it.
const MAX_PARAMS: usize = 32;
/// What some editors and shells write in front of a text.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// Names and values, in order: parts of the text where that needs no decoding. A read has two at most, as a rule.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Params<'a>(SmallVec<[(Cow<'a, str>, Cow<'a, str>); 2]>);

impl<'a> Params<'a> {
    /// `what` names the text in errors: `the query`, `the form`.
    ///
    /// # Errors
    /// Broken percent-encoding, text that is not UTF-8, or a name twice; the text is for the client.
    pub fn parse(text: &'a str, what: &str) -> Result<Self, String> {
        let mut params = SmallVec::<[(Cow<'a, str>, Cow<'a, str>); 2]>::new();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decode(name, what)?;
            if params.len() == MAX_PARAMS {
                return Err(format!("{what} has more than {MAX_PARAMS} parameters"));
            }
            if params.iter().any(|(known, _)| *known == name) {
                return Err(format!("{what} has '{name}' twice"));
            }
            params.push((name, decode(value, what)?));
        }
        Ok(Self(params))
    }

    /// # Errors
    /// When there is a name that is not among `known`: a misspelt parameter must not be ignored.
    pub fn only(self, known: &[&str], what: &str) -> Result<Self, String> {
        match self.0.iter().find(|(name, _)| !known.contains(&&**name)) {
            // Nobody sees it in the sentence below.
            Some((name, _)) if name.starts_with(BYTE_ORDER_MARK) => {
                Err(format!("{what} begins with a byte order mark (U+FEFF); remove it"))
            }
            Some((name, _)) if known.is_empty() => {
                Err(format!("{what} has a parameter '{name}'; there is none here"))
            }
            Some((name, _)) => {
                Err(format!("{what} has an unknown parameter '{name}'; known here: {}", known.join(", ")))
            }
            None => Ok(self),
        }
    }

    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| &**value)
    }

    pub fn take(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(known, _)| known == name)?;
        Some(self.0.swap_remove(at).1.into_owned())
    }

    /// As parts of nothing else.
    #[must_use]
    pub fn into_owned(self) -> Params<'static> {
        let own = |text: Cow<'_, str>| Cow::Owned(text.into_owned());
        Params(self.0.into_iter().map(|(name, value)| (own(name), own(value))).collect())
    }
}

/// The parameters of a query, all of which must be among `known`.
///
/// # Errors
/// As [`Params::parse`] and [`Params::only`].
pub fn query_params<'a>(query: &'a str, known: &[&str]) -> Result<Params<'a>, HttpError> {
    let params = Params::parse(query, "the query").and_then(|params| params.only(known, "the query"));
    params.map_err(HttpError::BadRequest)
}

/// A time to live, of at most [`MAX_TTL`].
///
/// # Errors
/// What is wrong, as a sentence for the client.
pub fn parse_ttl(text: &str) -> Result<Duration, String> {
    let ttl = units::positive_duration(text)
        .map_err(|error| format!("ttl: {error}; leave it out to keep the key for ever"))?;
    if ttl > MAX_TTL {
        return Err(format!(
            "ttl: {text} is more than a hundred years; leave it out to keep the key for ever"
        ));
    }
    Ok(ttl)
}

/// Whether a text has one of these fields, `name=…`, also misspelt in case, encoded, or behind a byte order mark.
#[must_use]
pub fn has_field(text: &str, names: &[&str]) -> bool {
    let longest = names.iter().map(|name| 3 * name.len()).max().unwrap_or_default();
    text.split('&').filter_map(|pair| Some(pair.split_once('=')?.0)).any(|name| {
        let name = (name.len() <= longest).then(|| decode(name, ""));
        matches!(name, Some(Ok(name)) if names.iter().any(|known| known.eq_ignore_ascii_case(bare(&name))))
    })
}

/// A name without what is put around it by mistake.
fn bare(name: &str) -> &str {
    name.trim_matches(|c: char| c.is_whitespace() || c == BYTE_ORDER_MARK)
}

fn decode<'a>(text: &'a str, what: &str) -> Result<Cow<'a, str>, String> {
    if memchr::memchr2(b'%', b'+', text.as_bytes()).is_none() {
        return Ok(Cow::Borrowed(text));
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let hex = |digit: Option<u8>| digit.and_then(|digit| char::from(digit).to_digit(16));
                let (high, low) = hex(rest.next()).zip(hex(rest.next())).ok_or_else(|| {
                    format!("{what} has broken percent-encoding; a '%' is followed by two hex digits and stands for itself as %25")
                })?;
                (high * 16 + low) as u8
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes)
        .map(Cow::Owned)
        .map_err(|_| format!("{what} has percent-encoded bytes that are not UTF-8"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encode<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
        let percent = |text: &str| text.bytes().map(|byte| format!("%{byte:02x}")).collect::<String>();
        let pairs = pairs.into_iter().map(|(name, value)| format!("{}={}", percent(name), percent(value)));
        pairs.collect::<Vec<_>>().join("&")
    }

    proptest! {
        #[test]
        fn any_names_and_values_survive_their_encoding(
            pairs in prop::collection::btree_map(".{1,5}", ".{0,20}", 0..5),
        ) {
            let text = encode(pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())));
            let pairs = pairs.into_iter().map(|(name, value)| (Cow::Owned(name), Cow::Owned(value)));
            prop_assert_eq!(Params::parse(&text, "the query"), Ok(Params(pairs.collect())));
        }

        #[test]
        fn any_text_is_read_whole_or_refused_with_a_sentence(text in "([a-c%+&=0-9é]|\\PC){0,30}") {
            match Params::parse(&text, "the query") {
                Ok(params) => {
                    let again = encode(params.0.iter().map(|(name, value)| (&**name, &**value)));
                    prop_assert_eq!(Params::parse(&again, "the query").map(Params::into_owned), Ok(params.into_owned()));
                }
                Err(error) => prop_assert!(error.starts_with("the query has "), "{}", error),
            }
        }
    }

    fn value(text: &str) -> Result<String, String> {
        Params::parse(&format!("v={text}"), "the query")
            .map(|mut params| params.take("v").unwrap_or_default())
    }

    #[test]
    fn decoded_as_browsers_and_curl_encode() {
        for (text, expected) in
            [("a+b", "a b"), ("%26%3D%25%2B%2f", "&=%+/"), ("%C3%A9", "é"), ("", ""), ("a=b", "a=b")]
        {
            assert_eq!(value(text).as_deref(), Ok(expected));
        }
    }

    #[test]
    fn a_field_is_found_by_its_name_and_equals_sign() {
        let has = |text: &str| has_field(text, &["key", "value"]);
        for text in ["key=", "a&value=1", "VALUE=1", "%6bey=x", "+key=1", "x=1&&key=2", "\u{feff}value=1"] {
            assert!(has(text), "{text}");
        }
        for text in ["", "key", "value%3D1", "keys=1", "a=key", "{\"key\":\"a=b\"}", "%zz=1", "50% off"] {
            assert!(!has(text), "{text}");
        }
    }

    #[test]
    fn what_is_broken_is_refused() {
        for text in ["%", "%2", "%zz", "a%2", "%ff", "%C3", "%+1", "%é"] {
            assert!(value(text).is_err(), "{text:?} was accepted");
        }
        let many = |count: usize| (0..count).map(|i| format!("{i}=&")).collect::<String>();
        assert!(Params::parse(&many(MAX_PARAMS), "the query").is_ok());
        assert!(
            Params::parse(&many(MAX_PARAMS + 1), "the query").expect_err("many").contains("more than 32")
        );
        assert!(Params::parse("a=1&a=2", "the query").expect_err("twice").contains("'a' twice"));
        let unknown =
            Params::parse("kye=1", "the query").and_then(|params| params.only(&["key"], "the query"));
        assert!(unknown.expect_err("unknown").contains("'kye'"));
        let marked =
            Params::parse("\u{feff}key=1", "the form").and_then(|params| params.only(&["key"], "the form"));
        assert!(marked.expect_err("unknown").contains("U+FEFF"));
    }
}
