//! Who writes to the log besides trimmers.

use bitacora_node::log::NewRecord;
use bitacora_protocol::partition_of;
use bitacora_protocol::record::{KeyValue, source, ttl};
use std::fmt::Write as _;

use crate::world::{KEYS, MINUTE, Partition, SECOND, SKEW, Sent, World};

impl World {
    pub fn value(&mut self) -> String {
        self.values += 1;
        format!("v{}", self.values)
    }

    pub fn write(&mut self) {
        self.counts.writes += 1;
        let key = KEYS[self.random.index(self.keys)];
        let accepting = self.now + self.random.between(-SKEW, SKEW);
        let (value, ttl) = match self.random.below(10) {
            0..3 => (String::new(), ttl::DELETED),
            3..5 => (self.value(), accepting + self.random.between(1, 90) * MINUTE),
            5 => (self.value(), accepting + self.random.between(1, 10) * SECOND),
            _ => (self.value(), ttl::FOR_EVER),
        };
        let partition = partition_of(key.as_bytes(), self.log.len());
        self.send(key, Some(encode(key, &value, ttl)), partition);
    }

    /// Another program, which writes tombstones and nonsense, and may not know of new partitions.
    pub fn foreign(&mut self) {
        self.counts.writes += 1;
        let key = KEYS[self.random.index(self.keys)];
        let kind = self.random.below(6);
        let nonsense = (2..4).contains(&kind);
        // The assumption: nonsense does not follow what the topic's growth has left behind.
        let knows_new = nonsense || !self.random.one_in(4);
        let partition = partition_of(key.as_bytes(), if knows_new { self.log.len() } else { 1 });
        // Nor where the key has been and may be again.
        let nonsense = nonsense && self.is_nowhere_else(key, partition);
        let value = match kind {
            0 => {
                let text = self.value();
                Some(encode(key, &text, ttl::FOR_EVER))
            }
            // Expired when written.
            1 => Some(encode(key, "old", 1)),
            _ if nonsense => Some(b"no record".to_vec()),
            _ => None,
        };
        self.send(key, value, partition);
    }

    pub fn has_pending(&self) -> bool {
        self.log.iter().any(|log| log.truth.pending().next().is_some())
    }

    /// Writes each key that has a pending repair, in that partition.
    pub fn write_pending(&mut self) {
        let pending = |(partition, log): (i32, &Partition)| {
            log.truth.pending().map(|key| (partition, key)).collect::<Vec<_>>()
        };
        let pending: Vec<_> = (0..).zip(&self.log).flat_map(pending).collect();
        for (partition, key) in pending {
            self.counts.given_up += 1;
            let text = self.value();
            let value = Some(encode(key, &text, ttl::FOR_EVER));
            self.sent.push(Sent { due: self.now, partition, key, value, condition: None, level: None });
        }
        self.pass(0);
    }

    /// Nonsense behind the key that has not been written for longest.
    pub fn poison_oldest(&mut self) {
        let written = |key: &&'static str| self.expected(key).map_or(0, |write| write.timestamp);
        if let Some(key) = KEYS[..self.keys].iter().copied().min_by_key(written) {
            let partition = partition_of(key.as_bytes(), self.log.len());
            if self.is_nowhere_else(key, partition) {
                self.send(key, Some(b"no record".to_vec()), partition);
            }
        }
    }

    /// Whether no other partition has ever held a key.
    fn is_nowhere_else(&self, key: &str, partition: i32) -> bool {
        (0..).zip(&self.log).all(|(other, log)| other == partition || !log.writes.contains_key(key))
    }
}

pub fn known(key: &[u8]) -> &'static str {
    let mut all = KEYS.iter().copied().chain([NewRecord::BARRIER_KEY]);
    all.find(|known| known.as_bytes() == key).expect("a key of the simulation")
}

pub fn encode(key: &str, value: &str, ttl: i64) -> Vec<u8> {
    encode_as(key, value, ttl, "")
}

pub fn encode_as(key: &str, value: &str, ttl: i64, uuid: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    KeyValue { key, value, timestamp: 0, source: source::PRODUCER, ttl, uuid }.encode(&mut bytes);
    bytes
}

pub fn show(value: Option<&[u8]>) -> String {
    let mut text = String::new();
    let _ = match value.map(KeyValue::decode) {
        None => write!(text, "null"),
        Some(Ok(record)) => write!(text, "{:?} ttl {}", record.value, record.ttl),
        Some(Err(_)) => write!(text, "nothing"),
    };
    text
}
