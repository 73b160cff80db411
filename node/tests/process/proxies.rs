//! No call within a deployment goes through a proxy, whatever the environment says.

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::program::{LOCALHOST, PATIENCE, Program, ask, ask_with, command, output, stderr};

/// A port that nobody listens on.
const DEAD: &str = "http://127.0.0.1:1";

fn behind_a_dead_proxy(command: &mut Command) -> &mut Command {
    for name in ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
        command.env(name, DEAD);
    }
    command
}

#[test]
fn health_and_backup_use_none() {
    let data = tempfile::tempdir().expect("a folder");
    let mut node = Program::dev(1, &data.path().join("data"), |_| ());
    node.answers("/health/ready", 200);
    let health = output(behind_a_dead_proxy(command(&["health"]).env("API_PORT", node.port.to_string())));
    assert!(health.status.success(), "{}", stderr(&health));
    let mut backup = command(&["backup", "--from", &node.url("")]);
    let backup = output(behind_a_dead_proxy(&mut backup).arg(data.path().join("backup")));
    assert!(backup.status.success(), "{}", stderr(&backup));
}

#[test]
fn a_snapshot_between_nodes_uses_none() {
    let data = tempfile::tempdir().expect("a folder");
    let mut first = Program::dev(1, data.path(), |_| ());
    first.answers("/health/ready", 200);
    // A log that is shorter is read instead.
    let lines: String =
        (0..20_100).map(|i| format!("{{\"op\":\"set\",\"key\":\"{i}\",\"value\":\"v\"}}\n")).collect();
    let written = ask_with(SocketAddr::new(LOCALHOST, first.port), "POST", "/rpc/batch", &lines);
    assert_eq!(written.expect("an answer").0, 200);
    first.answers("/rpc?key=20099", 200);
    first.signal(Signal::TERM);
    assert_eq!(first.ended().code(), Some(0));
    // The second node has no store yet, and takes the first one's.
    let nodes = Program::dev(2, data.path(), |it| {
        behind_a_dead_proxy(it);
    });
    let second = SocketAddr::new(LOCALHOST, nodes.port + 2);
    let deadline = Instant::now() + PATIENCE;
    while !ask(second, "GET", "/health/ready").is_ok_and(|answer| answer.0 == 200) {
        assert!(Instant::now() < deadline, "the second node is not ready");
        std::thread::sleep(Duration::from_millis(20));
    }
    let (_, metrics) = ask(second, "GET", "/metrics").expect("an answer");
    let installed = metrics.lines().find(|line| line.starts_with("bitacora_snapshots_installed_total"));
    assert_eq!(installed, Some("bitacora_snapshots_installed_total 1"));
}
