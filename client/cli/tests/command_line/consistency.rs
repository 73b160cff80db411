//! Reads of all levels and conditional writes, as a script asks for them.

use crate::node::FakeNode;
use crate::program::{DONE, NOT_MET, USAGE, run, run_at};

const UUID: &str = "123e4567-e89b-12d3-a456-426614174000";

#[test]
fn a_write_is_made_on_its_condition_only() {
    let node = FakeNode::start();
    let at = |arguments: &[&str]| run_at(&node, arguments);
    let version = |stdout: &str| stdout.trim_start_matches("OK ").trim_end().to_owned();
    let first = version(&at(&["set", "k", "1", "--if-absent"]).code(DONE).stdout);
    let taken = at(&["set", "k", "2", "--if-absent"])
        .code(NOT_MET)
        .says(&format!("the version of the key is {first}"));
    assert_eq!(taken.stdout, "");
    let second = version(&at(&["set", "k", "2", "--if-match", &first]).code(DONE).stdout);
    at(&["set", "k", "3", "--if-match", &first]).code(NOT_MET);
    at(&["set", "k", "3", "--if-match", &format!("\"{second}\"")]).code(DONE);
    at(&["del", "k", "--if-match", &second]).code(NOT_MET);
    assert_eq!(node.value("k").as_deref(), Some("3"));
    at(&["del", "k", "--if-match", "*"]).code(DONE);
    at(&["del", "k", "never", "--if-match", "*"]).code(NOT_MET);
    at(&["set", "k", "4", "--if-match", "*"]).code(NOT_MET);
    assert_eq!(node.value("k"), None);
    at(&["set", "k", "5", "--idempotency-key", UUID, "--visible", "all", "--timeout", "1s"]).code(DONE);
    assert_eq!(node.last_asked(), format!("visible=all timeout=900ms idempotency-key={UUID}"));
}

#[test]
fn a_read_asks_for_its_level() {
    let node = FakeNode::start();
    node.set("k", "v");
    for (flags, asked) in [
        (&[] as &[&str], ""),
        (&["--consistency", "eventual"], "consistency=eventual timeout=9000ms"),
        (&["--consistency", "strong", "--timeout", "2s"], "consistency=strong timeout=1800ms"),
        (&["--consistency", "latest", "--timeout", "5m"], "consistency=latest timeout=60000ms"),
        (&["--position", "3:40,0:12"], "consistency=session position=0:12,3:40 timeout=9000ms"),
        (
            &["--consistency", "session", "--position", "0:1"],
            "consistency=session position=0:1 timeout=9000ms",
        ),
        (&["--max-staleness", "2s"], "max_staleness=2000ms timeout=9000ms"),
    ] {
        assert_eq!(run_at(&node, &[&["get", "k"], flags].concat()).code(DONE).stdout, "v\n");
        assert_eq!(node.last_asked(), asked);
        run_at(&node, &[&["scan"], flags].concat()).code(DONE);
        assert_eq!(node.last_asked(), asked);
    }
}

#[test]
fn what_makes_no_sense_is_refused_and_reaches_nobody() {
    for (arguments, names) in [
        (&["get", "k", "--consistency", "Strong"] as &[&str], "none of eventual, session, latest, strong"),
        (&["get", "k", "--consistency", "session"], "--position"),
        (&["get", "k", "--consistency", "strong", "--position", "0:1"], "--consistency session"),
        (&["scan", "--consistency", "latest", "--position", "0:1"], "--consistency session"),
        (&["get", "k", "--position", "0:1,0:2"], "named twice"),
        (&["get", "k", "--position", ""], "empty"),
        (&["get", "k", "--max-staleness", "2"], "write 2s or 2ms"),
        (&["get", "k", "--max-staleness", "0"], "above 0"),
        (&["set", "k", "v", "--if-match", "0:1", "--if-absent"], "cannot be used with"),
        (&["set", "k", "v", "--if-match", "W/\"0:1\""], "is no version"),
        (&["set", "k", "v", "--if-match", "0:1,0:2"], "is no version"),
        (&["set", "k", "v", "--idempotency-key", "mine"], "no UUID"),
        (&["set", "k", "v", "--visible", "everywhere"], "none of acknowledged, here, all"),
        (&["del", "k", "--if-absent"], "--if-absent"),
        (&["del", "a", "b", "--if-match", "0:1"], "for one key"),
        (&["del", "a", "b", "--idempotency-key", UUID], "for one key"),
        (&["del", "--from-file", "-", "--if-match", "0:1"], "ifMatch in the lines"),
        (&["del", "--from-file", "-", "--idempotency-key", UUID], "cannot be used with"),
        (&["import", "-", "--if-match", "0:1"], "as ifMatch"),
        (&["import", "-", "--if-match", "*", "--if-absent"], "cannot be used with"),
        (&["import", "-", "--visible", "everywhere"], "none of acknowledged, here, all"),
        (&["import", "-", "--idempotency-key", UUID], "--idempotency-key"),
    ] {
        run(arguments).code(USAGE).says(names);
    }
}
