//! Where Kafka and ZooKeeper come from: containers if a Docker engine answers, else local processes if Java and Maven
//! are there, else nowhere (and the run says so).

mod docker;
mod local;

use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::proxy::Proxy;
use crate::{deployment, ports, wait, zookeeper};

/// Also the versions in `servers/*/pom.xml`.
pub const KAFKA_VERSION: &str = "4.3.1";
pub const ZOOKEEPER_VERSION: &str = "3.9.5";

/// See [`run_brokers_as_deployed`].
static AS_DEPLOYED: AtomicBool = AtomicBool::new(false);

/// Brokers that start from now on have what Kafka's own script gives them: both of Java's compilers, and a heap of 1 GB. To be called before
/// anything is measured. Tests start many brokers and ask little of each, so theirs have a small heap and the first compiler alone, with
/// which they are ready sooner, and do less afterwards.
pub fn run_brokers_as_deployed() {
    AS_DEPLOYED.store(true, Ordering::Relaxed);
}

fn are_brokers_as_deployed() -> bool {
    AS_DEPLOYED.load(Ordering::Relaxed)
}

/// The options of a broker's Java.
pub(crate) fn broker_options() -> &'static [&'static str] {
    if are_brokers_as_deployed() {
        &["-Xms1g", "-Xmx1g"]
    } else {
        &["-Xms256m", "-Xmx512m", "-XX:TieredStopAtLevel=1"]
    }
}

/// Starting may include the download of an image or of the artifacts.
const READY: Duration = Duration::from_secs(120);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backends {
    Docker,
    Local,
    None,
}

impl Backends {
    /// `E2E_BACKEND=docker|local|none`, else what this machine has.
    pub async fn choose() -> Result<Backends> {
        match std::env::var("E2E_BACKEND").ok().as_deref() {
            Some("docker") => match docker::ping().await {
                Ok(()) => Ok(Backends::Docker),
                Err(error) => Err(error.context("E2E_BACKEND=docker, but no Docker engine answers")),
            },
            Some("local") => {
                if java_and_maven().await {
                    Ok(Backends::Local)
                } else {
                    bail!("E2E_BACKEND=local, but java and mvn are not both on the PATH")
                }
            }
            Some("none") => Ok(Backends::None),
            Some(other) => bail!("E2E_BACKEND is docker, local or none, not {other:?}"),
            None if docker::ping().await.is_ok() => Ok(Backends::Docker),
            None if java_and_maven().await => Ok(Backends::Local),
            None => Ok(Backends::None),
        }
    }

    pub fn describe(self) -> String {
        match self {
            Backends::Docker => {
                format!("Docker (apache/kafka:{KAFKA_VERSION}, zookeeper:{ZOOKEEPER_VERSION})")
            }
            Backends::Local => format!(
                "local processes (Kafka {KAFKA_VERSION} and ZooKeeper {ZOOKEEPER_VERSION} from their Maven artifacts)"
            ),
            Backends::None => "nothing".to_string(),
        }
    }

    /// A broker of the caller's own, answering when this returns; gone when dropped. `dir` keeps its log.
    pub async fn broker(self, dir: &Path) -> Result<Server> {
        self.broker_at(dir, ports::free(), CLUSTER_ID).await
    }

    /// As [`Backends::broker`], of another cluster, at a port that may be a former broker's.
    pub async fn another_broker(self, dir: &Path, port: u16) -> Result<Server> {
        self.broker_at(dir, port, OTHER_CLUSTER_ID).await
    }

    async fn broker_at(self, dir: &Path, port: u16, cluster: &str) -> Result<Server> {
        let server = self.start(Kind::Kafka, dir, port, cluster, None).await?;
        server.ready().await?;
        Ok(server)
    }

    /// As [`Backends::broker`], with a proxy: clients that begin at its address meet the broker through it only.
    pub async fn broker_and_proxy(self, dir: &Path) -> Result<(Server, Proxy)> {
        let port = ports::free();
        let proxy = Proxy::start(port).await?;
        let detour = Detour { port, advertised: proxy.port };
        let server = self.start(Kind::Kafka, dir, ports::free(), CLUSTER_ID, Some(detour)).await?;
        server.ready().await?;
        Ok((server, proxy))
    }

    /// A ZooKeeper of the caller's own, answering when this returns; gone when dropped. `dir` keeps its log.
    pub async fn zookeeper(self, dir: &Path) -> Result<Server> {
        let server = self.start(Kind::ZooKeeper, dir, ports::free(), "", None).await?;
        server.ready().await?;
        Ok(server)
    }

    async fn start(
        self,
        kind: Kind,
        dir: &Path,
        port: u16,
        cluster: &str,
        detour: Option<Detour>,
    ) -> Result<Server> {
        std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        let engine = match self {
            Backends::Docker => {
                Engine::Docker(Box::new(docker::Container::start(kind, port, cluster, detour).await?))
            }
            Backends::Local => {
                Engine::Local(Box::new(local::Local::start(kind, port, cluster, detour, dir).await?))
            }
            Backends::None => bail!("there is neither a Docker engine nor Java with Maven"),
        };
        Ok(Server { kind, port, engine })
    }
}

/// Every container carries the pid of the run that started it, so that a later run can tell orphans.
pub(crate) const CONTAINER_LABEL: &str = "bitacora.e2e";

/// A second listener of a broker, that sends its clients to another port than its own.
#[derive(Clone, Copy)]
struct Detour {
    port: u16,
    advertised: u16,
}

/// Any; the same at every start on the same data.
const CLUSTER_ID: &str = "5L6g3nShT-eMCtK--X86sw";
const OTHER_CLUSTER_ID: &str = "7M8g3nShT-eMCtK--X86sw";

/// A broker's settings. Clients are sent to the advertised port, so it must be known before the broker starts. `second`
/// is another address to listen at, and the port that is advertised there.
fn kafka_properties(
    listen: &str,
    advertised: u16,
    controller: u16,
    data: &Path,
    second: Option<(&str, u16)>,
) -> String {
    let (mut listeners, mut addresses, mut protocols) = Default::default();
    if let Some((listen, advertised)) = second {
        listeners = format!(",SECOND://{listen}");
        addresses = format!(",SECOND://127.0.0.1:{advertised}");
        protocols = ",SECOND:PLAINTEXT";
    }
    format!(
        "process.roles=broker,controller\n\
         node.id=1\n\
         controller.quorum.voters=1@127.0.0.1:{controller}\n\
         controller.listener.names=CONTROLLER\n\
         inter.broker.listener.name=PLAINTEXT\n\
         listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT{protocols}\n\
         listeners=PLAINTEXT://{listen},CONTROLLER://127.0.0.1:{controller}{listeners}\n\
         advertised.listeners=PLAINTEXT://127.0.0.1:{advertised}{addresses}\n\
         log.dirs={data}\n\
         auto.create.topics.enable=false\n\
         offsets.topic.replication.factor=1\n\
         offsets.topic.num.partitions=4\n\
         transaction.state.log.replication.factor=1\n\
         transaction.state.log.min.isr=1\n\
         transaction.state.log.num.partitions=4\n\
         share.coordinator.state.topic.replication.factor=1\n\
         share.coordinator.state.topic.min.isr=1\n\
         group.initial.rebalance.delay.ms=0\n\
         log.cleaner.backoff.ms=1000\n",
        data = data.display(),
    )
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Kafka,
    ZooKeeper,
}

/// What is done with a stopped broker's data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Order {
    Keep,
    GoBack,
}

enum Engine {
    Docker(Box<docker::Container>),
    Local(Box<local::Local>),
}

/// A running Kafka broker (KRaft, a single node) or ZooKeeper. Its port stays the same across stop and start.
pub struct Server {
    kind: Kind,
    pub port: u16,
    engine: Engine,
}

impl Server {
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Freezes it: its sockets stay open and nothing answers.
    pub async fn pause(&self) -> Result<()> {
        match &self.engine {
            Engine::Docker(container) => container.pause().await,
            Engine::Local(local) => local.pause(),
        }
    }

    pub async fn resume(&self) -> Result<()> {
        match &self.engine {
            Engine::Docker(container) => container.resume().await,
            Engine::Local(local) => local.resume(),
        }
    }

    /// Kills it; its data stays.
    pub async fn stop(&self) -> Result<()> {
        match &self.engine {
            Engine::Docker(container) => container.stop().await,
            Engine::Local(local) => local.stop(),
        }
    }

    /// Kills it, copies its data, and starts it again.
    pub async fn back_up(&self) -> Result<()> {
        self.restart(Order::Keep).await
    }

    /// Kills it, and starts it on its data as of [`Server::back_up`].
    pub async fn go_back(&self) -> Result<()> {
        self.restart(Order::GoBack).await
    }

    async fn restart(&self, order: Order) -> Result<()> {
        match &self.engine {
            Engine::Docker(container) => container.at_next_start(order).await?,
            Engine::Local(_) => {}
        }
        self.stop().await?;
        if let Engine::Local(local) = &self.engine {
            local.copy_data(order)?;
        }
        self.start().await
    }

    /// Starts it again on its data, and waits until it answers.
    pub async fn start(&self) -> Result<()> {
        match &self.engine {
            Engine::Docker(container) => container.start_again().await?,
            Engine::Local(local) => local.start_again()?,
        }
        self.ready().await
    }

    async fn ready(&self) -> Result<()> {
        let address = self.address();
        // `Ok(Err(…))` ends the wait: a server that has ended will not become ready.
        let answers = wait::try_until(READY, || async {
            if let Err(ended) = self.check_running().await {
                return Ok(Err(ended));
            }
            match self.kind {
                Kind::Kafka => kafka_answers(&address).await,
                Kind::ZooKeeper => zookeeper::answers(&address).await,
            }
            .map(Ok)
        });
        let last = match answers.await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(ended)) => ended,
            Err(last) => format!("not ready after {READY:?}: {last}"),
        };
        let log = match &self.engine {
            Engine::Docker(container) => container.log_tail().await,
            Engine::Local(local) => local.log_tail(),
        };
        bail!("{:?} at {address}: {last}\nits log ends:\n{log}", self.kind)
    }

    async fn check_running(&self) -> Result<(), String> {
        match &self.engine {
            Engine::Docker(container) => container.check_running().await,
            Engine::Local(local) => local.check_running(),
        }
    }

    /// Takes it away now, rather than at drop, and reports what went wrong.
    pub async fn remove(self) -> Result<()> {
        match self.engine {
            Engine::Docker(container) => container.remove().await,
            Engine::Local(local) => local.stop(),
        }
    }
}

async fn kafka_answers(address: &str) -> Result<(), String> {
    let address = address.to_string();
    let look = move || {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &address)
            // Nothing is to be heard before it listens; that is no news.
            .set("log_level", "0")
            .set("reconnect.backoff.max.ms", "200")
            .create()
            .map_err(|error| format!("no consumer: {error}"))?;
        let metadata =
            consumer.fetch_metadata(None, Duration::from_secs(3)).map_err(|error| error.to_string())?;
        if metadata.brokers().is_empty() { Err("metadata without brokers".to_string()) } else { Ok(()) }
    };
    tokio::task::spawn_blocking(look).await.map_err(|error| error.to_string())?
}

/// Whether both answer to `-version`; asked once.
pub async fn java_and_maven() -> bool {
    static FOUND: tokio::sync::OnceCell<bool> = tokio::sync::OnceCell::const_new();
    let look = async || {
        for program in ["java", "mvn"] {
            let mut command = tokio::process::Command::new(program);
            command.arg("-version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            if !command.status().await.is_ok_and(|status| status.success()) {
                return false;
            }
        }
        true
    };
    *FOUND.get_or_init(look).await
}

/// Removes what runs of these tests that were killed left behind.
pub async fn reap_orphans(backends: Backends) {
    if backends != Backends::Docker {
        return;
    }
    if let Err(error) = docker::reap(docker::Of::DeadOwners).await {
        eprintln!("e2e: containers of earlier runs may be left: {error:#}");
    }
    deployment::remove_of(|owner| !Path::new(&format!("/proc/{owner}")).exists());
}

/// Removes every server of this run, whoever holds it; for the way out.
pub async fn remove_ours(backends: Backends) {
    if backends != Backends::Docker {
        return;
    }
    if let Err(error) = docker::reap(docker::Of::This).await {
        eprintln!("e2e: containers of this run may be left: {error:#}");
    }
    deployment::remove_of(|owner| owner == std::process::id());
}
