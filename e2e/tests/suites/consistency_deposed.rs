//! What tells `strong` from `latest`: a partition's leader is cut off together with a node, another takes its place, and a write is
//! acknowledged there. The deposed leader still answers that node's question for the high watermark, with an old one, but can't
//! acknowledge a barrier. The same when it is frozen meanwhile, and goes on once another leads.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::consistency::check;
use e2e::consistency::client::{Client, Nodes};
use e2e::consistency::effects::Effects;
use e2e::consistency::{Condition, Level, Outcome, Recorder};
use e2e::deployment::Deployment;
use e2e::http::Api;
use e2e::nemesis::{Fault, Nemesis};
use e2e::runner::{Ctx, Test};
use e2e::topic::Topic;
use e2e::{tests, wait};
use futures_util::future::try_join_all;

use super::consistency_brokers::is_well;

pub fn tests() -> Vec<Test> {
    let tests = tests![Deployment: only_latest_reads_are_stale_behind_a_deposed_leader];
    tests.into_iter().map(|test| test.within(Duration::from_secs(480))).collect()
}

/// The node that is cut off, and one that is not.
const CUT_OFF: usize = 0;
const OTHER: usize = 1;
/// Another broker leads after KAFKA_BROKER_SESSION_TIMEOUT_MS (4 s).
const ELECTION: Duration = Duration::from_secs(60);
const RECOVERY: Duration = Duration::from_secs(120);
const BETWEEN_TRIES: Duration = Duration::from_millis(100);
/// So many strong reads are tried, each until its time is over.
const STRONG_READS: usize = 2;

#[derive(Clone, Copy, Debug)]
enum Scene {
    /// The leader goes on all the time.
    CutOff,
    /// It is frozen while another takes its place, and then goes on.
    Frozen,
}

async fn only_latest_reads_are_stale_behind_a_deposed_leader(_: Ctx) -> Result<()> {
    let deployment = Deployment::ha().with("KAFKA_PARTITIONS", "1");
    let outcome = scenes(&deployment).await;
    match outcome {
        Ok(()) => Ok(()),
        Err(error) => Err(error.context(deployment.report().await)),
    }
}

async fn scenes(deployment: &Deployment) -> Result<()> {
    deployment.up(&["node-1", "node-2", "node-3"]).await?;
    let apis = ["NODE_1_PORT", "NODE_2_PORT", "NODE_3_PORT"].map(|name| Api::new(deployment.port(name)));
    let api = |node: usize| apis[node].clone();
    let nodes = Nodes { count: apis.len(), api: &api };
    let recorder = Recorder::default();
    let mut nemesis = Nemesis::new(deployment).await?;
    for scene in [Scene::CutOff, Scene::Frozen] {
        let mut client = Client::new(0, &nodes, &recorder);
        let played = play(scene, deployment, &mut nemesis, &mut client).await;
        played.with_context(|| format!("{scene:?}"))?;
        for (node, api) in apis.iter().enumerate() {
            is_well(api).await.with_context(|| format!("node {node} has not recovered"))?;
        }
        for level in [Level::Strong, Level::Latest] {
            let read = read_when_answered(&mut client, &key(scene), level).await?;
            ensure!(shows(&read, "new"), "a {} read when all is well again: {read:?}", level.name());
        }
    }
    let effects = Effects::of(deployment.topic().read_all().await?)?;
    let history = recorder.into_history();
    let check = |level| check::check(&history, &effects, &[], &[level]);
    let (strong, latest) = (check(Level::Strong), check(Level::Latest));
    println!("consistency, a deposed leader, strong reads: {strong}");
    println!("consistency, a deposed leader, latest reads held to the same: {latest}");
    ensure!(strong.violations.is_empty(), "{strong}");
    let stale = latest.violations_of("not linearizable");
    ensure!(stale == 2, "of the two scenes the check sees {stale}: {latest}");
    ensure!(stale == latest.violations.len(), "more is wrong than latest reads: {latest}");
    Ok(())
}

fn key(scene: Scene) -> String {
    format!("{scene:?}")
}

fn shows(outcome: &Outcome, age: &str) -> bool {
    matches!(outcome, Outcome::Found(found) if found.value.starts_with(age))
}

async fn play(
    scene: Scene,
    deployment: &Deployment,
    nemesis: &mut Nemesis<'_>,
    client: &mut Client<'_>,
) -> Result<()> {
    let key = key(scene);
    let written = write(client, OTHER, &key, "old").await;
    written.context("the old value")?;
    let read = client.read(CUT_OFF, &key, Level::Strong).await?;
    ensure!(shows(&read, "old"), "before anything happens: {read:?}");
    let topic = deployment.topic();
    let leader = topic.leader(0).await?;
    let broker = format!("kafka-{leader}");
    let rest = others("kafka", leader).chain(others("node", CUT_OFF as i32 + 1));
    let of_broker: Vec<_> = rest.map(|other| Fault::Cut(broker.clone(), other)).collect();
    let node = format!("node-{}", CUT_OFF + 1);
    let of_node: Vec<_> = others("kafka", leader).map(|other| Fault::Cut(node.clone(), other)).collect();
    let frozen = Fault::Pause(broker.clone());
    inject(nemesis, &of_node).await?;
    match scene {
        Scene::CutOff => inject(nemesis, &of_broker).await?,
        Scene::Frozen => nemesis.inject(&frozen).await?,
    }
    let new = other_leader(&topic, leader).await?;
    write(client, OTHER, &key, "new").await.context("the new value")?;
    if let Scene::Frozen = scene {
        inject(nemesis, &of_broker).await?;
        nemesis.heal(&frozen).await?;
    }
    println!(
        "consistency, {scene:?}: broker {new} leads in the place of {leader}, cut off with node {CUT_OFF}"
    );
    read_behind(client, &key).await?;
    let faults = of_node.iter().chain(&of_broker);
    try_join_all(faults.map(|fault| nemesis.heal(fault))).await.context("the end of the cuts")?;
    Ok(())
}

/// At the node that is cut off: strong reads fail, and a latest read is stale.
async fn read_behind(client: &mut Client<'_>, key: &str) -> Result<()> {
    let end = Instant::now() + RECOVERY;
    // While it has not reached the leader again, it refuses.
    loop {
        let latest = client.read(CUT_OFF, key, Level::Latest).await?;
        if shows(&latest, "old") {
            break;
        }
        let refused = matches!(latest, Outcome::Refused(_));
        ensure!(refused && Instant::now() < end, "a latest read behind a deposed leader: {latest:?}");
        tokio::time::sleep(BETWEEN_TRIES).await;
    }
    for _ in 0..STRONG_READS {
        let strong = client.read(CUT_OFF, key, Level::Strong).await?;
        ensure!(matches!(strong, Outcome::Refused(_)), "a strong read behind a deposed leader: {strong:?}");
    }
    let latest = client.read(CUT_OFF, key, Level::Latest).await?;
    ensure!(!shows(&latest, "new"), "it was not cut off: {latest:?}");
    let eventual = client.read(CUT_OFF, key, Level::Eventual).await?;
    ensure!(shows(&eventual, "old"), "{eventual:?}");
    Ok(())
}

/// Reads at the node that was cut off. It may refuse until its clients of Kafka have connected again, but never answer falsely.
async fn read_when_answered(client: &mut Client<'_>, key: &str, level: Level) -> Result<Outcome> {
    let end = Instant::now() + RECOVERY;
    loop {
        let read = client.read(CUT_OFF, key, level).await?;
        if !matches!(read, Outcome::Refused(_)) || Instant::now() >= end {
            return Ok(read);
        }
        tokio::time::sleep(BETWEEN_TRIES).await;
    }
}

/// Writes until that is acknowledged; each time another value.
async fn write(client: &mut Client<'_>, node: usize, key: &str, age: &str) -> Result<()> {
    let end = Instant::now() + RECOVERY;
    for number in 0.. {
        let value = Some(format!("{age} {number} of {key}"));
        match client.write(node, key, value, Condition::None, None).await? {
            Outcome::Done(_) => break,
            other => ensure!(Instant::now() < end, "{other:?}"),
        }
    }
    Ok(())
}

async fn inject(nemesis: &mut Nemesis<'_>, faults: &[Fault]) -> Result<()> {
    for fault in faults {
        nemesis.inject(fault).await.with_context(|| fault.to_string())?;
    }
    Ok(())
}

/// The services of a kind but for one.
fn others(kind: &str, one: i32) -> impl Iterator<Item = String> {
    (1..=3).filter(move |other| *other != one).map(move |other| format!("{kind}-{other}"))
}

/// Waits until those who are left have another leader than `deposed`, and returns it.
async fn other_leader(topic: &Topic, deposed: i32) -> Result<i32> {
    // The deposed one would say that it leads.
    let brokers = topic.brokers.split(',').zip(1..).filter(|(_, broker)| *broker != deposed);
    let brokers: Vec<_> = brokers.map(|(address, _)| address).collect();
    let left = Topic { brokers: brokers.join(","), name: topic.name.clone() };
    let elected = wait::try_until(ELECTION, || async {
        match left.leader(0).await {
            Ok(leader) if leader != deposed => Ok(leader),
            other => Err(format!("{other:?}")),
        }
    });
    elected.await.map_err(anyhow::Error::msg).context("nobody else leads")
}
