//! The lines of `avro.txt`, and what a client and a server say in them, held to our wire code.

use std::cell::RefCell;
use std::collections::BTreeMap;

use bitacora_protocol::rpc::{
    Answer, Failure, ForeignProtocol, Frame, FrameLimits, FrameReader, HandshakeMatch, HandshakeRequest,
    HandshakeResponse, Message, PROTOCOL, PROTOCOL_HASH, ProtocolHash, Request, put_frame,
};

const GOLDEN: &str = include_str!("avro.txt");
pub const LIMITS: FrameLimits = FrameLimits { bytes: 1 << 20, buffers: 16 };

/// What Java's client writes for a handshake without metadata: an empty map. Ours writes null, which is shorter.
const EMPTY_METADATA: [u8; 2] = [2, 0];

fn hex(text: &str) -> Vec<u8> {
    let (digits, odd) = text.as_bytes().as_chunks::<2>();
    assert!(odd.is_empty(), "an odd number of digits");
    let digit = |digit: u8| char::from(digit).to_digit(16).expect("a digit of hex") as u8;
    digits.iter().map(|[high, low]| digit(*high) << 4 | digit(*low)).collect()
}

/// The lines, each to be taken once.
pub struct Lines(RefCell<BTreeMap<&'static str, &'static str>>);

impl Lines {
    /// Those whose names begin with one of `beginnings`.
    pub fn of(beginnings: &[&str]) -> Lines {
        let lines = GOLDEN.lines().filter(|line| !line.starts_with('#'));
        let named = lines.map(|line| line.split_once(' ').expect("a name and a value"));
        let chosen = named.filter(|(name, _)| beginnings.iter().any(|beginning| name.starts_with(beginning)));
        Lines(RefCell::new(chosen.collect()))
    }

    pub fn text(&self, name: &str) -> &'static str {
        self.0.borrow_mut().remove(name).unwrap_or_else(|| panic!("no line {name}"))
    }

    pub fn bytes(&self, name: &str) -> Vec<u8> {
        hex(self.text(name))
    }

    /// Of those that were not taken yet.
    pub fn names(&self) -> Vec<&'static str> {
        self.0.borrow().keys().copied().collect()
    }

    pub fn done(self) {
        let left = self.0.into_inner();
        assert!(left.is_empty(), "nobody looked at {:?}", left.keys());
    }
}

/// The message of a frame that must be there wholly and alone.
pub fn unframed(name: &str, serial: i32, bytes: &[u8]) -> Vec<u8> {
    let mut scratch = Vec::new();
    let found = FrameReader::new(LIMITS).next(bytes, &mut scratch);
    let Ok(Some(Frame { serial: found, message, length })) = found else { panic!("{name}: {found:?}") };
    assert_eq!((found, length), (serial, bytes.len()), "{name}");
    message.to_vec()
}

/// Java frames a message in as many buffers as it happened to fill; we use one.
fn framed(serial: i32, message: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_frame(&mut out, serial, |out| out.extend_from_slice(message));
    out
}

pub fn original() -> &'static str {
    Lines::of(&["protocol/original/text"]).text("protocol/original/text")
}

/// Takes the frame `<call>/request` and checks that it holds the handshake and the call, and that we make the same bytes.
pub fn request(
    lines: &Lines,
    call: &str,
    serial: i32,
    handshake: Option<HandshakeRequest<'_>>,
    foreign: Option<&ForeignProtocol>,
    expected: Option<&Request<'_>>,
) {
    let message = unframed(call, serial, &lines.bytes(call));
    let (mut rest, mut made) = (message.as_slice(), Vec::new());
    if let Some(handshake) = handshake {
        let (found, after) = HandshakeRequest::decode(rest).unwrap_or_else(|error| panic!("{call}: {error}"));
        assert_eq!(found, handshake, "{call}");
        rest = after;
        handshake.encode(&mut made);
        assert_eq!(made.pop(), Some(0), "{call}: no metadata");
        made.extend(EMPTY_METADATA);
    }
    assert_eq!(Request::decode(rest, foreign).as_ref().map(Option::as_ref), Ok(expected), "{call}");
    match expected {
        Some(expected) => expected.encode(&mut made),
        // A ping: no metadata, no name.
        None => made.extend([0, 0]),
    }
    assert_eq!(made, message, "{call}");
    assert_eq!(unframed(call, serial, &framed(serial, &made)), message, "{call}");
}

/// What is called, and what comes of it.
pub type Answered<'a> = (Message, Result<Answer<'a>, Failure>);

/// Java puts more into several buffers.
const JAVAS_BUFFER_BYTES: usize = 8192;

/// Takes the frame `<call>/response`, as [`request`] does.
pub fn response(
    lines: &Lines,
    call: &str,
    serial: i32,
    handshake: Option<HandshakeResponse<'_>>,
    answer: Option<&Answered<'_>>,
) {
    let bytes = lines.bytes(call);
    let message = unframed(call, serial, &bytes);
    let (mut rest, mut made) = (message.as_slice(), Vec::new());
    if let Some(handshake) = handshake {
        let (found, after) =
            HandshakeResponse::decode(rest).unwrap_or_else(|error| panic!("{call}: {error}"));
        assert_eq!(found, handshake, "{call}");
        rest = after;
        handshake.encode(&mut made);
    }
    match answer {
        None => assert!(rest.is_empty(), "{call}: {rest:?} after a handshake alone"),
        Some((message, expected)) => {
            assert_eq!(Answer::decode(*message, rest).as_ref(), Ok(expected), "{call}");
            match expected {
                Ok(answer) => answer.encode(&mut made),
                Err(failure) => failure.encode(Some(*message), &mut made),
            }
        }
    }
    assert_eq!(made, message, "{call}");
    if answer.is_none() && message.len() <= JAVAS_BUFFER_BYTES {
        // Java has one buffer for it, as we have.
        assert_eq!(framed(serial, &made), bytes, "{call}");
    }
}

pub const BOTH: HandshakeResponse<'_> =
    HandshakeResponse { matched: HandshakeMatch::Both, server_protocol: None, server_hash: None };

/// The server's answer when the client doesn't know it.
pub fn introduction(matched: HandshakeMatch) -> HandshakeResponse<'static> {
    HandshakeResponse { matched, server_protocol: Some(&PROTOCOL), server_hash: Some(*PROTOCOL_HASH) }
}

pub fn hello(client_hash: ProtocolHash, server_hash: ProtocolHash) -> HandshakeRequest<'static> {
    HandshakeRequest { client_hash, client_protocol: None, server_hash }
}

pub const KEY: Request<'_> = Request::GetValue { key: "key" };

pub fn value(value: &str) -> Answered<'_> {
    (Message::GetValue, Ok(Answer::Value(Some(value))))
}

pub fn long() -> String {
    "0123456789".repeat(900)
}
