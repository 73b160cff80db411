//! The command line, `bitacora`, on real clusters: the same over every way in, and nothing lost whatever is killed.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bitacora_client::{Client, Operation, Record, Scan};
use e2e::cluster::{Cluster, Node, Options, START, cli_binary};
use e2e::command_line::{CommandLine, Said};
use e2e::process::{Process, Signal, tail};
use e2e::runner::{Ctx, Test};
use e2e::{ports, tests, wait};
use futures_util::TryStreamExt;
use serde_json::{Value, json};

pub fn tests() -> Vec<Test> {
    tests![
        Servers: an_import_that_is_killed_goes_on, an_import_goes_on_without_a_node,
            an_import_takes_the_last_line_of_a_key_and_tells_of_broken_ones,
            an_export_that_is_interrupted_goes_on_and_a_scan_ends_with_its_reader,
            what_is_exported_arrives_elsewhere_as_it_was, exit_codes_tell_what_happened,
            every_way_in_says_the_same, the_readmes_lines_work_as_they_are
    ]
}

async fn one_node(ctx: &Ctx) -> Result<Cluster> {
    ctx.cluster_with(1, Options::new()).await
}

/// Every record that a node has.
async fn records(node: &Node, prefix: &str) -> Result<Vec<Record>> {
    let client = Client::builder().nodes([node.rpc_address()]).build().await?;
    Ok(client.scan(Scan::prefix(prefix)).try_collect().await?)
}

/// Waits until a node has exactly these records below a prefix, by key and value.
async fn holds(node: &Node, prefix: &str, expected: &BTreeMap<String, String>) {
    wait::until(&format!("{} holds what was imported", node.name), START, || async {
        let records = records(node, prefix).await.map_err(|error| format!("{error:#}"))?;
        if records.len() != expected.len() {
            return Err(format!("{} records, not {}", records.len(), expected.len()));
        }
        match records.iter().find(|record| expected.get(&record.key) != Some(&record.value)) {
            None => Ok(()),
            Some(record) => Err(format!("{record:?}, not {:?}", expected.get(&record.key))),
        }
    })
    .await;
}

fn write(ctx: &Ctx, name: &str, text: &str) -> Result<()> {
    std::fs::write(ctx.dir.join(name), text).context("writing a file")
}

/// What a command says, without where a node had it from: each may have it elsewhere.
fn told(said: &Said) -> Result<Vec<Value>> {
    let mut lines = said.json()?;
    for line in &mut lines {
        if let Some(fields) = line.as_object_mut() {
            fields.remove("served_from");
        }
    }
    Ok(lines)
}

async fn every_way_in_says_the_same(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster().await?;
    let ways = [
        ("rpc", CommandLine::rpc(&ctx, &cluster.nodes)),
        ("http", CommandLine::http(&ctx, &cluster.nodes)),
        ("zookeeper", CommandLine::zookeeper(&ctx, &cluster)),
    ];
    for (name, way) in &ways {
        let key = format!("{name} ü \"\\\n\t");
        for (arguments, stdin, value, ttl) in [
            (vec!["set", &key, "-5", "--output", "json"], "", "-5", false),
            (vec!["set", &key, "--output", "json", "--ttl", "2h"], "two\nlines\n", "two\nlines\n", true),
            (vec!["set", &key, "", "--output", "json"], "", "", false),
        ] {
            let said = way.run_on(&arguments, stdin.as_bytes()).await?.expect(0).json()?;
            let [line] = &said[..] else { panic!("{said:?}") };
            let fields: Vec<_> = line.as_object().context("an object")?.keys().map(String::as_str).collect();
            assert_eq!(fields, ["key", "position", "timestamp", "ttl", "uuid"], "{name}");
            ensure!(line["key"] == key && (line["ttl"] != 0) == ttl, "{name}: {line}");
            cluster.all_have(&key, Some(value)).await;
            let read = way.run(&["get", &key, "--output", "json"]).await?.expect(0).json()?;
            for field in ["key", "position", "timestamp", "ttl", "uuid"] {
                assert_eq!(read[0][field], line[field], "{name}: {field}");
            }
            let raw = way.run(&["get", "-n", &key]).await?.expect(0);
            assert_eq!(raw.text(), value);
        }
        let gone = format!("{name} gone");
        way.run(&["set", &gone, "v"]).await?.expect(0);
        cluster.all_have(&gone, Some("v")).await;
        let deleted = way.run(&["del", &gone, "--output", "json"]).await?.expect(0).json()?;
        assert_eq!((&deleted[0]["key"], &deleted[0]["ttl"]), (&json!(gone), &json!(-1)));
        cluster.all_have(&gone, None).await;
        ensure!(way.run(&["get", &gone]).await?.expect(3).stdout.is_empty());
    }
    let all = "rpc ü \"\\\n\t";
    for arguments in [
        &["get", all, "http ü \"\\\n\t", "--output", "json"][..],
        &["scan", "--output", "json"],
        &["scan", "--prefix", "http", "--output", "json"],
        &["scan", "--start", "i", "--end", "s", "--output", "json"],
        &["scan", "--limit", "1", "--output", "json"],
    ] {
        let [rpc, http, zookeeper] = [&ways[0].1, &ways[1].1, &ways[2].1].map(|way| way.run(arguments));
        let (rpc, http, zookeeper) = tokio::try_join!(rpc, http, zookeeper)?;
        let said = told(&rpc.expect(0))?;
        ensure!(!said.is_empty(), "{arguments:?} says nothing");
        assert_eq!(told(&http.expect(0))?, said, "{arguments:?}");
        assert_eq!(told(&zookeeper.expect(0))?, said, "{arguments:?}");
    }
    let mut names: Vec<String> = cluster.nodes.iter().map(|n| format!("127.0.0.1:{}", n.api_port)).collect();
    names.sort();
    // The first node alone leads to the others.
    let first = [("first", CommandLine::rpc(&ctx, &cluster.nodes[..1]))];
    for (name, way) in ways.iter().chain(&first) {
        let members = way.run(&["members", "--output", "json"]).await?.expect(0).json()?;
        let listed: Vec<_> = members.iter().filter_map(|member| member["node"].as_str()).collect();
        assert_eq!(listed, names, "{name}");
        for member in &members {
            ensure!(member["ready"] == true && member["caught_up"] == true && member["lag"] == 0, "{member}");
        }
        let status = way.run(&["status", "--output", "json"]).await?.expect(0).json()?;
        let mut nodes: Vec<_> = status.iter().filter_map(|status| status["node"].as_str()).collect();
        nodes.sort_unstable();
        assert_eq!(nodes, names, "{name}");
        ensure!(status.iter().all(|node| node["partitions"].as_array().map(Vec::len) == Some(4)));
    }
    // A command takes leave of ZooKeeper: its session does not stay until it expires.
    for _ in 0..20 {
        let said = ways[2].1.run(&["--log-level", "debug", "get", "-n", all]).await?.expect(0);
        ensure!(said.stderr.contains("left ZooKeeper closed=Ok(Ok(()))"), "{}", said.stderr);
    }
    Ok(())
}

async fn exit_codes_tell_what_happened(ctx: Ctx) -> Result<()> {
    let broker = ctx.own_broker().await?;
    let options = Options::new().brokers(broker.address()).env("WRITE_TIMEOUT", 1500);
    let cluster = ctx.cluster_with(1, options).await?;
    let ways = [
        CommandLine::rpc(&ctx, &cluster.nodes),
        CommandLine::http(&ctx, &cluster.nodes),
        CommandLine::zookeeper(&ctx, &cluster),
    ];
    for way in &ways {
        way.run(&["set", "there", "v"]).await?.expect(0);
        cluster.all_have("there", Some("v")).await;
        let said = way.run(&["get", "not there", "there"]).await?.expect(3);
        ensure!(said.text() == "v\n" && said.stderr.contains("not there"), "{said:?}");
        for (arguments, code) in [
            (&["set", " ", "v"][..], 1),
            (&["get"], 2),
            (&["set", "k", "v", "--ttl", "soon"], 2),
            (&["import", "no-such-file.ndjson"], 1),
            (&["import", "-", "--checkpoint", "c"], 2),
        ] {
            let said = way.run(arguments).await?.expect(code);
            ensure!(!said.stderr.is_empty() && said.stdout.is_empty(), "{arguments:?}: {said:?}");
        }
    }
    let nobody = ports::free();
    let (rpc, http) = (format!("127.0.0.1:{nobody}"), format!("http://127.0.0.1:{nobody}"));
    for connection in [
        ["--rpc", &rpc],
        ["--http", &http],
        ["--zookeeper", &rpc],
        // A ZooKeeper that knows no node.
        ["--zookeeper", &format!("{}-other", cluster.zookeeper_hosts)],
    ] {
        let way = CommandLine::new(&ctx, &connection).with("--timeout", "2s");
        for arguments in [&["get", "k"][..], &["set", "k", "v"], &["scan"], &["members"], &["export", "-"]] {
            let said = way.run(arguments).await?.expect(5);
            ensure!(said.stderr.lines().count() == 1, "{connection:?} {arguments:?}: {}", said.stderr);
        }
    }
    for way in &ways {
        broker.pause().await?;
        let patient = way.clone().with("--timeout", "10s");
        let said = patient.run(&["set", "perhaps", "v"]).await?.expect(4);
        ensure!(said.stdout.is_empty() && said.stderr.contains("may"), "{said:?}");
        // What waits in the node behind that was never sent, if the node gives up first; then it says so.
        let lines = b"{\"key\":\"k\",\"value\":\"v\"}\n";
        for (arguments, stdin) in
            [(&["del", "perhaps"][..], &b""[..]), (&["import", "-", "--retry-for", "1s"], &lines[..])]
        {
            let said = patient.run_on(arguments, stdin).await?;
            let honest = match said.code {
                4 => !said.stderr.contains("has not taken effect"),
                5 => said.stderr.contains("has not taken effect"),
                _ => false,
            };
            ensure!(honest && said.stdout.is_empty(), "{arguments:?}: {said:?}");
        }
        let impatient = way.clone().with("--timeout", "500ms");
        let said = impatient.run(&["del", "perhaps"]).await?.expect(4);
        ensure!(said.stdout.is_empty() && said.stderr.contains("may have taken effect"), "{said:?}");
        assert_eq!(way.run(&["get", "-n", "there"]).await?.expect(0).text(), "v", "reads go on");
        broker.resume().await?;
        wait::until("writes are taken again", START, || async {
            let said = way.run(&["set", "again", "v"]).await.map_err(|error| format!("{error:#}"))?;
            if said.code == 0 { Ok(()) } else { Err(said.stderr) }
        })
        .await;
    }
    drop(cluster);
    broker.remove().await
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

async fn an_import_takes_the_last_line_of_a_key_and_tells_of_broken_ones(ctx: Ctx) -> Result<()> {
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

async fn an_export_that_is_interrupted_goes_on_and_a_scan_ends_with_its_reader(ctx: Ctx) -> Result<()> {
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

async fn the_readmes_lines_work_as_they_are(ctx: Ctx) -> Result<()> {
    let cluster = one_node(&ctx).await?;
    let node = &cluster.nodes[0];
    let readme = include_str!("../../../README.md");
    let (_, section) =
        readme.split_once("## The command line").context("the README has a section on the command line")?;
    let (_, block) = section.split_once("```sh\n").context("it begins with commands")?;
    let (block, _) = block.split_once("```").context("the commands end")?;
    write(&ctx, "users.csv", "key,value,ttl\nuser:1,Ada,\nuser:2,Bob,1h\n")?;
    let bin = ctx.dir.join("bin");
    std::fs::create_dir_all(&bin)?;
    std::os::unix::fs::symlink(cli_binary().await?, bin.join("bitacora"))?;
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
    let mut ran = Vec::new();
    for line in block.lines().filter(|line| line.starts_with("bitacora ")) {
        // The addresses are other ones here, and what is measured need not be measured for long.
        let here = line
            .replace("http://127.0.0.1:8080", &node.http_url())
            .replace("127.0.0.1:2181", &cluster.zookeeper_hosts)
            .replace("bitacora bench", "bitacora bench --duration 1s");
        // A set is read a moment later, so a get may have to try again.
        let output = wait::until(line, START, || async {
            let mut shell = tokio::process::Command::new("bash");
            shell.args(["-c", &format!("set -o pipefail; {here}")]).current_dir(&ctx.dir).kill_on_drop(true);
            shell.env("PATH", &path).env("BITACORA_RPC", node.rpc_address());
            let output = shell.output().await.map_err(|error| error.to_string())?;
            if output.status.success() {
                Ok(String::from_utf8_lossy(&output.stdout).into_owned())
            } else {
                Err(String::from_utf8_lossy(&output.stderr).into_owned())
            }
        });
        ran.push((line, output.await));
    }
    let said = |command: &str| {
        let found = ran.iter().find(|(line, _)| line.contains(command));
        found.map(|(_, output)| output.clone()).with_context(|| format!("no line has {command:?}"))
    };
    assert_eq!(said("get greeting")?, "hello\n");
    ensure!(said("set greeting")?.starts_with("OK "));
    ensure!(said("members")?.contains(&format!("\"node\":\"127.0.0.1:{}\"", node.api_port)));
    node.has("user:2", Some("Bob")).await;
    ensure!(ctx.dir.join("all.ndjson.gz").exists() && ctx.dir.join("rejected.ndjson").exists());
    ensure!(ran.len() >= 7, "only {} lines were found", ran.len());
    Ok(())
}
