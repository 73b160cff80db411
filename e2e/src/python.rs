//! Scripts in Python, each in an environment with the packages that its folder's `requirements.txt` pins.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use tokio::process::Command;
use tokio::sync::Mutex;

use crate::aws::both;
use crate::java;

/// Whether there is a Python that can make environments.
pub(crate) async fn available() -> bool {
    let mut command = Command::new("python3");
    command.args(["-c", "import ensurepip, venv"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().await.is_ok_and(|status| status.success())
}

/// The call of a script in a folder of this package, to be given its arguments. It has no stdin unless it is given one.
pub async fn script(folder: &str, name: &str) -> Result<Command> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut command = Command::new(environment(&folder).await?);
    command.arg(folder.join(name)).stdin(Stdio::null()).kill_on_drop(true);
    Ok(command)
}

/// Runs a script that checks something; `Ok` with what it printed, or `Err` with what it found to be wrong, by which it ends with 1.
pub async fn verdict(mut check: Command) -> Result<Result<String, String>> {
    let output = check.output().await.context("running python3")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    match output.status.code() {
        Some(0) => Ok(Ok(said)),
        // Its own words, not a traceback's.
        Some(1) if !said.is_empty() => Ok(Err(said)),
        _ => bail!("{check:?} ended with {}: {}", output.status, both(&output)),
    }
}

/// The Python of an environment with the packages of a folder, made once for each content of its `requirements.txt`.
async fn environment(folder: &Path) -> Result<PathBuf> {
    // Two tests that made it at the same time would each clear what the other one installs.
    static MAKING: Mutex<()> = Mutex::const_new(());
    let _making = MAKING.lock().await;
    let requirements = folder.join("requirements.txt");
    let wanted = std::fs::read(&requirements).context("reading requirements.txt")?;
    let name = folder.file_name().context("a folder with a name")?;
    let environment = java::cache().join("python").join(name);
    let python = environment.join("bin/python");
    // The stamp is written last, so that an interrupted installation is not taken for a whole one.
    let stamp = environment.join("requirements.txt");
    if std::fs::read(&stamp).is_ok_and(|done| done == wanted) {
        return Ok(python);
    }
    let mut make = Command::new("python3");
    make.args(["-m", "venv", "--clear"]).arg(&environment);
    let mut install = Command::new(&python);
    install.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"]);
    install.arg(&requirements);
    for mut command in [make, install] {
        let output =
            command.stdin(Stdio::null()).kill_on_drop(true).output().await.context("running python3")?;
        ensure!(output.status.success(), "{command:?} ended with {}: {}", output.status, both(&output));
    }
    std::fs::write(&stamp, wanted).context("writing the stamp")?;
    Ok(python)
}
