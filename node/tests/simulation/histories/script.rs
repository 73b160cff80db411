//! What a history is written in: what happens to the log and the nodes, one thing after another, and nothing by chance.

use std::sync::{Arc, MutexGuard};

use bitacora_node::clock::LogTime;
use bitacora_node::log::{Condition, Expected};
use bitacora_node::store::Store;
use bitacora_protocol::record::ttl;

use crate::cluster::Cluster;
use crate::member::{Member, Part};
use crate::mistake::Mistake;
use crate::oracle::compare_new_node;
use crate::promise::{Outcome, Promise};
use crate::workspace::Workspace;
use crate::world::{Crash, LAG, MANY_OFFSETS, MINUTE, RETENTION, Sent, TOMBSTONES, World};
use crate::writers::{encode, encode_as};

const NODES: usize = 3;

pub struct History {
    cluster: Arc<Cluster>,
    members: Vec<Member>,
    spare: Arc<Store>,
    /// These do nothing while time passes.
    paused: [bool; NODES],
}

impl Drop for History {
    /// The nodes know the cluster, and it knows them.
    fn drop(&mut self) {
        self.members.iter_mut().for_each(Member::crash);
    }
}

/// Says that a history ends well, but for one that breaks a promise if a mistake is made.
pub fn assert_caught(
    mistake: Mistake,
    promise: Promise,
    partitions: usize,
    history: impl Fn(&mut History) -> Outcome,
) {
    let workspace = Workspace::new();
    let play = |mistake| {
        workspace.in_folder(|nodes, spare| {
            let mut played = History::new(World::scripted(mistake, partitions, NODES), nodes, spare);
            let outcome = history(&mut played);
            let trace = played.world().trace.take().unwrap_or_default();
            (outcome, trace)
        })
    };
    let (outcome, trace) = play(None);
    assert_eq!(outcome, Ok(()), "without a mistake:\n{trace}");
    let (outcome, trace) = play(Some(mistake));
    let violation = outcome.expect_err(&format!("{mistake:?} is not caught:\n{trace}"));
    println!("{mistake:?}: {violation:?}");
    assert_eq!(violation.promise, promise, "{violation:?}\n{trace}");
}

impl History {
    fn new(world: World, nodes: &std::path::Path, spare: &Arc<Store>) -> Self {
        let cluster = Cluster::new(world);
        let members = (0..NODES).map(|who| Member::new(&cluster, who, nodes)).collect();
        Self { cluster, members, spare: Arc::clone(spare), paused: [false; NODES] }
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.cluster.world()
    }

    // What writers append; at once, unless something holds it up.

    pub fn set(&self, partition: i32, key: &'static str, value: &str) {
        self.world().send(key, Some(encode(key, value, ttl::FOR_EVER)), partition);
    }

    pub fn delete(&self, partition: i32, key: &'static str) {
        self.world().send(key, Some(encode(key, "", ttl::DELETED)), partition);
    }

    pub fn set_expiring(&self, partition: i32, key: &'static str, value: &str, in_ms: i64) {
        let world = &mut *self.world();
        let expires = world.now + in_ms;
        world.send(key, Some(encode(key, value, expires)), partition);
    }

    /// Says in a partition that there may be attempts behind; the first thing in it, at offset 0.
    pub fn raise_level(&self, partition: i32) {
        self.world().send_level(partition);
    }

    pub fn attempt(&self, partition: i32, key: &'static str, expected: Expected, value: &str) {
        self.attempt_held_up(partition, key, expected, value, 0);
    }

    /// An attempt that may take effect for a minute, and arrives after so many ms.
    pub fn attempt_held_up(
        &self,
        partition: i32,
        key: &'static str,
        expected: Expected,
        value: &str,
        ms: i64,
    ) {
        let world = &mut *self.world();
        let until = LogTime::from_ms(world.now + MINUTE);
        let condition = Some(Condition::Attempt { expected, until, log: world.identity().tag() });
        let value = Some(encode_as(key, value, ttl::FOR_EVER, value));
        world.sent.push(Sent { due: world.now + ms, partition, key, value, condition, level: None });
        world.pass(0);
    }

    /// Another program's, which always deletes, and which the log forgets.
    pub fn write_tombstone(&self, partition: i32, key: &'static str) {
        self.world().send(key, None, partition);
    }

    /// A record that can't be decoded.
    pub fn write_nonsense(&self, partition: i32, key: &'static str) {
        self.world().send(key, Some(b"no record".to_vec()), partition);
    }

    /// A transaction's marker: an offset without a record.
    pub fn write_transaction_marker(&self, partition: usize) {
        self.world().log[partition].end += 1;
    }

    /// So many transaction markers that the log is worth a snapshot.
    pub fn make_long(&self, partition: usize) {
        self.world().log[partition].end += MANY_OFFSETS;
    }

    // What befalls the log.

    pub fn add_partition(&self) {
        self.world().grow();
    }

    pub fn replace_topic(&self) {
        self.world().replace_with(1, false);
    }

    /// A broker stops to follow: it has what a partition holds now.
    pub fn broker_lags(&self, partition: usize) {
        let world = &mut *self.world();
        world.lagging[partition] = (world.now, world.log[partition].clone());
    }

    /// The broker that lags becomes the partition's leader.
    pub fn truncate(&mut self, partition: usize) {
        assert!(self.world().truncate(partition), "no broker lags");
        // Until they have heard of it.
        self.members.iter_mut().for_each(|member| member.may_be_stale = true);
    }

    /// Kafka compacts what is old enough, and forgets tombstones that were old enough before.
    pub fn compact(&self, partition: usize) {
        let world = &mut *self.world();
        let end = world.compactable(partition);
        world.clean(partition, end, end);
    }

    /// Waits until all that is in the log may be compacted, and compacts it; only tombstones stay.
    pub fn compact_all(&mut self) -> Outcome {
        self.wait(LAG + MINUTE)?;
        let partitions = self.world().log.len();
        (0..partitions).for_each(|partition| self.compact(partition));
        Ok(())
    }

    /// Compacts twice, so long after each other that the tombstones are gone.
    pub fn compact_with_tombstones(&mut self) -> Outcome {
        self.compact_all()?;
        self.wait(TOMBSTONES + MINUTE)?;
        self.compact_all()
    }

    // What nodes do, and what befalls them.

    /// Starts a node, which reads nothing yet.
    pub fn start(&mut self, who: usize) -> Outcome {
        self.members[who].start()
    }

    pub fn stop(&mut self, who: usize) {
        self.members[who].crash();
    }

    /// A node that runs is not scheduled while time passes.
    pub fn pause(&mut self, who: usize) {
        self.paused[who] = true;
    }

    pub fn set_clock(&self, who: usize, skew: i64) {
        self.world().nodes[who].skew = skew;
    }

    pub fn cut_off(&self, who: usize) {
        self.world().nodes[who].cut_off = true;
    }

    /// Reads the whole log, after a start if need be; from then on the node holds each key's last write.
    pub fn read_all(&mut self, who: usize) -> Outcome {
        self.paused[who] = false;
        self.members[who].catch_up()
    }

    /// Opens the log if need be, and reads and applies what there is, in no time.
    pub fn apply(&mut self, who: usize) -> Outcome {
        self.members[who].step(Part::Applier)?;
        self.members[who].step(Part::Applier)
    }

    /// Starts a node, which reads so many records of each partition.
    pub fn apply_first_records(&mut self, who: usize, count: usize) -> Outcome {
        self.start(who)?;
        self.world().nodes[who].records_per_read = Some(count);
        self.apply(who)?;
        self.world().nodes[who].records_per_read = None;
        Ok(())
    }

    /// A node dies when it has read what there is, before it has applied it.
    pub fn crash_before_apply(&mut self, who: usize) -> Outcome {
        self.world().nodes[who].crash = Some(Crash::BeforeApply);
        for _ in 0..3 {
            self.members[who].step(Part::Applier)?;
        }
        assert!(!self.members[who].is_up(), "it read nothing");
        Ok(())
    }

    /// A node reads everything, and appends the trims and repairs that are due.
    pub fn trim(&mut self, who: usize) -> Outcome {
        self.trim_held_up(who, 0)
    }

    /// As [`History::trim`], but what the node appends arrives only after so many ms.
    pub fn trim_held_up(&mut self, who: usize, ms: i64) -> Outcome {
        self.read_all(who)?;
        (self.world().nodes[who].trims, self.world().nodes[who].held_up) = (true, Some(ms));
        let before = self.appended();
        self.members[who].step(Part::Upkeep)?;
        (self.world().nodes[who].trims, self.world().nodes[who].held_up) = (false, Some(0));
        assert!(self.appended() > before || self.world().mistake.is_some(), "nothing was due");
        Ok(())
    }

    fn appended(&self) -> u64 {
        let counts = self.world().counts;
        counts.trims + counts.repairs
    }

    /// A node appends what is due, if anything is.
    pub fn upkeep(&mut self, who: usize) -> Outcome {
        self.members[who].step(Part::Upkeep)
    }

    /// A node appends all repairs that are needed.
    pub fn repair(&mut self, who: usize) -> Outcome {
        self.members[who].append_repairs()?;
        self.world().nodes[who].trims = false;
        Ok(())
    }

    /// A node knows what it holds.
    pub fn doubts_nothing(&self, who: usize) -> Outcome {
        self.members[who].doubts_nothing()
    }

    /// A node that has never been there reads the log from its start.
    pub fn read_as_new_node(&self) -> Outcome {
        compare_new_node(&mut self.world(), &self.spare)
    }

    /// Lets time pass. What is on its way arrives; nodes that run read what there is now and then.
    pub fn wait(&mut self, ms: i64) -> Outcome {
        let end = self.world().now + ms;
        loop {
            let now = self.world().now;
            if now >= end {
                return Ok(());
            }
            self.world().pass((end - now).min(RETENTION / 20));
            for who in 0..NODES {
                if !self.paused[who] {
                    for part in [Part::Watermarks, Part::Applier, Part::Watermarks, Part::Applier] {
                        self.members[who].step(part)?;
                    }
                }
            }
        }
    }
}
