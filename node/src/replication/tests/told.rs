//! What those who follow changes are told, and when.

use super::*;
use crate::data_dir::DataDir;
use crate::log::embedded::EmbeddedLog;

const RECORDS: i64 = 100;

/// A reader who heard of a record, and looks into the store, must find it there, or a page would say less than the buffer before it.
#[test]
fn nothing_is_told_before_the_store_has_it() {
    let dir = folder();
    let store = Arc::new(Store::open(&dir.path().join("store"), 1 << 20).expect("a store"));
    let log_dir = DataDir::open(&dir.path().join("log")).expect("a folder");
    let log = Arc::new(EmbeddedLog::open(log_dir, "t", 1).expect("a log"));
    let parts = Parts::alone(Arc::<EmbeddedLog>::clone(&log), Arc::clone(&store), RETENTION).expect("parts");
    let feed = Arc::clone(&parts.feed);
    let replica = Replica::start(parts).expect("threads");
    let until = Instant::now() + Duration::from_secs(60);
    let mut told = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // One by one, so that there are many commits.
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            for _ in 0..RECORDS {
                runtime.block_on(log.append("k", encoded("k", "v"), None)).expect("it is appended");
            }
        });
        while told < RECORDS {
            assert!(Instant::now() < until, "{told} of {RECORDS} records are told");
            // First what is told, then what is there: the store may be further by then.
            let Some(view) = feed.begin() else { continue };
            let stored = store.checkpoint().expect("it is read").next;
            assert!(
                feed::is_within(&view.point.next, &stored),
                "{:?} is told, and {stored:?} is there",
                view.point
            );
            told = view.point.next.first().map_or(0, |next| next.0);
        }
    });
    assert_eq!(replica.stop(until), Vec::<&str>::new());
}
