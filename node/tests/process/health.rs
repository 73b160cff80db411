//! `health` and `backup` ask the node of the same environment, wherever it listens.

use std::fs::OpenOptions;
use std::net::IpAddr;

use super::program::{Program, command, output, stderr};

#[test]
fn health_asks_where_the_node_listens() {
    for (bind, asked) in [("127.0.0.2", "127.0.0.2"), ("::1", "::1"), ("0.0.0.0", "127.0.0.1"), ("::", "::1")]
    {
        let data = tempfile::tempdir().expect("a folder");
        let asked: IpAddr = asked.parse().expect("an address");
        let mut node = Program::serve(asked, data.path(), |it| {
            it.env("BIND_ADDRESS", bind).env("NODE_ADDRESS", "localhost");
        });
        node.answers("/health/live", 200);
        let mut health = command(&["health", "--live"]);
        let ended = output(health.env("BIND_ADDRESS", bind).env("API_PORT", node.port.to_string()));
        assert!(ended.status.success(), "{bind}: {}", stderr(&ended));
        let file = data.path().join("backup");
        let mut backup = command(&["backup"]);
        backup.arg(&file).env("BIND_ADDRESS", bind).env("API_PORT", node.port.to_string());
        let said = stderr(&output(&mut backup));
        // It has nothing to copy, and is the one that says so.
        assert!(said.contains("not complete"), "{bind}: {said}");
    }
}

#[test]
fn health_has_its_exit_code_on_a_full_device() {
    let data = tempfile::tempdir().expect("a folder");
    let mut node = Program::dev(1, data.path(), |_| ());
    node.answers("/health/ready", 200);
    let full = || OpenOptions::new().write(true).open("/dev/full").expect("Linux has it");
    for (port, code) in [(node.port, 0), (1, 1)] {
        let mut health = command(&["health"]);
        let ended = health.env("API_PORT", port.to_string()).stdout(full()).stderr(full()).status();
        assert_eq!(ended.expect("it starts").code(), Some(code));
    }
}
