//! Runs `bitacora-node`, and ends it with the test.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// No test waits longer for what should come at once.
pub const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// A command without any setting of the tests' own environment.
pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bitacora-node"));
    command.args(arguments).env_clear().stdin(Stdio::null());
    command
}

/// Runs a command to its end.
pub fn output(command: &mut Command) -> Output {
    command.output().expect("the program starts")
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Below Linux' ephemeral range, so that no outgoing connection takes a port between the look at it and its use; and beside those of the
/// end-to-end tests.
const FIRST_PORT: u32 = 10_000;
const PORTS: u32 = 5_000;

/// The first of so many ports in a row that are free on all addresses.
pub fn ports(count: u16) -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Runs at the same time start at different places.
    let start = std::process::id().wrapping_mul(7919);
    let any: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    let is_taken = |address: IpAddr, port| {
        TcpListener::bind((address, port)).is_err_and(|error| error.kind() == ErrorKind::AddrInUse)
    };
    let is_free = |port| !any.iter().any(|address| is_taken(*address, port));
    for _ in 0..PORTS {
        let next = start.wrapping_add(NEXT.fetch_add(count.into(), Ordering::Relaxed));
        let first = (FIRST_PORT + next % PORTS) as u16;
        if (0..count).all(|offset| is_free(first + offset)) {
            return first;
        }
    }
    panic!("there are no {count} free ports in a row")
}

pub const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Waits until `is_so` has no objection any more.
pub fn wait_until(what: &str, is_so: impl Fn() -> Result<(), String>) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(why) = is_so() {
        assert!(Instant::now() < deadline, "still not: {what}; last seen: {why}");
        std::thread::sleep(POLL);
    }
}

/// A node that runs, or several of `dev`.
pub struct Program {
    pub child: Child,
    pub port: u16,
    address: IpAddr,
}

impl Program {
    /// `dev` with so many nodes and its data in a folder, with its streams where `streams` puts them.
    pub fn dev(nodes: u16, data: &Path, streams: impl FnOnce(&mut Command)) -> Self {
        Self::dev_on(ports(2 * nodes), nodes, data, streams)
    }

    pub fn dev_on(port: u16, nodes: u16, data: &Path, streams: impl FnOnce(&mut Command)) -> Self {
        let (first, count) = (port.to_string(), nodes.to_string());
        let mut command = command(&["dev", "--port", &first, "--nodes", &count, "--data-dir"]);
        command.arg(data).stdout(Stdio::null()).stderr(Stdio::null());
        streams(&mut command);
        Self { child: command.spawn().expect("the program starts"), port, address: LOCALHOST }
    }

    /// `serve` without a broker and a ZooKeeper that answer: alive, and never ready.
    pub fn serve(address: IpAddr, data: &Path, streams: impl FnOnce(&mut Command)) -> Self {
        let port = ports(2);
        let mut command = command(&["serve"]);
        for (name, value) in [("BROKER_LIST", "127.0.0.1:1"), ("ZOOKEEPER_HOSTS", "127.0.0.1:1")] {
            command.env(name, value);
        }
        command.env("API_PORT", port.to_string()).env("AVRO_PORT", (port + 1).to_string());
        command.env("DATA_DIR", data).stdout(Stdio::null()).stderr(Stdio::null());
        streams(&mut command);
        Self { child: command.spawn().expect("the program starts"), port, address }
    }

    /// Any other command that becomes a node with a port on 127.0.0.1.
    pub fn run(mut command: Command, port: u16) -> Self {
        Self { child: command.spawn().expect("the program starts"), port, address: LOCALHOST }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", SocketAddr::new(self.address, self.port))
    }

    /// Status and body of the first node's answer; the reason if there is none.
    pub fn ask(&self, method: &str, path: &str) -> Result<(u16, String), String> {
        ask(SocketAddr::new(self.address, self.port), method, path)
    }

    /// Waits until the first node answers a path with a status.
    pub fn answers(&mut self, path: &str, status: u16) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.ask("GET", path);
            match &answer {
                Ok((code, body)) if *code == status => return body.clone(),
                _ => {}
            }
            assert!(Instant::now() < deadline, "{path} is not {status} but {answer:?}");
            if let Some(ended) = self.child.try_wait().expect("a child") {
                panic!("{path} is not {status}: the process ended with {ended}{}", self.said());
            }
            std::thread::sleep(POLL);
        }
    }

    /// What it wrote to the streams that are pipes, once it has ended.
    pub fn said(&mut self) -> String {
        let mut text = String::new();
        if let Some(mut out) = self.child.stdout.take() {
            let _ = out.read_to_string(&mut text);
        }
        if let Some(mut err) = self.child.stderr.take() {
            let _ = err.read_to_string(&mut text);
        }
        text
    }

    /// The value of a metric without labels.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let (_, text) = self.ask("GET", "/metrics").expect("it answers");
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id() as i32).expect("a process");
        kill_process(pid, signal).expect("it takes signals");
    }

    /// Waits for the end of the process.
    pub fn ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status;
            }
            assert!(Instant::now() < deadline, "the process goes on");
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One request over a connection of its own.
pub fn ask(node: SocketAddr, method: &str, path: &str) -> Result<(u16, String), String> {
    ask_with(node, method, path, "")
}

/// The same with a body.
pub fn ask_with(node: SocketAddr, method: &str, path: &str, body: &str) -> Result<(u16, String), String> {
    let ask = || -> std::io::Result<String> {
        let mut stream = std::net::TcpStream::connect(node)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let length = body.len();
        let head = format!("Host: {node}\r\nConnection: close\r\nContent-Length: {length}");
        write!(stream, "{method} {path} HTTP/1.1\r\n{head}\r\n\r\n{body}")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = ask().map_err(|error| error.to_string())?;
    let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
    let (_, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    Ok((code.ok_or_else(|| format!("not HTTP: {answer:?}"))?, body.to_owned()))
}
