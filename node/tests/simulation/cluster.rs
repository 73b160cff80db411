//! What the nodes share, and how a node sees it: the clock, the membership, and the stores of the others.

use std::panic::resume_unwind;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bitacora_node::clock::{Clock, Moment, WallTime};
use bitacora_node::cluster::{Membership, MembershipState};
use bitacora_node::log::LogIdentity;
use bitacora_node::replication::progress::Progress;
use bitacora_node::replication::snapshot::{CompatibilityCheck, ProgressReport, SnapshotSource};
use bitacora_node::service::reads::Reads;
use bitacora_node::store::{Checkpoint, Incoming, Store};
use futures_util::future::{BoxFuture, FutureExt as _, ready};

use crate::mistake::Mistake;
use crate::note;
use crate::world::{Crash, World};

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

    pub fn set_peer(&self, who: usize, peer: Option<Peer>) {
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
pub struct Crashed;

/// One node's way to all of this.
#[derive(Clone)]
pub struct NodeView {
    pub cluster: Arc<Cluster>,
    pub who: usize,
}

impl NodeView {
    pub fn world(&self) -> MutexGuard<'_, World> {
        self.cluster.world()
    }

    /// As [`NodeView::world`], where the node might die.
    pub fn call(&self) -> MutexGuard<'_, World> {
        let mut world = self.world();
        if let Some(Crash::AfterCalls(left)) = &mut world.nodes[self.who].crash {
            if *left == 0 {
                drop(world);
                // Not a panic: nobody need hear of it.
                resume_unwind(Box::new(Crashed));
            }
            *left -= 1;
        }
        world
    }
}

impl Clock for NodeView {
    fn now(&self) -> Moment {
        Moment(Duration::from_millis(self.world().now.unsigned_abs()))
    }

    fn wall(&self) -> WallTime {
        let world = self.world();
        WallTime::from_ms(world.now + world.nodes[self.who].skew)
    }
}

impl Membership for NodeView {
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

    fn is_elected_trimmer(&self) -> bool {
        self.world().nodes[self.who].trims
    }

    fn leave(&self) -> BoxFuture<'_, ()> {
        ready(()).boxed()
    }
}

impl SnapshotSource for NodeView {
    fn fetch(
        &self,
        identity: &LogIdentity,
        store: &Store,
        check: CompatibilityCheck<'_>,
        _: ProgressReport<'_>,
    ) -> Option<(Incoming, Checkpoint)> {
        let any = self.call().mistake == Some(Mistake::AnySnapshotTaken);
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
            let pages = incoming.look_at_pages();
            let Ok(checkpoint) = pages.and_then(|pages| incoming.open(&pages, &AtomicBool::new(false)))
            else {
                continue;
            };
            match check(&checkpoint) {
                Ok(()) => {}
                Err(_) if any => {}
                Err(why) => {
                    note!(self.world(), "replica {} takes no copy from {of}: {why}", self.who);
                    continue;
                }
            }
            let mut world = self.call();
            world.nodes[self.who].copied = Some(world.nodes[of].held.clone());
            world.counts.snapshots += 1;
            note!(world, "replica {} takes the store of {of}", self.who);
            return Some((incoming, checkpoint));
        }
        None
    }
}
