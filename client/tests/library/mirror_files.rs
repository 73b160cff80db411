//! The file of a mirror: what a restart goes on from, and what becomes of it when it is damaged.

use std::fs;
use std::path::{Path, PathBuf};

use super::mirrors::{current, held};
use super::*;

struct Kept {
    node: FakeNode,
    client: Client,
    folder: tempfile::TempDir,
    /// The tokens that the node was asked with.
    tokens: Arc<Mutex<Vec<String>>>,
}

impl Kept {
    /// A node with so many keys.
    async fn with(keys: usize) -> Self {
        let node = FakeNode::start().await;
        (0..keys).for_each(|n| node.store().lock().overwrite(&format!("k{n:04}"), "v"));
        let tokens = Arc::new(Mutex::new(Vec::new()));
        node.script({
            let tokens = Arc::clone(&tokens);
            move |_, request| {
                if let Request::ReadChanges(changes) = request {
                    tokens.lock().push(changes.since.to_owned());
                }
                Reaction::Answer
            }
        });
        let client = client(&[&node]).await;
        Self { node, client, folder: tempfile::tempdir().expect("a folder"), tokens }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("mirror")
    }

    /// Begins a mirror with the file, and ends it when it is current; the first token that was asked with, and what it held at once.
    async fn run(&self) -> (String, usize) {
        self.tokens.lock().clear();
        let mirror = self.client.mirror("").file(self.path()).await.expect("it begins");
        let (first, at_once) = (self.tokens.lock()[0].clone(), mirror.len());
        current(&mirror).await;
        let expected: Vec<_> = self.node.store().lock().live().collect();
        assert_eq!(held(&mirror), expected);
        assert_eq!(mirror.file_error(), None);
        mirror.close().await;
        (first, at_once)
    }
}

async fn refused(client: &Client, prefix: &str, path: &Path) -> String {
    let error = client.mirror(prefix).file(path).await.expect_err("it is refused");
    assert!(matches!(&error, Error::Settings(_)), "{error}");
    error.to_string()
}

#[tokio::test]
async fn a_restart_goes_on_from_it() {
    let kept = Kept::with(1_500).await;
    assert_eq!(kept.run().await.0, "");
    kept.client.delete("k0007").await.expect("it is written");
    kept.client.set("k0008", "w").await.expect("it is written");
    let (token, at_once) = kept.run().await;
    assert_eq!((&*token, at_once >= 1_499), ("0@1500", true));
    assert_eq!(kept.run().await, ("0@1502".to_owned(), 1_499));
}

#[tokio::test]
async fn what_is_cut_off_or_damaged_is_told_again() {
    let kept = Kept::with(40).await;
    kept.run().await;
    for n in 0..3 {
        kept.client.set("k0001", &n.to_string()).await.expect("it is written");
        kept.run().await;
    }
    let whole = fs::read(kept.path()).expect("it is there");
    let first_line = whole.iter().position(|byte| *byte == b'\n').expect("a line") + 1;
    let mut begun_anew = 0;
    for at in (first_line..whole.len()).step_by(29).chain(whole.len() - 20..whole.len()) {
        for damage in [true, false] {
            let mut bytes = whole.clone();
            if damage {
                bytes[at] ^= 0x10;
            } else {
                bytes.truncate(at);
            }
            fs::write(kept.path(), &bytes).expect("written");
            // What it holds in the end is looked at there.
            let (token, _) = kept.run().await;
            begun_anew += usize::from(token.is_empty());
        }
    }
    assert!(begun_anew > 0, "the first entries were damaged, too");
}

#[tokio::test]
async fn it_is_written_anew_when_it_has_grown() {
    let kept = Kept::with(3_000).await;
    let mirror = kept.client.mirror("").file(kept.path()).await.expect("it begins");
    current(&mirror).await;
    let value = "v".repeat(256 << 10);
    let size = || fs::metadata(kept.path()).expect("it is there").len();
    let mut most = 0;
    for _ in 0..100 {
        let written = kept.client.set("large", &value).await.expect("it is written");
        mirror.wait_until(written.position, PATIENCE).await.expect("it gets there");
        most = most.max(size());
    }
    // 25 MiB were told.
    until("it is written anew", || size() < 12 << 20).await;
    assert!(most < 24 << 20, "{most} bytes");
    mirror.close().await;
    let (token, at_once) = kept.run().await;
    assert_eq!((&*token, at_once), ("0@3100", 3_001));
    // What is damaged in the middle of what was written anew leaves nothing to go on from.
    let mut bytes = fs::read(kept.path()).expect("it is there");
    bytes[100_000] ^= 1;
    fs::write(kept.path(), &bytes).expect("written");
    assert_eq!(kept.run().await, (String::new(), 0));
    assert_eq!(kept.run().await.1, 3_001);
}

#[tokio::test]
async fn after_a_gap_it_holds_what_is_there_now() {
    let kept = Kept::with(50).await;
    kept.run().await;
    kept.node.store().lock().replace_log();
    kept.node.store().lock().overwrite("new", "v");
    let (token, at_once) = kept.run().await;
    assert_eq!((&*token, at_once), ("0@50", 50));
    assert_eq!(kept.run().await, ("1@1".to_owned(), 1));
}

#[tokio::test]
async fn what_is_no_file_of_it_is_refused_and_left() {
    let kept = Kept::with(1).await;
    for content in
        ["", "key,value\n", "bitacora mirror 2 of \"\"\n", "bitacora mirror 1 of \"", &"x".repeat(50_000)]
    {
        fs::write(kept.path(), content).expect("written");
        let why = refused(&kept.client, "", &kept.path()).await;
        assert!(why.contains("no file of a mirror"), "{why}");
        assert_eq!(fs::read_to_string(kept.path()).expect("it is there"), content);
    }
    fs::remove_file(kept.path()).expect("it is there");
    kept.run().await;
    let why = refused(&kept.client, "other/", &kept.path()).await;
    assert!(why.contains("is of a mirror of the prefix \"\""), "{why}");
    let why = refused(&kept.client, "", &kept.folder.path().join("none").join("mirror")).await;
    assert!(why.contains("can't be opened"), "{why}");
    let _user = kept.client.mirror("").file(kept.path()).await.expect("it begins");
    let why = refused(&kept.client, "", &kept.path()).await;
    assert!(why.contains("used by another mirror"), "{why}");
}

#[tokio::test]
async fn a_file_that_can_not_be_written_ends_nothing() {
    let kept = Kept::with(3).await;
    let folder = kept.folder.path().join("folder");
    fs::create_dir(&folder).expect("made");
    let mirror = kept.client.mirror("").file(folder.join("mirror")).await.expect("it begins");
    current(&mirror).await;
    // After a gap it is written anew, beside where it was.
    fs::rename(&folder, kept.folder.path().join("elsewhere")).expect("renamed");
    kept.node.store().lock().replace_log();
    until("it says so", || mirror.file_error().is_some()).await;
    let written = kept.client.set("k", "v").await.expect("it is written");
    mirror.wait_until(written.position, PATIENCE).await.expect("it goes on");
    current(&mirror).await;
    assert_eq!(held(&mirror), ["k=v"]);
    mirror.close().await;
}
