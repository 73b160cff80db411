//! Earlier versions of the node, built from this repository's history.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

use crate::cluster::cargo;

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// The folder of what cargo builds, in which the tests lie: `target/debug/deps/e2e-…`.
fn target() -> Result<PathBuf> {
    let exe = std::env::current_exe().context("the path of this program")?;
    exe.ancestors().nth(3).map(Path::to_owned).context("this program lies in cargo's folder")
}

async fn run(mut command: Command, what: &str) -> Result<()> {
    let output =
        command.stdin(Stdio::null()).kill_on_drop(true).output().await.with_context(|| what.to_owned())?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{what} ended with {}:\n{stderr}", output.status);
    Ok(())
}

/// The node of a commit, in the profile of a debug build; built the first time, which takes minutes, and kept below cargo's folder.
pub async fn node_of(commit: &str) -> Result<PathBuf> {
    let versions = target()?.join("versions");
    let (source, built) = (versions.join(commit), versions.join(format!("bitacora-node-{commit}")));
    if built.exists() {
        return Ok(built);
    }
    let mut known = Command::new("git");
    known.args(["cat-file", "-e", &format!("{commit}^{{commit}}")]).current_dir(root());
    let known = known.stdin(Stdio::null()).stderr(Stdio::null()).status().await.context("running git")?;
    ensure!(
        known.success(),
        "the commit {commit} is not in this clone, which may be a shallow one: git fetch --unshallow"
    );
    if source.exists() {
        std::fs::remove_dir_all(&source).context("removing what an earlier run left")?;
    }
    std::fs::create_dir_all(&source).with_context(|| source.display().to_string())?;
    let archive = source.with_extension("tar");
    let mut pack = Command::new("git");
    pack.args(["archive", "--format=tar", "--output"]).arg(&archive).arg(commit).current_dir(root());
    run(pack, "git archive").await?;
    let mut unpack = Command::new("tar");
    unpack.arg("-xf").arg(&archive).current_dir(&source);
    run(unpack, "tar").await?;
    std::fs::remove_file(&archive).context("removing the archive")?;
    println!("  building the node of {commit}, which takes minutes");
    let folder = versions.join("target");
    let mut build = cargo();
    build.args(["build", "--locked", "-p", "bitacora-node", "--bin", "bitacora-node"]).current_dir(&source);
    build.env("CARGO_TARGET_DIR", &folder);
    run(build, &format!("building the node of {commit}")).await?;
    // Its name is there only when it is whole.
    let part = built.with_extension("part");
    std::fs::copy(folder.join("debug/bitacora-node"), &part).context("keeping the node")?;
    std::fs::rename(&part, &built).context("keeping the node")?;
    std::fs::remove_dir_all(&source).context("removing the sources")?;
    Ok(built)
}
