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
