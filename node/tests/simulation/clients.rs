//! Who writes under a condition. A node looks at what it holds, refuses what does not match, and appends an attempt that would take
//! effect; whether it did is decided where it lies in the log, and told by the node that reads it there.

use bitacora_node::clock::{LogTime, WallTime};
use bitacora_node::log::{Condition, Expected, Level, NewRecord};
use bitacora_node::store::{Entry, State};
use bitacora_protocol::partition_of;
use bitacora_protocol::record::ttl;

use crate::member::{Member, Running};
use crate::note;
use crate::promise::{Promise, Violation, failed};
use crate::world::{DELAY, HOUR, LONG, MINUTE, SECOND, SKEW, Sent, World};
use crate::writers::encode_as;

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// `If-Match`: this is still the version, and it is live.
    Version(i64),
    /// `If-None-Match: *`: there is no live record.
    Absent,
}

/// An attempt that a client waits for.
#[derive(Clone, Debug)]
pub struct Request {
    pub who: usize,
    pub key: &'static str,
    pub partition: i32,
    pub uuid: String,
    pub asked: Asked,
    pub expected: Expected,
}

impl World {
    /// Says that there may be attempts behind it in a partition.
    pub fn send_level(&mut self, partition: i32) {
        let now = WallTime::from_ms(self.now);
        let NewRecord { value, level, .. } = NewRecord::level(partition, Level::CONDITIONAL_WRITES, now);
        let (due, key, condition) = (self.now, Level::KEY, None);
        self.sent.push(Sent { due, partition, key, value, condition, level });
        self.pass(0);
    }

    /// Whether what is asked for is so now.
    fn holds(&self, asked: Asked, key: &str, partition: i32) -> bool {
        let held = self.log.get(partition as usize).and_then(|log| log.truth.held(key));
        match asked {
            Asked::Version(version) => {
                held.is_some_and(|held| held.version == version && held.is_live(self.now))
            }
            Asked::Absent => !held.is_some_and(|held| held.is_live(self.now)),
        }
    }

    /// What the client wants, of a key of which the node holds that version.
    fn asked(&mut self, held: Option<&Entry>) -> Asked {
        match (held, self.random.below(8)) {
            (Some(entry), 0) => Asked::Version(entry.position().offset - self.random.between(1, 3)),
            (Some(entry), 1..5) => Asked::Version(entry.position().offset),
            _ => Asked::Absent,
        }
    }

    /// Appends an attempt, once or twice, soon or late, or never.
    pub fn send_attempt(&mut self, request: &Request) {
        self.counts.accepted += 1;
        let accepting = self.now + self.random.between(-SKEW, SKEW);
        let (value, ttl) = match self.random.below(10) {
            0..2 => (String::new(), ttl::DELETED),
            2..4 => (self.value(), accepting + self.random.between(1, 90) * MINUTE),
            4 => (self.value(), accepting + self.random.between(1, 10) * SECOND),
            _ => (self.value(), ttl::FOR_EVER),
        };
        let until = LogTime::from_ms(self.now + self.random.between(10 * SECOND, 10 * MINUTE));
        let condition = Condition::Attempt { expected: request.expected, until, log: self.identity().tag() };
        let times = if self.random.one_in(6) { 2 } else { 1 };
        // The assumption: nothing comes between two copies of an attempt that expects nothing, which has no version to tell them apart.
        let together = request.expected == Expected::Nothing;
        let mut first = None;
        for _ in 0..times {
            let delay = match self.random.below(20) {
                0 => continue,
                1..12 => 0,
                12..17 => self.random.between(0, DELAY),
                17..19 => self.random.between(0, HOUR),
                _ => self.random.between(0, LONG),
            };
            let delay = if together { *first.get_or_insert(delay) } else { delay };
            let value = Some(encode_as(request.key, &value, ttl, &request.uuid));
            let (partition, key) = (request.partition, request.key);
            let condition = Some(condition);
            self.sent.push(Sent { due: self.now + delay, partition, key, value, condition, level: None });
        }
        // Others write it at the same time.
        if self.random.one_in(3) {
            let text = self.value();
            let value = Some(encode_as(request.key, &text, ttl::FOR_EVER, ""));
            let (due, partition, key) =
                (self.now + self.random.between(0, SECOND), request.partition, request.key);
            self.sent.push(Sent { due, partition, key, value, condition: None, level: None });
        }
        self.pass(0);
    }
}

impl Member {
    /// Whether the node has read that a partition takes attempts; sees to it if nobody has.
    fn has_raised_level(&self, partition: i32) -> bool {
        let Some(running) = &self.running else { return false };
        let world = &mut *self.view.world();
        let Some(log) = world.log.get(partition as usize) else { return false };
        let Some(offset) = log.level_at else {
            world.send_level(partition);
            return false;
        };
        running.progress.next_offsets().get(partition as usize).is_some_and(|next| next.0 > offset)
    }

    /// What the node makes of a conditional write. Returns what a client waits for then.
    pub fn accept(&self, key: &'static str) -> Result<Option<Request>, Violation> {
        let Some(Running { store, progress, .. }) = &self.running else { return Ok(None) };
        let partitions = progress.next_offsets().len();
        if self.may_be_stale || partitions == 0 || !progress.restored() {
            return Ok(None);
        }
        let partition = partition_of(key.as_bytes(), partitions);
        if !self.has_raised_level(partition) {
            return Ok(None);
        }
        let current = self.is_current();
        let found = store.get(key.as_bytes()).map_err(failed)?.map(|(entry, _)| entry);
        let world = &mut *self.view.world();
        if store.in_doubt(key.as_bytes()).map_err(failed)? {
            world.counts.in_doubt += 1;
            return Ok(None);
        }
        if found.as_ref().is_some_and(|entry| entry.position().partition != partition) {
            world.counts.elsewhere += 1;
            return Ok(None);
        }
        let is_nothing =
            |entry: &Entry| entry.is_provisional() || entry.ttl() == ttl::DELETED && !entry.has_record();
        let held = found.filter(|entry| !is_nothing(entry));
        let asked = world.asked(held.as_ref());
        let version = held.as_ref().map(|entry| entry.position().offset);
        let live =
            held.as_ref().is_some_and(|entry| entry.state(WallTime::from_ms(world.now)) == State::Live);
        // Clocks disagree about what expires about now: the log's decides.
        let certain = held.is_none_or(|entry| entry.ttl() <= 0 || (entry.ttl() - world.now).abs() > 2 * SKEW);
        let matches = match asked {
            Asked::Version(expected) => version == Some(expected) && (live || !certain),
            Asked::Absent => !live && certain,
        };
        if !matches && certain && current {
            world.counts.refused += 1;
            if world.holds(asked, key, partition) {
                return Err(Promise::RefusalsWereTrue
                    .broken(format!("replica {} refused {asked:?} of {key}, which holds", self.who)));
            }
        }
        if !matches {
            return Ok(None);
        }
        world.values += 1;
        let (who, uuid) = (self.who, format!("u{}", world.values));
        let expected = match (asked, version) {
            (Asked::Version(version), _) => Expected::Live(version),
            (Asked::Absent, Some(version)) => Expected::Dead(version),
            (Asked::Absent, None) => Expected::Nothing,
        };
        let request = Request { who, key, partition, uuid, asked, expected };
        note!(world, "replica {} accepts {request:?}", self.who);
        Ok(Some(request))
    }
}
