//! Entity tags. That of a key's record is its position: `"P:O"`.

use bitacora_protocol::Position;
use warp::http::HeaderMap;
use warp::http::header::IF_NONE_MATCH;

use super::error::HttpError;

/// The tags of an `If-None-Match`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tags {
    /// `*`: that of any record.
    Any,
    /// Without their quotes.
    Of(Vec<String>),
}

impl Tags {
    /// Whether a record's tag is among them. A weak one is as good as a strong one: so HTTP has it for reads.
    #[must_use]
    pub fn name(&self, position: Position) -> bool {
        self.has(&position.to_string())
    }

    /// Whether a tag, without its quotes, is among them.
    #[must_use]
    pub fn has(&self, tag: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Of(tags) => tags.iter().any(|known| known == tag),
        }
    }
}

/// The tag of a record, as the header `ETag` has it.
#[must_use]
pub fn of(position: Position) -> String {
    format!("\"{position}\"")
}

/// The tags that the reader of a request has already; `None` without the header, which may be given more than once.
///
/// # Errors
/// When it is no list of tags.
pub fn if_none_match(headers: &HeaderMap) -> Result<Option<Tags>, HttpError> {
    let mut tags: Option<Vec<String>> = None;
    let mut any = false;
    for value in headers.get_all(IF_NONE_MATCH) {
        let tags = tags.get_or_insert_default();
        // Tags of others may have any bytes above ASCII; they are none of ours.
        let text = String::from_utf8_lossy(value.as_bytes());
        if text.trim() == "*" {
            any = true;
        } else {
            parse_list(&text, tags).map_err(|()| wrong(&text))?;
        }
    }
    match tags {
        None => Ok(None),
        Some(tags) if any && tags.is_empty() => Ok(Some(Tags::Any)),
        Some(tags) if any || tags.is_empty() => Err(wrong(if any { "* among other tags" } else { "" })),
        Some(tags) => Ok(Some(Tags::Of(tags))),
    }
}

fn wrong(text: &str) -> HttpError {
    let shown: String = text.chars().take(40).collect();
    HttpError::BadRequest(format!(
        "If-None-Match: '{shown}' is no list of ETags; they stand in double quotes, such as \"0:12\", with commas between, or there is a * alone"
    ))
}

fn parse_list(text: &str, tags: &mut Vec<String>) -> Result<(), ()> {
    let mut rest = text.trim_matches([' ', '\t']);
    while !rest.is_empty() {
        // A list may have empty elements.
        if let Some(after) = rest.strip_prefix(',') {
            rest = after.trim_start_matches([' ', '\t']);
            continue;
        }
        let opaque = rest.strip_prefix("W/").unwrap_or(rest).strip_prefix('"').ok_or(())?;
        let (tag, after) = opaque.split_once('"').ok_or(())?;
        if tag.chars().any(|c| c.is_ascii_control() || c == ' ') {
            return Err(());
        }
        tags.push(tag.to_owned());
        rest = after.trim_start_matches([' ', '\t']);
        if !rest.is_empty() && !rest.starts_with(',') {
            return Err(());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use warp::http::HeaderValue;

    use super::*;

    fn tags(values: &[&str]) -> Result<Option<Tags>, String> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(IF_NONE_MATCH, HeaderValue::from_bytes(value.as_bytes()).expect("a header"));
        }
        if_none_match(&headers).map_err(|error| error.to_string())
    }

    fn of(tags: &[&str]) -> Tags {
        Tags::Of(tags.iter().map(|tag| (*tag).to_owned()).collect())
    }

    proptest! {
        #[test]
        fn any_header_is_a_list_of_tags_or_refused(text in "([\"*,W/ 0-9:]|[!-~]){0,20}") {
            match tags(&[&text]) {
                Ok(Some(Tags::Of(tags))) => {
                    let quoted = tags.iter().map(|tag| ["\"", tag, "\""].concat());
                    prop_assert!(quoted.into_iter().all(|tag| text.contains(&tag)));
                }
                Ok(found) => prop_assert_eq!((found, text.trim()), (Some(Tags::Any), "*")),
                Err(error) => prop_assert!(error.len() < 300, "{}", error),
            }
        }
    }

    #[test]
    fn lists_weak_tags_and_several_headers_are_read() {
        assert_eq!(tags(&[]), Ok(None));
        assert_eq!(tags(&["\"0:1\""]), Ok(Some(of(&["0:1"]))));
        assert_eq!(tags(&["W/\"0:1\" ,, \"a,b\",\"\""]), Ok(Some(of(&["0:1", "a,b", ""]))));
        assert_eq!(tags(&["\"0:1\"", "\"0:2\""]), Ok(Some(of(&["0:1", "0:2"]))));
        assert_eq!(tags(&["\"é\""]), Ok(Some(of(&["é"]))));
        assert_eq!(tags(&[" * "]), Ok(Some(Tags::Any)));
        let position = Position { partition: 0, offset: 1 };
        let names = |value| tags(&[value]).expect("a list").expect("given").name(position);
        assert!(names("W/\"0:1\"") && names("\"0:2\", \"0:1\"") && names("*"));
        assert!(!names("\"0:2\"") && !names("\"W/0:1\"") && !names("\"00:1\""));
    }

    #[test]
    fn anything_else_is_refused() {
        for values in [
            &[""][..],
            &[","],
            &["0:1"],
            &["\"0:1"],
            &["\"0:1\"x"],
            &["\"0:1\" \"0:2\""],
            &["w/\"0:1\""],
            &["W/ \"0:1\""],
            &["W/0:1"],
            &["\"0:1\", *"],
            &["*", "\"0:1\""],
            &["\"0: 1\""],
        ] {
            assert!(tags(values).is_err(), "{values:?} was accepted");
        }
    }
}
