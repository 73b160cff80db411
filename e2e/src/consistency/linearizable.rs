//! Whether each key behaves as a single register with versions: a write that took effect has a version, each one higher than
//! the one before, and every read and every 412 shows the register of some moment between its call and its answer.
//!
//! What is not asked to be linearizable (eventual and session reads) is left out, but tells what unclear writes became: a value
//! that somebody has seen was written, at the version that was shown. An unclear write of a value that nobody has seen
//! is left out: whatever order there is with it, there is one without it. Unclear deletes can't be seen so; they may take
//! effect at any moment after they began, or never. That needs clients that expect no version that nobody has seen.

use std::collections::{BTreeMap, HashMap};

use super::search::{self, Sequential, Timed, Verdict};
use super::{Call, Condition, Level, Moment, Operation, Outcome};

/// Steps of a search; a history that fits takes little more than one for each operation.
const LIMIT: usize = 2_000_000;

/// The register after some calls.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Register {
    /// The offset of the last known version; -1 before the first. The present one is higher after an unclear delete.
    version: i64,
    /// The number of its value.
    value: Option<usize>,
    /// Of the key's unclear plain deletes, in the order in which they began, so many have taken effect. One that began
    /// earlier can do whatever a later one can, so no other choice needs to be tried.
    deletes: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    Nothing,
    Absent,
    /// The live record of this version.
    Version(i64),
}

#[derive(Debug, Clone)]
enum Event {
    Write {
        version: i64,
        value: Option<usize>,
        need: Need,
    },
    Shown {
        version: i64,
        value: usize,
    },
    Missing {
        at_least: i64,
    },
    /// What can't have been answered in any state.
    Never,
}

/// A key's register, and what may happen to it at any time.
#[derive(Default)]
struct Model {
    /// When each unclear plain delete began.
    deletes: Vec<Moment>,
    /// Of which version, and when it began: unclear deletes with a condition.
    removes: Vec<(i64, Moment)>,
}

impl Sequential for Model {
    type Call = Event;
    type State = Register;

    fn start(&self) -> Register {
        Register { version: -1, value: None, deletes: 0 }
    }

    fn apply(&self, state: &Register, call: &Event) -> Option<Register> {
        let fits = match *call {
            Event::Write { version, need, .. } => {
                version > state.version
                    && match need {
                        Need::Nothing => true,
                        Need::Absent => state.value.is_none(),
                        Need::Version(needed) => state.value.is_some() && state.version == needed,
                    }
            }
            Event::Shown { version, value } => state.version == version && state.value == Some(value),
            Event::Missing { at_least } => state.value.is_none() && state.version <= at_least,
            Event::Never => false,
        };
        fits.then(|| match *call {
            Event::Write { version, value, .. } => Register { version, value, ..*state },
            _ => state.clone(),
        })
    }

    fn turn(&self, call: &Event) -> Option<i64> {
        match call {
            Event::Write { version, .. } => Some(*version),
            _ => None,
        }
    }

    fn unclear(&self, state: &Register, moment: Moment) -> Vec<Register> {
        if state.value.is_none() {
            return Vec::new();
        }
        let mut after = Vec::new();
        if self.deletes.get(state.deletes).is_some_and(|began| *began <= moment) {
            after.push(Register { value: None, deletes: state.deletes + 1, ..*state });
        }
        if self.removes.iter().any(|(version, began)| *version == state.version && *began <= moment) {
            after.push(Register { value: None, ..*state });
        }
        after
    }
}

/// What is wrong with the keys of a history.
#[derive(Debug, Default)]
pub struct Result {
    pub keys: usize,
    /// Operations that took part.
    pub operations: usize,
    /// Unclear plain sets that took effect more than once while they were under way.
    pub repeated: usize,
    pub violations: Vec<String>,
}

/// Checks each key: all writes, all 412s, and the reads of those levels.
pub fn check(history: &[Operation], levels: &[Level]) -> Result {
    let mut keys: BTreeMap<&str, Vec<&Operation>> = BTreeMap::new();
    for operation in history {
        keys.entry(&operation.key).or_default().push(operation);
    }
    let mut result = Result { keys: keys.len(), ..Result::default() };
    for (key, operations) in keys {
        check_key(key, &operations, levels, &mut result);
    }
    result
}

/// A write of a value, and where the value was seen: for each version the first moment at which somebody knew it.
struct Written<'a> {
    operation: &'a Operation,
    number: usize,
    seen: BTreeMap<i64, Moment>,
}

type Values<'a> = HashMap<&'a str, Written<'a>>;

fn check_key(key: &str, operations: &[&Operation], levels: &[Level], result: &mut Result) {
    let before = result.violations.len();
    let values = values_of(operations, &mut result.violations);
    let mut model = Model::default();
    // Each event with the operation that it is of.
    let mut events: Vec<(Timed<Event>, &Operation)> = Vec::new();
    for operation in operations {
        match (&operation.call, &operation.outcome) {
            (_, Outcome::Refused(_)) => {}
            (Call::Read(level), _) if !levels.contains(level) => {}
            (Call::Write { condition, value: None, .. }, Outcome::Unclear(_)) => match condition {
                Condition::Version(version) => model.removes.push((version.offset, operation.began)),
                _ => model.deletes.push(operation.began),
            },
            (Call::Write { value: Some(_), .. }, Outcome::Done(_) | Outcome::Unclear(_)) => {}
            _ => events.push((timed(operation, event(operation, &values)), operation)),
        }
    }
    for written in values.values() {
        let placed = place(written, result);
        events.extend(placed.into_iter().map(|event| (event, written.operation)));
    }
    result.operations += events.len() + model.deletes.len() + model.removes.len();
    if result.violations.len() > before {
        return;
    }
    model.deletes.sort_unstable();
    events.sort_by_key(|(event, _)| event.began);
    let (calls, of): (Vec<_>, Vec<_>) = events.into_iter().unzip();
    match search::search(&model, &calls, LIMIT) {
        Verdict::Linearizable => {}
        Verdict::Undecided(steps) => {
            result.violations.push(format!("not decided: {key} after {steps} steps"));
        }
        Verdict::Impossible { fitted, state, next } => {
            result.violations.push(explain(key, &values, fitted, &state, next.iter().map(|i| of[*i])));
        }
    }
}

fn explain<'a>(
    key: &str,
    values: &Values,
    fitted: usize,
    state: &Register,
    next: impl Iterator<Item = &'a Operation>,
) -> String {
    let holds = values.iter().find(|(_, written)| Some(written.number) == state.value);
    let next: Vec<_> = next.take(8).map(|operation| format!("\n    {operation}")).collect();
    format!(
        "not linearizable: {key}: {fitted} of its operations fit; with {:?} at offset {} after them none of these can be next:{}",
        holds.map(|(value, _)| value),
        state.version,
        next.concat()
    )
}

/// The writes of values, and where those were seen, by whatever read.
fn values_of<'a>(operations: &[&'a Operation], violations: &mut Vec<String>) -> Values<'a> {
    let mut values: Values = HashMap::new();
    for operation in operations {
        let Some((Some(value), _)) = operation.write() else { continue };
        let number = values.len();
        let mut written = Written { operation, number, seen: BTreeMap::new() };
        if let Outcome::Done(version) = operation.outcome {
            written.seen.insert(version.offset, operation.ended);
        }
        if let Some(other) = values.insert(value, written) {
            violations.push(format!("two writes have one value: {operation}, {}", other.operation));
        }
    }
    for operation in operations {
        let Some(found) = operation.shown() else { continue };
        let Some(written) = values.get_mut(found.value.as_str()) else {
            violations.push(format!("nobody wrote what was read: {operation}"));
            continue;
        };
        let writer = written.operation;
        if writer.began > operation.ended {
            violations.push(format!("read before it was written: {operation}; {writer}"));
        }
        if matches!(writer.outcome, Outcome::Refused(_) | Outcome::Failed { .. }) {
            violations.push(format!("read although it had no effect: {operation}; {writer}"));
        }
        let first = written.seen.entry(found.version.offset).or_insert(operation.ended);
        *first = (*first).min(operation.ended);
    }
    values
}

/// The events of a write that took effect, as somebody knows.
fn place(written: &Written, result: &mut Result) -> Vec<Timed<Event>> {
    let Written { operation, number, seen } = written;
    let (_, condition) = operation.write().expect("only writes are here");
    let acknowledged = match operation.outcome {
        Outcome::Done(version) => Some(version.offset),
        Outcome::Unclear(_) => None,
        _ => return Vec::new(),
    };
    // An idempotent producer may send a plain write once more while it is under way; never after its acknowledgement.
    let once = condition != Condition::None;
    let late =
        acknowledged.is_some_and(|version| seen.last_key_value().is_some_and(|(last, _)| *last > version));
    if seen.len() > 1 && (once || late) {
        result
            .violations
            .push(format!("in effect more than once: at the offsets {:?}: {operation}", seen.keys()));
    }
    result.repeated += seen.len().saturating_sub(1);
    let event = |(version, known): (&i64, &Moment)| Timed {
        began: operation.began,
        // Whoever saw it saw it after it took effect.
        ended: if acknowledged == Some(*version) { (*known).min(operation.ended) } else { *known },
        call: Event::Write { version: *version, value: Some(*number), need: need(condition) },
    };
    seen.iter().map(event).collect()
}

fn need(condition: Condition) -> Need {
    match condition {
        Condition::None => Need::Nothing,
        Condition::Absent => Need::Absent,
        Condition::Version(version) => Need::Version(version.offset),
    }
}

fn timed(operation: &Operation, call: Event) -> Timed<Event> {
    Timed { began: operation.began, ended: operation.ended, call }
}

/// A delete that took effect, a read, or a 412.
fn event(operation: &Operation, values: &Values) -> Event {
    let number = |value: &str| values.get(value).map(|written| written.number);
    match (&operation.call, &operation.outcome) {
        (Call::Write { condition, .. }, Outcome::Done(version)) => {
            Event::Write { version: version.offset, value: None, need: need(*condition) }
        }
        (Call::Read(_), Outcome::Found(found)) => match number(&found.value) {
            Some(value) => Event::Shown { version: found.version.offset, value },
            None => Event::Never,
        },
        (Call::Read(_), Outcome::Missing { position, .. }) => Event::Missing { at_least: position.offset },
        // The condition must not hold where the answer is true.
        (Call::Write { condition, .. }, Outcome::Failed { current, position }) => {
            match (condition, current) {
                (Condition::None, _) | (Condition::Absent, None) => Event::Never,
                (Condition::Version(version), Some(found)) if *version == found.version => Event::Never,
                (_, Some(found)) => match number(&found.value) {
                    Some(value) => Event::Shown { version: found.version.offset, value },
                    None => Event::Never,
                },
                (Condition::Version(_), None) => Event::Missing { at_least: position.offset },
            }
        }
        _ => Event::Never,
    }
}
