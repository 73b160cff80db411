//! What the pages for people name is there: paths, links, the mistakes of the simulation.

use std::path::{Path, PathBuf};

/// The checkout's root.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Pages for people, relative to the root.
fn pages() -> Vec<PathBuf> {
    let mut pages: Vec<PathBuf> =
        ["ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "README.md", "SECURITY.md"]
            .map(Into::into)
            .into();
    for folder in ["docs", "monitoring", "compose/aws"] {
        let entries = std::fs::read_dir(root().join(folder)).expect("the folder is there");
        let paths = entries.map(|entry| entry.expect("readable").path());
        let pages_there = paths.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
        pages.extend(pages_there.map(|path| Path::new(folder).join(path.file_name().expect("a file"))));
    }
    pages
}

fn read(page: &Path) -> String {
    std::fs::read_to_string(root().join(page)).unwrap_or_else(|error| panic!("{}: {error}", page.display()))
}

/// The page without its blocks of code.
fn prose(text: &str) -> String {
    text.split("```").step_by(2).collect()
}

/// What stands between back-ticks.
fn code_spans(prose: &str) -> impl Iterator<Item = &str> {
    prose.split('`').skip(1).step_by(2)
}

/// Whether a text is meant as a path of this repository.
fn is_path(text: &str) -> bool {
    const TOP: [&str; 9] =
        [".ci/", ".github/", "client/", "compose/", "docs/", "e2e/", "monitoring/", "node/", "src/"];
    const NAMED: [&str; 5] = [".avpr", ".md", ".rs", ".toml", ".yaml"];
    let plain = text.chars().all(|c| c.is_ascii_alphanumeric() || "._-/".contains(c));
    let is_file = |end: &&str| text.len() > end.len() && text.ends_with(*end);
    plain && (TOP.iter().any(|top| text.starts_with(top)) || NAMED.iter().any(is_file))
}

/// Whether a path of a page is there: from the root, from the page's folder, or from the node's sources.
fn exists(page: &Path, path: &str) -> bool {
    let beside = page.parent().unwrap_or(Path::new(""));
    [Path::new(""), beside, Path::new("node/src")].iter().any(|base| root().join(base).join(path).exists())
}

/// The targets of a page's links.
fn links(prose: &str) -> impl Iterator<Item = &str> {
    prose.split("](").skip(1).filter_map(|rest| rest.split_once(')').map(|(target, _)| target))
}

/// The anchor that a heading gets.
fn anchor(heading: &str) -> String {
    let kept = heading.trim_start_matches('#').trim().chars();
    let kept = kept.filter(|c| c.is_alphanumeric() || "-_ ".contains(*c));
    kept.flat_map(char::to_lowercase).map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// What is wrong with a link of a page, if anything is.
fn broken(page: &Path, link: &str) -> Option<String> {
    if link.contains("://") {
        return None;
    }
    let (path, section) = link.split_once('#').map_or((link, None), |(path, section)| (path, Some(section)));
    let target =
        if path.is_empty() { page.to_owned() } else { page.parent().unwrap_or(Path::new("")).join(path) };
    if !root().join(&target).exists() {
        return Some(format!("{}: the link {link} leads nowhere", page.display()));
    }
    let section = section?;
    let text = prose(&read(&target));
    let found = text.lines().filter(|line| line.starts_with('#')).any(|line| anchor(line) == section);
    (!found).then(|| format!("{}: {link}: there is no such section", page.display()))
}

#[test]
fn paths_in_the_pages_exist() {
    let mut wrong = Vec::new();
    for page in pages() {
        let prose = prose(&read(&page));
        let missing = code_spans(&prose).filter(|text| is_path(text) && !exists(&page, text));
        wrong.extend(missing.map(|text| format!("{}: `{text}` is not there", page.display())));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn links_in_the_pages_lead_somewhere() {
    let mut wrong = Vec::new();
    for page in pages() {
        let prose = prose(&read(&page));
        wrong.extend(links(&prose).filter_map(|link| broken(&page, link)));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_wrong_path_or_link_is_found() {
    let page = Path::new("docs/glossary.md");
    assert!(is_path("node/src/main.rs") && exists(page, "node/src/main.rs"));
    assert!(is_path("store/mod.rs") && exists(page, "store/mod.rs"), "as short for a file of the node");
    assert!(is_path("trimming.md") && exists(page, "trimming.md"), "beside the page");
    assert!(is_path("node/src/none.rs") && !exists(page, "node/src/none.rs"));
    assert!(!is_path("/rpc/batch") && !is_path("bitacora-data/dev") && !is_path("Log::open"));
    assert_eq!(broken(page, "trimming.md#what-is-appended"), None);
    assert_eq!(broken(page, "https://example.org/none"), None);
    assert!(broken(page, "none.md").is_some());
    assert!(broken(page, "trimming.md#none").is_some());
    assert!(broken(page, "#none").is_some());
}

/// One of the pages says of each deliberate mistake of the simulation what it breaks, and of no other.
#[test]
fn every_simulated_mistake_is_explained() {
    let code = read(Path::new("node/tests/simulation/mistake.rs"));
    let (_, rest) = code.split_once("pub enum Mistake {").expect("the enum of the mistakes");
    let (body, _) = rest.split_once("\n}").expect("its end");
    let mut mistakes: Vec<_> = body.lines().filter_map(|line| line.trim().strip_suffix(',')).collect();
    let pages = ["docs/trimming.md", "docs/conditional-writes.md"].map(|page| read(Path::new(page)));
    let rows = pages.iter().flat_map(|page| {
        let (_, section) = page.split_once("## What each deliberate mistake breaks").expect("the section");
        let section = section.split("\n## ").next().unwrap_or_default();
        section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
    });
    let mut explained: Vec<_> = rows.map(|(name, _)| name).collect();
    mistakes.sort_unstable();
    explained.sort_unstable();
    assert_eq!(explained, mistakes);
}

/// `just test` names each test there is, as Cargo has no way to leave some out: none is forgotten but those that take minutes.
#[test]
fn the_fast_tier_has_every_test_but_the_slow_ones() {
    const SLOW: [&str; 2] = ["e2e", "simulation"];
    let manifest = read(Path::new("Cargo.toml"));
    let (_, members) = manifest.split_once("\nmembers = [").expect("the workspace's members");
    let (members, _) = members.split_once(']').expect("their end");
    let mut tests: Vec<String> = Vec::new();
    for member in members.split(',').map(|member| member.trim().trim_matches('"')) {
        let Ok(entries) = std::fs::read_dir(root().join(member).join("tests")) else { continue };
        for path in entries.map(|entry| entry.expect("readable").path()) {
            let is_test = path.join("main.rs").exists() || path.extension().is_some_and(|end| end == "rs");
            tests.extend(is_test.then(|| path.file_stem().expect("a name").to_string_lossy().into_owned()));
        }
    }
    tests.retain(|test| !SLOW.contains(&test.as_str()));
    let recipes = read(Path::new("justfile"));
    let (_, recipe) = recipes.split_once("\ntest *ARGS:\n").expect("the recipe");
    let words = recipe.lines().next().expect("its line").split("--test ").skip(1);
    let mut named: Vec<&str> = words.filter_map(|word| word.split_whitespace().next()).collect();
    tests.sort_unstable();
    named.sort_unstable();
    assert_eq!(named, tests, "on the left: what `just test` names; on the right: what there is");
}
