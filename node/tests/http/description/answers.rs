//! What a node answers is what it says that it answers.

use super::super::Running;
use super::Description;

/// Requests that are refused, one of each kind that needs no broken cluster.
const REFUSED: [(&str, &[&str], &str, u16); 12] = [
    ("GET /rpc?key=", &[], "", 400),
    ("GET /rpc?key=none", &[], "", 404),
    ("GET /rpc?key=k&consistency=session&position=0:99&timeout=1ms", &[], "", 503),
    ("GET /rpc/cluster?key=none", &[], "", 404),
    ("GET /rpc/cluster?key=k&consistency=session&position=0:99&timeout=1ms", &[], "", 503),
    ("GET /rpc/scan?consistency=session&position=0:99,1:99&timeout=1ms", &[], "", 503),
    ("POST /rpc?key=k&value=v", &["Origin: https://elsewhere.example"], "", 403),
    ("DELETE /rpc?key=k", &["Origin: https://elsewhere.example"], "", 403),
    ("DELETE /rpc?key=none", &["If-Match: *"], "", 412),
    ("POST /rpc?key=k", &[], "more than a thousand bytes", 413),
    ("POST /rpc?key=k", &["Content-Encoding: gzip"], "v", 415),
    ("POST /rpc/batch", &["Content-Encoding: gzip"], "v", 415),
];

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_as_described() {
    let running = Running::start(&["--max-value-bytes", "1000"]).await;
    let description = Description::of(&running).await;
    for (line, headers, body, status) in REFUSED {
        let (method, rest) = line.split_once(' ').expect("a method");
        let path = rest.split('?').next().expect("a path");
        let operation =
            description.operations().find(|it| it.method == method && it.path == path).expect(line);
        let body = if status == 413 { body.repeat(100) } else { body.to_owned() };
        let answer = running.ask(line, headers, &body).await;
        assert_eq!(answer.status, status, "{line}: {answer:?}");
        description.describes(&operation, &answer);
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_needs_no_parameter_is_answered_as_described() {
    let running = Running::start(&[]).await;
    let description = Description::of(&running).await;
    let mut asked = 0;
    let reads =
        description.operations().filter(|it| matches!(&*it.method, "GET" | "HEAD") && !it.is_endless());
    for operation in reads {
        let answer = running.ask(&operation.line("").replace('?', ""), &[], "").await;
        description.describes(&operation, &answer);
        asked += 1;
    }
    assert!(asked > 10);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batchs_failed_lines_are_as_described() {
    let running = Running::start(&[]).await;
    let description = Description::of(&running).await;
    let batch = description.operations().find(|operation| operation.id == "batch").expect("a call");
    let lines = [
        r#"{"op":"get","key":"k","consistency":"session","position":"0:99","timeout":"1ms"}"#,
        r#"{"op":"set","key":"k","value":"v","ttl":"60"}"#,
        r#"{"op":"delete","key":"k","ifMatch":"*"}"#,
        "no JSON",
    ];
    let answer = running.ask("POST /rpc/batch", &[], &lines.join("\n")).await;
    description.describes(&batch, &answer);
    let results = answer.body.lines().filter(|line| line.starts_with('{'));
    let statuses: Vec<u64> = results
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(line).expect("JSON")["status"]
                .as_u64()
                .expect("a status")
        })
        .collect();
    assert_eq!(statuses, [503, 400, 412, 400]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_description_is_kept_until_it_changes() {
    let running = Running::start(&["--allowed-origins", "https://app.example"]).await;
    let first = running.ask("GET /openapi.json", &[], "").await;
    assert_eq!((first.status, first.header("cache-control")), (200, Some("no-cache")), "{first:?}");
    assert_eq!(first.header("content-type"), Some("application/json"));
    let tag = first.header("etag").expect("a tag").to_owned();
    let again = running.ask("GET /openapi.json", &[&format!("If-None-Match: {tag}")], "").await;
    assert_eq!((again.status, again.header("etag"), &*again.body), (304, Some(&*tag), ""), "{again:?}");
    assert_eq!(running.ask("GET /openapi.json", &["If-None-Match: \"0:1\""], "").await.status, 200);
    running.ask("GET /openapi.json", &["If-None-Match: x"], "").await.refusal(400);
    let page = running.ask("GET /openapi.json", &["Origin: https://app.example"], "").await;
    assert_eq!(page.header("access-control-allow-origin"), Some("https://app.example"), "{page:?}");
    let head = running.ask("HEAD /openapi.json", &[], "").await;
    assert_eq!((head.status, head.header("etag"), &*head.body), (200, Some(&*tag), ""), "{head:?}");
    running.stop().await;
}
