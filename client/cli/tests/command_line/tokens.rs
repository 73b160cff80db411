//! A node with tokens: what is said to who shows none, or one that is not good for the call.

use tokio::runtime::Runtime;

use crate::program::{DENIED, DONE, Folder, REJECTED, run, run_with};
use crate::watch::start_node;

#[test]
fn a_token_that_is_missing_or_not_good_for_a_call_is_told_by_its_flag() {
    let (runtime, folder) = (Runtime::new().expect("a runtime"), Folder::new());
    let token = |name: &str, flags: &[&str]| {
        let file = folder.path(name);
        let line = run(&[&["token", name, "--out", &file], flags].concat()).code(DONE).stdout;
        (file, line)
    };
    let (writer, writers) = token("writer", &["--scopes", "write"]);
    let (web, webs) = token("web", &["--scopes", "read,write", "--prefix", "web/"]);
    let (member, members) = token("member", &["--scopes", "member"]);
    let tokens = folder.with("tokens", writers + &webs + &members);
    let flags = ["--tokens-file", &tokens, "--member-token-file", &member];
    let (node, address) = start_node(&runtime, &folder, &flags);
    let (rpc, http) = (address.avro(), format!("http://{}", address.api()));
    for way in [["--rpc", &rpc], ["--http", &http]] {
        let with = |token: &str, arguments: &[&str]| {
            let flags = ["--token-file", token];
            run_with(&[&way, &flags[..], arguments].concat(), b"{\"key\":\"k\",\"value\":\"v\"}\n")
        };
        for arguments in [&["get", "k"] as &[&str], &["scan"], &["watch", "--limit", "1"]] {
            let said = run(&[&way, arguments].concat()).code(DENIED);
            said.says("and the call has none; give --token-file (BITACORA_TOKEN_FILE)");
            with(&writer, arguments).code(DENIED).says("that of the call, 'writer', does not have it");
        }
        with(&web, &["set", "k", "v"]).code(DENIED).says("keys that begin with 'web/' only");
        // It is wrong with a line only.
        with(&web, &["import", "-"]).code(REJECTED).says("keys that begin with 'web/' only");
        with(&web, &["set", "web/k", "v"]).code(DONE);
    }
    run(&["--http", &http, "members"]).code(DENIED).says("give --token-file");
    run(&["diff", &http, &http]).code(DENIED).says("give --token-file");
    runtime.block_on(node.stop());
}
