use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use super::{Output, check_writable, open_growing, part_of, same_file, write_whole};

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

fn fifo(path: &Path) {
    let made = std::process::Command::new("mkfifo").arg(path).status().expect("mkfifo");
    assert!(made.success());
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).expect("readable")
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    let mut names: Vec<_> =
        entries.map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

mod a_regular_file {
    use super::*;

    #[test]
    fn has_its_name_when_it_is_whole() {
        let dir = folder();
        let path = dir.path().join("out");
        write_whole(&path, b"old").expect("written");
        let mut output = Output::create(&path).expect("it can be written");
        output.write_all(b"new").expect("written");
        assert_eq!(read(&path), "old");
        output.finish().expect("renamed");
        assert_eq!((read(&path).as_str(), names(dir.path())), ("new", vec!["out".to_owned()]));

        let mut dropped = Output::create(&path).expect("it can be written");
        dropped.write_all(b"half").expect("written");
        drop(dropped);
        assert_eq!((read(&path).as_str(), names(dir.path())), ("new", vec!["out".to_owned()]));
    }

    #[test]
    fn two_writers_do_not_mix() {
        let dir = folder();
        let path = dir.path().join("out");
        let [mut one, mut two] = [(); 2].map(|()| Output::create(&path).expect("it can be written"));
        for _ in 0..3 {
            one.write_all(b"1").expect("written");
            two.write_all(b"22").expect("written");
        }
        two.finish().expect("renamed");
        assert_eq!(read(&path), "222222");
        one.finish().expect("renamed");
        assert_eq!((read(&path).as_str(), names(dir.path()).len()), ("111", 1));
    }

    #[test]
    fn keeps_its_mode_and_owner() {
        let dir = folder();
        let path = dir.path().join("out");
        for mode in [0o600, 0o664, 0o755] {
            fs::write(&path, "old").expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
            // Only root may give a file away.
            let _ = std::os::unix::fs::chown(&path, Some(12), Some(34));
            let before = fs::metadata(&path).expect("there");
            write_whole(&path, b"new").expect("written");
            let after = fs::metadata(&path).expect("there");
            assert_eq!(read(&path), "new");
            assert_eq!((after.mode(), after.uid(), after.gid()), (before.mode(), before.uid(), before.gid()));
            fs::remove_file(&path).expect("removed");
        }
    }

    #[test]
    fn is_new_with_the_mode_that_the_umask_leaves() {
        let dir = folder();
        let (plain, whole) = (dir.path().join("plain"), dir.path().join("whole"));
        fs::write(&plain, "").expect("written");
        write_whole(&whole, b"").expect("written");
        let mode = |path: &Path| fs::metadata(path).expect("there").mode();
        assert_eq!(mode(&whole), mode(&plain));
    }

    #[test]
    fn is_not_replaced_when_it_should_be_new() {
        let dir = folder();
        let path = dir.path().join("out");
        let [mut one, mut two] = [(); 2].map(|()| Output::create_new(&path).expect("nothing is there"));
        one.write_all(b"one").expect("written");
        two.write_all(b"two").expect("written");
        one.finish().expect("renamed");
        assert_eq!(two.finish().expect_err("one is there").kind(), ErrorKind::AlreadyExists);
        assert_eq!(Output::create_new(&path).expect_err("one is there").kind(), ErrorKind::AlreadyExists);
        assert_eq!((read(&path).as_str(), names(dir.path()).len()), ("one", 1));
    }

    #[test]
    fn may_have_a_name_of_255_bytes() {
        let dir = folder();
        let path = dir.path().join("ü".repeat(127));
        write_whole(&path, b"x").expect("written");
        assert_eq!(read(&path), "x");
    }

    #[test]
    fn is_gone_on_with_by_one_at_a_time() {
        let dir = folder();
        let path = dir.path().join("out");
        let mut half = Output::resume(&path, 0).expect("it can be written");
        half.write_all(b"half a line").expect("written");
        assert_eq!(Output::resume(&path, 0).expect_err("it is locked").kind(), ErrorKind::ResourceBusy);
        drop(half);
        assert_eq!(read(&part_of(&path).expect("a name")), "half a line");
        assert_eq!(Output::resume(&path, 99).expect_err("too short").kind(), ErrorKind::UnexpectedEof);
        let mut rest = Output::resume(&path, 5).expect("it goes on");
        rest.write_all(b"done").expect("written");
        rest.finish().expect("renamed");
        assert_eq!((read(&path).as_str(), names(dir.path())), ("half done", vec!["out".to_owned()]));
    }
}

mod a_symbolic_link {
    use super::*;

    #[test]
    fn stays_and_what_it_leads_to_is_replaced() {
        let (dir, other) = (folder(), folder());
        let target = other.path().join("target");
        fs::write(&target, "old").expect("written");
        symlink(&target, dir.path().join("one")).expect("linked");
        // Relative to its own folder.
        symlink("one", dir.path().join("two")).expect("linked");
        for (text, write) in [
            ("a", write_whole as fn(&Path, &[u8]) -> _),
            ("b", |path, text| {
                let mut output = Output::resume(path, 0)?;
                output.write_all(text)?;
                output.finish()
            }),
        ] {
            write(&dir.path().join("two"), text.as_bytes()).expect("written");
            assert_eq!(read(&target), text);
        }
        assert_eq!(
            (names(dir.path()), names(other.path())),
            (vec!["one".into(), "two".into()], vec!["target".into()])
        );
        assert!(dir.path().join("two").is_symlink() && dir.path().join("one").is_symlink());
    }

    #[test]
    fn may_lead_to_what_is_not_there_yet() {
        let dir = folder();
        symlink("later", dir.path().join("link")).expect("linked");
        write_whole(&dir.path().join("link"), b"x").expect("written");
        assert_eq!(read(&dir.path().join("later")), "x");
        assert!(dir.path().join("link").is_symlink());
        symlink("round", dir.path().join("round")).expect("linked");
        write_whole(&dir.path().join("round"), b"x").expect_err("it leads nowhere");
    }
}

mod what_is_no_regular_file {
    use super::*;

    #[test]
    fn is_written_to_and_stays() {
        let dir = folder();
        let path = dir.path().join("null");
        symlink("/dev/null", &path).expect("linked");
        write_whole(&path, b"x").expect("written");
        open_growing(&path, 0).and_then(|mut file| file.write_all(b"x")).expect("written");
        check_writable(&path).expect("it can be");
        assert!(fs::metadata("/dev/null").expect("there").file_type().is_char_device());
        assert!(Output::resume(&path, 0).is_err() && part_of(&path).is_err());
        let full = write_whole(Path::new("/dev/full"), b"x").expect_err("it is full");
        assert_eq!(full.kind(), ErrorKind::StorageFull);
    }

    #[test]
    fn is_a_fifo() {
        let dir = folder();
        let path = dir.path().join("fifo");
        fifo(&path);
        // Asked without waiting for a reader.
        check_writable(&path).expect("it can be");
        let text = std::thread::scope(|scope| {
            let reader = scope.spawn(|| read(&path));
            write_whole(&path, b"through").expect("written");
            reader.join().expect("read")
        });
        assert_eq!(text, "through");
        assert!(fs::metadata(&path).expect("there").file_type().is_fifo());
    }

    #[test]
    fn is_a_file_that_was_opened_before() {
        let (dir, mut file) = (folder(), tempfile::tempfile().expect("a file"));
        file.write_all(b"before ").expect("written");
        let path = format!("/dev/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        write_whole(Path::new(&path), b"after").expect("written");
        let mut text = String::new();
        std::io::Seek::rewind(&mut file).and_then(|()| file.read_to_string(&mut text)).expect("read");
        assert_eq!((text.as_str(), names(dir.path()).len()), ("before after", 0));
        assert!(matches!(Output::create(Path::new("/dev/stdout")), Ok(Output::Stdout(_))));
    }

    #[test]
    fn is_a_folder() {
        let dir = folder();
        for path in [dir.path().to_owned(), dir.path().join("out/"), dir.path().join("..")] {
            assert_eq!(check_writable(&path).expect_err("a folder").kind(), ErrorKind::IsADirectory);
        }
    }
}

#[test]
fn a_path_is_tried_without_a_change() {
    let dir = folder();
    let path = dir.path().join("out");
    check_writable(&path).expect("it can be");
    assert!(names(dir.path()).is_empty());
    fs::write(&path, "old").expect("written");
    check_writable(&path).expect("it can be");
    assert_eq!((read(&path).as_str(), names(dir.path()).len()), ("old", 1));
    let missing = check_writable(&dir.path().join("none/out")).expect_err("no folder");
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    // Nothing new can be in this folder, and the name that was tried there is nobody's business.
    let refused = check_writable(Path::new("/proc/out")).expect_err("no file can be made there");
    assert!(!refused.to_string().contains(".part"), "{refused}");
}

#[test]
fn a_growing_file_is_cut_to_what_is_kept() {
    let dir = folder();
    let path = dir.path().join("out");
    fs::write(&path, "kept and cut").expect("written");
    open_growing(&path, 4).and_then(|mut file| file.write_all(b"!")).expect("written");
    assert_eq!(read(&path), "kept!");
    let first = open_growing(&path, 5).expect("it can be written");
    assert_eq!(open_growing(&path, 0).expect_err("it is locked").kind(), ErrorKind::ResourceBusy);
    drop(first);
    assert_eq!(read(&path), "kept!");
}

#[test]
fn one_file_may_have_many_names() {
    let dir = folder();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("a"), "").expect("written");
    fs::write(path("b"), "").expect("written");
    fs::hard_link(path("a"), path("hard")).expect("linked");
    symlink("a", path("soft")).expect("linked");
    for name in ["a", "hard", "soft", "./a"] {
        assert!(same_file(&path("a"), &path(name)), "{name}");
    }
    // Nothing is there yet.
    symlink("later", path("dangling")).expect("linked");
    assert!(same_file(&path("later"), &path("dangling")) && same_file(&path("new"), &path("./new")));
    assert!(!same_file(&path("a"), &path("b")) && !same_file(&path("a"), &path("new")));
    assert!(!same_file(Path::new("/dev/null"), Path::new("/dev/null")), "what it takes is not what it gives");
}
