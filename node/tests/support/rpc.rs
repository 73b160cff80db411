//! A client of the Avro RPC that sends frames as it is told.

use std::time::Duration;

use bitacora_protocol::rpc::{FrameLimits, FrameReader, HandshakeRequest, PROTOCOL_HASH, Request, put_frame};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Appends a frame with a handshake and a call.
pub fn put_first_call(out: &mut Vec<u8>, serial: i32, call: &Request<'_>) {
    put_frame(out, serial, |out| {
        HandshakeRequest { client_hash: *PROTOCOL_HASH, client_protocol: None, server_hash: *PROTOCOL_HASH }
            .encode(out);
        call.encode(out);
    });
}

/// Sends frames on a connection of their own. Returns serial and content of so many answers.
pub async fn rpc_answers(address: &str, frames: &[u8], count: usize) -> Vec<(i32, Vec<u8>)> {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    stream.write_all(frames).await.expect("sent");
    let mut reader = FrameReader::new(FrameLimits { bytes: 16 << 20, buffers: 10 });
    let (mut input, mut scratch, mut answers) = (Vec::new(), Vec::new(), Vec::new());
    while answers.len() < count {
        let read = tokio::time::timeout(Duration::from_secs(30), stream.read_buf(&mut input)).await;
        assert!(read.expect("in time").expect("an answer") > 0, "closed after {} answers", answers.len());
        while let Some(frame) = reader.next(&input, &mut scratch).expect("frames") {
            answers.push((frame.serial, frame.message.to_vec()));
            let length = frame.length;
            input.drain(..length);
        }
    }
    answers
}
