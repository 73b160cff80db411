//! Log lines are best effort: where they go may be full, gone, or taken by nobody, and the node goes on.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::process::{Command, Stdio};

use rustix::process::Signal;

use super::program::{LOCALHOST, Program, command};

const DROPPED: &str = "bitacora_log_lines_dropped_total";

fn full() -> Stdio {
    OpenOptions::new().write(true).open("/dev/full").expect("Linux has it").into()
}

/// A node does all of its work, and stops as it is told.
fn works(node: &mut Program) {
    node.answers("/health/ready", 200);
    for key in ["a", "b", "c", "d", "e"] {
        let written = node.ask("POST", &format!("/rpc?key={key}&value=v")).expect("an answer");
        assert_eq!(written.0, 200, "{}", written.1);
        node.answers(&format!("/rpc?key={key}"), 200);
    }
    assert_eq!(node.ask("GET", "/health/live").expect("an answer").0, 200);
}

fn stops(node: &mut Program) {
    node.signal(Signal::TERM);
    assert_eq!(node.ended().code(), Some(0));
}

fn debug(command: &mut Command) -> &mut Command {
    command.env("LOG_LEVEL", "debug")
}

#[test]
fn a_full_device_takes_no_line_and_the_node_works() {
    let data = tempfile::tempdir().expect("a folder");
    let mut node = Program::dev(1, data.path(), |it| {
        debug(it).stdout(full()).stderr(full());
    });
    works(&mut node);
    assert!(node.metric(DROPPED) > Some(0.0), "{:?}", node.metric(DROPPED));
    stops(&mut node);
}

#[test]
fn a_reader_that_has_gone_takes_no_line_and_the_node_works() {
    let data = tempfile::tempdir().expect("a folder");
    let mut node = Program::dev(1, data.path(), |it| {
        debug(it).stdout(Stdio::piped()).stderr(Stdio::piped());
    });
    drop((node.child.stdout.take(), node.child.stderr.take()));
    works(&mut node);
    assert!(node.metric(DROPPED) > Some(0.0), "{:?}", node.metric(DROPPED));
    stops(&mut node);
}

#[test]
fn a_reader_that_reads_nothing_holds_nobody_up() {
    let data = tempfile::tempdir().expect("a folder");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let mut full = writer.try_clone().expect("a descriptor");
    // Until the pipe is full; then until its reader has gone.
    let filling = std::thread::spawn(move || while full.write_all(&[b'x'; 4096]).is_ok() {});
    let mut node = Program::dev(1, data.path(), |it| {
        debug(it).stderr(writer);
    });
    works(&mut node);
    stops(&mut node);
    drop(reader);
    filling.join().expect("no panic");
}

#[test]
fn a_node_without_brokers_lives_on_a_full_device() {
    let data = tempfile::tempdir().expect("a folder");
    let mut node = Program::serve(LOCALHOST, data.path(), |it| {
        debug(it).env("BIND_ADDRESS", "127.0.0.1").stderr(full());
    });
    node.answers("/health/live", 200);
    let written = node.ask("POST", "/rpc?key=k&value=v").expect("an answer");
    assert_eq!(written.0, 503, "{}", written.1);
    assert_eq!(node.ask("GET", "/health/live").expect("an answer").0, 200);
    stops(&mut node);
}

#[test]
fn a_start_that_fails_has_its_exit_code_on_a_full_device() {
    for (arguments, code) in [(&["dev", "--data-dir", "/proc/none"][..], 1), (&["dev", "--nodes", "0"], 2)] {
        let ended = command(arguments).stdout(full()).stderr(full()).status().expect("it starts");
        assert_eq!(ended.code(), Some(code), "{arguments:?}");
    }
}

#[test]
fn the_last_line_is_written_before_the_end() {
    let data = tempfile::tempdir().expect("a folder");
    let mut node = Program::dev(1, data.path(), |it| {
        it.env("LOG_LEVEL", "info").stderr(Stdio::piped());
    });
    node.answers("/health/ready", 200);
    stops(&mut node);
    let said = node.said();
    assert!(said.lines().last().is_some_and(|line| line.contains("stopping: done")), "{said}");
}
