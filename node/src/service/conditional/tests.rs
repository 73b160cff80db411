//! Conditional writes against a double of the node around them: a partition of one key whose log, acknowledgements and decisions
//! come as each test wants them.

use std::collections::VecDeque;
use std::sync::Mutex;

use bitacora_protocol::Position;
use bitacora_protocol::rpc::ServedFrom;
use futures_util::FutureExt as _;
use futures_util::future::join_all;

use super::*;
use crate::replication::decisions::Decisions;
use crate::service::reads::{Answer, LookupResult};
use crate::store::State;

const PARTITION: i32 = 3;
const NOW: LogTime = LogTime::from_ms(1_700_000_000_000);

fn at(offset: i64) -> Position {
    Position { partition: PARTITION, offset }
}

/// How an attempt's acknowledgement comes.
#[derive(Clone, Copy, Default)]
enum Acknowledgement {
    #[default]
    BeforeTheDecision,
    AfterTheDecision,
    Never,
    Lost,
    NotTaken,
}

#[derive(Default)]
struct Log {
    /// The offset of the next record.
    end: i64,
    /// What everybody who has applied everything holds.
    truth: Option<Entry>,
    /// What this node holds.
    held: Option<Entry>,
    /// Records of others that come in front of the next attempts, one each.
    in_front: VecDeque<Option<Entry>>,
    acknowledgement: Acknowledgement,
    /// What an attempt comes to whatever it expects.
    outcome: Option<Decision>,
    attempts: Vec<Expected>,
    barriers: usize,
    repairs: usize,
    moment: u64,
    /// No barrier is answered.
    stuck: bool,
    /// By how many ms this node takes the log's clock to be later than it is.
    ahead: i64,
}

#[derive(Clone, Default)]
struct Double {
    log: Arc<Mutex<Log>>,
    decisions: Arc<Decisions>,
}

/// The same, once others had their turn.
async fn later<T>(told: T) -> T {
    for _ in 0..3 {
        tokio::task::yield_now().await;
    }
    told
}

impl Double {
    fn log(&self) -> std::sync::MutexGuard<'_, Log> {
        self.log.lock().expect("no panic")
    }

    /// Another node's write, which this node has not applied yet.
    fn written_elsewhere(&self, ttl: i64) -> i64 {
        let mut log = self.log();
        let offset = log.end;
        log.end += 1;
        log.truth = Some(entry(offset, ttl, "other"));
        offset
    }

    /// The same, applied.
    fn written(&self, ttl: i64) -> i64 {
        let offset = self.written_elsewhere(ttl);
        let mut log = self.log();
        log.held = log.truth.clone();
        offset
    }

    fn under_test(&self) -> (ConditionalWrites<Self>, Arc<Metrics>) {
        let metrics = Arc::new(Metrics::new().expect("names differ"));
        (ConditionalWrites::new(self.clone(), Arc::clone(&metrics)), metrics)
    }

    async fn write(&self, condition: WriteCondition) -> Result<Written, ConditionalError> {
        self.under_test().0.write(&write(condition, "mine")).await
    }
}

fn entry(offset: i64, ttl: i64, uuid: &str) -> Entry {
    let record = KeyValue { key: "k", value: "v", timestamp: 1, source: source::PRODUCER, ttl, uuid };
    Entry::new(at(offset), NOW, &record)
}

fn write(condition: WriteCondition, uuid: &str) -> ConditionalWrite {
    ConditionalWrite {
        key: "k".to_owned(),
        content: Content::Set { value: "v".to_owned(), live: None },
        condition,
        uuid: uuid.to_owned(),
        trace: None,
        timeout: Duration::from_secs(60),
    }
}

fn version(offset: i64) -> WriteCondition {
    WriteCondition::Version(at(offset))
}

fn live(entry: Option<&Entry>) -> bool {
    entry.is_some_and(|entry| entry.state_by_log_time(NOW) == State::Live)
}

impl KeyAccess for Double {
    async fn prepare(&self, _: &str, _: Instant) -> Result<Prepared, ConditionalError> {
        Ok(Prepared { partition: PARTITION, store_number: 0 })
    }

    fn held(&self, _: &str, _: Prepared) -> Result<Option<Entry>, ConditionalError> {
        Ok(self.log().held.clone())
    }

    async fn barrier(&self, _: &str, _: Instant) -> Result<(), ConditionalError> {
        tokio::task::yield_now().await;
        let mut log = self.log();
        if log.stuck {
            return Err(ConditionalError::NotMade("no broker answers".to_owned()));
        }
        log.barriers += 1;
        log.held = log.truth.clone();
        Ok(())
    }

    fn has_applied(&self, position: Position) -> bool {
        self.log().held.as_ref().is_some_and(|held| held.position().offset >= position.offset)
    }

    async fn applied(&self, position: Position, _: Instant) -> bool {
        let mut log = self.log();
        log.held = log.truth.clone();
        position.offset < log.end
    }

    fn attempt(&self, attempt: NewAttempt<'_>) -> Attempt {
        let mut log = self.log();
        assert!(attempt.until > NOW && attempt.partition == PARTITION);
        if matches!(log.acknowledgement, Acknowledgement::NotTaken) {
            let refused = AppendError::NotTaken("no broker".to_owned());
            let acknowledged = std::future::ready(Err(refused)).boxed();
            return Attempt { acknowledged, waiting: self.decisions.wait_for(b"k", attempt.uuid) };
        }
        if let Some(other) = log.in_front.pop_front() {
            log.end += 1;
            log.truth = other;
        }
        let offset = log.end;
        log.end += 1;
        log.attempts.push(attempt.expected);
        let version = log.truth.as_ref().map(|truth| truth.position().offset);
        let met = match attempt.expected {
            Expected::Live(expected) => version == Some(expected) && live(log.truth.as_ref()),
            Expected::Dead(expected) => version == Some(expected) && !live(log.truth.as_ref()),
            Expected::Nothing => version.is_none(),
        };
        let decision = log.outcome.unwrap_or(if met { Decision::InEffect } else { Decision::Void });
        let entry = entry(offset, ttl::FOR_EVER, attempt.uuid);
        if decision == Decision::InEffect {
            log.truth = Some(entry.clone());
        }
        log.held = log.truth.clone();
        let waiting = self.decisions.wait_for(b"k", attempt.uuid);
        let (decisions, decided) = (Arc::clone(&self.decisions), Decided { entry, decision });
        let tell = move || decisions.tell(&[decided]);
        let appended = Ok(Appended { position: at(offset), timestamp: NOW });
        let acknowledged = match log.acknowledgement {
            Acknowledgement::AfterTheDecision => {
                tell();
                later(appended).boxed()
            }
            Acknowledgement::Never => {
                tell();
                std::future::pending().boxed()
            }
            Acknowledgement::Lost => {
                tokio::spawn(later(()).map(|()| tell()));
                std::future::ready(Err(AppendError::Unknown("late".to_owned()))).boxed()
            }
            _ => {
                tokio::spawn(later(()).map(|()| tell()));
                std::future::ready(appended).boxed()
            }
        };
        Attempt { acknowledged, waiting }
    }

    async fn repair(&self, _: &str, _: Instant) -> bool {
        let mut log = self.log();
        log.repairs += 1;
        log.end += 1;
        true
    }

    fn not_met(&self, _: &str, held: Option<Entry>, now: LogTime) -> NotMet {
        let position = held.as_ref().map_or(at(-1), Entry::position);
        let live = held.filter(|held| held.state_by_log_time(now) == State::Live);
        let version = live.as_ref().map(Entry::position);
        let found = live.map_or(LookupResult::Missing, LookupResult::Local);
        NotMet { current: Answer::new(found, position, ServedFrom::Store), version }
    }

    fn write_timeout(&self) -> Duration {
        Duration::from_secs(5)
    }

    fn now(&self) -> Moment {
        let mut log = self.log();
        log.moment += 1;
        Moment(Duration::from_secs(log.moment))
    }

    fn log_time(&self) -> LogTime {
        LogTime::from_ms(NOW.ms() + self.log().ahead)
    }
}

fn not_met(outcome: Result<Written, ConditionalError>) -> Option<Position> {
    match outcome.expect_err("refused") {
        ConditionalError::NotMet(not_met) => not_met.version,
        error => panic!("{error}"),
    }
}

#[tokio::test]
async fn a_version_that_is_held_is_replaced_without_a_barrier() {
    let double = Double::default();
    let held = double.written(ttl::FOR_EVER);
    let written = double.write(version(held)).await.expect("in effect");
    assert_eq!(written.appended.position, at(held + 1));
    let log = double.log();
    assert_eq!((&*log.attempts, log.barriers, log.repairs), (&[Expected::Live(held)][..], 0, 0));
}

#[tokio::test]
async fn nothing_is_refused_because_this_node_is_behind() {
    let double = Double::default();
    let old = double.written(ttl::FOR_EVER);
    let new = double.written_elsewhere(ttl::FOR_EVER);
    assert!(double.write(version(new)).await.is_ok(), "this node had not applied it yet");
    assert_eq!(double.log().barriers, 0);
    let newer = double.written_elsewhere(ttl::FOR_EVER);
    assert_eq!(not_met(double.write(version(old)).await), Some(at(newer)));
    let deleted = Double::default();
    deleted.written(ttl::DELETED);
    deleted.written_elsewhere(ttl::FOR_EVER);
    assert!(deleted.write(WriteCondition::Present).await.is_ok());
    let there = Double::default();
    there.written(ttl::FOR_EVER);
    there.written_elsewhere(ttl::DELETED);
    assert!(there.write(WriteCondition::Absent).await.is_ok());
}

#[tokio::test]
async fn what_can_hold_no_more_is_not_appended() {
    for condition in [version(7), WriteCondition::Version(Position { partition: 1, offset: 0 }), version(0)] {
        let double = Double::default();
        double.written(ttl::DELETED);
        assert_eq!(not_met(double.write(condition).await), None, "{condition:?}");
        assert!(double.log().attempts.is_empty(), "{condition:?}");
    }
}

#[tokio::test]
async fn a_lost_race_is_repaired_and_refused() {
    let double = Double::default();
    let held = double.written(ttl::FOR_EVER);
    double.log().in_front.push_back(Some(entry(held + 1, ttl::FOR_EVER, "other")));
    let (writes, metrics) = double.under_test();
    assert_eq!(not_met(writes.write(&write(version(held), "mine")).await), Some(at(held + 1)));
    let log = double.log();
    assert_eq!((log.attempts.len(), log.barriers, log.repairs), (1, 0, 1));
    assert_eq!((metrics.conditional_writes("lost"), metrics.conditional_writes("not_met")), (1, 0));
}

#[tokio::test]
async fn an_absence_that_lost_to_a_delete_is_tried_again() {
    let double = Double::default();
    let held = double.written(ttl::DELETED);
    double.log().in_front.push_back(Some(entry(held + 1, ttl::DELETED, "other")));
    assert!(double.write(WriteCondition::Absent).await.is_ok());
    {
        let log = double.log();
        assert_eq!(log.attempts, [Expected::Dead(held), Expected::Dead(held + 1)]);
        assert_eq!((log.barriers, log.repairs), (1, 1));
    }
    let trimmed = Double::default();
    let held = trimmed.written(ttl::DELETED);
    trimmed.log().in_front.push_back(None);
    assert!(trimmed.write(WriteCondition::Absent).await.is_ok());
    assert_eq!(trimmed.log().attempts, [Expected::Dead(held), Expected::Nothing]);
}

#[tokio::test]
async fn a_write_that_always_loses_gives_up() {
    let double = Double::default();
    double.written(ttl::FOR_EVER);
    double.log().outcome = Some(Decision::Void);
    let error = double.write(WriteCondition::Present).await.expect_err("never in effect");
    assert_eq!(error.kind(), ErrorKind::NotTaken, "{error}");
    assert_eq!(double.log().attempts.len(), MAX_ATTEMPTS as usize);
}

#[tokio::test]
async fn what_became_of_it_counts_however_it_is_told() {
    for (acknowledgement, void_counts) in [
        (Acknowledgement::BeforeTheDecision, true),
        (Acknowledgement::AfterTheDecision, true),
        // What took no effect may be a copy of the attempt.
        (Acknowledgement::Never, false),
        (Acknowledgement::Lost, false),
    ] {
        let double = Double::default();
        let held = double.written(ttl::FOR_EVER);
        double.log().acknowledgement = acknowledgement;
        let written = double.write(version(held)).await.expect("in effect");
        assert_eq!(written.appended, Appended { position: at(held + 1), timestamp: NOW });
        double.log().in_front.push_back(Some(entry(held + 2, ttl::FOR_EVER, "other")));
        let mut second = write(version(held + 1), "mine");
        if void_counts {
            assert_eq!(not_met(double.under_test().0.write(&second).await), Some(at(held + 2)));
        } else {
            second.timeout = Duration::from_millis(50);
            let error = double.under_test().0.write(&second).await.expect_err("not known");
            assert_eq!(error.kind(), ErrorKind::MayTakeEffect, "{error}");
            assert!(error.to_string().contains("may"), "{error}");
        }
    }
}

#[tokio::test]
async fn an_attempt_too_early_is_refused_by_the_logs_time() {
    let double = Double::default();
    // It has expired by the time that this node takes for the log's, which is ahead.
    double.log().ahead = 10;
    let held = double.written(NOW.ms() + 5);
    assert_eq!(not_met(double.write(WriteCondition::Absent).await), Some(at(held)), "it is live by the log");
    assert_eq!(double.log().attempts, [Expected::Dead(held)], "and once is enough to find out");
    double.log().held = Some(entry(held, NOW.ms(), "other"));
    double.log().truth = Some(entry(held, NOW.ms(), "other"));
    double.write(WriteCondition::Absent).await.expect("it has expired");
}

#[tokio::test]
async fn an_error_says_whether_the_write_may_take_effect() {
    let double = Double::default();
    double.written(ttl::FOR_EVER);
    let kind = |outcome: Result<Written, ConditionalError>| outcome.expect_err("failed").kind();
    double.log().acknowledgement = Acknowledgement::NotTaken;
    assert_eq!(kind(double.write(WriteCondition::Present).await), ErrorKind::NotTaken);
    double.log().acknowledgement = Acknowledgement::Lost;
    double.log().outcome = Some(Decision::Unknown);
    assert_eq!(kind(double.write(WriteCondition::Present).await), ErrorKind::MayTakeEffect);
    double.log().stuck = true;
    assert_eq!(kind(double.write(WriteCondition::Absent).await), ErrorKind::NotTaken);
}

#[tokio::test]
async fn a_repeated_call_is_answered_with_its_record() {
    let double = Double::default();
    let first = double.write(WriteCondition::Absent).await.expect("in effect");
    let again = double.write(WriteCondition::Absent).await.expect("in effect already");
    assert_eq!(again.appended, first.appended);
    let mut text = UuidText::default();
    assert_eq!(
        again.earlier.and_then(|earlier| Some(earlier.entry.record(&mut text)?.uuid.to_owned())),
        Some("mine".to_owned())
    );
    assert_eq!(double.log().attempts.len(), 1);
    // The first call's attempt comes while the second's is on its way.
    let double = Double::default();
    let held = double.written(ttl::FOR_EVER);
    double.log().in_front.push_back(Some(entry(held + 1, ttl::FOR_EVER, "mine")));
    let written = double.write(version(held)).await.expect("in effect by the first call");
    assert_eq!(written.appended.position, at(held + 1));
}

#[tokio::test]
async fn a_hundred_creates_cost_one_record_and_one_barrier() {
    let double = Double::default();
    let (writes, metrics) = double.under_test();
    let calls: Vec<_> = (0..100).map(|i| write(WriteCondition::Absent, &format!("mine-{i}"))).collect();
    let outcomes = join_all(calls.iter().map(|call| writes.write(call))).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    let log = double.log();
    assert_eq!((log.attempts.len(), log.barriers, log.end), (1, 1, 1));
    assert_eq!((metrics.conditional_writes("in_effect"), metrics.conditional_writes("not_met")), (1, 99));
}
