//! Conditional writes on the three nodes of `dev`.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use rustix::process::Signal;

use super::program::{PATIENCE, Program};

/// The head of the answer of one of the nodes.
fn ask(program: &Program, node: u16, line: &str, header: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", program.port + 2 * node)).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    let request = format!("{line} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n{header}\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer.to_lowercase()
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or_default()
}

#[test]
fn three_nodes_hand_a_key_on_by_its_version() {
    let data = tempfile::tempdir().expect("a folder");
    let mut program = Program::dev(3, data.path(), |_| ());
    program.answers("/health/ready", 200);
    let mut answer = ask(&program, 0, "POST /rpc?key=k&value=0", "If-None-Match: *");
    for n in 1..10 {
        assert_eq!(status(&answer), "200", "{answer}");
        let tag = answer.lines().find_map(|line| line.strip_prefix("etag: ")).expect("an ETag").to_owned();
        let write =
            |node| ask(&program, node, &format!("POST /rpc?key=k&value={n}"), &format!("If-Match: {tag}"));
        answer = write(n % 3);
        let late = write((n + 1) % 3);
        assert_eq!(status(&late), "412", "{late}");
        assert!(late.contains(&format!("\"value\":\"{n}\"")), "{late}");
    }
    program.signal(Signal::TERM);
    assert_eq!(program.ended().code(), Some(0));
}
