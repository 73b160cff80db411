//! The bytes that Java's Avro makes, read and made again by our wire code.
//!
//! `golden/avro.txt` has a line of a name and hex each. Avro 1.7.7 and 1.12.1 print the same file, which the e2e suite
//! `rpc_java` checks. The server in it is Avro's own, with our protocol and fixed answers.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use bitacora_protocol::Position;
use bitacora_protocol::record::KeyValue;
use bitacora_protocol::rpc::{
    Answer, BatchResult, CallError, ErrorCode, Failure, ForeignProtocol, Frame, FrameLimits, FrameReader,
    HandshakeMatch, HandshakeRequest, HandshakeResponse, Message, Operation, PROTOCOL, PROTOCOL_HASH,
    ProtocolHash, ReadAnswer, Request, RequestError, ScanPage, ScanRequest, ServedFrom, WriteAnswer,
    protocol_hash, put_frame, put_value_answer,
};

const GOLDEN: &str = include_str!("golden/avro.txt");
const LIMITS: FrameLimits = FrameLimits { bytes: 1 << 20, buffers: 16 };

/// What Java's client writes for a handshake without metadata: an empty map. Ours writes null, which is shorter.
const EMPTY_METADATA: [u8; 2] = [2, 0];

fn hex(text: &str) -> Vec<u8> {
    let (digits, odd) = text.as_bytes().as_chunks::<2>();
    assert!(odd.is_empty(), "an odd number of digits");
    let digit = |digit: u8| char::from(digit).to_digit(16).expect("a digit of hex") as u8;
    digits.iter().map(|[high, low]| digit(*high) << 4 | digit(*low)).collect()
}

/// The lines, each to be taken once.
struct Lines(RefCell<BTreeMap<&'static str, &'static str>>);

impl Lines {
    /// Those whose names begin with one of `beginnings`.
    fn of(beginnings: &[&str]) -> Lines {
        let lines = GOLDEN.lines().filter(|line| !line.starts_with('#'));
        let named = lines.map(|line| line.split_once(' ').expect("a name and a value"));
        let chosen = named.filter(|(name, _)| beginnings.iter().any(|beginning| name.starts_with(beginning)));
        Lines(RefCell::new(chosen.collect()))
    }

    fn text(&self, name: &str) -> &'static str {
        self.0.borrow_mut().remove(name).unwrap_or_else(|| panic!("no line {name}"))
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        hex(self.text(name))
    }

    fn done(self) {
        let left = self.0.into_inner();
        assert!(left.is_empty(), "nobody looked at {:?}", left.keys());
    }
}

/// The message of a frame that must be there wholly and alone.
fn unframed(name: &str, serial: i32, bytes: &[u8]) -> Vec<u8> {
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

fn original() -> &'static str {
    Lines::of(&["protocol/original/text"]).text("protocol/original/text")
}

/// Takes the frame `<call>/request` and checks that it holds the handshake and the call, and that we make the same bytes.
fn request(
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
type Answered<'a> = (Message, Result<Answer<'a>, Failure>);

/// Takes the frame `<call>/response`, as [`request`] does.
fn response(
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
    if answer.is_none() {
        // Java has one buffer for it, as we have.
        assert_eq!(framed(serial, &made), bytes, "{call}");
    }
}

const BOTH: HandshakeResponse<'_> =
    HandshakeResponse { matched: HandshakeMatch::Both, server_protocol: None, server_hash: None };

/// The server's answer when the client doesn't know it.
fn introduction(matched: HandshakeMatch) -> HandshakeResponse<'static> {
    HandshakeResponse { matched, server_protocol: Some(&PROTOCOL), server_hash: Some(*PROTOCOL_HASH) }
}

fn hello(client_hash: ProtocolHash, server_hash: ProtocolHash) -> HandshakeRequest<'static> {
    HandshakeRequest { client_hash, client_protocol: None, server_hash }
}

const KEY: Request<'_> = Request::GetValue { key: "key" };

fn value(value: &str) -> Answered<'_> {
    (Message::GetValue, Ok(Answer::Value(Some(value))))
}

fn long() -> String {
    "0123456789".repeat(900)
}

#[test]
fn protocols() {
    let lines = Lines::of(&["protocol/"]);
    assert_eq!(
        lines.text("protocol/extended/text"),
        PROTOCOL.as_str(),
        "it goes over the wire as Java prints it"
    );
    assert_eq!(lines.bytes("protocol/extended/md5"), *PROTOCOL_HASH);
    let original = lines.text("protocol/original/text");
    assert_eq!(lines.bytes("protocol/original/md5"), protocol_hash(original));
    ForeignProtocol::parse(original).expect("the original's protocol is one");
    lines.done();
}

#[test]
fn records() {
    let lines = Lines::of(&["record/"]);
    let uuid = "123e4567-e89b-12d3-a456-426614174000";
    let long = long();
    let long = long.as_str();
    let plain =
        KeyValue { key: "key", value: "value", timestamp: 1_400_000_000_000, source: 3, ttl: 0, uuid };
    let expected = [
        ("plain", plain),
        ("marker", KeyValue { key: "deleted", value: "", ttl: -1, ..plain }),
        (
            "unicode",
            KeyValue {
                key: "clé ☃",
                value: "🦀 cle\u{301}",
                timestamp: 1,
                source: 1,
                ttl: 1_900_000_000_000,
                uuid: "u",
            },
        ),
        (
            "extremes",
            KeyValue { key: "", value: "", timestamp: i64::MIN, source: i32::MAX, ttl: i64::MAX, uuid: "" },
        ),
        ("long", KeyValue { key: "key", value: long, timestamp: 0, source: i32::MIN, ttl: 0, uuid: "" }),
    ];
    for (name, record) in expected {
        let bytes = lines.bytes(&format!("record/{name}"));
        assert_eq!(KeyValue::decode(&bytes), Ok(record), "{name}");
        let mut made = Vec::new();
        record.encode(&mut made);
        assert_eq!(made, bytes, "{name}");
    }
    lines.done();
}

#[test]
fn an_unknown_client_and_all_of_the_originals_calls() {
    let lines = Lines::of(&["unknown/"]);
    let text = original();
    let foreign = ForeignProtocol::parse(text).expect("the original's protocol is one");
    let foreign = Some(&foreign);
    let hash = protocol_hash(text);

    // It takes the server for one of its own kind, and is not known; the second time it says what it is.
    let guess = hello(hash, hash);
    request(&lines, "unknown/getValue/request", 1, Some(guess), foreign, Some(&KEY));
    response(&lines, "unknown/getValue/response", 1, Some(introduction(HandshakeMatch::None)), None);
    let told = HandshakeRequest { client_protocol: Some(text), ..hello(hash, *PROTOCOL_HASH) };
    request(&lines, "unknown/getValue/request-2", 2, Some(told), foreign, Some(&KEY));
    response(&lines, "unknown/getValue/response-2", 2, Some(BOTH), Some(&value("value")));

    let long = long();
    let long = long.as_str();
    let null = |message| (message, Ok(Answer::Null));
    let refusal = Failure::Text("the key is missing or blank".to_owned());
    let calls = [
        (
            "getValue-missing",
            Request::GetValue { key: "missing" },
            (Message::GetValue, Ok(Answer::Value(None))),
        ),
        ("getValue-unicode", Request::GetValue { key: "clé ☃" }, value("🦀 cle\u{301}")),
        ("getValue-long", Request::GetValue { key: "long" }, value(long)),
        ("setValue", Request::SetValue { key: "key", value: "value" }, null(Message::SetValue)),
        ("setValue-empty", Request::SetValue { key: "key", value: "" }, null(Message::SetValue)),
        ("setValue-long", Request::SetValue { key: "long", value: long }, null(Message::SetValue)),
        ("delete", Request::Delete { key: "key" }, null(Message::Delete)),
        ("getValue-refused", Request::GetValue { key: "" }, (Message::GetValue, Err(refusal))),
    ];
    for (serial, (call, asked, answer)) in (3..).zip(calls) {
        request(&lines, &format!("unknown/{call}/request"), serial, None, foreign, Some(&asked));
        response(&lines, &format!("unknown/{call}/response"), serial, None, Some(&answer));
    }
    lines.done();

    // The shortcut for a value that is encoded already makes Java's bytes too.
    let bytes = Lines::of(&["unknown/getValue-long/response"]).bytes("unknown/getValue-long/response");
    let record = KeyValue { key: "", value: long, timestamp: 0, source: 0, ttl: 0, uuid: "" };
    let mut encoded = Vec::new();
    record.encode(&mut encoded);
    let mut made = Vec::new();
    // Behind the empty key; the numbers and the empty uuid are a byte each.
    put_value_answer(&mut made, &encoded[1..encoded.len() - 4]);
    assert_eq!(made, unframed("getValue-long", 5, &bytes));
}

#[test]
fn a_client_that_the_server_knows() {
    let lines = Lines::of(&["client-known/", "same/", "ping/"]);
    let text = original();
    let foreign = ForeignProtocol::parse(text).expect("the original's protocol is one");
    let foreign = Some(&foreign);
    let hash = protocol_hash(text);
    let guess = Some(hello(hash, hash));
    let introduced = Some(introduction(HandshakeMatch::Client));
    let informed = Some(hello(hash, *PROTOCOL_HASH));

    request(&lines, "client-known/getValue/request", 1, guess, foreign, Some(&KEY));
    response(&lines, "client-known/getValue/response", 1, introduced, Some(&value("value")));
    request(&lines, "client-known/reconnected/request", 1, informed, foreign, Some(&KEY));
    response(&lines, "client-known/reconnected/response", 1, Some(BOTH), Some(&value("value")));

    request(&lines, "ping/getRemote/request", 1, guess, foreign, None);
    response(&lines, "ping/getRemote/response", 1, introduced, None);
    request(&lines, "ping/getValue/request", 2, None, foreign, Some(&KEY));
    response(&lines, "ping/getValue/response", 2, None, Some(&value("value")));

    let same = Some(hello(*PROTOCOL_HASH, *PROTOCOL_HASH));
    request(&lines, "same/getValue/request", 1, same, None, Some(&KEY));
    response(&lines, "same/getValue/response", 1, Some(BOTH), Some(&value("value")));
    lines.done();
}

#[test]
fn a_server_of_the_originals_own_protocol() {
    let lines = Lines::of(&["original/"]);
    let hash = protocol_hash(original());
    request(&lines, "original/getValue/request", 1, Some(hello(hash, hash)), None, Some(&KEY));
    response(&lines, "original/getValue/response", 1, Some(BOTH), Some(&value("value")));
    lines.done();
}

#[test]
fn metadata_is_passed_over() {
    let lines = Lines::of(&["metadata/"]);
    let hash = protocol_hash(original());
    // We write none, so these are only read.
    let message = |name, serial| unframed(name, serial, &lines.bytes(name));

    let first = message("metadata/getValue/request", 1);
    let (handshake, call) = HandshakeRequest::decode(&first).expect("a handshake");
    assert_eq!(handshake, hello(hash, hash));
    assert_eq!(Request::decode(call, None), Ok(Some(KEY)));
    let first = message("metadata/getValue/response", 1);
    let (handshake, answer) = HandshakeResponse::decode(&first).expect("a handshake");
    assert_eq!(handshake, introduction(HandshakeMatch::Client));
    assert_eq!(Answer::decode(Message::GetValue, answer), Ok(Ok(Answer::Value(Some("value")))));

    let expected = Request::SetValue { key: "key", value: "value" };
    assert_eq!(Request::decode(&message("metadata/setValue/request", 2), None), Ok(Some(expected)));
    let answer = message("metadata/setValue/response", 2);
    assert_eq!(Answer::decode(Message::SetValue, &answer), Ok(Ok(Answer::Null)));
    lines.done();
}

#[test]
fn a_client_of_a_message_that_the_server_lacks() {
    let lines = Lines::of(&["more-messages/"]);
    let message = |name, serial| unframed(name, serial, &lines.bytes(name));
    let first = message("more-messages/increment/request", 1);
    let (guess, call) = HandshakeRequest::decode(&first).expect("a handshake");
    assert_eq!(guess, hello(guess.client_hash, guess.client_hash));
    assert!(matches!(Request::decode(call, None), Err(CallError::Message(_))));
    let none = Some(introduction(HandshakeMatch::None));
    response(&lines, "more-messages/increment/response", 1, none, None);

    let second = message("more-messages/increment/request-2", 2);
    let (told, call) = HandshakeRequest::decode(&second).expect("a handshake");
    let text = told.client_protocol.expect("it tells its protocol");
    assert_eq!((told.client_hash, told.server_hash), (guess.client_hash, *PROTOCOL_HASH));
    assert_eq!(protocol_hash(text), told.client_hash, "the hash is of the text as it is sent");
    let foreign = ForeignProtocol::parse(text).expect("it is a protocol");
    let Err(CallError::Message(refusal)) = Request::decode(call, Some(&foreign)) else {
        panic!("increment was read")
    };
    assert!(refusal.contains("increment"), "{refusal}");

    // Java's server says it in its own words; ours go the same way, as those of a call that has no message.
    let bytes = message("more-messages/increment/response-2", 2);
    let (handshake, answer) = HandshakeResponse::decode(&bytes).expect("a handshake");
    assert_eq!(handshake, BOTH);
    let Ok(Err(failure)) = Answer::decode(Message::GetValue, answer) else {
        panic!("increment was answered")
    };
    let Failure::Text(text) = &failure else { panic!("{failure:?}") };
    assert!(text.contains("No message named increment"), "{text}");
    let mut made = Vec::new();
    failure.encode(None, &mut made);
    assert_eq!(made, answer);

    request(&lines, "more-messages/getValue/request", 3, None, Some(&foreign), Some(&KEY));
    response(&lines, "more-messages/getValue/response", 3, None, Some(&value("value")));
    lines.done();
}

#[test]
fn every_message_of_the_extended_protocol() {
    const WRITTEN: i64 = 1_400_000_000_000;
    let lines = Lines::of(&["extended/"]);
    let position = |partition, offset| Position { partition, offset };
    let record = |key, value, uuid| KeyValue { key, value, timestamp: WRITTEN, source: 1, ttl: 0, uuid };
    let found = ReadAnswer {
        record: Some(record("key", "value of key", "uuid of key")),
        position: position(3, 42),
        timestamp: Some(WRITTEN),
        served_from: ServedFrom::Peer,
    };
    let missing = ReadAnswer {
        record: None,
        position: position(2, -1),
        timestamp: None,
        served_from: ServedFrom::Store,
    };
    let deleted = ReadAnswer {
        record: None,
        position: position(1, 1 << 40),
        timestamp: Some(WRITTEN),
        served_from: ServedFrom::Cache,
    };
    let set = WriteAnswer {
        position: position(0, 1000),
        timestamp: WRITTEN,
        ttl: 1_900_000_000_000,
        uuid: "a uuid",
    };
    let delete = WriteAnswer { ttl: -1, ..set };
    let blank =
        RequestError { code: ErrorCode::BadRequest, message: "the key is missing or blank".to_owned() };
    let too_many = RequestError { code: ErrorCode::TooLarge, message: "too many".to_owned() };
    let operations = vec![
        Operation::Get { key: "key" },
        Operation::Get { key: "missing" },
        Operation::Set { key: "key", value: "value", ttl: 60_000 },
        Operation::Delete { key: "deleted" },
        Operation::Set { key: "", value: "value", ttl: 0 },
    ];
    let results = vec![
        BatchResult::Read(found),
        BatchResult::Read(missing),
        BatchResult::Written(set),
        BatchResult::Written(delete),
        BatchResult::Failed(blank.clone()),
    ];
    let page = ScanPage {
        records: vec![
            (record("ka", "value of ka", "uuid of ka"), position(0, 7)),
            (record("kb", "value of kb", "uuid of kb"), position(3, 1 << 33)),
        ],
        cursor: "a cursor",
    };
    let empty = ScanPage { records: vec![], cursor: "" };
    let scan = ScanRequest { prefix: "k", start: "ka", end: "kz", limit: 2, cursor: "" };
    let calls = [
        ("getRecord", Request::GetRecord { key: "key" }, Ok(Answer::Read(found))),
        ("getRecord-missing", Request::GetRecord { key: "missing" }, Ok(Answer::Read(missing))),
        ("getRecord-deleted", Request::GetRecord { key: "deleted" }, Ok(Answer::Read(deleted))),
        ("getRecord-refused", Request::GetRecord { key: "" }, Err(Failure::Declared(blank))),
        (
            "setRecord",
            Request::SetRecord { key: "key", value: "value", ttl: 60_000 },
            Ok(Answer::Written(set)),
        ),
        ("deleteRecord", Request::DeleteRecord { key: "deleted" }, Ok(Answer::Written(delete))),
        ("batch", Request::Batch(operations), Ok(Answer::Batch(results))),
        ("batch-empty", Request::Batch(vec![]), Ok(Answer::Batch(vec![]))),
        (
            "batch-refused",
            Request::Batch(vec![Operation::Get { key: "too many" }]),
            Err(Failure::Declared(too_many)),
        ),
        ("scan", Request::Scan(scan), Ok(Answer::Page(page))),
        (
            "scan-empty",
            Request::Scan(ScanRequest { prefix: "none", limit: 1000, ..ScanRequest::default() }),
            Ok(Answer::Page(empty)),
        ),
    ];
    for (serial, (call, asked, answer)) in (1..).zip(calls) {
        // The first call carries the handshake of a client and a server of one protocol.
        let first = serial == 1;
        let hello = first.then(|| hello(*PROTOCOL_HASH, *PROTOCOL_HASH));
        request(&lines, &format!("extended/{call}/request"), serial, hello, None, Some(&asked));
        let message = asked.message();
        response(
            &lines,
            &format!("extended/{call}/response"),
            serial,
            first.then_some(BOTH),
            Some(&(message, answer)),
        );
    }
    lines.done();
}

const GROUPS: [&str; 10] = [
    "protocol",
    "record",
    "unknown",
    "client-known",
    "same",
    "ping",
    "original",
    "metadata",
    "more-messages",
    "extended",
];

#[test]
fn frames_are_found_however_the_stream_is_cut() {
    let lines = Lines::of(&[""]);
    let names: Vec<&str> = lines.0.borrow().keys().copied().collect();
    let groups: BTreeSet<&str> = names.iter().filter_map(|name| name.split('/').next()).collect();
    assert_eq!(groups, BTreeSet::from(GROUPS), "a group that no test looks at");
    let frames = names.iter().filter(|name| name.contains("/request") || name.contains("/response"));
    let mut count = 0;
    for name in frames {
        let bytes = lines.bytes(name);
        let serial = i32::from_be_bytes(*bytes.first_chunk().expect("a serial"));
        let whole = unframed(name, serial, &bytes);
        let mut reader = FrameReader::new(LIMITS);
        for end in 0..bytes.len() {
            assert_eq!(reader.next(&bytes[..end], &mut Vec::new()), Ok(None), "{name} cut at {end}");
        }
        let mut scratch = Vec::new();
        let found = reader.next(&bytes, &mut scratch).map(|frame| frame.map(|frame| frame.message.to_vec()));
        assert_eq!(found, Ok(Some(whole)), "{name}");
        count += 1;
    }
    assert!(count > 60, "only {count} frames");
}
