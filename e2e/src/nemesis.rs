//! Faults for a deployment that has three of everything: seeded, never more at a time than it is meant to survive.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result, ensure};
use fastrand::Rng;

use crate::deployment::{Deployment, docker};

/// How often the engine is told something.
const TRIES: usize = 5;
/// An image with `ip`, which the servers' images lack.
const TOOLS: &str = "bitacora-e2e-tools";

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL.
    Kill(String),
    /// Frozen: its connections stay open, and nobody answers.
    Pause(String),
    /// SIGTERM, and started again at once.
    Restart(String),
    /// Neither hears from the other; both hear from everybody else.
    Cut(String, String),
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Kill(service) => write!(out, "kill {service}"),
            Fault::Pause(service) => write!(out, "pause {service}"),
            Fault::Restart(service) => write!(out, "restart {service}"),
            Fault::Cut(a, b) => write!(out, "cut {a} from {b}"),
        }
    }
}

impl Fault {
    /// What it is counted as: `kill node`, `cut kafka-zookeeper`.
    pub fn kind(&self) -> String {
        let kind = |service: &str| service.rsplit_once('-').map_or(service, |(kind, _)| kind).to_owned();
        match self {
            Fault::Kill(service) => format!("kill {}", kind(service)),
            Fault::Pause(service) => format!("pause {}", kind(service)),
            Fault::Restart(service) => format!("restart {}", kind(service)),
            Fault::Cut(a, b) => format!("cut {}-{}", kind(a), kind(b)),
        }
    }

    pub fn services(&self) -> Vec<&str> {
        match self {
            Fault::Kill(service) | Fault::Pause(service) | Fault::Restart(service) => vec![service],
            Fault::Cut(a, b) => vec![a, b],
        }
    }
}

/// The next one or two faults: of brokers and ZooKeepers one each, of nodes two.
pub fn choose(rng: &mut Rng) -> Vec<Fault> {
    let mut faults: Vec<Fault> = Vec::new();
    for _ in 0..rng.usize(1..=2) {
        let kind = ["node", "node", "kafka", "zookeeper"][rng.usize(0..4)];
        let service = format!("{kind}-{}", rng.usize(1..=3));
        let fault = match rng.usize(0..4) {
            0 => Fault::Kill(service),
            1 => Fault::Pause(service),
            2 => Fault::Restart(service),
            _ => {
                let other = match kind {
                    "node" => ["kafka", "zookeeper", "node"][rng.usize(0..3)],
                    kind => kind,
                };
                let mut other = format!("{other}-{}", rng.usize(1..=3));
                while other == service {
                    other = format!("{}-{}", kind, rng.usize(1..=3));
                }
                Fault::Cut(service, other)
            }
        };
        let touched: Vec<&str> = faults.iter().flat_map(Fault::services).collect();
        let again = |service: &&str| {
            let kind = service.rsplit_once('-').map_or("", |(kind, _)| kind);
            touched.contains(service) || kind != "node" && touched.iter().any(|other| other.starts_with(kind))
        };
        if !fault.services().iter().any(again) {
            faults.push(fault);
        }
    }
    faults
}

pub struct Nemesis<'a> {
    deployment: &'a Deployment,
    pub injected: BTreeMap<String, usize>,
}

impl<'a> Nemesis<'a> {
    /// Prepares what faults need; minutes where no layer of an image is cached.
    pub async fn new(deployment: &'a Deployment) -> Result<Nemesis<'a>> {
        let dir = tempfile::tempdir().context("a folder for an image")?;
        let dockerfile = "FROM debian:bookworm-slim\nRUN apt-get update && apt-get install -y --no-install-recommends iproute2\n";
        std::fs::write(dir.path().join("Dockerfile"), dockerfile).context("writing a Dockerfile")?;
        docker(&["build", "--quiet", "--tag", TOOLS, &dir.path().display().to_string()]).await?;
        Ok(Nemesis { deployment, injected: BTreeMap::new() })
    }

    pub async fn inject(&mut self, fault: &Fault) -> Result<()> {
        *self.injected.entry(fault.kind()).or_default() += 1;
        match fault {
            Fault::Kill(service) => self.tell("kill", service).await,
            Fault::Pause(service) => self.tell("pause", service).await,
            Fault::Restart(service) => self.tell("restart", service).await,
            Fault::Cut(a, b) => self.route("add", a, b).await,
        }
    }

    pub async fn heal(&self, fault: &Fault) -> Result<()> {
        match fault {
            Fault::Kill(service) => self.tell("start", service).await,
            Fault::Pause(service) => self.tell("unpause", service).await,
            Fault::Restart(_) => Ok(()),
            Fault::Cut(a, b) => self.route("del", a, b).await,
        }
    }

    /// Compose would wait until all is well that the service depends on, and give up if another fault forbids it.
    async fn tell(&self, what: &str, service: &str) -> Result<()> {
        let container = self.deployment.container_of(service).await?;
        let mut tries = 1;
        // The engine gives up freezing what has too much to do just then.
        while let Err(error) = docker(&[what, &container]).await {
            ensure!(tries < TRIES, error);
            tries += 1;
        }
        Ok(())
    }

    /// One side throws away what it would send to the other: no connection between the two gets on.
    async fn route(&self, change: &str, a: &str, b: &str) -> Result<()> {
        let (a, b) = tokio::try_join!(self.deployment.container_of(a), self.deployment.container_of(b))?;
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        let address = docker(&["inspect", "--format", format, &b]).await?;
        let network = format!("container:{a}");
        let route = ["ip", "route", change, "blackhole", address.trim()];
        let run = ["run", "--rm", "--network", &network, "--cap-add", "NET_ADMIN", TOOLS];
        docker(&[&run[..], &route[..]].concat()).await.map(drop)
    }
}
