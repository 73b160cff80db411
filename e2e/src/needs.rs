//! What a test needs of the machine that it runs on, and what the machine has.

use crate::backends::Backends;
use crate::{balancer, browser, curl, deployment, java, machine, npm, prometheus, python};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Needs {
    /// Only the node's binary, or not even that.
    Nothing,
    Servers,
    /// The servers, and Java with Maven for a check by Kafka's and Avro's own libraries.
    ServersAndJava,
    /// The servers, and Prometheus with its promtool.
    ServersAndPrometheus,
    /// Node with npm, for a check by a JavaScript project's own library; no servers.
    Npm,
    /// The servers, and Node with npm for a client in TypeScript.
    ServersAndNpm,
    /// Chromium, and Node with npm that drive it; no servers.
    Browser,
    /// The servers and the browser.
    ServersAndBrowser,
    /// The servers, a balancer in Docker, and clients that are curl, a browser and a library of Python.
    ServersAndClients,
    /// The servers, and a balancer in Docker.
    ServersAndBalancer,
    /// Docker with Compose, and the nodes' image.
    Deployment,
    /// Docker with Compose and the nodes' image, and Python that reads what describes a deployment.
    DeploymentAndPython,
    /// Python, for a check against a library of it; no servers.
    Python,
    /// The servers, and Python for a check by a library of it.
    ServersAndPython,
    /// The servers, and a C compiler and a loader for what stands between a node and its machine.
    ServersAndMachine,
}

impl Needs {
    pub(crate) fn servers(self) -> bool {
        !self.deployment() && !matches!(self, Needs::Nothing | Needs::Npm | Needs::Browser | Needs::Python)
    }

    pub(crate) fn deployment(self) -> bool {
        matches!(self, Needs::Deployment | Needs::DeploymentAndPython)
    }
}

/// What this machine has.
#[derive(Clone, Copy)]
pub(crate) struct Has {
    backends: Backends,
    java: bool,
    compose: bool,
    prometheus: bool,
    npm: bool,
    browser: bool,
    python: bool,
    machine: bool,
    balancer: bool,
    curl: bool,
}

impl Has {
    pub(crate) async fn look(backends: Backends) -> Has {
        Has {
            backends,
            java: java::available().await,
            compose: backends == Backends::Docker && deployment::available(),
            prometheus: prometheus::available(backends),
            npm: npm::available().await,
            browser: browser::available().await,
            python: python::available().await,
            machine: machine::available().await,
            balancer: balancer::available(backends),
            curl: curl::available().await,
        }
    }

    /// All that any test needs beside the servers.
    pub(crate) fn everything(self) -> bool {
        let of_others = self.java && self.prometheus && self.npm && self.browser && self.python;
        of_others && self.compose && self.machine && self.has_clients()
    }

    fn has_clients(self) -> bool {
        self.balancer && self.curl && self.browser && self.python
    }

    /// Why a test can't run here.
    pub(crate) fn missing(self, needs: Needs) -> Option<&'static str> {
        if self.backends == Backends::None && (needs.servers() || needs.deployment()) {
            return Some("no Docker engine, no Java with Maven");
        }
        match needs {
            needs if needs.deployment() && !self.compose => Some("no Docker engine with Compose"),
            Needs::ServersAndJava if !self.java => {
                Some("no Java with Maven for the check by Java's libraries")
            }
            Needs::ServersAndPrometheus if !self.prometheus => {
                Some("no Docker engine, no prometheus and promtool")
            }
            Needs::Npm | Needs::ServersAndNpm if !self.npm => {
                Some("no Node with npm for the checks by Grafana's types and by a client in TypeScript")
            }
            Needs::Browser | Needs::ServersAndBrowser if !self.browser => {
                Some("no Chromium with Node and npm for the console")
            }
            Needs::ServersAndClients if !self.has_clients() => Some(
                "no Docker engine for the balancer, or no curl, Chromium or python3 for the clients of watches",
            ),
            Needs::ServersAndBalancer if !self.balancer => Some("no Docker engine for the balancer"),
            Needs::ServersAndMachine if !self.machine => {
                Some("no Linux with glibc and cc for a machine's faults")
            }
            Needs::Python | Needs::ServersAndPython | Needs::DeploymentAndPython if !self.python => {
                Some("no python3 with venv for the checks by Python's libraries")
            }
            _ => None,
        }
    }

    /// What did not run on this machine for want of something, for the end of a run.
    pub(crate) fn tell_what_is_missing(self) -> Vec<&'static str> {
        let engine = self.backends != Backends::None;
        let lines = [
            (
                engine && !self.compose,
                "the Compose deployment was not tried: there is no Docker engine with Compose",
            ),
            (
                engine && !self.java,
                "the checks by Java's own libraries did not run: there is no Java with Maven",
            ),
            (
                engine && !self.prometheus,
                "alerts and dashboards were not tried: there is neither a Docker engine nor Prometheus with promtool",
            ),
            (
                !self.npm,
                "the dashboards were not held against Grafana's types, nor was a TypeScript client tried: there is no Node with npm",
            ),
            (
                engine && !self.has_clients(),
                "watches were not tried with real clients through HAProxy: that takes a Docker engine, curl, Chromium and python3",
            ),
            (!self.browser, "the console was not tried in a browser: there is no Chromium with Node and npm"),
            (
                !self.python,
                "compose/aws and compose/kubernetes were not checked against botocore and Kubernetes' schemas, Avro files by fastavro, nor the API by schemathesis and a Python client: there \
                 is no python3 with venv",
            ),
        ];
        lines.into_iter().filter(|(missing, _)| *missing).map(|(_, line)| line).collect()
    }
}
