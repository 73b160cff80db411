//! A line of a batch: an operation as JSON. It is read by hand, so that what is wrong with it is a sentence for whoever wrote the
//! line, and so that a wrong line costs no more memory than it has bytes.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// What an operation looks like, for messages.
const EXAMPLE: &str = r#"{"op":"get","key":"k"}"#;
/// Characters of a wrong name or number that a message repeats.
const SHOWN_CHARACTERS: usize = 40;

/// A line of a batch: an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub enum BatchLine<'a> {
    /// Reads a key.
    Get {
        /// The key.
        key: Cow<'a, str>,
        /// What else is asked of it.
        #[serde(flatten)]
        read: LineReadOptions<'a>,
    },
    /// Sets a key.
    Set {
        /// The key.
        key: Cow<'a, str>,
        /// Its value.
        value: Cow<'a, str>,
        /// How long it lives, as [`duration`](crate::units::duration) reads it; for ever without it.
        #[serde(skip_serializing_if = "Option::is_none")]
        ttl: Option<Cow<'a, str>>,
        /// What else is asked of it.
        #[serde(flatten)]
        write: LineWriteOptions<'a>,
    },
    /// Deletes a key.
    Delete {
        /// The key.
        key: Cow<'a, str>,
        /// What else is asked of it.
        #[serde(flatten)]
        write: LineWriteOptions<'a>,
    },
}

/// What a line may ask of a read beyond the plain one, as text; nothing by default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LineReadOptions<'a> {
    /// A [`Consistency`](crate::Consistency).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consistency: Option<Cow<'a, str>>,
    /// A [`SessionPosition`](crate::SessionPosition).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub position: Option<Cow<'a, str>>,
    /// How long it may wait, as [`duration_or_ms`](crate::units::duration_or_ms) reads it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Cow<'a, str>>,
    /// How old its data may be, as [`duration`](crate::units::duration) reads it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_staleness: Option<Cow<'a, str>>,
}

/// What a line may ask of a write beyond the plain one; nothing by default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LineWriteOptions<'a> {
    /// The version that the key must have, `P:O`, or `*` for any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub if_match: Option<Cow<'a, str>>,
    /// Whether there must be no such key.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub if_absent: bool,
    /// The record's uuid, by which a repeated line is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Cow<'a, str>>,
    /// A [`Visible`](crate::Visible).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub visible: Option<Cow<'a, str>>,
    /// How long it may wait, as [`duration_or_ms`](crate::units::duration_or_ms) reads it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Cow<'a, str>>,
}

impl<'de: 'a, 'a> Deserialize<'de> for BatchLine<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Found::deserialize(deserializer)? {
            Found::Operation(line) => Ok(line),
            found => Err(D::Error::custom(format_args!(
                "it is {}; an operation is a JSON object such as {EXAMPLE}",
                found.described()
            ))),
        }
    }
}

/// Any JSON; an object is read as an operation.
enum Found<'a> {
    Text(Cow<'a, str>),
    Number(String),
    Null,
    Flag(bool),
    Other(&'static str),
    Operation(BatchLine<'a>),
}

impl Found<'_> {
    fn described(&self) -> String {
        match self {
            Self::Text(_) => "a string".to_owned(),
            Self::Number(number) => format!("the number {}", cut(number)),
            Self::Null => "null".to_owned(),
            Self::Flag(flag) => flag.to_string(),
            Self::Other(what) => (*what).to_owned(),
            Self::Operation(_) => "an object".to_owned(),
        }
    }
}

impl<'de> Deserialize<'de> for Found<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FoundVisitor { is_line: true })
    }
}

/// The value of a field; an object is passed over.
struct FieldValue<'a>(Found<'a>);

impl<'de> Deserialize<'de> for FieldValue<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FoundVisitor { is_line: false }).map(Self)
    }
}

/// The name of a field.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

struct FoundVisitor {
    is_line: bool,
}

impl<'de> Visitor<'de> for FoundVisitor {
    type Value = Found<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Found::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Found::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
        Ok(Found::Number(number.to_string()))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Self::Value, E> {
        Ok(Found::Number(number.to_string()))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Self::Value, E> {
        Ok(Found::Number(number.to_string()))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Found::Flag(value))
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(Found::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Found::Other("a list"))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Value, A::Error> {
        if self.is_line {
            return Fields::read(object)?.operation().map(Found::Operation);
        }
        while object.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Found::Other("an object"))
    }
}

#[derive(Default)]
struct Fields<'a> {
    op: Option<Cow<'a, str>>,
    key: Option<Cow<'a, str>>,
    value: Option<Cow<'a, str>>,
    ttl: Option<Cow<'a, str>>,
    if_match: Option<Cow<'a, str>>,
    if_absent: Option<bool>,
    uuid: Option<Cow<'a, str>>,
    visible: Option<Cow<'a, str>>,
    consistency: Option<Cow<'a, str>>,
    position: Option<Cow<'a, str>>,
    max_staleness: Option<Cow<'a, str>>,
    timeout: Option<Cow<'a, str>>,
}

/// Where the value of a field goes.
enum Slot<'f, 'a> {
    Text(&'f mut Option<Cow<'a, str>>),
    Flag(&'f mut Option<bool>),
}

/// Fields for which null is as good as nothing.
const OPTIONAL: [&str; 9] =
    ["ttl", "ifMatch", "ifAbsent", "uuid", "visible", "consistency", "position", "maxStaleness", "timeout"];

impl<'a> Fields<'a> {
    fn read<A: MapAccess<'a>>(mut object: A) -> Result<Self, A::Error> {
        let mut fields = Self::default();
        while let Some(Name(name)) = object.next_key()? {
            let Some(slot) = fields.slot(&name) else {
                let other = cut(&name);
                return Err(A::Error::custom(format_args!(
                    "there is no field '{other}'; each has op, key, timeout; a set value, ttl; both writes ifMatch, ifAbsent, uuid, \
                     visible; a get consistency, position, maxStaleness"
                )));
            };
            let twice = || A::Error::custom(format_args!("the field '{name}' is given twice"));
            match slot {
                Slot::Text(Some(_)) | Slot::Flag(Some(_)) => return Err(twice()),
                _ => {}
            }
            let FieldValue(found) = object.next_value()?;
            match (slot, found) {
                (Slot::Text(slot), Found::Text(text)) => *slot = Some(text),
                (Slot::Flag(slot), Found::Flag(flag)) => *slot = Some(flag),
                // As if it were left out.
                (_, Found::Null) if OPTIONAL.contains(&&*name) => {}
                (Slot::Text(_), found) => return Err(A::Error::custom(not_a_string(&name, &found))),
                (Slot::Flag(_), found) => {
                    let what = found.described();
                    return Err(A::Error::custom(format_args!(
                        "the field '{name}' is {what}; it is true or false"
                    )));
                }
            }
        }
        Ok(fields)
    }

    fn slot(&mut self, name: &str) -> Option<Slot<'_, 'a>> {
        Some(match name {
            "op" => Slot::Text(&mut self.op),
            "key" => Slot::Text(&mut self.key),
            "value" => Slot::Text(&mut self.value),
            "ttl" => Slot::Text(&mut self.ttl),
            "ifMatch" => Slot::Text(&mut self.if_match),
            "ifAbsent" => Slot::Flag(&mut self.if_absent),
            "uuid" => Slot::Text(&mut self.uuid),
            "visible" => Slot::Text(&mut self.visible),
            "consistency" => Slot::Text(&mut self.consistency),
            "position" => Slot::Text(&mut self.position),
            "maxStaleness" => Slot::Text(&mut self.max_staleness),
            "timeout" => Slot::Text(&mut self.timeout),
            _ => return None,
        })
    }

    /// A field that only a write, or only a read, may have.
    fn extra(&self, op: &str) -> Option<(&'static str, &'static str)> {
        let of_writes = [
            ("ifMatch", self.if_match.is_some()),
            ("ifAbsent", self.if_absent.is_some()),
            ("uuid", self.uuid.is_some()),
            ("visible", self.visible.is_some()),
        ];
        let of_reads = [
            ("consistency", self.consistency.is_some()),
            ("position", self.position.is_some()),
            ("maxStaleness", self.max_staleness.is_some()),
        ];
        let of_sets = [("value", self.value.is_some()), ("ttl", self.ttl.is_some())];
        let given =
            |fields: &[(&'static str, bool)]| fields.iter().find(|field| field.1).map(|field| field.0);
        let of_others = |fields: &[(&'static str, bool)], whose| given(fields).map(|name| (name, whose));
        match op {
            "get" => {
                of_others(&of_sets, "a set has").or_else(|| of_others(&of_writes, "a write may have it"))
            }
            "delete" => {
                of_others(&of_sets, "a set has").or_else(|| of_others(&of_reads, "a get may have it"))
            }
            _ => of_others(&of_reads, "a get may have it"),
        }
    }

    fn operation<E: Error>(self) -> Result<BatchLine<'a>, E> {
        let missing = |what: &str| E::custom(format_args!("the field {what}"));
        let op = self.op.as_deref().ok_or_else(|| missing("'op' is missing; it is get, set or delete"))?;
        if !matches!(op, "get" | "set" | "delete") {
            let op = cut(op);
            return Err(E::custom(format_args!("'{op}' is no operation; op is get, set or delete")));
        }
        if self.key.is_none() {
            return Err(missing("'key' is missing"));
        }
        if op == "set" && self.value.is_none() {
            return Err(missing("'value' is missing; a set needs one, \"\" for an empty value"));
        }
        if let Some((extra, whose)) = self.extra(op) {
            return Err(E::custom(format_args!("a {op} has no field '{extra}'; {whose}")));
        }
        let Self { op, key, value, ttl, if_match, if_absent, uuid, visible, .. } = self;
        let Self { consistency, position, max_staleness, timeout, .. } = self;
        let (op, key) = (op.unwrap_or_default(), key.unwrap_or_default());
        if &*op == "get" {
            return Ok(BatchLine::Get {
                key,
                read: LineReadOptions { consistency, position, timeout, max_staleness },
            });
        }
        let write = LineWriteOptions { if_match, if_absent: if_absent == Some(true), uuid, visible, timeout };
        Ok(match value {
            Some(value) => BatchLine::Set { key, value, ttl, write },
            None => BatchLine::Delete { key, write },
        })
    }
}

fn not_a_string(name: &str, found: &Found<'_>) -> String {
    let what = found.described();
    match found {
        Found::Number(number) if name == "ttl" => {
            let whole = number.bytes().all(|byte| byte.is_ascii_digit()) && number != "0";
            let example = if whole { number } else { "30" };
            format!(
                "the field 'ttl' is {what}; a time is a string with its unit, such as \"{example}s\" or \"{example}ms\", \
                 and without the field the key lives for ever"
            )
        }
        Found::Number(number) => {
            format!("the field '{name}' is {what}, not a string; write \"{}\"", cut(number))
        }
        _ => format!("the field '{name}' is {what}, not a string"),
    }
}

fn cut(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(SHOWN_CHARACTERS) {
        Some((at, _)) => Cow::Owned(format!("{}…", &text[..at])),
        None => Cow::Borrowed(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<BatchLine<'_>, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn operations_are_read_and_borrow_what_they_can() {
        let set = read(r#"{"ttl":"5s","value":"v\n","key":"k","op":"set"}"#).expect("a set");
        assert_eq!(
            set,
            BatchLine::Set {
                key: "k".into(),
                value: "v\n".into(),
                ttl: Some("5s".into()),
                write: LineWriteOptions::default()
            }
        );
        let BatchLine::Set { key, value, .. } = set else { panic!("a set") };
        assert!(matches!((key, value), (Cow::Borrowed(_), Cow::Owned(_))));
        let write = LineWriteOptions::default();
        let set = BatchLine::Set { key: "k".into(), value: "".into(), ttl: None, write: write.clone() };
        assert_eq!(read(r#"{"op":"set","key":"k","value":"","ttl":null}"#), Ok(set));
        assert_eq!(
            read(r#"{"op":"get","key":"k"}"#),
            Ok(BatchLine::Get { key: "k".into(), read: LineReadOptions::default() })
        );
        assert_eq!(read(r#"{"key":"k","op":"delete"}"#), Ok(BatchLine::Delete { key: "k".into(), write }));
    }

    #[test]
    fn conditions_and_uuids_of_writes_are_read() {
        fn options(line: &str) -> LineWriteOptions<'_> {
            match read(line).expect(line) {
                BatchLine::Set { write, .. } | BatchLine::Delete { write, .. } => write,
                BatchLine::Get { .. } => panic!("a write: {line}"),
            }
        }
        let all = options(r#"{"op":"delete","key":"k","ifMatch":"0:7","uuid":"u","ifAbsent":false}"#);
        let expected =
            LineWriteOptions { if_match: Some("0:7".into()), uuid: Some("u".into()), ..Default::default() };
        assert_eq!(all, expected);
        assert!(options(r#"{"op":"set","key":"k","value":"","ifAbsent":true}"#).if_absent);
        let none = options(r#"{"op":"set","key":"k","value":"","ifAbsent":null,"ifMatch":null,"uuid":null}"#);
        assert_eq!(none, LineWriteOptions::default());
    }

    #[test]
    fn what_is_wrong_is_a_sentence_for_people() {
        for (line, says) in [
            (r#"{"op":"set","key":"k","value":"v","ttl":60}"#, "unit, such as \"60s\" or \"60ms\""),
            (r#"{"op":"set","key":"k","value":"v","ttl":0}"#, "'ttl' is the number 0"),
            (r#"{"op":"set","key":"k","value":"v","ttl":-1.5}"#, "such as \"30s\""),
            (r#"{"op":"set","key":"k","value":"v","ttl":[1,{}]}"#, "'ttl' is a list, not a string"),
            (r#"{"op":"set","key":"k","value":1}"#, "'value' is the number 1, not a string; write \"1\""),
            (r#"{"op":"set","key":"k","value":{"a":[]}}"#, "'value' is an object, not a string"),
            (r#"{"op":"set","key":null,"value":""}"#, "'key' is null, not a string"),
            (r#"{"op":"set","key":"k"}"#, "'value' is missing"),
            (r#"{"op":"get"}"#, "'key' is missing"),
            (r#"{"key":"k"}"#, "'op' is missing; it is get, set or delete"),
            (r#"{"op":"fly","key":"k"}"#, "'fly' is no operation; op is get, set or delete"),
            (r#"{"op":true,"key":"k"}"#, "'op' is true, not a string"),
            (r#"{"op":"get","key":"k","value":"v"}"#, "a get has no field 'value'"),
            (r#"{"op":"delete","key":"k","ttl":"1s"}"#, "a delete has no field 'ttl'"),
            (r#"{"op":"set","key":"k","value":"v","tll":"1s"}"#, "there is no field 'tll'"),
            (r#"{"op":"set","key":"k","key":"l","value":"v"}"#, "'key' is given twice"),
            (r#"{"op":"get","key":"k","ifMatch":"0:1"}"#, "a get has no field 'ifMatch'"),
            (r#"{"op":"get","key":"k","ifAbsent":false}"#, "a get has no field 'ifAbsent'"),
            (r#"{"op":"get","key":"k","uuid":"u"}"#, "a get has no field 'uuid'"),
            (
                r#"{"op":"get","key":"k","visible":"all"}"#,
                "a get has no field 'visible'; a write may have it",
            ),
            (
                r#"{"op":"set","key":"k","value":"","consistency":"strong"}"#,
                "a set has no field 'consistency'",
            ),
            (
                r#"{"op":"delete","key":"k","position":"0:1"}"#,
                "a delete has no field 'position'; a get may have it",
            ),
            (r#"{"op":"get","key":"k","timeout":500}"#, "write \"500\""),
            (r#"{"op":"delete","key":"k","ifAbsent":"true"}"#, "'ifAbsent' is a string; it is true or false"),
            (r#"{"op":"delete","key":"k","ifMatch":true}"#, "'ifMatch' is true, not a string"),
            (r#"{"op":"delete","key":"k","ifAbsent":true,"ifAbsent":true}"#, "'ifAbsent' is given twice"),
            (r#"[{"op":"get","key":"k"}]"#, "it is a list; an operation is a JSON object such as"),
            ("7", "it is the number 7"),
            (r#""get""#, "it is a string"),
            ("null", "it is null"),
        ] {
            let error = read(line).expect_err(line);
            assert!(error.contains(says), "{line}: {error}");
            for word in ["BatchLine", "enum", "variant", "untagged", "invalid type", "Found", "struct"] {
                assert!(!error.contains(word), "{line}: {error}");
            }
        }
        let long = format!(r#"{{"op":"get","{}":1}}"#, "ü".repeat(500));
        assert!(read(&long).expect_err("unknown").len() < 300);
    }
}
