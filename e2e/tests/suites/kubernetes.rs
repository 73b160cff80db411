//! The example for Kubernetes: it is what Kubernetes takes, it agrees with the node, and its pods run as it says.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::aws::{Container, inspect};
use e2e::cluster::node_binary;
use e2e::deployment::{Deployment, docker, image};
use e2e::kubernetes::{document, documents, example, run_options};
use e2e::runner::{Ctx, Test};
use e2e::{tests, wait};
use serde_json::{Value, json};

pub fn tests() -> Vec<Test> {
    tests![
        DeploymentAndPython: pods_of_the_example_serve_and_stop_as_it_says;
        Python: the_example_fits_kubernetes_own_schemas_and_broken_ones_do_not,
            the_example_agrees_with_the_node_and_with_itself
    ]
}

const PATIENCE: Duration = Duration::from_secs(60);

/// All of the example's documents, which Kubernetes takes.
async fn whole() -> Result<Vec<Value>> {
    documents(&example()).await?.map_err(anyhow::Error::msg)
}

fn list(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

async fn the_example_fits_kubernetes_own_schemas_and_broken_ones_do_not(ctx: Ctx) -> Result<()> {
    let whole = whole().await?;
    type Break = (&'static str, &'static str, fn(&mut Value), &'static str);
    let broken: [Break; 6] = [
        ("StatefulSet", "bitacora", |set| set["spec"]["replica"] = json!(3), "replica"),
        ("StatefulSet", "bitacora", |set| set["spec"]["replicas"] = json!("three"), "replicas"),
        ("StatefulSet", "bitacora", |set| drop(remove(&mut set["spec"], "selector")), "selector"),
        (
            "StatefulSet",
            "bitacora",
            |set| {
                let pod = &mut set["spec"]["template"]["spec"];
                pod["containers"][0]["readinessProbe"]["httpGett"] = json!({ "port": 1 });
            },
            "httpGett",
        ),
        ("PodDisruptionBudget", "bitacora", |budget| budget["apiVersion"] = json!("policy/v2"), "policy/v2"),
        ("Service", "bitacora-nodes", |service| service["spec"]["ports"] = json!({}), "ports"),
    ];
    for (kind, name, break_it, word) in broken {
        let mut document = document(&whole, kind, name)?.clone();
        break_it(&mut document);
        let file = ctx.dir.join("broken.yaml");
        std::fs::write(&file, document.to_string())?;
        let said = documents(&file).await?.err();
        ensure!(said.as_ref().is_some_and(|said| said.contains(word)), "{kind}, {word}: {said:?}");
    }
    Ok(())
}

fn remove(document: &mut Value, name: &str) -> Option<Value> {
    document.as_object_mut()?.remove(name)
}

async fn the_example_agrees_with_the_node_and_with_itself(_: Ctx) -> Result<()> {
    let whole = whole().await?;
    let set = &document(&whole, "StatefulSet", "bitacora")?["spec"];
    let pod = &set["template"]["spec"];
    let container = &pod["containers"][0];
    let variables = list(&container["env"]);
    let value = |name: &str| {
        let found = variables.iter().find(|variable| variable["name"] == name);
        found.and_then(|variable| variable["value"].as_str()).with_context(|| format!("no {name}"))
    };

    let mut help = tokio::process::Command::new(node_binary().await?);
    let help = help.args(["serve", "--help"]).kill_on_drop(true).output().await?;
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    for variable in &variables {
        let name = variable["name"].as_str().context("a name")?;
        let is_setting = help.contains(&format!("[env: {name}"));
        // Else another variable's value speaks of it.
        let is_used = variables.iter().any(|other| {
            let value = other["value"].as_str().unwrap_or_default();
            value.contains(&format!("$({name})")) || value.contains(&format!("${name}"))
        });
        ensure!(is_setting || is_used, "the node has no setting {name}, and nothing uses it");
    }

    let seconds = |name: &str| -> Result<u64> {
        let value = value(name)?;
        let number = value.strip_suffix('s').and_then(|number| number.parse().ok());
        number.with_context(|| format!("{name}={value}"))
    };
    let readiness = &container["readinessProbe"];
    let number = |value: &Value| value.as_u64().with_context(|| format!("a number: {value}"));
    let seen = number(&readiness["periodSeconds"])? * number(&readiness["failureThreshold"])?;
    ensure!(seconds("DRAIN_DELAY")? >= 2 * seen, "readiness is seen after {seen} s");
    // Two seconds to leave ZooKeeper, and some to close the store.
    let needed = seconds("DRAIN_DELAY")? + seconds("SHUTDOWN_GRACE")? + 10;
    let grace = number(&pod["terminationGracePeriodSeconds"])?;
    ensure!(grace >= needed, "terminationGracePeriodSeconds {grace} is less than {needed}");

    let ports = list(&container["ports"]);
    let named =
        |name: &str| ports.iter().find(|port| port["name"] == name).map(|port| &port["containerPort"]);
    for (name, setting) in [("api", "API_PORT"), ("rpc", "AVRO_PORT")] {
        let port = named(name).with_context(|| format!("no port {name}"))?;
        ensure!(value(setting)?.parse() == Ok(number(port)?), "{setting} is not the port {name}");
    }
    for probe in [readiness, &container["livenessProbe"]] {
        ensure!(probe["httpGet"]["port"] == "api", "{probe}");
    }
    let labels = &set["template"]["metadata"]["labels"];
    for name in ["bitacora", "bitacora-nodes"] {
        let service = &document(&whole, "Service", name)?["spec"];
        ensure!(service["selector"] == *labels, "Service {name} selects others");
        for port in list(&service["ports"]) {
            let target = port["targetPort"].as_str().context("a name")?;
            ensure!(named(target).is_some(), "Service {name} names a port {target}");
        }
    }
    let budget = &document(&whole, "PodDisruptionBudget", "bitacora")?["spec"];
    for selector in [&set["selector"], &budget["selector"]] {
        ensure!(selector["matchLabels"] == *labels, "{selector} selects others");
    }
    ensure!(set["serviceName"] == "bitacora-nodes");
    let mounts = list(&container["volumeMounts"]);
    ensure!(mounts.iter().any(|mount| mount["mountPath"] == value("DATA_DIR").unwrap_or_default()));
    let claims = list(&set["volumeClaimTemplates"]);
    for mount in &mounts {
        let named = |volume: &Value| volume["name"] == mount["name"];
        let claimed = claims.iter().any(|claim| named(&claim["metadata"]));
        ensure!(claimed || list(&pod["volumes"]).iter().any(named), "nothing is mounted at {mount}");
    }
    Ok(())
}

async fn pods_of_the_example_serve_and_stop_as_it_says(_: Ctx) -> Result<()> {
    let deployment = Deployment::new();
    let outcome = pods(&deployment).await;
    match outcome {
        Ok(()) => Ok(()),
        Err(error) => Err(error.context(deployment.report().await)),
    }
}

async fn pods(deployment: &Deployment) -> Result<()> {
    let whole = whole().await?;
    let pod = &document(&whole, "StatefulSet", "bitacora")?["spec"]["template"]["spec"];
    deployment.up(&["zookeeper", "kafka"]).await?;
    let mut pods = Vec::new();
    for index in 0..2 {
        let (name, container) = (format!("bitacora-{index}"), deployment.container(&format!("pod-{index}")));
        let env = [
            ("POD_NAME", name.as_str()),
            ("BROKER_LIST", "kafka:19092"),
            ("KAFKA_PROPERTIES", ""),
            ("ZOOKEEPER_HOSTS", "zookeeper:2181"),
            ("CACHE_BYTES", "16MiB"),
        ];
        let mut options = run_options(pod, &env)?;
        options.extend(["--network".to_string(), deployment.network()]);
        pods.push(Container::run(&container, image(), &options, &[]).await?);
    }
    let probes = [&pod["containers"][0]["livenessProbe"], &pod["containers"][0]["readinessProbe"]];
    for container in &pods {
        for probe in probes {
            succeeds(container, probe).await?;
        }
    }
    pods[0].exec(&["bitacora", "set", "key", "value"]).await?;
    pods[1].execs(&["bitacora", "get", "key"], |printed| printed == "value\n").await?;

    // What Kubernetes does when a pod is to go. Requests that still come are answered.
    let leaving = &pods[0];
    docker(&["kill", "--signal", "TERM", &leaving.name]).await?;
    let unready = wait::try_until(PATIENCE, || async {
        let status = probe_status(leaving, probes[1]).await.map_err(|error| format!("{error:#}"))?;
        if status == 503 { Ok(()) } else { Err(status.to_string()) }
    });
    unready.await.map_err(anyhow::Error::msg).context("it is still ready")?;
    ensure!(probe_status(leaving, probes[0]).await? == 200, "it is not alive any more");
    let address = leaving.address().await?;
    let answer = e2e::http::get(format!("http://{address}:8080/rpc?key=key")).await?;
    ensure!(answer.status() == 200, "a late request is answered {}", answer.status());
    let code = leaving.ended(PATIENCE).await?;
    ensure!(code == 0, "it ended with {code}:\n{}", leaving.logs().await);
    // A killed one would have said nothing.
    let state = inspect(&leaving.name).await?;
    ensure!(state["State"]["OOMKilled"] == false, "{}", state["State"]);
    pods[1].execs(&["bitacora", "get", "key"], |printed| printed == "value\n").await
}

/// Waits until a probe of the example's container succeeds.
async fn succeeds(container: &Container, probe: &Value) -> Result<()> {
    let succeeds = wait::try_until(PATIENCE, || async {
        let status = probe_status(container, probe).await.map_err(|error| format!("{error:#}"))?;
        if (200..400).contains(&status) { Ok(()) } else { Err(status.to_string()) }
    });
    match succeeds.await {
        Ok(()) => Ok(()),
        Err(seen) => anyhow::bail!("{probe}: {seen}\n{}", container.logs().await),
    }
}

/// What a probe is answered. The example's only named port of HTTP is 8080.
async fn probe_status(container: &Container, probe: &Value) -> Result<u16> {
    let path = probe["httpGet"]["path"].as_str().context("a path")?;
    let url = format!("http://{}:8080{path}", container.address().await?);
    Ok(e2e::http::get(url).await?.status().as_u16())
}
