//! What `import` writes: rejected lines and checkpoints, which are never its input, and are tried before the work begins.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt, symlink};
use std::process::{Command, Stdio};

use crate::node::FakeNode;
use crate::program::{
    DONE, FAILED, Folder, REJECTED, Run, USAGE, command_at, finish, import_on, json_lines, ndjson, run_at,
    text, wait_for,
};

const INPUT: &str = "{\"key\":\"k\",\"value\":\"v\"}\nwrong\n";

fn rejecting(node: &FakeNode, file: &str, rejects: &str) -> Run {
    run_at(node, &["import", file, "--rejects", rejects])
}

fn fifo(path: &str) {
    assert!(Command::new("mkfifo").arg(path).status().is_ok_and(|status| status.success()));
}

mod the_input {
    use super::*;

    #[test]
    fn is_not_written_under_any_of_its_names() {
        let (node, folder) = (FakeNode::start(), Folder::new());
        let file = folder.with("in.ndjson", INPUT);
        let names = ["hard", "soft", "twice"].map(|name| folder.path(name));
        fs::hard_link(&file, &names[0]).expect("linked");
        symlink(&file, &names[1]).expect("linked");
        symlink("soft", &names[2]).expect("linked");
        let dotted = folder.path("./in.ndjson");
        for name in names.iter().chain([&file, &dotted]) {
            rejecting(&node, &file, name).code(USAGE).says("the same file").says("--rejects");
            import_on(&node, &file, name, &[]).code(USAGE).says("the same file").says("--checkpoint");
            rejecting(&node, name, &file).code(USAGE).says("the same file");
            assert_eq!(text(&file), INPUT, "{name}");
        }
        assert_eq!(node.sets(), 0);
    }

    #[test]
    fn is_not_written_when_it_is_stdin() {
        let (node, folder) = (FakeNode::start(), Folder::new());
        let file = folder.with("in.ndjson", INPUT);
        for name in ["-", "/dev/stdin"] {
            let mut import = command_at(&node, &["import", name, "--rejects", &file]);
            import.stdin(File::open(&file).expect("it is there"));
            finish(&mut import, b"").code(USAGE).says("the same file");
        }
        let mut import = command_at(&node, &["import", &file]);
        let stderr = File::options().append(true).open(&file).expect("it is there");
        assert_eq!(import.stderr(stderr).status().expect("it ends").code(), Some(USAGE));
        // Where messages go is not to be read, but what was there stays.
        assert!(text(&file).starts_with(INPUT) && node.sets() == 0);
    }

    #[test]
    fn may_be_a_fifo_that_is_not_written_either() {
        let (node, folder) = (FakeNode::start(), Folder::new());
        let path = folder.path("fifo.ndjson");
        fifo(&path);
        rejecting(&node, &path, &path).code(USAGE).says("the same file");
        rejecting(&node, "/dev/null", "/dev/null").code(USAGE).says("--format");
        run_at(&node, &["import", "/dev/null", "--format=ndjson", "--rejects=/dev/null"]).code(DONE);
    }
}

#[test]
fn rejects_and_checkpoint_are_two_files() {
    let (node, folder) = (FakeNode::start(), Folder::new());
    let (file, both) = (folder.with("in.ndjson", INPUT), folder.path("both"));
    import_on(&node, &file, &both, &["--rejects", &both]).code(USAGE).says("the same file");
    symlink(&both, folder.path("link")).expect("linked");
    import_on(&node, &file, &both, &["--rejects", &folder.path("link")]).code(USAGE);
    assert!(fs::metadata(&both).is_err() && node.sets() == 0);
}

mod before_the_first_record {
    use super::*;

    #[test]
    fn what_can_not_be_written_is_told() {
        let (node, folder) = (FakeNode::start(), Folder::new());
        let (file, other) = (folder.with("in.ndjson", ndjson(5_000)), folder.with("other", "kept"));
        // Also for root, who may write to a folder of any mode.
        for path in
            [&folder.path(""), &folder.path("none/x"), &folder.path("other/x"), "/proc/none", "/sys/none"]
        {
            rejecting(&node, &file, path).code(FAILED).says("--rejects").says("can't be written");
            import_on(&node, &file, path, &["--rejects", &other]).code(FAILED).says("checkpoint");
            import_on(&node, &file, &folder.path("c"), &["--rejects", path]).code(FAILED).says("--rejects");
        }
        assert_eq!((node.sets(), text(&other).as_str()), (0, "kept"));
        assert!(fs::metadata(folder.path("c")).is_err());
    }

    #[test]
    fn a_wrong_input_leaves_the_rejected_lines_of_before() {
        let (node, folder) = (FakeNode::start(), Folder::new());
        let (file, rejects) = (folder.with("in.csv", "no header\n"), folder.with("rejects", "kept"));
        rejecting(&node, &file, &rejects).code(FAILED).says("header");
        rejecting(&node, &folder.path("none.csv"), &rejects).code(FAILED).says("none.csv");
        assert_eq!(text(&rejects), "kept");
    }
}

mod rejects {
    use super::*;

    #[test]
    fn go_to_devices() {
        let (node, folder) = (FakeNode::start(), Folder::new());
        let (file, link) = (folder.with("in.ndjson", INPUT), folder.path("null"));
        symlink("/dev/null", &link).expect("linked");
        for path in ["/dev/null", &link] {
            rejecting(&node, &file, path).code(REJECTED).says("1 accepted, 1 rejected");
        }
        assert!(fs::metadata("/dev/null").expect("there").file_type().is_char_device());
        rejecting(&node, &file, "/dev/full").code(FAILED).says("/dev/full (--rejects) can't be written");
        import_on(&node, &file, &folder.path("c"), &["--rejects", "/dev/null"]).code(REJECTED);
        import_on(&node, &file, &folder.path("c"), &["--rejects", "/dev/null"])
            .code(REJECTED)
            .says("going on");
    }

    #[test]
    fn go_to_stdout() {
        let (node, folder) = (FakeNode::start(), Folder::new());
        let file = folder.with("in.ndjson", INPUT);
        let told = rejecting(&node, &file, "/dev/stdout").code(REJECTED);
        assert_eq!((told.lines().len(), &told.lines()[0]["text"]), (1, &"wrong".into()));
    }

    #[test]
    fn go_to_a_fifo() {
        let (node, folder) = (FakeNode::start(), Folder::new());
        let (file, path) = (folder.with("in.ndjson", INPUT), folder.path("fifo"));
        fifo(&path);
        let read = std::thread::scope(|scope| {
            let reader = scope.spawn(|| text(&path));
            rejecting(&node, &file, &path).code(REJECTED).says("1 accepted, 1 rejected");
            reader.join().expect("it is text")
        });
        assert_eq!(json_lines(&read)[0]["line"], 2);
    }

    #[test]
    fn to_a_fifo_whose_reader_has_gone_are_no_success() {
        let (node, folder) = (FakeNode::start(), Folder::new());
        let (file, path) = (folder.path("in.ndjson"), folder.path("fifo"));
        fifo(&file);
        fifo(&path);
        let mut import = command_at(&node, &["import", &file, "--rejects", &path])
            .stdin(Stdio::null())
            .spawn()
            .expect("it starts");
        // The one is opened before the other, and nothing is read until both are.
        let input = File::options().write(true).open(&file).expect("it is read");
        std::io::Write::write_all(&mut &input, INPUT.as_bytes()).expect("written");
        drop(File::open(&path).expect("it is written"));
        drop(input);
        let mut stderr = String::new();
        import.stderr.take().expect("piped").read_to_string(&mut stderr).expect("text");
        assert_eq!(import.wait().expect("it ends").code(), Some(FAILED), "{stderr}");
        assert!(stderr.contains("(--rejects) can't be written"), "{stderr}");
    }

    #[test]
    fn of_two_imports_at_once_are_two_files() {
        let (node, folder) = (FakeNode::start(), Folder::new());
        let (file, rejects) = (folder.with("in.ndjson", ndjson(10) + "wrong\n"), folder.path("r"));
        node.hang(true);
        let mut first =
            command_at(&node, &["import", &file, "--rejects", &rejects]).spawn().expect("it starts");
        wait_for("a request that hangs", || node.hanging() > 0);
        rejecting(&node, &file, &rejects).code(FAILED).says("being written by another process");
        first.kill().and_then(|()| first.wait()).expect("it ends");
        node.hang(false);
        rejecting(&node, &file, &rejects).code(REJECTED).says("10 accepted");
    }

    #[test]
    fn that_were_taken_away_leave_no_hole() {
        let (node, folder) = (FakeNode::start(), Folder::new());
        let input = "wrong\n".to_owned() + &ndjson(2_000) + "wrong\n";
        let (file, checkpoint, rejects) =
            (folder.with("in.ndjson", input), folder.path("c"), folder.path("r"));
        let options = ["--rejects", &rejects, "--retry-for=0", "--batch=100", "--parallel=2"];
        node.break_after(5);
        let broken = import_on(&node, &file, &checkpoint, &options);
        assert!(broken.code != DONE && json_lines(&text(&rejects)).len() == 1, "{broken:#?}");
        fs::remove_file(&rejects).expect("it is there");
        node.break_after(u64::MAX);
        import_on(&node, &file, &checkpoint, &options).code(REJECTED).says("2000 accepted, 2 rejected");
        assert_eq!(json_lines(&text(&rejects))[0]["line"], 2_002);
    }
}

mod checkpoints {
    use super::*;

    #[test]
    fn follow_links_and_keep_their_mode() {
        let (node, folder) = (FakeNode::start(), Folder::new());
        let (file, target, link) =
            (folder.with("in.ndjson", ndjson(3)), folder.path("c"), folder.path("link"));
        symlink("c", &link).expect("linked");
        import_on(&node, &file, &link, &[]).code(DONE);
        fs::set_permissions(&target, fs::Permissions::from_mode(0o640)).expect("set");
        import_on(&node, &file, &link, &[]).code(DONE).says("going on");
        assert!(fs::symlink_metadata(&link).expect("there").is_symlink());
        assert_eq!(fs::metadata(&target).expect("there").permissions().mode() & 0o777, 0o640);
    }

    #[test]
    fn never_replace_a_device() {
        let (node, folder) = (FakeNode::start(), Folder::new());
        let (file, link) = (folder.with("in.ndjson", ndjson(3)), folder.path("null"));
        symlink("/dev/null", &link).expect("linked");
        import_on(&node, &file, &link, &[]).code(DONE).says("3 accepted");
        assert!(fs::metadata(&link).expect("there").file_type().is_char_device());
        assert!(fs::symlink_metadata(&link).expect("there").is_symlink());
    }

    #[test]
    fn of_something_else_are_told_in_words() {
        let (node, folder) = (FakeNode::start(), Folder::new());
        let file = folder.with("in.ndjson", ndjson(3));
        for other in ["", "{}", "some notes", "[1]"] {
            let checkpoint = folder.with("c", other);
            let told = import_on(&node, &file, &checkpoint, &[])
                .code(FAILED)
                .says("is no checkpoint of this command");
            assert!(!told.stderr.contains("missing field") && text(&checkpoint) == other, "{told:#?}");
        }
    }
}
