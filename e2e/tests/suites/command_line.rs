//! The command line, `bitacora`, on real clusters: the same over every way in.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bitacora_client::{Client, Record, Scan};
use e2e::cluster::{Cluster, Node, Options, START, cli_binary};
use e2e::command_line::{CommandLine, Said};
use e2e::runner::{Ctx, Test};
use e2e::{ports, tests, wait};
use futures_util::TryStreamExt;
use serde_json::{Value, json};

pub fn tests() -> Vec<Test> {
    tests![
        Servers: exit_codes_tell_what_happened, every_way_in_says_the_same, the_readmes_lines_work_as_they_are
    ]
}

pub async fn one_node(ctx: &Ctx) -> Result<Cluster> {
    ctx.cluster_with(1, Options::new()).await
}

/// Every record that a node has.
pub async fn records(node: &Node, prefix: &str) -> Result<Vec<Record>> {
    let client = Client::builder().nodes([node.rpc_address()]).build().await?;
    Ok(client.scan(Scan::prefix(prefix)).try_collect().await?)
}

/// Waits until a node has exactly these records below a prefix, by key and value.
pub async fn holds(node: &Node, prefix: &str, expected: &BTreeMap<String, String>) {
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

pub fn write(ctx: &Ctx, name: &str, text: &str) -> Result<()> {
    std::fs::write(ctx.dir.join(name), text).context("writing a file")
}

/// What a command says, without where a node had it from: each may have it elsewhere.
pub fn told(said: &Said) -> Result<Vec<Value>> {
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

/// A broker that was frozen for long registers again and gets its leaders back before it takes writes; on a busy machine that has
/// taken more than half a minute.
const BROKER_RECOVERY: Duration = Duration::from_secs(120);

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
        wait::until("writes are taken again", BROKER_RECOVERY, || async {
            let said = way.run(&["set", "again", "v"]).await.map_err(|error| format!("{error:#}"))?;
            if said.code == 0 { Ok(()) } else { Err(said.stderr) }
        })
        .await;
    }
    drop(cluster);
    broker.remove().await
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
        // The addresses are other ones here, what is measured need not be measured for long, and nobody presses Ctrl-C.
        let here = line
            .replace("http://127.0.0.1:8080", &node.http_url())
            .replace("127.0.0.1:2181", &cluster.zookeeper_hosts)
            .replace("bitacora bench", "bitacora bench --duration 1s")
            .replace("bitacora watch", "bitacora watch --limit 2");
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
