//! What clients of the original's protocol say, and servers of it.

use bitacora_protocol::rpc::{
    Answer, CallError, Failure, ForeignProtocol, HandshakeMatch, HandshakeRequest, HandshakeResponse,
    Message, PROTOCOL_HASH, Request, protocol_hash, put_value_answer,
};

use crate::conversation::{
    BOTH, KEY, Lines, hello, introduction, long, original, request, response, unframed, value,
};

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

    // The shortcut for a value as bytes makes Java's bytes too.
    let bytes = Lines::of(&["unknown/getValue-long/response"]).bytes("unknown/getValue-long/response");
    let mut made = Vec::new();
    put_value_answer(&mut made, long.as_bytes());
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
