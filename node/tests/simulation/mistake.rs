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
    /// An attempt is taken for a write.
    AttemptsAreWrites,
    /// The pending repair behind an attempt that took no effect is not made.
    VoidAttemptsAreNotRepaired,
    /// A repair takes effect only where nothing newer is held than the record that it repeats.
    RepairsReachOnlyTheirRecord,
    /// Who reads behind a hole that compaction left decides about attempts all the same.
    OldAttemptsAreJudged,
    /// A repair or a trim that takes effect settles what is pending or in doubt before it, also what it does not reach.
    AnyRepairSettles,
    /// A node repeats what it holds of a key although it doubts that.
    DoubtfulKeysAreRepaired,
    /// What a node holds of a key is taken for true although it doubts that.
    DoubtsAreIgnored,
    /// A trim or a repair that does not reach what is doubted has no effect.
    DoubtsOutlastRepairs,
    /// An attempt that finds what it expects ends a doubt also if that is not what was doubted.
    AnyFitEndsDoubts,
    /// An attempt takes effect however late it comes.
    LateAttemptsTakeEffect,
    /// An attempt that was sent to the topic that was there before takes effect in this one.
    AttemptsOfAnotherTopic,
    /// Whether a record has expired when an attempt comes is decided by each node's own clock.
    ExpiryByOwnClock,
    /// Another program's tombstone counts as a version, for as long as a node remembers it.
    TombstonesAreVersions,
    /// What has expired and was swept is repaired by a tombstone.
    ExpiredIsRepairedAsDeleted,
    /// One of the replicas takes no write for one.
    OneReplicaReadsNoWrites,
}
