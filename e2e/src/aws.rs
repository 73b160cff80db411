//! What AWS has around a node: a metadata server (ECS' task metadata, version 4, and EC2's, version 2), containers that
//! are started as a task definition says, and botocore's model of ECS' calls.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use warp::Filter;
use warp::http::{HeaderMap, Method, Response, StatusCode};

use crate::backends::CONTAINER_LABEL;
use crate::deployment::docker;
use crate::{python, wait};

/// The name under which containers reach this machine.
pub const HOST: &str = "host.docker.internal";

const TTL: &str = "x-aws-ec2-metadata-token-ttl-seconds";
const TOKEN: &str = "x-aws-ec2-metadata-token";

/// An instance, by what its metadata service does.
#[derive(Clone, Debug)]
pub enum Instance {
    /// Its private address.
    At(Ipv4Addr),
    /// A container in the place of an instance: its address, as Docker knows it.
    Container(String),
    /// Its answers with tokens do not get as far as the asker, as with a hop limit of 1 behind a bridge.
    OutOfReach,
    /// It knows no tokens and answers without.
    OnlyV1,
    /// Its `HttpEndpoint` is disabled.
    Disabled,
}

/// What ECS' agent says of a container.
#[derive(Clone, Debug)]
enum Task {
    /// What Docker knows of the container of this name, and this network mode.
    Container(String, &'static str),
    Fixed(String),
}

#[derive(Default)]
struct Known {
    tasks: BTreeMap<String, Task>,
    instances: BTreeMap<String, Instance>,
    tokens: BTreeSet<String>,
    /// How often each task was asked for.
    asked: BTreeMap<String, usize>,
    requests: Vec<String>,
}

/// A server of both kinds of metadata; what is whose is in the path: `/v4/<name>`, `/<name>/latest/…`.
pub struct MetadataServer {
    port: u16,
    known: Arc<Mutex<Known>>,
    server: JoinHandle<()>,
}

impl MetadataServer {
    /// Listens on all of this machine's addresses.
    pub async fn start() -> Result<MetadataServer> {
        let listener =
            tokio::net::TcpListener::bind(("0.0.0.0", 0)).await.context("a port for the metadata")?;
        let port = listener.local_addr()?.port();
        let known = Arc::new(Mutex::new(Known::default()));
        let shared = known.clone();
        let route = warp::method().and(warp::path::full()).and(warp::header::headers_cloned()).then(
            move |method: Method, path: warp::path::FullPath, headers: HeaderMap| {
                let shared = shared.clone();
                async move { answer(&shared, &method, path.as_str(), &headers).await }
            },
        );
        let server = tokio::spawn(warp::serve(route).incoming(listener).run());
        Ok(MetadataServer { port, known, server })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        lock(&self.known)
    }

    /// The value of `ECS_CONTAINER_METADATA_URI_V4` in the container `name`. The agent knows a container only after its
    /// start, and its ports even later.
    pub fn task(&self, name: &str, mode: &'static str) -> String {
        self.known().tasks.insert(name.to_string(), Task::Container(name.to_string(), mode));
        format!("http://{HOST}:{}/v4/{name}", self.port)
    }

    /// As [`MetadataServer::task`], for a process of this machine, and with this answer.
    pub fn task_says(&self, name: &str, metadata: impl ToString) -> String {
        self.known().tasks.insert(name.to_string(), Task::Fixed(metadata.to_string()));
        format!("http://127.0.0.1:{}/v4/{name}", self.port)
    }

    /// The value of `AWS_EC2_METADATA_SERVICE_ENDPOINT` on the instance `name`; `host` is this machine to the asker.
    pub fn instance(&self, host: &str, name: &str, instance: Instance) -> String {
        self.known().instances.insert(name.to_string(), instance);
        format!("http://{host}:{}/{name}", self.port)
    }

    /// All requests so far, `METHOD PATH STATUS`.
    pub fn requests(&self) -> Vec<String> {
        self.known().requests.clone()
    }
}

impl Drop for MetadataServer {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn lock(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

type Answer = (StatusCode, String);

async fn answer(known: &Mutex<Known>, method: &Method, path: &str, headers: &HeaderMap) -> Response<String> {
    let answered = match path.strip_prefix("/v4/") {
        Some(name) => task_answer(known, name).await,
        None => {
            let (name, rest) = path[1..].split_once('/').unwrap_or((&path[1..], ""));
            instance_answer(known, name, method, rest, headers).await
        }
    };
    let (status, body) = answered.unwrap_or_else(|error| (StatusCode::BAD_GATEWAY, format!("{error:#}")));
    lock(known).requests.push(format!("{method} {path} {}", status.as_u16()));
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}

async fn task_answer(known: &Mutex<Known>, name: &str) -> Result<Answer> {
    let (task, asked) = {
        let mut known = lock(known);
        let asked = known.asked.entry(name.to_string()).or_default();
        *asked += 1;
        let asked = *asked;
        (known.tasks.get(name).cloned(), asked)
    };
    match task {
        None => Ok((StatusCode::NOT_FOUND, "unknown container".to_string())),
        Some(Task::Fixed(text)) => Ok((StatusCode::OK, text)),
        Some(Task::Container(..)) if asked == 1 => {
            Ok((StatusCode::NOT_FOUND, "the agent does not know it yet".to_string()))
        }
        Some(Task::Container(container, mode)) => {
            let docker = inspect(&container).await?;
            Ok((StatusCode::OK, container_metadata(&docker, mode, asked > 2).to_string()))
        }
    }
}

/// Docker's view of a container as ECS' agent tells it.
fn container_metadata(docker: &Value, mode: &str, with_ports: bool) -> Value {
    let mut metadata = json!({
        "DockerId": docker["Id"],
        "Name": "bitacora",
        "DockerName": docker["Name"],
        "Image": docker["Config"]["Image"],
        "Labels": { "com.amazonaws.ecs.task-definition-family": "bitacora" },
        "DesiredStatus": "RUNNING",
        "KnownStatus": "RUNNING",
        "Type": "NORMAL",
        "Networks": [{ "NetworkMode": mode, "IPv4Addresses": [address_of(docker)] }],
    });
    let mut ports = Vec::new();
    for (port, bindings) in docker["NetworkSettings"]["Ports"].as_object().into_iter().flatten() {
        let Some((number, protocol)) = port.split_once('/') else { continue };
        for binding in bindings.as_array().into_iter().flatten() {
            ports.push(json!({
                "ContainerPort": number.parse::<u16>().unwrap_or(0),
                "Protocol": protocol,
                "HostPort": binding["HostPort"].as_str().and_then(|port| port.parse::<u16>().ok()),
                "HostIp": binding["HostIp"],
            }));
        }
    }
    if with_ports && !ports.is_empty() {
        metadata["Ports"] = ports.into();
    }
    metadata
}

fn address_of(docker: &Value) -> String {
    let networks = docker["NetworkSettings"]["Networks"].as_object();
    let first = networks.and_then(|networks| networks.values().next());
    first.and_then(|network| network["IPAddress"].as_str()).unwrap_or_default().to_string()
}

async fn instance_answer(
    known: &Mutex<Known>,
    name: &str,
    method: &Method,
    path: &str,
    headers: &HeaderMap,
) -> Result<Answer> {
    let instance = lock(known).instances.get(name).cloned();
    let is_put = method == Method::PUT && path == "latest/api/token";
    let is_get = method == Method::GET && path == "latest/meta-data/local-ipv4";
    let is_v1 = matches!(instance, Some(Instance::OnlyV1));
    let address = match instance {
        Some(Instance::OutOfReach) => std::future::pending().await,
        Some(Instance::Disabled) => return Ok((StatusCode::FORBIDDEN, String::new())),
        Some(Instance::At(address)) => address.to_string(),
        Some(Instance::Container(container)) => address_of(&inspect(&container).await?),
        Some(Instance::OnlyV1) => Ipv4Addr::LOCALHOST.to_string(),
        None => return Ok((StatusCode::NOT_FOUND, String::new())),
    };
    if is_put && !is_v1 {
        let ttl: Option<u32> = headers.get(TTL).and_then(|value| value.to_str().ok()?.parse().ok());
        if !ttl.is_some_and(|ttl| (1..=21600).contains(&ttl)) {
            return Ok((StatusCode::BAD_REQUEST, "the token needs a time to live".to_string()));
        }
        let token = uuid::Uuid::new_v4().to_string();
        lock(known).tokens.insert(token.clone());
        return Ok((StatusCode::OK, token));
    }
    let token = headers.get(TOKEN).and_then(|value| value.to_str().ok());
    if !is_v1 && !token.is_some_and(|token| lock(known).tokens.contains(token)) {
        return Ok((StatusCode::UNAUTHORIZED, String::new()));
    }
    Ok(if is_get { (StatusCode::OK, address) } else { (StatusCode::NOT_FOUND, String::new()) })
}

/// An example of `compose/aws`, as JSON.
pub fn document(path: &str) -> Result<Value> {
    let file = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../compose/aws")).join(path);
    let text = std::fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("parsing {}", file.display()))
}

/// The options of `docker run` that start a container as ECS does from a container's definition, without its secrets
/// and its limits, which not every engine may raise; `env` goes over the definition's variables. Ports are published only where the definition gives host ports.
pub fn run_options(container: &Value, env: &[(&str, String)]) -> Vec<String> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_string);
    let mut options: Vec<String> = Vec::new();
    let mut option = |name: &str, value: String| options.extend([name.to_string(), value]);
    let mut variables = BTreeMap::new();
    for variable in container["environment"].as_array().into_iter().flatten() {
        variables.insert(text(&variable["name"]), text(&variable["value"]));
    }
    variables.extend(env.iter().map(|(name, value)| ((*name).to_string(), value.clone())));
    for (name, value) in variables {
        option("--env", format!("{name}={value}"));
    }
    for mapping in container["portMappings"].as_array().into_iter().flatten() {
        if let Some(host) = mapping["hostPort"].as_u64() {
            option("--publish", format!("{host}:{}", mapping["containerPort"]));
        }
    }
    for mount in container["mountPoints"].as_array().into_iter().flatten() {
        option("--volume", text(&mount["containerPath"]));
    }
    for capability in container["linuxParameters"]["capabilities"]["drop"].as_array().into_iter().flatten() {
        option("--cap-drop", text(capability));
    }
    option("--stop-timeout", container["stopTimeout"].to_string());
    if container["readonlyRootFilesystem"] == true {
        options.push("--read-only".to_string());
    }
    // ECS does not look at the image's own check.
    options.push("--no-healthcheck".to_string());
    options
}

/// A container; gone with its volumes when dropped.
pub struct Container {
    pub name: String,
}

impl Container {
    /// `command` goes to the image's entry point; none for the image's own.
    pub async fn run(name: &str, image: &str, options: &[String], command: &[&str]) -> Result<Container> {
        let container = Container { name: name.to_string() };
        let label = format!("{CONTAINER_LABEL}={}", std::process::id());
        let gateway = format!("{HOST}:host-gateway");
        let mut arguments: Vec<&str> = vec!["run", "--detach", "--name", name, "--label", &label];
        // There is no way to this machine without a network.
        if !options.iter().any(|option| option == "none") {
            arguments.extend(["--add-host", &gateway]);
        }
        arguments.extend(options.iter().map(String::as_str));
        arguments.push(image);
        arguments.extend(command);
        docker(&arguments).await?;
        Ok(container)
    }

    /// Runs a command in it and returns what it prints; an error has all that it printed.
    pub async fn exec(&self, command: &[&str]) -> Result<String> {
        docker(&[&["exec", &self.name], command].concat()).await
    }

    /// Runs a command in it until it succeeds with the output that is awaited.
    pub async fn execs(&self, command: &[&str], output: impl Fn(&str) -> bool) -> Result<()> {
        let succeeds = wait::try_until(Duration::from_secs(60), || async {
            let state = inspect(&self.name).await.map_err(|error| format!("{error:#}"))?;
            if state["State"]["Running"] != true {
                return Ok(Err("it does not run".to_string()));
            }
            match self.exec(command).await {
                Ok(printed) if output(&printed) => Ok(Ok(())),
                Ok(printed) => Err(printed),
                Err(error) => Err(format!("{error:#}")),
            }
        });
        let ended = succeeds.await.and_then(|outcome| outcome);
        match ended {
            Ok(()) => Ok(()),
            Err(seen) => Err(anyhow::anyhow!("{} {command:?}: {seen}\n{}", self.name, self.logs().await)),
        }
    }

    /// Its address on its network.
    pub async fn address(&self) -> Result<String> {
        Ok(address_of(&inspect(&self.name).await?))
    }

    /// Where this machine publishes one of its ports, on IPv4.
    pub async fn host_port(&self, port: u16) -> Result<u16> {
        let bindings = &inspect(&self.name).await?["NetworkSettings"]["Ports"][format!("{port}/tcp")];
        let all = bindings.as_array().into_iter().flatten();
        let mut v4 = all.filter(|binding| binding["HostIp"] == "0.0.0.0");
        let published = v4.next().and_then(|binding| binding["HostPort"].as_str()?.parse().ok());
        published.with_context(|| format!("{}: port {port} is not published: {bindings}", self.name))
    }

    /// Waits for its end and returns its exit code.
    pub async fn ended(&self, deadline: Duration) -> Result<i64> {
        let ended = wait::try_until(deadline, || async {
            let state = &inspect(&self.name).await.map_err(|error| format!("{error:#}"))?["State"];
            let code = state["ExitCode"].as_i64().filter(|_| state["Status"] == "exited");
            code.ok_or_else(|| state.to_string())
        });
        ended.await.map_err(|seen| anyhow::anyhow!("{} has not ended: {seen}", self.name))
    }

    /// SIGTERM, and SIGKILL after the stop timeout that it was started with; its exit code.
    pub async fn stop(&self) -> Result<i64> {
        docker(&["stop", &self.name]).await?;
        self.ended(Duration::from_secs(5)).await
    }

    /// All that it printed, both streams.
    pub async fn whole_log(&self) -> Result<String> {
        Ok(both(&run(&["logs", &self.name]).await?))
    }

    /// What it printed last, both streams.
    pub async fn logs(&self) -> String {
        let output = run(&["logs", "--tail", "30", &self.name]).await;
        output.map_or_else(|error| format!("{error:#}"), |output| both(&output))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let mut remove = Command::new("docker");
        remove.args(["rm", "--force", "--volumes", &self.name]);
        if let Err(error) = remove.stdin(Stdio::null()).output() {
            eprintln!("e2e: removing {}: {error}", self.name);
        }
    }
}

/// `docker inspect` of a container or a network.
pub async fn inspect(name: &str) -> Result<Value> {
    let text = docker(&["inspect", name]).await?;
    let mut all: Vec<Value> = serde_json::from_str(&text).context("docker inspect")?;
    all.pop().with_context(|| format!("docker knows no {name}"))
}

async fn run(arguments: &[&str]) -> Result<Output> {
    let mut command = tokio::process::Command::new("docker");
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    command.output().await.context("running docker")
}

pub(crate) fn both(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Checks a document against botocore's model of an ECS call; `Err` with what is wrong.
pub async fn validate(operation: &str, document: &Path) -> Result<Result<(), String>> {
    let mut command = python::script("aws", "validate.py").await?;
    command.arg(operation).arg(document);
    Ok(python::verdict(command).await?.map(drop))
}
