//! Writes that are answered when they are shown.

use std::sync::Arc;

use bitacora_node::data_dir::DataDir;
use bitacora_node::log::embedded::EmbeddedLog;
use tempfile::TempDir;
use tokio::net::TcpListener;

use super::Running;
use super::support::{ready, start};

/// A node that shares a log with the ones before, and has another member.
async fn beside(log: &Arc<EmbeddedLog>, other: Option<String>) -> Running {
    let folder = tempfile::tempdir().expect("a folder");
    let log = Arc::<EmbeddedLog>::clone(log);
    let (node, address) = start(&folder.path().join("node"), log, &[], other).await;
    ready(&node).await;
    Running { node, address, folder }
}

fn log(folder: &TempDir) -> Arc<EmbeddedLog> {
    let dir = DataDir::open(&folder.path().join("log")).expect("a folder");
    Arc::new(EmbeddedLog::open(dir, "topic", 4).expect("a log"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_every_member_shows_is_read_everywhere() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = log(&folder);
    let one = beside(&log, None).await;
    let two = beside(&log, Some(one.address.api())).await;
    for n in 0..30 {
        let key = format!("k%26{n}");
        let written = two.ask(&format!("POST /rpc?key={key}&value={n}&visible=all"), &[], "").await;
        assert_eq!((written.status, written.header("bitacora-not-visible")), (200, None), "{written:?}");
        for node in [&one, &two] {
            let read = node.ask(&format!("GET /rpc?key={key}"), &[], "").await;
            assert_eq!((read.status, &read.json()["value"]), (200, &n.to_string().into()), "{read:?}");
        }
        let deleted = two.ask(&format!("DELETE /rpc?key={key}&visible=all"), &[], "").await;
        assert_eq!((deleted.status, deleted.header("bitacora-not-visible")), (200, None), "{deleted:?}");
        assert_eq!(one.ask(&format!("GET /rpc?key={key}"), &[], "").await.status, 404);
        let written = two.ask(&format!("POST /rpc?key={key}&value=h&visible=here"), &[], "").await;
        assert_eq!((written.status, written.header("bitacora-not-visible")), (200, None), "{written:?}");
        assert_eq!(two.ask(&format!("GET /rpc?key={key}"), &[], "").await.json()["value"], "h");
    }
    two.stop().await;
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_away_is_named_and_the_write_is_done() {
    let folder = tempfile::tempdir().expect("a folder");
    // Accepts connections, and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let member = silent.local_addr().expect("bound").to_string();
    let running = beside(&log(&folder), Some(member.clone())).await;
    let query = "visible=all&timeout=50";
    let written = running.ask(&format!("POST /rpc?key=k&value=v&{query}"), &[], "").await;
    let named = written.header("bitacora-not-visible");
    assert!(named.is_some_and(|named| named.contains(&member)), "{written:?}");
    assert_eq!((written.status, &written.json()["value"]), (200, &"v".into()), "{written:?}");
    let line = "{\"op\":\"set\",\"key\":\"k\",\"value\":\"w\",\"visible\":\"all\",\"timeout\":\"50ms\"}\n";
    let answer = running.ask("POST /rpc/batch", &[], line).await;
    let named = answer.body.split_once("\"notVisible\":").map(|(_, named)| named);
    assert!(named.is_some_and(|named| named.contains(&member)), "{answer:?}");
    assert_eq!(running.value("k").await.as_deref(), Some("w"));
    let form = "key=k&value=f&visible=here";
    let kind = "Content-Type: application/x-www-form-urlencoded";
    let written = running.ask("POST /rpc", &[kind], form).await;
    assert_eq!((written.status, written.header("bitacora-not-visible")), (200, None), "{written:?}");
    drop(silent);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_writes_nothing() {
    let running = Running::start(&[]).await;
    for (query, says) in [
        ("visible=maybe", "'maybe' is none of acknowledged, here, all"),
        ("visible=", "is none of"),
        ("visible=all&timeout=61s", "60 s at most"),
        ("timeout=abc", "timeout: 'abc' is not a time"),
        ("visible=all&visible=all", "'visible' twice"),
    ] {
        for call in ["POST /rpc?key=k&value=v", "DELETE /rpc?key=k"] {
            let sentence = running.ask(&format!("{call}&{query}"), &[], "").await.refusal(400);
            assert!(sentence.contains(says), "{call}&{query}: {sentence}");
        }
    }
    assert_eq!(running.value("k").await, None);
    running.stop().await;
}
