//! Clients that share no code with the node: Java's own Avro, of the original's time and of today.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::cluster::{Node, Options, START};
use e2e::runner::{Ctx, Test};
use e2e::{java, tests};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout};
use tokio::time::timeout;

pub fn tests() -> Vec<Test> {
    tests![
        ServersAndJava: calls_of_avro_1_7_7, calls_of_avro_1_12_1, avro_1_7_7_outlives_restarts,
            avro_1_12_1_outlives_restarts, the_golden_bytes_are_javas
    ]
}

/// Of one program, JVM and all, on two busy cores.
const PATIENCE: Duration = Duration::from_secs(90);

/// What `e2e/java-rpc/Scenarios.java` calls, and how many calls it must say are well.
const SCENARIOS: [(&str, usize); 12] = [
    ("calls", 11),
    ("unicode", 18),
    ("large", 6),
    ("refusals", 12),
    ("threads", 32),
    ("pipelined", 3),
    ("metadata", 4),
    ("remote_protocol", 11),
    ("more_messages", 3),
    ("fewer_messages", 2),
    ("second_connection", 6),
    ("extended", 23),
];

async fn calls_of_avro_1_7_7(ctx: Ctx) -> Result<()> {
    calls(ctx, "1.7.7").await
}

async fn calls_of_avro_1_12_1(ctx: Ctx) -> Result<()> {
    calls(ctx, "1.12.1").await
}

async fn avro_1_7_7_outlives_restarts(ctx: Ctx) -> Result<()> {
    outlives_restarts(ctx, "1.7.7").await
}

async fn avro_1_12_1_outlives_restarts(ctx: Ctx) -> Result<()> {
    outlives_restarts(ctx, "1.12.1").await
}

/// A running `Scenarios`. A process for each, as Avro remembers the hashes of the servers that it met.
struct Scenario {
    /// The release and the scenario.
    name: String,
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    ok: Vec<String>,
}

async fn class_path(release: &str) -> Result<String> {
    java::class_path(&format!("java-rpc/avro-{release}")).await
}

fn protocol() -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../client/protocol/src/rpc/protocol.avpr");
    file.display().to_string()
}

impl Scenario {
    async fn start(ctx: &Ctx, release: &str, scenario: &str, node: &Node) -> Result<Scenario> {
        let log = ctx.dir.join(format!("java-{release}-{scenario}.log"));
        let log = std::fs::File::create(log).context("creating the log of a Java client")?;
        let mut child = java::program(&class_path(release).await?, "Scenarios")
            .args([scenario, "127.0.0.1", &node.avro_port.to_string(), &protocol()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .context("starting java")?;
        let out = child.stdout.take().context("the output is piped")?;
        let name = format!("Avro {release}: {scenario}");
        Ok(Scenario { name, child, lines: BufReader::new(out).lines(), ok: Vec::new() })
    }

    /// Reads until `awaited`, or until the end.
    async fn read(&mut self, awaited: Option<&str>) -> Result<()> {
        let read = async {
            while let Some(line) = self.lines.next_line().await? {
                match line.strip_prefix("ok ") {
                    Some(call) => self.ok.push(call.to_string()),
                    None if Some(line.as_str()) == awaited => return Ok(()),
                    None => bail!("it says {line:?}"),
                }
            }
            match awaited {
                Some(awaited) => bail!("it ends before {awaited:?}"),
                None => Ok(()),
            }
        };
        let read = timeout(PATIENCE, read).await.context("it does not end").flatten();
        read.with_context(|| format!("{} after {:?}", self.name, self.ok))
    }

    /// Waits for its end; says which calls were well, which must be `calls`.
    async fn end(mut self, calls: usize) -> Result<()> {
        self.read(None).await?;
        let status = timeout(PATIENCE, self.child.wait()).await.context("it does not end")??;
        ensure!(status.success(), "{} ended with {status} after {:?}", self.name, self.ok);
        ensure!(self.ok.len() == calls, "{}: {} calls, not {calls}: {:?}", self.name, self.ok.len(), self.ok);
        eprintln!("{}: {calls} calls", self.name);
        Ok(())
    }
}

async fn calls(ctx: Ctx, release: &str) -> Result<()> {
    let cluster = ctx.cluster().await?;
    for ((scenario, calls), node) in SCENARIOS.into_iter().zip(cluster.nodes.iter().cycle()) {
        Scenario::start(&ctx, release, scenario, node).await?.end(calls).await?;
    }
    Ok(())
}

async fn outlives_restarts(ctx: Ctx, release: &str) -> Result<()> {
    let cluster = ctx.cluster_with(1, Options::new()).await?;
    let node = &cluster.nodes[0];
    for (scenario, calls) in [("restart", 7), ("restart_under_load", 16)] {
        for gently in [true, false] {
            let mut client = Scenario::start(&ctx, release, scenario, node).await?;
            client.read(Some("ready for restart")).await?;
            if gently {
                let (status, _) = node.terminate(START).await;
                assert!(status.success(), "{} ended with {status}", node.name);
            } else {
                node.kill();
            }
            node.spawn()?;
            node.ready().await;
            let input = client.child.stdin.as_mut().context("the input is piped")?;
            input.write_all(b"it is back\n").await.context("telling the client")?;
            client.end(calls).await?;
        }
    }
    Ok(())
}

/// Both releases print the same bytes. `E2E_GOLDEN=write` takes them over.
async fn the_golden_bytes_are_javas(_ctx: Ctx) -> Result<()> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../client/protocol/tests/golden/avro.txt");
    for release in ["1.7.7", "1.12.1"] {
        let mut golden = java::program(&class_path(release).await?, "Golden");
        let output = timeout(PATIENCE, golden.arg(protocol()).output()).await;
        let output = output.context("Golden does not end")?.context("running Golden")?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "Golden failed with Avro {release}:\n{errors}");
        let made = String::from_utf8(output.stdout).context("Golden prints UTF-8")?;
        if std::env::var_os("E2E_GOLDEN").is_some_and(|value| value == "write") {
            std::fs::write(&file, &made).context("writing the golden bytes")?;
        }
        let kept = std::fs::read_to_string(&file).context("reading the golden bytes")?;
        let (mut made, mut kept) = (made.lines(), kept.lines());
        loop {
            match (made.next(), kept.next()) {
                (None, None) => break,
                (made, kept) => ensure!(
                    made == kept,
                    "Avro {release} makes\n{made:?}\nwhere client/protocol/tests/golden/avro.txt has\n{kept:?}"
                ),
            }
        }
    }
    Ok(())
}
