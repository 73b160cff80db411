//! `bitacora-node dev`, the first thing that a new user runs: no server is needed for it.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bitacora_client::{Client, Error, Operation, Outcome, ReadLevel, Session, Visible};
use e2e::cluster::{START, is, node_binary};
use e2e::command_line::CommandLine;
use e2e::http::Api;
use e2e::process::{Process, tail};
use e2e::runner::{Ctx, Test};
use e2e::{ports, tests, wait};

pub fn tests() -> Vec<Test> {
    tests![
        Nothing: writes_are_read_on_all_nodes_and_survive_a_kill,
            the_readmes_curl_lines_work_as_they_are, the_readmes_demonstration_shows_what_it_says,
            a_batch_of_the_library_compares_and_reads_strongly,
            imports_and_lists_of_keys_keep_their_conditions, what_is_in_the_way_is_told_in_one_sentence
    ]
}

/// The first of the ports of three nodes, two each.
fn free_ports() -> u16 {
    ports::run_of(6)
}

async fn dev(ctx: &Ctx, port: u16, data: &Path, log: &str) -> Result<Process> {
    let mut command = Command::new(node_binary().await?);
    command.args(["dev", "--port", &port.to_string(), "--data-dir"]).arg(data).current_dir(&ctx.dir);
    Process::spawn(command, &ctx.dir.join(log))
}

async fn started(dev: &Process) {
    wait::until("the first screen is there", START, || async {
        let text = tail(&dev.log, 50);
        if text.contains("Ctrl-C stops it") { Ok(()) } else { Err(text) }
    })
    .await;
}

async fn writes_are_read_on_all_nodes_and_survive_a_kill(ctx: Ctx) -> Result<()> {
    let (port, data) = (free_ports(), ctx.dir.join("data"));
    let nodes = [0, 2, 4].map(|offset| Api::new(port + offset));
    let first = dev(&ctx, port, &data, "first.log").await?;
    started(&first).await;
    for (i, node) in nodes.iter().enumerate() {
        node.set(&format!("key {i}"), "välue").await?.expect(200);
        node.set("deleted", "value").await?.expect(200);
    }
    nodes[1].delete("deleted").await?.expect(200);
    everywhere(&nodes).await;
    first.kill();
    let second = dev(&ctx, port, &data, "second.log").await?;
    started(&second).await;
    everywhere(&nodes.map(|node| Api::new(node.port))).await;
    // It stops as asked, too.
    second.signal(e2e::process::Signal::TERM);
    let status = second.wait(Duration::from_secs(15)).await.context("it did not stop")?;
    ensure!(status.success(), "it ended with {status}");
    Ok(())
}

async fn everywhere(nodes: &[Api; 3]) {
    for node in nodes {
        for (key, value) in
            [("key 0", Some("välue")), ("key 1", Some("välue")), ("key 2", Some("välue")), ("deleted", None)]
        {
            wait::until(&format!("{key:?} at port {} is {value:?}", node.port), START, || async {
                let answer = node.get(key).await.map_err(|error| format!("{error:#}"))?;
                if is(&answer, value) { Ok(()) } else { Err(answer.to_string()) }
            })
            .await;
        }
    }
}

async fn the_readmes_curl_lines_work_as_they_are(ctx: Ctx) -> Result<()> {
    let port = free_ports();
    let dev = dev(&ctx, port, &ctx.dir.join("data"), "dev.log").await?;
    started(&dev).await;
    let readme = include_str!("../../../README.md");
    let (_, api) = readme.split_once("## The API").context("the README has a section on the API")?;
    let (_, block) = api.split_once("```sh\n").context("it begins with commands")?;
    let (block, _) = block.split_once("```").context("the commands end")?;
    let screen = tail(&dev.log, 50);
    let pasted = screen.lines().map(str::trim).filter(|line| line.starts_with("curl "));
    let readme_lines = block.lines().filter(|line| line.starts_with("curl "));
    let mut ran = 0;
    for line in pasted.chain(readme_lines) {
        let line = line.replace("127.0.0.1:8080", &format!("127.0.0.1:{port}"));
        // `-f` makes an error's status the exit code. A set is read a moment later, so a get may have to try again.
        wait::until(&line, START, || async {
            let mut shell = tokio::process::Command::new("bash");
            shell.args(["-c", &line.replacen("curl ", "curl -fsS ", 1)]).kill_on_drop(true);
            let output = shell.output().await.map_err(|error| error.to_string())?;
            if output.status.success() {
                Ok(())
            } else {
                Err(String::from_utf8_lossy(&output.stderr).into_owned())
            }
        })
        .await;
        ran += 1;
    }
    ensure!(ran >= 12, "only {ran} lines were found");
    Ok(())
}

async fn the_readmes_demonstration_shows_what_it_says(ctx: Ctx) -> Result<()> {
    let port = free_ports();
    let dev = dev(&ctx, port, &ctx.dir.join("data"), "dev.log").await?;
    started(&dev).await;
    let readme = include_str!("../../../README.md");
    let (_, block) = readme.split_once("<!-- demonstration:").context("the README has a demonstration")?;
    let (_, block) = block.split_once("```sh\n").context("it has commands")?;
    let (block, _) = block.split_once("```").context("the commands end")?;
    // The names first: a port here may have the digits of one there.
    let script = block.replace("8080", "FIRST").replace("8082", "SECOND").replace("8084", "THIRD");
    let script = script
        .replace("FIRST", &port.to_string())
        .replace("SECOND", &(port + 2).to_string())
        .replace("THIRD", &(port + 4).to_string());
    let mut shell = tokio::process::Command::new("bash");
    let output = shell.args(["-euo", "pipefail", "-c", &script]).kill_on_drop(true).output().await?;
    let (said, complained) = (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    );
    ensure!(output.status.success(), "{said}{complained}");
    let (read, statuses) = said.split_once('}').context("a record is read")?;
    ensure!(read.contains("\"value\":\"book\""), "{said}");
    let mut statuses: Vec<_> = statuses.split_whitespace().collect();
    statuses.sort_unstable();
    ensure!(statuses == ["200", "412", "412"], "{said}");
    Ok(())
}

async fn a_batch_of_the_library_compares_and_reads_strongly(ctx: Ctx) -> Result<()> {
    let port = free_ports();
    let dev = dev(&ctx, port, &ctx.dir.join("data"), "dev.log").await?;
    started(&dev).await;
    let client = Client::builder().nodes([1, 3, 5].map(|offset| format!("127.0.0.1:{}", port + offset)));
    let client = client.deadline(START).build().await?;
    let version = client.create("limit", "10").await?.position;
    let session = Session::new();
    // Writes of a key take their turns, whatever they ask for, and the last one has the last word.
    let results = client
        .batch(&[
            Operation::compare_and_set("limit", version, "20").into(),
            Operation::create("limit", "30").into(),
            Operation::create("other", "1").session(&session).into(),
            Operation::write("other", "2").if_present().session(&session).into(),
            Operation::Set { key: "other".to_string(), value: "3".to_string(), ttl: None },
            Operation::delete_if("limit", version).into(),
            Operation::write("other", "4").if_present().visible(Visible::All).session(&session).into(),
        ])
        .await?;
    let refused = |result: &std::result::Result<Outcome, Error>, value: &str| match result {
        Err(Error::NotMet { current: Some(current), may_have_taken_effect: false, .. }) => {
            current.value == value
        }
        _ => false,
    };
    let written = |result: &std::result::Result<Outcome, Error>| matches!(result, Ok(Outcome::Written(_)));
    ensure!([0, 2, 3, 4, 6].iter().all(|index| written(&results[*index])), "{results:?}");
    ensure!([1, 5].iter().all(|index| refused(&results[*index], "20")), "{results:?}");
    let results = client
        .batch(&[
            Operation::read("limit", ReadLevel::strong()),
            Operation::read("other", ReadLevel::session(&session)),
            Operation::read("other", ReadLevel::latest().max_staleness(START)),
            Operation::read("never", ReadLevel::strong()),
        ])
        .await?;
    let values: Vec<_> = results
        .iter()
        .map(|result| match result {
            Ok(Outcome::Read(record)) => record.value.as_str(),
            Err(error) if error.is_not_found() => "not found",
            _ => "failed",
        })
        .collect();
    ensure!(values == ["20", "4", "4", "not found"], "{results:?}");
    client.close().await;
    Ok(())
}

async fn imports_and_lists_of_keys_keep_their_conditions(ctx: Ctx) -> Result<()> {
    let port = free_ports();
    let dev = dev(&ctx, port, &ctx.dir.join("data"), "dev.log").await?;
    started(&dev).await;
    let rpc = [1, 3, 5].map(|offset| format!("127.0.0.1:{}", port + offset)).join(",");
    let http = [0, 2, 4].map(|offset| format!("http://127.0.0.1:{}", port + offset)).join(",");
    for (way, nodes) in [("--rpc", rpc), ("--http", http)] {
        let prefix = way.trim_start_matches('-');
        let line = |key: &str, value: &str| format!("{{\"key\":\"{prefix}:{key}\",\"value\":\"{value}\"}}\n");
        let bitacora = CommandLine::new(&ctx, &[way, &nodes]);
        let import = ["import", "-", "--if-absent", "--visible", "all"];
        bitacora.run_on(&import, (line("a", "1") + &line("b", "1")).as_bytes()).await?.expect(0);
        let said = bitacora.run_on(&import, (line("b", "2") + &line("c", "2")).as_bytes()).await?.expect(7);
        ensure!(
            said.stderr.contains("1 accepted") && said.stderr.contains("1 not written"),
            "{}",
            said.stderr
        );
        // Deleted unless it was changed since.
        let scan = ["scan", "--prefix", prefix, "--output", "json", "--consistency", "strong"];
        let listed = bitacora.run(&scan).await?.expect(0).json()?;
        let listed: String = listed
            .iter()
            .map(|record| {
                serde_json::json!({"key": record["key"], "ifMatch": record["position"]}).to_string() + "\n"
            })
            .collect();
        bitacora.run(&["set", &format!("{prefix}:b"), "3", "--if-match", "*"]).await?.expect(0);
        let said = bitacora.run_on(&["del", "--from-file", "-"], listed.as_bytes()).await?.expect(7);
        ensure!(said.stderr.contains(&format!("{prefix}:b")), "{}", said.stderr);
        let left = bitacora.run(&scan).await?.expect(0).json()?;
        let left: Vec<_> = left.iter().map(|record| (&record["key"], &record["value"])).collect();
        ensure!(left == [(&format!("{prefix}:b").into(), &"3".into())], "{left:?}");
    }
    Ok(())
}

async fn what_is_in_the_way_is_told_in_one_sentence(ctx: Ctx) -> Result<()> {
    let (port, data) = (free_ports(), ctx.dir.join("data"));
    let running = dev(&ctx, port, &data, "running.log").await?;
    started(&running).await;
    let file = ctx.dir.join("a file");
    std::fs::write(&file, "").context("writing a file")?;
    for (what, port, data, names) in [
        ("a port in use", port, ctx.dir.join("other"), format!("port {port} on 127.0.0.1 is in use")),
        ("a folder in use", free_ports(), data, "in use by another process".to_string()),
        ("a file for a folder", free_ports(), file, "--data-dir".to_string()),
        ("ports that there are not", 65_534, ctx.dir.join("third"), "--port".to_string()),
    ] {
        let log = format!("{}.log", what.replace(' ', "-"));
        let dev = dev(&ctx, port, &data, &log).await?;
        let status =
            dev.wait(Duration::from_secs(15)).await.with_context(|| format!("{what}: it went on"))?;
        let text = tail(&dev.log, 50);
        ensure!(!status.success(), "{what}: it ended with {status}");
        ensure!(
            text.contains(&names) && text.lines().count() == 1,
            "{what}: not one sentence with {names:?}: {text}"
        );
    }
    Ok(())
}
