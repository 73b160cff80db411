//! A node: the real parts, in a world that is not.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bitacora_node::clock::{Clock, LogTime, Moment, WallTime};
use bitacora_node::cluster::{Membership, MembershipState};
use bitacora_node::log::{
    AppendError, Appended, Batch, Condition, ConditionalRecord, Log, LogIdentity, LogInfo, LogReader, LogTag,
    OpenError, ReadError,
};
use bitacora_node::metrics::Metrics;
use bitacora_node::replication::progress::Progress;
use bitacora_node::replication::snapshot::{Fits, Report, SnapshotSource};
use bitacora_node::replication::{self, Applier, Watermarks};
use bitacora_node::service::memory::Memory;
use bitacora_node::service::peers::{PeerAnswer, PeerRecord, Peers};
use bitacora_node::service::reads::{Answer, Found, GetError, PeerReads, Reads};
use bitacora_node::store::{Checkpoint, Entry, Incoming, NeededRepair, Store};
use bitacora_node::trimming::{self, Upkeep};
use bitacora_protocol::{HighWatermark, NextOffset, Position};
use futures_util::future::{BoxFuture, FutureExt as _, ready};

use crate::note;
use crate::world::{Bug, DELAY, Floor, KEYS, LONG, Partition, RETENTION, World, Write, read};

/// Everything that is shared: the world, and what the nodes show each other.
pub struct Cluster {
    world: Mutex<World>,
    peers: Mutex<Vec<Option<Peer>>>,
}

/// A node that runs, as others see it.
#[derive(Clone)]
pub struct Peer {
    pub store: Arc<Store>,
    pub progress: Arc<Progress>,
    pub reads: Arc<Reads>,
}

impl Cluster {
    pub fn new(world: World) -> Arc<Self> {
        let peers = Mutex::new(vec![None; world.nodes.len()]);
        Arc::new(Self { world: Mutex::new(world), peers })
    }

    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn peer(&self, who: usize) -> Option<Peer> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)[who].clone()
    }

    fn set_peer(&self, who: usize, peer: Option<Peer>) {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)[who] = peer;
    }

    pub fn others(&self, who: usize) -> Vec<(usize, Peer)> {
        let peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        peers
            .iter()
            .cloned()
            .enumerate()
            .filter(|(of, _)| *of != who)
            .filter_map(|(of, p)| Some((of, p?)))
            .collect()
    }
}

/// What a node unwinds with when it dies in the middle of something.
struct Crash;

/// One node's way to all of this.
#[derive(Clone)]
struct Seat {
    cluster: Arc<Cluster>,
    who: usize,
}

impl Seat {
    fn world(&self) -> MutexGuard<'_, World> {
        self.cluster.world()
    }

    /// As [`Seat::world`], where the node might die.
    fn call(&self) -> MutexGuard<'_, World> {
        let mut world = self.world();
        if let Some(left) = &mut world.nodes[self.who].crash_in {
            if *left == 0 {
                drop(world);
                // Not a panic: nobody need hear of it.
                resume_unwind(Box::new(Crash));
            }
            *left -= 1;
        }
        world
    }
}

impl Clock for Seat {
    fn now(&self) -> Moment {
        Moment(Duration::from_millis(self.world().now.unsigned_abs()))
    }

    fn wall(&self) -> WallTime {
        let world = self.world();
        WallTime::from_ms(world.now + world.nodes[self.who].skew)
    }
}

impl Membership for Seat {
    fn members(&self) -> Arc<[String]> {
        Arc::default()
    }

    fn state(&self) -> MembershipState {
        MembershipState::Connected
    }

    fn registered(&self) -> bool {
        true
    }

    fn sessions(&self) -> u64 {
        1
    }

    fn announce(&self) {}

    fn trims(&self) -> bool {
        self.world().nodes[self.who].trims
    }

    fn leave(&self) -> BoxFuture<'_, ()> {
        ready(()).boxed()
    }
}

struct SimulatedLog {
    seat: Seat,
    /// That the node has learnt of, and of which topic.
    partitions: AtomicUsize,
    opened: Mutex<Option<LogIdentity>>,
}

fn unavailable() -> ReadError {
    ReadError::Unavailable("nobody answers".to_owned())
}

impl Log for SimulatedLog {
    fn topic(&self) -> &'static str {
        "t"
    }

    fn open(&self) -> Result<LogInfo, OpenError> {
        let world = &mut *self.seat.call();
        if world.nodes[self.seat.who].cut_off {
            return Err(OpenError::Unavailable("nobody answers".to_owned()));
        }
        let mut known = world.log.len();
        // The broker that answers may not have heard of new ones.
        let of_late = world.now - world.grown < crate::world::MINUTE;
        if of_late && known > 1 && !world.nodes[self.seat.who].whole && world.random.one_in(3) {
            known -= 1;
        }
        let identity = Some(world.identity());
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if *opened == identity && known < self.partitions.load(Ordering::Relaxed) {
            return Err(OpenError::Unavailable("a broker knows fewer partitions".to_owned()));
        }
        *opened = identity;
        self.partitions.store(known, Ordering::Relaxed);
        let partitions = world.log[..known].iter().map(|log| log.start..log.end).collect();
        Ok(LogInfo { identity: world.identity(), partitions })
    }

    fn append(&self, _: &str, _: Vec<u8>) -> BoxFuture<'static, Result<Appended, AppendError>> {
        unreachable!("writers have their own way")
    }

    fn append_conditional(
        &self,
        tidy: ConditionalRecord,
    ) -> BoxFuture<'static, Result<Appended, AppendError>> {
        let world = &mut *self.seat.call();
        let (who, whole) = (self.seat.who, world.nodes[self.seat.who].whole);
        match tidy.condition {
            Condition::Repair { .. } => world.counts.repairs += 1,
            _ => world.counts.trims += 1,
        }
        let unknown = ready(Err(AppendError::Unknown("nobody acknowledged it".to_owned()))).boxed();
        let needed_repair = || {
            let store = self.seat.cluster.peer(who).expect("it runs").store;
            let (_, needed) = store.needed_repairs(usize::MAX).expect("readable");
            let of_this = |needed: &NeededRepair| {
                needed.key == tidy.key && needed.pending.position.partition == tidy.partition
            };
            needed.into_iter().find(of_this)
        };
        match world.bug {
            Bug::NoRepairs if needed_repair().is_some() => return unknown,
            Bug::HollowDebts if needed_repair().is_some_and(|needed| needed.entry.is_none()) => {
                return unknown;
            }
            _ => {}
        }
        let delay = match world.random.below(20) {
            _ if whole => 0,
            // Never there.
            0 => return unknown,
            1..11 => 0,
            11..19 => world.random.between(0, DELAY),
            _ => world.random.between(0, LONG),
        };
        note!(world, "replica {who} sends {tidy:?} in {delay} ms");
        // And somebody else, whom something holds up.
        if world.random.one_in(8) {
            let delay = world.random.between(0, LONG);
            world.send_tidy(tidy.clone(), delay);
        }
        let partition = tidy.partition;
        world.send_tidy(tidy, delay);
        if delay > 0 {
            return unknown;
        }
        let position = Position { partition, offset: 0 };
        ready(Ok(Appended { position, timestamp: LogTime::from_ms(world.now) })).boxed()
    }

    fn check_trimming(&self) -> Result<(), String> {
        Ok(())
    }

    fn reader(&self, from: &[NextOffset], epochs: &[Option<i32>]) -> Result<Box<dyn LogReader>, ReadError> {
        drop(self.seat.call());
        let epochs = epochs.iter().copied().chain(std::iter::repeat(None));
        let next = from.iter().map(|next| next.0).zip(epochs).collect();
        Ok(Box::new(Reader { seat: self.seat.clone(), next }))
    }

    fn high_watermarks(&self) -> Result<Vec<HighWatermark>, ReadError> {
        let world = &mut *self.seat.call();
        let known = self.partitions.load(Ordering::Relaxed);
        let node = &mut world.nodes[self.seat.who];
        if std::mem::take(&mut node.silent.0) || node.cut_off || world.log.len() < known {
            return Err(unavailable());
        }
        // The question takes a while, and so does the answer.
        let slow = !node.whole && world.random.one_in(4);
        let wait = |world: &mut World| {
            if slow {
                let ms = world.random.between(0, 600);
                world.pass(ms);
            }
        };
        wait(world);
        let ends = world.log[..known].iter().map(|log| HighWatermark(log.end)).collect();
        wait(world);
        Ok(ends)
    }

    fn is_still(&self, identity: &LogIdentity, partitions: usize) -> bool {
        let world = self.seat.call();
        // As far as can be told.
        world.nodes[self.seat.who].cut_off
            || world.bug == Bug::AnotherTopicUnnoticed
            || world.identity() == *identity && world.log.len() <= partitions
    }

    fn first_after(&self, times: &[Option<LogTime>]) -> Result<Vec<Option<i64>>, ReadError> {
        let world = self.seat.call();
        if world.nodes[self.seat.who].cut_off || world.log.len() < times.len() {
            return Err(unavailable());
        }
        if world.bug == Bug::GoneBackUnnoticed {
            return Ok(vec![None; times.len()]);
        }
        let first = |(log, time): (&Partition, &Option<LogTime>)| {
            let time = (*time)?.ms();
            log.records.iter().find(|record| record.timestamp > time).map(|record| record.offset)
        };
        Ok(world.log.iter().zip(times).map(first).collect())
    }

    fn delete_grace(&self) -> Option<Duration> {
        let grace = Duration::from_millis(RETENTION.unsigned_abs());
        Some(grace).filter(|_| self.seat.world().bug != Bug::NoResync)
    }

    fn flush(&self, _: Duration) {}
}

struct Reader {
    seat: Seat,
    /// Per partition, and the epoch of the record before.
    next: Vec<(i64, Option<i32>)>,
}

impl LogReader for Reader {
    fn poll(&mut self, _: Duration, batch: &mut Batch) -> Result<(), ReadError> {
        let world = &mut *self.seat.call();
        let (who, bug) = (self.seat.who, world.bug);
        let node = &mut world.nodes[who];
        let whole = node.whole;
        if std::mem::take(&mut node.silent.1) {
            return Err(unavailable());
        }
        if node.cut_off {
            return Ok(());
        }
        for (partition, (next, epoch)) in (0..).zip(&mut self.next) {
            if !whole && world.random.one_in(3) {
                continue;
            }
            let inside = |log: &&Partition| (log.start..=log.end).contains(next) && log.has(*next, *epoch);
            let Some(log) = world.log.get(partition as usize).filter(inside) else {
                return Err(ReadError::OutOfRange { partition });
            };
            let from = log.records.partition_point(|record| record.offset < *next);
            let count = if whole { usize::MAX } else { 1 + world.random.index(10) };
            for record in log.records[from..].iter().take(count) {
                batch.push(read(bug, partition, record));
                batch.appended_at(LogTime::from_ms(record.timestamp));
                (*next, *epoch) = (record.offset + 1, Some(record.epoch));
            }
            if log.records.len() - from <= count {
                batch.reached(partition, NextOffset(log.end));
                if *next < log.end {
                    (*next, *epoch) = (log.end, None);
                }
            }
        }
        let ends = world.log.iter().map(|log| log.end);
        let all = self.next.iter().map(|(next, _)| *next).eq(ends);
        let store = || self.seat.cluster.peer(who).map(|peer| peer.store);
        match bug {
            Bug::PositionsBeforeRecords if world.random.one_in(10) => {
                if let Some(store) = store() {
                    store.apply_read(&mut Vec::new(), batch.read()).expect("writable");
                }
                world.nodes[who].crash_in = Some(0);
            }
            Bug::DoubtsIgnored if all => {
                if let Some(store) = store().filter(|store| !store.is_building()) {
                    store.note_caught_up(WallTime::from_ms(world.now)).expect("writable");
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn applied(&mut self, _: &[NextOffset]) {
        if self.seat.world().bug == Bug::PositionsBeforeRecords {
            drop(self.seat.call());
        }
    }
}

impl SnapshotSource for Seat {
    fn fetch(
        &self,
        identity: &LogIdentity,
        store: &Store,
        fits: Fits<'_>,
        _: Report<'_>,
    ) -> Option<(Incoming, Checkpoint)> {
        let any = self.call().bug == Bug::AnyCopyWillDo;
        for (of, peer) in self.cluster.others(self.who) {
            if self.call().random.one_in(4) {
                // It is away, or gone before the end.
                continue;
            }
            let complete = peer.progress.restored() && !peer.store.is_building();
            let copy = peer.store.copy().expect("readable");
            if !any
                && (!complete || copy.checkpoint.identity.as_ref().is_none_or(|other| !other.fits(identity)))
            {
                continue;
            }
            let mut incoming = store.incoming().expect("a folder");
            let file = std::fs::File::create_new(incoming.file()).expect("a file");
            copy.write_to(file).expect("copied");
            let Ok(checkpoint) = incoming.open(&AtomicBool::new(false)) else {
                continue;
            };
            match fits(&checkpoint) {
                Ok(()) => {}
                Err(_) if any => {}
                Err(why) => {
                    note!(self.world(), "replica {} takes no copy from {of}: {why}", self.who);
                    continue;
                }
            }
            let mut world = self.call();
            world.nodes[self.who].copied = Some(world.nodes[of].floor.clone());
            world.counts.snapshots += 1;
            note!(world, "replica {} takes the store of {of}", self.who);
            return Some((incoming, checkpoint));
        }
        None
    }
}

/// The parts of a node that runs.
struct Running {
    store: Arc<Store>,
    progress: Arc<Progress>,
    reads: Arc<Reads>,
    applier: Applier,
    watermarks: Watermarks,
    upkeep: Upkeep,
}

/// Which part goes on.
#[derive(Clone, Copy, Debug)]
pub enum Part {
    Applier,
    Watermarks,
    Upkeep,
}

/// What a node was last seen with.
#[derive(Default)]
struct Seen {
    checkpoint: Checkpoint,
    resyncs: u64,
    beside: bool,
    figures: [u64; 3],
}

pub struct Member {
    pub who: usize,
    dir: PathBuf,
    seat: Seat,
    /// Of all its lives.
    metrics: Arc<Metrics>,
    running: Option<Running>,
    /// Until when it can't be started.
    pub away: i64,
    seen: Seen,
    /// The floor of the copy of its disk, if there is one.
    copied: Option<Floor>,
    /// It may not know better until it has read the log to its end: its clock was set wrong, or the log went back and it has not
    /// heard of that.
    pub doubted: bool,
}

pub type Outcome = Result<(), String>;

fn failed(error: impl std::fmt::Display) -> String {
    error.to_string()
}

impl Member {
    pub fn new(cluster: &Arc<Cluster>, who: usize, dir: &Path) -> Self {
        let seat = Seat { cluster: Arc::clone(cluster), who };
        let dir = dir.join(who.to_string());
        let metrics = Arc::new(Metrics::new().expect("names differ"));
        let (away, seen, copied) = Default::default();
        Self { who, dir, seat, metrics, running: None, away, seen, copied, doubted: false }
    }

    pub fn is_up(&self) -> bool {
        self.running.is_some()
    }

    pub fn start(&mut self) -> Outcome {
        let now = self.seat.world().now;
        if self.running.is_some() || self.away > now {
            return Ok(());
        }
        note!(self.seat.world(), "replica {} starts", self.who);
        let store = Arc::new(Store::open(&self.dir, 1 << 20).map_err(failed)?);
        let progress = Arc::new(Progress::new(Arc::new(self.seat.clone())));
        let metrics = Arc::clone(&self.metrics);
        let log: Arc<dyn Log> = Arc::new(SimulatedLog {
            seat: self.seat.clone(),
            partitions: AtomicUsize::new(0),
            opened: Mutex::default(),
        });
        let membership: Arc<dyn Membership> = Arc::new(self.seat.clone());
        let peers = Peers::new(
            Arc::clone(&membership),
            Arc::clone(&progress),
            String::new(),
            Duration::ZERO,
            0,
            Memory::unlimited(),
            Arc::clone(&metrics),
        );
        let reads = Arc::new(Reads::new(
            Arc::clone(&store),
            Arc::clone(&progress),
            peers.map_err(failed)?,
            PeerReads::Auto,
        ));
        let retention = Duration::from_millis(RETENTION.unsigned_abs());
        let (applier, watermarks) = replication::halves(replication::Parts {
            log: Arc::clone(&log),
            store: Arc::clone(&store),
            progress: Arc::clone(&progress),
            metrics: Arc::clone(&metrics),
            delete_retention: retention,
            snapshots: Some(Arc::new(self.seat.clone())),
        })
        .map_err(failed)?;
        let upkeep = Upkeep::new(trimming::Parts {
            log,
            membership,
            store: Arc::clone(&store),
            progress: Arc::clone(&progress),
            metrics,
            retention,
        });
        let peer =
            Peer { store: Arc::clone(&store), progress: Arc::clone(&progress), reads: Arc::clone(&reads) };
        self.seat.cluster.set_peer(self.who, Some(peer));
        self.running = Some(Running { store, progress, reads, applier, watermarks, upkeep });
        self.observe()
    }

    /// Dies at once, as if killed.
    pub fn crash(&mut self) {
        if self.running.take().is_some() {
            self.seat.cluster.set_peer(self.who, None);
            let mut world = self.seat.world();
            world.counts.crashes += 1;
            (world.nodes[self.who].crash_in, world.nodes[self.who].copied) = (None, None);
            note!(world, "replica {} crashes", self.who);
        }
    }

    /// While it is down, its disk is lost.
    pub fn lose_disk(&mut self) {
        assert!(!self.is_up());
        let _ = std::fs::remove_dir_all(&self.dir);
        self.forget();
        note!(self.seat.world(), "replica {} loses its disk", self.who);
    }

    fn forget(&mut self) {
        self.seen.checkpoint = Checkpoint::default();
        self.seat.world().nodes[self.who].floor.clear();
    }

    fn copy_dir(&self) -> PathBuf {
        self.dir.with_extension("copy")
    }

    /// While it is down, somebody copies its disk.
    pub fn copy_disk(&mut self) {
        assert!(!self.is_up());
        if !self.dir.exists() {
            return;
        }
        let _ = std::fs::remove_dir_all(self.copy_dir());
        copy_all(&self.dir, &self.copy_dir()).expect("copied");
        self.copied = Some(self.seat.world().nodes[self.who].floor.clone());
        note!(self.seat.world(), "the disk of replica {} is copied", self.who);
    }

    /// While it is down, its disk is replaced by that copy, if there is one.
    pub fn restore_disk(&mut self) {
        assert!(!self.is_up());
        if let Some(floor) = self.copied.clone() {
            let _ = std::fs::remove_dir_all(&self.dir);
            copy_all(&self.copy_dir(), &self.dir).expect("copied");
            self.forget();
            let mut world = self.seat.world();
            world.nodes[self.who].floor = floor;
            world.counts.backups += 1;
            note!(world, "the disk of replica {} is what it was when it was copied", self.who);
        }
    }

    pub fn step(&mut self, part: Part) -> Outcome {
        let Some(running) = &mut self.running else { return Ok(()) };
        let bug = self.seat.world().bug;
        let keeps = (bug == Bug::ResyncKeepsOldKeys).then(|| entries(&running.store));
        let outcome = catch_unwind(AssertUnwindSafe(|| match part {
            Part::Applier => drop(running.applier.step()),
            Part::Watermarks => drop(running.watermarks.step()),
            Part::Upkeep => running.upkeep.step(),
        }));
        if let Err(payload) = outcome {
            if !payload.is::<Crash>() {
                resume_unwind(payload);
            }
            self.crash();
            return Ok(());
        }
        if let Some(entries) = keeps
            && self.metrics.resyncs.get() > self.seen.resyncs
        {
            let mut changes: Vec<_> =
                entries.iter().map(|(key, entry)| (key.as_bytes(), entry.clone().into())).collect();
            running.store.apply(&mut changes, &[]).map_err(failed)?;
        }
        if bug == Bug::StrandedForgotten && matches!(part, Part::Upkeep) && running.progress.caught_up() {
            let mut world = self.seat.world();
            let now = world.now;
            for (key, entry) in entries(&running.store) {
                if entry.has_record()
                    && entry.state(WallTime::from_ms(now - RETENTION)) != bitacora_node::store::State::Live
                {
                    let Position { partition, offset } = entry.position();
                    let (key, condition) = (
                        key.as_bytes().to_vec(),
                        Condition::Trim { offset, until: LogTime::MAX, log: world.identity().tag() },
                    );
                    world.send_tidy(ConditionalRecord { partition, key, value: None, condition }, 0);
                }
            }
        }
        self.observe()
    }

    /// Whether it has read everything and knows it.
    pub fn is_current(&self) -> bool {
        let Some(running) = &self.running else { return false };
        let Ok(checkpoint) = running.store.copy().map(|copy| copy.checkpoint) else { return false };
        let all = self.seat.world().is_read_by(&checkpoint);
        all && running.progress.restored() && running.progress.caught_up() && !running.store.is_building()
    }

    /// Reads all there is, whatever was in its way.
    pub fn catch_up(&mut self) -> Outcome {
        {
            let mut world = self.seat.world();
            let node = &mut world.nodes[self.who];
            (node.crash_in, node.cut_off, node.whole) = (None, false, true);
            // After as long, it looks whether the log is the same.
            world.pass(2_100);
        }
        for _ in 0..60 {
            // With some of the mistakes it dies whatever is done for it.
            self.start()?;
            self.step(Part::Watermarks)?;
            self.step(Part::Applier)?;
            if self.is_current() {
                break;
            }
        }
        self.seat.world().nodes[self.who].whole = false;
        if self.is_current() {
            self.doubted = false;
            return self.compare();
        }
        let Some(running) = &self.running else { return Err("it should run".to_owned()) };
        let progress = &running.progress;
        Err(format!(
            "replica {} does not catch up: {:?}, {:?}, {:?}",
            self.who,
            progress.phase(),
            progress.restore(),
            progress.partitions()
        ))
    }

    /// Pays what is owed, with all the time that it takes.
    pub fn pay_debts(&mut self) -> Outcome {
        for round in 0..100 {
            self.catch_up()?;
            let Some(running) = &self.running else { return Err("it should run".to_owned()) };
            let bug = self.seat.world().bug;
            let (_, mut needed) = running.store.needed_repairs(usize::MAX).map_err(failed)?;
            match bug {
                Bug::NoRepairs => needed.clear(),
                Bug::HollowDebts => needed.retain(|needed| needed.entry.is_some()),
                _ => {}
            }
            if needed.is_empty() {
                return Ok(());
            }
            {
                let mut world = self.seat.world();
                let node = &mut world.nodes[self.who];
                // In the end nothing is in its way.
                (node.trims, node.whole) = (true, round >= 3);
            }
            self.step(Part::Upkeep)?;
            let mut world = self.seat.world();
            world.nodes[self.who].whole = false;
            world.pass(if round < 3 { DELAY } else { 0 });
        }
        Err("the pending_repairs don't end".to_owned())
    }

    /// Looks at what the node shows after a step.
    fn observe(&mut self) -> Outcome {
        let Some(running) = &self.running else { return Ok(()) };
        let (Running { store, progress, .. }, metrics) = (running, &self.metrics);
        let checkpoint = store.copy().map_err(failed)?.checkpoint;
        let resyncs = metrics.resyncs.get();
        {
            let mut world = self.seat.world();
            let counts = &mut world.counts;
            counts.resyncs += resyncs - self.seen.resyncs;
            counts.beside += u64::from(store.is_building() && !self.seen.beside);
            let figures =
                [metrics.records_trimmed.get(), metrics.records_void.get(), metrics.keys_swept.get()];
            for (count, (new, old)) in [&mut counts.trimmed, &mut counts.void, &mut counts.swept]
                .into_iter()
                .zip(figures.into_iter().zip(self.seen.figures))
            {
                *count += new - old;
            }
            self.seen.figures = figures;
        }
        let before = &self.seen.checkpoint;
        let back = before.identity == checkpoint.identity
            && before.next.iter().zip(&checkpoint.next).any(|(before, after)| after < before);
        if resyncs > self.seen.resyncs {
            let mut world = self.seat.world();
            note!(world, "replica {} resyncs", self.who);
            world.nodes[self.who].floor.clear();
        } else if back && before.restored && (store.is_building() || !self.seen.beside) {
            return Err(format!(
                "replica {} went back from {:?} to {:?} without a resync",
                self.who, before.next, checkpoint.next
            ));
        } else if back {
            let mut world = self.seat.world();
            world.counts.again += 1;
            note!(world, "replica {} reads the log once more", self.who);
        }
        if checkpoint.next != self.seen.checkpoint.next {
            note!(
                self.seat.world(),
                "replica {} has read up to {:?} {:?}",
                self.who,
                checkpoint.next,
                checkpoint.epochs
            );
        }
        let copied = self.seat.world().nodes[self.who].copied.take();
        if let Some(floor) = copied {
            // It may be behind, as that one is.
            self.seat.world().nodes[self.who].floor = floor;
        }
        (self.seen.checkpoint, self.seen.resyncs, self.seen.beside) =
            (checkpoint, resyncs, store.is_building());
        let all = self.seat.world().is_read_by(&self.seen.checkpoint);
        if all && progress.restored() && !store.is_building() && !self.doubted {
            self.compare()?;
        }
        if self.seat.world().random.one_in(4) { self.read() } else { Ok(()) }
    }

    /// It has read everything: each key must be what the log's last write says.
    fn compare(&mut self) -> Outcome {
        let Some(running) = &self.running else { return Ok(()) };
        let mut world = self.seat.world();
        world.counts.compared += 1;
        compare(&world, &running.store, &format!("replica {}", self.who))?;
        let floor = KEYS.iter().filter_map(|key| Some((*key, world.expected(key)?.clone()))).collect();
        world.nodes[self.who].floor = floor;
        Ok(())
    }

    /// What it answers must have been written, and not be older than what it has answered before.
    fn read(&mut self) -> Outcome {
        let Some(running) = &self.running else { return Ok(()) };
        for key in KEYS {
            self.seat.world().counts.reads += 1;
            let (answer, asked) = match running.reads.at_once(key) {
                Ok(Some(answer)) => (Ok(answer), false),
                Ok(None) => {
                    let mut best = PeerAnswer::Unknown;
                    let own = running.store.log().map_err(failed)?;
                    for (_, peer) in self.seat.cluster.others(self.who) {
                        let answer = as_peer(key, own, peer.reads.get_here(key));
                        if !self.seat.world().random.one_in(4) && answer.is_better_than(&best) {
                            best = answer;
                        }
                    }
                    self.seat.world().counts.peer_reads += 1;
                    (running.reads.settle(key, best), true)
                }
                Err(error) => (Err(error), false),
            };
            let Ok(answer) = answer else { continue };
            let restored = running.progress.restored();
            let world = self.seat.world();
            let (value, ttl) = match &answer.found {
                Found::Local(entry) => (entry.record().map(|record| record.value.to_owned()), entry.ttl()),
                Found::Peer(record) => (Some(record.value.clone()), record.ttl),
                Found::Gone { .. } | Found::Missing => (None, 0),
            };
            let shown = || format!("replica {} answers {answer:?} for {key}", self.who);
            let Some(timestamp) = answer.timestamp() else {
                let floor =
                    world.nodes[self.who].floor.get(key).filter(|floor| !world.has_died_since(key, floor));
                if let Some(floor) = floor.filter(|_| !asked && restored) {
                    return Err(format!("{}, after it has held {floor:?}", shown()));
                }
                continue;
            };
            // By the clock of whoever answered.
            let behind = world.nodes.iter().map(|node| node.skew).min().unwrap_or(0);
            let expired = ttl != 0 && ttl <= world.now + behind.min(0);
            if !world.is_real(key, answer.position, timestamp, value.as_deref()) || expired {
                return Err(format!("{}, which nobody wrote, or which is expired", shown()));
            }
            let age = (timestamp, answer.position.offset, answer.position.partition);
            // Of two markers that one partition each holds, the newer may be trimmed first.
            let gone = matches!(answer.found, Found::Gone { .. });
            let dead = |floor: &&Write| gone && world.has_died_since(key, floor);
            if let Some(floor) = world.nodes[self.who].floor.get(key).filter(|floor| !asked && !dead(floor))
                && age < floor.age()
            {
                return Err(format!("{}, after it has held {floor:?}", shown()));
            }
        }
        Ok(())
    }
}

fn as_peer(key: &str, own: LogTag, answer: Result<(Answer, LogTag), GetError>) -> PeerAnswer {
    let Some((answer, _)) = answer.ok().filter(|(_, log)| log.fits(own)) else { return PeerAnswer::Unknown };
    match (&answer.found, answer.record()) {
        (_, Some(record)) => {
            assert_eq!(record.key, key);
            PeerAnswer::Found {
                record: Arc::new(PeerRecord::new(record.to_owned(), Memory::unlimited().nothing())),
                position: answer.position,
            }
        }
        (Found::Gone { timestamp }, None) => {
            PeerAnswer::Gone { timestamp: *timestamp, position: answer.position }
        }
        _ => PeerAnswer::Missing,
    }
}

fn entries(store: &Store) -> Vec<(&'static str, Entry)> {
    let entry = |key: &str| Some(store.get(key.as_bytes()).expect("readable")?.0);
    KEYS.iter().filter_map(|key| Some((*key, entry(key)?))).collect()
}

/// Holds a store that has read everything against the oracle.
pub fn compare(world: &World, store: &Store, who: &str) -> Outcome {
    use bitacora_node::store::State;
    for key in KEYS {
        let found = store.get(key.as_bytes()).map_err(failed)?;
        let live = found
            .as_ref()
            .map(|(entry, _)| entry)
            .filter(|e| e.state(WallTime::from_ms(world.now)) == State::Live);
        let expected = world.expected(key);
        let due = expected.filter(|write| write.is_live(world.now));
        let agree = match (live, due) {
            (None, None) => true,
            (Some(entry), Some(write)) => {
                entry.position() == write.position
                    && entry.timestamp().ms() == write.timestamp
                    && entry.record().is_some_and(|record| record.value == write.value)
            }
            // Swept by the log's clock, which is that of several brokers.
            (None, Some(write)) => write.ttl != 0 && write.ttl <= world.now + crate::world::SECOND,
            (Some(_), None) => false,
        };
        if !agree {
            let shown = |entry: &Entry| {
                let record = crate::world::show(Some(entry.record_bytes()));
                format!("{} ttl {} {record}", entry.position(), entry.ttl())
            };
            return Err(format!(
                "{who} holds {:?} for {key}, the log's last write is {expected:?}",
                found.map(|(entry, _)| shown(&entry)),
            ));
        }
    }
    Ok(())
}

fn copy_all(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_all(&entry.path(), &to)?;
        } else {
            std::fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}
