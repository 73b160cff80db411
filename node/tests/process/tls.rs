//! The commands beside a node whose ports speak TLS, in the node's own environment.

#[path = "../support/certificates.rs"]
mod certificates;

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::Instant;

use self::certificates::{Authority, files};
use super::program::{PATIENCE, Program, command, output, stderr, wait_until};

/// The variables that a node's flags stand for.
fn variables(flags: &[String]) -> Vec<(String, String)> {
    let pairs = flags.chunks(2);
    pairs
        .map(|pair| (pair[0].trim_start_matches('-').to_uppercase().replace('-', "_"), pair[1].clone()))
        .collect()
}

#[test]
fn health_and_backup_ask_the_node_over_tls() {
    let (data, authority) = (tempfile::tempdir().expect("a folder"), Authority::new());
    // A certificate that does not name the address that `health` asks at, and a node that asks for one.
    let own = authority.certify_as("node-1.example", |_| ());
    let of_node = variables(&files(&data.path().join("tls"), &own, &authority, Some(&authority)));
    let node = Program::dev(1, &data.path().join("data"), |it| {
        it.envs(of_node.clone());
    });
    let with = |arguments: &[&str]| {
        let mut command: Command = command(arguments);
        command.envs(of_node.clone()).env("API_PORT", node.port.to_string()).env("BIND_ADDRESS", "127.0.0.1");
        command
    };
    let deadline = Instant::now() + PATIENCE;
    loop {
        let ended = output(&mut with(&["health"]));
        if ended.status.success() {
            break;
        }
        assert!(Instant::now() < deadline, "{}", stderr(&ended));
    }
    // As a node without TLS, it is not healthy.
    let mut plain = command(&["health"]);
    let ended = output(plain.env("API_PORT", node.port.to_string()).env("BIND_ADDRESS", "127.0.0.1"));
    assert_eq!(ended.status.code(), Some(1), "{}", stderr(&ended));
    assert!(stderr(&ended).contains("this port speaks TLS"), "{}", stderr(&ended));
    // A backup holds everything, and its token is shown: the certificate must be of who is asked.
    let file = data.path().join("backup");
    let backup = |more: &[&str]| {
        let mut command = with(&["backup"]);
        command.args(more).arg(&file);
        output(&mut command)
    };
    let ended = backup(&[]);
    assert!(!ended.status.success() && stderr(&ended).contains("not valid for name"), "{}", stderr(&ended));
    authority.certify().write(&data.path().join("tls"));
    let deadline = Instant::now() + PATIENCE;
    loop {
        let ended = backup(&["--from", &format!("https://127.0.0.1:{}", node.port)]);
        if ended.status.success() {
            break;
        }
        assert!(Instant::now() < deadline, "{}", stderr(&ended));
    }
    // It holds everything, whoever may read the folder.
    assert_eq!(file.metadata().expect("a backup").permissions().mode() & 0o777, 0o600);
    let mut untrusted = command(&["backup", "--from", &format!("https://127.0.0.1:{}", node.port)]);
    let ended = output(untrusted.arg(data.path().join("another")));
    assert!(!ended.status.success() && stderr(&ended).contains("--tls-ca-file"), "{}", stderr(&ended));
}

/// Members and clients would find out one by one, each in its own words.
#[test]
fn a_certificate_that_others_refuse_is_told_at_the_start_and_when_it_changes() {
    let (data, authority) = (tempfile::tempdir().expect("a folder"), Authority::new());
    let other = authority.certify_as("node-1.example", |_| ());
    let folder = data.path().join("tls");
    let of_node = variables(&files(&folder, &other, &authority, None));
    let log = data.path().join("log");
    let mut node = Program::dev(1, &data.path().join("data"), |it| {
        it.envs(of_node).stderr(std::fs::File::create(&log).expect("a file"));
    });
    let lines = |words: &str| {
        let text = std::fs::read_to_string(&log).expect("a log");
        text.lines().filter(|line| line.contains(words)).count()
    };
    let refused = "other members refuse this node, which they know as 127.0.0.1 (NODE_ADDRESS)";
    wait_until("the node says so", || match lines(refused) {
        1 => Ok(()),
        count => Err(format!("{count} lines")),
    });
    authority.certify().write(&folder);
    // Without a change, it takes nothing over.
    wait_until("it is taken over", || {
        match lines(" audit: took over the files of TLS for new connections") {
            1 => Ok(()),
            count => Err(format!("{count} lines")),
        }
    });
    Authority::new().certify().write(&folder);
    wait_until("the node says so again", || match lines(refused) {
        2 => Ok(()),
        count => Err(format!("{count} lines")),
    });
    node.signal(rustix::process::Signal::TERM);
    assert_eq!(node.ended().code(), Some(0));
}
