//! What a node with one of the mistakes reads, makes of it, and leaves out.

use std::ops::Range;

use bitacora_node::clock::{LogTime, WallTime};
use bitacora_node::log::{Batch, Condition, Expected, LogRecord, LogTag, NewRecord};
use bitacora_node::store::{NeededRepair, State, Store};
use bitacora_protocol::Position;
use bitacora_protocol::record::KeyValue;

use crate::mistake::Mistake;
use crate::observation::entries;
use crate::world::{RETENTION, Record, World};

/// Whether a mistake leaves out a repair that is needed.
pub fn is_left_out(world: &World, needed: &NeededRepair) -> bool {
    let Position { partition, offset } = needed.pending.position;
    match world.mistake {
        Some(Mistake::NoRepairs) => true,
        Some(Mistake::NoRepairOfAnEmptyKey) => needed.entry.is_none(),
        Some(Mistake::VoidAttemptsAreNotRepaired) => {
            world.log[partition as usize].truth.took_effect(offset) == Some(false)
        }
        _ => false,
    }
}

/// No hole is seen between these offsets: there seem to be records that say nothing of any key.
pub fn fill(batch: &mut Batch, partition: i32, holes: Range<i64>) {
    for offset in holes {
        batch.push(LogRecord {
            position: Position { partition, offset },
            timestamp: LogTime::from_ms(0),
            key: None,
            value: None,
            condition: None,
            level: None,
            epoch: None,
        });
    }
}

/// A record as a reader gets it.
pub fn read<'a>(
    world: &World,
    reader: Option<(usize, &Store)>,
    partition: i32,
    record: &'a Record,
) -> LogRecord<'a> {
    let mistake = world.mistake;
    let mut condition = record.condition;
    match (mistake, &mut condition) {
        (Some(Mistake::UnconditionalTrims), Some(Condition::Trim { .. }))
        | (Some(Mistake::UnconditionalRepairs), Some(Condition::Repair { .. }))
        | (Some(Mistake::AttemptsAreWrites), Some(Condition::Attempt { .. })) => condition = None,
        (
            Some(Mistake::LateConditionalRecordsTakeEffect),
            Some(Condition::Trim { until, .. } | Condition::Repair { until, .. }),
        )
        | (Some(Mistake::LateAttemptsTakeEffect), Some(Condition::Attempt { until, .. })) => {
            *until = LogTime::MAX;
        }
        (
            Some(Mistake::ConditionalRecordsOfAnotherTopic),
            Some(Condition::Trim { log, .. } | Condition::Repair { log, .. }),
        )
        | (Some(Mistake::AttemptsOfAnotherTopic), Some(Condition::Attempt { log, .. })) => {
            *log = LogTag::default();
        }
        (Some(Mistake::RepairsReachOnlyTheirRecord), Some(Condition::Repair { reach, .. })) => *reach = None,
        (
            Some(Mistake::ExpiryByOwnClock | Mistake::TombstonesAreVersions | Mistake::AnyFitEndsDoubts),
            Some(Condition::Attempt { .. }),
        ) => {
            if let Some((who, store)) = reader {
                decide_wrongly(world, who, store, record, &mut condition);
            }
        }
        (
            Some(Mistake::DoubtsOutlastRepairs),
            Some(Condition::Trim { until, offset, .. } | Condition::Repair { until, offset, .. }),
        ) => {
            if let Some((_, store)) = reader
                && doubted(store, record).is_some_and(|held| held > *offset)
            {
                // As if it came too late.
                *until = LogTime::MIN;
            }
        }
        (Some(Mistake::OneReplicaReadsNoWrites), None) if reader.is_some_and(|(who, _)| who == 1) => {
            condition = Some(Condition::Unreadable);
        }
        _ => {}
    }
    let forgotten = mistake == Some(Mistake::UndecodableRecordsIgnored)
        && record.value.as_deref().is_some_and(|value| KeyValue::decode(value).is_err());
    LogRecord {
        position: Position { partition, offset: record.offset },
        timestamp: LogTime::from_ms(record.timestamp),
        key: Some(record.key.as_bytes()).filter(|_| !forgotten),
        value: record.value.as_deref(),
        condition,
        // Repairs below the level mean everything before.
        level: record.level.filter(|_| mistake != Some(Mistake::AnyRepairSettles)),
        epoch: Some(record.epoch).filter(|_| mistake != Some(Mistake::LeaderEpochsNotRemembered)),
    }
}

/// The offset of what a node holds of a record's key, if it doubts that.
fn doubted(store: &Store, record: &Record) -> Option<i64> {
    let key = record.key.as_bytes();
    let in_doubt = store.in_doubt(key).expect("readable");
    let (entry, _) = store.get(key).expect("readable").filter(|_| in_doubt)?;
    Some(entry.position().offset)
}

/// What a node with a mistake makes of an attempt that speaks of what it holds.
fn decide_wrongly(
    world: &World,
    who: usize,
    store: &Store,
    record: &Record,
    condition: &mut Option<Condition>,
) {
    let Some(Condition::Attempt { expected, until, .. }) = condition else { return };
    let Some((entry, _)) = store.get(record.key.as_bytes()).expect("readable") else { return };
    let own = WallTime::from_ms(world.now + world.nodes[who].skew);
    match (world.mistake, *expected) {
        (Some(Mistake::ExpiryByOwnClock), Expected::Live(offset)) if entry.position().offset == offset => {
            if entry.state(own) == State::Live {
                *condition = None;
            } else {
                *until = LogTime::MIN;
            }
        }
        (Some(Mistake::AnyFitEndsDoubts), Expected::Live(offset))
            if doubted(store, record) == Some(offset) =>
        {
            *condition = None;
        }
        (Some(Mistake::TombstonesAreVersions), Expected::Nothing) if !entry.is_provisional() => {
            *until = LogTime::MIN;
        }
        _ => {}
    }
}

/// What a node with a mistake does to its store before it applies what it has read, perhaps all there is.
pub fn change_store_wrongly(world: &World, store: &Store, batch: &Batch, all: bool) {
    match world.mistake {
        Some(Mistake::PositionsCommittedBeforeRecords) => {
            store.apply_read(&mut Vec::new(), batch.read()).expect("writable");
        }
        Some(Mistake::NewStoreTrustedAfterOneReading) if all && !store.is_building() => {
            store.note_caught_up(WallTime::from_ms(world.now)).expect("writable");
        }
        _ => {}
    }
}

/// What a node with a mistake appends besides what it should.
pub fn append_wrongly(world: &mut World, store: &Store) {
    let (now, log) = (world.now, world.identity().tag());
    let until = LogTime::MAX;
    for (key, entry) in entries(store) {
        let Position { partition, offset } = entry.position();
        let is_dead = || entry.state(WallTime::from_ms(now - RETENTION)) != State::Live;
        let (value, condition) = match world.mistake {
            Some(Mistake::TrimsIgnoreOtherPartitions) if entry.has_record() && is_dead() => {
                (None, Condition::Trim { offset, until, log })
            }
            Some(Mistake::DoubtfulKeysAreRepaired) if store.in_doubt(key.as_bytes()).expect("readable") => {
                let (timestamp, reach) = (entry.timestamp(), Some(offset));
                let value = entry.to_avro();
                (value, Condition::Repair { offset, timestamp, until, log, reach })
            }
            _ => continue,
        };
        let key = key.as_bytes().to_vec();
        world.send_conditional(NewRecord::conditional(partition, key, value, condition), 0);
    }
}
