//! HAProxy before a cluster's nodes, with the configuration of the Compose deployment but for the nodes' addresses.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::backends::{Backends, CONTAINER_LABEL};
use crate::http::Api;
use crate::process::{Process, tail};
use crate::{ports, wait};

/// That of the Compose deployment.
const IMAGE: &str = "haproxy:3.0";
/// The first use may have to pull the image.
const READY: Duration = Duration::from_secs(120);

pub(crate) fn available(backends: Backends) -> bool {
    backends == Backends::Docker
}

/// Gone when dropped.
pub struct Balancer {
    pub port: u16,
    stats: Api,
    process: Process,
    container: String,
}

impl Balancer {
    /// In front of the nodes at these ports. Its log and its configuration go to `dir`.
    pub async fn start(dir: &Path, nodes: &[u16]) -> Result<Balancer> {
        let (port, stats) = (ports::free(), ports::free());
        let own = dir.join("haproxy");
        std::fs::create_dir_all(&own).context("creating HAProxy's folder")?;
        std::fs::write(own.join("haproxy.cfg"), configuration(port, stats, nodes)?)?;
        let container = format!("bitacora-e2e-haproxy-{}-{port}", std::process::id());
        let mut command = Command::new("docker");
        command.args(["run", "--rm", "--network", "host", "--user", "0:0", "--name", &container]);
        command.args(["--label", &format!("{CONTAINER_LABEL}={}", std::process::id())]);
        command.args(["--volume", &format!("{}:/usr/local/etc/haproxy:ro", own.display()), IMAGE]);
        let process = Process::spawn(command, &dir.join("haproxy.log"))?;
        let balancer = Balancer { port, stats: Api::new(stats), process, container };
        balancer.has(nodes.len()).await?;
        Ok(balancer)
    }

    /// Waits until it sends requests to so many nodes.
    pub async fn has(&self, nodes: usize) -> Result<()> {
        let seen = wait::try_until(READY, || async {
            if let Some(status) = self.process.exited() {
                return Ok(Err(format!("it ended with {status}:\n{}", tail(&self.process.log, 30))));
            }
            let active = self.stats.metric("haproxy_backend_active_servers").await;
            match active.map_err(|error| format!("{error:#}"))? {
                active if active as usize == nodes => Ok(Ok(())),
                active => Err(format!("{active} nodes")),
            }
        });
        let seen = seen.await.and_then(|outcome| outcome).map_err(anyhow::Error::msg);
        seen.with_context(|| format!("HAProxy has {nodes} nodes"))
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let mut command = Command::new("docker");
        command.args(["rm", "--force", &self.container]).stdout(Stdio::null()).stderr(Stdio::null());
        if let Err(error) = command.status() {
            eprintln!("e2e: {} is left: {error}", self.container);
        }
    }
}

/// `compose/haproxy/haproxy.cfg` with other addresses.
fn configuration(port: u16, stats: u16, nodes: &[u16]) -> Result<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../compose/haproxy/haproxy.cfg");
    let mut text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let servers = nodes.iter().map(|node| format!("server node-{node} 127.0.0.1:{node} check"));
    let servers = servers.collect::<Vec<_>>().join("\n    ");
    for (old, new) in [
        ("bind :8080\n", format!("bind 127.0.0.1:{port}\n")),
        ("bind :8404\n", format!("bind 127.0.0.1:{stats}\n")),
        // It has the machine's network, where others may listen there.
        ("bind 127.0.0.1:8405\n", String::from("\n")),
        ("default-server init-addr none resolvers containers resolve-prefer ipv4", String::new()),
        ("server-template node- 32 nodes:8080", servers),
    ] {
        ensure!(text.matches(old).count() == 1, "{} has not one {old:?}", file.display());
        text = text.replace(old, &new);
    }
    Ok(text)
}
