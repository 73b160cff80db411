//! `diff` against real nodes over an embedded log, and against what can't be compared. Nodes that differ: `e2e/tests/suites/changed_store.rs`.

use crate::node::FakeNode;
use crate::program::{DONE, FAILED, UNAVAILABLE, USAGE, address_of_nobody, run};
use crate::watch::RealNode;

#[test]
fn nodes_that_hold_the_same_are_told_so_and_what_can_not_be_compared_too() {
    let node = RealNode::start();
    for key in ["a", "b", "c"] {
        node.set(key, "v");
    }
    let [_, [_, url]] = node.ways();
    for output in ["json", "table", "raw"] {
        let said = run(&["diff", &url, &url, "-o", output]).code(DONE).says("hold the same (3 entries");
        assert_eq!(said.stdout, "");
    }
    run(&["diff", &url, &url, "--partition", "3"]).code(DONE).says("hold the same");
    run(&["diff", &url, &url, "--partition", "9"]).code(UNAVAILABLE).says("partition 9 is left out");

    let other = RealNode::start();
    let [_, [_, other]] = other.ways();
    run(&["diff", &url, &other]).code(FAILED).says("different logs");
    let older = FakeNode::start();
    run(&["diff", &url, &older.url()]).code(FAILED).says(&older.name()).says("has no digests of ranges");
    run(&["diff", &address_of_nobody(), &url]).code(UNAVAILABLE).says("can't be reached");
    run(&["diff", &url]).code(USAGE);
}
