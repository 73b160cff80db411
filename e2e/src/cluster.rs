//! Real `bitacora-node` processes.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use reqwest::Method;
use serde_json::Value;
use tokio::sync::OnceCell;

use crate::http::{Answer, Api};
use crate::process::{Process, Signal, tail};
use crate::runner::Ctx;
use crate::topic::Topic;
use crate::zookeeper::ZkClient;
use crate::{ports, wait};

/// From a process to a node that is ready, on two busy cores and in a debug build.
pub const START: Duration = Duration::from_secs(30);

/// The programs under test.
struct Binaries {
    node: PathBuf,
    cli: PathBuf,
}

/// Builds both programs once, with one call of cargo, in the profile of the tests.
async fn binaries() -> Result<&'static Binaries> {
    static BINARIES: OnceCell<Binaries> = OnceCell::const_new();
    BINARIES.get_or_try_init(build).await
}

/// The path of the node, built if need be. `E2E_NODE_BINARY` names another.
pub async fn node_binary() -> Result<&'static Path> {
    static GIVEN: LazyLock<Option<PathBuf>> =
        LazyLock::new(|| std::env::var_os("E2E_NODE_BINARY").map(PathBuf::from));
    match GIVEN.as_deref() {
        Some(given) => Ok(given),
        None => Ok(&binaries().await?.node),
    }
}

/// The path of the command line, built if need be. `E2E_CLI_BINARY` names another.
pub async fn cli_binary() -> Result<&'static Path> {
    static GIVEN: LazyLock<Option<PathBuf>> =
        LazyLock::new(|| std::env::var_os("E2E_CLI_BINARY").map(PathBuf::from));
    match GIVEN.as_deref() {
        Some(given) => Ok(given),
        None => Ok(&binaries().await?.cli),
    }
}

/// Cargo, without what it tells the tests about themselves, which is not for another build.
pub(crate) fn cargo() -> tokio::process::Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = tokio::process::Command::new(cargo);
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") || name == "LD_LIBRARY_PATH"
        {
            command.env_remove(name);
        }
    }
    command
}

async fn build() -> Result<Binaries> {
    let mut command = cargo();
    command.args([
        "build",
        "--message-format=json-render-diagnostics",
        "--bin",
        "bitacora-node",
        "--bin",
        "bitacora",
    ]);
    if cfg!(debug_assertions) {
        // As `cargo test --workspace` selects: features of the packages that only tests depend on are those of the others too, where
        // a test is among what is built. With fewer of them a third of the dependencies would be built once more.
        command.args(["--workspace", "--test", "e2e"]);
    } else {
        command.args(["--release", "-p", "e2e", "-p", "bitacora-node", "-p", "bitacora-cli"]);
    }
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await.context("running cargo")?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "building the programs failed:\n{stderr}");
    let messages: Vec<Value> = output
        .stdout
        .split(|byte| *byte == b'\n')
        .filter_map(|line| serde_json::from_slice::<Value>(line).ok())
        .collect();
    let executable = |name: &str| {
        let built = messages.iter().filter(|message| message["target"]["name"] == name);
        let mut paths = built.filter_map(|message| Some(PathBuf::from(message["executable"].as_str()?)));
        paths.next_back().with_context(|| format!("cargo names no executable of {name}:\n{stderr}"))
    };
    Ok(Binaries { node: executable("bitacora-node")?, cli: executable("bitacora")? })
}

/// How a cluster differs from the usual one.
#[derive(Clone, Default)]
pub struct Options {
    env: Vec<(String, String)>,
    brokers: Option<String>,
    zookeeper: Option<String>,
    topic: Option<String>,
    chroot: Option<String>,
}

impl Options {
    pub fn new() -> Options {
        Options::default()
    }

    /// A setting of every node; later ones win.
    pub fn env(mut self, name: &str, value: impl ToString) -> Options {
        self.env.push((name.to_string(), value.to_string()));
        self
    }

    pub fn brokers(mut self, brokers: impl Into<String>) -> Options {
        self.brokers = Some(brokers.into());
        self
    }

    /// Without a chroot.
    pub fn zookeeper(mut self, zookeeper: impl Into<String>) -> Options {
        self.zookeeper = Some(zookeeper.into());
        self
    }

    pub fn topic(mut self, topic: impl Into<String>) -> Options {
        self.topic = Some(topic.into());
        self
    }
}

fn random_name() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

pub struct Cluster {
    pub nodes: Vec<Node>,
    pub topic: Topic,
    /// With the chroot, as the nodes have it.
    pub zookeeper_hosts: String,
    ctx: Ctx,
    options: Options,
}

impl Ctx {
    /// Three nodes that are ready and know each other.
    pub async fn cluster(&self) -> Result<Cluster> {
        self.cluster_with(3, Options::new()).await
    }

    pub async fn cluster_with(&self, nodes: usize, options: Options) -> Result<Cluster> {
        let mut cluster = self.no_nodes(options).await?;
        for _ in 0..nodes {
            let node = cluster.add().await?;
            node.spawn()?;
        }
        cluster.formed().await;
        Ok(cluster)
    }

    /// A cluster that has its topic's and its chroot's name, and no node yet.
    pub async fn no_nodes(&self, mut options: Options) -> Result<Cluster> {
        let name = random_name();
        let brokers = match &options.brokers {
            Some(brokers) => brokers.clone(),
            None => self.brokers().await?,
        };
        let zookeeper = match &options.zookeeper {
            Some(zookeeper) => zookeeper.clone(),
            None => self.zookeeper().await?,
        };
        let chroot = options.chroot.get_or_insert_with(|| format!("/e2e-{name}")).clone();
        let topic = options.topic.get_or_insert_with(|| format!("e2e-{name}")).clone();
        Ok(Cluster {
            nodes: Vec::new(),
            topic: Topic { brokers, name: topic },
            zookeeper_hosts: format!("{zookeeper}{chroot}"),
            ctx: self.clone(),
            options,
        })
    }
}

impl Cluster {
    /// Adds a node with an empty data directory; it is not started.
    pub async fn add(&mut self) -> Result<&Node> {
        let base = [
            ("ZOOKEEPER_HOSTS", self.zookeeper_hosts.clone()),
            ("BROKER_LIST", self.topic.brokers.clone()),
            ("KAFKA_TOPIC", self.topic.name.clone()),
            ("TOPIC_PARTITIONS", "4".to_string()),
        ];
        let mut env: Vec<(String, String)> =
            base.into_iter().map(|(name, value)| (name.to_string(), value)).collect();
        env.extend(self.options.env.iter().cloned());
        let node = Node::new(&self.ctx, env).await?;
        self.nodes.push(node);
        Ok(&self.nodes[self.nodes.len() - 1])
    }

    /// Waits until every node is ready and knows them all.
    pub async fn formed(&self) {
        for node in &self.nodes {
            node.ready().await;
        }
        self.know_each_other(self.nodes.len()).await;
    }

    /// Waits until every running node has `count` members.
    pub async fn know_each_other(&self, count: usize) {
        for node in self.nodes.iter().filter(|node| node.is_running()) {
            wait::until(&format!("{} has {count} members", node.name), START, || async {
                let status = node.api().status().await.map_err(|error| format!("{error:#}"))?;
                match status["members"].as_array() {
                    Some(members) if members.len() == count => Ok(()),
                    _ => Err(format!("members {}", status["members"])),
                }
            })
            .await;
        }
    }

    /// Waits until every running node's own store has `value` for `key` (`None`: has it no more).
    pub async fn all_have(&self, key: &str, value: Option<&str>) {
        for node in self.nodes.iter().filter(|node| node.is_running()) {
            node.has(key, value).await;
        }
    }

    /// Waits until every running node's own store has applied the write of `timestamp` and says that the key is gone.
    pub async fn all_lost(&self, key: &str, timestamp: i64) {
        for node in self.nodes.iter().filter(|node| node.is_running()) {
            wait::until(&format!("{:?} is gone from {}", key, node.name), START, || async {
                let answer = node.api().get_own(key).await.map_err(|error| format!("{error:#}"))?;
                let of = answer.header("bitacora-timestamp");
                if answer.status == 404 && of == Some(&timestamp.to_string()) {
                    Ok(())
                } else {
                    Err(answer.to_string())
                }
            })
            .await;
        }
    }

    /// `host:port` of every node's Avro RPC, running or not.
    pub fn rpc_addresses(&self) -> Vec<String> {
        self.nodes.iter().map(Node::rpc_address).collect()
    }

    pub async fn zk(&self) -> ZkClient {
        ZkClient::connect(&self.zookeeper_hosts).await.expect("the suites' ZooKeeper answers")
    }

    /// Waits until all running nodes hold the same records, at the same positions.
    pub async fn same_everywhere(&self) {
        wait::until("all nodes hold the same", START, || async {
            let mut held = Vec::new();
            for node in self.nodes.iter().filter(|node| node.is_running()) {
                let page = node.api().call(Method::GET, "/rpc/scan?limit=10000").await;
                held.push(page.map_err(|error| format!("{error:#}"))?.expect(200).text());
            }
            if held.iter().all(|one| *one == held[0]) { Ok(()) } else { Err(held.join("\n")) }
        })
        .await;
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // All at once, so that their ends overlap; each Process then waits for its own.
        for node in &self.nodes {
            node.signal(Signal::KILL);
        }
    }
}

pub struct Node {
    pub name: String,
    pub api_port: u16,
    pub avro_port: u16,
    pub data_dir: PathBuf,
    pub log: PathBuf,
    env: Mutex<Vec<(String, String)>>,
    /// Of the version that it is started as.
    binary: Mutex<PathBuf>,
    /// A program and its arguments that start the node's own; none unless it is told.
    launcher: Mutex<Vec<String>>,
    process: Mutex<Option<Process>>,
    api: Mutex<Api>,
}

impl Node {
    /// How often its store was emptied or built anew.
    pub async fn resyncs(&self) -> Result<f64> {
        self.api().metric("bitacora_resyncs_total").await
    }

    /// A node that is not started; `env` goes over what every node of the suites has.
    pub async fn new(ctx: &Ctx, env: Vec<(String, String)>) -> Result<Node> {
        let binary = node_binary().await?;
        let (api_port, avro_port) = ports::pair();
        let name = format!("node-{api_port}");
        let data_dir = ctx.dir.join(&name);
        let mut all: Vec<(String, String)> = [
            ("API_PORT", api_port.to_string()),
            ("AVRO_PORT", avro_port.to_string()),
            ("NODE_ADDRESS", "127.0.0.1".to_string()),
            ("BIND_ADDRESS", "127.0.0.1".to_string()),
            ("DATA_DIR", data_dir.display().to_string()),
            ("LOG_FORMAT", "human".to_string()),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_string(), value))
        .collect();
        all.extend(env);
        Ok(Node {
            log: ctx.dir.join(format!("{name}.log")),
            name,
            api_port,
            avro_port,
            data_dir,
            env: Mutex::new(all),
            binary: Mutex::new(binary.to_owned()),
            launcher: Mutex::default(),
            process: Mutex::new(None),
            api: Mutex::new(Api::new(api_port)),
        })
    }

    pub fn rpc_address(&self) -> String {
        format!("127.0.0.1:{}", self.avro_port)
    }

    pub fn http_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.api_port)
    }

    /// Its process while it runs, or after its end.
    pub fn pid(&self) -> Option<u32> {
        self.with_process(Process::pid)
    }

    /// Changes a setting from the next start on.
    pub fn set_env(&self, name: &str, value: impl ToString) {
        let mut env = self.env.lock().unwrap_or_else(PoisonError::into_inner);
        env.push((name.to_string(), value.to_string()));
    }

    /// Leaves a setting to its default from the next start on.
    pub fn unset_env(&self, name: &str) {
        let mut env = self.env.lock().unwrap_or_else(PoisonError::into_inner);
        env.retain(|(set, _)| set != name);
    }

    /// Starts it by another program from the next start on, which gets the node's path and arguments behind its own.
    pub fn launch_by(&self, launcher: Vec<String>) {
        *self.launcher.lock().unwrap_or_else(PoisonError::into_inner) = launcher;
    }

    /// Starts another version of it from the next start on.
    pub fn set_binary(&self, binary: &Path) {
        binary.clone_into(&mut self.binary.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// A client of it. Connections are not shared across a restart.
    pub fn api(&self) -> Api {
        self.api.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Starts the process and returns at once.
    pub fn spawn(&self) -> Result<()> {
        let launcher = self.launcher.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let binary = self.binary.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut command = match &launcher[..] {
            [] => Command::new(&binary),
            [program, arguments @ ..] => {
                let mut command = Command::new(program);
                command.args(arguments).arg(&binary);
                command
            }
        };
        command.arg("serve").env_clear();
        // Nothing of the caller's environment is a setting by accident.
        for name in ["PATH", "HOME", "TMPDIR", "RUST_LOG"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command.env("RUST_BACKTRACE", "1");
        command.envs(self.env.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned());
        *self.api.lock().unwrap_or_else(PoisonError::into_inner) = Api::new(self.api_port);
        let process = Process::spawn(command, &self.log)?;
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = Some(process);
        Ok(())
    }

    pub async fn ready(&self) {
        self.ready_within(START).await;
    }

    /// Waits for `/health` to be 200; fails at once if the process ends.
    pub async fn ready_within(&self, deadline: Duration) {
        wait::until(&format!("{} is ready", self.name), deadline, || async {
            if let Some(status) = self.exit_status() {
                panic!("{} ended with {status}", self.name);
            }
            match self.api().health().await {
                Ok(answer) if answer.status == 200 => Ok(()),
                Ok(answer) => Err(format!("/health is {answer}")),
                Err(error) => Err(format!("{error:#}")),
            }
        })
        .await;
    }

    fn with_process<T>(&self, act: impl FnOnce(&Process) -> T) -> Option<T> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(act)
    }

    /// Its exit status if it was started and has ended.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.with_process(Process::exited).flatten()
    }

    pub fn is_running(&self) -> bool {
        self.with_process(|process| process.exited().is_none()).unwrap_or(false)
    }

    pub fn signal(&self, signal: Signal) {
        self.with_process(|process| process.signal(signal));
    }

    /// `kill -9`; it is gone when this returns.
    pub fn kill(&self) {
        self.with_process(Process::kill);
    }

    /// SIGSTOP: its connections stay open, and it does nothing.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Waits for its end and returns how it ended and how long that took.
    pub async fn ended(&self, deadline: Duration) -> (ExitStatus, Duration) {
        let start = Instant::now();
        let what = format!("{} has ended", self.name);
        let status = wait::until(&what, deadline, || async {
            self.exit_status().ok_or_else(|| "it runs".to_string())
        });
        (status.await, start.elapsed())
    }

    /// SIGTERM, and its end.
    pub async fn terminate(&self, deadline: Duration) -> (ExitStatus, Duration) {
        self.signal(Signal::TERM);
        self.ended(deadline).await
    }

    /// Removes its data; it must not be running.
    pub fn wipe(&self) -> Result<()> {
        ensure!(!self.is_running(), "{} runs on its data", self.name);
        if self.data_dir.exists() {
            std::fs::remove_dir_all(&self.data_dir).context("removing the data directory")?;
        }
        Ok(())
    }

    pub fn peak_resident_bytes(&self) -> Option<u64> {
        self.with_process(Process::peak_resident_bytes).flatten()
    }

    /// Its resident memory now: all of it, and what is no file's.
    pub fn resident_bytes(&self) -> Option<(u64, u64)> {
        self.with_process(|process| Some((process.resident_bytes()?, process.anonymous_bytes()?))).flatten()
    }

    pub fn log_tail(&self, lines: usize) -> String {
        tail(&self.log, lines)
    }

    /// Waits until its own store has `value` for `key`; `None`: a 404.
    pub async fn has(&self, key: &str, value: Option<&str>) {
        let shown: String = key.chars().take(60).collect();
        let what = format!("{} has the awaited value of {shown:?}", self.name);
        wait::until(&what, START, || async {
            let answer = self.api().get_own(key).await.map_err(|error| format!("{error:#}"))?;
            if is(&answer, value) {
                Ok(())
            } else {
                let wanted: Option<String> = value.map(|value| value.chars().take(60).collect());
                Err(format!("{answer}, not {wanted:?}"))
            }
        })
        .await;
    }
}

/// Whether `answer` says that the value is `value`; `None`: that there is none.
pub fn is(answer: &Answer, value: Option<&str>) -> bool {
    match value {
        Some(value) => answer.value().as_deref() == Some(value),
        None => answer.status == 404,
    }
}
