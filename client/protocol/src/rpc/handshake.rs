//! The handshake that opens a connection: Avro specification 1.11, "Handshake".

use crate::avro::{DecodeError, Input, put_long, put_string};

/// The MD5 sum of a protocol's JSON text.
pub type ProtocolHash = [u8; 16];

/// What a client says first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandshakeRequest<'a> {
    /// Of the client's protocol.
    pub client_hash: ProtocolHash,
    /// The client's protocol as JSON; sent when the server did not know its hash.
    pub client_protocol: Option<&'a str>,
    /// Of the protocol that the client thinks the server has.
    pub server_hash: ProtocolHash,
}

/// Whose protocol is known to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandshakeMatch {
    /// Both sides know the other's protocol; the call was answered.
    Both,
    /// The server knows the client's, and sends its own; the call was answered.
    Client,
    /// The server needs the client's protocol; the call was not answered and must be sent again.
    None,
}

/// What the server answers, before the answer to the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandshakeResponse<'a> {
    /// Whose protocol is known to whom.
    pub matched: HandshakeMatch,
    /// The server's protocol as JSON; absent if the client has it.
    pub server_protocol: Option<&'a str>,
    /// Of the server's protocol; absent if the client has it.
    pub server_hash: Option<ProtocolHash>,
}

impl<'a> HandshakeRequest<'a> {
    /// Reads the request from the front of a message; returns it and what follows, the call.
    ///
    /// # Errors
    /// Says which field is wrong, and how.
    pub fn decode(message: &'a [u8]) -> Result<(Self, &'a [u8]), DecodeError> {
        let mut input = Input(message);
        let client_hash = hash(&mut input, "clientHash")?;
        let client_protocol = match input.index(2, "clientProtocol")? {
            0 => None,
            _ => Some(input.string("clientProtocol")?),
        };
        let server_hash = hash(&mut input, "serverHash")?;
        optional_metadata(&mut input)?;
        Ok((Self { client_hash, client_protocol, server_hash }, input.0))
    }

    /// Appends the request's bytes to `out`, without metadata.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.client_hash);
        put_optional(out, self.client_protocol);
        out.extend_from_slice(&self.server_hash);
        put_long(out, 0);
    }
}

impl<'a> HandshakeResponse<'a> {
    /// Reads the response from the front of a message; returns it and what follows, the answer.
    ///
    /// # Errors
    /// Says which field is wrong, and how.
    pub fn decode(message: &'a [u8]) -> Result<(Self, &'a [u8]), DecodeError> {
        let mut input = Input(message);
        let matched = match input.index(3, "match")? {
            0 => HandshakeMatch::Both,
            1 => HandshakeMatch::Client,
            _ => HandshakeMatch::None,
        };
        let server_protocol = match input.index(2, "serverProtocol")? {
            0 => None,
            _ => Some(input.string("serverProtocol")?),
        };
        let server_hash = match input.index(2, "serverHash")? {
            0 => None,
            _ => Some(hash(&mut input, "serverHash")?),
        };
        optional_metadata(&mut input)?;
        Ok((Self { matched, server_protocol, server_hash }, input.0))
    }

    /// Appends the response's bytes to `out`, without metadata.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_long(
            out,
            match self.matched {
                HandshakeMatch::Both => 0,
                HandshakeMatch::Client => 1,
                HandshakeMatch::None => 2,
            },
        );
        put_optional(out, self.server_protocol);
        match &self.server_hash {
            None => put_long(out, 0),
            Some(hash) => {
                put_long(out, 1);
                out.extend_from_slice(hash);
            }
        }
        put_long(out, 0);
    }
}

fn hash(input: &mut Input<'_>, field: &'static str) -> Result<ProtocolHash, DecodeError> {
    input.take(16, field)?.try_into().map_err(|_| DecodeError::Truncated(field))
}

fn optional_metadata(input: &mut Input<'_>) -> Result<(), DecodeError> {
    if input.index(2, "meta")? == 1 { input.skip_metadata() } else { Ok(()) }
}

fn put_optional(out: &mut Vec<u8>, text: Option<&str>) {
    match text {
        None => put_long(out, 0),
        Some(text) => {
            put_long(out, 1);
            put_string(out, text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use apache_avro::types::Value;
    use proptest::prelude::*;

    /// As the specification prints it.
    const REQUEST: &str = r#"{"type":"record","name":"HandshakeRequest","namespace":"org.apache.avro.ipc","fields":[
        {"name":"clientHash","type":{"type":"fixed","name":"MD5","size":16}},{"name":"clientProtocol","type":["null","string"]},
        {"name":"serverHash","type":"MD5"},{"name":"meta","type":["null",{"type":"map","values":"bytes"}]}]}"#;
    const RESPONSE: &str = r#"{"type":"record","name":"HandshakeResponse","namespace":"org.apache.avro.ipc","fields":[
        {"name":"match","type":{"type":"enum","name":"HandshakeMatch","symbols":["BOTH","CLIENT","NONE"]}},
        {"name":"serverProtocol","type":["null","string"]},
        {"name":"serverHash","type":["null",{"type":"fixed","name":"MD5","size":16}]},
        {"name":"meta","type":["null",{"type":"map","values":"bytes"}]}]}"#;

    fn theirs(schema: &str, value: Vec<(&str, Value)>) -> Vec<u8> {
        let schema = apache_avro::Schema::parse_str(schema).expect("the schema is valid");
        let fields = value.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        apache_avro::to_avro_datum(&schema, Value::Record(fields)).expect("the crate encodes it")
    }

    fn optional(value: Option<Value>) -> Value {
        Value::Union(u32::from(value.is_some()), Box::new(value.unwrap_or(Value::Null)))
    }

    fn md5(hash: ProtocolHash) -> Value {
        Value::Fixed(16, hash.to_vec())
    }

    proptest! {
        #[test]
        fn requests_are_the_avro_crates(client_hash: ProtocolHash, text: Option<String>, server_hash: ProtocolHash, meta: Option<Vec<(String, Vec<u8>)>>) {
            let request = HandshakeRequest { client_hash, client_protocol: text.as_deref(), server_hash };
            let with = |meta| theirs(REQUEST, vec![
                ("clientHash", md5(client_hash)),
                ("clientProtocol", optional(text.clone().map(Value::String))),
                ("serverHash", md5(server_hash)),
                ("meta", optional(meta)),
            ]);
            let mut bytes = Vec::new();
            request.encode(&mut bytes);
            prop_assert_eq!(&bytes, &with(None));
            let meta = meta.map(|meta| Value::Map(meta.into_iter().map(|(k, v)| (k, Value::Bytes(v))).collect()));
            let mut bytes = with(meta);
            bytes.extend(b"call");
            prop_assert_eq!(HandshakeRequest::decode(&bytes), Ok((request, b"call".as_slice())));
        }

        #[test]
        fn responses_are_the_avro_crates(matched in 0u32..3, text: Option<String>, server_hash: Option<ProtocolHash>) {
            let name = ["BOTH", "CLIENT", "NONE"][matched as usize];
            let bytes = theirs(RESPONSE, vec![
                ("match", Value::Enum(matched, name.to_owned())),
                ("serverProtocol", optional(text.clone().map(Value::String))),
                ("serverHash", optional(server_hash.map(md5))),
                ("meta", optional(None)),
            ]);
            let matched = [HandshakeMatch::Both, HandshakeMatch::Client, HandshakeMatch::None][matched as usize];
            let response = HandshakeResponse { matched, server_protocol: text.as_deref(), server_hash };
            let mut ours = Vec::new();
            response.encode(&mut ours);
            prop_assert_eq!(&ours, &bytes);
            prop_assert_eq!(HandshakeResponse::decode(&bytes), Ok((response, [].as_slice())));
        }

        #[test]
        fn any_bytes_decode_or_are_refused(bytes: Vec<u8>) {
            let _ = HandshakeRequest::decode(&bytes);
            let _ = HandshakeResponse::decode(&bytes);
        }
    }
}
