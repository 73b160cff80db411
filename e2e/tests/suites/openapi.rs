//! What a node says of its API in `/openapi.json`: openapi-spec-validator finds it valid, schemathesis finds nothing that a cluster
//! does otherwise, and clients that common generators make of it read and write.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::cluster::Cluster;
use e2e::runner::{Ctx, Test};
use e2e::{npm, python, tests};
use tokio::process::Command;

/// How long schemathesis goes on, beside what it takes to start.
const SECONDS: u64 = 60;
/// The same requests each time; `SCHEMATHESIS_SEED` makes others.
const SEED: &str = "1";

pub fn tests() -> Vec<Test> {
    let mut tests = tests![
        ServersAndPython: a_generated_python_client_reads_and_writes;
        ServersAndNpm: a_generated_typescript_client_does
    ];
    let schemathesis = tests![ServersAndPython: schemathesis_finds_nothing];
    tests.extend(schemathesis.into_iter().map(|test| test.within(Duration::from_secs(seconds() + 240))));
    tests
}

fn seconds() -> u64 {
    let given = std::env::var("SCHEMATHESIS_SECONDS").ok();
    given.map_or(SECONDS, |text| text.parse().expect("SCHEMATHESIS_SECONDS is a number"))
}

/// Runs a command in a test's folder; returns what it prints.
async fn printed(ctx: &Ctx, mut command: Command, what: &str) -> Result<String> {
    command.current_dir(&ctx.dir).kill_on_drop(true);
    let output = command.output().await.with_context(|| what.to_owned())?;
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{what} ended with {}:\n{text}", output.status);
    Ok(text)
}

async fn schemathesis_finds_nothing(ctx: Ctx) -> Result<()> {
    let cluster: Cluster = ctx.cluster().await?;
    let seed = std::env::var("SCHEMATHESIS_SEED").unwrap_or_else(|_| SEED.to_owned());
    let mut fuzz = python::script("openapi", "fuzz.py").await?;
    fuzz.args([&cluster.nodes[0].http_url(), &seconds().to_string(), &seed]);
    let text = printed(&ctx, fuzz, "schemathesis").await?;
    let line =
        |start: &str| text.lines().map(str::trim).find(|line| line.starts_with(start)).map(str::to_owned);
    let cases = text.split_once("Test cases:").and_then(|(_, rest)| rest.trim_start().lines().next());
    let cases = cases.with_context(|| format!("schemathesis counts its cases:\n{text}"))?;
    let links = line("API Links:").with_context(|| format!("schemathesis follows links:\n{text}"))?;
    println!("e2e: schemathesis, seed {seed}: {cases}, 0 failures; {links}");
    let number: u64 = cases.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or_default();
    ensure!(number > 300, "schemathesis sent only {number} requests:\n{text}");
    Ok(())
}

async fn a_generated_python_client_reads_and_writes(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster().await?;
    let mut client = python::script("openapi", "client.py").await?;
    client.arg(cluster.nodes[1].http_url());
    printed(&ctx, client, "the Python client").await?;
    Ok(())
}

async fn a_generated_typescript_client_does(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster().await?;
    let modules = npm::modules("openapi").await?;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi");
    for file in ["client.ts", "tsconfig.json"] {
        std::fs::copy(source.join(file), ctx.dir.join(file)).with_context(|| format!("copying {file}"))?;
    }
    std::fs::write(ctx.dir.join("package.json"), r#"{"type":"module"}"#)?;
    std::os::unix::fs::symlink(&modules, ctx.dir.join("node_modules"))?;
    let url = cluster.nodes[2].http_url();
    let description = format!("{url}/openapi.json");
    let steps: [(&str, &[&str]); 3] = [
        ("node_modules/openapi-typescript/bin/cli.js", &[&description, "-o", "api.d.ts"]),
        ("node_modules/typescript/bin/tsc", &["-p", "."]),
        ("client.js", &[&url]),
    ];
    for (program, arguments) in steps {
        let mut node = Command::new("node");
        node.arg(program).args(arguments).stdin(std::process::Stdio::null());
        printed(&ctx, node, program).await?;
    }
    Ok(())
}
