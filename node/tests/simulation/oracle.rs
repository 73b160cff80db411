//! What each key must be: what trims and repairs changes no answer.

use bitacora_node::clock::WallTime;
use bitacora_node::log::{Batch, LogTag};
use bitacora_node::replication;
use bitacora_node::store::{Decision, Entry, State, Store};
use bitacora_protocol::record::ttl;
use bitacora_protocol::{NextOffset, Position};

use crate::misreading::read;
use crate::mistake::Mistake;
use crate::promise::{Outcome, Promise, Violation, failed};
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

    /// Whether somebody wrote that, at some time. `shown_by`: whether a node that shows it doubts what it holds, and which log it reads,
    /// as far as it knows.
    pub fn is_real(
        &self,
        key: &str,
        (position, timestamp): (Position, i64),
        value: Option<&str>,
        shown_by: &[(bool, LogTag)],
    ) -> bool {
        let at = (position.partition, position.offset, timestamp);
        // Who doubts what he holds may show an attempt that took no effect, and so may who takes the topic for the one of before.
        let may_show = |(doubted, log): &(bool, LogTag)| *doubted || self.meant_for.get(&at) == Some(log);
        let found =
            self.ever.get(&at).or_else(|| self.void.get(&at).filter(|_| shown_by.iter().any(may_show)));
        // What is doubted is shown as deleted once it was trimmed, be it a record that lives.
        let may_be_gone = shown_by.iter().any(|(doubted, _)| *doubted);
        found.is_some_and(|(of, write)| {
            *of == key
                && value.map_or(may_be_gone || write.ttl != ttl::FOR_EVER, |value| write.value == value)
        })
    }
}

/// Whether a node says that what it holds of a key may not be true.
pub fn is_doubted(world: &World, store: &Store, key: &str) -> Result<bool, Violation> {
    let ignored = world.mistake == Some(Mistake::DoubtsAreIgnored);
    Ok(!ignored && store.in_doubt(key.as_bytes()).map_err(failed)?)
}

/// Holds a store that has read everything against the oracle.
pub fn compare(world: &World, store: &Store, who: &str) -> Outcome {
    for key in KEYS {
        if is_doubted(world, store, key)? {
            continue;
        }
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
                    && entry.value() == Some(&write.value)
            }
            // Swept by the log's clock, which is that of several brokers.
            (None, Some(write)) => write.ttl != 0 && write.ttl <= world.now + crate::world::SECOND,
            (Some(_), None) => false,
        };
        if !agree {
            let shown = |entry: &Entry| {
                let record = crate::writers::show(entry.to_avro().as_deref());
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
            batch.push(read(world, None, partition, record));
        }
    }
    // It has heard of no high watermark before: nothing is young.
    let (applied, _) = replication::apply(spare, &batch, world.identity().tag(), &[]).map_err(failed)?;
    for decided in &applied.decided {
        let Position { partition, offset } = decided.entry.position();
        let in_effect = match decided.decision {
            Decision::InEffect => true,
            Decision::Void => false,
            Decision::Unknown => continue,
        };
        let truth = world.log[partition as usize].truth.took_effect(offset);
        if world.mistake.is_none() && truth != Some(in_effect) {
            let what = format!("a new node says that {partition}:{offset} took effect: {in_effect}");
            return Err(Promise::OutcomesAgree.broken(what));
        }
    }
    world.counts.compared += 1;
    compare(world, spare, "a new node")
}
