//! The RPC protocol: its text, its messages, and how to read the calls of a client whose protocol is another one.

use std::collections::HashMap;
use std::sync::LazyLock;

use apache_avro::Schema;
use apache_avro::schema::RecordField;
use apache_avro::schema_compatibility::SchemaCompatibility;
use md5::{Digest, Md5};
use serde_json::Value;

use super::handshake::ProtocolHash;
use crate::schema::{Declarations, list};

/// The longest protocol of another program that is read, in bytes. Ours has 10,000.
const MAX_PROTOCOL_BYTES: usize = 64 << 10;
/// Parameters that a foreign message may have.
const MAX_PARAMETERS: usize = 64;

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

/// Symbols of `ErrorCode`, and of `CallErrorCode`, which begins with them.
pub(super) const REQUEST_ERROR_CODES: usize = 6;
pub(super) const CALL_ERROR_CODES: usize = 8;

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
    ReadRecord,
    WriteRecord,
    RemoveRecord,
    BatchRecords,
    ScanRecords,
    ReadChanges,
}

impl Message {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::GetValue,
        Self::SetValue,
        Self::Delete,
        Self::GetRecord,
        Self::SetRecord,
        Self::DeleteRecord,
        Self::Batch,
        Self::Scan,
        Self::ReadRecord,
        Self::WriteRecord,
        Self::RemoveRecord,
        Self::BatchRecords,
        Self::ScanRecords,
        Self::ReadChanges,
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
            Self::ReadRecord => "readRecord",
            Self::WriteRecord => "writeRecord",
            Self::RemoveRecord => "removeRecord",
            Self::BatchRecords => "batchRecords",
            Self::ScanRecords => "scanRecords",
            Self::ReadChanges => "readChanges",
        }
    }

    /// The message of a name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|message| message.name() == name)
    }

    /// Whether its errors have a code; otherwise they are plain strings.
    #[must_use]
    pub fn declares_errors(self) -> bool {
        self.error_codes() > 0
    }

    /// Whether its calls have options: nodes of before have none of these messages.
    #[must_use]
    pub fn has_options(self) -> bool {
        self.error_codes() == CALL_ERROR_CODES
    }

    /// How many of the error codes it declares, in their order: those of a `CallError`, of a `RequestError`, or none.
    #[must_use]
    pub(super) fn error_codes(self) -> usize {
        match self {
            Self::GetValue | Self::SetValue | Self::Delete => 0,
            Self::GetRecord | Self::SetRecord | Self::DeleteRecord | Self::Batch | Self::Scan => {
                REQUEST_ERROR_CODES
            }
            Self::ReadRecord
            | Self::WriteRecord
            | Self::RemoveRecord
            | Self::BatchRecords
            | Self::ScanRecords
            | Self::ReadChanges => CALL_ERROR_CODES,
        }
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
    /// When it is no protocol, or has more than 64 KiB. A message that can't be understood is an error only for who calls it.
    pub fn parse(text: &str) -> Result<Self, ProtocolError> {
        if text.len() > MAX_PROTOCOL_BYTES {
            return Err(ProtocolError(format!(
                "it has {} bytes; at most {MAX_PROTOCOL_BYTES} are read",
                text.len()
            )));
        }
        let json: Value = serde_json::from_str(text).map_err(|error| ProtocolError(error.to_string()))?;
        let declarations = Declarations::of(&json);
        let messages = json
            .get("messages")
            .and_then(Value::as_object)
            .ok_or_else(|| ProtocolError("it has no messages".to_owned()))?;
        let declared = |message: Message, declaration: &Value| {
            if declaration.get("one-way").and_then(Value::as_bool) == Some(true) {
                return Err(format!("Not both one-way: {}", message.name()));
            }
            let parameters = resolve(message, &declarations, declaration)?;
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

/// The parameters of each of our messages.
static OURS: LazyLock<HashMap<Message, DeclaredRequest>> = LazyLock::new(|| {
    let protocol: Value = serde_json::from_str(PROTOCOL_SOURCE).expect("the protocol's text is JSON");
    let declarations = Declarations::of(&protocol);
    Message::ALL
        .map(|message| {
            let declaration = &protocol["messages"][message.name()];
            let request =
                DeclaredRequest::of(&declarations, declaration).expect("the protocol declares each message");
            (message, request)
        })
        .into()
});

/// What a protocol declares as the request of a message.
struct DeclaredRequest {
    /// Two requests whose canonical forms are equal are encoded alike.
    canonical: String,
    parameters: Vec<RecordField>,
}

impl DeclaredRequest {
    fn of(declarations: &Declarations<'_>, message: &Value) -> Result<Self, String> {
        match declarations.request(message)? {
            schema @ Schema::Record(_) => {
                let canonical = schema.canonical_form();
                let Schema::Record(record) = schema else { return Err("it is no record".to_owned()) };
                Ok(Self { canonical, parameters: record.fields })
            }
            _ => Err("it is no record".to_owned()),
        }
    }
}

/// How a client that declares a message as `declaration` writes its parameters, as far as they can be read as ours.
fn resolve(
    message: Message,
    declarations: &Declarations<'_>,
    declaration: &Value,
) -> Result<Parameters, String> {
    let name = message.name();
    let count = list(declaration, "request").len();
    if count > MAX_PARAMETERS {
        return Err(format!("{name} has {count} parameters; at most {MAX_PARAMETERS} are read"));
    }
    let ours = &OURS[&message];
    let theirs = DeclaredRequest::of(declarations, declaration)
        .map_err(|error| format!("The request of {name} can't be read: {error}"))?;
    if theirs.canonical == ours.canonical {
        return Ok(Parameters::AsOurs);
    }
    let mut resolved = Vec::new();
    for parameter in theirs.parameters {
        let index = ours.parameters.iter().position(|ours| ours.name == parameter.name);
        if index.is_some_and(|index| !can_be_read_as(&parameter.schema, &ours.parameters[index].schema)) {
            return Err(format!(
                "The type of {name}'s parameter '{}' does not fit this server's",
                parameter.name
            ));
        }
        let kind = Kind::of(&parameter.schema).ok_or_else(|| {
            format!("The type of {name}'s parameter '{}' is not this server's", parameter.name)
        })?;
        resolved.push((kind, index));
    }
    for (index, parameter) in ours.parameters.iter().enumerate() {
        if !resolved.iter().any(|(_, resolved)| *resolved == Some(index)) {
            return Err(format!(
                "{name} has a parameter '{}' on this server, which the client's lacks",
                parameter.name
            ));
        }
    }
    Ok(Parameters::Resolved(resolved))
}

/// Whether some value that is written as `theirs` can be read as `ours`. Of a union each value tells by itself which type it
/// has, so it is enough that one of them fits.
fn can_be_read_as(theirs: &Schema, ours: &Schema) -> bool {
    match theirs {
        Schema::Union(union) => union.variants().iter().any(|variant| can_be_read_as(variant, ours)),
        _ => SchemaCompatibility::can_read(theirs, ours).is_ok(),
    }
}

impl Kind {
    /// `None` for types that no parameter of ours can be read from.
    fn of(schema: &Schema) -> Option<Self> {
        Some(match schema {
            Schema::Null => Self::Null,
            Schema::Boolean => Self::Boolean,
            Schema::Int => Self::Int,
            Schema::Long => Self::Long,
            Schema::Float => Self::Float,
            Schema::Double => Self::Double,
            Schema::Bytes => Self::Bytes,
            Schema::String => Self::String,
            Schema::Union(union) => {
                Self::Union(union.variants().iter().map(Self::of).collect::<Option<Vec<_>>>()?)
            }
            _ => return None,
        })
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
            assert!(!OURS[&message].parameters.is_empty());
        }
        let batch = &OURS[&Message::Batch].canonical;
        assert!(batch.contains(r#""name":"kind""#), "{batch}");
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
    fn the_namespace_of_a_protocol_does_not_matter() {
        let text = r#"{"messages":{"getRecord":{"request":[{"name":"key","type":{"type":"string","x":"String"}}]}}}"#;
        assert_eq!(parameters(text, "getRecord").as_deref(), Ok("AsOurs"));
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
