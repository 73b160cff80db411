//! Many records at once: the command line's import, batches over HTTP and RPC, and export; beside a bare producer and a bare consumer.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::cluster::{Cluster, Options};
use e2e::command_line::CommandLine;
use e2e::measure::bulk::{Batches, Consume, Over};
use e2e::measure::child::{self, Job, Measured};
use e2e::measure::row::{Figure, Row, Target};
use e2e::measure::{cpu, results};
use e2e::process::tail;
use e2e::runner::Ctx;

use super::filled::{self, PATIENCE};
use crate::size::{PARTITIONS, VALUE_BYTES, size};

const RATE: Figure = Figure::Rate("records/s");

#[derive(Default)]
struct Rounds {
    import: Vec<Measured>,
    import_into_three: Vec<Measured>,
    http: Vec<Measured>,
    rpc: Vec<Measured>,
    producer: Vec<Measured>,
    read_along: Vec<Measured>,
    export: Vec<Measured>,
    consumer: Vec<Measured>,
}

pub async fn run(ctx: Ctx) -> Result<()> {
    filled::write_file(&ctx.dir.join("records.ndjson"), 0..size().bulk)?;
    let mut rounds = Rounds::default();
    for round in 0..size().long_rounds {
        let cluster = ctx.cluster_with(1, Options::new()).await?;
        rounds.import.push(command(&ctx, &cluster, "import", round).await?);
        let bare = filled::topic(&ctx, Options::new()).await?;
        rounds.producer.push(Measured::own(filled::flood(&bare, 0, size().bulk).await?));
        let node = &cluster.nodes[0];
        rounds.http.push(batches(&cluster, Over::Http(node.api_port)).await?);
        rounds.rpc.push(batches(&cluster, Over::Rpc(node.avro_port)).await?);
        rounds.export.push(command(&ctx, &cluster, "export", round).await?);
        rounds.consumer.push(consume(&bare).await?);
        filled::end(bare).await?;
        rounds.read_along.push(flood_and_consume(&ctx).await?);
        filled::end(cluster).await?;
        let cluster = ctx.cluster_with(3, Options::new()).await?;
        rounds.import_into_three.push(command(&ctx, &cluster, "import", round + 100).await?);
        filled::end(cluster).await?;
    }
    let beside =
        |work, peer, ours: &[_], theirs: &[_]| Row::of_rounds(("bulk", work, peer), RATE, ours, Some(theirs));
    let (producer, consumer) = ("bare producer", "bare consumer");
    let beside_both = |work, ours: &[_]| {
        beside(work, "bare producer, read along by a bare consumer", ours, &rounds.read_along)
    };
    results::add([
        beside("import into one node", producer, &rounds.import, &rounds.producer).target(Target::Ratio(0.6)),
        beside_both("import into one node", &rounds.import),
        beside("import into three nodes", producer, &rounds.import_into_three, &rounds.producer),
        beside("batches of 1,000 sets over HTTP", producer, &rounds.http, &rounds.producer)
            .target(Target::Ratio(0.6)),
        beside_both("batches of 1,000 sets over HTTP", &rounds.http),
        beside("batches of 1,000 sets over RPC", producer, &rounds.rpc, &rounds.producer)
            .target(Target::Ratio(0.6)),
        beside_both("batches of 1,000 sets over RPC", &rounds.rpc),
        beside("export from one node", consumer, &rounds.export, &rounds.consumer),
    ]);
    Ok(())
}

async fn consume(cluster: &Cluster) -> Result<Measured> {
    let (brokers, topic) = (cluster.topic.brokers.clone(), cluster.topic.name.clone());
    let consume = Consume { brokers, topic, partitions: PARTITIONS, records: size().bulk, from_first: true };
    Ok(Measured::own(child::run(&Job::Consume(consume)).await?))
}

/// What Kafka's clients alone reach when all that is written is read at the same time, as a node reads what it writes. The rate is the
/// producer's, as an import's is that of its acknowledgements; the processor time is that of both.
async fn flood_and_consume(ctx: &Ctx) -> Result<Measured> {
    let bare = filled::topic(ctx, Options::new()).await?;
    let (produced, consumed) = tokio::try_join!(filled::flood(&bare, 0, size().bulk), consume(&bare))?;
    filled::end(bare).await?;
    let produced = Measured::own(produced);
    Ok(Measured { cpu: produced.cpu + consumed.cpu, ..produced })
}

fn nodes_cpu(cluster: &Cluster) -> Result<f64> {
    cluster.nodes.iter().map(|node| cpu::seconds(filled::pid(node)?)).sum()
}

/// Batches of sets of all keys; the processor time is the node's and the client's.
async fn batches(cluster: &Cluster, over: Over) -> Result<Measured> {
    let records = size().bulk;
    let job = Batches { over, records, value_bytes: VALUE_BYTES, batch: 1000, under_way: 8 };
    let before = nodes_cpu(cluster)?;
    let figures = child::run(&Job::Batches(job)).await?;
    filled::caught_up(&cluster.nodes[0], records).await?;
    let cpu = figures.cpu + nodes_cpu(cluster)? - before;
    Ok(Measured { rate: figures.rate(), cpu: cpu / records as f64 * 1e6, ..Measured::default() })
}

/// Runs the command line on the cluster. The processor time is the command's, and the nodes' until all of them have everything.
async fn command(ctx: &Ctx, cluster: &Cluster, command: &str, round: usize) -> Result<Measured> {
    let file = if command == "import" { "records.ndjson" } else { "exported.ndjson" };
    let way = CommandLine::rpc(ctx, &cluster.nodes);
    let (before, began) = (nodes_cpu(cluster)?, Instant::now());
    let process = way.spawn(&format!("{command}-{round}"), &[command, file]).await?;
    let mut own = 0.0;
    let status = loop {
        // The last look before its end; what it takes after that is not seen.
        if let Ok(so_far) = cpu::seconds(process.pid()) {
            own = so_far;
        }
        if let Some(status) = process.wait(Duration::from_millis(5)).await {
            break status;
        }
        ensure!(began.elapsed() < PATIENCE, "{command} takes longer than {PATIENCE:?}");
    };
    let seconds = began.elapsed().as_secs_f64();
    ensure!(status.success(), "{command} ended with {status}: {}", tail(&process.log, 5));
    for node in &cluster.nodes {
        filled::caught_up(node, size().bulk).await?;
    }
    let cpu = own + nodes_cpu(cluster)? - before;
    let records = size().bulk as f64;
    Ok(Measured { rate: records / seconds, cpu: cpu / records * 1e6, ..Measured::default() })
}
