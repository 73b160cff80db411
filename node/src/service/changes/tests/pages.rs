//! Pages that several wait for.

use futures_util::poll;

use super::*;
use crate::replication::feed::Point;
use crate::service::changes::pages::{MAX_CONCURRENT_PAGES, PageOf, SharedPage, WantedEntries};

/// A node with four keys, 1 and 3 in partition 1 at 0 and 1, 2 and 4 in partition 0.
fn node() -> Node {
    let mut log = ModelLog::default();
    (1..=4).for_each(|number| log.append(number, ttl::FOR_EVER));
    let mut node = Node::new(&ManualClock::new(), 8, None);
    node.apply(&log, 4);
    node
}

fn of_all() -> PageOf {
    PageOf { range: KeyRange::Prefix("".into()), after: None, limit: 9, max_bytes: 1 << 16 }
}

/// What is beyond these next offsets.
fn beyond(next: [i64; 2]) -> WantedEntries {
    let (now, next) = (WallTime::default(), next.map(NextOffset).to_vec());
    WantedEntries { base: Some(Point { next, expired_until: now }), expired_until: now, latest: now }
}

fn keys(page: &SharedPage) -> Vec<&str> {
    page.page.entries.iter().map(|(key, _)| &**key).collect()
}

#[tokio::test]
async fn who_waits_for_the_same_page_shares_it() {
    let node = node();
    let pages = &node.changes.pages;
    let others = pages.permits.acquire_many(MAX_CONCURRENT_PAGES as u32).await.expect("all");
    let mut first = Box::pin(pages.read(of_all(), beyond([1, 2])));
    let mut second = Box::pin(pages.read(of_all(), beyond([2, 1])));
    let mut another = Box::pin(pages.read(PageOf { limit: 8, ..of_all() }, beyond([2, 1])));
    assert!(
        poll!(&mut first).is_pending() && poll!(&mut second).is_pending() && poll!(&mut another).is_pending()
    );
    assert_eq!(node.changes.metrics.watch_pages_waiting.get(), 3);
    drop(others);
    let (first, second, another) = tokio::join!(first, second, another);
    let [first, second, another] = [first, second, another].map(|page| page.expect("read"));
    assert!(Arc::ptr_eq(&first, &second));
    assert_eq!(keys(&first), ["a/3", "b/4"], "what either wants");
    assert_eq!(keys(&another), ["a/3"]);
    assert_eq!(node.changes.metrics.watch_pages_waiting.get(), 0);
}

/// What is read already may be older than what who comes now has been told.
#[test]
fn who_comes_while_a_page_is_read_gets_another() {
    let node = node();
    let pages = &node.changes.pages;
    let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build();
    runtime.expect("a runtime").block_on(async {
        // The only thread that reads pages is busy until this is dropped.
        let (release, held) = std::sync::mpsc::channel::<()>();
        let holding = tokio::task::spawn_blocking(move || held.recv());
        let mut first = Box::pin(pages.read(of_all(), beyond([0, 0])));
        assert!(poll!(&mut first).is_pending(), "it is read by another thread");
        drop(release);
        let (second, first) = tokio::join!(pages.read(of_all(), beyond([0, 0])), first);
        assert!(!Arc::ptr_eq(&first.expect("read"), &second.expect("read")));
        assert!(holding.await.expect("no panic").is_err());
    });
}

#[tokio::test]
async fn whoever_goes_away_leaves_the_page_to_the_others() {
    let node = node();
    let pages = &node.changes.pages;
    let others = pages.permits.acquire_many(MAX_CONCURRENT_PAGES as u32).await.expect("all");
    let mut first = Box::pin(pages.read(of_all(), beyond([0, 0])));
    let mut second = Box::pin(pages.read(of_all(), beyond([2, 1])));
    assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());
    drop(first);
    assert_eq!(node.changes.metrics.watch_pages_waiting.get(), 1);
    drop(others);
    assert_eq!(keys(&second.await.expect("read")), ["a/3", "b/1", "b/2", "b/4"]);
    assert_eq!(pages.permits.available_permits(), MAX_CONCURRENT_PAGES);
}

#[tokio::test]
async fn pages_that_nobody_waits_for_are_forgotten() {
    let node = node();
    let pages = &node.changes.pages;
    let others = pages.permits.acquire_many(MAX_CONCURRENT_PAGES as u32).await.expect("all");
    for limit in 1..=1_000 {
        let mut read = Box::pin(pages.read(PageOf { limit, ..of_all() }, beyond([0, 0])));
        assert!(poll!(&mut read).is_pending());
    }
    assert!(pages.known() < 100, "{}", pages.known());
    drop(others);
}
