//! Watches as people's programs see them: curl, a browser's EventSource and a library of Python follow through HAProxy while each node
//! is stopped and started again, and miss nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::balancer::Balancer;
use e2e::cluster::{Cluster, Options, START};
use e2e::http::{Api, encode};
use e2e::runner::{Ctx, Test};
use e2e::watches::sse::Parser;
use e2e::{browser, curl, python, tests};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

pub fn tests() -> Vec<Test> {
    tests![ServersAndClients: real_clients_miss_nothing_while_nodes_stop]
}

/// Awkward in a query.
const PREFIX: &str = "carts/ü&";
/// Who is told of it, and of all before it, is done.
const LAST: &str = "carts/ü&end";
/// For the clients to begin, and for what follows the last write.
const SOON: Duration = Duration::from_secs(60);
/// As in the Compose deployment.
const DRAIN_DELAY: &str = "2500ms";

/// What a client prints: that it is current, and in the end what it knows.
type Said = UnboundedSender<(&'static str, String)>;

async fn real_clients_miss_nothing_while_nodes_stop(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster_with(3, Options::new().env("DRAIN_DELAY", DRAIN_DELAY)).await?;
    let ports: Vec<u16> = cluster.nodes.iter().map(|node| node.api_port).collect();
    let balancer = Balancer::start(&ctx.dir, &ports).await?;
    let (said, mut heard) = unbounded_channel();
    let base = format!("http://127.0.0.1:{}", balancer.port);
    let clients = async {
        tokio::try_join!(
            follow_by_curl(&base, said.clone()),
            follow_by_python(&base, said.clone()),
            follow_by_browser(&ctx, &base, said.clone()),
        )
    };
    let work = async {
        let api = Api::new(balancer.port);
        api.set(&format!("{PREFIX}before"), "it was there").await?.expect(200);
        for _ in 0..3 {
            let (client, line) = next(&mut heard).await?;
            ensure!(line == "current", "{client} says {line}");
        }
        let written = stop_each_node(&cluster, &balancer, &api).await?;
        api.set(LAST, "the end").await?.expect(200);
        anyhow::Ok(written)
    };
    let clients = async {
        let told = tokio::time::timeout(Duration::from_secs(240), clients).await;
        told.context("the clients have not been told of the last write")?
    };
    let (_, written) = tokio::try_join!(clients, work)?;
    let scan = cluster.nodes[0].api();
    let path = format!("/rpc/scan?prefix={}&limit=10000&consistency=strong", encode(PREFIX));
    let scan = scan.call(reqwest::Method::GET, &path).await?.expect(200).json();
    let records = scan["records"].as_array().context("a page has records")?;
    let expected: BTreeMap<_, _> =
        records.iter().filter_map(|record| Some((record["key"].as_str()?, &record["value"]))).collect();
    for _ in 0..3 {
        let (client, mut outcome) = loop {
            let (client, line) = next(&mut heard).await?;
            if line != "current" {
                break (client, serde_json::from_str::<Value>(&line).with_context(|| line.clone())?);
            }
        };
        let state = outcome["state"].take();
        println!("watches_clients: {client}: {written} records written, {outcome}");
        ensure!(state == json!(expected), "{client} ends with {state}, and the store has {expected:?}");
        // Each is told, be it only that it is gone again; so are the one of before and the last.
        ensure!(outcome["told"] == written + 2, "{client} was told of {outcome}, of {written}");
        ensure!(outcome["byes"].as_u64() > Some(0), "{client} was told by no node that it stops: {outcome}");
        ensure!(outcome["connections"].as_u64() > Some(1), "{client} never connected again: {outcome}");
    }
    Ok(())
}

async fn next(heard: &mut UnboundedReceiver<(&'static str, String)>) -> Result<(&'static str, String)> {
    let line = tokio::time::timeout(SOON, heard.recv()).await;
    line.context("no client says anything")?.context("the clients have gone")
}

/// Stops one node after the other, and starts it again, while records are written through the balancer. Returns how many.
async fn stop_each_node(cluster: &Cluster, balancer: &Balancer, api: &Api) -> Result<usize> {
    let mut written = 0;
    for node in &cluster.nodes {
        let around = async {
            node.terminate(START).await;
            node.spawn()?;
            node.ready().await;
            balancer.has(cluster.nodes.len()).await
        };
        let mut around = std::pin::pin!(around);
        loop {
            let key = format!("{PREFIX}{written:05}");
            api.set(&key, &format!("value {written}")).await?.expect(200);
            if written % 5 == 4 {
                api.delete(&format!("{PREFIX}{:05}", written - 4)).await?.expect(200);
            }
            written += 1;
            tokio::select! {
                done = &mut around => break done?,
                () = tokio::time::sleep(Duration::from_millis(10)) => {}
            }
        }
    }
    Ok(written)
}

async fn follow_by_python(base: &str, said: Said) -> Result<()> {
    let mut command = python::script("watches", "client.py").await?;
    command.args([base, PREFIX, LAST]).stdout(Stdio::piped());
    let mut running = command.spawn().context("running the Python client")?;
    let mut lines = BufReader::new(running.stdout.take().context("its output is read")?).lines();
    while let Some(line) = lines.next_line().await? {
        let _ = said.send(("httpx-sse", line));
    }
    let status = running.wait().await?;
    ensure!(status.success(), "the Python client ended with {status}");
    Ok(())
}

async fn follow_by_browser(ctx: &Ctx, base: &str, said: Said) -> Result<()> {
    browser::run_flow(&ctx.dir, "follows", &[base, PREFIX, LAST], async |line| {
        let _ = said.send(("EventSource", line.to_owned()));
        Ok(())
    })
    .await
}

/// curl connects once: who uses it in a loop hands on the last token.
async fn follow_by_curl(base: &str, said: Said) -> Result<()> {
    let url = format!("{base}/watch?prefix={}&initial=true", encode(PREFIX));
    let (mut state, mut told, mut token) = (BTreeMap::new(), BTreeSet::new(), None);
    let (mut byes, mut connections) = (0, 0);
    loop {
        let headers: Vec<String> = token.iter().map(|token| format!("Last-Event-ID: {token}")).collect();
        let mut running = curl::follow(&url, &headers).spawn().context("running curl")?;
        let mut output = running.stdout.take().context("its output is read")?;
        let (mut parser, mut buffer) = (Parser::default(), vec![0; 16 * 1024]);
        connections += 1;
        loop {
            let count = output.read(&mut buffer).await?;
            if count == 0 {
                break;
            }
            parser.push(&buffer[..count]);
            while let Some(frame) = parser.frame()? {
                let data: Value = serde_json::from_str(&frame.data)?;
                let key = data["key"].as_str().unwrap_or_default().to_owned();
                match frame.event.as_str() {
                    "set" => {
                        state.insert(key.clone(), data["value"].clone());
                        told.insert(key.clone());
                    }
                    // It may have come and gone while this was away.
                    "delete" => {
                        state.remove(&key);
                        told.insert(key.clone());
                    }
                    "current" => drop(said.send(("curl", "current".to_owned()))),
                    "bye" => byes += 1,
                    "gap" => bail!("curl was told of a gap: {data}"),
                    _ => {}
                }
                token = Some(frame.id);
                // There is no order between keys: all before it was told once the watch says how far it is.
                if told.contains(LAST) && matches!(frame.event.as_str(), "current" | "progress") {
                    let outcome = json!({ "state": state, "told": told.len(), "byes": byes, "connections": connections });
                    let _ = said.send(("curl", outcome.to_string()));
                    return Ok(());
                }
            }
        }
        running.wait().await?;
    }
}
