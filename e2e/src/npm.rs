//! What the harness takes from npm: the checks of what is written for JavaScript programs.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use tokio::process::Command;
use tokio::sync::{Mutex, OnceCell};

use crate::java;

static FETCHING: Mutex<()> = Mutex::const_new(());

/// Whether Node and npm are there; asked once.
pub async fn available() -> bool {
    static FOUND: OnceCell<bool> = OnceCell::const_new();
    let look = async || {
        for program in ["node", "npm"] {
            let mut command = Command::new(program);
            command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            if !command.status().await.is_ok_and(|status| status.success()) {
                return false;
            }
        }
        true
    };
    *FOUND.get_or_init(look).await
}

/// The `node_modules` that `e2e/<project>/package-lock.json` pins; fetched once for each content of it.
pub async fn modules(project: &str) -> Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(project);
    let lock = std::fs::read(source.join("package-lock.json")).context("reading package-lock.json")?;
    let dir = java::cache().join(project);
    let (modules, stamp) = (dir.join("node_modules"), dir.join("installed.json"));
    // Tests that run side by side must not fetch into the same folder.
    let _alone = FETCHING.lock().await;
    // The stamp is written last, so that an interrupted download is not taken for a whole one.
    if std::fs::read(&stamp).is_ok_and(|done| done == lock) {
        return Ok(modules);
    }
    std::fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    for file in ["package.json", "package-lock.json"] {
        std::fs::copy(source.join(file), dir.join(file)).with_context(|| format!("copying {file}"))?;
    }
    let mut install = Command::new("npm");
    install.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]).current_dir(&dir);
    let output = install.stdin(Stdio::null()).kill_on_drop(true).output().await.context("running npm")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "npm ci failed in {}:\n{errors}", dir.display());
    std::fs::write(&stamp, lock).context("writing the stamp")?;
    Ok(modules)
}
