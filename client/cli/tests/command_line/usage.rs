//! Help, wrong usage, settings, and the exit codes of what fails.

use crate::node::FakeNode;
use crate::program::{
    DONE, FAILED, UNAVAILABLE, UNCLEAR, USAGE, address_of_nobody, command, finish, run, run_at,
};

#[test]
fn help_tells_commands_examples_and_exit_codes() {
    let help = run(&["--help"]).code(DONE).stdout;
    for word in ["import", "BITACORA_ZOOKEEPER", "Examples:", "Exit codes: 0 done", "127.0.0.1:8081"] {
        assert!(help.contains(word), "{word}: {help}");
    }
    for command in [
        "get",
        "set",
        "del",
        "scan",
        "watch",
        "members",
        "status",
        "import",
        "export",
        "bench",
        "completions",
    ] {
        assert!(help.contains(&format!("\n  {command} ")), "{command}: {help}");
        assert!(run(&[command, "--help"]).code(DONE).stdout.contains("Examples:"), "{command}");
    }
}

#[test]
fn wrong_usage_is_told_and_reaches_nobody() {
    for (arguments, names) in [
        (&["get"] as &[&str], "<KEY>"),
        (&[], "Usage"),
        (&["frob"], "frob"),
        (&["--rpc", "nowhere", "get", "k"], "not host:port"),
        (&["--rpc", "a:1", "--zookeeper", "b:1", "get", "k"], "--zookeeper"),
        (&["--http", "https://a", "get", "k"], "https"),
        (&["set", "k", "v", "--ttl", "soon"], "not a time"),
        (&["set", "k", "v", "--ttl", "60"], "write 60s or 60ms"),
        (&["set", "k", "v", "--timeout", "60"], "write 60s or 60ms"),
        (&["watch", "--prefix", "a", "--key", "b"], "--key"),
        (&["watch", "--limit", "0"], "--limit"),
        (&["bench", "--duration", "60"], "write 60s or 60ms"),
        (&["bench", "--duration", "1s", "--requests", "5"], "--requests"),
        (&["--http", "http://127.0.0.1:9", "bench", "--pipeline", "4"], "--connections"),
        (&["--http", "http://127.0.0.1:9", "import", "file"], "--format"),
        (&["--http", "http://127.0.0.1:9", "import", "-", "--checkpoint", "c"], "stdin"),
        (&["--http", "http://127.0.0.1:9", "export", "-", "--checkpoint", "c"], "stdout"),
    ] {
        run(arguments).code(USAGE).says(names);
    }
}

#[test]
fn completions_are_printed() {
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&["completions", shell]).code(DONE).stdout;
        assert!(script.contains("members") && script.contains("zookeeper"), "{shell}");
    }
}

#[test]
fn no_node_is_told_at_once() {
    let address = address_of_nobody();
    run(&["--rpc", &address, "get", "k"]).code(UNAVAILABLE).says(&address);
    run(&["--http", &format!("http://{address}"), "set", "k", "v"])
        .code(UNAVAILABLE)
        .says("can't be reached");
    // The node's HTTP port is one below, and nobody is there either.
    run(&["--rpc", &address, "members"]).code(UNAVAILABLE).says("--http");
    run(&["--zookeeper", &address, "--timeout", "300ms", "members"]).code(UNAVAILABLE).says("ZooKeeper");
}

/// Compose makes a variable that nobody set empty: `${BITACORA_RPC:-}`.
#[test]
fn empty_variables_count_as_unset() {
    let node = FakeNode::start();
    node.set("k", "v");
    let mut command = command(&["--http", &node.url(), "get", "k"]);
    for name in ["RPC", "ZOOKEEPER", "HTTP", "TIMEOUT", "OUTPUT", "LOG_LEVEL"] {
        command.env(format!("BITACORA_{name}"), "");
    }
    assert_eq!(finish(&mut command, b"").code(DONE).stdout, "v\n");
}

#[test]
fn variables_are_settings_too_and_a_flag_wins() {
    let node = FakeNode::start();
    node.set("k", "v");
    let run = finish(command(&["get", "k"]).env("BITACORA_HTTP", node.url()), b"").code(DONE);
    assert_eq!(run.stdout, "v\n");
    let mut flag = command(&["--http", &node.url(), "get", "k"]);
    finish(flag.env("BITACORA_RPC", "127.0.0.1:9").env("BITACORA_OUTPUT", "json"), b"").code(DONE);
}

#[test]
fn what_a_node_can_not_answer_has_an_exit_code() {
    let node = FakeNode::start();
    let at = |arguments: &[&str]| run_at(&node, &[&["--timeout", "500ms"], arguments].concat());
    at(&["set", "bad", "v"]).code(FAILED).says("refused");
    node.fail(u64::MAX);
    at(&["get", "k"]).code(UNAVAILABLE).says("not now");
    at(&["set", "k", "v"]).code(UNCLEAR).says("not now");
    node.fail(0);
    node.hang(true);
    at(&["get", "k"]).code(UNCLEAR).says("--timeout");
    at(&["set", "k", "v"]).code(UNCLEAR).says("may have taken effect");
    node.hang(false);
    // The other node answers for one that can't.
    let dead = FakeNode::start();
    dead.fail(u64::MAX);
    node.set("k", "v");
    for _ in 0..2 {
        run(&["--http", &format!("{},{}", dead.url(), node.url()), "get", "k"]).code(DONE);
    }
}
