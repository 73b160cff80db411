//! The Avro RPC as the suites use it: a connection that does exactly what it is told, also what no client would.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bitacora_protocol::rpc::{
    Answer, Failure, FrameLimits, FrameReader, HandshakeMatch, HandshakeRequest, HandshakeResponse, Message,
    PROTOCOL, PROTOCOL_HASH, ProtocolHash, Request, protocol_hash, put_frame,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// A node that does not answer within it is broken.
const PATIENCE: Duration = Duration::from_secs(20);

pub struct RpcConnection {
    stream: TcpStream,
    reader: FrameReader,
    unread: Vec<u8>,
    serial: i32,
}

/// What a node said to a handshake.
#[derive(Debug, PartialEq, Eq)]
pub struct Shaken {
    pub matched: HandshakeMatch,
    pub server_protocol: Option<String>,
    /// What follows it: the answer to the call that came with it.
    pub rest: Vec<u8>,
}

impl RpcConnection {
    /// Connects, and says nothing yet.
    pub async fn open(port: u16) -> Result<RpcConnection> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.context("connecting")?;
        stream.set_nodelay(true)?;
        let reader = FrameReader::new(FrameLimits { bytes: 64 << 20, buffers: 100_000 });
        Ok(RpcConnection { stream, reader, unread: Vec::new(), serial: 0 })
    }

    /// Connects and shakes hands with the node's own protocol.
    pub async fn connect(port: u16) -> Result<RpcConnection> {
        let mut connection = RpcConnection::open(port).await?;
        let shaken = connection.shake(*PROTOCOL_HASH, None, *PROTOCOL_HASH).await?;
        ensure!(shaken.matched == HandshakeMatch::Both && shaken.server_protocol.is_none(), "{shaken:?}");
        Ok(connection)
    }

    /// Connects and shakes hands with another protocol.
    pub async fn connect_with(port: u16, protocol: &str) -> Result<RpcConnection> {
        let mut connection = RpcConnection::open(port).await?;
        let shaken = connection.shake(protocol_hash(protocol), Some(protocol), *PROTOCOL_HASH).await?;
        ensure!(shaken.matched == HandshakeMatch::Both, "{shaken:?}");
        Ok(connection)
    }

    /// A handshake with a ping behind it.
    pub async fn shake(
        &mut self,
        client_hash: ProtocolHash,
        client_protocol: Option<&str>,
        server_hash: ProtocolHash,
    ) -> Result<Shaken> {
        let mut message = Vec::new();
        HandshakeRequest { client_hash, client_protocol, server_hash }.encode(&mut message);
        // A call without a name.
        message.extend([0, 0]);
        self.send_message(77, &message).await?;
        let (serial, answer) = self.receive().await?.context("the node closed the connection")?;
        ensure!(serial == 77, "the answer has the serial {serial}");
        let (response, rest) = HandshakeResponse::decode(&answer)?;
        if let Some(text) = response.server_protocol {
            ensure!(text == *PROTOCOL && response.server_hash == Some(*PROTOCOL_HASH), "another protocol");
        }
        Ok(Shaken {
            matched: response.matched,
            server_protocol: response.server_protocol.map(str::to_string),
            rest: rest.to_vec(),
        })
    }

    pub async fn send_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        tokio::time::timeout(PATIENCE, self.stream.write_all(bytes))
            .await
            .context("the node does not read")??;
        Ok(())
    }

    pub async fn send_message(&mut self, serial: i32, message: &[u8]) -> Result<()> {
        let mut frame = Vec::new();
        put_frame(&mut frame, serial, |out| out.extend_from_slice(message));
        self.send_bytes(&frame).await
    }

    /// All in one write, with the serials 0, 1, 2, …
    pub async fn send_all(&mut self, requests: &[Request<'_>]) -> Result<()> {
        let mut frames = Vec::new();
        for (serial, request) in (0..).zip(requests) {
            put_frame(&mut frames, serial, |out| request.encode(out));
        }
        self.send_bytes(&frames).await
    }

    /// The next frame: its serial and its message; `None` if the node closes the connection.
    pub async fn receive(&mut self) -> Result<Option<(i32, Vec<u8>)>> {
        let receive = async {
            let mut scratch = Vec::new();
            loop {
                if let Some(frame) = self.reader.next(&self.unread, &mut scratch)? {
                    let (serial, message, length) = (frame.serial, frame.message.to_vec(), frame.length);
                    self.unread.drain(..length);
                    return Ok(Some((serial, message)));
                }
                match self.stream.read_buf(&mut self.unread).await {
                    Ok(0) | Err(_) if self.unread.is_empty() => return Ok(None),
                    Ok(0) | Err(_) => bail!("the connection ends inside a frame"),
                    Ok(_) => {}
                }
            }
        };
        tokio::time::timeout(PATIENCE, receive).await.context("no answer and no close")?
    }

    /// Calls and waits for the answer, which `look` gets.
    pub async fn call<T>(
        &mut self,
        request: Request<'_>,
        look: impl FnOnce(Result<Answer<'_>, Failure>) -> T,
    ) -> Result<T> {
        self.serial += 1;
        let mut message = Vec::new();
        request.encode(&mut message);
        self.send_message(self.serial, &message).await?;
        let (serial, answer) = self.receive().await?.context("the node closed the connection")?;
        ensure!(serial == self.serial, "the answer has the serial {serial}, not {}", self.serial);
        Ok(look(Answer::decode(request.message(), &answer)?))
    }

    /// `getValue`.
    pub async fn value(&mut self, key: &str) -> Result<Result<Option<String>, String>> {
        self.call(Request::GetValue { key }, |answer| match answer {
            Ok(Answer::Value(value)) => Ok(value.map(str::to_string)),
            Ok(other) => Err(format!("{other:?}")),
            Err(failure) => Err(failure.to_string()),
        })
        .await
    }

    /// The failure of a call that must fail.
    pub async fn fails(&mut self, request: Request<'_>) -> Result<Failure> {
        let what = format!("{request:?}");
        let what: String = what.chars().take(100).collect();
        self.call(request, |answer| answer.err()).await?.with_context(|| format!("{what} did not fail"))
    }

    /// Waits for the node to close the connection.
    pub async fn closed(&mut self) -> Result<()> {
        match self.receive().await {
            Ok(None) => Ok(()),
            Ok(Some((serial, message))) => {
                bail!("an answer to {serial}: {:?}", String::from_utf8_lossy(&message))
            }
            Err(error) => Err(error),
        }
    }
}

/// Shakes hands with the node's own protocol on a connection that a benchmark drives by itself.
pub async fn shake_hands(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Result<()> {
    let mut out = Vec::new();
    put_frame(&mut out, 0, |out| {
        HandshakeRequest { client_hash: *PROTOCOL_HASH, client_protocol: None, server_hash: *PROTOCOL_HASH }
            .encode(out);
        Request::GetValue { key: "none" }.encode(out);
    });
    stream.write_all(&out).await?;
    // Over TLS the end of it may be held back otherwise, and the node waits for it.
    stream.flush().await?;
    let mut reader = FrameReader::new(FrameLimits { bytes: 1 << 20, buffers: 16 });
    let (mut input, mut scratch) = (Vec::new(), Vec::new());
    loop {
        ensure!(stream.read_buf(&mut input).await? > 0, "the node closed the connection");
        if let Some(frame) = reader.next(&input, &mut scratch)? {
            let (response, _) = HandshakeResponse::decode(frame.message)?;
            ensure!(response.matched == HandshakeMatch::Both, "{response:?}");
            return Ok(());
        }
    }
}

/// Decodes an answer that is no failure.
pub fn good(message: Message, answer: &[u8]) -> Result<Answer<'_>> {
    Ok(Answer::decode(message, answer)??)
}
