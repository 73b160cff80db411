//! Clients that use all kinds of calls, on all nodes, on few hot keys, many cold ones, and counters.

use std::cell::Cell;
use std::collections::HashMap;
use std::ops::Range;
use std::time::Duration;

use anyhow::Result;
use fastrand::Rng;
use futures_util::future::try_join_all;

use super::check::{COUNTER, number_of};
use super::client::{Client, Nodes};
use super::{Condition, Found, Level, Outcome, Recorder};
use crate::http::Position;

/// How often an increment is tried before its client does something else.
const INCREMENT_TRIES: usize = 8;
/// So many offsets on, the log has nothing yet.
const NOT_YET: i64 = 1 << 40;

#[derive(Debug, Clone)]
pub struct Workload {
    /// The same one lets each client choose alike, though not against the same answers.
    pub seed: u64,
    pub clients: usize,
    pub hot: usize,
    pub cold: usize,
    pub counters: usize,
    /// The level of what is held to linearizability.
    pub strong: Level,
    /// Whether there are session reads and such of that level; else all are eventual.
    pub levels: bool,
    /// Whether there are conditional writes; else all are plain, and nothing is counted.
    pub conditional: bool,
    /// ms between two calls of a client.
    pub pace: Range<u64>,
}

impl Workload {
    pub fn new(seed: u64) -> Workload {
        Workload {
            seed,
            clients: 10,
            hot: 4,
            cold: 60,
            counters: 2,
            strong: Level::Strong,
            levels: true,
            conditional: true,
            pace: 0..20,
        }
    }

    pub fn keys(&self) -> Vec<String> {
        let hot = (0..self.hot).map(|i| format!("hot-{i}"));
        let cold = (0..self.cold).map(|i| format!("cold-{i}"));
        hot.chain(cold).chain((0..self.counters).map(counter)).collect()
    }

    /// Runs until it is over.
    ///
    /// # Errors
    /// An answer that no node may give.
    pub async fn run(&self, nodes: &Nodes<'_>, recorder: &Recorder, over: &Cell<bool>) -> Result<()> {
        let clients = (0..self.clients).map(|number| async move {
            let mut user = User {
                workload: self,
                client: Client::new(number, nodes, recorder),
                nodes: nodes.count,
                rng: Rng::with_seed(self.seed.wrapping_mul(1_000_003).wrapping_add(number as u64)),
                known: HashMap::new(),
                written: 0,
            };
            while !over.get() {
                user.act(over).await?;
                tokio::time::sleep(Duration::from_millis(user.rng.u64(self.pace.clone()))).await;
            }
            anyhow::Ok(())
        });
        let ended = try_join_all(clients).await;
        // One that failed ends the others, and whoever waits for them.
        over.set(true);
        ended.map(drop)
    }
}

fn counter(i: usize) -> String {
    format!("{COUNTER}{i}")
}

struct User<'a> {
    workload: &'a Workload,
    client: Client<'a>,
    nodes: usize,
    rng: Rng,
    /// The record of each key that it saw last; it may be old.
    known: HashMap<String, Found>,
    written: usize,
}

impl User<'_> {
    /// One call, or a few that belong together.
    async fn act(&mut self, over: &Cell<bool>) -> Result<()> {
        // The conditional ones are the last.
        let choice = self.rng.usize(0..if self.workload.conditional { 100 } else { 65 });
        let key = self.key();
        match choice {
            0..14 => drop(self.read(&key, Level::Eventual).await?),
            14..28 => drop(self.read(&key, Level::Session).await?),
            28..46 => drop(self.read(&key, self.workload.strong).await?),
            46..60 => drop(self.write(&key, true, Condition::None).await?),
            60..65 => drop(self.write(&key, false, Condition::None).await?),
            65..74 => drop(self.write(&key, true, Condition::Absent).await?),
            74..88 => drop(self.compare_and(&key, true).await?),
            88..92 => drop(self.compare_and(&key, false).await?),
            _ => {
                let key = counter(self.rng.usize(0..self.workload.counters));
                self.increment(&key, over).await?;
            }
        }
        Ok(())
    }

    fn key(&mut self) -> String {
        if self.rng.usize(0..10) < 6 {
            format!("hot-{}", self.rng.usize(0..self.workload.hot))
        } else {
            format!("cold-{}", self.rng.usize(0..self.workload.cold))
        }
    }

    async fn read(&mut self, key: &str, level: Level) -> Result<Outcome> {
        let node = self.rng.usize(0..self.nodes);
        let level = if self.workload.levels { level } else { Level::Eventual };
        let outcome = self.client.read(node, key, level).await?;
        self.learn(key, &outcome);
        Ok(outcome)
    }

    /// `sets`: whether it has a value, or deletes.
    async fn write(&mut self, key: &str, sets: bool, condition: Condition) -> Result<Outcome> {
        let value = sets.then(|| self.new_value());
        self.write_value(key, value, condition).await
    }

    fn new_value(&mut self) -> String {
        self.written += 1;
        format!("{}-{}", self.client.number, self.written)
    }

    async fn write_value(
        &mut self,
        key: &str,
        value: Option<String>,
        condition: Condition,
    ) -> Result<Outcome> {
        let node = self.rng.usize(0..self.nodes);
        let named = self.workload.conditional && (condition != Condition::None || self.rng.bool());
        let uuid = named.then(|| self.uuid());
        let outcome = self.client.write(node, key, value.clone(), condition, uuid).await?;
        match (&outcome, value) {
            (Outcome::Done(version), Some(value)) => {
                self.known.insert(key.to_owned(), Found { version: *version, value, local: true });
            }
            (Outcome::Done(_), None) => drop(self.known.remove(key)),
            _ => self.learn(key, &outcome),
        }
        Ok(outcome)
    }

    fn uuid(&mut self) -> String {
        uuid::Builder::from_random_bytes(self.rng.u128(..).to_be_bytes()).into_uuid().to_string()
    }

    fn learn(&mut self, key: &str, outcome: &Outcome) {
        match outcome {
            Outcome::Found(found) | Outcome::Failed { current: Some(found), .. } => {
                self.known.insert(key.to_owned(), found.clone());
            }
            Outcome::Missing { .. } | Outcome::Failed { current: None, .. } => drop(self.known.remove(key)),
            _ => {}
        }
    }

    /// Writes over what it saw last, or sees first; now and then what is not there yet.
    async fn compare_and(&mut self, key: &str, sets: bool) -> Result<Outcome> {
        if !self.known.contains_key(key) || self.rng.bool() {
            let levels = [Level::Eventual, Level::Session, self.workload.strong];
            let level = levels[self.rng.usize(0..levels.len())];
            self.read(key, level).await?;
        }
        let condition = match self.known.get(key) {
            None => Condition::Absent,
            Some(found) if self.rng.usize(0..20) == 0 => {
                let Position { partition, offset } = found.version;
                Condition::Version(Position { partition, offset: offset + NOT_YET })
            }
            Some(found) => Condition::Version(found.version),
        };
        // Nothing can be deleted where nothing is.
        let sets = sets || condition == Condition::Absent;
        self.write(key, sets, condition).await
    }

    async fn increment(&mut self, key: &str, over: &Cell<bool>) -> Result<()> {
        self.read(key, Level::Session).await?;
        for _ in 0..INCREMENT_TRIES {
            let (number, condition) = match self.known.get(key) {
                Some(found) => {
                    (number_of(&found.value).unwrap_or_default(), Condition::Version(found.version))
                }
                None => (0, Condition::Absent),
            };
            let value = format!("{} {}", number + 1, self.new_value());
            match self.write_value(key, Some(value), condition).await? {
                // The current record is known by now.
                Outcome::Failed { .. } if !over.get() => {}
                _ => break,
            }
        }
        Ok(())
    }
}
