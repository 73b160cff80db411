//! `bench`.

use serde_json::json;

use crate::node::FakeNode;
use crate::program::{DONE, UNCLEAR, run_at};

#[test]
fn a_benchmark_reports() {
    let node = FakeNode::start();
    let bench = |arguments: &[&str]| {
        run_at(&node, &[&["bench", "--connections", "4", "--keys", "50"], arguments].concat())
    };
    for operation in ["get", "set", "mixed"] {
        let arguments = ["--operation", operation, "--requests", "200"];
        let report = &bench(&arguments).code(DONE).says(&node.url()).lines()[0];
        assert_eq!(
            (&report["requests"], &report["failed"], &report["not_found"]),
            (&json!(200), &json!(0), &json!(0))
        );
        let latency = &report["latency_us"];
        assert!(
            latency["p50"].as_u64() <= latency["p99.9"].as_u64() && latency["max"].as_u64() > Some(0),
            "{report}"
        );
    }
    let page = bench(&["--duration", "100ms", "-o", "table"]).code(DONE).stdout;
    assert!(page.contains("p99.9") && page.contains("a second"), "{page}");
    node.fail(u64::MAX);
    bench(&["--requests", "20", "--operation", "set"]).code(UNCLEAR).says("not now");
}
