//! Calls, by our own protocol and by one that declares them otherwise. What is read is written and read again alike.
#![no_main]

use std::sync::LazyLock;

use bitacora_protocol::rpc::{ForeignProtocol, PROTOCOL, Request};
use libfuzzer_sys::fuzz_target;

static FOREIGN: LazyLock<[ForeignProtocol; 2]> = LazyLock::new(|| {
    let other = r#"{"messages":{
        "setRecord":{"request":[{"name":"ttl","type":"int"},{"name":"more","type":"double"},
            {"name":"value","type":["null","bytes","boolean"]},{"name":"key","type":"string"}]},
        "scan":{"request":[{"name":"limit","type":"int"},{"name":"cursor","type":["string","null"]},{"name":"end","type":"bytes"},
            {"name":"start","type":"string"},{"name":"prefix","type":"string"},{"name":"f","type":"float"}]},
        "getValue":{"request":[{"name":"key","type":["null","string"]}]}}}"#;
    [PROTOCOL.as_str(), other].map(|text| ForeignProtocol::parse(text).expect("it is a protocol"))
});

fuzz_target!(|bytes: &[u8]| {
    for foreign in [None, Some(&FOREIGN[0]), Some(&FOREIGN[1])] {
        if let Ok(Some(request)) = Request::decode(bytes, foreign) {
            let mut again = Vec::new();
            request.encode(&mut again);
            assert_eq!(Request::decode(&again, None), Ok(Some(request)));
        }
    }
});
