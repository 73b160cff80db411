//! Handshakes in both directions, and the protocol that a client sends along.
#![no_main]

use bitacora_protocol::rpc::{ForeignProtocol, HandshakeRequest, HandshakeResponse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok((request, rest)) = HandshakeRequest::decode(bytes) {
        let mut again = Vec::new();
        request.encode(&mut again);
        assert_eq!(HandshakeRequest::decode(&again), Ok((request, [].as_slice())));
        assert!(rest.len() < bytes.len());
        if let Some(text) = request.client_protocol {
            let _ = ForeignProtocol::parse(text);
        }
    }
    if let Ok((response, _)) = HandshakeResponse::decode(bytes) {
        let mut again = Vec::new();
        response.encode(&mut again);
        assert_eq!(HandshakeResponse::decode(&again), Ok((response, [].as_slice())));
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = ForeignProtocol::parse(text);
    }
});
