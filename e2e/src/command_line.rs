//! The command line, `bitacora`, as a user or a script runs it.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::io::AsyncWriteExt;

use crate::cluster::{Cluster, Node, cli_binary};
use crate::process::Process;
use crate::runner::Ctx;

/// No command of the suites takes longer.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a command said, and how it ended.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Said {
    #[track_caller]
    pub fn expect(self, code: i32) -> Said {
        let told: String = self.text().chars().take(500).collect();
        assert_eq!(self.code, code, "unexpected exit code; stderr: {}\nstdout: {told}", self.stderr);
        self
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Each line as JSON.
    pub fn json(&self) -> Result<Vec<Value>> {
        self.text()
            .lines()
            .map(|line| {
                serde_json::from_str(line).with_context(|| line.chars().take(200).collect::<String>())
            })
            .collect()
    }
}

/// A way to a cluster: the flags that say where it is.
#[derive(Clone)]
pub struct CommandLine {
    connection: Vec<String>,
    dir: PathBuf,
}

impl CommandLine {
    /// Relative paths are below the test's directory.
    pub fn new(ctx: &Ctx, connection: &[&str]) -> CommandLine {
        let connection = connection.iter().map(ToString::to_string).collect();
        CommandLine { connection, dir: ctx.dir.clone() }
    }

    pub fn rpc(ctx: &Ctx, nodes: &[Node]) -> CommandLine {
        let nodes: Vec<String> = nodes.iter().map(Node::rpc_address).collect();
        CommandLine::new(ctx, &["--rpc", &nodes.join(",")])
    }

    pub fn http(ctx: &Ctx, nodes: &[Node]) -> CommandLine {
        let nodes: Vec<String> = nodes.iter().map(Node::http_url).collect();
        CommandLine::new(ctx, &["--http", &nodes.join(",")])
    }

    pub fn zookeeper(ctx: &Ctx, cluster: &Cluster) -> CommandLine {
        CommandLine::new(ctx, &["--zookeeper", &cluster.zookeeper_hosts])
    }

    /// The same with one more flag.
    pub fn with(mut self, flag: &str, value: &str) -> CommandLine {
        self.connection.extend([flag.to_string(), value.to_string()]);
        self
    }

    async fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(cli_binary().await?);
        command.args(&self.connection).args(arguments).current_dir(&self.dir).env_clear();
        // Nothing of the caller's environment is a setting by accident.
        for name in ["PATH", "HOME", "TMPDIR"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        Ok(command)
    }

    pub async fn run(&self, arguments: &[&str]) -> Result<Said> {
        self.run_on(arguments, b"").await
    }

    /// With `stdin`, to its end.
    pub async fn run_on(&self, arguments: &[&str], stdin: &[u8]) -> Result<Said> {
        let mut command = tokio::process::Command::from(self.command(arguments).await?);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().context("starting bitacora")?;
        let mut input = child.stdin.take().context("its stdin is a pipe")?;
        let feed = async {
            // It may end before it has read all.
            let _ = input.write_all(stdin).await;
            drop(input);
        };
        let both = async { tokio::join!(feed, child.wait_with_output()).1 };
        let Ok(output) = tokio::time::timeout(PATIENCE, both).await else {
            bail!("bitacora {} did not end within {PATIENCE:?}", arguments.join(" "));
        };
        let output = output?;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        let code = output.status.code().with_context(|| format!("killed: {}; {stderr}", output.status))?;
        // A panic is told on stderr and has a code like any other.
        ensure!(!stderr.contains("panicked at"), "bitacora {} panicked: {stderr}", arguments.join(" "));
        Ok(Said { code, stdout: output.stdout, stderr })
    }

    /// Starts it and returns at once; what it says goes to `<name>.log`.
    pub async fn spawn(&self, name: &str, arguments: &[&str]) -> Result<Process> {
        Process::spawn(self.command(arguments).await?, &self.dir.join(format!("{name}.log")))
    }
}
