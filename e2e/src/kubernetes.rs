//! The example of `compose/kubernetes`: its documents, the check of them by Kubernetes' own schemas, and its pods as containers.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::python;

/// The oldest version that has all that the example says, and one of the newest.
const VERSIONS: [&str; 2] = ["1.29", "1.37"];

/// The file of the example.
pub fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../compose/kubernetes/bitacora.yaml")
}

/// The documents of a file, which may be YAML or JSON; `Err` with what Kubernetes would not take of them.
pub async fn documents(file: &Path) -> Result<Result<Vec<Value>, String>> {
    let mut command = python::script("kubernetes", "validate.py").await?;
    command.arg(file).args(VERSIONS);
    match python::verdict(command).await? {
        Ok(said) => Ok(Ok(serde_json::from_str(&said).context("the documents as JSON")?)),
        Err(wrong) => Ok(Err(wrong)),
    }
}

/// The only document of a kind and name.
pub fn document<'a>(documents: &'a [Value], kind: &str, name: &str) -> Result<&'a Value> {
    let mut found = documents.iter().filter(|it| it["kind"] == kind && it["metadata"]["name"] == name);
    let first = found.next().with_context(|| format!("there is no {kind} {name}"))?;
    if found.next().is_some() {
        bail!("there are two of {kind} {name}");
    }
    Ok(first)
}

/// The options of `docker run` that start the container of a pod as Kubernetes does; `env` goes over its variables. What comes from a Secret
/// or from the pod's own status is left out, unless `env` has it. `$(NAME)` in a value is the variable of that name.
pub fn run_options(pod: &Value, env: &[(&str, &str)]) -> Result<Vec<String>> {
    let container = &pod["containers"][0];
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().map(str::to_string).context("a text");
    let mut options = Vec::new();
    for variable in list(&container["env"]) {
        let name = text(&variable["name"])?;
        if variable["value"].is_null() || env.iter().any(|(given, _)| *given == name) {
            continue;
        }
        let mut value = text(&variable["value"])?;
        for (given, of_it) in env {
            value = value.replace(&format!("$({given})"), of_it);
        }
        options.push(format!("--env={name}={value}"));
    }
    options.extend(env.iter().map(|(name, value)| format!("--env={name}={value}")));
    for mount in list(&container["volumeMounts"]) {
        let path = text(&mount["mountPath"])?;
        let mut volumes = list(&pod["volumes"]).into_iter();
        match volumes.find(|volume| volume["name"] == mount["name"]) {
            Some(volume) if volume["emptyDir"]["medium"] == "Memory" => {
                options.push(format!("--tmpfs={path}"))
            }
            // Of a claim.
            _ => options.push(format!("--volume={path}")),
        }
    }
    let (of_pod, own) = (&pod["securityContext"], &container["securityContext"]);
    options.push(format!("--user={}:{}", of_pod["runAsUser"], of_pod["runAsGroup"]));
    if own["readOnlyRootFilesystem"] == true {
        options.push("--read-only".to_string());
    }
    if own["allowPrivilegeEscalation"] == false {
        options.push("--security-opt=no-new-privileges:true".to_string());
    }
    for capability in list(&own["capabilities"]["drop"]) {
        options.push(format!("--cap-drop={}", text(&capability)?));
    }
    options.push(format!("--stop-timeout={}", pod["terminationGracePeriodSeconds"]));
    // Kubernetes does not look at the image's own check.
    options.push("--no-healthcheck".to_string());
    Ok(options)
}
