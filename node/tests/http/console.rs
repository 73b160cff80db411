//! The console at `/`, and what it needs of a node. What it does in a browser: the suite `console` of the end-to-end tests.

use super::Running;

#[tokio::test(flavor = "multi_thread")]
async fn the_page_comes_whole_with_a_strict_policy() {
    let running = Running::start(&[]).await;
    let page = running.ask("GET /", &["Accept: text/html"], "").await;
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    assert!(page.body.starts_with("<!doctype html>") && page.body.ends_with("</html>\n"), "it is whole");
    let policy = page.header("content-security-policy").expect("a policy");
    for part in [
        "default-src 'none';",
        "script-src 'sha256-",
        "style-src 'sha256-",
        "require-trusted-types-for 'script';",
    ] {
        assert!(policy.contains(part), "{policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    // The page may ask the members whether they are there, and nobody else.
    let own = format!("connect-src 'self' http://{}", running.address.api());
    assert!(policy.ends_with(&own), "{policy}");
    assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
    let head = running.ask("HEAD /", &[], "").await;
    assert_eq!((head.status, &*head.body, head.header("content-security-policy")), (200, "", Some(policy)));
    assert_eq!(running.ask("POST /", &[], "").await.header("allow"), Some("GET, HEAD"));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_members_are_told_with_their_status() {
    let running = Running::start(&[]).await;
    let members = running.ask("GET /status/members", &[], "").await.json();
    assert_eq!(members["members"][0]["address"], running.address.api());
    assert_eq!(members["members"][0]["status"]["ready"], true);
    assert_eq!(members["members"].as_array().map(Vec::len), Some(1));
    running.stop().await;
}
