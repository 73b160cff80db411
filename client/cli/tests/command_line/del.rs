//! `del --from-file`: keys that a pipeline hands on whole, whatever is in them.

use std::fs::OpenOptions;

use crate::node::FakeNode;
use crate::program::{DONE, FAILED, Folder, USAGE, command_at, run_at, run_at_with, text};

/// Keys that a pipeline of lines and words takes apart.
const AWKWARD: [&str; 8] =
    ["s:a\nk1", "s:tab\tk2", "s: space k3", "s:\"quoted\"", "s:back\\slash", "s:\r\n", "s:'$(k4)'", "s:ü"];

/// A node that holds them, and keys that they would be taken for.
fn node() -> FakeNode {
    let node = FakeNode::start();
    AWKWARD.iter().chain(&["k1", "k2", "k3", "k4", "s"]).for_each(|key| node.set(key, "v"));
    node
}

#[track_caller]
fn only_they_are_gone(node: &FakeNode) {
    let left = AWKWARD.iter().filter(|key| node.value(key).is_some()).collect::<Vec<_>>();
    assert!(left.is_empty(), "{left:?}");
    assert!(["k1", "k2", "k3", "k4", "s"].iter().all(|key| node.value(key).is_some()), "others are gone");
}

#[test]
fn what_scan_prints_is_deleted_and_nothing_else() {
    let node = node();
    let scanned = run_at(&node, &["scan", "--prefix", "s:", "--output", "json"]).code(DONE).stdout;
    let run = run_at_with(&node, &["del", "--from-file", "-"], scanned.as_bytes()).code(DONE);
    assert_eq!(run.stdout.lines().filter(|line| line.starts_with("OK 0:")).count(), AWKWARD.len());
    only_they_are_gone(&node);
}

#[test]
fn what_export_writes_is_deleted_too() {
    let (node, folder) = (node(), Folder::new());
    let file = folder.path("out.ndjson");
    run_at(&node, &["export", &file, "--prefix", "s:"]).code(DONE);
    let run = run_at(&node, &["del", "--from-file", &file, "--format", "ndjson", "-o", "json"]).code(DONE);
    let mut keys: Vec<_> =
        run.lines().iter().map(|line| line["key"].as_str().expect("a key").to_owned()).collect();
    keys.sort();
    let mut expected = AWKWARD.map(str::to_owned);
    expected.sort();
    assert_eq!(keys, expected);
    only_they_are_gone(&node);
}

#[test]
fn keys_may_end_with_a_zero_byte() {
    let node = node();
    let keys = AWKWARD.map(|key| key.to_owned() + "\0").concat();
    run_at_with(&node, &["del", "--from-file", "-", "--format", "nul"], keys.as_bytes()).code(DONE);
    only_they_are_gone(&node);
}

#[test]
fn many_keys_take_few_requests() {
    let node = FakeNode::holding(2_345, |_| "v".into());
    let scanned = run_at(&node, &["scan"]).code(DONE).stdout;
    run_at_with(&node, &["del", "--from-file", "-", "-o", "table"], scanned.as_bytes()).code(DONE);
    assert_eq!(run_at(&node, &["scan"]).code(DONE).stdout, "");
}

#[test]
fn a_wrong_line_ends_it_with_a_sentence() {
    let node = node();
    for (input, says) in [
        ("{\"key\":\"k1\"}\nk2\n{\"key\":\"k3\"}\n", "line 2: "),
        ("{\"key\":\"k1\"}\n{\"kee\":\"k2\"}\n", "line 2: "),
        ("{\"key\":\"k1\"}\n\n{\"key\":7}\n", "line 3: "),
        ("{\"key\":\"k1\"}\n[\"k2\"]", "line 2: "),
    ] {
        node.set("k1", "v");
        let run = run_at_with(&node, &["del", "--from-file", "-"], input.as_bytes()).code(FAILED).says(says);
        assert!(run.stderr.contains("before it are deleted"), "{run:?}");
        assert_eq!((node.value("k1"), node.value("k3").as_deref()), (None, Some("v")));
    }
    run_at(&node, &["del", "--from-file", "/nowhere/keys"]).code(FAILED).says("/nowhere/keys");
    run_at(&node, &["del", "k1", "--from-file", "-"]).code(USAGE).says("--from-file");
    run_at(&node, &["del", "k1", "--format", "nul"]).code(USAGE).says("--from-file");
    run_at(&node, &["del"]).code(USAGE).says("<KEY>");
    // A scan that finds nothing is no mistake.
    run_at(&node, &["del", "--from-file", "-"]).code(DONE);
}

#[test]
fn keys_that_no_node_takes_are_counted() {
    let node = node();
    let input = "\"\"\n\" \"\n\"k1\"\n\"\"\n";
    let run = run_at_with(&node, &["del", "--from-file", "-"], input.as_bytes()).code(FAILED);
    run.says("3 keys are refused").says("1 keys are deleted");
    assert_eq!(node.value("k1"), None);
}

#[test]
fn the_list_is_not_what_stdout_goes_to() {
    let (node, folder) = (node(), Folder::new());
    let keys = folder.with("keys.ndjson", "\"k1\"\n");
    for file in [keys.as_str(), "-"] {
        let append = || OpenOptions::new().read(true).append(true).open(&keys).expect("opened");
        let mut del = command_at(&node, &["del", "--from-file", file]);
        let run = del.stdin(append()).stdout(append()).output().expect("it runs");
        let told = String::from_utf8_lossy(&run.stderr).into_owned();
        assert!(run.status.code() == Some(USAGE) && told.contains("redirect it elsewhere"), "{told}");
    }
    assert_eq!((text(&keys).as_str(), node.value("k1").as_deref()), ("\"k1\"\n", Some("v")));
}

#[test]
fn the_help_shows_a_pipeline_that_is_safe() {
    for command in ["del", "scan"] {
        let help = run_at(&node(), &[command, "--help"]).code(DONE).stdout;
        assert!(
            help.contains("--output json | bitacora del --from-file -") && !help.contains("xargs"),
            "{help}"
        );
    }
}
