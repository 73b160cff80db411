use std::sync::atomic::AtomicUsize;
use std::task::{Context, Poll, Wake, Waker};

use futures_util::FutureExt;
use tokio::time::Instant;

use super::*;
use crate::clock::WallTime;
use crate::clock::manual::ManualClock;

const SECOND: Duration = Duration::from_secs(1);

fn progress() -> (Progress, ManualClock) {
    let clock = ManualClock::new();
    (Progress::new(Arc::new(clock.clone())), clock)
}

fn begin(progress: &Progress, next: &[NextOffset]) {
    progress.begin_reading(next, Event::StoreEmptied).expect("possible in any state");
}

#[test]
fn caught_up_is_asked_by_both_clocks() {
    let (progress, clock) = progress();
    assert!(!progress.caught_up(), "nothing is known yet");
    begin(&progress, &[NextOffset(2)]);
    let learn = |question| progress.learn_high_watermarks(&[HighWatermark(2)], question);
    learn(progress.question_for_high_watermarks());
    assert!(progress.caught_up());
    clock.pass(2 * SECOND);
    assert!(!progress.caught_up(), "learnt too long ago");
    learn(progress.question_for_high_watermarks());
    assert!(progress.caught_up());
    clock.set_wall(clock.wall() + 2 * SECOND);
    assert!(!progress.caught_up(), "the machine was suspended since");
    let of_this = progress.question_for_high_watermarks();
    learn(of_this);
    assert!(progress.caught_up());
    begin(&progress, &[NextOffset(2)]);
    learn(of_this);
    assert!(!progress.caught_up(), "an answer to a question before the store was begun");
}

#[test]
fn applied_until_is_what_was_past_when_the_node_asked() {
    let (progress, clock) = progress();
    let log = clock.wall().assuming_clocks_agree();
    begin(&progress, &[NextOffset(0)]);
    progress.learn_high_watermarks(&[HighWatermark(0)], progress.question_for_high_watermarks());
    let known = (progress.applied_until(), progress.certainly_past());
    assert_eq!(known, (None, None), "the log has told no time yet");
    progress.note_log_time(log - 9 * SECOND, true);
    let question = progress.question_for_high_watermarks();
    // What is read while the answer is on its way is later.
    progress.note_log_time(log - 5 * SECOND, true);
    progress.learn_high_watermarks(&[HighWatermark(2)], question);
    assert_eq!(progress.applied_until(), None, "it is behind");
    assert_eq!(progress.certainly_past(), Some(log - 5 * SECOND));
    progress.note_applied(&[PartitionRead::up_to(0, NextOffset(2))]);
    clock.pass(SECOND);
    let log_time = log - 9 * SECOND;
    let reached = Some(AppliedUntil { time: log_time, log_time });
    assert_eq!(progress.applied_until(), reached, "it has reached that end");
    assert_eq!(progress.certainly_past(), Some(log - 4 * SECOND));
    let five = LogTime::from_ms(5);
    clock.set_wall(five.assuming_clocks_agree());
    let reached = Some(AppliedUntil { time: five, log_time });
    assert_eq!(progress.applied_until(), reached, "by this machine's clock, too");
    assert_eq!(progress.certainly_past(), Some(five));
    begin(&progress, &[NextOffset(2)]);
    assert_eq!(progress.applied_until(), None, "another store");
}

#[test]
fn a_restore_ends_once_and_estimates_its_rest() {
    let (progress, clock) = progress();
    begin(&progress, &[NextOffset(0)]);
    progress.learn_high_watermarks(&[HighWatermark(6)], progress.question_for_high_watermarks());
    clock.pass(3_000 * SECOND);
    progress.note_applied(&[PartitionRead::up_to(0, NextOffset(5))]);
    let restore = progress.restore();
    assert_eq!(restore.fraction, Some(5.0 / 6.0));
    assert!(restore.remaining_seconds.is_some_and(|left| (left - 600.0).abs() < 0.1), "{restore:?}");
    progress.note_applied(&[PartitionRead::up_to(0, NextOffset(6))]);
    progress.note_caught_up().expect("it was restoring");
    progress.learn_high_watermarks(&[HighWatermark(100)], progress.question_for_high_watermarks());
    assert_eq!(progress.restore().remaining_seconds, None);
    assert_eq!(progress.restore().fraction, Some(1.0), "what is written later is no part of the restore");
}

#[test]
fn a_frozen_process_answers_nothing_until_its_store_is_emptied() {
    let (progress, clock) = progress();
    let serve_anew = || {
        begin(&progress, &[]);
        progress.note_caught_up().expect("it was restoring");
    };
    progress.set_delete_retention(Some(10 * SECOND));
    serve_anew();
    assert!(!progress.detect_freeze());
    clock.pass(10 * SECOND);
    assert!(!progress.detect_freeze() && progress.restored(), "to the last moment");
    clock.pass(11 * SECOND);
    assert!(!progress.restored(), "a read comes before anybody has noticed");
    assert!(progress.detect_freeze());
    assert!(!progress.restored(), "also afterwards");
    assert!(progress.detect_freeze(), "until somebody draws the consequence");
    progress.note_caught_up().expect_err("what it has missed does not come back");
    progress.begin_reading(&[], Event::ReadingResumed).expect_err("the store is not empty");
    assert!(!progress.restored());
    serve_anew();
    // By the time of day alone: the machine was suspended.
    assert!(!progress.detect_freeze());
    clock.set_wall(clock.wall() + 11 * SECOND);
    assert!(progress.detect_freeze());
    assert!(!progress.restored());
    serve_anew();
    clock.set_wall(WallTime::from_ms(7));
    assert!(!progress.detect_freeze(), "a clock that is set back says nothing");
    progress.set_delete_retention(None);
    clock.pass(Duration::from_hours(10_000));
    clock.set_wall(WallTime::MAX);
    assert!(!progress.detect_freeze());
}

#[test]
fn an_earlier_store_waits_for_the_log_not_for_long() {
    let (progress, clock) = progress();
    progress.begin_reading(&[NextOffset(1)], Event::EarlierStoreFound).expect("at the start");
    progress.accept_earlier_store_in_time();
    assert!(!progress.restored(), "the log may object");
    clock.pass(2 * SECOND);
    progress.accept_earlier_store_in_time();
    assert!(progress.restored(), "it had its time");
    begin(&progress, &[]);
    progress.accept_earlier_store();
    assert!(!progress.restored(), "it is no earlier run's any more");
}

#[test]
fn a_dead_or_stuck_replica_makes_a_warm_node_unready() {
    let (progress, clock) = progress();
    assert_eq!(progress.unready().as_deref(), Some("starting"));
    progress.begin_reading(&[NextOffset(0)], Event::EarlierStoreFound).expect("at the start");
    progress.accept_earlier_store();
    assert_eq!(progress.unready(), None);
    clock.pass(MAX_SILENCE + SECOND);
    assert!(progress.unready().expect("stuck").contains("no sign of life for 31 s"));
    progress.note_sign_of_life();
    assert_eq!(progress.unready(), None);
    progress.fail("gone".into());
    progress.note_event(Event::LogOpened).expect("no other part need know");
    assert_eq!(progress.unready().as_deref(), Some("gone"));
}

mod waits {
    use futures_util::FutureExt as _;

    use super::*;

    const AT: fn(i64) -> Position = |offset| Position { partition: 0, offset };

    /// Of a node that has applied `next` offsets of its one partition, and answers reads.
    fn serving(next: i64) -> Arc<Progress> {
        let progress = Arc::new(progress().0);
        begin(&progress, &[NextOffset(next)]);
        progress.note_caught_up().expect("restored");
        progress
    }

    fn apply(progress: &Progress, next: i64) {
        progress.note_applied(&[PartitionRead::up_to(0, NextOffset(next))]);
    }

    fn later() -> Instant {
        Instant::now() + 1_000 * SECOND
    }

    #[tokio::test]
    async fn a_commit_wakes_only_those_whose_position_it_passes() {
        let progress = serving(5);
        assert_eq!(progress.applied(AT(4), later()).await, Ok(()), "it is there");
        let mut waits: Vec<_> =
            [5, 9, 7, 5].map(|offset| Box::pin(progress.applied(AT(offset), later()))).into();
        for wait in &mut waits {
            assert_eq!(wait.now_or_never(), None);
        }
        assert_eq!(progress.waits(), 4);
        apply(&progress, 8);
        assert_eq!(progress.waits(), 1);
        for index in [0, 2, 3] {
            assert_eq!(waits[index].as_mut().await, Ok(()));
        }
        apply(&progress, 9);
        assert_eq!((&mut waits[1]).now_or_never(), None);
        apply(&progress, 10);
        assert_eq!(waits[1].as_mut().await, Ok(()));
    }

    #[tokio::test]
    async fn who_goes_away_waits_no_more() {
        let progress = serving(0);
        let mut wait = Box::pin(progress.applied(AT(3), later()));
        assert_eq!((&mut wait).now_or_never(), None);
        assert_eq!(progress.waits(), 1);
        drop(wait);
        assert_eq!(progress.waits(), 0);
    }

    #[tokio::test]
    async fn no_wait_outlives_its_deadline() {
        let progress = serving(0);
        let late = progress.applied(AT(3), Instant::now() + SECOND / 50).await;
        assert_eq!((late, progress.waits()), (Err(WaitError::NotInTime), 0));
        let past = Instant::now();
        assert_eq!(progress.applied(AT(3), past).await, Err(WaitError::NotInTime));
        apply(&progress, 4);
        assert_eq!(progress.applied(AT(3), past).await, Ok(()), "there is nothing to wait for");
    }

    #[tokio::test]
    async fn another_store_ends_all_waits() {
        for (event, partitions) in [
            (Event::StoreEmptied, 1),
            (Event::RebuildBegan("why".into()), 1),
            (Event::SnapshotInstalled, 1),
            // A key may lie in another partition from now on.
            (Event::ReadingResumed, 2),
        ] {
            let progress = serving(0);
            let number = progress.store_number().expect("it answers reads");
            let mut wait = Box::pin(progress.applied(AT(3), later()));
            assert_eq!((&mut wait).now_or_never(), None);
            progress.begin_reading(&vec![NextOffset(9); partitions], event.clone()).expect("possible");
            assert_eq!(wait.await, Err(WaitError::StoreReplaced), "{event:?}");
            assert_ne!(progress.store_number(), Some(number), "{event:?}");
        }
    }

    #[tokio::test]
    async fn waits_go_on_when_the_log_is_opened_again() {
        let progress = serving(0);
        let number = progress.store_number();
        let mut waits: Vec<_> = [3, 8].map(|offset| Box::pin(progress.applied(AT(offset), later()))).into();
        for wait in &mut waits {
            assert_eq!(wait.now_or_never(), None);
        }
        progress.begin_reading(&[NextOffset(5)], Event::ReadingResumed).expect("possible");
        assert_eq!((waits[0].as_mut().await, progress.waits()), (Ok(()), 1));
        apply(&progress, 9);
        assert_eq!((waits[1].as_mut().await, progress.store_number()), (Ok(()), number));
    }

    #[tokio::test]
    async fn a_store_that_is_built_anew_is_behind_any_position() {
        let progress = serving(5);
        progress.begin_reading(&[NextOffset(9)], Event::RebuildBegan("why".into())).expect("possible");
        assert_eq!(progress.applied(AT(4), later()).await, Err(WaitError::NotServing));
        assert_eq!(progress.store_number(), None);
    }

    #[tokio::test]
    async fn a_node_that_stops_ends_all_waits_and_begins_none() {
        let progress = serving(0);
        let mut wait = Box::pin(progress.applied(AT(3), later()));
        assert_eq!((&mut wait).now_or_never(), None);
        progress.end_waits();
        assert_eq!(wait.await, Err(WaitError::Stopping));
        assert_eq!(progress.applied(AT(3), later()).await, Err(WaitError::Stopping));
    }

    #[tokio::test]
    async fn a_partition_that_the_topic_lacks_is_told() {
        let progress = serving(0);
        for partition in [1, -1, i32::MAX, i32::MIN] {
            let refused = progress.applied(Position { partition, offset: 0 }, later()).await;
            assert_eq!(refused, Err(WaitError::NoSuchPartition { partition, partitions: 1 }));
        }
    }

    #[test]
    fn a_log_that_tells_no_high_watermarks_does_not_answer() {
        let (progress, clock) = progress();
        begin(&progress, &[NextOffset(2)]);
        let learn =
            || progress.learn_high_watermarks(&[HighWatermark(2)], progress.question_for_high_watermarks());
        learn();
        assert!(!progress.log_answers(), "it is not read");
        progress.note_event(Event::LogOpened).expect("at any time");
        assert!(progress.log_answers());
        clock.pass(2 * SECOND);
        assert!(progress.log_answers(), "to the last moment");
        clock.pass(SECOND / 1_000);
        assert!(!progress.log_answers());
        learn();
        assert!(progress.log_answers());
        progress.note_event(Event::LogUnavailable("away".into())).expect("at any time");
        assert!(!progress.log_answers());
    }
}

#[test]
fn who_waits_for_a_failure_is_woken_by_nothing_else() {
    #[derive(Default)]
    struct Woken(AtomicUsize);
    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let (progress, _clock) = progress();
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    let mut failure = std::pin::pin!(progress.failure());
    let mut ask = || failure.as_mut().poll(&mut Context::from_waker(&waker));
    assert!(ask().is_pending());
    begin(&progress, &[NextOffset(0)]);
    progress.learn_high_watermarks(&[HighWatermark(1)], progress.question_for_high_watermarks());
    progress.note_applied(&[PartitionRead::up_to(0, NextOffset(1))]);
    assert_eq!(woken.0.load(Ordering::Relaxed), 0);
    progress.fail("gone".into());
    assert_eq!(woken.0.load(Ordering::Relaxed), 1);
    assert_eq!(ask(), Poll::Ready("gone".to_owned()));
    // Also one who asks later.
    assert_eq!(progress.failure().now_or_never().as_deref(), Some("gone"));
}
