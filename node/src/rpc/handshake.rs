//! The handshake of a connection, and the protocols of clients that were declared in one.

use std::collections::HashMap;
use std::sync::Arc;

use bitacora_protocol::rpc::{
    ForeignProtocol, HandshakeMatch, HandshakeRequest, HandshakeResponse, PROTOCOL, PROTOCOL_HASH,
    ProtocolHash, protocol_hash,
};
use parking_lot::RwLock;

/// A client's protocol has a few KiB.
const MAX_PROTOCOL_BYTES: usize = 64 * 1024;
/// Protocols that are remembered. Clients of one kind share theirs.
const MAX_PROTOCOLS: usize = 256;

/// What is known of the client's protocol.
pub enum Client {
    /// The handshake is to come.
    Unknown,
    Ours,
    Foreign(Arc<ForeignProtocol>),
}

impl Client {
    /// The client's protocol, if it is not ours.
    pub fn foreign(&self) -> Option<&Arc<ForeignProtocol>> {
        match self {
            Self::Foreign(protocol) => Some(protocol),
            Self::Unknown | Self::Ours => None,
        }
    }
}

/// The protocols of clients, by hash, so that a client sends its own only once to each node.
#[derive(Default)]
pub struct Protocols(RwLock<HashMap<ProtocolHash, Arc<ForeignProtocol>>>);

impl Protocols {
    fn get(&self, hash: &ProtocolHash) -> Option<Arc<ForeignProtocol>> {
        self.0.read().get(hash).cloned()
    }

    fn insert(&self, hash: ProtocolHash, protocol: Arc<ForeignProtocol>) {
        let mut protocols = self.0.write();
        if protocols.len() >= MAX_PROTOCOLS {
            // Whoever is still there sends its own again.
            protocols.clear();
        }
        protocols.insert(hash, protocol);
    }
}

/// Answers a handshake. `None` if the client's protocol makes no sense; [`Client::Unknown`] if it must be sent first.
pub fn shake_hands(
    protocols: &Protocols,
    request: &HandshakeRequest<'_>,
    out: &mut Vec<u8>,
) -> Option<Client> {
    let client = if request.client_hash == *PROTOCOL_HASH {
        Client::Ours
    } else if let Some(known) = protocols.get(&request.client_hash) {
        Client::Foreign(known)
    } else if let Some(text) = request.client_protocol {
        if text.len() > MAX_PROTOCOL_BYTES {
            return None;
        }
        let parsed =
            ForeignProtocol::parse(text).inspect_err(|error| tracing::debug!(%error, "a client's handshake"));
        let protocol = Arc::new(parsed.ok()?);
        // Another client's calls must not be read by a protocol that only claims this hash.
        if protocol_hash(text) == request.client_hash {
            protocols.insert(request.client_hash, Arc::clone(&protocol));
        }
        Client::Foreign(protocol)
    } else {
        Client::Unknown
    };
    let matched = match client {
        Client::Unknown => HandshakeMatch::None,
        _ if request.server_hash == *PROTOCOL_HASH => HandshakeMatch::Both,
        _ => HandshakeMatch::Client,
    };
    let tells = matched != HandshakeMatch::Both;
    let (server_protocol, server_hash) =
        (tells.then_some(PROTOCOL.as_str()), tells.then_some(*PROTOCOL_HASH));
    HandshakeResponse { matched, server_protocol, server_hash }.encode(out);
    Some(client)
}
