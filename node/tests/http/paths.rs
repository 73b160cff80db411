//! A path is compared as it was sent, for every row of the table: nothing is resolved or decoded, and one slash at its end is of no
//! meaning.

use super::Running;

const PATHS: [(&str, &str); 11] = [
    ("GET", "/rpc"),
    ("GET", "/rpc/cluster"),
    ("GET", "/rpc/scan"),
    ("POST", "/rpc/batch"),
    ("GET", "/health"),
    ("GET", "/health/ready"),
    ("GET", "/health/live"),
    ("GET", "/status"),
    ("GET", "/status/members"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
];

/// Spellings of a path that RFC 3986 would resolve or decode to it.
fn other_spellings(path: &str) -> Vec<String> {
    let (parent, last) = path.rsplit_once('/').expect("it begins with a slash");
    let first = last.chars().next().expect("not empty");
    let rest = &last[first.len_utf8()..];
    vec![
        format!("/.{path}"),
        format!("/..{path}"),
        format!("{path}/."),
        format!("{path}/.."),
        format!("{path}/./"),
        format!("{path}//"),
        format!("/{path}"),
        format!("{parent}/./{last}"),
        format!("{parent}/x/../{last}"),
        format!("{parent}/%2e/{last}"),
        format!("{parent}/%2E%2e{path}"),
        format!("{parent}/%{:02x}{rest}", u32::from(first)),
        format!("{parent}/%2f{last}"),
        format!("{path}%2f"),
        format!("{path};v=1"),
        path.to_uppercase(),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_is_compared_as_it_was_sent() {
    let running = Running::start(&[]).await;
    for (method, path) in PATHS.into_iter().chain([("GET", "/snapshot")]) {
        for spelling in other_spellings(path) {
            for query in ["", "?key=k"] {
                let answer = running.ask(&format!("{method} {spelling}{query}"), &[], "").await;
                let sentence = answer.refusal(404);
                assert!(sentence.contains(&spelling), "{spelling}: {sentence}");
            }
        }
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slash_at_the_end_is_of_no_meaning() {
    let running = Running::start(&[]).await;
    for (method, path) in PATHS {
        let query = if path == "/rpc" || path == "/rpc/cluster" { "?key=none" } else { "" };
        let without = running.ask(&format!("{method} {path}{query}"), &[], "").await;
        let with = running.ask(&format!("{method} {path}/{query}"), &[], "").await;
        assert_ne!(without.header("content-type"), None);
        assert_eq!(
            (without.status, without.header("content-type")),
            (with.status, with.header("content-type"))
        );
        assert!(!with.body.contains("not a path"), "{with:?}");
        let wrong = running.ask(&format!("PATCH {path}/"), &[], "").await;
        wrong.refusal(405);
        assert!(wrong.header("allow").is_some_and(|allow| allow.contains(method)), "{wrong:?}");
    }
    // A slash alone is a path: the console's.
    assert_eq!(running.ask("GET /", &[], "").await.status, 200);
    running.stop().await;
}
