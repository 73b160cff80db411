//! `export`, and the way back by `import`.

use std::fs;
use std::path::Path;

use crate::node::{FakeNode, now_ms};
use crate::program::{
    DONE, FAILED, Folder, UNAVAILABLE, UNCLEAR, import_on, killed_while_writing, run_at, run_at_with, text,
};

#[test]
fn what_is_exported_can_be_imported() {
    let from = FakeNode::holding(1_500, |n| format!("v,\"{n}\"\n\t"));
    let (to, folder) = (FakeNode::start(), Folder::new());
    let expires = now_ms() + 3_600_000;
    from.set_until("short", "lived", expires);
    let export = |arguments: &[&str]| run_at(&from, &[&["export"], arguments].concat());
    for name in ["out.ndjson", "out.csv", "out.avro"] {
        let file = folder.path(name);
        export(&[&file, "--page", "100"]).code(DONE).says("1501 records");
        assert!(!Path::new(&(file.clone() + ".part")).exists());
        to.clear();
        run_at(&to, &["import", &file]).code(DONE).says("1501 accepted");
        assert_eq!(to.value("k0007").as_deref(), Some("v,\"7\"\n\t"));
        assert!((to.ttl("short").expect("it is there") - expires).abs() < 30_000);
    }
    let piped = export(&["-", "--prefix", "k00"]).code(DONE).stdout;
    assert_eq!(piped.lines().count(), 100);
    to.clear();
    run_at_with(&to, &["import", "-"], piped.as_bytes()).code(DONE).says("100 accepted");
    // What scan prints is taken as well.
    let scanned = run_at(&from, &["scan", "--start", "k1499"]).code(DONE).stdout;
    run_at_with(&to, &["import", "-"], scanned.as_bytes()).code(DONE).says("2 accepted");
    assert!((to.ttl("short").expect("it is there") - expires).abs() < 30_000);
}

#[test]
fn an_export_that_broke_off_goes_on_where_it_was() {
    let (node, folder) = (FakeNode::holding(1_000, |_| "v".into()), Folder::new());
    for name in ["out.ndjson", "out.csv"] {
        let (file, checkpoint) = (folder.path(name), folder.path("c"));
        let export = |option: &str| run_at(&node, &["export", &file, "--checkpoint", &checkpoint, option]);
        node.break_after(4);
        export("--page=100").code(UNAVAILABLE).says("run it again");
        assert!(!Path::new(&file).exists(), "half an export has no name");
        let part = file.clone() + ".part";
        killed_while_writing(&part, b"{\"key\":\"k9");
        export("--prefix=x").code(FAILED).says("another export");
        node.break_after(u64::MAX);
        export("--page=100").code(DONE).says("going on after").says("1000 records");
        assert!(!Path::new(&checkpoint).exists() && !Path::new(&part).exists());
        let fresh = folder.path(&format!("fresh-{name}"));
        run_at(&node, &["export", &fresh]).code(DONE);
        assert_eq!(text(&file), text(&fresh));
    }
}

#[test]
fn avro_files_go_on_too() {
    let from = FakeNode::holding(1_000, |n| format!("v{n}").repeat(50));
    let (to, folder) = (FakeNode::start(), Folder::new());
    let (file, checkpoint) = (folder.path("out.avro"), folder.path("c"));
    for codec in ["null", "deflate"] {
        let export = ["export", &file, "--checkpoint", &checkpoint, "--page=100", "--avro-codec", codec];
        from.break_after(4);
        run_at(&from, &export).code(UNAVAILABLE).says("run it again");
        killed_while_writing(&(file.clone() + ".part"), b"half a block");
        from.break_after(u64::MAX);
        run_at(&from, &export).code(DONE).says("going on after").says("1000 records");

        to.clear();
        let options = ["--retry-for=0", "--batch=50", "--parallel=2"];
        let import = || import_on(&to, &file, &checkpoint, &options);
        to.break_after(8);
        import().code(UNCLEAR).says("run it again");
        to.break_after(u64::MAX);
        import().code(DONE).says("going on at line").says("1000 accepted, 0 rejected");
        assert_eq!(to.value("k0999"), Some("v999".repeat(50)));
        fs::remove_file(&checkpoint).expect("it is there");
    }
    // What is whole of a file that is cut off is imported, and the rest is told.
    let bytes = fs::read(&file).expect("it is there");
    let half = folder.path("half.avro");
    fs::write(&half, &bytes[..bytes.len() - 5]).expect("written");
    to.clear();
    run_at(&to, &["import", &half]).code(FAILED).says("half.avro").says("ends inside it");
    assert!(to.value("k0000").is_some());
}
