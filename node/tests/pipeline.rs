//! Calls that arrive together over Avro RPC are answered as each would be alone, though what they read is looked up together.

#[path = "support/rpc.rs"]
mod rpc;
mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bitacora_client::{Client, Visible};
use bitacora_node::data_dir::DataDir;
use bitacora_node::log::embedded::EmbeddedLog;
use bitacora_protocol::rpc::{Request, put_frame};
use bitacora_protocol::{Consistency, ReadOptions};

use self::rpc::{put_first_call, rpc_answers};

/// More than are looked up at a time.
const KEYS: usize = 100;

fn key(number: usize) -> String {
    format!("key-{number}")
}

/// A read of each key by one of the calls that read, in turn; among them are an empty frame, writes, and reads that are refused.
fn calls(keys: &[String]) -> Vec<Option<Request<'_>>> {
    let session = ReadOptions { consistency: Consistency::Session, ..ReadOptions::default() };
    let mut calls: Vec<Option<Request<'_>>> = Vec::new();
    for (number, key) in keys.iter().enumerate() {
        calls.push(Some(match number % 3 {
            // Other answers tell how far the log was read, which the writes change, and whether a sweep has been there.
            _ if number % 7 < 2 => Request::GetValue { key },
            0 => Request::GetValue { key },
            1 => Request::GetRecord { key },
            _ => Request::ReadRecord { key, read: ReadOptions::default() },
        }));
        match number % 25 {
            5 => calls.push(None),
            10 => calls.push(Some(Request::SetValue { key: "other", value: "v" })),
            15 => calls.push(Some(Request::GetValue { key: "" })),
            // Without a position: this is refused.
            20 => calls.push(Some(Request::ReadRecord { key, read: session })),
            _ => {}
        }
    }
    calls
}

fn put(out: &mut Vec<u8>, serial: i32, call: Option<&Request<'_>>) {
    put_frame(out, serial, |out| {
        if let Some(call) = call {
            call.encode(out);
        }
    });
}

/// The answers to calls in one write behind a first one, by their number.
async fn answers(address: &str, calls: &[(usize, Option<&Request<'_>>)]) -> BTreeMap<usize, Vec<u8>> {
    let mut frames = Vec::new();
    put_first_call(&mut frames, -1, &Request::GetValue { key: "first" });
    for (number, call) in calls {
        put(&mut frames, *number as i32, *call);
    }
    let answers = rpc_answers(address, &frames, calls.len() + 1).await.into_iter();
    answers.filter(|(serial, _)| *serial >= 0).map(|(serial, content)| (serial as usize, content)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_in_one_write_is_answered_as_one_by_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = DataDir::open(&folder.path().join("log")).expect("a folder");
    let log = Arc::new(EmbeddedLog::open(log, "topic", 4).expect("a log"));
    let (node, address) = support::start(&folder.path().join("node"), log, &[], None).await;
    support::ready(&node).await;
    let address = format!("127.0.0.1:{}", address.avro_port);
    let client = Client::builder().nodes([address.clone()]).build().await.expect("a client");
    let keys: Vec<String> = (0..KEYS).map(key).collect();
    for (number, key) in keys.iter().enumerate() {
        match number % 7 {
            // Never written.
            0 => {}
            1 => {
                client
                    .write(key, "v")
                    .ttl(Duration::from_millis(1))
                    .visible(Visible::Here)
                    .await
                    .expect("written");
            }
            2 => {
                client.set(key, "v").await.expect("written");
                client.remove(key).visible(Visible::Here).await.expect("deleted");
            }
            _ => {
                client.write(key, &format!("value {number}")).visible(Visible::Here).await.expect("written");
            }
        }
    }
    let calls = calls(&keys);
    let numbered: Vec<_> = calls.iter().map(Option::as_ref).enumerate().collect();
    // The first time from the store, then from the cache, as the answers tell.
    let mut alone = BTreeMap::new();
    for call in numbered.iter().chain(&numbered) {
        alone.extend(answers(&address, std::slice::from_ref(call)).await);
    }
    for _ in 0..3 {
        let together = answers(&address, &numbered).await;
        assert_eq!(together.len(), alone.len());
        for (number, content) in &together {
            assert_eq!(content, &alone[number], "{:?}", calls[*number]);
        }
    }
}
