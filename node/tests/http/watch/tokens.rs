//! Tokens that are of no use: a gap says why, and all that is there follows.

use std::sync::Arc;
use std::time::Duration;

use bitacora_node::clock::WallTime;
use bitacora_node::log::LogTag;
use bitacora_node::service::changes::Token;
use bitacora_protocol::NextOffset;

use super::super::{Running, embedded_log};
use super::{Watch, set};

/// A token that goes on from now.
async fn token(node: &Running) -> Token {
    let (token, _) = Watch::begin(node, "", "").await.event("current").await;
    Token::decode(&token).expect("a token")
}

/// What follows a token of no use, over each interface that is HTTP: why, and then what is there.
async fn is_gap(node: &Running, token: &Token, words: &str) {
    let token = token.encode();
    let mut watch = Watch::begin(node, &format!("?since={token}"), "").await;
    let (id, data) = watch.event("gap").await;
    assert!(!id.is_empty() && data["reason"].as_str().is_some_and(|why| why.contains(words)), "{data}");
    assert_eq!(watch.event("set").await.1["key"], "a");
    watch.event("current").await;
    // With the gap's own token, the same follows, and no other gap.
    let mut again = Watch::begin(node, &format!("?since={id}"), "").await;
    assert!(again.until("event: set\n").await.find("event: gap").is_none());
    let answer = node.ask(&format!("GET /rpc/changes?since={token}"), &[], "").await.json();
    let events: Vec<_> =
        answer["events"].as_array().expect("a list").iter().map(|event| &event["event"]).collect();
    assert_eq!(events, ["gap", "set"], "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_another_log() {
    let node = Running::start(&[]).await;
    set(&node, "a", "v").await;
    let mut token = token(&node).await;
    token.log = LogTag(token.log.0 ^ 1);
    is_gap(&node, &token, "another log").await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_records_that_the_log_does_not_have() {
    let node = Running::start(&[]).await;
    set(&node, "a", "v").await;
    let mut token = token(&node).await;
    let next = token.told.next.first_mut().expect("a partition");
    *next = NextOffset(next.0 + 1_000);
    is_gap(&node, &token, "does not have").await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_older_than_delete_retention() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = embedded_log(folder.path()).with_delete_retention(Duration::from_secs(3_600));
    let node = Running::start_over(folder, Arc::new(log), &[]).await;
    set(&node, "a", "v").await;
    let mut token = token(&node).await;
    let hours_ago = |hours: i64| WallTime::from_ms(bitacora_node::now_ms() - hours * 3_600_000);
    token.told.expired_until = hours_ago(2);
    is_gap(&node, &token, "DELETE_RETENTION").await;
    // One of now has none.
    token.told.expired_until = hours_ago(0);
    let answer = node.ask(&format!("GET /rpc/changes?since={}", token.encode()), &[], "").await.json();
    assert_eq!(answer["events"].as_array().map(Vec::len), Some(0), "{answer}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_was_changed_on_the_way() {
    let node = Running::start(&[]).await;
    set(&node, "a", "v").await;
    let token = token(&node).await.encode();
    let changed = |at: usize| {
        let mut bytes = token.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        String::from_utf8(bytes).expect("text")
    };
    let (first, middle, cut) = (changed(0), changed(token.len() / 2), &token[..token.len() - 1]);
    for since in [&*first, &middle, cut, "%00", "🦀", &"A".repeat(50_000)] {
        for path in ["/watch", "/rpc/changes"] {
            let since = since.replace('🦀', "%F0%9F%A6%80");
            let answer = node.ask(&format!("GET {path}?since={since}"), &[], "").await;
            assert!(answer.refusal(400).contains("no token of a watch"), "{answer:?}");
        }
    }
    node.stop().await;
}
