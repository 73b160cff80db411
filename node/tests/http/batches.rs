//! How a batch's body may begin, and what is told of lines that are wrong.

use super::{Answer, Running, request};

const LINE: &str = r#"{"op":"set","key":"k","value":"v"}"#;

async fn results(running: &Running, body: &[u8]) -> Vec<serde_json::Value> {
    let headers = ["Content-Type: application/x-ndjson", "Accept-Encoding: identity"];
    let answer = Answer::parse(&running.exchange(&request("POST /rpc/batch", &headers, body)).await);
    assert_eq!(answer.status, 200, "{answer:?}");
    // Results begin with a brace, the lengths of chunks do not.
    let lines = answer.body.lines().filter(|line| line.starts_with('{'));
    lines.map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_byte_order_mark_is_skipped_at_the_start_only() {
    let running = Running::start(&[]).await;
    let found = results(&running, format!("\u{feff}{LINE}\n{LINE}\n").as_bytes()).await;
    assert_eq!(found.iter().map(|line| line["status"].clone()).collect::<Vec<_>>(), [200, 200]);
    let found = results(&running, format!("\u{feff}\n{LINE}").as_bytes()).await;
    assert_eq!((found.len(), &found[0]["status"]), (1, &200.into()));
    let found = results(&running, format!("{LINE}\n\u{feff}{LINE}\n").as_bytes()).await;
    assert_eq!((&found[0]["status"], &found[1]["status"]), (&200.into(), &400.into()));
    let sentence = found[1]["message"].as_str().expect("a sentence");
    assert!(sentence.starts_with("line 2: ") && sentence.contains("byte order mark"), "{sentence}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn utf_16_is_named_once() {
    let running = Running::start(&[]).await;
    let text = format!("{LINE}\n{LINE}\n");
    let little: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let big: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
    for body in [&[b"\xff\xfe", &little[..]].concat(), &[b"\xfe\xff", &big[..]].concat(), &little, &big] {
        let found = results(&running, body).await;
        assert_eq!((found.len(), &found[0]["status"]), (1, &400.into()), "{found:?}");
        let sentence = found[0]["message"].as_str().expect("a sentence");
        assert!(sentence.contains("UTF-16") && sentence.contains("UTF-8"), "{sentence}");
    }
    assert_eq!(running.value("k").await, None);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_lines_are_told_in_sentences() {
    let running = Running::start(&[]).await;
    for (line, says) in [
        (r#"{"op":"set","key":"k","value":"v","ttl":60}"#, "such as \"60s\" or \"60ms\""),
        (r#"{"op":"set","key":"k","value":"v","ttl":"60"}"#, "write 60s or 60ms"),
        (r#"{"op":"set","key":"k","value":"v","ttl":[]}"#, "'ttl' is a list, not a string"),
        (r#"{"op":"set","key":"k","value":7}"#, "'value' is the number 7, not a string"),
        (r#"{"op":"fly","key":"k"}"#, "op is get, set or delete"),
        (r#"["op"]"#, "it is a list; an operation is a JSON object"),
        ("op=set", "it is no JSON"),
    ] {
        let found = results(&running, line.as_bytes()).await;
        assert_eq!((found.len(), &found[0]["status"]), (1, &400.into()), "{found:?}");
        let sentence = found[0]["message"].as_str().expect("a sentence");
        assert!(sentence.starts_with("line 1: ") && sentence.contains(says), "{sentence}");
        assert!(!sentence.contains("enum") && !sentence.contains("variant"), "{sentence}");
    }
    assert_eq!(running.value("k").await, None);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_needs_its_unit_in_every_call() {
    let running = Running::start(&[]).await;
    let form = "Content-Type: application/x-www-form-urlencoded";
    for (line, headers, body) in [
        ("POST /rpc?key=k&value=v&ttl=60", &[][..], ""),
        ("POST /rpc?key=k", &[form], "value=v&ttl=60"),
        ("POST /rpc?key=k&ttl=60", &["Content-Type: text/plain"], "v"),
    ] {
        let sentence = running.ask(line, headers, body).await.refusal(400);
        assert!(sentence.contains("write 60s or 60ms"), "{line}: {sentence}");
    }
    assert_eq!(running.value("k").await, None);
    assert_eq!(running.ask("POST /rpc?key=k&value=v&ttl=60s", &[], "").await.status, 200);
    let sentence = running.ask("GET /rpc?key=k&timeout=soon", &[], "").await.refusal(400);
    assert!(sentence.contains("or a number of ms"), "{sentence}");
    for timeout in ["60", "60ms"] {
        let answer = running.ask(&format!("GET /rpc?key=none&timeout={timeout}"), &[], "").await;
        assert_eq!(answer.status, 404, "{timeout}");
    }
    running.stop().await;
}
