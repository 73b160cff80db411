use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::*;
use crate::clock::LogTime;
use crate::log::{AppendError, Appended, LogInfo, LogReader, NewRecord, OpenError, PartitionRead, ReadError};
use crate::replication::state::Event;
use bitacora_protocol::{HighWatermark, NextOffset};

type Acknowledge = oneshot::Sender<Result<Appended, AppendError>>;

/// A log of one partition that acknowledges when it is told to.
#[derive(Default)]
struct ByHand {
    appends: Mutex<Vec<(NewRecord, Acknowledge)>>,
    high_watermark: Mutex<i64>,
}

impl Log for ByHand {
    fn topic(&self) -> &'static str {
        "by-hand"
    }

    fn open(&self, _: &dyn Fn()) -> Result<LogInfo, OpenError> {
        Err(OpenError::Refused("not for reading".to_owned()))
    }

    fn append_record(&self, record: NewRecord) -> BoxFuture<'static, Result<Appended, AppendError>> {
        let (done, acknowledged) = oneshot::channel();
        self.appends.lock().push((record, done));
        async move { acknowledged.await.expect("every append is settled") }.boxed()
    }

    fn check_trimming(&self) -> Result<(), String> {
        Err("no trimming".to_owned())
    }

    fn reader(&self, _: &[NextOffset], _: &[Option<i32>]) -> Result<Box<dyn LogReader>, ReadError> {
        Err(ReadError::Unavailable("not for reading".to_owned()))
    }

    fn high_watermarks(&self) -> Result<Vec<HighWatermark>, ReadError> {
        Ok(vec![HighWatermark(*self.high_watermark.lock())])
    }

    fn flush(&self, _: Duration) {}
}

struct Node {
    log: Arc<ByHand>,
    progress: Arc<Progress>,
    reads: Arc<ConsistentReads>,
}

const WAIT: Duration = Duration::from_secs(30);

/// A node that has applied `next` offsets, and whose log answers.
fn node(next: i64) -> Node {
    let (log, progress) = (Arc::new(ByHand::default()), Arc::<Progress>::default());
    progress.begin_reading(&[NextOffset(next)], Event::StoreEmptied).expect("possible");
    progress.note_caught_up().expect("restored");
    progress.note_event(Event::LogOpened).expect("possible");
    progress.learn_high_watermarks(&[HighWatermark(next)], progress.question_for_high_watermarks());
    *log.high_watermark.lock() = next;
    let metrics = Arc::new(Metrics::new().expect("names differ"));
    let reads =
        ConsistentReads::new(Arc::<ByHand>::clone(&log), Arc::clone(&progress), Memory::unlimited(), metrics);
    Node { log, progress, reads: Arc::new(reads) }
}

impl Node {
    fn begin(&self, consistency: Consistency) -> BoxFuture<'static, Result<Reached, ConsistencyError>> {
        let (reads, options) =
            (Arc::clone(&self.reads), ReadOptions { consistency, ..ReadOptions::default() });
        let demand = Demand { timeout: WAIT, ..Demand::of(&options).expect("it makes sense") };
        async move { reads.reach(Some("k"), &demand).await }.boxed()
    }

    /// The next barrier that was appended.
    async fn appended(&self) -> Acknowledge {
        loop {
            if let Some((record, done)) = self.log.appends.lock().pop() {
                assert_eq!((record.partition, &*record.key), (Some(0), &b"\0barrier"[..]));
                return done;
            }
            tokio::task::yield_now().await;
        }
    }

    fn apply(&self, next: i64) {
        self.progress.note_applied(&[PartitionRead::up_to(0, NextOffset(next))]);
    }

    async fn none_is_appended(&self) {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(self.log.appends.lock().is_empty());
    }
}

fn at(offset: i64) -> Appended {
    Appended { position: Position { partition: 0, offset }, timestamp: LogTime::default() }
}

fn why(outcome: Result<Reached, ConsistencyError>) -> String {
    outcome.expect_err("it fails").to_string()
}

#[tokio::test]
async fn a_barrier_counts_only_for_who_came_before_it_was_sent() {
    let node = node(5);
    let mut first = tokio::spawn(node.begin(Consistency::Strong));
    let sent = node.appended().await;
    let mut second = tokio::spawn(node.begin(Consistency::Strong));
    let mut third = tokio::spawn(node.begin(Consistency::Strong));
    node.none_is_appended().await;
    sent.send(Ok(at(7))).expect("it is awaited");
    let next = node.appended().await;
    assert!((&mut first).now_or_never().is_none(), "acknowledged is not applied");
    node.apply(8);
    (&mut first).await.expect("it lives").expect("reached");
    node.none_is_appended().await;
    assert!((&mut second).now_or_never().is_none() && (&mut third).now_or_never().is_none());
    next.send(Ok(at(8))).expect("it is awaited");
    node.apply(9);
    second.await.expect("it lives").expect("reached");
    third.await.expect("it lives").expect("reached");
    node.none_is_appended().await;
}

#[tokio::test]
async fn a_barrier_that_failed_fails_its_readers_and_no_later_ones() {
    let node = node(5);
    let failed = tokio::spawn(node.begin(Consistency::Strong));
    let sent = node.appended().await;
    let later = tokio::spawn(node.begin(Consistency::Strong));
    node.none_is_appended().await;
    sent.send(Err(AppendError::Unknown("away".to_owned()))).expect("it is awaited");
    let sentence = why(failed.await.expect("it lives"));
    assert!(sentence.contains("away") && sentence.contains("has applied 0:4"), "{sentence}");
    node.appended().await.send(Ok(at(5))).expect("it is awaited");
    node.apply(6);
    later.await.expect("it lives").expect("reached");
}

#[tokio::test]
async fn a_barrier_in_another_log_proves_nothing() {
    let node = node(5);
    let read = tokio::spawn(node.begin(Consistency::Strong));
    node.appended().await.send(Ok(at(4))).expect("it is awaited");
    let sentence = why(read.await.expect("it lives"));
    assert!(sentence.contains("not the one that this node reads"), "{sentence}");
}

#[tokio::test]
async fn a_strong_read_that_is_dropped_leaves_nothing_behind() {
    let node = node(5);
    let read = tokio::spawn(node.begin(Consistency::Strong));
    node.appended().await.send(Ok(at(9))).expect("it is awaited");
    while node.progress.waits() == 0 {
        tokio::task::yield_now().await;
    }
    read.abort();
    while node.progress.waits() > 0 {
        tokio::task::yield_now().await;
    }
    node.none_is_appended().await;
}

#[tokio::test]
async fn a_log_that_does_not_answer_is_not_waited_for() {
    for consistency in [Consistency::Latest, Consistency::Strong] {
        let node = node(5);
        node.progress.note_event(Event::LogUnavailable("away".to_owned())).expect("possible");
        let read = node.begin(consistency).now_or_never().expect("at once");
        assert!(why(read).contains("the log does not answer"));
        assert!(node.log.appends.lock().is_empty());
    }
}

#[tokio::test]
async fn a_latest_read_waits_for_the_high_watermark_of_now() {
    let node = node(5);
    node.begin(Consistency::Latest).await.expect("it is there");
    *node.log.high_watermark.lock() = 7;
    let read = tokio::spawn(node.begin(Consistency::Latest));
    while node.progress.waits() == 0 {
        tokio::task::yield_now().await;
    }
    node.apply(7);
    read.await.expect("it lives").expect("reached");
    *node.log.high_watermark.lock() = 6;
    assert!(why(node.begin(Consistency::Latest).await).contains("not as it was opened"));
}

#[tokio::test]
async fn another_store_takes_back_what_was_reached() {
    let node = node(5);
    let reached = node.begin(Consistency::Latest).await.expect("it is there");
    node.reads.confirm(Some("k"), reached).expect("the same store");
    node.progress.begin_reading(&[NextOffset(5)], Event::SnapshotInstalled).expect("possible");
    node.reads.confirm(Some("k"), reached).expect_err("another store");
}
