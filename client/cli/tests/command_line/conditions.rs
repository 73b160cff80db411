//! `import` and `del --from-file` on conditions: of all lines, and of single ones.

use crate::node::FakeNode;
use crate::program::{DONE, Folder, NOT_MET, REJECTED, json_lines, run_at, run_at_with, text};

/// A key that is there; returns its version.
fn set(node: &FakeNode, key: &str, value: &str) -> String {
    let told = run_at(node, &["set", key, value]).code(DONE).stdout;
    told.trim_start_matches("OK ").trim_end().to_owned()
}

fn line(key: &str, value: &str, more: &str) -> String {
    format!("{{\"key\":\"{key}\",\"value\":\"{value}\"{more}}}\n")
}

#[test]
fn an_import_writes_what_is_not_there_yet() {
    let node = FakeNode::start();
    set(&node, "a", "old");
    let input = line("a", "new", "") + &line("b", "new", "");
    run_at_with(&node, &["import", "-", "--if-absent"], input.as_bytes())
        .code(NOT_MET)
        .says("1 accepted, 0 rejected")
        .says("1 not written because the condition does not hold")
        .says("the condition of 1 lines does not hold; their keys are as they were");
    assert_eq!((node.value("a").as_deref(), node.value("b").as_deref()), (Some("old"), Some("new")));
    run_at_with(
        &node,
        &["import", "-", "--if-match", "*"],
        (line("a", "newer", "") + &line("c", "x", "")).as_bytes(),
    )
    .code(NOT_MET);
    assert_eq!((node.value("a").as_deref(), node.value("c")), (Some("newer"), None));
    run_at_with(&node, &["import", "-", "--if-match", "*"], line("a", "newest", "").as_bytes()).code(DONE);
}

#[test]
fn a_line_has_a_condition_of_its_own() {
    let (node, folder) = (FakeNode::start(), Folder::new());
    let (a, b) = (set(&node, "a", "1"), set(&node, "b", "1"));
    set(&node, "b", "2");
    let input = [
        line("a", "2", &format!(",\"ifMatch\":\"{a}\"")),
        line("b", "3", &format!(",\"ifMatch\":\"{b}\"")),
        line("c", "1", ",\"ifMatch\":null,\"ifAbsent\":true"),
        line("d", "1", ",\"ifMatch\":\"*\""),
        // The flag is for this one.
        line("e", "1", ""),
    ];
    let rejects = folder.path("rejects");
    let arguments = ["import", "-", "--if-absent", "--rejects", &rejects, "--max-rejects", "0"];
    run_at_with(&node, &arguments, input.concat().as_bytes())
        .code(NOT_MET)
        .says("3 accepted, 0 rejected, 0 skipped because they have expired, 2 not written")
        .says("; see ");
    let values = ["a", "b", "c", "d", "e"].map(|key| node.value(key));
    assert_eq!(
        values.each_ref().map(|value| value.as_deref()),
        [Some("2"), Some("2"), Some("1"), None, Some("1")]
    );
    let told = json_lines(&text(&rejects));
    let lines: Vec<_> = told.iter().map(|line| line["line"].as_u64().expect("a number")).collect();
    assert_eq!(lines, [2, 4]);
    assert!(told[0]["reason"].as_str().is_some_and(|reason| reason.contains("the version of the key is")));
    // A record that is rejected counts for more.
    let input = line("c", "2", ",\"ifAbsent\":true") + "wrong\n";
    run_at_with(&node, &["import", "-"], input.as_bytes()).code(REJECTED).says("1 not written");
}

#[test]
fn csv_has_columns_for_conditions() {
    let (node, folder) = (FakeNode::start(), Folder::new());
    let a = set(&node, "a", "1");
    let file = folder
        .with("in.csv", format!("key,value,ifMatch,ifAbsent\na,2,{a},\nb,1,,true\nc,1,*,false\nd,1,,\n"));
    run_at(&node, &["import", &file]).code(NOT_MET).says("3 accepted, 0 rejected");
    let values = ["a", "b", "c", "d"].map(|key| node.value(key));
    assert_eq!(values.each_ref().map(|value| value.as_deref()), [Some("2"), Some("1"), None, Some("1")]);
}

#[test]
fn a_condition_that_makes_no_sense_is_a_rejected_line() {
    let (node, folder) = (FakeNode::start(), Folder::new());
    for (more, says) in [
        (",\"ifMatch\":\"0:1,0:2\"", "ifMatch: '0:1,0:2' is no version"),
        (",\"ifMatch\":\"W/\\\"0:1\\\"\"", "is no version"),
        (",\"ifMatch\":\"\"", "is no version"),
        (",\"ifMatch\":7", "ifMatch: 7 is not a version such as"),
        (",\"ifAbsent\":\"yes\"", "ifAbsent: \"yes\" is not true or false"),
        (",\"ifMatch\":\"*\",\"ifAbsent\":true", "contradict each other"),
    ] {
        run_at_with(&node, &["import", "-"], line("k", "v", more).as_bytes()).code(REJECTED).says(says);
    }
    let file = folder.with("in.csv", "key,value,ifAbsent\nk,v,yes\n");
    run_at(&node, &["import", &file]).code(REJECTED).says("ifAbsent: 'yes' is neither true nor false");
    assert_eq!(node.value("k"), None);
}

/// What may have taken effect is sent again with the same uuid, and every line may ask who must show it.
#[test]
fn a_line_with_a_condition_is_known_again() {
    let node = FakeNode::start();
    node.flaky("k");
    run_at_with(&node, &["import", "-", "--if-absent", "--visible", "all"], line("k", "v", "").as_bytes())
        .code(DONE);
    assert_eq!(node.last_asked(), "if-none-match=* visible=all uuid");
    assert_eq!(node.uuids("k").len(), 1, "one uuid for both");
    run_at_with(&node, &["import", "-"], line("plain", "v", "").as_bytes()).code(DONE);
    assert_eq!(node.last_asked(), "");
}

#[test]
fn listed_keys_are_deleted_on_their_conditions() {
    let node = FakeNode::start();
    let versions = ["a", "b", "c"].map(|key| set(&node, key, "1"));
    set(&node, "b", "2");
    let listed = |key: &str, version: &str| format!("{{\"key\":\"{key}\",\"ifMatch\":\"{version}\"}}\n");
    let input = listed("a", &versions[0]) + &listed("b", &versions[1]) + "\"c\"\n";
    let run = run_at_with(&node, &["del", "--from-file", "-"], input.as_bytes()).code(NOT_MET);
    run.says("b: the version of the key is");
    let left = ["a", "b", "c"].map(|key| node.value(key).is_some());
    assert_eq!(left, [false, true, false]);

    let run = run_at_with(&node, &["del", "--from-file", "-", "--if-match", "*"], b"\"a\"\n\"b\"\n\"c\"\n");
    run.code(NOT_MET).says("2 keys are not deleted, the first: a").says("1 keys are deleted");
    assert_eq!((node.value("b"), node.last_asked()), (None, "if-match=*".to_owned()));
}
