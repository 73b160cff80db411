//! Mirrors beside full scans: while the ways to the nodes are cut, over restarts from a file, and of what expires.

use bitacora_client::{Mirror, ReadLevel, Record, Scan};
use futures_util::TryStreamExt as _;

use super::watches::write_all_the_time;
use super::*;

/// A full scan that has everything that was acknowledged, and nothing else: nobody writes.
async fn scan(client: &Client) -> Vec<Record> {
    let scan = Scan::prefix("k").level(ReadLevel::strong());
    client.scan(scan).try_collect().await.expect("it is scanned")
}

fn held(mirror: &Mirror) -> Vec<Record> {
    mirror.view().iter().map(bitacora_client::MirroredRecord::to_record).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_what_a_scan_shows_whatever_was_cut_meanwhile() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client().await;
    let folder = tempfile::tempdir().expect("a folder");
    let mut mirrors = Vec::new();
    for name in ["", "restarted"] {
        let mut mirror = client.mirror("k");
        if !name.is_empty() {
            mirror = mirror.file(folder.path().join(name));
        }
        mirrors.push(mirror.await.expect("it begins"));
    }
    for round in 0..4 {
        let writes = write_all_the_time(&client);
        for index in [round % 2, 1 - round % 2] {
            cluster.cut(index).await;
            let before = mirrors[0].positions();
            reaches(&mirrors[0], before.iter().map(|at| at.offset).sum::<i64>() + 50).await;
            cluster.mend(index).await;
        }
        if round % 2 == 1 {
            // While others write, and behind what it had before.
            mirrors.pop().expect("it is the second").close().await;
            let path = folder.path().join("restarted");
            mirrors.push(client.mirror("k").file(path).await.expect("it goes on"));
        }
        writes.stop().await;
        let scanned = scan(&client).await;
        assert!(!scanned.is_empty());
        let last = client.set("z", "").await.expect("it is written").position;
        for mirror in &mirrors {
            mirror.wait_until(last, PATIENCE).await.expect("it gets there");
            let became_equal = async {
                while held(mirror) != scanned {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            tokio::time::timeout(PATIENCE, became_equal).await.expect("it is what a scan shows");
            mirror.wait_current(PATIENCE).await.expect("it is current");
            assert!(held(mirror) == scanned, "it stays so while nobody writes");
        }
    }
    cluster.stop().await;
}

/// Waits until the sum of its offsets is so great.
async fn reaches(mirror: &Mirror, sum: i64) {
    let reached = async {
        while mirror.positions().iter().map(|at| at.offset).sum::<i64>() < sum {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, reached).await.expect("it goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_expires_goes_at_once_and_is_told() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let mirror = client.mirror("k").on_change(move |change| drop(tell.send(change.clone())));
    let mirror = mirror.await.expect("it begins");
    let ttl = Duration::from_millis(700);
    let written = client.set_with_ttl("k", "v", ttl).await.expect("it is written");
    mirror.wait_until(written.position, PATIENCE).await.expect("it gets there");
    let set = tokio::time::timeout(PATIENCE, told.recv()).await.expect("it is told").expect("it lives");
    assert_eq!(set.after.expect("it is there").ttl(), written.ttl);
    while mirror.get("k").is_some() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let gone = tokio::time::timeout(PATIENCE, told.recv()).await.expect("it is told").expect("it lives");
    assert!(gone.after.is_none() && gone.key() == "k");
    assert!(mirror.is_empty());
    cluster.stop().await;
}
