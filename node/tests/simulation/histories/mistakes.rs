use super::script::{History, assert_caught};
use crate::mistake::Mistake;
use crate::promise::{Outcome, Promise};
use crate::world::{HOUR, MINUTE, RETENTION};

/// A key is deleted and long dead; while its tombstone is on its way, it is written again.
fn tombstone_comes_after_a_write(history: &mut History) -> Outcome {
    history.set(0, "a", "v1");
    history.delete(0, "a");
    history.read_all(0)?;
    history.wait(RETENTION + MINUTE)?;
    history.trim_held_up(0, MINUTE)?;
    history.set(0, "a", "v2");
    history.wait(2 * MINUTE)?;
    history.read_all(0)
}

#[test]
fn positions_committed_before_records() {
    assert_caught(Mistake::PositionsCommittedBeforeRecords, Promise::LastWriteHolds, 1, |history| {
        history.read_all(0)?;
        history.set(0, "a", "v1");
        history.crash_before_apply(0)?;
        history.read_all(0)
    });
}

/// Only a comparison of replicas finds it: nobody else knows what was written.
#[test]
fn one_replica_reads_no_writes() {
    assert_caught(Mistake::OneReplicaReadsNoWrites, Promise::DigestsAgree, 1, |history| {
        history.read_all(0)?;
        history.read_all(1)?;
        history.set(0, "a", "v1");
        history.read_all(0)?;
        history.read_all(1)
    });
}

#[test]
fn unconditional_trims() {
    assert_caught(Mistake::UnconditionalTrims, Promise::LastWriteHolds, 1, tombstone_comes_after_a_write);
}

#[test]
fn unconditional_repairs() {
    assert_caught(Mistake::UnconditionalRepairs, Promise::LastWriteHolds, 1, |history| {
        tombstone_comes_after_a_write(history)?;
        // It repairs v2, and comes after v3.
        history.trim_held_up(0, MINUTE)?;
        history.set(0, "a", "v3");
        history.wait(2 * MINUTE)?;
        history.read_all(0)
    });
}

#[test]
fn no_repairs() {
    assert_caught(Mistake::NoRepairs, Promise::LastWriteHolds, 1, |history| {
        tombstone_comes_after_a_write(history)?;
        history.repair(0)?;
        // Without a repair, the tombstone is all that is left.
        history.compact_all()?;
        history.read_as_new_node()
    });
}

#[test]
fn undecodable_records_ignored() {
    assert_caught(Mistake::UndecodableRecordsIgnored, Promise::LastWriteHolds, 1, |history| {
        history.set(0, "a", "v1");
        history.write_nonsense(0, "a");
        history.repair(0)?;
        // Without a repair, the nonsense is all that is left.
        history.compact_all()?;
        history.read_as_new_node()
    });
}

#[test]
fn no_repair_of_an_empty_key() {
    assert_caught(Mistake::NoRepairOfAnEmptyKey, Promise::LastWriteHolds, 3, |history| {
        // Two nodes trim a key; the tombstone of the first comes when that of the second has left nothing, and is too late.
        history.delete(0, "a");
        history.read_all(0)?;
        history.read_all(1)?;
        history.wait(RETENTION + MINUTE)?;
        history.trim_held_up(0, 3 * HOUR)?;
        history.trim(1)?;
        // Of two other partitions, the one hides with another writer's tombstone what the other holds.
        history.set(1, "a", "v1");
        history.write_tombstone(2, "a");
        history.wait(3 * HOUR + MINUTE)?;
        // Without a repair the key is not trimmed again, and v1 comes back with the end of that tombstone.
        history.repair(1)?;
        history.wait(RETENTION / 2)?;
        history.trim(1)?;
        history.compact_with_tombstones()?;
        history.read_as_new_node()
    });
}

#[test]
fn new_store_trusted_after_one_reading() {
    assert_caught(Mistake::NewStoreTrustedAfterOneReading, Promise::LastWriteHolds, 1, |history| {
        history.set(0, "a", "v1");
        history.delete(0, "a");
        history.read_all(0)?;
        history.wait(RETENTION + MINUTE)?;
        history.trim(0)?;
        history.write_nonsense(0, "a");
        // A new node has read only v1 when compaction leaves nothing but the nonsense.
        history.apply_first_records(1, 1)?;
        history.pause(1);
        history.compact_all()?;
        history.read_all(1)
    });
}

#[test]
fn late_conditional_records_take_effect() {
    assert_caught(Mistake::LateConditionalRecordsTakeEffect, Promise::LastWriteHolds, 1, |history| {
        tombstone_comes_after_a_write(history)?;
        // Two nodes repair v2; one of the repairs comes when v2 has been deleted and trimmed.
        history.trim_held_up(0, RETENTION + HOUR)?;
        history.repair(1)?;
        history.delete(0, "a");
        history.wait(RETENTION + MINUTE)?;
        history.trim(1)?;
        history.wait(HOUR)?;
        history.read_all(1)
    });
}

#[test]
fn conditional_records_of_another_topic() {
    assert_caught(Mistake::ConditionalRecordsOfAnotherTopic, Promise::LastWriteHolds, 1, |history| {
        history.set(0, "a", "v1");
        history.delete(0, "a");
        history.read_all(0)?;
        history.wait(RETENTION + MINUTE)?;
        // A tombstone for what is at offset 1 arrives in another topic.
        history.trim_held_up(0, MINUTE)?;
        history.replace_topic();
        history.set(0, "a", "v2");
        history.set(0, "b", "v3");
        history.wait(2 * MINUTE)?;
        history.read_all(0)
    });
}

#[test]
fn trims_ignore_other_partitions() {
    assert_caught(Mistake::TrimsIgnoreOtherPartitions, Promise::LastWriteHolds, 1, |history| {
        // The old partition holds v1, the new one the delete that hides it.
        history.set(0, "a", "v1");
        history.add_partition();
        history.delete(1, "a");
        history.read_all(0)?;
        history.wait(RETENTION + MINUTE)?;
        // The tombstone for v1 is on its way.
        history.trim_held_up(0, MINUTE)?;
        history.read_all(0)
    });
}

#[test]
fn resync_keeps_old_keys() {
    assert_caught(Mistake::ResyncKeepsOldKeys, Promise::LastWriteHolds, 1, |history| {
        history.set(0, "a", "v1");
        history.read_all(0)?;
        history.replace_topic();
        history.read_all(0)
    });
}

#[test]
fn no_resync_after_long_absence() {
    assert_caught(Mistake::NoResyncAfterLongAbsence, Promise::LastWriteHolds, 1, |history| {
        // A key is deleted while node 0 is away, and trimmed until nothing of it is left in the log.
        history.set(0, "a", "v1");
        history.set(0, "b", "v2");
        history.read_all(0)?;
        history.read_all(1)?;
        history.stop(0);
        history.delete(0, "a");
        history.wait(RETENTION + MINUTE)?;
        history.trim(1)?;
        history.compact_with_tombstones()?;
        history.read_all(0)
    });
}

#[test]
fn any_snapshot_taken() {
    assert_caught(Mistake::AnySnapshotTaken, Promise::NodesCatchUp, 1, |history| {
        // Node 0 runs on, cut off from the log.
        history.make_long(0);
        history.set(0, "a", "v1");
        history.read_all(0)?;
        history.read_all(1)?;
        history.cut_off(0);
        history.delete(0, "a");
        history.read_all(1)?;
        history.wait(RETENTION + MINUTE)?;
        history.trim(1)?;
        history.compact_with_tombstones()?;
        // A new node may take the store of node 1, but not of node 0.
        history.read_all(2)
    });
}

#[test]
fn truncated_log_unnoticed() {
    assert_caught(Mistake::TruncatedLogUnnoticed, Promise::LastWriteHolds, 1, |history| {
        history.broker_lags(0);
        history.set(0, "a", "v1");
        history.write_transaction_marker(0);
        // It does not know under which leader the transaction marker was appended.
        history.read_all(0)?;
        history.truncate(0);
        history.set(0, "a", "v2");
        history.set(0, "b", "v3");
        history.read_all(0)
    });
}

#[test]
fn leader_epochs_not_remembered() {
    assert_caught(Mistake::LeaderEpochsNotRemembered, Promise::LastWriteHolds, 1, |history| {
        history.read_all(0)?;
        history.broker_lags(0);
        history.write_transaction_marker(0);
        history.set(0, "a", "v1");
        history.apply(0)?;
        history.truncate(0);
        // At the same time by the log's clock, so that timestamps don't tell it.
        history.set(0, "b", "v2");
        history.write_transaction_marker(0);
        history.set(0, "c", "v3");
        history.read_all(0)
    });
}

#[test]
fn replaced_topic_unnoticed() {
    assert_caught(Mistake::ReplacedTopicUnnoticed, Promise::LastWriteHolds, 1, |history| {
        history.set(0, "a", "v1");
        history.read_all(0)?;
        history.replace_topic();
        history.set(0, "b", "v2");
        history.read_all(0)
    });
}
