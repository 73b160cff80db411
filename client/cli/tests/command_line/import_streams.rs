//! `import` from what is no regular file: it is opened once and read once.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};

use crate::node::FakeNode;
use crate::program::{
    DONE, FAILED, Folder, REJECTED, Run, USAGE, command_at, finish, import_on, ndjson, run_at, run_at_with,
};

/// More than a pipe holds.
const RECORDS: usize = 6_000;
const ACCEPTED: &str = "6000 accepted, 0 rejected";

/// The same records in each format.
fn files(folder: &Folder) -> [(&'static str, String); 3] {
    let node = FakeNode::start();
    let ndjson = folder.with("in.ndjson", ndjson(RECORDS));
    run_at(&node, &["import", &ndjson]).code(DONE);
    let [csv, avro] = ["in.csv", "in.avro"].map(|name| {
        let path = folder.path(name);
        run_at(&node, &["export", &path]).code(DONE);
        path
    });
    [("ndjson", ndjson), ("csv", csv), ("avro", avro)]
}

/// Each line arrived once.
#[track_caller]
fn arrived(node: &FakeNode, run: &Run, what: &str) {
    assert!(run.code == DONE && run.stderr.contains(ACCEPTED), "{what}: {run:#?}");
    let last = format!("k{:05}", RECORDS - 1);
    assert_eq!(
        (node.sets(), node.value(&last)),
        (RECORDS as u64, Some(format!("v{}", RECORDS - 1))),
        "{what}"
    );
}

fn fifo(folder: &Folder, name: &str) -> String {
    let path = folder.path(name);
    assert!(Command::new("mkfifo").arg(&path).status().is_ok_and(|status| status.success()));
    path
}

/// Runs a command while the content of a file is written to where it reads.
fn fed(command: &mut Command, file: &str, open: impl FnOnce() -> Box<dyn std::io::Write> + Send) -> Run {
    let content = fs::read(file).expect("it is there");
    std::thread::scope(|scope| {
        scope.spawn(move || open().write_all(&content));
        finish(command, b"")
    })
}

#[test]
fn a_fifo_is_read_once() {
    let folder = Folder::new();
    for (format, file) in files(&folder) {
        let (node, path) = (FakeNode::start(), fifo(&folder, format));
        let mut import = command_at(&node, &["import", &path, "--format", format]);
        let run =
            fed(&mut import, &file, || Box::new(File::options().write(true).open(&path).expect("it reads")));
        arrived(&node, &run, format);
    }
}

#[test]
fn stdin_is_read_once_under_each_of_its_names() {
    let folder = Folder::new();
    for (format, file) in files(&folder) {
        let content = fs::read(file).expect("it is there");
        for name in ["-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"] {
            let node = FakeNode::start();
            let run = run_at_with(&node, &["import", name, "--format", format], &content);
            arrived(&node, &run, &format!("{format} {name}"));
        }
    }
    let node = FakeNode::start();
    let told = run_at_with(&node, &["import", "/dev/stdin"], ndjson(3).as_bytes());
    told.code(DONE).says("3 accepted");
}

#[test]
fn the_output_of_a_process_is_read_once() {
    let folder = Folder::new();
    for (format, file) in files(&folder) {
        let node = FakeNode::start();
        let line = "exec \"$0\" --http \"$1\" import --format \"$2\" <(cat \"$3\")";
        let mut shell = Command::new("bash");
        shell.args(["-c", line, env!("CARGO_BIN_EXE_bitacora"), &node.url(), format, &file]);
        shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        arrived(&node, &finish(&mut shell, b""), format);
    }
}

#[test]
fn a_socket_is_read_once() {
    let folder = Folder::new();
    for (format, file) in files(&folder) {
        let node = FakeNode::start();
        let (own, given) = UnixStream::pair().expect("two sockets");
        let mut import = command_at(&node, &["import", "/dev/stdin", "--format", format]);
        import.stdin(std::os::fd::OwnedFd::from(given));
        let content = fs::read(&file).expect("it is there");
        let run = std::thread::scope(|scope| {
            scope.spawn(move || (&own).write_all(&content));
            let mut child = import.spawn().expect("it starts");
            // Only the child has it, so that it sees the end.
            drop(import);
            child.stdin.take();
            let output = child.wait_with_output().expect("it ends");
            Run {
                code: output.status.code().unwrap_or(-1),
                stdout: String::new(),
                stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            }
        });
        arrived(&node, &run, format);

        let (node, path) = (FakeNode::start(), folder.path(&format!("{format}.socket")));
        let listener = UnixListener::bind(&path).expect("a socket");
        let mut import = command_at(&node, &["import", &path, "--format", format]);
        let run = fed(&mut import, &file, move || Box::new(listener.accept().expect("it connects").0));
        arrived(&node, &run, format);
    }
}

#[test]
fn what_can_not_be_read_again_has_no_checkpoint() {
    let (node, folder) = (FakeNode::start(), Folder::new());
    let path = fifo(&folder, "fifo.ndjson");
    import_on(&node, &path, &folder.path("c"), &[]).code(USAGE).says("regular file");
    run_at_with(&node, &["import", "/dev/stdin", "--checkpoint", &folder.path("c")], b"").code(USAGE);
    assert!(fs::metadata(folder.path("c")).is_err());
    run_at(&node, &["import", &folder.path(""), "--format", "csv"]).code(FAILED).says("is a directory");
}

#[test]
fn what_is_wrong_with_a_stream_is_told_as_of_a_file() {
    let (node, folder) = (FakeNode::start(), Folder::new());
    run_at(&node, &["import", "/dev/null", "--format", "ndjson"]).code(DONE).says("0 accepted");
    run_at(&node, &["import", "/dev/null", "--format", "csv"]).code(FAILED).says("header");
    run_at(&node, &["import", "/dev/null", "--format", "avro"]).code(FAILED).says("Avro");
    let path = fifo(&folder, "fifo.ndjson");
    let file = folder.with("in", ndjson(2) + "no json");
    let run = fed(&mut command_at(&node, &["import", &path]), &file, || {
        Box::new(File::options().write(true).open(&path).expect("it reads"))
    });
    run.code(REJECTED).says("2 accepted, 1 rejected").says("line 3 is rejected");
}
