//! One run: what happens, in which order, is up to the seed.

use std::path::Path;
use std::sync::{Arc, MutexGuard};

use bitacora_node::store::Store;

use crate::cluster::Cluster;
use crate::member::{Member, Part};
use crate::note;
use crate::oracle::compare_new_node;
use crate::outcomes::{Watches, each_took_effect_once};
use crate::promise::{Outcome, Violation};
use crate::world::{Crash, DELAY, HOUR, KEYS, LAG, MINUTE, RETENTION, SECOND, SKEW, TOMBSTONES, World};

/// Of a run.
const STEPS: u64 = 400;
pub const NODES: usize = 3;

/// What happens to the cluster and its nodes, besides what is everyday.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Accident {
    Replaced,
    Truncated,
    StartMoved,
    CutOff,
    ClockSet,
    DiskCopied,
    DiskRestored,
    Lag,
}

pub struct Simulation {
    pub cluster: Arc<Cluster>,
    members: Vec<Member>,
    /// For a node that joins at any time and has nothing.
    spare: Arc<Store>,
    /// When the pending repairs were last paid.
    repaired: i64,
    /// When somebody last trimmed for sure.
    trimmed: i64,
    /// One step in so many is compaction or hours that pass, besides those in a hundred that are so anyway.
    pace: u64,
    /// Whether topics, clusters and disks fail in this run, too.
    rough: bool,
    /// Attempts that are waited for.
    watches: Watches,
}

impl Drop for Simulation {
    /// The nodes know the cluster, and it knows them.
    fn drop(&mut self) {
        for member in &mut self.members {
            member.crash();
        }
    }
}

impl Simulation {
    /// `dir` is empty; `spare` is for one run at a time.
    pub fn new(seed: u64, dir: &Path, spare: &Arc<Store>, traced: bool) -> Self {
        // One more, for a node that joins in the end.
        let mut world = World::seeded(seed, NODES + 1, traced);
        let pace = [3, 10, u64::MAX][world.random.index(3)];
        let rough = world.random.one_in(2);
        let now = world.now;
        let cluster = Cluster::new(world);
        let members = (0..=NODES).map(|who| Member::new(&cluster, who, dir)).collect();
        let (spare, watches) = (Arc::clone(spare), Watches::default());
        Self { cluster, members, spare, repaired: now, trimmed: now, pace, rough, watches }
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.cluster.world()
    }

    fn one_in(&self, n: u64) -> bool {
        self.world().random.one_in(n)
    }

    fn between(&self, low: i64, high: i64) -> i64 {
        self.world().random.between(low, high)
    }

    pub fn run(&mut self) -> Outcome {
        for who in 0..NODES {
            self.members[who].start()?;
        }
        self.elect();
        for _ in 0..STEPS {
            self.world().counts.steps += 1;
            self.step()?;
            self.look()?;
        }
        self.end()?;
        each_took_effect_once(&self.world())
    }

    /// A client asks a node to write under a condition.
    fn attempt(&mut self, who: usize) -> Outcome {
        let key = {
            let world = &mut *self.world();
            KEYS[world.random.index(world.keys)]
        };
        if let Some(request) = self.members[who].accept(key)? {
            self.watches.begin(&self.members, request.clone());
            self.world().send_attempt(&request);
        }
        Ok(())
    }

    /// What became of attempts. Who finds that his own was void appends the repair at once, or dies before.
    fn look(&mut self) -> Outcome {
        for who in self.watches.look(&self.members)? {
            if self.one_in(4) {
                self.crash(who);
            } else {
                let trims = std::mem::replace(&mut self.world().nodes[who].trims, true);
                self.members[who].step(Part::Upkeep)?;
                self.world().nodes[who].trims = trims;
            }
        }
        Ok(())
    }

    fn step(&mut self) -> Outcome {
        let passes = self.between(0, 3 * SECOND);
        self.advance(passes)?;
        let who = self.world().random.index(NODES);
        let kind = if self.one_in(self.pace) { self.between(86, 99) } else { self.between(0, 99) };
        match kind {
            0..16 => self.world().write(),
            16..26 => self.attempt(who)?,
            26..31 => self.world().foreign(),
            31..50 => self.go_on(who)?,
            50..58 => self.read_on(who)?,
            58..61 => self.crash(who),
            61..66 => self.members[who].start()?,
            66 => self.overtake(who)?,
            67..71 => self.upkeep(who)?,
            // Two at once.
            71..74 => {
                let other = (who + 1) % NODES;
                for who in [who, other] {
                    self.world().nodes[who].trims = true;
                    self.read_on(who)?;
                }
                for who in [who, other] {
                    self.upkeep(who)?;
                }
                self.elect();
            }
            74..77 => self.elect(),
            77..79 => self.world().lag(),
            79..86 if self.rough => self.accident(who)?,
            79..86 => self.go_on(who)?,
            86..91 => {
                self.world().compact();
                compare_new_node(&mut self.world(), &self.spare)?;
            }
            91 => {
                // The brokers' clocks agree no better than others.
                if self.one_in(3) {
                    self.world().grow();
                }
            }
            92..96 => {
                let minutes = self.between(1, 20);
                self.advance(minutes * MINUTE)?;
            }
            96..99 => {
                let hours = self.between(1, 6);
                self.advance(hours * HOUR)?;
                self.read_on(who)?;
                self.upkeep(who)?;
                let partitions = self.world().log.len();
                for _ in 0..partitions {
                    self.world().compact();
                }
            }
            _ => {
                if self.one_in(3) {
                    let hours = self.between(9, 40);
                    self.advance(hours * HOUR)?;
                }
            }
        }
        Ok(())
    }

    /// A node does a little.
    fn go_on(&mut self, who: usize) -> Outcome {
        for _ in 0..3 {
            let part = [Part::Applier, Part::Applier, Part::Watermarks][self.world().random.index(3)];
            self.members[who].step(part)?;
        }
        Ok(())
    }

    /// A node reads everything, if it may; a store that is being built may take long.
    fn read_on(&mut self, who: usize) -> Outcome {
        let cut_off = self.world().nodes[who].cut_off;
        if !self.members[who].is_up() || cut_off || !self.members[who].is_current() && self.one_in(4) {
            return self.go_on(who);
        }
        self.members[who].catch_up()
    }

    fn upkeep(&mut self, who: usize) -> Outcome {
        self.members[who].step(Part::Watermarks)?;
        self.members[who].step(Part::Applier)?;
        self.members[who].step(Part::Upkeep)
    }

    /// Mostly one, but ZooKeeper's word may come late.
    fn elect(&mut self) {
        let world = &mut *self.world();
        let chosen = world.random.index(NODES);
        for (who, node) in world.nodes.iter_mut().enumerate() {
            node.trims = who == chosen;
        }
        if world.random.one_in(4) {
            let other = world.random.index(NODES);
            world.nodes[other].trims ^= true;
        }
    }

    fn crash(&mut self, who: usize) {
        // At once, or in the middle of what it does next.
        if self.one_in(2) {
            let calls = self.world().random.below(6);
            self.world().nodes[who].crash = Some(Crash::AfterCalls(calls));
            return;
        }
        if !self.members[who].is_up() {
            return;
        }
        self.members[who].crash();
        if self.one_in(6) {
            self.members[who].lose_disk();
            self.world().counts.disks += 1;
        }
        // Some node is always at hand.
        let now = self.world().now;
        if self.one_in(4) && self.members.iter().all(|member| member.away <= now) {
            let hours = self.between(1, 40);
            self.members[who].away = now + hours * HOUR;
            note!(self.world(), "replica {who} is away for {hours} hours");
        }
    }

    fn accident(&mut self, who: usize) -> Outcome {
        let accident = match self.between(0, 19) {
            0 => Accident::Replaced,
            1..5 => Accident::Truncated,
            5..8 => Accident::StartMoved,
            8..11 => Accident::CutOff,
            11..14 => Accident::ClockSet,
            14..16 => Accident::DiskCopied,
            16..18 => Accident::DiskRestored,
            _ => Accident::Lag,
        };
        match accident {
            Accident::Replaced => self.world().replace(),
            Accident::Truncated => {
                if self.world().truncate_randomly() {
                    self.members.iter_mut().for_each(|member| member.may_be_stale = true);
                }
            }
            Accident::StartMoved => self.world().move_start(),
            Accident::CutOff => {
                let world = &mut *self.world();
                world.nodes[who].cut_off ^= true;
                world.counts.cuts += u64::from(world.nodes[who].cut_off);
                let cut_off = world.nodes[who].cut_off;
                note!(world, "replica {who} is cut off: {cut_off}");
            }
            Accident::ClockSet => {
                let skew = match self.between(0, 3) {
                    0 => self.between(-40 * HOUR, 40 * HOUR),
                    1 => self.between(-2 * HOUR, 2 * HOUR),
                    _ => self.between(-SKEW, SKEW),
                };
                self.world().nodes[who].skew = skew;
                self.world().counts.clocks += 1;
                note!(self.world(), "the clock of replica {who} is off by {} min", skew / MINUTE);
                self.members[who].may_be_stale |= skew.abs() > SKEW;
            }
            Accident::DiskCopied => {
                self.members[who].crash();
                self.members[who].copy_disk();
                self.members[who].start()?;
            }
            Accident::DiskRestored => {
                self.members[who].crash();
                self.members[who].restore_disk();
                self.members[who].start()?;
            }
            Accident::Lag => self.world().lag(),
        }
        Ok(())
    }

    /// Lets time pass. The assumptions: somebody pays the pending repairs within the time that compaction leaves, and trims what is
    /// left in other partitions while the tombstone that hides it is there.
    fn advance(&mut self, ms: i64) -> Outcome {
        let end = self.world().now + ms;
        // Mostly the same, so that the others may be behind for long.
        let somebody = if self.one_in(10) { self.world().random.index(NODES) } else { 0 };
        // Others do nothing meanwhile, as if they were frozen.
        let runs: Vec<bool> = (0..NODES).map(|_| self.one_in(2)).collect();
        loop {
            let now = self.world().now;
            if now >= end {
                return Ok(());
            }
            // What was held up may make pending repairs at any time.
            let next = self.world().next_conditional();
            let next = next.map(|due| due + self.between(0, LAG / 4));
            let until = next.map_or(end, |next| next.clamp(now + 1, end)).min(now + TOMBSTONES / 4);
            if until - self.trimmed > TOMBSTONES / 4 {
                let trimmer = self.started(somebody)?;
                self.world().nodes[trimmer].trims = true;
                // The first round may come too late by the log's clock, which nobody has heard for long, and tells it.
                for _ in 0..2 {
                    self.members[trimmer].catch_up()?;
                    self.members[trimmer].step(Part::Upkeep)?;
                    self.world().pass(RETENTION / 80);
                }
                let now = self.world().now;
                self.trimmed = now;
                self.elect();
            }
            if until - self.repaired > LAG / 4 {
                self.world().pass(DELAY);
                self.pay(somebody)?;
                let now = self.world().now;
                self.repaired = now;
                self.elect();
            }
            let now = self.world().now;
            self.world().pass((until - now).max(0));
            if ms > 10 * SECOND {
                for who in (0..NODES).filter(|who| runs[*who]) {
                    self.upkeep(who)?;
                }
            }
        }
    }

    /// Somebody appends the repairs that are needed: that node, or others where it doubts what it holds. What they all doubt, somebody
    /// writes anew: the assumption is that this does not happen.
    fn pay(&mut self, somebody: usize) -> Outcome {
        let payer = self.started(somebody)?;
        self.members[payer].append_repairs()?;
        for who in 0..NODES {
            if self.world().has_pending() && self.members[who].is_up() {
                self.started(who)?;
                self.members[who].append_repairs()?;
            }
        }
        self.world().write_pending();
        Ok(())
    }

    /// That node or, if it is away, the next; nothing is wrong with it.
    fn started(&mut self, mut who: usize) -> Result<usize, Violation> {
        self.members[who].start()?;
        if !self.members[who].is_up() {
            who = (who + 1) % NODES;
            self.members[who].start()?;
        }
        let world = &mut *self.world();
        if world.nodes[who].skew.abs() > SKEW {
            world.nodes[who].skew = 0;
        }
        // Whatever was to befall it.
        world.nodes[who].crash = None;
        Ok(who)
    }

    /// Compaction overtakes a node that builds its store, with nonsense behind what it has read.
    fn overtake(&mut self, who: usize) -> Outcome {
        self.members[who].crash();
        let away = self.members[who].away > self.world().now;
        if away || (0..NODES).all(|other| other == who || self.members[other].away > self.world().now) {
            return Ok(());
        }
        self.members[who].lose_disk();
        self.members[who].start()?;
        for part in [Part::Applier, Part::Applier, Part::Applier] {
            self.members[who].step(part)?;
        }
        self.world().poison_oldest();
        self.advance(2 * LAG)?;
        self.world().compact_all();
        if self.members[who].is_up() {
            self.members[who].catch_up()?;
        }
        Ok(())
    }

    /// Everybody reads everything; then all that may be trimmed is, everything is compacted, and a new node joins.
    fn end(&mut self) -> Outcome {
        self.world().pass(DELAY);
        for who in 0..NODES {
            self.members[who].away = 0;
            self.started(who)?;
            self.members[who].catch_up()?;
        }
        self.pay(0)?;
        for _ in 0..6 {
            for who in 0..NODES {
                // Whatever was to befall it.
                self.started(who)?;
                self.world().nodes[who].trims = true;
                self.members[who].catch_up()?;
                self.members[who].step(Part::Upkeep)?;
            }
            self.world().pass(DELAY);
            self.pay(0)?;
            self.world().compact_all();
            for who in 0..NODES {
                self.started(who)?;
                self.members[who].catch_up()?;
            }
            self.advance(RETENTION / 2)?;
        }
        note!(self.world(), "a new node joins");
        self.members[NODES].start()?;
        self.members[NODES].catch_up()?;
        // By now they are long over; nodes learn the time from what is written, and look now and then.
        for _ in 0..3 {
            self.world().send_level(0);
            self.world().pass(MINUTE);
            for who in 0..=NODES {
                self.members[who].catch_up()?;
            }
        }
        self.members.iter().try_for_each(Member::doubts_nothing)
    }
}
