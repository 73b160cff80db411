//! Files of Avro go to and come from another program's library, Python's fastavro, as they are.

use std::collections::BTreeMap;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use e2e::command_line::CommandLine;
use e2e::runner::{Ctx, Test};
use e2e::topic::now_ms;
use e2e::{python, tests};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use super::command_line::{holds, one_node, records, write};

pub fn tests() -> Vec<Test> {
    tests![ServersAndPython: fastavro_reads_what_is_exported, what_fastavro_writes_is_imported]
}

/// Several blocks of a file.
const RECORDS: usize = 3_000;
const DAY_MS: i64 = 24 * 60 * 60 * 1000;
const CODECS: [&str; 2] = ["null", "deflate"];

fn key(prefix: &str, i: usize) -> String {
    format!("{prefix}:{i:05} ü")
}

fn value(i: usize) -> String {
    match i % 5 {
        0 => String::new(),
        1 => format!("{i}, \"quoted\"\r\ntwo lines"),
        2 => format!("größe {i} 🔑"),
        _ => format!("{i} {}", "v".repeat(i % 300)),
    }
}

/// Calls `container_file.py` with these arguments; returns what it prints.
async fn container_file(ctx: &Ctx, arguments: &[&str], stdin: &[u8]) -> Result<Vec<u8>> {
    let mut command = python::script("avro", "container_file.py").await?;
    command.args(arguments).current_dir(&ctx.dir);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("running python3")?;
    let mut input = child.stdin.take().context("its stdin is a pipe")?;
    let feed = async {
        // It may end before it has read all; its status tells.
        let _ = input.write_all(stdin).await;
        drop(input);
    };
    let ((), output) = tokio::join!(feed, child.wait_with_output());
    let output = output?;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        output.status.success(),
        "container_file.py {arguments:?} ended with {}: {errors}",
        output.status
    );
    Ok(output.stdout)
}

/// Value and expiry by key.
type Entries = BTreeMap<String, (String, Option<i64>)>;

async fn fastavro_reads_what_is_exported(ctx: Ctx) -> Result<()> {
    let cluster = one_node(&ctx).await?;
    let way = CommandLine::rpc(&ctx, &cluster.nodes);
    let mut lines = String::new();
    for i in 0..RECORDS {
        let ttl = i.is_multiple_of(3).then(|| format!("{}ms", DAY_MS + i as i64));
        lines += &json!({ "key": key("out", i), "value": value(i), "ttl": ttl }).to_string();
        lines.push('\n');
    }
    write(&ctx, "in.ndjson", &lines)?;
    way.run(&["import", "in.ndjson"]).await?.expect(0);
    let values = (0..RECORDS).map(|i| (key("out", i), value(i))).collect();
    holds(&cluster.nodes[0], "out:", &values).await;
    let stored = records(&cluster.nodes[0], "out:").await?;
    let expiring = stored.iter().filter(|record| record.ttl != 0).count();
    ensure!(expiring == RECORDS / 3, "{expiring} records expire");
    let expires = |ttl: i64| (ttl != 0).then_some(ttl);
    let expected: Entries = stored
        .iter()
        .map(|stored| (stored.key.clone(), (stored.value.clone(), expires(stored.ttl))))
        .collect();
    for codec in CODECS {
        let file = format!("{codec}.avro");
        way.run(&["export", &file, "--format", "avro", "--avro-codec", codec]).await?.expect(0);
        let read = container_file(&ctx, &["read", &file], b"").await?;
        let read: Value = serde_json::from_slice(&read).context("container_file.py prints JSON")?;
        ensure!(read["codec"] == codec, "{file} has the codec {}", read["codec"]);
        let read = read["records"].as_array().context("a list of records")?;
        assert_eq!(read.len(), stored.len(), "{file}");
        let mut entries = Entries::new();
        for (read, stored) in read.iter().zip(&stored) {
            let text = |name: &str| Some(read[name].as_str()?.to_string());
            let (key, value) = text("key").zip(text("value")).with_context(|| format!("{file}: {read}"))?;
            entries.insert(key, (value, read["expires"].as_i64()));
            ensure!(read["timestamp"].as_i64() == Some(stored.timestamp), "{file}: {read}, not {stored:?}");
            ensure!(read["uuid"] == stored.uuid, "{file}: {read}, not {stored:?}");
            ensure!(read["position"] == stored.position.to_string(), "{file}: {read}, not {stored:?}");
        }
        ensure!(entries == expected, "{file}: {}", difference(&entries, &expected));
    }
    Ok(())
}

async fn what_fastavro_writes_is_imported(ctx: Ctx) -> Result<()> {
    let cluster = one_node(&ctx).await?;
    let way = CommandLine::rpc(&ctx, &cluster.nodes);
    let cases = CODECS.iter().flat_map(|codec| [(*codec, "expires"), (*codec, "ttl")]);
    for (codec, field) in cases {
        let prefix = format!("{codec}-{field}");
        let began = now_ms();
        // A time to live, or a point in time.
        let expiry = |i: usize| {
            let life = DAY_MS + i as i64;
            i.is_multiple_of(3).then_some(if field == "ttl" { life } else { began + life })
        };
        let entries: Vec<Value> = (0..RECORDS)
            .map(|i| json!({ "key": key(&prefix, i), "value": value(i), "expiry": expiry(i) }))
            .collect();
        let file = format!("{prefix}.avro");
        let entries = serde_json::to_vec(&entries)?;
        container_file(&ctx, &["write", &file, codec, field], &entries).await?;
        way.run(&["import", &file]).await?.expect(0);
        let ended = now_ms();
        let values = (0..RECORDS).map(|i| (key(&prefix, i), value(i))).collect();
        holds(&cluster.nodes[0], &format!("{prefix}:"), &values).await;
        for (i, record) in records(&cluster.nodes[0], &format!("{prefix}:")).await?.iter().enumerate() {
            let allowed = match expiry(i) {
                None => 0..=0,
                Some(life) if field == "ttl" => began + life..=ended + life,
                // The node is told how long it is until then, and counts from when it has the write.
                Some(at) => at..=at + (ended - began),
            };
            ensure!(allowed.contains(&record.ttl), "{file}: {record:?} expires outside of {allowed:?}");
        }
    }
    Ok(())
}

/// The first key that two sets of entries have differently.
fn difference(seen: &Entries, expected: &Entries) -> String {
    let mut keys = expected.keys().chain(seen.keys());
    let key = keys.find(|key| seen.get(*key) != expected.get(*key));
    key.map_or_else(String::new, |key| format!("{key}: {:?}, not {:?}", seen.get(key), expected.get(key)))
}
