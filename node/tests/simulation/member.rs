//! A node's life: it starts, goes on in steps, crashes, and its disk is lost or copied.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bitacora_node::cluster::Membership;
use bitacora_node::http_client::MemberClients;
use bitacora_node::log::Log;
use bitacora_node::metrics::Metrics;
use bitacora_node::replication::decisions::Decisions;
use bitacora_node::replication::progress::Progress;
use bitacora_node::replication::{self, Applier, Watermarks};
use bitacora_node::service::memory::Memory;
use bitacora_node::service::peers::{self, Peers};
use bitacora_node::service::reads::{PeerReads, Reads};
use bitacora_node::store::{Checkpoint, Store};
use bitacora_node::telemetry::Telemetry;
use bitacora_node::trimming::{self, Upkeep};

use crate::cluster::{Cluster, Crashed, NodeView, Peer};
use crate::misreading::{append_wrongly, is_left_out};
use crate::mistake::Mistake;
use crate::note;
use crate::observation::entries;
use crate::promise::{Outcome, Promise, failed};
use crate::simulated_log::SimulatedLog;
use crate::world::{DELAY, HeldWrites, RETENTION};

/// The parts of a node that runs.
pub struct Running {
    pub store: Arc<Store>,
    pub progress: Arc<Progress>,
    pub reads: Arc<Reads>,
    pub decisions: Arc<Decisions>,
    pub applier: Applier,
    pub watermarks: Watermarks,
    pub upkeep: Upkeep,
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
pub struct Seen {
    pub checkpoint: Checkpoint,
    pub resyncs: u64,
    pub beside: bool,
    pub figures: [u64; 3],
    pub doubted: BTreeSet<&'static str>,
}

pub struct Member {
    pub who: usize,
    pub dir: PathBuf,
    pub view: NodeView,
    /// Of all its lives.
    pub metrics: Arc<Metrics>,
    pub running: Option<Running>,
    /// Until when it can't be started.
    pub away: i64,
    pub seen: Seen,
    /// What the copy of its disk held, if there is one.
    pub copied: Option<HeldWrites>,
    /// It may not know better until it has read the log to its end: its clock was set wrong, or the log was truncated and it has not
    /// heard of that.
    pub may_be_stale: bool,
}

impl Member {
    pub fn new(cluster: &Arc<Cluster>, who: usize, dir: &Path) -> Self {
        let view = NodeView { cluster: Arc::clone(cluster), who };
        let dir = dir.join(who.to_string());
        let metrics = Arc::new(Metrics::new().expect("names differ"));
        let (away, seen, copied) = Default::default();
        Self { who, dir, view, metrics, running: None, away, seen, copied, may_be_stale: false }
    }

    pub fn is_up(&self) -> bool {
        self.running.is_some()
    }

    pub fn start(&mut self) -> Outcome {
        let now = self.view.world().now;
        if self.running.is_some() || self.away > now {
            return Ok(());
        }
        note!(self.view.world(), "replica {} starts", self.who);
        let store = Arc::new(Store::open(&self.dir, 1 << 20).map_err(failed)?);
        let progress = Arc::new(Progress::new(Arc::new(self.view.clone())));
        let metrics = Arc::clone(&self.metrics);
        let log: Arc<dyn Log> = Arc::new(SimulatedLog {
            view: self.view.clone(),
            partitions: AtomicUsize::new(0),
            opened: Mutex::default(),
        });
        let membership: Arc<dyn Membership> = Arc::new(self.view.clone());
        let peers = Peers::new(
            &MemberClients::default(),
            Arc::clone(&membership),
            Arc::clone(&progress),
            String::new(),
            peers::Limits { timeout: Duration::ZERO, max_value_bytes: 0 },
            Memory::unlimited(),
            Arc::clone(&metrics),
        );
        let reads = Arc::new(Reads::new(
            Arc::clone(&store),
            Arc::clone(&progress),
            peers.map_err(failed)?,
            PeerReads::Auto,
        ));
        let decisions = Arc::<Decisions>::default();
        let retention = Duration::from_millis(RETENTION.unsigned_abs());
        let (applier, watermarks) = replication::halves(replication::Parts {
            log: Arc::clone(&log),
            store: Arc::clone(&store),
            progress: Arc::clone(&progress),
            metrics: Arc::clone(&metrics),
            feed: Arc::default(),
            decisions: Arc::clone(&decisions),
            telemetry: Telemetry::off(),
            delete_retention: retention,
            snapshots: Some(Arc::new(self.view.clone())),
        })
        .map_err(failed)?;
        let upkeep = Upkeep::new(trimming::Parts {
            log,
            membership,
            store: Arc::clone(&store),
            progress: Arc::clone(&progress),
            metrics,
            retention,
            original_nodes: false,
        });
        let peer =
            Peer { store: Arc::clone(&store), progress: Arc::clone(&progress), reads: Arc::clone(&reads) };
        self.view.cluster.set_peer(self.who, Some(peer));
        self.running = Some(Running { store, progress, reads, decisions, applier, watermarks, upkeep });
        self.observe()
    }

    /// Dies at once, as if killed.
    pub fn crash(&mut self) {
        if self.running.take().is_some() {
            self.view.cluster.set_peer(self.who, None);
            let mut world = self.view.world();
            world.counts.crashes += 1;
            (world.nodes[self.who].crash, world.nodes[self.who].copied) = (None, None);
            note!(world, "replica {} crashes", self.who);
        }
    }

    /// While it is down, its disk is lost.
    pub fn lose_disk(&mut self) {
        assert!(!self.is_up());
        let _ = std::fs::remove_dir_all(&self.dir);
        self.forget();
        note!(self.view.world(), "replica {} loses its disk", self.who);
    }

    fn forget(&mut self) {
        self.seen.checkpoint = Checkpoint::default();
        self.view.world().nodes[self.who].held.clear();
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
        self.copied = Some(self.view.world().nodes[self.who].held.clone());
        note!(self.view.world(), "the disk of replica {} is copied", self.who);
    }

    /// While it is down, its disk is replaced by that copy, if there is one.
    pub fn restore_disk(&mut self) {
        assert!(!self.is_up());
        if let Some(held) = self.copied.clone() {
            let _ = std::fs::remove_dir_all(&self.dir);
            copy_all(&self.copy_dir(), &self.dir).expect("copied");
            self.forget();
            let mut world = self.view.world();
            world.nodes[self.who].held = held;
            world.counts.backups += 1;
            note!(world, "the disk of replica {} is what it was when it was copied", self.who);
        }
    }

    pub fn step(&mut self, part: Part) -> Outcome {
        let Some(running) = &mut self.running else { return Ok(()) };
        let mistake = self.view.world().mistake;
        let keeps = (mistake == Some(Mistake::ResyncKeepsOldKeys)).then(|| entries(&running.store));
        let outcome = catch_unwind(AssertUnwindSafe(|| match part {
            Part::Applier => drop(running.applier.step()),
            Part::Watermarks => drop(running.watermarks.step()),
            Part::Upkeep => running.upkeep.step(),
        }));
        if let Err(payload) = outcome {
            if !payload.is::<Crashed>() {
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
        if matches!(part, Part::Upkeep) && running.progress.caught_up() {
            append_wrongly(&mut self.view.world(), &running.store);
        }
        self.observe()
    }

    /// Whether it has read everything and knows it.
    pub fn is_current(&self) -> bool {
        let Some(running) = &self.running else { return false };
        let Ok(mut checkpoint) = running.store.copy().map(|copy| copy.checkpoint) else { return false };
        // Barriers that came last have been read, and are held back.
        checkpoint.next = running.progress.next_offsets();
        let all = self.view.world().is_read_by(&checkpoint);
        all && running.progress.restored() && running.progress.caught_up() && !running.store.is_building()
    }

    /// Reads all there is, whatever was in its way.
    pub fn catch_up(&mut self) -> Outcome {
        {
            let mut world = self.view.world();
            let node = &mut world.nodes[self.who];
            (node.crash, node.cut_off, node.undisturbed) = (None, false, true);
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
        self.view.world().nodes[self.who].undisturbed = false;
        if self.is_current() {
            self.may_be_stale = false;
            return self.compare();
        }
        let Some(running) = &self.running else { return Err(Promise::NodesCatchUp.broken("it should run")) };
        let progress = &running.progress;
        Err(Promise::NodesCatchUp.broken(format!(
            "replica {} does not catch up: {:?}, {:?}, {:?}",
            self.who,
            progress.phase(),
            progress.restore(),
            progress.partitions()
        )))
    }

    /// Appends the repairs that are needed, with all the time that it takes.
    pub fn append_repairs(&mut self) -> Outcome {
        for round in 0..100 {
            self.catch_up()?;
            let Some(running) = &self.running else {
                return Err(Promise::NodesCatchUp.broken("it should run"));
            };
            let (_, mut needed) = running.store.needed_repairs(usize::MAX).map_err(failed)?;
            needed.retain(|needed| !is_left_out(&self.view.world(), needed));
            if needed.is_empty() {
                return Ok(());
            }
            {
                let mut world = self.view.world();
                let node = &mut world.nodes[self.who];
                // In the end nothing is in its way.
                (node.trims, node.undisturbed) = (true, round >= 3);
            }
            self.step(Part::Upkeep)?;
            let mut world = self.view.world();
            world.nodes[self.who].undisturbed = false;
            world.pass(if round < 3 { DELAY } else { 0 });
        }
        Err(Promise::NodesCatchUp.broken("the repairs don't end"))
    }
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
