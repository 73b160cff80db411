//! Nodes that speak TLS: what is said with the right files, and what with wrong ones.

#[path = "../../../../node/tests/support/certificates.rs"]
mod certificates;

use tokio::runtime::Runtime;

use self::certificates::{Authority, files, write};
use crate::program::{DONE, Folder, UNAVAILABLE, USAGE, command, finish, run};
use crate::watch::{RealNode, start_node};

/// The RPC port whose node would have this HTTP port by default.
fn one_above(api: &str) -> String {
    let (host, port) = api.rsplit_once(':').expect("host:port");
    format!("{host}:{}", port.parse::<u16>().expect("a port") + 1)
}

#[test]
fn both_interfaces_are_spoken_over_tls() {
    let (runtime, folder) = (Runtime::new().expect("a runtime"), Folder::new());
    let (authority, clients, foreign) = (Authority::new(), Authority::new(), Authority::new());
    let flags = files(folder.path("tls").as_ref(), &authority.certify(), &authority, Some(&clients));
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let (node, address) = start_node(&runtime, &folder, &flags);
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
        let untrusted = with(&foreign, &["get", "k"]).code(UNAVAILABLE).says("UnknownIssuer");
        assert!(!untrusted.stderr.contains("start one"), "{untrusted:?}");
        untrusted.says("its certificate is of none of the authorities of --ca-file (BITACORA_CA_FILE)");
        // The node asks for a certificate.
        let without = run(&[&way[..], &["--ca-file", &ca, "--timeout", "2s", "get", "k"]].concat());
        let without = without.code(UNAVAILABLE).says("CertificateRequired");
        without.says("give one with --cert-file and --key-file (BITACORA_CERT_FILE, BITACORA_KEY_FILE)");
        let other_name = way.map(|part| part.replace("127.0.0.1", "localhost"));
        let other_name = other_name.each_ref().map(String::as_str);
        run(&[&other_name, &identity[..], &["--ca-file", &ca, "get", "k"]].concat())
            .code(UNAVAILABLE)
            .says("reach it by a name that its certificate has");
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
    let in_silence = run(&["--rpc", &rpc, "--timeout", "500ms", "get", "k"]).code(UNAVAILABLE);
    in_silence.says("before it said anything; if it speaks TLS, give --ca-file (BITACORA_CA_FILE)");
    let plain = format!("http://{}", address.api());
    for way in [["--rpc", &one_above(&address.api())], ["--http", &plain]] {
        let members = run(&[&way[..], &["members"]].concat()).code(UNAVAILABLE);
        assert!(!members.stderr.contains("one below"), "it is the HTTP port: {members:?}");
        members.says("this port speaks TLS: use https, and give --ca-file (BITACORA_CA_FILE)");
    }
    let without_tls = RealNode::start();
    let [[_, plain_rpc], [_, plain_http]] = without_tls.ways();
    run(&["--rpc", &plain_rpc, "--ca-file", &ca, "get", "k"])
        .code(UNAVAILABLE)
        .says("if this port does not speak TLS, leave --ca-file (BITACORA_CA_FILE) out");
    run(&["--http", &plain_http, "--ca-file", &ca, "get", "k"])
        .code(UNAVAILABLE)
        .says("this port does not speak TLS: leave --ca-file (BITACORA_CA_FILE) out");
    run(&["--ca-file", &ca, "--cert-file", &cert, "get", "k"]).code(USAGE).says("one is missing");
    run(&["--cert-file", &cert, "--key-file", &key, "get", "k"]).code(USAGE).says("need --ca-file");
    run(&["--ca-file", &ca, "--cert-file", &cert, "--key-file", &ca, "get", "k"])
        .code(USAGE)
        .says("no private key");
    run(&["--ca-file", "/nowhere/ca.pem", "get", "k"]).code(USAGE).says("/nowhere/ca.pem");
    runtime.block_on(node.stop());
}
