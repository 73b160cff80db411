//! Kafka and ZooKeeper as child processes, from their Maven artifacts.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use tokio::sync::OnceCell;

use super::{Detour, Kind, Order};
use crate::java;
use crate::ports;
use crate::process::{Process, Signal, tail};

/// The jars, fetched once a machine: `target/e2e-servers/<name>`.
async fn jars(kind: Kind) -> Result<&'static Path> {
    static KAFKA: OnceCell<PathBuf> = OnceCell::const_new();
    static ZOOKEEPER: OnceCell<PathBuf> = OnceCell::const_new();
    let (cell, name) = match kind {
        Kind::Kafka => (&KAFKA, "kafka"),
        Kind::ZooKeeper => (&ZOOKEEPER, "zookeeper"),
    };
    let jars = cell.get_or_try_init(|| java::dependencies(Path::new("servers").join(name))).await?;
    Ok(jars)
}

pub(super) struct Local {
    kind: Kind,
    jars: &'static Path,
    dir: PathBuf,
    process: Mutex<Option<Process>>,
}

impl Local {
    pub(super) async fn start(
        kind: Kind,
        port: u16,
        cluster: &str,
        detour: Option<Detour>,
        dir: &Path,
    ) -> Result<Local> {
        let local =
            Local { kind, jars: jars(kind).await?, dir: dir.to_path_buf(), process: Mutex::new(None) };
        match kind {
            Kind::Kafka => local.prepare_kafka(port, cluster, detour).await?,
            Kind::ZooKeeper => local.prepare_zookeeper(port)?,
        }
        local.start_again()?;
        Ok(local)
    }

    async fn prepare_kafka(&self, port: u16, cluster: &str, detour: Option<Detour>) -> Result<()> {
        let controller = ports::free();
        let second = detour.map(|detour| (format!("127.0.0.1:{}", detour.port), detour.advertised));
        let second = second.as_ref().map(|(listen, advertised)| (listen.as_str(), *advertised));
        let (listen, data) = (format!("127.0.0.1:{port}"), self.dir.join("data"));
        let properties = super::kafka_properties(&listen, port, controller, &data, second);
        let config = self.dir.join("server.properties");
        std::fs::write(&config, properties).context("writing server.properties")?;
        let log = self.dir.join("kafka-format.log");
        let mut format = self.java();
        format
            .arg("kafka.tools.StorageTool")
            .args(["format", "--cluster-id", cluster, "--config"])
            .arg(&config);
        let status = Process::spawn(format, &log)?.wait(super::READY).await;
        ensure!(
            status.is_some_and(|status| status.success()),
            "formatting Kafka's storage failed ({status:?}):\n{}",
            tail(&log, 30)
        );
        Ok(())
    }

    fn prepare_zookeeper(&self, port: u16) -> Result<()> {
        let config = format!(
            "dataDir={}\n\
             clientPort={port}\n\
             clientPortAddress=127.0.0.1\n\
             tickTime=1000\n\
             maxClientCnxns=0\n\
             admin.enableServer=false\n",
            self.dir.join("data").display()
        );
        std::fs::write(self.dir.join("zoo.cfg"), config).context("writing zoo.cfg")?;
        // Logback's default is every debug line.
        let logging = r#"<configuration>
  <appender name="OUT" class="ch.qos.logback.core.ConsoleAppender">
    <encoder><pattern>%d %-5p %C{1} %m%n</pattern></encoder>
  </appender>
  <root level="INFO"><appender-ref ref="OUT"/></root>
</configuration>"#;
        std::fs::write(self.dir.join("logback.xml"), logging).context("writing logback.xml")
    }

    fn java(&self) -> Command {
        let mut command = Command::new("java");
        command.arg(format!("-Dlogback.configurationFile={}", self.dir.join("logback.xml").display()));
        match self.kind {
            Kind::Kafka => command.args(super::broker_options()),
            Kind::ZooKeeper => command.args(["-Xmx128m", "-XX:TieredStopAtLevel=1"]),
        };
        if self.kind == Kind::ZooKeeper || !super::are_brokers_as_deployed() {
            command.arg("-XX:+UseSerialGC");
        }
        command.arg("-cp");
        command.arg(format!("{}/*", self.jars.display()));
        command
    }

    fn log(&self) -> PathBuf {
        self.dir.join(if self.kind == Kind::Kafka { "kafka.log" } else { "zookeeper.log" })
    }

    fn with_process<T>(&self, act: impl FnOnce(&Process) -> T) -> Result<T> {
        let process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(act(process.as_ref().with_context(|| format!("{:?} is not running", self.kind))?))
    }

    pub(super) fn pause(&self) -> Result<()> {
        self.with_process(|process| process.signal(Signal::STOP))
    }

    pub(super) fn resume(&self) -> Result<()> {
        self.with_process(|process| process.signal(Signal::CONT))
    }

    pub(super) fn stop(&self) -> Result<()> {
        // Dropping it kills it and waits for its end.
        self.process.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok(())
    }

    /// Copies the broker's data aside or, in its place, back; it must not be running.
    pub(super) fn copy_data(&self, order: Order) -> Result<()> {
        let (data, kept) = (self.dir.join("data"), self.dir.join("data-kept"));
        let (from, to) = if order == Order::Keep { (data, kept) } else { (kept, data) };
        if to.exists() {
            std::fs::remove_dir_all(&to).context("removing data")?;
        }
        let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().context("running cp")?;
        ensure!(copied.success(), "copying data failed: {copied}");
        Ok(())
    }

    pub(super) fn start_again(&self) -> Result<()> {
        let mut command = self.java();
        match self.kind {
            Kind::Kafka => command.arg("kafka.Kafka").arg(self.dir.join("server.properties")),
            Kind::ZooKeeper => {
                command.arg("org.apache.zookeeper.server.quorum.QuorumPeerMain").arg(self.dir.join("zoo.cfg"))
            }
        };
        let process = Process::spawn(command, &self.log())?;
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = Some(process);
        Ok(())
    }

    pub(super) fn check_running(&self) -> Result<(), String> {
        match self.with_process(Process::exited) {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(format!("it ended with {status}")),
            Err(error) => Err(error.to_string()),
        }
    }

    pub(super) fn log_tail(&self) -> String {
        tail(&self.log(), 30)
    }
}
