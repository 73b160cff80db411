//! Members that answer nonsense, late or never must not harm a node.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::backends::Server;
use e2e::cluster::{Cluster, Node, Options, START};
use e2e::ports;
use e2e::proxy::Proxy;
use e2e::runner::{Ctx, Test};
use e2e::zookeeper::ZkClient;
use e2e::{tests, wait};
use futures_util::future::try_join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

pub fn tests() -> Vec<Test> {
    tests![Servers: nonsense_of_members_is_not_answered, slow_members_cost_no_more_than_the_timeout,
            of_two_members_the_later_write_is_believed, a_frozen_member_holds_nobody_up]
}

const PATIENCE: Duration = Duration::from_secs(1);

/// Nodes that know everything, and one that is cut off from the log and has to ask.
struct Divided {
    cluster: Cluster,
    zk: ZkClient,
    broker: Server,
    proxy: Proxy,
}

impl Divided {
    async fn new(ctx: &Ctx) -> Result<Divided> {
        let (broker, proxy) = ctx.own_broker_and_proxy().await?;
        let options = Options::new()
            .brokers(broker.address())
            .env("EXTERNAL_REQUEST_TIMEOUT", PATIENCE.as_millis())
            .env("MAX_VALUE_BYTES", "65536");
        let mut cluster = ctx.no_nodes(options).await?;
        cluster.add().await?.spawn()?;
        let behind = cluster.add().await?;
        behind.set_env("BROKER_LIST", proxy.address());
        behind.spawn()?;
        cluster.formed().await;
        let zk = cluster.zk().await;
        Ok(Divided { cluster, zk, broker, proxy })
    }

    fn informed(&self) -> &Node {
        &self.cluster.nodes[0]
    }

    fn behind(&self) -> &Node {
        &self.cluster.nodes[1]
    }

    /// Cuts one node off from the log; it knows that it is behind when this returns.
    async fn divide(&self) {
        self.proxy.cut();
        wait::until("it is not caught up", START, || async {
            let status = self.behind().api().status().await.map_err(|error| format!("{error:#}"))?;
            if status["caught_up"] == false { Ok(()) } else { Err(status.to_string()) }
        })
        .await;
    }

    /// Makes these members, and waits until the node that asks knows them.
    async fn join(&self, members: &[Member]) -> Result<()> {
        for member in members {
            self.zk.pose_as_member(&member.address).await.map_err(anyhow::Error::msg)?;
        }
        wait::until("they are members", START, || async {
            let status = self.behind().api().status().await.map_err(|error| format!("{error:#}"))?;
            let known = status["members"].to_string();
            if members.iter().all(|member| known.contains(&member.address)) { Ok(()) } else { Err(known) }
        })
        .await;
        Ok(())
    }

    /// Ends the division: the node that was behind has what the log has.
    async fn reunite(self) -> Result<()> {
        self.proxy.mend();
        self.informed().api().set("the end", "value").await?.expect(200);
        self.cluster.all_have("the end", Some("value")).await;
        self.zk.close().await;
        drop(self.cluster);
        self.broker.remove().await
    }
}

enum Act {
    /// Not a word.
    Silence,
    Late(Duration, Vec<u8>),
    Answer(Vec<u8>),
    /// This, and then more of the same for ever.
    Endless(Vec<u8>),
}

/// Something that speaks HTTP, or not quite, at a member's address.
struct Member {
    address: String,
    asked: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Member {
    /// `act` is told the key that is asked for, as it is encoded.
    async fn start(act: impl Fn(&str) -> Act + Send + Sync + 'static) -> Result<Member> {
        let port = ports::free();
        let listener = TcpListener::bind(("127.0.0.1", port)).await.context("listening")?;
        let (asked, act) = (Arc::<AtomicUsize>::default(), Arc::new(act));
        let counter = Arc::clone(&asked);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (counter, act) = (Arc::clone(&counter), Arc::clone(&act));
                connections.spawn(async move {
                    // Who asks may give up at any time.
                    let _ = answer(stream, &counter, &*act).await;
                });
            }
        });
        Ok(Member { address: format!("127.0.0.1:{port}"), asked, task })
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(
    mut stream: TcpStream,
    asked: &AtomicUsize,
    act: &(impl Fn(&str) -> Act + Sync),
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    asked.fetch_add(1, Ordering::Relaxed);
    let head = String::from_utf8_lossy(&head).into_owned();
    let key = head.split_once("?key=").and_then(|(_, rest)| rest.split(' ').next()).unwrap_or_default();
    match act(key) {
        Act::Silence => std::future::pending().await,
        Act::Late(after, bytes) => {
            tokio::time::sleep(after).await;
            stream.write_all(&bytes).await
        }
        Act::Answer(bytes) => stream.write_all(&bytes).await,
        Act::Endless(start) => {
            stream.write_all(&start).await?;
            let more = vec![b'x'; 1 << 20];
            loop {
                stream.write_all(&more).await?;
            }
        }
    }
}

fn response(status: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n", body.len());
    for (name, value) in headers {
        bytes.push_str(&format!("{name}: {value}\r\n"));
    }
    [bytes.as_bytes(), b"\r\n", body].concat()
}

/// What a node would answer that has this record.
fn record(key: &str, value: &str, (timestamp, ttl): (i64, i64), position: &str) -> Vec<u8> {
    let body = serde_json::json!({
        "key": key, "value": value, "timestamp": timestamp, "source": 1, "ttl": ttl, "uuid": "u",
    });
    let headers = [
        ("content-type", "application/json"),
        ("bitacora-position", position),
        ("bitacora-timestamp", &timestamp.to_string()),
    ];
    response("200 OK", &headers, body.to_string().as_bytes())
}

/// Later than anything that the log holds.
pub const LATER: i64 = 4_000_000_000_000;

const LIE: &str = "a lie";

/// Answers that no node would give, and what is said of each, if anything.
fn nonsense() -> Vec<(Option<&'static str>, Box<dyn Fn(&str) -> Act + Send + Sync>)> {
    let at = |position: &'static str| move |key: &str| Act::Answer(record(key, LIE, (LATER, 0), position));
    let body = |body: &'static [u8]| {
        move |_: &str| Act::Answer(response("200 OK", &[("bitacora-position", "0:7")], body))
    };
    let status = |status: &'static str| {
        move |key: &str| {
            let headers = [("bitacora-position", "0:7"), ("location", "http://127.0.0.1:1/rpc/cluster")];
            Act::Answer(response(status, &headers, &record(key, LIE, (LATER, 0), "0:7")))
        }
    };
    let not_found = |headers: &'static [(&'static str, &'static str)]| {
        move |_: &str| Act::Answer(response("404 Not Found", headers, b"{}"))
    };
    let of_log = |log: &'static str| {
        move |key: &str| {
            let good = String::from_utf8(record(key, LIE, (LATER, 0), "0:7")).expect("text");
            let named = format!("bitacora-log: {log}\r\nbitacora-position:");
            Act::Answer(good.replace("bitacora-position:", &named).into())
        }
    };
    vec![
        // Not of this log, which happens while one is replaced.
        (None, Box::new(of_log("1234567890abcdef"))),
        (Some("the name of its log is no number"), Box::new(of_log("this one"))),
        (Some("no record"), Box::new(body(b"<html>a page of somebody else's</html>"))),
        (Some("no record"), Box::new(body(b"\xff\xfe\x00"))),
        (Some("no record"), Box::new(body(b"{\"key\":"))),
        (Some("no record"), Box::new(body(b"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[["))),
        (Some("no record"), Box::new(body(br#"{"key":1,"value":null}"#))),
        (Some("another record"), Box::new(|_: &str| Act::Answer(record("another", LIE, (LATER, 0), "0:7")))),
        (Some("names no position"), Box::new(at("-1:7"))),
        (Some("names no position"), Box::new(at("0:-9223372036854775808"))),
        (Some("names no position"), Box::new(at("0:99999999999999999999"))),
        (Some("names no position"), Box::new(at("nowhere"))),
        (Some("another record"), Box::new(at("0:-1"))),
        (Some("partitions"), Box::new(at("2147483647:7"))),
        (Some("partitions"), Box::new(at("4:7"))),
        (
            Some("no number"),
            Box::new(|key: &str| {
                let good = String::from_utf8(record(key, LIE, (LATER, 0), "0:7")).expect("text");
                Act::Answer(
                    good.replace(&format!("bitacora-timestamp: {LATER}"), "bitacora-timestamp: soon").into(),
                )
            }),
        ),
        (Some("it answers 500"), Box::new(status("500 Internal Server Error"))),
        (Some("it answers 302"), Box::new(status("302 Found"))),
        (Some("it answers 204"), Box::new(status("204 No Content"))),
        (None, Box::new(status("503 Service Unavailable"))),
        (Some("names no position"), Box::new(not_found(&[]))),
        (
            Some("names a delete"),
            Box::new(not_found(&[("bitacora-position", "0:-1"), ("bitacora-timestamp", "4000000000000")])),
        ),
        // Half a record, and no more.
        (
            Some("ends early"),
            Box::new(|key: &str| {
                let whole = record(key, LIE, (LATER, 0), "0:7");
                Act::Answer(whole[..whole.len() - 5].to_vec())
            }),
        ),
        (None, Box::new(|_: &str| Act::Answer(b"HTTP/1.1 20".to_vec()))),
        (None, Box::new(|_: &str| Act::Answer(Vec::new()))),
        (None, Box::new(|_: &str| Act::Answer(vec![0; 100_000]))),
    ]
}

fn complaints(node: &Node, member: &Member) -> Vec<String> {
    let log = node.log_tail(100_000);
    let lines = log.lines().filter(|line| line.contains("of no use") && line.contains(&member.address));
    lines.map(str::to_owned).collect()
}

async fn nonsense_of_members_is_not_answered(ctx: Ctx) -> Result<()> {
    let divided = Divided::new(&ctx).await?;
    let (informed, behind) = (divided.informed().api(), divided.behind().api());
    divided.divide().await;
    for key in ["known", "deleted", "empty"] {
        informed.set(key, if key == "empty" { "" } else { "the truth" }).await?.expect(200);
    }
    let deleted = informed.delete("deleted").await?.expect(200);
    divided.informed().has("deleted", None).await;
    divided.informed().has("empty", Some("")).await;

    let (expected, acts): (Vec<_>, Vec<_>) = nonsense().into_iter().unzip();
    let members = try_join_all(acts.into_iter().map(Member::start)).await?;
    divided.join(&members).await?;
    const ROUNDS: usize = 5;
    for _ in 0..ROUNDS {
        let known = behind.get("known").await?.expect(200);
        assert_eq!(known.value().as_deref(), Some("the truth"), "{known}");
        assert_eq!(known.header("bitacora-source"), Some("peer"), "{known}");
        let empty = behind.get("empty").await?.expect(200);
        assert_eq!(empty.value().as_deref(), Some(""), "{empty}");
        let gone = behind.get("deleted").await?.expect(404);
        assert_eq!(gone.position(), deleted.position(), "the marker's: {gone}");
        behind.get("nobody has it").await?.expect(404);
    }
    for (number, (member, expected)) in members.iter().zip(&expected).enumerate() {
        // The last question may have been answered before it came.
        assert!(member.asked() >= ROUNDS, "member {number} was asked {} times", member.asked());
        let said = complaints(divided.behind(), member);
        match expected {
            Some(why) => {
                assert_eq!(said.len(), 1, "once, not for every answer, of member {number}: {said:?}");
                assert!(said[0].contains(why), "member {number}, {why}: {said:?}");
            }
            None => assert!(said.is_empty(), "no news, of member {number}: {said:?}"),
        }
    }
    // Nothing of it is kept, nor what was true.
    for key in ["known", "deleted", "empty", "nobody has it", "another"] {
        let own = behind.get_own(key).await?.expect(404);
        assert_eq!(own.header("bitacora-timestamp"), None, "{key}: {own}");
    }
    divided.reunite().await
}

/// The contract has the highest write timestamp win: what looks like a record of the log is believed.
async fn of_two_members_the_later_write_is_believed(ctx: Ctx) -> Result<()> {
    let divided = Divided::new(&ctx).await?;
    let (informed, behind) = (divided.informed().api(), divided.behind().api());
    divided.divide().await;
    let stale = |key: &str| Act::Answer(record(key, "old", (1_000, 0), "0:0"));
    let expired = |key: &str| {
        let ttl = if key == "marked" { -1 } else { 5_000 };
        Act::Answer(record(key, LIE, (2_000, ttl), "0:1"))
    };
    let members = [Member::start(stale).await?, Member::start(expired).await?];
    divided.join(&members).await?;
    for key in ["deleted", "set"] {
        informed.set(key, "newer").await?.expect(200);
    }
    let deleted = informed.delete("deleted").await?.expect(200);
    divided.informed().has("deleted", None).await;
    divided.informed().has("set", Some("newer")).await;
    let gone = behind.get("deleted").await?.expect(404);
    assert_eq!(gone.position(), deleted.position(), "the fresh member's marker wins: {gone}");
    assert_eq!(gone.header("bitacora-source"), Some("peer"), "{gone}");
    assert_eq!(behind.get("set").await?.expect(200).value().as_deref(), Some("newer"));
    // A record that has expired or is a marker is no value, but news: it is later than the stale one.
    for key in ["expired", "marked"] {
        let gone = behind.get(key).await?.expect(404);
        assert_eq!(gone.header("bitacora-timestamp"), Some("2000"), "{gone}");
    }
    // A member that claims to be ahead of time is believed, and forgotten when the log is there again.
    let ahead = |key: &str| Act::Answer(record(key, "from the future", (i64::MAX, 0), "0:7"));
    let ahead = [Member::start(ahead).await?];
    divided.join(&ahead).await?;
    let believed = behind.get("set").await?.expect(200);
    assert_eq!(believed.value().as_deref(), Some("from the future"), "{believed}");
    divided.proxy.mend();
    divided.behind().has("set", Some("newer")).await;
    divided.behind().has("deleted", None).await;
    assert_eq!(behind.get("set").await?.expect(200).value().as_deref(), Some("newer"));
    divided.reunite().await
}

async fn slow_members_cost_no_more_than_the_timeout(ctx: Ctx) -> Result<()> {
    let divided = Divided::new(&ctx).await?;
    let (informed, behind) = (divided.informed().api(), divided.behind().api());
    divided.divide().await;
    informed.set("known", "the truth").await?.expect(200);
    divided.informed().has("known", Some("the truth")).await;
    let before = divided.behind().peak_resident_bytes();

    let head = b"HTTP/1.1 200 OK\r\nbitacora-position: 0:7\r\nconnection: close\r\n";
    let endless_body = Act::Endless([&head[..], b"\r\n{\"key\":\""].concat());
    let endless = |start: Act| {
        let Act::Endless(start) = start else { unreachable!("it is endless") };
        move |_: &str| Act::Endless(start.clone())
    };
    let huge = Act::Endless([&head[..], b"content-length: 9223372036854775807\r\n\r\n"].concat());
    let endless_head = Act::Endless([&head[..], b"x-more: "].concat());
    let members = [
        Member::start(|_: &str| Act::Silence).await?,
        Member::start(|key: &str| Act::Late(2 * PATIENCE, record(key, LIE, (LATER, 0), "0:7"))).await?,
        Member::start(endless(endless_body)).await?,
        Member::start(endless(huge)).await?,
        Member::start(endless(endless_head)).await?,
    ];
    divided.join(&members).await?;
    const TOGETHER: usize = 8;
    for _ in 0..2 {
        let known = behind.get("known").await?.expect(200);
        assert_eq!(known.value().as_deref(), Some("the truth"), "{known}");
        let misses = (0..TOGETHER).map(|n| {
            let behind = &behind;
            async move { behind.get(&format!("nobody has {n}")).await }
        });
        for missed in try_join_all(misses).await? {
            missed.expect(404);
        }
    }
    if let Some((before, after)) = before.zip(divided.behind().peak_resident_bytes()) {
        let grown = after.saturating_sub(before);
        println!(
            "memory: {} MiB more at its peak under {TOGETHER} endless answers of three members",
            grown >> 20
        );
        // All their answers together may have less.
        assert!(grown < 256 << 20, "{} MiB more at its peak", grown >> 20);
    }
    for member in &members {
        assert!(member.asked() > 1);
        ensure!(complaints(divided.behind(), member).len() <= 1, "its log is flooded");
    }
    // What came too late is not kept either.
    behind.get_own("known").await?.expect(404);
    divided.reunite().await
}

async fn a_frozen_member_holds_nobody_up(ctx: Ctx) -> Result<()> {
    // Every miss asks, and the frozen one, too; which is a member for long.
    let options = Options::new()
        .env("PEER_READS", "always")
        .env("EXTERNAL_REQUEST_TIMEOUT", "200")
        .env("ZOOKEEPER_SESSION_TIMEOUT", "15000");
    let cluster = ctx.cluster_with(3, options).await?;
    let [node, other, frozen] = &cluster.nodes[..] else { unreachable!("three nodes") };
    let (api, zk) = (node.api(), cluster.zk().await);
    api.set("key", "value").await?.expect(200);
    cluster.all_have("key", Some("value")).await;
    frozen.pause();
    // More than are asked for at a time.
    for round in 0..2 {
        let misses = (0..300).map(|n| {
            let api = &api;
            async move { api.get(&format!("nobody has {round} {n}")).await }
        });
        for missed in try_join_all(misses).await? {
            missed.expect(404);
        }
        api.get("key").await?.expect(200);
    }
    let frozen_address = format!("127.0.0.1:{}", frozen.api_port);
    let members = api.status().await?["members"].to_string();
    assert!(
        members.contains(&frozen_address),
        "the answers came only when the frozen member was gone: {members}"
    );
    wait::until("the frozen member is no member", START, || async {
        for node in [node, other] {
            let members =
                node.api().status().await.map_err(|error| format!("{error:#}"))?["members"].to_string();
            if members.contains(&frozen_address) {
                return Err(members);
            }
        }
        let members = zk.children("/bitacora/servers").await?;
        if members.contains(&frozen_address) { Err(format!("{members:?}")) } else { Ok(()) }
    })
    .await;
    // Nobody waits for it any more: every answer is the other's.
    let asked = async || node.api().metric("bitacora_peer_reads_total{outcome=\"timeout\"}").await;
    let before = asked().await?;
    api.get("nobody has this either").await?.expect(404);
    assert!((asked().await? - before).abs() < 0.1);
    frozen.resume();
    cluster.know_each_other(3).await;
    zk.close().await;
    Ok(())
}
