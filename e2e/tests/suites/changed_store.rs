//! A store whose files were changed behind its node's back: `bitacora diff` names the keys, also while others are written.
//!
//! `CHANGED_STORE_RECORDS` (20000) says of how many.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Node, Options, START};
use e2e::command_line::{CommandLine, Said};
use e2e::http::Api;
use e2e::runner::{Ctx, Test};
use e2e::topic::KeyValue;
use e2e::{digests, tests, wait};
use futures_util::future::ready;
use futures_util::{StreamExt, TryStreamExt, stream};
use heed::types::Bytes;
use heed::{Database, EnvOpenOptions};

pub fn tests() -> Vec<Test> {
    // A thousand records a second are filled in by the slowest machine.
    let deadline = Duration::from_secs(300 + records() as u64 / 1_000);
    tests![Servers: the_keys_that_a_disk_changed_are_named]
        .into_iter()
        .map(|test| test.within(deadline))
        .collect()
}

const FLIPPED: &str = "key-00777";
const REMOVED: &str = "key-12345";
const ADDED: &str = "key-15000x";
/// The node's own databases, and room for more.
const DATABASES: u32 = 16;

fn records() -> usize {
    let records = std::env::var("CHANGED_STORE_RECORDS").ok();
    records.map_or(20_000, |text| text.parse().expect("CHANGED_STORE_RECORDS is a number"))
}

/// Changes what a stopped node holds: a bit of a value, a key that goes, and one that comes. Its digests stay as they are.
fn change(node: &Node) -> Result<()> {
    let store = node.data_dir.join("store");
    let current = match std::fs::read_to_string(store.join("CURRENT")) {
        Ok(number) => number.trim().to_owned(),
        Err(_) => "1".to_owned(),
    };
    let mut options = EnvOpenOptions::new();
    options.max_dbs(DATABASES).map_size(1 << 34);
    // SAFETY: the node has ended, and nobody else opens its files.
    let env = unsafe { options.open(store.join(current)) }.context("opening the store")?;
    let mut txn = env.write_txn()?;
    let records: Option<Database<Bytes, Bytes>> = env.open_database(&txn, Some("records"))?;
    let records = records.context("the store has records")?;
    let mut flipped = records.get(&txn, FLIPPED.as_bytes())?.context("it is there")?.to_vec();
    *flipped.last_mut().context("it has bytes")? ^= 1;
    records.put(&mut txn, FLIPPED.as_bytes(), &flipped)?;
    ensure!(records.delete(&mut txn, REMOVED.as_bytes())?, "it was there");
    let another = records.get(&txn, b"key-15000")?.context("it is there")?.to_vec();
    records.put(&mut txn, ADDED.as_bytes(), &another)?;
    txn.commit()?;
    env.prepare_for_closing().wait();
    Ok(())
}

/// Writes keys of its own and others' until it is told to end; how many.
async fn write(api: &Api, done: &AtomicBool) -> Result<u64> {
    let written = AtomicU64::new(0);
    let written = &written;
    let write = |n: usize| async move {
        let key = format!("key-{:05}", 2_000 + n * 7 % 9_000);
        api.set(&key, &format!("again {n}")).await?.expect(200);
        written.fetch_add(1, Ordering::Relaxed);
        anyhow::Ok(())
    };
    let numbers = stream::iter(0..).take_while(|_| ready(!done.load(Ordering::Relaxed)));
    numbers.map(write).buffer_unordered(16).try_for_each(|()| async { Ok(()) }).await?;
    Ok(written.load(Ordering::Relaxed))
}

/// What the command names: keys, and what each node holds of them.
fn named(said: &Said) -> Result<BTreeSet<(String, bool, bool)>> {
    let lines = said.json()?;
    let of = |line: &serde_json::Value| {
        let key = line["key"].as_str().unwrap_or_default().to_owned();
        (key, !line["a"].is_null(), !line["b"].is_null())
    };
    Ok(lines.iter().map(of).collect())
}

async fn the_keys_that_a_disk_changed_are_named(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster_with(2, Options::new()).await?;
    let [good, changed] = &cluster.nodes[..] else { unreachable!("two nodes") };
    let record = |n| KeyValue::new(&format!("key-{n:05}"), &format!("value {n:05}"));
    let count = records();
    cluster.topic.fill(count, 5_000, record).await?;
    for node in &cluster.nodes {
        wait::until("it has applied all", START + Duration::from_secs(count as u64 / 20_000), || async {
            let status = node.api().status().await.map_err(|error| format!("{error:#}"))?;
            if status["store"]["records"] == count { Ok(()) } else { Err(status.to_string()) }
        })
        .await;
    }
    let bitacora = CommandLine::new(&ctx, &[]);
    let urls = [good.http_url(), changed.http_url()];
    let diff = ["diff", &urls[0], &urls[1], "--output", "json"];
    let said = bitacora.run(&diff).await?.expect(0);
    ensure!(said.stdout.is_empty() && said.stderr.contains("hold the same"), "{said:?}");

    changed.terminate(START).await;
    change(changed)?;
    changed.spawn()?;
    changed.ready().await;
    let key = |key: &str, a, b| (key.to_owned(), a, b);
    let expected: BTreeSet<_> =
        [key(FLIPPED, true, true), key(REMOVED, true, false), key(ADDED, false, true)].into();
    let began = Instant::now();
    let said = bitacora.run(&diff).await?.expect(8);
    let took = began.elapsed();
    assert_eq!(named(&said)?, expected, "{said:?}");
    println!(
        "  diff of {count} keys: {} named in {:.2} s; {}",
        expected.len(),
        took.as_secs_f64(),
        said.stderr.trim()
    );
    let flipped = said.json()?.into_iter().find(|line| line["key"] == FLIPPED).context("it is named")?;
    ensure!(flipped["a"]["position"] == flipped["b"]["position"], "the same record: {flipped}");
    ensure!(flipped["a"]["digest"] != flipped["b"]["digest"], "and other bytes: {flipped}");
    // One partition alone.
    let partition = flipped["partition"].to_string();
    let of_one = [&diff[..], &["--partition", &partition]].concat();
    let one = named(&bitacora.run(&of_one).await?.expect(8))?;
    ensure!(one.contains(&key(FLIPPED, true, true)) && one.is_subset(&expected), "{one:?}");

    // While both are written to.
    let (done, api) = (AtomicBool::new(false), good.api());
    let compare = async {
        let began = Instant::now();
        let mut runs = Vec::new();
        while began.elapsed() < Duration::from_secs(5) {
            runs.push(bitacora.run(&diff).await?);
        }
        done.store(true, Ordering::Relaxed);
        anyhow::Ok(runs)
    };
    let (written, runs) = tokio::join!(write(&api, &done), compare);
    let (written, runs) = (written?, runs?);
    println!("  {} times while {written} writes were done: the same keys", runs.len());
    ensure!(written > 100, "there were writes: {written}");
    for said in runs {
        assert_eq!(named(&said)?, expected, "{said:?}");
        assert_eq!(said.code, 8, "{said:?}");
    }

    // The digest that is kept is that of what was applied, and of the changes it knows nothing.
    let differs = "bitacora_digest_differs";
    digests::agree(&[good.api(), changed.api()]).await?;
    // Until such a key is written again.
    good.api().set(FLIPPED, "written again").await?.expect(200);
    wait::until("the digests differ", Duration::from_secs(60), || async {
        let count = changed.api().metric(differs).await.map_err(|error| format!("{error:#}"))?;
        if count > 0.5 { Ok(()) } else { Err(format!("{differs} is {count}")) }
    })
    .await;

    // As OPERATIONS.md has it.
    changed.terminate(START).await;
    changed.wipe()?;
    changed.spawn()?;
    changed.ready().await;
    let said = bitacora.run(&diff).await?.expect(0);
    ensure!(said.stdout.is_empty(), "{said:?}");
    Ok(())
}
