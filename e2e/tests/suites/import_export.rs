//! What is imported and exported arrives as it was, whatever is killed meanwhile.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bitacora_client::{Client, Operation};
use e2e::cluster::{Node, Options, START, cli_binary};
use e2e::command_line::CommandLine;
use e2e::process::{Process, Signal, tail};
use e2e::runner::{Ctx, Test};
use e2e::{tests, wait};
use serde_json::{Value, json};

use super::command_line::{holds, one_node, records, write};

pub fn tests() -> Vec<Test> {
    tests![Servers: an_import_that_is_killed_goes_on, an_import_goes_on_without_a_node,
            import_takes_the_last_line_of_a_key, an_interrupted_export_goes_on,
            what_is_exported_arrives_elsewhere_as_it_was]
}

const LINES: usize = 20_000;

/// A value with what makes formats stumble.
fn value(i: usize) -> String {
    match i % 7 {
        0 => String::new(),
        1 => format!("{i}, \"quoted\""),
        2 => format!("two\nlines of {i}\r\n"),
        3 => format!("größe {i} 🔑"),
        _ => format!("{i} {}", "v".repeat(i % 200)),
    }
}

async fn import_takes_the_last_line_of_a_key(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster_with(2, Options::new()).await?;
    let (mut ndjson, mut csv) = (String::new(), "ttl,value,key\n".to_string());
    let (mut broken_ndjson, mut broken_csv) = (Vec::new(), Vec::new());
    let (mut expected_ndjson, mut expected_csv) = (BTreeMap::new(), BTreeMap::new());
    let mut csv_line = 2;
    for i in 0..LINES {
        // Half of the keys come twice or more, close to each other and far.
        let key = |format: &str| {
            let number = if i % 4 < 2 { i / 4 % 3000 } else { 10_000 + i };
            format!("{format}:{number:05} ü")
        };
        if i % 997 == 500 {
            let bad = [
                "no json",
                "{\"key\":\"k\"}",
                "{\"key\":\" \",\"value\":\"v\"}",
                "{\"key\":\"k\",\"value\":1}",
            ];
            writeln!(ndjson, "{}", bad[i / 997 % bad.len()])?;
            broken_ndjson.push(i as u64 + 1);
            let bad = [",v", "soon,v,k", "1s,v,k,more", ",v,\"  \""];
            writeln!(csv, "{}", bad[i / 997 % bad.len()])?;
            broken_csv.push(csv_line);
            csv_line += 1;
            continue;
        }
        writeln!(ndjson, "{}", json!({"key": key("n"), "value": value(i), "ignored": [i]}))?;
        expected_ndjson.insert(key("n"), value(i));
        let ttl = if i % 5 == 0 { "7d" } else { "" };
        writeln!(csv, "{ttl},\"{}\",\"{}\"", value(i).replace('"', "\"\""), key("c"))?;
        csv_line += 1 + value(i).matches('\n').count() as u64;
        expected_csv.insert(key("c"), value(i));
    }
    write(&ctx, "lines.ndjson", &ndjson)?;
    write(&ctx, "lines.csv", &csv)?;
    let (rpc, http) = (CommandLine::rpc(&ctx, &cluster.nodes), CommandLine::http(&ctx, &cluster.nodes));
    for (way, file, rejects, prefix, broken, expected) in [
        (rpc, "lines.ndjson", "n.rejects", "n:", broken_ndjson, expected_ndjson),
        (http, "lines.csv", "c.rejects", "c:", broken_csv, expected_csv),
    ] {
        let said = way.run(&["import", file, "--rejects", rejects, "--timeout", "30s"]).await?.expect(6);
        let counts = format!("{} accepted, {} rejected", LINES - broken.len(), broken.len());
        ensure!(said.stderr.contains(&counts), "{file}: {}", said.stderr);
        for node in &cluster.nodes {
            holds(node, prefix, &expected).await;
        }
        let rejected = std::fs::read_to_string(ctx.dir.join(rejects))?;
        let rejected: Vec<Value> = rejected.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        let lines: Vec<u64> = rejected.iter().filter_map(|reject| reject["line"].as_u64()).collect();
        assert_eq!(lines, broken, "{file}");
        for reject in &rejected {
            ensure!(reject["reason"].is_string() && reject["text"].is_string(), "{file}: {reject}");
        }
        // A limit on them ends it at the first one too many.
        let said = way.run(&["import", file, "--max-rejects", "1"]).await?.expect(6);
        ensure!(said.stderr.contains(&format!("stopped at line {}", broken[1])), "{file}: {}", said.stderr);
    }
    Ok(())
}

/// A file of records that are all different, and what a cluster holds after it.
fn plain_file(ctx: &Ctx, name: &str, lines: usize, keys: usize) -> Result<BTreeMap<String, String>> {
    let (mut text, mut expected) = (String::new(), BTreeMap::new());
    for i in 0..lines {
        let (key, value) = (format!("key-{:08}", i % keys), format!("value {i} {}", "v".repeat(80)));
        writeln!(text, "{}", json!({"key": key, "value": value}))?;
        expected.insert(key, value);
    }
    write(ctx, name, &text)?;
    Ok(expected)
}

/// Waits until `path` tells of another place than `before`; fails if the command ends first.
async fn checkpoint(path: &Path, process: &Process, before: Option<&Value>) -> Value {
    wait::until("there is a new checkpoint", START, || async {
        if let Some(status) = process.exited() {
            panic!("it ended with {status}, before a checkpoint: {}", tail(&process.log, 5));
        }
        let text = std::fs::read(path).map_err(|error| error.to_string())?;
        let now: Value = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
        let is_new = before != Some(&now) && now["line"] != 1;
        if is_new { Ok(now) } else { Err("it is the old one".to_string()) }
    })
    .await
}

async fn an_import_that_is_killed_goes_on(ctx: Ctx) -> Result<()> {
    let cluster = one_node(&ctx).await?;
    let expected = plain_file(&ctx, "lines.ndjson", LINES, LINES - 500)?;
    let way = CommandLine::rpc(&ctx, &cluster.nodes);
    let file = ctx.dir.join("checkpoint");
    let arguments = ["import", "lines.ndjson", "--checkpoint", "checkpoint"];
    // Slow enough to be met midway.
    let slow = [&arguments[..], &["--batch", "1", "--parallel", "2"]].concat();
    let killed = way.spawn("killed", &slow).await?;
    let first = checkpoint(&file, &killed, None).await;
    killed.kill();
    ensure!(first["counts"]["accepted"].as_u64().is_some_and(|done| done < LINES as u64), "{first}");
    // Asked to stop, it remembers all that is done.
    let stopped = way.spawn("stopped", &slow).await?;
    checkpoint(&file, &stopped, Some(&first)).await;
    stopped.signal(Signal::TERM);
    let status = stopped.wait(START).await.context("it did not stop")?;
    ensure!(status.code() == Some(1) && tail(&stopped.log, 5).contains("run it again"), "{status}");

    let said = way.run(&arguments).await?.expect(0);
    ensure!(said.stderr.contains("going on at line"), "{}", said.stderr);
    ensure!(said.stderr.contains(&format!("{LINES} accepted, 0 rejected")), "{}", said.stderr);
    holds(&cluster.nodes[0], "", &expected).await;
    // What is done is not done again, but for what was under way when it was killed.
    let log = cluster.topic.read_all().await?.len();
    ensure!((LINES..LINES + LINES / 4).contains(&log), "{log} records in the log");
    way.run(&arguments).await?.expect(0);
    assert_eq!(cluster.topic.read_all().await?.len(), log);
    // Another input is not mistaken for it.
    plain_file(&ctx, "lines.ndjson", 10, 10)?;
    let said = way.run(&arguments).await?.expect(1);
    ensure!(said.stderr.contains("another input"), "{}", said.stderr);
    Ok(())
}

async fn an_import_goes_on_without_a_node(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster().await?;
    let expected = plain_file(&ctx, "lines.ndjson", 3 * LINES, LINES)?;
    let way = CommandLine::zookeeper(&ctx, &cluster);
    let import = way.spawn("import", &["import", "lines.ndjson", "--batch", "100"]).await?;
    wait::until("the import is under way", START, || async {
        let status = cluster.nodes[0].api().status().await.map_err(|error| format!("{error:#}"))?;
        match status["store"]["records"].as_u64() {
            Some(records) if records > 2000 => Ok(()),
            records => Err(format!("{records:?} records")),
        }
    })
    .await;
    cluster.nodes[1].kill();
    ensure!(import.exited().is_none(), "it was over before: {}", tail(&import.log, 5));
    let status = import.wait(Duration::from_secs(90)).await.context("it does not end")?;
    let told = tail(&import.log, 5);
    ensure!(
        status.success() && told.contains(&format!("{} accepted, 0 rejected", 3 * LINES)),
        "{status}: {told}"
    );
    for node in [&cluster.nodes[0], &cluster.nodes[2]] {
        holds(node, "", &expected).await;
    }
    Ok(())
}

async fn what_is_exported_arrives_elsewhere_as_it_was(ctx: Ctx) -> Result<()> {
    let (from, by_ndjson, by_csv) = tokio::try_join!(one_node(&ctx), one_node(&ctx), one_node(&ctx))?;
    let client = Client::builder().nodes(from.rpc_addresses()).deadline(START).build().await?;
    let set = |key: &str, value: String, ttl: Option<u64>| Operation::Set {
        key: key.to_string(),
        value,
        ttl: ttl.map(Duration::from_secs),
    };
    let mut operations: Vec<Operation> = (0..2000)
        .map(|i| set(&format!("plain {i}"), value(i), (i % 3 == 0).then_some(3600 + i as u64)))
        .collect();
    for (key, value) in [
        ("empty", String::new()),
        ("with\nnewlines\r\nin it\n", "v".to_string()),
        ("with,commas \"and\" quotes\t\\", "\"\",\n\r\\\u{0}\u{1b}\u{7f}\u{2028}".to_string()),
        ("ünïcödé 🔑 \u{10ffff}", "größe 🔑 \u{feff}".to_string()),
        ("  leading and trailing  ", "  \n".to_string()),
        ("{\"key\":1}", "#comment".to_string()),
        ("large", "v".repeat(1 << 20)),
        ("large and escaped", "\"\n".repeat(1 << 19)),
    ] {
        operations.push(set(key, value, None));
    }
    operations.push(set(&"k".repeat(1024), "v".to_string(), Some(86_400)));
    for result in client.batch(&operations).await? {
        result?;
    }
    // What is gone stays where it is.
    let expired = client.set_with_ttl("expired", "v", Duration::from_millis(100)).await?;
    client.set("deleted", "v").await?;
    let deleted = client.delete("deleted").await?;
    from.all_lost("expired", expired.timestamp).await;
    from.all_lost("deleted", deleted.timestamp).await;
    let all = async |node: &Node| {
        wait::until("all records are there", START, || async {
            let records = records(node, "").await.map_err(|error| format!("{error:#}"))?;
            if records.len() == operations.len() { Ok(records) } else { Err(format!("{}", records.len())) }
        })
        .await
    };
    let before = all(&from.nodes[0]).await;

    let binary = cli_binary().await?.display().to_string();
    for (to, format, way, flag) in [
        (&by_ndjson.nodes[0], "ndjson", Node::rpc_address as fn(&Node) -> String, "--rpc"),
        (&by_csv.nodes[0], "csv", Node::http_url, "--http"),
    ] {
        let pipe = format!(
            "set -o pipefail; '{binary}' {flag} {} export - --format {format} | '{binary}' {flag} {} import - --format {format}",
            way(&from.nodes[0]),
            way(to)
        );
        let mut shell = tokio::process::Command::new("bash");
        let output = shell.args(["-c", &pipe]).current_dir(&ctx.dir).kill_on_drop(true).output().await?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{format}: {}: {stderr}", output.status);
        ensure!(stderr.contains(&format!("{} accepted, 0 rejected, 0 skipped", before.len())), "{stderr}");
        let after = all(to).await;
        for (before, after) in before.iter().zip(&after) {
            let shown: String = before.key.chars().take(40).collect();
            assert_eq!(before.key, after.key, "{format}");
            ensure!(before.value == after.value, "{format}: {shown:?} has another value");
            // The time to live is counted anew, from what is left of it.
            let near = (before.ttl == 0) == (after.ttl == 0) && (before.ttl - after.ttl).abs() < 2_000;
            ensure!(near, "{format}: {shown:?} expires at {}, not {}", after.ttl, before.ttl);
        }
    }
    Ok(())
}

async fn an_interrupted_export_goes_on(ctx: Ctx) -> Result<()> {
    let cluster = one_node(&ctx).await?;
    let expected = plain_file(&ctx, "lines.ndjson", 2 * LINES, 2 * LINES)?;
    let way = CommandLine::rpc(&ctx, &cluster.nodes);
    way.run(&["import", "lines.ndjson"]).await?.expect(0);
    holds(&cluster.nodes[0], "", &expected).await;

    way.run(&["export", "fresh.csv"]).await?.expect(0);
    let arguments = ["export", "resumed.csv", "--checkpoint", "checkpoint"];
    let slow = [&arguments[..], &["--page", "1"]].concat();
    let file = ctx.dir.join("checkpoint");
    let killed = way.spawn("killed", &slow).await?;
    let first = checkpoint(&file, &killed, None).await;
    killed.kill();
    let stopped = way.spawn("stopped", &slow).await?;
    checkpoint(&file, &stopped, Some(&first)).await;
    stopped.signal(Signal::TERM);
    let status = stopped.wait(START).await.context("it did not stop")?;
    ensure!(status.code() == Some(1) && tail(&stopped.log, 5).contains("run it again"), "{status}");
    ensure!(!ctx.dir.join("resumed.csv").exists(), "half an export has its name");
    // Another export is not mistaken for it.
    let other = [&arguments[..], &["--prefix", "k"]].concat();
    ensure!(way.run(&other).await?.expect(1).stderr.contains("another export"));
    let said = way.run(&arguments).await?.expect(0);
    ensure!(said.stderr.contains("going on after"), "{}", said.stderr);
    let [fresh, resumed] = ["fresh.csv", "resumed.csv"].map(|name| std::fs::read(ctx.dir.join(name)));
    ensure!(fresh? == resumed?, "what was resumed is not what a fresh export writes");
    ensure!(!file.exists(), "the checkpoint is left");

    let binary = cli_binary().await?.display().to_string();
    let pipe = format!(
        "set -o pipefail; '{binary}' --rpc {} scan --output raw | head -n 3",
        cluster.nodes[0].rpc_address()
    );
    let scanned = || async {
        let status = cluster.nodes[0].api().metric("bitacora_requests_total").await;
        status.map_err(|error| error.to_string())
    };
    let before = scanned().await.map_err(anyhow::Error::msg)?;
    let mut shell = tokio::process::Command::new("bash");
    let output = tokio::time::timeout(START, shell.args(["-c", &pipe]).kill_on_drop(true).output());
    let output = output.await.context("it does not end")??;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && stderr.is_empty(), "{}: {stderr}", output.status);
    let first: Vec<String> =
        expected.iter().take(3).map(|(key, value)| format!("{key}\t{value}\n")).collect();
    assert_eq!(String::from_utf8_lossy(&output.stdout), first.concat());
    // Of 40 pages it asked for a few.
    let asked = scanned().await.map_err(anyhow::Error::msg)? - before;
    ensure!((1.0..20.0).contains(&asked), "{asked} requests");
    Ok(())
}
