//! Nodes that speak TLS: what is said with the right files, and what with wrong ones.

#[path = "../../../../node/tests/support/certificates.rs"]
mod certificates;

use std::sync::Arc;

use bitacora_node::data_dir::DataDir;
use bitacora_node::log::embedded::EmbeddedLog;
use tokio::runtime::Runtime;

use self::certificates::{Authority, files, write};
use crate::program::{DONE, Folder, UNAVAILABLE, USAGE, command, finish, run};
use crate::support;

#[test]
fn both_interfaces_are_spoken_over_tls() {
    let (runtime, folder) = (Runtime::new().expect("a runtime"), Folder::new());
    let (authority, clients, foreign) = (Authority::new(), Authority::new(), Authority::new());
    let flags = files(folder.path("tls").as_ref(), &authority.certify(), &authority, Some(&clients));
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let data_dir = DataDir::open(folder.path("log").as_ref()).expect("a folder");
    let log = Arc::new(EmbeddedLog::open(data_dir, "topic", 4).expect("a log"));
    let (node, address) = runtime.block_on(async {
        let started = support::start(folder.path("node").as_ref(), log, &flags, None).await;
        support::ready(&started.0).await;
        started
    });
    let shown = clients.certify_as("client.example", |_| ());
    let path = |name: &str, text: &str| {
        let path = folder.path(name);
        write(path.as_ref(), text);
        path
    };
    let (ca, foreign) = (path("ca.pem", &authority.pem), path("foreign.pem", &foreign.pem));
    let (cert, key) = (path("cert.pem", &shown.certificate), path("key.pem", &shown.key));
    let (rpc, http) = (address.avro(), format!("https://{}", address.api()));
    let identity = ["--cert-file", &cert, "--key-file", &key];
    for way in [["--rpc", &rpc], ["--http", &http]] {
        let with = |ca: &str, arguments: &[&str]| {
            run(&[&way, &identity[..], &["--ca-file", ca], arguments].concat())
        };
        with(&ca, &["set", "k", "v"]).code(DONE);
        with(&ca, &["get", "k", "--consistency", "latest"]).code(DONE);
        with(&foreign, &["get", "k"]).code(UNAVAILABLE).says("UnknownIssuer");
        // The node asks for a certificate.
        let without = run(&[&way[..], &["--ca-file", &ca, "--timeout", "2s", "get", "k"]].concat());
        without.says("CertificateRequired");
    }
    let members =
        run(&[&["--http", &http, "--ca-file", &ca], &identity[..], &["members", "-o", "json"]].concat());
    assert_eq!(members.code(DONE).lines().len(), 1);
    // A bare name, and variables.
    let mut status = command(&["status", &address.api(), "-o", "json"]);
    for (name, file) in [("CA", &ca), ("CERT", &cert), ("KEY", &key)] {
        status.env(format!("BITACORA_{name}_FILE"), file);
    }
    finish(&mut status, b"").code(DONE);
    let diff = ["diff", &address.api(), &address.api()];
    run(&[&["--ca-file", &ca], &identity[..], &diff].concat()).code(DONE);
    run(&["--http", &http, "get", "k"]).code(USAGE).says("--ca-file");
    run(&["--ca-file", &ca, "--cert-file", &cert, "get", "k"]).code(USAGE).says("one is missing");
    run(&["--cert-file", &cert, "--key-file", &key, "get", "k"]).code(USAGE).says("need --ca-file");
    run(&["--ca-file", &ca, "--cert-file", &cert, "--key-file", &ca, "get", "k"])
        .code(USAGE)
        .says("no private key");
    run(&["--ca-file", "/nowhere/ca.pem", "get", "k"]).code(USAGE).says("/nowhere/ca.pem");
    runtime.block_on(node.stop());
}
