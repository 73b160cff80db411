//! The RPC protocol: its text, its messages, and how to read the calls of a client whose protocol is another one.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::sync::LazyLock;

use md5::{Digest, Md5};
use serde_json::Value;

use super::handshake::ProtocolHash;

/// The protocol as it is written for people, with its original three messages and ours.
pub const PROTOCOL_SOURCE: &str = include_str!("protocol.avpr");

/// The protocol as it goes over the wire: [`PROTOCOL_SOURCE`] without white space, which is how Java's Avro prints it,
/// so that a Java client with the whole protocol has the same hash.
pub static PROTOCOL: LazyLock<String> = LazyLock::new(|| compact(PROTOCOL_SOURCE));

/// [`PROTOCOL`]'s hash.
pub static PROTOCOL_HASH: LazyLock<ProtocolHash> = LazyLock::new(|| protocol_hash(&PROTOCOL));

/// The MD5 sum that stands for a protocol in a handshake.
#[must_use]
pub fn protocol_hash(text: &str) -> ProtocolHash {
    Md5::digest(text).into()
}

fn compact(json: &str) -> String {
    let (mut in_string, mut escaped) = (false, false);
    json.chars()
        .filter(|c| {
            let keep = in_string || !c.is_ascii_whitespace();
            match c {
                _ if escaped => escaped = false,
                '\\' if in_string => escaped = true,
                '"' => in_string = !in_string,
                _ => {}
            }
            keep
        })
        .collect()
}

/// The messages of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // each is as in the protocol's text
pub enum Message {
    GetValue,
    SetValue,
    Delete,
    GetRecord,
    SetRecord,
    DeleteRecord,
    Batch,
    Scan,
}

impl Message {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::GetValue,
        Self::SetValue,
        Self::Delete,
        Self::GetRecord,
        Self::SetRecord,
        Self::DeleteRecord,
        Self::Batch,
        Self::Scan,
    ];

    /// Its name in the protocol.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::GetValue => "getValue",
            Self::SetValue => "setValue",
            Self::Delete => "delete",
            Self::GetRecord => "getRecord",
            Self::SetRecord => "setRecord",
            Self::DeleteRecord => "deleteRecord",
            Self::Batch => "batch",
            Self::Scan => "scan",
        }
    }

    /// The message of a name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|message| message.name() == name)
    }

    /// Whether its errors are `RequestError`s; otherwise they are plain strings.
    #[must_use]
    pub fn declares_errors(self) -> bool {
        !matches!(self, Self::GetValue | Self::SetValue | Self::Delete)
    }
}

/// Why a text is not a protocol.
#[derive(Debug, thiserror::Error)]
#[error("the client's protocol can't be read: {0}")]
pub struct ProtocolError(String);

/// A client's protocol that is not [`PROTOCOL`], as far as it matters for reading its calls.
///
/// Avro writes a request with the client's declaration of the message. It may have the parameters in another order, of
/// other but fitting types, or more of them (Avro specification, "Schema Resolution").
#[derive(Debug)]
pub struct ForeignProtocol {
    /// Of our messages alone: what else a client declares costs nothing.
    messages: HashMap<Message, Result<Declared, String>>,
}

#[derive(Debug)]
pub(super) struct Declared {
    pub message: Message,
    pub parameters: Parameters,
}

/// How a client writes the parameters of a message.
#[derive(Debug, PartialEq)]
pub(super) enum Parameters {
    /// As [`PROTOCOL`] declares them.
    AsOurs,
    /// In this order; with the index of ours that it is.
    Resolved(Vec<(Kind, Option<usize>)>),
}

/// The type of a parameter that a foreign protocol may have.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    Null,
    Boolean,
    Int,
    Long,
    Float,
    Double,
    Bytes,
    String,
    Union(Vec<Kind>),
}

impl ForeignProtocol {
    /// Reads a protocol's JSON text.
    ///
    /// # Errors
    /// When it is no protocol. A message that can't be understood is an error only for who calls it.
    pub fn parse(text: &str) -> Result<Self, ProtocolError> {
        let json: Value = serde_json::from_str(text).map_err(|error| ProtocolError(error.to_string()))?;
        let types = Types::of(&json);
        let messages = json
            .get("messages")
            .and_then(Value::as_object)
            .ok_or_else(|| ProtocolError("it has no messages".to_owned()))?;
        let declared = |message: Message, declaration: &Value| {
            if declaration.get("one-way").and_then(Value::as_bool) == Some(true) {
                return Err(format!("Not both one-way: {}", message.name()));
            }
            let parameters = types.resolve(message, declaration)?;
            Ok(Declared { message, parameters })
        };
        let ours = Message::ALL.into_iter().filter_map(|message| {
            let declaration = messages.get(message.name())?;
            Some((message, declared(message, declaration)))
        });
        Ok(Self { messages: ours.collect() })
    }

    pub(super) fn declared(&self, name: &str) -> Result<&Declared, String> {
        let message =
            Message::named(name).ok_or_else(|| format!("No message named {name} on this server"))?;
        match self.messages.get(&message) {
            Some(declared) => declared.as_ref().map_err(Clone::clone),
            None => Err(format!("No such remote message: {name}")),
        }
    }

    /// Whether the other side declares the message with the request that [`PROTOCOL`] has.
    #[must_use]
    pub fn declares(&self, message: Message) -> bool {
        self.declared(message.name()).is_ok_and(|declared| declared.parameters == Parameters::AsOurs)
    }
}

/// Bounds the work that a client's protocol can cause.
const MAX_PARAMETERS: usize = 64;

/// The request of each of our messages: per parameter its name, and the canonical form of its type.
static OURS: LazyLock<HashMap<Message, Vec<(String, String)>>> = LazyLock::new(|| {
    let json: Value = serde_json::from_str(PROTOCOL_SOURCE).unwrap_or_default();
    let types = Types::of(&json);
    Message::ALL.map(|message| (message, types.request(&json["messages"][message.name()]))).into()
});

/// The named types of a protocol, by full name.
struct Types<'a> {
    namespace: &'a str,
    named: HashMap<String, (&'a Value, &'a str)>,
}

fn text<'a>(value: &'a Value, name: &str) -> Option<&'a str> {
    value.get(name).and_then(Value::as_str)
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn full_name(name: &str, namespace: &str) -> String {
    if name.contains('.') || namespace.is_empty() { name.to_owned() } else { format!("{namespace}.{name}") }
}

impl<'a> Types<'a> {
    fn of(protocol: &'a Value) -> Self {
        let namespace = text(protocol, "namespace").unwrap_or_default();
        let mut types = Self { namespace, named: HashMap::new() };
        for declaration in list(protocol, "types") {
            types.learn(declaration, namespace);
        }
        types
    }

    /// Java prints a type where it is used first, so named types lie anywhere.
    fn learn(&mut self, declaration: &'a Value, namespace: &'a str) {
        match declaration {
            Value::Array(branches) => branches.iter().for_each(|branch| self.learn(branch, namespace)),
            Value::Object(_) => {
                let namespace = text(declaration, "namespace").unwrap_or(namespace);
                if let Some(name) = text(declaration, "name") {
                    self.named.insert(full_name(name, namespace), (declaration, namespace));
                }
                for field in list(declaration, "fields") {
                    self.learn(&field["type"], namespace);
                }
                for name in ["type", "items", "values"] {
                    self.learn(&declaration[name], namespace);
                }
            }
            _ => {}
        }
    }

    fn request(&self, message: &'a Value) -> Vec<(String, String)> {
        list(message, "request")
            .iter()
            .map(|parameter| {
                let mut canonical = String::new();
                self.canonical(&parameter["type"], self.namespace, &mut HashSet::new(), &mut canonical);
                (text(parameter, "name").unwrap_or_default().to_owned(), canonical)
            })
            .collect()
    }

    /// Writes a type so that two that are written alike are encoded alike. A named type is spelt out once.
    fn canonical(&self, declaration: &Value, namespace: &str, seen: &mut HashSet<String>, out: &mut String) {
        match declaration {
            Value::String(name) if Kind::primitive(name).is_some() => out.push_str(name),
            Value::String(name) => {
                let name = full_name(name, namespace);
                match self.named.get(&name) {
                    Some((definition, namespace)) => self.canonical(definition, namespace, seen, out),
                    None => out.push_str(&name),
                }
            }
            Value::Array(branches) => {
                out.push('[');
                for branch in branches {
                    self.canonical(branch, namespace, seen, out);
                    out.push(',');
                }
                out.push(']');
            }
            Value::Object(_) => {
                let namespace = text(declaration, "namespace").unwrap_or(namespace);
                let kind = text(declaration, "type").unwrap_or_default();
                if let Some(name) = text(declaration, "name") {
                    let name = full_name(name, namespace);
                    out.push_str(&name);
                    if !seen.insert(name) {
                        return;
                    }
                }
                match kind {
                    "record" | "error" => {
                        out.push('{');
                        for field in list(declaration, "fields") {
                            let _ = write!(out, "{}:", text(field, "name").unwrap_or_default());
                            self.canonical(&field["type"], namespace, seen, out);
                            out.push(',');
                        }
                        out.push('}');
                    }
                    "enum" => {
                        let _ = write!(out, "{:?}", list(declaration, "symbols"));
                    }
                    "fixed" => {
                        let _ = write!(out, "({})", declaration["size"]);
                    }
                    "array" => {
                        out.push('*');
                        self.canonical(&declaration["items"], namespace, seen, out);
                    }
                    "map" => {
                        out.push('%');
                        self.canonical(&declaration["values"], namespace, seen, out);
                    }
                    // `{"type": "string", "avro.java.string": "String"}`
                    _ => self.canonical(&declaration["type"], namespace, seen, out),
                }
            }
            _ => {}
        }
    }

    fn resolve(&self, message: Message, declaration: &'a Value) -> Result<Parameters, String> {
        let count = list(declaration, "request").len();
        if count > MAX_PARAMETERS {
            return Err(format!(
                "{} has {count} parameters; at most {MAX_PARAMETERS} are read",
                message.name()
            ));
        }
        let no_parameters = Vec::new();
        let ours = OURS.get(&message).unwrap_or(&no_parameters);
        if self.request(declaration) == *ours {
            return Ok(Parameters::AsOurs);
        }
        let name = message.name();
        let mut resolved = Vec::new();
        for parameter in list(declaration, "request") {
            let parameter_name = text(parameter, "name").unwrap_or_default();
            let kind = Kind::of(&parameter["type"]).ok_or_else(|| {
                format!("The type of {name}'s parameter '{parameter_name}' is not this server's")
            })?;
            let index = ours.iter().position(|(ours, _)| ours == parameter_name);
            if index.is_some_and(|index| !kind.fits(&ours[index].1)) {
                return Err(format!(
                    "The type of {name}'s parameter '{parameter_name}' does not fit this server's"
                ));
            }
            resolved.push((kind, index));
        }
        for (index, (parameter_name, _)) in ours.iter().enumerate() {
            if !resolved.iter().any(|(_, resolved)| *resolved == Some(index)) {
                return Err(format!(
                    "{name} has a parameter '{parameter_name}' on this server, which the client's lacks"
                ));
            }
        }
        Ok(Parameters::Resolved(resolved))
    }
}

impl Kind {
    fn primitive(name: &str) -> Option<Self> {
        Some(match name {
            "null" => Self::Null,
            "boolean" => Self::Boolean,
            "int" => Self::Int,
            "long" => Self::Long,
            "float" => Self::Float,
            "double" => Self::Double,
            "bytes" => Self::Bytes,
            "string" => Self::String,
            _ => return None,
        })
    }

    fn of(declaration: &Value) -> Option<Self> {
        match declaration {
            Value::String(name) => Self::primitive(name),
            Value::Array(branches) => {
                // Avro allows no union directly in a union.
                let kinds: Option<Vec<_>> = branches
                    .iter()
                    .map(|branch| Self::of(branch).filter(|kind| !matches!(kind, Self::Union(_))))
                    .collect();
                kinds.map(Self::Union)
            }
            Value::Object(_) => text(declaration, "type").and_then(Self::primitive),
            _ => None,
        }
    }

    /// Whether some value of it can be one of `ours`.
    fn fits(&self, ours: &str) -> bool {
        match (self, ours) {
            (Self::Union(branches), _) => branches.iter().any(|branch| branch.fits(ours)),
            (Self::String | Self::Bytes, "string")
            | (Self::Int | Self::Long, "long")
            | (Self::Int, "int") => true,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the original's clients have, as Java prints it.
    const ORIGINAL: &str = r#"{"protocol":"RPCHandlerAvro","namespace":"com.grayscaleconsulting.bitacora.rpc.avro","types":[{"type":"record","name":"KeyValueRawAvro","fields":[{"name":"key","type":{"type":"string","avro.java.string":"String"}}]}],"messages":{"getValue":{"request":[{"name":"key","type":{"type":"string","avro.java.string":"String"}}],"response":["null",{"type":"string","avro.java.string":"String"}]},"setValue":{"request":[{"name":"key","type":"string"},{"name":"value","type":"string"}],"response":"null"},"missing":{"request":[],"response":"null"}}}"#;

    fn parameters(protocol: &str, message: &str) -> Result<String, String> {
        let protocol = ForeignProtocol::parse(protocol).expect("it is a protocol");
        protocol.declared(message).map(|declared| format!("{:?}", declared.parameters))
    }

    fn with(messages: &str) -> String {
        format!(r#"{{"protocol":"P","namespace":"n","types":[],"messages":{messages}}}"#)
    }

    #[test]
    fn the_text_is_a_protocol_and_its_requests_are_ours() {
        assert!(!PROTOCOL.contains('\n') && PROTOCOL.contains("ms to live, 0 for ever."));
        let ours = ForeignProtocol::parse(&PROTOCOL).expect("it is a protocol");
        for message in Message::ALL {
            let declared = ours.declared(message.name()).expect("it is declared");
            assert_eq!((declared.message, &declared.parameters), (message, &Parameters::AsOurs));
            assert_eq!(Message::named(message.name()), Some(message));
            assert!(!OURS[&message].is_empty());
        }
        assert!(OURS[&Message::Batch][0].1.contains("kind:"), "{:?}", OURS[&Message::Batch]);
    }

    #[test]
    fn the_originals_clients_are_understood() {
        for message in ["getValue", "setValue"] {
            assert_eq!(parameters(ORIGINAL, message).as_deref(), Ok("AsOurs"));
        }
        let original = ForeignProtocol::parse(ORIGINAL).expect("it is a protocol");
        let declared: Vec<_> =
            Message::ALL.into_iter().filter(|message| original.declares(*message)).collect();
        assert_eq!(declared, [Message::GetValue, Message::SetValue]);
        assert_eq!(parameters(ORIGINAL, "scan"), Err("No such remote message: scan".to_owned()));
        assert_eq!(
            parameters(ORIGINAL, "missing"),
            Err("No message named missing on this server".to_owned())
        );
    }

    #[test]
    fn parameters_in_another_order_or_type_are_resolved() {
        let other = with(
            r#"{"setRecord":{"request":[{"name":"ttl","type":"int"},{"name":"more","type":"double"},{"name":"value","type":["null","bytes"]},{"name":"key","type":"string"}]}}"#,
        );
        let expected =
            "Resolved([(Int, Some(2)), (Double, None), (Union([Null, Bytes]), Some(1)), (String, Some(0))])";
        assert_eq!(parameters(&other, "setRecord").as_deref(), Ok(expected));
    }

    #[test]
    fn what_can_not_be_resolved_is_told_to_who_calls_it() {
        for (message, declaration) in [
            ("getValue", r#"{"request":[{"name":"key","type":"long"}]}"#),
            ("getValue", r#"{"request":[]}"#),
            ("getValue", r#"{"request":[{"name":"key","type":"string"}],"one-way":true}"#),
            ("getValue", r#"{"request":[{"name":"key","type":{"type":"array","items":"string"}}]}"#),
            ("batch", r#"{"request":[{"name":"operations","type":{"type":"array","items":"string"}}]}"#),
            ("getValue", r#"{"request":[{"name":"key","type":["null",["string"]]}]}"#),
        ] {
            let error = parameters(&with(&format!(r#"{{"{message}":{declaration}}}"#)), message)
                .expect_err(declaration);
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn what_is_no_protocol_is_refused() {
        for text in ["", "{}", "[]", "1", r#"{"messages":1}"#, &"[".repeat(10_000)] {
            assert!(ForeignProtocol::parse(text).is_err(), "{text:.20}");
        }
        // A type that holds itself ends.
        let recursive = r#"{"types":[{"type":"record","name":"R","fields":[{"name":"r","type":["null","R"]}]}],"messages":{"batch":{"request":[{"name":"operations","type":"R"}]}}}"#;
        assert!(parameters(recursive, "batch").is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_protocol_or_refused(text in r#"[{}\[\]":,a-z0-9]{0,200}"#, ours in 0usize..3000, cut in 0usize..3000) {
            let _ = ForeignProtocol::parse(&text);
            let mut cut_out = PROTOCOL.clone();
            let (from, to) = (ours.min(cut).min(cut_out.len()), ours.max(cut).min(cut_out.len()));
            cut_out.replace_range(from..to, "");
            let _ = ForeignProtocol::parse(&cut_out);
        }
    }
}
