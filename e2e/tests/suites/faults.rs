//! Faults on the deployment that has three of everything, under clients that write down what they did and saw.
//!
//! `FAULTS_SECONDS` (180) says for how long, `FAULTS_SEED` repeats a sequence of faults. `FAULTS_MIXED=1` makes the first node one of an
//! earlier version, which is built then.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::deployment::Deployment;
use e2e::history::{self, Final, Kind, Logged, Operation, Outcome};
use e2e::http::{Answer, Api, encode};
use e2e::nemesis::{self, Nemesis};
use e2e::runner::{Ctx, Test};
use e2e::topic::{KeyValue, now_ms};
use e2e::{deployment, digests, tests, versions, wait};
use futures_util::future::join_all;
use reqwest::Method;

pub fn tests() -> Vec<Test> {
    let build = if is_mixed() { Duration::from_secs(1_200) } else { Duration::ZERO };
    let deadline = duration() + build + Duration::from_secs(420);
    tests![Deployment: no_acknowledged_write_is_lost_whatever_fails]
        .into_iter()
        .map(|test| test.within(deadline))
        .chain(tests![Nothing: the_check_sees_every_broken_promise])
        .collect()
}

const CLIENTS: usize = 8;
/// That everybody reads and writes all the time.
const KEYS: usize = 40;
/// Of the keys that a client has written for a short life, it reads so many of the last again and again.
const REMEMBERED: usize = 200;
/// Short, so that what is dead leaves the log during the run.
const DELETE_RETENTION: &str = "90s";
/// Longer than a node waits for an acknowledgement.
const PATIENCE: Duration = Duration::from_secs(8);
/// All is well again that long after the last fault.
const RECOVERY: Duration = Duration::from_secs(120);
/// A node counts as untouched that long after it was well again.
const GRACE: Duration = Duration::from_secs(3);

fn duration() -> Duration {
    let seconds = std::env::var("FAULTS_SECONDS").ok();
    Duration::from_secs(seconds.map_or(180, |text| text.parse().expect("FAULTS_SECONDS is a number")))
}

fn is_mixed() -> bool {
    std::env::var_os("FAULTS_MIXED").is_some()
}

async fn no_acknowledged_write_is_lost_whatever_fails(_: Ctx) -> Result<()> {
    let seed = match std::env::var("FAULTS_SEED") {
        Ok(text) => text.parse().context("FAULTS_SEED is a number")?,
        Err(_) => fastrand::u64(..),
    };
    let deployment = Deployment::ha().with("DELETE_RETENTION", DELETE_RETENTION);
    let outcome = scenario(&deployment, seed).await;
    match outcome {
        Ok(()) => Ok(()),
        Err(error) => {
            let report = deployment.report().await;
            Err(error.context(format!("FAULTS_SEED={seed} repeats the faults\n{report}")))
        }
    }
}

async fn scenario(deployment: &Deployment, seed: u64) -> Result<()> {
    let mut of_this_version = &["node-1", "node-2", "node-3"][..];
    if is_mixed() {
        let older = versions::node_of(super::rolling::EARLIER).await?;
        let image = deployment::image_with(&older, super::rolling::EARLIER).await?;
        deployment.up_of(&image, &["node-1"]).await?;
        of_this_version = &of_this_version[1..];
    }
    deployment.up(&[&["--no-recreate"][..], of_this_version].concat()).await?;
    let run = Run {
        nodes: ["NODE_1_PORT", "NODE_2_PORT", "NODE_3_PORT"].map(|name| Api::new(deployment.port(name))),
        keys: (0..KEYS).map(|i| format!("key-{i}")).collect(),
        short: RefCell::default(),
        began: Instant::now(),
        began_at: now_ms(),
        over: Cell::new(false),
        history: RefCell::default(),
        touched: RefCell::default(),
    };
    let mut nemesis = Nemesis::new(deployment).await?;
    let clients = join_all((0..CLIENTS).map(|client| run.client(client, seed)));
    let (_, injected) = tokio::join!(clients, async {
        let injected = run.inject(&mut nemesis, seed).await;
        run.over.set(true);
        injected
    });
    injected?;
    let keys: Vec<_> = run.keys.iter().cloned().chain(run.short.borrow().iter().cloned()).collect();
    let finals = run.settled(&keys).await?;
    // Those of an earlier version have none.
    let compared = &run.nodes[3 - of_this_version.len()..];
    digests::agree(compared).await?;
    digests::no_alarm(&deployment.compose(&["logs", "--no-color", "--no-log-prefix"]).await?)?;
    let (log, tidied) = run.logged(deployment).await?;
    let history = run.history.into_inner();
    let again = history::check(&history, &log, &finals, &keys)?;
    report(seed, &history, &nemesis.injected, &run.touched.into_inner(), log.len(), again);
    println!(
        "  {} keys that lived for seconds; {} tombstones of trimmers and {} repairs in the log",
        keys.len() - KEYS,
        tidied.trims,
        tidied.repairs
    );
    ensure!(tidied.trims > 0 || duration() < Duration::from_secs(170), "nobody trimmed the log");
    Ok(())
}

/// What trimmers wrote.
#[derive(Default)]
struct Tidied {
    trims: usize,
    repairs: usize,
}

struct Run {
    nodes: [Api; 3],
    keys: Vec<String>,
    /// Keys that were written once, to be deleted or to expire.
    short: RefCell<Vec<String>>,
    began: Instant,
    /// By the clock, ms since the epoch.
    began_at: i64,
    over: Cell<bool>,
    history: RefCell<Vec<Operation>>,
    /// Per node, from when to when a fault touched it, in ms.
    touched: RefCell<Vec<(usize, u64, u64)>>,
}

impl Run {
    fn now(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    async fn client(&self, client: usize, seed: u64) {
        let mut rng = fastrand::Rng::with_seed(seed ^ (client as u64 + 1));
        let (mut count, mut short) = (0, Vec::new());
        let mut set = || {
            count += 1;
            format!("{client}-{count}")
        };
        while !self.over.get() {
            let mut key = self.keys[rng.usize(0..KEYS)].clone();
            let kind = match rng.usize(0..100) {
                0..50 => {
                    if let Some(remembered) = rng.choice(short.iter().rev().take(REMEMBERED))
                        && rng.bool()
                    {
                        key.clone_from(remembered);
                    }
                    Kind::Get
                }
                50..84 => Kind::Set(set()),
                84..92 => {
                    let value = set();
                    key = format!("short-{value}");
                    short.push(key.clone());
                    self.short.borrow_mut().push(key.clone());
                    if rng.bool() { Kind::SetFor(value, rng.u64(500..10_000)) } else { Kind::Set(value) }
                }
                _ => {
                    if let Some(remembered) = rng.choice(short.iter().rev().take(20))
                        && rng.bool()
                    {
                        key.clone_from(remembered);
                    }
                    Kind::Delete
                }
            };
            let node = rng.usize(0..self.nodes.len());
            let began = self.now();
            let outcome = perform(&self.nodes[node], &key, &kind).await;
            let operation = Operation { node, key, kind, began, ended: self.now(), outcome };
            self.history.borrow_mut().push(operation);
            // A pace, so that the log of a long run fits into memory.
            tokio::time::sleep(Duration::from_millis(rng.u64(5..40))).await;
        }
    }

    async fn inject(&self, nemesis: &mut Nemesis<'_>, seed: u64) -> Result<()> {
        let mut rng = fastrand::Rng::with_seed(seed);
        while self.began.elapsed() < duration() {
            tokio::time::sleep(Duration::from_millis(rng.u64(500..4000))).await;
            let faults = nemesis::choose(&mut rng);
            let from = self.now();
            for fault in &faults {
                nemesis.inject(fault).await.with_context(|| fault.to_string())?;
            }
            tokio::time::sleep(Duration::from_millis(rng.u64(500..9000))).await;
            for fault in &faults {
                nemesis.heal(fault).await.with_context(|| format!("the end of: {fault}"))?;
            }
            let services = faults.iter().flat_map(nemesis::Fault::services);
            for node in services.filter_map(|service| service.strip_prefix("node-")) {
                let node = node.parse::<usize>().context("a node's number")? - 1;
                let api = &self.nodes[node];
                wait::until(&format!("node {node} is ready again"), RECOVERY, || async {
                    match api.health().await {
                        Ok(answer) if answer.status == 200 => Ok(()),
                        other => Err(format!("{other:?}")),
                    }
                })
                .await;
                self.touched.borrow_mut().push((node, from, self.now() + GRACE.as_millis() as u64));
            }
        }
        Ok(())
    }

    /// Waits until every node has applied the same log, and returns what each holds.
    async fn settled(&self, keys: &[String]) -> Result<Vec<BTreeMap<String, Final>>> {
        let state = async |api: &Api| {
            let status = api.status().await.map_err(|error| format!("{error:#}"))?;
            let members = status["members"].as_array().map_or(0, Vec::len);
            let partitions = status["partitions"].as_array().cloned().unwrap_or_default();
            let ends: Vec<_> =
                partitions.iter().map(|partition| partition["high_watermark"].clone()).collect();
            if status["caught_up"] == true && members == 3 { Ok(ends) } else { Err(status.to_string()) }
        };
        let all_same = wait::try_until(RECOVERY, || async {
            let mut ends = Vec::new();
            for api in &self.nodes {
                ends.push(state(api).await?);
            }
            if ends.iter().all(|one| *one == ends[0]) { Ok(()) } else { Err(format!("{ends:?}")) }
        });
        all_same.await.map_err(anyhow::Error::msg).context("the cluster has not recovered")?;
        let mut finals = Vec::new();
        for api in &self.nodes {
            let mut held = BTreeMap::new();
            for key in keys {
                let at = self.now();
                let answer = api.get_own(key).await?;
                ensure!(matches!(answer.status, 200 | 404), "{answer}");
                held.insert(key.clone(), Final { value: answer.value(), position: answer.position(), at });
            }
            finals.push(held);
        }
        Ok(finals)
    }

    /// The log without what nodes wrote of their own accord, and how much of that was trimmers'.
    async fn logged(&self, deployment: &Deployment) -> Result<(Vec<Logged>, Tidied)> {
        let (mut logged, mut tidied) = (Vec::new(), Tidied::default());
        for record in deployment.topic().read_all().await? {
            let has = |header: &str| record.headers.iter().any(|(name, _)| name == header);
            if has("bitacora-trim") {
                tidied.trims += 1;
                continue;
            }
            if has("bitacora-repair") {
                tidied.repairs += 1;
                continue;
            }
            let key = record.key_text();
            // No client writes such a key. A trimmer asks a quiet log for its time by one.
            if key.starts_with('\0') {
                continue;
            }
            let decoded = record.value.as_deref().map(KeyValue::from_avro).transpose()?;
            let uuid = decoded.as_ref().map(|record| record.uuid.clone());
            // A ttl of -1 is a delete marker.
            let decoded = decoded.filter(|record| record.ttl != -1);
            let expires = decoded.as_ref().filter(|record| record.ttl > 0);
            let expires = expires.map(|record| (record.ttl - self.began_at).max(0).unsigned_abs());
            let value = decoded.map(|record| record.value);
            logged.push(Logged { position: record.position, key, value, expires, uuid });
        }
        Ok((logged, tidied))
    }
}

async fn perform(api: &Api, key: &str, kind: &Kind) -> Outcome {
    let path = format!("/rpc?key={}", encode(key));
    let call = async {
        match kind {
            Kind::Get => api.call(Method::GET, &path).await,
            Kind::Set(value) => api.set(key, value).await,
            Kind::SetFor(value, ms) => api.set_with(key, value, &format!("&ttl={ms}ms")).await,
            Kind::Delete => api.delete(key).await,
        }
    };
    let answer = match tokio::time::timeout(PATIENCE, call).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return Outcome::Unknown(format!("{error:#}")),
        Err(_) => return Outcome::Unknown("no answer".to_owned()),
    };
    match (kind, answer.status) {
        (Kind::Get, 200 | 404) => Outcome::Read {
            value: answer.value(),
            position: answer.position(),
            local: answer.header("bitacora-source") != Some("peer"),
        },
        (Kind::Set(_) | Kind::SetFor(..) | Kind::Delete, 200) => Outcome::Acknowledged(answer.position()),
        _ if says_not_taken(&answer) => Outcome::NotTaken(answer.to_string()),
        _ => Outcome::Unknown(answer.to_string()),
    }
}

fn says_not_taken(answer: &Answer) -> bool {
    answer.text().contains("has not taken effect")
}

fn report(
    seed: u64,
    history: &[Operation],
    injected: &BTreeMap<String, usize>,
    touched: &[(usize, u64, u64)],
    records: usize,
    again: usize,
) {
    let count = |wanted: fn(&Outcome) -> bool| history.iter().filter(|op| wanted(&op.outcome)).count();
    let faults: Vec<_> = injected.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
    println!(
        "faults, FAULTS_SEED={seed}, {} s: {} injected ({})",
        duration().as_secs(),
        injected.values().sum::<usize>(),
        faults.join(", ")
    );
    println!(
        "  {} operations: {} reads, {} writes acknowledged, {} not taken, {} unclear or unanswered; {records} records in \
         the log, {again} of them twice while under way; 0 promises broken",
        history.len(),
        count(|outcome| matches!(outcome, Outcome::Read { .. })),
        count(|outcome| matches!(outcome, Outcome::Acknowledged(_))),
        count(|outcome| matches!(outcome, Outcome::NotTaken(_))),
        count(|outcome| matches!(outcome, Outcome::Unknown(_))),
    );
    let untouched = |op: &&Operation| !was_touched(touched, op.node, op.began, op.ended);
    for (what, is_read) in [("reads", true), ("writes", false)] {
        let calls: Vec<_> =
            history.iter().filter(untouched).filter(|op| (op.kind == Kind::Get) == is_read).collect();
        let failed = |op: &&&Operation| matches!(op.outcome, Outcome::NotTaken(_) | Outcome::Unknown(_));
        let longest = calls.iter().map(|op| op.ended - op.began).max().unwrap_or(0);
        println!(
            "  on nodes that no fault touched: {} {what}, {} failed, the longest took {longest} ms, the longest time without one that \
             succeeded was {} ms",
            calls.len(),
            calls.iter().filter(failed).count(),
            longest_without(&calls, touched)
        );
    }
}

/// Whether a fault touched a node between two moments.
fn was_touched(touched: &[(usize, u64, u64)], node: usize, began: u64, ended: u64) -> bool {
    touched.iter().any(|(of, from, to)| *of == node && began <= *to && ended >= *from)
}

/// The longest time in which clients tried in vain, of all nodes: from the beginning of a call that failed, or took long, until
/// the end of the first that succeeded, in ms. No fault touched the node meanwhile.
fn longest_without(calls: &[&Operation], touched: &[(usize, u64, u64)]) -> u64 {
    let mut longest = 0;
    for node in 0..3 {
        let mut of_node: Vec<_> = calls.iter().filter(|op| op.node == node).collect();
        of_node.sort_by_key(|op| op.ended);
        // Since when somebody has waited.
        let mut since: Option<u64> = None;
        for operation in of_node {
            since = since.filter(|since| !was_touched(touched, node, *since, operation.ended));
            let began = since.map_or(operation.began, |since| since.min(operation.began));
            let succeeded = matches!(operation.outcome, Outcome::Read { .. } | Outcome::Acknowledged(_));
            if succeeded {
                longest = longest.max(operation.ended - began);
            }
            since = (!succeeded).then_some(began);
        }
    }
    longest
}

/// A check that never fails proves nothing: each promise is broken once.
async fn the_check_sees_every_broken_promise(_: Ctx) -> Result<()> {
    use e2e::http::Position;
    let at = |offset| Position { partition: 0, offset };
    let key = || "key".to_owned();
    let operation =
        |kind, began, ended, outcome| Operation { node: 0, key: key(), kind, began, ended, outcome };
    let set = |value: &str, began, outcome| operation(Kind::Set(value.to_owned()), began, began + 1, outcome);
    let read = |value: Option<&str>, offset, began| {
        let outcome = Outcome::Read { value: value.map(str::to_owned), position: at(offset), local: true };
        operation(Kind::Get, began, began + 1, outcome)
    };
    let logged = |offset, value: Option<&str>| Logged {
        position: at(offset),
        key: key(),
        value: value.map(str::to_owned),
        expires: None,
        uuid: None,
    };
    let of_one = |log: &[Logged]| -> Vec<Logged> {
        log.iter().map(|record| Logged { uuid: Some("u".to_owned()), ..record.clone() }).collect()
    };
    let ends = |value: Option<&str>, offset| {
        vec![BTreeMap::from([(
            key(),
            Final { value: value.map(str::to_owned), position: at(offset), at: 9_000 },
        )])]
    };
    let unknown = || Outcome::Unknown(String::new());
    let history = vec![
        set("a", 0, Outcome::Acknowledged(at(0))),
        set("b", 10, unknown()),
        set("c", 12, Outcome::NotTaken(String::new())),
        read(Some("a"), 0, 20),
        operation(Kind::Delete, 30, 31, Outcome::Acknowledged(at(2))),
        read(None, 2, 40),
    ];
    let log = vec![logged(0, Some("a")), logged(1, Some("b")), logged(2, None)];
    let keys = vec![key()];
    let check = |history: &[Operation], log: &[Logged], finals: &[BTreeMap<String, Final>]| {
        history::check(history, log, finals, &keys).map_err(|error| error.to_string())
    };
    let sound = check(&history, &log, &ends(None, 2));
    ensure!(sound == Ok(0), "{sound:?}");
    // Twice while it was under way.
    let retried =
        [&log[..1], &of_one(&[logged(1, Some("b")), logged(2, Some("b"))])[..], &[logged(3, None)]].concat();
    let late = |mut history: Vec<Operation>| {
        history[4].outcome = Outcome::Acknowledged(at(3));
        history[5] = read(None, 3, 40);
        history
    };
    let sound = check(&late(history.clone()), &retried, &ends(None, 3));
    ensure!(sound == Ok(1), "{sound:?}");
    // What is dead may have been trimmed.
    let sound = check(&history, &log, &ends(None, 7));
    ensure!(sound == Ok(0), "{sound:?}");
    let changed = |index: usize, operation: Operation| {
        let mut history = history.clone();
        history[index] = operation;
        history
    };
    // What is set for a while is gone in the end.
    let until = |expires| {
        let mut log = log[..2].to_vec();
        log[1].expires = Some(expires);
        log
    };
    let seen = changed(4, read(Some("b"), 1, 30))[..5].to_vec();
    let sound = check(&seen, &until(31), &ends(None, 1));
    ensure!(sound == Ok(0), "{sound:?}");
    let broken: Vec<(&str, Vec<Operation>, Vec<Logged>, Vec<BTreeMap<String, Final>>)> = vec![
        ("acknowledged and lost", history.clone(), log[1..].to_vec(), ends(None, 2)),
        ("nobody wrote", changed(1, read(None, 2, 50)), log.clone(), ends(None, 2)),
        ("nobody deleted", changed(4, read(None, 2, 50)), log.clone(), ends(None, 2)),
        (
            "said not to have taken effect",
            history.clone(),
            [&log[..], &[logged(3, Some("c"))]].concat(),
            ends(Some("c"), 3),
        ),
        (
            "twice in the log",
            history.clone(),
            [&log[..], &[logged(3, Some("b"))]].concat(),
            ends(Some("b"), 3),
        ),
        (
            "acknowledged, and written again",
            history.clone(),
            [&of_one(&[logged(0, Some("a"))])[..], &log[1..], &of_one(&[logged(3, Some("a"))])].concat(),
            ends(Some("a"), 3),
        ),
        (
            "a read of what the log does not hold",
            changed(3, read(Some("a"), 1, 20)),
            log.clone(),
            ends(None, 2),
        ),
        ("read before it was written", changed(1, set("b", 100, unknown())), log.clone(), ends(None, 2)),
        ("went back", changed(5, read(Some("b"), 1, 5000)), log.clone(), ends(None, 2)),
        ("read although it has expired", seen.clone(), until(30), ends(None, 1)),
        ("ends with", seen.clone(), until(31), ends(Some("b"), 1)),
        ("ends with", seen, until(100_000), ends(None, 1)),
        ("ends with", history.clone(), log.clone(), ends(None, 1)),
        ("ends with", history.clone(), log.clone(), ends(Some("b"), 1)),
        ("ends with", history.clone(), log.clone(), ends(Some("a"), 2)),
    ];
    for (what, mut history, log, finals) in broken {
        if what == "read before it was written" {
            history.push(read(Some("b"), 1, 50));
        }
        if what == "went back" {
            history.push(read(None, 2, 4000));
        }
        let error = check(&history, &log, &finals).err().with_context(|| format!("{what}: not seen"))?;
        ensure!(error.contains(what), "{what}: {error}");
    }
    Ok(())
}
