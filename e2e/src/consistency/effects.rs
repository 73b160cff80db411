//! The log as a reader without any of the nodes' code sees it, and which of its writes took effect.
//!
//! Decided here once more, by the rules of the documentation: a plain write takes effect; a conditional one if the version that
//! it expects is the key's when its turn comes, and in time. What trimmers and repairs append changes nothing for who reads all.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result, bail, ensure};

use crate::http::Position;
use crate::topic::{KeyValue, Record};

const ATTEMPT: &str = "bitacora-attempt";
const TIDIED: [&str; 2] = ["bitacora-trim", "bitacora-repair"];
/// Keys that begin so are the nodes' own.
const RESERVED: char = '\0';

/// A write in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    pub position: Position,
    pub key: String,
    /// `None` for a delete.
    pub value: Option<String>,
    /// When it expires, in ms since the epoch; 0 for never, -1 for a delete.
    pub ttl: i64,
    /// When it was appended, in ms since the epoch.
    pub timestamp: i64,
    pub uuid: String,
    pub conditional: bool,
    pub in_effect: bool,
}

/// All writes of a log, by position.
#[derive(Debug, Default)]
pub struct Effects {
    pub writes: BTreeMap<(i32, i64), Logged>,
    /// The positions of those in effect, of each key.
    versions: HashMap<String, Vec<Position>>,
}

/// What an attempt says of itself in its header: `expected:live|dead:until:log`.
struct Attempt {
    /// The version's offset; `None` for a place where nothing is.
    expected: Option<i64>,
    live: bool,
    /// ms since the epoch, by the log's time.
    until: i64,
}

impl Attempt {
    fn parse(header: &str) -> Result<Attempt> {
        let parts: Vec<&str> = header.split(':').collect();
        let [expected, mode, until, _log] = parts[..] else { bail!("{} parts, not 4", parts.len()) };
        let expected = if expected == "-" { None } else { Some(expected.parse().context("a version")?) };
        let live = match mode {
            "live" => true,
            "dead" => false,
            other => bail!("{other} is neither live nor dead"),
        };
        Ok(Attempt { expected, live, until: until.parse().context("a time")? })
    }

    /// Whether it takes effect on what the key holds: the version and until when it is live.
    fn fits(&self, held: Option<(i64, i64)>, timestamp: i64) -> bool {
        let place = match (self.expected, held) {
            (None, None) => !self.live,
            (Some(expected), Some((version, live_until))) => {
                expected == version && self.live == (timestamp < live_until)
            }
            _ => false,
        };
        place && timestamp <= self.until
    }
}

impl Effects {
    /// Reads what [`crate::topic::Topic::read_all`] returns.
    ///
    /// # Errors
    /// A record that is not as nodes write them, with its position.
    pub fn of(mut records: Vec<Record>) -> Result<Effects> {
        records.sort_by_key(|record| (record.position.partition, record.position.offset));
        let mut effects = Effects::default();
        // Of each partition and key: the version, and until when it is live, in ms since the epoch.
        let mut held: HashMap<(i32, String), (i64, i64)> = HashMap::new();
        for record in &records {
            let key = record.key_text();
            let tidied = record.headers.iter().any(|(name, _)| TIDIED.contains(&name.as_str()));
            if tidied || key.starts_with(RESERVED) {
                continue;
            }
            let position = record.position;
            let place = (position.partition, key.clone());
            let (logged, live_until) = logged(record, key, held.get(&place).copied())
                .with_context(|| format!("the record at {position:?}"))?;
            if logged.in_effect {
                held.insert(place, (position.offset, live_until));
                effects.versions.entry(logged.key.clone()).or_default().push(position);
            }
            effects.writes.insert((position.partition, position.offset), logged);
        }
        Ok(effects)
    }

    pub fn at(&self, position: Position) -> Option<&Logged> {
        self.writes.get(&(position.partition, position.offset))
    }

    /// The writes of a key that took effect, oldest first.
    pub fn of_key(&self, key: &str) -> impl DoubleEndedIterator<Item = &Logged> {
        let versions = self.versions.get(key).map_or(&[][..], Vec::as_slice);
        versions.iter().filter_map(|version| self.at(*version))
    }

    /// The version that a key had when everything up to an offset of a partition had been applied.
    pub fn version_at(&self, key: &str, partition: i32, offset: i64) -> Option<Position> {
        let versions = self.versions.get(key)?;
        versions.iter().rev().find(|v| v.partition == partition && v.offset <= offset).copied()
    }
}

/// The write that a record is, and until when it is live.
fn logged(record: &Record, key: String, held: Option<(i64, i64)>) -> Result<(Logged, i64)> {
    let value = record.value.as_deref().context("a tombstone that no trimmer wrote")?;
    let decoded = KeyValue::from_avro(value)?;
    ensure!(decoded.key == key, "its value is of the key {:?}", decoded.key);
    let header = record.headers.iter().find(|(name, _)| name == ATTEMPT);
    let in_effect = match header {
        None => true,
        Some((_, header)) => {
            let header = std::str::from_utf8(header).context("its header")?;
            let attempt = Attempt::parse(header).with_context(|| format!("{ATTEMPT}: {header}"))?;
            attempt.fits(held, record.timestamp)
        }
    };
    let live_until = match decoded.ttl {
        0 => i64::MAX,
        -1 => i64::MIN,
        until => until,
    };
    let logged = Logged {
        position: record.position,
        key,
        value: (decoded.ttl != -1).then_some(decoded.value),
        ttl: decoded.ttl,
        timestamp: record.timestamp,
        uuid: decoded.uuid,
        conditional: header.is_some(),
        in_effect,
    };
    Ok((logged, live_until))
}
