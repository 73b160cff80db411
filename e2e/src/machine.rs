//! A node's own machine as a test sets it: its clock, how long its disk takes to sync, how much room its disk has.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::aws::Container;
use crate::cluster::{Cluster, Node};
use crate::deployment::{self, Deployment};
use crate::http::Api;
use crate::{ports, wait};

const SOURCE: &str = include_str!("machine.c");

/// Whether a C compiler is there, and a loader that takes what it makes.
pub async fn available() -> bool {
    let mut version = tokio::process::Command::new("cc");
    version.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    cfg!(all(target_os = "linux", target_env = "gnu"))
        && version.status().await.is_ok_and(|status| status.success())
}

/// The clock and the disk of one node.
pub struct Machine {
    /// Two numbers that the node has mapped: see `machine.c`.
    file: PathBuf,
}

impl Machine {
    /// A machine without faults, from the node's next start on.
    pub async fn of(node: &Node) -> Result<Machine> {
        let (source, file) = (node.log.with_extension("c"), node.log.with_extension("machine"));
        let library = node.log.with_extension("so");
        std::fs::write(&source, SOURCE)?;
        std::fs::write(&file, [0; 16])?;
        let mut compile = tokio::process::Command::new("cc");
        compile.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source);
        let output = compile.stdin(Stdio::null()).kill_on_drop(true).output().await.context("running cc")?;
        ensure!(output.status.success(), "cc: {}", String::from_utf8_lossy(&output.stderr));
        node.set_env("LD_PRELOAD", library.display());
        node.set_env("E2E_MACHINE", file.display());
        Ok(Machine { file })
    }

    fn set(&self, place: u64, ms: i64) -> Result<()> {
        let file = OpenOptions::new().write(true).open(&self.file).context("opening the machine's file")?;
        file.write_all_at(&ms.to_ne_bytes(), place).context("setting the machine")
    }

    /// Sets the clock so many ms ahead of the true one; less than 0: behind it.
    pub fn clock_is_ahead(&self, ms: i64) -> Result<()> {
        self.set(0, ms)
    }

    /// From now on a sync takes so long; what is under way too.
    pub fn syncs_take(&self, time: Duration) -> Result<()> {
        self.set(8, i64::try_from(time.as_millis())?)
    }
}

/// A node in a container of the nodes' image, with a data folder on a disk of its own size. As an orchestrator does, the
/// container starts it again whenever it ends.
pub struct SmallDisk {
    pub name: String,
    pub api: Api,
    container: Container,
}

const SUPERVISOR: &str = r#"
while :; do
    while [ -e /tmp/off ]; do sleep 0.1; done
    if [ -n "$LOG_FILE" ]; then bitacora-node serve 2>> "$LOG_FILE" & else bitacora-node serve & fi
    echo $! > /tmp/pid
    wait $!
    echo "supervisor: ended with $?"
    sleep 1
done
"#;

/// A disk of its own for log lines, if `LOG_FILE` leads there.
const LOG_BYTES: u64 = 64 << 10;

/// How long its container may take to do something.
const PATIENCE: Duration = Duration::from_secs(60);

impl SmallDisk {
    /// A node of the cluster that is not started: [`SmallDisk::turn_on`]. `env` goes over what every node has.
    pub async fn new(cluster: &Cluster, bytes: u64, env: &[(&str, &str)]) -> Result<SmallDisk> {
        let (api_port, avro_port) = ports::pair();
        let all = [
            ("ZOOKEEPER_HOSTS", cluster.zookeeper_hosts.clone()),
            ("BROKER_LIST", cluster.topic.brokers.clone()),
            ("KAFKA_TOPIC", cluster.topic.name.clone()),
            ("TOPIC_PARTITIONS", "4".to_string()),
            ("API_PORT", api_port.to_string()),
            ("AVRO_PORT", avro_port.to_string()),
            ("NODE_ADDRESS", "127.0.0.1".to_string()),
            ("BIND_ADDRESS", "127.0.0.1".to_string()),
            ("DATA_DIR", "/data".to_string()),
            ("LOG_FORMAT", "human".to_string()),
            ("NO_COLOR", "1".to_string()),
        ];
        let mut options: Vec<String> =
            all.iter().map(|(name, value)| format!("--env={name}={value}")).collect();
        options.extend(env.iter().map(|(name, value)| format!("--env={name}={value}")));
        options.extend([
            "--network=host".to_string(),
            format!("--tmpfs=/data:size={bytes},uid=10001,gid=10001"),
            format!("--tmpfs=/log:size={LOG_BYTES},uid=10001,gid=10001"),
            "--no-healthcheck".to_string(),
            "--entrypoint=sh".to_string(),
        ]);
        let name = Deployment::new().container("small-disk");
        let script = format!("touch /tmp/off\n{SUPERVISOR}");
        let container = Container::run(&name, deployment::image(), &options, &["-c", &script]).await?;
        let small = SmallDisk { name, api: Api::new(api_port), container };
        small.container.execs(&["test", "-e", "/tmp/off"], |_| true).await?;
        Ok(small)
    }

    async fn sh(&self, script: &str) -> Result<String> {
        self.container.exec(&["sh", "-c", script]).await
    }

    pub async fn turn_on(&self) -> Result<()> {
        self.sh("rm /tmp/off").await.map(drop)
    }

    /// Ends it (SIGKILL) until it is turned on again.
    pub async fn turn_off(&self) -> Result<()> {
        self.sh("touch /tmp/off; kill -9 $(cat /tmp/pid); while kill -0 $(cat /tmp/pid); do sleep 0.1; done")
            .await
            .map(drop)
    }

    /// Has something else take all of its disk but for the last so many bytes.
    pub async fn fill_but(&self, bytes: u64) -> Result<()> {
        let script = format!(
            "cat /dev/zero >> /data/ballast 2>/dev/null; truncate --size=-{bytes} /data/ballast; sync /data/ballast"
        );
        self.sh(&script).await.map(drop)
    }

    pub async fn make_room(&self) -> Result<()> {
        self.sh("rm /data/ballast").await.map(drop)
    }

    /// Has something else take all of its disk for log lines.
    pub async fn fill_log(&self) -> Result<()> {
        self.sh("cat /dev/zero > /log/ballast 2>/dev/null; test -e /log/ballast").await.map(drop)
    }

    pub async fn make_room_for_log(&self) -> Result<()> {
        self.sh("rm /log/ballast").await.map(drop)
    }

    /// Has it write a log line: SIGUSR1 is told and ignored.
    pub async fn have_it_log(&self) -> Result<()> {
        self.sh("kill -USR1 $(cat /tmp/pid)").await.map(drop)
    }

    /// What is in a file of its own.
    pub async fn text_of(&self, file: &str) -> Result<String> {
        self.container.exec(&["cat", file]).await
    }

    /// All files and folders on its disk, sorted.
    pub async fn files(&self) -> Result<Vec<String>> {
        let mut files: Vec<String> = self.sh("find /data").await?.lines().map(str::to_string).collect();
        files.sort();
        Ok(files)
    }

    /// All that it printed so far.
    pub async fn log(&self) -> Result<String> {
        self.container.whole_log().await
    }

    /// How its processes have ended so far.
    pub async fn ends(&self) -> Result<Vec<i32>> {
        let log = self.log().await?;
        let ends = log.lines().filter_map(|line| line.strip_prefix("supervisor: ended with "));
        ends.map(|code| code.parse().with_context(|| format!("the exit code {code}"))).collect()
    }

    /// Waits until `/status` is as it should be, and fails with it and the log.
    pub async fn status_is(
        &self,
        what: &str,
        is: impl Fn(&serde_json::Value) -> bool,
    ) -> Result<serde_json::Value> {
        let seen = wait::try_until(PATIENCE, || async {
            let status = self.api.status().await.map_err(|error| format!("{error:#}"))?;
            if is(&status) { Ok(status) } else { Err(status.to_string()) }
        });
        match seen.await {
            Ok(status) => Ok(status),
            Err(seen) => {
                let log = self.container.logs().await;
                Err(anyhow::anyhow!("{}: never {what}; last seen: {seen}\n{log}", self.name))
            }
        }
    }
}
