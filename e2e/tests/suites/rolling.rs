//! Nodes are restarted one after the other, and replaced by those of another version, while clients read and write through HAProxy and by
//! the client library: no call fails. But for one thing: behind a HAProxy 3.0 that finds nodes by DNS, as in the Compose deployment, a node
//! that has just started gets calls before it is ready.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bitacora_client::Client;
use e2e::balancer::Balancer;
use e2e::cluster::{Cluster, Node, Options, START, node_binary};
use e2e::command_line::CommandLine;
use e2e::deployment::Deployment;
use e2e::http::Api;
use e2e::runner::{Ctx, Test};
use e2e::{digests, tests, versions, wait};
use futures_util::future::join_all;
use hdrhistogram::Histogram;

use super::client::{by_zookeeper, knows};

/// The last version with the store format 5, before digests and tokens. `E2E_UPGRADE_FROM` names another commit.
pub const EARLIER: &str = "0d08341d4ba7126971255b8151b0838c63c2b2f8";
/// The first use builds a node.
const UPGRADE_DEADLINE: Duration = Duration::from_secs(1_800);

pub fn tests() -> Vec<Test> {
    let mut tests = tests![
        Deployment: the_deployment_is_restarted_node_by_node;
        ServersAndBalancer: a_rolling_restart_is_not_noticed_through_haproxy_either
    ];
    let upgrade = tests![ServersAndBalancer: a_rolling_upgrade_and_the_way_back_are_not_noticed];
    tests.extend(upgrade.into_iter().map(|test| test.within(UPGRADE_DEADLINE)));
    tests
}

/// Callers of each way.
const CALLERS: usize = 6;
/// Keys of a caller, in turn.
const KEYS: usize = 20;
/// Calls that HAProxy may give to nodes of the deployment that have just started and are not ready for some tenths of a second.
const MOST_TOO_EARLY: usize = 60;
/// As in the Compose deployment.
const DRAIN_DELAY: &str = "2500ms";

/// How a caller reaches the cluster.
enum Way<'a> {
    Balancer(Api),
    Library(&'a Client),
}

impl Way<'_> {
    const NAMES: [&'static str; 2] = ["through HAProxy", "by the library"];

    fn index(&self) -> usize {
        match self {
            Way::Balancer(_) => 0,
            Way::Library(_) => 1,
        }
    }

    /// Sets a key; an error says what happened.
    async fn set(&self, key: &str, value: &str) -> Result<(), String> {
        match self {
            Way::Balancer(api) => match api.set(key, value).await {
                Ok(answer) if answer.status == 200 => Ok(()),
                Ok(answer) => Err(answer.to_string()),
                Err(error) => Err(format!("{error:#}")),
            },
            Way::Library(client) => {
                client.set(key, value).await.map(drop).map_err(|error| format!("{error:?}"))
            }
        }
    }

    async fn get(&self, key: &str) -> Result<String, String> {
        match self {
            Way::Balancer(api) => {
                let answer = api.get(key).await.map_err(|error| format!("{error:#}"))?;
                answer.value().filter(|_| answer.status == 200).ok_or_else(|| answer.to_string())
            }
            Way::Library(client) => {
                client.get(key).await.map(|record| record.value).map_err(|error| format!("{error:?}"))
            }
        }
    }
}

/// What the callers of one way saw, of reads or of writes.
struct Seen {
    micros: Histogram<u64>,
    failed: Vec<String>,
}

impl Seen {
    fn new() -> Seen {
        Seen { micros: Histogram::new(3).expect("three digits"), failed: Vec::new() }
    }

    /// How many calls, and how long they took.
    fn figures(&self) -> String {
        let ms = |micros: u64| micros as f64 / 1_000.0;
        let [p99, max] = [self.micros.value_at_quantile(0.99), self.micros.max()].map(ms);
        format!("{} (p99 {p99:.1} ms, longest {max:.0} ms, {} failed)", self.micros.len(), self.failed.len())
    }
}

/// A key of a caller.
fn name(caller: usize, number: usize) -> String {
    format!("rolling/{caller}/{}", number % KEYS)
}

/// Waits until each node holds these values.
async fn all_hold(nodes: &[Api], values: &HashMap<String, String>) {
    for node in nodes {
        for (key, value) in values {
            wait::until(&format!("port {} has {key} = {value}", node.port), START, || async {
                let answer = node.get_own(key).await.map_err(|error| format!("{error:#}"))?;
                if answer.value().as_ref() == Some(value) { Ok(()) } else { Err(answer.to_string()) }
            })
            .await;
        }
    }
}

/// Callers that read and write until they are told to stop.
struct Load {
    stop: AtomicBool,
    calls: Vec<AtomicUsize>,
    /// Reads and writes, of each way.
    seen: [[Mutex<Seen>; 2]; 2],
    /// What each key holds at the end, as far as that is certain.
    expected: Mutex<HashMap<String, String>>,
}

impl Load {
    fn new() -> Load {
        let seen = || [Mutex::new(Seen::new()), Mutex::new(Seen::new())];
        Load {
            stop: AtomicBool::new(false),
            calls: (0..2 * CALLERS).map(|_| AtomicUsize::new(0)).collect(),
            seen: [seen(), seen()],
            expected: Mutex::default(),
        }
    }

    /// Runs while `work` does.
    async fn during(
        balancer: u16,
        client: &Client,
        nodes: &[Api],
        work: impl AsyncFnOnce(&Load) -> Result<()>,
    ) -> Result<Load> {
        // A node that is a little behind may answer with an older value, but with one.
        let all = (0..2 * CALLERS).flat_map(|caller| (0..KEYS).map(move |number| name(caller, number)));
        let all: HashMap<_, _> = all.map(|key| (key, "0".to_owned())).collect();
        for (key, value) in &all {
            client.set(key, value).await?;
        }
        all_hold(nodes, &all).await;
        let load = Load::new();
        let callers = (0..2 * CALLERS).map(|caller| {
            let way = if caller % 2 == 0 { Way::Balancer(Api::new(balancer)) } else { Way::Library(client) };
            load.call(way, caller)
        });
        let work = async {
            load.goes_on(20).await;
            let outcome = work(&load).await;
            load.stop.store(true, Ordering::Relaxed);
            outcome
        };
        let (_, outcome) = tokio::join!(join_all(callers), work);
        outcome?;
        Ok(load)
    }

    fn note<T>(&self, way: &Way<'_>, is_write: bool, began: Instant, outcome: &Result<T, String>) {
        let seen = &self.seen[way.index()][usize::from(is_write)];
        let mut seen = seen.lock().expect("nobody panics with it");
        let _ = seen.micros.record(began.elapsed().as_micros() as u64);
        if let Err(why) = outcome {
            seen.failed.push(why.clone());
        }
    }

    /// One call at a time: a write, acknowledged, and reads of what the caller has written.
    async fn call(&self, way: Way<'_>, caller: usize) {
        for number in 1.. {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let (key, value) = (name(caller, number), number.to_string());
            let began = Instant::now();
            let set = way.set(&key, &value).await;
            self.note(&way, true, began, &set);
            self.expect(key, set.is_ok().then_some(value));
            for back in 0..number.min(4) {
                let key = name(caller, number - 1 - back);
                let began = Instant::now();
                let get = way.get(&key).await;
                let read = get.and_then(|value| match value.parse::<usize>() {
                    Ok(value) if value <= number => Ok(()),
                    _ => Err(format!("{key} holds {value}, before {number} was written")),
                });
                self.note(&way, false, began, &read);
            }
            self.calls[caller].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What a key holds from now on; `None` if a write failed: it may have taken effect, and may do so later.
    fn expect(&self, key: String, value: Option<String>) {
        let mut expected = self.expected.lock().expect("nobody panics with it");
        match value {
            Some(value) => drop(expected.insert(key, value)),
            None => drop(expected.remove(&key)),
        }
    }

    /// Waits until every caller has written so many times more.
    async fn goes_on(&self, more: usize) {
        let counts = || self.calls.iter().map(|calls| calls.load(Ordering::Relaxed)).collect::<Vec<_>>();
        let before = counts();
        wait::until(&format!("every caller has written {more} times more"), START, || async {
            let slow = counts().iter().zip(&before).filter(|(now, before)| **now < **before + more).count();
            if slow == 0 { Ok(()) } else { Err(format!("{slow} callers have not")) }
        })
        .await;
    }

    /// Prints the figures. Each node must hold what was acknowledged last. Returns the reads and the writes that failed, of each way.
    async fn judge(self, what: &str, nodes: &[Api]) -> Result<[[Vec<String>; 2]; 2]> {
        let Load { seen, expected, .. } = self;
        let seen = seen.map(|way| way.map(|seen| seen.into_inner().expect("nobody panicked with it")));
        for (name, [reads, writes]) in Way::NAMES.into_iter().zip(&seen) {
            println!("  {what}, {name}: reads {}, writes {}", reads.figures(), writes.figures());
            ensure!(!reads.micros.is_empty() && !writes.micros.is_empty(), "nothing was asked {name}");
        }
        all_hold(nodes, &expected.into_inner().expect("nobody panicked with it")).await;
        Ok(seen.map(|way| way.map(|seen| seen.failed)))
    }

    /// As [`Load::judge`]: no call may have failed.
    async fn all_done(self, what: &str, nodes: &[Api]) -> Result<()> {
        let failed = self.judge(what, nodes).await?;
        ensure!(failed.iter().flatten().all(Vec::is_empty), "{what}: failed reads and writes {failed:#?}");
        Ok(())
    }
}

/// What a node says that has just started, to a call that it can't do yet; the call may be sent again.
fn is_not_ready_yet(failed: &str) -> bool {
    failed.starts_with("503 ")
        && (failed.contains("it has not taken effect") || failed.contains("still restoring"))
}

async fn the_deployment_is_restarted_node_by_node(_: Ctx) -> Result<()> {
    let deployment = Deployment::new();
    match restart_all(&deployment).await {
        Ok(()) => Ok(()),
        Err(error) => Err(error.context(deployment.report().await)),
    }
}

async fn restart_all(deployment: &Deployment) -> Result<()> {
    deployment.up(&[]).await?;
    let nodes = ["NODE_1_PORT", "NODE_2_PORT", "NODE_3_PORT"].map(|name| Api::new(deployment.port(name)));
    let stats = Api::new(deployment.port("HAPROXY_STATS_PORT"));
    let zookeeper = format!("127.0.0.1:{}", deployment.port("ZOOKEEPER_PORT"));
    let connect = zookeeper.parse().map_err(anyhow::Error::msg)?;
    let client = Client::builder().zookeeper(connect).build().await?;
    let complete = async || {
        wait::until("all nodes are ready, and known to HAProxy and to the client", START, || async {
            for node in &nodes {
                let status = node.status().await.map_err(|error| format!("{error:#}"))?;
                let members = status["members"].as_array().map_or(0, Vec::len);
                if status["ready"] != true || members != nodes.len() {
                    return Err(status.to_string());
                }
            }
            let active = stats.metric("haproxy_backend_active_servers").await;
            let active = active.map_err(|error| format!("{error:#}"))? as usize;
            match (active, client.nodes().len()) {
                (3, 3) => Ok(()),
                (active, known) => Err(format!("HAProxy has {active}, the client knows {known}")),
            }
        })
        .await;
    };
    complete().await;
    let load = Load::during(deployment.port("BITACORA_PORT"), &client, &nodes, async |load| {
        for service in ["node-1", "node-2", "node-3"] {
            // SIGTERM, and the time that compose.yaml gives it.
            deployment.compose(&["stop", service]).await?;
            load.goes_on(10).await;
            deployment.compose(&["start", service]).await?;
            complete().await;
            load.goes_on(10).await;
        }
        Ok(())
    });
    let [by_haproxy, by_library] = load.await?.judge("a rolling restart of the deployment", &nodes).await?;
    ensure!(by_library.iter().all(Vec::is_empty), "by the library failed {by_library:#?}");
    // HAProxy 3.0 takes a server that DNS names again for up before its first check.
    let failed: Vec<_> = by_haproxy.into_iter().flatten().collect();
    ensure!(failed.iter().all(|failed| is_not_ready_yet(failed)), "through HAProxy failed {failed:#?}");
    ensure!(failed.len() <= MOST_TOO_EARLY, "{} calls came to nodes that had just started", failed.len());
    client.close().await;
    digests::agree(&nodes).await
}

/// A cluster of processes, with HAProxy in front of it and a client.
struct Rolled {
    cluster: Cluster,
    balancer: Balancer,
    client: Client,
}

impl Rolled {
    async fn begin(ctx: &Ctx, version: &Path) -> Result<Rolled> {
        let mut cluster = ctx.no_nodes(Options::new().env("DRAIN_DELAY", DRAIN_DELAY)).await?;
        for _ in 0..3 {
            let node = cluster.add().await?;
            node.set_binary(version);
            node.spawn()?;
        }
        cluster.formed().await;
        let ports: Vec<u16> = cluster.nodes.iter().map(|node| node.api_port).collect();
        let balancer = Balancer::start(&ctx.dir, &ports).await?;
        let client = by_zookeeper(&cluster).await?;
        let rolled = Rolled { cluster, balancer, client };
        rolled.complete().await?;
        Ok(rolled)
    }

    fn apis(&self) -> Vec<Api> {
        self.cluster.nodes.iter().map(Node::api).collect()
    }

    /// Waits until all nodes are there again, for everybody.
    async fn complete(&self) -> Result<()> {
        let nodes: Vec<&Node> = self.cluster.nodes.iter().collect();
        for node in &nodes {
            node.ready().await;
        }
        self.cluster.know_each_other(nodes.len()).await;
        knows(&self.client, &nodes, START).await;
        self.balancer.has(nodes.len()).await
    }

    /// Replaces nodes by those of a version, one after the other, under load: no call fails.
    async fn roll(&self, nodes: &[&Node], version: &Path, what: &str) -> Result<()> {
        let apis = self.apis();
        let load = Load::during(self.balancer.port, &self.client, &apis, async |load| {
            for node in nodes {
                let (status, _) = node.terminate(Duration::from_secs(30)).await;
                ensure!(status.success(), "{} ended with {status}", node.name);
                load.goes_on(10).await;
                node.set_binary(version);
                node.spawn()?;
                self.complete().await?;
                load.goes_on(10).await;
            }
            Ok(())
        });
        load.await?.all_done(what, &self.apis()).await
    }

    /// Kills a node under load, and replaces it. Reads go on; a write fails only if nobody can know what became of it.
    async fn kill(&self, node: &Node, version: &Path, what: &str) -> Result<()> {
        let apis = self.apis();
        let load = Load::during(self.balancer.port, &self.client, &apis, async |load| {
            node.kill();
            load.goes_on(10).await;
            self.cluster.know_each_other(2).await;
            node.set_binary(version);
            node.spawn()?;
            self.complete().await?;
            load.goes_on(10).await;
            Ok(())
        });
        let failed = load.await?.judge(what, &self.apis()).await?;
        let [reads, writes] =
            [0, 1].map(|kind| failed.iter().flat_map(|way| way[kind].clone()).collect::<Vec<_>>());
        ensure!(reads.is_empty(), "{what}: failed reads {reads:#?}");
        // Each caller has one call under way.
        ensure!(writes.len() <= 2 * CALLERS, "{what}: failed writes {writes:#?}");
        Ok(())
    }
}

async fn a_rolling_restart_is_not_noticed_through_haproxy_either(ctx: Ctx) -> Result<()> {
    let present = node_binary().await?;
    let rolled = Rolled::begin(&ctx, present).await?;
    let nodes: Vec<&Node> = rolled.cluster.nodes.iter().collect();
    rolled.roll(&nodes, present, "a rolling restart").await?;
    digests::agree(&rolled.apis()).await
}

async fn a_rolling_upgrade_and_the_way_back_are_not_noticed(ctx: Ctx) -> Result<()> {
    if std::env::var_os("E2E_UPGRADE").is_none() {
        println!("  not tried, as it builds an earlier version: E2E_UPGRADE=1, or just upgrade");
        return Ok(());
    }
    let commit = std::env::var("E2E_UPGRADE_FROM").unwrap_or_else(|_| EARLIER.to_owned());
    let (earlier, present) = (versions::node_of(&commit).await?, node_binary().await?);
    let rolled = Rolled::begin(&ctx, &earlier).await?;
    let [first, second, third] = &rolled.cluster.nodes[..] else { unreachable!("three nodes") };
    rolled.roll(&[first], present, "the first node upgraded").await?;
    rolled.kill(second, present, "the second killed and upgraded").await?;
    rolled.roll(&[third], present, "the third upgraded").await?;
    digests::agree(&rolled.apis()).await?;
    let bitacora = CommandLine::new(&ctx, &[]);
    for other in [second, third] {
        bitacora.run(&["diff", &first.http_url(), &other.http_url()]).await?.expect(0);
    }
    rolled.roll(&[first, second, third], &earlier, "all nodes back at the earlier version").await
}
