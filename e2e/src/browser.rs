//! Chromium, driven by playwright-core: what a page does in a real browser.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use crate::npm;

/// Names of browsers that are Chromium, in the order in which they are taken.
const NAMES: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];

/// The browser: that of `E2E_BROWSER`, or the first in the path.
fn browser() -> Option<PathBuf> {
    if let Some(given) = std::env::var_os("E2E_BROWSER") {
        return Some(PathBuf::from(given));
    }
    let path = std::env::var_os("PATH")?;
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    NAMES.iter().find_map(|name| folders.iter().map(|folder| folder.join(name)).find(|file| file.is_file()))
}

/// Whether there is a browser, and what drives it.
pub async fn available() -> bool {
    browser().is_some() && npm::available().await
}

/// Runs a flow of `e2e/console/` at a node's address. `told` is called with each line that it prints, before it goes on reading.
pub async fn run_flow(
    dir: &Path,
    flow: &str,
    arguments: &[&str],
    mut told: impl AsyncFnMut(&str) -> Result<()>,
) -> Result<()> {
    let modules = npm::modules("console").await?;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("console");
    let place = dir.join(flow);
    std::fs::create_dir_all(&place).context("creating the flow's folder")?;
    for entry in std::fs::read_dir(&source).context("listing the flows")? {
        let file = entry?.path();
        if file.extension().is_some_and(|extension| extension == "mjs") {
            let name = file.file_name().context("a file has a name")?;
            std::fs::copy(&file, place.join(name)).with_context(|| file.display().to_string())?;
        }
    }
    std::os::unix::fs::symlink(&modules, place.join("node_modules")).context("linking node_modules")?;
    let errors = std::fs::File::create(dir.join(format!("{flow}.log"))).context("creating the flow's log")?;
    let mut node = Command::new("node");
    node.arg("main.mjs").arg(flow).args(arguments).current_dir(&place);
    node.env("E2E_BROWSER", browser().context("there is no browser")?);
    node.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors).kill_on_drop(true);
    let mut running = node.spawn().context("running node")?;
    let mut lines = BufReader::new(running.stdout.take().context("its output is read")?).lines();
    while let Some(line) = lines.next_line().await.context("reading what the flow prints")? {
        told(&line).await?;
    }
    let status = running.wait().await.context("waiting for the flow")?;
    ensure!(status.success(), "the flow {flow} failed; its log is below");
    Ok(())
}
