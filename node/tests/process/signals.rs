//! What a signal does to a node.

use std::process::{Command, Stdio};

use rustix::process::Signal;

use super::program::{Program, command};

fn dev(data: &std::path::Path, more: impl FnOnce(&mut Command)) -> Program {
    let mut node = Program::dev(1, data, |it| {
        it.env("LOG_LEVEL", "info").stderr(Stdio::piped());
        more(it);
    });
    node.answers("/health/ready", 200);
    node
}

/// It ends in order: the last step of a stop is told, and the exit code is 0.
fn stopped_in_order(mut node: Program) {
    let status = node.ended();
    let said = node.said();
    assert_eq!(status.code(), Some(0), "{status}: {said}");
    assert!(said.contains("stopping: done"), "{said}");
}

#[test]
fn a_stop_signal_is_an_orderly_stop() {
    for signal in [Signal::TERM, Signal::INT, Signal::QUIT, Signal::HUP] {
        let data = tempfile::tempdir().expect("a folder");
        let node = dev(data.path(), |_| ());
        node.signal(signal);
        stopped_in_order(node);
    }
}

/// A closed terminal sends SIGHUP twice, and an init system may send it along with SIGTERM.
#[test]
fn a_hangup_during_a_stop_does_not_cut_it_short() {
    for first in [Signal::HUP, Signal::TERM] {
        let data = tempfile::tempdir().expect("a folder");
        let mut node = dev(data.path(), |it| {
            it.env("DRAIN_DELAY", "1s");
        });
        node.signal(first);
        node.answers("/health/ready", 503);
        node.signal(Signal::HUP);
        stopped_in_order(node);
    }
}

#[test]
fn a_second_stop_signal_ends_it_at_once() {
    let data = tempfile::tempdir().expect("a folder");
    let mut node = dev(data.path(), |it| {
        it.env("DRAIN_DELAY", "1h");
    });
    node.signal(Signal::TERM);
    node.answers("/health/ready", 503);
    node.signal(Signal::INT);
    assert_eq!(node.ended().code(), Some(1));
}

/// `nohup` starts a program with SIGHUP ignored.
#[test]
fn under_nohup_a_hangup_does_nothing() {
    let data = tempfile::tempdir().expect("a folder");
    let port = super::program::ports(2).to_string();
    let mut shell = Command::new("sh");
    let script = r#"trap "" HUP; exec "$0" dev --nodes 1 --port "$1" --data-dir "$2""#;
    shell.args(["-c", script, env!("CARGO_BIN_EXE_bitacora-node"), &port]).arg(data.path());
    shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut node = Program::run(shell, port.parse().expect("a port"));
    node.answers("/health/ready", 200);
    node.signal(Signal::HUP);
    // If it stopped, it would be unready before it answered this.
    node.signal(Signal::USR1);
    node.answers("/health/ready", 200);
    assert_eq!(node.ask("POST", "/rpc?key=k&value=v").expect("an answer").0, 200);
    node.signal(Signal::TERM);
    assert_eq!(node.ended().code(), Some(0));
}

#[test]
fn a_signal_that_means_nothing_is_told_and_ignored() {
    let data = tempfile::tempdir().expect("a folder");
    let mut node = dev(data.path(), |_| ());
    node.signal(Signal::USR1);
    node.signal(Signal::USR2);
    node.answers("/rpc?key=k", 404);
    node.signal(Signal::TERM);
    let status = node.ended();
    let said = node.said();
    assert_eq!(status.code(), Some(0), "{said}");
    assert!(said.contains("SIGUSR1") && said.contains("SIGUSR2"), "{said}");
}

/// A limit of the size of files ends a program that does not handle its signal.
#[test]
fn a_limit_of_file_sizes_does_not_end_it() {
    let data = tempfile::tempdir().expect("a folder");
    let log = data.path().join("node.log");
    let node = command(&[]);
    let mut shell = Command::new("sh");
    // In units of 512 bytes or of 1 KiB; either way more than the files of an empty store have.
    let script = r#"ulimit -f 32768; exec "$0" serve 2>>"$1""#;
    std::fs::File::create(&log).and_then(|file| file.set_len(64 << 20)).expect("a file beyond the limit");
    shell.args(["-c", script]).arg(node.get_program()).arg(&log);
    let port = super::program::ports(2);
    shell.env_clear().envs([
        ("BROKER_LIST", "127.0.0.1:1"),
        ("ZOOKEEPER_HOSTS", "127.0.0.1:1"),
        ("BIND_ADDRESS", "127.0.0.1"),
        ("LOG_LEVEL", "trace"),
    ]);
    shell.env("PATH", "/usr/bin:/bin").env("API_PORT", port.to_string());
    shell.env("DATA_DIR", data.path().join("data")).stdin(Stdio::null()).stdout(Stdio::null());
    let mut node = Program::run(shell, port);
    node.answers("/health/live", 200);
    assert!(node.metric("bitacora_log_lines_dropped_total") > Some(0.0));
    assert_eq!(node.ask("GET", "/health/live").expect("an answer").0, 200);
    node.signal(Signal::TERM);
    assert_eq!(node.ended().code(), Some(0));
}
