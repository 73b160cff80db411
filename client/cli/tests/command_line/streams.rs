//! A stdout or stderr that can't be written: the exit code tells of the work.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, pipe};
use std::process::{Command, Stdio};

use crate::node::FakeNode;
use crate::program::{
    DONE, FAILED, Folder, REJECTED, Run, command, command_at, finish, json_lines, ndjson, text,
};

fn full() -> File {
    OpenOptions::new().write(true).open("/dev/full").expect("a device that is full")
}

/// A pipe whose reader has gone.
fn unread() -> Stdio {
    pipe().expect("a pipe").1.into()
}

/// `/dev/stdout` under a name that a test may lose.
fn link_to_stdout(folder: &Folder) -> String {
    let link = folder.path("stdout");
    std::os::unix::fs::symlink("/dev/stdout", &link).expect("linked");
    link
}

/// A run that did not panic.
#[track_caller]
fn ends(command: &mut Command, stdin: &[u8]) -> Run {
    let run = finish(command.stdin(Stdio::piped()), stdin);
    assert!(run.code != 101 && !run.stderr.contains("panicked"), "{run:#?}");
    run
}

#[test]
fn what_is_asked_for_and_not_printed_is_an_error() {
    let (node, folder) = (FakeNode::holding(10, |n| format!("v{n}")), Folder::new());
    let stdout = link_to_stdout(&folder);
    for arguments in [
        &["get", "k0001"] as &[&str],
        &["get", "k0001", "-o", "json"],
        &["scan"],
        &["scan", "-o", "table"],
        &["export"],
        &["export", &stdout, "--format", "csv"],
        &["members"],
        &["status"],
        &["bench", "--requests", "5", "--keys", "5"],
    ] {
        let run = ends(command_at(&node, arguments).stdout(full()), b"");
        run.code(FAILED).says("bitacora: stdout can't be written: No space left on device");
    }
    ends(command(&["completions", "bash"]).stdout(full()), b"").code(FAILED).says("stdout can't be written");
    ends(command(&["--help"]).stdout(full()), b"").code(FAILED).says("stdout can't be written");
}

#[test]
fn what_is_done_is_done_whatever_stdout_takes() {
    let node = FakeNode::holding(10, |n| format!("v{n}"));
    for output in ["raw", "json", "table"] {
        let run = ends(command_at(&node, &["set", "k", output, "-o", output]).stdout(full()), b"");
        run.code(DONE).says("it is done, but stdout can't be written");
        assert_eq!(node.value("k").as_deref(), Some(output));
        ends(command_at(&node, &["del", "k", "k0001", "-o", output]).stdout(full()), b"").code(DONE);
        assert_eq!(node.value("k"), None);
    }
}

#[test]
fn a_reader_that_has_gone_is_no_error() {
    let (node, folder) = (FakeNode::holding(10, |n| format!("v{n}")), Folder::new());
    let stdout = link_to_stdout(&folder);
    for arguments in [
        &["get", "k0001"] as &[&str],
        &["set", "k", "v"],
        &["del", "k0002", "k0003"],
        &["scan"],
        &["export", "-"],
        &["export", &stdout, "--format", "csv"],
        &["members"],
        &["status"],
        &["--help"],
        &["completions", "zsh"],
    ] {
        let run = ends(command_at(&node, arguments).stdout(unread()), b"").code(DONE);
        assert_eq!(run.stderr, "", "{arguments:?}");
    }
    assert_eq!((node.value("k").as_deref(), node.value("k0003")), (Some("v"), None));
    // A file that was named is not whole without its reader.
    let fifo = folder.path("fifo.ndjson");
    assert!(Command::new("mkfifo").arg(&fifo).status().expect("mkfifo").success());
    let large = FakeNode::holding(2_000, |_| "x".repeat(1_000));
    let export = command_at(&large, &["export", &fifo]).spawn().expect("it starts");
    let mut some = [0; 10];
    File::open(&fifo).and_then(|mut reader| reader.read_exact(&mut some)).expect("read");
    let export = export.wait_with_output().expect("it ends");
    let told = String::from_utf8_lossy(&export.stderr).into_owned();
    assert!(export.status.code() == Some(FAILED) && told.contains("can't be written"), "{told}");
}

#[test]
fn a_stderr_that_takes_nothing_changes_nothing() {
    let (node, folder) = (FakeNode::start(), Folder::new());
    let (input, out) = (folder.with("in.ndjson", ndjson(50)), folder.path("out.ndjson"));
    for broken in [false, true] {
        let at = |arguments: &[&str], stdin: &[u8]| {
            let stderr: Stdio = if broken { unread() } else { full().into() };
            ends(command_at(&node, arguments).stderr(stderr), stdin)
        };
        at(&["import", &input], b"").code(DONE);
        assert_eq!(node.value("k00049").as_deref(), Some("v49"));
        at(&["import", "-"], &b"wrong\n".repeat(20)).code(REJECTED);
        at(&["export", &out, "--prefix", "k"], b"").code(DONE);
        assert_eq!(json_lines(&text(&out)).len(), 50);
        at(&["get", "nowhere"], b"").code(3);
        at(&["frob"], b"").code(2);
        at(&["status", "127.0.0.1:1"], b"").code(5);
        at(&["--log-level", "trace", "get", "k00001"], b"").code(DONE);
        at(&["bench", "--requests", "5", "--keys", "5"], b"").code(DONE);
    }
}

#[test]
fn closed_streams_are_no_reason_to_panic() {
    let (node, folder) = (FakeNode::holding(10, |n| format!("v{n}")), Folder::new());
    let (program, url, out) = (env!("CARGO_BIN_EXE_bitacora"), node.url(), folder.path("out.ndjson"));
    for (arguments, file) in [("set k v", None), ("export", Some(&out)), ("del k0001", None)] {
        let file = file.map_or("", String::as_str);
        let line = format!("exec '{program}' --http {url} {arguments} {file} <&- >&- 2>&-");
        let status = Command::new("sh").args(["-c", &line]).status().expect("a shell");
        assert!(status.success(), "{line}: {status}");
    }
    assert_eq!((node.value("k").as_deref(), node.value("k0001")), (Some("v"), None));
    assert_eq!(json_lines(&text(&out)).len(), 11);
}
