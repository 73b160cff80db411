//! What each key must be: what trims and repairs changes no answer.

use bitacora_node::clock::WallTime;
use bitacora_node::log::Batch;
use bitacora_node::replication;
use bitacora_node::store::{Entry, State, Store};
use bitacora_protocol::record::ttl;
use bitacora_protocol::{NextOffset, Position};

use crate::promise::{Outcome, Promise, failed};
use crate::simulated_log::read;
use crate::world::{KEYS, World, Write};

impl World {
    /// The record of a key that everybody should agree on: the last write of the log, trimmers' records left aside.
    pub fn expected(&self, key: &str) -> Option<&Write> {
        self.log.iter().filter_map(|log| log.writes.get(key)).max_by_key(|write| write.age())
    }

    /// Whether that write of a key, or a later one, was one that ends.
    pub fn has_died_since(&self, key: &str, held: &Write) -> bool {
        let mut later = self.ever.values().filter(|(of, write)| *of == key && write.age() >= held.age());
        later.any(|(_, write)| write.ttl != ttl::FOR_EVER)
    }

    /// Whether somebody wrote that, at some time.
    pub fn is_real(&self, key: &str, position: Position, timestamp: i64, value: Option<&str>) -> bool {
        let found = self.ever.get(&(position.partition, position.offset, timestamp));
        found.is_some_and(|(of, write)| {
            *of == key && value.map_or(write.ttl != ttl::FOR_EVER, |value| write.value == value)
        })
    }
}

/// Holds a store that has read everything against the oracle.
pub fn compare(world: &World, store: &Store, who: &str) -> Outcome {
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
                let record = crate::writers::show(Some(entry.record_bytes()));
                format!("{} ttl {} {record}", entry.position(), entry.ttl())
            };
            return Err(Promise::LastWriteHolds.broken(format!(
                "{who} holds {:?} for {key}, the log's last write is {expected:?}",
                found.map(|(entry, _)| shown(&entry)),
            )));
        }
    }
    Ok(())
}

/// What a node would hold that reads the log from its start now. `spare` is a store that nobody else uses.
pub fn compare_new_node(world: &mut World, spare: &Store) -> Outcome {
    let starts = vec![NextOffset(0); world.log.len()];
    spare.reset(&world.identity(), &starts, WallTime::default()).map_err(failed)?;
    let mut batch = Batch::default();
    for (partition, log) in (0..).zip(&world.log) {
        for record in &log.records {
            batch.push(read(world.mistake, partition, record));
        }
    }
    replication::apply(spare, &batch, world.identity().tag(), &[]).map_err(failed)?;
    world.counts.compared += 1;
    compare(world, spare, "a new node")
}
