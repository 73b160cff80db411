//! Pages of other origins: what a browser sends for them can't write, unless the origin is allowed.

use super::Running;

const FOREIGN: &str = "Origin: https://evil.example";
const WRITES: [(&str, &str); 3] = [
    ("POST /rpc?key=k&value=v", ""),
    ("DELETE /rpc?key=kept", ""),
    ("POST /rpc/batch", "{\"op\":\"set\",\"key\":\"k\",\"value\":\"v\"}\n"),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_another_origin_can_not_write() {
    let running = Running::start(&[]).await;
    running.ask("POST /rpc?key=kept&value=v", &[], "").await;
    for headers in [
        &[FOREIGN][..],
        &["Origin: null"],
        &["Origin: http://node:81"],
        &["Origin: http://node.evil.example"],
        &["Sec-Fetch-Site: cross-site"],
        &["Sec-Fetch-Site: same-site"],
        &["Sec-Fetch-Site: Cross-Site", "Origin: http://node"],
        &["Sec-Fetch-Site: cross-site", FOREIGN, "Sec-Fetch-Mode: no-cors"],
        &["Sec-Fetch-Site: what"],
    ] {
        for (line, body) in WRITES {
            let sentence = running.ask(line, headers, body).await.refusal(403);
            assert!(sentence.contains("ALLOWED_ORIGINS"), "{headers:?}: {sentence}");
        }
        assert_eq!(running.ask("GET /rpc?key=none", headers, "").await.status, 404, "{headers:?}");
    }
    assert_eq!(running.value("k").await, None);
    assert_eq!(running.value("kept").await.as_deref(), Some("v"));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_and_pages_of_the_own_origin_write() {
    let running = Running::start(&[]).await;
    for headers in [
        &[][..],
        &["Origin: http://node"],
        &["Origin: https://NODE:443"],
        &["Origin: http://node:80"],
        &["Sec-Fetch-Site: same-origin", "Origin: http://node"],
        // A proxy may have changed the host; the browser knows.
        &["Sec-Fetch-Site: same-origin", "Origin: https://public.example"],
        &["Sec-Fetch-Site: none"],
    ] {
        for (line, body) in WRITES {
            let answer = running.ask(line, headers, body).await;
            assert_eq!(answer.status, 200, "{headers:?}: {answer:?}");
            assert_eq!(answer.header("access-control-allow-origin"), None, "{headers:?}");
        }
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_an_allowed_origin_writes_and_reads() {
    let allowed = "https://app.example, http://localhost:3000";
    let running = Running::start(&["--allowed-origins", allowed]).await;
    let app = ["Sec-Fetch-Site: cross-site", "Origin: https://app.example"];
    for line in ["POST /rpc?key=k&value=v", "GET /rpc?key=none", "GET /status", "DELETE /rpc", "GET /nothing"]
    {
        let answer = running.ask(line, &app, "").await;
        assert_ne!(answer.status, 403, "{answer:?}");
        assert_eq!(answer.header("access-control-allow-origin"), Some("https://app.example"), "{line}");
        assert_eq!(answer.header("vary"), Some("origin"), "{line}");
        let exposed = answer.header("access-control-expose-headers").expect("readable headers");
        assert!(exposed.contains("bitacora-position") && exposed.contains("retry-after"), "{exposed}");
    }
    for origin in
        ["Origin: http://localhost", FOREIGN, "Origin: https://app.example.evil.example", "Origin: null"]
    {
        running.ask("POST /rpc?key=k&value=v", &[origin], "").await.refusal(403);
        let read = running.ask("GET /rpc?key=none", &[origin], "").await;
        assert_eq!(read.header("access-control-allow-origin"), None, "{origin}");
    }
    running.stop().await;
    let running = Running::start(&["--allowed-origins", "*"]).await;
    for headers in [
        &app[..],
        &[FOREIGN],
        &["Origin: null", "Sec-Fetch-Site: cross-site"],
        &["Sec-Fetch-Site: cross-site"],
    ] {
        assert_eq!(running.ask("POST /rpc?key=k&value=v", headers, "").await.status, 200, "{headers:?}");
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preflight_is_answered_for_allowed_origins() {
    let running = Running::start(&["--allowed-origins", "https://app.example"]).await;
    let asks = ["Access-Control-Request-Method: DELETE", "Access-Control-Request-Headers: content-type,x-a"];
    let ask = |origin: &'static str| [origin, asks[0], asks[1]];
    let answer = running.ask("OPTIONS /rpc?key=k", &ask("Origin: https://app.example"), "").await;
    assert_eq!((answer.status, &*answer.body), (204, ""), "{answer:?}");
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://app.example"));
    assert_eq!(answer.header("access-control-allow-methods"), Some("GET, HEAD, POST, DELETE"));
    assert_eq!(answer.header("access-control-allow-headers"), Some("content-type,x-a"));
    assert!(answer.header("access-control-max-age").is_some() && answer.header("vary").is_some());
    running.ask("OPTIONS /rpc?key=k", &ask(FOREIGN), "").await.refusal(403);
    running.ask("OPTIONS /nothing", &ask("Origin: https://app.example"), "").await.refusal(404);
    let plain = running.ask("OPTIONS /rpc?key=k", &[], "").await;
    plain.refusal(405);
    running.stop().await;
}
