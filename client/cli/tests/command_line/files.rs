//! What `export` does to the file that it is to write: links, FIFOs, devices, modes, other exports at the same time.

use std::fs::{self, OpenOptions, Permissions};
use std::io::Read as _;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use crate::node::FakeNode;
use crate::program::{
    DONE, FAILED, Folder, USAGE, address_of_nobody, command, command_at, json_lines, run, run_at, text,
    wait_for,
};

/// The node's records, as many as `holding` was asked for.
fn node() -> FakeNode {
    FakeNode::holding(300, |n| format!("v{n}"))
}

fn names(folder: &Folder) -> Vec<String> {
    let entries = fs::read_dir(folder.path("")).expect("a folder");
    let mut names: Vec<_> =
        entries.map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_link_stays_and_its_target_keeps_its_mode() {
    let (node, folder) = (node(), Folder::new());
    let (target, link) = (folder.with("target.ndjson", "old"), folder.path("link.ndjson"));
    fs::set_permissions(&target, Permissions::from_mode(0o640)).expect("set");
    symlink("target.ndjson", &link).expect("linked");
    let checkpoint = folder.path("c");
    for options in [&[][..], &["--checkpoint", &checkpoint]] {
        fs::write(&target, "old").expect("written");
        run_at(&node, &[&["export", &link], options].concat()).code(DONE).says("300 records");
        assert!(Path::new(&link).is_symlink(), "the link was replaced");
        assert_eq!(json_lines(&text(&target)).len(), 300);
        assert_eq!(fs::metadata(&target).expect("there").permissions().mode() & 0o7777, 0o640);
        assert_eq!(names(&folder), ["link.ndjson", "target.ndjson"]);
    }
}

#[test]
fn a_device_stays_one() {
    let (node, folder) = (node(), Folder::new());
    // Not by its own name: were it replaced, the machine would have lost it.
    let link = folder.path("null.ndjson");
    symlink("/dev/null", &link).expect("linked");
    run_at(&node, &["export", &link]).code(DONE).says("300 records");
    assert!(fs::metadata(&link).expect("there").file_type().is_char_device(), "it was replaced");
    let full = folder.path("full.csv");
    symlink("/dev/full", &full).expect("linked");
    run_at(&node, &["export", &full]).code(FAILED).says("full.csv can't be written: No space left");
    let checkpoint = folder.path("c");
    run_at(&node, &["export", &link, "--checkpoint", &checkpoint]).code(USAGE).says("--checkpoint");
}

#[test]
fn a_fifo_takes_the_records() {
    let (node, folder) = (node(), Folder::new());
    let fifo = folder.path("fifo.ndjson");
    assert!(Command::new("mkfifo").arg(&fifo).status().expect("mkfifo").success());
    // Open for both, so that neither side waits for the other.
    let mut reader = OpenOptions::new().read(true).write(true).open(&fifo).expect("opened");
    run_at(&node, &["export", &fifo]).code(DONE).says("300 records");
    assert!(fs::metadata(&fifo).expect("there").file_type().is_fifo(), "it was replaced");
    let mut read = vec![0; 64 << 10];
    let length = reader.read(&mut read).expect("read");
    assert_eq!(json_lines(&String::from_utf8_lossy(&read[..length])).len(), 300);
}

#[test]
fn stdout_has_names_too() {
    let (node, folder) = (node(), Folder::new());
    let out = folder.with("out", "before\n");
    for name in ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"] {
        // By a link: were that replaced, the machine would not have lost its own.
        let link = folder.path(&name.replace('/', "-"));
        symlink(name, &link).expect("linked");
        let append = OpenOptions::new().append(true).open(&out).expect("opened");
        let mut export = command_at(&node, &["export", &link, "--format", "ndjson"]);
        assert!(export.stdout(append).status().expect("it runs").success(), "{name}");
        assert!(Path::new(&link).is_symlink(), "{name} was replaced");
    }
    let text = text(&out);
    assert!(text.starts_with("before\n"), "what was there is gone");
    assert_eq!(text.lines().count(), 901);
}

#[test]
fn two_exports_at_once_do_not_mix() {
    let (slow, fast, folder) = (node(), FakeNode::holding(250, |_| "other".into()), Folder::new());
    let file = folder.path("out.ndjson");
    slow.hang_after(2);
    // A request that hangs is broken off at last, and sent again.
    let twice = format!("{0},{0}", slow.url());
    let first = command(&["--http", &twice, "export", &file, "--page=100"]).spawn().expect("it starts");
    wait_for("a page that hangs", || slow.hanging() > 0);
    run_at(&fast, &["export", &file]).code(DONE).says("250 records");
    assert_eq!(text(&file).matches("other").count(), 250);
    slow.hang(false);
    let first = first.wait_with_output().expect("it ends");
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    assert_eq!((json_lines(&text(&file)).len(), text(&file).matches("other").count()), (300, 0));
    assert_eq!(names(&folder), ["out.ndjson"]);
}

#[test]
fn a_second_export_with_checkpoint_is_refused() {
    let (node, folder) = (node(), Folder::new());
    let (file, one, two) = (folder.path("out.ndjson"), folder.path("one"), folder.path("two"));
    node.hang_after(2);
    let twice = format!("{0},{0}", node.url());
    let first = ["--http", &twice, "export", &file, "--page=100", "--checkpoint", &one];
    let first = command(&first).spawn().expect("it starts");
    wait_for("a page that hangs", || node.hanging() > 0);
    run_at(&node, &["export", &file, "--checkpoint", &two]).code(FAILED).says("another export");
    node.hang(false);
    assert!(first.wait_with_output().expect("it ends").status.success());
    assert_eq!(json_lines(&text(&file)).len(), 300);
}

#[test]
fn paths_are_tried_before_a_node_is_asked() {
    let folder = Folder::new();
    let (good, bad) = (folder.path("out.ndjson"), folder.path("missing/file.ndjson"));
    let nobody = format!("http://{}", address_of_nobody());
    for node in [["--http", &nobody], ["--rpc", &address_of_nobody()]] {
        let export = |arguments: &[&str]| run(&[&node[..], &["export"], arguments].concat());
        export(&[&bad]).code(FAILED).says(&bad);
        export(&[&good, "--checkpoint", &bad]).code(FAILED).says(&bad);
        export(&[&folder.path(""), "--format", "csv"]).code(FAILED).says("directory");
    }
    assert!(names(&folder).is_empty(), "{:?}", names(&folder));
}

#[test]
fn the_checkpoint_is_another_file() {
    let (node, folder) = (node(), Folder::new());
    let (file, other) = (folder.path("out.ndjson"), folder.path("other.ndjson"));
    run_at(&node, &["export", &file, "--checkpoint", &file]).code(USAGE).says("same file");
    fs::write(&file, "").expect("written");
    fs::hard_link(&file, &other).expect("linked");
    run_at(&node, &["export", &file, "--checkpoint", &other]).code(USAGE).says("same file");
    run_at(&node, &["export", &file, "--checkpoint", &(file.clone() + ".part")])
        .code(USAGE)
        .says("same file");
    assert_eq!(text(&file), "");
}
