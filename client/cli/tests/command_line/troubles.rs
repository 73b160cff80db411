//! What is said when a connection can't be made, or is one of another kind: what helps.

use crate::program::{UNAVAILABLE, UNCLEAR, address_of_nobody, command, finish, run};
use crate::watch::RealNode;

#[test]
fn who_is_refused_or_has_no_address_is_told_to_start_a_node() {
    let address = address_of_nobody();
    let said = run(&["--rpc", &address, "get", "k"]).code(UNAVAILABLE);
    assert!(said.stderr.trim_end().ends_with("; start one"), "{said:?}");
    // Longer than a name may be, so that nobody is asked for its address.
    run(&["--rpc", &format!("{}:8081", "a".repeat(64)), "get", "k"])
        .code(UNAVAILABLE)
        .says("; start one, or give a name that has an address");
}

#[test]
fn the_rpc_port_in_the_place_of_the_http_port_is_suspected() {
    let node = RealNode::start();
    let [[_, rpc], [_, http]] = node.ways();
    let wrong = format!("http://{rpc}");
    let suspects = "is this a node's RPC port? HTTP is by default at the port below it";
    run(&["--http", &wrong, "get", "k"]).code(UNAVAILABLE).says(suspects);
    run(&["--http", &wrong, "set", "k", "v"]).code(UNCLEAR).says(suspects);
    run(&["--http", &wrong, "members"]).code(UNAVAILABLE).says(suspects);
    run(&["diff", &rpc, &http]).code(UNAVAILABLE).says(suspects);
    run(&["status", &rpc]).code(UNAVAILABLE).says(suspects);
}

/// The node waits so long as it is asked to, and is asked again for the rest of the time.
#[test]
fn a_position_that_is_not_reached_is_told_with_the_whole_time() {
    let node = RealNode::start();
    let [[_, rpc], _] = node.ways();
    let mut get = command(&["--rpc", &rpc, "--timeout", "1s", "get", "k", "--position", "0:1000"]);
    let said = finish(&mut get, b"").code(UNAVAILABLE);
    said.says("was not reached within").says(" times within 1s");
}
