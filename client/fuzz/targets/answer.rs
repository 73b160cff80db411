//! What a client reads: answers to every message, and the record of the log.
#![no_main]

use bitacora_protocol::record::KeyValue;
use bitacora_protocol::rpc::{Answer, Message};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    for message in Message::ALL {
        match Answer::decode(message, bytes) {
            Ok(Ok(answer)) => {
                let mut again = Vec::new();
                answer.encode(&mut again);
                assert_eq!(Answer::decode(message, &again), Ok(Ok(answer)));
            }
            Ok(Err(failure)) => {
                let mut again = Vec::new();
                failure.encode(Some(message), &mut again);
                assert_eq!(Answer::decode(message, &again), Ok(Err(failure)));
            }
            Err(_) => {}
        }
    }
    if let Ok(record) = KeyValue::decode(bytes) {
        let mut again = Vec::new();
        record.encode(&mut again);
        assert_eq!(KeyValue::decode(&again), Ok(record));
    }
});
