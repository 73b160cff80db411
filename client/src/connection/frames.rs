//! Reads a node's frames, and shakes hands.

use std::io;

use bitacora_protocol::rpc::{
    ForeignProtocol, FrameLimits, FrameReader, HandshakeMatch, HandshakeRequest, HandshakeResponse, PROTOCOL,
    PROTOCOL_HASH, put_frame,
};
use bitacora_protocol::tls::TlsAdvice;
use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Of the frames that nodes send. Java's encoder fills buffers of 8 KiB.
const FRAME_LIMITS: FrameLimits = FrameLimits { bytes: 64 << 20, buffers: 16 << 10 };
/// A buffer that grew beyond this is not kept.
pub(super) const KEPT_BUFFER_BYTES: usize = 1 << 20;
/// Room that is made for a read.
const READ_BYTES: usize = 64 << 10;
const CLOSED: &str = "the node closed the connection";
/// A node that speaks TLS has no other way to say so: over the RPC it answers nothing to what is no TLS.
const CLOSED_IN_SILENCE: &str =
    "the node closed the connection before it said anything; if it speaks TLS, give ClientBuilder::tls";

/// Reads frames, and gives each to a function.
pub(super) struct Frames {
    reader: FrameReader,
    buffer: BytesMut,
    scratch: Vec<u8>,
    /// What it means if the node closes the connection now.
    closed: &'static str,
}

impl Frames {
    pub(super) fn new() -> Self {
        Self {
            reader: FrameReader::new(FRAME_LIMITS),
            buffer: BytesMut::with_capacity(READ_BYTES),
            scratch: Vec::new(),
            closed: CLOSED,
        }
    }

    /// Waits for bytes, and gives away all whole frames that they hold; perhaps none.
    pub(super) async fn next(
        &mut self,
        socket: &mut (impl AsyncRead + Unpin),
        mut give: impl FnMut(i32, &[u8]) -> Result<(), String>,
    ) -> Result<(), String> {
        match socket.read_buf(&mut self.buffer).await {
            Ok(0) => return Err(self.closed.to_owned()),
            Ok(_) => self.closed = CLOSED,
            Err(error) => return Err(with_advice(&error)),
        }
        while let Some(frame) =
            self.reader.next(&self.buffer, &mut self.scratch).map_err(|error| error.to_string())?
        {
            give(frame.serial, frame.message)?;
            let length = frame.length;
            self.buffer.advance(length);
        }
        if self.buffer.is_empty() && self.buffer.capacity() > KEPT_BUFFER_BYTES {
            self.buffer = BytesMut::new();
        }
        self.scratch.clear();
        self.scratch.shrink_to(KEPT_BUFFER_BYTES);
        let wanted = self.reader.wants(&self.buffer).saturating_sub(self.buffer.len());
        self.buffer.reserve(wanted.max(READ_BYTES));
        Ok(())
    }
}

/// An error of a connection, and what helps against it if that is known.
pub(super) fn with_advice(error: &io::Error) -> String {
    match TlsAdvice::on(error) {
        Some(advice) => format!("{error}; {advice}"),
        None => error.to_string(),
    }
}

/// Shakes hands with a call without a name, which has no answer of its own. Returns the node's protocol, if it is not ours.
pub(super) async fn handshake(
    socket: &mut (impl AsyncRead + AsyncWrite + Unpin),
    over_tls: bool,
) -> Result<Option<ForeignProtocol>, String> {
    let (mut client_protocol, mut server_hash, mut foreign) = (None, *PROTOCOL_HASH, None);
    let mut frames = Frames::new();
    if !over_tls {
        frames.closed = CLOSED_IN_SILENCE;
    }
    loop {
        let request = HandshakeRequest { client_hash: *PROTOCOL_HASH, client_protocol, server_hash };
        let mut bytes = Vec::new();
        put_frame(&mut bytes, 0, |out| {
            request.encode(out);
            // No metadata, no name.
            out.extend_from_slice(&[0, 0]);
        });
        socket.write_all(&bytes).await.map_err(|error| with_advice(&error))?;
        socket.flush().await.map_err(|error| with_advice(&error))?;
        let mut matched = None;
        while matched.is_none() {
            let greet = |_, message: &[u8]| {
                let (response, _) =
                    HandshakeResponse::decode(message).map_err(|error| format!("the handshake: {error}"))?;
                server_hash = response.server_hash.unwrap_or(server_hash);
                if let Some(text) = response.server_protocol {
                    let is_ours = server_hash == *PROTOCOL_HASH;
                    foreign = if is_ours { None } else { Some(text.to_owned()) };
                }
                matched = Some(response.matched);
                Ok(())
            };
            frames.next(socket, greet).await?;
        }
        match matched {
            Some(HandshakeMatch::None) if client_protocol.is_none() => client_protocol = Some(&**PROTOCOL),
            Some(HandshakeMatch::None) => return Err("the node refuses this client's protocol".to_owned()),
            _ => break,
        }
    }
    foreign.map(|text| ForeignProtocol::parse(&text).map_err(|error| error.to_string())).transpose()
}
