//! `import`: what is rejected, what is tried again, and what is done after it broke off.

use std::fs;
use std::io::Read as _;
use std::process::Command;

use serde_json::Value;

use crate::node::{FakeNode, now_ms};
use crate::program::{
    DONE, FAILED, Folder, REJECTED, UNCLEAR, command_at, import_on, json_lines, ndjson, run_at, run_at_with,
    text, wait_for,
};

#[test]
fn an_import_reports_what_it_rejects_and_goes_on() {
    let (node, folder) = (FakeNode::start(), Folder::new());
    let past = now_ms() - 1_000;
    let future = now_ms() + 3_600_000;
    let long = "x".repeat(600_000);
    let input = format!(
        "{{\"key\":\"a\",\"value\":\"1\"}}\n\
         not json\n\
         {{\"key\":\"bad\",\"value\":\"refused\"}}\n\
         \n\
         {{\"key\":\"gone\",\"value\":\"x\",\"expires\":{past}}}\n\
         {{\"key\":\"b\",\"value\":\"2\",\"ttl\":\"1h\"}}\n\
         {{\"key\":\"c\",\"value\":\"3\",\"timestamp\":1,\"source\":1,\"ttl\":{future},\"uuid\":\"u\",\"position\":\"0:1\"}}\n\
         {{\"key\":\"long\",\"value\":\"{long}\"}}\n\
         {{\"key\":\"a\",\"value\":\"last\"}}"
    );
    let (file, rejects) = (folder.with("in.ndjson", input), folder.path("rejects"));
    // What fails for a while is sent again.
    node.fail(2);
    node.flaky("b");
    let arguments = ["import", &file, "--rejects", &rejects, "--max-line", "100000"];
    run_at(&node, &arguments)
        .code(REJECTED)
        .says("4 accepted, 3 rejected, 1 skipped")
        .says("3 lines were rejected");
    let lines = json_lines(&text(&rejects));
    let told: Vec<_> = lines.iter().map(|line| line["line"].as_u64().expect("a number")).collect();
    assert_eq!(told, [2, 3, 8]);
    assert_eq!(lines[0]["text"], "not json");
    assert!(lines[1]["reason"].as_str().is_some_and(|reason| reason.contains("refused")), "{lines:?}");
    assert!(lines[2]["text"].as_str().is_some_and(|text| text.len() < 5_000), "it is cut");
    assert_eq!(node.value("a").as_deref(), Some("last"));
    let ttl = node.ttl("b").expect("it is there");
    assert!((future - 10_000..future + 60_000).contains(&ttl), "{ttl}");
    assert!((node.ttl("c").expect("it is there") - future).abs() < 30_000);
    assert_eq!(node.value("gone"), None);

    // Without a file they are told, and the number can be bounded.
    let told = run_at_with(&node, &["import", "-"], "x\n".repeat(30).as_bytes()).code(REJECTED);
    assert_eq!(told.stderr.matches("is rejected").count(), 10, "{told:?}");
    run_at_with(&node, &["import", "-", "--max-rejects", "4"], "x\n".repeat(30).as_bytes())
        .code(REJECTED)
        .says("stopped at line 5");
}

#[test]
fn an_import_keeps_the_order_of_a_keys_writes() {
    let node = FakeNode::start();
    node.flaky_often();
    let lines: String = (0..420).map(|n| format!("{{\"key\":\"k{}\",\"value\":\"{n}\"}}\n", n % 7)).collect();
    run_at_with(&node, &["import", "-", "--batch", "50"], lines.as_bytes())
        .code(DONE)
        .says("420 accepted, 0 rejected");
    for k in 0..7 {
        let last = (0..420).rev().find(|n| n % 7 == k).expect("one");
        assert_eq!(node.value(&format!("k{k}")), Some(last.to_string()));
        assert!(node.never_went_back(&format!("k{k}")), "k{k}");
    }
}

#[test]
fn csv_is_imported() {
    let (node, folder) = (FakeNode::start(), Folder::new());
    let file = folder.with("in.csv", "ttl,value,key\n,\"a, \"\"b\"\"\nc\",k1\n30s,v2,k2\nonly,two\n");
    run_at(&node, &["import", &file]).code(REJECTED).says("line 5 is rejected: it has 2 fields");
    assert_eq!(node.value("k1").as_deref(), Some("a, \"b\"\nc"));
    assert!(node.ttl("k2").is_some_and(|ttl| ttl > now_ms()));
    let without = folder.with("without.csv", "k1,v1\n");
    run_at(&node, &["import", &without]).code(FAILED).says("header");
    run_at(&node, &["import", &folder.path("none.csv")]).code(FAILED).says("none.csv");
}

#[test]
fn an_import_that_broke_off_goes_on_where_it_was() {
    let (node, folder) = (FakeNode::start(), Folder::new());
    let input = ndjson(1_000) + "wrong\n" + &ndjson(4_000) + "wrong\n";
    let (file, checkpoint, rejects) = (folder.with("in.ndjson", &input), folder.path("c"), folder.path("r"));
    let options = ["--rejects", &rejects, "--retry-for=0", "--batch=100", "--parallel=4"];
    let import = || import_on(&node, &file, &checkpoint, &options);
    node.break_after(20);
    import().code(UNCLEAR).says("run it again");
    let state: Value = serde_json::from_str(&text(&checkpoint)).expect("JSON");
    let done = state["counts"]["accepted"].as_u64().expect("a number");
    assert!(done > 0 && done < 5_000, "{state}");
    node.break_after(u64::MAX);
    let before = node.sets();
    import().code(REJECTED).says("going on at line").says("5000 accepted, 2 rejected");
    assert_eq!(node.sets() - before, 5_000 - done, "what was acknowledged is not sent again");
    assert_eq!(text(&rejects).lines().count(), 2);
    assert_eq!(node.value("k03999").as_deref(), Some("v3999"));

    // What is done stays so.
    let before = node.sets();
    import().code(REJECTED).says("5000 accepted, 2 rejected");
    assert_eq!(node.sets(), before);
    // Another input is not taken for this one.
    fs::write(&file, ndjson(10)).expect("written");
    import().code(FAILED).says("another input");
    fs::write(&checkpoint, "[]").expect("written");
    import().code(FAILED).says("no checkpoint");
}

#[test]
fn csv_goes_on_too() {
    let (node, folder) = (FakeNode::start(), Folder::new());
    let rows: String = (0..3_000).map(|n| format!("k{n:05},\"v\n{n}\"\n")).collect();
    let (file, checkpoint) = (folder.with("in.csv", format!("key,value\n{rows}")), folder.path("c"));
    let options = ["--retry-for=0", "--batch=100", "--parallel=2"];
    let import = || import_on(&node, &file, &checkpoint, &options);
    node.break_after(10);
    import().code(UNCLEAR);
    node.break_after(u64::MAX);
    import().code(DONE).says("3000 accepted, 0 rejected");
    assert_eq!(
        (node.value("k00000").as_deref(), node.value("k02999").as_deref()),
        (Some("v\n0"), Some("v\n2999"))
    );
}

#[test]
fn an_interrupted_import_remembers_what_is_done() {
    let (node, folder) = (FakeNode::start(), Folder::new());
    let (file, checkpoint) = (folder.with("in.ndjson", ndjson(2_000)), folder.path("c"));
    let arguments = ["import", &file, "--checkpoint", &checkpoint, "--batch=100", "--parallel=1"];
    node.hang_after(5);
    let mut child = command_at(&node, &arguments).spawn().expect("it starts");
    wait_for("a request that hangs", || node.hanging() > 0);
    let interrupted = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(interrupted.is_ok_and(|status| status.success()));
    let mut stderr = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut stderr).expect("text");
    assert_eq!(child.wait().expect("it ends").code(), Some(FAILED), "{stderr}");
    assert!(stderr.contains("interrupted"), "{stderr}");
    node.hang_after(u64::MAX);
    run_at(&node, &arguments).code(DONE).says("2000 accepted");
}
