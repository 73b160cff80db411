//! A real Prometheus over a cluster's nodes, and promtool: from Docker where that runs the servers, else from the PATH.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use reqwest::Method;
use serde_json::{Value, json};

use crate::backends::{Backends, CONTAINER_LABEL};
use crate::http::{Api, encode};
use crate::process::{Process, tail};
use crate::{ports, wait};

/// That of the Compose deployment.
const IMAGE: &str = "prom/prometheus:v2.53.3";
/// The first use may have to pull the image.
const READY: Duration = Duration::from_secs(120);
/// So that a test need not wait for long; the rules' own times stay as they are.
const INTERVAL: &str = "1s";

/// Whether there are Prometheus and promtool for these back ends.
pub fn available(backends: Backends) -> bool {
    let answers = |program| {
        let mut command = Command::new(program);
        command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    match backends {
        Backends::Docker => answers("docker"),
        Backends::Local | Backends::None => answers("prometheus") && answers("promtool"),
    }
}

/// `monitoring/prometheus` of this checkout.
pub fn rules() -> PathBuf {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../monitoring/prometheus");
    dir.canonicalize().expect("the checkout has its monitoring folder")
}

/// One of Prometheus's programs, that sees `dirs` where they are.
fn program(backends: Backends, name: &str, dirs: &[&Path], container: Option<&str>) -> Command {
    if backends != Backends::Docker {
        return Command::new(name);
    }
    let mut command = Command::new("docker");
    command.args([
        "run",
        "--rm",
        "--network",
        "host",
        "--label",
        &format!("{CONTAINER_LABEL}={}", std::process::id()),
    ]);
    // The image's own user can't read a private temporary folder.
    command.args(["--user", "0:0", "--entrypoint", name]);
    for dir in dirs {
        command.arg("--volume").arg(format!("{0}:{0}:ro", dir.display()));
    }
    if let Some(container) = container {
        command.args(["--name", container]);
    }
    command.arg(IMAGE);
    command
}

/// Runs promtool on the files of [`rules`]; its output, or an error with it.
pub async fn promtool(backends: Backends, arguments: &[&str]) -> Result<String> {
    let mut command = program(backends, "promtool", &[&rules()], None);
    command.args(arguments).stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output()).await.context("promtool panicked")?;
    let output = output.context("running promtool")?;
    let text = [&output.stdout[..], &output.stderr[..]].map(String::from_utf8_lossy).concat();
    ensure!(
        output.status.success(),
        "promtool {} ended with {}:\n{text}",
        arguments.join(" "),
        output.status
    );
    Ok(text)
}

/// A Prometheus with the repository's own rules; gone when dropped.
pub struct Prometheus {
    pub port: u16,
    api: Api,
    process: Process,
    container: Option<String>,
}

impl Prometheus {
    /// Scrapes `targets`, `host:port` each, as the job `bitacora`, once a second. Its log goes to `dir`.
    pub async fn start(backends: Backends, dir: &Path, targets: &[String]) -> Result<Prometheus> {
        let port = ports::free();
        let config = json!({
            "global": { "scrape_interval": INTERVAL, "scrape_timeout": INTERVAL, "evaluation_interval": INTERVAL },
            "rule_files": [rules().join("rules/*.yml")],
            "scrape_configs": [{ "job_name": "bitacora", "static_configs": [{ "targets": targets }] }],
        });
        let own = dir.join("prometheus");
        std::fs::create_dir_all(&own).context("creating Prometheus's folder")?;
        // JSON is YAML.
        let file = own.join("prometheus.yml");
        std::fs::write(&file, config.to_string()).context("writing prometheus.yml")?;
        let docker = backends == Backends::Docker;
        let container = docker.then(|| format!("bitacora-e2e-prometheus-{}-{port}", std::process::id()));
        let mut command = program(backends, "prometheus", &[&own, &rules()], container.as_deref());
        command.arg(format!("--config.file={}", file.display()));
        command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
        let data = if docker { PathBuf::from("/prometheus") } else { own.join("data") };
        command.arg(format!("--storage.tsdb.path={}", data.display()));
        let process = Process::spawn(command, &dir.join("prometheus.log"))?;
        let prometheus = Prometheus { port, api: Api::new(port), process, container };
        prometheus.ready().await?;
        Ok(prometheus)
    }

    async fn ready(&self) -> Result<()> {
        let ready = wait::try_until(READY, || async {
            if let Some(status) = self.process.exited() {
                return Ok(Err(format!("it ended with {status}:\n{}", tail(&self.process.log, 30))));
            }
            match self.api.call(Method::GET, "/-/ready").await {
                Ok(answer) if answer.status == 200 => Ok(Ok(())),
                Ok(answer) => Err(answer.to_string()),
                Err(error) => Err(format!("{error:#}")),
            }
        });
        ready.await.and_then(|outcome| outcome).map_err(anyhow::Error::msg).context("Prometheus starts")
    }

    /// `data` of an answer of its HTTP API; an error is Prometheus's own words.
    pub async fn get(&self, path: &str) -> Result<Value> {
        let answer = self.api.call(Method::GET, path).await?;
        let json = answer.json();
        ensure!(json["status"] == "success", "{path}: {answer}");
        Ok(json["data"].clone())
    }

    /// The series of an instant query, each with `metric` and `value`.
    pub async fn query(&self, query: &str) -> Result<Vec<Value>> {
        let data = self.get(&format!("/api/v1/query?query={}", encode(query))).await?;
        Ok(data["result"].as_array().cloned().unwrap_or_default())
    }

    /// The series over the last minute, each with `metric` and `values`.
    pub async fn query_range(&self, query: &str) -> Result<Vec<Value>> {
        let now = crate::topic::now_ms() / 1000;
        let path = format!("/api/v1/query_range?query={}&start={}&end={now}&step=5", encode(query), now - 60);
        Ok(self.get(&path).await?["result"].as_array().cloned().unwrap_or_default())
    }

    /// The alert of that name whose labels hold `labels`, if it is pending or firing.
    async fn alert(&self, name: &str, labels: &[(&str, &str)]) -> Result<Option<Value>, String> {
        let data = self.get("/api/v1/alerts").await.map_err(|error| format!("{error:#}"))?;
        let alerts = data["alerts"].as_array().cloned().unwrap_or_default();
        let meant = |one: &Value| {
            let of = &one["labels"];
            of["alertname"] == name && labels.iter().all(|(label, value)| of[label] == *value)
        };
        Ok(alerts.into_iter().find(meant))
    }

    /// Waits until an alert fires; when that was seen, and the alert.
    pub async fn fires(
        &self,
        name: &str,
        labels: &[(&str, &str)],
        deadline: Duration,
    ) -> Result<(Instant, Value)> {
        let fires = wait::try_until(deadline, || async {
            match self.alert(name, labels).await? {
                Some(alert) if alert["state"] == "firing" => Ok((Instant::now(), alert)),
                other => Err(format!("{other:?}")),
            }
        });
        fires.await.map_err(anyhow::Error::msg).with_context(|| format!("{name} {labels:?} fires"))
    }

    /// Waits until an alert neither fires nor is about to.
    pub async fn is_silent(&self, name: &str, labels: &[(&str, &str)], deadline: Duration) -> Result<()> {
        let silent = wait::try_until(deadline, || async {
            self.alert(name, labels).await?.map_or(Ok(()), |alert| Err(alert.to_string()))
        });
        silent.await.map_err(anyhow::Error::msg).with_context(|| format!("{name} {labels:?} is silent"))
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let Some(container) = &self.container else { return };
        let mut remove = Command::new("docker");
        remove.args(["rm", "--force", "--volumes", container]).stdin(Stdio::null()).stdout(Stdio::null());
        if let Err(error) = remove.stderr(Stdio::null()).status() {
            eprintln!("e2e: {container} is left: {error}");
        }
    }
}
