//! What is appended, and what is counted of it.

use std::future::poll_fn;
use std::sync::Mutex;

use super::*;
use crate::log::{LogInfo, LogReader, NewRecord, OpenError, ReadError};
use bitacora_protocol::{HighWatermark, NextOffset, Position};

/// A log that acknowledges when it is told to, and what it was given.
#[derive(Default)]
struct Slow(Mutex<Vec<Unsettled>>, Mutex<Vec<NewRecord>>);

impl Log for Slow {
    fn topic(&self) -> &'static str {
        "slow"
    }

    fn open(&self, _: &dyn Fn()) -> Result<LogInfo, OpenError> {
        Err(OpenError::Refused("not for reading".to_owned()))
    }

    fn hand_over(&self, record: &NewRecord, append: Unsettled) {
        self.1.lock().expect("no test panicked").push(record.clone());
        self.0.lock().expect("no test panicked").push(append);
    }

    fn check_trimming(&self) -> Result<(), String> {
        Err("no trimming".to_owned())
    }

    fn reader(&self, _: &[NextOffset], _: &[Option<i32>]) -> Result<Box<dyn LogReader>, ReadError> {
        Err(ReadError::Unavailable("not for reading".to_owned()))
    }

    fn high_watermarks(&self) -> Result<Vec<HighWatermark>, ReadError> {
        Ok(Vec::new())
    }

    fn flush(&self, _: Duration) {}
}

#[tokio::test]
async fn a_write_that_nobody_waits_for_is_counted_too() {
    let (log, metrics) = (Arc::new(Slow::default()), Arc::new(Metrics::new().expect("names differ")));
    let writes = Writes::new(Arc::<Slow>::clone(&log), 100, Arc::clone(&metrics));
    let settle = |outcome| {
        log.0.lock().expect("no test panicked").remove(0).settle(outcome);
    };
    let position = Position { partition: 0, offset: 0 };
    let waiting = writes.set("key", "value", None, None, None);
    settle(Ok(Appended { position, timestamp: crate::clock::LogTime::default() }));
    assert!(waiting.await.is_ok());
    assert_eq!(metrics.appends("acknowledged"), 1);

    drop(writes.delete("key", None, None));
    let mut begun = Box::pin(writes.delete("key", None, None));
    assert!(futures_util::poll!(&mut begun).is_pending());
    drop(begun);
    settle(Err(AppendError::Unknown("late".to_owned())));
    settle(Err(AppendError::NotTaken("late".to_owned())));
    while metrics.appends("unknown") + metrics.appends("not_taken") < 2 {
        tokio::task::yield_now().await;
    }
}

#[test]
fn overhead_counts_the_trace_and_the_framing() {
    /// As librdkafka counts for its `message.max.bytes`.
    const FRAMING_BYTES: usize = 36;
    let (key, value) = ("k".repeat(MAX_KEY_BYTES), "v".repeat(1 << 20));
    let uuid = Uuid::new_v4().to_string();
    let record = KeyValue {
        key: &key,
        value: &value,
        timestamp: i64::MAX,
        source: source::PRODUCER,
        ttl: i64::MAX,
        uuid: &uuid,
    };
    let mut bytes = Vec::new();
    record.encode(&mut bytes);
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let header = TraceParent::HEADER.len() + trace.len() + 10;
    let overhead = bytes.len() - key.len() - value.len() + header + FRAMING_BYTES;
    assert!(overhead <= RECORD_OVERHEAD_BYTES, "{overhead}");
}

#[tokio::test]
async fn after_the_stop_nothing_is_appended() {
    let (log, metrics) = (Arc::new(Slow::default()), Arc::new(Metrics::new().expect("names differ")));
    let writes = Writes::new(Arc::<Slow>::clone(&log), 100, metrics);
    writes.close();
    let refused = writes.set("key", "value", None, None, None).await.expect_err("the node stops");
    assert!(matches!(refused, WriteError::Log(AppendError::NotTaken(_))), "{refused}");
    assert!(log.0.lock().expect("no test panicked").is_empty());
}

/// The writes of one request.
mod group {
    use super::*;

    fn group(max_value_bytes: usize) -> (Arc<Slow>, Arc<Writes>, WriteGroup) {
        let (log, metrics) = (Arc::new(Slow::default()), Arc::new(Metrics::new().expect("names differ")));
        let writes = Arc::new(Writes::new(Arc::<Slow>::clone(&log), max_value_bytes, metrics));
        let group = WriteGroup::new(Arc::clone(&writes), None);
        (log, writes, group)
    }

    fn at(offset: i64) -> Appended {
        Appended { position: Position { partition: 0, offset }, timestamp: crate::clock::LogTime::default() }
    }

    async fn take_all(mut group: WriteGroup) -> Vec<Result<PlainWritten, WriteError>> {
        poll_fn(|context| group.poll_settled(context)).await;
        std::iter::from_fn(|| group.take_next()).collect()
    }

    #[tokio::test]
    async fn outcomes_come_in_the_order_of_the_writes() {
        let (log, writes, mut group) = group(100);
        group.set("a", "1", None).expect("it fits");
        group.set("b", &"v".repeat(101), None).expect_err("it is too large");
        group.delete("a");
        group.set("c", "3", Some(Duration::from_hours(1))).expect("it fits");
        group.close();
        let records = std::mem::take(&mut *log.1.lock().expect("no test panicked"));
        let decoded = |record: &NewRecord| {
            let value = record.value.as_deref().expect("no tombstone");
            let record = KeyValue::decode(value).expect("a record").to_owned();
            (record.key, record.value, record.ttl, record.uuid)
        };
        let decoded: Vec<_> = records.iter().map(decoded).collect();
        let keys: Vec<_> = records.iter().map(|record| record.key.clone()).collect();
        assert_eq!(keys, [b"a", b"a", b"c"]);
        let values: Vec<_> = decoded.iter().map(|(key, value, ..)| (key.as_str(), value.as_str())).collect();
        assert_eq!(values, [("a", "1"), ("a", ""), ("c", "3")]);
        assert!(decoded[0].2 == ttl::FOR_EVER && decoded[1].2 == ttl::DELETED && decoded[2].2 > now_ms());

        // The last one first, the first one late.
        let mut appends = std::mem::take(&mut *log.0.lock().expect("no test panicked"));
        appends.pop().expect("three").settle(Ok(at(7)));
        appends.pop().expect("three").settle(Err(AppendError::NotTaken("refused".to_owned())));
        assert!(group.take_next().is_none(), "the first is under way");
        appends.pop().expect("three").settle(Ok(at(9)));
        let outcomes = take_all(group).await;
        let [Ok(first), Err(WriteError::Log(AppendError::NotTaken(_))), Ok(third)] = &outcomes[..] else {
            panic!("{outcomes:?}")
        };
        assert_eq!((first.appended, third.appended), (at(9), at(7)));
        assert_eq!((first.ttl, third.ttl), (ttl::FOR_EVER, decoded[2].2));
        assert_eq!([first.uuid.to_string(), third.uuid.to_string()], [&*decoded[0].3, &*decoded[2].3]);
        let counted = |outcome| writes.metrics.appends(outcome);
        assert_eq!((counted("acknowledged"), counted("not_taken"), counted("unknown")), (2, 1, 0));
    }

    #[tokio::test]
    async fn a_stop_in_the_middle_refuses_what_comes_later() {
        let (log, writes, mut group) = group(100);
        group.set("a", "1", None).expect("it fits");
        writes.close();
        group.set("b", "2", None).expect("it fits");
        group.close();
        let mut appends = std::mem::take(&mut *log.0.lock().expect("no test panicked"));
        assert_eq!(appends.len(), 1);
        appends.remove(0).settle(Ok(at(3)));
        let outcomes = take_all(group).await;
        let [Ok(first), Err(WriteError::Log(AppendError::NotTaken(why)))] = &outcomes[..] else {
            panic!("{outcomes:?}")
        };
        assert_eq!((first.appended, why.as_str()), (at(3), "this node is stopping"));
    }

    #[tokio::test]
    async fn writes_that_nobody_waits_for_are_counted_too() {
        let (log, writes, mut group) = group(100);
        group.set("a", "1", None).expect("it fits");
        group.set("b", "2", None).expect("it fits");
        drop(group);
        let counted = |outcome| writes.metrics.appends(outcome);
        for append in std::mem::take(&mut *log.0.lock().expect("no test panicked")) {
            assert_eq!(counted("acknowledged"), 0);
            append.settle(Ok(at(1)));
        }
        assert_eq!(counted("acknowledged"), 2);
    }
}
