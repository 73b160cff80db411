//! Arguments that are not what they seem: misspelt flags, values that look like flags, an empty stdin, a proxy's variables.

use crate::node::FakeNode;
use crate::program::{
    DONE, Folder, USAGE, address_of_nobody, command_at, finish, ndjson, run_at, run_at_with,
};

#[test]
fn an_unknown_flag_is_refused_and_changes_nothing() {
    let (node, folder) = (FakeNode::holding(2, |_| "v".into()), Folder::new());
    let input = folder.with("in.ndjson", ndjson(2));
    for arguments in [
        &["set", "k", "--tll=30s"] as &[&str],
        &["set", "k", "--tll"],
        &["set", "k", "--", "v", "more"],
        &["set", "k", "v", "--tll=30s"],
        &["set", "k", "-x"],
        &["set", "--key", "v"],
        &["del", "k0000", "--al"],
        &["get", "k0000", "--no-newlin"],
        &["scan", "--prefixx", "k"],
        &["import", &input, "--reject=r"],
        &["export", "--pagee=1"],
    ] {
        run_at(&node, arguments).code(USAGE).says("unexpected argument");
    }
    assert_eq!((node.value("k"), node.value("k0000").as_deref(), node.sets()), (None, Some("v"), 0));
}

#[test]
fn a_value_may_look_like_a_flag() {
    let node = FakeNode::start();
    for (arguments, value) in [
        (&["set", "k", "-5"] as &[&str], "-5"),
        (&["set", "k", "-1.5"], "-1.5"),
        (&["set", "k", "--", "--tll=30s"], "--tll=30s"),
        (&["set", "--ttl=1h", "--", "k", "-x"], "-x"),
        (&["set", "k", "a-b"], "a-b"),
    ] {
        run_at(&node, arguments).code(DONE);
        assert_eq!(node.value("k").as_deref(), Some(value), "{arguments:?}");
    }
    run_at_with(&node, &["set", "k", "-"], b"from stdin").code(DONE);
    assert_eq!(node.value("k").as_deref(), Some("from stdin"));
    run_at(&node, &["set", "-5", "v"]).code(DONE);
    assert_eq!(run_at(&node, &["get", "-5"]).code(DONE).stdout, "v\n");
    run_at(&node, &["del", "-5"]).code(DONE);
    assert_eq!(node.value("-5"), None);
}

#[test]
fn an_empty_stdin_is_a_value_only_if_asked_for() {
    let node = FakeNode::start();
    node.set("k", "before");
    for arguments in [&["set", "k"] as &[&str], &["set", "k", "-"]] {
        run_at(&node, arguments).code(USAGE).says("stdin is empty").says("--empty");
        assert_eq!(node.value("k").as_deref(), Some("before"));
    }
    run_at(&node, &["set", "k", "--empty"]).code(DONE);
    assert_eq!(node.value("k").as_deref(), Some(""));
    run_at_with(&node, &["set", "k", "--empty"], b"not empty").code(DONE);
    assert_eq!(node.value("k").as_deref(), Some("not empty"));
    run_at(&node, &["set", "k", ""]).code(DONE);
    assert_eq!(node.value("k").as_deref(), Some(""));
}

#[test]
fn no_call_to_a_node_takes_a_proxy() {
    let (node, folder) = (FakeNode::holding(3, |_| "v".into()), Folder::new());
    let (proxy, input) = (format!("http://{}", address_of_nobody()), folder.with("in.ndjson", ndjson(2)));
    for arguments in [
        &["get", "k0000"] as &[&str],
        &["set", "k", "v"],
        &["del", "k"],
        &["scan"],
        &["members"],
        &["status", &node.name()],
        &["import", &input],
        &["export"],
        &["bench", "--requests", "5", "--keys", "5"],
    ] {
        let mut command = command_at(&node, arguments);
        for name in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "https_proxy"] {
            command.env(name, &proxy);
        }
        finish(command.env_remove("no_proxy").env_remove("NO_PROXY"), b"").code(DONE);
    }
}
