//! Alerts and dashboards over a real Prometheus and real nodes.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bitacora_client::Client;
use e2e::cluster::{Cluster, Node, Options};
use e2e::prometheus::Prometheus;
use e2e::runner::{Ctx, Test};
use e2e::{tests, wait};
use futures_util::future::try_join_all;
use reqwest::Method;
use serde_json::Value;

use super::monitoring::{alerts, dashboards, metrics_in, panels, read};

pub fn tests() -> Vec<Test> {
    // The alerts take the rules' own times.
    let slow = tests![ServersAndPrometheus: alerts_fire_on_a_real_cluster];
    let slow = slow.into_iter().map(|test| test.within(Duration::from_secs(600)));
    slow.chain(tests![ServersAndPrometheus: every_panel_has_data_on_a_real_cluster]).collect()
}

fn target(node: &Node) -> String {
    format!("127.0.0.1:{}", node.api_port)
}

/// Follows what changes at a node.
async fn watch(port: u16) -> Result<()> {
    let mut answer = e2e::http::get(format!("http://127.0.0.1:{port}/watch")).await?.error_for_status()?;
    while answer.chunk().await?.is_some() {}
    Ok(())
}

/// Some of everything that clients do, through every node and both interfaces, over and over.
async fn load(cluster: &Cluster) -> Result<()> {
    let client = Client::builder().nodes(cluster.nodes.iter().map(Node::rpc_address)).build().await?;
    for round in 0_u64.. {
        for node in &cluster.nodes {
            let (api, key) = (node.api(), format!("key {}", round % 100));
            api.set(&key, "value").await?.expect(200);
            node.has(&key, Some("value")).await;
            api.get(&key).await?.expect(200);
            api.get("never set").await?.expect(404);
            api.delete(&format!("key {}", (round + 50) % 100)).await?.expect(200);
            api.call(Method::GET, "/rpc/scan?prefix=key&consistency=strong").await?.expect(200);
            // The second one has to be refused.
            for status in [200, 412] {
                let path =
                    format!("/rpc?key=created {round} {}&value=x&ttl=1m", node.api_port).replace(' ', "%20");
                let absent = [("If-None-Match", "*")];
                api.send(Method::POST, &path, &absent, Vec::new()).await?.expect(status);
            }
            let written = api.set("session", "value").await?;
            let position = written.header("bitacora-position").context("a write has a position")?;
            for level in ["latest", "strong", &format!("session&position={position}")] {
                let path = format!("/rpc?key=session&consistency={level}&max_staleness=1m");
                api.call(Method::GET, &path).await?.expect(200);
            }
            let line = format!("{{\"op\":\"get\",\"key\":\"{key}\"}}\n");
            api.send(Method::POST, "/rpc/batch", &[], line.into_bytes()).await?.expect(200);
        }
        let value = round.to_string();
        client.set("over rpc", &value).await?;
        cluster.all_have("over rpc", Some(&value)).await;
        client.get("over rpc").await?;
        client.delete("not there").await?;
    }
    Ok(())
}

/// A panel's query with a dashboard's variables filled in as Grafana would.
fn fill_in(query: &str, instance: &str) -> Result<String> {
    // Four times the interval of the scrapes, and then some, as these come every second.
    let filled = [("$__rate_interval", "15s"), ("$job", "bitacora"), ("$instance", instance)]
        .iter()
        .fold(query.to_owned(), |query, (name, value)| query.replace(name, value));
    ensure!(!filled.contains('$'), "a variable is left in {filled}");
    Ok(filled)
}

fn is_number(sample: &Value) -> bool {
    sample[1].as_str().and_then(|value| value.parse::<f64>().ok()).is_some_and(f64::is_finite)
}

/// Whether a panel's query shows something.
async fn has_data(prometheus: &Prometheus, query: &str, instant: bool) -> Result<(), String> {
    let says = |error: anyhow::Error| format!("{error:#}");
    let shows = if instant {
        prometheus.query(query).await.map_err(says)?.iter().any(|series| is_number(&series["value"]))
    } else {
        let series = prometheus.query_range(query).await.map_err(says)?;
        series.iter().any(|one| one["values"].as_array().is_some_and(|values| values.iter().any(is_number)))
    };
    if shows { Ok(()) } else { Err(format!("no data: {query}")) }
}

/// The fields of `/status` as OPERATIONS.md writes them.
fn fields(prefix: &str, value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields_of) => {
            for (name, value) in fields_of {
                let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                fields(&path, value, found);
            }
        }
        Value::Array(items) if items.first().is_some_and(Value::is_object) => {
            fields(&format!("{prefix}[]"), &items[0], found);
        }
        _ => {
            found.insert(prefix.to_owned());
        }
    }
}

/// As long as two slow cores may need for scrapes and rates over them.
const DATA: Duration = Duration::from_secs(90);

async fn every_panel_has_data_on_a_real_cluster(ctx: Ctx) -> Result<()> {
    // So that nodes have something to ask each other.
    let cluster = ctx.cluster_with(3, Options::new().env("PEER_READS", "always")).await?;
    let targets: Vec<_> = cluster.nodes.iter().map(target).collect();
    let prometheus = ctx.prometheus(&targets).await?;
    let dashboards = dashboards()?;
    let check = async {
        let (mut shown, mut queries) = (0, 0);
        for (name, dashboard) in &dashboards {
            for variable in dashboard["templating"]["list"].as_array().into_iter().flatten() {
                let Some(query) = variable["query"]["query"].as_str() else { continue };
                let values = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
                let (series, label) =
                    values.and_then(|values| values.rsplit_once(", ")).context("label_values")?;
                let series = fill_in(series, &targets[0])?;
                let path = format!("/api/v1/label/{label}/values?match[]={}", e2e::http::encode(&series));
                let wanted = if label == "job" { "bitacora" } else { &targets[0] };
                wait::until(&format!("the variable {query} has {wanted}"), DATA, || async {
                    let values = prometheus.get(&path).await.map_err(|error| format!("{error:#}"))?;
                    let has =
                        values.as_array().is_some_and(|values| values.iter().any(|value| value == wanted));
                    if has { Ok(()) } else { Err(values.to_string()) }
                })
                .await;
            }
            for panel in panels(dashboard) {
                let targets_of = panel["targets"].as_array().context("a panel's queries")?;
                ensure!(!targets_of.is_empty(), "{name}: {} asks for nothing", panel["title"]);
                for one in targets_of {
                    let query = fill_in(one["expr"].as_str().context("a query")?, &targets[0])?;
                    let what = format!("{name}: {} has data", panel["title"]);
                    let instant = one["instant"] == true;
                    wait::until(&what, DATA, || has_data(&prometheus, &query, instant)).await;
                    queries += 1;
                }
                shown += 1;
            }
        }
        println!("monitoring: {shown} panels, {queries} queries, all with data on a real cluster");

        // The rules are the repository's, loaded; none complains of a query, and none fires on a cluster that is well. The first
        // scrapes may have been of nodes that had not met yet.
        let loaded = wait::until("no alert is pending", DATA, || async {
            let path = "/api/v1/rules?type=alert";
            let groups = prometheus.get(path).await.map_err(|error| format!("{error:#}"))?;
            let groups = groups["groups"].as_array().ok_or("no groups")?.iter();
            let rules: Vec<Value> =
                groups.filter_map(|group| group["rules"].as_array()).flatten().cloned().collect();
            // The disk is this machine's own, and may well be full.
            let silent =
                |rule: &&Value| rule["state"] == "inactive" || rule["name"] == "BitacoraDiskNearlyFull";
            match rules.iter().find(|rule| !silent(rule)) {
                Some(rule) => Err(format!("it fires on a cluster that is well: {rule}")),
                None => Ok(rules),
            }
        })
        .await;
        let names: BTreeSet<_> =
            loaded.iter().filter_map(|rule| rule["name"].as_str()).map(str::to_owned).collect();
        ensure!(names == alerts()?, "Prometheus has the alerts {names:?}");
        let mut asked = 0;
        for rule in &loaded {
            ensure!(rule["health"] == "ok", "{rule}");
            // A misspelt name or job would only ever be silent.
            let expression = rule["query"].as_str().context("an expression")?;
            for name in metrics_in(expression) {
                let query = format!("{name}{{job=\"bitacora\"}}");
                ensure!(!prometheus.query(&query).await?.is_empty(), "{}: no series {query}", rule["name"]);
                asked += 1;
            }
        }
        println!(
            "monitoring: {} alerts are evaluated and silent; {asked} of their series are there",
            loaded.len()
        );

        let mut found = BTreeSet::new();
        fields("", &cluster.nodes[0].api().status().await?, &mut found);
        let guide = read("OPERATIONS.md")?;
        let (_, guide) = guide.split_once("## What `/status` says").context("a section on /status")?;
        let described: BTreeSet<_> = guide
            .lines()
            .filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned()))
            .collect();
        // Those are there only when something is wrong.
        let absent = ["unready", "membership.reason", "log.reason", "differences", "restore.rebuilding"]
            .map(str::to_owned);
        found.extend(absent);
        ensure!(found == described, "/status has {found:?}, OPERATIONS.md {described:?}");
        anyhow::Ok(())
    };
    tokio::select! {
        checked = check => checked,
        loaded = load(&cluster) => loaded.context("the load ended"),
        watched = try_join_all(cluster.nodes.iter().map(|node| watch(node.api_port))) => {
            watched.map(drop).context("the watches ended")
        }
    }
}

/// What a slow link lets through a second: less than what is written.
const SLOW: u32 = 8 * 1024;
/// Of the rules' own times, and twice that for two slow cores.
const FIRING: Duration = Duration::from_secs(200);

/// Writes through a node, far more than a slow link carries.
async fn write_on(node: &Node) -> Result<()> {
    let mut pace = tokio::time::interval(Duration::from_millis(200));
    for round in 0_u64.. {
        pace.tick().await;
        let lines: String = (0..50)
            .map(|i| {
                format!("{{\"op\":\"set\",\"key\":\"{round}-{i}\",\"value\":\"{}\"}}\n", "v".repeat(200))
            })
            .collect();
        node.api().send(Method::POST, "/rpc/batch", &[], lines.into_bytes()).await?.expect(200);
    }
    Ok(())
}

/// Writes through a node that does not reach the brokers.
async fn fail_to_write(node: &Node) -> Result<()> {
    for _ in 0_u64.. {
        node.api().set("key", "value").await?.expect(503);
    }
    Ok(())
}

fn report(cause: Instant, alerts: Vec<(Instant, Value)>) {
    for (at, alert) in alerts {
        let (name, says) = (&alert["labels"]["alertname"], &alert["annotations"]["summary"]);
        println!("monitoring: {:>5.1} s from the cause to {name}: {says}", (at - cause).as_secs_f64());
    }
}

async fn alerts_fire_on_a_real_cluster(ctx: Ctx) -> Result<()> {
    let (broker, proxy) = ctx.own_broker_and_proxy().await?;
    let options = Options::new().brokers(broker.address());
    let mut cluster = ctx.cluster_with(2, options).await?;
    let slow = cluster.add().await?;
    slow.set_env("BROKER_LIST", proxy.address());
    // An answer of the broker must get through the slow link before librdkafka gives it up.
    slow.set_env("KAFKA_PROPERTIES", "max.partition.fetch.bytes=16384");
    slow.set_env("WRITE_TIMEOUT", "1s");
    slow.spawn()?;
    cluster.formed().await;
    let targets: Vec<_> = cluster.nodes.iter().map(target).collect();
    let prometheus = ctx.prometheus(&targets).await?;
    wait::until("all nodes are scraped", DATA, || async {
        let up =
            prometheus.query("sum(up{job=\"bitacora\"} == 1)").await.map_err(|error| format!("{error:#}"))?;
        if up.first().is_some_and(|sum| sum["value"][1] == "3") { Ok(()) } else { Err(format!("{up:?}")) }
    })
    .await;
    let [well, gone, slow] = &cluster.nodes[..] else { panic!("three nodes") };
    let slow_instance = target(slow);

    let check = async {
        // Three causes at once: a slow link, a node that dies, something else that writes to the topic.
        let cause = Instant::now();
        proxy.slow(SLOW);
        gone.kill();
        cluster.topic.writer()?.write(Some(0), Some(b"poison"), Some(b"not a record")).await?;
        let (well, gone) = (target(well), target(gone));
        let lag = [("instance", slow_instance.as_str())];
        let (down, poison) = ([("instance", gone.as_str())], [("instance", well.as_str())]);
        let first = [
            prometheus.fires("BitacoraLagGrowing", &lag, FIRING),
            prometheus.fires("BitacoraNodeDown", &down, FIRING),
            prometheus.fires("BitacoraPoisonRecords", &poison, FIRING),
        ];
        report(cause, try_join_all(first).await?);

        // Cut off, its lag stands still, and nothing that it is given to write is acknowledged.
        let cut = Instant::now();
        proxy.cut();
        let then = try_join_all([
            prometheus.fires("BitacoraLogUnreachable", &lag, FIRING),
            prometheus.fires("BitacoraWritesUnacknowledged", &lag, FIRING),
        ]);
        let then = tokio::select! {
            fired = then => fired?,
            written = fail_to_write(slow) => return written.context("writing ended"),
        };
        report(cut, then);
        report(cause, vec![prometheus.fires("BitacoraMembersMissing", &[], FIRING).await?]);

        // They end with their causes.
        proxy.mend();
        for alert in ["BitacoraLagGrowing", "BitacoraLogUnreachable"] {
            prometheus.is_silent(alert, &lag, FIRING).await?;
        }
        anyhow::Ok(())
    };
    tokio::select! {
        checked = check => checked?,
        written = write_on(well) => written.context("writing ended")?,
    }
    drop((prometheus, cluster));
    broker.remove().await
}
