//! What clients did and saw, and whether a store that keeps its promises can have answered so.
//!
//! The log decides everything: a write is where it was acknowledged, and what a key holds in the end is what the last
//! record of the log says. So the checks need no search, as those of linearizability would.

use std::collections::{BTreeMap, HashMap, HashSet};

use anyhow::{Result, ensure};

use crate::http::Position;

/// Times are in ms since the run began.
#[derive(Debug, Clone)]
pub struct Operation {
    pub node: usize,
    pub key: String,
    pub kind: Kind,
    pub began: u64,
    pub ended: u64,
    pub outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Get,
    /// No two writes of a run have the same value.
    Set(String),
    /// A set that expires after so many ms.
    SetFor(String, u64),
    Delete,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A write that was acknowledged.
    Acknowledged(Position),
    /// A read; `local` unless another node was asked.
    Read { value: Option<String>, position: Position, local: bool },
    /// The write has certainly not taken effect.
    NotTaken(String),
    /// Nobody answered, or the answer was that nobody knows.
    Unknown(String),
}

/// A record of the log, as a reader without any of our code sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    pub position: Position,
    pub key: String,
    /// `None` for a delete.
    pub value: Option<String>,
    /// When it expires, in ms since the run began; `None` for never.
    pub expires: Option<u64>,
    /// Of the write, by the node that accepted it; `None` where others wrote.
    pub uuid: Option<String>,
}

/// What a node answers for a key in the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Final {
    pub value: Option<String>,
    pub position: Position,
    /// When it was asked, in ms since the run began.
    pub at: u64,
}

/// Checks a run against the log, none of which has been compacted away, and against what each node holds at its end. `log`
/// leaves out what nodes wrote of their own accord, which changes no answer.
///
/// # Errors
/// The first promise that was broken, with the operation that shows it.
///
/// Returns how many records are of a write that is there once more, behind them: while it was under way, and never after it
/// was acknowledged.
pub fn check(
    history: &[Operation],
    log: &[Logged],
    finals: &[BTreeMap<String, Final>],
    keys: &[String],
) -> Result<usize> {
    let at: HashMap<(i32, i64), &Logged> =
        log.iter().map(|record| ((record.position.partition, record.position.offset), record)).collect();
    let written: HashMap<&str, &Operation> = history
        .iter()
        .filter_map(|operation| match &operation.kind {
            Kind::Set(value) | Kind::SetFor(value, _) => Some((value.as_str(), operation)),
            Kind::Get | Kind::Delete => None,
        })
        .collect();
    acknowledged_writes_are_in_the_log(history, &at)?;
    let once = each_write_once(history, log)?;
    nothing_was_invented(history, &once, &written)?;
    reads_are_of_the_log(history, &at, &written)?;
    positions_never_go_back(history)?;

    let mut newest: HashMap<&str, &Logged> = HashMap::new();
    for record in log {
        let known = newest.entry(&record.key).or_insert(record);
        if record.position.offset > known.position.offset {
            *known = record;
        }
    }
    for (node, held) in finals.iter().enumerate() {
        for key in keys {
            let (last, held) = (newest.get(key.as_str()), held.get(key));
            match (last, held) {
                (None, Some(held)) => {
                    ensure!(
                        held.value.is_none(),
                        "node {node} has {key}: {held:?}, the log has nothing of it"
                    );
                }
                (Some(last), Some(held)) => {
                    let alive = last.expires.is_none_or(|expires| expires > held.at);
                    let value = last.value.as_ref().filter(|_| alive);
                    // What is dead may have been trimmed; the position is then how far its partition is applied.
                    let in_place = held.position == last.position
                        || value.is_none()
                            && held.position.partition == last.position.partition
                            && held.position.offset > last.position.offset;
                    let same = held.value.as_ref() == value && in_place;
                    ensure!(same, "node {node} ends with {key}: {held:?}, the log with {last:?}");
                }
                (_, None) => anyhow::bail!("node {node} was not asked for {key}"),
            }
        }
    }
    Ok(log.len() - once.len())
}

/// The last record of each write. An idempotent producer sends a record under a new epoch once more, when another one's
/// time ran out meanwhile (librdkafka's issue 4953); what it has acknowledged, it does not.
fn each_write_once<'a>(history: &[Operation], log: &'a [Logged]) -> Result<Vec<&'a Logged>> {
    let acknowledged: HashSet<(i32, i64)> = history
        .iter()
        .filter_map(|operation| match &operation.outcome {
            Outcome::Acknowledged(position) => Some((position.partition, position.offset)),
            _ => None,
        })
        .collect();
    let mut sorted: Vec<_> = log.iter().collect();
    sorted.sort_by_key(|record| (record.position.partition, record.position.offset));
    let mut last: HashMap<(&str, &str), &Logged> = HashMap::new();
    let mut once = Vec::new();
    for record in sorted {
        let Some(uuid) = &record.uuid else {
            once.push(record);
            continue;
        };
        let Some(before) = last.insert((&record.key, uuid), record) else { continue };
        let at = (before.position.partition, before.position.offset);
        ensure!(!acknowledged.contains(&at), "acknowledged, and written again: {before:?}, {record:?}");
    }
    once.extend(last.into_values());
    Ok(once)
}

fn acknowledged_writes_are_in_the_log(
    history: &[Operation],
    at: &HashMap<(i32, i64), &Logged>,
) -> Result<()> {
    for operation in history {
        let (Outcome::Acknowledged(position), value) = (&operation.outcome, operation.kind.value()) else {
            continue;
        };
        let found = at.get(&(position.partition, position.offset));
        let same = found.is_some_and(|found| found.key == operation.key && found.value.as_ref() == value);
        ensure!(same, "acknowledged and lost: {operation:?}; the log has {found:?} there");
    }
    Ok(())
}

fn nothing_was_invented(
    history: &[Operation],
    log: &[&Logged],
    written: &HashMap<&str, &Operation>,
) -> Result<()> {
    let mut deletes: HashMap<&str, usize> = HashMap::new();
    for operation in history.iter().filter(|operation| operation.kind == Kind::Delete) {
        if !matches!(operation.outcome, Outcome::NotTaken(_)) {
            *deletes.entry(&operation.key).or_default() += 1;
        }
    }
    let mut seen: HashMap<&str, Position> = HashMap::new();
    for record in log {
        let Some(value) = &record.value else {
            let left = deletes.get_mut(record.key.as_str()).filter(|left| **left > 0);
            let left = left.ok_or_else(|| anyhow::anyhow!("nobody deleted {record:?}"))?;
            *left -= 1;
            continue;
        };
        let writer = written.get(value.as_str()).filter(|writer| writer.key == record.key);
        let writer = writer.ok_or_else(|| anyhow::anyhow!("nobody wrote {record:?}"))?;
        let refused = matches!(writer.outcome, Outcome::NotTaken(_));
        ensure!(!refused, "it was said not to have taken effect: {writer:?}; the log has {record:?}");
        let before = seen.insert(value, record.position);
        ensure!(before.is_none(), "written once, {writer:?}, and twice in the log: {before:?}, {record:?}");
    }
    Ok(())
}

fn reads_are_of_the_log(
    history: &[Operation],
    at: &HashMap<(i32, i64), &Logged>,
    written: &HashMap<&str, &Operation>,
) -> Result<()> {
    for operation in history {
        let Outcome::Read { value: Some(value), position, .. } = &operation.outcome else { continue };
        let found = at.get(&(position.partition, position.offset));
        let same =
            found.is_some_and(|found| found.key == operation.key && found.value.as_ref() == Some(value));
        ensure!(same, "a read of what the log does not hold there: {operation:?}; it has {found:?}");
        let writer = written.get(value.as_str());
        let earlier = writer.is_some_and(|writer| writer.began <= operation.ended);
        ensure!(earlier, "read before it was written: {operation:?}, {writer:?}");
        let expired = found.and_then(|found| found.expires).is_some_and(|expires| expires <= operation.began);
        ensure!(!expired, "read although it has expired: {operation:?}, {found:?}");
    }
    Ok(())
}

/// A node that has shown a key at a position never shows it at an older one.
fn positions_never_go_back(history: &[Operation]) -> Result<()> {
    let mut reads: HashMap<(usize, &str), Vec<(&Operation, Position)>> = HashMap::new();
    for operation in history {
        if let Outcome::Read { position, local: true, .. } = &operation.outcome {
            reads.entry((operation.node, &operation.key)).or_default().push((operation, *position));
        }
    }
    for mut reads in reads.into_values() {
        reads.sort_by_key(|(operation, _)| operation.ended);
        let ends: Vec<u64> = reads.iter().map(|(operation, _)| operation.ended).collect();
        // The newest position of all reads up to each one.
        let mut newest: Vec<(&Operation, Position)> = Vec::with_capacity(reads.len());
        for read in &reads {
            let known = newest.last().copied().filter(|(_, known)| known.offset >= read.1.offset);
            newest.push(known.unwrap_or(*read));
        }
        for (operation, position) in &reads {
            let ended_before = ends.partition_point(|ended| *ended < operation.began);
            let Some((earlier, known)) = ended_before.checked_sub(1).map(|last| newest[last]) else {
                continue;
            };
            ensure!(
                known.offset <= position.offset,
                "went back: {earlier:?} was answered before {operation:?} began"
            );
        }
    }
    Ok(())
}

impl Kind {
    fn value(&self) -> Option<&String> {
        match self {
            Kind::Set(value) | Kind::SetFor(value, _) => Some(value),
            Kind::Get | Kind::Delete => None,
        }
    }
}
