//! `watch` against a real node over an embedded log.

use std::io::{BufRead as _, BufReader, Read as _, pipe};
use std::process::{Child, ChildStderr, ChildStdout, Command};
use std::sync::Arc;

use bitacora_node::cluster::Address;
use bitacora_node::data_dir::DataDir;
use bitacora_node::log::embedded::EmbeddedLog;
use bitacora_node::node::Node;
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::node::FakeNode;
use crate::program::{
    DONE, FAILED, Folder, Run, UNAVAILABLE, address_of_nobody, command, finish, json_lines, run,
};
use crate::support;

pub struct RealNode {
    runtime: Runtime,
    node: Option<Node>,
    address: Address,
    _folder: Folder,
}

/// Starts a node with these flags, whose log and store are in a folder, and waits until it is ready.
pub fn start_node(runtime: &Runtime, folder: &Folder, flags: &[&str]) -> (Node, Address) {
    let data_dir = DataDir::open(folder.path("log").as_ref()).expect("a folder");
    let log = Arc::new(EmbeddedLog::open(data_dir, "topic", 4).expect("a log"));
    let store = folder.path("node");
    runtime.block_on(async {
        let started = support::start(store.as_ref(), log, flags, None).await;
        support::ready(&started.0).await;
        started
    })
}

impl RealNode {
    pub fn start() -> Self {
        let (runtime, folder) = (Runtime::new().expect("a runtime"), Folder::new());
        let (node, address) = start_node(&runtime, &folder, &[]);
        Self { runtime, node: Some(node), address, _folder: folder }
    }

    /// Over RPC and over HTTP.
    pub fn ways(&self) -> [[String; 2]; 2] {
        let Address { host, api_port, avro_port } = &self.address;
        [
            ["--rpc".to_owned(), format!("{host}:{avro_port}")],
            ["--http".to_owned(), format!("http://{host}:{api_port}")],
        ]
    }

    fn command(&self, way: usize, arguments: &[&str]) -> Command {
        let ways = self.ways();
        let [flag, address] = &ways[way];
        command(&[&[flag.as_str(), address], arguments].concat())
    }

    fn run(&self, way: usize, arguments: &[&str]) -> Run {
        finish(&mut self.command(way, arguments), b"")
    }

    /// Writes a key, which the node shows then.
    pub fn set(&self, key: &str, value: &str) -> String {
        let run = self.run(0, &["set", "--visible", "here", "--", key, value]).code(DONE);
        run.stdout.trim().trim_start_matches("OK ").to_owned()
    }

    fn delete(&self, key: &str) {
        self.run(0, &["del", "--visible", "here", "--", key]).code(DONE);
    }
}

impl Drop for RealNode {
    fn drop(&mut self) {
        self.node.take().map(|node| self.runtime.block_on(node.stop()));
    }
}

/// A watch that runs.
struct Running {
    child: Child,
    stdout: BufReader<ChildStdout>,
    stderr: BufReader<ChildStderr>,
}

impl Running {
    fn start(mut command: Command) -> Self {
        let mut child = command.spawn().expect("it starts");
        let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let stderr = BufReader::new(child.stderr.take().expect("a pipe"));
        Self { child, stdout, stderr }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("it is text");
        assert!(line.ends_with('\n'), "it ended");
        line.trim_end().to_owned()
    }

    /// As Ctrl-C does; the rest of stdout, and stderr.
    fn interrupt(mut self) -> (String, String) {
        let killed = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status();
        assert!(killed.expect("kill").success());
        let (mut stdout, mut stderr) = (String::new(), String::new());
        self.stdout.read_to_string(&mut stdout).expect("it is text");
        self.stderr.read_to_string(&mut stderr).expect("it is text");
        let status = self.child.wait().expect("it ends");
        assert_eq!(status.code(), Some(DONE), "{stderr}");
        (stdout, stderr)
    }
}

fn event<'a>(lines: &'a [Value], event: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["event"] == event).collect()
}

#[test]
fn what_is_there_and_what_changes_as_json() {
    let node = RealNode::start();
    let position = node.set("a/1", "one");
    node.set("a/2", "two");
    node.set("b", "no");
    for way in [0, 1] {
        let mut watch = Running::start(node.command(way, &["watch", "--prefix", "a/", "--initial"]));
        let lines: Vec<_> = (0..3).map(|_| watch.line()).collect();
        let lines = json_lines(&lines.join("\n"));
        let [one, two, current] = &lines[..] else { panic!("{lines:?}") };
        assert_eq!(
            (&one["event"], &one["key"], &one["value"]),
            (&"set".into(), &"a/1".into(), &"one".into())
        );
        assert_eq!((&one["position"], &two["key"]), (&position.as_str().into(), &"a/2".into()));
        assert_eq!(current["event"], "current", "{current}");
        assert!(lines.iter().all(|line| line["token"].is_string()), "{lines:?}");
        node.set("a/3", "three");
        node.delete("a/3");
        // Both are told, unless the later one was there before the earlier one was told.
        let mut last = json_lines(&watch.line()).remove(0);
        while last["event"] != "delete" {
            assert_eq!((&last["key"], &last["value"]), (&"a/3".into(), &"three".into()));
            last = json_lines(&watch.line()).remove(0);
        }
        assert_eq!((&last["key"], &last["reason"]), (&"a/3".into(), &"deleted".into()));
        watch.interrupt();
        // On from the token of a line.
        let token = current["token"].as_str().expect("text");
        let rest = ["watch", "--prefix", "a/", "--limit", "2", "--since", token];
        let run = node.run(way, &rest).code(DONE);
        assert_eq!(event(&run.lines(), "delete").len(), 1, "{run:#?}");
        let bare = ["watch", "--prefix", "a/", "--initial", "--no-values", "--limit", "2"];
        let run = node.run(way, &bare).code(DONE);
        assert!(
            run.lines().iter().all(|line| line["value"].is_null() && line["uuid"].is_string()),
            "{run:#?}"
        );
    }
}

#[test]
fn lines_for_other_programs_and_for_the_eye() {
    let node = RealNode::start();
    let hostile = node.set("k\u{1b}[2J\t", "v\n\u{7}");
    for way in [0, 1] {
        let watch = |output: &str| {
            let arguments = ["watch", "--initial", "--limit", "1", "--output", output];
            node.run(way, &arguments).code(DONE).stdout
        };
        assert_eq!(watch("raw"), format!("set\t{hostile}\tk\u{1b}[2J\\t\tv\\n\u{7}\n"));
        let line = watch("text");
        assert!(
            line.ends_with(&format!("set      {hostile:<10}  k\\u{{1b}}[2J\\t  v\\n\\u{{7}}\n")),
            "{line:?}"
        );
        let mut one = Running::start(node.command(way, &["watch", "--key", "only", "--output", "raw"]));
        assert!(one.line().starts_with("current\t"));
        node.set("other", "v");
        let position = node.set("only", "v");
        assert_eq!(one.line(), format!("set\t{position}\tonly\tv"));
        one.interrupt();
    }
}

#[test]
fn interrupted_it_tells_where_to_go_on() {
    let node = RealNode::start();
    for way in [0, 1] {
        let mut watch = Running::start(node.command(way, &["watch", "--output", "raw"]));
        assert!(watch.line().starts_with("current\t"));
        node.set("before", "v");
        assert!(watch.line().ends_with("\tbefore\tv"));
        let (rest, told) = watch.interrupt();
        assert_eq!(rest, "");
        let token = told.trim_end().strip_prefix("bitacora: to go on from here: --since ").expect("a token");
        node.delete("before");
        let run = node.run(way, &["watch", "--output", "raw", "--limit", "1", "--since", token]).code(DONE);
        assert!(run.stdout.contains("\tbefore\tdeleted\n") && !run.stdout.contains("set"), "{run:#?}");
    }
}

#[test]
fn what_can_not_begin_has_an_exit_code() {
    let node = RealNode::start();
    for way in [0, 1] {
        let refused = node.run(way, &["watch", "--since", "x"]).code(FAILED).says("no token");
        assert!(
            !refused.stderr.contains("to go on from here"),
            "it names a token that was refused: {refused:#?}"
        );
        node.run(way, &["watch", "--prefix", &"p".repeat(1_025)]).code(FAILED).says("1025 bytes");
    }
    node.run(0, &["watch", "--key", ""]).code(FAILED).says("empty");
    let nobody = address_of_nobody();
    run(&["--rpc", &nobody, "watch"]).code(UNAVAILABLE).says(&nobody);
    run(&["--http", &format!("http://{nobody}"), "watch"]).code(UNAVAILABLE).says("can't be reached");
}

#[test]
fn a_reader_that_goes_ends_it_quietly() {
    let node = RealNode::start();
    for n in 0..3 {
        node.set(&format!("k{n}"), "v");
    }
    for way in [0, 1] {
        for output in ["json", "raw", "text"] {
            let mut watch = node.command(way, &["watch", "--initial", "--output", output]);
            let (reader, stdout) = pipe().expect("a pipe");
            drop(reader);
            let run = finish(watch.stdout(stdout), b"").code(DONE);
            assert_eq!(run.stderr, "", "{output}");
        }
    }
}

#[test]
fn it_goes_on_at_another_node_or_later() {
    let (node, failing) = (RealNode::start(), FakeNode::start());
    let [_, [_, url]] = node.ways();
    failing.fail(u64::MAX);
    let both = format!("{},{url}", failing.url());
    let mut watch = Running::start(command(&["--http", &both, "watch", "--output", "raw"]));
    assert!(watch.line().starts_with("current\t"));
    let position = node.set("k", "v");
    assert_eq!(watch.line(), format!("set\t{position}\tk\tv"));
    watch.interrupt();
    let mut watches = Vec::new();
    // None answers for a while: that is no end.
    let other = RealNode::start();
    for way in [0, 1] {
        let mut watch =
            Running::start(other.command(way, &["--log-level", "debug", "watch", "--output", "raw"]));
        assert!(watch.line().starts_with("current\t"));
        watches.push(watch);
    }
    drop(other);
    for mut watch in watches {
        let mut told = String::new();
        while !told.contains("trying again") {
            assert!(watch.stderr.read_line(&mut told).expect("it is text") > 0, "it ended: {told}");
        }
        let (rest, told) = watch.interrupt();
        assert!(rest.is_empty() && told.contains("--since"), "{rest} {told}");
    }
}
