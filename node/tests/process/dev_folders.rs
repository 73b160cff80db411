//! `dev` finds the stores of its nodes again, whatever ports they have.

use std::path::Path;

use rustix::process::Signal;

use super::program::Program;

fn folders(data: &Path) -> Vec<String> {
    let mut found: Vec<String> = std::fs::read_dir(data)
        .expect("a folder")
        .map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("node"))
        .collect();
    found.sort();
    found
}

fn run(nodes: u16, data: &Path) {
    let mut node = Program::dev(nodes, data, |_| ());
    node.answers("/health/ready", 200);
    node.signal(Signal::TERM);
    assert_eq!(node.ended().code(), Some(0));
}

#[test]
fn another_port_finds_the_same_folders() {
    let data = tempfile::tempdir().expect("a folder");
    run(2, data.path());
    let before = folders(data.path());
    run(2, data.path());
    assert_eq!(folders(data.path()), before);
    run(1, data.path());
    assert_eq!(folders(data.path()), before);
}

#[test]
fn folders_of_an_earlier_version_are_taken_over() {
    let data = tempfile::tempdir().expect("a folder");
    run(2, data.path());
    let names = folders(data.path());
    // As they were named once, by the nodes' ports; in the order of numbers, not of letters.
    for (name, port) in names.iter().zip([9_000, 10_000]) {
        std::fs::write(data.path().join(name).join("mark"), port.to_string()).expect("written");
        let old = data.path().join(format!("node-{port}"));
        std::fs::rename(data.path().join(name), old).expect("renamed");
    }
    run(2, data.path());
    assert_eq!(folders(data.path()), names);
    for (name, port) in names.iter().zip([9_000, 10_000]) {
        let mark = std::fs::read_to_string(data.path().join(name).join("mark")).expect("kept");
        assert_eq!(mark, port.to_string());
    }
}
