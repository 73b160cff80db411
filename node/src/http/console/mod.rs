//! `GET /`: the console, a page that shows the cluster and its keys in a browser.
//!
//! The page is one document: its style and its script are inside, made of the files beside this one, and nothing is loaded from
//! elsewhere. `Content-Security-Policy` allows exactly these two texts, and no text that the script finds in a key or a value can
//! become markup (`require-trusted-types-for`).

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use warp::http::StatusCode;
use warp::http::header::{
    CONTENT_SECURITY_POLICY, HeaderName, HeaderValue, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};

use super::answers::{self, Reply};
use crate::service::status::NodeStatus;

const HEAD: &str = include_str!("head.html");
const BODY: &str = include_str!("body.html");
const STYLE: &str = concat!(include_str!("style.css"), include_str!("views.css"));
/// One scope, in which each file uses those before it.
const SCRIPT: &str = concat!(
    "\"use strict\";\n{\n",
    include_str!("text.js"),
    include_str!("dom.js"),
    include_str!("api.js"),
    include_str!("alerts.js"),
    include_str!("charts.js"),
    include_str!("node.js"),
    include_str!("cluster.js"),
    include_str!("keys.js"),
    include_str!("record.js"),
    include_str!("editor.js"),
    include_str!("events.js"),
    include_str!("watch.js"),
    include_str!("session.js"),
    include_str!("main.js"),
    "}\n",
);

/// Members that the policy names, at most: a header has its bounds.
const MAX_MEMBERS: usize = 64;

const CROSS_ORIGIN_OPENER_POLICY: HeaderName = HeaderName::from_static("cross-origin-opener-policy");

/// How the page finds out how members are reached.
const PLAIN_MEMBERS: &str = "<meta name=\"members\" content=\"http\">";
const TLS_MEMBERS: &str = "<meta name=\"members\" content=\"https\">";

struct Page {
    html: Bytes,
    /// Of a node that speaks TLS.
    tls_html: Bytes,
    /// The policy but for `connect-src`.
    policy: String,
}

static PAGE: LazyLock<Page> = LazyLock::new(|| {
    let (style, script) = (sent(STYLE), sent(SCRIPT));
    let html =
        [HEAD, "<style>", &style, "</style></head>", BODY, "<script>", &script, "</script></body></html>\n"];
    let policy = format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; img-src data:; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
        hash(&script),
        hash(&style)
    );
    let html = html.concat();
    let tls_html = html.replacen(PLAIN_MEMBERS, TLS_MEMBERS, 1).into();
    Page { html: html.into(), tls_html, policy }
});

/// A text as it is sent: without its comments and indents, which are for those who read the files.
fn sent(text: &str) -> String {
    let lines = text.lines().map(str::trim_start);
    let kept = lines.filter(|line| !line.is_empty() && !line.starts_with("//"));
    kept.flat_map(|line| [line, "\n"]).collect()
}

/// How a policy names an inline text.
fn hash(text: &str) -> String {
    format!("sha256-{}", BASE64.encode(Sha256::digest(text)))
}

/// Answers with the page. `tls`: members are reached over TLS.
pub fn page(status: &NodeStatus, tls: bool) -> Reply {
    let html = if tls { &PAGE.tls_html } else { &PAGE.html };
    let mut reply = answers::respond(StatusCode::OK, "text/html; charset=utf-8", html.clone());
    let headers = reply.headers_mut();
    let policy = policy(&status.membership.members(), tls);
    if let Ok(policy) = HeaderValue::try_from(policy) {
        headers.insert(CONTENT_SECURITY_POLICY, policy);
    }
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(CROSS_ORIGIN_OPENER_POLICY, HeaderValue::from_static("same-origin"));
    reply
}

/// The policy. The page may ask the members whether they are there, so that it can move to another one when this node dies.
fn policy(members: &[String], tls: bool) -> String {
    let mut policy = format!("{}; connect-src 'self'", PAGE.policy);
    for member in members.iter().filter(|member| is_source(member)).take(MAX_MEMBERS) {
        policy.push_str(if tls { " https://" } else { " http://" });
        policy.push_str(member);
    }
    policy
}

/// Whether a member is `host:port` as a policy may name it: it knows no IPv6, and what others have registered must not become
/// another part of the policy.
fn is_source(member: &str) -> bool {
    let Some((host, port)) = member.rsplit_once(':') else { return false };
    let is_host = |c: char| c.is_ascii_alphanumeric() || "-.".contains(c);
    !host.is_empty()
        && host.len() < 254
        && host.chars().all(is_host)
        && port.parse::<u16>().is_ok_and(|port| port > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What may be sent at most, and what nothing in the page may have.
    #[test]
    fn the_page_is_small_and_loads_nothing() {
        let html = std::str::from_utf8(&PAGE.html).expect("text");
        assert!(html.len() <= 100_000, "the console has {} bytes", html.len());
        // An address appears as the namespace of SVG, and where the page moves to a member.
        let addresses: Vec<&str> =
            html.split("http").skip(1).map(|rest| rest.get(..24).unwrap_or(rest)).collect();
        for address in
            addresses.iter().filter(|address| address.starts_with("://") || address.starts_with("s://"))
        {
            assert!(
                address.starts_with("://www.w3.org/2000/svg") || address.starts_with("://${"),
                "http{address}"
            );
        }
        for forbidden in [
            "innerHTML",
            "outerHTML",
            "insertAdjacent",
            "document.write",
            "eval(",
            "Function(",
            " src=",
            " style=",
            " onclick=",
        ] {
            assert!(!html.contains(forbidden), "{forbidden}");
        }
        assert!(html.contains(PLAIN_MEMBERS) && PAGE.tls_html.len() == PAGE.html.len() + 1);
        // What would end one of the two texts early.
        assert!(!SCRIPT.contains("</") && !SCRIPT.contains("<!--") && !STYLE.contains("</"));
    }

    #[test]
    fn members_are_named_only_as_host_and_port() {
        let members = [
            "a.example:8080",
            "10.0.0.1:8080",
            "[::1]:8080",
            "a;script-src *:80",
            "a 'unsafe-inline':80",
            "*:80",
            "a:",
            "a:0",
            "a:99999",
            "a",
        ];
        assert!(policy(&["a:1".to_owned()], true).ends_with("connect-src 'self' https://a:1"));
        let policy = policy(&members.map(str::to_owned), false);
        let (_, sources) = policy.split_once("connect-src ").expect("it has connections");
        assert_eq!(sources, "'self' http://a.example:8080 http://10.0.0.1:8080");
        assert!(policy.starts_with("default-src 'none'; script-src 'sha256-"), "{policy}");
    }

    /// The console names each alert, whether it can judge it or not: a rule that is added there is not forgotten here.
    #[test]
    fn the_console_knows_every_alert() {
        let rules = include_str!("../../../../monitoring/prometheus/rules/bitacora.yml");
        let alerts = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
        let known = include_str!("alerts.js");
        let unknown: Vec<&str> = alerts.filter(|alert| !known.contains(&format!("\"{alert}\""))).collect();
        assert!(unknown.is_empty(), "{unknown:?}");
        let known: Vec<&str> =
            known.split("\"Bitacora").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        let gone: Vec<&&str> =
            known.iter().filter(|name| !rules.contains(&format!("- alert: Bitacora{name}\n"))).collect();
        assert!(gone.is_empty(), "{gone:?}");
    }
}
