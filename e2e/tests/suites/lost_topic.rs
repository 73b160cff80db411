//! The topic is lost: the cluster comes back from a backup, by the commands of `monitoring/OPERATIONS.md`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bitacora_client::Record;
use e2e::cluster::{Node, Options, cli_binary, node_binary};
use e2e::runner::{Ctx, Test};
use e2e::{tests, wait};
use futures_util::future::try_join_all;
use reqwest::Method;

use super::command_line::records;
use super::resync::recreate;

pub fn tests() -> Vec<Test> {
    tests![Servers: the_cluster_comes_back_from_a_backup]
}

const PROCEDURES: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../monitoring/OPERATIONS.md"));
const HEADING: &str = "## Backups, and a topic that is lost\n";
const SOON: Duration = Duration::from_secs(60);
const KEYS: usize = 1_600;
/// Writes under way at a time.
const LANES: usize = 16;
/// By how much an expiry may be another after a way through time spans; an import takes seconds.
const EXPIRY_MS: i64 = 30_000;

/// The stand-in of an object store's command line: `aws s3 cp FROM TO`, one of which is `-`.
const OBJECT_STORE: &str = r#"#!/bin/sh
set -eu
[ "$1 $2" = "s3 cp" ]
case "$3 $4" in
    "- s3://"*) cat > "$(basename "$4").begun" && mv "$(basename "$4").begun" "$(basename "$4")" ;;
    "s3://"*" -") cat "$(basename "$3")" ;;
    *) echo "unexpected: $*" >&2; exit 2 ;;
esac
"#;

/// The commands of the section's blocks, in turn.
fn commands() -> Vec<&'static str> {
    let (_, section) = PROCEDURES.split_once(HEADING).expect("the section is there");
    let section = section.split_once("\n## ").map_or(section, |(section, _)| section);
    let blocks = section.split("```sh\n").skip(1);
    blocks.map(|block| block.split_once("```").expect("a block ends").0).collect()
}

/// Runs commands as an operator would: in a shell, with the programs in the path.
async fn shell(dir: &Path, node: &Node, commands: &str) -> Result<String> {
    let mut shell = tokio::process::Command::new("bash");
    let path = format!("{}:{}", dir.join("bin").display(), std::env::var("PATH")?);
    shell.args(["-e", "-c", commands]).current_dir(dir).env("PATH", path).env("NODE", node.http_url());
    let output = tokio::time::timeout(SOON, shell.kill_on_drop(true).output()).await??;
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{commands}ended with {}:\n{stderr}", output.status);
    Ok(stderr)
}

async fn programs(dir: &Path) -> Result<()> {
    let bin = dir.join("bin");
    fs::create_dir(&bin)?;
    std::os::unix::fs::symlink(node_binary().await?, bin.join("bitacora-node"))?;
    std::os::unix::fs::symlink(cli_binary().await?, bin.join("bitacora"))?;
    fs::write(bin.join("aws"), OBJECT_STORE)?;
    Ok(fs::set_permissions(bin.join("aws"), fs::Permissions::from_mode(0o755))?)
}

/// Keys of all kinds: for ever, to expire, expired, deleted; with what stumbles in files.
async fn fill(node: &Node) -> Result<()> {
    let lanes = (0..LANES).map(async |lane| {
        for i in (lane..KEYS).step_by(LANES) {
            write(node, i).await?;
        }
        anyhow::Ok(())
    });
    try_join_all(lanes).await.map(drop)
}

async fn write(node: &Node, i: usize) -> Result<()> {
    let mut path = format!("/rpc?key=key-{i}&value={}", e2e::http::encode(&value(i)));
    match i % 4 {
        1 => path.push_str("&ttl=1d"),
        2 if i % 8 == 2 => path.push_str("&ttl=1s"),
        _ => {}
    }
    node.api().call(Method::POST, &path).await?.expect(200);
    if i % 16 == 3 {
        node.api().delete(&format!("key-{i}")).await?.expect(200);
    }
    Ok(())
}

fn value(i: usize) -> String {
    format!("größe {i}, \"quoted\"\nand {}", "v".repeat(i % 100))
}

/// What is there, by key, once the short-lived keys are gone.
async fn content(node: &Node) -> Result<BTreeMap<String, Record>> {
    Ok(records(node, "").await?.into_iter().map(|record| (record.key.clone(), record)).collect())
}

fn same(before: &BTreeMap<String, Record>, after: &BTreeMap<String, Record>) -> Result<(), String> {
    if before.len() != after.len() {
        return Err(format!("{} records, not {}", after.len(), before.len()));
    }
    for (key, before) in before {
        let Some(after) = after.get(key) else { return Err(format!("{key} is missing")) };
        let is_same = before.value == after.value
            && (before.ttl == 0) == (after.ttl == 0)
            && (before.ttl - after.ttl).abs() < EXPIRY_MS;
        if !is_same {
            return Err(format!("{after:?}, not {before:?}"));
        }
    }
    Ok(())
}

async fn holds(node: &Node, expected: &BTreeMap<String, Record>) {
    wait::until(&format!("{} holds what there was", node.name), SOON, || async {
        same(expected, &content(node).await.map_err(|error| format!("{error:#}"))?)
    })
    .await;
}

async fn the_cluster_comes_back_from_a_backup(ctx: Ctx) -> Result<()> {
    let [backup, come_back] = commands()[..] else { panic!("two blocks of commands") };
    programs(&ctx.dir).await?;
    let cluster = ctx.cluster_with(2, Options::new()).await?;
    let [first, second] = &cluster.nodes[..] else { unreachable!("two nodes") };
    fill(first).await?;
    let expected = KEYS - KEYS / 16 - KEYS / 8;
    wait::until("what has no time left is gone", SOON, || async {
        let there = content(second).await.map_err(|error| format!("{error:#}"))?.len();
        if there == expected { Ok(()) } else { Err(format!("{there}, not {expected}")) }
    })
    .await;
    let before = content(second).await?;
    let told = shell(&ctx.dir, second, backup).await?;
    ensure!(told.contains(&cluster.topic.name), "{told}");
    // What came after the backup is in the folder of a node that was stopped, and only there.
    first.api().set("after the backup", "value").await?.expect(200);
    second.has("after the backup", Some("value")).await;
    let newest = content(second).await?;

    for node in &cluster.nodes {
        node.terminate(SOON).await;
    }
    recreate(&cluster.topic).await?;
    let kept = ctx.dir.join("kept");
    fs::rename(&second.data_dir, &kept).context("keeping a data folder")?;
    first.wipe()?;
    for node in &cluster.nodes {
        node.spawn()?;
    }
    cluster.formed().await;
    ensure!(content(first).await?.is_empty(), "the topic is empty");

    let told = shell(&ctx.dir, first, come_back).await?;
    ensure!(told.contains(&format!("{} records of ", before.len())), "{told}");
    for node in &cluster.nodes {
        holds(node, &before).await;
    }
    // A node that runs is left alone; a folder that was kept has all.
    let in_use = format!("bitacora-node export --data-dir '{}'", first.data_dir.display());
    let error = shell(&ctx.dir, first, &in_use).await.expect_err("a node uses it").to_string();
    ensure!(error.contains("in use by another process"), "{error}");
    let kept = format!(
        "set -o pipefail; bitacora-node export --data-dir '{}' | bitacora --http \"$NODE\" import -",
        kept.display()
    );
    shell(&ctx.dir, second, &kept).await?;
    for node in &cluster.nodes {
        holds(node, &newest).await;
    }
    cluster.same_everywhere().await;
    Ok(())
}
