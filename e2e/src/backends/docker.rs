//! Kafka and ZooKeeper in containers.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use testcontainers::bollard::Docker;
use testcontainers::bollard::errors::Error;
use testcontainers::bollard::query_parameters::{
    ListContainersOptionsBuilder, LogsOptionsBuilder, RemoveContainerOptionsBuilder,
};
use testcontainers::core::client::docker_client_instance;
use testcontainers::core::{CmdWaitFor, ContainerPort, ExecCommand, IntoContainerPort};
use testcontainers::runners::AsyncRunner;
use testcontainers::{ContainerAsync, ContainerRequest, GenericImage, ImageExt};

use super::{CONTAINER_LABEL as LABEL, Detour, KAFKA_VERSION, Kind, Order, ZOOKEEPER_VERSION};

const DATA: &str = "/tmp/bitacora-e2e-data";
/// Files that say what is to be done with a broker's data before it starts.
const KEEP: &str = "/tmp/bitacora-e2e-keep";
const GO_BACK: &str = "/tmp/bitacora-e2e-go-back";

async fn engine() -> Result<Docker> {
    docker_client_instance().await.context("reaching the Docker engine")
}

pub(super) async fn ping() -> Result<()> {
    let engine = engine().await?;
    tokio::time::timeout(Duration::from_secs(5), engine.ping())
        .await
        .context("the Docker engine is silent")??;
    Ok(())
}

pub(super) enum Of {
    This,
    DeadOwners,
}

/// Removes the containers of this run, or of runs that are no more; those that can't be removed keep none of the others.
pub(super) async fn reap(of: Of) -> Result<()> {
    let engine = engine().await?;
    let filters = HashMap::from([("label", vec![LABEL])]);
    let list = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
    let mut outcome = Ok(());
    for container in engine.list_containers(Some(list)).await? {
        let owner = container.labels.as_ref().and_then(|labels| labels.get(LABEL)?.parse::<u32>().ok());
        let (Some(id), Some(owner)) = (container.id, owner) else { continue };
        let take = match of {
            Of::This => owner == std::process::id(),
            Of::DeadOwners => !Path::new(&format!("/proc/{owner}")).exists(),
        };
        if take {
            let remove = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
            match engine.remove_container(&id, Some(remove)).await {
                // 404: gone since the list was made. 409: its removal is under way, begun by the test that had it.
                Err(Error::DockerResponseServerError { status_code: 404 | 409, .. }) => {}
                removed => {
                    outcome = outcome.and(removed.with_context(|| format!("removing {id}")));
                }
            }
        }
    }
    outcome
}

pub(super) struct Container(ContainerAsync<GenericImage>);

impl Container {
    pub(super) async fn start(
        kind: Kind,
        port: u16,
        cluster: &str,
        detour: Option<Detour>,
    ) -> Result<Container> {
        let request = match kind {
            Kind::Kafka => kafka(port, cluster, detour),
            Kind::ZooKeeper => zookeeper(port),
        };
        let container = request
            .with_label(LABEL, std::process::id().to_string())
            // The first use may have to pull the image.
            .with_startup_timeout(Duration::from_secs(300))
            .start()
            .await
            .with_context(|| format!("starting the {kind:?} container"))?;
        Ok(Container(container))
    }

    pub(super) async fn pause(&self) -> Result<()> {
        self.0.pause().await.context("pausing the container")
    }

    pub(super) async fn resume(&self) -> Result<()> {
        self.0.unpause().await.context("resuming the container")
    }

    pub(super) async fn stop(&self) -> Result<()> {
        self.0.stop_with_timeout(Some(0)).await.context("stopping the container")
    }

    pub(super) async fn start_again(&self) -> Result<()> {
        self.0.start().await.context("starting the container again")
    }

    /// Has the broker's data copied, or put back as of then, when it is started the next time.
    pub(super) async fn at_next_start(&self, order: Order) -> Result<()> {
        let file = match order {
            Order::Keep => KEEP,
            Order::GoBack => GO_BACK,
        };
        let touch = ExecCommand::new(["touch", file]).with_cmd_ready_condition(CmdWaitFor::exit_code(0));
        self.0.exec(touch).await.context("running touch in the container")?;
        Ok(())
    }

    pub(super) async fn check_running(&self) -> Result<(), String> {
        match self.0.is_running().await {
            Ok(true) => Ok(()),
            Ok(false) => Err("its container has ended".to_string()),
            Err(error) => Err(format!("its container cannot be looked at: {error}")),
        }
    }

    pub(super) async fn remove(self) -> Result<()> {
        self.0.rm().await.context("removing the container")
    }

    pub(super) async fn log_tail(&self) -> String {
        use futures_util::TryStreamExt;
        let options = LogsOptionsBuilder::default().stdout(true).stderr(true).tail("30").build();
        let read = async {
            let lines: Vec<_> = engine().await?.logs(self.0.id(), Some(options)).try_collect().await?;
            anyhow::Ok(lines.iter().map(ToString::to_string).collect::<String>())
        };
        read.await.unwrap_or_else(|error| format!("(unreadable: {error:#})"))
    }
}

fn mapped(image: GenericImage, host: u16, container: ContainerPort) -> ContainerRequest<GenericImage> {
    // No wait strategy of testcontainers': readiness is that the protocol answers, see `Server::ready`.
    image.with_mapped_port(host, container)
}

fn kafka(port: u16, cluster: &str, detour: Option<Detour>) -> ContainerRequest<GenericImage> {
    // Its own format and start rather than the image's: those render KAFKA_* variables in a Java process of its own.
    const CONFIG: &str = "/tmp/bitacora-e2e.properties";
    let inside = detour.map(|detour| (":9094", detour.advertised));
    let properties = super::kafka_properties(":9092", port, 9093, Path::new(DATA), inside);
    let start = format!(
        "if [ -e {KEEP} ]; then rm {KEEP} && cp -a {DATA} {DATA}-kept; fi \
         && if [ -e {GO_BACK} ]; then rm -r {GO_BACK} {DATA} && cp -a {DATA}-kept {DATA}; fi \
         && cd /opt/kafka/bin && ./kafka-storage.sh format --ignore-formatted --cluster-id {cluster} --config {CONFIG} \
         && exec ./kafka-server-start.sh {CONFIG}",
    );
    let mut request = mapped(GenericImage::new("apache/kafka", KAFKA_VERSION), port, 9092.tcp());
    if let Some(detour) = detour {
        request = request.with_mapped_port(detour.port, 9094.tcp());
    }
    request
        .with_copy_to(CONFIG, properties.into_bytes())
        .with_env_var("KAFKA_HEAP_OPTS", super::broker_options().join(" "))
        .with_cmd(["bash", "-c", &start])
}

fn zookeeper(port: u16) -> ContainerRequest<GenericImage> {
    mapped(GenericImage::new("zookeeper", ZOOKEEPER_VERSION), port, 2181.tcp())
        .with_env_var("ZOO_TICK_TIME", "1000")
        // All clients come from one address here.
        .with_env_var("ZOO_MAX_CLIENT_CNXNS", "0")
        .with_env_var("ZOO_ADMINSERVER_ENABLED", "false")
        .with_env_var("JVMFLAGS", "-Xmx128m -XX:TieredStopAtLevel=1")
}
