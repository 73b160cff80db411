//! What the body of a set is taken for.

use super::Running;

const FORM: &str = "Content-Type: application/x-www-form-urlencoded";

#[tokio::test(flavor = "multi_thread")]
async fn a_form_that_is_no_good_stores_nothing() {
    let running = Running::start(&[]).await;
    let kinds = [
        FORM,
        "Content-Type: Application/X-WWW-Form-Urlencoded",
        "Content-Type:application/x-www-form-urlencoded ; charset=UTF-8",
    ];
    for kind in kinds {
        for (body, says) in [
            ("value=50% off", "percent-encoding"),
            ("value=a&tll=30s", "'tll'"),
            ("value=a&value=b", "'value' twice"),
            ("value=a&ttl=60", "its unit is missing"),
            ("value=a&=b", "''"),
            ("value=%ff", "UTF-8"),
            ("key=k", "the key is given twice"),
            ("key=k&val=v", "'val'"),
            ("val=v&key=other", "'val'"),
            ("%76alue=a&b=c", "'b'"),
            ("Value=a", "'Value'"),
            ("ttl=30s", "no value"),
            ("timeout=1s", "no value"),
            ("visible=here", "no value"),
            ("", "no value"),
            ("https://example.org/?q=1&value=2", "'https://example.org/?q'"),
        ] {
            let answer = running.ask("POST /rpc?key=k", &[kind], body).await;
            let sentence = answer.refusal(400);
            assert!(sentence.contains(says), "{kind} {body:?}: {sentence}");
        }
    }
    let sentence = running.ask("POST /rpc", &[FORM], "key=k").await.refusal(400);
    assert!(sentence.contains("no value"), "{sentence}");
    assert_eq!(running.value("k").await, None);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn good_forms_and_raw_values_are_stored() {
    let running = Running::start(&[]).await;
    let upper = "Content-Type: APPLICATION/X-WWW-FORM-URLENCODED; charset=utf-8";
    for (kind, body, stored) in [
        (FORM, "value=a%26b+c", "a&b c"),
        (upper, "value=50%25+off&ttl=2h", "50% off"),
        (FORM, "value=", ""),
        // What `curl -d` sends.
        (FORM, "plain text", "plain text"),
        (FORM, "50% off", "50% off"),
        (FORM, "value", "value"),
        (FORM, r#"{"key":"a=b"}"#, r#"{"key":"a=b"}"#),
        (FORM, "a=1&b=2", "a=1&b=2"),
        ("Content-Type: text/plain", "value=50% off", "value=50% off"),
        ("Content-Type: Text/Plain; Charset=\"UTF-8\"", "key=1&value=2", "key=1&value=2"),
        ("Content-Encoding: identity", "raw", "raw"),
    ] {
        let answer = running.ask("POST /rpc?key=k", &[kind], body).await;
        assert_eq!(answer.status, 200, "{kind} {body:?}: {answer:?}");
        assert_eq!(answer.json()["value"], stored, "{kind} {body:?}");
    }
    let answer = running.ask("POST /rpc", &[upper], "key=in+a+form&value=v").await;
    assert_eq!(answer.json()["key"], "in a form");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_would_have_to_be_unpacked_are_415() {
    let running = Running::start(&[]).await;
    let lines = "{\"op\":\"set\",\"key\":\"k\",\"value\":\"v\"}\n";
    for header in [
        "Content-Type: multipart/form-data; boundary=x",
        "Content-Type: Multipart/Mixed",
        "Content-Encoding: gzip",
        "Content-Encoding: identity, br",
        "content-encoding: x-unknown",
        "Content-Type: text/plain; charset=utf-16le",
    ] {
        for (line, body) in
            [("POST /rpc?key=k", "v"), ("POST /rpc?key=k&value=v", ""), ("POST /rpc/batch", lines)]
        {
            let answer = running.ask(line, &[header], body).await;
            let sentence = answer.refusal(415);
            let named = header.rsplit([' ', '=']).next().unwrap_or_default();
            let named = if header.contains("boundary") { "multipart" } else { named };
            assert!(sentence.to_lowercase().contains(&named.to_lowercase()), "{header}: {sentence}");
        }
    }
    assert_eq!(running.value("k").await, None);
    let twice = ["Content-Type: text/plain", "Content-Type: application/x-www-form-urlencoded"];
    let sentence = running.ask("POST /rpc?key=k", &twice, "value=v").await.refusal(400);
    assert!(sentence.contains("content-type"), "{sentence}");
    running.stop().await;
}
