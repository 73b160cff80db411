//! The repository's own Compose deployments, as users start them, from images that are built from this checkout.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;

use anyhow::{Context, Result, ensure};
use tokio::sync::{Mutex, OnceCell};

use crate::ports;
use crate::topic::Topic;

/// The owner's process id follows; so a later run finds what a killed one left.
const PREFIX: &str = "bitacora-e2e-";
/// The end of the name of one that has three of everything.
const HA: &str = "-ha";
const HA_FILE: &str = "compose/ha.yaml";
/// The end of the name of one that speaks TLS.
const TLS: &str = "-tls";
const TLS_FILE: &str = "compose/tls.yaml";
/// The ports of one that has one of everything, but the nodes.
const PORTS: [&str; 8] = [
    "BITACORA_PORT",
    "NODE_1_PORT",
    "NODE_2_PORT",
    "NODE_3_PORT",
    "KAFKA_PORT",
    "ZOOKEEPER_PORT",
    "PROMETHEUS_PORT",
    "HAPROXY_STATS_PORT",
];

/// The nodes' image: built from this checkout, unless `E2E_IMAGE` names one.
static GIVEN: LazyLock<Option<String>> = LazyLock::new(|| std::env::var("E2E_IMAGE").ok());

pub fn image() -> &'static str {
    GIVEN.as_deref().unwrap_or("bitacora:e2e")
}

/// Of `Dockerfile.aws`.
pub const AWS_IMAGE: &str = "bitacora-aws:e2e";

/// Whether `docker compose` is there; an engine alone does not mean so.
pub fn available() -> bool {
    let mut version = Command::new("docker");
    version.args(["compose", "version"]).stdout(Stdio::null()).stderr(Stdio::null());
    version.status().is_ok_and(|status| status.success())
}

/// Builds the nodes' images, once a run. Minutes, where no layer of it is cached.
pub async fn build() -> Result<()> {
    static BUILT: OnceCell<Result<(), String>> = OnceCell::const_new();
    let built = BUILT.get_or_init(async || {
        let built = tokio::task::spawn_blocking(|| {
            let mut command = Command::new("docker");
            if GIVEN.is_none() {
                command.args(["compose", "build", "node-1"]).env("BITACORA_IMAGE", image());
                run(command)?;
                command = Command::new("docker");
            }
            command.args(["build", "--quiet", "--file", "Dockerfile.aws", "--tag", AWS_IMAGE]);
            command.arg("--build-arg").arg(format!("BASE={}", image())).arg(".");
            run(command)
        });
        match built.await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(format!("{error:#}")),
            Err(error) => Err(error.to_string()),
        }
    });
    built.await.clone().map_err(|error| anyhow::anyhow!("building the image failed: {error}"))
}

/// The nodes' image with another program in it.
///
/// # Errors
/// When it can't be built.
pub async fn image_with(node: &Path, tag: &str) -> Result<String> {
    let name = format!("bitacora-e2e-older:{tag}");
    let folder = node.with_extension("image");
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let copied = folder.join("bitacora-node");
    std::fs::copy(node, &copied).with_context(|| copied.display().to_string())?;
    let recipe = format!("FROM {}\nCOPY bitacora-node /usr/local/bin/\n", image());
    std::fs::write(folder.join("Dockerfile"), recipe).context("writing a Dockerfile")?;
    docker(&["build", "--quiet", "--tag", &name, &folder.display().to_string()]).await?;
    std::fs::remove_dir_all(&folder).context("removing what the image was built from")?;
    Ok(name)
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// `docker …`; an error has all that it printed.
pub async fn docker(arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("docker");
    command.args(arguments);
    let output = tokio::task::spawn_blocking(move || run(command)).await.context("docker panicked")??;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn run(mut command: Command) -> Result<Output> {
    // `.env` there says which file is meant, as it does for users.
    command.current_dir(root()).stdin(Stdio::null()).env_remove("COMPOSE_FILE");
    let output = command.output().context("running docker")?;
    ensure!(
        output.status.success(),
        "{command:?} ended with {}:\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output)
}

/// A deployment of its own name, ports and volumes; gone with its volumes when dropped.
pub struct Deployment {
    project: String,
    /// `None` for the one that `.env` names.
    file: Option<&'static str>,
    /// Names as in `.env`.
    ports: Vec<(&'static str, u16)>,
    /// What is set beside those, as in `.env`.
    settings: Vec<(&'static str, &'static str)>,
}

impl Deployment {
    pub fn new() -> Deployment {
        Deployment::of("", &PORTS)
    }

    /// The one that speaks TLS.
    pub fn tls() -> Deployment {
        Deployment::of(TLS, &PORTS)
    }

    /// The one that has three of everything.
    pub fn ha() -> Deployment {
        let names = [
            "BITACORA_PORT",
            "NODE_1_PORT",
            "NODE_2_PORT",
            "NODE_3_PORT",
            "KAFKA_1_PORT",
            "KAFKA_2_PORT",
            "KAFKA_3_PORT",
            "ZOOKEEPER_1_PORT",
            "ZOOKEEPER_2_PORT",
            "ZOOKEEPER_3_PORT",
            "PROMETHEUS_PORT",
            "HAPROXY_STATS_PORT",
        ];
        Deployment::of(HA, &names)
    }

    fn of(suffix: &str, ports: &[&'static str]) -> Deployment {
        let project = format!("{PREFIX}{}-{}{suffix}", std::process::id(), ports::free());
        let file = file(&project);
        let ports = ports.iter().map(|name| (*name, ports::free())).collect();
        Deployment { project, file, ports, settings: Vec::new() }
    }

    #[must_use]
    pub fn with(mut self, name: &'static str, value: &'static str) -> Deployment {
        self.settings.push((name, value));
        self
    }

    pub fn port(&self, name: &str) -> u16 {
        let port = self.ports.iter().find(|(known, _)| *known == name);
        port.unwrap_or_else(|| panic!("no port is called {name}")).1
    }

    pub fn topic(&self) -> Topic {
        let brokers = self.ports.iter().filter(|(name, _)| name.starts_with("KAFKA"));
        let brokers: Vec<_> = brokers.map(|(_, port)| format!("127.0.0.1:{port}")).collect();
        Topic { brokers: brokers.join(","), name: "bitacora".to_string() }
    }

    /// The network that its containers are on.
    pub fn network(&self) -> String {
        format!("{}_default", self.project)
    }

    /// A name for a container beside it.
    pub fn container(&self, name: &str) -> String {
        format!("{}-{name}", self.project)
    }

    fn command(&self, image: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.args(["compose", "--project-name", &self.project]);
        command.args(self.file.iter().flat_map(|file| ["--file", file]));
        command.args(arguments);
        command.env("BITACORA_IMAGE", image);
        command.envs(self.settings.iter().copied());
        command.envs(self.ports.iter().map(|(name, port)| (name, port.to_string())));
        command
    }

    /// `docker compose …` on this deployment; an error has all that it printed.
    pub async fn compose(&self, arguments: &[&str]) -> Result<String> {
        self.compose_of(image(), arguments).await
    }

    /// Starts it, from images that are there, and waits until all is healthy. `more`: the services that are meant, and other arguments.
    pub async fn up(&self, more: &[&str]) -> Result<()> {
        self.up_of(image(), more).await
    }

    /// The same, with nodes of another image. Deployments start one after the other: a dozen Java processes that start on two
    /// processors at once are not healthy in time.
    pub async fn up_of(&self, image: &str, more: &[&str]) -> Result<()> {
        static STARTING: Mutex<()> = Mutex::const_new(());
        let _alone = STARTING.lock().await;
        self.compose_of(image, &[&["up", "--wait", "--no-build"][..], more].concat()).await?;
        Ok(())
    }

    async fn compose_of(&self, image: &str, arguments: &[&str]) -> Result<String> {
        let command = self.command(image, arguments);
        let output = tokio::task::spawn_blocking(move || run(command)).await.context("docker panicked")??;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The id of a service's container.
    pub async fn container_of(&self, service: &str) -> Result<String> {
        let id = self.compose(&["ps", "--all", "--quiet", service]).await?;
        Ok(id.trim().to_owned())
    }

    /// What is running, and the last lines of every service; for a failure's report.
    pub async fn report(&self) -> String {
        let mut report = String::new();
        for arguments in [&["ps", "--all"][..], &["logs", "--no-color", "--tail", "15"]] {
            match self.compose(arguments).await {
                Ok(text) => report.push_str(&text),
                Err(error) => report.push_str(&format!("{error:#}\n")),
            }
        }
        report
    }
}

impl Default for Deployment {
    fn default() -> Self {
        Deployment::new()
    }
}

impl Drop for Deployment {
    fn drop(&mut self) {
        remove(&self.project);
    }
}

/// The file of a project; `None` for the one that `.env` names.
fn file(project: &str) -> Option<&'static str> {
    let files = [(HA, HA_FILE), (TLS, TLS_FILE)];
    files.into_iter().find(|(suffix, _)| project.ends_with(suffix)).map(|(_, file)| file)
}

fn remove(project: &str) {
    let mut command = Command::new("docker");
    command.args(["compose", "--project-name", project]);
    command.args(file(project).iter().flat_map(|file| ["--file", file]));
    command.args(["down", "--volumes", "--remove-orphans", "--timeout", "1"]);
    if let Err(error) = run(command) {
        eprintln!("e2e: {error:#}");
    }
}

/// Removes the deployments of those owners, whatever became of them.
pub fn remove_of(is_meant: impl Fn(u32) -> bool) {
    let mut list = Command::new("docker");
    list.args(["compose", "ls", "--all", "--quiet"]);
    let Ok(output) = run(list) else { return };
    for project in String::from_utf8_lossy(&output.stdout).lines() {
        let owner = project.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse().ok());
        if owner.is_some_and(&is_meant) {
            remove(project);
        }
    }
}
