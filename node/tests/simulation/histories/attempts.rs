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

/// Node 1 will begin behind a hole, and so with doubts; the others have seen everything. The next offset is 3.
fn begins_with_a_hole(history: &mut History) -> Outcome {
    history.raise_level(0);
    history.set(0, "b", "v0");
    history.set(0, "b", "v00");
    history.read_all(0)?;
    history.read_all(2)?;
    history.compact_all()?;
    history.read_all(0)?;
    history.read_all(2)
}

#[test]
fn repairs_reach_only_their_record() {
    assert_caught(Mistake::RepairsReachOnlyTheirRecord, Promise::DoubtsEnd, 1, |history| {
        begins_with_a_hole(history)?;
        history.set(0, "a", "v1");
        history.attempt(0, "a", Expected::Nothing, "v2");
        history.trim(0)?;
        // It takes the attempt for a write, and then reads the repair.
        history.read_all(1)?;
        history.doubts_nothing(1)
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
        begins_with_a_hole(history)?;
        history.set(0, "a", "v1");
        // Two nodes repair what is behind attempts, when another has replaced `v1`.
        history.attempt(0, "a", Expected::Nothing, "v2");
        history.trim_held_up(2, MINUTE / 3)?;
        history.attempt(0, "a", Expected::Nothing, "v3");
        history.trim_held_up(0, MINUTE / 2)?;
        history.attempt(0, "a", Expected::Live(3), "v4");
        history.wait(MINUTE)?;
        // A new node takes the first of them for one that has an effect. The second does not reach the first.
        history.read_all(1)
    });
}

#[test]
fn any_trim_settles() {
    assert_caught(Mistake::AnyRepairSettles, Promise::LastWriteHolds, 1, |history| {
        begins_with_a_hole(history)?;
        history.delete(0, "a");
        history.read_all(0)?;
        history.wait(RETENTION + MINUTE)?;
        // A node trims the delete and another repairs it, when an attempt has replaced it.
        history.trim_held_up(0, MINUTE / 2)?;
        history.attempt(0, "a", Expected::Nothing, "v1");
        history.trim_held_up(2, MINUTE / 3)?;
        history.attempt(0, "a", Expected::Dead(3), "v2");
        history.wait(MINUTE)?;
        history.read_all(1)
    });
}

/// A node that has never been there reads behind a hole that an attempt found no `v1` a moment ago.
fn new_node_doubts(history: &mut History) -> Outcome {
    begins_with_a_hole(history)?;
    history.set(0, "a", "v1");
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
fn doubts_outlast_repairs() {
    assert_caught(Mistake::DoubtsOutlastRepairs, Promise::LastWriteHolds, 1, |history| {
        begins_with_a_hole(history)?;
        history.set(0, "a", "v1");
        history.attempt(0, "a", Expected::Nothing, "v2");
        // The repair of what is behind the first attempt comes behind that of both, and compaction drops the latter.
        history.trim_held_up(2, 2 * MINUTE)?;
        history.attempt(0, "a", Expected::Nothing, "v3");
        history.read_all(1)?;
        history.stop(1);
        history.repair(0)?;
        history.pause(1);
        history.wait(3 * MINUTE)?;
        history.compact_all()?;
        history.set(0, "b", "v4");
        history.read_all(1)?;
        history.wait(2 * HOUR)?;
        history.set(0, "b", "v5");
        history.read_all(1)
    });
}

#[test]
fn any_fit_ends_doubts() {
    assert_caught(Mistake::AnyFitEndsDoubts, Promise::LastWriteHolds, 1, |history| {
        begins_with_a_hole(history)?;
        history.set(0, "a", "v1");
        history.attempt(0, "a", Expected::Nothing, "v2");
        // The repair of that comes when another attempt has replaced `v1`, and so does a third, which finds it no more.
        history.trim_held_up(2, MINUTE / 3)?;
        history.attempt(0, "a", Expected::Live(3), "v3");
        history.attempt_held_up(0, "a", Expected::Live(3), "v4", MINUTE / 2);
        history.wait(MINUTE / 3)?;
        history.read_all(1)?;
        history.wait(MINUTE / 2)?;
        history.read_all(1)
    });
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
