//! Conditional writes. The level is at offset 0 of each partition that has any.

use bitacora_node::log::Expected;

use super::script::{History, assert_caught};
use crate::mistake::Mistake;
use crate::promise::{Outcome, Promise};
use crate::world::{HOUR, MINUTE, RETENTION};

/// Offset 1 is `v1`, offset 2 `v2`, and at 3 is an attempt for `v3` that came too late to find 1.
fn attempt_comes_after_a_write(history: &History) {
    history.raise_level(0);
    history.set(0, "a", "v1");
    history.set(0, "a", "v2");
    history.attempt(0, "a", Expected::Live(1), "v3");
}

#[test]
fn attempts_are_writes() {
    assert_caught(Mistake::AttemptsAreWrites, Promise::LastWriteHolds, 1, |history| {
        attempt_comes_after_a_write(history);
        history.read_all(0)
    });
}

#[test]
fn void_attempts_are_not_repaired() {
    assert_caught(Mistake::VoidAttemptsAreNotRepaired, Promise::LastWriteHolds, 1, |history| {
        attempt_comes_after_a_write(history);
        history.repair(0)?;
        // Without a repair, the attempt is all that is left.
        history.compact_all()?;
        history.set(0, "b", "v4");
        history.read_all(1)?;
        history.wait(MINUTE)?;
        history.read_all(1)
    });
}

#[test]
fn repairs_reach_only_their_record() {
    assert_caught(Mistake::RepairsReachOnlyTheirRecord, Promise::LastWriteHolds, 1, |history| {
        attempt_comes_after_a_write(history);
        history.trim(0)?;
        history.stop(0);
        // The segment ends between the attempt and the repair. Who reads the attempt first takes it for a write.
        history.compact_below(0, 4)?;
        history.set(0, "b", "v4");
        history.read_all(1)?;
        history.wait(2 * HOUR)?;
        history.read_all(1)
    });
}

#[test]
fn old_attempts_are_judged() {
    assert_caught(Mistake::OldAttemptsAreJudged, Promise::LastWriteHolds, 1, |history| {
        history.raise_level(0);
        history.set(0, "a", "v1");
        history.read_all(0)?;
        history.stop(0);
        // The attempt takes effect; compaction then drops what it speaks of, and node 0 never sees that.
        history.set(0, "a", "v2");
        history.attempt(0, "a", Expected::Live(2), "v3");
        history.compact_all()?;
        history.read_all(0)
    });
}

#[test]
fn any_repair_settles() {
    assert_caught(Mistake::AnyRepairSettles, Promise::LastWriteHolds, 1, |history| {
        attempt_comes_after_a_write(history);
        // The repair of what is behind the first attempt comes behind a second one.
        history.trim_held_up(0, MINUTE)?;
        history.attempt(0, "a", Expected::Live(1), "v4");
        history.wait(2 * MINUTE)?;
        history.repair(0)?;
        // The segment ends between the second attempt and that repair.
        history.compact_below(0, 5)?;
        history.set(0, "b", "v5");
        history.read_all(1)?;
        history.wait(2 * HOUR)?;
        history.read_all(1)
    });
}

#[test]
fn trims_settle_more_than_they_reach() {
    assert_caught(Mistake::TrimsSettleMoreThanTheyReach, Promise::LastWriteHolds, 1, |history| {
        history.raise_level(0);
        history.set(0, "a", "v1");
        history.delete(0, "a");
        history.read_all(0)?;
        history.wait(RETENTION + MINUTE)?;
        // A trim of the delete at 2 comes behind an attempt that found no 1.
        history.trim_held_up(0, MINUTE)?;
        history.attempt(0, "a", Expected::Live(1), "v3");
        history.wait(2 * MINUTE)?;
        history.repair(0)?;
        // The segment ends between the two.
        history.compact_below(0, 4)?;
        history.set(0, "b", "v4");
        history.read_all(1)?;
        history.wait(2 * HOUR)?;
        history.read_all(1)
    });
}

/// A node that has never been there reads behind a hole that an attempt found no `v1` a moment ago.
fn new_node_doubts(history: &mut History) -> Outcome {
    history.raise_level(0);
    history.set(0, "b", "v0");
    history.set(0, "b", "v00");
    history.set(0, "a", "v1");
    history.compact_all()?;
    history.set(0, "a", "v2");
    history.attempt(0, "a", Expected::Live(3), "v3");
    history.read_all(1)
}

#[test]
fn doubtful_keys_are_repaired() {
    assert_caught(Mistake::DoubtfulKeysAreRepaired, Promise::RepairsChangeNothing, 1, |history| {
        new_node_doubts(history)?;
        history.upkeep(1)
    });
}

#[test]
fn doubts_are_ignored() {
    assert_caught(Mistake::DoubtsAreIgnored, Promise::LastWriteHolds, 1, new_node_doubts);
}

#[test]
fn late_attempts_take_effect() {
    assert_caught(Mistake::LateAttemptsTakeEffect, Promise::LastWriteHolds, 1, |history| {
        history.raise_level(0);
        history.set(0, "a", "v1");
        history.attempt_held_up(0, "a", Expected::Live(1), "v2", HOUR);
        history.wait(HOUR)?;
        history.read_all(0)
    });
}

#[test]
fn attempts_of_another_topic() {
    assert_caught(Mistake::AttemptsOfAnotherTopic, Promise::LastWriteHolds, 1, |history| {
        history.raise_level(0);
        history.set(0, "a", "v1");
        history.read_all(0)?;
        history.attempt_held_up(0, "a", Expected::Live(1), "v2", MINUTE / 2);
        history.replace_topic();
        history.raise_level(0);
        history.set(0, "a", "v3");
        history.wait(MINUTE)?;
        history.read_all(0)
    });
}

#[test]
fn expiry_by_own_clock() {
    assert_caught(Mistake::ExpiryByOwnClock, Promise::LastWriteHolds, 1, |history| {
        history.raise_level(0);
        history.set_expiring(0, "a", "v1", MINUTE);
        history.read_all(0)?;
        history.set_clock(0, -10 * MINUTE);
        history.wait(2 * MINUTE)?;
        // By the log's time, there is nothing live any more that it could replace.
        history.attempt(0, "a", Expected::Live(1), "v2");
        history.read_all(0)
    });
}

#[test]
fn tombstones_are_versions() {
    assert_caught(Mistake::TombstonesAreVersions, Promise::LastWriteHolds, 1, |history| {
        history.raise_level(0);
        history.set(0, "a", "v1");
        history.write_tombstone(0, "a");
        history.read_all(0)?;
        // Node 0 still remembers the tombstone; a node that begins now need not.
        history.attempt(0, "a", Expected::Nothing, "v2");
        history.read_all(0)
    });
}

#[test]
fn expired_is_repaired_as_deleted() {
    assert_caught(Mistake::ExpiredIsRepairedAsDeleted, Promise::RepairsChangeNothing, 1, |history| {
        history.raise_level(0);
        history.set_expiring(0, "a", "v1", MINUTE);
        history.read_all(0)?;
        history.wait(HOUR)?;
        // A node whose value has been swept repairs what is behind an attempt.
        history.set(0, "b", "v2");
        history.read_all(0)?;
        history.attempt(0, "a", Expected::Live(1), "v3");
        history.repair(0)?;
        history.compact_all()?;
        history.read_all(1)?;
        // Both nodes have what was there, and when it expired.
        history.attempt(0, "a", Expected::Dead(1), "v4");
        history.read_all(0)?;
        history.read_all(1)
    });
}
