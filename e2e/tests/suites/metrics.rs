//! What a node prints on `/metrics`, against the page that says so.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::cluster::{Options, START};
use e2e::runner::{Ctx, Test};
use e2e::topic::KeyValue;
use e2e::{tests, wait};
use futures_util::{StreamExt, TryStreamExt, stream};
use reqwest::Method;

pub fn tests() -> Vec<Test> {
    tests![
        Servers: the_page_lists_exactly_the_metrics_there_are
    ]
}

/// A metric's type and the names of its labels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Shape {
    kind: String,
    labels: BTreeSet<String>,
}

/// The tables of `monitoring/METRICS.md`.
fn page() -> Result<BTreeMap<String, Shape>> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../monitoring/METRICS.md");
    let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let mut metrics = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [name, kind, labels, meaning] = cells[..] else { anyhow::bail!("not four cells: {line}") };
        ensure!(!meaning.is_empty(), "{name} is not explained");
        let labels = labels.split(',').map(|label| label.trim().trim_matches('`').to_owned());
        let labels = labels.filter(|label| !label.is_empty()).collect();
        let name = name.trim_matches('`').to_owned();
        let twice = metrics.insert(name.clone(), Shape { kind: kind.to_owned(), labels });
        ensure!(twice.is_none(), "{name} is there twice");
    }
    Ok(metrics)
}

/// Adds what an exposition text holds.
fn collect(text: &str, metrics: &mut BTreeMap<String, Shape>) -> Result<()> {
    let mut current = (String::new(), String::new());
    for line in text.lines() {
        if let Some(declared) = line.strip_prefix("# TYPE ") {
            let (name, kind) = declared.split_once(' ').context("a type without a name")?;
            current = (name.to_owned(), kind.to_owned());
            metrics.entry(current.0.clone()).or_default().kind.clone_from(&current.1);
        } else if !line.starts_with('#') {
            let (series, value) = line.rsplit_once(' ').with_context(|| format!("the line {line:?}"))?;
            let value: f64 = value.parse().with_context(|| format!("the line {line:?}"))?;
            ensure!(value.is_finite(), "{line}");
            ensure!(series.starts_with(&current.0), "{line} below the type of {}", current.0);
            let labels = series.split_once('{').map_or("", |(_, labels)| labels.trim_end_matches('}'));
            let shape = metrics.entry(current.0.clone()).or_default();
            // No label's value holds a comma or an equals sign.
            let names = labels.split(',').filter_map(|label| label.split_once('=')).map(|(name, _)| name);
            shape.labels.extend(names.filter(|name| *name != "le").map(str::to_owned));
        }
    }
    Ok(())
}

const RECORDS: usize = 20_000;

async fn the_page_lists_exactly_the_metrics_there_are(ctx: Ctx) -> Result<()> {
    let expected = page()?;
    ensure!(expected.len() > 60, "{} metrics on the page", expected.len());
    let mut cluster = ctx.cluster_with(1, Options::new()).await?;
    let writer = cluster.topic.writer()?;
    stream::iter(0..RECORDS)
        .map(|i| {
            let writer = &writer;
            async move { writer.write_record(&KeyValue::new(&format!("key-{i}"), "value")).await }
        })
        .buffer_unordered(RECORDS)
        .try_for_each(|_| async { Ok(()) })
        .await?;
    let node = &cluster.nodes[0];
    node.api().set("key", "value").await?.expect(200);
    node.has("key", Some("value")).await;
    let printed = tokio::sync::Mutex::new(BTreeMap::new());
    // A node that reads slowly has something to say about its restore.
    let cold = cluster.add().await?;
    cold.set_env("KAFKA_PROPERTIES", "max.partition.fetch.bytes=1000");
    cold.set_env("SNAPSHOT", "never");
    cold.spawn()?;
    let api = cold.api();
    // Collected as they come: some are there for a moment only.
    wait::until("every metric of the page is printed", START + Duration::from_secs(10), || async {
        let answer = api.call(Method::GET, "/metrics").await.map_err(|error| format!("{error:#}"))?;
        let mut printed = printed.lock().await;
        collect(&answer.text(), &mut printed).map_err(|error| format!("{error:#}"))?;
        let missing: Vec<_> = expected.keys().filter(|name| !printed.contains_key(*name)).collect();
        if missing.is_empty() { Ok(()) } else { Err(format!("not printed: {missing:?}")) }
    })
    .await;
    let printed = printed.into_inner();
    for (name, shape) in &printed {
        let on_page = expected.get(name).with_context(|| format!("{name} is not on the page: {shape:?}"))?;
        ensure!(on_page == shape, "{name} is {shape:?}, the page says {on_page:?}");
    }
    println!("metrics: {} on the page, as many printed, with these types and labels", expected.len());
    Ok(())
}
