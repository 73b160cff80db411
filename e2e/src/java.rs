//! What the harness runs with Maven and Java: servers as local processes, and the checks by Kafka's and Avro's own
//! Java libraries.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use tokio::process::Command;
use tokio::sync::Mutex;

use crate::backends;

/// Both are there, whatever runs the servers.
pub async fn available() -> bool {
    backends::java_and_maven().await
}

/// Where downloads and classes are kept between runs: `target/e2e-servers`, out of the source tree.
pub(crate) fn cache() -> PathBuf {
    // The test binary is target/<profile>/deps/e2e-<hash>, wherever the target directory is.
    let target = std::env::current_exe()
        .ok()
        .and_then(|binary| binary.ancestors().nth(3).map(Path::to_path_buf))
        .expect("the test binary is three levels below the target directory");
    target.join("e2e-servers")
}

async fn maven(project: &Path, arguments: &[String]) -> Result<()> {
    let output = Command::new("mvn")
        .args(["--batch-mode", "--quiet", "--file"])
        .arg(project.join("pom.xml"))
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .context("running mvn")?;
    ensure!(
        output.status.success(),
        "mvn {} failed in {}:\n{}",
        arguments.join(" "),
        project.display(),
        String::from_utf8_lossy(&output.stdout)
    );
    Ok(())
}

/// The directory with the jars that `<project>/pom.xml` (below e2e/) depends on; fetched once for each content of it.
pub async fn dependencies(project: PathBuf) -> Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(&project);
    let pom = std::fs::read(source.join("pom.xml")).context("reading pom.xml")?;
    let name = project.file_name().expect("a project has a name");
    let jars = cache().join(name).join("jars");
    let stamp = jars.join("pom.xml");
    // The stamp is written last, so that an interrupted download is not taken for a whole one.
    if std::fs::read(&stamp).is_ok_and(|done| done == pom) {
        return Ok(jars);
    }
    if jars.exists() {
        std::fs::remove_dir_all(&jars).context("removing outdated jars")?;
    }
    std::fs::create_dir_all(&jars).context("creating the jar directory")?;
    maven(
        &source,
        &[
            "dependency:copy-dependencies".to_string(),
            "-DincludeScope=runtime".to_string(),
            format!("-DoutputDirectory={}", jars.display()),
        ],
    )
    .await?;
    std::fs::write(&stamp, pom).context("writing the stamp")?;
    Ok(jars)
}

/// Compiles `e2e/<project>`, once a run, and returns the class path to run it with.
pub async fn class_path(project: &str) -> Result<String> {
    // Two Mavens at once in one build directory would break each other.
    static COMPILED: Mutex<BTreeMap<String, String>> = Mutex::const_new(BTreeMap::new());
    let mut compiled = COMPILED.lock().await;
    if let Some(class_path) = compiled.get(project) {
        return Ok(class_path.clone());
    }
    let jars = dependencies(PathBuf::from(project)).await?;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(project);
    let build = jars.with_file_name("build");
    maven(&source, &["compile".to_string(), format!("-De2e.build={}", build.display())]).await?;
    let class_path = format!("{}:{}/*", build.join("classes").display(), jars.display());
    compiled.insert(project.to_string(), class_path.clone());
    Ok(class_path)
}

/// A program of `class_path`, that reads nothing and ends with whoever holds it.
pub fn program(class_path: &str, class: &str) -> Command {
    let mut command = Command::new("java");
    // Short programs: what the second compiler would make is not used long enough.
    command.args(["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", class_path, class]);
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}
