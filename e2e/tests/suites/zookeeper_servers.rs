//! A node, and a client, whose ZooKeeper moves to another address, has two addresses of which one is dead, or has no quorum.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::aws::{Container, inspect};
use e2e::backends::ZOOKEEPER_VERSION;
use e2e::deployment::{Deployment, docker, image};
use e2e::http::Api;
use e2e::runner::{Ctx, Test};
use e2e::{tests, wait, zookeeper};

pub fn tests() -> Vec<Test> {
    tests![Deployment: a_node_finds_zookeeper_again_and_never_storms_it]
}

const SOON: Duration = Duration::from_secs(30);
/// How long connections are counted.
const WINDOW: Duration = Duration::from_secs(8);
/// With the shortest pauses that there may be, some 8 in the window.
const MOST_CONNECTIONS: u64 = 20;
/// The name by which nodes know ZooKeeper in the deployment.
const NAME: &str = "zookeeper";

async fn a_node_finds_zookeeper_again_and_never_storms_it(_: Ctx) -> Result<()> {
    let deployment = Deployment::new();
    match scenario(&deployment).await {
        Ok(()) => Ok(()),
        Err(error) => Err(error.context(deployment.report().await)),
    }
}

async fn scenario(deployment: &Deployment) -> Result<()> {
    deployment.up(&["node-1"]).await?;
    let node = Api::new(deployment.port("NODE_1_PORT"));
    is_member(&node).await?;
    zookeeper_moves(deployment, &node).await?;
    one_of_two_addresses_is_dead(deployment, &node).await?;
    there_is_no_quorum(deployment, &node).await
}

async fn membership(node: &Api, state: &str, members: usize) -> Result<(), String> {
    let status = node.status().await.map_err(|error| format!("{error:#}"))?;
    let known = status["members"].as_array().map_or(0, Vec::len);
    if status["membership"]["state"] == state && known == members {
        return Ok(());
    }
    Err(format!("{}, members {}", status["membership"], status["members"]))
}

async fn is_member(node: &Api) -> Result<()> {
    let seen = wait::try_until(SOON, || membership(node, "connected", 1));
    seen.await.map_err(anyhow::Error::msg).context("the node is a member")
}

async fn is_disconnected(node: &Api, members: usize) -> Result<()> {
    let seen = wait::try_until(SOON, || membership(node, "disconnected", members));
    seen.await.map_err(anyhow::Error::msg).context("the node says that ZooKeeper is away")
}

/// Its name and its address go with it.
async fn kill(deployment: &Deployment, service: &str) -> Result<()> {
    deployment.compose(&["kill", service]).await.map(drop)
}

/// Not by Compose, which would start what the service needs, too.
async fn start_again(deployment: &Deployment, service: &str) -> Result<()> {
    let id = deployment.container_of(service).await?;
    docker(&["restart", "--time=0", &id]).await.map(drop)
}

async fn address_of_zookeeper(deployment: &Deployment) -> Result<String> {
    let id = deployment.container_of(NAME).await?;
    let container = inspect(&id).await?;
    let networks = container["NetworkSettings"]["Networks"].as_object();
    let first = networks.and_then(|networks| networks.values().next());
    first.and_then(|network| network["IPAddress"].as_str()).map(str::to_owned).context("an address")
}

async fn zookeeper_moves(deployment: &Deployment, node: &Api) -> Result<()> {
    let before = address_of_zookeeper(deployment).await?;
    kill(deployment, NAME).await?;
    is_disconnected(node, 1).await?;
    // It may get the address that has become free.
    let options = [format!("--network={}", deployment.network()), "--entrypoint=sleep".to_owned()];
    let _other = Container::run(&deployment.container("other"), image(), &options, &["infinity"]).await?;
    deployment.compose(&["up", "--detach", "--no-build", "--no-deps", "--force-recreate", NAME]).await?;
    let server = format!("127.0.0.1:{}", deployment.port("ZOOKEEPER_PORT"));
    let answers = wait::try_until(SOON, || zookeeper::answers(&server));
    answers.await.map_err(anyhow::Error::msg)?;
    let back = Instant::now();
    let after = address_of_zookeeper(deployment).await?;
    ensure!(before != after, "ZooKeeper is at {after} again");
    is_member(node).await?;
    println!(
        "  ZooKeeper moved from {before} to {after}: the node was a member again after {:.1} s",
        back.elapsed().as_secs_f64()
    );
    Ok(())
}

/// A second node knows ZooKeeper by a name with two addresses. Resolvers give the loopback's first, where nobody listens.
async fn one_of_two_addresses_is_dead(deployment: &Deployment, node: &Api) -> Result<()> {
    let alive = address_of_zookeeper(deployment).await?;
    let options = [
        format!("--network={}", deployment.network()),
        "--add-host=two-addresses:127.0.0.1".to_owned(),
        format!("--add-host=two-addresses:{alive}"),
        "--env=ZOOKEEPER_HOSTS=two-addresses:2181".to_owned(),
        "--env=BROKER_LIST=kafka:19092".to_owned(),
        "--env=NODE_ADDRESS=second".to_owned(),
        "--env=DRAIN_DELAY=0".to_owned(),
    ];
    let other = Container::run(&deployment.container("second"), image(), &options, &[]).await?;
    let seen = wait::try_until(SOON, || membership(node, "connected", 2)).await;
    if let Err(seen) = seen {
        anyhow::bail!("the second node is no member: {seen}\n{}", other.logs().await);
    }
    other.stop().await?;
    is_member(node).await
}

/// Ticks of 10 ms that the node's process has used.
async fn node_ticks(deployment: &Deployment) -> Result<u64> {
    let stat = deployment.compose(&["exec", "-T", "node-1", "cat", "/proc/1/stat"]).await?;
    // Behind the program's name, which may have spaces.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let [user, system] = [11, 12].map(|at| fields.get(at).and_then(|ticks| ticks.parse::<u64>().ok()));
    user.zip(system).map(|(user, system)| user + system).with_context(|| format!("the times in {stat:?}"))
}

/// Connections that a container has accepted so far.
async fn accepted(server: &Container) -> Result<u64> {
    let text = server.exec(&["cat", "/proc/net/snmp"]).await?;
    let mut tcp = text.lines().filter(|line| line.starts_with("Tcp: ")).map(str::split_whitespace);
    let (names, values) = (tcp.next().context("names")?, tcp.next().context("values")?);
    let (_, count) = names.zip(values).find(|(name, _)| *name == "PassiveOpens").context("PassiveOpens")?;
    Ok(count.parse()?)
}

async fn there_is_no_quorum(deployment: &Deployment, node: &Api) -> Result<()> {
    kill(deployment, NAME).await?;
    let options = [
        format!("--network={}", deployment.network()),
        format!("--network-alias={NAME}"),
        "--env=ZOO_MY_ID=1".to_owned(),
        "--env=ZOO_SERVERS=server.1=0.0.0.0:2888:3888;2181 server.2=127.0.0.1:2889:3889;2182 \
         server.3=127.0.0.1:2890:3890;2183"
            .to_owned(),
        "--env=ZOO_MAX_CLIENT_CNXNS=0".to_owned(),
        "--env=ZOO_ADMINSERVER_ENABLED=false".to_owned(),
    ];
    let image = format!("zookeeper:{ZOOKEEPER_VERSION}");
    let server = Container::run(&deployment.container("alone"), &image, &options, &[]).await?;
    start_again(deployment, "node-1").await?;
    is_disconnected(node, 0).await?;
    let one_came = wait::try_until(SOON, || async {
        let count = accepted(&server).await.map_err(|error| format!("{error:#}"))?;
        if count > 0 { Ok(()) } else { Err("no connection".to_owned()) }
    });
    one_came.await.map_err(anyhow::Error::msg)?;

    let (before, ticks, began) = (accepted(&server).await?, node_ticks(deployment).await?, Instant::now());
    wait::holds("it stays disconnected", WINDOW, || membership(node, "disconnected", 0)).await;
    let (count, used) = (accepted(&server).await? - before, node_ticks(deployment).await? - ticks);
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "  a ZooKeeper without a quorum: {:.1} connections a second of one node, which uses {:.1} % of a processor",
        count as f64 / seconds,
        used as f64 / seconds,
    );
    ensure!(count <= MOST_CONNECTIONS, "one node made {count} connections in {seconds:.1} s");

    let script =
        format!("bitacora --zookeeper {NAME}:2181 --timeout {}s get k; echo $?; times", WINDOW.as_secs());
    let before = accepted(&server).await?;
    let said = deployment.compose(&["exec", "-T", "node-1", "bash", "-c", &script]).await?;
    let count = accepted(&server).await? - before;
    println!("  of one node and a client: {count} in {WINDOW:?}; the client's exit code and times: {said:?}");
    ensure!(count <= 2 * MOST_CONNECTIONS, "a node and a client made {count} connections in {WINDOW:?}");
    ensure!(said.starts_with("5\n"), "the client says {said}");
    Ok(())
}
