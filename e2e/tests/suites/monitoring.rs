//! What an operator is given, in `monitoring/`: alerts, dashboards and the guide, against promtool and Grafana's own types.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use e2e::prometheus::rules;
use e2e::runner::{Ctx, Test};
use e2e::{npm, tests};
use serde_json::Value;

pub fn tests() -> Vec<Test> {
    tests![
        ServersAndPrometheus: each_alert_has_both_cases_and_a_runbook;
        Npm: the_dashboards_fit_grafanas_own_types;
        Nothing: every_metric_that_is_used_is_on_the_page
    ]
}

pub fn monitoring() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../monitoring")
}

pub fn read(path: impl AsRef<Path>) -> Result<String> {
    let path = monitoring().join(path);
    std::fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// The text of a file of rules or of their tests, `what` such as `rules`.
pub fn prometheus_files(what: &str) -> Result<Vec<(PathBuf, String)>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(rules().join(what)).context("listing the rules")? {
        let path = entry?.path();
        let text = read(&path)?;
        files.push((path, text));
    }
    files.sort();
    ensure!(!files.is_empty(), "no {what}");
    Ok(files)
}

/// The names of all alerts.
pub fn alerts() -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for (_, text) in prometheus_files("rules")? {
        names.extend(text.lines().filter_map(|line| Some(line.trim().strip_prefix("- alert: ")?.to_owned())));
    }
    Ok(names)
}

async fn each_alert_has_both_cases_and_a_runbook(ctx: Ctx) -> Result<()> {
    for file in ["prometheus.yml", "tls/prometheus.yml"] {
        let config = rules().join(file);
        ctx.promtool(&["check", "config", "--syntax-only", &config.to_string_lossy()]).await?;
    }
    for (file, _) in prometheus_files("rules")? {
        ctx.promtool(&["check", "rules", &file.to_string_lossy()]).await?;
    }
    for (file, _) in prometheus_files("tests")? {
        ctx.promtool(&["test", "rules", &file.to_string_lossy()]).await?;
    }

    let guide = read("OPERATIONS.md")?;
    let tests: String = prometheus_files("tests")?.into_iter().map(|(_, text)| text).collect();
    let rules: String = prometheus_files("rules")?.into_iter().map(|(_, text)| text).collect();
    // A case is `alertname`, and then what is expected: a list, that is empty on the same line.
    let (mut firing, mut silent) = (BTreeSet::new(), BTreeSet::new());
    for case in tests.split("alertname: ").skip(1) {
        let name: String = case.chars().take_while(char::is_ascii_alphanumeric).collect();
        let (_, expected) =
            case.split_once("exp_alerts:").with_context(|| format!("no exp_alerts: {case}"))?;
        let none = expected.trim_start_matches(' ').starts_with("[]");
        if none { &mut silent } else { &mut firing }.insert(name);
    }
    let alerts = alerts()?;
    ensure!(alerts.len() >= 7, "{alerts:?}");
    for name in &alerts {
        ensure!(firing.contains(name), "{name} has no case in which it fires");
        ensure!(silent.contains(name), "{name} has no case in which it is silent");
        let anchor = name.to_lowercase();
        ensure!(guide.contains(&format!("\n### {name}\n")), "{name} has no section in OPERATIONS.md");
        ensure!(
            guide.contains(&format!("](#{anchor})")),
            "the table of OPERATIONS.md does not lead to {name}"
        );
        let url = format!("runbook_url: monitoring/OPERATIONS.md#{anchor}\n");
        ensure!(rules.contains(&url), "no alert has {url}");
    }
    let sections = guide.lines().filter_map(|line| line.strip_prefix("### ")).map(str::to_owned).collect();
    ensure!(alerts == sections, "OPERATIONS.md has the sections {sections:?}, the alerts are {alerts:?}");
    println!("monitoring: {} alerts, each with a firing and a silent case and a runbook", alerts.len());
    Ok(())
}

/// Whatever looks like a metric of a node in a text.
pub fn metrics_in(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("bitacora_") || word.starts_with("process_")).collect()
}

/// Names on METRICS.md, with their types.
pub fn page() -> Result<BTreeMap<String, String>> {
    let text = read("METRICS.md")?;
    let rows = text.lines().filter(|line| line.starts_with("| `")).map(|line| {
        let mut cells = line.trim_matches('|').split('|').map(str::trim);
        let cell = cells.next().zip(cells.next()).with_context(|| format!("not a row: {line}"));
        cell.map(|(name, kind)| (name.trim_matches('`').to_owned(), kind.to_owned()))
    });
    rows.collect()
}

async fn every_metric_that_is_used_is_on_the_page(_: Ctx) -> Result<()> {
    let page = page()?;
    let mut texts: Vec<_> = prometheus_files("rules")?;
    texts.extend(prometheus_files("tests")?);
    texts.push(("OPERATIONS.md".into(), read("OPERATIONS.md")?));
    for (name, _) in dashboards()? {
        let path = format!("grafana/dashboards/{name}.json");
        let text = read(&path)?;
        texts.push((path.into(), text));
    }
    let mut used = BTreeSet::new();
    for (file, text) in &texts {
        for name in metrics_in(text) {
            let of_histogram = ["_bucket", "_sum", "_count"].iter().any(|suffix| {
                name.strip_suffix(suffix)
                    .is_some_and(|base| page.get(base).is_some_and(|kind| kind == "histogram"))
            });
            let known = of_histogram || page.get(name).is_some_and(|kind| kind != "histogram");
            ensure!(known, "{} uses {name}, which METRICS.md does not have as such", file.display());
            used.insert(name);
        }
    }
    println!("monitoring: {} metrics are used, all on the page", used.len());
    Ok(())
}

/// Every dashboard by its file's name.
pub fn dashboards() -> Result<Vec<(String, Value)>> {
    let mut dashboards = Vec::new();
    for entry in std::fs::read_dir(monitoring().join("grafana/dashboards")).context("listing dashboards")? {
        let path = entry?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let json = serde_json::from_str(&read(&path)?).with_context(|| path.display().to_string())?;
        dashboards.push((name, json));
    }
    dashboards.sort_by(|(a, _), (b, _)| a.cmp(b));
    ensure!(dashboards.len() >= 2, "{dashboards:?}");
    Ok(dashboards)
}

/// The panels of a dashboard, those in closed rows too, but not the rows.
pub fn panels(dashboard: &Value) -> Vec<&Value> {
    let all = dashboard["panels"].as_array().into_iter().flatten();
    let deep =
        all.flat_map(|panel| std::iter::once(panel).chain(panel["panels"].as_array().into_iter().flatten()));
    deep.filter(|panel| panel["type"] != "row").collect()
}

/// Compiles each dashboard as a value of `e2e/grafana/dashboard.ts`'s type; what tsc says of each.
async fn type_errors(ctx: &Ctx, dashboards: &[(String, Value)]) -> Result<BTreeMap<String, Vec<String>>> {
    let dir = ctx.dir.join("grafana");
    std::fs::create_dir_all(&dir).context("creating the folder")?;
    let modules = npm::modules("grafana").await?;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("grafana");
    for file in ["dashboard.ts", "tsconfig.json"] {
        std::fs::copy(source.join(file), dir.join(file)).with_context(|| format!("copying {file}"))?;
    }
    std::os::unix::fs::symlink(&modules, dir.join("node_modules")).context("linking node_modules")?;
    for (name, dashboard) in dashboards {
        let text = serde_json::to_string_pretty(dashboard)?;
        let head = "import type { Dashboard } from \"./dashboard\"; export const dashboard: Dashboard = ";
        std::fs::write(dir.join(format!("{name}.ts")), format!("{head}{text};\n"))?;
    }
    let mut tsc = tokio::process::Command::new("node");
    tsc.arg(modules.join("typescript/bin/tsc")).args(["--pretty", "false", "--project", "."]);
    let output = tsc.current_dir(&dir).kill_on_drop(true).output().await.context("running tsc")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut errors: BTreeMap<_, Vec<_>> =
        dashboards.iter().map(|(name, _)| (name.clone(), Vec::new())).collect();
    for line in text.lines().filter(|line| line.contains("error TS")) {
        let file = line.split_once(".ts(").map(|(file, _)| file);
        let of = file.and_then(|file| errors.get_mut(file)).with_context(|| format!("tsc says:\n{text}"))?;
        of.push(line.to_owned());
    }
    let clean = errors.values().all(Vec::is_empty);
    ensure!(clean == output.status.success(), "tsc ended with {}:\n{text}", output.status);
    Ok(errors)
}

async fn the_dashboards_fit_grafanas_own_types(ctx: Ctx) -> Result<()> {
    let good = dashboards()?;
    // Proof that the types are sharp: each of these must be refused.
    let panel = |dashboard: &Value, kind: &str| {
        let all = dashboard["panels"].as_array().into_iter().flatten();
        all.into_iter().position(|panel| panel["type"] == kind)
    };
    let change = |kind: &str, pointer: &str, value: Value| {
        let mut dashboard = good[good.len() - 1].1.clone();
        let at = panel(&dashboard, kind).with_context(|| format!("no {kind} panel"))?;
        let place = format!("/panels/{at}{pointer}");
        let (parent, name) = place.rsplit_once('/').context("a pointer")?;
        let parent = dashboard.pointer_mut(parent).with_context(|| format!("{place} is not there"))?;
        parent[name] = value;
        anyhow::Ok(dashboard)
    };
    let bad = [
        ("an_option_that_is_misspelt", change("stat", "/options/graphMod", "area".into())?),
        ("a_value_that_is_misspelt", change("timeseries", "/options/tooltip/mode", "mutli".into())?),
        (
            "a_custom_field_of_another_panel",
            change("heatmap", "/fieldConfig/defaults/custom/drawStyle", "line".into())?,
        ),
        ("a_panel_of_no_type", change("stat", "/type", "stats".into())?),
        ("a_threshold_without_a_mode", change("stat", "/fieldConfig/defaults/thresholds/mode", Value::Null)?),
        (
            "a_query_that_is_no_text",
            change("timeseries", "/targets", serde_json::json!([{ "refId": "A", "expr": 1 }]))?,
        ),
    ];
    let mut all = good.clone();
    all.extend(bad.iter().map(|(name, dashboard)| ((*name).to_owned(), dashboard.clone())));
    let errors = type_errors(&ctx, &all).await?;
    for (name, _) in &good {
        ensure!(errors[name].is_empty(), "{name}.json does not fit:\n{}", errors[name].join("\n"));
    }
    for (name, _) in &bad {
        ensure!(!errors[*name].is_empty(), "{name} is not noticed");
    }
    // What types can't say.
    for (name, dashboard) in &good {
        let (mut ids, mut titles) = (BTreeSet::new(), BTreeSet::new());
        for panel in panels(dashboard) {
            ensure!(ids.insert(panel["id"].to_string()), "{name}: two panels {}", panel["id"]);
            ensure!(titles.insert(panel["title"].to_string()), "{name}: two panels {}", panel["title"]);
            let described = panel["description"].as_str().is_some_and(|text| text.ends_with('.'));
            ensure!(described, "{name}: {} is not described", panel["title"]);
            for target in panel["targets"].as_array().into_iter().flatten() {
                let legend = target["legendFormat"].as_str().is_some_and(|text| !text.is_empty());
                ensure!(legend || panel["type"] == "table", "{name}: {} has no legend", panel["title"]);
            }
        }
    }
    let count: usize = good.iter().map(|(_, dashboard)| panels(dashboard).len()).sum();
    println!(
        "monitoring: {count} panels of {} dashboards fit Grafana's types; {} mistakes don't",
        good.len(),
        bad.len()
    );
    Ok(())
}
