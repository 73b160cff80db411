//! Paths that a proxy or a library could take for another one, and requests that have more than one reading.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use bitacora_protocol::token::Token;
use e2e::cluster::Options;
use e2e::runner::Ctx;

use super::{SECRET, Tokens, exchange, holds, statuses, told};

/// Spellings of a path, with its query, that something between could resolve or decode to it.
fn spellings(port: u16, path_and_query: &str) -> Vec<Vec<u8>> {
    let (path, query) = path_and_query.split_once('?').unwrap_or((path_and_query, ""));
    let query = if query.is_empty() { String::new() } else { format!("?{query}") };
    let bare = path.trim_start_matches('/');
    let (first, rest) = bare.split_at(1);
    let hex = format!("%{:02x}", first.as_bytes()[0]);
    let mut texts: Vec<String> = [
        // As it is, and with a slash at its end, which is of no meaning.
        path.to_owned(),
        format!("{path}/"),
        format!("/{path}"),
        format!("//{path}"),
        format!("{path}//"),
        format!("/.{path}"),
        format!("/..{path}"),
        format!("/../../..{path}"),
        format!("{path}/."),
        format!("{path}/.."),
        format!("{path}/../{bare}"),
        format!("/health/..{path}"),
        format!("/health/live/../..{path}"),
        format!("/openapi.json/..{path}"),
        format!("/health/%2e%2e{path}"),
        format!("/health/%2E%2E{path}"),
        format!("/health/%252e%252e{path}"),
        format!("/health%2f..%2f{bare}"),
        format!("/health/..;{path}"),
        format!("/health/..%5c{bare}"),
        format!("/health/..\\{bare}"),
        format!("/%2f{bare}"),
        format!("/%2e{path}"),
        format!("/{hex}{rest}"),
        format!("{path}%2f"),
        format!("{path}%20"),
        format!("{path}%00"),
        format!("{path}%00.json"),
        format!("{path}%0d%0a"),
        format!("{path}%23"),
        format!("{path}%3f"),
        format!("{path}."),
        format!("{path}.."),
        format!("{path}.json"),
        format!("{path};"),
        format!("{path};v=1"),
        format!("{path};/health"),
        format!("/;{path}"),
        format!("/health;{path}"),
        format!("/health?{path}"),
        format!("/health#{path}"),
        path.to_uppercase(),
        format!("/{}{rest}", first.to_uppercase()),
        format!("/{}", "a/../".repeat(5_000)) + bare,
        format!("/{}", "./".repeat(20_000)) + bare,
        format!("{path}/{}", "a".repeat(60_000)),
        format!("{path}/{}", "a".repeat(200_000)),
    ]
    .into_iter()
    .map(|spelled| format!("{spelled}{query}"))
    .collect();
    // A target with a scheme and a host, as proxies are sent.
    for start in ["http://node", "http://other:1", "https://node", "HTTP://NODE", "http://a@b", "file://"] {
        texts.push(format!("{start}{path}{query}"));
    }
    texts.push(format!("http://127.0.0.1:{port}/health/..{path}{query}"));
    let mut all: Vec<Vec<u8>> = texts.into_iter().map(String::into_bytes).collect();
    for byte in [b'\0', b'\t', 0x7f, 0x80, 0xff] {
        all.push([path.as_bytes(), &[byte], query.as_bytes()].concat());
        all.push([&[byte], path.as_bytes(), query.as_bytes()].concat());
    }
    all
}

/// Headers by which some servers are told another path, method or caller than the request has.
const OVERRIDES: [&str; 8] = [
    "X-Original-URL: PATH",
    "X-Rewrite-URL: PATH",
    "X-Forwarded-Prefix: PATH",
    "X-HTTP-Method-Override: DELETE",
    "X-Forwarded-For: 127.0.0.1",
    "X-Forwarded-User: admin",
    "X-Bitacora-Member: true",
    "Forwarded: for=127.0.0.1;host=node;proto=https",
];

pub async fn no_path_leads_round_a_scope(ctx: Ctx) -> Result<()> {
    let tokens = Tokens::create(&ctx)?;
    let cluster = tokens.node_with_secret(&ctx, tokens.options.clone()).await?;
    let port = cluster.nodes[0].api_port;
    let send = async |method: &str, target: &[u8], header: &str, token: Option<&Token>| {
        let shown = token.map(|token| format!("Authorization: {}\r\n", token.authorization()));
        let head = format!(
            " HTTP/1.1\r\nHost: node\r\nConnection: close\r\n{}{header}\r\n",
            shown.unwrap_or_default()
        );
        exchange(port, &[method.as_bytes(), b" ", target, head.as_bytes()].concat()).await
    };
    // Who may have it gets it: the secret would be seen.
    for (path, token) in [("/snapshot", &tokens.admin), ("/rpc/cluster?key=canary", &tokens.member)] {
        let received = send("GET", path.as_bytes(), "", Some(token)).await?;
        ensure!(
            statuses(&received) == [200] && holds(&received, SECRET),
            "{path}: {:?}",
            statuses(&received)
        );
    }
    // What is asked for, and by whom not.
    let (nobody, shop) = (None, Some(&tokens.shop));
    let protected: [(&str, &[Option<&Token>]); 8] = [
        ("/snapshot", &[nobody, shop]),
        ("/rpc/cluster?key=canary", &[nobody, shop]),
        ("/rpc?key=canary", &[nobody, shop]),
        ("/rpc/scan?prefix=can", &[nobody, shop]),
        ("/status/digests/ranges", &[nobody, shop]),
        ("/status", &[nobody]),
        ("/status/members", &[nobody]),
        ("/metrics", &[nobody]),
    ];
    let mut answers = BTreeMap::<u16, usize>::new();
    for (path, callers) in protected {
        for caller in callers {
            let who = if caller.is_some() { "with a token of shop/" } else { "without a token" };
            let mut refused = |what: &str, received: &[u8]| {
                ensure!(!holds(received, SECRET), "{who}: {what} tells the secret");
                let statuses = statuses(received);
                let is_refusal =
                    |status: &u16| matches!(status, 400 | 401 | 403 | 404 | 405 | 414 | 429 | 431);
                ensure!(
                    statuses.len() == 1 && statuses.iter().all(is_refusal),
                    "{who}: {what}: {statuses:?}"
                );
                *answers.entry(statuses[0]).or_default() += 1;
                Ok(())
            };
            for spelling in spellings(port, path) {
                let shown: String = String::from_utf8_lossy(&spelling).chars().take(80).collect();
                // The part behind `?` and `#` is none of a path, and this path tells nothing.
                if shown.starts_with("/health?") || shown.starts_with("/health#") {
                    let received = send("GET", &spelling, "", *caller).await?;
                    ensure!(!holds(&received, SECRET) && received.len() < 1000, "{who}: {shown}");
                    continue;
                }
                for method in ["GET", "HEAD"] {
                    refused(&format!("{method} {shown}"), &send(method, &spelling, "", *caller).await?)?;
                }
            }
            for header in OVERRIDES {
                let header = header.replace("PATH", path) + "\r\n";
                let told = send("GET", b"/health", &header, *caller).await?;
                ensure!(!holds(&told, SECRET) && told.len() < 1000, "{who}: {header}");
                refused(&header, &send("GET", path.as_bytes(), &header, *caller).await?)?;
            }
        }
    }
    let total: usize = answers.values().sum();
    ensure!(total > 1000, "only {total} were tried");
    let each: Vec<String> = answers.iter().map(|(status, count)| format!("{count} with {status}")).collect();
    told(
        "path tricks without a token and with one of another prefix",
        &format!(
            "{total} requests in {} spellings and with {} headers of proxies, all refused: {}",
            spellings(port, "/snapshot").len(),
            OVERRIDES.len(),
            each.join(", ")
        ),
    );
    Ok(())
}

/// What is to be done if somebody takes it for a request of its own.
const SMUGGLED: &str = "DELETE /rpc?key=canary HTTP/1.1\r\nHost: node\r\n\r\n";
/// A good request behind each ambiguous one.
const NEXT: &str = "HEAD /rpc?key=canary HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n";

/// How a request that has several readings is to be read.
enum Read {
    /// Not at all, nor what follows.
    Refused,
    /// The same, without an answer.
    Closed,
    /// In this one way, and the connection ends with it: nothing behind it is taken for a request.
    Once,
    /// In this one way, and what follows is read, too.
    WithNext,
}

fn ambiguous() -> Vec<(&'static str, String, Read)> {
    let post = |headers: &str, body: &str| {
        format!("POST /rpc?key=k HTTP/1.1\r\nHost: node\r\n{headers}\r\n\r\n{body}")
    };
    let text = "Content-Type: text/plain\r\n";
    let all = format!("0\r\n\r\n{SMUGGLED}");
    let length = all.len();
    let in_a_chunk = format!("{:x}\r\n{SMUGGLED}\r\n0\r\n\r\n", SMUGGLED.len());
    let chunked =
        |chunks: &str| post(&format!("{text}Transfer-Encoding: chunked"), &format!("{chunks}{SMUGGLED}"));
    let mut cases = vec![
        // By the length, the other request is a part of the body; by the chunks, it follows.
        (
            "a length, then chunks",
            post(&format!("{text}Content-Length: {length}\r\nTransfer-Encoding: chunked"), &all),
            Read::Once,
        ),
        (
            "chunks, then a length",
            post(&format!("{text}Transfer-Encoding: chunked\r\nContent-Length: {length}"), &all),
            Read::Once,
        ),
        // The other way round.
        (
            "chunks that a length ends",
            post(&format!("{text}Content-Length: 4\r\nTransfer-Encoding: chunked"), &in_a_chunk),
            Read::Once,
        ),
        (
            "two lengths",
            post(&format!("{text}Content-Length: 5\r\nContent-Length: {length}"), &all),
            Read::Refused,
        ),
        (
            "the same length twice",
            post(&format!("{text}Content-Length: {0}\r\nContent-Length: {0}", SMUGGLED.len()), SMUGGLED),
            Read::WithNext,
        ),
        ("two lengths in one", post(&format!("{text}Content-Length: 5, {length}"), &all), Read::Refused),
        ("a length with a sign", post(&format!("{text}Content-Length: +{length}"), &all), Read::Refused),
        (
            "a length in hexadecimal digits",
            post(&format!("{text}Content-Length: 0x{length:x}"), &all),
            Read::Refused,
        ),
        ("a length with a space in it", post(&format!("{text}Content-Length: 5 5"), &all), Read::Refused),
        (
            "a length that is too large",
            post(&format!("{text}Content-Length: 18446744073709551621"), &all),
            Read::Refused,
        ),
        ("a length on two lines", post(&format!("{text}Content-Length:\r\n {length}"), &all), Read::Refused),
        (
            "a coding on two lines",
            post(&format!("{text}Transfer-Encoding:\r\n chunked"), &all),
            Read::Refused,
        ),
        (
            "a header on two lines",
            post(&format!("{text}X: a\r\n\tTransfer-Encoding: chunked"), &all),
            Read::Refused,
        ),
        (
            "a space before the colon",
            post(&format!("{text}Transfer-Encoding : chunked"), &all),
            Read::Refused,
        ),
        (
            "another coding at the end",
            post(&format!("{text}Transfer-Encoding: chunked, identity"), &all),
            Read::Refused,
        ),
        (
            "another coding in a second header",
            post(&format!("{text}Transfer-Encoding: chunked\r\nTransfer-Encoding: x"), &all),
            Read::Refused,
        ),
        (
            "a coding that looks like chunked",
            post(&format!("{text}Transfer-Encoding: xchunked"), &all),
            Read::Refused,
        ),
        (
            "a control character in a coding",
            post(&format!("{text}Transfer-Encoding: \x0bchunked"), &all),
            Read::Refused,
        ),
        ("a NUL in a header", post(&format!("{text}Transfer-Encoding: chunked\0"), &all), Read::Refused),
        (
            "a CR alone in a header",
            post(&format!("{text}X: a\rTransfer-Encoding: chunked"), &all),
            Read::Refused,
        ),
        (
            "chunks of HTTP/1.0",
            post(&format!("{text}Transfer-Encoding: chunked"), &all).replacen("1.1", "1.0", 1),
            Read::Refused,
        ),
        // A name that some take for the other: it says nothing here, so there is no body.
        (
            "an underscore in the name",
            post(&format!("{text}Transfer_Encoding: chunked\r\nContent-Length: {length}"), &all),
            Read::WithNext,
        ),
        // The body of a GET is a body.
        (
            "a GET with a body",
            format!(
                "GET /rpc?key=canary HTTP/1.1\r\nHost: node\r\nContent-Length: {}\r\n\r\n{SMUGGLED}",
                SMUGGLED.len()
            ),
            Read::WithNext,
        ),
        ("a head of HTTP/2", format!("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{SMUGGLED}"), Read::Closed),
    ];
    // A line may end with LF alone (RFC 9112, section 2.2); that of a chunk may not.
    let lf = post(&format!("{text}Content-Length: {}", SMUGGLED.len()), "").replace("\r\n", "\n") + SMUGGLED;
    cases.push(("lines that end with LF alone", lf, Read::WithNext));
    for (what, chunks) in [
        ("a chunk's size with 0x", "0x5\r\nvalue\r\n0\r\n\r\n"),
        ("a chunk's size with a sign", "+5\r\nvalue\r\n0\r\n\r\n"),
        ("a negative chunk", "-5\r\nvalue\r\n0\r\n\r\n"),
        ("a chunk's size with junk", "5 junk\r\nvalue\r\n0\r\n\r\n"),
        ("a chunk without a size", "\r\nvalue\r\n0\r\n\r\n"),
        ("a chunk's size that is too large", "10000000000000005\r\nvalue\r\n0\r\n\r\n"),
        ("a chunk's size that ends with LF alone", "5\nvalue\r\n0\r\n\r\n"),
        ("an extension that ends with LF alone", "5;a\nvalue\r\n0\r\n\r\n"),
        ("a chunk that ends with LF alone", "5\r\nvalue\n0\r\n\r\n"),
        ("a chunk that is longer than it says", "5\r\nvalue and more\r\n0\r\n\r\n"),
    ] {
        cases.push((what, chunked(chunks), Read::Refused));
    }
    cases
}

pub async fn ambiguous_requests_smuggle_nothing(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster_with(1, Options::new()).await?;
    let node = &cluster.nodes[0];
    node.api().set("canary", "alive").await?.expect(200);
    node.has("canary", Some("alive")).await;
    let control =
        exchange(node.api_port, format!("{}{NEXT}", SMUGGLED.replace("canary", "other")).as_bytes()).await?;
    ensure!(statuses(&control) == [200, 200], "what is to be smuggled works: {:?}", statuses(&control));
    let (mut refused, mut once, mut next) = (0, 0, 0);
    for (what, bytes, read) in ambiguous() {
        let received = exchange(node.api_port, format!("{bytes}{NEXT}").as_bytes()).await.context(what)?;
        let statuses = statuses(&received);
        let shown = String::from_utf8_lossy(&received).into_owned();
        match read {
            Read::Refused => {
                ensure!(statuses == [400], "{what}: {statuses:?}\n{shown}");
                refused += 1;
            }
            Read::Closed => {
                ensure!(statuses.is_empty(), "{what}: {statuses:?}\n{shown}");
                refused += 1;
            }
            Read::Once => {
                ensure!(
                    statuses.len() == 1 && matches!(statuses[0], 200 | 400),
                    "{what}: {statuses:?}\n{shown}"
                );
                once += 1;
            }
            Read::WithNext => {
                ensure!(statuses == [200, 200], "{what}: {statuses:?}\n{shown}");
                next += 1;
            }
        }
    }
    let canary = node.api().get_with("canary", "consistency=strong").await?;
    ensure!(canary.value().as_deref() == Some("alive"), "it was deleted by a part of a request: {canary}");
    let deletes = cluster.topic.read_all().await?.len();
    told(
        "requests with two readings, each with a DELETE hidden in one of them",
        &format!(
            "{refused} kinds are answered 400 and closed (a head of HTTP/2 only closed); {once} with both a length and chunks are read by their chunks, answered \
             and closed; {next} have one reading, and the request behind them is answered as itself; no DELETE was done ({deletes} \
             records in the log)"
        ),
    );
    Ok(())
}
