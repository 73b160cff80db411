//! What a node takes is what it says that it takes, no less and no more.

use super::super::Running;
use super::Description;

#[tokio::test(flavor = "multi_thread")]
async fn paths_have_the_methods_that_are_described() {
    let running = Running::start(&[]).await;
    let description = Description::of(&running).await;
    for path in description.0["paths"].as_object().expect("paths").keys() {
        let refused = running.ask(&format!("BREW {path}"), &[], "").await;
        refused.refusal(405);
        let allowed = refused.header("allow").expect("those that there are").to_owned();
        let mut allowed: Vec<&str> = allowed.split(", ").collect();
        let mut described: Vec<String> =
            description.operations().filter(|operation| operation.path == path).map(|it| it.method).collect();
        allowed.sort_unstable();
        described.sort_unstable();
        assert_eq!(allowed, described, "{path}");
    }
    running.stop().await;
}

/// A node names the parameters that it knows when it is given one that it doesn't.
#[tokio::test(flavor = "multi_thread")]
async fn queries_have_the_parameters_that_are_described() {
    const KNOWN: &str = "known here: ";
    let running = Running::start(&[]).await;
    let description = Description::of(&running).await;
    for operation in description.operations().filter(|operation| operation.method != "HEAD") {
        let described = operation.parameters("query");
        let line = format!("{} {}?unknown=1", operation.method, operation.path);
        let answer = running.ask(&line, &[], "").await;
        if answer.status != 400 {
            // A probe may add what it likes.
            assert!(described.is_empty(), "{}: {answer:?}", operation.id);
            continue;
        }
        let sentence = answer.refusal(400);
        let known = sentence.split_once(KNOWN).map_or("", |(_, known)| known);
        let known: Vec<&str> = known.split(", ").filter(|name| !name.is_empty()).collect();
        assert_eq!(known, described, "{}", operation.id);
    }
    running.stop().await;
}

/// A header that a call reads is refused when it is nonsense; any other is of no meaning, and refused as such where it could be taken for more.
#[tokio::test(flavor = "multi_thread")]
async fn calls_read_the_headers_that_are_described() {
    const HEADERS: [&str; 5] =
        ["Bitacora-Position", "If-Match", "If-None-Match", "Idempotency-Key", "Last-Event-ID"];
    let running = Running::start(&[]).await;
    let description = Description::of(&running).await;
    // HEAD is the same call as GET, and says nothing.
    for operation in description.operations().filter(|operation| operation.method != "HEAD") {
        let described = operation.parameters("header");
        assert!(described.iter().all(|name| HEADERS.contains(name)), "{}: {described:?}", operation.id);
        let query = match operation.path {
            "/rpc" if operation.method == "POST" => "key=k&value=v",
            "/rpc" | "/rpc/cluster" => "key=k",
            _ => "",
        };
        for name in HEADERS {
            let answer = running.ask(&operation.line(query), &[&format!("{name}: nonsense")], "").await;
            let is_read = answer.status == 400 && !answer.body.contains("has no meaning");
            assert_eq!(is_read, described.contains(&name), "{} with {name}: {answer:?}", operation.id);
        }
    }
    running.stop().await;
}
