//! The log as a node sees it.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bitacora_node::clock::LogTime;
use bitacora_node::log::{
    AppendError, Appended, Batch, Condition, Log, LogIdentity, LogInfo, LogReader, NewRecord, OpenError,
    ReadError, Unsettled,
};
use bitacora_node::store::NeededRepair;
use bitacora_protocol::record::KeyValue;
use bitacora_protocol::{HighWatermark, NextOffset, Position};

use crate::cluster::{Crashed, NodeView};
use crate::misreading::{change_store_wrongly, fill, is_left_out, read};
use crate::mistake::Mistake;
use crate::note;
use crate::world::{Crash, DELAY, LAG, LONG, Partition, RETENTION, World};

pub struct SimulatedLog {
    pub view: NodeView,
    /// That the node has learnt of, and of which topic.
    pub partitions: AtomicUsize,
    pub opened: Mutex<Option<LogIdentity>>,
}

fn unavailable() -> ReadError {
    ReadError::Unavailable("nobody answers".to_owned())
}

impl Log for SimulatedLog {
    fn topic(&self) -> &'static str {
        "t"
    }

    fn open(&self, _: &dyn Fn()) -> Result<LogInfo, OpenError> {
        let world = &mut *self.view.call();
        if world.nodes[self.view.who].cut_off {
            return Err(OpenError::Unavailable("nobody answers".to_owned()));
        }
        let mut known = world.log.len();
        // The broker that answers may not have heard of new ones.
        let of_late = world.now - world.grown < crate::world::MINUTE;
        if of_late && known > 1 && !world.nodes[self.view.who].undisturbed && world.random.one_in(3) {
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
        let compaction_lag = Duration::from_millis(LAG.unsigned_abs());
        Ok(LogInfo { identity: world.identity(), partitions, compaction_lag })
    }

    /// Only trimmers append here; writers have their own way.
    fn hand_over(&self, record: &NewRecord, append: Unsettled) {
        let mut record = record.clone();
        let partition = record.partition.expect("a trimmer names the partition");
        let world = &mut *self.view.call();
        let (who, undisturbed) = (self.view.who, world.nodes[self.view.who].undisturbed);
        match record.condition {
            Some(Condition::Repair { .. }) => world.counts.repairs += 1,
            _ => world.counts.trims += 1,
        }
        let unknown = Err(AppendError::Unknown("nobody acknowledged it".to_owned()));
        let needed_repair = || {
            let store = self.view.cluster.peer(who).expect("it runs").store;
            let (_, needed) = store.needed_repairs(usize::MAX).expect("readable");
            let of_this = |needed: &NeededRepair| {
                needed.key == record.key && needed.pending.position.partition == partition
            };
            needed.into_iter().find(of_this)
        };
        if let Some(needed) = needed_repair().filter(|_| world.mistake.is_some())
            && is_left_out(world, &needed)
        {
            return append.settle(unknown);
        }
        let expired = |value: &Vec<u8>| KeyValue::decode(value).is_ok_and(|record| record.ttl > 0);
        if world.mistake == Some(Mistake::ExpiredIsRepairedAsDeleted)
            && record.value.as_ref().is_some_and(expired)
        {
            record.value = None;
        }
        let held_up = world.nodes[who].held_up;
        let delay = match world.random.below(20) {
            _ if held_up.is_some() => held_up.unwrap_or_default(),
            _ if undisturbed => 0,
            // Never there.
            0 => return append.settle(unknown),
            1..11 => 0,
            11..19 => world.random.between(0, DELAY),
            _ => world.random.between(0, LONG),
        };
        note!(world, "replica {who} sends {record:?} in {delay} ms");
        // And somebody else, whom something holds up.
        if world.random.one_in(8) {
            let delay = world.random.between(0, LONG);
            world.send_conditional(record.clone(), delay);
        }
        world.send_conditional(record, delay);
        if delay > 0 {
            return append.settle(unknown);
        }
        let position = Position { partition, offset: 0 };
        append.settle(Ok(Appended { position, timestamp: LogTime::from_ms(world.now) }));
    }

    fn check_trimming(&self) -> Result<(), String> {
        Ok(())
    }

    fn reader(&self, from: &[NextOffset], epochs: &[Option<i32>]) -> Result<Box<dyn LogReader>, ReadError> {
        drop(self.view.call());
        let epochs = epochs.iter().copied().chain(std::iter::repeat(None));
        let next = from.iter().map(|next| next.0).zip(epochs).collect();
        Ok(Box::new(Reader { view: self.view.clone(), next }))
    }

    fn high_watermarks(&self) -> Result<Vec<HighWatermark>, ReadError> {
        let world = &mut *self.view.call();
        let known = self.partitions.load(Ordering::Relaxed);
        let node = &mut world.nodes[self.view.who];
        if std::mem::take(&mut node.fails_once.0) || node.cut_off || world.log.len() < known {
            return Err(unavailable());
        }
        // The question takes a while, and so does the answer.
        let slow = !node.undisturbed && world.random.one_in(4);
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

    fn is_unchanged(&self, identity: &LogIdentity, partitions: usize) -> bool {
        let world = self.view.call();
        // As far as can be told.
        world.nodes[self.view.who].cut_off
            || world.mistake == Some(Mistake::ReplacedTopicUnnoticed)
            || world.identity() == *identity && world.log.len() <= partitions
    }

    fn first_offsets_after(&self, times: &[Option<LogTime>]) -> Result<Vec<Option<i64>>, ReadError> {
        let world = self.view.call();
        if world.nodes[self.view.who].cut_off || world.log.len() < times.len() {
            return Err(unavailable());
        }
        if world.mistake == Some(Mistake::TruncatedLogUnnoticed) {
            return Ok(vec![None; times.len()]);
        }
        let first = |(log, time): (&Partition, &Option<LogTime>)| {
            let time = (*time)?.ms();
            log.records.iter().find(|record| record.timestamp > time).map(|record| record.offset)
        };
        Ok(world.log.iter().zip(times).map(first).collect())
    }

    fn delete_retention(&self) -> Option<Duration> {
        let grace = Duration::from_millis(RETENTION.unsigned_abs());
        Some(grace).filter(|_| self.view.world().mistake != Some(Mistake::NoResyncAfterLongAbsence))
    }

    fn flush(&self, _: Duration) {}
}

struct Reader {
    view: NodeView,
    /// Per partition, and the epoch of the record before.
    next: Vec<(i64, Option<i32>)>,
}

impl LogReader for Reader {
    fn poll(&mut self, _: Duration, batch: &mut Batch) -> Result<(), ReadError> {
        let world = &mut *self.view.call();
        let (who, mistake) = (self.view.who, world.mistake);
        let node = &mut world.nodes[who];
        let undisturbed = node.undisturbed;
        if std::mem::take(&mut node.fails_once.1) {
            return Err(unavailable());
        }
        if node.cut_off {
            return Ok(());
        }
        let store = mistake.and_then(|_| self.view.cluster.peer(who)).map(|peer| peer.store);
        for (partition, (next, epoch)) in (0..).zip(&mut self.next) {
            if !undisturbed && world.random.one_in(3) {
                continue;
            }
            let inside = |log: &&Partition| (log.start..=log.end).contains(next) && log.has(*next, *epoch);
            let Some(log) = world.log.get(partition as usize).filter(inside) else {
                return Err(ReadError::OutOfRange { partition });
            };
            let from = log.records.partition_point(|record| record.offset < *next);
            let count = match world.nodes[who].records_per_read {
                Some(records) => records,
                None if undisturbed => usize::MAX,
                None => 1 + world.random.index(10),
            };
            for record in log.records[from..].iter().take(count) {
                if mistake == Some(Mistake::OldAttemptsAreJudged) {
                    fill(batch, partition, *next..record.offset);
                }
                let reader = store.as_deref().map(|store| (who, store));
                batch.push(read(world, reader, partition, record));
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
        if mistake.is_some()
            && let Some(store) = &store
        {
            let ends = world.log.iter().map(|log| log.end);
            let all = self.next.iter().map(|(next, _)| *next).eq(ends);
            change_store_wrongly(world, store, batch, all);
        }
        if batch.records().len() > 0 && world.nodes[who].crash == Some(Crash::BeforeApply) {
            resume_unwind(Box::new(Crashed));
        }
        Ok(())
    }

    fn applied(&mut self, _: &[NextOffset]) {}
}
