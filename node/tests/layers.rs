//! No arrow runs back up: a room of the node uses the rooms below it, and none beside or above it. The layers are those of
//! ARCHITECTURE.md.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// From the top. What is in the first may use each other; `lib` has helpers that anybody may use.
const LAYERS: [&[&str]; 10] = [
    &["main", "settings", "serve", "dev", "node", "process", "lib", "testing"],
    &["http", "rpc"],
    &["server"],
    &["service"],
    &["trimming"],
    &["replication"],
    &["cluster", "store"],
    &["log"],
    &["answer_text", "clock", "data_dir", "lmdb", "metrics", "permits", "telemetry", "worker"],
    &["http_client", "log_lines"],
];

fn layer(room: &str) -> Option<usize> {
    LAYERS.iter().position(|rooms| rooms.contains(&room))
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("a folder of sources") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The code of a file without comments, and without the tests at its end.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// The rooms that a file names after `crate::`, also within braces.
fn uses(code: &str) -> BTreeSet<&str> {
    let name = |text: &str| text.find(|c: char| !c.is_ascii_lowercase() && c != '_').unwrap_or(text.len());
    let mut found = BTreeSet::new();
    for rest in code.split("crate::").skip(1) {
        let group = rest.strip_prefix('{').and_then(|group| group.split_once("};"));
        let names: Vec<&str> = group.map_or_else(|| vec![rest], |(names, _)| names.split(',').collect());
        found.extend(names.iter().map(|text| text.trim()).map(|text| &text[..name(text)]));
    }
    found
}

#[test]
fn no_arrow_runs_back_up() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut wrong = Vec::new();
    for file in files.iter().filter(|file| !file.to_string_lossy().contains("tests")) {
        let path = file.strip_prefix(&root).expect("it lies there");
        let first = path.iter().next().expect("a name").to_string_lossy();
        let room = first.trim_end_matches(".rs");
        let Some(from) = layer(room) else {
            panic!("{room} is in no layer; add it here and to ARCHITECTURE.md")
        };
        if from == 0 {
            continue;
        }
        let code = code(&std::fs::read_to_string(file).expect("readable"));
        let above = uses(&code).into_iter().filter(|used| *used != room);
        let above = above.filter(|used| layer(used).is_some_and(|to| to <= from));
        wrong.extend(above.map(|used| format!("{} uses {used}, which is not below it", path.display())));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn uses_are_found() {
    let text = "use crate::{http::Server, store};\n// crate::rpc\nfn f() { crate::log::open(); crate::now_ms() }\n#[cfg(test)]\nmod tests { use crate::node; }";
    assert_eq!(uses(&code(text)), BTreeSet::from(["http", "log", "now_ms", "store"]));
}

/// A client that is made elsewhere would go through the proxy that the environment names.
#[test]
fn http_clients_are_made_in_one_place() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let makes = ["Client::new()", "Client::builder()", "ClientBuilder::new()", "reqwest::get("];
    let wrong: Vec<_> = files
        .iter()
        .filter(|file| !file.ends_with("http_client.rs"))
        .filter(|file| {
            let code = code(&std::fs::read_to_string(file).expect("readable"));
            makes.iter().any(|words| code.contains(words))
        })
        .collect();
    assert!(wrong.is_empty(), "they should use http_client::builder(): {wrong:?}");
}
