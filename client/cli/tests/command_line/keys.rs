//! `get`, `set`, `del` and `scan`.

use std::io::{BufRead as _, BufReader, Read as _};

use serde_json::json;

use crate::node::{FakeNode, now_ms};
use crate::program::{DONE, FAILED, NOT_FOUND, command_at, run_at, run_at_with};

#[test]
fn keys_are_set_read_and_deleted() {
    let node = FakeNode::start();
    let at = |arguments: &[&str]| run_at(&node, arguments);
    let written = at(&["set", "a key & more=ü", "v 1\n%"]).code(DONE);
    assert!(written.stdout.starts_with("OK 0:"), "{written:?}");
    assert_eq!(at(&["get", "a key & more=ü"]).code(DONE).stdout, "v 1\n%\n");
    assert_eq!(at(&["get", "-n", "a key & more=ü"]).code(DONE).stdout, "v 1\n%");
    at(&["set", "empty", ""]).code(DONE);
    assert_eq!(at(&["get", "empty"]).code(DONE).stdout, "\n");

    // The value is stdin to the last byte.
    run_at_with(&node, &["set", "lines"], b"one\ntwo\n").code(DONE);
    run_at_with(&node, &["set", "dash", "-"], b"d").code(DONE);
    run_at_with(&node, &["set", "bytes"], b"\xff").code(FAILED).says("UTF-8");
    assert_eq!(at(&["get", "-n", "lines", "dash"]).code(DONE).stdout, "one\ntwo\nd");

    let record = &at(&["get", "lines", "--output", "json"]).code(DONE).lines()[0];
    assert_eq!(
        (&record["key"], &record["value"], &record["ttl"]),
        (&json!("lines"), &json!("one\ntwo\n"), &json!(0))
    );
    assert!(record["position"].as_str().is_some_and(|position| position.starts_with("0:")), "{record}");
    let written = &at(&["set", "short", "x", "--ttl", "1h", "-o", "json"]).code(DONE).lines()[0];
    let ttl = written["ttl"].as_i64().expect("a time");
    assert!((now_ms() + 3_500_000..=now_ms() + 3_600_000).contains(&ttl), "{written}");

    let some = at(&["get", "empty", "nowhere", "dash"]).code(NOT_FOUND).says("nowhere");
    assert_eq!(some.stdout, "\nd\n");
    let table = at(&["get", "dash", "lines", "-o", "table"]).code(DONE).stdout;
    assert!(table.starts_with("KEY") && table.contains("one\\ntwo\\n"), "{table}");
    assert_eq!(at(&["del", "dash", "never"]).code(DONE).stdout.lines().count(), 2);
    at(&["get", "dash"]).code(NOT_FOUND);
}

#[test]
fn a_scan_is_printed_page_by_page() {
    let node = FakeNode::holding(2_500, |_| "v\t1\n".into());
    let at = |arguments: &[&str]| run_at(&node, &[&["scan"], arguments].concat()).code(DONE);
    let raw = at(&["-o", "raw"]).stdout;
    assert_eq!((raw.lines().count(), raw.lines().next()), (2_500, Some("k0000\tv\\t1\\n")));
    // Not on a terminal it is for programs.
    let lines = at(&["--start", "k0998", "--end", "k1002"]).lines();
    let keys: Vec<_> = lines.iter().map(|line| line["key"].as_str().expect("a key")).collect();
    assert_eq!(keys, ["k0998", "k0999", "k1000", "k1001"]);
    assert_eq!(at(&["--prefix", "k1", "--limit", "700"]).lines().len(), 700);
    assert_eq!(at(&["--limit", "1500"]).lines().len(), 1_500);
    assert_eq!(at(&["--prefix", "none"]).stdout, "");
    let table = at(&["--prefix", "k000", "-o", "table"]).stdout;
    assert!(table.starts_with("KEY") && table.lines().count() == 11, "{table}");
}

#[test]
fn who_stops_reading_is_no_error() {
    let node = FakeNode::holding(5_000, |_| "x".repeat(100));
    for arguments in [["scan", "--output", "raw"], ["export", "-", "--page=100"]] {
        let mut child = command_at(&node, &arguments).spawn().expect("it starts");
        let mut first = String::new();
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        stdout.read_line(&mut first).expect("a line");
        drop(stdout);
        let mut stderr = String::new();
        child.stderr.take().expect("piped").read_to_string(&mut stderr).expect("text");
        let status = child.wait().expect("it ends");
        assert!(first.contains("k0000") && status.success() && stderr.is_empty(), "{status} {stderr}");
    }
}
