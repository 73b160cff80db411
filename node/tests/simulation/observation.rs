//! What a node shows, held against what was written.

use std::sync::Arc;

use bitacora_node::log::LogTag;
use bitacora_node::service::memory::Memory;
use bitacora_node::service::peers::{PeerAnswer, PeerRecord};
use bitacora_node::service::reads::{Answer, GetError, LookupResult};
use bitacora_node::store::{DigestPoint, Entry, Store, UuidText};

use crate::member::{Member, Running};
use crate::mistake::Mistake;
use crate::note;
use crate::oracle::compare;
use crate::promise::{Outcome, Promise, failed};
use crate::world::{KEYS, Write};

impl Member {
    /// Looks at what the node shows after a step.
    pub fn observe(&mut self) -> Outcome {
        if let Some(violation) = self.view.world().violation.take() {
            return Err(violation);
        }
        let Some(running) = &self.running else { return Ok(()) };
        let (Running { store, .. }, metrics) = (running, &self.metrics);
        let checkpoint = store.copy().map_err(failed)?.checkpoint;
        let resyncs = metrics.resyncs.get();
        {
            let mut world = self.view.world();
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
        for key in KEYS {
            let doubted = store.in_doubt(key.as_bytes()).map_err(failed)?;
            let changed = if doubted { self.seen.doubted.insert(key) } else { self.seen.doubted.remove(key) };
            if changed {
                let mut world = self.view.world();
                world.counts.doubts += u64::from(doubted);
                note!(world, "replica {} doubts {key}: {doubted}", self.who);
            }
        }
        let before = &self.seen.checkpoint;
        let back = before.identity == checkpoint.identity
            && before.next.iter().zip(&checkpoint.next).any(|(before, after)| after < before);
        if resyncs > self.seen.resyncs {
            let mut world = self.view.world();
            note!(world, "replica {} resyncs", self.who);
            world.nodes[self.who].held.clear();
        } else if back && before.restored && (store.is_building() || !self.seen.beside) {
            return Err(Promise::PositionsNeverGoBack.broken(format!(
                "replica {} went back from {:?} to {:?} without a resync",
                self.who, before.next, checkpoint.next
            )));
        } else if back {
            let mut world = self.view.world();
            world.counts.again += 1;
            note!(world, "replica {} reads the log once more", self.who);
        }
        if checkpoint.next != self.seen.checkpoint.next {
            note!(
                self.view.world(),
                "replica {} has read up to {:?} {:?}",
                self.who,
                checkpoint.next,
                checkpoint.epochs
            );
        }
        let copied = self.view.world().nodes[self.who].copied.take();
        if let Some(held) = copied {
            // It may be behind, as that one is.
            self.view.world().nodes[self.who].held = held;
        }
        (self.seen.checkpoint, self.seen.resyncs, self.seen.beside) =
            (checkpoint, resyncs, store.is_building());
        self.compare_digests()?;
        let Some(Running { store, progress, .. }) = &self.running else { return Ok(()) };
        let all = self.view.world().is_read_by(&self.seen.checkpoint);
        if all && progress.restored() && !store.is_building() && !self.may_be_stale {
            self.compare()?;
        }
        let reads = {
            let world = &mut *self.view.world();
            world.random.is_off() || world.random.one_in(4)
        };
        if reads { self.read() } else { Ok(()) }
    }

    /// It has read everything: each key must be what the log's last write says.
    pub fn compare(&mut self) -> Outcome {
        let Some(running) = &self.running else { return Ok(()) };
        let mut world = self.view.world();
        world.counts.compared += 1;
        compare(&world, &running.store, &format!("replica {}", self.who))?;
        let held = KEYS.iter().filter_map(|key| Some((*key, world.expected(key)?.clone()))).collect();
        world.nodes[self.who].held = held;
        Ok(())
    }

    /// What it says of its digests must be what all have said of the same log at the same positions.
    fn compare_digests(&self) -> Outcome {
        let Some(Running { store, progress, .. }) = &self.running else { return Ok(()) };
        // Before the world is held: it is their clock, too.
        let may_be_read = progress.restored() && progress.caught_up_in_this_run() && !store.is_building();
        let (log, said) = store.digests().map_err(failed)?;
        let world = &mut *self.view.world();
        // The other mistakes are to be caught by what they do to a key.
        let is_looked_at = matches!(world.mistake, None | Some(Mistake::OneReplicaReadsNoWrites));
        let is_of_this_log = log == world.identity().tag() && !self.may_be_stale;
        if !(is_looked_at && is_of_this_log && may_be_read) {
            return Ok(());
        }
        for digests in said {
            let partition = digests.partition;
            for DigestPoint { next, digest } in digests.points().copied() {
                if world.may_differ(partition, next) {
                    continue;
                }
                let (known, first) = *world.digests.entry((partition, next)).or_insert((digest, self.who));
                world.counts.digests += 1;
                if known != digest {
                    return Err(Promise::DigestsAgree.broken(format!(
                        "replica {} says {digest} of partition {partition} up to {next:?}, replica {first} has said {known}",
                        self.who
                    )));
                }
            }
        }
        Ok(())
    }

    /// Long after the last attempt, it must know what it holds.
    pub fn doubts_nothing(&self) -> Outcome {
        let Some(Running { store, .. }) = &self.running else { return Ok(()) };
        for key in KEYS {
            if store.in_doubt(key.as_bytes()).map_err(failed)? {
                return Err(Promise::DoubtsEnd.broken(format!("replica {} still doubts {key}", self.who)));
            }
        }
        Ok(())
    }

    /// What it answers must have been written, and not be older than what it has answered before.
    pub fn read(&mut self) -> Outcome {
        let Some(running) = &self.running else { return Ok(()) };
        for key in KEYS {
            self.view.world().counts.reads += 1;
            let (answer, asked) = match running.reads.at_once(key) {
                Ok(Some(answer)) => (Ok(answer), false),
                Ok(None) => {
                    let mut best = PeerAnswer::Unknown;
                    let own = running.store.log();
                    for (_, peer) in self.view.cluster.others(self.who) {
                        let answer = as_peer(key, own, peer.reads.get_local(key));
                        if !self.view.world().random.one_in(4) && answer.is_better_than(&best) {
                            best = answer;
                        }
                    }
                    self.view.world().counts.peer_reads += 1;
                    (running.reads.settle(key, best), true)
                }
                Err(error) => (Err(error), false),
            };
            let Ok(answer) = answer else { continue };
            let restored = running.progress.restored();
            let mut stores = vec![Arc::clone(&running.store)];
            stores.extend(self.view.cluster.others(self.who).into_iter().map(|(_, peer)| peer.store));
            let doubts = |store: &Arc<Store>| store.in_doubt(key.as_bytes()).unwrap_or(true);
            let shown_by: Vec<_> = stores.iter().map(|store| (doubts(store), store.log())).collect();
            let in_doubt = running.store.in_doubt(key.as_bytes()).map_err(failed)?;
            let world = self.view.world();
            // Who doubts a key may show what a repair says that has no effect, until that is repaired.
            let held = world.nodes[self.who].held.get(key).filter(|_| !asked && !in_doubt);
            let (value, ttl) = match &answer.found {
                LookupResult::Local(entry) => (entry.value().map(str::to_owned), entry.ttl()),
                LookupResult::Peer(record) => (Some(record.value.clone()), record.ttl),
                LookupResult::Gone { .. } | LookupResult::Missing => (None, 0),
            };
            let shown = || format!("replica {} answers {answer:?} for {key}", self.who);
            let Some(timestamp) = answer.timestamp() else {
                let held = held.filter(|held| !world.has_died_since(key, held));
                if let Some(held) = held.filter(|_| restored) {
                    return Err(Promise::AnswersNeverGoBack
                        .broken(format!("{}, after it has held {held:?}", shown())));
                }
                continue;
            };
            // By the clock of whoever answered.
            let behind = world.nodes.iter().map(|node| node.skew).min().unwrap_or(0);
            let expired = ttl != 0 && ttl <= world.now + behind.min(0);
            let at = (answer.position, timestamp);
            if !world.is_real(key, at, value.as_deref(), &shown_by) || expired {
                return Err(Promise::AnswersWereWritten.broken(format!(
                    "{}, which nobody wrote, or which is expired (shown by one who doubts it, and reads: {shown_by:?})",
                    shown()
                )));
            }
            let age = (timestamp, answer.position.offset, answer.position.partition);
            // Of two markers that one partition each holds, the newer may be trimmed first.
            let gone = matches!(answer.found, LookupResult::Gone { .. });
            let dead = |held: &&Write| gone && world.has_died_since(key, held);
            if let Some(held) = held.filter(|held| !dead(held))
                && age < held.age()
            {
                return Err(
                    Promise::AnswersNeverGoBack.broken(format!("{}, after it has held {held:?}", shown()))
                );
            }
        }
        Ok(())
    }
}

fn as_peer(key: &str, own: LogTag, answer: Result<(Answer, LogTag), GetError>) -> PeerAnswer {
    let Some((answer, _)) = answer.ok().filter(|(_, log)| log.fits(own)) else { return PeerAnswer::Unknown };
    let mut uuid = UuidText::default();
    match (&answer.found, answer.record(&mut uuid)) {
        (_, Some(record)) => {
            assert_eq!(record.key, key);
            PeerAnswer::Found {
                record: Arc::new(PeerRecord::new(record.to_owned(), Memory::unlimited().nothing())),
                position: answer.position,
            }
        }
        (LookupResult::Gone { timestamp }, None) => {
            PeerAnswer::Gone { timestamp: *timestamp, position: answer.position }
        }
        _ => PeerAnswer::Missing,
    }
}

pub fn entries(store: &Store) -> Vec<(&'static str, Entry)> {
    let entry = |key: &str| Some(store.get(key.as_bytes()).expect("readable")?.0);
    KEYS.iter().filter_map(|key| Some((*key, entry(key)?))).collect()
}
