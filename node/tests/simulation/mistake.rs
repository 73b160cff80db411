//! The mistakes that the simulation is to catch.

/// One rule of trimming, replication or resync that is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// The next offsets are committed in a transaction of their own, before the records.
    PositionsCommittedBeforeRecords,
    /// A trimmer's tombstone is taken for one that always deletes.
    UnconditionalTrims,
    /// A repair is taken for a write.
    UnconditionalRepairs,
    /// No pending repair is made.
    NoRepairs,
    /// A resync reads the log again, but leaves in the store what it holds.
    ResyncKeepsOldKeys,
    /// A node that was away for long goes on where it stood.
    NoResyncAfterLongAbsence,
    /// What other partitions hold of a key is not looked at by the trimmer.
    TrimsIgnoreOtherPartitions,
    /// A record that can't be decoded is skipped as if compaction did so, too.
    UndecodableRecordsIgnored,
    /// What a trimmer sent takes effect however late it comes.
    LateConditionalRecordsTakeEffect,
    /// The pending repair of a key that the partition holds nothing of is not made.
    NoRepairOfAnEmptyKey,
    /// A store that was just built is taken for what it seems.
    NewStoreTrustedAfterOneReading,
    /// Nobody looks whether a log that did not answer has been truncated.
    TruncatedLogUnnoticed,
    /// It is not remembered under which leader a record was appended.
    LeaderEpochsNotRemembered,
    /// Nobody looks whether the topic is another one.
    ReplacedTopicUnnoticed,
    /// A copy of another member's store is taken whatever it is of.
    AnySnapshotTaken,
    /// What a trimmer sent to the topic that was there before takes effect in this one.
    ConditionalRecordsOfAnotherTopic,
}
