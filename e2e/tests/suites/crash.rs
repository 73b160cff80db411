//! kill -9 at random moments under load: the store has no gap, goes back behind nothing that was served, and ends where
//! the log does.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Node, Options, START};
use e2e::http::{Api, Position};
use e2e::runner::{Ctx, Test};
use e2e::topic::KeyValue;
use e2e::{digests, tests, wait};
use futures_util::future::try_join_all;
use futures_util::{StreamExt, TryStreamExt, stream};

pub fn tests() -> Vec<Test> {
    tests![
        Servers: a_node_killed_under_load_never_goes_back,
            a_node_killed_while_restoring_ends_with_all_data
    ]
}

const ROUNDS: usize = 12;
const KEYS: usize = 24;

/// SplitMix64, so that a run can be had again with its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }
}

/// What a key was last written to, and where that is in the log.
type Acknowledged = HashMap<String, (Option<String>, Position)>;

/// Writes one key over and over, one write at a time, each acknowledged.
async fn write(api: &Api, key: String, done: &AtomicBool) -> Result<(String, (Option<String>, Position))> {
    let mut last = None;
    for count in 0_u64.. {
        let (value, answer) = if count % 7 == 6 {
            (None, api.delete(&key).await?)
        } else {
            let value = format!("{key} {count}");
            let answer = api.set(&key, &value).await?;
            (Some(value), answer)
        };
        last = Some((value, answer.expect(200).position()));
        if done.load(Ordering::Relaxed) {
            break;
        }
    }
    Ok((key, last.context("nothing was written")?))
}

/// Reads all keys over and over until the node is gone; the highest position that each was seen at.
async fn read(api: &Api) -> HashMap<String, Position> {
    let mut seen: HashMap<String, Position> = HashMap::new();
    for i in (0..KEYS).cycle() {
        let key = format!("key-{i}");
        let Ok(answer) = api.get_own(&key).await else { return seen };
        if answer.header("bitacora-timestamp").is_some() {
            let position = answer.position();
            let last = seen.entry(key).or_insert(position);
            assert!(position.offset >= last.offset, "{answer} after {last:?}");
            *last = position;
        }
    }
    seen
}

async fn applied(node: &Node) -> Result<HashMap<i64, i64>, String> {
    let status = node.api().status().await.map_err(|error| format!("{error:#}"))?;
    let partitions = status["partitions"].as_array().filter(|known| !known.is_empty());
    let partitions = partitions.ok_or_else(|| status.to_string())?;
    Ok(partitions.iter().filter_map(|p| Some((p["partition"].as_i64()?, p["applied"].as_i64()?))).collect())
}

fn seed() -> Result<u64> {
    let seed = match std::env::var("E2E_SEED") {
        Ok(seed) => seed.parse().context("E2E_SEED is a number")?,
        Err(_) => e2e::topic::now_ms().unsigned_abs(),
    };
    println!("crash: E2E_SEED={seed}");
    Ok(seed)
}

async fn a_node_killed_under_load_never_goes_back(ctx: Ctx) -> Result<()> {
    let seed = seed()?;
    let mut random = Random(seed);
    let cluster = ctx.cluster_with(2, Options::new()).await?;
    let [killed, writer] = &cluster.nodes[..] else { unreachable!("two nodes") };
    let mut seen: HashMap<String, Position> = HashMap::new();
    for round in 0..ROUNDS {
        let done = AtomicBool::new(false);
        let (reader, api) = (killed.api(), writer.api());
        let writing = try_join_all((0..KEYS).map(|i| write(&api, format!("key-{i}"), &done)));
        // Also while it starts and catches up: the moment counts from the first that it listens.
        let pause = Duration::from_millis(random.below(700));
        // Where the writers end with the node, nothing comes after the batch that it died with to hide its loss.
        let go_on = round % 3 == 2;
        let kill = async {
            tokio::time::sleep(pause).await;
            done.store(!go_on, Ordering::Relaxed);
            killed.kill();
        };
        let crash = async {
            let (served, ()) = tokio::join!(read(&reader), kill);
            killed.spawn()?;
            let after = wait::until("it tells how far it is", START, || applied(killed)).await;
            done.store(true, Ordering::Relaxed);
            anyhow::Ok((served, after))
        };
        let (written, crashed) = tokio::join!(writing, crash);
        let (served, after) = crashed?;
        let what = format!("seed {seed}, round {round}, killed after {pause:?}");
        for (key, position) in &served {
            let applied = after.get(&i64::from(position.partition)).copied().unwrap_or(-1);
            ensure!(
                applied >= position.offset,
                "{what}: {key} was served at {position:?}, then {applied} is applied"
            );
        }
        seen.extend(served);
        let written: Acknowledged = written?.into_iter().collect();
        killed.ready().await;
        for (key, (value, position)) in &written {
            wait::until(&format!("{what}: {key} is as it was last written"), START, || async {
                let answer = killed.api().get_own(key).await.map_err(|error| format!("{error:#}"))?;
                if answer.status == 503 {
                    return Err(answer.to_string());
                }
                let here = answer.position();
                if let Some(before) = seen.get(key) {
                    assert!(here.offset >= before.offset, "{what}: {key} was served at {before:?}: {answer}");
                }
                if here == *position && answer.value() == *value { Ok(()) } else { Err(answer.to_string()) }
            })
            .await;
        }
        let status = killed.api().status().await?;
        assert_eq!(status["store"]["records"], KEYS, "{what}: {status}");
        assert!(
            killed.api().metric("bitacora_resyncs_total").await?.abs() < 0.1,
            "{what}: the store was whole"
        );
    }
    digests::agree(&[killed.api(), writer.api()]).await
}

const RECORDS: usize = 25_000;

async fn a_node_killed_while_restoring_ends_with_all_data(ctx: Ctx) -> Result<()> {
    let seed = seed()?;
    let mut random = Random(seed);
    let cluster = ctx.cluster_with(2, Options::new().env("SNAPSHOT_RATE", "8MiB")).await?;
    let [killed, other] = &cluster.nodes[..] else { unreachable!("two nodes") };
    let writer = cluster.topic.writer()?;
    let records =
        |what: String| (0..RECORDS).map(move |i| KeyValue::new(&format!("key-{i}"), &format!("{what} {i}")));
    let fill = async |what: &str| {
        let writes = stream::iter(records(what.to_owned()));
        let writes = writes.map(|record| async {
            let record = record;
            writer.write_record(&record).await
        });
        writes.buffer_unordered(5_000).try_for_each(|_| async { Ok(()) }).await
    };
    for (n, (by, what)) in [("auto", "first"), ("never", "second")].into_iter().enumerate() {
        fill(what).await?;
        other.has(&format!("key-{}", RECORDS - 1), Some(&format!("{what} {}", RECORDS - 1))).await;
        killed.kill();
        killed.wipe()?;
        killed.set_env("SNAPSHOT", by);
        for round in 0..5 {
            killed.spawn()?;
            let pause = Duration::from_millis(random.below(3000));
            let end = tokio::time::Instant::now() + pause;
            // A store that is not whole says nothing.
            while let Ok(answer) = tokio::time::timeout_at(end, killed.api().get_own("key-7")).await {
                let Ok(answer) = answer else { continue };
                let fine = answer.status == 503 || answer.value() == Some(format!("{what} 7"));
                ensure!(fine, "seed {seed}, round {round}, {by}, killed after {pause:?}: {answer}");
            }
            killed.kill();
        }
        killed.spawn()?;
        killed.ready().await;
        for i in (0..RECORDS).step_by(97) {
            killed.has(&format!("key-{i}"), Some(&format!("{what} {i}"))).await;
        }
        let status = killed.api().status().await?;
        assert_eq!(status["store"]["records"], RECORDS, "seed {seed}, {by}: {status}");
        let folders = std::fs::read_dir(killed.data_dir.join("store"))?.flatten();
        let folders = folders.filter(|entry| entry.path().is_dir()).count();
        assert_eq!(folders, 1, "seed {seed}, {by}, {n}: something is left on the disk");
    }
    Ok(())
}
