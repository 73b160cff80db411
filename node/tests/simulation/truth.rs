//! The truth about a partition: what each record did, decided one after another over the whole order, before compaction takes
//! anything away. It knows nothing of gaps and doubts, for a reader that saw everything has none.

use std::collections::{BTreeMap, BTreeSet};

use bitacora_node::clock::LogTime;
use bitacora_node::log::{Condition, Expected, LogTag};
use bitacora_protocol::record::{KeyValue, ttl};

use crate::promise::{Promise, Violation};
use crate::world::Record;

/// What a partition holds of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    pub version: i64,
    pub ttl: i64,
    /// Another program's tombstone, which nodes forget in time: for a condition it is nothing.
    pub is_tombstone: bool,
}

impl Held {
    /// By the log's time.
    pub fn is_live(self, now: i64) -> bool {
        self.ttl == ttl::FOR_EVER || self.ttl > now
    }
}

/// What a record did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The key is what this record says.
    Written,
    /// A trim or a repair that says what is true.
    Kept,
    Void,
}

#[derive(Clone, Default)]
pub struct Truth {
    held: BTreeMap<&'static str, Held>,
    /// Of each attempt, by its offset: its uuid, and whether it took effect.
    attempts: BTreeMap<i64, (String, bool)>,
    /// The last void record of a key behind which nothing says what is true: its offset and timestamp.
    pending: BTreeMap<&'static str, (i64, i64)>,
    /// The keys of which something that can't be decoded came where nothing was held, and no write since.
    spoiled: BTreeSet<&'static str>,
    /// The keys of conditional writes.
    attempted: BTreeSet<&'static str>,
}

impl Truth {
    pub fn held(&self, key: &str) -> Option<Held> {
        self.held.get(key).copied()
    }

    /// The keys that have a pending repair.
    pub fn pending(&self) -> impl Iterator<Item = &'static str> {
        self.pending.keys().copied()
    }

    /// Whether the attempt at an offset took effect; `None` if there is none.
    pub fn took_effect(&self, offset: i64) -> Option<bool> {
        self.attempts.get(&offset).map(|(_, in_effect)| *in_effect)
    }

    /// How often the attempt of that uuid is there, and took effect.
    pub fn appearances(&self, uuid: &str) -> (usize, usize) {
        let found = || self.attempts.values().filter(|(of, _)| of == uuid);
        (found().count(), found().filter(|(_, in_effect)| *in_effect).count())
    }

    /// Whether the attempt at an offset is the first of its uuid, which the log acknowledged.
    pub fn is_first(&self, offset: i64, uuid: &str) -> bool {
        self.attempts.iter().find(|(_, (of, _))| of == uuid).is_some_and(|(first, _)| *first == offset)
    }

    /// Whether an attempt might be decided differently: what can't be decoded hides a trim, and nobody repairs that.
    pub fn is_spoiled(&self, key: &str) -> bool {
        self.spoiled.contains(key)
    }

    /// Whether somebody has written a key with a condition.
    pub fn is_attempted(&self, key: &str) -> bool {
        self.attempted.contains(key)
    }

    /// An attempt that took effect more than once.
    pub fn twice(&self) -> Option<&str> {
        let mut seen = BTreeSet::new();
        let in_effect = self.attempts.values().filter(|(_, in_effect)| *in_effect);
        in_effect.map(|(uuid, _)| uuid.as_str()).find(|uuid| !seen.insert(*uuid))
    }

    /// Whether what an attempt expects is so at `now`.
    fn is_met(&self, key: &str, expected: Expected, now: i64) -> bool {
        let held = self.held(key).filter(|held| !held.is_tombstone);
        match (expected, held) {
            (Expected::Nothing, held) => held.is_none(),
            (Expected::Live(version), Some(held)) => held.version == version && held.is_live(now),
            (Expected::Dead(version), Some(held)) => held.version == version && !held.is_live(now),
            (_, None) => false,
        }
    }

    /// Decides about the next record. `first_level`: repairs and trims do not say how far they reach, and mean everything before.
    ///
    /// # Errors
    /// If a repair says what is not true.
    pub fn decide(&mut self, record: &Record, log: LogTag, first_level: bool) -> Result<Effect, Violation> {
        let Record { offset, timestamp, key, .. } = *record;
        let decoded = record.value.as_deref().map(KeyValue::decode);
        let own = match &decoded {
            None => Some(Held { version: offset, ttl: ttl::DELETED, is_tombstone: true }),
            Some(Ok(record)) => Some(Held { version: offset, ttl: record.ttl, is_tombstone: false }),
            Some(Err(_)) => None,
        };
        let valid = record.condition.and_then(Condition::validity);
        let valid = valid.is_none_or(|(until, of)| LogTime::from_ms(timestamp) <= until && of.fits(log));
        let held = self.held(key);
        let effect = match (record.condition, own) {
            (None, Some(own)) => {
                self.held.insert(key, own);
                self.pending.remove(key);
                self.spoiled.remove(key);
                return Ok(Effect::Written);
            }
            // It says nothing; where nothing is held, it hides nothing.
            (None, None) if held.is_none() => {
                self.spoiled.insert(key);
                return Ok(Effect::Kept);
            }
            (Some(Condition::Attempt { expected, .. }), Some(own)) => {
                let in_effect = valid && self.is_met(key, expected, timestamp);
                let uuid = decoded.and_then(Result::ok).map(|record| record.uuid.to_owned());
                self.attempted.insert(key);
                self.attempts.insert(offset, (uuid.unwrap_or_default(), in_effect));
                if in_effect {
                    self.held.insert(key, own);
                    self.pending.remove(key);
                    return Ok(Effect::Written);
                }
                Effect::Void
            }
            (Some(Condition::Trim { offset: reach, .. }), _)
                if valid && held.is_none_or(|held| held.version <= reach) =>
            {
                self.held.remove(key);
                self.settle(key, if first_level { offset } else { reach });
                Effect::Kept
            }
            (Some(Condition::Repair { offset: version, reach, .. }), own)
                if valid && held.is_none_or(|held| Some(held.version) <= reach.max(Some(version))) =>
            {
                let reach = reach.unwrap_or(version);
                let own = own.map(|own| Held { version, ..own });
                self.settle(key, if first_level { offset } else { reach });
                self.repair(key, own, held, timestamp)?;
                Effect::Kept
            }
            _ => Effect::Void,
        };
        if effect == Effect::Void {
            self.pending.insert(key, (offset, timestamp));
        }
        Ok(effect)
    }

    fn settle(&mut self, key: &str, reach: i64) {
        if self.pending.get(key).is_some_and(|(offset, _)| *offset <= reach) {
            self.pending.remove(key);
        }
    }

    /// What a repair says is what is held, or what was dead when it was trimmed.
    fn repair(
        &mut self,
        key: &'static str,
        says: Option<Held>,
        held: Option<Held>,
        now: i64,
    ) -> Result<(), Violation> {
        let is_true =
            held.map_or_else(|| says.is_some_and(|says| !says.is_live(now)), |held| Some(held) == says);
        if let Some(says) = says {
            self.held.insert(key, says);
        }
        if is_true {
            return Ok(());
        }
        Err(Promise::RepairsChangeNothing
            .broken(format!("a repair says of {key} {says:?}, where {held:?} is held without a gap")))
    }
}
