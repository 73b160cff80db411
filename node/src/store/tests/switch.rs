use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};

use heed::types::{DecodeIgnore, Str};

use super::*;

/// The environments' folders, and what `CURRENT` says.
fn folders(dir: &Path) -> (Vec<String>, Option<String>) {
    let entries = std::fs::read_dir(dir).expect("a folder").flatten();
    let mut names: Vec<_> = entries.filter(|entry| entry.path().is_dir()).collect::<Vec<_>>();
    names.sort_by_key(std::fs::DirEntry::file_name);
    let names = names.iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    (names, std::fs::read_to_string(dir.join("CURRENT")).ok().map(|text| text.trim().to_owned()))
}

#[test]
fn old_store_is_read_until_the_new_one_is_complete() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(dir.path());
    store.reset(&identity(), &[NextOffset(0)], wall_ms(1)).expect("written");
    put(&store, "k", 7, "old");
    put(&store, "gone", 8, "old");
    store.note_caught_up(wall_ms(1)).expect("written");
    assert_eq!(body(&store, "k"), Some(("old".into(), Tier::Store)));

    let other = LogIdentity { topic_id: Some("2".into()), ..identity() };
    store.build(&other, &[NextOffset(0)], wall_ms(2)).expect("begun");
    assert!(store.is_building());
    // Its offsets are lower: it is compared with nothing of the old one.
    put(&store, "k", 0, "new");
    assert_eq!(body(&store, "k"), Some(("old".into(), Tier::Cache)));
    assert_eq!(body(&store, "gone"), Some(("old".into(), Tier::Store)));
    let checkpoint = store.checkpoint().expect("readable");
    assert_eq!((checkpoint.identity, checkpoint.next), (Some(other.clone()), vec![NextOffset(1)]));
    assert_eq!(folders(dir.path()), (vec!["1".into(), "2".into()], None));

    store.note_caught_up(wall_ms(3)).expect("switched");
    assert!(!store.is_building());
    assert_eq!(body(&store, "k"), Some(("new".into(), Tier::Store)));
    assert_eq!(body(&store, "gone"), None, "nothing of the old one is left in the cache");
    assert_eq!(folders(dir.path()), (vec!["2".into()], Some("2".into())));
    drop(store);
    let store = open(dir.path());
    assert_eq!(body(&store, "k"), Some(("new".into(), Tier::Store)));
    let expected = Checkpoint {
        identity: Some(other),
        restored: true,
        next: vec![NextOffset(1)],
        latest: vec![Some(LogTime::MIN)],
        epochs: vec![None],
        after_gap: vec![false],
        levels: vec![Level::FIRST],
        caught_up_at: Some(wall_ms(3)),
        unfit: None,
    };
    assert_eq!(store.checkpoint().expect("readable"), expected);
}

#[test]
fn build_that_was_cut_short_leaves_no_trace() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(dir.path());
    store.reset(&identity(), &[NextOffset(0)], wall_ms(1)).expect("written");
    put(&store, "k", 7, "old");
    for _ in 0..2 {
        // The second gives up the first.
        store.build(&identity(), &[NextOffset(0)], wall_ms(2)).expect("begun");
        put(&store, "k", 0, "half");
    }
    assert_eq!(folders(dir.path()).0.len(), 2);
    drop(store);
    // A crash between the pointer's writing and its renaming.
    std::fs::write(dir.path().join("CURRENT.new"), "2").expect("written");
    let store = open(dir.path());
    assert_eq!(body(&store, "k"), Some(("old".into(), Tier::Store)));
    assert_eq!(folders(dir.path()), (vec!["1".into()], None));
    // And one between the renaming and the removal of the old one.
    store.build(&identity(), &[NextOffset(0)], wall_ms(2)).expect("begun");
    put(&store, "k", 0, "new");
    drop(store);
    std::fs::write(dir.path().join("CURRENT"), "2").expect("written");
    let store = open(dir.path());
    assert_eq!(body(&store, "k"), Some(("new".into(), Tier::Store)));
    assert_eq!(folders(dir.path()), (vec!["2".into()], Some("2".into())));
}

#[test]
fn discarded_store_is_empty_and_tied_to_nothing() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(dir.path());
    store.reset(&identity(), &[NextOffset(0)], wall_ms(1)).expect("written");
    put(&store, "k", 7, "old");
    assert!(body(&store, "k").is_some());
    store.discard().expect("discarded");
    assert_eq!(body(&store, "k"), None);
    assert_eq!(store.checkpoint().expect("readable"), Checkpoint::default());
    drop(store);
    assert_eq!(open(dir.path()).checkpoint().expect("readable"), Checkpoint::default());
}

/// The names of an environment's databases, and a change of them.
fn with_databases(dir: &Path, change: impl FnOnce(&heed::Env, &mut heed::RwTxn<'_>)) -> Vec<String> {
    let env = crate::lmdb::open(dir, 20, heed::EnvFlags::empty()).expect("an environment");
    let mut txn = env.write_txn().expect("a transaction");
    change(&env, &mut txn);
    let names: Option<heed::Database<Str, DecodeIgnore>> =
        env.open_database(&txn, None).expect("the tree of names");
    let names = names.expect("there always").iter(&txn).expect("readable");
    let names = names.map(|name| name.expect("readable").0.to_owned()).collect();
    txn.commit().expect("committed");
    names
}

#[test]
fn store_of_another_format_goes_with_all_its_databases() {
    let (dir, store) = filled(&["k"]);
    drop(store);
    let environment = dir.path().join("1");
    let before = with_databases(&environment, |env, txn| {
        for (database, key) in [("meta", "format"), ("debts", "k")] {
            let database: heed::Database<Str, Str> =
                env.create_database(txn, Some(database)).expect("a database");
            database.put(txn, key, "2").expect("written");
        }
    });
    assert!(before.contains(&"debts".to_owned()), "{before:?}");

    let store = open(dir.path());
    assert_eq!(store.checkpoint().expect("readable"), Checkpoint::default());
    assert_eq!(body(&store, "k"), None);
    // It is a store like any other.
    store.reset(&identity(), &[NextOffset(0)], wall_ms(1)).expect("written");
    put(&store, "k", 7, "new");
    drop(store);
    assert_eq!(body(&open(dir.path()), "k"), Some(("new".into(), Tier::Store)));
    let after = with_databases(&environment, |_, _| {});
    assert!(!after.contains(&"debts".to_owned()), "{after:?}");
}

#[test]
fn what_is_read_for_its_content_is_never_begun_anew() {
    let refused = |dir: &Path| Store::open_existing(dir, 0).err().expect("it is none to read").to_string();
    let empty = tempfile::tempdir().expect("a temporary folder");
    assert!(refused(empty.path()).contains("holds no store"));
    assert_eq!(std::fs::read_dir(empty.path()).expect("a folder").count(), 0);

    let (dir, store) = filled(&["k"]);
    drop(store);
    assert_eq!(
        body(&Store::open_existing(dir.path(), 0).expect("whole"), "k"),
        Some(("k".into(), Tier::Store))
    );
    // What a node has begun to build beside it stays for the node.
    std::fs::create_dir(dir.path().join("2")).expect("created");
    drop(Store::open_existing(dir.path(), 0).expect("whole"));
    assert_eq!(folders(dir.path()).0, ["1", "2"]);
    let environment = dir.path().join("1");
    std::fs::write(environment.join("UNSYNCED"), "another boot").expect("written");
    assert!(refused(dir.path()).contains("when the machine went down"));
    std::fs::remove_file(environment.join("UNSYNCED")).expect("removed");
    let set_format = |format: &str| {
        with_databases(&environment, |env, txn| {
            let meta: heed::Database<Str, Str> = env.create_database(txn, Some("meta")).expect("a database");
            meta.put(txn, "format", format).expect("written");
        })
    };
    set_format("2");
    assert!(refused(dir.path()).contains("another format"));
    set_format(FORMAT);
    assert_eq!(body(&open(dir.path()), "k"), Some(("k".into(), Tier::Store)), "it is still there");
}

#[test]
fn copy_under_way_keeps_the_store_in_use() {
    let (_dir, store) = filled(&["k"]);
    let use_of_store = store.watch_use();
    let copy = store.copy().expect("a copy");
    drop(store);
    assert!(use_of_store.is_in_use(), "the copy is still to be made");
    drop(copy);
    assert!(!use_of_store.is_in_use());
}

/// Ends the other threads, also where this one fails.
struct AtEnd<'a>(&'a AtomicBool);

impl Drop for AtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn copy_is_of_one_moment_while_a_writer_goes_on() {
    let (from, to) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let (source, target) = (open(from.path()), open(to.path()));
    source.reset(&identity(), &[NextOffset(0)], wall_ms(1)).expect("written");
    source.note_caught_up(wall_ms(1)).expect("written");
    let done = AtomicBool::new(false);
    let value = |key: &str| {
        let found = target.get(key.as_bytes()).expect("the store answers");
        found.map(|(entry, _)| entry.value().expect("a record").to_owned())
    };
    std::thread::scope(|scope| {
        let _end = AtEnd(&done);
        scope.spawn(|| {
            let mut offset = 0;
            while !done.load(Ordering::Relaxed) {
                // Two keys that are one in every transaction.
                let text = offset.to_string();
                let mut changes = vec![
                    (b"a".as_slice(), copies::entry_of("a", P0, offset, &text).into()),
                    (b"b".as_slice(), copies::entry_of("b", P0, offset, &text).into()),
                ];
                source.apply(&mut changes, &[(P0, NextOffset::after(offset))]).expect("applied");
                offset += 1;
            }
        });
        for _ in 0..5 {
            let mut incoming = target.incoming().expect("a place");
            let copy = source.copy().expect("a copy");
            copy.write_to(File::create_new(incoming.file()).expect("a file")).expect("copied");
            let pages = incoming.look_at_pages().expect("they are whole");
            let checkpoint = incoming.open(&pages, &AtomicBool::new(false)).expect("a store");
            assert!(checkpoint.next >= copy.checkpoint.next, "{checkpoint:?}");
            target.install(incoming).expect("installed");
            let seen = value("a");
            assert_eq!(value("b"), seen);
            let next = seen.map_or(0, |text| text.parse::<i64>().expect("a number") + 1);
            assert_eq!(checkpoint.next, [NextOffset(next)]);
        }
    });
    // One that is not installed leaves nothing.
    let incoming = target.incoming().expect("a place");
    std::fs::write(incoming.file(), "no store").expect("written");
    let before = folders(to.path()).0.len();
    drop(incoming);
    assert_eq!(folders(to.path()).0.len(), before - 1);
    let incoming = target.incoming().expect("a place");
    std::fs::write(incoming.file(), vec![7; 100_000]).expect("written");
    assert!(incoming.look_at_pages().is_err(), "garbage is no store");
}

#[test]
fn unsynced_store_survives_a_kill_but_not_another_boot() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(dir.path());
    store.reset(&identity(), &[NextOffset(0)], wall_ms(1)).expect("written");
    put(&store, "k", 7, "filled");
    let mark = dir.path().join("1/UNSYNCED");
    if !mark.exists() {
        assert!(
            !Path::new("/proc/sys/kernel/random/boot_id").exists(),
            "the boot has a name, and is not noted"
        );
        return;
    }
    drop(store);
    let store = open(dir.path());
    assert_eq!(store.checkpoint().expect("readable").next, [NextOffset(8)], "filling goes on");
    drop(store);
    std::fs::write(&mark, "another boot").expect("written");
    let store = open(dir.path());
    assert_eq!(
        store.checkpoint().expect("readable"),
        Checkpoint::default(),
        "nobody knows what was on the disk"
    );
    // Once it is complete it is on the disk.
    store.reset(&identity(), &[NextOffset(0)], wall_ms(1)).expect("written");
    put(&store, "k", 7, "filled");
    assert!(mark.exists());
    store.note_caught_up(wall_ms(2)).expect("written");
    assert!(!mark.exists());
}

#[test]
fn failed_switch_leaves_nothing() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(dir.path());
    store.reset(&identity(), &[NextOffset(3)], wall_ms(5)).expect("written");
    // A folder in its place: the file can't be made.
    let blocker = dir.path().join("CURRENT.new");
    std::fs::create_dir(&blocker).expect("made");
    for _ in 0..3 {
        let error = store.discard().expect_err("the switch fails");
        assert!(error.may_pass(), "{error}");
        let mut left: Vec<_> = std::fs::read_dir(dir.path())
            .expect("readable")
            .map(|file| file.expect("readable").file_name().to_string_lossy().into_owned())
            .collect();
        left.sort();
        assert_eq!(left, ["1", "CURRENT.new"]);
    }
    assert_eq!(store.checkpoint().expect("readable").next, [NextOffset(3)]);
    std::fs::remove_dir(&blocker).expect("removed");
    store.discard().expect("emptied");
    assert_eq!(store.checkpoint().expect("readable"), Checkpoint::default());
}

/// A store whose record of `k` is cached, beside which one of another log is complete but for the switch.
fn about_to_switch(dir: &Path) -> (Store, LogIdentity) {
    let store = open(dir);
    let of = |id: &str| LogIdentity { topic_id: Some(id.into()), ..identity() };
    store.reset(&of("1"), &[NextOffset(0)], wall_ms(1)).expect("written");
    put(&store, "k", 7, "old");
    store.note_caught_up(wall_ms(1)).expect("written");
    assert_eq!(body(&store, "k"), Some(("old".into(), Tier::Store)));
    assert_eq!(body(&store, "k"), Some(("old".into(), Tier::Cache)));
    store.build(&of("2"), &[NextOffset(0)], wall_ms(2)).expect("begun");
    put(&store, "k", 0, "new");
    (store, of("2"))
}

#[test]
fn read_in_the_midst_of_a_switch_is_of_the_new_store() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (store, new) = about_to_switch(dir.path());
    let (seen, read) = std::sync::mpsc::channel();
    store.after_publishing.set(move |store| {
        let found = store.get_with_log(b"k").expect("the store answers");
        seen.send((body(store, "k").map(|(text, _)| text), found.0.is_some(), found.1)).expect("it waits");
    });
    store.note_caught_up(wall_ms(3)).expect("switched");
    assert_eq!(read.recv(), Ok((Some("new".into()), true, new.tag())));
    // The same of a store that is emptied in place.
    let (seen, read) = std::sync::mpsc::channel();
    store.after_publishing.set(move |store| seen.send(body(store, "k")).expect("it waits"));
    store.reset(&new, &[NextOffset(0)], wall_ms(4)).expect("emptied");
    assert_eq!(read.recv(), Ok(None));
}

#[test]
fn reader_of_the_old_generation_fills_only_its_own_cache() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (store, new) = about_to_switch(dir.path());
    put(&store, "gone", 1, "new");
    let old = store.current.load_full();
    store.note_caught_up(wall_ms(3)).expect("switched");
    // Held up since before the switch: it reads on from what it took.
    let late = |key: &str| store.get_from(&old, key.as_bytes()).expect("the store answers");
    assert_eq!(late("k").map(|(entry, tier)| (entry.position().offset, tier)), Some((7, Tier::Cache)));
    assert_eq!(late("gone"), None);
    assert_eq!(body(&store, "k"), Some(("new".into(), Tier::Store)));
    assert_eq!(body(&store, "gone"), Some(("new".into(), Tier::Store)));
    assert_eq!((store.log(), store.get_with_log(b"k").expect("the store answers").1), (new.tag(), new.tag()));
}
