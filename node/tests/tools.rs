//! `backup`, `restore`, `export`, `health` and `dev` as programs: files, pipes, and streams that can't be written.

mod support;

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _, Write as _, pipe};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileTypeExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Instant;

use bitacora_node::data_dir::DataDir;
use bitacora_node::log::Log;
use bitacora_node::log::embedded::EmbeddedLog;
use bitacora_node::node::Node;
use tokio::runtime::Runtime;

use self::support::{PATIENCE, ready, start};

/// A node with a record, and a folder for what is made of it.
struct Source {
    runtime: Runtime,
    _node: Node,
    log: Arc<dyn Log>,
    /// `host:API_PORT`
    address: String,
    dir: tempfile::TempDir,
}

impl Source {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let runtime = Runtime::new().expect("a runtime");
        let log = EmbeddedLog::open(DataDir::open(&dir.path().join("log")).expect("a folder"), "bitacora", 2);
        let log: Arc<dyn Log> = Arc::new(log.expect("a log"));
        let (node, address) = runtime.block_on(node_with(&dir.path().join("data"), &log));
        runtime.block_on(async {
            let url = format!("http://{address}/rpc?key=k&value=v");
            let set = client().post(url).send().await.expect("an answer");
            assert!(set.status().is_success());
        });
        let source = Self { runtime, _node: node, log, address, dir };
        source.wait_for_record(&source.address);
        source
    }

    /// Waits until a node has the record.
    fn wait_for_record(&self, address: &str) {
        let url = format!("http://{address}/rpc/cluster?key=k");
        let started = Instant::now();
        while !self
            .runtime
            .block_on(async { client().get(&url).send().await.expect("an answer") })
            .status()
            .is_success()
        {
            assert!(started.elapsed() < PATIENCE, "the record did not come");
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn backup(&self, file: impl AsRef<Path>) -> Command {
        backup(&self.url(), file)
    }

    /// Makes a data folder of a backup, and finds the record in it.
    fn restored(&self, name: &str, file: &Path) {
        ok(&run(restore(&self.path(name)).arg(file)));
        self.has_record(name);
    }

    fn has_record(&self, name: &str) {
        let (node, address) = self.runtime.block_on(node_with(&self.path(name), &self.log));
        self.wait_for_record(&address);
        self.runtime.block_on(node.stop());
    }
}

async fn node_with(data_dir: &Path, log: &Arc<dyn Log>) -> (Node, String) {
    let (node, address) = start(data_dir, Arc::clone(log), &[], None).await;
    ready(&node).await;
    (node, address.api())
}

fn client() -> reqwest::Client {
    bitacora_node::http_client::builder().build().expect("a client")
}

fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bitacora-node"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn backup(url: &str, file: impl AsRef<Path>) -> Command {
    let mut command = program(&["backup", "--from", url]);
    command.arg(file.as_ref());
    command
}

fn restore(data_dir: &Path) -> Command {
    let mut command = program(&["restore", "--data-dir"]);
    command.arg(data_dir);
    command
}

fn run(command: &mut Command) -> Output {
    command.output().expect("the program runs")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn ok(output: &Output) {
    assert!(output.status.success(), "{} {}", output.status, stderr(output));
}

#[track_caller]
fn fails(output: &Output, says: &str) {
    assert!(
        output.status.code() == Some(1) && stderr(output).contains(says),
        "{} {}",
        output.status,
        stderr(output)
    );
}

fn full() -> Stdio {
    OpenOptions::new().write(true).open("/dev/full").expect("a device that is full").into()
}

/// A pipe whose reader has gone.
fn unread() -> Stdio {
    pipe().expect("a pipe").1.into()
}

fn address_of_nobody() -> String {
    TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").to_string()
}

mod files {
    use super::*;

    #[test]
    fn links_stay_and_so_does_what_is_no_file() {
        let source = Source::start();
        // Not by its own name: were it replaced, the machine would have lost it.
        let null = source.path("null");
        symlink("/dev/null", &null).expect("linked");
        ok(&run(&mut source.backup(&null)));
        assert!(fs::metadata(&null).expect("there").file_type().is_char_device(), "it was replaced");

        let link = source.path("link");
        symlink("target", &link).expect("linked");
        ok(&run(&mut source.backup(&link)));
        assert!(link.is_symlink(), "it was replaced");
        source.restored("restored", &source.path("target"));
        fails(&run(&mut source.backup(&link)), "exists");

        let fifo = source.path("fifo");
        assert!(Command::new("mkfifo").arg(&fifo).status().expect("mkfifo").success());
        // Open for both, so that neither side waits for the other.
        let mut reader = OpenOptions::new().read(true).write(true).open(&fifo).expect("opened");
        let mut child = source.backup(&fifo).spawn().expect("it starts");
        let mut magic = [0; 8];
        reader.read_exact(&mut magic).expect("read");
        assert_eq!(&magic, b"BTCSNAP2");
        assert!(fs::metadata(&fifo).expect("there").file_type().is_fifo(), "it was replaced");
        child.kill().and_then(|()| child.wait()).expect("ended");
    }

    #[test]
    fn of_two_at_once_one_is_refused() {
        let source = Source::start();
        let bytes = run(&mut source.backup("-")).stdout;
        let (url, connections) = slow_node(bytes.clone());
        let file = source.path("today");
        let [one, two] = [(); 2].map(|()| backup(&url, &file).spawn().expect("it starts"));
        // Both have half of it.
        let rest = &bytes[bytes.len() / 2..];
        let [mut first, mut second] =
            [(); 2].map(|()| connections.recv_timeout(PATIENCE).expect("a connection"));
        first.write_all(rest).expect("sent");
        second.write_all(rest).expect("sent");
        drop((first, second));
        let mut ended = [one, two].map(|child| child.wait_with_output().expect("it ends"));
        ended.sort_by_key(|output| !output.status.success());
        ok(&ended[0]);
        fails(&ended[1], "a file of this name has come to be there meanwhile");
        assert!(fs::read(&file).expect("there") == bytes, "it is not whole");
        let left: Vec<_> = fs::read_dir(source.dir.path()).expect("a folder").flatten().collect();
        assert!(left.iter().all(|entry| !entry.file_name().to_string_lossy().ends_with(".part")), "{left:?}");
    }

    /// A server that sends half of a backup, and hands the connection over.
    fn slow_node(bytes: Vec<u8>) -> (String, std::sync::mpsc::Receiver<TcpStream>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let (send, connections) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
                assert!(lines.any(|line| line.is_empty()), "a request");
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", bytes.len());
                stream.write_all(head.as_bytes()).expect("sent");
                stream.write_all(&bytes[..bytes.len() / 2]).expect("sent");
                if send.send(stream).is_err() {
                    return;
                }
            }
        });
        (url, connections)
    }

    #[test]
    fn a_data_folder_is_no_place_for_backups() {
        let source = Source::start();
        fails(
            &run(&mut source.backup(source.path("data/store/today"))),
            "lies among the files of the data folder",
        );
        // Beside the store it is in nobody's way.
        ok(&run(&mut source.backup(source.path("data/today"))));
        let inside = source.path("other/store/today");
        fs::create_dir_all(inside.parent().expect("a folder")).expect("created");
        fs::copy(source.path("data/today"), &inside).expect("copied");
        fails(&run(restore(&source.path("other")).arg(&inside)), "move it to another folder first");
        assert!(inside.exists());
    }

    #[test]
    fn an_export_is_of_a_whole_store_that_no_node_uses() {
        let source = Source::start();
        let export = |name: &str| run(program(&["export", "--data-dir"]).arg(source.path(name)));
        fails(&export("missing"), "holds no store of a node");
        assert!(!source.path("missing").exists());
        fails(&export("data"), "in use by another process");
        ok(&run(&mut source.backup(source.path("today"))));
        ok(&run(restore(&source.path("restored")).arg(source.path("today"))));
        let exported = export("restored");
        ok(&exported);
        assert_eq!(String::from_utf8_lossy(&exported.stdout), "{\"key\":\"k\",\"value\":\"v\"}\n");
        assert!(stderr(&exported).contains("1 records of "), "{}", stderr(&exported));
    }

    #[test]
    fn a_path_is_tried_before_the_node_is_asked() {
        let dir = tempfile::tempdir().expect("a folder");
        let nobody = format!("http://{}", address_of_nobody());
        fails(&run(&mut backup(&nobody, dir.path().join("missing/today"))), "missing/today can't be written");
        fails(&run(&mut backup(&nobody, dir.path().join("today"))), "no answer from");
        assert_eq!(fs::read_dir(dir.path()).expect("a folder").count(), 0);
    }
}

mod streams {
    use super::*;

    #[test]
    fn a_backup_goes_through_a_pipe() {
        let source = Source::start();
        let (reader, writer) = pipe().expect("a pipe");
        let mut backup = source.backup("-").stdout(writer).spawn().expect("it starts");
        let restored = run(restore(&source.path("restored")).arg("-").stdin(reader));
        ok(&restored);
        assert!(backup.wait().expect("it ends").success());
        let mut told = String::new();
        backup.stderr.take().expect("piped").read_to_string(&mut told).expect("text");
        assert!(told.contains("on stdout: ") && told.contains(" bytes, at "), "{told}");
        source.has_record("restored");

        // Half of one is none, and an empty one neither.
        let mut half = run(&mut source.backup("-")).stdout;
        half.truncate(half.len() / 2);
        for bytes in [half, Vec::new()] {
            fs::write(source.path("half"), bytes).expect("written");
            let stdin = File::open(source.path("half")).expect("there");
            fails(
                &run(restore(&source.path("none")).arg("-").stdin(stdin)),
                "the backup on stdin can't be used",
            );
            assert!(!source.path("none/store").exists());
        }
    }

    #[test]
    fn the_exit_code_tells_of_the_work() {
        let source = Source::start();
        let port = source.address.rsplit_once(':').expect("a port").1.to_owned();
        for (name, stream) in [("full", full as fn() -> Stdio), ("unread", unread)] {
            let file = source.path(name);
            ok(&run(source.backup(&file).stdout(stream()).stderr(stream())));
            let restored = source.path(&format!("restored-{name}"));
            ok(&run(restore(&restored).arg(&file).stdout(stream()).stderr(stream())));
            source.has_record(&format!("restored-{name}"));
            ok(&run(program(&["health", "--api-port", &port]).stdout(stream()).stderr(stream())));
            let failed = run(program(&["health", "--api-port", "1"]).stderr(stream()));
            assert_eq!(failed.status.code(), Some(1));
            let wrong = run(program(&["serve", "--api-port", "x"]).stdout(stream()).stderr(stream()));
            assert_eq!(wrong.status.code(), Some(2));
        }
        fails(&run(source.backup("-").stdout(full())), "stdout can't be written: No space left on device");
        let gone = run(source.backup("-").stdout(unread()));
        assert_eq!((gone.status.code(), stderr(&gone).as_str()), (Some(1), ""));
    }

    #[test]
    fn dev_runs_without_a_stdout() {
        let dir = tempfile::tempdir().expect("a folder");
        for (name, stream) in [("full", full as fn() -> Stdio), ("unread", unread)] {
            let port = free_ports(2);
            let dev = Dev::start(dev(&dir.path().join(name), 1, port).stdout(stream()), port);
            assert!(!dev.stop().contains("panicked"), "{name}");
        }
    }
}

/// A cluster of `dev` in a process of its own.
struct Dev(Option<Child>);

fn dev(dir: &Path, nodes: u16, port: u16) -> Command {
    let mut command =
        program(&["dev", "--nodes", &nodes.to_string(), "--port", &port.to_string(), "--data-dir"]);
    command.arg(dir);
    command
}

impl Dev {
    /// Waits until the first node is ready.
    fn start(command: &mut Command, port: u16) -> Self {
        let mut dev = Self(Some(command.spawn().expect("it starts")));
        let port = port.to_string();
        wait_for(&mut dev, || run(&mut program(&["health", "--api-port", &port])).status.success());
        dev
    }

    /// Ends it as an operator would; what it said on stderr.
    fn stop(mut self) -> String {
        let child = self.0.take().expect("it runs");
        ok(&run(Command::new("kill").args(["-TERM", &child.id().to_string()])));
        let ended = child.wait_with_output().expect("it ends");
        ok(&ended);
        stderr(&ended)
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            // A test that failed leaves no process.
            let _ = child.kill().and_then(|()| child.wait());
        }
    }
}

#[track_caller]
fn wait_for(dev: &mut Dev, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        let ended = dev.0.as_mut().expect("it runs").try_wait().expect("a child");
        assert!(ended.is_none() && started.elapsed() < PATIENCE, "{ended:?}");
    }
}

/// The first of some ports in a row that nobody has, below those that the system gives to connections.
fn free_ports(count: u16) -> u16 {
    static TRIED: AtomicU16 = AtomicU16::new(0);
    let first = std::process::id() as u16 % 10_000;
    for _ in 0..1_000 {
        let port = 20_000 + (first + TRIED.fetch_add(count, Ordering::Relaxed)) % 10_000;
        if (port..port + count).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            return port;
        }
    }
    panic!("no ports in a row are free");
}

mod proxies {
    use super::*;

    /// A command for which a proxy is set at which nobody listens.
    fn behind_proxy(command: &mut Command) -> &mut Command {
        let proxy = format!("http://{}", address_of_nobody());
        for name in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"] {
            command.env(name, &proxy);
        }
        command.env_remove("no_proxy").env_remove("NO_PROXY")
    }

    #[test]
    fn none_is_between_a_node_and_its_tools() {
        let source = Source::start();
        let port = source.address.rsplit_once(':').expect("a port").1.to_owned();
        ok(&run(behind_proxy(&mut source.backup(source.path("today")))));
        ok(&run(behind_proxy(&mut program(&["health", "--api-port", &port]))));
    }

    #[test]
    fn none_is_between_members() {
        let dir = tempfile::tempdir().expect("a folder");
        let port = free_ports(4);
        let second = format!("http://127.0.0.1:{}", port + 2);
        let runtime = Runtime::new().expect("a runtime");
        let client = client();
        let get = |path: &str| {
            runtime.block_on(async {
                let answer = client.get(format!("{second}{path}")).send().await.ok()?;
                answer.error_for_status().ok()?.text().await.ok()
            })
        };
        let keys: String =
            (0..20_500).map(|n| format!("{{\"op\":\"set\",\"key\":\"k{n}\",\"value\":\"v\"}}\n")).collect();
        let mut dev = Dev::start(behind_proxy(&mut dev(dir.path(), 2, port)), port);
        wait_for(&mut dev, || get("/health").is_some());
        let written = runtime.block_on(async {
            let batch = client.post(format!("{second}/rpc/batch")).body(keys).send();
            batch.await.expect("an answer").text().await.expect("text")
        });
        assert_eq!(written.matches("\"status\":200").count(), 20_500);
        dev.stop();
        fs::remove_dir_all(dir.path().join("node2")).expect("its folder");
        let mut dev = Dev::start(behind_proxy(&mut self::dev(dir.path(), 2, port)), port);
        wait_for(&mut dev, || get("/health").is_some());
        let metrics = get("/metrics").expect("metrics");
        assert!(metrics.contains("\nbitacora_snapshots_installed_total 1\n"), "it read the log instead");
        dev.stop();
    }
}
