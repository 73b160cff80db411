//! The program `bitacora` as a script sees it: arguments, streams, files, exit codes; against a small node of its own that
//! speaks enough HTTP, and fails when it is told to.

#[path = "command_line/node.rs"]
mod node;

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use node::{FakeNode, now_ms};

const DONE: i32 = 0;
const FAILED: i32 = 1;
const USAGE: i32 = 2;
const NOT_FOUND: i32 = 3;
const UNCLEAR: i32 = 4;
const UNAVAILABLE: i32 = 5;
const REJECTED: i32 = 6;

/// What a run came to.
#[derive(Debug)]
struct Run {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Run {
    /// Checks the exit code.
    #[track_caller]
    fn code(self, expected: i32) -> Self {
        assert_eq!(self.code, expected, "{self:#?}");
        self
    }

    #[track_caller]
    fn says(self, text: &str) -> Self {
        assert!(self.stderr.contains(text), "stderr lacks {text:?}: {self:#?}");
        self
    }

    fn lines(&self) -> Vec<Value> {
        self.stdout.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
    }
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bitacora"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("BITACORA_")) {
        command.env_remove(name);
    }
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(arguments: &[&str]) -> Run {
    run_with(arguments, b"")
}

fn run_with(arguments: &[&str], stdin: &[u8]) -> Run {
    finish(command(arguments).stdin(Stdio::piped()), stdin)
}

fn finish(command: &mut Command, stdin: &[u8]) -> Run {
    let mut child = command.spawn().expect("the program starts");
    let pipe = child.stdin.take();
    std::thread::scope(|scope| {
        // It may end without having read all.
        scope.spawn(move || pipe.map(|mut pipe| pipe.write_all(stdin)));
        let output = child.wait_with_output().expect("the program ends");
        Run {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    })
}

#[track_caller]
fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < Duration::from_secs(30), "{what} did not happen");
        std::thread::yield_now();
    }
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A folder, and the paths of files in it.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_string_lossy().into_owned()
    }

    fn with(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        fs::write(self.path(name), content).expect("written");
        self.path(name)
    }
}

/// So many lines with the keys `k00000` and on.
fn ndjson(count: usize) -> String {
    (0..count).map(|n| format!("{{\"key\":\"k{n:05}\",\"value\":\"v{n}\"}}\n")).collect()
}

#[test]
fn help_tells_commands_examples_and_exit_codes() {
    let help = run(&["--help"]).code(DONE).stdout;
    for word in ["import", "BITACORA_ZOOKEEPER", "Examples:", "Exit codes: 0 done", "127.0.0.1:8081"] {
        assert!(help.contains(word), "{word}: {help}");
    }
    for command in
        ["get", "set", "del", "scan", "members", "status", "import", "export", "bench", "completions"]
    {
        assert!(help.contains(&format!("\n  {command} ")), "{command}: {help}");
        assert!(run(&[command, "--help"]).code(DONE).stdout.contains("Examples:"), "{command}");
    }
}

#[test]
fn wrong_usage_is_told_and_reaches_nobody() {
    for (arguments, names) in [
        (&["get"] as &[&str], "<KEY>"),
        (&[], "Usage"),
        (&["frob"], "frob"),
        (&["--rpc", "nowhere", "get", "k"], "not host:port"),
        (&["--rpc", "a:1", "--zookeeper", "b:1", "get", "k"], "--zookeeper"),
        (&["--http", "https://a", "get", "k"], "https"),
        (&["set", "k", "v", "--ttl", "soon"], "not a time"),
        (&["bench", "--duration", "1s", "--requests", "5"], "--requests"),
        (&["--http", "http://127.0.0.1:9", "bench", "--pipeline", "4"], "--connections"),
        (&["--http", "http://127.0.0.1:9", "import", "file"], "--format"),
        (&["--http", "http://127.0.0.1:9", "import", "-", "--checkpoint", "c"], "stdin"),
        (&["--http", "http://127.0.0.1:9", "export", "-", "--checkpoint", "c"], "stdout"),
    ] {
        run(arguments).code(USAGE).says(names);
    }
}

#[test]
fn completions_are_printed() {
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&["completions", shell]).code(DONE).stdout;
        assert!(script.contains("members") && script.contains("zookeeper"), "{shell}");
    }
}

#[test]
fn no_node_is_told_at_once() {
    let port =
        TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port();
    let address = format!("127.0.0.1:{port}");
    run(&["--rpc", &address, "get", "k"]).code(UNAVAILABLE).says(&address);
    run(&["--http", &format!("http://{address}"), "set", "k", "v"])
        .code(UNAVAILABLE)
        .says("can't be reached");
    // The node's HTTP port is one below, and nobody is there either.
    run(&["--rpc", &address, "members"]).code(UNAVAILABLE).says("--http");
    run(&["--zookeeper", &address, "--timeout", "300ms", "members"]).code(UNAVAILABLE).says("ZooKeeper");
}

#[test]
fn keys_are_set_read_and_deleted() {
    let node = FakeNode::start();
    let http = node.url();
    let at = |arguments: &[&str]| run(&[&["--http", &http], arguments].concat());
    let written = at(&["set", "a key & more=ü", "v 1\n%"]).code(DONE);
    assert!(written.stdout.starts_with("OK 0:"), "{written:?}");
    assert_eq!(at(&["get", "a key & more=ü"]).code(DONE).stdout, "v 1\n%\n");
    assert_eq!(at(&["get", "-n", "a key & more=ü"]).code(DONE).stdout, "v 1\n%");
    at(&["set", "empty", ""]).code(DONE);
    assert_eq!(at(&["get", "empty"]).code(DONE).stdout, "\n");

    // The value is stdin to the last byte.
    run_with(&["--http", &http, "set", "lines"], b"one\ntwo\n").code(DONE);
    run_with(&["--http", &http, "set", "dash", "-"], b"d").code(DONE);
    run_with(&["--http", &http, "set", "bytes"], b"\xff").code(FAILED).says("UTF-8");
    assert_eq!(at(&["get", "-n", "lines", "dash"]).code(DONE).stdout, "one\ntwo\nd");

    let record = &at(&["get", "lines", "--output", "json"]).code(DONE).lines()[0];
    assert_eq!(
        (&record["key"], &record["value"], &record["ttl"]),
        (&json!("lines"), &json!("one\ntwo\n"), &json!(0))
    );
    assert!(record["position"].as_str().is_some_and(|position| position.starts_with("0:")), "{record}");
    let written = &at(&["set", "short", "x", "--ttl", "1h", "-o", "json"]).code(DONE).lines()[0];
    let ttl = written["ttl"].as_i64().expect("a time");
    assert!((now_ms() + 3_500_000..=now_ms() + 3_600_000).contains(&ttl), "{written}");

    let some = at(&["get", "empty", "nowhere", "dash"]).code(NOT_FOUND).says("nowhere");
    assert_eq!(some.stdout, "\nd\n");
    let table = at(&["get", "dash", "lines", "-o", "table"]).code(DONE).stdout;
    assert!(table.starts_with("KEY") && table.contains("one\\ntwo\\n"), "{table}");
    assert_eq!(at(&["del", "dash", "never"]).code(DONE).stdout.lines().count(), 2);
    at(&["get", "dash"]).code(NOT_FOUND);
}

#[test]
fn variables_are_settings_too_and_a_flag_wins() {
    let node = FakeNode::start();
    node.set("k", "v");
    let run = finish(command(&["get", "k"]).env("BITACORA_HTTP", node.url()), b"").code(DONE);
    assert_eq!(run.stdout, "v\n");
    let mut flag = command(&["--http", &node.url(), "get", "k"]);
    finish(flag.env("BITACORA_RPC", "127.0.0.1:9").env("BITACORA_OUTPUT", "json"), b"").code(DONE);
}

#[test]
fn what_a_node_can_not_answer_has_an_exit_code() {
    let node = FakeNode::start();
    let http = node.url();
    let at = |arguments: &[&str]| run(&[&["--http", &http, "--timeout", "500ms"], arguments].concat());
    at(&["set", "bad", "v"]).code(FAILED).says("refused");
    node.fail(u64::MAX);
    at(&["get", "k"]).code(UNAVAILABLE).says("not now");
    at(&["set", "k", "v"]).code(UNCLEAR).says("not now");
    node.fail(0);
    node.hang(true);
    at(&["get", "k"]).code(UNCLEAR).says("--timeout");
    at(&["set", "k", "v"]).code(UNCLEAR).says("may have taken effect");
    node.hang(false);
    // The other node answers for one that can't.
    let dead = FakeNode::start();
    dead.fail(u64::MAX);
    node.set("k", "v");
    for _ in 0..2 {
        run(&["--http", &format!("{},{http}", dead.url()), "get", "k"]).code(DONE);
    }
}

#[test]
fn a_scan_is_printed_page_by_page() {
    let node = FakeNode::start();
    for n in 0..2_500 {
        node.set(&format!("k{n:04}"), "v\t1\n");
    }
    let http = node.url();
    let at = |arguments: &[&str]| run(&[&["--http", &http, "scan"], arguments].concat()).code(DONE);
    let raw = at(&["-o", "raw"]).stdout;
    assert_eq!((raw.lines().count(), raw.lines().next()), (2_500, Some("k0000\tv\\t1\\n")));
    // Not on a terminal it is for programs.
    let lines = at(&["--start", "k0998", "--end", "k1002"]).lines();
    let keys: Vec<_> = lines.iter().map(|line| line["key"].as_str().expect("a key")).collect();
    assert_eq!(keys, ["k0998", "k0999", "k1000", "k1001"]);
    assert_eq!(at(&["--prefix", "k1", "--limit", "700"]).lines().len(), 700);
    assert_eq!(at(&["--limit", "1500"]).lines().len(), 1_500);
    assert_eq!(at(&["--prefix", "none"]).stdout, "");
    let table = at(&["--prefix", "k000", "-o", "table"]).stdout;
    assert!(table.starts_with("KEY") && table.lines().count() == 11, "{table}");
}

#[test]
fn who_stops_reading_is_no_error() {
    let node = FakeNode::start();
    for n in 0..5_000 {
        node.set(&format!("k{n:04}"), &"x".repeat(100));
    }
    for arguments in [["scan", "--output", "raw"], ["export", "-", "--page=100"]] {
        let mut child =
            command(&[&["--http", &node.url()], &arguments[..]].concat()).spawn().expect("it starts");
        let mut first = String::new();
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        stdout.read_line(&mut first).expect("a line");
        drop(stdout);
        let mut stderr = String::new();
        child.stderr.take().expect("piped").read_to_string(&mut stderr).expect("text");
        let status = child.wait().expect("it ends");
        assert!(first.contains("k0000") && status.success() && stderr.is_empty(), "{status} {stderr}");
    }
}

#[test]
fn members_and_status_are_the_nodes_own_words() {
    let node = FakeNode::start();
    let dead = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port");
    node.members(&[&dead.to_string()]);
    let http = node.url();
    let at = |arguments: &[&str]| run(&[&["--http", &http], arguments].concat());
    let mut lines = at(&["members"]).code(DONE).lines();
    lines.sort_by_key(|line| line["ready"] == false);
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert_eq!(
        (&lines[0]["node"], &lines[0]["lag"], &lines[0]["caught_up"]),
        (&json!(node.name()), &json!(3), &json!(true))
    );
    assert_eq!((&lines[1]["node"], &lines[1]["lag"]), (&json!(dead.to_string()), &json!(null)));
    assert!(
        lines[1]["reason"].as_str().is_some_and(|reason| reason.contains("can't be reached")),
        "{lines:?}"
    );
    let table = at(&["members", "-o", "table"]).code(DONE).stdout;
    assert!(table.starts_with("MEMBER") && table.contains(&node.name()), "{table}");

    let own = &at(&["status", &node.name()]).code(DONE).lines()[0];
    assert_eq!(own["anything"], json!({"else": 1}), "JSON is passed on whole");
    let page = at(&["status", "-o", "table"]).code(DONE).says("can't be reached").stdout;
    assert!(page.contains("PARTITION") && page.contains("7 records"), "{page}");
    assert_eq!(at(&["status", "-o", "raw"]).stdout, format!("{}\t0\t6\t10\t3\n", node.name()));
    at(&["status", &node.name(), &dead.to_string()]).code(UNAVAILABLE);
}

#[test]
fn an_import_reports_what_it_rejects_and_goes_on() {
    let (node, folder) = (FakeNode::start(), Folder::new());
    let past = now_ms() - 1_000;
    let future = now_ms() + 3_600_000;
    let long = "x".repeat(600_000);
    let input = format!(
        "{{\"key\":\"a\",\"value\":\"1\"}}\n\
         not json\n\
         {{\"key\":\"bad\",\"value\":\"refused\"}}\n\
         \n\
         {{\"key\":\"gone\",\"value\":\"x\",\"expires\":{past}}}\n\
         {{\"key\":\"b\",\"value\":\"2\",\"ttl\":\"1h\"}}\n\
         {{\"key\":\"c\",\"value\":\"3\",\"timestamp\":1,\"source\":1,\"ttl\":{future},\"uuid\":\"u\",\"position\":\"0:1\"}}\n\
         {{\"key\":\"long\",\"value\":\"{long}\"}}\n\
         {{\"key\":\"a\",\"value\":\"last\"}}"
    );
    let (file, rejects) = (folder.with("in.ndjson", input), folder.path("rejects"));
    // What fails for a while is sent again.
    node.fail(2);
    node.flaky("b");
    let arguments = ["--http", &node.url(), "import", &file, "--rejects", &rejects, "--max-line", "100000"];
    run(&arguments).code(REJECTED).says("4 accepted, 3 rejected, 1 skipped").says("3 lines were rejected");
    let lines: Vec<Value> =
        text(rejects.as_ref()).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let told: Vec<_> = lines.iter().map(|line| line["line"].as_u64().expect("a number")).collect();
    assert_eq!(told, [2, 3, 8]);
    assert_eq!(lines[0]["text"], "not json");
    assert!(lines[1]["reason"].as_str().is_some_and(|reason| reason.contains("refused")), "{lines:?}");
    assert!(lines[2]["text"].as_str().is_some_and(|text| text.len() < 5_000), "it is cut");
    assert_eq!(node.value("a").as_deref(), Some("last"));
    let ttl = node.ttl("b").expect("it is there");
    assert!((future - 10_000..future + 60_000).contains(&ttl), "{ttl}");
    assert!((node.ttl("c").expect("it is there") - future).abs() < 30_000);
    assert_eq!(node.value("gone"), None);

    // Without a file they are told, and the number can be bounded.
    let told = run_with(&["--http", &node.url(), "import", "-"], "x\n".repeat(30).as_bytes()).code(REJECTED);
    assert_eq!(told.stderr.matches("is rejected").count(), 10, "{told:?}");
    run_with(&["--http", &node.url(), "import", "-", "--max-rejects", "4"], "x\n".repeat(30).as_bytes())
        .code(REJECTED)
        .says("stopped at line 5");
}

#[test]
fn an_import_keeps_the_order_of_a_keys_writes() {
    let node = FakeNode::start();
    node.flaky_often();
    let lines: String = (0..420).map(|n| format!("{{\"key\":\"k{}\",\"value\":\"{n}\"}}\n", n % 7)).collect();
    run_with(&["--http", &node.url(), "import", "-", "--batch", "50"], lines.as_bytes())
        .code(DONE)
        .says("420 accepted, 0 rejected");
    for k in 0..7 {
        let last = (0..420).rev().find(|n| n % 7 == k).expect("one");
        assert_eq!(node.value(&format!("k{k}")), Some(last.to_string()));
        assert!(node.never_went_back(&format!("k{k}")), "k{k}");
    }
}

#[test]
fn csv_is_imported() {
    let (node, folder) = (FakeNode::start(), Folder::new());
    let file = folder.with("in.csv", "ttl,value,key\n,\"a, \"\"b\"\"\nc\",k1\n30s,v2,k2\nonly,two\n");
    run(&["--http", &node.url(), "import", &file]).code(REJECTED).says("line 5 is rejected: it has 2 fields");
    assert_eq!(node.value("k1").as_deref(), Some("a, \"b\"\nc"));
    assert!(node.ttl("k2").is_some_and(|ttl| ttl > now_ms()));
    let without = folder.with("without.csv", "k1,v1\n");
    run(&["--http", &node.url(), "import", &without]).code(FAILED).says("header");
    run(&["--http", &node.url(), "import", &folder.path("none.csv")]).code(FAILED).says("none.csv");
}

#[test]
fn an_import_that_broke_off_goes_on_where_it_was() {
    let (node, folder) = (FakeNode::start(), Folder::new());
    let input = ndjson(1_000) + "wrong\n" + &ndjson(4_000) + "wrong\n";
    let (file, checkpoint, rejects) = (folder.with("in.ndjson", &input), folder.path("c"), folder.path("r"));
    let (url, retry) = (node.url(), "--retry-for=0");
    let arguments = [
        "--http",
        &url,
        "import",
        &file,
        "--checkpoint",
        &checkpoint,
        "--rejects",
        &rejects,
        retry,
        "--batch=100",
        "--parallel=4",
    ];
    node.break_after(20);
    run(&arguments).code(UNCLEAR).says("run it again");
    let state: Value = serde_json::from_str(&text(checkpoint.as_ref())).expect("JSON");
    let done = state["counts"]["accepted"].as_u64().expect("a number");
    assert!(done > 0 && done < 5_000, "{state}");
    node.break_after(u64::MAX);
    let before = node.sets();
    run(&arguments).code(REJECTED).says("going on at line").says("5000 accepted, 2 rejected");
    assert_eq!(node.sets() - before, 5_000 - done, "what was acknowledged is not sent again");
    assert_eq!(text(rejects.as_ref()).lines().count(), 2);
    assert_eq!(node.value("k03999").as_deref(), Some("v3999"));

    // What is done stays so.
    let before = node.sets();
    run(&arguments).code(REJECTED).says("5000 accepted, 2 rejected");
    assert_eq!(node.sets(), before);
    // Another input is not taken for this one.
    fs::write(&file, ndjson(10)).expect("written");
    run(&arguments).code(FAILED).says("another input");
    fs::write(&checkpoint, "[]").expect("written");
    run(&arguments).code(FAILED).says("no checkpoint");
}

#[test]
fn csv_goes_on_too() {
    let (node, folder) = (FakeNode::start(), Folder::new());
    let rows: String = (0..3_000).map(|n| format!("k{n:05},\"v\n{n}\"\n")).collect();
    let (file, checkpoint) = (folder.with("in.csv", format!("key,value\n{rows}")), folder.path("c"));
    let url = node.url();
    let arguments = [
        "--http",
        &url,
        "import",
        &file,
        "--checkpoint",
        &checkpoint,
        "--retry-for=0",
        "--batch=100",
        "--parallel=2",
    ];
    node.break_after(10);
    run(&arguments).code(UNCLEAR);
    node.break_after(u64::MAX);
    run(&arguments).code(DONE).says("3000 accepted, 0 rejected");
    assert_eq!(
        (node.value("k00000").as_deref(), node.value("k02999").as_deref()),
        (Some("v\n0"), Some("v\n2999"))
    );
}

#[test]
fn an_interrupted_import_remembers_what_is_done() {
    let (node, folder) = (FakeNode::start(), Folder::new());
    let (file, checkpoint) = (folder.with("in.ndjson", ndjson(2_000)), folder.path("c"));
    let url = node.url();
    let arguments =
        ["--http", &url, "import", &file, "--checkpoint", &checkpoint, "--batch=100", "--parallel=1"];
    node.hang_after(5);
    let mut child = command(&arguments).spawn().expect("it starts");
    wait_for("a request that hangs", || node.hanging() > 0);
    let interrupted = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(interrupted.is_ok_and(|status| status.success()));
    let mut stderr = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut stderr).expect("text");
    assert_eq!(child.wait().expect("it ends").code(), Some(FAILED), "{stderr}");
    assert!(stderr.contains("interrupted"), "{stderr}");
    node.hang_after(u64::MAX);
    run(&arguments).code(DONE).says("2000 accepted");
}

#[test]
fn what_is_exported_can_be_imported() {
    let (from, to, folder) = (FakeNode::start(), FakeNode::start(), Folder::new());
    let expires = now_ms() + 3_600_000;
    for n in 0..1_500 {
        from.set(&format!("k{n:04}"), &format!("v,\"{n}\"\n\t"));
    }
    from.set_until("short", "lived", expires);
    let export = |arguments: &[&str]| run(&[&["--http", &from.url(), "export"], arguments].concat());
    for name in ["out.ndjson", "out.csv", "out.avro"] {
        let file = folder.path(name);
        export(&[&file, "--page", "100"]).code(DONE).says("1501 records");
        assert!(!Path::new(&(file.clone() + ".part")).exists());
        to.clear();
        run(&["--http", &to.url(), "import", &file]).code(DONE).says("1501 accepted");
        assert_eq!(to.value("k0007").as_deref(), Some("v,\"7\"\n\t"));
        assert!((to.ttl("short").expect("it is there") - expires).abs() < 30_000);
    }
    let piped = export(&["-", "--prefix", "k00"]).code(DONE).stdout;
    assert_eq!(piped.lines().count(), 100);
    to.clear();
    run_with(&["--http", &to.url(), "import", "-"], piped.as_bytes()).code(DONE).says("100 accepted");
    // What scan prints is taken as well.
    let scanned = run(&["--http", &from.url(), "scan", "--start", "k1499"]).code(DONE).stdout;
    run_with(&["--http", &to.url(), "import", "-"], scanned.as_bytes()).code(DONE).says("2 accepted");
    assert!((to.ttl("short").expect("it is there") - expires).abs() < 30_000);
}

#[test]
fn an_export_that_broke_off_goes_on_where_it_was() {
    let (node, folder) = (FakeNode::start(), Folder::new());
    for n in 0..1_000 {
        node.set(&format!("k{n:04}"), "v");
    }
    for name in ["out.ndjson", "out.csv"] {
        let (file, checkpoint) = (folder.path(name), folder.path("c"));
        let url = node.url();
        let arguments = ["--http", &url, "export", &file, "--checkpoint", &checkpoint, "--page=100"];
        node.break_after(4);
        run(&arguments).code(UNAVAILABLE).says("run it again");
        assert!(!Path::new(&file).exists(), "half an export has no name");
        // As if it had been killed while it wrote on.
        let part = file.clone() + ".part";
        let mut half = fs::OpenOptions::new().append(true).open(&part).expect("it is there");
        half.write_all(b"{\"key\":\"k9").expect("written");
        run(&["--http", &url, "export", &file, "--checkpoint", &checkpoint, "--prefix=x"])
            .code(FAILED)
            .says("another export");
        node.break_after(u64::MAX);
        run(&arguments).code(DONE).says("going on after").says("1000 records");
        assert!(!Path::new(&checkpoint).exists() && !Path::new(&part).exists());
        let fresh = folder.path(&format!("fresh-{name}"));
        run(&["--http", &url, "export", &fresh]).code(DONE);
        assert_eq!(text(file.as_ref()), text(fresh.as_ref()));
    }
}

#[test]
fn avro_files_go_on_too() {
    let (from, to, folder) = (FakeNode::start(), FakeNode::start(), Folder::new());
    for n in 0..1_000 {
        from.set(&format!("k{n:04}"), &format!("v{n}").repeat(50));
    }
    let (file, checkpoint) = (folder.path("out.avro"), folder.path("c"));
    let (from_url, to_url) = (from.url(), to.url());
    for codec in ["null", "deflate"] {
        let export = ["--http", &from_url, "export", &file, "--checkpoint", &checkpoint, "--page=100"];
        let export = [&export[..], &["--avro-codec", codec]].concat();
        from.break_after(4);
        run(&export).code(UNAVAILABLE).says("run it again");
        // As if it had been killed while it wrote on.
        let part = file.clone() + ".part";
        let mut half = fs::OpenOptions::new().append(true).open(&part).expect("it is there");
        half.write_all(b"half a block").expect("written");
        from.break_after(u64::MAX);
        run(&export).code(DONE).says("going on after").says("1000 records");

        to.clear();
        let import = ["--http", &to_url, "import", &file, "--checkpoint", &checkpoint, "--retry-for=0"];
        let import = [&import[..], &["--batch=50", "--parallel=2"]].concat();
        to.break_after(8);
        run(&import).code(UNCLEAR).says("run it again");
        to.break_after(u64::MAX);
        run(&import).code(DONE).says("going on at line").says("1000 accepted, 0 rejected");
        assert_eq!(to.value("k0999"), Some("v999".repeat(50)));
        fs::remove_file(&checkpoint).expect("it is there");
    }
    // What is whole of a file that is cut off is imported, and the rest is told.
    let bytes = fs::read(&file).expect("it is there");
    let half = folder.path("half.avro");
    fs::write(&half, &bytes[..bytes.len() - 5]).expect("written");
    to.clear();
    run(&["--http", &to_url, "import", &half]).code(FAILED).says("half.avro").says("ends inside it");
    assert!(to.value("k0000").is_some());
}

#[test]
fn a_benchmark_reports() {
    let node = FakeNode::start();
    let bench = |arguments: &[&str]| {
        let common = ["--http", &node.url(), "bench", "--connections", "4", "--keys", "50"];
        run(&[&common[..], arguments].concat())
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
