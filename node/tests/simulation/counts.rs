//! What happened in a run, in figures.

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub steps: u64,
    pub writes: u64,
    pub undecodable: u64,
    pub crashes: u64,
    pub disks: u64,
    pub backups: u64,
    pub clocks: u64,
    pub cuts: u64,
    pub topics: u64,
    pub back: u64,
    pub starts: u64,
    pub grown: u64,
    pub resyncs: u64,
    pub beside: u64,
    pub again: u64,
    pub snapshots: u64,
    pub trims: u64,
    pub trimmed: u64,
    pub void: u64,
    pub repairs: u64,
    pub swept: u64,
    pub compacted: u64,
    pub reads: u64,
    pub peer_reads: u64,
    pub compared: u64,
}

impl Counts {
    pub fn each(&self) -> [(&'static str, u64); 25] {
        [
            ("steps", self.steps),
            ("writes", self.writes),
            ("records that can't be decoded", self.undecodable),
            ("crashes", self.crashes),
            ("disks lost", self.disks),
            ("volumes restored from an old copy", self.backups),
            ("clocks set wrong", self.clocks),
            ("nodes cut off from the log", self.cuts),
            ("topics or clusters replaced", self.topics),
            ("partitions truncated", self.back),
            ("log starts moved", self.starts),
            ("partitions added", self.grown),
            ("stores emptied or built anew", self.resyncs),
            ("of them built beside the old one", self.beside),
            ("logs read once more", self.again),
            ("snapshots taken", self.snapshots),
            ("tombstones sent by trimmers", self.trims),
            ("records that they removed", self.trimmed),
            ("of them and of repairs void", self.void),
            ("repairs sent", self.repairs),
            ("keys swept", self.swept),
            ("records compacted away", self.compacted),
            ("reads checked", self.reads),
            ("of them answered by peers", self.peer_reads),
            ("comparisons of a whole replica", self.compared),
        ]
    }
}
