//! Watches: what is told while nodes stop and start, and of what expires.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bitacora_client::{DeleteReason, Position, ReadLevel, Scan, Watch, WatchEvent, Watched};
use futures_util::TryStreamExt as _;
use futures_util::future::join_all;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;

async fn next(watch: &mut Watch) -> WatchEvent {
    let next = timeout(PATIENCE, watch.try_next()).await.expect("something comes");
    next.expect("no error").expect("it has no end")
}

/// What a client knows of each key by what it was told, and that it never went back.
#[derive(Default)]
struct Told(HashMap<String, (Position, Option<String>)>);

impl Told {
    fn note(&mut self, event: WatchEvent) -> Option<String> {
        let (key, position, value) = match event.what {
            Watched::Set(record) => (record.key, record.position, Some(record.value)),
            Watched::Deleted(deleted) => (deleted.key, deleted.position, None),
            Watched::Gap { reason } => panic!("{reason}"),
            _ => return None,
        };
        let before = self.0.insert(key.clone(), (position, value));
        assert!(before.is_none_or(|(before, _)| before.offset <= position.offset), "{key} goes back");
        Some(key)
    }

    fn live(&self) -> HashMap<String, String> {
        self.0.iter().filter_map(|(key, (_, value))| Some((key.clone(), value.clone()?))).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_way_to_a_node_is_cut_in_the_middle() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client().await;
    let mut watch = client.watch().prefix("k").initial().await.expect("it begins");
    let writes = write_all_the_time(&client);
    let mut told = Told::default();
    for round in 0..6 {
        cluster.cut(round % 2).await;
        for _ in 0..200 {
            told.note(next(&mut watch).await);
        }
        cluster.mend(round % 2).await;
        for _ in 0..200 {
            told.note(next(&mut watch).await);
        }
    }
    writes.stop().await;
    let scan = Scan::prefix("k").level(ReadLevel::strong());
    let scanned: Vec<_> = client.scan(scan).try_collect().await.expect("it is scanned");
    let scanned: HashMap<_, _> = scanned.into_iter().map(|record| (record.key, record.value)).collect();
    let became_equal = timeout(PATIENCE, async {
        while told.live() != scanned {
            told.note(next(&mut watch).await);
        }
    });
    became_equal.await.expect("of every key the last state is told");
    // From its token on, in another process, as it were.
    let token = watch.token().expect("it was told something").to_owned();
    let mut watch = client.watch().prefix("k").since(token).await.expect("it is a token");
    let written = client.set("k-last", "").await.expect("it is written");
    while !matches!(next(&mut watch).await.what, Watched::Set(record) if record.position == written.position)
    {
    }
    cluster.stop().await;
}

/// Sets and deletes 37 keys of each of 16 writers until it is told to stop.
pub fn write_all_the_time(client: &Client) -> Writes {
    let stop = Arc::new(AtomicBool::new(false));
    let writers = (0..16).map(|writer| tokio::spawn(write(client.clone(), writer, Arc::clone(&stop))));
    Writes { writers: writers.collect(), stop }
}

pub struct Writes {
    writers: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

impl Writes {
    pub async fn stop(self) {
        self.stop.store(true, Ordering::SeqCst);
        join_all(self.writers).await.into_iter().for_each(|writer| writer.expect("no panic"));
    }
}

async fn write(client: Client, writer: u32, stop: Arc<AtomicBool>) {
    for number in 0u64.. {
        let key = format!("k{writer}-{}", number % 37);
        // One whose answer is lost takes effect or not.
        let _ = match number % 5 {
            0 => client.delete(&key).await,
            _ => client.set(&key, &number.to_string()).await,
        };
        if stop.load(Ordering::SeqCst) {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_expires_is_told_also_to_who_was_away() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let mut watch = client.watch().await.expect("it begins");
    let written = client.set_with_ttl("k", "v", Duration::from_millis(300)).await.expect("it is written");
    let token = loop {
        let event = next(&mut watch).await;
        if matches!(event.what, Watched::Set(_)) {
            break event.token().to_owned();
        }
    };
    loop {
        if let Watched::Deleted(deleted) = next(&mut watch).await.what {
            assert_eq!((deleted.position, deleted.reason), (written.position, DeleteReason::Expired));
            break;
        }
    }
    let mut away = client.watch().since(token).await.expect("it is a token");
    loop {
        if let Watched::Deleted(deleted) = next(&mut away).await.what {
            assert_eq!((&*deleted.key, deleted.reason), ("k", DeleteReason::Expired));
            break;
        }
    }
    cluster.stop().await;
}
