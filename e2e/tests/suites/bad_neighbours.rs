//! What others do must not harm a node: members that answer nonsense, records that no node of ours would write, a log that
//! goes back, servers that stand still.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::backends::Server;
use e2e::cluster::{Cluster, Node, Options, START};
use e2e::ports;
use e2e::proxy::Proxy;
use e2e::runner::{Ctx, Test};
use e2e::topic::{KeyValue, Record, java_partition};
use e2e::zookeeper::ZkClient;
use e2e::{tests, wait};
use futures_util::future::{join_all, try_join_all};
use reqwest::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

pub fn tests() -> Vec<Test> {
    tests![
        Servers: nonsense_of_members_is_neither_answered_nor_stored,
            members_that_are_slow_or_endless_cost_no_more_than_the_timeout,
            of_two_members_the_later_write_is_believed,
            a_log_that_went_back_is_read_again, a_log_that_went_back_and_grew_beyond_its_old_end_is_read_again,
            a_log_that_went_back_and_grew_by_old_records_is_read_again,
            records_out_of_time_are_decided_by_the_order_of_the_log_on_log_append_time,
            records_out_of_time_are_decided_by_the_order_of_the_log_on_create_time,
            nonsense_does_not_push_the_record_before_it_out_of_the_log,
            what_a_slow_frozen_and_killed_broker_acknowledged_is_there, a_frozen_member_holds_nobody_up
    ]
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
const LATER: i64 = 4_000_000_000_000;

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

async fn nonsense_of_members_is_neither_answered_nor_stored(ctx: Ctx) -> Result<()> {
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

async fn members_that_are_slow_or_endless_cost_no_more_than_the_timeout(ctx: Ctx) -> Result<()> {
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

async fn resyncs(node: &Node) -> Result<f64> {
    node.api().metric("bitacora_resyncs_total").await
}

async fn a_log_that_went_back_is_read_again(ctx: Ctx) -> Result<()> {
    the_log_goes_back(ctx, Grown::Less).await
}

/// The hard case: the offsets tell nothing.
async fn a_log_that_went_back_and_grew_beyond_its_old_end_is_read_again(ctx: Ctx) -> Result<()> {
    the_log_goes_back(ctx, Grown::Beyond).await
}

/// The hardest: the timestamps tell nothing either.
async fn a_log_that_went_back_and_grew_by_old_records_is_read_again(ctx: Ctx) -> Result<()> {
    the_log_goes_back(ctx, Grown::BeyondByOldRecords).await
}

/// By what the log grows that has gone back.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Grown {
    /// Not up to its old end.
    Less,
    /// Under a leader whose epoch is that of the one before, since all that the broker knew has gone back.
    Beyond,
    /// Under a leader of a later epoch, as one has that was elected although it had lost records.
    BeyondByOldRecords,
}

async fn the_log_goes_back(ctx: Ctx, grown: Grown) -> Result<()> {
    let (grows, by_old_records) = (grown != Grown::Less, grown == Grown::BeyondByOldRecords);
    let (broker, proxy) = ctx.own_broker_and_proxy().await?;
    // The nodes see the broker when the proxy lets them, the test always.
    let options = Options::new().brokers(broker.address()).env("BROKER_LIST", proxy.address());
    let mut cluster = ctx.no_nodes(options).await?;
    if by_old_records {
        let ever = i64::MAX.to_string();
        let times = [("message.timestamp.type", "CreateTime"), ("message.timestamp.before.max.ms", &ever)];
        cluster.topic.create(4, &[&[("cleanup.policy", "compact")], &times[..]].concat()).await?;
    }
    for _ in 0..2 {
        cluster.add().await?.spawn()?;
    }
    cluster.formed().await;
    let [running, restarted] = &cluster.nodes[..] else { unreachable!("two nodes") };
    let api = running.api();
    let keys = |what: &str, count: usize| (0..count).map(|i| format!("{what} {i}")).collect::<Vec<_>>();
    let (kept, lost) = (keys("kept", 40), keys("lost", 40));
    for answer in try_join_all(kept.iter().map(|key| api.set(key, "value"))).await? {
        answer.expect(200);
    }
    for node in &cluster.nodes {
        for key in &kept {
            node.has(key, Some("value")).await;
        }
    }
    let ends = |log: &[Record]| -> Vec<i64> {
        let end = |partition| {
            let of = log.iter().filter(|record| record.position.partition == partition);
            of.map(|record| record.position.offset + 1).max().unwrap_or(0)
        };
        (0..4).map(end).collect()
    };
    let at_backup = ends(&cluster.topic.read_all().await?);
    broker.back_up().await?;
    // Its producer gets an id that the broker, as of the backup, will give to the next one again.
    running.kill();
    running.spawn()?;
    running.ready().await;
    let api = running.api();
    for key in &lost {
        wait::until("it is written", START, || async {
            let answer = api.set(key, "value").await.map_err(|error| format!("{error:#}"))?;
            if answer.status == 200 { Ok(()) } else { Err(answer.to_string()) }
        })
        .await;
    }
    // After the backup, so it comes back.
    api.delete("kept 1").await?.expect(200);
    cluster.all_have("kept 1", None).await;
    for key in &lost {
        cluster.all_have(key, Some("value")).await;
    }
    let before = ends(&cluster.topic.read_all().await?);
    // Each partition gets two more than it loses, so that the first of the node's writes after that has a number that the
    // broker has seen of this producer's id; or fewer.
    let mut left: Vec<_> =
        before.iter().zip(&at_backup).map(|(end, kept)| if grows { end - kept + 2 } else { 1 }).collect();
    let (wanted, mut new) = (left.iter().sum::<i64>() as usize, Vec::new());
    for n in 0.. {
        let key = format!("new {n}");
        let left = &mut left[java_partition(key.as_bytes(), 4) as usize];
        if *left > 0 {
            *left -= 1;
            new.push(key);
        }
        if wanted == new.len() {
            break;
        }
    }

    let done = AtomicBool::new(false);
    let change = async {
        restarted.kill();
        proxy.cut();
        broker.go_back().await?;
        if by_old_records {
            // With each start its epoch grows.
            broker.stop().await?;
            broker.start().await?;
        }
        let writer = cluster.topic.writer()?;
        for key in &new {
            let record = KeyValue::new(key, "new");
            if by_old_records {
                writer.write_at(1, None, key.as_bytes(), Some(&record.to_avro()), None).await?;
            } else {
                writer.write_record(&record).await?;
            }
        }
        let after = ends(&cluster.topic.read_all().await?);
        ensure!(
            after.iter().zip(&before).all(|(after, before)| (after > before) == grows),
            "{before:?}, {after:?}"
        );
        proxy.mend();
        restarted.spawn()?;
        for node in [running, restarted] {
            node.ready().await;
            wait::until("it was built anew", START, || async {
                let resyncs = resyncs(node).await.map_err(|error| format!("{error:#}"))?;
                if resyncs >= 1.0 { Ok(()) } else { Err(node.log_tail(5)) }
            })
            .await;
            for (keys, value) in [(&kept, Some("value")), (&lost, None), (&new, Some("new"))] {
                for key in keys {
                    node.has(key, value).await;
                }
            }
        }
        done.store(true, Ordering::Relaxed);
        anyhow::Ok(())
    };
    // There is always an answer, and what was given up does not come back.
    let reads = async {
        let (mut gone, mut count) = (false, 0);
        while !done.load(Ordering::Relaxed) {
            let answer = api.get("kept 0").await?.expect(200);
            assert_eq!(answer.value().as_deref(), Some("value"), "{answer}");
            let answer = api.get(&lost[7]).await?;
            assert!(answer.status == 404 || answer.status == 200 && !gone, "gone before: {gone}; {answer}");
            gone |= answer.status == 404;
            count += 1;
        }
        anyhow::Ok(count)
    };
    let (changed, reads) = tokio::join!(change, reads);
    changed?;
    ensure!(reads? > 10, "it was hardly read");
    for node in [running, restarted] {
        assert!((resyncs(node).await? - 1.0).abs() < 0.1, "once is enough for {}", node.name);
        // Its writes are not taken for others' that the broker has forgotten.
        let (api, key) = (node.api(), format!("written at {}", node.name));
        let written = wait::until("it takes writes", START, || async {
            let answer = api.set(&key, "value").await.map_err(|error| format!("{error:#}"))?;
            if answer.status == 200 { Ok(answer) } else { Err(answer.to_string()) }
        })
        .await;
        cluster.all_have(&key, Some("value")).await;
        let log = cluster.topic.read_all().await?;
        assert!(log.iter().any(|record| record.position == written.position() && record.key_text() == key));
    }
    same_everywhere(&cluster).await;
    drop(cluster);
    broker.remove().await
}

/// Waits until all running nodes hold the same records, at the same positions.
async fn same_everywhere(cluster: &Cluster) {
    wait::until("all nodes hold the same", START, || async {
        let mut held = Vec::new();
        for node in cluster.nodes.iter().filter(|node| node.is_running()) {
            let page = node.api().call(Method::GET, "/rpc/scan?limit=10000").await;
            held.push(page.map_err(|error| format!("{error:#}"))?.expect(200).text());
        }
        if held.iter().all(|one| *one == held[0]) { Ok(()) } else { Err(held.join("\n")) }
    })
    .await;
}

async fn records_out_of_time_are_decided_by_the_order_of_the_log_on_log_append_time(ctx: Ctx) -> Result<()> {
    out_of_time(ctx, "LogAppendTime").await
}

async fn records_out_of_time_are_decided_by_the_order_of_the_log_on_create_time(ctx: Ctx) -> Result<()> {
    out_of_time(ctx, "CreateTime").await
}

async fn out_of_time(ctx: Ctx, kind: &str) -> Result<()> {
    let mut cluster = ctx.no_nodes(Options::new()).await?;
    let ever = i64::MAX.to_string();
    cluster
        .topic
        .create(
            4,
            &[
                ("cleanup.policy", "compact"),
                ("message.timestamp.type", kind),
                ("message.timestamp.after.max.ms", &ever),
                ("message.timestamp.before.max.ms", &ever),
                // As a node would create it.
                ("min.compaction.lag.ms", "3600000"),
            ],
        )
        .await?;
    for _ in 0..2 {
        cluster.add().await?.spawn()?;
    }
    cluster.formed().await;
    let (writer, api) = (cluster.topic.writer()?, cluster.nodes[0].api());
    let mut expected: BTreeMap<String, Option<&str>> = BTreeMap::new();
    let avro = |key: &str, value: &str, timestamp: i64, ttl: i64| {
        KeyValue { timestamp, ttl, ..KeyValue::new(key, value) }.to_avro()
    };
    // -1 is Kafka's own "no time".
    let times = [i64::MAX, LATER, 1, -1];
    for time in times {
        for (n, (marker, then)) in
            [(false, Some("set")), (true, Some("set")), (false, None)].iter().enumerate()
        {
            let key = format!("at {time}, {n}");
            let value = (!marker).then(|| avro(&key, "foreign", time, 0));
            api.set(&key, "before").await?.expect(200);
            let at = writer.write_at(time, None, key.as_bytes(), value.as_deref(), None).await?;
            for node in &cluster.nodes {
                node.has(&key, if *marker { None } else { Some("foreign") }).await;
                let answer = node.api().get(&key).await?;
                // A tombstone of times past may be forgotten at once.
                assert!(*marker || answer.position() == at, "{answer}");
                let own_time = kind == "CreateTime" && !marker;
                let said = answer.header("bitacora-timestamp");
                assert!(!own_time || said == Some(&time.to_string()), "{answer}");
            }
            // A later write wins, whatever its time.
            match then {
                Some(value) => api.set(&key, value).await?.expect(200),
                None => api.delete(&key).await?.expect(200),
            };
            expected.insert(key, *then);
        }
        // And what nobody wrote after.
        let key = format!("left at {time}");
        writer.write_at(time, None, key.as_bytes(), Some(&avro(&key, "left", time, 0)), None).await?;
        expected.insert(key, Some("left"));
    }
    for (n, number) in [i64::MIN, i64::MIN + 1, -2, -1, 0, 1, LATER, i64::MAX].into_iter().enumerate() {
        let key = format!("timestamp {number}");
        writer.write_record(&KeyValue { timestamp: number, ..KeyValue::new(&key, "value") }).await?;
        expected.insert(key, Some("value"));
        let key = format!("ttl {number}");
        writer.write_record(&KeyValue { ttl: number, ..KeyValue::new(&key, "value") }).await?;
        expected.insert(key, if number == 0 || number >= LATER { Some("value") } else { None });
        let key = format!("ttl {number}, and a write");
        let both = avro(&key, "value", number, number);
        writer.write_at(times[n % 4], None, key.as_bytes(), Some(&both), None).await?;
        api.set(&key, "later").await?.expect(200);
        expected.insert(key, Some("later"));
    }
    // Conditions of a foreign hand. Those that name what comes after them are no records.
    let (trim, repair) = ("bitacora-trim", "bitacora-repair");
    let headers = [
        ("a trim of the future", trim, "9000:9223372036854775807", true),
        ("a trim of the last offset", trim, "9223372036854775807:9223372036854775807", true),
        ("a trim of a negative offset", trim, "-1:9223372036854775807", true),
        ("a repair of the future", repair, "9000:5:9223372036854775807", false),
        (
            "a repair of the last offset",
            repair,
            "9223372036854775807:9223372036854775807:9223372036854775807",
            false,
        ),
        ("a repair of a negative offset", repair, "-9223372036854775808:0:9223372036854775807", false),
    ];
    for (key, header, text, tombstone) in headers {
        api.set(key, "value").await?.expect(200);
        let value = (!tombstone).then(|| avro(key, "not this", 0, 0));
        writer.write_at(LATER, None, key.as_bytes(), value.as_deref(), Some((header, text))).await?;
        expected.insert(key.to_owned(), Some("value"));
    }
    let poison = headers.len() as f64;
    for (n, time) in [i64::MIN, -1, i64::MAX].into_iter().enumerate() {
        // Something earlier than that at offset 0 is there: without effect.
        let key = format!("a late repair {n}");
        api.set(&key, "value").await?.expect(200);
        let text = format!("0:{time}:{}", i64::MAX);
        let value = avro(&key, "not this", time, 0);
        writer.write_at(times[n], None, key.as_bytes(), Some(&value), Some((repair, &text))).await?;
        expected.insert(key, Some("value"));
        // Nothing is there: it has effect, and the next write replaces it.
        for then in [None, Some("later")] {
            let key = format!("a repair {n}, {then:?}");
            let value = avro(&key, "repaired", time, 0);
            writer.write_at(times[n], None, key.as_bytes(), Some(&value), Some((repair, &text))).await?;
            if let Some(value) = then {
                api.set(&key, value).await?.expect(200);
            }
            expected.insert(key, Some(then.unwrap_or("repaired")));
        }
    }
    // A foreign partitioner: the later write timestamp decides between partitions.
    for (time, deletes) in [(LATER, false), (LATER, true), (1, false), (-1, false)] {
        let key = format!("astray at {time}, deleted: {deletes}");
        let wrong = (java_partition(key.as_bytes(), 4) + 1) % 4;
        api.set(&key, "first").await?.expect(200);
        let value = avro(&key, "astray", time, if deletes { -1 } else { 0 });
        writer.write_at(time, Some(wrong), key.as_bytes(), Some(&value), None).await?;
        api.set(&key, "last").await?.expect(200);
        let astray = if deletes { None } else { Some("astray") };
        expected.insert(key, if kind == "CreateTime" && time == LATER { astray } else { Some("last") });
    }
    api.set("the end", "value").await?.expect(200);
    cluster.all_have("the end", Some("value")).await;

    let agree = async |cluster: &Cluster| {
        for (key, value) in &expected {
            cluster.all_have(key, *value).await;
        }
        same_everywhere(cluster).await;
        for node in &cluster.nodes {
            node.api().health().await?.expect(200);
            let metrics = node.api().call(Method::GET, "/metrics").await?.expect(200).text();
            ensure!(!metrics.contains("NaN"), "a metric is no number:\n{metrics}");
            let log = node.log_tail(100_000);
            ensure!(!log.contains("panicked"), "{log}");
        }
        anyhow::Ok(())
    };
    agree(&cluster).await?;
    assert!((cluster.nodes[0].api().metric("bitacora_poison_records_total").await? - poison).abs() < 0.1);
    // Once more from the log, and once from a store.
    for wipe in [true, false] {
        let node = &cluster.nodes[usize::from(wipe)];
        node.terminate(Duration::from_secs(10)).await;
        if wipe {
            node.wipe()?;
        }
        node.spawn()?;
        node.ready().await;
        assert!(resyncs(node).await?.abs() < 0.1, "it distrusts its store");
        let node = cluster.add().await?;
        node.spawn()?;
        node.ready().await;
    }
    cluster.know_each_other(4).await;
    agree(&cluster).await
}

async fn nonsense_does_not_push_the_record_before_it_out_of_the_log(ctx: Ctx) -> Result<()> {
    let mut cluster = ctx.no_nodes(Options::new()).await?;
    // Compacted as soon as Kafka can.
    let config = [
        ("cleanup.policy", "compact"),
        ("message.timestamp.type", "LogAppendTime"),
        ("min.compaction.lag.ms", "5000"),
        ("max.compaction.lag.ms", "6000"),
        ("segment.ms", "1000"),
        ("min.cleanable.dirty.ratio", "0"),
    ];
    cluster.topic.create(1, &config).await?;
    let node = cluster.add().await?;
    node.spawn()?;
    node.ready().await;
    let (api, writer) = (node.api(), cluster.topic.writer()?);
    let mut positions = Vec::new();
    for key in ["set", "deleted"] {
        positions.push(api.set(key, "value").await?.expect(200).position());
    }
    api.delete("deleted").await?.expect(200);
    for key in ["set", "deleted"] {
        writer.write(None, Some(key.as_bytes()), Some(b"nonsense")).await?;
    }
    // Segments are closed by further writes.
    wait::until("Kafka has compacted the topic", Duration::from_secs(120), || async {
        api.set("filler", "value").await.map_err(|error| format!("{error:#}"))?.expect(200);
        let log = cluster.topic.read_all().await.map_err(|error| format!("{error:#}"))?;
        let left = log.iter().filter(|record| positions.contains(&record.position)).count();
        if left == 0 { Ok(()) } else { Err(format!("{left} of {} records are left", log.len())) }
    })
    .await;
    let new = cluster.add().await?;
    new.spawn()?;
    new.ready().await;
    cluster.all_have("set", Some("value")).await;
    cluster.all_have("deleted", None).await;
    let answers = try_join_all(cluster.nodes.iter().map(|node| {
        let api = node.api();
        async move { api.get_own("set").await }
    }));
    for answer in answers.await? {
        assert_eq!(answer.position(), positions[0], "what it was, where it was: {answer}");
    }
    same_everywhere(&cluster).await;
    Ok(())
}

async fn what_a_slow_frozen_and_killed_broker_acknowledged_is_there(ctx: Ctx) -> Result<()> {
    let (broker, proxy) = ctx.own_broker_and_proxy().await?;
    let options = Options::new()
        .brokers(broker.address())
        .env("BROKER_LIST", proxy.address())
        .env("WRITE_TIMEOUT", "1000");
    let cluster = ctx.cluster_with(2, options).await?;
    let (mut acknowledged, mut not_taken, mut unknown) = (BTreeMap::new(), Vec::new(), 0);
    for fault in ["slow", "frozen", "killed"] {
        let done = AtomicBool::new(false);
        // Writes before, during and after the fault.
        let writers = join_all((0..4).map(|writer| {
            let (cluster, done) = (&cluster, &done);
            async move {
                let (api, mut answers) = (cluster.nodes[writer % 2].api(), Vec::new());
                while !done.load(Ordering::Relaxed) {
                    let key = format!("{fault} {writer} {}", answers.len());
                    let answer = api.set(&key, &key).await?;
                    answers.push((key, answer));
                }
                anyhow::Ok(answers)
            }
        }));
        let injected = async {
            match fault {
                "slow" => proxy.slow(200),
                "frozen" => broker.pause().await?,
                _ => broker.stop().await?,
            }
            for node in &cluster.nodes {
                let api = node.api();
                wait::until("a write fails in time", START, || async {
                    let answer = api.set("probe", fault).await.map_err(|error| format!("{error:#}"))?;
                    if answer.status == 503 { Ok(()) } else { Err(answer.to_string()) }
                })
                .await;
            }
            match fault {
                "slow" => proxy.mend(),
                "frozen" => broker.resume().await?,
                _ => broker.start().await?,
            }
            for node in &cluster.nodes {
                let api = node.api();
                wait::until("writes succeed again", START, || async {
                    let answer = api.set("probe", fault).await.map_err(|error| format!("{error:#}"))?;
                    if answer.status == 200 { Ok(()) } else { Err(answer.to_string()) }
                })
                .await;
            }
            done.store(true, Ordering::Relaxed);
            anyhow::Ok(())
        };
        let (answers, injected) = tokio::join!(writers, injected);
        injected?;
        for (key, answer) in answers.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten() {
            if answer.status == 200 {
                acknowledged.insert(key, answer.position());
                continue;
            }
            let answer = answer.expect(503);
            assert!(answer.header("retry-after").is_some(), "{answer}");
            let text = answer.message();
            if text.contains("it has not taken effect") {
                not_taken.push(key);
            } else {
                ensure!(text.contains("it may still take effect"), "{text}");
                unknown += 1;
            }
        }
    }
    println!(
        "one broker: {} writes acknowledged, {} not taken, {unknown} unclear",
        acknowledged.len(),
        not_taken.len()
    );
    ensure!(unknown + not_taken.len() >= 3, "hardly a write failed");
    let log: BTreeMap<_, _> = cluster
        .topic
        .read_all()
        .await?
        .into_iter()
        .map(|record| (record.key_text(), record.position))
        .collect();
    for (key, position) in &acknowledged {
        assert_eq!(log.get(key), Some(position), "{key} was acknowledged");
    }
    for key in &not_taken {
        assert_eq!(log.get(key), None, "{key} was said not to have taken effect");
    }
    for key in acknowledged.keys() {
        cluster.all_have(key, Some(key)).await;
    }
    same_everywhere(&cluster).await;
    drop(cluster);
    broker.remove().await
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
    let ghost = format!("127.0.0.1:{}", frozen.api_port);
    let members = api.status().await?["members"].to_string();
    assert!(members.contains(&ghost), "the answers came only when the ghost was gone: {members}");
    wait::until("the ghost is no member", START, || async {
        for node in [node, other] {
            let members =
                node.api().status().await.map_err(|error| format!("{error:#}"))?["members"].to_string();
            if members.contains(&ghost) {
                return Err(members);
            }
        }
        let members = zk.children("/bitacora/servers").await?;
        if members.contains(&ghost) { Err(format!("{members:?}")) } else { Ok(()) }
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
