use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;

use super::*;
use crate::clock::LogTime;
use crate::log::{
    AppendError, Appended, LogInfo, LogReader, NewRecord, OpenError, PartitionRead, ReadError, Unsettled,
};
use crate::replication::state::Event;
use bitacora_protocol::{HighWatermark, NextOffset, partition_of};

/// A log that acknowledges when it is told to.
#[derive(Default)]
struct ByHand {
    appends: Mutex<Vec<(NewRecord, Unsettled)>>,
    /// Of each partition; `None` while it has no leader.
    high_watermarks: Mutex<Vec<Option<i64>>>,
    questions: AtomicU64,
}

impl Log for ByHand {
    fn topic(&self) -> &'static str {
        "by-hand"
    }

    fn open(&self, _: &dyn Fn()) -> Result<LogInfo, OpenError> {
        Err(OpenError::Refused("not for reading".to_owned()))
    }

    fn hand_over(&self, record: &NewRecord, append: Unsettled) {
        self.appends.lock().push((record.clone(), append));
    }

    fn check_trimming(&self) -> Result<(), String> {
        Err("no trimming".to_owned())
    }

    fn reader(&self, _: &[NextOffset], _: &[Option<i32>]) -> Result<Box<dyn LogReader>, ReadError> {
        Err(ReadError::Unavailable("not for reading".to_owned()))
    }

    fn high_watermarks(&self) -> Result<Vec<HighWatermark>, ReadError> {
        let partitions = self.high_watermarks.lock().len();
        (0..partitions).map(|partition| self.end_of(partition)).collect()
    }

    fn high_watermark(&self, partition: i32) -> Result<HighWatermark, ReadError> {
        self.end_of(usize::try_from(partition).expect("partitions count from 0"))
    }

    fn flush(&self, _: Duration) {}
}

impl ByHand {
    fn end_of(&self, partition: usize) -> Result<HighWatermark, ReadError> {
        self.questions.fetch_add(1, Ordering::Relaxed);
        let end = self.high_watermarks.lock()[partition];
        end.map(HighWatermark).ok_or_else(|| ReadError::Unavailable(format!("{partition} has no leader")))
    }
}

struct Node {
    log: Arc<ByHand>,
    progress: Arc<Progress>,
    reads: Arc<ConsistentReads>,
}

const WAIT: Duration = Duration::from_secs(30);

/// A node that has applied `next` offsets of one partition, and whose log answers.
fn node(next: i64) -> Node {
    node_with(&[next])
}

/// A node that has applied so many offsets of each partition.
fn node_with(next: &[i64]) -> Node {
    let (log, progress) = (Arc::new(ByHand::default()), Arc::<Progress>::default());
    let offsets: Vec<_> = next.iter().copied().map(NextOffset).collect();
    progress.begin_reading(&offsets, Event::StoreEmptied).expect("possible");
    progress.note_caught_up().expect("restored");
    progress.note_event(Event::LogOpened).expect("possible");
    let ends: Vec<_> = next.iter().copied().map(HighWatermark).collect();
    progress.learn_high_watermarks(&ends, progress.question_for_high_watermarks());
    *log.high_watermarks.lock() = next.iter().copied().map(Some).collect();
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
    async fn appended(&self) -> Unsettled {
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
    sent.settle(Ok(at(7)));
    let next = node.appended().await;
    assert!((&mut first).now_or_never().is_none(), "acknowledged is not applied");
    node.apply(8);
    (&mut first).await.expect("it lives").expect("reached");
    node.none_is_appended().await;
    assert!((&mut second).now_or_never().is_none() && (&mut third).now_or_never().is_none());
    next.settle(Ok(at(8)));
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
    sent.settle(Err(AppendError::Unknown("away".to_owned())));
    let sentence = why(failed.await.expect("it lives"));
    assert!(sentence.contains("away") && sentence.contains("has applied 0:4"), "{sentence}");
    node.appended().await.settle(Ok(at(5)));
    node.apply(6);
    later.await.expect("it lives").expect("reached");
}

#[tokio::test]
async fn a_barrier_in_another_log_proves_nothing() {
    let node = node(5);
    let read = tokio::spawn(node.begin(Consistency::Strong));
    node.appended().await.settle(Ok(at(4)));
    let sentence = why(read.await.expect("it lives"));
    assert!(sentence.contains("not the one that this node reads"), "{sentence}");
}

#[tokio::test]
async fn a_strong_read_that_is_dropped_leaves_nothing_behind() {
    let node = node(5);
    let read = tokio::spawn(node.begin(Consistency::Strong));
    node.appended().await.settle(Ok(at(9)));
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
    *node.log.high_watermarks.lock() = vec![Some(7)];
    let read = tokio::spawn(node.begin(Consistency::Latest));
    while node.progress.waits() == 0 {
        tokio::task::yield_now().await;
    }
    node.apply(7);
    read.await.expect("it lives").expect("reached");
    *node.log.high_watermarks.lock() = vec![Some(6)];
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

mod partitions {
    use super::*;

    /// Of the key `k` among two partitions; among three it is the last.
    const OWN: i32 = 0;

    impl Node {
        /// The partitions of so many barriers, in order; each is acknowledged and applied.
        async fn barriers(&self, count: usize) -> Vec<i32> {
            until(|| self.log.appends.lock().len() >= count).await;
            let appends = std::mem::take(&mut *self.log.appends.lock());
            let mut partitions = Vec::new();
            for (record, done) in appends {
                let partition = record.partition.expect("barriers name theirs");
                let offset = self.progress.next_offset(partition).expect("it is there").0;
                let position = Position { partition, offset };
                done.settle(Ok(Appended { position, ..at(offset) }));
                self.progress.note_applied(&[PartitionRead::up_to(partition, NextOffset(offset + 1))]);
                partitions.push(partition);
            }
            partitions.sort_unstable();
            partitions
        }

        /// A topic of one partition is given two more, and this node has read none of them. What it lacks of the old one are the last
        /// `missing` offsets.
        fn grow(&self, missing: i64) {
            assert_eq!((partition_of(b"k", 2), partition_of(b"k", 3)), (OWN, 2));
            let next = self.progress.next_offset(0).expect("it is there");
            let from = [next, NextOffset(0), NextOffset(0)];
            self.progress.begin_reading(&from, Event::ReadingResumed).expect("possible");
            self.progress.note_event(Event::LogOpened).expect("possible");
            self.progress.note_log_answered();
            *self.log.high_watermarks.lock() = vec![Some(next.0 + missing), Some(0), Some(0)];
        }
    }

    async fn until(holds: impl Fn() -> bool) {
        let holds = async {
            while !holds() {
                tokio::task::yield_now().await;
            }
        };
        timeout_at(Instant::now() + WAIT, holds).await.expect("in time");
    }

    #[tokio::test]
    async fn a_latest_read_asks_for_the_key_s_partition_alone() {
        let node = node_with(&[5, 5]);
        *node.log.high_watermarks.lock() = vec![Some(5), None];
        node.begin(Consistency::Latest).await.expect("the leader of its partition answers");
        assert_eq!(node.log.questions.load(Ordering::Relaxed), 1);
        let options = ReadOptions { consistency: Consistency::Latest, ..ReadOptions::default() };
        let scan = node.reads.reach(None, &Demand::of(&options).expect("it makes sense")).await;
        assert!(why(scan).contains("has no leader"), "a scan is of all partitions");
        *node.log.high_watermarks.lock() = vec![None, Some(5)];
        assert!(why(node.begin(Consistency::Latest).await).contains("has no leader"));
    }

    #[tokio::test]
    async fn a_strong_read_appends_to_the_key_s_partition_alone() {
        let node = node_with(&[5, 5]);
        let first = tokio::spawn(node.begin(Consistency::Strong));
        assert_eq!(node.barriers(2).await, [0, 1], "the topic may have grown before this node started");
        first.await.expect("it lives").expect("reached");
        let second = tokio::spawn(node.begin(Consistency::Strong));
        assert_eq!(node.barriers(1).await, [OWN]);
        second.await.expect("it lives").expect("reached");
        node.none_is_appended().await;
    }

    #[tokio::test]
    async fn after_growth_a_strong_read_waits_for_the_old_partition_too() {
        let node = node(5);
        let before = tokio::spawn(node.begin(Consistency::Strong));
        assert_eq!(node.barriers(1).await, [0]);
        before.await.expect("it lives").expect("reached");
        node.grow(2);
        let read = tokio::spawn(node.begin(Consistency::Strong));
        assert_eq!(node.barriers(3).await, [0, 1, 2], "the key may be in the old one");
        read.await.expect("it lives").expect("reached");
        let later = tokio::spawn(node.begin(Consistency::Strong));
        assert_eq!(node.barriers(1).await, [2]);
        later.await.expect("it lives").expect("reached");
    }

    #[tokio::test]
    async fn after_growth_a_latest_read_waits_for_the_old_partition_too() {
        let node = node(5);
        node.begin(Consistency::Latest).await.expect("it is there");
        node.grow(2);
        let mut read = tokio::spawn(node.begin(Consistency::Latest));
        until(|| node.progress.waits() > 0).await;
        assert!((&mut read).now_or_never().is_none(), "the key may be in the old one");
        node.apply(7);
        read.await.expect("it lives").expect("reached");
    }

    #[tokio::test]
    async fn after_growth_the_age_is_that_of_all_partitions() {
        let node = node(5);
        node.grow(2);
        let options = ReadOptions { max_staleness: Some(WAIT), ..ReadOptions::default() };
        let demand = Demand::of(&options).expect("it makes sense");
        let ends = [7, 0, 0].map(HighWatermark);
        node.progress.learn_high_watermarks(&ends, node.progress.question_for_high_watermarks());
        let refused = node.reads.reach(Some("k"), &demand).await;
        assert!(why(refused).contains("does not know since when it has everything"));
        node.apply(7);
        node.reads.reach(Some("k"), &demand).await.expect("all is there");
    }
}
