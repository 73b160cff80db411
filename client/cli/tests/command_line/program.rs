//! The program, run as a script would run it, and what its runs leave.

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::node::FakeNode;

pub const DONE: i32 = 0;
pub const FAILED: i32 = 1;
pub const USAGE: i32 = 2;
pub const NOT_FOUND: i32 = 3;
pub const UNCLEAR: i32 = 4;
pub const UNAVAILABLE: i32 = 5;
pub const REJECTED: i32 = 6;
pub const NOT_MET: i32 = 7;
pub const DENIED: i32 = 9;

/// A run that takes longer is killed: it waits for something that never comes.
const LONGEST_RUN: Duration = Duration::from_secs(120);

/// What a run came to.
#[derive(Debug)]
pub struct Run {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    /// Checks the exit code.
    #[track_caller]
    pub fn code(self, expected: i32) -> Self {
        assert_eq!(self.code, expected, "{self:#?}");
        self
    }

    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        assert!(self.stderr.contains(text), "stderr lacks {text:?}: {self:#?}");
        self
    }

    pub fn lines(&self) -> Vec<Value> {
        json_lines(&self.stdout)
    }
}

pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bitacora"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("BITACORA_")) {
        command.env_remove(name);
    }
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub fn run(arguments: &[&str]) -> Run {
    run_with(arguments, b"")
}

/// A run against a node, over HTTP.
pub fn run_at(node: &FakeNode, arguments: &[&str]) -> Run {
    run_at_with(node, arguments, b"")
}

pub fn run_at_with(node: &FakeNode, arguments: &[&str], stdin: &[u8]) -> Run {
    finish(command_at(node, arguments).stdin(Stdio::piped()), stdin)
}

pub fn command_at(node: &FakeNode, arguments: &[&str]) -> Command {
    command(&[&["--http", &node.url()], arguments].concat())
}

/// An import that begins, or goes on where its checkpoint says.
pub fn import_on(node: &FakeNode, file: &str, checkpoint: &str, options: &[&str]) -> Run {
    run_at(node, &[&["import", file, "--checkpoint", checkpoint], options].concat())
}

pub fn run_with(arguments: &[&str], stdin: &[u8]) -> Run {
    finish(command(arguments).stdin(Stdio::piped()), stdin)
}

pub fn finish(command: &mut Command, stdin: &[u8]) -> Run {
    let mut child = command.spawn().expect("the program starts");
    let pipe = child.stdin.take();
    std::thread::scope(|scope| {
        // It may end without having read all.
        scope.spawn(move || pipe.map(|mut pipe| pipe.write_all(stdin)));
        let (ended, end) = mpsc::channel::<()>();
        let id = child.id().to_string();
        scope.spawn(move || {
            if end.recv_timeout(LONGEST_RUN) == Err(RecvTimeoutError::Timeout) {
                let _ = Command::new("kill").args(["-KILL", &id]).status();
            }
        });
        let output = child.wait_with_output().expect("the program ends");
        drop(ended);
        Run {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    })
}

/// `host:port` at which nothing listens.
pub fn address_of_nobody() -> String {
    let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
    socket.local_addr().expect("an address").to_string()
}

#[track_caller]
pub fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < Duration::from_secs(30), "{what} did not happen");
        std::thread::yield_now();
    }
}

pub fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

pub fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Leaves a file as if the program had been killed while it wrote on.
pub fn killed_while_writing(path: &str, half: &[u8]) {
    let mut file = fs::OpenOptions::new().append(true).open(path).expect("it is there");
    file.write_all(half).expect("written");
}

/// A folder, and the paths of files in it.
pub struct Folder(tempfile::TempDir);

impl Folder {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    pub fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_string_lossy().into_owned()
    }

    pub fn with(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        fs::write(self.path(name), content).expect("written");
        self.path(name)
    }
}

/// So many lines with the keys `k00000` and on.
pub fn ndjson(count: usize) -> String {
    (0..count).map(|n| format!("{{\"key\":\"k{n:05}\",\"value\":\"v{n}\"}}\n")).collect()
}
