//! `members` and `status`.

use serde_json::json;

use crate::node::FakeNode;
use crate::program::{DONE, UNAVAILABLE, address_of_nobody, run_at};

#[test]
fn members_and_status_are_the_nodes_own_words() {
    let node = FakeNode::start();
    let dead = address_of_nobody();
    node.members(&[&dead]);
    let at = |arguments: &[&str]| run_at(&node, arguments);
    let mut lines = at(&["members"]).code(DONE).lines();
    lines.sort_by_key(|line| line["ready"] != true);
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert_eq!(
        (&lines[0]["node"], &lines[0]["lag"], &lines[0]["caught_up"]),
        (&json!(node.name()), &json!(3), &json!(true))
    );
    assert_eq!((&lines[1]["node"], &lines[1]["lag"]), (&json!(dead), &json!(null)));
    // Who asks may be the only one who can't reach it.
    assert_eq!((&lines[1]["ready"], &lines[1]["caught_up"]), (&json!(null), &json!(null)));
    assert!(
        lines[1]["reason"].as_str().is_some_and(|reason| reason.contains("can't be reached")),
        "{lines:?}"
    );
    let table = at(&["members", "-o", "table"]).code(DONE).stdout;
    assert!(table.starts_with("MEMBER") && table.contains(&node.name()), "{table}");
    let of_dead = table.lines().find(|line| line.starts_with(&dead)).unwrap_or_default();
    assert!(of_dead.contains(" unknown ") && !of_dead.contains(" no "), "{table}");

    let own = &at(&["status", &node.name()]).code(DONE).lines()[0];
    assert_eq!(own["anything"], json!({"else": 1}), "JSON is passed on whole");
    let page = at(&["status", "-o", "table"]).code(DONE).says("can't be reached").stdout;
    assert!(page.contains("PARTITION") && page.contains("7 records"), "{page}");
    assert_eq!(at(&["status", "-o", "raw"]).stdout, format!("{}\t0\t6\t10\t3\n", node.name()));
    at(&["status", &node.name(), &dead]).code(UNAVAILABLE);
}

mod members_blames_who_was_asked {
    use std::net::TcpListener;

    use crate::program::{UNAVAILABLE, run};

    /// Accepts connections and closes them, as a ZooKeeper without a quorum does.
    fn closes_connections() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("it is bound").to_string();
        std::thread::spawn(move || listener.incoming().for_each(drop));
        address
    }

    #[test]
    fn zookeeper_with_host_and_reason() {
        let address = closes_connections();
        let said = run(&["--zookeeper", &format!("{address}/chroot"), "--timeout", "2s", "members"])
            .code(UNAVAILABLE);
        said.says(&format!("ZooKeeper at {address} (--zookeeper)")).says("quorum");
    }

    #[test]
    fn zookeeper_for_other_commands_too() {
        let address = closes_connections();
        let said = run(&["--zookeeper", &address, "--timeout", "2s", "get", "k"]).code(UNAVAILABLE);
        said.says("ZooKeeper").says(&address).says("quorum");
    }

    #[test]
    fn nodes_without_a_word_of_zookeeper() {
        // There is no port one below.
        let said = run(&["--rpc", "127.0.0.1:1", "members"]).code(UNAVAILABLE);
        assert!(!said.stderr.contains("ZooKeeper"), "{said:?}");
        said.says("127.0.0.1:1").says("--http");
        let (one, other) = (closes_connections(), closes_connections());
        let both = format!("http://{one},http://{other}");
        let said = run(&["--http", &both, "members"]).code(UNAVAILABLE);
        assert!(!said.stderr.contains("ZooKeeper"), "{said:?}");
        let said = said.says("none of the 2 nodes");
        // The first by name.
        said.says(if one < other { &one } else { &other });
    }
}
